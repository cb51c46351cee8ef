"""What every aggregator has in common: what it takes, videos of different lengths, and the last layer."""

from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.losses.base import bias_prior as prior_logits
from meidbench.checks import one_of, whole_number
from meidbench.errors import MeidbenchError, first_few

CLASSIFIERS = ("linear", "cosine")

# A share of positives for all classes, or one a class.
Prior = float | npt.NDArray[Any] | torch.Tensor


class Aggregator(nn.Module):
    """A model of frame features, called as ``model(features, lengths)``; its logits depend on real frames alone.

    Parameters
    ----------
    dim : int
        D, width of a frame's features.
    num_classes : int
        C.
    classifier : str
        The last layer: ``linear``, or ``cosine`` (see ``CosineClassifier``).
    bias_prior : float or (C,) array, optional
        Share of positives, for all classes or for each, that a linear last layer says of every video at first (its
        weights add a little): its bias is log(pi / (1 - pi)), Lin et al., "Focal loss" (2017), section 4.1.

    Attributes
    ----------
    dim, num_classes : int

    Raises
    ------
    MeidbenchError
        A parameter makes no sense; from a call, shapes or lengths do not fit.
    """

    def __init__(
        self, dim: int, num_classes: int, *, classifier: str = "linear", bias_prior: Prior | None = None
    ) -> None:
        super().__init__()
        self.dim = whole_number("dim", dim, least=1)
        self.num_classes = whole_number("num_classes", num_classes, least=1)
        self._classifier_kind = one_of("classifier", classifier, CLASSIFIERS)
        self._bias_prior = bias_prior

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Compute logits.

        Parameters
        ----------
        features : Tensor, (B, T, D)
            Floating point; of another precision than the model's, they are converted, unless under autocast.
        lengths : Tensor of int, (B,), optional
            Frames of each video, 1 to T, that are not padding. What padding holds makes no difference. On another
            device than the CPU their range is not checked, as that would wait for the device.

        Returns
        -------
        Tensor, (B, C)
        """
        if features.ndim != 3 or features.shape[2] != self.dim or not features.shape[1] or not len(features):
            raise MeidbenchError(
                f"{type(self).__name__} expects features (B, T, {self.dim}), B and T at least 1, "
                f"got {tuple(features.shape)}"
            )
        if not features.dtype.is_floating_point:
            raise MeidbenchError(f"features must be floating point, got {features.dtype}")
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(next(self.parameters()).dtype)
        if lengths is None:
            return self.logits(features, None)
        mask = frame_mask(lengths, features)
        return self.logits(features.masked_fill(~mask[:, :, None], 0.0), mask)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits of checked features (B, T, D), zero where a mask (B, T) is false."""
        raise NotImplementedError

    def _last_layer(self, width: int) -> nn.Module:
        if self._classifier_kind == "cosine":
            if self._bias_prior is not None:
                raise MeidbenchError("a cosine classifier has no bias: bias_prior needs classifier='linear'")
            return CosineClassifier(width, self.num_classes)
        layer = nn.Linear(width, self.num_classes)
        if self._bias_prior is not None:
            bias = prior_logits(self._bias_prior)
            if bias.shape not in ((), (self.num_classes,)):
                raise MeidbenchError(
                    f"bias_prior must be one share or one for each of {self.num_classes} classes, "
                    f"got shape {tuple(bias.shape)}"
                )
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer


class CosineClassifier(nn.Module):
    """The cosine between an input and each class's weights, in [-1, 1], without a bias; computed in float32.

    The last layer that LDAM was published with (Cao et al. 2019): the scale s = 30 belongs to that loss. Each
    class's weights begin with a uniformly drawn direction.

    Parameters
    ----------
    width : int
        W.
    num_classes : int
        C; the layer has W C parameters.

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
            cosines: torch.Tensor = functional.linear(unit(inputs, dim=-1), unit(self.weight, dim=1))
            return cosines


class FrameNorm(nn.Module):
    """Batch normalisation whose statistics are over the real frames of all videos.

    Parameters
    ----------
    width : int
        W; it has 2 W parameters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Held, not inherited, so that SyncBatchNorm can take its place.
        self.norm = nn.BatchNorm1d(width)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Normalise frames (B, T, W); those where the mask (B, T) is false become zero."""
        if mask is None:
            normal: torch.Tensor = self.norm(frames.flatten(0, 1))
            return normal.view_as(frames)
        rows = self.norm(frames[mask])
        spread: torch.Tensor = rows.new_zeros(frames.shape)
        spread[mask] = rows
        return spread


def frame_mask(lengths: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return which frames are real, (B, T) bool, from the lengths (B,) of videos padded to (B, T, D).

    Raises
    ------
    MeidbenchError
        Lengths are not (B,) whole numbers, or (on the CPU) not between 1 and T.

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
            f"lengths must lie between 1 and the {frames} frames there are, got {first_few(wrong.tolist())}"
        )
    return torch.arange(frames, device=features.device) < lengths.to(features.device)[:, None]


def mean_over_frames(frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean (B, W) of the real frames of (B, T, W); a mask (B, T) says which these are.

    Examples
    --------
    >>> mean_over_frames(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    if mask is None:
        return frames.mean(dim=1)
    # In float32: a sum over frames leaves the range of half precision long before their mean does.
    total = at_least_float32(frames).masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).to(total.dtype)


def unit(vectors: torch.Tensor, dim: int, order: float = 2.0) -> torch.Tensor:
    """Return vectors along an axis divided by their norm, in float32: squares of half precision overflow at 256.

    Examples
    --------
    >>> unit(torch.tensor([300.0, 400.0], dtype=torch.float16), dim=0)
    tensor([0.6000, 0.8000])
    """
    return functional.normalize(at_least_float32(vectors), p=order, dim=dim)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return values of half precision as float32, others as they are.

    Examples
    --------
    >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def cluster_sums(rows: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the rows of each cluster add up to, (B, K, W), and its total share, (B, K), in float32 at least.

    Each cluster is divided by its norm afterwards, however small its share: in float16 one below 6e-8 would vanish.

    Parameters
    ----------
    rows : Tensor, (B, R, W)
    shares : Tensor, (B, R, K)
        How much of each row goes to each cluster.

    Examples
    --------
    >>> cluster_sums(torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[1.0], [0.5]]]))
    (tensor([[[4.]]]), tensor([[1.5000]]))
    """
    rows = at_least_float32(rows)
    with torch.autocast(rows.device.type, enabled=False):
        shares = shares.to(rows.dtype)
        return shares.transpose(1, 2) @ rows, shares.sum(dim=1)
