"""MOVE: two aggregators side by side, and in training an expansion of the vicinity of rare classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import (
    FrameBatchNorm,
    at_least_float32,
    check_frames,
    cluster_sums,
    mean_over_frames,
    split_heads,
)
from meidbench.baselines.aggregators.vlad import centres_or_gate, vlad_descriptor
from meidbench.baselines.augmentation import draw_beta, mix
from meidbench.baselines.models.base import Model, ModelInputs, Outputs
from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError

_SMALLEST_ALPHA = 1e-3


class Move(Model):
    """MOVE: Moon, Seong, Heo, "Minority-oriented vicinity expansion with attentive aggregation for video long-tailed
    recognition" (AAAI 2023, arXiv 2211.13471).

    z = ``PrototypeAttention`` (equation 1) beside ``Codebook`` (equations 2 and 3), concatenated (equation 4); then
    Linear to ``hidden``, ReLU, dropout, last layer. In training three steps are added:

    1. With tau_c, how common a class is (equation 7), subsets of frames are drawn whose sizes vary the more the rarer a
       video's classes are (equations 8 and 9), two for each aggregator; each gives an embedding (equation 10): u and v.
    2. z = w u + (1 - w) v, w ~ Beta(2, 2) + 1 (equation 11).
    3. z and labels of two videos are mixed with lam ~ Beta(1, 1), and the labels multiplied by 1 - tau_c + 0.5, at most
       1 (equation 12): ``Outputs.targets``.

    Scoring takes all frames and skips these steps. The defaults follow the paper's equations; the recipe
    ``move-release`` has the switches of the public code (github.com/wjun0830/MOVE, ``VideoLT/MOVE.py`` and
    ``models/models.py``). Training needs two videos per batch, one with ``extrapolation``.

    (A + 1) hidden + (hidden + 1) C parameters beside those of the aggregators; A is the width of z, D + 1024 with
    both: 159,618,156 in all for D = 2048, C = 1004.

    Parameters
    ----------
    inputs : ModelInputs
    aggregation : str
        ``both``, ``attention`` alone or ``codebook`` alone.
    heads, head_width, attention_dropout, dropout
        As in ``PrototypeAttention``.
    clusters, codebook_width, residual, hidden_frames, input_affine
        As in ``Codebook``; ``codebook_width`` is its ``width``.
    hidden : int
        Width of the classifier's hidden layer.
    hidden_dropout : float
        Share of hidden units that are dropped in training.
    extrapolation : bool
        Whether steps 1 and 2 are done. Without them, training takes all frames too.
    least_frames : int
        sigma of equation 9.
    label_rule : str
        As ``rule`` in ``least_frame_counts``.
    keys : str
        The frames that attention uses under extrapolation: ``all``; of a further subset, the ``drawn`` ones or the
        ``others`` (public code; if these are empty, attention weighs all frames equally).
    extrapolation_alpha, interpolation_alpha : float
        Of the Beta distributions of w and lam.
    interpolation : str
        ``calibrated`` as in step 3, ``plain`` without the factor on the labels, or ``none``.
    calibration_bias : float
        gamma of equation 12.
    per_video : bool
        Draw a w and a lam for each video, not one for the batch (public code).

    Raises
    ------
    MeidbenchError
        A parameter is impossible; from a call, shapes do not fit, or labels are missing in training.
    """

    mixes_targets = True
    takes_aggregator = False
    tau: torch.Tensor

    def __init__(
        self,
        inputs: ModelInputs,
        *,
        aggregation: str = "both",
        heads: int = 4,
        head_width: int | None = None,
        attention_dropout: float = 0.1,
        dropout: float = 0.1,
        clusters: int = 64,
        codebook_width: int = 1024,
        residual: bool = True,
        hidden_frames: str = "masked",
        input_affine: bool = True,
        hidden: int = 2048,
        hidden_dropout: float = 0.5,
        extrapolation: bool = True,
        least_frames: int = 3,
        label_rule: str = "mean",
        keys: str = "all",
        extrapolation_alpha: float = 2.0,
        interpolation: str = "calibrated",
        interpolation_alpha: float = 1.0,
        calibration_bias: float = 0.5,
        per_video: bool = False,
    ) -> None:
        super().__init__(inputs)
        one_of("aggregation", aggregation, ("both", "attention", "codebook"))
        hidden = whole_number("hidden", hidden, least=1)
        self.extrapolation, self.per_video = extrapolation, per_video
        self.least_frames = whole_number("least_frames", least_frames, least=1)
        self.label_rule = one_of("label_rule", label_rule, ("mean", "rarest", "commonest"))
        self.keys = one_of("keys", keys, ("all", "drawn", "others"))
        self.interpolation = one_of("interpolation", interpolation, ("calibrated", "plain", "none"))
        self.mixes_targets = interpolation != "none"
        self.extrapolation_alpha = in_range("extrapolation_alpha", extrapolation_alpha, _SMALLEST_ALPHA)
        self.interpolation_alpha = in_range("interpolation_alpha", interpolation_alpha, _SMALLEST_ALPHA)
        self.calibration_bias = in_range("calibration_bias", calibration_bias, 0)
        self.attention: PrototypeAttention | None = None
        self.codebook: Codebook | None = None
        width = 0
        if aggregation != "codebook":
            self.attention = PrototypeAttention(
                inputs.dim, heads=heads, head_width=head_width, attention_dropout=attention_dropout, dropout=dropout
            )
            width += inputs.dim
        if aggregation != "attention":
            self.codebook = Codebook(
                inputs.dim,
                clusters=clusters,
                width=codebook_width,
                residual=residual,
                hidden_frames=hidden_frames,
                input_affine=input_affine,
            )
            width += codebook_width
        self.hidden = nn.Linear(width, hidden)
        self.hidden_dropout = nn.Dropout(in_range("hidden_dropout", hidden_dropout, 0, 1))
        self.classifier = nn.Linear(hidden, inputs.num_classes)
        # Not persistent: it follows from the split, and a checkpoint need not repeat it.
        self.register_buffer("tau", commonness(inputs.train_counts), persistent=False)

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits; see ``Model``. Motion is not used."""
        frames = check_frames(self, features, self.inputs.dim)
        size = len(frames)
        if not self.training or not (self.extrapolation or self.mixes_targets):
            return Outputs(self._classify(self._embed(frames)[:, 0]))
        if targets is None or targets.shape != (size, self.inputs.num_classes):
            got = None if targets is None else tuple(targets.shape)
            raise MeidbenchError(f"MOVE needs labels ({size}, {self.inputs.num_classes}) in training, got {got}")
        if self.extrapolation:
            first, second = self._embed_two_views(frames, targets).unbind(dim=1)
            weights = 1 + draw_beta(self.extrapolation_alpha, size if self.per_video else 1).float()
            embedding = extrapolate(first, second, weights.to(frames.device))
        else:
            embedding = self._embed(frames)[:, 0]
        if self.interpolation == "none":
            return Outputs(self._classify(embedding))
        partners = torch.randperm(size).to(frames.device)
        own = draw_beta(self.interpolation_alpha, size if self.per_video else 1).float()
        shares = (1 - own).expand(size).to(frames.device)
        soft = mix(targets if targets.dtype.is_floating_point else targets.to(frames.dtype), partners, shares)
        if self.interpolation == "calibrated":
            soft = calibrate_labels(soft, self.tau, self.calibration_bias)
        return Outputs(self._classify(mix(embedding, partners, shares)), targets=soft)

    def _embed_two_views(self, frames: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute embeddings (B, 2, A) of two subsets of the frames, drawn for each aggregator by itself."""
        length = frames.shape[1]
        numbers = least_frame_counts(targets, self.tau, length, self.least_frames, self.label_rule)
        for_prototypes = for_codebook = keys = None
        if self.attention is not None:
            for_prototypes = draw_frames(numbers, length, 2)
            if self.keys != "all":
                further = draw_frames(numbers, length, 1)[:, 0]
                keys = further if self.keys == "drawn" else ~further
        if self.codebook is not None:
            for_codebook = draw_frames(numbers, length, 2)
        return self._embed(frames, for_prototypes, keys, for_codebook)

    def _embed(
        self,
        frames: torch.Tensor,
        for_prototypes: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
        for_codebook: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute embeddings (B, Q, A); A is the sum of the widths of both aggregators."""
        parts = []
        if self.attention is not None:
            parts.append(self.attention(frames, for_prototypes, keys))
        if self.codebook is not None:
            parts.append(self.codebook(frames, for_codebook))
        return torch.cat(parts, dim=2)

    def _classify(self, embedding: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.hidden_dropout(torch.relu(self.hidden(embedding))))
        return logits


class PrototypeAttention(nn.Module):
    """Multi-head attention from a mean of a video's frames to its frames (MOVE, equation 1, with Q from Pool(x)).

    With m the mean of some or all frames x_t: q = W_q m, k_t = W_k x_t, v_t = W_v x_t, each in h parts of width w;
    LayerNorm(m + dropout(W_o concat(sum_t dropout(softmax_t(q . k_t / sqrt(w))) v_t))). Only the norm has a bias.

    4 h w D + 2 D parameters: 16,781,312 for D = 2048.

    Parameters
    ----------
    dim, heads : int
        D and h.
    head_width : int or None
        w; None is D / h, and h must divide D.
    attention_dropout, dropout : float
        Shares of the attention's weights and of its result that are dropped in training.

    Examples
    --------
    >>> PrototypeAttention(dim=16)(torch.rand(2, 7, 16)).shape
    torch.Size([2, 1, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_width: int | None = None,
        attention_dropout: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.heads = whole_number("heads", heads, least=1)
        if head_width is None and dim % heads:
            raise MeidbenchError(f"heads must divide the features' width {dim}, got {heads}; or set head_width")
        self.head_width = dim // heads if head_width is None else whole_number("head_width", head_width, least=1)
        inner = self.heads * self.head_width
        self.query, self.key, self.value = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, dim, bias=False)
        self.attention_dropout = nn.Dropout(in_range("attention_dropout", attention_dropout, 0, 1))
        self.dropout = nn.Dropout(in_range("dropout", dropout, 0, 1))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self, frames: torch.Tensor, drawn: torch.Tensor | None = None, keys: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute an embedding for each prototype, (B, Q, D), from frames (B, T, D).

        A prototype is the mean of the frames that ``drawn``, (B, Q, T) bool, has for it, at least one; by default there
        is one prototype, of all frames. Attention uses the frames in ``keys``, (B, T) bool; by default, and where a
        video has none, all frames; in the latter case it weighs them equally.
        """
        if drawn is None:
            prototypes = mean_over_frames(frames, None)[:, None]
        else:
            sums, numbers = cluster_sums(frames, drawn.transpose(1, 2))
            prototypes = sums / numbers[:, :, None]
        key, value = split_heads(self.key(frames), self.heads), split_heads(self.value(frames), self.heads)
        query = split_heads(self.query(prototypes), self.heads)
        scores = at_least_float32(query @ key.transpose(2, 3)) / self.head_width**0.5
        if keys is not None:
            # The lowest number and not infinity: where all frames are hidden, all get the same weight.
            scores = scores.masked_fill(~keys[:, None, None, :], torch.finfo(scores.dtype).min)
        gathered = self.attention_dropout(torch.softmax(scores, dim=3)).to(value.dtype) @ value
        embedding: torch.Tensor = self.norm(
            prototypes + self.dropout(self.output(gathered.transpose(1, 2).flatten(2))).to(prototypes.dtype)
        )
        return embedding


class Codebook(nn.Module):
    """Sums of frames by cluster, as in NetVLAD (MOVE, equations 2, 3 and 10), and a layer after them.

    With x_t batch-normalised: rho_t = softmax(BN(W x_t)) over K clusters; with ``residual``
    v_k = sum_t m_t rho_tk (x_t - mu_k), without it v_k = sigmoid(g_k) * sum_t m_t rho_tk x_t, where m_t is 1 for drawn
    frames and 0 for others. Each v_k is divided by its L2 norm, all together by theirs; then
    Linear(K D, H) without bias, batch normalisation, ReLU6. See ``meidbench.baselines.aggregators.vlad.NetVLAD``.

    2 D + 2 K D + 2 K + K D H + 2 H parameters, for both, without the first 2 D if not ``input_affine``: 134,486,144
    for D = 2048.

    Parameters
    ----------
    dim, clusters, width : int
        D, K and H.
    residual : bool
        As in the paper's equations; the public code has the gated form.
    hidden_frames : str
        Frames that are not drawn are ``masked``, left out of the sums (equation 10), or ``zeroed`` before they are
        assigned, so that they count in the statistics of the second batch normalisation (public code).
    input_affine : bool
        Whether the first batch normalisation scales and shifts; in the public code its scale and shift get no gradient.

    Examples
    --------
    >>> Codebook(dim=16, clusters=4, width=8)(torch.rand(2, 7, 16)).shape
    torch.Size([2, 1, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        clusters: int = 64,
        width: int = 1024,
        residual: bool = True,
        hidden_frames: str = "masked",
        input_affine: bool = True,
    ) -> None:
        super().__init__()
        clusters, width = whole_number("clusters", clusters, least=1), whole_number("codebook_width", width, least=1)
        self.hidden_frames = one_of("hidden_frames", hidden_frames, ("masked", "zeroed"))
        self.input_norm = FrameBatchNorm(dim)
        if not input_affine:
            self.input_norm.norm = nn.BatchNorm1d(dim, affine=False)
        self.assignment = nn.Linear(dim, clusters, bias=False)
        self.assignment_norm = FrameBatchNorm(clusters)
        self.centres, self.gate = centres_or_gate(clusters, dim, residual)
        self.output = nn.Linear(clusters * dim, width, bias=False)
        self.output_norm = nn.BatchNorm1d(width)

    def forward(self, frames: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
        """Compute an embedding for each subset of frames (B, T, D), (B, Q, H).

        The subsets are ``drawn``, (B, Q, T) bool; by default the one subset has all frames.
        """
        frames = self.input_norm(frames, None)
        if drawn is None:
            sums, totals = cluster_sums(frames, self._shares(frames))
        elif self.hidden_frames == "zeroed":
            kept = (frames[:, None] * drawn[:, :, :, None]).flatten(0, 1)
            sums, totals = cluster_sums(kept, self._shares(kept) * drawn.flatten(0, 1)[:, :, None])
        else:
            # Each frame is assigned once, for all subsets.
            shares = self._shares(frames)[:, :, None, :] * drawn.transpose(1, 2)[:, :, :, None]
            sums, totals = cluster_sums(frames, shares.flatten(2))
        by_subset = (len(frames), 1 if drawn is None else drawn.shape[1], self.assignment.out_features)
        descriptor = vlad_descriptor(sums.view(*by_subset, -1), totals.view(by_subset), self.centres, self.gate)
        rows = functional.relu6(self.output_norm(self.output(descriptor).flatten(0, 1)))
        embedding: torch.Tensor = rows.view(*descriptor.shape[:2], -1)
        return embedding

    def _shares(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.softmax(at_least_float32(self.assignment_norm(self.assignment(frames), None)), dim=2)


def commonness(train_counts: Sequence[int] | npt.NDArray[Any]) -> torch.Tensor:
    """Return tau, (C,): how common each class is, from 0 for the rarest to 1 for the commonest (MOVE, equation 7).

    tau_c = (n_c - min n) / (max n - min n) of the training counts (C,), 0 for each class if all have the same count:
    that does not change their labels.

    Examples
    --------
    >>> commonness([5, 10, 25])
    tensor([0.0000, 0.2500, 1.0000])
    """
    counts = np.asarray(train_counts, dtype=np.float64)
    if counts.ndim != 1 or not len(counts):
        raise MeidbenchError(f"train_counts must be one number per class, got shape {counts.shape}")
    spread = counts.max() - counts.min()
    return torch.as_tensor((counts - counts.min()) / (spread or 1.0), dtype=torch.float32)


def least_frame_counts(
    targets: torch.Tensor, tau: torch.Tensor, frames: int, least: int, rule: str = "mean"
) -> torch.Tensor:
    """Return the least number of frames to draw from each video, (B,) int64: the lower bound in MOVE's equation 9.

    The bound of a class is max(tau_c T, least), with T frames; ``least`` is sigma of the paper. The bound of a video
    with several labels (B, C), which the equation does not cover, is the ``mean`` of those of its classes, as in the
    public code, the least (``rarest``) or the greatest (``commonest``), truncated to a whole number and at most T. A
    video without a label has no rare class: its bound is T.

    Examples
    --------
    >>> targets, tau = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 1.0])
    >>> least_frame_counts(targets, tau, frames=60, least=3)
    tensor([ 3, 31, 60])
    """
    has = targets > 0
    bounds = (tau * frames).clamp(min=least).expand(targets.shape)
    if rule == "mean":
        numbers = (bounds * has).sum(dim=1) / has.sum(dim=1)
    elif rule == "rarest":
        numbers = bounds.masked_fill(~has, torch.inf).amin(dim=1)
    else:
        numbers = bounds.masked_fill(~has, -torch.inf).amax(dim=1)
    numbers = numbers.where(has.any(dim=1), numbers.new_tensor(float(frames)))
    return numbers.clamp(max=frames).floor().long()


def draw_frames(numbers: torch.Tensor, frames: int, draws: int) -> torch.Tensor:
    """Draw subsets of frames, (B, draws, T) bool, each of a size from U{number, ..., T} (MOVE, equations 8 and 9).

    ``numbers`` are the least sizes, int64, (B,), 1 to T. The draws come from torch's global generator of the CPU: they
    are the same on every device, and their number depends on the shapes alone.

    Examples
    --------
    >>> draw_frames(torch.tensor([2, 4]), frames=4, draws=3).sum(dim=2).amin(dim=1) >= torch.tensor([2, 4])
    tensor([True, True])
    """
    videos, device = len(numbers), numbers.device
    shares, order = torch.rand(videos, draws).to(device), torch.rand(videos, draws, frames).argsort(dim=2).to(device)
    least = numbers[:, None]
    # A share just below 1 may be rounded up when it is multiplied.
    sizes = (least + (shares * (frames - least + 1)).floor().long()).clamp(max=frames)
    # A random permutation's places below n are n frames at random.
    return order < sizes[:, :, None]


def extrapolate(first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return w u + (1 - w) v of two views u and v of each video, (B, E), with weights in [1, 2]: MOVE, equation 11.

    The result is on the line from v through u, beyond u by w - 1 times their distance. The weights are (B,) or (1,).

    Examples
    --------
    >>> extrapolate(torch.tensor([[2.0]]), torch.tensor([[5.0]]), torch.tensor([1.5]))
    tensor([[0.5000]])
    """
    share = weights.to(first.dtype)[:, None]
    return share * first + (1 - share) * second


def calibrate_labels(targets: torch.Tensor, tau: torch.Tensor, bias: float) -> torch.Tensor:
    """Return labels y_c (1 - tau_c + bias), at most 1: the labels of MOVE's equation 12, from mixed labels (B, C).

    ``bias`` is gamma of the paper: the factor on a label of the commonest class. See ``commonness`` for tau, (C,).

    Examples
    --------
    >>> calibrate_labels(torch.tensor([[0.75, 0.75, 0.75]]), torch.tensor([0.0, 0.5, 1.0]), bias=0.5)
    tensor([[1.0000, 0.7500, 0.3750]])
    """
    return (targets * (1 - tau + bias).to(targets.dtype)).clamp(max=1)
