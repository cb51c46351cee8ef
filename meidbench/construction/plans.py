"""Plans: the videos and the targets of a new split, in a small TOML file."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from meidbench.annotations import FORMATS, Annotations, read_annotations
from meidbench.annotations.groups import read_groups
from meidbench.annotations.lists import ROW_FORMATS
from meidbench.annotations.tables import read_rows, read_table
from meidbench.checks import FieldReader, convert, describe_type, parse_toml, read_dataclass, read_toml
from meidbench.construction import Construction, construct, construct_exactly
from meidbench.construction.drawing import default_targets
from meidbench.construction.targets import EXACT_PRESETS, PRESETS, ExactTargets, Targets
from meidbench.errors import AnnotationError, SplitError, bullet_list
from meidbench.names import BENCHMARKS, DATASETS, DRAWN_VARIANTS, GROUP_KEYS
from meidbench.splits.manifests import Manifest, annotations_folder, load_manifest
from meidbench.splits.released import check_pool

PLAN_SUFFIX = ".plan.toml"
_ROWS = tuple(name for name, form in ROW_FORMATS.items() if form.open is not None and name != "table")
_NONE = "none"  # a target that is not set, because TOML has no word for it
_DERIVED = ("alpha", "head_above", "tail_up_to", "least_seconds", "group_by")  # parameters of default_targets
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of file names


@dataclass(frozen=True)
class SplitPlan:
    """The videos, the variant and the targets of a new split.

    ``name`` is that of the benchmark and, with variant and seed, of its files. The videos are those of a ``benchmark``
    (a name or a manifest's path), of a ``table`` as in ``meidbench.annotations.tables.read_table`` with its
    ``class_names`` (one per line), or of ``files`` in a ``format``: a key of ``meidbench.annotations.FORMATS``, or one
    of ``meidbench.annotations.lists.ROW_FORMATS``, which may have ``class_names``.
    ``groups`` is a file as for ``meidbench.annotations.groups.read_groups``; the groups of the classes are this list
    then, and not by thresholds.
    ``variant`` is ``pareto``, ``grouped`` or ``exact``. ``digest`` is the ``plan_digest`` that the split must have,
    empty where it is not known. ``targets`` are settings as in ``meidbench.construction.plans.resolve_targets``.
    """

    name: str = ""
    benchmark: str = ""
    table: Path | None = None
    format: str = ""
    files: tuple[Path, ...] = ()
    class_names: Path | None = None
    groups: Path | None = None
    variant: str = "pareto"
    seed: int = 0
    digest: str = ""
    targets: Mapping[str, Any] = field(default_factory=dict)

    _least: ClassVar = {"seed": 0}

    @property
    def stem(self) -> str:
        """The name of the split's files, without their endings."""
        return f"{self.name}-{self.variant}-{self.seed}"

    @property
    def manifest(self) -> Manifest | None:
        """The facts about the benchmark, where the videos are those of a benchmark."""
        return load_manifest(self.benchmark) if self.benchmark else None

    def changed(self, variant: str | None, seed: int | None, targets: Mapping[str, Any]) -> "SplitPlan":
        """Return the plan with another variant, seed or targets; None leaves the plan's own.

        The digest is dropped if anything changes, and ``group_by`` is dropped with the variant ``pareto``.
        """
        merged = {**self.targets, **targets}
        if variant == "pareto" and not targets.get("group_by"):
            merged.pop("group_by", None)
        new = replace(self, targets=merged, variant=variant or self.variant, seed=self.seed if seed is None else seed)
        return new if new == self else replace(new, digest="")


# --- targets ----------------------------------------------------------------------------------------------------


def check_settings(variant: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the problems in the names and the types of settings.

    >>> check_settings("pareto", {"alpha": "steep", "val_videos": 2.5})
    ["alpha must be a number, got 'steep'", 'val_videos must be a whole number or none, got 2.5']
    """
    hints = get_type_hints(_kind(variant))
    strange = [name for name in settings if name not in hints]
    problems = [f"{', '.join(strange)}: no target of {variant}; known: {', '.join(hints)}"] if strange else []
    for name, value in settings.items():
        if name == "group_by":
            if not isinstance(value, list | tuple) or not all(key in GROUP_KEYS for key in value):
                problems.append(f"group_by must be a list of {', '.join(GROUP_KEYS)}, got {value!r}")
        elif name in hints and (value is None or not convert(value, hints[name])[0]):
            problems.append(f"{name} must be {describe_type(hints[name])}, got {value!r}")
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
    """Return the complete targets: the settings, and the preset or ``default_targets`` for the rest.

    ``settings`` are fields of ``Targets``, or of ``ExactTargets`` for ``exact``; ``"none"`` for a field that is not to
    be set. ``grouped`` without ``group_by`` keeps pairs together. ``dataset`` is the name in messages, ``benchmark`` a
    key of ``PRESETS`` or empty. ``thresholds`` are ``head_above`` and ``tail_up_to`` where settings and preset lack
    them, unless they leave a group empty. ``SplitError`` if settings are unknown, of a wrong type or contradict one
    another, an exact split lacks a number, or the annotations do not name the groups that should be kept together.

    >>> resolve_targets(Annotations(()), "pareto", {"most_frequent": 300}, dataset="mine", benchmark="charadeslt").alpha
    10
    """
    if problems := check_settings(variant, settings):
        raise SplitError(f"these targets are wrong:\n{bullet_list(problems)}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    values = {name: None if value == _NONE else value for name, value in values.items()}
    if variant == "grouped" and not values.get("group_by"):
        values["group_by"] = ("pair",)
    _check_grouping(annotations, values.get("group_by", ()), dataset)
    preset = (EXACT_PRESETS if variant == "exact" else PRESETS).get(benchmark)
    if preset is not None:
        return replace(preset, **values)
    every = fields(_kind(variant))
    if variant == "exact":
        if annotations.groups:
            raise SplitError(f"an exact split groups classes by thresholds, and the groups of {dataset} are by list")
        if thresholds is not None:
            values = {"head_above": thresholds[0], "tail_up_to": thresholds[1], **values}
        missing = [entry.name for entry in every if entry.default is MISSING and entry.name not in values]
        if missing:
            remedy = "Set them in the plan's [targets], or by --set KEY=VALUE."
            raise SplitError(f"an exact split of {dataset} needs these numbers too: {', '.join(missing)}\n{remedy}")
        return ExactTargets(**values)
    if all(entry.name in values for entry in every):
        return Targets(**values)
    asked = {name: values[name] for name in _DERIVED if name in values}
    if thresholds is not None:
        asked["customary"] = thresholds
    return replace(default_targets(annotations, **asked), **values)


def _kind(variant: str) -> type[Targets] | type[ExactTargets]:
    return ExactTargets if variant == "exact" else Targets


def _check_grouping(annotations: Annotations, group_by: Sequence[str], dataset: str) -> None:
    """Refuse groups that the annotations do not name: the split would be the same as without groups."""
    named = {"pair": annotations.pair_ids, "subject": annotations.subjects}
    empty = [name for name in group_by if not any(named[name])]
    if not empty:
        return
    others = [name for name in GROUP_KEYS if name not in empty and any(named[name])]
    rest = f'\nThere are others to keep together: group_by="{others[0]}"' if others else ""
    raise SplitError(f"the videos of {dataset} have no {' and no '.join(empty)} that could be kept together{rest}")


# --- reading ----------------------------------------------------------------------------------------------------


def is_plan(path: Path) -> bool:
    """Tell a plan from a manifest by its keys; a damaged file is a manifest where an assignment lies beside it."""
    try:
        facts = set(parse_toml(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError):
        return not path.with_suffix(".assignment.json").exists()
    # Every manifest has the first two keys, and none has the others.
    return not {"reader", "licence"} & facts or bool({"table", "format", "benchmark", "targets"} & facts)


def plan_for_benchmark(dataset: str, variant: str) -> SplitPlan:
    """Return the plan of a new split of a benchmark, with targets from its preset or its videos."""
    return SplitPlan(load_manifest(dataset).name, benchmark=dataset, variant=variant)


def read_plan(path: Path) -> SplitPlan:
    r"""Read a plan; a ``SplitError`` names all wrong keys and values at once.

    It is a TOML file with ``name`` and ``table`` (and ``class_names``), or ``name``, ``format`` and ``files``, or
    ``benchmark``; and optionally ``groups``, ``variant`` (default ``grouped`` with ``group_by``, else ``pareto``),
    ``seed``, ``digest`` and a table ``targets``. Paths are relative to the plan.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "filmlt.toml")
    ...     _ = path.write_text('name = "filmlt"\ntable = "videos.csv"\n[targets]\nalpha = 6\n')
    ...     plan = read_plan(path)
    >>> plan.stem, plan.targets
    ('filmlt-pareto-0', {'alpha': 6})
    """
    path = Path(path)
    facts = read_toml(path, SplitError)
    problems: list[str] = []
    plan = read_dataclass(SplitPlan, facts, problems, readers=_field_readers(path.parent))
    if "variant" not in facts and plan.targets.get("group_by"):
        plan = replace(plan, variant="grouped")
    if problems := problems + _find_contradictions(facts):
        is_other = not {"benchmark", "table", "format"} & set(facts)
        manifest = "\nA manifest of a published split has reader and licence instead." if is_other else ""
        raise SplitError(f"{len(problems):,} problem(s) with the plan {path}:\n{bullet_list(problems)}{manifest}")
    if plan.benchmark:
        benchmark = plan.benchmark if plan.benchmark in DATASETS else str(path.parent / plan.benchmark)
        plan = replace(plan, benchmark=benchmark, name=load_manifest(benchmark).name)
    return plan


def _field_readers(folder: Path) -> dict[Any, FieldReader]:
    """Return the readers of texts, paths and tables of a plan in a folder, for ``read_dataclass``."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and bool(value)

    def is_list(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(is_text, value))

    def reader(fits: Callable[[Any], bool], what: str, make: Callable[[Any], Any]) -> FieldReader:
        def read(name: str, value: Any, default: Any, prefix: str, problems: list[str]) -> Any:
            if fits(value):
                return make(value)
            problems.append(f"{name} must be {what}, got {value!r}")
            return default

        return read

    return {
        str: reader(is_text, "text", str),
        Path | None: reader(is_text, "text", folder.joinpath),
        tuple[Path, ...]: reader(is_list, "a list of file names", lambda names: tuple(map(folder.joinpath, names))),
        Mapping[str, Any]: reader(lambda value: isinstance(value, dict), "a table", dict),
    }


def _find_contradictions(facts: Mapping[str, Any]) -> list[str]:
    """Return the problems between the keys of a plan, and with names that are not known."""
    problems = []
    needed = {"benchmark": (), "table": ("name",), "format": ("name", "files")}
    given = [name for name in needed if name in facts]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        problems.append(f"one of {', '.join(needed)} must give the videos, got {found}")
    needs = {name for source in given for name in needed[source]}
    problems += [f"{given[0]} needs {name}" for name in sorted(needs - set(facts))]
    if "files" in facts and "format" not in facts:
        problems.append("files goes with format")
    if "class_names" in facts and "table" not in facts and facts.get("format") not in _ROWS:
        problems.append(f"class_names goes with table, or with a format of rows: {', '.join(_ROWS)}")
    if "benchmark" in facts and "name" in facts:
        problems.append("a benchmark has its name: leave name out")
    name = facts.get("name") or "x"
    if isinstance(name, str) and (not _NAME.fullmatch(name) or name in BENCHMARKS):
        why = "that of a published benchmark" if name in BENCHMARKS else "not of letters, digits and . _ - alone"
        problems.append(f"name {name!r} is {why}")
    formats = [*(key for key, form in FORMATS.items() if not form.needs_manifest), *_ROWS]
    targets = facts.get("targets", {})
    has_groups = isinstance(targets, dict) and bool(targets.get("group_by"))
    variant = facts.get("variant", "grouped" if has_groups else "pareto")
    for key, value, known in (("format", facts.get("format"), formats), ("variant", variant, DRAWN_VARIANTS)):
        if isinstance(value, str) and value not in known:
            problems.append(f"unknown {key} {value!r}; known: {', '.join(known)}")
    if variant in DRAWN_VARIANTS and isinstance(targets, dict):
        problems += [f"targets: {problem}" for problem in check_settings(variant, targets)]
    return problems


@dataclass(frozen=True)
class PlanVideos:
    """The videos of a plan, and a note for a person on how they were read (may be empty)."""

    annotations: Annotations
    note: str = ""


def read_videos(plan: SplitPlan, folder: Path | None = None, *, accept_other: bool = False) -> PlanVideos:
    """Read the videos that a plan names; ``MeidbenchError`` if their files cannot be read.

    ``folder`` has a benchmark's official files; without it they are where ``download`` writes them. Files of which
    anything differs that a split depends on are refused unless ``accept_other``; the split then records it.
    """
    read = _read_videos(plan, folder, accept_other)
    if plan.groups is not None:
        read.annotations.groups = read_groups(plan.groups, read.annotations.class_names)
        read.annotations.group_names = {}
    return read


def _read_videos(plan: SplitPlan, folder: Path | None, accept_other: bool) -> PlanVideos:
    if plan.table is not None:
        content = read_table(plan.table, class_names=plan.class_names)
        return PlanVideos(content.annotations, content.note)
    if plan.format in _ROWS:
        content = read_rows(plan.files, plan.format, class_names=plan.class_names)
        return PlanVideos(content.annotations, content.note)
    if plan.format:
        return PlanVideos(FORMATS[plan.format].read(plan.files))
    manifest = load_manifest(plan.benchmark)
    folder = folder or annotations_folder(manifest.annotations)
    annotations = read_annotations(manifest, folder)
    note = ""
    try:
        if not check_pool(plan.benchmark, annotations, folder):
            made = "the assignment of the manifest was made before digests of all videos existed"
            note = f"{made}, so changes in the annotations may go unnoticed; make it again: meidbench.splits.make"
    except AnnotationError:
        if not accept_other:
            raise
        annotations.other_annotations = True
        note = f"the annotations in {folder} are not the official ones of {manifest.title}; the split records this"
    return PlanVideos(annotations, note)


# --- drawing and writing ----------------------------------------------------------------------------------------


def make_split(plan: SplitPlan, annotations: Annotations) -> Construction:
    """Draw the split of a plan; ``SplitError`` if targets are wrong or missed, or the digest is not the plan's."""
    known = plan.manifest.thresholds if plan.manifest else None
    targets = resolve_targets(
        annotations,
        plan.variant,
        plan.targets,
        dataset=plan.name,
        benchmark=plan.benchmark if plan.benchmark in DATASETS else "",
        thresholds=(known.head_above, known.tail_up_to) if known else None,
    )
    if isinstance(targets, ExactTargets):
        made = construct_exactly(annotations, targets, dataset=plan.name, seed=plan.seed)
    else:
        made = construct(annotations, targets, dataset=plan.name, seed=plan.seed, variant=plan.variant)
    if plan.digest and (now := made.split.plan_digest) != plan.digest:
        changed = f"the plan of {plan.stem} gave the split {plan.digest[:12]}..., now it gives {now[:12]}..."
        why = "its videos, labels, class names or targets are not the same any more"
        raise SplitError(f"{changed}: {why}\nTake the digest out of the plan if that is intended.")
    return made


def check_same_split(path: Path, made: Construction) -> None:
    """Raise a ``SplitError`` if the plan at a path is that of another split, drawn with other targets or videos."""
    if path.exists() and (there := read_plan(path).digest) != (now := made.split.plan_digest):
        digests = f"{there[:12] or 'without a digest'}..., this one is {now[:12]}..."
        what = f"{path} is of another split ({digests}): other targets or other videos"
        raise SplitError(f"{what}\nChoose another path (--out), or remove it first.")


def render_plan(plan: SplitPlan, made: Construction, folder: Path) -> str:
    """Return the TOML text of a plan that makes a split again: every target, and the digest of the split.

    ``folder`` is the folder of the text; paths in its parent folder, or below that, are relative to it.
    """
    facts: dict[str, Any] = {"name": plan.name}
    if plan.benchmark:
        named = plan.benchmark in DATASETS
        facts = {"benchmark": plan.benchmark if named else _relative(Path(plan.benchmark), folder)}
    facts["table"] = plan.table and _relative(plan.table, folder)
    facts |= {"format": plan.format, "files": [_relative(path, folder) for path in plan.files]}
    facts |= {key: _relative(path, folder) for key in ("class_names", "groups") if (path := getattr(plan, key))}
    given = {name: value for name, value in facts.items() if value}
    given |= {"variant": plan.variant, "seed": plan.seed, "digest": made.split.plan_digest}
    lines = [f"{name} = {_toml(value)}" for name, value in given.items()]
    targets = [f"{name} = {_toml(value)}" for name, value in asdict(made.targets).items()]
    comment = "# Makes this split again: meidbench build-splits with the path of this file."
    return "\n".join([comment, *lines, "", "[targets]", *targets, ""])


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    # A folder that is moved takes the plan's videos with it only where they lie beside it.
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else str(path)


def _toml(value: Any) -> str:
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # A JSON text is a TOML text, except for one character, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
