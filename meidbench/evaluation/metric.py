"""Mean average precision collected batch by batch, also in several processes, and computed exactly."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from meidbench.errors import PredictionError, RequestError, write_count
from meidbench.evaluation.evaluate import evaluate
from meidbench.evaluation.results import Result
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


class MeanAveragePrecision:
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
        self.split = load_split(split)
        self.subset = self.split.default_subset if subset is None else subset
        self.split.rows(self.subset)  # refuses an unknown subset now, not after an epoch
        self._options: dict[str, Any] = {"protocol": protocol, "bootstrap": bootstrap, "seed": seed}
        self._options["allow_float16"] = allow_float16
        self._video_ids: list[str] = []
        self._scores: list[Scores] = []

    def update(self, video_ids: Iterable[Any], scores: Any) -> None:
        """Add the scores of a batch.

        Parameters
        ----------
        video_ids : sequence of str
            b ids, of any videos of the subset in any order.
        scores : array, tensor, list or DataFrame, (b, C)
            As for ``meidbench.evaluate``; they are copied.

        Raises
        ------
        PredictionError
            The shapes do not fit, or scores are of a type that is not scored. Ids and values are checked by
            ``compute``.
        """
        half = self._options["allow_float16"]
        given = as_predictions(scores, video_ids, half=half)
        if not isinstance(given, Predictions):
            raise PredictionError(f"update takes the scores of a batch, got {type(scores).__name__}")
        expected = (len(given.video_ids), self.split.num_classes)
        if given.scores.shape != expected:
            raise PredictionError(f"the scores of the batch have shape {given.scores.shape}; expected {expected}")
        check_numbers(given.scores)
        _check_half(given.scores, half)
        check_class_order(given, self.split)
        self._video_ids += given.video_ids
        self._scores.append(np.array(given.scores))

    def merge(self, others: "MeanAveragePrecision | Iterable[MeanAveragePrecision]") -> None:
        """Add the scores of one or several other metrics on the same subset of the same split.

        Raises
        ------
        RequestError
            A metric belongs to another subset or split; nothing is added.
        """
        metrics = list(others) if isinstance(others, Iterable) else [others]
        for other in metrics:
            if not isinstance(other, MeanAveragePrecision):
                raise RequestError(f"merge takes metrics, got one of type {type(other).__name__}")
            if (other.split.content_digest, other.subset) != (self.split.content_digest, self.subset):
                raise RequestError(f"{other} and {self} are not on the same subset of the same split")
            for batch in other._scores:
                _check_half(batch, self._options["allow_float16"])
        # Listed first, so that a metric may be merged with itself.
        added = [(list(other._video_ids), list(other._scores)) for other in metrics]
        for video_ids, scores in added:
            self._video_ids += video_ids
            self._scores += scores

    def compute(self) -> Result:
        """Return the result of all scores; more updates may follow.

        Raises
        ------
        PredictionError
            Videos of the subset are missing, unknown, or have two different scores; scores are NaN or infinite. One
            message names all of them.
        """
        empty = np.empty((0, self.split.num_classes), np.float32)
        self._scores = [np.concatenate(self._scores) if self._scores else empty]
        given = Predictions(list(self._video_ids), self._scores[0])
        try:
            return evaluate(given, None, self.split, self.subset, **self._options)
        except PredictionError as error:
            if missing := len(set(self.split.video_ids(self.subset)) - set(self._video_ids)):
                remedy = "update the metric with each of them, and merge the metrics of all processes"
                raise PredictionError(
                    f"{error}\n{write_count(missing, 'video has', 'videos have')} no scores yet: {remedy}"
                ) from None
            raise

    def reset(self) -> None:
        """Forget all scores, for the next epoch."""
        self._video_ids, self._scores = [], []

    def __repr__(self) -> str:
        known = set(self.split.video_ids(self.subset))
        count = f"{len(known.intersection(self._video_ids)):,} of {len(known):,}"
        return f"<MeanAveragePrecision {self.split.dataset} {self.subset}: scores of {count} videos>"
