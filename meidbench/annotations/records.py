"""The rows of Something-Something, Kinetics and HACS Clips, with the columns of a table."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from meidbench.annotations.rows import Rows, read_start, readable, unique_keys
from meidbench.errors import SplitError, describe_content, first_few

_Part = tuple[int, str, str, str, str, tuple[str, ...]]  # line, subset, video, start, end and labels
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
HACS_COLUMNS = ("classname", "youtube_id", "subset", "start", "end", "label")


class SomethingRows(Rows):
    """A JSON list of objects with ``id`` and ``template``; the class is the template without its brackets."""

    noun = "entry"
    is_text = False
    has_header = False

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of every entry, and its values of some columns."""
        with readable(self.path, "JSON"):
            entries = json.load(self.source, object_pairs_hook=unique_keys)
        if not isinstance(entries, list):
            raise SplitError(f"{self.path} is not of Something-Something's form: expected a list of objects")
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict) or not isinstance(entry.get("template"), str) or "id" not in entry:
                found = f"its keys are {first_few(entry)}" if isinstance(entry, dict) and entry else "not an object"
                remedy = "; entries of the official test file have no template: leave that file out"
                what = f"needs id and template, {found}{remedy if found == 'its keys are id' else ''}"
                self.problems.append(f"{self.path.name}, {self.noun} {number:,}: {what}")
                continue
            row = {"video_id": entry["id"], "labels": [strip_brackets(entry["template"])]}
            yield number, [row.get(name) for name in names]


def strip_brackets(template: str) -> str:
    """Return a template of Something-Something as its list of labels spells it.

    >>> strip_brackets("Putting [something] on a surface")
    'Putting something on a surface'
    """
    return template.replace("[", "").replace("]", "")


def parse_label_indices(text: str) -> list[str]:
    """Return the class names of a JSON object of class names and indices, such as labels.json; ``ValueError`` if wrong.

    >>> parse_label_indices('{"Closing something": "1", "Bending something": "0"}')
    ['Bending something', 'Closing something']
    """
    found = json.loads(text, object_pairs_hook=unique_keys)
    indices = {str(index): name for name, index in found.items()}
    if missing := [index for index in map(str, range(len(found))) if index not in indices]:
        raise ValueError(f"as an object of class names and indices, it has no index {first_few(missing)}")
    return [indices[str(index)] for index in range(len(found))]


class _QuotedRows(Rows):
    cells_remedy = "quote a cell that holds commas"


@dataclass
class ClipRows(Rows):
    """Rows of a CSV that names videos of YouTube and times; ``source`` is a reader behind the header."""

    header: Sequence[str] = ()

    is_text: ClassVar[bool] = False  # a class name may hold a semicolon
    fields: ClassVar[tuple[str, ...]] = ()

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of every line, and its values of some columns."""
        for number, row in self.convert(_QuotedRows(self.path, tuple(self.header), self.source, self.problems)):
            yield number, [row.get(name) for name in names]

    def convert(self, rows: Rows) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the number of a line, and the values of its columns."""
        raise NotImplementedError


class KineticsRows(ClipRows):
    """Lines ``label,youtube_id,time_start,time_end,split`` with clips of their own, ``YOUTUBE_ID_START_END``."""

    fields = KINETICS_COLUMNS

    def convert(self, rows: Rows) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the number of every line, and its clip; the parts of one video of YouTube are a group."""
        for number, (label, youtube_id, start, end, subset) in rows.read(self.fields):
            try:
                times = [_whole_seconds(start, "time_start"), _whole_seconds(end, "time_end")]
                if times[0] >= times[1]:
                    raise ValueError(f"time_end {end} is not after time_start {start}")
            except ValueError as error:
                self.problems.append(f"{self.place(number, youtube_id)}: {error}")
                continue
            video_id = f"{youtube_id}_{times[0]:06d}_{times[1]:06d}" if youtube_id else ""
            row = {"video_id": video_id, "labels": [label] if label else [], "subset": subset}
            yield number, row | {"group": youtube_id, "length_s": times[1] - times[0]}


class HacsRows(ClipRows):
    """Lines ``classname,youtube_id,subset,start,end,label``: a part of a video, and whether it shows the class.

    The lines of one part are one sample, with the classes whose ``label`` is 1. In the other lines ``label`` is -1, or
    ``classname`` is empty, as in the official test subset: a part with only such lines is a sample without a label.
    """

    fields = HACS_COLUMNS

    def convert(self, rows: Rows) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the number of the first line of every part, and the part."""
        parts: dict[str, _Part] = {}  # tuples, because the official file has 1.5 million lines
        subsets: dict[str, str] = {}
        for number, (name, youtube_id, subset, start, end, label) in rows.read(self.fields):
            wrong = f"label {label!r} is neither 1 nor -1" if name and label not in ("1", "-1") else ""
            if wrong := wrong or ("" if start and end else "it needs a start and an end"):
                self.problems.append(f"{self.place(number, youtube_id)}: {wrong}")
                continue
            video_id = f"{youtube_id}_{start}_{end}" if youtube_id else ""
            new = number, subsets.setdefault(subset, subset), youtube_id, start, end, ()
            first, known, _, _, _, labels = parts.setdefault(video_id, new)
            if known != subset:
                what = f"subset {subset!r}, but {known!r} in line {first:,}"
                self.problems.append(f"{self.place(number, video_id)}: {what}")
            elif name and label == "1" and name not in labels:
                parts[video_id] = first, known, youtube_id, start, end, (*labels, name)
        for video_id, (number, subset, video, start, end, labels) in parts.items():
            times = {"video": video, "start_s": start, "end_s": end}
            yield number, {"video_id": video_id, "labels": list(labels), "subset": subset, **times}


def _whole_seconds(text: str, what: str) -> int:
    """Return a number of seconds as the names of clips have it: whole, of at most six digits."""
    digits = text.removesuffix(".0")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 6):
        raise ValueError(f"{what} {text!r} is not a whole number of seconds")
    return int(digits)


@contextmanager
def open_something(path: Path) -> Iterator[Rows]:
    """Open a file of Something-Something."""
    _check_kind(path, "a JSON list")
    with path.open(encoding="utf-8-sig") as stream:
        yield SomethingRows(path, ("video_id", "labels"), stream)


@contextmanager
def open_clips(path: Path, kind: type[ClipRows], columns: tuple[str, ...]) -> Iterator[Rows]:
    """Open a CSV of clips, whose rows have these columns of a table."""
    _check_kind(path, "a CSV")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        with readable(path, "CSV"):
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in kind.fields if name not in header]:
            remedy = "; a file without labels is left out" if missing == ["label"] else ""
            found = first_few(header) or "none"
            raise SplitError(f"{path} has no column {', '.join(missing)}; its columns are {found}{remedy}")
        yield kind(path, columns, reader, header=header)


def _check_kind(path: Path, wanted: str) -> None:
    read_start(path, 1)  # names a file that cannot be read
    if (content := describe_content(path)) not in ("", "JSON", "empty"):
        raise SplitError(f"{path} is {content}; expected {wanted}")
