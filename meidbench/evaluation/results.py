"""What an evaluation gives: named, immutable, and written the same every time."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from meidbench.splits.split import GROUP_NAMES

FORMAT_VERSION = 1
GROUPS_SHOWN = ("overall", *GROUP_NAMES)


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


@dataclass(frozen=True)
class MeanAP:
    """Mean average precision over the classes of each group that have a positive; NaN for a group without any."""

    overall: float
    head: float
    medium: float
    tail: float


@dataclass(frozen=True)
class Accuracy:
    """Share of the videos of which one of the k best classes is a label."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Group:
    """Classes of a group that have a positive in the subset, and how many positives they have together."""

    classes: int
    positives: int


@dataclass(frozen=True)
class ClassResult:
    """One class: index, name, group, training videos, positives in the subset, AP (NaN without positives)."""

    index: int
    name: str
    group: str
    train_count: int
    positives: int
    ap: float


@dataclass(frozen=True)
class Diagnostics:
    """What to know of the scores.

    Attributes
    ----------
    videos : int
        Videos of the subset.
    classes_without_positives : int
        Left out of all means; by the protocol apmeter, counted as 0.
    tied_score_fraction : float
        Share of the positives that have their score for the class in common with another video. Other ties change
        nothing.
    constant_classes : int
        Classes that have one score for all videos.
    score_dtype : str
        NumPy's name.
    """

    videos: int
    classes_without_positives: int
    tied_score_fraction: float
    constant_classes: int
    score_dtype: str


@dataclass(frozen=True)
class Intervals:
    """How the intervals were made, and those of the means by group and of each class by index."""

    method: str
    replicates: int
    seed: int
    level: float
    mAP: dict[str, Interval]
    per_class: tuple[Interval, ...]


@dataclass(frozen=True)
class Result:
    """The evaluation of one prediction file on one subset of a split.

    ``other_protocols`` has the means by every other protocol that gives another value for any group.
    """

    dataset: str
    variant: str
    subset: str
    split_digest: str
    protocol: str
    mAP: MeanAP
    accuracy: Accuracy
    groups: dict[str, Group]
    diagnostics: Diagnostics
    per_class: tuple[ClassResult, ...]
    other_protocols: dict[str, MeanAP]
    warnings: tuple[str, ...] = ()
    intervals: Intervals | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the result as JSON: keys sorted, no time or host in it, null for what is not defined."""
        content = asdict(self)
        for entry in content["per_class"]:
            entry["class"] = entry.pop("index")
        return as_json(content)


def as_json(content: Any) -> str:
    """Return content as JSON text with sorted keys, the same for the same content; NaN becomes null."""
    text = json.dumps(_without_nan(content), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
