"""Which frames of a video are taken, and what is said of them: the rule, one frame, and how it ended."""

import math
import operator
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError
from meidbench.features.frame_sampling import uniform_indices

FRAME_RULES = ("uniform", "all", "fps")
_FORMS = "uniform (or uniform=N), all, fps=RATE such as fps=2.5"
_HIGHEST_RATE = 1000.0
# Matroska rounds times to whole milliseconds, the first frame's as well.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a video are taken.

    Attributes
    ----------
    kind : str
        ``uniform`` takes ``frames`` evenly spaced ones, and repeats some where the video has fewer; ``all``
        takes every frame; ``fps`` takes ``rate`` a second, each time the frame that is shown then.
    frames : int
        How many ``uniform`` takes; 0 for the others.
    rate : float
        Frames a second that ``fps`` takes, at most 1000; 0 for the others.

    Raises
    ------
    FeatureError
        The kind is none of these, or its number is not one that it can work with.

    Examples
    --------
    >>> rule = FrameRule.parse("fps=2.5")
    >>> str(rule), rule.fixed_rows
    ('fps=2.5', None)
    >>> rule.choose([0.0, 0.3, 0.5, 0.9, 1.0])
    array([0, 1, 2])
    """

    kind: str = "uniform"
    frames: int = 0
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in FRAME_RULES:
            raise FeatureError(f"unknown rule for frames: {self.kind!r}; known are {_FORMS}")
        if self.kind == "uniform":
            try:
                valid = operator.index(self.frames) >= 1 and not isinstance(self.frames, bool)
            except TypeError:
                valid = False
            if not valid:
                raise FeatureError(f"uniform needs a whole number of frames of at least 1, got {self.frames!r}")
        elif self.frames:
            raise FeatureError(f"{self.kind} takes no number of frames, got {self.frames!r}")
        if self.kind == "fps":
            if not 0 < self.rate <= _HIGHEST_RATE:
                raise FeatureError(f"fps needs a rate above 0 and at most {_HIGHEST_RATE:g}, got {self.rate!r}")
        elif self.rate:
            raise FeatureError(f"{self.kind} takes no rate, got {self.rate!r}")

    @classmethod
    def parse(cls, text: str, frames: int = 200) -> "FrameRule":
        """Read a rule as it is written on the command line and in recipes.

        Parameters
        ----------
        text : str
            ``uniform``, ``uniform=N``, ``all`` or ``fps=RATE``.
        frames : int
            How many a plain ``uniform`` takes; 200 is the number of the Charades protocol.

        Raises
        ------
        FeatureError
            The text is none of these forms.

        Examples
        --------
        >>> FrameRule.parse("uniform", frames=8)
        FrameRule(kind='uniform', frames=8, rate=0.0)
        >>> str(FrameRule.parse("uniform=16"))
        'uniform=16'
        """
        kind, separator, value = text.partition("=")
        try:
            if kind == "uniform":
                return cls("uniform", frames=int(value) if separator else frames)
            if kind == "all" and not separator:
                return cls("all")
            if kind == "fps":
                return cls("fps", rate=float(value))
        except FeatureError:
            raise
        except ValueError:
            pass
        raise FeatureError(f"cannot read {text!r} as a rule for frames; known are {_FORMS}")

    def __str__(self) -> str:
        if self.kind == "uniform":
            return f"uniform={self.frames}"
        return f"fps={repr(float(self.rate)).removesuffix('.0')}" if self.kind == "fps" else self.kind

    @property
    def fixed_rows(self) -> int | None:
        """Rows that every video gets, or None where that depends on the video."""
        return self.frames if self.kind == "uniform" else None

    def choose(self, timestamps: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Choose among frames by when they are shown.

        Parameters
        ----------
        timestamps : (frames,) float64
            When each frame is shown in seconds, ascending, at least one.

        Returns
        -------
        (rows,) int64 array
            A frame for every row, ascending; some may repeat.

        Raises
        ------
        FeatureError
            There is no frame to choose from.

        Notes
        -----
        ``uniform`` is VideoLT's rule (see ``meidbench.features.frame_sampling.uniform_indices``). ``fps`` asks at 0,
        1/rate, 2/rate, ... seconds after the first frame for the frame shown then, up to the time of the last; a frame
        up to a millisecond late counts as shown, because containers round.
        """
        times = np.asarray(timestamps, dtype=np.float64)
        if times.ndim != 1 or not times.size:
            raise FeatureError(f"expected the times of at least one frame, got an array of shape {times.shape}")
        if self.kind == "uniform":
            return uniform_indices(len(times), self.frames)
        if self.kind == "all":
            return np.arange(len(times))
        last = times[-1] - times[0] + _ROUNDING
        asked = np.arange(math.floor(last * self.rate) + 2) / self.rate
        asked = asked[asked <= last]
        shown: npt.NDArray[np.int64] = np.searchsorted(times - times[0], asked + _ROUNDING, side="right") - 1
        return shown


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes
    ----------
    index : int
        Its place among the source's frames, from 0.
    image : (height, width, 3) uint8 array
        RGB, upright, C-contiguous.
    """

    index: int
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Restart:
    """Every frame given so far is void: the video turned out to be other than it said, and begins again."""


@dataclass(frozen=True)
class Outcome:
    """How the reading of a video ended.

    Attributes
    ----------
    indices : (rows,) int32 array
        The source's frame of each row, ascending; some may repeat.
    timestamps : (rows,) float64 array
        When each is shown, in seconds since the first frame.
    status : str
        ``ok``; ``salvaged``: the source is damaged and the rows come from what could be decoded; ``failed``:
        there are no rows.
    reason : str
        Why it is not ``ok``, in one line; empty where it is.
    num_frames : int
        Frames of the source: those that are shown and, once damage was met, could be decoded; of a folder, its
        images. Every index is below.
    corrupt_frames : int
        Those of them that the decoder called damaged; of a folder, the images that cannot be read.
    """

    indices: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.float64]
    status: str
    reason: str
    num_frames: int
    corrupt_frames: int


def _no_pulse() -> None:
    """Tell nobody."""


# Called with every packet and image that is read. A process that decodes sets it, to tell its parent that it is alive.
pulse: Callable[[], None] = _no_pulse

Reading = Generator[Frame | Restart, None, Outcome]


def failed(reason: str, num_frames: int = 0, corrupt_frames: int = 0) -> Outcome:
    """Return the outcome of a video that gives no rows."""
    nothing: npt.NDArray[Any] = np.empty(0)
    return Outcome(
        nothing.astype(np.int32), nothing, "failed", one_line(reason) or "unknown", num_frames, corrupt_frames
    )


def one_line(text: str, longest: int = 200) -> str:
    """Join lines and runs of spaces, and cut what is longer."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


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
