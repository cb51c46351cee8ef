"""Several runs on one subset, side by side: means with intervals, paired differences, wins and losses per class."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meidbench.checks import whole_number
from meidbench.errors import MeidbenchError, RequestError
from meidbench.evaluation.accuracy import count_hits, find_single_labels
from meidbench.evaluation.bootstrap import LEVEL, bootstrap_recall, bootstrap_samples
from meidbench.evaluation.budget import Budget, describe_inequality
from meidbench.evaluation.evaluate import as_blocks, evaluate_scores, group_members, subset_positives
from meidbench.evaluation.paired import (
    ClassAverageComparison,
    GroupComparison,
    class_differences,
    compare_with,
    format_change,
    summarise_seeds,
)
from meidbench.evaluation.results import (
    CLASS_AVERAGE,
    GROUPS_SHOWN,
    ClassFacts,
    Difference,
    Estimate,
    Measures,
    Printed,
    PrintedTable,
    Result,
    average_measures,
    describe_subset,
    drop_undefined,
    find_watermarks,
    format_value,
)
from meidbench.files import render_json
from meidbench.names import Advance
from meidbench.predictions.align import BlockScores, align_predictions, reading_warnings
from meidbench.predictions.values import as_predictions
from meidbench.splits.groups import Thresholds
from meidbench.splits.split import Split, load_split

if TYPE_CHECKING:
    import pandas as pd

Reals = npt.NDArray[np.float64]
_METHODS_PRINTED = 10


@dataclass(frozen=True)
class ComparedRun:
    """A run to compare: the name of its method, its seed (empty where the name has none), its scores.

    The scores are a file, or another form that ``meidbench.evaluate`` takes without ``video_ids``.
    """

    method: str
    seed: str
    scores: Any

    @classmethod
    def from_argument(cls, text: str) -> "ComparedRun":
        """Read ``PATH`` (the file gives the name) or ``NAME=PATH``; the name may be ``METHOD@SEED``."""
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).stem, text
        # A file name may contain bytes that are not text; tables, pages and JSON need text.
        method, _, seed = name.encode("utf-8", "replace").decode().partition("@")
        if not method:
            raise RequestError(f"{text!r} has no name: expected PATH or NAME=PATH")
        return cls(method, seed, Path(path))

    @classmethod
    def from_mapping(cls, runs: Mapping[str, Any]) -> list["ComparedRun"]:
        """Read a dict of method -> scores, or list of scores, one per seed.

        A seed has the name that its file has after ``@``, else its place in the list.
        """
        found = []
        for name, scores in runs.items():
            method, _, seed = str(name).partition("@")
            if not method or (seed and isinstance(scores, list)):
                raise RequestError(
                    f"the run {name!r} is not named METHOD or METHOD@SEED, or METHOD with a list of seeds"
                )
            entries = scores if isinstance(scores, list) else [scores]
            if not entries:
                raise RequestError(f"the run {name!r} has an empty list of scores")
            seeds = [Path(entry).stem.partition("@")[2] if _is_path(entry) else "" for entry in entries]
            if len(set(seeds)) < len(seeds) or "" in seeds:
                seeds = [str(place) for place in range(1, len(entries) + 1)]
            found += [
                cls(method, given if isinstance(scores, list) else seed, entry)
                for given, entry in zip(seeds, entries, strict=True)
            ]
        return found

    def __str__(self) -> str:
        place = f" ({self.scores})" if _is_path(self.scores) else f", seed {self.seed}" if self.seed else ""
        return f"{self.method}{place}"


def _is_path(scores: Any) -> bool:
    return isinstance(scores, str | os.PathLike)


@dataclass(frozen=True, kw_only=True)
class MethodResult(Measures, GroupComparison):
    """The result of one method, averaged over its seeds; the fields of ``GroupComparison`` are those of its mAP.

    ``mAP`` is per group, ``ap`` (NaN without positives) and ``ap_difference`` (None for the reference) per class.
    ``seeds`` is empty where the names have none. ``budgets`` are those of its runs, one per seed; unknown ones are
    None, and without a known one they are not in the JSON. ``class_average`` is the same for class-average accuracy,
    None where a video of the subset has no label or several.
    """

    name: str
    seeds: tuple[str, ...]
    mAP: dict[str, Estimate]
    ap: tuple[float, ...]
    ap_difference: tuple[Difference, ...] | None
    warnings: tuple[str, ...]
    budgets: tuple[Budget | None, ...] = ()
    class_average: ClassAverageComparison | None = None

    def estimate(self, group: str) -> Estimate:
        """Return the mAP of a group and its interval."""
        return self.mAP[group]

    def by_class(self) -> tuple[float, ...]:
        """Return the average precision of each class."""
        return self.ap


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """Methods side by side, in the given order; ``group_classes`` counts the classes with positives, per group.

    ``notes``, ``thresholds`` and ``group_names`` are as in ``Result``, the watermarks are those of any run. A notebook
    shows a comparison as a table.
    """

    dataset: str
    variant: str
    subset: str
    split_digest: str
    videos: int
    reference: str
    replicates: int
    seed: int
    level: float
    group_classes: dict[str, int]
    classes: tuple[ClassFacts, ...]
    methods: tuple[MethodResult, ...]
    content_digest: str = ""
    thresholds: Thresholds | None = None
    group_names: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    protocol: str = "tie-aware"
    format_version: int = 1

    def to_json(self) -> str:
        """Return the comparison as JSON: keys sorted, the same bytes for the same input."""
        empty = np.empty(0)
        methods = tuple(
            replace(
                method,
                samples=empty,
                class_average=(average := method.class_average) and replace(average, samples=empty),
            )
            for method in self.methods
        )
        content = asdict(replace(self, methods=methods))
        for method in content["methods"]:
            for part in (method, method["class_average"] or {}):
                part.pop("samples", None)
            for part in (method, method["accuracy"]):
                drop_undefined(part)
            if not any(method["budgets"]):
                del method["budgets"]
        if not self.group_names:
            del content["group_names"]
        return render_json(content)

    def list_classes(self) -> Sequence[ClassFacts]:
        """Return the facts of each class."""
        return self.classes

    @property
    def unequal_budgets(self) -> str:
        """How the budgets of the methods are unequal (``describe_inequality``); empty where they are not."""
        return describe_inequality({method.name: method.budgets for method in self.methods})

    def list_warnings(self) -> list[tuple[str, str]]:
        """Return the warnings as pairs: the name of the method, or ``every run``, and the text."""
        texts = dict.fromkeys(warning for method in self.methods for warning in method.warnings)
        concerned = {text: [method.name for method in self.methods if text in method.warnings] for text in texts}
        several = len(self.methods) > 1
        shared = [text for text, names in concerned.items() if several and len(names) == len(self.methods)]
        single = [(method.name, text) for method in self.methods for text in method.warnings if text not in shared]
        return [("every run", text) for text in shared] + single

    def with_reference(self, name: str) -> "Comparison":
        """Return the same comparison against another reference; see ``meidbench.evaluation.paired.compare_with``."""
        reference = next((method for method in self.methods if method.name == name), None)
        if reference is None:
            raise _unknown_reference(name, [method.name for method in self.methods])
        groups = np.array([facts.group for facts in self.classes])
        members = {group: np.flatnonzero((groups == group) | (group == GROUPS_SHOWN[0])) for group in GROUPS_SHOWN}
        methods = compare_with({method.name: method for method in self.methods}, name, members)
        averages = {name: method.class_average for name, method in methods.items() if method.class_average is not None}
        averages = compare_with(averages, name, members) if averages else {}
        changed = [
            replace(
                method,
                ap_difference=None if method.name == name else class_differences(method, reference),
                class_average=averages.get(method.name),
            )
            for method in methods.values()
        ]
        return replace(self, reference=name, methods=tuple(changed))

    def list_measures(self) -> dict[str, dict[str, GroupComparison]]:
        """Return the means over classes that are compared: of each title, those of the methods by their names."""
        measures: dict[str, dict[str, GroupComparison]] = {"mAP": {method.name: method for method in self.methods}}
        for method in self.methods:
            if method.class_average is not None:
                measures.setdefault(CLASS_AVERAGE, {})[method.name] = method.class_average
        return measures

    def to_pandas(self) -> "pd.DataFrame":
        """Return a DataFrame with one row per method and group.

        ``classes`` is the number of classes of the group with a positive; a group with 0 has no other value.
        ``mAP``, ``difference`` (to the reference) and their intervals ``..._low``, ``..._high`` over videos;
        ``probability`` of being better; ``corrected``, two-sided, after Holm's correction; ``wins``, ``ties`` and
        ``losses`` in classes; ``seeds``, and ``seed_std`` over them. Where each video has one label, the same columns
        follow for class-average accuracy: ``class_average``, ``class_average_low``, ``class_average_difference``, and
        so on. Cells that have no value are NaN.
        """
        import pandas as pd

        rows = []
        for method in self.methods:
            for group in method.mAP:
                row: dict[str, Any] = {"method": method.name, "group": group, "classes": self.group_classes[group]}
                row["seeds"] = max(1, len(method.seeds))
                row |= method.table_cells(group, "mAP", "")
                if method.class_average is not None:
                    row |= method.class_average.table_cells(group, "class_average", "class_average_")
                rows.append(row)
        frame: pd.DataFrame = pd.DataFrame(rows)
        return frame

    def _printed(self) -> PrintedTable:
        several = len(self.methods) > 1
        rows = []
        for method in self.methods[:_METHODS_PRINTED]:
            name = method.name + (f" ({len(method.seeds)} seeds)" if len(method.seeds) > 1 else "")
            row = [name, *(format_value(method.mAP[group].value) for group in self.groups_shown)]
            if several:
                row.append("reference")
            if method.difference is not None:
                change = method.difference["overall"]
                around = f" [{format_change(change.low, 3)}, {format_change(change.high, 3)}]"
                row[-1] = format_change(change.value, 4) + ("" if math.isnan(change.low) else around)
            if method.class_average is not None:
                row.append(format_value(method.class_average.means["overall"].value))
            rows.append(row)
        more = len(self.methods) - len(rows)
        lines = [f"and {more} more methods"] if more else []
        lines += self.absent_groups
        if several:
            lines.append(f"difference: of overall, to {self.reference}, with its {self.level:.0%} interval over videos")
        lines += [self.unequal_budgets] if self.unequal_budgets else []
        lines.append("as a DataFrame: .to_pandas(); as a page: meidbench.comparison_html(...)")
        header = ["mAP", *map(self.title, self.groups_shown), *(["difference"] if several else [])]
        header += list(self.list_measures())[1:]
        return PrintedTable(describe_subset(self, self.videos), header, rows, [*self.notes, *lines])


@dataclass
class _SeedResults:
    """The results of one method, seed by seed, and the (replicates, C) sums of their bootstrap samples.

    ``recalled`` is the sum of the recalls, empty where class-average accuracy is not defined.
    """

    seeds: list[str]
    results: list[Result]
    budgets: list[Budget | None]
    summed: Reals
    recalled: Reals

    @property
    def ap(self) -> Reals:
        mean: Reals = np.mean([[entry.ap for entry in result.per_class] for result in self.results], axis=0)
        return mean

    def compare_class_average(self, split: Split) -> ClassAverageComparison | None:
        averages = [result.accuracy.class_average for result in self.results]
        known = [average for average in averages if average is not None]
        if not known:
            return None
        samples = self.recalled / len(self.seeds)
        by_seed = {group: np.array([getattr(average, group) for average in known]) for group in GROUPS_SHOWN}
        means, spread = summarise_seeds(by_seed, samples, group_members(split))
        recalls = np.array([[entry.recall for entry in result.per_class] for result in self.results], np.float64)
        return ClassAverageComparison(
            means=means, seed_spread=spread, recall=tuple(recalls.mean(axis=0).tolist()), samples=samples,
            difference=None, tally=None, corrected=None,
        )  # fmt: skip

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(warning for result in self.results for warning in result.warnings))

    @property
    def samples(self) -> Reals:
        return self.summed / len(self.seeds)


def compare(
    runs: Mapping[str, Any] | Sequence[ComparedRun],
    split: Split | str | Path,
    subset: str | None = None,
    *,
    reference: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    allow_float16: bool = False,
    advance: Advance | None = None,
) -> Comparison:
    """Compare runs on a subset of a split: means with intervals, paired differences, wins and losses.

    Of runs in files, one score matrix is in memory at a time.

    Parameters
    ----------
    runs : dict of str -> scores
        The scores of each method: a path (of a prediction file, or of a folder of them), a DataFrame, a pair
        (video_ids, scores), or ``Predictions``, as for ``meidbench.evaluate``. A list holds one of these per seed, and
        its results are averaged; a key ``METHOD@SEED`` names one seed. Also a sequence of ``ComparedRun``.
    split : Split, str or Path
        As for ``load_split``.
    subset : str, optional
        As for ``meidbench.evaluate``.
    reference : str, optional
        The method that the others are compared with; by default the first.
    replicates, seed : int
        Of the Bayesian bootstrap over videos; every run gets the same weights.
    allow_float16 : bool
        As for ``meidbench.evaluate``.
    advance : callable, optional
        Called with the number of classes of each step; a run has C classes.

    Returns
    -------
    Comparison
        ``compare(...).to_pandas()`` is a DataFrame, ``meidbench.comparison_html(compare(...))`` a page.

    Raises
    ------
    RequestError
        The reference is not one of the methods, a method has the same seed twice, or a number makes no sense.
    PredictionError
        Scores cannot be read or do not fit the split; the message names the run.

    Examples
    --------
    >>> from meidbench.features.simulation import simulate_split
    >>> split = simulate_split((30, 9, 9), num_classes=4)
    >>> ids, labels = split.video_ids("test"), split.labels("test")
    >>> runs = {"constant": (ids, np.zeros(labels.shape)), "perfect": (ids, labels.astype(float))}
    >>> perfect = compare(runs, split, replicates=50).methods[1]
    >>> perfect.name, perfect.mAP["overall"].value
    ('perfect', 1.0)
    """
    if isinstance(runs, Mapping):
        runs = ComparedRun.from_mapping(runs)
    if not isinstance(runs, list | tuple) or not runs or not all(isinstance(run, ComparedRun) for run in runs):
        raise RequestError('a comparison needs at least one run; in Python, a dict such as {"bce": "bce.parquet"}')
    whole_number("the number of replicates", replicates, 2, RequestError)
    whole_number("seed", seed, 0, RequestError)
    split = load_split(split)
    subset = split.default_subset if subset is None else subset
    names = list(dict.fromkeys(run.method for run in runs))
    reference = names[0] if reference is None else reference
    _check_names(runs, names, reference)
    methods: dict[str, _SeedResults] = {}
    for run in runs:
        result, samples, recalled, budget = _score(run, split, subset, replicates, seed, allow_float16, advance)
        method = methods.setdefault(run.method, _SeedResults([], [], [], np.zeros(()), np.zeros(())))
        method.seeds.append(run.seed)
        method.results.append(result)
        method.budgets.append(budget)
        method.summed = method.summed + samples
        method.recalled = method.recalled + recalled
    return _make_comparison(methods, split, subset, reference, replicates, seed)


def _make_comparison(
    methods: dict[str, _SeedResults], split: Split, subset: str, reference: str, replicates: int, seed: int
) -> Comparison:
    first = next(iter(methods.values())).results[0]
    return Comparison(
        dataset=split.dataset,
        variant=split.variant,
        subset=subset,
        split_digest=split.digest,
        content_digest=split.content_digest,
        thresholds=split.thresholds,
        group_names=split.group_names,
        notes=(*find_watermarks(text for method in methods.values() for text in method.warnings), *split.notes),
        videos=first.diagnostics.videos,
        reference=reference,
        replicates=replicates,
        seed=seed,
        level=LEVEL,
        group_classes={name: group.classes for name, group in first.groups.items()},
        classes=tuple(
            ClassFacts(entry.index, entry.name, entry.group, entry.train_count, entry.positives)
            for entry in first.per_class
        ),
        methods=tuple(_summarise(name, method, split) for name, method in methods.items()),
    ).with_reference(reference)


def _check_names(runs: Sequence[ComparedRun], names: Sequence[str], reference: str) -> None:
    seeded = {run.method for run in runs if run.seed}
    if mixed := [run.method for run in runs if not run.seed and run.method in seeded]:
        raise RequestError(
            f"{mixed[0]} has runs with and without a seed: name all of them NAME@SEED, or give them different names"
        )
    if not isinstance(reference, str) or reference not in names:
        raise _unknown_reference(reference, names)
    if len({(run.method, run.seed) for run in runs}) < len(runs):
        raise RequestError(
            "two runs have the same name; tell them apart by NAME=PATH, seeds of a method by NAME@SEED=PATH"
        )


def _unknown_reference(name: object, names: Sequence[str]) -> RequestError:
    return RequestError(f"the reference {name!r} is not one of the runs: {', '.join(names)}")


def _score(
    run: ComparedRun, split: Split, subset: str, replicates: int, seed: int, allow: bool, advance: Advance | None
) -> tuple[Result, Reals, Reals, Budget | None]:
    try:
        given = as_predictions(run.scores, half=allow)
        scores = align_predictions(given, split, subset, allow_float16=allow)
    except MeidbenchError as error:
        raise type(error)(f"run {run}: {error}") from None
    assert not isinstance(scores, BlockScores)  # only a memory limit makes them blocks
    result = evaluate_scores(scores, split, subset, warnings=reading_warnings(given, split))
    ap = np.array([entry.ap for entry in result.per_class])
    samples = bootstrap_samples(scores, subset_positives(split, subset), ap, replicates, seed, advance)
    recalled, single = np.empty(0), find_single_labels(split, subset)
    if single is not None:
        hits = count_hits(as_blocks(scores), split, subset, (1,))[1]
        recalled = bootstrap_recall(hits, single, split.num_classes, replicates, seed)
    return result, samples, recalled, Budget.from_metadata(given.metadata)


def _summarise(name: str, method: _SeedResults, split: Split) -> MethodResult:
    by_seed = {group: np.array([getattr(result.mAP, group) for result in method.results]) for group in GROUPS_SHOWN}
    means, spread = summarise_seeds(by_seed, method.samples, group_members(split))
    return MethodResult(
        **average_measures(method.results),
        name=name,
        seeds=tuple(method.seeds) if method.seeds != [""] else (),
        mAP=means,
        seed_spread=spread,
        difference=None,
        tally=None,
        ap=tuple(method.ap.tolist()),
        ap_difference=None,
        corrected=None,
        samples=method.samples,
        warnings=method.warnings,
        budgets=tuple(method.budgets),
        class_average=method.compare_class_average(split),
    )
