"""Prediction files that hold arrays: NumPy's archives and matrices, and HDF5. Pickled objects are never loaded."""

import lzma
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from meidbench.errors import PredictionError, first_few, write_count
from meidbench.files import open_inside, rehearse
from meidbench.predictions.base import (
    BLOCK_ROWS,
    CLASS_NAMES,
    ID_NAMES,
    LONGEST_ID,
    PredictionFile,
    Scores,
    find_names,
    id_text,
)

_EXPECTED = (
    "expected video_ids (n,) and scores (n, C); meidbench.write_predictions(path, video_ids, scores) writes them"
)
# numpy parses headers with Python's own tokenizer, hence SyntaxError, TokenError and RecursionError.
_NUMPY_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, MemoryError),
    *(OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_Refusal = Callable[[str], PredictionError]
_Array = tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]  # a stream after its header, shape, by column, dtype


class NpyFile(PredictionFile):
    """A matrix ``scores`` (n, C), whose ids are in another file: text with one id per line, or ``.npy`` of text."""

    def __init__(self, path: Path, ids: Path | None) -> None:
        super().__init__(path)
        if ids is None:
            raise self.refusal(
                "it is a matrix without video ids. Name the file of the ids, one per line in the order of the rows, by "
                "video_ids=FILE, or write meidbench.write_predictions(path, video_ids, scores)"
            )
        with self._scores() as (_, shape, _, self.dtype):
            pass
        self._ids_path = ids
        if len(shape) != 2:
            raise self.refusal(f"the scores have shape {shape}; expected (videos, classes)")
        self.num_videos, self.num_classes = shape
        if len(self.video_ids) != self.num_videos:
            rows = write_count(self.num_videos, "row")
            held = f"{ids} has {write_count(len(self.video_ids), 'id')}, the scores have {rows}"
            raise self.refusal(f"{held}; expected one id per row, in the order of the rows")

    @contextmanager
    def _scores(self) -> Iterator[_Array]:
        with self.refusing(".npy file", _NUMPY_ERRORS), self.path.open("rb") as stream:
            yield stream, *_read_header(stream, "scores", self.path.stat().st_size)

    def _read_ids(self) -> list[str]:
        with self._ids_path.open("rb") as stream:
            if stream.read(6) != npy.MAGIC_PREFIX:
                return self._read_lines()
            stream.seek(0)
            with self.refusing(f"file of ids {self._ids_path}", _NUMPY_ERRORS):
                header = _read_header(stream, "the ids", self._ids_path.stat().st_size)
                return _read_texts(stream, *header, self.refusal, str(self._ids_path))

    def _read_lines(self) -> list[str]:
        try:
            lines = [line.strip() for line in self._ids_path.read_text(encoding="utf-8-sig").split("\n")]
        except UnicodeDecodeError:
            raise self.refusal(f"{self._ids_path} is neither text with one id per line nor a .npy of text") from None
        ids = [line for line in lines if line]
        return ids[1:] if len(ids) == self.num_videos + 1 and find_names(ids[:1], ID_NAMES) else ids

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._scores() as array:
            yield from _read_blocks(*array)


class NpzFile(PredictionFile):
    """Arrays ``video_ids`` (n,) of text and ``scores`` (n, C) in a zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self.refusing("NPZ archive", _NUMPY_ERRORS), zipfile.ZipFile(self.path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        self._scores_name = self.find_scores(names, "arrays", _EXPECTED)
        if not (found := find_names(names, ID_NAMES)):
            raise self.refusal(f"it lacks video_ids; it holds {first_few(names)}; {_EXPECTED}")
        self._ids_name = found[0]
        with self._array(self._scores_name) as (_, shape, _, self.dtype):
            pass
        with self._array(self._ids_name) as (_, ids_shape, _, ids_dtype):
            _check_texts(ids_shape, ids_dtype, self.refusal, self._ids_name)
        if len(shape) != 2 or shape[0] != ids_shape[0]:
            raise self.refusal(f"the scores have shape {shape}; expected ({ids_shape[0]:,}, classes)")
        self.num_videos, self.num_classes = shape
        for name in find_names(names, CLASS_NAMES):
            with self._array(name) as array:
                if self.has_class_names(name, array[1], array[3].kind in "US"):
                    self.class_names = _read_texts(*array, self.refusal, name)

    @contextmanager
    def _array(self, name: str) -> Iterator[_Array]:
        with self.refusing("NPZ archive", _NUMPY_ERRORS), zipfile.ZipFile(self.path) as archive:
            if archive.namelist().count(f"{name}.npy") != 1:
                raise self.refusal(f"it holds {name} more than once, or not as .npy")
            with archive.open(f"{name}.npy") as stream:
                yield stream, *_read_header(stream, name, archive.getinfo(f"{name}.npy").file_size)

    def _read_ids(self) -> list[str]:
        with self._array(self._ids_name) as array:
            return _read_texts(*array, self.refusal, self._ids_name)

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._array(self._scores_name) as array:
            yield from _read_blocks(*array)


def _read_blocks(
    stream: IO[bytes], shape: tuple[int, ...], by_column: bool, dtype: np.dtype[Any]
) -> Iterator[tuple[int, Scores]]:
    videos, classes = shape
    if by_column:
        # Stored class by class: no row is whole before all of it is read.
        whole = np.frombuffer(_read_exactly(stream, dtype.itemsize * videos * classes), dtype=dtype)
        yield 0, whole.reshape((classes, videos)).T
        return
    for start in range(0, videos, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, videos - start)
        raw = _read_exactly(stream, dtype.itemsize * rows * classes)
        yield start, np.frombuffer(raw, dtype=dtype).reshape(rows, classes)
    stream.read(1)  # the checksum is compared at the end of the member of an archive


def _check_texts(shape: tuple[int, ...], dtype: np.dtype[Any], refusal: _Refusal, name: str) -> None:
    if dtype.kind not in "USiu" or len(shape) != 1 or dtype.itemsize > 4 * LONGEST_ID:
        raise refusal(f"{name} has shape {shape} and type {dtype}; expected (n,) text, such as numpy.array(ids, str)")


def _read_texts(
    stream: IO[bytes], shape: tuple[int, ...], by_column: bool, dtype: np.dtype[Any], refusal: _Refusal, name: str
) -> list[str]:
    """Return the ids of a one-dimensional array of text, bytes or whole numbers."""
    _check_texts(shape, dtype, refusal, name)
    raw = _read_exactly(stream, dtype.itemsize * shape[0])
    if dtype.kind == "U" and (np.frombuffer(raw, np.dtype("u4").newbyteorder(dtype.byteorder)) > sys.maxunicode).any():
        raise ValueError(f"{name} holds numbers that are no characters")
    return list(map(id_text, np.frombuffer(raw, dtype=dtype).tolist()))


def _read_header(stream: IO[bytes], name: str, announced: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"format version {version} of array {name} is unknown")
    shape, by_column, dtype = read(stream)
    if dtype.hasobject:
        is_text = name.lower() in (*ID_NAMES, *CLASS_NAMES)
        values = f"np.array({name}).astype(str)" if is_text else "np.array(scores.tolist(), np.float32)"
        raise ValueError(f"{name} holds pickled objects, which are never loaded; save {name}={values}")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize + stream.tell()
    if size != announced:
        raise ValueError(f"{name} of shape {shape} takes {size:,} bytes, the archive has {announced:,}")
    return shape, by_column, dtype


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    if len(raw := stream.read(size)) != size:
        raise EOFError("it ends too early")
    return raw


_HDF5_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, MemoryError)


class Hdf5File(PredictionFile):
    """Datasets ``video_ids`` (n,) of text and ``scores`` (n, C) in the root group, each rehearsed before it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rehearsed: set[str] = set()
        with self._opened() as file:
            held = [name for name in file if isinstance(name, str)]
            features = "it has features, which meidbench train reads"
            self._scores_name = self.find_scores(held, "datasets", features if "features" in held else _EXPECTED)
            self._ids_name = next(iter(find_names(held, ID_NAMES)), ID_NAMES[1])
            ids, scores = self._dataset(file, self._ids_name), self._dataset(file, self._scores_name)
            if scores.ndim != 2 or ids.shape != scores.shape[:1]:
                shapes = f"{self._ids_name} has shape {ids.shape}, {self._scores_name} {scores.shape}"
                raise self.refusal(f"{shapes}; expected (n,) and (n, C)")
            if ids.dtype.kind not in "OSiu":
                raise self.refusal(f"{self._ids_name} are not strings")
            self.num_videos, self.num_classes = scores.shape
            self.dtype = scores.dtype.newbyteorder("=")
            found = [name for name in find_names(held, CLASS_NAMES) if self._holds_names(open_inside(file, name), name)]
        for name in found:
            with self._opened(name) as file:
                self.class_names = _read_strings(self._dataset(file, name))

    @contextmanager
    def _opened(self, *datasets: str) -> Iterator[Any]:
        """Open the file after the guard has read its index, or these datasets."""
        if not self._rehearsed.issuperset(datasets or [""]):
            if problem := rehearse(self.path, datasets):
                raise self.refusal(problem)
            self._rehearsed.update(datasets or [""])
        import h5py

        with self.refusing("HDF5 file", _HDF5_ERRORS), h5py.File(self.path, "r") as file:
            yield file

    def _dataset(self, file: Any, name: str) -> Any:
        import h5py

        found = open_inside(file, name)
        if found is None:
            raise self.refusal(f"it lacks {name}; it holds {first_few(file) or 'nothing'}")
        if not isinstance(found, h5py.Dataset):
            raise self.refusal(f"{name} is not a dataset")
        if name != self._scores_name and found.dtype.itemsize > LONGEST_ID:
            raise self.refusal(f"{name} takes {found.dtype.itemsize:,} bytes per id: it is damaged")
        return found

    def _holds_names(self, found: Any, name: str) -> bool:
        import h5py

        is_dataset = isinstance(found, h5py.Dataset)
        return is_dataset and self.has_class_names(name, found.shape, h5py.check_string_dtype(found.dtype) is not None)

    def _read_ids(self) -> list[str]:
        with self._opened(self._ids_name) as file:
            return _read_strings(file[self._ids_name])

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._opened(self._scores_name) as file:
            scores = file[self._scores_name]
            for start in range(0, self.num_videos, BLOCK_ROWS):
                yield start, scores[start : start + BLOCK_ROWS].astype(self.dtype, copy=False)


def _read_strings(dataset: Any) -> list[str]:
    """Return the ids or class names of a dataset of text, bytes or whole numbers."""
    if dataset.dtype.kind == "O":
        texts: list[str] = dataset.asstr()[:].tolist()
        return texts
    return list(map(id_text, dataset[:].tolist()))
