"""Checks of single values and of outputs; the one reader from tables (TOML, KEY=VALUE, JSON) to dataclasses."""

import dataclasses
import json
import math
import numbers
import operator
import os
import re
import stat
import sys
import types
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from meidbench.errors import MeidbenchError, OutputError
from meidbench.files import find_stat, is_written_through
from meidbench.names import OTHER_NAMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Table = dict[str, Any]
# Reads the value of one field: (field name, value, default, prefix of keys, list of problems to add to) -> value.
FieldReader = Callable[[str, Any, Any, str, list[str]], Any]
_Dataclass = TypeVar("_Dataclass")


def whole_number(name: str, value: int, least: int = 0, error: type[MeidbenchError] = MeidbenchError) -> int:
    """Return a whole number of at least ``least``; refuse every other value, also True and False.

    Examples
    --------
    >>> whole_number("epoch", 3)
    3
    """
    if not is_whole_number(value, least):
        raise error(f"{name} must be a whole number of at least {least}, got {show(value)}")
    return operator.index(value)


def is_whole_number(value: object, least: int) -> bool:
    """Return whether a value is a whole number of at least ``least``; True and False are refused.

    Examples
    --------
    >>> is_whole_number(3, 1), is_whole_number(2.0, 1), is_whole_number(True, 1)
    (True, False, False)
    """
    try:
        return not isinstance(value, bool) and operator.index(value) >= least  # type: ignore[arg-type]
    except TypeError:
        return False


def in_range(name: str, value: float, low: float, high: float = math.inf, *, open_end: bool = False) -> float:
    """Return a number in [low, high], or in [low, high) with ``open_end``; refuse every other value.

    Examples
    --------
    >>> in_range("beta", 0.9999, 0, 1, open_end=True)
    0.9999
    """
    is_real = issubclass(type(value), numbers.Real) and type(value) is not bool
    try:
        number = float(value) if is_real else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= value <= high or (open_end and value == high):
        bounds = f"at least {low}" if high == math.inf else f"in [{low}, {high}{')' if open_end else ']'}"
        raise MeidbenchError(f"{name} must be a number {bounds}, got {show(value)}")
    return number


def one_of(name: str, value: str, known: Sequence[str], error: type[MeidbenchError] = MeidbenchError) -> str:
    """Return a known value; refuse an unknown one, suggest those that are like it, and list those that are known.

    Examples
    --------
    >>> one_of("reduction", "mean", ("mean", "sum"))
    'mean'
    """
    if not isinstance(value, str) or value not in known:
        raise error(f"unknown {name} {show(value)}{suggest(value, known)}; known: {', '.join(known)}")
    return value


def suggest(text: object, known: Iterable[str]) -> str:
    """Return the known names that a text may mean, as ``" (did you mean A or B?)"``; empty where no name is like it.

    A name is like a text that is a part of it, is spelt nearly so, or is another name for it (``names.OTHER_NAMES``).
    Of names with dots, such as ``schedule.lr``, the last part counts.

    Examples
    --------
    >>> suggest("LDAM", ("bce", "ldam")), suggest("learning_rate", ("seed", "schedule.lr")), suggest("x", ("bce",))
    (' (did you mean ldam?)', ' (did you mean schedule.lr?)', '')
    """
    names = list(known)
    found = find_like(text, names)
    return f" (did you mean {' or '.join(found[:3])}?)" if found and not len(found) == len(names) > 1 else ""


def find_like(text: object, known: Sequence[str]) -> list[str]:
    """Return the known names that a text may mean, the likeliest first; see ``suggest``.

    Examples
    --------
    >>> find_like("vlad", ["mean", "netvlad", "nextvlad"])
    ['netvlad', 'nextvlad']
    """
    section, _, word = str(text).rpartition(".")
    inside = [name for name in known if section and name.startswith(f"{section}.")]
    return _like(_plain_name(word), inside) or _like(_plain_name(word), known)


def _like(word: str, names: Sequence[str]) -> list[str]:
    """Return the names whose last part is a word, is another name for it, contains it, or is spelt like it."""
    from difflib import SequenceMatcher

    last = {name: _plain_name(name.rpartition(".")[2]) for name in names}
    for meant in ([word], [_plain_name(other) for other in OTHER_NAMES.get(word, ())]):
        if found := [name for other in meant for name in names if last[name] == other]:
            return found
    likeness = {name: SequenceMatcher(None, word, last[name]).ratio() for name in names}
    shared = [
        name for name in names if min(len(word), len(last[name])) > 2 and (word in last[name] or last[name] in word)
    ]
    return sorted(shared or [name for name in names if likeness[name] >= 0.6], key=lambda name: -likeness[name])


def match_name(text: str, known: Iterable[str]) -> str:
    """Return the known name that differs from a text only in case, hyphens, underscores and blanks; else the text.

    Examples
    --------
    >>> match_name("Charades-LT", ("videolt", "charadeslt"))
    'charadeslt'
    """
    return next((name for name in known if _plain_name(name) == _plain_name(text)), text)


def _plain_name(text: str) -> str:
    return "".join(character for character in text.casefold() if character not in "-_ ")


def parse_toml(text: str) -> Table:
    """Return the table of a TOML text; raise ``ValueError`` where it is damaged."""
    try:
        table: Table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return table


def read_toml(path: Path, error: type[MeidbenchError] = MeidbenchError) -> Table:
    """Return the table of a TOML file.

    Raises
    ------
    error
        The file cannot be read, or is not TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None
    except ValueError as problem:
        raise error(f"{path} is not a readable TOML file: {problem}") from None


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text; raise ``ValueError`` for damage, deep nesting, and numbers not finite.

    Examples
    --------
    >>> parse_json('{"epochs": 3}')
    {'epochs': 3}
    """

    def read_float(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise ValueError(f"{digits[:40]} is not a finite number")
        return number

    try:
        return json.loads(text, parse_float=read_float, parse_constant=read_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, error: type[MeidbenchError] = MeidbenchError) -> Table:
    """Return the object in a JSON file of a run or of a result.

    Raises
    ------
    error
        The file cannot be read, is not JSON, is nested too deeply, has numbers that are not finite, or no object.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None
    except ValueError as problem:
        raise error(f"{path} is damaged: {problem}") from None
    if not isinstance(content, dict):
        raise error(f"{path} is damaged: it holds a {type(content).__name__}, expected an object")
    return content


def show(value: object) -> str:
    """Return a value for a message: as Python writes it, cut where that is long.

    Examples
    --------
    >>> show("abc"), show(10**5000)
    ("'abc'", 'a whole number of about 5000 digits')
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of about {value.bit_length() * math.log10(2):.0f} digits"
    if isinstance(value, int) and value.bit_length() > 63:
        return f"{value}, which has more than 64 bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number in it has too many digits, or it is nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def parse_settings(
    settings: Sequence[str], example: str, *, dotted: bool = True, error: type[MeidbenchError] = MeidbenchError
) -> Table:
    """Read ``KEY=VALUE`` settings; a value is TOML, or a string where TOML does not know it.

    Parameters
    ----------
    settings : sequence of str
    example : str
        A valid setting, for the message.
    dotted : bool
        Whether a dot in a key makes nested tables.
    error : type
        The error to raise.

    Examples
    --------
    >>> parse_settings(["schedule.lr=2e-3", "loss.name=eql"], "schedule.lr=0.001")
    {'schedule': {'lr': 0.002}, 'loss': {'name': 'eql'}}
    """
    tables: Table = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        *parents, last = key.split(".") if dotted else [key]
        if not equals or not all((*parents, last)) or not (text or dotted):
            raise error(f"{show(setting)} is not a setting; expected KEY=VALUE, such as {example}")
        table: Any = tables
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                break
        if not isinstance(table, dict) or last in table:
            raise error(f"{key} is set twice; say once what it is to be")
        table[last] = _toml_value(text)
    return tables


def _toml_value(text: str) -> Any:
    try:
        read = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return read["value"] if set(read) == {"value"} else text


def read_dataclass(
    kind: type[_Dataclass],
    table: Any,
    problems: list[str],
    prefix: str = "",
    readers: Mapping[type, FieldReader] | None = None,
    known_keys: Sequence[str] = (),
) -> _Dataclass:
    """Make a frozen dataclass, whose fields all have defaults, from a table.

    Parameters
    ----------
    kind : type
        A dataclass. It may name the least and the most of a field in ``_least`` and ``_most``, a value that a field
        must exceed in ``_above``, the known values of a field in ``_known``, and the fields that must be given in
        ``_required``.
    table : dict
        Field names and values; nested dataclasses are tables, tuples of dataclasses are lists of tables.
    problems : list of str
        Every problem is added to it, with its key.
    prefix : str
        What stands before a key in a message, such as ``schedule.``.
    readers : mapping of type to FieldReader, optional
        Readers of the fields that are annotated with these types.
    known_keys : sequence of str, optional
        The whole keys to suggest in place of an unknown one; by default those of this table.

    Returns
    -------
    dataclass
        With the values of the table; with its defaults where there was a problem.
    """
    where = prefix.rstrip(".")
    if not isinstance(table, dict):
        problems.append(f"{where or 'it'} must be a table, got {show(table)}")
        return kind()
    hints = get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [key for key in table if key not in names]:
        keys, inside = "key" if len(unknown) == 1 else "keys", f" in {where}" if where else ""
        named = [
            f"{prefix}{key}{suggest(_first_key(prefix + key, table[key]), known_keys or names)}" for key in unknown
        ]
        problems.append(f"unknown {keys} {', '.join(named)}; known{inside}: {', '.join(names)}")
    problems += [f"{prefix}{name} is missing" for name in getattr(kind, "_required", ()) if name not in table]
    values: Table = {}
    for name in names:
        if name not in table:
            continue
        hint, value = hints[name], table[name]
        if readers and hint in readers:
            values[name] = readers[hint](name, value, getattr(kind(), name), prefix, problems)
        elif nested := next(filter(dataclasses.is_dataclass, _alternatives(hint)), None):
            absent = value in (None, "none") and nested is not hint
            inner = f"{prefix}{name}."
            values[name] = None if absent else read_dataclass(nested, value, problems, inner, readers, known_keys)  # type: ignore[arg-type]
        elif isinstance(value, list) and get_args(hint) and dataclasses.is_dataclass(item := get_args(hint)[0]):
            entries = [(f"{prefix}{name}[{place}].", entry) for place, entry in enumerate(value)]
            values[name] = tuple(read_dataclass(item, entry, problems, inner, readers) for inner, entry in entries)  # type: ignore[arg-type]
        else:
            fits, values[name] = convert(value, hint)
            if not fits:
                problems.append(f"{prefix}{name} must be {describe_type(hint)}, got {show(value)}")
            elif bound := _broken_bound(kind, name, values[name]):
                problems.append(f"{prefix}{name} must be {bound}, got {show(value)}")
    return kind() if problems else kind(**values)


def _first_key(key: str, value: object) -> str:
    """Return a key that was set: of ``optimiser.lr=1`` the whole, not ``optimiser`` alone."""
    return f"{key}.{next(iter(value))}" if isinstance(value, dict) and value else key


def _broken_bound(kind: Any, name: str, value: Any) -> str:
    known = getattr(kind, "_known", {}).get(name)
    if known and value not in known:
        return f"one of {', '.join(known)}{suggest(value, known)}"
    least, above = getattr(kind, "_least", {}).get(name), getattr(kind, "_above", {}).get(name)
    if least is not None and value is not None and not least <= value < math.inf:
        return f"at least {least}"
    most = getattr(kind, "_most", {}).get(name)
    if most is not None and value is not None and value > most:
        return f"at most {most:,}"
    if above is not None and value is not None and not above < value < math.inf:
        return f"above {above}"
    return ""


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def convert(value: Any, hint: Any) -> tuple[bool, Any]:
    """Return whether a value fits an annotated type, and the value as that type; ``none`` is None.

    A number of NumPy is the same number of Python. Whole numbers fit into 64 bits.

    Examples
    --------
    >>> convert(1, float), convert("none", int | None), convert([1, 2], tuple[int, ...]), convert("a", int)
    ((True, 1.0), (True, None), (True, (1, 2)), (False, 'a'))
    """
    alternatives = _alternatives(hint)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if type(None) in alternatives and value in (None, "none"):
        return True, None
    for kind in alternatives:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return True, float(value)
            except OverflowError:
                return True, math.inf if value > 0 else -math.inf
        if kind in (bool, str) and isinstance(value, kind):
            return True, value
        if kind is int and isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
            return True, value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            parts = [convert(part, get_args(kind)[0]) for part in value]
            return all(fits for fits, _ in parts), tuple(part for _, part in parts)
    return False, value


def describe_type(hint: Any) -> str:
    """Return an annotated type in words.

    Examples
    --------
    >>> describe_type(int | None)
    'a whole number or none'
    """
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "none"}
    known = [names[kind] for kind in _alternatives(hint) if kind in names]
    if known:
        return " or ".join(known)
    item = next(iter(get_args(hint)), None)
    if dataclasses.is_dataclass(item):
        return "a list of tables"
    if item is str:
        return "a list of strings"
    return f"a list of {'numbers, such as [0.01, 0.1]' if item is float else 'whole numbers, such as [30, 60]'}"


# --- files ----------------------------------------------------------------------------------------------------------

# In a folder of inputs (videos, frames, .npy files), an existing file is replaced only where it ends like a result.
RESULT_ENDINGS = ("", ".json", ".csv", ".html", ".tex", ".parquet", ".h5", ".hdf5")


def output_problems(outputs: Sequence[tuple[str, Path]], inputs: Sequence[tuple[str, Path]] = ()) -> list[str]:
    """Return why outputs would destroy something: an input, another output, or the file that stdout goes to.

    Each path has a name for the problems, such as ``--json``. A file is recognised through links and other spellings.
    """
    problems = []
    for number, (name, path) in enumerate(outputs):
        found, through = find_stat(path), is_written_through(path)
        if through and found and not stat.S_ISREG(found.st_mode):
            continue
        if found and stat.S_ISDIR(found.st_mode):
            problems.append(f"{name} {path} is a folder; name a file")
        for other, source in inputs:
            if is_same_file(path, source):
                problems.append(f"{name} {path} is the same file as {other} {source}, which would be lost")
            elif found and not through and path.suffix.lower() not in RESULT_ENDINGS and _lies_in(path, source):
                problems.append(f"{name} {path} is a file in {other} {source} and would be lost")
        if through:  # a descriptor of a file, to which all outputs and texts are appended
            continue
        for other, earlier in outputs[:number]:
            if is_same_file(path, earlier):
                problems.append(f"{name} {path} is the same file as {other} {earlier}; each output needs its own file")
        for other, descriptor in (("stdout", 1), ("stderr", 2)):
            if found and (stream := find_stat(descriptor)) and os.path.samestat(found, stream):
                problems.append(f"{name} {path} is the file that {other} is written to")
    return problems


def refuse_lost_inputs(output: Path, inputs: Iterable[Path]) -> None:
    """Raise ``OutputError`` where writing ``output`` would destroy one of the inputs, which are files or folders."""
    if problems := output_problems([("the output", output)], [("the input", path) for path in inputs]):
        raise OutputError(f"{problems[0]}; choose another output")


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file, through any link or spelling.

    Two files that do not exist yet are the same also where only the case of their names differs.

    Examples
    --------
    >>> is_same_file(Path("a/../new.json"), Path("New.json")), is_same_file(Path("new.json"), Path("new.csv"))
    (True, False)
    """
    found, there = find_stat(one), find_stat(other)
    if found and there:
        return os.path.samestat(found, there)
    if found or there:
        return False
    first, second = (unicodedata.normalize("NFC", os.path.realpath(path)).casefold() for path in (one, other))
    return first == second


def describe_missing(what: str, path: Path) -> str:
    """Return the problem with a path that is not a regular file: it does not exist, or is something else."""
    if (found := find_stat(path)) is None:
        return f"there is no {what} {path}"
    return f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'}; expected a {what}"


def is_url(path: object) -> bool:
    """Return whether a path is an address, such as ``https://...`` or ``s3://...``; a ``Path`` is none.

    Examples
    --------
    >>> is_url("s3://bucket/run.parquet"), is_url("C:/run.parquet"), is_url(Path("run.parquet"))
    (True, False, False)
    """
    return isinstance(path, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents
