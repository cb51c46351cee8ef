"""The switches of MEID's experts, and their parts: embedding, attention, fusion, weights of complementary frames."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from meidbench.baselines.aggregators.base import FrameBatchNorm, at_least_float32
from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError

SMALLEST_BETA = 1e-6


@dataclass(frozen=True, kw_only=True)
class ExpertSwitches:
    """The switches of both experts. Each is an ambiguity of the paper or a difference to the authors' code.

    The defaults follow the wording of the paper; the values of the code are those of the recipe ``meid_one-release``.

    Attributes
    ----------
    embedding : str
        ``simple`` (equation 2) or ``release``; see ``SimpleEmbedding`` and ``ReleaseEmbedding``.
    embedding_norm : str
        ``ln`` or ``bn``: the normalisation of equation 2, which the paper does not name; with ``release``, that of X.
    attention : str
        ``frame_mlp``, ``se_frames`` or ``none``; see ``FrameAttention``.
    attention_act : str
        ``sigmoid``; ``softmax`` over frames, with values of about 1 / N; ``n_softmax`` is N times that.
    attention_hidden, attention_reduction : int
        h of ``frame_mlp`` and r of ``se_frames``.
    attention_norm : str
        Of ``frame_mlp``: ``ln`` first gives each frame mean 0 and variance 1, without parameters. With ``none``, as
        the paper words it, large features soon give the same weight, 0 or 1, to all frames.
    pool : str
        The aggregator's mean over frames becomes the ``mean`` of T * A, its ``sum``, or its ``weighted_mean``: the sum
        divided by that of A.
    distill_weight : float
        lambda, at least 0; with 0 the necks are left out.
    neck_out : int or None
        Units d of a neck; None is C.
    neck_mask : str
        ``input``: a neck takes only its group's logits (the same as setting the others to 0); ``output``: it takes all
        logits and keeps its group's units, so that d must be C; ``none``: it takes and keeps all.
    neck_act : str
        ``none``, or ``lrelu`` with a slope of 0.2.
    neck_norm : str
        ``none``, or ``l2``: each video's units have length 1.
    distill_var : str
        ``batch``: variances over the videos of a micro-batch, (d,); ``unit``: over the units of a video, (B,); ``all``:
        over both. The divisor is the number of values, not one less. A micro-batch of one video has no variance over
        videos, and no penalty.
    distill_norm : str
        ``rms``: the 2-norm divided by the root of the number of variances, so that it does not grow with the batch;
        ``l2``: the 2-norm; ``mse``: the mean square; ``abs``: the mean absolute difference.
    distill_detach_head : bool
        Let no gradient through the head's side; its neck then keeps its initial weights.
    distill_medium : str
        Whether medium classes are ``excluded``, ``with_head`` or ``with_tail``.
    recompute : bool
        Compute the wide layer of ``release`` again in the backward pass instead of keeping it: this saves 16 D numbers
        per frame, for about a third more time. The results are the same.

    Raises
    ------
    MeidbenchError
        A switch is unknown, or contradicts another.
    """

    embedding: str = "simple"
    embedding_norm: str = "ln"
    attention: str = "frame_mlp"
    attention_act: str = "sigmoid"
    attention_hidden: int = 256
    attention_reduction: int = 3
    attention_norm: str = "ln"
    pool: str = "mean"
    distill_weight: float = 0.1
    neck_out: int | None = None
    neck_mask: str = "input"
    neck_act: str = "none"
    neck_norm: str = "none"
    distill_var: str = "batch"
    distill_norm: str = "rms"
    distill_detach_head: bool = False
    distill_medium: str = "excluded"
    recompute: bool = False

    # Checked whether a switch is in use or not.
    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "embedding": ("simple", "release"),
        "embedding_norm": ("ln", "bn"),
        "attention": ("frame_mlp", "se_frames", "none"),
        "attention_act": ("sigmoid", "softmax", "n_softmax"),
        "attention_norm": ("ln", "none"),
        "pool": ("mean", "sum", "weighted_mean"),
        "neck_mask": ("input", "output", "none"),
        "neck_act": ("none", "lrelu"),
        "neck_norm": ("none", "l2"),
        "distill_var": ("batch", "unit", "all"),
        "distill_norm": ("rms", "l2", "mse", "abs"),
        "distill_medium": ("excluded", "with_head", "with_tail"),
    }

    def __post_init__(self) -> None:
        for name, known in self._known.items():
            one_of(name, getattr(self, name), known)
        in_range("distill_weight", self.distill_weight, 0)
        if self.attention == "none" and self.pool == "weighted_mean":
            raise MeidbenchError("pool=weighted_mean divides by the attention; it needs an attention, not none")


class FrameLayerNorm(nn.Module):
    """Layer normalisation of each frame, called as ``FrameBatchNorm`` is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise frames (B, N, W)."""
        normal: torch.Tensor = self.norm(frames)
        return normal


def frame_norm(kind: str, width: int) -> nn.Module:
    """Return the normalisation of frames by name: ``ln`` of each frame, ``bn`` over all frames of a batch."""
    return FrameBatchNorm(width) if kind == "bn" else FrameLayerNorm(width)


class SimpleEmbedding(nn.Module):
    """T = ReLU(W Norm(x) + b), frame by frame: equation 2 as the paper words it.

    D^2 + D and 2 D parameters. Weights start as those of PyTorch's linear layers. ``norm`` is ``ln`` or ``bn``.

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
    u = x. Then v = u + MLP(u), with one hidden layer of 8 D and GELU; a depthwise convolution over three frames is
    added to v; expert one has a last normalisation. The weights of linear layers start with a truncated normal of
    0.02, their biases at 0.

    16 D^2 + 13 D parameters; with ``project`` D^2 + 9 D more. (The batch normalisation that comes last in expert two is
    ``fuse_norm``.) See ``ExpertSwitches`` for ``recompute``.

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
            self.inner_norm, self.outer_norm = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.wide, self.narrow = nn.Linear(dim, 8 * dim), nn.Linear(8 * dim, dim)
        self.convolution = nn.Conv1d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.last_norm = nn.LayerNorm(dim, eps=1e-6) if project else None
        self.apply(initialise_as_released)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed frames (B, N, D)."""
        if self.project is not None:
            frames = self.project_norm(self.project(frames))
            frames = self.outer_norm(frames + self.inner_norm(frames))
        if self.recompute and torch.is_grad_enabled():
            hidden = checkpoint(self._perceptron, frames, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = self._perceptron(frames)
        frames = frames + hidden
        over_time = frames.transpose(1, 2)
        frames = (over_time + self.convolution(over_time)).transpose(1, 2)
        return frames if self.last_norm is None else self.last_norm(frames)

    def _perceptron(self, frames: torch.Tensor) -> Any:
        return self.narrow(functional.gelu(self.wide(frames)))


def make_embedding(dim: int, switches: ExpertSwitches, *, project: bool) -> nn.Module:
    """Make the embedding of the switches; ``project`` as in ``ReleaseEmbedding``."""
    if switches.embedding == "release":
        return ReleaseEmbedding(dim, project=project, recompute=switches.recompute)
    return SimpleEmbedding(dim, switches.embedding_norm)


def initialise_as_released(module: nn.Module, keep_bias: bool = False) -> None:
    """Set a linear layer's weights as the authors' code does: a truncated normal of 0.02, bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None and not keep_bias:
            nn.init.zeros_(module.bias)


class FrameAttention(nn.Module):
    """A (B, N) from frames (B, N, D): two linear layers, then an activation.

    ``frame_mlp`` computes the weight of each frame from that frame alone, A_n = act(w2 ReLU(W1 x_n + b1) + b2):
    D h + 2 h + 1 parameters, for any number of frames. ``se_frames`` is squeeze and excitation over the positions of
    frames, as in the authors' code: s_n = mean over features of x_n, A = act(W2 ReLU(W1 s)), without biases:
    2 N floor(N / r) parameters, for N frames.

    Parameters
    ----------
    dim, frames : int
        D and N; N may be None for ``frame_mlp``.
    switches : ExpertSwitches
        Those that begin with ``attention``.

    Examples
    --------
    >>> attention = FrameAttention(4, None, ExpertSwitches(attention_hidden=8))(torch.rand(2, 3, 4))
    >>> attention.shape, bool(((attention > 0) & (attention < 1)).all())
    (torch.Size([2, 3]), True)
    """

    def __init__(self, dim: int, frames: int | None, switches: ExpertSwitches) -> None:
        super().__init__()
        self.switches = switches
        hidden = whole_number("attention_hidden", switches.attention_hidden, least=1)
        reduction = whole_number("attention_reduction", switches.attention_reduction, least=1)
        if switches.attention == "frame_mlp":
            self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, 1)
            return
        frames = _require_frames(frames, "attention=se_frames", "attention=frame_mlp")
        narrow = max(1, frames // reduction)
        self.first, self.second = nn.Linear(frames, narrow, bias=False), nn.Linear(narrow, frames, bias=False)
        self.apply(initialise_as_released)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute the weights (B, N) of frames (B, N, D), in float32 at least."""
        # In half precision, frames that differ little would get the same weight.
        with torch.autocast(frames.device.type, enabled=False):
            frames = at_least_float32(frames)
            if self.switches.attention == "frame_mlp":
                if self.switches.attention_norm == "ln":
                    frames = functional.layer_norm(frames, frames.shape[2:])
                scores: torch.Tensor = self.second(torch.relu(self.first(frames))).squeeze(2)
            elif frames.shape[1] != self.first.in_features:
                raise MeidbenchError(
                    f"attention=se_frames is for {self.first.in_features} frames per video, got {frames.shape[1]}"
                )
            else:
                scores = self.second(torch.relu(self.first(frames.mean(dim=2))))
            if self.switches.attention_act == "sigmoid":
                return torch.sigmoid(scores)
            weights = torch.softmax(scores, dim=1)
            return weights * weights.shape[1] if self.switches.attention_act == "n_softmax" else weights


class Fusion(nn.Module):
    """X_F = Linear([X_C ; X_M]), equation 11, from two streams (B, N, D) to one.

    Along the axis ``feature``: from 2 D features of a frame to D, 2 D^2 + D parameters; along ``frame``, as in the
    authors' code: from the 2 N frames of a video to N, the same for each feature, 2 N^2 + N parameters, for N frames.

    Examples
    --------
    >>> Fusion("frame", dim=4, frames=3)(torch.rand(2, 3, 4), torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, axis: str, dim: int, frames: int | None) -> None:
        super().__init__()
        self.axis = axis
        if axis == "feature":
            self.linear = nn.Linear(2 * dim, dim)
            return
        frames = _require_frames(frames, "fuse_axis=frame", "fuse_axis=feature")
        self.linear = nn.Linear(2 * frames, frames)
        self.apply(initialise_as_released)

    def forward(self, complementary: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Fuse two streams (B, N, D)."""
        if self.axis == "feature":
            fused: torch.Tensor = self.linear(torch.cat([complementary, motion], dim=2))
            return fused
        if 2 * complementary.shape[1] != self.linear.in_features:
            raise MeidbenchError(
                f"fuse_axis=frame is for {self.linear.out_features} frames per video, got {complementary.shape[1]}"
            )
        fused = self.linear(torch.cat([complementary, motion], dim=1).transpose(1, 2))
        return fused.transpose(1, 2)


def _require_frames(frames: int | None, switch: str, instead: str) -> int:
    if frames is None:
        raise MeidbenchError(
            f"{switch} is for one number of frames; set frames.train and frames.test alike, or take {instead}"
        )
    return frames


class Complement(nn.Module):
    """X_F from the frames X, their weights R and the motion X_M; X_C alone without motion.

    Parameters
    ----------
    dim, frames : int
        D and N; None if N differs between videos.
    switches : ExpertSwitches
        Those of the embedding.
    has_motion : bool
    apply, share, fuse_axis, fuse_stage, fuse_norm
        ``selection_apply``, ``share``, ``fuse_axis``, ``fuse_stage`` and ``fuse_norm`` of ``ExpertTwo``.

    Examples
    --------
    >>> frames = torch.rand(2, 3, 4)
    >>> [fused] = Complement(4, 3, ExpertSwitches(), has_motion=True)(frames, torch.ones(2, 3), frames, nn.Identity())
    >>> fused.shape
    torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        dim: int,
        frames: int | None,
        switches: ExpertSwitches,
        *,
        has_motion: bool,
        apply: str = "output",
        share: str = "none",
        fuse_axis: str = "feature",
        fuse_stage: str = "medium",
        fuse_norm: str = "none",
    ) -> None:
        super().__init__()
        self.apply_to, self.stage = apply, fuse_stage
        two_streams = has_motion and self.stage != "early"
        self.embed_frames = make_embedding(dim, switches, project=False) if share != "all" else None
        own = two_streams and share == "none"
        self.embed_motion = make_embedding(dim, switches, project=False) if own else None
        self.norm_frames = frame_norm("bn", dim) if fuse_norm == "bn" else None
        self.norm_motion = frame_norm("bn", dim) if fuse_norm == "bn" and two_streams else None
        # The number of streams that are returned: those that are fused late have an aggregator each.
        self.streams = 2 if has_motion and self.stage == "late" else 1
        self.fusion = Fusion(fuse_axis, dim, frames) if has_motion and self.stage != "late" else None

    def forward(
        self, frames: torch.Tensor, weights: torch.Tensor | None, motion: torch.Tensor | None, embed_one: nn.Module
    ) -> tuple[torch.Tensor, ...]:
        """Return one stream of frames (B, N, D), or two where motion is fused late.

        The arguments are X (B, N, D), R (B, N), or None if all frames have the same weight, X_M (B, N, D) or None, and
        the embedding of expert one, for ``share="all"``.
        """
        embed_frames = self.embed_frames or embed_one
        rows = None if weights is None else weights[:, :, None]
        if rows is not None and self.apply_to == "input":
            frames = frames * rows.to(frames.dtype)
        if motion is not None and self.stage == "early":
            assert self.fusion is not None
            frames = self.fusion(frames, motion)
        embedded: torch.Tensor = embed_frames(frames)
        if self.norm_frames is not None:
            embedded = self.norm_frames(embedded, None)
        if rows is not None and self.apply_to == "output":
            embedded = embedded * rows.to(embedded.dtype)
        if motion is None or self.stage == "early":
            return (embedded,)
        moved: torch.Tensor = (self.embed_motion or embed_frames)(motion)
        if self.norm_motion is not None:
            moved = self.norm_motion(moved, None)
        return (embedded, moved) if self.fusion is None else (self.fusion(embedded, moved),)


def complementary_weights(attention: torch.Tensor, beta: float = 0.5, *, renormalise: bool = False) -> torch.Tensor:
    """Return R = 1 / (A + beta), equation 8.

    With A (B, N) between 0 and 1, R lies between 1 / (1 + beta) and 1 / beta: the weight of a frame is at most
    (1 + beta) / beta times that of another. beta is above 0; the paper takes it from (0, 1). With ``renormalise`` R is
    divided by its mean over frames.

    Examples
    --------
    >>> complementary_weights(torch.tensor([[0.0, 0.5, 1.0]]))
    tensor([[2.0000, 1.0000, 0.6667]])
    """
    weights = 1 / (attention + in_range("beta", beta, SMALLEST_BETA))
    return weights / weights.mean(dim=1, keepdim=True) if renormalise else weights
