"""The nonlinear classifier of VideoLT: a hidden layer a frame, and the mean of the frames' logits."""

from typing import Any

import torch
from torch import nn

from meidbench.baselines.aggregators.base import Aggregator, mean_over_frames
from meidbench.baselines.losses.base import in_range


class Nonlinear(Aggregator):
    """Linear(D, D), ReLU, dropout and the last layer on each frame; a video's logits are the mean of its frames'.

    Zhang et al., "VideoLT" (ICCV 2021); ``NonlinearClassifier`` of its public code. A linear last layer is applied
    to the mean of the hidden frames, which is the same but for rounding and much less work; a cosine one to each frame.

    D^2 + D + D C + C parameters (cosine: the last C are missing): 6,253,548 for D = 2048, C = 1004.

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.
    early : bool
        Whether to take the mean of the features first.
    dropout : float
        Share of hidden units that are dropped in training.

    Examples
    --------
    >>> model = Nonlinear(dim=16, num_classes=5)
    >>> model(torch.rand(2, 7, 16)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self, dim: int, num_classes: int, *, early: bool = False, dropout: float = 0.5, **last_layer: Any
    ) -> None:
        super().__init__(dim, num_classes, **last_layer)
        self.early = early
        self.hidden = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(in_range("dropout", dropout, 0, 1))
        self.classifier = self._last_layer(dim)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits (B, C) of checked features (B, T, D)."""
        if self.early:
            features = mean_over_frames(features, mask)
        hidden = self.dropout(torch.relu(self.hidden(features)))
        if self.early:
            logits: torch.Tensor = self.classifier(hidden)
            return logits
        if isinstance(self.classifier, nn.Linear):
            logits = self.classifier(mean_over_frames(hidden, mask))
            return logits
        return mean_over_frames(self.classifier(hidden), mask)


class EarlyMean(Nonlinear):
    """``Nonlinear`` on the mean of a video's features: the cheapest baseline, T times less work, same parameters.

    Parameters
    ----------
    dim, num_classes, dropout, classifier, bias_prior
        As in ``Nonlinear``.

    Examples
    --------
    >>> model = EarlyMean(dim=16, num_classes=5).eval()
    >>> features = torch.rand(2, 7, 16)
    >>> torch.allclose(model(features), model(features.mean(dim=1, keepdim=True)), atol=1e-6)
    True
    """

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.5, **last_layer: Any) -> None:
        super().__init__(dim, num_classes, early=True, dropout=dropout, **last_layer)
