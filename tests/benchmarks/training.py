"""An epoch of FrameStack in VideoLT's public code and in this project, on the same videos in one run.

    python tests/benchmarks/training.py                      # 1,000 videos of 150 x 2048; 1.9 GB on disk, some minutes
    python tests/benchmarks/training.py --videos 20000 --device cuda --folder DIR

The head is ``nonlinear``, with 60 random frames per video and batches of 128. Prints Markdown tables: the seconds of an
epoch, as the median over epochs in which all programs take turns, so that a slow minute slows all of them; and the
seconds of its parts. Validation, start-up and the first epoch of each, in which nothing is mixed, are left out. On CUDA
it also computes the time of an epoch of all training videos of VideoLT with features that stay on the device.

Small operations in several threads wait for one another: where other programs use the same cores, the loop over the
videos of a batch then seems up to a hundred times slower than it is. Set OMP_NUM_THREADS=1 to measure it without this.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

VIDEOLT, LABELS = 179_334, 1.1  # training videos, and labels of each
STORED_ROWS, ROWS, BATCH_SIZE = 150, 60, 128
SCORED = 2  # videos in each of the other subsets, which a run needs

WAIT, MIX, FORWARD, BACKWARD, STEP = "waiting for batches", "FrameStack", "forward", "backward", "clip, Adam"
SECOND, GATHER, RANK, SAVE = "second forward", "gathering scores", "AP of the classes", "checkpoint"
PARTS = (WAIT, MIX, FORWARD, BACKWARD, STEP, SECOND, GATHER, RANK, SAVE)
MEIDBENCH = "meidbench, packed float16"


class Clock:
    """Seconds of the parts of an epoch.

    To time each part, the program must wait for a CUDA device, which slows the epoch: there only parts that start and
    end with an idle device are timed, unless ``each`` is set.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.each = device.type == "cpu"
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if not (self.each or name in (RANK, SAVE)):
            yield
            return
        begin = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - begin

    def taken(self) -> dict[str, float]:
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


class WholeFiles(Dataset):
    """Reads the whole file of a video and takes some rows; the labels are a sum of rows of a unit matrix."""

    def __init__(self, folder: Path, ids: list[str], labels: np.ndarray) -> None:
        self.folder, self.ids = folder, ids
        self.classes = [np.flatnonzero(row).tolist() for row in labels]
        self.units = np.eye(labels.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int):
        features = np.load(self.folder / f"{self.ids[index]}.npy")
        chosen = np.sort(np.random.randint(len(features), size=ROWS))  # noqa: NPY002
        return self.ids[index], features[chosen], self.units[self.classes[index]].sum(axis=0)


class EachFrame(nn.Module):
    """The nonlinear head with the last layer on each frame; scores, and logits."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.hidden, self.drop, self.last = nn.Linear(dim, dim), nn.Dropout(0.5), nn.Linear(dim, num_classes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.last(self.drop(torch.relu(self.hidden(features)))).mean(dim=1)
        return torch.sigmoid(logits), logits


def stack_one_by_one(features: torch.Tensor, targets: torch.Tensor, class_ap: torch.Tensor):
    """FrameStack with a loop over the videos; each asks the device for its number of frames."""
    order = torch.randperm(len(features), device=features.device)
    others, other_targets = features[order], targets[order]
    ease = (targets * class_ap.to(targets.device)).mean(dim=1)
    other_ease = ease[order]
    clips, labels = [], []
    for video in range(len(features)):
        both = ease[video] + other_ease[video]
        share = 0.5 if both < 1e-5 else ease[video] / both
        given = int(share * ROWS)
        from_other = np.linspace(0, ROWS - 1, given).astype(int)
        from_own = np.linspace(0, ROWS - 1, ROWS - given).astype(int)
        clips.append(torch.cat([others[video][from_other], features[video][from_own]]))
        labels.append(targets[video] * (1 - share) + other_targets[video] * share)
    return torch.stack(clips), torch.stack(labels)


def precision_by_class(scores: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Average precision as torchnet's meter computes it: a sort and a cumulative sum for each class."""
    ranks = torch.arange(1, len(scores) + 1).float()
    result = torch.zeros(scores.shape[1])
    for c in range(scores.shape[1]):
        truth = truths[:, c][torch.sort(scores[:, c], descending=True).indices]
        precision = truth.float().cumsum(0) / ranks
        result[c] = precision[truth.bool()].sum() / max(float(truth.sum()), 1)
    return result


class Public:
    """Training as in VideoLT's ``dy_main.py``, with its script's loss; accuracies and prints are left out."""

    def __init__(self, data: WholeFiles, dim: int, clock: Clock) -> None:
        self.data, self.clock = data, clock
        self.model = EachFrame(dim, data.units.shape[0]).to(clock.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.class_ap: torch.Tensor | None = None

    def epoch(self, workers: int) -> None:
        part, device = self.clock.part, self.clock.device
        loader = DataLoader(self.data, BATCH_SIZE, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda")
        self.model.train()
        scores, truths, class_ap, losses = [], [], self.class_ap, 0.0
        with part(WAIT):
            batches = iter(loader)
        while True:
            with part(WAIT):
                try:
                    _, features, labels = next(batches)
                except StopIteration:
                    break
                features, labels = features.to(device), labels.float().to(device, non_blocking=True)
            mixed, targets = features, labels
            if class_ap is not None:
                with part(MIX):
                    half = len(features) // 2
                    mixed, targets = stack_one_by_one(features[:half], labels[:half], class_ap)
                    mixed, targets = torch.cat([mixed, features[half:]]), torch.cat([targets, labels[half:]])
            with part(FORWARD):
                _, logits = self.model(mixed)
            entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            loss = ((1 - torch.exp(-entropy)) * entropy).mean()
            losses += loss.item()
            with part(SECOND), torch.no_grad():
                said, _ = self.model(features)
            with part(GATHER):
                scores.append(said.cpu())
                truths.append(labels.cpu().long())
            loss.backward()
            with part(STEP):
                nn.utils.clip_grad_norm_(self.model.parameters(), 20)
                self.optimiser.step()
                self.optimiser.zero_grad()
        with part(RANK):
            gathered, truth = torch.cat(scores), torch.cat(truths)
            # Twice: once for the next epoch, once for the mean that is printed.
            self.class_ap, _ = precision_by_class(gathered, truth), precision_by_class(gathered, truth).mean()


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Time the functions of this training; ``backward`` is torch's, and timed in the other program as well."""
    from meidbench.baselines.aggregators.pooling import Nonlinear
    from meidbench.baselines.augmentation import FrameStack
    from meidbench.baselines.learner import Learner
    from meidbench.baselines.running_ap import RunningAveragePrecision
    from meidbench.loading.batches import Prefetcher

    def timed(function: Callable, name: str) -> Callable:
        def run(*arguments, **named):
            with clock.part(name):
                return function(*arguments, **named)

        return run

    with ExitStack() as stack:
        for owner, method, name in (
            (Prefetcher, "__next__", WAIT),
            (FrameStack, "__call__", MIX),
            (Nonlinear, "forward", FORWARD),
            (torch.Tensor, "backward", BACKWARD),
            (Learner, "step", STEP),
            (RunningAveragePrecision, "add", GATHER),
            (RunningAveragePrecision, "finish_epoch", RANK),
            (Learner, "save", SAVE),
        ):
            stack.enter_context(patch.object(owner, method, timed(getattr(owner, method), name)))
        yield


class EnoughError(Exception):
    """Ends the training before it scores videos after its last epoch."""


Epochs = dict[str, list[tuple[float, dict[str, float]]]]


def measure(folder: Path, split, options: argparse.Namespace) -> tuple[Epochs, Epochs]:
    """Seconds of each epoch and of its parts; on CUDA the parts are those of an epoch of its own."""
    from meidbench.baselines import resolve, train

    clock = Clock(device := torch.device(options.device))
    files = WholeFiles(folder / "npy", split.video_ids("train"), split.labels("train"))
    torch.manual_seed(0)
    public = Public(files, options.dim, clock)
    settings = [
        f"frames.train={ROWS}", f"frames.test={ROWS}", f"schedule.batch_size={BATCH_SIZE}",
        f"schedule.epochs={options.repeat + 9}", "selection.every=1000000", "execution.checkpoint_minutes=none",
        f"execution.device={options.device}",
        f"execution.resident={'always' if device.type == 'cuda' else 'never'}", *options.settings,
    ]  # fmt: skip
    config = resolve("framestack", split, aggregator="nonlinear", settings=settings)
    whole: Epochs = defaultdict(list)
    parts = whole if clock.each else defaultdict(list)
    began: float | None = None

    def end_of_epoch(line: str) -> None:
        """Run the other programs between two epochs of this one, after its start-up."""
        nonlocal began
        if not re.match(r"epoch \d", line):
            return
        ended = clock.now()
        rows = parts if clock.each else whole
        if began is None:
            public.epoch(max(options.workers))
            clock.taken()
        else:
            rows[MEIDBENCH].append((ended - began, clock.taken()))
            if len(whole[MEIDBENCH]) == options.repeat:
                if clock.each:
                    raise EnoughError
                clock.each, rows = True, parts
        for workers in options.workers:
            begin = clock.now()
            public.epoch(workers)
            rows[f"as VideoLT's, {workers} workers"].append((clock.now() - begin, clock.taken()))
        began = clock.now()

    with watched(clock), suppress(EnoughError):
        train(split, folder / "packed.h5", config, folder / "run", report=end_of_epoch)
    return whole, parts


def make_split(videos: int, classes: int):
    """Labels with a long tail, 1.1 per video; almost all videos are for training."""
    from meidbench.annotations import Annotations
    from meidbench.splits.split import Split

    generator = np.random.default_rng(0)
    count = videos + 2 * SCORED
    frequency = 1 / np.arange(1, classes + 1) ** 0.6
    drawn = generator.choice(classes, (count, 2), p=frequency / frequency.sum()).tolist()
    second = generator.random(count) < LABELS - 1
    annotations = Annotations(
        class_names=tuple(f"c{c:04d}" for c in range(classes)),
        video_ids=[f"v{number:06d}" for number in range(count)],
        sources=[""] * count,
        labels=[tuple(sorted(set(pair if more else pair[:1]))) for pair, more in zip(drawn, second, strict=True)],
        lengths=[float("nan")] * count,
        subjects=[""] * count,
        views=[""] * count,
        pair_ids=[""] * count,
        segments=[()] * count,
    )
    subsets = ["train"] * videos + ["val"] * SCORED + ["test"] * SCORED
    return Split.from_annotations(annotations, subsets, dataset="made", variant="table", head_above=500, tail_up_to=100)


def write_features(folder: Path, split, dim: int) -> None:
    """Write a folder of float32 .npy of the training videos, and all videos as a packed float16 file."""
    from meidbench.features.feature_file import Layout
    from meidbench.features.records import VideoRows
    from meidbench.features.store import feature_writer

    generator = np.random.default_rng(0)
    values = np.abs(generator.standard_normal((STORED_ROWS * 8, dim), dtype=np.float32)).astype(np.float16)
    (folder / "npy").mkdir()
    ids = [video_id for subset in ("train", "val", "test") for video_id in split.video_ids(subset)]
    training = set(split.video_ids("train"))
    counts = np.full(len(ids), STORED_ROWS)
    layout = Layout(tuple(ids), counts, True, dim, "float16", False, np.zeros(len(ids), np.int64))
    with feature_writer(folder / "packed.h5", layout, {"made": "for a benchmark"}) as writer:
        for position, video_id in enumerate(ids):
            rows = np.roll(values, position, 0)[:STORED_ROWS]
            writer.put(position, VideoRows(rows))
            if video_id in training:
                np.save(folder / "npy" / f"{video_id}.npy", rows.astype(np.float32))
        writer.finish()


def ranking_seconds(classes: int) -> float:
    """Seconds of the running average precision after an epoch of VideoLT, half of whose videos are unmixed."""
    from meidbench.baselines.running_ap import RunningAveragePrecision

    generator = torch.Generator().manual_seed(0)
    running = RunningAveragePrecision(classes)
    for size in [4096] * (VIDEOLT // 2 // 4096) + [VIDEOLT // 2 % 4096]:
        labels = torch.rand((size, classes), generator=generator) < LABELS / classes
        running.add(torch.randn((size, classes), generator=generator), labels)
    begin = time.perf_counter()
    running.finish_epoch()
    return time.perf_counter() - begin


def table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def show(whole: Epochs, parts: Epochs, options: argparse.Namespace) -> None:
    median = {name: statistics.median(seconds for seconds, _ in epochs) for name, epochs in whole.items()}
    fastest = min(seconds for name, seconds in median.items() if name != MEIDBENCH)
    order = [*(name for name in median if name != MEIDBENCH), MEIDBENCH]
    table(
        [f"an epoch, on {options.device}", "seconds (median)", "least to most", "videos per second", "to the faster"],
        [
            [name, f"{median[name]:.2f}", f"{min(whole[name])[0]:.2f} to {max(whole[name])[0]:.2f}",
             f"{options.videos / median[name]:,.0f}", f"{median[name] / fastest:.2f}"]
            for name in order
        ],
    )  # fmt: skip
    within = []
    for part in (*PARTS, "all else"):
        cells = []
        for name in order:
            values = [
                seconds - sum(taken.values()) if part == "all else" else taken.get(part, 0.0)
                for seconds, taken in parts[name]
            ]
            cells.append(f"{statistics.median(values):.2f}" if any(values) else "-")
        within.append([part, *cells])
    title = "seconds (medians)" if whole is parts else "seconds of an epoch that waits for the device at each part"
    table([title, *order], within)


def show_videolt(whole: Epochs, options: argparse.Namespace) -> None:
    """Scale the training by the number of videos, measure the ranking, and keep the time of a checkpoint."""
    alone = statistics.median(seconds - taken[RANK] - taken[SAVE] for seconds, taken in whole[MEIDBENCH])
    speed, saving = options.videos / alone, statistics.median(taken[SAVE] for _, taken in whole[MEIDBENCH])
    training, ranking = VIDEOLT / speed, ranking_seconds(options.classes)
    seconds = (training, ranking, saving, training + ranking + saving)
    table(
        ["meidbench, features on the device", "videos per second", "training", RANK, SAVE, "epoch"],
        [[f"{VIDEOLT:,} videos, computed", f"{speed:,.0f}", *(f"{part:.1f} s" for part in seconds)]],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=2_048)
    parser.add_argument("--classes", type=int, default=1_004)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", "--epochs", type=int, default=3, help="timed epochs of each")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader, one after another")
    parser.add_argument("--folder", type=Path, help="where the features are written and removed again")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="of the configuration of meidbench")
    options = parser.parse_args()
    split = make_split(options.videos, options.classes)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        write_features(Path(name), split, options.dim)
        print(
            f"{options.videos:,} videos of {STORED_ROWS} x {options.dim}, {ROWS} rows of each, batches of "
            f"{BATCH_SIZE}, {options.classes:,} classes, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        )
        whole, parts = measure(Path(name), split, options)
    show(whole, parts, options)
    if options.device.startswith("cuda"):
        show_videolt(whole, options)


if __name__ == "__main__":
    main()
