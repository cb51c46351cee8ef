"""A model in training: its optimiser, its place in the run, its losses, and the division of an epoch into steps."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from meidbench.baselines.configuration import (
    Config,
    check_model,
    check_processes,
    make_augmentation,
    make_loss,
    make_model,
    make_model_inputs,
    make_sampler,
)
from meidbench.baselines.distributed import ProcessGroup
from meidbench.baselines.models import Model, ModelInputs
from meidbench.baselines.run_folder import checkpoint_remedy, load_checkpoint, save_checkpoint
from meidbench.baselines.running_ap import RunningAveragePrecision
from meidbench.checks import is_whole_number, parse_json, show
from meidbench.errors import DivergenceError, MeidbenchError, bullet_list, first_few
from meidbench.evaluation.results import MeanAP
from meidbench.extraction.encoders.weights import is_dense
from meidbench.splits.split import Split

WEIGHTS, NOISE, MIXING = range(3)
# The allocator of the CPU raises a plain RuntimeError, and so do sizes beyond every memory.
_MEMORY_TEXTS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "size calculation overflowed")
# Fields of Position under the names that they have in last.pt.
_STORED_NAMES = {"micro_batch": "part", "summed_steps": "looked_at"}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory was not enough."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def derive_seed(seed: int, purpose: int, *place: int) -> int:
    """Return the seed of a purpose (``WEIGHTS``, ``NOISE`` of dropout, ``MIXING``) at a place of the run."""
    words = np.random.SeedSequence(seed, spawn_key=(purpose, *place)).generate_state(2)
    return int(words[0]) << 32 | int(words[1])


@dataclass
class Position:
    """The place of a run, and the sums of its current epoch."""

    epoch: int = 0  # epochs that are done
    micro_batch: int = 0  # of the next epoch that are done, per process
    step: int = 0  # steps of the optimiser since the beginning
    forwards: int = 0  # micro-batches per process since the beginning
    loss_sum: float = 0.0  # of the epoch's steps, as the next two
    penalty_sum: float = 0.0
    summed_steps: int = 0
    best: float = -1.0  # the best mAP so far, -1 before the first
    best_epoch: int = 0  # the number of epochs after which it was reached


# Called with a stage's configuration, its place, and the mean AP on the subset that selects.
Watch = Callable[[Config, Position, MeanAP], None]


class Learner:
    """A model in training: ``module``, and ``model``, which is the same wrapped so that processes share gradients."""

    def __init__(self, config: Config, inputs: ModelInputs, processes: ProcessGroup) -> None:
        self.config, self.processes = config, processes
        self.position = Position()
        torch.manual_seed(derive_seed(config.seed, WEIGHTS))
        self.module: Model = make_model(config, inputs).to(processes.device)
        self.model = processes.wrap(self.module)
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            self.module = self.model.module  # batch normalisation may have been replaced
        self.running = RunningAveragePrecision(inputs.num_classes)
        self.weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        schedule = config.schedule
        self.optimiser = torch.optim.Adam(self.weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=schedule.precision == "fp16")  # type: ignore[attr-defined, unused-ignore]

    def keep_gradients_local(self) -> AbstractContextManager[Any]:
        """Return the context in which gradients stay in this process."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()  # type: ignore[no-any-return, unused-ignore]
        return nullcontext()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def step(self) -> torch.Tensor:
        """Move the weights, drop the gradients, and return their norm before it was cut."""
        limit = self.config.schedule.clip_norm
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.weights, float("inf") if limit is None else limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            # The scaler leaves out a step whose gradients overflowed, and scales less: this is not a divergence.
            norm = torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))
        return norm

    def save(self, path: Path, log_position: int) -> None:
        """Write a checkpoint to resume from. Every process must call it; the first one writes."""
        state = self.running.state_dict()
        # The first process resumes with the rows of all processes; their order does not matter.
        state |= {name: self.processes.gather(state[name]) for name in ("scores", "labels")}
        if not self.processes.is_first:
            return
        content = {
            "model": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "running_ap": state,
            "position": self._position_table(),
            "log_position": log_position,
        }
        save_checkpoint(path, content)

    def restore(self, path: Path) -> int:
        """Resume from a checkpoint of this model, and return the number of bytes of the log that belong to it."""
        content = load_checkpoint(path)
        # All is checked before anything is taken over.
        if problems := self._list_problems(content):
            raise _make_mismatch_error(path, problems)
        state, position = content["running_ap"], content["position"]
        if not self.processes.is_first:
            state = {**state, "scores": state["scores"][:0], "labels": state["labels"][:0]}
        try:
            self.module.load_state_dict(content["model"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content["scaler"])
            self.running.load_state_dict(state)
        except (RuntimeError, ValueError, MeidbenchError) as error:
            raise _make_mismatch_error(path, [str(error)]) from None
        for name in asdict(self.position):
            setattr(self.position, name, position[_STORED_NAMES.get(name, name)])
        return int(content["log_position"])

    def _list_problems(self, content: dict[str, Any]) -> list[str]:
        """Compare the types, shapes and ranges in a checkpoint with those that this learner would write."""
        adam = self.optimiser.state_dict()
        expected = {
            "model": self.module.state_dict(),
            "optimiser": adam,
            "scaler": self.scaler.state_dict(),
            "position": self._position_table(),
            "log_position": 0,
        }
        if missing := [name for name in (*expected, "running_ap") if name not in content]:
            return [f"{first_few(missing)} is missing"]
        stored = content["optimiser"].get("state") if isinstance(content["optimiser"], dict) else None
        if isinstance(stored, dict):  # Adam has a state only for weights that have had a gradient
            adam["state"] = {
                index: {"step": torch.zeros(()), "exp_avg": weight.detach(), "exp_avg_sq": weight.detach()}
                for index, weight in enumerate(self.weights)
                if index in stored
            }
        problems = _list_misfits({name: content[name] for name in expected}, expected)
        problems = problems or self._list_odd_numbers(content)
        return problems + self.running.list_problems(content["running_ap"])

    def _position_table(self) -> dict[str, Any]:
        return {_STORED_NAMES.get(name, name): value for name, value in asdict(self.position).items()}

    def _list_odd_numbers(self, content: dict[str, Any]) -> list[str]:
        """Name numbers of the right type that no training gives."""
        position, epochs = content["position"], self.config.schedule.epochs
        adam, scaler = content["optimiser"]["state"], content["scaler"]
        is_odd = {
            f"position.epoch is {position['epoch']} of {epochs}": position["epoch"] > epochs,
            f"position.best is {position['best']}": not -1 <= position["best"] <= 1,
            f"position.best_epoch is {position['best_epoch']}": position["best_epoch"] > position["epoch"],
            "optimiser.state is empty": bool(position["step"] and self.weights and not adam),
            "optimiser.state has negative numbers": any(
                bool((moments[name] < 0).any()) for moments in adam.values() for name in ("step", "exp_avg_sq")
            ),
            "scaler has negative numbers": any(value < 0 for value in scaler.values()),
        }
        return [text for text, odd in is_odd.items() if odd]

    def save_weights(self, path: Path, scores: dict[str, dict[str, float]]) -> None:
        """Write the weights alone, with the configuration and the mAP that they reached."""
        content = {
            "model": self.module.state_dict(),
            "config": json.dumps(self.config.to_tables(), sort_keys=True),
            "epoch": self.position.best_epoch,
            "mAP": scores,
        }
        save_checkpoint(path, content)

    def load_weights(self, path: Path) -> int:
        """Load weights that ``save_weights`` wrote, and return the number of epochs that they were trained for."""
        content = load_checkpoint(path)
        expected = {"model": self.module.state_dict(), "config": "", "epoch": 1}
        if missing := [name for name in expected if name not in content]:
            raise _make_mismatch_error(path, [f"{first_few(missing)} is missing"])
        if problems := _list_misfits({name: content[name] for name in expected}, expected):
            raise _make_mismatch_error(path, problems)
        # The file's checksums cover these values; config.json, which made this learner, has none.
        try:
            trained_with = Config.from_tables(parse_json(content["config"]))
        except (ValueError, RecursionError) as error:
            raise _make_mismatch_error(path, [f"its configuration is damaged: {error}"]) from None
        epochs = self.config.schedule.epochs  # the run may have become longer since
        if trained_with.schedule.epochs < epochs:
            trained_with = trained_with.with_epochs(epochs)
        if differences := trained_with.differences(self.config):
            raise _make_mismatch_error(path, differences)
        self.module.load_state_dict(content["model"])
        return int(content["epoch"])


def read_first_stage(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint of a first stage; refuse what is no weights."""
    weights = load_checkpoint(path).get("model")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise _make_mismatch_error(path, ["it holds no weights"])
    if odd := [name for name, value in weights.items() if _describe_tensor_misfit(value, value)]:
        raise _make_mismatch_error(path, [f"{first_few(odd)} holds no finite numbers"])
    return weights


def _list_misfits(found: Any, expected: Any, where: str = "") -> list[str]:
    """Compare the types, keys and shapes of nested values; name the first few that are other ones."""
    if isinstance(expected, torch.Tensor):
        problem = _describe_tensor_misfit(found, expected)
        return [f"{where} {problem}"] if problem else []
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return [f"{where} is {show(found)}, expected a dictionary"]
        inner = f"{where}." if where else ""
        # The settings of Adam, which follow from the configuration, differ between versions of torch.
        if where.startswith("optimiser.param_groups."):
            expected = {key: value for key, value in expected.items() if key in found or key == "params"}
            found = {key: value for key, value in found.items() if key in expected}
        if found.keys() != expected.keys():
            other = [f"{inner}{key}" for key in {**expected, **found} if (key in found) != (key in expected)]
            return [f"{first_few(other)} is missing or unknown"]
        return [line for key in expected for line in _list_misfits(found[key], expected[key], f"{inner}{key}")]
    if isinstance(expected, list | tuple):
        if type(found) is not type(expected) or len(found) != len(expected):
            return [f"{where} is {show(found)}, expected {show(expected)}"]
        pairs = zip(found, expected, strict=True)
        return [line for place, pair in enumerate(pairs) for line in _list_misfits(*pair, f"{where}.{place}")]
    if isinstance(expected, bool) or expected is None:
        fits = found is expected
    elif isinstance(expected, float):
        fits = type(found) in (int, float) and math.isfinite(found)
    elif isinstance(expected, int):
        fits = is_whole_number(found, 0) and found < 1 << 53
    else:
        fits = type(found) is type(expected)
    return [] if fits else [f"{where} is {show(found)}, expected a value like {show(expected)}"]


def _describe_tensor_misfit(found: Any, expected: torch.Tensor) -> str:
    """Say how a value differs from a tensor of a shape and a type; empty for such a tensor of finite numbers."""
    if not is_dense(found):
        return f"is {'a sparse or quantised tensor' if isinstance(found, torch.Tensor) else show(found)}"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"is {tuple(found.shape)} {found.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
    if not bool(found.isfinite().all()):
        return "holds NaN or infinity"
    return ""


def _make_mismatch_error(path: Path, problems: Sequence[str]) -> MeidbenchError:
    shortened = [" ".join(problem.split())[:200] for problem in problems]
    return MeidbenchError(
        f"{path} does not fit the run's configuration, or is damaged:\n{bullet_list(shortened, 5)}\n"
        f"{checkpoint_remedy(path)}"
    )


@dataclass(frozen=True)
class StepTotals:
    """The number of steps, the sums of their losses and penalties, and their largest gradient norm."""

    steps: int
    loss_sum: float
    penalty_sum: float
    largest_norm: float


class LossMonitor:
    """Holds the losses and gradient norms of steps on their device, so that the device is waited for rarely.

    On a CPU, which need not be waited for, a step that diverged is refused at once.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, tuple[str, ...]]] = []
        self._values: list[torch.Tensor] = []

    def add(
        self, step: int, epoch: int, video_ids: list[str], loss: torch.Tensor, norm: torch.Tensor, penalty: torch.Tensor
    ) -> None:
        """Add a step: its number and epoch from 0, its videos, and tensors without a dimension."""
        self._steps.append((step, epoch, tuple(video_ids)))
        self._values.append(torch.stack([loss.detach(), norm.detach(), penalty.detach()]))
        if loss.device.type == "cpu" and not bool(torch.isfinite(self._values[-1][:2]).all()):
            self.collect()

    def collect(self) -> StepTotals:
        """Return the totals of the steps since the last call; raise ``DivergenceError`` for the first that diverged."""
        if not self._steps:
            return StepTotals(0, 0.0, 0.0, math.nan)
        steps, values = self._steps, torch.stack(self._values, dim=1)
        self._steps, self._values = [], []
        losses, norms, _ = values.tolist()
        for (step, epoch, video_ids), loss, norm in zip(steps, losses, norms, strict=True):
            for name, value in (("loss", loss), ("norm of the gradients", norm)):
                if not math.isfinite(value):
                    raise DivergenceError(
                        f"training diverged at step {step} (epoch {epoch}): the {name} is {value}; the batch has "
                        f"{len(video_ids)} video(s): {first_few(video_ids)} (all of them are in log.jsonl)\n"
                        "Check these videos' features with 'meidbench verify-features', or lower schedule.lr",
                        step,
                        video_ids,
                    )
        return StepTotals(len(steps), sum(losses), float(values[2].sum()), max(norms))


@dataclass(frozen=True)
class MicroBatch:
    """A batch as one process reads it."""

    # The number of its first videos that count; the others are repetitions that make all processes equally long.
    # At least 1, because every process must go forward; the weight is 0 where no video counts.
    videos: int
    # The factor of its mean loss. With it, the average of the processes' summed gradients is the gradient of the
    # step's mean loss.
    weight: float
    ends_step: bool  # whether the optimiser moves after it


@dataclass(frozen=True)
class EpochPlan:
    """The division of an epoch of ``draws`` videos into micro-batches, for one process.

    A step holds the same videos for any ``processes`` and ``accumulate``: process r has the draws r, r + processes
    and so on. A last micro-batch of fewer than ``smallest`` videos is left out (batch normalisation cannot use a
    single video).

    Raises
    ------
    MeidbenchError
        The batch cannot be divided among the processes and micro-batches, or micro-batches are too small.

    Examples
    --------
    >>> plan = EpochPlan(draws=5, batch_size=4, accumulate=1, processes=2, rank=1)
    >>> plan.micro_batch(0), plan.micro_batch(1)
    (MicroBatch(videos=2, weight=1.0, ends_step=True), MicroBatch(videos=1, weight=0.0, ends_step=True))
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
        if not self.micro_batches or self.micro_batch_size < self.smallest:
            raise MeidbenchError(
                f"{self.draws} draws per epoch in micro-batches of {self.micro_batch_size} leave no micro-batch of at "
                f"least {self.smallest} video(s) for each of {self.processes} process(es); change schedule.batch_size "
                "or schedule.accumulate"
            )

    @property
    def micro_batch_size(self) -> int:
        """Videos per micro-batch; the last may have fewer."""
        return self.batch_size // (self.processes * self.accumulate)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this process."""
        most = -(-self.draws // self.processes)
        is_left_out = 0 < most % self.micro_batch_size < self.smallest
        return -(-most // self.micro_batch_size) - is_left_out

    @property
    def used_draws(self) -> int:
        """Draws of the epoch that are not left out."""
        return min(self.draws, self.micro_batches * self.micro_batch_size * self.processes)

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return -(-self.micro_batches // self.accumulate)

    def micro_batch(self, index: int) -> MicroBatch:
        """Return the micro-batch at ``index``, from 0."""
        step = index // self.accumulate
        own = -(-(self.used_draws - self.rank) // self.processes)
        counted = max(0, min(self.micro_batch_size, own - index * self.micro_batch_size))
        of_step = min(self.batch_size, self.used_draws - step * self.batch_size)
        ends = (index + 1) % self.accumulate == 0 or index == self.micro_batches - 1
        return MicroBatch(max(1, counted), counted * self.processes / of_step, ends)


def plan_epoch(config: Config, model: Model, draws: int, processes: int = 1, rank: int = 0) -> EpochPlan:
    """Return the division of an epoch of a configuration; batch normalisation needs two videos per micro-batch.

    For a model that is fitted, each class stands for a draw.
    """
    if model.is_fitted:
        return EpochPlan(model.inputs.num_classes, batch_size=1)
    normalises = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    schedule = config.schedule
    return EpochPlan(draws, schedule.batch_size, schedule.accumulate, processes, rank, smallest=2 if normalises else 1)


def check_run(config: Config, split: Split, dim: int, *, processes: int = 1) -> None:
    """Make the components of a run and of its first stage without memory for weights, to refuse what does not fit."""
    if config.first_stage is not None:
        check_run(config.first_stage, split, dim, processes=processes)
    check_processes(config, processes)
    with torch.device("meta"):
        model = make_model(config, make_model_inputs(config, split, dim))
    check_model(config, model)
    make_loss(config, split)
    make_augmentation(config)
    plan_epoch(config, model, len(make_sampler(config, split).whole_epoch()), processes)
