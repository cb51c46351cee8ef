"""Settings as tables: read from ``KEY=VALUE``, laid over others, and turned into checked dataclasses and back."""

import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

from meidbench.baselines.components import FAMILIES, known_options
from meidbench.errors import MeidbenchError

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
