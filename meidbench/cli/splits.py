"""The commands about splits beside ``build-splits``: ``import-split``, ``stats`` and ``audit``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from meidbench.cli.parameters import (
    INPUT_FILE,
    SEED,
    SPLIT,
    SPLIT_SOURCE,
    InputName,
    OutputFile,
    as_json,
    command,
    echo,
    echo_json,
    group_option,
    hold_out_option,
)
from meidbench.errors import SplitError, first_few, write_count
from meidbench.names import IMPORT_FORMATS, PLOT_FORMATS


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
    "      --head-above 100 --tail-up-to 20\n"
    "  meidbench import-split train.txt test.txt --out mine.parquet \\\n"
    "      --head-above 100 --tail-up-to 20 --hold-out-val 0.1 --seed 0",
)
@click.argument("files", type=SPLIT_SOURCE, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=OutputFile(".parquet"), required=True, help="The split file to write (Parquet).")
@click.option(
    "--format",
    "form",
    type=click.Choice(IMPORT_FORMATS),
    metavar="FORMAT",
    help="Of the files, one of those above [default: the one that they show].",
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
    help="One name per line, by class index, or VideoLT's or Charades' list of classes, or labels.json "
    "[default: the names in the labels, sorted, or c000 and so on for indices].",
)
@hold_out_option
@click.option("--seed", type=SEED, help="Of --hold-out-val [default: 0].")
@group_option("What --hold-out-val keeps in one subset [default: groups, where the files have them].")
def import_split(
    files: tuple[tuple[str, Path], ...],
    out: Path,
    form: str | None,
    head_above: int | None,
    tail_up_to: int | None,
    groups: Path | None,
    name: str | None,
    class_names: Path | None,
    share: float | None,
    seed: int | None,
    group_by: tuple[str, ...],
) -> None:
    """Make a split file from FILES, which give the subset of each video; build-splits draws new ones.

    The subset is in a column (table), in the name of each file (train, val, validate, validation or test), or before
    it, as in train=FILE. The result is checked, and every other command takes it.

    --hold-out-val takes a val subset out of train where the files have no val.

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
    something-something
               The JSON list of Something-Something: objects with id and
               template; labels.json may be given as --class-names.
    kinetics   CSV with label, youtube_id, time_start, time_end and split; the
               id is YOUTUBE_ID_START_END, as the clips are called.
    hacs       The CSV of HACS Clips: a sample is a part of a video.
    activitynet
               JSON with videos by id and labelled segments, with the key
               database or without, also of HACS Segments.
    """  # noqa: D301
    if share is None and (seed is not None or group_by):
        raise click.UsageError("nothing is drawn: --seed and --group-by go with --hold-out-val")
    from meidbench.annotations.tables import split_from_files
    from meidbench.construction.held_out import hold_out_val, measure_shares
    from meidbench.report.text import held_out_report, statistics_table
    from meidbench.splits.split import write_split
    from meidbench.splits.statistics import split_statistics

    dataset = name or (files[0][1] if len(files) == 1 else out).stem
    split, notes = split_from_files(
        files, form or "", dataset=dataset, head_above=head_above, tail_up_to=tail_up_to, class_names=class_names,
        groups=groups,
    )  # fmt: skip
    for note in notes:
        echo(f"note: {note}", err=True)
    if share is not None:
        split = hold_out_val(split, share, seed=seed or 0, group_by=group_by)
    write_split(split, out)
    echo(statistics_table([split_statistics(split)], split.group_names))
    if share is not None:
        echo(f"\n{held_out_report(split, measure_shares(split, share))}")
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
        names = loaded[0].group_names
        echo(statistics_table(statistics, names if all(split.group_names == names for split in loaded) else {}))
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
