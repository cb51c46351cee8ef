"""Score matrices: predictions are read, and refused or brought into the order of a split."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.annotations.base import find_repeated
from meidbench.errors import PredictionError, bullet_list, find_id_rule, first_few, write_count
from meidbench.names import RECORDED_SELECTIONS, SUBSETS, WATERMARKS
from meidbench.predictions import PredictionFile, open_predictions
from meidbench.predictions.base import Scores, name_classes, number_classes
from meidbench.predictions.values import Predictions, check_numbers, is_half
from meidbench.splits.split import Split

Places = npt.NDArray[np.int64]
Block = tuple[Places, Scores]


@dataclass(frozen=True)
class BlockScores:
    """Scores that do not fit in memory; each call of ``blocks`` yields all as (rows in the split's order, scores)."""

    videos: int
    num_classes: int
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[Block]]


def read_predictions(paths: str | Path | Sequence[str | Path], video_ids: Path | None = None) -> Predictions:
    """Read the prediction file or files of a run, of any form, into memory; see ``open_predictions``."""
    file = open_predictions(paths, video_ids)
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
    facts = run if isinstance(run, dict) else {}
    backbone, chosen_on = facts.get("backbone"), facts.get("select_on")
    if isinstance(backbone, str) and backbone in WATERMARKS:
        warnings.append(WATERMARKS[backbone])
    if chosen_on is not None and chosen_on not in RECORDED_SELECTIONS:
        unknown = f"select_on is {chosen_on!r}, which is no subset"
        warnings.append(f"{unknown}: the checkpoint may have been chosen on the test subset")
    if chosen_on == "test":
        chosen = "the checkpoint was chosen on the test subset"
        warnings.append(f"{chosen}: its test scores are too good, and not comparable with those of runs chosen on val")
    if metadata.get("split_digest") is not None and metadata.get("content_digest") is None:
        old = "the file has the digest of ids, subsets and labels alone, as an older meidbench wrote it"
        warnings.append(f"{old}: the groups of the classes were not compared with those of the split")
    return warnings


def reading_warnings(predictions: Predictions | PredictionFile, split: Split) -> list[str]:
    """Return warnings about the run that wrote aligned predictions, and about rows and columns that were put right."""
    warnings = run_warnings(predictions.metadata)
    names = _column_names(predictions, split)
    if _class_order(names, split) is not None:
        by = "name" if set(names or ()) == set(split.class_names) else "number"
        other = "the class columns are in another order than the classes of the split"
        warnings.append(f"{other}; each was put in its place by its {by}")
    if repeated := find_repeated(predictions.video_ids):
        equal = f"{len(repeated):,} video(s) occur more than once, always with the same scores, and count once"
        warnings.append(f"{equal}: {_named(repeated)}. {_PADDING}")
    return warnings


_PADDING = "torch's DistributedSampler repeats videos until all processes have the same number of them"
_AVERAGE = "pandas.DataFrame(scores, index=video_ids).groupby(level=0).mean()"
_LONG = "If each row is a video and a class: frame.pivot(index=..., columns=..., values=...), with these column names"
_MOST_VIEWS = 64  # per video, in a file whose ids are read


def align_predictions(
    predictions: Predictions | PredictionFile,
    split: Split,
    subset: str,
    *,
    allow_float16: bool = False,
    memory_limit: int | None = None,
    columns: int | None = None,
) -> Scores | BlockScores:
    """Check predictions, in any order, against a subset; return their (n, C) scores as in ``split.video_ids(subset)``.

    Half precision makes ties between scores that differ, so it is refused unless allowed. Matrices of more than
    ``memory_limit`` bytes are read block by block, as ``BlockScores``. Class columns in another order are put in
    the split's, and rows that repeat a video with the same scores are left out; ``reading_warnings`` names both. There
    are ``columns`` numbers per video, by default one per class.

    Raises
    ------
    PredictionError
        Names every problem at once: ids missing, unknown or twice, a wrong number of classes, other class names or
        another split, scores that are not numbers, NaN, infinite or float16.
    """
    wanted = split.video_ids(subset)
    if not wanted:
        others = " or ".join(f'subset="{name}"' for name in SUBSETS if split.video_ids(name))
        raise PredictionError(f"the split {split.dataset} has no video in {subset}{others and f'; name {others}'}")
    columns = split.num_classes if columns is None else columns
    problems = _metadata_problems(predictions, split, subset) + _shape_problems(predictions, columns, allow_float16)
    can_read = predictions.num_videos <= 2 * len(wanted) + 1000
    can_read = can_read and predictions.num_classes <= 2 * split.num_classes + 1000
    if predictions.num_videos <= _MOST_VIEWS * len(wanted) + 1000:
        problems += _repeat_problems(predictions, can_read, predictions.num_classes < columns)
        problems += _id_problems(predictions, wanted, split, subset)
    else:
        rest = f". {_LONG}" if predictions.num_classes < columns else ""
        problems.append(f"there are {predictions.num_videos:,} rows, {subset} has {len(wanted):,} videos{rest}")
    if problems:
        raise _refusal(problems + (_number_problems(predictions) if can_read else []), split, subset)
    rows = _target_rows(predictions.video_ids, wanted)
    order = _class_order(_column_names(predictions, split), split)
    dtype = predictions.dtype.newbyteorder("=")
    size = dtype.itemsize * len(wanted) * columns
    if memory_limit is not None and size > memory_limit:
        if problems := _number_problems(predictions):
            raise _refusal(problems, split, subset)
        blocks = partial(_aligned_blocks, predictions, rows, order, dtype)
        return BlockScores(len(wanted), columns, dtype, blocks)
    in_order = order is None and len(rows) == len(wanted) and bool((rows == np.arange(len(rows))).all())
    if isinstance(predictions, Predictions) and predictions.dtype == dtype and in_order:
        if problems := _number_problems(predictions):
            raise _refusal(problems, split, subset)
        return predictions.scores
    aligned = np.empty((len(wanted), columns), dtype=dtype)
    bad: list[int] = []
    for start, block in predictions.blocks():
        bad += [start + row for row in not_finite(block)]
        targets, scores = _place_block(rows[start : start + len(block)], block, order)
        aligned[targets] = scores
    if problems := _bad_numbers(bad, predictions.video_ids):
        raise _refusal(problems, split, subset)
    return aligned


def _target_rows(video_ids: list[str], wanted: list[str]) -> Places:
    """Return the row in ``wanted`` of each id; -1 where an id is repeated."""
    row_of = {video_id: row for row, video_id in enumerate(wanted)}
    rows = np.array([row_of[video_id] for video_id in video_ids], dtype=np.int64)
    if len(rows) > len(wanted):
        is_first = np.zeros(len(rows), dtype=bool)
        is_first[np.unique(rows, return_index=True)[1]] = True
        rows[~is_first] = -1
    return rows


def _place_block(targets: Places, block: Scores, order: Places | None) -> Block:
    """Return the rows of a block that are kept, and their scores by the split's classes."""
    if (kept := targets >= 0).all():
        return targets, block if order is None else block[:, order]
    return targets[kept], block[kept] if order is None else block[np.ix_(kept, order)]


def _aligned_blocks(
    predictions: Predictions | PredictionFile, rows: Places, order: Places | None, dtype: np.dtype[Any]
) -> Iterator[Block]:
    for start, block in predictions.blocks():
        targets, scores = _place_block(rows[start : start + len(block)], block, order)
        yield targets, scores.astype(dtype, copy=False)


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
    columns = _column_names(predictions, split)
    for names in (metadata.get("class_names"), name_classes(predictions.class_names, split.class_names)):
        if names in (None, list(split.class_names)) or (names == columns and _class_order(columns, split) is not None):
            continue
        problems.append(_name_problem(names if isinstance(names, list) else [], split.class_names))
    return problems


def _name_problem(names: list[Any], wanted: Sequence[str]) -> str:
    """Return the problem with class names: those that differ by place, or those that are unknown or missing."""
    known, given = set(wanted), {name for name in names if isinstance(name, str)}  # metadata may hold anything
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    missing = [name for name in wanted if name not in given]
    if len(names) == len(wanted):
        pairs = enumerate(zip(names, wanted, strict=True))
        other = [f"{index} {got!r} (expected {want!r})" for index, (got, want) in pairs if got != want]
        if not unknown or len(other) <= 2 * len(unknown):  # else a column too many moves the rest
            return f"{len(other):,} class name(s) are others: {first_few(other)}"
    parts = [f"; {what}: {first_few(found)}" for what, found in (("unknown", unknown), ("missing", missing)) if found]
    return f"its class names are not those of the split{''.join(parts)}"


def _column_names(predictions: Predictions | PredictionFile, split: Split) -> list[str] | None:
    """Return the names of the columns, or else those that the metadata give them; None without names."""
    names = name_classes(predictions.class_names, split.class_names) or predictions.metadata.get("class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _class_order(names: list[str] | None, split: Split) -> Places | None:
    """Return the column of each class of the split, from names or numbers of the columns in another order.

    None where the columns are in the split's order, or their names are not those of the classes.
    """
    wanted = list(split.class_names)
    if names is None or names == wanted or len(names) != len(wanted):
        return None
    if set(names) == set(wanted):
        place = {name: column for column, name in enumerate(names)}
        return np.array([place[name] for name in wanted]) if len(place) == len(wanted) else None
    numbers = number_classes(names)
    return None if numbers is None else np.argsort(numbers)


def _repeat_problems(predictions: Predictions | PredictionFile, can_read: bool, is_narrow: bool) -> list[str]:
    """Return the problem with videos of several rows; rows with the same scores are none."""
    video_ids = predictions.video_ids
    if not (repeated := dict.fromkeys(find_repeated(video_ids))):
        return []
    found: dict[str, bytes] = {}
    differing = {} if can_read else repeated
    for start, block in predictions.blocks() if can_read else ():
        for video_id, row in zip(video_ids[start : start + len(block)], block, strict=True):
            if video_id in repeated:
                content = hashlib.sha256((row + 0).tobytes()).digest()  # + 0: of -0.0 and 0.0, neither is higher
                if found.setdefault(video_id, content) != content:
                    differing[video_id] = None
    if not differing:
        return []
    problem = f"{len(differing):,} video(s) occur more than once, with different scores: {_named(list(differing))}"
    if is_narrow:
        return [f"{problem}. {_LONG}"]
    views = f"several views (clips, crops) of one video: average them first, e.g. {_AVERAGE}"
    if len(repeated) == len(set(video_ids)):
        return [f"{problem}. They are {views}"]
    return [f"{problem}. They may be {views}. Or {_PADDING}: keep the first row of each video"]


def _id_problems(predictions: Predictions | PredictionFile, wanted: list[str], split: Split, subset: str) -> list[str]:
    video_ids = predictions.video_ids
    if video_ids == wanted:
        return []
    problems = []
    given, known = set(video_ids), set(wanted)
    if missing := [video_id for video_id in wanted if video_id not in given]:
        shards = "; if each process or shard wrote a file, name their folder as the run"
        rest = shards if isinstance(predictions, PredictionFile) and _is_shard(given, known) else ""
        problems.append(f"{len(missing):,} of {len(wanted):,} videos are missing: {first_few(missing)}{rest}")
    if unknown := [video_id for video_id in dict.fromkeys(video_ids) if video_id not in known]:
        elsewhere = [other for other in SUBSETS if given & set(split.video_ids(other))]
        hint = f"; it holds videos of {' and '.join(elsewhere)}" if elsewhere and elsewhere != [subset] else ""
        if len(elsewhere) == 1 and given <= set(split.video_ids(elsewhere[0])):
            hint += f' alone: score them with subset="{elsewhere[0]}"'
        elif rule := find_id_rule(unknown, missing):
            hint = f"; {rule}"
        # A hint is in the first lines of a message, because it mends the rest.
        place = 0 if hint else len(problems)
        problems.insert(place, f"{len(unknown):,} video(s) are not in {subset}: {_named(unknown)}{hint}")
    return problems


def _is_shard(given: set[str], wanted: set[str]) -> bool:
    return given < wanted and 0 < len(given) <= 2 * len(wanted) // 3


def _named(video_ids: list[str]) -> str:
    """List ids of unknown origin: escaped where a terminal could not show them, and cut at 40 characters."""
    return first_few(
        video_id if video_id.isprintable() and 0 < len(video_id) <= 40 else repr(video_id[:40])
        for video_id in video_ids
    )


def _shape_problems(predictions: Predictions | PredictionFile, columns: int, allow_float16: bool) -> list[str]:
    if isinstance(predictions, Predictions):
        shape = predictions.scores.shape
        check_numbers(predictions.scores)
        if len(shape) != 2 or shape[0] != len(predictions.video_ids):
            expected = f"({len(predictions.video_ids):,}, {columns:,})"
            raise PredictionError(f"the scores have shape {shape}; expected {expected}")
    problems = []
    if is_half(predictions.dtype) and not allow_float16:
        problems.append("the scores are float16, which makes ties: write float32, or allow them by allow_float16=True")
    if predictions.num_classes != columns:
        problems.append(
            f"there are scores for {write_count(predictions.num_classes, 'class', 'classes')}, "
            f"the split has {columns:,}"
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
