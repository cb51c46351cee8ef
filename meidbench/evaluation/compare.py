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
from meidbench.evaluation.bootstrap import LEVEL, bootstrap_samples, compute_interval, correct_holm
from meidbench.evaluation.budget import Budget, describe_inequality
from meidbench.evaluation.evaluate import bootstrap_means, evaluate_scores, group_members, subset_positives
from meidbench.evaluation.results import (
    GROUPS_SHOWN,
    ClassFacts,
    Difference,
    Estimate,
    Measures,
    Printed,
    PrintedTable,
    Result,
    SeedSpread,
    WinTieLoss,
    average_measures,
    describe_subset,
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
Indices = npt.NDArray[np.intp]
_METHODS_PRINTED = 10
EQUAL = 1e-12  # average precisions that differ only by rounding are a tie


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
class MethodResult(Measures):
    """The result of one method, averaged over its seeds.

    ``mAP``, ``seed_spread``, ``difference`` and ``tally`` are per group (overall, head, medium, tail), ``ap`` (NaN
    without positives) and ``ap_difference`` per class. The differences and the tally are against the reference, and
    None for itself; ``seed_spread`` is None without several seeds, ``seeds`` empty where the names have none.
    ``corrected`` is the two-sided probability of each group's difference after Holm's correction
    (``Comparison.with_reference``). ``samples`` are the (replicates, C) average precisions of the bootstrap; they are
    not in the JSON. ``budgets`` are those of its runs, one per seed; unknown ones are None, and without a known one
    they are not in the JSON.
    """

    name: str
    seeds: tuple[str, ...]
    mAP: dict[str, Estimate]
    seed_spread: dict[str, SeedSpread] | None
    difference: dict[str, Difference] | None
    tally: dict[str, WinTieLoss] | None
    ap: tuple[float, ...]
    ap_difference: tuple[Difference, ...] | None
    corrected: dict[str, float] | None
    samples: Reals = field(repr=False, compare=False)
    warnings: tuple[str, ...]
    budgets: tuple[Budget | None, ...] = ()


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
        methods = tuple(replace(method, samples=np.empty(0)) for method in self.methods)
        content = asdict(replace(self, methods=methods))
        for method in content["methods"]:
            del method["samples"]
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
        """Return the same comparison against another reference.

        Per group, the two-sided probabilities of all methods but the reference are corrected together (Holm, 1979). The
        two-sided probability is 2 min(P, 1 - P), where P is the probability of being better, and at least 2 /
        ``replicates``: fewer than one replicate cannot be counted.
        """
        reference = next((method for method in self.methods if method.name == name), None)
        if reference is None:
            raise _unknown_reference(name, [method.name for method in self.methods])
        groups = np.array([facts.group for facts in self.classes])
        members = {group: np.flatnonzero((groups == group) | (group == GROUPS_SHOWN[0])) for group in GROUPS_SHOWN}
        methods = [_compare_with(reference, method, members) for method in self.methods]
        compared = {method.name: method.difference for method in methods if method.difference is not None}
        corrected: dict[str, dict[str, float]] = {other: {} for other in compared}
        for group in GROUPS_SHOWN:
            probabilities = [_two_sided(difference[group], self.replicates) for difference in compared.values()]
            for other, value in zip(compared, correct_holm(probabilities), strict=True):
                corrected[other][group] = value
        methods = [replace(method, corrected=corrected.get(method.name)) for method in methods]
        return replace(self, reference=name, methods=tuple(methods))

    def to_pandas(self) -> "pd.DataFrame":
        """Return a DataFrame with one row per method and group.

        ``classes`` is the number of classes of the group with a positive; a group with 0 has no other value.
        ``mAP``, ``difference`` (to the reference) and their intervals ``..._low``, ``..._high`` over videos;
        ``probability`` of being better; ``corrected``, two-sided, after Holm's correction; ``wins``, ``ties`` and
        ``losses`` in classes; ``seeds``, and ``seed_std`` over them. Cells that have no value are NaN.
        """
        import pandas as pd

        rows = []
        for method in self.methods:
            for group, mean in method.mAP.items():
                row: dict[str, Any] = {"method": method.name, "group": group, "classes": self.group_classes[group]}
                row["seeds"] = max(1, len(method.seeds))
                row |= {"mAP": mean.value, "mAP_low": mean.low, "mAP_high": mean.high}
                row["seed_std"] = method.seed_spread[group].std if method.seed_spread else math.nan
                entry = method.difference[group] if method.difference else Difference(*[math.nan] * 4)
                row |= {"difference": entry.value, "difference_low": entry.low, "difference_high": entry.high}
                row["probability"] = entry.probability
                row["corrected"] = method.corrected[group] if method.corrected else math.nan
                tally = asdict(method.tally[group]) if method.tally else {}
                row |= {name: tally.get(name, math.nan) for name in ("wins", "ties", "losses")}
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
            rows.append(row)
        more = len(self.methods) - len(rows)
        lines = [f"and {more} more methods"] if more else []
        lines += self.absent_groups
        if several:
            lines.append(f"difference: of overall, to {self.reference}, with its {self.level:.0%} interval over videos")
        lines += [self.unequal_budgets] if self.unequal_budgets else []
        lines.append("as a DataFrame: .to_pandas(); as a page: meidbench.comparison_html(...)")
        header = ["mAP", *map(self.title, self.groups_shown), *(["difference"] if several else [])]
        return PrintedTable(describe_subset(self, self.videos), header, rows, [*self.notes, *lines])


@dataclass
class _SeedResults:
    """The results of one method, seed by seed, and the (replicates, C) sum of their bootstrap samples."""

    seeds: list[str]
    results: list[Result]
    budgets: list[Budget | None]
    summed: Reals

    @property
    def ap(self) -> Reals:
        mean: Reals = np.mean([[entry.ap for entry in result.per_class] for result in self.results], axis=0)
        return mean

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
        result, samples, budget = _score(run, split, subset, replicates, seed, allow_float16, advance)
        method = methods.setdefault(run.method, _SeedResults([], [], [], np.zeros(())))
        method.seeds.append(run.seed)
        method.results.append(result)
        method.budgets.append(budget)
        method.summed = method.summed + samples
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
) -> tuple[Result, Reals, Budget | None]:
    try:
        given = as_predictions(run.scores, half=allow)
        scores = align_predictions(given, split, subset, allow_float16=allow)
    except MeidbenchError as error:
        raise type(error)(f"run {run}: {error}") from None
    assert not isinstance(scores, BlockScores)  # only a memory limit makes them blocks
    result = evaluate_scores(scores, split, subset, warnings=reading_warnings(given, split))
    ap = np.array([entry.ap for entry in result.per_class])
    samples = bootstrap_samples(scores, subset_positives(split, subset), ap, replicates, seed, advance)
    return result, samples, Budget.from_metadata(given.metadata)


def _summarise(name: str, method: _SeedResults, split: Split) -> MethodResult:
    by_seed = {group: np.array([getattr(result.mAP, group) for result in method.results]) for group in GROUPS_SHOWN}
    samples = method.samples
    means = bootstrap_means(samples, group_members(split))
    spread = {
        group: SeedSpread(len(values), float(values.std(ddof=1)), float(values.min()), float(values.max()))
        for group, values in by_seed.items()
        if len(values) > 1
    }
    return MethodResult(
        **average_measures(method.results),
        name=name,
        seeds=tuple(method.seeds) if method.seeds != [""] else (),
        mAP={name: Estimate(float(by.mean()), **vars(compute_interval(means[name]))) for name, by in by_seed.items()},
        seed_spread=spread or None,
        difference=None,
        tally=None,
        ap=tuple(method.ap.tolist()),
        ap_difference=None,
        corrected=None,
        samples=samples,
        warnings=method.warnings,
        budgets=tuple(method.budgets),
    )


def _compare_with(reference: MethodResult, method: MethodResult, members: Mapping[str, Indices]) -> MethodResult:
    if method.name == reference.name:
        return replace(method, difference=None, tally=None, ap_difference=None)
    change, samples = np.subtract(method.ap, reference.ap), method.samples - reference.samples
    means = bootstrap_means(samples, members)
    difference, tally = {}, {}
    for group, indices in members.items():
        known = change[indices][~np.isnan(change[indices])]
        mean = known.mean() if len(known) else float("nan")
        difference[group] = _differences(np.array([mean]), means[group][:, None])[0]
        wins, losses = int((known > EQUAL).sum()), int((known < -EQUAL).sum())
        tally[group] = WinTieLoss(wins, len(known) - wins - losses, losses)
    return replace(method, difference=difference, tally=tally, ap_difference=tuple(_differences(change, samples)))


def _differences(values: Reals, samples: Reals) -> list[Difference]:
    """Return the differences with their (replicates, values) samples."""
    if not len(samples):
        return [Difference(value, math.nan, math.nan, math.nan) for value in values.tolist()]
    low, high = np.clip(np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0), -1.0, 1.0)
    even = np.abs(samples) <= EQUAL
    better = (np.count_nonzero(~even & (samples > 0), axis=0) + 0.5 * np.count_nonzero(even, axis=0)) / len(samples)
    better[np.isnan(samples).any(axis=0)] = math.nan
    return [Difference(*numbers) for numbers in np.column_stack([values, low, high, better]).tolist()]


def _two_sided(difference: Difference, replicates: int) -> float:
    better = difference.probability
    return math.nan if math.isnan(better) else 2 * max(min(better, 1 - better), 1 / replicates)


def format_change(value: float, digits: int) -> str:
    """Round a difference; every number but zero gets a sign, and more digits where it would else look like zero."""
    if abs(value) <= EQUAL:
        return f"{0:.{digits}f}"
    text = f"{value:+.{digits}f}"
    while float(text) == 0:
        digits += 1
        text = f"{value:+.{digits}f}" if digits <= 6 else f"{value:+.0e}"
    return text
