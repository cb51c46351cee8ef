"""The mean of a video's frames and the last layer: what is left when frames are embedded elsewhere."""

from typing import Any

import torch

from meidbench.baselines.aggregators.base import Aggregator, mean_over_frames


class Mean(Aggregator):
    """The last layer on the mean of a video's frames: equations 4 and 12 of MEID (AAAI 2023), after its embedding.

    D C + C parameters (cosine: D C): 2,057,196 for D = 2048, C = 1004. On features as they are stored it is a linear
    probe.

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.

    Examples
    --------
    >>> model = Mean(dim=16, num_classes=5)
    >>> model(torch.rand(2, 7, 16)).shape
    torch.Size([2, 5])
    """

    def __init__(self, dim: int, num_classes: int, **last_layer: Any) -> None:
        super().__init__(dim, num_classes, **last_layer)
        self.classifier = self._last_layer(dim)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits (B, C) of checked features (B, T, D)."""
        logits: torch.Tensor = self.classifier(mean_over_frames(features, mask))
        return logits
