"""Scores of Python callers: arrays, tensors, lists and DataFrames; they are written as prediction files."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meidbench.annotations.base import find_repeated
from meidbench.checks import one_of
from meidbench.errors import PredictionError, first_few, write_count
from meidbench.files import written_whole
from meidbench.names import RECORDED_SELECTIONS, SUBSETS
from meidbench.predictions import ENDINGS, PredictionFile, open_predictions
from meidbench.predictions.base import (
    BLOCK_ROWS,
    ID_NAMES,
    SCORE_NAMES,
    Scores,
    describe_long,
    find_names,
    id_text,
    name_classes,
)
from meidbench.splits.split import METADATA_KEY, Split, load_split

if TYPE_CHECKING:
    import pandas as pd

_ORDERS = (
    "evaluate(scores, video_ids, split=...), write_predictions(path, video_ids, scores), metric.update(video_ids, "
    "scores), and (video_ids, scores) for a pair; the labels are those of the split"
)


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

    def __repr__(self) -> str:
        size = f"{write_count(self.num_videos, 'video')} x {write_count(self.num_classes, 'class', 'classes')}"
        return f"<Predictions {size}, {self.dtype}; ids: {first_few(self.video_ids, 3) or 'none'}>"

    def to_pandas(self) -> "pd.DataFrame":
        """Return the scores as a DataFrame: one row per video, ``video_id`` as index, one column per class.

        The columns have the names of the classes where the predictions state them, else the indices of the classes.
        """
        import pandas as pd

        names = name_classes(self.class_names) or self.metadata.get("class_names")
        columns = names if isinstance(names, list) and len(names) == self.num_classes else None
        index = pd.Index(self.video_ids, name="video_id")
        frame: pd.DataFrame = pd.DataFrame(self.scores, index=index, columns=columns)
        return frame


def as_predictions(scores: Any, video_ids: Any = None, *, half: bool = True) -> "Predictions | PredictionFile":
    """Return what a Python caller gives as the scores of some videos.

    Parameters
    ----------
    scores, video_ids
        An (n, C) array, tensor or list, and its n ids; or, without ``video_ids``, a DataFrame (one row per video, the
        ids as index or as column ``video_id``, one column per class), a pair (video_ids, scores), ``Predictions``, the
        path of a prediction file or of a folder of them, or a list of paths, which together are one run.
    half : bool
        Whether bfloat16 is accepted, as float32.

    Raises
    ------
    PredictionError
        Ids are no text, the values are no numbers, or a file cannot be read.
    """
    if video_ids is None and isinstance(scores, Predictions | PredictionFile):
        return scores
    if isinstance(scores, str | os.PathLike) and isinstance(video_ids, str | os.PathLike | None):
        return open_predictions(scores, video_ids)
    if video_ids is None and isinstance(scores, list) and all(isinstance(path, str | os.PathLike) for path in scores):
        return open_predictions(scores)
    if video_ids is None and isinstance(scores, tuple) and len(scores) == 2:
        return as_predictions(scores[1], scores[0], half=half)
    if hasattr(scores, "iloc") and hasattr(scores, "columns"):
        return _read_frame(scores, video_ids, half)
    if video_ids is None:
        raise PredictionError(
            f"scores of type {type(scores).__name__} have no video ids: pass video_ids=..., one id per row, or a "
            "DataFrame with the ids as index, or the path of a prediction file"
        )
    return Predictions(as_ids(video_ids), as_array("scores", scores, half=half))


def _read_frame(frame: "pd.DataFrame", video_ids: Any, half: bool) -> Predictions:
    """Read a DataFrame: its ids, and a column of numbers per class or one column of lists; names are as in files."""
    names = list(map(str, frame.columns))
    if repeated := find_repeated(names):
        raise PredictionError(f"the DataFrame has several columns {first_few(sorted(repeated))}")
    frame, id_column = frame.set_axis(names, axis="columns"), ""
    in_index = str(frame.index.name).lower() in ID_NAMES
    in_index = in_index or frame.index.inferred_type in ("string", "bytes", "categorical")
    own_ids: Any = frame.index if in_index else None
    if found := find_names(names, ID_NAMES if video_ids is None and not in_index else ID_NAMES[:1]):
        id_column = found[0]
        own_ids = frame[id_column]
        frame = frame.drop(columns=id_column)
        names.remove(id_column)
    elif video_ids is None and not in_index:
        raise PredictionError(
            f"the DataFrame has no video ids: its index holds {frame.index.inferred_type} values, and no column is "
            "named video_id. Use frame.set_index(...), frame.rename_axis('video_id'), or pass video_ids=..."
        )
    ids = as_ids(own_ids if video_ids is None else video_ids)
    if video_ids is not None and own_ids is not None and own_ids.name != "index":
        _compare_ids(own_ids.tolist(), ids)
    lists = [name for name in find_names(names, SCORE_NAMES) if frame[name].dtype.kind == "O"]
    if len(lists) > 1 and lists[0].lower() != SCORE_NAMES[0]:
        raise PredictionError(f"the DataFrame has the columns {first_few(lists)}; name the one to score scores")
    if lists:
        return Predictions(ids, as_array("scores", frame[lists[0]].tolist(), half=half))
    if problem := describe_long(id_column, names):
        raise PredictionError(f"the DataFrame: {problem}")
    kinds = [getattr(kind, "numpy_dtype", kind) for kind in frame.dtypes]  # of pandas' own and Arrow's types, too
    are_numbers = [isinstance(kind, np.dtype) and kind.kind in "fiu" for kind in kinds]
    if not all(are_numbers):
        wrong = [f"{name} ({kind})" for name, kind, is_one in zip(names, kinds, are_numbers, strict=True) if not is_one]
        raise PredictionError(
            f"{len(wrong):,} column(s) of the DataFrame are no numbers: {first_few(wrong)}; expected the ids as index "
            "or as column video_id, and one column of scores per class"
        )
    if not kinds or frame.isna().any(axis=None):
        kinds.append(np.dtype(np.float32))  # whole numbers have no NaN, which is refused later
    dtype = np.result_type(*kinds)
    _refuse_hidden_half(kinds, dtype, half)
    scores = frame.to_numpy(dtype=dtype, na_value=np.nan)
    return Predictions(ids, scores, class_names=names)


def _compare_ids(own: list[Any], given: list[str]) -> None:
    """Refuse ids beside a DataFrame that are its own ones in another order; those of another kind take their place."""
    own = list(map(id_text, own))
    differing = [row for row, (one, other) in enumerate(zip(own, given, strict=False)) if one != other]
    if differing and not set(own).isdisjoint(given):
        row = differing[0]
        raise PredictionError(
            f"the DataFrame has its own video ids, and video_ids are others in {len(differing):,} row(s): row {row} is "
            f"{own[row]!r} in the DataFrame, {given[row]!r} in video_ids. Pass the ids of the DataFrame"
        )


def check_class_order(predictions: Predictions, split: Split) -> None:
    """Refuse named columns that are not the classes of the split in its order."""
    if name_classes(predictions.class_names, split.class_names) not in (None, list(split.class_names)):
        raise PredictionError(
            "the columns are not split.class_names in this order: pass frame[list(split.class_names)]"
        )


def as_ids(video_ids: Iterable[Any]) -> list[str]:
    """Return video ids as text: of a list, an array of any library, or a Series or Index of pandas.

    Bytes are UTF-8. Whole numbers become their digits.

    Raises
    ------
    PredictionError
        An id is no text, such as an empty cell.

    Examples
    --------
    >>> as_ids(np.array([b"7UPGT", b"3XFA0"]))
    ['7UPGT', '3XFA0']
    """
    values = video_ids.tolist() if hasattr(video_ids, "tolist") else video_ids
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        raise PredictionError(f"video_ids is of type {type(video_ids).__name__}; expected one id per row of the scores")
    values = list(values)
    if hasattr(video_ids, "columns") or any(map(_is_row, values)):
        raise PredictionError(f"video_ids holds rows of numbers, as scores do. The order is {_ORDERS}")
    ids: list[str] = []
    wrong = []
    for row, value in enumerate(values):
        if isinstance(value, bytes):
            with suppress(UnicodeDecodeError):
                value = value.decode()
        if isinstance(value, str) or (isinstance(value, int | np.integer) and not isinstance(value, bool)):
            ids.append(str(value))
        else:
            wrong.append(f"{repr(value)[:40]} (row {row})")
    if wrong:
        raise PredictionError(f"{len(wrong):,} video id(s) are no text: {first_few(wrong)}")
    return ids


def _is_row(value: Any) -> bool:
    """Return whether a value in the place of an id is a row of numbers."""
    entries = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(entries, list | tuple) and not any(isinstance(entry, str | bytes) for entry in entries)


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
        if isinstance(values, list | tuple) and any(hasattr(row, "detach") for row in values):
            values = [as_array(name, row, half=half) for row in values]
        if hasattr(values, "detach"):  # a tensor; torch itself is not needed here
            values = values.detach().cpu()
            if str(values.dtype) == "torch.bfloat16":
                refuse_half(name, "bfloat16", half)
                values = values.float()
            values = values.numpy()
        elif hasattr(values, "__cuda_array_interface__"):  # CuPy copies to the host only where asked
            values = values.get()
        if np.ma.is_masked(values):
            raise ValueError("some are masked")
        array: Scores = np.asarray(values)
        if isinstance(values, list | tuple):
            _refuse_hidden_half([getattr(row, "dtype", None) for row in values], array.dtype, half, name)
    except PredictionError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PredictionError(f"the {name} are no (n, C) array of numbers ({reason}). {_REMEDY}") from None
    return array


def refuse_half(name: str, dtype: str, allowed: bool = False) -> None:
    """Refuse half precision unless it is allowed."""
    if not allowed:
        raise PredictionError(
            f"the {name} are {dtype}, in which scores that differ become the same: compute and write float32 (in "
            "PyTorch logits.float(), before a sigmoid)"
        )


def _refuse_hidden_half(parts: list[Any], whole: np.dtype[Any], allowed: bool, name: str = "scores") -> None:
    """Refuse half precision in some rows or columns, which a wider type of the others hides."""
    if not is_half(whole) and any(isinstance(part, np.dtype) and is_half(part) for part in parts):
        refuse_half(f"{name} of some rows or columns", "float16", allowed)


def is_half(dtype: np.dtype[Any]) -> bool:
    """Return whether numbers are of half precision, of either byte order."""
    return dtype.kind == "f" and dtype.itemsize == 2


_REMEDY = (
    "Pass one row per video with one number per class: an array of float32, or a tensor (torch.cat a list of "
    "batches). Lists of class indices must become rows of 0 and 1 first"
)


def check_numbers(scores: Scores) -> None:
    """Refuse scores that are not real numbers."""
    if scores.dtype.kind not in "fiu":
        remedy = f". {_REMEDY}" if scores.dtype.kind in "OV" else ""
        raise PredictionError(f"the scores are of type {scores.dtype}; expected real numbers{remedy}")


def write_predictions(
    path: str | Path,
    video_ids: Any,
    scores: Any = None,
    split: Split | str | Path | None = None,
    subset: str | None = None,
    run: dict[str, Any] | None = None,
) -> Path:
    """Write predictions as Parquet with their dataset, subset and split, so that they are scored on nothing else.

    Parameters
    ----------
    path : Path
        Its name should end in ``.parquet``; an ending of another form, such as ``.csv``, is refused.
    video_ids : sequence of n str
        Or, without ``scores``, a DataFrame that has the ids as index or as column ``video_id``, or ``Predictions``.
    scores : array, tensor, list or DataFrame, (n, C)
        Finite real numbers of at most 64 bits, not half precision. float32 is recommended: compact, and exact where a
        model computes in it.
    split, subset : Split or path or name, and str, optional
        Their digests and class names are written into the file and compared when it is scored.
    run : dict, optional
        Facts about the run, for JSON; numbers of NumPy are accepted. With ``{"select_on": "test"}``, ``evaluate`` warns
        that its checkpoint was chosen on the test subset.

    Raises
    ------
    PredictionError
        The shapes do not fit, a score is NaN, infinite or of a type that is not scored, or ``run`` cannot become JSON.
        Nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_predictions(f"{folder}/run.parquet", ["7UPGT", "3XFA0"], [[0.5, 2.0], [-1.0, 0.0]])
    ...     open_predictions(path).video_ids
    ['7UPGT', '3XFA0']
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    split = None if split is None else load_split(split)
    given = _read_arguments(path, video_ids, scores)
    if split is not None:
        check_class_order(given, split)
    ids, scores = given.video_ids, np.ascontiguousarray(given.scores)
    if subset is not None:
        one_of("subset", subset, SUBSETS, PredictionError)
    classes = scores.shape[-1] if split is None else split.num_classes
    if scores.ndim != 2 or scores.shape != (len(ids), classes) or not classes:
        expected = f"({len(ids):,}, {'C' if split is None else f'{classes:,}'})"
        raise PredictionError(f"scores have shape {scores.shape}; expected {expected}")
    check_numbers(scores)
    if is_half(scores.dtype):
        refuse_half("scores", "float16")
    if scores.dtype.itemsize > 8:
        raise PredictionError(f"the scores are {scores.dtype}, more than 64 bits: write scores.astype(np.float64)")
    if not np.isfinite(scores).all():
        raise PredictionError("the scores hold NaN or infinity; they must be finite real numbers")
    facts: dict[str, Any] = {"run": _check_run({} if run is None else run), "subset": subset}
    facts |= {} if name_classes(given.class_names) is None else {"class_names": given.class_names}
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


def _read_arguments(path: str | Path, video_ids: Any, scores: Any) -> Predictions:
    """Return what ``write_predictions`` is given: ids and scores, or both in one."""
    if not isinstance(path, str | os.PathLike):
        raise PredictionError(
            f"path is of type {type(path).__name__}; the order is write_predictions(path, video_ids, scores)"
        )
    if Path(path).suffix.lower() in set(ENDINGS) - {".parquet"}:
        raise PredictionError(f"{path}: the file is written as Parquet; name it .parquet")
    if scores is None and not (isinstance(video_ids, Predictions) or hasattr(video_ids, "columns")):
        raise PredictionError(
            "scores are missing; expected write_predictions(path, video_ids, scores), or write_predictions(path, "
            "frame) for a DataFrame with the ids as index"
        )
    both = (video_ids, None) if scores is None else (scores, as_ids(video_ids))
    given = as_predictions(*both, half=False)
    assert isinstance(given, Predictions)  # neither is a file
    return given


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
    if run.get("select_on") not in (None, *RECORDED_SELECTIONS):
        known = ", ".join(RECORDED_SELECTIONS)
        raise PredictionError(f"run has select_on {run['select_on']!r}; expected one of {known}")
    try:
        return json.loads(json.dumps(run, default=convert, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, PredictionError):
            raise
        raise PredictionError(f"run cannot be written as JSON: {error}") from None
