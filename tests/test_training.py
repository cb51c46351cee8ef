"""Training: exact resumption, micro-batches and processes, divergence, selection, and the files of a run."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import start_two, train_and_kill, train_run
from sklearn.metrics import average_precision_score

from meidbench.baselines import AGGREGATORS, inference, resolve, train
from meidbench.baselines.configuration import make_model_inputs
from meidbench.baselines.distributed import ProcessGroup, join_processes
from meidbench.baselines.inference import predict
from meidbench.baselines.inputs import Inputs, digest_features
from meidbench.baselines.learner import (
    MIXING,
    NOISE,
    DivergenceError,
    EpochPlan,
    Learner,
    LossMonitor,
    Position,
    StepTotals,
    derive_seed,
)
from meidbench.baselines.run_folder import (
    RunFolder,
    RunLog,
    digest_weights,
    load_checkpoint,
    save_checkpoint,
)
from meidbench.errors import FeatureError, MeidbenchError
from meidbench.features import open_features
from meidbench.features.packing import pack
from meidbench.features.simulation import simulate_features
from meidbench.loading.datasets import FeatureDataset
from meidbench.predictions.align import read_predictions, run_warnings
from meidbench.splits.split import Split, load_split

TINY = (
    "frames.train=6",
    "frames.test=6",
    "schedule.batch_size=16",
    "schedule.epochs=2",
    "schedule.lr=2e-3",
    "execution.device=cpu",
)
NO_DROPOUT = ("aggregator.dropout=0.0",)


@pytest.fixture(scope="session")
def features(toy_split, tmp_path_factory):
    return simulate_features(toy_split, tmp_path_factory.mktemp("features") / "toy.h5", frames=6, dim=16)


def config_of(split, *settings, method="bce", aggregator=None):
    asked = dict(setting.split("=", 1) for setting in (*TINY, *settings))
    return resolve(method, split, aggregator=aggregator, settings=[f"{key}={value}" for key, value in asked.items()])


def log_of(folder, event):
    lines = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def weights_of(folder, name="last.pt"):
    return load_checkpoint(Path(folder, name))["model"]


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance)


# --- exact resumption -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "aggregator", "attempts", "extra"), [
    ("framestack-compat", "netvlad", 4, ("aggregator.clusters=4", "aggregator.hidden=8")),
    ("cbs", "nonlinear", 2, ("augmentation.name=mixup", "schedule.accumulate=2")),
])  # fmt: skip
def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not(
    toy_split, toy_split_file, features, tmp_path, method, aggregator, attempts, extra
):
    settings = ("schedule.epochs=3", "schedule.milestones=[1]", "sampler.samples_per_epoch=77",
                "execution.checkpoint_steps=3", *extra)  # fmt: skip
    tables = config_of(toy_split, *settings, method=method, aggregator=aggregator).to_tables()
    # While a batch is read, a step is taken, a checkpoint is written, a subset is scored.
    assert any(train_and_kill(toy_split_file, features, tables, tmp_path, [(0, 0.2, 1.0)] * attempts))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(whole / name), load_checkpoint(killed / name)
        for key, tensor in one["model"].items():
            assert torch.equal(tensor, other["model"][key]), (name, key)
    for name in ("predictions-val.parquet", "predictions-test.parquet", "result-val.json", "result-test.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    # The log has no event twice either.
    assert [line["epoch"] for line in log_of(killed, "epoch")] == [1, 2, 3]
    assert [line["loss"] for line in log_of(killed, "epoch")] == pytest.approx(
        [line["loss"] for line in log_of(whole, "epoch")], rel=1e-12
    )


def test_a_finished_run_stays_as_it_is(toy_split, features, tmp_path):
    config = config_of(toy_split, "schedule.epochs=1")
    first = train(toy_split, features, config, tmp_path / "run")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    # The execution may change.
    changed = dataclasses.replace(config, execution=dataclasses.replace(config.execution, log_every=1))
    with mock.patch.object(inference, "read_predictions", wraps=inference.read_predictions) as reading:
        again = train(toy_split, features, changed, tmp_path / "run")
    assert [call.args[0].name for call in reading.call_args_list] == [
        "predictions-val.parquet",
        "predictions-test.parquet",
    ]
    assert not first.was_finished and again.was_finished and again.mAP == first.mAP
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == times


SCORED = ("predictions-val.parquet", "predictions-test.parquet", "result-val.json", "result-test.json")


def assert_same_run(one, other):
    for name in ("last.pt", "best.pt"):
        before, after = weights_of(one, name), weights_of(other, name)
        assert [key for key, tensor in before.items() if not torch.equal(tensor, after[key])] == [], name
    moments = [load_checkpoint(Path(folder, "last.pt"))["optimiser"]["state"] for folder in (one, other)]
    assert all(torch.equal(moments[0][index]["exp_avg"], moments[1][index]["exp_avg"]) for index in moments[0])
    for name in SCORED:
        assert Path(one, name).read_bytes() == Path(other, name).read_bytes(), name


@pytest.mark.parametrize(("method", "settings"), [
    ("bce", ("schedule.milestones=[1,3]",)),
    ("framestack-compat", ("sampler.name=square_root", "schedule.batch_size=40", "selection.every=1")),
])  # fmt: skip
def test_a_finished_run_goes_on_to_more_epochs_like_one_that_began_with_them(
    toy_split, features, tmp_path, method, settings
):
    def train_for(epochs, folder, lines=None):
        config = config_of(toy_split, *settings, f"schedule.epochs={epochs}", method=method)
        tell = (lambda line: None) if lines is None else lines.append
        return train(toy_split, features, config, tmp_path / folder, report=tell)

    lines = []
    before = train_for(2, "run")
    longer = train_for(4, "run", lines)
    assert not longer.was_finished
    train_for(4, "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    told = next(line for line in lines if "goes on" in line)
    assert f"{tmp_path / 'run'} goes on: 2 epochs become 4" in told
    assert "the result is that of a new run of 4 epochs" in told
    if method == "bce":
        assert "the milestones stay at 1, 3: the learning rate begins with 0.0002 and falls at 3" in told
    assert not [line for line in lines if "epoch 1 of" in line or "epoch 2 of" in line]
    content, whole = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "whole"))
    assert content["config"] == whole["config"]
    means = {subset: dataclasses.asdict(group) for subset, group in before.mAP.items()}
    assert content["earlier"] == [{"epochs": 2, "mAP": means}]
    assert [line["epoch"] for line in log_of(tmp_path / "run", "epoch")] == [1, 2, 3, 4]
    assert train_for(4, "run").was_finished
    saved = (tmp_path / "run" / "result-test.json").read_bytes()
    with pytest.raises(MeidbenchError, match="is a run of 4 epochs, 3 are asked for; a run can go on for more epochs"):
        train_for(3, "run")
    assert (tmp_path / "run" / "result-test.json").read_bytes() == saved


@pytest.mark.parametrize(("method", "epochs", "settings", "same_as", "said"), [
    ("ldam", 6, (), ("loss.drw_epoch=1",), "of 6 epochs would differ: loss.drw_epoch stays 1 (it would be 3)"),
    ("bce", 4, ("sampler.name=progressively_balanced",), ("sampler.epochs=2",), "epochs stays 2 (it would be 4)"),
])  # fmt: skip
def test_values_that_follow_from_the_epochs_stay_and_are_told(
    toy_split, features, tmp_path, method, epochs, settings, same_as, said
):
    lines = []
    train(toy_split, features, config_of(toy_split, *settings, method=method), tmp_path / "run")
    longer = config_of(toy_split, *settings, f"schedule.epochs={epochs}", method=method)
    train(toy_split, features, longer, tmp_path / "run", report=lines.append)
    assert said in "\n".join(lines) and "the result is that of" not in "\n".join(lines)
    whole = config_of(toy_split, *settings, *same_as, f"schedule.epochs={epochs}", method=method)
    train(toy_split, features, whole, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_last_epoch_that_a_longer_run_would_not_score_is_told(toy_split, features, tmp_path):
    lines = []
    for epochs in (3, 4):
        config = config_of(toy_split, f"schedule.epochs={epochs}", "selection.every=2")
        train(toy_split, features, config, tmp_path, report=lines.append)
    assert "epoch 3 was scored, being the last (it would not be: selection.every=2)" in "\n".join(lines)


def test_more_epochs_that_were_interrupted_go_on_and_can_be_scored(toy_split, features, tmp_path):
    def stop(line):
        if "epoch 3 of 5" in line:
            raise KeyboardInterrupt

    train(toy_split, features, config_of(toy_split), tmp_path / "run")
    config = config_of(toy_split, "schedule.epochs=5")
    with pytest.raises(KeyboardInterrupt):
        train(toy_split, features, config, tmp_path / "run", report=stop)
    assert not (tmp_path / "run" / "result-test.json").exists()
    predict(tmp_path / "run", tmp_path / "test.parquet", split=toy_split, features=features)
    assert not train(toy_split, features, config, tmp_path / "run").was_finished
    train(toy_split, features, config, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_whose_last_checkpoint_is_gone_cannot_go_on(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split), tmp_path)
    (tmp_path / "last.pt").unlink()
    with pytest.raises(MeidbenchError, match=r"cannot go on: its last\.pt is gone"):
        train(toy_split, features, config_of(toy_split, "schedule.epochs=3"), tmp_path)
    assert train(toy_split, features, config_of(toy_split), tmp_path).was_finished


def test_damaged_records_of_fewer_epochs_do_not_stop_more(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split), tmp_path)
    (tmp_path / "result-test.json").write_text("damaged")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"earlier": 3}))
    train(toy_split, features, config_of(toy_split, "schedule.epochs=3"), tmp_path)
    earlier = json.loads((tmp_path / "config.json").read_text())["earlier"]
    assert [(entry["epochs"], list(entry["mAP"])) for entry in earlier] == [(2, ["val"])]


def test_more_epochs_and_another_setting_are_another_run(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split), tmp_path)
    with pytest.raises(MeidbenchError, match="holds another run") as refusal:
        train(toy_split, features, config_of(toy_split, "schedule.epochs=3", "schedule.lr=1"), tmp_path)
    assert "schedule.epochs: 2 in the run, 3" in str(refusal.value) and "schedule.lr: 0.002" in str(refusal.value)


def test_the_log_ends_with_the_results(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()][-2:]
    for line, subset in zip(lines, ("val", "test"), strict=True):
        assert line["event"] == "result"
        assert line[subset] == json.loads((tmp_path / f"result-{subset}.json").read_text())["mAP"]
        assert line["epoch"] == load_checkpoint(tmp_path / "best.pt")["epoch"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_refusal_of_the_first_process_ends_all(rank, monkeypatch):
    told = []
    monkeypatch.setattr(ProcessGroup, "broadcast", lambda self, value: told.append(value) or (value and rank == 0))

    def refuse():
        raise MeidbenchError("damaged rows")

    processes = ProcessGroup(rank, 2, torch.device("cpu"))
    with pytest.raises(MeidbenchError, match="damaged rows" if rank == 0 else "its message says why"):
        processes.ask_first(refuse, None)
    assert told == [rank == 1]


def test_another_run_in_the_same_folder_is_refused_and_its_differences_named(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split, "schedule.epochs=1"), tmp_path / "run")
    other = config_of(toy_split, "schedule.epochs=4", "seed=7", method="ldam")
    with pytest.raises(MeidbenchError) as refused:
        train(toy_split, features, other, tmp_path / "run")
    message = str(refused.value)
    for said in ("schedule.epochs: 1 in the run, 4 asked for", "seed: 2021", "loss.name: 'bce'", "with out=..."):
        assert said in message
    wider = simulate_features(toy_split, tmp_path / "wide.h5", frames=6, dim=20)
    with pytest.raises(MeidbenchError, match="16 wide in the run, 20 now"):
        train(toy_split, wider, config_of(toy_split, "schedule.epochs=1"), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear to someone")
    with (
        mock.patch("meidbench.baselines.training.check_together", side_effect=AssertionError("rows are read")),
        pytest.raises(MeidbenchError, match="not empty and holds no run"),
    ):
        train(toy_split, features, other, tmp_path / "other")


def test_a_damaged_last_checkpoint_is_refused_by_name(toy_split, features, tmp_path):
    config = config_of(toy_split, "schedule.epochs=1")
    train(toy_split, features, config, tmp_path / "run")
    (tmp_path / "run" / "result-test.json").unlink()
    last = tmp_path / "run" / "last.pt"
    content = load_checkpoint(last)
    save_checkpoint(last, {**content, "running_ap": {**content["running_ap"], "scores": None}})
    with pytest.raises(MeidbenchError, match=r"last\.pt does not fit"):
        train(toy_split, features, config, tmp_path / "run")
    last.write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(MeidbenchError, match=r"last\.pt is not a checkpoint"):
        train(toy_split, features, config, tmp_path / "run")


@pytest.fixture(scope="module")
def finished_run(toy_split_file, features, tmp_path_factory):
    """A finished run of two epochs, and its configuration."""
    config = config_of(load_split(toy_split_file), "schedule.milestones=[1]", method="framestack")
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(toy_split_file, features, config, folder)
    return folder, config


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy of this run, which a test may damage."""
    folder, config = finished_run
    return Path(shutil.copytree(folder, tmp_path / "run")), config


def flip_last_bit(path, member):
    """Flip the sign bit of the last number of a member of an archive."""
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith(member))
    raw = bytearray(path.read_bytes())
    header = entry.header_offset
    start = header + 30 + sum(int.from_bytes(raw[header + place : header + place + 2], "little") for place in (26, 28))
    raw[start + entry.file_size - 1] ^= 0x80
    path.write_bytes(raw)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "data/3"])
def test_a_changed_bit_in_a_checkpoint_is_refused_and_its_member_named(finished, toy_split_file, features, member):
    run, config = finished
    flip_last_bit(run / "best.pt", member)
    with pytest.raises(MeidbenchError, match=rf"best\.pt .* the checksum of \S+/{member}"):
        predict(run, run / "again.parquet", device="cpu")
    (run / "result-test.json").unlink()
    flip_last_bit(run / "last.pt", member)
    with pytest.raises(MeidbenchError, match=rf"last\.pt .* the checksum of \S+/{member}"):
        train(toy_split_file, features, config, run)


def changed(content, path, value):
    """Return a checkpoint in which the entry at a dotted path has another value, or is gone."""
    key, _, rest = path.partition(".")
    key = int(key) if key.isdigit() else key
    if isinstance(content, list):
        return [changed(entry, rest, value) if place == key else entry for place, entry in enumerate(content)]
    if rest:
        return {**content, key: changed(content[key], rest, value)}
    return {name: entry for name, entry in content.items() if name != key} | ({} if value is GONE else {key: value})


GONE = object()
HUGE = torch.zeros(()).expand(10**9, 1)


WRONG = (
    ("position", ["a", None, GONE, {}, [1]]),
    ("position.epoch", ["1", None, GONE, -1, 3, 10**30, True, 1.0, float("nan"), torch.ones(2)]),
    ("position.step", [GONE, 10**30, "5"]),
    ("position.penalty_sum", [GONE, None, float("nan"), float("inf"), "0.5", False]),
    ("position.best", ["0.5", float("nan"), 7.0]),
    ("position.best_epoch", [2.5, 9]),
    ("log_position", ["0", None, -1, True, GONE]),
    ("model", [None, GONE, {}, "weights"]),
    ("optimiser", ["adam", None, GONE, {}]),
    ("optimiser.state", [{}, None, [], {"a": 1}]),
    ("optimiser.state.0", [None, {}, "a"]),
    ("optimiser.state.0.step", ["3", None, torch.tensor(-1.0), torch.tensor(float("nan")), torch.ones(2)]),
    ("optimiser.state.0.exp_avg", [None, torch.zeros(1), HUGE, GONE]),
    ("optimiser.param_groups", [[], None, "a"]),
    ("optimiser.param_groups.0.params", ["a", [0], GONE]),
    ("optimiser.param_groups.0.lr", ["0.1", None, float("nan")]),
    ("scaler", [None, {"scale": "1"}, {"scale": 1.0}, GONE]),
    ("running_ap", [None, GONE, {}, {"scores": 1}]),
    ("running_ap.scores", ["a", torch.zeros(3), HUGE, torch.zeros(1, 2).to_sparse()]),
    ("running_ap.labels", [None, torch.full((0, 2), 7, dtype=torch.uint8)]),
    ("running_ap.class_ap", ["a", torch.full((2,), float("nan")), 0.5]),
)  # fmt: skip


def test_wrongly_typed_content_of_the_last_checkpoint_is_refused(finished, toy_split, toy_split_file, features):
    run, config = finished
    last = run / "last.pt"
    (run / "result-test.json").unlink()
    content, log = load_checkpoint(last), (run / "log.jsonl").read_bytes()
    bias = next(name for name in content["model"] if name.endswith("bias"))
    with join_processes("cpu") as processes:
        learner = Learner(config, make_model_inputs(config, toy_split, 16), processes)
        before = digest_weights(learner.module.state_dict())
        for path, values in (*WRONG, (bias, [None, "a", GONE, torch.zeros(1), torch.zeros(()).expand(9)])):
            for value in values:
                if path == bias:
                    damaged = {**content, "model": {**content["model"], bias: value}}
                    if value is GONE:
                        del damaged["model"][bias]
                else:
                    damaged = changed(content, path, value)
                save_checkpoint(last, damaged)
                with pytest.raises(MeidbenchError, match=r"last\.pt (does not fit|is not a checkpoint)") as refused:
                    learner.restore(last)
                assert "weights_only" not in str(refused.value) and len(str(refused.value)) < 2000, (path, value)
        assert digest_weights(learner.module.state_dict()) == before and learner.position == Position()
    with pytest.raises(MeidbenchError, match=r"last\.pt does not fit"):
        train(toy_split_file, features, config, run)
    assert (run / "log.jsonl").read_bytes() == log
    save_checkpoint(last, content)
    assert train(toy_split_file, features, config, run).mAP["test"].overall > 0


@pytest.mark.parametrize(("path", "values"), [
    ("epoch", ["2", None, GONE, -1, True]),
    ("model", [None, GONE, {}, {"a": "b"}]),
    ("config", [None, 3, "[" * 100_000, "{}", '{"schedule": {"epochs": 1e400}}']),
    ("format_version", ["1", None, GONE, 2, True]),
])  # fmt: skip
def test_wrongly_typed_content_of_the_best_checkpoint_is_refused(finished, path, values):
    run, _ = finished
    content = load_checkpoint(run / "best.pt")
    for value in values:
        with (run / "best.pt").open("wb") as file:
            torch.save(changed(content, path, value), file)
        with pytest.raises(MeidbenchError, match=r"best\.pt (does not fit|is (not )?a checkpoint)"):
            predict(run, run / "again.parquet", device="cpu")
    (run / "best.pt").write_bytes(b"")
    with pytest.raises(MeidbenchError, match=r"best\.pt is not a checkpoint of a run, or damaged: it is empty"):
        predict(run, run / "again.parquet", device="cpu")


@pytest.mark.parametrize("text", [
    "", "[]", "null", "{", "[" * 100_000, '{"format_version": 1}', '{"format_version": 1, "config": [], "inputs": {}}',
    '{"format_version": 1, "config": {"schedule": {"epochs": 1' + "0" * 30 + '}}, "inputs": {}}',
    '{"format_version": 1, "config": {"schedule": {"lr": 1e400}}, "inputs": {}}',
    '{"format_version": 1, "config": {"schedule": {"lr": NaN}}, "inputs": {}}',
    '{"format_version": 1, "config": ' + '{"first_stage": ' * 500 + "{}" + "}" * 501,
    '{"format_version": 1, "config": ' + '{"first_stage": ' * 3 + "{}" + "}" * 3 + ', "inputs": {}}',
    '{"format_version": 1, "config": {}, "inputs": {"dim": "16"}}', '{"format_version": "1"}',
    '{"format_version": 1, "config": {"seed": ' + "9" * 5000 + "}}",
], ids=range(15))  # fmt: skip
def test_a_damaged_configuration_of_a_run_is_refused(finished, text):
    run, _ = finished
    (run / "config.json").write_text(text)
    with pytest.raises(MeidbenchError, match=r"config\.json is (damaged|of version)") as refused:
        predict(run, run / "again.parquet")
    assert "--out" not in str(refused.value) and len(str(refused.value)) < 1000


def test_a_changed_value_in_the_configuration_does_not_change_predictions(finished):
    run, _ = finished
    text = (run / "config.json").read_text()
    assert text.count('"test": 6') == 1
    (run / "config.json").write_text(text.replace('"test": 6', '"test": 4'))
    with pytest.raises(MeidbenchError, match=r"(?s)best\.pt does not fit.*frames\.test: 6 in the run, 4 asked for"):
        predict(run, run / "again.parquet", device="cpu")


@pytest.mark.parametrize(
    "damage", ["bit", "missing", "", "{}", "[1]", "[" * 100_000, "number", "no last.pt"], ids=range(8)
)
def test_a_finished_run_with_damaged_scores_is_scored_again(finished, toy_split_file, features, damage):
    run, config = finished
    names = ("predictions-test.parquet", "result-test.json", "predictions-val.parquet", "result-val.json", "best.pt")
    before = {name: (run / name).read_bytes() for name in names}
    path, result = run / "predictions-test.parquet", run / "result-test.json"
    if damage in ("missing", "no last.pt"):
        path.unlink()
        if damage == "no last.pt":
            (run / "last.pt").unlink()
    elif damage == "bit":
        raw = bytearray(before[path.name])
        raw[len(raw) // 2] ^= 0x80
        path.write_bytes(raw)
    elif damage != "number":
        result.write_text(damage)
    else:
        content = json.loads(before[result.name])
        content["mAP"]["tail"] = 0.123
        result.write_text(json.dumps(content))
    said = []
    trained = train(toy_split_file, features, config, run, report=said.append)
    assert not trained.was_finished
    assert any(f"{run} was finished, and is scored again with best.pt" in line for line in said), said
    assert {name: (run / name).read_bytes() for name in names} == before
    assert train(toy_split_file, features, config, run).was_finished


# --- what a user may not expect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "milestones", "said"), [
    (3, "[30, 60]", "the milestones 30, 60 lie beyond the 3 epochs: the learning rate never falls"),
    (3, "[1, 60]", "the milestone 60 lies beyond the 3 epochs: the learning rate falls once only"),
    (3, "[3]", "the milestone 3 lies beyond the 3 epochs: the learning rate never falls"),
    (3, "[1, 2]", ""), (3, "[]", ""),
])  # fmt: skip
def test_milestones_beyond_the_last_epoch_are_told(toy_split, epochs, milestones, said):
    config = config_of(toy_split, f"schedule.epochs={epochs}", f"schedule.milestones={milestones}")
    told = config.schedule.describe_late_milestones()
    assert told.startswith(said) and bool(told) == bool(said)


def test_late_milestones_and_another_number_of_threads_are_told_once(toy_split, features, tmp_path, monkeypatch):
    config, said = config_of(toy_split, "schedule.epochs=1"), []
    train(toy_split, features, config, tmp_path / "run", report=said.append)
    assert sum("note: the milestones 30, 60 lie beyond the 1 epochs" in line for line in said) == 1
    threads = torch.get_num_threads()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == threads
    assert log_of(tmp_path / "run", "begun")[0]["threads"] == threads
    assert not any("thread" in line for line in said)
    (tmp_path / "run" / "result-test.json").unlink()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    said.clear()
    train(toy_split, features, config, tmp_path / "run", report=said.append)
    assert sum(f"began with {threads} thread(s) and has {threads + 1} now" in line for line in said) == 1


def test_numbers_of_numpy_are_those_of_python(toy_split, features, tmp_path):
    tables = {"schedule": {"epochs": np.int64(1), "lr": np.float32(0.25), "batch_size": np.uint8(16)},
              "frames": {"train": np.int32(6), "test": 6, "replacement": np.bool_(True)},
              "execution": {"device": "cpu"}}  # fmt: skip
    config = resolve("bce", toy_split, tables=tables)
    assert json.dumps(config.to_tables()["schedule"]["lr"]) == "0.25" and config.frames.replacement is True
    by_hand = dataclasses.replace(config, seed=np.int64(5), schedule=dataclasses.replace(config.schedule, epochs=True))
    with pytest.raises(MeidbenchError, match=r"schedule\.epochs must be a whole number, got True"):
        train(toy_split, features, by_hand, tmp_path / "run")
    train(toy_split, features, dataclasses.replace(config, seed=np.int64(5)), tmp_path / "run")
    assert RunFolder(tmp_path / "run").read()[0].seed == 5


# --- micro-batches and processes ------------------------------------------------------------------------------------


@given(
    draws=st.integers(8, 200),
    micro_batch_size=st.integers(2, 9),
    accumulate=st.integers(1, 3),
    processes=st.integers(1, 4),
    smallest=st.integers(1, 2),
)
def test_micro_batches_of_an_epoch_make_whole_steps(draws, micro_batch_size, accumulate, processes, smallest):
    batch_size = micro_batch_size * accumulate * processes
    plans = [EpochPlan(draws, batch_size, accumulate, processes, rank, smallest) for rank in range(processes)]
    shares = np.zeros((plans[0].steps, draws))
    for rank, plan in enumerate(plans):
        assert plan.micro_batches == plans[0].micro_batches
        for index in range(plan.micro_batches):
            micro_batch = plan.micro_batch(index)
            if micro_batch.weight:
                own = np.arange(rank, draws, processes)[index * micro_batch_size :][: micro_batch.videos]
                shares[index // accumulate, own] += micro_batch.weight / micro_batch.videos / processes
            assert micro_batch.ends_step == ((index + 1) % accumulate == 0 or index == plan.micro_batches - 1)
    for step, share in enumerate(shares):
        shown = np.arange(step * batch_size, min((step + 1) * batch_size, plans[0].used_draws))
        expected = np.zeros(draws)
        expected[shown] = 1 / len(shown)
        np.testing.assert_allclose(share, expected, atol=1e-12)
    assert draws - plans[0].used_draws < processes * smallest
    # The loader repeats videos so that all processes read the same number.
    assert -(-draws // processes) - (plans[0].micro_batches - 1) * micro_batch_size >= smallest


@pytest.mark.parametrize(("draws", "smallest", "expected"), [
    (8, 2, [4, 4]), (9, 2, [4, 4]), (10, 2, [4, 4, 2]), (9, 1, [4, 4, 1]), (10, 3, [4, 4]), (11, 3, [4, 4, 3]),
])  # fmt: skip
def test_a_last_micro_batch_that_is_too_small_is_left_out(draws, smallest, expected):
    plan = EpochPlan(draws, batch_size=4, smallest=smallest)
    assert [plan.micro_batch(index).videos for index in range(plan.micro_batches)] == expected
    assert plan.used_draws == sum(expected) and plan.steps == len(expected)
    with pytest.raises(MeidbenchError, match=rf"leave no micro-batch of at least {smallest + 4} video"):
        EpochPlan(draws, batch_size=4, smallest=smallest + 4)


@pytest.mark.parametrize("reduction", ["mean", "sum_classes_mean_batch"])
@pytest.mark.parametrize("method", ["ldam", "cbs"])
def test_accumulated_micro_batches_have_the_gradient_of_the_whole_batch(
    toy_split, features, tmp_path, method, reduction
):
    learnt = []
    for accumulate in (1, 4):
        settings = (*NO_DROPOUT, f"loss.reduction={reduction}", f"schedule.accumulate={accumulate}")
        # One step: after several, Adam enlarges small differences.
        config = config_of(
            toy_split, *settings, "sampler.samples_per_epoch=13", "schedule.epochs=1", "schedule.lr=1e-6", method=method
        )
        train(toy_split, features, config, tmp_path / f"{accumulate}")
        learnt.append(load_checkpoint(tmp_path / f"{accumulate}" / "last.pt")["optimiser"]["state"])
    for whole, parts in zip(learnt[0].values(), learnt[1].values(), strict=True):
        # Adam's first moment after a step is a tenth of the gradient.
        assert whole["exp_avg"].abs().max() > 0
        torch.testing.assert_close(parts["exp_avg"], whole["exp_avg"], rtol=1e-4, atol=1e-8)


def test_two_processes_give_the_result_of_one(toy_split, toy_split_file, features, tmp_path):
    # 113 draws do not divide by two, and the last batch holds a single one.
    settings = (*NO_DROPOUT, "sampler.samples_per_epoch=113", "schedule.clip_norm=0.05", "execution.checkpoint_steps=2")
    config = config_of(toy_split, *settings, method="eql")
    train(toy_split_file, features, config, tmp_path / "one")
    start_two(train_run, toy_split_file, features, config.to_tables(), tmp_path / "two", folder=tmp_path)
    assert_close(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"), 2e-4)
    one, two = (read_predictions(tmp_path / name / "predictions-test.parquet") for name in ("one", "two"))
    assert one.video_ids == two.video_ids == toy_split.video_ids("test")
    np.testing.assert_allclose(two.scores, one.scores, atol=1e-3)
    assert [line["processes"] for line in log_of(tmp_path / "two", "begun")] == [2]
    assert log_of(tmp_path / "two", "epoch")[-1]["val"]["overall"] == pytest.approx(
        log_of(tmp_path / "one", "epoch")[-1]["val"]["overall"], abs=1e-3
    )


def test_two_processes_go_on_with_a_run_like_one_that_began_with_all_epochs(
    toy_split, toy_split_file, features, tmp_path
):
    settings = ("schedule.epochs=3", "loss.drw_epoch=1")
    for name, epochs in (("run", ()), ("run", ("schedule.epochs=3",)), ("whole", settings)):
        tables = config_of(toy_split, *epochs, method="ldam").to_tables()
        start_two(train_run, toy_split_file, features, tables, tmp_path / name, folder=tmp_path)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_batch_that_cannot_be_divided_is_refused(toy_split, features, tmp_path):
    with pytest.raises(MeidbenchError, match="cannot be divided among 1 process"):
        train(toy_split, features, config_of(toy_split, "schedule.accumulate=3"), tmp_path / "run")
    alone = config_of(toy_split, "schedule.batch_size=1", aggregator="netvlad")
    with pytest.raises(MeidbenchError, match="at least 2 video"):
        train(toy_split, features, alone, tmp_path / "other")


# --- divergence -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_stops_the_run_and_names_the_step_and_the_videos(toy_split, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for subset in ("train", "val", "test"):
        for video_id in toy_split.video_ids(subset):
            np.save(folder / f"{video_id}.npy", generator.random((6, 16), dtype=np.float32))
    damaged = toy_split.video_ids("train")[17]
    np.save(folder / f"{damaged}.npy", np.full((6, 16), np.nan, dtype=np.float32))
    message = r"diverged at step \d+ \(epoch 0\): the loss is nan; .* 16 video"
    with pytest.raises(DivergenceError, match=message) as stopped:
        train(toy_split, folder, config_of(toy_split), tmp_path / "run")
    assert damaged in stopped.value.video_ids and len(stopped.value.video_ids) == 16
    assert log_of(tmp_path / "run", "diverged") == [
        {"event": "diverged", "step": stopped.value.step, "video_ids": list(stopped.value.video_ids)}
    ]
    # No checkpoint holds the diverged weights.
    assert not (tmp_path / "run" / "last.pt").exists() and not (tmp_path / "run" / "best.pt").exists()


def test_scores_that_are_infinite_are_refused_by_video(toy_split, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for subset in ("train", "val", "test"):
        for video_id in toy_split.video_ids(subset):
            np.save(folder / f"{video_id}.npy", np.ones((6, 16), dtype=np.float32))
    damaged = toy_split.video_ids("val")[3]
    np.save(folder / f"{damaged}.npy", np.full((6, 16), np.inf, dtype=np.float32))
    with pytest.raises(MeidbenchError, match=rf"1 video\(s\) of val are NaN or infinite: {damaged}"):
        train(toy_split, folder, config_of(toy_split), tmp_path / "run")


# --- selection, and the files of a run ------------------------------------------------------------------------------


def sklearn_map(split, subset, scores):
    labels = split.labels(subset)
    present = labels.any(axis=0)
    return np.mean([average_precision_score(labels[:, c], scores[:, c]) for c in np.flatnonzero(present)])


@pytest.mark.parametrize("subset", ["val", "test"])
def test_the_best_checkpoint_is_that_of_the_best_map(toy_split, features, tmp_path, subset):
    config = config_of(toy_split, f"selection.subset={subset}", "schedule.epochs=5", "schedule.lr=2e-2")
    trained = train(toy_split, features, config, tmp_path / "run")
    means = [line[subset]["overall"] for line in log_of(tmp_path / "run", "epoch")]
    assert len(means) == 5 and len(set(means)) > 1
    assert load_checkpoint(tmp_path / "run" / "best.pt")["epoch"] == 1 + int(np.argmax(means))
    predictions = read_predictions(tmp_path / "run" / f"predictions-{subset}.parquet")
    assert sklearn_map(toy_split, subset, predictions.scores) == pytest.approx(max(means), abs=1e-12)
    assert trained.mAP[subset].overall == pytest.approx(max(means), abs=1e-12)
    assert predictions.metadata["run"]["select_on"] == subset
    for warnings in (run_warnings(predictions.metadata), trained.warnings):
        assert any("chosen on the test subset" in text for text in warnings) == (subset == "test")


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_a_change_of_one_video_changes_the_digest_of_the_features(toy_split, features, tmp_path, subset):
    changed = toy_split.video_ids(subset)[-2]
    stored = open_features(features)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        for each in ("train", "val", "test"):
            for video_id in toy_split.video_ids(each):
                rows = stored.read(video_id)
                np.save(tmp_path / name / f"{video_id}.npy", rows + (name == "after" and video_id == changed))
        pack(tmp_path / name, tmp_path / f"{name}.h5")
    one, other = (digest_features(toy_split, open_features(tmp_path / f"{name}.h5")) for name in ("before", "after"))
    assert one != other


def test_videos_of_other_splits_do_not_change_the_recorded_width(toy_split, tmp_path):
    for video_id in ("!other", *toy_split.table.column("video_id").to_pylist()):
        np.save(tmp_path / f"{video_id}.npy", np.ones((2, 7 if video_id == "!other" else 4), np.float32))
    assert open_features(tmp_path).dim == 7  # the first video by id
    assert Inputs.from_sources(toy_split, open_features(tmp_path)).dim == 4


def test_a_split_without_the_selecting_subset_is_refused(toy_split, features, tmp_path):
    kept = toy_split.table.filter(pc.not_equal(toy_split.table.column("subset"), "val"))
    with pytest.raises(MeidbenchError, match="val; it has some in train, test\nval chooses .* --select-on test"):
        train(Split(kept, toy_split.metadata), features, config_of(toy_split), tmp_path / "run")


@pytest.mark.parametrize(("aggregator", "options"), [("nonlinear", {}), ("netvlad", {"clusters": 4, "hidden": 8})])
def test_predictions_are_the_logits_in_evaluation_mode(toy_split, features, tmp_path, aggregator, options):
    # bf16 in training must not show in the scores.
    settings = [f"aggregator.{key}={value}" for key, value in options.items()]
    config = config_of(toy_split, "schedule.precision=bf16", *settings, aggregator=aggregator)
    train(toy_split, features, config, tmp_path / "run")
    model = AGGREGATORS[aggregator](16, toy_split.num_classes, **options)
    weights = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["model"]
    model.load_state_dict({name.removeprefix("aggregator."): tensor for name, tensor in weights.items()})
    model.eval()
    predictions = read_predictions(tmp_path / "run" / "predictions-test.parquet")
    assert predictions.scores.dtype == np.float32 and predictions.scores.min() < 0
    data = FeatureDataset(toy_split, "test", features=open_features(features), frames=6)
    with torch.no_grad():
        for row in range(0, len(data), 7):
            said = model(data[row]["features"][None])[0].numpy()
            np.testing.assert_allclose(predictions.scores[row], said, atol=1e-5)


def test_a_run_records_what_it_was_made_from(toy_split, toy_split_file, features, tmp_path):
    config = config_of(toy_split, method="eql")
    train(toy_split_file, features, config, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["inputs"]["split_digest"] == toy_split.digest == load_split(toy_split_file).digest
    assert len(content["inputs"]["recipe_digest"]) == 64 and content["inputs"]["dim"] == 16
    assert content["versions"]["torch"] == torch.__version__
    assert content["config"]["loss"] == {"name": "eql", "gamma": 0.9, "tail_up_to": toy_split.metadata.tail_up_to}
    again, _ = RunFolder(tmp_path / "run").read()
    assert again == config
    assert {path.name for path in (tmp_path / "run").iterdir() if path.name != "tensorboard"} == {
        *("config.json", "log.jsonl", "last.pt", "best.pt"),
        *(f"{what}-{subset}.{ending}" for subset in ("val", "test")
          for what, ending in (("predictions", "parquet"), ("result", "json"))),
    }  # fmt: skip


def test_a_run_can_be_repeated_from_its_configuration(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split, method="framestack"), tmp_path / "first")
    config, _ = RunFolder(tmp_path / "first").read()
    train(toy_split, features, config, tmp_path / "again")
    for name in ("config.json", "predictions-test.parquet", "result-val.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(toy_split, features, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra, and not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(toy_split, features, config_of(toy_split), tmp_path / "run")
    told = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("epoch/val/overall")
    expected = [line["val"]["overall"] for line in log_of(tmp_path / "run", "epoch")]
    assert [event.value for event in told] == pytest.approx(expected, abs=1e-6)


def test_without_tensorboard_the_user_is_told_once(toy_split, features, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = []
    train(toy_split, features, config_of(toy_split), tmp_path / "run", report=lines.append)
    assert [line for line in lines if "TensorBoard" in line] == [
        "note: TensorBoard is not installed: the log is log.jsonl alone (pip install tensorboard)"
    ]
    assert [line.split(":")[0] for line in lines if line.startswith("bce")] == ["bce", "bce"]


def test_another_process_in_the_folder_is_refused(toy_split, features, tmp_path):
    with RunFolder(tmp_path / "run").lock(), pytest.raises(MeidbenchError, match="another process trains in"):
        train(toy_split, features, config_of(toy_split), tmp_path / "run")


def test_the_schedule_is_followed(toy_split, features, tmp_path):
    settings = ("schedule.epochs=4", "schedule.milestones=[1, 3]", "schedule.lr=0.008", "execution.log_every=4")
    train(toy_split, features, config_of(toy_split, *settings), tmp_path / "run")
    assert [line["lr"] for line in log_of(tmp_path / "run", "epoch")] == pytest.approx([8e-3, 8e-4, 8e-4, 8e-5])
    # 114 videos are eight batches of 16.
    assert [line["step"] for line in log_of(tmp_path / "run", "step")] == [4, 8, 12, 16, 20, 24, 28, 32]
    reduced = load_checkpoint(tmp_path / "run" / "last.pt")["optimiser"]["param_groups"][0]
    assert reduced["lr"] == pytest.approx(8e-5) and reduced["betas"] == (0.9, 0.999)


def test_the_seed_decides_and_nothing_else(toy_split, features, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(toy_split, features, config_of(toy_split, f"seed={seed}", method="mixup"), tmp_path / name)
    assert torch.equal(torch.rand(3), expected), "the caller's generator must be left alone"
    a, b, c = (weights_of(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


def test_fp16_scales_its_gradients_and_its_state_is_kept(toy_split, features, tmp_path):
    train(toy_split, features, config_of(toy_split, "schedule.precision=fp16"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pt")["scaler"]["scale"] > 1


def test_the_label_mask_changes_the_weights_and_can_be_left_out(toy_split, features, tmp_path):
    for mask in ("true", "false"):
        train(toy_split, features, config_of(toy_split, f"mask_other_labels={mask}", method="cbs"), tmp_path / mask)
    masked, plain = weights_of(tmp_path / "true"), weights_of(tmp_path / "false")
    assert not torch.equal(masked["aggregator.classifier.weight"], plain["aggregator.classifier.weight"])


def test_features_that_are_missing_are_refused_before_anything_is_trained(toy_split, tmp_path):
    half = simulate_features(toy_split, tmp_path / "train.h5", frames=6, dim=16, subset="train")
    missing = len(toy_split.video_ids("val")) + len(toy_split.video_ids("test"))
    with pytest.raises(FeatureError, match=f"{missing} missing"):
        train(toy_split, half, config_of(toy_split), tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("content", [b"", b"abc\n", b"\x80\x02.", bytes(range(256)) * 4])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(MeidbenchError, match="is not a checkpoint of a run, or damaged"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_checkpoint_without_checksums_is_refused(tmp_path):
    torch.save({"format_version": 1}, tmp_path / "last.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(MeidbenchError, match="in a form that no run writes"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("setting", ["execution.device=meta", "schedule.lr=1e300", "method=ldam"])
def test_settings_that_cannot_work_are_refused(toy_split, features, tmp_path, setting):
    with pytest.raises(MeidbenchError):
        train(toy_split, features, config_of(toy_split, setting), tmp_path / "run")


def test_the_parts_of_a_run_do_what_they_say(tmp_path):
    assert derive_seed(0, NOISE, 7) == derive_seed(0, NOISE, 7) != derive_seed(0, MIXING, 7)
    monitor = LossMonitor()
    monitor.add(7, 0, ["ATOYW"], torch.tensor(0.25), torch.tensor(2.0), torch.tensor(0.0))
    monitor.add(8, 0, ["B1Z"], torch.tensor(0.5), torch.tensor(1.0), torch.tensor(0.0))
    assert monitor.collect() == StepTotals(steps=2, loss_sum=0.75, penalty_sum=0.0, largest_norm=2.0)
    log = RunLog(tmp_path, report=lambda line: None)
    log.write("step", 20, loss=0.25, seconds=float("nan"))
    log.close()
    line = '{"event": "step", "step": 20, "loss": 0.25, "seconds": null}\n'
    assert (tmp_path / "log.jsonl").read_text() == line
    save_checkpoint(tmp_path / "last.pt", {"epoch": 3})
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 3
    assert digest_weights({"bias": torch.zeros(2)}) == digest_weights({"bias": torch.zeros(2)})


# --- features are read before they are believed ---------------------------------------------------------------------


def copied(features, tmp_path):
    return Path(shutil.copy(features, tmp_path / "copy.h5"))


def inputs_of(folder):
    return json.loads((folder / "config.json").read_text())["inputs"]


def test_a_run_records_which_rows_were_checked(toy_split, features, tmp_path):
    told = []
    for kind, check in (("full", "auto"), ("none", "none")):
        train(toy_split, features, config_of(toy_split), tmp_path / kind, check=check, report=told.append)
        assert inputs_of(tmp_path / kind)["rows_check"] == kind
        assert len(inputs_of(tmp_path / kind)["rows_digest"]) == (64 if kind == "full" else 0)
        assert [line["rows_check"] for line in log_of(tmp_path / kind, "begun")] == [kind]
    total = toy_split.table.num_rows
    assert f"features: the rows of all {total} videos are checked: their checksums agree" in told
    assert f"features: the rows of {total} videos are not checked (check: none)" in told
    told.clear()
    train(toy_split, features, config_of(toy_split), tmp_path / "full", report=told.append)
    assert told == [f"{tmp_path / 'full'} is finished"], "a finished run reads no rows"
    with pytest.raises(FeatureError, match="unknown check 'some'"):
        train(toy_split, features, config_of(toy_split), tmp_path / "x", check="some")


def test_rows_that_were_moved_between_videos_are_neither_trained_on_nor_scored(toy_split, features, tmp_path):
    path, out = copied(features, tmp_path), tmp_path / "p.parquet"
    train(toy_split, path, config_of(toy_split), tmp_path / "run")
    with h5py.File(path, "r+") as file:
        order = np.random.default_rng(0).permutation(len(file["features"]))
        file["features"][:] = file["features"][:][order]
    with pytest.raises(FeatureError, match="have other rows than were written"):
        train(toy_split, path, config_of(toy_split), tmp_path / "moved")
    assert not (tmp_path / "moved").exists()
    with pytest.raises(FeatureError, match="or rows were moved between videos"):
        predict(tmp_path / "run", out, split=toy_split, device="cpu")
    assert not out.exists()
    predict(tmp_path / "run", out, split=toy_split, device="cpu", check="none")
    assert read_predictions(out).metadata["run"]["rows_check"] == "none"


def test_a_run_of_an_earlier_version_is_resumed_and_other_rows_are_refused(toy_split, features, tmp_path):
    folder, stored = tmp_path / "npy", open_features(features)
    folder.mkdir()
    for video_id in toy_split.table.column("video_id").to_pylist():
        np.save(folder / f"{video_id}.npy", stored.read(video_id))
    run = tmp_path / "run"
    train(toy_split, folder, config_of(toy_split), run)
    before = (run / "result-test.json").read_bytes()
    (run / "result-test.json").unlink()
    # Of features without checksums, the older digest covers 16 videos per subset: this one is none of them.
    changed = folder / f"{toy_split.video_ids('train')[1]}.npy"
    original = changed.read_bytes()
    np.save(changed, np.load(changed) + 1)
    with pytest.raises(MeidbenchError, match="the features have other values"):
        train(toy_split, folder, config_of(toy_split), run)
    changed.write_bytes(original)
    content = json.loads((run / "config.json").read_text())
    del content["inputs"]["rows_check"], content["inputs"]["rows_digest"]
    (run / "config.json").write_text(json.dumps(content))
    train(toy_split, folder, config_of(toy_split), run)
    assert (run / "result-test.json").read_bytes() == before


def test_a_split_with_other_groups_is_another_one_for_a_run(toy_split, features, tmp_path):
    """The labels are the same, but distillation and scores depend on the groups."""
    run, other = (
        tmp_path / "run",
        Split(toy_split.table, dataclasses.replace(toy_split.metadata, head_above=60, content_digest="")),
    )
    train(toy_split, features, config_of(toy_split), run)
    assert inputs_of(run)["content_digest"] == toy_split.content_digest
    with pytest.raises(MeidbenchError, match="the split has other class names or groups"):
        train(other, features, config_of(toy_split), run)
    with pytest.raises(MeidbenchError, match="a split with other class names or groups"):
        predict(run, tmp_path / "p.parquet", split=other, device="cpu")
    content = json.loads((run / "config.json").read_text())
    del content["inputs"]["content_digest"]  # as an earlier version wrote it
    (run / "config.json").write_text(json.dumps(content))
    predict(run, tmp_path / "p.parquet", split=toy_split, device="cpu")


def test_rows_that_are_repeated_are_told_once(toy_split, features, tmp_path):
    told = []
    config = config_of(toy_split, "frames.train=9", "frames.test=6")
    train(toy_split, features, config, tmp_path / "run", report=told.append)
    number = len(toy_split.video_ids("train"))
    assert [line for line in told if "fewer rows" in line] == [
        f"warning: {number} of {number} videos of train have fewer rows than frames.train=9 (the shortest has 6): rows "
        "are repeated; --set frames.train=N takes fewer"
    ]
