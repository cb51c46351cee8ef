"""The part of a frame that its crop is computed from, and the coefficients of resizing. Decoders import no torch."""

import math
from dataclasses import dataclass
from functools import lru_cache

from meidbench.checks import is_whole_number
from meidbench.errors import FeatureError

RESIZE = 256
CROP = 224

_COEFFICIENT_BITS = 22


@dataclass(frozen=True)
class CropWindow:
    """The part of a frame that the crop is computed from, all in pixels.

    Attributes
    ----------
    height, width : int
        Of the whole frame.
    top, bottom, left, right : int
        ``frame[top:bottom, left:right]`` is enough to compute the crop; the rest is never read.
    """

    height: int
    width: int
    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class ResizeKernel:
    """One output pixel along one axis: its first source pixel and the coefficients from there on."""

    start: int
    coefficients: tuple[float, ...]


@lru_cache(maxsize=1024, typed=True)
def find_crop_window(height: int, width: int, resize: int = RESIZE, crop: int = CROP) -> CropWindow:
    """Return the part of a frame that the crop is computed from.

    Parameters
    ----------
    height, width : int
        Of the frame in pixels, at least 1.
    resize, crop : int
        Length of the short side after resizing, and of the sides of the crop, which must not be larger. Other values
        raise FeatureError.

    Examples
    --------
    >>> find_crop_window(480, 640)
    CropWindow(height=480, width=640, top=29, bottom=451, left=108, right=530)
    """
    rows, columns = compute_kernels(height, width, resize, crop)
    (top, bottom), (left, right) = find_source_range(rows), find_source_range(columns)
    return CropWindow(height, width, top, bottom, left, right)


@lru_cache(maxsize=64, typed=True)
def compute_kernels(
    height: int, width: int, resize: int, crop: int
) -> tuple[tuple[ResizeKernel, ...], tuple[ResizeKernel, ...]]:
    """Return the kernels of the crop's rows and of its columns."""
    check_lengths(resize, crop)
    if not (is_whole_number(height, 1) and is_whole_number(width, 1)):
        raise FeatureError(f"a frame has whole numbers of rows and columns, at least 1, not {height!r} and {width!r}")
    long = int(resize * max(height, width) / min(height, width))
    sizes = (long, resize) if height > width else (resize, long)
    return _axis_kernels(height, sizes[0], crop), _axis_kernels(width, sizes[1], crop)


def _axis_kernels(length: int, size: int, crop: int) -> tuple[ResizeKernel, ...]:
    """Return the kernels of the ``crop`` central outputs when ``length`` pixels are resized to ``size``."""
    scale = length / size
    reach = max(scale, 1.0)
    offset = round((size - crop) / 2.0)
    one = 1 << _COEFFICIENT_BITS
    kernels = []
    for output in range(offset, offset + crop):
        centre = (output + 0.5) * scale
        start = max(int(centre - reach + 0.5), 0)
        stop = min(int(centre + reach + 0.5), length)
        # Divided by multiplying with the inverse, as Pillow does: the last bit may decide a coefficient.
        distances = ((pixel - centre + 0.5) * (1.0 / reach) for pixel in range(start, stop))
        weights = [max(1.0 - abs(distance), 0.0) for distance in distances]
        total = sum(weights)
        coefficients = tuple(math.floor(weight / total * one + 0.5) / one for weight in weights)
        kernels.append(ResizeKernel(start, coefficients))
    return tuple(kernels)


def find_source_range(kernels: tuple[ResizeKernel, ...]) -> tuple[int, int]:
    """Return the first source pixel of these outputs and the one after the last."""
    return min(kernel.start for kernel in kernels), max(kernel.start + len(kernel.coefficients) for kernel in kernels)


def check_lengths(resize: int, crop: int) -> None:
    """Refuse lengths to which no image can be resized and cropped."""
    if not (is_whole_number(resize, 1) and is_whole_number(crop, 1)) or crop > resize:
        raise FeatureError(f"resize and crop must be whole numbers, 1 <= crop <= resize, not {resize!r} and {crop!r}")
