"""``meidbench import-split``: a split file from a table of one's own."""

from pathlib import Path

import click

from meidbench.cli.parameters import FILE


@click.command(
    "import-split",
    short_help="Make a split file from your own table.",
    epilog="\b\nExample:\n  meidbench import-split videos.csv --out mine.parquet --head-above 100 --tail-up-to 20",
)
@click.argument("table", type=FILE)
@click.option("--out", type=FILE, required=True, help="The split file to write (Parquet).")
@click.option("--head-above", type=click.IntRange(min=0), required=True, help="Head: more training videos than this.")
@click.option("--tail-up-to", type=click.IntRange(min=0), required=True, help="Tail: at most this many.")
@click.option("--name", help="The benchmark's name [default: the table's file name without its ending].")
@click.option(
    "--class-names",
    type=FILE,
    help="One name a line, in the order of the class indices; needed where labels are names.",
)
def import_split(
    table: Path, out: Path, head_above: int, tail_up_to: int, name: str | None, class_names: Path | None
) -> None:
    """Make a split file from TABLE, in which the subsets are decided already; build-splits draws new ones.

    TABLE is CSV, TSV, Parquet, a JSON list or JSON lines with the columns video_id, subset and labels. subset is train,
    val or test; labels are class indices (or names, with --class-names), joined by semicolons, or a list. Videos with
    the same text in a column group belong together, which the audit looks at; length_s and subject are kept, too. The
    result is checked, and every other command takes it.
    """
    if tail_up_to > head_above:
        raise click.UsageError("--tail-up-to must not lie above --head-above")
    if out.absolute() == table.absolute():
        raise click.UsageError("--out would overwrite the table")
    if class_names is not None and out.absolute() == class_names.absolute():
        raise click.UsageError("--out would overwrite the class names")
    from meidbench.report.text import statistics_table
    from meidbench.split_file import write_split
    from meidbench.statistics import split_statistics
    from meidbench.tables import split_from_table

    split = split_from_table(
        table,
        dataset=name or table.stem,
        head_above=head_above,
        tail_up_to=tail_up_to,
        class_names=class_names,
    )
    write_split(split, out)
    click.echo(statistics_table([split_statistics(split)]))
    click.echo(f"\nwrote {out}")
