"""Aggregators that pool frames: the nonlinear classifier of VideoLT, means, and attention."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import Aggregator, mean_over_frames, split_heads
from meidbench.checks import in_range, whole_number
from meidbench.errors import MeidbenchError


class Nonlinear(Aggregator):
    """Linear(D, D), ReLU, dropout and the last layer on each frame; then the mean of the frames' logits.

    Zhang et al., "VideoLT" (ICCV 2021); ``NonlinearClassifier`` of its public code. A linear last layer is applied
    to the mean of the hidden frames, which is the same except for rounding and much less work; a cosine layer is
    applied to each frame.

    D^2 + D + D C + C parameters (cosine: without the last C): 6,253,548 for D = 2048, C = 1004.

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.
    early : bool
        Whether the mean of the features is taken first.
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
        frames = mean_over_frames(features, mask) if self.early else features
        hidden = self.dropout(torch.relu(self.hidden(frames)))
        if not self.early and not isinstance(self.classifier, nn.Linear):
            return mean_over_frames(self.classifier(hidden), mask)
        logits: torch.Tensor = self.classifier(hidden if self.early else mean_over_frames(hidden, mask))
        return logits


class EarlyMean(Nonlinear):
    """``Nonlinear`` on the mean of a video's features: the cheapest baseline, T times less work, same parameters.

    Examples
    --------
    >>> model = EarlyMean(dim=16, num_classes=5).eval()
    >>> features = torch.rand(2, 7, 16)
    >>> torch.allclose(model(features), model(features.mean(dim=1, keepdim=True)), atol=1e-6)
    True
    """

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.5, **last_layer: Any) -> None:
        super().__init__(dim, num_classes, early=True, dropout=dropout, **last_layer)


class Mean(Aggregator):
    """The last layer on the mean of a video's frames: equations 4 and 12 of MEID (AAAI 2023), after its embedding.

    D C + C parameters (cosine: D C): 2,057,196 for D = 2048, C = 1004. On stored features it is a linear probe. See
    ``Aggregator`` for the parameters.

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


class AttentionPooling(Aggregator):
    """Multi-head attention from a video's mean frame to its frames, and a hidden layer on the result.

    With x_t = LayerNorm(frame t) and m their mean: q = W_q m, k_t = W_k x_t, v_t = W_v x_t, each in ``heads`` parts;
    p = W_o concat(sum_t softmax_t(q . k_t / sqrt(D / heads)) v_t); z = LayerNorm(m + dropout(p)); then Linear(D, D),
    ReLU, dropout, last layer. Scaled dot products are those of Vaswani et al. (2017); the mean as the query follows
    the aggregator of MOVE (Moon et al., AAAI 2023), without its random subsets of frames. Without positions, the order
    of frames makes no difference, and their number alone makes none either.

    5 (D^2 + D) + 4 D + D C + C parameters (cosine: without the last C): 23,047,148 for D = 2048, C = 1004.

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.
    heads : int
        A divisor of D.
    dropout, hidden_dropout : float
        Shares of the attention's result and of hidden units that are dropped in training.

    Examples
    --------
    >>> model = AttentionPooling(dim=16, num_classes=5)
    >>> model(torch.rand(2, 7, 16), lengths=torch.tensor([7, 3])).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        heads: int = 4,
        dropout: float = 0.1,
        hidden_dropout: float = 0.5,
        **last_layer: Any,
    ) -> None:
        super().__init__(dim, num_classes, **last_layer)
        self.heads = whole_number("heads", heads, least=1)
        if dim % heads:
            raise MeidbenchError(f"heads must divide dim {dim}, got {heads}")
        self.frame_norm = nn.LayerNorm(dim)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(in_range("dropout", dropout, 0, 1))
        self.video_norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, dim)
        self.hidden_dropout = nn.Dropout(in_range("hidden_dropout", hidden_dropout, 0, 1))
        self.classifier = self._last_layer(dim)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits (B, C) of checked features (B, T, D)."""
        frames = self.frame_norm(features)
        mean = mean_over_frames(frames, mask)
        gathered = functional.scaled_dot_product_attention(
            split_heads(self.query(mean)[:, None], self.heads),
            split_heads(self.key(frames), self.heads),
            split_heads(self.value(frames), self.heads),
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        video = self.video_norm(mean + self.dropout(self.output(gathered.flatten(1))))
        logits: torch.Tensor = self.classifier(self.hidden_dropout(torch.relu(self.hidden(video))))
        return logits
