"""The asymmetric loss, which focuses on positives and negatives apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from meidbench.baselines.losses.base import Loss, in_range
from meidbench.baselines.losses.focal import focus
from meidbench.errors import MeidbenchError


class ASL(Loss):
    """Asymmetric loss: -y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q), q = max(p - clip, 0).

    Ridnik et al., "Asymmetric loss for multi-label classification" (2021). Its code
    (github.com/Alibaba-MIIL/ASL) sums over the batch too; here the mean over it is taken, so that the learning rate
    need not change with the batch. A soft label takes both sides by its shares; the code, made for labels of 0 and 1,
    mixes the exponents.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; but the reduction is ``sum_classes_mean_batch`` by default.
    gamma_neg, gamma_pos : float
        Focus on each side, at least 0. 4 and 0 are the published values for MS-COCO; the code's class has 4 and 1.
    clip : float
        Probability that is taken off negatives, in [0, 1): those below it count nothing.
    eps : float
        No logarithm is taken of less; between 0 and 1, both excluded.
    detach_focus : bool
        Take the focus as constant in the gradient, as the published training does.

    Examples
    --------
    >>> ASL([3, 1], num_videos=4)(torch.tensor([[0.0, -3.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """

    def __init__(
        self,
        train_counts: Sequence[int] | npt.NDArray[Any],
        num_videos: int,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        eps: float = 1e-8,
        detach_focus: bool = True,
        reduction: str = "sum_classes_mean_batch",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.gamma_neg = in_range("gamma_neg", gamma_neg, 0)
        self.gamma_pos = in_range("gamma_pos", gamma_pos, 0)
        self.clip = in_range("clip", clip, 0, 1, open_end=True)
        self.eps = in_range("eps", eps, np.finfo(np.float32).tiny, 1, open_end=True)
        if not isinstance(detach_focus, bool):
            raise MeidbenchError(f"detach_focus must be True or False, got {detach_focus!r}")
        self.detach_focus = detach_focus

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each side by its share, (B, C)."""
        lowest = float(np.log(self.eps))
        not_p = torch.sigmoid(-logits)
        log_p = functional.logsigmoid(logits).clamp(min=lowest)
        if self.clip:
            not_q = (not_p + self.clip).clamp(max=1)
            log_not_q = not_q.clamp(min=self.eps).log()
        else:
            not_q, log_not_q = not_p, functional.logsigmoid(-logits).clamp(min=lowest)
        positive = self._focus(not_p, self.gamma_pos) * log_p
        negative = self._focus(1 - not_q, self.gamma_neg) * log_not_q
        return -(targets * positive + (1 - targets) * negative)

    def _focus(self, error: torch.Tensor, gamma: float) -> torch.Tensor:
        return focus(error.detach() if self.detach_focus else error, gamma)
