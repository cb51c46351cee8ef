"""A watched process that reads foreign HDF5 files first, because a damaged file can hang or crash the HDF5 library.

A process cannot catch its own hang or crash. A second process therefore reads a file that another program wrote, and
only then does this one. The second process imports h5py and numpy only and serves all files.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HDF5_SECONDS = 60.0  # without a sign of life of the second process

_BLOCK_BYTES = 1 << 25
_MEMORY = 5 << 29  # bytes of addresses; the libraries take some hundred million of them
# The child has the module search path of its parent: a module in the working directory must not replace another one.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from meidbench.hdf5_guard import main; main()"

_lock = threading.Lock()
_process: "subprocess.Popen[bytes] | None" = None


def rehearse(path: Path, datasets: Sequence[str] = ()) -> str:
    """Let another process read the index of an HDF5 file, and some datasets whole.

    Parameters
    ----------
    path : Path
    datasets : sequence of str
        Names in the root group. Names that the file does not have are left out.

    Returns
    -------
    str
        Why the file or a dataset cannot be read; empty where it can. Objects of the index that cannot be read are not
        reported: they may not be needed.

    Examples
    --------
    >>> import tempfile, h5py
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(Path(folder, "a.h5"), "w") as file:
    ...         file["scores"] = [[1.0, 2.0]]
    ...     rehearse(Path(folder, "a.h5"), ["scores"])
    ''
    """
    global _process
    request = json.dumps([str(path.absolute()), list(datasets)]).encode() + b"\n"
    with _lock:
        if _process is None or _process.poll() is not None:
            _process = _start()
        silent_since = time.monotonic()
        try:
            assert _process.stdin is not None
            _process.stdin.write(request)
            _process.stdin.flush()
            while (answer := _read_line(_process)) is None:
                silent_since = time.monotonic()
        except (OSError, ValueError):
            _stop()
            if time.monotonic() - silent_since >= HDF5_SECONDS:
                return f"the HDF5 library found no end in {HDF5_SECONDS:.0f} s: it is damaged"
            return "not a readable HDF5 file: the HDF5 library failed on it"
        except BaseException:
            _stop()
            raise
        return answer


def _start() -> "subprocess.Popen[bytes]":
    search = json.dumps([folder for folder in sys.path if folder])
    command = [sys.executable, "-I", "-c", _PROGRAM, search]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _read_line(process: "subprocess.Popen[bytes]") -> str | None:
    """Return the answer, or None for a sign of life; a process that stays silent is ended."""
    assert process.stdout is not None
    timer = threading.Timer(HDF5_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    try:
        answer: str | None = json.loads(process.stdout.readline())
    finally:
        timer.cancel()
    return answer


@atexit.register
def _stop() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


def _forget() -> None:
    """After a fork: the second process answers the parent alone."""
    global _process, _lock
    _process, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def main() -> None:
    """Read the files that are asked for on stdin; write a JSON line per sign of life (null) and per answer."""
    _limit_memory()
    import h5py  # noqa: F401 - before the first sign of life, because it takes long

    _answer(None)
    for line in sys.stdin:
        path, datasets = json.loads(line)
        problem = ""
        shown = time.monotonic()
        try:
            for _ in _steps(path, datasets):
                if time.monotonic() - shown > 1:
                    _answer(None)
                    shown = time.monotonic()
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            problem = f"not a readable HDF5 file: {reason}"
        _answer(problem)


def _answer(problem: str | None) -> None:
    sys.stdout.write(json.dumps(problem) + "\n")
    sys.stdout.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard))


def _steps(path: str, datasets: list[str]) -> Iterator[None]:
    """Read a file step by step: all objects of the root group and of its groups, then the datasets."""
    import h5py

    with h5py.File(path, "r") as file:
        for found in _members(file):
            yield
            if isinstance(found, h5py.Group):
                for _ in _members(found):
                    yield
        for name in datasets:
            dataset = file.get(name)
            if isinstance(dataset, h5py.Dataset) and dataset.shape:
                width = max(dataset.dtype.itemsize * dataset.size // max(len(dataset), 1), 1)
                rows = max(_BLOCK_BYTES // width, 1)
                for start in range(0, len(dataset), rows):
                    dataset[start : start + rows]
                    yield


def _members(group: Any) -> Iterator[Any]:
    """Yield the objects of a group after their attributes, shape and type were read."""
    for name in group:
        try:
            found = group[name]
            dict(found.attrs)
            _ = [getattr(found, fact, None) for fact in ("shape", "dtype", "chunks")]
        except (OSError, ValueError, KeyError, RuntimeError, TypeError):
            continue  # the parent refuses it, or never asks for it
        yield found
