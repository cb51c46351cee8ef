"""Training in two stages: the weights that the second takes over, kills, a first stage from elsewhere, settings."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import start_two, train_and_kill, train_run
from sklearn.metrics import average_precision_score

from meidbench.baselines import LOSSES, predict, resolve, train
from meidbench.baselines.run_folder import FIRST_STAGE, RunFolder, load_checkpoint, save_checkpoint
from meidbench.errors import MeidbenchError
from meidbench.features.simulation import simulate_features
from meidbench.predictions.align import read_predictions
from meidbench.splits.split import Split

TINY = ("frames.train=6", "frames.test=6", "schedule.batch_size=16", "schedule.epochs=2", "schedule.lr=2e-3",
        "sampler.samples_per_epoch=48", "execution.device=cpu")  # fmt: skip
METHODS = ["meid", "meid-release"]
SCORED = ("predictions-val.parquet", "predictions-test.parquet", "result-val.json", "result-test.json")


@pytest.fixture(scope="module")
def features(toy_split, tmp_path_factory):
    return simulate_features(toy_split, tmp_path_factory.mktemp("features") / "toy.h5", frames=6, dim=8)


def config_of(split, *settings, method="meid", aggregator=None):
    asked = dict(setting.split("=", 1) for setting in (*TINY, *settings))
    return resolve(method, split, aggregator=aggregator, settings=[f"{key}={value}" for key, value in asked.items()])


@pytest.fixture(scope="module")
def runs(toy_split, toy_split_file, features, tmp_path_factory):
    """A finished run of each preset."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        train(toy_split_file, features, config_of(toy_split, method=method), folder / method)
    return folder


def log_of(folder, event):
    lines = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def weights_of(folder, name="best.pt"):
    return load_checkpoint(Path(folder, name))["model"]


def assert_same(one, other):
    for name in ("last.pt", "best.pt"):
        before, after = weights_of(one, name), weights_of(other, name)
        assert before.keys() == after.keys()
        assert [key for key, tensor in before.items() if not torch.equal(tensor, after[key])] == [], name
    for name in SCORED:
        assert (Path(one, name)).read_bytes() == Path(other, name).read_bytes(), name


# --- the weights that the second stage takes over -------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_first_stage_is_a_finished_run_that_the_second_begins_with(runs, toy_split, features, method):
    config, first = config_of(toy_split, method=method), runs / method / FIRST_STAGE
    assert RunFolder(first).read()[0] == config.first_stage and RunFolder(runs / method).read()[0] == config
    assert train(toy_split, features, config.first_stage, first).was_finished
    assert {path.name for path in first.iterdir()} == {path.name for path in (runs / method).iterdir()} - {FIRST_STAGE}
    began, ended = weights_of(first), weights_of(runs / method)
    shared = {name.removeprefix("one."): tensor for name, tensor in ended.items() if name.startswith("one.")}
    assert shared.keys() == {name for name in began if not name.startswith("distillation.")}
    moved = [name for name, tensor in shared.items() if not torch.equal(tensor, began[name])]
    # In the release only the statistics of batch normalisation change.
    drifting = ["running_mean", "running_var", "num_batches_tracked"] if method == "meid-release" else []
    assert moved == [f"input_norm.norm.{name}" for name in drifting]
    for subset in ("val", "test"):
        assert 0 < train(toy_split, features, config, runs / method).mAP[subset].overall < 1


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(runs, toy_split, toy_split_file, features, tmp_path, method):
    train(toy_split_file, features, config_of(toy_split, method=method), tmp_path / "again")
    for stage in (".", FIRST_STAGE):
        assert_same(runs / method / stage, tmp_path / "again" / stage)
        one, other = (Path(folder, stage, "config.json").read_bytes() for folder in (runs / method, tmp_path / "again"))
        assert one == other


def test_another_seed_gives_other_weights(runs, toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split, "seed=5"), tmp_path / "run")
    one, other = weights_of(runs / "meid", "last.pt"), weights_of(tmp_path / "run", "last.pt")
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("linear.weight"))


@pytest.mark.parametrize("method", METHODS)
def test_predict_gives_the_scores_of_the_run(runs, tmp_path, method):
    told = read_predictions(predict(runs / method, tmp_path / "test.parquet", device="cpu"))
    wanted = read_predictions(runs / method / "predictions-test.parquet")
    assert told.video_ids == wanted.video_ids and np.array_equal(told.scores, wanted.scores)
    assert wanted.scores.dtype == np.float32
    first = read_predictions(runs / method / FIRST_STAGE / "predictions-test.parquet")
    assert not np.array_equal(first.scores, wanted.scores)


@pytest.mark.parametrize("stage", [".", FIRST_STAGE])
@pytest.mark.parametrize("method", METHODS)
def test_each_epoch_logs_the_penalty_and_the_norms_of_the_necks(runs, method, stage):
    epochs = log_of(runs / method / stage, "epoch")
    assert [line["epoch"] for line in epochs] == [1, 2]
    for line in epochs:
        assert 0 < line["penalty"] < line["loss"]
        assert line["model"].keys() == {"neck_norm_head", "neck_norm_tail"}
    last = weights_of(runs / method / stage, "last.pt")
    for name in ("head", "tail"):
        told = epochs[-1]["model"][f"neck_norm_{name}"]
        weight = last[f"distillation.necks.{name}.linear.weight"].double().numpy()
        assert told == pytest.approx(np.sqrt((weight**2).sum()), rel=1e-5)
        assert told != epochs[0]["model"][f"neck_norm_{name}"]


# --- killed anywhere ------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_in_both_stages_ends_like_one_that_was_not(toy_split, toy_split_file, features, tmp_path):
    for method in METHODS:
        (tmp_path / method).mkdir()
        tables = config_of(toy_split, "execution.checkpoint_steps=2", method=method).to_tables()
        # Late enough for a checkpoint, and early enough that work is left.
        kills = [(stage, 1 / 3, 0.9) for stage in (0, 1)]
        assert train_and_kill(toy_split_file, features, tables, tmp_path / method, kills) == [True, True]
    for method in METHODS:
        whole, killed = (tmp_path / method / name for name in ("whole", "killed"))
        for stage in (".", FIRST_STAGE):
            assert_same(whole / stage, killed / stage)
            assert {path.name for path in (killed / stage).iterdir()} == {
                path.name for path in (whole / stage).iterdir()
            }
            told, wanted = log_of(killed / stage, "epoch"), log_of(whole / stage, "epoch")
            assert [line["epoch"] for line in told] == [1, 2]
            for line, expected in zip(told, wanted, strict=True):
                assert line["model"] == expected["model"]
                for key in ("loss", "penalty"):
                    assert line[key] == pytest.approx(expected[key], rel=1e-12)


# --- a first stage from elsewhere -----------------------------------------------------------------------------------


@pytest.fixture
def first(runs, tmp_path):
    """The first stage of MEID in another folder."""
    return Path(shutil.copytree(runs / "meid" / FIRST_STAGE, tmp_path / "first"))


def test_a_first_stage_that_is_given_is_taken_and_not_trained_again(runs, toy_split, features, first, tmp_path):
    times = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    train(toy_split, features, config_of(toy_split), tmp_path / "run", first_stage=first)
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == times
    assert not (tmp_path / "run" / FIRST_STAGE).exists()
    assert_same(runs / "meid", tmp_path / "run")
    # A finished run still needs a first stage with the same weights.
    assert train(toy_split, features, config_of(toy_split), tmp_path / "run", first_stage=first).was_finished
    content = load_checkpoint(first / "best.pt")
    content["model"]["aggregator.classifier.bias"] += 1
    save_checkpoint(first / "best.pt", content)
    with pytest.raises(MeidbenchError, match="the first stage has other weights"):
        train(toy_split, features, config_of(toy_split), tmp_path / "run", first_stage=first)


def test_a_first_stage_with_other_settings_is_refused_and_they_are_named(toy_split, features, first, tmp_path):
    config = config_of(toy_split, "seed=7", "stage1.schedule.lr=0.5", "stage1.model.distill_weight=0.4")
    with pytest.raises(MeidbenchError) as refused:
        train(toy_split, features, config, tmp_path / "run", first_stage=first)
    for said in (
        "first cannot be the first stage",
        "seed: 2021 in the run, 7 asked for",
        "schedule.lr: 0.002 in the run, 0.5 asked for",
        "model.distill_weight: 0.1 in the run, 0.4 asked for",
        "name a run of meid_one with the same settings",
    ):
        assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_first_stage_of_another_method_split_or_that_is_not_finished_is_refused(
    runs, toy_split, features, first, tmp_path
):
    def begun(split, given, match):
        with pytest.raises(MeidbenchError, match=match):
            train(split, features, config_of(split), tmp_path / "run", first_stage=given)
        assert not (tmp_path / "run").exists()

    begun(toy_split, runs / "meid", "model.name: 'meid_two' in the run, 'meid_one' asked for")
    other = Split(toy_split.table, dataclasses.replace(toy_split.metadata, digest="0" * 64))
    begun(other, first, "the split has other videos or labels")
    begun(toy_split, tmp_path / "nothing", "holds no run")
    (first / "result-val.json").unlink()
    begun(toy_split, first, "it is not finished; run its command again")
    # Its own command finishes it.
    train(toy_split, features, config_of(toy_split).first_stage, first)
    train(toy_split, features, config_of(toy_split), tmp_path / "run", first_stage=first)


def test_a_first_stage_of_other_features_is_refused(toy_split, first, tmp_path):
    others = simulate_features(toy_split, tmp_path / "others.h5", frames=6, dim=8, seed=9)
    with pytest.raises(MeidbenchError, match="the features have other values"):
        train(toy_split, others, config_of(toy_split), tmp_path / "run", first_stage=first)


def test_a_first_stage_that_was_chosen_on_test_is_recorded(toy_split, features, tmp_path):
    config = config_of(toy_split, "stage1.selection.subset=test", "schedule.epochs=1")
    trained = train(toy_split, features, config, tmp_path / "run")
    assert read_predictions(tmp_path / "run" / "predictions-test.parquet").metadata["run"]["select_on"] == "test"
    assert trained.warnings


def test_a_run_that_has_begun_no_longer_needs_its_first_stage(toy_split, features, first, tmp_path):
    reports = []
    train(toy_split, features, config_of(toy_split), tmp_path / "run", first_stage=first)
    before = weights_of(tmp_path / "run")
    shutil.rmtree(first)
    again = train(toy_split, features, config_of(toy_split), tmp_path / "run", report=reports.append)
    assert again.was_finished and not (tmp_path / "run" / FIRST_STAGE).exists()
    (tmp_path / "run" / "result-test.json").unlink()
    train(toy_split, features, config_of(toy_split), tmp_path / "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(tmp_path / "run").items())


def test_a_first_stage_without_weights_is_refused(toy_split, features, first, tmp_path):
    (first / "best.pt").unlink()
    with pytest.raises(MeidbenchError, match=r"is finished, but its best\.pt is gone; remove the folder"):
        train(toy_split, features, config_of(toy_split), tmp_path / "run", first_stage=first)


@pytest.mark.parametrize(("method", "settings", "said"), [
    ("meid", ["stage2=5"], "stage2 is not a value; set stage2.KEY=VALUE"),
    ("meid", ["stage1=none"], "stage1 is not a value"),
    ("meid", ["sampler.name=[1]"], "unknown sampler.name"),
    ("meid", ["first_stage.seed=3"], "first_stage is not a setting"),
    ("meid", ["stage1.first_stage.seed=3"], "first_stage is not a setting"),
    ("bce", ["first_stage.schedule.epochs=3"], "first_stage is not a setting"),
    ("move", ["aggregator.name=netvlad"], "has aggregators of its own"),
])  # fmt: skip
def test_invalid_settings_are_refused(toy_split, method, settings, said):
    with pytest.raises(MeidbenchError, match=said):
        resolve(method, toy_split, settings=settings)


def test_a_model_that_begins_with_a_first_stage_is_not_trained_without_one(toy_split, features, tmp_path):
    config = config_of(toy_split, "model.name=meid_two", method="meid_one")
    with pytest.raises(MeidbenchError, match="begins with a trained first stage"):
        train(toy_split, features, config, tmp_path / "run")


def test_a_method_of_one_stage_takes_none(toy_split, features, first, tmp_path):
    with pytest.raises(MeidbenchError, match="bce is trained in one stage; leave out the first"):
        train(toy_split, features, config_of(toy_split, method="bce"), tmp_path / "run", first_stage=first)


def test_the_execution_of_the_first_stage_makes_no_difference(toy_split, features, first, tmp_path):
    config = config_of(toy_split, "execution.log_every=1", "execution.checkpoint_steps=5")
    assert config.first_stage.execution == config.execution
    train(toy_split, features, config, tmp_path / "run", first_stage=first)


def test_another_folder_and_another_run_are_refused_before_anything_is_trained(toy_split, features, runs, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear to someone")
    with pytest.raises(MeidbenchError, match="not empty and holds no run"):
        train(toy_split, features, config_of(toy_split), tmp_path / "other")
    assert not (tmp_path / "other" / FIRST_STAGE).exists()
    with pytest.raises(MeidbenchError, match=r"schedule\.lr: 0\.002 in the run, 0\.5 asked for"):
        train(toy_split, features, config_of(toy_split, "stage2.schedule.lr=0.5"), runs / "meid")
    with pytest.raises(MeidbenchError, match=r"first_stage\.schedule\.lr: 0\.002 in the run, 0\.5 asked"):
        train(toy_split, features, config_of(toy_split, "stage1.schedule.lr=0.5"), runs / "meid")


@pytest.mark.parametrize("settings", [
    ("stage2.model.neck_mask=output", "stage2.model.neck_out=3"), ("stage2.model.beta=0",), ("motion.when=none",
    "stage2.model.arch=e3"), ("motion.when=none", "model.arch=e1", "model.share=foo"), ("stage2.loss.gamma=-1",),
    ("stage2.sampler.samples_per_epoch=0",), ("stage2.schedule.accumulate=3",),
    ("stage2.augmentation.name=frame_stack", "stage2.augmentation.ratio=3.0"),
    ("stage2.schedule.batch_size=1", "model.embedding_norm=bn"),
])  # fmt: skip
def test_mistakes_in_the_second_stage_are_found_before_the_first_is_trained(toy_split, features, tmp_path, settings):
    with pytest.raises(MeidbenchError):
        train(toy_split, features, config_of(toy_split, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- settings of both stages ----------------------------------------------------------------------------------------


def test_settings_are_for_both_stages_or_for_one(toy_split):
    config = config_of(
        toy_split, "schedule.epochs=9", "seed=4", "stage1.schedule.epochs=5", "stage2.schedule.lr=0.5",
        "model.beta=0.7", "model.attention_hidden=12", "stage1.model.distill_weight=0.3",
    )  # fmt: skip
    first = config.first_stage
    assert (config.method, first.method) == ("meid", "meid_one") and first.first_stage is None
    assert (config.schedule.epochs, first.schedule.epochs) == (9, 5)
    assert (config.schedule.lr, first.schedule.lr) == (0.5, 2e-3)
    assert config.seed == first.seed == 4
    assert config.model.options["attention_hidden"] == first.model.options["attention_hidden"] == 12
    # Expert one does not have the options that only expert two has.
    assert config.model.options["beta"] == 0.7 and "beta" not in first.model.options
    assert (config.model.options["distill_weight"], first.model.options["distill_weight"]) == (0.1, 0.3)


def test_an_aggregator_is_that_of_both_stages(toy_split):
    for config in (
        config_of(toy_split, "aggregator.clusters=4", aggregator="netvlad"),
        config_of(toy_split, "aggregator.name=netvlad", "aggregator.clusters=4"),
    ):
        assert config.aggregator == config.first_stage.aggregator
        assert config.aggregator.name == "netvlad" and config.aggregator.options["clusters"] == 4


def test_each_stage_has_the_protocol_of_its_recipe(toy_split):
    plain = {method: resolve(method, toy_split) for method in METHODS}
    for config in plain.values():
        assert (config.first_stage.sampler.name, config.sampler.name) == ("instance", "class_balanced")
        assert config.first_stage.mask_other_labels is False and config.first_stage.motion.when == "none"
        assert config.motion.when == "full"
    assert [(config.mask_other_labels, config.mask_as) for config in plain.values()] == [
        (True, "elements"),
        (True, "factor"),
    ]
    assert (plain["meid"].first_stage.schedule.lr, plain["meid"].schedule.lr) == (1e-3, 1e-4)
    stacked = [plain["meid-release"].augmentation.name, plain["meid-release"].first_stage.augmentation.name]
    assert stacked == ["frame_stack"] * 2 and plain["meid"].augmentation.name == "none"


def test_labels_are_masked_in_the_second_stage_alone(toy_split, features, tmp_path, monkeypatch):
    from meidbench.baselines import loop

    masked, reports = [], []

    def spied(labels, drawn):
        mask = label_mask(labels, drawn)
        masked.append((len(reports), bool((mask < 1).any())))
        return mask

    label_mask = loop.label_mask
    monkeypatch.setattr(loop, "label_mask", spied)
    settings = ("schedule.epochs=1", "sampler.samples_per_epoch=32")

    def report(line):
        if "stage" in line:
            reports.append(line)

    train(toy_split, features, config_of(toy_split, *settings), tmp_path / "run", report=report)
    # Two reports before the second stage begins, two batches after them.
    assert masked == [(2, True), (2, True)]
    assert reports[0].startswith("first stage (meid_one)") and reports[1].startswith("second stage (meid)")


@pytest.mark.parametrize(("settings", "said"), [
    (["stage1.model.beta=0.5"], "unknown key model.beta"),
    (["model.betta=0.5"], "unknown key model.betta"),
    (["stage2.model.pool=sum"], "the stages differ in model.pool"),
    (["stage1.model.embedding=release"], "the stages differ in model.embedding"),
    (["stage2.frames.train=5"], "the stages differ in frames"),
    (["stage2.model.attention_hidden=9"], "the stages differ in model.attention_hidden"),
    (["stage1.aggregator.name=netvlad"], "the stages differ in aggregator"),
    (["stage2.stage1.seed=3"], "unknown key stage1"),
])  # fmt: skip
def test_stages_that_do_not_belong_together_are_refused(toy_split, settings, said):
    with pytest.raises(MeidbenchError, match=said):
        config_of(toy_split, *settings)


def test_a_method_of_one_stage_has_no_settings_of_stages(toy_split):
    for method in ("bce", "meid_one"):
        with pytest.raises(MeidbenchError, match=f"{method} is trained in one stage; leave out stage2"):
            config_of(toy_split, "stage2.seed=3", method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_of_two_stages_can_be_read_back_and_compared(toy_split, method):
    config = config_of(toy_split, method=method)
    again = type(config).from_tables(json.loads(json.dumps(config.to_tables())))
    assert again == config and config.differences(again) == []
    other = dataclasses.replace(config, first_stage=dataclasses.replace(config.first_stage, seed=3))
    assert config.differences(other) == ["first_stage.seed: 2021 in the run, 3 asked for"]


# --- several processes ----------------------------------------------------------------------------------------------


def test_two_processes_give_the_result_of_one(toy_split, toy_split_file, features, tmp_path):
    # A mean of squares is that of its halves together; a root is not, and the variance over the videos is not.
    distillation = ("model.distill_var=unit", "model.distill_norm=mse")
    settings = (*distillation, "sampler.samples_per_epoch=49", "execution.checkpoint_steps=2")
    config = config_of(toy_split, *settings)
    train(toy_split_file, features, config, tmp_path / "one")
    start_two(train_run, toy_split_file, features, config.to_tables(), tmp_path / "two", folder=tmp_path)
    for stage in (FIRST_STAGE, "."):
        one, two = (weights_of(tmp_path / name / stage, "last.pt") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=5e-4, msg=f"{stage} {name}")
        assert [line["processes"] for line in log_of(tmp_path / "two" / stage, "begun")] == [2]
    one, two = (read_predictions(tmp_path / name / "predictions-test.parquet") for name in ("one", "two"))
    assert one.video_ids == two.video_ids
    np.testing.assert_allclose(two.scores, one.scores, atol=5e-3)


def test_more_epochs_go_to_the_second_stage_once_it_has_begun(toy_split, features, tmp_path):
    lines = []
    train(toy_split, features, config_of(toy_split), tmp_path / "run")
    first = (tmp_path / "run" / FIRST_STAGE / "best.pt").read_bytes()
    train(toy_split, features, config_of(toy_split, "schedule.epochs=3"), tmp_path / "run", report=lines.append)
    assert "the first stage stays as it is, with 2 epochs" in "\n".join(lines)
    assert (tmp_path / "run" / FIRST_STAGE / "best.pt").read_bytes() == first
    whole = config_of(toy_split, "stage2.schedule.epochs=3")
    train(toy_split, features, whole, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert RunFolder(tmp_path / "run").read()[0] == whole


def test_a_first_stage_gets_more_epochs_before_the_second_has_begun(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split).first_stage, tmp_path / "run" / FIRST_STAGE)
    longer = config_of(toy_split, "schedule.epochs=3")
    for name in ("run", "whole"):
        train(toy_split, features, longer, tmp_path / name)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert_same(tmp_path / "run" / FIRST_STAGE, tmp_path / "whole" / FIRST_STAGE)


def test_the_ap_of_the_second_stage_is_that_of_both_experts(toy_split, features, tmp_path, monkeypatch):
    """FrameStack's AP in ``meid-release``: of the mean of both probabilities in the second pass over each batch."""
    from meidbench.baselines.models.meid import ExpertOne, ExpertTwo
    from meidbench.baselines.running_ap import RunningAveragePrecision

    outputs = {"first": [], "second": [], "labels": []}
    classify, second_logits, add = ExpertOne.classify, ExpertTwo._second_logits, RunningAveragePrecision.add

    def spied_classify(self, *arguments):
        outputs["last"] = classify(self, *arguments)
        return outputs["last"]

    def spied_second(self, *arguments):
        logits = second_logits(self, *arguments)
        if self.training and not torch.is_grad_enabled():  # the second pass
            outputs["first"].append(outputs["last"].clone())
            outputs["second"].append(logits.clone())
        return logits

    def spied_add(self, scores, targets, keep=None):
        outputs["labels"].append(targets.clone())
        add(self, scores, targets, keep)

    config = config_of(toy_split, "schedule.epochs=1", "schedule.lr=0.05", method="meid-release")
    train(toy_split, features, config.first_stage, tmp_path / "first")
    monkeypatch.setattr(ExpertOne, "classify", spied_classify)
    monkeypatch.setattr(ExpertTwo, "_second_logits", spied_second)
    monkeypatch.setattr(RunningAveragePrecision, "add", spied_add)
    train(toy_split, features, config, tmp_path / "run", first_stage=tmp_path / "first")
    first, second, labels = (torch.cat(outputs[name]).double().numpy() for name in ("first", "second", "labels"))
    assert len(first) == len(second) == len(labels) == 48
    seen = np.flatnonzero(labels.any(axis=0))

    def precision(scores):
        return [average_precision_score(labels[:, c], scores[:, c]) for c in seen]

    class_ap = load_checkpoint(tmp_path / "run" / "last.pt")["running_ap"]["class_ap"].numpy()[seen]
    probabilities = [1 / (1 + np.exp(-logits)) for logits in (first, second)]
    np.testing.assert_allclose(class_ap, precision(sum(probabilities) / 2), atol=1e-6)
    # Neither the second expert alone nor the sum of the logits ranks like that.
    for other in (second, first + second):
        assert np.abs(class_ap - precision(other)).max() > 1e-3


def test_the_released_mask_multiplies_the_mean_loss_by_the_elements_kept(toy_split, features, tmp_path, monkeypatch):
    from meidbench.baselines import loop

    compute, focal, seen = loop.TrainingLoop._compute_loss, LOSSES["focal"].forward, []

    def spied_focal(self, logits, targets, mask=None):
        seen.append([focal(self, logits, targets, mask), mask])
        return seen[-1][0]

    def spied_compute(self, batch, micro_batch):
        loss, penalty = compute(self, batch, micro_batch)
        seen[-1] += [(loss - penalty).item(), batch["labels"], batch["class"].tolist()]
        return loss, penalty

    monkeypatch.setattr(LOSSES["focal"], "forward", spied_focal)
    monkeypatch.setattr(loop.TrainingLoop, "_compute_loss", spied_compute)
    train(toy_split, features, config_of(toy_split, method="meid-release"), tmp_path / "run")
    factors = []
    for mean, mask, loss, labels, drawn in seen:
        assert mask is None  # no label is left out, in neither stage
        kept = [
            sum(label == 0 or c == chosen for c, label in enumerate(row))
            for row, chosen in zip(labels.tolist(), drawn, strict=True)
        ]
        factor = 1.0 if set(drawn) == {-1} else sum(kept) / len(kept)
        assert loss == pytest.approx(factor * mean.item(), rel=1e-4)
        factors.append(factor)
    # Three batches per epoch and stage, of 12 classes.
    assert factors[:6] == [1.0] * 6 and all(6 < factor < 12 for factor in factors[6:]) and len(factors) == 12
