"""The result of an evaluation: named, immutable, and always written in the same way."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from meidbench.files import render_json
from meidbench.splits.metadata import Thresholds
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
    """Mean average precision per group, over its classes that have a positive; NaN for a group without such a class."""

    overall: float
    head: float
    medium: float
    tail: float


@dataclass(frozen=True)
class Accuracy:
    """Share of the videos that have a label among their k best classes."""

    top1: float = field(metadata={"title": "top-1"})
    top5: float = field(metadata={"title": "top-5"})


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures besides mAP, of a ``Result`` and of each method of a ``Comparison``.

    JSON, the tables and the page follow from these fields. A field is a dataclass of numbers: with one number per
    name in ``GROUPS_SHOWN``, or with numbers that have a ``title``. Its ``meaning`` explains it on the page.
    """

    accuracy: Accuracy = field(
        metadata={"meaning": "top-1 and top-5: share of the videos that have a label among their 1 or 5 best classes"}
    )


@dataclass(frozen=True)
class Column:
    """One number of a measure: its field in ``Measures``, its name there, and the title of its column in a table."""

    measure: str
    key: str
    title: str

    def value(self, measures: Measures) -> float:
        """Return the number."""
        number: float = getattr(getattr(measures, self.measure), self.key)
        return number


_MEASURE_TYPES: dict[str, Any] = {measure.name: measure.type for measure in fields(Measures)}
COLUMNS = tuple(
    Column(measure, number.name, number.metadata.get("title", f"{measure} {number.name}"))
    for measure, kind in _MEASURE_TYPES.items()
    for number in fields(kind)
)
MEANINGS = tuple(measure.metadata["meaning"] for measure in fields(Measures))


def average_measures(results: Sequence[Measures]) -> dict[str, Any]:
    """Return the fields of ``Measures``, averaged over several results."""
    averages: dict[str, dict[str, float]] = {}
    for column in COLUMNS:
        mean = float(np.mean([column.value(result) for result in results]))
        averages.setdefault(column.measure, {})[column.key] = mean
    return {measure: _MEASURE_TYPES[measure](**numbers) for measure, numbers in averages.items()}


@dataclass(frozen=True)
class Group:
    """Number of classes of a group that have a positive in the subset, and of their positives together."""

    classes: int
    positives: int


@dataclass(frozen=True)
class ClassFacts:
    """A class: index, name, group, training videos, positives in the subset."""

    index: int
    name: str
    group: str
    train_count: int
    positives: int


@dataclass(frozen=True)
class ClassResult(ClassFacts):
    """A class with its AP (NaN without positives)."""

    ap: float


@dataclass(frozen=True)
class Diagnostics:
    """Facts about the scores of a subset."""

    videos: int
    classes_without_positives: int  # left out of all means; the protocol apmeter counts them as 0
    tied_score_fraction: float  # share of the positives with the score of another video; other ties change nothing
    constant_classes: int  # classes with the same score for all videos
    score_dtype: str  # NumPy's name


@dataclass(frozen=True)
class Intervals:
    """How the intervals were made, the intervals of the means per group, and of each class by index."""

    method: str
    replicates: int
    seed: int
    level: float
    mAP: dict[str, Interval]
    per_class: tuple[Interval, ...]


@dataclass(frozen=True)
class CrossCheck:
    """Average precisions computed again with scikit-learn: how many, the largest difference, and its class."""

    classes: int
    largest_difference: float
    class_index: int

    def __str__(self) -> str:
        largest = f"largest difference {self.largest_difference:.1e} (class {self.class_index})"
        return f"scikit-learn gives the same average precision for {self.classes:,} classes: {largest}"


@dataclass(frozen=True, kw_only=True)
class Result(Measures):
    """The evaluation of one prediction file on one subset of a split.

    ``other_protocols`` has the means by every other protocol that gives a different value for a group. ``notes`` are
    the sentences of ``Split.notes``. ``cross_check`` is not in the JSON, which has the same bytes without it.
    """

    dataset: str
    variant: str
    subset: str
    split_digest: str
    protocol: str
    mAP: MeanAP
    groups: dict[str, Group]
    diagnostics: Diagnostics
    per_class: tuple[ClassResult, ...]
    other_protocols: dict[str, MeanAP]
    content_digest: str = ""
    thresholds: Thresholds | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    intervals: Intervals | None = None
    cross_check: CrossCheck | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the result as JSON: sorted keys, no time or host, null for undefined numbers."""
        content = asdict(self)
        del content["cross_check"]
        for entry in content["per_class"]:
            entry["class"] = entry.pop("index")
        return render_json(content)
