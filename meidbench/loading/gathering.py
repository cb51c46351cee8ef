"""The rows of a batch as tensors on a device: gathered from stored features into buffers that are used again."""

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meidbench.features import PackedFile
from meidbench.loading.datasets import FeatureDataset, RowTable, VideoReader
from meidbench.loading.motion import Indices, motion_rows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Bytes of float32 rows per part of a batch; a CPU then finds the rows that it has just read in its cache.
_PART = 16 << 20


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
