"""The frames that expert two sees: complementary frames and motion, embedded and fused (equations 9 and 11 of MEID)."""

import torch
from torch import nn

from meidbench.baselines.losses.base import one_of
from meidbench.baselines.models.meid.embedding import ReleaseEmbedding, SimpleEmbedding, frame_norm
from meidbench.baselines.models.meid.fusion import Fusion

APPLIED = ("output", "input")
SHARES = ("none", "e2_streams", "all")
STAGES = ("early", "medium", "late")
FUSE_NORMS = ("none", "bn")


class Complement(nn.Module):
    """X_F from the frames X, their weights R and the motion X_M; X_C alone where there is no motion.

    Parameters
    ----------
    dim : int
        D.
    frames : int or None
        N, where all videos have the same.
    has_motion : bool
    embedding, embedding_norm, recompute
        As in ``ExpertOne``.
    apply, share, fuse_axis, fuse_stage, fuse_norm
        ``selection_apply``, ``share``, ``fuse_axis``, ``fuse_stage`` and ``fuse_norm`` of ``ExpertTwo``.

    Attributes
    ----------
    streams : int
        How many come out.

    Examples
    --------
    >>> frames = torch.rand(2, 3, 4)
    >>> [fused] = Complement(4, 3, has_motion=True)(frames, torch.ones(2, 3), frames, nn.Identity())
    >>> fused.shape
    torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        dim: int,
        frames: int | None,
        *,
        has_motion: bool,
        embedding: str = "simple",
        embedding_norm: str = "ln",
        recompute: bool = False,
        apply: str = "output",
        share: str = "none",
        fuse_axis: str = "feature",
        fuse_stage: str = "medium",
        fuse_norm: str = "none",
    ) -> None:
        super().__init__()
        self.apply_to = one_of("selection_apply", apply, APPLIED)
        self.share = one_of("share", share, SHARES)
        self.stage = one_of("fuse_stage", fuse_stage, STAGES)
        one_of("fuse_norm", fuse_norm, FUSE_NORMS)

        def embed() -> nn.Module:
            if embedding == "release":
                return ReleaseEmbedding(dim, project=False, recompute=recompute)
            return SimpleEmbedding(dim, embedding_norm)

        def norm() -> nn.Module | None:
            return frame_norm("bn", dim) if fuse_norm == "bn" else None

        two_streams = has_motion and self.stage != "early"
        self.embed_frames = embed() if share != "all" else None
        self.embed_motion = embed() if two_streams and share == "none" else None
        self.norm_frames, self.norm_motion = norm(), norm() if two_streams else None
        # Late, each stream has an aggregator of its own.
        self.streams = 2 if has_motion and self.stage == "late" else 1
        self.fusion = Fusion(fuse_axis, dim, frames) if has_motion and self.stage != "late" else None

    def forward(
        self,
        frames: torch.Tensor,
        weights: torch.Tensor | None,
        motion: torch.Tensor | None,
        embed_one: nn.Module,
    ) -> tuple[torch.Tensor, ...]:
        """Return one stream of frames (B, N, D), or two where motion is fused late.

        Parameters
        ----------
        frames : Tensor, (B, N, D)
            X.
        weights : Tensor, (B, N), or None
            R; None where all frames count alike.
        motion : Tensor, (B, N, D), or None
            X_M.
        embed_one : nn.Module
            The embedding of expert one, for ``share="all"``.
        """
        embed_frames = self.embed_frames or embed_one
        rows = None if weights is None else weights[:, :, None]
        if rows is not None and self.apply_to == "input":
            frames = frames * rows.to(frames.dtype)
        if motion is not None and self.stage == "early":
            assert self.fusion is not None
            frames = self.fusion(frames, motion)
        embedded = _normal(embed_frames(frames), self.norm_frames)
        if rows is not None and self.apply_to == "output":
            embedded = embedded * rows.to(embedded.dtype)
        if motion is None or self.stage == "early":
            return (embedded,)
        moved = _normal((self.embed_motion or embed_frames)(motion), self.norm_motion)
        return (embedded, moved) if self.fusion is None else (self.fusion(embedded, moved),)


def _normal(frames: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
    normal: torch.Tensor = frames if norm is None else norm(frames, None)
    return normal
