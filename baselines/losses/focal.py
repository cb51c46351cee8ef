"""Focal loss: what is already right counts less."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from meidbench.baselines.losses.base import Loss, binary_cross_entropy, in_range, one_of

SOFT_FOCUS = ("abs_error", "exp_bce")
ALPHA_MODES = ("scalar", "balanced")

# Below it no focus is told from none; it keeps the gradient of |error|^gamma finite where gamma < 1.
_SMALLEST_ERROR = 1e-12


class Focal(Loss):
    """Focal loss: alpha |y - p|^gamma bce, with p = sigmoid(z).

    Lin et al., "Focal loss for dense object detection" (2017), equation 5. There it is gamma 2, alpha 0.25
    ``balanced``, reduction ``num_pos``; here the defaults are those of VideoLT's FrameStack script and of MEID.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``.
    gamma : float
        Focus, at least 0. VideoLT's own default is 0, which is plain cross-entropy.
    alpha : float
        At least 0; in [0, 1] where balanced.
    alpha_mode : str
        ``scalar`` multiplies everything by alpha (VideoLT), ``balanced`` positives by alpha and negatives by
        1 - alpha (Lin et al.).
    soft : str
        The error where a target lies between 0 and 1; for labels of 0 and 1 the two are equal. ``abs_error`` is
        |y - p|. ``exp_bce`` is 1 - exp(-bce), as VideoLT computes it: at y = p = 0.5 it is 0.5, not 0.

    Examples
    --------
    >>> Focal([3, 1], num_videos=4)(torch.zeros(2, 2), torch.eye(2))
    tensor(0.3466)
    """

    def __init__(
        self,
        train_counts: Sequence[int] | npt.NDArray[Any],
        num_videos: int,
        *,
        gamma: float = 1.0,
        alpha: float = 1.0,
        alpha_mode: str = "scalar",
        soft: str = "abs_error",
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.alpha_mode = one_of("alpha_mode", alpha_mode, ALPHA_MODES)
        self.gamma = in_range("gamma", gamma, 0)
        self.alpha = in_range("alpha", alpha, 0, 1) if alpha_mode == "balanced" else in_range("alpha", alpha, 0)
        self.soft = one_of("soft", soft, SOFT_FOCUS)

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the focused cross-entropy, (B, C)."""
        entropy = focal_cross_entropy(logits, targets, self.gamma, self.soft)
        if self.alpha_mode == "balanced":
            return (self.alpha * targets + (1 - self.alpha) * (1 - targets)) * entropy
        return self.alpha * entropy


def focal_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, soft: str = "abs_error"
) -> torch.Tensor:
    """Return |y - p|^gamma bce, element by element; see ``Focal`` for ``gamma`` and ``soft``.

    Examples
    --------
    >>> focal_cross_entropy(torch.zeros(1, 1), torch.ones(1, 1), gamma=2)
    tensor([[0.1733]])
    """
    entropy = binary_cross_entropy(logits, targets)
    if gamma == 0:
        return entropy
    error = -torch.expm1(-entropy) if soft == "exp_bce" else (targets - torch.sigmoid(logits)).abs()
    return focus(error, gamma) * entropy


def focus(error: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return error^gamma with a gradient that stays finite at an error of 0.

    Examples
    --------
    >>> focus(torch.tensor([0.0, 0.5]), 2.0)
    tensor([1.0000e-24, 2.5000e-01])
    """
    return error.clamp(min=_SMALLEST_ERROR).pow(gamma)
