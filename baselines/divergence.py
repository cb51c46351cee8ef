"""Tells when a training has diverged, and at which videos."""

import math
from dataclasses import dataclass

import torch

from meidbench.errors import MeidbenchError, first_few


class Divergence(MeidbenchError):
    """A loss or a gradient is NaN or infinite.

    Attributes
    ----------
    step : int
    video_ids : tuple of str
        All videos of the step's batch (of this process).
    """

    def __init__(self, message: str, step: int, video_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.step = step
        self.video_ids = video_ids


@dataclass(frozen=True)
class Seen:
    """What steps had: their number, the sums of losses and of the penalties among them, the largest gradient norm."""

    steps: int
    loss_sum: float
    penalty_sum: float
    largest_norm: float


class LossWatch:
    """Holds the losses and gradient norms of steps until they are asked for, so that a device is waited for rarely.

    On a CPU, where nothing need be waited for, a step that diverged is refused at once.

    Examples
    --------
    >>> watch = LossWatch()
    >>> watch.add(7, 0, ["ATOYW"], torch.tensor(0.25), torch.tensor(2.0))
    >>> watch.add(8, 0, ["B1Z"], torch.tensor(0.5), torch.tensor(1.0))
    >>> watch.look()
    Seen(steps=2, loss_sum=0.75, penalty_sum=0.0, largest_norm=2.0)
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, tuple[str, ...]]] = []
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self._penalties: list[torch.Tensor] = []

    def add(
        self,
        step: int,
        epoch: int,
        video_ids: list[str],
        loss: torch.Tensor,
        norm: torch.Tensor,
        penalty: torch.Tensor | None = None,
    ) -> None:
        """Take in a step: its number and epoch from 0, its videos, and tensors without a dimension."""
        self._steps.append((step, epoch, tuple(video_ids)))
        self._losses.append(loss.detach())
        self._norms.append(norm.detach())
        self._penalties.append(torch.zeros_like(loss) if penalty is None else penalty.detach())
        if loss.device.type == "cpu" and not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            self.look()

    def look(self) -> Seen:
        """Return what there was since the last look.

        Raises
        ------
        Divergence
            A loss or norm is NaN or infinite; the first step is named.
        """
        if not self._steps:
            return Seen(0, 0.0, 0.0, math.nan)
        steps, losses, norms = self._steps, torch.stack(self._losses).tolist(), torch.stack(self._norms).tolist()
        penalty_sum = float(torch.stack(self._penalties).sum())
        self._steps, self._losses, self._norms, self._penalties = [], [], [], []
        for (step, epoch, video_ids), loss, norm in zip(steps, losses, norms, strict=True):
            for name, value in (("loss", loss), ("norm of the gradients", norm)):
                if not math.isfinite(value):
                    raise Divergence(
                        f"training diverged at step {step} (epoch {epoch}): the {name} is {value}; the batch has "
                        f"{len(video_ids)} video(s): {first_few(video_ids)} (all of them are in log.jsonl)\n"
                        "Look at these videos' features with 'meidbench verify-features', or lower schedule.lr",
                        step,
                        video_ids,
                    )
        return Seen(len(steps), sum(losses), penalty_sum, max(norms))
