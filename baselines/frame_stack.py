"""Which frames FrameStack takes of which video: pure functions of tensors."""

from functools import lru_cache

import numpy as np
import torch

FRAME_COUNTS = ("round", "int")
LABEL_WEIGHTS = ("frames", "beta")
SHARES = ("mean", "sum", "min")

# Of average precisions that sum to less, none is told from another.
_NEGLIGIBLE = 1e-5


def partner_shares(
    targets: torch.Tensor, partners: torch.Tensor, class_ap: torch.Tensor, ap_agg: str = "mean"
) -> torch.Tensor:
    """Return beta = a_i / (a_i + a_j), the share of its partner j in each video i; 0.5 where both are negligible.

    Zhang et al., "VideoLT" (2021), and ``FrameStack`` of its code (``ops/Augment.py``).

    Parameters
    ----------
    targets : Tensor, (B, C)
        Labels of the videos.
    partners : Tensor of int64, (B,)
    class_ap : Tensor, (C,)
        Average precision of each class.
    ap_agg : str
        What a is: ``mean`` or ``min`` of the video's labels, ``sum`` over them / C. A video without labels has 0.

    Returns
    -------
    Tensor of float32, (B,)

    Examples
    --------
    >>> partner_shares(torch.eye(2), torch.tensor([1, 0]), torch.tensor([0.75, 0.25]))
    tensor([0.7500, 0.2500])
    """
    labels, ap = targets.float(), class_ap.float()
    if ap_agg == "sum":
        ease = (labels * ap).mean(dim=1)
    elif ap_agg == "mean":
        ease = (labels * ap).sum(dim=1) / labels.sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    else:
        least = torch.where(labels > 0, ap, torch.inf).amin(dim=1)
        ease = torch.where(torch.isinf(least), torch.zeros_like(least), least)
    both = ease + ease[partners]
    return torch.where(both < _NEGLIGIBLE, torch.full_like(both, 0.5), ease / both.clamp(min=_NEGLIGIBLE))


def frames_of(shares: torch.Tensor, length: int, rounding: str = "round") -> torch.Tensor:
    """Return how many of ``length`` frames a share makes, int64, (B,).

    Examples
    --------
    >>> frames_of(torch.tensor([0.0, 0.18, 1.0]), 10), frames_of(torch.tensor([0.18]), 10, "int")
    (tensor([ 0,  2, 10]), tensor([1]))
    """
    exact = shares * length
    return (exact.round() if rounding == "round" else exact).to(torch.int64)


def stack_frames(
    features: torch.Tensor, partners: torch.Tensor, given: torch.Tensor, length: int, rounding: str = "round"
) -> torch.Tensor:
    """Return ``given`` frames of each video's partner, then ``length - given`` of its own, both evenly spaced.

    Parameters
    ----------
    features : Tensor, (B, T, D)
        The first M videos are stacked.
    partners, given : Tensor of int64, (M,)
        Whom each is stacked with, and how many frames that one gives.
    length : int
        Frames of the result.
    rounding : str
        Whether the frames are the nearest (``round``) to evenly spaced places, or those before (``int``).

    Returns
    -------
    Tensor, (M, length, D)

    Examples
    --------
    >>> frames = torch.arange(8.0).view(2, 4, 1)
    >>> stack_frames(frames, torch.tensor([1]), torch.tensor([3]), length=4)[0, :, 0]
    tensor([4., 6., 7., 0.])
    """
    available, device = features.shape[1], features.device
    table = _places(available, length, rounding, device)
    place = torch.arange(length, device=device)
    first = given.unsqueeze(1)
    from_partner = place < first
    own = torch.arange(len(partners), device=device).unsqueeze(1)
    video = torch.where(from_partner, partners.unsqueeze(1), own)
    count = torch.where(from_partner, first, length - first)
    frame = table[count, torch.where(from_partner, place, place - first)]
    # One gather of whole rows: the video axis and the frame axis as one.
    rows = (video * available + frame).reshape(-1)
    flat = features.reshape(-1, *features.shape[2:])
    return flat.index_select(0, rows).view(len(partners), length, *features.shape[2:])


@lru_cache(maxsize=16)
def _places(available: int, length: int, rounding: str, device: torch.device) -> torch.Tensor:
    """Return the frames to take for every count from 0 to ``length``, one count a row."""
    table = np.zeros((length + 1, length), dtype=np.int64)
    for count in range(1, length + 1):
        exact = np.linspace(0, available - 1, count)
        table[count, :count] = np.rint(exact) if rounding == "round" else exact
    return torch.from_numpy(table).to(device)
