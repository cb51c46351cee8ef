"""Binary cross-entropy, the loss that every other is measured against."""

import torch

from meidbench.baselines.losses.base import Loss, binary_cross_entropy


class BCE(Loss):
    """Binary cross-entropy of each class on its own: -y log p - (1 - y) log(1 - p).

    ``BCELoss`` of VideoLT's ``ops/losses.py`` (github.com/17Skye17/VideoLT), and equal to it. See ``Loss`` for the
    parameters.

    Examples
    --------
    >>> BCE([3, 1], num_videos=4)(torch.zeros(2, 2), torch.eye(2))
    tensor(0.6931)
    """

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy, (B, C)."""
        return binary_cross_entropy(logits, targets)
