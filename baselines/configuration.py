"""The configuration of a run: frozen dataclasses with defaults, and the components that are made from them."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from meidbench.baselines.aggregators import AGGREGATORS, Aggregator
from meidbench.baselines.augmentation import AUGMENTATIONS, Augmentation
from meidbench.baselines.losses import LOSSES, Loss
from meidbench.baselines.models import MODELS, Model, ModelInputs
from meidbench.baselines.models.linear_probe import LinearProbe
from meidbench.baselines.samplers import SAMPLERS, VideoSampler
from meidbench.checks import FieldReader, Table, convert, describe_type, read_dataclass, show, suggest
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.evaluation.evaluate import subset_positives
from meidbench.loading.motion import STATIC, STATIC_ROWS, WHEN, Motion
from meidbench.names import PRECISIONS, RESIDENT, SAMPLINGS, SELECTION_SUBSETS
from meidbench.splits.split import Split

EXAMPLE_SETTING = "schedule.lr=0.001"
TEXT_KEY = "model.text"  # a path, whose content the inputs of a run identify
MOST = 1_000_000  # epochs, videos per step, rows per video; no run needs more, and memory ends long before
# The components of a run, by the key of the configuration that chooses one.
FAMILIES: dict[str, Mapping[str, type]] = {
    "model": MODELS,
    "aggregator": AGGREGATORS,
    "loss": LOSSES,
    "sampler": SAMPLERS,
    "augmentation": AUGMENTATIONS,
}


def known_options(component: type) -> dict[str, Any]:
    """Return the options of a component, each with its type."""
    return {name: option.annotation for name, option in _read_options(component).items()}


def option_defaults(component: type) -> dict[str, Any]:
    """Return the options of a component, each with its default."""
    return {name: option.default for name, option in _read_options(component).items()}


def _read_options(component: Any) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments of a component and of the class that takes its further options."""
    further = Aggregator if issubclass(component, Aggregator) else getattr(component, "further_options", None)
    options: dict[str, inspect.Parameter] = {}
    for kind in filter(None, (component, further)):
        for argument in inspect.signature(kind.__init__, eval_str=True).parameters.values():
            if argument.kind is argument.KEYWORD_ONLY:
                options.setdefault(argument.name, argument)
    return options


@dataclass(frozen=True)
class Choice:
    """A component by name, and the options that it is made with."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def _read_choice(family: str, table: Any, default: Choice, prefix: str, problems: list[str]) -> Choice:
    known = FAMILIES[family]
    if not isinstance(table, dict):
        problems.append(f"{prefix}{family} is no value by itself; set {prefix}{family}.name={table}")
        return default
    name = table.get("name", default.name)
    if not isinstance(name, str) or name not in known:
        found = suggest(name, known)
        problems.append(f"unknown {prefix}{family}.name {show(name)}{found}; known: {', '.join(known)}")
        return default
    options, hints = {}, known_options(known[name])
    for key, value in table.items():
        if key in hints:
            valid, options[key] = convert(value, hints[key])
            if not valid:
                problems.append(f"{prefix}{family}.{key} must be {describe_type(hints[key])}, got {show(value)}")
        elif key != "name":
            found = suggest(key, [f"{prefix}{family}.{hint}" for hint in hints])
            problems.append(
                f"unknown key {prefix}{family}.{key}{found}; known of {name}: {', '.join(['name', *hints])}"
            )
    return Choice(name, options)


def _read_epochs(key: str, value: Any, default: tuple[int, ...], prefix: str, problems: list[str]) -> tuple[int, ...]:
    valid, epochs = convert(value, tuple[int, ...])
    if valid and list(epochs) == sorted(set(epochs)) and min(epochs, default=0) >= 0:
        return tuple(epochs)
    wanted = "rising epochs" if valid else describe_type(tuple[int, ...])
    problems.append(f"{prefix}{key} must be {wanted}, got {show(value)}")
    return default


_READERS: dict[type, FieldReader] = {Choice: _read_choice, tuple[int, ...]: _read_epochs}


@dataclass(frozen=True)
class Schedule:
    """How Adam fits the weights."""

    epochs: int = 100
    batch_size: int = 128  # videos per step of the optimiser, in all processes together
    # Micro-batches per step and process, to need less memory. The reductions "mean" and "sum_classes_mean_batch" have
    # the gradient of the whole batch; batch normalisation, augmentations and distillation see one micro-batch.
    accumulate: int = 1
    lr: float = 1e-4
    milestones: tuple[int, ...] = (30, 60)  # epochs, from 0, from which the learning rate is multiplied by decay
    decay: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = 20.0  # the norm of all gradients together is cut to this
    # fp32, bf16 or fp16 (autocast, fp16 with scaled gradients). Scores are made in fp32: half precision makes ties.
    precision: str = "fp32"

    _least: ClassVar[dict[str, float]] = {"epochs": 1, "batch_size": 1, "accumulate": 1, "decay": 0, "weight_decay": 0}
    _most: ClassVar[dict[str, float]] = dict.fromkeys(("epochs", "batch_size", "accumulate"), MOST)
    _above: ClassVar[dict[str, float]] = {"lr": 0, "clip_norm": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"precision": PRECISIONS}

    def __post_init__(self) -> None:
        try:
            largest = max(self.lr, self.learning_rate(self.epochs))
        except OverflowError:
            largest = math.inf
        if largest > 3.4e38:
            raise MeidbenchError(f"the learning rate {largest} is beyond float32; lower schedule.lr or schedule.decay")

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        return self.lr * self.decay ** sum(epoch >= milestone for milestone in self.milestones)

    def describe_added_epochs(self, done: int) -> str:
        """Say what the learning rate is in the epochs after the first ``done``; milestones do not move.

        Examples
        --------
        >>> Schedule(epochs=500).describe_added_epochs(400)
        'the milestones stay at 30, 60: the learning rate of the added epochs is 1e-06'
        """
        falls = [str(milestone) for milestone in self.milestones if done < milestone < self.epochs]
        stay = f"the milestones stay at {', '.join(map(str, self.milestones))}: " if self.milestones else ""
        rate = f"{self.learning_rate(done):g}"
        if falls:
            return f"{stay}the learning rate begins with {rate} and falls at {', '.join(falls)}"
        return f"{stay}the learning rate of the added epochs is {rate}"

    def describe_late_milestones(self) -> str:
        """Say which milestones lie beyond the last epoch; empty where none does.

        Examples
        --------
        >>> Schedule(epochs=3).describe_late_milestones()
        'the milestones 30, 60 lie beyond the 3 epochs: the learning rate never falls (set schedule.milestones)'
        """
        late = [str(milestone) for milestone in self.milestones if milestone >= self.epochs]
        if not late:
            return ""
        is_one, falls = len(late) == 1, len(self.milestones) - len(late)
        effect = f"falls {'once' if falls == 1 else f'{falls} times'} only" if falls else "never falls"
        return (
            f"the milestone{'' if is_one else 's'} {', '.join(late)} lie{'s' if is_one else ''} beyond the "
            f"{self.epochs} epochs: the learning rate {effect} (set schedule.milestones)"
        )


@dataclass(frozen=True)
class Frames:
    """Rows per video in training and in scoring, and the rules of ``meidbench.features.frame_sampling`` for them."""

    train: int = 200
    test: int = 200
    train_sampling: str = "random"
    test_sampling: str = "uniform"
    replacement: bool = True

    _least: ClassVar[dict[str, float]] = {"train": 1, "test": 1}
    _most: ClassVar[dict[str, float]] = {"train": MOST, "test": MOST}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"train_sampling": SAMPLINGS, "test_sampling": SAMPLINGS}


@dataclass(frozen=True)
class MotionStream:
    """Frame differences beside the frames, ``none`` or as in ``meidbench.loading.motion.Motion``."""

    when: str = "none"
    same_index: bool = True
    static: str = "mean"
    release_bug: bool = False
    static_row: str = "drawn"  # what runs without this setting had; recipes name theirs

    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "when": ("none", *WHEN),
        "static": STATIC,
        "static_row": STATIC_ROWS,
    }

    def motion(self) -> Motion | None:
        """Return the motion stream of a dataset; None where ``when`` is ``none``."""
        return None if self.when == "none" else Motion(**dataclasses.asdict(self))


@dataclass(frozen=True)
class Selection:
    """The subset whose overall mAP chooses the best checkpoint."""

    subset: str = "val"  # "test" mimics VideoLT's public code; prediction files record it, and evaluate warns of it
    every: int = 1  # epochs between two scorings

    _least: ClassVar[dict[str, float]] = {"every": 1}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"subset": SELECTION_SUBSETS}


@dataclass(frozen=True)
class Execution:
    """How a run is carried out. Two runs that differ only here are the same run."""

    device: str = "auto"  # a CUDA device where there is one; or a name that torch knows
    resident: str = "auto"  # as in meidbench.loading.batches.BatchLoader, as is prefetch
    prefetch: int = 2
    log_every: int = 20  # steps between two lines of the log
    checkpoint_steps: int | None = None  # between two checkpoints within an epoch
    checkpoint_minutes: float | None = 10.0  # likewise; the clock is read every log_every steps

    _least: ClassVar[dict[str, float]] = {"prefetch": 0, "log_every": 1, "checkpoint_steps": 1}
    _most: ClassVar[dict[str, float]] = {"prefetch": MOST}
    _above: ClassVar[dict[str, float]] = {"checkpoint_minutes": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"resident": RESIDENT}


@dataclass(frozen=True)
class Config:
    """Everything that a run is made from, besides the split and the features."""

    method: str = "bce"  # the recipe that it was made from; only a name
    # Of the weights, the sampler, the frames, dropout, augmentations and EQL, each with its own random numbers.
    seed: int = 2021
    model: Choice = field(default_factory=lambda: Choice("plain"))
    aggregator: Choice = field(default_factory=lambda: Choice("nonlinear"))
    loss: Choice = field(default_factory=lambda: Choice("bce"))
    sampler: Choice = field(default_factory=lambda: Choice("instance"))
    augmentation: Choice = field(default_factory=lambda: Choice("none"))
    # Whether the loss leaves out other labels than the drawn one (samplers.label_mask); None follows the sampler.
    mask_other_labels: bool | None = None
    # Whether the mask weights the "elements" of the loss, or the number of elements that it keeps per video multiplies
    # the mean loss ("factor"), as in public code that averages the loss before it multiplies the mask.
    mask_as: str = "elements"
    # The source of the average precision that some augmentations need in training: "untouched" videos, or a
    # "second_pass" over each batch, unmixed and in training mode, as in VideoLT's public code.
    running_ap: str = "untouched"
    schedule: Schedule = field(default_factory=Schedule)
    frames: Frames = field(default_factory=Frames)
    motion: MotionStream = field(default_factory=MotionStream)
    selection: Selection = field(default_factory=Selection)
    execution: Execution = field(default_factory=Execution)
    first_stage: "Config | None" = None  # of the run whose weights this run begins with

    _least: ClassVar[dict[str, float]] = {"seed": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "running_ap": ("untouched", "second_pass"),
        "mask_as": ("elements", "factor"),
    }

    def __post_init__(self) -> None:
        if self.first_stage is not None and self.first_stage.first_stage is not None:
            raise MeidbenchError("a first stage has no first stage of its own")

    @classmethod
    def from_tables(cls, tables: Table) -> "Config":
        """Make a configuration from nested tables, in the form of TOML or JSON.

        Raises
        ------
        MeidbenchError
            Keys are unknown, or values have a wrong type or are out of range; the message names all of them.

        Examples
        --------
        >>> Config.from_tables({"loss": {"name": "asl", "gamma_neg": 2}, "schedule": {"epochs": 3}}).loss
        Choice(name='asl', options={'gamma_neg': 2.0})
        """
        problems: list[str] = []
        config = read_dataclass(cls, tables, problems, readers=_READERS, known_keys=list_keys(tables))
        if problems:
            raise MeidbenchError(f"{len(problems)} problem(s) with the configuration:\n{bullet_list(problems)}")
        return config

    def to_tables(self) -> Table:
        """Return nested tables that ``from_tables`` reads and JSON can hold."""
        return dict(_to_json(self))

    @property
    def masks_labels(self) -> bool:
        """Whether other labels are masked: ``mask_other_labels``, or the protocol of the sampler."""
        protocol = SAMPLERS[self.sampler.name].masks_other_labels
        return protocol if self.mask_other_labels is None else self.mask_other_labels

    @property
    def aggregator_name(self) -> str:
        """The aggregator, or the model where it has aggregators of its own."""
        return self.aggregator.name if MODELS[self.model.name].takes_aggregator else self.model.name

    def differences(self, other: "Config") -> list[str]:
        """Return one line per value in which another configuration gives another run."""
        here, there = (flatten(config.to_tables()) for config in (self, other))
        before, now = ({key: repr(value) for key, value in table.items()} for table in (here, there))
        return [
            f"{key}: {before.get(key, 'its default')} in the run, {now.get(key, 'its default')} asked for"
            for key in {**here, **there}
            if here.get(key) != there.get(key) and "execution" not in key.split(".")[:-1] and key != TEXT_KEY
        ]

    def with_epochs(self, epochs: int) -> "Config":
        """Return the same configuration for another number of epochs; nothing that follows from it is changed."""
        return dataclasses.replace(self, schedule=dataclasses.replace(self.schedule, epochs=epochs))

    def epoch_values(self) -> dict[tuple[str, str], int]:
        """Return the options that follow from the number of epochs unless they are set, by family and option."""
        values = {}
        if self.loss.name == "ldam":
            values["loss", "drw_epoch"] = self.schedule.epochs // 2  # VideoLT: 50 of 100
        if self.sampler.name == "progressively_balanced":
            values["sampler", "epochs"] = self.schedule.epochs
        return values

    def keep_values_of(self, run: "Config") -> "Config":
        """Return this configuration with some values of a run, so that it goes on with the run for other epochs.

        They are the values that follow from the number of epochs, and the first stage. ``differences`` tells the rest.
        """
        kept, before = self, run.epoch_values()
        for (family, option), value in self.epoch_values().items():
            here, there = getattr(self, family).options, getattr(run, family).options
            if here.get(option) == value and (family, option) in before and option in there:
                choice = Choice(getattr(self, family).name, {**here, option: there[option]})
                kept = dataclasses.replace(kept, **{family: choice})  # type: ignore[arg-type]
        if self.first_stage is not None and run.first_stage is not None:
            first = self.first_stage.keep_values_of(run.first_stage).with_epochs(run.first_stage.schedule.epochs)
            kept = dataclasses.replace(kept, first_stage=first)
        return kept

    def describe_longer_run(self, done: int) -> str:
        """Say what a run of ``done`` epochs that goes on with this configuration is, and how a new one would differ."""
        lines = [self.schedule.describe_added_epochs(done)]
        if self.first_stage is not None:
            lines.append(f"the first stage stays as it is, with {self.first_stage.schedule.epochs} epochs")
        differing = [
            f"{family}.{option} stays {here} (it would be {value})"
            for (family, option), value in self.epoch_values().items()
            if (here := getattr(self, family).options.get(option)) != value
        ]
        if done % self.selection.every:
            differing.append(
                f"epoch {done} was scored, being the last (it would not be: selection.every={self.selection.every})"
            )
        new = f"a new run of {self.schedule.epochs} epochs"
        lines += [f"{new} would differ: {text}" for text in differing] or [f"the result is that of {new}"]
        return "\n".join(f"  {line}" for line in lines)


def list_keys(tables: Any = None) -> list[str]:
    """Return the keys that can be set, such as ``schedule.lr``, with the options of the components that are chosen."""
    keys = [key for key in flatten(Config().to_tables()) if key not in ("method", "first_stage")]
    for family, known in FAMILIES.items():
        chosen = tables.get(family) if isinstance(tables, dict) else None
        name = chosen.get("name") if isinstance(chosen, dict) else None
        if isinstance(name, str) and name in known:
            keys += [f"{family}.{key}" for key in known_options(known[name])]
    return keys


def _to_json(value: Any) -> Any:
    if isinstance(value, Choice):
        return {"name": value.name, **{key: _to_json(option) for key, option in value.options.items()}}
    if dataclasses.is_dataclass(value):
        return {entry.name: _to_json(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def flatten(tables: Table, prefix: str = "") -> Table:
    """Return nested tables as one table with dotted keys."""
    joined: Table = {}
    for key, value in tables.items():
        joined |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return joined


def without_execution(tables: Mapping[str, Any]) -> Table:
    """Return a configuration's tables without ``execution``, which changes no result and may name a device."""
    return {
        key: without_execution(value) if isinstance(value, dict) else value
        for key, value in tables.items()
        if key != "execution"
    }


def make_model_inputs(config: Config, split: Split, dim: int) -> ModelInputs:
    """Return the facts that a model needs about a split and about features of width ``dim``."""
    return ModelInputs(
        dim=dim,
        num_classes=split.num_classes,
        train_counts=split.train_counts,
        groups=split.groups,
        frames=config.frames.train if config.frames.train == config.frames.test else None,
        has_motion=config.motion.when != "none",
        aggregator=lambda width: make_aggregator(config, width, split.num_classes),
    )


def make_model(config: Config, inputs: ModelInputs) -> Model:
    """Make the model; its weights come from torch's global generator."""
    return MODELS[config.model.name](inputs, **config.model.options)


def check_model(config: Config, model: Model) -> None:
    """Refuse a model that needs a first stage and has none, or the reverse, or that mixes labels that are masked."""
    name = f"model.name={config.model.name}"
    if model.needs_first_stage and config.first_stage is None:
        raise MeidbenchError(f"{name} begins with a trained first stage; take a method that has one: meid")
    if config.first_stage is not None and not model.needs_first_stage:
        raise MeidbenchError(f"{name} does not begin with a first stage; leave it out")
    if isinstance(model, LinearProbe) and config.schedule.epochs != len(model.c_grid):
        raise MeidbenchError(
            f"schedule.epochs of {name} must be {len(model.c_grid)}, one per value of model.c_grid, got "
            f"{config.schedule.epochs}; meidbench.baselines.resolve sets it"
        )
    if config.mask_other_labels and model.mixes_targets:
        raise MeidbenchError(
            f"{name} mixes labels itself, so that no mask of them can be applied; set mask_other_labels=false"
        )


def check_processes(config: Config, processes: int) -> None:
    """Refuse several processes for a model that scikit-learn fits, in one."""
    if processes > 1 and MODELS[config.model.name].is_fitted:
        raise MeidbenchError(
            f"model.name={config.model.name} is fitted by one process with many threads (OMP_NUM_THREADS), got "
            f"{processes} processes; train it without torchrun"
        )


def make_aggregator(config: Config, dim: int, num_classes: int) -> Aggregator:
    """Make the aggregator of frames of width ``dim``; its weights come from torch's global generator."""
    return AGGREGATORS[config.aggregator.name](dim, num_classes, **config.aggregator.options)


def make_loss(config: Config, split: Split) -> Loss:
    """Make the loss from the training counts of a split."""
    kind = LOSSES[config.loss.name]
    return kind(split.train_counts, len(split.rows("train")), **_add_seed(kind, config.loss.options, config.seed))


def make_sampler(config: Config, split: Split) -> VideoSampler:
    """Make the sampler of a split's training videos."""
    kind = SAMPLERS[config.sampler.name]
    return kind(subset_positives(split, "train"), **_add_seed(kind, config.sampler.options, config.seed))


def make_augmentation(config: Config) -> Augmentation:
    """Make the augmentation."""
    return AUGMENTATIONS[config.augmentation.name](**config.augmentation.options)


def _add_seed(kind: type, options: dict[str, Any], seed: int) -> dict[str, Any]:
    return {"seed": seed, **options} if "seed" in known_options(kind) else options
