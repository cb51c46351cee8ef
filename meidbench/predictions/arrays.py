"""Prediction files in NumPy's archives; nothing pickled is ever loaded."""

import json
import lzma
import subprocess
import sys
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from meidbench.errors import PredictionError, first_few
from meidbench.predictions.base import BLOCK_ROWS, LONGEST_ID, PredictionFile, Scores


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


_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from meidbench.predictions.hdf5_scores import main; main(sys.argv[2])"
)
HDF5_SECONDS = 60.0  # without a sign of life of the process that reads


class Hdf5File(PredictionFile):
    """Datasets ``video_ids`` (n,) string and ``scores`` (n, C) in the root group; read by another process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _Hdf5Process(self) as facts:
            pass
        self.num_videos, self.num_classes = facts.shape
        self.dtype = facts.dtype

    def _read_ids(self) -> list[str]:
        with _Hdf5Process(self) as process:
            return process.read_ids()

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with _Hdf5Process(self) as process:
            self.__dict__["video_ids"] = process.read_ids()
            width = self.dtype.itemsize * self.num_classes
            for start in range(0, self.num_videos, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, self.num_videos - start)
                block = np.frombuffer(process.read(rows * width), dtype=self.dtype)
                yield start, block.reshape(rows, self.num_classes)
            process.answer("end")


class _Hdf5Process:
    """Runs ``meidbench.predictions.hdf5_scores`` and ends it where it hangs; what goes wrong becomes a refusal."""

    def __init__(self, file: Hdf5File) -> None:
        self.file = file

    def __enter__(self) -> "_Hdf5Process":
        # With the module search path of this process: a module in the working directory must not stand in for another.
        search = json.dumps([folder for folder in sys.path if folder])
        command = [sys.executable, "-c", _START, search, str(self.file.path.absolute())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.expired = False
        try:
            facts = self.answer("videos", "classes", "dtype")
        except BaseException:
            self._end()
            raise
        self.shape = facts["videos"], facts["classes"]
        self.dtype = np.dtype(facts["dtype"])
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _expire(self) -> None:
        self.expired = True
        self.process.kill()

    def _watched(self, read: Callable[[], bytes]) -> bytes:
        """Read from the process, which is ended if it stays silent for too long."""
        timer = threading.Timer(HDF5_SECONDS, self._expire)
        timer.start()
        try:
            return read()
        finally:
            timer.cancel()

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        stream = self.process.stdout
        assert stream is not None
        raw = self._watched(lambda: stream.read(size))
        if len(raw) < size:
            # An error in the middle is told in the last line, after fewer bytes than were announced.
            tail = raw[raw.rfind(b'{"error"') :] if b'{"error"' in raw else b""
            raise self._failure(tail)
        return raw

    def answer(self, *keys: str) -> dict[str, Any]:
        """Return the next line, which must have these keys."""
        stream = self.process.stdout
        assert stream is not None
        line = self._watched(stream.readline)
        try:
            content = json.loads(line)
        except ValueError:
            raise self._failure(line) from None
        if set(content) != set(keys):
            raise self._failure(line)
        return dict(content)

    def read_ids(self) -> list[str]:
        """Ask for the ids, which come before the scores."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"go on\n")
            self.process.stdin.flush()
        except OSError:
            raise self._failure(b"") from None
        ids: list[str] = self.answer("ids")["ids"]
        return ids

    def _failure(self, line: bytes) -> PredictionError:
        if self.expired:
            return self.file.refusal(f"the HDF5 library found no end in {HDF5_SECONDS:.0f} s: it is damaged")
        try:
            return self.file.refusal(str(json.loads(line)["error"]))
        except (ValueError, KeyError, TypeError):
            return self.file.refusal("not a readable HDF5 file: the HDF5 library failed on it")
