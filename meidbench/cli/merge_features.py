"""``meidbench merge-features``: one feature file from the parts of several processes."""

from pathlib import Path

import click

from meidbench.cli.parameters import FILE


@click.command(
    short_help="Join the parts of a shared extraction.",
    epilog="\b\nExample:\n  meidbench merge-features videos.part-*-of-8.h5 --out videos.h5",
)
@click.argument("parts", nargs=-1, required=True, metavar="PART...", type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=FILE, metavar="FILE.h5", help="The whole file.")
def merge_features(parts: tuple[Path, ...], out: Path) -> None:
    """Join the PARTs that 'extract-features --shard' or torchrun left; all must be there and finished.

    The outcome is the file that one process would have written. The parts are left where they are. The exit code is 1
    where a video failed.
    """
    from meidbench.cli.extract_features import conclude
    from meidbench.cli.progress import progress_bar
    from meidbench.features.layout import read_header
    from meidbench.features.shards import merge_features as merge
    from meidbench.features.summary import summarise

    total = sum(len(read_header(part).status) for part in parts)
    with progress_bar("merging", total) as progress:
        merge(parts, out, progress=progress, report=lambda line: click.echo(line, err=True))
    conclude(summarise(out), as_errors=True)
