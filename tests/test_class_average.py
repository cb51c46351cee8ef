"""Class-average accuracy against plain loops and scikit-learn, in every place that shows it."""

import base64
import csv
import json
import pickle
import re
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

import meidbench as mb
from meidbench.evaluation.accuracy import find_single_labels, recall_by_class
from meidbench.evaluation.bootstrap import bootstrap_recall, correct_holm, draw_weights
from meidbench.evaluation.evaluate import group_members
from meidbench.evaluation.results import CLASS_AVERAGE, NO_CLASSES
from meidbench.report.latex import comparison_latex
from meidbench.report.text import comparison_table, evaluation_table, format_signed
from meidbench.splits.split import Split

GROUPS = ("overall", "head", "medium", "tail")


def make_split(test_labels, num_classes=8, tail_up_to=6):
    """Return a split of one label per video and 12 - c training videos of class c: head 0 to 2, tail 6 and 7."""
    train = [c for c in range(num_classes) for _ in range(12 - c)]
    rows = {
        "video_id": [f"t{row}" for row in range(len(train))] + [f"v{row}" for row in range(len(test_labels))],
        "subset": ["train"] * len(train) + ["test"] * len(test_labels),
        "labels": [label if isinstance(label, list) else [label] for label in [*train, *test_labels]],
    }
    return mb.split_from_pandas(
        pd.DataFrame(rows), dataset="singles", head_above=9, tail_up_to=tail_up_to,
        class_names=[f"class {c}" for c in range(num_classes)],
    )  # fmt: skip


LABELS = [0] * 6 + [1] * 5 + [2] * 4 + [3] * 3 + [5] * 3 + [6] * 2 + [7]  # class 4 has no test video


@pytest.fixture(scope="module")
def split():
    return make_split(LABELS)


@pytest.fixture(scope="module")
def no_tail():
    return make_split(LABELS, tail_up_to=0)


def draw_scores(split, seed=0, knowledge=1.0):
    """Rounded scores, so that classes share the highest score of many videos."""
    labels = split.labels("test")
    return np.round(np.random.default_rng(seed).normal(size=labels.shape) + knowledge * labels)


def loop_recall(scores, labels, num_classes, weights=None):
    """The definition, video by video; the first of several classes with the highest score is the answer."""
    weights = [1.0] * len(labels) if weights is None else weights
    found, given_weights = [0.0] * num_classes, [0.0] * num_classes
    for row, label, weight in zip(scores.tolist(), labels, weights, strict=True):
        given_weights[label] += weight
        found[label] += weight * (row.index(max(row)) == label)
    return [f / w if w else float("nan") for f, w in zip(found, given_weights, strict=True)]


def loop_means(recall, split):
    means = {}
    for group, members in group_members(split).items():
        known = [recall[c] for c in members if recall[c] == recall[c]]
        means[group] = sum(known) / len(known) if known else float("nan")
    return means


def runs_of(split):
    return {"weak": (split.video_ids("test"), draw_scores(split, 1, 0.3)),
            "good": [(split.video_ids("test"), draw_scores(split, seed, 3.0)) for seed in (2, 3)],
            "fair": (split.video_ids("test"), draw_scores(split, 4, 1.5))}  # fmt: skip


# --- the value ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=30), st.integers(0, 1000))
def test_it_is_a_plain_loop_and_balanced_accuracy(labels, seed):
    split = make_split(labels)
    scores = draw_scores(split, seed)
    result = mb.evaluate(scores, split.video_ids("test"), split)
    recall = loop_recall(scores, labels, 8)
    assert [entry.recall for entry in result.per_class] == pytest.approx(recall, nan_ok=True)
    assert vars(result.accuracy.class_average) == pytest.approx(loop_means(recall, split), nan_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of answers that are no label of any video, and leaves them out
        expected = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert result.accuracy.class_average.overall == pytest.approx(expected, abs=1e-12)


def test_ties_have_the_rule_of_top_1(split):
    scores = np.zeros((len(LABELS), 8))
    result = mb.evaluate(scores, split.video_ids("test"), split)
    assert [entry.recall for entry in result.per_class][:2] == [1.0, 0.0]
    assert result.accuracy.class_average.overall == pytest.approx(1 / 7)
    assert result.accuracy.top1 == pytest.approx(6 / len(LABELS))


def test_it_is_not_defined_where_a_video_has_no_label_or_several(toy_split, split):
    for labels in ([[0, 1], 2], [[], 2]):
        other = make_split(labels)
        result = mb.evaluate(np.eye(8)[:2], other.video_ids("test"), other, bootstrap=5)
        assert result.accuracy.class_average is None and result.per_class[0].recall is None
        assert result.intervals.class_average is None and "recall" not in result.to_pandas()
        assert "class_average" not in result.to_json() and "recall" not in result.to_json()
        assert CLASS_AVERAGE not in evaluation_table(result) + repr(result)
    assert find_single_labels(toy_split, "test") is None
    assert find_single_labels(split, "test").tolist() == LABELS


def test_the_protocol_changes_nothing(split):
    scores, ids = draw_scores(split), split.video_ids("test")
    found = {protocol: mb.evaluate(scores, ids, split, protocol=protocol) for protocol in ("apmeter", "charades")}
    expected = mb.evaluate(scores, ids, split).accuracy
    assert all(result.accuracy == expected for result in found.values())


def test_by_block_and_from_the_command_line(split, run, tmp_path):
    """A limit of one block of rows: rows come in another order, the JSON has the same bytes."""
    rows = [c % 8 for c in range(3000)]
    large = make_split(rows)
    scores = draw_scores(large).astype(np.float32)
    order = np.random.default_rng(3).permutation(len(rows))
    ids = large.video_ids("test")
    predictions = mb.write_predictions(
        tmp_path / "p.parquet", [ids[row] for row in order], scores[order], large, "test"
    )
    file = mb.write_split(large, tmp_path / "large.parquet")
    texts = []
    for memory in ("4G", "10K"):
        out = tmp_path / f"{memory}.json"
        outcome = run("evaluate", predictions, "--split", file, "--memory", memory, "--json", out)
        assert outcome.exit_code == 0, outcome.output
        texts.append(out.read_text())
    assert texts[0] == texts[1]
    recall = loop_recall(scores, rows, 8)
    assert json.loads(texts[0])["accuracy"]["class_average"] == pytest.approx(loop_means(recall, large))
    assert [entry["recall"] for entry in json.loads(texts[0])["per_class"]] == pytest.approx(recall)


# --- intervals and differences ------------------------------------------------------------------------------------


def loop_samples(scores, split, replicates, seed):
    """The recall of every replicate, from the weights that average precision gets, centred on the value."""
    generator = np.random.default_rng(seed)
    drawn = [loop_recall(scores, LABELS, 8, generator.standard_exponential(len(LABELS))) for _ in range(replicates)]
    return np.array(drawn) + np.array(loop_recall(scores, LABELS, 8)) - np.mean(drawn, axis=0)


def loop_interval(samples, members):
    means = [np.mean([value for value in sample[members] if value == value]) for sample in samples]
    return tuple(np.clip(np.quantile(means, [0.025, 0.975]), 0, 1)), means


def test_intervals_are_those_of_a_loop_with_the_weights_of_average_precision(split, monkeypatch):
    scores = draw_scores(split)
    result = mb.evaluate(scores, split.video_ids("test"), split, bootstrap=40, seed=9)
    samples = loop_samples(scores, split, 40, 9)
    for group, members in group_members(split).items():
        interval = result.intervals.class_average[group]
        assert (interval.low, interval.high) == pytest.approx(loop_interval(samples, members)[0])
        assert interval.low <= getattr(result.accuracy.class_average, group) <= interval.high
    monkeypatch.setattr("meidbench.evaluation.bootstrap._WEIGHT_BYTES", 7 * 8 * len(LABELS))
    assert [weights.shape[1] for weights in draw_weights(len(LABELS), 40, 9)] == [7] * 5 + [5]
    hits = scores.argmax(axis=1) == LABELS
    got = bootstrap_recall(hits, np.array(LABELS), 8, 40, 9)
    np.testing.assert_allclose(got, samples, rtol=0, atol=1e-12)
    assert np.isnan(got[:, 4]).all() and np.isnan(recall_by_class(hits, np.array(LABELS), 8)[4])


def test_differences_are_paired_and_corrected(split):
    comparison = mb.compare(runs_of(split), split, replicates=60, seed=2, reference="fair")
    samples = {
        name: np.mean(
            [loop_samples(s, split, 60, 2) for _, s in (given if isinstance(given, list) else [given])], axis=0
        )
        for name, given in runs_of(split).items()
    }
    weak, good, fair = (method.class_average for method in comparison.methods)
    assert fair.difference is None and fair.tally is None and fair.corrected is None
    for group, members in group_members(split).items():
        chances = []
        for method, name in ((weak, "weak"), (good, "good")):
            change = samples[name] - samples["fair"]
            means = loop_interval(change, members)[1]
            got = method.difference[group]
            assert (got.low, got.high) == pytest.approx(tuple(np.clip(np.quantile(means, [0.025, 0.975]), -1, 1)))
            assert got.value == pytest.approx(method.means[group].value - fair.means[group].value)
            better = np.mean([(value > 1e-12) + 0.5 * (abs(value) <= 1e-12) for value in means])
            assert got.probability == pytest.approx(better)
            chances.append(2 * max(min(better, 1 - better), 1 / 60))
            known = np.subtract(method.recall, fair.recall)[members]
            tally = method.tally[group]
            assert (tally.wins, tally.losses) == ((known > 1e-12).sum(), (known < -1e-12).sum())
            assert tally.wins + tally.ties + tally.losses == np.sum(~np.isnan(known))
        assert [weak.corrected[group], good.corrected[group]] == pytest.approx(correct_holm(chances))
    single = [mb.evaluate(s, ids, split).accuracy.class_average.tail for ids, s in runs_of(split)["good"]]
    assert (
        good.means["tail"].value == comparison.methods[1].accuracy.class_average.tail == pytest.approx(np.mean(single))
    )
    spread = good.seed_spread["tail"]
    assert (spread.seeds, spread.low, spread.high) == (2, min(single), max(single))
    assert spread.std == pytest.approx(np.std(single, ddof=1)) and weak.seed_spread is None


def test_another_reference_gives_what_a_comparison_with_it_gives(split):
    first = mb.compare(runs_of(split), split, replicates=10)
    other = mb.compare(runs_of(split), split, replicates=10, reference="good")
    assert first.with_reference("good").to_json() == other.to_json() != first.to_json()


@pytest.mark.parametrize(("found", "videos"), [(1, 2), (2, 5), (3, 20), (1, 1)])
def test_the_replicates_of_a_class_follow_the_beta_distribution(found, videos):
    """Its variance is k (n - k) / (n² (n + 1)): none for a class with one video."""
    hits = np.arange(videos) < found
    samples = bootstrap_recall(hits, np.zeros(videos, np.int64), 1, 20000, 0)[:, 0]
    share = found / videos
    assert samples.mean() == pytest.approx(share)
    assert samples.var() == pytest.approx(share * (1 - share) / (videos + 1), rel=0.04, abs=1e-15)


# --- where it is shown --------------------------------------------------------------------------------------------


def test_json_tables_and_frames_of_a_result(split, tmp_path, run):
    scores, ids = draw_scores(split), split.video_ids("test")
    plain, result = mb.evaluate(scores, ids, split), mb.evaluate(scores, ids, split, bootstrap=10)
    average = result.accuracy.class_average
    content = json.loads(result.to_json())
    assert content["accuracy"]["class_average"] == {group: getattr(average, group) for group in GROUPS}
    assert content["intervals"]["class_average"]["tail"] == vars(result.intervals.class_average["tail"])
    assert content["per_class"][4]["recall"] is None and content["per_class"][0]["recall"] is not None
    assert content["format_version"] == 1 and content["diagnostics"]["classes_without_positives"] == 1
    assert result.to_pandas()["recall"].tolist() == pytest.approx([e.recall for e in result.per_class], nan_ok=True)
    for text in (evaluation_table(result), repr(result), result._repr_html_()):
        assert CLASS_AVERAGE in text and f"{average.tail:.4f}" in text
    interval = result.intervals.class_average["head"]
    assert f"{average.head:.4f}  {interval.low:.4f} to {interval.high:.4f}" in evaluation_table(result)
    assert "interval" not in evaluation_table(plain) and CLASS_AVERAGE in evaluation_table(plain)
    path, out = mb.write_predictions(tmp_path / "p.parquet", ids, scores, split, "test"), tmp_path / "classes.csv"
    file = mb.write_split(split, tmp_path / "split.parquet")
    outcome = run("evaluate", path, "--split", file, "--per-class", out)
    assert outcome.exit_code == 0 and CLASS_AVERAGE in outcome.stdout
    with out.open(newline="") as stream:
        recalls = [row["recall"] for row in csv.DictReader(stream)]
    assert recalls == ["" if np.isnan(e.recall) else repr(e.recall) for e in result.per_class] and recalls[4] == ""


def test_json_tables_and_frames_of_a_comparison(split):
    comparison = mb.compare(runs_of(split), split, replicates=20)
    good = comparison.methods[1].class_average
    method = json.loads(comparison.to_json())["methods"][1]
    assert set(method["class_average"]) == {"means", "recall", "seed_spread", "difference", "tally", "corrected"}
    assert method["class_average"]["means"]["tail"] == vars(good.means["tail"])
    assert method["accuracy"]["class_average"]["tail"] == good.means["tail"].value
    frame = comparison.to_pandas().set_index(["method", "group"])
    assert frame["class_average"]["good", "tail"] == good.means["tail"].value
    assert frame["class_average_difference_high"]["good", "tail"] == good.difference["tail"].high
    assert frame["class_average_corrected"]["good", "head"] == good.corrected["head"]
    assert frame["class_average_seed_std"]["good", "head"] == good.seed_spread["head"].std
    assert np.isnan(frame["class_average_wins"]["weak", "tail"])
    assert CLASS_AVERAGE in repr(comparison) and f"{good.means['overall'].value:.4f}" in repr(comparison)
    text = comparison_table(comparison)
    assert text.count(CLASS_AVERAGE) == 5 and "lowest to highest mAP and class-average accuracy" in text
    assert (
        f"{good.means['tail'].value:.4f} [" in text
        and text.count("win/tie/loss (recall)") == text.count("over seeds (recall)") == 1
    )
    latex = comparison_latex(comparison)
    assert latex.count("\\begin{table*}") == 2 and "{tab:singles-table-test-class-average-accuracy}" in latex
    assert "Class-average accuracy (mean over the classes of the recall at one answer) on the test" in latex
    page = mb.comparison_html(comparison)
    for part in ('<section id="class-average">', 'id="class-average-table"', 'id="class-average-differences-table"',
                 'id="class-average-seeds-table"', '<a href="#class-average">', "recall, good",
                 "mean average precision (mAP) and class-average accuracy over classes"):  # fmt: skip
        assert page.count(part) == 1, part
    assert f"{good.recall[0]:.3f}" in page
    packed = re.search(r'<template class="against" data-name="good">(.*?)<', page).group(1)
    against = zlib.decompress(base64.urlsafe_b64decode(packed)).decode()  # what the page shows with this reference
    change = comparison.with_reference("good").methods[0].class_average.difference["tail"].value
    section = against[against.index('<section id="class-average">') : against.index('<section id="differences">')]
    assert format_signed(change) in section


def test_a_comparison_of_several_labels_has_nothing_of_it(toy_split):
    scores = np.random.default_rng(0).normal(size=toy_split.labels("test").shape)
    comparison = mb.compare({"a": (toy_split.video_ids("test"), scores)}, toy_split, replicates=5)
    assert "class_average" not in comparison.to_json() and "class_average" not in comparison.to_pandas()
    for text in (comparison_table(comparison), comparison_latex(comparison), mb.comparison_html(comparison)):
        assert "class-average" not in text.lower() and "recall" not in text


def test_an_empty_group_is_said_to_be_empty(no_tail):
    """No class is in the tail: its mean is null in JSON and told in every table, never NaN."""
    comparison = mb.compare(runs_of(no_tail), no_tail, replicates=5)
    result = mb.evaluate(draw_scores(no_tail), no_tail.video_ids("test"), no_tail, bootstrap=5)
    assert json.loads(result.to_json())["accuracy"]["class_average"]["tail"] is None
    assert NO_CLASSES in evaluation_table(result) and NO_CLASSES in repr(result)
    assert comparison_table(comparison).count(f"tail: {NO_CLASSES}") == 1
    assert comparison_latex(comparison).count(f"tail: {NO_CLASSES}.") == 2
    assert "\N{EN DASH}" not in comparison_latex(comparison)
    page = re.sub("<script>.*</script>", "", mb.comparison_html(comparison), flags=re.DOTALL)
    for text in (evaluation_table(result), comparison_table(comparison), page):
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_groups_by_list_with_names_of_their_own():
    """As a benchmark that lists its tail classes and has no medium: names and the empty group as for mAP."""
    rows = [("train", c) for c in range(8) for _ in range(3)] + [("test", c) for c in LABELS]
    frame = pd.DataFrame({"video_id": map(str, range(len(rows))), "subset": [subset for subset, _ in rows],
                          "labels": [[label] for _, label in rows]})  # fmt: skip
    listed = mb.split_from_pandas(
        frame, dataset="listed", class_names=[f"class {c}" for c in range(8)], groups=["head"] * 5 + ["tail"] * 3
    )
    listed = Split(listed.table, replace(listed.metadata, group_names={"head": "many", "tail": "few"}))
    result = mb.evaluate(draw_scores(listed), listed.video_ids("test"), listed)
    average = result.accuracy.class_average
    assert vars(average) == pytest.approx(loop_means([e.recall for e in result.per_class], listed), nan_ok=True)
    assert re.search(f"few +0.[0-9]+ +{average.tail:.4f} +3", evaluation_table(result))
    assert re.search(f"medium +{NO_CLASSES} +{NO_CLASSES} +0", evaluation_table(result))
    comparison = mb.compare(runs_of(listed), listed, replicates=5)
    text, latex = comparison_table(comparison), comparison_latex(comparison)
    assert re.search(f"^few +{CLASS_AVERAGE}", text, re.MULTILINE) and text.count(f"medium: {NO_CLASSES}") == 1
    assert re.search(r"over seeds \(recall\) +overall +many +few\n", text)
    assert latex.count("Method & overall & many & few & overall & many & few") == 2
    assert latex.count("the many (4) and few (3) classes") == latex.count(f"medium: {NO_CLASSES}.") == 2
    page = mb.comparison_html(comparison)
    section = page[page.index('<section id="class-average">') : page.index('<section id="frequency">')]
    assert section.count("few<small>3 classes</small>") == 3 and ">tail<" not in section and "± \N{EN DASH}" not in page
    assert section.count(f"medium<small>{NO_CLASSES}</small>") == 5
    assert comparison.to_pandas().groupby("group")["classes"].first()["medium"] == 0


# --- in a training loop -------------------------------------------------------------------------------------------


def test_the_metric_is_evaluate_of_its_batches(split):
    scores, ids = draw_scores(split), split.video_ids("test")
    expected = mb.evaluate(scores, ids, split).accuracy.class_average
    first, second = mb.ClassAverageAccuracy(split), mb.ClassAverageAccuracy(split, "test")
    first.update(ids[10::-1], scores[10::-1].astype(np.float32))
    second.update(ids[10:], scores[10:])  # one video is in both
    first.merge([pickle.loads(pickle.dumps(second))])
    assert first.compute() == first.compute() == expected
    assert repr(first) == f"<ClassAverageAccuracy singles test: scores of {len(ids)} of {len(ids)} videos>"
    first.reset()
    assert "videos have no scores yet: update the metric" in refusal(first.compute)


def refusal(call, *arguments):
    with pytest.raises(mb.MeidbenchError) as caught:
        call(*arguments)
    return str(caught.value)


def test_the_metric_refuses_what_it_cannot_score(split, toy_split):
    scores, ids = draw_scores(split), split.video_ids("test")
    metric = mb.ClassAverageAccuracy(split)
    assert "hold NaN or infinity: v1" in refusal(metric.update, ids[:2], [[0.0] * 8, [np.nan] * 8])
    assert "shape (2, 7); expected (2, 8)" in refusal(metric.update, ids[:2], scores[:2, 1:])
    assert "are float16" in refusal(metric.update, ids[:2], scores[:2].astype(np.float16))
    metric.update(ids, scores)
    metric.update(ids[:1], np.roll(scores[:1], 1, axis=1) + np.arange(8) * 9)
    assert "1 video(s) occur more than once, with different scores: v0" in refusal(metric.compute)
    assert "merge takes metrics" in refusal(metric.merge, mb.MeanAveragePrecision(split))
    message = refusal(mb.ClassAverageAccuracy, toy_split)
    assert "needs exactly one label per video; in test, " in message and "none or several" in message
    assert "MeanAveragePrecision" in message


def test_a_pair_of_results_is_equal_only_with_the_same_averages(split):
    result = mb.evaluate(draw_scores(split), split.video_ids("test"), split)
    assert result != replace(result, accuracy=replace(result.accuracy, class_average=None))
