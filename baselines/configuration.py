"""The configuration of a run: a tree of frozen dataclasses with defaults, which is refused whole or taken whole."""

from dataclasses import dataclass, field
from typing import ClassVar

from meidbench.baselines.settings import Choice, Tables, as_tables, flat, read
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.motion import STATIC, WHEN, Motion

PRECISIONS = ("fp32", "bf16", "fp16")
_HIGHEST_RATE = 3.4e38
SELECTION_SUBSETS = ("val", "test")
RUNNING_AP = ("untouched", "second_pass")
FRAME_SAMPLINGS = ("uniform", "random")
RESIDENT = ("auto", "never", "always")


@dataclass(frozen=True)
class Schedule:
    """How weights are fitted.

    Attributes
    ----------
    epochs : int
    batch_size : int
        Videos of a step of the optimiser, all processes together.
    accumulate : int
        Parts that a process reads its share of a batch in, one after another, to need less memory. Losses with the
        reductions ``mean`` and ``sum_classes_mean_batch`` have the gradient of the whole batch; batch normalisation,
        augmentations and MEID's distillation see a part at a time.
    lr, weight_decay : float
        Of Adam.
    milestones : tuple of int
        Epochs, counted from 0, from which the learning rate is multiplied by ``decay``.
    decay : float
    clip_norm : float or None
        To which the norm of all gradients together is cut.
    precision : str
        ``fp32``, or ``bf16`` or ``fp16`` (autocast, ``fp16`` with scaled gradients). Videos are scored in fp32
        whatever it is, because scores of half precision make ties.
    """

    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-4
    milestones: tuple[int, ...] = (30, 60)
    decay: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = 20.0
    precision: str = "fp32"

    _least: ClassVar[dict[str, float]] = {"epochs": 1, "batch_size": 1, "accumulate": 1, "decay": 0, "weight_decay": 0}
    _above: ClassVar[dict[str, float]] = {"lr": 0, "clip_norm": 0}

    def __post_init__(self) -> None:
        if self.lr > _HIGHEST_RATE:
            raise MeidbenchError(f"schedule.lr={self.lr} is beyond float32")

    _known: ClassVar[dict[str, tuple[str, ...]]] = {"precision": PRECISIONS}

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch.

        Examples
        --------
        >>> [Schedule(lr=1.0).learning_rate(epoch) for epoch in (29, 30, 60)]
        [1.0, 0.1, 0.010000000000000002]
        """
        return self.lr * self.decay ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Frames:
    """Rows that are taken of each video, in training and when it is scored, and how; see ``meidbench.sampling``."""

    train: int = 200
    test: int = 200
    train_sampling: str = "random"
    test_sampling: str = "uniform"
    replacement: bool = True

    _least: ClassVar[dict[str, float]] = {"train": 1, "test": 1}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "train_sampling": FRAME_SAMPLINGS,
        "test_sampling": FRAME_SAMPLINGS,
    }


@dataclass(frozen=True)
class MotionStream:
    """Whether frame differences come with the frames, and how they are made; see ``meidbench.motion.Motion``.

    Attributes
    ----------
    when : str
        ``none`` for no such stream; else as in ``Motion``.
    same_index, static, release_bug
        As in ``Motion``.
    """

    when: str = "none"
    same_index: bool = True
    static: str = "mean"
    release_bug: bool = False

    _known: ClassVar[dict[str, tuple[str, ...]]] = {"when": ("none", *WHEN), "static": STATIC}

    def motion(self) -> Motion | None:
        """Return what a dataset is made with."""
        return None if self.when == "none" else Motion(self.when, self.same_index, self.static, self.release_bug)


@dataclass(frozen=True)
class Selection:
    """On which subset the checkpoint with the best overall mAP is chosen, and every how many epochs it is scored.

    ``test`` mimics VideoLT's public code, is recorded in the prediction files, and ``evaluate`` warns of it.
    """

    subset: str = "val"
    every: int = 1

    _least: ClassVar[dict[str, float]] = {"every": 1}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"subset": SELECTION_SUBSETS}


@dataclass(frozen=True)
class Execution:
    """How a run is carried out; what two runs may differ in and still be the same run.

    Attributes
    ----------
    device : str
        ``auto`` (a CUDA device where there is one), or a name that torch knows.
    resident, prefetch
        As in ``meidbench.batches.BatchLoader``.
    log_every : int
        Steps between two lines of the log.
    checkpoint_steps : int or None
        Steps between two checkpoints within an epoch.
    checkpoint_minutes : float or None
        Minutes after which there is one, looked at every ``log_every`` steps.
    """

    device: str = "auto"
    resident: str = "auto"
    prefetch: int = 2
    log_every: int = 20
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = 10.0

    _least: ClassVar[dict[str, float]] = {"prefetch": 0, "log_every": 1, "checkpoint_steps": 1}
    _above: ClassVar[dict[str, float]] = {"checkpoint_minutes": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"resident": RESIDENT}


@dataclass(frozen=True)
class Config:
    """All that a run is made from, besides the split and the features.

    Attributes
    ----------
    method : str
        The recipe that it began with; a name, nothing follows from it.
    seed : int
        Of the weights, the sampler, the frames, dropout, augmentations and EQL, each with a stream of its own.
    model, aggregator, loss, sampler, augmentation : Choice
    mask_other_labels : bool or None
        Whether the labels of a video other than the class that it was drawn for are taken out of the loss
        (``meidbench.baselines.draws.label_mask``); None is as the sampler's protocol has it.
    running_ap : str
        Where augmentations that need it get the average precision in training from: ``untouched`` videos, or a
        ``second_pass`` over each batch, unmixed and in training mode, as VideoLT's public code does.
    schedule, frames, motion, selection, execution
    first_stage : Config or None
        Of the run whose weights this one begins with, for methods that are trained in two stages.
    """

    method: str = "bce"
    seed: int = 2021
    model: Choice = field(default_factory=lambda: Choice("plain"))
    aggregator: Choice = field(default_factory=lambda: Choice("nonlinear"))
    loss: Choice = field(default_factory=lambda: Choice("bce"))
    sampler: Choice = field(default_factory=lambda: Choice("instance"))
    augmentation: Choice = field(default_factory=lambda: Choice("none"))
    mask_other_labels: bool | None = None
    running_ap: str = "untouched"
    schedule: Schedule = field(default_factory=Schedule)
    frames: Frames = field(default_factory=Frames)
    motion: MotionStream = field(default_factory=MotionStream)
    selection: Selection = field(default_factory=Selection)
    execution: Execution = field(default_factory=Execution)
    first_stage: "Config | None" = None

    _least: ClassVar[dict[str, float]] = {"seed": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"running_ap": RUNNING_AP}

    @classmethod
    def from_tables(cls, tables: Tables) -> "Config":
        """Make a configuration from nested tables, as TOML or JSON has them.

        Raises
        ------
        MeidbenchError
            Keys are unknown, values of a wrong type or out of range; all are named at once.

        Examples
        --------
        >>> Config.from_tables({"loss": {"name": "asl", "gamma_neg": 2}, "schedule": {"epochs": 3}}).loss
        Choice(name='asl', options={'gamma_neg': 2.0})
        """
        problems: list[str] = []
        config = read(cls, tables, "", problems)
        if problems:
            raise MeidbenchError(f"{len(problems)} problem(s) with the configuration:\n{bullet_list(problems)}")
        assert isinstance(config, Config)
        return config

    def to_tables(self) -> Tables:
        """Return nested tables, which ``from_tables`` takes and JSON can hold."""
        tables: Tables = as_tables(self)
        return tables

    def differences(self, other: "Config") -> list[str]:
        """Say in what another configuration gives another run."""
        mine, others = (flat(config.to_tables()) for config in (self, other))
        keys = [
            key
            for key in {**mine, **others}
            if mine.get(key) != others.get(key) and "execution" not in key.split(".")[:-1]
        ]
        said = {
            side: {key: repr(table[key]) if key in table else "its default" for key in keys}
            for side, table in (("here", mine), ("there", others))
        }
        return [f"{key}: {said['here'][key]} in the run, {said['there'][key]} asked for" for key in keys]
