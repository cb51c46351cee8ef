"""The base class of all stored features, and HDF5 files with one dataset per video."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from meidbench.errors import (
    FeatureError,
    RequestError,
    bullet_list,
    escape_controls,
    find_id_rule,
    first_few,
    write_count,
)
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
    "array": "without one array that must be the features",
    "dtype": "not float16, float32 or float64",
    "ndim": "not 2-D",
    "empty": "empty",
    "truncated": "truncated",
    "width": "not of the width of most",
}
_AGAIN = "Copy or extract damaged videos again."
# Where the features themselves are to be mended; "missing" depends on the source.
_REMEDIES = {
    "id": "An id is the name of a file without its folder and its ending; write the ids of the split so.",
    "pending": "Run the command that makes the file again: it continues.",
    "failed": "Run the command that made the file again with --retry-failed.",
    "unreadable": _AGAIN,
    "format": _AGAIN,
    "array": "Name the array that holds the features: open_features(PATH, dataset=NAME).",
    "dtype": 'Store numbers of other types as array.astype("float32").',
    "ndim": "Store one row per frame: average over other axes, such as those of a 7 x 7 grid; axes of size 1 may stay.",
    "empty": _AGAIN,
    "truncated": _AGAIN,
    "width": "Take the features of one network; where all have one number of rows, transpose them (C x T to T x C).",
}
HDF5_GROUP = "features"
_COMMAND = "'meidbench extract-features VIDEOS --out FILE.h5'"
EXPECTED = (
    f"a feature file ({_COMMAND} makes one of videos), a folder of VIDEO_ID.npy or VIDEO_ID.npz, or an HDF5 file with "
    f"/{HDF5_GROUP}/VIDEO_ID"
)
TYPES = "T x D, T at least 1, one D for all, float16, float32 or float64"

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


@dataclass(frozen=True)
class Naming:
    """The text before and after the id in the names of stored features, and the HDF5 path or the array of ``.npz``.

    Examples
    --------
    >>> naming = Naming(suffix="_clip")
    >>> naming.stored("ATOYW"), naming.video_id("ATOYW_clip"), naming.video_id("ATOYW_flow")
    ('ATOYW_clip', 'ATOYW', None)
    """

    prefix: str = ""
    suffix: str = ""
    dataset: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str):
                raise RequestError(f"{name} must be a text, got {value!r}")
            if name != "dataset" and not _FORBIDDEN_IN_IDS.isdisjoint(value):
                raise RequestError(f"{name}={value!r} is no part of a file's name; folders are searched without it")

    def stored(self, video_id: str) -> str:
        """Return the stored name of a video."""
        return f"{self.prefix}{video_id}{self.suffix}"

    def video_id(self, stored: str) -> str | None:
        """Return the id in a stored name; None where the name has another prefix or suffix."""
        if not self.prefix and not self.suffix:
            return stored
        fits = stored.startswith(self.prefix) and stored.endswith(self.suffix)
        return stored[len(self.prefix) : len(stored) - len(self.suffix)] or None if fits else None


class FeatureSource(ABC):
    """Frame features of videos, by id; ``open_features`` opens them.

    A source pickles without open files and may be used after a fork, so it can be passed to ``DataLoader`` workers. It
    remembers the shapes of videos that were checked; a pickled copy does not.
    """

    expected: str

    def __init__(self, path: Path, naming: Naming = Naming()) -> None:
        self.path, self.naming = path.absolute(), naming
        self._dim: int | None = None
        self._checked: dict[str, tuple[object, tuple[int, int]]] = {}
        self.squeezed: dict[str, tuple[int, ...]] = {}  # the stored shape of videos that are read as T x D, and are not
        self._has_told = False

    def __getstate__(self) -> dict[str, Any]:
        # Each spawned worker would get a copy (58 MB of 180,000 videos), and checks no video again.
        return {**self.__dict__, "_checked": {}, "squeezed": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def dim(self) -> int:
        """Width D of the videos that were checked last; before a check, of the first video by id."""
        if self._dim is None:
            ids = self.ids()
            if not ids:
                raise self.refuse_empty()
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
        if asked and not present:
            raise self.refuse_empty()
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
        found = {kind: names for kind, names in offenders.items() if names}
        listed = [f"{len(names):,} {words[kind]}: {first_few(names)}" for kind, names in found.items()]
        missing = found.get("missing", [])
        naming = self.find_naming(missing)
        remedies = [self.find_remedy(kind) for kind in found if kind != "missing"]
        if missing and not naming:
            remedies.insert(0, self._describe_videos())
        head = f"{sum(map(len, found.values())):,} of {write_count(asked, 'video')} cannot be used from {self.path}"
        lines = [f"{head}; {naming}" if naming else f"{head}:", bullet_list(listed)]
        lines += [f"Expected {self.expected}: {TYPES}.", *dict.fromkeys(remedies)]
        return FeatureError("\n".join(lines))

    def find_remedy(self, problem: str, missing: Collection[str] = ()) -> str:
        """Return what to do about a problem, a key of ``PROBLEMS``, with videos, which may be missing."""
        if problem != "missing":
            return _REMEDIES[problem]
        naming = self.find_naming(missing)
        return f"{naming[0].upper()}{naming[1:]}." if naming else self._describe_videos()

    def _describe_videos(self) -> str:
        ids = self.ids()
        number = write_count(len(ids), "video")
        there = f"These are features of {number}, such as {min(ids)}" if ids else "There are no features"
        return f"{there}: name those of this dataset, or make them of its videos: {_COMMAND}."

    def find_naming(self, missing: Collection[str]) -> str:
        """Return the one rule by which names in the source become ids that are missing; empty without one."""
        ids = self.ids() if missing else set()
        if (rule := find_id_rule(sorted(ids), missing)) is None:
            return ""
        if not (rule.prefix or rule.suffix):
            return f"rename these videos, or mend the ids of the split: {rule}"
        whole = Naming(self.naming.prefix + rule.prefix, rule.suffix + self.naming.suffix, self.naming.dataset)
        named = ", ".join(f'{name}="{part}"' for name, part in vars(whole).items() if part)
        first = next(name for name in sorted(missing) if f"{rule.prefix}{name}{rule.suffix}" in ids)
        return f"open these features with open_features(PATH, {named}): {whole.stored(first)} is the name of {first}"

    def refuse_empty(self) -> FeatureError:
        """Return the error for a source without any video."""
        return FeatureError(f"there are no features in {self.path}; expected {EXPECTED}")

    def take_notes(self) -> list[str]:
        """Return what users should know of the videos that were checked or read; a second call returns nothing."""
        if self._has_told or not self.squeezed:
            return []
        self._has_told = True
        video_id, shape = next(iter(self.squeezed.items()))
        rows, width = check_array(shape, np.dtype(np.float16))
        read = f"{video_id} of shape {shape} is read as {rows:,} x {width:,}"
        number = write_count(len(self.squeezed), "video")
        return [f"note: {number} in {self.path} with other axes than T x D: {read}"]

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
        """Return a text that changes where the naming, or the size or the time of a file of these videos changes."""
        facts = self.path.stat()
        return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}{self.naming if self.naming != Naming() else ''}"

    def size(self, video_id: str) -> int:
        """Return the bytes of the file that holds a video, which reveal a changed one; 0 where it is missing."""
        return self.path.stat().st_size

    def _squeeze(self, video_id: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> tuple[int, int]:
        """Return T x D of a stored array as ``check_array`` does, and keep the shape where it is another."""
        found = check_array(shape, dtype)
        if shape is not None and len(shape) != 2:
            self.squeezed[video_id] = shape
        return found

    def _version(self, video_id: str) -> object:
        """Return a value that changes with the file of a video; an HDF5 file does not change while it is read."""
        return None

    def _check_rows(self, video_id: str, rows: npt.NDArray[Any], num_frames: int) -> None:
        # numpy would count a negative index from the end, and a wrong sampler would go unnoticed.
        if (outside := rows[(rows < 0) | (rows >= num_frames)]).size:
            raise FeatureError(
                f"video {video_id} in {self.path} has rows 0 to {num_frames - 1}; asked for {first_few(outside)}"
            )


def check_array(shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return T x D of an array of floats; raise ``UnusableVideo`` for every other array.

    (D,) is one row. Of more than two axes, those of size 1 are left out: two others are T x D, and one is one row.

    Examples
    --------
    >>> half = np.dtype(np.float16)
    >>> check_array((1, 150, 2048), half), check_array((150, 2048, 1, 1), half), check_array((2048, 1, 1), half)
    ((150, 2048), (150, 2048), (1, 2048))
    """
    # numpy's long double is a float, too, but its bits depend on the machine.
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise UnusableVideo("dtype", str(dtype))
    axes = shape or ()
    if len(axes) > 2:
        axes = tuple(size for size in axes if size != 1) or (1,)
    if not 1 <= len(axes) <= 2:
        raise UnusableVideo("ndim", f"shape {shape}")
    if min(axes) < 1:
        raise UnusableVideo("empty", f"shape {shape}")
    return (axes[0] if len(axes) == 2 else 1), axes[-1]


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


class GroupedFile(FeatureSource):
    """An HDF5 file with one dataset per video: ``/GROUP/VIDEO_ID``, or ``/GROUP/VIDEO_ID/MEMBER`` with a ``member``."""

    def __init__(
        self,
        path: Path,
        naming: Naming = Naming(),
        *,
        group: str = HDF5_GROUP,
        member: str = "",
    ) -> None:
        super().__init__(path, naming)
        self._group_name, self._member = group, member
        place = "".join(f"/{part}" for part in (group, naming.stored("VIDEO_ID"), member) if part)
        self.expected = f"an HDF5 file with {place}"
        self._handle = Handle(self.path)

    def close(self) -> None:  # noqa: D102
        self._handle.close()

    def _group(self) -> Any:
        with self._handle.reading() as file:
            return open_inside(file, self._group_name)

    def ids(self) -> set[str]:  # noqa: D102
        with self._handle.reading():
            return {video_id for name in self._group() if (video_id := self.naming.video_id(name)) is not None}

    def shape(self, video_id: str) -> tuple[int, int]:  # noqa: D102
        return self._dataset(video_id)[1]

    def load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:  # noqa: D102
        dataset, shape = self._dataset(video_id)
        if rows is not None:
            self._check_rows(video_id, rows, shape[0])
        try:
            # h5py's own row selection refuses repeated rows, and is slower than reading all of them.
            whole: Array = dataset[()].reshape(shape)
        except (OSError, RuntimeError, ValueError) as error:
            raise UnusableVideo("unreadable", str(error)) from None
        return whole if rows is None else whole[rows.astype(np.intp)]

    def _dataset(self, video_id: str) -> tuple[Any, tuple[int, int]]:
        try:
            stored = self.naming.stored(video_id)
            dataset = open_inside(self._group(), f"{stored}/{self._member}" if self._member else stored)
            if dataset is None:
                raise UnusableVideo("missing")
            if not isinstance(dataset, h5py.Dataset):
                held = first_few(sorted(dataset)) if isinstance(dataset, h5py.Group) else ""
                raise UnusableVideo("array", f"a group of {held or 'nothing'}")
            return dataset, self._squeeze(video_id, dataset.shape, dataset.dtype)
        except FeatureError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UnusableVideo("unreadable", str(error)) from None
        except TypeError as error:  # numpy lacks some types of HDF5
            raise UnusableVideo("dtype", str(error)) from None
