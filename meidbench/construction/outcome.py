"""The result of a construction: the split, and its distance to the targets or to another split."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from meidbench.construction.pool import Integers
from meidbench.construction.targets import ExactTargets, Targets
from meidbench.errors import SplitError
from meidbench.names import SUBSETS
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.split import Split
from meidbench.splits.statistics import split_statistics


@dataclass(frozen=True)
class Shortfall:
    """A class that has fewer videos in a subset than the targets want; ``available`` counts all its candidates."""

    subset: str
    class_index: int
    class_name: str
    wanted: int
    got: int
    available: int


@dataclass(frozen=True)
class Construction:
    """A split that was drawn, and its distance to the targets.

    ``target_counts`` are the (C,) training videos that the target gives to each class; for an exact construction,
    those that it has. ``available`` are the (C,) candidates of each class; ``candidates`` counts the labelled videos
    that were long enough. ``shortfalls`` are the classes with a candidate that are below the least positives of val or
    test, or without a training video.
    """

    split: Split
    targets: Targets | ExactTargets
    seed: int
    target_counts: tuple[int, ...]
    available: tuple[int, ...]
    candidates: int
    shortfalls: tuple[Shortfall, ...]

    @property
    def without_candidates(self) -> tuple[int, ...]:
        """Indices of the classes that no candidate has; they have no target."""
        return tuple(index for index, count in enumerate(self.available) if not count)

    @property
    def deviations(self) -> Integers:
        """(C,) training videos of each class minus its target."""
        return self.split.train_counts - np.asarray(self.target_counts, dtype=np.int64)

    @property
    def total_deviation(self) -> int:
        """Sum over the classes of the distance to the target."""
        return int(np.abs(self.deviations).sum())

    @property
    def largest_deviation(self) -> int:
        """Largest distance of a class to its target."""
        return int(np.abs(self.deviations).max(initial=0))

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain values, for JSON."""
        return {
            "statistics": asdict(split_statistics(self.split)),
            "digest": self.split.digest,
            "seed": self.seed,
            "targets": {**asdict(self.targets), "group_by": list(self.targets.group_by)},
            "candidates": self.candidates,
            "target_labels": sum(self.target_counts),
            "total_deviation": self.total_deviation,
            "largest_deviation": self.largest_deviation,
            "target_counts": list(self.target_counts),
            "train_counts": self.split.train_counts.tolist(),
            "available": list(self.available),
            "without_candidates": list(self.without_candidates),
            "shortfalls": [asdict(entry) for entry in self.shortfalls],
        }


def find_shortfalls(split: Split, targets: Targets | ExactTargets, available: Integers) -> tuple[Shortfall, ...]:
    """Return the classes that have a candidate but too few videos in a subset, subset by subset."""
    wanted = {"train": 1, "val": targets.val_positives, "test": targets.test_positives}
    return tuple(
        Shortfall(subset, index, split.class_names[index], wanted[subset], int(count), int(available[index]))
        for subset in SUBSETS
        for index, count in enumerate(split.positives(subset))
        if count < wanted[subset] and available[index]
    )


@dataclass(frozen=True)
class SplitDistance:
    """The distance between two splits of the same classes; pairs are of the first and the second.

    ``videos`` and ``groups`` are the sizes of the subsets and of the frequency groups. ``mean_count_difference`` is the
    mean over the classes of the absolute difference in training videos; ``mean_curve_difference`` the same with each
    split's classes sorted by their training videos, which compares only the shapes of the tails. ``same_group`` is the
    share of the classes that are in the same frequency group. ``shared_videos`` are, for each subset, the videos in
    both as a share of those in either (Jaccard); NaN where both are empty.
    """

    videos: dict[str, tuple[int, int]]
    groups: dict[str, tuple[int, int]]
    imbalance_ratio: tuple[float, float]
    labels_per_video_train: tuple[float, float]
    mean_count_difference: float
    mean_curve_difference: float
    same_group: float
    shared_videos: dict[str, float]


def distance_to(split: Split, other: Split) -> SplitDistance:
    """Compare a split with another of the same classes, such as the published one; else raise a ``SplitError``.

    >>> from meidbench.features.simulation import simulate_split
    >>> split = simulate_split((300, 40, 60), num_classes=20, head_above=50, tail_up_to=15)
    >>> distance_to(split, split).shared_videos
    {'train': 1.0, 'val': 1.0, 'test': 1.0}
    """
    if split.class_names != other.class_names:
        only = "only splits of the same classes can be compared"
        raise SplitError(f"{split!r} and {other!r} have different classes: {only}")
    first, second = split_statistics(split), split_statistics(other)
    a, b = split.train_counts, other.train_counts
    names = [each.groups.names(each.num_classes) for each in (split, other)]
    ids = {subset: (set(split.video_ids(subset)), set(other.video_ids(subset))) for subset in SUBSETS}
    return SplitDistance(
        videos={subset: (len(mine), len(theirs)) for subset, (mine, theirs) in ids.items()},
        groups={name: (getattr(first, name), getattr(second, name)) for name in GROUP_NAMES},
        imbalance_ratio=(first.imbalance_ratio, second.imbalance_ratio),
        labels_per_video_train=(first.labels_per_video_train, second.labels_per_video_train),
        mean_count_difference=float(np.abs(a - b).mean()),
        mean_curve_difference=float(np.abs(np.sort(a) - np.sort(b)).mean()),
        same_group=sum(x == y for x, y in zip(*names, strict=True)) / split.num_classes,
        shared_videos={
            subset: len(mine & theirs) / len(mine | theirs) if mine | theirs else float("nan")
            for subset, (mine, theirs) in ids.items()
        },
    )
