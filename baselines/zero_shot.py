"""Zero-shot scores: the cosine of every frame with the text of every class, pooled over the frames of a video."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.baselines.class_text import ClassText
from meidbench.baselines.inference import describe_backbone, report_notes, show_no_progress
from meidbench.baselines.inputs import read_backbone
from meidbench.checks import refuse_lost_inputs
from meidbench.errors import FeatureError, MeidbenchError, RequestError, first_few, write_count
from meidbench.evaluation.budget import Budget
from meidbench.evaluation.evaluate import choose_subset
from meidbench.evaluation.results import find_watermarks
from meidbench.features import FeatureSource
from meidbench.features.packing import map_ahead
from meidbench.features.records import StoredVideos
from meidbench.features.source import UnusableVideo, with_detail
from meidbench.names import ProgressBar, Report
from meidbench.predictions.align import run_warnings
from meidbench.predictions.values import write_predictions
from meidbench.splits.split import Split

METHOD = "zero-shot"
# Rows of a video that are scored at once: 4 MB of float32 cosines for 1,000 classes.
_ROWS_PER_BLOCK = 1024
Rows = npt.NDArray[np.float32]


def normalise_rows(rows: npt.NDArray[Any]) -> Rows:
    """Return rows (T, D) of length 1 as float32; a row of zeros stays, and its cosine is 0."""
    rows = np.asarray(rows, np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = rows / np.where(largest > 0, largest, 1)  # the squares of float16's range stay in that of float32
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def parse_pool(pool: str) -> int | None:
    """Return the number of the largest cosines whose mean is taken: 1 for ``max``, None (all) for ``mean``.

    Examples
    --------
    >>> parse_pool("mean"), parse_pool("max"), parse_pool("top-5")
    (None, 1, 5)
    """
    if pool == "mean":
        return None
    found = re.fullmatch(r"top-([1-9]\d{0,5})", pool, re.ASCII)
    if pool != "max" and found is None:
        raise RequestError(f"unknown pool {pool!r}; known: mean, max, top-K such as top-5")
    return 1 if found is None else int(found[1])


def pool_cosines(rows: npt.NDArray[Any], vectors: Rows, largest: int | None) -> Rows:
    """Return the pooled cosines (C,) of a video's rows (T, D) with unit vectors (C, D).

    ``largest`` is as ``parse_pool`` gives it; of a video with fewer rows, the mean of all is taken.
    """
    if largest is None:  # the mean of cosines is the cosine of the mean of unit rows, times its length
        total = np.zeros(rows.shape[1])
        for block in _split_rows(rows):
            total += normalise_rows(block).sum(axis=0, dtype=np.float64)
        return (vectors @ (total / len(rows))).astype(np.float32)
    best = np.empty((0, len(vectors)), np.float32)
    for block in _split_rows(rows):
        best = np.concatenate([best, normalise_rows(block) @ vectors.T])
        if len(best) > largest:
            best = np.partition(best, len(best) - largest, axis=0)[-largest:]
    return np.asarray(best.mean(axis=0, dtype=np.float64), np.float32)


def _split_rows(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        yield rows[start : start + _ROWS_PER_BLOCK]


def score_zero_shot(
    split: Split,
    subset: str,
    features: FeatureSource,
    text: ClassText,
    *,
    pool: str = "mean",
    progress: ProgressBar = show_no_progress,
) -> Rows:
    """Return the logits (n, C) of all videos of a subset: ``scale * pooled cosine + bias``.

    Every stored row of a video counts. One video after another is read, and compared with its checksum where there is
    one.

    Parameters
    ----------
    split, subset
    features : FeatureSource
        Of the same image-text model as the text.
    text : ClassText
    pool : str
        ``mean`` over the frames, ``max``, or ``top-K``: the mean of the K largest cosines of each class.
    progress : callable

    Raises
    ------
    FeatureError
        Videos are missing, damaged, or hold NaN or infinity; or the text has other classes or another width.
    """
    largest, video_ids = parse_pool(pool), split.video_ids(subset)
    features.check(video_ids)
    text.check(split, features)
    stored = StoredVideos(features)

    def read(video_id: str) -> npt.NDArray[Any] | str:
        try:
            return stored.read(video_id).rows
        except (UnusableVideo, FeatureError, OSError) as error:
            return str(error).partition("\n")[0]

    scores = np.zeros((len(video_ids), len(text.vectors)), np.float32)
    unreadable, infinite = [], []
    with progress(f"scoring {subset}", len(video_ids)) as advance:
        for row, found in enumerate(map_ahead(read, video_ids, stored.threads)):
            if isinstance(found, str):
                unreadable.append(with_detail(video_ids[row], found))
            elif not np.isfinite(found).all():
                infinite.append(video_ids[row])
            else:
                scores[row] = text.scale * pool_cosines(found, text.vectors, largest) + text.bias
            advance(1)
    features.close()
    problems = {"cannot be read": unreadable, "hold NaN or infinity": infinite}
    lines = [
        f"{len(names):,} of {write_count(len(video_ids), 'video')} in {features.path} {what}: {first_few(names)}"
        for what, names in problems.items()
        if names
    ]
    if lines:
        raise FeatureError("\n".join([*lines, "Copy or extract them again; 'meidbench verify-features' lists all."]))
    return scores


def predict_zero_shot(
    split: Split,
    features: FeatureSource,
    make_text: Callable[[], ClassText],
    out: Path,
    *,
    subset: str | None = None,
    pool: str = "mean",
    progress: ProgressBar = show_no_progress,
    report: Report = lambda line: None,
) -> ClassText:
    """Score a subset without training, write a prediction file like that of a run, and return the text.

    Parameters
    ----------
    make_text : callable
        Returns the text of the classes; called after the split and the features are known to be sound.
    out : Path
        The Parquet file to write.
    subset : str, optional
        By default test, or val where the split has no test.
    split, features, pool, progress
        As for ``score_zero_shot``.

    Raises
    ------
    MeidbenchError
        The subset has no video, videos are missing or damaged, or the output is the file of the features.
    """
    parse_pool(pool)
    refuse_lost_inputs(out, [features.path])
    subset = choose_subset(split, subset, report)
    if not len(split.rows(subset)):
        raise MeidbenchError(split.describe_absence(subset))
    report_notes(features, split.video_ids(subset), report)
    text = make_text()
    scores = score_zero_shot(split, subset, features, text, pool=pool, progress=progress)
    facts = {"method": METHOD, "pool": pool, **text.to_facts(), "budget": Budget(()).to_facts()}
    facts |= describe_backbone(read_backbone(features))
    for mark in find_watermarks(run_warnings({"run": facts})):
        report(f"warning: {mark}")
    write_predictions(out, split.video_ids(subset), scores, split, subset, facts)
    return text
