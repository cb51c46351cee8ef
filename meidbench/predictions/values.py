"""Scores of Python callers: arrays, tensors and lists become arrays, and are written as prediction files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meidbench.errors import PredictionError
from meidbench.files import written_whole
from meidbench.names import SUBSETS
from meidbench.predictions.base import BLOCK_ROWS, Scores
from meidbench.splits.split import METADATA_KEY, Split


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
