"""The class-balanced loss, which weighs by the effective number of samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from meidbench.baselines.losses.base import (
    Loss,
    binary_cross_entropy,
    effective_number_weights,
    in_range,
    inverse_effective_number,
    one_of,
)
from meidbench.baselines.losses.focal import SOFT_FOCUS, focal_cross_entropy

MODES = ("by_class", "average_w", "average_n", "min_n")
BASES = ("bce", "focal")


class ClassBalanced(Loss):
    """Class-balanced loss: w bce, with weights w_c = (1 - beta) / (1 - beta^n_c), on average 1.

    Cui et al., "Class-balanced loss based on effective number of samples" (2019). It knows one class a sample and
    weighs all columns of a sample by it, with reduction ``num_pos`` and bias ``bias_prior(1 / C)``. Several labels need
    a choice.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; every class needs a training video.
    beta : float
        In [0, 1).
    mode : str
        ``by_class`` weighs each column by its class, as VideoLT does. The others weigh a whole video, by the mean
        weight of its labels (``average_w``), or by the weight of their mean (``average_n``) or least (``min_n``)
        count, as the code of the distribution-balanced loss does but for its scale. A video without labels has
        weight 1; soft labels are averaged by their shares, and the least count is over labels above 0.
    base : str
        ``bce`` or ``focal``.
    gamma, soft
        Of ``focal``; see ``Focal``.

    Examples
    --------
    >>> ClassBalanced([2, 1], num_videos=3, beta=0.5)(torch.zeros(2, 2), torch.eye(2))
    tensor(0.6931)
    """

    class_weights: torch.Tensor
    counts: torch.Tensor
    _needs_every_class = True

    def __init__(
        self,
        train_counts: Sequence[int] | npt.NDArray[Any],
        num_videos: int,
        *,
        beta: float = 0.9999,
        mode: str = "by_class",
        base: str = "bce",
        gamma: float = 1.0,
        soft: str = "abs_error",
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.beta = in_range("beta", beta, 0, 1, open_end=True)
        self.mode = one_of("mode", mode, MODES)
        self.base = one_of("base", base, BASES)
        self.gamma = in_range("gamma", gamma, 0)
        self.soft = one_of("soft", soft, SOFT_FOCUS)
        self._constant("class_weights", effective_number_weights(self.train_counts, self.beta))
        self._constant("counts", self.train_counts)
        self._log_beta = math.log(self.beta) if self.beta else -math.inf
        self._scale = float((1 - self.beta) / inverse_effective_number(self.train_counts, self.beta).mean())

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the weighted cross-entropy, (B, C)."""
        if self.base == "focal":
            entropy = focal_cross_entropy(logits, targets, self.gamma, self.soft)
        else:
            entropy = binary_cross_entropy(logits, targets)
        return self.weights(targets) * entropy

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return (C,) weights of classes or (B, 1) weights of videos."""
        class_weights, counts = self.class_weights.to(targets.dtype), self.counts.to(targets.dtype)
        if self.mode == "by_class":
            return class_weights
        labels = targets.sum(dim=1, keepdim=True)
        shares = targets / labels.clamp(min=torch.finfo(targets.dtype).tiny)
        if self.mode == "average_w":
            weights = (shares * class_weights).sum(dim=1, keepdim=True)
        else:
            average, least = (shares * counts).sum(dim=1), torch.where(targets > 0, counts, counts.max()).amin(dim=1)
            count = (average if self.mode == "average_n" else least).clamp(min=1).unsqueeze(1)
            weights = self._scale / -torch.expm1(count * self._log_beta)
        return torch.where(labels > 0, weights, torch.ones_like(weights))
