"""Where the positives of each class rank: the counts from which every average precision follows.

Only positives matter. A class needs, for each of its positives, how many videos score at least as high, and nothing
else of the other videos. In memory the scores of a class are sorted and the positives looked up; for a file larger than
memory the same counts are added up block by block, in two passes (gather the positives, then count against them).
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 32  # classes copied out at a time: two cache lines of float32 a row
_TILE = 256  # rows of a tile, so that a tile stays in the fastest cache

Scores = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Block = tuple[Counts, Scores]  # the rows (as in the split) that a block of scores belongs to, and the scores


@dataclass(frozen=True)
class Positives:
    """The labels of a subset: row and class of each, ordered by class and then by row.

    ``bounds`` (C + 1,) says where each class begins.
    """

    rows: Counts
    classes: Counts
    bounds: Counts
    videos: int

    @classmethod
    def of(cls, rows: npt.NDArray[Any], classes: npt.NDArray[Any], videos: int, num_classes: int) -> "Positives":
        """Order labels by class; ``rows`` and ``classes`` name each label of n = ``videos`` videos."""
        order = np.lexsort((rows, classes))
        rows, classes = rows[order].astype(np.int64), classes[order].astype(np.int64)
        return cls(rows, classes, np.searchsorted(classes, np.arange(num_classes + 1)), videos)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.bounds) - 1

    def of_class(self, index: int) -> slice:
        """Return which positives are those of a class."""
        return slice(int(self.bounds[index]), int(self.bounds[index + 1]))


@dataclass(frozen=True)
class Ranks:
    """For each positive, in the order of ``Positives``, what ranks before it among the videos of its class.

    Attributes
    ----------
    at_least : (P,) int64
        Videos with a score at least as high, the positive itself included.
    above : (P,) int64
        Videos with a higher score.
    earlier : (P,) int64
        Videos with the same score that stand earlier in the list.
    constant : (C,) bool
        Whether a class has one score for all videos.
    """

    at_least: Counts
    above: Counts
    earlier: Counts
    constant: npt.NDArray[np.bool_]

    @property
    def tied(self) -> npt.NDArray[np.bool_]:
        """(P,) whether a positive shares its score with another video."""
        return self.at_least - self.above > 1


def rank_matrix(
    scores: Scores,
    positives: Positives,
    *,
    dtype: np.dtype[Any] | None = None,
    keep: npt.NDArray[np.bool_] | None = None,
    in_list_order: bool = True,
) -> Ranks:
    """Rank the positives of each class by sorting.

    Parameters
    ----------
    scores : ndarray, (n, C)
        Rows as in the split; left as they are.
    positives : Positives
    dtype : dtype, optional
        What the scores are rounded to.
    keep : ndarray of bool, (n,), optional
        The rows that count; those of ``positives`` are numbered among them.
    in_list_order : bool
        False leaves ``earlier`` at zero, and is faster where many scores are tied.
    """
    ranks = _empty_ranks(positives)

    def rank_block(start: int) -> None:
        for index, column in enumerate(class_columns(scores, start, start + _BLOCK, dtype, keep), start):
            part = positives.of_class(index)
            rows = positives.rows[part]
            mine = column[rows]
            ordered = np.sort(column)
            ranks.constant[index] = len(ordered) > 0 and ordered[0] == ordered[-1]
            ranks.at_least[part] = len(ordered) - np.searchsorted(ordered, mine, "left")
            ranks.above[part] = len(ordered) - np.searchsorted(ordered, mine, "right")
            tied = ranks.at_least[part] - ranks.above[part] > 1
            for value in np.unique(mine[tied]) if in_list_order else ():
                same = np.flatnonzero(column == value)
                here = mine == value
                ranks.earlier[part][here] = np.searchsorted(same, rows[here])

    # numpy lets go of the interpreter while it copies and sorts, so threads share the work.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(rank_block, range(0, positives.num_classes, _BLOCK)))
    return ranks


def _empty_ranks(positives: Positives) -> Ranks:
    count = len(positives.rows)
    zeros = [np.zeros(count, dtype=np.int64) for _ in range(3)]
    return Ranks(zeros[0], zeros[1], zeros[2], np.zeros(positives.num_classes, dtype=bool))


def class_columns(
    scores: Scores,
    start: int,
    stop: int,
    dtype: np.dtype[Any] | None = None,
    keep: npt.NDArray[np.bool_] | None = None,
) -> Scores:
    """Copy some classes out of (n, C) scores, so that each lies in one piece: (stop - start, n).

    In tiles, because rows of many classes lie a memory page apart: a plain transpose would look up every page anew
    for each class, and take three times as long.
    """
    columns = np.empty((min(stop, scores.shape[1]) - start, len(scores)), dtype=dtype or scores.dtype)
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite to a meter that counts in it
        for row in range(0, len(scores), _TILE):
            columns[:, row : row + _TILE] = scores[row : row + _TILE, start:stop].T
    return columns if keep is None else columns[:, keep]


def rank_blocks(blocks: Callable[[], Iterable[Block]], positives: Positives, dtype: np.dtype[Any]) -> Ranks:
    """Rank the positives of each class in passes over blocks of rows, with the same result as ``rank_matrix``.

    Parameters
    ----------
    blocks : callable
        Each call gives all rows once, as (rows, scores (rows, C)) in any order; called twice, and a third time where
        positives share their score with other videos.
    positives : Positives
    dtype : dtype
        Of the scores.
    """
    counter = _Counter(positives, _gather(blocks(), positives, dtype))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for rows, scores in blocks():
            counter.count(rows, scores, pool)
        if any((equal > 1).any() for equal in counter.equal):
            for rows, scores in blocks():
                counter.count_earlier(rows, scores, pool)
    return counter.ranks()


def _gather(blocks: Iterable[Block], positives: Positives, dtype: np.dtype[Any]) -> Scores:
    """Return the (P,) scores of the positives."""
    by_row = np.argsort(positives.rows, kind="stable")
    sorted_rows = positives.rows[by_row]
    mine = np.empty(len(sorted_rows), dtype=dtype)
    for rows, scores in blocks:
        starts, stops = np.searchsorted(sorted_rows, rows, "left"), np.searchsorted(sorted_rows, rows, "right")
        labels = stops - starts
        places = np.repeat(np.arange(len(rows)), labels)
        # The labels of a row stand side by side: from its start, count up.
        offsets = np.arange(len(places)) - np.repeat(np.cumsum(labels) - labels, labels)
        here = by_row[starts[places] + offsets]
        mine[here] = scores[places, positives.classes[here]]
    return mine


class _Counter:
    """Adds up, block by block, how many scores lie at or above each distinct score of a class's positives."""

    def __init__(self, positives: Positives, mine: Scores) -> None:
        self.positives = positives
        self.levels: list[Scores] = []  # a class's distinct positive scores, ascending
        self.level_of = np.empty(len(mine), dtype=np.int64)
        for index in range(positives.num_classes):
            part = positives.of_class(index)
            levels, self.level_of[part] = np.unique(mine[part], return_inverse=True)
            self.levels.append(levels)
        self.above = [np.zeros(len(levels), dtype=np.int64) for levels in self.levels]
        self.equal = [np.zeros(len(levels), dtype=np.int64) for levels in self.levels]
        self.earlier = np.zeros(len(mine), dtype=np.int64)
        self.extremes: tuple[Scores, Scores] | None = None

    def count(self, rows: Counts, scores: Scores, pool: ThreadPoolExecutor) -> None:
        """Add a block to the counts above and at each level."""
        low, high = scores.min(axis=0), scores.max(axis=0)
        if self.extremes is not None:
            low, high = np.minimum(self.extremes[0], low), np.maximum(self.extremes[1], high)
        self.extremes = low, high

        def add(start: int) -> None:
            for index, column in enumerate(class_columns(scores, start, start + _BLOCK), start):
                ordered = np.sort(column)
                not_above = np.searchsorted(ordered, self.levels[index], "right")
                self.above[index] += len(ordered) - not_above
                self.equal[index] += not_above - np.searchsorted(ordered, self.levels[index], "left")

        list(pool.map(add, range(0, self.positives.num_classes, _BLOCK)))

    def count_earlier(self, rows: Counts, scores: Scores, pool: ThreadPoolExecutor) -> None:
        """Add a block to the counts of equal scores in earlier rows."""

        def add(start: int) -> None:
            for index, column in enumerate(class_columns(scores, start, start + _BLOCK), start):
                part = self.positives.of_class(index)
                level_of, own_rows = self.level_of[part], self.positives.rows[part]
                for level in np.flatnonzero(self.equal[index] > 1):
                    same = np.sort(rows[column == self.levels[index][level]])
                    here = level_of == level
                    self.earlier[part][here] += np.searchsorted(same, own_rows[here])

        list(pool.map(add, range(0, self.positives.num_classes, _BLOCK)))

    def ranks(self) -> Ranks:
        """Return the counts, positive by positive."""
        ranks = _empty_ranks(self.positives)
        if self.extremes is not None:
            ranks.constant[:] = self.extremes[0] == self.extremes[1]
        ranks.earlier[:] = self.earlier
        for index in range(self.positives.num_classes):
            part = self.positives.of_class(index)
            ranks.above[part] = self.above[index][self.level_of[part]]
            ranks.at_least[part] = (self.above[index] + self.equal[index])[self.level_of[part]]
        return ranks


def grouped_average_precision(ranks: Ranks, positives: Positives) -> npt.NDArray[np.float64]:
    """Average precision with tied videos sharing a rank; (C,), NaN for a class without positives."""
    ap = np.full(positives.num_classes, np.nan)
    for index in range(positives.num_classes):
        at_least = np.sort(ranks.at_least[positives.of_class(index)])
        if len(at_least):
            # Of the positives, as many score at least as high as have no more videos at or above them.
            ap[index] = (np.searchsorted(at_least, at_least, "right") / at_least).mean()
    return ap


def listed_average_precision(ranks: Ranks, positives: Positives) -> npt.NDArray[np.float64]:
    """Average precision with tied videos ranked in list order; (C,), NaN for a class without positives."""
    ap = np.full(positives.num_classes, np.nan)
    place = ranks.above + ranks.earlier + 1
    for index in range(positives.num_classes):
        places = np.sort(place[positives.of_class(index)])
        if len(places):
            ap[index] = (np.arange(1, len(places) + 1) / places).mean()
    return ap
