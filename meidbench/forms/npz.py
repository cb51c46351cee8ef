"""Prediction files in NumPy's archives; nothing pickled is ever loaded."""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from meidbench.errors import PredictionError, first_few
from meidbench.forms.base import BLOCK_ROWS, LONGEST_ID, PredictionFile, Scores


class NpzFile(PredictionFile):
    """Arrays ``video_ids`` (n,) unicode and ``scores`` (n, C) in a zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        shape, self.dtype = self._header("scores")
        ids_shape, ids_dtype = self._header("video_ids")
        if ids_dtype.kind != "U" or len(ids_shape) != 1 or ids_dtype.itemsize > 4 * LONGEST_ID:
            raise self.refusal(f"video_ids has shape {ids_shape} and type {ids_dtype}; expected (n,) unicode")
        if len(shape) != 2 or shape[0] != ids_shape[0]:
            raise self.refusal(f"the scores have shape {shape}; expected ({ids_shape[0]:,}, classes)")
        self.num_videos, self.num_classes = shape

    def _member(self, name: str) -> "_NpyMember":
        return _NpyMember(self, name)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._member(name) as (_, shape, _, dtype):
            return shape, dtype

    def _read_ids(self) -> list[str]:
        with self._member("video_ids") as (stream, shape, _, dtype):
            ids: list[str] = np.frombuffer(_read_exactly(stream, dtype.itemsize * shape[0]), dtype=dtype).tolist()
        return ids

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._member("scores") as (stream, (videos, classes), fortran, dtype):
            if fortran:
                # Stored class by class: there are no rows to be had before all of it is read.
                whole = np.frombuffer(_read_exactly(stream, dtype.itemsize * videos * classes), dtype=dtype)
                yield 0, whole.reshape((classes, videos)).T
                return
            for start in range(0, videos, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, videos - start)
                raw = _read_exactly(stream, dtype.itemsize * rows * classes)
                yield start, np.frombuffer(raw, dtype=dtype).reshape(rows, classes)
            stream.read(1)  # at the end of the member its checksum is compared


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    raw = stream.read(size)
    if len(raw) != size:
        raise EOFError("it ends too early")
    return raw


class _NpyMember:
    """Opens an array of an NPZ archive after its header; what goes wrong becomes a refusal."""

    # numpy parses headers with Python's own tokenizer, hence SyntaxError, TokenError and RecursionError.
    errors = (
        *(OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, MemoryError),
        *(OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    )

    def __init__(self, file: NpzFile, name: str) -> None:
        self.file, self.name = file, name

    def __enter__(self) -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]:
        with ExitStack() as opened:
            try:
                return self._entered(opened)
            except PredictionError:
                raise
            except self.errors as error:
                raise self._refusal(error) from None

    def _entered(self, opened: ExitStack) -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]:
        self.archive = opened.enter_context(zipfile.ZipFile(self.file.path))
        names = self.archive.namelist()
        if names.count(f"{self.name}.npy") != 1:
            held = first_few(name.removesuffix(".npy") for name in names) or "nothing"
            raise self.file.refusal(f"it lacks {self.name}; it holds {held}")
        self.stream = opened.enter_context(self.archive.open(f"{self.name}.npy"))
        header = self._header()
        self.opened = opened.pop_all()
        return self.stream, *header

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = npy.read_magic(self.stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"format version {version} of array {self.name} is unknown")
        shape, fortran, dtype = read(self.stream)
        if dtype.hasobject:
            raise ValueError(f"{self.name} holds pickled objects, which are never loaded")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize + self.stream.tell()
        announced = self.archive.getinfo(f"{self.name}.npy").file_size
        if size != announced:
            raise ValueError(f"{self.name} of shape {shape} takes {size:,} bytes, the archive has {announced:,}")
        return shape, fortran, dtype

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.opened.close()
        if isinstance(error, self.errors) and not isinstance(error, PredictionError):
            raise self._refusal(error) from None

    def _refusal(self, error: BaseException) -> PredictionError:
        return self.file.refusal(f"not a readable NPZ archive: {error or type(error).__name__}")
