"""The label tables of YouTube-8M and their vocabulary."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from meidbench.annotations.base import (  # fmt: skip
    MOST_CLASSES,
    Annotations,
    FileRecord,
    Format,
    LineReader,
    check_annotations,
    check_problems,
    check_video_id,
    fold_name,
    quote,
)
from meidbench.errors import AnnotationError, first_few, write_count

_TITLE = "YouTube-8M"
_HEADERS = ("id", "vid_id", "video_id", "videoid")
_NEEDED = ("Index", "Name")


def read_youtube8m(paths: Sequence[Path]) -> Annotations:
    r"""Read a vocabulary and one label table or more.

    A label table has one line ``VIDEO_ID,LABEL1 LABEL2 ...`` per video, with class indices, and no header (one such as
    ``VideoId,Labels`` is skipped): the form of the official ``train_labels.csv`` and ``validate_labels.csv``. The
    versions of 2018 and 2019 have labels only inside their records of features: write the same lines from the fields
    ``id`` and ``labels`` of each record. The official subset of the videos is the part of the file's name before
    ``_labels`` (``train``, ``validate``), or the whole name without its ending.

    The vocabulary, recognised by its header, is the official ``vocabulary.csv``, a CSV with the columns ``Index`` and
    ``Name`` and, optionally, ``KnowledgeGraphId``; others are ignored. The indices are kept, because features, label
    tables and predictions use them: the classes are 0 to the highest, even where the vocabulary lacks some (that of
    2019 has 1,000 of the 3,862 of 2018). A missing class is named ``Entity 17``, one with an empty name by its
    ``KnowledgeGraphId``; several entities with the same name, case aside, get theirs in parentheses.

    The videos have no lengths and no segments, and are in the order of the files. An ``AnnotationError`` names the
    first five problems with their lines.

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
        wanted = f"one vocabulary (a CSV with {' and '.join(_NEEDED)} in its header) and one label table at least"
        named = first_few(Path(path).name for path in paths) or "no file"
        raise AnnotationError(f"expected {wanted}, got {len(vocabularies)} and {len(tables)}: {named}")
    class_names, record = _read_vocabulary(vocabularies[0])
    table = Annotations(class_names)
    problems: list[str] = []
    for path in tables:
        _append_labels(path, table, problems)
    table.files.append(record)
    check_annotations(table, problems, _TITLE)
    return table


def _is_vocabulary(path: Path) -> bool:
    header = next(iter(LineReader(path)), "").strip().split(",")
    return all(name in header for name in _NEEDED)


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], FileRecord]:
    """Return a name for each class, and the record of the file."""
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
                problems.append(f"{where}: {write_count(len(row), 'cell')}, expected {len(header)}; a cut-off line?")
                continue
            text, name = (row[place].strip() for place in places)
            if not (text.isascii() and text.isdigit() and int(text[:9]) < MOST_CLASSES and len(text) < 9):
                problems.append(f"{where}: Index {quote(text)} is not one from 0 to {MOST_CLASSES - 1:,}")
            elif int(text) in entries:
                problems.append(f"{where}: Index {text} occurs more than once")
            elif not name.isprintable():
                problems.append(f"{where}: Name {quote(name)} is not text in one line")
            else:
                entries[int(text)] = (name, "" if identifier is None else row[identifier].strip())
    except csv.Error as error:
        problems.append(f"{path.name}, line {lines.number:,}: {error}; a quotation mark is open or the file is cut off")
    if not entries and not problems:
        problems.append(f"{path.name} holds no class")
    check_problems(problems, f"with the {_TITLE} annotations")
    return _class_names(entries), lines.record()


def _class_names(entries: dict[int, tuple[str, str]]) -> tuple[str, ...]:
    """Return a distinct name for each index up to the highest."""
    plain = []
    for index in range(max(entries) + 1):
        name, identifier = entries.get(index, ("", ""))
        plain.append(name or identifier or f"Entity {index}")
    folded = Counter(map(fold_name, plain))
    shared = {name for name in plain if folded[fold_name(name)] > 1}
    taken = set(plain)
    names = []
    for index, name in enumerate(plain):
        if name in shared:
            identifier = entries.get(index, ("", ""))[1]
            longer = f"{name} ({identifier or f'Entity {index}'})"
            name = longer if longer not in taken else f"{name} (Entity {index})"
            taken.add(name)
        names.append(name)
    return tuple(names)


def _append_labels(path: Path, table: Annotations, problems: list[str]) -> None:
    """Read ``VIDEO_ID,LABEL1 LABEL2`` lines."""
    num_classes = len(table.class_names)
    index_of = {str(index): index for index in range(num_classes)}
    lines = LineReader(path)
    video_ids, rows, before = [], [], len(problems)
    for line in lines:
        video_id, comma, cell = line.rstrip("\r\n").partition(",")
        if not comma and not line.strip():
            continue
        try:
            labels = tuple([index_of[text] for text in cell.split()])
            if not comma:
                raise ValueError("no comma; expected VIDEO_ID,LABEL1 LABEL2; a cut-off line?")
            check_video_id(video_id)
            if len(labels) > 1 and len(set(labels)) < len(labels):
                raise ValueError(f"a label occurs twice in {quote(cell)}")
        except (KeyError, ValueError) as error:
            wrong = isinstance(error, KeyError)
            if wrong and lines.number == 1 and video_id.strip().lower() in _HEADERS:
                continue
            what = f"label {_describe_wrong_label(error.args[0], num_classes)}" if wrong else error
            problems.append(f"{path.name}, line {lines.number:,} ({quote(video_id)[1:-1]}): {what}")
            continue
        video_ids.append(video_id)
        rows.append(labels)
    if not video_ids and len(problems) == before:
        problems.append(f"{path.name} holds no video")
    table.extend(video_ids, rows, path.stem.removesuffix("_labels"))
    table.files.append(lines.record())


def _describe_wrong_label(text: str, num_classes: int) -> str:
    if text.isascii() and text.isdigit() and not text.startswith("0"):
        classes = write_count(num_classes, "class", "classes")
        return f"{text[:20]} is outside the {classes} of the vocabulary; is that of another version?"
    return f"{quote(text)} is not an index; they are separated by blanks"


YOUTUBE8M = Format(
    title=_TITLE,
    description="machine-generated labels of whole videos: 4,716 classes in the version of 2017, 3,862 in that of 2018",
    files="vocabulary.csv, and label tables of lines VIDEO_ID,LABEL1 LABEL2 (train_labels.csv, validate_labels.csv)",
    read=read_youtube8m,
)
