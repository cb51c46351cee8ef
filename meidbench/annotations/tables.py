"""Annotated videos, or a whole split, from tables of the user (``video_id, labels[, group][, subset]``) or lists."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meidbench.annotations.activitynet import read_activitynet
from meidbench.annotations.base import (
    MOST_NAMED,
    Annotations,
    FileRecord,
    LabelIndex,
    find_repeated,
    find_spellings,
    quote,
    read_seconds,
    read_span,
    read_text,
)
from meidbench.annotations.groups import check_grouping, read_groups, resolve_groups
from meidbench.annotations.lists import ROW_FORMATS, ListRows, guess_format, strip_class_indices
from meidbench.annotations.records import SomethingRows, parse_label_indices
from meidbench.annotations.rows import COLUMNS, PAIR, SPAN, TABLES, FrameRows, Rows, read_class_columns, read_frame
from meidbench.annotations.subsets import FileSubset, FileSubsets
from meidbench.errors import RequestError, SplitError, bullet_list, first_few, write_count
from meidbench.files import file_sha256
from meidbench.names import RELEASED, SUBSET_NAMES
from meidbench.splits.split import Split

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableContent:
    """The content of a table.

    ``annotations`` have the table's groups as ``pair_ids`` and its subsets, verbatim, as ``sources``; empty where it
    gives none. ``subsets`` are ``train``, ``val`` or ``test`` for each video, None unless the table has a column
    ``subset`` with no other names. ``classes_from`` is the source of the class names: ``class names``, or the
    ``labels``, ``indices``, ``columns`` or ``segments`` of the files.
    """

    annotations: Annotations
    subsets: tuple[str, ...] | None
    classes_from: str

    @property
    def note(self) -> str:
        """The number of classes, the source of their order, and the first names, for a person."""
        source = {
            "class names": "in the order of the list of class names",
            "columns": "the columns of 0 and 1",
            "labels": "the distinct names among the labels, sorted by code points",
            "indices": "0 to the highest index among the labels",
            "segments": "the leaves of the taxonomy, or the labels of the segments, sorted by code points",
        }
        names = self.annotations.class_names
        shown = first_few(map(repr, names) if any("," in name for name in names) else names)
        note = f"{write_count(len(names), 'class', 'classes')}, {source[self.classes_from]}: {shown}"
        counts_from_1 = self.classes_from == "indices" and all(0 not in row for row in self.annotations.labels)
        return f"{note}; no video has the index 0: take 1 from each if they count from 1" if counts_from_1 else note


def read_table(path: Path, *, class_names: Path | None = None) -> TableContent:
    r"""Read annotated videos from a table with the columns ``video_id`` and ``labels``, and optional others.

    The videos stay in the order of the table.

    Parameters
    ----------
    path : Path
        A CSV or tab-separated text with a header; a Parquet file; a JSON list of
        objects; or JSON lines, one object per line. Parquet and JSON are recognised by content. Columns or keys:

        - ``video_id``: text, no video twice.
        - ``labels``: class names or class indices, none twice; joined by ``;`` in text, also as a list in Parquet and
          JSON, where names may hold semicolons; empty for a video without a label. Other forms of a list in text
          (``[0, 2]``, ``['run', 'swim']``, ``0 2``, ``0|2``) are read where they cannot be a class name, else refused.
          CSV and Parquet may have a column of 0 and 1 (or of bool) per class instead.
        - ``group`` (or ``pair_id``): videos with the same text must not be separated: takes of one script, pieces of
          one film. Empty for a video on its own.
        - ``subset``, ``subject``: the subset in which the dataset has it; the person in the video.
        - ``length_s``: seconds; empty where not known.
        - ``video``, ``start_s``, ``end_s``: where the row is a part of a longer video, the id of that video, and
          seconds since its first frame. Without a ``group``, the parts of one video are a group; without a
          ``length_s``, it is the time from start to end.

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
    '3 classes, the distinct names among the labels, sorted by code points: jump, run, swim'
    """
    return read_rows([path], "table", class_names=class_names)


def read_rows(paths: Sequence[Path], form: str, *, class_names: Path | None = None) -> TableContent:
    """Read annotated videos from files of a format of rows, a key of ``meidbench.annotations.lists.ROW_FORMATS``.

    As ``read_table``; the subset of a video is that of its row, and empty where the rows have none.
    """
    names = None if class_names is None else read_class_names(Path(class_names))
    content = _read(_open_rows(paths, form), names)
    _record_files(content.annotations, [*paths, class_names])
    return content


def split_from_files(
    files: Sequence[tuple[str, Path]],
    form: str = "",
    *,
    dataset: str,
    head_above: int | None = None,
    tail_up_to: int | None = None,
    class_names: Path | None = None,
    groups: Path | None = None,
) -> tuple[Split, list[str]]:
    """Make a split from tables or lists, and notes for a person on how they were read.

    Parameters
    ----------
    files : sequence of (str, Path)
        The subset of a file's videos, and its path. An empty subset is that of a column ``subset``, or that in the
        name of the file.
    form : str
        A key of ``meidbench.annotations.lists.ROW_FORMATS``; empty for the one that the content shows.
    dataset, head_above, tail_up_to : str and int
        The benchmark's name. Head: more training videos than ``head_above``; tail: at most ``tail_up_to``.
    class_names : Path, optional
        As for ``read_table``.
    groups : Path, optional
        Instead of thresholds: the group of each class, as for ``meidbench.annotations.groups.read_groups``.

    Groups of a table are kept as ``pair_id``, so the audit can find those in two subsets. Errors are as in
    ``read_table``.
    """
    check_grouping(head_above, tail_up_to, groups)
    paths = [path for _, path in files]
    if twice := find_repeated([str(Path(path).resolve()) for path in paths]):
        raise SplitError(f"given more than once: {first_few(twice)}; name each file once")
    names = None if class_names is None else read_class_names(Path(class_names))
    chosen = form or guess_format(paths)
    notes = [f"read as {chosen} ({ROW_FORMATS[chosen].description})"] if not form else []
    subsets = FileSubsets([subset for subset, _ in files])
    if ROW_FORMATS[chosen].open is not None:
        content = _read(_open_rows(paths, chosen), names, subsets)
        _record_files(content.annotations, [*paths, class_names])
    elif names is None:
        content = _read_segments(paths, subsets)
    else:
        raise SplitError(f"{chosen} files have class names of their own: leave out the list of class names")
    table = content.annotations
    _record_files(table, [groups])
    table.groups = () if groups is None else read_groups(groups, table.class_names)
    split = _make_split(content, dataset, chosen, head_above, tail_up_to)
    return split, [*notes, *subsets.notes, content.note, *_count_unlabelled(split)]


def split_from_pandas(
    frame: "pd.DataFrame",
    *,
    dataset: str,
    head_above: int | None = None,
    tail_up_to: int | None = None,
    class_names: Sequence[str] | None = None,
    groups: Mapping[Any, str] | Sequence[str] | None = None,
    variant: str = "table",
) -> Split:
    """Make a split from a DataFrame with one row per video.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns as in ``read_table``: ``video_id`` (or the index), ``subset`` (train, val or test) and ``labels``, and
        optional ``group`` or ``pair_id``, ``length_s``, ``subject``, ``video``, ``start_s`` and ``end_s``. A cell of
        ``labels`` is a list, or text joined by ``;``, of class names or indices. Instead of ``labels``, there may be a
        column of bool, or of 0 and 1, for each class.
    dataset : str
        The benchmark's name.
    head_above, tail_up_to : int
        Head: classes with more training videos than ``head_above``; tail: with at most ``tail_up_to``.
    class_names : sequence of str, optional
        In the order of the indices. Without it, the classes are the columns of the classes in their order, 0 to the
        highest index, or the distinct names among the labels, sorted by code points.
    groups : dict or sequence of str, optional
        Instead of thresholds: ``head``, ``medium`` or ``tail`` for each class, as a dict of class (name or index) ->
        group, or by class index.
    variant : str
        The name of this division into subsets.

    Returns
    -------
    Split
        ``meidbench.splits.split.write_split`` writes its file.

    Raises
    ------
    MeidbenchError
        The frame contradicts itself; the first five problems are named with their rows, counted from 0.

    Examples
    --------
    >>> import pandas as pd
    >>> labels = [["run", "swim"], ["swim"], []]
    >>> frame = pd.DataFrame({"video_id": ["a", "b", "c"], "subset": ["train", "train", "val"], "labels": labels})
    >>> split = split_from_pandas(frame, dataset="mine", head_above=1, tail_up_to=0)
    >>> split, split.class_names, split.groups.head
    (<Split mine (table): 2 / 1 / 0 videos, 2 classes>, ('run', 'swim'), array([1]))
    >>> again = split_from_pandas(split.to_pandas(), dataset="mine", head_above=1, tail_up_to=0)
    >>> again.content_digest == split.content_digest
    True
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise RequestError(f"frame must be a pandas DataFrame, got a {type(frame).__name__}")
    for name, text in (("dataset", dataset), ("variant", variant)):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise RequestError(f"{name} must be text in one line, got {text!r}")
    if variant == RELEASED:
        raise RequestError(f"variant {RELEASED!r} is for published splits, which build-splits makes; choose another")
    check_grouping(head_above, tail_up_to, groups)
    names = None
    if class_names is not None:
        if isinstance(class_names, str | Path) or not all(isinstance(name, str) for name in class_names):
            raise RequestError("class_names must be a list of texts, in the order of the indices")
        names = check_class_names(list(class_names), "class_names", "place")
    rows, found = read_frame(frame, names)
    if names is None and found is not None:
        names = check_class_names(list(found), "the columns of frame", "column")
    content = _read([nullcontext(rows)], names, FileSubsets([""]))
    table = content.annotations
    table.groups = () if groups is None else resolve_groups(groups, table.class_names)
    return _make_split(content, dataset, variant, head_above, tail_up_to)


def _make_split(content: TableContent, dataset: str, variant: str, above: int | None, up_to: int | None) -> Split:
    subsets = list(content.subsets or ())
    content.annotations.sources = subsets
    return Split.from_annotations(
        content.annotations, subsets, dataset=dataset, variant=variant, head_above=above, tail_up_to=up_to
    )


def _count_unlabelled(split: Split) -> list[str]:
    count = sum(not labels for labels in split.table.column("labels").to_pylist())
    return [f"{count:,} of {write_count(len(split.table), 'video')} have no label"] if count else []


def _open_rows(paths: Sequence[Path], form: str) -> list[AbstractContextManager[Rows]]:
    opened = ROW_FORMATS[form].open
    if opened is None:
        raise SplitError(f"{form} files are not rows")
    return [opened(Path(path)) for path in paths]


def _read_segments(paths: Sequence[Path], subsets: FileSubsets) -> TableContent:
    """Read files of ActivityNet's form as a split, where each video needs a subset."""
    chosen: dict[tuple[int, bool], FileSubset] = {}

    def subset_of(place: int, own: str) -> str:
        if (key := (place, bool(own))) not in chosen:
            chosen[key] = subsets.choose(place, Path(paths[place]), bool(own))
        return SUBSET_NAMES[chosen[key].resolve(own).lower()]

    table = read_activitynet(paths, subset_of)
    return TableContent(table, tuple(table.sources), "segments")


def _record_files(table: Annotations, paths: Iterable[Path | None]) -> None:
    found = [Path(path) for path in paths if path is not None]
    table.files += [FileRecord(path.name, path.stat().st_size, file_sha256(path)) for path in found]


def _read(
    opened: Sequence[AbstractContextManager[Rows]],
    names: tuple[str, ...] | None,
    subsets: FileSubsets | None = None,
) -> TableContent:
    """Read all files; with ``subsets`` each video needs one, as in a split."""
    table, index, from_columns = Annotations(()), LabelIndex(names), False
    problems: list[str] = []
    seen: list[tuple[Rows, list[str], Sequence[int]]] = []
    for place, entry in enumerate(opened):
        with entry as rows:
            have_own = rows.has_header and "subset" in rows.columns
            subset = None if subsets is None else subsets.choose(place, rows.path, have_own)
            if isinstance(rows, ListRows | SomethingRows) and subset and not subset.name:
                name = rows.path.name
                problems.append(f"the name of {name} does not tell the subset; name it, as in train={name}")
                continue
            needs_column = subset is not None and not subset.name
            if _check_header(rows, ("video_id", "subset", "labels") if needs_column else ("video_id", "labels")):
                entries: Iterable[tuple[int, Sequence[Any]]] = rows.read(_NAMES)
            else:
                entries, found = read_class_columns(rows, _NAMES, None if from_columns else names)
                if names is None and not seen:
                    names = check_class_names(list(found), f"the columns of {rows.path.name}", "column")
                    index, from_columns = LabelIndex(names), True
                elif set(found) != set(names or ()):
                    others = first_few(sorted(set(found) ^ set(names or ())))
                    raise SplitError(f"{rows.path} has other classes than {seen[0][0].path.name}: {others}")
            index.noun = rows.noun if len(opened) == 1 else f"{rows.path.name}, {rows.noun}"
            ids, numbers = _append_rows(rows, entries, table, index, subset)
        seen.append((rows, ids, numbers))
        problems += rows.problems + _slips(rows.columns)
        if len(opened) > 1 and not ids and not rows.problems:
            problems.append(f"{rows.path.name} holds no video; leave it out if that is meant")
    problems += _repeated(seen, table)
    indexed = index.finish(table.labels)
    problems += indexed.problems
    what = first_few(rows.path if len(seen) == 1 else rows.path.name for rows, _, _ in seen) or "the files"
    if not problems and not (table.video_ids and indexed.class_names):
        problems.append(f"{what if len(seen) > 1 else seen[0][0].path.name} holds no video with a label")
    if problems:
        raise SplitError(f"{len(problems):,} problem(s) with {what}:\n{bullet_list(problems, MOST_NAMED)}")
    table.labels, table.class_names = indexed.labels, indexed.class_names
    table.segments = [()] * len(table.labels)
    table.views = [""] * len(table.labels)
    known = all(source.lower() in SUBSET_NAMES for source in set(table.sources))
    named = tuple([SUBSET_NAMES[source.lower()] for source in table.sources]) if known else None
    return TableContent(table, named, "columns" if from_columns else indexed.made_from)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read one class name per line, in the order of the indices; or VideoLT's or Charades' list, or labels.json."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
        # Only \n ends a line, unlike in str.splitlines: an index is the number of its line.
        is_json = text.lstrip().startswith("{")
        names = parse_label_indices(text) if is_json else [line.strip() for line in text.split("\n")]
    except (OSError, ValueError, RecursionError) as error:
        raise SplitError(f"cannot read the class names in {path}: {error}") from None
    if names == [""]:
        raise SplitError(f"{path} is empty; write one class name per line, in the order of the indices")
    return check_class_names(strip_class_indices(names) or names, str(path), "entry" if is_json else "line")


def check_class_names(names: list[str], where: str, noun: str) -> tuple[str, ...]:
    """Refuse class names that are empty, not text in one line, repeated, or could be confused with indices."""
    if wrong := [place for place, name in enumerate(names, start=1) if not name or not name.isprintable()]:
        raise SplitError(
            f"{where}: no class name in {noun} {first_few(wrong)}; an index is the number of a {noun}, from 0"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SplitError(f"{where}: class names occur more than once: {first_few(repeated)}")
    if spellings := find_spellings(names):
        raise SplitError(f"{where}: {spellings[0]}")
    if numbers := [name for index, name in enumerate(names) if name.isdecimal() and name != str(index)]:
        what = f"class names that are numbers, but not those of their own {noun}s, could be confused with indices"
        raise SplitError(f"{where}: {what}: {first_few(numbers)}")
    return tuple(names)


# --- rows to columns --------------------------------------------------------------------------------------------


def _check_header(rows: Rows, required: tuple[str, ...]) -> bool:
    """Refuse a header that lacks a required column; return whether it has labels, and not a column per class instead.

    JSON objects have no header, so each row is checked.
    """
    missing = [name for name in required if name not in rows.columns] if rows.has_header else []
    if missing and missing != ["labels"]:
        found = first_few(rows.columns) or f"none; it is empty, and a table is {TABLES} with a header"
        remedy = ""
        if missing == ["subset"] and not isinstance(rows, FrameRows):
            remedy = f"; add it, or name the subset of the file, as in train={rows.path.name}"
        elif rows.is_text and rows.columns and {"video_id", "labels"} <= set(missing):
            is_list = " " in rows.columns[0]
            no_header = "a list without a header is read with --format lists"
            remedy = f"; {no_header if is_list else 'the first line of a table names its columns'}"
        raise SplitError(f"{rows.path} has no column {', '.join(missing)}; its columns are {found}{remedy}")
    twice = [name for name in (*COLUMNS, PAIR, *SPAN) if rows.columns.count(name) > 1]
    if "group" in rows.columns and PAIR in rows.columns:
        twice.append(f"group (also called {PAIR})")
    if twice:
        raise SplitError(f"{rows.path} has a column more than once: {', '.join(twice)}")
    return not missing


def _slips(columns: tuple[str, ...]) -> list[str]:
    """Return columns with nearly the name of a known one, which would be ignored with all their cells."""
    known = {name.rstrip("s"): name for name in COLUMNS}
    similar = {name: known.get(name.strip().casefold().rstrip("s")) for name in columns if name not in COLUMNS}
    return [
        f"column {quote(name)} would be ignored; write {meant!r}, or rename it if it is something else"
        for name, meant in similar.items()
        if meant is not None and meant not in columns
    ]


_NAMES = (*COLUMNS[:3], PAIR, *COLUMNS[3:], *SPAN)


def _append_rows(
    rows: Rows,
    entries: Iterable[tuple[int, Sequence[Any]]],
    table: Annotations,
    index: LabelIndex,
    file_subset: FileSubset | None,
) -> tuple[list[str], Sequence[int]]:
    """Put all entries into a table, and their problems into ``rows.problems``; return all ids and numbers of rows."""
    seen, numbers = list[str](), array("q")
    has_spans = bool(set(SPAN[1:]) & set(rows.columns)) or not rows.has_header
    shared: dict[str, str] = {}  # one object for each text of a column, however many rows have it
    for number, (video_id, cell, group, pair, subset, length, subject, *part) in entries:
        try:
            video_id = read_text(video_id, "")
            if not video_id:
                raise ValueError("'' is not a video id")
            seen.append(video_id)
            numbers.append(number)
            subset = read_text(subset, "subset")
            subset = subset if file_subset is None else file_subset.resolve(subset)
            labels = index.parse(cell, row=number, is_text=rows.is_text)
            if group is not None and pair is not None:
                raise ValueError(f"both a group and a {PAIR}")
            group = read_text(pair if group is None else group, "group")
            subject = read_text(subject, "subject")
            seconds, span = read_seconds(length), read_span(*part) if has_spans else None
        except ValueError as error:
            rows.problems.append(f"{rows.place(number, video_id)}: {error}")
            continue
        table.video_ids.append(video_id)
        table.labels.append(labels)
        table.sources.append(shared.setdefault(subset, subset))
        if span is not None:
            group = group or span.video
            seconds = span.length_s if math.isnan(seconds) else seconds
        table.pair_ids.append(shared.setdefault(group, group))
        table.spans.append(span)
        table.subjects.append(shared.setdefault(subject, subject))
        table.lengths.append(seconds)
    return seen, numbers


def _repeated(seen: Sequence[tuple[Rows, list[str], Sequence[int]]], table: Annotations) -> list[str]:
    """Return the problem of ids that occur more than once, with their places."""
    every = [video_id for _, ids, _ in seen for video_id in ids]
    if len(set(every)) == len(every):
        return []
    places: dict[str, list[str]] = {video_id: [] for video_id, count in Counter(every).items() if count > 1}
    for rows, ids, numbers in seen:
        for video_id, number in zip(ids, numbers, strict=True):
            if video_id in places:
                places[video_id].append(f"{number:,}" if len(seen) == 1 else f"{rows.path.name} {rows.noun} {number:,}")
    noun = seen[0][0].noun
    plural = ("entries " if noun == "entry" else f"{noun}s ") if len(seen) == 1 else ""
    named = (f"{video_id} ({plural}{first_few(places[video_id])})" for video_id in places)
    facts = zip(table.video_ids, table.sources, table.pair_ids, table.subjects, map(str, table.lengths), strict=True)
    repeated = [(row, labels) for row, labels in zip(facts, table.labels, strict=True) if row[0] in places]
    # As DataFrame.explode makes them.
    only_labels = len({row for row, _ in repeated}) == len(places) and len(set(repeated)) == len(repeated)
    remedy = "; the rows of a video differ only in labels: write one row per video, with all its labels"
    remedy = seen[0][0].id_remedy or (remedy if only_labels else "")
    return [f"{len(places):,} video(s) occur more than once: {first_few(named)}{remedy}"]
