"""The batch loader beside a loader of VideoLT's kind and beside plain copies of memory, on the same rows in one run.

    python tests/benchmarks/loading.py                      # 2,000 videos of 150 x 2048: 5 GB on disk, some minutes
    python tests/benchmarks/loading.py --videos 500 --device cuda

Prints Markdown tables: videos per second, the median of the repetitions (each an epoch, all rows in the page cache),
and ratios within the run. The loaders are asked in turn in each repetition, so that a slow minute slows all of them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

CLASSES, LABELS = 1_004, 1.1  # VideoLT's
DTYPES = ("float32", "float16", "int8")
DRAWS = ("uniform", "random", "class-balanced")


class WholeFiles(Dataset):
    """As VideoLT's code reads: the whole file of a video, of which some rows are taken; the labels of all are held."""

    def __init__(self, folder: Path, ids: list[str], labels: np.ndarray, rows: int, sampling: str) -> None:
        self.folder, self.ids, self.labels, self.rows, self.sampling = folder, ids, labels, rows, sampling

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int):
        features = np.load(self.folder / f"{self.ids[index]}.npy")
        if self.sampling == "uniform":
            chosen = np.linspace(0, len(features) - 1, self.rows).astype(int)
        else:
            chosen = np.sort(np.random.randint(0, len(features), self.rows))  # noqa: NPY002
        return features[chosen], self.labels[index]


def make_split(videos: int):
    from meidbench.annotations import Annotations
    from meidbench.splits.split import Split

    generator = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1) ** 0.6
    drawn = generator.choice(CLASSES, (videos, 2), p=frequency / frequency.sum()).tolist()
    second = generator.random(videos) < LABELS - 1
    annotations = Annotations(
        class_names=tuple(f"c{c:04d}" for c in range(CLASSES)),
        video_ids=[f"v{number:06d}" for number in range(videos)],
        sources=[""] * videos,
        labels=[tuple(sorted(set(pair if more else pair[:1]))) for pair, more in zip(drawn, second, strict=True)],
        lengths=[float("nan")] * videos,
        subjects=[""] * videos,
        views=[""] * videos,
        pair_ids=[""] * videos,
        segments=[()] * videos,
    )
    return Split.from_annotations(
        annotations, ["train"] * videos, dataset="made", variant="table", head_above=500, tail_up_to=100
    )


def write_features(folder: Path, ids: list[str], stored_rows: int, dim: int) -> None:
    """Write a folder of .npy and a packed file of each dtype, of the same values."""
    from meidbench.features.feature_file import DTYPES as STORED
    from meidbench.features.feature_file import Layout
    from meidbench.features.records import VideoRows
    from meidbench.features.store import feature_writer

    generator = np.random.default_rng(0)
    values = generator.standard_normal((stored_rows * 8, dim), dtype=np.float32)
    (folder / "npy").mkdir()
    for number, video_id in enumerate(ids):
        np.save(folder / "npy" / f"{video_id}.npy", np.roll(values, number, 0)[:stored_rows])
    for dtype in DTYPES:
        counts = np.full(len(ids), stored_rows)
        layout = Layout(tuple(ids), counts, True, dim, dtype, False, np.zeros(len(ids), np.int64))
        with feature_writer(folder / f"{dtype}.h5", layout, {"made": "for a benchmark"}) as writer:
            for position in range(len(ids)):
                rows, scales = np.roll(values, position, 0)[:stored_rows], None
                if dtype == "int8":
                    scales = np.abs(rows).max(axis=1) / np.float32(127)
                    rows = np.rint(rows / scales[:, None])
                writer.put(position, VideoRows(rows.astype(STORED[dtype]), scales=scales))
            writer.finish()


def class_balanced(labels: np.ndarray, draws: int) -> list[tuple[int, int]]:
    """Positions and classes: a class at random, and one of its videos at random."""
    generator = np.random.default_rng(0)
    present = np.flatnonzero(labels.any(axis=0))
    videos = {int(c): np.flatnonzero(labels[:, c]) for c in present}
    classes = generator.choice(present, draws).tolist()
    return [(int(generator.choice(videos[c])), c) for c in classes]


def epoch_of(loader: Iterable, device: torch.device) -> Callable[[], int]:
    """Return a function that goes through a loader and counts videos; each batch is let go for the next."""

    def run() -> int:
        count = 0
        for batch in loader:
            features = batch["features"] if isinstance(batch, dict) else batch[0]
            count += len(features.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count

    return run


def copies(
    source: torch.Tensor, batch: int, rows: int, videos: int, threads: int, buffers: int = 1
) -> Callable[[], int]:
    """Return a function that copies runs of the size of batches into existing buffers."""
    outs = [torch.zeros((batch * rows, source.shape[1]), dtype=source.dtype) for _ in range(buffers)]
    size = batch * rows
    starts = np.random.default_rng(0).integers(len(source) - size + 1, size=videos // batch).tolist()

    def run() -> int:
        for turn, start in enumerate(starts):
            out = outs[turn % buffers]
            if threads == 1:
                np.copyto(out.numpy(), source[start : start + size].numpy())
            else:
                out.copy_(source[start : start + size])
        return len(starts) * batch

    return run


def measure(runs: dict[str, Callable[[], int]], repeat: int) -> dict[str, float]:
    """Videos per second of each: the median over rounds in which all have their turn, after one round to warm up."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            count = run()
            if turn:
                speeds[name].append(count / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in speeds.items()}


def table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def compare(folder: Path, split, draw: str, options: argparse.Namespace) -> None:
    from meidbench.loading.batches import BatchLoader
    from meidbench.loading.datasets import FeatureDataset

    device, size = torch.device(options.device), options.batch_size
    sampling = "uniform" if draw == "uniform" else "random"
    labels = split.labels("train")
    order = np.random.default_rng(1).permutation(len(labels)).tolist()
    pairs = class_balanced(labels, len(labels)) if draw == "class-balanced" else None
    positions = [position for position, _ in pairs] if pairs else order
    files = WholeFiles(folder / "npy", split.video_ids("train"), labels.astype(np.float32), options.rows, sampling)

    def data_of(name: str) -> FeatureDataset:
        return FeatureDataset(split, "train", features=folder / name, frames=options.rows, sampling=sampling)

    def ours(name: str, **arguments: object) -> Callable[[], int]:
        loader = BatchLoader(data_of(name), size, sampler=pairs or order, device=device, **arguments)
        return epoch_of(loader, device)

    runs = {
        f"whole .npy files, DataLoader, {workers} workers": epoch_of(
            DataLoader(files, size, sampler=positions, num_workers=workers), device
        )
        for workers in (0, 2)
    }
    by_item = DataLoader(data_of("float16.h5"), size, sampler=positions)
    runs["our dataset, packed float16, DataLoader, 0 workers"] = epoch_of(by_item, device)
    runs["ours, folder of .npy"] = ours("npy")
    for dtype in DTYPES:
        runs[f"ours, packed {dtype}"] = ours(f"{dtype}.h5", resident="never")
    runs["ours, packed float16, given as float16"] = ours("float16.h5", resident="never", dtype=torch.float16)
    if device.type == "cuda":
        for dtype in DTYPES:
            runs[f"ours, packed {dtype}, kept on the device"] = ours(f"{dtype}.h5", resident="always")
    speeds = measure(runs, options.repeat)
    slow = max(speed for name, speed in speeds.items() if name.startswith("whole"))
    table(
        [
            f"{draw}: batches on {device}, float32 unless said",
            "videos per second",
            "ratio to the faster of the first two",
        ],
        [[name, f"{speed:,.0f}", f"{speed / slow:.1f}"] for name, speed in speeds.items()],
    )


def against_memory(folder: Path, split, sampling: str, options: argparse.Namespace) -> None:
    """Gathering, without conversion, beside copies of the same number of bytes, from host memory to host memory."""
    from meidbench.features import open_features
    from meidbench.loading.batches import BatchLoader
    from meidbench.loading.datasets import FeatureDataset

    # Several times over: an epoch of so few videos is over before the threads are warm.
    order = np.tile(np.random.default_rng(1).permutation(len(split.video_ids("train"))), 4).tolist()
    rows = []
    for dtype, given in (("float16", torch.float16), ("float32", torch.float32)):
        source = open_features(folder / f"{dtype}.h5")
        data = FeatureDataset(split, "train", features=source, frames=options.rows, sampling=sampling)
        kept = torch.from_numpy(np.array(source.mapped_rows()))  # like the buffers, memory of the process itself
        loaders = {ahead: BatchLoader(data, options.batch_size, sampler=order, dtype=given, prefetch=ahead)
                   for ahead in (2, 0)}  # fmt: skip
        # One buffer may stay in the cache; those of a loader that reads ahead come in turn.
        runs = {
            f"copy by {threads} into {buffers} buffers": copies(
                kept, options.batch_size, options.rows, len(order), threads, buffers
            )
            for threads in (1, torch.get_num_threads())
            for buffers in (1, 4)
        }
        runs["ours, reading ahead"] = epoch_of(loaders[2], torch.device("cpu"))
        runs["ours, in the same thread"] = epoch_of(loaders[0], torch.device("cpu"))
        speeds = measure(runs, options.repeat)
        ratios = [speeds[f"copy by {threads} into {buffers} buffers"]
                  for threads in (1, torch.get_num_threads()) for buffers in (1, 4)]  # fmt: skip
        megabytes = options.rows * options.dim * given.itemsize / 1e6
        rows += [
            [f"{dtype}: {name}", f"{speed:,.0f}", f"{speed * megabytes / 1e3:.1f}",
             *(f"{speed / copied:.2f}" for copied in ratios)]
            for name, speed in speeds.items()
        ]  # fmt: skip
    table(
        [f"{sampling}: the bytes of a batch as stored, no conversion", "videos per second", "GB per second",
         *(f"ratio to a copy by {threads} into {buffers}"
           for threads in (1, torch.get_num_threads()) for buffers in (1, 4))],
        rows,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2_000)
    parser.add_argument("--stored-rows", type=int, default=150, help="rows that each video has")
    parser.add_argument("--rows", type=int, default=60, help="rows that are taken")
    parser.add_argument("--dim", type=int, default=2_048)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the features are written and removed again")
    parser.add_argument("--draws", nargs="*", choices=DRAWS, default=DRAWS)
    options = parser.parse_args()
    split = make_split(options.videos)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_features(folder, split.video_ids("train"), options.stored_rows, options.dim)
        print(
            f"{options.videos:,} videos of {options.stored_rows} x {options.dim}, {options.rows} rows of each, batches "
            f"of {options.batch_size}, {torch.get_num_threads()} threads\n"
        )
        for sampling in ("uniform", "random"):
            against_memory(folder, split, sampling, options)
        for draw in options.draws:
            compare(folder, split, draw, options)


if __name__ == "__main__":
    main()
