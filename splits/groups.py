"""The groups of a split's classes, head, medium and tail: by thresholds on the training videos, or by a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.checks import show, suggest
from meidbench.errors import first_few, write_count

GROUP_NAMES = ("head", "medium", "tail")
BY_LIST = "by list"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the groups: head n > ``head_above`` training videos, tail n <= ``tail_up_to``."""

    head_above: int
    tail_up_to: int

    @classmethod
    def from_numbers(cls, head_above: int | None, tail_up_to: int | None) -> "Thresholds | None":
        """Return the thresholds, None where a list gives the groups and there are no numbers."""
        return None if head_above is None or tail_up_to is None else cls(head_above, tail_up_to)

    def __str__(self) -> str:
        return f"head above {self.head_above:,} training videos, tail up to {self.tail_up_to:,}"


@dataclass(frozen=True)
class Groups:
    """Class indices of the groups, ascending; a group may be empty."""

    head: npt.NDArray[np.intp]
    medium: npt.NDArray[np.intp]
    tail: npt.NDArray[np.intp]

    @classmethod
    def from_counts(cls, train_counts: Sequence[int], head_above: int, tail_up_to: int) -> "Groups":
        """Group classes: head n > head_above, tail n <= tail_up_to, medium between (MEID, Table 1).

        >>> Groups.from_counts([501, 500, 100, 101], head_above=500, tail_up_to=100).medium
        array([1, 3])
        """
        counts = np.asarray(train_counts)
        head, tail = counts > head_above, counts <= tail_up_to
        return cls(np.flatnonzero(head), np.flatnonzero(~head & ~tail), np.flatnonzero(tail & ~head))

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Groups":
        """Group classes by a list: the name of the group of each class, by index.

        >>> Groups.from_names(["tail", "head", "tail"]).tail
        array([0, 2])
        """
        given = np.array(names, dtype=np.str_)
        return cls(*(np.flatnonzero(given == name) for name in GROUP_NAMES))

    def names(self, num_classes: int) -> list[str]:
        """Return the group of each class."""
        group_of = {index: name for name in GROUP_NAMES for index in getattr(self, name).tolist()}
        return [group_of.get(index, "") for index in range(num_classes)]

    @property
    def empty(self) -> tuple[str, ...]:
        """The names of the groups without a class."""
        return tuple(name for name in GROUP_NAMES if not len(getattr(self, name)))


def find_group_problems(groups: Sequence[object], class_names: Sequence[str]) -> list[str]:
    """Return the problems of a list of groups, which needs one of ``GROUP_NAMES`` per class.

    >>> find_group_problems(["head", "middle"], ["run", "swim"])
    ["class 1 'swim' has the group 'middle'; known: head, medium, tail"]
    """
    if len(groups) != len(class_names):
        classes = write_count(len(class_names), "class", "classes")
        return [f"there are {write_count(len(groups), 'group')} for {classes}"]
    known = f"known: {', '.join(GROUP_NAMES)}"
    return [
        f"class {index} {name!r} has the group {group!r}; {known}"
        for index, (group, name) in enumerate(zip(groups, class_names, strict=True))
        if group not in GROUP_NAMES
    ]


def read_group_names(name: str, value: Any, default: Any, prefix: str, problems: list[str]) -> dict[str, str]:
    """Read a benchmark's own names of groups, such as ``{"medium": "middle"}``, as a ``FieldReader``.

    >>> problems = []
    >>> read_group_names("group_names", {"medium": "tail"}, {}, "", problems), problems
    ({}, ['the names of the groups, head, tail and tail, must be three different texts in one line'])
    """
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        problems.append(f"{prefix}{name} must be a table of texts, got {show(value)}")
        return {}
    before = len(problems)
    if strange := sorted(set(value) - set(GROUP_NAMES)):
        named = first_few(f"{group!r}{suggest(group, GROUP_NAMES)}" for group in strange)
        problems.append(f"{prefix}{name} has unknown groups {named}; known: {', '.join(GROUP_NAMES)}")
    shown = [value.get(group, group) for group in GROUP_NAMES]
    if len({*shown, "overall"}) <= len(shown) or not all(text.strip() and text.isprintable() for text in shown):
        texts = f"{', '.join(shown[:-1])} and {shown[-1]}"
        problems.append(f"the names of the groups, {texts}, must be three different texts in one line")
    return value if len(problems) == before else {}
