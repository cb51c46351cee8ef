"""The commands about splits: ``build-splits``, ``import-split``, ``stats`` and ``audit``."""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meidbench.cli.parameters import (
    DATASET_OR_MANIFEST,
    FOLDER,
    INPUT_FILE,
    INPUT_FOLDER,
    SEED,
    SPLIT,
    SPLIT_SOURCE,
    InputName,
    OutputFile,
    as_json,
    command,
    echo,
    echo_json,
    report,
)
from meidbench.errors import MeidbenchError, SplitError, bullet_list, first_few, write_count
from meidbench.names import (
    BENCHMARKS,
    EPIC_DATASETS,
    GROUP_KEYS,
    IMPORT_FORMATS,
    PLOT_FORMATS,
    RELEASED,
    SPLIT_FORMATS,
    SUBSETS,
    VARIANTS,
)

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
@click.option("--seed", type=SEED, help="Of a split that is drawn [default: 0, or the plan's own].")
@click.option(
    "--group-by",
    type=click.Choice(GROUP_KEYS),
    multiple=True,
    help="What grouped and exact keep in one subset; may be given twice [default for grouped: pair].",
)
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
    """
    from meidbench.construction.plans import is_plan, plan_for_benchmark, read_plan

    if dataset in EPIC_DATASETS and variant is not None:
        raise click.UsageError(f"{dataset} has its official split only: --variant has no meaning for it")
    given_plan = dataset not in BENCHMARKS and is_plan(Path(dataset))
    if variant in (None, RELEASED) and not given_plan:
        drawn = (("--seed", seed), ("--group-by", group_by), ("--set", settings))
        for what, value in (*drawn, ("--accept-other-annotations", accept_other or None)):
            if value not in (None, ()):
                raise click.UsageError(f"the released split is not drawn: {what} has no meaning for it")
        _build_released(dataset, annotations, out, formats, as_json)
        return
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
    dataset: str, annotations: Path | None, out: Path | None, formats: tuple[str, ...], as_json: bool
) -> None:
    from meidbench.files import file_sha256
    from meidbench.report.text import table_1_comparison
    from meidbench.splits.epic import build_epic
    from meidbench.splits.manifests import annotations_folder, load_manifest, split_path
    from meidbench.splits.released import build_released
    from meidbench.splits.statistics import split_statistics

    manifest = load_manifest(dataset)
    folder = annotations or annotations_folder(manifest.annotations)
    split = build_epic(dataset, folder, report) if dataset in EPIC_DATASETS else build_released(dataset, folder)
    target = split_path(manifest.name, split.variant)
    places = _places(out or target.parent, target.stem, manifest.list_names, formats)
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
        echo_json(json.dumps(content, indent=2))
        return
    _print_result(table_1_comparison(statistics, manifest), written)
    for defect in manifest.defects:
        echo(f"known defect: {defect}", err=True)


def _annotation_files(manifest: "Manifest | None", annotations: Path | None) -> list[Path]:
    from meidbench.annotations import annotation_paths
    from meidbench.splits.manifests import annotations_folder

    folder = annotations or annotations_folder(manifest.annotations if manifest else "")
    return [path for paths in annotation_paths(manifest, folder).values() for path in paths] if manifest else []


def _print_result(text: str, written: list[Path]) -> None:
    echo(f"{text}\n")
    for path in written:
        echo(f"wrote {path}")


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
    ending = "lst" if plan.name == "videolt" else "txt"
    lists = {subset: f"{plan.stem}_{subset}.{ending}" for subset in SUBSETS}
    places = _places(folder, plan.stem, lists, formats)
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


def _read_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value.strip() or not value.isprintable() or set("/\\") & set(value)):
        raise click.BadParameter(f"{value!r} is no name: files are named after it, so it has no separator", ctx, param)
    return value


@command(
    "import-split",
    short_help="Make a split file from your own table or lists.",
    epilog="\b\nExamples:\n"
    "  meidbench import-split videos.csv --out mine.parquet \\\n"
    "      --head-above 100 --tail-up-to 20\n"
    "  meidbench import-split train.lst validate.lst test.lst \\\n"
    "      --class-names count-labels-train.lst --out videolt.parquet \\\n"
    "      --head-above 500 --tail-up-to 100\n"
    "  meidbench import-split train=kinetics_a.txt val=kinetics_b.txt \\\n"
    "      --format mmaction2 --out mine.parquet \\\n"
    "      --head-above 100 --tail-up-to 20",
)
@click.argument("files", type=SPLIT_SOURCE, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=OutputFile(".parquet"), required=True, help="The split file to write (Parquet).")
@click.option(
    "--format", "form", type=click.Choice(IMPORT_FORMATS), help="Of the files [default: the one that they show]."
)
@click.option("--head-above", type=click.IntRange(min=0), help="Head: more training videos than this.")
@click.option("--tail-up-to", type=click.IntRange(min=0), help="Tail: at most this many.")
@click.option(
    "--groups",
    type=INPUT_FILE,
    help="Instead: head, medium or tail for each class; CSV or JSON with class (name or index) and group.",
)
@click.option("--name", callback=_read_name, help="The benchmark's name [default: that of FILE; of --out, if several].")
@click.option(
    "--class-names",
    type=INPUT_FILE,
    help="One name per line, by class index, or VideoLT's or Charades' list of classes "
    "[default: the names in the labels, sorted, or c000 and so on for indices].",
)
def import_split(
    files: tuple[tuple[str, Path], ...],
    out: Path,
    form: str | None,
    head_above: int | None,
    tail_up_to: int | None,
    groups: Path | None,
    name: str | None,
    class_names: Path | None,
) -> None:
    """Make a split file from FILES, which give the subset of each video; build-splits draws new ones.

    The subset is in a column (table), in the name of each file (train, val, validate, validation or test), or before
    it, as in train=FILE. The result is checked, and every other command takes it.

    \b
    table      CSV, TSV, Parquet, a JSON list or JSON lines with the columns
               video_id and labels: names or indices of classes, joined by
               semicolons, or a list; or a column of 0 and 1 per class.
               Optional: subset; group (videos that belong together, which the
               audit checks), length_s, subject. Where a sample is a part of a
               longer video: video (its id), start_s, end_s, in seconds.
    lists      A line per video: VIDEO_ID and labels, joined by commas or
               blanks, such as the lists of VideoLT, MEID and build-splits.
    mmaction2  A line per video: PATH/ID.mp4 and class indices, or a folder of
               frames, the number of frames and class indices.
    slowfast   A line per frame under a header, as SlowFast has them for
               Charades: VIDEO_ID, its number, the frame's number and path,
               and "class indices"; a video has the labels of all its frames.
    """  # noqa: D301
    from meidbench.annotations.tables import split_from_files
    from meidbench.report.text import statistics_table
    from meidbench.splits.split import write_split
    from meidbench.splits.statistics import split_statistics

    dataset = name or (files[0][1] if len(files) == 1 else out).stem
    split, notes = split_from_files(
        files, form or "", dataset=dataset, head_above=head_above, tail_up_to=tail_up_to, class_names=class_names,
        groups=groups,
    )  # fmt: skip
    for note in notes:
        echo(f"note: {note}", err=True)
    write_split(split, out)
    echo(statistics_table([split_statistics(split)]))
    echo(f"\nwrote {out}")


def _convert_splits(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Read several splits as ``SPLIT`` does one, and name all that do not exist."""
    found, problems = [], []
    for value in values:
        try:
            found.append(SPLIT.convert(value, param, ctx))
        except click.BadParameter as error:
            problems.append(error.message)
    if problems:
        raise click.BadParameter("\n".join(problems), ctx, param)
    return tuple(found)


@command(
    short_help="Print Table 1 for split files.",
    epilog="\b\nExample:\n  meidbench stats charadeslt charadesegolt --plot frequencies.svg",
)
@click.argument(
    "splits", nargs=-1, required=True, metavar="SPLIT...", type=InputName(SPLIT.files), callback=_convert_splits
)
@click.option(
    "--plot", type=OutputFile(*PLOT_FORMATS), help="Draw the class frequency curves to FILE (.png, .svg or .pdf)."
)
@as_json
def stats(splits: tuple[str, ...], plot: Path | None, as_json: bool) -> None:
    """Print the statistics of Table 1 for each SPLIT: a split file, or a built benchmark's name."""
    if plot is not None and plot.suffix.lower() not in PLOT_FORMATS:
        raise click.BadParameter(f"{plot.name!r} ends in none of {', '.join(PLOT_FORMATS)}", param_hint="--plot")

    from meidbench.report.text import statistics_table
    from meidbench.splits.split import load_split
    from meidbench.splits.statistics import split_statistics

    loaded, problems = [], []
    for split in splits:
        try:
            loaded.append(load_split(split))
        except SplitError as error:
            problems.append(str(error))
    if problems:
        raise SplitError("\n".join(problems))
    statistics = [split_statistics(split) for split in loaded]
    if as_json:
        # JSON has no NaN: a value that is not defined is null.
        rows = [{k: None if v != v else v for k, v in asdict(entry).items()} for entry in statistics]
        echo_json(json.dumps(rows, indent=2))
    else:
        echo(statistics_table(statistics))
    if plot is not None:
        from meidbench.report.plots import plot_class_frequencies

        echo(f"wrote {plot_class_frequencies(loaded, plot)}", err=True)


@command(
    short_help="Look for leakage and inconsistencies in a split.",
    epilog="\b\nExample:\n  meidbench audit charadesegolt --strict",
)
@click.argument("split", type=SPLIT)
@click.option("--strict", is_flag=True, help="End with exit code 1 if anything is found.")
@as_json
def audit(split: str, strict: bool, as_json: bool) -> None:
    """Look for facts that a reader of results on SPLIT should know.

    Groups (takes of one script, parts of one film) or subjects in several subsets, samples of one long video that
    overlap in time in two subsets, ids that occur twice, classes missing from a subset, videos shorter than 200 frames
    at 24 frames per second, and contradictions within the file.
    A check whose data the split lacks is named as not checked.
    """
    from meidbench.splits.split import load_split
    from meidbench.splits.statistics import CHECKS, audit_split

    loaded = load_split(split, check=False)
    every = audit_split(loaded)
    findings = [finding for finding in every if finding.severity != "not-checked"]
    if as_json:
        echo_json(json.dumps([asdict(finding) for finding in every], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            rest = f": {first_few(finding.examples)}" if finding.examples else ""
            more = ", ..." if finding.count > len(finding.examples) > 0 else ""
            echo(f"{finding.severity:<7}  {finding.check}: {finding.count:,} {finding.what}{rest}{more}")
        videos, unchecked = len(loaded.table), {finding.check: finding.count for finding in every[len(findings) :]}
        found = {finding.check for finding in findings} | {name for name, count in unchecked.items() if count == videos}
        clean = [name for name in CHECKS if name not in found]
        echo(f"nothing found by: {', '.join(clean) or 'none of the checks'}")
        if unchecked:
            texts = [
                name if count == videos else f"{name} ({count:,} of {write_count(videos, 'video')})"
                for name, count in unchecked.items()
            ]
            echo(f"not checked (no data): {', '.join(texts)}")
    for note in loaded.notes:
        echo(f"note: {note}", err=True)
    if strict and findings:
        sys.exit(1)
