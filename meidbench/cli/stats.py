"""``meidbench stats``: Table 1 for any split file."""

from pathlib import Path

import click

from meidbench.cli.parameters import FILE, as_json
from meidbench.report import PLOT_FORMATS


@click.command(
    short_help="Print Table 1 for split files.",
    epilog="\b\nExample:\n  meidbench stats charadeslt charadesegolt --plot frequencies.svg",
)
@click.argument("splits", nargs=-1, required=True, metavar="SPLIT...")
@click.option("--plot", type=FILE, help="Draw the class frequency curves to FILE (.png, .svg or .pdf).")
@as_json
def stats(splits: tuple[str, ...], plot: Path | None, as_json: bool) -> None:
    """Print the statistics of Table 1 for each SPLIT: a split file, or a built benchmark's name."""
    if plot is not None and plot.suffix.lower() not in PLOT_FORMATS:
        raise click.BadParameter(f"{plot.name!r} ends in none of {', '.join(PLOT_FORMATS)}", param_hint="--plot")

    import json
    from dataclasses import asdict

    from meidbench.report.text import statistics_table
    from meidbench.split_file import load_split
    from meidbench.statistics import split_statistics

    loaded = [load_split(split) for split in splits]
    statistics = [split_statistics(split) for split in loaded]
    if as_json:
        # NaN is no JSON: what is not defined is null.
        rows = [{k: None if v != v else v for k, v in asdict(entry).items()} for entry in statistics]
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(statistics_table(statistics))
    if plot is not None:
        from meidbench.report.plots import plot_class_frequencies

        click.echo(f"wrote {plot_class_frequencies(loaded, plot)}", err=True)
