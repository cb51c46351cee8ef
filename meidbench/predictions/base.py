"""The base class of all forms of prediction files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
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
        Facts that the file states about itself; may be empty.
    class_names : list of str or None
        Where the file names its classes.
    """

    path: Path
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
        """Read the ids."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Scores]]:
        """Yield the first row of each block and its scores (rows, C), in the file's order."""

    def check_dtype(self) -> None:
        """Refuse scores that are not real numbers."""
        if self.dtype.kind not in "fiu" or self.dtype.itemsize > 8:
            raise self.refusal(f"the scores are of type {self.dtype}; expected real numbers of at most 64 bits")
