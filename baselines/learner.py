"""What learns: the model, its optimiser, and all that a checkpoint must hold of them."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meidbench.baselines.checkpoints import load_checkpoint, save_checkpoint
from meidbench.baselines.components import make_model
from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import Team
from meidbench.baselines.models import Model, Task
from meidbench.baselines.running_ap import RunningAveragePrecision
from meidbench.baselines.streams import WEIGHTS, stream
from meidbench.errors import MeidbenchError


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
    task : Task
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

    def __init__(self, config: Config, task: Task, crew: Team) -> None:
        self.config, self.crew = config, crew
        self.at = Position()
        torch.manual_seed(stream(config.seed, WEIGHTS))
        self.model = crew.shared(make_model(config, task).to(crew.device))
        wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        self.module: Model = self.model.module if wrapped else self.model  # type: ignore[assignment, unused-ignore]
        self.running = RunningAveragePrecision(task.num_classes)
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
        self.module.begin_from(load_checkpoint(path)["model"])

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
