"""The base class of all stored features, and two forms of them: a folder of .npy files and grouped HDF5."""

import math
import os
import stat
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from io import BytesIO, FileIO
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from tqdm import tqdm

from meidbench.errors import FeatureError, bullet_list, escape_controls, first_few
from meidbench.files import open_inside

# The words for each problem, in the order in which a message lists them.
PROBLEMS = {
    "missing": "missing",
    "id": "no usable id (empty, a dot, with a path separator, or not UTF-8)",
    "pending": "not there yet (the file is not finished)",
    "failed": "could not be extracted",
    "unreadable": "cannot be read",
    "format": "not a .npy file",
    "objects": "pickled Python objects, which are never loaded",
    "dtype": "not float16, float32 or float64",
    "ndim": "not 2-D",
    "empty": "empty",
    "truncated": "truncated",
    "width": "not of the width of most",
}

# A backslash separates folders on Windows only, but such a file could not be copied there. A colon ends a drive there.
_FORBIDDEN_IN_IDS = frozenset("/\\\0:" if os.name == "nt" else "/\\\0")
Array = npt.NDArray[np.floating[Any]]


class UnusableVideo(Exception):
    """One video cannot be used; ``problem`` is a key of ``PROBLEMS``."""

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem, self.detail = problem, detail

    def __str__(self) -> str:
        return with_detail(PROBLEMS[self.problem], self.detail)


class FeatureSource(ABC):
    """Frame features of videos, by id; ``open_features`` opens them.

    A source pickles without open files and may be used after a fork, so it can be passed to ``DataLoader`` workers. It
    remembers the shapes of videos that were checked; a pickled copy does not.
    """

    expected: str

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._dim: int | None = None
        self._checked: dict[str, tuple[object, tuple[int, int]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Each spawned worker would get a copy (58 MB of 180,000 videos), and checks no video again.
        return {**self.__dict__, "_checked": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def dim(self) -> int:
        """Width D of the videos that were checked last; before a check, of the first video by id."""
        if self._dim is None:
            ids = self.ids()
            if not ids:
                raise FeatureError(f"there are no features in {self.path}; expected {self.expected}")
            with self._refusing(first := min(ids)):
                self._dim = self.shape(first)[1]
        return self._dim

    def num_frames(self, video_id: str) -> int:
        """Return the number of rows T of a video; raises as ``read`` does."""
        with self._refusing(video_id):
            return self.shape(video_id)[0]

    def read(self, video_id: str, indices: npt.ArrayLike | None = None) -> Array:
        """Return rows of a video as an array (rows, D) in the stored dtype.

        ``indices`` are (rows,) integers, counted from 0, in any order, also repeated; all rows where left out.

        Raises
        ------
        FeatureError
            The video is missing or malformed (as for ``check``), or has no such row.
        """
        rows = None if indices is None else np.asarray(indices)
        if rows is not None and (rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu")):
            raise FeatureError(f"row indices must be a list of integers, got {rows.dtype} of shape {rows.shape}")
        with self._refusing(video_id):
            return self.load(video_id, rows)

    def check(self, video_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Check that all these videos have usable features of one width; return the (n,) int64 rows T of each video.

        Only headers are read, and of each video once. A terminal shows a bar where that takes more than a second.

        Raises
        ------
        FeatureError
            Some are missing, unreadable, truncated, not 2-D, empty, not float16/32/64, or not of the width of
            most. One message has the number and the first five of each kind.
        """
        asked = list(video_ids)
        present = self.ids()
        shapes: dict[str, tuple[int, int]] = {}
        offenders: dict[str, list[str]] = {problem: [] for problem in PROBLEMS}
        title = f"checking {escape_controls(self.path.name)}"
        unique = dict.fromkeys(asked)
        for video_id in tqdm(unique, desc=title, unit=" videos", disable=None, delay=1.0, leave=False):
            try:
                check_id(video_id)
                if video_id not in present:
                    raise UnusableVideo("missing")
                version, known = self._version(video_id), self._checked.get(video_id)
                if known is None or known[0] != version:
                    known = self._checked[video_id] = version, self.shape(video_id)
                shapes[video_id] = known[1]
            except UnusableVideo as error:
                offenders[error.problem].append(_named(video_id, error))
        widths = Counter(width for _, width in shapes.values())
        usual = widths.most_common(1)[0][0] if widths else None
        offenders["width"] = [f"{name} ({width})" for name, (_, width) in shapes.items() if width != usual]
        if any(offenders.values()):
            raise self._refusal(offenders, len(unique), usual)
        if usual is not None:
            self._dim = usual
        return np.array([shapes[video_id][0] for video_id in asked], dtype=np.int64)

    def close(self) -> None:  # noqa: B027 - a folder keeps nothing open
        """Close what is open; it is opened again when next needed."""

    @contextmanager
    def _refusing(self, video_id: str) -> Iterator[None]:
        """Check an id, and turn ``UnusableVideo`` into the error that users see."""
        try:
            check_id(video_id)
            yield
        except UnusableVideo as error:
            raise self._refusal({error.problem: [_named(video_id, error)]}, 1, None) from None

    def _refusal(self, offenders: dict[str, list[str]], asked: int, width: int | None) -> FeatureError:
        words = {**PROBLEMS, "width": f"{PROBLEMS['width']} ({width})"}
        found = [f"{len(names):,} {words[kind]}: {first_few(names)}" for kind, names in offenders.items() if names]
        remedy = "Copy or extract these videos again"
        if offenders.get("missing"):
            ids = self.ids()
            example = f", such as {min(ids)}" if ids else ""
            remedy += f", or name the features of this dataset (these are of {len(ids):,} videos{example})"
        return FeatureError(
            f"{sum(map(len, offenders.values())):,} of {asked:,} videos cannot be used from {self.path}:\n"
            f"{bullet_list(found)}\n"
            f"Expected {self.expected}: T x D, T at least 1, one D for all, float16, float32 or float64.\n"
            f"{remedy}."
        )

    @abstractmethod
    def ids(self) -> set[str]:
        """Return all ids in the source, of usable videos or not."""

    @abstractmethod
    def shape(self, video_id: str) -> tuple[int, int]:
        """Return (T, D) without reading values, or raise ``UnusableVideo``."""

    @abstractmethod
    def load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:
        """Return these rows or all as an array of its own, or raise ``UnusableVideo``."""

    def stamp(self, video_ids: Iterable[str]) -> str:
        """Return a text that changes where the size or the time of a file of these videos changes."""
        facts = self.path.stat()
        return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"

    def _version(self, video_id: str) -> object:
        """Return a value that changes with the file of a video; an HDF5 file does not change while it is read."""
        return None

    def _check_rows(self, video_id: str, rows: npt.NDArray[Any], num_frames: int) -> None:
        # numpy would count a negative index from the end, and a wrong sampler would go unnoticed.
        if (outside := rows[(rows < 0) | (rows >= num_frames)]).size:
            raise FeatureError(
                f"video {video_id} in {self.path} has rows 0 to {num_frames - 1}; asked for {first_few(outside)}"
            )


def check_array(shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> None:
    """Refuse everything but T x D arrays of floats."""
    # numpy's long double is a float, too, but its bits depend on the machine.
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise UnusableVideo("dtype", str(dtype))
    if shape is None or len(shape) != 2:
        raise UnusableVideo("ndim", f"shape {shape}")
    if min(shape) < 1:
        raise UnusableVideo("empty", f"shape {shape}")


def is_usable_id(video_id: str) -> bool:
    """Return whether an id can name a file in a folder and a dataset of an HDF5 file, and leads to no other place."""
    # Python keeps the undecodable bytes of a file's name as surrogates, which UTF-8 cannot hold.
    undecoded = not video_id.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in video_id)
    return not undecoded and video_id not in ("", ".", "..") and _FORBIDDEN_IN_IDS.isdisjoint(video_id)


def check_id(video_id: str) -> None:
    """Refuse an id that is not usable."""
    if not is_usable_id(video_id):
        raise UnusableVideo("id")


def with_detail(name: str, detail: str) -> str:
    """Return a name with a detail in brackets, if there is one."""
    return f"{name} ({detail})" if detail else name


def _named(video_id: str, error: UnusableVideo) -> str:
    return with_detail(repr(video_id) if error.problem == "id" else video_id, error.detail)


# Bytes that numpy writes before the data of an ordinary array, and more than it accepts (10,000 bytes).
_USUAL_HEADER = 128
_LONGEST_HEADER = 1 << 14


class NpyFolder(FeatureSource):
    """A folder with one ``VIDEO_ID.npy`` per video; files with other names do not matter."""

    expected = "a folder of VIDEO_ID.npy"

    def ids(self) -> set[str]:  # noqa: D102
        try:
            with os.scandir(self.path) as entries:
                return {entry.name[:-4] for entry in entries if entry.name.endswith(".npy")}
        except OSError as error:
            raise FeatureError(f"cannot list the folder {self.path}: {error.strerror}") from None

    def stamp(self, video_ids: Iterable[str]) -> str:  # noqa: D102
        return sha256("".join(f"{name} {self._version(name)}\n" for name in video_ids).encode()).hexdigest()

    def _version(self, video_id: str) -> object:
        try:
            facts = (self.path / f"{video_id}.npy").stat()
        except OSError:
            return None
        return facts.st_size, facts.st_mtime_ns, facts.st_ino

    def shape(self, video_id: str) -> tuple[int, int]:  # noqa: D102
        with self._opened(video_id) as (_, header):
            return header.shape

    def load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:  # noqa: D102
        with self._opened(video_id) as (stream, header):
            order: Literal["C", "F"] = "F" if header.by_column else "C"
            if rows is not None:
                stored = np.memmap(stream, header.dtype, "r", header.offset, header.shape, order)
                self._check_rows(video_id, rows, len(stored))
                return np.asarray(stored)[rows.astype(np.intp)]
            # In one go; a memory map would read all rows page by page.
            whole = np.empty(math.prod(header.shape), header.dtype)
            stream.seek(header.offset)
            space = whole.view(np.uint8).data
            while space and (count := stream.readinto(space)):
                space = space[count:]
            if space:
                raise UnusableVideo("truncated", "while it was read")
            return whole.reshape(header.shape, order=order)

    @contextmanager
    def _opened(self, video_id: str) -> Iterator[tuple[FileIO, "_Header"]]:
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer.
            with open(self.path / f"{video_id}.npy", "rb", buffering=0, opener=_open_at_once) as stream:
                yield stream, _read_header(stream)
        except FileNotFoundError:
            raise UnusableVideo("missing") from None
        except OSError as error:
            raise UnusableVideo("unreadable", error.strerror or str(error)) from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Header(NamedTuple):
    shape: tuple[int, int]
    by_column: bool
    dtype: np.dtype[Any]
    offset: int


def _read_header(stream: FileIO) -> _Header:
    """Read the header of a ``.npy`` file and check it against the size of the file."""
    facts = os.fstat(stream.fileno())
    if not stat.S_ISREG(facts.st_mode):
        raise UnusableVideo("unreadable", "no regular file")
    head, size = stream.read(_USUAL_HEADER), facts.st_size
    try:
        try:
            # Most videos of a dataset have the same header, and parsing costs more than reading.
            shape, by_column, dtype, offset = _parse_usual_header(head)
        except _HeaderError:
            shape, by_column, dtype, offset = _parse_header(head + stream.read(_LONGEST_HEADER))
    except _HeaderError as error:
        if size < _USUAL_HEADER and (head.startswith(npy.MAGIC_PREFIX) or npy.MAGIC_PREFIX.startswith(head)):
            raise UnusableVideo("truncated", f"{size} bytes") from None
        raise UnusableVideo("format", str(error)) from None
    if dtype.hasobject:
        raise UnusableVideo("objects")
    check_array(shape, dtype)
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise UnusableVideo("truncated", f"{size:,} of {needed:,} bytes")
    return _Header((shape[0], shape[1]), by_column, dtype, offset)


class _HeaderError(Exception):
    """A ``.npy`` header cannot be parsed."""


def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether in Fortran order, dtype and offset of the data."""
    stream = BytesIO(head)
    try:
        version = npy.read_magic(stream)
    except ValueError:
        raise _HeaderError("it does not begin as one") from None
    # Version 3 is for structured arrays whose field names are not Latin-1, which features never are.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise _HeaderError(f"format version {version[0]}.{version[1]}")
    try:
        with warnings.catch_warnings():
            # Shapes written by Python 2 ("150L") are read all the same; a warning per file helps nobody.
            warnings.simplefilter("ignore")
            shape, by_column, dtype = readers[version](stream)
    except Exception as error:
        # Not only ValueError: on a damaged header, numpy passes on the errors of Python's tokenizer.
        raise _HeaderError(f"damaged header: {str(error).partition(chr(10))[0]}") from None
    return shape, by_column, dtype, stream.tell()


_parse_usual_header = lru_cache(maxsize=256)(_parse_header)


class Handle:
    """An HDF5 file that each process opens for itself, because processes must not share handles; it pickles closed."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        self._file: Any = None
        self._owner = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def close(self) -> None:
        """Close the file; it is opened again when next needed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def opened(self) -> h5py.File:
        """Return the open file; raise ``FeatureError`` where it cannot be opened."""
        if self._owner != os.getpid():
            # Close the handle that a fork copied, or HDF5 would use the parent's descriptor again. A thread that the
            # fork did not copy may have held the lock.
            self._lock = Lock()
            self.close()
            self._owner = os.getpid()
        with self._lock:
            if self._file is None:
                try:
                    self._file = h5py.File(self.path, "r")
                except OSError as error:
                    raise FeatureError(f"cannot open {self.path}: {error}; copy or extract it again") from None
            return self._file

    @contextmanager
    def reading(self) -> Iterator[h5py.File]:
        """Give the open file, and turn the errors of a damaged one into ``FeatureError``."""
        try:
            yield self.opened()
        except FeatureError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(f"cannot read {self.path}: {error}; copy or extract it again") from None


HDF5_GROUP = "features"


class GroupedFile(FeatureSource):
    """An HDF5 file with one dataset ``/features/VIDEO_ID`` per video."""

    expected = f"an HDF5 file with /{HDF5_GROUP}/VIDEO_ID"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle = Handle(self.path)
        try:
            self._group()  # at once, to refuse other files
        finally:
            self.close()

    def close(self) -> None:  # noqa: D102
        self._handle.close()

    def _group(self) -> Any:
        with self._handle.reading() as file:
            group = open_inside(file, HDF5_GROUP)
            if not isinstance(group, h5py.Group):
                held = f"has no group /{HDF5_GROUP} (it holds {first_few(sorted(file)) or 'nothing'})"
                predicted = ": it has predictions" if "scores" in file else ""
                raise FeatureError(f"{self.path} {held}{predicted}; expected {self.expected}")
        return group

    def ids(self) -> set[str]:  # noqa: D102
        with self._handle.reading():
            return set(self._group())

    def shape(self, video_id: str) -> tuple[int, int]:  # noqa: D102
        rows, width = self._dataset(video_id).shape
        return rows, width

    def load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:  # noqa: D102
        dataset = self._dataset(video_id)
        if rows is not None:
            self._check_rows(video_id, rows, len(dataset))
        try:
            # h5py's own row selection refuses repeated rows, and is slower than reading all of them.
            whole: Array = dataset[()]
        except (OSError, RuntimeError, ValueError) as error:
            raise UnusableVideo("unreadable", str(error)) from None
        return whole if rows is None else whole[rows.astype(np.intp)]

    def _dataset(self, video_id: str) -> Any:
        try:
            dataset = open_inside(self._group(), video_id)
            if dataset is None:
                raise UnusableVideo("missing")
            if not isinstance(dataset, h5py.Dataset):
                raise UnusableVideo("ndim", "a group, not a dataset")
            check_array(dataset.shape, dataset.dtype)
        except FeatureError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UnusableVideo("unreadable", str(error)) from None
        except TypeError as error:  # numpy lacks some types of HDF5
            raise UnusableVideo("dtype", str(error)) from None
        return dataset
