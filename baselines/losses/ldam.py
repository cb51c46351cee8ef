"""LDAM: rarer classes need a wider margin; deferred re-weighting (DRW) is added later in training."""

import numpy as np
import torch

from meidbench.baselines.losses.base import Counts, Loss, binary_cross_entropy, effective_number_weights
from meidbench.checks import in_range, one_of, whole_number


class LDAM(Loss):
    """Label-distribution-aware margin loss with deferred re-weighting: w_c bce(s (z - m_c y), y).

    Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019), with one sigmoid per
    class in place of the softmax. The margins are m_c = max_margin (min n / n_c)^(1/4). From ``drw_epoch`` on
    w_c are the class-balanced weights, 1 before. The paper scales the cosine of feature and class vector. VideoLT's
    code has a linear last layer: its logits have no scale to compare margins of 0.5 with, and
    s = 30 saturates the sigmoid. Aggregators with ``classifier="cosine"`` follow the paper.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; every class needs a training video.
    max_margin : float
        Margin of the rarest class.
    scale : float
        s, above 0.
    drw_epoch : int or None
        First epoch with weights; None for never. VideoLT takes 50 of 100 epochs (and fails at epoch 100), the
        paper's code 160 of 200. VideoLT's FrameStack loop never turns them on.
    drw_beta : float
        Of the weights, in [0, 1).
    margins : str
        ``own`` subtracts the margin of each label from its own logit, times the label where it is soft. ``summed`` is
        VideoLT's code: the sum of the margins of all labels of a video is subtracted from each of these labels; labels
        below 1 count in the sum, but nothing is subtracted from them.

    Examples
    --------
    >>> loss = LDAM([16, 1], num_videos=17, scale=1.0)
    >>> loss.with_margins(torch.zeros(1, 2), torch.ones(1, 2))
    tensor([[-0.2500, -0.5000]])
    """

    class_margins: torch.Tensor
    class_weights: torch.Tensor
    _needs_every_class = True

    def __init__(
        self,
        train_counts: Counts,
        num_videos: int,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        drw_epoch: int | None = 50,
        drw_beta: float = 0.9999,
        margins: str = "own",
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.scale = in_range("scale", scale, np.finfo(np.float32).tiny)
        self.drw_epoch = None if drw_epoch is None else whole_number("drw_epoch", drw_epoch)
        self.margins = one_of("margins", margins, ("own", "summed"))
        widest = in_range("max_margin", max_margin, 0)
        beta = in_range("drw_beta", drw_beta, 0, 1, open_end=True)
        self._register_constant("class_margins", widest * (self.train_counts.min() / self.train_counts) ** 0.25)
        self._register_constant("class_weights", effective_number_weights(self.train_counts, beta))

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy beyond the margins, weighted from ``drw_epoch`` on; (B, C)."""
        entropy = binary_cross_entropy(self.scale * self.with_margins(logits, targets), targets)
        if self.drw_epoch is not None and self.epoch >= self.drw_epoch:
            return self.class_weights.to(logits.dtype) * entropy
        return entropy

    def with_margins(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return logits minus the margins of the labels, (B, C), not yet scaled."""
        taken = self.class_margins.to(logits.dtype) * targets
        if self.margins == "summed":
            taken = taken.sum(dim=1, keepdim=True) * (targets >= 1)
        return logits - taken
