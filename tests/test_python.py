"""What a Python caller writes: frames, tensors, comparisons, a metric, the cross-check, and what is printed."""

import json
import pickle
import pydoc
import subprocess
import sys
from ast import literal_eval
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from inspect import getdoc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import CONTEXT, start_two
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


def message_of(call, *arguments, **options):
    with pytest.raises(mb.MeidbenchError) as caught:
        call(*arguments, **options)
    assert "--" not in str(caught.value)
    return str(caught.value)


# --- the names ----------------------------------------------------------------------------------------------------


def test_dir_shows_the_public_names_and_every_one_is_there():
    assert dir(mb) == sorted(mb.__all__) and "Any" not in dir(mb)
    assert {name: getattr(mb, name) for name in mb.__all__}["compare"] is mb.compare
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        mb.evaluat  # noqa: B018


def test_help_has_a_line_for_every_public_name():
    lines = getdoc(mb).splitlines()
    table = [line.split(maxsplit=1) for line in lines[lines.index("") + 3 :]]
    assert [name for name, _ in table] == [name for name in mb.__all__ if name != "__version__"]
    assert all(len(meaning) > 10 for _, meaning in table)
    assert table[0][1] in pydoc.plain(pydoc.render_doc(mb))


def test_help_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import meidbench as mb; help(mb); print(dir(mb))"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, names = outcome.stdout.splitlines()
    assert any(line.startswith("    evaluate(") for line in shown)
    assert set(mb.__all__) - set(literal_eval(names)) == {
        "AnimalKingdom", "CharadesEgoLT", "CharadesLT", "FeatureDataset", "VideoLT",
    }  # fmt: skip


def test_nothing_heavy_is_imported_before_a_name_is_used():
    code = "import sys, meidbench as mb; dir(mb); print({'numpy', 'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    code += "; mb.evaluate, mb.MeanAveragePrecision, mb.compare; print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "set()\nFalse\n"


# --- frames and ids -----------------------------------------------------------------------------------------------


@pytest.fixture
def frame(toy_split, ids, scores):
    return pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=toy_split.class_names)


FRAMES = {
    "ids as index": lambda frame: frame,
    "ids as unnamed index": lambda frame: frame.rename_axis(None),
    "column video_id": lambda frame: frame.reset_index(),
    "column id": lambda frame: frame.reset_index(names="id"),
    "column Video": lambda frame: frame.reset_index(names="Video"),
    "column index": lambda frame: frame.rename_axis(None).reset_index(),
    "lists of logits": lambda frame: pd.DataFrame({"vid": frame.index, "logits": frame.to_numpy().tolist()}),
    "classes in another order": lambda frame: frame[frame.columns[::-1]],
    "numbered classes": lambda frame: frame.set_axis(range(12), axis="columns"),
    "rows in another order": lambda frame: frame.sample(frac=1, random_state=1),
    "types of pandas": lambda frame: frame.reset_index().convert_dtypes(),
    "types of Arrow": lambda frame: frame.astype("float[pyarrow]"),
    "lists": lambda frame: pd.DataFrame({"video_id": frame.index, "scores": frame.to_numpy().tolist()}),
    "tensors": lambda frame: pd.DataFrame({"id": frame.index, "scores": list(torch.tensor(frame.to_numpy()))}),
}


@pytest.mark.parametrize("form", FRAMES)
def test_a_frame_is_scored_as_its_numbers(form, frame, toy_split, ids, scores):
    plain = mb.evaluate(scores, ids, toy_split)
    assert mb.evaluate(FRAMES[form](frame), split=toy_split, subset="test").mAP == plain.mAP


@pytest.mark.parametrize(("form", "complaint"), [
    (lambda f: f.reset_index(drop=True), "no video ids: its index holds integer values.* pass video_ids="),
    (lambda f: f.assign(note="x"), r"1 column\(s\) of the DataFrame are no numbers: note \(.*\); expected the ids"),
    (lambda f: f > 0, r"12 column\(s\) of the DataFrame are no numbers: Doing thing 0 \(bool\)"),
    (lambda f: pd.concat([f, f], axis="columns"), "several columns Doing thing 0"),
    (lambda f: f.mask(f > 2), r"hold NaN or infinity: TOY"),
    (lambda f: f.drop(columns="Doing thing 3"), "scores for 11 classes, the split has 12"),
    (lambda f: f.rename(columns={"Doing thing 3": "Swimming"}), r"class name\(s\) are others: 3 'Swimming'"),
    (lambda f: f.rename(index={"TOY24655": None}).reset_index(), r"are no text: (nan|None) \(row 48\)"),
    (lambda f: f[:0], "49 of 49 videos are missing"),
    (lambda f: pd.DataFrame({"id": f.index, "probs": f.to_numpy().tolist(), "preds": (f > 1).to_numpy().tolist()}),
     "has the columns probs, preds; name the one to score scores"),
    (lambda f: f.astype(pd.SparseDtype("float32")), "are no numbers: Doing thing 0 .Sparse"),
])  # fmt: skip
def test_a_frame_that_cannot_be_scored_is_refused(form, complaint, frame, toy_split):
    with pytest.raises(mb.MeidbenchError, match=complaint):
        mb.evaluate(form(frame), split=toy_split)


@pytest.mark.parametrize("own", ["index", "column"])
def test_a_frame_and_ids_in_another_order_are_refused(own, frame, toy_split, ids, scores, tmp_path):
    frame = frame if own == "index" else frame.reset_index()
    complaint = f"video_ids are others in 48 row(s): row 0 is '{ids[0]}' in the DataFrame, '{ids[-1]}' in video_ids"
    assert complaint in message_of(mb.evaluate, frame, ids[::-1], toy_split)
    assert complaint in message_of(mb.write_predictions, tmp_path / "p.parquet", ids[::-1], frame)
    assert complaint in message_of(mb.MeanAveragePrecision(toy_split, "test").update, ids[::-1], frame)
    assert mb.evaluate(frame, ids, toy_split) == mb.evaluate(scores, ids, toy_split)
    renamed = frame.rename(index=str.lower) if own == "index" else frame.assign(video_id=frame["video_id"].str.lower())
    assert mb.evaluate(renamed, ids, toy_split) == mb.evaluate(scores, ids, toy_split)


@pytest.mark.parametrize("axis", ["index", "columns"])
def test_frames_of_scores_and_labels_in_another_order_are_refused(axis, frame, toy_split):
    labels = pd.DataFrame(toy_split.labels("test"), index=frame.index, columns=frame.columns)
    want = average_precision_score(labels, frame, average=None)
    assert mb.average_precision(frame, labels) == pytest.approx(want)
    other = frame.sample(frac=1, random_state=1, axis=axis)
    complaint = f"the {axis} of scores and labels are in another order: pass scores.reindex_like(labels)"
    assert message_of(mb.average_precision, other, labels) == complaint
    assert mb.average_precision(other.reindex_like(labels), labels) == pytest.approx(want)


def test_a_set_has_no_order(toy_split, ids, scores):
    assert "video_ids is of type set; expected one id per row" in message_of(mb.evaluate, scores, set(ids), toy_split)


def test_half_precision_is_seen_beside_wider_types(frame, toy_split, ids, scores, tmp_path):
    """In one column or row of float32, NumPy makes float32 of all."""
    half = frame.astype(np.float16)
    for kind in (np.float32, np.int64):
        mixed = half.astype({half.columns[0]: kind})
        assert "scores of some rows or columns are float16" in message_of(mb.evaluate, mixed, split=toy_split)
    mixed.to_parquet(tmp_path / "p.parquet")
    assert "some of its columns are float16" in message_of(mb.evaluate, tmp_path / "p.parquet", split=toy_split)
    rows = [scores[0], *scores[1:].astype(np.float16)]
    for given in (rows, list(map(torch.from_numpy, rows))):
        assert "scores of some rows or columns are float16" in message_of(mb.evaluate, given, ids, toy_split)
    lists = pd.DataFrame({"video_id": ids, "scores": rows})
    assert "scores of some rows or columns are float16" in message_of(mb.evaluate, lists, split=toy_split)
    assert mb.evaluate(rows, ids, toy_split, allow_float16=True).diagnostics.score_dtype == "float32"


def test_a_frame_may_have_its_ids_beside_it(frame, toy_split, ids, scores):
    bare = frame.reset_index(drop=True)
    assert mb.evaluate(bare[bare.columns[::-1]], ids, toy_split).mAP == mb.evaluate(scores, ids, toy_split).mAP


@pytest.mark.parametrize("form", [
    tuple, np.array, pd.Series, pd.Index, lambda ids: np.array(ids, object), lambda ids: np.array(ids, "S"),
    lambda ids: [name.encode() for name in ids], lambda ids: pd.Series(ids, dtype="category"), iter,
    lambda ids: pd.array(ids, "string[pyarrow]"),
])  # fmt: skip
def test_ids_may_be_of_any_array(form, toy_split, ids, scores, tmp_path):
    assert mb.evaluate(scores, form(ids), toy_split).mAP == mb.evaluate(scores, ids, toy_split).mAP
    path = mb.write_predictions(tmp_path / "p.parquet", form(ids), scores, toy_split, "test")
    assert mb.read_predictions(path).video_ids == ids


def test_files_are_scored_as_by_the_command(run, frame, toy_split, toy_split_file, ids, scores, tmp_path):
    path = mb.write_predictions(tmp_path / "p.parquet", ids, scores, toy_split, "test", run={"select_on": "test"})
    run("evaluate", path, "--split", toy_split_file, "--json", tmp_path / "r.json")
    assert mb.evaluate(path, split=toy_split).to_json() == (tmp_path / "r.json").read_text()
    halves = [mb.write_predictions(tmp_path / f"{k}.parquet", ids[k::2], scores[k::2], toy_split) for k in (0, 1)]
    assert mb.evaluate(halves, split=str(toy_split_file)).mAP == mb.evaluate(scores, ids, toy_split).mAP
    np.save(tmp_path / "m.npy", scores)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    assert (
        mb.evaluate(tmp_path / "m.npy", tmp_path / "ids.txt", toy_split).mAP == mb.evaluate(path, split=toy_split).mAP
    )
    assert mb.read_predictions(path).to_pandas().equals(frame)
    assert mb.evaluate(mb.read_predictions(path), split=toy_split).mAP == mb.evaluate(path, split=toy_split).mAP


def test_a_split_without_test_videos_is_scored_on_val(toy_split, ids, scores):
    frame = toy_split.to_pandas()
    frame = frame[frame.subset != "test"]
    smaller = mb.split_from_pandas(
        frame, dataset="mine", head_above=9, tail_up_to=2, class_names=list(toy_split.class_names)
    )
    val = smaller.video_ids("val")
    assert mb.evaluate(np.zeros((len(val), 12)), val, smaller).subset == "val"


def test_wrong_arguments_are_refused_by_their_names(toy_split, ids, scores, frame, tmp_path):
    evaluate = mb.evaluate
    assert "pass video_ids=..., one id per row" in message_of(evaluate, scores, split=toy_split)
    assert "pass it by name, evaluate(scores, split=split)" in message_of(evaluate, frame, toy_split)
    assert "split is missing; expected a Split, its path" in message_of(evaluate, frame)
    assert "unknown subset 'tset' (did you mean test?)" in message_of(evaluate, scores, ids, toy_split, "tset")
    assert "video_ids is of type str; expected one id per row" in message_of(evaluate, scores, "TOY", toy_split)
    assert "1 video id(s) are no text: 0.5 (row 0)" in message_of(evaluate, scores, [0.5, *ids[1:]], toy_split)
    assert "shape (49, 12); expected (48, 12)" in message_of(evaluate, scores, ids[1:], toy_split)
    assert "there is no prediction file nowhere.npz" in message_of(evaluate, "nowhere.npz", split=toy_split)
    assert "(in PyTorch logits.float()" in message_of(evaluate, torch.zeros(49, 12).bfloat16(), ids, toy_split)
    assert "by allow_float16=True" in message_of(evaluate, scores.astype("f2"), ids, toy_split)
    write, path = mb.write_predictions, tmp_path / "p.parquet"
    assert "unknown subset 'tset'" in message_of(write, path, ids, scores, toy_split, "tset")
    assert "pass frame[list(split.class_names)]" in message_of(write, path, ids, frame[frame.columns[::-1]], toy_split)
    assert "the order is write_predictions(path, video_ids, scores)" in message_of(write, ids, scores, path)
    assert "p.csv: the file is written as Parquet; name it .parquet" in message_of(
        write, tmp_path / "p.csv", ids, scores
    )
    assert "scores are missing; expected write_predictions(path, video_ids, scores)" in message_of(write, path, ids)
    assert "a list of paths, got ndarray" in message_of(mb.read_predictions, scores)
    assert not list(tmp_path.iterdir())


def test_swapped_arguments_are_called_so(toy_split, ids, scores, frame, tmp_path):
    metric, path = mb.MeanAveragePrecision(toy_split), tmp_path / "p.parquet"
    for call in (
        lambda: mb.evaluate(ids, scores, toy_split),
        lambda: mb.evaluate(ids, frame, toy_split),
        lambda: mb.write_predictions(path, scores, ids),
        lambda: mb.write_predictions(path, scores.tolist(), ids),
        lambda: metric.update(torch.from_numpy(scores), torch.ones(scores.shape)),
        lambda: metric.update(list(torch.from_numpy(scores)), ids),
        lambda: mb.compare({"a": (scores, ids)}, toy_split),
    ):
        told = message_of(call)
        assert "video_ids holds rows of numbers, as scores do. The order is evaluate(scores, video_ids, split" in told
    assert "no text: ['TOY" in message_of(mb.evaluate, scores, [[name] for name in ids], toy_split)


def test_the_files_of_processes_are_no_seeds(toy_split, frame, tmp_path):
    files = [tmp_path / f"{rank}.parquet" for rank in range(3)]
    for rank, file in enumerate(files):
        frame[rank::3].to_parquet(file)
    assert "name their folder as the run" in message_of(mb.compare, {"a": files}, toy_split)
    whole = mb.compare({"a": tmp_path}, toy_split, replicates=2)
    assert whole.methods[0].mAP["overall"].value == mb.evaluate(frame, split=toy_split).mAP.overall


def test_a_frame_and_what_was_read_are_written_without_separate_ids(toy_split, frame, tmp_path):
    want = mb.evaluate(frame, split=toy_split).mAP
    whole = mb.write_predictions(tmp_path / "frame.parquet", frame, split=toy_split, subset="test")
    again = mb.write_predictions(tmp_path / "again.parquet", mb.read_predictions(whole))
    turned = mb.write_predictions(tmp_path / "turned.parquet", frame[frame.columns[::-1]])
    for path in (whole, again, turned):
        assert mb.evaluate(path, split=toy_split).mAP == want


class DeviceArray:
    """As CuPy's arrays, which NumPy cannot read."""

    __cuda_array_interface__ = {}

    def __init__(self, values):
        self.values = values

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def get(self):
        return self.values


def test_arrays_of_other_libraries_are_scored(toy_split, ids, scores):
    plain = mb.evaluate(scores, ids, toy_split).mAP
    assert mb.evaluate(DeviceArray(scores), ids, toy_split).mAP == plain
    assert mb.evaluate([torch.tensor(row, requires_grad=True) for row in scores], ids, toy_split).mAP == plain


# --- comparisons --------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(toy_split, ids, tmp_path):
    """Scores of two methods, the second of two seeds, and their files."""
    labels = toy_split.labels("test")
    scores = {
        name: np.random.default_rng(seed).normal(size=labels.shape) + knowledge * labels
        for seed, (name, knowledge) in enumerate([("bce", 0.3), ("meid@7", 1.5), ("meid@9", 1.5)])
    }
    return {
        name: (mb.write_predictions(tmp_path / f"{name}.parquet", ids, values, toy_split, "test"), values)
        for name, values in scores.items()
    }


def test_a_dict_is_compared_as_by_the_command(run, runs, toy_split, toy_split_file, ids, tmp_path):
    paths = [path for path, _ in runs.values()]
    run("compare", *paths, "--split", toy_split_file, "--bootstrap", "50", "--json", tmp_path / "c.json")
    wanted = (tmp_path / "c.json").read_text()
    bce, *seeds = paths
    frames = [pd.DataFrame(values, index=ids) for _, values in runs.values()]
    given = [
        {"bce": bce, "meid": seeds},
        {"bce": str(bce), "meid@7": seeds[0], "meid@9": mb.read_predictions(seeds[1])},
        {"bce": (ids, frames[0].to_numpy()), "meid@7": frames[1], "meid@9": frames[2].reset_index(names="id")},
    ]
    for split, entry in zip((toy_split, toy_split_file, toy_split), given, strict=True):
        assert mb.compare(entry, split, replicates=50).to_json() == wanted
    unnamed = mb.compare({"bce": frames[0], "meid": frames[1:]}, toy_split, "test", replicates=50)
    assert unnamed.methods[1].seeds == ("1", "2")
    assert json.loads(unnamed.to_json())["methods"][1]["mAP"] == json.loads(wanted)["methods"][1]["mAP"]


def test_a_comparison_that_makes_no_sense_is_refused(runs, toy_split, ids, tmp_path):
    path = runs["bce"][0]
    compare = mb.compare
    assert 'in Python, a dict such as {"bce": "bce.parquet"}' in message_of(compare, {}, toy_split)
    assert "at least one run" in message_of(compare, [str(path)], toy_split)
    assert "at least one run" in message_of(compare, path, toy_split)
    assert "the reference array" in message_of(compare, {"a": path}, toy_split, reference=np.zeros(2))
    assert "has an empty list of scores" in message_of(compare, {"a": []}, toy_split)
    assert "'a@1' is not named METHOD or METHOD@SEED" in message_of(compare, {"a@1": [path, path]}, toy_split)
    assert "replicates must be a whole number of at least 2" in message_of(
        compare, {"a": path}, toy_split, replicates=1
    )
    assert "the reference 'b' is not one of the runs: a" in message_of(compare, {"a": path}, toy_split, reference="b")
    broken = message_of(compare, {"a": [path, (ids, np.zeros((49, 11)))]}, toy_split)
    assert broken.startswith("run a, seed 2: ") and "scores for 11 classes" in broken
    assert message_of(compare, {"a": tmp_path / "no.npz"}, toy_split).startswith(f"run a ({tmp_path / 'no.npz'}): ")


# --- the metric ---------------------------------------------------------------------------------------------------


def update_share(split, ids, scores, rank, size):
    """Update a metric with the share that DistributedSampler gives to a process: padded, in batches of 4."""
    own = np.arange(rank, -(-len(ids) // size) * size, size) % len(ids)
    metric = mb.MeanAveragePrecision(split, "test")
    for start in range(0, len(own), 4):
        batch = own[start : start + 4]
        metric.update([ids[row] for row in batch], torch.from_numpy(scores[batch]))
    return metric


def test_a_metric_is_evaluate_of_its_batches(toy_split, ids, scores):
    metric = update_share(toy_split, ids, scores, 0, 1)
    assert metric.compute() == metric.compute() == mb.evaluate(scores, ids, toy_split)
    by_sklearn = average_precision_score(toy_split.labels("test"), scores, average="macro")
    assert metric.compute().mAP.overall == pytest.approx(by_sklearn, abs=1e-12)
    metric.reset()
    assert repr(metric) == "<MeanAveragePrecision toylt test: scores of 0 of 49 videos>"
    metric.update(ids, -scores)
    assert metric.compute().mAP == mb.evaluate(-scores, ids, toy_split).mAP


def test_the_options_of_a_metric_are_those_of_evaluate(toy_split, ids, scores):
    options = {"protocol": "tie-aware", "bootstrap": 20, "seed": 4, "allow_float16": True}
    metric = mb.MeanAveragePrecision(toy_split, **options)
    metric.update(ids, scores.astype(np.float16))
    assert metric.compute() == mb.evaluate(scores.astype(np.float16), ids, toy_split, **options)


def test_a_metric_keeps_a_copy_of_the_scores(toy_split, ids, scores):
    metric, buffer = mb.MeanAveragePrecision(toy_split), torch.from_numpy(scores.copy())
    metric.update(ids, buffer)
    buffer.zero_()
    assert metric.compute() == mb.evaluate(scores, ids, toy_split)


def test_metrics_of_several_processes_are_merged(toy_split, ids, scores):
    """49 videos do not divide by 3, so some are scored by two processes, and count once."""
    with ProcessPoolExecutor(3, CONTEXT) as pool:
        shares = [pool.submit(update_share, toy_split, ids, scores, rank, 3) for rank in range(3)]
        first, *others = [share.result() for share in shares]
    first.merge(others)
    assert first.compute().mAP == mb.evaluate(scores, ids, toy_split).mAP
    assert "2 video(s) occur more than once, always with the same scores" in first.compute().warnings[0]


def gather_metric(split, ids, scores, out):
    """What the docstring of the metric shows."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    metric = update_share(split, ids, scores, rank, size)
    gathered = [None] * size
    dist.all_gather_object(gathered, metric)
    metric.reset()
    metric.merge(gathered)
    Path(out, f"{rank}.json").write_text(metric.compute().to_json())
    dist.destroy_process_group()


def test_metrics_are_gathered_by_torch(toy_split, ids, scores, tmp_path):
    start_two(gather_metric, toy_split, ids, scores, tmp_path, folder=tmp_path)
    wanted = json.loads(mb.evaluate(scores, ids, toy_split).to_json())["mAP"]
    assert [json.loads((tmp_path / f"{rank}.json").read_text())["mAP"] for rank in (0, 1)] == [wanted, wanted]


def test_a_metric_refuses_what_does_not_belong_to_it(toy_split, ids, scores, frame, tmp_path):
    metric = mb.MeanAveragePrecision(toy_split, "test")
    assert "unknown subset 'tset'" in message_of(mb.MeanAveragePrecision, toy_split, "tset")
    assert "shape (2, 12); expected (3, 12)" in message_of(metric.update, ids[:3], scores[:2])
    assert "shape (2, 11); expected (2, 12)" in message_of(metric.update, ids[:2], scores[:2, 1:])
    assert "are float16" in message_of(metric.update, ids[:2], torch.from_numpy(scores[:2]).half())
    assert "are bfloat16" in message_of(metric.update, ids[:2], torch.from_numpy(scores[:2]).bfloat16())
    for kind in (bool, object, str, complex):
        assert "expected real numbers" in message_of(metric.update, ids[:2], scores[:2].astype(kind))
    assert "are float16" in message_of(metric.update, ids[:2], scores[:2].astype(">f2"))
    assert "pass frame[list(split" in message_of(metric.update, None, frame[frame.columns[::-1]])
    path = mb.write_predictions(tmp_path / "p.parquet", ids, scores)
    assert "takes the scores of a batch, got PosixPath" in message_of(metric.update, None, path)
    missing = message_of(metric.compute)
    assert "49 of 49 videos are missing" in missing and "49 videos have no scores yet: update" in missing
    metric.update(ids[:20], scores[:20])
    assert "name their folder" not in message_of(metric.compute), "a metric has no files"
    metric.update(ids[20:40], scores[20:40])
    missing = message_of(metric.compute)
    assert f"9 of 49 videos are missing: {ids[40]}" in missing and "merge the metrics of all processes" in missing
    metric.update(ids[40:], scores[40:])
    metric.update(ids[:2], scores[:2] + 1)
    assert "average them first" in message_of(metric.compute)
    metric.reset()
    metric.update(["else", *ids[1:]], scores)
    assert "1 video(s) are not in test: else" in message_of(metric.compute)
    halves = mb.MeanAveragePrecision(toy_split, "test", allow_float16=True)
    halves.update(ids[:2], scores[:2].astype(np.float16))
    assert "are float16" in message_of(metric.merge, halves)
    other = mb.MeanAveragePrecision(toy_split, "val")
    assert "are not on the same subset of the same split" in message_of(metric.merge, [other])
    assert "merge takes metrics, got one of type NoneType" in message_of(metric.merge, None)
    assert "merge takes metrics, got one of type str" in message_of(metric.merge, "metric")


def test_a_pickled_metric_goes_on(toy_split, ids, scores):
    metric = mb.MeanAveragePrecision(toy_split)
    metric.update(ids[:20], scores[:20])
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(ids[20:], scores[20:])
    assert metric.compute() == mb.evaluate(scores, ids, toy_split)


# --- what is printed ----------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Opened tags, which must be closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_result_prints_as_a_small_table(toy_split, ids, scores):
    result = mb.evaluate(scores, ids, toy_split, bootstrap=20, cross_check=True)
    lines = repr(result).splitlines()
    assert lines[0] == "<Result of toylt (released), test: 49 videos" and 8 <= len(lines) <= 20
    assert max(map(len, lines)) <= 125
    for group in ("overall", "head", "medium", "tail"):
        (row,) = [line for line in lines if line.startswith(group)]
        assert row.split()[1] == f"{getattr(result.mAP, group):.4f}"
    assert any("scikit-learn gives the same" in line for line in lines)
    long = replace(result, notes=("note " * 99,) * 3, warnings=("warning " * 99,) * 9)
    assert len(repr(long).splitlines()) <= 20


def test_a_comparison_prints_a_row_per_method(runs, toy_split, ids, scores):
    given = {"bce": runs["bce"][0], "meid": [runs["meid@7"][0], runs["meid@9"][0]]}
    comparison = mb.compare(given, toy_split, replicates=20)
    lines = repr(comparison).splitlines()
    (row,) = [line for line in lines if line.startswith("meid (2 seeds)")]
    assert row.split()[3] == f"{comparison.methods[1].mAP['overall'].value:.4f}"
    assert f"{comparison.methods[1].difference['overall'].value:+.4f} [" in row and len(lines) <= 20
    many = mb.compare({f"m{k}": (ids, scores) for k in range(12)}, toy_split, replicates=2)
    assert len(repr(many).splitlines()) <= 20 and "and 2 more methods" in repr(many)


def test_html_is_escaped_and_whole(runs, toy_split):
    comparison = mb.compare({"<b>bce</b>\x1b": runs["bce"][0], "other": runs["meid@7"][0]}, toy_split, replicates=20)
    result = replace(mb.evaluate(runs["bce"][0], split=toy_split), notes=("<script>note</script>",))
    for shown, text in ((comparison, "<b>bce</b>\\x1b"), (result, "<script>note</script>")):
        tags = Tags()
        tags.feed(shown._repr_html_())
        assert not tags.open and text in tags.text and "table" in tags.seen and "script" not in tags.seen


def test_a_result_becomes_a_frame_by_class(toy_split, ids, scores):
    result = mb.evaluate(scores, ids, toy_split, bootstrap=20)
    frame = result.to_pandas()
    by_sklearn = average_precision_score(toy_split.labels("test"), scores, average=None)
    np.testing.assert_allclose(frame["ap"], by_sklearn, atol=1e-12)
    assert list(frame.index) == list(range(12)) and list(frame["name"]) == list(toy_split.class_names)
    assert frame.groupby("group")["ap"].mean()["tail"] == pytest.approx(result.mAP.tail)
    assert (frame["ap_low"] <= frame["ap_high"]).all()
    assert "ap_low" not in mb.evaluate(scores, ids, toy_split).to_pandas()


def test_a_comparison_becomes_a_frame_by_method_and_group(runs, toy_split):
    given = {"bce": runs["bce"][0], "meid": [runs["meid@7"][0], runs["meid@9"][0]]}
    comparison = mb.compare(given, toy_split, replicates=20)
    frame = comparison.to_pandas()
    assert list(frame["method"]) == ["bce"] * 4 + ["meid"] * 4
    tail = frame.set_index(["method", "group"]).loc[("meid", "tail")]
    meid = comparison.methods[1]
    assert (tail["mAP"], tail["mAP_low"]) == (meid.mAP["tail"].value, meid.mAP["tail"].low)
    assert (tail["difference"], tail["probability"]) == (
        meid.difference["tail"].value, meid.difference["tail"].probability,
    )  # fmt: skip
    assert (tail["wins"], tail["seeds"]) == (meid.tally["tail"].wins, 2)
    assert frame.iloc[0][["difference", "wins", "seed_std"]].isna().all()


def test_everything_prints_in_few_lines(toy_split, ids, scores, tmp_path):
    from meidbench.loading.batches import BatchLoader

    for video_id in ids:
        np.save(tmp_path / f"{video_id}.npy", np.zeros((2, 3), np.float32))
    data = mb.FeatureDataset(toy_split, "test", features=tmp_path, frames=5)
    predictions = mb.read_predictions(mb.write_predictions(tmp_path / "p.parquet", ids, scores))
    for shown, words in {
        toy_split: "toylt (released): 114 / 50 / 49 videos, 12 classes",
        data: "5 rows per video, 3 numbers per row (rows repeated in 49 that have fewer)",
        data.source: str(tmp_path),
        BatchLoader(data, 8): "BatchLoader of 8 videos per batch, on cpu, of <FeatureDataset test",
    }.items():
        assert words in repr(shown) and len(repr(shown).splitlines()) == 1
    assert repr(predictions).startswith("<Predictions 49 videos x 12 classes, float32; ids: TOY")
    assert "and 46 more" in repr(predictions)


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


@pytest.mark.parametrize(("subset", "index", "value"), [("test", 3, np.nan), ("val", None, 0.0)])
def test_the_cross_check_refuses_a_value_where_the_other_has_none(subset, index, value, toy_split):
    labels = toy_split.labels(subset)
    scores = np.random.default_rng(2).normal(size=labels.shape)
    index = int(np.flatnonzero(~labels.any(axis=0))[0]) if index is None else index
    ap = mb.average_precision(scores, labels)
    ap[index] = value
    with pytest.raises(mb.MeidbenchError, match=f"of class {index} is {value}, and .* by scikit-learn"):
        cross_check_precisions(as_blocks(scores), subset_positives(toy_split, subset), ap)


def test_the_cross_check_skips_classes_without_positives_and_needs_tied_ranks(toy_split, ids, scores):
    without = np.flatnonzero(toy_split.positives("val") == 0)
    val = toy_split.video_ids("val")
    result = mb.evaluate(np.zeros((len(val), 12)), val, toy_split, "val", cross_check=True)
    assert result.cross_check.classes == 12 - len(without)
    with pytest.raises(mb.MeidbenchError, match="needs the protocol tie-aware"):
        mb.evaluate(scores, ids, toy_split, protocol="apmeter", cross_check=True)
