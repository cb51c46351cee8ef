"""Splits with prescribed numbers, found by a mixed-integer program with a random objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from meidbench.annotations import Annotations
from meidbench.construction.drawing import as_split, check_seed, co_occurrence_rank, draw_rest, grouped_openings
from meidbench.construction.outcome import Construction, find_shortfalls
from meidbench.construction.pool import Flags, Integers, Pool, open_to_all
from meidbench.construction.targets import ExactTargets, group_ranges
from meidbench.errors import SplitError, bullet_list, first_few
from meidbench.splits.split import Split


@dataclass(frozen=True)
class ClassPlan:
    """The fewest and the most training videos of each class, (C,) int64 each."""

    lows: Integers
    highs: Integers

    @classmethod
    def of(cls, members: Mapping[str, Sequence[int]], first: int, last: int, targets: ExactTargets) -> "ClassPlan":
        """Make the plan from the classes of each group and the most and the least frequent class."""
        count = sum(len(classes) for classes in members.values())
        lows, highs = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for name, (low, high) in group_ranges(targets).items():
            lows[list(members[name])], highs[list(members[name])] = low, high
        lows[first] = targets.most_frequent
        highs[last] = targets.least_frequent
        return cls(lows, highs)


def plan_by_rank(order: Integers, limits: Integers, targets: ExactTargets) -> ClassPlan | None:
    """Put the classes into groups by their rank; those with too few videos for a group go to a later one.

    Parameters
    ----------
    order : (C,) int64
        Classes from first to last.
    limits : (C,) int64
        Training videos that each class can have.
    targets : ExactTargets

    Returns
    -------
    ClassPlan or None
        None where the ranks leave no such plan; there may be one all the same.
    """
    rest = order.tolist()
    members: dict[str, list[int]] = {}
    for name, (low, _) in group_ranges(targets).items():
        members[name] = [index for index in rest if limits[index] >= low][: getattr(targets, name)]
        if len(members[name]) < getattr(targets, name):
            return None
        rest = [index for index in rest if index not in set(members[name])]
    upper = next(classes for classes in members.values() if classes)
    lower = next(classes for classes in reversed(members.values()) if classes)
    first = next((index for index in upper if limits[index] >= targets.most_frequent), None)
    last = next((index for index in reversed(lower) if index != first or len(order) == 1), None)
    if rest or first is None or last is None:
        return None
    return ClassPlan.of(members, first, last, targets)


# With few classes each may come into each group, and the nearest is the nearest there is. With many that would take
# hours: they keep to the groups of their ranks.
FEW = 12
_SECONDS, _GAP = 20.0, 1e-5  # and the search ends there, with the nearest that was found


@dataclass(frozen=True)
class Nearest:
    """What has to change.

    Attributes
    ----------
    changes : dict of (int, int)
        By name, the number asked for and the one that can be met; those that can stay are left out.
    short : dict of int
        By class, how many videos of val and test it would have to give up.
    proven : bool
        Whether smaller changes are ruled out.
    plan : ClassPlan or None
        Where nothing has to change: a plan that can be met.
    """

    changes: dict[str, tuple[int, int]]
    short: dict[int, int]
    proven: bool
    plan: ClassPlan | None


class _Program:
    """A mixed-integer program, put together from named variables and rows."""

    def __init__(self) -> None:
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.costs: list[float] = []
        self.whole: list[bool] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.least: list[float] = []
        self.most: list[float] = []

    def add(self, count: int, high: float | Sequence[float], cost: float = 0.0, whole: bool = True) -> Integers:
        """Add variables from 0 to ``high`` and return their numbers."""
        start = len(self.lows)
        self.lows += [0.0] * count
        self.highs += [float(high)] * count if isinstance(high, int | float) else list(high)
        self.costs += [cost] * count
        self.whole += [whole] * count
        return np.arange(start, start + count)

    def row(self, terms: Sequence[tuple[Integers, float]], least: float, most: float) -> None:
        """Demand that a sum of variables, each group times a factor, lies within bounds."""
        for variables, factor in terms:
            self.columns += variables.tolist()
            self.values += [factor] * len(variables)
            self.rows += [len(self.least)] * len(variables)
        self.least.append(least)
        self.most.append(most)

    def solve(self, time_limit_s: float, gap: float) -> tuple[npt.NDArray[np.float64] | None, bool]:
        """Return the values, None where none were found in time, and whether they are proven to be the best."""
        shape = (len(self.least), len(self.lows))
        # Older versions of SciPy take only 32-bit indices here.
        places = (np.asarray(self.rows, dtype=np.int32), np.asarray(self.columns, dtype=np.int32))
        matrix = coo_array((self.values, places), shape=shape).tocsr()
        answer = milp(
            self.costs,
            integrality=np.asarray(self.whole, dtype=np.float64),
            bounds=Bounds(self.lows, self.highs),
            constraints=LinearConstraint(matrix, self.least, self.most),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )
        return answer.x, answer.status == 0


def find_nearest(
    pool: Pool, order: Integers, limits: Integers, open_to: Flags, targets: ExactTargets, time_limit_s: float
) -> Nearest:
    """Let every number give way at a price in proportion to it, and solve for the cheapest.

    Parameters
    ----------
    pool : Pool
    order : (C,) int64
        Classes from first to last. Where they are many, they come into the groups by it.
    limits : (C,) int64
        Training videos that each class can have if val and test are to have their positives.
    open_to : (m,) bool
        Candidates that training may draw.
    targets : ExactTargets
    time_limit_s : float
    """
    program = _Program()
    most_possible = pool.positives(open_to)
    big = float(most_possible.max(initial=0)) + max(targets.most_frequent, targets.head_above) + 1
    video = program.add(len(pool), open_to.astype(np.float64).tolist())
    classes = range(pool.num_classes)
    head, medium, tail, first, last = (program.add(pool.num_classes, may) for may in _may_be(order, limits, targets))
    short = program.add(pool.num_classes, big, cost=1.0 / max(targets.test_positives + targets.val_positives, 1))
    more, fewer = {}, {}
    asked = {
        name: value
        for name in ("train_videos", "head", "medium", "tail", "most_frequent", "least_frequent", "labels")
        if (value := getattr(targets, name)) is not None
    }
    for name, value in asked.items():
        more[name] = program.add(1, float(len(pool.classes)), cost=1.0 / max(value, 1), whole=False)
        fewer[name] = program.add(1, float(value), cost=1.0 / max(value, 1), whole=False)

    def equal(name: str, variables: Integers, factors: Sequence[float] | None = None) -> None:
        terms = [(variables, 1.0)] if factors is None else [
            (variables[[place]], factor) for place, factor in enumerate(factors)
        ]  # fmt: skip
        program.row([*terms, (more[name], -1.0), (fewer[name], 1.0)], asked[name], asked[name])

    equal("train_videos", video)
    if targets.labels is not None:
        equal("labels", video, pool.sizes.astype(np.float64).tolist())
    for name, variables in (("head", head), ("medium", medium), ("tail", tail)):
        equal(name, variables)
    for variables in (first, last):
        program.row([(variables, 1.0)], 1, 1)
    top = [(more["most_frequent"], 1.0), (fewer["most_frequent"], -1.0)]
    bottom = [(more["least_frequent"], 1.0), (fewer["least_frequent"], -1.0)]
    above, up_to = targets.head_above, targets.tail_up_to
    for index in classes:
        one = {"head": head[[index]], "medium": medium[[index]], "tail": tail[[index]]}
        count = [(video[pool.of_class(index)], 1.0)]
        possible = float(most_possible[index])
        program.row([(variables, 1.0) for variables in one.values()], 1, 1)
        program.row([*count, (one["head"], -(above + 1.0)), (one["medium"], -(up_to + 1.0))], 0, np.inf)
        program.row(
            [*count, (one["head"], -possible), (one["medium"], -float(above)), (one["tail"], -float(up_to))], -np.inf, 0
        )
        program.row([*count, *_times(top, -1)], -np.inf, targets.most_frequent)
        program.row([*count, *_times(top, -1), (first[[index]], -big)], targets.most_frequent - big, np.inf)
        program.row([*count, *_times(bottom, -1)], targets.least_frequent, np.inf)
        program.row([*count, *_times(bottom, -1), (last[[index]], big)], -np.inf, targets.least_frequent + big)
        program.row([*count, (short[[index]], -1.0)], -np.inf, float(limits[index]))
    few = pool.num_classes <= FEW
    values, proven = program.solve(time_limit_s if few else min(time_limit_s, _SECONDS), 0.0 if few else _GAP)
    if values is None:
        return Nearest({}, {}, False, None)
    whole = np.rint(values).astype(np.int64)
    changes = {
        name: (value, value + int(np.rint(values[more[name]] - values[fewer[name]])[0]))
        for name, value in asked.items()
    }
    changes = {name: (value, found) for name, (value, found) in changes.items() if value != found}
    lacking = {index: int(whole[short[index]]) for index in classes if whole[short[index]]}
    plan = None
    if not changes and not lacking:
        groups = {"head": head, "medium": medium, "tail": tail}
        members = {name: np.flatnonzero(whole[variables]).tolist() for name, variables in groups.items()}
        plan = ClassPlan.of(members, int(whole[first].argmax()), int(whole[last].argmax()), targets)
    return Nearest(changes, lacking, proven and few, plan)


def _times(terms: list[tuple[Integers, float]], factor: float) -> list[tuple[Integers, float]]:
    return [(variables, value * factor) for variables, value in terms]


def _may_be(order: Integers, limits: Integers, targets: ExactTargets) -> list[list[float]]:
    """Return for each class whether it may be in head, medium and tail, the most and the least frequent one."""
    count = len(order)
    place = np.empty(count, dtype=np.int64)
    capable = [int((limits >= low).sum()) for low, _ in group_ranges(targets).values()]
    # Classes that have the videos for a group come before those that do not.
    lowest = (targets.most_frequent, *(low for low, _ in group_ranges(targets).values()))
    kinds = np.sum([limits >= low for low in lowest], axis=0)
    place[np.lexsort((np.argsort(order), -kinds))] = np.arange(count)
    one = min(targets.head, capable[0])
    two = min(targets.head + targets.medium, capable[1])
    window = count if count <= FEW else 0
    may = [place < one + window, (place >= one - window) & (place < two + window), place >= two - window]
    may += [place < max(window, 1), place >= count - max(window, 1)]
    return [each.astype(np.float64).tolist() for each in may]


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
