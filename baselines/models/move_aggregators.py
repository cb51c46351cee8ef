"""MOVE's two aggregators: attention asked by a prototype of the video, and a codebook."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import FrameNorm, at_least_float32, cluster_sums, mean_over_frames, unit
from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError

HIDDEN_FRAMES = ("masked", "zeroed")


class PrototypeAttention(nn.Module):
    """Multi-head attention from a mean of a video's frames to its frames (MOVE, equation 1, with Q from Pool(x)).

    With m the mean of some or all frames x_t: q = W_q m, k_t = W_k x_t, v_t = W_v x_t, each in h parts of width w;
    LayerNorm(m + dropout(W_o concat(sum_t dropout(softmax_t(q . k_t / sqrt(w))) v_t))). Only the norm has a bias.

    4 h w D + 2 D parameters: 16,781,312 for D = 2048.

    Parameters
    ----------
    dim : int
        D.
    heads : int
        h.
    head_width : int or None
        w; D / h where left out, which h must divide then.
    attention_dropout, dropout : float
        Shares dropped in training of the attention's weights, and of what it gathered.

    Raises
    ------
    MeidbenchError
        A parameter makes no sense.

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
        self, frames: torch.Tensor, drawn: torch.Tensor | None = None, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute an embedding for each prototype, (B, Q, D).

        Parameters
        ----------
        frames : Tensor, (B, T, D)
        drawn : Tensor of bool, (B, Q, T), optional
            Of which frames each prototype is the mean, at least one each; of all, Q = 1, where left out.
        seen : Tensor of bool, (B, T), optional
            Which frames attention may look at; at all where left out, and equally at all where there is none.
        """
        if drawn is None:
            prototypes = mean_over_frames(frames, None)[:, None]
        else:
            sums, numbers = cluster_sums(frames, drawn.transpose(1, 2))
            prototypes = sums / numbers[:, :, None]
        keys, values = self._in_parts(self.key(frames)), self._in_parts(self.value(frames))
        scores = at_least_float32(self._in_parts(self.query(prototypes)) @ keys.transpose(2, 3)) / self.head_width**0.5
        if seen is not None:
            # The lowest number and not infinity: where all are hidden, they are as good as one another.
            scores = scores.masked_fill(~seen[:, None, None, :], torch.finfo(scores.dtype).min)
        gathered = self.attention_dropout(torch.softmax(scores, dim=3)).to(values.dtype) @ values
        embedding: torch.Tensor = self.norm(
            prototypes + self.dropout(self.output(gathered.transpose(1, 2).flatten(2))).to(prototypes.dtype)
        )
        return embedding

    def _in_parts(self, rows: torch.Tensor) -> torch.Tensor:
        """Cut (B, R, h w) into (B, h, R, w)."""
        parts: torch.Tensor = rows.unflatten(2, (self.heads, -1))  # type: ignore[no-untyped-call, unused-ignore]
        return parts.transpose(1, 2)


class Codebook(nn.Module):
    """Sums of frames by cluster, as NetVLAD makes them (MOVE, equations 2, 3 and 10), and a layer on top.

    With x_t batch-normalised: rho_t = softmax(BN(W x_t)) over K clusters; with ``residual``
    v_k = sum_t m_t rho_tk (x_t - mu_k), without it v_k = sigmoid(g_k) * sum_t m_t rho_tk x_t, where m_t is 1 for frames
    that were drawn and 0 for others. Each v_k is divided by its L2 norm, all together by theirs; then
    Linear(K D, H) without bias, batch normalisation, ReLU6. See ``meidbench.baselines.aggregators.vlad.NetVLAD``.

    2 D + 2 K D + 2 K + K D H + 2 H parameters, for either, the first 2 D missing without ``input_affine``: 134,486,144
    for D = 2048.

    Parameters
    ----------
    dim : int
        D.
    clusters, width : int
        K and H.
    residual : bool
        As the paper's equations have it; the public code has the gated form.
    hidden_frames : str
        What becomes of frames that were not drawn: ``masked``, left out of the sums (equation 10), or ``zeroed`` before
        they are assigned, so that they count in the statistics of the second batch normalisation (public code).
    input_affine : bool
        Whether the first batch normalisation scales and shifts; in the public code no gradient reaches that.

    Raises
    ------
    MeidbenchError
        A parameter makes no sense.

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
        self.residual = residual
        self.hidden_frames = one_of("hidden_frames", hidden_frames, HIDDEN_FRAMES)
        self.input_norm = FrameNorm(dim)
        if not input_affine:
            self.input_norm.norm = nn.BatchNorm1d(dim, affine=False)
        self.assignment = nn.Linear(dim, clusters, bias=False)
        self.assignment_norm = FrameNorm(clusters)
        if residual:
            # So that centres begin about as long as a normalised frame's share: Miech et al. (2017), 1 / sqrt(D).
            self.centres = nn.Parameter(torch.randn(clusters, dim) / dim**0.5)
        else:
            self.gate = nn.Parameter(nn.init.xavier_normal_(torch.empty(clusters, dim)))
        self.output = nn.Linear(clusters * dim, width, bias=False)
        self.output_norm = nn.BatchNorm1d(width)

    def forward(self, frames: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
        """Compute an embedding for each subset of frames, (B, Q, H).

        Parameters
        ----------
        frames : Tensor, (B, T, D)
        drawn : Tensor of bool, (B, Q, T), optional
            The frames of each subset; all, Q = 1, where left out.
        """
        frames = self.input_norm(frames, None)
        if drawn is None:
            sums, totals = cluster_sums(frames, self._shares(frames))
            sums, totals = sums[:, None], totals[:, None]
        elif self.hidden_frames == "zeroed":
            kept = (frames[:, None] * drawn[:, :, :, None]).flatten(0, 1)
            shares = self._shares(kept) * drawn.flatten(0, 1)[:, :, None]
            sums, totals = self._by_subset(cluster_sums(kept, shares), drawn.shape[:2])
        else:
            # Each frame is assigned once, for all subsets.
            shares = self._shares(frames)[:, :, None, :] * drawn.transpose(1, 2)[:, :, :, None]
            sums, totals = self._by_subset(cluster_sums(frames, shares.flatten(2)), drawn.shape[:2])
        sums = sums - totals[..., None] * self.centres if self.residual else sums * torch.sigmoid(self.gate)
        # Flattened with clusters innermost, as in VideoLT's code, so that its weights fit.
        descriptor = unit(unit(sums, dim=3).transpose(2, 3).flatten(2), dim=2)
        rows = functional.relu6(self.output_norm(self.output(descriptor).flatten(0, 1)))
        embedding: torch.Tensor = rows.view(*descriptor.shape[:2], -1)
        return embedding

    def _shares(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.softmax(at_least_float32(self.assignment_norm(self.assignment(frames), None)), dim=2)

    def _by_subset(self, summed: tuple[torch.Tensor, torch.Tensor], shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
        clusters, width = self.assignment.out_features, self.assignment.in_features
        return summed[0].view(*shape, clusters, width), summed[1].view(*shape, clusters)
