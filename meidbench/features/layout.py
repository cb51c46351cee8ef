"""The feature file as it lies on disk: one HDF5 file, the rows of all videos in one contiguous dataset.

HDF5's own structures are written once, before the first row, and never again: whatever happens to the process that
fills in the rows, the file stays readable, and each video's status says whether its rows are there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError

FORMAT = "meidbench-features"
FORMAT_VERSION = 1
STATUSES = ("pending", "ok", "salvaged", "failed")
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "int8": np.dtype("i1")}
REASON_BYTES = 200

# Rows of 2048 float16 are a memory page each; the first begins on a page of its own.
_ALIGNMENT = 4096
_STATUS = h5py.enum_dtype({name: code for code, name in enumerate(STATUSES)}, basetype="u1")
_PER_VIDEO = {
    "row_counts": "<i4",
    "num_source_frames": "<i4",
    "corrupt_frames": "<i4",
    "source_sizes": "<i8",
    "checksums": "<u4",
}
_PER_ROW = {"frame_indices": "<i4", "timestamps": "<f8"}

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """What is fixed before the first row is written.

    Attributes
    ----------
    video_ids : tuple of str
        V ids, ascending.
    rows : (V,) int64 array
        How many rows there is room for, video by video.
    fixed : bool
        All videos have the same number T of rows: ``features`` is (V, T, D). Otherwise it is (R, D), the
        rows of the videos end to end without padding.
    dim : int
        D.
    dtype : str
        A key of ``DTYPES``; int8 has a scale a row.
    timed : bool
        Whether the frame index and the time of each row are known.
    source_sizes : (V,) int64 array
        Bytes of each video's file (frames of a folder), by which a changed one is noticed; 0 where unknown.
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
        if self.dtype not in DTYPES:
            raise FeatureError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        if self.dim < 1 or self.rows.shape != (len(self.video_ids),) or self.rows.min() < 0:
            raise FeatureError(f"no room for {self.rows.shape} videos of {self.dim} numbers a row")
        if self.fixed and len(set(self.rows.tolist())) > 1:
            raise FeatureError("videos with different numbers of rows cannot share one number of rows")

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each video, (V,) int64."""
        return np.concatenate([[0], np.cumsum(self.rows)[:-1]]).astype(np.int64)

    @property
    def num_bytes(self) -> int:
        """Size of the whole file, but for some kilobytes."""
        a_row: int = self.dim * DTYPES[self.dtype].itemsize + 4 * (self.dtype == "int8") + 12 * self.timed
        return int(self.rows.sum()) * a_row + len(self.video_ids) * (REASON_BYTES + 50)


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
        for name, code in _PER_VIDEO.items():
            _allocate(file, name, (videos,), np.dtype(code))
        file["source_sizes"][:] = layout.source_sizes
        if not layout.fixed:
            file.create_dataset("row_starts", data=layout.starts)
        for name, code in _PER_ROW.items() if layout.timed else ():
            _allocate(file, name, row_shape, np.dtype(code))
        if layout.dtype == "int8":
            _allocate(file, "scales", row_shape, np.dtype("<f4"))
        # Last, so that all else lies together at the front. Its space is never written to here.
        _allocate(file, "features", (*row_shape, layout.dim), DTYPES[layout.dtype], fill=False)


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fill: bool = True) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if fill else h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    h5py.h5d.create(
        file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape), plan
    )


@dataclass(frozen=True)
class Header:
    """All of a feature file but its rows.

    Attributes
    ----------
    layout : Layout
    recipe : dict
    status : (V,) uint8 array
        Positions in ``STATUSES``.
    row_counts : (V,) int64 array
        Rows that are there; 0 for pending and failed videos.
    offsets : dict of str to int
        Where the data of each dataset begins in the file, in bytes.
    """

    layout: Layout
    recipe: Recipe
    status: npt.NDArray[np.uint8]
    row_counts: npt.NDArray[np.int64]
    offsets: Mapping[str, int]


def read_header(path: Path) -> Header:
    """Read all but the rows of a file that ``create`` made.

    Raises
    ------
    FeatureError
        It is no such file, is damaged, or is of a later version.
    """
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
            offsets = {name: file[name].id.get_offset() for name in file}
            # A dataset without a byte has no place.
            offsets = {name: 0 if offset is None else int(offset) for name, offset in offsets.items()}
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
    """Return the checksum of each video of a feature file, as it was when the video was written."""
    with h5py.File(path, "r") as file:
        checksums: list[int] = file["checksums"][:].tolist()
    return checksums


def recipe_differences(stored: Recipe, wanted: Recipe) -> list[str]:
    """Say where two recipes differ in what changes features: versions of libraries and the list shared out do not."""
    keys = sorted((stored.keys() | wanted.keys()) - {"libraries", "shared_list"})
    return [
        f"{key}: {stored.get(key, 'not said')} there, {wanted.get(key, 'not said')} now"
        for key in keys
        if stored.get(key) != wanted.get(key)
    ]
