"""The evaluator compared with scikit-learn, torchmetrics and a torchnet-style meter, on the same arrays in one run.

    python tests/benchmarks/evaluation.py            # a few minutes
    python tests/benchmarks/evaluation.py --large    # also a file of several GB, scored block by block

Prints Markdown tables: seconds (best of the repetitions), ratio to ours, and peak memory beyond the arrays. Every
measurement runs in its own process, which is forked after the arrays were made. Needs torchmetrics and the extra
``test``.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

VIDEOS, CLASSES, LABELS = 51_239, 1_004, 1.1  # VideoLT's test subset
OTHERS = 204_953  # videos in its two other subsets
SMALL = (1_012, 157, 8.1)  # CharadesLT's
PEER_CLASSES = 100  # torchmetrics takes minutes for all classes: it gets a tenth, and its time is scaled up


def make(videos: int, classes: int, labels_per_video: float, decimals: int | None = None):
    """Return probabilities of a weak model, and labels with a long tail."""
    generator = np.random.default_rng(0)
    frequency = 1 / np.arange(1, classes + 1) ** 0.6
    labels = generator.random((videos, classes)) < frequency / frequency.sum() * labels_per_video
    labels[np.arange(videos), generator.choice(classes, videos, p=frequency / frequency.sum())] = True
    logits = generator.standard_normal((videos, classes), dtype=np.float32) + 3 * labels.astype(np.float32)
    scores = 1 / (1 + np.exp(-logits))
    return (scores if decimals is None else np.round(scores, decimals)), labels


def ours(scores, labels):
    from meidbench.evaluation.evaluate import average_precision

    return average_precision(scores, labels)


def scikit_learn(scores, labels):
    from sklearn.metrics import average_precision_score

    return average_precision_score(labels, scores, average=None)


def torchmetrics(scores, labels):
    import torch
    from torchmetrics.functional.classification import multilabel_average_precision

    torch.set_num_threads(os.cpu_count() or 1)
    preds, target = torch.from_numpy(scores), torch.from_numpy(labels.astype(np.int64))
    return multilabel_average_precision(preds, target, num_labels=scores.shape[1], average=None).numpy()


def torchnet_style(scores, labels):
    """Loop over the classes with a descending torch sort and cumulative sums, as such meters do."""
    import torch

    values, truths = torch.from_numpy(scores), torch.from_numpy(labels.astype(np.int64))
    ranks = torch.arange(1, len(values) + 1).float()
    result = torch.zeros(values.shape[1])
    for c in range(values.shape[1]):
        truth = truths[:, c][torch.sort(values[:, c], descending=True).indices].float()
        precision = truth.cumsum(0) / ranks
        result[c] = precision[truth.bool()].sum() / max(truth.sum().item(), 1)
    return result.numpy()


def measure(function: Callable, *arguments: object, repeat: int = 1):
    """Run in a forked process; return (seconds, peak MB beyond its memory at the start, result)."""
    parent, child = multiprocessing.get_context("fork").Pipe(duplex=False)

    def work() -> None:
        import warnings

        import pyarrow.parquet  # noqa: F401 - imports are not measured
        import scipy.sparse  # noqa: F401

        warnings.simplefilter("ignore")  # peers warn of classes without positives
        small = [argument[:50, :3] if isinstance(argument, np.ndarray) else argument for argument in arguments]
        if any(isinstance(argument, np.ndarray) for argument in arguments):
            function(*small)  # imports, thread pools
        page = resource.getpagesize()

        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * page

        before, highest, done = resident(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                highest[0] = max(highest[0], resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            result = function(*arguments)
            times.append(time.perf_counter() - start)
        done.set()
        watcher.join()
        parent_end.send((min(times), max(highest[0] - before, 0) / 2**20, result))

    parent_end = child
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    child.close()  # so that the wait ends if the process dies
    answer = parent.recv()
    process.join()
    return answer


def print_table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def measure_peers(title: str, scores: np.ndarray, labels: np.ndarray) -> None:
    print(f"### {title}: {scores.shape[0]:,} x {scores.shape[1]:,} {scores.dtype}\n")
    seconds, megabytes, expected = measure(ours, scores, labels, repeat=3)
    rows = [["meidbench", f"{seconds:.2f}", "1", f"{megabytes:.0f}", "-"]]
    for name, function in (
        ("scikit-learn", scikit_learn),
        ("torchmetrics", torchmetrics),
        ("torchnet-style", torchnet_style),
    ):
        part = slice(0, PEER_CLASSES if name == "torchmetrics" else None)
        theirs, memory, got = measure(function, np.ascontiguousarray(scores[:, part]), labels[:, part])
        factor = scores.shape[1] / scores[:, part].shape[1]
        note = f" (x {factor:.1f} from {PEER_CLASSES} classes)" if factor > 1 else ""
        deviation = np.nanmax(np.abs(got - expected[part]))
        rows.append(
            [
                name + note,
                f"{theirs * factor:.1f}",
                f"{theirs * factor / seconds:.0f}",
                f"{memory:.0f}",
                f"{deviation:.0e}",
            ]
        )
    print_table(["", "seconds", "ratio", "peak MB beyond the arrays", "largest difference from ours"], rows)


def make_split(labels: np.ndarray, others: int = 0):
    """Return a split whose test subset has these labels, with a number of other videos in train."""
    from meidbench.annotations import Annotations
    from meidbench.splits.split import Split

    videos, classes = len(labels) + others, labels.shape[1]
    drawn = (np.random.default_rng(2).random(others) ** 2 * classes).astype(int).tolist()
    annotations = Annotations(
        class_names=tuple(f"c{c:03d}" for c in range(classes)),
        video_ids=[f"v{row:07d}" for row in range(videos)],
        sources=[""] * videos,
        labels=[tuple(np.flatnonzero(row).tolist()) for row in labels] + [(label,) for label in drawn],
        lengths=[float("nan")] * videos,
        subjects=[""] * videos,
        views=[""] * videos,
        pair_ids=[""] * videos,
        segments=[()] * videos,
    )
    return Split.from_annotations(
        annotations,
        ["test"] * len(labels) + ["train"] * others,
        dataset="made",
        variant="table",
        head_above=500,
        tail_up_to=100,
    )


def measure_command(folder: Path, split_path: Path, predictions: Path) -> None:
    import pyarrow.parquet as pq

    def only_read() -> None:
        pq.read_table(predictions)

    def evaluate() -> list[float]:
        from meidbench.evaluation.evaluate import evaluate_scores
        from meidbench.predictions import open_predictions
        from meidbench.predictions.align import align_predictions
        from meidbench.splits.split import load_split

        marks = [time.perf_counter()]
        split = load_split(split_path)
        marks.append(time.perf_counter())
        scores = align_predictions(open_predictions(predictions), split, "test", memory_limit=4 << 30)
        marks.append(time.perf_counter())
        result = evaluate_scores(scores, split, "test")
        marks.append(time.perf_counter())
        (folder / "result.json").write_text(result.to_json())
        marks.append(time.perf_counter())
        return np.diff(marks).tolist()

    print("### The whole command, Parquet in, JSON out\n")
    read, _, _ = measure(only_read, repeat=3)
    total, memory, parts = measure(evaluate, repeat=3)
    names = ("read and verify the split", "read, check and align the scores", "rank and average", "write")
    rows = [["reading the file with pyarrow only", f"{read:.2f}", "1"]]
    rows += [["meidbench, all", f"{total:.2f}", f"{total / read:.1f}"]]
    rows += [[f"- {name}", f"{part:.2f}", f"{part / read:.1f}"] for name, part in zip(names, parts, strict=True)]
    print_table(["", "seconds", "ratio"], rows)
    print(f"Peak memory {memory:,.0f} MB, of which the scores are {count_score_bytes(predictions) / 2**20:,.0f} MB.\n")


def count_score_bytes(path: Path) -> int:
    from meidbench.predictions import open_predictions

    file = open_predictions(path)
    return file.num_videos * file.num_classes * file.dtype.itemsize


def measure_bootstrap(title: str, scores: np.ndarray, labels: np.ndarray, replicates: int) -> None:
    from meidbench.evaluation.bootstrap import bootstrap_average_precision
    from meidbench.evaluation.ranking import Positives

    def run(given: np.ndarray, truth: np.ndarray) -> None:
        positives = Positives.from_pairs(*np.nonzero(truth), *given.shape)
        for _ in bootstrap_average_precision(given, positives, replicates, 0):
            pass

    def naive(given: np.ndarray, truth: np.ndarray) -> None:
        from sklearn.metrics import average_precision_score

        weights = np.random.default_rng(0).standard_exponential(len(given))
        average_precision_score(truth, given, average=None, sample_weight=weights)

    seconds, memory, _ = measure(run, scores, labels)
    one, _, _ = measure(naive, scores, labels)
    print_table(
        [f"{title}, {replicates:,} replicates", "seconds", "ratio", "peak MB beyond the arrays"],
        [
            ["meidbench", f"{seconds:.1f}", "1", f"{memory:.0f}"],
            [
                f"scikit-learn ({one:.2f} s per replicate)",
                f"{one * replicates:,.0f}",
                f"{one * replicates / seconds:.0f}",
                "-",
            ],
        ],
    )


def measure_large_file(folder: Path, videos: int, classes: int) -> None:
    """Score a file of several GB within half a GB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from meidbench.splits.split import write_split

    generator = np.random.default_rng(0)
    labels = np.zeros((videos, classes), bool)
    labels[np.arange(videos), (generator.random(videos) ** 2 * classes).astype(int)] = True
    split_path = write_split(make_split(labels), folder / "large.split.parquet")
    path = folder / "large.parquet"
    kind = pa.list_(pa.float32(), classes)
    schema = pa.schema([("video_id", pa.string()), ("scores", kind)])
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False,
        column_encoding={"scores.list.element": "BYTE_STREAM_SPLIT"}, write_page_checksum=True,
    ) as writer:  # fmt: skip
        for start in range(0, videos, 8192):
            rows = np.arange(start, min(start + 8192, videos))
            scores = generator.standard_normal((len(rows), classes), dtype=np.float32) + 3 * labels[rows]
            values = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), classes)
            writer.write_table(pa.table([[f"v{row:07d}" for row in rows], values], schema=schema), row_group_size=8192)
    del labels

    def evaluate(limit: int) -> str:
        from meidbench.evaluation.evaluate import evaluate_scores
        from meidbench.predictions import open_predictions
        from meidbench.predictions.align import align_predictions
        from meidbench.splits.split import load_split

        split = load_split(split_path)
        scores = align_predictions(open_predictions(path), split, "test", memory_limit=limit)
        return evaluate_scores(scores, split, "test").to_json()

    size = videos * classes * 4
    streamed, streamed_memory, a = measure(evaluate, 1 << 28)
    at_once, memory, b = measure(evaluate, 1 << 40)
    on_disk = path.stat().st_size / 2**30
    print(f"### A file of {size / 2**30:.1f} GB of scores ({videos:,} x {classes:,}), {on_disk:.1f} GB on disk\n")
    print_table(
        ["", "seconds", "GB of scores per second", "peak MB"],
        [
            ["block by block", f"{streamed:.0f}", f"{size / 2**30 / streamed:.3f}", f"{streamed_memory:,.0f}"],
            ["in memory", f"{at_once:.0f}", f"{size / 2**30 / at_once:.3f}", f"{memory:,.0f}"],
        ],
    )
    print(f"The two results are {'the same, byte for byte' if a == b else 'DIFFERENT'}.")
    hours = 6e6 * 4000 * 4 / (size / streamed) / 3600
    print(f"At this speed 6,000,000 videos x 4,000 classes (89 GB of float32) take {hours:.1f} hours.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also score a file of several GB block by block")
    parser.add_argument("--large-videos", type=int, default=1_000_000)
    parser.add_argument("--only-large", action="store_true")
    options = parser.parse_args()
    from meidbench.predictions.values import write_predictions
    from meidbench.splits.split import write_split

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.only_large:
            scores, labels = make(VIDEOS, CLASSES, LABELS)
            measure_peers("Average precision, few ties", scores, labels)
            tied, _ = make(VIDEOS, CLASSES, LABELS, decimals=3)
            measure_peers("Average precision, many ties (scores rounded to 0.001)", tied, labels)
            del tied
            split = make_split(labels, OTHERS)
            split_path = write_split(split, folder / "split.parquet")
            order = np.random.default_rng(1).permutation(VIDEOS)
            ids = [f"v{row:07d}" for row in order]
            predictions = write_predictions(folder / "predictions.parquet", ids, scores[order], split, "test")
            measure_command(folder, split_path, predictions)
            print("### Intervals\n")
            measure_bootstrap("CharadesLT size", *make(*SMALL), 1000)
            measure_bootstrap("VideoLT size", scores, labels, 1000)
            del scores, labels, split
        if options.large or options.only_large:
            measure_large_file(folder, options.large_videos, 1_000)


if __name__ == "__main__":
    main()
