"""Official annotation files, read once into one table of annotated videos.

The Charades and CharadesEgo CSVs have quirks that are kept as they are: empty ``actions``, segments that end before
they start or after the video does, one class several times in a video. What is truly wrong (a cell that cannot be
read, an id that occurs twice) is refused, with file, line and column.
"""

import csv
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from meidbench.errors import AnnotationError, bullet_list, first_few
from meidbench.splits.manifests import Manifest, SourceFile

Segment = tuple[int, float, float]
_SHOWN = 5
# Python's float() would also take 1_0, 1e308 or full-width digits.
_ACTION = re.compile(r"c([0-9]{3}) ([0-9]{1,6}(?:\.[0-9]{1,6})?) ([0-9]{1,6}(?:\.[0-9]{1,6})?)")
_LENGTH = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_LABELS = re.compile(r"[0-9]{1,6}(?:,[0-9]{1,6})*")


@dataclass(frozen=True)
class FileRecord:
    """Which file was read: its name, size in bytes and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass
class Annotations:
    """Annotated videos as columns, one entry a video, in the official order.

    Attributes
    ----------
    class_names : tuple of str
        C names, by class index.
    video_ids, sources, subjects, views, pair_ids : list of str
        ``sources`` are official subsets; ``views`` is ``first``, ``third`` or empty; ``pair_ids`` is shared by the
        first- and third-person takes of one script and empty elsewhere.
    labels : list of tuple of int
        Class indices in the order of their first occurrence, none twice.
    lengths : list of float
        Seconds; NaN where the annotation does not say.
    segments : list of tuple of (int, float, float)
        Class index, start and end in seconds, verbatim and in official order.
    files : list of FileRecord
        What was read.
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
    files: list[FileRecord] = field(default_factory=list)


def read_annotations(manifest: Manifest, folder: Path) -> Annotations:
    """Read the official annotation files of a benchmark.

    Parameters
    ----------
    manifest : Manifest
        Names the files and their reader.
    folder : Path
        Holds the files, itself or in a folder inside it (as the archives unpack).

    Raises
    ------
    AnnotationError
        A file is missing or damaged; the message names file, line and column of the first five problems.
    """
    folder = Path(folder)
    found = _find_files(folder, manifest)
    class_record, class_text = _read_text(found[manifest.class_file.name])
    if manifest.reader not in READERS:
        raise AnnotationError(f"{manifest.title}: unknown reader {manifest.reader!r}; known: {', '.join(READERS)}")
    read_names = _read_count_list if manifest.reader == "lists" else _read_class_list
    table = Annotations(read_names(class_text, manifest))
    problems: list[str] = []
    for source_file in manifest.files:
        record, text = _read_text(found[source_file.name])
        READERS[manifest.reader](text, source_file, table, problems)
        table.files.append(record)
    table.files.append(class_record)
    problems += _repeated_ids(table.video_ids)
    if problems:
        _refuse(f"{len(problems):,} problem(s) in the annotations in {folder}", problems, manifest)
    return table


def _refuse(what: str, problems: list[str], manifest: Manifest) -> None:
    rest = len(problems) - _SHOWN
    more = f"\n  ... and {rest:,} more" if rest > 0 else ""
    raise AnnotationError(f"{what}:\n{bullet_list(problems[:_SHOWN])}{more}\n{manifest.remedy}")


def annotation_paths(manifest: Manifest, folder: Path) -> dict[str, list[Path]]:
    """Return where each annotation file of a benchmark lies: in the folder, or at most two folders deeper."""
    names = [entry.name for entry in (*manifest.files, manifest.class_file)]
    places: dict[str, list[Path]] = {}
    for name in names:
        hits = ([path for path in sorted(folder.glob(depth + name)) if path.is_file()] for depth in ("", "*/", "*/*/"))
        places[name] = next((found for found in hits if found), [])
    return places


def _find_files(folder: Path, manifest: Manifest) -> dict[str, Path]:
    if not folder.is_dir():
        names = [entry.name for entry in (*manifest.files, manifest.class_file)]
        raise AnnotationError(f"there is no folder {folder}; expected it to hold {', '.join(names)}\n{manifest.remedy}")
    found: dict[str, Path] = {}
    problems = []
    for name, hits in annotation_paths(manifest, folder).items():
        if len(hits) == 1:
            found[name] = hits[0]
        elif hits:
            problems.append(f"{name} is there {len(hits)} times: {first_few(hits)}; name the folder of one")
        else:
            problems.append(f"{name} is missing")
    if problems:
        _refuse(f"cannot read the annotations in {folder}", problems, manifest)
    return found


def _read_text(path: Path) -> tuple[FileRecord, str]:
    raw = path.read_bytes()
    record = FileRecord(path.name, len(raw), hashlib.sha256(raw).hexdigest())
    try:
        return record, raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{path.name}, line {line}: byte {error.start:,} is not UTF-8 text; the file is damaged or of another kind"
        ) from None


def _repeated_ids(video_ids: list[str]) -> list[str]:
    if len(set(video_ids)) == len(video_ids):
        return []
    seen: set[str] = set()
    repeated = dict.fromkeys(video for video in video_ids if video in seen or seen.add(video))  # type: ignore[func-returns-value]
    return [f"video {video} occurs more than once in the annotation files" for video in repeated]


# --- class names ------------------------------------------------------------------------------------------------


def _read_class_list(text: str, manifest: Manifest) -> tuple[str, ...]:
    """Read ``cNNN NAME`` lines."""
    entries = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return _check_names(manifest, [name for _, _, name in entries], [code for code, _, _ in entries], "c{:03d}")


def _read_count_list(text: str, manifest: Manifest) -> tuple[str, ...]:
    """Read ``NAME INDEX COUNT`` lines."""
    entries = [line.rsplit(None, 2) for line in text.splitlines() if line.strip()]
    short = [entry for entry in entries if len(entry) != 3]
    if short:
        raise AnnotationError(f"{manifest.class_file.name}: expected 'NAME INDEX COUNT', got {' '.join(short[0])!r}")
    return _check_names(manifest, [name for name, _, _ in entries], [index for _, index, _ in entries], "{}")


def _check_names(manifest: Manifest, names: list[str], codes: list[str], form: str) -> tuple[str, ...]:
    expected = [form.format(index) for index in range(manifest.num_classes)]
    for line, (code, wanted) in enumerate(zip(codes, expected, strict=False), start=1):
        if code != wanted:
            raise AnnotationError(f"{manifest.class_file.name}, entry {line}: class code {code!r}, expected {wanted!r}")
    if len(codes) != len(expected):
        raise AnnotationError(
            f"{manifest.class_file.name}: {len(codes)} classes, {manifest.title} has {manifest.num_classes}; "
            "the file is cut off or of another dataset"
        )
    return tuple(names)


# --- Charades and CharadesEgo -----------------------------------------------------------------------------------


def _csv_rows(text: str, name: str, columns: tuple[str, ...], problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield where each row ends (file and line, for messages) and its cells in the order of ``columns``."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        if missing:
            problems.append(f"{name}, line 1: no column {', '.join(missing)}; the header is {first_few(header, 15)!r}")
            return
        places = [header.index(column) for column in columns]
        for row in reader:
            if len(row) == len(header):
                yield f"{name}, line {reader.line_num} ({row[places[0]]})", [row[place] for place in places]
            elif row:
                problems.append(
                    f"{name}, line {reader.line_num} ({row[0]}): {len(row)} cells, expected {len(header)} "
                    f"({first_few(header, 15)}); a cut-off line?"
                )
    except csv.Error as error:
        problems.append(f"{name}, line {reader.line_num}: {error}; a quotation mark is open or the file is cut off")


def _parse_actions(cell: str, num_classes: int) -> tuple[Segment, ...]:
    """Parse ``c092 11.90 21.20;c147 0.00 12.60``; ValueError says which entry is wrong."""
    segments = []
    for entry in cell.split(";") if cell.strip() else ():
        found = _ACTION.fullmatch(entry)
        if found is None:
            raise ValueError(f"{_cut(entry)} is not 'cNNN start end'")
        index = int(found[1])
        if index >= num_classes:
            raise ValueError(f"{_cut(entry)}: class c{found[1]} does not exist (c000 to c{num_classes - 1:03d})")
        segments.append((index, float(found[2]), float(found[3])))
    return tuple(segments)


def _parse_length(cell: str) -> float:
    if not _LENGTH.fullmatch(cell) or not float(cell):
        raise ValueError(f"{_cut(cell)} is not a length in seconds")
    return float(cell)


def _cut(text: str) -> str:
    """Quote a cell for a message, cut where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _parse_view(cell: str, video_id: str) -> str:
    if cell not in ("Yes", "No"):
        raise ValueError(f"{_cut(cell)} is not Yes or No")
    if (cell == "Yes") != video_id.endswith("EGO"):
        raise ValueError(f"{cell!r} contradicts the id: those of first-person videos end in EGO")
    return "first" if cell == "Yes" else "third"


def _append_charades(text: str, file: SourceFile, table: Annotations, problems: list[str], ego: bool = False) -> None:
    columns = ("id", "subject", "actions", "length", "egocentric")[: 5 if ego else 4]
    before, rows = len(problems), 0
    for where, cells in _csv_rows(text, file.name, columns, problems):
        rows += 1
        video_id, subject, actions, length = cells[:4]
        column = "id"
        try:
            if not video_id or video_id.strip() != video_id or any(mark in video_id for mark in "/\\\t\n"):
                raise ValueError(f"{_cut(video_id)} is not a video id")
            column = "actions"
            segments = _parse_actions(actions, len(table.class_names))
            column = "length"
            seconds = _parse_length(length)
            column = "egocentric"
            view = _parse_view(cells[4], video_id) if ego else ""
        except ValueError as error:
            problems.append(f"{where}, column {column}: {error}")
            continue
        table.video_ids.append(video_id)
        table.sources.append(file.source)
        table.labels.append(tuple(dict.fromkeys(index for index, _, _ in segments)))
        table.lengths.append(seconds)
        table.subjects.append(subject)
        table.views.append(view)
        table.pair_ids.append(video_id.removesuffix("EGO") if ego else "")
        table.segments.append(segments)
    if not rows and len(problems) == before:
        problems.append(f"{file.name} holds no video")


def _append_charadesego(text: str, file: SourceFile, table: Annotations, problems: list[str]) -> None:
    _append_charades(text, file, table, problems, ego=True)


# --- VideoLT ----------------------------------------------------------------------------------------------------


def _append_list(text: str, file: SourceFile, table: Annotations, problems: list[str]) -> None:
    """Read ``VIDEOID c1,c2,...`` lines."""
    num_classes = len(table.class_names)
    parsed: dict[str, tuple[int, ...]] = {}  # a few thousand distinct label cells stand for 256,192 lines
    before, already = len(table.video_ids), len(problems)
    for number, line in enumerate(text.split("\n"), start=1):
        video_id, _, cell = line.strip().partition(" ")
        if not video_id:
            continue
        labels = parsed.get(cell)
        if labels is None:
            labels = tuple(map(int, dict.fromkeys(cell.split(",")))) if _LABELS.fullmatch(cell) else ()
            if not labels or max(labels) >= num_classes or len(set(labels)) < len(labels):
                problems.append(
                    f"{file.name}, line {number} ({_cut(video_id)[1:-1]}): labels {_cut(cell)} are not class indices "
                    f"0 to {num_classes - 1}, separated by commas"
                )
                continue
            parsed[cell] = labels
        table.video_ids.append(video_id)
        table.labels.append(labels)
    count = len(table.video_ids) - before
    if not count and len(problems) == already:
        problems.append(f"{file.name} holds no video")
    table.sources += [file.source] * count
    table.lengths += [math.nan] * count
    for column in (table.subjects, table.views, table.pair_ids):
        column += [""] * count
    table.segments += [()] * count


READERS: dict[str, Callable[[str, SourceFile, Annotations, list[str]], None]] = {
    "charades": _append_charades,
    "charadesego": _append_charadesego,
    "lists": _append_list,
}
