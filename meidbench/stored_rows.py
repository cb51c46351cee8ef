"""Feature rows of several videos at a time, from a memory map, any other source, or memory."""

import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from meidbench.features import FeatureSource, NpyFolder, PackedFile

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
