"""What every form of prediction file has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import PredictionError

BLOCK_ROWS = 8192
LONGEST_ID = 1 << 10  # bytes

Scores = npt.NDArray[Any]


class PredictionFile(ABC):
    """An opened prediction file.

    Attributes
    ----------
    path : Path
    num_videos, num_classes : int
    dtype : dtype
        Of the scores.
    metadata : dict
        What the file says of itself.
    class_names : list of str or None
        Where the file names its classes.
    """

    path: Path
    num_videos: int
    num_classes: int
    dtype: np.dtype[Any]
    metadata: dict[str, Any]
    class_names: list[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = {}

    def refusal(self, problem: str) -> PredictionError:
        """Return an error that names the file."""
        return PredictionError(f"{self.path}: {problem}")

    @cached_property
    def video_ids(self) -> list[str]:
        """Ids in the file's order."""
        return self._read_ids()

    @abstractmethod
    def _read_ids(self) -> list[str]:
        """Read the ids."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Scores]]:
        """Yield the first row of each block and its scores (rows, C), in the file's order."""

    def check_dtype(self) -> None:
        """Refuse scores that are no real numbers."""
        if self.dtype.kind not in "fiu" or self.dtype.itemsize > 8:
            raise self.refusal(f"the scores are of type {self.dtype}; expected real numbers of at most 64 bits")
