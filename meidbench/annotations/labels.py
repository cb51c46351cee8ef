"""Labels as class indices: names, indices, or a mixture with a list of class names."""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from meidbench.annotations.base import MOST_CLASSES, quote
from meidbench.errors import first_few

# Text that looks like a number but is not an index is a slip, never a name: -1, 2.0, 1e3.
_NUMBER = re.compile(r"[-+]?\d+([.,]\d*)?(e[-+]?\d+)?", re.IGNORECASE)


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
    indices after the last row. ``allow_names`` is False where labels without class names must be indices, and ``noun``
    is the word for a row in a message.

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
        """Return a number for each label of a video, to be given to ``finish``; ``ValueError`` if one is wrong.

        A cell holds labels joined by semicolons, or a list of names or indices; it is empty or None for a video without
        a label. In a cell that ``is_text`` a name cannot hold a semicolon.
        """
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return ()
        parts = cell.split(";") if isinstance(cell, str) else cell
        if not isinstance(parts, list):
            raise ValueError(f"labels {quote(cell)} are not a list of names or indices")
        try:
            labels = tuple([self._of_text[part] for part in parts])
        except (KeyError, TypeError):  # not seen before, with blanks around it, or not text
            labels = tuple([self._number(part, row, is_text) for part in parts])
        if len(labels) > 1 and len(set(labels)) < len(labels):
            raise ValueError(f"a label occurs twice in {quote(cell)}")
        return labels

    def _number(self, label: Any, row: int, is_text: bool) -> int:
        if not isinstance(label, str) and type(label) is not int:
            raise ValueError(f"label {quote(label)} is neither a name nor an index")
        text = str(label).strip()
        if text in self._of_text:
            return self._of_text[text]
        is_index = text.isascii() and text.isdigit() and len(text) <= 18
        if self._names is not None:
            if not is_index:
                raise ValueError(f"label {quote(text)} is not one of the class names or indices{self._hint(is_text)}")
            if int(text) >= len(self._names):
                raise ValueError(f"label {text} is outside the {len(self._names):,} classes")
            number = int(text)
        elif is_index or (self._allow_names and text and text.isprintable() and not _NUMBER.fullmatch(text)):
            number = self._seen.setdefault(int(text) if is_index else text, len(self._seen))
            if number == len(self._rows):
                self._rows.append(row)
        else:
            known = "class names or indices" if self._allow_names else "class indices; names need a list of class names"
            raise ValueError(f"label {quote(text)} is not one of the {known}")
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
        return first_few(f"{quote(label)} ({self._noun} {self._rows[self._seen[label]]:,})" for label in labels)


def _spellings(names: list[str]) -> list[str]:
    """Return the groups of names that differ only in case, spacing or Unicode form."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [" / ".join(map(repr, sorted(group))) for group in alike.values() if len(group) > 1]
