"""The CSVs of Charades and CharadesEgo.

Their quirks are kept: empty ``actions``, segments that end before they start or after the video, one class several
times in a video. Cells that cannot be read are refused with file, line and column.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from meidbench.annotations.base import (
    Annotations,
    Format,
    LineReader,
    Segment,
    check_codes,
    quote,
    read_benchmark,
    read_csv_rows,
)
from meidbench.splits.manifests import Manifest

# Python's float() also takes 1_0, 1e308 and full-width digits.
_ACTION = re.compile(r"c([0-9]{3}) ([0-9]{1,6}(?:\.[0-9]{1,6})?) ([0-9]{1,6}(?:\.[0-9]{1,6})?)")
_LENGTH = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_COLUMNS = ("id", "subject", "actions", "length", "egocentric")


def read_charades(paths: Sequence[Path], manifest: Manifest) -> Annotations:
    """Read the CSVs of Charades; parameters and errors as in ``read_benchmark``."""
    return read_benchmark(paths, manifest, _read_class_names, _append_rows)


def read_charadesego(paths: Sequence[Path], manifest: Manifest) -> Annotations:
    """Read the CSVs of CharadesEgo, which add the column ``egocentric``; as ``read_charades``."""
    return read_benchmark(paths, manifest, _read_class_names, partial(_append_rows, ego=True))


def read_charades_texts(paths: Sequence[Path], manifest: Manifest) -> dict[str, tuple[str, str]]:
    """Read the ``descriptions`` and the ``script`` of each video, by id, and no label; errors as in ``read_benchmark``.

    Several descriptions of a video are joined by semicolons; many videos of CharadesEgo have none.
    """
    texts: dict[str, tuple[str, str]] = {}

    def append_rows(lines: LineReader, source: str, table: Annotations, problems: list[str]) -> None:
        for where, (video_id, descriptions, script) in read_csv_rows(lines, ("id", "descriptions", "script"), problems):
            try:
                _check_id(video_id)
            except ValueError as error:
                problems.append(f"{where}, column id: {error}")
                continue
            table.append(video_id, source, ())
            texts[video_id] = (descriptions, script)

    read_benchmark(paths, manifest, _read_class_names, append_rows)
    return texts


def _read_class_names(lines: LineReader, manifest: Manifest) -> tuple[str, ...]:
    """Read ``cNNN NAME`` lines."""
    entries = [line.strip().partition(" ") for line in lines if line.strip()]
    check_codes(lines.path, [code for code, _, _ in entries], "c{:03d}", manifest)
    return tuple(name for _, _, name in entries)


def _append_rows(lines: LineReader, source: str, table: Annotations, problems: list[str], ego: bool = False) -> None:
    for where, cells in read_csv_rows(lines, _COLUMNS if ego else _COLUMNS[:-1], problems):
        video_id, subject, actions, length = cells[:4]
        column = "id"
        try:
            _check_id(video_id)
            column = "actions"
            segments = _parse_actions(actions, len(table.class_names))
            column = "length"
            if not _LENGTH.fullmatch(length) or not float(length):
                raise ValueError(f"{quote(length)} is not a length in seconds")
            column = "egocentric"
            view = _parse_view(cells[4], video_id) if ego else ""
        except ValueError as error:
            problems.append(f"{where}, column {column}: {error}")
            continue
        labels = tuple(dict.fromkeys(index for index, _, _ in segments))
        pair_id = video_id.removesuffix("EGO") if ego else ""
        table.append(video_id, source, labels, float(length), segments, subject, view, pair_id)


def _check_id(video_id: str) -> None:
    if not video_id or video_id.strip() != video_id or any(mark in video_id for mark in "/\\\t\n"):
        raise ValueError(f"{quote(video_id)} is not a video id")


def _parse_actions(cell: str, num_classes: int) -> tuple[Segment, ...]:
    """Parse ``c092 11.90 21.20;c147 0.00 12.60``; ValueError names the wrong entry."""
    segments = []
    for entry in cell.split(";") if cell.strip() else ():
        found = _ACTION.fullmatch(entry)
        if found is None:
            raise ValueError(f"{quote(entry)} is not 'cNNN start end'")
        index = int(found[1])
        if index >= num_classes:
            raise ValueError(f"{quote(entry)}: class c{found[1]} does not exist (c000 to c{num_classes - 1:03d})")
        segments.append((index, float(found[2]), float(found[3])))
    return tuple(segments)


def _parse_view(cell: str, video_id: str) -> str:
    if cell not in ("Yes", "No"):
        raise ValueError(f"{quote(cell)} is not Yes or No")
    if (cell == "Yes") != video_id.endswith("EGO"):
        raise ValueError(f"{cell!r} contradicts the id: those of first-person videos end in EGO")
    return "first" if cell == "Yes" else "third"


CHARADES = Format(
    title="Charades CSV",
    description="videos with a length, a subject and timed actions of 157 classes",
    files="Charades_v1_train.csv, Charades_v1_test.csv and Charades_v1_classes.txt",
    read=read_charades,
    needs_manifest=True,
    read_texts=read_charades_texts,
)
CHARADESEGO = Format(
    title="CharadesEgo CSV",
    description="as Charades, in first- and third-person takes of one script",
    files="CharadesEgo_v1_train.csv, CharadesEgo_v1_test.csv and Charades_v1_classes.txt",
    read=read_charadesego,
    needs_manifest=True,
    read_texts=read_charades_texts,
)
