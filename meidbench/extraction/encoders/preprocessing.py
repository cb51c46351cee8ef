"""From decoded frames to what a backbone takes in: short side 256, centre crop 224, ImageNet's mean and deviation."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from meidbench.errors import FeatureError
from meidbench.extraction.frames import CROP, RESIZE, Taps, Window, axes, check_lengths, crop_window, extent

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

PREPROCESSING: MappingProxyType[str, Any] = MappingProxyType(
    {
        "resize": f"short side {RESIZE}, bilinear as Pillow",
        "crop": f"centre {CROP}",
        "mean": list(MEAN),
        "std": list(STD),
        "colour": "RGB",
    }
)

_BLOCK = 32  # outputs computed by one product: more waste zeros, fewer waste calls
_TEMPORARY_BYTES = 1 << 28
_TEMPORARY_BYTES_CPU = 1 << 24  # what fits in its caches: measured 2 times faster than the larger bound


@dataclass(frozen=True)
class _Block:
    """Neighbouring outputs along one axis, as a product of a source range with a matrix."""

    start: int
    stop: int
    matrix: Tensor


class Preprocessor:
    """Resizes and crops many frames at once, on the device where the backbone is.

    Parameters
    ----------
    device : torch.device or str
        Where it computes.
    resize, crop : int
        Length of the short side after resizing, and of the sides of the crop.

    Raises
    ------
    FeatureError
        A length is not a whole number of at least 1, or the crop is larger than the short side.

    Notes
    -----
    Defined as what torchvision's ``Resize(256)`` and ``CenterCrop(224)`` do to a Pillow image: the long side
    becomes ``int(256 * long / short)``, the crop begins at ``int(round((size - 224) / 2))``, and the filter is
    Pillow's bilinear one, a triangle as wide as the step between outputs when it shrinks (``Resample.c``). Pillow
    filters along the rows first, rounds to 8 bits, filters along the columns, and rounds again, in whole numbers
    with coefficients in units of 2**-22. Every sum is a multiple of 2**-22 below 2**9, which float64 holds
    exactly in any order of summation. So the outcome is Pillow's to the bit, on every device, and neither TF32 nor
    autocast nor the precision set for float32 products bears on it, as none of them touches float64.

    Pillow 13 filters some pictures along the columns first, which moves a few values by 1; among the sizes that
    occur here these are tall portraits only (999 rows, 281 columns; not 720 and 405). The order here is always the
    former one, so that features do not depend on which Pillow is installed.

    Examples
    --------
    >>> window = crop_window(4, 8)
    >>> window.left, window.right
    (1, 7)
    >>> frames = torch.full((2, 4, 6, 3), 200, dtype=torch.uint8)
    >>> crops = Preprocessor("cpu").resize(frames, window)
    >>> crops.shape, crops.unique()
    (torch.Size([2, 3, 224, 224]), tensor([200], dtype=torch.uint8))
    """

    def __init__(self, device: torch.device | str, resize: int = RESIZE, crop: int = CROP) -> None:
        check_lengths(resize, crop)
        self.device = torch.device(device)
        self.resize_to = resize
        self.crop = crop
        self._temporary_bytes = _TEMPORARY_BYTES_CPU if self.device.type == "cpu" else _TEMPORARY_BYTES
        self._blocks: dict[Window, tuple[list[_Block], list[_Block]]] = {}

    def resize(self, frames: Tensor, window: Window) -> Tensor:
        """Resize and crop frames of one size.

        Parameters
        ----------
        frames : (n, bottom - top, right - left, 3) uint8 tensor
            The frames, already cut to the window, on any device.
        window : Window
            As :func:`crop_window` gives it for their size.

        Returns
        -------
        (n, 3, crop, crop) uint8 tensor on the device of the preprocessor.

        Raises
        ------
        FeatureError
            The frames are of another shape or type, or the window is not that of their size.
        """
        expected = (window.bottom - window.top, window.right - window.left, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise FeatureError(
                f"cannot resize frames of shape {tuple(frames.shape)} and type {frames.dtype}\n"
                f"  expected: (n, {expected[0]}, {expected[1]}, 3), torch.uint8, "
                f"cut to the window of a {window.width}x{window.height} frame"
            )
        rows, columns = self._products(window)
        crops = torch.empty((len(frames), 3, self.crop, self.crop), dtype=torch.uint8, device=self.device)
        chunk = max(1, self._temporary_bytes // self._bytes_per_frame(window, columns))
        for first in range(0, len(frames), chunk):
            part = frames[first : first + chunk].to(self.device, non_blocking=True)
            crops[first : first + chunk] = self._resize(part, rows, columns)
        return crops

    def _resize(self, frames: Tensor, rows: list[_Block], columns: list[_Block]) -> Tensor:
        n, height, _, _ = frames.shape
        planes = frames.permute(0, 3, 1, 2)
        narrow = torch.empty((n, 3, height, self.crop), dtype=torch.float64, device=self.device)
        done = 0
        for block in columns:
            source = planes[..., block.start : block.stop].to(torch.float64, memory_format=torch.contiguous_format)
            size = block.matrix.shape[0]
            narrow[..., done : done + size] = _rounded(source @ block.matrix.T)
            done += size
        crops = torch.empty((n, 3, self.crop, self.crop), dtype=torch.uint8, device=self.device)
        done = 0
        for block in rows:
            size = block.matrix.shape[0]
            crops[:, :, done : done + size] = _rounded(block.matrix @ narrow[:, :, block.start : block.stop])
            done += size
        return crops

    def _products(self, window: Window) -> tuple[list[_Block], list[_Block]]:
        if window not in self._blocks:
            if window != crop_window(window.height, window.width, self.resize_to, self.crop):
                raise FeatureError(
                    f"{window} is not the window of a frame of its size for a crop of {self.crop} after "
                    f"resizing to {self.resize_to}; ask crop_window for it, with the same lengths"
                )
            # Videos of a set come in few sizes, but a set of pictures may have thousands.
            if len(self._blocks) >= 64:
                self._blocks.pop(next(iter(self._blocks)))
            rows, columns = axes(window.height, window.width, self.resize_to, self.crop)
            self._blocks[window] = (
                _blocks(rows, window.top, self.device),
                _blocks(columns, window.left, self.device),
            )
        return self._blocks[window]

    def _bytes_per_frame(self, window: Window, columns: list[_Block]) -> int:
        widest = max(block.stop - block.start for block in columns)
        # At once: one block's source, its sums, and all that is narrowed already.
        return 8 * 3 * (window.bottom - window.top) * (widest + 2 * _BLOCK + self.crop)


def normalise(crops: Tensor, dtype: torch.dtype = torch.float32, *, channels_last: bool = False) -> Tensor:
    """Bring 8-bit crops to the range that the backbones were trained on, as ``ToTensor`` and ``Normalize`` do.

    Parameters
    ----------
    crops : (n, 3, height, width) uint8 tensor
        RGB.
    dtype : torch.dtype
        Of the outcome; it is computed in float32.
    channels_last : bool
        Whether the three values of a pixel shall lie together in memory.

    Returns
    -------
    (n, 3, height, width) tensor: ``(crops / 255 - mean) / std`` with the mean and deviation of ImageNet's channels.

    Raises
    ------
    FeatureError
        The crops are of another shape or type.

    Examples
    --------
    >>> normalise(torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    tensor([-2.1179,  0.2052,  2.6400])
    """
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[1] != 3:
        raise FeatureError(
            f"cannot normalise a tensor of shape {tuple(crops.shape)} and type {crops.dtype}\n"
            "  expected: (n, 3, height, width), torch.uint8"
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # One conversion, then in place: the crops of a large batch are as large as what the network makes of them.
    pixels = crops.to(torch.float32, memory_format=layout, copy=True)
    mean, std = (torch.tensor(values, device=crops.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return pixels.div_(255).sub_(mean).div_(std).to(dtype)


def _rounded(sums: Tensor) -> Tensor:
    """Round to whole numbers, halves up."""
    # Not clamped: coefficients are not negative, and for their rounding to lift 255 by a half takes 8,000 of them.
    return sums.add_(0.5).floor_()


def _blocks(taps: tuple[Taps, ...], origin: int, device: torch.device) -> list[_Block]:
    """Gather taps into products, with source positions counted from ``origin``."""
    blocks = []
    for first in range(0, len(taps), _BLOCK):
        group = taps[first : first + _BLOCK]
        start, stop = extent(group)
        matrix = torch.zeros((len(group), stop - start), dtype=torch.float64)
        for row, tap in enumerate(group):
            begin = tap.start - start
            matrix[row, begin : begin + len(tap.coefficients)] = torch.tensor(tap.coefficients, dtype=torch.float64)
        blocks.append(_Block(start - origin, stop - origin, matrix.to(device)))
    return blocks
