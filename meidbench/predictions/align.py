"""Score matrices: predictions are read, and refused or brought into the order of a split."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError, bullet_list, first_few
from meidbench.names import SUBSETS
from meidbench.predictions import PredictionFile, open_predictions
from meidbench.predictions.base import Scores
from meidbench.predictions.values import Predictions, check_numbers
from meidbench.splits.split import Split

Block = tuple[npt.NDArray[np.int64], Scores]


@dataclass(frozen=True)
class BlockScores:
    """Scores that do not fit in memory; each call of ``blocks`` yields all as (rows in the split's order, scores)."""

    videos: int
    num_classes: int
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[Block]]


def read_predictions(path: Path) -> Predictions:
    """Read a prediction file of any form into memory; see ``open_predictions``."""
    file = open_predictions(path)
    try:
        scores = np.empty((file.num_videos, file.num_classes), dtype=file.dtype)
    except (MemoryError, ValueError):
        raise file.refusal(f"its {file.num_videos:,} x {file.num_classes:,} scores do not fit in memory") from None
    for start, block in file.blocks():
        scores[start : start + len(block)] = block
    return Predictions(file.video_ids, scores, file.metadata, file.class_names)


def run_warnings(metadata: dict[str, Any]) -> list[str]:
    """Return warnings about the run that wrote a prediction file."""
    warnings = []
    run = metadata.get("run")
    chosen_on = run.get("select_on") if isinstance(run, dict) else None
    if chosen_on is not None and chosen_on not in SUBSETS:
        unknown = f"select_on is {chosen_on!r}, which is no subset"
        warnings.append(f"{unknown}: the checkpoint may have been chosen on the test subset")
    if chosen_on == "test":
        chosen = "the checkpoint was chosen on the test subset"
        warnings.append(f"{chosen}: its test scores are too good, and not comparable with those of runs chosen on val")
    if metadata.get("split_digest") is not None and metadata.get("content_digest") is None:
        old = "the file has the digest of ids, subsets and labels alone, as an older meidbench wrote it"
        warnings.append(f"{old}: the groups of the classes were not compared with those of the split")
    return warnings


def align_predictions(
    predictions: Predictions | PredictionFile,
    split: Split,
    subset: str,
    *,
    allow_float16: bool = False,
    memory_limit: int | None = None,
) -> Scores | BlockScores:
    """Check predictions, in any order, against a subset; return their (n, C) scores as in ``split.video_ids(subset)``.

    Half precision makes ties between scores that differ, so it is refused unless allowed. Matrices of more than
    ``memory_limit`` bytes are read block by block, as ``BlockScores``.

    Raises
    ------
    PredictionError
        Names every problem at once: ids missing, unknown or twice, a wrong number of classes, other class names or
        another split, scores that are not numbers, NaN, infinite or float16.
    """
    wanted = split.video_ids(subset)
    if not wanted:
        raise PredictionError(f"the split {split.dataset} has no video in {subset}")
    problems = _metadata_problems(predictions, split, subset) + _shape_problems(predictions, split, allow_float16)
    sensible = predictions.num_videos <= 2 * len(wanted) + 1000
    if sensible:
        problems += _id_problems(predictions.video_ids, wanted, split, subset)
    else:
        problems.append(f"there are {predictions.num_videos:,} rows, {subset} has {len(wanted):,} videos")
    if problems:
        if sensible and predictions.num_classes <= 2 * split.num_classes + 1000:
            problems += _number_problems(predictions)
        raise _refusal(problems, split, subset)
    row_of = {video_id: row for row, video_id in enumerate(wanted)}
    rows = np.array([row_of[video_id] for video_id in predictions.video_ids], dtype=np.int64)
    dtype = predictions.dtype.newbyteorder("=")
    size = dtype.itemsize * len(wanted) * split.num_classes
    if memory_limit is not None and size > memory_limit:
        if problems := _number_problems(predictions):
            raise _refusal(problems, split, subset)

        def blocks() -> Iterator[Block]:
            for start, block in predictions.blocks():
                yield rows[start : start + len(block)], block.astype(dtype, copy=False)

        return BlockScores(len(wanted), split.num_classes, dtype, blocks)
    if isinstance(predictions, Predictions) and predictions.dtype == dtype and (rows == np.arange(len(rows))).all():
        if problems := _number_problems(predictions):
            raise _refusal(problems, split, subset)
        return predictions.scores
    aligned = np.empty((len(wanted), split.num_classes), dtype=dtype)
    bad: list[int] = []
    for start, block in predictions.blocks():
        bad += [start + row for row in not_finite(block)]
        aligned[rows[start : start + len(block)]] = block
    if problems := _bad_numbers(bad, predictions.video_ids):
        raise _refusal(problems, split, subset)
    return aligned


def _refusal(problems: list[str], split: Split, subset: str) -> PredictionError:
    return PredictionError(
        f"{len(problems)} problem(s) with the predictions for {split.dataset} {subset}:\n{bullet_list(problems)}"
    )


def _metadata_problems(predictions: Predictions | PredictionFile, split: Split, subset: str) -> list[str]:
    metadata, problems = predictions.metadata, []
    expected = {"dataset": split.dataset, "subset": subset, "split_digest": split.digest}
    for key, value in {**expected, "content_digest": split.content_digest}.items():
        if metadata.get(key) not in (None, value):
            same = key == "content_digest" and metadata.get("split_digest") == split.digest
            rest = "; the labels are the same, but the class names or the groups are others" if same else ""
            problems.append(f"its {key} is {metadata[key]!r}, expected {value!r}{rest}")
    for names in (metadata.get("class_names"), predictions.class_names):
        if names is None or names == list(split.class_names):
            continue
        if not isinstance(names, list) or len(names) != split.num_classes:
            problems.append(f"its class names are not {split.num_classes:,} names")
        else:
            pairs = enumerate(zip(names, split.class_names, strict=True))
            other = [f"{index} {got!r} (expected {want!r})" for index, (got, want) in pairs if got != want]
            problems.append(f"{len(other):,} class name(s) are others: {first_few(other)}")
    return problems


def _id_problems(video_ids: list[str], wanted: list[str], split: Split, subset: str) -> list[str]:
    if video_ids == wanted:
        return []
    problems = []
    given, known = set(video_ids), set(wanted)
    if len(given) < len(video_ids):
        repeated = [video_id for video_id, count in Counter(video_ids).items() if count > 1]
        problems.append(f"{len(repeated):,} video(s) occur more than once: {_named(repeated)}")
    if missing := [video_id for video_id in wanted if video_id not in given]:
        problems.append(f"{len(missing):,} of {len(wanted):,} videos are missing: {first_few(missing)}")
    if unknown := [video_id for video_id in dict.fromkeys(video_ids) if video_id not in known]:
        elsewhere = [other for other in SUBSETS if given & set(split.video_ids(other))]
        hint = f"; it holds videos of {' and '.join(elsewhere)}" if elsewhere and elsewhere != [subset] else ""
        problems.append(f"{len(unknown):,} video(s) are not in {subset}: {_named(unknown)}{hint}")
    return problems


def _named(video_ids: list[str]) -> str:
    """List ids of unknown origin: escaped where a terminal could not show them, and cut at 40 characters."""
    return first_few(
        video_id if video_id.isprintable() and 0 < len(video_id) <= 40 else repr(video_id[:40])
        for video_id in video_ids
    )


def _shape_problems(predictions: Predictions | PredictionFile, split: Split, allow_float16: bool) -> list[str]:
    if isinstance(predictions, Predictions):
        shape = predictions.scores.shape
        check_numbers(predictions.scores)
        if len(shape) != 2 or shape[0] != len(predictions.video_ids):
            expected = f"({len(predictions.video_ids):,}, {split.num_classes:,})"
            raise PredictionError(f"the scores have shape {shape}; expected {expected}")
    problems = []
    if predictions.dtype.kind == "f" and predictions.dtype.itemsize == 2 and not allow_float16:
        allowing = "allow it (--allow-float16; in Python allow_float16=True)"
        problems.append(f"the scores are float16, which makes ties: write float32, or {allowing}")
    if predictions.num_classes != split.num_classes:
        problems.append(
            f"there are scores for {predictions.num_classes:,} classes, the split has {split.num_classes:,}"
        )
    return problems


def not_finite(block: Scores) -> list[int]:
    """Return the rows of a block that hold NaN or infinity."""
    if block.dtype.kind != "f":
        return []
    # A sum is finite only if all its terms are: one pass over all rows, and a slow search in a few.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = np.flatnonzero(~np.isfinite(block.sum(axis=1)))
    return [int(row) for row in suspicious if not np.isfinite(block[row]).all()]


def _number_problems(predictions: Predictions | PredictionFile) -> list[str]:
    bad = [start + row for start, block in predictions.blocks() for row in not_finite(block)]
    return _bad_numbers(bad, predictions.video_ids)


def _bad_numbers(rows: list[int], video_ids: list[str]) -> list[str]:
    if not rows:
        return []
    return [f"the scores of {len(rows):,} video(s) hold NaN or infinity: {_named([video_ids[row] for row in rows])}"]
