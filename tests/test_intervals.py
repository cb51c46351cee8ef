"""Intervals against scikit-learn's weighted average precision and against plain resampling loops."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

import meidbench as mb
from meidbench.evaluation import bootstrap
from meidbench.evaluation.bootstrap import bootstrap_average_precision, bootstrap_samples, compute_interval
from meidbench.evaluation.ranking import Positives


def weighted_average_precision(scores, labels, weights):
    positives = Positives.from_pairs(*np.nonzero(labels), *scores.shape)
    return bootstrap.weighted_average_precision(scores, positives, weights[:, None])[0]


@st.composite
def weighted_problems(draw):
    shape = (draw(st.integers(1, 30)), draw(st.integers(1, 20)))
    scores = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, -0.0, 0.25, 0.5, 3.0, -2.0])))
    labels = draw(hnp.arrays(bool, shape))
    weights = draw(hnp.arrays(np.float64, shape[0], elements=st.floats(1e-3, 1e3)))
    return scores, labels, weights


@settings(deadline=None, max_examples=80)
@given(weighted_problems())
def test_weighted_average_precision_equals_scikit_learn(problem):
    scores, labels, weights = problem
    got = weighted_average_precision(scores, labels, weights)
    for c in range(scores.shape[1]):
        if labels[:, c].any():
            expected = average_precision_score(labels[:, c], scores[:, c], sample_weight=weights)
            assert got[c] == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(got[c])


def test_weighted_average_precision_on_a_real_split(real_split):
    labels = real_split.labels("test")
    labels = labels[:, :: max(labels.shape[1] // 50, 1)]  # about 50 classes: scikit-learn is slow
    generator = np.random.default_rng(0)
    scores = (generator.normal(size=labels.shape) + labels).astype(np.float32)
    weights = generator.standard_exponential(len(labels))
    expected = average_precision_score(labels, scores, average=None, sample_weight=weights)
    np.testing.assert_allclose(weighted_average_precision(scores, labels, weights), expected, rtol=0, atol=1e-12)


def test_unit_weights_give_the_plain_average_precision():
    generator = np.random.default_rng(0)
    labels = generator.random((200, 30)) < 0.1
    scores = np.round(generator.normal(size=labels.shape), 1)
    got = weighted_average_precision(scores, labels, np.ones(200))
    np.testing.assert_allclose(got, mb.average_precision(scores, labels), rtol=0, atol=1e-12)


def test_replicates_are_those_of_a_plain_loop(monkeypatch):
    """scikit-learn with the same weights, one replicate at a time; smaller groups of replicates change nothing."""
    generator = np.random.default_rng(5)
    labels = generator.random((60, 20)) < 0.15
    labels[0] = True
    scores = np.round(generator.normal(size=labels.shape), 1)
    positives = Positives.from_pairs(*np.nonzero(labels), *scores.shape)
    got = np.concatenate(list(bootstrap_average_precision(scores, positives, 9, seed=11)))
    weights = np.random.default_rng(11)
    for replicate in got:
        weight = weights.standard_exponential(60)
        expected = average_precision_score(labels, scores, average=None, sample_weight=weight)
        np.testing.assert_allclose(replicate, expected, rtol=0, atol=1e-12)
    monkeypatch.setattr("meidbench.evaluation.bootstrap._WEIGHT_BYTES", 4 * 8 * 60)
    again = list(bootstrap_average_precision(scores, positives, 9, seed=11))
    assert [len(part) for part in again] == [4, 4, 1]
    np.testing.assert_allclose(np.concatenate(again), got, rtol=0, atol=1e-14)


def test_the_interval_covers_the_expected_value():
    """Rare classes, a weak model, a mean over many classes: replicates lie above the value, but intervals must not."""
    generator = np.random.default_rng(0)

    def draw():
        labels = generator.random((500, 20)) < 0.03
        labels[0] = True
        return generator.normal(size=labels.shape) + labels, labels

    truth = np.mean([mb.average_precision(*draw()).mean() for _ in range(400)])
    centred = plain = 0
    for trial in range(100):
        scores, labels = draw()
        positives = Positives.from_pairs(*np.nonzero(labels), *scores.shape)
        ap = mb.average_precision(scores, labels)
        samples = bootstrap_samples(scores, positives, ap, 100, trial).mean(axis=1)
        interval = compute_interval(samples)
        centred += interval.low <= truth <= interval.high
        uncentred = np.concatenate(list(bootstrap_average_precision(scores, positives, 100, trial))).mean(axis=1)
        plain += np.quantile(uncentred, 0.025) <= truth <= np.quantile(uncentred, 0.975)
    # Binomial(100, 0.95) is below 87 in one case of a thousand.
    assert centred >= 87 > plain


def test_a_class_with_three_positives_is_never_lost():
    labels = np.zeros((100, 1), bool)
    labels[:3] = True
    scores = np.random.default_rng(0).normal(size=(100, 1))
    positives = Positives.from_pairs(*np.nonzero(labels), 100, 1)
    samples = np.concatenate(list(bootstrap_average_precision(scores, positives, 500, seed=0)))
    assert not np.isnan(samples).any()


def test_intervals_in_the_result_are_those_of_the_replicates(toy_split):
    ids = toy_split.video_ids("test")
    labels = toy_split.labels("test")
    scores = np.random.default_rng(0).normal(size=labels.shape) + labels
    result = mb.evaluate(scores, ids, toy_split, bootstrap=200, seed=4)
    positives = Positives.from_pairs(*np.nonzero(labels), *scores.shape)
    samples = np.concatenate(list(bootstrap_average_precision(scores, positives, 200, seed=4)))
    assert result.intervals is not None
    for name, members in {"overall": range(12), **vars(toy_split.groups)}.items():
        value = getattr(result.mAP, name)
        means = samples[:, members].mean(axis=1)
        low, high = np.quantile(means - means.mean() + value, [0.025, 0.975])
        assert (result.intervals.mAP[name].low, result.intervals.mAP[name].high) == pytest.approx((low, high))
        assert low < value < high
    assert len(result.intervals.per_class) == 12
    assert (result.intervals.replicates, result.intervals.seed, result.intervals.level) == (200, 4, 0.95)


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_the_rows(toy_split):
    ids = toy_split.video_ids("test")
    scores = np.random.default_rng(0).normal(size=(len(ids), 12))
    a = mb.evaluate(scores, ids, toy_split, bootstrap=50, seed=1).to_json()
    b = mb.evaluate(scores[::-1], ids[::-1], toy_split, bootstrap=50, seed=1).to_json()
    assert a == b
    c = mb.evaluate(scores, ids, toy_split, bootstrap=50, seed=2).to_json()
    assert json.loads(a)["mAP"] == json.loads(c)["mAP"] and json.loads(a)["intervals"] != json.loads(c)["intervals"]


def test_the_command_prints_intervals(run, toy_split_file):
    from material import TOY

    outcome = run("evaluate", TOY / "predictions.npz", "--split", toy_split_file, "--bootstrap", "100")
    assert outcome.exit_code == 0 and "95% interval" in outcome.stdout
    refused = run(
        "evaluate", TOY / "predictions.npz", "--split", toy_split_file, "--bootstrap", "9", "--protocol", "apmeter"
    )
    assert refused.exit_code == 2 and "--bootstrap goes with --protocol tie-aware" in refused.stderr
    too_large = run(
        "evaluate", TOY / "predictions.npz", "--split", toy_split_file, "--bootstrap", "9", "--memory", "1K"
    )
    assert too_large.exit_code == 1 and "raise --memory" in too_large.stderr


def test_progress_reaches_its_announced_end(monkeypatch):
    from meidbench.evaluation.bootstrap import bootstrap_steps

    monkeypatch.setattr("meidbench.evaluation.bootstrap._WEIGHT_BYTES", 4 * 8 * 60)
    labels = np.ones((60, 20), bool)
    positives = Positives.from_pairs(*np.nonzero(labels), *labels.shape)
    done = []
    list(bootstrap_average_precision(np.zeros((60, 20)), positives, 9, 0, done.append))
    assert sum(done) == bootstrap_steps(60, 20, 9) == 60


@pytest.mark.parametrize("arguments", [{"bootstrap": -1}, {"seed": -1}, {"bootstrap": "many"}, {"seed": 0.5}])
def test_negative_numbers_are_refused(arguments, toy_split):
    with pytest.raises(mb.MeidbenchError, match="must be a whole number of at least 0"):
        mb.evaluate(np.zeros((49, 12)), toy_split.video_ids("test"), toy_split, **arguments)


def test_an_interval_is_of_the_expected_value_on_as_many_videos_which_lies_above_that_on_more():
    """Average precision of few videos is too high on average; the difference of two methods much less so."""
    generator = np.random.default_rng(0)

    def draw(videos):
        labels = generator.random((videos, 20)) < 0.05
        labels[0] = True
        errors = generator.normal(size=labels.shape)
        return labels, errors + labels, errors + 1.3 * labels

    def values(videos, draws):
        labels_and_scores = [draw(videos) for _ in range(draws)]
        return np.array(
            [[mb.average_precision(s, y).mean() for s in (one, other)] for y, one, other in labels_and_scores]
        )

    few, many = values(200, 200), values(20_000, 5)
    above = few.mean(axis=0) - many.mean(axis=0)
    error = few.std(axis=0) / np.sqrt(len(few))
    assert (above > 10 * error).all()
    assert abs(above[1] - above[0]) < above.min() / 3
    # The replicates are centred on the value of the drawn videos, which is above that of many: an interval moves along.
    labels, scores, _ = draw(200)
    ap = mb.average_precision(scores, labels)
    samples = bootstrap_samples(scores, Positives.from_pairs(*np.nonzero(labels), *labels.shape), ap, 200, 0)
    np.testing.assert_allclose(samples.mean(axis=0), ap, rtol=0, atol=1e-12)
