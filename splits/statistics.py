"""Table 1: the statistics that describe a long-tailed multi-label split."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meidbench.splits.manifests import SUBSETS, Manifest
from meidbench.splits.split import Split, contradictions, repeated_ids


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


FRAMES_PER_SECOND = 24.0  # of the official Charades frame folders
LEAST_FRAMES = 200  # frames a video that the MEID protocol samples


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    check : str
        The check's name, for scripts.
    severity : str
        ``error`` where the split contradicts itself or its purpose, ``warning`` where results should be read with care.
    count : int
        How many videos, classes, subjects or pairs.
    what : str
        A sentence.
    examples : tuple of str
        The first few concerned, sorted.
    """

    check: str
    severity: str
    count: int
    what: str
    examples: tuple[str, ...]


def audit_split(split: Split) -> list[Finding]:
    """Run every check on a split.

    Parameters
    ----------
    split : Split
        Read with ``check=False``, so that one that contradicts itself is examined too.

    Returns
    -------
    list of Finding
        Errors first; empty where nothing was found.
    """
    findings = [finding for check in CHECKS.values() for finding in check(split)]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _finding(check: str, severity: str, what: str, concerned: list[str]) -> list[Finding]:
    if not concerned:
        return []
    return [Finding(check, severity, len(concerned), what, tuple(sorted(concerned)[:5]))]


def _contradictions(split: Split) -> list[Finding]:
    # Ids that occur twice have a check of their own, and would show in the digest as well.
    found = [] if repeated_ids(split.table) else contradictions(split.table, split.metadata)
    return [Finding("consistency", "error", 1, problem, ()) for problem in found]


def _repeated(split: Split) -> list[Finding]:
    return _finding("duplicate-ids", "error", "video ids that occur more than once", repeated_ids(split.table))


def _missing_classes(split: Split) -> list[Finding]:
    findings = []
    for subset in SUBSETS:
        absent = [f"{index} {split.class_names[index]}" for index in np.flatnonzero(split.positives(subset) == 0)]
        findings += _finding("missing-classes", "warning", f"class(es) without a video in {subset}", absent)
    return findings


def _shared(split: Split, column: str) -> dict[tuple[str, str], list[str]]:
    """Return the non-empty values of a column that two subsets have in common, by pair of subsets."""
    values = {subset: set(pc.unique(split.rows(subset).column(column)).to_pylist()) - {""} for subset in SUBSETS}
    return {(a, b): sorted(values[a] & values[b]) for a, b in combinations(SUBSETS, 2)}


def _pair_leakage(split: Split) -> list[Finding]:
    findings = []
    for (a, b), pairs in _shared(split, "pair_id").items():
        findings += _finding(
            "pair-leakage", "warning", f"groups (takes of one script, parts of one film) in both {a} and {b}", pairs
        )
    train = set(split.rows("train").column("pair_id").to_pylist()) - {""}
    twins = []
    for subset in ("val", "test"):
        rows = split.rows(subset)
        taken = zip(rows.column("video_id").to_pylist(), rows.column("pair_id").to_pylist(), strict=True)
        twins += [video_id for video_id, pair in taken if pair in train]
    return findings + _finding(
        "pair-leakage", "warning", "videos of val and test with one of their group in train", twins
    )


def _subject_overlap(split: Split) -> list[Finding]:
    sizes = {subset: len(set(split.rows(subset).column("subject").to_pylist()) - {""}) for subset in SUBSETS}
    findings = []
    for (a, b), subjects in _shared(split, "subject").items():
        findings += _finding(
            "subject-overlap",
            "warning",
            f"subjects in both {a} (of {sizes[a]}) and {b} (of {sizes[b]})",
            subjects,
        )
    return findings


def _short_videos(split: Split) -> list[Finding]:
    lengths = split.table.column("length_s").to_numpy().astype(np.float64)
    # Rounded, because a length is kept in single precision: 200 frames must not become 199.9999.
    short = np.round(lengths * FRAMES_PER_SECOND, 3) < LEAST_FRAMES
    ids = split.table.column("video_id").filter(pa.array(short)).to_pylist()
    what = f"videos of fewer than {LEAST_FRAMES} frames at {FRAMES_PER_SECOND:.0f} frames a second"
    return _finding("short-videos", "warning", what, ids)


def _unlabelled(split: Split) -> list[Finding]:
    empty = pc.equal(pc.list_value_length(split.table.column("labels")), 0)
    ids = split.table.filter(empty).column("video_id").to_pylist()
    return _finding("unlabelled-videos", "warning", "videos without a label", ids)


CHECKS: dict[str, Callable[[Split], list[Finding]]] = {
    "consistency": _contradictions,
    "duplicate-ids": _repeated,
    "missing-classes": _missing_classes,
    "pair-leakage": _pair_leakage,
    "subject-overlap": _subject_overlap,
    "short-videos": _short_videos,
    "unlabelled-videos": _unlabelled,
}
