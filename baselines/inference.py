"""What a model says of the videos of a subset: raw logits, in evaluation mode and full precision."""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meidbench.baselines.components import aggregator_name, make_model_inputs
from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import Team, team
from meidbench.baselines.learner import Learner
from meidbench.baselines.models import Model
from meidbench.baselines.run_folder import SCORED, RunFolder, recipe_digest
from meidbench.errors import FeatureError, MeidbenchError, first_few
from meidbench.evaluation.evaluate import evaluate_scores
from meidbench.evaluation.results import MeanAP
from meidbench.features import FeatureSource, open_features
from meidbench.files import written_whole
from meidbench.loading.batches import BatchLoader
from meidbench.loading.datasets import FeatureDataset
from meidbench.predictions.align import run_warnings, write_predictions
from meidbench.splits.split import Split, load_split

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

# No gradient is kept, so it need not be small; it is what a training batch of VideoLT takes.
BATCH_SIZE = 128


def quiet(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show no progress.

    Examples
    --------
    >>> with quiet("scoring", 10) as advance:
    ...     advance(1)
    """
    return nullcontext(lambda steps: None)


def subset_loader(split: Split, subset: str, features: FeatureSource, config: Config, team: Team) -> BatchLoader:
    """Return the batches of a subset as videos are scored; each process has its share.

    Raises
    ------
    FeatureError
        Features are missing or malformed.
    """
    data = FeatureDataset(
        split,
        subset,
        features=features,
        frames=config.frames.test,
        sampling=config.frames.test_sampling,
        replacement=config.frames.replacement,
        seed=config.seed,
        motion=config.motion.motion(),
    )
    return BatchLoader(
        data,
        BATCH_SIZE,
        device=team.device,
        resident=config.execution.resident,
        prefetch=config.execution.prefetch,
        rank=team.rank,
        world_size=team.size,
    )


def score_subset(model: Model, loader: BatchLoader, team: Team, progress: Progress = quiet) -> npt.NDArray[np.float32]:
    """Score all videos of a loader's dataset; every process gets the scores of all.

    Parameters
    ----------
    model : Model
        Not wrapped; its mode is as before afterwards.
    loader : BatchLoader
        Of ``subset_loader``.
    team : Team
    progress : callable

    Returns
    -------
    ndarray of float32, (n, C)
        Logits, in the order of the dataset.

    Raises
    ------
    MeidbenchError
        A logit is NaN or infinite; the videos are named.
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
    places, rows = team.gather(torch.cat(indices)).numpy(), team.gather(torch.cat(logits)).numpy()
    # Shares are made equally long by repetitions; the same video twice has one place.
    scores = np.full((len(data), data.num_classes), np.nan, dtype=np.float32)
    scores[places] = rows
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise MeidbenchError(
            f"the scores of {len(wrong):,} video(s) of {data.subset} are NaN or infinite: "
            f"{first_few(data.video_ids[row] for row in wrong)}; the training has diverged (lower schedule.lr), or "
            "their features are damaged ('meidbench verify-features' tells)"
        )
    return scores


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
        What a reader must know.
    was_finished : bool
        Whether it was so before it was asked for.
    """

    path: Path
    mAP: Mapping[str, MeanAP]
    warnings: tuple[str, ...]
    was_finished: bool


def run_facts(config: Config, epoch: int) -> dict[str, Any]:
    """Return what a prediction file says of its run; ``evaluate`` warns where the test subset chose the checkpoint."""
    subsets = {stage.selection.subset for stage in (config, config.first_stage) if stage is not None}
    return {
        "method": config.method,
        "aggregator": aggregator_name(config),
        "seed": config.seed,
        "epoch": epoch,
        # Either stage's choice makes the scores the test subset's own.
        "select_on": "test" if "test" in subsets else config.selection.subset,
    }


def scored_subsets(split: Split, select_on: str) -> list[str]:
    """Return which of val and test have videos.

    Raises
    ------
    MeidbenchError
        There is nothing to train on, or to select on.
    """
    present = [subset for subset in ("train", *SCORED) if len(split.rows(subset))]
    for subset in ("train", select_on):
        if subset not in present:
            raise MeidbenchError(
                f"the split {split.dataset} has no video in {subset}; it has some in {', '.join(present) or 'none'}"
            )
        if not split.positives(subset).any():
            raise MeidbenchError(f"no video in {subset} of the split {split.dataset} has a label")
    return [subset for subset in present if subset != "train"]


def write_scored(
    folder: RunFolder, split: Split, subset: str, scores: npt.NDArray[np.float32], facts: dict[str, Any]
) -> None:
    """Write the scores of a subset and their evaluation, which is that of ``meidbench evaluate`` byte for byte."""
    write_predictions(folder.predictions(subset), split.video_ids(subset), scores, split, subset, facts)
    result = evaluate_scores(scores, split, subset, warnings=run_warnings({"run": facts}))
    # Last: where it lies, the subset is done.
    with written_whole(folder.result(subset)) as temporary:
        temporary.write_text(result.to_json(), encoding="utf-8")


def read_trained(folder: RunFolder, split: Split, *, just_finished: bool = False) -> Trained | None:
    """Return what a run has to show, None where it is not finished."""
    results = {}
    for subset in SCORED:
        if not len(split.rows(subset)):
            continue
        if not folder.result(subset).is_file() or not folder.predictions(subset).is_file():
            return None
        try:
            results[subset] = json.loads(folder.result(subset).read_text(encoding="utf-8"))
        except ValueError as error:
            raise MeidbenchError(f"{folder.result(subset)} is damaged ({error}); remove it to score again") from None
    try:
        means = {
            subset: MeanAP(**{group: math.nan if value is None else value for group, value in result["mAP"].items()})
            for subset, result in results.items()
        }
        warnings = dict.fromkeys(warning for result in results.values() for warning in result["warnings"])
    except (KeyError, TypeError, AttributeError):
        raise MeidbenchError(f"a result in {folder.path} is damaged; remove result-*.json to score again") from None
    return Trained(folder.path, means, tuple(warnings), not just_finished)


def predict(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    subset: str = "test",
    split: Split | str | Path | None = None,
    features: FeatureSource | str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Progress = quiet,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Score a subset with the best checkpoint of a run, and write a prediction file.

    Parameters
    ----------
    run : path
        The folder of a run; it need not be finished.
    out : path
        The Parquet file to write.
    subset : str
        ``train``, ``val`` or ``test``.
    split, features : optional
        Those of the run, where they still lie there, if left out.
    device : str
    progress, report : callable
        As for ``train``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    MeidbenchError
        There is no run or checkpoint, or the split or the features do not fit it.
    """
    folder = RunFolder(Path(run))
    config, inputs = folder.read()
    for name, given, before in (("split", split, inputs.split_path), ("features", features, inputs.features_path)):
        if given is None and not before:
            raise MeidbenchError(f"the run does not say where its {name} lies; name it with --{name}")
    loaded = load_split(inputs.split_path if split is None else split)
    if loaded.digest != inputs.split_digest:
        raise MeidbenchError(
            f"{folder.path} was trained on {inputs.dataset} with the digest {inputs.split_digest[:12]}..., this split "
            f"({loaded.dataset}) has {loaded.digest[:12]}...; name the run's own with --split"
        )
    if not len(loaded.rows(subset)):
        raise MeidbenchError(f"the split {loaded.dataset} has no video in {subset}")
    source = features if isinstance(features, FeatureSource) else open_features(features or inputs.features_path)
    with team(device) as crew, torch.random.fork_rng(devices=[crew.device] if crew.device.type == "cuda" else []):
        loader = subset_loader(loaded, subset, source, config, crew)
        if source.dim != inputs.dim:
            raise FeatureError(
                f"{folder.path} was trained on features of width {inputs.dim}, {source.path} has {source.dim}"
            )
        if recipe_digest(source) != inputs.recipe_digest:
            report("warning: these features were made by another recipe than those of the training")
        learner = Learner(config, make_model_inputs(config, loaded, source.dim), crew)
        epoch = learner.load_weights(folder.best)
        scores = score_subset(learner.module, loader, crew, progress)
        if crew.leads:
            write_predictions(Path(out), loaded.video_ids(subset), scores, loaded, subset, run_facts(config, epoch))
        crew.wait()
    return Path(out)
