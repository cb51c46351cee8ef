"""Preprocessing on the device: frames are resized, cropped in the centre and normalised, as a backbone expects them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meidbench.errors import FeatureError
from meidbench.extraction.frames import (
    IMAGENET_GEOMETRY,
    CropWindow,
    Geometry,
    ResizeKernel,
    compute_kernels,
    find_crop_window,
    find_source_range,
)

_BLOCK = 32  # outputs per matrix product: larger blocks multiply more zeros, smaller ones need more calls
_TEMPORARY_BYTES = 1 << 28
_TEMPORARY_BYTES_CPU = 1 << 24  # this fits in its caches: measured 2 times faster than the larger bound


@dataclass(frozen=True)
class Preprocessing:
    """The numbers of a backbone's preprocessing; the defaults are those of ImageNet's ResNets.

    Attributes
    ----------
    resize, crop, filter, square, floor
        As in ``Geometry``, which refuses impossible ones by FeatureError.
    mean, std : tuple of float
        Mean and deviation of the red, green and blue values, which lie in [0, 1].
    """

    resize: int = IMAGENET_GEOMETRY.resize
    crop: int = IMAGENET_GEOMETRY.crop
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    filter: str = IMAGENET_GEOMETRY.filter
    square: bool = IMAGENET_GEOMETRY.square
    floor: bool = IMAGENET_GEOMETRY.floor

    def __post_init__(self) -> None:
        _ = self.geometry

    @property
    def geometry(self) -> Geometry:
        """The numbers that concern sizes and places, not values."""
        return Geometry(self.resize, self.crop, self.filter, self.square, self.floor)

    def to_recipe(self) -> dict[str, Any]:
        """Return the entry of a feature file's recipe.

        Examples
        --------
        >>> recipe = Preprocessing(224, 224, filter="bicubic", square=True).to_recipe()
        >>> recipe["resize"], recipe["crop"]
        ('224 x 224, bicubic as Pillow', 'centre 224')
        """
        size = f"{self.resize} x {self.resize}" if self.square else f"short side {self.resize}"
        return {
            "resize": f"{size}, {self.filter} as Pillow",
            "crop": f"centre {self.crop}" + (", offset rounded down" if self.floor else ""),
            "mean": list(self.mean),
            "std": list(self.std),
            "colour": "RGB",
        }


IMAGENET = Preprocessing()


@dataclass(frozen=True)
class _Block:
    """``_BLOCK`` neighbouring outputs along one axis, or the rest, as a product of a source range with a matrix."""

    start: int
    stop: int
    matrix: Tensor


class Preprocessor:
    """Resizes and crops many frames at once, on the device of the backbone.

    Notes
    -----
    Defined as the effect of torchvision's ``Resize(256)`` and ``CenterCrop(224)`` on a Pillow image: the long side
    becomes ``int(256 * long / short)``, the crop begins at ``int(round((size - 224) / 2))``, and the filter is
    Pillow's bilinear one, a triangle as wide as the step between outputs when it shrinks (``Resample.c``); or as
    ``Geometry`` says. Pillow filters along the rows first, rounds and clips to 8 bits, filters along the columns, and
    rounds and clips again, in whole numbers with coefficients in units of 2**-22. Of bicubic coefficients some are
    negative, but the absolute ones still sum to less than 2. So all sums, whole or partial, are multiples of 2**-22
    between -2**9 and 2**9, which float64 holds exactly in any order of summation, and the crops are Pillow's to the
    bit, on every device. TF32, autocast and the precision set for float32 products do not matter, because they do not
    touch float64.

    Pillow 13 filters some images along the columns first. Where the short side is resized, these are tall portraits
    only (999 rows, 281 columns; not 720 and 405); with ``square`` they are most portraits. Bilinear values then differ
    by 1 at most, bicubic ones by 2 in smooth images and by more at hard edges, which are clipped between the passes.
    Here the rows always come first, as in all versions up to 12, so that features do not depend on the installed
    Pillow.

    Examples
    --------
    >>> window = find_crop_window(4, 8)
    >>> window.left, window.right
    (1, 7)
    >>> frames = torch.full((2, 4, 6, 3), 200, dtype=torch.uint8)
    >>> crops = Preprocessor("cpu").resize(frames, window)
    >>> crops.shape, crops.unique()
    (torch.Size([2, 3, 224, 224]), tensor([200], dtype=torch.uint8))
    """

    def __init__(self, device: torch.device | str, preprocessing: Preprocessing = IMAGENET) -> None:
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self._temporary_bytes = _TEMPORARY_BYTES_CPU if self.device.type == "cpu" else _TEMPORARY_BYTES
        self._blocks: dict[CropWindow, tuple[list[_Block], list[_Block]]] = {}

    def resize(self, frames: Tensor, window: CropWindow) -> Tensor:
        """Resize and crop frames of one size to (n, 3, crop, crop) uint8 on the device of the preprocessor.

        ``frames`` are (n, bottom - top, right - left, 3) uint8, on any device, already cut to the window that
        :func:`find_crop_window` gives for their size. Other frames and windows raise FeatureError.
        """
        expected = (window.bottom - window.top, window.right - window.left, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise FeatureError(
                f"cannot resize frames of shape {tuple(frames.shape)} and type {frames.dtype}\n"
                f"  expected: (n, {expected[0]}, {expected[1]}, 3), torch.uint8, "
                f"cut to the window of a {window.width}x{window.height} frame"
            )
        rows, columns = self._find_blocks(window)
        side = self.preprocessing.crop
        crops = torch.empty((len(frames), 3, side, side), dtype=torch.uint8, device=self.device)
        widest = max(block.stop - block.start for block in columns)
        # At the same time: one block's source, its sums, and all columns that are resized already.
        bytes_per_frame = 8 * 3 * expected[0] * (widest + 2 * _BLOCK + side)
        chunk = max(1, self._temporary_bytes // bytes_per_frame)
        for first in range(0, len(frames), chunk):
            part = frames[first : first + chunk].to(self.device, non_blocking=True)
            self._resize(part, rows, columns, crops[first : first + chunk])
        return crops

    def _resize(self, frames: Tensor, rows: list[_Block], columns: list[_Block], crops: Tensor) -> None:
        n, height, _, _ = frames.shape
        planes = frames.permute(0, 3, 1, 2)
        clip = self.preprocessing.filter != "bilinear"
        narrow = torch.empty((n, 3, height, self.preprocessing.crop), dtype=torch.float64, device=self.device)
        for number, block in enumerate(columns):
            source = planes[..., block.start : block.stop].to(torch.float64, memory_format=torch.contiguous_format)
            narrow[..., number * _BLOCK : (number + 1) * _BLOCK] = _round(source @ block.matrix.T, clip)
        for number, block in enumerate(rows):
            source = narrow[:, :, block.start : block.stop]
            crops[:, :, number * _BLOCK : (number + 1) * _BLOCK] = _round(block.matrix @ source, clip)

    def _find_blocks(self, window: CropWindow) -> tuple[list[_Block], list[_Block]]:
        if window not in self._blocks:
            size, geometry = (window.height, window.width), self.preprocessing.geometry
            if window != find_crop_window(*size, geometry):
                raise FeatureError(
                    f"{window} is not the window of a frame of its size for {geometry}; "
                    "call find_crop_window with the same geometry"
                )
            # Videos of a set come in few sizes, but a set of images may have thousands.
            if len(self._blocks) >= 64:
                self._blocks.pop(next(iter(self._blocks)))
            rows, columns = compute_kernels(*size, geometry)
            row_blocks = _make_blocks(rows, window.top, self.device)
            self._blocks[window] = (row_blocks, _make_blocks(columns, window.left, self.device))
        return self._blocks[window]


def normalise(
    crops: Tensor,
    preprocessing: Preprocessing = IMAGENET,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Compute ``(crops / 255 - mean) / std`` of (n, 3, height, width) uint8 RGB crops.

    This is the effect of torchvision's ``ToTensor`` and ``Normalize``, computed in float32 and converted to ``dtype``.
    With ``channels_last`` the three values of a pixel lie together in memory. Other crops raise FeatureError.

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
    # One conversion, then in place: a large batch of crops takes the same memory as the network's first features.
    pixels = crops.to(torch.float32, memory_format=layout, copy=True)
    mean = torch.tensor(preprocessing.mean, device=crops.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=crops.device).view(1, 3, 1, 1)
    return pixels.div_(255).sub_(mean).div_(std).to(dtype)


def _round(sums: Tensor, clip: bool) -> Tensor:
    """Round to whole numbers, halves up, and clip them to 8 bits if asked to."""
    # Bilinear ones need no clipping: no coefficient is negative, and 8,000 of their rounding errors make 255.5.
    sums = sums.add_(0.5).floor_()
    return sums.clamp_(0, 255) if clip else sums


def _make_blocks(kernels: tuple[ResizeKernel, ...], origin: int, device: torch.device) -> list[_Block]:
    """Gather kernels into matrices, with source positions counted from ``origin``."""
    blocks = []
    for first in range(0, len(kernels), _BLOCK):
        group = kernels[first : first + _BLOCK]
        start, stop = find_source_range(group)
        matrix = torch.zeros((len(group), stop - start), dtype=torch.float64)
        for row, kernel in enumerate(group):
            left = kernel.start - start
            matrix[row, left : left + len(kernel.coefficients)] = torch.tensor(kernel.coefficients, dtype=torch.float64)
        blocks.append(_Block(start - origin, stop - origin, matrix.to(device)))
    return blocks
