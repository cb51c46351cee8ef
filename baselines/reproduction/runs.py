"""The runs of a table's rows: trained or found, scored with intervals, and put together with the paper's numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from meidbench.baselines.configuration import Config
from meidbench.baselines.inference import Trained, read_trained
from meidbench.baselines.learner import check_run
from meidbench.baselines.reproduction import table_content
from meidbench.baselines.reproduction.materials import Material
from meidbench.baselines.reproduction.plan import Job
from meidbench.baselines.run_folder import Inputs, RunFolder
from meidbench.baselines.training import train
from meidbench.checks import parse_json
from meidbench.errors import FeatureError, MeidbenchError, RequestError
from meidbench.evaluation.bootstrap import bootstrap_steps
from meidbench.evaluation.compare import ComparedRun, Estimate, SeedSpread, compare
from meidbench.evaluation.results import GROUPS_SHOWN
from meidbench.files import written_whole
from meidbench.names import WATERMARKS, ProgressBar, Report
from meidbench.splits.split import Split

# The status of a row.
DONE, NOT_RUN, QUOTED, FAILED, NOT_ASKED = "done", "not run", "quoted", "failed", "not asked for"
BOOTSTRAP_SEED = 0
_RUNS, _TEST = "runs", "test"
# The allocator of the CPU raises a plain RuntimeError, and so do sizes beyond every memory.
_MEMORY_TEXTS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "size calculation overflowed")


@dataclass(frozen=True)
class Measured:
    """The results of a row's runs on test."""

    mAP: dict[str, Estimate]  # by group: the mean over seeds and its interval over videos
    seed_spread: dict[str, SeedSpread] | None  # by group, of several seeds
    val: dict[str, float]  # by group, on val
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # names of the runs' folders
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RowOutcome:
    """A row after the runs."""

    job: Job
    status: str
    reason: str = ""  # why the row has no numbers
    differs: tuple[str, ...] = ()  # differences between the published row and ours
    measured: Measured | None = None
    trained: int = 0  # runs that were not finished before


def find_mark(watermark: str) -> str:
    """Return the word that marks names and cells, ``SIMULATED`` or ``PROXY``; empty without a watermark."""
    return watermark.partition(":")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory was not enough."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def without_execution(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's tables without ``execution``, which changes no result and may name a device."""
    return {
        key: without_execution(value) if isinstance(value, dict) else value
        for key, value in tables.items()
        if key != "execution"
    }


def run_name(config: Config, inputs: Inputs) -> str:
    """Return the name of a run's folder: split, method, seed, and a digest of the configuration and the inputs."""
    content = {
        "config": without_execution(config.to_tables()),
        "split": inputs.split_digest,
        "dataset": inputs.dataset,
        "features": [inputs.dim, inputs.features_digest, inputs.recipe_digest],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{inputs.dataset}-{config.method}-s{config.seed}-{digest[:12]}"


@dataclass(frozen=True)
class RunStore:
    """The folder of all runs; rows of several tables with the same configuration and inputs share a run."""

    out: Path
    replicates: int
    progress: ProgressBar
    report: Report

    def prepare(self, watermark: str) -> None:
        """Make sure that the folder holds results with this watermark, empty for real ones; refuse another kind."""
        wanted, marks = find_mark(watermark), map(find_mark, WATERMARKS.values())
        there = next((mark for mark in marks if (self.out / f"{mark}.txt").is_file()), "")
        if there == wanted:
            return
        kind = wanted.lower() or "real"
        if there:
            raise MeidbenchError(
                f"{self.out} holds {there.lower()} results; name another folder for {kind} ones (--out)"
            )
        if (self.out / _RUNS).is_dir():
            raise MeidbenchError(f"{self.out} holds runs on real features; name another folder for {kind} ones (--out)")
        with written_whole(self.out / f"{wanted}.txt") as temporary:
            temporary.write_text(f"{watermark}\n", encoding="utf-8")

    def find_finished(self, config: Config, material: Material) -> Trained | None:
        """Return a finished run, None where it is not finished; nothing is trained or made."""
        runs, path = f"{material.split.dataset}-{config.method}-s{config.seed}-*", material.features_path
        # Names tell of most runs that they do not exist, without a digest of all features.
        if path is None or not path.exists() or not any((self.out / _RUNS).glob(runs)):
            return None
        return read_trained(RunFolder(self.out / _RUNS / run_name(config, material.inputs)), material.split)

    def train(self, config: Config, material: Material) -> Trained:
        """Return a run; it is trained or resumed unless it is finished, its first stage before it."""
        split, features = material.split_source, material.features
        folder = self.out / _RUNS / run_name(config, material.inputs)
        first = None if config.first_stage is None else self.train(config.first_stage, material).path
        return train(split, features, config, folder, first_stage=first, progress=self.progress, report=self.report)

    def measure(self, runs: Sequence[Trained], seeds: Sequence[int], split: Split) -> Measured:
        """Score finished runs of a row, one per seed; intervals are kept in files for the next time."""
        digests = [hashlib.sha256(RunFolder(run.path).result(_TEST).read_bytes()).hexdigest() for run in runs]
        key = hashlib.sha256(json.dumps([digests, list(seeds), self.replicates, BOOTSTRAP_SEED]).encode()).hexdigest()
        path = self.out / "intervals" / f"{key[:24]}.json"
        try:
            intervals = _parse_intervals(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError):  # it is absent or damaged
            text = self._bootstrap(runs, seeds, split)
            with written_whole(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            intervals = _parse_intervals(text)
        val = [run.mAP["val"] for run in runs if "val" in run.mAP]
        return Measured(
            *intervals,
            val={group: sum(getattr(means, group) for means in val) / len(val) for group in GROUPS_SHOWN if val},
            seeds=tuple(seeds),
            runs=tuple(run.path.name for run in runs),
            warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
        )

    def _bootstrap(self, runs: Sequence[Trained], seeds: Sequence[int], split: Split) -> str:
        files = [
            ComparedRun("row", f"{seed}" if len(runs) > 1 else "", RunFolder(run.path).predictions(_TEST))
            for run, seed in zip(runs, seeds, strict=True)
        ]
        steps = bootstrap_steps(len(split.video_ids(_TEST)), split.num_classes, self.replicates) * len(files)
        with self.progress("bootstrap", steps) as advance:
            compared = compare(files, split, _TEST, replicates=self.replicates, seed=BOOTSTRAP_SEED, advance=advance)
        content = {key: value for key, value in asdict(compared.methods[0]).items() if key in ("mAP", "seed_spread")}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _parse_intervals(text: str) -> tuple[dict[str, Estimate], dict[str, SeedSpread] | None]:
    content = parse_json(text)
    means, spread = content["mAP"], content["seed_spread"]
    estimates = {group: Estimate(**means[group]) for group in GROUPS_SHOWN}
    return estimates, spread and {group: SeedSpread(**spread[group]) for group in GROUPS_SHOWN}


def check_jobs(jobs: Sequence[Job]) -> None:
    """Check before the first training that the parts of every run can be made and fit together; name the row."""
    for job in (job for job in jobs if job.can_run):
        material = job.material
        try:
            dim = material.substitute.dim if material.substitute else material.features.dim
            check_run(job.configs[0], material.split, dim)  # the others differ by their seeds alone
        except FeatureError:
            continue  # the row will fail, and the others are run
        except MeidbenchError as error:
            raise RequestError(f"row {job.row.name}: {error}") from None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RequestError(f"row {job.row.name}: no memory holds such a model ({error})") from None


def run_jobs(jobs: Sequence[Job], store: RunStore) -> list[RowOutcome]:
    """Run the jobs of a table that are asked for and have all inputs; a row that fails does not stop the others."""
    asked = [job for job in jobs if job.asked]
    outcomes = []
    for job in jobs:
        if job.can_run:
            store.report(f"{job.table}, row {asked.index(job) + 1} of {len(asked)}: {job.row.name}")
        outcome = _run_job(job, store)
        if job.asked and outcome.measured:
            overall = outcome.measured.mAP["overall"]
            store.report(f"{job.row.name}: overall {overall.value:.4f} [{overall.low:.3f}, {overall.high:.3f}]")
        outcomes.append(outcome)
    return outcomes


def _run_job(job: Job, store: RunStore) -> RowOutcome:
    row, material, differs, texts = job.row, job.material, job.differs, table_content("texts")
    if row.is_quoted:
        return RowOutcome(job, QUOTED, row.note)
    if not job.asked and (material.missing or not job.configs):
        return RowOutcome(job, NOT_ASKED)
    if material.missing and not material.substituted:
        return RowOutcome(job, NOT_RUN, f"missing {', '.join(material.missing)}", differs)
    try:
        if material.substituted:
            raise MeidbenchError(f"needs {' and '.join(material.substituted)}; {texts['substitutes']}")
        finished = [] if job.asked else [store.find_finished(config, material) for config in job.configs]
        if not all(finished):
            return RowOutcome(job, NOT_ASKED)
        differs += material.differences()  # reads the features, before the first training
        runs = [run for run in finished if run] or [store.train(config, material) for config in job.configs]
        measured = store.measure(runs, [config.seed for config in job.configs], material.split)
        return RowOutcome(job, DONE, "", differs, measured, sum(not run.was_finished for run in runs))
    except MeidbenchError as error:
        message, reason = str(error), str(error).partition("\n")[0].rstrip(":")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = texts["out_of_memory"]
        message = f"{reason} ({error})"  # not in the table: the error has other addresses each time
    store.report(f"row {row.name} {'failed' if job.asked else 'is not filled in'}: {message}")
    return RowOutcome(job, FAILED, reason, differs) if job.asked else RowOutcome(job, NOT_ASKED)
