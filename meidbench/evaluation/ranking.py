"""Average precision from counts: for each positive, how many videos of its class score as high or higher.

The other scores of a class do not matter, so the same counts can be added up for a whole matrix, or block by block for
a file larger than memory. One pass over the blocks collects the scores of the positives, the next pass counts.
"""

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

_CLASSES = 32  # classes copied at a time: two cache lines of float32 per row
_TILE = 256  # rows copied at a time, so that a tile stays in the fastest cache

Scores = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Block = tuple[Counts, Scores]  # rows of the subset, and their (rows, C) scores
ClassVisitor = Callable[[int, Scores, Counts], None]  # called with a class, its scores, and the rows that have them


@dataclass(frozen=True)
class Positives:
    """The labels of a subset: the row and the class of each label, ordered by class and then by row.

    ``bounds`` (C + 1,) holds the index at which each class begins.
    """

    rows: Counts
    classes: Counts
    bounds: Counts
    videos: int

    @classmethod
    def from_pairs(
        cls, rows: npt.NDArray[Any], classes: npt.NDArray[Any], videos: int, num_classes: int
    ) -> "Positives":
        """Order the labels of n = ``videos`` videos by class; ``rows`` and ``classes`` hold one entry per label."""
        order = np.lexsort((rows, classes))
        rows, classes = rows[order].astype(np.int64), classes[order].astype(np.int64)
        return cls(rows, classes, np.searchsorted(classes, np.arange(num_classes + 1)), videos)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.bounds) - 1

    def class_slice(self, index: int) -> slice:
        """Return the slice of the positives that belong to a class."""
        return slice(int(self.bounds[index]), int(self.bounds[index + 1]))


@dataclass(frozen=True)
class RankCounts:
    """Counts for each of P positives, in the order of ``Positives``, over the videos that are ranked for its class."""

    at_least: Counts  # (P,) videos with the same or a higher score; the positive itself is one of them
    above: Counts  # (P,) videos with a higher score
    earlier: Counts  # (P,) videos with the same score that come earlier in the list
    constant: npt.NDArray[np.bool_]  # (C,) whether all videos have the same score for a class

    @property
    def tied(self) -> npt.NDArray[np.bool_]:
        """(P,) whether a positive has the same score as another video."""
        return self.at_least - self.above > 1

    def tied_with_negatives(self, positives: Positives) -> npt.NDArray[np.bool_]:
        """(P,) whether a positive has the same score as a video without its class."""
        # The positives of a class that share a score are those with the same number of videos at or above it.
        score = positives.classes * (positives.videos + 1) + self.at_least
        _, place, sharing = np.unique(score, return_inverse=True, return_counts=True)
        negatives: npt.NDArray[np.bool_] = self.at_least - self.above > sharing[place]
        return negatives


def count_ranks(
    blocks: Callable[[], Iterable[Block]],
    positives: Positives,
    dtype: np.dtype[Any],
    *,
    keep: npt.NDArray[np.bool_] | None = None,
    in_list_order: bool = True,
) -> RankCounts:
    """Count, for each positive, the videos that rank before it.

    Each call of ``blocks`` gives all rows once, in any order; a third call is made only for ties. Scores are rounded to
    ``dtype``. ``keep``, (n,) bool, marks the rows that are ranked; all positives must be among them.
    ``in_list_order=False`` leaves ``earlier`` at zero, which is faster where many scores are tied.
    """
    scores = _collect_scores(blocks(), positives, dtype)
    at_least, above, earlier = (np.zeros(len(scores), dtype=np.int64) for _ in range(3))
    lowest, highest = [math.inf] * positives.num_classes, [-math.inf] * positives.num_classes

    ranked = positives.videos if keep is None else int(keep.sum())
    ties_are_counted = False

    def count(index: int, column: Scores, rows: Counts) -> None:
        nonlocal ties_are_counted
        mine = positives.class_slice(index)
        ascending = np.sort(column)
        at_least[mine] += len(column) - np.searchsorted(ascending, scores[mine], "left")
        above[mine] += len(column) - np.searchsorted(ascending, scores[mine], "right")
        if len(column):
            lowest[index] = min(lowest[index], ascending[0])
            highest[index] = max(highest[index], ascending[-1])
        # A block of all ranked rows: its ties are counted at once, without a further pass.
        if in_list_order and len(rows) == ranked:
            ties_are_counted = True
            count_earlier(index, column, rows)

    def count_earlier(index: int, column: Scores, rows: Counts) -> None:
        mine = positives.class_slice(index)
        for score in np.unique(scores[mine][at_least[mine] - above[mine] > 1]):
            same = np.sort(rows[column == score])
            chosen = scores[mine] == score
            earlier[mine][chosen] += np.searchsorted(same, positives.rows[mine][chosen])

    _visit_classes(blocks(), dtype, keep, count)
    constant = np.array([low == high for low, high in zip(lowest, highest, strict=True)], dtype=bool)
    counts = RankCounts(at_least, above, earlier, constant)
    if in_list_order and not ties_are_counted and counts.tied.any():
        _visit_classes(blocks(), dtype, keep, count_earlier)
    return counts


def _collect_scores(blocks: Iterable[Block], positives: Positives, dtype: np.dtype[Any]) -> Scores:
    """Return the (P,) scores of the positives."""
    by_row = np.argsort(positives.rows, kind="stable")
    sorted_rows = positives.rows[by_row]
    collected = np.empty(len(sorted_rows), dtype=dtype)
    for rows, scores in blocks:
        starts = np.searchsorted(sorted_rows, rows, "left")
        counts = np.searchsorted(sorted_rows, rows, "right") - starts
        chosen = by_row[concatenate_ranges(starts, counts)]
        with np.errstate(over="ignore"):
            collected[chosen] = scores[np.repeat(np.arange(len(rows)), counts), positives.classes[chosen]]
    return collected


def concatenate_ranges(starts: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Counts:
    """Return ``starts[i], ..., starts[i] + counts[i] - 1`` of every i, one after the other."""
    offsets = np.cumsum(counts) - counts - starts
    indices: Counts = np.arange(counts.sum()) - np.repeat(offsets, counts)
    return indices


def _visit_classes(
    blocks: Iterable[Block], dtype: np.dtype[Any], keep: npt.NDArray[np.bool_] | None, visit: ClassVisitor
) -> None:
    """Call ``visit`` for every class of every block, on several threads: NumPy copies and sorts in parallel."""

    def visit_classes(rows: Counts, scores: Scores, start: int) -> None:
        columns = class_columns(scores, start, start + _CLASSES, dtype)
        if keep is not None:
            rows, columns = rows[keep[rows]], columns[:, keep[rows]]
        for index, column in enumerate(columns, start):
            visit(index, column, rows)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for rows, scores in blocks:
            list(pool.map(partial(visit_classes, rows, scores), range(0, scores.shape[1], _CLASSES)))


def class_columns(scores: Scores, start: int, stop: int, dtype: np.dtype[Any] | None = None) -> Scores:
    """Copy some classes of (n, C) scores so that the scores of a class are contiguous: (stop - start, n).

    Rows of many classes are a memory page apart. A plain transpose would look up every page again for each class and
    take three times as long as this copy in tiles.
    """
    columns = np.empty((min(stop, scores.shape[1]) - start, len(scores)), dtype=dtype or scores.dtype)
    with np.errstate(over="ignore"):  # a score too large for float32 becomes infinite, as in a float32 meter
        for row in range(0, len(scores), _TILE):
            columns[:, row : row + _TILE] = scores[row : row + _TILE, start:stop].T
    return columns


def precision_from_counts(
    counts: RankCounts, positives: Positives, *, in_list_order: bool = False
) -> npt.NDArray[np.float64]:
    """Compute (C,) average precisions, NaN without positives; tied videos share their lowest rank, or rank in order."""
    ap = np.full(positives.num_classes, np.nan)
    ranks = counts.above + counts.earlier + 1 if in_list_order else counts.at_least
    for index in range(positives.num_classes):
        own = np.sort(ranks[positives.class_slice(index)])
        if len(own):
            # The numerator counts the positives that rank at the same place or before it.
            ap[index] = (np.searchsorted(own, own, "right") / own).mean()
    return ap
