"""The benchmarks as PyTorch datasets: features and labels of one subset of a split, video by video.

At the end, ``RowTable`` and ``VideoReader`` read the rows of many videos at once, for ``meidbench.loading.batches``.
"""

import operator
import os
import threading
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from meidbench.checks import one_of, whole_number
from meidbench.errors import FeatureError, SplitError, write_count
from meidbench.features import FeatureSource, NpyFolder, PackedFile, open_features
from meidbench.features.frame_sampling import FrameRows
from meidbench.loading.motion import Indices, Motion, independent_seed, motion_rows
from meidbench.names import EPIC_DATASETS, SAMPLINGS
from meidbench.splits.split import Split, load_split


class _Sample(TypedDict):
    video_id: str
    features: Tensor
    labels: Tensor


class Sample(_Sample, total=False):
    """One video of a dataset: float32 ``features`` (frames, D) and ``labels`` (C,) of 0 and 1.

    A dataset with ``motion`` adds a float32 ``motion`` (frames, D).
    """

    motion: Tensor


class FeatureDataset(Dataset[Sample]):
    """One subset of a split with its features, for any split; each benchmark has a class of its own below.

    The constructor checks all videos (headers only, see ``FeatureSource.check``), so no missing file can end an epoch.
    ``data[i]`` depends only on the arguments, the epoch and ``i``: not on workers, the order of reading, or a restart.

    Parameters
    ----------
    split : Split, str or Path, optional
        A split, its file, or its name. The class of a benchmark refuses the splits of others, and by default takes its
        own from below ``MEIDBENCH_HOME``.
    subset : str
        ``train``, ``val`` or ``test``.
    features : FeatureSource, str or Path
        The path of features, or a source of ``open_features(path, prefix=..., suffix=..., dataset=...)`` where names
        have more than the id. A warning tells where arrays are not stored as T x D.
    frames : int, "default" or None
        Rows of each video, 200 by default (``VideoLT``, ``AnimalKingdom``: 150); a video with fewer rows repeats some.
        None takes all: videos then differ in length, and a ``DataLoader`` needs ``batch_size=1`` or a ``collate_fn``
        that pads.
    sampling : str
        ``uniform`` (evenly spaced) or ``random`` (new rows per epoch); see ``meidbench.features.frame_sampling``.
    replacement, seed : bool and int
        For ``random``: whether it may draw a row twice, and the seed.
    motion : Motion, optional
        Adds MEID's motion stream to the features; see ``meidbench.loading.motion``.

    Attributes
    ----------
    video_ids : list of str
        n ids in the order of the split.
    num_classes, class_names : int and tuple of str
        C, and its names.
    dim, num_frames : int and (n,) int64 array
        Width D of the features, and rows that each video has.
    frame_rows, motion_frame_rows : FrameRows
        The rows to take of the features, and of the motion stream of a whole video.

    Raises
    ------
    SplitError
        The split or the subset does not exist, the subset has no video, or the split is of another dataset.
    FeatureError
        Features are missing or malformed (one message names them), or an argument makes no sense.
    """

    # The benchmark whose splits are accepted; empty accepts any.
    dataset: ClassVar[str] = ""
    default_frames: ClassVar[int] = 200
    other_tasks: ClassVar[tuple[str, ...]] = ()  # other splits of the benchmark that the class takes

    def __init__(
        self,
        split: Split | str | Path | None = None,
        subset: str = "train",
        *,
        features: FeatureSource | str | os.PathLike[str],
        frames: int | Literal["default"] | None = "default",
        sampling: str = "uniform",
        replacement: bool = True,
        seed: int = 0,
        motion: Motion | None = None,
    ) -> None:
        self.sampling = one_of("sampling", sampling, SAMPLINGS, FeatureError)
        if frames == "default":
            frames = self.default_frames
        if frames is None and sampling == "random":
            raise FeatureError("random sampling needs a number of frames; frames=None takes all of them")
        self.frames = None if frames is None else whole_number("frames", frames, 1, FeatureError)
        self.replacement = replacement
        self.seed = whole_number("seed", seed, 0, FeatureError)
        if not isinstance(motion, Motion | None):
            raise FeatureError(f"motion must be a meidbench.loading.motion.Motion or None, got {motion!r}")
        self.motion = motion
        if split is None and not self.dataset:
            raise SplitError(
                f"{type(self).__name__} needs a split; only a benchmark's own class knows which is its own"
            )
        split = load_split(self.dataset if split is None else split)
        if self.dataset and split.dataset not in (self.dataset, *self.other_tasks):
            fitting = DATASET_CLASSES.get(split.dataset)
            use = f"meidbench.{fitting.__name__}" if fitting else "meidbench.FeatureDataset"
            own = " or ".join((self.dataset, *self.other_tasks))
            raise SplitError(f"{type(self).__name__} needs a split of {own}, got one of {split.dataset}: use {use}")
        self.subset = subset
        self.video_ids = split.video_ids(subset)
        if not self.video_ids:
            raise SplitError(split.describe_absence(subset))
        # Not the matrix: each spawned worker would get a copy, for VideoLT 180 MB with 0.1 % ones.
        positions, self._classes = np.nonzero(split.labels(subset))
        self._starts = np.searchsorted(positions, np.arange(len(self.video_ids) + 1))
        self.num_classes = split.num_classes
        self.class_names = split.class_names
        self.source = open_features(features)
        self.num_frames = self.source.check(self.video_ids)
        for note in self.source.take_notes():
            warnings.warn(note, stacklevel=2)
        self.frame_rows = FrameRows(self.num_frames, self.frames, sampling, replacement, self.seed)
        self.motion_frame_rows = self.frame_rows
        if motion is not None and not motion.same_index:
            other_seed = independent_seed(self.seed)
            self.motion_frame_rows = FrameRows(self.num_frames, self.frames, sampling, replacement, other_seed)
        self.dim = self.source.dim
        if self.source is not features:
            # Forked workers must not inherit an open HDF5 file; each opens its own. The caller's source may be in use.
            self.source.close()
        # Shared memory, because persistent workers hold their own copy of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._epoch.share_memory_()  # type: ignore[no-untyped-call, unused-ignore]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "labels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call, unused-ignore]

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, index: int) -> Sample:
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is outside the {write_count(len(self), 'video')} of {self.subset}")
        features, motion = self._streams(position)
        labels = torch.zeros(self.num_classes, dtype=torch.float32, device="cpu")
        labels[self._classes[self._starts[position] : self._starts[position + 1]]] = 1
        sample: Sample = {"video_id": self.video_ids[position], "features": features, "labels": labels}
        if motion is not None:
            sample["motion"] = motion
        return sample

    def _streams(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Return the features of a video and, where asked for, their motion."""
        epoch = self.epoch
        indices = self.frame_rows.select_one(position, epoch)
        if self.motion is None or self.motion.when == "sampled":
            features = self._read(position, indices)
            return features, None if self.motion is None else motion_rows(features, self.motion)
        whole = self._read(position, np.arange(self.num_frames[position]))
        if indices is None:
            return whole, motion_rows(whole, self.motion)
        others = self.motion_frame_rows.select_one(position, epoch)
        features = whole.index_select(0, torch.from_numpy(indices))
        return features, motion_rows(whole, self.motion, indices=None if others is None else others[None])

    def _read(self, position: int, indices: Indices | None) -> Tensor:
        # torch converts float16 several times faster than numpy.
        return _read_tensor(self.source, self.video_ids[position], indices).to(torch.float32)

    def __repr__(self) -> str:
        size = f"{write_count(len(self), 'video')}, {write_count(self.num_classes, 'class', 'classes')}"
        few = 0 if self.frames is None else int((self.num_frames < self.frames).sum())
        repeated = f" (rows repeated in {few:,} that have fewer)" if few else ""
        rows = f"{'all' if self.frames is None else self.frames} rows per video, {self.dim:,} numbers per row{repeated}"
        return f"<{type(self).__name__} {self.subset}: {size}, {rows}, features {self.source.path}>"

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """The (n, C) label matrix, rows as in ``video_ids``."""
        matrix = np.zeros((len(self), self.num_classes), dtype=bool)
        matrix[np.repeat(np.arange(len(self)), np.diff(self._starts)), self._classes] = True
        return matrix

    def label_rows(self, positions: Indices) -> Tensor:
        """Return the (B, C) float32 labels of several videos."""
        starts, counts = self._starts[positions], self._starts[positions + 1] - self._starts[positions]
        # The number of each label within its video: 0, 1, 0, 0, 1, 2 for videos of 2, 1 and 3 labels.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        matrix = np.zeros((len(positions), self.num_classes), np.float32)
        matrix[np.repeat(np.arange(len(positions)), counts), self._classes[np.repeat(starts, counts) + within]] = 1
        return torch.from_numpy(matrix)

    @property
    def epoch(self) -> int:
        """The epoch for which random frames are drawn."""
        return int(self._epoch.item())

    def set_epoch(self, epoch: int) -> None:
        """Draw other random frames; call it before each epoch's ``for batch in loader``: all workers see it at once."""
        self._epoch.fill_(whole_number("epoch", epoch, 0, FeatureError))


class VideoLT(FeatureDataset):
    """VideoLT: 1004 classes; its authors' features have 150 rows per video. See ``FeatureDataset``."""

    dataset = "videolt"
    default_frames = 150


class CharadesLT(FeatureDataset):
    """CharadesLT: 157 classes, 200 rows per video. See ``FeatureDataset``.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from meidbench.annotations import Annotations
    >>> from meidbench.splits.split import Split
    >>> annotations = Annotations(
    ...     class_names=("walking", "reading"), video_ids=["ATOYW"], sources=["train"], labels=[(1,)],
    ...     lengths=[30.0], subjects=[""], views=[""], pair_ids=[""], segments=[()],
    ... )
    >>> split = Split.from_annotations(
    ...     annotations, ["train"], dataset="charadeslt", variant="released", head_above=100, tail_up_to=20
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "ATOYW.npy"), np.arange(6, dtype=np.float16).reshape(3, 2))
    ...     data = CharadesLT(split, subset="train", features=folder, frames=2)
    ...     data[0]
    {'video_id': 'ATOYW', 'features': tensor([[0., 1.], [4., 5.]]), 'labels': tensor([0., 1.])}
    """

    dataset = "charadeslt"


class CharadesEgoLT(FeatureDataset):
    """CharadesEgoLT: the same classes in first- and third-person videos, 200 rows. See ``FeatureDataset``."""

    dataset = "charadesegolt"


class AnimalKingdom(FeatureDataset):
    """Animal Kingdom: 140 classes of actions in clips of a few seconds, 150 rows. See ``FeatureDataset``."""

    dataset = "animalkingdom"
    default_frames = 150


class EpicKitchens100(FeatureDataset):
    """EPIC-KITCHENS-100: segments of long videos, 8 rows; see ``FeatureDataset``.

    The split of any of its three tasks is taken, by default ``epic100-verbs``.
    """

    dataset, *_others = EPIC_DATASETS
    other_tasks = tuple(_others)
    default_frames = 8


DATASET_CLASSES: dict[str, type[FeatureDataset]] = {
    name: kind
    for kind in (VideoLT, CharadesLT, CharadesEgoLT, AnimalKingdom, EpicKitchens100)
    for name in (kind.dataset, *kind.other_tasks)
}


class RowTable:
    """Rows of n videos in one tensor, and (R,) scales of int8: a memory map, or a copy on a device."""

    def __init__(self, rows: Tensor, scales: Tensor | None, starts: Indices, counts: Indices) -> None:
        self.dtype, self.device = rows.dtype, rows.device
        self._rows, self._scales, self._starts, self._counts = rows, scales, starts, counts

    @classmethod
    def from_packed_file(cls, source: PackedFile, video_ids: list[str], counts: Indices) -> "RowTable":
        """Use the memory map of a packed file."""
        with warnings.catch_warnings():
            # torch warns that the map must not be written to; nothing here does.
            warnings.simplefilter("ignore", UserWarning)
            rows, scales = torch.from_numpy(source.mapped_rows()), source.row_scales()
        return cls(rows, None if scales is None else torch.from_numpy(scales), source.first_rows(video_ids), counts)

    def fill(self, positions: Indices, indices: Indices, out: Tensor) -> Tensor | None:
        """Put the (B, F) rows of the (B,) videos into ``out``, (B, F, D); return the (B, F) scales of int8."""
        rows = torch.from_numpy((self._starts[positions][:, None] + indices).reshape(-1)).to(self.device)
        # As numpy.take, but with all threads of torch.
        torch.index_select(self._rows, 0, rows, out=out.view(-1, out.shape[-1]))
        return None if self._scales is None else self._scales.index_select(0, rows).view(indices.shape)

    def fill_whole(self, positions: Indices, out: Tensor) -> Tensor | None:
        """Put all rows of the (B,) videos into ``out``, (R, D), end to end; return the (R,) scales of int8."""
        # Copying runs of rows is faster than gathering, and converts where ``out`` has another dtype.
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
        locks = not isinstance(source, NpyFolder)
        self._lock: AbstractContextManager[object] = threading.Lock() if locks else nullcontext()

    def fill(self, positions: Indices, indices: Iterable[Indices], out: Iterable[Tensor]) -> None:
        """Put rows into ``out``."""
        for position, wanted, part in zip(positions.tolist(), indices, out, strict=True):
            with self._lock:
                rows = _read_tensor(self._source, self._video_ids[position], wanted)
            part.copy_(rows)

    def fill_whole(self, positions: Indices, out: Tensor) -> None:
        """Put all rows into ``out``."""
        counts = self._counts[positions].tolist()
        self.fill(positions, map(np.arange, counts), torch.split(out, counts))


def _read_tensor(source: FeatureSource, video_id: str, indices: Indices | None) -> Tensor:
    rows = source.read(video_id, indices)
    # torch takes the machine's byte order only.
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))


def copy_to_device(stored: RowTable | VideoReader, counts: Indices, dim: int, device: torch.device) -> RowTable:
    """Copy all rows of a subset to a device, through a buffer of one video."""
    starts = (np.cumsum(counts) - counts).astype(np.int64)
    rows = torch.empty((int(counts.sum()), dim), dtype=stored.dtype, device=device)
    scales = torch.empty(len(rows), dtype=torch.float32, device=device) if stored.dtype == torch.int8 else None
    shape, pinned = (int(counts.max(initial=0)), dim), device.type == "cuda"
    buffer = torch.empty(shape, dtype=stored.dtype, device="cpu", pin_memory=pinned)
    bar = tqdm(counts.tolist(), "keeping features", unit=" videos", disable=None, delay=1.0, leave=False)
    for position, count in enumerate(bar):
        run = slice(int(starts[position]), int(starts[position]) + count)
        video_scales = stored.fill_whole(np.array([position]), buffer[:count])
        rows[run].copy_(buffer[:count])
        if scales is not None and video_scales is not None:
            scales[run].copy_(video_scales)
    return RowTable(rows, scales, starts, counts)
