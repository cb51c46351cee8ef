"""Prediction files: every refusal of the contract, all problems in one message, nothing unpickled."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

import meidbench as mb
from meidbench.errors import PredictionError, find_id_rule
from meidbench.predictions.align import (
    Predictions,
    align_predictions,
    read_predictions,
    run_warnings,
)
from meidbench.predictions.values import write_predictions
from meidbench.splits.split import Split


@pytest.fixture
def given(toy_split):
    """Well-formed predictions for the test subset, rows not in the split's order."""
    ids = toy_split.video_ids("test")[::-1]
    scores = np.random.default_rng(0).normal(size=(len(ids), toy_split.num_classes)).astype(np.float32)
    return Predictions(ids, scores)


def write_parquet(path, ids, scores, metadata=None):
    values = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1])
    table = pa.table({"video_id": ids, "scores": values})
    if metadata is not None:
        table = table.replace_schema_metadata({"meidbench": json.dumps(metadata)})
    pq.write_table(table, path)
    return path


def test_parquet_and_npz_are_read(given, tmp_path):
    write_parquet(tmp_path / "p", given.video_ids, given.scores, {"dataset": "toylt"})
    np.savez(tmp_path / "n.npz", video_ids=np.array(given.video_ids), scores=given.scores)
    for path in (tmp_path / "p", tmp_path / "n.npz"):
        got = read_predictions(path)
        assert got.video_ids == given.video_ids
        assert got.scores.dtype == np.float32 and np.array_equal(got.scores, given.scores)
    assert read_predictions(tmp_path / "p").metadata == {"dataset": "toylt"}


def test_many_row_groups_are_read_in_order(given, tmp_path):
    write_parquet(tmp_path / "p", given.video_ids, given.scores)
    pq.write_table(pq.read_table(tmp_path / "p"), tmp_path / "q", row_group_size=7)
    assert np.array_equal(read_predictions(tmp_path / "q").scores, given.scores)


def test_rows_are_brought_into_the_order_of_the_split(given, toy_split):
    aligned = align_predictions(given, toy_split, "test")
    assert np.array_equal(aligned, given.scores[::-1])


def refusal(predictions, split, subset="test", **options):
    with pytest.raises(PredictionError) as caught:
        align_predictions(predictions, split, subset, **options)
    return str(caught.value)


def test_missing_unknown_and_repeated_ids_are_named_together(given, toy_split):
    ids = list(given.video_ids)
    lost, ids[0], ids[1] = ids[:2], "unknown", ids[2]
    message = refusal(Predictions(ids, given.scores), toy_split)
    assert message.startswith("3 problem(s) with the predictions for toylt test:")
    assert f"1 video(s) occur more than once, with different scores: {ids[2]}" in message
    assert f"2 of {len(ids)} videos are missing: {lost[1]}, {lost[0]}" in message
    assert "1 video(s) are not in test: unknown" in message


def test_predictions_for_another_subset_are_recognised(toy_split):
    ids = toy_split.video_ids("val")
    message = refusal(Predictions(ids, np.zeros((len(ids), 12))), toy_split)
    assert "it holds videos of val" in message


@pytest.mark.parametrize(("scores", "complaint"), [
    (lambda s: s[:, :-1], "there are scores for 11 classes, the split has 12"),
    (lambda s: s[:-1], "the scores have shape"),
    (lambda s: s.ravel(), "the scores have shape"),
    (lambda s: s.astype(np.float16), "float16"),
    (lambda s: s.astype(complex), "of type complex128; expected real numbers"),
    (lambda s: s > 0, "of type bool; expected real numbers"),
    (lambda s: s.astype(str), "expected real numbers"),
])  # fmt: skip
def test_wrong_scores_are_refused(given, toy_split, scores, complaint):
    assert complaint in refusal(Predictions(given.video_ids, scores(given.scores)), toy_split)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_named_by_video(given, toy_split, bad):
    scores = given.scores.copy()
    scores[3, 2] = bad
    message = refusal(Predictions(given.video_ids, scores), toy_split)
    assert f"the scores of 1 video(s) hold NaN or infinity: {given.video_ids[3]}" in message


def test_huge_finite_scores_are_no_infinity(given, toy_split):
    scores = np.full(given.scores.shape, np.finfo(np.float32).max, np.float32)
    assert align_predictions(Predictions(given.video_ids, scores), toy_split, "test").shape == scores.shape


@pytest.mark.parametrize(("change", "rule"), [
    (lambda name: f"{name}.mp4", "the ids end in '.mp4': strip it, 'TOY24655.mp4' to 'TOY24655'"),
    (lambda name: f"{name}_rgb", "the ids end in '_rgb': strip it"),
    (lambda name: f"v_{name}", "the ids begin with 'v_': strip it"),
    (lambda name: f"v_{name}.avi", "the ids begin with 'v_' and end in '.avi': strip both"),
    (lambda name: f"test/{name}", "the ids begin with 'test/': strip it"),
    (lambda name: f"{name[-1]}\\{name}.npy", "the ids name folders: write the name alone"),
    (str.lower, "the ids differ in upper and lower case: write them as the split does, 'toy24655' to 'TOY24655'"),
    (lambda name: name[1:], "the ids do not begin with 'T': add it, 'OY24655' to 'TOY24655'"),
])  # fmt: skip
def test_a_rule_that_mends_the_ids_is_named(given, toy_split, change, rule):
    assert refusal(Predictions([change(name) for name in given.video_ids], given.scores), toy_split).count(rule) == 1
    few = [change(name) if row < 5 else name for row, name in enumerate(given.video_ids)]
    assert rule in refusal(Predictions(few, given.scores), toy_split)


def test_ids_read_as_numbers_lack_zeros():
    rule = find_id_rule([str(number) for number in range(120)], [f"{number:05d}" for number in range(200)])
    assert "read them as text, not as numbers (in pandas: dtype=str), '0' to '00000'" in str(rule)


def test_numbers_of_rows_are_no_ids():
    rule = find_id_rule(map(str, range(50)), [f"v{row * 7}" for row in range(1000, 1050)])
    assert str(rule) == "the ids are row numbers, such as the index of a DataFrame: write the ids of the videos"


def test_no_rule_is_invented():
    names = [f"{number:04d}" for number in range(100, 200)]
    for wrong in ([f"x{number}" for number in range(100)], [name[::-1] for name in names], names[:1], names, []):
        assert find_id_rule(wrong, names) is None
    half = [f"{name}.mp4" if row % 2 else f"other {row}" for row, name in enumerate(names)]
    assert find_id_rule(half, names) is None


def test_infinities_that_cancel_out_are_seen(given, toy_split):
    scores = given.scores.copy()
    scores[3, 2], scores[3, 3] = np.inf, -np.inf
    assert "NaN or infinity" in refusal(Predictions(given.video_ids, scores), toy_split)


def test_float16_and_integers_are_scored_where_allowed(given, toy_split):
    half = Predictions(given.video_ids, given.scores.astype(np.float16))
    assert align_predictions(half, toy_split, "test", allow_float16=True).dtype == np.float16
    whole = Predictions(given.video_ids, (given.scores * 100).astype(np.int32))
    assert align_predictions(whole, toy_split, "test").dtype == np.int32


@pytest.mark.parametrize(("metadata", "complaint"), [
    ({"dataset": "videolt"}, "its dataset is 'videolt', expected 'toylt'"),
    ({"subset": "val"}, "its subset is 'val', expected 'test'"),
    ({"split_digest": "abc"}, "its split_digest is 'abc'"),
    ({"content_digest": "abc"}, "its content_digest is 'abc'"),
    ({"class_names": ["x"]}, "its class names are not those of the split; unknown: x; missing: Doing thing 0"),
    ({"class_names": ["Doing thing 1", "thing 0", *(f"Doing thing {i}" for i in range(2, 12))]},
     "2 class name(s) are others: 0 'Doing thing 1' (expected 'Doing thing 0'), 1 'thing 0'"),
    ({"class_names": ["Doing thing 0", "Doing thing 0", *(f"Doing thing {i}" for i in range(2, 12))]},
     "1 class name(s) are others: 1 'Doing thing 0' (expected 'Doing thing 1')"),
])  # fmt: skip
def test_metadata_of_another_split_is_refused(given, toy_split, metadata, complaint):
    assert complaint in refusal(Predictions(given.video_ids, given.scores, metadata), toy_split)


def test_right_metadata_is_accepted(given, toy_split):
    metadata = {
        "dataset": "toylt", "subset": "test", "split_digest": toy_split.digest,
        "class_names": list(toy_split.class_names), "run": {"method": "any"},
    }  # fmt: skip
    align_predictions(Predictions(given.video_ids, given.scores, metadata), toy_split, "test")
    (note,) = run_warnings(metadata)  # files of older versions have only the digest of the labels
    assert "the groups of the classes were not compared" in note
    metadata["content_digest"] = toy_split.content_digest
    align_predictions(Predictions(given.video_ids, given.scores, metadata), toy_split, "test")
    assert run_warnings(metadata) == [] == run_warnings({})


def test_predictions_for_other_groups_are_refused(given, toy_split, tmp_path):
    path = write_predictions(tmp_path / "p.parquet", given.video_ids, given.scores, toy_split, "test")
    other = Split(toy_split.table, replace(toy_split.metadata, head_above=60, tail_up_to=8))
    assert other.digest == toy_split.digest
    with pytest.raises(PredictionError, match="the labels are the same, but the class names or the groups are others"):
        align_predictions(read_predictions(path), other, "test")


def test_files_of_another_kind_are_refused(tmp_path):
    def complaint(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(PredictionError) as caught:
            read_predictions(tmp_path / name)
        return str(caught.value)

    assert "there is no prediction file" in complaint("none")
    assert "is empty" in complaint("empty", b"")
    assert "neither a CSV header (video_id, then the classes) nor 'ID s1 ... sC'" in complaint("text", b"hello, world")
    assert "nor readable text" in complaint("noise", b"\x00\xff\xfe\x80")
    assert "meidbench.write_predictions" in complaint("r.pkl", b"\x80\x05]\x94.")
    assert "holds no line" in complaint("blank", b"\n \n")
    assert "not a readable Parquet file" in complaint("cut.parquet", b"PAR1 and no more")
    assert "not a readable NPZ archive" in complaint("cut.npz", b"PK\x03\x04 and no more")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "p.npz", video_ids=np.array(["a"]), scores=np.array([Trap()], dtype=object))
    with pytest.raises(PredictionError, match="pickled objects, which are never loaded"):
        read_predictions(tmp_path / "p.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("columns", "complaint"), [
    ({"clip": ["a"], "scores": [1.0]}, "clip, scores; expected video_id, .*lists.*column of .*write_predictions"),
    ({"video_id": ["a"]}, "columns video_id; expected video_id, and scores as lists"),
    ({"video_id": ["a"], "run": ["x"]}, "hold no real numbers: run \\(string\\)"),
    ({"video_id": ["a"], "scores": pa.array([["x"]], pa.list_(pa.string(), 1))}, "expected lists of a real number"),
    ({"video_id": ["a"], "tags": pa.array([[1.0]])}, "it lacks scores; it holds tags"),
    ({"video_id": ["a"], "logits": pa.array([[1.0]]), "probs": pa.array([[1.0]])}, "logits, probs; name"),
    ({"video_id": [0.5], "scores": pa.array([[1.0]])}, "video_id is of type double; expected string"),
    ({"video_id": ["a"], "run": [None]}, "hold no real numbers: run \\(null\\)"),
    ({"video_id": ["a", "b"], "run": [1.0, None]}, "there are empty cells"),
    ({"video_id": ["a", "b"], "scores": [[1.0], None]}, "there are empty cells"),
    ({"video_id": ["a", "b", "c"], "scores": [[1, 2], [1], [1, 2]]}, "1 row.* than 2: row 1 \\(b\\) has 1"),
    ({"video_id": list("abcd"), "scores": [[1, 2], [1], [1, 2, 3], [1, 2]]}, "2 row.*: row 1 .b. has 1, row 2"),
    ({"video_id": [None], "scores": pa.array([[1.0]], pa.list_(pa.float32(), 1))}, "expected string|are empty cells"),
    ({"video_id": ["a"], "scores": pa.array([[None]], pa.list_(pa.float32(), 1))}, "there are empty cells"),
    ({"video_id": ["a"], "scores": pa.array([None], pa.list_(pa.float32(), 1))}, "empty cells|all lists to be of"),
])  # fmt: skip
def test_parquet_columns_must_be_those_of_the_contract(tmp_path, columns, complaint):
    pq.write_table(pa.table(columns), tmp_path / "p")
    with pytest.raises(PredictionError, match=complaint):
        read_predictions(tmp_path / "p")


@pytest.mark.parametrize(("arrays", "complaint"), [
    ({"scores": np.zeros((1, 2))}, "it lacks video_ids; it holds scores"),
    ({"video_ids": np.array(["a"])}, "it lacks scores"),
    ({"video_ids": np.array([[1]]), "scores": np.zeros((1, 2))}, "expected \\(n,\\) text"),
    ({"video_ids": np.array([0.5]), "scores": np.zeros((1, 2))}, "expected \\(n,\\) text"),
    ({"video_ids": np.array(["a"]), "logits": np.zeros((1, 2)), "probs": np.zeros((1, 2))}, "logits, probs; name"),
    ({"video_ids": np.array([b"\xff"]), "scores": np.zeros((1, 2))}, "not a readable NPZ archive: 'utf-8' codec"),
])  # fmt: skip
def test_npz_arrays_must_be_those_of_the_contract(tmp_path, arrays, complaint):
    np.savez(tmp_path / "n.npz", **arrays)
    with pytest.raises(PredictionError, match=complaint):
        read_predictions(tmp_path / "n.npz")


# --- arrays of other libraries ----------------------------------------------------------------------------------


def test_tensors_are_scored_as_their_numbers(toy_split, tmp_path):
    """With gradients, of bfloat16, of big-endian numbers, of more than 64 bits, and as lists."""
    labels, ids = toy_split.labels("test"), toy_split.video_ids("test")
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=labels.shape)).bfloat16().float()
    expected = average_precision_score(labels, scores.numpy(), average=None)
    plain = scores.numpy()
    others = [
        scores.clone().requires_grad_(), scores.bfloat16(), plain.astype(">f4"), plain.astype(np.longdouble),
        plain.tolist(), list(scores), torch.nn.Parameter(scores), list(scores.clone().requires_grad_()),
    ]  # fmt: skip
    for given in others:
        np.testing.assert_allclose(mb.average_precision(given, torch.from_numpy(labels)), expected, atol=1e-12)
    mean = pytest.approx(expected.mean(), abs=1e-12)
    assert mb.evaluate(others[0], ids, toy_split).mAP.overall == mean
    assert mb.evaluate(others[1], ids, toy_split, allow_float16=True).mAP.overall == mean
    with pytest.raises(PredictionError, match="the scores are bfloat16, .* float32"):
        mb.evaluate(others[1], ids, toy_split)
    for given in (others[0], others[2]):
        mb.write_predictions(tmp_path / "p.parquet", ids, given, toy_split, "test")
        assert np.array_equal(read_predictions(tmp_path / "p.parquet").scores, plain)


@pytest.mark.parametrize(("scores", "remedy"), [
    (lambda t: t.half(), "are float16, .* write float32"),
    (lambda t: t.half().numpy().astype(">f2"), "are float16, .* write float32"),
    (lambda t: t.bfloat16(), "are bfloat16, .* write float32"),
    (lambda t: t.numpy().astype(np.longdouble), "write scores.astype"),
    (lambda t: t.numpy().astype(object), "of type object; .* an array of float32"),
    (lambda t: [[0, 3], *[[1]] * (len(t) - 1)], "Lists of class indices must become rows of 0 and 1"),
    (lambda t: [[1]] * len(t), "shape .*, 1.; expected .*, 12"),
    (lambda t: [t[:2], t[2:]], "torch.cat a list of batches"),
    (lambda t: t.to("meta"), "no data"),
    (lambda t: t.to_sparse(), "dense"),
    (lambda t: t.bool(), "expected real numbers"),
    (lambda t: np.ma.masked_array(t.numpy(), t.numpy() > 0.5), "some are masked"),
    (lambda t: t[:, :0], "expected"),
    (lambda t: None, "expected"),
])  # fmt: skip
def test_scores_of_a_wrong_kind_are_refused_with_what_to_write(scores, remedy, toy_split, tmp_path):
    ids = toy_split.video_ids("test")
    with pytest.raises(PredictionError, match=remedy):
        mb.write_predictions(tmp_path / "p.parquet", ids, scores(torch.rand(len(ids), 12)), toy_split, "test")
    assert not list(tmp_path.iterdir())


def test_labels_as_class_indices_are_refused():
    for labels in ([[0], [1], [0]], [[0], [0, 1], []], [[0, 2], [1, 2], [0, 1]]):
        with pytest.raises(PredictionError, match="of both|class indices"):
            mb.average_precision(np.eye(3)[:, :2], labels)


def test_facts_about_a_run_may_be_numbers_of_numpy(toy_split, tmp_path):
    ids, path = toy_split.video_ids("test"), tmp_path / "p.parquet"
    run = {"epoch": np.int64(3), "lr": np.float32(0.5), "steps": np.arange(3), "select_on": "val"}
    mb.write_predictions(path, ids, np.zeros((len(ids), 12)), toy_split, "test", run)
    assert read_predictions(path).metadata["run"] == {"epoch": 3, "lr": 0.5, "steps": [0, 1, 2], "select_on": "val"}
    path.unlink()
    for wrong, complaint in (
        ({"day": object()}, "run holds <object"), ({"select_on": "tset"}, "'tset'; expected one of train, val"),
        ([1], "expected a dict"), ({(1, 2): 3}, "cannot be written as JSON"), ({"loss": np.nan}, "as JSON"),
    ):  # fmt: skip
        with pytest.raises(PredictionError, match=complaint):
            mb.write_predictions(path, ids, np.zeros((len(ids), 12)), toy_split, "test", wrong)
    assert not path.exists()
    assert "'tset', which is no subset" in run_warnings({"run": {"select_on": "tset"}})[0]
