"""Recipes: the values of a method, the source of each, and its published numbers; and how they make a configuration."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from meidbench.baselines.configuration import (
    EXAMPLE_SETTING,
    FAMILIES,
    Config,
    flatten,
    known_options,
    option_defaults,
)
from meidbench.baselines.methods import METHOD_NAMES, PUBLIC_FORMS, read_recipe_file
from meidbench.baselines.models import MODELS
from meidbench.checks import Table, one_of, parse_settings
from meidbench.errors import MeidbenchError, first_few
from meidbench.evaluation.results import MeanAP
from meidbench.names import LAST_EPOCH, SELECTION_SUBSETS
from meidbench.splits.split import Split

STAGES = ("stage1", "stage2")  # the beginnings of keys that set one stage of a method of two
_TAIL_OPTIONS = ("tail_up_to", "tail_below", "tail_classes")  # of EQL; they exclude each other
_PER_STAGE = ("distill_", "neck_", "recompute")  # options of a model that may differ between its stages


@dataclass(frozen=True)
class Published:
    """A published row; ``table`` is a key of ``PUBLISHED_TABLES``."""

    table: str
    dataset: str
    encoder: str
    aggregator: str
    mAP: MeanAP


@dataclass(frozen=True)
class Recipe:
    """A method: the values that it sets, the source of each, and the numbers published for it."""

    name: str
    title: str
    published: tuple[Published, ...]  # numbers of the public code or code like it, so of the compatible form
    first_stage: str  # the method whose weights it begins with; empty for a method of one stage
    is_compat: bool = False  # whether it behaves like public code, VideoLT's or its authors'
    differs: str = ""  # the difference between that form and the faithful one; empty for the faithful one
    tables: Table = field(default_factory=dict)  # the values for every benchmark, as ``Config.from_tables`` reads them
    by_dataset: Mapping[str, Table] = field(default_factory=dict)  # the values on top, per benchmark
    # The source of each value or of a whole section, by ``loss.gamma``, ``schedule`` or ``videolt:schedule.lr``.
    sources: Mapping[str, str] = field(default_factory=dict)


def read_recipes(names: Iterable[str]) -> dict[str, Recipe]:
    """Read the recipes of methods, each with its forms like public code: ``NAME-compat``, ``NAME-release``."""
    recipes = {}
    for name in names:
        content = read_recipe_file(name)
        published = tuple(Published(**{**row, "mAP": MeanAP(*row["mAP"])}) for row in content["published"])
        first = content.get("first_stage", "")
        recipes[name] = _add_values(Recipe(name, content["title"], published, first), content)
        for section, (ending, description) in PUBLIC_FORMS.items():
            if section in content:
                recipes[name + ending] = dataclasses.replace(
                    _add_values(recipes[name], content[section]),
                    name=name + ending,
                    title=f"{content['title']}, {description}",
                    first_stage=first and first + ending,
                    is_compat=True,
                    differs=content[section]["differs"],
                )
    return recipes


def _add_values(recipe: Recipe, content: Table) -> Recipe:
    """Lay the values of a recipe's file, or of one of its forms, over those of a recipe."""
    datasets, unset = content.get("datasets", {}), content.get("unset", [])
    tables = merge_tables(recipe.tables, content.get("config", {}))
    for family, _, option in (key.partition(".") for key in unset):
        tables[family] = {key: value for key, value in tables[family].items() if key != option}
    below = recipe.by_dataset
    by_dataset = {name: merge_tables(below.get(name, {}), values["config"]) for name, values in datasets.items()}
    sources = {key: source for key, source in recipe.sources.items() if key not in unset} | content["sources"]
    for name, values in datasets.items():
        sources |= {f"{name}:{key}": source for key, source in values["sources"].items()}
    return dataclasses.replace(recipe, tables=tables, by_dataset={**below, **by_dataset}, sources=sources)


def read_benchmark(dataset: str, compat: bool = False) -> tuple[Table, dict[str, str]]:
    """Return the values that the published rows of a benchmark have in common, and the source of each."""
    content = read_recipe_file("benchmarks")
    values: Table = content[dataset if dataset in content else "other"]
    public = values.get("compat", {}) if compat else {}
    tables = merge_tables(values["config"], public.get("config", {}))
    return tables, {**values["sources"], **public.get("sources", {})}


def merge_tables(*layers: Table) -> Table:
    """Lay tables over others; where another component is named, drop the options that it does not know."""
    result: Table = {}
    for layer in layers:
        for key, value in layer.items():
            under = result.get(key)
            result[key] = value
            if isinstance(value, dict) and isinstance(under, dict):
                name = value.get("name")
                kept = under if name == under.get("name") else _drop_unknown(key, under, name)
                result[key] = {**kept, **value}
    return result


def _drop_unknown(family: str, options: Table, name: object) -> Table:
    """Return the options that a component knows; all of them where its name is unknown."""
    kind = FAMILIES.get(family, {}).get(str(name))
    known = options if kind is None else known_options(kind)
    return {key: value for key, value in options.items() if key == "name" or key in known}


def resolve(
    method: str,
    split: Split,
    *,
    aggregator: str | None = None,
    settings: Sequence[str] = (),
    tables: Table | None = None,
) -> Config:
    """Return the whole configuration of a method on a split.

    Parameters
    ----------
    method : str
        A key of ``meidbench.baselines.METHODS``.
    split : Split
        Its benchmark's values lie below the method's. Its tail is EQL's set of rare classes unless the method names it.
    aggregator : str, optional
        Replaces the benchmark's; options that it does not know are dropped.
    settings : sequence of str
        ``KEY=VALUE``, on top of everything. For a method of two stages they set both stages;
        ``stage1.KEY=VALUE`` and ``stage2.KEY=VALUE`` set one stage, on top of the others.
    tables : dict, optional
        The same as nested tables, below ``settings``.

    Raises
    ------
    MeidbenchError
        The method is unknown, or keys and values are wrong; the message names all of them.
    """
    recipe = METHODS[one_of("method", method, tuple(METHODS))]
    named = {} if aggregator is None else {"aggregator": {"name": aggregator}}
    asked = merge_tables(named, tables or {}, parse_settings(settings, EXAMPLE_SETTING))
    by_stage: Table = {stage: asked.pop(stage) for stage in STAGES if stage in asked}
    _check_keys(method, asked, by_stage)
    if not recipe.first_stage:
        if by_stage:
            raise MeidbenchError(f"{method} is trained in one stage; leave out {', '.join(by_stage)} in its settings")
        return _resolve_stage(recipe, split, asked)
    below = METHODS[recipe.first_stage]
    common = _keep_known(asked, _layer_values(below, split))
    first = _resolve_stage(below, split, merge_tables(common, by_stage.get("stage1", {})))
    second = _resolve_stage(recipe, split, merge_tables(asked, by_stage.get("stage2", {})))
    return _join_stages(first, second)


def flatten_settings(settings: Sequence[str]) -> Table:
    """Return the values of ``KEY=VALUE`` settings by their dotted keys."""
    return flatten(parse_settings(settings, EXAMPLE_SETTING))


def split_stage(key: str) -> tuple[str, str]:
    """Split a key into its stage, empty for both stages, and the rest.

    >>> split_stage("stage1.schedule.lr"), split_stage("schedule.lr")
    (('stage1', 'schedule.lr'), ('', 'schedule.lr'))
    """
    stage, _, rest = key.partition(".")
    return (stage, rest) if stage in STAGES else ("", key)


def _check_keys(method: str, asked: Table, by_stage: Table) -> None:
    for stage, tables in {"": asked, **by_stage}.items():
        if not isinstance(tables, dict):
            raise MeidbenchError(f"{stage} is not a value; set {stage}.KEY=VALUE, such as {stage}.{EXAMPLE_SETTING}")
        if "method" in tables:
            raise MeidbenchError(f"the method is {method}; name it by itself (--method), not among the settings")
        if "first_stage" in tables:
            raise MeidbenchError("first_stage is not a setting; set stage1.KEY=VALUE for a method of two stages")


def _layer_values(recipe: Recipe, split: Split) -> Table:
    """Return the values of a recipe on a split, below those of the user."""
    benchmark, _ = read_benchmark(split.dataset, recipe.is_compat)
    return merge_tables(benchmark, recipe.tables, recipe.by_dataset.get(split.dataset, {}))


def _keep_known(asked: Table, values: Table) -> Table:
    """Return the settings for both stages that the first one knows: its model is a part of the second's."""
    kept = {key: value for key, value in asked.items() if key != "motion"}
    for family in FAMILIES:
        if isinstance(options := kept.get(family), dict):
            kept[family] = _drop_unknown(family, options, options.get("name", values.get(family, {}).get("name")))
    return kept


def _resolve_stage(recipe: Recipe, split: Split, asked: Table) -> Config:
    values = _layer_values(recipe, split)
    if isinstance(asked.get("loss"), dict) and set(_TAIL_OPTIONS[1:]) & set(asked["loss"]):
        values = merge_tables(values, {"loss": {"tail_up_to": None}})  # the options exclude each other
    config = _complete(Config.from_tables({**merge_tables(values, asked), "method": recipe.name}), split)
    _check(config, aggregator_asked="aggregator" in asked)
    return config


def _join_stages(first: Config, second: Config) -> Config:
    """Return the second stage's configuration with the first's; refuse two that do not belong together."""
    theirs, ours = (option_defaults(MODELS[stage.model.name]) | dict(stage.model.options) for stage in (first, second))
    shared = [key for key in theirs if key in ours and not key.startswith(_PER_STAGE)]
    problems = [f"model.{key}" for key in shared if ours[key] != theirs[key]]
    problems += [key for key in ("aggregator", "frames") if getattr(second, key) != getattr(first, key)]
    if problems:
        raise MeidbenchError(
            f"the stages differ in {first_few(problems)}; the second holds the first's model, so set these for both "
            "(without stage1. or stage2.)"
        )
    return dataclasses.replace(second, first_stage=dataclasses.replace(first, execution=second.execution))


def _complete(config: Config, split: Split) -> Config:
    """Fill in the values that follow from the split and from other values; a new configuration is changed in place."""
    loss, aggregator = config.loss.options, config.aggregator.options
    if config.loss.name == "eql" and all(loss.get(key) is None for key in _TAIL_OPTIONS):
        tail = tuple(split.groups.tail.tolist())
        loss |= {"tail_up_to": split.metadata.tail_up_to} if split.thresholds else {"tail_classes": tail}
    for (family, option), value in config.epoch_values().items():
        getattr(config, family).options.setdefault(option, value)
    if aggregator.get("flavor") == "meid_compat" and aggregator.get("frames") is None:
        aggregator["frames"] = config.frames.train
    if MODELS[config.model.name].is_fitted:
        options = option_defaults(MODELS[config.model.name]) | config.model.options
        config = config.with_epochs(max(1, len(options["c_grid"])))
        config = dataclasses.replace(config, selection=dataclasses.replace(config.selection, every=1))
    return dataclasses.replace(config, mask_other_labels=config.masks_labels)


def _check(config: Config, aggregator_asked: bool) -> None:
    """Refuse values that contradict each other, which would fail only after an epoch."""
    model, loss, sampler = config.model.name, config.loss.name, config.sampler.name
    aggregator, frames, mixing = config.aggregator.options, config.frames, config.augmentation.options
    if aggregator.get("classifier") == "cosine" and loss != "ldam":
        raise MeidbenchError(
            f"aggregator.classifier=cosine keeps logits between -1 and 1, from which loss.name={loss} cannot learn; "
            "set aggregator.classifier=linear"
        )
    if aggregator_asked and not MODELS[model].takes_aggregator:
        raise MeidbenchError(f"model.name={model} has aggregators of its own; leave out the aggregator")
    if config.motion.motion() is not None and not MODELS[model].takes_motion:
        raise MeidbenchError(f"model.name={model} takes no motion stream; leave out motion.when")
    if config.selection.subset == LAST_EPOCH and MODELS[model].is_fitted and config.schedule.epochs > 1:
        raise MeidbenchError(
            f"selection.subset={LAST_EPOCH} would take the last value of model.c_grid; set one value, such as "
            f"model.c_grid=[1.0], or let a subset choose: {' or '.join(SELECTION_SUBSETS)}"
        )
    if config.mask_other_labels and sampler in ("instance", "repeat_factor"):
        raise MeidbenchError(
            f"mask_other_labels=true needs a sampler that draws classes, which sampler.name={sampler} does not"
        )
    length, mixes_all = mixing.get("clip_length"), mixing.get("ratio") == 1  # of FrameStack alone
    if length not in (None, frames.train) and not mixes_all:
        raise MeidbenchError(
            f"augmentation.clip_length={length} with a ratio below 1 leaves videos of {frames.train} frames beside "
            f"those; set it to {frames.train} (frames.train), or augmentation.ratio=1"
        )
    if mixes_all and config.running_ap == "untouched":
        raise MeidbenchError(
            "augmentation.ratio=1 leaves no video unmixed to learn the average precision from; set "
            "running_ap=second_pass, or a ratio below 1"
        )
    is_compat = aggregator.get("flavor") == "meid_compat"
    if is_compat and not aggregator["frames"] == frames.train == frames.test == (length or frames.train):
        stacked = "" if length is None else f" (augmentation.clip_length={length})"
        raise MeidbenchError(
            f"aggregator.flavor=meid_compat is for one number of frames, got aggregator.frames={aggregator['frames']}, "
            f"frames.train={frames.train} and frames.test={frames.test}{stacked}; set them alike"
        )


METHODS: dict[str, Recipe] = read_recipes(METHOD_NAMES)
"""The methods by name: ``NAME-compat`` behaves like VideoLT's public code, ``NAME-release`` like its authors'."""
