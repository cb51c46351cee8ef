"""Files on disk: written whole or not at all, and recognised by their digest."""

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
    # Not tempfile.mkstemp, which makes private files: this one gets the mode of any other that is written.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    temporary.open("xb").close()
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # or a loss of power could leave an empty file under the new name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(target: Path, when_taken: Callable[[], None]) -> Iterator[None]:
    """Hold a file and its part file against other processes; wait while one has them.

    Parameters
    ----------
    target : Path
        What is to be written; need not exist, its folder must.
    when_taken : callable
        Called once where another process has it; it may say so, or raise instead of waiting.
    """
    # The lock is not the mere presence of a file: it ends with its holder, however that dies.
    path = target.with_name(f".{target.name}.lock")
    told = False
    while True:
        with path.open("ab") as file:
            if _try_lock(file.fileno()):
                # The former holder may have deleted the file between our open and our lock.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    try:
                        yield
                    finally:
                        with suppress(OSError):  # Windows does not delete what is open; the empty file stays
                            path.unlink()
                    return
                continue
        if not told:
            when_taken()
            told = True
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
        raise  # a file system without locks: better refused than unguarded
    return True
