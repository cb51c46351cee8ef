"""The base class of all aggregators, their last layer, and operations on frames of videos of different lengths."""

from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.losses.base import bias_prior as prior_logits
from meidbench.checks import one_of, whole_number
from meidbench.errors import MeidbenchError, first_few

# A share of positives for all classes, or one per class.
Prior = float | npt.NDArray[Any] | torch.Tensor


class Aggregator(nn.Module):
    """A model of frame features, called as ``model(features, lengths)``; padding does not change its logits.

    Parameters
    ----------
    dim : int
        D, width of a frame's features.
    num_classes : int
        C.
    classifier : str
        The last layer: ``linear``, or ``cosine`` (see ``CosineClassifier``).
    bias_prior : float or (C,) array, optional
        Share pi of positives, for all classes or for each. The bias of a linear last layer starts at
        log(pi / (1 - pi)), so that it first predicts about pi: Lin et al., "Focal loss" (2017), section 4.1.

    Raises
    ------
    MeidbenchError
        A parameter is impossible; from a call, shapes or lengths do not fit.
    """

    def __init__(
        self, dim: int, num_classes: int, *, classifier: str = "linear", bias_prior: Prior | None = None
    ) -> None:
        super().__init__()
        self.dim = whole_number("dim", dim, least=1)
        self.num_classes = whole_number("num_classes", num_classes, least=1)
        self._classifier_kind = one_of("classifier", classifier, ("linear", "cosine"))
        self.bias_prior = bias_prior

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Compute logits (B, C).

        Parameters
        ----------
        features : Tensor, (B, T, D)
            Floating point; converted to the model's precision, unless under autocast.
        lengths : Tensor of int, (B,), optional
            The number of frames of each video, 1 to T; the frames after them are padding, whose values make no
            difference. On other devices than the CPU the range is not checked, as that would wait for the device.
        """
        features = check_frames(self, features, self.dim)
        if lengths is None:
            return self.logits(features, None)
        mask = frame_mask(lengths, features)
        return self.logits(features.masked_fill(~mask[:, :, None], 0.0), mask)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits of checked features (B, T, D), zero where a mask (B, T) is false."""
        raise NotImplementedError

    def _last_layer(self, width: int) -> nn.Module:
        if self._classifier_kind == "cosine":
            if self.bias_prior is not None:
                raise MeidbenchError("a cosine classifier has no bias: bias_prior needs classifier='linear'")
            return CosineClassifier(width, self.num_classes)
        layer = nn.Linear(width, self.num_classes)
        if self.bias_prior is not None:
            bias = prior_logits(self.bias_prior)
            if bias.shape not in ((), (self.num_classes,)):
                raise MeidbenchError(
                    f"bias_prior must be one share, or one for each of {self.num_classes} classes, "
                    f"got shape {tuple(bias.shape)}"
                )
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer


class CosineClassifier(nn.Module):
    """The cosine between an input and each class's weights, in [-1, 1], without a bias; computed in float32.

    The last layer of the LDAM paper (Cao et al. 2019); its scale s = 30 is part of the loss. The weights of each
    class start in a uniformly drawn direction. From width W to C classes it has W C parameters.

    Examples
    --------
    >>> layer = CosineClassifier(3, 2)
    >>> bool((layer(100 * torch.randn(5, 3)).abs() <= 1 + 1e-6).all())
    True
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.randn(num_classes, width), dim=1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the cosines (..., C) of inputs (..., W)."""
        with torch.autocast(inputs.device.type, enabled=False):
            cosines: torch.Tensor = functional.linear(normalise(inputs, dim=-1), normalise(self.weight, dim=1))
            return cosines


class FrameBatchNorm(nn.Module):
    """Batch normalisation of frames of width W, with statistics over the real frames of all videos; 2 W parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # An attribute, not a base class, so that SyncBatchNorm can replace it.
        self.norm = nn.BatchNorm1d(width)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Normalise frames (B, T, W); frames whose mask (B, T) is false become zero."""
        if mask is None:
            normal: torch.Tensor = self.norm(frames.flatten(0, 1))
            return normal.view_as(frames)
        rows = self.norm(frames[mask])
        spread: torch.Tensor = rows.new_zeros(frames.shape)
        spread[mask] = rows
        return spread


def check_frames(module: nn.Module, frames: torch.Tensor, dim: int) -> torch.Tensor:
    """Return frames (B, T, D) in the precision of a module, or as they are under autocast; refuse another shape."""
    if frames.ndim != 3 or frames.shape[2] != dim or not frames.numel():
        raise MeidbenchError(
            f"{type(module).__name__} expects features (B, T, {dim}), B and T at least 1, got {tuple(frames.shape)}"
        )
    if not frames.dtype.is_floating_point:
        raise MeidbenchError(f"features must be floating point, got {frames.dtype}")
    return frames if torch.is_autocast_enabled(frames.device.type) else frames.to(next(module.parameters()).dtype)


def frame_mask(lengths: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return a mask (B, T) of the real frames, from the lengths (B,) of videos padded to (B, T, D).

    Lengths that are not (B,) whole numbers, or (on the CPU) not between 1 and T, are refused.

    Examples
    --------
    >>> frame_mask(torch.tensor([1, 3]), torch.zeros(2, 3, 4))
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    videos, frames = features.shape[:2]
    if lengths.shape != (videos,) or lengths.dtype.is_floating_point or lengths.dtype in (torch.bool, torch.complex64):
        raise MeidbenchError(f"lengths must be ({videos},) whole numbers, got {tuple(lengths.shape)} {lengths.dtype}")
    if lengths.device.type == "cpu" and len(wrong := lengths[(lengths < 1) | (lengths > frames)]):
        raise MeidbenchError(
            f"lengths must lie between 1 and the number of frames, {frames}, got {first_few(wrong.tolist())}"
        )
    return torch.arange(frames, device=features.device) < lengths.to(features.device)[:, None]


def mean_over_frames(frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean (B, W) of the frames (B, T, W) whose mask (B, T) is true.

    Examples
    --------
    >>> mean_over_frames(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    if mask is None:
        return frames.mean(dim=1)
    # In float32: in half precision the sum over frames overflows long before their mean does.
    total = at_least_float32(frames).masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).to(total.dtype)


def normalise(vectors: torch.Tensor, dim: int, order: float = 2.0) -> torch.Tensor:
    """Return the vectors along an axis divided by their norm, in float32: squares in half precision overflow at 256.

    Examples
    --------
    >>> normalise(torch.tensor([300.0, 400.0], dtype=torch.float16), dim=0)
    tensor([0.6000, 0.8000])
    """
    return functional.normalize(at_least_float32(vectors), p=order, dim=dim)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return values of half precision as float32, and other values unchanged.

    Examples
    --------
    >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def cluster_sums(rows: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of rows of each cluster, (B, K, W), and its total weight, (B, K), in float32 at least.

    The rows are (B, R, W), their weights in each cluster, ``shares``, (B, R, K). The caller divides each sum by its
    norm, however small its weight: in float16 a weight below 6e-8 would vanish.

    Examples
    --------
    >>> cluster_sums(torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[1.0], [0.5]]]))
    (tensor([[[4.]]]), tensor([[1.5000]]))
    """
    rows = at_least_float32(rows)
    with torch.autocast(rows.device.type, enabled=False):
        shares = shares.to(rows.dtype)
        return shares.transpose(1, 2) @ rows, shares.sum(dim=1)


def split_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Split rows (B, R, H W) into the heads of an attention, (B, H, R, W).

    Examples
    --------
    >>> split_heads(torch.rand(2, 7, 12), heads=4).shape
    torch.Size([2, 4, 7, 3])
    """
    split: torch.Tensor = rows.unflatten(2, (heads, -1))  # type: ignore[no-untyped-call, unused-ignore]
    return split.transpose(1, 2)
