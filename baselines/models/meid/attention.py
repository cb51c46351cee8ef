"""Frame attention: how much each frame counts (equation 3 of MEID)."""

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import at_least_float32
from meidbench.baselines.losses.base import one_of, whole_number
from meidbench.baselines.models.meid.embedding import begin_as_released
from meidbench.errors import MeidbenchError

ATTENTIONS = ("frame_mlp", "se_frames", "none")
ACTIVATIONS = ("sigmoid", "softmax", "n_softmax")
ATTENTION_NORMS = ("ln", "none")


class FrameAttention(nn.Module):
    """A (B, N) from frames (B, N, D): two linear layers, then an activation.

    ``frame_mlp`` looks at each frame by itself, A_n = act(w2 ReLU(W1 x_n + b1) + b2): D h + 2 h + 1 parameters, for any
    number of frames. ``se_frames`` is squeeze and excitation over the positions of frames, as in the authors' code:
    s_n = mean over features of x_n, A = act(W2 ReLU(W1 s)), without biases: 2 N floor(N / r) parameters, for N frames.

    Parameters
    ----------
    kind : str
        ``frame_mlp`` or ``se_frames``.
    dim : int
        D.
    frames : int or None
        N; ``se_frames`` needs it.
    activation : str
        ``sigmoid``; ``softmax`` over frames, whose values are about 1 / N; ``n_softmax`` is N times that.
    hidden : int
        h, of ``frame_mlp``.
    reduction : int
        r, of ``se_frames``.
    norm : str
        Of ``frame_mlp``: ``ln`` brings each frame to mean 0 and variance 1 first, without parameters. With ``none``, as
        the paper words it, large features soon give the same weight, 0 or 1, to all frames.

    Examples
    --------
    >>> attention = FrameAttention("frame_mlp", dim=4, frames=None, hidden=8)(torch.rand(2, 3, 4))
    >>> attention.shape, bool(((attention > 0) & (attention < 1)).all())
    (torch.Size([2, 3]), True)
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        frames: int | None,
        *,
        activation: str = "sigmoid",
        hidden: int = 256,
        reduction: int = 3,
        norm: str = "ln",
    ) -> None:
        super().__init__()
        self.kind = one_of("attention", kind, ATTENTIONS[:2])
        self.activation = one_of("attention_act", activation, ACTIVATIONS)
        self.norm = one_of("attention_norm", norm, ATTENTION_NORMS)
        hidden = whole_number("attention_hidden", hidden, least=1)
        reduction = whole_number("attention_reduction", reduction, least=1)
        if self.kind == "frame_mlp":
            self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, 1)
            return
        if frames is None:
            raise MeidbenchError(
                "attention=se_frames is for one number of frames; set frames.train and frames.test alike, or take "
                "attention=frame_mlp"
            )
        narrow = max(1, frames // reduction)
        self.first, self.second = nn.Linear(frames, narrow, bias=False), nn.Linear(narrow, frames, bias=False)
        self.apply(begin_as_released)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute the weights (B, N) of frames (B, N, D), in float32 at least."""
        # In half precision frames that differ little would get the same weight.
        with torch.autocast(frames.device.type, enabled=False):
            return self._activated(self._scores(at_least_float32(frames)))

    def _scores(self, frames: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor
        if self.kind == "frame_mlp":
            if self.norm == "ln":
                frames = functional.layer_norm(frames, frames.shape[2:])
            scores = self.second(torch.relu(self.first(frames))).squeeze(2)
        else:
            if frames.shape[1] != self.first.in_features:
                raise MeidbenchError(
                    f"attention=se_frames is for {self.first.in_features} frames a video, got {frames.shape[1]}"
                )
            scores = self.second(torch.relu(self.first(frames.mean(dim=2))))
        return scores

    def _activated(self, scores: torch.Tensor) -> torch.Tensor:
        if self.activation == "sigmoid":
            return torch.sigmoid(scores)
        weights = torch.softmax(scores, dim=1)
        return weights * weights.shape[1] if self.activation == "n_softmax" else weights
