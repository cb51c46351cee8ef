"""The workbooks of Animal Kingdom (Ng et al., CVPR 2022): its clips, and its classes with their groups."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meidbench.annotations.base import (
    Annotations,
    FileRecord,
    Format,
    check_problems,
    check_video_id,
    find_repeated,
    quote,
)
from meidbench.errors import AnnotationError, MeidbenchError, first_few, write_count
from meidbench.files import file_sha256
from meidbench.splits.manifests import Manifest

if TYPE_CHECKING:
    import pandas as pd

CLIPS = ("AR", ("video_id", "type", "labels"))  # the sheet and the columns that are read
CLASSES = ("AR_count", ("action", "index", "segment"))
_GROUPS = {"head": "head", "middle": "medium", "tail": "tail"}
_LABELS = re.compile(r"[0-9]{1,6}(?:,[0-9]{1,6})*")


def read_animalkingdom(paths: Sequence[Path], manifest: Manifest) -> Annotations:
    """Read ``AR_metadata.xlsx`` and ``df_action.xlsx``.

    A clip is a row with its id, its official subset and its class indices, joined by commas. A class has its index and
    its group. The groups are those of this list, not of the training counts; the file's own counts are of an earlier
    printing and are not read. An ``AnnotationError`` names the rows of the first five problems, a ``MeidbenchError``
    the extra that reads workbooks.
    """
    clips, classes = paths
    names, groups = _read_classes(classes, manifest)
    table = Annotations(names, groups=groups)
    sources = {entry.source for entry in manifest.files}
    problems: list[str] = []
    for number, (video_id, source, cell) in _read_sheet(clips, *CLIPS, manifest.remedy):
        labels = tuple(map(int, cell.split(","))) if _LABELS.fullmatch(cell) else ()
        try:
            check_video_id(video_id)
            if source not in sources:
                raise ValueError(f"its type {quote(source)} is not one of {', '.join(sorted(sources))}")
            if not labels or max(labels) >= len(names) or len(set(labels)) < len(labels):
                wanted = f"class indices 0 to {len(names) - 1}, each once, separated by commas"
                raise ValueError(f"labels {quote(cell)} are not {wanted}")
        except ValueError as error:
            problems.append(f"{clips.name}, row {number:,} ({quote(video_id)[1:-1]}): {error}")
        else:
            table.append(video_id, source, labels)
    problems += [f"{clips.name} holds no clip"] if not table.video_ids and not problems else []
    problems += [f"video {video_id} occurs more than once" for video_id in find_repeated(table.video_ids)]
    check_problems(problems, f"in the annotations in {clips.parent}", manifest.remedy)
    table.files = [FileRecord(path.name, path.stat().st_size, file_sha256(path)) for path in paths]
    return table


def _read_classes(path: Path, manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and the groups of the classes, by index."""
    classes: dict[int, tuple[str, str]] = {}
    problems = []
    for number, (name, index, group) in _read_sheet(path, *CLASSES, manifest.remedy):
        where = f"{path.name}, row {number:,}"
        if not name or not name.isprintable():
            problems.append(f"{where}: {quote(name)} is not the name of a class")
        if group not in _GROUPS:
            problems.append(f"{where}: segment {quote(group)} is not one of {', '.join(_GROUPS)}")
        if not index.isascii() or not index.isdigit() or int(index) >= manifest.num_classes or int(index) in classes:
            problems.append(f"{where}: index {quote(index)} is not one of 0 to {manifest.num_classes - 1}, each once")
        else:
            classes[int(index)] = name, _GROUPS.get(group, "")
    if missing := [index for index in range(manifest.num_classes) if index not in classes]:
        problems.append(f"{path.name}: {write_count(len(missing), 'class', 'classes')} missing: {first_few(missing)}")
    twice = find_repeated([name for name, _ in classes.values()])
    problems += [f"{path.name}: the class name {quote(name)} occurs more than once" for name in twice]
    check_problems(problems, f"in the annotations in {path.parent}", manifest.remedy)
    names, groups = zip(*(classes[index] for index in range(manifest.num_classes)), strict=True)
    return names, groups


def _read_sheet(path: Path, sheet: str, columns: Sequence[str], remedy: str) -> list[tuple[int, tuple[str, ...]]]:
    """Return the number of each row in the sheet, from 2, and its cells in the columns, as text without blanks."""
    try:
        frame = _read_frame(path, sheet)
    except AnnotationError as error:
        raise AnnotationError(f"{error}\n{remedy}") from None
    if missing := [name for name in columns if name not in frame.columns]:
        found = first_few(frame.columns) or "none"
        what = f"no column {first_few(missing)}; its columns are {found}"
        raise AnnotationError(f"{path.name}, sheet {sheet}: {what}\n{remedy}")
    rows = zip(*([cell.strip() for cell in frame[name]] for name in columns), strict=True)
    # Sheets often end with empty rows.
    return [(number, row) for number, row in enumerate(rows, start=2) if any(row)]


def _read_frame(path: Path, sheet: str) -> "pd.DataFrame":
    """Return a sheet with every cell as text, because a cell with one label is a number in the sheet."""
    import pandas as pd

    try:
        return pd.read_excel(path, sheet_name=sheet, dtype=str, keep_default_na=False, engine="openpyxl")
    except ImportError:
        what = f"{path.name} is a workbook, which pandas reads by openpyxl"
        raise MeidbenchError(f"{what}; install it: pip install 'meidbench[excel]'") from None
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # openpyxl passes on a dozen kinds: BadZipFile, zlib.error, KeyError, ParseError, ...
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise AnnotationError(f"{path.name} is not a readable workbook with a sheet {sheet}: {reason}") from None


ANIMALKINGDOM = Format(
    title="Animal Kingdom",
    description="a workbook with a row per clip, and one with a row per class and its group",
    files="AR_metadata.xlsx and df_action.xlsx",
    read=read_animalkingdom,
    needs_manifest=True,
)
