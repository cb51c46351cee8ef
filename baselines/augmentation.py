"""Augmentations: Mixup and FrameStack, which mix the videos of a batch. ``AUGMENTATIONS`` names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError

# Two average precisions with a smaller sum count as equal.
_NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class MixedBatch:
    """A batch after augmentation.

    Attributes
    ----------
    features : Tensor, (B, T, D)
    targets : Tensor, (B, C)
        Labels, soft where videos are mixed.
    untouched : Tensor of bool, (B,)
        True for videos that were not changed.
    partners : Tensor of int64, (B,)
        The video that each video was mixed with; itself where untouched.
    partner_shares : Tensor, (B,)
        The partner's share of the label, of the dtype of ``targets``; 0 where untouched.
    streams : tuple of Tensor
        The other streams, mixed in the same way.
    """

    features: torch.Tensor
    targets: torch.Tensor
    untouched: torch.Tensor
    partners: torch.Tensor
    partner_shares: torch.Tensor
    streams: tuple[torch.Tensor, ...] = ()

    def mix(self, values: torch.Tensor) -> torch.Tensor:
        """Mix other values of the videos, (B, ...), such as a label mask, as the labels were mixed."""
        return mix(values, self.partners, self.partner_shares)


class Augmentation:
    """A change of a batch of frame features before the model; this base class changes nothing."""

    # Whether it needs the average precision of each class; see RunningAveragePrecision.
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
    ) -> MixedBatch:
        """Augment a batch; the arguments are not changed.

        Parameters
        ----------
        features : Tensor, (B, T, D)
            Frames of each video.
        targets : Tensor, (B, C)
            Labels of 0 and 1, floating point.
        generator : torch.Generator
            The source of randomness, of any device. The number of draws depends on the shapes and the epoch alone.
        epoch : int
            From 0.
        class_ap : Tensor, (C,), optional
            Average precision of each class in the epoch before.
        streams : sequence of Tensor, (B, T, any)
            Other features of the same frames, to be mixed in the same way.

        Raises
        ------
        MeidbenchError
            Shapes do not fit, or a needed argument is missing.
        """
        _check(features, targets, streams)
        size, device = len(features), features.device
        unmixed = MixedBatch(
            features,
            targets,
            untouched=torch.ones(size, dtype=torch.bool, device=device),
            partners=torch.arange(size, device=device),
            partner_shares=torch.zeros(size, dtype=targets.dtype, device=device),
            streams=tuple(streams),
        )
        return self._augment(unmixed, generator, epoch, class_ap)

    def _augment(
        self, batch: MixedBatch, generator: torch.Generator, epoch: int, class_ap: torch.Tensor | None
    ) -> MixedBatch:
        return batch


class Mixup(Augmentation):
    """Each video mixed with another: x' = lam x + (1 - lam) x_j frame by frame, y' likewise, lam ~ Beta(alpha, alpha).

    Zhang et al., "mixup: beyond empirical risk minimization" (2018). The defaults are those of VideoLT's code: alpha
    1, one lam per batch. Zhang et al. take alpha between 0.1 and 0.4 for ImageNet.

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
        self, batch: MixedBatch, generator: torch.Generator, epoch: int, class_ap: torch.Tensor | None
    ) -> MixedBatch:
        size, device = len(batch.features), batch.features.device
        partners = torch.randperm(size, generator=generator, device=generator.device).to(device)
        lam = draw_beta(self.alpha, size if self.per_sample else 1, generator)
        shares = (1 - lam).expand(size).to(batch.targets.dtype).to(device)
        return MixedBatch(
            mix(batch.features, partners, shares),
            mix(batch.targets, partners, shares),
            torch.zeros(size, dtype=torch.bool, device=device),
            partners,
            shares,
            tuple(mix(stream, partners, shares) for stream in batch.streams),
        )


class FrameStack(Augmentation):
    """Frames of two videos one after the other; the video with the lower precision keeps more of its own frames.

    Zhang et al., "VideoLT: large-scale long-tailed video recognition" (2021). The partner j comes first: it gives F_j
    of L frames, evenly spaced, and video i the other L - F_j. F_j / L follows beta = a_i / (a_i + a_j), where a is the
    average precision of a video's classes in the epoch before. The defaults follow the paper, the recipe
    ``framestack-compat`` the public code.

    Parameters
    ----------
    clip_length : int or None
        L; None keeps the number of frames. Another number needs ``ratio=1``.
    ratio : float
        The first int(ratio B) videos of a batch are mixed with one another, the others not at all; in (0, 1].
        (In the public code 0 means all; here 1 does.)
    warm_epoch : int
        Nothing is mixed up to this epoch, counted from 0, because there is no average precision yet.
    rounding : str
        ``round`` takes the nearest numbers of frames and the nearest frames, ``int`` truncates both, as the public code
        does: the partner then loses half a frame on average.
    label_weight : str
        The partner's share of the label: ``frames`` is F_j / L, ``beta`` the share before rounding (public code).
    ap_agg : str
        a is the ``mean`` or ``min`` over the labels of a video, or their ``sum`` divided by C (public code): then a
        video with three labels is three times as easy.

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
        self.rounding = one_of("rounding", rounding, ("round", "int"))
        self.label_weight = one_of("label_weight", label_weight, ("frames", "beta"))
        self.ap_agg = one_of("ap_agg", ap_agg, ("mean", "sum", "min"))

    def _augment(
        self, batch: MixedBatch, generator: torch.Generator, epoch: int, class_ap: torch.Tensor | None
    ) -> MixedBatch:
        if epoch <= self.warm_epoch:
            return batch
        targets = batch.targets
        if class_ap is None or class_ap.shape != targets.shape[1:]:
            got = None if class_ap is None else tuple(class_ap.shape)
            raise MeidbenchError(
                f"FrameStack needs the average precision of each of {targets.shape[1]} classes after epoch "
                f"{self.warm_epoch}, got {got} in epoch {epoch}: pass the result of RunningAveragePrecision for the "
                "epoch before, also after a resumption"
            )
        (size, available), device = batch.features.shape[:2], batch.features.device
        length = available if self.clip_length is None else self.clip_length
        num_mixed = int(size * self.ratio)
        if length != available and num_mixed < size:
            raise MeidbenchError(
                f"FrameStack with clip_length={length} and ratio={self.ratio:g} would leave videos of {available} "
                f"frames beside mixed ones of {length}: set clip_length={available} or ratio=1"
            )
        permuted = torch.randperm(num_mixed, generator=generator, device=generator.device).to(device)
        partners = torch.cat([permuted, torch.arange(num_mixed, size, device=device)])
        beta = compute_partner_shares(targets, partners, class_ap.to(device), self.ap_agg)
        beta = torch.where(torch.arange(size, device=device) < num_mixed, beta, torch.zeros_like(beta))
        given = count_frames(beta, length, self.rounding)
        shares = (given / length if self.label_weight == "frames" else beta).to(targets.dtype)
        # A video that is its own partner and gets no frame from it does not change: one gather is enough for all.
        stacked = [
            stack_frames(stream, partners, given, length, self.rounding) for stream in (batch.features, *batch.streams)
        ]
        return MixedBatch(
            stacked[0],
            mix(targets, partners, shares),
            torch.arange(size, device=device) >= num_mixed,
            partners,
            shares,
            tuple(stacked[1:]),
        )


AUGMENTATIONS: dict[str, type[Augmentation]] = {"none": Augmentation, "mixup": Mixup, "frame_stack": FrameStack}


def mix(values: torch.Tensor, partners: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return (1 - share) v_i + share v_partner for each video, of values (B, ...), partners (B,) and shares (B,).

    Examples
    --------
    >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 1]), torch.tensor([0.25, 0.0]))
    tensor([[0.2500],
            [1.0000]])
    """
    share = shares.view(-1, *[1] * (values.ndim - 1))
    return values * (1 - share).to(values.dtype) + values[partners] * share.to(values.dtype)


def draw_beta(alpha: float, number: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw from Beta(alpha, alpha), (number,) float64, on the CPU.

    One whole number from the generator, or from torch's global one, seeds the draws: torch's own Beta distribution
    takes no generator, and a random number of draws.
    """
    device = None if generator is None else generator.device
    seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, number))


def compute_partner_shares(
    targets: torch.Tensor, partners: torch.Tensor, class_ap: torch.Tensor, ap_agg: str = "mean"
) -> torch.Tensor:
    """Return beta = a_i / (a_i + a_j), the share of its partner j in each video i; 0.5 where both are negligible.

    Zhang et al., "VideoLT" (2021), and ``FrameStack`` of its code (``ops/Augment.py``). a is the ``mean`` or ``min`` of
    the average precision (C,) over the labels (B, C) of a video, or the ``sum`` over them / C; 0 without labels. The
    partners are int64, (B,), the result is float32, (B,).

    Examples
    --------
    >>> compute_partner_shares(torch.eye(2), torch.tensor([1, 0]), torch.tensor([0.75, 0.25]))
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


def count_frames(shares: torch.Tensor, length: int, rounding: str = "round") -> torch.Tensor:
    """Return the number of frames in each share of ``length`` frames, int64, (B,)."""
    exact = shares * length
    return (exact.round() if rounding == "round" else exact).to(torch.int64)


def stack_frames(
    features: torch.Tensor, partners: torch.Tensor, given: torch.Tensor, length: int, rounding: str = "round"
) -> torch.Tensor:
    """Return ``given`` frames of each video's partner, then ``length - given`` of its own, both evenly spaced.

    From features (B, T, D) the first M videos are stacked, to (M, length, D); ``partners`` and ``given`` are int64,
    (M,). The frames are the nearest (``round``) to evenly spaced places, or those before (``int``).

    Examples
    --------
    >>> frames = torch.arange(8.0).view(2, 4, 1)
    >>> stack_frames(frames, torch.tensor([1]), torch.tensor([3]), length=4)[0, :, 0]
    tensor([4., 6., 7., 0.])
    """
    available, device = features.shape[1], features.device
    table = _spaced_frames(available, length, rounding, device)
    place = torch.arange(length, device=device)
    first = given.unsqueeze(1)
    from_partner = place < first
    own = torch.arange(len(partners), device=device).unsqueeze(1)
    video = torch.where(from_partner, partners.unsqueeze(1), own)
    count = torch.where(from_partner, first, length - first)
    frame = table[count, torch.where(from_partner, place, place - first)]
    # One gather of whole rows, with the video axis and the frame axis as one.
    rows = (video * available + frame).reshape(-1)
    flat = features.reshape(-1, *features.shape[2:])
    return flat.index_select(0, rows).view(len(partners), length, *features.shape[2:])


@lru_cache(maxsize=16)
def _spaced_frames(available: int, length: int, rounding: str, device: torch.device) -> torch.Tensor:
    """Return a table (length + 1, length): row n holds n evenly spaced frames."""
    table = np.zeros((length + 1, length), dtype=np.int64)
    for count in range(1, length + 1):
        exact = np.linspace(0, available - 1, count)
        table[count, :count] = np.rint(exact) if rounding == "round" else exact
    return torch.from_numpy(table).to(device)


def _check(features: torch.Tensor, targets: torch.Tensor, streams: Sequence[torch.Tensor]) -> None:
    shapes = {"features": tuple(features.shape), "targets": tuple(targets.shape)}
    shapes |= {f"stream {index}": tuple(stream.shape) for index, stream in enumerate(streams)}
    same_size = features.ndim == 3 and targets.ndim == 2 and len(features) == len(targets)
    if not same_size or any(stream.ndim != 3 or stream.shape[:2] != features.shape[:2] for stream in streams):
        named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise MeidbenchError(f"expected features (B, T, D), targets (B, C) and streams (B, T, any), got {named}")
    for name, tensor in (("features", features), ("targets", targets)):
        if not tensor.dtype.is_floating_point:
            raise MeidbenchError(f"{name} must be floating point to be mixed, got {tensor.dtype}")
