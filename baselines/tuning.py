"""Tuning: an Optuna study over a method's search space; each trial is an ordinary run, and val chooses the winner.

The values of a trial follow from the seed, the trial's number and the earlier trials alone, so a study that was killed
anywhere goes on as if it had not been.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meidbench.baselines.configuration import Config
from meidbench.baselines.inference import Trained, show_no_progress
from meidbench.baselines.inputs import Inputs
from meidbench.baselines.learner import Position, check_run, is_out_of_memory
from meidbench.baselines.run_folder import FIRST_STAGE, RunFolder
from meidbench.baselines.search import SearchRequest, read_space
from meidbench.baselines.study import (
    COMPLETE,
    FAILED,
    PRUNED,
    UNFINISHED,
    StudyFacts,
    StudyFolder,
    TrialRecord,
    find_best,
    open_storage,
    telling_of_storage,
)
from meidbench.baselines.training import train
from meidbench.checks import one_of, whole_number
from meidbench.errors import DivergenceError, MeidbenchError, RequestError, bullet_list, first_few, missing_package
from meidbench.evaluation.results import MeanAP
from meidbench.features import FeatureSource, open_features
from meidbench.files import render_json
from meidbench.names import TUNED_GROUPS, Advance, ProgressBar, Report
from meidbench.splits.split import Split, load_split

if TYPE_CHECKING:
    import optuna

_DRAWN_AT_RANDOM = 10  # the first trials, before the sampler learns from them
_NEVER_PRUNED = 5  # trials that must be complete before one is pruned
_TENTHS = 10  # of the epochs of a stage, after which its mean AP is recorded
_NAMING_S = 30.0  # in which a live process, however slow, names its folder in a trial that it has begun
_LEAST_TENTHS = 3  # of the first stage before a trial is pruned
# Attributes of a trial in the storage.
_OWNER, _VAL, _STEPS, _REASON = "folder", "val", "steps", "reason"


@dataclass(frozen=True)
class Tuned:
    """A study.

    Attributes
    ----------
    path : Path
        Its folder.
    objective : str
    trials : tuple of TrialRecord
        All of them, by number.
    winner : TrialRecord or None
        The complete trial with the best value; None while other processes have unfinished trials.
    trained : Trained or None
        The winner's run, scored on val and test; None also where it lies in the folder of another machine.
    watermark : str
        The text that marks numbers on features of which no video was seen; empty for others.
    newly_run : int
        Trials that this call ran or resumed.
    """

    path: Path
    objective: str
    trials: tuple[TrialRecord, ...]
    winner: TrialRecord | None = None
    trained: Trained | None = None
    watermark: str = ""
    newly_run: int = 0


def tune(
    split: Split | str | Path,
    features: FeatureSource | str | os.PathLike[str],
    method: str,
    trials: int,
    out: str | os.PathLike[str],
    *,
    storage: str | None = None,
    seed: int = 0,
    objective: str = "overall",
    aggregator: str | None = None,
    settings: Sequence[str] = (),
    space: str | os.PathLike[str] | None = None,
    benchmark: str | None = None,
    check: str = "auto",
    progress: ProgressBar = show_no_progress,
    report: Report = lambda line: None,
) -> Tuned:
    """Search the values of a method that are best on val, or resume a search; score its winner on test.

    Trial 0 has the published values, so the winner is never worse than they are on val. Several processes with the same
    arguments share the trials of a study.

    Parameters
    ----------
    split, features, check, progress, report
        As for ``train``.
    method, aggregator, settings
        As for ``resolve``; a value that is set is not searched.
    trials : int
        The number of trials in all, finished ones included. A study of fewer goes on.
    out : path
        The folder of the study: ``trials/0007`` and so on are runs, ``trials.csv`` has one row per trial.
    storage : str, optional
        The address of a database server, such as ``postgresql+psycopg://USER@HOST/DATABASE``, for processes on several
        machines. By default the SQLite file ``OUT/study.db``.
    seed : int
        Of the sampler; the runs have the seed of their configuration.
    objective : str
        The mean AP on val to maximise, ``overall`` or ``tail``. The checkpoint of each run is the one with the best
        overall mean AP in both cases, as ``train`` chooses it.
    space : path, optional
        A TOML file in the place of the method's search space; see ``meidbench.baselines.search.read_space``.
    benchmark : str, optional
        The name by which recipes are chosen; by default that of the split.

    Raises
    ------
    MeidbenchError
        The folder holds another study, all trials failed, or a run cannot be made.
    RequestError
        An argument is wrong.
    """
    check_optuna()
    whole_number("trials", trials, 1, RequestError)
    whole_number("seed", seed, 0, RequestError)
    one_of("objective", objective, TUNED_GROUPS, RequestError)
    loaded, source = load_split(split), open_features(features)
    named = loaded if benchmark is None else Split(loaded.table, replace(loaded.metadata, dataset=benchmark))
    request = SearchRequest(method, named, aggregator, tuple(settings))
    base = request.resolve()
    check_val(loaded, base, objective)
    inputs = Inputs.from_sources(loaded, source, "" if isinstance(split, Split) else str(split))
    searched = read_space(request, base, inputs.dim, None if space is None else Path(space))
    facts = StudyFacts(base, inputs, searched, objective, seed)
    folder = StudyFolder(Path(out))
    owner = folder.open(facts, storage)
    report(f"{method}: searching {'; '.join(map(str, searched))}")
    train_run = partial(train, split, source, check=check, progress=progress, report=_repeat_notes(report))
    with _silent_optuna(), telling_of_storage(storage, folder), ExitStack() as stack:
        with folder.lock():  # tables of SQLite are made by one process at a time
            opened = stack.enter_context(open_storage(storage, folder.database))
            folder.bind(storage)
            study = _Study(folder, owner, facts, request, trials, opened, train_run)
        with progress(f"tuning {method}", trials) as advance:
            study.run_trials(advance, report)
        return study.finish(report)


@contextmanager
def _silent_optuna() -> Iterator[None]:
    """Let Optuna print warnings alone."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def check_optuna() -> None:
    """Refuse an installation without Optuna."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error) from None


def check_val(split: Split, base: Config, objective: str) -> None:
    """Refuse a split whose val cannot choose, and settings that let test choose."""
    stages = [stage for stage in (base, base.first_stage) if stage is not None]
    if any(stage.selection.subset != "val" for stage in stages):
        raise RequestError("val chooses the winner; leave out selection.subset=test")
    if not len(split.rows("val")):
        raise MeidbenchError(f"{split.describe_absence('val')}\nval chooses the winner")
    if objective == "tail" and "tail" in split.groups.empty:
        raise MeidbenchError(f'{split.dataset} has no classes in the tail; take objective="overall"')
    if objective == "tail" and not split.positives("val")[list(split.groups.tail)].any():
        raise MeidbenchError(f'no video in val of {split.dataset} has a label of the tail; take objective="overall"')


def _repeat_notes(report: Report) -> Report:
    """Return a report for the runs of a study: it lets each note and warning through once, and nothing else."""
    told = set[str]()

    def filtered(line: str) -> None:
        if line.startswith(("note: ", "warning: ")) and line not in told:
            told.add(line)
            report(line)

    return filtered


class _Study:
    """A study in its storage, as this process takes part in it."""

    def __init__(
        self,
        folder: StudyFolder,
        owner: str,
        facts: StudyFacts,
        request: SearchRequest,
        number_asked: int,
        storage: "optuna.storages.RDBStorage",
        train_run: Callable[..., Trained],
    ) -> None:
        import optuna

        self.folder, self.owner, self.facts, self.request = folder, owner, facts, request
        self.number_asked, self.train_run = number_asked, train_run
        self.ranges = {entry.key: entry.make_distribution() for entry in facts.searched}
        self.storage, self.newly_run = storage, 0
        study = optuna.create_study(storage=storage, study_name=facts.name(), direction="maximize", load_if_exists=True)
        self.study_id = self.storage.get_study_id_from_name(study.study_name)

    def _list_trials(self) -> "list[optuna.trial.FrozenTrial]":
        return sorted(self.storage.get_all_trials(self.study_id, deepcopy=False), key=lambda trial: trial.number)

    def _find_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _load(self) -> "optuna.Study":
        """Return the study as it is now; Optuna keeps the earlier trials in an object of a study."""
        import optuna

        pruner = optuna.pruners.MedianPruner(n_startup_trials=_NEVER_PRUNED, n_warmup_steps=_LEAST_TENTHS)
        return optuna.load_study(study_name=self.facts.name(), storage=self.storage, pruner=pruner)

    # --- the trials ---------------------------------------------------------------------------------------------

    def run_trials(self, advance: Advance, report: Report) -> None:
        """Run trials until none is left for this process."""
        beyond = [trial.number for trial in self._list_trials()[self.number_asked :] if trial.state.is_finished()]
        if beyond:
            raise MeidbenchError(
                f"{self.folder.path} holds a study of {beyond[-1] + 1} trials, {self.number_asked} are asked for; it "
                "can go on for more trials, not end after fewer"
            )
        shown = 0
        while True:
            with ExitStack() as stack:
                number = self._take(stack)
                finished = sum(record.state != UNFINISHED for record in self.list_records())
                advance(finished - shown)
                shown = finished
                if number is None:
                    return
                self._run_trial(number)
            self.newly_run += 1
            self._tell(number, report)

    def _take(self, stack: ExitStack) -> int | None:
        """Take the next trial: one that a dead process of this folder left, or a new one; None where none is left."""
        from optuna.trial import TrialState

        with self.folder.lock():
            for trial in self._list_trials()[: self.number_asked]:
                if trial.state == TrialState.RUNNING and self._is_ours(trial.number):
                    with suppress(BlockingIOError), ExitStack() as claim:
                        claim.enter_context(self.folder.claim(trial.number))
                        # Another process may have finished it since the trials were listed.
                        if self.storage.get_trial(self._find_id(trial.number)).state == TrialState.RUNNING:
                            stack.enter_context(claim.pop_all())
                            return trial.number
            study = self._load()
            for _ in range(self.number_asked - len(self._list_trials())):
                study.enqueue_trial({})  # trials of a higher number that two machines add at once are never run
            for trial in self._list_trials()[: self.number_asked]:
                if trial.state == TrialState.WAITING and self._begin(trial.number):
                    stack.enter_context(self.folder.claim(trial.number))
                    return trial.number
        return None

    def _begin(self, number: int) -> bool:
        """Make a waiting trial one of this folder; return False where another machine was faster."""
        from optuna.trial import TrialState

        trial_id = self._find_id(number)
        with suppress(RuntimeError):  # it is finished by now
            if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                self.storage.set_trial_user_attr(trial_id, _OWNER, self.owner)
                return True
        return False

    def _is_ours(self, number: int) -> bool:
        """Return whether a running trial was begun in this folder, or by a process that died before it named one."""
        trial_id, is_shared = self._find_id(number), self.storage.engine.dialect.name != "sqlite"
        owner = self.storage.get_trial(trial_id).user_attrs.get(_OWNER)
        end = time.monotonic() + _NAMING_S
        while owner is None and is_shared and time.monotonic() < end:
            time.sleep(min(0.1, _NAMING_S))  # a process of another machine may be about to name its folder
            owner = self.storage.get_trial(trial_id).user_attrs.get(_OWNER)
        if owner is None:
            self.storage.set_trial_user_attr(trial_id, _OWNER, self.owner)
        return owner in (None, self.owner)

    def _draw(self, study: "optuna.Study", number: int) -> dict[str, Any]:
        """Return the values of a trial; those that a killed process has drawn stay, the others come out the same."""
        from optuna.samplers import TPESampler

        trial_id = self._find_id(number)
        trial, values = self.storage.get_trial(trial_id), {}
        for entry in self.facts.searched:
            key, distribution = entry.key, self.ranges[entry.key]
            if key in trial.params:
                values[key] = trial.params[key]
                continue
            values[key] = entry.published
            if number:
                # A sampler per value, so that its draw depends on no other draw of this process.
                word = hashlib.sha256(f"{self.facts.seed}/{number}/{key}".encode()).digest()[:4]
                sampler = TPESampler(
                    seed=int.from_bytes(word, "big"), n_startup_trials=_DRAWN_AT_RANDOM, multivariate=False
                )
                values[key] = sampler.sample_independent(study, trial, key, distribution)
            self.storage.set_trial_param(trial_id, key, distribution.to_internal_repr(values[key]), distribution)
        return values

    def _run_trial(self, number: int) -> None:
        """Run or resume a trial, and record how it ended."""
        import optuna

        study, path, trial_id = self._load(), self.folder.run(number), self._find_id(number)
        settings = self._list_settings(number, self._draw(study, number))
        value, state, reason = None, optuna.trial.TrialState.FAIL, ""
        try:
            config = self._resolve(settings)
            trained = self.train_run(config, path, subsets=("val",), watch=self._make_watch(study, number, config))
            means = trained.mAP["val"]
            self.storage.set_trial_user_attr(trial_id, _VAL, json.loads(render_json(asdict(means))))
            value, state = getattr(means, self.facts.objective), optuna.trial.TrialState.COMPLETE
        except optuna.TrialPruned:
            state = optuna.trial.TrialState.PRUNED
        except (DivergenceError, _RefusedError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"there is not enough memory: {error}"
        if reason:
            self.storage.set_trial_user_attr(trial_id, _REASON, reason.splitlines()[0][:200])
        steps = [RunFolder(folder).count_steps() or 0 for folder in (path, path / FIRST_STAGE)]
        self.storage.set_trial_user_attr(trial_id, _STEPS, sum(steps))
        study.tell(number, value, state=state, skip_if_finished=True)

    def _list_settings(self, number: int, values: Mapping[str, Any]) -> tuple[str, ...]:
        return self.request.list_settings(values, self.facts.base) if number else ()

    def _resolve(self, settings: tuple[str, ...]) -> Config:
        """Return the configuration of a trial; values may be refused together, though each by itself is not."""
        try:
            config = self.request.resolve(settings)
            check_run(config, self.request.split, self.facts.inputs.dim)
        except MeidbenchError as error:
            raise _RefusedError(str(error)) from None
        return config

    def _make_watch(
        self, study: "optuna.Study", number: int, trial: Config
    ) -> Callable[[Config, Position, MeanAP], None]:
        """Return a function that records the mean AP per tenth of a stage's epochs, and ends a hopeless trial."""
        import optuna

        trial_id, is_last = self._find_id(number), trial.first_stage is None

        def watch(config: Config, position: Position, means: MeanAP) -> None:
            in_second = not is_last and config.first_stage is not None
            before = _TENTHS * in_second
            done = before + _TENTHS * position.epoch // config.schedule.epochs
            recorded = self.storage.get_trial(trial_id).intermediate_values
            for step in range(before + 1, done + 1):
                if step not in recorded:
                    self.storage.set_trial_intermediate_value(trial_id, step, getattr(means, self.facts.objective))
            is_over = position.epoch == config.schedule.epochs and (is_last or in_second)
            if not is_over and study.pruner.prune(study, self.storage.get_trial(trial_id)):
                raise optuna.TrialPruned

        return watch

    # --- the outcome --------------------------------------------------------------------------------------------

    def list_records(self) -> list[TrialRecord]:
        """Return the trials that are asked for."""
        names = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
        records = []
        for trial in self._list_trials()[: self.number_asked]:
            state, attributes = names.get(trial.state.name, UNFINISHED), trial.user_attrs
            values = {entry.key: trial.params[entry.key] for entry in self.facts.searched if entry.key in trial.params}
            groups = {name: float("nan") if mean is None else mean for name, mean in attributes.get(_VAL, {}).items()}
            records.append(
                TrialRecord(
                    trial.number,
                    state,
                    trial.value if state == COMPLETE else None,
                    values,
                    (*self.request.settings, *self._list_settings(trial.number, values)),
                    MeanAP(**groups) if state == COMPLETE else None,
                    attributes.get(_STEPS, 0),
                    attributes.get(_REASON, ""),
                    self.folder.run(trial.number),
                )
            )
        return records

    def _tell(self, number: int, report: Report) -> None:
        """Write the table of trials, and report on one."""
        with self.folder.lock():
            records = self.list_records()
            self.folder.write_table(records, self.facts)
        record, best = records[number], find_best(records)
        done = sum(record.state != UNFINISHED for record in records)
        ending = record.state if record.value is None else f"{self.facts.objective} mAP on val {record.value:.4f}"
        reason = f" ({record.reason})" if record.reason else ""
        leader = "" if best is None else f"; best {best.value:.4f} (trial {best.number})"
        report(f"trial {number} ({done} of {self.number_asked} done): {ending}{reason}{leader}")

    def finish(self, report: Report) -> Tuned:
        """Score the winner on test where all trials are finished."""
        with self.folder.lock():
            records = tuple(self.list_records())
            self.folder.write_table(records, self.facts)
            tuned = Tuned(
                self.folder.path,
                self.facts.objective,
                records,
                watermark=self.facts.watermark,
                newly_run=self.newly_run,
            )
            if left := [record.number for record in records if record.state == UNFINISHED]:
                report(
                    f"note: unfinished trials: {first_few(left)}; they run in other processes, or in the folder of "
                    "another machine; after their end, the same command scores the winner on test"
                )
                return tuned
            winner = find_best(records)
            if winner is None:
                reasons = [f"trial {record.number}: {record.reason}" for record in records]
                raise MeidbenchError(f"all {len(records)} trials failed:\n{bullet_list(reasons)}")
            config = self._resolve(self._list_settings(winner.number, winner.values))
            tuned = replace(tuned, winner=winner)
            run = RunFolder(winner.path)
            if not run.config.is_file():
                report(
                    f"note: the run of the winner, trial {winner.number}, is not in {self.folder.path}: it ran in the "
                    "folder of another machine, where the same command scores it on test"
                )
                return tuned
            for record in records:
                if record != winner and RunFolder(record.path).result("test").is_file():
                    report(f"note: trial {record.number} won before trials were added, so it was scored on test, too")
            run.record_trials(len(records))
            return replace(tuned, trained=self.train_run(config, winner.path))


class _RefusedError(MeidbenchError):
    """The values of a trial make no configuration together."""
