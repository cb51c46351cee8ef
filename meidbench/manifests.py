"""Facts about the benchmarks: what they are made from, under which licence, and how to tell that a copy is right.

The facts are data (``splits/NAME.toml``, written by people) and measurements (``splits/NAME.assignment.json``,
written by ``python -m meidbench.splits.make`` from the released lists). Neither holds a video id or a label.
"""

import json
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from meidbench.errors import MeidbenchError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUBSETS = ("train", "val", "test")
DATASETS = ("videolt", "charadeslt", "charadesegolt")


@dataclass(frozen=True)
class SourceFile:
    """An official annotation file; ``source`` is the official subset it holds, empty for the class names."""

    name: str
    source: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """A file to fetch; an archive (``.zip``) is unpacked."""

    url: str
    bytes: int
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
        if self.downloads:
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
        return _parse_manifest(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
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


@cache
def load_assignment(dataset: str) -> Assignment:
    """Read the released assignment of a benchmark; ``dataset`` and errors as in ``load_manifest``."""
    text = _manifest_text(dataset, ".assignment.json")
    try:
        return _parse_assignment(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
