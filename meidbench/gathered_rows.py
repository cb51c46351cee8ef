"""The features of a batch, and their motion, gathered where they are wanted."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch

from meidbench.motion import Motion, motion_rows
from meidbench.read_ahead import LentMemory
from meidbench.stored_rows import StoredRows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Bytes of float32 rows that are worked on at a time: what has just been read is then still in a CPU's cache.
_PART = 16 << 20

Indices = npt.NDArray[np.int64]


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
