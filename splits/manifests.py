"""The facts about a benchmark (its sources, licence and sizes), and the sketches that check a user's copy.

The facts are data (``splits/NAME.toml``, written by people) and measurements (``splits/NAME.assignment.json``, written
by ``python -m meidbench.splits.make`` from the released lists). Both are without video ids and labels.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from meidbench.checks import FieldReader, parse_toml, read_dataclass, suggest
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.names import BENCHMARKS, DATASETS, EPIC_DATASETS, OFFICIAL, RELEASED, SUBSETS
from meidbench.splits.groups import GROUP_NAMES, Thresholds, read_group_names

CELLS = 240  # of a sketch
PAPER_FACTS = (*GROUP_NAMES, "train", "val", "test", "labels_per_video", "imbalance_ratio")
EXPECTED_FACTS = (
    *PAPER_FACTS,
    *("most_frequent", "least_frequent", "least_positives_val", "least_positives_test"),
    *("labels_per_video_train", "labels_per_video_val", "labels_per_video_test"),
)


@dataclass(frozen=True)
class SourceFile:
    """An official annotation file; ``source`` is the official subset it holds, empty for the class names.

    A file that holds several subsets has one entry for each.
    """

    name: str = ""
    source: str = ""
    bytes: int = 0
    sha256: str = ""

    _required: ClassVar = ("name", "bytes", "sha256")


@dataclass(frozen=True)
class Download:
    """A file to fetch; an archive (``.zip``) is unpacked.

    ``bytes`` is None where the publisher gives no size, and ``sha256`` may be the beginning of the digest only.
    """

    url: str = ""
    bytes: int | None = None
    sha256: str = ""

    _required: ClassVar = ("url", "bytes", "sha256")


@dataclass(frozen=True)
class ReleasedList:
    """The list of one subset as the split's authors released it."""

    file: str = ""
    sha256: str = ""

    _required: ClassVar = ("file", "sha256")


@dataclass(frozen=True)
class Licence:
    """The terms of the annotations, and the authors of the split."""

    name: str = ""
    url: str = ""
    splits: str = ""
    summary: tuple[str, ...] = ()

    _required: ClassVar = ("name", "url", "splits", "summary")


@dataclass(frozen=True)
class Defect:
    """A known defect of a published split."""

    name: str = ""
    what: str = ""

    _required: ClassVar = ("what",)

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Assignment:
    """The subset of every video, without an id or a label.

    ``symbols`` has one symbol per video of the pooled official annotations, sorted by id in code-point order: ``.``
    unused, ``t`` train, ``v`` val, ``e`` test. ``ids_digest`` and ``names_digest`` are the sha256 of the sorted ids and
    of the class names (one per line), ``split_digest`` that of ``meidbench.splits.rows.rows_digest``. By official
    subset, ``source_videos`` has the number of videos, ``source_digests`` the sha256 of the sorted ids, and
    ``source_positives`` the videos per class; ``positives`` has the videos per class by subset.

    ``id_sketch`` and ``row_sketch`` are the cells of a ``RowSketch`` over (id, official subset) of all videos and (id,
    labels) of the used ones, with which differing videos can be named. ``pool_digest`` and ``pool_sketch`` are those of
    everything that is read of all videos; empty in assignments that were made before they existed. ``content_digest``
    is that of the published split where its groups are by list; by thresholds it follows from the others.
    """

    symbols: str
    ids_digest: str
    names_digest: str
    split_digest: str
    source_videos: dict[str, int]
    source_digests: dict[str, str]
    source_positives: dict[str, tuple[int, ...]]
    positives: dict[str, tuple[int, ...]]
    id_sketch: tuple[tuple[int, str], ...]
    row_sketch: tuple[tuple[int, str], ...]
    pool_digest: str = ""
    pool_sketch: tuple[tuple[int, str], ...] = ()
    content_digest: str = ""


@dataclass(frozen=True)
class Manifest:
    """All facts about one benchmark.

    ``groups`` is ``thresholds``, where ``head_above`` and ``tail_up_to`` group the classes by their training videos, or
    ``list``, where the annotations have the group of each class: the reader sets ``Annotations.groups``, and the
    manifest has no thresholds. ``group_names`` has the benchmark's own names of groups for tables and pages.
    ``released`` has the lists of the split's authors; it is empty where the official subsets are the split. ``media``
    tells in a sentence where the videos or features come from, if they are not public. ``group_file`` is the official
    list of groups, where it is a file of its own, and ``substitute`` a smaller file of the first of ``files``.
    """

    name: str = ""
    title: str = ""
    annotations: str = ""
    reader: str = ""
    media: str = ""
    num_classes: int = 0
    groups: str = "thresholds"
    head_above: int | None = None
    tail_up_to: int | None = None
    group_names: dict[str, str] = field(default_factory=dict)
    licence: Licence = Licence()
    files: tuple[SourceFile, ...] = ()
    class_file: SourceFile = SourceFile()
    group_file: SourceFile = SourceFile()
    substitute: SourceFile = SourceFile()
    downloads: tuple[Download, ...] = ()
    released: dict[str, ReleasedList] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    defects: tuple[Defect, ...] = ()

    _known: ClassVar = {"groups": ("thresholds", "list")}
    _required: ClassVar = (
        *("name", "title", "annotations", "reader", "num_classes", "licence", "files", "class_file"),
    )

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds of head and tail, None where the annotations have the groups."""
        return Thresholds.from_numbers(self.head_above, self.tail_up_to)

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of the annotation files, each once: of videos, of the class names, and of the groups."""
        entries = (*self.files, self.class_file, *([self.group_file] if self.group_file.name else []))
        return tuple(dict.fromkeys(entry.name for entry in entries))

    @property
    def file_of(self) -> dict[str, str]:
        """The file of each official subset, for a message; with the subset where a file holds several."""
        names = [entry.name for entry in self.files]
        several = {entry.source: f"{entry.name}, {entry.source}" for entry in self.files if names.count(entry.name) > 1}
        return {entry.source: several.get(entry.source, entry.name) for entry in self.files}

    @property
    def sizes(self) -> dict[str, float]:
        """The numbers of classes by group and of videos by subset: the paper's, else those measured."""
        return self.paper or self.expected

    @property
    def licence_text(self) -> str:
        """The terms of the annotations, for a reader."""
        terms = bullet_list((*self.licence.summary, self.licence.splits))
        return f"{self.title}: {self.licence.name}\n  {self.licence.url}\n{terms}"

    @property
    def remedy(self) -> str:
        """The advice to a user whose annotation files are missing or wrong."""
        if self.name in DATASETS:
            return f"Get the official files: meidbench download {self.name} --accept-licence"
        if self.name in EPIC_DATASETS:
            return f"Get the official files: {self.licence.url}"
        return f"Get the files named in the manifest of {self.title} from their source again."


def _manifest_text(dataset: str, ending: str) -> str:
    """Read one of a dataset's two files, from the package by name or from beside a manifest given as a path."""
    if dataset in BENCHMARKS:
        return resources.files("meidbench.splits").joinpath(dataset + ending).read_text(encoding="utf-8")
    path = Path(dataset)
    if path.suffix != ".toml":
        known = f"{', '.join(BENCHMARKS)}, or the path of a manifest (.toml)"
        raise MeidbenchError(f"unknown dataset {dataset!r}{suggest(dataset, BENCHMARKS)}; known: {known}")
    try:
        return path.with_suffix(ending).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MeidbenchError(f"cannot read {path.with_suffix(ending)}: {error}") from None


@cache
def load_manifest(dataset: str) -> Manifest:
    """Read the manifest of a benchmark.

    ``dataset`` is one of ``meidbench.names.BENCHMARKS``, or the path of the user's own manifest
    (``NAME.toml``). A ``MeidbenchError`` names all problems at once.

    >>> manifest = load_manifest("charadeslt")
    >>> manifest.num_classes, manifest.head_above, manifest.tail_up_to
    (157, 100, 20)
    """
    text = _manifest_text(dataset, ".toml")
    problems: list[str] = []
    manifest = Manifest()
    readers: dict[Any, FieldReader] = {dict[str, ReleasedList]: _read_released, dict[str, float]: _read_statistics}
    readers[dict[str, str]] = read_group_names
    try:
        manifest = read_dataclass(Manifest, parse_toml(text), problems, readers=readers)
    except ValueError as error:
        problems.append(str(error))
    if problems := problems or _find_contradictions(manifest):
        plan = (
            ""
            if dataset in BENCHMARKS
            else "\nA plan of a new split has table, format or benchmark instead of these keys."
        )
        raise MeidbenchError(f"{dataset} is not a manifest:\n{bullet_list(problems)}{plan}")
    return manifest


def _read_released(name: str, value: Any, default: Any, prefix: str, problems: list[str]) -> dict[str, ReleasedList]:
    lists = value if isinstance(value, dict) else {}
    return {
        subset: read_dataclass(ReleasedList, lists.get(subset), problems, f"{prefix}{name}.{subset}.")
        for subset in SUBSETS
    }


def _read_statistics(name: str, value: Any, default: Any, prefix: str, problems: list[str]) -> dict[str, float]:
    known = PAPER_FACTS if name == "paper" else EXPECTED_FACTS
    facts = value if isinstance(value, dict) else {"": value}
    if strange := sorted(set(facts) - set(known)):
        problems.append(f"unknown statistics in {name}: {', '.join(strange)}; known: {', '.join(known)}")
    if not all(type(number) in (int, float) for number in facts.values()):
        problems.append(f"the statistics in {name} must be numbers")
    if name == "paper" and len(facts) < len(known):
        problems.append(f"paper must have {', '.join(known)}")
    return facts


def _find_contradictions(manifest: Manifest) -> list[str]:
    """Return the problems of a manifest that would fail, or write elsewhere, later on."""
    problems = []
    names = [manifest.name, manifest.annotations, *(entry.file for entry in manifest.released.values())]
    names += manifest.file_names
    for name in names:
        # Files of these names are read and written: none may lead out of its folder.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            problems.append(f"{name!r} is not a plain file name")
    if not 0 < manifest.num_classes < 1 << 15:
        problems.append(f"num_classes must be from 1 to 32767, got {manifest.num_classes}")
    for name in ("head_above", "tail_up_to"):
        if (getattr(manifest, name) is None) != (manifest.groups == "list"):
            what = "must be left out: the annotations have the groups" if manifest.groups == "list" else "is missing"
            problems.append(f"{name} {what}")
    if (found := manifest.thresholds) and not 0 <= found.tail_up_to <= found.head_above:
        problems.append("tail_up_to must not lie above head_above")
    if not manifest.files or len({entry.source for entry in manifest.files}) < len(manifest.files):
        problems.append("files must be given, each of another source")
    return problems


@cache
def load_assignment(dataset: str) -> Assignment:
    """Read the released assignment of a benchmark; ``dataset`` and errors as in ``load_manifest``."""
    text = _manifest_text(dataset, ".assignment.json")
    try:
        content = json.loads(text)
        for name in ("source_positives", "positives"):
            content[name] = {key: tuple(counts) for key, counts in content[name].items()}
        for name in {"id_sketch", "row_sketch", *({"pool_sketch"} & set(content))}:
            content[name] = tuple((count, total) for count, total in content[name])
        assignment = Assignment(**{**content, "symbols": "".join(content["symbols"])})
        _check_assignment(assignment, load_manifest(dataset))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MeidbenchError(f"the assignment of {dataset} is damaged: {type(error).__name__}: {error}") from None
    return assignment


def _check_assignment(assignment: Assignment, manifest: Manifest) -> None:
    """Refuse an assignment that does not belong to its manifest."""
    if set(assignment.symbols) - set(".tve") or len(assignment.symbols) != sum(assignment.source_videos.values()):
        raise ValueError("it must have one symbol of '.tve' for each video")
    sources = {entry.source for entry in manifest.files}
    by_source = (assignment.source_videos, assignment.source_digests, assignment.source_positives)
    if any(set(facts) != sources for facts in by_source) or set(assignment.positives) != set(SUBSETS):
        raise ValueError(f"its sources must be {', '.join(sorted(sources))} and its subsets {', '.join(SUBSETS)}")
    digests = [getattr(assignment, f"{name}_digest") for name in ("ids", "names", "split", "pool", "content")]
    if not assignment.content_digest and manifest.thresholds is None:
        raise ValueError("it needs the content digest, because the groups of its classes are by list")
    if not all(isinstance(digest, str) for digest in (*digests, *assignment.source_digests.values())):
        raise ValueError("its digests must be text")
    counts = [*assignment.positives.values(), *assignment.source_positives.values()]
    if any(len(row) != manifest.num_classes or not all(type(count) is int for count in row) for row in counts):
        raise ValueError(f"its counts must be integers for {manifest.num_classes} classes")
    pool = (assignment.pool_sketch,) if assignment.pool_digest else ()
    for cells in (assignment.id_sketch, assignment.row_sketch, *pool):
        if len(cells) != CELLS or not all(type(count) is int and int(total, 16) >= 0 for count, total in cells):
            raise ValueError(f"its sketches must have {CELLS} cells of a count and a hexadecimal sum")


def home() -> Path:
    """Return the folder named by ``MEIDBENCH_HOME``, else the platform's cache folder; it may not exist yet."""
    if configured := os.environ.get("MEIDBENCH_HOME"):
        try:
            folder = Path(configured).expanduser()
        except RuntimeError as error:
            raise MeidbenchError(f"MEIDBENCH_HOME is {configured!r}: {error}") from None
        if folder.exists() and not folder.is_dir():
            raise MeidbenchError(f"MEIDBENCH_HOME is {configured!r}, which is a file; set it to a folder")
        return folder
    from platformdirs import user_cache_path

    return user_cache_path("meidbench", appauthor=False)


def annotations_folder(source: str) -> Path:
    """Return the folder of the annotations of a source, such as ``charades``."""
    return home() / "annotations" / source


def split_path(dataset: str, variant: str = RELEASED, file_format: str = "parquet") -> Path:
    """Return the path of the built split of a dataset."""
    stem = dataset if variant in (RELEASED, OFFICIAL) else f"{dataset}-{variant}"
    return home() / "splits" / f"{stem}.{file_format}"


# --- digests, and sketches of sets of videos ------------------------------------------------------------------------

ID_BYTES = 16
_TAG_BYTES = 8
_CHECK_BYTES = 4
_PLACES = struct.Struct(f">{_CHECK_BYTES}x3I")  # in a digest, after the check: one cell in each third
_THIRD = CELLS // 3
_CELL_BYTES = ID_BYTES + _TAG_BYTES + _CHECK_BYTES

Row = tuple[str, bytes]


def lines_digest(lines: Iterable[str]) -> str:
    """Return the sha256 of lines, each ended by LF, in UTF-8."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def row_tag(*fields: str) -> bytes:
    """Return 8 bytes that stand for the content of a row."""
    return hashlib.sha256("\t".join(fields).encode()).digest()[:_TAG_BYTES]


class RowSketch:
    """A sketch of a set of rows (video id of at most 16 bytes, tag of 8 bytes as ``row_tag`` makes it).

    >>> published = RowSketch([("A1", row_tag("3")), ("B2", row_tag("5"))])
    >>> own = RowSketch([("A1", row_tag("3")), ("B2", row_tag("6"))])
    >>> missing, extra, complete = published.difference(own)
    >>> [video for video, _ in missing], [video for video, _ in extra], complete
    (['B2'], ['B2'], True)
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.counts = [0] * CELLS
        self.sums = [0] * CELLS
        for video_id, tag in rows:
            self._add(video_id.encode().ljust(ID_BYTES, b"\0") + tag, 1)

    @classmethod
    def from_cells(cls, cells: Iterable[tuple[int, str]]) -> "RowSketch":
        """Rebuild a sketch from the result of ``cells``."""
        sketch = cls()
        for place, (count, total) in enumerate(cells):
            sketch.counts[place], sketch.sums[place] = count, int(total, 16)
        return sketch

    def cells(self) -> list[tuple[int, str]]:
        """Return count and sum (hexadecimal) of each cell."""
        return [(count, f"{total:0{2 * _CELL_BYTES}x}") for count, total in zip(self.counts, self.sums, strict=True)]

    def _add(self, payload: bytes, sign: int) -> None:
        digest = hashlib.sha256(payload).digest()
        item = int.from_bytes(payload + digest[:_CHECK_BYTES], "big")
        first, second, third = _PLACES.unpack_from(digest)
        for place in (first % _THIRD, _THIRD + second % _THIRD, 2 * _THIRD + third % _THIRD):
            self.counts[place] += sign
            self.sums[place] ^= item

    def _single_payload(self, place: int) -> bytes | None:
        """Return the row of a cell that holds exactly one."""
        if abs(self.counts[place]) != 1:
            return None
        content = self.sums[place].to_bytes(_CELL_BYTES, "big")
        payload, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        return payload if hashlib.sha256(payload).digest()[:_CHECK_BYTES] == check else None

    def difference(self, other: "RowSketch") -> tuple[list[Row], list[Row], bool]:
        """Return the rows that only this and only the other set has, sorted by id, and whether these are all.

        Where too many rows differ, only some are found: all of 140 differing rows in nine cases of ten, all of 180 in
        eight.
        """
        rest = RowSketch()
        rest.counts = [a - b for a, b in zip(self.counts, other.counts, strict=True)]
        rest.sums = [a ^ b for a, b in zip(self.sums, other.sums, strict=True)]
        only_here: list[Row] = []
        only_there: list[Row] = []
        found = True
        while found:
            found = False
            for place in range(CELLS):
                if (payload := rest._single_payload(place)) is None:
                    continue
                sign = rest.counts[place]
                video_id = payload[:ID_BYTES].rstrip(b"\0").decode(errors="replace")
                (only_here if sign > 0 else only_there).append((video_id, payload[ID_BYTES:]))
                rest._add(payload, -sign)
                found = True
        complete = not any(rest.counts) and not any(rest.sums)
        return sorted(only_here), sorted(only_there), complete
