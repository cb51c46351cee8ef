"""A reproduced table: the paper's values and ours, and in what they are not alike."""

import csv
import io
import math
from dataclasses import asdict, dataclass
from typing import Any

from meidbench.baselines.configuration import Config
from meidbench.baselines.recipes import COMPAT_ENDING
from meidbench.baselines.reproduction.estimates import Ours
from meidbench.baselines.reproduction.paper_tables import PaperTable, Row
from meidbench.baselines.reproduction.request import MARK, WATERMARK
from meidbench.evaluation.results import GROUPS_SHOWN, as_json

DONE, NOT_RUN, QUOTED, FAILED, NOT_ASKED = "done", "not run", "quoted", "failed", "not asked for"
_FORMAT_VERSION = 1

_CHOSEN = {
    "val": "Ours{} is chosen on val, and test is scored once.",
    "test": "Ours{} is chosen on test, too, as selection.subset asks: that flatters it as it does theirs.",
}
_COMPAT = (
    "Rows of baselines are the recipes NAME-compat, which behave as the public code that the numbers are from. "
    "--faithful takes the recipes of the methods' papers instead."
)
_FAITHFUL = (
    "Rows of baselines are the recipes of the methods' papers, as --faithful asks. The numbers are from public code, "
    "which the recipes NAME-compat behave as."
)


@dataclass(frozen=True)
class RowOutcome:
    """What became of a row.

    Attributes
    ----------
    row : Row
    status : str
        ``done``, ``not run``, ``quoted`` (nothing of ours can stand there), ``failed``, or ``not asked for``.
    reason : str
        Why there are no numbers; empty where there are.
    config : Config or None
        Of its first run; None for rows that are quoted or not asked for.
    differs : tuple of str
        In what ours was made otherwise than the published row, as far as settings and features say.
    ours : Ours or None
    trained : int
        Runs that were trained or gone on with for it, not merely found.
    asked : bool
        Whether it was asked for.
    """

    row: Row
    status: str
    reason: str = ""
    config: Config | None = None
    differs: tuple[str, ...] = ()
    ours: Ours | None = None
    trained: int = 0
    asked: bool = True

    def difference(self, group: str) -> float:
        """Return ours less the paper's, NaN where ours was not run."""
        if self.ours is None:
            return math.nan
        return self.ours.mAP[group].value - float(getattr(self.row.published, group))

    @property
    def made_with(self) -> str:
        """Say how ours is made."""
        if self.config is None:
            return ""
        schedule, frames = self.config.schedule, self.config.frames
        first = self.config.first_stage
        epochs = f"{schedule.epochs}" if first is None else f"{first.schedule.epochs} + {schedule.epochs}"
        return (
            f"{self.config.method}, {self.config.aggregator.name}; {epochs} epochs in batches of "
            f"{schedule.batch_size}, {frames.train} frames in training and {frames.test} in scoring, checkpoint by "
            f"{self.config.selection.subset}"
        )


@dataclass(frozen=True)
class Reproduction:
    """A table, reproduced as far as it was run.

    Attributes
    ----------
    table : PaperTable
    rows : tuple of RowOutcome
        All of the table, also those that were not asked for.
    simulated : bool
        Whether features were simulated: then nothing is comparable with the paper, and its values are left out.
    replicates, bootstrap_seed : int
    """

    table: PaperTable
    rows: tuple[RowOutcome, ...]
    simulated: bool
    replicates: int
    bootstrap_seed: int

    @property
    def title(self) -> str:
        """The title, watermarked where features are simulated."""
        title = f"{self.table.name}: {self.table.title} ({self.table.source})"
        return f"{WATERMARK}\n{MARK} {title}" if self.simulated else title

    @property
    def intervals(self) -> str:
        """How the intervals were made."""
        return (
            f"95% intervals: Bayesian bootstrap over the test videos, {self.replicates:,} replicates, seed "
            f"{self.bootstrap_seed}; they do not cover what another training would give."
        )

    @property
    def protocol(self) -> tuple[str, ...]:
        """In what the published numbers were measured otherwise than ours, and by what ours are chosen."""
        chosen: dict[str, list[str]] = {}
        for row in self.rows:
            if row.config is not None:
                chosen.setdefault(_chosen_on(row.config), []).append(row.row.name)
        if len(chosen) <= 1:
            return (*self.table.protocol, *(_CHOSEN[subset].format("") for subset in chosen))
        named = (_CHOSEN[subset].format(f" ({', '.join(names)})") for subset, names in chosen.items())
        return (*self.table.protocol, *named)

    @property
    def notes(self) -> tuple[str, ...]:
        """The table's, and which recipes the baselines are."""
        baselines = [row.config for row in self.rows if row.config and row.row.method.endswith(COMPAT_ENDING)]
        said = dict.fromkeys(_COMPAT if config.method.endswith(COMPAT_ENDING) else _FAITHFUL for config in baselines)
        return (*said, *self.table.notes)

    @property
    def shown(self) -> tuple[RowOutcome, ...]:
        """The rows that were asked for or have numbers."""
        return tuple(row for row in self.rows if row.asked or row.status == DONE)

    def count(self, status: str) -> int:
        """Return how many rows that were asked for have a status."""
        return sum(row.status == status for row in self.rows if row.asked)

    def to_json(self) -> str:
        """Return the table as JSON: keys sorted, no time, path or host in it; the same runs give the same bytes."""
        return as_json(self.content())

    def content(self) -> dict[str, Any]:
        """Return what ``to_json`` writes."""
        return {
            "format_version": _FORMAT_VERSION,
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "simulated": self.simulated,
            **({"watermark": WATERMARK} if self.simulated else {}),
            "protocol": list(self.protocol),
            "notes": list(self.notes),
            "bootstrap": {"replicates": self.replicates, "seed": self.bootstrap_seed},
            "rows": [self._row_content(row) for row in self.rows],
        }

    def _row_content(self, outcome: RowOutcome) -> dict[str, Any]:
        row, ours = outcome.row, outcome.ours
        comparable = ours is not None and not self.simulated
        return {
            **({"watermark": WATERMARK} if self.simulated else {}),
            "name": row.name,
            "label": row.label,
            "dataset": row.dataset,
            "encoder": row.encoder,
            "aggregation": row.aggregation,
            "note": row.note,
            "switches": list(row.switches),
            "published": None if self.simulated else asdict(row.published),
            "status": outcome.status,
            "reason": outcome.reason,
            "config": None if outcome.config is None else _stable(outcome.config),
            "differs": list(outcome.differs),
            "ours": None if ours is None else {**asdict(ours)},
            "difference": {group: outcome.difference(group) for group in GROUPS_SHOWN} if comparable else None,
        }

    def to_csv(self) -> str:
        """Return the table as CSV, a line a row; what was not run is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        kinds = ("paper", "ours", "low", "high", "difference")
        writer.writerow(
            ["data", "table", "row", "label", "dataset", "encoder", "method", "aggregator", "status", "reason", "seeds"]
            + [f"{group}_{kind}" for group in GROUPS_SHOWN for kind in kinds]
            + [f"{group}_val" for group in GROUPS_SHOWN]
            + ["differs", "note"]
        )
        for outcome in self.rows:
            row, config = outcome.row, outcome.config
            writer.writerow(
                [MARK if self.simulated else "real", self.table.name, row.name, row.label, row.dataset, row.encoder]
                + ["" if config is None else config.method, "" if config is None else config.aggregator.name]
                + [outcome.status, outcome.reason, " ".join(map(str, outcome.ours.seeds)) if outcome.ours else ""]
                + [cell for group in GROUPS_SHOWN for cell in self._csv_cells(outcome, group)]
                + [_written(outcome.ours.val.get(group, math.nan)) if outcome.ours else "" for group in GROUPS_SHOWN]
                + ["; ".join(outcome.differs), row.note]
            )
        return stream.getvalue()

    def _csv_cells(self, outcome: RowOutcome, group: str) -> list[str]:
        paper = "" if self.simulated else _written(getattr(outcome.row.published, group))
        if outcome.ours is None:
            return [paper, "", "", "", ""]
        value = outcome.ours.mAP[group]
        difference = "" if self.simulated else _written(outcome.difference(group))
        return [paper, _written(value.value), _written(value.low), _written(value.high), difference]


def _written(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _chosen_on(config: Config) -> str:
    subsets = {stage.selection.subset for stage in (config, config.first_stage) if stage is not None}
    return "test" if "test" in subsets else config.selection.subset


def _stable(config: Config) -> dict[str, Any]:
    """Return a configuration without how it was carried out, which may name a device."""
    tables = config.to_tables()
    for stage in (tables, tables.get("first_stage") or {}):
        stage.pop("execution", None)
    return tables
