"""Augmentations: videos mixed with others of their batch, values or frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError

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


@dataclass(frozen=True)
class Mixed:
    """A batch after augmentation.

    Attributes
    ----------
    features : Tensor, (B, T, D)
    targets : Tensor, (B, C)
        Labels, soft where videos are mixed.
    untouched : Tensor of bool, (B,)
        Which videos are as they were.
    partners : Tensor of int64, (B,)
        What each video was mixed with; itself where untouched.
    partner_shares : Tensor, (B,)
        The partner's share of the label, of the dtype of ``targets``; 0 where untouched.
    streams : tuple of Tensor
        The other streams, mixed alike.
    """

    features: torch.Tensor
    targets: torch.Tensor
    untouched: torch.Tensor
    partners: torch.Tensor
    partner_shares: torch.Tensor
    streams: tuple[torch.Tensor, ...] = ()

    def mix(self, values: torch.Tensor) -> torch.Tensor:
        """Mix other values of the videos, (B, ...), as the labels were: a label mask, for one."""
        return mix(values, self.partners, self.partner_shares)


class Augmentation:
    """What changes a batch of frame features before the model sees it; by itself, nothing.

    Attributes
    ----------
    needs_class_ap : bool
        Whether it asks for the average precision of each class; see ``RunningAveragePrecision``.
    """

    needs_class_ap = False

    def __call__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        *,
        generator: torch.Generator,
        epoch: int = 0,
        class_ap: torch.Tensor | None = None,
        streams: Sequence[torch.Tensor] = (),
    ) -> Mixed:
        """Augment a batch; nothing that is passed in is changed.

        Parameters
        ----------
        features : Tensor, (B, T, D)
            Frames of each video.
        targets : Tensor, (B, C)
            Labels of 0 and 1, floating point.
        generator : torch.Generator
            Where the randomness comes from, of any device. How much is drawn depends on the shapes and the epoch alone.
        epoch : int
            From 0.
        class_ap : Tensor, (C,), optional
            Average precision of each class in the epoch before.
        streams : sequence of Tensor, (B, T, any)
            Other features of the same frames, to be mixed alike.

        Raises
        ------
        MeidbenchError
            Shapes do not fit, or something that is needed is missing.
        """
        _check(features, targets, streams)
        return self._augment(features, targets, generator, epoch, class_ap, tuple(streams))

    def _augment(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        generator: torch.Generator,
        epoch: int,
        class_ap: torch.Tensor | None,
        streams: tuple[torch.Tensor, ...],
    ) -> Mixed:
        return _untouched(features, targets, streams)


class Mixup(Augmentation):
    """Each video mixed with another: x' = lam x + (1 - lam) x_j frame by frame, y' likewise, lam ~ Beta(alpha, alpha).

    Zhang et al., "mixup: beyond empirical risk minimization" (2018). By default as in VideoLT's code: alpha
    1, one lam a batch. Zhang et al. take alpha between 0.1 and 0.4 for ImageNet.

    Parameters
    ----------
    alpha : float
        Above 0; small values mix little.
    per_sample : bool
        Draw a lam for each video.

    Examples
    --------
    >>> mixed = Mixup()(torch.zeros(4, 2, 3), torch.eye(4), generator=torch.Generator().manual_seed(0))
    >>> mixed.targets.sum(dim=1)
    tensor([1., 1., 1., 1.])
    """

    def __init__(self, *, alpha: float = 1.0, per_sample: bool = False) -> None:
        self.alpha = in_range("alpha", alpha, float(np.finfo(np.float32).tiny))
        self.per_sample = per_sample

    def _augment(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        generator: torch.Generator,
        epoch: int,
        class_ap: torch.Tensor | None,
        streams: tuple[torch.Tensor, ...],
    ) -> Mixed:
        size, device = len(features), features.device
        partners = torch.randperm(size, generator=generator, device=generator.device).to(device)
        # torch draws from a Beta distribution with its global generator only.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        lam = np.random.default_rng(seed).beta(self.alpha, self.alpha, size if self.per_sample else 1)
        shares = torch.as_tensor(np.broadcast_to(1 - lam, size).copy(), dtype=targets.dtype).to(device)
        return Mixed(
            mix(features, partners, shares),
            mix(targets, partners, shares),
            torch.zeros(size, dtype=torch.bool, device=device),
            partners,
            shares,
            tuple(mix(stream, partners, shares) for stream in streams),
        )


class FrameStack(Augmentation):
    """Frames of two videos one after the other; what is learnt worse keeps more of its own.

    Zhang et al., "VideoLT: large-scale long-tailed video recognition" (2021). The partner j comes first: it gives F_j
    of L frames, evenly spaced, and video i the other L - F_j. F_j / L follows beta = a_i / (a_i + a_j), where a is the
    average precision of a video's classes in the epoch before. By default as the paper means it, and not the public
    code; ``COMPAT`` holds the switches of the latter.

    Parameters
    ----------
    clip_length : int or None
        L; as many frames as come in where left out. Another number needs ``ratio=1``.
    ratio : float
        The first int(ratio B) videos of a batch are mixed with one another, the others left as they are; in (0, 1].
        (In the public code 0 stands for all; here 1 does.)
    warm_epoch : int
        Up to this epoch, from 0 on, nothing is mixed: there is no average precision yet.
    rounding : str
        ``round`` takes the nearest numbers of frames and the nearest frames, ``int`` cuts off both, as the public code
        does: the partner then loses half a frame on average.
    label_weight : str
        The partner's share of the label: ``frames`` is F_j / L, ``beta`` what it was before rounding (public code).
    ap_agg : str
        How the classes of a video make a: ``mean`` or ``min`` over its labels, or ``sum`` over them, divided by C
        (public code): a video with three labels then counts as three times as easy.

    Examples
    --------
    >>> frames = torch.arange(8.0).view(2, 4, 1)
    >>> augment = FrameStack(ratio=1.0)
    >>> mixed = augment(
    ...     frames, torch.eye(2), generator=torch.Generator().manual_seed(1), epoch=1, class_ap=torch.tensor([0.9, 0.3])
    ... )
    >>> mixed.partners, mixed.features[0, :, 0], mixed.targets[0]
    (tensor([1, 0]), tensor([4., 6., 7., 0.]), tensor([0.2500, 0.7500]))
    """

    needs_class_ap = True

    def __init__(
        self,
        *,
        clip_length: int | None = None,
        ratio: float = 0.5,
        warm_epoch: int = 0,
        rounding: str = "round",
        label_weight: str = "frames",
        ap_agg: str = "mean",
    ) -> None:
        self.clip_length = None if clip_length is None else whole_number("clip_length", clip_length, least=1)
        self.ratio = in_range("ratio (1 for the whole batch)", ratio, float(np.finfo(np.float32).tiny), 1)
        self.warm_epoch = whole_number("warm_epoch", warm_epoch)
        self.rounding = one_of("rounding", rounding, FRAME_COUNTS)
        self.label_weight = one_of("label_weight", label_weight, LABEL_WEIGHTS)
        self.ap_agg = one_of("ap_agg", ap_agg, SHARES)

    def _augment(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        generator: torch.Generator,
        epoch: int,
        class_ap: torch.Tensor | None,
        streams: tuple[torch.Tensor, ...],
    ) -> Mixed:
        if epoch <= self.warm_epoch:
            return _untouched(features, targets, streams)
        if class_ap is None or class_ap.shape != targets.shape[1:]:
            got = None if class_ap is None else tuple(class_ap.shape)
            raise MeidbenchError(
                f"FrameStack needs the average precision of each of {targets.shape[1]} classes after epoch "
                f"{self.warm_epoch}, got {got} in epoch {epoch}: pass what RunningAveragePrecision gave for the epoch "
                "before, also after a resumption"
            )
        (size, available), device = features.shape[:2], features.device
        length = available if self.clip_length is None else self.clip_length
        mixed = int(size * self.ratio)
        if length != available and mixed < size:
            raise MeidbenchError(
                f"FrameStack with clip_length={length} and ratio={self.ratio:g} would leave videos of {available} "
                f"frames beside mixed ones of {length}: set clip_length={available} or ratio=1"
            )
        permuted = torch.randperm(mixed, generator=generator, device=generator.device).to(device)
        partners = torch.cat([permuted, torch.arange(mixed, size, device=device)])
        beta = partner_shares(targets, partners, class_ap.to(device), self.ap_agg)
        beta = torch.where(torch.arange(size, device=device) < mixed, beta, torch.zeros_like(beta))
        given = frames_of(beta, length, self.rounding)
        shares = (given / length if self.label_weight == "frames" else beta).to(targets.dtype)
        # A video that is its own partner and gets no frame from it stays as it is: one gather does for all.
        stacked = [stack_frames(stream, partners, given, length, self.rounding) for stream in (features, *streams)]
        return Mixed(
            stacked[0],
            mix(targets, partners, shares),
            torch.arange(size, device=device) >= mixed,
            partners,
            shares,
            tuple(stacked[1:]),
        )


AUGMENTATIONS: dict[str, type[Augmentation]] = {"none": Augmentation, "mixup": Mixup, "frame_stack": FrameStack}

# What makes each behave as in VideoLT's public code (github.com/17Skye17/VideoLT, ``ops/Augment.py``).
COMPAT: dict[str, dict[str, Any]] = {
    "none": {},
    "mixup": {"alpha": 1.0, "per_sample": False},
    "frame_stack": {"rounding": "int", "label_weight": "beta", "ap_agg": "sum"},
}


def mix(values: torch.Tensor, partners: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return (1 - share) v_i + share v_partner for each video.

    Parameters
    ----------
    values : Tensor, (B, ...)
        Floating point.
    partners : Tensor of int64, (B,)
    shares : Tensor, (B,)

    Examples
    --------
    >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 1]), torch.tensor([0.25, 0.0]))
    tensor([[0.2500],
            [1.0000]])
    """
    share = shares.view(-1, *[1] * (values.ndim - 1))
    return values * (1 - share).to(values.dtype) + values[partners] * share.to(values.dtype)


def _untouched(features: torch.Tensor, targets: torch.Tensor, streams: tuple[torch.Tensor, ...]) -> Mixed:
    size, device = len(features), features.device
    return Mixed(
        features,
        targets,
        torch.ones(size, dtype=torch.bool, device=device),
        torch.arange(size, device=device),
        torch.zeros(size, dtype=targets.dtype, device=device),
        streams,
    )


def _check(features: torch.Tensor, targets: torch.Tensor, streams: Sequence[torch.Tensor]) -> None:
    shapes = {"features": tuple(features.shape), "targets": tuple(targets.shape)}
    shapes |= {f"stream {index}": tuple(stream.shape) for index, stream in enumerate(streams)}
    fit = features.ndim == 3 and targets.ndim == 2 and len(features) == len(targets)
    if not fit or any(stream.ndim != 3 or stream.shape[:2] != features.shape[:2] for stream in streams):
        named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise MeidbenchError(f"expected features (B, T, D), targets (B, C) and streams (B, T, any), got {named}")
    for name, tensor in (("features", features), ("targets", targets)):
        if not tensor.dtype.is_floating_point:
            raise MeidbenchError(f"{name} must be floating point to be mixed, got {tensor.dtype}")
