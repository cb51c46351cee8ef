"""Average precision by class, its mean by frequency group, and top-k accuracy."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError
from meidbench.predictions import Predictions, align_predictions
from meidbench.split import GROUP_NAMES, Split
from meidbench.split_file import load_split

FORMAT_VERSION = 1
GROUPS_SHOWN = ("overall", *GROUP_NAMES)
_BLOCK = 16  # classes sorted at a time: small enough to stay in cache, large enough to copy whole cache lines
_ROWS = 4096  # videos compared at a time in the top-k pass

Scores = npt.NDArray[Any]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MeanAP:
    """Mean average precision over the classes of each group that have a positive; NaN for a group without any."""

    overall: float
    head: float
    medium: float
    tail: float


@dataclass(frozen=True)
class Accuracy:
    """Share of the videos of which one of the k best classes is a label."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Group:
    """Classes of a group that have a positive in the subset, and how many positives they have together."""

    classes: int
    positives: int


@dataclass(frozen=True)
class ClassResult:
    """One class: index, name, group, training videos, positives in the subset, AP (NaN without positives)."""

    index: int
    name: str
    group: str
    train_count: int
    positives: int
    ap: float


@dataclass(frozen=True)
class Diagnostics:
    """What to know of the scores.

    Attributes
    ----------
    videos : int
        Videos of the subset.
    classes_without_positives : int
        Left out of all means.
    tied_score_fraction : float
        Share of the scores that equal the score of another video for the same class.
    constant_classes : int
        Classes that have one score for all videos.
    score_dtype : str
        NumPy's name.
    """

    videos: int
    classes_without_positives: int
    tied_score_fraction: float
    constant_classes: int
    score_dtype: str


@dataclass(frozen=True)
class Result:
    """The evaluation of one prediction file on one subset of a split."""

    dataset: str
    variant: str
    subset: str
    split_digest: str
    protocol: str
    mAP: MeanAP
    accuracy: Accuracy
    groups: dict[str, Group]
    diagnostics: Diagnostics
    per_class: tuple[ClassResult, ...]
    intervals: None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the result as JSON: keys sorted, no time or host in it, null for what is not defined."""
        content = asdict(self)
        for entry in content["per_class"]:
            entry["class"] = entry.pop("index")
        return json.dumps(_without_nan(content), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class _Ranking:
    """Per class: average precision, number of tied scores, and whether all scores are one."""

    ap: npt.NDArray[np.float64]
    tied: npt.NDArray[np.int64]
    constant: Labels


def average_precision(scores: Scores, labels: Labels) -> npt.NDArray[np.float64]:
    """Compute the average precision of each class.

    AP of a class is the mean over its positives of (positives with a score at least as high) / (videos with a score
    at least as high), so tied videos share a rank, as ``sklearn.metrics.average_precision_score`` defines it.

    Parameters
    ----------
    scores : ndarray, (n, C)
        Finite real numbers of any type, higher is likelier.
    labels : ndarray of bool, (n, C)

    Returns
    -------
    ndarray of float64, (C,)
        NaN for a class without positives.

    Raises
    ------
    PredictionError
        The shapes differ, or a score is NaN or infinite.

    Examples
    --------
    >>> scores = np.array([[0.9], [0.8], [0.8], [0.1]])
    >>> average_precision(scores, np.array([[True], [False], [True], [False]]))
    array([0.83333333])
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise PredictionError(f"scores have shape {scores.shape}, labels {labels.shape}; expected (n, C) of both")
    if scores.dtype.kind not in "fiu":
        raise PredictionError(f"the scores are of type {scores.dtype}; expected real numbers")
    if scores.dtype.kind == "f" and not np.isfinite(scores).all():
        raise PredictionError("the scores hold NaN or infinity")
    rows, classes = np.nonzero(labels)
    return _rank(scores, rows, classes).ap


def _rank(scores: Scores, rows: npt.NDArray[Any], classes: npt.NDArray[Any]) -> _Ranking:
    """Rank the videos of each class; rows and classes name the positives."""
    n, num_classes = scores.shape
    by_class = np.argsort(classes, kind="stable")
    positive_rows = np.split(rows[by_class], np.searchsorted(classes[by_class], np.arange(1, num_classes)))
    ap = np.full(num_classes, np.nan)
    tied = np.zeros(num_classes, dtype=np.int64)
    constant = np.zeros(num_classes, dtype=bool)
    for start in range(0, num_classes, _BLOCK):
        # A copy always: it is sorted in place, and the transpose of a single column would be a view of the caller's.
        block = np.array(scores[:, start : start + _BLOCK].T, order="C", copy=True)
        for offset, column in enumerate(block):
            index = start + offset
            positives = np.sort(column[positive_rows[index]])
            column.sort()
            same = column[1:] == column[:-1]
            tied[index] = _in_runs(same)
            constant[index] = n > 0 and column[0] == column[-1]
            if len(positives):
                higher = n - np.searchsorted(column, positives, "left")
                higher_positives = len(positives) - np.searchsorted(positives, positives, "left")
                ap[index] = (higher_positives / higher).mean()
    return _Ranking(ap, tied, constant)


def _in_runs(same: Labels) -> int:
    """Count the members of runs of equal neighbours, given which neighbours are equal."""
    links = int(np.count_nonzero(same))
    if not links:
        return 0
    starts = int(same[0]) + int(np.count_nonzero(same[1:] & ~same[:-1]))
    return links + starts


def top_k_hits(
    scores: Scores, rows: npt.NDArray[Any], classes: npt.NDArray[Any], ks: Sequence[int]
) -> dict[int, npt.NDArray[np.bool_]]:
    """Tell for each video whether one of its k best classes is a label.

    Of classes with one score the lower index comes first, so that the answer does not depend on a sort. A video
    without a label is no hit.

    Parameters
    ----------
    scores : ndarray, (n, C)
    rows, classes : ndarray, (labels,)
        Row and class of each label, row by row.
    ks : sequence of int

    Returns
    -------
    dict
        (n,) bool by k.
    """
    n = len(scores)
    hits = {k: np.zeros(n, dtype=bool) for k in ks}
    if not len(rows):
        return hits
    given = scores[rows, classes]
    labelled, first = np.unique(rows, return_index=True)
    best = np.maximum.reduceat(given, first)
    is_best = given == np.repeat(best, np.diff(np.append(first, len(rows))))
    # The first of a video's labels that has its best score decides ties with other classes.
    best_class = np.minimum.reduceat(np.where(is_best, classes.astype(np.int64), scores.shape[1]), first)
    rank = np.empty(len(labelled), dtype=np.int64)
    for start in range(0, len(labelled), _ROWS):
        part = slice(start, start + _ROWS)
        block = scores[labelled[part]]
        level = best[part, None]
        rank[part] = np.count_nonzero(block >= level, axis=1) - 1
        tied = np.flatnonzero(rank[part] > 0)
        equal = block[tied] == level[tied]
        earlier = np.arange(scores.shape[1]) < best_class[part][tied, None]
        rank[part][tied] -= np.count_nonzero(equal & ~earlier, axis=1) - 1
    for k in ks:
        hits[k][labelled] = rank < k
    return hits


def evaluate_scores(scores: Scores, split: Split, subset: str) -> Result:
    """Score predictions that are checked and in the order of ``split.video_ids(subset)``."""
    rows, classes = split.label_pairs(subset)
    ranking = _rank(scores, rows, classes)
    positives = split.positives(subset)
    members = {"overall": np.arange(split.num_classes), **{name: getattr(split.groups, name) for name in GROUP_NAMES}}
    present = {name: index[positives[index] > 0] for name, index in members.items()}
    hits = top_k_hits(scores, rows, classes, (1, 5))
    names = split.groups.names(split.num_classes)
    return Result(
        dataset=split.dataset,
        variant=split.variant,
        subset=subset,
        split_digest=split.digest,
        protocol="tie-aware",
        mAP=MeanAP(**{name: _mean(ranking.ap[index]) for name, index in present.items()}),
        accuracy=Accuracy(_mean(hits[1]), _mean(hits[5])),
        groups={name: Group(len(index), int(positives[index].sum())) for name, index in present.items()},
        diagnostics=Diagnostics(
            videos=len(scores),
            classes_without_positives=int((positives == 0).sum()),
            tied_score_fraction=float(ranking.tied.sum() / scores.size) if scores.size else 0.0,
            constant_classes=int(ranking.constant.sum()),
            score_dtype=str(scores.dtype),
        ),
        per_class=tuple(
            ClassResult(
                index,
                split.class_names[index],
                names[index],
                int(split.train_counts[index]),
                int(positives[index]),
                float(ranking.ap[index]),
            )
            for index in range(split.num_classes)
        ),
    )


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def evaluate(
    scores: Scores,
    video_ids: Sequence[str],
    split: Any,
    subset: str = "test",
    *,
    allow_float16: bool = False,
) -> Result:
    """Score predictions on a subset of a split.

    Parameters
    ----------
    scores : ndarray, (n, C)
        Real numbers, higher is likelier; only their order within a class matters.
    video_ids : sequence of str
        n ids, in the order of the rows; any order will do.
    split : Split, str or Path
        As for ``load_split``.
    subset : str
        ``train``, ``val`` or ``test``.
    allow_float16 : bool
        Accept half precision, whose ties were none in the model.

    Returns
    -------
    Result
        E.g. ``evaluate(...).mAP.tail``.

    Raises
    ------
    PredictionError
        As ``meidbench.predictions.align_predictions``.
    """
    split = load_split(split)
    given = Predictions([str(video_id) for video_id in video_ids], np.asarray(scores))
    return evaluate_scores(align_predictions(given, split, subset, allow_float16=allow_float16), split, subset)
