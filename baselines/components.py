"""The parts of a run by name: which there are, which options each knows, and how a configuration's are made."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from meidbench.baselines.aggregators import AGGREGATORS, Aggregator
from meidbench.baselines.augmentation import AUGMENTATIONS, Augmentation
from meidbench.baselines.losses import LOSSES, Loss
from meidbench.baselines.models import MODELS, Model, ModelInputs
from meidbench.baselines.samplers import SAMPLERS, VideoSampler
from meidbench.errors import MeidbenchError
from meidbench.evaluation.evaluate import subset_positives
from meidbench.splits.split import Split

if TYPE_CHECKING:
    from meidbench.baselines.configuration import Config

# Functions, because a dict of dicts would fix what is known when this module is read.
FAMILIES: dict[str, Callable[[], Mapping[str, type]]] = {
    "model": lambda: MODELS,
    "aggregator": lambda: AGGREGATORS,
    "loss": lambda: LOSSES,
    "sampler": lambda: SAMPLERS,
    "augmentation": lambda: AUGMENTATIONS,
}

# What follows from the split and the features, and is no option.
_GIVEN = frozenset({"self", "train_counts", "num_videos", "labels", "dim", "num_classes", "inputs"})


def known_options(component: type) -> dict[str, Any]:
    """Return the options of a loss, sampler, augmentation or aggregator, each with its type.

    Examples
    --------
    >>> known_options(LOSSES["focal"])["gamma"]
    <class 'float'>
    >>> list(known_options(AGGREGATORS["early_mean"]))
    ['dropout', 'classifier', 'bias_prior']
    """
    options: dict[str, Any] = {}
    for kind in _option_classes(component):
        make = kind.__init__  # type: ignore[misc]
        if make is object.__init__:
            continue
        hints = get_type_hints(make)
        for name, parameter in inspect.signature(make).parameters.items():
            if name not in _GIVEN and parameter.kind is not parameter.VAR_KEYWORD:
                options[name] = hints[name]
    return options


def _option_classes(component: type) -> list[type]:
    """Return the classes whose ``__init__`` names options: the component's own, and the one that takes its ``**``."""
    further = Aggregator if issubclass(component, Aggregator) else getattr(component, "further_options", None)
    return [component] if further is None else [component, further]


def option_defaults(component: type) -> dict[str, Any]:
    """Return the default of each option of a component.

    Examples
    --------
    >>> option_defaults(MODELS["meid_two"])["beta"]
    0.5
    """
    made = [inspect.signature(kind.__init__).parameters for kind in _option_classes(component)]  # type: ignore[misc]
    return {name: next(parts[name].default for parts in made if name in parts) for name in known_options(component)}


def make_model_inputs(config: "Config", split: Split, dim: int) -> ModelInputs:
    """Return the facts about a split, and features of width ``dim``, that a model is built from."""
    frames = config.frames
    return ModelInputs(
        dim=dim,
        num_classes=split.num_classes,
        train_counts=split.train_counts,
        groups=split.groups,
        frames=frames.train if frames.train == frames.test else None,
        has_motion=config.motion.when != "none",
        aggregator=lambda width: make_aggregator(config, width, split.num_classes),
    )


def make_model(config: "Config", inputs: ModelInputs) -> Model:
    """Make the model; its weights come from torch's global generator."""
    return MODELS[config.model.name](inputs, **config.model.options)


def check_model(config: "Config", model: Model) -> None:
    """Refuse a model that does not fit the rest of a configuration.

    Raises
    ------
    MeidbenchError
        Labels are masked that it mixes, or it has no first stage to begin with, or one that it does not begin with.
    """
    if model.needs_first_stage != (config.first_stage is not None):
        raise MeidbenchError(
            f"model.name={config.model.name} begins with a trained first stage; take a method that has one: meid"
            if model.needs_first_stage
            else f"model.name={config.model.name} does not begin with a first stage; leave it out"
        )
    if config.mask_other_labels and model.mixes_targets:
        raise MeidbenchError(
            f"model.name={config.model.name} mixes labels itself, so that no mask of them can be applied; set "
            "mask_other_labels=false"
        )


def make_aggregator(config: "Config", dim: int, num_classes: int) -> Aggregator:
    """Make the aggregator of frames of width ``dim``; its weights come from torch's global generator."""
    return AGGREGATORS[config.aggregator.name](dim, num_classes, **config.aggregator.options)


def aggregator_name(config: "Config") -> str:
    """Return what turns frames into logits: the aggregator, or the model where it has its own."""
    return config.aggregator.name if MODELS[config.model.name].takes_aggregator else config.model.name


def make_loss(config: "Config", split: Split) -> Loss:
    """Make the loss from the training counts of a split."""
    kind = LOSSES[config.loss.name]
    return kind(split.train_counts, len(split.rows("train")), **_seeded(kind, config.loss.options, config.seed))


def make_sampler(config: "Config", split: Split) -> VideoSampler:
    """Make the sampler of a split's training videos."""
    kind = SAMPLERS[config.sampler.name]
    return kind(subset_positives(split, "train"), **_seeded(kind, config.sampler.options, config.seed))


def make_augmentation(config: "Config") -> Augmentation:
    """Make the augmentation."""
    return AUGMENTATIONS[config.augmentation.name](**config.augmentation.options)


def _seeded(kind: type, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {**({"seed": seed} if "seed" in known_options(kind) else {}), **options}
