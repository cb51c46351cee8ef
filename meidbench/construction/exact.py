"""Splits with prescribed numbers, found by a mixed-integer program with a random objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from meidbench.annotations import Annotations
from meidbench.construction.drawing import allow_by_group, build_split, check_seed, co_occurrence_rank, draw_evaluation
from meidbench.construction.outcome import Construction, find_shortfalls
from meidbench.construction.pool import Flags, Integers, Pool
from meidbench.construction.targets import ExactTargets, group_ranges
from meidbench.errors import SplitError, bullet_list, first_few, write_count
from meidbench.splits.split import Split

Floats = npt.NDArray[np.float64]
_OPTIMAL, _OUT_OF_TIME, _INFEASIBLE = 0, 1, 2
_COST = 1000.0  # of the dearest video: the solver cannot tell costs apart that differ by less than 1e-6
_DRAWS = 10  # of val and test
_GROUPINGS = 5  # divisions of the groups among the subsets that are tried
# With few classes, the search for near numbers tries every class in every group, and is exact. With many it would take
# hours: the classes keep to the groups of their ranks, and the search ends after a time or at a gap.
FEW = 12
_SECONDS, _GAP = 20.0, 1e-5


def construct_exactly(
    annotations: Annotations, targets: ExactTargets, *, dataset: str, seed: int, time_limit_s: float = 60.0
) -> Construction:
    """Draw a split that has prescribed numbers.

    The training subset is the cheapest that has the numbers, with a random cost per video: a mixed-integer program,
    solved by HiGHS to the optimum. The co-occurrence of the classes decides their groups, unless only other groups can
    meet the numbers. Test and val are drawn from the rest as in ``construct``; the program leaves each class enough.
    ``annotations`` and ``dataset`` are as there.

    Parameters
    ----------
    targets : ExactTargets
        ``EXACT_PRESETS`` has those of the published benchmarks.
    seed : int
        From 0 on. Two optimal subsets with the same random cost are practically impossible, so the same seed gives the
        same split with other versions of SciPy too, within the solver's tolerance.
    time_limit_s : float
        For each program. It never changes the result: a program that is not solved in time is refused.

    Raises
    ------
    SplitError
        The numbers cannot be met; the message has the numbers that must change, and the nearest possible ones.
    """
    check_seed(seed)
    if not time_limit_s > 0:
        raise SplitError(f"time_limit_s must be above 0, got {time_limit_s!r}")
    pool = Pool.from_annotations(annotations, targets.least_seconds, targets.group_by)
    if (asked := targets.head + targets.medium + targets.tail) != pool.num_classes:
        groups = f"head {targets.head}, medium {targets.medium} and tail {targets.tail}"
        raise SplitError(f"{groups} are {asked} classes together; {dataset} has {pool.num_classes}")
    generator = np.random.Generator(np.random.PCG64(seed))
    order = co_occurrence_rank(pool)
    costs = generator.random(len(pool)) * _COST
    limits = pool.available - targets.test_positives - targets.val_positives
    allowed = (np.ones(len(pool), dtype=bool),) * 3
    aims = _expected_counts(order, limits, targets)
    problems: list[str] = []
    nearest = None
    for _ in range(_GROUPINGS if targets.group_by else 1):
        if targets.group_by:
            allowed = allow_by_group(pool, aims, targets, generator)
            limits = pool.positives(allowed[0])
        bounds = _bounds_by_rank(order, limits, targets)
        train = _solve(pool, bounds, limits, allowed[0], costs, targets, time_limit_s)
        if train is None and not targets.group_by:
            nearest = _find_nearest(pool, order, limits, allowed[0], targets, time_limit_s)
            train = _solve(pool, nearest.bounds, limits, allowed[0], costs, targets, time_limit_s)
        if train is None:
            continue
        for _ in range(_DRAWS):
            chosen = (train, *draw_evaluation(pool, order, train, allowed, targets, generator))
            split = build_split(annotations, pool, chosen, targets, dataset, "exact", seed)
            problems = _unmet(split, targets, pool)
            if not problems:
                counts, available = split.train_counts.tolist(), pool.available.tolist()
                return Construction(split, targets, seed, tuple(counts), tuple(available), len(pool), ())
    if problems:
        what = f"the training subset of {dataset} can have its numbers, but in none of {_DRAWS} draws val and test had"
        raise SplitError(f"{what} theirs; ask for less there, or try another seed:\n{bullet_list(problems)}")
    if nearest is None:
        nearest = _find_nearest(pool, order, limits, allowed[0], targets, time_limit_s)
    raise SplitError(_refusal(dataset, nearest, targets, annotations, pool))


# --- groups of classes and the training subset ------------------------------------------------------------------


@dataclass(frozen=True)
class _ClassBounds:
    """The fewest and the most training videos of each class, (C,) int64 each."""

    lows: Integers
    highs: Integers

    @classmethod
    def from_groups(
        cls, members: Mapping[str, Sequence[int]], first: int, last: int, targets: ExactTargets
    ) -> "_ClassBounds":
        """Make the bounds from the classes of each group, and the most and the least frequent class."""
        count = sum(len(classes) for classes in members.values())
        lows, highs = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for name, (low, high) in group_ranges(targets).items():
            lows[list(members[name])], highs[list(members[name])] = low, high
        lows[first] = targets.most_frequent
        highs[last] = targets.least_frequent
        return cls(lows, highs)


def _bounds_by_rank(order: Integers, limits: Integers, targets: ExactTargets) -> _ClassBounds | None:
    """Put the classes into groups by their rank; those with too few videos for a group go to a later one.

    ``limits`` are the training videos that each class can have. The result is None where this order gives no such
    groups; another order may.
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
    return _ClassBounds.from_groups(members, first, last, targets)


def _expected_counts(order: Integers, limits: Integers, targets: ExactTargets) -> Integers:
    """Return a rough number of training videos per class, before the groups are divided among the subsets."""
    bounds = _bounds_by_rank(order, limits, targets)
    if bounds is None:
        return np.maximum(limits, 1)
    # The counts of a long tail lie nearer to the lower end of a range; the tail itself has no video to spare.
    middles = np.sqrt(bounds.lows * bounds.highs).astype(np.int64)
    return np.where(bounds.highs <= targets.tail_up_to, bounds.lows, middles)


def _solve(
    pool: Pool,
    bounds: _ClassBounds | None,
    limits: Integers,
    allowed: Flags,
    costs: Floats,
    targets: ExactTargets,
    time_limit_s: float,
) -> Flags | None:
    """Return the cheapest training subset within the bounds, None where no subset has the numbers."""
    if bounds is None or (bounds.lows > np.minimum(bounds.highs, limits)).any():
        return None
    highs = np.minimum(bounds.highs, limits)
    ones = np.ones(len(pool.classes))
    class_matrix = csr_array((ones, (pool.classes, pool.owners)), shape=(pool.num_classes, len(pool)))
    size = LinearConstraint(np.ones((1, len(pool))), targets.train_videos, targets.train_videos)
    constraints = [LinearConstraint(class_matrix, bounds.lows, highs), size]
    if targets.labels is not None:
        constraints.append(LinearConstraint(pool.sizes[None].astype(np.float64), targets.labels, targets.labels))
    answer = milp(
        costs,
        integrality=np.ones(len(pool)),
        bounds=Bounds(0, allowed.astype(np.float64)),
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
    outside = ((counts < bounds.lows) | (counts > highs)).any()
    wrong_labels = targets.labels is not None and int(counts.sum()) != targets.labels
    if outside or int(train.sum()) != targets.train_videos or wrong_labels:
        raise SplitError("the solver's answer does not have the numbers within whole videos; try another seed")
    return train


# --- the nearest numbers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nearest:
    """The changes that make the numbers possible."""

    changes: dict[str, tuple[int, int]]  # by name, the number asked for and the nearest possible one, if they differ
    short: dict[int, int]  # by class, the videos that val and test would have to give up
    proven: bool  # whether smaller changes are ruled out
    bounds: _ClassBounds | None  # bounds that can be met, where no change is necessary


class _MixedIntegerProgram:
    """A mixed-integer program, built from groups of variables and rows of constraints."""

    def __init__(self) -> None:
        self.variables: list[tuple[float, float, bool]] = []  # highest value, cost, whether it is a whole number
        self.entries: list[tuple[float, int, int]] = []  # factor, row and column of the matrix of constraints
        self.ranges: list[tuple[float, float]] = []  # the least and the most of each constraint

    def add(self, count: int, high: float | Sequence[float], cost: float = 0.0, whole: bool = True) -> Integers:
        """Add variables from 0 to ``high`` and return their numbers."""
        highs = [float(high)] * count if isinstance(high, int | float) else high
        self.variables += [(high, cost, whole) for high in highs]
        return np.arange(len(self.variables) - count, len(self.variables))

    def constrain(self, terms: Sequence[tuple[Integers, float | Sequence[float]]], least: float, most: float) -> None:
        """Keep a sum within bounds; a term is a group of variables with one factor, or with one factor each."""
        for variables, factor in terms:
            factors = [factor] * len(variables) if isinstance(factor, int | float) else factor
            pairs = zip(factors, variables.tolist(), strict=True)
            self.entries += [(value, len(self.ranges), column) for value, column in pairs]
        self.ranges.append((least, most))

    def solve(self, time_limit_s: float, gap: float) -> tuple[Floats | None, bool]:
        """Return the values, or None where none were found in time, and whether they are proven to be optimal."""
        highs, costs, whole = zip(*self.variables, strict=True)
        least, most = zip(*self.ranges, strict=True)
        values, rows, columns = zip(*self.entries, strict=True)
        # Older versions of SciPy take only 32-bit indices here.
        places = (np.asarray(rows, dtype=np.int32), np.asarray(columns, dtype=np.int32))
        matrix = coo_array((values, places), shape=(len(least), len(highs))).tocsr()
        answer = milp(
            costs,
            integrality=np.asarray(whole, dtype=np.float64),
            bounds=Bounds(np.zeros(len(highs)), highs),
            constraints=LinearConstraint(matrix, least, most),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )
        return answer.x, answer.status == 0


def _find_nearest(
    pool: Pool, order: Integers, limits: Integers, allowed: Flags, targets: ExactTargets, time_limit_s: float
) -> _Nearest:
    """Find the cheapest changes of the numbers, where a change costs its share of the number."""
    program = _MixedIntegerProgram()
    video = program.add(len(pool), allowed.astype(np.float64).tolist())
    names = ("head", "medium", "tail", "first", "last")
    possible_roles = zip(names, _possible_roles(order, limits, targets), strict=True)
    roles = {name: program.add(pool.num_classes, may) for name, may in possible_roles}
    big = float(pool.positives(allowed).max(initial=0)) + max(targets.most_frequent, targets.head_above) + 1
    short = program.add(pool.num_classes, big, cost=1.0 / max(targets.test_positives + targets.val_positives, 1))
    more, fewer = {}, {}
    numbers = ("train_videos", "head", "medium", "tail", "most_frequent", "least_frequent", "labels")
    asked: dict[str, int] = {name: value for name in numbers if (value := getattr(targets, name)) is not None}
    for name, value in asked.items():
        more[name] = program.add(1, float(len(pool.classes)), cost=1.0 / max(value, 1), whole=False)
        fewer[name] = program.add(1, float(value), cost=1.0 / max(value, 1), whole=False)
    sums: dict[str, tuple[Integers, float | Sequence[float]]] = {"train_videos": (video, 1.0)}
    if targets.labels is not None:
        sums["labels"] = (video, pool.sizes.astype(np.float64).tolist())
    sums |= {name: (roles[name], 1.0) for name in names[:3]}
    for name, term in sums.items():
        program.constrain([term, (more[name], -1.0), (fewer[name], 1.0)], asked[name], asked[name])
    for name in ("first", "last"):
        program.constrain([(roles[name], 1.0)], 1, 1)
    most = [(more["most_frequent"], -1.0), (fewer["most_frequent"], 1.0)]
    least = [(more["least_frequent"], -1.0), (fewer["least_frequent"], 1.0)]
    for index, possible in enumerate(pool.positives(allowed).tolist()):
        head, medium, tail, first, last = (roles[name][[index]] for name in names)
        count = (video[pool.videos_of_class(index)], 1.0)
        above, up_to = targets.head_above, targets.tail_up_to
        program.constrain([(head, 1.0), (medium, 1.0), (tail, 1.0)], 1, 1)
        program.constrain([count, (head, -(above + 1.0)), (medium, -(up_to + 1.0))], 0, np.inf)
        program.constrain([count, (head, -float(possible)), (medium, -float(above)), (tail, -float(up_to))], -np.inf, 0)
        program.constrain([count, *most], -np.inf, targets.most_frequent)
        program.constrain([count, *most, (first, -big)], targets.most_frequent - big, np.inf)
        program.constrain([count, *least], targets.least_frequent, np.inf)
        program.constrain([count, *least, (last, big)], -np.inf, targets.least_frequent + big)
        program.constrain([count, (short[[index]], -1.0)], -np.inf, float(limits[index]))
    few = pool.num_classes <= FEW
    values, proven = program.solve(time_limit_s if few else min(time_limit_s, _SECONDS), 0.0 if few else _GAP)
    if values is None:
        return _Nearest({}, {}, False, None)
    found = {name: value + int(np.rint(values[more[name]] - values[fewer[name]])[0]) for name, value in asked.items()}
    changes = {name: (value, found[name]) for name, value in asked.items() if value != found[name]}
    whole = np.rint(values).astype(np.int64)
    lacking = {index: count for index, count in enumerate(whole[short].tolist()) if count}
    bounds = None
    if not changes and not lacking:
        members = {name: np.flatnonzero(whole[roles[name]]).tolist() for name in names[:3]}
        ends = [int(whole[roles[name]].argmax()) for name in names[3:]]
        bounds = _ClassBounds.from_groups(members, ends[0], ends[1], targets)
    return _Nearest(changes, lacking, proven and few, bounds)


def _possible_roles(order: Integers, limits: Integers, targets: ExactTargets) -> list[list[float]]:
    """Return 1 for each class that may be in head, medium and tail, or the most and the least frequent one."""
    count = len(order)
    place = np.empty(count, dtype=np.int64)
    lowest = [low for low, _ in group_ranges(targets).values()]
    capable = [int((limits >= low).sum()) for low in lowest]
    # Classes with enough videos for a group come before the others.
    kinds = np.sum([limits >= low for low in (targets.most_frequent, *lowest)], axis=0)
    place[np.lexsort((np.argsort(order), -kinds))] = np.arange(count)
    one = min(targets.head, capable[0])
    two = min(targets.head + targets.medium, capable[1])
    window = count if count <= FEW else 0
    may = [place < one + window, (place >= one - window) & (place < two + window), place >= two - window]
    may += [place < max(window, 1), place >= count - max(window, 1)]
    return [each.astype(np.float64).tolist() for each in may]


def _unmet(split: Split, targets: ExactTargets, pool: Pool) -> list[str]:
    """Return the numbers of val and test that a split does not have."""
    problems = [
        f"{entry.subset}: class {entry.class_index} {entry.class_name!r} has {entry.got} of {entry.wanted} videos "
        f"({write_count(entry.available, 'candidate')})"
        for entry in find_shortfalls(split, targets, pool.available)[:5]
    ]
    for subset, size in (("val", targets.val_videos), ("test", targets.test_videos)):
        if size is not None and len(split.rows(subset)) != size:
            problems.append(f"{subset} has {write_count(len(split.rows(subset)), 'video')}, not {size:,}")
    return problems


def _refusal(dataset: str, nearest: _Nearest, targets: ExactTargets, annotations: Annotations, pool: Pool) -> str:
    """Return the message with the numbers that must change, and the nearest possible ones."""
    lines = [f"{name} {asked:,}: {found:,} can be met" for name, (asked, found) in nearest.changes.items()]
    if nearest.short:
        named = first_few(
            f"{index} {annotations.class_names[index]!r} "
            f"({write_count(pool.available[index], 'candidate')}, {count:,} too few)"
            for index, count in nearest.short.items()
        )
        what = f"test_positives {targets.test_positives} and val_positives {targets.val_positives} leave"
        if targets.group_by:
            what = "the groups of the other subsets leave"
        lines.append(f"{what} too few videos for training in class {named}")
    grouped = " (for the groups as this seed shared them out)" if targets.group_by else ""
    none_found = f"no split of {dataset} with these numbers was found{grouped}"
    if not lines:
        return f"{none_found}, nor numbers near them that can be met; ask for other ones"
    how = "with these changes together all other numbers can stay"
    if nearest.proven:
        how += ", and no smaller changes suffice, in proportion"
    if pool.num_classes > FEW:  # other groups of the classes were not tried
        return f"{none_found}, its classes in the groups of their co-occurrence; {how}:\n{bullet_list(lines)}"
    return f"no split of {dataset} has these numbers{grouped}; {how}:\n{bullet_list(lines)}"
