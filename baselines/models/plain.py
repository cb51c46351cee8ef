"""The plain model: an aggregator, and nothing else."""

import torch

from meidbench.baselines.models.base import Model, Outputs, Task


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
