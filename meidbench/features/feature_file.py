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

from meidbench.checks import describe_missing, one_of, parse_json
from meidbench.errors import FeatureError, describe_content
from meidbench.features.source import TYPES, Array, FeatureSource, Handle, Naming, UnusableVideo, check_array
from meidbench.files import open_inside

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
    reveal a changed video; 0 where unknown. ``spans`` (V,) are the texts of ``meidbench.splits.rows.Span`` where videos
    are a part of a longer one, empty for the others; there are no entries where all are whole videos.
    """

    video_ids: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    fixed: bool
    dim: int
    dtype: str
    timed: bool
    source_sizes: npt.NDArray[np.int64]
    spans: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.video_ids:
            raise FeatureError("a feature file needs at least one video")
        if list(self.video_ids) != sorted(set(self.video_ids)):
            raise FeatureError("the ids of a feature file must be ascending, each once")
        one_of("dtype", self.dtype, tuple(DTYPES), FeatureError)
        if self.dim < 1 or self.rows.shape != (len(self.video_ids),) or self.rows.min() < 0:
            raise FeatureError(f"no room for {self.rows.shape} videos of {self.dim} numbers per row")
        if len(self.spans) not in (0, len(self.video_ids)):
            raise FeatureError(f"{len(self.spans)} spans for {len(self.video_ids)} videos")
        if self.fixed and len(set(self.rows.tolist())) > 1:
            raise FeatureError("videos with different numbers of rows cannot share one number of rows")

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each video, (V,) int64."""
        return np.concatenate([[0], np.cumsum(self.rows)[:-1]]).astype(np.int64)

    def span(self, position: int) -> str:
        """Return the text of a video's span, empty for a whole video."""
        return self.spans[position] if self.spans else ""

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
        if any(layout.spans):
            texts = [text.encode() for text in layout.spans]
            file.create_dataset("spans", data=np.array(texts, h5py.string_dtype("utf-8", max(map(len, texts)))))
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
    if not path.is_file():
        raise FeatureError(describe_missing("feature file", path))
    if (kind := describe_content(path)) not in ("an HDF5 file", ""):  # a feature file may have lost its first bytes
        raise FeatureError(f"{path} is {kind}; expected a feature file, as extract-features and pack-features write it")
    try:
        with h5py.File(path, "r") as file:
            return _read_header(file)
    except FeatureError as error:
        raise FeatureError(f"{path} {error}") from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, MemoryError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FeatureError(f"{path} is damaged, or not a feature file: {reason}") from None


def is_marked(file: h5py.File) -> bool:
    """Return whether an open HDF5 file has the mark of a feature file of this package."""
    return bool(np.array_equal(file.attrs.get("format"), FORMAT))


def _read_header(file: h5py.File) -> Header:
    if not is_marked(file):
        raise FeatureError("is not a feature file of meidbench; expected one of extract-features or pack-features")
    if not np.array_equal(version := file.attrs["format_version"], FORMAT_VERSION):
        raise FeatureError(f"is a feature file of version {version}; this is for {FORMAT_VERSION}")
    recipe = parse_json(file.attrs["recipe"])
    if not isinstance(recipe, dict):
        raise FeatureError("is damaged: its recipe is not a table of names and values")
    datasets = {name: found for name in file if isinstance(found := open_inside(file, name), h5py.Dataset)}
    needed = ["features", "video_ids", "status", "reasons", *PER_VIDEO]
    if lacking := [name for name in needed if name not in datasets]:
        raise FeatureError(f"is damaged: it lacks {', '.join(lacking)}")
    shape, dtype = datasets["features"].shape, datasets["features"].dtype
    if len(shape) not in (2, 3) or (len(shape) == 2) != ("row_starts" in datasets):
        has = "has" if "row_starts" in datasets else "lacks"
        raise FeatureError(f"is damaged: features has shape {shape}, and it {has} row_starts")
    fixed = len(shape) == 3
    ids = tuple(raw.decode() for raw in datasets["video_ids"][:].tolist())
    starts = None if fixed else datasets["row_starts"][:]
    rows = np.full(len(ids), shape[1]) if starts is None else np.diff(np.append(starts, shape[0]))
    try:
        layout = Layout(
            video_ids=ids,
            rows=rows.astype(np.int64),
            fixed=fixed,
            dim=int(shape[-1]),
            dtype=next((name for name, known in DTYPES.items() if known == dtype), str(dtype)),
            timed="timestamps" in datasets,
            source_sizes=datasets["source_sizes"][:].astype(np.int64),
            spans=tuple(raw.decode() for raw in datasets["spans"][:].tolist()) if "spans" in datasets else (),
        )
    except FeatureError as error:
        raise FeatureError(f"is damaged: {error}") from None
    if starts is not None and not np.array_equal(starts, layout.starts):
        raise FeatureError("is damaged: its row_starts are not those of videos end to end")
    _check_datasets(datasets, layout)
    status = datasets["status"][:].astype(np.uint8)
    counts = datasets["row_counts"][:].astype(np.int64)
    if status.max(initial=0) >= len(STATUSES) or (counts < 0).any() or (counts > layout.rows).any():
        raise FeatureError("is damaged: a status or a number of rows that cannot be")
    # An empty dataset has no offset.
    return Header(layout, recipe, status, counts, {name: int(datasets[name].id.get_offset() or 0) for name in datasets})


def _check_datasets(datasets: Mapping[str, Any], layout: Layout) -> None:
    """Check shape, type and place of each dataset; the rows are read at their offsets, without the HDF5 library."""
    videos, fixed = len(layout.video_ids), layout.fixed
    rows = (videos, int(layout.rows[0])) if fixed else (int(layout.rows.sum()),)
    per_row = [name for name in PER_ROW if (layout.dtype == "int8" if name == "scales" else layout.timed)]
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        "status": ((videos,), "u1"),
        "reasons": ((videos,), f"S{REASON_BYTES}"),
        **{name: ((videos,), code) for name, code in PER_VIDEO.items()},
        **{name: (rows, PER_ROW[name]) for name in per_row},
        "features": ((*rows, layout.dim), DTYPES[layout.dtype]),
    }
    if stray := [name for name in PER_ROW if name in datasets and name not in expected]:
        raise FeatureError(f"is damaged: it has {', '.join(stray)}, and {layout.dtype} rows need none")
    for name, (shape, dtype) in expected.items():
        dataset = datasets.get(name)
        if dataset is None or dataset.shape != shape or dataset.dtype != np.dtype(dtype):
            there = "missing" if dataset is None else f"{dataset.dtype} of {dataset.shape}"
            raise FeatureError(f"is damaged: {name} is {there}, expected {np.dtype(dtype)} of {shape}")
        if dataset.chunks or (dataset.size and dataset.id.get_offset() is None):
            raise FeatureError(
                f"was rewritten by another program: {name} is not contiguous; restore the original, or try "
                "'h5repack -l CONTI -f NONE' on it"
            )


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


# In a file of others: the ids, and the datasets that tell where the rows of each video are.
ID_NAMES = ("video_ids", "ids")
INDEX = ("row_starts", "row_counts", "status", "scales")


class PackedFile(FeatureSource):
    """An HDF5 file with ``/video_ids`` and ``/features`` of (V, T, D), or (R, D) with ``/row_starts``, ``/row_counts``.

    In files of others, ``naming.dataset`` may be in the place of ``/features``, ``ids`` beside it in that of
    ``/video_ids``, and (V, D) is one row per video.

    The files that ``meidbench`` writes are contiguous and ``mapped``: rows are read straight from the file's pages.
    Chunked or compressed files of other programs are read by h5py, which is slower. ``read`` converts int8 rows to
    float32; ``dtype`` is that of the stored rows. ``header`` is that of a feature file; None for files of others.
    """

    def __init__(self, path: Path, naming: Naming = Naming()) -> None:  # noqa: B008 - immutable
        super().__init__(path, naming)
        self._name = naming.dataset.strip("/") or "features"
        self.expected = f"an HDF5 file with the rows of all videos in /{self._name} and their ids in /video_ids or /ids"
        self._handle = Handle(self.path)
        self._map: npt.NDArray[Any] | None = None
        self._scale_map: npt.NDArray[Any] | None = None
        self.header: Header | None = None
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
        if is_feature_file(self.path) or is_marked(file):
            self.header = read_header(self.path)
        features = open_inside(file, self._name)
        shape, self.dtype = features.shape, features.dtype
        self._stored_shape: tuple[int, ...] | None = None  # of a video of others that is not T x D
        if len(shape or ()) < 2:
            raise FeatureError(f"/{self._name} of {self.path} has shape {shape}; expected {self.expected}")
        if self.header is not None:
            layout = self.header.layout
            ids: Sequence[str] = layout.video_ids
            self._scaled = layout.dtype == "int8"
            self._starts, self._counts, self._status = layout.starts, self.header.row_counts, self.header.status
        else:
            ids, shape = self._read_index_of_others(file, shape)
        fixed = self._fixed = len(shape) == 3
        joint = shape[0] * shape[1] if fixed else shape[0]
        positions = {stored: position for position, stored in enumerate(ids)}
        named = {self.naming.video_id(stored): position for stored, position in positions.items()}
        self._index = {video_id: position for video_id, position in named.items() if video_id is not None}
        sizes = {len(positions), len(self._starts), len(self._counts), len(self._status)}
        if sizes != {len(ids)} or (fixed and shape[0] != len(ids)):
            raise FeatureError(f"{self.path} contradicts itself: {len(ids):,} ids, not one for each video's rows")
        outside = (self._starts + self._counts > joint) | (self._counts > (shape[1] if fixed else joint))
        if (np.minimum(self._starts, self._counts) < 0).any() or outside.any():
            raise FeatureError(f"{self.path} contradicts itself: rows of a video lie outside /{self._name}")
        self._width, self._joint = int(shape[-1]), int(joint)
        # None where the rows are not contiguous.
        self._offset: int | None = features.id.get_offset() if features.size else None
        self.mapped = self._offset is not None and self._maps_right(features)

    def _read_index_of_others(self, file: h5py.File, shape: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
        """Read where the rows of each video are, from a file of another program; return the ids, and (V, T, D)."""
        found = {name: dataset for name in INDEX if (dataset := open_inside(file, name)) is not None}
        beside = self._name.rpartition("/")[0]
        places = [f"{beside}/{name}" for name in ID_NAMES if beside] + [*ID_NAMES]
        stored = next((dataset for name in places if (dataset := open_inside(file, name)) is not None), None)
        if stored is None:
            raise FeatureError(f"{self.path} has /{self._name} but no /video_ids; expected {self.expected}")
        if stored.dtype.kind not in "OS" or len(stored.shape) != 1:
            raise FeatureError(
                f"the ids of {self.path} are {stored.dtype} of shape {stored.shape}; expected texts (n,)"
            )
        ids = [name if isinstance(name, str) else name.decode() for name in stored[()].tolist()]
        self._scaled = self.dtype == np.int8 and "scales" in found
        dtype = np.dtype(np.float16) if self._scaled else self.dtype
        try:
            if len(shape) == 2 and "row_starts" in found:
                check_array((1, shape[-1]), dtype)
            else:
                self._stored_shape = shape[1:] if len(shape) != 3 else None
                shape = (shape[0], *check_array(shape[1:], dtype))
        except UnusableVideo as error:
            raise FeatureError(f"/{self._name} of {self.path} is {error.detail}; expected {TYPES}") from None
        if len(shape) == 3:
            self._starts = np.arange(len(ids), dtype=np.int64) * shape[1]
            self._counts = np.full(len(ids), shape[1], np.int64)
        else:
            self._starts = found["row_starts"][()].astype(np.int64)
        if "row_counts" in found or len(shape) == 2:
            self._counts = found["row_counts"][()].astype(np.int64)
        self._status = found["status"][()].astype(np.uint8) if "status" in found else np.ones(len(ids), np.uint8)
        return ids, shape

    def _maps_right(self, features: h5py.Dataset) -> bool:
        """Return whether map and h5py agree on the first and last row; some file systems cannot map."""
        try:
            mapped = self.mapped_rows()
        except (OSError, ValueError):
            return False
        ends = [np.asarray(features[at]).reshape(-1, self._width)[at] for at in (0, -1)]
        return all(mapped[at].tobytes() == row.tobytes() for at, row in zip((0, -1), ends, strict=True))

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
        if self._stored_shape is not None:
            return self._squeeze(video_id, self._stored_shape, np.dtype(np.float16))
        return check_array(shape, np.dtype(np.float16))

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
                rows_of_all = file[self._name]
                stored = rows_of_all[position] if self._fixed else rows_of_all[start : start + count]
                stored = stored.reshape(-1, self._width)
            stored = stored[indices]
        scales = self.row_scales()
        return stored, None if scales is None else scales[start + indices]
