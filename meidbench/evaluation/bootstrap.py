"""Intervals of means over classes: the Bayesian bootstrap over videos (Rubin, 1981).

Each replicate draws a weight from Exp(1) for every video and scores with these weights. Resampling with replacement
would lose rare classes: a class with three positives has no positive in 5.5 % of the replicates.

A replicate of average precision needs, for each positive, the summed weight of the videos that score at least as high.
The positives of a class cut its ranking into segments. All segment sums of many replicates are one product of a sparse
0/1 matrix (segments x videos) with the weights (videos x replicates).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from meidbench.evaluation.accuracy import recall_by_class
from meidbench.evaluation.ranking import Positives, class_columns
from meidbench.evaluation.results import Interval
from meidbench.names import Advance

LEVEL = 0.95
_CLASSES = 16  # classes per sparse product
_WEIGHT_BYTES = 1 << 29  # bytes of weights in memory at a time
_DRAWN = 32  # replicates drawn at a time

Scores = npt.NDArray[Any]
Reals = npt.NDArray[np.float64]


def compute_interval(samples: Reals) -> Interval:
    """Return the percentile interval of replicates, cut to 0 and 1; NaN if a replicate is NaN or missing."""
    if not len(samples) or np.isnan(samples).any():
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.clip(low, 0.0, 1.0)), float(np.clip(high, 0.0, 1.0)))


def correct_holm(probabilities: Sequence[float]) -> list[float]:
    """Correct the two-sided probabilities of several differences that are tested together.

    The smallest of m probabilities is multiplied by m, the next by m - 1, and so on; none becomes smaller than the one
    before it, or larger than 1. A NaN does not count and stays NaN. Source: S. Holm, "A simple sequentially rejective
    multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Examples
    --------
    >>> correct_holm([0.5, 0.01, 0.03])
    [0.5, 0.03, 0.06]
    """
    tests = [place for place, value in enumerate(probabilities) if not math.isnan(value)]
    corrected, highest = [math.nan] * len(probabilities), 0.0
    for rank, place in enumerate(sorted(tests, key=lambda place: probabilities[place])):
        highest = max(highest, min(1.0, (len(tests) - rank) * probabilities[place]))
        corrected[place] = highest
    return corrected


def _group_size(videos: int, replicates: int) -> int:
    return max(1, min(replicates, _WEIGHT_BYTES // (8 * max(videos, 1))))


def bootstrap_steps(videos: int, num_classes: int, replicates: int) -> int:
    """Return the number of steps that ``bootstrap_average_precision`` reports in all."""
    return num_classes * -(-replicates // _group_size(videos, replicates)) if replicates else 0


def bootstrap_samples(
    scores: Scores, positives: Positives, ap: Reals, replicates: int, seed: int, advance: Advance | None = None
) -> Reals:
    """Return the (replicates, C) average precisions of a Bayesian bootstrap over videos, centred on ``ap``.

    A positive is one of the videos that score at least as high as itself, so a large weight raises its own precision:
    replicates lie above the value, by more than their spread where many classes with low AP are averaged. On 1,000
    videos, 40 classes of 20 positives and a mean AP of 0.11, plain percentile intervals held the expected value in
    71 % of the cases, centred intervals in 97 %.
    """
    return _centre(list(bootstrap_average_precision(scores, positives, replicates, seed, advance)), ap)


def _centre(groups: Sequence[Reals], values: Reals) -> Reals:
    samples = np.concatenate(groups)
    centred: Reals = samples + (values - samples.mean(axis=0))
    return centred


def bootstrap_recall(
    hits: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64], num_classes: int, replicates: int, seed: int
) -> Reals:
    """Return the (replicates, C) recalls of a Bayesian bootstrap over videos, centred on the recall.

    A replicate of a class is the weight of its hits divided by the weight of its videos (see ``recall_by_class``), NaN
    without videos. The weights are those of ``bootstrap_average_precision``.
    """
    samples = []
    for weights in draw_weights(len(hits), replicates, seed):
        found = _sum_by(classes, weights, num_classes, hits.astype(np.float64))
        with np.errstate(invalid="ignore"):
            samples.append((found / _sum_by(classes, weights, num_classes)).T)
    return _centre(samples, recall_by_class(hits, classes, num_classes))


def bootstrap_average_precision(
    scores: Scores, positives: Positives, replicates: int, seed: int, advance: Advance | None = None
) -> Iterator[Reals]:
    """Yield the average precisions of groups of replicates, (replicates, C) each.

    ``advance`` is called with the number of classes of each step; a group has C classes.
    """
    for weights in draw_weights(len(scores), replicates, seed):
        yield weighted_average_precision(scores, positives, weights, advance)


def draw_weights(videos: int, replicates: int, seed: int) -> Iterator[Reals]:
    """Yield the weights of groups of replicates, (n, replicates) each.

    They depend only on the seed, the number of videos and the replicate, so all runs on one subset are compared under
    the same weights.
    """
    generator = np.random.default_rng(seed)
    group = _group_size(videos, replicates)
    for start in range(0, replicates, group):
        count = min(group, replicates - start)
        weights = np.empty((videos, count))
        for first in range(0, count, _DRAWN):
            # A few replicates at a time: the weights are drawn by row and used by column.
            drawn = min(_DRAWN, count - first)
            weights[:, first : first + drawn] = generator.standard_exponential((drawn, videos)).T
        yield weights


def weighted_average_precision(
    scores: Scores, positives: Positives, weights: Reals, advance: Advance | None = None
) -> Reals:
    """Compute average precision, (replicates, C), under positive weights (n, replicates); NaN without positives.

    As ``sklearn.metrics.average_precision_score(..., sample_weight=weights)``: tied videos share a rank.
    """
    result = np.full((weights.shape[1], positives.num_classes), np.nan)
    for start in range(0, positives.num_classes, _CLASSES):
        stop = min(start + _CLASSES, positives.num_classes)
        columns = class_columns(scores, start, stop)
        rows = [positives.rows[positives.class_slice(index)] for index in range(start, stop)]
        levels = [np.unique(column[mine]) for column, mine in zip(columns, rows, strict=True)]
        first = np.concatenate([[0], np.cumsum([len(values) for values in levels])])
        sums = _segment_sums(columns, levels, first, weights)
        for place, (column, mine, values) in enumerate(zip(columns, rows, levels, strict=True)):
            if len(values):
                segment = len(values) - 1 - np.searchsorted(values, column[mine])
                own = _sum_by(segment, weights[mine], len(values))
                reached = np.cumsum(sums[first[place] : first[place + 1]], axis=0)
                precision = np.cumsum(own, axis=0) / reached
                result[:, start + place] = (own * precision).sum(axis=0) / own.sum(axis=0)
        if advance is not None:
            advance(stop - start)
    return result


def _segment_sums(columns: Scores, levels: list[Scores], first: npt.NDArray[Any], weights: Reals) -> Reals:
    """Sum the weights between neighbouring levels of each class: (segments, replicates), highest level first."""
    videos = columns.shape[1]
    segments = np.empty((videos, len(columns)), dtype=np.int32)
    counted = np.empty((videos, len(columns)), dtype=bool)
    for place, (column, values) in enumerate(zip(columns, levels, strict=True)):
        # A video below the lowest positive belongs to no segment.
        reached = np.searchsorted(values, column, "right")
        counted[:, place] = reached > 0
        segments[:, place] = first[place] + len(values) - reached
    ends = np.concatenate([[0], np.cumsum(counted.sum(axis=1))]).astype(np.int32)
    chosen = segments[counted]
    matrix = sparse.csc_matrix((np.ones(len(chosen)), chosen, ends), shape=(int(first[-1]), videos))
    result: Reals = matrix @ weights
    return result


def _sum_by(groups: npt.NDArray[Any], values: Reals, count: int, factors: Reals | None = None) -> Reals:
    """Sum rows of values, times a factor per row, by group: (count, replicates)."""
    factors = np.ones(len(groups)) if factors is None else factors
    matrix = sparse.csc_matrix((factors, groups, np.arange(len(groups) + 1)), shape=(count, len(groups)))
    result: Reals = matrix @ values
    return result
