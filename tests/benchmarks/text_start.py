"""What the start from text is worth in a made-up world: zero-shot, text_adapter and classifiers that start at random.

python tests/benchmarks/text_start.py [--seeds 0 1]

The world has a long tail (60 classes, 6 to about 460 of 1,200 training videos). Each class has a direction; a frame
shows one class of its video or none, a part that all frames share, one of the video, and noise. The text vector of a
class is its direction, noise of the same length, and a part that all text shares, as in image-text models. It prints
test mAP in %, in Markdown, the mean over the seeds.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import h5py
import numpy as np

from meidbench.baselines import resolve, train
from meidbench.baselines.class_text import ClassText
from meidbench.baselines.zero_shot import score_zero_shot
from meidbench.evaluation.evaluate import evaluate_scores
from meidbench.features import open_features
from meidbench.features.simulation import simulate_split
from meidbench.names import SUBSETS

WIDTH, FRAMES, CLASSES = 128, 8, 60
SETTINGS = (f"frames.train={FRAMES}", f"frames.test={FRAMES}", "schedule.batch_size=128", "schedule.epochs=30",
            "schedule.milestones=[10,20]", "selection.every=5", "execution.device=cpu")  # fmt: skip
# Rows of the table: method, aggregator, settings.
VARIANTS = {
    "`bce`, mean, lr 0.01": ("bce", "mean", ("schedule.lr=0.01",)),
    "`linear_probe`": ("linear_probe", None, ()),
    "`text_adapter`": ("text_adapter", None, ()),
    "lr 0.0001": ("text_adapter", None, ("schedule.lr=0.0001",)),
    "lr 0.003": ("text_adapter", None, ("schedule.lr=0.003",)),
    "lr 0.01": ("text_adapter", None, ("schedule.lr=0.01",)),
    "`start_bias=text`": ("text_adapter", None, ("model.start_bias=text",)),
    "`loss.name=class_balanced`": ("text_adapter", None, ("loss.name=class_balanced",)),
    "`loss.name=logit_adjusted`": ("text_adapter", None, ("loss.name=logit_adjusted",)),
    "`sampler.name=repeat_factor`": ("text_adapter", None, ("sampler.name=repeat_factor",)),
    "`sampler.name=class_aware`, 1,200 draws per epoch": (
        "text_adapter", None, ("sampler.name=class_aware", "sampler.samples_per_epoch=1200")),
    "`sampler.name=class_balanced`, masked": (
        "text_adapter", None, ("sampler.name=class_balanced", "mask_other_labels=true")),
}  # fmt: skip


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_world(folder: Path, seed: int):
    """Return a split, its features and the text of its classes."""
    split = simulate_split((1200, 300, 500), num_classes=CLASSES, seed=seed)
    draw = np.random.default_rng(seed)
    shared, shared_text, classes = (unit(draw.normal(size=shape)) for shape in (WIDTH, WIDTH, (CLASSES, WIDTH)))
    noise = 1 / np.sqrt(WIDTH)  # a vector of this deviation has the length 1
    with h5py.File(folder / "features.h5", "w") as file:
        for subset in SUBSETS:
            for video_id, labels in zip(split.video_ids(subset), split.labels(subset), strict=True):
                own, shown = noise * draw.normal(size=WIDTH), np.flatnonzero(labels)
                rows = 2 * shared + own + noise * draw.normal(size=(FRAMES, WIDTH))
                for frame in np.flatnonzero(draw.random(FRAMES) < 0.6):
                    rows[frame] += classes[draw.choice(shown)]
                file[video_id] = rows.astype(np.float16)
    vectors = classes + noise * draw.normal(size=classes.shape) + 1.5 * shared_text
    text = ClassText(vectors, 100.0, 0.0, split.class_names)
    text.write(folder / "text.npz")
    return split, open_features(folder / "features.h5"), text


def measure(seed: int) -> dict[str, np.ndarray]:
    """Return the test mAP of each row, in %: overall, head, medium, tail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split, features, text = make_world(folder, seed)
        scores = score_zero_shot(split, "test", features, text)
        found = {"`zero-shot`": evaluate_scores(scores, split, "test").mAP}
        for number, (row, (method, aggregator, settings)) in enumerate(VARIANTS.items()):
            named = (f"model.text={folder / 'text.npz'}",) if method == "text_adapter" else ()
            config = resolve(method, split, aggregator=aggregator, settings=[*SETTINGS, *named, *settings])
            found[row] = train(split, features, config, folder / str(number), check="none").mAP["test"]
    return {row: 100 * np.array(dataclasses.astuple(means)) for row, means in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    measured = [measure(seed) for seed in parser.parse_args().seeds]
    print("| made-up world, mAP in % | overall | head | medium | tail |\n|---|---|---|---|---|")
    for row in measured[0]:
        print(
            "| "
            + " | ".join([row, *(f"{value:.2f}" for value in np.mean([of[row] for of in measured], axis=0))])
            + " |"
        )


if __name__ == "__main__":
    main()
