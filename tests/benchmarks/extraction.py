"""Measures the speed of decoding alone, of the backbone alone, and of extraction, which is bound by the slower one.

    python tests/benchmarks/extraction.py                       # makes its own clips
    python tests/benchmarks/extraction.py --backbone light --count 32  # a small CLIP
    python tests/benchmarks/extraction.py --videos DIR --device cuda --precision fp16 --workers 1 2 4 8 16

Prints markdown. Needs nothing but the package itself.
"""

import argparse
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from meidbench.extraction.decoder_pool import DecoderPool, DecodingSettings, FrameBatch, VideoFinished
from meidbench.extraction.encoders.extractor import Extractor
from meidbench.extraction.extraction import default_workers, extract_features
from meidbench.extraction.frames import FrameRule, find_crop_window
from meidbench.extraction.videos import Video, find_videos
from meidbench.features.feature_file import read_header

LIGHT = "light"


def make_clips(folder: Path, count: int, seconds: int, height: int, width: int) -> None:
    """H.264 with a long group of pictures, moving noise over a gradient; one is encoded, the rest are copies."""
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 255, (height + 64, width + 64, 3), np.uint8)
    with av.open(str(folder / "clip000.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"g": "250", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(seconds * 30):
            shift = number % 64
            picture = texture[shift : shift + height, shift // 2 : shift // 2 + width]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        output.mux(stream.encode(None))
    for number in range(1, count):
        shutil.copy(folder / "clip000.mp4", folder / f"clip{number:03d}.mp4")


def decode_only(videos: list[Video], extractor: Extractor, processes: int) -> tuple[float, int]:
    """Seconds and frames of decoding into shared memory, from the first frame that arrives."""
    frames, begun = 0, None
    settings = DecodingSettings(extractor.rule, geometry=extractor.encoder.preprocessing.geometry)
    with DecoderPool(videos, settings, processes) as pool:
        for event in pool:
            if isinstance(event, FrameBatch):
                begun = begun or time.perf_counter()
                frames += len(event.indices)
                event.release()
            elif isinstance(event, VideoFinished):
                assert event.result.status == "ok", event.result
    return time.perf_counter() - (begun or 0), frames


def forward_only(extractor: Extractor, frames: int, size: tuple[int, int]) -> float:
    """Seconds of preprocessing and backbone on frames in memory, in batches as extraction makes them."""
    window = find_crop_window(*size, extractor.encoder.preprocessing.geometry)
    shape = (min(extractor.batch_size, frames), window.bottom - window.top, window.right - window.left, 3)
    batch = torch.randint(0, 255, shape, dtype=torch.uint8).to(extractor.device)
    extractor.encode(extractor.crop(batch, window))
    synchronise(extractor)
    begun = time.perf_counter()
    for first in range(0, frames, len(batch)):
        extractor.encode(extractor.crop(batch[: frames - first], window))
    synchronise(extractor)
    return time.perf_counter() - begun


def synchronise(extractor: Extractor) -> None:
    if extractor.device.type == "cuda":
        torch.cuda.synchronize(extractor.device)


class BusyExtractor(Extractor):
    """Measures the working time of the GPU by its own events."""

    spans: list

    def crop(self, frames, window):
        return self._timed(super().crop, frames, window)

    def encode(self, crops):
        return self._timed(super().encode, crops)

    def _timed(self, work, *arguments):
        if self.device.type != "cuda":
            return work(*arguments)
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        result = work(*arguments)
        ended.record()
        self.spans.append((begun, ended))
        return result

    def busy(self) -> float:
        synchronise(self)
        return sum(begun.elapsed_time(ended) for begun, ended in self.spans) / 1000


def save_light_model(folder: Path) -> str:
    """Save a small vision transformer of CLIP's kind with random weights, at CLIP's size, and return its name."""
    import transformers

    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
    config = transformers.CLIPVisionConfig(**sizes, image_size=224, patch_size=32, projection_dim=128)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    return f"hf:{folder}"


def measure(arguments: argparse.Namespace, folder: Path, scratch: Path) -> None:
    videos = list(find_videos(folder).videos)[: arguments.count]
    rule = FrameRule.from_text(arguments.sampling, frames=arguments.frames)
    backbone = save_light_model(scratch / "light") if arguments.backbone == LIGHT else arguments.backbone
    extractor = BusyExtractor(
        backbone, "random", seed=0, rule=rule, device=arguments.device, precision=arguments.precision,
        batch_size=arguments.batch_size,
    )  # fmt: skip
    extractor.spans = []
    with av.open(str(videos[0].path)) as container:
        size = (container.streams.video[0].height, container.streams.video[0].width)
    on = torch.cuda.get_device_name(extractor.device) if extractor.device.type == "cuda" else "CPU"
    cores = len(os.sched_getaffinity(0))
    print(f"## {arguments.backbone}, {arguments.precision}, batches of {extractor.batch_size}, {on}, {cores} cores\n")
    print(f"{len(videos)} videos of {size[1]} x {size[0]}, {rule}.\n")
    print("| decoding processes | decode only, frames/s | backbone only | whole | whole / slower of both | GPU busy |")
    print("|---|---|---|---|---|---|")
    for processes in arguments.workers or [default_workers(extractor.device)]:
        tries = []
        for number in range(arguments.repeat):
            seconds, frames = decode_only(videos, extractor, processes)
            backbone = forward_only(extractor, frames, size)
            extractor.spans.clear()
            out = scratch / f"{processes}-{number}.h5"
            begun = time.perf_counter()
            extract_features(videos, out, extractor, workers=processes)
            whole = time.perf_counter() - begun
            busy = extractor.busy() / whole if extractor.device.type == "cuda" else math.nan
            assert (read_header(out).status == 1).all()
            # Before and after, because the speed of a shared machine drifts.
            backbone = (backbone + forward_only(extractor, frames, size)) / 2
            ratio = max(seconds, backbone) / whole
            tries.append((ratio, frames / seconds, frames / backbone, frames / whole, busy))
        ratio, decoded, forward, whole, busy = sorted(tries)[len(tries) // 2]
        percent = "-" if math.isnan(busy) else f"{busy:.0%}"
        print(f"| {processes} | {decoded:,.1f} | {forward:,.1f} | {whole:,.1f} | {ratio:.2f} | {percent} |", flush=True)
    if extractor.device.type == "cuda":
        deviations(extractor, arguments, size)


def deviations(reference: Extractor, arguments: argparse.Namespace, size: tuple[int, int]) -> None:
    """Print the difference between half precision and fp32 on the same crops."""
    crops = torch.randint(0, 255, (64, 3, 224, 224), dtype=torch.uint8, device=reference.device)
    rows = {
        precision: Extractor(arguments.backbone, "random", seed=0, device=arguments.device, precision=precision)
        .encode(crops).float() for precision in ("fp32", "bf16", "fp16")
    }  # fmt: skip
    print("\n| precision | largest difference / mean of fp32 | least cosine |\n|---|---|---|")
    for precision in ("bf16", "fp16"):
        apart = (rows[precision] - rows["fp32"]).abs().max() / rows["fp32"].mean()
        cosine = torch.cosine_similarity(rows[precision], rows["fp32"]).min()
        print(f"| {precision} | {apart:.1e} | {cosine:.6f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos [default: clips made here]")
    parser.add_argument("--count", type=int, default=8, help="how many of them")
    parser.add_argument("--seconds", type=int, default=10, help="of the clips made here")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--sampling", default="uniform")
    parser.add_argument("--backbone", default="resnet101", help=f"an encoder, or {LIGHT}: a small CLIP made here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int, nargs="*")
    parser.add_argument("--repeat", type=int, default=3, help="how often all three are measured; the median is shown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.videos or Path(scratch, "clips")
        if arguments.videos is None:
            folder.mkdir()
            make_clips(folder, arguments.count, arguments.seconds, *arguments.size)
        measure(arguments, folder, Path(scratch))


if __name__ == "__main__":
    main()
