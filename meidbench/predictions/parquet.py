"""Prediction files in Parquet."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from meidbench.errors import PredictionError, first_few
from meidbench.predictions.base import (
    BLOCK_ROWS,
    ID_NAMES,
    INDEX_NAMES,
    LONGEST_ID,
    PredictionFile,
    Scores,
    describe_long,
    find_names,
    id_text,
)
from meidbench.splits.split import METADATA_KEY

_DECODERS = 2
_GROUP_READ_AHEAD = 1 << 26  # bytes; larger row groups are not decoded ahead

_LONGEST_SEARCH = 1 << 26  # numbers that are read to name a row with too few
_CHUNK_OVERHEAD = 1 << 10  # bytes of the headers and the dictionary of a column in a row group

_EXPECTED = (
    "expected video_id, and scores as lists of numbers or a column of numbers per class. Or write the file with "
    "meidbench.write_predictions(path, video_ids, scores)"
)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_text(kind: Any) -> bool:
    """Return whether a type is text or bytes, also where each value is stored once (a category of pandas)."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind).removeprefix("large_").removesuffix("_view") in ("string", "binary")


def _lengths(column: Any) -> Any:
    """Return the number of entries of each list of a column; 0 of an empty cell."""
    return column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)


def _index_columns(schema: Any) -> list[str]:
    """Return the columns that are the index of a DataFrame, as pandas says in the metadata."""
    try:
        names = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))["index_columns"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str) and name in schema.names] if isinstance(names, list) else []


class ParquetFile(PredictionFile):
    """A column of ids, and a column of lists of numbers or a column of numbers per class; JSON metadata ``meidbench``.

    meidbench writes ``video_id`` string and ``scores`` fixed_size_list; pandas and polars write the others. The file
    stays open as long as this object lives, with a reader for each thread that decodes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._arrow_errors():
            file = self._open_reader()
            self._idle_readers = deque([file])
            schema = file.schema_arrow
            names = schema.names
            if len(set(names)) < len(names):
                raise self.refusal(f"it has a column more than once: {first_few(names)}")
            index = _index_columns(schema)
            self._id_name = self._find_ids(schema, index)
            self.num_videos = file.metadata.num_rows
            lists = [name for name in names if name != self._id_name and _is_list(schema.field(name).type)]
            self._scores_name = self.find_scores(lists, "columns", _EXPECTED) if lists else ""
            if self._scores_name:
                self._open_lists(file, schema.field(self._scores_name).type)
            else:
                self._open_columns(schema, index)
            self._check_size(file.metadata)
            self.metadata = self._parse_metadata((schema.metadata or {}).get(METADATA_KEY, b"{}"))

    def _find_ids(self, schema: Any, index: list[str]) -> str:
        """Return the name of the column of ids: by its name, or the index of a DataFrame."""
        import pyarrow as pa

        named = find_names(schema.names, ID_NAMES)
        kinds = {name: schema.field(name).type for name in [*named, *index]}
        found = [name for name in [*named, *index] if _is_text(kinds[name])]
        found += [name for name in named if pa.types.is_integer(kinds[name])]
        if found:
            return found[0]
        if named:
            raise self.refusal(f"the column {named[0]} is of type {kinds[named[0]]}; expected string")
        raise self.refusal(f"it has the columns {first_few(schema.names) or 'none'}; {_EXPECTED}")

    def _open_lists(self, file: Any, kind: Any) -> None:
        """Prepare for a column with a list of numbers per row."""
        if not _is_number(kind.value_type):
            raise self.refusal(f"the column {self._scores_name} is of type {kind}; expected lists of a real number")
        self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
        self._has_fixed_size = hasattr(kind, "list_size")
        if self._has_fixed_size:
            self.num_classes = kind.list_size
            return
        # The footer has the sizes, so nothing is decoded before the number of classes is compared with the split's.
        values = sum(chunk.num_values for chunk in self._chunks(file.metadata, [self._scores_name]))
        self.num_classes = values // max(self.num_videos, 1)
        if self.num_classes * self.num_videos != values:
            raise self._ragged(values)

    def _open_columns(self, schema: Any, index: list[str]) -> None:
        """Prepare for a column of numbers per class; the index of a DataFrame is no class."""
        import pyarrow as pa

        kinds = {name: schema.field(name).type for name in schema.names}
        numbers = {name for name in INDEX_NAMES if name in kinds and pa.types.is_integer(kinds[name])}
        columns = [name for name in schema.names if name not in (self._id_name, *index, *numbers)]
        if problem := describe_long(self._id_name, columns):
            raise self.refusal(problem)
        if wrong := [f"{name} ({kinds[name]})" for name in columns if not _is_number(kinds[name])]:
            raise self.refusal(f"it has columns that hold no real numbers: {first_few(wrong)}; {_EXPECTED}")
        if not columns:
            raise self.refusal(f"it has the columns {first_few(schema.names)}; {_EXPECTED}")
        self._places = [schema.names.index(name) for name in columns]
        self.num_classes = len(columns)
        self.class_names = columns
        types = {np.dtype(kinds[name].to_pandas_dtype()) for name in columns}
        self.dtype = np.result_type(*types)
        if np.dtype(np.float16) in types and len(types) > 1:
            raise self.refusal("some of its columns are float16, which makes ties, others not: write all in float32")

    def _open_reader(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 22)

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        """Give a reader, which serves one thread at a time; another one is opened when all are in use."""
        try:
            reader = self._idle_readers.pop()
        except IndexError:
            reader = self._open_reader()
        try:
            yield reader
        finally:
            self._idle_readers.append(reader)

    def _arrow_errors(self) -> AbstractContextManager[None]:
        import pyarrow as pa

        return self.refusing("Parquet file", (pa.ArrowException, OSError, UnicodeError))  # a file name may be no text

    def _chunks(self, facts: Any, names: Sequence[str]) -> Iterator[Any]:
        """Yield the facts about each chunk of some columns, or of all."""
        for group in range(facts.num_row_groups):
            for place in range(facts.num_columns):
                chunk = facts.row_group(group).column(place)
                path = chunk.path_in_schema
                if not names or path in names or path.startswith(tuple(f"{name}." for name in names)):
                    yield chunk

    def _check_size(self, facts: Any) -> None:
        """Refuse a file that unpacks to much more than its rows of scores and ids can take."""
        chunks = list(self._chunks(facts, [self._scores_name, self._id_name] if self._scores_name else []))
        size = sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks)
        most = self.num_videos * (2 * self.num_classes * 8 + LONGEST_ID) + (1 << 20) + len(chunks) * _CHUNK_OVERHEAD
        if self.num_videos < 0 or size > most:
            raise self.refusal(f"it unpacks to {size:,} bytes, too much for {self.num_videos:,} rows: it is damaged")

    def _parse_metadata(self, raw: bytes) -> dict[str, Any]:
        try:
            metadata = json.loads(raw)
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise self.refusal("its metadata 'meidbench' is not a JSON object")
        return metadata

    def _read_ids(self) -> list[str]:
        with self._arrow_errors(), self._reader() as reader:
            column = reader.read([self._id_name]).column(self._id_name)
            if column.null_count:
                raise self.refusal(f"{column.null_count:,} ids are empty cells")
            return list(map(id_text, column.to_pylist()))

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        start = 0
        with self._arrow_errors():
            for block in self._list_blocks() if self._scores_name else self._column_blocks():
                yield start, block
                start += len(block)
            if start != self.num_videos:
                raise self.refusal(f"{start:,} rows could be read, {self.num_videos:,} are announced: it is damaged")

    def _list_blocks(self) -> Iterator[Scores]:
        for column in self._pieces():
            values = column.flatten()
            if column.null_count or values.null_count:
                raise self._empty_cells()
            if not self._has_fixed_size and (_lengths(column) != self.num_classes).any():
                raise self._ragged(self.num_videos * self.num_classes)
            yield values.to_numpy(zero_copy_only=False).reshape(len(column), self.num_classes)

    def _ragged(self, values: int) -> PredictionError:
        """Return the refusal of lists that differ in length; a file of few numbers is read to name the rows."""
        if values > _LONGEST_SEARCH:
            return self.refusal("its rows have different numbers of scores; expected one per class")
        lengths = np.concatenate([_lengths(column) for column in self._pieces()])
        found, counts = np.unique(lengths, return_counts=True)
        usual = found[counts.argmax()]
        rows = np.flatnonzero(lengths != usual).tolist()
        named = first_few(f"row {row} ({self.video_ids[row][:40]}) has {lengths[row]:,}" for row in rows)
        return self.refusal(f"{len(rows):,} row(s) have another number of scores than {usual:,}: {named}")

    def _column_blocks(self) -> Iterator[Scores]:
        with self._reader() as reader:
            for batch in reader.iter_batches(BLOCK_ROWS, use_threads=False):
                block = np.empty((len(batch), self.num_classes), self.dtype)
                for index, place in enumerate(self._places):
                    if batch.column(place).null_count:
                        raise self._empty_cells()
                    block[:, index] = batch.column(place).to_numpy(zero_copy_only=False)
                yield block

    def _empty_cells(self) -> PredictionError:
        return self.refusal("there are empty cells among the scores")

    def _pieces(self) -> Iterator[Any]:
        """Yield the scores piece by piece: small row groups are decoded ahead, large ones are read in batches."""
        with self._reader() as reader:
            facts = reader.metadata
            groups = range(facts.num_row_groups)
            if max((facts.row_group(group).total_byte_size for group in groups), default=0) > _GROUP_READ_AHEAD:
                # One at a time: asked for all, the reader would keep the raw bytes of the whole file.
                for group in groups:
                    batches = reader.iter_batches(BLOCK_ROWS, [group], [self._scores_name], use_threads=False)
                    yield from (batch.column(0) for batch in batches)
                return

        def decode(group: int) -> list[Any]:
            with self._reader() as reader:
                chunks: list[Any] = (
                    reader.read_row_group(group, [self._scores_name], use_threads=False).column(0).chunks
                )
            return chunks

        with ThreadPoolExecutor(_DECODERS) as pool:
            pending: deque[Future[list[Any]]] = deque()
            for group in groups:
                pending.append(pool.submit(decode, group))
                if len(pending) > _DECODERS:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
