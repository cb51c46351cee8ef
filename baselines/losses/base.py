"""The base class of all losses, and the formulas that several losses share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from meidbench.checks import one_of, whole_number
from meidbench.errors import MeidbenchError, first_few

REDUCTIONS = ("mean", "sum_classes_mean_batch", "num_pos")

# Training videos per class, (C,).
Counts = Sequence[int] | npt.NDArray[Any]


class Loss(nn.Module):
    """A loss of logits and labels, built from the class counts of a training set.

    A loss is called as ``loss(logits, targets, mask)`` and returns a scalar. It computes in float32 if the logits
    are in half precision, does not change its input, and accepts videos without a label.

    Parameters
    ----------
    train_counts : sequence of int, (C,)
        Training videos per class.
    num_videos : int
        Training videos.
    reduction : str
        The elements l (B, C) are multiplied by the mask, summed, and divided by:

        ``mean``
            B C, as in VideoLT's code.
        ``sum_classes_mean_batch``
            B: C times ``mean``. VideoLT's code does this under class-balanced sampling; ASL's omits the 1 / B.
        ``num_pos``
            The number of labels that the mask keeps (at least 1), as in Lin et al., "Focal loss" (2017).

        Masked elements add nothing, but B C counts them. So the parts of a batch, on several devices or one after
        another, average to the result of the whole batch. ``num_pos`` does not have this property.

    Raises
    ------
    MeidbenchError
        A count or a parameter is impossible; from a call, shapes differ.
    """

    # Whether the formula divides by a class's count, or takes the logarithm of its share.
    _needs_every_class = False

    def __init__(self, train_counts: Counts, num_videos: int, *, reduction: str = "mean"):
        super().__init__()
        self.train_counts, self.num_videos = _checked_counts(train_counts, num_videos)
        self.reduction = one_of("reduction", reduction, REDUCTIONS)
        self.epoch = 0
        unseen = np.flatnonzero(self.train_counts == 0)
        if self._needs_every_class and len(unseen):
            raise MeidbenchError(
                f"{type(self).__name__} needs a training video of every class; class {first_few(unseen)} has none. "
                "Leave such classes out, or take a loss that does not use counts, such as BCE, Focal or ASL"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.train_counts)

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, from 0; only losses with a schedule use it."""
        self.epoch = whole_number("epoch", epoch)

    def set_step(self, step: int, rank: int = 0, world_size: int = 1) -> None:
        """Set the number of the next forward pass in the whole training; only losses that draw at random use it."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss, a scalar.

        Parameters
        ----------
        logits : Tensor, (B, C)
            Floating point, B at least 1.
        targets : Tensor, (B, C)
            Labels of 0 and 1, or values between them (mixed videos).
        mask : Tensor, (B, C), optional
            The weight of each element; 0 leaves it out.
        """
        self._check_shapes(logits, targets, mask)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        targets = targets.to(logits.dtype)
        elements = self.elements(logits, targets)
        labels = targets
        if mask is not None:
            weights = mask.to(logits.dtype)
            elements, labels = elements * weights, targets * weights
        if self.reduction == "num_pos":
            return elements.sum() / labels.sum().clamp(min=1)
        return elements.sum(dim=1).mean() if self.reduction == "sum_classes_mean_batch" else elements.mean()

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each video and class before masking and reduction; all are (B, C) of one dtype."""
        raise NotImplementedError

    def _check_shapes(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None) -> None:
        shapes = [tuple(tensor.shape) for tensor in (logits, targets, mask) if tensor is not None]
        if len({*shapes}) > 1 or logits.ndim != 2 or logits.shape[1] != self.num_classes or not len(logits):
            raise MeidbenchError(
                f"{type(self).__name__} expects (B, {self.num_classes}) for logits, targets and mask, B at least 1; "
                f"got {', '.join(map(str, shapes))}"
            )
        if not logits.dtype.is_floating_point:
            raise MeidbenchError(f"logits must be floating point, got {logits.dtype}")

    def _shares(self, total: int) -> npt.NDArray[np.float64]:
        """Return n_c / total; refuse a share of 1, because the logarithm of its odds is infinite."""
        everywhere = np.flatnonzero(self.train_counts == total)
        if len(everywhere):
            raise MeidbenchError(
                f"{type(self).__name__} needs a training video without each class; class {first_few(everywhere)} has "
                f"all {total:,}"
            )
        return np.asarray(self.train_counts / total)

    def _register_constant(self, name: str, values: npt.NDArray[Any]) -> None:
        # Not persistent: it follows from the arguments, and a checkpoint should not contradict them.
        self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32), persistent=False)


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -y log p - (1 - y) log(1 - p) with p = sigmoid(z), element by element.

    Examples
    --------
    >>> binary_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    tensor([[0.6931, 0.6931]])
    """
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def effective_number_weights(train_counts: npt.NDArray[Any], beta: float = 0.9999) -> npt.NDArray[np.float64]:
    """Return class weights (C,) by the effective number of samples, from counts (C,) of at least 1; their mean is 1.

    w_c = (1 - beta) / (1 - beta^n_c), divided by their mean: Cui et al., "Class-balanced loss based on effective number
    of samples" (2019). beta is in [0, 1); 0 gives every class the weight 1.

    Examples
    --------
    >>> effective_number_weights(np.array([1, 2]), beta=0.5)
    array([1.2, 0.8])
    """
    weights = inverse_effective_number(train_counts, beta)
    return np.asarray(weights / weights.mean())


def inverse_effective_number(counts: npt.NDArray[Any], beta: float) -> npt.NDArray[np.float64]:
    """Return (1 - beta) / (1 - beta^n) of each count.

    Examples
    --------
    >>> inverse_effective_number(np.array([1, 2]), beta=0.5)
    array([1.        , 0.66666667])
    """
    log_beta = np.log(beta) if beta else -np.inf
    # expm1, because beta^n is close to 1 for rare classes.
    return np.asarray((1 - beta) / -np.expm1(np.asarray(counts, dtype=np.float64) * log_beta))


def bias_prior(share: float | npt.NDArray[Any] | torch.Tensor) -> torch.Tensor:
    """Return the bias with which an untrained last layer predicts ``share``: -log((1 - pi) / pi).

    Lin et al., "Focal loss" (2017), section 4.1. EQL's detectors start at 0.001, the code of the class-balanced loss
    at 1 / C; one share per class, n_c / N, (C,), is possible too. A share that is not between 0 and 1 is refused.

    Examples
    --------
    >>> bias_prior(0.001)
    tensor(-6.9068)
    """
    pi = torch.as_tensor(share, dtype=torch.float64, device="cpu")  # has values, also where a model is made without
    if not bool(((pi > 0) & (pi < 1)).all()):
        raise MeidbenchError(f"a prior share must lie between 0 and 1, both excluded, got {share}")
    return torch.logit(pi).to(torch.float32)


def _checked_counts(train_counts: Counts, num_videos: int) -> tuple[npt.NDArray[Any], int]:
    counts = np.asarray(train_counts)
    if counts.ndim != 1 or not len(counts) or counts.dtype.kind not in "iu":
        raise MeidbenchError(
            f"train_counts must be whole numbers, one per class, got shape {counts.shape} of {counts.dtype}"
        )
    videos = whole_number("num_videos", num_videos, least=1)
    wrong = np.flatnonzero((counts < 0) | (counts > videos))
    if len(wrong):
        named = first_few(f"{index} ({counts[index]})" for index in wrong)
        raise MeidbenchError(f"a class has between 0 and all {videos:,} training videos; wrong are class {named}")
    return counts.astype(np.int64), videos
