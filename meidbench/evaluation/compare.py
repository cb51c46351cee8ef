"""Several runs on one subset, side by side: means with intervals, paired differences, wins and losses per class."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meidbench.errors import MeidbenchError, RequestError
from meidbench.evaluation.bootstrap import LEVEL, bootstrap_samples, compute_interval
from meidbench.evaluation.evaluate import bootstrap_means, evaluate_scores, group_members, subset_positives
from meidbench.evaluation.results import GROUPS_SHOWN, ClassFacts, Measures, Result, average_measures
from meidbench.files import render_json
from meidbench.names import Advance
from meidbench.predictions import open_predictions
from meidbench.predictions.align import BlockScores, align_predictions, reading_warnings
from meidbench.splits.metadata import Thresholds
from meidbench.splits.split import Split

Reals = npt.NDArray[np.float64]
EQUAL = 1e-12  # average precisions that differ only by rounding are a tie


@dataclass(frozen=True)
class ComparedRun:
    """A run to compare: the name of its method, its seed (empty where the name has none), its prediction file."""

    method: str
    seed: str
    path: Path

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


@dataclass(frozen=True)
class Estimate:
    """A mean average precision and its percentile interval over videos."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedSpread:
    """The mean average precision over a method's seeds: their number, standard deviation (n - 1), lowest, highest."""

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
    """Numbers of classes of a group in which a method's AP is higher than, equal to, or lower than the reference's."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, kw_only=True)
class MethodResult(Measures):
    """The result of one method, averaged over its seeds.

    ``mAP``, ``seed_spread``, ``difference`` and ``tally`` are per group (overall, head, medium, tail), ``ap`` (NaN
    without positives) and ``ap_difference`` per class. The differences and the tally are against the reference, and
    None for itself; ``seed_spread`` is None without several seeds, ``seeds`` empty where the names have none.
    """

    name: str
    seeds: tuple[str, ...]
    mAP: dict[str, Estimate]
    seed_spread: dict[str, SeedSpread] | None
    difference: dict[str, Difference] | None
    tally: dict[str, WinTieLoss] | None
    ap: tuple[float, ...]
    ap_difference: tuple[Difference, ...] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Methods side by side, in the given order; ``group_classes`` counts the classes with positives, per group.

    ``notes`` are the sentences of ``Split.notes``.
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
    notes: tuple[str, ...] = ()
    protocol: str = "tie-aware"
    format_version: int = 1

    def to_json(self) -> str:
        """Return the comparison as JSON: keys sorted, the same bytes for the same input."""
        return render_json(asdict(self))


@dataclass
class _SeedResults:
    """The results of one method, seed by seed, and the (replicates, C) sum of their bootstrap samples."""

    seeds: list[str]
    results: list[Result]
    summed: Reals

    @property
    def ap(self) -> Reals:
        mean: Reals = np.mean([[entry.ap for entry in result.per_class] for result in self.results], axis=0)
        return mean

    @property
    def samples(self) -> Reals:
        return self.summed / len(self.seeds)


def compare(
    runs: Sequence[ComparedRun],
    split: Split,
    subset: str,
    *,
    reference: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    allow_float16: bool = False,
    advance: Advance | None = None,
) -> Comparison:
    """Compare runs on a subset of a split; one score matrix is in memory at a time.

    Parameters
    ----------
    runs : sequence of ComparedRun
        Runs of one method with several seeds are averaged.
    reference : str, optional
        The method that the others are compared with; by default the first.
    replicates, seed : int
        Of the Bayesian bootstrap over videos; every run gets the same weights.
    allow_float16 : bool
        As for ``meidbench.evaluate``.
    advance : callable, optional
        Called with the number of classes of each step; a run has C classes.

    Raises
    ------
    MeidbenchError
        The reference is not one of the methods, or a method has the same seed twice.
    PredictionError
        A file cannot be scored; the message names it.
    """
    if not runs or replicates < 2 or seed < 0:
        raise MeidbenchError("a comparison needs at least one run, two replicates, and a seed of 0 or more")
    names = list(dict.fromkeys(run.method for run in runs))
    reference = names[0] if reference is None else reference
    _check_names(runs, names, reference)
    methods: dict[str, _SeedResults] = {}
    for run in runs:
        result, samples = _score(run, split, subset, replicates, seed, allow_float16, advance)
        method = methods.setdefault(run.method, _SeedResults([], [], np.zeros(())))
        method.seeds.append(run.seed)
        method.results.append(result)
        method.summed = method.summed + samples
    first = next(iter(methods.values())).results[0]
    return Comparison(
        dataset=split.dataset,
        variant=split.variant,
        subset=subset,
        split_digest=split.digest,
        content_digest=split.content_digest,
        thresholds=split.thresholds,
        notes=split.notes,
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
        methods=tuple(
            _summarise(name, method, None if name == reference else methods[reference], split)
            for name, method in methods.items()
        ),
    )


def _check_names(runs: Sequence[ComparedRun], names: Sequence[str], reference: str) -> None:
    seeded = {run.method for run in runs if run.seed}
    if mixed := [run.method for run in runs if not run.seed and run.method in seeded]:
        raise RequestError(
            f"{mixed[0]} has runs with and without a seed: name all of them NAME@SEED, or give them different names"
        )
    if reference not in names:
        raise RequestError(f"the reference {reference!r} is not one of the runs: {', '.join(names)}")
    if len({(run.method, run.seed) for run in runs}) < len(runs):
        raise RequestError(
            "two runs have the same name; tell them apart by NAME=PATH, seeds of a method by NAME@SEED=PATH"
        )


def _score(
    run: ComparedRun, split: Split, subset: str, replicates: int, seed: int, allow: bool, advance: Advance | None
) -> tuple[Result, Reals]:
    try:
        opened = open_predictions(run.path)
        scores = align_predictions(opened, split, subset, allow_float16=allow)
    except MeidbenchError as error:
        raise type(error)(f"run {run.method} ({run.path}): {error}") from None
    assert not isinstance(scores, BlockScores)  # only a memory limit makes them blocks
    result = evaluate_scores(scores, split, subset, warnings=reading_warnings(opened, split))
    ap = np.array([entry.ap for entry in result.per_class])
    return result, bootstrap_samples(scores, subset_positives(split, subset), ap, replicates, seed, advance)


def _summarise(name: str, method: _SeedResults, reference: _SeedResults | None, split: Split) -> MethodResult:
    by_seed = {group: np.array([getattr(result.mAP, group) for result in method.results]) for group in GROUPS_SHOWN}
    ap, means = method.ap, bootstrap_means(method.samples, split)
    difference = tally = ap_difference = None
    if reference is not None:
        change, samples = ap - reference.ap, method.samples - reference.samples
        change_means = bootstrap_means(samples, split)
        difference, tally = {}, {}
        for group, members in group_members(split).items():
            known = change[members][~np.isnan(change[members])]
            mean = float(known.mean()) if len(known) else float("nan")
            difference[group] = _difference(mean, change_means[group])
            wins, losses = int((known > EQUAL).sum()), int((known < -EQUAL).sum())
            tally[group] = WinTieLoss(wins, len(known) - wins - losses, losses)
        ap_difference = tuple(map(_difference, change.tolist(), samples.T))
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
        difference=difference,
        tally=tally,
        ap=tuple(ap.tolist()),
        ap_difference=ap_difference,
        warnings=tuple(dict.fromkeys(warning for result in method.results for warning in result.warnings)),
    )


def _difference(value: float, samples: Reals) -> Difference:
    if not len(samples) or np.isnan(samples).any():
        return Difference(value, float("nan"), float("nan"), float("nan"))
    interval = compute_interval(samples, within=(-1.0, 1.0))
    even = np.abs(samples) <= EQUAL
    better = (np.count_nonzero(samples[~even] > 0) + 0.5 * np.count_nonzero(even)) / len(samples)
    return Difference(value, interval.low, interval.high, float(better))
