"""An invented long-tailed split, for trying the whole way without any dataset."""

import numpy as np
import numpy.typing as npt

from meidbench.annotations import Annotations
from meidbench.errors import SplitError
from meidbench.manifests import SUBSETS
from meidbench.split import Split

DATASET = "simulatedlt"

_LABELS = 5.0  # a video beyond the first, on average
_LEAST_POSITIVES = 4  # of a class in a subset that is evaluated on
_SECONDS = (20.0, 40.0)  # of a video
_SHARE = (0.1, 0.5)  # of a video that a segment takes
# The most frequent class is as many times as frequent as the rarest; val and test are drawn towards uniform.
_IMBALANCE = 80.0
_EVALUATED_POWER = 0.5


def simulate_split(
    videos: tuple[int, int, int] = (1200, 200, 400),
    num_classes: int = 60,
    *,
    head_above: int = 100,
    tail_up_to: int = 20,
    seed: int = 0,
) -> Split:
    """Draw a split with Pareto-like class frequencies, several labels a video and temporal segments.

    Parameters
    ----------
    videos : (int, int, int)
        Of train, val and test, at least 1 each.
    num_classes : int
        C, at least 3.
    head_above, tail_up_to : int
        Thresholds of the groups, in training videos of a class.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    Split
        Of the dataset ``simulatedlt``, variant ``simulated``. Nothing in it is real.

    Raises
    ------
    SplitError
        A number is too small.

    Examples
    --------
    >>> split = simulate_split((300, 40, 60), num_classes=20, head_above=50, tail_up_to=15)
    >>> split
    <Split simulatedlt (simulated): 300 / 40 / 60 videos, 20 classes>
    >>> int(split.positives("test").min()) >= 4
    True
    """
    if num_classes < 3 or min(videos) < 1:
        raise SplitError(f"a split needs 3 classes and 1 video a subset at least, got {num_classes} and {videos}")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    rarity = np.linspace(0, 1, num_classes)
    weights = _IMBALANCE**-rarity
    annotations = Annotations(class_names=tuple(f"class {index:03d}" for index in range(num_classes)))
    placed: list[str] = []
    for subset, count in zip(SUBSETS, videos, strict=True):
        labels = _draw_labels(
            generator, weights if subset == "train" else weights**_EVALUATED_POWER, count,
            1 if subset == "train" else _LEAST_POSITIVES,
        )  # fmt: skip
        for position, row in enumerate(labels):
            length = generator.uniform(*_SECONDS)
            classes = generator.permutation(np.flatnonzero(row)).tolist()
            segments = []
            for label in classes:
                share = generator.uniform(*_SHARE)
                start = generator.uniform(0, 1 - share) * length
                segments.append((label, round(start, 2), round(start + share * length, 2)))
            annotations.video_ids.append(f"{subset}{position:05d}")
            annotations.sources.append(subset)
            annotations.labels.append(tuple(classes))
            annotations.lengths.append(round(length, 2))
            annotations.segments.append(tuple(segments))
            annotations.subjects.append("")
            annotations.views.append("")
            annotations.pair_ids.append("")
            placed.append(subset)
    return Split.from_annotations(
        annotations,
        placed,
        dataset=DATASET,
        variant="simulated",
        seed=seed,
        head_above=head_above,
        tail_up_to=tail_up_to,
    )


def _draw_labels(
    generator: np.random.Generator, weights: npt.NDArray[np.float64], videos: int, least: int
) -> npt.NDArray[np.bool_]:
    """Draw a (videos, C) label matrix: classes by weight without replacement, each class ``least`` times at least."""
    wanted = np.minimum(1 + generator.poisson(_LABELS, videos), len(weights))
    # The k largest of log-weight plus Gumbel noise are a draw without replacement.
    keys = np.log(weights) + generator.gumbel(size=(videos, len(weights)))
    ranks = np.argsort(np.argsort(-keys, axis=1), axis=1)
    labels: npt.NDArray[np.bool_] = ranks < wanted[:, None]
    for label in np.flatnonzero(labels.sum(axis=0) < min(least, videos)):
        absent = np.flatnonzero(~labels[:, label])
        missing = min(least, videos) - int(labels[:, label].sum())
        labels[generator.choice(absent, missing, replace=False), label] = True
    return labels
