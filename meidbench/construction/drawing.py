"""Splits drawn towards a Pareto target, grouped or not."""

import numpy as np

from meidbench.annotations import Annotations
from meidbench.construction.evaluation_set import draw_evaluation
from meidbench.construction.grouping import assign_groups, open_to_all
from meidbench.construction.outcome import Construction, find_shortfalls
from meidbench.construction.pool import Flags, Integers, Pool
from meidbench.construction.targets import ExactTargets, Targets, pareto_counts
from meidbench.construction.training_set import co_occurrence_rank, draw_training
from meidbench.errors import SplitError
from meidbench.split import Split


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
