"""Recipes: a method's values, where each is from, and the numbers published for it; all of it data."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from meidbench.baselines.components import FAMILIES, known_options, option_defaults
from meidbench.baselines.configuration import Choice, Config, Tables, merged, overrides
from meidbench.baselines.models import MODELS
from meidbench.checks import parse_toml
from meidbench.errors import MeidbenchError, first_few
from meidbench.evaluation.results import MeanAP
from meidbench.splits.split import Split

BENCHMARKS = "benchmarks"
OTHER = "other"
# What makes a method behave as public code does, by the section of its recipe: VideoLT's, or its own authors'.
COMPAT_ENDING, RELEASE_ENDING = "-compat", "-release"
_PUBLIC_CODE = {
    "compat": (COMPAT_ENDING, "as in VideoLT's public code"),
    "release": (RELEASE_ENDING, "as its authors' public code has it"),
}

# What the tables of published numbers are.
PUBLISHED_TABLES = {
    "table2": "MEID, Table 2",
    "table3": "MEID, Table 3",
    "table4": "MEID, Table 4",
    "supp5": "MEID, supplementary Table 5",
    "rivals": "MOVE, from a second-hand source",
    "modelzoo": "VideoLT, MODELZOO.md",
}


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes
    ----------
    table : str
        A key of ``PUBLISHED_TABLES``.
    dataset, encoder, aggregator : str
    mAP : MeanAP
    """

    table: str
    dataset: str
    encoder: str
    aggregator: str
    mAP: MeanAP


@dataclass(frozen=True)
class Recipe:
    """A method: what it sets, where each value is from, and what was published for it.

    Attributes
    ----------
    name, title : str
    is_compat : bool
        Whether it behaves as public code does, VideoLT's or its authors'.
    differs : str
        In what that form differs from the faithful one; empty for the latter.
    tables : dict
        What it sets, for any benchmark; the form of ``Config.from_tables``.
    of_dataset : dict of str to dict
        What it sets on top for a benchmark.
    sources : dict of str to str
        Where each value, or all of a section, is from: ``loss.gamma`` or ``schedule``.
    published : tuple of Published
        All of it from the public code or its kin, so from what the compatible form is.
    first_stage : str
        The method whose weights it begins with; empty for a method of one stage.
    """

    name: str
    title: str
    is_compat: bool
    differs: str
    tables: Tables
    of_dataset: Mapping[str, Tables]
    sources: Mapping[str, str]
    published: tuple[Published, ...]
    first_stage: str = ""


def read_recipes(names: Iterable[str]) -> dict[str, Recipe]:
    """Read the recipes of methods, with the form of public code where there is one: ``NAME-compat``, ``NAME-release``.

    Examples
    --------
    >>> list(read_recipes(["asl", "eql"]))
    ['asl', 'eql', 'eql-compat']
    """
    recipes = {}
    for name in names:
        content = _content(name)
        published = tuple(
            Published(row["table"], row["dataset"], row["encoder"], row["aggregator"], MeanAP(*row["mAP"]))
            for row in content["published"]
        )
        special = content.get("datasets", {})
        of_dataset = {dataset: values["config"] for dataset, values in special.items()}
        sources = {**content["sources"]}
        for dataset, values in special.items():
            sources |= {f"{dataset}:{key}": source for key, source in values["sources"].items()}
        first = content.get("first_stage", "")
        recipes[name] = Recipe(
            name, content["title"], False, "", content["config"], of_dataset, sources, published, first
        )
        for section, (ending, what) in _PUBLIC_CODE.items():
            if section not in content:
                continue
            public = content[section]
            unset = public.get("unset", [])
            kept = {key: said for key, said in sources.items() if key not in unset}
            public_datasets = public.get("datasets", {})
            for dataset, values in public_datasets.items():
                kept |= {f"{dataset}:{key}": source for key, source in values["sources"].items()}
            recipes[name + ending] = Recipe(
                name + ending,
                f"{content['title']}, {what}",
                True,
                public["differs"],
                merged(_without(content["config"], unset), public.get("config", {})),
                {
                    dataset: merged(of_dataset.get(dataset, {}), public_datasets.get(dataset, {}).get("config", {}))
                    for dataset in {**of_dataset, **public_datasets}
                },
                {**kept, **public["sources"]},
                published,
                first + ending if first else "",
            )
    return recipes


def benchmark_values(dataset: str, compat: bool = False) -> tuple[Tables, dict[str, str]]:
    """Return what a benchmark's published rows have in common, and where each value is from.

    Examples
    --------
    >>> benchmark_values("videolt")[0]["frames"]["train"]
    60
    """
    content = _content(BENCHMARKS)
    values = content.get(dataset, content[OTHER])
    tables, sources = values["config"], dict(values["sources"])
    if compat and "compat" in values:
        tables = merged(tables, values["compat"]["config"])
        sources |= values["compat"]["sources"]
    return tables, sources


def _without(tables: Tables, keys: Iterable[str]) -> Tables:
    """Return a copy without the values at these dotted keys."""
    left = {section: dict(value) if isinstance(value, dict) else value for section, value in tables.items()}
    for key in keys:
        section, _, name = key.partition(".")
        del left[section][name]
    return left


@cache
def _content(name: str) -> dict[str, Any]:
    text = (
        resources.files("meidbench.baselines").joinpath("recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    )
    return parse_toml(text)


_STAGES = ("stage1", "stage2")

# Options of a model that its stages may have of their own.
_OF_EITHER_STAGE = ("distill_", "neck_", "recompute")


def resolve(
    method: str,
    split: Split,
    *,
    aggregator: str | None = None,
    settings: Sequence[str] = (),
    tables: Tables | None = None,
) -> Config:
    """Return the whole configuration of a method on a split.

    Parameters
    ----------
    method : str
        A key of ``meidbench.baselines.METHODS``.
    split : Split
        Its benchmark's values lie below the method's. EQL's rare classes are its tail where the method does not say.
    aggregator : str, optional
        In place of the benchmark's; options that it does not know go.
    settings : sequence of str
        ``KEY=VALUE``, on top of all. For a method of two stages they hold for both; ``stage1.KEY=VALUE`` and
        ``stage2.KEY=VALUE`` for one of them, above the others.
    tables : dict, optional
        The same as nested tables, below ``settings``.

    Raises
    ------
    MeidbenchError
        The method is unknown, or keys and values are wrong; all are named at once.
    """
    if method not in METHODS:
        raise MeidbenchError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    recipe = METHODS[method]
    asked = merged(tables or {}, overrides(settings))
    if "method" in asked:
        raise MeidbenchError(f"the method is {method}; it is named by itself (--method), not among the settings")
    of_stage = {stage: asked.pop(stage) for stage in _STAGES if stage in asked}
    for stage, tables_of in of_stage.items():
        if not isinstance(tables_of, dict):
            raise MeidbenchError(f"{stage} is no value; say {stage}.KEY=VALUE, such as {stage}.schedule.lr=0.001")
    if any("first_stage" in layer for layer in (asked, *of_stage.values())):
        raise MeidbenchError("first_stage is not set by itself; say stage1.KEY=VALUE for a method of two stages")
    first = None
    if recipe.first_stage:
        common = _known_settings(asked, _values(METHODS[recipe.first_stage], split, aggregator))
        first = resolve(
            recipe.first_stage, split, aggregator=aggregator, tables=merged(common, of_stage.get("stage1", {}))
        )
        asked = merged(asked, of_stage.get("stage2", {}))
    elif of_stage:
        raise MeidbenchError(f"{method} is trained in one stage; leave out {', '.join(of_stage)} in its settings")
    values = _values(recipe, split, aggregator)
    if (
        isinstance(asked.get("loss"), dict) and "tail_below" in asked["loss"]
    ):  # in place of the other way to say which classes are rare
        values = merged(values, {"loss": {"tail_up_to": None}})
    named = aggregator is not None or "aggregator" in asked
    config = _completed(Config.from_tables({**merged(values, asked), "method": method}), split, named)
    if first is None:
        return config
    # How a run is carried out is said once.
    return with_first_stage(config, dataclasses.replace(first, execution=config.execution))


def _values(recipe: Recipe, split: Split, aggregator: str | None) -> Tables:
    """Return what a recipe sets on a split, before what the user does."""
    values, _ = benchmark_values(split.dataset, recipe.is_compat)
    for layer in (recipe.tables, recipe.of_dataset.get(split.dataset, {})):
        values = merged(values, layer)
    if aggregator is not None:
        values = merged(values, {"aggregator": {"name": aggregator}})
    return values


def _known_settings(asked: Tables, values: Tables) -> Tables:
    """Leave out of the settings for both stages what the first does not know: its model is a part of the second's."""
    kept = {key: value for key, value in asked.items() if key != "motion"}
    for family, components in FAMILIES.items():
        options = kept.get(family)
        if not isinstance(options, dict):
            continue
        name = options.get("name", values.get(family, {}).get("name"))
        if isinstance(name, str) and name in components():
            known = known_options(components()[name])
            kept[family] = {key: value for key, value in options.items() if key == "name" or key in known}
    return kept


def with_first_stage(config: Config, first: Config) -> Config:
    """Return the configuration of a second stage with that of the first, or refuse two that do not belong together.

    Raises
    ------
    MeidbenchError
        They name other aggregators, frames or options of what both models have.
    """
    ours, theirs = ({**option_defaults(MODELS[stage.model.name]), **stage.model.options} for stage in (config, first))
    shared = [key for key in theirs if key in ours and not key.startswith(_OF_EITHER_STAGE)]
    problems = [f"model.{key}" for key in shared if ours[key] != theirs[key]]
    problems += [key for key in ("aggregator", "frames") if getattr(config, key) != getattr(first, key)]
    if problems:
        raise MeidbenchError(
            f"the stages differ in {first_few(problems)}; the second holds the first's model, so set these for both "
            "(without stage1. or stage2.)"
        )
    return dataclasses.replace(config, first_stage=first)


def _completed(config: Config, split: Split, aggregator_asked: bool) -> Config:
    """Fill in what follows from the split and the rest, and refuse what would fail only after an epoch."""
    from meidbench.baselines.samplers import SAMPLERS

    loss, sampler, aggregator = (dict(choice.options) for choice in (config.loss, config.sampler, config.aggregator))
    if config.loss.name == "eql" and loss.get("tail_up_to") is None and loss.get("tail_below") is None:
        loss["tail_up_to"] = split.metadata.tail_up_to
    if config.loss.name == "ldam":
        # Half of the epochs, as VideoLT's 50 of 100.
        loss.setdefault("drw_epoch", config.schedule.epochs // 2)
    if aggregator.get("classifier") == "cosine" and config.loss.name != "ldam":
        raise MeidbenchError(
            "aggregator.classifier=cosine keeps logits between -1 and 1, from which "
            f"loss.name={config.loss.name} cannot learn; set aggregator.classifier=linear"
        )
    model = MODELS[config.model.name]
    if aggregator_asked and not model.takes_aggregator:
        raise MeidbenchError(f"model.name={config.model.name} has aggregators of its own; leave out the aggregator")
    config.motion.motion()  # refuses what contradicts itself
    if config.motion.when != "none" and not model.takes_motion:
        raise MeidbenchError(f"model.name={config.model.name} takes no motion stream; leave out motion.when")
    masks = config.mask_other_labels
    if masks is None:
        masks = SAMPLERS[config.sampler.name].masks_other_labels
    elif masks and config.sampler.name in ("instance", "repeat_factor"):
        raise MeidbenchError(
            "mask_other_labels=true needs a sampler that draws classes, which sampler.name="
            f"{config.sampler.name} does not"
        )
    if config.sampler.name == "progressively_balanced":
        sampler.setdefault("epochs", config.schedule.epochs)
    if aggregator.get("flavor") == "meid_compat":
        if aggregator.get("frames") is None:
            aggregator["frames"] = config.frames.train
        if not aggregator["frames"] == config.frames.train == config.frames.test:
            raise MeidbenchError(
                f"aggregator.flavor=meid_compat is for one number of frames, got aggregator.frames="
                f"{aggregator['frames']}, frames.train={config.frames.train} and frames.test={config.frames.test}; "
                "set them alike"
            )
    mixing = config.augmentation.options
    if config.augmentation.name == "frame_stack":
        length, whole = mixing.get("clip_length"), mixing.get("ratio", 0.5) == 1
        if length not in (None, config.frames.train) and not whole:
            raise MeidbenchError(
                f"augmentation.clip_length={length} with a ratio below 1 leaves videos of {config.frames.train} frames "
                f"beside those; set it to {config.frames.train} (frames.train), or augmentation.ratio=1"
            )
        if whole and config.running_ap == "untouched":
            raise MeidbenchError(
                "augmentation.ratio=1 leaves no video unmixed to learn the average precision from; "
                "set running_ap=second_pass, or a ratio below 1"
            )
        if whole and aggregator.get("flavor") == "meid_compat" and length not in (None, aggregator["frames"]):
            raise MeidbenchError(
                f"augmentation.clip_length={length} is not what aggregator.flavor=meid_compat is for "
                f"({aggregator['frames']} frames); leave it out"
            )
    return dataclasses.replace(
        config,
        mask_other_labels=masks,
        loss=Choice(config.loss.name, loss),
        sampler=Choice(config.sampler.name, sampler),
        aggregator=Choice(config.aggregator.name, aggregator),
    )


_NAMES = (
    "bce",
    "focal",
    "cb",
    "ldam",
    "eql",
    "cbs",
    "srs",
    "mixup",
    "framestack",
    "db",
    "asl",
    "logit_adjusted",
    "repeat_factor",
    "class_aware",
    "meid_block",
    "meid_one",
    "meid",
    "move_aggregator",
    "move",
)

METHODS: dict[str, Recipe] = read_recipes(_NAMES)
"""What ``--method`` takes; ``NAME-compat`` is as VideoLT's public code has it, ``NAME-release`` as its authors' has."""
