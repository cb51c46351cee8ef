"""Prediction files: read, checked against a split, and brought into its order."""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError, bullet_list, first_few
from meidbench.split import METADATA_KEY, Split

Scores = npt.NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Scores of videos, as a file holds them.

    Attributes
    ----------
    video_ids : list of str
        n ids in the file's order.
    scores : ndarray, (n, C)
        Real numbers, higher is likelier.
    metadata : dict
        What the file says of itself; may be empty.
    """

    video_ids: list[str]
    scores: Scores
    metadata: dict[str, Any] = field(default_factory=dict)


def read_predictions(path: Path) -> Predictions:
    """Read a prediction file: Parquet (``video_id``, ``scores``) or NPZ (``video_ids``, ``scores``).

    Its kind is told by its content, not by its name. Nothing pickled is ever loaded.

    Raises
    ------
    PredictionError
        It is not there, empty, damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionError(f"there is no prediction file {path}")
    with path.open("rb") as stream:
        start = stream.read(8)
    if not start:
        raise PredictionError(f"{path} is empty")
    for magic, read in READERS.items():
        if start.startswith(magic):
            return read(path)
    raise PredictionError(f"{path} is neither a Parquet file (video_id, scores) nor an NPZ archive (video_ids, scores)")


def _read_parquet(path: Path) -> Predictions:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            fields = {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names}
            if list(filter(fields.get, ("video_id", "scores"))) != ["video_id", "scores"]:
                raise PredictionError(
                    f"{path} has the columns {first_few(fields) or 'none'}; expected video_id and scores"
                )
            kind = fields["scores"]
            if not pa.types.is_fixed_size_list(kind) or not _is_number(kind.value_type):
                raise PredictionError(
                    f"{path}: the column scores is of type {kind}; expected fixed_size_list of a real number"
                )
            if not (pa.types.is_string(fields["video_id"]) or pa.types.is_large_string(fields["video_id"])):
                raise PredictionError(f"{path}: the column video_id is of type {fields['video_id']}; expected string")
            table = file.read(["video_id", "scores"])
            raw = (file.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}")
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PredictionError(f"{path} is not a readable Parquet file: {reason}") from None
    column = table.column("scores")
    empty = column.null_count + sum(chunk.flatten().null_count for chunk in column.chunks)
    if empty or table.column("video_id").null_count:
        raise PredictionError(f"{path} has empty cells")
    scores = np.empty((len(column), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    row = 0
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        scores[row : row + len(chunk)] = values.reshape(len(chunk), kind.list_size)
        row += len(chunk)
    return Predictions(table.column("video_id").to_pylist(), scores, _parse_metadata(raw, path))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _parse_metadata(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(raw)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise PredictionError(f"{path}: its metadata 'meidbench' is not a JSON object")
    return metadata


def _read_npz(path: Path) -> Predictions:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [name for name in ("video_ids", "scores") if name not in archive.files]
            if missing:
                raise PredictionError(
                    f"{path} lacks {' and '.join(missing)}; it holds {first_few(archive.files) or 'nothing'}"
                )
            video_ids, scores = archive["video_ids"], archive["scores"]
    except PredictionError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        pickled = "pickle" in str(error).lower()
        reason = "it holds pickled objects, which are never loaded" if pickled else str(error)
        raise PredictionError(f"{path} is not a readable NPZ archive: {reason}") from None
    if video_ids.ndim != 1 or video_ids.dtype.kind != "U":
        raise PredictionError(
            f"{path}: video_ids has shape {video_ids.shape} and type {video_ids.dtype}; expected (n,) unicode"
        )
    return Predictions(video_ids.tolist(), scores)


READERS: dict[bytes, Callable[[Path], Predictions]] = {b"PAR1": _read_parquet, b"PK\x03\x04": _read_npz}


# --- check and align --------------------------------------------------------------------------------------------


def align_predictions(predictions: Predictions, split: Split, subset: str, *, allow_float16: bool = False) -> Scores:
    """Check predictions against a subset and return their scores in its order.

    Parameters
    ----------
    predictions : Predictions
        Rows in any order.
    split : Split
    subset : str
        ``train``, ``val`` or ``test``.
    allow_float16 : bool
        Half precision makes ties that were none, so it is refused unless allowed.

    Returns
    -------
    ndarray, (n, C)
        Rows as in ``split.video_ids(subset)``; the array itself where it is in that order already.

    Raises
    ------
    PredictionError
        Names every problem at once: ids missing, unknown or twice, a wrong number of classes, other class names or
        another split, scores that are no numbers, NaN, infinite or float16.
    """
    wanted = split.video_ids(subset)
    if not wanted:
        raise PredictionError(f"the split {split.dataset} has no video in {subset}")
    problems = _metadata_problems(predictions.metadata, split, subset)
    problems += _id_problems(predictions.video_ids, wanted, split, subset)
    problems += _score_problems(predictions, split, allow_float16)
    if problems:
        raise PredictionError(
            f"{len(problems)} problem(s) with the predictions for {split.dataset} {subset}:\n{bullet_list(problems)}"
        )
    if predictions.video_ids == wanted:
        return predictions.scores
    row_of = {video_id: row for row, video_id in enumerate(predictions.video_ids)}
    return predictions.scores[[row_of[video_id] for video_id in wanted]]


def _metadata_problems(metadata: dict[str, Any], split: Split, subset: str) -> list[str]:
    expected = {"dataset": split.dataset, "subset": subset, "split_digest": split.digest}
    problems = [
        f"its {key} is {metadata[key]!r}, expected {value!r}"
        for key, value in expected.items()
        if metadata.get(key) not in (None, value)
    ]
    names = metadata.get("class_names")
    if names is not None and names != list(split.class_names):
        if not isinstance(names, list) or len(names) != split.num_classes:
            problems.append(f"its class_names are not a list of {split.num_classes} names")
        else:
            pairs = enumerate(zip(names, split.class_names, strict=True))
            other = [f"{index} {got!r} (expected {want!r})" for index, (got, want) in pairs if got != want]
            problems.append(f"{len(other)} class name(s) are others: {first_few(other)}")
    return problems


def _id_problems(video_ids: list[str], wanted: list[str], split: Split, subset: str) -> list[str]:
    if video_ids == wanted:
        return []
    problems = []
    given, known = set(video_ids), set(wanted)
    if len(given) < len(video_ids):
        repeated = [video_id for video_id, count in Counter(video_ids).items() if count > 1]
        problems.append(f"{len(repeated):,} video(s) occur more than once: {first_few(repeated)}")
    if missing := [video_id for video_id in wanted if video_id not in given]:
        problems.append(f"{len(missing):,} of {len(wanted):,} videos are missing: {first_few(missing)}")
    if unknown := [video_id for video_id in dict.fromkeys(video_ids) if video_id not in known]:
        elsewhere = [other for other in ("train", "val", "test") if given & set(split.video_ids(other))]
        hint = f"; it holds videos of {' and '.join(elsewhere)}" if elsewhere and elsewhere != [subset] else ""
        problems.append(f"{len(unknown):,} video(s) are not in {subset}: {first_few(unknown)}{hint}")
    return problems


def _score_problems(predictions: Predictions, split: Split, allow_float16: bool) -> list[str]:
    scores = predictions.scores
    if scores.dtype.kind not in "fiu":
        return [f"the scores are of type {scores.dtype}; expected real numbers"]
    if scores.ndim != 2 or len(scores) != len(predictions.video_ids):
        return [f"the scores have shape {scores.shape}; expected ({len(predictions.video_ids)}, {split.num_classes})"]
    problems = []
    if scores.dtype == np.float16 and not allow_float16:
        problems.append("the scores are float16, which makes ties: write float32, or pass --allow-float16")
    if scores.shape[1] != split.num_classes:
        problems.append(f"there are scores for {scores.shape[1]:,} classes, the split has {split.num_classes:,}")
    if scores.dtype.kind == "f":
        # The sum is finite only if all are: one pass without a second matrix, and the slow search only if needed.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = [row for row in range(len(scores)) if not np.isfinite(scores[row].sum())]
        bad = [row for row in suspicious if not np.isfinite(scores[row]).all()]
        if bad:
            named = first_few(predictions.video_ids[row] for row in bad)
            problems.append(f"the scores of {len(bad):,} video(s) hold NaN or infinity: {named}")
    return problems
