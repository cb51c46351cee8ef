"""YouTube-8M's label tables with its vocabulary."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from meidbench.annotations.base import (
    MOST_CLASSES,
    Format,
    LineReader,
    check_problems,
    check_video_id,
    check_whole,
    shown,
)
from meidbench.annotations.official import Annotations, FileRecord
from meidbench.errors import AnnotationError, first_few

_TITLE = "YouTube-8M"
_HEADERS = ("id", "vid_id", "video_id", "videoid")
_NEEDED = ("Index", "Name")


def read_youtube8m(paths: Sequence[Path]) -> Annotations:
    r"""Read a vocabulary and one label table or more.

    A label table has a line ``VIDEO_ID,LABEL1 LABEL2 ...`` a video, the labels being indices, and no header (one such
    as ``VideoId,Labels`` is passed over): the form of the official ``train_labels.csv`` and ``validate_labels.csv``.
    For the versions of 2018 and 2019, which have labels only inside their records of features, the same lines have to
    be written from the fields ``id`` and ``labels`` of each record. What precedes ``_labels`` in the file's name is
    the official subset of its videos (``train``, ``validate``); otherwise the whole name without its ending is.

    The vocabulary is the official ``vocabulary.csv``, a CSV with the columns ``Index`` and ``Name``, and
    ``KnowledgeGraphId`` if it is there; others are ignored. The indices are kept, as features, label tables and other
    people's predictions go by them: the classes are 0 to the highest, also where some in between are missing (the
    vocabulary of 2019 has 1,000 of the 3,862 of 2018). A class that is missing is named ``Entity 17``, one with an
    empty name by its ``KnowledgeGraphId``, and names that several entities share are told apart by theirs.

    Parameters
    ----------
    paths : sequence of Path
        The vocabulary, told by its header, and the label tables.

    Returns
    -------
    Annotations
        Videos in the order of the files; no lengths and no segments.

    Raises
    ------
    AnnotationError
        A file cannot be read or is of another form; the first five problems are named with their lines.

    References
    ----------
    Abu-El-Haija et al., "YouTube-8M: a large-scale video classification benchmark", arXiv:1609.08675; the label
    files as the README of ``google/youtube-8m`` describes them under "Ground-Truth Label Files".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     vocabulary, labels = Path(folder, "vocabulary.csv"), Path(folder, "train_labels.csv")
    ...     _ = vocabulary.write_text("Index,Name\n0,Kite\n2,Boat\n")
    ...     _ = labels.write_text("ab12,2 0\n")
    ...     annotations = read_youtube8m([vocabulary, labels])
    >>> annotations.class_names, annotations.labels, annotations.sources
    (('Kite', 'Entity 1', 'Boat'), [(2, 0)], ['train'])
    """
    vocabularies = [Path(path) for path in paths if _is_vocabulary(Path(path))]
    tables = [Path(path) for path in paths if Path(path) not in vocabularies]
    if len(vocabularies) != 1 or not tables:
        raise AnnotationError(
            f"expected one vocabulary (a CSV with {' and '.join(_NEEDED)} in its header) and one label table at least, "
            f"got {len(vocabularies)} and {len(tables)}: {first_few(Path(path).name for path in paths) or 'no file'}"
        )
    class_names, record = _read_vocabulary(vocabularies[0])
    table = Annotations(class_names)
    problems: list[str] = []
    for path in tables:
        _append_labels(path, table, problems)
    table.files.append(record)
    check_whole(table, problems, _TITLE)
    return table


def _is_vocabulary(path: Path) -> bool:
    header = next(iter(LineReader(path)), "").split(",")
    return all(name in header for name in _NEEDED)


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], FileRecord]:
    """Return a name for each class, and which file it is."""
    problems: list[str] = []
    entries: dict[int, tuple[str, str]] = {}
    lines = LineReader(path)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader)
        places = [header.index(name) for name in _NEEDED]
        identifier = header.index("KnowledgeGraphId") if "KnowledgeGraphId" in header else None
        for row in reader:
            if not any(row):
                continue
            where = f"{path.name}, line {lines.number:,}"
            if len(row) != len(header):
                problems.append(f"{where}: {len(row)} cells, expected {len(header)}; a cut-off line?")
                continue
            text, name = (row[place].strip() for place in places)
            if not (text.isascii() and text.isdigit() and int(text[:9]) < MOST_CLASSES and len(text) < 9):
                problems.append(f"{where}: Index {shown(text)} is not one from 0 to {MOST_CLASSES - 1:,}")
            elif int(text) in entries:
                problems.append(f"{where}: Index {text} occurs more than once")
            elif not name.isprintable():
                problems.append(f"{where}: Name {shown(name)} is not text in one line")
            else:
                entries[int(text)] = (name, "" if identifier is None else row[identifier].strip())
    except csv.Error as error:
        problems.append(f"{path.name}, line {lines.number:,}: {error}; a quotation mark is open or the file is cut off")
    if not entries and not problems:
        problems.append(f"{path.name} holds no class")
    check_problems(problems, _TITLE)
    return _class_names(entries), lines.record()


def _class_names(entries: dict[int, tuple[str, str]]) -> tuple[str, ...]:
    """Return a name for each index up to the highest, none twice."""
    plain = []
    for index in range(max(entries) + 1):
        name, identifier = entries.get(index, ("", ""))
        plain.append(name or identifier or f"Entity {index}")
    shared = {name for name, count in Counter(plain).items() if count > 1}
    taken = set(plain)
    names = []
    for index, name in enumerate(plain):
        if name in shared:
            identifier = entries.get(index, ("", ""))[1]
            told = f"{name} ({identifier or f'Entity {index}'})"
            name = told if told not in taken else f"{name} (Entity {index})"
            taken.add(name)
        names.append(name)
    return tuple(names)


def _append_labels(path: Path, table: Annotations, problems: list[str]) -> None:
    """Read ``VIDEO_ID,LABEL1 LABEL2`` lines."""
    num_classes = len(table.class_names)
    index_of = {str(index): index for index in range(num_classes)}
    lines = LineReader(path)
    before, already = len(table.video_ids), len(problems)
    for line in lines:
        video_id, comma, cell = line.partition(",")
        try:
            labels = tuple([index_of[text] for text in cell.split()])
        except KeyError as missing:
            if lines.number == 1 and video_id.strip().lower() in _HEADERS:
                continue
            problems.append(
                _strange_label(f"{path.name}, line {lines.number:,}", video_id, missing.args[0], num_classes)
            )
            continue
        try:
            if not comma:
                if not line.strip():
                    continue
                raise ValueError("no comma; expected VIDEO_ID,LABEL1 LABEL2; a cut-off line?")
            check_video_id(video_id)
            if len(labels) > 1 and len(set(labels)) < len(labels):
                raise ValueError(f"a label occurs twice in {shown(cell)}")
        except ValueError as error:
            problems.append(f"{path.name}, line {lines.number:,} ({shown(video_id)[1:-1]}): {error}")
            continue
        table.video_ids.append(video_id)
        table.labels.append(labels)
    count = len(table.video_ids) - before
    if not count and len(problems) == already:
        problems.append(f"{path.name} holds no video")
    # Millions of rows: whole columns are quicker than a video at a time.
    table.sources += [path.stem.removesuffix("_labels")] * count
    table.lengths += [math.nan] * count
    for column in (table.subjects, table.views, table.pair_ids):
        column += [""] * count
    table.segments += [()] * count
    table.files.append(lines.record())


def _strange_label(where: str, video_id: str, text: str, num_classes: int) -> str:
    video = shown(video_id)[1:-1]
    if text.isascii() and text.isdigit() and not text.startswith("0"):
        return (
            f"{where} ({video}): label {text[:20]} is outside the {num_classes:,} classes of the vocabulary; "
            "is that of another version?"
        )
    return f"{where} ({video}): label {shown(text)} is not an index; they are separated by blanks"


YOUTUBE8M = Format(
    title=_TITLE,
    description="machine-generated labels of whole videos: 4,716 classes in the version of 2017, 3,862 in that of 2018",
    files="vocabulary.csv, and label tables of lines VIDEO_ID,LABEL1 LABEL2 (train_labels.csv, validate_labels.csv)",
    read=read_youtube8m,
)
