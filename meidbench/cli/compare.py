"""``meidbench compare``: several runs side by side, with paired intervals."""

from pathlib import Path

import click

from meidbench.cli.parameters import FILE, SUBSET


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
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the comparison as JSON; - is stdout.",
)
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
    from meidbench.cli.progress import progress_bar
    from meidbench.comparison import RunFile
    from meidbench.comparison import compare as compare_runs
    from meidbench.files import written_whole
    from meidbench.split_file import load_split

    loaded = load_split(split)
    files = [RunFile.parse(text) for text in predictions]
    with progress_bar("bootstrap", loaded.num_classes * len(files)) as advance:
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

        with written_whole(latex) as temporary:
            temporary.write_text(comparison_latex(comparison), encoding="utf-8")
        click.echo(f"wrote {latex}", err=True)
    if html is not None:
        from meidbench.report.html import write_comparison_html

        write_comparison_html(comparison, html)
        click.echo(f"wrote {html}", err=True)
    if json_file is not None and str(json_file) != "-":
        with written_whole(json_file) as temporary:
            temporary.write_text(comparison.to_json(), encoding="utf-8")
        click.echo(f"wrote {json_file}", err=True)
    for method in comparison.methods:
        for warning in method.warnings:
            click.echo(f"warning: {method.name}: {warning}", err=True)
    if str(json_file) == "-":
        click.echo(comparison.to_json(), nl=False)
    else:
        from meidbench.report.text import comparison_table

        click.echo(f"{comparison.dataset} ({comparison.variant}), {subset}: {comparison.videos:,} videos\n")
        click.echo(comparison_table(comparison))
