"""NetVLAD and NeXtVLAD: frames are assigned to clusters, and summed by cluster."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import Aggregator, FrameBatchNorm, at_least_float32, cluster_sums, normalise
from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError


class NetVLAD(Aggregator):
    """Frames x_t (batch-normalised) are assigned to K clusters, a_t = softmax(BN(W x_t)), and summed by cluster.

    ``residual=False`` is the aggregator called NetVLAD in VideoLT's public code (``models/models.py``,
    ``models/net_module.py``): v_k = sigmoid(g_k) * sum_t a_tk x_t with a learned gate g (K, D) that does not depend on
    the input; clusters have no centres. In Miech et al. (2017) that is the light variant, gated. ``residual=True`` is
    NetVLAD (Arandjelovic et al., CVPR 2016, equation 4): v_k = sum_t a_tk (x_t - c_k) with learned centres c (K, D),
    without a gate.

    Each v_k is divided by its L2 norm, all of them together by theirs; then Linear(K D, H) without bias, batch
    normalisation, ReLU6, last layer. Training needs at least two videos per batch.

    2 D + 2 K D + 2 K + K D H + 2 H + H C + C parameters (cosine: without the last C), for both: 135,515,244
    for D = 2048, C = 1004.

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.
    residual : bool
    clusters, hidden : int
        K and H.

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
        clusters, hidden = whole_number("clusters", clusters, least=1), whole_number("hidden", hidden, least=1)
        self.input_norm = FrameBatchNorm(dim)
        self.assignment = nn.Linear(dim, clusters, bias=False)
        self.assignment_norm = FrameBatchNorm(clusters)
        self.centres, self.gate = centres_or_gate(clusters, dim, residual)
        self.hidden = nn.Linear(clusters * dim, hidden, bias=False)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.classifier = self._last_layer(hidden)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits (B, C) of checked features (B, T, D)."""
        frames = self.input_norm(features, mask)
        shares = torch.softmax(at_least_float32(self.assignment_norm(self.assignment(frames), mask)), dim=2)
        if mask is not None:
            shares = shares * mask[:, :, None]
        descriptor = vlad_descriptor(*cluster_sums(frames, shares), self.centres, self.gate)
        logits: torch.Tensor = self.classifier(functional.relu6(self.hidden_norm(self.hidden(descriptor))))
        return logits


def centres_or_gate(clusters: int, dim: int, residual: bool) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return new centres (K, D) and no gate if ``residual``, otherwise no centres and a new gate (K, D)."""
    if residual:
        # So that centres start about as long as a normalised frame's share: Miech et al. (2017), 1 / sqrt(D).
        return nn.Parameter(torch.randn(clusters, dim) / dim**0.5), None
    return None, nn.Parameter(nn.init.xavier_normal_(torch.empty(clusters, dim)))


def vlad_descriptor(
    sums: torch.Tensor, totals: torch.Tensor, centres: torch.Tensor | None, gate: torch.Tensor | None
) -> torch.Tensor:
    """Return the descriptor (..., K D) of sums (..., K, D) and total weights (..., K) of clusters: see ``NetVLAD``."""
    if centres is not None:
        sums = sums - totals[..., None] * centres
    elif gate is not None:
        sums = sums * torch.sigmoid(gate)
    # Flattened with clusters innermost, as in VideoLT's code, so that its weights fit.
    return normalise(normalise(sums, dim=-1).transpose(-1, -2).flatten(-2), dim=-1)


class NeXtVLAD(Aggregator):
    """Frames are expanded to L D features in G groups; each group of each frame is assigned to K clusters.

    With x_t = W_e frame_t + b_e (L D values, x_tg those of group g), attention s_tg = sigmoid(W_s x_t + b_s)_g and
    shares a_tg = softmax over clusters of BN(W_a x_t)_g: v_k = sum_tg s_tg a_tgk (x_tg - c_k), of M = L D / G values
    each. Lin et al., "NeXtVLAD" (ECCV workshops 2018); github.com/linrongc/youtube-8m, ``nextvlad.py``.

    ``original`` then divides each v_k by its L2 norm; batch normalisation of all M K values, dropout, Linear(M K, H)
    without bias and batch normalisation follow, then a gate that multiplies the result (squeeze and excitation:
    Linear(H, H / R), batch normalisation, ReLU, Linear(H / R, H), sigmoid, no biases), and the last layer. Its batch
    normalisation has PyTorch's constants, not TensorFlow's, and only its centres start on TensorFlow's scale: all
    other weights start on PyTorch's. (All on TensorFlow's were worse in one try.) ``meid_compat`` is as in MEID's
    public code (github.com/abcdvzz/MEID, ``models/models.py``, ``models/net_module.py``), which differs in this:

    ================  ========================  ===================================
    point             ``original``              ``meid_compat``
    ================  ========================  ===================================
    input             unchanged                 batch normalisation
    assignment        without bias              with bias
    its BN            per group and cluster     per index of the frame
    centres at first  scaled by their number    uniform in [0, 1]
    v_k               divided by the L2 norm    divided by the L1 norm
    BN of all v       per value                 one scale and shift for all
    dropout, gate     yes                       none
    after hidden BN   no activation             ReLU6
    ================  ========================  ===================================

    A normalisation per index of the frame fixes the number of frames, and its statistics count padded frames.
    Training needs at least two videos per batch.

    Parameters, with W = L D and P = W (D + 1) + G (W + 1) + W G K + M K + M K H + 2 H + H C + C: P + 2 G K + 2 M K +
    2 H H / R + 2 H / R in ``original``, 45,469,940 for D = 2048, C = 1004; P + 2 D + G K + 2 T + 2 in ``meid_compat``,
    45,145,990 with T = 200 (cosine: without the last C).

    Parameters
    ----------
    dim, num_classes, classifier, bias_prior
        As in ``Aggregator``.
    flavor : str
        ``original`` or ``meid_compat``.
    clusters, expansion, groups, hidden : int
        K, L, G, a divisor of L D, and H.
    dropout, reduction : float and int
        Of ``original`` only; ``reduction`` is R, a divisor of H.
    frames : int, optional
        T, of all videos; for ``meid_compat``, which needs it.

    Examples
    --------
    >>> model = NeXtVLAD(dim=16, num_classes=5, clusters=4, hidden=8)
    >>> model(torch.rand(2, 7, 16)).shape
    torch.Size([2, 5])
    >>> model = NeXtVLAD(dim=16, num_classes=5, clusters=4, hidden=8, flavor="meid_compat", frames=7)
    >>> model(torch.rand(2, 7, 16)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        flavor: str = "original",
        clusters: int = 64,
        expansion: int = 2,
        groups: int = 8,
        hidden: int = 1024,
        dropout: float = 0.5,
        reduction: int = 8,
        frames: int | None = None,
        **last_layer: Any,
    ) -> None:
        super().__init__(dim, num_classes, **last_layer)
        self.flavor = one_of("flavor", flavor, ("original", "meid_compat"))
        self.clusters = whole_number("clusters", clusters, least=1)
        self.groups = whole_number("groups", groups, least=1)
        hidden, wide = whole_number("hidden", hidden, least=1), dim * whole_number("expansion", expansion, least=1)
        if wide % groups:
            raise MeidbenchError(f"groups must divide expansion * dim = {wide}, got {groups}")
        size = wide // groups
        compat = flavor == "meid_compat"
        if compat and frames is None:
            raise MeidbenchError(
                "flavor 'meid_compat' normalises each index of a frame: set the number of frames (frames=...)"
            )
        if frames is not None and not compat:
            raise MeidbenchError("frames is for flavor 'meid_compat'; 'original' takes any number of frames")
        self.frames = None if frames is None else whole_number("frames", frames, least=1)

        self.expand = nn.Linear(dim, wide)
        self.attention = nn.Linear(wide, groups)
        self.hidden = nn.Linear(size * clusters, hidden, bias=False)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.assignment = nn.Linear(wide, groups * clusters, bias=self.frames is not None)
        if self.frames is not None:
            self.input_norm = FrameBatchNorm(dim)
            self.index_norm = nn.BatchNorm1d(self.frames)
            self.centres = nn.Parameter(torch.rand(size, clusters))
            self.vlad_norm = nn.BatchNorm1d(1)
        else:
            self.assignment_norm = FrameBatchNorm(groups * clusters)
            # TensorFlow's variance scaling for (1, M, K): a truncated normal of variance 2 over M, its fan-in.
            self.centres = nn.Parameter(nn.init.trunc_normal_(torch.empty(size, clusters), std=(2.0 / size) ** 0.5))
            self.vlad_norm = nn.BatchNorm1d(size * clusters)
            self.dropout = nn.Dropout(in_range("dropout", dropout, 0, 1))
            self.gate = _make_gate(hidden, reduction)
        self.classifier = self._last_layer(hidden)

    def logits(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute logits (B, C) of checked features (B, T, D)."""
        compat = self.frames is not None
        if compat:
            if features.shape[1] != self.frames:
                raise MeidbenchError(f"this model is for {self.frames} frames per video, got {features.shape[1]}")
            features = self.input_norm(features, mask)
        frames = self.expand(features)
        scores = self.assignment(frames)
        scores = self.index_norm(scores) if compat else self.assignment_norm(scores, mask)
        attention = torch.sigmoid(self.attention(frames))
        if mask is not None:
            attention = attention * mask[:, :, None]
        shares = torch.softmax(at_least_float32(scores).unflatten(2, (self.groups, self.clusters)), dim=3)  # type: ignore[no-untyped-call, unused-ignore]
        shares = (shares * attention[:, :, :, None]).flatten(1, 2)
        parts = frames.unflatten(2, (self.groups, -1)).flatten(1, 2)
        sums, totals = cluster_sums(parts, shares)
        # Flattened with clusters innermost, as in both sources, so that their weights fit.
        sums = sums.transpose(1, 2) - totals[:, None, :] * self.centres
        descriptor = normalise(sums, dim=1, order=1.0 if compat else 2.0).flatten(1)
        normal = self.vlad_norm(descriptor[:, None])[:, 0] if compat else self.dropout(self.vlad_norm(descriptor))
        hidden = self.hidden_norm(self.hidden(normal))
        hidden = functional.relu6(hidden) if compat else hidden * torch.sigmoid(self.gate(hidden))
        logits: torch.Tensor = self.classifier(hidden)
        return logits


def _make_gate(hidden: int, reduction: int) -> nn.Sequential:
    if hidden % whole_number("reduction", reduction, least=1):
        raise MeidbenchError(f"reduction must divide hidden {hidden}, got {reduction}")
    narrow = hidden // reduction
    return nn.Sequential(
        nn.Linear(hidden, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, hidden, bias=False)
    )
