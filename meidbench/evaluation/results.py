"""The result of an evaluation: named, immutable, and always written in the same way."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from meidbench.errors import escape_controls, write_count
from meidbench.files import render_json
from meidbench.names import WATERMARKS
from meidbench.splits.groups import GROUP_NAMES, Thresholds

if TYPE_CHECKING:
    import pandas as pd

_LINE = 120  # characters of a line below a printed table
FORMAT_VERSION = 1
GROUPS_SHOWN = ("overall", *GROUP_NAMES)
CLASS_AVERAGE = "class-average accuracy"
NO_CLASSES = "no classes"  # in the place of a mean over an empty group
NO_POSITIVE = "no class with a positive"


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


@dataclass(frozen=True)
class GroupMeans:
    """Means over the classes of each group that have a positive; NaN for a group without such a class."""

    overall: float
    head: float
    medium: float
    tail: float


def implied_overall(published: GroupMeans, sizes: Sequence[int]) -> float | None:
    """Return the overall value that the groups of a published row imply, None where its own agrees with it.

    ``sizes`` are the classes of head, medium and tail that are scored: the mean over all classes is the mean of the
    groups, weighted by their classes. Both may differ by one unit of the last printed digit, half by the rounding of
    the groups and half by that of the overall value. Numbers have three digits or more.

    >>> implied_overall(MeanAP(0.567, 0.720, 0.607, 0.436), (47, 617, 340))
    0.554...
    >>> implied_overall(MeanAP(0.518, 0.687, 0.572, 0.397), (47, 617, 340))
    """
    overall, *groups = (published.overall, published.head, published.medium, published.tail)
    implied = sum(size * value for size, value in zip(sizes, groups, strict=True)) / sum(sizes)
    digits = max(3, *(len(repr(value).partition(".")[2]) for value in (overall, *groups)))
    return implied if abs(implied - overall) > 10.0**-digits + 1e-9 else None


@dataclass(frozen=True)
class MeanAP(GroupMeans):
    """Mean average precision per group, over its classes that have a positive; NaN for a group without such a class."""


@dataclass(frozen=True)
class ClassAverage(GroupMeans):
    """Class-average accuracy: mean recall at one answer per group, over its classes with a video; NaN without one."""


@dataclass(frozen=True)
class Accuracy:
    """Share of the videos that have a label among their k best classes, and class-average accuracy.

    ``class_average`` is None where a video of the subset has no label or several.
    """

    top1: float = field(metadata={"title": "top-1"})
    top5: float = field(metadata={"title": "top-5"})
    class_average: ClassAverage | None = None


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures besides mAP, of a ``Result`` and of each method of a ``Comparison``.

    JSON, the tables and the page follow from these fields. A field is a dataclass of numbers that have a ``title``.
    Its ``meaning`` explains it on the page.
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
    Column(measure, number.name, number.metadata["title"])
    for measure, kind in _MEASURE_TYPES.items()
    for number in fields(kind)
    if "title" in number.metadata
)
MEANINGS = tuple(measure.metadata["meaning"] for measure in fields(Measures))


def average_measures(results: Sequence[Measures]) -> dict[str, Any]:
    """Return the fields of ``Measures``, averaged over several results."""
    averages: dict[str, dict[str, Any]] = {}
    for column in COLUMNS:
        mean = float(np.mean([column.value(result) for result in results]))
        averages.setdefault(column.measure, {})[column.key] = mean
    found = [result.accuracy.class_average for result in results]
    if known := [average for average in found if average is not None]:
        means = {name: float(np.mean([getattr(average, name) for average in known])) for name in GROUPS_SHOWN}
        averages["accuracy"]["class_average"] = ClassAverage(**means)
    return {measure: _MEASURE_TYPES[measure](**numbers) for measure, numbers in averages.items()}


def drop_undefined(content: dict[str, Any]) -> None:
    """Remove the keys of class-average accuracy from a part of the JSON where the measure is not defined.

    The JSON of a split with several labels per video then has the same bytes as before this measure existed.
    """
    for key in ("class_average", "recall"):
        if content.get(key) is None:
            content.pop(key, None)


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
    """A class with its AP (NaN without positives).

    ``recall`` is the share of its videos whose best class it is, None where class-average accuracy is not defined.
    """

    ap: float
    recall: float | None = None


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
    """How the intervals were made, the intervals of the means per group, and of each class's AP by index."""

    method: str
    replicates: int
    seed: int
    level: float
    mAP: dict[str, Interval]
    per_class: tuple[Interval, ...]
    class_average: dict[str, Interval] | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over classes and its percentile interval over videos."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedSpread:
    """A mean over classes over a method's seeds: their number, standard deviation (n - 1), lowest, highest."""

    seeds: int
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """Method minus reference under the same weights: value, interval over videos, probability of being better."""

    probability: float


@dataclass(frozen=True)
class WinTieLoss:
    """Numbers of classes of a group in which a method is better than, equal to, or worse than the reference."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class CrossCheck:
    """Average precisions computed again with scikit-learn: how many, the largest difference, and its class."""

    classes: int
    largest_difference: float
    class_index: int

    def __str__(self) -> str:
        largest = f"largest difference {self.largest_difference:.1e} (class {self.class_index})"
        classes = write_count(self.classes, "class", "classes")
        return f"scikit-learn gives the same average precision for {classes}: {largest}"


@dataclass(frozen=True)
class PrintedTable:
    """The printed form of a result: a title, a table of text and numbers, lines below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    lines: list[str]


class Printed:
    """A result that a terminal shows as a small table of text, and a notebook as a table of HTML."""

    group_names: dict[str, str]

    def _printed(self) -> PrintedTable:
        raise NotImplementedError

    def list_classes(self) -> Sequence[ClassFacts]:
        """Return the facts of each class."""
        raise NotImplementedError

    def title(self, group: str) -> str:
        """Return the name of a group in tables and pages, which may be the benchmark's own."""
        return self.group_names.get(group, group)

    def describe_absence(self, group: str) -> str:
        """Return why a group has no mean average precision; empty where it has one."""
        members = [facts for facts in self.list_classes() if group in (facts.group, GROUPS_SHOWN[0])]
        if any(facts.positives for facts in members):
            return ""
        return NO_POSITIVE if members else NO_CLASSES

    @property
    def groups_shown(self) -> tuple[str, ...]:
        """Overall, and the groups that have a mean average precision, for the columns of tables."""
        return tuple(name for name in GROUPS_SHOWN if name == GROUPS_SHOWN[0] or not self.describe_absence(name))

    @property
    def absent_groups(self) -> list[str]:
        """A line per group that has no mean average precision, such as ``medium: no classes``."""
        return [
            f"{self.title(name)}: {self.describe_absence(name)}"
            for name in GROUPS_SHOWN[1:]
            if name not in self.groups_shown
        ]

    def __repr__(self) -> str:
        shown = self._printed()
        lines = [
            shown.title,
            _lay_out(shown, "simple"),
            *(f"  {textwrap.shorten(line, _LINE)}" for line in shown.lines),
        ]
        return escape_controls("\n".join([f"<{type(self).__name__} of {lines[0]}", *lines[1:]]), keep="\n") + ">"

    def _repr_html_(self) -> str:
        shown = self._printed()
        lines = "<br>\n".join(escape(escape_controls(line)) for line in shown.lines)
        title = escape(escape_controls(shown.title))
        return f"<div>\n<p><b>{title}</b></p>\n{_lay_out(shown, 'html')}\n<p>{lines}</p>\n</div>"


def _lay_out(shown: PrintedTable, form: str) -> str:
    """Lay out a table with text in the first column and numbers in the others; HTML is escaped."""
    aligned = ["left", *["right"] * (len(shown.header) - 1)]
    rows = [list(map(escape_controls, row)) for row in shown.rows]
    return str(tabulate(rows, shown.header, tablefmt=form, disable_numparse=True, colalign=aligned))


def find_watermarks(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the watermarks among warnings or notes, each once."""
    return tuple(dict.fromkeys(text for text in texts if text in WATERMARKS.values()))


def describe_subset(result: Any, videos: int) -> str:
    """Return the title of numbers on a subset: dataset, variant, subset, number of videos."""
    return f"{result.dataset} ({result.variant}), {result.subset}: {write_count(videos, 'video')}"


def format_value(value: float) -> str:
    """Write a value with four digits, a dash where it is not defined."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def format_range(low: float, high: float) -> str:
    """Write an interval, a dash where it is not defined."""
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(Printed, Measures):
    """The evaluation of one prediction file on one subset of a split.

    ``other_protocols`` has the means by every other protocol that gives a different value for a group. ``notes`` are
    the watermarks among the warnings and the sentences of ``Split.notes``. ``thresholds`` is None where the groups of
    the classes are by list. ``group_names`` has a benchmark's own names of groups, for tables. ``cross_check`` is not
    in the JSON, which has the same bytes without it.
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
    group_names: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    intervals: Intervals | None = None
    cross_check: CrossCheck | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the result as JSON: sorted keys, no time or host, null for undefined numbers."""
        content = asdict(self)
        del content["cross_check"]
        if not self.group_names:
            del content["group_names"]
        for entry in content["per_class"]:
            entry["class"] = entry.pop("index")
        for part in (content["accuracy"], content["intervals"], *content["per_class"]):
            drop_undefined(part or {})
        return render_json(content)

    def list_classes(self) -> Sequence[ClassFacts]:
        """Return the result of each class."""
        return self.per_class

    def to_pandas(self) -> "pd.DataFrame":
        """Return a DataFrame with one row per class, its index as index.

        The columns are ``name``, ``group``, ``train_count``, ``positives``, ``ap`` (NaN without positives), where each
        video has one label ``recall``, and with intervals ``ap_low`` and ``ap_high``.
        """
        import pandas as pd

        frame: pd.DataFrame = pd.DataFrame(list(map(asdict, self.per_class))).set_index("index").rename_axis("class")
        if self.accuracy.class_average is None:
            del frame["recall"]
        if self.intervals is not None:
            frame["ap_low"] = [entry.low for entry in self.intervals.per_class]
            frame["ap_high"] = [entry.high for entry in self.intervals.per_class]
        return frame

    def group_table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows of the table of groups, for people."""
        header = ["group", "mAP"]
        if self.intervals is not None:
            header.append(f"{self.intervals.level:.0%} interval")
        if (average := self.accuracy.class_average) is not None:
            header += [CLASS_AVERAGE, *header[2:]]
        rows = []
        for name in GROUPS_SHOWN:
            mean = getattr(self.mAP, name)
            absent = self.describe_absence(name)
            row = [self.title(name), absent if math.isnan(mean) else format_value(mean)]
            if self.intervals is not None:
                row.append(format_range(*vars(self.intervals.mAP[name]).values()))
            if average is not None:
                row.append(absent or format_value(getattr(average, name)))
            if self.intervals is not None and self.intervals.class_average is not None:
                row.append(format_range(*vars(self.intervals.class_average[name]).values()))
            rows.append([*row, str(self.groups[name].classes), f"{self.groups[name].positives:,}"])
        return [*header, "classes", "positives"], rows

    def single_measures(self) -> str:
        """Return the measures without groups as one line."""
        return "   ".join(f"{column.title} {column.value(self):.4f}" for column in COLUMNS)

    def _printed(self) -> PrintedTable:
        protocol = "" if self.protocol == "tie-aware" else f", protocol {self.protocol}"
        # A watermark is both a note and a warning.
        warnings = [warning for warning in self.warnings if warning not in self.notes]
        lines = [self.single_measures(), *self.notes, *(f"warning: {warning}" for warning in warnings[:3])]
        lines += [str(self.cross_check)] if self.cross_check else []
        title = describe_subset(self, self.diagnostics.videos) + protocol
        return PrintedTable(title, *self.group_table(), [*lines, "average precision per class: .to_pandas()"])
