"""The CSVs of EPIC-KITCHENS-100 (Damen et al., IJCV 2022): segments of long videos with a verb and nouns."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from meidbench.annotations.base import (
    Annotations,
    Format,
    LineReader,
    check_problems,
    check_video_id,
    find_repeated,
    quote,
    read_csv_rows,
)
from meidbench.errors import first_few, write_count
from meidbench.splits.manifests import Manifest
from meidbench.splits.rows import Span

_TIME = re.compile(r"(\d{2}):([0-5]\d):([0-5]\d)(\.\d{1,6})?", re.ASCII)
_INDEX = re.compile(r"\d{1,5}", re.ASCII)
_LIST = re.compile(r"\[\d{1,5}(, ?\d{1,5})*\]", re.ASCII)
_COLUMNS = (
    *("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp"),
    *("verb_class", "noun_class", "all_noun_classes"),
)


@dataclass(frozen=True)
class EpicSegment:
    """A row: the labels are class indices; ``all_nouns`` has each noun once, in the order of the file."""

    narration_id: str
    participant: str
    span: Span
    verb: int
    noun: int
    all_nouns: tuple[int, ...]


# The labels of a row, by task.
_LABELS: dict[str, Callable[[EpicSegment], tuple[int, ...]]] = {
    "verbs": lambda row: (row.verb,),
    "nouns": lambda row: (row.noun,),
    "all nouns": lambda row: row.all_nouns,
}


def read_epic(paths: Sequence[Path], manifest: Manifest, task: str) -> Annotations:
    """Read the files of segments, the classes and the official list of tail classes; all other classes are head.

    A sample is a segment: its id is ``narration_id``, its group the long video, its subject the participant. Nouns that
    a list repeats (``[21, 21]``) are one label. An ``AnnotationError`` names the places of the first five problems.
    """
    *files, class_file, tail_file = paths
    class_lines, tail_lines = LineReader(class_file), LineReader(tail_file)
    problems: list[str] = []
    names = _read_class_names(class_lines, manifest, problems)
    table = Annotations(names, groups=_read_groups(tail_lines, len(names), problems))
    for path, entry in zip(files, manifest.files, strict=True):
        lines, before = LineReader(path), len(problems)
        rows = list(read_segments(lines, problems))
        for row in rows:
            labels = _LABELS[task](row)
            if max(labels) >= len(names):
                where = f"{path.name} ({row.narration_id})"
                problems.append(f"{where}: class {max(labels)} does not exist (0 to {len(names) - 1})")
            span, who = row.span, row.participant
            table.append(
                row.narration_id, entry.source, labels, span.length_s, subject=who, pair_id=span.video, span=span
            )
        if not rows and len(problems) == before:
            problems.append(f"{path.name} holds no segment")
        table.files.append(lines.record())
    table.files += [class_lines.record(), tail_lines.record()]
    problems += [f"segment {each} occurs more than once" for each in find_repeated(table.video_ids)]
    check_problems(problems, f"in the annotations in {class_file.parent}", manifest.remedy)
    return table


def read_segments(lines: LineReader, problems: list[str]) -> Iterator[EpicSegment]:
    """Yield the segments of a file, and add the rows that cannot be read to the problems."""
    for where, (narration_id, participant, video, start, stop, verb, noun, nouns) in read_csv_rows(
        lines, _COLUMNS, problems
    ):
        try:
            for name in (narration_id, video):
                check_video_id(name)
            if wrong := [cell for cell in (verb, noun) if not _INDEX.fullmatch(cell)]:
                raise ValueError(f"{quote(wrong[0])} is not the index of a class")
            if not _LIST.fullmatch(nouns):
                raise ValueError(f"all_noun_classes {quote(nouns)} is not a list of class indices, such as [3, 21]")
            all_nouns = tuple(dict.fromkeys(int(cell) for cell in nouns.strip("[]").split(",")))
            span = Span(video, _read_time(start), _read_time(stop))
        except ValueError as error:
            problems.append(f"{where}: {error}")
        else:
            yield EpicSegment(narration_id, participant, span, int(verb), int(noun), all_nouns)


def _read_time(cell: str) -> float:
    found = _TIME.fullmatch(cell)
    if found is None:
        raise ValueError(f"time {quote(cell)} is not HH:MM:SS.ff")
    hours, minutes, seconds = (int(part) for part in found.groups()[:3])
    # One conversion from decimal, so that nothing is rounded twice.
    return float(f"{3600 * hours + 60 * minutes + seconds}{found[4] or ''}")


def _read_class_names(lines: LineReader, manifest: Manifest, problems: list[str]) -> tuple[str, ...]:
    """Read the names by index; the file of nouns has more entries than the task has classes, at its end."""
    rows = list(read_csv_rows(lines, ("id", "key"), problems))
    for place, (where, (index, _)) in enumerate(rows):
        if index != str(place):
            problems.append(f"{where}: class {quote(index)}, expected {place}")
    names = tuple(name for _, (_, name) in rows[: manifest.num_classes])
    if len(names) < manifest.num_classes:
        counts = f"{write_count(len(names), 'class', 'classes')}, {manifest.title} has {manifest.num_classes}"
        problems.append(f"{lines.path.name}: {counts}; the file is cut off or of another task")
    if twice := find_repeated(names):
        problems.append(f"{lines.path.name}: class names occur more than once: {first_few(map(repr, twice))}")
    return names


def _read_groups(lines: LineReader, num_classes: int, problems: list[str]) -> tuple[str, ...]:
    """Return the group of each class: ``tail`` for those of the list, ``head`` for all others."""
    groups = ["head"] * num_classes
    for place, row in enumerate(csv.reader(lines)):
        cell = row[0].strip() if row else ""
        if place == 0 or not cell:  # the header is verb or noun
            continue
        if not _INDEX.fullmatch(cell) or int(cell) >= num_classes or groups[int(cell)] == "tail":
            what = f"one of 0 to {num_classes - 1}, each at most once"
            problems.append(f"{lines.path.name}, line {lines.number}: class {quote(cell)} is not {what}")
        else:
            groups[int(cell)] = "tail"
    return tuple(groups)


def _make_format(task: str, files: str) -> Format:
    return Format(
        title=f"EPIC-KITCHENS-100 {task}",
        description=f"segments of long videos, with a participant; labels are their {task}",
        files=f"EPIC_100_train.csv, EPIC_100_validation.csv, {files}",
        read=partial(read_epic, task=task),
        needs_manifest=True,
    )


_NOUN_FILES = "EPIC_100_noun_classes_v2.csv and EPIC_100_tail_nouns.csv"
EPIC_VERBS = _make_format("verbs", "EPIC_100_verb_classes.csv and EPIC_100_tail_verbs.csv")
EPIC_NOUNS = _make_format("nouns", _NOUN_FILES)
EPIC_ALL_NOUNS = _make_format("all nouns", _NOUN_FILES)
