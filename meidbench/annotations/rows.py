"""The rows of tables, one per video: CSV, Parquet, JSON and DataFrames."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meidbench.annotations.base import find_repeated
from meidbench.errors import SplitError, bullet_list, describe_content, first_few, write_count
from meidbench.splits.rows import SPAN_FIELDS

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("video_id", "labels", "group", "subset", "length_s", "subject")
SPAN = tuple(SPAN_FIELDS.names)  # a table may have a column video of another meaning, without the times
PAIR = "pair_id"  # the name of the group in a split file, and in a split as CSV
_NO_CLASS = {*COLUMNS, PAIR, *SPAN, "source", "view"}  # in a table with a column per class


@dataclass
class Rows:
    """Rows of a CSV or a tab-separated text with a header, whose cells are stripped.

    ``columns`` are those of the header, or the keys of the JSON objects read so far; ``problems`` are the rows that
    could not be read, added while ``read`` runs. Where an id is made from a path, ``id_remedy`` is the remedy for two
    videos with one id.
    """

    path: Path
    columns: tuple[str, ...]
    source: Any
    problems: list[str] = field(default_factory=list)

    noun: ClassVar[str] = "line"
    is_text: ClassVar[bool] = True
    has_header: ClassVar[bool] = True
    id_remedy: ClassVar[str] = ""
    cells_remedy: ClassVar[str] = "labels are joined by semicolons"

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of every row, and its values of some columns: None where the table lacks the column."""
        places = [self.columns.index(name) if name in self.columns else None for name in names]
        expected = len(self.columns)
        reader = self.source
        with readable(self.path, "CSV"):
            for row in reader:
                if len(row) == expected:
                    yield reader.line_num, [None if place is None else row[place].strip() for place in places]
                elif any(cell.strip() for cell in row):
                    # Or a row whose labels are joined by commas would lose all but the first label.
                    is_split = reader.dialect.delimiter == ";"
                    remedy = "quote a cell that holds semicolons" if is_split else self.cells_remedy
                    what = f"{write_count(len(row), 'cell')}, expected {expected}; {remedy}"
                    self.problems.append(f"{self.place(reader.line_num, row[0])}: {what}")

    def place(self, number: int, video_id: object) -> str:
        """Return file, line and video of a row, for a message."""
        text = str(video_id)
        return f"{self.path.name}, {self.noun} {number:,} ({text if len(text) <= 60 else text[:57] + '...'})"


class _ParquetRows(Rows):
    noun = "row"
    is_text = False

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        present = [name for name in names if name in self.columns]
        number = 0
        with readable(self.path, "Parquet"):
            for batch in self.source.iter_batches(1 << 16, columns=present):
                values = {name: batch.column(name).to_pylist() for name in present}
                blank = [None] * len(batch)
                for row in zip(*(values.get(name, blank) for name in names), strict=True):
                    number += 1
                    yield number, row


class _JsonLines(Rows):
    """One object per line."""

    is_text = False
    has_header = False

    def entries(self) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(self.source, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=unique_keys)
                except (ValueError, RecursionError) as error:
                    what = f"line {number:,}: {error}; expected one object per line, or a list of objects"
                    raise SplitError(f"{self.path} is not a readable JSON file: {what}") from None

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        keys = set(self.columns)
        with readable(self.path, "JSON"):
            for number, entry in self.entries():
                if not isinstance(entry, dict):
                    self.problems.append(f"{self.path.name}, {self.noun} {number:,}: not an object")
                    continue
                if new := [key for key in entry if key not in keys]:
                    keys.update(new)
                    self.columns += tuple(new)
                if missing := [name for name in ("video_id", "labels") if name not in entry]:
                    what = f"no {' and '.join(missing)}; its keys are {first_few(entry) or 'none'}"
                    self.problems.append(f"{self.place(number, entry.get('video_id'))}: {what}")
                else:
                    yield number, [entry.get(name) for name in names]


class _JsonList(_JsonLines):
    """A list of objects."""

    noun = "entry"

    def entries(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(json.load(self.source, object_pairs_hook=unique_keys), start=1)


class FrameRows(Rows):
    """Rows of a DataFrame; ``source`` maps the known columns to lists of values."""

    noun = "row"
    is_text = False

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of every row, from 0, and its values of some columns."""
        blank = [None] * len(self.source["labels"])
        yield from enumerate(zip(*(self.source.get(name, blank) for name in names), strict=True))


def read_frame(
    frame: "pd.DataFrame", class_names: Sequence[str] | None, where: str = "frame"
) -> tuple[FrameRows, Sequence[str] | None]:
    """Return the rows of a DataFrame, and the class names: those given, or those of its columns, or None.

    The ids are the column ``video_id`` or an index of texts. Without a column ``labels``, every column of bool, or of
    0 and 1, is a class. ``where`` names the frame in messages.
    """
    from pandas.api.types import is_object_dtype, is_string_dtype

    columns = [str(name) for name in frame.columns]
    index = frame.index
    source = {name: _plain(frame[name]) for name in (*COLUMNS, PAIR, *SPAN) if columns.count(name) == 1}
    is_text = is_object_dtype(index) or is_string_dtype(index)
    if "video_id" not in columns and index.nlevels == 1 and (index.name == "video_id" or is_text):
        columns.append("video_id")
        source["video_id"] = _plain(index.to_series())
    shown = first_few(str(name) for name in frame.columns) or "none"
    if "video_id" not in columns:
        raise SplitError(f"{where} has no column video_id, and no index of texts; its columns are {shown}")
    if "labels" in columns:
        source["labels"] = [_plain_labels(cell) for cell in source.get("labels", ())]
    elif class_columns := _find_class_columns(frame, columns, class_names, where):
        class_names = list(class_columns)
        values = np.column_stack([frame.iloc[:, place].to_numpy(bool) for place in class_columns.values()])
        source["labels"] = [[class_names[index] for index in np.flatnonzero(row)] for row in values]
        columns.append("labels")
    else:
        raise SplitError(f"{where} has no column labels, and no column of 0 and 1 per class; its columns are {shown}")
    return FrameRows(Path(where), tuple(columns), source), class_names


def read_class_columns(
    rows: Rows, names: Sequence[str], class_names: Sequence[str] | None
) -> tuple[list[tuple[int, Sequence[Any]]], Sequence[str]]:
    """Return what ``rows.read(names)`` yields, with labels of the columns of 0 and 1, and the class names."""
    import pandas as pd

    where = str(rows.path)
    columns = [name for name in rows.columns if name]  # the row numbers of pandas have no name
    if twice := find_repeated(columns):
        raise SplitError(f"{where} has a column more than once: {first_few(sorted(twice))}")
    entries = list(rows.read(columns))
    if problems := rows.problems:
        raise SplitError(f"{len(problems):,} problem(s) with {where}:\n{bullet_list(problems, 5)}")
    frame = pd.DataFrame([values for _, values in entries], columns=columns, dtype=object)
    if rows.is_text:
        for name in set(columns) - _NO_CLASS:
            frame[name] = pd.Series([_plain_cell(cell) for cell in frame[name]], dtype=object)
    found, read_names = read_frame(frame, class_names, where)
    numbered = zip(entries, found.read(names), strict=True)
    return [(number, values) for (number, _), (_, values) in numbered], read_names or ()


_TRUTHS = {"0": 0, "1": 1, "false": 0, "true": 1}


def _plain_cell(cell: str) -> float | str:
    """Return the number that a cell of text holds; true and false are 1 and 0."""
    if (known := _TRUTHS.get(cell.lower())) is not None:
        return known
    try:
        return float(cell)
    except ValueError:
        return cell


def _find_class_columns(
    frame: "pd.DataFrame", columns: Sequence[str], class_names: Sequence[str] | None, where: str
) -> dict[str, int]:
    """Return the places of the columns that are classes, by name; refuse one with other values than 0 and 1."""
    places = {
        name: place
        for place, name in enumerate(columns)
        if name not in _NO_CLASS and place < frame.shape[1] and _holds_numbers(frame.iloc[:, place])
    }
    if class_names is not None:
        if missing := [name for name in class_names if name not in places]:
            raise SplitError(f"{where} has no column labels, and no column of 0 and 1 for {first_few(missing)}")
        places = {name: places[name] for name in class_names}
    if twice := sorted(places.keys() & set(find_repeated(columns))):
        raise SplitError(f"{where} has a column more than once: {first_few(twice)}")
    if wrong := [name for name, place in places.items() if not frame.iloc[:, place].isin((0, 1)).all()]:
        remedy = "drop the columns that are no class, or name the classes: class_names=NAMES"
        what = "so its columns of numbers are classes, which need 0 or 1 in every row"
        raise SplitError(f"{where} has no column labels, {what}: not so in {first_few(wrong)}; {remedy}")
    return places


def _holds_numbers(column: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers, or 0 or 1 beside texts: then it is a class with a slip."""
    from pandas.api.types import infer_dtype

    kind = infer_dtype(column, skipna=True)
    if kind not in ("mixed", "mixed-integer"):
        return kind in ("boolean", "integer", "floating", "mixed-integer-float", "decimal")
    return {type(cell) for cell in column} <= {int, float, bool, str} and any(cell in (0, 1) for cell in column)


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """Return values as objects of Python, None where they are missing."""
    return list(column.astype(object).where(column.notna(), None))


def _plain_labels(cell: Any) -> Any:
    if isinstance(cell, np.ndarray | np.generic):
        return cell.tolist()
    if isinstance(cell, tuple | set | frozenset):
        cell = list(cell)
    return [part.item() if isinstance(part, np.generic) else part for part in cell] if isinstance(cell, list) else cell


TABLES = "CSV, tab-separated text, Parquet, a JSON list or JSON lines"


def _check_types(path: Path, schema: pa.Schema) -> None:
    """Refuse a Parquet table with a known column of a type that it cannot have, before anything is read."""
    types = pa.types
    is_text = (types.is_string, types.is_large_string, types.is_integer, types.is_null)
    is_number = (*is_text[:2], types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    problems = []
    for name in (*COLUMNS, PAIR, *(SPAN if set(SPAN[1:]) & set(schema.names) else ())):
        for kind in [column.type for column in schema if column.name == name]:
            plain, wanted = kind, "text"
            if name == "labels":
                wanted = "text or a list of text or whole numbers"
                plain = kind.value_type if any(check(kind) for check in is_list) else kind
            plain = plain.value_type if types.is_dictionary(plain) else plain
            allowed, wanted = (is_number, "a number") if name in ("length_s", *SPAN[1:]) else (is_text, wanted)
            if name == "labels" and types.is_floating(plain):
                continue  # the cells are refused one by one
            if not any(check(plain) for check in allowed):
                problems.append(f"column {name!r} is of type {kind}; expected {wanted}")
    if problems:
        raise SplitError(f"{len(problems):,} problem(s) with {path}:\n{bullet_list(problems)}")


@contextmanager
def open_table(path: Path) -> Iterator[Rows]:
    """Open a table: Parquet or JSON by its first bytes, else text with commas, or tabs or semicolons by its header."""
    start = read_start(path, 1 << 10)
    if (kind := describe_content(path)) == "a split file":  # its labels are indices of names that a table does not have
        raise SplitError(f"{path} is a split file already: name it where a command takes SPLIT")
    if kind == "a prediction file":
        raise SplitError(f"{path} is a prediction file; a table has the columns video_id and labels")
    if start.startswith(b"PAR1"):
        with readable(path, "Parquet"):
            file = pq.ParquetFile(path)
        with file:
            _check_types(path, file.schema_arrow)
            yield _ParquetRows(path, tuple(file.schema_arrow.names), file)
        return
    if kind not in ("", "JSON", "empty"):
        raise SplitError(f"{path} is {kind}; a table is {TABLES}, with the columns video_id and labels")
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if first in (b"[", b"{"):
            yield (_JsonList if first == b"[" else _JsonLines)(path, (), stream)
            return
        with readable(path, "CSV"):
            line = start.partition(b"\n")[0]
            others = [mark for mark in "\t;" if mark.encode() in line and b"," not in line]
            delimiter = "\t" if path.suffix.lower() == ".tsv" else [*others, ","][0]
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = tuple(name.strip() for name in next(reader, []))
        yield Rows(path, header, reader)


def read_start(path: Path, size: int) -> bytes:
    """Return the first bytes of a file; a ``SplitError`` names one that cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        raise SplitError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; refuse a key that occurs twice, because one value would be lost."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        twice = sorted(find_repeated([name for name, _ in pairs]))
        raise ValueError(f"key(s) twice in one object: {first_few(twice)}")
    return entry


@contextmanager
def readable(path: Path, form: str) -> Iterator[None]:
    """Turn the errors of a reader on a damaged file into one that names the file."""
    try:
        yield
    except SplitError:
        raise
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "")
        raise SplitError(f"{path} is not a readable {form} file: {reason}") from None
    except (ValueError, OverflowError, csv.Error, RecursionError) as error:
        raise SplitError(f"{path} is not a readable {form} file: {error}") from None
