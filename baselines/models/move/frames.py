"""The dynamic frame sampler: random subsets of a video's frames, of more different sizes the rarer its classes are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meidbench.baselines.losses.base import one_of
from meidbench.errors import MeidbenchError

LABEL_RULES = ("mean", "rarest", "commonest")


def commonness(train_counts: Sequence[int] | npt.NDArray[Any]) -> torch.Tensor:
    """Return tau, (C,): how common each class is, from 0 for the rarest to 1 for the commonest (MOVE, equation 7).

    tau_c = (n_c - min n) / (max n - min n). Where all classes have the same count, no one is common: 0 for each, which
    leaves their labels whole.

    Parameters
    ----------
    train_counts : (C,) array of int
        Training videos of each class.

    Raises
    ------
    MeidbenchError
        They are not one number a class.

    Examples
    --------
    >>> commonness([5, 10, 25])
    tensor([0.0000, 0.2500, 1.0000])
    """
    counts = np.asarray(train_counts, dtype=np.float64)
    if counts.ndim != 1 or not len(counts):
        raise MeidbenchError(f"train_counts must be one number a class, got shape {counts.shape}")
    spread = counts.max() - counts.min()
    return torch.as_tensor((counts - counts.min()) / (spread or 1.0), dtype=torch.float32)


def least_numbers(
    targets: torch.Tensor, tau: torch.Tensor, frames: int, least: int, rule: str = "mean"
) -> torch.Tensor:
    """Return how many frames of each video are drawn at least, (B,) int64: the lower bound in MOVE's equation 9.

    A class asks for max(tau_c T, least) frames; a video for what its classes do, cut off to a whole number, and never
    for more than T. A video without a label is of no rare class: it asks for all of them.

    Parameters
    ----------
    targets : Tensor, (B, C)
        Labels; above 0 where a video has a class.
    tau : Tensor, (C,)
        See ``commonness``.
    frames : int
        T.
    least : int
        sigma of the paper.
    rule : str
        For videos of several classes, which the paper's equation does not know: ``mean`` of what they ask for, as in
        the public code; ``rarest``, the least of it; ``commonest``, the most.

    Raises
    ------
    MeidbenchError
        The rule is unknown.

    Examples
    --------
    >>> least_numbers(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 1.0]), frames=60, least=3)
    tensor([ 3, 31, 60])
    """
    one_of("label_rule", rule, LABEL_RULES)
    has = targets > 0
    asked = (tau * frames).clamp(min=least).expand(targets.shape)
    if rule == "mean":
        numbers = (asked * has).sum(dim=1) / has.sum(dim=1)
    elif rule == "rarest":
        numbers = asked.masked_fill(~has, torch.inf).amin(dim=1)
    else:
        numbers = asked.masked_fill(~has, -torch.inf).amax(dim=1)
    numbers = numbers.where(has.any(dim=1), numbers.new_tensor(float(frames)))
    return numbers.clamp(max=frames).floor().long()


def drawn_frames(numbers: torch.Tensor, frames: int, draws: int) -> torch.Tensor:
    """Draw subsets of frames, (B, draws, T) bool, each of a size from U{number, ..., T} (MOVE, equations 8 and 9).

    Drawn from torch's global generator of the CPU: the same on every device, and as much for every batch of a shape.

    Parameters
    ----------
    numbers : Tensor of int64, (B,)
        Frames of each video that are drawn at least, 1 to T.
    frames : int
        T.
    draws : int
        Independent subsets of each video.

    Examples
    --------
    >>> drawn_frames(torch.tensor([2, 4]), frames=4, draws=3).sum(dim=2).amin(dim=1) >= torch.tensor([2, 4])
    tensor([True, True])
    """
    videos, device = len(numbers), numbers.device
    shares, order = torch.rand(videos, draws).to(device), torch.rand(videos, draws, frames).argsort(dim=2).to(device)
    least = numbers[:, None]
    # A share just below 1 may be rounded up when it is multiplied.
    sizes = (least + (shares * (frames - least + 1)).floor().long()).clamp(max=frames)
    # A random permutation's places below n are n frames at random.
    return order < sizes[:, :, None]
