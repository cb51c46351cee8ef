"""The facts that a split file holds about itself, and the digest of everything that a score depends on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from meidbench.annotations.base import FileRecord
from meidbench.checks import FieldReader, read_dataclass
from meidbench.errors import SplitError
from meidbench.splits.groups import Thresholds, find_group_problems, read_group_names
from meidbench.splits.manifests import lines_digest

# Files of version 1 have no content digest. Only files with groups by list, or with names of groups, are of version 3,
# so that those of version 2 keep their bytes, and their readers ask for an upgrade instead of naming unknown keys.
FORMAT_VERSION = 3
_KNOWN_VERSIONS = (1, 2, FORMAT_VERSION)
_ADDED = ("other_annotations", "groups", "group_names")  # not in the JSON where they are empty


@dataclass(frozen=True)
class SplitMetadata:
    """The facts that a split file holds about itself (schema metadata key ``meidbench``).

    The groups of the classes are by the thresholds ``head_above`` and ``tail_up_to``, or by the list ``groups``, which
    has the group of each class by index; the thresholds are None then. ``group_names`` has a benchmark's own names of
    groups, such as ``{"medium": "middle"}``, for tables and pages.
    """

    dataset: str = ""
    variant: str = ""
    seed: int | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    head_above: int | None = 0
    tail_up_to: int | None = 0
    train_counts: tuple[int, ...] = ()
    digest: str = ""
    content_digest: str = ""
    other_annotations: bool = False
    sources: tuple[FileRecord, ...] = ()
    groups: tuple[str, ...] = ()
    group_names: dict[str, str] = field(default_factory=dict)
    format_version: int = 2

    _least: ClassVar = dict.fromkeys(("seed", "num_classes", "head_above", "tail_up_to"), 0)
    _required: ClassVar = (
        *("dataset", "variant", "seed", "num_classes", "class_names", "head_above", "tail_up_to", "train_counts"),
        *("digest", "sources", "format_version"),
    )

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds of head and tail, None where a list gives the groups."""
        return Thresholds.from_numbers(self.head_above, self.tail_up_to)

    @property
    def written_version(self) -> int:
        """The lowest format version, from 2 on, that has all of these facts."""
        return FORMAT_VERSION if self.groups or self.group_names else 2

    def to_json(self) -> str:
        """Return the metadata as JSON with sorted keys."""
        facts = {name: fact for name, fact in asdict(self).items() if fact or name not in _ADDED}
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
                known = f"{', '.join(map(str, _KNOWN_VERSIONS[:-1]))} and {FORMAT_VERSION}"
                raise SplitError(f"it has the format version {version!r}, this meidbench reads {known}: upgrade it")
            readers: dict[Any, FieldReader] = {dict[str, str]: read_group_names}
            metadata = read_dataclass(cls, facts, problems, readers=readers)
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
        if self.groups:
            problems += find_group_problems(self.groups, self.class_names)
        given = [number is not None for number in (self.head_above, self.tail_up_to)]
        if given != [not self.groups] * 2:
            problems.append("it needs either groups or both head_above and tail_up_to")
        elif (thresholds := self.thresholds) and thresholds.tail_up_to > thresholds.head_above:
            problems.append(f"tail_up_to {self.tail_up_to} is above head_above {self.head_above}")
        if any("\n" in name for name in self.class_names):
            problems.append("class names must be text in one line")
        if self.format_version > 1 and not self.content_digest:
            problems.append("content_digest is missing")
        if self.format_version < self.written_version > 2:
            problems.append(f"groups and group_names need the format version {FORMAT_VERSION}")
        return problems


def content_digest(rows: str, names: str, groups: Sequence[str]) -> str:
    """Return the sha256 over everything that a score depends on besides the predictions.

    It is over lines that end with LF: ``rows`` (the digest of ids, subsets and labels), ``names`` (the sha256 of the
    class names, one per line, each ended by LF), and the group of each class by index.
    """
    return lines_digest([rows, names, *groups])
