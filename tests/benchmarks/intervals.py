"""Average precision and its intervals on drawn test sets of CharadesLT's size, beside the value on endless videos.

    python tests/benchmarks/intervals.py               # about two minutes on one core
    python tests/benchmarks/intervals.py --draws 40    # rougher

Invented classes: 157 shares of positives in geometric order, the smallest 20 of 1,012 videos and 8.09 labels per video,
as the table of sizes in docs/splits.md has them for CharadesLT's test subset. Invented scores: N(0, 1) without the
class and N(d, 1) with it, videos and classes independent. A second method has a d that is larger by 0.1, and errors
that correlate with those of the first by 0.8. Prints two Markdown tables; everything is seeded.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from meidbench.evaluation.bootstrap import bootstrap_samples, compute_interval
from meidbench.evaluation.evaluate import average_precision
from meidbench.evaluation.ranking import Positives

CLASSES, VIDEOS, LABELS, LEAST = 157, 1_012, 8.09, 20
BETTER, CORRELATION = 0.1, 0.8
SEPARATIONS = (0.74, 1.56, 2.20)  # d; the mAP is about 0.12, 0.35 and 0.60


def shares() -> np.ndarray:
    """The shares of positives of the classes, from the rarest on."""
    least = LEAST / VIDEOS
    steps = np.linspace(0, 1, CLASSES)
    factor = brentq(lambda factor: (least * factor**steps).sum() - LABELS, 1.1, 40)
    return least * factor**steps


def value_on_endless_videos(separation: float) -> float:
    """mAP on endless videos: the mean over positives of the share of positives among the videos above."""
    places = norm.ppf((np.arange(20_000) + 0.5) / 20_000)  # of positives, relative to their mean
    hits, others = norm.sf(places), norm.sf(places + separation)
    return float(np.mean([np.mean(p * hits / (p * hits + (1 - p) * others)) for p in shares()]))


def draw(generator: np.random.Generator, videos: int, separation: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """The labels of a test set in which each class occurs, and the scores of both methods."""
    while True:
        labels = generator.random((videos, CLASSES)) < shares()
        if labels.any(axis=0).all():
            break
    common, first, second = generator.standard_normal((3, videos, CLASSES))
    errors = [np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * own for own in (first, second)]
    return labels, [errors[0] + separation * labels, errors[1] + (separation + BETTER) * labels]


@dataclasses.dataclass(frozen=True)
class Draw:
    """mAP of both methods on one test set, with the low and the high end of the intervals of A and of B - A."""

    a: float
    b: float
    interval: tuple[float, float]
    of_difference: tuple[float, float]


def draws(seed: int, number: int, videos: int, separation: float, replicates: int) -> Iterator[Draw]:
    """Test sets, each with its values and intervals."""
    generator = np.random.default_rng(seed)
    for trial in range(number):
        labels, scores = draw(generator, videos, separation)
        aps = [average_precision(own, labels) for own in scores]
        a, b = (float(ap.mean()) for ap in aps)
        positives = Positives.from_pairs(*np.nonzero(labels), *labels.shape)
        samples = [
            bootstrap_samples(own, positives, ap, replicates, trial).mean(axis=1) if replicates else np.full(2, np.nan)
            for own, ap in zip(scores, aps, strict=True)
        ]
        ends = [
            dataclasses.astuple(compute_interval(samples[0])),
            tuple(np.quantile(samples[1] - samples[0], [0.025, 0.975])),
        ]
        yield Draw(a, b, *ends)


def covered(intervals: list[tuple[float, float]], value: float) -> str:
    return f"{np.mean([low <= value <= high for low, high in intervals]):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("| videos | mAP on endless videos | mean of the draws | above | B - A, endless videos | B - A of the draws |")
    print("|---|---|---|---|---|---|")
    for separation in SEPARATIONS:
        truth, better = value_on_endless_videos(separation), value_on_endless_videos(separation + BETTER)
        for videos in (VIDEOS // 4, VIDEOS, 4 * VIDEOS, 16 * VIDEOS):
            number = max(10, asked.draws * VIDEOS // max(videos, VIDEOS))
            seen = list(draws(asked.seed, number, videos, separation, 0))
            a, b = np.mean([one.a for one in seen]), np.mean([one.b for one in seen])
            print(
                f"| {videos:,} | {truth:.4f} | {a:.4f} | {a - truth:+.4f} | {better - truth:+.4f} | {b - a:+.4f} |",
                flush=True,
            )
    print()
    print(
        "| mAP on endless videos | mean mAP, 1,012 videos | half-width | intervals with the mean mAP | with that on "
        "endless videos | B - A, 1,012 videos | half-width | with the mean B - A | with that on endless videos |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for separation in SEPARATIONS:
        truth, better = value_on_endless_videos(separation), value_on_endless_videos(separation + BETTER)
        seen = list(draws(asked.seed, asked.draws, VIDEOS, separation, asked.replicates))
        a, b = np.mean([one.a for one in seen]), np.mean([one.b for one in seen])
        own, of_difference = [one.interval for one in seen], [one.of_difference for one in seen]
        half, half_difference = (np.mean([high - low for low, high in ends]) / 2 for ends in (own, of_difference))
        print(
            f"| {truth:.4f} | {a:.4f} | {half:.4f} | {covered(own, a)} | {covered(own, truth)} | {b - a:+.4f} | "
            f"{half_difference:.4f} | {covered(of_difference, b - a)} | {covered(of_difference, better - truth)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
