"""How sure a mean average precision is: the Bayesian bootstrap over videos (Rubin, 1981).

Each replicate gives every video a weight drawn from Exp(1) and scores with these weights. Resampling with replacement
would lose rare classes: one with three positives is without any in 5.5 % of the replicates.

A replicate needs, for each positive, the summed weight of the videos that score at least as high. The positives of a
class cut its ranking into segments; all segment sums of many replicates are one product of a sparse 0/1 matrix
(segments x videos) with the weights (videos x replicates).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from meidbench.evaluation.ranking import Positives, class_columns
from meidbench.evaluation.results import Interval

LEVEL = 0.95
_CLASSES = 16  # classes a sparse product covers
_WEIGHT_BYTES = 1 << 29  # weights held at a time
_DRAWN = 32  # replicates drawn at a time

Scores = npt.NDArray[Any]
Reals = npt.NDArray[np.float64]


def interval_of(samples: Reals, level: float = LEVEL, *, within: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Return the percentile interval of replicates, cut to what is possible; NaN where there are none that count."""
    if not len(samples) or np.isnan(samples).any():
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.clip(low, *within)), float(np.clip(high, *within)))


def weighted_average_precision(scores: Scores, labels: npt.NDArray[np.bool_], weights: Reals) -> Reals:
    """Average precision of each class with a weight a video.

    As ``sklearn.metrics.average_precision_score(..., sample_weight=weights)``: tied videos share a rank.

    Parameters
    ----------
    scores : ndarray, (n, C)
        Finite real numbers, higher is likelier.
    labels : ndarray of bool, (n, C)
    weights : ndarray, (n,)
        Positive numbers.

    Returns
    -------
    ndarray of float64, (C,)
        NaN for a class without positives.

    Examples
    --------
    >>> scores, labels = np.array([[3.0], [2.0], [1.0]]), np.array([[True], [False], [True]])
    >>> weighted_average_precision(scores, labels, np.array([1.0, 2.0, 1.0]))
    array([0.75])
    """
    rows, classes = np.nonzero(labels)
    positives = Positives.of(rows, classes, *np.shape(scores))
    result: Reals = _weighted(np.asarray(scores), positives, np.asarray(weights, dtype=np.float64)[:, None])[0]
    return result


def _group_size(videos: int, replicates: int) -> int:
    return max(1, min(replicates, _WEIGHT_BYTES // (8 * max(videos, 1))))


def bootstrap_steps(videos: int, num_classes: int, replicates: int) -> int:
    """Return how many steps ``bootstrap_average_precision`` will have reported when it is done."""
    return num_classes * -(-replicates // _group_size(videos, replicates)) if replicates else 0


def bootstrap_average_precision(
    scores: Scores,
    positives: Positives,
    replicates: int,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> Iterator[Reals]:
    """Yield the average precisions of groups of replicates, (replicates, C) each.

    Weights depend on the seed, the number of videos and the replicate alone, so that runs on one subset are compared
    under the same weights. ``advance`` is called with the number of classes that a step covered, of C for each group.
    """
    videos = len(scores)
    generator = np.random.default_rng(seed)
    group = _group_size(videos, replicates)
    for start in range(0, replicates, group):
        count = min(group, replicates - start)
        weights = np.empty((videos, count))
        for first in range(0, count, _DRAWN):
            # A few replicates at a time, because they are drawn row by row and used column by column.
            some = min(_DRAWN, count - first)
            weights[:, first : first + some] = generator.standard_exponential((some, videos)).T
        yield _weighted(scores, positives, weights, advance)


def _weighted(
    scores: Scores, positives: Positives, weights: Reals, advance: Callable[[int], None] | None = None
) -> Reals:
    """Return the (replicates, C) weighted average precisions; ``weights`` is (n, replicates)."""
    result = np.full((weights.shape[1], positives.num_classes), np.nan)
    for start in range(0, positives.num_classes, _CLASSES):
        stop = min(start + _CLASSES, positives.num_classes)
        columns = class_columns(scores, start, stop)
        levels = [np.unique(column[positives.rows[positives.of_class(c)]]) for c, column in enumerate(columns, start)]
        first = np.concatenate([[0], np.cumsum([len(values) for values in levels])])
        sums = _segment_sums(columns, levels, first, weights)
        for c, (column, values) in enumerate(zip(columns, levels, strict=True), start):
            if len(values):
                rows = positives.rows[positives.of_class(c)]
                segment = len(values) - 1 - np.searchsorted(values, column[rows])
                mine = _sum_by(segment, weights[rows], len(values))
                reached = np.cumsum(sums[first[c - start] : first[c - start + 1]], axis=0)
                precision = np.cumsum(mine, axis=0) / reached
                result[:, c] = (mine * precision).sum(axis=0) / mine.sum(axis=0)
        if advance is not None:
            advance(stop - start)
    return result


def _segment_sums(columns: Scores, levels: list[Scores], first: npt.NDArray[Any], weights: Reals) -> Reals:
    """Sum the weights between neighbouring levels of each class: (segments, replicates), highest level first."""
    videos = columns.shape[1]
    segments = np.empty((videos, len(columns)), dtype=np.int32)
    counted = np.empty((videos, len(columns)), dtype=bool)
    for place, (column, values) in enumerate(zip(columns, levels, strict=True)):
        # Videos below the lowest positive are in no segment: they count for none.
        reached = np.searchsorted(values, column, "right")
        counted[:, place] = reached > 0
        segments[:, place] = first[place] + len(values) - reached
    ends = np.concatenate([[0], np.cumsum(counted.sum(axis=1))]).astype(np.int32)
    chosen = segments[counted]
    shape = (int(first[-1]), videos)
    matrix = sparse.csc_matrix((np.ones(len(chosen)), chosen, ends), shape=shape)
    result: Reals = matrix @ weights
    return result


def _sum_by(groups: npt.NDArray[Any], values: Reals, count: int) -> Reals:
    """Sum rows of values by group: (count, replicates)."""
    ones = np.ones(len(groups))
    matrix = sparse.csc_matrix((ones, groups, np.arange(len(groups) + 1)), shape=(count, len(groups)))
    result: Reals = matrix @ values
    return result
