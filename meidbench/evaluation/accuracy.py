"""Which videos have a label among their best classes: hits for top-k accuracy, recall for class-average accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.evaluation.ranking import concatenate_ranges
from meidbench.predictions.align import BlockScores
from meidbench.splits.split import Split

_ROWS = 4096  # videos compared at a time

Scores = npt.NDArray[Any]
Reals = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.int64]


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


def count_hits(scores: BlockScores, split: Split, subset: str, ks: Sequence[int]) -> dict[int, Hits]:
    """Return for each k whether each video, in the order of the split, has a label among its k best classes."""
    rows, classes = split.label_pairs(subset)
    first = np.searchsorted(rows, np.arange(scores.videos + 1))
    hits = {k: np.zeros(scores.videos, dtype=bool) for k in ks}
    for block_rows, block in scores.blocks():
        starts = first[block_rows]
        counts = first[block_rows + 1] - starts
        mine = classes[concatenate_ranges(starts, counts)]
        for k, found in top_k_hits(block, np.repeat(np.arange(len(block)), counts), mine, ks).items():
            hits[k][block_rows] = found
    return hits


def find_single_labels(split: Split, subset: str) -> Classes | None:
    """Return the (n,) class of each video of a subset; None where a video has no label or several."""
    rows, classes = split.label_pairs(subset)
    is_single = np.array_equal(rows, np.arange(len(split.rows(subset))))
    return classes.astype(np.int64) if is_single else None


def recall_by_class(hits: Hits, classes: Classes, num_classes: int) -> Reals:
    """Compute (C,) recalls at one answer: the share of a class's videos that are hits; NaN for a class without videos.

    ``hits`` and ``classes`` (n,) tell of each video whether its best class is its label, and which label that is.

    >>> recall_by_class(np.array([True, False, True]), np.array([0, 0, 2]), 3)
    array([0.5, nan, 1. ])
    """
    videos = np.bincount(classes, minlength=num_classes)
    found = np.bincount(classes[hits], minlength=num_classes)
    recall = np.full(num_classes, np.nan)
    np.divide(found, videos, out=recall, where=videos > 0)
    return recall
