"""Score matrices: predictions are read, refused or brought into the order of a split, and written."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError, bullet_list, find_id_rule, first_few
from meidbench.files import written_whole
from meidbench.names import SUBSETS
from meidbench.predictions import PredictionFile, open_predictions
from meidbench.predictions.base import BLOCK_ROWS, Scores
from meidbench.splits.split import METADATA_KEY, Split

Block = tuple[npt.NDArray[np.int64], Scores]


@dataclass(frozen=True)
class Predictions:
    """Scores (n, C) of n videos in memory, in the order of their file; the rest is as in ``PredictionFile``."""

    video_ids: list[str]
    scores: Scores
    metadata: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None

    @property
    def num_videos(self) -> int:
        """Number of rows n."""
        return len(self.video_ids)

    @property
    def num_classes(self) -> int:
        """Number of columns C."""
        return int(self.scores.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the scores."""
        return self.scores.dtype

    def blocks(self) -> Iterator[tuple[int, Scores]]:
        """Yield the first row of each block and its scores."""
        for start in range(0, len(self.scores), BLOCK_ROWS):
            yield start, self.scores[start : start + BLOCK_ROWS]


@dataclass(frozen=True)
class BlockScores:
    """Scores that do not fit in memory; each call of ``blocks`` yields all as (rows in the split's order, scores)."""

    videos: int
    num_classes: int
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[Block]]


def read_predictions(path: str | Path) -> Predictions:
    """Read a prediction file of any form into memory; see ``open_predictions``."""
    file = open_predictions(path)
    try:
        scores = np.empty((file.num_videos, file.num_classes), dtype=file.dtype)
    except (MemoryError, ValueError):
        raise file.refusal(f"its {file.num_videos:,} x {file.num_classes:,} scores do not fit in memory") from None
    for start, block in file.blocks():
        scores[start : start + len(block)] = block
    return Predictions(file.video_ids, scores, file.metadata, file.class_names)


def as_array(name: str, values: Any, *, half: bool = True) -> Scores:
    """Return scores or labels as an array: also of tensors on any device, with or without gradients.

    bfloat16, which NumPy does not have, becomes float32; it is refused if ``half`` is false.

    Raises
    ------
    PredictionError
        The values are no rectangle of numbers; the message names what to pass instead.

    Examples
    --------
    >>> as_array("scores", [[0.5, 1.0]])
    array([[0.5, 1. ]])
    """
    try:
        if hasattr(values, "detach"):  # a tensor; torch itself is not needed here
            values = values.detach().cpu()
            if str(values.dtype) == "torch.bfloat16":
                if not half:
                    raise PredictionError(_HALF.format(name, "bfloat16"))
                values = values.float()
            values = values.numpy()
        if np.ma.is_masked(values):
            raise ValueError("some are masked")
        array: Scores = np.asarray(values)
    except PredictionError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PredictionError(f"the {name} are no (n, C) array of numbers ({reason}). {_REMEDY}") from None
    return array


_REMEDY = (
    "Pass one row per video with one number per class: an array of float32, or a tensor (torch.stack a list of "
    "tensors). Lists of class indices must become rows of 0 and 1 first"
)
_HALF = (
    "the {} are {}, in which scores that differ become the same: compute and write float32 (in PyTorch "
    "logits.float(), before a sigmoid)"
)


def check_numbers(scores: Scores) -> None:
    """Refuse scores that are not real numbers."""
    if scores.dtype.kind not in "fiu":
        remedy = f". {_REMEDY}" if scores.dtype.kind == "O" else ""
        raise PredictionError(f"the scores are of type {scores.dtype}; expected real numbers{remedy}")


def write_predictions(
    path: Path,
    video_ids: Sequence[str],
    scores: Scores,
    split: Split | None = None,
    subset: str | None = None,
    run: dict[str, Any] | None = None,
) -> Path:
    """Write predictions as Parquet with their dataset, subset and split, so that they are scored on nothing else.

    Parameters
    ----------
    path, video_ids : Path, and sequence of n str
    scores : ndarray or tensor, (n, C)
        Finite real numbers of at most 64 bits, not half precision. float32 is recommended: compact, and exact where a
        model computes in it.
    split, subset : Split and str, optional
        Their digests and class names are written into the file and compared when it is scored.
    run : dict, optional
        Facts about the run, for JSON; numbers of NumPy are accepted. With ``{"select_on": "test"}``, ``evaluate`` warns
        that its checkpoint was chosen on the test subset.

    Raises
    ------
    PredictionError
        The shapes do not fit, a score is NaN, infinite or of a type that is not scored, or ``run`` cannot become JSON.
        Nothing is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scores = np.ascontiguousarray(as_array("scores", scores, half=False))
    ids = [str(video_id) for video_id in video_ids]
    classes = scores.shape[-1] if split is None else split.num_classes
    if scores.ndim != 2 or scores.shape != (len(ids), classes) or not classes:
        expected = f"({len(ids):,}, {'C' if split is None else f'{classes:,}'})"
        raise PredictionError(f"scores have shape {scores.shape}; expected {expected}")
    check_numbers(scores)
    if scores.dtype == np.float16:
        raise PredictionError(_HALF.format("scores", "float16"))
    if scores.dtype.itemsize > 8:
        raise PredictionError(f"the scores are {scores.dtype}, more than 64 bits: write scores.astype(np.float64)")
    if not np.isfinite(scores).all():
        raise PredictionError("the scores hold NaN or infinity; they must be finite real numbers")
    facts: dict[str, Any] = {"run": _check_run(run or {}), "subset": subset}
    if split is not None:
        facts |= {"dataset": split.dataset, "class_names": list(split.class_names)}
        facts |= {"split_digest": split.digest, "content_digest": split.content_digest}
    native = scores.astype(scores.dtype.newbyteorder("="), copy=False)
    values = pa.FixedSizeListArray.from_arrays(pa.array(native.reshape(-1)), scores.shape[1])
    table = pa.table({"video_id": _text_column(ids), "scores": values})
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(facts, sort_keys=True).encode()})
    encoding = {"scores.list.element": "BYTE_STREAM_SPLIT"} if scores.dtype in (np.float32, np.float64) else None
    with written_whole(Path(path)) as temporary:
        # With a checksum per page, a flipped bit is refused, not scored.
        options = {"row_group_size": BLOCK_ROWS, "compression": "zstd", "write_page_checksum": True}
        pq.write_table(table, temporary, use_dictionary=False, column_encoding=encoding, **options)
    return Path(path)


def _text_column(ids: list[str]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(ids, pa.string())
    except UnicodeEncodeError as error:
        raise PredictionError(f"the video id {error.object!r} is no text: {error.reason}") from None


def _check_run(run: Mapping[str, Any]) -> Any:
    """Return facts about a run as JSON can hold them."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        kind = type(value).__name__
        raise PredictionError(f"run holds {repr(value)[:40]} of type {kind}; write text, numbers, lists or dicts")

    if not isinstance(run, Mapping):
        raise PredictionError(f"run is {repr(run)[:40]}; expected a dict")
    if run.get("select_on") not in (None, *SUBSETS):
        raise PredictionError(f"run has select_on {run['select_on']!r}; expected one of {', '.join(SUBSETS)}")
    try:
        return json.loads(json.dumps(run, default=convert, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, PredictionError):
            raise
        raise PredictionError(f"run cannot be written as JSON: {error}") from None


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
        if rule := find_id_rule(unknown, missing):
            hint = f"; {rule}"
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
        problems.append("the scores are float16, which makes ties: write float32, or pass --allow-float16")
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
