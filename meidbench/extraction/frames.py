"""The rule that chooses frames of a video, one decoded frame, and the result of decoding a video."""

import math
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add

import numpy as np
import numpy.typing as npt

from meidbench.checks import is_whole_number, one_of
from meidbench.errors import FeatureError
from meidbench.features.frame_sampling import uniform_indices

FRAME_RULES = ("uniform", "uniform-time", "all", "fps", "clips")
_FIXED = ("uniform", "uniform-time")
_FORMS = (
    "uniform or uniform-time (or with =N), all, fps=RATE such as fps=2.5, clips=NxFRAMES/STRIDE such as clips=10x16/4"
)
_HIGHEST_RATE = 1000.0
# Matroska rounds times to whole milliseconds, the first frame's as well.
_ROUNDING = 1e-3
_COEFFICIENT_BITS = 22


@dataclass(frozen=True)
class FrameRule:
    """The rule by which frames of a video are chosen; other kinds and numbers than these raise FeatureError.

    Attributes
    ----------
    kind : str
        ``uniform`` takes ``frames`` evenly spaced frames, and repeats some where the video has fewer; ``uniform-time``
        takes the frames shown at ``frames`` evenly spaced times; ``all`` takes every frame; ``fps`` takes ``rate``
        frames per second, each time the frame that is shown then; ``clips`` takes ``clips`` evenly spaced clips of
        ``frames`` frames each, every ``stride``-th of the video.
    frames : int
        Number of frames for ``uniform`` and ``uniform-time``, of each clip for ``clips``; 0 for the others.
    rate : float
        Frames per second for ``fps``, at most 1000; 0 for the others.
    clips, stride : int
        For ``clips``; 0 for the others.

    Examples
    --------
    >>> rule = FrameRule.from_text("fps=2.5")
    >>> str(rule), rule.fixed_rows
    ('fps=2.5', None)
    >>> rule.choose([0.0, 0.3, 0.5, 0.9, 1.0])
    array([0, 1, 2])
    """

    kind: str = "uniform"
    frames: int = 0
    rate: float = 0.0
    clips: int = 0
    stride: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FRAME_RULES:
            raise FeatureError(f"unknown rule for frames: {self.kind!r}; known are {_FORMS}")
        if self.kind == "clips":
            numbers = (self.clips, self.frames, self.stride)
            if not all(is_whole_number(number, 1) for number in numbers):
                raise FeatureError(f"clips need whole numbers of clips, frames and stride of at least 1, got {numbers}")
        elif self.clips or self.stride:
            raise FeatureError(
                f"{self.kind} takes no number of clips and no stride, got {self.clips!r}, {self.stride!r}"
            )
        elif self.kind in _FIXED:
            if not is_whole_number(self.frames, 1):
                raise FeatureError(f"{self.kind} needs a whole number of frames of at least 1, got {self.frames!r}")
        elif self.frames:
            raise FeatureError(f"{self.kind} takes no number of frames, got {self.frames!r}")
        if self.kind == "fps":
            if not 0 < self.rate <= _HIGHEST_RATE:
                raise FeatureError(f"fps needs a rate above 0 and at most {_HIGHEST_RATE:g}, got {self.rate!r}")
        elif self.rate:
            raise FeatureError(f"{self.kind} takes no rate, got {self.rate!r}")

    @classmethod
    def from_text(cls, text: str, frames: int = 200) -> "FrameRule":
        """Read a rule as it is written on the command line and in recipes; every other text raises FeatureError.

        Parameters
        ----------
        text : str
            ``uniform``, ``uniform=N``, ``uniform-time``, ``uniform-time=N``, ``all``, ``fps=RATE`` or
            ``clips=NxFRAMES/STRIDE``.
        frames : int
            Number of frames where the text gives none; 200 is the number of the Charades protocol.

        Examples
        --------
        >>> str(FrameRule.from_text("uniform", frames=8))
        'uniform=8'
        >>> FrameRule.from_text("clips=2x3/2").choose(np.arange(9) / 25)
        array([0, 2, 4, 4, 6, 8])
        """
        kind, separator, value = text.partition("=")
        try:
            if kind in _FIXED:
                return cls(kind, frames=int(value) if separator else frames)
            if kind == "all" and not separator:
                return cls("all")
            if kind == "fps":
                return cls("fps", rate=float(value))
            if found := re.fullmatch(r"(\d+)x(\d+)/(\d+)", value) if kind == "clips" else None:
                return cls("clips", frames=int(found[2]), clips=int(found[1]), stride=int(found[3]))
        except FeatureError:
            raise
        except ValueError:
            pass
        raise FeatureError(f"cannot read {text!r} as a rule for frames; known are {_FORMS}")

    def __str__(self) -> str:
        if self.kind in _FIXED:
            return f"{self.kind}={self.frames}"
        if self.kind == "clips":
            return f"clips={self.clips}x{self.frames}/{self.stride}"
        return f"fps={repr(float(self.rate)).removesuffix('.0')}" if self.kind == "fps" else self.kind

    @property
    def fixed_rows(self) -> int | None:
        """Rows that every video gets, one per frame or one per clip, or None where that depends on the video."""
        return self.clips or (self.frames if self.kind in _FIXED else None)

    def choose(self, timestamps: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Choose a frame for every row: (rows,) int64, ascending; some may repeat.

        For ``clips`` it is (clips * frames,), the frames of each clip in their order, clip after clip; clips of short
        videos overlap.

        Parameters
        ----------
        timestamps : (frames,) float64
            When each frame is shown, in seconds, ascending. No frame at all raises FeatureError.

        Notes
        -----
        ``uniform`` is VideoLT's rule (see ``meidbench.features.frame_sampling.uniform_indices``): even in frames, and
        in time only where the rate is constant. ``uniform-time`` takes the frames that are shown at k * D / (N - 1)
        seconds after the first frame, k = 0 to N - 1, where the last frame comes D seconds after the first; a single
        frame is the first one. ``fps`` takes the frames that are shown at 0, 1/rate, 2/rate, ... seconds after the
        first frame, up to the time of the last. A frame up to a millisecond late counts as shown, because containers
        round. ``clips`` follows the test protocol in VideoMAE's public code (Tong et al., NeurIPS 2022): of every
        ``stride``-th frame, M in number, clip k of K takes F from number k (M - F) // (K - 1) on; the last one is
        repeated where M is below F; a single clip lies in the middle.
        """
        times = np.asarray(timestamps, dtype=np.float64)
        if times.ndim != 1 or not times.size:
            raise FeatureError(f"expected the times of at least one frame, got an array of shape {times.shape}")
        if self.kind == "uniform":
            return uniform_indices(len(times), self.frames)
        if self.kind == "all":
            return np.arange(len(times))
        if self.kind == "clips":
            strided = np.arange(0, len(times), self.stride)
            spare = max(len(strided) - self.frames, 0)
            starts = np.arange(self.clips) * spare // (self.clips - 1) if self.clips > 1 else np.array([spare // 2])
            positions = starts[:, None] + np.arange(self.frames)
            return np.asarray(strided[np.minimum(positions, len(strided) - 1)].ravel())
        if self.kind == "uniform-time":
            asked = np.linspace(0, times[-1] - times[0], self.frames)
        else:
            last = times[-1] - times[0] + _ROUNDING
            asked = np.arange(math.floor(last * self.rate) + 2) / self.rate
            asked = asked[asked <= last]
        return np.searchsorted(times - times[0], asked + _ROUNDING, side="right") - 1


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    index: int  # among the source's frames, from 0
    image: npt.NDArray[np.uint8]  # (height, width, 3), RGB, upright, C-contiguous
    takers: tuple[int, ...] = (0,)  # which of the samples that are read together take it


@dataclass(frozen=True)
class Restart:
    """All frames so far are void: damage was found, and the frames are chosen and given again."""


@dataclass(frozen=True)
class DecodingResult:
    """The result of decoding a video.

    Its status is ``ok``; ``salvaged``: the source is damaged and the rows come from the frames that could be decoded;
    or ``failed``: there are no rows.
    """

    indices: npt.NDArray[np.int32]  # the source's frame that each chosen frame is, as FrameRule.choose orders them
    timestamps: npt.NDArray[np.float64]  # of each of them, in seconds since the first frame
    status: str
    reason: str  # in one line; empty for ok
    num_frames: int  # those that are shown and, after damage, could be decoded; of a folder, its images
    corrupt_frames: int  # those of them that the decoder marked as damaged; of a folder, images that cannot be read

    @classmethod
    def from_failure(cls, reason: str, num_frames: int = 0, corrupt_frames: int = 0) -> "DecodingResult":
        """Make the result of a video that gives no rows."""
        reason = join_lines(reason) or "unknown"
        return cls(np.empty(0, np.int32), np.empty(0), "failed", reason, num_frames, corrupt_frames)


FrameStream = Generator[Frame | Restart, None, DecodingResult]


def join_lines(text: str, longest: int = 200) -> str:
    """Join lines and runs of spaces, and cut a longer text."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _ignore_heartbeat() -> None: ...


# Called with every packet and image that is read. A decoding process sets it, to tell its parent that it is alive;
# elsewhere nobody waits for it.
heartbeat: Callable[[], None] = _ignore_heartbeat


@dataclass(frozen=True)
class CropWindow:
    """The part ``[top:bottom, left:right]`` of a ``height`` x ``width`` frame that the crop is computed from."""

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


@dataclass(frozen=True)
class Geometry:
    """The numbers of a resizing and a centre crop; others raise FeatureError.

    Attributes
    ----------
    resize, crop : int
        Length of the short side after resizing, and of the sides of the crop, in pixels; 1 <= crop <= resize.
    filter : str
        ``bilinear`` or ``bicubic``, both as Pillow's.
    square : bool
        Both sides become ``resize`` pixels long, without regard to the aspect ratio.
    floor : bool
        The crop begins at ``(size - crop) // 2``, as in transformers, instead of ``int(round((size - crop) / 2))``,
        as in torchvision; this matters where ``size - crop`` is odd.
    """

    resize: int = 256
    crop: int = 224
    filter: str = "bilinear"
    square: bool = False
    floor: bool = False

    def __post_init__(self) -> None:
        lengths = self.resize, self.crop
        if not all(is_whole_number(length, 1) for length in lengths) or self.crop > self.resize:
            raise FeatureError(
                f"resize and crop must be whole numbers, 1 <= crop <= resize, not {lengths[0]!r} and {lengths[1]!r}"
            )
        one_of("filter for resizing", self.filter, tuple(_FILTERS), FeatureError)

    def find_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which a frame is resized.

        Examples
        --------
        >>> Geometry().find_size(480, 640), Geometry(square=True).find_size(480, 640)
        ((256, 341), (256, 256))
        """
        if self.square:
            return self.resize, self.resize
        long = int(self.resize * max(height, width) / min(height, width))
        return (long, self.resize) if height > width else (self.resize, long)

    def find_offset(self, size: int) -> int:
        """Return where the crop begins on a side of ``size`` pixels."""
        return (size - self.crop) // 2 if self.floor else round((size - self.crop) / 2.0)


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic(x: float) -> float:
    """Keys's cubic with a = -0.5, in the order of Pillow's operations (``Resample.c``)."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0


# Name -> half its width and the function.
_FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}
IMAGENET_GEOMETRY = Geometry()


@lru_cache(maxsize=1024, typed=True)
def find_crop_window(height: int, width: int, geometry: Geometry | None = IMAGENET_GEOMETRY) -> CropWindow:
    """Return the part of a frame that is needed to resize it and to cut its centre; without geometry, the whole frame.

    Lengths below 1 raise FeatureError.
    """
    if geometry is None:
        _check_frame(height, width)
        return CropWindow(height, width, 0, height, 0, width)
    rows, columns = compute_kernels(height, width, geometry)
    return CropWindow(height, width, *find_source_range(rows), *find_source_range(columns))


@lru_cache(maxsize=64, typed=True)
def compute_kernels(
    height: int, width: int, geometry: Geometry
) -> tuple[tuple[ResizeKernel, ...], tuple[ResizeKernel, ...]]:
    """Return the kernels of the crop's rows and of its columns."""
    _check_frame(height, width)
    resized_height, resized_width = geometry.find_size(height, width)
    return _axis_kernels(height, resized_height, geometry), _axis_kernels(width, resized_width, geometry)


def _axis_kernels(length: int, size: int, geometry: Geometry) -> tuple[ResizeKernel, ...]:
    """Return the kernels of the central outputs when ``length`` pixels are resized to ``size``."""
    half_width, weigh = _FILTERS[geometry.filter]
    scale = length / size
    stretch = max(scale, 1.0)
    reach = half_width * stretch
    offset = geometry.find_offset(size)
    one = 1 << _COEFFICIENT_BITS
    kernels = []
    for output in range(offset, offset + geometry.crop):
        centre = (output + 0.5) * scale
        start = max(int(centre - reach + 0.5), 0)
        stop = min(int(centre + reach + 0.5), length)
        # Divided by multiplying with the inverse, as Pillow does: the last bit may decide a coefficient.
        weights = [weigh((pixel - centre + 0.5) * (1.0 / stretch)) for pixel in range(start, stop)]
        total = reduce(add, weights)  # not sum, which compensates for rounding from Python 3.12 on
        coefficients = tuple(int(weight / total * one + math.copysign(0.5, weight)) / one for weight in weights)
        kernels.append(ResizeKernel(start, coefficients))
    return tuple(kernels)


def find_source_range(kernels: tuple[ResizeKernel, ...]) -> tuple[int, int]:
    """Return the first source pixel of these outputs and the one after the last."""
    return min(kernel.start for kernel in kernels), max(kernel.start + len(kernel.coefficients) for kernel in kernels)


def _check_frame(height: int, width: int) -> None:
    if not (is_whole_number(height, 1) and is_whole_number(width, 1)):
        raise FeatureError(f"a frame has whole numbers of rows and columns, at least 1, not {height!r} and {width!r}")
