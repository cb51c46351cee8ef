"""Exact splits: every number that was asked for, counted independently, or the reason for a refusal."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import real_annotations
from test_construction import counted, invented, official_labels, official_rows, sets_of, table

from meidbench.construction import EXACT_PRESETS, ExactTargets, construct_exactly
from meidbench.errors import SplitError
from meidbench.names import SUBSETS
from meidbench.splits.manifests import load_manifest
from meidbench.splits.statistics import audit_split

SMALL = ExactTargets(
    train_videos=90, head=3, medium=5, tail=4, most_frequent=40, least_frequent=4, labels=230,
    head_above=25, tail_up_to=8, test_positives=5, val_positives=3, test_videos=80, val_videos=50,
)  # fmt: skip


def facts(split, labels_of) -> dict:
    """Count the numbers that ``ExactTargets`` prescribes."""
    counts = counted(split, labels_of)
    classes = range(split.num_classes)
    train = [counts["train"][index] for index in classes]
    above, up_to = split.metadata.head_above, split.metadata.tail_up_to
    return {
        "train_videos": len(split.video_ids("train")),
        "head": sum(count > above for count in train),
        "medium": sum(up_to < count <= above for count in train),
        "tail": sum(count <= up_to for count in train),
        "most_frequent": max(train),
        "least_frequent": min(train),
        "labels": sum(train),
        "test_videos": len(split.video_ids("test")),
        "val_videos": len(split.video_ids("val")),
        "test_positives": min(counts["test"][index] for index in classes),
        "val_positives": min(counts["val"][index] for index in classes),
    }


def assert_met(split, labels_of, targets) -> None:
    found = facts(split, labels_of)
    for name, value in found.items():
        asked = getattr(targets, name)
        if name.endswith("positives"):
            assert value >= asked, name
        elif asked is not None:
            assert value == asked, name


def test_every_number_is_met():
    annotations = invented()
    labels_of = dict(zip(annotations.video_ids, annotations.labels, strict=True))
    digests = set()
    for seed in range(3):
        split = construct_exactly(annotations, SMALL, dataset="invented", seed=seed).split
        assert (split.variant, split.metadata.seed) == ("exact", seed)
        assert_met(split, labels_of, SMALL)
        digests.add(split.digest)
    assert len(digests) == 3
    again = construct_exactly(annotations, SMALL, dataset="invented", seed=2).split
    assert again.digest == split.digest


def test_the_order_of_rows_makes_no_difference():
    annotations = invented()
    columns = ("video_ids", "sources", "labels", "lengths", "subjects", "views", "pair_ids", "segments")
    moved = replace(annotations, **{name: getattr(annotations, name)[::-1] for name in columns})
    splits = [construct_exactly(each, SMALL, dataset="invented", seed=0).split for each in (annotations, moved)]
    assert sets_of(splits[0]) == sets_of(splits[1])


def test_groups_stay_together():
    annotations = invented()
    labels_of = dict(zip(annotations.video_ids, annotations.labels, strict=True))
    targets = replace(SMALL, group_by=("pair", "subject"), test_videos=None, val_videos=None, test_positives=3)
    targets = replace(targets, val_positives=2)
    annotations.subjects = [f"s{row // 6}" for row in range(len(annotations.video_ids))]
    split = construct_exactly(annotations, targets, dataset="invented", seed=0).split
    assert_met(split, labels_of, targets)
    subject_of = dict(zip(annotations.video_ids, annotations.subjects, strict=True))
    seen = [{subject_of[video] for video in split.video_ids(subset)} for subset in SUBSETS]
    assert not any(a & b for a, b in combinations(seen, 2))


# --- against all subsets of a few videos ------------------------------------------------------------------------


def possible(labels, targets) -> bool:
    """Try every possible training subset."""
    for chosen in combinations(range(len(labels)), targets.train_videos):
        counts = Counter(index for row in chosen for index in labels[row])
        train = [counts[index] for index in range(3)]
        groups = (
            sum(count > targets.head_above for count in train),
            sum(targets.tail_up_to < count <= targets.head_above for count in train),
            sum(count <= targets.tail_up_to for count in train),
        )
        if (
            groups == (targets.head, targets.medium, targets.tail)
            and (max(train), min(train)) == (targets.most_frequent, targets.least_frequent)
            and targets.labels in (None, sum(train))
        ):
            return True
    return False


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=6, max_size=9),
    videos=st.integers(2, 6),
    most=st.integers(2, 5),
    least=st.integers(1, 3),
    total=st.none() | st.integers(4, 10),
)
def test_it_finds_a_split_exactly_where_there_is_one(labels, videos, most, least, total):
    try:
        targets = ExactTargets(videos, 1, 1, 1, most, least, 3, 1, total, 0, 0)
    except SplitError:
        return
    annotations = table([sorted(row) for row in labels], num_classes=3)
    try:
        split = construct_exactly(annotations, targets, dataset="tiny", seed=0).split
    except SplitError as error:
        assert not possible(labels, targets), str(error)
        assert "can be met" in str(error) or "too few" in str(error)
    else:
        assert_met(split, dict(zip(annotations.video_ids, annotations.labels, strict=True)), targets)


# --- numbers that cannot be met ---------------------------------------------------------------------------------


def test_the_nearest_number_is_named():
    # Ten videos of class 0 alone, six of class 1 alone: no more than sixteen, and one label each.
    annotations = table([(0,)] * 10 + [(1,)] * 6)
    targets = ExactTargets(12, 1, 0, 1, 9, 3, 5, 4, 12, 0, 0)
    assert (
        facts(
            construct_exactly(annotations, targets, dataset="two", seed=0).split,
            dict(zip(annotations.video_ids, annotations.labels, strict=True)),
        )["train_videos"]
        == 12
    )
    with pytest.raises(SplitError, match="labels 13: 12 can be met"):
        construct_exactly(annotations, replace(targets, labels=13), dataset="two", seed=0)
    with pytest.raises(SplitError, match="most_frequent 11: 10 can be met"):
        construct_exactly(
            annotations, replace(targets, train_videos=13, labels=None, most_frequent=11), dataset="two", seed=0
        )
    with pytest.raises(
        SplitError, match=r"test_positives 4 .* too few .* class 0 'class 0' \(10 candidates, 3 too few\), 1 "
    ):
        construct_exactly(annotations, replace(targets, test_positives=4), dataset="two", seed=0)


def test_a_head_that_is_too_large():
    annotations = table([(index,) for index in range(4) for _ in range(20 if index < 2 else 6)])
    targets = ExactTargets(36, 3, 0, 1, 15, 2, 8, 5, None, 0, 0)
    with pytest.raises(SplitError, match="head 3: 2 can be met"):
        construct_exactly(annotations, targets, dataset="four", seed=0)


@pytest.mark.parametrize("change, message", [
    ({"head": 0}, "most_frequent 40 lies in a group that must have no class"),
    ({"tail": 0}, "least_frequent 4 lies in a group"),
    ({"most_frequent": 20}, "no class can be in the head"),
    ({"labels": 5000}, "labels 5,000 cannot come from groups that hold"),
    ({"train_videos": 39, "labels": None}, "most_frequent 40 exceeds train_videos 39"),
    ({"train_videos": 0}, "train_videos must be a whole number from 1"),
    ({"head": -3}, "head must be a whole number"),
    ({"head": 0, "medium": 0, "tail": 0}, "hold no class"),
    ({"head": 1, "medium": 0, "tail": 0, "least_frequent": 30, "labels": None}, "a single class"),
])  # fmt: skip
def test_numbers_that_contradict_one_another(change, message):
    with pytest.raises(SplitError, match=message):
        replace(SMALL, **change)


def test_what_is_refused_before_solving():
    with pytest.raises(SplitError, match="13 classes together; invented has 12"):
        construct_exactly(invented(), replace(SMALL, medium=6), dataset="invented", seed=0)
    with pytest.raises(SplitError, match="nothing to draw"):
        construct_exactly(table([], num_classes=12), SMALL, dataset="none", seed=0)
    with pytest.raises(SplitError, match="time_limit_s"):
        construct_exactly(invented(), SMALL, dataset="invented", seed=0, time_limit_s=0)


def test_one_class_and_one_video():
    one = ExactTargets(1, 0, 0, 1, 1, 1, 5, 2, 1, 0, 0)
    assert construct_exactly(table([(0,)]), one, dataset="one", seed=0).split.video_ids("train") == ["v00000"]


# --- the real annotations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", list(EXACT_PRESETS))
def test_the_published_numbers_are_met(dataset):
    annotations = real_annotations(dataset)
    labels_of = official_labels(official_rows(dataset))
    manifest, targets = load_manifest(dataset), EXACT_PRESETS[dataset]
    for name in ("head", "medium", "tail", "most_frequent", "least_frequent"):
        assert getattr(targets, name) == manifest.expected.get(name, manifest.paper.get(name))
    splits = [construct_exactly(annotations, targets, dataset=dataset, seed=seed).split for seed in range(2)]
    for split in splits:
        assert_met(split, labels_of, targets)
    assert len({split.digest for split in splits}) == len(splits)


def test_the_published_numbers_without_their_leak():
    annotations = real_annotations("charadesegolt")
    targets = replace(EXACT_PRESETS["charadesegolt"], group_by=("pair", "subject"))
    split = construct_exactly(annotations, targets, dataset="charadesegolt", seed=0).split
    assert_met(split, official_labels(official_rows("charadesegolt")), targets)
    assert not {finding.check for finding in audit_split(split)} & {"pair-leakage", "subject-overlap"}
