"""Splits with prescribed numbers, found by a mixed-integer program with a random objective."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from meidbench.annotations import Annotations
from meidbench.construction.class_plan import ClassPlan, plan_by_rank
from meidbench.construction.drawing import as_split, check_seed, draw_rest, grouped_openings
from meidbench.construction.grouping import open_to_all
from meidbench.construction.nearest import FEW, Nearest, find_nearest
from meidbench.construction.outcome import Construction, find_shortfalls
from meidbench.construction.pool import Flags, Integers, Pool
from meidbench.construction.targets import ExactTargets
from meidbench.construction.training_set import co_occurrence_rank
from meidbench.errors import SplitError, bullet_list, first_few
from meidbench.split import Split

_OPTIMAL, _OUT_OF_TIME, _INFEASIBLE = 0, 1, 2
_COST = 1000.0  # of the dearest video: the solver takes two plans as equal whose costs differ by less than 1e-6
_DRAWS = 10  # of val and test
_GROUPINGS = 5  # how often groups are shared out anew where training cannot have its numbers


def construct_exactly(
    annotations: Annotations, targets: ExactTargets, *, dataset: str, seed: int, time_limit_s: float = 60.0
) -> Construction:
    """Draw a split that has prescribed numbers.

    The training subset is the cheapest, at a random cost a video, that has the numbers: a mixed-integer program, solved
    by HiGHS to the optimum. The classes come into the groups by their co-occurrence, unless only another order can
    meet the numbers. Test and val are drawn from the rest as in ``construct``; the program leaves each class enough.

    Parameters
    ----------
    annotations : Annotations
        Official subsets are pooled; the order of the videos makes no difference to what is drawn.
    targets : ExactTargets
        ``EXACT_PRESETS`` has those of the published benchmarks.
    dataset : str
        Name of the benchmark.
    seed : int
        From 0 on. The optimum is as good as surely a single one, so the same seed gives the same split with other
        versions of SciPy too, within the solver's tolerance.
    time_limit_s : float
        For each program. The result never depends on it: what is not solved in time is refused.

    Returns
    -------
    Construction
        Of the variant ``exact``.

    Raises
    ------
    SplitError
        The numbers cannot be met; the message names those that are in the way and the nearest that can.
    """
    check_seed(seed)
    if not time_limit_s > 0:
        raise SplitError(f"time_limit_s must be above 0, got {time_limit_s!r}")
    pool = Pool.of(annotations, targets.least_seconds, targets.group_by)
    if (asked := targets.head + targets.medium + targets.tail) != pool.num_classes:
        raise SplitError(
            f"head {targets.head}, medium {targets.medium} and tail {targets.tail} are {asked} classes together; "
            f"{dataset} has {pool.num_classes}"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    order = co_occurrence_rank(pool)
    costs = generator.random(len(pool)) * _COST
    limits = pool.available - targets.test_positives - targets.val_positives
    open_to, middles = open_to_all(pool), _middles(order, limits, targets)
    problems: list[str] = []
    for _ in range(_GROUPINGS if targets.group_by else 1):
        if targets.group_by:
            open_to = grouped_openings(pool, middles, targets, generator)
            limits = pool.positives(open_to[0])
        plan = plan_by_rank(order, limits, targets)
        train = _solve(pool, plan, limits, open_to[0], costs, targets, time_limit_s)
        if train is None and not targets.group_by:
            nearest = find_nearest(pool, order, limits, open_to[0], targets, time_limit_s)
            train = _solve(pool, nearest.plan, limits, open_to[0], costs, targets, time_limit_s)
        if train is None:
            continue
        for _ in range(_DRAWS):
            val, test = draw_rest(pool, order, train, open_to, targets, generator)
            split = as_split(annotations, pool, train, val, test, targets, dataset, "exact", seed)
            problems = _unmet(split, targets, pool)
            if not problems:
                return Construction(
                    split=split,
                    targets=targets,
                    seed=seed,
                    target_counts=tuple(split.train_counts.tolist()),
                    available=tuple(pool.available.tolist()),
                    candidates=len(pool),
                    shortfalls=(),
                )
    if problems:
        raise SplitError(
            f"the training subset of {dataset} can have its numbers, but val and test had not theirs in any of "
            f"{_DRAWS} draws; ask for less there, or try another seed:\n{bullet_list(problems)}"
        )
    nearest = find_nearest(pool, order, limits, open_to[0], targets, time_limit_s)
    raise SplitError(_refusal(dataset, nearest, targets, annotations, pool))


def _middles(order: Integers, limits: Integers, targets: ExactTargets) -> Integers:
    """Return about how many training videos each class will have, before it is known which groups it can have."""
    plan = plan_by_rank(order, limits, targets)
    if plan is None:
        return np.maximum(limits, 1)
    # Within a range the counts of a long tail lie nearer to its lower end; in the tail itself no video is to spare.
    middles = np.sqrt(plan.lows * plan.highs).astype(np.int64)
    return np.where(plan.highs <= targets.tail_up_to, plan.lows, middles)


def _solve(
    pool: Pool,
    plan: ClassPlan | None,
    limits: Integers,
    open_to: Flags,
    costs: npt.NDArray[np.float64],
    targets: ExactTargets,
    time_limit_s: float,
) -> Flags | None:
    """Return the cheapest training subset that keeps to a plan, None where there is none."""
    if plan is None or (plan.lows > np.minimum(plan.highs, limits)).any():
        return None
    highs = np.minimum(plan.highs, limits)
    constraints = [
        LinearConstraint(class_matrix(pool), plan.lows, highs),
        LinearConstraint(np.ones((1, len(pool))), targets.train_videos, targets.train_videos),
    ]
    if targets.labels is not None:
        constraints.append(LinearConstraint(pool.sizes[None].astype(np.float64), targets.labels, targets.labels))
    answer = milp(
        costs,
        integrality=np.ones(len(pool)),
        bounds=Bounds(0, open_to.astype(np.float64)),
        constraints=constraints,
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if answer.status == _INFEASIBLE:
        return None
    if answer.status == _OUT_OF_TIME:
        raise SplitError(f"the program was not solved in {time_limit_s:g} seconds; give it a longer time limit")
    if answer.status != _OPTIMAL:
        raise SplitError(f"the solver gave up: {answer.message}")
    train: Flags = answer.x > 0.5
    counts = pool.positives(train)
    if (
        ((counts < plan.lows) | (counts > highs)).any()
        or int(train.sum()) != targets.train_videos
        or (targets.labels is not None and int(counts.sum()) != targets.labels)
    ):
        raise SplitError("the solver's answer does not have the numbers within whole videos; try another seed")
    return train


def class_matrix(pool: Pool) -> csr_array:
    """Return the (C, m) matrix of which candidate has which class."""
    ones = np.ones(len(pool.classes))
    return csr_array((ones, (pool.classes, pool.owners)), shape=(pool.num_classes, len(pool)))


def _unmet(split: Split, targets: ExactTargets, pool: Pool) -> list[str]:
    """Return which numbers of val and test a split does not have."""
    problems = [
        f"{entry.subset}: class {entry.class_index} {entry.class_name!r} has {entry.got} of {entry.wanted} videos "
        f"({entry.available:,} candidates)"
        for entry in find_shortfalls(split, targets, pool.available)[:5]
    ]
    for subset, size in (("val", targets.val_videos), ("test", targets.test_videos)):
        if size is not None and len(split.rows(subset)) != size:
            problems.append(f"{subset} has {len(split.rows(subset)):,} videos, not {size:,}")
    return problems


def _refusal(dataset: str, nearest: Nearest, targets: ExactTargets, annotations: Annotations, pool: Pool) -> str:
    """Say which numbers are in the way, and the nearest that can be met."""
    lines = [f"{name} {asked:,}: {found:,} can be met" for name, (asked, found) in nearest.changes.items()]
    if nearest.short:
        named = first_few(
            f"{index} {annotations.class_names[index]!r} ({pool.available[index]:,} candidates, {count:,} too few)"
            for index, count in nearest.short.items()
        )
        what = f"test_positives {targets.test_positives} and val_positives {targets.val_positives} leave"
        if targets.group_by:
            what = "the groups of the other subsets leave"
        lines.append(f"{what} too few videos for training in class {named}")
    grouped = " (for the groups as this seed shared them out)" if targets.group_by else ""
    if not lines:
        return (
            f"no split of {dataset} with these numbers was found{grouped}, nor numbers near them that can be met; "
            "ask for other ones"
        )
    how = "with these changes together all other numbers can stay"
    if nearest.proven:
        how += ", and none are smaller in proportion"
    if pool.num_classes > FEW:
        # Not every way to share classes out among the groups was tried.
        return (
            f"no split of {dataset} with these numbers was found{grouped}, its classes in the groups of their "
            f"co-occurrence; {how}:\n{bullet_list(lines)}"
        )
    return f"no split of {dataset} has these numbers{grouped}; {how}:\n{bullet_list(lines)}"
