"""What a model says of the videos of a subset: raw logits, in evaluation mode and full precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch

from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import Team
from meidbench.baselines.models import Model
from meidbench.batches import BatchLoader
from meidbench.datasets import FeatureDataset
from meidbench.errors import MeidbenchError, first_few
from meidbench.features import FeatureSource
from meidbench.split import Split

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
