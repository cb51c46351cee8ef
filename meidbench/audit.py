"""What a reader of results should know of a split: leakage between subsets, gaps and inconsistencies."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meidbench.manifests import SUBSETS
from meidbench.split import Split
from meidbench.split_file import contradictions, repeated_ids

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
