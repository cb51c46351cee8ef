"""The base class of all forms of prediction files, and text with one line per video: tables and JSON lines."""

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.checks import parse_json
from meidbench.errors import PredictionError, first_few

BLOCK_ROWS = 8192
LONGEST_ID = 1 << 10  # bytes
LONGEST_LINE = 1 << 24  # characters of a text file: the scores of some hundred thousand classes

# Names of columns, arrays and keys, in any case of their letters. The first one is that of the documentation.
ID_NAMES = ("video_id", "video_ids", "id", "ids", "video", "vid", "name", "index")
SCORE_NAMES = ("scores", "score", "logits", "probabilities", "probs", "predictions", "preds")
CLASS_NAMES = ("class_names", "classes")  # of arrays beside the scores
# The class and the score in a table with one row per video and class.
_LONG_CLASSES = ("class", "class_id", "class_index", "class_name", "label", "label_id", "category", "variable")
_LONG_SCORES = (*SCORE_NAMES, "value", "prob", "probability", "confidence")
_LONG_COLUMNS = 6
# The index of a pandas DataFrame: as CSV, after CSV was read again, after reset_index, and as Parquet.
INDEX_NAMES = ("", "Unnamed: 0", "index", "level_0", "__index_level_0__")

_LINE = 'expected one object {"video_id": ..., "scores": [...]} per line'

Scores = npt.NDArray[Any]


def find_names(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return those of the names that are known, in the order of the known ones.

    Examples
    --------
    >>> find_names(["c000", "ID"], ID_NAMES)
    ['ID']
    """
    given: dict[str, str] = {}
    for name in names:
        given.setdefault(name.strip().lower(), name)
    return [given[name] for name in known if name in given]


def number_classes(names: Sequence[str]) -> list[int] | None:
    """Return the class indices that names such as ``c012``, ``12`` or ``class_12`` number; None for other names.

    Examples
    --------
    >>> number_classes(["class_1", "class_0"]), number_classes(["run", "jump"])
    ([1, 0], None)
    """
    found = [re.fullmatch(r"((?:class|score|c)?_?)([0-9]{1,9})", name.strip(), re.IGNORECASE) for name in names]
    matches = [match for match in found if match]
    numbers = [int(match[2]) for match in matches]
    same_prefix = len({match[1].lower() for match in matches}) <= 1
    return numbers if same_prefix and sorted(numbers) == list(range(len(names))) else None


def name_classes(names: Sequence[str] | None, known: Sequence[str] = ()) -> list[str] | None:
    """Return the class names of a header; None where it numbers the classes in their order.

    Numbers that are the names of the known classes, in any order, are names: classes may be sorted as ``class_10``,
    ``class_2``.
    """
    if names is None or (number_classes(names) == list(range(len(names))) and set(names) != set(known)):
        return None
    return list(names)


def describe_long(id_name: str, columns: Sequence[str]) -> str:
    """Return the problem with a table whose columns are ids, classes and scores, with its remedy; else an empty text.

    Examples
    --------
    >>> print(describe_long("id", ["variable", "value"]).partition(". ")[2])
    Make one row per video, one column per class: frame.pivot(index='id', columns='variable', values='value')
    """
    scores, classes = find_names(columns, _LONG_SCORES), find_names(columns, _LONG_CLASSES)
    if len(columns) == 2 and len(scores) == 1:
        classes = [name for name in columns if name not in scores]
    if not scores or not classes or len(columns) > _LONG_COLUMNS:
        return ""
    index = f"index={id_name!r}, " if id_name else ""
    named = first_few([id_name, *columns] if id_name else columns)
    problem = f"it has the columns {named}: one row per video and class"
    pivot = f"frame.pivot({index}columns={classes[0]!r}, values={scores[0]!r})"
    return f"{problem}. Make one row per video, one column per class: {pivot}"


def id_text(value: object) -> str:
    """Return an id as text: of bytes, and of a whole number."""
    return value.decode() if isinstance(value, bytes) else str(value)


class PredictionFile(ABC):
    """An opened prediction file: ``metadata`` has the facts that it states about itself, ``dtype`` is of the scores."""

    num_videos: int
    num_classes: int
    dtype: np.dtype[Any]
    class_names: list[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}

    def refusal(self, problem: str) -> PredictionError:
        """Return an error that names the file."""
        return PredictionError(f"{self.path}: {problem}")

    @contextmanager
    def refusing(self, form: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
        """Turn the errors of a library into a refusal."""
        try:
            yield
        except PredictionError:
            raise
        except errors as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self.refusal(f"not a readable {form}: {reason}") from None

    def find_scores(self, names: Iterable[str], what: str, expected: str) -> str:
        """Return the name of the scores among the names of columns, arrays or keys; refuse none and several."""
        held = list(names)
        found = find_names(held, SCORE_NAMES)
        if found and (len(found) == 1 or found[0].lower() == SCORE_NAMES[0]):
            return found[0]
        if found:
            raise self.refusal(f"it has the {what} {first_few(found)}; name the one to score {SCORE_NAMES[0]}")
        raise self.refusal(f"it lacks {SCORE_NAMES[0]}; it holds {first_few(held) or 'nothing'}; {expected}")

    def has_class_names(self, name: str, shape: tuple[int, ...], is_text: bool) -> bool:
        """Return whether an array has a name per class; refuse ``class_names`` that are something else."""
        fits = is_text and shape == (self.num_classes,)
        if not fits and name.strip().lower() == CLASS_NAMES[0]:
            got = f"shape {shape}{'' if is_text else ' and no text'}"
            raise self.refusal(f"{name} has {got}; expected one text per class, ({self.num_classes},)")
        return fits

    @cached_property
    def video_ids(self) -> list[str]:
        """Ids in the file's order."""
        return self._read_ids()

    @abstractmethod
    def _read_ids(self) -> list[str]:
        """Read what ``video_ids`` keeps."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Scores]]:
        """Yield the first row of each block and its scores (rows, C), in the file's order."""

    def check_dtype(self) -> None:
        """Refuse scores that are not real numbers."""
        if self.dtype.kind not in "fiu" or self.dtype.itemsize > 8:
            raise self.refusal(f"the scores are of type {self.dtype}; expected real numbers of at most 64 bits")


class TextFile(PredictionFile):
    """Text with one line per video; each line is read twice, once for its id and once for its scores."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dtype = np.dtype(np.float64)

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, str, list[Any]]]:
        """Yield the number of each line, its id and its scores, as text or numbers."""

    @abstractmethod
    def _refuse_cell(self, cells: list[Any]) -> str:
        """Return the problem with scores that are no numbers."""

    def _lines(self) -> Iterator[str]:
        """Yield all lines; refuse one that would fill the memory before its scores could be counted."""
        with self.path.open(encoding="utf-8-sig", newline="") as stream:
            while line := stream.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise self.refusal(f"a line has {LONGEST_LINE:,} characters or more: it is damaged")
                yield line

    def _read_ids(self) -> list[str]:
        return self._ids

    def _keep_ids(self) -> None:
        self._ids = [video_id for _, video_id, _ in self._rows()]
        self.num_videos = len(self._ids)

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        rows, start = self._rows(), 0
        while part := list(islice(rows, BLOCK_ROWS)):
            scores = np.empty((len(part), self.num_classes))
            for row, (number, video_id, cells) in enumerate(part):
                line = f"line {number} ({video_id})"
                if len(cells) != self.num_classes:
                    raise self.refusal(f"{line} has {len(cells):,} scores, expected {self.num_classes:,}")
                try:
                    scores[row] = self._numbers(cells)
                except (ValueError, OverflowError):
                    raise self.refusal(f"{line}: {self._refuse_cell(cells)}") from None
            yield start, scores
            start += len(part)

    @staticmethod
    def _numbers(cells: list[Any]) -> list[Any]:
        return cells


class TableFile(TextFile):
    """CSV (comma, semicolon or tab) with a header, or lines ``ID s1 ... sC`` without one: blanks, tabs or commas."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._delimiter, self._id_place, self._index_place = "", 0, -1
        first = self._choose_delimiter()
        header = [cell.strip() for cell in first]
        found = find_names(header, ID_NAMES)
        self.is_csv = bool(self._delimiter and (found or not header[0])) or header[0].lower() in ID_NAMES
        if self.is_csv:
            self._id_place = header.index(found[0]) if found else 0
            id_name = header[self._id_place]
            if self._id_place and header[0] in INDEX_NAMES:
                self._index_place = 0
            header = [name for place, name in enumerate(header) if place not in (self._id_place, self._index_place)]
            self.class_names = header
            self.header = header
        elif len(first) < 2 or not all(map(_is_number, first[1:])):
            start = " ".join(first)[:40]
            expected = "neither a CSV header (video_id, then the classes) nor 'ID s1 ... sC'"
            raise self.refusal(f"its first line {start!r} is {expected}")
        elif re.fullmatch(r"[-+]?[0-9]+\.[0-9]*(e[-+]?[0-9]+)?", first[0]):
            problem = f"its first line begins with the number {first[0][:40]}, not with a video_id"
            raise self.refusal(f"{problem}. Write the ids into the first column, or a .npy matrix and video_ids=FILE")
        self.num_classes = len(header) - (not self.is_csv)
        self._keep_ids()
        is_repeated = self.is_csv and len(set(self.video_ids)) < self.num_videos
        if is_repeated and (problem := describe_long(id_name, header)):
            raise self.refusal(problem)

    def _choose_delimiter(self) -> list[str]:
        """Return the cells of the first line, whose delimiter is kept; blank for any blanks."""
        try:
            first = next(line for line in self._lines() if line.strip())
        except StopIteration:
            raise self.refusal("it holds no line") from None
        except UnicodeDecodeError as error:
            raise self._unreadable(error) from None
        # A tab or semicolon also stands inside of class names, so it must follow the name of the ids.
        start = re.match(r'\s*"?([^",;\t]*)"?([;\t])', first)
        if start and (start[1].strip().lower() in (*ID_NAMES, "") or start[1] in INDEX_NAMES):
            self._delimiter = start[2]
        elif "," in first:
            self._delimiter = ","
        return next(self._cells())[1]

    def _unreadable(self, error: Exception) -> PredictionError:
        remedy = "Of a pickle or a .npy, write a file with meidbench.write_predictions(path, video_ids, scores)"
        return self.refusal(f"neither Parquet, NPZ or HDF5 nor readable text: {error}. {remedy}")

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the cells of each line that is not blank."""
        try:
            if self._delimiter:
                reader = csv.reader(self._lines(), strict=True, delimiter=self._delimiter)
                yield from ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
            else:
                yield from ((number, line.split()) for number, line in enumerate(self._lines(), 1) if line.strip())
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._unreadable(error) from None

    def _rows(self) -> Iterator[tuple[int, str, list[str]]]:
        for number, cells in islice(self._cells(), int(self.is_csv), None):
            if self._index_place == 0 and not cells[0].strip().isdecimal():
                problem = f"its first column has no class name, and holds {cells[0][:40]!r}"
                raise self.refusal(f"line {number}: {problem}; expected the row numbers that pandas writes, or a name")
            video_id = cells[self._id_place] if self._id_place < len(cells) else ""
            last = max(self._id_place, self._index_place) + 1
            yield number, video_id, [*cells[self._index_place + 1 : self._id_place], *cells[last:]]

    @staticmethod
    def _numbers(cells: list[str]) -> list[str]:
        if any("_" in cell for cell in cells):  # Python would read 1_0 as 10
            raise ValueError
        return cells

    def _refuse_cell(self, cells: list[str]) -> str:
        place, wrong = next((place, cell) for place, cell in enumerate(cells) if not _is_number(cell))
        column = f" (column {self.header[place][:40]!r})" if self.is_csv else ""
        if wrong.lstrip().startswith("["):
            remedy = ". A table has one column per class; write lists as Parquet, e.g. frame.to_parquet(path)"
        else:
            remedy = "; decimal numbers have a point" if "," in wrong else ""
        return f"{wrong[:40]!r} is not a number{column}{remedy}"


class JsonLinesFile(TextFile):
    """One JSON object per line: an id, and its scores.

    ``scores`` is a list of numbers or an object class name -> number, or each class name is a key beside the id.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._id_name, self._scores_name = "", ""
        self._classes: list[str] | None = None
        self.num_classes = 0
        self._keep_ids()

    def _rows(self) -> Iterator[tuple[int, str, list[Any]]]:
        number = 0
        try:
            for number, line in enumerate(self._lines(), 1):
                if line.strip():
                    yield number, *self._parse(parse_json(line))
        except UnicodeDecodeError as error:
            raise self.refusal(f"no readable JSON lines: {error}") from None
        except PredictionError:
            raise
        except ValueError as error:
            raise self.refusal(f"line {number}: {error}; {_LINE}") from None

    def _parse(self, row: Any) -> tuple[str, list[Any]]:
        if not isinstance(row, dict):
            raise ValueError(f"it holds a {type(row).__name__}")
        if not self._id_name:
            self._keep_names(row)
        if missing := {self._id_name, self._scores_name or self._id_name} - set(row):
            raise ValueError(f"it has no {' and no '.join(sorted(missing))}")
        video_id, scores = row[self._id_name], self._find_values(row)
        if type(video_id) not in (str, int):
            raise ValueError(f"the id {video_id!r:.40} is no text")
        if self._classes is not None:
            if not isinstance(scores, dict) or scores.keys() != set(self._classes):
                raise ValueError("its class names are not those of the first line")
            return str(video_id), [scores[name] for name in self._classes]
        if not isinstance(scores, list):
            raise ValueError(f"{self._scores_name} is a {type(scores).__name__}, expected a list of numbers")
        return str(video_id), scores

    def _find_values(self, row: dict[str, Any]) -> Any:
        if self._scores_name:
            return row[self._scores_name]
        return {name: value for name, value in row.items() if name != self._id_name}

    def _keep_names(self, row: dict[str, Any]) -> None:
        """Keep the names of the keys of the first line, and its classes."""
        if not (ids := find_names(row, ID_NAMES)):
            raise ValueError(f"it has no video_id, but {first_few(repr(key[:40]) for key in row) or 'nothing'}")
        self._id_name = ids[0]
        keys = [name for name in row if name != ids[0]]
        has_numbers = bool(keys) and not any(isinstance(row[name], list | dict) for name in keys)
        if has_numbers and (problem := describe_long(ids[0], keys)):
            raise self.refusal(problem)
        if not has_numbers or find_names(keys, SCORE_NAMES):
            self._scores_name = self.find_scores(row, "keys", _LINE)
        scores = self._find_values(row)
        if isinstance(scores, dict):
            self._classes = list(scores)
            self.class_names = self._classes
        self.num_classes = len(scores) if isinstance(scores, dict | list) else 0

    @staticmethod
    def _numbers(cells: list[Any]) -> list[Any]:
        if not all(type(cell) in (int, float) for cell in cells):
            raise ValueError
        return cells

    def _refuse_cell(self, cells: list[Any]) -> str:
        place = next((place for place, cell in enumerate(cells) if type(cell) not in (int, float)), None)
        if place is None:
            return f"{cells!r:.40} has a number that is too large"
        name = f" ({self._classes[place][:40]!r})" if self._classes else ""
        return f"{cells[place]!r:.40} is not a number{name}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
