"""What learns: the model, its optimiser, and all that a checkpoint must hold of them."""

import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from meidbench.baselines.components import make_model
from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import Team
from meidbench.baselines.models import Model, ModelInputs
from meidbench.baselines.run_folder import load_checkpoint, save_checkpoint
from meidbench.baselines.running_ap import RunningAveragePrecision
from meidbench.errors import MeidbenchError, first_few

WEIGHTS, NOISE, MIXING = range(3)


def stream(seed: int, purpose: int, *place: int) -> int:
    """Return the seed of a purpose (``WEIGHTS``, ``NOISE`` of dropout, ``MIXING``) at a place of the run.

    Examples
    --------
    >>> stream(0, NOISE, 7) == stream(0, NOISE, 7), stream(0, NOISE, 7) == stream(0, MIXING, 7)
    (True, False)
    """
    words = np.random.SeedSequence(seed, spawn_key=(purpose, *place)).generate_state(2)
    return int(words[0]) << 32 | int(words[1])


@dataclass
class Position:
    """Where a run is: what is done, and what of the epoch so far must not be forgotten.

    Attributes
    ----------
    epoch : int
        Epochs that are done.
    part : int
        Batches of the next one that are done, by each process.
    step, forwards : int
        Steps of the optimiser, and batches of each process, since the beginning.
    loss_sum, penalty_sum, looked_at : float, float and int
        Sums of the losses of the epoch's steps and of the penalties among them, and of how many steps.
    best, best_epoch : float and int
        The best mAP so far, -1 before there is one, and after how many epochs.
    """

    epoch: int = 0
    part: int = 0
    step: int = 0
    forwards: int = 0
    loss_sum: float = 0.0
    penalty_sum: float = 0.0
    looked_at: int = 0
    best: float = -1.0
    best_epoch: int = 0


class Learner:
    """A model in training.

    Parameters
    ----------
    config : Config
    inputs : ModelInputs
    crew : Team

    Attributes
    ----------
    at : Position
    module, model : nn.Module
        The model, and the same so that processes share gradients.
    running : RunningAveragePrecision
    smallest_batch : int
        2 where the model normalises over the batch.
    """

    def __init__(self, config: Config, inputs: ModelInputs, crew: Team) -> None:
        self.config, self.crew = config, crew
        self.at = Position()
        torch.manual_seed(stream(config.seed, WEIGHTS))
        self.model = crew.shared(make_model(config, inputs).to(crew.device))
        wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        self.module: Model = self.model.module if wrapped else self.model  # type: ignore[assignment, unused-ignore]
        self.running = RunningAveragePrecision(inputs.num_classes)
        schedule = config.schedule
        self.optimiser = torch.optim.Adam(self.trained(), lr=schedule.lr, weight_decay=schedule.weight_decay)
        self.scaler = torch.amp.GradScaler(crew.device.type, enabled=schedule.precision == "fp16")  # type: ignore[attr-defined, unused-ignore]
        self.smallest_batch = smallest_batch(self.module)

    def apart(self) -> AbstractContextManager[Any]:
        """Return the context in which gradients stay in this process."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()  # type: ignore[no-any-return, unused-ignore]
        return nullcontext()

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that training moves."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def begin_from(self, path: Path) -> None:
        """Take over the weights that a first stage left.

        Raises
        ------
        MeidbenchError
            They are not there, damaged, or of another model.
        """
        self.module.load_first_stage(load_checkpoint(path)["model"])

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def step(self) -> torch.Tensor:
        """Move the weights, forget the gradients, and return the norm they had before it was cut."""
        limit = self.config.schedule.clip_norm
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.trained(), float("inf") if limit is None else limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            # The scaler leaves out a step whose gradients overflowed, and scales less: no divergence.
            norm = torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))
        return norm

    def save(self, path: Path, log_position: int) -> None:
        """Write all there is to go on from; every process must call it, the first writes."""
        state = self.running.state_dict()
        # What each process gathered, as one: the first goes on with all of it, and ranks do not ask for an order.
        for name in ("scores", "labels"):
            part = state[name]
            assert part is not None
            state[name] = self.crew.gather(part)
        if not self.crew.leads:
            return
        save_checkpoint(
            path,
            {
                "model": self.module.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "running_ap": state,
                "position": asdict(self.at),
                "log_position": log_position,
            },
        )

    def restore(self, path: Path) -> int:
        """Go on from a checkpoint, and return how much of the log belongs to it.

        Raises
        ------
        MeidbenchError
            It is damaged, or of another model.
        """
        content = load_checkpoint(path)
        try:
            self.module.load_state_dict(content["model"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content["scaler"])
            state = content["running_ap"]
            if not self.crew.leads:
                state = {**state, "scores": state["scores"][:0], "labels": state["labels"][:0]}
            self.running.load_state_dict(state)
            for entry in fields(Position):
                # A checkpoint may be from before a field was there.
                setattr(self.at, entry.name, content["position"].get(entry.name, entry.default))
            return int(content["log_position"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise _of_another_run(path, error) from None

    def save_weights(self, path: Path, scores: dict[str, dict[str, float]]) -> None:
        """Write the weights alone, with the configuration and what they reached."""
        content = {
            "model": self.module.state_dict(),
            "config": json.dumps(self.config.to_tables(), sort_keys=True),
            "epoch": self.at.best_epoch,
            "mAP": scores,
        }
        save_checkpoint(path, content)

    def load_weights(self, path: Path) -> int:
        """Take the weights that ``save_weights`` wrote, and return after how many epochs that was.

        Raises
        ------
        MeidbenchError
            They are not there, damaged, or of another model.
        """
        try:
            content = load_checkpoint(path)
            self.module.load_state_dict(content["model"])
            return int(content["epoch"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise _of_another_run(path, error) from None


def smallest_batch(model: nn.Module) -> int:
    """Return how many videos a training step needs: 2 where the model normalises over the batch."""
    return 2 if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()) else 1


def _of_another_run(path: Path, error: Exception) -> MeidbenchError:
    reason = " ".join(str(error).split())[:200]
    return MeidbenchError(f"{path} does not fit the run's configuration ({reason}); remove it to begin anew")


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


@dataclass(frozen=True)
class Part:
    """A batch as one process reads it.

    Attributes
    ----------
    videos : int
        How many of its videos count; those after them are repetitions that only make processes equally long. At
        least 1, because every process must go forward; its ``weight`` is 0 where none counts.
    weight : float
        What its mean loss is multiplied by, so that the average of the processes' summed gradients is the gradient of
        the step's mean loss.
    ends_step : bool
        Whether the optimiser moves after it.
    """

    videos: int
    weight: float
    ends_step: bool


@dataclass(frozen=True)
class EpochPlan:
    """The division of an epoch of ``draws`` videos for one process.

    Steps hold the same videos whatever ``processes`` and ``accumulate`` are: process r has the draws r, r +
    processes and so on. A last part of fewer than ``smallest`` videos is left out (batch normalisation cannot use a
    single one).

    Raises
    ------
    MeidbenchError
        A batch cannot be divided among the processes and parts, or parts are too small.

    Examples
    --------
    >>> plan = EpochPlan(draws=5, batch_size=4, accumulate=1, processes=2, rank=1)
    >>> plan.part(0), plan.part(1)
    (Part(videos=2, weight=1.0, ends_step=True), Part(videos=1, weight=0.0, ends_step=True))
    """

    draws: int
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    rank: int = 0
    smallest: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.processes * self.accumulate):
            raise MeidbenchError(
                f"schedule.batch_size {self.batch_size} cannot be divided among {self.processes} process(es) with "
                f"schedule.accumulate={self.accumulate}; choose a multiple of {self.processes * self.accumulate}"
            )
        if not self.parts or self.part_size < self.smallest:
            raise MeidbenchError(
                f"{self.draws} draws an epoch in parts of {self.part_size} leave no part of at least {self.smallest} "
                f"video(s) for each of {self.processes} process(es); change schedule.batch_size or schedule.accumulate"
            )

    @property
    def part_size(self) -> int:
        """Videos of a part, but for the last."""
        return self.batch_size // (self.processes * self.accumulate)

    @property
    def parts(self) -> int:
        """Parts of this process."""
        most = -(-self.draws // self.processes)
        left_out = 0 < most % self.part_size < self.smallest
        return -(-most // self.part_size) - left_out

    @property
    def shown(self) -> int:
        """Draws of the epoch that are not left out."""
        return min(self.draws, self.parts * self.part_size * self.processes)

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return -(-self.parts // self.accumulate)

    def part(self, index: int) -> Part:
        """Return the part at ``index``, from 0."""
        step = index // self.accumulate
        own = -(-(self.shown - self.rank) // self.processes)
        counted = max(0, min(self.part_size, own - index * self.part_size))
        of_step = min(self.batch_size, self.shown - step * self.batch_size)
        ends = (index + 1) % self.accumulate == 0 or index == self.parts - 1
        return Part(max(1, counted), counted * self.processes / of_step, ends)
