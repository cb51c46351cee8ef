"""Which part of a frame the crop is computed from, and how; without torch, for the processes that decode."""

import math
import operator
from dataclasses import dataclass
from functools import lru_cache

from meidbench.errors import FeatureError

RESIZE = 256
CROP = 224

_COEFFICIENT_BITS = 22


@dataclass(frozen=True)
class Window:
    """The part of a frame that the crop is computed from, all in pixels.

    Attributes
    ----------
    height, width : int
        Of the whole frame.
    top, bottom, left, right : int
        ``frame[top:bottom, left:right]`` is enough to compute the crop; the rest is never looked at.
    """

    height: int
    width: int
    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Taps:
    """One output pixel along one axis: its first source pixel and the coefficients from there on."""

    start: int
    coefficients: tuple[float, ...]


@lru_cache(maxsize=1024, typed=True)
def crop_window(height: int, width: int, resize: int = RESIZE, crop: int = CROP) -> Window:
    """Return which part of a frame the crop is computed from.

    Parameters
    ----------
    height, width : int
        Of the frame in pixels, at least 1.
    resize, crop : int
        Length of the short side after resizing, and of the sides of the crop.

    Raises
    ------
    FeatureError
        A number is not a whole number of at least 1, or the crop is larger than the short side.

    Examples
    --------
    >>> crop_window(480, 640)
    Window(height=480, width=640, top=29, bottom=451, left=108, right=530)
    """
    rows, columns = axes(height, width, resize, crop)
    (top, bottom), (left, right) = extent(rows), extent(columns)
    return Window(height, width, top, bottom, left, right)


@lru_cache(maxsize=64, typed=True)
def axes(height: int, width: int, resize: int, crop: int) -> tuple[tuple[Taps, ...], tuple[Taps, ...]]:
    """Return the taps of the crop's rows and of its columns."""
    check_lengths(resize, crop)
    if not (_whole(height) and _whole(width)):
        raise FeatureError(f"a frame has whole numbers of rows and columns, at least 1, not {height!r} and {width!r}")
    long = int(resize * max(height, width) / min(height, width))
    sizes = (long, resize) if height > width else (resize, long)
    rows, columns = (_taps(length, size, crop) for length, size in zip((height, width), sizes, strict=True))
    return rows, columns


def _taps(length: int, size: int, crop: int) -> tuple[Taps, ...]:
    """Return the taps of the ``crop`` central outputs when ``length`` pixels are resized to ``size``."""
    scale = length / size
    reach = max(scale, 1.0)
    offset = round((size - crop) / 2.0)
    taps = []
    for output in range(offset, offset + crop):
        centre = (output + 0.5) * scale
        start = max(int(centre - reach + 0.5), 0)
        stop = min(int(centre + reach + 0.5), length)
        # Divided by multiplying with the inverse, as Pillow does: the last bit may decide a coefficient.
        distances = ((pixel - centre + 0.5) * (1.0 / reach) for pixel in range(start, stop))
        weights = [max(1.0 - abs(distance), 0.0) for distance in distances]
        total = sum(weights)
        one = 1 << _COEFFICIENT_BITS
        taps.append(Taps(start, tuple(math.floor(weight / total * one + 0.5) / one for weight in weights)))
    return tuple(taps)


def extent(taps: tuple[Taps, ...]) -> tuple[int, int]:
    """Return the range of source pixels that these outputs are computed from."""
    return min(tap.start for tap in taps), max(tap.start + len(tap.coefficients) for tap in taps)


def check_lengths(resize: int, crop: int) -> None:
    """Refuse lengths that no picture can be resized and cropped to."""
    if not (_whole(resize) and _whole(crop)) or crop > resize:
        raise FeatureError(f"resize and crop must be whole numbers, 1 <= crop <= resize, not {resize!r} and {crop!r}")


def _whole(value: object) -> bool:
    try:
        return operator.index(value) >= 1  # type: ignore[arg-type]
    except TypeError:
        return False
