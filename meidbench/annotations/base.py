"""What the readers of all formats have in common."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meidbench.annotations.official import Annotations, FileRecord, Segment
from meidbench.errors import AnnotationError, bullet_list, first_few

MOST_CLASSES = (1 << 15) - 1  # a split file keeps labels as int16

# What looks like a number and is no index is a slip, never a name: -1, 2.0, 1e3.
_NUMBER = re.compile(r"[-+]?\d+([.,]\d*)?(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class IndexedLabels:
    """What came of all labels of a table.

    Attributes
    ----------
    labels : list of tuple of int
        Class indices of each video.
    class_names : tuple of str
        C names, by class index.
    made_from : str
        What the class names are made from: ``class names`` that were given, or the ``labels`` or ``indices`` seen.
    problems : list of str
        Why the labels cannot be used, empty where they can.
    """

    labels: list[tuple[int, ...]]
    class_names: tuple[str, ...]
    made_from: str = ""
    problems: list[str] = field(default_factory=list)


class LabelIndex:
    """Turns the labels of one video after another into class indices.

    With class names, a label is one of them or an index. Without, labels are all indices, or all names: then the
    classes are the distinct names, sorted by code points, and the indices are known when all labels were seen.

    Parameters
    ----------
    names : tuple of str, optional
        Class names by index.
    allow_names : bool
        Without class names: whether labels may be names.
    noun : str
        What a row is called in a message.

    Examples
    --------
    >>> index = LabelIndex()
    >>> rows = [index.parse("swim; run", row=2, is_text=True), index.parse(["dive", "run"], row=3, is_text=False)]
    >>> indexed = index.finish(rows)
    >>> indexed.labels, indexed.class_names
    ([(2, 1), (0, 1)], ('dive', 'run', 'swim'))
    """

    def __init__(self, names: tuple[str, ...] | None = None, *, allow_names: bool = True, noun: str = "line") -> None:
        self._names = names
        self._allow_names = allow_names
        self._noun = noun
        self._of_text: dict[str, int] = {name: index for index, name in enumerate(names or ())}
        # Without class names: a number for each label in order of appearance, and the row in which it appeared.
        self._seen: dict[int | str, int] = {}
        self._rows: list[int] = []

    def parse(self, cell: Any, *, row: int, is_text: bool) -> tuple[int, ...]:
        """Return a number for each label of a video, final after ``finish``; ValueError says what is wrong.

        Parameters
        ----------
        cell : str, list or None
            Labels joined by semicolons, or a list of names or indices; nothing for a video without a label.
        row : int
            Where it stands.
        is_text : bool
            Whether it comes from a text file, in which names that hold a semicolon cannot be told.
        """
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return ()
        parts = cell.split(";") if isinstance(cell, str) else cell
        if not isinstance(parts, list):
            raise ValueError(f"labels {shown(cell)} are no list of names or indices")
        try:
            labels = tuple([self._of_text[part] for part in parts])
        except (KeyError, TypeError):  # not seen before, blanks around it, or no text
            labels = tuple([self._number(part, row, is_text) for part in parts])
        if len(labels) > 1 and len(set(labels)) < len(labels):
            raise ValueError(f"a label occurs twice in {shown(cell)}")
        return labels

    def _number(self, label: Any, row: int, is_text: bool) -> int:
        if not isinstance(label, str) and type(label) is not int:
            raise ValueError(f"label {shown(label)} is neither a name nor an index")
        text = str(label).strip()
        if text in self._of_text:
            return self._of_text[text]
        is_index = text.isascii() and text.isdigit() and len(text) <= 18
        if self._names is not None:
            if not is_index:
                raise ValueError(f"label {shown(text)} is none of the class names or indices{self._hint(is_text)}")
            if int(text) >= len(self._names):
                raise ValueError(f"label {text} is outside the {len(self._names):,} classes")
            number = int(text)
        elif is_index or (self._allow_names and text and text.isprintable() and not _NUMBER.fullmatch(text)):
            number = self._seen.setdefault(int(text) if is_index else text, len(self._seen))
            if number == len(self._rows):
                self._rows.append(row)
        else:
            known = "class names or indices" if self._allow_names else "class indices; names need a list of class names"
            raise ValueError(f"label {shown(text)} is none of the {known}")
        self._of_text[text] = number
        return number

    def _hint(self, is_text: bool) -> str:
        if is_text and any(";" in name for name in self._names or ()):
            return " (names that hold a semicolon need lists, as in JSON or Parquet, or indices)"
        return ""

    def finish(self, labels: list[tuple[int, ...]]) -> IndexedLabels:
        """Return final class indices for all that ``parse`` returned."""
        names = [label for label in self._seen if isinstance(label, str)]
        indices = [label for label in self._seen if isinstance(label, int)]
        problems = []
        if names and indices:
            problems = [
                "labels are names in some rows and indices in others, which needs class names: "
                f"{self._placed(names)} beside {self._placed(indices)}"
            ]
        elif spellings := _spellings(names):
            problems = [f"names that differ only in case or spacing: {first_few(spellings)}; write them alike"]
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
        return first_few(f"{shown(label)} ({self._noun} {self._rows[self._seen[label]]:,})" for label in labels)


def _spellings(names: list[str]) -> list[str]:
    """Return the groups of names that a reader would take for one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [" / ".join(map(repr, sorted(group))) for group in alike.values() if len(group) > 1]


def shown(value: object) -> str:
    """Quote a value for a message, cut where it is long.

    Examples
    --------
    >>> shown("run")
    "'run'"
    >>> len(shown("x" * 1000))
    60
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_SHOWN = 5


@dataclass(frozen=True)
class Format:
    """An official form of annotations.

    Attributes
    ----------
    title : str
        Its name, as people know it.
    description : str
        What is in it, in a sentence.
    files : str
        Which files are to be given.
    read : callable
        Takes the paths of the files, in any order, and returns ``Annotations``; ``AnnotationError`` where they cannot
        be read, with the first five problems.
    """

    title: str
    description: str
    files: str
    read: Callable[[Sequence[Path]], Annotations]


class LineReader:
    """The lines of a UTF-8 text file, without their ends, and afterwards the record of the file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    AnnotationError
        While reading: the file is not there or not UTF-8; the message has the line.
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
                    self._bytes += len(raw)
                    self._digest.update(raw)
                    yield raw.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except OSError as error:
            raise AnnotationError(f"cannot read {self.path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AnnotationError(
                f"{self.path.name}, line {self.number:,}: not UTF-8 text; the file is damaged or of another kind"
            ) from None

    def record(self) -> FileRecord:
        """Return which file was read, after its last line."""
        return FileRecord(self.path.name, self._bytes, self._digest.hexdigest())


def append_video(
    table: Annotations,
    video_id: str,
    source: str,
    labels: tuple[int, ...],
    length: float = math.nan,
    segments: tuple[Segment, ...] = (),
) -> None:
    """Append a video of which subject, view and group are not known."""
    table.video_ids.append(video_id)
    table.sources.append(source)
    table.labels.append(labels)
    table.lengths.append(length)
    table.segments.append(segments)
    for column in (table.subjects, table.views, table.pair_ids):
        column.append("")


def check_video_id(video_id: str) -> None:
    """Refuse an id that no file or line could be named after; ValueError says so."""
    if not video_id or not video_id.isprintable() or video_id.strip() != video_id:
        raise ValueError("is not a video id")


def check_whole(table: Annotations, problems: list[str], title: str, remedy: str = "") -> None:
    """Refuse annotations with problems, with a video twice, without a label, or with too many classes.

    Raises
    ------
    AnnotationError
        As in ``check_problems``.
    """
    problems = problems + _repeated(table.video_ids)
    if not problems and not any(table.labels):
        problems.append("no video has a label")
    if len(table.class_names) > MOST_CLASSES:
        problems.append(f"{len(table.class_names):,} classes are more than a split file can hold ({MOST_CLASSES:,})")
    check_problems(problems, title, remedy)


def check_problems(problems: list[str], title: str, remedy: str = "") -> None:
    """Refuse what has problems: ``AnnotationError`` with the first five, and ``remedy`` below them."""
    if problems:
        rest = len(problems) - _SHOWN
        more = f"\n  ... and {rest:,} more" if rest > 0 else ""
        text = f"{len(problems):,} problem(s) with the {title} annotations:\n{bullet_list(problems[:_SHOWN])}{more}"
        raise AnnotationError(f"{text}\n{remedy}" if remedy else text)


def _repeated(video_ids: list[str]) -> list[str]:
    if len(set(video_ids)) == len(video_ids):
        return []
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for video_id in video_ids:
        if video_id in seen:
            repeated[video_id] = None
        seen.add(video_id)
    return [f"video {video_id} occurs more than once" for video_id in repeated]
