"""Annotated videos as one table; the lines, checks and labels that the readers of all formats share."""

import csv
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from meidbench.errors import AnnotationError, bullet_list, first_few, write_count
from meidbench.splits.manifests import Manifest
from meidbench.splits.rows import Span

Segment = tuple[int, float, float]
MOST_CLASSES = (1 << 15) - 1  # a split file keeps labels as int16
MOST_NAMED = 5  # problems that a message names


@dataclass(frozen=True)
class FileRecord:
    """A file that was read: its name, size in bytes and sha256."""

    name: str = ""
    bytes: int = 0
    sha256: str = ""

    _required: ClassVar = ("name", "bytes", "sha256")


@dataclass
class Annotations:
    """Annotated videos as columns, one entry per video, in the official order.

    ``class_names`` are C names by class index, and ``files`` the files that were read. ``sources`` are official
    subsets; ``views`` is ``first``, ``third`` or empty; ``pair_ids`` is shared by the first- and third-person takes of
    one script and empty elsewhere. ``labels`` are class indices in the order of their first occurrence, each at most
    once. ``lengths`` are in seconds, NaN where the annotation has no length. ``segments`` are class index, start and
    end in seconds, verbatim and in official order. ``spans`` are None for a whole video, else the part of a longer one
    that the sample is; there may be no entries where every sample is a whole video. ``other_annotations`` is set where
    a user accepted files of a benchmark that are not the official ones; a split records it.

    ``groups`` has the group of each class by index, ``head``, ``medium`` or ``tail``, where the annotations or the user
    list them; empty where thresholds group the classes. The reader of a benchmark sets it where the manifest has
    ``groups = "list"``, after all classes are known::

        table.groups = tuple({"middle": "medium"}.get(text, text) for text in segments_by_class_index)

    ``group_names`` has the benchmark's own names of groups, such as ``{"medium": "middle"}``; they are in the manifest,
    and ``read_annotations`` copies them.
    """

    class_names: tuple[str, ...]
    video_ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    labels: list[tuple[int, ...]] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    pair_ids: list[str] = field(default_factory=list)
    segments: list[tuple[Segment, ...]] = field(default_factory=list)
    spans: list[Span | None] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    other_annotations: bool = False
    groups: tuple[str, ...] = ()
    group_names: dict[str, str] = field(default_factory=dict)

    def append(
        self,
        video_id: str,
        source: str,
        labels: tuple[int, ...],
        length: float = math.nan,
        segments: tuple[Segment, ...] = (),
        subject: str = "",
        view: str = "",
        pair_id: str = "",
        span: Span | None = None,
    ) -> None:
        """Append one video."""
        self.extend([video_id], [labels], source)
        self.lengths[-1], self.segments[-1] = length, segments
        self.subjects[-1], self.views[-1], self.pair_ids[-1] = subject, view, pair_id
        self.spans[-1] = span

    def extend(self, video_ids: Sequence[str], labels: Sequence[tuple[int, ...]], source: str) -> None:
        """Append many videos of one official subset of which only ids and labels are known."""
        # Whole columns, because one call per video is slow for millions of rows.
        count = len(video_ids)
        self.video_ids += video_ids
        self.labels += labels
        self.sources += [source] * count
        self.lengths += [math.nan] * count
        for column in (self.subjects, self.views, self.pair_ids):
            column += [""] * count
        self.segments += [()] * count
        self.spans += [None] * count


@dataclass(frozen=True)
class Format:
    """A form of annotation files: the name that people know, the content in a sentence, and the names of the files.

    ``read`` takes the paths of the files, and the manifest where the format needs one; it returns ``Annotations``, or
    raises ``AnnotationError`` with the first five problems. A format that ``needs_manifest`` is read by
    ``read_benchmark``, which takes classes and official subsets from a manifest. ``read_texts`` reads the description
    and the script of each video, by id, from the same files, where the format has them.
    """

    title: str
    description: str
    files: str
    read: Callable[..., Annotations]
    needs_manifest: bool = False
    read_texts: Callable[[Sequence[Path], Manifest], dict[str, tuple[str, str]]] | None = None


class LineReader:
    """The lines of a UTF-8 text file, with their ends, and afterwards the record of the file.

    An ``AnnotationError`` names the line that is not UTF-8, or the file that is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.number = 0
        self._bytes = 0
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as stream:
                for raw in stream:
                    self.number += 1
                    self._digest.update(raw)
                    yield raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
                    self._bytes += len(raw)
        except OSError as error:
            raise AnnotationError(f"cannot read {self.path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            place = f"{self.path.name}, line {self.number:,}: byte {self._bytes + error.start:,}"
            raise AnnotationError(f"{place} is not UTF-8 text; the file is damaged or of another kind") from None

    def record(self) -> FileRecord:
        """Return which file was read, after its last line."""
        return FileRecord(self.path.name, self._bytes, self._digest.hexdigest())


def read_benchmark(
    paths: Sequence[Path],
    manifest: Manifest,
    read_class_names: Callable[[LineReader, Manifest], tuple[str, ...]],
    append_rows: Callable[[LineReader, str, Annotations, list[str]], None],
) -> Annotations:
    """Read the files of a benchmark: one per official subset, in the order of the manifest, and the class names last.

    ``append_rows`` adds the lines of a file and its official subset to the table and the list of problems. An
    ``AnnotationError`` names the places of the first five problems.
    """
    *files, class_file = paths
    class_lines = LineReader(class_file)
    table = Annotations(read_class_names(class_lines, manifest))
    problems: list[str] = []
    for path, entry in zip(files, manifest.files, strict=True):
        lines = LineReader(path)
        before = len(table.video_ids), len(problems)
        append_rows(lines, entry.source, table, problems)
        if before == (len(table.video_ids), len(problems)):
            problems.append(f"{path.name} holds no video")
        table.files.append(lines.record())
    table.files.append(class_lines.record())
    problems += [f"video {video_id} occurs more than once" for video_id in find_repeated(table.video_ids)]
    check_problems(problems, f"in the annotations in {class_file.parent}", manifest.remedy)
    return table


def read_csv_rows(lines: LineReader, columns: Sequence[str], problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the place where each row ends (file and line, for messages) and its cells in the order of ``columns``."""
    name = lines.path.name
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        if missing:
            problems.append(f"{name}, line 1: no column {', '.join(missing)}; the header is {first_few(header, 15)!r}")
            return
        places = [header.index(column) for column in columns]
        for row in reader:
            if len(row) == len(header):
                yield f"{name}, line {lines.number} ({row[places[0]]})", [row[place] for place in places]
            elif row:
                wanted = f"expected {len(header)} ({first_few(header, 15)})"
                what = f"{write_count(len(row), 'cell')}, {wanted}; a cut-off line?"
                problems.append(f"{name}, line {lines.number} ({row[0]}): {what}")
    except csv.Error as error:
        problems.append(f"{name}, line {lines.number}: {error}; a quotation mark is open or the file is cut off")


def check_codes(path: Path, codes: Sequence[str], form: str, manifest: Manifest) -> None:
    """Refuse a list of classes whose codes are not all those of the benchmark, in order."""
    for place, (code, expected) in enumerate(zip(codes, map(form.format, range(manifest.num_classes)), strict=False)):
        if code != expected:
            raise AnnotationError(f"{path.name}, entry {place + 1}: class code {code!r}, expected {expected!r}")
    if len(codes) != manifest.num_classes:
        counts = f"{write_count(len(codes), 'class', 'classes')}, {manifest.title} has {manifest.num_classes}"
        raise AnnotationError(f"{path.name}: {counts}; the file is cut off or of another dataset")


def check_annotations(table: Annotations, problems: list[str], title: str, remedy: str = "") -> None:
    """Raise an ``AnnotationError`` for problems, a repeated video, too many classes or no label at all."""
    problems = problems + [f"video {video_id} occurs more than once" for video_id in find_repeated(table.video_ids)]
    if not problems and not any(table.labels):
        problems.append("no video has a label")
    if len(table.class_names) > MOST_CLASSES:
        problems.append(f"{len(table.class_names):,} classes are more than a split file can hold ({MOST_CLASSES:,})")
    check_problems(problems, f"with the {title} annotations", remedy)


def check_problems(problems: list[str], where: str, remedy: str = "") -> None:
    """Raise an ``AnnotationError`` with the first five problems and the remedy; do nothing without problems."""
    if problems:
        text = f"{len(problems):,} problem(s) {where}:\n{bullet_list(problems, MOST_NAMED)}"
        raise AnnotationError(f"{text}\n{remedy}" if remedy else text)


def check_video_id(video_id: str) -> None:
    """Refuse an id that no file or line can be named after, with a ``ValueError``."""
    if not video_id or not video_id.isprintable() or video_id.strip() != video_id:
        raise ValueError("is not a video id")


def find_repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, in the order of their first repetition."""
    if len(set(names)) == len(names):
        return []
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]


def quote(value: object) -> str:
    """Quote a value for a message, cut to 60 characters.

    >>> quote("run"), len(quote("x" * 1000))
    ("'run'", 60)
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def read_text(value: Any, what: str) -> str:
    """Return a cell of text, empty where it is not given; ``what`` names it in the ``ValueError``, empty for an id."""
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = value.strip() if isinstance(value, str) else value
    if not isinstance(text, str) or not text.isprintable():
        kind = "text in one line" if what else "a video id"
        raise ValueError(f"{what} {quote(value)} is not {kind}".lstrip())
    return text


def read_seconds(value: Any, what: str = "length_s", least: float = math.ulp(0.0)) -> float:
    """Return a number of seconds, at least ``least``, NaN where it is not given; ``what`` names it in the error."""
    if value is None or value == "" or value != value:
        return math.nan
    try:
        # float() also takes 1_0 and full-width digits.
        seconds = float(value) if not isinstance(value, str) or (value.isascii() and "_" not in value) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not least <= seconds < 1e9:
        raise ValueError(f"{what} {quote(value)} is not a {'length' if least else 'time'} in seconds")
    return seconds


def read_span(video: Any, start: Any, end: Any) -> Span | None:
    """Return the part of a video that a row of a table names, None where it has no times; ``ValueError`` for others."""
    times = read_seconds(start, "start_s", 0.0), read_seconds(end, "end_s", 0.0)
    return None if all(map(math.isnan, times)) else Span(read_text(video, "video"), *times)


# Text that looks like a number but is not an index is a slip, never a name: -1, 2.0, 1e3.
_NUMBER = re.compile(r"[-+]?\d+([.,]\d*)?(e[-+]?\d+)?", re.IGNORECASE)
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_ITEM = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")  # of a list as Python, NumPy or JSON print it
_SEPARATORS = ("|", ",", None)  # in the place of semicolons; None for blanks
_NUMBERS = re.compile(r"\W*\d+(\W+\d+)+\W*|\d+\s*,")


def _looks_like_list(text: str) -> bool:
    """Return whether text is probably several labels, which must not become one class name."""
    bracketed = text[:1] in _BRACKETS and text.endswith(_BRACKETS[text[0]])
    quoted = text[:1] in ("'", '"') and text.endswith(text[0]) and len(text) > 1
    listed = bracketed and (text[0] != "(" or "," in text or bool(_ITEM.search(text)))
    printed = text.endswith("])")  # array([0, 2]), tensor([0, 2])
    return listed or quoted or printed or "|" in text or bool(_NUMBERS.fullmatch(text))


@dataclass(frozen=True)
class IndexedLabels:
    """All labels of a table as class indices, or the problems with them."""

    labels: list[tuple[int, ...]]  # class indices of each video
    class_names: tuple[str, ...]
    made_from: str = ""  # "class names" that were given, or the "labels" or "indices" of the rows
    problems: list[str] = field(default_factory=list)


class LabelIndex:
    """Turns the labels of one video after another into class indices.

    With class names, a label is one of them or an index. Without class names, labels are either all indices or all
    names. In the second case the classes are the distinct names, sorted by code points, so ``finish`` gives the final
    indices after the last row. ``noun`` is the word for a row in a message.

    >>> index = LabelIndex()
    >>> rows = [index.parse("swim; run", row=2, is_text=True), index.parse(["dive", "run"], row=3, is_text=False)]
    >>> indexed = index.finish(rows)
    >>> indexed.labels, indexed.class_names
    ([(2, 1), (0, 1)], ('dive', 'run', 'swim'))
    """

    def __init__(self, names: tuple[str, ...] | None = None) -> None:
        self._names = names
        self.noun = "line"
        self._of_text: dict[str, int] = {name: index for index, name in enumerate(names or ())}
        # Without class names: a number for each label in order of appearance, and the place where it appeared.
        self._seen: dict[int | str, int] = {}
        self._places: list[str] = []

    def parse(self, cell: Any, *, row: int, is_text: bool) -> tuple[int, ...]:
        """Return a number for each label of a video, to be given to ``finish``; ``ValueError`` if one is wrong.

        A cell holds labels joined by semicolons, a list of names or indices, or one index; it is empty or None for a
        video without a label. In a cell that ``is_text`` a name cannot hold a semicolon. Text such as ``[0, 2]``,
        ``['run', 'swim']``, ``0 2``, ``0|2`` or ``0,2`` is read as a list where it cannot be a class name.
        """
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return ()
        parts: Any = cell.split(";") if isinstance(cell, str) else [cell] if type(cell) is int else cell
        if not isinstance(parts, list):
            raise ValueError(f"labels {quote(cell)} are not a list of names or indices")
        try:
            labels = tuple([self._of_text[part] for part in parts])
        except (KeyError, TypeError):  # not seen before, with blanks around it, or not text
            listed = self._listed(cell.strip()) if isinstance(cell, str) else None
            parts = parts if listed is None else listed
            labels = tuple([self._number(part, row, is_text) for part in parts])
        if len(labels) > 1 and len(set(labels)) < len(labels):
            one_hot = len(parts) > 2 and {str(part).strip() for part in parts} <= {"0", "1"}
            hint = "; it looks like a 0 or 1 per class, but labels are the indices of the classes" if one_hot else ""
            raise ValueError(f"a label occurs twice in {quote(cell)}{hint}")
        return labels

    def _listed(self, text: str) -> list[str] | None:
        """Return the labels of text that can only be a list, None for other text."""
        if text in self._of_text:
            return None
        if text[0] in _BRACKETS and text.endswith(_BRACKETS[text[0]]):
            items = _ITEM.findall(text[1:-1])
            if not _ITEM.sub("", text[1:-1]).strip(" ,;\t"):
                return [item.strip("'\"") if item[0] in "'\"" else item for item in items]
        names = self._names or ()
        for separator in _SEPARATORS:
            parts = [part.strip() for part in text.split(separator)]
            if len(parts) > 1 and (all(map(_is_index, parts)) or all(part in names for part in parts)):
                return parts
        return None

    def _number(self, label: Any, row: int, is_text: bool) -> int:
        if not isinstance(label, str) and type(label) is not int:
            raise ValueError(f"label {quote(label)} is neither a name nor an index")
        text = str(label).strip()
        if text in self._of_text:
            return self._of_text[text]
        is_index = _is_index(text)
        if not text:
            raise ValueError("label '' is not one of the class names or indices; take out the surplus separator")
        hint = "; it looks like a list, and labels are joined by semicolons" if _looks_like_list(text) else ""
        if self._names is not None:
            if not is_index:
                if is_text and any(";" in name for name in self._names):
                    hint = " (names that hold a semicolon need lists, as in JSON or Parquet, or indices)"
                raise ValueError(f"label {quote(text)} is not one of the class names or indices{hint}")
            if int(text) >= len(self._names):
                classes = write_count(len(self._names), "class", "classes")
                raise ValueError(f"label {text} is outside the {classes}; the first has index 0")
            number = int(text)
        elif is_index or (not hint and _can_be_name(text)):
            number = self._seen.setdefault(int(text) if is_index else text, len(self._seen))
            if number == len(self._places):
                self._places.append(f"{self.noun} {row:,}")
        else:
            rest = f"{hint}; if it is one name, give the class names" if hint else ""
            raise ValueError(f"label {quote(text)} is not one of the class names or indices{rest}")
        self._of_text[text] = number
        return number

    def finish(self, labels: list[tuple[int, ...]]) -> IndexedLabels:
        """Return final class indices for all that ``parse`` returned."""
        names = [label for label in self._seen if isinstance(label, str)]
        indices = [label for label in self._seen if isinstance(label, int)]
        problems = []
        if names and indices:
            mixed = f"{self._placed(names)} beside {self._placed(indices)}"
            problems = [f"labels are names in some rows and indices in others, which needs class names: {mixed}"]
        elif spellings := find_spellings(names):
            problems = spellings
        elif joined := _joined(names):
            what = "labels that look like a list of other labels, and are joined by semicolons then"
            problems = [f"{what}: {self._placed(joined)}; give class names if they are class names"]
        elif set(indices) == {0, 1} and len(labels) > 1 and all(len(row) == 2 for row in labels):
            problems = ["every video has both labels 0 and 1: write the indices of its classes, not a 0 or 1 per class"]
        num_classes = len(self._names if self._names is not None else names) or max(indices, default=-1) + 1
        if num_classes > MOST_CLASSES:
            problems.append(f"{num_classes:,} classes are more than a split file can hold ({MOST_CLASSES:,})")
        if problems:
            return IndexedLabels(labels, (), problems=problems)
        if self._names is not None:
            return IndexedLabels(labels, self._names, "class names")
        if names:
            final = {name: index for index, name in enumerate(sorted(names))}
            of_number, class_names = [final[name] for name in names], tuple(final)
        else:
            of_number, class_names = indices, tuple(f"c{index:03d}" for index in range(num_classes))
        indexed = [tuple([of_number[number] for number in row]) for row in labels]
        return IndexedLabels(indexed, class_names, "labels" if names else "indices")

    def _placed(self, labels: list[str] | list[int]) -> str:
        return first_few(f"{quote(label)} ({self._places[self._seen[label]]})" for label in labels)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _can_be_name(text: str) -> bool:
    return text.isprintable() and not _NUMBER.fullmatch(text)


def _joined(names: list[str]) -> list[str]:
    """Return the names that consist of several other names, separated by commas or blanks."""
    known = set(names)
    parts_of = {name: [[part.strip() for part in name.split(mark)] for mark in (",", None)] for name in names}
    return [name for name, ways in parts_of.items() if any(len(way) > 1 and known.issuperset(way) for way in ways)]


def fold_name(name: str) -> str:
    """Return a class name without case, Unicode form and surplus blanks: names that are alike then are one class.

    >>> fold_name("Passing  American football") == fold_name("passing american football")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def find_spellings(names: Sequence[str]) -> list[str]:
    """Return the problem of class names that differ only in case, spacing or Unicode form; empty without such names.

    >>> find_spellings(["Run", "swim", "run"])
    ["names that differ only in case or spacing: 'Run' / 'run'; write them alike"]
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(fold_name(name), []).append(name)
    groups = [" / ".join(map(repr, sorted(group))) for group in alike.values() if len(group) > 1]
    return [f"names that differ only in case or spacing: {first_few(groups)}; write them alike"] if groups else []
