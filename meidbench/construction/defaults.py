"""Targets derived from the videos, for datasets without a preset."""

import numpy as np

from meidbench.annotations import Annotations
from meidbench.construction.drawing import co_occurrence_rank
from meidbench.construction.pool import Pool
from meidbench.construction.targets import Targets, alpha_problems, pareto_counts, seconds_problems, target_shape
from meidbench.errors import SplitError

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
    reaches the Pareto curve with a third of its videos.

    Parameters
    ----------
    annotations : Annotations
    alpha : float
        Shape of the Pareto target.
    head_above, tail_up_to : int, optional
        Thresholds of the groups. Without them the customary ones where those leave no group empty, else the targets of
        the classes at a quarter and at three quarters of the ranks.
    least_seconds, group_by
        As in ``Targets``.
    customary : (int, int)
        The usual thresholds for these videos.

    Raises
    ------
    SplitError
        No video can be used, alpha is out of range, or the thresholds contradict one another.
    """
    if problems := alpha_problems(alpha) + seconds_problems(least_seconds):
        raise SplitError(problems[0])
    pool = Pool.from_annotations(annotations, least_seconds)
    present = pool.available[pool.available > 0]
    rare = int(np.sort(present)[int(_RARE * len(present))])
    together = _TEST + _VAL + _TRAIN
    test, val, least = (max(1, min(most, rare * most // together)) for most in (_TEST, _VAL, _TRAIN))
    shape = np.asarray(target_shape(pool.num_classes, alpha))
    ranked = pool.available[co_occurrence_rank(pool)]
    # A rank near the lower end of the curve does not limit its height.
    bound = (shape > _RARE) & (ranked > 0)
    room = np.sort((np.minimum(ranked * _SHARE, ranked - test - val) - least)[bound] / shape[bound])
    most = least + max(int(room[int(_RARE * len(room))]) if len(room) else 0, 0)
    curve = np.sort(pareto_counts(pool.num_classes, most, least, alpha))
    if curve[-1] > customary[0] >= curve[len(curve) // 2] and curve[0] <= customary[1]:
        borders = customary
    else:
        low, high = (int(curve[int(share * (len(curve) - 1))]) for share in (1 - _BORDERS[1], 1 - _BORDERS[0]))
        borders = (max(high, low), low)
    above = borders[0] if head_above is None else head_above
    up_to = min(borders[1], above) if tail_up_to is None else tail_up_to
    return Targets(
        most_frequent=most,
        least_frequent=least,
        alpha=alpha,
        head_above=max(above, up_to) if head_above is None else above,
        tail_up_to=up_to,
        test_positives=test,
        val_positives=val,
        least_seconds=least_seconds,
        group_by=group_by,
    )
