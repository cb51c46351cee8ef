"""Prediction files in Parquet."""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from meidbench.errors import first_few
from meidbench.predictions.base import BLOCK_ROWS, LONGEST_ID, PredictionFile, Scores
from meidbench.splits.split import METADATA_KEY

_DECODERS = 2
_GROUP_READ_AHEAD = 1 << 26  # bytes; larger row groups are not decoded ahead

_REMEDY = "Write the file with meidbench.write_predictions(path, video_ids, scores)"


class ParquetFile(PredictionFile):
    """Columns ``video_id`` string and ``scores`` fixed_size_list, with optional JSON metadata ``meidbench``.

    The file stays open as long as this object lives, with a reader for each thread that decodes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import pyarrow as pa

        with self._arrow_errors():
            file = self._open_reader()
            self._idle_readers = deque([file])
            schema = file.schema_arrow
            names = schema.names
            if not {"video_id", "scores"} <= set(names) or len(set(names)) < len(names):
                expected = f"expected video_id and scores. {_REMEDY}, or a column per class as CSV"
                raise self.refusal(f"it has the columns {first_few(names) or 'none'}; {expected}")
            kind, id_kind, types = schema.field("scores").type, schema.field("video_id").type, pa.types
            is_list = types.is_fixed_size_list(kind)
            if not is_list or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
                expected = f"expected fixed_size_list of a real number. {_REMEDY}"
                raise self.refusal(f"the column scores is of type {kind}; {expected}")
            if not (types.is_string(id_kind) or types.is_large_string(id_kind)):
                raise self.refusal(f"the column video_id is of type {id_kind}; expected string")
            self.num_videos, self.num_classes = file.metadata.num_rows, kind.list_size
            self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
            self._check_size(file.metadata)
            self.metadata = self._parse_metadata((schema.metadata or {}).get(METADATA_KEY, b"{}"))

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

    def _check_size(self, facts: Any) -> None:
        """Refuse a file that unpacks to much more than its rows of scores and ids can take."""
        size = 0
        for group in range(facts.num_row_groups):
            columns = (facts.row_group(group).column(place) for place in range(facts.num_columns))
            size += sum(max(column.total_uncompressed_size, 0) for column in columns)
        most = self.num_videos * (2 * self.num_classes * 8 + LONGEST_ID) + (1 << 20)
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
            column = reader.read(["video_id"]).column("video_id")
            if column.null_count:
                raise self.refusal(f"{column.null_count:,} ids are empty cells")
            ids: list[str] = column.to_pylist()
        return ids

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with self._arrow_errors():
            start = 0
            for column in self._columns():
                values = column.flatten()
                if column.null_count or values.null_count:
                    raise self.refusal("there are empty cells among the scores")
                yield start, values.to_numpy(zero_copy_only=False).reshape(len(column), self.num_classes)
                start += len(column)
            if start != self.num_videos:
                raise self.refusal(f"{start:,} rows could be read, {self.num_videos:,} are announced: it is damaged")

    def _columns(self) -> Iterator[Any]:
        """Yield the scores piece by piece: small row groups are decoded ahead, large ones are read in batches."""
        with self._reader() as reader:
            facts = reader.metadata
            groups = range(facts.num_row_groups)
            if max((facts.row_group(group).total_byte_size for group in groups), default=0) > _GROUP_READ_AHEAD:
                # One at a time: asked for all, the reader would keep the raw bytes of the whole file.
                for group in groups:
                    batches = reader.iter_batches(BLOCK_ROWS, [group], ["scores"], use_threads=False)
                    yield from (batch.column(0) for batch in batches)
                return

        def decode(group: int) -> list[Any]:
            with self._reader() as reader:
                chunks: list[Any] = reader.read_row_group(group, ["scores"], use_threads=False).column(0).chunks
            return chunks

        with ThreadPoolExecutor(_DECODERS) as pool:
            pending: deque[Future[list[Any]]] = deque()
            for group in groups:
                pending.append(pool.submit(decode, group))
                if len(pending) > _DECODERS:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
