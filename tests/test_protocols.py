"""Protocols against hand-worked rows and against loops written from their definitions."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import meidbench as mb
from meidbench import names
from meidbench.annotations import Annotations
from meidbench.errors import PredictionError
from meidbench.evaluation.evaluate import PROTOCOLS, ProtocolScorer, as_blocks, evaluate_scores, subset_positives
from meidbench.evaluation.ranking import Positives, concatenate_ranges, count_ranks, precision_from_counts
from meidbench.predictions.align import BlockScores
from meidbench.splits.split import Split


def make_split(labels: np.ndarray) -> Split:
    """A split whose test subset has these labels; every class has a few training videos."""
    videos, classes = labels.shape
    rows = [tuple(np.flatnonzero(row).tolist()) for row in labels]
    train = [tuple(range(classes))] * 3
    count = videos + len(train)
    annotations = Annotations(
        class_names=tuple(f"thing {index}" for index in range(classes)),
        video_ids=[f"v{row:04d}" for row in range(videos)] + [f"t{row}" for row in range(len(train))],
        sources=[""] * count,
        labels=rows + train,
        lengths=[float("nan")] * count,
        subjects=[""] * count,
        views=[""] * count,
        pair_ids=[""] * count,
        segments=[()] * count,
    )
    subsets = ["test"] * videos + ["train"] * len(train)
    return Split.from_annotations(annotations, subsets, dataset="made", variant="table", head_above=5, tail_up_to=1)


def per_class(scores, labels, protocol):
    split = make_split(labels)
    result = mb.evaluate(scores, split.video_ids("test"), split, protocol=protocol)
    return [entry.ap for entry in result.per_class]


# --- by hand ----------------------------------------------------------------------------------------------------

SCORES = np.array([[0.9], [0.5], [0.5], [0.5], [0.2]])
LABELS = np.array([[False], [False], [True], [True], [True]])


def test_tie_aware_by_hand():
    # At 0.5: 2 positives of 4 videos, for both; at 0.2: 3 of 5.
    assert per_class(SCORES, LABELS, "tie-aware") == pytest.approx([(2 / 4 + 2 / 4 + 3 / 5) / 3], abs=1e-15)


def test_apmeter_by_hand():
    # In list order the positives of 0.5 take ranks 3 and 4: 1/3, 2/4, then 3/5.
    assert per_class(SCORES, LABELS, "apmeter") == pytest.approx([(1 / 3 + 2 / 4 + 3 / 5) / 3], abs=1e-15)


def test_a_constant_predictor_by_the_order_of_the_list():
    first, last = np.zeros((10, 1), bool), np.zeros((10, 1), bool)
    first[:2] = last[-2:] = True
    constant = np.zeros((10, 1))
    assert per_class(constant, first, "apmeter") == pytest.approx([1.0])
    assert per_class(constant, last, "apmeter") == pytest.approx([(1 / 9 + 2 / 10) / 2])
    assert per_class(constant, first, "tie-aware") == per_class(constant, last, "tie-aware") == pytest.approx([0.2])


def test_apmeter_counts_in_single_precision():
    # These two differ in float64 and are one number in float32, where the negative stands first.
    scores = np.array([[1.0], [1.0 + 1e-12]])
    labels = np.array([[False], [True]])
    assert per_class(scores, labels, "tie-aware") == [1.0]
    assert per_class(scores, labels, "apmeter") == [0.5]


def test_apmeter_gives_an_empty_class_zero():
    labels = np.array([[True, False], [False, False]])
    split = make_split(labels)
    scores = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert mb.evaluate(scores, split.video_ids("test"), split).mAP.overall == 1.0
    assert mb.evaluate(scores, split.video_ids("test"), split, protocol="apmeter").mAP.overall == 0.5


def test_charades_by_hand_with_ties_and_a_video_without_label():
    """Charades_v1_classify.m, step by step.

    Videos a to f in the order of the annotation file; c has no action. The script leaves its scores at -Inf, so the
    order by descending score (a stable sort) is: b 0.8, then a 0.6, d 0.6, f 0.6, then e 0.1, then c.
    Positives are a, d and e. Precision at a: 1/2, at d: 2/3, at e: 3/5. AP = (1/2 + 2/3 + 3/5) / 3.
    """
    scores = np.array([[0.6], [0.8], [0.9], [0.6], [0.1], [0.6]])
    labels = np.array([[1, 0], [0, 1], [0, 0], [1, 0], [1, 0], [0, 1]], bool)
    both = np.hstack([scores, scores])
    assert per_class(both, labels, "charades")[0] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3, abs=1e-15)
    # Without the rule c would come first: 1/3, 2/4, 3/6.
    assert per_class(both, labels, "apmeter")[0] == pytest.approx((1 / 3 + 2 / 4 + 3 / 6) / 3, abs=1e-15)


# --- loops from the definitions ---------------------------------------------------------------------------------


def matlab_classify(scores, labels):
    """The arithmetic of Charades_v1_classify.m with plain loops."""
    test = np.where(labels.any(axis=1)[:, None], scores.astype(np.float64), -np.inf)
    result = []
    for c in range(labels.shape[1]):
        order = sorted(range(len(test)), key=lambda row: -test[row, c])  # Python's sort is stable, as MATLAB's
        true_positives = false_positives = 0
        total = 0.0
        for row in order:
            if labels[row, c]:
                true_positives += 1
                total += true_positives / (true_positives + false_positives)
            else:
                false_positives += 1
        result.append(total / true_positives if true_positives else np.nan)
    return result


def torchnet_meter(scores, labels):
    """The meter of VideoLT's code: float32 scores, a descending sort, zero for an empty class.

    Its own sort is not stable: its ties have no defined order from 17 videos on. Here they are in list order, as the
    protocol defines; a stable sort is the deterministic stand-in, not the meter's.
    """
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32)
    result = []
    for c in range(labels.shape[1]):
        truth = [bool(labels[row, c]) for row in sorted(range(len(single)), key=lambda row: -single[row, c])]
        hits = np.cumsum(truth)
        precisions = [hits[i] / (i + 1) for i in range(len(truth)) if truth[i]]
        result.append(sum(precisions) / max(sum(truth), 1))
    return result


@st.composite
def problems(draw):
    shape = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32]))
    few = (
        st.sampled_from([0, 1, 2, 3])
        if dtype is np.int32
        else st.sampled_from([0.0, -0.0, 0.5, 1.0, -7.25, 1e-300, 1e30])
    )
    scores = draw(hnp.arrays(dtype, shape, elements=few.map(dtype)))
    return scores, draw(hnp.arrays(bool, shape))


@settings(deadline=None, max_examples=80)
@given(problems())
def test_protocols_equal_their_definitions(problem):
    scores, labels = problem
    np.testing.assert_allclose(per_class(scores, labels, "charades"), matlab_classify(scores, labels), atol=1e-12)
    np.testing.assert_allclose(per_class(scores, labels, "apmeter"), torchnet_meter(scores, labels), atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(problems(), st.integers(1, 7), st.randoms(use_true_random=False))
def test_block_by_block_gives_the_same_bytes(problem, size, shuffle):
    scores, labels = problem
    split = make_split(labels)
    order = list(range(len(scores)))
    shuffle.shuffle(order)
    order = np.array(order)

    def blocks():
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, scores[rows]

    streamed = BlockScores(len(scores), scores.shape[1], scores.dtype, blocks)
    for protocol in PROTOCOLS:
        in_memory = evaluate_scores(scores, split, "test", protocol=protocol).to_json()
        assert evaluate_scores(streamed, split, "test", protocol=protocol).to_json() == in_memory


def test_ranks_are_counted_alike_in_memory_and_by_block():
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 9, (500, 40)).astype(np.float32)
    labels = generator.random(scores.shape) < 0.05
    positives = Positives.from_pairs(*np.nonzero(labels), *scores.shape)
    ranks = count_ranks(as_blocks(scores).blocks, positives, scores.dtype)
    again = count_ranks(
        lambda: ((np.arange(s, s + 100), scores[s : s + 100]) for s in range(0, 500, 100)), positives, scores.dtype
    )
    for name, counts in vars(ranks).items():
        assert np.array_equal(counts, getattr(again, name)), name
    for row, c, at_least, above, earlier in zip(
        positives.rows, positives.classes, ranks.at_least, ranks.above, ranks.earlier, strict=True
    ):
        column = scores[:, c]
        assert at_least == (column >= column[row]).sum()
        assert above == (column > column[row]).sum()
        assert earlier == (column[:row] == column[row]).sum()
    listed = precision_from_counts(ranks, positives, in_list_order=True)
    assert not np.allclose(precision_from_counts(ranks, positives), listed)


# --- the result -------------------------------------------------------------------------------------------------


def test_the_result_has_the_means_of_the_other_protocols():
    labels = np.random.default_rng(0).random((60, 5)) < 0.2
    split = make_split(labels)
    ids = split.video_ids("test")
    tied = np.random.default_rng(1).integers(0, 4, labels.shape)
    result = mb.evaluate(tied, ids, split)
    expected = {name: mb.evaluate(tied, ids, split, protocol=name).mAP for name in ("apmeter", "charades")}
    assert str(result.other_protocols) == str(expected)  # as text, for NaN is not equal to itself
    assert set(json.loads(result.to_json())["other_protocols"]) == {"apmeter", "charades"}


def test_without_ties_no_protocol_differs():
    labels = np.ones((30, 2), bool)
    labels[::3, 0] = labels[1::3, 1] = False
    split = make_split(labels)
    scores = np.random.default_rng(1).permutation(60).reshape(30, 2).astype(np.float64)
    result = mb.evaluate(scores, split.video_ids("test"), split)
    assert result.other_protocols == {} and result.diagnostics.tied_score_fraction == 0


def test_the_command_prints_the_other_protocols(run, toy_split, toy_split_file, tmp_path):
    ids = toy_split.video_ids("test")
    scores = np.random.default_rng(0).integers(0, 3, (len(ids), 12))
    mb.write_predictions(tmp_path / "p.parquet", ids, scores, toy_split, "test")
    text = run("evaluate", tmp_path / "p.parquet", "--split", toy_split_file).stdout
    assert "by apmeter: overall 0." in text and "by charades: overall 0." in text
    text = run("evaluate", tmp_path / "p.parquet", "--split", toy_split_file, "--protocol", "charades").stdout
    assert "protocol charades" in text and "by tie-aware: overall 0." in text


def test_the_command_line_knows_every_protocol():
    assert tuple(PROTOCOLS) == names.PROTOCOLS


def test_unknown_protocols_and_undefined_intervals_are_refused(toy_split):
    ids = toy_split.video_ids("test")
    with pytest.raises(PredictionError, match="unknown protocol 'voc'; known: tie-aware, apmeter, charades"):
        mb.evaluate(np.zeros((len(ids), 12)), ids, toy_split, protocol="voc")
    with pytest.raises(PredictionError, match="intervals are made for the protocol tie-aware"):
        mb.evaluate(np.zeros((len(ids), 12)), ids, toy_split, protocol="apmeter", bootstrap=10)


def test_scores_are_ranked_once_where_protocols_see_the_same(toy_split):
    ids = toy_split.video_ids("test")
    scores = as_blocks(np.zeros((len(ids), 12), np.float32))
    scorer = ProtocolScorer(scores, subset_positives(toy_split, "test"))
    for protocol in PROTOCOLS.values():
        scorer.average_precision(protocol)
    assert len(scorer.counted) == 1


def test_ranges_one_after_the_other():
    assert concatenate_ranges(np.array([5, 0]), np.array([3, 2])).tolist() == [5, 6, 7, 0, 1]
