"""Reads an HDF5 prediction file; runs in a process of its own.

The HDF5 library can loop for ever, or crash, on a damaged file, and neither can be caught from within; so the file is
read here, and ``meidbench.predictions.arrays`` watches from outside. To stdout go a line of JSON (shape and type, or an
error), a line of JSON with the ids, and the scores, row by row, as raw bytes.
"""

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

BLOCK_BYTES = 1 << 25
_LARGEST_CHUNK = 1 << 28  # bytes of one compressed piece; what a sound writer makes is far smaller
_LARGEST_ID = 1 << 10
_MEMORY = 5 << 29  # bytes of addresses, of which the libraries take some hundred million


class _Refusal(Exception):
    """The file is not what it should be."""


def main(path: str) -> None:
    """Write shape, ids and scores of a file to stdout."""
    _limit_memory()
    import h5py

    output = sys.stdout.buffer
    try:
        with h5py.File(Path(path), "r") as file:
            _write(_checked(file, "video_ids"), _checked(file, "scores"), output)
    except _Refusal as refusal:
        _say(output, {"error": str(refusal)})
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _say(output, {"error": f"not a readable HDF5 file: {reason}"})


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard))


def _checked(file: Any, name: str) -> Any:
    import h5py
    import numpy as np

    if name not in file:
        raise _Refusal(f"it lacks {name}; it holds {', '.join(list(file)[:5]) or 'nothing'}")
    # Data kept elsewhere would be read from wherever the file says.
    hard = isinstance(file.get(name, getlink=True), h5py.HardLink)
    found = file[name] if hard else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise _Refusal(f"{name} is not a dataset kept in the file itself")
    chunk = int(np.prod(found.chunks or (0,), dtype=object)) * found.dtype.itemsize
    if chunk > _LARGEST_CHUNK or (name == "video_ids" and found.dtype.itemsize > _LARGEST_ID):
        raise _Refusal(f"{name} is kept in pieces of {max(chunk, found.dtype.itemsize):,} bytes: it is damaged")
    return found


def _write(ids: Any, scores: Any, output: BinaryIO) -> None:
    if scores.ndim != 2 or ids.shape != scores.shape[:1]:
        raise _Refusal(f"video_ids has shape {ids.shape}, scores {scores.shape}; expected (n,) and (n, C)")
    if ids.dtype.kind not in "OS":
        raise _Refusal("video_ids are no strings")
    if scores.dtype.kind not in "fiu" or scores.dtype.itemsize > 8:
        raise _Refusal(f"the scores are of type {scores.dtype}; expected real numbers of at most 64 bits")
    videos, classes = (int(size) for size in scores.shape)
    dtype = scores.dtype.newbyteorder("=")
    _say(output, {"videos": videos, "classes": classes, "dtype": dtype.str})
    # Whoever reads has seen the shape, and ends this process where it makes no sense.
    if sys.stdin.readline().strip() != "go on":
        return
    values = ids.asstr()[:].tolist() if ids.dtype.kind == "O" else [value.decode() for value in ids[:].tolist()]
    _say(output, {"ids": values})
    rows = max(1, BLOCK_BYTES // max(classes * dtype.itemsize, 1))
    for start in range(0, videos, rows):
        output.write(scores[start : start + rows].astype(dtype).tobytes())
    _say(output, {"end": True})


def _say(output: BinaryIO, content: dict[str, Any]) -> None:
    output.write(json.dumps(content).encode() + b"\n")
    output.flush()
