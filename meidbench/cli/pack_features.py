"""``meidbench pack-features``: a folder of ``VIDEO_ID.npy`` into one feature file."""

import sys
from pathlib import Path

import click

from meidbench.cli.parameters import FILE, as_json

DTYPES = ("float16", "float32", "int8")


@click.command(
    "pack-features",
    short_help="Put a folder of .npy features into one file.",
    epilog="\b\nExample:\n  meidbench pack-features VideoLT/feature/ResNet101/ --out videolt_r101.h5 "
    "--backbone resnet101",
)
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=FILE, required=True, help="The feature file to write (HDF5).")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float16",
    show_default=True,
    help="int8 has a scale a row: max|row| / 127.",
)
@click.option("--split", help="Pack only its videos: a split file, or a built benchmark's name.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed in an earlier run.")
@click.option("--backbone", default="unknown", show_default=True, help="What made the features; kept in the recipe.")
@as_json
def pack_features(
    source: Path, out: Path, dtype: str, split: str | None, retry_failed: bool, backbone: str, as_json: bool
) -> None:
    """Put the features in DIR, VIDEO_ID.npy of T x D numbers each, into one file that is read at memory speed.

    DIR may also be an HDF5 file: one with /features/VIDEO_ID, or another feature file. Run the same command again to
    go on after an interruption. A video that cannot be packed is recorded with the reason, and the others go on; the
    exit code is 1 then, and where videos of the split are missing.
    """
    from meidbench.cli.progress import progress_bar
    from meidbench.errors import bullet_list, first_few
    from meidbench.features.packing import pack
    from meidbench.split_file import load_split

    only = None if split is None else load_split(split).table.column("video_id").to_pylist()
    summary = pack(
        source,
        out,
        dtype=dtype,
        backbone=backbone,
        only=only,
        retry_failed=retry_failed,
        progress=progress_bar,
        report=lambda line: click.echo(line, err=True),
    )
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps({**asdict(summary), "path": str(summary.path)}, indent=2, sort_keys=True))
    else:
        there = f" ({summary.found:,} were there already)" if summary.found else ""
        count = "the same number of" if summary.fixed else "different numbers of"
        click.echo(
            f"packed   {summary.packed:,} of {summary.videos:,} videos{there}: {summary.rows:,} rows of "
            f"{summary.dim:,} {summary.dtype}, {count} rows a video"
        )
        if summary.failed:
            named = [f"{video_id}: {reason}" for video_id, reason in list(summary.failed.items())[:5]]
            more = f"\n  and {len(summary.failed) - 5:,} more" if len(summary.failed) > 5 else ""
            click.echo(f"failed   {len(summary.failed):,} videos\n{bullet_list(named)}{more}")
        if summary.missing:
            click.echo(f"missing  {len(summary.missing):,} videos of the split: {first_few(summary.missing)}")
        click.echo(f"wrote    {summary.path} ({summary.num_bytes / 1e6:,.1f} MB)")
    if not summary.is_complete:
        sys.exit(1)
