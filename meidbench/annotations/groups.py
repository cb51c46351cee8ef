"""The user's list of groups: ``head``, ``medium`` or ``tail`` for each class, in a file or as Python values."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meidbench.annotations.base import quote
from meidbench.checks import suggest, whole_number
from meidbench.errors import RequestError, SplitError, bullet_list, first_few
from meidbench.splits.groups import GROUP_NAMES, find_group_problems

_COLUMNS = ("class", "group")
_Entry = tuple[str, object, object]  # place for a message, class, group


def read_groups(path: Path, class_names: Sequence[str]) -> tuple[str, ...]:
    r"""Read the group of each class from a file.

    Parameters
    ----------
    path : Path
        CSV (also with tabs or semicolons) with the columns ``class`` and ``group``, a JSON object of class -> group, or
        a JSON list of objects with these two keys. A class is a name or an index, a group is ``head``, ``medium`` or
        ``tail``. Other columns and keys are ignored. The order has no influence.
    class_names : sequence of str, (C,)
        By class index.

    Returns
    -------
    tuple of str, (C,)
        The group of each class, for ``Annotations.groups``.

    Raises
    ------
    SplitError
        The file cannot be read, a class is unknown, has no group or has two, or a group is unknown. All are named.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "groups.csv")
    ...     _ = path.write_text("class,group\nswim,tail\n0,head\n")
    ...     read_groups(path, ["run", "swim"])
    ('head', 'tail')
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SplitError(f"cannot read the groups in {path}: {error.strerror}") from None
    except ValueError:
        raise SplitError(f"cannot read the groups in {path}: it is not UTF-8 text") from None
    is_json = text.lstrip()[:1] in ("{", "[")
    groups, problems = _resolve(_read_json(text, path) if is_json else _read_csv(text, path), class_names)
    if problems:
        raise SplitError(f"{len(problems):,} problem(s) with the groups in {path}:\n{bullet_list(problems)}")
    return groups


def resolve_groups(
    groups: Mapping[Any, str] | Sequence[str], class_names: Sequence[str], name: str = "groups"
) -> tuple[str, ...]:
    """Return the group of each class from a Python caller's mapping of class -> group, or one group per class.

    A class is a name or an index. ``RequestError`` names all problems at once.

    >>> resolve_groups({"swim": "tail", 0: "head"}, ["run", "swim"])
    ('head', 'tail')
    """
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise RequestError(f"{name} must be a dict of class -> group, or a list of C groups; got {quote(groups)}")
    if isinstance(groups, Mapping):
        entries = [(f"{name}[{quote(key)}]", key, group) for key, group in groups.items()]
        found, problems = _resolve(entries, class_names)
    else:
        found = tuple(map(str, groups))
        problems = find_group_problems(found, class_names)
    if problems:
        raise RequestError(f"{len(problems):,} problem(s) with {name}:\n{bullet_list(problems)}")
    return found


def check_grouping(head_above: int | None, tail_up_to: int | None, groups: object) -> None:
    """Refuse thresholds that are wrong, and a split that has not exactly one of thresholds and groups.

    Raises
    ------
    RequestError
    """
    given = [name for name, value in (("head_above", head_above), ("tail_up_to", tail_up_to)) if value is not None]
    if len(given) != (0 if groups is not None else 2):
        given += ["groups"] if groups is not None else []
        found = " and ".join(f"{name}=..." for name in given) or "none of them"
        raise RequestError(f"the groups of classes need head_above=... and tail_up_to=..., or groups=...; got {found}")
    if head_above is None or tail_up_to is None:
        return
    for name, value in (("head_above", head_above), ("tail_up_to", tail_up_to)):
        whole_number(name, value, 0, RequestError)
    if tail_up_to > head_above:
        raise RequestError(f"tail_up_to {tail_up_to} lies above head_above {head_above}")


def _read_csv(text: str, path: Path) -> list[_Entry]:
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        names = {name.strip().casefold(): name for name in reader.fieldnames or ()}
        if missing := [column for column in _COLUMNS if column not in names]:
            found = first_few(names) or "none"
            raise SplitError(f"{path} has no column {' and no column '.join(missing)}; its columns are {found}")
        return [
            (f"line {reader.line_num:,}", *((row[names[column]] or "").strip() for column in _COLUMNS))  # type: ignore[misc]
            for row in reader
            if any(row.values())
        ]
    except csv.Error as error:
        raise SplitError(f"{path}, line {reader.line_num:,}: {error}") from None


def _read_json(text: str, path: Path) -> list[_Entry]:
    # As pairs, because an object may have a class twice, of which a dict keeps one.
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise SplitError(f"{path} is damaged: {error}") from None
    if isinstance(content, _Pairs):
        return [(f"class {quote(key)}", key, group) for key, group in content]
    if not all(isinstance(entry, _Pairs) for entry in content):
        raise SplitError(f"{path} holds neither an object of class and group, nor a list of objects with both")
    entries = [(f"entry {place:,}", dict(entry)) for place, entry in enumerate(content, start=1)]
    return [(where, *(entry.get(column) for column in _COLUMNS)) for where, entry in entries]  # type: ignore[misc]


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object."""


def _resolve(entries: Sequence[_Entry], class_names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the group of each class by index, and all problems."""
    index_of = {str(index): index for index in range(len(class_names))}
    index_of |= {name: index for index, name in enumerate(class_names)}
    groups: dict[int, str] = {}
    problems = []
    for place, name, group in entries:
        text = str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""
        index = index_of.get(text)
        if index is None:
            problems.append(f"{place}: no class {quote(name)}{suggest(text, class_names) if text else ''}")
        elif index in groups:
            problems.append(f"{place}: class {index} {class_names[index]!r} has a group already")
        else:
            groups[index] = str(group)
            if group not in GROUP_NAMES:
                problems.append(f"{place}: unknown group {quote(group)}; known: {', '.join(GROUP_NAMES)}")
    if missing := [f"{index} {name!r}" for index, name in enumerate(class_names) if index not in groups]:
        problems.append(f"{len(missing):,} class(es) without a group: {first_few(missing, len(missing))}")
    return tuple(groups.get(index, "") for index in range(len(class_names))), problems
