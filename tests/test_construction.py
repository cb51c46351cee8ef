"""Drawn splits: the paper's arithmetic by hand, and the rules of every draw by independent counting."""

import csv
import math
from collections import Counter
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import REAL, TOY, TOY_MANIFEST, real_annotations, real_data, released_split

from meidbench.annotations import Annotations, read_annotations
from meidbench.construction import (
    PRESETS,
    Pool,
    Targets,
    co_occurrence_rank,
    construct,
    default_targets,
    distance_to,
    pareto_counts,
)
from meidbench.construction.drawing import co_occurrence_scores, draw_training
from meidbench.errors import SplitError
from meidbench.names import SUBSETS
from meidbench.splits.manifests import load_manifest
from meidbench.splits.split import read_split, write_split
from meidbench.splits.statistics import audit_split, split_statistics

SMALL = Targets(30, 3, alpha=4, head_above=20, tail_up_to=6, test_positives=5, val_positives=3)


def table(labels, *, num_classes=None, lengths=None, subjects=None, pairs=None, ids=None) -> Annotations:
    count = len(labels)
    if num_classes is None:
        num_classes = max((index for row in labels for index in row), default=-1) + 1
    return Annotations(
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        video_ids=list(ids or (f"v{row:05d}" for row in range(count))),
        sources=["all"] * count,
        labels=[tuple(row) for row in labels],
        lengths=list(lengths or [math.nan] * count),
        subjects=list(subjects or [""] * count),
        views=[""] * count,
        pair_ids=list(pairs or [""] * count),
        segments=[()] * count,
    )


def invented(videos: int = 900, num_classes: int = 12, seed: int = 0) -> Annotations:
    """Videos with one to four labels and falling class frequencies; two share a pair, twenty share a subject."""
    generator = np.random.default_rng(seed)
    weights = 0.8 ** np.arange(num_classes)
    shares = weights / weights.sum()
    labels = [
        sorted(generator.choice(num_classes, generator.integers(1, 5), replace=False, p=shares).tolist())
        for _ in range(videos)
    ]
    return table(
        labels,
        num_classes=num_classes,
        subjects=[f"s{row // 20}" for row in range(videos)],
        pairs=[f"p{row // 2}" for row in range(videos)],
    )


def sets_of(split) -> dict[str, list[str]]:
    return {subset: sorted(split.video_ids(subset)) for subset in SUBSETS}


def counted(split, labels_of: dict[str, set[int]]) -> dict[str, Counter]:
    """Count the videos per class from labels that the split did not carry."""
    return {
        subset: Counter(label for video in split.video_ids(subset) for label in labels_of[video]) for subset in SUBSETS
    }


# --- the arithmetic ---------------------------------------------------------------------------------------------


def test_pareto_counts_by_hand():
    # alpha 1: x runs from 1 to 100 in steps of 24.75, the share is x**-2: 1, 0.00151, 0.00039, 0.00017, 0.0001.
    assert pareto_counts(5, 10_010, 10, 1).tolist() == [10_010, 25, 13, 11, 11]
    # alpha 2: x is 1, 5.5, 10; x**-3 is 1, 0.0060105, 0.001.
    assert pareto_counts(3, 1000, 0, 2).tolist() == [1000, 6, 1]
    assert pareto_counts(1, 7, 3, 10).tolist() == [7]
    assert pareto_counts(4, 9, 9, 10).tolist() == [9] * 4


@pytest.mark.parametrize("alpha", [0.5, 1, 3, 7, 10, 17])
def test_pareto_counts_are_those_of_scipy(alpha):
    from scipy.stats import pareto

    places = np.linspace(pareto.ppf(0, alpha), pareto.ppf(0.99, alpha), 157)
    values = (556 - 9) / alpha * pareto.pdf(places, alpha) + 9
    found = pareto_counts(157, 556, 9, alpha)
    assert found[0] == 556 and (np.diff(found) <= 0).all()
    # As good as whole numbers may be cut either way by floats.
    assert ((found == values.astype(int)) | (np.abs(values - np.rint(values)) < 1e-9)).all()


def test_co_occurrence_by_hand():
    # Videos of class 2 (a): four, of class 1 (b): three, of class 0 (c): one. Together: ab 2, ac 1, bc 0.
    # a: P(a|b) + P(a|c) = 2/3 + 1/1; b: P(b|a) + P(b|c) = 2/4 + 0; c: P(c|a) + P(c|b) = 1/4 + 0.
    pool = Pool.from_annotations(table([(1, 2), (1, 2), (0, 2), (2,), (1,)]))
    scores = co_occurrence_scores(pool)
    np.testing.assert_allclose(scores, [1 / 4, 2 / 4, 2 / 3 + 1], rtol=0, atol=1e-12)
    assert co_occurrence_rank(pool).tolist() == [2, 1, 0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=30))
def test_co_occurrence_is_that_of_its_definition(rows):
    scores = co_occurrence_scores(Pool.from_annotations(table(rows, num_classes=6)))
    for this in range(6):
        expected = 0.0
        for that in range(6):
            given_that = [row for row in rows if that in row]
            if that != this and given_that:
                expected += sum(this in row for row in given_that) / len(given_that)
        assert scores[this] == pytest.approx(expected, abs=1e-9)


# --- every draw -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.sets(st.integers(0, 4), max_size=4), min_size=1, max_size=60),
    seed=st.integers(0, 2**40),
    group_by=st.sampled_from([(), ("pair",), ("subject",), ("pair", "subject")]),
    sizes=st.tuples(*[st.none() | st.integers(0, 30)] * 2),
    groups=st.integers(1, 20),
)
def test_what_holds_of_every_draw(rows, seed, group_by, sizes, groups):
    annotations = table(
        rows,
        num_classes=5,
        pairs=[f"p{row // 2}" if row % 3 else "" for row in range(len(rows))],
        subjects=[f"s{row % groups}" if row % 5 else "" for row in range(len(rows))],
    )
    targets = Targets(8, 2, 3.0, 5, 2, 2, 1, *sizes, None, group_by)
    if not any(rows):
        with pytest.raises(SplitError, match="nothing to draw"):
            construct(annotations, targets, dataset="tiny", seed=seed)
        return
    drawn = construct(annotations, targets, dataset="tiny", seed=seed)
    split = drawn.split
    sets = sets_of(split)
    assert sets["train"]
    everywhere = [video for videos in sets.values() for video in videos]
    assert len(everywhere) == len(set(everywhere))
    labels_of = dict(zip(annotations.video_ids, annotations.labels, strict=True))
    assert all(labels_of[video] for video in everywhere)
    counts = counted(split, labels_of)
    wanted = {"train": 1, "val": 1, "test": 2}
    short = {(subset, index) for subset in SUBSETS for index in range(5) if counts[subset][index] < wanted[subset]}
    assert drawn.without_candidates == tuple(index for index in range(5) if not drawn.available[index])
    short = {(subset, index) for subset, index in short if drawn.available[index]}
    assert {(entry.subset, entry.class_index) for entry in drawn.shortfalls} == short
    assert [counts["train"][index] for index in range(5)] == split.train_counts.tolist()
    assert drawn.total_deviation == sum(abs(counts["train"][index] - drawn.target_counts[index]) for index in range(5))
    for kind in group_by:
        column = annotations.pair_ids if kind == "pair" else annotations.subjects
        value_of = dict(zip(annotations.video_ids, column, strict=True))
        seen = [{value_of[video] for video in sets[subset]} - {""} for subset in SUBSETS]
        assert not any(a & b for a, b in combinations(seen, 2))


def test_enough_videos_give_every_class_its_positives():
    for seed in range(5):
        drawn = construct(invented(), SMALL, dataset="invented", seed=seed)
        assert drawn.shortfalls == ()
        assert drawn.split.positives("test").min() == 5 and drawn.split.positives("val").min() == 3
        # The sum of the deviations is below a fifth of the target.
        assert drawn.total_deviation < 0.2 * sum(drawn.target_counts)


@pytest.mark.parametrize("seed", range(5))
def test_no_class_exceeds_its_cap_within_one_sweep(seed):
    # Class 1 may have two videos. The first pass fills it with videos of class 0, which it then removes again; so
    # several videos of the classes 1, 2 and 3 promise a gain at once, but only two of them may be added.
    annotations = table([(1, 2, 3)] * 6 + [(0, 2, 3)] * 30 + [(0, 1)] * 30)
    pool = Pool.from_annotations(annotations)
    aims, caps = np.array([0, 2, 6, 6]), np.array([0, 2, 60, 60])
    everything = np.ones(len(pool), dtype=bool)
    generator = np.random.Generator(np.random.PCG64(seed))
    train = draw_training(pool, np.array([2, 3, 1, 0]), aims, caps, 0, everything, generator)
    assert pool.positives(train).tolist() == [0, 2, 2, 2]


def test_sizes_that_are_asked_for():
    sizes = replace(SMALL, test_videos=120, val_videos=60)
    split = construct(invented(), sizes, dataset="invented", seed=0).split
    assert len(split.rows("test")) == 120 and len(split.rows("val")) == 60
    plain = construct(invented(), SMALL, dataset="invented", seed=0).split
    assert len(plain.rows("test")) < 60
    # The added videos go to the classes with the fewest.
    assert split.positives("test").min() >= 2 * plain.positives("test").min()


def test_a_seed_and_no_order_of_rows_decides():
    annotations = invented()
    first = construct(annotations, SMALL, dataset="invented", seed=3).split
    assert construct(annotations, SMALL, dataset="invented", seed=3).split.digest == first.digest
    assert len({construct(annotations, SMALL, dataset="invented", seed=seed).split.digest for seed in range(8)}) == 8
    order = np.random.default_rng(1).permutation(len(annotations.video_ids)).tolist()
    columns = ("video_ids", "sources", "labels", "lengths", "subjects", "views", "pair_ids", "segments")
    moved = replace(annotations, **{name: [getattr(annotations, name)[row] for row in order] for name in columns})
    moved.labels = [row[::-1] for row in moved.labels]
    for group_by in ((), ("pair", "subject")):
        targets = replace(SMALL, group_by=group_by)
        there = construct(annotations, targets, dataset="invented", seed=3).split
        assert sets_of(construct(moved, targets, dataset="invented", seed=3).split) == sets_of(there)


def test_the_draw_is_the_same_everywhere():
    """The digests are pinned, so that the test fails if another version of Python or NumPy draws otherwise."""
    plain = construct(invented_by_rule(), SMALL, dataset="pinned", seed=5).split
    grouped = construct(invented_by_rule(), replace(SMALL, group_by=("subject",)), dataset="pinned", seed=5).split
    assert (plain.digest[:16], grouped.digest[:16]) == ("5a0adca9f05974aa", "c2b39afbdbfab4fd")


def invented_by_rule(gap: int = 0) -> Annotations:
    """Annotations without a random number; with a gap, no video has the classes before the last."""
    labels = [{row % 3, 3 + row % 5, 8 + (0, 1, 2, 0, 3 + gap)[row * row % 7]} for row in range(500)]
    return table([sorted(row) for row in labels], subjects=[f"s{row % 37}" for row in range(500)])


@pytest.mark.parametrize("group_by", [(), ("subject",)])
def test_a_class_that_no_video_has_takes_no_rank(group_by):
    dense, gaps = invented_by_rule(), invented_by_rule(gap=3)
    assert default_targets(gaps) == default_targets(dense)
    targets = replace(default_targets(dense), group_by=group_by)
    drawn, there = (construct(each, targets, dataset="rank", seed=1) for each in (gaps, dense))
    assert sets_of(drawn.split) == sets_of(there.split)
    assert drawn.without_candidates == (11, 12, 13) and there.without_candidates == ()
    assert drawn.target_counts == (*there.target_counts[:11], 0, 0, 0, *there.target_counts[11:])
    assert drawn.total_deviation == there.total_deviation
    assert not {entry.class_index for entry in drawn.shortfalls} & {11, 12, 13}
    statistics = [asdict(split_statistics(made.split)) for made in (drawn, there)]
    assert statistics[0] | {"classes": 12, "classes_without_videos": 0, "classes_without_train": 0} == statistics[1]


def test_a_drawn_split_is_an_ordinary_split_file(tmp_path):
    drawn = construct(invented(), SMALL, dataset="invented", seed=7)
    paths = [write_split(drawn.split, tmp_path / name) for name in ("a.parquet", "b.parquet")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    again = read_split(paths[0])
    assert (again.variant, again.metadata.seed, again.digest) == ("pareto", 7, drawn.split.digest)
    facts = drawn.as_dict()
    assert facts["train_counts"] == again.train_counts.tolist() and facts["statistics"]["train"] == len(
        again.rows("train")
    )


def test_lengths_decide_who_is_a_candidate():
    lengths = [5.0, 10.0, math.nan] * 20
    annotations = table([(0,)] * 60, lengths=lengths)
    targets = Targets(10, 10, 1.0, 5, 2, 5, 5, least_seconds=10.0)
    drawn = construct(annotations, targets, dataset="lengths", seed=0)
    assert drawn.candidates == 40
    used = {int(video[1:]) % 3 for videos in sets_of(drawn.split).values() for video in videos}
    assert used == {1, 2}
    with pytest.raises(SplitError, match="lasts 11 seconds"):
        construct(table([(0,)], lengths=[5.0]), replace(targets, least_seconds=11.0), dataset="short", seed=0)


@pytest.mark.parametrize("labels, num_classes", [
    ([(0,)] * 50, 1),
    ([(0, 1, 2)] * 80, 3),
    ([(0, 1)], 2),
    ([(0,), (1,), (2,)], 3),
    ([(0,)] * 30, 4),
])  # fmt: skip
def test_odd_datasets_give_what_they_can(labels, num_classes):
    drawn = construct(table(labels, num_classes=num_classes), SMALL, dataset="odd", seed=0)
    assert len(drawn.split.rows("train")) >= 1
    available = Counter(index for row in labels for index in row)
    for index in range(num_classes):
        got = {subset: int(drawn.split.positives(subset)[index]) for subset in SUBSETS}
        # A class is in train first, then in test, then in val.
        assert (got["train"] > 0) == (available[index] > 0)
        assert available[index] < 2 or got["test"] + got["val"] > 0


def test_what_cannot_be_drawn_from_is_refused():
    good = {"dataset": "bad", "seed": 0}
    with pytest.raises(SplitError, match="nothing to draw"):
        construct(table([], num_classes=2), SMALL, **good)
    with pytest.raises(SplitError, match="nothing to draw"):
        construct(table([(), ()], num_classes=2), SMALL, **good)
    with pytest.raises(SplitError, match="more than once: v1"):
        construct(table([(0,), (0,)], ids=["v1", "v1"]), SMALL, **good)
    with pytest.raises(SplitError, match="outside the 1 class: v00001"):
        construct(table([(0,), (1,)], num_classes=1), SMALL, **good)
    with pytest.raises(SplitError, match="a label occurs twice: v00000"):
        construct(table([(0, 0)]), SMALL, **good)
    with pytest.raises(SplitError, match="2 entries in lengths for 1 video"):
        construct(table([(0,)], lengths=[1.0, 2.0]), SMALL, **good)
    for seed in (-1, 1.0, None, True):
        with pytest.raises(SplitError, match="a seed is a whole number"):
            construct(table([(0,)]), SMALL, dataset="bad", seed=seed)


@pytest.mark.parametrize("change, message", [
    ({"alpha": math.nan}, "alpha"),
    ({"alpha": 0}, "alpha"),
    ({"alpha": "10"}, "alpha"),
    ({"most_frequent": -1}, "most_frequent must be a whole number from 1"),
    ({"least_frequent": 0}, "least_frequent must be a whole number from 1"),
    ({"least_frequent": 31}, "least_frequent 31 lies above most_frequent 30"),
    ({"tail_up_to": 21}, "tail_up_to 21 lies above head_above 20"),
    ({"test_positives": 2.5}, "test_positives"),
    ({"val_videos": -3}, "val_videos"),
    ({"least_seconds": math.nan}, "least_seconds"),
    ({"group_by": ("script",)}, "group_by"),
    ({"group_by": "pair"}, "group_by"),
])  # fmt: skip
def test_targets_that_cannot_be_meant(change, message):
    with pytest.raises(SplitError, match=message):
        replace(SMALL, **change)


# --- any dataset ------------------------------------------------------------------------------------------------


def test_default_targets_can_be_met():
    for annotations in (
        invented(),
        invented(3000, 20),
        invented_by_rule(),
        read_annotations(load_manifest(TOY_MANIFEST), TOY),
    ):
        targets = default_targets(annotations)
        drawn = construct(annotations, targets, dataset="own", seed=0)
        groups = drawn.split.groups
        assert min(map(len, (groups.head, groups.medium, groups.tail))) > 0
        short = {entry.class_index for entry in drawn.shortfalls}
        assert len(short) <= 1 + 0.1 * len(annotations.class_names)


def test_default_targets_of_odd_datasets():
    for labels in ([(0,)], [(0, 1)] * 3, [(index,) for index in range(9)]):
        targets = default_targets(table(labels))
        assert len(construct(table(labels), targets, dataset="own", seed=0).split.rows("train")) > 0
    own = default_targets(invented(), head_above=50, tail_up_to=7)
    assert (own.head_above, own.tail_up_to) == (50, 7)


def test_distance_by_hand():
    annotations = invented()
    a, b = (construct(annotations, SMALL, dataset="invented", seed=seed).split for seed in (0, 1))
    found = distance_to(a, b)
    ids = [set(split.video_ids("train")) for split in (a, b)]
    assert found.shared_videos["train"] == len(ids[0] & ids[1]) / len(ids[0] | ids[1]) < 1
    assert (
        found.mean_count_difference == sum(abs(x - y) for x, y in zip(a.train_counts, b.train_counts, strict=True)) / 12
    )
    assert found.videos["test"] == (len(a.rows("test")), len(b.rows("test")))
    with pytest.raises(SplitError, match="different classes"):
        distance_to(a, construct(invented_by_rule(gap=1), SMALL, dataset="other", seed=0).split)


# --- the real annotations ---------------------------------------------------------------------------------------

FILES = {"charadeslt": "Charades_v1_{}.csv", "charadesegolt": "CharadesEgo_v1_{}.csv"}
DRAWN = list(FILES)


def official_rows(dataset: str) -> dict[str, dict[str, str]]:
    """Read the official files with nothing but the csv module."""
    rows = {}
    for source in ("train", "test"):
        with (real_data(REAL[dataset]) / FILES[dataset].format(source)).open(encoding="utf-8", newline="") as stream:
            rows.update({row["id"]: row for row in csv.DictReader(stream)})
    return rows


def official_labels(rows: dict[str, dict[str, str]]) -> dict[str, set[int]]:
    return {
        video: {int(action.split(" ")[0][1:]) for action in row["actions"].split(";") if action}
        for video, row in rows.items()
    }


@pytest.mark.parametrize("dataset", DRAWN)
def test_pareto_comes_near_the_published_split(dataset):
    annotations, rows = real_annotations(dataset), official_rows(dataset)
    labels_of, released = official_labels(rows), released_split(dataset)
    digests = set()
    for seed in range(3):
        drawn = construct(annotations, PRESETS[dataset], dataset=dataset, seed=seed)
        digests.add(drawn.split.digest)
        counts = counted(drawn.split, labels_of)
        for subset in SUBSETS:
            assert [counts[subset][index] for index in range(157)] == drawn.split.positives(subset).tolist()
        assert all(
            float(rows[video]["length"]) * 24 >= 200 for subset in SUBSETS for video in drawn.split.video_ids(subset)
        )
        assert min(counts["test"][index] for index in range(157)) >= 20
        distance = distance_to(drawn.split, released)
        assert abs(distance.videos["train"][0] / distance.videos["train"][1] - 1) < 0.05
        assert distance.videos["test"][0] == distance.videos["test"][1]
        assert distance.videos["val"][0] == distance.videos["val"][1]
        assert all(abs(mine - theirs) <= 8 for mine, theirs in distance.groups.values())
        assert distance.same_group > 0.85
    assert len(digests) == 3


@pytest.mark.parametrize("dataset, group_by", [
    ("charadeslt", ("subject",)),
    ("charadesegolt", ("pair",)),
    ("charadesegolt", ("subject",)),
    ("charadesegolt", ("pair", "subject")),
])  # fmt: skip
def test_grouped_has_no_leak(dataset, group_by):
    annotations = real_annotations(dataset)
    drawn = construct(annotations, replace(PRESETS[dataset], group_by=group_by), dataset=dataset, seed=0)
    assert drawn.split.variant == "grouped"
    checks = {"pair": "pair-leakage", "subject": "subject-overlap"}
    found = {finding.check for finding in audit_split(drawn.split)}
    assert not found & {checks[name] for name in group_by}
    rows = official_rows(dataset)
    keys = {"pair": lambda video: video.removesuffix("EGO"), "subject": lambda video: rows[video]["subject"]}
    for name in group_by:
        seen = [{keys[name](video) for video in drawn.split.video_ids(subset)} - {""} for subset in SUBSETS]
        assert not any(a & b for a, b in combinations(seen, 2))
    assert len(drawn.shortfalls) <= 2
    assert len(drawn.split.rows("test")) == PRESETS[dataset].test_videos
