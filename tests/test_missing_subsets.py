"""Benchmarks without test, val or train: every command works or names the remedy, and tells what it does."""

import json
from dataclasses import replace

import numpy as np
import pytest

from meidbench.baselines.inference import find_scored_subsets
from meidbench.baselines.recipes import resolve
from meidbench.baselines.training import train as train_run
from meidbench.errors import MeidbenchError
from meidbench.features.simulation import simulate_features
from meidbench.loading.datasets import FeatureDataset
from meidbench.names import WATERMARKS
from meidbench.predictions.align import read_predictions
from meidbench.splits.split import load_split


@pytest.fixture(scope="module")
def features(toy_split, tmp_path_factory):
    return simulate_features(toy_split, tmp_path_factory.mktemp("features") / "toy.h5", frames=4, dim=8)


@pytest.fixture
def without(toy_split, tmp_path, run):
    """Write the toy split without some subsets, as a user imports it."""

    def write(*missing):
        kept = toy_split.to_pandas().loc[lambda frame: ~frame["subset"].isin(missing), ["video_id", "subset", "labels"]]
        kept.assign(labels=kept["labels"].map(";".join)).to_csv(tmp_path / "mine.csv", index=False)
        arguments = ["--out", tmp_path / "mine.parquet", "--head-above", 30, "--tail-up-to", 12]
        outcome = run("import-split", tmp_path / "mine.csv", *arguments)
        assert outcome.exit_code == 0, outcome.output
        return tmp_path / "mine.parquet", outcome.stdout

    return write


NOTES = {
    ("test",): "no videos in test: evaluate, compare and predict take val, which also chooses the checkpoint of a run",
    ("val",): "no videos in val: hold out a val subset (--hold-out-val), or train with --select-on last or test",
    ("val", "test"): "no videos in val and test: train, evaluate and compare refuse this split; import val or test too",
    ("train",): "no videos in train: every class is in the tail, and nothing can be trained",
}


@pytest.mark.parametrize("missing", NOTES)
def test_statistics_and_audit_tell_of_a_missing_subset(without, run, missing):
    split, printed = without(*missing)
    assert f"mine table: {NOTES[missing]}\n" in printed
    assert sum("no videos in" in line for line in run("stats", split).stdout.splitlines()) == 1
    (row,) = json.loads(run("stats", split, "--json").stdout)
    assert [row[subset] == 0 for subset in missing] == [True] * len(missing)
    findings = [entry for entry in json.loads(run("audit", split, "--json").stdout) if entry["severity"] == "warning"]
    (named,) = [entry for entry in findings if entry["what"] == "subset(s) without a video"]
    assert (named["check"], named["examples"]) == ("missing-classes", sorted(missing))
    assert not any(entry["what"].endswith(tuple(missing)) for entry in findings)


def test_the_least_positives_of_no_test_are_a_dash(without):
    printed = without("test")[1].splitlines()
    assert next(line for line in printed if line.startswith("least positives in test")).split()[-1] == "-"


TINY = ("frames.train=4", "frames.test=4", "schedule.batch_size=16", "schedule.milestones=[1]")


def train(run, split, features, out, *options):
    settings = [text for setting in TINY for text in ("--set", setting)]
    arguments = ("--method", "bce", "--aggregator", "nonlinear", "--epochs", 1, "--device", "cpu")
    return run("train", "--split", split, "--features", features, "--out", out, *arguments, *settings, *options)


def test_a_benchmark_without_test_is_trained_predicted_and_scored_on_val(without, run, features, tmp_path):
    split, _ = without("test")
    outcome = train(run, split, features, tmp_path / "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "note: mine has no test videos: val chooses the checkpoint, so its scores are too good\n" in outcome.stderr
    assert [line.split()[0] for line in outcome.stdout.splitlines()[2:-2]] == ["val"]
    predicted = run("predict", tmp_path / "run", "--out", tmp_path / "p.parquet", "--device", "cpu")
    assert predicted.exit_code == 0 and "note: mine has no test videos, so its val is scored\n" in predicted.stderr
    scores = read_predictions(tmp_path / "p.parquet")
    assert scores.video_ids == load_split(split).video_ids("val")
    named = run("predict", tmp_path / "run", "--subset", "test", "--out", tmp_path / "q.parquet", "--device", "cpu")
    assert named.exit_code == 1 and "has no video in test; it has some in train, val" in named.stderr
    scored = run("evaluate", tmp_path / "p.parquet", "--split", split, "--json", tmp_path / "r.json")
    assert scored.exit_code == 0 and "so its val is scored" in scored.stderr
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "run" / "result-val.json").read_bytes()
    with pytest.raises(MeidbenchError, match="the split mine has no video in test; it has some in train, val"):
        FeatureDataset(split, "test", features=features, frames=4)


def test_a_benchmark_without_val_needs_another_choice_of_the_checkpoint(without, run, features, tmp_path):
    split, _ = without("val")
    refused = train(run, split, features, tmp_path / "run")
    assert refused.exit_code == 1 and not (tmp_path / "run").exists()
    assert refused.stderr.splitlines() == [
        "Error: the split mine has no video in val; it has some in train, test",
        "val chooses the checkpoint. Take a val subset out of train (--hold-out-val of build-splits and import-split), "
        "or tell what chooses in its place (selection.subset): --select-on last takes the last epoch, without a "
        "choice; --select-on test makes test choose, and test scores too good",
    ]
    outcome = train(run, split, features, tmp_path / "run", "--select-on", "test")
    assert outcome.exit_code == 0 and "warning: the checkpoint was chosen on the test subset" in outcome.stderr
    assert [line.split()[0] for line in outcome.stdout.splitlines()[2:-2]] == ["test"]


@pytest.mark.parametrize(("missing", "options", "said"), [
    (("val", "test"), (), "has no video in val; it has some in train"),
    (("train",), (), "has no video in train; it has some in val, test"),
    (("test",), ("--select-on", "test"), "in train, val\n--select-on val (selection.subset) makes val choose"),
])  # fmt: skip
def test_a_split_that_cannot_be_trained_on_is_refused_before_its_folder_is_made(
    without, run, features, tmp_path, missing, options, said
):
    split, _ = without(*missing)
    outcome = train(run, split, features, tmp_path / "run", *options)
    assert outcome.exit_code == 1 and said in outcome.stderr and not (tmp_path / "run").exists()


def test_evaluation_of_a_split_with_test_alone(without, run, tmp_path):
    path, _ = without("train", "val")
    split = load_split(path)
    assert split.default_subset == "test" and split.groups.tail.tolist() == list(range(split.num_classes))
    ids = split.video_ids("test")
    np.savez(tmp_path / "p.npz", video_ids=np.array(ids), scores=np.random.default_rng(0).random((len(ids), 12)))
    outcome = run("evaluate", tmp_path / "p.npz", "--split", path)
    assert outcome.exit_code == 0 and f"mine (table), test: {len(ids)} videos" in outcome.stdout


def test_without_val_the_last_epoch_is_taken_and_recorded(without, run, features, tmp_path):
    split, _ = without("val")
    options = ("--select-on", "last", "--set", "selection.every=2")
    outcome = train(run, split, features, tmp_path / "run", *options, "--epochs", 3)
    assert outcome.exit_code == 0, outcome.stderr
    assert "too good" not in outcome.stderr and "mAP" not in outcome.stderr
    assert [line.split()[0] for line in outcome.stdout.splitlines()[2:-2]] == ["test"]
    facts = read_predictions(tmp_path / "run" / "predictions-test.parquet").metadata["run"]
    assert (facts["select_on"], facts["epoch"]) == ("last", 3) and "select_on" not in facts["budget"]
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [set(event) & {"val", "test", "best"} for event in events if event["event"] == "epoch"] == [set()] * 3
    assert json.loads((tmp_path / "run" / "result-test.json").read_bytes())["warnings"] == [WATERMARKS["simulation"]]
    for count in (3, 5):  # the same command trains nothing; more epochs take the weights of the new last one
        assert train(run, split, features, tmp_path / "run", *options, "--epochs", count).exit_code == 0
    assert "it would not be" not in outcome.stderr
    again = train(run, split, features, tmp_path / "new", *options, "--epochs", 5)
    assert again.exit_code == 0
    for file in ("predictions-test.parquet", "result-test.json"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "new" / file).read_bytes()
    compared = run("compare", f"mine={tmp_path / 'run' / 'predictions-test.parquet'}", "--split", split)
    assert compared.exit_code == 0, compared.stderr
    (row,) = [line.split() for line in compared.stdout.splitlines() if line.startswith("mine") and " last" in line]
    assert row[-1] == "last"


def test_the_weights_of_the_last_epoch_are_those_of_a_run_that_val_chooses_there(toy_split, features, tmp_path):
    config = resolve("bce", toy_split, settings=(*TINY, "schedule.epochs=2", "selection.subset=last"))
    last = train_run(toy_split, features, config, tmp_path / "last")
    assert sorted(last.mAP) == ["test", "val"]
    every = replace(config, selection=replace(config.selection, subset="val", every=2))
    chosen = train_run(toy_split, features, every, tmp_path / "val")
    assert chosen.mAP == last.mAP
    scores = [read_predictions(run.predictions["test"]).scores for run in (chosen, last)]
    np.testing.assert_array_equal(*scores)


def test_a_first_stage_of_its_last_epoch_begins_the_second(without, features, tmp_path):
    split = load_split(without("val")[0])
    config = resolve("meid", split, settings=(*TINY, "schedule.epochs=1", "selection.subset=last"))
    trained = train_run(split, features, config, tmp_path / "whole")
    first = tmp_path / "whole" / "first-stage"
    given = train_run(split, features, config, tmp_path / "given", first_stage=first)
    assert given.mAP == trained.mAP
    assert read_predictions(given.predictions["test"]).metadata["run"]["select_on"] == "last"
    (first / "result-test.json").unlink()
    with pytest.raises(MeidbenchError, match="it is not finished"):
        train_run(split, features, config, tmp_path / "third", first_stage=first)


def test_a_linear_probe_needs_a_subset_that_chooses_or_one_value(toy_split):
    settings = ("selection.subset=last",)
    with pytest.raises(MeidbenchError, match=r"the last value of model\.c_grid; set one value"):
        resolve("linear_probe", toy_split, settings=settings)
    assert resolve("linear_probe", toy_split, settings=(*settings, "model.c_grid=[1.0]")).schedule.epochs == 1


@pytest.mark.parametrize(("missing", "asked", "said"), [
    (("val", "test"), ("val", "test"), "has no video in val; it has some in train"),
    (("val",), ("val",), "has no video in val; it has some in train, test"),
    (("train",), ("val", "test"), "has no video in train"),
])  # fmt: skip
def test_the_last_epoch_needs_a_subset_to_score(without, missing, asked, said):
    with pytest.raises(MeidbenchError) as error:
        find_scored_subsets(load_split(without(*missing)[0]), "last", asked)
    assert said in str(error.value) and "--select-on" not in str(error.value)
