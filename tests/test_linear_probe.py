"""The method ``linear_probe``: against scikit-learn used plainly, its choice of C, resumption, and refusals."""

import json
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from processes import train_and_kill
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_training import assert_same_run

from meidbench.baselines import Config, predict, resolve, train
from meidbench.baselines.configuration import check_processes, make_model_inputs
from meidbench.baselines.learner import load_checkpoint
from meidbench.baselines.models.linear_probe import LinearProbe
from meidbench.baselines.search import SearchRequest, read_space
from meidbench.errors import FeatureError, MeidbenchError
from meidbench.features import open_features
from meidbench.features.simulation import simulate_features
from meidbench.predictions.align import align_predictions, read_predictions

GRID = (0.003, 0.03, 0.3)
TINY = ("frames.train=6", "frames.test=6", "execution.device=cpu", f"model.c_grid={list(GRID)}")


@pytest.fixture(scope="session")
def features(toy_split, tmp_path_factory):
    return simulate_features(toy_split, tmp_path_factory.mktemp("features") / "toy.h5", frames=6, dim=16)


def config_of(split, *settings):
    asked = dict(setting.split("=", 1) for setting in (*TINY, *settings))
    return resolve("linear_probe", split, settings=[f"{key}={value}" for key, value in asked.items()])


def scores_of(run, split, subset):
    return align_predictions(read_predictions(Path(run, f"predictions-{subset}.parquet")), split, subset)


def means_of(split, subset, features):
    source = open_features(features)
    return np.stack([np.asarray(source.read(video), np.float64).mean(axis=0) for video in split.video_ids(subset)])


def macro_ap(labels, scores):
    present = labels.any(axis=0)
    return np.mean([average_precision_score(labels[:, c], scores[:, c]) for c in np.flatnonzero(present)])


@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_it_is_scikit_learn_on_means_with_the_c_that_is_best_on_val(toy_split, features, tmp_path, weight):
    lines = []
    settings = (f"model.class_weight={weight}",)
    trained = train(toy_split, features, config_of(toy_split, *settings), tmp_path / "run", report=lines.append)
    rows = {subset: means_of(toy_split, subset, features) for subset in ("train", "val", "test")}
    fitted, reached = {}, {}
    for c in GRID:
        plain = LogisticRegression(C=c, class_weight=None if weight == "none" else weight, tol=1e-10, max_iter=10000)
        fitted[c] = make_pipeline(StandardScaler(), OneVsRestClassifier(plain))
        fitted[c].fit(rows["train"], toy_split.labels("train").astype(int))
        reached[c] = macro_ap(toy_split.labels("val"), fitted[c].decision_function(rows["val"]))
    best = max(reached, key=reached.get)
    assert float(load_checkpoint(tmp_path / "run" / "best.pt")["model"]["c"]) == best
    for subset in ("val", "test"):
        theirs = fitted[best].decision_function(rows[subset])
        np.testing.assert_allclose(scores_of(tmp_path / "run", toy_split, subset), theirs, atol=5e-3)
    assert trained.mAP["val"].overall == pytest.approx(reached[best], abs=0.005)
    epochs = [line for line in lines if ": epoch" in line]
    for number, (line, c) in enumerate(zip(epochs, GRID, strict=True), 1):
        assert line.startswith(f"linear_probe: epoch {number} of 3: loss 0.") and f", C {c:g}, val mAP" in line
    assert any("no effect" in line and "schedule" in line for line in lines)
    lines = []
    train(toy_split, features, config_of(toy_split, *settings, "frames.test=9"), tmp_path / "nine", report=lines.append)
    told = [line for line in lines if "have fewer rows than" in line]
    assert len(told) == 1 and "213 videos of train and val and test" in told[0] and "frames.test=9" in told[0]


def test_the_log_has_each_c_and_no_step_and_no_rate(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split), tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in log if line["event"] == "epoch"]
    assert [line["model"]["C"] for line in epochs] == list(GRID)
    assert {line["step"] for line in log} == {0} and not any("lr" in line for line in epochs)
    assert [line["val"]["overall"] for line in epochs if line["best"]][-1] == max(
        line["val"]["overall"] for line in epochs
    )


def test_predict_gives_the_same_bytes(toy_split, toy_split_file, features, tmp_path):
    train(toy_split_file, features, config_of(toy_split), tmp_path / "run")
    for subset in ("val", "test"):
        out = predict(tmp_path / "run", tmp_path / f"{subset}.parquet", subset=subset)
        assert out.read_bytes() == (tmp_path / "run" / f"predictions-{subset}.parquet").read_bytes()


def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not(toy_split, toy_split_file, features, tmp_path):
    tables = config_of(toy_split, "execution.checkpoint_steps=5").to_tables()
    assert any(train_and_kill(toy_split_file, features, tables, tmp_path, [(0, 0.2, 1.0)] * 2))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_run_goes_on_at_the_class_that_it_had_reached(toy_split, features, tmp_path):
    class EndedError(Exception):
        pass

    seen = []

    @contextmanager
    def progress(title, total):
        seen.append((title, total, done := []))

        def advance(steps):
            done.append(steps)
            if sum(done) == 17 and len(seen) == 1:  # the fifth class of the second C
                raise EndedError

        yield advance

    config = config_of(toy_split, "execution.checkpoint_steps=2")
    with pytest.raises(EndedError):
        train(toy_split, features, config, tmp_path / "killed", progress=progress)
    lines = []
    train(toy_split, features, config, tmp_path / "killed", progress=progress, report=lines.append)
    assert "resuming after 1 epochs, 4 classes" in lines
    fitting = [(total, done) for title, total, done in seen if title == "training linear_probe"]
    assert [total for total, _ in fitting] == [36, 36]
    assert fitting[1][1][0] == 16 and sum(fitting[1][1]) == 36
    train(toy_split, features, config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_the_number_of_threads_changes_no_bit(toy_split, features, tmp_path):
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            train(toy_split, features, config_of(toy_split), tmp_path / str(number))
    finally:
        torch.set_num_threads(threads)
    assert_same_run(tmp_path / "1", tmp_path / "3")


def test_a_class_that_all_or_no_training_videos_have_gets_one_score(toy_split):
    inputs = make_model_inputs(config_of(toy_split), toy_split, 4)
    labels = toy_split.labels("train").copy()
    labels[:, 3], labels[:, 5] = False, True
    videos = len(labels)
    model = LinearProbe(inputs, c_grid=(1.0,))
    frames = torch.randn(videos, 2, 4, generator=torch.Generator().manual_seed(0))
    frames[:, :, 2] = 7.0  # a feature without variance
    model.standardise([frames[:5], frames[5:]], toy_split.video_ids("train"))
    assert len(list(model.fit(labels, 0))) == toy_split.num_classes
    scores = model.eval()(frames).logits.detach()
    half = np.log(0.5 / (videos + 0.5))
    assert scores[:, 3].unique().tolist() == pytest.approx([half], rel=1e-6)
    assert scores[:, 5].unique().tolist() == pytest.approx([-half], rel=1e-6)
    assert all(len(scores[:, c].unique()) > videos / 2 for c in (0, 4)) and bool(scores.isfinite().all())


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
def test_features_that_scikit_learn_cannot_fit_are_refused(toy_split, tmp_path, value):
    first, second, *_ = toy_split.video_ids("train")
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for video in toy_split.table.column("video_id").to_pylist():
            frames = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
            if video in (first, second):
                frames[:, 1] = value if video == first else -value  # the sum of frames of 3e38 is infinite
            file[video] = frames
    message = rf"training video\(s\) are NaN, infinite, or too large for float32: .*{first}"
    with pytest.raises(FeatureError, match=message):
        train(toy_split, tmp_path / "features.h5", config_of(toy_split), tmp_path / "run", check="none")


def test_a_best_c_at_the_end_of_the_grid_is_told(toy_split, features, tmp_path):
    inputs = make_model_inputs(config_of(toy_split), toy_split, 4)
    model = LinearProbe(inputs, c_grid=GRID)
    told = []
    for c in GRID:
        model.c.fill_(c)
        told.append(model.describe_weights())
    assert told == [
        "the best C, 0.003, is the smallest of model.c_grid; a smaller one may be better",
        "",
        "the best C, 0.3, is the largest of model.c_grid; a larger one may be better",
    ]
    alone = LinearProbe(inputs, c_grid=(0.3,))
    alone.c.fill_(0.3)
    assert alone.describe_weights() == ""
    lines = []
    train(
        toy_split, features, config_of(toy_split, "model.c_grid=[1e-12,1e-11]"), tmp_path / "run", report=lines.append
    )
    assert len([line for line in lines if line.startswith("note: the best C, 1e-1")]) == 1


def test_settings_that_it_cannot_have_are_refused(toy_split, features, tmp_path):
    config = config_of(toy_split, "schedule.epochs=99", "selection.every=5")
    assert (config.schedule.epochs, config.selection.every) == (3, 1)
    with pytest.raises(MeidbenchError, match="has aggregators of its own; leave out the aggregator"):
        resolve("linear_probe", toy_split, aggregator="netvlad")
    with pytest.raises(MeidbenchError, match="takes no motion stream"):
        config_of(toy_split, "motion.when=sampled")
    with pytest.raises(MeidbenchError, match=r"model.c_grid must be a list of numbers, such as \[0.01, 0.1\]"):
        config_of(toy_split, "model.c_grid=abc")
    for grid, message in (
        ([0.1, 0.01], r"model.c_grid must be rising numbers, at least one, got \[0.1, 0.01\]"),
        ([], "model.c_grid must be rising numbers, at least one"),
        ([0.0], "model.c_grid must be a number in"),
    ):
        with pytest.raises(MeidbenchError, match=message):
            train(toy_split, features, config_of(toy_split, f"model.c_grid={grid}"), tmp_path / f"wrong{len(grid)}")
    with pytest.raises(MeidbenchError, match="model.class_weight"):
        train(toy_split, features, config_of(toy_split, "model.class_weight=some"), tmp_path / "weight")
    tables = config_of(toy_split).to_tables()
    tables["schedule"]["epochs"] = 5
    with pytest.raises(MeidbenchError, match="schedule.epochs of model.name=linear_probe must be 3, one per value"):
        train(toy_split, features, Config.from_tables(tables), tmp_path / "epochs")
    assert not list(tmp_path.glob("*/config.json"))  # so that the corrected command can take the same folder


def test_several_processes_are_refused(toy_split):
    check_processes(config_of(toy_split), 1)
    check_processes(resolve("bce", toy_split), 2)
    with pytest.raises(MeidbenchError, match="is fitted by one process with many threads .*without torchrun"):
        check_processes(config_of(toy_split), 2)


def test_its_budget_has_no_steps_and_its_search_space_no_rate(toy_split, features, tmp_path):
    trained = train(toy_split, features, config_of(toy_split), tmp_path / "run")
    facts = read_predictions(trained.predictions["test"]).metadata["run"]
    assert facts["budget"] == {"stages": [], "trials": 1} and facts["method"] == "linear_probe"
    request = SearchRequest("linear_probe", toy_split, None, TINY)
    assert [entry.key for entry in read_space(request, request.resolve(), 16)] == ["model.class_weight"]
