"""Several runs on one subset, side by side: means with intervals, paired differences, wins and losses by class."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meidbench.errors import MeidbenchError
from meidbench.evaluation.bootstrap import LEVEL, interval_of
from meidbench.evaluation.evaluate import (
    bootstrap_means,
    bootstrap_samples,
    evaluate_scores,
    group_members,
    subset_positives,
)
from meidbench.evaluation.results import GROUPS_SHOWN, Accuracy, Result, as_json
from meidbench.predictions import open_predictions
from meidbench.predictions.align import BlockScores, align_predictions, run_warnings
from meidbench.splits.split import Split

Reals = npt.NDArray[np.float64]
EQUAL = 1e-12  # average precisions that differ by rounding alone are a tie


@dataclass(frozen=True)
class RunFile:
    """A prediction file to compare: the method's name, the seed where the name had one (``name@seed``), the file."""

    method: str
    seed: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> "RunFile":
        """Read ``PATH`` (named after the file) or ``NAME=PATH``; a name of the form ``name@seed`` marks a seed.

        Examples
        --------
        >>> RunFile.parse("meid@1=out/predictions.parquet")
        RunFile(method='meid', seed='1', path=PosixPath('out/predictions.parquet'))
        >>> RunFile.parse("ldam@7.npz").seed
        '7'
        """
        given, equals, path = text.partition("=")
        name = given if equals and not Path(text).exists() else Path(text).stem
        # A file name may hold bytes that are no text, which no table, page or JSON could hold.
        method, _, seed = name.encode("utf-8", "replace").decode().partition("@")
        if not method:
            raise MeidbenchError(f"{text!r} has no name: expected PATH or NAME=PATH")
        return cls(method, seed, Path(path if equals and not Path(text).exists() else text))


@dataclass(frozen=True)
class Estimate:
    """A mean average precision and its percentile interval over videos."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedSpread:
    """The mean average precision of a method's seeds: how many, standard deviation (n - 1), lowest and highest."""

    seeds: int
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Method minus reference under the same weights: value, interval over videos, probability of being better."""

    value: float
    low: float
    high: float
    probability: float


@dataclass(frozen=True)
class Tally:
    """Classes of a group in which a method's AP is higher than, equal to, or lower than the reference's."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Method:
    """One method; where it has several seeds, averages over them.

    Attributes
    ----------
    name : str
    seeds : tuple of str
        Empty where the runs had none.
    mAP : dict of str to Estimate
        By group: overall, head, medium, tail.
    seed_spread : dict of str to SeedSpread, or None
        By group, for methods with several seeds.
    difference, tally : dict, or None
        By group, against the reference; None for the reference itself.
    accuracy : Accuracy
    ap : tuple of float
        By class; NaN without positives.
    ap_difference : tuple of Difference, or None
        By class, against the reference.
    warnings : tuple of str
    """

    name: str
    seeds: tuple[str, ...]
    mAP: dict[str, Estimate]
    seed_spread: dict[str, SeedSpread] | None
    difference: dict[str, Difference] | None
    tally: dict[str, Tally] | None
    accuracy: Accuracy
    ap: tuple[float, ...]
    ap_difference: tuple[Difference, ...] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ClassFacts:
    """A class: index, name, group, training videos, positives in the subset."""

    index: int
    name: str
    group: str
    train_count: int
    positives: int


@dataclass(frozen=True)
class Comparison:
    """Methods side by side, in the order given; ``group_classes`` counts the classes with positives by group."""

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
    methods: tuple[Method, ...]
    protocol: str = "tie-aware"
    format_version: int = 1

    def to_json(self) -> str:
        """Return the comparison as JSON: keys sorted, the same bytes for the same input."""
        return as_json(asdict(self))


@dataclass
class _Runs:
    """What the runs of one method gave, seed by seed."""

    seeds: list[str]
    results: list[Result]
    samples: Reals  # (replicates, C), summed over the seeds

    @property
    def ap(self) -> Reals:
        by_seed = np.array([[entry.ap for entry in result.per_class] for result in self.results])
        mean: Reals = by_seed.mean(axis=0)
        return mean

    @property
    def mean_samples(self) -> Reals:
        return self.samples / len(self.seeds)


def compare(
    files: Sequence[RunFile],
    split: Split,
    subset: str,
    *,
    reference: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    allow_float16: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare runs on a subset of a split; one score matrix is in memory at a time.

    Parameters
    ----------
    files : sequence of RunFile
        Files with one method's name and several seeds are averaged.
    split : Split
    subset : str
    reference : str, optional
        The method that the others are compared with; the first where left out.
    replicates, seed : int
        Of the Bayesian bootstrap over videos; every run gets the same weights.
    allow_float16 : bool
        As for ``meidbench.evaluate``.
    advance : callable, optional
        Called with the number of classes that a step covered, of C for each run.

    Raises
    ------
    MeidbenchError
        The reference is no method, or a method has one seed twice.
    PredictionError
        A file cannot be scored; the message names it.
    """
    if not files or replicates < 2 or seed < 0:
        raise MeidbenchError("a comparison needs at least one run, two replicates, and a seed of 0 or more")
    names = list(dict.fromkeys(file.method for file in files))
    seeded = {file.method for file in files if file.seed}
    if mixed := [file.method for file in files if not file.seed and file.method in seeded]:
        raise MeidbenchError(f"{mixed[0]} has runs with and without a seed: name them all NAME@SEED, or apart")
    if reference is None:
        reference = names[0]
    if reference not in names:
        raise MeidbenchError(f"the reference {reference!r} is none of the runs: {', '.join(names)}")
    if len({(file.method, file.seed) for file in files}) < len(files):
        raise MeidbenchError(
            "two runs have one name; tell them apart by NAME=PATH, seeds of a method by NAME@SEED=PATH"
        )
    runs: dict[str, _Runs] = {}
    for file in files:
        result, samples = _score(file, split, subset, replicates, seed, allow_float16, advance)
        if file.method in runs:
            runs[file.method].seeds.append(file.seed)
            runs[file.method].results.append(result)
            runs[file.method].samples += samples
        else:
            runs[file.method] = _Runs([file.seed], [result], samples)
    first = next(iter(runs.values())).results[0]
    return Comparison(
        dataset=split.dataset,
        variant=split.variant,
        subset=subset,
        split_digest=split.digest,
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
        methods=tuple(_method(name, entry, runs[reference], name == reference, split) for name, entry in runs.items()),
    )


def _score(
    file: RunFile,
    split: Split,
    subset: str,
    replicates: int,
    seed: int,
    allow_float16: bool,
    advance: Callable[[int], None] | None,
) -> tuple[Result, Reals]:
    try:
        opened = open_predictions(file.path)
        scores = align_predictions(opened, split, subset, allow_float16=allow_float16)
    except MeidbenchError as error:
        raise type(error)(f"run {file.method} ({file.path}): {error}") from None
    assert not isinstance(scores, BlockScores)  # which are only given where a limit is
    result = evaluate_scores(scores, split, subset, warnings=run_warnings(opened.metadata))
    positives = subset_positives(split, subset)
    ap = np.array([entry.ap for entry in result.per_class])
    return result, bootstrap_samples(scores, positives, ap, replicates, seed, advance)


def _method(name: str, runs: _Runs, reference: _Runs, is_reference: bool, split: Split) -> Method:
    ap, samples = runs.ap, runs.mean_samples
    means = bootstrap_means(samples, split)
    by_seed = {group: np.array([getattr(result.mAP, group) for result in runs.results]) for group in GROUPS_SHOWN}
    difference = tally = ap_difference = None
    if not is_reference:
        change, changes = ap - reference.ap, samples - reference.mean_samples
        change_means = bootstrap_means(changes, split)
        difference, tally = {}, {}
        for group, members in group_members(split).items():
            known = change[members][~np.isnan(change[members])]
            difference[group] = _difference(
                float(known.mean()) if len(known) else float("nan"), change_means.get(group)
            )
            wins, losses = int((known > EQUAL).sum()), int((known < -EQUAL).sum())
            tally[group] = Tally(wins, len(known) - wins - losses, losses)
        ap_difference = tuple(_difference(float(value), changes[:, c]) for c, value in enumerate(change))
    return Method(
        name=name,
        seeds=tuple(runs.seeds) if runs.seeds != [""] else (),
        mAP={group: _estimate(float(values.mean()), means.get(group)) for group, values in by_seed.items()},
        seed_spread={group: _spread(values) for group, values in by_seed.items()} if len(runs.seeds) > 1 else None,
        difference=difference,
        tally=tally,
        accuracy=Accuracy(
            float(np.mean([result.accuracy.top1 for result in runs.results])),
            float(np.mean([result.accuracy.top5 for result in runs.results])),
        ),
        ap=tuple(ap.tolist()),
        ap_difference=ap_difference,
        warnings=tuple(dict.fromkeys(warning for result in runs.results for warning in result.warnings)),
    )


def _estimate(value: float, samples: Reals | None) -> Estimate:
    interval = interval_of(np.empty(0) if samples is None else samples)
    return Estimate(value, interval.low, interval.high)


def _spread(values: Reals) -> SeedSpread:
    return SeedSpread(len(values), float(values.std(ddof=1)), float(values.min()), float(values.max()))


def _difference(value: float, samples: Reals | None) -> Difference:
    if samples is None or np.isnan(samples).any():
        return Difference(value, float("nan"), float("nan"), float("nan"))
    interval = interval_of(samples, within=(-1.0, 1.0))
    even = np.abs(samples) <= EQUAL
    better = (np.count_nonzero(samples[~even] > 0) + 0.5 * np.count_nonzero(even)) / len(samples)
    return Difference(value, interval.low, interval.high, float(better))
