"""The rows of one video: read from stored features, encoded and decoded."""

import zlib
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from meidbench.checks import one_of
from meidbench.errors import FeatureError, write_count
from meidbench.features.feature_file import (
    DTYPES,
    PER_ROW,
    PER_VIDEO,
    REASON_BYTES,
    STATUSES,
    Header,
    PackedFile,
    stored_checksums,
)
from meidbench.features.folders import NpyFolder
from meidbench.features.source import FeatureSource, UnusableVideo, check_id


@dataclass(frozen=True)
class VideoRows:
    """The rows of one video and the facts that are known about them.

    ``rows`` are (r, D) in the file's dtype, (0, D) of a failed video; ``scales`` (r,) are the factors of int8 rows.
    ``status`` is ``ok``, ``salvaged`` (made from the readable part of a damaged video) or ``failed``; ``reason`` tells
    why it is not ok. ``frame_indices`` and ``timestamps`` (r,) are the source frame of each row, counted from 0, and
    its time in seconds from the first frame. The video has ``num_source_frames``, of which the decoder found
    ``corrupt_frames`` damaged.
    """

    rows: npt.NDArray[Any]
    status: str = "ok"
    reason: str = ""
    scales: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    frame_indices: npt.NDArray[np.int32] | None = field(default=None, repr=False)
    timestamps: npt.NDArray[np.float64] | None = field(default=None, repr=False)
    num_source_frames: int = 0
    corrupt_frames: int = 0

    def checksum(self) -> int:
        """Return the CRC-32 of the rows and, of int8, of their scales."""
        value = zlib.crc32(np.ascontiguousarray(self.rows).data.cast("B") if self.rows.size else b"")
        return value if self.scales is None else zlib.crc32(np.ascontiguousarray(self.scales, "<f4").tobytes(), value)


def read_rows(stream: BinaryIO, header: Header, position: int) -> VideoRows:
    """Read one video of a feature file that is open for reading."""
    layout = header.layout
    start, count = int(layout.starts[position]), int(header.row_counts[position])
    status = STATUSES[header.status[position]]
    if status in ("pending", "failed"):
        count = 0  # a kill during another try may have left the number of its rows

    def values(name: str, dtype: str, index: int, number: int, width: int = 1) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        stream.seek(header.offsets[name] + index * kind.itemsize * width)
        return np.frombuffer(stream.read(number * kind.itemsize * width), kind)

    return VideoRows(
        rows=values("features", DTYPES[layout.dtype].str, start, count, layout.dim).reshape(count, layout.dim),
        status=status,
        reason=values("reasons", f"S{REASON_BYTES}", position, 1)[0].decode(errors="replace"),
        num_source_frames=int(values("num_source_frames", PER_VIDEO["num_source_frames"], position, 1)[0]),
        corrupt_frames=int(values("corrupt_frames", PER_VIDEO["corrupt_frames"], position, 1)[0]),
        **{name: values(name, PER_ROW[name], start, count) for name in PER_ROW if name in header.offsets},
    )


class StoredVideos:
    """The videos of a source, to be read once and whole, by several threads; ``header`` is that of a feature file."""

    def __init__(self, source: FeatureSource) -> None:
        self.source = source
        self.header = source.header if isinstance(source, PackedFile) else None
        self._checksums = [] if self.header is None else stored_checksums(source.path)
        known = () if self.header is None else self.header.layout.video_ids
        self._positions = {video_id: position for position, video_id in enumerate(known)}
        # h5py does one thing at a time; the rows of a feature file are read without it.
        self.threads = 4 if isinstance(source, NpyFolder) else 1 if self.header is None else 2

    def read_stored(self, video_id: str) -> tuple[VideoRows, int | None]:
        """Return a video as it is stored, and the checksum of a feature file, which may differ."""
        if self.header is not None:
            position = self._position(video_id)
            with self.source.path.open("rb") as stream:
                return read_rows(stream, self.header, position), self._checksums[position]
        return VideoRows(self.source.load(video_id, None)), None

    def read(self, video_id: str) -> VideoRows:
        """Return a video whose checksum is right, in the dtype of the source; int8 as float32."""
        check_id(video_id)  # another file may have named it
        video, checksum = self.read_stored(video_id)
        if checksum is not None and video.checksum() != checksum:
            raise UnusableVideo("unreadable", "other than it was written: the checksum differs")
        return replace(video, rows=decode(video.rows, video.scales), scales=None)

    def size(self, video_id: str) -> int:
        """Return a number that reveals a changed video: the bytes of its file, or the checksum in a feature file."""
        if self.header is not None:
            return int(self._checksums[self._position(video_id)])
        return self.source.size(video_id)

    def _position(self, video_id: str) -> int:
        stored = self.source.naming.stored(video_id)
        if stored not in self._positions:
            raise UnusableVideo("missing")
        return self._positions[stored]


LARGEST_INT8 = 127
# torch works on fewer numbers than this in the calling thread; its own threads cost more than a conversion does.
_STRETCH = (1 << 15) - 1
# Half the distance of two neighbours: relative, and absolute below the normal range. IEEE 754, binary16; with room for
# the rounding of the comparison itself, which is in float32.
_HALF_RELATIVE, _HALF_ABSOLUTE = np.float32(2.0**-11 * 1.001), np.float32(2.0**-25 * 1.001)

Reals = npt.NDArray[np.float32]


def encode(rows: npt.NDArray[Any], dtype: str) -> tuple[npt.NDArray[Any], Reals | None]:
    """Convert (r, D) floats to the dtype of a feature file; for int8, return (r,) float32 scales, too.

    ``float16`` and ``float32`` round to the nearest, ties to even, as numpy does. ``int8`` divides each row by its
    scale, ``max|row| / 127``, and rounds: no number changes by more than half the scale. A row of zeros has scale 0.

    Raises
    ------
    FeatureError
        The dtype is unknown, a number is NaN or infinite, or too large for the dtype.

    Examples
    --------
    >>> rows = np.array([[0.5, -2.0, 1.27], [0.0, 0.0, 0.0]], np.float32)
    >>> encode(rows, "float16")
    (array([[ 0.5 , -2.  ,  1.27],
           [ 0.  ,  0.  ,  0.  ]], dtype=float16), None)
    >>> numbers, scales = encode(rows, "int8")
    >>> numbers.tolist(), scales.round(4).tolist()
    ([[32, -127, 81], [0, 0, 0]], [0.015699999406933784, 0.0])
    """
    one_of("dtype", dtype, tuple(DTYPES), FeatureError)
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("="))
    if not all_finite(rows):
        odd = ~np.isfinite(rows).all(axis=1)
        raise FeatureError(
            f"NaN or infinity in {odd.sum():,} of {write_count(len(rows), 'row')}, the first is row {odd.argmax():,}"
        )
    stored = _cast(rows, DTYPES["float16" if dtype == "float16" else "float32"])
    if not all_finite(stored):
        largest, limit = np.abs(rows).max(), np.finfo(stored.dtype).max
        remedy = "; pass --dtype float32" if stored.dtype == np.float16 else ""
        raise FeatureError(f"numbers up to {largest:.6g} do not fit {stored.dtype}, which ends at {limit:.6g}{remedy}")
    return _quantise(stored) if dtype == "int8" else (stored, None)


def decode(rows: npt.NDArray[Any], scales: Reals | None) -> npt.NDArray[Any]:
    """Convert stored rows to numbers: floats stay, int8 is multiplied by the scale of the row."""
    return rows if scales is None else rows.astype(np.float32) * scales[:, None]


def is_faithful(rows: npt.NDArray[Any], stored: npt.NDArray[Any], scales: Reals | None) -> bool:
    """Return whether what ``encode`` returned is as near to the finite original rows as its dtype allows."""
    original = _cast(np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")), np.dtype(np.float32))
    if stored.dtype == np.float32:
        return np.array_equal(original, stored)
    error = original - _cast(decode(stored, scales), np.dtype(np.float32))
    np.abs(error, out=error)
    if scales is not None:
        return bool((error.max(axis=1) <= scales * np.float32(0.5001)).all())
    error -= np.abs(original) * _HALF_RELATIVE
    return bool(error.max() <= _HALF_ABSOLUTE)


def all_finite(rows: npt.NDArray[Any]) -> bool:
    """Return whether no number is NaN or infinite; rows in native byte order, at least one number."""
    if rows.dtype == np.float16:
        # numpy has no fast arithmetic on half precision. NaN and infinity have all bits of the exponent set.
        return bool((rows.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    # Both are NaN where one number is, and allocate no array.
    return bool(np.isfinite(rows.min()) and np.isfinite(rows.max()))


def _cast(rows: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert as numpy does; between half and single precision through torch, which is many times as fast."""
    if rows.dtype == dtype:
        return rows
    if rows.dtype == np.float64:
        # torch would round twice, by way of float32.
        with np.errstate(over="ignore"):
            return rows.astype(dtype)
    import torch

    if not rows.flags.writeable:  # torch would warn
        rows = rows.copy()
    result = np.empty(rows.shape, dtype)
    source, target = torch.from_numpy(rows).view(-1), torch.from_numpy(result).view(-1)
    for first in range(0, len(source), _STRETCH):
        target[first : first + _STRETCH].copy_(source[first : first + _STRETCH])
    return result


def _quantise(rows: Reals) -> tuple[npt.NDArray[np.int8], Reals]:
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    # A scale below the normal range would itself be rounded coarsely.
    scales = np.where(largest > 0, np.maximum(largest / LARGEST_INT8, np.finfo(np.float32).tiny), 0).astype(np.float32)
    end = np.float32(np.finfo(np.float32).max / LARGEST_INT8)
    # The scale is rounded, and 127 times it could lie beyond the end of float32.
    scales = np.minimum(scales, np.nextafter(end, np.float32(0)))
    quotients = rows / np.where(scales > 0, scales, 1)[:, None]
    return np.rint(quotients, out=quotients).astype(np.int8), scales
