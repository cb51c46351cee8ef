"""Targets from settings: what a plan or a command says, over a benchmark's preset or what the videos suggest."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from typing import Any

from meidbench.annotations import Annotations
from meidbench.construction.defaults import default_targets
from meidbench.construction.targets import EXACT_PRESETS, GROUPINGS, PRESETS, ExactTargets, Targets
from meidbench.errors import SplitError, bullet_list

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIANTS = ("pareto", "grouped", "exact")
NONE = "none"
"""Stands for a target that is not set, as TOML has no word for it."""

_DERIVED = ("alpha", "head_above", "tail_up_to", "least_seconds", "group_by")  # what default_targets is asked with


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` settings, values as in TOML; what TOML does not know is text.

    Raises
    ------
    SplitError
        One is no such pair, or a key is set twice.

    Examples
    --------
    >>> parse_settings(["alpha=6", "test_videos=none", 'group_by=["pair"]'])
    {'alpha': 6, 'test_videos': 'none', 'group_by': ['pair']}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise SplitError(f"{text!r} is no setting; expected KEY=VALUE, such as alpha=6")
        if key in settings:
            raise SplitError(f"{key} is set twice; say once what it is to be")
        try:
            read = tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            read = {}
        settings[key] = read["value"] if set(read) == {"value"} else value
    return settings


def check_settings(variant: str, settings: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the names and the types of settings, empty where nothing is.

    Examples
    --------
    >>> check_settings("pareto", {"alpha": "steep", "val_videos": 2.5})
    ["alpha must be a number, got 'steep'", 'val_videos must be a whole number or "none", got 2.5']
    """
    known = {entry.name: entry for entry in fields(_kind(variant))}
    strange = [name for name in settings if name not in known]
    problems = [f"{', '.join(strange)}: no target of {variant}; known: {', '.join(known)}"] if strange else []
    problems += [
        f"{name} must be {_wanted(known[name])}, got {value!r}"
        for name, value in settings.items()
        if name in known and not _fits(known[name], value)
    ]
    if variant == "pareto" and settings.get("group_by"):
        problems.append("pareto keeps no groups together: group_by is for grouped and exact")
    return problems


def resolve_targets(
    annotations: Annotations,
    variant: str,
    settings: Mapping[str, Any],
    *,
    dataset: str,
    benchmark: str = "",
    thresholds: tuple[int, int] | None = None,
) -> Targets | ExactTargets:
    """Return the whole targets: the settings, and for what they do not say the preset or ``default_targets``.

    Parameters
    ----------
    annotations : Annotations
    variant : str
        One of ``VARIANTS``.
    settings : mapping
        Fields of ``Targets``, or of ``ExactTargets`` for ``exact``; ``"none"`` for one that is not to be set.
        ``grouped`` without ``group_by`` keeps pairs together.
    dataset : str
        What messages call it.
    benchmark : str
        A key of ``PRESETS``, where it is one.
    thresholds : (int, int), optional
        ``head_above`` and ``tail_up_to`` where neither settings nor a preset say them, and no group is empty with them.

    Raises
    ------
    SplitError
        Settings are unknown, of a wrong type or contradict one another, an exact split lacks a number, or nothing in
        the annotations can be kept together as asked.

    Examples
    --------
    >>> resolve_targets(Annotations(()), "pareto", {"most_frequent": 300}, dataset="mine", benchmark="charadeslt").alpha
    10
    """
    if problems := check_settings(variant, settings):
        raise SplitError(f"these targets cannot be meant:\n{bullet_list(problems)}")
    values = {name: _read(value) for name, value in settings.items()}
    if variant == "grouped" and not values.get("group_by"):
        values["group_by"] = ("pair",)
    _check_grouping(annotations, values.get("group_by", ()), dataset)
    preset = (EXACT_PRESETS if variant == "exact" else PRESETS).get(benchmark)
    if preset is not None:
        return replace(preset, **values)
    every = fields(_kind(variant))
    if variant == "exact":
        if thresholds is not None:
            values = {"head_above": thresholds[0], "tail_up_to": thresholds[1], **values}
        missing = [entry.name for entry in every if entry.default is MISSING and entry.name not in values]
        if missing:
            raise SplitError(
                f"an exact split of {dataset} needs these numbers too: {', '.join(missing)}\n"
                "Set them in the plan's [targets], or by --set KEY=VALUE."
            )
        return ExactTargets(**values)
    if all(entry.name in values for entry in every):
        return Targets(**values)
    asked = {name: values[name] for name in _DERIVED if name in values}
    if thresholds is not None:
        asked["customary"] = thresholds
    return replace(default_targets(annotations, **asked), **values)


def _kind(variant: str) -> type[Targets] | type[ExactTargets]:
    return ExactTargets if variant == "exact" else Targets


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return None if value == NONE else value


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _fits(entry: "Field[Any]", value: Any) -> bool:
    if entry.name == "group_by":
        return isinstance(value, list | tuple) and all(name in GROUPINGS for name in value)
    if value == NONE:
        return entry.default is None
    return _is_whole(value) or (entry.name in ("alpha", "least_seconds") and type(value) is float)


def _wanted(entry: "Field[Any]") -> str:
    if entry.name == "group_by":
        return f"a list of {', '.join(GROUPINGS)}"
    what = "a number" if entry.name in ("alpha", "least_seconds") else "a whole number"
    return f'{what} or "{NONE}"' if entry.default is None else what


def _check_grouping(annotations: Annotations, group_by: Sequence[str], dataset: str) -> None:
    """Refuse to keep together what the annotations do not name: the split would be no other than an ungrouped one."""
    named = {"pair": annotations.pair_ids, "subject": annotations.subjects}
    empty = [name for name in group_by if not any(named[name])]
    if not empty:
        return
    others = [name for name in GROUPINGS if name not in empty and any(named[name])]
    rest = f"\nThere are others to keep together: --group-by {others[0]}" if others else ""
    raise SplitError(f"the videos of {dataset} have no {' and no '.join(empty)} that could be kept together{rest}")
