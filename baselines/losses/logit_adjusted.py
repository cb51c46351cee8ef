"""Logit-adjusted cross-entropy: the prior of a class is part of its logit while it is trained."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from meidbench.baselines.losses.base import Loss, bias_prior, binary_cross_entropy, in_range, one_of

PRIORS = ("videos", "labels")


class LogitAdjusted(Loss):
    """Logit-adjusted cross-entropy: bce(z + tau log(pi_c / (1 - pi_c)), y); videos are scored by the plain z.

    Menon et al., "Long-tail learning via logit adjustment" (2021), with sigmoids as the ``Bal-BCE`` of Xu et al.,
    "Learning imbalanced data with vision transformers" (2023; github.com/XuZhengzhuo/LiVT, ``util/loss.py``).

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; every class needs a training video, and one without it.
    tau : float
        Strength, at least 0.
    prior : str
        pi_c. ``videos`` is n_c / N, the chance that a video has the class. ``labels`` is n_c / sum n, which Xu et al.
        take where a sample has one label; it is too small where it has several.

    Examples
    --------
    >>> loss = LogitAdjusted([3, 1], num_videos=4)
    >>> loss(loss.adjust(torch.zeros(1, 2)), torch.ones(1, 2))  # what was added and what is taken off cancel
    tensor(0.6931)
    """

    prior_logits: torch.Tensor
    _needs_every_class = True

    def __init__(
        self,
        train_counts: Sequence[int] | npt.NDArray[Any],
        num_videos: int,
        *,
        tau: float = 1.0,
        prior: str = "videos",
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.tau = in_range("tau", tau, 0)
        self.prior = one_of("prior", prior, PRIORS)
        whole = self.num_videos if prior == "videos" else int(self.train_counts.sum())
        self._constant("prior_logits", bias_prior(self._shares(whole)).numpy())

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of the logits with the prior, (B, C)."""
        return binary_cross_entropy(logits + self.tau * self.prior_logits.to(logits.dtype), targets)

    def adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """Return z - tau log(pi_c / (1 - pi_c)), (B, C), for a model that was trained without the prior.

        This adds a constant to each class. It can change which classes of a video come first (top-k accuracy), and
        cannot change average precision, which ranks videos within a class.
        """
        return logits - self.tau * self.prior_logits.to(logits.dtype)
