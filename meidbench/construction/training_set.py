"""Drawing the training subset: class by class towards the target, then settled."""

import numpy as np
import numpy.typing as npt

from meidbench.construction.pool import Flags, Integers, Pool, shuffled

_SWEEPS = 100
_UNDER_FLOOR = 9  # what a video counts besides that a class lacks of the least frequent one's, so that few do
_OVER_CAP = 1000  # what a video beyond a class's cap counts, beside 1 for a video beside its target


def co_occurrence_scores(pool: Pool) -> npt.NDArray[np.float64]:
    """Return how often each class occurs with the others: the sum over the other classes of P(this class | that).

    Wu et al., ECCV 2020. A class without a video has 0.

    Returns
    -------
    ndarray, (C,) float64
    """
    # sum_j N_ij / N_j is, over the videos of class i, the sum of 1 / N_j over each video's classes. The class itself
    # adds N_i / N_i = 1. bincount adds in order, so the result does not depend on how a CPU would add.
    shares = 1 / np.maximum(pool.available, 1)
    of_video = np.bincount(pool.owners, weights=shares[pool.classes], minlength=len(pool))
    scores = np.bincount(pool.classes, weights=of_video[pool.owners], minlength=pool.num_classes)
    return np.where(pool.available > 0, np.maximum(scores - 1, 0), 0.0)


def co_occurrence_rank(pool: Pool) -> Integers:
    """Return the classes from the one that co-occurs most to the one that does least.

    Ties go to the class with more candidates, then to the lower index.

    Parameters
    ----------
    pool : Pool
        The candidates; ``Pool.of(annotations)``.

    Returns
    -------
    ndarray, (C,) int64
        Class indices.

    Examples
    --------
    >>> from meidbench.annotations import Annotations
    >>> rows = [(0, 1), (0, 2), (0,)]
    >>> table = Annotations(("a", "b", "c"), ["x", "y", "z"], [""] * 3, rows, [9.0] * 3, *([""] * 3 for _ in "123"),
    ...                     segments=[()] * 3)
    >>> co_occurrence_rank(Pool.of(table))
    array([0, 1, 2])
    """
    # Sums that are equal on paper may differ in their last bits.
    scores = np.round(co_occurrence_scores(pool), 9)
    return np.lexsort((np.arange(pool.num_classes), -pool.available, -scores)).astype(np.int64)


def draw_training(
    pool: Pool,
    order: Integers,
    aims: Integers,
    caps: Integers,
    floor: int,
    open_to: Flags,
    generator: np.random.Generator,
) -> Flags:
    """Draw training videos whose counts come near the aims.

    From the first class to the last, random videos of the class are added while it is short and removed while it is
    over (MEID, supplement). A class that comes later pulls the earlier ones off their target again, by thousands of
    videos where a video has seven classes; so the draw is settled: videos are gone through in random order, and one
    is added or removed where that brings the counts nearer to the aims, until none does.

    Parameters
    ----------
    pool : Pool
    order : (C,) int64
        Classes from first to last.
    aims, caps : (C,) int64
        Training videos a class is to have, and those above which it would take what val and test need.
    floor : int
        Training videos of the least frequent class, below which no class should fall.
    open_to : (m,) bool
        Candidates that may be drawn.
    generator : numpy.random.Generator

    Returns
    -------
    ndarray, (m,) bool
    """
    chosen = np.zeros(len(pool), dtype=bool)
    counts = np.zeros(pool.num_classes, dtype=np.int64)
    for index in order.tolist():
        short = int(aims[index] - counts[index])
        if not short:
            continue
        videos = pool.of_class(index)
        videos = videos[open_to[videos] & ~chosen[videos]] if short > 0 else videos[chosen[videos]]
        videos = shuffled(videos, generator)[: abs(short)]
        chosen[videos] = short > 0
        counts += np.sign(short) * pool.positives_of(videos)
    _settle(pool, chosen, counts, aims, caps, floor, open_to, generator)
    return chosen


def _cost(counts: Integers, aims: Integers, caps: Integers, floor: int) -> Integers:
    under = np.maximum(np.minimum(aims, floor) - counts, 0)
    cost: Integers = np.abs(counts - aims) + _UNDER_FLOOR * under + _OVER_CAP * np.maximum(counts - caps, 0)
    return cost


def _settle(
    pool: Pool,
    chosen: Flags,
    counts: Integers,
    aims: Integers,
    caps: Integers,
    floor: int,
    open_to: Flags,
    generator: np.random.Generator,
) -> None:
    """Add and remove single videos while that lowers the cost of the counts; ``chosen`` is changed in place."""
    bounds, aim, cap, low = (each.tolist() for each in (pool.bounds, aims, caps, np.minimum(aims, floor)))
    for _ in range(_SWEEPS):
        here = _cost(counts, aims, caps, floor)
        up, down = _cost(counts + 1, aims, caps, floor) - here, _cost(counts - 1, aims, caps, floor) - here
        # Whole numbers below 2**53 are added exactly as floats.
        gains = np.bincount(
            pool.owners,
            weights=np.where(chosen[pool.owners], down[pool.classes], up[pool.classes]),
            minlength=len(pool),
        )
        better = shuffled(np.flatnonzero((gains < 0) & open_to), generator)
        if not len(better):
            return
        # Each change alters what the others would gain, so every video is looked at once more.
        now = counts.tolist()
        for video in better.tolist():
            step = -1 if chosen[video] else 1
            classes = pool.classes[bounds[video] : bounds[video + 1]].tolist()
            gain = 0
            for index in classes:
                count = now[index]
                gain += abs(count + step - aim[index]) - abs(count - aim[index])
                under = low[index] - count
                gain += _UNDER_FLOOR * (max(under - step, 0) - max(under, 0))
                over = count - cap[index]
                gain += _OVER_CAP * (max(over + step, 0) - max(over, 0))
            if gain < 0:
                chosen[video] = step > 0
                for index in classes:
                    now[index] += step
        counts[:] = now
