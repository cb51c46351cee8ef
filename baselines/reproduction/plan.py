"""The runs of a table and their needs: the configurations of all rows, features, disk and hours."""

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from meidbench.baselines.configuration import Config, flatten, make_model, make_model_inputs
from meidbench.baselines.methods import COMPAT_ENDING
from meidbench.baselines.recipes import METHODS, flatten_settings, resolve, split_stage
from meidbench.baselines.reproduction import PaperTable, Row, table_content
from meidbench.baselines.reproduction.materials import InputFiles, Material, Simulation, Substitute, renamed, stand_in
from meidbench.baselines.search import SearchRequest, read_space
from meidbench.checks import one_of
from meidbench.errors import MeidbenchError, RequestError, SplitError
from meidbench.names import SUBSETS
from meidbench.splits.manifests import load_manifest
from meidbench.splits.split import Split

_STORED_BYTES = 2  # float16
_COUNTED_VIDEOS = 2  # some models normalise over videos


@dataclass(frozen=True)
class Request:
    """The user's wishes for all rows."""

    settings: tuple[str, ...] = ()  # KEY=VALUE, on top of every row's
    seeds: tuple[int, ...] = ()  # one training per seed; empty for the recipe's seed
    device: str = ""
    faithful: bool = False  # baselines as their papers have them, not as the public code does
    substitute: Substitute | None = None  # of the features
    trials: int = 0  # of a study per row; 0 for the published values


@dataclass(frozen=True)
class Job:
    """A row and its runs."""

    table: str
    row: Row
    material: Material
    configs: tuple[Config, ...] = ()  # one per seed; none for a row that is only quoted or does not resolve
    asked: bool = True  # rows that are not asked for only show runs that are finished
    left_out: tuple[str, ...] = ()  # settings of the user that this row does not have
    trials: int = 0  # as in ``Request``
    search: SearchRequest | None = None  # what the trials of its study have in common

    @property
    def can_run(self) -> bool:
        """Whether the row is asked for and all its inputs exist."""
        return self.asked and bool(self.configs) and not self.material.missing

    @property
    def differs(self) -> tuple[str, ...]:
        """The differences from the published row, seeds aside."""
        if not self.configs:
            return ()
        published = row_config(self.row, renamed(self.material.split, self.row.dataset))
        method = self.configs[0].method
        left_out = (f"{text} is left out: {method} is trained in one stage" for text in self.left_out)
        return (*_differences(published, self.configs[0]), *left_out)


def layered(*layers: Sequence[str]) -> tuple[str, ...]:
    """Lay settings over others: the last layer's value of a key wins, also over the key of a single stage."""
    kept: list[str] = []
    for layer in layers:
        above = flatten_settings(layer).keys()
        kept = [
            text for text in kept if not all({key, split_stage(key)[1]} & above for key in flatten_settings([text]))
        ]
        kept += layer
    return tuple(kept)


def row_config(row: Row, split: Split) -> Config:
    """Return the configuration of a row as the table has it, on a split with its benchmark's name."""
    return resolve(row.method, split, aggregator=row.aggregator or None, settings=row.settings)


def make_jobs(table: PaperTable, request: Request, files: InputFiles, names: Collection[str] = ()) -> list[Job]:
    """Resolve the configurations of all rows of a table; without ``names`` all rows are asked for."""
    jobs = []
    for row in table.rows:
        asked = not names or row.name in names
        job = Job(table.name, row, files.get(row.dataset, row.encoder), asked=asked)
        try:
            jobs.append(job if row.is_quoted else _resolve_job(job, request))
        except MeidbenchError as error:
            if asked:
                kind = SplitError if isinstance(error, SplitError) else RequestError
                raise kind(f"row {row.name}: {error}") from None
            jobs.append(job)  # the settings for other rows do not fit this row
    return jobs


def _resolve_job(job: Job, request: Request) -> Job:
    row, split = job.row, renamed(job.material.split, job.row.dataset)  # recipes go by the benchmark's name
    if isinstance(request.substitute, Simulation) and not job.material.has_split:
        raise SplitError(
            f"the split of {row.dataset} is not built, but simulation.split=own needs it; run 'meidbench build-splits "
            f"{row.dataset}', or leave simulation.split out"
        )
    method = row.method.removesuffix(COMPAT_ENDING) if request.faithful else row.method
    one_stage = not METHODS[method].first_stage
    left_out = [text for text in request.settings if one_stage and split_stage(text.partition("=")[0].strip())[0]]
    flatten_settings(left_out)  # nothing else will check them
    asked = [text for text in request.settings if text not in left_out]
    for stage, key in map(split_stage, flatten_settings(asked)):
        for switch in row.switches:  # the switches of a method of two stages are those of its second
            if stage != "stage1" and f"{key}.".startswith(f"{switch}."):
                it = "it" if key == switch and not stage else f"{stage}{'.' if stage else ''}{key}"
                raise RequestError(f"{job.table} ablates {switch}; leave {it} out of --set")
    device = (f"execution.device={request.device}",) if request.device else ()
    # A study chooses on val, so a row of a benchmark without val needs a split that holds one out.
    own = tuple(text for text in row.settings if not (request.trials and text.startswith("selection.subset=")))

    def lay(substituted: tuple[str, ...], *seed: str) -> tuple[str, ...]:
        return layered(own, substituted, device, seed, asked)

    def resolve_with(substituted: tuple[str, ...], *seed: str) -> Config:
        return resolve(method, split, aggregator=row.aggregator, settings=lay(substituted, *seed))

    substituted: tuple[str, ...] = ()
    if (substitute := request.substitute) is not None:
        # The aggregator is known only after all else is resolved.
        substituted = substitute.settings(resolve_with(substitute.settings()).aggregator.name)
    if request.trials:  # a simulation fixes so much that a study would have nothing to search
        substituted = tuple(text for text in substituted if not text.startswith("schedule.lr="))
    seeds = [f"seed={seed}" for seed in request.seeds]
    configs = [resolve_with(substituted, seed) for seed in seeds] or [resolve_with(substituted)]
    job = dataclasses.replace(job, configs=tuple(configs), left_out=tuple(left_out))
    if not request.trials:
        return job
    searched = SearchRequest(method, split, row.aggregator, lay(substituted, *seeds[:1]))
    return dataclasses.replace(job, trials=request.trials, search=searched)


def hold_switches(job: Job, switches: Collection[str], dim: int) -> Job:
    """Return a job whose study leaves the switches of its table as they are, in every row alike."""
    if job.search is None:
        return job
    base, held = job.search.resolve(), list[str]()
    for entry in read_space(job.search, base, dim):
        stage, key = split_stage(entry.key)
        if stage != "stage1" and any(f"{key}.".startswith(f"{switch}.") for switch in switches):
            held += job.search.list_settings({entry.key: entry.published}, base)
    request = dataclasses.replace(job.search, settings=(*job.search.settings, *held))
    read_space(request, base, dim)  # refuses a study with nothing to search
    return dataclasses.replace(job, search=request)


def choose_configs(job: Job, settings: Sequence[str]) -> Job:
    """Return a job with the values that its study has chosen, for every seed."""
    assert job.search is not None
    layers = [layered(settings, [f"seed={config.seed}"]) for config in job.configs]
    resolved = [dataclasses.replace(job.search, settings=layer).resolve() for layer in layers]
    return dataclasses.replace(job, configs=tuple(resolved))


def _differences(published: Config, config: Config) -> tuple[str, ...]:
    """Say how a configuration differs from the row's own; a change in both stages is said once."""
    before, after = flatten(published.to_tables()), flatten(config.to_tables())
    changes = {
        key: (before.get(key, "-"), after.get(key, "-"))
        for key in {**before, **after}
        if before.get(key) != after.get(key) and "execution" not in key.split(".") and key.split(".")[-1] != "seed"
    }
    repeated = {f"first_stage.{key}" for key, change in changes.items() if changes.get(f"first_stage.{key}") == change}
    return tuple(f"{key}: {old} -> {new}" for key, (old, new) in changes.items() if key not in repeated)


@dataclass(frozen=True)
class FeatureNeed:
    """A feature file that rows of a table need: N ``videos`` of T ``frames`` and D ``width``."""

    dataset: str
    encoder: str
    backbone: str  # the encoder's name in ``meidbench extract-features``
    weights: str
    source: str
    videos: int
    frames: int
    width: int
    bytes: int  # on disk, in float16
    command: str  # makes the file from videos
    named: bool = False  # whether the user has the file


def feature_need(dataset: str, encoder: str, *, named: bool = False) -> FeatureNeed:
    """Return the feature file that rows of an encoder on a benchmark need."""
    needs = table_content("needs")
    facts, frames = needs["encoders"][encoder], needs["frames"][dataset]
    videos = sum(int(load_manifest(dataset).sizes[subset]) for subset in SUBSETS)
    size, backbone = videos * frames * facts["width"] * _STORED_BYTES, facts["backbone"]
    command = f"meidbench pack-features FOLDER --split {dataset} --out {dataset}_{encoder.lower()}.h5"
    if backbone:
        command = (
            f"meidbench extract-features VIDEOS --split {dataset} --backbone {backbone} --frames {frames}"
            f"{' --weights FILE' if backbone.startswith('tsm') else ''} --out {dataset}_{backbone}.h5"
        )
    facts = {**facts, "source": needs["videos"][dataset], "videos": videos, "frames": frames}
    return FeatureNeed(dataset, encoder, **facts, bytes=size, command=command, named=named)


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a run: FLOPs of matrix products, bytes of features, the longer of both in hours."""

    flops: float
    bytes_read: float
    hours: float


def forward_flops(config: Config, split: Split, dim: int, frames: int) -> float:
    """Count the floating-point operations of matrix products in a forward pass of one video, of shape (frames, dim)."""
    counted = ("model", "aggregator", "motion", "frames")
    parts = {name: table for name, table in config.to_tables().items() if name in counted}
    return _count_flops(json.dumps(parts, sort_keys=True), split, dim, frames)


@lru_cache(maxsize=256)
def _count_flops(parts: str, split: Split, dim: int, frames: int) -> float:
    config = Config.from_tables(json.loads(parts))
    # Shapes without numbers, so that a model of any size is counted at once: made on the meta device, where first
    # weights cost nothing, and called as if on a CPU, because models ask for their device.
    with torch.device("meta"):
        model = make_model(config, make_model_inputs(config, split, dim))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to_empty(device="cpu").eval()
        rows = torch.empty(_COUNTED_VIDEOS, frames, dim)
        motion = torch.empty(_COUNTED_VIDEOS, frames, dim) if config.motion.when != "none" else None
        with FlopCounterMode(display=False) as counter:
            model(rows, motion)
    return float(counter.get_total_flops() / _COUNTED_VIDEOS)


def run_cost(config: Config, split: Split, dataset: str, dim: int, gpu: str = "A100") -> Cost:
    """Estimate the cost of a run without its first stage; the numbers of videos are the benchmark's own."""
    assumed, gpus = (table_content("needs")[name] for name in ("assumed", "gpus"))
    peak = gpus[one_of("GPU", gpu, tuple(gpus), RequestError)][config.schedule.precision] * 1e12
    sizes, schedule, frames = load_manifest(dataset).sizes, config.schedule, config.frames
    trained = -(-sizes["train"] // schedule.batch_size) * schedule.epochs * schedule.batch_size
    selected = schedule.epochs // config.selection.every * sizes.get(config.selection.subset, 0)
    scored = selected + sizes["val"] + sizes["test"]
    forward = forward_flops(config, split, dim, frames.train)
    # The first stage is frozen: no gradient passes through it. A backward pass costs two forward passes.
    frozen = 0.0 if config.first_stage is None else forward_flops(config.first_stage, split, dim, frames.train)
    flops = trained * (forward + 2 * max(forward - frozen, 0.0))
    flops += scored * forward_flops(config, split, dim, frames.test)
    read = (trained * frames.train + scored * frames.test) * dim * _STORED_BYTES
    seconds = max(flops / (peak * assumed["sustained"]), read / (assumed["read_gb_per_second"] * 1e9))
    return Cost(flops, read, seconds / 3600)


@dataclass(frozen=True)
class PlannedRow:
    """The needs of a row."""

    name: str
    missing: tuple[str, ...]
    runs: int  # trainings with first stages, without those of rows before
    hours: float
    quoted: str  # why the row is only quoted; empty for a row that can be run


@dataclass(frozen=True)
class CostPlan:
    """The needs of a table, as its JSON has them."""

    table: str
    title: str
    splits: dict[str, dict[str, Any]]  # by benchmark, whether the split is built, and the command that builds it
    features: tuple[FeatureNeed, ...]
    rows: tuple[PlannedRow, ...]
    estimate: dict[str, str]  # the GPU, and the formula of the hours


def build_command(dataset: str) -> str:
    """Return the command that builds a split."""
    return f"meidbench download {dataset} --accept-licence && meidbench build-splits {dataset}"


def make_plan(table: PaperTable, jobs: Iterable[Job], gpu: str) -> CostPlan:
    """Return the needs of the jobs that are asked for; raise ``MeidbenchError`` for an unknown GPU."""
    jobs = [job for job in jobs if job.asked]
    needs, splits, features = table_content("needs"), {}, {}
    for row, material in ((job.row, job.material) for job in jobs if not job.row.is_quoted):
        command = "" if material.has_split else build_command(row.dataset)
        splits[row.dataset] = {"built": material.has_split, "command": command}
        named = material.features_path is not None and not material.substituted
        place = (row.dataset, list(needs["encoders"]).index(row.encoder))
        features[place] = feature_need(row.dataset, row.encoder, named=named)
    facts = {
        **needs["assumed"],
        "gpu": gpu,
        "peak": needs["gpus"][one_of("GPU", gpu, tuple(needs["gpus"]), RequestError)]["fp32"],
    }
    counted: set[str] = set()
    return CostPlan(
        table=table.name,
        title=table.title,
        splits=splits,
        features=tuple(features[place] for place in sorted(features)),
        rows=tuple(_plan_row(job, gpu, counted) for job in jobs),
        estimate={"gpu": gpu, "formula": table_content("texts")["hours"].format(**facts)},
    )


def _plan_row(job: Job, gpu: str, counted: set[str]) -> PlannedRow:
    row = job.row
    stages = [stage for config in job.configs for stage in (config.first_stage, config) if stage is not None]
    place = f"{row.dataset} {row.encoder}"
    runs = {f"{place} {stage.to_tables()}": stage for stage in stages}
    if job.search is not None:
        # A trial trains both stages; that of the published values stands for all.
        first = [stage for stage in (job.configs[0].first_stage, job.configs[0]) if stage is not None]
        others = {key: stage for key, stage in runs.items() if stage not in first}
        numbers = itertools.product(range(job.trials), first)
        runs = {f"{place} {job.search.settings} {trial} {stage.method}": stage for trial, stage in numbers} | others
    new = [config for key, config in runs.items() if key not in counted]
    counted.update(runs)
    width = table_content("needs")["encoders"][row.encoder]["width"]
    hours = sum(run_cost(config, stand_in(row.dataset), row.dataset, width, gpu).hours for config in new)
    quoted = row.note or "quoted" if row.is_quoted else ""
    return PlannedRow(row.name, () if quoted else job.material.missing, len(new), hours, quoted)
