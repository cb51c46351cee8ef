"""The JSON form of ActivityNet, which HACS Segments, FineAction and THUMOS14 use as well."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meidbench.annotations.base import (  # fmt: skip
    Annotations,
    FileRecord,
    Format,
    Segment,
    check_annotations,
    check_video_id,
    find_repeated,
    find_spellings,
    quote,
)
from meidbench.errors import AnnotationError, first_few

_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]+)?")
_TAXONOMY_REMEDY = "Where the taxonomy is not about these labels, take the key 'taxonomy' out of a copy of the file."


def read_activitynet(paths: Sequence[Path], subset_of: Callable[[int, str], str] | None = None) -> Annotations:
    """Read files of the form of ActivityNet 1.3.

    Each is an object with the key ``database`` and, optionally, ``taxonomy``; other keys are ignored. ``database`` has
    one object per video, by id: ``subset`` (kept verbatim: ``training`` in one dataset, ``Test`` in another),
    ``duration`` in seconds, and ``annotations``, a list of objects with ``label`` and ``segment`` (start and end in
    seconds). Only ``label`` is required; ActivityNet's subset ``testing`` has no annotations. The videos may also be
    the file's own keys, and ``duration`` be called ``duration_second``, as in the files of mmaction2.

    ``subset_of`` returns the subset of a video, from the place of its file in ``paths`` and its own ``subset`` (empty
    where it has none); without it, that is kept. A ``ValueError`` of it is a problem of the video.

    The classes are the leaves of the taxonomy, with or without videos; its nodes have ``nodeName``, ``parentName``,
    ``nodeId`` and ``parentId``. Without a taxonomy, the classes are the labels that occur. They are sorted by code
    points, because the official evaluation numbers them only by their first occurrence. Take a label that is not a
    class, such as THUMOS14's ``Ambiguous``, out of the file before. Segments are kept verbatim and in order, also those
    that end before they start or after the video; negative times are refused.

    Videos of several files are pooled, in the order of the files; their taxonomies must be equal. An
    ``AnnotationError`` names the first five problems.

    References
    ----------
    Heilbron et al., "ActivityNet: a large-scale video benchmark for human activity understanding", CVPR 2015; the
    fields as ``Evaluation/eval_classification.py`` of the official repository ``activitynet/ActivityNet`` reads them.

    Examples
    --------
    >>> import tempfile
    >>> database = {"a": {"subset": "training", "duration": 9.5, "annotations": [{"segment": [1, 3], "label": "Surf"}]}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "mine.json")
    ...     _ = file.write_text(json.dumps({"database": database}))
    ...     annotations = read_activitynet([file])
    >>> annotations.class_names, annotations.labels, annotations.segments
    (('Surf',), [(0,)], [((0, 1.0, 3.0),)])
    """
    contents = [(Path(path), *_read_json(Path(path))) for path in paths]
    if not contents:
        raise AnnotationError("no file of annotations is given")
    leaves = [_leaves(path, content.get("taxonomy")) for path, _, content in contents]
    if any(names != leaves[0] for names in leaves):
        raise AnnotationError(f"{first_few(path.name for path, _, _ in contents)}: their taxonomies are not the same")
    names = leaves[0] or _used_labels([content["database"] for _, _, content in contents])
    table = Annotations(names)
    index = {name: position for position, name in enumerate(names)}
    problems = find_spellings(names)
    for place, (path, record, content) in enumerate(contents):
        convert = partial(subset_of, place) if subset_of else str
        _append(path.name, content["database"], index, table, problems, convert)
        table.files.append(record)
    strange = any("not a leaf of the taxonomy" in problem for problem in problems)
    check_annotations(table, problems, "ActivityNet", _TAXONOMY_REMEDY if strange else "")
    return table


def _read_json(path: Path) -> tuple[FileRecord, dict[str, Any]]:
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(find_repeated([name for name, _ in pairs]))
        return dict(pairs)

    try:
        raw = path.read_bytes()
        content = json.loads(raw, object_pairs_hook=unique)
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not a readable JSON file: {error}; is it cut off?") from None
    if isinstance(content, dict) and "database" not in content and _are_videos(content):
        content = {"database": content}
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        found = first_few(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        wanted = "expected a key 'database' with videos, or videos with annotations by id"
        raise AnnotationError(f"{path} is not of ActivityNet's form: {wanted}, found {found}")
    if twice:  # one of the two would be lost
        raise AnnotationError(f"{path}: {len(twice):,} key(s) occur twice in one object: {first_few(map(repr, twice))}")
    return FileRecord(path.name, len(raw), hashlib.sha256(raw).hexdigest()), content


def _are_videos(content: dict[str, Any]) -> bool:
    entries = content.values()
    return all(isinstance(entry, dict) for entry in entries) and any("annotations" in entry for entry in entries)


def _leaves(path: Path, taxonomy: Any) -> tuple[str, ...]:
    """Return the names of the nodes without children, sorted; empty without a taxonomy."""
    if not taxonomy:
        return ()
    fields = ("nodeName", "parentName")
    if not isinstance(taxonomy, list) or not all(
        isinstance(node, dict) and isinstance(node.get("nodeName"), str) and "parentName" in node for node in taxonomy
    ):
        raise AnnotationError(f"{path}: the taxonomy is not a list of nodes with {' and '.join(fields)}")
    if all("nodeId" in node and "parentId" in node for node in taxonomy):
        fields = ("nodeId", "parentId")  # a leaf may have the name of an inner node
    parents = {str(node[fields[1]]) for node in taxonomy}
    return tuple(sorted({node["nodeName"] for node in taxonomy if str(node[fields[0]]) not in parents}))


def _used_labels(databases: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the labels that occur, sorted; ``_append`` refuses malformed ones."""
    labels = set()
    for database in databases:
        for video in database.values():
            annotations = video.get("annotations") if isinstance(video, dict) else None
            for annotation in annotations if isinstance(annotations, list) else ():
                if isinstance(annotation, dict) and isinstance(annotation.get("label"), str):
                    labels.add(annotation["label"])
    return tuple(sorted(labels))


def _append(
    name: str,
    database: dict[str, Any],
    index: dict[str, int],
    table: Annotations,
    problems: list[str],
    convert_subset: Callable[[str], str],
) -> None:
    for video_id, video in database.items():
        try:
            check_video_id(video_id)
            if not isinstance(video, dict):
                raise ValueError(f"{quote(video)} is not an object")
            subset = video.get("subset", "")
            if not isinstance(subset, str) or not subset.isprintable():
                raise ValueError(f"subset {quote(subset)} is not text in one line")
            subset = convert_subset(subset)
            duration = video.get("duration", video.get("duration_second"))
            length = math.nan if duration is None else _seconds(duration)
            if length <= 0:
                raise ValueError(f"duration {quote(duration)} is not a length in seconds")
            labels, segments = _parse_annotations(video.get("annotations"), index)
        except ValueError as error:
            problems.append(f"{name}, {quote(video_id)[1:-1]}: {error}")
            continue
        table.append(video_id, subset, labels, length, segments)


def _parse_annotations(entries: Any, index: dict[str, int]) -> tuple[tuple[int, ...], tuple[Segment, ...]]:
    entries = [] if entries is None else entries
    if not isinstance(entries, list):
        raise ValueError(f"annotations {quote(entries)} are not a list")
    labels: dict[int, None] = {}
    segments = []
    for entry in entries:
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ValueError(f"annotation {quote(entry)} has no label")
        if label not in index:
            raise ValueError(f"label {quote(label)} is not a leaf of the taxonomy")
        labels[index[label]] = None
        segment = entry.get("segment")
        if segment is None:
            continue
        if not isinstance(segment, list) or len(segment) != 2:
            raise ValueError(f"segment {quote(segment)} is not a start and an end")
        segments.append((index[label], _seconds(segment[0]), _seconds(segment[1])))
    return tuple(labels), tuple(segments)


def _seconds(value: Any) -> float:
    """Return a number, which some files hold as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    if (not is_number and not (isinstance(value, str) and _NUMBER.fullmatch(value))) or float(value) < 0:
        raise ValueError(f"{quote(value)} is not a number of seconds from 0 on")
    return float(value)


ACTIVITYNET = Format(
    title="ActivityNet JSON",
    description="videos with a subset, a duration and labelled segments; also HACS Segments, FineAction, THUMOS14",
    files="one JSON file with the key 'database' or with videos by id, or several",
    read=read_activitynet,
)
