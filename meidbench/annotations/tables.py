"""Annotated videos, or a whole split, from a plain table of the user: ``video_id, labels[, group][, subset]``."""

import csv
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from meidbench.annotations.base import MOST_NAMED, Annotations, FileRecord, LabelIndex, quote
from meidbench.errors import SplitError, bullet_list, describe_content, first_few
from meidbench.files import file_sha256
from meidbench.names import SUBSETS
from meidbench.splits.split import Split

COLUMNS = ("video_id", "labels", "group", "subset", "length_s", "subject")
_PAIR = "pair_id"  # the name of the group in a split file, and in a split as CSV
_SUBSET_NAMES = {name: name for name in SUBSETS}
_SUBSET_NAMES |= {"training": "train", "validate": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True)
class TableContent:
    """The content of a table.

    ``annotations`` have the table's groups as ``pair_ids`` and its subsets, verbatim, as ``sources``; empty where it
    gives none. ``subsets`` are ``train``, ``val`` or ``test`` for each video, None unless the table has a column
    ``subset`` with no other names. ``classes_from`` is the source of the class names: ``class names``, or the
    ``labels`` or ``indices`` in the table.
    """

    annotations: Annotations
    subsets: tuple[str, ...] | None
    classes_from: str

    @property
    def note(self) -> str:
        """The number of classes and their source, for a person."""
        source = {
            "class names": ", from the list of class names",
            "labels": ": the distinct names among the labels, sorted",
            "indices": ": 0 to the highest index among the labels",
        }
        return f"{len(self.annotations.class_names):,} classes{source[self.classes_from]}"


def read_table(path: Path, *, class_names: Path | None = None) -> TableContent:
    r"""Read annotated videos from a table with the columns ``video_id`` and ``labels``, and optional others.

    The videos stay in the order of the table.

    Parameters
    ----------
    path : Path
        A CSV or, where its name ends in ``.tsv``, tab-separated text with a header; a Parquet file; a JSON list of
        objects; or JSON lines, one object per line. Parquet and JSON are recognised by content. Columns or keys:

        - ``video_id``: text, no video twice.
        - ``labels``: class names or class indices, none twice; joined by ``;`` in text, also as a list in Parquet and
          JSON, where names may hold semicolons; empty for a video without a label. Other forms of a list in text
          (``[0, 2]``, ``['run', 'swim']``, ``0 2``, ``0|2``) are read where they cannot be a class name, else refused.
        - ``group`` (or ``pair_id``): videos with the same text must not be separated: takes of one script, pieces of
          one film. Empty for a video on its own.
        - ``subset``, ``subject``: the subset in which the dataset has it; the person in the video.
        - ``length_s``: seconds; empty where not known.

        Others are ignored, but names such as ``Group`` or ``groups``, which look like a slip, are refused.
    class_names : Path, optional
        One name per line, in the order of the indices. Without it, the classes are 0 to the highest index, or the
        distinct names among the labels, sorted by code points; names and indices must not be mixed then.

    Raises
    ------
    SplitError
        The table cannot be read or contradicts itself; the first five problems are named with their lines.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "mine.csv")
    ...     _ = table.write_text("video_id,labels,group\na,run;jump,film 1\nb,swim,\n")
    ...     content = read_table(table)
    >>> content.annotations.class_names, content.annotations.labels, content.annotations.pair_ids
    (('jump', 'run', 'swim'), [(1, 0), (2,)], ['film 1', ''])
    >>> content.note
    '3 classes: the distinct names among the labels, sorted'
    """
    return _read(path, class_names)


def split_from_table(
    path: Path, *, dataset: str, head_above: int, tail_up_to: int, class_names: Path | None = None
) -> Split:
    """Make a split from a table with the columns ``video_id``, ``subset`` and ``labels``.

    The table is as in ``read_table``, but ``subset`` must be train, val or test, and without ``class_names`` labels
    must be indices. Groups are kept as ``pair_id``, so the audit can find those in two subsets. Head: more training
    videos than ``head_above``; tail: at most ``tail_up_to``. Errors are as in ``read_table``.
    """
    if tail_up_to > head_above:
        raise SplitError(f"tail up to {tail_up_to} lies above head above {head_above}")
    content = _read(path, class_names, needs_subsets=True)
    subsets = list(content.subsets or ())
    content.annotations.sources = subsets
    return Split.from_annotations(
        content.annotations, subsets, dataset=dataset, variant="table", head_above=head_above, tail_up_to=tail_up_to
    )


def _read(path: Path, class_names: Path | None, needs_subsets: bool = False) -> TableContent:
    path = Path(path)
    names = None if class_names is None else _read_class_names(Path(class_names))
    table = Annotations(())
    with _open_rows(path) as rows:
        _check_header(rows, ("video_id", "subset", "labels") if needs_subsets else ("video_id", "labels"))
        index = LabelIndex(names, allow_names=not needs_subsets, noun=rows.noun)
        _append_rows(rows, table, index, needs_subsets)
    indexed = index.finish(table.labels)
    problems = rows.problems + _slips(rows.columns) + indexed.problems
    if not problems and not (table.video_ids and indexed.class_names):
        problems.append(f"{path.name} holds no video with a label")
    if problems:
        raise SplitError(f"{len(problems):,} problem(s) with {path}:\n{bullet_list(problems, MOST_NAMED)}")
    table.labels, table.class_names = indexed.labels, indexed.class_names
    table.segments = [()] * len(table.labels)
    table.views = [""] * len(table.labels)
    for file in (path, class_names):
        if file is not None:
            table.files.append(FileRecord(Path(file).name, Path(file).stat().st_size, file_sha256(Path(file))))
    known = all(source.lower() in _SUBSET_NAMES for source in set(table.sources))
    subsets = tuple([_SUBSET_NAMES[source.lower()] for source in table.sources]) if known else None
    return TableContent(table, subsets, indexed.made_from)


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        # Only \n ends a line, unlike in str.splitlines: an index is the number of its line.
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, ValueError) as error:
        raise SplitError(f"cannot read the class names in {path}: {error}") from None
    if names == [""]:
        raise SplitError(f"{path} is empty; write one class name per line, in the order of the indices")
    if wrong := [line for line, name in enumerate(names, start=1) if not name or not name.isprintable()]:
        raise SplitError(f"{path}: no class name in line {first_few(wrong)}; an index is the number of a line, from 0")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SplitError(f"{path}: class names occur more than once: {first_few(repeated)}")
    if numbers := [name for index, name in enumerate(names) if name.isdecimal() and name != str(index)]:
        what = "class names that are numbers, but not those of their own lines, could be confused with indices"
        raise SplitError(f"{path}: {what}: {first_few(numbers)}")
    return tuple(names)


# --- rows to columns --------------------------------------------------------------------------------------------


def _check_header(rows: "_Rows", required: tuple[str, ...]) -> None:
    """Refuse a header that lacks a required column; JSON objects have no header, so each row is checked."""
    if rows.has_header and (missing := [name for name in required if name not in rows.columns]):
        found = first_few(rows.columns) or f"none; it is empty, and a table is {_TABLES} with a header"
        raise SplitError(f"{rows.path} has no column {', '.join(missing)}; its columns are {found}")
    twice = [name for name in (*COLUMNS, _PAIR) if rows.columns.count(name) > 1]
    if "group" in rows.columns and _PAIR in rows.columns:
        twice.append(f"group (also called {_PAIR})")
    if twice:
        raise SplitError(f"{rows.path} has a column more than once: {', '.join(twice)}")


def _slips(columns: tuple[str, ...]) -> list[str]:
    """Return columns with nearly the name of a known one, which would be ignored with all their cells."""
    known = {name.rstrip("s"): name for name in COLUMNS}
    similar = {name: known.get(name.strip().casefold().rstrip("s")) for name in columns if name not in COLUMNS}
    return [
        f"column {quote(name)} would be ignored; write {meant!r}, or rename it if it is something else"
        for name, meant in similar.items()
        if meant is not None and meant not in columns
    ]


def _append_rows(rows: "_Rows", table: Annotations, index: LabelIndex, needs_subsets: bool) -> None:
    """Read all rows into a table, and their problems into ``rows.problems``."""
    seen, numbers = [], array("q")
    shared: dict[str, str] = {}  # one object for each text of a column, however many rows have it
    names = (*COLUMNS[:3], _PAIR, *COLUMNS[3:])
    for number, (video_id, cell, group, pair, subset, length, subject) in rows.read(names):
        try:
            video_id = _text(video_id, "")
            if not video_id:
                raise ValueError("'' is not a video id")
            seen.append(video_id)
            numbers.append(number)
            subset = _text(subset, "subset")
            if needs_subsets and subset.lower() not in _SUBSET_NAMES:
                raise ValueError(f"subset {quote(subset)} is not one of {', '.join(SUBSETS)}")
            labels = index.parse(cell, row=number, is_text=rows.is_text)
            if group is not None and pair is not None:
                raise ValueError(f"both a group and a {_PAIR}")
            group = _text(pair if group is None else group, "group")
            subject = _text(subject, "subject")
            seconds = _seconds(length)
        except ValueError as error:
            rows.problems.append(f"{rows.place(number, video_id)}: {error}")
            continue
        table.video_ids.append(video_id)
        table.labels.append(labels)
        table.sources.append(shared.setdefault(subset, subset))
        table.pair_ids.append(shared.setdefault(group, group))
        table.subjects.append(shared.setdefault(subject, subject))
        table.lengths.append(seconds)
    rows.problems += _repeated(seen, numbers, rows.noun)


def _repeated(video_ids: list[str], numbers: Sequence[int], noun: str) -> list[str]:
    if len(set(video_ids)) == len(video_ids):
        return []
    places: dict[str, list[str]] = {video_id: [] for video_id, count in Counter(video_ids).items() if count > 1}
    for video_id, number in zip(video_ids, numbers, strict=True):
        if video_id in places:
            places[video_id].append(f"{number:,}")
    named = (f"{video_id} ({noun}s {first_few(places[video_id])})" for video_id in places)
    return [f"{len(places):,} video(s) occur more than once: {first_few(named)}"]


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = value.strip() if isinstance(value, str) else value
    if not isinstance(text, str) or not text.isprintable():
        kind = "text in one line" if what else "a video id"
        raise ValueError(f"{what} {quote(value)} is not {kind}".lstrip())
    return text


def _seconds(value: Any) -> float:
    """Return a length, NaN where it is not given."""
    if value is None or value == "" or value != value:
        return math.nan
    try:
        # float() also takes 1_0 and full-width digits.
        seconds = float(value) if not isinstance(value, str) or (value.isascii() and "_" not in value) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 < seconds < 1e9:
        raise ValueError(f"length_s {quote(value)} is not a length in seconds")
    return seconds


# --- the forms of a table ---------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """Rows of a CSV or a tab-separated text with a header, whose cells are stripped.

    ``columns`` are those of the header, or the keys of the JSON objects read so far; ``problems`` are the rows that
    could not be read, added while ``read`` runs.
    """

    path: Path
    columns: tuple[str, ...]
    source: Any
    problems: list[str] = field(default_factory=list)

    noun: ClassVar[str] = "line"
    is_text: ClassVar[bool] = True
    has_header: ClassVar[bool] = True

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of every row, and its values of some columns: None where the table lacks the column."""
        places = [self.columns.index(name) if name in self.columns else None for name in names]
        expected = len(self.columns)
        reader = self.source
        with _readable(self.path, "CSV"):
            for row in reader:
                if len(row) == expected:
                    yield reader.line_num, [None if place is None else row[place].strip() for place in places]
                elif any(cell.strip() for cell in row):
                    # Or a row whose labels are joined by commas would lose all but the first label.
                    what = f"{len(row)} cells, expected {expected}; labels are joined by semicolons"
                    self.problems.append(f"{self.place(reader.line_num, row[0])}: {what}")

    def place(self, number: int, video_id: object) -> str:
        """Return file, line and video of a row, for a message."""
        text = str(video_id)
        return f"{self.path.name}, {self.noun} {number:,} ({text if len(text) <= 60 else text[:57] + '...'})"


class _ParquetRows(_Rows):
    noun = "row"
    is_text = False

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        present = [name for name in names if name in self.columns]
        number = 0
        with _readable(self.path, "Parquet"):
            for batch in self.source.iter_batches(1 << 16, columns=present):
                values = {name: batch.column(name).to_pylist() for name in present}
                blank = [None] * len(batch)
                for row in zip(*(values.get(name, blank) for name in names), strict=True):
                    number += 1
                    yield number, row


class _JsonLines(_Rows):
    """One object per line."""

    is_text = False
    has_header = False

    def entries(self) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(self.source, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=_unique)
                except (ValueError, RecursionError) as error:
                    what = f"line {number:,}: {error}; expected one object per line, or a list of objects"
                    raise SplitError(f"{self.path} is not a readable JSON file: {what}") from None

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        keys: set[str] = set()
        with _readable(self.path, "JSON"):
            for number, entry in self.entries():
                if not isinstance(entry, dict):
                    self.problems.append(f"{self.path.name}, {self.noun} {number:,}: not an object")
                    continue
                if not entry.keys() <= keys:
                    keys |= entry.keys()
                    self.columns += tuple(key for key in entry if key not in self.columns)
                if missing := [name for name in ("video_id", "labels") if name not in entry]:
                    what = f"no {' and '.join(missing)}; its keys are {first_few(entry) or 'none'}"
                    self.problems.append(f"{self.place(number, entry.get('video_id'))}: {what}")
                else:
                    yield number, [entry.get(name) for name in names]


class _JsonList(_JsonLines):
    """A list of objects."""

    noun = "entry"

    def entries(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(json.load(self.source, object_pairs_hook=_unique), start=1)


_TABLES = "CSV, tab-separated text (.tsv), Parquet, a JSON list or JSON lines"


def _check_types(path: Path, schema: pa.Schema) -> None:
    """Refuse a Parquet table with a known column of a type that it cannot have, before anything is read."""
    types = pa.types
    is_text = (types.is_string, types.is_large_string, types.is_integer, types.is_null)
    is_number = (*is_text[:2], types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    problems = []
    for name in (*COLUMNS, _PAIR):
        for kind in [column.type for column in schema if column.name == name]:
            plain, wanted = kind, "text"
            if name == "labels":
                wanted = "text or a list of text or whole numbers"
                plain = kind.value_type if any(check(kind) for check in is_list) else kind
            plain = plain.value_type if types.is_dictionary(plain) else plain
            allowed, wanted = (is_number, "a number") if name == "length_s" else (is_text, wanted)
            if name == "labels" and types.is_floating(plain):
                continue  # the cells are refused one by one
            if not any(check(plain) for check in allowed):
                problems.append(f"column {name!r} is of type {kind}; expected {wanted}")
    if problems:
        raise SplitError(f"{len(problems):,} problem(s) with {path}:\n{bullet_list(problems)}")


@contextmanager
def _open_rows(path: Path) -> Iterator[_Rows]:
    """Open a table: Parquet by its first bytes, JSON by a ``[`` or ``{``, tab-separated by ``.tsv``, otherwise CSV."""
    try:
        with path.open("rb") as stream:
            start = stream.read(1 << 10)
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        raise SplitError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if start.startswith(b"PAR1"):
        with _readable(path, "Parquet"):
            file = pq.ParquetFile(path)
        with file:
            _check_types(path, file.schema_arrow)
            yield _ParquetRows(path, tuple(file.schema_arrow.names), file)
        return
    if (kind := describe_content(path)) not in ("", "JSON", "empty"):
        raise SplitError(f"{path} is {kind}; a table is {_TABLES}, with the columns video_id and labels")
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if first in (b"[", b"{"):
            yield (_JsonList if first == b"[" else _JsonLines)(path, (), stream)
            return
        with _readable(path, "CSV"):
            reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = tuple(name.strip() for name in next(reader, []))
        yield _Rows(path, header, reader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; refuse a key that occurs twice, because one value would be lost."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key(s) twice in one object: {first_few(sorted({n for n in names if names.count(n) > 1}))}")
    return entry


@contextmanager
def _readable(path: Path, form: str) -> Iterator[None]:
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
