"""NetVLAD: soft assignment of frames to clusters, and what each cluster's frames add up to."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import Aggregator, FrameNorm, at_least_float32, cluster_sums, unit
from meidbench.baselines.losses.base import whole_number


class NetVLAD(Aggregator):
    """Frames x_t (batch-normalised) are assigned to K clusters, a_t = softmax(BN(W x_t)), and summed up by cluster.

    ``residual=False`` is what VideoLT's public code calls NetVLAD (``models/models.py``, ``models/net_module.py``):
    v_k = sigmoid(g_k) * sum_t a_tk x_t with a learned gate g (K, D) that does not depend on the input; no cluster
    has a centre. In Miech et al. (2017) that is the light variant, gated. ``residual=True`` is NetVLAD (Arandjelovic
    et al., CVPR 2016, equation 4): v_k = sum_t a_tk (x_t - c_k) with learned centres c (K, D), and no gate.

    Each v_k is divided by its L2 norm, all of them together by theirs; then Linear(K D, H) without bias, batch
    normalisation, ReLU6, last layer. Training needs at least two videos a batch.

    2 D + 2 K D + 2 K + K D H + 2 H + H C + C parameters (cosine: the last C are missing), for either: 135,515,244
    for D = 2048, C = 1004.

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.
    residual : bool
    clusters : int
        K.
    hidden : int
        H.

    Examples
    --------
    >>> model = NetVLAD(dim=16, num_classes=5, residual=True, clusters=4, hidden=8)
    >>> model(torch.rand(2, 7, 16)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        residual: bool = False,
        clusters: int = 64,
        hidden: int = 1024,
        **last_layer: Any,
    ) -> None:
        super().__init__(dim, num_classes, **last_layer)
        self.residual = residual
        clusters, hidden = whole_number("clusters", clusters, least=1), whole_number("hidden", hidden, least=1)
        self.input_norm = FrameNorm(dim)
        self.assignment = nn.Linear(dim, clusters, bias=False)
        self.assignment_norm = FrameNorm(clusters)
        if residual:
            # So that centres begin about as long as a normalised frame's share: Miech et al., 1 / sqrt(D).
            self.centres = nn.Parameter(torch.randn(clusters, dim) / dim**0.5)
        else:
            self.gate = nn.Parameter(nn.init.xavier_normal_(torch.empty(clusters, dim)))
        self.hidden = nn.Linear(clusters * dim, hidden, bias=False)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.classifier = self._last_layer(hidden)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits (B, C) of checked features (B, T, D)."""
        frames = self.input_norm(features, mask)
        shares = torch.softmax(at_least_float32(self.assignment_norm(self.assignment(frames), mask)), dim=2)
        if mask is not None:
            shares = shares * mask[:, :, None]
        sums, totals = cluster_sums(frames, shares)
        sums = sums - totals[:, :, None] * self.centres if self.residual else sums * torch.sigmoid(self.gate)
        # Flattened with clusters innermost, as in VideoLT's code, so that its weights fit.
        descriptor = unit(unit(sums, dim=2).transpose(1, 2).flatten(1), dim=1)
        logits: torch.Tensor = self.classifier(functional.relu6(self.hidden_norm(self.hidden(descriptor))))
        return logits
