"""Plans: which videos a new split is made from, and how, in a small TOML file."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from meidbench.annotations import FORMATS, Annotations
from meidbench.annotations.official import read_annotations
from meidbench.annotations.tables import read_table
from meidbench.construction import Construction, construct, construct_exactly
from meidbench.construction.drawing import default_targets
from meidbench.construction.targets import EXACT_PRESETS, GROUPINGS, PRESETS, ExactTargets, Targets
from meidbench.errors import SplitError, bullet_list
from meidbench.names import DATASETS
from meidbench.splits.manifests import Manifest, annotations_folder, load_manifest
from meidbench.splits.split import Split

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


ENDING = ".plan.toml"
_KINDS: dict[str, tuple[type, str]] = {
    "name": (str, "text"), "benchmark": (str, "text"), "table": (str, "text"), "format": (str, "text"),
    "files": (list, "a list of file names"), "class_names": (str, "text"), "variant": (str, "text"),
    "seed": (int, "a whole number from 0 on"), "digest": (str, "text"), "targets": (dict, "a table"),
}  # fmt: skip
KEYS = tuple(_KINDS)
_SOURCES = ("benchmark", "table", "format")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of file names


@dataclass(frozen=True)
class Plan:
    """How a split is to be made.

    Attributes
    ----------
    name : str
        Of the benchmark; with variant and seed, of its files.
    benchmark : str
        A name or a manifest's path, where the videos are those of a benchmark; else one of the next two says it.
    table : Path or None
        A table as in ``meidbench.annotations.tables.read_table``.
    format, files : str and tuple of Path
        A key of ``meidbench.annotations.FORMATS``, and the files of that form.
    class_names : Path or None
        For a table: one name a line.
    variant : str
        ``pareto``, ``grouped`` or ``exact``.
    seed : int
    targets : mapping
        Settings as in ``meidbench.construction.plans.resolve_targets``.
    digest : str
        That the split must have; empty where it is not known.
    """

    name: str
    benchmark: str = ""
    table: Path | None = None
    format: str = ""
    files: tuple[Path, ...] = ()
    class_names: Path | None = None
    variant: str = "pareto"
    seed: int = 0
    targets: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def stem(self) -> str:
        """What the files of the split are called, without their endings."""
        return f"{self.name}-{self.variant}-{self.seed}"

    @property
    def manifest(self) -> Manifest | None:
        """The facts about the benchmark, where the videos are those of one."""
        return load_manifest(self.benchmark) if self.benchmark else None

    def changed(self, variant: str | None, seed: int | None, targets: Mapping[str, Any]) -> "Plan":
        """Return the plan with another variant, seed or targets; what is None stays.

        A digest stays only where nothing else came, and ``group_by`` goes with the variant ``pareto``.
        """
        merged = {**self.targets, **targets}
        if variant == "pareto" and not targets.get("group_by"):
            merged.pop("group_by", None)
        new = replace(self, targets=merged, variant=variant or self.variant, seed=self.seed if seed is None else seed)
        return new if new == self else replace(new, digest="")


def is_plan(path: Path) -> bool:
    """Tell a plan from a manifest by its keys; what is neither, or cannot be read, is no plan.

    Examples
    --------
    >>> is_plan(Path("nowhere.toml"))
    False
    """
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return path.name.endswith(ENDING)
    # A manifest has these two, and none of the others.
    return not {"reader", "licence"} & set(facts)


def plan_of_benchmark(dataset: str, variant: str) -> Plan:
    """Return the plan of a new split of a benchmark, which its presets or its videos give the targets of."""
    return Plan(load_manifest(dataset).name, benchmark=dataset, variant=variant)


def read_plan(path: Path) -> Plan:
    r"""Read a plan.

    Parameters
    ----------
    path : Path
        A TOML file with ``name`` and ``table`` (and ``class_names``), or ``name``, ``format`` and ``files``, or
        ``benchmark``; and, if they are there, ``variant`` (``grouped`` where groups are to be kept, else ``pareto``),
        ``seed``, ``digest`` and a table ``targets``. Paths are relative to the plan.

    Raises
    ------
    SplitError
        It cannot be read, or keys and values are wrong; all are named at once.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "filmlt.toml")
    ...     _ = path.write_text('name = "filmlt"\ntable = "videos.csv"\n[targets]\nalpha = 6\n')
    ...     plan = read_plan(path)
    >>> plan.stem, plan.targets
    ('filmlt-pareto-0', {'alpha': 6})
    """
    path = Path(path)
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SplitError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SplitError(f"{path} is not a readable TOML file: {error}") from None
    problems = _wrong_values(facts)
    if problems:
        raise SplitError(f"{len(problems):,} problem(s) with the plan {path}:\n{bullet_list(problems)}")
    folder = path.parent
    benchmark = facts.get("benchmark", "")
    if benchmark and benchmark not in DATASETS:
        benchmark = str(folder / benchmark)
    targets = facts.get("targets", {})
    return Plan(
        name=load_manifest(benchmark).name if benchmark else facts["name"],
        benchmark=benchmark,
        table=folder / facts["table"] if "table" in facts else None,
        format=facts.get("format", ""),
        files=tuple(folder / name for name in facts.get("files", ())),
        class_names=folder / facts["class_names"] if "class_names" in facts else None,
        variant=facts.get("variant", _implied_variant(targets)),
        seed=facts.get("seed", 0),
        targets=targets,
        digest=facts.get("digest", ""),
    )


def _implied_variant(targets: Mapping[str, Any]) -> str:
    return "grouped" if targets.get("group_by") else "pareto"


def _wrong_values(facts: dict[str, Any]) -> list[str]:
    """Return everything that is wrong with what a plan says."""
    problems = [f"unknown key {name}; known: {', '.join(KEYS)}" for name in facts if name not in KEYS]
    for name, (kind, wanted) in _KINDS.items():
        value = facts.get(name)
        is_negative = isinstance(value, int) and value < 0
        if name in facts and (type(value) is not kind or value == "" or is_negative):
            problems.append(f"{name} must be {wanted}, got {value!r}")
    files = facts.get("files", ["x"])
    if isinstance(files, list) and not (files and all(isinstance(name, str) and name for name in files)):
        problems.append(f"files must be a list of file names, got {files!r}")
    given = [name for name in _SOURCES if name in facts]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        problems.append(f"one of {', '.join(_SOURCES)} says where the videos are, got {found}")
    needed = {"benchmark": (), "table": ("name",), "format": ("name", "files")}
    needs = {name for source in given for name in needed[source]}
    problems += [f"{given[0]} needs {name}" for name in sorted(needs - set(facts))]
    takes = {"class_names": "table", "files": "format"}
    problems += [f"{name} goes with {with_}" for name, with_ in takes.items() if name in facts and with_ not in facts]
    if "benchmark" in facts and "name" in facts:
        problems.append("a benchmark has its name: leave name out")
    name = facts.get("name", "x")
    if isinstance(name, str) and name and (not _NAME.fullmatch(name) or name in DATASETS):
        why = "that of a published benchmark" if name in DATASETS else "not of letters, digits and . _ - alone"
        problems.append(f"name {name!r} is {why}")
    if isinstance(facts.get("format"), str) and facts["format"] not in FORMATS:
        problems.append(f"unknown format {facts['format']!r}; known: {', '.join(FORMATS)}")
    targets = facts.get("targets", {})
    variant = facts.get("variant", _implied_variant(targets) if isinstance(targets, dict) else "pareto")
    if variant not in VARIANTS:
        problems += [f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}"] if isinstance(variant, str) else []
    elif isinstance(targets, dict):
        problems += [f"targets: {problem}" for problem in check_settings(variant, targets)]
    return problems


@dataclass(frozen=True)
class Material:
    """The videos of a plan; ``note`` says what a person should know of how they were read, or is empty."""

    annotations: Annotations
    note: str = ""


def read_material(plan: Plan, folder: Path | None = None) -> Material:
    """Read the videos that a plan names.

    Parameters
    ----------
    plan : Plan
    folder : Path, optional
        Of a benchmark's official files; without it, where ``download`` puts them.

    Raises
    ------
    MeidbenchError
        As the reader of the benchmark, the table or the format says.
    """
    if plan.table is not None:
        content = read_table(plan.table, class_names=plan.class_names)
        return Material(content.annotations, content.note)
    if plan.format:
        return Material(FORMATS[plan.format].read(plan.files))
    manifest = load_manifest(plan.benchmark)
    return Material(read_annotations(manifest, folder or annotations_folder(manifest.annotations)))


def make_split(plan: Plan, annotations: Annotations) -> Construction:
    """Draw the split of a plan.

    Raises
    ------
    SplitError
        The targets cannot be meant or met, or the split is not the one that the plan has the digest of.
    """
    manifest = plan.manifest
    targets = resolve_targets(
        annotations,
        plan.variant,
        plan.targets,
        dataset=plan.name,
        benchmark=plan.benchmark if plan.benchmark in DATASETS else "",
        thresholds=(manifest.head_above, manifest.tail_up_to) if manifest else None,
    )
    if isinstance(targets, ExactTargets):
        made = construct_exactly(annotations, targets, dataset=plan.name, seed=plan.seed)
    else:
        made = construct(annotations, targets, dataset=plan.name, seed=plan.seed, variant=plan.variant)
    if plan.digest and (now := content_digest(made.split)) != plan.digest:
        raise SplitError(
            f"the plan of {plan.stem} gave the split {plan.digest[:12]}..., now it gives {now[:12]}...: "
            "its videos, labels, class names or targets are not the same any more\n"
            "Take the digest out of the plan if that is meant."
        )
    return made


def refuse_other(path: Path, made: Construction) -> None:
    """Refuse to put a split where another one of the same name, variant and seed lies, drawn with other targets.

    Parameters
    ----------
    path : Path
        Of the plan that is to be written; none need be there.
    made : Construction

    Raises
    ------
    SplitError
        There is another split's, or a file that is no plan.
    """
    if path.exists() and (there := read_plan(path).digest) != (now := content_digest(made.split)):
        raise SplitError(
            f"{path} is of another split ({there[:12] or 'without a digest'}..., this one is "
            f"{now[:12]}...): other targets or other videos\nChoose another --out, or remove it first."
        )


def content_digest(split: Split) -> str:
    """Return a sha256 over all that a split file holds but its sources and the order of its rows.

    ``Split.digest`` is over ids, subsets and labels alone: what scores depend on. This one is also over class names,
    thresholds, lengths, groups and segments.

    Examples
    --------
    >>> from meidbench.features.simulation import simulate_split
    >>> content_digest(simulate_split(seed=1)) == content_digest(simulate_split(seed=1))
    True
    """
    facts = asdict(split.metadata)
    del facts["sources"]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for row in sorted(split.table.to_pylist(), key=lambda row: str(row["video_id"])):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def plan_text(plan: Plan, made: Construction, folder: Path) -> str:
    """Return the plan that makes a split again: every target, and the digest that it must have.

    Parameters
    ----------
    plan : Plan
    made : Construction
        What came of it.
    folder : Path
        Where the text is to lie. Paths in or below the folder that this one is in are relative to it.

    Returns
    -------
    str
        TOML.
    """
    facts: dict[str, Any] = {}
    if plan.benchmark:
        named = plan.benchmark in DATASETS
        facts["benchmark"] = plan.benchmark if named else _placed(Path(plan.benchmark), folder)
    else:
        facts["name"] = plan.name
    if plan.table is not None:
        facts["table"] = _placed(plan.table, folder)
    if plan.format:
        facts |= {"format": plan.format, "files": [_placed(path, folder) for path in plan.files]}
    if plan.class_names is not None:
        facts["class_names"] = _placed(plan.class_names, folder)
    facts |= {"variant": plan.variant, "seed": plan.seed, "digest": content_digest(made.split)}
    lines = [f"{name} = {_toml(value)}" for name, value in facts.items()]
    targets = [f"{name} = {_toml(value)}" for name, value in asdict(made.targets).items()]
    return "\n".join(["# Makes this split again: meidbench build-splits with the path of this file.", *lines, "",
                      "[targets]", *targets, ""])  # fmt: skip


def _placed(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    # A folder of results that is moved takes the plan's videos with it only where they lie beside it.
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else str(path)


def _toml(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's text is TOML's, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
