"""One video as a feature file holds it."""

import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from meidbench.features.layout import DTYPES, REASON_BYTES, STATUSES, Header


@dataclass(frozen=True)
class VideoRows:
    """The rows of one video and what is known of them.

    Attributes
    ----------
    rows : (r, D) array
        In the file's dtype; of a failed video (0, D).
    status : str
        ``ok``, ``salvaged`` (made from what of a damaged video could be read) or ``failed``.
    reason : str
        Why it is not ok.
    scales : (r,) float32 array, optional
        What int8 rows are to be multiplied with.
    frame_indices : (r,) int32 array, optional
        The source frame of each row, counted from 0.
    timestamps : (r,) float64 array, optional
        Its time in seconds from the first frame.
    num_source_frames, corrupt_frames : int
        Frames that the video has, and how many of them the decoder found damaged.
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
        """Return the CRC-32 of the rows, and of the scales where there are some."""
        value = zlib.crc32(np.ascontiguousarray(self.rows).data.cast("B") if self.rows.size else b"")
        return value if self.scales is None else zlib.crc32(np.ascontiguousarray(self.scales, "<f4").tobytes(), value)


def read_rows(stream: BinaryIO, header: Header, position: int) -> VideoRows:
    """Read one video of a feature file that is open for reading."""
    layout = header.layout
    start, count = int(layout.starts[position]), int(header.row_counts[position])
    if STATUSES[header.status[position]] in ("pending", "failed"):
        count = 0  # a kill in the middle of another try may have left the number of its rows

    def values(name: str, dtype: str, index: int, number: int, width: int = 1) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        stream.seek(header.offsets[name] + index * kind.itemsize * width)
        return np.frombuffer(stream.read(number * kind.itemsize * width), kind)

    rows = values("features", DTYPES[layout.dtype].str, start, count, layout.dim).reshape(count, layout.dim)
    return VideoRows(
        rows=rows,
        status=STATUSES[header.status[position]],
        reason=values("reasons", f"S{REASON_BYTES}", position, 1)[0].decode(errors="replace"),
        scales=values("scales", "<f4", start, count) if layout.dtype == "int8" else None,
        frame_indices=values("frame_indices", "<i4", start, count) if layout.timed else None,
        timestamps=values("timestamps", "<f8", start, count) if layout.timed else None,
        num_source_frames=int(values("num_source_frames", "<i4", position, 1)[0]),
        corrupt_frames=int(values("corrupt_frames", "<i4", position, 1)[0]),
    )
