"""What a table takes before it is run: splits, features, disk and hours."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from meidbench.baselines.configuration import Config
from meidbench.baselines.reproduction.built_splits import build_command
from meidbench.baselines.reproduction.cost import formula, run_cost
from meidbench.baselines.reproduction.jobs import Job
from meidbench.baselines.reproduction.materials import Materials, stand_in
from meidbench.baselines.reproduction.needs import FeatureNeed, encoders, feature_need
from meidbench.baselines.reproduction.paper_tables import PaperTable
from meidbench.baselines.reproduction.reproduction import missing_inputs


@dataclass(frozen=True)
class PlannedRow:
    """What a row takes.

    Attributes
    ----------
    name : str
    missing : tuple of str
        What is not there.
    runs : int
        Trainings, first stages among them; those that it shares with rows before it are not counted.
    hours : float
        Estimate for these runs.
    quoted : str
        Why nothing can stand beside it; empty where something can.
    """

    name: str
    missing: tuple[str, ...]
    runs: int
    hours: float
    quoted: str


@dataclass(frozen=True)
class Plan:
    """What a table takes.

    Attributes
    ----------
    table : PaperTable
    splits : dict of str to str
        By benchmark: the command that builds the split, empty where it is there.
    features : tuple of (FeatureNeed, bool)
        And whether they are named.
    rows : tuple of PlannedRow
    gpu, formula : str
    """

    table: PaperTable
    splits: dict[str, str]
    features: tuple[tuple[FeatureNeed, bool], ...]
    rows: tuple[PlannedRow, ...]
    gpu: str
    formula: str

    @property
    def ready(self) -> int:
        """How many rows can be run."""
        return sum(not (row.missing or row.quoted) for row in self.rows)

    def content(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        return {
            "table": self.table.name,
            "title": self.table.title,
            "splits": {name: {"built": not command, "command": command} for name, command in self.splits.items()},
            "features": [
                {**asdict(need), "bytes": need.bytes, "command": need.command, "named": named}
                for need, named in self.features
            ],
            "rows": [asdict(row) for row in self.rows],
            "estimate": {"gpu": self.gpu, "formula": self.formula},
        }


def make_plan(table: PaperTable, jobs: Sequence[Job], materials: Materials, gpu: str) -> Plan:
    """Say what jobs take; those that are not asked for are left out.

    Raises
    ------
    MeidbenchError
        The GPU is unknown, or a split is damaged.
    """
    jobs = [job for job in jobs if job.asked]
    wanted = [job.row for job in jobs if not job.row.is_quoted]
    pairs = sorted(
        {(row.dataset, row.encoder) for row in wanted},
        key=lambda pair: (pair[0], list(encoders().values()).index(pair[1])),
    )
    seen: set[str] = set()
    return Plan(
        table=table,
        splits={
            dataset: "" if materials.split(dataset) is not None else build_command(dataset)
            for dataset in dict.fromkeys(row.dataset for row in wanted)
        },
        features=tuple(
            (feature_need(*pair), materials.has_features(*pair) and not materials.unreal(*pair)) for pair in pairs
        ),
        rows=tuple(_planned(job, materials, gpu, seen) for job in jobs),
        gpu=gpu,
        formula=formula(gpu),
    )


def _planned(job: Job, materials: Materials, gpu: str, seen: set[str]) -> PlannedRow:
    row = job.row
    new: list[Config] = []
    for config in job.configs:
        for stage in (config.first_stage, config):
            name = f"{row.dataset} {row.encoder} {stage and stage.to_tables()}"
            if stage is not None and name not in seen:
                seen.add(name)
                new.append(stage)
    width = feature_need(row.dataset, row.encoder).width
    hours = sum(run_cost(config, stand_in(row.dataset), row.dataset, width, gpu).hours for config in new)
    return PlannedRow(
        row.name, missing_inputs(row, materials), len(new), hours, row.note or "quoted" if row.is_quoted else ""
    )
