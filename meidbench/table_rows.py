"""The rows of a table in a file: CSV, tab-separated text, Parquet, a JSON list or JSON lines, told by content."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from meidbench.errors import SplitError, first_few

Row = tuple[int, Sequence[Any]]
"""Where a row stands (a line or a count from 1), and its values in the order of the columns asked for."""

_PARQUET = b"PAR1"
_BATCH = 1 << 16


@dataclass
class TableRows:
    """Rows of a table, read one after another.

    Attributes
    ----------
    path : Path
        The file.
    columns : tuple of str
        Its columns; for JSON the keys of the objects read so far.
    source : object
        What the rows are read from.
    problems : list of str
        Rows that could not be read, filled while ``rows`` runs.
    noun : str
        What a row is called in a message: ``line``, ``row`` or ``entry``.
    is_text : bool
        Whether every value is text, so that lists are joined by semicolons.
    has_header : bool
        Whether ``columns`` are known from the start.
    """

    path: Path
    columns: tuple[str, ...]
    source: Any
    problems: list[str] = field(default_factory=list)

    noun: ClassVar[str] = "line"
    is_text: ClassVar[bool] = False
    has_header: ClassVar[bool] = True

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        """Yield every row with the values of some columns, None where the table has no such column."""
        raise NotImplementedError

    def where(self, number: int, video_id: object) -> str:
        """Say which row is meant: file, line and video."""
        text = str(video_id)
        return f"{self.path.name}, {self.noun} {number:,} ({text if len(text) <= 60 else text[:57] + '...'})"


class _TextRows(TableRows):
    """CSV or tab-separated text with a header; cells are stripped."""

    is_text = True

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        places = [self.columns.index(name) if name in self.columns else None for name in names]
        expected = len(self.columns)
        reader = self.source
        with _readable(self.path, "CSV"):
            for row in reader:
                if len(row) == expected:
                    yield reader.line_num, [None if place is None else row[place].strip() for place in places]
                elif any(cell.strip() for cell in row):
                    # A comma among the labels would otherwise lose all but the first of them.
                    self.problems.append(
                        f"{self.where(reader.line_num, row[0])}: {len(row)} cells, expected {expected}; "
                        "labels are joined by semicolons"
                    )


class _ParquetRows(TableRows):
    noun = "row"

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        present = [name for name in names if name in self.columns]
        number = 0
        with _readable(self.path, "Parquet"):
            for batch in self.source.iter_batches(_BATCH, columns=present):
                values = {name: batch.column(name).to_pylist() for name in present}
                blank = [None] * len(batch)
                for row in zip(*(values.get(name, blank) for name in names), strict=True):
                    number += 1
                    yield number, row


class _JsonLines(TableRows):
    """An object a line."""

    has_header = False

    def entries(self) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(self.source, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=_unique)
                except (ValueError, RecursionError) as error:
                    raise SplitError(
                        f"{self.path} is not a readable JSON file: line {number:,}: {error}; "
                        "expected an object a line, or a list of objects"
                    ) from None

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        keys: set[str] = set()
        with _readable(self.path, "JSON"):
            for number, entry in self.entries():
                if not isinstance(entry, dict):
                    self.problems.append(f"{self.path.name}, {self.noun} {number:,}: not an object")
                    continue
                if not entry.keys() <= keys:
                    keys |= entry.keys()
                    self.columns += tuple(key for key in entry if key not in self.columns)
                if "video_id" in entry and "labels" in entry:
                    yield number, [entry.get(name) for name in names]
                else:
                    missing = " and ".join(name for name in ("video_id", "labels") if name not in entry)
                    found = first_few(entry) or "none"
                    self.problems.append(
                        f"{self.where(number, entry.get('video_id'))}: no {missing}; its keys are {found}"
                    )


class _JsonList(_JsonLines):
    """A list of objects."""

    noun = "entry"

    def entries(self) -> Iterator[tuple[int, Any]]:
        content = json.load(self.source, object_pairs_hook=_unique)
        content.reverse()  # so that what was read need not be kept
        for number in range(1, len(content) + 1):
            yield number, content.pop()


@contextmanager
def open_rows(path: Path) -> Iterator[TableRows]:
    """Open a table: Parquet by its first bytes, JSON by a ``[`` or ``{``, tab-separated by ``.tsv``, otherwise CSV.

    Raises
    ------
    SplitError
        It is not there, or not readable as what it begins like; also while its rows are read.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(1 << 10)
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        raise SplitError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if start.startswith(_PARQUET):
        with _readable(path, "Parquet"):
            file = pq.ParquetFile(path)
        with file:
            yield _ParquetRows(path, tuple(file.schema_arrow.names), file)
        return
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if first in (b"[", b"{"):
            yield (_JsonList if first == b"[" else _JsonLines)(path, (), stream)
            return
        with _readable(path, "CSV"):
            reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = tuple(name.strip() for name in next(reader, []))
        yield _TextRows(path, header, reader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; ValueError where a key occurs twice, as one of them would be lost."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key(s) twice in one object: {first_few(sorted({n for n in names if names.count(n) > 1}))}")
    return entry


@contextmanager
def _readable(path: Path, form: str) -> Iterator[None]:
    """Turn what a damaged file makes a reader raise into an error that names the file."""
    try:
        yield
    except SplitError:
        raise
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "")
        raise SplitError(f"{path} is not a readable {form} file: {reason}") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise SplitError(f"{path} is not a readable {form} file: {error}") from None
