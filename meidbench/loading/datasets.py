"""The three benchmarks as PyTorch datasets: features and labels of one subset of a split, video by video."""

import operator
import os
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from meidbench.checks import one_of, whole_number
from meidbench.errors import FeatureError, SplitError
from meidbench.features import FeatureSource, open_features
from meidbench.features.frame_sampling import FrameRows
from meidbench.loading.motion import Motion, independent_seed, motion_rows
from meidbench.names import SAMPLINGS
from meidbench.splits.split import Split, load_split


class _Sample(TypedDict):
    video_id: str
    features: torch.Tensor
    labels: torch.Tensor


class Sample(_Sample, total=False):
    """One video of a dataset: float32 ``features`` (frames, D) and ``labels`` (C,) of 0 and 1.

    A dataset with ``motion`` adds a float32 ``motion`` (frames, D).
    """

    motion: torch.Tensor


class FeatureDataset(Dataset[Sample]):
    """One subset of a split with its features, for any split; each benchmark has a class of its own below.

    The constructor checks all videos (headers only, see ``FeatureSource.check``), so no missing file can end an epoch.
    ``data[i]`` depends only on the arguments, the epoch and ``i``: not on the number of workers, on the order of
    reading, or on a restart.

    Parameters
    ----------
    split : Split, str or Path, optional
        A split, its file, or its name. The class of a benchmark refuses the splits of others, and by default takes its
        own from below ``MEIDBENCH_HOME``.
    subset : str
        ``train``, ``val`` or ``test``.
    features : FeatureSource, str or Path
        A source of ``meidbench.features.open_features``, or its path.
    frames : int, "default" or None
        Rows of each video, 200 by default (``VideoLT``: 150); a video with fewer rows repeats some. None takes all:
        videos then differ in length, and a ``DataLoader`` needs ``batch_size=1`` or a ``collate_fn`` that pads.
    sampling : str
        ``uniform`` (evenly spaced) or ``random`` (new rows per epoch); see ``meidbench.features.frame_sampling``.
    replacement : bool
        Whether ``random`` may draw a row twice.
    seed : int
        For ``random``.
    motion : Motion, optional
        Adds MEID's motion stream to the features; see ``meidbench.loading.motion``.

    Attributes
    ----------
    video_ids : list of str
        n ids in the order of the split.
    num_classes : int
        C.
    class_names : tuple of str
    dim : int
        Width D of the features.
    num_frames : (n,) int64 array
        Rows that each video has.
    frame_rows, motion_frame_rows : FrameRows
        The rows to take of the features, and of the motion stream of a whole video.

    Raises
    ------
    SplitError
        The split or the subset does not exist, or the split is of another dataset.
    FeatureError
        Features are missing or malformed (one message names them), or an argument makes no sense.
    """

    # The benchmark whose splits are accepted; empty accepts any.
    dataset: ClassVar[str] = ""
    default_frames: ClassVar[int] = 200

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
        if self.dataset not in ("", split.dataset):
            fitting = DATASET_CLASSES.get(split.dataset)
            raise SplitError(
                f"{type(self).__name__} needs a split of {self.dataset}, got one of {split.dataset}"
                + (f": use meidbench.{fitting.__name__}" if fitting else "")
            )
        self.subset = subset
        self.video_ids = split.video_ids(subset)
        # Not the matrix: each spawned worker would get a copy, for VideoLT 180 MB with 0.1 % ones.
        positions, self._classes = np.nonzero(split.labels(subset))
        self._starts = np.searchsorted(positions, np.arange(len(self.video_ids) + 1))
        self.num_classes = split.num_classes
        self.class_names = split.class_names
        self.source = open_features(features)
        self.num_frames = self.source.check(self.video_ids)
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
            raise IndexError(f"index {index} is outside the {len(self):,} videos of {self.subset}")
        features, motion = self._streams(position)
        labels = torch.zeros(self.num_classes, dtype=torch.float32, device="cpu")
        labels[self._classes[self._starts[position] : self._starts[position + 1]]] = 1
        sample: Sample = {"video_id": self.video_ids[position], "features": features, "labels": labels}
        if motion is not None:
            sample["motion"] = motion
        return sample

    def _streams(self, position: int) -> tuple[torch.Tensor, torch.Tensor | None]:
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

    def _read(self, position: int, indices: npt.NDArray[np.int64] | None) -> torch.Tensor:
        rows = self.source.read(self.video_ids[position], indices)
        # torch takes the machine's byte order only, and converts float16 several times faster than numpy.
        return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False)).to(torch.float32)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.subset}: {len(self):,} videos, {self.num_classes} classes>"

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """The (n, C) label matrix, rows as in ``video_ids``."""
        matrix = np.zeros((len(self), self.num_classes), dtype=bool)
        matrix[np.repeat(np.arange(len(self)), np.diff(self._starts)), self._classes] = True
        return matrix

    def label_rows(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
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
        """Draw other random frames; call it before each epoch's ``for batch in loader``.

        All workers, also persistent ones, see it at once: in the middle of an epoch, it would change the videos that
        are not read yet.
        """
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


DATASET_CLASSES: dict[str, type[FeatureDataset]] = {kind.dataset: kind for kind in (VideoLT, CharadesLT, CharadesEgoLT)}
