"""EQL: rare classes are spared most of the gradient from videos of other classes."""

import numpy as np
import torch

from meidbench.baselines.losses.base import Counts, Loss, binary_cross_entropy
from meidbench.checks import in_range, whole_number
from meidbench.errors import MeidbenchError, first_few


class EQL(Loss):
    """Equalisation loss: (1 - beta t_c (1 - y)) bce, t_c = 1 for a rare class, beta ~ Bernoulli(gamma) per element.

    Tan et al., "Equalization loss for long-tailed object recognition" (2020): the sigmoids of its detection form
    (without background proposals, which videos do not have) with the beta of its classification form. VideoLT's code
    sets gamma to 0.00176, which in detection is the frequency below which a class is rare. It drops 0.18 % of the
    negatives of rare classes, and is practically plain cross-entropy.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``. A class without training videos is rare.
    gamma : float
        Share of a rare class's negatives that are dropped, in [0, 1): with 1 the class would never learn its negatives.
    tail_up_to : int, optional
        A class with at most this number of training videos is rare: 100 for VideoLT, 20 for CharadesLT and
        CharadesEgoLT.
    tail_below : float, optional
        Instead: a class with a lower share of the training videos is rare.
    tail_classes : tuple of int, optional
        Instead: these class indices are rare, where a split's groups are by list. Exactly one of the three must be
        given.
    seed : int
        The dropped elements of a forward pass depend on the seed and on ``set_step`` alone, so a resumed training needs
        no state. Call it before each forward pass.

    Examples
    --------
    >>> EQL([90, 4], num_videos=94, tail_up_to=20)(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    tensor(0.6931)
    """

    tail: torch.Tensor

    def __init__(
        self,
        train_counts: Counts,
        num_videos: int,
        *,
        gamma: float = 0.9,
        tail_up_to: int | None = None,
        tail_below: float | None = None,
        tail_classes: tuple[int, ...] | None = None,
        seed: int = 0,
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.gamma = in_range("gamma", gamma, 0, 1, open_end=True)
        self.seed = whole_number("seed", seed)
        self._step = (0, 0, 1)
        if sum(value is not None for value in (tail_up_to, tail_below, tail_classes)) != 1:
            given = f"got {tail_up_to}, {tail_below} and {tail_classes}"
            options = "either tail_up_to (VideoLT: 100, Charades: 20), tail_below or tail_classes"
            raise MeidbenchError(f"EQL needs {options}, {given}")
        if tail_up_to is not None:
            tail = self.train_counts <= whole_number("tail_up_to", tail_up_to)
        elif tail_below is not None:
            tail = self.train_counts / self.num_videos < in_range("tail_below", tail_below, 0, 1)
        else:
            indices, rare = np.arange(len(self.train_counts)), tail_classes or ()
            tail = np.isin(indices, rare)
            if strange := sorted(set(rare) - set(indices.tolist())):
                raise MeidbenchError(f"tail_classes holds no class indices below {len(indices)}: {first_few(strange)}")
        self._register_constant("tail", tail)

    def set_step(self, step: int, rank: int = 0, world_size: int = 1) -> None:
        """Select the draw of forward pass ``step`` of the whole training.

        Each of several processes draws for the whole batch and takes the rows ``rank``, ``rank + world_size`` and so
        on, which are its own rows where a sampler is sharded: together they drop the same elements as one process.
        """
        size = whole_number("world_size", world_size, least=1)
        if whole_number("rank", rank) >= size:
            raise MeidbenchError(f"rank must be below world_size {size}, got {rank}")
        self._step = (whole_number("step", step), rank, size)

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy, 0 where it is dropped, (B, C)."""
        return self.weights(targets, self._dropped(targets)) * binary_cross_entropy(logits, targets)

    def weights(self, targets: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        """Return 1 - beta t_c (1 - y) for beta = ``dropped``, (B, C)."""
        return 1 - dropped.to(targets.dtype) * self.tail.to(targets.dtype) * (1 - targets)

    def _dropped(self, targets: torch.Tensor) -> torch.Tensor:
        step, rank, world_size = self._step
        state = np.random.SeedSequence(self.seed, spawn_key=(step,)).generate_state(1)
        # On the CPU, so that every device drops the same elements.
        generator = torch.Generator().manual_seed(int(state[0]))
        drawn = torch.rand(len(targets) * world_size, targets.shape[1], generator=generator)
        return (drawn[rank::world_size] < self.gamma).to(targets.device)
