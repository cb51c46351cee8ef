"""Table 1: the statistics that describe a long-tailed multi-label split."""

from dataclasses import asdict, dataclass

import numpy as np

from meidbench.manifests import Manifest
from meidbench.split import Split


@dataclass(frozen=True)
class Statistics:
    """Statistics of a split; counts are of videos, averages are labels per video.

    ``labels_per_video`` is over train and test together, as Table 1 of the MEID paper has it. ``imbalance_ratio`` is
    that of the most to the least frequent class of the training subset (classes without training videos left out).
    """

    dataset: str
    variant: str
    classes: int
    head: int
    medium: int
    tail: int
    train: int
    val: int
    test: int
    most_frequent: int
    least_frequent: int
    imbalance_ratio: float
    labels_per_video: float
    labels_per_video_train: float
    labels_per_video_val: float
    labels_per_video_test: float
    least_positives_val: int
    least_positives_test: int
    classes_without_train: int


def split_statistics(split: Split) -> Statistics:
    """Compute the statistics of a split (MEID, Table 1); an average over no videos is NaN."""
    videos = {subset: len(split.rows(subset)) for subset in ("train", "val", "test")}
    positives = {subset: split.positives(subset) for subset in videos}
    present = split.train_counts[split.train_counts > 0]
    most, least = (int(present.max()), int(present.min())) if len(present) else (0, 0)

    def labels_per_video(*subsets: str) -> float:
        labels = sum(int(positives[subset].sum()) for subset in subsets)
        count = sum(videos[subset] for subset in subsets)
        return labels / count if count else float("nan")

    return Statistics(
        dataset=split.dataset,
        variant=split.variant,
        classes=split.num_classes,
        head=len(split.groups.head),
        medium=len(split.groups.medium),
        tail=len(split.groups.tail),
        **videos,
        most_frequent=most,
        least_frequent=least,
        imbalance_ratio=most / least if least else float("nan"),
        labels_per_video=labels_per_video("train", "test"),
        labels_per_video_train=labels_per_video("train"),
        labels_per_video_val=labels_per_video("val"),
        labels_per_video_test=labels_per_video("test"),
        least_positives_val=int(positives["val"].min(initial=np.iinfo(np.int64).max)) if split.num_classes else 0,
        least_positives_test=int(positives["test"].min(initial=np.iinfo(np.int64).max)) if split.num_classes else 0,
        classes_without_train=int((split.train_counts == 0).sum()),
    )


def deviations(statistics: Statistics, manifest: Manifest) -> list[str]:
    """Return the statistics that differ from those measured on the published split, at its printed precision."""
    got = asdict(statistics)
    problems = []
    for name, expected in manifest.expected.items():
        digits = 1 if name == "imbalance_ratio" else 2
        if round(got[name], digits) != expected:
            problems.append(f"{name} is {round(got[name], digits):,}, the published split has {expected:,}")
    return problems
