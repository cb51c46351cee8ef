"""A split: which video goes to which subset, what its labels are, and which groups its classes form."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meidbench.annotations import Annotations
from meidbench.errors import SplitError, bullet_list, first_few
from meidbench.files import written_whole
from meidbench.splits.manifests import DATASETS, SUBSETS, split_path

FORMAT_VERSION = 1
METADATA_KEY = b"meidbench"
GROUP_NAMES = ("head", "medium", "tail")

SEGMENT = pa.struct([("label", pa.int16()), ("start_s", pa.float32()), ("end_s", pa.float32())])
SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("subset", pa.string()),
        ("labels", pa.list_(pa.int16())),
        ("source", pa.string()),
        ("length_s", pa.float32()),
        ("subject", pa.string()),
        ("view", pa.string()),
        ("pair_id", pa.string()),
        ("segments", pa.list_(SEGMENT)),
    ]
)


@dataclass(frozen=True)
class Source:
    """A file that a split was made from."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitMetadata:
    """What a split file says of itself (schema metadata key ``meidbench``)."""

    dataset: str
    variant: str
    seed: int | None
    num_classes: int
    class_names: tuple[str, ...]
    head_above: int
    tail_up_to: int
    train_counts: tuple[int, ...]
    digest: str
    sources: tuple[Source, ...]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the metadata as JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "SplitMetadata":
        """Parse metadata; a missing, unknown or mistyped key raises ``SplitError``."""
        try:
            facts: dict[str, Any] = json.loads(text)
            sources = tuple(Source(**source) for source in facts.pop("sources"))
            names, counts = facts.pop("class_names"), facts.pop("train_counts")
            if not isinstance(names, list) or not isinstance(counts, list):
                raise TypeError("class_names and train_counts must be lists")
            metadata = cls(class_names=tuple(names), train_counts=tuple(counts), sources=sources, **facts)
            metadata.check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SplitError(f"its metadata is not that of a split file: {error}") from None
        if metadata.format_version > FORMAT_VERSION:
            raise SplitError(
                f"it has format version {metadata.format_version}, this meidbench reads up to {FORMAT_VERSION}: "
                "upgrade it"
            )
        return metadata

    def check(self) -> None:
        """Refuse what cannot be meant; TypeError or ValueError says why."""
        for text in (self.dataset, self.variant, self.digest, *self.class_names):
            if not isinstance(text, str):
                raise TypeError("dataset, variant, digest and class names must be text")
            text.encode()  # a lone surrogate, which JSON can hold, could be written nowhere
        numbers = [self.num_classes, self.head_above, self.tail_up_to, self.format_version, *self.train_counts]
        if self.seed is not None:
            numbers.append(self.seed)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError("num_classes, thresholds, seed, format_version and training counts must be whole numbers")
        if not len(self.class_names) == len(self.train_counts) == self.num_classes:
            raise ValueError(
                f"num_classes is {self.num_classes}, but there are {len(self.class_names)} class names "
                f"and {len(self.train_counts)} training counts"
            )
        if self.tail_up_to > self.head_above:
            raise ValueError(f"tail_up_to {self.tail_up_to} is above head_above {self.head_above}")


@dataclass(frozen=True)
class Groups:
    """Class indices of the frequency groups, ascending, by the number of training videos a class has."""

    head: npt.NDArray[np.intp]
    medium: npt.NDArray[np.intp]
    tail: npt.NDArray[np.intp]

    @classmethod
    def from_counts(cls, train_counts: Sequence[int], head_above: int, tail_up_to: int) -> "Groups":
        """Group classes: head n > head_above, tail n <= tail_up_to, medium between (MEID, Table 1).

        Examples
        --------
        >>> Groups.from_counts([501, 500, 100, 101], head_above=500, tail_up_to=100).medium
        array([1, 3])
        """
        counts = np.asarray(train_counts)
        head, tail = counts > head_above, counts <= tail_up_to
        return cls(np.flatnonzero(head), np.flatnonzero(~head & ~tail), np.flatnonzero(tail & ~head))

    def names(self, num_classes: int) -> list[str]:
        """Return the group of each class."""
        names = [""] * num_classes
        for name in GROUP_NAMES:
            for index in getattr(self, name):
                names[index] = name
        return names


def rows_digest(table: pa.Table) -> str:
    """Digest which videos a split has, where and with which labels.

    The sha256 over the rows sorted by id, each ``video_id TAB subset TAB comma-joined sorted labels LF`` in UTF-8.
    """
    labels = table.column("labels").combine_chunks()
    texts = pa.ListArray.from_arrays(labels.offsets, pc.cast(labels.values, pa.string()))
    lines = pc.binary_join_element_wise(
        table.column("video_id").combine_chunks(),
        table.column("subset").combine_chunks(),
        pc.binary_join(texts, ","),
        "\t",
    )
    lines = pc.binary_join_element_wise(lines, "\n", "").take(pc.sort_indices(table.column("video_id")))
    # The lines lie one after another in the array's own buffer: nothing needs to be joined.
    _, offsets, data = lines.buffers()
    if data is None:
        return hashlib.sha256().hexdigest()
    bounds = np.frombuffer(offsets, dtype=np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return hashlib.sha256(memoryview(data)[bounds[0] : bounds[-1]]).hexdigest()


class Split:
    """Videos with their subset, labels and segments, and what groups the classes fall into.

    Made by ``meidbench.splits.split.load_split`` or ``Split.from_annotations``.

    Attributes
    ----------
    table : pyarrow.Table
        One row a video in official order; columns as in ``meidbench.splits.split.SCHEMA``.
    metadata : SplitMetadata
    """

    def __init__(self, table: pa.Table, metadata: SplitMetadata) -> None:
        self.table = table
        self.metadata = metadata
        self._rows: dict[str, pa.Table] = {}

    def __repr__(self) -> str:
        sizes = " / ".join(f"{len(self.video_ids(subset)):,}" for subset in SUBSETS)
        return f"<Split {self.dataset} ({self.variant}): {sizes} videos, {self.num_classes} classes>"

    @classmethod
    def from_annotations(
        cls,
        annotations: Annotations,
        subsets: Sequence[str],
        *,
        dataset: str,
        variant: str,
        head_above: int,
        tail_up_to: int,
        seed: int | None = None,
    ) -> "Split":
        """Make a split from annotated videos and the subset of each.

        Parameters
        ----------
        annotations : Annotations
            The pooled official annotations.
        subsets : sequence of str
            For each annotated video ``train``, ``val``, ``test``, or empty where it is not used.
        dataset, variant, seed, head_above, tail_up_to
            As in ``SplitMetadata``.
        """
        used = [row for row, subset in enumerate(subsets) if subset]
        labels = [sorted(annotations.labels[row]) for row in used]
        segments = [annotations.segments[row] for row in used]
        columns = [
            pa.array([annotations.video_ids[row] for row in used], pa.string()),
            pa.array([subsets[row] for row in used], pa.string()),
            pa.array(labels, pa.list_(pa.int16())),
            pa.array([annotations.sources[row] for row in used], pa.string()),
            # NaN is how a float says "not known"; a null would be another answer to the same question.
            pa.array([annotations.lengths[row] for row in used], pa.float32(), from_pandas=False),
            pa.array([annotations.subjects[row] for row in used], pa.string()),
            pa.array([annotations.views[row] for row in used], pa.string()),
            pa.array([annotations.pair_ids[row] for row in used], pa.string()),
            _segments_array(segments),
        ]
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        num_classes = len(annotations.class_names)
        metadata = SplitMetadata(
            dataset=dataset,
            variant=variant,
            seed=seed,
            num_classes=num_classes,
            class_names=annotations.class_names,
            head_above=head_above,
            tail_up_to=tail_up_to,
            train_counts=tuple(class_counts(_subset_rows(table, "train"), num_classes).tolist()),
            digest=rows_digest(table),
            sources=tuple(Source(file.name, file.bytes, file.sha256) for file in annotations.files),
        )
        return cls(table, metadata)

    @property
    def dataset(self) -> str:
        """The benchmark's name, e.g. ``charadeslt``."""
        return self.metadata.dataset

    @property
    def variant(self) -> str:
        """How it was drawn: ``released`` for the published split."""
        return self.metadata.variant

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.metadata.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, by class index."""
        return self.metadata.class_names

    @property
    def digest(self) -> str:
        """sha256 over ids, subsets and labels; the same for two splits exactly if they agree in all three."""
        return self.metadata.digest

    @cached_property
    def train_counts(self) -> npt.NDArray[np.int64]:
        """(C,) training videos a class."""
        return np.asarray(self.metadata.train_counts, dtype=np.int64)

    @cached_property
    def groups(self) -> Groups:
        """Head, medium and tail classes by the split's own thresholds."""
        return Groups.from_counts(self.metadata.train_counts, self.metadata.head_above, self.metadata.tail_up_to)

    def rows(self, subset: str) -> pa.Table:
        """Return the rows of one subset, in official order."""
        if subset not in SUBSETS:
            raise SplitError(f"unknown subset {subset!r}; known: {', '.join(SUBSETS)}")
        if subset not in self._rows:
            self._rows[subset] = _subset_rows(self.table, subset)
        return self._rows[subset]

    def video_ids(self, subset: str) -> list[str]:
        """Return the ids of one subset, in official order."""
        ids: list[str] = self.rows(subset).column("video_id").to_pylist()
        return ids

    def labels(self, subset: str) -> npt.NDArray[np.bool_]:
        """Return the (n, C) label matrix of one subset, rows as in ``video_ids``."""
        rows, classes = self.label_pairs(subset)
        matrix = np.zeros((len(self.rows(subset)), self.num_classes), dtype=bool)
        matrix[rows, classes] = True
        return matrix

    def label_pairs(self, subset: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
        """Return row (as in ``video_ids``) and class index of every label of one subset, row by row."""
        return label_pairs(self.rows(subset))

    def positives(self, subset: str) -> npt.NDArray[np.int64]:
        """Return the (C,) number of videos a class has in one subset."""
        return class_counts(self.rows(subset), self.num_classes)


def _segments_array(segments: list[tuple[tuple[int, float, float], ...]]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in segments])]).astype(np.int32)
    flat = [segment for row in segments for segment in row]
    labels, starts, ends = zip(*flat, strict=True) if flat else ((), (), ())
    values = pa.StructArray.from_arrays(
        [pa.array(labels, pa.int16()), pa.array(starts, pa.float32()), pa.array(ends, pa.float32())],
        fields=list(SEGMENT),
    )
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def label_pairs(rows: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """Return row and class index of every label among rows of a split's table, row by row."""
    labels = rows.column("labels").combine_chunks()
    counts = np.asarray(pc.list_value_length(labels)).astype(np.int64)
    return np.repeat(np.arange(len(counts)), counts), np.asarray(labels.flatten())


def _subset_rows(table: pa.Table, subset: str) -> pa.Table:
    return table.filter(pc.equal(table.column("subset"), subset))


def class_counts(rows: pa.Table, num_classes: int) -> npt.NDArray[np.int64]:
    """Return the (C,) videos a class among rows of a split's table."""
    _, classes = label_pairs(rows)
    return np.bincount(classes, minlength=num_classes)


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


def write_csv(split: Split, path: Path) -> Path:
    """Write the columns of a split file as CSV.

    Labels are joined by ``;``, segments as ``label start end`` by ``;``, as the official Charades files do; an unknown
    length is an empty cell.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, SCHEMA.names, lineterminator="\n")
        writer.writeheader()
        for batch in split.table.to_batches():
            for row in batch.to_pylist():
                row["labels"] = ";".join(map(str, row["labels"]))
                row["length_s"] = "" if row["length_s"] != row["length_s"] else f"{row['length_s']:.7g}"
                row["segments"] = ";".join(
                    f"{part['label']} {part['start_s']:.7g} {part['end_s']:.7g}" for part in row["segments"]
                )
                writer.writerow(row)
    return path


def write_lists(split: Split, folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """Write one list a subset: ``VIDEOID c1,c2``, classes in the order of first occurrence, rows in official order.

    Parameters
    ----------
    split : Split
    folder : Path
        Where the lists go.
    names : dict
        File name by subset.

    Returns
    -------
    dict
        Path by subset.
    """
    paths = {}
    for subset in SUBSETS:
        rows = split.rows(subset)
        lines = []
        for video_id, labels, segments in zip(
            rows.column("video_id").to_pylist(),
            rows.column("labels").to_pylist(),
            rows.column("segments").to_pylist(),
            strict=True,
        ):
            ordered = dict.fromkeys(part["label"] for part in segments) if segments else labels
            lines.append(f"{video_id} {','.join(map(str, ordered))}\n")
        paths[subset] = folder / names[subset]
        with written_whole(paths[subset]) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths
