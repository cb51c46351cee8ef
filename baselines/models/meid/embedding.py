"""Frame embedding: from stored features to frames that fit the task (equation 2 of MEID)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from meidbench.baselines.aggregators.base import FrameNorm
from meidbench.baselines.losses.base import one_of

EMBEDDINGS = ("simple", "release")
NORMS = ("ln", "bn")

# Of the wide layer of the authors' code, in multiples of the features.
_WIDER = 8
_EPSILON = 1e-6


class FrameLayerNorm(nn.Module):
    """Layer normalisation of each frame, called as ``FrameNorm`` is.

    Parameters
    ----------
    width : int
    epsilon : float
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise frames (B, N, W)."""
        normal: torch.Tensor = self.norm(frames)
        return normal


def frame_norm(kind: str, width: int, epsilon: float = 1e-5) -> nn.Module:
    """Return the normalisation of frames by name: ``ln`` of each frame, ``bn`` over all frames of a batch."""
    return FrameNorm(width) if one_of("normalisation", kind, NORMS) == "bn" else FrameLayerNorm(width, epsilon)


class SimpleEmbedding(nn.Module):
    """T = ReLU(W Norm(x) + b), frame by frame: equation 2 as the paper words it.

    D^2 + D and 2 D parameters. Weights begin as PyTorch's linear layers do.

    Parameters
    ----------
    dim : int
        D.
    norm : str
        ``ln`` or ``bn``; the paper does not say which.

    Examples
    --------
    >>> SimpleEmbedding(4)(torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, dim: int, norm: str = "ln") -> None:
        super().__init__()
        self.norm = frame_norm(norm, dim)
        self.linear = nn.Linear(dim, dim)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed frames (B, N, D)."""
        return torch.relu(self.linear(self.norm(frames, None)))


class ReleaseEmbedding(nn.Module):
    """The embedding of the authors' code (``models/trans.py``), which the paper does not describe.

    With ``project``, as in expert one: p = LN(W x + b), u = LN(p + LN(p)); without, as in both streams of expert two:
    u = x. Then v = u + MLP(u), with one hidden layer of 8 D and GELU; a convolution over frames, three of them wide
    and of each feature by itself, added to v; in expert one a last normalisation. Linear layers begin with a truncated
    normal of 0.02 and no bias.

    16 D^2 + 13 D parameters; with ``project`` D^2 + 9 D more.

    Parameters
    ----------
    dim : int
        D.
    project : bool
        Of expert one: a linear layer and its normalisations first, layer normalisation last. (The batch normalisation
        that comes last in expert two is ``fuse_norm``.)
    recompute : bool
        Compute the wide layer again in the backward pass instead of keeping it: 16 D numbers less a frame, for about a
        third more time. The results are the same.

    Examples
    --------
    >>> ReleaseEmbedding(4, project=True)(torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, dim: int, *, project: bool, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.project = nn.Linear(dim, dim) if project else None
        if project:
            self.project_norm = nn.LayerNorm(dim)
            self.inner_norm, self.outer_norm = (nn.LayerNorm(dim, eps=_EPSILON) for _ in range(2))
        self.wide, self.narrow = nn.Linear(dim, _WIDER * dim), nn.Linear(_WIDER * dim, dim)
        self.convolution = nn.Conv1d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.last_norm = nn.LayerNorm(dim, eps=_EPSILON) if project else None
        self.apply(begin_as_released)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed frames (B, N, D)."""
        if self.project is not None:
            frames = self.project_norm(self.project(frames))
            frames = self.outer_norm(frames + self.inner_norm(frames))
        frames = frames + self._perceptron(frames)
        over_time = frames.transpose(1, 2)
        frames = (over_time + self.convolution(over_time)).transpose(1, 2)
        return frames if self.last_norm is None else self.last_norm(frames)

    def _perceptron(self, frames: torch.Tensor) -> torch.Tensor:
        if not self.recompute or not torch.is_grad_enabled():
            return self._layers(frames)
        again: Any = checkpoint(self._layers, frames, use_reentrant=False, preserve_rng_state=False)
        return again  # type: ignore[no-any-return]

    def _layers(self, frames: torch.Tensor) -> torch.Tensor:
        narrow: torch.Tensor = self.narrow(functional.gelu(self.wide(frames)))
        return narrow


def begin_as_released(module: nn.Module) -> None:
    """Set a linear layer's weights as the authors' code does: a truncated normal of 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
