"""The facts that a split file holds about itself, and the digest of everything that a score depends on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from meidbench.annotations.base import FileRecord
from meidbench.checks import read_dataclass
from meidbench.errors import SplitError
from meidbench.splits.manifests import lines_digest

FORMAT_VERSION = 2
_KNOWN_VERSIONS = (1, FORMAT_VERSION)  # files of version 1 have no content digest


@dataclass(frozen=True)
class SplitMetadata:
    """The facts that a split file holds about itself (schema metadata key ``meidbench``)."""

    dataset: str = ""
    variant: str = ""
    seed: int | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    head_above: int = 0
    tail_up_to: int = 0
    train_counts: tuple[int, ...] = ()
    digest: str = ""
    content_digest: str = ""
    other_annotations: bool = False
    sources: tuple[FileRecord, ...] = ()
    format_version: int = FORMAT_VERSION

    _least: ClassVar = dict.fromkeys(("seed", "num_classes", "head_above", "tail_up_to"), 0)
    _required: ClassVar = (
        *("dataset", "variant", "seed", "num_classes", "class_names", "head_above", "tail_up_to", "train_counts"),
        *("digest", "sources", "format_version"),
    )

    def to_json(self) -> str:
        """Return the metadata as JSON with sorted keys."""
        facts = asdict(self)
        if not self.other_annotations:
            del facts["other_annotations"]
        return json.dumps(facts, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "SplitMetadata":
        """Parse metadata; missing, unknown and mistyped keys raise ``SplitError``, all named at once."""
        problems: list[str] = []
        metadata = cls()
        try:
            facts = json.loads(text)
            json.dumps(facts, ensure_ascii=False).encode()  # refuses a lone surrogate, which no file can hold
            version = facts.get("format_version", 1) if isinstance(facts, dict) else 1
            if version not in _KNOWN_VERSIONS:  # first, because another version may have other keys
                known = " and ".join(map(str, _KNOWN_VERSIONS))
                raise SplitError(f"it has the format version {version!r}, this meidbench reads {known}: upgrade it")
            metadata = read_dataclass(cls, facts, problems)
        except SplitError:
            raise
        except (ValueError, RecursionError) as error:
            problems.append(str(error))
        if problems := problems or metadata._contradictions():
            raise SplitError(f"its metadata is not that of a split file: {'; '.join(problems)}")
        return metadata

    def _contradictions(self) -> list[str]:
        problems = []
        if not (names := len(self.class_names)) == (counts := len(self.train_counts)) == self.num_classes:
            what = f"there are {names} class names and {counts} training counts"
            problems.append(f"num_classes is {self.num_classes}, but {what}")
        if min(self.train_counts, default=0) < 0:
            problems.append("train_counts must not be negative")
        if self.tail_up_to > self.head_above:
            problems.append(f"tail_up_to {self.tail_up_to} is above head_above {self.head_above}")
        if any("\n" in name for name in self.class_names):
            problems.append("class names must be text in one line")
        if self.format_version > 1 and not self.content_digest:
            problems.append("content_digest is missing")
        return problems


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the frequency groups: head n > ``head_above`` training videos, tail n <= ``tail_up_to``."""

    head_above: int
    tail_up_to: int

    def __str__(self) -> str:
        return f"head above {self.head_above:,} training videos, tail up to {self.tail_up_to:,}"


def content_digest(rows: str, names: str, groups: Sequence[str]) -> str:
    """Return the sha256 over everything that a score depends on besides the predictions.

    It is over lines that end with LF: ``rows`` (the digest of ids, subsets and labels), ``names`` (the sha256 of the
    class names, one per line, each ended by LF), and the group of each class by index.
    """
    return lines_digest([rows, names, *groups])
