"""``meidbench compare``: several runs side by side, with paired intervals."""

from pathlib import Path

import click

from meidbench.cli.output import print_result, write_text
from meidbench.cli.parameters import FILE, SUBSET, json_file


@click.command(
    short_help="Compare runs: intervals, paired differences, wins and losses.",
    epilog="\b\nExample:\n  meidbench compare bce.npz meid@1.npz meid@2.npz --split charadeslt --html r.html",
)
@click.argument("predictions", nargs=-1, required=True, metavar="PREDICTIONS...")
@click.option("--split", required=True, help="A split file, or a built benchmark's name.")
@click.option("--subset", type=SUBSET, default="test", show_default=True)
@click.option("--reference", help="The run that the others are compared with [default: the first].")
@click.option("--bootstrap", type=click.IntRange(min=2), default=1000, show_default=True, help="Replicates.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--allow-float16", is_flag=True, help="Accept half-precision scores, which make ties.")
@json_file
@click.option("--latex", type=FILE, help="Write a table for a paper (booktabs).")
@click.option("--html", type=FILE, help="Write one self-contained page: table, charts, per-class results.")
def compare(
    predictions: tuple[str, ...],
    split: str,
    subset: str,
    reference: str | None,
    bootstrap: int,
    seed: int,
    allow_float16: bool,
    json_file: Path | None,
    latex: Path | None,
    html: Path | None,
) -> None:
    """Compare the runs in PREDICTIONS on one subset of a split.

    Each is a prediction file, or NAME=FILE; without a name, the file's own name without its ending is taken. Runs named
    NAME@SEED are seeds of one method and are averaged; the spread over seeds is shown apart from that over videos.
    """
    targets = [str(path) for path in (json_file, latex, html) if path is not None]
    if len(set(targets)) < len(targets):
        raise click.UsageError("--json, --latex and --html want a file each")

    from meidbench.cli.progress import progress_bar
    from meidbench.comparison import RunFile
    from meidbench.comparison import compare as compare_runs
    from meidbench.intervals import bootstrap_steps
    from meidbench.report.text import comparison_table
    from meidbench.split_file import load_split

    loaded = load_split(split)
    files = [RunFile.parse(text) for text in predictions]
    steps = bootstrap_steps(len(loaded.video_ids(subset)), loaded.num_classes, bootstrap) * len(files)
    with progress_bar("bootstrap", steps) as advance:
        comparison = compare_runs(
            files,
            loaded,
            subset,
            reference=reference,
            replicates=bootstrap,
            seed=seed,
            allow_float16=allow_float16,
            advance=advance,
        )
    if latex is not None:
        from meidbench.report.latex import comparison_latex

        write_text(latex, comparison_latex(comparison))
    if html is not None:
        from meidbench.report.html import comparison_html

        write_text(html, comparison_html(comparison))
    for method in comparison.methods:
        for warning in method.warnings:
            click.echo(f"warning: {method.name}: {warning}", err=True)
    title = f"{comparison.dataset} ({comparison.variant}), {subset}: {comparison.videos:,} videos"
    print_result(json_file, comparison.to_json(), f"{title}\n\n{comparison_table(comparison)}")
