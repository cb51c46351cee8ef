"""A split as one Parquet file: read, checked and written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meidbench.errors import SplitError, bullet_list, first_few
from meidbench.files import written_whole
from meidbench.home import split_path
from meidbench.manifests import DATASETS, SUBSETS
from meidbench.split import METADATA_KEY, SCHEMA, Split, SplitMetadata, class_counts, label_pairs, rows_digest


def write_split(split: Split, path: Path) -> Path:
    """Write a split file; the same split gives the same bytes.

    Raises
    ------
    SplitError
        The split contradicts itself, so that it could not be read back.
    """
    SplitMetadata.from_json(split.metadata.to_json())
    if problems := _unusable(split.table, split.metadata) + contradictions(split.table, split.metadata):
        raise SplitError(f"the split {split.dataset} contradicts itself:\n{bullet_list(problems)}")
    table = split.table.replace_schema_metadata({METADATA_KEY: split.metadata.to_json().encode()})
    with written_whole(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3)
    return path


def read_split(path: Path, *, check: bool = True) -> Split:
    """Read a split file.

    Parameters
    ----------
    path : Path
        A Parquet file in the format of ``SCHEMA``.
    check : bool
        False to read one whose rows contradict its metadata, as the audit does.

    Raises
    ------
    SplitError
        It cannot be read, is of another format, or contradicts itself; all problems in one message.
    """
    path = Path(path)
    if not path.is_file():
        raise SplitError(f"there is no split file {path}")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise SplitError(f"{path} is not a readable Parquet file: {reason[0] if reason else error}") from None
    try:
        raw = (table.schema.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise SplitError("it lacks the metadata 'meidbench': not a split file")
        metadata = SplitMetadata.from_json(raw.decode(errors="replace"))
        table = _with_schema(table)
        problems = _unusable(table, metadata)
        if problems or (check and (problems := contradictions(table, metadata))):
            raise SplitError(f"it contradicts itself:\n{bullet_list(problems)}")
    except SplitError as error:
        raise SplitError(f"cannot use {path}: {error}\nBuild it again: meidbench build-splits") from None
    return Split(table, metadata)


def _with_schema(table: pa.Table) -> pa.Table:
    problems = [f"no column {name!r}" for name in SCHEMA.names if name not in table.column_names]
    if not problems:
        try:
            table = table.select(SCHEMA.names).cast(SCHEMA)
        except (pa.ArrowException, ValueError) as error:
            problems = [str(error).splitlines()[0]]
        else:
            problems = [f"column {name!r} has empty cells" for name in SCHEMA.names if _has_nulls(table, name)]
    if problems:
        raise SplitError(f"its columns are not those of a split file: {'; '.join(problems)}")
    return table


def _has_nulls(table: pa.Table, name: str) -> bool:
    column = table.column(name)
    if column.null_count or not pa.types.is_list(column.type):
        return bool(column.null_count)
    values = column.combine_chunks().flatten()
    parts = values.flatten() if pa.types.is_struct(values.type) else [values]
    return bool(values.null_count or any(part.null_count for part in parts))


def _unusable(table: pa.Table, metadata: SplitMetadata) -> list[str]:
    """Return what makes rows meaningless, so that not even an audit can look at them."""
    problems = []
    if strange := sorted(set(pc.unique(table.column("subset")).to_pylist()) - set(SUBSETS)):
        problems.append(f"subset(s) {first_few(map(repr, strange))} are none of {', '.join(SUBSETS)}")
    rows, classes = label_pairs(table)
    ids = table.column("video_id")
    outside = np.unique(rows[(classes < 0) | (classes >= metadata.num_classes)])
    unsorted = np.unique(rows[1:][(np.diff(rows) == 0) & (np.diff(classes.astype(np.int32)) <= 0)])
    for what, where in (("labels outside the classes", outside), ("labels not ascending", unsorted)):
        if len(where):
            named = first_few(ids[int(row)].as_py() for row in where)
            problems.append(f"{len(where):,} video(s) have {what}: {named}")
    return problems


def contradictions(table: pa.Table, metadata: SplitMetadata) -> list[str]:
    """Return what in a split file contradicts its own metadata or the format, empty where nothing does."""
    problems = []
    if repeated := repeated_ids(table):
        problems.append(f"{len(repeated):,} video id(s) occur more than once: {first_few(repeated)}")
    counts = class_counts(Split(table, metadata).rows("train"), metadata.num_classes)
    if tuple(counts.tolist()) != metadata.train_counts:
        problems.append("the training counts in its metadata are not those of its rows")
    if (digest := rows_digest(table)) != metadata.digest:
        problems.append(
            f"the digest of its rows is {digest[:12]}..., its metadata says {str(metadata.digest)[:12]}...: "
            "rows were changed"
        )
    return problems


def repeated_ids(table: pa.Table) -> list[str]:
    """Return the ids that occur more than once, sorted."""
    ids = table.column("video_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return []
    counts = pc.value_counts(ids)
    repeated: list[str] = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    return sorted(repeated)


def load_split(split: Split | str | Path, *, check: bool = True) -> Split:
    """Return a split by benchmark name, file path, or as it is.

    Parameters
    ----------
    split : Split, str or Path
        A file in the split format, or ``videolt``, ``charadeslt`` or ``charadesegolt`` where that split was built
        under ``MEIDBENCH_HOME``.
    check : bool
        As in ``read_split``.

    Raises
    ------
    SplitError
        There is none, or it cannot be used.
    """
    if isinstance(split, Split):
        return split
    if str(split) in DATASETS and not Path(split).is_file():
        path = split_path(str(split))
        if not path.is_file():
            raise SplitError(
                f"the split {split} is not built yet (looked for {path})\n"
                f"Build it: meidbench build-splits {split} --annotations DIR"
            )
        return read_split(path, check=check)
    if not Path(split).exists() and Path(split).name == str(split) and not Path(split).suffix:
        raise SplitError(f"{split!r} is neither a split file nor one of {', '.join(DATASETS)}")
    return read_split(Path(split), check=check)
