"""The rows of a batch, from where they are stored to tensors on a device, in buffers that are used again.

A ``BatchGatherer`` takes rows from a ``RowTable`` or a ``VideoReader`` into buffers of a ``BufferPool``.
"""

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from meidbench.features import FeatureSource, NpyFolder, PackedFile
from meidbench.loading.datasets import FeatureDataset
from meidbench.loading.motion import Indices, Motion, motion_rows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class RowTable:
    """Stored rows of n videos in one (R, D) tensor: the memory map of a packed file, or a copy on a device.

    int8 rows have (R,) float32 scales. ``starts`` and ``counts``, (n,) int64 arrays, tell where the rows of each video
    are.
    """

    def __init__(self, rows: torch.Tensor, scales: torch.Tensor | None, starts: Indices, counts: Indices) -> None:
        self.dtype, self.device = rows.dtype, rows.device
        self._rows, self._scales = rows, scales
        self._starts, self._counts = starts, counts

    @classmethod
    def from_packed_file(cls, source: PackedFile, video_ids: list[str], counts: Indices) -> "RowTable":
        """Use the memory map of a packed file."""
        with warnings.catch_warnings():
            # torch warns that the map must not be written to; nothing here does.
            warnings.simplefilter("ignore", UserWarning)
            rows, scales = torch.from_numpy(source.mapped_rows()), source.row_scales()
        return cls(rows, None if scales is None else torch.from_numpy(scales), source.first_rows(video_ids), counts)

    def fill(self, positions: Indices, indices: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put the (B, F) rows of the (B,) videos into ``out``, (B, F, D); return the (B, F) scales of int8."""
        rows = torch.from_numpy((self._starts[positions][:, None] + indices).reshape(-1)).to(self.device)
        # As numpy.take, but with all threads of torch.
        torch.index_select(self._rows, 0, rows, out=out.view(-1, out.shape[-1]))
        return None if self._scales is None else self._scales.index_select(0, rows).view(indices.shape)

    def fill_whole(self, positions: Indices, out: torch.Tensor) -> torch.Tensor | None:
        """Put all rows of the (B,) videos into ``out``, (R, D), end to end; return the (R,) scales of int8.

        ``out`` may have another dtype than the rows: copying runs of rows is faster than gathering, and converts.
        """
        starts, counts = self._starts[positions].tolist(), self._counts[positions].tolist()
        runs = [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]
        for part, run in zip(torch.split(out, counts), runs, strict=True):
            part.copy_(self._rows[run])
        return None if self._scales is None else torch.cat([self._scales[run] for run in runs])


class VideoReader:
    """Rows that a source reads video by video, as float32; ``fill`` and ``fill_whole`` are those of ``RowTable``."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, source: FeatureSource, video_ids: list[str], counts: Indices) -> None:
        self._source, self._video_ids, self._counts = source, video_ids, counts
        # An HDF5 file is opened when first read, which two threads must not do at once.
        self._lock: AbstractContextManager[object] = (
            nullcontext() if isinstance(source, NpyFolder) else threading.Lock()
        )

    def fill(self, positions: Indices, indices: Indices, out: torch.Tensor) -> None:
        """Put rows into ``out``."""
        for slot, position in enumerate(positions.tolist()):
            self._copy(position, indices[slot], out[slot])

    def fill_whole(self, positions: Indices, out: torch.Tensor) -> None:
        """Put all rows into ``out``."""
        counts = self._counts[positions].tolist()
        for position, count, part in zip(positions.tolist(), counts, torch.split(out, counts), strict=True):
            self._copy(position, np.arange(count), part)

    def _copy(self, position: int, indices: Indices, out: torch.Tensor) -> None:
        with self._lock:
            rows = self._source.read(self._video_ids[position], indices)
        # torch takes the machine's byte order only.
        out.copy_(torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False)))


def copy_to_device(stored: RowTable | VideoReader, counts: Indices, dim: int, device: torch.device) -> RowTable:
    """Copy all rows of a subset to a device, through a buffer of one video."""
    starts = (np.cumsum(counts) - counts).astype(np.int64)
    rows = torch.empty((int(counts.sum()), dim), dtype=stored.dtype, device=device)
    scales: torch.Tensor | None = None
    buffer = torch.empty(
        (int(counts.max(initial=0)), dim), dtype=stored.dtype, device="cpu", pin_memory=device.type == "cuda"
    )
    bar = tqdm(counts.tolist(), "keeping features", unit=" videos", disable=None, delay=1.0, leave=False)
    for position, count in enumerate(bar):
        run = slice(int(starts[position]), int(starts[position]) + count)
        video_scales = stored.fill_whole(np.array([position]), buffer[:count])
        rows[run].copy_(buffer[:count])
        if video_scales is not None:
            if scales is None:
                scales = torch.empty(len(rows), dtype=torch.float32, device=device)
            scales[run].copy_(video_scales)
    return RowTable(rows, scales, starts, counts)


def fits_in_memory(num_rows: int, dim: int, dtype: torch.dtype, device: torch.device, share: float) -> bool:
    """Return whether rows take at most a share of the free memory of a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    return num_rows * (dim * dtype.itemsize + 4 * (dtype == torch.int8)) <= share * free


class BufferPool:
    """Memory for tensors that is used again once no tensor or array refers to it.

    Reusing memory is several times faster than allocating it, because the system clears every new page. The buffer of a
    tensor that is kept is not used again; the pool allocates another one.

    Parameters
    ----------
    num_bytes : int
        Size of each buffer.
    kept : int
        Unused buffers that the pool keeps.
    pinned : bool
        Whether they are page-locked, for copies to a CUDA device.

    Examples
    --------
    >>> pool = BufferPool(1 << 10, kept=2)
    >>> first = pool.take((2, 3), torch.float32).zero_()
    >>> place, part = first.data_ptr(), first[1]
    >>> del first
    >>> pool.take((4,), torch.float16).data_ptr() == place  # a part of it is still in use
    False
    >>> del part
    >>> pool.take((4,), torch.float16).data_ptr() == place
    True
    """

    def __init__(self, num_bytes: int, kept: int, pinned: bool = False) -> None:
        self._num_bytes = num_bytes
        self._pinned = pinned
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=kept)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of at most ``num_bytes`` with arbitrary values."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._allocate()
        # Only the tensor and its views keep this array alive, which is an object of its own.
        used = buffer[: int(np.prod(shape)) * dtype.itemsize]
        weakref.finalize(used, self._free.append, buffer).atexit = False
        return torch.from_numpy(used).view(dtype).view(*shape)

    def _allocate(self) -> npt.NDArray[np.uint8]:
        if self._pinned:
            return torch.empty(self._num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True).numpy()
        return np.empty(self._num_bytes, np.uint8)


class CopyStream(threading.local):
    """The CUDA stream on which a thread copies batches, beside the training; on other devices it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]

    def activate(self) -> AbstractContextManager[object]:
        """Return the context in which work for the device is queued on this stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        """Wait until the queued work is done; another thread can gather meanwhile."""
        if self._stream is not None:
            self._stream.synchronize()  # type: ignore[no-untyped-call, unused-ignore]


# Bytes of float32 rows per part of a batch; a CPU then finds the rows that it has just read in its cache.
_PART = 16 << 20


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

    def gather(
        self, positions: Indices, indices: Indices, motion_indices: Indices, stream: CopyStream
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the (B, F, D) features of (B,) videos and, where asked for, their motion.

        ``indices``, (B, F), are the rows to take of each video, ``motion_indices`` those of the motion of whole videos.
        """
        if self._motion is None:
            return self._sampled_rows(positions, indices, self._dtype, stream), None
        if self._motion.when == "sampled":
            return self._with_sampled_motion(self._motion, positions, indices, stream)
        return self._with_whole_motion(self._motion, positions, indices, motion_indices, stream)

    def _with_sampled_motion(
        self, motion: Motion, positions: Indices, indices: Indices, stream: CopyStream
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = self._sampled_rows(positions, indices, torch.float32, stream)
        moving = self._buffer(features.shape, torch.float32)
        counts = np.full(len(indices), indices.shape[1])
        motion_rows(features.view(-1, self._dim), motion, counts=counts, out=moving)
        if self._dtype != torch.float32:
            features, moving = (self._buffer(rows.shape, self._dtype).copy_(rows) for rows in (features, moving))
        return features, moving

    def _with_whole_motion(
        self, motion: Motion, positions: Indices, indices: Indices, motion_indices: Indices, stream: CopyStream
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape, exact = (*indices.shape, self._dim), self._dtype == torch.float32
        results = self._buffer(shape, self._dtype), self._buffer(shape, self._dtype)
        counts = self._num_frames[positions]
        for part in _parts(np.maximum(counts, indices.shape[1]), self._part):
            features, moving = (result[part].view(-1, self._dim) for result in results)
            all_features, all_motion = (_are_all(rows[part], counts[part]) for rows in (indices, motion_indices))
            rows = features if all_features and exact else self._scratch_rows(int(counts[part].sum()))
            self._read_whole(positions[part], rows, stream)
            taken = rows
            if not all_features:
                starts = np.cumsum(counts[part]) - counts[part]
                joint = torch.from_numpy((starts[:, None] + indices[part]).reshape(-1)).to(self._device)
                taken = features if exact else self._scratch_rows(len(features))
                torch.index_select(rows, 0, joint, out=taken)
            made = moving if exact else self._scratch_rows(len(moving))
            motion_rows(
                rows,
                motion,
                counts=counts[part],
                indices=None if all_motion else motion_indices[part],
                taken=taken if motion_indices is indices else None,
                out=made,
            )
            if not exact:
                features.copy_(taken)
                moving.copy_(made)
        return results

    def _sampled_rows(
        self, positions: Indices, indices: Indices, dtype: torch.dtype, stream: CopyStream
    ) -> torch.Tensor:
        """Return the (B, F, D) rows of several videos, converted."""
        shape, stored = (*indices.shape, self._dim), self.stored
        if stored.device.type != "cpu":
            raw = torch.empty(shape, dtype=stored.dtype, device=stored.device)
            return _convert(raw, stored.fill(positions, indices, raw), dtype)
        if self._device.type != "cpu":
            raw = self._staging.take(shape, stored.dtype)
            return self._copy_to_device(raw, stored.fill(positions, indices, raw), dtype, stream)
        result = self._buffer(shape, dtype)
        if stored.dtype == dtype:
            stored.fill(positions, indices, result)
            return result
        raw = self._staging.take(shape, stored.dtype)
        return _convert(raw, stored.fill(positions, indices, raw), dtype, result)

    def _read_whole(self, positions: Indices, out: torch.Tensor, stream: CopyStream) -> None:
        """Put all rows of several videos into ``out``, (R, D) of float32, end to end."""
        stored = self.stored
        if stored.device.type == self._device.type:
            _convert(out, stored.fill_whole(positions, out), torch.float32, out)
        else:
            raw = self._staging.take(out.shape, stored.dtype)
            self._copy_to_device(raw, stored.fill_whole(positions, raw), torch.float32, stream, out)

    def _copy_to_device(
        self,
        raw: torch.Tensor,
        scales: torch.Tensor | None,
        dtype: torch.dtype,
        stream: CopyStream,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        moved = raw.to(self._device, non_blocking=self._device.type == "cuda")
        result = _convert(moved, None if scales is None else scales.to(self._device), dtype, out)
        stream.synchronize()  # before the buffer that the copy reads from is used again
        return result

    def _buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return memory for a batch."""
        return self._take(self._results if dtype == self._dtype else self._scratch, shape, dtype)

    def _scratch_rows(self, count: int) -> torch.Tensor:
        """Return memory for float32 rows that are not returned."""
        return self._take(self._scratch, (count, self._dim), torch.float32)

    def _take(self, pool: BufferPool, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        # A CUDA device has a pool of its own.
        on_cpu = self._device.type == "cpu"
        return pool.take(shape, dtype) if on_cpu else torch.empty(shape, dtype=dtype, device=self._device)


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


def _convert(
    raw: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Convert stored rows by way of float32, as the dataset does."""
    if out is not None and dtype == torch.float32:
        out.copy_(raw)
        return out if scales is None else out.mul_(scales[..., None])
    if raw.dtype not in DTYPES:
        raw = raw.to(torch.float32)
    values = (raw if scales is None else raw.mul_(scales[..., None])).to(dtype)
    return values if out is None else out.copy_(values)
