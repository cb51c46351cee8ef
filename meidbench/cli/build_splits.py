"""``meidbench build-splits``: the split files of a benchmark from its official annotations."""

from pathlib import Path

import click

from meidbench.cli.parameters import DATASET_OR_MANIFEST, FOLDER, as_json

VARIANTS = ("released", "pareto", "grouped")
FORMATS = ("parquet", "csv", "lst")


@click.command(
    "build-splits",
    short_help="Build a benchmark's split, exactly as published.",
    epilog="\b\nExample:\n  meidbench build-splits charadeslt --annotations Charades/ --format parquet --format lst",
)
@click.argument("dataset", type=DATASET_OR_MANIFEST)
@click.option("--annotations", type=FOLDER, help="Folder of the official files [default: where 'download' puts them].")
@click.option("--out", type=FOLDER, help="Folder to write to [default: where other commands look by name].")
@click.option("--variant", type=click.Choice(VARIANTS), default="released", show_default=True)
@click.option("--seed", type=int, help="For variants that are drawn; the released split is not.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("parquet",),
    show_default=True,
    help="May be given several times. lst is the form that the VideoLT and MEID code reads, a list a subset.",
)
@as_json
def build_splits(
    dataset: str,
    annotations: Path | None,
    out: Path | None,
    variant: str,
    seed: int | None,
    formats: tuple[str, ...],
    as_json: bool,
) -> None:
    """Build the split of DATASET, verify it and write it.

    DATASET is videolt, charadeslt or charadesegolt, or the path of a manifest of your own (NAME.toml). Ids, labels and
    statistics must be those of the published split; where they are not, the videos and classes that differ are named
    and nothing is written.
    """
    if variant != "released":
        raise click.UsageError(f"variant {variant!r} is not part of this version yet; there is 'released'")
    if seed is not None:
        raise click.UsageError("the released split is not drawn: --seed has no meaning for it")

    import json
    from dataclasses import asdict

    from meidbench.files import file_sha256
    from meidbench.home import annotations_folder, split_path
    from meidbench.listing import write_csv, write_lists
    from meidbench.manifests import load_manifest
    from meidbench.released import build_released
    from meidbench.report.text import table_1_comparison
    from meidbench.split_file import write_split
    from meidbench.statistics import split_statistics

    manifest = load_manifest(dataset)
    split = build_released(dataset, annotations or annotations_folder(manifest.annotations))
    written = []
    target = split_path(manifest.name)
    folder = out or target.parent
    if "parquet" in formats:
        written.append(write_split(split, folder / target.name))
    if "csv" in formats:
        written.append(write_csv(split, folder / target.with_suffix(".csv").name))
    if "lst" in formats:
        names = {subset: released.file for subset, released in manifest.released.items()}
        lists = write_lists(split, folder, names)
        written += lists.values()
        for subset, path in lists.items():
            if file_sha256(path) != manifest.released[subset].sha256:
                click.echo(
                    f"warning: {path.name} has the videos and classes of the released list in another order, as the "
                    "annotation files have them; the split is the same",
                    err=True,
                )
    statistics = split_statistics(split)
    if as_json:
        content = {"digest": split.digest, "files": [str(path) for path in written], "statistics": asdict(statistics)}
        click.echo(json.dumps(content, indent=2))
        return
    click.echo(table_1_comparison(statistics, manifest))
    click.echo()
    for path in written:
        click.echo(f"wrote {path}")
    for defect in manifest.defects:
        click.echo(f"known defect: {defect}", err=True)
