"""The configuration of a run: a tree of frozen dataclasses with defaults, which is refused whole or taken whole."""

import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from meidbench.baselines.components import FAMILIES, known_options
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.loading.motion import STATIC, WHEN, Motion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Tables = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A loss, sampler, augmentation or aggregator by name, and the options that it is made with."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def overrides(settings: Sequence[str]) -> Tables:
    """Read ``KEY=VALUE`` settings: dotted keys, values as in TOML; a value that TOML does not know is a string.

    Raises
    ------
    MeidbenchError
        One is no such pair, or contradicts another.

    Examples
    --------
    >>> overrides(["schedule.lr=2e-3", "loss.name=eql", "schedule.milestones=[3, 6]"])
    {'schedule': {'lr': 0.002, 'milestones': [3, 6]}, 'loss': {'name': 'eql'}}
    """
    tables: Tables = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        *parents, last = key.strip().split(".")
        if not equals or not all((*parents, last)):
            raise MeidbenchError(f"{setting!r} is no setting; expected KEY=VALUE, such as schedule.lr=0.001")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                break
        if not isinstance(table, dict) or last in table:
            raise MeidbenchError(f"{key.strip()} is set twice; say once what it is to be")
        table[last] = _value(text.strip())
    return tables


def merged(below: Tables, above: Tables) -> Tables:
    """Lay tables over others; where another component is named, options that it does not know go.

    Examples
    --------
    >>> merged({"loss": {"name": "ldam", "scale": 20.0, "reduction": "mean"}}, {"loss": {"name": "bce"}})
    {'loss': {'name': 'bce', 'reduction': 'mean'}}
    """
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if not isinstance(value, dict) or not isinstance(under, dict):
            result[key] = value
            continue
        name = value.get("name")
        if key in FAMILIES and name != under.get("name") and isinstance(name, str) and name in FAMILIES[key]():
            known = known_options(FAMILIES[key]()[name])
            under = {option: kept for option, kept in under.items() if option in known}
            result[key] = {"name": name, **under, **value}
        else:
            result[key] = {**under, **value}
    return result


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text


def read(kind: type, tables: Any, prefix: str, problems: list[str]) -> Any:
    """Make a frozen dataclass from a table; what is wrong is added to the problems, each key with its prefix.

    A dataclass says of its numbers in ``_least`` and ``_above``, and of its texts in ``_known``, what they may be.
    """
    where = prefix.rstrip(".")
    if not isinstance(tables, dict):
        problems.append(f"{where} must be a table, got {tables!r}")
        return kind()
    hints = get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    for key in tables:
        if key not in names:
            problems.append(f"unknown key {prefix}{key}; known{' in ' + where if where else ''}: {', '.join(names)}")
    values: Tables = {}
    for name in names:
        if name not in tables:
            continue
        hint, value = hints[name], tables[name]
        if hint is Choice:
            values[name] = _choice(name, value, getattr(kind(), name).name, prefix, problems)
        elif nested := next(filter(dataclasses.is_dataclass, _alternatives(hint)), None):
            assert isinstance(nested, type)
            absent = value in (None, "none") and nested is not hint
            values[name] = None if absent else read(nested, value, f"{prefix}{name}.", problems)
        else:
            checked, values[name] = _checked(value, hint)
            if not checked:
                problems.append(f"{prefix}{name} must be {_said(hint)}, got {value!r}")
            elif problem := _outside(kind, name, values[name]):
                problems.append(f"{prefix}{name} must be {problem}, got {value!r}")
    return kind() if problems else kind(**values)


def _choice(family: str, table: Any, default: str, prefix: str, problems: list[str]) -> Choice:
    known = FAMILIES[family]()
    name = table.get("name", default) if isinstance(table, dict) else None
    if not isinstance(name, str) or name not in known:
        problems.append(f"unknown {prefix}{family}.name {name!r}; known: {', '.join(known)}")
        return Choice("")
    options, hints = {}, known_options(known[name])
    for key, value in table.items():
        if key == "name":
            continue
        if key not in hints:
            listed = ", ".join(["name", *hints])
            problems.append(f"unknown key {prefix}{family}.{key}; known of {name}: {listed}")
            continue
        checked, options[key] = _checked(value, hints[key])
        if not checked:
            problems.append(f"{prefix}{family}.{key} must be {_said(hints[key])}, got {value!r}")
    return Choice(name, options)


def _outside(kind: Any, name: str, value: Any) -> str:
    known = getattr(kind, "_known", {}).get(name)
    if known and value not in known:
        return f"one of {', '.join(known)}"
    least, above = getattr(kind, "_least", {}).get(name), getattr(kind, "_above", {}).get(name)
    if least is not None and value is not None and not least <= value < float("inf"):
        return f"at least {least}"
    if above is not None and value is not None and not above < value < float("inf"):
        return f"above {above}"
    if name == "milestones" and (list(value) != sorted(set(value)) or any(epoch < 0 for epoch in value)):
        return "rising epochs"
    return ""


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _checked(value: Any, hint: Any) -> tuple[bool, Any]:
    """Return whether a value fits a type, and the value as that type."""
    alternatives = _alternatives(hint)
    if type(None) in alternatives and value in (None, "none"):
        return True, None
    for kind in alternatives:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True, float(value)
        if kind in (bool, str) and isinstance(value, kind):
            return True, value
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return True, value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            parts = [_checked(part, get_args(kind)[0]) for part in value]
            return all(fits for fits, _ in parts), tuple(part for _, part in parts)
    return False, value


def _said(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "none"}
    known = [names[kind] for kind in _alternatives(hint) if kind in names]
    return " or ".join(known) or "a list of whole numbers, such as [30, 60]"


def as_tables(value: Any) -> Any:
    """Return a dataclass as nested tables, which JSON can hold.

    Examples
    --------
    >>> as_tables(Choice("eql", {"gamma": 0.9}))
    {'name': 'eql', 'gamma': 0.9}
    """
    if isinstance(value, Choice):
        return {"name": value.name, **value.options}
    if dataclasses.is_dataclass(value):
        return {entry.name: as_tables(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def flat(tables: Tables, prefix: str = "") -> Tables:
    """Return nested tables as one, with dotted keys.

    Examples
    --------
    >>> flat({"seed": 1, "loss": {"name": "bce"}})
    {'seed': 1, 'loss.name': 'bce'}
    """
    joined: Tables = {}
    for key, value in tables.items():
        joined |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return joined


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
    """The number of rows per video in training and in scoring, and the rule that draws them.

    ``meidbench.features.frame_sampling`` describes the rules.
    """

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
    """Whether frame differences come with the frames, and how they are made; see ``meidbench.loading.motion.Motion``.

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
        As in ``meidbench.loading.batches.BatchLoader``.
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
        (``meidbench.baselines.samplers.label_mask``); None is as the sampler's protocol has it.
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
