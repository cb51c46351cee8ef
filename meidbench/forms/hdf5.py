"""Prediction files in HDF5, read by a process of its own."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meidbench.errors import PredictionError
from meidbench.forms.base import BLOCK_ROWS, PredictionFile, Scores

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from meidbench.forms.hdf5_scores import main; main(sys.argv[2])"
)
HDF5_SECONDS = 60.0  # without a sign of life of the process that reads


class Hdf5File(PredictionFile):
    """Datasets ``video_ids`` (n,) string and ``scores`` (n, C) in the root group; read by another process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _Hdf5Process(self) as facts:
            pass
        self.num_videos, self.num_classes = facts.shape
        self.dtype = facts.dtype

    def _read_ids(self) -> list[str]:
        with _Hdf5Process(self) as process:
            return process.read_ids()

    def blocks(self) -> Iterator[tuple[int, Scores]]:  # noqa: D102 - as in the base class
        with _Hdf5Process(self) as process:
            self.__dict__["video_ids"] = process.read_ids()
            width = self.dtype.itemsize * self.num_classes
            for start in range(0, self.num_videos, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, self.num_videos - start)
                block = np.frombuffer(process.read(rows * width), dtype=self.dtype)
                yield start, block.reshape(rows, self.num_classes)
            process.answer("end")


class _Hdf5Process:
    """Runs ``meidbench.forms.hdf5_scores`` and ends it where it hangs; what goes wrong becomes a refusal."""

    def __init__(self, file: Hdf5File) -> None:
        self.file = file

    def __enter__(self) -> "_Hdf5Process":
        # With the module search path of this process: a module in the working directory must not stand in for another.
        search = json.dumps([folder for folder in sys.path if folder])
        command = [sys.executable, "-c", _START, search, str(self.file.path.absolute())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.expired = False
        try:
            facts = self.answer("videos", "classes", "dtype")
        except BaseException:
            self._end()
            raise
        self.shape = facts["videos"], facts["classes"]
        self.dtype = np.dtype(facts["dtype"])
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _expire(self) -> None:
        self.expired = True
        self.process.kill()

    def _watched(self, read: Callable[[], bytes]) -> bytes:
        """Read from the process, which is ended if it stays silent for too long."""
        timer = threading.Timer(HDF5_SECONDS, self._expire)
        timer.start()
        try:
            return read()
        finally:
            timer.cancel()

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        stream = self.process.stdout
        assert stream is not None
        raw = self._watched(lambda: stream.read(size))
        if len(raw) < size:
            # An error in the middle is told in the last line, after fewer bytes than were announced.
            tail = raw[raw.rfind(b'{"error"') :] if b'{"error"' in raw else b""
            raise self._failure(tail)
        return raw

    def answer(self, *keys: str) -> dict[str, Any]:
        """Return the next line, which must have these keys."""
        stream = self.process.stdout
        assert stream is not None
        line = self._watched(stream.readline)
        try:
            content = json.loads(line)
        except ValueError:
            raise self._failure(line) from None
        if set(content) != set(keys):
            raise self._failure(line)
        return dict(content)

    def read_ids(self) -> list[str]:
        """Ask for the ids, which come before the scores."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"go on\n")
            self.process.stdin.flush()
        except OSError:
            raise self._failure(b"") from None
        ids: list[str] = self.answer("ids")["ids"]
        return ids

    def _failure(self, line: bytes) -> PredictionError:
        if self.expired:
            return self.file.refusal(f"the HDF5 library found no end in {HDF5_SECONDS:.0f} s: it is damaged")
        try:
            return self.file.refusal(str(json.loads(line)["error"]))
        except (ValueError, KeyError, TypeError):
            return self.file.refusal("not a readable HDF5 file: the HDF5 library failed on it")
