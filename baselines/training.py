"""Training of a baseline, in one stage or two. A run that was killed anywhere resumes without a difference."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from meidbench.baselines.class_text import make_class_text, read_class_text
from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import join_processes
from meidbench.baselines.inference import (
    Trained,
    check_together,
    read_trained,
    report_on_inputs,
    report_repeated_rows,
    show_no_progress,
)
from meidbench.baselines.inputs import Inputs
from meidbench.baselines.learner import Watch, check_run, read_first_stage
from meidbench.baselines.loop import RunContext, TrainingLoop
from meidbench.baselines.models import MODELS
from meidbench.baselines.run_folder import FIRST_STAGE, RunFolder, digest_weights
from meidbench.errors import MeidbenchError
from meidbench.features import FeatureSource, open_features
from meidbench.names import SELECTION_SUBSETS, SUBSETS, ProgressBar, Report
from meidbench.splits.split import Split, load_split


def train(
    split: Split | str | Path,
    features: FeatureSource | str | os.PathLike[str],
    config: Config,
    out: str | os.PathLike[str],
    *,
    first_stage: str | os.PathLike[str] | None = None,
    trials: int = 1,
    check: str = "auto",
    subsets: Sequence[str] = SELECTION_SUBSETS,
    watch: Watch = lambda config, position, means: None,
    progress: ProgressBar = show_no_progress,
    report: Report = lambda line: None,
) -> Trained:
    """Train a baseline, or resume a run that was interrupted, and score it on val and test.

    On a CPU the same arguments and the same number of threads (``torch.get_num_threads()``) give the same bits, no
    matter how often the run was killed; another number of threads may change the last bits. All processes that
    ``torchrun`` started train together; the first one writes.

    Parameters
    ----------
    split : Split, str or Path
        A split, its file, or its name.
    features : FeatureSource, str or Path
        Of all videos of the split.
    config : Config
        Of ``meidbench.baselines.recipes.resolve``, or made by hand.
    out : path
        The folder of the run; see ``RunFolder``. A finished run stays as it is; where its predictions or results are
        missing or damaged, they are written again from its best checkpoint. A run of fewer epochs goes on.
    first_stage : path, optional
        The folder of a finished run of ``config.first_stage``; by default that is trained in ``OUT/first-stage``.
    trials : int
        The trials of a search from which ``config`` was chosen; a new run records it for its prediction files.
    check : str
        The rows that are read before the training; see ``meidbench.features.row_checks.check_rows``.
    subsets : sequence of str
        Those of val and test to score at the end. A later call with both trains nothing, and scores the other one.
    watch : callable
        Sees each scored epoch; an exception that it raises ends the run, which can be resumed.
    progress, report : callable
        See ``meidbench.names.ProgressBar`` and ``Report``.

    Raises
    ------
    DivergenceError
        A loss or a gradient was NaN or infinite; the log names the videos.
    MeidbenchError
        The folder holds another run, features are missing, or the configuration does not fit them.

    Examples
    --------
    >>> import tempfile
    >>> from meidbench.features.simulation import simulate_features, simulate_split
    >>> split = simulate_split((20, 9, 9), num_classes=4)
    >>> config = Config.from_tables({"schedule": {"epochs": 2, "batch_size": 4}, "frames": {"train": 3, "test": 3}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     features = simulate_features(split, Path(folder, "features.h5"), frames=3, dim=4)
    ...     sorted(train(split, features, config, Path(folder, "run")).mAP)
    ['test', 'val']
    """
    config = Config.from_tables(config.to_tables())  # one that was made by hand was never checked
    loaded, source, folder = load_split(split), open_features(features), RunFolder(Path(out))
    with join_processes(config.execution.device) as processes:
        progress, report = (progress, report) if processes.is_first else (show_no_progress, lambda line: None)
        inputs = Inputs.from_sources(loaded, source, "" if isinstance(split, Split) else str(split), trials)
        context = RunContext(loaded, source, processes, progress, report, tuple(subsets), watch)
        report_on_inputs(loaded, source, config, report)
        config = folder.continued(config, trains_first=first_stage is None)
        context, inputs = _prepare_text(context, config, inputs, folder)
        check_run(config, loaded, source.dim, processes=processes.size)  # before rows are read and files written
        finished = None if folder.ends_before(config) else read_trained(folder, loaded, subsets)
        processes.wait()  # the first one may change the folder from here on
        if not processes.broadcast(finished is not None):  # a finished run reads no rows
            finished = None
            inputs = _check_rows(context, config, inputs, folder, check)
        start = _prepare_first_stage(context, config, inputs, folder, first_stage)
        inputs = replace(inputs, first_stage_digest=start.digest, first_stage_steps=start.steps)
        return _train_stage(context, config, inputs, folder, start.weights, finished)


def _prepare_text(context: RunContext, config: Config, inputs: Inputs, folder: RunFolder) -> tuple[RunContext, Inputs]:
    """Add the text that a model starts from, and its digest; a run with a checkpoint needs the digest alone."""
    if not MODELS[config.model.name].takes_text:
        return context, inputs
    split, features, path = context.split, context.features, Path(config.model.options.get("text", ""))
    digest = folder.read()[1].text_digest if folder.last.is_file() else ""
    if digest and not path.is_file():
        return context, replace(inputs, text_digest=digest)
    if path != Path():
        text = read_class_text(path)
        text.check(split, features)
    else:
        text = make_class_text(split, features, progress=context.progress, report=context.report)
    return replace(context, text=text), replace(inputs, text_digest=text.digest)


def _check_rows(context: RunContext, config: Config, inputs: Inputs, folder: RunFolder, check: str) -> Inputs:
    """Read the rows that are checked before a training, and return the inputs with them."""
    split, features, report = context.split, context.features, context.report
    # A folder of others is refused before rows are read, which may take long.
    context.processes.ask_first(lambda: folder.find_first_stage_digest(config, inputs), "")
    report_repeated_rows(split, features, config, report)
    rows = check_together(context.processes, features, split, SUBSETS, check, config.seed, context.progress, report)
    return replace(inputs, rows_check=rows.kind, rows_digest=rows.digest)


@dataclass(frozen=True)
class _FirstStageWeights:
    """The checkpoint of a first stage, None where the second has begun or there is only one; its digest and steps."""

    weights: Path | None
    digest: str
    steps: int = 0


def _prepare_first_stage(
    context: RunContext, config: Config, inputs: Inputs, folder: RunFolder, given: str | os.PathLike[str] | None
) -> _FirstStageWeights:
    """Train the first stage in a folder of the run, or take the finished run that is given; nothing for one stage."""
    wanted, processes = config.first_stage, context.processes
    if wanted is None and given is None:
        return _FirstStageWeights(None, "")
    if wanted is None:
        raise MeidbenchError(f"{config.method} is trained in one stage; leave out the first")
    digest = processes.ask_first(lambda: folder.find_first_stage_digest(config, inputs), "")
    if given is not None:
        first = RunFolder(Path(given))
        processes.ask_first(lambda: first.check_first_stage(wanted, inputs), None)
    elif processes.broadcast(bool(digest)):
        return _FirstStageWeights(None, digest or folder.read()[1].first_stage_digest)
    else:
        first = RunFolder(folder.path / FIRST_STAGE)
        context.report(f"first stage ({wanted.method}) in {first.path}")
        _train_stage(context, wanted, inputs, first)
        context.report(f"second stage ({config.method}) in {folder.path}")
    if not first.best.is_file():
        raise MeidbenchError(
            f"{first.path} is finished, but its {first.best.name} is gone; remove the folder to train it again"
        )
    return _FirstStageWeights(first.best, digest_weights(read_first_stage(first.best)), first.count_steps() or 0)


def _train_stage(
    context: RunContext,
    config: Config,
    inputs: Inputs,
    folder: RunFolder,
    weights: Path | None = None,
    finished: Trained | None = None,
) -> Trained:
    """Train one run, with the first stage's weights if given, unless it is ``finished``, or another process did it."""
    processes = context.processes
    with ExitStack() as stack:

        def open_folder() -> None:
            stack.enter_context(folder.lock())
            if longer := folder.open(config, inputs):
                context.report(longer)

        processes.ask_first(open_folder, None)
        trained = finished or read_trained(folder, context.split, context.subsets, report=context.report)
        if trained is not None:
            context.report(f"{folder.path} is finished")
            return trained
        with processes.fork_random():
            TrainingLoop(context, config, inputs.rows_check, folder, weights).complete()
        processes.wait()
        trained = read_trained(folder, context.split, context.subsets, just_finished=True)
        assert trained is not None
        return trained
