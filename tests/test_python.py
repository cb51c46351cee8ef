"""What a Python caller writes: frames, tensors, comparisons, a metric, the cross-check, and what is printed."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import meidbench as mb
from meidbench.evaluation import evaluate as evaluation
from meidbench.evaluation.evaluate import as_blocks, cross_check_precisions, evaluate_scores, subset_positives
from meidbench.predictions.align import BlockScores


@pytest.fixture
def ids(toy_split):
    return toy_split.video_ids("test")


@pytest.fixture
def scores(toy_split, ids):
    """Scores of the test videos in the order of the split; some are tied."""
    normal = np.random.default_rng(0).normal(size=(len(ids), toy_split.num_classes))
    return normal.round(1).astype(np.float32)


# --- the cross-check ----------------------------------------------------------------------------------------------


def test_the_cross_check_is_scikit_learns_average_precision(toy_split, ids, scores):
    plain, result = (mb.evaluate(scores, ids, toy_split, cross_check=asked) for asked in (False, True))
    by_sklearn = average_precision_score(toy_split.labels("test"), scores, average=None)
    differences = np.abs(by_sklearn - [entry.ap for entry in result.per_class])
    assert result.cross_check.classes == len(differences)
    assert result.cross_check.largest_difference == differences.max() < 1e-12
    assert result.cross_check.class_index == differences.argmax()
    assert "scikit-learn gives the same average precision for 12 classes" in str(result.cross_check)
    assert plain == replace(result, cross_check=None) and plain.to_json() == result.to_json()


def test_the_cross_check_gathers_some_classes_at_a_time(toy_split, scores, monkeypatch):
    halves = np.array_split(np.random.default_rng(1).permutation(len(scores)), 2)
    blocks = BlockScores(*scores.shape, scores.dtype, lambda: [(rows, scores[rows]) for rows in halves])
    whole = evaluate_scores(scores, toy_split, "test", cross_check=True)
    monkeypatch.setattr(evaluation, "_CHECKED_BYTES", 5 * len(scores) * 4)
    assert evaluate_scores(blocks, toy_split, "test", cross_check=True) == whole


def test_the_cross_check_refuses_another_value(toy_split, scores):
    ap = mb.average_precision(scores, toy_split.labels("test"))
    ap[3] += 1e-6
    with pytest.raises(mb.MeidbenchError, match="the average precision of class 3 is .* by scikit-learn"):
        cross_check_precisions(as_blocks(scores), subset_positives(toy_split, "test"), ap)


def test_the_cross_check_skips_classes_without_positives_and_needs_tied_ranks(toy_split, ids, scores):
    without = np.flatnonzero(toy_split.positives("val") == 0)
    val = toy_split.video_ids("val")
    result = mb.evaluate(np.zeros((len(val), 12)), val, toy_split, "val", cross_check=True)
    assert result.cross_check.classes == 12 - len(without)
    with pytest.raises(mb.MeidbenchError, match="needs the protocol tie-aware"):
        mb.evaluate(scores, ids, toy_split, protocol="apmeter", cross_check=True)
