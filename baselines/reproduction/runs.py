"""The runs of a table's rows: trained or found, scored with intervals, and put together with the paper's numbers."""

import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_type_hints

from meidbench.baselines.configuration import Config, without_execution
from meidbench.baselines.inference import Trained, read_trained
from meidbench.baselines.inputs import Inputs
from meidbench.baselines.learner import check_run, is_out_of_memory
from meidbench.baselines.reproduction import table_content
from meidbench.baselines.reproduction.materials import Material
from meidbench.baselines.reproduction.plan import Job, choose_configs, hold_switches
from meidbench.baselines.run_folder import RunFolder
from meidbench.baselines.search import read_space
from meidbench.baselines.study import StudyFacts, StudyFolder
from meidbench.baselines.training import train
from meidbench.baselines.tuning import check_optuna, check_val, tune
from meidbench.checks import convert, parse_json, read_json
from meidbench.errors import FeatureError, MeidbenchError, RequestError
from meidbench.evaluation.bootstrap import bootstrap_steps
from meidbench.evaluation.budget import Budget
from meidbench.evaluation.compare import ComparedRun, compare
from meidbench.evaluation.results import GROUPS_SHOWN, Estimate, SeedSpread
from meidbench.files import render_json, written_whole
from meidbench.names import WATERMARKS, ProgressBar, Report
from meidbench.predictions import open_predictions
from meidbench.splits.split import Split

# The status of a row.
DONE, NOT_RUN, QUOTED, FAILED, NOT_ASKED = "done", "not run", "quoted", "failed", "not asked for"
BOOTSTRAP_SEED = 0
_RUNS, _STUDIES, _TEST = "runs", "studies", "test"


@dataclass(frozen=True)
class Measured:
    """The results of a row's runs on test."""

    mAP: dict[str, Estimate]  # by group: the mean over seeds and its interval over videos
    seed_spread: dict[str, SeedSpread] | None  # by group, of several seeds
    val: dict[str, float]  # by group, on val
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # names of the runs' folders
    warnings: tuple[str, ...]
    budgets: tuple[Budget | None, ...]  # one per run


@dataclass(frozen=True)
class StudyOutcome:
    """The outcome of a row's study."""

    trials: int
    study: str  # the name of its folder
    winner: int  # a trial of it
    settings: tuple[str, ...]  # of the winner
    searched: tuple[str, ...]  # the keys
    steps: int  # of the optimiser, in all trials together


@dataclass(frozen=True)
class RowOutcome:
    """A row after the runs."""

    job: Job
    status: str
    reason: str = ""  # why the row has no numbers
    differs: tuple[str, ...] = ()  # differences between the published row and ours
    measured: Measured | None = None
    trained: int = 0  # runs that were not finished before, trials included
    chosen: StudyOutcome | None = None  # of a row whose values are searched


def find_mark(watermark: str) -> str:
    """Return the word that marks names and cells, ``SIMULATED`` or ``PROXY``; empty without a watermark."""
    return watermark.partition(":")[0]


def run_name(config: Config, inputs: Inputs, trials: int = 1) -> str:
    """Return the name of a run's folder: split, method, seed, and a digest of the configuration and the inputs.

    With more than one trial, the name has their number: the run's predictions tell it.
    """
    content = {
        "config": without_execution(config.to_tables()),
        "split": inputs.split_digest,
        "dataset": inputs.dataset,
        "features": [inputs.dim, inputs.features_digest, inputs.recipe_digest],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    tuned = f"-t{trials}" if trials > 1 else ""
    return f"{inputs.dataset}-{config.method}-s{config.seed}{tuned}-{digest[:12]}"


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

    def find_finished(self, config: Config, material: Material, trials: int = 1) -> Trained | None:
        """Return a finished run, None where it is not finished; nothing is trained or made."""
        runs, path = f"{material.split.dataset}-{config.method}-s{config.seed}-*", material.features_path
        # Names tell of most runs that they do not exist, without a digest of all features.
        if path is None or not path.exists() or not any((self.out / _RUNS).glob(runs)):
            return None
        return read_trained(RunFolder(self.out / _RUNS / run_name(config, material.inputs, trials)), material.split)

    def train(self, config: Config, material: Material, trials: int = 1) -> Trained:
        """Return a run; it is trained or resumed unless it is finished, its first stage before it."""
        folder = self.out / _RUNS / run_name(config, material.inputs, trials)
        first = None if config.first_stage is None else self.train(config.first_stage, material).path
        return self._train(config, material, trials, folder, first)

    def _train(
        self, config: Config, material: Material, trials: int, folder: Path, first_stage: Path | None = None
    ) -> Trained:
        return train(
            material.split_source,
            material.features,
            config,
            folder,
            first_stage=first_stage,
            trials=trials,
            progress=self.progress,
            report=self.report,
        )

    def find_chosen(self, job: Job) -> StudyOutcome | None:
        """Return the outcome of a row's study, None where it has not ended; nothing is trained or made."""
        path = job.material.features_path
        if path is None or not path.exists() or not (self.out / _STUDIES).is_dir():
            return None
        return self._read_outcome(self._name_study(job), job.trials)

    def _locate_outcome(self, study: str, trials: int) -> Path:
        return self.out / _STUDIES / f"{study}-{trials}.json"

    def _read_outcome(self, study: str, trials: int) -> StudyOutcome | None:
        file, kinds = self._locate_outcome(study, trials), get_type_hints(StudyOutcome)
        with suppress(MeidbenchError, KeyError, TypeError):  # it is absent or damaged
            read = {key: convert(value, kinds[key]) for key, value in read_json(file).items()}
            return StudyOutcome(**{key: value for key, (is_valid, value) in read.items() if is_valid})
        return None

    def choose(self, job: Job) -> tuple[StudyOutcome, int]:
        """Return the outcome of a row's study and the number of trials that were run for it now; rows share studies."""
        row, material, name = job.row, job.material, self._name_study(job)
        if found := self._read_outcome(name, job.trials):
            return found, 0
        assert job.search is not None
        tuned = tune(
            material.split_source,
            material.features,
            job.search.method,
            job.trials,
            self.out / _STUDIES / name,
            seed=job.configs[0].seed,
            aggregator=job.search.aggregator,
            settings=job.search.settings,
            benchmark=row.dataset,
            progress=self.progress,
            report=self.report,
        )
        if tuned.winner is None:
            raise MeidbenchError(f"the study {name} has trials that another process has not finished")
        winner, steps = tuned.winner, sum(record.steps for record in tuned.trials)
        chosen = StudyOutcome(job.trials, name, winner.number, winner.settings, tuple(winner.values), steps)
        with written_whole(self._locate_outcome(name, job.trials)) as temporary:
            temporary.write_text(render_json(asdict(chosen)), encoding="utf-8")
        return chosen, tuned.newly_run

    def train_row(self, job: Job, chosen: StudyOutcome | None) -> list[Trained]:
        """Return the runs of a row, one per seed; the first of a searched row is the winner of its study."""
        configs, material = job.configs, job.material
        if chosen is None:
            return [self.train(config, material) for config in configs]
        first = self._train(configs[0], material, chosen.trials, self._find_winner(chosen))
        return [first, *(self.train(config, material, chosen.trials) for config in configs[1:])]

    def find_row(self, job: Job, chosen: StudyOutcome | None) -> list[Trained | None]:
        """Return the runs of a row as ``train_row``, None for one that is not finished; nothing is trained or made."""
        configs, material = job.configs, job.material
        if chosen is None:
            return [self.find_finished(config, material) for config in configs]
        winner = read_trained(RunFolder(self._find_winner(chosen)), material.split)
        return [winner, *(self.find_finished(config, material, chosen.trials) for config in configs[1:])]

    def _find_winner(self, chosen: StudyOutcome) -> Path:
        return StudyFolder(self.out / _STUDIES / chosen.study).run(chosen.winner)

    def _name_study(self, job: Job) -> str:
        assert job.search is not None
        base, inputs = job.search.resolve(), job.material.inputs
        facts = StudyFacts(base, inputs, read_space(job.search, base, inputs.dim), "overall", job.configs[0].seed)
        return facts.name().removeprefix("meidbench-")

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
            runs=tuple(_name_run(run.path, self.out) for run in runs),
            warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
            budgets=tuple(Budget.from_metadata(open_predictions(run.predictions[_TEST]).metadata) for run in runs),
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


def _name_run(path: Path, out: Path) -> str:
    """Return the name of a run's folder in the folder of runs, or the path of a trial of a study."""
    return path.name if path.parent == out / _RUNS else path.relative_to(out).as_posix()


def _parse_intervals(text: str) -> tuple[dict[str, Estimate], dict[str, SeedSpread] | None]:
    content = parse_json(text)
    means, spread = content["mAP"], content["seed_spread"]
    estimates = {group: Estimate(**means[group]) for group in GROUPS_SHOWN}
    return estimates, spread and {group: SeedSpread(**spread[group]) for group in GROUPS_SHOWN}


def check_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Check before the first training that the parts of every run can be made and fit together; name the row.

    Returns the jobs, whose studies leave the switches of the table as they are.
    """
    if any(job.trials for job in jobs):
        check_optuna()
    switches = {switch for job in jobs for switch in job.row.switches}
    return [_check_job(job, switches) for job in jobs]


def _check_job(job: Job, switches: Collection[str]) -> Job:
    material = job.material
    if not job.configs or material.missing:
        return job
    try:
        dim = material.substitute.dim if material.substitute else material.features.dim
        if job.asked:
            check_run(job.configs[0], material.split, dim)  # the others differ by their seeds alone
        if job.trials:
            check_val(material.split, job.configs[0], "overall")
        return hold_switches(job, switches, dim)
    except FeatureError:
        return job  # the row will fail, and the others are run
    except MeidbenchError as error:
        if not job.asked:
            return replace(job, configs=())  # the settings for other rows do not fit this row
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
    chosen, trained = None, 0
    try:
        if material.substituted:
            raise MeidbenchError(f"needs {' and '.join(material.substituted)}; {texts['substitutes']}")
        if job.trials:
            chosen, trained = store.choose(job) if job.asked else (store.find_chosen(job), 0)
            if chosen is None:
                return RowOutcome(job, NOT_ASKED)
            job = choose_configs(job, chosen.settings)
            differs = job.differs
        finished = [] if job.asked else store.find_row(job, chosen)
        if not all(finished):
            return RowOutcome(job, NOT_ASKED)
        differs += material.differences()  # reads the features, before the first training
        runs = [run for run in finished if run] or store.train_row(job, chosen)
        measured = store.measure(runs, [config.seed for config in job.configs], material.split)
        trained += sum(not run.was_finished for run in runs)
        return RowOutcome(job, DONE, "", differs, measured, trained, chosen)
    except MeidbenchError as error:
        message, reason = str(error), str(error).partition("\n")[0].rstrip(":")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = texts["out_of_memory"]
        message = f"{reason} ({error})"  # not in the table: the error has other addresses each time
    store.report(f"row {row.name} {'failed' if job.asked else 'is not filled in'}: {message}")
    return RowOutcome(job, FAILED, reason, differs) if job.asked else RowOutcome(job, NOT_ASKED)
