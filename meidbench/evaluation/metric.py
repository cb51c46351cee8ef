"""Metrics whose scores come batch by batch, also from several processes, and that are computed exactly."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError, RequestError, first_few, write_count
from meidbench.evaluation.accuracy import find_single_labels, recall_by_class
from meidbench.evaluation.evaluate import class_average, evaluate
from meidbench.evaluation.results import ClassAverage, Result
from meidbench.predictions.align import BlockScores, align_predictions, not_finite
from meidbench.predictions.base import Scores
from meidbench.predictions.values import (
    Predictions,
    as_predictions,
    check_class_order,
    check_numbers,
    is_half,
    refuse_half,
)
from meidbench.splits.split import Split, load_split


def _check_half(scores: Scores, allowed: bool) -> None:
    if is_half(scores.dtype):
        refuse_half("scores", "float16", allowed)


_Metric = TypeVar("_Metric", bound="_SubsetMetric")


class _SubsetMetric:
    """What metrics of a subset share: they take batches, merge processes, and name the videos that are missing."""

    _columns: int | None = None  # numbers that are kept per video; None for one per class

    def __init__(self, split: Split | str | Path, subset: str | None, allow_float16: bool) -> None:
        self.split = load_split(split)
        self.subset = self.split.default_subset if subset is None else subset
        self.split.rows(self.subset)  # refuses an unknown subset now, not after an epoch
        self._allow_float16 = allow_float16
        self._video_ids: list[str] = []
        self._kept: list[Scores] = []

    def _keep(self, given: Predictions) -> Scores:
        """Return what is kept of a batch: (b, columns) numbers."""
        raise NotImplementedError

    def update(self, video_ids: Iterable[Any], scores: Any) -> None:
        """Add the scores of a batch.

        Parameters
        ----------
        video_ids : sequence of str
            b ids, of any videos of the subset in any order.
        scores : array, tensor, list or DataFrame, (b, C)
            As for ``meidbench.evaluate``; what is kept of them is a copy.

        Raises
        ------
        PredictionError
            The shapes do not fit, or scores are of a type that is not scored. Ids are checked by ``compute``, and
            so are NaN and infinity where all scores are kept.
        """
        given = as_predictions(scores, video_ids, half=self._allow_float16)
        if not isinstance(given, Predictions):
            raise PredictionError(f"update takes the scores of a batch, got {type(scores).__name__}")
        expected = (len(given.video_ids), self.split.num_classes)
        if given.scores.shape != expected:
            raise PredictionError(f"the scores of the batch have shape {given.scores.shape}; expected {expected}")
        check_numbers(given.scores)
        _check_half(given.scores, self._allow_float16)
        check_class_order(given, self.split)
        kept = self._keep(given)
        self._video_ids += given.video_ids
        self._kept.append(kept)

    def merge(self: _Metric, others: "_Metric | Iterable[_Metric]") -> None:
        """Add the scores of one or several other metrics on the same subset of the same split.

        Raises
        ------
        RequestError
            A metric belongs to another subset or split; nothing is added.
        """
        metrics = list(others) if isinstance(others, Iterable) else [others]
        for other in metrics:
            if not isinstance(other, type(self)):
                raise RequestError(f"merge takes metrics, got one of type {type(other).__name__}")
            if (other.split.content_digest, other.subset) != (self.split.content_digest, self.subset):
                raise RequestError(f"{other} and {self} are not on the same subset of the same split")
            for batch in other._kept:
                _check_half(batch, self._allow_float16)
        # Listed first, so that a metric may be merged with itself.
        added = [(list(other._video_ids), list(other._kept)) for other in metrics]
        for video_ids, kept in added:
            self._video_ids += video_ids
            self._kept += kept

    @contextmanager
    def _gather(self) -> Iterator[Predictions]:
        """Give all that is kept as one matrix; an error in the block that is about missing videos gets its remedy."""
        empty = np.empty((0, self._columns or self.split.num_classes), np.float32)
        self._kept = [np.concatenate(self._kept) if self._kept else empty]
        try:
            yield Predictions(list(self._video_ids), self._kept[0])
        except PredictionError as error:
            if missing := len(set(self.split.video_ids(self.subset)) - set(self._video_ids)):
                remedy = "update the metric with each of them, and merge the metrics of all processes"
                raise PredictionError(
                    f"{error}\n{write_count(missing, 'video has', 'videos have')} no scores yet: {remedy}"
                ) from None
            raise

    def reset(self) -> None:
        """Forget all scores, for the next epoch."""
        self._video_ids, self._kept = [], []

    def __repr__(self) -> str:
        known = set(self.split.video_ids(self.subset))
        count = f"{len(known.intersection(self._video_ids)):,} of {len(known):,}"
        return f"<{type(self).__name__} {self.split.dataset} {self.subset}: scores of {count} videos>"


class MeanAveragePrecision(_SubsetMetric):
    """The mean average precision of a subset, from scores that come batch by batch.

    Average precision depends on the order of all videos, so the metric is exact only because it keeps every score: one
    (n, C) matrix in the memory of the host, in the type of the given scores, and the n ids. ``compute`` gives the same
    ``Result`` as ``meidbench.evaluate`` of all scores at once.

    With several processes, each process updates a metric of its own, and one of them merges all. A metric can be
    pickled, so with ``torch.distributed``::

        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, metric)
        metric.reset()
        metric.merge(gathered)
        result = metric.compute()

    Videos that ``DistributedSampler`` gives to two processes must have the same scores in both, and count once.

    Parameters
    ----------
    split : Split, str or Path
        As for ``load_split``.
    subset : str, optional
        ``train``, ``val`` or ``test``; by default ``split.default_subset``.
    protocol, bootstrap, seed, allow_float16
        As for ``meidbench.evaluate``.

    Raises
    ------
    SplitError
        The split does not exist, or has no such subset.

    Examples
    --------
    >>> from meidbench.features.simulation import simulate_split
    >>> split = simulate_split((30, 9, 9), num_classes=4)
    >>> ids, labels = split.video_ids("val"), split.labels("val")
    >>> metric = MeanAveragePrecision(split, "val")
    >>> for start in range(0, 9, 4):
    ...     metric.update(ids[start : start + 4], labels[start : start + 4].astype(float))
    >>> metric
    <MeanAveragePrecision simulatedlt val: scores of 9 of 9 videos>
    >>> metric.compute().mAP.overall
    1.0
    """

    def __init__(
        self,
        split: Split | str | Path,
        subset: str | None = None,
        *,
        protocol: str = "tie-aware",
        bootstrap: int = 0,
        seed: int = 0,
        allow_float16: bool = False,
    ) -> None:
        super().__init__(split, subset, allow_float16)
        self._options: dict[str, Any] = {"protocol": protocol, "bootstrap": bootstrap, "seed": seed}

    def _keep(self, given: Predictions) -> Scores:
        return np.array(given.scores)

    def compute(self) -> Result:
        """Return the result of all scores; more updates may follow.

        Raises
        ------
        PredictionError
            Videos of the subset are missing, unknown, or have two different scores; scores are NaN or infinite. One
            message names all of them.
        """
        with self._gather() as given:
            return evaluate(given, None, self.split, self.subset, allow_float16=self._allow_float16, **self._options)


class ClassAverageAccuracy(_SubsetMetric):
    """The class-average accuracy of a subset with one label per video, from scores that come batch by batch.

    It is the mean over classes of the recall at one answer, as in ``meidbench.evaluate(...).accuracy.class_average``.
    The answer for a video is the class with the highest score, of classes with the same score the first. The metric
    keeps only the answers, one number per video. Several processes are merged as for ``MeanAveragePrecision``.

    Parameters
    ----------
    split, subset, allow_float16
        As for ``MeanAveragePrecision``.

    Raises
    ------
    RequestError
        A video of the subset has no label or several.
    SplitError
        The split does not exist, or has no such subset.

    Examples
    --------
    >>> import meidbench as mb, pandas as pd
    >>> rows = {"video_id": list("abcd"), "subset": ["train", "train", "test", "test"], "labels": [[0], [1]] * 2}
    >>> split = mb.split_from_pandas(pd.DataFrame(rows), dataset="mine", head_above=9, tail_up_to=0)
    >>> metric = ClassAverageAccuracy(split)
    >>> metric.update(["d", "c"], [[0.2, 0.7], [0.1, 0.3]])
    >>> metric.compute().overall
    0.5
    """

    _columns = 1

    def __init__(self, split: Split | str | Path, subset: str | None = None, *, allow_float16: bool = False) -> None:
        super().__init__(split, subset, allow_float16)
        self._labels()  # refuses a subset with other labels now, not after an epoch

    def _labels(self) -> npt.NDArray[np.int64]:
        if (classes := find_single_labels(self.split, self.subset)) is not None:
            return classes
        ids = self.split.video_ids(self.subset)
        counts = np.bincount(self.split.label_pairs(self.subset)[0], minlength=len(ids))
        others = [ids[row] for row in np.flatnonzero(counts != 1)]
        count = write_count(len(others), "video has", "videos have")
        raise RequestError(
            f"class-average accuracy needs exactly one label per video; in {self.subset}, {count} none or several: "
            f"{first_few(others)}. Mean average precision is for any number of labels: MeanAveragePrecision"
        )

    def _keep(self, given: Predictions) -> Scores:
        if bad := not_finite(given.scores):
            named = first_few(given.video_ids[row] for row in bad)
            raise PredictionError(f"the scores of {len(bad):,} video(s) hold NaN or infinity: {named}")
        answers: Scores = given.scores.argmax(axis=1, keepdims=True)
        return answers

    def compute(self) -> ClassAverage:
        """Return the class-average accuracy of overall, head, medium and tail; more updates may follow.

        A group without a class that has a video is NaN.

        Raises
        ------
        PredictionError
            Videos of the subset are missing, unknown, or have two different answers. One message names all of them.
        """
        with self._gather() as given:
            answers = align_predictions(given, self.split, self.subset, columns=self._columns)
        assert not isinstance(answers, BlockScores)  # only a memory limit makes them blocks
        classes = self._labels()
        return class_average(recall_by_class(answers[:, 0] == classes, classes, self.split.num_classes), self.split)
