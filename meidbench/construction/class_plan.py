"""How many training videos each class may have in an exact split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meidbench.construction.pool import Integers
from meidbench.construction.targets import ExactTargets, group_ranges


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
