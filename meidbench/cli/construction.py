"""The command ``build-splits``: a benchmark's split as published, or a new one."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meidbench.cli.parameters import (
    DATASET_OR_MANIFEST,
    FOLDER,
    INPUT_FOLDER,
    SEED,
    as_json,
    command,
    echo,
    echo_json,
    group_option,
    hold_out_option,
    report,
)
from meidbench.errors import MeidbenchError, SplitError, bullet_list, write_count
from meidbench.names import BENCHMARKS, EPIC_DATASETS, RELEASED, SPLIT_FORMATS, SUBSETS, VARIANTS

if TYPE_CHECKING:
    from meidbench.construction.plans import SplitPlan
    from meidbench.splits.manifests import Manifest
    from meidbench.splits.split import Split

_MANY = 50_000  # videos from which on a line tells the user what takes the time


@command(
    "build-splits",
    short_help="Build a benchmark's split, exactly as published, or draw a new one.",
    epilog="\b\nExamples:\n"
    "  meidbench build-splits charadeslt --annotations Charades/ \\\n"
    "      --format parquet --format lst\n"
    "  meidbench build-splits charadesegolt --annotations CharadesEgo/ \\\n"
    "      --variant grouped --seed 1\n"
    "  meidbench build-splits animalkingdom --annotations AR/ \\\n"
    "      --hold-out-val 0.1 --seed 0\n"
    "  meidbench build-splits filmlt.toml --set alpha=6",
)
@click.argument("dataset", type=DATASET_OR_MANIFEST)
@click.option(
    "--annotations", type=INPUT_FOLDER, help="Folder of the official files [default: where 'download' puts them]."
)
@click.option(
    "--out", type=FOLDER, help="Folder to write to [default: where other commands look by name; a plan's own folder]."
)
@click.option(
    "--variant",
    type=click.Choice(VARIANTS),
    help="pareto: by the paper's procedure. grouped: without leaks. exact: with prescribed numbers. "
    "[default: released, or the plan's own]",
)
@click.option("--seed", type=SEED, help="Of a split or a val subset that is drawn [default: 0, or the plan's own].")
@group_option("What grouped, exact and --hold-out-val keep in one subset; may be given twice [default: pair].")
@hold_out_option
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Another target, such as alpha=6.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(SPLIT_FORMATS),
    multiple=True,
    default=("parquet",),
    show_default=True,
    help="May be given several times. lst is the form that the VideoLT and MEID code reads, one list per subset.",
)
@click.option(
    "--accept-other-annotations",
    "accept_other",
    is_flag=True,
    help="Draw also from files of a benchmark that are not the official ones; the split records it.",
)
@as_json
def build_splits(
    dataset: str,
    annotations: Path | None,
    out: Path | None,
    variant: str | None,
    seed: int | None,
    group_by: tuple[str, ...],
    share: float | None,
    settings: tuple[str, ...],
    formats: tuple[str, ...],
    accept_other: bool,
    as_json: bool,
) -> None:
    """Build the split of DATASET and write it.

    DATASET is videolt, charadeslt, charadesegolt, animalkingdom, epic100-verbs, epic100-nouns or epic100-all-nouns, or
    a file of your own (NAME.toml): a manifest, or a plan, which names your videos and describes the split. The split of
    a benchmark must be the published one; where it is not, the videos and classes that differ are named.

    With --variant or a plan a new split is drawn from the annotated videos, the same for the same seed. It is written
    as NAME-VARIANT-SEED, and beside it NAME-VARIANT-SEED.plan.toml, which makes it again.

    With --hold-out-val, a published split without val gets one out of its training videos, in the file
    NAME-heldout-SHARE-SEED. Test, and the groups of the classes, stay as published.
    """
    from meidbench.construction.plans import is_plan, plan_for_benchmark, read_plan

    if dataset in EPIC_DATASETS and variant is not None:
        raise click.UsageError(f"{dataset} has its official split only: --variant has no meaning for it")
    given_plan = dataset not in BENCHMARKS and is_plan(Path(dataset))
    if variant in (None, RELEASED) and not given_plan:
        drawn = () if share is not None else (("--seed", seed), ("--group-by", group_by))
        for what, value in (*drawn, ("--set", settings), ("--accept-other-annotations", accept_other or None)):
            if value not in (None, ()):
                raise click.UsageError(f"the released split is not drawn: {what} has no meaning for it")
        held_out = None if share is None else (share, seed or 0, group_by)
        _build_released(dataset, annotations, out, formats, held_out, as_json)
        return
    if share is not None:
        raise click.UsageError("a new split draws its val itself: --hold-out-val is for a released split without val")
    if variant == RELEASED:
        raise click.UsageError("a plan is of a new split, not of a released one")
    plan = read_plan(Path(dataset)) if given_plan else plan_for_benchmark(dataset, str(variant))
    for what, given in (("--annotations", annotations is not None), ("--accept-other-annotations", accept_other)):
        if given and not plan.benchmark:
            raise click.UsageError(f"the plan names its files: {what} has no meaning for it")
    plan = _changed_plan(plan, variant, seed, group_by, settings)
    if out is None and given_plan:
        out = Path(dataset).parent
    _draw(plan, annotations, out, formats, accept_other, as_json)


def _changed_plan(
    plan: "SplitPlan", variant: str | None, seed: int | None, group_by: tuple[str, ...], settings: tuple[str, ...]
) -> "SplitPlan":
    """Return the plan as the options change it."""
    from meidbench.checks import parse_settings
    from meidbench.construction.plans import check_settings

    try:
        targets = parse_settings(settings, "alpha=6", dotted=False)
    except MeidbenchError as error:
        raise click.UsageError(f"--set: {error}") from None
    if group_by and "group_by" in targets:
        raise click.UsageError("group_by is set twice, by --group-by and by --set")
    if group_by:
        targets["group_by"] = list(group_by)
    new = plan.changed(variant, seed, targets)
    if problems := check_settings(new.variant, targets):
        raise click.UsageError(f"these targets are wrong:\n{bullet_list(problems)}")
    return new


def _build_released(
    dataset: str,
    annotations: Path | None,
    out: Path | None,
    formats: tuple[str, ...],
    held_out: tuple[float, int, tuple[str, ...]] | None,
    as_json: bool,
) -> None:
    """Build the published split; ``held_out`` are the share, the seed and the grouping of a val subset from train."""
    from meidbench.construction.held_out import hold_out_val, measure_shares
    from meidbench.files import file_sha256
    from meidbench.report.text import held_out_report, table_1_comparison
    from meidbench.splits.epic import build_epic
    from meidbench.splits.manifests import annotations_folder, load_manifest, split_path
    from meidbench.splits.released import build_released
    from meidbench.splits.statistics import split_statistics

    manifest = load_manifest(dataset)
    folder = annotations or annotations_folder(manifest.annotations)
    split = build_epic(dataset, folder, report) if dataset in EPIC_DATASETS else build_released(dataset, folder)
    stem = split_path(manifest.name, split.variant).stem
    authors_lists = {subset: entry.file for subset, entry in manifest.released.items()}
    if held_out is not None:
        share, seed, group_by = held_out
        split = hold_out_val(split, share, seed=seed, group_by=group_by)
        stem, authors_lists = f"{manifest.name}-{split.variant}", {}
    lists = authors_lists or _list_names(manifest.name, stem)
    places = _places(out or split_path(manifest.name).parent, stem, lists, formats)
    _refuse_lost_sources(places.values(), _annotation_files(manifest, annotations))
    written = _write(split, places)
    digests = {released.file: released.sha256 for released in manifest.released.values()}
    for path in written:
        if path.name in digests and file_sha256(path) != digests[path.name]:
            order = "the videos and classes of the released list in another order, that of the annotation files"
            echo(f"warning: {path.name} has {order}; the split is the same", err=True)
    statistics = split_statistics(split)
    if as_json:
        content = {"digest": split.digest, "files": [str(path) for path in written], "statistics": asdict(statistics)}
        content |= {} if held_out is None else {"held_out": measure_shares(split, share).as_dict()}
        echo_json(json.dumps(content, indent=2))
        return
    text = table_1_comparison(statistics, manifest)
    if held_out is not None:
        text += f"\n\n{held_out_report(split, measure_shares(split, share))}"
    _print_result(text, written)
    for defect in manifest.defects:
        echo(f"known defect: {defect}", err=True)


def _annotation_files(manifest: "Manifest | None", annotations: Path | None) -> list[Path]:
    from meidbench.annotations import annotation_paths
    from meidbench.splits.manifests import annotations_folder

    if manifest is None:
        return []
    places = annotation_paths(manifest, annotations or annotations_folder(manifest.annotations))
    return [path for paths in places.values() for path in paths]


def _print_result(text: str, written: list[Path]) -> None:
    echo(f"{text}\n")
    for path in written:
        echo(f"wrote {path}")


def _list_names(name: str, stem: str) -> dict[str, str]:
    """Return the name of the list of every subset of a benchmark's split."""
    return {subset: f"{stem}_{subset}.{'lst' if name == 'videolt' else 'txt'}" for subset in SUBSETS}


def _places(folder: Path, stem: str, lists: Mapping[str, str], formats: tuple[str, ...]) -> dict[str, Path]:
    """Return the path of every file to write, by format or by the subset of a list."""
    places = {form: folder / f"{stem}.{form}" for form in ("parquet", "csv") if form in formats}
    return places | {subset: folder / lists[subset] for subset in SUBSETS if "lst" in formats}


def _refuse_lost_sources(places: Iterable[Path], sources: Iterable[Path | None]) -> None:
    """Refuse to replace a source of the split or a folder."""
    from meidbench.checks import output_problems

    inputs = [("the source", path) for path in sources if path is not None]
    if problems := output_problems([("the output", path) for path in places], inputs):
        raise SplitError(f"{bullet_list(problems)}\nChoose another --out.")


def _write(split: "Split", places: dict[str, Path]) -> list[Path]:
    """Write the split to the places, and return them."""
    from meidbench.splits.released import write_csv, write_lists
    from meidbench.splits.split import write_split

    if "parquet" in places:
        write_split(split, places["parquet"])
    if "csv" in places:
        write_csv(split, places["csv"])
    if "train" in places:
        write_lists(split, places["train"].parent, {subset: places[subset].name for subset in SUBSETS})
    return list(places.values())


def _refuse_loss(sources: Iterable[Path | None], places: list[Path], plan_path: Path) -> None:
    """Refuse to replace a source of the split, a folder, or a split without a plan."""
    _refuse_lost_sources((*places, plan_path), sources)
    for path in places:
        if path.exists() and not plan_path.exists():
            raise SplitError(f"{path} is there, without the plan that describes it; choose another --out, or remove it")


def _draw(
    plan: "SplitPlan",
    annotations: Path | None,
    out: Path | None,
    formats: tuple[str, ...],
    accept_other: bool,
    as_json: bool,
) -> None:
    from meidbench.construction import distance_to
    from meidbench.construction.plans import PLAN_SUFFIX, check_same_split, make_split, read_videos, render_plan
    from meidbench.files import render_json, written_whole
    from meidbench.report.text import construction_report, construction_warnings
    from meidbench.splits.manifests import split_path
    from meidbench.splits.statistics import split_statistics

    read = read_videos(plan, annotations, accept_other=accept_other)
    if read.note:
        echo(f"note: {read.note}", err=True)
    videos = len(read.annotations.video_ids)
    if plan.variant == "exact" or videos >= _MANY:
        most = ", at most a minute or two" if plan.variant == "exact" else ""
        echo(f"drawing {plan.stem} from {write_count(videos, 'video')}{most}", err=True)
    made = make_split(plan, read.annotations)
    folder = out or split_path(plan.name).parent
    plan_path = folder / f"{plan.stem}{PLAN_SUFFIX}"
    check_same_split(plan_path, made)
    released = _released(plan, annotations)
    distance = distance_to(made.split, released) if released is not None else None
    places = _places(folder, plan.stem, _list_names(plan.name, plan.stem), formats)
    sources = [plan.table, plan.class_names, plan.groups, *plan.files, *_annotation_files(plan.manifest, annotations)]
    _refuse_loss(sources, list(places.values()), plan_path)
    # The plan comes first, so that the files beside it are known even if writing fails.
    with written_whole(plan_path) as temporary:
        temporary.write_text(render_plan(plan, made, folder), encoding="utf-8", newline="\n")
    written = [*_write(made.split, places), plan_path]
    for warning in construction_warnings(made):
        echo(f"warning: {warning}", err=True)
    if as_json:
        content = {
            **made.as_dict(),
            "dataset": plan.name,
            "variant": plan.variant,
            "other_annotations": read.annotations.other_annotations,
            "files": [str(path) for path in written],
            "released": None if released is None else asdict(split_statistics(released)),
            "distance_to_released": None if distance is None else asdict(distance),
            "paper": dict(plan.manifest.paper) if plan.manifest and plan.manifest.paper else None,
        }
        echo_json(render_json(content))
        return
    width = shutil.get_terminal_size((100, 24)).columns
    text = construction_report(made, manifest=plan.manifest, released=released, distance=distance, width=width)
    _print_result(text, written)


def _released(plan: "SplitPlan", annotations: Path | None) -> "Split | None":
    """Build the released split of a benchmark in memory, to compare; None where the annotations are not its own."""
    from meidbench.splits.manifests import annotations_folder
    from meidbench.splits.released import build_released

    if (manifest := plan.manifest) is None:
        return None
    try:
        return build_released(plan.benchmark, annotations or annotations_folder(manifest.annotations))
    except MeidbenchError:
        what = f"the released split of {manifest.title} cannot be built from these annotations"
        rest = "so the new split is not compared with it; build-splits without --variant says why"
        echo(f"warning: {what}, {rest}", err=True)
        return None
