"""``meidbench verify-features``: a look at every row of a feature file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meidbench.cli.output import print_result
from meidbench.cli.parameters import json_file

if TYPE_CHECKING:
    from meidbench.features.records import VideoRows
    from meidbench.features.verification import Verification


def _as_recipe(ctx: click.Context, param: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    recipe = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{entry!r} is not KEY=VALUE, such as backbone=resnet101", ctx, param)
        recipe[key] = value
    return recipe


@click.command(
    "verify-features",
    short_help="Check a feature file, alone and against a split.",
    epilog="\b\nExample:\n  meidbench verify-features videolt_r101.h5 --split videolt --recipe backbone=resnet101",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--split", help="Whose videos must all be there: a split file, or a built benchmark's name.")
@click.option(
    "--recipe",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_as_recipe,
    help="What the recipe must say; a dot leads into an entry. May be given several times.",
)
@click.option("--npy", type=click.Path(path_type=Path), help="The folder that was packed, to be compared with.")
@click.option(
    "--videos",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder of videos, some of which are extracted anew, to be compared with.",
)
@click.option("--weights", metavar="NAME|FILE|random", help="For --videos [default: those that the recipe names].")
@click.option("--weights-seed", type=click.IntRange(min=0), help="Of random weights.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="For --videos.")
@click.option(
    "--sample", type=click.IntRange(min=1), help="How many videos are compared [default: all of --npy, 3 of --videos]."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draw of the sample.")
@json_file
def verify_features(
    file: Path,
    split: str | None,
    recipe: dict[str, str],
    npy: Path | None,
    videos: Path | None,
    weights: str | None,
    weights_seed: int | None,
    device: str,
    sample: int | None,
    seed: int,
    json_file: Path | None,
) -> None:
    """Read all rows of FILE and say what is wrong with them.

    FILE is a feature file, a folder of VIDEO_ID.npy or an HDF5 file with /features/VIDEO_ID. Errors: videos missing,
    failed, unreadable, damaged since they were written (checksum), of another width, with NaN or with rows of one
    number; another recipe. Warnings: rows of zeros, one row throughout, several videos with the same rows, and what
    else should be known. The exit code is 1 where there is an error.
    """
    if sample is not None and npy is None and videos is None:
        raise click.UsageError("--sample goes with --npy or --videos: it is how many videos are compared")
    if videos is None and (weights is not None or weights_seed is not None):
        raise click.UsageError("--weights and --weights-seed go with --videos")
    if npy is not None and videos is not None:
        raise click.UsageError("--npy and --videos exclude each other: features were packed or extracted")

    from meidbench.cli.progress import progress_bar
    from meidbench.features.verification import verify
    from meidbench.split_file import load_split

    verification = verify(
        file,
        split=None if split is None else load_split(split),
        recipe=recipe,
        npy=npy,
        extract=None if videos is None else _anew(file, videos, weights, weights_seed, device),
        sample=3 if sample is None and videos is not None else sample,
        seed=seed,
        progress=progress_bar,
    )
    print_result(json_file, verification.to_json(), _table(verification))
    if not verification.is_sound:
        sys.exit(1)


def _anew(file: Path, videos: Path, weights: str | None, seed: int | None, device: str) -> Callable[[str], "VideoRows"]:
    """Give a function that extracts a video as the file's recipe says."""
    from meidbench.errors import FeatureError
    from meidbench.features import open_features
    from meidbench.features.originals import is_feature_file

    open_features(file).close()
    if not is_feature_file(file):
        raise FeatureError(
            f"{file} was not written by extract-features, so --videos has no recipe to follow; use --npy"
        )

    from meidbench.features.extractor import Extractor
    from meidbench.features.layout import read_header
    from meidbench.features.videos import find_videos

    header = read_header(file)
    extractor = Extractor.from_recipe(
        header.recipe, weights, seed=seed, device=device, report=lambda line: click.echo(line, err=True)
    )
    found = {video.video_id: video for video in find_videos(videos, header.layout.video_ids).videos}

    def extract(video_id: str) -> "VideoRows":
        if video_id not in found:
            raise FeatureError(f"video {video_id} is not in {videos}")
        return extractor.extract(found[video_id])

    return extract


def _table(verification: "Verification") -> str:
    import json

    from tabulate import tabulate

    from meidbench.errors import first_few

    statuses = ", ".join(f"{count:,} {status}" for status, count in verification.statuses.items() if count)
    recipe = {} if verification.recipe is None else verification.recipe
    facts = [
        ("videos", f"{verification.videos:,} ({statuses})"),
        ("rows", f"{verification.rows:,} of {verification.dim:,} {verification.dtype}"),
        *((key, value if isinstance(value, str) else json.dumps(value)) for key, value in sorted(recipe.items())),
    ]
    lines = [tabulate(facts, tablefmt="plain", disable_numparse=True)]
    if verification.similarities:
        header = ["compared", "least cosine", "mean cosine"]
        shown = sorted(verification.similarities, key=lambda entry: entry.min)[:10]
        rows = [(entry.video_id, f"{entry.min:.6f}", f"{entry.mean:.6f}") for entry in shown]
        lines += ["", tabulate(rows, header, tablefmt="simple", disable_numparse=True)]
        if len(verification.similarities) > len(shown):
            lines.append(f"{len(verification.similarities):,} videos compared, the least alike are shown")
    if verification.findings:
        found = [
            (entry.severity, entry.check, f"{entry.count:,}", f"{entry.what}: {first_few(entry.concerned)}")
            for entry in verification.findings
        ]
        header = ["severity", "check", "count", "what"]
        lines += [
            "",
            tabulate(found, header, tablefmt="simple", disable_numparse=True, maxcolwidths=[None, None, None, 80]),
        ]
    names = {entry.check for entry in verification.findings}
    lines += ["", f"nothing found by: {', '.join(check for check in verification.checks if check not in names)}"]
    return "\n".join(lines)
