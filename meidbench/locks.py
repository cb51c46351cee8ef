"""One writer a file: a lock that belongs to the operating system, so nothing stale ever bars the way."""

import errno
import os
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
