"""The nearest numbers that an exact split can have, where those that were asked for cannot be met."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from meidbench.construction.class_plan import ClassPlan
from meidbench.construction.pool import Flags, Integers, Pool
from meidbench.construction.targets import ExactTargets, group_ranges

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
