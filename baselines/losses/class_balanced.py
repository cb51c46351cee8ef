"""The class-balanced and the distribution-balanced loss: weights from the class counts."""

import math

import numpy as np
import torch

from meidbench.baselines.losses.base import (
    Counts,
    Loss,
    binary_cross_entropy,
    effective_number_weights,
    inverse_effective_number,
)
from meidbench.baselines.losses.cross_entropy import SOFT_FOCUS, focal_cross_entropy, focal_factor
from meidbench.checks import in_range, one_of


class ClassBalancedLoss(Loss):
    """Class-balanced loss: w bce, with weights w_c = (1 - beta) / (1 - beta^n_c), whose mean is 1.

    Cui et al., "Class-balanced loss based on effective number of samples" (2019). Their samples have one class, which
    weighs all columns of the sample, with reduction ``num_pos`` and bias ``bias_prior(1 / C)``. Samples with several
    labels need a choice, ``mode``.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; every class needs a training video.
    beta : float
        In [0, 1).
    mode : str
        ``by_class`` weighs each column by its class, as VideoLT does. The others weigh a whole video: by the mean
        weight of its labels (``average_w``), or by the weight of their mean (``average_n``) or least (``min_n``)
        count, as the code of the distribution-balanced loss does, apart from the scale. A video without labels has
        weight 1; soft labels are averaged by their values, and the least count is over labels above 0.
    base : str
        ``bce`` or ``focal``.
    gamma, soft
        Of ``focal``; see ``Focal``.

    Examples
    --------
    >>> ClassBalancedLoss([2, 1], num_videos=3, beta=0.5)(torch.zeros(2, 2), torch.eye(2))
    tensor(0.6931)
    """

    class_weights: torch.Tensor
    counts: torch.Tensor
    _needs_every_class = True

    def __init__(
        self,
        train_counts: Counts,
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
        self.mode = one_of("mode", mode, ("by_class", "average_w", "average_n", "min_n"))
        self.base = one_of("base", base, ("bce", "focal"))
        self.gamma = in_range("gamma", gamma, 0)
        self.soft = one_of("soft", soft, SOFT_FOCUS)
        self._register_constant("class_weights", effective_number_weights(self.train_counts, self.beta))
        self._register_constant("counts", self.train_counts)
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


class DistributionBalanced(Loss):
    """Distribution-balanced loss: rebalanced weights, tolerant negatives, and the factor of the focal loss.

    Wu et al., "Distribution-balanced loss for multi-label classification in long-tailed datasets" (2020), as
    ``ResampleLoss`` of its code (github.com/wutong16/DistributionBalancedLoss) has it:

    - r_bc = (1 / n_c) / (sum of 1 / n_j over the labels j of the video) and w = sigmoid(map_beta (r - map_mu)) +
      map_alpha, for positives and negatives alike; a video without labels has w = 1 + map_alpha, the limit;
    - z' = z - log(N / n_c - 1) kappa / neg_scale; positives are w bce(z'), negatives w / neg_scale bce(neg_scale z');
    - both are multiplied by balance |error|^gamma; the error is that of sigmoid(z') or sigmoid(neg_scale z').

    A soft label y weighs both sides, by y and 1 - y; the code, made for labels of 0 and 1, mixes the logits. The
    authors use the loss with class-aware sampling.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; every class needs a training video, and one without it.
    map_alpha, map_beta, map_mu, kappa, neg_scale : float
        The defaults are for COCO-LT. VOC-LT has ``map_mu`` 0.3 and ``neg_scale`` 5; tune both.
    gamma : float
        Exponent of the error; 0 for none.
    balance : float
        A constant factor.

    Examples
    --------
    >>> DistributionBalanced([3, 1], num_videos=4)(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor(0.1913)
    """

    shift: torch.Tensor
    inverse_counts: torch.Tensor
    _needs_every_class = True

    def __init__(
        self,
        train_counts: Counts,
        num_videos: int,
        *,
        map_alpha: float = 0.1,
        map_beta: float = 10.0,
        map_mu: float = 0.2,
        kappa: float = 0.05,
        neg_scale: float = 2.0,
        gamma: float = 2.0,
        balance: float = 2.0,
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.map_alpha = in_range("map_alpha", map_alpha, 0)
        self.map_beta = in_range("map_beta", map_beta, 0)
        self.map_mu = in_range("map_mu", map_mu, 0)
        self.neg_scale = in_range("neg_scale", neg_scale, np.finfo(np.float32).tiny)
        self.gamma = in_range("gamma", gamma, 0)
        self.balance = in_range("balance", balance, 0)
        odds = 1 / self._shares(self.num_videos) - 1
        self._register_constant("shift", -np.log(odds) * in_range("kappa", kappa, 0) / self.neg_scale)
        self._register_constant("inverse_counts", 1 / self.train_counts)

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss, (B, C)."""
        shifted = logits + self.shift.to(logits.dtype)
        positive = self._side(shifted)
        negative = self._side(-self.neg_scale * shifted) / self.neg_scale
        return self.balance * self.weights(targets) * (targets * positive + (1 - targets) * negative)

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the rebalancing weights w, (B, C)."""
        inverse = self.inverse_counts.to(targets.dtype)
        repeat_rate = (targets * inverse).sum(dim=1, keepdim=True)
        rebalanced = inverse / repeat_rate.clamp(min=torch.finfo(targets.dtype).tiny)
        return torch.sigmoid(self.map_beta * (rebalanced - self.map_mu)) + self.map_alpha

    def _side(self, logits: torch.Tensor) -> torch.Tensor:
        entropy = binary_cross_entropy(logits, torch.ones_like(logits))
        return focal_factor(torch.sigmoid(-logits), self.gamma) * entropy
