"""The base class of all models, the values that a model is built from, and the values that it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from meidbench.baselines.aggregators import Aggregator
from meidbench.errors import MeidbenchError
from meidbench.splits.groups import Groups


@dataclass(frozen=True)
class ModelInputs:
    """Facts about the data and the configuration that a model is built from.

    Attributes
    ----------
    dim, num_classes : int
        D and C.
    train_counts : (C,) int64 array
        Training videos of each class.
    groups : Groups
        Head, medium and tail classes.
    frames : int or None
        Frames N of every video, in training and in scoring; None where the two differ.
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
    """The result of a model's forward pass.

    Attributes
    ----------
    logits : Tensor, (B, C)
        In training the logits for the classification loss, in evaluation mode the scores of the videos.
    penalty : Tensor without a dimension, or None
        A term to be added to the classification loss, already weighted.
    targets : Tensor, (B, C), or None
        Labels that replace the given ones, where the model mixed videos.
    scores : Tensor, (B, C), or None
        In training the scores that the videos would have now, where they are not the logits for the loss.
    """

    logits: torch.Tensor
    penalty: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    scores: torch.Tensor | None = None

    @property
    def ranked(self) -> torch.Tensor:
        """The values (B, C) by which videos are ranked: the scores, or the logits where there are no others."""
        return self.logits if self.scores is None else self.scores


class Model(nn.Module):
    """A network from the frames of videos to logits, built from ``ModelInputs``.

    A model is called as ``model(features, motion, targets)``.
    """

    # Whether the model changes labels, so that no mask of them can be applied; whether it takes a motion stream, and
    # the configured aggregator; whether it starts from the weights of a first stage.
    mixes_targets = False
    takes_motion = False
    takes_aggregator = True
    needs_first_stage = False
    # Whether its weights start from the text of the class names (``TextAdapter``).
    takes_text = False
    # Whether scikit-learn fits it to whole training videos (``LinearProbe``), in place of steps of the optimiser.
    is_fitted = False
    # A dataclass whose fields are options too, where ``__init__`` takes them as ``**``.
    further_options: ClassVar[type | None] = None

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute the outputs of a batch.

        Parameters
        ----------
        features : Tensor, (B, N, D)
        motion : Tensor, (B, N, D), optional
            The motion stream of the same frames; see ``meidbench.loading.motion``.
        targets : Tensor, (B, C), optional
            Labels; in training only.
        """
        raise NotImplementedError

    def load_first_stage(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy the weights of the first stage's model into this one."""
        raise MeidbenchError(f"{type(self).__name__} does not begin from another model")

    def log_values(self) -> dict[str, float]:
        """Return numbers to be logged after each epoch."""
        return {}

    def describe_weights(self) -> str:
        """Return what a user should know of the trained weights; empty where there is nothing to say."""
        return ""


class Plain(Model):
    """The configured aggregator by itself."""

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__(inputs)
        self.aggregator = inputs.aggregator(inputs.dim)

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits; see ``Model``."""
        return Outputs(self.aggregator(features))
