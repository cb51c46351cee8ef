"""Prediction files that hold arrays: NumPy's archives and HDF5. Pickled objects are never loaded."""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from meidbench.errors import first_few
from meidbench.files import open_inside, rehearse
from meidbench.predictions.base import BLOCK_ROWS, LONGEST_ID, PredictionFile, Scores

# numpy parses headers with Python's own tokenizer, hence SyntaxError, TokenError and RecursionError.
_NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, MemoryError),
    *(OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_Array = tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]  # a stream after its header, shape, by column, dtype


class NpzFile(PredictionFile):
    """Arrays ``video_ids`` (n,) unicode and ``scores`` (n, C) in a zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._array("scores") as (_, shape, _, self.dtype):
            pass
        with self._array("video_ids") as (_, ids_shape, _, ids_dtype):
            pass
        if ids_dtype.kind != "U" or len(ids_shape) != 1 or ids_dtype.itemsize > 4 * LONGEST_ID:
            raise self.refusal(f"video_ids has shape {ids_shape} and type {ids_dtype}; expected (n,) unicode")
        if len(shape) != 2 or shape[0] != ids_shape[0]:
            raise self.refusal(f"the scores have shape {shape}; expected ({ids_shape[0]:,}, classes)")
        self.num_videos, self.num_classes = shape

    @contextmanager
    def _array(self, name: str) -> Iterator[_Array]:
        with self.refusing("NPZ archive", _NPZ_ERRORS), zipfile.ZipFile(self.path) as archive:
            names = archive.namelist()
            if names.count(f"{name}.npy") != 1:
                held = first_few(other.removesuffix(".npy") for other in names) or "nothing"
                raise self.refusal(f"it lacks {name}; it holds {held}")
            with archive.open(f"{name}.npy") as stream:
                yield stream, *_read_header(stream, name, archive.getinfo(f"{name}.npy").file_size)

    def _read_ids(self) -> list[str]:
        with self._array("video_ids") as (stream, shape, _, dtype):
            ids: list[str] = np.frombuffer(_read_exactly(stream, dtype.itemsize * shape[0]), dtype=dtype).tolist()
        return ids

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._array("scores") as (stream, (videos, classes), by_column, dtype):
            if by_column:
                # Stored class by class: no row is whole before all of it is read.
                whole = np.frombuffer(_read_exactly(stream, dtype.itemsize * videos * classes), dtype=dtype)
                yield 0, whole.reshape((classes, videos)).T
                return
            for start in range(0, videos, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, videos - start)
                raw = _read_exactly(stream, dtype.itemsize * rows * classes)
                yield start, np.frombuffer(raw, dtype=dtype).reshape(rows, classes)
            stream.read(1)  # the checksum is compared at the end of the member


def _read_header(stream: IO[bytes], name: str, announced: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"format version {version} of array {name} is unknown")
    shape, by_column, dtype = read(stream)
    if dtype.hasobject:
        values = "np.array(video_ids, dtype=str)" if name == "video_ids" else "np.array(scores.tolist(), np.float32)"
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
    """Datasets ``video_ids`` (n,) string and ``scores`` (n, C) in the root group, each rehearsed before it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rehearsed: set[str] = set()
        with self._opened() as file:
            ids, scores = self._dataset(file, "video_ids"), self._dataset(file, "scores")
            if scores.ndim != 2 or ids.shape != scores.shape[:1]:
                raise self.refusal(f"video_ids has shape {ids.shape}, scores {scores.shape}; expected (n,) and (n, C)")
            if ids.dtype.kind not in "OS":
                raise self.refusal("video_ids are not strings")
            self.num_videos, self.num_classes = scores.shape
            self.dtype = scores.dtype.newbyteorder("=")

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
            features = "; features are given to 'meidbench train' and 'predict' with --features"
            rest = features if "features" in file else ""
            raise self.refusal(f"it lacks {name}; it holds {first_few(file) or 'nothing'}{rest}")
        if not isinstance(found, h5py.Dataset):
            raise self.refusal(f"{name} is not a dataset")
        if name == "video_ids" and found.dtype.itemsize > LONGEST_ID:
            raise self.refusal(f"{name} takes {found.dtype.itemsize:,} bytes per id: it is damaged")
        return found

    def _read_ids(self) -> list[str]:
        with self._opened("video_ids") as file:
            ids = file["video_ids"]
            if ids.dtype.kind == "O":
                texts: list[str] = ids.asstr()[:].tolist()
                return texts
            return [value.decode() for value in ids[:].tolist()]

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._opened("scores") as file:
            scores = file["scores"]
            for start in range(0, self.num_videos, BLOCK_ROWS):
                yield start, scores[start : start + BLOCK_ROWS].astype(self.dtype, copy=False)
