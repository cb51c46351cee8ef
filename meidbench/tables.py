"""Annotated videos, or a whole split, from a plain table of one's own: ``video_id, labels[, group][, subset]``."""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meidbench.annotations import Annotations, FileRecord
from meidbench.errors import SplitError, bullet_list, first_few
from meidbench.files import file_sha256
from meidbench.label_index import LabelIndex, shown
from meidbench.manifests import SUBSETS
from meidbench.split import Split
from meidbench.table_rows import TableRows, open_rows

COLUMNS = ("video_id", "labels", "group", "subset", "length_s", "subject")
_SUBSET_NAMES = {
    **{name: name for name in SUBSETS},
    **{"training": "train", "validate": "val", "validation": "val", "testing": "test"},
}
_PAIR = "pair_id"  # what a split file, and a split as CSV, calls the group
_SHOWN = 5


@dataclass(frozen=True)
class TableContent:
    """What a table says.

    Attributes
    ----------
    annotations : Annotations
        ``pair_ids`` are the table's groups and ``sources`` its subsets, verbatim; empty where it gives none.
    subsets : tuple of str or None
        ``train``, ``val`` or ``test`` for each video, where the table has a column ``subset`` with no other names.
    classes_from : str
        What the class names are: those of ``class names``, or made of the ``labels`` or ``indices`` in the table.
    """

    annotations: Annotations
    subsets: tuple[str, ...] | None
    classes_from: str

    @property
    def note(self) -> str:
        """How the classes came about, for a person."""
        count = len(self.annotations.class_names)
        return {
            "class names": f"{count:,} classes, as the class names have them",
            "labels": f"{count:,} classes: the distinct names among the labels, sorted",
            "indices": f"{count:,} classes: 0 to the highest index among the labels",
        }[self.classes_from]


def read_table(path: Path, *, class_names: Path | None = None) -> TableContent:
    r"""Read annotated videos from a table with the columns ``video_id`` and ``labels``, and others if they are there.

    Parameters
    ----------
    path : Path
        A CSV or, where its name ends in ``.tsv``, tab-separated text with a header; a Parquet file; a JSON list of
        objects; or JSON lines, an object a line. Parquet and JSON are told by content. Columns or keys:

        - ``video_id``: text, no video twice.
        - ``labels``: class names or class indices, none twice; joined by ``;`` in text, also as a list in Parquet and
          JSON, where names may hold semicolons; empty for a video without a label.
        - ``group`` (or ``pair_id``): videos with the same text must not be separated: takes of one script, pieces of
          one film. Empty for a video on its own.
        - ``subset``: the subset in which the dataset has it.
        - ``length_s``: seconds; empty where not known.
        - ``subject``: who is to be seen.

        Others are ignored, but not such as ``Group`` or ``groups``, which look like a slip.
    class_names : Path, optional
        One name a line, in the order of the indices. Without it, the classes are 0 to the highest index, or the
        distinct names among the labels, sorted by code points; names and indices must not be mixed then.

    Returns
    -------
    TableContent
        Videos in the order of the table.

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
    return _read(path, class_names, allow_names=True, needs_subsets=False)


def split_from_table(
    path: Path,
    *,
    dataset: str,
    head_above: int,
    tail_up_to: int,
    class_names: Path | None = None,
) -> Split:
    """Make a split from a table with the columns ``video_id``, ``subset`` and ``labels``.

    Parameters
    ----------
    path : Path
        A table as in ``read_table``, but ``subset`` must be train, val or test. Groups are kept as ``pair_id``, so
        that the audit can tell which lie in two subsets.
    dataset : str
        The name of the new benchmark.
    head_above, tail_up_to : int
        Head: more training videos than ``head_above``; tail: at most ``tail_up_to``.
    class_names : Path, optional
        One name a line, in the order of the indices. Without it labels must be indices, and the classes are 0 to the
        highest of them.

    Raises
    ------
    SplitError
        The table cannot be read or contradicts itself; the first problems are named with their lines.
    """
    if tail_up_to > head_above:
        raise SplitError(f"tail up to {tail_up_to} lies above head above {head_above}")
    content = _read(path, class_names, allow_names=False, needs_subsets=True)
    subsets = list(content.subsets or ())
    content.annotations.sources = subsets
    return Split.from_annotations(
        content.annotations, subsets, dataset=dataset, variant="table", head_above=head_above, tail_up_to=tail_up_to
    )


def _read(path: Path, class_names: Path | None, *, allow_names: bool, needs_subsets: bool) -> TableContent:
    path = Path(path)
    names = None if class_names is None else _read_names(Path(class_names))
    table = Annotations(())
    with open_rows(path) as rows:
        _check_header(rows, ("video_id", "subset", "labels") if needs_subsets else ("video_id", "labels"))
        index = LabelIndex(names, allow_names=allow_names, noun=rows.noun)
        _append_rows(rows, table, index, needs_subsets)
    indexed = index.finish(table.labels)
    problems = rows.problems + _slips(rows.columns) + indexed.problems
    if not problems and not (table.video_ids and indexed.class_names):
        problems.append(f"{path.name} holds no video with a label")
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise SplitError(f"{len(problems):,} problem(s) with {path}:\n{bullet_list(problems[:_SHOWN])}{more}")
    table.labels, table.class_names = indexed.labels, indexed.class_names
    table.segments = [()] * len(table.labels)
    table.views = [""] * len(table.labels)
    for file in (path, class_names):
        if file is not None:
            table.files.append(FileRecord(Path(file).name, Path(file).stat().st_size, file_sha256(Path(file))))
    known = all(source.lower() in _SUBSET_NAMES for source in set(table.sources))
    subsets = tuple([_SUBSET_NAMES[source.lower()] for source in table.sources]) if known else None
    return TableContent(table, subsets, indexed.made_from)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        # Not at every character that Unicode takes for the end of a line: an index is the number of its line.
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, ValueError) as error:
        raise SplitError(f"cannot read the class names in {path}: {error}") from None
    if names == [""]:
        raise SplitError(f"{path} is empty")
    if wrong := [line for line, name in enumerate(names, start=1) if not name or not name.isprintable()]:
        raise SplitError(f"{path}: no class name in line {first_few(wrong)}; an index is the number of a line, from 0")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SplitError(f"{path}: class names occur more than once: {first_few(repeated)}")
    numbers = [name for index, name in enumerate(names) if name.isdecimal() and name != str(index)]
    if numbers:
        raise SplitError(
            f"{path}: class names that are numbers, and not of their own places, cannot be told from indices: "
            f"{first_few(numbers)}"
        )
    return tuple(names)


def _check_header(rows: TableRows, required: tuple[str, ...]) -> None:
    """Refuse a header without what every row needs; the keys of JSON objects are looked at row by row."""
    found = first_few(rows.columns) or "none"
    if rows.has_header and (missing := [name for name in required if name not in rows.columns]):
        raise SplitError(f"{rows.path} has no column {', '.join(missing)}; its columns are {found}")
    twice = [name for name in (*COLUMNS, _PAIR) if rows.columns.count(name) > 1]
    if "group" in rows.columns and _PAIR in rows.columns:
        twice.append(f"group (also called {_PAIR})")
    if twice:
        raise SplitError(f"{rows.path} has a column more than once: {', '.join(twice)}")


def _slips(columns: tuple[str, ...]) -> list[str]:
    """Return columns that look like one that is known, and would be ignored with all that is in them."""
    known = {name.rstrip("s"): name for name in COLUMNS}
    looks = {name: known.get(name.strip().casefold().rstrip("s")) for name in columns if name not in COLUMNS}
    return [
        f"column {shown(name)} would be ignored; write {meant!r}, or rename it if it is something else"
        for name, meant in looks.items()
        if meant is not None and meant not in columns
    ]


def _append_rows(rows: TableRows, table: Annotations, index: LabelIndex, needs_subsets: bool) -> None:
    """Read all rows into a table, and what is wrong with them into ``rows.problems``."""
    seen, numbers = [], array("q")
    shared: dict[str, str] = {}  # one object for each text of a column, however many rows have it
    for number, (video_id, cell, group, pair, subset, length, subject) in rows.rows(
        (*COLUMNS[:3], _PAIR, *COLUMNS[3:])
    ):
        try:
            video_id = _text(video_id, "")
            if not video_id:
                raise ValueError("'' is not a video id")
            seen.append(video_id)
            numbers.append(number)
            subset = _text(subset, "subset")
            if needs_subsets and subset.lower() not in _SUBSET_NAMES:
                raise ValueError(f"subset {shown(subset)} is none of {', '.join(SUBSETS)}")
            labels = index.parse(cell, row=number, is_text=rows.is_text)
            if group is not None and pair is not None:
                raise ValueError(f"both a group and a {_PAIR}")
            group = _text(pair if group is None else group, "group")
            subject = _text(subject, "subject")
            seconds = _seconds(length)
        except ValueError as error:
            rows.problems.append(f"{rows.where(number, video_id)}: {error}")
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
    """Return a cell as text; ValueError where it is none."""
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = value.strip() if isinstance(value, str) else value
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(
            f"{what} {shown(value)} is not text in one line" if what else f"{shown(value)} is not a video id"
        )
    return text


def _seconds(value: Any) -> float:
    """Return a length, NaN where it is not given; ValueError where it is none."""
    if value is None or value == "" or value != value:
        return math.nan
    try:
        # float() would also take 1_0 and full-width digits.
        seconds = float(value) if not isinstance(value, str) or (value.isascii() and "_" not in value) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 < seconds < 1e9:
        raise ValueError(f"length_s {shown(value)} is not a length in seconds")
    return seconds
