"""A split: the subset and the labels of every video, the groups of the classes, and the split file."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meidbench.annotations import Annotations
from meidbench.checks import describe_missing, match_name, one_of, suggest
from meidbench.errors import SplitError, bullet_list, describe_content, escape_controls, first_few
from meidbench.files import written_whole
from meidbench.names import BENCHMARKS, DATASETS, HELD_OUT, RELEASED, SUBSETS
from meidbench.splits.groups import BY_LIST, Groups, Thresholds, find_group_problems
from meidbench.splits.manifests import lines_digest, load_assignment, load_manifest, split_path
from meidbench.splits.metadata import FORMAT_VERSION, SplitMetadata, content_digest
from meidbench.splits.rows import (
    SCHEMA,
    Span,
    add_spans,
    cast_rows,
    find_time_problems,
    has_spans,
    label_pairs,
    make_segments,
    read_spans,
    repeated_ids,
    rows_digest,
)

if TYPE_CHECKING:
    import pandas as pd

CHANGED, UNVERIFIED = "changed", "unverified"  # variants of what calls itself released
METADATA_KEY = b"meidbench"


@cache
def released_content(dataset: str) -> str:
    """Return the content digest of the published split of a benchmark, from its manifest and assignment."""
    manifest, assignment = load_manifest(dataset), load_assignment(dataset)
    if manifest.thresholds is None:
        return assignment.content_digest
    groups = Groups.from_counts(assignment.positives["train"], **asdict(manifest.thresholds))
    return content_digest(assignment.split_digest, assignment.names_digest, groups.names(manifest.num_classes))


class Split:
    """Videos with their subset, labels and segments, and the frequency groups of the classes.

    Made by ``meidbench.splits.split.load_split`` or ``Split.from_annotations``. Counts and digests are computed once
    per object, so neither the table nor the metadata may be changed.

    Attributes
    ----------
    table : pyarrow.Table
        One row per video in official order; columns as in ``meidbench.splits.rows.SCHEMA``,
        with those of ``SPAN_FIELDS`` where samples are a part of a longer video.
    metadata : SplitMetadata
    """

    def __init__(self, table: pa.Table, metadata: SplitMetadata) -> None:
        self.table = table
        self.metadata = metadata
        self._rows: dict[str, pa.Table] = {}
        self._positives: dict[str, npt.NDArray[np.int64]] = {}

    def __repr__(self) -> str:
        sizes = " / ".join(f"{len(self.video_ids(subset)):,}" for subset in SUBSETS)
        return f"<Split {escape_controls(self.dataset)} ({self.variant}): {sizes} videos, {self.num_classes} classes>"

    @classmethod
    def from_annotations(
        cls,
        annotations: Annotations,
        subsets: Sequence[str],
        *,
        dataset: str,
        variant: str,
        head_above: int | None = None,
        tail_up_to: int | None = None,
        seed: int | None = None,
    ) -> "Split":
        """Make a split from the pooled official annotations and the subset of each annotated video.

        A subset is ``train``, ``val``, ``test``, or empty where the video is not used; the others are as in
        ``SplitMetadata``. Without thresholds, the groups of the classes are ``annotations.groups``.
        """
        thresholds = Thresholds.from_numbers(head_above, tail_up_to)
        used = [row for row, subset in enumerate(subsets) if subset]

        def texts(column: Sequence[str]) -> pa.Array:
            return pa.array([column[row] for row in used], pa.string())

        columns = [
            texts(annotations.video_ids),
            texts(subsets),
            pa.array([sorted(annotations.labels[row]) for row in used], pa.list_(pa.int16())),
            texts(annotations.sources),
            # NaN alone stands for an unknown length, never a null as well.
            pa.array([annotations.lengths[row] for row in used], pa.float32(), from_pandas=False),
            texts(annotations.subjects),
            texts(annotations.views),
            texts(annotations.pair_ids),
            make_segments([annotations.segments[row] for row in used]),
        ]
        metadata = SplitMetadata(
            dataset=dataset,
            variant=variant,
            seed=seed,
            num_classes=len(annotations.class_names),
            class_names=annotations.class_names,
            head_above=head_above,
            tail_up_to=tail_up_to,
            sources=tuple(annotations.files),
            other_annotations=annotations.other_annotations,
            groups=() if thresholds else annotations.groups,
            group_names=dict(annotations.group_names),
        )
        if not thresholds and (problems := find_group_problems(annotations.groups, annotations.class_names)):
            raise SplitError(f"without thresholds, a list must have the group of each class:\n{bullet_list(problems)}")
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        split = cls(add_spans(table, [annotations.spans[row] for row in used if annotations.spans]), metadata)
        counts = tuple(split.positives("train").tolist())
        split.metadata = replace(metadata, train_counts=counts, digest=split.computed_digest)
        split.metadata = replace(split.metadata, content_digest=split.content_digest)
        return split

    @property
    def dataset(self) -> str:
        """Name of the benchmark, such as ``charadeslt``."""
        return self.metadata.dataset

    @property
    def variant(self) -> str:
        """``released`` for the published split, else the way in which it was drawn.

        A split whose metadata call it released is ``changed`` where its content or its groups are others than those of
        the published split, and ``unverified`` where they cannot be compared: in a file of format version 1 of a
        benchmark that this package does not know.
        """
        stored = self.metadata.content_digest
        if self.metadata.variant != RELEASED:
            return self.metadata.variant
        if self.dataset in DATASETS:
            stored = released_content(self.dataset) if self.thresholds == self.benchmark_thresholds else "others"
        return (RELEASED if stored == self.content_digest else CHANGED) if stored else UNVERIFIED

    @property
    def thresholds(self) -> Thresholds | None:
        """The split's own thresholds of head and tail, None where its groups are by list."""
        return self.metadata.thresholds

    @property
    def benchmark_thresholds(self) -> Thresholds | None:
        """The thresholds of the benchmark, None where its groups are by list, or this package does not know it."""
        return load_manifest(self.dataset).thresholds if self.dataset in DATASETS else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of numbers on this split needs.

        Of a published split as it was released, only groups by list and empty groups are told.
        """
        again = "Build it again: meidbench build-splits"
        notes = {
            CHANGED: f"the split calls itself the published one, but its content or groups are others. {again}",
            UNVERIFIED: f"the split calls itself the published one, but has no content digest to verify it. {again}",
        }
        found = [notes[self.variant]] if self.variant in notes else []
        if groups := self._describe_groups():
            found.append(f"groups: {groups}")
        if self.variant.startswith(HELD_OUT):
            found.append("val was taken out of train: the groups of the classes are those of both together")
        if self.metadata.other_annotations:
            found.append(f"the split was drawn from annotations that are not the official ones of {self.dataset}")
        return tuple(found)

    def _describe_groups(self) -> str:
        """Return how classes were grouped, unless it is by the benchmark's thresholds, and which groups are empty."""
        official, own, texts = self.benchmark_thresholds, self.thresholds, []
        if own is None or own != official:
            texts.append(f"{own or BY_LIST}" + (f" ({self.dataset} has {official})" if official else ""))
        if self.group_names:
            texts.append(", ".join(f"{name} is called {shown}" for name, shown in self.group_names.items()))
        if empty := self.groups.empty:
            texts.append(f"no classes in {' and '.join(self.group_names.get(name, name) for name in empty)}")
        return "; ".join(texts)

    @property
    def group_names(self) -> dict[str, str]:
        """The benchmark's own names of groups for tables and pages, such as ``{"medium": "middle"}``."""
        return self.metadata.group_names

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
        """sha256 over ids, subsets and labels; two splits have the same exactly if they agree in all three."""
        return self.metadata.digest

    @cached_property
    def content_digest(self) -> str:
        """sha256 over ids, subsets, labels, class names and the group of every class: see ``content_digest``."""
        return content_digest(self.digest, lines_digest(self.class_names), self.groups.names(self.num_classes))

    @cached_property
    def computed_digest(self) -> str:
        """The digest of the rows, equal to ``digest`` unless the rows were changed."""
        return rows_digest(self.table)

    @cached_property
    def plan_digest(self) -> str:
        """sha256 over the whole content of a split file except its sources and the order of its rows.

        Unlike ``digest`` it also covers class names, thresholds, lengths, groups and segments. Plans record it.
        """
        # The facts of format version 1, so that plans that were made with it stay valid.
        added = ("sources", "content_digest", "other_annotations")
        facts = {name: fact for name, fact in json.loads(self.metadata.to_json()).items() if name not in added}
        facts["format_version"] = 1
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for row in sorted(self.table.to_pylist(), key=lambda row: str(row["video_id"])):
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()

    @cached_property
    def train_counts(self) -> npt.NDArray[np.int64]:
        """(C,) training videos per class."""
        return np.asarray(self.metadata.train_counts, dtype=np.int64)

    @cached_property
    def spans(self) -> dict[str, Span]:
        """The part of a longer video that a sample is, by id; empty where all samples are whole videos."""
        return read_spans(self.table)

    @cached_property
    def groups(self) -> Groups:
        """Head, medium and tail classes, by the split's own thresholds or by its list; a group may be empty."""
        if self.thresholds is None:
            return Groups.from_names(self.metadata.groups)
        return Groups.from_counts(self.metadata.train_counts, **asdict(self.thresholds))

    @property
    def default_subset(self) -> str:
        """``test``, or ``val`` in a split without test videos."""
        return "test" if self.video_ids("test") or not self.video_ids("val") else "val"

    def describe_absence(self, subset: str) -> str:
        """Return the message that a subset has no video, with the subsets that have some."""
        present = ", ".join(name for name in SUBSETS if len(self.rows(name))) or "none"
        return f"the split {self.dataset} has no video in {subset}; it has some in {present}"

    def rows(self, subset: str) -> pa.Table:
        """Return the rows of one subset, in official order."""
        if one_of("subset", subset, SUBSETS, SplitError) not in self._rows:
            self._rows[subset] = self.table.filter(pc.equal(self.table.column("subset"), subset))
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

    def to_pandas(self) -> "pd.DataFrame":
        """Return the videos as a DataFrame, with a list of class names as ``labels``; segments are left out.

        ``meidbench.split_from_pandas`` makes the split again, with ``class_names`` where their order matters, and with
        the split's thresholds, or ``groups=split.groups.names(split.num_classes)``. It has the same ids, subsets,
        labels, lengths, subjects and groups of videos, but no views, no segments and no official subsets.
        """
        frame: pd.DataFrame = self.table.drop_columns(["segments"]).to_pandas()
        rows = self.table.column("labels").to_pylist()
        frame["labels"] = [[self.class_names[index] for index in row] for row in rows]
        return frame

    def positives(self, subset: str) -> npt.NDArray[np.int64]:
        """Return the (C,) number of videos of each class in one subset; the array is read-only."""
        if subset not in self._positives:
            _, classes = self.label_pairs(subset)
            self._positives[subset] = np.bincount(classes, minlength=self.num_classes)
            self._positives[subset].setflags(write=False)
        return self._positives[subset]


def write_split(split: Split, path: str | os.PathLike[str]) -> Path:
    """Write a split file; the same split gives the same bytes, and one that contradicts itself a ``SplitError``."""
    path = Path(path)
    content, variant = split.content_digest, split.variant
    version = FORMAT_VERSION if has_spans(split.table) else split.metadata.written_version
    metadata = replace(split.metadata, variant=variant, content_digest=content, format_version=version)
    SplitMetadata.from_json(metadata.to_json())
    if problems := _unusable(split) or contradictions(split):
        raise SplitError(f"the split {split.dataset} contradicts itself:\n{bullet_list(problems)}")
    table = split.table.replace_schema_metadata({METADATA_KEY: metadata.to_json().encode()})
    with written_whole(path) as temporary:
        # With a checksum per page, a flipped bit is refused.
        options = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}
        pq.write_table(table, temporary, **options)
    return path


_ORIGIN = "A split file is made by meidbench build-splits, or of a table by meidbench import-split"


def read_split(path: Path, *, check: bool = True) -> Split:
    """Read a split file, a Parquet file with the columns of ``meidbench.splits.rows.SCHEMA``.

    Without ``check``, rows that contradict the metadata are accepted, as by the audit. A ``SplitError`` names all
    problems of a file that cannot be read, is of another format, or contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
        raise SplitError(describe_missing("split file", path))
    if (kind := describe_content(path)) not in ("a split file", "a Parquet file"):
        remedy = "Name the split file in its place" if kind == "a prediction file" else _ORIGIN
        raise SplitError(f"{path} is {kind or 'text, or of an unknown kind'}; expected a split file\n{remedy}")
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise SplitError(f"{path} is not a readable Parquet file: {reason}\n{_ORIGIN}") from None
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise SplitError(f"{path} lacks the metadata 'meidbench', so it is not a split file\n{_ORIGIN}")
    try:
        metadata = SplitMetadata.from_json(raw.decode(errors="replace"))
        split = Split(cast_rows(table), metadata)
        if problems := _unusable(split) or (check and contradictions(split)):
            raise SplitError(f"it contradicts itself:\n{bullet_list(problems)}")
    except SplitError as error:
        raise SplitError(f"cannot use {path}: {error}\nBuild it again: meidbench build-splits") from None
    return split


def _unusable(split: Split) -> list[str]:
    """Return the problems that make rows meaningless, even for an audit."""
    problems = []
    if strange := sorted(set(pc.unique(split.table.column("subset")).to_pylist()) - set(SUBSETS)):
        problems.append(f"subset(s) {first_few(map(repr, strange))} are not among {', '.join(SUBSETS)}")
    rows, classes = label_pairs(split.table)
    ids = split.table.column("video_id")
    outside = np.unique(rows[(classes < 0) | (classes >= split.num_classes)])
    unsorted = np.unique(rows[1:][(np.diff(rows) == 0) & (np.diff(classes.astype(np.int32)) <= 0)])
    joined = np.flatnonzero(pc.match_substring_regex(ids, "[\t\n]"))  # which the digest has between ids
    kinds = {
        "labels outside the classes": outside,
        "labels not ascending": unsorted,
        "an id with a tab or newline": joined,
    }
    for what, where in kinds.items():
        if len(where):
            named = first_few(ids[int(row)].as_py() for row in where)
            problems.append(f"{len(where):,} video(s) have {what}: {named}")
    try:
        _ = split.spans  # kept for the other readers
    except ValueError as error:
        problems.append(str(error))
    return problems


def contradictions(split: Split) -> list[str]:
    """Return the points in which the rows of a split contradict one another or the metadata."""
    problems = []
    if repeated := repeated_ids(split.table):
        problems.append(f"{len(repeated):,} video id(s) occur more than once: {first_few(repeated)}")
    if tuple(split.positives("train").tolist()) != split.metadata.train_counts:
        problems.append("the training counts in its metadata are not those of its rows")
    stored = split.metadata.content_digest
    if stored not in ("", split.content_digest):
        digests = f"{split.content_digest[:12]}..., its metadata says {stored[:12]}..."
        problems.append(f"the content digest is {digests}: class names, groups or training counts were changed")
    problems += find_time_problems(split.table)
    if split.computed_digest != split.digest:
        digests = f"{split.computed_digest[:12]}..., its metadata says {split.digest[:12]}..."
        problems.append(f"the digest of its rows is {digests}: rows were changed")
    return problems


def load_split(split: Split | str | Path, *, check: bool = True) -> Split:
    """Return a split by its benchmark's name or its file's path; a ``Split`` is returned unchanged.

    A benchmark (one of ``meidbench.names.BENCHMARKS``, also as ``CharadesLT``) must have been built under
    ``MEIDBENCH_HOME``; ``check`` is as in ``read_split``. ``SplitError`` if the split does not exist or cannot be used.
    """
    if isinstance(split, Split):
        return split
    if not isinstance(split, str | os.PathLike):
        raise SplitError(
            f"split is {'missing' if split is None else f'of type {type(split).__name__}'}; expected a Split, its "
            "path, or a benchmark's name"
        )
    path, name = Path(split), match_name(str(split), BENCHMARKS)
    if name in BENCHMARKS and not path.is_file():
        path = split_path(name)
        if not path.is_file():
            remedy = f"Build it: meidbench build-splits {name} --annotations DIR"
            if others := sorted(map(str, path.parent.glob(f"{name}-*.parquet"))):
                remedy += f"\nor give the path of another split of it: {first_few(others)}"
            raise SplitError(f"the split {name} is not built yet (looked for {path})\n{remedy}")
    if not path.exists() and path.name == str(split) and not path.suffix:
        found = suggest(name, BENCHMARKS)
        raise SplitError(f"{str(split)!r} is neither a split file nor one of {', '.join(BENCHMARKS)}{found}")
    return read_split(path, check=check)
