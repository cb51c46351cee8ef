"""The base class of all forms of prediction files, and text with one line per video."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError

BLOCK_ROWS = 8192
LONGEST_ID = 1 << 10  # bytes
LONGEST_LINE = 1 << 24  # characters of a text file: the scores of some hundred thousand classes

Scores = npt.NDArray[Any]


class PredictionFile(ABC):
    """An opened prediction file: ``metadata`` has the facts that it states about itself, ``dtype`` is of the scores."""

    num_videos: int
    num_classes: int
    dtype: np.dtype[Any]
    class_names: list[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}

    def refusal(self, problem: str) -> PredictionError:
        """Return an error that names the file."""
        return PredictionError(f"{self.path}: {problem}")

    @contextmanager
    def refusing(self, form: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
        """Turn the errors of a library into a refusal."""
        try:
            yield
        except PredictionError:
            raise
        except errors as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self.refusal(f"not a readable {form}: {reason}") from None

    @cached_property
    def video_ids(self) -> list[str]:
        """Ids in the file's order."""
        return self._read_ids()

    @abstractmethod
    def _read_ids(self) -> list[str]:
        """Read what ``video_ids`` keeps."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Scores]]:
        """Yield the first row of each block and its scores (rows, C), in the file's order."""

    def check_dtype(self) -> None:
        """Refuse scores that are not real numbers."""
        if self.dtype.kind not in "fiu" or self.dtype.itemsize > 8:
            raise self.refusal(f"the scores are of type {self.dtype}; expected real numbers of at most 64 bits")


class TableFile(PredictionFile):
    """Text with one line per video: CSV with a header, or the official Charades form ``ID s1 ... sC``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dtype = np.dtype(np.float64)
        self.has_commas = False
        first = next(self._lines(), None)
        if first is None:
            raise self.refusal("it holds no line")
        self.is_csv = first[1][0].strip().lower() == "video_id"
        self.num_classes = len(first[1]) - 1
        if self.is_csv:
            header = [name.strip() for name in first[1][1:]]
            forms = ([f"c{index:03d}" for index in range(len(header))], [str(index) for index in range(len(header))])
            self.class_names = None if header in forms else header
        elif self.has_commas or not _is_number(first[1][-1]) or self.num_classes < 1:
            start = " ".join(first[1])[:40]
            expected = "neither a CSV header (video_id, then the classes) nor 'ID s1 ... sC'"
            raise self.refusal(f"its first line {start!r} is {expected}")
        self._ids = [cells[0] for _, cells in islice(self._lines(), int(self.is_csv), None)]
        self.num_videos = len(self._ids)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the cells of each line that is not blank."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                start = stream.readline(1 << 20)
                stream.seek(0)
                self.has_commas = "," in start
                lines = self._limited(stream)
                if self.has_commas:
                    reader = csv.reader(lines, strict=True)
                    yield from ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
                else:
                    yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        except (UnicodeDecodeError, csv.Error) as error:
            remedy = "Of a pickle or a .npy, write a file with meidbench.write_predictions(path, video_ids, scores)"
            raise self.refusal(f"neither Parquet, NPZ or HDF5 nor readable text: {error}. {remedy}") from None

    def _limited(self, stream: TextIO) -> Iterator[str]:
        """Yield the lines of a file; refuse one that would fill the memory before its scores could be counted."""
        while line := stream.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise self.refusal(f"a line has {LONGEST_LINE:,} characters or more: it is damaged")
            yield line

    def _read_ids(self) -> list[str]:
        return self._ids

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        lines = islice(self._lines(), int(self.is_csv), None)
        start = 0
        while part := list(islice(lines, BLOCK_ROWS)):
            scores = np.empty((len(part), self.num_classes))
            for row, (number, cells) in enumerate(part):
                line = f"line {number} ({cells[0]})"
                if len(cells) != self.num_classes + 1:
                    raise self.refusal(f"{line} has {len(cells) - 1:,} scores, expected {self.num_classes:,}")
                try:
                    if any("_" in cell for cell in cells[1:]):  # Python would read 1_0 as 10
                        raise ValueError
                    scores[row] = cells[1:]
                except ValueError:
                    wrong = next((cell for cell in cells[1:] if not _is_number(cell)), "")
                    raise self.refusal(f"{line}: {wrong[:40]!r} is not a number") from None
            yield start, scores
            start += len(part)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
