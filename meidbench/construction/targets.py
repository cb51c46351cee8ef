"""The targets of a drawn split, and those of the published benchmarks."""

from dataclasses import dataclass, fields

import numpy as np

from meidbench.annotations.base import quote
from meidbench.construction.pool import Integers
from meidbench.errors import SplitError, bullet_list
from meidbench.names import GROUP_KEYS
from meidbench.splits.statistics import FRAMES_PER_SECOND, LEAST_FRAMES

_MOST = 1_000_000_000  # larger than any dataset, and sums of it fit into 64 bits
LEAST_SECONDS = LEAST_FRAMES / FRAMES_PER_SECOND
_LEAST_ALPHA = 0.01  # below it, the place of the last class exceeds the largest float
_REACH = 0.99  # quantile of the Pareto distribution at the last class


@dataclass(frozen=True)
class Targets:
    """The numbers that a drawn split should come near.

    Attributes
    ----------
    most_frequent, least_frequent : int
        Training videos of the first and of the last class of the Pareto target.
    alpha : float
        Shape of the Pareto target, at least 0.01; 10 for CharadesLT, 17 for CharadesEgoLT.
    head_above, tail_up_to : int
        Thresholds of the frequency groups.
    test_positives, val_positives : int
        Least number of videos per class in test and in val.
    test_videos, val_videos : int, optional
        Sizes of test and val; without them, the positives of the classes decide.
    least_seconds : float, optional
        Shorter videos are left out; those of unknown length stay.
    group_by : tuple of str
        ``pair``, ``subject`` or both: videos that share it must not be in two subsets.
    """

    most_frequent: int
    least_frequent: int
    alpha: float
    head_above: int
    tail_up_to: int
    test_positives: int = 20
    val_positives: int = 10
    test_videos: int | None = None
    val_videos: int | None = None
    least_seconds: float | None = None
    group_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _refuse(_common_problems(self) + alpha_problems(self.alpha))


@dataclass(frozen=True)
class ExactTargets:
    """The numbers that a split must have exactly.

    ``train_videos``, ``val_videos`` and ``test_videos`` are the sizes of the subsets, ``labels`` those of all training
    videos together. ``head``, ``medium`` and ``tail`` are the numbers of classes in the frequency groups, together all
    classes; ``most_frequent`` and ``least_frequent`` the training videos of the most and of the least frequent class.
    The others are as in ``Targets``; every class must have the positives. None leaves a number open.
    """

    train_videos: int
    head: int
    medium: int
    tail: int
    most_frequent: int
    least_frequent: int
    head_above: int
    tail_up_to: int
    labels: int | None = None
    test_positives: int = 20
    val_positives: int = 10
    test_videos: int | None = None
    val_videos: int | None = None
    least_seconds: float | None = None
    group_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _refuse(_common_problems(self) or _contradictions(self))


def alpha_problems(alpha: object) -> list[str]:
    """Return the problems of a Pareto target's shape."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not _LEAST_ALPHA <= alpha <= _MOST:
        return [f"alpha must be a number from {_LEAST_ALPHA} to {_MOST:,}, got {quote(alpha)}"]
    return []


def seconds_problems(seconds: object) -> list[str]:
    """Return the problems of a least length of the videos."""
    if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds <= _MOST):
        return [f"least_seconds must be a number from 0 to {_MOST:,}, got {quote(seconds)}"]
    return []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise SplitError(f"these targets are wrong:\n{bullet_list(problems)}")


def _common_problems(targets: Targets | ExactTargets) -> list[str]:
    """Return the problems of the numbers that both kinds of targets have."""
    problems = []
    for entry in fields(targets):
        value = getattr(targets, entry.name)
        if entry.name in ("alpha", "least_seconds", "group_by") or (value is None and entry.default is None):
            continue
        least = int(entry.name in ("most_frequent", "least_frequent", "train_videos"))
        if type(value) is not int or not least <= value <= _MOST:
            problems.append(f"{entry.name} must be a whole number from {least} to {_MOST:,}, got {quote(value)}")
    problems += seconds_problems(targets.least_seconds)
    if not isinstance(targets.group_by, tuple) or not set(targets.group_by) <= set(GROUP_KEYS):
        problems.append(f"group_by must be a tuple of {', '.join(GROUP_KEYS)}, got {targets.group_by!r}")
    if not problems:
        if targets.tail_up_to > targets.head_above:
            problems.append(f"tail_up_to {targets.tail_up_to} lies above head_above {targets.head_above}")
        if targets.least_frequent > targets.most_frequent:
            problems.append(f"least_frequent {targets.least_frequent} lies above most_frequent {targets.most_frequent}")
    return problems


def _contradictions(targets: ExactTargets) -> list[str]:
    """Return the numbers that exclude one another for any videos."""
    ranges = group_ranges(targets)
    sizes = {name: getattr(targets, name) for name in ranges}
    if not sum(sizes.values()):
        return ["head, medium and tail together hold no class"]
    problems = []
    for name, (low, high) in ranges.items():
        if sizes[name] and low > high:
            counts = f"most_frequent {targets.most_frequent}, least_frequent {targets.least_frequent}"
            thresholds = f"head above {targets.head_above}, tail up to {targets.tail_up_to}"
            problems.append(f"no class can be in the {name}: {counts}, {thresholds}")
    held = [ranges[name] for name in ranges if sizes[name]]
    for what, value in (("most_frequent", targets.most_frequent), ("least_frequent", targets.least_frequent)):
        if not any(low <= value <= high for low, high in held):
            problems.append(f"{what} {value} lies in a group that must have no class")
    if sum(sizes.values()) == 1 and targets.most_frequent != targets.least_frequent:
        problems.append("a single class is the most and the least frequent one: give both the same number")
    if targets.most_frequent > targets.train_videos:
        problems.append(f"most_frequent {targets.most_frequent} exceeds train_videos {targets.train_videos}")
    if targets.labels is not None and not problems:
        least = sum(sizes[name] * low for name, (low, _) in ranges.items())
        most = sum(sizes[name] * high for name, (_, high) in ranges.items())
        if not least <= targets.labels <= most:
            problems.append(f"labels {targets.labels:,} cannot come from groups that hold {least:,} to {most:,}")
        elif targets.labels < targets.train_videos:
            problems.append(f"labels {targets.labels:,} are fewer than train_videos {targets.train_videos:,}")
    return problems


def group_ranges(targets: ExactTargets) -> dict[str, tuple[int, int]]:
    """Return the fewest and most training videos that a class of each group can have."""
    least, most = targets.least_frequent, targets.most_frequent
    above, up_to = targets.head_above, targets.tail_up_to
    return {
        "head": (max(least, above + 1), most),
        "medium": (max(least, up_to + 1), min(most, above)),
        "tail": (least, min(most, up_to)),
    }


def pareto_counts(num_classes: int, most: int, least: int, alpha: float) -> Integers:
    """Return the (C,) numbers of training videos that the target gives to the first to the last class, descending.

    n_r = int((most - least) / alpha * pdf(x_r) + least) with pdf(x) = alpha x^-(alpha + 1), x_r evenly spaced between
    the 0 and 0.99 quantiles (MEID, supplement; after Wu et al., ECCV 2020). ``most`` is the count of the first class;
    the last one comes near ``least``. A larger ``alpha`` makes a flatter head.

    >>> pareto_counts(5, 100, 10, alpha=1)
    array([100,  10,  10,  10,  10])
    >>> pareto_counts(5, 100, 10, alpha=10)
    array([100,  30,  15,  11,  10])
    """
    end = (1 - _REACH) ** (-1 / alpha)
    steps = [step / max(num_classes - 1, 1) for step in range(num_classes)]
    shares = [(1 + (end - 1) * step) ** -(alpha + 1) for step in steps]
    # On some machines a float falls just short of a whole number: the first count must not become most - 1.
    return np.asarray([int((most - least) * share + least + 1e-9) for share in shares], dtype=np.int64)


PRESETS: dict[str, Targets] = {
    "charadeslt": Targets(
        most_frequent=500, least_frequent=9, alpha=10, head_above=100, tail_up_to=20,
        test_positives=20, val_positives=9, test_videos=1012, val_videos=469, least_seconds=LEAST_SECONDS,
    ),
    "charadesegolt": Targets(
        most_frequent=450, least_frequent=10, alpha=17, head_above=100, tail_up_to=20,
        test_positives=20, val_positives=20, test_videos=748, val_videos=764, least_seconds=LEAST_SECONDS,
    ),
}  # fmt: skip
"""By benchmark; with these, sizes and groups come near those of the published split."""

EXACT_PRESETS: dict[str, ExactTargets] = {
    "charadeslt": ExactTargets(
        train_videos=2213, head=41, medium=81, tail=35, most_frequent=556, least_frequent=9, labels=13908,
        head_above=100, tail_up_to=20, test_positives=20, val_positives=3, test_videos=1012, val_videos=469,
        least_seconds=LEAST_SECONDS,
    ),
    "charadesegolt": ExactTargets(
        train_videos=1553, head=43, medium=89, tail=25, most_frequent=538, least_frequent=10, labels=13781,
        head_above=100, tail_up_to=20, test_positives=20, val_positives=20, test_videos=748, val_videos=764,
        least_seconds=LEAST_SECONDS,
    ),
}  # fmt: skip
"""By benchmark; the numbers of the published split."""
