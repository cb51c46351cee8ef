"""``meidbench extract-features``: from videos to one feature file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meidbench.cli.parameters import FILE, as_json

if TYPE_CHECKING:
    from meidbench.features.summary import Summary

_BACKBONES = ("resnet101", "resnet50", "tsm-resnet50")


@click.command(
    short_help="Extract frame features from videos or frame folders.",
    epilog="\b\nExamples:\n"
    "  meidbench extract-features Charades_v1_480/ --out charades_r101.h5 --split charadeslt\n"
    "  meidbench extract-features Charades_v1_rgb/ --out charades_r50.h5 --backbone resnet50 --precision fp16\n"
    "  torchrun --nproc-per-node 8 -m meidbench extract-features videos/ --out videos.h5",
)
@click.argument("videos", metavar="VIDEOS", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", required=True, type=FILE, metavar="FILE.h5", help="The feature file.")
@click.option("--split", help="Take only the videos of this split (a file, or a built benchmark's name).")
@click.option("--backbone", type=click.Choice(_BACKBONES), default="resnet101", show_default=True)
@click.option(
    "--frames", type=click.IntRange(1, 1_000_000), default=200, show_default=True, help="Rows a video (uniform)."
)
@click.option(
    "--sampling", default="uniform", show_default=True, metavar="uniform|all|fps=N", help="Which frames are taken."
)
@click.option(
    "--weights",
    default="default",
    show_default=True,
    metavar="default|NAME|FILE|random",
    help="Published weights, which are fetched, or a file with a state dict or safetensors.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of random weights, which are for tests only.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
@click.option("--precision", type=click.Choice(("fp32", "bf16", "fp16")), default="fp32", show_default=True)
@click.option(
    "--dtype", type=click.Choice(("float16", "float32")), default="float16", show_default=True, help="Stored."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Frames at a time [default: 256 on a GPU, 8 on a CPU].")
@click.option("--workers", type=click.IntRange(min=1), help="Decoding processes [default: from the number of cores].")
@click.option(
    "--folder-fps",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="Frames a second of frame folders.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds without a frame after which a video has failed.",
)
@click.option("--shard", metavar="I/N", help="Take share I of N, into a part file; 'merge-features' joins the parts.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed in an earlier run.")
@as_json
def extract_features(
    videos: Path,
    out: Path,
    split: str | None,
    backbone: str,
    frames: int,
    sampling: str,
    weights: str,
    seed: int | None,
    device: str,
    precision: str,
    dtype: str,
    batch_size: int | None,
    workers: int | None,
    folder_fps: float,
    timeout: float,
    shard: str | None,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Extract frame features of all videos below VIDEOS into one file.

    VIDEOS is a folder of mp4, mkv, avi, webm or mov files, or of frame folders (ID/ID-000001.jpg); a video's id is
    its name. Run the same command again and it goes on where it stopped; a finished video is not decoded
    again. A video that cannot be read is recorded with the reason, the run goes on, and the exit code is 1.

    Started by torchrun, each process takes its share and writes a part; 'merge-features' joins the parts.
    """
    if (weights == "random") != (seed is not None):
        raise click.UsageError("--weights random needs --seed N, and nothing else takes a seed")

    from meidbench.cli.download import Display
    from meidbench.cli.progress import progress_bar
    from meidbench.errors import MeidbenchError
    from meidbench.features.frames import FrameRule
    from meidbench.features.shards import Shard
    from meidbench.features.videos import find_videos

    def say(line: str) -> None:
        click.echo(line, err=True)

    try:
        rule = FrameRule.parse(sampling, frames=frames)
        share = Shard.parse(shard) if shard else Shard.of_process()
    except MeidbenchError as error:
        raise click.UsageError(str(error)) from None
    listing = find_videos(videos, _ids_of(split))

    from meidbench.features.extraction import extract_features as extract
    from meidbench.features.extractor import Extractor

    if device == "auto" and "LOCAL_RANK" in os.environ:
        device = _own_device(int(os.environ["LOCAL_RANK"]))
    display = Display()
    try:
        extractor = Extractor(
            backbone,
            weights,
            seed=seed,
            rule=rule,
            folder_fps=folder_fps,
            device=device,
            precision=precision,
            batch_size=batch_size,
            dtype=dtype,
            progress=display.progress,
            report=say,
        )
    finally:
        display.close()
    mine = listing.videos if share is None else share.share(listing.videos)
    with progress_bar("extracting" if share is None else f"extracting {share}", len(mine)) as progress:
        summary = extract(
            listing.videos,
            out,
            extractor,
            shard=share,
            workers=workers,
            timeout=timeout,
            retry_failed=retry_failed,
            progress=progress,
            report=say,
        )
    # Where one process of torchrun fails, it ends the others: what is wrong with the videos, the merge tells.
    conclude(summary, listing.missing, as_json, as_errors=shard is not None or share is None)


def _ids_of(split: str | None) -> list[str] | None:
    if split is None:
        return None
    from meidbench.manifests import SUBSETS
    from meidbench.split_file import load_split

    loaded = load_split(split)
    return [video_id for subset in SUBSETS for video_id in loaded.video_ids(subset)]


def _own_device(local_rank: int) -> str:
    import torch

    return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def conclude(summary: "Summary", missing: Sequence[str] = (), as_json: bool = False, *, as_errors: bool) -> None:
    """Print how it went; where a video failed or is missing, end with an error, or say so only."""
    from meidbench.errors import MeidbenchError, first_few

    if as_json:
        import json

        troubles = [{"video_id": name, "status": status, "reason": why} for name, status, why in summary.troubles]
        counts = {key: getattr(summary, key) for key in ("videos", "extracted", "ok", "salvaged", "failed")}
        found = {"path": str(summary.path), **counts, "missing": list(missing), "troubles": troubles}
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(
            f"{summary.path}: {summary.videos:,} videos, {summary.ok:,} ok, {summary.salvaged:,} salvaged, "
            f"{summary.failed:,} failed ({summary.extracted:,} extracted now)"
        )
    for status in ("salvaged", "failed"):
        if found_so := [f"{name} ({why})" for name, kind, why in summary.troubles if kind == status]:
            click.echo(f"{status}: {first_few(found_so)}", err=True)
    problems = []
    if summary.failed:
        problems.append(f"{summary.failed:,} of {summary.videos:,} videos failed; --retry-failed tries them again")
    if missing:
        problems.append(f"{len(missing):,} videos of the split are not among the videos: {first_few(missing)}")
    if problems:
        problems.append(f"all others are in {summary.path}")
        if as_errors:
            raise MeidbenchError("\n".join(problems))
        click.echo("\n".join(problems), err=True)
