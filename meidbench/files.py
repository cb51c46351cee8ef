"""Files on disk: written as a whole or not at all, recognised by their digest, and locked."""

import errno
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


@contextmanager
def locked(target: Path, when_taken: Callable[[], None]) -> Iterator[None]:
    """Lock a file and its part file against other processes; wait while another process holds the lock.

    Parameters
    ----------
    target : Path
        The file to be written; it need not exist, but its folder must.
    when_taken : callable
        Called once if another process holds the lock; it may report this, or raise an error instead of waiting.
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
