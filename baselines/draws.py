"""What an epoch shows: videos, the class that each was drawn for, and which labels count then."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from meidbench.baselines.losses.base import whole_number
from meidbench.errors import MeidbenchError
from meidbench.ranking import Positives

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """What an epoch shows, in order: ``videos`` (m,) and the class that each was drawn for, ``classes`` (m,).

    A class is -1 where the video was not drawn for a class.
    """

    videos: Indices
    classes: Indices

    def __len__(self) -> int:
        return len(self.videos)


class VideoSampler(Sampler[tuple[int, int]]):
    """A sampler of (video, class) pairs; class -1 where the video was not drawn for a class.

    The draws of an epoch depend on the arguments, the seed and the epoch alone, so a resumed training needs no state
    of the sampler. Iterating gives pairs of int; ``draws()`` the same as arrays.

    Parameters
    ----------
    labels : (n, C) ndarray of bool, or Positives
        Labels of the training videos. ``meidbench.ranking.Positives.of`` makes them from the rows and classes of
        ``Split.label_pairs`` without a matrix.
    samples_per_epoch : int, optional
        Draws an epoch; the protocol's own number where left out.
    seed : int

    Raises
    ------
    MeidbenchError
        There are no videos, or a parameter makes no sense.
    """

    # Whether the protocol takes other labels of a drawn video out of the loss; see label_mask.
    masks_other_labels: ClassVar[bool] = False

    def __init__(
        self, labels: npt.NDArray[np.bool_] | Positives, *, samples_per_epoch: int | None = None, seed: int = 0
    ) -> None:
        self.labels = _positives(labels)
        self.seed = whole_number("seed", seed)
        self.samples_per_epoch = (
            None if samples_per_epoch is None else whole_number("samples_per_epoch", samples_per_epoch, least=1)
        )
        self.epoch = 0
        self._rank, self._world_size, self._drop = 0, 1, False
        self._drawn: tuple[int, Draws] | None = None

    @property
    def counts(self) -> Indices:
        """(C,) videos of each class."""
        return np.diff(self.labels.bounds)

    def set_epoch(self, epoch: int) -> None:
        """Draw for another epoch, counted from 0; call it before each."""
        self.epoch = whole_number("epoch", epoch)

    def shard(self, rank: int, world_size: int, *, drop: bool = False) -> None:
        """Give this process its part: every ``world_size``-th draw from ``rank`` on.

        The parts are equally long. Where the draws do not divide, the first few are repeated at the end, or with
        ``drop`` the last few left out. Read in turn, the parts are the sequence of a single process; batches of B /
        world_size on each process hold what its batches of B hold.

        Parameters
        ----------
        rank : int
            This process, from 0.
        world_size : int
            Number of processes.
        drop : bool
        """
        self._world_size = whole_number("world_size", world_size, least=1)
        self._rank = whole_number("rank", rank)
        if self._rank >= self._world_size:
            raise MeidbenchError(f"rank must be below world_size {world_size}, got {rank}")
        self._drop = drop

    def draws(self) -> Draws:
        """Return what this process sees in the epoch."""
        whole = self.whole_epoch()
        if self._drop:
            places = np.arange(len(whole) // self._world_size * self._world_size)
        else:
            places = np.arange(-(-len(whole) // self._world_size) * self._world_size) % len(whole)
        mine = places[self._rank :: self._world_size]
        return Draws(whole.videos[mine], whole.classes[mine])

    def whole_epoch(self) -> Draws:
        """Return what all processes together see in the epoch."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
            self._drawn = self.epoch, self._draw(generator)
        return self._drawn[1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draws = self.draws()
        return zip(draws.videos.tolist(), draws.classes.tolist(), strict=True)

    def __len__(self) -> int:
        """Draws of this process in the epoch."""
        whole = len(self.whole_epoch())
        return whole // self._world_size if self._drop else -(-whole // self._world_size)

    def _draw(self, generator: np.random.Generator) -> Draws:
        raise NotImplementedError


def label_mask(targets: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return which elements of a loss count where videos were drawn for a class.

    1 - (label - onehot(c)), as in VideoLT's ``ResamplingDataset_Mask``: the class that the video was drawn for counts,
    and so do those that the video does not have; its other labels do not.

    Parameters
    ----------
    targets : Tensor, (B, C)
        Labels of 0 and 1, before any mixing.
    classes : Tensor of int, (B,)
        The class that each video was drawn for; -1 masks nothing.

    Returns
    -------
    Tensor, (B, C)
        0 and 1, of the dtype of ``targets``.

    Examples
    --------
    >>> label_mask(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), torch.tensor([1, -1]))
    tensor([[0., 1., 1.],
            [1., 1., 1.]])
    """
    drawn = torch.arange(targets.shape[1], device=targets.device) == classes.unsqueeze(1)
    return ((targets == 0) | drawn | (classes < 0).unsqueeze(1)).to(targets.dtype)


def _positives(labels: npt.NDArray[np.bool_] | Positives) -> Positives:
    if not isinstance(labels, Positives):
        matrix = np.asarray(labels)
        if matrix.ndim != 2 or matrix.dtype != np.bool_:
            raise MeidbenchError(f"labels must be (n, C) of bool, got shape {matrix.shape} of {matrix.dtype}")
        rows, classes = np.nonzero(matrix)
        labels = Positives.of(rows, classes, *matrix.shape)
    if not labels.videos:
        raise MeidbenchError("there are no videos to sample")
    return labels
