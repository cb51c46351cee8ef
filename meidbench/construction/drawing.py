"""Splits drawn towards a Pareto target, grouped or not, and default targets for any dataset."""

import numpy as np
import numpy.typing as npt

from meidbench.annotations import Annotations
from meidbench.construction.outcome import Construction, find_shortfalls
from meidbench.construction.pool import Flags, Integers, Pool, assign_groups, shuffled
from meidbench.construction.targets import ExactTargets, Targets, alpha_problems, pareto_counts, seconds_problems
from meidbench.errors import SplitError
from meidbench.splits.split import Split

_SWEEPS = 100
_UNDER_FLOOR = 9  # added cost per video that a class lacks of the least frequent class's count
_OVER_CAP = 1000  # added cost per video above a class's cap; a video beside the target costs 1


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
        Official subsets are pooled; the order of the videos has no influence on the draw.
    targets : Targets
        ``PRESETS`` has those of the published benchmarks, ``default_targets`` derives some for any dataset. The result
        is the nearest split; it names the targets that it misses (``shortfalls``, ``deviations``).
    dataset, variant : str
        Name of the benchmark; and ``pareto``, or ``grouped`` with ``targets.group_by``, unless given.
    seed : int
        From 0 on. The same seed gives the same split on every platform and with every version of Python and NumPy.

    Raises
    ------
    SplitError
        No labelled video is long enough, or the annotations contradict themselves.

    Examples
    --------
    >>> from meidbench.annotations import Annotations
    >>> table = Annotations(tuple("abcdefg"))
    >>> rows = [(video % 4, 4 + video % 3) for video in range(240)]
    >>> table.extend([f"v{video:03d}" for video in range(240)], rows, "all")
    >>> targets = Targets(40, 5, alpha=4, head_above=30, tail_up_to=10, test_positives=8, val_positives=4)
    >>> drawn = construct(table, targets, dataset="letters", seed=1)
    >>> int(drawn.split.positives("test").min()) >= 8, drawn.shortfalls
    (True, ())
    """
    check_seed(seed)
    pool = Pool.from_annotations(annotations, targets.least_seconds, targets.group_by)
    order = co_occurrence_rank(pool)
    # Classes without a candidate come last in the order, and take no rank of the curve.
    wanted = np.zeros(pool.num_classes, dtype=np.int64)
    curve = pareto_counts(pool.present, targets.most_frequent, targets.least_frequent, targets.alpha)
    wanted[order[: pool.present]] = curve
    generator = np.random.Generator(np.random.PCG64(seed))
    caps = _training_caps(pool.available, targets)
    allowed = (np.ones(len(pool), dtype=bool),) * 3
    if targets.group_by:
        allowed = allow_by_group(pool, np.minimum(wanted, caps), targets, generator)
        caps = np.minimum(caps, pool.positives(allowed[0]))
    train = draw_training(pool, order, np.minimum(wanted, caps), caps, targets.least_frequent, allowed[0], generator)
    chosen = (train, *draw_evaluation(pool, order, train, allowed, targets, generator))
    variant = variant or ("grouped" if targets.group_by else "pareto")
    split = build_split(annotations, pool, chosen, targets, dataset, variant, seed)
    shortfalls = find_shortfalls(split, targets, pool.available)
    counts, available = tuple(wanted.tolist()), tuple(pool.available.tolist())
    return Construction(split, targets, seed, counts, available, len(pool), shortfalls)


# --- steps that an exact construction takes as well -------------------------------------------------------------


def check_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number from 0 on."""
    if type(seed) is not int or seed < 0:
        raise SplitError(f"a seed is a whole number from 0 on, got {seed!r}")


def co_occurrence_scores(pool: Pool) -> npt.NDArray[np.float64]:
    """Return, per class (C,), the sum over the other classes of P(this class | that); 0 for a class without a video.

    Wu et al., ECCV 2020.
    """
    # sum_j N_ij / N_j is, over the videos of class i, the sum of 1 / N_j over each video's classes. The class itself
    # adds N_i / N_i = 1. bincount adds in order, so the result is the same on every CPU.
    shares = 1 / np.maximum(pool.available, 1)
    of_video = np.bincount(pool.owners, weights=shares[pool.classes], minlength=len(pool))
    scores = np.bincount(pool.classes, weights=of_video[pool.owners], minlength=pool.num_classes)
    return np.where(pool.available > 0, np.maximum(scores - 1, 0), 0.0)


def co_occurrence_rank(pool: Pool) -> Integers:
    """Return the (C,) class indices from the class that co-occurs most to the one that co-occurs least.

    Ties go to the class with more candidates, then to the lower index.

    >>> from meidbench.annotations import Annotations
    >>> table = Annotations(("a", "b", "c"))
    >>> table.extend(["x", "y", "z"], [(0, 1), (0, 2), (0,)], "all")
    >>> co_occurrence_rank(Pool.from_annotations(table))
    array([0, 1, 2])
    """
    # Rounded, because equal sums may differ in their last bits.
    scores = np.round(co_occurrence_scores(pool), 9)
    return np.lexsort((np.arange(pool.num_classes), -pool.available, -scores)).astype(np.int64)


def allow_by_group(
    pool: Pool, aims: Integers, targets: Targets | ExactTargets, generator: np.random.Generator
) -> tuple[Flags, Flags, Flags]:
    """Return the candidates that train, val and test may draw, as masks; every group belongs to one subset."""
    others = [np.full(pool.num_classes, count) for count in (targets.val_positives, targets.test_positives)]
    owners = assign_groups(pool, np.stack([aims, *others]), generator)
    return owners == 0, owners == 1, owners == 2


def draw_evaluation(
    pool: Pool,
    order: Integers,
    train: Flags,
    allowed: tuple[Flags, Flags, Flags],
    targets: Targets | ExactTargets,
    generator: np.random.Generator,
) -> tuple[Flags, Flags]:
    """Draw test and then val from the candidates that training left; return val and test."""
    _, for_val, for_test = allowed
    left = pool.positives(~train & for_val)
    # Of a class with two videos left, val keeps one, even if test then lacks some of its positives.
    keep = np.clip(left - targets.test_positives, np.minimum(left // 2, 1), targets.val_positives)
    nothing = np.zeros_like(left)
    if targets.group_by:
        keep = nothing
    test = _draw_uniform(pool, order, ~train & for_test, targets.test_positives, targets.test_videos, keep, generator)
    free = ~train & ~test & for_val
    return _draw_uniform(pool, order, free, targets.val_positives, targets.val_videos, nothing, generator), test


def build_split(
    annotations: Annotations,
    pool: Pool,
    chosen: tuple[Flags, Flags, Flags],
    targets: Targets | ExactTargets,
    dataset: str,
    variant: str,
    seed: int,
) -> Split:
    """Make the split of the candidates chosen for train, val and test, its rows in the order of the annotations.

    The groups of the classes are those of the annotations, without a list there by the thresholds of the targets.
    """
    subsets = [""] * len(annotations.video_ids)
    for subset, mask in zip(("train", "val", "test"), chosen, strict=True):
        for row in pool.rows[mask].tolist():
            subsets[row] = subset
    thresholds = {"head_above": targets.head_above, "tail_up_to": targets.tail_up_to}
    thresholds = {} if annotations.groups else thresholds
    return Split.from_annotations(annotations, subsets, dataset=dataset, variant=variant, seed=seed, **thresholds)


# --- training ---------------------------------------------------------------------------------------------------


def _training_caps(available: Integers, targets: Targets) -> Integers:
    """Return the most training videos per class that leave test and val their positives.

    The training subset is drawn first, so a class without a cap could be exhausted and not be evaluated. Where the
    videos do not suffice for all three subsets, training gets its share, rounded up.
    """
    held = targets.test_positives + targets.val_positives
    share = -(-available * targets.least_frequent // (targets.least_frequent + held))
    return np.maximum(available - held, share)


def draw_training(
    pool: Pool,
    order: Integers,
    aims: Integers,
    caps: Integers,
    floor: int,
    allowed: Flags,
    generator: np.random.Generator,
) -> Flags:
    """Return the (m,) training videos, drawn so that the counts of the classes come near the aims.

    From the first class of ``order`` to the last, random videos of the class are added while it is short and removed
    while it is over (MEID, supplement). Later classes move the earlier ones off their targets again, by thousands of
    videos where a video has seven classes. So in the end single videos are added or removed, in random order, while
    that brings the counts nearer to the aims.

    ``aims`` and ``caps``, (C,), are the training videos that each class should have, and the most that leave val and
    test their positives. ``floor`` is the count of the least frequent class, below which no other should fall. Only
    the ``allowed`` candidates, (m,), may be drawn.
    """
    chosen = np.zeros(len(pool), dtype=bool)
    counts = np.zeros(pool.num_classes, dtype=np.int64)
    for index in order.tolist():
        short = int(aims[index] - counts[index])
        if not short:
            continue
        videos = pool.videos_of_class(index)
        videos = videos[allowed[videos] & ~chosen[videos]] if short > 0 else videos[chosen[videos]]
        videos = shuffled(videos, generator)[: abs(short)]
        chosen[videos] = short > 0
        counts += np.sign(short) * pool.positives_among(videos)
    for _ in range(_SWEEPS):
        here = _cost(counts, aims, caps, floor)
        up, down = _cost(counts + 1, aims, caps, floor) - here, _cost(counts - 1, aims, caps, floor) - here
        # Whole numbers below 2**53 are added exactly as floats.
        weights = np.where(chosen[pool.owners], down[pool.classes], up[pool.classes])
        gains = np.bincount(pool.owners, weights=weights, minlength=len(pool))
        better = shuffled(np.flatnonzero((gains < 0) & allowed), generator)
        if not len(better):
            break
        counts = _sweep(pool, better, chosen, counts, aims, caps, floor)
    return chosen


def _cost(counts: Integers, aims: Integers, caps: Integers, floor: int) -> Integers:
    under = np.maximum(np.minimum(aims, floor) - counts, 0)
    cost: Integers = np.abs(counts - aims) + _UNDER_FLOOR * under + _OVER_CAP * np.maximum(counts - caps, 0)
    return cost


def _sweep(
    pool: Pool, videos: Integers, chosen: Flags, counts: Integers, aims: Integers, caps: Integers, floor: int
) -> Integers:
    """Add or remove each video if this still lowers the cost; change ``chosen``, return the new counts."""
    bounds, aim, cap, low = (each.tolist() for each in (pool.bounds, aims, caps, np.minimum(aims, floor)))
    # Plain numbers, in which the difference of ``_cost`` is quicker than in arrays of a few classes.
    now = counts.tolist()
    for video in videos.tolist():
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
    return np.asarray(now, dtype=np.int64)


# --- test and val -----------------------------------------------------------------------------------------------


class _GrowingSubset:
    """A subset while it is drawn."""

    def __init__(self, pool: Pool, free: Flags, keep: Integers) -> None:
        self.pool, self.free = pool, free
        self.taken = np.zeros(len(pool), dtype=bool)
        self.counts = np.zeros(pool.num_classes, dtype=np.int64)
        self.spare = pool.positives(free) - keep
        self.size = 0

    def can_spare(self, video: int, least: int) -> bool:
        """Return whether each class of a video has spare videos, or has fewer than ``least`` in this subset."""
        classes = self.pool.classes_of_video(video)
        return bool(((self.spare[classes] > 0) | (self.counts[classes] < least)).all())

    def take(self, video: int, step: int = 1) -> None:
        """Take a video, or with a step of -1 give it back."""
        classes = self.pool.classes_of_video(video)
        self.taken[video] = step > 0
        self.counts[classes] += step
        self.spare[classes] -= step
        self.size += step


def _draw_uniform(
    pool: Pool,
    order: Integers,
    free: Flags,
    least: int,
    size: int | None,
    keep: Integers,
    generator: np.random.Generator,
) -> Flags:
    """Draw a subset that is nearly uniform over the classes, from the free candidates.

    From the first class to the last, random videos of the class are added until it has ``least``. (This gives subsets
    of the published splits' sizes, so their procedure must have been similar.) Then, with a size, videos are added for
    the class with the fewest, or removed where every class can spare them. ``keep`` free videos of each class are left
    for another subset, unless this one would lack positives.
    """
    subset = _GrowingSubset(pool, free, keep)
    for index in order.tolist():
        for sparing in (True, False):
            if subset.counts[index] < least:
                videos = pool.videos_of_class(index)
                candidates = shuffled(videos[free[videos] & ~subset.taken[videos]], generator)
                for video in candidates.tolist():
                    if subset.counts[index] >= least:
                        break
                    if not sparing or subset.can_spare(video, least):
                        subset.take(video)
    if size is not None:
        _fill(subset, size, generator)
        _trim(subset, size, least, generator)
    return subset.taken


def _fill(subset: _GrowingSubset, size: int, generator: np.random.Generator) -> None:
    """Add videos of the class that has the fewest until the subset has its size."""
    queues: dict[int, list[int]] = {}
    blocked = np.zeros(len(subset.counts), dtype=np.int64)
    while subset.size < size:
        index = int(np.maximum(subset.counts, blocked).argmin())
        if blocked[index]:
            return
        if index not in queues:
            videos = subset.pool.videos_of_class(index)
            queues[index] = shuffled(videos[subset.free[videos]], generator).tolist()
        queue = queues[index]
        while queue:
            video = queue.pop()
            if not subset.taken[video] and subset.can_spare(video, 0):
                subset.take(video)
                break
        else:
            blocked[index] = np.iinfo(np.int64).max


def _trim(subset: _GrowingSubset, size: int, least: int, generator: np.random.Generator) -> None:
    """Remove videos that no class needs until the subset has its size."""
    if subset.size <= size:
        return
    for video in shuffled(np.flatnonzero(subset.taken), generator).tolist():
        if subset.size <= size:
            return
        if (subset.counts[subset.pool.classes_of_video(video)] > least).all():
            subset.take(video, -1)


# --- default targets --------------------------------------------------------------------------------------------


_CUSTOMARY = (100, 20)  # thresholds of the MEID paper
_TEST, _VAL, _TRAIN = 20, 10, 10  # videos of the rarest classes in the published splits, about
_RARE = 0.05  # share of the classes that may be too rare for the targets
_SHARE = 1 / 3  # largest share of a class's videos in training, as in the published splits
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
    """Derive targets from the number of videos per class.

    Test, val and the rarest training classes share the videos of the rare classes in the proportion of the published
    splits, and have at most 20, 10 and 10. The most frequent class has the largest count with which nearly every class
    reaches the Pareto curve with a third of its videos. Classes without a candidate have no influence.

    ``alpha``, ``least_seconds`` and ``group_by`` are as in ``Targets``. The thresholds ``head_above`` and
    ``tail_up_to`` are, unless given, the ``customary`` ones where those leave no group empty, else the targets of the
    classes at a quarter and at three quarters of the ranks. ``SplitError`` if no video can be used, alpha is out of
    range, or the thresholds contradict one another.
    """
    if problems := alpha_problems(alpha) + seconds_problems(least_seconds):
        raise SplitError(problems[0])
    pool = Pool.from_annotations(annotations, least_seconds)
    present = pool.available[pool.available > 0]
    rare = int(np.sort(present)[int(_RARE * len(present))])
    together = _TEST + _VAL + _TRAIN
    test, val, least = (max(1, min(most, rare * most // together)) for most in (_TEST, _VAL, _TRAIN))
    # The height of the curve at each rank, between the least frequent (0) and the most frequent class (1).
    shape = pareto_counts(pool.present, 1_000_000, 0, alpha) / 1_000_000
    ranked = pool.available[co_occurrence_rank(pool)][: pool.present]
    # A rank near the lower end of the curve does not limit its height.
    bound = shape > _RARE
    room = np.sort((np.minimum(ranked * _SHARE, ranked - test - val) - least)[bound] / shape[bound])
    most = least + max(int(room[int(_RARE * len(room))]) if len(room) else 0, 0)
    curve = np.sort(pareto_counts(pool.present, most, least, alpha))
    high, low = customary
    if not (curve[-1] > high >= curve[len(curve) // 2] and curve[0] <= low):
        low, high = (int(curve[int(share * (len(curve) - 1))]) for share in (1 - _BORDERS[1], 1 - _BORDERS[0]))
    above = high if head_above is None else head_above
    up_to = min(low, above) if tail_up_to is None else tail_up_to
    if head_above is None:
        above = max(above, up_to)
    return Targets(most, least, alpha, above, up_to, test, val, least_seconds=least_seconds, group_by=group_by)
