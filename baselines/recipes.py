"""Recipes: a method's values, where each is from, and the numbers published for it; all of it data."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from meidbench.baselines.settings import Tables, merged
from meidbench.results import MeanAP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    return tomllib.loads(text)
