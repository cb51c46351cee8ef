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
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from meidbench.errors import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def written_whole(path: Path, *, hold: bool = True) -> Iterator[Path]:
    """Give a temporary path and move the file to ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never half of it; after an error the old one is untouched. The new file
    gets the mode of the old one and, where the system permits it, its owner. A symbolic link stays, its target is
    replaced. Devices, FIFOs and descriptors such as ``/dev/stdout`` stay, too: the bytes are copied into them.

    The temporary file is locked, and temporary files of this output that no process holds are removed. Without
    ``hold`` it is not locked: for HDF5, which has locks of its own, where the caller holds a lock of the output.

    Raises
    ------
    OutputError
        The file cannot be written. The message names ``path``, not the temporary file.
    """
    target = place = path
    try:
        target, through = resolve_output(path), is_written_through(path)
        place = Path(tempfile.gettempdir(), path.name) if through else target
        make_parent(place)
        remove_stale(place)
        with _create_temporary(place, hold, private=through or place.exists()) as temporary:
            yield temporary
            if through:
                _copy_into(path, temporary)
            else:
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())  # or a loss of power could leave an empty file under the new name
                replace_file(temporary, target)
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        is_temporary = named is not None and _temporary_names(place).fullmatch(named.name)
        if named not in (None, path, target) and not is_temporary:
            raise  # the block reads another file
        raise _unwritable(path, error) from None


def resolve_output(path: Path, *, regular: bool = False) -> Path:
    """Return the file that is to be written for ``path``: the target of a symbolic link, or the path itself.

    ``OutputError`` for a folder, a read-only file and, with ``regular``, a device, a FIFO or a descriptor.
    """
    if (found := find_stat(path)) and stat.S_ISDIR(found.st_mode):
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    if is_written_through(path):
        if regular:
            raise OutputError(f"cannot write {path}: it is no regular file, and an interrupted run could not resume it")
        return path
    if found and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: the file is read-only; name another file, or change its mode")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def make_parent(path: Path) -> None:
    """Make the folder of an output; ``OutputError`` names the output where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error, path.parent) from None


def replace_file(temporary: Path, target: Path) -> None:
    """Give a file its final name, and the mode and the owner of the file that it replaces."""
    with suppress(FileNotFoundError):
        old, new = target.stat(), temporary.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            try:
                os.chown(temporary, old.st_uid, old.st_gid)
            except PermissionError:  # only root gives files away, but the group may be one of the user's
                with suppress(PermissionError):
                    os.chown(temporary, -1, old.st_gid)
        if (mode := stat.S_IMODE(old.st_mode)) != stat.S_IMODE(temporary.stat().st_mode):
            with suppress(PermissionError):  # of a file system without modes, which must not cost the result
                temporary.chmod(mode)  # last, because a new owner resets a part of the mode
    temporary.replace(target)


def find_stat(path: Path | int) -> os.stat_result | None:
    """Return the facts about a file or an open descriptor, None where there is no such file."""
    try:
        return os.stat(path)  # noqa: PTH116 - a descriptor is no path
    except OSError:
        return None


def is_written_through(path: Path) -> bool:
    """Return whether a path is a descriptor, or exists and is neither a regular file nor a folder."""
    if (found := find_stat(path)) is None or stat.S_ISDIR(found.st_mode):
        return False
    return not stat.S_ISREG(found.st_mode) or _find_descriptor(path) is not None


def _find_descriptor(path: Path) -> int | None:
    """Return N where a path leads, through links, to ``/dev/fd/N`` or ``/proc/self/fd/N``."""
    for _ in range(40):  # a system follows no more links
        folder = os.path.realpath(path.parent)
        if re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd", folder) and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _copy_into(path: Path, source: Path) -> None:
    """Copy the bytes of a file into a device, a FIFO or a descriptor."""
    descriptor = _find_descriptor(path)
    for stream in (sys.stdout, sys.stderr):
        if descriptor is not None and stream is not None:
            stream.flush()  # so that earlier text comes before these bytes
    opened = os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
    with source.open("rb") as given, os.fdopen(opened, "wb") as sink:
        shutil.copyfileobj(given, sink)


def _temporary_names(place: Path) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{12}}")


def remove_stale(place: Path) -> None:
    """Remove the temporary files of an output whose processes were killed; a living process holds a lock."""
    form = _temporary_names(place)
    with suppress(OSError):
        for path in [entry for entry in place.parent.iterdir() if form.fullmatch(entry.name)]:
            # A file system may lack locks, or the file be another user's; on Windows an open file cannot be removed.
            with suppress(OSError), path.open("rb") as stream:
                if _try_lock(stream.fileno()):
                    path.unlink()


@contextmanager
def _create_temporary(place: Path, hold: bool, private: bool) -> Iterator[Path]:
    """Create a file beside ``place``, hold its lock, and remove it at the end unless it was renamed.

    Unlike one of ``tempfile.mkstemp`` it has the usual mode; a private one gets the mode of another file later.
    """
    while True:
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600 if private else 0o666)
        try:
            with os.fdopen(descriptor, "rb+") as file:
                if sys.platform == "win32":
                    file.close()  # an open file cannot be renamed there, nor removed by others
                elif hold and not _hold(descriptor, temporary):
                    continue
                yield temporary
                return
        finally:
            temporary.unlink(missing_ok=True)


def _hold(descriptor: int, temporary: Path) -> bool:
    """Lock a new file; return whether no other process took it for a stale one before that."""
    with suppress(OSError):  # a file system without locks, where nothing is taken for stale
        return _try_lock(descriptor) and temporary.exists()
    return True


def _unwritable(path: Path, error: OSError, folder: Path | None = None) -> OutputError:
    """Describe a failure to write an output; ``folder`` is the one that could not be used."""
    reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
    where = f"{folder}: {reason}" if folder is not None else reason
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "; make room, or choose another place"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and folder is None:
        remedy = f": its folder {path.parent} cannot be written to; choose another place"
    else:
        remedy = ""
    found = find_stat(path)
    old = " (the old file is unchanged)" if found and stat.S_ISREG(found.st_mode) else ""
    return OutputError(f"cannot write {path}: {where}{remedy}{old}")


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


@contextmanager
def locked(target: Path, when_taken: Callable[[], None]) -> Iterator[None]:
    """Lock a file in an existing folder against other processes; wait while another process holds the lock.

    ``when_taken`` is called once if another process holds it, to report this or to raise an error instead of waiting.
    """
    # The lock is that of the operating system, not the presence of a file, so it ends with its process.
    path = target.with_name(f".{target.name}.lock")
    reported = False
    while True:
        try:
            file = path.open("ab")
        except OSError as error:
            raise _unwritable(target, error) from None
        with file:
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
    """Let another process read the index of an HDF5 file, and some datasets whole; ``NAME/`` is the index of a group.

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
            if name.endswith("/"):
                for _ in _read_members(dataset) if isinstance(dataset, h5py.Group) else ():
                    yield
            elif isinstance(dataset, h5py.Dataset) and dataset.shape:
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
