"""Splits drawn towards a Pareto target, grouped or not."""

import numpy as np
import numpy.typing as npt

from meidbench.annotations import Annotations
from meidbench.construction.outcome import Construction, find_shortfalls
from meidbench.construction.pool import Flags, Integers, Pool, assign_groups, open_to_all, shuffled
from meidbench.construction.targets import (
    ExactTargets,
    Targets,
    alpha_problems,
    pareto_counts,
    seconds_problems,
    target_shape,
)
from meidbench.errors import SplitError
from meidbench.splits.split import Split

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


def draw_evaluation(
    pool: Pool,
    order: Integers,
    free: Flags,
    least: int,
    size: int | None,
    keep: Integers,
    generator: np.random.Generator,
) -> Flags:
    """Draw a subset that is nearly uniform over classes.

    From the first class to the last, random videos of the class are added until it has ``least``. (Drawn so, subsets
    of the published splits' sizes come out: their procedure must have been near this one.) Then, where a size is
    given, videos are added for the class with the fewest, or removed where every class can spare them.

    Parameters
    ----------
    pool : Pool
    order : (C,) int64
        Classes from first to last.
    free : (m,) bool
        Candidates that may be drawn.
    least : int
        Videos every class is to have.
    size : int, optional
        Videos of the subset. It is larger where the positives need more, smaller where nothing is left.
    keep : (C,) int64
        Free videos of each class that are left for another subset, unless this one would lack positives.
    generator : numpy.random.Generator

    Returns
    -------
    ndarray, (m,) bool
    """
    draw = _Draw(pool, free, keep)
    for index in order.tolist():
        for sparing in (True, False):
            if draw.counts[index] < least:
                videos = pool.of_class(index)
                candidates = shuffled(videos[free[videos] & ~draw.taken[videos]], generator)
                for video in candidates.tolist():
                    if draw.counts[index] >= least:
                        break
                    if not sparing or draw.spares(video, least):
                        draw.take(video)
    if size is not None:
        _fill(draw, size, generator)
        _trim(draw, size, least, generator)
    return draw.taken


class _Draw:
    """A subset while it is drawn."""

    def __init__(self, pool: Pool, free: Flags, keep: Integers) -> None:
        self.pool, self.free = pool, free
        self.taken = np.zeros(len(pool), dtype=bool)
        self.counts = np.zeros(pool.num_classes, dtype=np.int64)
        self.spare = pool.positives(free) - keep
        self.size = 0

    def spares(self, video: int, least: int) -> bool:
        """Tell whether no class loses what is kept for another subset, but those that need the video here."""
        classes = self.pool.of_video(video)
        return bool(((self.spare[classes] > 0) | (self.counts[classes] < least)).all())

    def take(self, video: int, step: int = 1) -> None:
        """Take a video, or with a step of -1 give it back."""
        classes = self.pool.of_video(video)
        self.taken[video] = step > 0
        self.counts[classes] += step
        self.spare[classes] -= step
        self.size += step


def _fill(draw: _Draw, size: int, generator: np.random.Generator) -> None:
    """Add videos of the class that has the fewest until the subset is as large as asked."""
    if draw.size >= size:
        return
    queues: dict[int, list[int]] = {}
    exhausted = np.iinfo(np.int64).max
    blocked = np.zeros(len(draw.counts), dtype=np.int64)
    while draw.size < size:
        index = int(np.maximum(draw.counts, blocked).argmin())
        if blocked[index]:
            return
        if index not in queues:
            videos = draw.pool.of_class(index)
            queues[index] = shuffled(videos[draw.free[videos]], generator).tolist()
        queue = queues[index]
        while queue:
            video = queue.pop()
            if not draw.taken[video] and draw.spares(video, 0):
                draw.take(video)
                break
        else:
            blocked[index] = exhausted


def _trim(draw: _Draw, size: int, least: int, generator: np.random.Generator) -> None:
    """Remove videos that no class needs until the subset is as small as asked."""
    if draw.size <= size:
        return
    for video in shuffled(np.flatnonzero(draw.taken), generator).tolist():
        if draw.size <= size:
            return
        if (draw.counts[draw.pool.of_video(video)] > least).all():
            draw.take(video, -1)


def construct(
    annotations: Annotations, targets: Targets, *, dataset: str, seed: int, variant: str | None = None
) -> Construction:
    """Draw a long-tailed split from annotated videos.

    The procedure of the MEID paper's supplement: a Pareto target for the classes in the order of their co-occurrence,
    training videos added and removed class by class, then test and then val drawn from the rest, nearly uniform over
    the classes. With ``targets.group_by``, every group of videos first gets one subset that may draw from it.

    Parameters
    ----------
    annotations : Annotations
        Official subsets are pooled; the order of the videos makes no difference to what is drawn.
    targets : Targets
        ``PRESETS`` has those of the published benchmarks, ``default_targets`` derives some for any dataset.
    dataset : str
        Name of the benchmark.
    seed : int
        From 0 on. The same seed gives the same split on every platform and with every version of Python and NumPy.
    variant : str, optional
        ``pareto``, or ``grouped`` with ``targets.group_by``, if not given.

    Returns
    -------
    Construction
        Targets that could not be met are named in it (``shortfalls``, ``deviations``): the nearest is drawn.

    Raises
    ------
    SplitError
        Nothing can be drawn: no labelled video that is long enough, or annotations that contradict themselves.

    Examples
    --------
    >>> from meidbench.annotations import Annotations
    >>> rows = [(video % 4, 4 + video % 3) for video in range(240)]
    >>> columns = [[""] * 240 for _ in range(4)]
    >>> table = Annotations(
    ...     tuple("abcdefg"), [f"v{video:03d}" for video in range(240)], columns[0], rows, [20.0] * 240, *columns[1:],
    ...     segments=[()] * 240,
    ... )
    >>> targets = Targets(40, 5, alpha=4, head_above=30, tail_up_to=10, test_positives=8, val_positives=4)
    >>> drawn = construct(table, targets, dataset="letters", seed=1)
    >>> int(drawn.split.positives("test").min()) >= 8, drawn.shortfalls
    (True, ())
    """
    check_seed(seed)
    pool = Pool.of(annotations, targets.least_seconds, targets.group_by)
    order = co_occurrence_rank(pool)
    wanted = np.empty(pool.num_classes, dtype=np.int64)
    wanted[order] = pareto_counts(pool.num_classes, targets.most_frequent, targets.least_frequent, targets.alpha)
    generator = np.random.Generator(np.random.PCG64(seed))
    caps = training_caps(pool.available, targets.least_frequent, targets)
    open_to = open_to_all(pool)
    if targets.group_by:
        open_to = grouped_openings(pool, np.minimum(wanted, caps), targets, generator)
        caps = np.minimum(caps, pool.positives(open_to[0]))
    train = draw_training(pool, order, np.minimum(wanted, caps), caps, targets.least_frequent, open_to[0], generator)
    val, test = draw_rest(pool, order, train, open_to, targets, generator)
    split = as_split(
        annotations, pool, train, val, test, targets, dataset, variant or ("grouped" if targets.group_by else "pareto"),
        seed,
    )  # fmt: skip
    return Construction(
        split=split,
        targets=targets,
        seed=seed,
        target_counts=tuple(wanted.tolist()),
        available=tuple(pool.available.tolist()),
        candidates=len(pool),
        shortfalls=find_shortfalls(split, targets, pool.available),
    )


def check_seed(seed: int) -> None:
    """Refuse what is not a seed."""
    if type(seed) is not int or seed < 0:
        raise SplitError(f"a seed is a whole number from 0 on, got {seed!r}")


def training_caps(available: Integers, least: int, targets: Targets | ExactTargets) -> Integers:
    """Return how many training videos a class may have so that test and val can have their positives.

    The training subset is drawn first, so a class that it exhausted could not be evaluated. Where the videos do not
    suffice for all three subsets, training gets its share, rounded up.
    """
    held = targets.test_positives + targets.val_positives
    share = -(-available * least // (least + held))
    return np.maximum(available - held, share)


def grouped_openings(
    pool: Pool, aims: Integers, targets: Targets | ExactTargets, generator: np.random.Generator
) -> tuple[Flags, Flags, Flags]:
    """Return for train, val and test which candidates they may draw, so that no group is open to two."""
    others = [np.full(pool.num_classes, count) for count in (targets.val_positives, targets.test_positives)]
    owners = assign_groups(pool, np.stack([aims, *others]), generator)
    return owners == 0, owners == 1, owners == 2


def draw_rest(
    pool: Pool,
    order: Integers,
    train: Flags,
    open_to: tuple[Flags, Flags, Flags],
    targets: Targets | ExactTargets,
    generator: np.random.Generator,
) -> tuple[Flags, Flags]:
    """Draw test and then val from what training left; return val and test."""
    _, for_val, for_test = open_to
    left = pool.positives(~train & for_val)
    # A class with two videos left is worth one in val, even where test has not all it is to have.
    keep = np.clip(left - targets.test_positives, np.minimum(left // 2, 1), targets.val_positives)
    if targets.group_by:
        keep = np.zeros_like(left)
    test = draw_evaluation(pool, order, ~train & for_test, targets.test_positives, targets.test_videos, keep, generator)
    nothing = np.zeros_like(left)
    free = ~train & ~test & for_val
    val = draw_evaluation(pool, order, free, targets.val_positives, targets.val_videos, nothing, generator)
    return val, test


def as_split(
    annotations: Annotations,
    pool: Pool,
    train: Flags,
    val: Flags,
    test: Flags,
    targets: Targets | ExactTargets,
    dataset: str,
    variant: str,
    seed: int,
) -> Split:
    """Make the split of three sets of candidates, its rows in the order of the annotations."""
    subsets = [""] * len(annotations.video_ids)
    for subset, chosen in (("train", train), ("val", val), ("test", test)):
        for row in pool.rows[chosen].tolist():
            subsets[row] = subset
    return Split.from_annotations(
        annotations,
        subsets,
        dataset=dataset,
        variant=variant,
        head_above=targets.head_above,
        tail_up_to=targets.tail_up_to,
        seed=seed,
    )


_CUSTOMARY = (100, 20)  # thresholds of the MEID paper
_TEST, _VAL, _TRAIN = 20, 10, 10  # videos of the rarest classes in the published splits, about
_RARE = 0.05  # share of the classes that may be too rare for the targets
_SHARE = 1 / 3  # of a class's videos that training takes at most, as in the published splits
_BORDERS = (0.25, 0.75)  # ranks between head, medium and tail, about as in the published splits


def default_targets(
    annotations: Annotations,
    *,
    alpha: float = 10.0,
    head_above: int | None = None,
    tail_up_to: int | None = None,
    least_seconds: float | None = None,
    group_by: tuple[str, ...] = (),
    customary: tuple[int, int] = _CUSTOMARY,
) -> Targets:
    """Derive targets from how many videos the classes have.

    Test, val and the rarest training classes share the videos of the rare classes in the proportion of the published
    splits, and have at most 20, 10 and 10. The most frequent class has as many training videos as the Pareto curve can
    take so that nearly every class reaches it with a third of its videos.

    Parameters
    ----------
    annotations : Annotations
    alpha : float
        Shape of the Pareto target.
    head_above, tail_up_to : int, optional
        Thresholds of the groups. Without them the customary ones where those leave no group empty, else the targets of
        the classes at a quarter and at three quarters of the ranks.
    least_seconds, group_by
        As in ``Targets``.
    customary : (int, int)
        Thresholds that people use for these videos.

    Raises
    ------
    SplitError
        No video can be used, alpha is no such number, or the thresholds contradict one another.
    """
    if problems := alpha_problems(alpha) + seconds_problems(least_seconds):
        raise SplitError(problems[0])
    pool = Pool.of(annotations, least_seconds)
    present = pool.available[pool.available > 0]
    rare = int(np.sort(present)[int(_RARE * len(present))])
    together = _TEST + _VAL + _TRAIN
    test, val, least = (max(1, min(most, rare * most // together)) for most in (_TEST, _VAL, _TRAIN))
    shape = np.asarray(target_shape(pool.num_classes, alpha))
    ranked = pool.available[co_occurrence_rank(pool)]
    # A rank that stands near the least frequent says nothing about how high the curve may be.
    bound = (shape > _RARE) & (ranked > 0)
    room = np.sort((np.minimum(ranked * _SHARE, ranked - test - val) - least)[bound] / shape[bound])
    most = least + max(int(room[int(_RARE * len(room))]) if len(room) else 0, 0)
    curve = np.sort(pareto_counts(pool.num_classes, most, least, alpha))
    if curve[-1] > customary[0] >= curve[len(curve) // 2] and curve[0] <= customary[1]:
        borders = customary
    else:
        low, high = (int(curve[int(share * (len(curve) - 1))]) for share in (1 - _BORDERS[1], 1 - _BORDERS[0]))
        borders = (max(high, low), low)
    above = borders[0] if head_above is None else head_above
    up_to = min(borders[1], above) if tail_up_to is None else tail_up_to
    return Targets(
        most_frequent=most,
        least_frequent=least,
        alpha=alpha,
        head_above=max(above, up_to) if head_above is None else above,
        tail_up_to=up_to,
        test_positives=test,
        val_positives=val,
        least_seconds=least_seconds,
        group_by=group_by,
    )
