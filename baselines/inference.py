"""Scoring with a trained model: raw logits, in evaluation mode and full precision; and reading a finished run."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meidbench.baselines.configuration import Config, make_model_inputs
from meidbench.baselines.distributed import ProcessGroup, join_processes
from meidbench.baselines.inputs import Inputs, digest_recipe, read_backbone
from meidbench.baselines.learner import Learner
from meidbench.baselines.models import MODELS, Model
from meidbench.baselines.run_folder import RunFolder
from meidbench.baselines.samplers import VideoSampler
from meidbench.checks import read_json, refuse_lost_inputs
from meidbench.errors import DivergenceError, FeatureError, MeidbenchError, bullet_list, first_few
from meidbench.evaluation.budget import Budget, StageBudget
from meidbench.evaluation.evaluate import average_precision, choose_subset, evaluate_scores, mean_by_group
from meidbench.evaluation.results import MeanAP, find_watermarks
from meidbench.features import FeatureSource, open_features
from meidbench.features.row_checks import RowCheck, check_rows
from meidbench.files import written_whole
from meidbench.loading.batches import BatchLoader
from meidbench.loading.datasets import FeatureDataset
from meidbench.names import LAST_EPOCH, SELECTION_SUBSETS, SUBSETS, WATERMARKS, Advance, ProgressBar, Report
from meidbench.predictions.align import align_predictions, read_predictions, run_warnings
from meidbench.predictions.values import write_predictions
from meidbench.splits.split import Split, load_split

# VideoLT's batch in training; without gradients it always fits into memory.
BATCH_SIZE = 128


def show_no_progress(title: str, total: int) -> AbstractContextManager[Advance]:
    """Show nothing: the progress bar of a caller who gives none."""
    return nullcontext(lambda steps: None)


def find_scored_subsets(split: Split, select_on: str, asked: Sequence[str] = SELECTION_SUBSETS) -> list[str]:
    """Return the subset that selects, if one does, and those that are asked for, where they have videos.

    A split without videos to train on, to select on or to score is refused.
    """
    present = [subset for subset in SUBSETS if len(split.rows(subset))]
    scored = [subset for subset in present if subset in (*asked, select_on)]
    needed = select_on if select_on != LAST_EPOCH else (*scored, *asked)[0]
    for subset in ("train", needed):
        if subset not in present:
            problem = split.describe_absence(subset)
            if subset == select_on == "val" and "test" in present:
                problem += f"\n{_WITHOUT_VAL}"
            elif subset == select_on == "test" and "val" in present:
                problem += "\n--select-on val (selection.subset) makes val choose the checkpoint"
            raise MeidbenchError(problem)
        if not split.positives(subset).any():
            raise MeidbenchError(f"no video in {subset} of the split {split.dataset} has a label")
    return scored


_WITHOUT_VAL = (
    "val chooses the checkpoint. Take a val subset out of train (--hold-out-val of build-splits and import-split), or "
    "tell what chooses in its place (selection.subset): --select-on last takes the last epoch, without a choice; "
    "--select-on test makes test choose, and test scores too good"
)


def make_subset_loader(
    split: Split,
    subset: str,
    features: FeatureSource,
    config: Config,
    processes: ProcessGroup,
    sampler: VideoSampler | None = None,
    batch_size: int = BATCH_SIZE,
) -> BatchLoader:
    """Return the batches in which a subset is scored, or trained on in the order of a sampler.

    Each process has its share; a sampler has it already.
    """
    frames, execution, is_scored = config.frames, config.execution, sampler is None
    data = FeatureDataset(
        split,
        subset,
        features=features,
        frames=frames.test if is_scored else frames.train,
        sampling=frames.test_sampling if is_scored else frames.train_sampling,
        replacement=frames.replacement,
        seed=config.seed,
        motion=config.motion.motion(),
    )
    return BatchLoader(
        data,
        batch_size,
        sampler=sampler,
        device=processes.device,
        resident=execution.resident,
        prefetch=execution.prefetch,
        rank=processes.rank if is_scored else 0,
        world_size=processes.size if is_scored else 1,
    )


def score_subset(
    model: Model, loader: BatchLoader, processes: ProcessGroup, progress: ProgressBar = show_no_progress
) -> npt.NDArray[np.float32]:
    """Return the logits (n, C) of all videos of a loader's dataset, in every process; refuse those that are not finite.

    The rows are in the order of the dataset. The model, which is not wrapped, is in its old mode afterwards.
    """
    data = loader.dataset
    was_training = model.training
    model.eval()
    indices, logits = [], []
    with torch.inference_mode(), progress(f"scoring {data.subset}", len(loader)) as advance:
        for batch in loader:
            logits.append(model(batch["features"], batch.get("motion")).logits.float().cpu())
            indices.append(batch["index"].cpu())
            advance(1)
    model.train(was_training)
    positions, rows = processes.gather(torch.cat(indices)).numpy(), processes.gather(torch.cat(logits)).numpy()
    # Repetitions make all shares equally long; they have the position of their video.
    scores = np.full((len(data), data.num_classes), np.nan, dtype=np.float32)
    scores[positions] = rows
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise DivergenceError(
            f"the scores of {len(wrong):,} video(s) of {data.subset} are NaN or infinite: "
            f"{first_few(data.video_ids[row] for row in wrong)}; the training has diverged (lower schedule.lr), or "
            "their features are damaged (check them with 'meidbench verify-features')"
        )
    return scores


def check_together(
    processes: ProcessGroup,
    features: FeatureSource,
    split: Split,
    subsets: Sequence[str],
    check: str,
    seed: int,
    progress: ProgressBar,
    report: Report,
) -> RowCheck:
    """Check the rows of subsets in the first process (``check_rows``); a refusal ends all processes."""

    def read() -> RowCheck:
        rows = check_rows(features, split, subsets, check=check, seed=seed, progress=progress)
        report(str(rows))
        return rows

    return processes.ask_first(read, RowCheck("", 0, 0, "", False))


def report_notes(features: FeatureSource, video_ids: list[str], report: Report) -> None:
    """Check these videos, and tell what users should know of their arrays."""
    features.check(video_ids)
    for note in features.take_notes():
        report(note)


def report_on_inputs(split: Split, features: FeatureSource, config: Config, report: Report) -> None:
    """Tell what users should know of a split and its features before a training."""
    for note in features.take_notes():
        report(note)
    scored = find_scored_subsets(split, config.selection.subset)
    if scored == ["val"] and config.selection.subset == "val":
        report(f"note: {split.dataset} has no test videos: val chooses the checkpoint, so its scores are too good")


def report_repeated_rows(split: Split, features: FeatureSource, config: Config, report: Report) -> None:
    """Report how many videos have fewer rows than a run takes of each, so that rows are repeated."""
    is_fitted = MODELS[config.model.name].is_fitted  # to the rows that are scored
    for key, frames, subsets in (
        ("frames.train", None if is_fitted else config.frames.train, ("train",)),
        ("frames.test", config.frames.test, SUBSETS if is_fitted else SELECTION_SUBSETS),
    ):
        counts = features.check([video_id for subset in subsets for video_id in split.video_ids(subset)])
        if frames is not None and (few := int((counts < frames).sum())):
            report(
                f"warning: {few:,} of {len(counts):,} videos of {' and '.join(subsets)} have fewer rows than "
                f"{key}={frames} (the shortest has {counts.min():,}): rows are repeated; --set {key}=N takes fewer"
            )


def describe_run(folder: RunFolder, config: Config, epoch: int) -> dict[str, Any]:
    """Return the facts about a run that its prediction files hold.

    ``evaluate`` warns of ``select_on`` test; ``compare`` shows the budget, whose steps go to the end of the training,
    also where the best checkpoint is an earlier one. The ``backbone`` of features without videos is a watermark.
    """
    inputs = folder.read()[1]
    subsets = {stage.selection.subset for stage in (config, config.first_stage) if stage is not None}
    return {
        "method": config.method,
        "aggregator": config.aggregator_name,
        "seed": config.seed,
        "epoch": epoch,
        # One stage that selects on test is enough to make the scores too good.
        "select_on": "test" if "test" in subsets else config.selection.subset,
        "budget": _describe_budget(folder, config, inputs).to_facts(),
        **describe_backbone(inputs.backbone),
        **({"text_digest": inputs.text_digest} if inputs.text_digest else {}),
    }


def _describe_budget(folder: RunFolder, config: Config, inputs: Inputs) -> Budget:
    """Return the budget of a run, from its log and from what it recorded of its first stage.

    A model that scikit-learn fits has no stage. The values of C that val chooses from are no trials, like epochs.
    """
    steps = [(config.first_stage, inputs.first_stage_steps or None), (config, folder.count_steps())]
    stages = [
        StageBudget(count, stage.schedule.lr, stage.schedule.batch_size, stage.schedule.epochs)
        for stage, count in steps
        if stage is not None and not MODELS[stage.model.name].is_fitted
    ]
    return Budget(tuple(stages), inputs.trials)


def describe_backbone(backbone: str) -> dict[str, str]:
    """Return the fact about features that becomes a watermark, where no video was seen for them."""
    return {"backbone": backbone} if backbone in WATERMARKS else {}


def write_scores(
    folder: RunFolder, split: Split, subset: str, scores: npt.NDArray[np.float32], facts: dict[str, Any]
) -> MeanAP:
    """Write the scores of a subset and their evaluation, which has the same bytes as that of ``meidbench evaluate``.

    Returns the mean AP of the subset.
    """
    write_predictions(folder.predictions(subset), split.video_ids(subset), scores, split, subset, facts)
    result = evaluate_scores(scores, split, subset, warnings=run_warnings({"run": facts}))
    # This file comes last: a subset with a result is done.
    with written_whole(folder.result(subset)) as temporary:
        temporary.write_text(result.to_json(), encoding="utf-8")
    return result.mAP


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes
    ----------
    path : Path
        Its folder.
    mAP : mapping of str to MeanAP
        Of each subset that was scored.
    warnings : tuple of str
        Facts that a reader of the scores must know.
    was_finished : bool
        Whether it was finished before this call.
    """

    path: Path
    mAP: Mapping[str, MeanAP]
    warnings: tuple[str, ...]
    was_finished: bool

    @property
    def predictions(self) -> dict[str, Path]:
        """The prediction file of each subset that was scored."""
        return {subset: RunFolder(self.path).predictions(subset) for subset in self.mAP}


def read_trained(
    folder: RunFolder,
    split: Split,
    subsets: Sequence[str] = SELECTION_SUBSETS,
    *,
    just_finished: bool = False,
    report: Report = lambda line: None,
) -> Trained | None:
    """Return a run whose ``subsets`` are scored; None where it is not finished or damaged, of which ``report`` tells.

    Predictions are read and scored again, because a result has no checksum, unless the run has ``just_finished``.
    """
    means: dict[str, MeanAP] = {}
    warnings: dict[str, None] = {}  # a set in order
    problems = []
    for subset in subsets:
        if not len(split.rows(subset)):
            continue
        file = folder.result(subset)
        if not file.is_file():
            return None
        try:
            result = _read_result(file)
            if not just_finished:
                _check_predictions(folder, split, subset, result[0])
        except MeidbenchError as error:
            problems.append(str(error))
            continue
        means[subset] = result[0]
        warnings |= dict.fromkeys(result[1])
    if problems:
        report(f"{folder.path} was finished, and is scored again with {folder.best.name}:\n{bullet_list(problems)}")
        return None
    return Trained(folder.path, means, tuple(warnings), not just_finished)


def _read_result(file: Path) -> tuple[MeanAP, list[str]]:
    """Return the mean AP and the warnings in a result of a run."""
    content = read_json(file)
    try:
        values = {group: math.nan if value is None else float(value) for group, value in content["mAP"].items()}
        return MeanAP(**values), [str(warning) for warning in content["warnings"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeidbenchError(f"{file} is damaged ({error!r})") from None


def _check_predictions(folder: RunFolder, split: Split, subset: str, told: MeanAP) -> None:
    """Refuse predictions that are missing or damaged, or whose mean AP is not that of the result."""
    path = folder.predictions(subset)
    if not path.is_file():
        raise MeidbenchError(f"{path} is missing")
    scores = align_predictions(read_predictions(path), split, subset)
    assert isinstance(scores, np.ndarray)  # no limit of memory was given
    measured = mean_by_group(average_precision(scores, split.labels(subset)), split)
    # Another machine may add up in another order.
    if not np.allclose(list(asdict(measured).values()), list(asdict(told).values()), rtol=0, atol=1e-9, equal_nan=True):
        raise MeidbenchError(f"{folder.result(subset)} is not the result of {path.name}")


def predict(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    subset: str | None = None,
    split: Split | str | Path | None = None,
    features: FeatureSource | str | os.PathLike[str] | None = None,
    device: str = "auto",
    check: str = "auto",
    progress: ProgressBar = show_no_progress,
    report: Report = lambda line: None,
) -> Path:
    """Score a subset with the best checkpoint of a run, and write a prediction file.

    Parameters
    ----------
    run : path
        The folder of a run, finished or not.
    out : path
        The Parquet file to write.
    subset : str, optional
        ``train``, ``val`` or ``test``; by default test, or val where the split has no test.
    split, features : optional
        Those of the run, at their old paths, where they are left out.
    device, check, progress, report
        As for ``train``. The prediction file records ``check`` where not all rows were read.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    MeidbenchError
        There is no run or checkpoint, the split or the features do not fit it, or the output is one of these files.
    """
    folder = RunFolder(Path(run))
    config, inputs = folder.read()
    sources = (inputs.split_path, inputs.features_path, split, getattr(features, "path", features))
    paths = [Path(source) for source in sources if source and isinstance(source, str | os.PathLike)]
    refuse_lost_inputs(Path(out), [*folder.files(), *paths])
    for name, given, before in (("split", split, inputs.split_path), ("features", features, inputs.features_path)):
        if given is None and not before:
            raise MeidbenchError(f"the run does not record the path of its {name}; give it with {name}=...")
    loaded = load_split(inputs.split_path if split is None else split)
    if loaded.digest != inputs.split_digest:
        raise MeidbenchError(
            f"{folder.path} was trained on {inputs.dataset} with the digest {inputs.split_digest[:12]}..., this split "
            f"({loaded.dataset}) has {loaded.digest[:12]}...; name the run's own with split=..."
        )
    if inputs.has_other_content(loaded.content_digest):
        others = "was trained on a split with other class names or groups"
        raise MeidbenchError(f"{folder.path} {others}; name its own with split=...")
    subset = choose_subset(loaded, subset, report)
    if not len(loaded.rows(subset)):
        raise MeidbenchError(loaded.describe_absence(subset))
    source = inputs.open_features() if features is None else open_features(features)
    with join_processes(device) as processes:
        report_notes(source, loaded.video_ids(subset), report if processes.is_first else lambda line: None)
        loader = make_subset_loader(loaded, subset, source, config, processes)
        if source.dim != inputs.dim:
            raise FeatureError(
                f"{folder.path} was trained on features of width {inputs.dim}, {source.path} has {source.dim}"
            )
        with processes.fork_random():
            learner = Learner(config, make_model_inputs(config, loaded, source.dim), processes)
            epoch = learner.load_weights(folder.best)  # before the rows, whose check may take minutes
            rows = check_together(processes, source, loaded, [subset], check, config.seed, progress, report)
            if digest_recipe(source) != inputs.recipe_digest:
                report("warning: these features were made by another recipe than those of the training")
            scores = score_subset(learner.module, loader, processes, progress)
        if processes.is_first:
            facts = describe_run(folder, config, epoch) | ({} if rows.kind == "full" else {"rows_check": rows.kind})
            facts |= describe_backbone(read_backbone(source))
            for mark in find_watermarks(run_warnings({"run": facts})):
                report(f"warning: {mark}")
            write_predictions(Path(out), loaded.video_ids(subset), scores, loaded, subset, facts)
        processes.wait()
    return Path(out)
