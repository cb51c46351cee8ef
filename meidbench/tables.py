"""A split from a plain table of one's own: ``video_id, subset, labels``."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from meidbench.annotations import Annotations, FileRecord
from meidbench.errors import SplitError, bullet_list, first_few
from meidbench.files import file_sha256
from meidbench.manifests import SUBSETS
from meidbench.split import Split

COLUMNS = ("video_id", "subset", "labels")
_SUBSET_NAMES = {**{name: name for name in SUBSETS}, "validate": "val", "validation": "val", "training": "train"}


def split_from_table(
    path: Path,
    *,
    dataset: str,
    head_above: int,
    tail_up_to: int,
    class_names: Path | None = None,
) -> Split:
    """Make a split from a CSV with the columns ``video_id``, ``subset`` and ``labels``.

    Parameters
    ----------
    path : Path
        A header and a row a video. ``subset`` is train, val or test. ``labels`` are class indices or class names,
        joined by ``;``; empty for a video without a label. Other columns are ignored.
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
    names = None if class_names is None else _read_names(class_names)
    index_of = {} if names is None else {name: index for index, name in enumerate(names)}
    table, subsets, problems = Annotations(()), [], []
    for line, video_id, subset, cell in _read_rows(path):
        try:
            if not video_id or not video_id.isprintable():
                raise ValueError(f"{video_id!r} is not a video id")
            if subset.lower() not in _SUBSET_NAMES:
                raise ValueError(f"subset {subset!r} is none of {', '.join(SUBSETS)}")
            labels = [_label(part.strip(), index_of, names) for part in cell.split(";")] if cell.strip() else []
            if len(set(labels)) < len(labels):
                raise ValueError(f"a label occurs twice in {cell!r}")
        except ValueError as error:
            problems.append(f"{path.name}, line {line} ({video_id}): {error}")
            continue
        table.video_ids.append(video_id)
        table.labels.append(tuple(labels))
        subsets.append(_SUBSET_NAMES[subset.lower()])
    repeated = [video_id for video_id, count in Counter(table.video_ids).items() if count > 1]
    if repeated:
        problems.append(f"{len(repeated):,} video(s) occur more than once: {first_few(repeated)}")
    highest = max((label for labels in table.labels for label in labels), default=-1)
    num_classes = len(names) if names is not None else highest + 1
    if not problems and not (table.video_ids and num_classes):
        problems.append(f"{path.name} holds no video with a label")
    if num_classes > np.iinfo(np.int16).max:
        problems.append(f"{num_classes:,} classes are more than a split file can hold ({np.iinfo(np.int16).max:,})")
    if problems:
        more = f"\n  ... and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        raise SplitError(f"{len(problems):,} problem(s) with {path}:\n{bullet_list(problems[:5])}{more}")
    count = len(table.video_ids)
    table.class_names = tuple(names) if names is not None else tuple(f"c{index:03d}" for index in range(num_classes))
    table.sources = list(subsets)
    table.lengths = [float("nan")] * count
    table.subjects, table.views, table.pair_ids = [""] * count, [""] * count, [""] * count
    table.segments = [()] * count
    table.files.append(FileRecord(path.name, path.stat().st_size, file_sha256(path)))
    return Split.from_annotations(
        table, subsets, dataset=dataset, variant="table", head_above=head_above, tail_up_to=tail_up_to
    )


def _label(text: str, index_of: dict[str, int], names: list[str] | None) -> int:
    if text in index_of:
        return index_of[text]
    if not text.isascii() or not text.isdigit():
        known = "class indices" if names is None else "class names or indices"
        raise ValueError(f"label {text!r} is none of the {known}")
    if names is not None and int(text) >= len(names):
        raise ValueError(f"label {text} is outside the {len(names):,} classes")
    return int(text)


def _read_names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"cannot read the class names in {path}: {error}") from None
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise SplitError(
            f"{path}: class names occur more than once: {first_few(repeated)}" if names else f"{path} is empty"
        )
    return names


def _read_rows(path: Path) -> list[tuple[int, str, str, str]]:
    """Read line number, video_id, subset and labels of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                found = first_few(header) or "none"
                raise SplitError(f"{path} has no column {', '.join(missing)}; its columns are {found}")
            places = [header.index(name) for name in COLUMNS]
            rows = []
            for row in reader:
                if len(row) == len(header):
                    video_id, subset, labels = (row[place].strip() for place in places)
                    rows.append((reader.line_num, video_id, subset, labels))
                elif any(cell.strip() for cell in row):
                    # A comma among the labels would otherwise lose all but the first of them.
                    raise SplitError(
                        f"{path.name}, line {reader.line_num} ({row[0]}): {len(row)} cells, expected {len(header)}; "
                        "labels are joined by semicolons"
                    )
            return rows
    except OSError as error:
        raise SplitError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SplitError(f"{path} is not a readable CSV file: {error}") from None
