"""Samplers: they draw the videos of an epoch, some of them by class. ``SAMPLERS`` names them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from meidbench.checks import in_range, whole_number
from meidbench.errors import MeidbenchError
from meidbench.evaluation.ranking import Positives

__all__ = ["SAMPLERS", "Draws", "VideoSampler", "class_probabilities", "label_mask"]

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_] | Positives


@dataclass(frozen=True)
class Draws:
    """The draws of an epoch, in order: ``videos`` (m,), and ``classes`` (m,) for which they were drawn, or -1."""

    videos: Indices
    classes: Indices

    def __len__(self) -> int:
        return len(self.videos)


class VideoSampler(Sampler[tuple[int, int]]):
    """A sampler of (video, class) pairs; the class is -1 if the video was not drawn for a class.

    The draws of an epoch depend on the arguments, the seed and the epoch alone, so a resumed training needs no state
    of the sampler. Iteration gives pairs of int; ``draws()`` returns the same as arrays.

    Parameters
    ----------
    labels : (n, C) ndarray of bool, or Positives
        Labels of the training videos. ``meidbench.evaluation.ranking.Positives.from_pairs`` makes them from the rows
        and classes of ``Split.label_pairs`` without a matrix.
    samples_per_epoch : int, optional
        Draws per epoch; by default the protocol's own number.
    seed : int

    Raises
    ------
    MeidbenchError
        There are no videos, or a parameter is impossible.
    """

    # Whether the protocol excludes other labels of a drawn video from the loss; see label_mask.
    masks_other_labels: ClassVar[bool] = False
    _needs_labels: ClassVar[bool] = False

    def __init__(self, labels: Labels, *, samples_per_epoch: int | None = None, seed: int = 0) -> None:
        self.labels = _read_labels(labels)
        if self._needs_labels and not len(self.labels.rows):
            raise MeidbenchError(f"{type(self).__name__} draws classes, but no video has a label")
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
        """Select the draws of another epoch, counted from 0; call it before each epoch."""
        self.epoch = whole_number("epoch", epoch)

    def shard(self, rank: int, world_size: int, *, drop: bool = False) -> None:
        """Restrict this process to its part: every ``world_size``-th draw from ``rank`` on.

        The parts are equally long. If ``world_size`` does not divide the draws, the first few are repeated at the end,
        or with ``drop`` the last few left out. Read in turn, the parts are the sequence of a single process; batches
        of B / world_size on each process hold the same videos as its batches of B.
        """
        self._world_size = whole_number("world_size", world_size, least=1)
        self._rank = whole_number("rank", rank)
        if self._rank >= self._world_size:
            raise MeidbenchError(f"rank must be below world_size {world_size}, got {rank}")
        self._drop = drop

    def draws(self) -> Draws:
        """Return the draws of this process in the epoch."""
        whole = self.whole_epoch()
        mine = np.arange(len(self)) * self._world_size + self._rank
        return Draws(whole.videos[mine % len(whole)], whole.classes[mine % len(whole)])

    def whole_epoch(self) -> Draws:
        """Return the draws of all processes together in the epoch."""
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


class Instance(VideoSampler):
    """Every video once per epoch, in random order; with ``samples_per_epoch``, in rounds. See ``VideoSampler``.

    Videos without labels are drawn too.

    Examples
    --------
    >>> sampler = Instance(np.eye(3, dtype=bool))
    >>> sorted(sampler)
    [(0, -1), (1, -1), (2, -1)]
    """

    def _draw(self, generator: np.random.Generator) -> Draws:
        videos = self._round(generator)
        if self.samples_per_epoch is not None:
            while len(videos) < self.samples_per_epoch:
                videos = np.concatenate([videos, self._round(generator)])
            videos = videos[: self.samples_per_epoch]
        return Draws(videos, np.full(len(videos), -1))

    def _round(self, generator: np.random.Generator) -> Indices:
        return generator.permutation(self.labels.videos)


class RepeatFactor(Instance):
    """Videos of rare classes several times per epoch: r = max over labels of max(1, sqrt(threshold / f_c)).

    Gupta et al., "LVIS" (2019), with f_c the share of videos that have class c, as in detectron2's
    ``RepeatFactorTrainingSampler``: an epoch has each video floor(r) times, and once more with the probability
    r - floor(r), all in random order. Its length varies from epoch to epoch; call ``set_epoch`` before ``len``. A
    video without labels has r = 1.

    Parameters
    ----------
    labels, samples_per_epoch, seed
        As in ``VideoSampler``.
    threshold : float
        Classes of a lower share are repeated; in (0, 1]. With LVIS's 0.001, the rarest class of VideoLT is repeated
        2.0 times and no class of CharadesLT; with 0.05 the rarest class of CharadesLT is repeated 3.5 times.

    Examples
    --------
    >>> sampler = RepeatFactor(np.eye(4, dtype=bool), threshold=1.0)
    >>> len(sampler), sampler.repeat_factors()
    (8, array([2., 2., 2., 2.]))
    """

    def __init__(
        self, labels: Labels, *, threshold: float = 1e-3, samples_per_epoch: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(labels, samples_per_epoch=samples_per_epoch, seed=seed)
        self.threshold = in_range("threshold", threshold, float(np.finfo(np.float64).tiny), 1)

    def repeat_factors(self) -> npt.NDArray[np.float64]:
        """Return r of each video, (n,)."""
        shares = self.counts / self.labels.videos
        of_class = np.sqrt(np.maximum(1, self.threshold / np.maximum(shares, 1 / self.labels.videos)))
        factors = np.ones(self.labels.videos)
        np.maximum.at(factors, self.labels.rows, of_class[self.labels.classes])
        return factors

    def _round(self, generator: np.random.Generator) -> Indices:
        factors = self.repeat_factors()
        whole = np.floor(factors)
        times = (whole + (generator.random(len(factors)) < factors - whole)).astype(np.int64)
        return generator.permutation(np.repeat(np.arange(len(factors)), times))


class _ClassSampler(VideoSampler):
    """A sampler that draws a class with a certain probability, then one of its videos; see ``Power``."""

    masks_other_labels = True
    _needs_labels = True
    # The probability of a class is proportional to this power of its count.
    exponent: float

    def __init__(
        self, labels: Labels, *, replacement: bool = True, samples_per_epoch: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(labels, samples_per_epoch=samples_per_epoch, seed=seed)
        self.replacement = replacement

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return the probability of each class in this epoch, (C,)."""
        return class_probabilities(self.counts, self.exponent)

    def _draw(self, generator: np.random.Generator) -> Draws:
        wanted = self.labels.videos if self.samples_per_epoch is None else self.samples_per_epoch
        classes = generator.choice(self.labels.num_classes, size=wanted, p=self.probabilities())
        return Draws(_draw_videos(self.labels, classes, generator, self.replacement), classes)


class ClassBalancedSampler(_ClassSampler):
    """Draw every class with the same probability, then one of its videos: ``CBS`` of VideoLT's code.

    Together with ``label_mask`` each class gets the same number of positives. Without it, other labels of the drawn
    videos count too: the expected imbalance of CharadesLT then only falls from 61.8 to 26.5. Parameters as in
    ``Power``, without ``q``.

    Examples
    --------
    >>> sampler = ClassBalancedSampler(np.array([[True, False], [True, False], [True, True]]), samples_per_epoch=1000)
    >>> np.bincount([label for _, label in sampler])
    array([504, 496])
    """

    exponent = 0.0


class SquareRoot(_ClassSampler):
    """Draw a class with a probability proportional to sqrt(n_c): ``SRS`` of VideoLT's code. See ``Power``."""

    exponent = 0.5


class Power(_ClassSampler):
    """Draw a class with a probability proportional to n_c^q, then one of its videos; n draws per epoch.

    Kang et al., "Decoupling representation and classifier for long-tailed recognition" (2020). With several labels per
    video, q = 1 is not ``Instance``: a video with more labels is drawn more often. A class without videos is never
    drawn, nor is a video without labels.

    Parameters
    ----------
    labels, samples_per_epoch, seed
        As in ``VideoSampler``; at least one label is needed.
    q : float
        1 keeps the imbalance, 0 is class-balanced.
    replacement : bool
        Draw each video of a class independently, as VideoLT's code does. False draws no video of a class again before
        all its videos have been drawn.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        q: float = 0.5,
        replacement: bool = True,
        samples_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(labels, replacement=replacement, samples_per_epoch=samples_per_epoch, seed=seed)
        self.exponent = in_range("q", q, 0)


class ProgressivelyBalanced(_ClassSampler):
    """Go from the counts of the classes to equal probabilities: p = (1 - t / T) p(q = 1) + t / T p(q = 0) in epoch t.

    Kang et al., "Decoupling representation and classifier for long-tailed recognition" (2020). See ``Power``.

    Parameters
    ----------
    labels, replacement, samples_per_epoch, seed
        As in ``Power``.
    epochs : int
        T. From epoch T on, all classes have the same probability.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        epochs: int = 100,
        replacement: bool = True,
        samples_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(labels, replacement=replacement, samples_per_epoch=samples_per_epoch, seed=seed)
        self.epochs = whole_number("epochs", epochs, least=1)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return the probability of each class in this epoch, (C,)."""
        progress = min(1.0, self.epoch / self.epochs)
        return (1 - progress) * class_probabilities(self.counts, 1) + progress * class_probabilities(self.counts, 0)


class ClassAware(VideoSampler):
    """The classes in turn, a few videos of each: random rounds of classes, and within a class of its videos.

    Shen et al., "Relay backpropagation" (2016), as in the code of the distribution-balanced loss: three videos of
    a class follow one another, and an epoch has max n_c C / 4 draws. There the rounds continue from epoch to epoch;
    here each epoch starts new ones. Classes without videos have no turn, and videos without labels are not drawn. No
    label is masked.

    Parameters
    ----------
    labels, samples_per_epoch, seed
        As in ``VideoSampler``; at least one label is needed.
    samples_per_class : int
        Videos of a class that follow one another.
    reduce : int
        The divisor of max n_c C.
    """

    _needs_labels = True

    def __init__(
        self,
        labels: Labels,
        *,
        samples_per_class: int = 3,
        reduce: int = 4,
        samples_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(labels, samples_per_epoch=samples_per_epoch, seed=seed)
        self.samples_per_class = whole_number("samples_per_class", samples_per_class, least=1)
        self.reduce = whole_number("reduce", reduce, least=1)

    def _draw(self, generator: np.random.Generator) -> Draws:
        present = np.flatnonzero(self.counts)
        wanted = self.samples_per_epoch or max(1, int(self.counts.max()) * len(present) // self.reduce)
        turns = -(-wanted // self.samples_per_class)
        rounds = np.tile(present, (-(-turns // len(present)), 1))
        classes = np.repeat(generator.permuted(rounds, axis=1).ravel()[:turns], self.samples_per_class)[:wanted]
        return Draws(_draw_videos(self.labels, classes, generator, replacement=False), classes)


SAMPLERS: dict[str, type[VideoSampler]] = {
    "instance": Instance,
    "class_balanced": ClassBalancedSampler,
    "square_root": SquareRoot,
    "power": Power,
    "progressively_balanced": ProgressivelyBalanced,
    "repeat_factor": RepeatFactor,
    "class_aware": ClassAware,
}


def class_probabilities(counts: npt.NDArray[Any], q: float) -> npt.NDArray[np.float64]:
    """Return n_c^q / sum n^q, and 0 for classes without videos; (C,).

    Examples
    --------
    >>> class_probabilities(np.array([16, 4, 0]), 0.5)
    array([0.66666667, 0.33333333, 0.        ])
    """
    # Shares of the largest, so that no q overflows.
    weights = np.where(counts > 0, (counts / counts.max()) ** q, 0.0)
    return np.asarray(weights / weights.sum())


def label_mask(targets: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the mask of a loss whose videos were drawn for a class, as in VideoLT's ``ResamplingDataset_Mask``.

    1 - (label - onehot(c)), 0 or 1: the mask keeps the class that the video was drawn for and the classes that the
    video does not have, and leaves out the other labels of the video.

    Parameters
    ----------
    targets : Tensor, (B, C)
        Labels of 0 and 1, before any mixing.
    classes : Tensor of int, (B,)
        The class that each video was drawn for; -1 masks nothing.

    Examples
    --------
    >>> label_mask(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), torch.tensor([1, -1]))
    tensor([[0., 1., 1.],
            [1., 1., 1.]])
    """
    drawn = torch.arange(targets.shape[1], device=targets.device) == classes.unsqueeze(1)
    return ((targets == 0) | drawn | (classes < 0).unsqueeze(1)).to(targets.dtype)


def _read_labels(labels: Labels) -> Positives:
    if not isinstance(labels, Positives):
        matrix = np.asarray(labels)
        if matrix.ndim != 2 or matrix.dtype != np.bool_:
            raise MeidbenchError(f"labels must be (n, C) of bool, got shape {matrix.shape} of {matrix.dtype}")
        rows, classes = np.nonzero(matrix)
        labels = Positives.from_pairs(rows, classes, *matrix.shape)
    if not labels.videos:
        raise MeidbenchError("there are no videos to sample")
    return labels


def _draw_videos(labels: Positives, classes: Indices, generator: np.random.Generator, replacement: bool) -> Indices:
    """Draw a video of each class."""
    counts = np.diff(labels.bounds)
    if replacement:
        return np.asarray(labels.rows[labels.bounds[classes] + generator.integers(counts[classes])])
    videos = np.empty(len(classes), dtype=np.int64)
    by_class = np.argsort(classes, kind="stable")
    wanted = np.bincount(classes, minlength=labels.num_classes)
    stops = np.cumsum(wanted)
    for index in np.flatnonzero(wanted).tolist():
        rounds = np.tile(labels.rows[labels.class_slice(index)], (-(-int(wanted[index]) // int(counts[index])), 1))
        drawn = generator.permuted(rounds, axis=1).ravel()[: wanted[index]]
        videos[by_class[stops[index] - wanted[index] : stops[index]]] = drawn
    return videos
