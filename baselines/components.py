"""The parts of a run by name: which there are, which options each knows, and how a configuration's are made."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from meidbench.baselines.aggregators import AGGREGATORS, Aggregator
from meidbench.baselines.augmentation import AUGMENTATIONS, Augmentation
from meidbench.baselines.losses import LOSSES, Loss
from meidbench.baselines.samplers import SAMPLERS, VideoSampler
from meidbench.evaluation import subset_positives
from meidbench.split import Split

if TYPE_CHECKING:
    from meidbench.baselines.configuration import Config

# Functions, because a dict of dicts would fix what is known when this module is read.
FAMILIES: dict[str, Callable[[], Mapping[str, type]]] = {
    "aggregator": lambda: AGGREGATORS,
    "loss": lambda: LOSSES,
    "sampler": lambda: SAMPLERS,
    "augmentation": lambda: AUGMENTATIONS,
}

# What follows from the split and the features, and is no option.
_GIVEN = frozenset({"self", "train_counts", "num_videos", "labels", "dim", "num_classes"})


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
    kinds = [component, Aggregator] if issubclass(component, Aggregator) else [component]
    for kind in kinds:
        make = kind.__init__  # type: ignore[misc]
        if make is object.__init__:
            continue
        hints = get_type_hints(make)
        for name, parameter in inspect.signature(make).parameters.items():
            if name not in _GIVEN and parameter.kind is not parameter.VAR_KEYWORD:
                options[name] = hints[name]
    return options


def make_aggregator(config: "Config", dim: int, num_classes: int) -> Aggregator:
    """Make the model of features of width ``dim``; its weights come from torch's global generator."""
    return AGGREGATORS[config.aggregator.name](dim, num_classes, **config.aggregator.options)


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
