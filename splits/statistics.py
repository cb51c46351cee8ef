"""Table 1: the statistics that describe a long-tailed multi-label split; and the audit of a split."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meidbench.errors import write_count
from meidbench.names import SUBSETS
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.manifests import Manifest
from meidbench.splits.rows import repeated_ids
from meidbench.splits.split import Split, contradictions

FRAMES_PER_SECOND = 24.0  # of the official Charades frame folders
LEAST_FRAMES = 200  # frames per video that the MEID protocol samples


@dataclass(frozen=True)
class Statistics:
    """Statistics of a split; counts are of videos, averages are labels per video.

    ``head``, ``medium``, ``tail`` and the least positives are of the classes that have a video in any subset;
    ``classes_without_videos`` counts the others. ``head_above`` and ``tail_up_to`` are the thresholds of the groups,
    None where they are by list.
    ``labels_per_video`` is over train and test together, as in Table 1 of the MEID paper. ``imbalance_ratio`` is
    that of the most to the least frequent class of the training subset (without classes that have no training video).
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
    classes_without_videos: int
    head_above: int | None
    tail_up_to: int | None
    notes: tuple[str, ...]


def split_statistics(split: Split) -> Statistics:
    """Compute the statistics of a split (MEID, Table 1); an average over no videos is NaN."""
    videos = {subset: len(split.rows(subset)) for subset in SUBSETS}
    present = split.train_counts[split.train_counts > 0]
    most, least = (int(present.max()), int(present.min())) if len(present) else (0, 0)
    has_videos = np.sum([split.positives(subset) for subset in SUBSETS], axis=0) > 0

    def labels_per_video(*subsets: str) -> float:
        labels = sum(int(split.positives(subset).sum()) for subset in subsets)
        count = sum(videos[subset] for subset in subsets)
        return labels / count if count else float("nan")

    return Statistics(
        dataset=split.dataset,
        variant=split.variant,
        classes=split.num_classes,
        **{name: int(has_videos[getattr(split.groups, name)].sum()) for name in GROUP_NAMES},
        **videos,
        most_frequent=most,
        least_frequent=least,
        imbalance_ratio=most / least if least else float("nan"),
        labels_per_video=labels_per_video("train", "test"),
        labels_per_video_train=labels_per_video("train"),
        labels_per_video_val=labels_per_video("val"),
        labels_per_video_test=labels_per_video("test"),
        least_positives_val=min(split.positives("val")[has_videos].tolist(), default=0),
        least_positives_test=min(split.positives("test")[has_videos].tolist(), default=0),
        classes_without_train=int((split.train_counts == 0).sum()),
        classes_without_videos=int((~has_videos).sum()),
        head_above=split.metadata.head_above,
        tail_up_to=split.metadata.tail_up_to,
        notes=(*split.notes, *_describe_spans(split)),
    )


def _describe_spans(split: Split) -> list[str]:
    """Return how many samples are a part of a video, of how many videos, and how long they are."""
    if not (spans := list(split.spans.values())):
        return []
    lengths = np.array([span.length_s for span in spans])
    videos = write_count(len({span.video for span in spans}), "video")
    shown = f"{lengths.min():.1f} to {lengths.max():.1f} s long, {lengths.mean():.1f} s on average"
    return [f"{len(spans):,} of {write_count(len(split.table), 'sample')} are parts of {videos}, {shown}"]


def describe_missing_subsets(videos: Mapping[str, int], *, by_list: bool = False) -> list[str]:
    """Return what the commands do where a subset has no video; ``videos`` are counts by subset.

    ``by_list`` tells that the groups of the classes do not depend on the training videos.

    >>> describe_missing_subsets({"train": 3, "val": 0, "test": 2})
    ['no videos in val: hold out a val subset (--hold-out-val), or train with --select-on last or test']
    """
    if not videos["train"]:
        groups = "" if by_list else "every class is in the tail, and "
        return [f"no videos in train: {groups}nothing can be trained"]
    if not videos["val"] and not videos["test"]:
        return ["no videos in val and test: train, evaluate and compare refuse this split; import val or test too"]
    notes = {
        "val": "no videos in val: hold out a val subset (--hold-out-val), or train with --select-on last or test",
        "test": "no videos in test: evaluate, compare and predict take val, which also chooses the checkpoint of a run",
    }
    return [note for subset, note in notes.items() if not videos[subset]]


def deviations(statistics: Statistics, manifest: Manifest) -> list[str]:
    """Return the statistics that differ from those measured on the published split, at its printed precision."""
    got = asdict(statistics)
    problems = []
    for name, expected in manifest.expected.items():
        digits = 1 if name == "imbalance_ratio" else 2
        if round(got[name], digits) != expected:
            problems.append(f"{name} is {round(got[name], digits):,}, the published split has {expected:,}")
    return problems


@dataclass(frozen=True)
class Finding:
    """One result of the audit.

    ``check`` is the check's name, for scripts. ``severity`` is ``error`` where the split contradicts itself or its
    purpose, ``warning`` where results need care, ``not-checked`` where videos lack what the check needs. ``count`` is
    the number of videos, classes, subjects or pairs that the sentence ``what`` is about, and ``examples`` are the first
    few of them, sorted.
    """

    check: str
    severity: str
    count: int
    what: str
    examples: tuple[str, ...]


def audit_split(split: Split) -> list[Finding]:
    """Run every check on a split; the findings are errors first, and last what could not be checked.

    Read the split with ``check=False``, so that one that contradicts itself is examined too.
    """
    findings = []
    for check, find in CHECKS.items():
        severity = "error" if check in ("consistency", "duplicate-ids") else "warning"
        for what, concerned in find(split):
            if check == "consistency":
                findings.append(Finding(check, severity, 1, what, ()))
            elif concerned:
                findings.append(Finding(check, severity, len(concerned), what, tuple(sorted(concerned)[:5])))
        if check in _NEEDS:
            lacking, count_lacking = _NEEDS[check]
            if count := count_lacking(split):
                findings.append(Finding(check, "not-checked", count, lacking, ()))
    order = ("error", "warning", "not-checked")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


# Sentences, each with the videos, classes, subjects or pairs that it is about.
_Findings = list[tuple[str, list[str]]]


def _find_contradictions(split: Split) -> _Findings:
    # Repeated ids have a check of their own, and also change the digest.
    return [] if repeated_ids(split.table) else [(problem, []) for problem in contradictions(split)]


def _find_repeated(split: Split) -> _Findings:
    return [("video ids that occur more than once", repeated_ids(split.table))]


def _find_missing_classes(split: Split) -> _Findings:
    empty = [subset for subset in SUBSETS if not len(split.rows(subset))]
    present = [subset for subset in SUBSETS if subset not in empty]
    absent = {subset: np.flatnonzero(split.positives(subset) == 0).tolist() for subset in present}
    return [("subset(s) without a video", empty)] + [
        (f"class(es) without a video in {subset}", [f"{index} {split.class_names[index]}" for index in indices])
        for subset, indices in absent.items()
    ]


def _values(split: Split, column: str) -> dict[str, set[str]]:
    """Return the distinct non-empty values of a column in each subset."""
    return {subset: set(pc.unique(split.rows(subset).column(column)).to_pylist()) - {""} for subset in SUBSETS}


def _find_pair_leakage(split: Split) -> _Findings:
    pairs = _values(split, "pair_id")
    what = "groups (takes of one script, parts of one film) in both"
    findings = [(f"{what} {a} and {b}", list(pairs[a] & pairs[b])) for a, b in combinations(SUBSETS, 2)]
    twins = []
    for subset in ("val", "test"):
        members = zip(split.video_ids(subset), split.rows(subset).column("pair_id").to_pylist(), strict=True)
        twins += [video_id for video_id, pair in members if pair in pairs["train"]]
    return [*findings, ("videos of val and test with one of their group in train", twins)]


def _find_subject_overlap(split: Split) -> _Findings:
    subjects = _values(split, "subject")
    of = {subset: f"{subset} (of {len(subjects[subset])})" for subset in SUBSETS}
    pairs = combinations(SUBSETS, 2)
    return [(f"subjects in both {of[a]} and {of[b]}", list(subjects[a] & subjects[b])) for a, b in pairs]


def _find_short_videos(split: Split) -> _Findings:
    lengths = split.table.column("length_s").to_numpy().astype(np.float64)
    # Rounded, because a length is kept in single precision: 200 frames must not become 199.9999.
    short = np.round(lengths * FRAMES_PER_SECOND, 3) < LEAST_FRAMES
    ids = split.table.column("video_id").filter(pa.array(short)).to_pylist()
    return [(f"videos of fewer than {LEAST_FRAMES} frames at {FRAMES_PER_SECOND:.0f} frames per second", ids)]


def _find_unlabelled(split: Split) -> _Findings:
    empty = pc.equal(pc.list_value_length(split.table.column("labels")), 0)
    return [("videos without a label", split.table.filter(empty).column("video_id").to_pylist())]


def _find_video_overlap(split: Split) -> _Findings:
    """Find samples of one long video that overlap in time, and long videos with samples, in two subsets."""
    if not split.spans:
        return []
    samples: dict[str, list[tuple[float, float, str, str]]] = {}
    for video_id, subset in zip(
        *(split.table.column(name).to_pylist() for name in ("video_id", "subset")), strict=True
    ):
        span = split.spans.get(video_id)
        video, *times = (span.video, span.start_s, span.end_s) if span else (video_id, 0.0, math.inf)
        samples.setdefault(video, []).append((*times, video_id, subset))
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {pair: ([], []) for pair in combinations(SUBSETS, 2)}
    for video, rows in samples.items():
        for pair in found:
            in_pair = sorted(row for row in rows if row[3] in pair)
            if len({row[3] for row in in_pair}) == 2:
                found[pair][1].append(video)
                found[pair][0].extend(_overlapping(in_pair))
    return [
        finding
        for (a, b), (overlaps, videos) in found.items()
        for finding in (
            (f"pairs of samples that overlap in time within one video, one in {a} and one in {b}", overlaps),
            (f"long videos with samples in both {a} and {b}", videos),
        )
    ]


def _overlapping(rows: list[tuple[float, float, str, str]]) -> list[str]:
    """Return the pairs of two subsets that overlap in time, of samples sorted by their start."""
    found: list[str] = []
    active: list[tuple[float, float, str, str]] = []
    for row in rows:
        active = [other for other in active if other[1] > row[0]]
        found += [f"{other[2]} / {row[2]}" for other in active if other[3] != row[3]]
        active.append(row)
    return found


def _without_pair(split: Split) -> int:
    # A video may be on its own, so only a table without any pair lacks the data.
    return len(split.table) if not any(_values(split, "pair_id").values()) else 0


def _without_subject(split: Split) -> int:
    return int(pc.sum(pc.equal(split.table.column("subject"), "")).as_py() or 0)


def _without_length(split: Split) -> int:
    return int(np.isnan(split.table.column("length_s").to_numpy()).sum())


# The data that a check needs: a sentence about the videos that lack it, and their number.
_NEEDS: dict[str, tuple[str, Callable[[Split], int]]] = {
    "pair-leakage": ("videos, none with a pair_id", _without_pair),
    "subject-overlap": ("videos without a subject", _without_subject),
    "short-videos": ("videos of unknown length", _without_length),
}

CHECKS: dict[str, Callable[[Split], _Findings]] = {
    "consistency": _find_contradictions,
    "duplicate-ids": _find_repeated,
    "missing-classes": _find_missing_classes,
    "pair-leakage": _find_pair_leakage,
    "video-overlap": _find_video_overlap,
    "subject-overlap": _find_subject_overlap,
    "short-videos": _find_short_videos,
    "unlabelled-videos": _find_unlabelled,
}
