"""Batches of a dataset at the speed of memory: gathered whole, ahead of time, into memory that is used again."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from meidbench.datasets import FeatureDataset, whole_number
from meidbench.errors import FeatureError, first_few
from meidbench.gathered_rows import DTYPES, GatheredRows, Lane
from meidbench.read_ahead import ReadAhead
from meidbench.stored_rows import ResidentRows, fits, stored_rows

RESIDENT = ("auto", "never", "always")

# The model, its activations and its optimiser need room, too.
_RESIDENT_SHARE = 0.6

Indices = npt.NDArray[np.int64]

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
    >>> from meidbench.split import Split
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
