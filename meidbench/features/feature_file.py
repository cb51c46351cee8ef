"""The feature file: HDF5 with the rows of all videos in one dataset, its layout, its header, and reading it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from meidbench.checks import one_of
from meidbench.errors import FeatureError
from meidbench.features.source import Array, FeatureSource, Handle, UnusableVideo, check_array

FORMAT = "meidbench-features"
FORMAT_VERSION = 1
STATUSES = ("pending", "ok", "salvaged", "failed")
PENDING, FAILED = STATUSES.index("pending"), STATUSES.index("failed")
READY = (STATUSES.index("ok"), STATUSES.index("salvaged"))
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "int8": np.dtype("i1")}
REASON_BYTES = 200
_HEADER_BYTES = 1 << 16

# A row of 2048 float16 is a memory page; the first row begins on a page of its own.
_ALIGNMENT = 4096
_STATUS = h5py.enum_dtype({name: code for code, name in enumerate(STATUSES)}, basetype="u1")
PER_VIDEO = {
    "row_counts": "<i4",
    "num_source_frames": "<i4",
    "corrupt_frames": "<i4",
    "source_sizes": "<i8",
    "checksums": "<u4",
}
PER_ROW = {"frame_indices": "<i4", "timestamps": "<f8", "scales": "<f4"}

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The parts of a feature file that are fixed before the first row is written.

    There are V ascending ``video_ids``, with room for ``rows`` (V,) of width D = ``dim``. If all are ``fixed`` to the
    same number T of rows, ``features`` is (V, T, D); otherwise it is (R, D), the rows of the videos end to end without
    padding. ``dtype`` is a key of ``DTYPES``; int8 has one scale per row. Of a ``timed`` file, the frame index and the
    time of each row are known. ``source_sizes`` (V,) are the bytes of each video's file (frames of a folder), which
    reveal a changed video; 0 where unknown.
    """

    video_ids: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    fixed: bool
    dim: int
    dtype: str
    timed: bool
    source_sizes: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if not self.video_ids:
            raise FeatureError("a feature file needs at least one video")
        if list(self.video_ids) != sorted(set(self.video_ids)):
            raise FeatureError("the ids of a feature file must be ascending, each once")
        one_of("dtype", self.dtype, tuple(DTYPES), FeatureError)
        if self.dim < 1 or self.rows.shape != (len(self.video_ids),) or self.rows.min() < 0:
            raise FeatureError(f"no room for {self.rows.shape} videos of {self.dim} numbers per row")
        if self.fixed and len(set(self.rows.tolist())) > 1:
            raise FeatureError("videos with different numbers of rows cannot share one number of rows")

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each video, (V,) int64."""
        return np.concatenate([[0], np.cumsum(self.rows)[:-1]]).astype(np.int64)

    @property
    def num_bytes(self) -> int:
        """Size of the whole file, except for some kilobytes."""
        row: int = self.dim * DTYPES[self.dtype].itemsize + 4 * (self.dtype == "int8") + 12 * self.timed
        return int(self.rows.sum()) * row + len(self.video_ids) * (REASON_BYTES + 50)


def create(path: Path, layout: Layout, recipe: Recipe) -> None:
    """Write a file of this layout in which every video is pending; rows take no space on disk yet."""
    videos, rows = len(layout.video_ids), int(layout.rows.sum())
    row_shape = (videos, int(layout.rows[0])) if layout.fixed else (rows,)
    with h5py.File(path, "w", alignment_threshold=_ALIGNMENT, alignment_interval=_ALIGNMENT) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["recipe"] = json.dumps(recipe, sort_keys=True, ensure_ascii=False)
        encoded = [video_id.encode() for video_id in layout.video_ids]
        names = np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded))))
        file.create_dataset("video_ids", data=names)
        _allocate(file, "status", (videos,), _STATUS)
        _allocate(file, "reasons", (videos,), h5py.string_dtype("utf-8", REASON_BYTES))
        for name, code in PER_VIDEO.items():
            _allocate(file, name, (videos,), np.dtype(code))
        file["source_sizes"][:] = layout.source_sizes
        if not layout.fixed:
            file.create_dataset("row_starts", data=layout.starts)
        for name, code in PER_ROW.items():
            if layout.dtype == "int8" if name == "scales" else layout.timed:
                _allocate(file, name, row_shape, np.dtype(code))
        # Last, so that all others lie together at the front. Its space is not written to here.
        _allocate(file, "features", (*row_shape, layout.dim), DTYPES[layout.dtype], fill=False)


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fill: bool = True) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if fill else h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), kind, space, plan)


@dataclass(frozen=True)
class Header:
    """All of a feature file except its rows.

    ``status`` (V,) has positions in ``STATUSES``, ``row_counts`` (V,) the rows that were written (0 for pending and
    failed videos), and ``offsets`` the byte of the file at which each dataset begins.
    """

    layout: Layout
    recipe: Recipe
    status: npt.NDArray[np.uint8]
    row_counts: npt.NDArray[np.int64]
    offsets: Mapping[str, int]


def read_header(path: Path) -> Header:
    """Read all except the rows of a file that ``create`` made; refuse a damaged one, and another version or file."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise FeatureError(f"{path} is not a feature file of meidbench; choose another name for the output")
            if (version := int(file.attrs["format_version"])) != FORMAT_VERSION:
                raise FeatureError(f"{path} is a feature file of version {version}; this is for {FORMAT_VERSION}")
            shape, dtype = file["features"].shape, file["features"].dtype
            fixed = len(shape) == 3
            ids = tuple(raw.decode() for raw in file["video_ids"][:].tolist())
            starts = None if fixed else file["row_starts"][:]
            rows = np.full(len(ids), shape[1]) if starts is None else np.diff(np.append(starts, shape[0]))
            layout = Layout(
                video_ids=ids,
                rows=rows.astype(np.int64),
                fixed=fixed,
                dim=int(shape[-1]),
                dtype=next(name for name, known in DTYPES.items() if known == dtype),
                timed="timestamps" in file,
                source_sizes=file["source_sizes"][:].astype(np.int64),
            )
            offsets = {name: int(file[name].id.get_offset() or 0) for name in file}  # an empty dataset has no offset
            recipe = json.loads(file.attrs["recipe"])
            status = file["status"][:].astype(np.uint8)
            counts = file["row_counts"][:].astype(np.int64)
    except FeatureError:
        raise
    except (OSError, KeyError, StopIteration, TypeError, ValueError, RuntimeError) as error:
        raise FeatureError(f"{path} is damaged, or not a feature file: {error}") from None
    if status.max(initial=0) >= len(STATUSES) or (counts < 0).any() or (counts > layout.rows).any():
        raise FeatureError(f"{path} is damaged: a status or a number of rows that cannot be")
    return Header(layout, recipe, status, counts, offsets)


def stored_checksums(path: Path) -> list[int]:
    """Return the checksum that each video of a feature file had when it was written."""
    with h5py.File(path, "r") as file:
        checksums: list[int] = file["checksums"][:].tolist()
    return checksums


def recipe_differences(stored: Recipe, wanted: Recipe) -> list[str]:
    """Describe how two recipes differ; versions of libraries and the shared list of videos do not change features."""
    keys = sorted((stored.keys() | wanted.keys()) - {"libraries", "shared_list"})
    differing = [key for key in keys if stored.get(key) != wanted.get(key)]
    return [
        f"{key}: {stored.get(key, 'not recorded')} there, {wanted.get(key, 'not recorded')} now" for key in differing
    ]


def is_feature_file(path: Path) -> bool:
    """Return whether a file begins with the attribute that ``create`` writes first; the HDF5 library is not asked."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    return start.startswith(b"\x89HDF") and FORMAT.encode() in start


class PackedFile(FeatureSource):
    """An HDF5 file with ``/video_ids`` and ``/features`` of (V, T, D), or (R, D) with ``/row_starts``, ``/row_counts``.

    The files that ``meidbench`` writes are contiguous and ``mapped``: rows are read straight from the file's pages.
    Chunked or compressed files of other programs are read by h5py, which is slower. ``read`` converts int8 rows to
    float32; ``dtype`` is that of the stored rows.
    """

    expected = "an HDF5 file with the rows of all videos in /features and their ids in /video_ids"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle = Handle(self.path)
        self._map: npt.NDArray[Any] | None = None
        self._scale_map: npt.NDArray[Any] | None = None
        try:
            self._read_index(self._handle.opened())
        except FeatureError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
            raise FeatureError(f"{self.path} cannot be used: {error}; expected {self.expected}") from None
        finally:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a map would pickle all its rows.
        return {**super().__getstate__(), "_map": None, "_scale_map": None}

    def close(self) -> None:  # noqa: D102
        self._handle.close()
        self._map = self._scale_map = None

    def first_rows(self, video_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the row of ``mapped_rows`` at which each of these videos begins, (n,) int64."""
        first: npt.NDArray[np.int64] = self._starts[[self._index[video_id] for video_id in video_ids]]
        return first

    def row_scales(self) -> npt.NDArray[np.float32] | None:
        """Return the (R,) float32 scales of all rows; None where the file has none."""
        if self._scaled and self._scale_map is None:
            with self._handle.reading() as file:
                self._scale_map = np.asarray(file["scales"][()], np.float32).reshape(-1)
            self._handle.close()
        return self._scale_map

    def _read_index(self, file: h5py.File) -> None:
        if "video_ids" not in file:
            raise FeatureError(f"{self.path} has /features but no /video_ids; expected {self.expected}")
        features = file["features"]
        shape, self.dtype = features.shape, features.dtype
        self._scaled = self.dtype == np.int8 and "scales" in file
        if len(shape) not in (2, 3):
            raise FeatureError(f"/features of {self.path} has shape {shape}; expected {self.expected}")
        try:
            check_array((1, shape[-1]), np.dtype(np.float16) if self._scaled else self.dtype)
        except UnusableVideo as error:
            expected = "expected float16, float32 or float64"
            raise FeatureError(f"/features of {self.path} is {error.detail}; {expected}") from None
        ids = [name if isinstance(name, str) else name.decode() for name in file["video_ids"][()].tolist()]
        self._index = {video_id: position for position, video_id in enumerate(ids)}
        fixed = self._fixed = len(shape) == 3
        joint = shape[0] * shape[1] if fixed else shape[0]
        if fixed:
            self._starts = np.arange(len(ids), dtype=np.int64) * shape[1]
            self._counts = np.full(len(ids), shape[1], np.int64)
        else:
            self._starts = file["row_starts"][()].astype(np.int64)
        if "row_counts" in file or not fixed:
            self._counts = file["row_counts"][()].astype(np.int64)
        self._status = file["status"][()].astype(np.uint8) if "status" in file else np.ones(len(ids), np.uint8)
        sizes = {len(self._index), len(self._starts), len(self._counts), len(self._status)}
        if sizes != {len(ids)} or (fixed and shape[0] != len(ids)):
            raise FeatureError(f"{self.path} contradicts itself: {len(ids):,} ids, not one for each video's rows")
        outside = (self._starts + self._counts > joint) | (self._counts > (shape[1] if fixed else joint))
        if (np.minimum(self._starts, self._counts) < 0).any() or outside.any():
            raise FeatureError(f"{self.path} contradicts itself: rows of a video lie outside /features")
        self._width, self._joint = int(shape[-1]), int(joint)
        # None where the rows are not contiguous in this file.
        external = features.id.get_create_plist().get_external_count()
        self._offset: int | None = None if external or not features.size else features.id.get_offset()
        self.mapped = self._offset is not None and self._maps_right(features)

    def _maps_right(self, features: h5py.Dataset) -> bool:
        """Return whether map and h5py agree on the first and last row; some file systems cannot map."""
        try:
            mapped = self.mapped_rows()
        except (OSError, ValueError):
            return False
        first, last = (0,) * (features.ndim - 1), tuple(size - 1 for size in features.shape[:-1])
        return all(mapped[at].tobytes() == features[row].tobytes() for at, row in ((0, first), (-1, last)))

    def mapped_rows(self) -> npt.NDArray[Any]:
        """Return the memory map of all rows, (R, D), read-only; only where ``mapped``."""
        if self._map is None:
            mapped = np.memmap(self.path, self.dtype, "r", self._offset or 0, (self._joint, self._width))
            self._map = np.asarray(mapped)  # without memmap's own costs at every access
        return self._map

    def ids(self) -> set[str]:  # noqa: D102
        return set(self._index)

    def _position(self, video_id: str) -> int:
        if video_id not in self._index:
            raise UnusableVideo("missing")
        position = self._index[video_id]
        if self._status[position] in READY:
            return position
        if self._status[position] != FAILED:
            raise UnusableVideo("pending")
        with self._handle.reading() as file:
            raw = file["reasons"][position] if "reasons" in file else ""
        reason = raw.decode(errors="replace")[:REASON_BYTES] if isinstance(raw, bytes) else str(raw)
        raise UnusableVideo("failed", reason)

    def shape(self, video_id: str) -> tuple[int, int]:  # noqa: D102
        shape = int(self._counts[self._position(video_id)]), self._width
        check_array(shape, np.dtype(np.float16))
        return shape

    def load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:  # noqa: D102
        stored, scales = self.load_stored(video_id, rows)
        result: Array = stored if scales is None else np.multiply(stored, scales[:, None], dtype=np.float32)
        return result

    def load_stored(
        self, video_id: str, rows: npt.NDArray[Any] | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
        """Return rows in the stored dtype, and the float32 scales of int8."""
        position = self._position(video_id)
        start, count = int(self._starts[position]), int(self._counts[position])
        indices = np.arange(count) if rows is None else rows.astype(np.int64)
        self._check_rows(video_id, indices, count)
        if self.mapped:
            stored = np.take(self.mapped_rows(), start + indices, axis=0)
        else:
            # h5py refuses repeated rows, and is slower on chosen ones.
            with self._handle.reading() as file:
                rows_of_all = file["features"]
                stored = rows_of_all[position, :count] if self._fixed else rows_of_all[start : start + count]
            stored = stored[indices]
        scales = self.row_scales()
        return stored, None if scales is None else scales[start + indices]
