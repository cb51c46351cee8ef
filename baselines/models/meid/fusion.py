"""Fusion of the complementary frames and the motion of expert two (equation 11 of MEID)."""

import torch
from torch import nn

from meidbench.baselines.losses.base import one_of
from meidbench.baselines.models.meid.embedding import begin_as_released
from meidbench.errors import MeidbenchError

AXES = ("feature", "frame")


class Fusion(nn.Module):
    """X_F = Linear([X_C ; X_M]), equation 11, from two streams (B, N, D) to one.

    Parameters
    ----------
    axis : str
        ``feature``: from 2 D features of a frame to D, 2 D^2 + D parameters; ``frame``, as in the authors' code: from
        the 2 N frames of a video to N, for each feature alike, 2 N^2 + N parameters, for N frames.
    dim : int
        D.
    frames : int or None
        N; ``frame`` needs it.

    Examples
    --------
    >>> Fusion("frame", dim=4, frames=3)(torch.rand(2, 3, 4), torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, axis: str, dim: int, frames: int | None) -> None:
        super().__init__()
        self.axis = one_of("fuse_axis", axis, AXES)
        if axis == "feature":
            self.linear = nn.Linear(2 * dim, dim)
            return
        if frames is None:
            raise MeidbenchError(
                "fuse_axis=frame is for one number of frames; set frames.train and frames.test alike, or take "
                "fuse_axis=feature"
            )
        self.linear = nn.Linear(2 * frames, frames)
        self.apply(begin_as_released)

    def forward(self, complementary: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Fuse two streams (B, N, D)."""
        if self.axis == "feature":
            fused: torch.Tensor = self.linear(torch.cat([complementary, motion], dim=2))
            return fused
        if 2 * complementary.shape[1] != self.linear.in_features:
            raise MeidbenchError(
                f"fuse_axis=frame is for {self.linear.out_features} frames a video, got {complementary.shape[1]}"
            )
        fused = self.linear(torch.cat([complementary, motion], dim=1).transpose(1, 2))
        return fused.transpose(1, 2)
