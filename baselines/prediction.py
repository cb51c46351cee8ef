"""Predictions of a run that was trained before."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from meidbench.baselines.components import make_task
from meidbench.baselines.distributed import team
from meidbench.baselines.inference import Progress, quiet, score_subset, subset_loader
from meidbench.baselines.learner import Learner
from meidbench.baselines.run_folder import RunFolder, recipe_digest
from meidbench.baselines.scored_run import run_facts
from meidbench.errors import FeatureError, MeidbenchError
from meidbench.features import FeatureSource, open_features
from meidbench.predictions import write_predictions
from meidbench.split import Split
from meidbench.split_file import load_split


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
        learner = Learner(config, make_task(config, loaded, source.dim), crew)
        epoch = learner.load_weights(folder.best)
        scores = score_subset(learner.module, loader, crew, progress)
        if crew.leads:
            write_predictions(Path(out), loaded.video_ids(subset), scores, loaded, subset, run_facts(config, epoch))
        crew.wait()
    return Path(out)
