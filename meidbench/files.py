"""Files: written as a whole or not at all, recognised by their digest, locked; JSON text; foreign HDF5 files.

A damaged file can hang or crash the HDF5 library, and a process cannot catch its own crash. A second process therefore
reads an HDF5 file that another program wrote, and only then does this one. It imports h5py alone and serves all files.
"""

import atexit
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it into place when the block ends without an error.

    A reader sees the old file or the new one, never half of it; after an error the old one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unlike tempfile.mkstemp, which makes private files, this gives the file the usual mode.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    temporary.open("xb").close()
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # or a loss of power could leave an empty file under the new name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(path: Path) -> "hashlib._Hash":
    """Return the sha256 of a file, which more bytes can be added to."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    return hash_file(path).hexdigest()


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def irregular_kind(path: Path | int) -> str:
    """Return what lies at a path, or behind a descriptor, if it is no regular file; reading it could last for ever.

    Empty for a regular file, for a link to one, and where nothing exists.
    """
    try:
        facts = os.fstat(path) if isinstance(path, int) else path.stat()
        return _KINDS.get(stat.S_IFMT(facts.st_mode), "")
    except OSError:
        return ""


@contextmanager
def locked(target: Path, when_taken: Callable[[], None]) -> Iterator[None]:
    """Lock a file in an existing folder against other processes; wait while another process holds the lock.

    ``when_taken`` is called once if another process holds it, to report this or to raise an error instead of waiting.
    """
    # The lock is that of the operating system, not the presence of a file, so it ends with its process.
    path = target.with_name(f".{target.name}.lock")
    reported = False
    while True:
        with path.open("ab") as file:
            if _try_lock(file.fileno()):
                # The former holder may have deleted the file between our open and our lock.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    try:
                        yield
                    finally:
                        with suppress(OSError):  # Windows does not delete an open file, so the empty file stays
                            path.unlink()
                    return
                continue
        if not reported:
            when_taken()
            reported = True
        time.sleep(0.05)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise  # a file system without locks
    return True


def render_json(content: Any) -> str:
    """Return content as JSON text with sorted keys, the same for the same content; NaN becomes null."""
    text = json.dumps(_without_nan(content), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


HDF5_SECONDS = 60.0  # without a sign of life of the second process

_BLOCK_BYTES = 1 << 25
_REHEARSER_MEMORY = 5 << 29  # bytes of addresses; the libraries take some hundred million of them
# The child has the module search path of its parent: a module in the working directory must not replace another one.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from meidbench.files import answer_rehearsals; answer_rehearsals()"
)

_rehearser_lock = threading.Lock()
_rehearser: "subprocess.Popen[bytes] | None" = None


def rehearse(path: Path, datasets: Sequence[str] = ()) -> str:
    """Let another process read the index of an HDF5 file, and some datasets of the root group whole.

    Return why the file or a dataset cannot be read; empty where it can. Datasets that the file does not have, and
    objects of the index that cannot be read, are not reported: they may not be needed.

    Examples
    --------
    >>> import tempfile, h5py
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(Path(folder, "a.h5"), "w") as file:
    ...         file["scores"] = [[1.0, 2.0]]
    ...     rehearse(Path(folder, "a.h5"), ["scores"])
    ''
    """
    global _rehearser
    request = json.dumps([str(path.absolute()), list(datasets)]).encode() + b"\n"
    with _rehearser_lock:
        if _rehearser is None or _rehearser.poll() is not None:
            search = json.dumps([folder for folder in sys.path if folder])
            command, pipe = [sys.executable, "-I", "-c", _PROGRAM, search], subprocess.PIPE
            _rehearser = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        silent_since = time.monotonic()
        try:
            assert _rehearser.stdin is not None
            _rehearser.stdin.write(request)
            _rehearser.stdin.flush()
            while (answer := _read_line(_rehearser)) is None:
                silent_since = time.monotonic()
        except (OSError, ValueError):
            _stop_rehearser()
            if time.monotonic() - silent_since >= HDF5_SECONDS:
                return f"the HDF5 library found no end in {HDF5_SECONDS:.0f} s: it is damaged"
            return "not a readable HDF5 file: the HDF5 library failed on it"
        except BaseException:
            _stop_rehearser()
            raise
        return answer


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
def _stop_rehearser() -> None:
    global _rehearser
    if _rehearser is not None:
        _rehearser.kill()
        _rehearser.communicate()
        _rehearser = None


def _forget_rehearser() -> None:
    """After a fork: the second process answers the parent alone."""
    global _rehearser, _rehearser_lock
    _rehearser, _rehearser_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_rehearser)


def answer_rehearsals() -> None:
    """Read the files that are asked for on stdin; write a JSON line per sign of life (null) and per answer."""
    _limit_memory()
    import h5py  # noqa: F401 - before the first sign of life, because it takes long

    _answer(None)
    for line in sys.stdin:
        path, datasets = json.loads(line)
        problem, shown = "", time.monotonic()
        try:
            for _ in _read_in_steps(path, datasets):
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
    soft = _REHEARSER_MEMORY if hard == resource.RLIM_INFINITY else min(_REHEARSER_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _read_in_steps(path: str, datasets: list[str]) -> Iterator[None]:
    """Read a file step by step: all objects of the root group and of its groups, then the datasets."""
    import h5py

    with h5py.File(path, "r") as file:
        for found in _read_members(file):
            yield
            if isinstance(found, h5py.Group):
                for _ in _read_members(found):
                    yield
        for name in datasets:
            dataset = open_inside(file, name)
            if isinstance(dataset, h5py.Dataset) and dataset.shape:
                width = max(dataset.dtype.itemsize * dataset.size // max(len(dataset), 1), 1)
                rows = max(_BLOCK_BYTES // width, 1)
                for start in range(0, len(dataset), rows):
                    dataset[start : start + rows]
                    yield


def _read_members(group: Any) -> Iterator[Any]:
    """Yield the objects of a group that lie in its file; their shapes and types are read."""
    for name in group:
        try:
            found = open_inside(group, name)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError):
            continue  # the parent refuses it, or never asks for it
        yield found


LARGEST_CHUNK = 1 << 28  # bytes of one compressed piece of a dataset; sound writers make much smaller ones


def open_inside(group: Any, name: str, hops: int = 8) -> Any:
    """Return an object of an HDF5 group that lies in the group's file with all its bytes; None where it is absent.

    No other file is opened on the way. Soft links are followed, up to ``hops`` of them, where they stay in the file.

    Raises
    ------
    OSError
        A link leads to another file; the numbers of a dataset lie in other files, or this file is too small for them.
    """
    import h5py

    found = group.file if name.startswith("/") else group
    for part in filter(None, name.split("/")):
        key = part.encode(errors="surrogateescape")
        if not isinstance(found, h5py.Group) or not found.id.links.exists(key):
            return None
        link = found.id.links.get_info(key).type
        if link == h5py.h5l.TYPE_SOFT:
            if not hops:
                raise OSError(f"{name} is a link of too many steps")
            found = open_inside(found, found.id.links.get_val(key).decode(errors="surrogateescape"), hops - 1)
        elif link == h5py.h5l.TYPE_HARD:
            opened = h5py.h5o.open(found.id, key)  # several times as fast as found[part]
            if isinstance(opened, h5py.h5d.DatasetID):
                _refuse_storage_elsewhere(opened, name)
                found = h5py.Dataset(opened)
            else:
                found = h5py.Group(opened) if isinstance(opened, h5py.h5g.GroupID) else found[part]
        else:
            raise OSError(f"{name} is a link to another file; numbers are read from the file itself alone")
    return found


def _refuse_storage_elsewhere(dataset: Any, name: str) -> None:
    from h5py import h5d, h5i

    plan, shape = dataset.get_create_plist(), dataset.shape
    layout = plan.get_layout()
    if layout == h5d.VIRTUAL or plan.get_external_count():
        raise OSError(f"{name} keeps its numbers in other files; copy them into the file itself")
    itemsize = dataset.dtype.itemsize
    needed = itemsize * math.prod(shape or (0,))
    if not needed or layout == h5d.COMPACT:
        return
    if layout == h5d.CHUNKED:
        chunk = plan.get_chunk()
        if (size := itemsize * math.prod(chunk)) > LARGEST_CHUNK:
            raise OSError(f"{name} is kept in pieces of {size:,} bytes: it is damaged")
        expected = math.prod(-(-side // part) for side, part in zip(shape, chunk, strict=True))
        if (there := dataset.get_num_chunks()) != expected:
            raise OSError(f"{name} of shape {shape} needs {expected:,} pieces, the file holds {there:,} of them")
        return
    offset, size = dataset.get_offset(), h5i.get_file_id(dataset).get_filesize()
    if offset is None or offset + needed > size:
        held = 0 if offset is None else max(size - offset, 0)
        raise OSError(f"{name} of shape {shape} takes {needed:,} bytes, the file holds {held:,} of them")
