"""Average precision, means and accuracy against scikit-learn, naive loops and hand-worked rows."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

import meidbench as mb
from meidbench.errors import PredictionError
from meidbench.evaluation.accuracy import top_k_hits


def naive_average_precision(scores, labels):
    """The definition, class by class and positive by positive."""
    result = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        precisions = []
        for s in scores[labels[:, c], c]:
            at_least = [i for i in range(len(scores)) if scores[i, c] >= s]
            precisions.append(sum(bool(labels[i, c]) for i in at_least) / len(at_least))
        if precisions:
            result[c] = sum(precisions) / len(precisions)
    return result


def test_by_hand():
    # Ranks: 0.9 (positive), then 0.5 twice (one of them positive), then 0.1 (positive).
    scores = np.array([[0.9], [0.5], [0.5], [0.1]])
    labels = np.array([[True], [True], [False], [True]])
    # Precision at 0.9 is 1/1; at 0.5, 2 positives of 3 videos; at 0.1, 3 of 4.
    assert mb.average_precision(scores, labels)[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-15)


def test_a_constant_predictor_gets_the_share_of_positives():
    labels = np.zeros((200, 3), bool)
    labels[:7, 0] = labels[50:53, 1] = labels[:, 2] = True
    assert np.allclose(mb.average_precision(np.zeros((200, 3)), labels), [7 / 200, 3 / 200, 1])


dtypes = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8])


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 20)))
    dtype = draw(dtypes)
    if np.dtype(dtype).kind == "f":
        few = [0.0, -0.0, 1.0, -1.0, 0.5, np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).smallest_subnormal]
        any_value = st.floats(allow_nan=False, allow_infinity=False, width=8 * np.dtype(dtype).itemsize)
        elements = draw(st.sampled_from([st.sampled_from(few), any_value]))
    else:
        elements = hnp.from_dtype(np.dtype(dtype))
    scores = draw(hnp.arrays(dtype, shape, elements=elements))
    labels = draw(hnp.arrays(bool, shape))
    return (np.asfortranarray(scores) if draw(st.booleans()) else scores), labels


@settings(deadline=None, max_examples=200)
@given(problems())
def test_average_precision_equals_its_definition(problem):
    scores, labels = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = naive_average_precision(scores, labels)
    np.testing.assert_allclose(mb.average_precision(scores, labels), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_the_scores_are_left_as_they_were(problem):
    scores, labels = problem
    before = scores.copy()
    mb.average_precision(scores, labels)
    assert scores.tobytes() == before.tobytes()


@settings(deadline=None, max_examples=50)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_videos_changes_nothing(problem, shuffle):
    scores, labels = problem
    order = list(range(len(scores)))
    shuffle.shuffle(order)
    a, b = mb.average_precision(scores, labels), mb.average_precision(scores[order], labels[order])
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("scores", "labels", "complaint"), [
    (np.zeros((3, 2)), np.zeros((3, 1), bool), "expected \\(n, C\\) of both"),
    (np.zeros(3), np.zeros(3, bool), "expected \\(n, C\\) of both"),
    (np.array([[np.nan]]), np.ones((1, 1), bool), "NaN or infinity"),
    (np.array([["a"]]), np.ones((1, 1), bool), "expected real numbers"),
    (np.zeros((1, 1)), np.array([[np.nan]]), "labels must be true or false"),
    (np.zeros((1, 1)), np.array([[-1]]), "labels must be true or false"),
])  # fmt: skip
def test_wrong_arrays_are_refused(scores, labels, complaint):
    with pytest.raises(PredictionError, match=complaint):
        mb.average_precision(scores, labels)


def tied_scores(split, subset, knowledge=1):
    labels = split.labels(subset)
    noise = np.random.default_rng(0).standard_normal(labels.shape, dtype=np.float32)
    return np.round(noise + np.float32(knowledge) * labels, 1)


def scikit_learn(scores, labels):
    """scikit-learn's AP of each class, from the videos down to the lowest positive: the others have no part in it."""
    result = []
    for column, truth in zip(np.asfortranarray(scores).T, labels.T, strict=True):
        kept = column >= column[truth].min()
        result.append(average_precision_score(truth[kept], column[kept]))
    return np.array(result)


def test_evaluation_agrees_with_scikit_learn_on_the_real_splits(real_split):
    """Random scores with many ties, rows shuffled. scikit-learn also gets all videos, of VideoLT for a few classes."""
    labels, ids = real_split.labels("test"), real_split.video_ids("test")
    scores = tied_scores(real_split, "test", knowledge=4)
    order = np.random.default_rng(1).permutation(len(ids))
    result = mb.evaluate(scores[order], [ids[row] for row in order], real_split)
    got = np.array([entry.ap for entry in result.per_class])
    expected = scikit_learn(scores, labels)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    some = slice(None, None, 50 if len(got) > 200 else 1)
    of_all_videos = average_precision_score(labels[:, some], scores[:, some], average=None)
    np.testing.assert_allclose(got[some], of_all_videos, rtol=0, atol=1e-12)
    groups = {"overall": np.arange(len(got)), **vars(real_split.groups)}
    for name, index in groups.items():
        assert getattr(result.mAP, name) == pytest.approx(expected[index].mean(), abs=1e-12)
    sizes = [len(index) for index in vars(real_split.groups).values()]
    weighted = np.dot(sizes, [result.mAP.head, result.mAP.medium, result.mAP.tail]) / sum(sizes)
    assert result.mAP.overall == pytest.approx(weighted, abs=1e-12)
    assert result.groups["overall"].positives == labels.sum()


def naive_hits(scores, labels, k):
    hits = []
    for row, truth in zip(scores, labels, strict=True):
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        hits.append(any(truth[c] for c in best))
    return hits


@settings(deadline=None, max_examples=100)
@given(problems(), st.integers(1, 6))
def test_top_k_equals_sorting(problem, k):
    scores, labels = problem
    if scores.dtype.kind == "u":
        scores = scores.astype(np.int64)  # the naive loop negates
    rows, classes = np.nonzero(labels)
    scores = scores.astype(np.float64) if scores.dtype == np.float16 else scores
    as_objects = [[int(s) if scores.dtype.kind == "i" else float(s) for s in row] for row in scores]
    assert top_k_hits(scores, rows, classes, (k,))[k].tolist() == naive_hits(as_objects, labels, k)


def test_result_and_diagnostics_by_counting(toy_split):
    scores = tied_scores(toy_split, "test")
    scores[:, 4] = 2.5
    labels = toy_split.labels("test")
    result = mb.evaluate(scores, toy_split.video_ids("test"), toy_split)
    tied = [(scores[:, c] == scores[row, c]).sum() > 1 for row, c in zip(*np.nonzero(labels), strict=True)]
    assert result.diagnostics.tied_score_fraction == pytest.approx(np.mean(tied)) and 0 < np.mean(tied) < 1
    assert result.diagnostics.constant_classes == 1
    assert result.diagnostics.videos == len(scores)
    assert result.diagnostics.score_dtype == "float32"
    assert result.accuracy.top1 == np.mean(naive_hits(scores.tolist(), labels, 1))
    assert result.accuracy.top5 == np.mean(naive_hits(scores.tolist(), labels, 5))
    assert [entry.positives for entry in result.per_class] == labels.sum(axis=0).tolist()
    assert [entry.train_count for entry in result.per_class] == toy_split.train_counts.tolist()


def test_classes_without_positives_are_left_out_and_counted(toy_split):
    from meidbench.splits.split import Split

    rows = toy_split.rows("test")
    keep = [i for i, labels in enumerate(rows.column("labels").to_pylist()) if 0 not in labels]
    split = Split(rows.take(keep), toy_split.metadata)
    scores = tied_scores(split, "test")
    result = mb.evaluate(scores, split.video_ids("test"), split)
    positives = split.labels("test").sum(axis=0)
    empty = int((positives == 0).sum())
    assert empty >= 1 and result.diagnostics.classes_without_positives == empty
    assert np.isnan(result.per_class[0].ap)
    present = positives > 0
    expected = average_precision_score(split.labels("test")[:, present], scores[:, present], average="macro")
    assert result.mAP.overall == pytest.approx(expected, abs=1e-12)
    assert json.loads(result.to_json())["per_class"][0]["ap"] is None


def test_the_json_has_the_documented_keys(toy_split):
    ids, scores = toy_split.video_ids("test"), tied_scores(toy_split, "test")
    text = mb.evaluate(scores, ids, toy_split).to_json()
    content = json.loads(text)
    assert set(content) == {
        "format_version", "dataset", "variant", "subset", "split_digest", "protocol", "mAP", "accuracy", "groups",
        "diagnostics", "intervals", "per_class", "other_protocols", "warnings", "content_digest", "thresholds", "notes",
    }  # fmt: skip
    assert content["content_digest"] == toy_split.content_digest
    assert content["thresholds"] == {"head_above": 30, "tail_up_to": 12}
    assert set(content["mAP"]) == {"overall", "head", "medium", "tail"}
    assert set(content["accuracy"]) == {"top1", "top5"}
    assert set(content["groups"]["head"]) == {"classes", "positives"}
    assert set(content["per_class"][0]) == {"class", "name", "group", "train_count", "positives", "ap"}
    assert set(content["diagnostics"]) == {
        "videos", "classes_without_positives", "tied_score_fraction", "constant_classes", "score_dtype",
    }  # fmt: skip
    assert content["intervals"] is None and content["protocol"] == "tie-aware"
    assert text == json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert mb.evaluate(scores[::-1], ids[::-1], toy_split).to_json() == text


# --- ties ----------------------------------------------------------------------------------------------------------


def test_ties_with_other_videos_are_told(toy_split, toy_split_file, run, tmp_path):
    """Sigmoids that are 1 in float32: the share is counted by a loop; logits have no warning."""
    labels, ids = toy_split.labels("test"), toy_split.video_ids("test")
    logits = (np.random.default_rng(0).normal(17, 8, labels.shape) + 6 * labels).astype(np.float32)
    sigmoids = 1 / (1 + np.exp(-logits))
    pairs = list(zip(*np.nonzero(labels), strict=True))
    share = np.mean([(~labels[:, c] & (sigmoids[:, c] == sigmoids[row, c])).any() for row, c in pairs])
    assert share > 0.3
    warning = mb.evaluate(sigmoids, ids, toy_split).warnings[0]
    assert (
        warning.startswith(f"{share:.0%} of the positives") and "Write the logits of all classes in float32" in warning
    )
    assert mb.evaluate(logits, ids, toy_split).warnings == ()
    path = mb.write_predictions(tmp_path / "p.parquet", ids, sigmoids, toy_split, "test")
    assert f"warning: {warning}" in run("evaluate", path, "--split", toy_split_file).stderr
    page = tmp_path / "page.html"
    outcome = run("compare", path, "--split", toy_split_file, "--bootstrap", 2, "--html", page)
    assert f"warning: p: {warning}" in outcome.stderr and f"{share:.0%} of the positives" in page.read_text()


def test_ties_among_positives_alone_change_nothing(toy_split):
    labels, ids = toy_split.labels("test"), toy_split.video_ids("test")
    perfect = mb.evaluate(np.where(labels, 2.0, np.random.default_rng(0).random(labels.shape)), ids, toy_split)
    assert perfect.diagnostics.tied_score_fraction > 0.5 and perfect.warnings == ()
