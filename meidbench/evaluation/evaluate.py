"""Average precision per class, its mean per frequency group, and top-k accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.checks import one_of, whole_number
from meidbench.errors import PredictionError, RequestError
from meidbench.evaluation.bootstrap import LEVEL, bootstrap_samples, compute_interval
from meidbench.evaluation.ranking import Positives, RankCounts, concatenate_ranges, count_ranks, precision_from_counts
from meidbench.evaluation.results import (
    GROUPS_SHOWN,
    Accuracy,
    ClassResult,
    CrossCheck,
    Diagnostics,
    Group,
    Intervals,
    MeanAP,
    Result,
    find_watermarks,
)
from meidbench.names import Advance, Report
from meidbench.predictions.align import BlockScores, align_predictions, not_finite, reading_warnings
from meidbench.predictions.values import as_array, as_predictions, check_numbers
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.split import Split, load_split

_ROWS = 4096  # videos compared at a time in the top-k pass
_TOP = (1, 5)
_CHECKED_BYTES = 1 << 28  # bytes of scores that are gathered at a time for a cross-check
_DIFFERENCE_ALLOWED = 1e-9  # of scikit-learn's average precision, which is summed up in another order
_TIES_ALLOWED = 0.05  # share of the positives; more of them are worth a warning

Scores = npt.NDArray[Any]
Reals = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Protocol:
    """A definition of average precision."""

    in_list_order: bool = False  # videos with the same score rank as in the split's official list, or share a rank
    single_precision: bool = False  # scores are rounded to float32 first
    unlabelled_last: bool = False  # videos without a label rank below all others
    without_positives: float = float("nan")  # the AP of a class without positives; NaN leaves it out of the means


PROTOCOLS = {
    # scikit-learn's definition: the order of a file or of a sort never matters.
    "tie-aware": Protocol(),
    # The torchnet meter in VideoLT's code (ops/apmeter.py): float32, zero for an empty class. Its sort is not stable:
    # from 17 videos on its ties have no defined order. List order stands in for it, so that a number can be repeated.
    "apmeter": Protocol(in_list_order=True, single_precision=True, without_positives=0.0),
    # The official Charades_v1_classify.m: a stable sort in list order, rows without label stay at -Inf.
    "charades": Protocol(in_list_order=True, unlabelled_last=True),
}


def average_precision(scores: Scores, labels: Labels) -> Reals:
    """Compute the average precision of each class.

    AP of a class is the mean over its positives of (positives with a score at least as high) / (videos with a score
    at least as high), so tied videos share a rank, as ``sklearn.metrics.average_precision_score`` defines it.

    Parameters
    ----------
    scores : ndarray or tensor, (n, C)
        Finite real numbers of any type; a higher score is more likely.
    labels : ndarray or tensor of bool, (n, C)

    Returns
    -------
    ndarray of float64, (C,)
        NaN for a class without positives.

    Raises
    ------
    PredictionError
        The shapes differ, or a score is NaN or infinite.

    Examples
    --------
    >>> scores = np.array([[0.9], [0.8], [0.8], [0.1]])
    >>> average_precision(scores, np.array([[True], [False], [True], [False]]))
    array([0.83333333])
    """
    _compare_frames(scores, labels)
    scores, labels = as_array("scores", scores), as_array("labels", labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise PredictionError(f"scores have shape {scores.shape}, labels {labels.shape}; expected (n, C) of both")
    check_numbers(scores)
    if labels.dtype != bool and not np.isin(labels, (0, 1)).all():
        raise PredictionError("labels must be true or false (or 1 or 0), one column per class, not class indices")
    if any(not_finite(scores[start : start + _ROWS]) for start in range(0, len(scores), _ROWS)):
        raise PredictionError("the scores hold NaN or infinity")
    # Several times faster than np.nonzero of a matrix.
    rows, classes = np.divmod(np.flatnonzero(labels), max(scores.shape[1], 1))
    positives = Positives.from_pairs(rows, classes, *scores.shape)
    counts = count_ranks(as_blocks(scores).blocks, positives, scores.dtype, in_list_order=False)
    return precision_from_counts(counts, positives)


def _compare_frames(scores: Any, labels: Any) -> None:
    """Refuse two DataFrames with the same rows or columns in different orders."""
    if not all(hasattr(given, "iloc") and hasattr(given, "columns") for given in (scores, labels)):
        return
    for axis in ("index", "columns"):
        one, other = getattr(scores, axis), getattr(labels, axis)
        if not one.equals(other) and set(one) == set(other):
            order = f"the {axis} of scores and labels are in another order"
            raise PredictionError(f"{order}: pass scores.reindex_like(labels)")


def as_blocks(scores: Scores | BlockScores) -> BlockScores:
    """Return (n, C) scores in memory as one block of all rows."""
    if isinstance(scores, BlockScores):
        return scores
    videos, classes = scores.shape
    return BlockScores(videos, classes, scores.dtype, lambda: [(np.arange(videos), scores)])


def top_k_hits(
    scores: Scores, rows: npt.NDArray[Any], classes: npt.NDArray[Any], ks: Sequence[int]
) -> dict[int, npt.NDArray[np.bool_]]:
    """Return for each video whether it has a label among its k best classes.

    Of classes with the same score the lower index comes first, so the answer does not depend on a sort. A video
    without a label is not a hit. ``rows`` and ``classes`` hold one entry per label, row by row.
    """
    hits = {k: np.zeros(len(scores), dtype=bool) for k in ks}
    if not len(rows):
        return hits
    given = scores[rows, classes]
    labelled, first = np.unique(rows, return_index=True)
    best = np.maximum.reduceat(given, first)
    is_best = given == np.repeat(best, np.diff(np.append(first, len(rows))))
    # Among a video's labels with the best score, the first one decides ties with other classes.
    best_class = np.minimum.reduceat(np.where(is_best, classes.astype(np.int64), scores.shape[1]), first)
    rank = np.empty(len(labelled), dtype=np.int64)
    for start in range(0, len(labelled), _ROWS):
        part = slice(start, start + _ROWS)
        block = scores[labelled[part]] if len(labelled) < len(scores) else scores[part]
        level = best[part, None]
        rank[part] = np.count_nonzero(block >= level, axis=1) - 1
        tied = np.flatnonzero(rank[part] > 0)
        equal = block[tied] == level[tied]
        earlier = np.arange(scores.shape[1]) < best_class[part][tied, None]
        rank[part][tied] -= np.count_nonzero(equal & ~earlier, axis=1) - 1
    for k in ks:
        hits[k][labelled] = rank < k
    return hits


def _accuracy(scores: BlockScores, split: Split, subset: str) -> Accuracy:
    rows, classes = split.label_pairs(subset)
    first = np.searchsorted(rows, np.arange(scores.videos + 1))
    hits = []
    for block_rows, block in scores.blocks():
        starts = first[block_rows]
        counts = first[block_rows + 1] - starts
        mine = classes[concatenate_ranges(starts, counts)]
        hits.append(top_k_hits(block, np.repeat(np.arange(len(block)), counts), mine, _TOP))
    return Accuracy(*(_mean(np.concatenate([found[k] for found in hits])) for k in _TOP))


def subset_positives(split: Split, subset: str) -> Positives:
    """Return the labels of a subset, ordered by class."""
    return Positives.from_pairs(*split.label_pairs(subset), len(split.rows(subset)), split.num_classes)


class ProtocolScorer:
    """Average precision by every protocol. Protocols that see the same scores share the counts."""

    def __init__(self, scores: BlockScores, positives: Positives) -> None:
        self.scores = scores
        self.positives = positives
        self.labelled = np.zeros(scores.videos, dtype=bool)
        self.labelled[positives.rows] = True
        self.counted: dict[tuple[bool, bool], RankCounts] = {}

    def count(self, protocol: Protocol) -> RankCounts:
        """Count ranks among the scores as a protocol sees them."""
        # float32 holds every value of these types, so rounding to it would change nothing.
        exact = self.scores.dtype in (np.float16, np.float32, np.int8, np.uint8, np.int16, np.uint16)
        rounded = protocol.single_precision and not exact
        # A positive is a labelled video, so videos that rank below all labelled videos can be left out.
        only_labelled = protocol.unlabelled_last and not bool(self.labelled.all())
        key = (rounded, only_labelled)
        if key not in self.counted:
            dtype = np.dtype(np.float32) if rounded else self.scores.dtype
            keep = self.labelled if only_labelled else None
            self.counted[key] = count_ranks(self.scores.blocks, self.positives, dtype, keep=keep)
        return self.counted[key]

    def average_precision(self, protocol: Protocol) -> Reals:
        """Return the (C,) average precisions by a protocol."""
        ap = precision_from_counts(self.count(protocol), self.positives, in_list_order=protocol.in_list_order)
        return np.where(np.isnan(ap), protocol.without_positives, ap)


def choose_subset(split: Split, subset: str | None, report: Report) -> str:
    """Return the subset to score, by default the split's; a note tells where that is not test."""
    if subset is None and split.default_subset != "test":
        report(f"note: {split.dataset} has no test videos, so its {split.default_subset} is scored")
    return subset or split.default_subset


def group_members(split: Split) -> dict[str, npt.NDArray[np.intp]]:
    """Return the class indices of overall, head, medium and tail."""
    return {"overall": np.arange(split.num_classes), **{name: getattr(split.groups, name) for name in GROUP_NAMES}}


def mean_by_group(ap: Reals, split: Split) -> MeanAP:
    """Average (C,) average precisions over the classes of each group; classes with NaN are left out."""
    return MeanAP(**{name: _mean(ap[index][~np.isnan(ap[index])]) for name, index in group_members(split).items()})


def bootstrap_means(samples: Reals, groups: Mapping[str, npt.NDArray[np.intp]]) -> dict[str, Reals]:
    """Average (replicates, C) average precisions over the classes of each group; empty for a group without classes."""
    present: Labels = np.asarray(~np.isnan(samples).any(axis=0))
    chosen = {name: members[present[members]] for name, members in groups.items()}
    return {name: samples[:, members].mean(axis=1) if len(members) else np.empty(0) for name, members in chosen.items()}


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _equal(a: MeanAP, b: MeanAP) -> bool:
    return np.allclose(list(vars(a).values()), list(vars(b).values()), rtol=0, atol=1e-12, equal_nan=True)


def evaluate_scores(
    scores: Scores | BlockScores,
    split: Split,
    subset: str,
    *,
    protocol: str = "tie-aware",
    bootstrap: int = 0,
    seed: int = 0,
    cross_check: bool = False,
    warnings: Sequence[str] = (),
    advance: Advance | None = None,
) -> Result:
    """Score predictions that are checked and in the order of ``split.video_ids(subset)``; see ``evaluate``."""
    one_of("protocol", protocol, tuple(PROTOCOLS), PredictionError)
    if cross_check and protocol != "tie-aware":
        raise RequestError("the cross-check needs the protocol tie-aware: scikit-learn knows no other")
    whole_number("bootstrap", bootstrap, 0, PredictionError)
    whole_number("seed", seed, 0, PredictionError)
    if bootstrap == 1:
        raise RequestError("an interval needs at least 2 replicates of the bootstrap, got 1; 0 makes no intervals")
    if bootstrap and isinstance(scores, BlockScores):
        raise PredictionError("intervals need the scores in memory: raise --memory, or leave out --bootstrap")
    if bootstrap and protocol != "tie-aware":
        raise PredictionError("intervals are made for the protocol tie-aware: videos that share a score have no order")
    blocks, labels = as_blocks(scores), subset_positives(split, subset)
    scorer = ProtocolScorer(blocks, labels)
    precisions = {name: scorer.average_precision(definition) for name, definition in PROTOCOLS.items()}
    means = {name: mean_by_group(values, split) for name, values in precisions.items()}
    counts = scorer.count(PROTOCOLS["tie-aware"])
    positives = split.positives(subset)
    present = {name: index[positives[index] > 0] for name, index in group_members(split).items()}
    groups, ap = split.groups.names(split.num_classes), precisions[protocol].tolist()
    facts = zip(split.class_names, groups, split.train_counts.tolist(), positives.tolist(), ap, strict=True)
    intervals = None
    if bootstrap and not isinstance(scores, BlockScores):
        samples = bootstrap_samples(scores, labels, precisions[protocol], bootstrap, seed, advance)
        intervals = _intervals(samples, split, seed)
    return Result(
        accuracy=_accuracy(blocks, split, subset),
        dataset=split.dataset,
        variant=split.variant,
        subset=subset,
        split_digest=split.digest,
        content_digest=split.content_digest,
        thresholds=split.thresholds,
        group_names=split.group_names,
        notes=(*find_watermarks(warnings), *split.notes),
        protocol=protocol,
        mAP=means[protocol],
        groups={name: Group(len(index), int(positives[index].sum())) for name, index in present.items()},
        diagnostics=Diagnostics(
            videos=labels.videos,
            classes_without_positives=int((positives == 0).sum()),
            tied_score_fraction=_mean(counts.tied) if len(counts.tied) else 0.0,
            constant_classes=int(counts.constant.sum()),
            score_dtype=str(scores.dtype),
        ),
        per_class=tuple(ClassResult(index, *fact) for index, fact in enumerate(facts)),
        other_protocols={name: other for name, other in means.items() if not _equal(other, means[protocol])},
        warnings=(*warnings, *_tie_warnings(counts, labels)),
        intervals=intervals,
        cross_check=cross_check_precisions(blocks, labels, precisions[protocol]) if cross_check else None,
    )


def cross_check_precisions(scores: BlockScores, positives: Positives, ap: Reals) -> CrossCheck:
    """Compute every average precision again with scikit-learn, and refuse values that are others.

    The scores of some classes are gathered at a time, with one pass over the blocks for each.
    """
    from sklearn.metrics import average_precision_score

    again = np.full(len(ap), np.nan)
    step = max(1, _CHECKED_BYTES // (scores.dtype.itemsize * max(scores.videos, 1)))
    for start in range(0, len(ap), step):
        columns = np.empty((min(step, len(ap) - start), scores.videos), scores.dtype)
        for rows, block in scores.blocks():
            columns[:, rows] = block[:, start : start + step].T
        for index, column in enumerate(columns, start):
            labels = np.zeros(scores.videos, bool)
            labels[positives.rows[positives.class_slice(index)]] = True
            if labels.any():
                again[index] = average_precision_score(labels, column)
    differences = np.where(np.isnan(again) & np.isnan(ap), 0.0, np.abs(again - ap))
    differences[np.isnan(differences)] = np.inf  # one of the two has no value
    worst = int(differences.argmax())
    if differences[worst] > _DIFFERENCE_ALLOWED:
        raise PredictionError(
            f"the average precision of class {worst} is {float(ap[worst])!r}, and {float(again[worst])!r} by "
            "scikit-learn: this is a fault of meidbench or of scikit-learn, please report it"
        )
    return CrossCheck(int((~np.isnan(again)).sum()), float(differences[worst]), worst)


def _tie_warnings(counts: RankCounts, positives: Positives) -> list[str]:
    if not _mean(counts.tied) > _TIES_ALLOWED:  # ties with any video, which are counted faster
        return []
    share = _mean(counts.tied_with_negatives(positives))
    if share <= _TIES_ALLOWED:
        return []
    return [
        f"{share:.0%} of the positives have the same score as a video without their class, so their order is unknown "
        "and the mAP may be far from the model's. Sigmoids in float32 are exactly 1 for all logits above 17; float16, "
        "bfloat16, rounded numbers and one score for all classes that were left out make ties, too. Write the logits "
        "of all classes in float32 instead of probabilities"
    ]


def _intervals(samples: Reals, split: Split, seed: int) -> Intervals:
    means = bootstrap_means(samples, group_members(split))
    return Intervals(
        method="Bayesian bootstrap over videos, percentile, centred on the value",
        replicates=len(samples),
        seed=seed,
        level=LEVEL,
        mAP={name: compute_interval(means[name]) for name in GROUPS_SHOWN},
        per_class=tuple(compute_interval(column) for column in samples.T),
    )


def evaluate(
    scores: Any,
    video_ids: Any = None,
    split: Split | str | Path | None = None,
    subset: str | None = None,
    *,
    protocol: str = "tie-aware",
    bootstrap: int = 0,
    seed: int = 0,
    allow_float16: bool = False,
    cross_check: bool = False,
) -> Result:
    """Score predictions on a subset of a split.

    Parameters
    ----------
    scores : array, tensor or list, (n, C); or DataFrame, path, list of paths, Predictions
        Real numbers; a higher score is more likely. Only the order within a class matters. A DataFrame has one row per
        video and one column per class. A path is that of a prediction file or of a folder of them.
    video_ids : sequence of str
        n ids, in the order of the rows of ``scores``; the split may have another order. Left out for a DataFrame that
        has the ids as index or as column ``video_id``, and for files.
    split : Split, str or Path
        As for ``load_split``.
    subset : str, optional
        ``train``, ``val`` or ``test``; by default ``split.default_subset``: test, or val where there is no test.
    protocol : str
        A key of ``PROTOCOLS``.
    bootstrap, seed : int
        Replicates and seed of the Bayesian bootstrap over videos, for the intervals; 0 replicates for no intervals.
    allow_float16 : bool
        Accept half precision (float16, bfloat16), in which rounding makes ties.
    cross_check : bool
        Compute every average precision again with scikit-learn; ``Result.cross_check`` has the largest difference.

    Returns
    -------
    Result
        E.g. ``evaluate(...).mAP.tail``, ``evaluate(...).to_pandas()``.

    Raises
    ------
    PredictionError
        As ``meidbench.predictions.align.align_predictions``; an argument makes no sense.
    SplitError
        The split does not exist, or has no such subset.

    Examples
    --------
    >>> import pandas as pd
    >>> from meidbench.features.simulation import simulate_split
    >>> split = simulate_split((30, 9, 9), num_classes=4)
    >>> ids, labels = split.video_ids("test"), split.labels("test")
    >>> evaluate(labels.astype(float), ids, split).mAP.overall
    1.0
    >>> frame = pd.DataFrame(labels.astype(float), index=ids, columns=split.class_names)
    >>> evaluate(frame, split=split, subset="test").mAP.overall
    1.0
    """
    if isinstance(video_ids, Split):
        raise RequestError("the split is given as video_ids: pass it by name, evaluate(scores, split=split)")
    split = load_split(split)  # type: ignore[arg-type]
    subset = split.default_subset if subset is None else subset
    given = as_predictions(scores, video_ids, half=allow_float16)
    aligned = align_predictions(given, split, subset, allow_float16=allow_float16)
    return evaluate_scores(
        aligned, split, subset, protocol=protocol, bootstrap=bootstrap, seed=seed, cross_check=cross_check,
        warnings=reading_warnings(given, split),
    )  # fmt: skip
