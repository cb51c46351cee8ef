"""Batches of a dataset at memory speed: gathered whole, ahead of time, into buffers that are used again.

``BatchLoader`` draws the positions of an epoch. A ``Prefetcher`` lets threads build the batches: a ``BatchGatherer``
takes stored rows into tensors on the device, in buffers of a ``BufferPool``.
"""

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meidbench.checks import one_of, whole_number
from meidbench.errors import FeatureError, first_few
from meidbench.features import PackedFile
from meidbench.loading.datasets import FeatureDataset, RowTable, VideoReader, copy_to_device
from meidbench.loading.motion import Indices, motion_rows
from meidbench.names import RESIDENT

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The model, its activations and its optimiser need memory, too.
_RESIDENT_SHARE = 0.6
# One thread gathers while another draws rows and labels; more would only compete for the same memory.
_THREADS = 2
# Bytes of float32 rows per part of a batch; a CPU then finds the rows that it has just read in its cache.
_PART = 16 << 20

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


class CopyStream(threading.local):
    """The CUDA stream on which a thread copies batches, beside the training; on other devices it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def __reduce__(self) -> tuple[type["CopyStream"], tuple[torch.device]]:
        # What belongs to a thread does not pickle by itself, and a loader may be passed to another process.
        return CopyStream, (self._device,)

    def activate(self) -> AbstractContextManager[object]:
        """Return the context in which work for the device is queued on this stream."""
        if self._device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call, unused-ignore]
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        """Wait until the queued work is done; another thread can gather meanwhile."""
        if self._stream is not None:
            self._stream.synchronize()  # type: ignore[no-untyped-call, unused-ignore]


class BufferPool:
    """Memory for tensors that is used again once no tensor or array refers to it; ``kept`` unused buffers are kept.

    Reusing memory is several times faster than allocating it, because the system clears every new page. ``pinned``
    buffers are page-locked, for copies to a CUDA device.
    """

    def __init__(self, num_bytes: int, kept: int, pinned: bool = False) -> None:
        self._num_bytes, self._pinned = num_bytes, pinned
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=kept)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of at most ``num_bytes`` with arbitrary values."""
        try:
            buffer = self._free.pop()
        except IndexError:  # another thread may take the last one
            buffer = self._allocate()
        # Only the tensor and its views keep this array alive, which is an object of its own.
        used = buffer[: int(np.prod(shape)) * dtype.itemsize]
        weakref.finalize(used, self._free.append, buffer).atexit = False
        return torch.from_numpy(used).view(dtype).view(*shape)

    def _allocate(self) -> npt.NDArray[np.uint8]:
        if self._pinned:
            return torch.empty(self._num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True).numpy()
        return np.empty(self._num_bytes, np.uint8)


class BatchGatherer:
    """Features and motion of batches as tensors on a device, in reused buffers; ``stored`` has the rows."""

    def __init__(
        self, dataset: FeatureDataset, batch_size: int, device: torch.device, dtype: torch.dtype, kept: int
    ) -> None:
        source, counts, motion, dim = dataset.source, dataset.num_frames, dataset.motion, dataset.dim
        if isinstance(source, PackedFile) and source.mapped and source.dtype.isnative:
            self.stored: RowTable | VideoReader = RowTable.from_packed_file(source, dataset.video_ids, counts)
        else:
            self.stored = VideoReader(source, dataset.video_ids, counts)
        self.stream = CopyStream(device)
        self._num_frames, self._dim, self._motion = counts, dim, motion
        self._device, self._dtype = device, dtype
        longest = int(counts.max(initial=0))
        most = batch_size * (dataset.frames or longest)
        # Whole videos are read in parts of this number of rows; a part is at least a video.
        self._part = max(_PART // (4 * max(dim, 1)) if device.type == "cpu" else most, longest)
        read = most if motion is None else max(most, self._part)
        self._results = BufferPool(most * dim * dtype.itemsize, kept if motion is None else 2 * kept)
        self._staging = BufferPool(read * dim * self.stored.dtype.itemsize, kept, pinned=device.type == "cuda")
        self._scratch = BufferPool(read * dim * torch.float32.itemsize, kept)

    def gather(self, positions: Indices, indices: Indices, motion_indices: Indices) -> tuple[Tensor, Tensor | None]:
        """Return the (B, F, D) features of (B,) videos and, where asked for, their motion.

        ``indices``, (B, F), are the rows to take of each video, ``motion_indices`` those of the motion of whole videos.
        """
        if self._motion is None:
            return self._sampled_rows(positions, indices, self._dtype), None
        moving = self._buffer((*indices.shape, self._dim), torch.float32)
        if self._motion.when == "sampled":
            features = self._sampled_rows(positions, indices, torch.float32)
            counts = np.full(len(indices), indices.shape[1])
            motion_rows(features.view(-1, self._dim), self._motion, counts=counts, out=moving)
        else:
            features = self._buffer(moving.shape, torch.float32)
            self._fill_from_whole(features, moving, positions, indices, motion_indices)
        if self._dtype != torch.float32:
            features, moving = (self._buffer(rows.shape, self._dtype).copy_(rows) for rows in (features, moving))
        return features, moving

    def _fill_from_whole(
        self, features: Tensor, moving: Tensor, positions: Indices, indices: Indices, motion_indices: Indices
    ) -> None:
        """Put rows and motion of whole videos into float32 tensors, part by part."""
        stored, counts = self.stored, self._num_frames[positions]
        for part in _parts(np.maximum(counts, indices.shape[1]), self._part):
            taken, made = (result[part].view(-1, self._dim) for result in (features, moving))
            all_features, all_motion = (_are_all(rows[part], counts[part]) for rows in (indices, motion_indices))
            shape = int(counts[part].sum()), self._dim
            rows = taken if all_features else self._buffer(shape, torch.float32, is_scratch=True)
            raw = rows if stored.device.type == self._device.type else self._staging.take(shape, stored.dtype)
            self._convert(raw, stored.fill_whole(positions[part], raw), torch.float32, rows)
            del raw  # so that the next part is read into the same buffer
            if not all_features:
                starts = np.cumsum(counts[part]) - counts[part]
                joint = torch.from_numpy((starts[:, None] + indices[part]).reshape(-1)).to(self._device)
                torch.index_select(rows, 0, joint, out=taken)
            wanted, known = None if all_motion else motion_indices[part], taken if motion_indices is indices else None
            motion_rows(rows, self._motion, counts=counts[part], indices=wanted, taken=known, out=made)

    def _sampled_rows(self, positions: Indices, indices: Indices, dtype: torch.dtype) -> Tensor:
        """Return the (B, F, D) rows of several videos, converted."""
        shape, stored = (*indices.shape, self._dim), self.stored
        out = self._buffer(shape, dtype) if self._device.type == "cpu" else None
        if out is not None and stored.dtype == dtype:
            stored.fill(positions, indices, out)
            return out
        if stored.device.type == "cpu":
            raw = self._staging.take(shape, stored.dtype)
        else:
            raw = torch.empty(shape, dtype=stored.dtype, device=stored.device)
        return self._convert(raw, stored.fill(positions, indices, raw), dtype, out)

    def _convert(self, raw: Tensor, scales: Tensor | None, dtype: torch.dtype, out: Tensor | None) -> Tensor:
        """Move stored rows to the device, and convert them by way of float32, as the dataset does."""
        is_moved = raw.device.type != self._device.type
        if is_moved:
            raw = raw.to(self._device, non_blocking=self._device.type == "cuda")
            scales = None if scales is None else scales.to(self._device)
        if out is not None and dtype == torch.float32:
            out.copy_(raw)
            result = out if scales is None else out.mul_(scales[..., None])
        else:
            values = raw if raw.dtype in DTYPES else raw.to(torch.float32)
            values = (values if scales is None else values.mul_(scales[..., None])).to(dtype)
            result = values if out is None else out.copy_(values)
        if is_moved:
            self.stream.synchronize()  # before the buffer that the copy reads from is used again
        return result

    def _buffer(self, shape: Sequence[int], dtype: torch.dtype, is_scratch: bool = False) -> Tensor:
        """Return memory on the device for a batch; another dtype than that of the loader is scratch, too."""
        if self._device.type != "cpu":  # a CUDA device has a pool of its own
            return torch.empty(shape, dtype=dtype, device=self._device)
        return (self._scratch if is_scratch or dtype != self._dtype else self._results).take(shape, dtype)


def _are_all(indices: Indices, counts: Indices) -> bool:
    """Return whether all rows of each video are taken, once and in their order."""
    frames = indices.shape[1]
    return bool((counts == frames).all() and (indices == np.arange(frames)).all())


def _parts(sizes: Indices, most: int) -> Iterator[slice]:
    """Cut videos into parts of at most this number of rows, or of one video."""
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        before = ends[begin] - sizes[begin]
        end = max(int(np.searchsorted(ends, before + most, side="right")), begin + 1)
        yield slice(begin, end)
        begin = end
