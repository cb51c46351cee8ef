"""Batches of a dataset at the speed of memory: gathered whole, ahead of time, into memory that is used again."""

import math
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from meidbench.errors import FeatureError, first_few
from meidbench.features import FeatureSource, NpyFolder, PackedFile
from meidbench.loading.datasets import FeatureDataset, whole_number
from meidbench.loading.motion import Motion, motion_rows

Indices = npt.NDArray[np.int64]

_TORCH_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8}


class StoredRows(Protocol):
    """Rows of the n videos of a subset.

    Attributes
    ----------
    dtype : torch.dtype
        As ``fill`` gives them; int8 has scales.
    device : torch.device
        Where ``fill`` puts them.
    """

    dtype: torch.dtype
    device: torch.device

    def fill(self, positions: Indices, indices: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put the (B, F) rows of the (B,) videos into ``out``, (B, F, D); return the (B, F) scales of int8."""
        ...

    def fill_whole(self, positions: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put all rows of the (B,) videos into ``out``, (R, D), end to end; return the (R,) scales of int8.

        ``out`` may be of another dtype than the rows, which are converted then.
        """
        ...


class MappedRows:
    """Rows that are copied from the memory map of a packed file, all of a batch in one go."""

    device = torch.device("cpu")

    def __init__(self, source: PackedFile, video_ids: list[str], num_frames: Indices) -> None:
        self.dtype = _TORCH_DTYPES[source.dtype.str[1:]]
        self._num_frames = num_frames
        self._source = source
        self._positions = source.positions(video_ids)
        with warnings.catch_warnings():
            # That the map must not be written to; nothing here does.
            warnings.simplefilter("ignore", UserWarning)
            self._rows = torch.from_numpy(source.mapped_rows())
        self._scales = source.row_scales()
        self._scale_rows = None if self._scales is None else torch.from_numpy(self._scales)

    def fill(self, positions: Indices, indices: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put rows into ``out``; see ``StoredRows``."""
        rows = self._source.joint_rows(self._positions[positions], indices)
        # As numpy.take, but with all of torch's threads.
        torch.index_select(self._rows, 0, torch.from_numpy(rows.reshape(-1)), out=out.view(-1, out.shape[-1]))
        return None if self._scales is None else torch.from_numpy(self._scales[rows])

    def fill_whole(self, positions: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put all rows into ``out``; see ``StoredRows``."""
        counts = self._num_frames[positions]
        # Checks the last rows, and thereby all.
        ends = self._source.joint_rows(self._positions[positions], counts[:, None] - 1)[:, 0] + 1
        return _copied(self._rows, self._scale_rows, ends - counts, counts, out)


class ItemRows:
    """Rows that a source reads video by video, as float32."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, source: FeatureSource, video_ids: list[str], num_frames: Indices) -> None:
        self._source = source
        self._video_ids = video_ids
        self._num_frames = num_frames
        # An HDF5 file is opened when first read, which two threads must not do at once.
        self._turn: AbstractContextManager[object] = (
            nullcontext() if isinstance(source, NpyFolder) else threading.Lock()
        )

    def fill(self, positions: Indices, indices: Indices, out: torch.Tensor) -> None:
        """Put rows into ``out``; see ``StoredRows``."""
        for slot, position in enumerate(positions.tolist()):
            self._copy(position, indices[slot], out[slot])

    def fill_whole(self, positions: Indices, out: torch.Tensor) -> None:
        """Put all rows into ``out``; see ``StoredRows``."""
        begin = 0
        for position, count in zip(positions.tolist(), self._num_frames[positions].tolist(), strict=True):
            self._copy(position, np.arange(count), out[begin : begin + count])
            begin += count

    def _copy(self, position: int, indices: Indices, out: torch.Tensor) -> None:
        with self._turn:
            rows = self._source.read(self._video_ids[position], indices)
        # torch takes the machine's byte order only.
        out.copy_(torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False)))


class ResidentRows:
    """The rows of a whole subset, in the memory of a device.

    Parameters
    ----------
    stored : StoredRows
        Where they are copied from.
    num_frames : (n,) int64 array
        Rows of each video.
    dim : int
        Width D.
    device : torch.device
    """

    def __init__(self, stored: StoredRows, num_frames: Indices, dim: int, device: torch.device) -> None:
        self.dtype = stored.dtype
        self.device = device
        self._starts = np.concatenate([[0], np.cumsum(num_frames)]).astype(np.int64)
        self._rows = torch.empty((int(self._starts[-1]), dim), dtype=stored.dtype, device=device)
        self._scales: torch.Tensor | None = None
        staging = torch.empty(
            (1, int(num_frames.max(initial=0)), dim), dtype=stored.dtype, device="cpu", pin_memory=device.type == "cuda"
        )
        bar = tqdm(num_frames.tolist(), "keeping features", unit=" videos", disable=None, delay=1.0, leave=False)
        for position, count in enumerate(bar):
            at = slice(int(self._starts[position]), int(self._starts[position + 1]))
            part = staging[:, :count]
            scales = stored.fill(np.array([position]), np.arange(count)[None], part)
            self._rows[at].copy_(part[0])
            if scales is not None:
                if self._scales is None:
                    self._scales = torch.empty(len(self._rows), dtype=torch.float32, device=device)
                self._scales[at].copy_(scales[0])

    def fill(self, positions: Indices, indices: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put rows into ``out``; see ``StoredRows``."""
        rows = torch.from_numpy((self._starts[positions][:, None] + indices).reshape(-1)).to(self.device)
        torch.index_select(self._rows, 0, rows, out=out.view(-1, out.shape[-1]))
        return None if self._scales is None else self._scales.index_select(0, rows).view(indices.shape)

    def fill_whole(self, positions: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put all rows into ``out``; see ``StoredRows``."""
        starts = self._starts[positions]
        return _copied(self._rows, self._scales, starts, self._starts[positions + 1] - starts, out)


def stored_rows(source: FeatureSource, video_ids: list[str], num_frames: Indices) -> StoredRows:
    """Choose how the rows of these videos are read."""
    if isinstance(source, PackedFile) and source.mapped and source.dtype.isnative:
        return MappedRows(source, video_ids, num_frames)
    return ItemRows(source, video_ids, num_frames)


def _copied(
    rows: torch.Tensor, scales: torch.Tensor | None, starts: Indices, counts: Indices, out: torch.Tensor
) -> torch.Tensor | None:
    """Copy runs of rows, which is faster than to gather them, and converts on the way; return their scales."""
    runs = [slice(start, start + count) for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]
    begin = 0
    for run in runs:
        end = begin + run.stop - run.start
        out[begin:end].copy_(rows[run])
        begin = end
    return None if scales is None else torch.cat([scales[run] for run in runs])


def fits(num_rows: int, dim: int, dtype: torch.dtype, device: torch.device, share: float) -> bool:
    """Say whether so many rows take no more than a share of the free memory of a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    return num_rows * (dim * dtype.itemsize + 4 * (dtype == torch.int8)) <= share * free


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


DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Bytes of float32 rows that are worked on at a time: what has just been read is then still in a CPU's cache.
_PART = 16 << 20


class Lane(threading.local):
    """Where a thread queues its work on a CUDA device, beside the training; elsewhere nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]

    def queue(self) -> AbstractContextManager[object]:
        """Return the context in which work for the device is queued here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Wait until all that was queued here is done; another thread can gather meanwhile."""
        if self._stream is not None:
            self._stream.synchronize()  # type: ignore[no-untyped-call, unused-ignore]


class GatheredRows:
    """Rows of several videos as tensors on a device, in memory that is lent.

    Parameters
    ----------
    stored : StoredRows
        Where they are. The attribute may be set to others that hold the same.
    num_frames : (n,) int64 array
        Rows of each video.
    dim : int
        Width D.
    most : int
        Rows that are taken of a batch, at most.
    motion : Motion, optional
        Make it, too.
    device : torch.device
        Where they go.
    dtype : torch.dtype
        What they are converted to.
    kept : int
        Batches whose memory is kept while nobody uses it.
    """

    def __init__(
        self,
        stored: StoredRows,
        num_frames: Indices,
        dim: int,
        *,
        most: int,
        motion: Motion | None,
        device: torch.device,
        dtype: torch.dtype,
        kept: int,
    ) -> None:
        self.stored = stored
        self._num_frames = num_frames
        self._dim = dim
        self._motion = motion
        self._device = device
        self._dtype = dtype
        # Whole videos are read in parts of so many rows, of which none is smaller than a video.
        usual = _PART // (4 * max(dim, 1)) if device.type == "cpu" else most
        self._part = max(usual, int(num_frames.max(initial=0)))
        read = most if motion is None else max(most, self._part)
        self._results = LentMemory(most * dim * dtype.itemsize, kept if motion is None else 2 * kept)
        self._staging = LentMemory(read * dim * stored.dtype.itemsize, kept, pinned=device.type == "cuda")
        self._scratch = LentMemory(read * dim * torch.float32.itemsize, kept)

    def of(
        self, positions: Indices, indices: Indices, others: Indices, lane: Lane
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return features and, where asked for, their motion, both (B, F, D).

        Parameters
        ----------
        positions : (B,) int64 array
        indices : (B, F) int64 array
            Rows to take of each video.
        others : (B, F) int64 array
            Rows to take of the motion of whole videos.
        lane : Lane
        """
        if self._motion is None:
            return self._gathered(positions, indices, self._dtype, lane), None
        if self._motion.when == "sampled":
            return self._of_sampled(self._motion, positions, indices, lane)
        return self._of_whole(self._motion, positions, indices, others, lane)

    def _of_sampled(
        self, motion: Motion, positions: Indices, indices: Indices, lane: Lane
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = self._gathered(positions, indices, torch.float32, lane)
        made = self._room(features.shape, torch.float32)
        counts = np.full(len(indices), indices.shape[1])
        motion_rows(features.view(-1, self._dim), motion, counts=counts, out=made)
        if self._dtype == torch.float32:
            return features, made
        return self._room(features.shape, self._dtype).copy_(features), self._room(made.shape, self._dtype).copy_(made)

    def _of_whole(
        self, motion: Motion, positions: Indices, indices: Indices, others: Indices, lane: Lane
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape, exact = (*indices.shape, self._dim), self._dtype == torch.float32
        results = self._room(shape, self._dtype), self._room(shape, self._dtype)
        counts = self._num_frames[positions]
        for part in _parts(np.maximum(counts, indices.shape[1]), self._part):
            features, moving = (result[part].view(-1, self._dim) for result in results)
            every, every_other = (_are_all(rows[part], counts[part]) for rows in (indices, others))
            rows = features if every and exact else self._scratch_room(int(counts[part].sum()))
            self._read_whole(positions[part], rows, lane)
            taken = rows
            if not every:
                starts = np.cumsum(counts[part]) - counts[part]
                joint = torch.from_numpy((starts[:, None] + indices[part]).reshape(-1)).to(self._device)
                taken = features if exact else self._scratch_room(len(features))
                torch.index_select(rows, 0, joint, out=taken)
            made = moving if exact else self._scratch_room(len(moving))
            motion_rows(
                rows,
                motion,
                counts=counts[part],
                indices=None if every_other else others[part],
                taken=taken if others is indices else None,
                out=made,
            )
            if not exact:
                features.copy_(taken)
                moving.copy_(made)
        return results

    def _gathered(self, positions: Indices, indices: Indices, dtype: torch.dtype, lane: Lane) -> torch.Tensor:
        """Return the (B, F, D) rows of several videos, converted."""
        shape, stored = (*indices.shape, self._dim), self.stored
        if stored.device.type != "cpu":
            raw = torch.empty(shape, dtype=stored.dtype, device=stored.device)
            return _converted(raw, stored.fill(positions, indices, raw), dtype)
        if self._device.type != "cpu":
            raw = self._staging.lend(shape, stored.dtype)
            scales = stored.fill(positions, indices, raw)
            moved = raw.to(self._device, non_blocking=self._device.type == "cuda")
            features = _converted(moved, None if scales is None else scales.to(self._device), dtype)
            # Not before the copy is done may what it reads from be lent again.
            lane.wait()
            return features
        result = self._room(shape, dtype)
        if stored.dtype == dtype:
            stored.fill(positions, indices, result)
            return result
        raw = self._staging.lend(shape, stored.dtype)
        return _converted(raw, stored.fill(positions, indices, raw), dtype, result)

    def _read_whole(self, positions: Indices, out: torch.Tensor, lane: Lane) -> None:
        """Put all rows of several videos into ``out``, (R, D) of float32, end to end."""
        stored = self.stored
        if stored.device.type == self._device.type:
            _converted(out, stored.fill_whole(positions, out), torch.float32, out)
            return
        raw = self._staging.lend(out.shape, stored.dtype)
        scales = stored.fill_whole(positions, raw)
        moved = raw.to(self._device, non_blocking=self._device.type == "cuda")
        _converted(moved, None if scales is None else scales.to(self._device), torch.float32, out)
        lane.wait()

    def _room(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Lend memory for a batch; a CUDA device has a pool of its own."""
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device)
        return (self._results if dtype == self._dtype else self._scratch).lend(shape, dtype)

    def _scratch_room(self, rows: int) -> torch.Tensor:
        """Lend memory for float32 rows to work in."""
        if self._device.type != "cpu":
            return torch.empty((rows, self._dim), dtype=torch.float32, device=self._device)
        return self._scratch.lend((rows, self._dim), torch.float32)


def _are_all(indices: Indices, counts: Indices) -> bool:
    """Say whether all rows of each video are taken, once and in their order."""
    frames = indices.shape[1]
    return bool((counts == frames).all() and (indices == np.arange(frames)).all())


def _parts(sizes: Indices, most: int) -> Iterator[slice]:
    """Cut videos into parts of no more than so many rows, or of one video."""
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        before = ends[begin] - sizes[begin]
        end = max(int(np.searchsorted(ends, before + most, side="right")), begin + 1)
        yield slice(begin, end)
        begin = end


def _converted(
    raw: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Convert stored rows by way of float32, as the dataset gives them."""
    if out is not None and dtype == torch.float32:
        out.copy_(raw)
        return out if scales is None else out.mul_(scales[..., None])
    if raw.dtype not in DTYPES:
        raw = raw.to(torch.float32)
    values = (raw if scales is None else raw.mul_(scales[..., None])).to(dtype)
    return values if out is None else out.copy_(values)


RESIDENT = ("auto", "never", "always")

# The model, its activations and its optimiser need room, too.
_RESIDENT_SHARE = 0.6


_Batch = TypedDict(
    "_Batch",
    {
        "video_id": list[str],
        "features": torch.Tensor,
        "labels": torch.Tensor,
        "index": torch.Tensor,
        "class": torch.Tensor,
    },
)


class Batch(_Batch, total=False):
    """What a loader gives: all tensors are on its device.

    ``features`` (B, F, D), ``labels`` (B, C) float32 of 0 and 1, ``index`` (B,) int64 positions in the dataset, and
    ``class`` (B,) int64 the class that a video was drawn for, -1 where it was drawn for none; with a dataset that has
    motion, ``motion`` (B, F, D) of the dtype of the features.
    """

    motion: torch.Tensor


class BatchLoader:
    """Batches of a dataset, with the very numbers that the dataset gives one by one.

    Iterate over it once an epoch. A batch that is kept stays as it is: its memory is used again only when no tensor
    shows it any more. ``for batch in loader`` thus runs in ``prefetch + 2`` buffers, while ``list(loader)``
    allocates all. Several iterators may run at the same time.

    A packed file that is read through its memory map (what ``meidbench`` writes is) and features on a
    device are gathered a whole batch at a time; all other sources are read video by video.

    Parameters
    ----------
    dataset : FeatureDataset
    batch_size : int
    sampler : iterable, optional
        Positions in the dataset, or pairs (position, class that it was drawn for), for one epoch; a finite number,
        all of which are drawn when an epoch begins. Without it, the order of the dataset.
    shuffle : bool
        A new order each epoch, which depends on ``seed`` and the epoch alone.
    seed : int
        Of ``shuffle``.
    drop_last : bool
        Leave out what does not fill a batch (and, with several processes, a round).
    device : str or torch.device
        Where the tensors are to be.
    resident : str
        ``always`` keeps all rows of the subset in the memory of the device, as stored; ``auto`` does
        where the device is a CUDA device and they take no more than 60 % of what is free when first needed.
    prefetch : int
        Batches that are made ahead of time in a thread; with 0 there is no thread.
    dtype : torch.dtype, optional
        Of the features and of motion: float32 where left out, float16 or bfloat16. Conversion takes place on a CUDA
        device, to which rows go as they are stored.
    rank, world_size : int
        This process takes every ``world_size``-th video of the order, from ``rank`` on. All processes have the same
        number: where there are too few, those at the beginning of the order come again (``index`` tells).

    Raises
    ------
    FeatureError
        An argument makes no sense. While iterating: a position or class is outside the dataset, features cannot be
        read (the video is named), or with ``frames=None`` videos of one batch differ in length.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from meidbench.annotations import Annotations
    >>> from meidbench.splits.split import Split
    >>> annotations = Annotations(
    ...     class_names=("walking", "reading"), video_ids=["ATOYW", "B1Z"], sources=["train"] * 2, labels=[(1,), (0,)],
    ...     lengths=[30.0] * 2, subjects=[""] * 2, views=[""] * 2, pair_ids=[""] * 2, segments=[()] * 2,
    ... )
    >>> split = Split.from_annotations(
    ...     annotations, ["train"] * 2, dataset="toy", variant="released", head_above=100, tail_up_to=20
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for video_id in split.video_ids("train"):
    ...         np.save(Path(folder, f"{video_id}.npy"), np.arange(6, dtype=np.float16).reshape(3, 2))
    ...     data = FeatureDataset(split, "train", features=folder, frames=2)
    ...     for batch in BatchLoader(data, batch_size=2, sampler=[(1, 0), (0, 1), (1, 0)]):
    ...         print(batch["video_id"], tuple(batch["features"].shape), batch["labels"].tolist(), batch["class"])
    ['B1Z', 'ATOYW'] (2, 2, 2) [[1.0, 0.0], [0.0, 1.0]] tensor([0, 1])
    ['B1Z'] (1, 2, 2) [[1.0, 0.0]] tensor([0])
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
        self.dataset = dataset
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.sampler = sampler
        self.shuffle = shuffle
        self.seed = whole_number("seed", seed, least=0)
        self.drop_last = drop_last
        self.device = torch.device(device)
        if self.device == torch.device("cuda"):
            # Another thread has a current device of its own.
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.prefetch = whole_number("prefetch", prefetch, least=0)
        self.dtype = torch.float32 if dtype is None else dtype
        self.world_size = whole_number("world_size", world_size, least=1)
        self.rank = whole_number("rank", rank, least=0)
        if self.rank >= self.world_size:
            raise FeatureError(f"rank must be less than the {self.world_size} of world_size, got {rank}")
        if sampler is not None and shuffle:
            raise FeatureError("a sampler has an order of its own; leave out shuffle")
        if resident not in RESIDENT:
            raise FeatureError(f"unknown resident {resident!r}; known: {', '.join(RESIDENT)}")
        if self.dtype not in DTYPES:
            raise FeatureError(f"unknown dtype {dtype}; known: {', '.join(map(str, DTYPES))}")
        self.resident = resident
        self._start = 0
        self._settled = False
        counts = dataset.num_frames
        self._rows = GatheredRows(
            stored_rows(dataset.source, dataset.video_ids, counts),
            counts,
            dataset.dim,
            most=self.batch_size * (dataset.frames or int(counts.max(initial=0))),
            motion=dataset.motion,
            device=self.device,
            dtype=self.dtype,
            # One is filled, one is with the user.
            kept=self.prefetch + 2,
        )

    def __len__(self) -> int:
        drawn = len(self.dataset) if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        own = drawn // self.world_size if self.drop_last else math.ceil(drawn / self.world_size)
        return own // self.batch_size if self.drop_last else math.ceil(own / self.batch_size)

    def __iter__(self) -> "ReadAhead[tuple[Indices, Indices], Batch, Batch]":
        start, self._start = self._start, 0
        positions, classes = self._order()
        if self.drop_last:
            positions = positions[: len(positions) // self.batch_size * self.batch_size]
        cuts = range(start * self.batch_size, len(positions), self.batch_size)
        jobs = [(positions[cut : cut + self.batch_size], classes[cut : cut + self.batch_size]) for cut in cuts]
        self._settle()
        # The epoch of now: set_epoch must not change what is read ahead of it.
        work = partial(self._load, epoch=self.dataset.epoch, lane=Lane(self.device))
        return ReadAhead(jobs, work, _received, self.prefetch)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, other random frames and, of a sampler with ``set_epoch``, other videos.

        It is for the iterators that are made from then on.
        """
        self.dataset.set_epoch(epoch)
        if (tell := getattr(self.sampler, "set_epoch", None)) is not None:
            tell(epoch)

    def start_at(self, batch: int) -> None:
        """Let the next iteration begin at this batch, counted from 0, without reading those before; once.

        With the epoch set, an epoch that was interrupted after ``batch`` batches goes on as if it had not been.
        """
        self._start = whole_number("batch", batch, least=0)

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
            pairs = table.ndim == 2 and table.shape[1] == 2
            valid = not len(drawn) or (table.dtype.kind in "iu" and (table.ndim == 1 or pairs))
        except ValueError:
            valid = False
        if not valid:
            raise FeatureError(
                "a sampler gives positions in the dataset, or pairs (position, class), and not both; "
                f"got {first_few(map(repr, drawn))}"
            )
        table = table.astype(np.int64)
        positions, classes = (table[:, 0], table[:, 1]) if pairs else (table.reshape(-1), np.full(len(drawn), -1))
        for name, values, least, end in (
            ("positions", positions, 0, len(self.dataset)),
            ("classes", classes, -1, self.dataset.num_classes),
        ):
            if (outside := values[(values < least) | (values >= end)]).size:
                raise FeatureError(
                    f"{outside.size:,} {name} of the sampler are outside {least} to {end - 1:,}: {first_few(outside)}"
                )
        return positions, classes

    def _settle(self) -> None:
        """Decide whether features are kept on the device: late, when the model has its memory already."""
        if self._settled:
            return
        counts, dim, stored = self.dataset.num_frames, self.dataset.dim, self._rows.stored
        wanted = self.resident == "always"
        if self.device.type == "cuda" and self.resident != "never":
            share = 1.0 if wanted else _RESIDENT_SHARE
            fitting = fits(int(counts.sum()), dim, stored.dtype, self.device, share)
            if wanted and not fitting:
                raise FeatureError(
                    f"the {counts.sum():,} rows of {self.dataset.subset} do not fit into the memory of {self.device}; "
                    "use resident='never'"
                )
            wanted = fitting
        if wanted:
            self._rows.stored = ResidentRows(stored, counts, dim, self.device)
        self._settled = True

    def _load(self, job: tuple[Indices, Indices], *, epoch: int, lane: Lane) -> Batch:
        positions, classes = job
        data = self.dataset
        indices = data.frame_rows.of(positions, epoch)
        drawn_apart = data.motion_frame_rows is not data.frame_rows
        others = data.motion_frame_rows.of(positions, epoch) if drawn_apart else indices
        with lane.queue():
            # Before the features, behind whose copy they would have to wait.
            labels = data.label_rows(positions).to(self.device)
            index, drawn_for = (torch.from_numpy(numbers).to(self.device) for numbers in (positions, classes))
            features, motion = self._rows.of(positions, indices, others, lane)
            batch: Batch = {
                "video_id": [data.video_ids[position] for position in positions.tolist()],
                "labels": labels,
                "index": index,
                "class": drawn_for,
                "features": features,
            }
            if motion is not None:
                batch["motion"] = motion
            lane.wait()
            return batch


def _received(batch: Batch) -> Batch:
    """Let the memory of tensors that were made on another stream wait for the user's stream before it is used again."""
    if batch["features"].is_cuda:
        current = torch.cuda.current_stream(batch["features"].device)
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
    return batch
