"""Prediction files of every form, opened by their content and read block by block.

What a file claims to hold is checked against its size before anything is allocated, and nothing pickled is ever loaded.
"""

import csv
import json
import subprocess
import sys
import threading
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from meidbench.errors import PredictionError, first_few
from meidbench.split import METADATA_KEY

BLOCK_ROWS = 8192
HDF5_SECONDS = 60.0  # without a sign of life of the process that reads an HDF5 file
_LONGEST_ID = 1 << 10

Scores = npt.NDArray[Any]


class PredictionFile(ABC):
    """An opened prediction file.

    Attributes
    ----------
    path : Path
    num_videos, num_classes : int
    dtype : dtype
        Of the scores.
    metadata : dict
        What the file says of itself.
    class_names : list of str or None
        Where the file names its classes.
    """

    path: Path
    num_videos: int
    num_classes: int
    dtype: np.dtype[Any]
    metadata: dict[str, Any]
    class_names: list[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = {}

    def refusal(self, problem: str) -> PredictionError:
        """Return an error that names the file."""
        return PredictionError(f"{self.path}: {problem}")

    @cached_property
    def video_ids(self) -> list[str]:
        """Ids in the file's order."""
        return self._read_ids()

    @abstractmethod
    def _read_ids(self) -> list[str]:
        """Read the ids."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Scores]]:
        """Yield the first row of each block and its scores (rows, C), in the file's order."""

    def check_dtype(self) -> None:
        """Refuse scores that are no real numbers."""
        if self.dtype.kind not in "fiu" or self.dtype.itemsize > 8:
            raise self.refusal(f"the scores are of type {self.dtype}; expected real numbers of at most 64 bits")


class ParquetFile(PredictionFile):
    """Columns ``video_id`` string and ``scores`` fixed_size_list, with optional JSON metadata ``meidbench``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import pyarrow as pa

        with self._opened() as file:
            schema = file.schema_arrow
            if not {"video_id", "scores"} <= set(schema.names) or len(set(schema.names)) < len(schema.names):
                raise self.refusal(
                    f"it has the columns {first_few(schema.names) or 'none'}; expected video_id and scores"
                )
            kind, id_kind = schema.field("scores").type, schema.field("video_id").type
            if not pa.types.is_fixed_size_list(kind) or not (
                pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
            ):
                raise self.refusal(f"the column scores is of type {kind}; expected fixed_size_list of a real number")
            if not (pa.types.is_string(id_kind) or pa.types.is_large_string(id_kind)):
                raise self.refusal(f"the column video_id is of type {id_kind}; expected string")
            self.num_videos, self.num_classes = file.metadata.num_rows, kind.list_size
            self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
            self._check_size(file.metadata)
            self.metadata = self._parse_metadata((schema.metadata or {}).get(METADATA_KEY, b"{}"))

    def _opened(self) -> "_ArrowErrors":
        return _ArrowErrors(self)

    def _check_size(self, facts: Any) -> None:
        """Refuse what unpacks to much more than rows of scores and ids can take."""
        size = 0
        for group in range(facts.num_row_groups):
            columns = (facts.row_group(group).column(place) for place in range(facts.num_columns))
            size += sum(max(column.total_uncompressed_size, 0) for column in columns)
        most = self.num_videos * (2 * self.num_classes * 8 + _LONGEST_ID) + (1 << 20)
        if self.num_videos < 0 or size > most:
            raise self.refusal(f"it unpacks to {size:,} bytes, too much for {self.num_videos:,} rows: it is damaged")

    def _parse_metadata(self, raw: bytes) -> dict[str, Any]:
        try:
            metadata = json.loads(raw)
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise self.refusal("its metadata 'meidbench' is not a JSON object")
        return metadata

    def _read_ids(self) -> list[str]:
        with self._opened() as file:
            column = file.read(["video_id"]).column("video_id")
            if column.null_count:
                raise self.refusal(f"{column.null_count:,} ids are empty cells")
            ids: list[str] = column.to_pylist()
        return ids

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._opened() as file:
            start = 0
            for batch in file.iter_batches(BLOCK_ROWS, columns=["scores"], use_threads=False):
                column = batch.column(0)
                values = column.flatten()
                if column.null_count or values.null_count:
                    raise self.refusal("there are empty cells among the scores")
                yield start, values.to_numpy(zero_copy_only=False).reshape(len(column), self.num_classes)
                start += len(column)
            if start != self.num_videos:
                raise self.refusal(f"{start:,} rows could be read, {self.num_videos:,} are announced: it is damaged")


class _ArrowErrors:
    """Opens a Parquet file and turns what goes wrong in reading it into a refusal."""

    def __init__(self, file: PredictionFile) -> None:
        self.file = file

    def __enter__(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.errors = (pa.ArrowException, OSError, UnicodeDecodeError)
        try:
            self.opened = pq.ParquetFile(self.file.path, page_checksum_verification=True)
        except self.errors as error:
            raise self._refusal(error) from None
        return self.opened

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.opened.close()
        if isinstance(error, self.errors):
            raise self._refusal(error) from None

    def _refusal(self, error: BaseException) -> PredictionError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return self.file.refusal(f"not a readable Parquet file: {reason}")


class NpzFile(PredictionFile):
    """Arrays ``video_ids`` (n,) unicode and ``scores`` (n, C) in a zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        shape, self.dtype = self._header("scores")
        ids_shape, ids_dtype = self._header("video_ids")
        if ids_dtype.kind != "U" or len(ids_shape) != 1 or ids_dtype.itemsize > 4 * _LONGEST_ID:
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
        *(OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
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
    """Runs ``meidbench.hdf5_scores`` and ends it where it hangs; what goes wrong becomes a refusal."""

    def __init__(self, file: Hdf5File) -> None:
        self.file = file

    def __enter__(self) -> "_Hdf5Process":
        command = [sys.executable, "-m", "meidbench.hdf5_scores", str(self.file.path.absolute())]
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


class TableFile(PredictionFile):
    """Text, a line a video: CSV with a header, or the official Charades form ``ID s1 ... sC``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dtype = np.dtype(np.float64)
        self.has_commas = False
        first = next(self._lines(), None)
        if first is None:
            raise self.refusal("it holds no line")
        self.is_csv = first[1][0].strip().lower() == "video_id"
        self.num_classes = len(first[1]) - 1
        if self.is_csv:
            header = [name.strip() for name in first[1][1:]]
            forms = ([f"c{index:03d}" for index in range(len(header))], [str(index) for index in range(len(header))])
            self.class_names = None if header in forms else header
        elif self.has_commas or not _is_number(first[1][-1]) or self.num_classes < 1:
            raise self.refusal(
                f"its first line {' '.join(first[1])[:40]!r} is neither a CSV header (video_id, then the classes) "
                "nor 'ID s1 ... sC'"
            )
        ids = [cells[0] for _, cells in islice(self._lines(), int(self.is_csv), None)]
        self.num_videos = len(ids)
        self.__dict__["video_ids"] = ids

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield number and cells of each line that is not blank."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                start = stream.readline(1 << 20)
                stream.seek(0)
                self.has_commas = "," in start
                if self.has_commas:
                    reader = csv.reader(stream, strict=True)
                    yield from ((reader.line_num, row) for row in reader if row)
                else:
                    yield from ((number, line.split()) for number, line in enumerate(stream, 1) if line.strip())
        except (UnicodeDecodeError, csv.Error) as error:
            raise self.refusal(f"neither Parquet, NPZ or HDF5 nor readable text: {error}") from None

    def _read_ids(self) -> list[str]:
        raise AssertionError("the ids are read when the file is opened")

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        lines = islice(self._lines(), int(self.is_csv), None)
        start = 0
        while part := list(islice(lines, BLOCK_ROWS)):
            scores = np.empty((len(part), self.num_classes))
            for row, (number, cells) in enumerate(part):
                if len(cells) != self.num_classes + 1:
                    raise self.refusal(
                        f"line {number} ({cells[0]}) has {len(cells) - 1:,} scores, expected {self.num_classes:,}"
                    )
                try:
                    scores[row] = cells[1:]
                except ValueError:
                    wrong = next((cell for cell in cells[1:] if not _is_number(cell)), "")
                    raise self.refusal(f"line {number} ({cells[0]}): {wrong[:40]!r} is not a number") from None
            yield start, scores
            start += len(part)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


FORMS: dict[bytes, Callable[[Path], PredictionFile]] = {
    b"PAR1": ParquetFile,
    b"PK\x03\x04": NpzFile,
    b"\x89HDF\r\n\x1a\n": Hdf5File,
}


def open_predictions(path: Path) -> PredictionFile:
    """Open a prediction file: Parquet, NPZ, HDF5, CSV, or the official Charades text form.

    The form is told by the content, whatever the name is.

    Raises
    ------
    PredictionError
        It is not there, empty, damaged, or of no known form.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionError(f"there is no prediction file {path}")
    with path.open("rb") as stream:
        start = stream.read(8)
    if not start:
        raise PredictionError(f"{path} is empty")
    form = next((form for magic, form in FORMS.items() if start.startswith(magic)), TableFile)
    file = form(path)
    file.check_dtype()
    return file
