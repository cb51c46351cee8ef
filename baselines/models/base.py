"""What every model has in common: what it must know of its data, what it takes and what it gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from meidbench.baselines.aggregators import Aggregator
from meidbench.errors import MeidbenchError
from meidbench.splits.split import Groups


@dataclass(frozen=True)
class Task:
    """What a model must know of its data and of the rest of a configuration.

    Attributes
    ----------
    dim, num_classes : int
        D and C.
    train_counts : (C,) int64 array
        Training videos of each class.
    groups : Groups
        Head, medium and tail classes.
    frames : int or None
        Frames N of every video, in training and when it is scored; None where the two differ.
    has_motion : bool
        Whether a motion stream comes with the features.
    aggregator : callable
        ``aggregator(width)`` makes the configured aggregator, from frames of that width to C logits.
    """

    dim: int
    num_classes: int
    train_counts: npt.NDArray[np.int64]
    groups: Groups
    frames: int | None
    has_motion: bool
    aggregator: Callable[[int], Aggregator]


class Outputs(NamedTuple):
    """What a model gives.

    Attributes
    ----------
    logits : Tensor, (B, C)
        In training those that the classification loss is of, in evaluation mode the scores of the videos.
    penalty : Tensor without a dimension, or None
        What is added to the classification loss, weighted already.
    targets : Tensor, (B, C), or None
        Labels in place of those that were given, where the model mixed videos.
    """

    logits: torch.Tensor
    penalty: torch.Tensor | None = None
    targets: torch.Tensor | None = None


class Model(nn.Module):
    """From the frames of videos to logits, called as ``model(features, motion, targets)``.

    Parameters
    ----------
    task : Task

    Attributes
    ----------
    task : Task
    """

    # Whether it changes labels, so that no mask of them can be applied; whether it takes a motion stream, and the
    # configured aggregator; whether it begins with the weights of a first stage.
    mixes_targets = False
    takes_motion = False
    takes_aggregator = True
    begins_from_first_stage = False

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits.

        Parameters
        ----------
        features : Tensor, (B, N, D)
        motion : Tensor, (B, N, D), optional
            The motion stream of the same frames; see ``meidbench.loading.motion``.
        targets : Tensor, (B, C), optional
            Labels; in training only.

        Returns
        -------
        Outputs
        """
        raise NotImplementedError

    def begin_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of the first stage's model."""
        raise MeidbenchError(f"{type(self).__name__} does not begin from another model")

    def facts(self) -> dict[str, float]:
        """Return numbers to be logged after each epoch."""
        return {}


class Plain(Model):
    """The configured aggregator by itself.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.aggregator = task.aggregator(task.dim)

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits; see ``Model``."""
        return Outputs(self.aggregator(features))
