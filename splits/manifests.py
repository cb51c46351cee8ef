"""Facts about the benchmarks: what they are made from, under which licence, and how to tell that a copy is right.

The facts are data (``splits/NAME.toml``, written by people) and measurements (``splits/NAME.assignment.json``,
written by ``python -m meidbench.splits.make`` from the released lists). Neither holds a video id or a label.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from meidbench.errors import MeidbenchError, bullet_list

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


CELLS = 240
_ID_BYTES = 16
_TAG_BYTES = 8
_CHECK_BYTES = 4
_CELL_BYTES = _ID_BYTES + _TAG_BYTES + _CHECK_BYTES

Row = tuple[str, bytes]


def row_tag(*fields: str) -> bytes:
    """Return 8 bytes that stand for the content of a row."""
    return hashlib.sha256("\t".join(fields).encode()).digest()[:_TAG_BYTES]


class Sketch:
    """Sums over a set of rows (video id of at most 16 bytes, tag of 8 bytes).

    Parameters
    ----------
    rows : iterable of (str, bytes)
        ``row_tag`` makes the tags.

    Examples
    --------
    >>> published = Sketch([("A1", row_tag("3")), ("B2", row_tag("5"))])
    >>> at_hand = Sketch([("A1", row_tag("3")), ("B2", row_tag("6"))])
    >>> missing, extra, complete = published.difference(at_hand)
    >>> [video for video, _ in missing], [video for video, _ in extra], complete
    (['B2'], ['B2'], True)
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.counts = [0] * CELLS
        self.sums = [0] * CELLS
        for video_id, tag in rows:
            self._add(video_id.encode().ljust(_ID_BYTES, b"\0") + tag, 1)

    @classmethod
    def from_cells(cls, cells: Iterable[tuple[int, str]]) -> "Sketch":
        """Rebuild a sketch from what ``cells`` returned."""
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
        third = CELLS // 3
        for part in range(3):
            place = part * third + int.from_bytes(digest[4 + 4 * part : 8 + 4 * part], "big") % third
            self.counts[place] += sign
            self.sums[place] ^= item

    def _pure_payload(self, place: int) -> bytes | None:
        """Return the only row of a cell, if it has but one."""
        if abs(self.counts[place]) != 1:
            return None
        content = self.sums[place].to_bytes(_CELL_BYTES, "big")
        payload, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        return payload if hashlib.sha256(payload).digest()[:_CHECK_BYTES] == check else None

    def difference(self, other: "Sketch") -> tuple[list[Row], list[Row], bool]:
        """Compare with the sketch of another set.

        Returns
        -------
        only_here, only_there : list of (str, bytes)
            The rows that only one of the two sets has, sorted by id.
        complete : bool
            False where the sets differ in more rows than can be told apart; the lists are then a part.
        """
        rest = Sketch()
        rest.counts = [a - b for a, b in zip(self.counts, other.counts, strict=True)]
        rest.sums = [a ^ b for a, b in zip(self.sums, other.sums, strict=True)]
        only_here: list[Row] = []
        only_there: list[Row] = []
        peeled = True
        while peeled:
            peeled = False
            for place in range(CELLS):
                payload = rest._pure_payload(place)
                if payload is None:
                    continue
                sign = rest.counts[place]
                video_id = payload[:_ID_BYTES].rstrip(b"\0").decode(errors="replace")
                (only_here if sign > 0 else only_there).append((video_id, payload[_ID_BYTES:]))
                rest._add(payload, -sign)
                peeled = True
        complete = not any(rest.counts) and not any(rest.sums)
        return sorted(only_here), sorted(only_there), complete


SUBSETS = ("train", "val", "test")
DATASETS = ("videolt", "charadeslt", "charadesegolt")
PAPER_FACTS = ("head", "medium", "tail", "train", "val", "test", "labels_per_video", "imbalance_ratio")
EXPECTED_FACTS = (
    *PAPER_FACTS,
    *("most_frequent", "least_frequent", "least_positives_val", "least_positives_test"),
    *("labels_per_video_train", "labels_per_video_val", "labels_per_video_test"),
)


@dataclass(frozen=True)
class SourceFile:
    """An official annotation file; ``source`` is the official subset it holds, empty for the class names."""

    name: str
    source: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """A file to fetch; an archive (``.zip``) is unpacked.

    ``bytes`` is None where the publisher gives no size, and ``sha256`` may be the beginning of the digest only.
    """

    url: str
    bytes: int | None
    sha256: str


@dataclass(frozen=True)
class ReleasedList:
    """The list of one subset as the split's authors released it."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Licence:
    """Under which terms the annotations may be used, and who made the split."""

    name: str
    url: str
    splits: str
    summary: tuple[str, ...]


@dataclass(frozen=True)
class Assignment:
    """Which video goes to which subset, without an id or a label.

    Attributes
    ----------
    symbols : str
        One symbol a video of the pooled official annotations, sorted by id in code-point order:
        ``.`` unused, ``t`` train, ``v`` val, ``e`` test.
    ids_digest, names_digest, split_digest : str
        sha256 of the sorted ids and of the class names (one a line), and the split's digest as
        ``meidbench.splits.split.rows_digest`` has it.
    source_videos, source_digests, source_positives : dict
        Number of videos, sha256 of the sorted ids, and videos a class, by official subset.
    positives : dict
        Videos a class, by subset.
    id_sketch, row_sketch : tuple of (int, str)
        Cells of ``meidbench.splits.manifests.Sketch`` over (id, official subset) of all videos and (id, labels) of
        those used, with which differing videos can be named.
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


@dataclass(frozen=True)
class Manifest:
    """All facts about one benchmark."""

    name: str
    title: str
    annotations: str
    reader: str
    num_classes: int
    head_above: int
    tail_up_to: int
    licence: Licence
    files: tuple[SourceFile, ...]
    class_file: SourceFile
    downloads: tuple[Download, ...]
    released: dict[str, ReleasedList]
    paper: dict[str, float]
    expected: dict[str, float]
    defects: tuple[str, ...]

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
        return f"Get the files named in the manifest of {self.title} from their source again."


def _manifest_text(dataset: str, ending: str) -> str:
    """Read one of a dataset's two files, from the package by name or from beside a manifest given as a path."""
    if dataset in DATASETS:
        return resources.files("meidbench.splits").joinpath(dataset + ending).read_text(encoding="utf-8")
    path = Path(dataset)
    if path.suffix != ".toml":
        raise MeidbenchError(
            f"unknown dataset {dataset!r}; known: {', '.join(DATASETS)}, or the path of a manifest (.toml)"
        )
    try:
        return path.with_suffix(ending).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MeidbenchError(f"cannot read {path.with_suffix(ending)}: {error}") from None


@cache
def load_manifest(dataset: str) -> Manifest:
    """Read the manifest of a benchmark.

    Parameters
    ----------
    dataset : str
        ``videolt``, ``charadeslt`` or ``charadesegolt``, or the path of a manifest of one's own (``NAME.toml``).

    Raises
    ------
    MeidbenchError
        There is none, or it cannot be read.

    Examples
    --------
    >>> manifest = load_manifest("charadeslt")
    >>> manifest.num_classes, manifest.head_above, manifest.tail_up_to
    (157, 100, 20)
    """
    text = _manifest_text(dataset, ".toml")
    try:
        manifest = _parse_manifest(tomllib.loads(text))
        _check_manifest(manifest)
        return manifest
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MeidbenchError(f"{dataset} is not a manifest: {type(error).__name__}: {error}") from None


def _parse_manifest(facts: dict[str, Any]) -> Manifest:
    licence = facts["licence"]
    return Manifest(
        name=facts["name"],
        title=facts["title"],
        annotations=facts["annotations"],
        reader=facts["reader"],
        num_classes=facts["num_classes"],
        head_above=facts["head_above"],
        tail_up_to=facts["tail_up_to"],
        licence=Licence(**{**licence, "summary": tuple(licence["summary"])}),
        files=tuple(SourceFile(**entry) for entry in facts["files"]),
        class_file=SourceFile(source="", **facts["class_file"]),
        downloads=tuple(Download(**entry) for entry in facts.get("downloads", [])),
        released={subset: ReleasedList(**facts["released"][subset]) for subset in SUBSETS},
        paper=facts.get("paper", {}),
        expected=facts.get("expected", {}),
        defects=tuple(entry["what"] for entry in facts.get("defects", [])),
    )


def _check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest that would fail, or write elsewhere, later on; ValueError says why."""
    names = [manifest.name, manifest.annotations, *(entry.file for entry in manifest.released.values())]
    names += [entry.name for entry in (*manifest.files, manifest.class_file)]
    for name in names:
        # Files of these names are read and written: none may lead out of its folder.
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise ValueError(f"{name!r} is no plain file name")
    texts = [manifest.title, manifest.reader, manifest.licence.name, manifest.licence.url, *manifest.defects]
    texts += [entry.source for entry in manifest.files]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("title, reader, licence, defects and sources must be text")
    numbers = (manifest.num_classes, manifest.head_above, manifest.tail_up_to)
    if not all(type(number) is int for number in numbers) or not 0 < manifest.num_classes < 1 << 15:
        raise ValueError("num_classes (1 to 32767), head_above and tail_up_to must be integers")
    if not 0 <= manifest.tail_up_to <= manifest.head_above:
        raise ValueError("tail_up_to must not lie above head_above")
    if not manifest.files or len({entry.source for entry in manifest.files}) < len(manifest.files):
        raise ValueError("files must be given, each of another source")
    for facts, known in ((manifest.paper, PAPER_FACTS), (manifest.expected, EXPECTED_FACTS)):
        if strange := set(facts) - set(known):
            raise ValueError(f"unknown statistics: {', '.join(sorted(strange))}")
        if not all(type(value) in (int, float) for value in facts.values()):
            raise ValueError("statistics must be numbers")
    if manifest.paper and set(manifest.paper) != set(PAPER_FACTS):
        raise ValueError(f"the paper's row must have {', '.join(PAPER_FACTS)}")


@cache
def load_assignment(dataset: str) -> Assignment:
    """Read the released assignment of a benchmark; ``dataset`` and errors as in ``load_manifest``."""
    text = _manifest_text(dataset, ".assignment.json")
    try:
        assignment = _parse_assignment(json.loads(text))
        _check_assignment(assignment, load_manifest(dataset))
        return assignment
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MeidbenchError(f"the assignment of {dataset} is damaged: {type(error).__name__}: {error}") from None


def _parse_assignment(content: dict[str, Any]) -> Assignment:
    return Assignment(
        symbols="".join(content["symbols"]),
        ids_digest=content["ids_digest"],
        names_digest=content["names_digest"],
        split_digest=content["split_digest"],
        source_videos=content["source_videos"],
        source_digests=content["source_digests"],
        source_positives={source: tuple(counts) for source, counts in content["source_positives"].items()},
        positives={subset: tuple(counts) for subset, counts in content["positives"].items()},
        id_sketch=tuple((count, total) for count, total in content["id_sketch"]),
        row_sketch=tuple((count, total) for count, total in content["row_sketch"]),
    )


def _check_assignment(assignment: Assignment, manifest: Manifest) -> None:
    """Refuse an assignment that does not fit its manifest; ValueError says why."""
    if set(assignment.symbols) - set(".tve") or len(assignment.symbols) != sum(assignment.source_videos.values()):
        raise ValueError("it must have one symbol of '.tve' for each video")
    sources = {entry.source for entry in manifest.files}
    by_source = (assignment.source_videos, assignment.source_digests, assignment.source_positives)
    if any(set(facts) != sources for facts in by_source) or set(assignment.positives) != set(SUBSETS):
        raise ValueError(f"its sources must be {', '.join(sorted(sources))} and its subsets {', '.join(SUBSETS)}")
    counts = [*assignment.positives.values(), *assignment.source_positives.values()]
    if any(len(row) != manifest.num_classes or not all(type(count) is int for count in row) for row in counts):
        raise ValueError(f"its counts must be integers for {manifest.num_classes} classes")
    for cells in (assignment.id_sketch, assignment.row_sketch):
        if len(cells) != CELLS or not all(type(count) is int and int(total, 16) >= 0 for count, total in cells):
            raise ValueError(f"its sketches must have {CELLS} cells of a count and a hexadecimal sum")


def home() -> Path:
    """Return the folder named by ``MEIDBENCH_HOME``, else the platform's cache folder; it may not exist yet."""
    configured = os.environ.get("MEIDBENCH_HOME")
    if configured:
        try:
            return Path(configured).expanduser()
        except RuntimeError as error:
            raise MeidbenchError(f"MEIDBENCH_HOME is {configured!r}: {error}") from None
    from platformdirs import user_cache_path

    return user_cache_path("meidbench", appauthor=False)


def annotations_folder(source: str) -> Path:
    """Return where the annotations of a source (``charades``, ``charadesego``, ``videolt``) are kept."""
    return home() / "annotations" / source


def split_path(dataset: str, variant: str = "released", file_format: str = "parquet") -> Path:
    """Return where the built split of a dataset is kept."""
    stem = dataset if variant == "released" else f"{dataset}-{variant}"
    return home() / "splits" / f"{stem}.{file_format}"
