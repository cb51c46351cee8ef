"""Recipes: a method's values, where each is from, and the numbers published for it; all of it data."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from meidbench.baselines.configuration import Choice, Config, Tables, merged, overrides
from meidbench.errors import MeidbenchError
from meidbench.results import MeanAP
from meidbench.split import Split

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BENCHMARKS = "benchmarks"
OTHER = "other"
COMPAT_ENDING = "-compat"

# What the tables of published numbers are.
PUBLISHED_TABLES = {
    "table2": "MEID, Table 2",
    "table3": "MEID, Table 3",
    "supp5": "MEID, supplementary Table 5",
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
        Whether it behaves as VideoLT's public code does.
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
    """

    name: str
    title: str
    is_compat: bool
    differs: str
    tables: Tables
    of_dataset: Mapping[str, Tables]
    sources: Mapping[str, str]
    published: tuple[Published, ...]


def read_recipes(names: Iterable[str]) -> dict[str, Recipe]:
    """Read the recipes of methods, with the compatible form of each that has one as ``NAME-compat``.

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
        recipes[name] = Recipe(name, content["title"], False, "", content["config"], of_dataset, sources, published)
        if compat := content.get("compat"):
            unset = compat.get("unset", [])
            kept = {key: said for key, said in sources.items() if key not in unset}
            recipes[name + COMPAT_ENDING] = Recipe(
                name + COMPAT_ENDING,
                f"{content['title']}, as in VideoLT's public code",
                True,
                compat["differs"],
                merged(_without(content["config"], unset), compat.get("config", {})),
                of_dataset,
                {**kept, **compat["sources"]},
                published,
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
        ``KEY=VALUE``, on top of all.
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
    values, _ = benchmark_values(split.dataset, recipe.is_compat)
    for layer in (recipe.tables, recipe.of_dataset.get(split.dataset, {})):
        values = merged(values, layer)
    if aggregator is not None:
        values = merged(values, {"aggregator": {"name": aggregator}})
    asked = merged(tables or {}, overrides(settings))
    if "method" in asked:
        raise MeidbenchError(f"the method is {method}; it is named by itself (--method), not among the settings")
    if (
        isinstance(asked.get("loss"), dict) and "tail_below" in asked["loss"]
    ):  # in place of the other way to say which classes are rare
        values = merged(values, {"loss": {"tail_up_to": None}})
    return _completed(Config.from_tables({**merged(values, asked), "method": method}), split)


def _completed(config: Config, split: Split) -> Config:
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
    return tomllib.loads(text)
