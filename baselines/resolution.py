"""From a method and a split to the whole configuration of a run."""

import dataclasses
from collections.abc import Sequence

from meidbench.baselines.components import FAMILIES, known_options, option_defaults
from meidbench.baselines.configuration import Config
from meidbench.baselines.models import MODELS
from meidbench.baselines.recipes import Recipe, benchmark_values
from meidbench.baselines.settings import Choice, Tables, merged, overrides
from meidbench.errors import MeidbenchError, first_few
from meidbench.split import Split

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
    from meidbench.baselines.methods import METHODS

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
