"""The costs and savings of half precision and int8: mAP of a linear probe, size, and the speed of packing.

    python tests/benchmarks/dtypes.py                 # a minute
    python tests/benchmarks/dtypes.py --videos 2000   # more of VideoLT's size, for the speeds

Prints Markdown tables. The features of the probe are simulated (see ``meidbench.features.simulation``): they show
the effect of rounding on a linear model, and nothing about real videos. Speeds are of files in the page cache, best of
three; ``np.load`` of the same files is beside them in each round.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from meidbench import evaluate
from meidbench.annotations.tables import split_from_files
from meidbench.features import open_features
from meidbench.features.packing import pack
from meidbench.features.simulation import frame_features

DTYPES = ("float32", "float16", "int8")
CLASSES, TRAIN, TEST = 60, 3_000, 1_500  # of the invented benchmark
FRAMES, DIM = 30, 512
VIDEOLT = (150, 2048)  # rows of a video, and their width


def table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def invented_split(folder: Path, generator: np.random.Generator):
    """Three labels per video on average, class frequencies by Zipf's law."""
    frequency = 1 / np.arange(1, CLASSES + 1)
    lines = ["video_id,subset,labels"]
    for number in range(TRAIN + TEST):
        labels = set(generator.choice(CLASSES, size=1 + generator.poisson(2), p=frequency / frequency.sum()).tolist())
        if number < CLASSES or TRAIN <= number < TRAIN + CLASSES:
            labels.add(number % TRAIN)  # no class without a video
        subset = "train" if number < TRAIN else "test"
        lines.append(f"v{number:05},{subset},{';'.join(map(str, sorted(labels)))}")
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    return split_from_files([("", folder / "split.csv")], dataset="invented", head_above=300, tail_up_to=100)[0]


def probe(path: Path, split):
    """Mean-pooled rows, standardised, and ridge regression on the labels."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    source = open_features(path)
    pooled = {
        subset: np.stack([source.read(name).astype(np.float64).mean(axis=0) for name in split.video_ids(subset)])
        for subset in ("train", "test")
    }
    model = make_pipeline(StandardScaler(), Ridge(alpha=1e3)).fit(pooled["train"], split.labels("train"))
    return evaluate(model.predict(pooled["test"]), split.video_ids("test"), split, bootstrap=300)


def accuracy(folder: Path, seeds: int) -> None:
    rows = {dtype: [] for dtype in DTYPES}
    widths, sizes, means = [], {}, {dtype: [] for dtype in DTYPES}
    for seed in range(seeds):
        split = invented_split(folder, np.random.default_rng(seed))
        npy = folder / "npy"
        npy.mkdir()
        for name in (*split.video_ids("train"), *split.video_ids("test")):
            np.save(npy / f"{name}.npy", frame_features(split, name, frames=FRAMES, dim=DIM, seed=seed))
        for dtype in DTYPES:
            summary = pack(npy, folder / f"{dtype}.h5", dtype=dtype)
            result = probe(summary.path, split)
            if dtype == "float32":
                interval = result.intervals.mAP["overall"]
                widths.append((interval.high - interval.low) / 2)
            means[dtype].append([getattr(result.mAP, group) for group in ("overall", "head", "medium", "tail")])
            sizes[dtype] = summary.num_bytes
            summary.path.unlink()
        shutil.rmtree(npy)
    for dtype in DTYPES:
        mean = np.mean(means[dtype], axis=0)
        furthest = np.abs(np.subtract(means[dtype], means["float32"])).max(axis=0)
        rows[dtype] = [dtype, *(f"{value:.4f}" for value in mean), *(f"{value:.5f}" for value in furthest)]
        rows[dtype].append(f"{sizes[dtype] / sizes['float32']:.3f}")
    print(f"### Linear probe, {TRAIN:,} + {TEST:,} simulated videos of {FRAMES} x {DIM}, {seeds} seeds\n")
    groups = ("overall", "head", "medium", "tail")
    table(["dtype", *groups, *(f"furthest, {group}" for group in groups), "size"], list(rows.values()))
    print(f"95 % interval of the overall mAP over videos: +- {np.mean(widths):.4f}\n")


def speed(folder: Path, videos: int) -> None:
    generator = np.random.default_rng(0)
    npy = folder / "videolt"
    npy.mkdir()
    for number in range(videos):
        rows = np.maximum(generator.standard_normal(VIDEOLT, dtype=np.float32), 0)
        np.save(npy / f"{number:06}.npy", rows)
    paths = sorted(npy.iterdir())
    megabytes = sum(path.stat().st_size for path in paths) / 1e6

    def load() -> int:
        for path in paths:
            np.load(path)
        return 0

    def packing(dtype: str):
        def run() -> int:
            out = folder / f"speed-{dtype}.h5"
            out.unlink(missing_ok=True)
            return pack(npy, out, dtype=dtype).num_bytes

        return run

    jobs = {"np.load": load, **{f"pack {dtype}": packing(dtype) for dtype in DTYPES}}
    seconds, sizes = {name: [] for name in jobs}, {}
    for _ in range(3):
        for name, job in jobs.items():
            start = time.perf_counter()
            sizes[name] = job()
            seconds[name].append(time.perf_counter() - start)
    print(f"### Packing {videos:,} files of {VIDEOLT[0]} x {VIDEOLT[1]} float32, {megabytes:,.0f} MB\n")
    rows = []
    for name in jobs:
        best = min(seconds[name])
        size = f"{sizes[name] / 1e6:,.0f}" if sizes[name] else "-"
        ratio = f"{min(seconds['np.load']) / best:.2f}"
        rows.append([name, f"{videos / best:,.0f}", f"{megabytes / best:,.0f}", ratio, size])
    table(["", "videos/s", "MB/s read", "of np.load", "MB written"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=300, help="files of VideoLT's size, 1.2 MB each")
    parser.add_argument("--seeds", type=int, default=2, help="simulated benchmarks of the probe")
    parser.add_argument("--folder", type=Path, help="where to write [default: a temporary folder]")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, numpy {np.__version__}\n")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        speed(Path(folder), arguments.videos)
        accuracy(Path(folder), arguments.seeds)


if __name__ == "__main__":
    main()
