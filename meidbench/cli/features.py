"""The commands for feature files: extract, merge and pack features, make word features, verify features."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meidbench.cli.parameters import (
    DATASET_OR_MANIFEST,
    INPUT,
    INPUT_FOLDER,
    SEED,
    SPLIT,
    InputName,
    OutputFile,
    as_json,
    command,
    echo,
    echo_json,
    json_file,
    name_options,
    naming_options,
    option_with_default,
    print_result,
    progress_bar,
    reading_options,
    report,
)
from meidbench.errors import FeatureError, MeidbenchError, bullet_list, escape_controls, first_few, write_count
from meidbench.names import BACKBONES, CLIP_STRIDE, CLIPS, EXTRACTED_DTYPES, PRECISIONS, STORED_DTYPES

if TYPE_CHECKING:
    from meidbench.extraction.extraction import ExtractionSummary
    from meidbench.extraction.videos import VideoList
    from meidbench.features import FeatureSource
    from meidbench.features.packing import PackingSummary
    from meidbench.features.records import VideoRows
    from meidbench.features.verification import Verification

_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_WEIGHTS = InputName(lambda value: [Path(value)])
_device = partial(option_with_default, "--device", default="auto", metavar="auto|cpu|cuda[:N]")
_out = partial(click.option, "--out", required=True, type=OutputFile(".h5", ".hdf5"))


def _split_ids(split: str | None) -> list[str] | None:
    from meidbench.splits.split import load_split

    return None if split is None else load_split(split).table.column("video_id").to_pylist()


def _find_of_split(videos: Path, split: str) -> "VideoList":
    """Find the videos of a split's samples, which may be parts of longer videos."""
    from meidbench.extraction.videos import find_samples
    from meidbench.splits.split import load_split

    loaded = load_split(split)
    return find_samples(videos, loaded.table.column("video_id").to_pylist(), loaded.spans)


@command(
    short_help="Extract frame features from videos or frame folders.",
    epilog="\b\nExamples:\n"
    "  meidbench extract-features Charades_v1_480/ --out charades_r101.h5 \\\n"
    "      --split charadeslt\n"
    "  meidbench extract-features Charades_v1_rgb/ --out charades_r50.h5 \\\n"
    "      --backbone resnet50 --precision fp16\n"
    "  meidbench extract-features Charades_v1_480/ --out charades_clip.h5 \\\n"
    "      --backbone hf:openai/clip-vit-base-patch16\n"
    "  meidbench extract-features videos/ --out videomae.h5 \\\n"
    "      --backbone hf:MCG-NJU/videomae-base --clips 10\n"
    "  torchrun --nproc-per-node 8 -m meidbench \\\n"
    "      extract-features videos/ --out videos.h5",
)
@click.argument("videos", metavar="VIDEOS", type=INPUT_FOLDER)
@_out(metavar="FILE.h5", help="The feature file.")
@click.option("--split", type=SPLIT, help="Take only the videos of this split (a file, or a built benchmark's name).")
@option_with_default(
    "--backbone",
    default="resnet101",
    metavar="NAME",
    help=f"The encoder: {', '.join(BACKBONES)}, timm:MODEL, hf:NAME or hf:FOLDER (Hugging Face), "
    "openclip:MODEL/TAG, or python:FILE.py with make_encoder(). @REVISION after a name pins a revision.",
)
@option_with_default(
    "--frames", type=click.IntRange(1, 1_000_000), default=200, help="Rows per video (uniform, uniform-time)."
)
@option_with_default(
    "--sampling", default="uniform", metavar="uniform|uniform-time|all|fps=N", help="Which frames are taken."
)
@option_with_default(
    "--clips",
    type=_COUNT,
    default=CLIPS,
    help="Evenly spaced clips per video, of encoders with a row per clip.",
)
@option_with_default("--clip-stride", type=_COUNT, default=CLIP_STRIDE, help="Step between the frames of clips.")
@option_with_default(
    "--weights",
    type=_WEIGHTS,
    default="default",
    metavar="default|NAME|FILE|random",
    help="Published weights, which are downloaded, or a file with a state dict or safetensors.",
)
@click.option("--seed", type=SEED, help="Seed of random weights, which are for tests only.")
@_device()
@option_with_default("--precision", type=click.Choice(PRECISIONS), default="fp32")
@option_with_default("--dtype", type=click.Choice(EXTRACTED_DTYPES), default="float16", help="Type of stored numbers.")
@click.option("--batch-size", type=_COUNT, help="Frames per batch [default: 256 on a GPU, 8 on a CPU].")
@click.option("--workers", type=_COUNT, help="Decoding processes [default: from the number of cores].")
@option_with_default("--folder-fps", type=_POSITIVE, default=24.0, help="Frames per second of frame folders.")
@option_with_default(
    "--timeout", type=_POSITIVE, default=600.0, help="Seconds without a frame after which a video has failed."
)
@click.option("--shard", metavar="I/N", help="Take shard I of N, into a part file; 'merge-features' joins the parts.")
@click.option("--retry-failed", is_flag=True, help="Try again the videos that failed in an earlier run.")
@as_json
def extract_features(
    videos: Path, out: Path, split: str | None, backbone: str, frames: int, sampling: str, clips: int,
    clip_stride: int, weights: str, seed: int | None, device: str, precision: str, dtype: str,
    batch_size: int | None, workers: int | None, folder_fps: float, timeout: float, shard: str | None,
    retry_failed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Extract frame features of all videos below VIDEOS into one file.

    VIDEOS is a folder of video files (mp4, mkv, avi, webm, mov, flv, wmv, ...), or of frame folders
    (ID/ID-000001.jpg, ID/frame_000001.jpg, ...); a video's id is its name, and other files are counted. Run the same
    command again and it continues where it stopped; a finished video is not decoded again. A video that cannot be read
    is recorded with the reason, the others are extracted, and the exit code is 1. Where samples of the split are parts
    of longer videos, VIDEOS holds the long videos; each is decoded once.

    Started by torchrun, each process takes a shard and writes its part; 'merge-features' joins the parts.
    """
    if (weights == "random") != (seed is not None):
        raise click.UsageError("--weights random needs --seed N, and --seed is for random weights only")

    from meidbench.cli.benchmarks import Display
    from meidbench.extraction.extraction import Shard
    from meidbench.extraction.frames import FrameRule
    from meidbench.extraction.videos import find_videos

    with reading_options():
        rule = FrameRule.from_text(sampling, frames=frames)
        own = Shard.from_text(shard) if shard else Shard.from_environment()
    found = find_videos(videos) if split is None else _find_of_split(videos, split)
    for line in found.describe_left_out():
        report(line)

    from meidbench.extraction.encoders.encoder import check_encoder_name, load_encoder
    from meidbench.extraction.encoders.extractor import Extractor, choose_device, default_rule
    from meidbench.extraction.extraction import extract_features as extract

    check_encoder_name(backbone)
    if device == "auto" and "LOCAL_RANK" in os.environ:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % count}" if count else "cpu"
    choose_device(device)  # before weights are downloaded
    display = Display()
    try:
        encoder = load_encoder(backbone, weights, seed=seed, progress=display.progress, report=report)
    finally:
        display.close()
    _check_sampling(encoder.row_per_clip, backbone)
    extractor = Extractor(
        encoder, rule=default_rule(encoder, clips, clip_stride) if encoder.row_per_clip else rule,
        folder_fps=folder_fps, device=device, precision=precision, batch_size=batch_size, dtype=dtype,
    )  # fmt: skip
    title = "extracting" if own is None else f"extracting {own}"
    with progress_bar(title, len(found.videos if own is None else own.select_videos(found.videos))) as progress:
        summary = extract(
            found.videos, out, extractor, shard=own, workers=workers, timeout=timeout, retry_failed=retry_failed,
            progress=progress, report=report,
        )  # fmt: skip
    # torchrun ends all processes where one fails, so that only the merge fails for problems of the videos.
    _conclude(summary, found.missing, as_json, fail=shard is not None or own is None)


def _check_sampling(row_per_clip: bool, backbone: str) -> None:
    """Refuse options that the encoder does not use."""
    context = click.get_current_context()
    unused = ("frames", "sampling") if row_per_clip else ("clips", "clip_stride")
    given = [name for name in unused if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE]
    if given:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        rows = "one row per clip (--clips)" if row_per_clip else "one row per frame (--frames, --sampling)"
        raise click.UsageError(f"{named}: {backbone} gives {rows}")


def _conclude(
    summary: "ExtractionSummary", missing: Sequence[str] = (), as_json: bool = False, *, fail: bool = True
) -> None:
    """Print the summary; failed and missing videos are an error, or with ``fail=False`` only a message."""
    if as_json:
        troubles = [{"video_id": name, "status": status, "reason": why} for name, status, why in summary.troubles]
        counts = {key: getattr(summary, key) for key in ("videos", "extracted", "ok", "salvaged", "failed")}
        result = {"path": str(summary.path), **counts, "missing": list(missing), "troubles": troubles}
        echo_json(json.dumps(result, indent=2))
    else:
        echo(
            f"{summary.path}: {write_count(summary.videos, 'video')}, {summary.ok:,} ok, "
            f"{summary.salvaged:,} salvaged, {summary.failed:,} failed ({summary.extracted:,} extracted now)"
        )
    for status in ("salvaged", "failed"):
        if entries := [f"{name} ({why})" for name, kind, why in summary.troubles if kind == status]:
            report(f"{status}: {first_few(entries)}")
    problems = []
    if summary.failed == summary.videos > 0:
        kept = f"{summary.path} has no rows" if summary.path.exists() else "no file was written"
        problems.append(
            f"{'the only video' if summary.videos == 1 else f'all {summary.videos:,} videos'} failed; {kept}"
        )
    elif summary.failed:
        problems.append(
            f"{summary.failed:,} of {write_count(summary.videos, 'video')} failed; --retry-failed tries them again"
        )
    if missing:
        problems.append(
            f"{write_count(len(missing), 'video of the split is', 'videos of the split are')} not among the videos: "
            f"{first_few(missing)}"
        )
    if problems:
        if summary.failed < summary.videos:
            problems.append(f"all others are in {summary.path}")
        if fail:
            raise MeidbenchError("\n".join(problems))
        report("\n".join(problems))


@command(
    short_help="Join the parts of a shared extraction.",
    epilog="\b\nExample:\n  meidbench merge-features videos.part-*-of-8.h5 --out videos.h5",
)
@click.argument("parts", nargs=-1, required=True, metavar="PART...", type=INPUT)
@_out(metavar="FILE.h5", help="The whole file.")
def merge_features(parts: tuple[Path, ...], out: Path) -> None:
    """Join the PARTs that 'extract-features --shard' or torchrun wrote; all must be present and finished.

    The result is the file that one process would have written. The parts are not changed. The exit code is 1 where a
    video failed.
    """
    from meidbench.extraction.extraction import merge_features as merge
    from meidbench.extraction.extraction import summarise
    from meidbench.features.feature_file import read_header

    total = sum(len(read_header(part).status) for part in parts)
    with progress_bar("merging", total) as progress:
        merge(parts, out, progress=progress, report=report)
    _conclude(summarise(out))


@command(
    "pack-features",
    short_help="Put a folder of .npy features into one file.",
    epilog="\b\nExamples:\n  meidbench pack-features VideoLT/feature/ResNet101/ \\\n"
    "      --out videolt_r101.h5 --backbone resnet101\n"
    "  meidbench pack-features clips/ --prefix v_ --suffix _clip --out clips.h5\n"
    "  meidbench pack-features i3d.h5 --dataset rgb --out i3d_rgb.h5",
)
@click.argument("source", metavar="DIR", type=INPUT)
@naming_options
@_out(help="The feature file to write (HDF5).")
@option_with_default(
    "--dtype", type=click.Choice(STORED_DTYPES), default="float16", help="int8 has one scale per row: max|row| / 127."
)
@click.option("--split", type=SPLIT, help="Pack only its videos: a split file, or a built benchmark's name.")
@click.option("--retry-failed", is_flag=True, help="Try again videos that failed in an earlier run.")
@option_with_default("--backbone", default="unknown", help="Network of the features, for the recipe.")
@as_json
def pack_features(
    source: Path, out: Path, dtype: str, split: str | None, retry_failed: bool, backbone: str, as_json: bool,
    **naming: str,
) -> None:  # fmt: skip
    """Put the features in DIR, VIDEO_ID.npy of T x D numbers each, into one file that is read at memory speed.

    DIR may hold .npz files or folders (train/VIDEO_ID.npy). It may also be an HDF5 file: one with /features/VIDEO_ID or
    /VIDEO_ID, with features and video_ids (or ids) of all videos, or another feature file. Axes of size 1 are left out.
    After an interruption, run the same command again to continue. A video that cannot be packed is recorded with the
    reason, and the run continues; the exit code is then 1, and also where videos of the split are missing.
    """
    from dataclasses import asdict

    from meidbench.features import open_features
    from meidbench.features.packing import pack

    summary = pack(
        open_features(source, **naming), out, dtype=dtype, backbone=backbone, only=_split_ids(split),
        retry_failed=retry_failed, progress=progress_bar, report=report,
    )  # fmt: skip
    if as_json:
        echo_json(json.dumps({**asdict(summary), "path": str(summary.path)}, indent=2, sort_keys=True))
    else:
        echo(_describe_packing(summary))
    if not summary.is_complete:
        sys.exit(1)


def _describe_packing(summary: "PackingSummary") -> str:
    there = f" ({summary.found:,} were there already)" if summary.found else ""
    count = "the same number of" if summary.fixed else "different numbers of"
    lines = [
        f"packed   {summary.packed:,} of {write_count(summary.videos, 'video')}{there}: "
        f"{write_count(summary.rows, 'row')} of {summary.dim:,} {summary.dtype}, {count} rows per video"
    ]
    if summary.failed:
        named = [f"{video_id}: {reason}" for video_id, reason in list(summary.failed.items())[:5]]
        more = f"\n  and {len(summary.failed) - 5:,} more" if len(summary.failed) > 5 else ""
        lines.append(f"failed   {write_count(len(summary.failed), 'video')}\n{bullet_list(named)}{more}")
    if summary.missing:
        lines.append(
            f"missing  {write_count(len(summary.missing), 'video')} of the split: {first_few(summary.missing)}"
        )
    return "\n".join([*lines, f"wrote    {summary.path} ({summary.num_bytes / 1e6:,.1f} MB)"])


@command(
    "word-features",
    short_help="Make features of descriptions: a proxy task without videos.",
    epilog="\b\nExample:\n  meidbench word-features charadeslt --annotations Charades/ \\\n"
    "      --out charades_words.h5",
)
@click.argument("dataset", type=DATASET_OR_MANIFEST)
@click.option(
    "--annotations", type=INPUT_FOLDER, help="Folder of the official files [default: where 'download' puts them]."
)
@_out(metavar="FILE.h5", help="The feature file.")
@option_with_default("--dim", type=click.IntRange(1, 65_536), default=256, help="Numbers per row.")
@as_json
def word_features(dataset: str, annotations: Path | None, out: Path, dim: int, as_json: bool) -> None:
    """Write features for the proxy task of DATASET: a video's "frames" are the words of its official description.

    DATASET is charadeslt or charadesegolt, or the path of a manifest. Each word is a row of fixed random numbers, the
    same in every video. Videos, labels and split of the task are real, but no video is seen: scores on these features
    say nothing of video recognition, and every output of a run on them is marked PROXY. The file has all videos of the
    annotations, for any split of them. A video without a description gets the words of its script.
    """
    from meidbench.annotations import annotation_paths
    from meidbench.checks import refuse_lost_inputs
    from meidbench.features import PackedFile, open_features
    from meidbench.features.words import make_word_features
    from meidbench.names import WATERMARKS
    from meidbench.splits.manifests import annotations_folder, load_manifest

    manifest = load_manifest(dataset)
    folder = annotations or annotations_folder(manifest.annotations)
    files = [path for found in annotation_paths(manifest, folder).values() for path in found]
    refuse_lost_inputs(out, [Path(dataset), *files])
    made = make_word_features(manifest, folder, out, dim=dim, progress=progress_bar, report=report)
    source = open_features(made)
    assert isinstance(source, PackedFile) and source.header is not None
    videos, rows = len(source.header.status), int(source.header.row_counts.sum())
    if as_json:
        facts = {"path": str(made), "dataset": manifest.name, "videos": videos, "rows": rows, "dim": dim}
        echo_json(json.dumps({**facts, "watermark": WATERMARKS["words"]}, indent=2, sort_keys=True))
    else:
        echo(
            f"{made}: {write_count(videos, 'video')} of {manifest.title}'s annotations, {rows:,} words of {dim:,} "
            f"numbers, {rows / videos:.1f} words per video\n{WATERMARKS['words']}"
        )


def _read_recipe(ctx: click.Context, param: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    for entry in entries:
        if not all(entry.partition("=")[:2]):
            raise click.BadParameter(f"{entry!r} is not KEY=VALUE, such as backbone=resnet101", ctx, param)
    return dict(entry.split("=", 1) for entry in entries)


@command(
    "verify-features",
    short_help="Check a feature file, alone and against a split.",
    epilog="\b\nExample:\n  meidbench verify-features videolt_r101.h5 --split videolt \\\n"
    "      --recipe backbone=resnet101",
)
@click.argument("file", type=INPUT)
@naming_options
@click.option("--split", type=SPLIT, help="Its videos must all be there: a split file, or a built benchmark's name.")
@click.option(
    "--recipe",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_read_recipe,
    help="An expected entry of the recipe; a dot leads into an entry. May be given several times.",
)
@click.option("--npy", type=INPUT, help="The folder that was packed, to compare with.")
@click.option("--videos", type=INPUT_FOLDER, help="The folder of videos; some are extracted again and compared.")
@click.option(
    "--weights", type=_WEIGHTS, metavar="NAME|FILE|random", help="For --videos [default: those that the recipe names]."
)
@click.option("--weights-seed", type=SEED, help="Of random weights.")
@_device(help="For --videos.")
@click.option("--sample", type=_COUNT, help="How many videos are compared [default: all of --npy, 3 of --videos].")
@option_with_default("--seed", type=SEED, default=0, help="For the draw of the sample.")
@json_file
def verify_features(
    file: Path, split: str | None, recipe: dict[str, str], npy: Path | None, videos: Path | None,
    weights: str | None, weights_seed: int | None, device: str, sample: int | None, seed: int,
    json_file: Path | None, **naming: str,
) -> None:  # fmt: skip
    """Read all rows of FILE and list what is wrong with them.

    FILE is a feature file, or another form that pack-features reads. Errors: videos missing,
    failed, unreadable, damaged since they were written (checksum), of another width, with NaN or with rows of one
    number; another recipe. Warnings: rows of zeros, one row throughout, several videos with the same rows, and other
    facts that users should know. The exit code is 1 where there is an error.
    """
    if sample is not None and npy is None and videos is None:
        raise click.UsageError("--sample goes with --npy or --videos: it is how many videos are compared")
    if videos is None and (weights is not None or weights_seed is not None):
        raise click.UsageError("--weights and --weights-seed go with --videos")
    if npy is not None and videos is not None:
        raise click.UsageError("--npy and --videos exclude each other: features were packed or extracted")

    from meidbench.features import open_features
    from meidbench.features.verification import verify
    from meidbench.splits.split import load_split

    source = open_features(file, **naming)
    verification = verify(
        source, split=None if split is None else load_split(split), recipe=recipe, npy=npy, seed=seed,
        extract=None if videos is None else _make_extract(source, videos, weights, weights_seed, device),
        sample=3 if sample is None and videos is not None else sample, progress=progress_bar,
    )  # fmt: skip
    missing = next((found.concerned for found in verification.findings if found.check == "missing"), ())
    hint = name_options(source.find_remedy("missing", missing), click.get_current_context().command) if missing else ""
    print_result(json_file, verification.to_json(), _describe_verification(verification, hint))
    if not verification.is_sound:
        sys.exit(1)


def _make_extract(
    source: "FeatureSource", videos: Path, weights: str | None, seed: int | None, device: str
) -> Callable[[str], "VideoRows"]:
    """Return a function that extracts a video as the file's recipe says."""
    from meidbench.features import PackedFile

    header = source.header if isinstance(source, PackedFile) else None
    if header is None:
        raise FeatureError(
            f"{source.path} was not written by extract-features, so --videos has no recipe to follow; use --npy"
        )

    from meidbench.extraction.encoders.extractor import Extractor
    from meidbench.extraction.videos import find_samples
    from meidbench.splits.rows import Span

    extractor = Extractor.from_recipe(header.recipe, weights, seed=seed, device=device, report=report)
    ids = header.layout.video_ids
    texts = ((each, header.layout.span(place)) for place, each in enumerate(ids))
    spans = {each: Span.from_text(text) for each, text in texts if text}
    found = {video.video_id: video for video in find_samples(videos, ids, spans).videos}

    def extract(video_id: str) -> "VideoRows":
        if (stored := source.naming.stored(video_id)) not in found:
            raise FeatureError(f"video {stored} is not in {videos}")
        return extractor.extract(found[stored])

    return extract


def _describe_verification(verification: "Verification", hint: str) -> str:
    from tabulate import tabulate

    statuses = ", ".join(f"{count:,} {status}" for status, count in verification.statuses.items() if count)
    facts = [
        ("videos", f"{verification.videos:,} ({statuses})"),
        ("rows", f"{verification.rows:,} of {verification.dim:,} {verification.dtype}"),
        *(
            (escape_controls(key), escape_controls(value) if isinstance(value, str) else json.dumps(value))
            for key, value in sorted((verification.recipe or {}).items())
        ),
    ]
    lines = [tabulate(facts, tablefmt="plain", disable_numparse=True)]
    in_columns = partial(tabulate, tablefmt="simple", disable_numparse=True)
    if verification.similarities:
        lowest = sorted(verification.similarities, key=lambda entry: entry.min)[:10]
        rows = [(entry.video_id, f"{entry.min:.6f}", f"{entry.mean:.6f}") for entry in lowest]
        lines += ["", in_columns(rows, ["compared", "least cosine", "mean cosine"])]
        if len(verification.similarities) > len(lowest):
            lines.append(
                f"{write_count(len(verification.similarities), 'video')} compared, the least similar ones are shown"
            )
    if verification.findings:
        found = [
            (entry.severity, entry.check, f"{entry.count:,}", f"{entry.what}: {first_few(entry.concerned)}")
            for entry in verification.findings
        ]
        header = ["severity", "check", "count", "what"]
        lines += ["", in_columns(found, header, maxcolwidths=[None, None, None, 80])]
    if hint:
        lines += ["", hint]
    names = {entry.check for entry in verification.findings}
    lines += ["", f"nothing found by: {', '.join(check for check in verification.checks if check not in names)}"]
    return "\n".join(lines)
