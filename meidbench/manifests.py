"""Facts about the benchmarks: what they are made from, under which licence, and how to tell that a copy is right.

The facts are data (``splits/NAME.toml``, written by people) and measurements (``splits/NAME.assignment.json``,
written by ``python -m meidbench.splits.make`` from the released lists). Neither holds a video id or a label.
"""

import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from meidbench.errors import MeidbenchError
from meidbench.reconciliation import CELLS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
        ``meidbench.split.rows_digest`` has it.
    source_videos, source_digests, source_positives : dict
        Number of videos, sha256 of the sorted ids, and videos a class, by official subset.
    positives : dict
        Videos a class, by subset.
    id_sketch, row_sketch : tuple of (int, str)
        Cells of ``meidbench.reconciliation.Sketch`` over (id, official subset) of all videos and (id, labels) of
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
    def remedy(self) -> str:
        """What a user can do whose annotation files are missing or wrong."""
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
