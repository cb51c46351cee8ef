"""The method ``text_adapter``: it starts as ``zero-shot``, keeps a class without training videos, and resumes."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from processes import start_two, train_and_kill, train_run
from test_training import assert_same_run
from text_world import CLASSES, WIDTH, fake_encoder, make_features, text_vectors

from meidbench.annotations.tables import split_from_pandas
from meidbench.baselines import predict, resolve, train
from meidbench.baselines.class_text import ClassText, embed_classes, make_prompts
from meidbench.baselines.configuration import make_model_inputs
from meidbench.baselines.inputs import Inputs
from meidbench.baselines.learner import load_checkpoint
from meidbench.baselines.models.text_adapter import TextAdapter
from meidbench.baselines.zero_shot import score_zero_shot
from meidbench.errors import FeatureError, MeidbenchError, RequestError
from meidbench.evaluation.evaluate import average_precision
from meidbench.features import open_features
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.predictions.align import align_predictions, read_predictions
from meidbench.splits.split import write_split

TINY = ("frames.train=4", "frames.test=4", "schedule.batch_size=16", "schedule.epochs=3", "execution.device=cpu",
        "schedule.milestones=[]")  # fmt: skip
FRAMES = 4
TAIL = len(CLASSES) - 1


def make_split():
    """Videos of one to three classes; no training video has the last class, the tail."""
    generator = np.random.default_rng(0)
    rows = []
    for subset, number in (("train", 90), ("val", 30), ("test", 60)):
        for index in range(number):
            some = TAIL if subset == "train" else len(CLASSES)
            labels = generator.choice(some, size=1 + index % 3, replace=False)
            rows.append((f"{subset}{index}", subset, [CLASSES[label] for label in labels]))
    frame = pd.DataFrame(rows, columns=["video_id", "subset", "labels"])
    return split_from_pandas(frame, dataset="made_up", head_above=50, tail_up_to=5, class_names=CLASSES)


@pytest.fixture(scope="module")
def split():
    return make_split()


@pytest.fixture(scope="module")
def split_file(split, tmp_path_factory):
    return write_split(split, tmp_path_factory.mktemp("split") / "split.parquet")


@pytest.fixture(scope="module")
def features(split, tmp_path_factory):
    return make_features(tmp_path_factory.mktemp("features") / "f.h5", split, frames=FRAMES, noise=0.4)


@pytest.fixture
def text_file(tmp_path):
    ClassText(text_vectors(), 20.0, -3.0, CLASSES).write(tmp_path / "text.npz")
    return tmp_path / "text.npz"


def config_of(split, text=None, *settings, method="text_adapter", aggregator=None):
    named = [] if text is None else [f"model.text={text}"]
    asked = dict(setting.split("=", 1) for setting in (*TINY, *named, *settings))
    return resolve(method, split, aggregator=aggregator, settings=[f"{key}={value}" for key, value in asked.items()])


def scores_of(run, split, subset="test"):
    return align_predictions(read_predictions(run / f"predictions-{subset}.parquet"), split, subset)


def started(split, features, text, start_bias):
    """A model at its first step, and the frames (n, T, D) of train and test."""
    source = open_features(features)
    frames = {
        subset: torch.from_numpy(np.stack([source.read(video) for video in split.video_ids(subset)]))
        for subset in ("train", "test")
    }
    inputs = make_model_inputs(config_of(split), split, WIDTH)
    model = TextAdapter(inputs, start_bias=start_bias).eval()
    model.start_from(text, model.mean_rows(frames["train"]).double().mean(dim=0), len(frames["train"]))
    return model, frames


@pytest.mark.parametrize(("scale", "bias"), [(100.0, 0.0), (117.3, -12.9)])  # as of CLIP, and of SigLIP
def test_the_first_scores_are_those_of_zero_shot(split, features, scale, bias):
    generator = np.random.default_rng(3)
    text = ClassText(text_vectors() + 0.3 * generator.normal(size=(len(CLASSES), WIDTH)), scale, bias)
    zero_shot = score_zero_shot(split, "test", open_features(features), text)
    model, frames = started(split, features, text, "text")
    with torch.no_grad():
        np.testing.assert_allclose(model(frames["test"]).logits, zero_shot, atol=scale * 1e-6)
    model, frames = started(split, features, text, "prior")
    with torch.no_grad():
        shift = model(frames["test"]).logits.numpy() - zero_shot
        assert np.ptp(shift, axis=0).max() < scale * 2e-6 and np.ptp(shift[0]) > 1  # one number per class
        counts = split.train_counts
        odds = np.log((counts + 0.5) / (len(frames["train"]) - counts + 0.5))
        np.testing.assert_allclose(model(frames["train"]).logits.mean(dim=0), odds, atol=scale * 1e-5)
    labels = split.labels("test")
    np.testing.assert_array_equal(average_precision(zero_shot + odds, labels), average_precision(zero_shot, labels))


def test_half_precision_does_not_touch_the_cosines(split, features):
    model, frames = started(split, features, ClassText(text_vectors(), 100.0), "prior")
    whole = model(frames["test"]).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(frames["test"]).logits, whole)
        assert torch.equal(model(frames["test"].half()).logits, whole)  # they are stored so


def test_a_class_without_training_videos_is_kept_where_a_random_start_cannot_know_it(
    split, features, text_file, tmp_path
):
    assert split.train_counts[TAIL] == 0 and split.positives("test")[TAIL] > 5
    settings = ("schedule.epochs=30", "schedule.lr=1e-2")
    adapter = train(split, features, config_of(split, text_file, *settings), tmp_path / "adapter")
    plain = config_of(split, None, *settings, method="bce", aggregator="mean")
    train(split, features, plain, tmp_path / "bce")
    labels = split.labels("test")
    zero_shot = score_zero_shot(split, "test", open_features(features), ClassText(text_vectors()))
    precision = {
        name: average_precision(scores, labels)
        for name, scores in {
            "zero-shot": zero_shot,
            "adapter": scores_of(tmp_path / "adapter", split),
            "bce": scores_of(tmp_path / "bce", split),
        }.items()
    }
    assert precision["zero-shot"][TAIL] > 0.95 and precision["adapter"][TAIL] > 0.95
    assert precision["bce"][TAIL] < 0.6 and precision["bce"][:TAIL].mean() > 0.9
    facts = read_predictions(adapter.predictions["test"]).metadata["run"]
    assert facts["text_digest"] == ClassText(text_vectors(), 20.0, -3.0).digest
    assert facts["method"] == facts["aggregator"] == "text_adapter"


def test_training_moves_the_weights_to_the_classes(split, tmp_path):
    """Text that errs on two classes: zero-shot confuses them, and training puts that right."""
    features = make_features(tmp_path / "f.h5", split, frames=FRAMES, noise=0.4)
    wrong = text_vectors()
    wrong[[0, 1]] = wrong[[1, 0]] + 0.8 * wrong[[0, 1]]
    ClassText(wrong, 20.0).write(tmp_path / "text.npz")
    before = score_zero_shot(split, "test", open_features(features), ClassText(wrong))
    trained = train(
        split,
        features,
        config_of(split, tmp_path / "text.npz", "schedule.epochs=30", "schedule.lr=1e-2"),
        tmp_path / "r",
    )
    after = average_precision(scores_of(tmp_path / "r", split), split.labels("test"))
    assert after[:2].mean() > average_precision(before, split.labels("test"))[:2].mean() + 0.1
    assert trained.mAP["test"].overall > 0.95
    saved = load_checkpoint(tmp_path / "r" / "best.pt")["model"]
    assert float(saved["scale"]) == 20.0 and not torch.equal(saved["weight"], torch.from_numpy(wrong))


def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not(split, split_file, features, text_file, tmp_path):
    tables = config_of(split, text_file, "execution.checkpoint_steps=2").to_tables()
    assert any(train_and_kill(split_file, features, tables, tmp_path, [(0, 0.2, 1.0)] * 2))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_train_the_same_run(split, split_file, features, text_file, tmp_path):
    config = config_of(split, text_file)
    train(split_file, features, config, tmp_path / "one")
    start_two(train_run, split_file, features, config.to_tables(), tmp_path / "two", folder=tmp_path)
    one, two = (scores_of(tmp_path / name, split) for name in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=1e-3)


def test_the_text_is_part_of_the_run_and_its_path_is_not(split, split_file, features, text_file, tmp_path):
    run = tmp_path / "run"
    train(split_file, features, config_of(split, text_file), run)
    moved = tmp_path / "moved.npz"
    shutil.move(text_file, moved)
    longer = "schedule.epochs=4"
    assert train(split_file, features, config_of(split, moved), run).was_finished
    assert train(split_file, features, config_of(split, text_file), run).was_finished  # the file is gone
    for subset in ("val", "test"):
        out = predict(run, tmp_path / f"{subset}.parquet", subset=subset)
        assert out.read_bytes() == (run / f"predictions-{subset}.parquet").read_bytes()
    assert not train(split_file, features, config_of(split, text_file, longer), run).was_finished
    ClassText(text_vectors()[::-1], 20.0, -3.0).write(moved)
    with pytest.raises(MeidbenchError, match="the text of the classes has other vectors"):
        train(split_file, features, config_of(split, moved, longer), run)
    with pytest.raises(FeatureError, match="there is no file of text vectors"):
        train(split_file, features, config_of(split, text_file), tmp_path / "other")


def test_without_a_file_the_model_of_the_features_gives_the_text(split, features, tmp_path, monkeypatch):
    loads = []

    def load(name, *, revision="", report=None):
        loads.append((name, revision))
        return fake_encoder(name, revision)

    monkeypatch.setattr("meidbench.extraction.encoders.encoder.load_text_encoder", load)
    train(split, features, config_of(split), tmp_path / "run")
    assert loads == [("hf:toy/clip", "abc123")]
    text = embed_classes(CLASSES, fake_encoder(), make_prompts(CLASSES))
    assert Inputs.from_table(_inputs(tmp_path / "run")).text_digest == text.digest
    assert train(split, features, config_of(split), tmp_path / "run").was_finished and len(loads) == 1
    text.write(tmp_path / "text.npz")  # the same text from a file is the same run
    assert train(split, features, config_of(split, tmp_path / "text.npz"), tmp_path / "run").was_finished


def _inputs(run):
    from meidbench.checks import read_json

    return read_json(run / "config.json")["inputs"]


def test_features_without_text_and_text_that_does_not_fit_are_refused(split, features, text_file, tmp_path):
    simulated = simulate_features(
        simulate_split((20, 9, 9), num_classes=8), tmp_path / "s.h5", frames=FRAMES, dim=WIDTH
    )
    with pytest.raises(RequestError, match="has features of simulation, which has no text encoder"):
        train(simulate_split((20, 9, 9), num_classes=8), simulated, config_of(split), tmp_path / "run")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        for subset in ("train", "val", "test"):
            for video_id in split.video_ids(subset):
                file[video_id] = open_features(features).read(video_id)
    with pytest.raises(RequestError, match=r"is unknown; .*train: --set model\.text=FILE"):
        train(split, foreign, config_of(split), tmp_path / "run")
    ClassText(text_vectors()[:, :-1]).write(tmp_path / "narrow.npz")
    with pytest.raises(FeatureError, match=f"have {WIDTH - 1} numbers, the rows in .* {WIDTH}"):
        train(split, features, config_of(split, tmp_path / "narrow.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(split, foreign, config_of(split, text_file), tmp_path / "run").mAP["test"].overall > 0.9


def test_settings_that_it_cannot_have_are_refused(split):
    with pytest.raises(MeidbenchError, match="has aggregators of its own; leave out the aggregator"):
        resolve("text_adapter", split, aggregator="netvlad")
    with pytest.raises(MeidbenchError, match="takes no motion stream"):
        config_of(split, None, "motion.when=sampled")
    inputs = make_model_inputs(config_of(split), split, WIDTH)
    with pytest.raises(MeidbenchError, match=r"model\.start_bias"):
        TextAdapter(inputs, start_bias="zero")
