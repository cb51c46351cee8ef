"""Work done in threads before it is asked for, and memory that is lent out until nobody looks at it."""

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")

# One gathers while the other draws rows and labels; more would only contend for the same memory.
_THREADS = 2
_THREAD_NAME = "meidbench-read-ahead"


class ReadAhead(Generic[Job, Item, Result]):
    """An iterator over what jobs give, which threads work on a few jobs ahead; the order stays.

    The threads end with the last job, with ``close``, when the iterator is no longer referred to, and when Python
    exits. An exception in a job is raised where its item would have come, and is the end.

    Parameters
    ----------
    jobs : iterable
    work : callable
        From a job to an item; called in a thread, for two jobs at a time.
    hand_over : callable
        From an item to what the iterator gives; called by whoever iterates.
    ahead : int
        Jobs that are begun before they are asked for; with 0 there is no thread.

    Examples
    --------
    >>> list(ReadAhead([1, 2, 3], lambda job: job * 10, str, ahead=2))
    ['10', '20', '30']
    """

    def __init__(
        self, jobs: Iterable[Job], work: Callable[[Job], Item], hand_over: Callable[[Item], Result], ahead: int
    ) -> None:
        self._jobs = iter(jobs)
        self._work = work
        self._hand_over = hand_over
        self._ahead = ahead
        self._begun: deque[Future[Item]] = deque()
        self._threads = ThreadPoolExecutor(max(min(ahead, _THREADS), 1), _THREAD_NAME)
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end, self._threads, os.getpid())

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        try:
            return self._hand_over(self._next_item())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the threads and wait until they are gone; there is nothing more to come then."""
        self._jobs = iter(())
        self._begun.clear()
        self._end()
        if self._owner == os.getpid():
            self._threads.shutdown(wait=True)

    def _next_item(self) -> Item:
        if self._ahead == 0:
            return self._work(next(self._jobs))
        for job in islice(self._jobs, self._ahead - len(self._begun)):
            self._begun.append(self._threads.submit(self._work, job))
        if not self._begun:
            raise StopIteration
        item = self._begun.popleft().result()
        for job in islice(self._jobs, 1):
            self._begun.append(self._threads.submit(self._work, job))
        return item


def _end(threads: ThreadPoolExecutor, owner: int) -> None:
    # After a fork there are no such threads in the child.
    if owner == os.getpid():
        # Never waits: the garbage collector runs in any thread, which may hold a lock that a worker needs.
        threads.shutdown(wait=False, cancel_futures=True)


class LentMemory:
    """Buffers that are lent as tensors, and lent again once no tensor or array shows them any more.

    To reuse memory is several times faster than to allocate it anew, which for large blocks means that the
    system clears every page first. A tensor that is kept stays as it is: its buffer is not lent meanwhile, and others
    are allocated in its stead.

    Parameters
    ----------
    num_bytes : int
        Size of each buffer.
    kept : int
        Buffers that are kept while nobody uses them.
    pinned : bool
        Whether they are page-locked, for copies to a CUDA device.

    Examples
    --------
    >>> memory = LentMemory(1 << 10, kept=2)
    >>> first = memory.lend((2, 3), torch.float32).zero_()
    >>> place, part = first.data_ptr(), first[1]
    >>> del first
    >>> memory.lend((4,), torch.float16).data_ptr() == place  # a part of it is still in use
    False
    >>> del part
    >>> memory.lend((4,), torch.float16).data_ptr() == place
    True
    """

    def __init__(self, num_bytes: int, kept: int, pinned: bool = False) -> None:
        self._num_bytes = num_bytes
        self._pinned = pinned
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=kept)

    def lend(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor with arbitrary values; it needs no more than the bytes of a buffer."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._allocated()
        # The tensor and all of its views keep this array alive, which is an object of its own, and nothing else does.
        loan = buffer[: int(np.prod(shape)) * dtype.itemsize]
        weakref.finalize(loan, self._free.append, buffer).atexit = False
        return torch.from_numpy(loan).view(dtype).view(*shape)

    def _allocated(self) -> npt.NDArray[np.uint8]:
        if self._pinned:
            return torch.empty(self._num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True).numpy()
        return np.empty(self._num_bytes, np.uint8)
