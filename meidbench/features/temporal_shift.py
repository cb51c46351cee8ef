"""Temporal Shift Module: neighbouring frames exchange channels, and so a 2D network looks along time."""

import operator

from torch import Tensor, nn

from meidbench.errors import FeatureError

CLIP = 8
DIVISOR = 8


def temporal_shift(features: Tensor, clip: int = CLIP, divisor: int = DIVISOR) -> Tensor:
    """Shift some channels by one frame, within each clip.

    Parameters
    ----------
    features : (clips * clip, channels, height, width) tensor
        The frames of each clip in their order, clip after clip.
    clip : int
        Frames of a clip.
    divisor : int
        ``channels // divisor`` channels come from the frame after, as many from the frame before.

    Returns
    -------
    Tensor of the same shape. The first ``channels // divisor`` channels of a frame are those of the next frame, the
    second as many those of the frame before, and the others its own; what would come from outside the clip is 0.

    Raises
    ------
    FeatureError
        The number of frames is not a multiple of ``clip``.

    Notes
    -----
    Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019 (arXiv 1811.08383),
    section 3, the bidirectional shift; which eighth goes which way is as in the authors' published code, since the
    weights depend on it.

    Examples
    --------
    >>> import torch
    >>> frames = torch.tensor([[10.0, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]).view(3, 4, 1, 1)
    >>> temporal_shift(frames, clip=3, divisor=4).view(3, 4)
    tensor([[20.,  0., 12., 13.],
            [30., 11., 22., 23.],
            [ 0., 21., 32., 33.]])
    """
    check_clips(len(features), clip)
    fold = features.shape[1] // divisor
    # Copied whole first: it keeps the memory format, and most channels stay.
    shifted = features.clone()
    clips = (len(features) // clip, clip, *features.shape[1:])
    source, target = features.view(clips), shifted.view(clips)
    target[:, :-1, :fold] = source[:, 1:, :fold]
    target[:, -1, :fold] = 0
    target[:, 1:, fold : 2 * fold] = source[:, :-1, fold : 2 * fold]
    target[:, 0, fold : 2 * fold] = 0
    return shifted


def check_clips(rows: int, clip: int) -> None:
    """Refuse a number of rows that does not make whole clips; FeatureError says so."""
    if rows % clip:
        raise FeatureError(
            f"{rows:,} frames do not make whole clips\n"
            f"  expected: a multiple of {clip}, the frames of each clip in their order, clip after clip"
        )


class TemporalShift(nn.Module):
    """A layer whose input is shifted along time first; see :func:`temporal_shift`.

    The layer is kept as ``net``, so that the keys of the state dict are those of the published weights.

    Parameters
    ----------
    net : nn.Module
        What follows the shift.
    clip, divisor : int
        As for :func:`temporal_shift`.

    Raises
    ------
    FeatureError
        ``clip`` is below 1 or ``divisor`` below 2.

    Examples
    --------
    >>> import torch
    >>> TemporalShift(nn.Identity(), clip=2)(torch.ones(4, 8, 1, 1))[:, 0].flatten()
    tensor([1., 0., 1., 0.])
    """

    def __init__(self, net: nn.Module, clip: int = CLIP, divisor: int = DIVISOR) -> None:
        super().__init__()
        if operator.index(clip) < 1 or operator.index(divisor) < 2:
            raise FeatureError(f"clip must be at least 1 and divisor at least 2, not {clip} and {divisor}")
        self.net = net
        self.clip = clip
        self.divisor = divisor

    def forward(self, features: Tensor) -> Tensor:
        """Shift and go on; shapes as :func:`temporal_shift` and ``net`` have them."""
        outcome: Tensor = self.net(temporal_shift(features, self.clip, self.divisor))
        return outcome

    def extra_repr(self) -> str:
        """Describe the shift in the module's printed form."""
        return f"clip={self.clip}, divisor={self.divisor}"
