"""Batches of a dataset at memory speed: gathered whole, ahead of time.

``BatchLoader`` draws the positions of an epoch. A ``Prefetcher`` lets threads build the batches.
"""

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from meidbench.checks import one_of, whole_number
from meidbench.errors import FeatureError, first_few
from meidbench.loading.datasets import FeatureDataset, copy_to_device
from meidbench.loading.gathering import DTYPES, BatchGatherer
from meidbench.loading.motion import Indices
from meidbench.names import RESIDENT

# The model, its activations and its optimiser need memory, too.
_RESIDENT_SHARE = 0.6
# One thread gathers while another draws rows and labels; more would only compete for the same memory.
_THREADS = 2

_Batch = TypedDict(
    "_Batch", {"video_id": list[str], "features": Tensor, "labels": Tensor, "index": Tensor, "class": Tensor}
)


class Batch(_Batch, total=False):
    """A batch of a loader: all tensors are on its device.

    ``features`` (B, F, D), ``labels`` (B, C) float32 of 0 and 1, ``index`` (B,) int64 positions in the dataset, and
    ``class`` (B,) int64 the class that a video was drawn for, -1 where it was drawn for no class; with a dataset that
    has motion, ``motion`` (B, F, D) of the dtype of the features.
    """

    motion: Tensor


class BatchLoader:
    """Batches of a dataset, with the same numbers as the dataset gives one by one.

    Iterate over it once per epoch; several iterators may run at the same time. The memory of a batch is used again only
    when no tensor refers to it: ``for batch in loader`` runs in ``prefetch + 2`` buffers, ``list(loader)`` allocates
    all. Contiguous packed files (``meidbench`` writes such files) and features on a device are gathered a whole batch
    at a time; all other sources are read video by video.

    Parameters
    ----------
    dataset, batch_size : FeatureDataset and int
    sampler : iterable, optional
        Positions in the dataset, or pairs (position, class that it was drawn for), for one epoch; all are drawn when an
        epoch begins. Without it, the order of the dataset.
    shuffle, seed : bool and int
        A new order per epoch, which depends only on ``seed`` and the epoch.
    drop_last : bool
        Leave out the videos that do not fill a batch (and, with several processes, a round).
    device, resident : str or torch.device, and str
        Where the tensors are put. ``always`` keeps all rows of the subset in its memory, as stored; ``auto`` does so on
        a CUDA device where they take at most 60 % of the memory that is free when they are first needed; ``never``.
    prefetch : int
        Batches that a thread makes ahead of time; with 0 there is no thread.
    dtype : torch.dtype, optional
        Of the features and of motion: float32 (the default), float16 or bfloat16. A CUDA device receives rows as they
        are stored and converts them.
    rank, world_size : int
        This process takes every ``world_size``-th video of the order, beginning with ``rank``. All processes have the
        same number: where videos are missing, those at the beginning of the order come again (``index`` tells).

    Raises
    ------
    FeatureError
        An argument makes no sense. While iterating: a position or class is outside the dataset, features cannot be
        read (the video is named), or with ``frames=None`` videos of one batch differ in length.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from meidbench.features.simulation import simulate_split
    >>> split = simulate_split((3, 1, 1), num_classes=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for video_id in split.video_ids("train"):
    ...         np.save(f"{folder}/{video_id}.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    ...     data = FeatureDataset(split, "train", features=folder, frames=2)
    ...     for batch in BatchLoader(data, batch_size=2, sampler=[(1, 0), (0, 1), (1, 0)]):
    ...         print(batch["video_id"], tuple(batch["features"].shape), tuple(batch["labels"].shape), batch["class"])
    ['train00001', 'train00000'] (2, 2, 2) (2, 4) tensor([0, 1])
    ['train00001'] (1, 2, 2) (1, 4) tensor([0])
    """

    def __init__(
        self,
        dataset: FeatureDataset,
        batch_size: int,
        *,
        sampler: Iterable[Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        resident: str = "auto",
        prefetch: int = 2,
        dtype: torch.dtype | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.sampler, self.shuffle, self.drop_last = dataset, sampler, shuffle, drop_last
        self.batch_size = whole_number("batch_size", batch_size, 1, FeatureError)
        self.seed = whole_number("seed", seed, 0, FeatureError)
        self.device = torch.device(device)
        if self.device == torch.device("cuda"):
            # Another thread has a current device of its own.
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.prefetch = whole_number("prefetch", prefetch, 0, FeatureError)
        self.dtype = torch.float32 if dtype is None else dtype
        self.world_size = whole_number("world_size", world_size, 1, FeatureError)
        self.rank = whole_number("rank", rank, 0, FeatureError)
        if self.rank >= self.world_size:
            raise FeatureError(f"rank must be less than the {self.world_size} of world_size, got {rank}")
        if sampler is not None and shuffle:
            raise FeatureError("a sampler has an order of its own; leave out shuffle")
        self.resident = one_of("resident", resident, RESIDENT, FeatureError)
        if self.dtype not in DTYPES:
            raise FeatureError(f"unknown dtype {dtype}; known: {', '.join(map(str, DTYPES))}")
        self._start, self._placed = 0, False
        # One batch is being filled, and one is with the user.
        self._gatherer = BatchGatherer(dataset, self.batch_size, self.device, self.dtype, kept=self.prefetch + 2)

    def __repr__(self) -> str:
        return f"<BatchLoader of {self.batch_size} videos per batch, on {self.device}, of {self.dataset!r}>"

    def __len__(self) -> int:
        drawn = len(self.dataset) if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        own = drawn // self.world_size if self.drop_last else math.ceil(drawn / self.world_size)
        return own // self.batch_size if self.drop_last else math.ceil(own / self.batch_size)

    def __iter__(self) -> "Prefetcher[Batch]":
        start, self._start = self._start, 0
        positions, classes = self._order()
        if self.drop_last:
            positions = positions[: len(positions) // self.batch_size * self.batch_size]
        cuts = range(start * self.batch_size, len(positions), self.batch_size)
        jobs = [(positions[cut : cut + self.batch_size], classes[cut : cut + self.batch_size]) for cut in cuts]
        self._place_features()
        # The current epoch: a later set_epoch must not change batches that are already being made.
        return Prefetcher(jobs, partial(self._load, epoch=self.dataset.epoch), _record_stream, self.prefetch)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, other random frames and, of a sampler with ``set_epoch``, other videos.

        The call affects iterators that are made later.
        """
        self.dataset.set_epoch(epoch)
        if (tell := getattr(self.sampler, "set_epoch", None)) is not None:
            tell(epoch)

    def start_at(self, batch: int) -> None:
        """Let the next iteration begin at this batch, counted from 0, without reading earlier ones; once.

        With the epoch set, an epoch that was interrupted after ``batch`` batches continues as if it had not been.
        """
        self._start = whole_number("batch", batch, 0, FeatureError)

    def _order(self) -> tuple[Indices, Indices]:
        """Draw an epoch: positions and classes of this process."""
        if self.sampler is not None:
            positions, classes = self._sampled(list(self.sampler))
        else:
            positions = np.arange(len(self.dataset))
            if self.shuffle:
                sequence = np.random.SeedSequence(self.seed, spawn_key=(self.dataset.epoch,))
                positions = np.random.default_rng(sequence).permutation(len(self.dataset))
            classes = np.full(len(positions), -1)
        rounds = len(positions) / self.world_size
        wanted = (math.floor(rounds) if self.drop_last else math.ceil(rounds)) * self.world_size
        own = np.arange(self.rank, wanted, self.world_size)
        return (positions[own % len(positions)], classes[own % len(positions)]) if len(own) else (own, own)

    def _sampled(self, drawn: Sequence[Any]) -> tuple[Indices, Indices]:
        try:
            table = np.asarray(drawn)
        except ValueError:  # positions and pairs
            table = np.empty(0, object)
        pairs = table.ndim == 2 and table.shape[1] == 2
        if len(drawn) and (table.dtype.kind not in "iu" or not (table.ndim == 1 or pairs)):
            raise FeatureError(
                "a sampler gives positions in the dataset, or pairs (position, class), and not both; "
                f"got {first_few(map(repr, drawn))}"
            )
        table = table.astype(np.int64)
        positions, classes = (table[:, 0], table[:, 1]) if pairs else (table.reshape(-1), np.full(len(drawn), -1))
        limits = (("positions", positions, 0, len(self.dataset)), ("classes", classes, -1, self.dataset.num_classes))
        for name, values, least, end in limits:
            if (outside := values[(values < least) | (values >= end)]).size:
                raise FeatureError(
                    f"{outside.size:,} {name} of the sampler are outside {least} to {end - 1:,}: {first_few(outside)}"
                )
        return positions, classes

    def _place_features(self) -> None:
        """Decide whether features are kept on the device: as late as possible, after the model got its memory."""
        if self._placed:
            return
        counts, dim, stored = self.dataset.num_frames, self.dataset.dim, self._gatherer.stored
        keep = self.resident == "always"
        if self.device.type == "cuda" and self.resident != "never":
            free, _ = torch.cuda.mem_get_info(self.device)
            needed = int(counts.sum()) * (dim * stored.dtype.itemsize + 4 * (stored.dtype == torch.int8))
            if keep and needed > free:
                raise FeatureError(
                    f"the {counts.sum():,} rows of {self.dataset.subset} do not fit into the memory of {self.device}; "
                    "use resident='never'"
                )
            keep = keep or needed <= _RESIDENT_SHARE * free
        if keep:
            self._gatherer.stored = copy_to_device(stored, counts, dim, self.device)
        self._placed = True

    def _load(self, job: tuple[Indices, Indices], *, epoch: int) -> Batch:
        (positions, classes), data = job, self.dataset
        indices = motion_indices = data.frame_rows.select(positions, epoch)
        if data.motion_frame_rows is not data.frame_rows:
            motion_indices = data.motion_frame_rows.select(positions, epoch)
        with self._gatherer.stream.activate():
            # Before the features, behind whose copy they would have to wait.
            labels = data.label_rows(positions).to(self.device)
            index, drawn = (torch.from_numpy(numbers).to(self.device) for numbers in (positions, classes))
            features, motion = self._gatherer.gather(positions, indices, motion_indices)
            ids = [data.video_ids[position] for position in positions.tolist()]
            batch: Batch = {"video_id": ids, "labels": labels, "index": index, "class": drawn, "features": features}
            if motion is not None:
                batch["motion"] = motion
            self._gatherer.stream.synchronize()
            return batch


def _record_stream(batch: Batch) -> Batch:
    """Let the user's stream finish with tensors of another stream before their memory is used again."""
    if batch["features"].is_cuda:
        current = torch.cuda.current_stream(batch["features"].device)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)
    return batch


Result = TypeVar("Result")


class Prefetcher(Generic[Result]):
    """An iterator over the results of jobs, in their order.

    ``work`` makes an item of a job in a thread, for two jobs at a time; ``hand_over`` makes a result of an item in the
    thread that iterates. ``ahead`` jobs are started before they are asked for; with 0 there is no thread. The threads
    end with the last job, with ``close``, when nothing refers to the iterator, and when Python exits. An exception in a
    job is raised in place of its item and ends the iteration.

    FeatureError: a process that was forked asks the iterator of its parent, whose threads it does not have; or a
    thread asks while another thread waits for an item. The iteration of the other one goes on.
    """

    def __init__(
        self, jobs: Iterable[Any], work: Callable[[Any], Any], hand_over: Callable[[Any], Result], ahead: int
    ) -> None:
        self._jobs, self._ahead = iter(jobs), ahead
        self._work, self._hand_over = work, hand_over
        self._started: deque[Future[Any]] = deque()
        self._threads = ThreadPoolExecutor(max(min(ahead, _THREADS), 1), "meidbench-prefetcher")
        self._owner = os.getpid()
        self._is_asked = threading.Lock()
        self._end = weakref.finalize(self, _end, self._threads, self._owner)

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._ahead and self._owner != os.getpid():
            raise FeatureError(
                "this iterator belongs to the process that forked this one; make a new one here (iterate over the "
                "loader), or use prefetch=0"
            )
        if not self._is_asked.acquire(blocking=False):
            raise FeatureError("another thread waits for the next item of this iterator; make one iterator per thread")
        try:
            if self._ahead == 0:
                return self._hand_over(self._work(next(self._jobs)))
            self._submit(self._ahead - len(self._started))
            if not self._started:
                raise StopIteration
            item = self._started.popleft().result()
            self._submit(1)
            return self._hand_over(item)
        except BaseException:
            self.close()
            raise
        finally:
            self._is_asked.release()

    def close(self) -> None:
        """End the threads and wait for them; the iterator is exhausted then."""
        self._jobs = iter(())
        self._started.clear()
        self._end()
        if self._owner == os.getpid():
            self._threads.shutdown(wait=True)

    def _submit(self, count: int) -> None:
        self._started.extend(self._threads.submit(self._work, job) for job in islice(self._jobs, count))


def _end(threads: ThreadPoolExecutor, owner: int) -> None:
    # A forked child has no such threads.
    if owner == os.getpid():
        # Never waits: the garbage collector runs in any thread, which may hold a lock that a worker needs.
        threads.shutdown(wait=False, cancel_futures=True)
