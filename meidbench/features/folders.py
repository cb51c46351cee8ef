"""Folders with one file of features per video: ``.npy``, or ``.npz`` archives. Pickled objects are never loaded."""

import lzma
import math
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from io import BufferedIOBase, BytesIO, FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from meidbench.errors import FeatureError, bullet_list, describe_content, first_few
from meidbench.features.foreign import describe_folder, describe_objects
from meidbench.features.source import Array, FeatureSource, Naming, UnusableVideo
from meidbench.files import find_stat

# Bytes that numpy writes before the data of an ordinary array, and more than it accepts (10,000 bytes).
_USUAL_HEADER = 128
_LONGEST_HEADER = 1 << 14
# A byte of deflated data holds at most this many bytes; numpy's archives are deflated or stored as they are.
_DEFLATE_RATIO = 1032
_ZIP_ERRORS = (
    *(ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


class NpyFolder(FeatureSource):
    """A folder with one ``VIDEO_ID.npy`` or, where it has none of these, one ``VIDEO_ID.npz`` per video.

    Where the folder itself has no such file, the folders below it are looked through, and each id must be in one of
    them. Files with other names do not matter. ``naming.dataset`` is the array to read of ``.npz`` files, or the file
    in a folder per video: ``rgb`` of ``VIDEO_ID/rgb.npy``.
    """

    def __init__(self, path: Path, naming: Naming = Naming()) -> None:  # noqa: B008 - immutable
        super().__init__(path, naming)
        name, member = naming.stored("VIDEO_ID"), naming.dataset
        self.expected = f"a folder of {name}/{member}.npy or {name}.npz" if member else f"a folder of {name}.npy"
        # The ending of all files, and the path of each file below where it lies deeper; found by ``ids``.
        self._places: tuple[str, dict[str, str]] | None = None

    def ids(self) -> set[str]:  # noqa: D102
        names, below = self._list("")
        for ending, stored in names.items():
            if any(not name.startswith(".") for name in stored):  # not files such as "._VIDEO_ID.npy"
                if ending == ".npy" and self.naming.dataset:
                    raise FeatureError(
                        f"{self.path} holds .npy files, and a .npy file has one array: leave out "
                        f'dataset="{self.naming.dataset}"'
                    )
                self._places = ending, {}
                return self._select(stored)
        found: dict[str, dict[str, list[str]]] = {ending: {} for ending in names}
        waiting, seen = below, set()
        while waiting:
            folder = waiting.pop()
            facts = find_stat(self.path / folder)
            # A link to a folder above, or a second one to the same folder.
            if facts is None or (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            names, below = self._list(folder)
            waiting += [f"{folder}/{name}" for name in below]
            for ending, stored in names.items():
                stored = [name for name in stored if not name.startswith(".")]
                if ending == ".npy" and (member := self.naming.dataset):
                    files = {video_id: member for video_id in self._select([Path(folder).name]) if member in stored}
                else:
                    files = {video_id: self.naming.stored(video_id) for video_id in self._select(stored)}
                for video_id, file in files.items():
                    found[ending].setdefault(video_id, []).append(f"{folder}/{file}")
        ending = next((ending for ending, files_of in found.items() if files_of), ".npy")
        self._refuse_doubled(ending, found[ending])
        self._places = ending, {video_id: files[0] for video_id, files in found[ending].items()}
        return set(found[ending])

    def _select(self, stored: Iterable[str]) -> set[str]:
        """Return the ids of stored names with the prefix and the suffix."""
        return {video_id for name in stored if (video_id := self.naming.video_id(name)) is not None}

    def _list(self, folder: str) -> tuple[dict[str, list[str]], list[str]]:
        """Return the files of a folder without their ending, by ending, and the folders in it."""
        names: dict[str, list[str]] = {".npy": [], ".npz": []}
        arrays, archives, folders = names[".npy"], names[".npz"], []
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.endswith(".npy"):
                        arrays.append(name[:-4])
                    elif name.endswith(".npz"):
                        archives.append(name[:-4])
                    elif not name.startswith(".") and _is_folder(entry):
                        folders.append(name)
        except OSError as error:
            raise FeatureError(f"cannot list the folder {self.path / folder}: {error.strerror}") from None
        return names, folders

    def _refuse_doubled(self, ending: str, found: dict[str, list[str]]) -> None:
        doubled = {video_id: sorted(files) for video_id, files in found.items() if len(files) > 1}
        if not doubled:
            return
        every = [file for files in found.values() for file in files]
        # Many folders with a few names are videos; a few folders with many names are subsets or classes.
        if ending == ".npy" and len(found) < len({file.rpartition("/")[0] for file in every}):
            raise FeatureError(
                f"{self.path} has a folder per video, with files such as {min(every)}{ending}; choose one of "
                f"{first_few(sorted(found))}: open_features(PATH, dataset=NAME)"
            )
        named = [f"{name}: {first_few(f'{file}{ending}' for file in doubled[name])}" for name in sorted(doubled)[:5]]
        raise FeatureError(
            f"{len(doubled):,} ids are in more than one folder of {self.path}; an id is the name of one file, "
            f"VIDEO_ID{ending}:\n{bullet_list(named)}\n"
            "Name one of these folders as the features, or keep one file of each video under its id."
        )

    def _find_places(self) -> tuple[str, dict[str, str]]:
        if self._places is None:
            self.ids()
        assert self._places is not None
        return self._places

    @property
    def ending(self) -> str:
        """The ending of all files, ``.npy`` or ``.npz``."""
        return self._find_places()[0]

    def _path(self, video_id: str) -> str:
        ending, places = self._find_places()
        return f"{self.path}/{places.get(video_id) or self.naming.stored(video_id)}{ending}"

    def refuse_empty(self) -> FeatureError:  # noqa: D102
        return FeatureError(f"there are no features in {self.path}; {describe_folder(self.path, self.naming)}")

    def find_remedy(self, problem: str, missing: Collection[str] = ()) -> str:  # noqa: D102
        return describe_objects(self.path) if problem == "objects" else super().find_remedy(problem, missing)

    def stamp(self, video_ids: Iterable[str]) -> str:  # noqa: D102
        return sha256("".join(f"{name} {self._version(name)}\n" for name in video_ids).encode()).hexdigest()

    def size(self, video_id: str) -> int:  # noqa: D102
        try:
            return os.stat(self._path(video_id)).st_size  # noqa: PTH116 - quicker
        except OSError:
            return 0

    def _version(self, video_id: str) -> object:
        try:
            facts = os.stat(self._path(video_id))  # noqa: PTH116 - quicker
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
                self._check_rows(video_id, rows, header.shape[0])
                if isinstance(stream, FileIO):
                    stored = np.memmap(stream, header.dtype, "r", header.offset, header.shape, order)
                    return np.asarray(stored)[rows.astype(np.intp)]
            # In one go; a memory map would read all rows page by page.
            whole = np.empty(math.prod(header.shape), header.dtype)
            if isinstance(stream, FileIO):
                stream.seek(header.offset)
            space = whole.view(np.uint8).data
            while space and (count := stream.readinto(space)):
                space = space[count:]
            if space:
                raise UnusableVideo("truncated", "while it was read")
            if not isinstance(stream, FileIO):
                stream.read(1)  # the checksum is compared at the end of an array of an archive
            array: Array = whole.reshape(header.shape, order=order)
            return array if rows is None else array[rows.astype(np.intp)]

    @contextmanager
    def _opened(self, video_id: str) -> Iterator[tuple[BufferedIOBase | FileIO, "_Header"]]:
        """Give a stream and the header of its array; that of a ``.npy`` file is a file, to be read from an offset."""
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer.
            with open(path := self._path(video_id), "rb", buffering=0, opener=_open_at_once) as stream:
                facts = os.fstat(stream.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    raise UnusableVideo("unreadable", "no regular file")
                if path.endswith(".npz"):
                    with _opened_array(stream, facts.st_size, self.naming.dataset) as (member, size):
                        yield member, self._read_header(video_id, member, size)
                else:
                    yield stream, self._read_header(video_id, stream, facts.st_size)
        except FileNotFoundError:
            raise UnusableVideo("missing") from None
        except OSError as error:
            raise UnusableVideo("unreadable", error.strerror or str(error)) from None

    def _read_header(self, video_id: str, stream: BufferedIOBase | FileIO, size: int) -> "_Header":
        """Read the header of an array and compare it with the size of its file."""
        head = stream.read(_USUAL_HEADER) if isinstance(stream, FileIO) else _read_exact_header(stream)
        try:
            try:
                # Most videos of a dataset have the same header, and parsing costs more than reading.
                shape, by_column, dtype, offset = _parse_usual_header(head)
            except _HeaderError:
                shape, by_column, dtype, offset = _parse_header(head + stream.read(_LONGEST_HEADER))
        except _HeaderError as error:
            if size < _USUAL_HEADER and (head.startswith(npy.MAGIC_PREFIX) or npy.MAGIC_PREFIX.startswith(head)):
                raise UnusableVideo("truncated", f"{size} bytes") from None
            pickled = describe_content(Path(self._path(video_id))) == "a pickle"
            raise UnusableVideo("objects" if pickled else "format", str(error)) from None
        if dtype.hasobject:
            raise UnusableVideo("objects")
        rows, width = self._squeeze(video_id, shape, dtype)
        needed = offset + rows * width * dtype.itemsize
        if size < needed or (size > needed and not isinstance(stream, FileIO)):
            raise UnusableVideo("truncated", f"{size:,} of {needed:,} bytes")
        # Without axes of size 1, the same numbers lie in the same order, by row and by column.
        return _Header((rows, width), by_column, dtype, offset)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Header(NamedTuple):
    shape: tuple[int, int]
    by_column: bool
    dtype: np.dtype[Any]
    offset: int


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


def _read_exact_header(stream: BufferedIOBase) -> bytes:
    """Read a header and nothing after it, because an archive is read in one direction."""
    head = stream.read(10)
    if head[:6] == npy.MAGIC_PREFIX and head[6:7] == b"\x02":
        head += stream.read(2)
    length = int.from_bytes(head[8:], "little")
    return head + stream.read(min(length, _LONGEST_HEADER))


@contextmanager
def _opened_array(stream: FileIO, file_size: int, key: str) -> Iterator[tuple[BufferedIOBase, int]]:
    """Open the array of features in an archive; give its stream and its size."""
    try:
        with zipfile.ZipFile(stream) as archive:
            arrays = [name.removesuffix(".npy") for name in archive.namelist()]
            key = key or (arrays[0] if len(arrays) == 1 else "features")
            if arrays.count(key) != 1:
                raise UnusableVideo("array", f"it holds {first_few(sorted(arrays)) or 'nothing'}")
            entry = next(entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") == key)
            ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}.get(entry.compress_type, 0)
            if entry.compress_size > file_size or entry.file_size > ratio * entry.compress_size:
                raise zipfile.BadZipFile(f"{key} of {entry.file_size:,} bytes is not stored as numpy stores arrays")
            with archive.open(entry) as member:
                yield cast(BufferedIOBase, member), entry.file_size
    except _ZIP_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnusableVideo("unreadable", f"no readable .npz file: {reason}") from None
