"""Search spaces: the values that ``tune`` searches for a method, from its recipe; and a trial's values as settings."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meidbench.baselines.configuration import (
    FAMILIES,
    Choice,
    Config,
    list_keys,
    option_defaults,
)
from meidbench.baselines.learner import check_run
from meidbench.baselines.methods import PUBLIC_FORMS, read_recipe_file
from meidbench.baselines.models import MODELS
from meidbench.baselines.recipes import STAGES, flatten_settings, resolve, split_stage
from meidbench.checks import Table, read_toml, show, suggest
from meidbench.errors import MeidbenchError, RequestError, bullet_list
from meidbench.splits.split import Split

if TYPE_CHECKING:
    import optuna

_UNUSED_BY_FITTED = ("aggregator.", "augmentation.", "loss.", "sampler.", "schedule.", "frames.train")
_NOT_SEARCHED = ("execution.", "method", "seed", "selection.")  # val must choose, and a seed is luck
_EPOCHS, _MILESTONES = "schedule.epochs", "schedule.milestones"
_FORM = "{ low = ..., high = ..., log = true } or { choices = [...] }"


@dataclass(frozen=True)
class Searched:
    """A value that is searched: of ``choices``, or from ``low`` to ``high``, by its logarithm with ``log``."""

    key: str
    published: Any  # the value of the first trial
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key}: {', '.join(map(str, self.choices))}"
        return f"{self.key}: {self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def make_distribution(self) -> "optuna.distributions.BaseDistribution":
        """Return the same for Optuna."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if isinstance(self.published, int):
            return distributions.IntDistribution(self.low, self.high, log=self.log)  # type: ignore[arg-type]
        return distributions.FloatDistribution(self.low, self.high, log=self.log)  # type: ignore[arg-type]

    def bounds(self) -> tuple[Any, ...]:
        """Return the choices, or both ends."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class SearchRequest:
    """What ``resolve`` makes a trial's configuration from, besides the trial's values."""

    method: str
    split: Split
    aggregator: str | None
    settings: tuple[str, ...]

    def resolve(self, settings: Sequence[str] = ()) -> Config:
        """Return the configuration with further settings."""
        return resolve(self.method, self.split, aggregator=self.aggregator, settings=(*self.settings, *settings))

    def fixes(self, key: str) -> bool:
        """Return whether a setting of the user fixes a value, for one stage or for both."""
        fixed = flatten_settings(self.settings)
        stage, rest = split_stage(key)
        return bool({rest, key} & fixed.keys()) or (not stage and any(f"{name}.{rest}" in fixed for name in STAGES))

    def list_settings(self, values: Mapping[str, Any], base: Config) -> tuple[str, ...]:
        """Return a trial's values as settings; milestones keep their share of the epochs."""
        settings = []
        for key, value in values.items():
            settings.append(f"{key}={_to_toml(value)}")
            stage, rest = split_stage(key)
            schedule = _find_stage(base, stage).schedule
            milestones = f"{stage}.{_MILESTONES}" if stage else _MILESTONES
            if rest == _EPOCHS and value != schedule.epochs and schedule.milestones and not self.fixes(milestones):
                moved = {max(1, round(epoch * value / schedule.epochs)) for epoch in schedule.milestones}
                settings.append(f"{milestones}={sorted(moved)}")
        return tuple(settings)


def read_space(request: SearchRequest, base: Config, dim: int, file: Path | None = None) -> tuple[Searched, ...]:
    """Return the values that a study searches: those of the method's recipe and of every method, or those of a file.

    Values that the user's settings fix are left out, and so are those of recipes that the configuration does not have
    or switches off (a published 0 where the logarithm is searched), and choices that it refuses.

    Parameters
    ----------
    request : SearchRequest
    base : Config
        Its configuration without further settings: the published values.
    dim : int
        The width of the features.
    file : Path, optional
        TOML with an entry per key, such as ``"schedule.lr" = { low = 1e-5, high = 1e-2, log = true }``.

    Raises
    ------
    MeidbenchError
        The published configuration itself is refused.
    RequestError
        An entry of the file is wrong, or nothing is left to search; the message names all problems.
    """
    check_run(base, request.split, dim)
    problems: list[str] = []
    table = read_recipe_space(request.method) if file is None else read_toml(file)
    found = []
    for key, entry in table.items():
        if request.fixes(key):
            continue
        if file is None:
            searched = _keep_possible(request, base, dim, key, entry)
        else:
            searched = _read_entry(base, key, entry, problems)
            if searched is not None and (other := _find_other_stage(base, key)) != searched.published:
                problems.append(
                    f"{key} is published as {other} in stage 1 and {searched.published} in stage 2; "
                    f"search stage1.{key} and stage2.{key}"
                )
            problems += [] if searched is None else _list_refusals(request, base, dim, searched).values()
        found += [] if searched is None else [searched]
    if file is not None and not table:
        problems.append(f'it names no value; expected entries such as "schedule.lr" = {_FORM}')
    if problems:
        raise RequestError(f"{file} is no search space:\n{bullet_list(problems)}")
    if not found:
        raise RequestError("nothing is left to search: the settings fix every value of the search space")
    return tuple(found)


def read_recipe_space(method: str) -> Table:
    """Return the entries of every method and of this one, with sources; one for a stage replaces that for both."""
    endings = [ending for ending, _ in PUBLIC_FORMS.values()]
    name = next((method.removesuffix(ending) for ending in endings if method.endswith(ending)), method)
    own: Table = read_recipe_file(name).get("search", {})
    by_stage = {split_stage(key)[1] for key in own if split_stage(key)[0]}
    return {key: entry for key, entry in read_recipe_file("search").items() if key not in by_stage} | own


def _keep_possible(request: SearchRequest, base: Config, dim: int, key: str, entry: Table) -> Searched | None:
    """Read an entry of a recipe as far as it is possible; None where nothing is left to search."""
    if key not in _list_searchable(base):
        return None
    problems: list[str] = []
    searched = _read_entry(base, key, entry, problems)
    if searched is None:
        raise MeidbenchError(f"the recipe of {request.method}:\n{bullet_list(problems)}")
    refused = _list_refusals(request, base, dim, searched)
    if not searched.choices:
        return None if refused or (searched.log and searched.published <= 0) else searched
    kept = tuple(choice for choice in searched.choices if choice not in refused)
    return Searched(key, searched.published, choices=kept) if len(kept) > 1 else None


def _list_searchable(base: Config) -> list[str]:
    """Return the keys that have an effect in a configuration of a method, with those of its stages."""
    stages = {"": base} if base.first_stage is None else {"": base, "stage1.": base.first_stage, "stage2.": base}
    keys = [f"{name}{key}" for name, stage in stages.items() for key in list_keys(stage.to_tables())]
    model = MODELS[base.model.name]
    unused = () if model.takes_aggregator else _UNUSED_BY_FITTED if model.is_fitted else ("aggregator.",)
    return [key for key in keys if not split_stage(key)[1].startswith(unused)]


def _read_entry(base: Config, key: str, entry: Any, problems: list[str]) -> Searched | None:
    """Read a range around the published value; None with a problem where it is none."""
    known = _list_searchable(base)
    if key not in known:
        inside = next((name for name in known if name.startswith(f"{key}.")), None)
        hint = f'; write the whole key in quotes, such as "{inside}"' if inside else suggest(key, known)
        problems.append(f"unknown key {key}{hint}")
        return None
    if split_stage(key)[1].startswith(_NOT_SEARCHED):
        problems.append(f"{key} is no value of the method, and cannot be searched; --set fixes it for all trials")
        return None
    if (
        not isinstance(entry, dict)
        or not entry
        or (unknown := set(entry) - {"low", "high", "log", "choices", "source"})
    ):
        what = f"unknown {', '.join(sorted(unknown))}" if isinstance(entry, dict) and entry else f"got {show(entry)}"
        problems.append(f"{key} must be {_FORM}; {what}")
        return None
    published = _find_value(base, key)
    choices = entry.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or "low" in entry or "high" in entry or len(set(map(repr, choices))) < 2:
            problems.append(f"{key} must be {_FORM}, with two choices at least; got {show(entry)}")
            return None
        kept = [choice for choice in choices if choice != published]
        if not all(isinstance(choice, str | int | float) for choice in kept):
            problems.append(f"{key}: choices must be numbers, strings, true or false; got {show(choices)}")
            return None
        return Searched(key, published, choices=tuple(choices) if published in choices else (published, *kept))
    if missing := [name for name in ("low", "high") if name not in entry]:
        problems.append(f"{key} must be {_FORM}; missing {', '.join(missing)}")
        return None
    low, high, log = entry["low"], entry["high"], entry.get("log", False)
    for name, value in (("low", low), ("high", high), ("the published value", published)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            problems.append(f"{key}: {name} must be a number, got {show(value)}")
            return None
    if not -math.inf < low < high < math.inf or log not in (True, False) or (log and low <= 0):
        problems.append(f"{key}: low must be below high, and above 0 with log = true; got {show(entry)}")
        return None
    kind = int if isinstance(published, int) else float
    if kind(low) != low or kind(high) != high:
        problems.append(f"{key}: low and high must be whole numbers, got {show(low)} and {show(high)}")
        return None
    return Searched(key, published, kind(min(low, published)), kind(max(high, published)), log)


def _list_refusals(request: SearchRequest, base: Config, dim: int, searched: Searched) -> dict[Any, str]:
    """Return why a choice or an end of a range makes no configuration, by value; the published one is not asked."""
    refused: dict[Any, str] = {}
    for value in searched.bounds():
        if value == searched.published:
            continue
        try:
            config = request.resolve(request.list_settings({searched.key: value}, base))
            check_run(config, request.split, dim)
        except MeidbenchError as error:
            lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
            refused[value] = f"{searched.key}={value} is refused: {'; '.join(lines[1:] or lines)}"
    return refused


def _find_stage(config: Config, stage: str) -> Config:
    return config.first_stage if stage == "stage1" and config.first_stage is not None else config


def _find_value(base: Config, key: str) -> Any:
    """Return the value of a key: as it is set, or the default of its component."""
    stage, rest = split_stage(key)
    value: Any = _find_stage(base, stage)
    for name in rest.split("."):
        if isinstance(value, Choice):
            defaults = option_defaults(FAMILIES[rest.partition(".")[0]][value.name])
            return value.name if name == "name" else {**defaults, **value.options}[name]
        value = getattr(value, name)
    return value


def _find_other_stage(base: Config, key: str) -> Any:
    """Return the value that a key for both stages has in the first; that of the key itself where it has no other."""
    return _find_value(base, f"stage1.{key}" if f"stage1.{key}" in _list_searchable(base) else key)


def _to_toml(value: Any) -> str:
    """Return a value as a setting has it; JSON writes numbers, truth and strings as TOML does."""
    return value if isinstance(value, str) else json.dumps(value)
