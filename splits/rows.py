"""The rows of a split's table: its columns and digest, and the spans of samples that are a part of a longer video."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from meidbench.errors import SplitError, first_few

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
# Behind the others, in a split with samples that are a part of a video; of a whole video they are empty, NaN and NaN.
SPAN_FIELDS = pa.schema([("video", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
_LONGEST = 1e9  # seconds
_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"


@dataclass(frozen=True)
class Span:
    """A part of a video: the frames from ``start_s`` up to, but without, ``end_s``, in seconds since its first frame.

    ``video`` is the id of the whole video: the name of its file without suffix, or of its folder of frames.
    ``ValueError`` where the times are not 0 <= start_s < end_s < 1e9.

    >>> str(Span("kitchen", 1.5, 4.0)), Span.from_text("kitchen:1.5-4.0").end_s
    ('kitchen:1.5-4.0', 4.0)
    """

    video: str
    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not self.video or not 0 <= self.start_s < self.end_s < _LONGEST:
            times = f"{self.start_s:g} to {self.end_s:g} s of {self.video!r}"
            raise ValueError(f"{times} is not a part of a video: it needs a video, and 0 <= start_s < end_s")

    def __str__(self) -> str:
        return f"{self.video}:{float(self.start_s)!r}-{float(self.end_s)!r}"

    @property
    def length_s(self) -> float:
        """The length in seconds, to the microsecond: a difference of decimal times has rounding errors."""
        return round(self.end_s - self.start_s, 6)

    @classmethod
    def from_text(cls, text: str) -> "Span":
        """Read the text of a span; ``ValueError`` for other text."""
        found = re.fullmatch(rf"(.+):({_NUMBER})-({_NUMBER})", text)
        if found is None:
            raise ValueError(f"{text!r} is not VIDEO:START-END")
        return cls(found[1], float(found[2]), float(found[3]))


def rows_digest(table: pa.Table) -> str:
    """Return the sha256 over rows of a split's table, sorted by id.

    Each is ``video_id TAB subset TAB comma-joined sorted labels LF`` in UTF-8.
    """
    labels = table.column("labels").combine_chunks()
    texts = pa.ListArray.from_arrays(labels.offsets, pc.cast(labels.values, pa.string()))
    ids, subsets = (table.column(name).combine_chunks() for name in ("video_id", "subset"))
    lines = pc.binary_join_element_wise(ids, subsets, pc.binary_join(texts, ","), "\t")
    lines = pc.binary_join_element_wise(lines, "\n", "").take(pc.sort_indices(table.column("video_id")))
    # The array's own buffer holds the lines one after another.
    _, offsets, data = lines.buffers()
    if data is None:
        return hashlib.sha256().hexdigest()
    bounds = np.frombuffer(offsets, dtype=np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return hashlib.sha256(memoryview(data)[bounds[0] : bounds[-1]]).hexdigest()


def make_segments(segments: Sequence[tuple[tuple[int, float, float], ...]]) -> pa.Array:
    """Make the column ``segments`` of the class index, start and end of each segment of each video."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in segments])]).astype(np.int32)
    flat = [segment for row in segments for segment in row]
    labels, starts, ends = zip(*flat, strict=True) if flat else ((), (), ())
    values = pa.StructArray.from_arrays(
        [pa.array(labels, pa.int16()), pa.array(starts, pa.float32()), pa.array(ends, pa.float32())],
        fields=list(SEGMENT),
    )
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def add_spans(table: pa.Table, spans: Sequence[Span | None]) -> pa.Table:
    """Return the table with the columns of the spans, one per row; unchanged where all samples are whole videos."""
    if not any(spans):
        return table
    nan = float("nan")
    rows = [(span.video, span.start_s, span.end_s) if span else ("", nan, nan) for span in spans]
    for column, field in zip(zip(*rows, strict=True), SPAN_FIELDS, strict=True):
        table = table.append_column(field, pa.array(column, field.type, from_pandas=False))
    return table


def has_spans(table: pa.Table) -> bool:
    """Return whether the table has the columns of the spans."""
    return SPAN_FIELDS.names[0] in table.column_names


def read_spans(table: pa.Table) -> dict[str, Span]:
    """Return the span of each sample that is a part of a video, by id; ``ValueError`` for times that cannot be."""
    if not has_spans(table):
        return {}
    rows = zip(*(table.column(name).to_pylist() for name in ("video_id", *SPAN_FIELDS.names)), strict=True)
    return {
        video_id: Span(video, start, end)
        for video_id, video, start, end in rows
        if video or start == start or end == end
    }


def cast_rows(table: pa.Table) -> pa.Table:
    """Return the columns of a split file, cast to their types; ``SplitError`` where one lacks or has empty cells."""
    schema = pa.schema([*SCHEMA, *SPAN_FIELDS]) if has_spans(table) else SCHEMA
    problems = [f"no column {name!r}" for name in schema.names if name not in table.column_names]
    if not problems:
        try:
            table = table.select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            problems = [str(error).splitlines()[0]]
        else:
            problems = [f"column {name!r} has empty cells" for name in schema.names if _has_nulls(table, name)]
    if problems:
        raise SplitError(f"its columns are not those of a split file: {'; '.join(problems)}")
    return table


def _has_nulls(table: pa.Table, name: str) -> bool:
    column = table.column(name)
    if column.null_count or not pa.types.is_list(column.type):
        return bool(column.null_count)
    values = column.combine_chunks().flatten()
    parts = values.flatten() if pa.types.is_struct(values.type) else []
    return any(part.null_count for part in (values, *parts))


def find_time_problems(table: pa.Table) -> list[str]:
    """Return the problems of lengths and segments whose times cannot be."""
    problems = []
    lengths = table.column("length_s").to_numpy()
    segments = table.column("segments").combine_chunks()
    times = [np.asarray(segments.flatten().field(name)) for name in ("start_s", "end_s")]
    wrong = (lengths < 0) | np.isinf(lengths)  # NaN stands for an unknown length
    strange = ~np.isfinite(times).all(axis=0) | (np.min(times, axis=0, initial=0) < 0)
    owners = np.repeat(np.arange(len(segments)), np.asarray(pc.list_value_length(segments)))
    for what, rows in (("length_s", np.flatnonzero(wrong)), ("segments", np.unique(owners[strange]))):
        if len(rows):
            named = first_few(table.column("video_id")[int(row)].as_py() for row in rows)
            what = f"negative or infinite times in {what}"
            problems.append(f"{len(rows):,} video(s) have {what}: {named}")
    return problems


def label_pairs(rows: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """Return row and class index of every label, row by row."""
    labels = rows.column("labels").combine_chunks()
    counts = np.asarray(pc.list_value_length(labels)).astype(np.int64)
    return np.repeat(np.arange(len(counts)), counts), np.asarray(labels.flatten())


def repeated_ids(table: pa.Table) -> list[str]:
    """Return the ids that occur more than once, sorted."""
    ids = table.column("video_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return []
    counts = pc.value_counts(ids)
    repeated: list[str] = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    return sorted(repeated)
