"""The commands ``train`` and ``predict``: the files that they write, the texts that they print, and refusals."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from processes import run_command, start_two

from meidbench.baselines import METHODS
from meidbench.checks import parse_toml
from meidbench.cli import main
from meidbench.features.simulation import simulate_features

RECIPES = Path(__file__).parents[1] / "baselines" / "recipes"
TINY = ("--set", "frames.train=6", "--set", "frames.test=6", "--set", "schedule.batch_size=16", "--device", "cpu")


@pytest.fixture(scope="session")
def features(toy_split, tmp_path_factory):
    return simulate_features(toy_split, tmp_path_factory.mktemp("features") / "toy.h5", frames=6, dim=16)


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def trained(invoke, toy_split_file, features, tmp_path):
    arguments = ("train", "--split", toy_split_file, "--features", features, "--out", tmp_path / "run", *TINY)
    outcome = invoke(*arguments, "--method", "eql", "--epochs", 2, "--set", "schedule.lr=2e-3")
    assert outcome.exit_code == 0, outcome.output
    return outcome, tmp_path / "run", arguments


def test_train_prints_its_scores_and_writes_the_results_of_evaluate(trained, invoke, toy_split_file, tmp_path):
    outcome, run, _ = trained
    assert [line.split()[0] for line in outcome.stdout.splitlines()[2:4]] == ["val", "test"]
    assert outcome.stdout.splitlines()[-1] == str(run)
    assert "epoch 2 of 2: loss" in outcome.stderr and "epoch" not in outcome.stdout
    for subset in ("val", "test"):
        predictions, again = run / f"predictions-{subset}.parquet", tmp_path / "again.json"
        scored = invoke("evaluate", predictions, "--split", toy_split_file, "--subset", subset, "--json", again)
        assert scored.exit_code == 0, scored.output
        assert again.read_bytes() == (run / f"result-{subset}.json").read_bytes()


def test_the_same_command_again_says_that_it_is_finished_and_another_is_refused(trained, invoke):
    _, run, arguments = trained
    again = invoke(*arguments, "--method", "eql", "--epochs", 2, "--set", "schedule.lr=2e-3", "--json")
    assert again.exit_code == 0 and f"{run} is finished" in again.stderr
    content = json.loads(again.stdout)
    assert content["run"] == str(run)
    assert content["mAP"]["test"] == json.loads((run / "result-test.json").read_text())["mAP"]
    other = invoke(*arguments, "--method", "eql", "--epochs", 3, "--seed", 1)
    assert other.exit_code == 1 and other.stdout == ""
    assert "schedule.epochs: 2 in the run, 3 asked for" in other.stderr and "seed: 2021 in the run" in other.stderr


def test_methods_are_those_of_the_recipes(invoke):
    text, content = invoke("methods").stdout, json.loads(invoke("methods", "--json").stdout)
    assert max(map(len, text.splitlines())) <= 80
    assert [entry["method"] for entry in content] == list(METHODS)
    rows = iter(text.splitlines()[2:])
    for entry in content:
        name, recipe = entry["method"], METHODS[entry["method"]]
        file = parse_toml((RECIPES / f"{entry['form_of'] or name}.toml").read_text())
        assert entry["title"] == recipe.title and entry["paper"] == file["paper"]
        assert entry["benchmarks"] == list(dict.fromkeys(row["dataset"] for row in file["published"]))
        published = [tuple(row["mAP"].values()) for row in entry["published"]]
        assert published == [dataclasses.astuple(row.mAP) for row in recipe.published]
        if not entry["form_of"]:
            forms = [form.removeprefix(name) for form in METHODS if form.startswith(f"{name}-")]
            assert next(rows).split(maxsplit=1) == [name, f"{file['title']} ({file['paper']})"]
            assert next(rows).split() == [*forms, *(", ".join(entry["benchmarks"]) or "no published numbers").split()]


def test_methods_need_no_torch():
    script = "import sys; from meidbench.cli import main; main(['methods'], standalone_mode=False); print(*sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pyarrow"} & set(outcome.stdout.split())


def test_help_of_train_names_the_list_of_methods(invoke):
    assert "'meidbench methods'" in invoke("train", "--help").stdout


@pytest.mark.parametrize("given", [(), ("--features", "nope.h5")])
@pytest.mark.parametrize(("split", "commands"), [
    ("videolt", ["extract-features VIDEOS --split videolt --frames 150 --out videolt.h5",
                 "pack-features FOLDER --split videolt --out videolt.h5"]),
    ("CharadesLT", ["extract-features VIDEOS --split charadeslt --out charadeslt.h5"]),
])  # fmt: skip
def test_missing_features_name_the_commands_that_make_them(invoke, split, commands, given):
    outcome = invoke("train", *given, "--split", split, "--method", "bce")
    assert outcome.exit_code == 2
    assert ("'nope.h5' does not exist" if given else "Missing option '--features'") in outcome.stderr
    told = " ".join(outcome.stderr.replace("\\\n", " ").split())
    for command in commands:
        assert f"meidbench {command}" in told
        words = command.split()
        arguments = [*words[1:], *(("--weights", "random") if words[0] == "extract-features" else ())]
        with pytest.raises(click.BadParameter, match=f"'{words[1]}' does not exist"):  # all else is valid
            main.commands[words[0]].make_context(words[0], arguments)


def test_a_run_whose_features_are_gone_asks_for_them(trained, invoke, tmp_path):
    _, run, _ = trained
    config = run / "config.json"
    content = json.loads(config.read_text())
    content["inputs"]["features_path"] = str(tmp_path / "gone.h5")
    config.write_text(json.dumps(content))
    outcome = invoke("predict", run, "--out", tmp_path / "p.parquet")
    assert outcome.exit_code == 1
    gone = f"the features of the run are not at {tmp_path / 'gone.h5'} any more"
    assert f"{gone}; name them with --features" in outcome.stderr


def test_a_path_that_is_no_run_names_the_runs_there(trained, invoke, tmp_path):
    _, run, _ = trained
    outcome = invoke("predict", run / "best.pt", "--out", tmp_path / "p.parquet")
    assert outcome.exit_code == 2 and f"is a file; name the folder of the run, such as {run}" in outcome.stderr
    (tmp_path / "other.txt").touch()
    outcome = invoke("predict", tmp_path / "other.txt", "--out", tmp_path / "p.parquet")
    assert outcome.exit_code == 2 and "name the folder of the run\n" in outcome.stderr
    outcome = invoke("predict", tmp_path, "--out", tmp_path / "p.parquet")
    assert outcome.exit_code == 1 and f"its folders with runs: {run}" in outcome.stderr


@pytest.mark.parametrize(("option", "setting"), [
    ("--lr", "schedule.lr"),
    ("--batch-size", "schedule.batch_size"),
    ("--learning_rate=3", "schedule.lr"),
    ("--milestones", "schedule.milestones"),
])  # fmt: skip
@pytest.mark.parametrize("command", [["train"], ["reproduce", "table2"]])
def test_an_option_that_is_a_setting_is_named_as_one(invoke, command, option, setting):
    outcome = invoke(*command, option, "3")
    name = option.partition("=")[0]
    assert outcome.exit_code == 2
    assert f"there is no option {name}; it is a setting: --set {setting}=VALUE" in outcome.stderr


def test_more_epochs_go_on_with_a_run(trained, invoke, toy_split_file):
    _, run, arguments = trained
    same = (*arguments, "--method", "eql", "--set", "schedule.lr=2e-3")
    longer = invoke(*same, "--set", "schedule.epochs=3")
    assert longer.exit_code == 0, longer.output
    assert f"{run} goes on: 2 epochs become 3" in longer.stderr and "eql: epoch 3 of 3" in longer.stderr
    assert "epoch 2 of" not in longer.stderr and longer.stdout.splitlines()[-1] == str(run)
    assert "is finished" in invoke(*same, "--epochs", 3).stderr
    fewer = invoke(*same, "--epochs", 2)
    assert fewer.exit_code == 1 and "is a run of 3 epochs, 2 are asked for" in fewer.stderr


def test_without_tensorboard_two_stages_are_told_once(invoke, toy_split_file, features, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = invoke("train", "--split", toy_split_file, "--features", features, "--out", tmp_path, *TINY,
                     "--method", "meid", "--epochs", 1)  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr.count("TensorBoard is not installed") == 1
    assert "meid_one: epoch 1 of 1" in outcome.stderr and "meid: epoch 1 of 1" in outcome.stderr


def test_predict_writes_the_same_file_as_the_run(trained, invoke, tmp_path, toy_split_file):
    _, run, _ = trained
    outcome = invoke("predict", run, "--subset", "test", "--out", tmp_path / "test.parquet", "--device", "cpu")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == f"wrote {tmp_path / 'test.parquet'}\n"
    assert (tmp_path / "test.parquet").read_bytes() == (run / "predictions-test.parquet").read_bytes()
    train_subset = invoke("predict", run, "--subset", "train", "--out", tmp_path / "train.parquet", "--device", "cpu")
    assert train_subset.exit_code == 0, train_subset.output
    scored = invoke("evaluate", tmp_path / "train.parquet", "--split", toy_split_file, "--subset", "train")
    assert scored.exit_code == 0, scored.output


def test_predict_refuses_features_and_runs_that_do_not_fit(trained, invoke, toy_split, tmp_path, monkeypatch):
    _, run, _ = trained
    wide = simulate_features(toy_split, tmp_path / "wide.h5", frames=6, dim=20)
    outcome = invoke("predict", run, "--features", wide, "--out", tmp_path / "p.parquet")
    assert outcome.exit_code == 1 and "features of width 16" in outcome.stderr and "has 20" in outcome.stderr
    other_seed = simulate_features(toy_split, tmp_path / "other.h5", frames=6, dim=16, seed=9)
    outcome = invoke("predict", run, "--features", other_seed, "--out", tmp_path / "p.parquet")
    assert outcome.exit_code == 0 and "another recipe" in outcome.stderr
    outcome = invoke("predict", tmp_path, "--out", tmp_path / "q.parquet")
    assert outcome.exit_code == 1 and "holds no run" in outcome.stderr and not (tmp_path / "q.parquet").exists()
    (run / "best.pt").unlink()
    with monkeypatch.context() as patched:  # the rows of a large file take minutes
        patched.setattr(
            "meidbench.baselines.inference.check_rows", lambda *_, **__: pytest.fail("rows were read first")
        )
        outcome = invoke("predict", run, "--out", tmp_path / "q.parquet")
    assert outcome.exit_code == 1 and "there is no checkpoint" in outcome.stderr


def test_a_selection_on_test_gives_a_warning_at_every_scoring(invoke, toy_split_file, features, tmp_path):
    outcome = invoke("train", "--split", toy_split_file, "--features", features, "--out", tmp_path / "run", *TINY,
                     "--method", "bce", "--epochs", 1, "--select-on", "test")  # fmt: skip
    assert outcome.exit_code == 0 and "warning: the checkpoint was chosen on the test subset" in outcome.stderr
    scored = invoke("evaluate", tmp_path / "run" / "predictions-test.parquet", "--split", toy_split_file)
    assert "warning: the checkpoint was chosen on the test subset" in scored.stderr


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--method", "adlm"], 2, "unknown method 'adlm'; known: bce"),
    (["--method", "LDAM"], 2, "unknown method 'LDAM' (did you mean ldam?); known: bce"),
    (["--method", "bce", "--set", "schedule.epoch=3"], 2, "unknown key schedule.epoch (did you mean schedule.epochs?)"),
    (["--method", "bce", "--set", "lr=1"], 2, "unknown key lr (did you mean schedule.lr?)"),
    (["--method", "bce", "--aggregator", "vlad"], 2, "aggregator.name 'vlad' (did you mean netvlad or nextvlad?)"),
    (["--method", "bce", "--epochs", "0"], 2, "--epochs"),
    (["--method", "bce", "--precision", "fp8"], 2, "--precision"),
    (["--method", "bce", "--device", "abacus"], 2, "unknown device 'abacus'"),
    (["--method", "bce", "--epochs", "3", "--set", "schedule.epochs=4"], 2, "schedule.epochs is set twice"),
    ([], 2, "--method"),
])  # fmt: skip
def test_invalid_calls_are_refused(invoke, toy_split_file, features, tmp_path, arguments, code, said):
    outcome = invoke("train", "--split", toy_split_file, "--features", features, "--out", tmp_path / "run", *arguments)
    assert outcome.exit_code == code and said in outcome.stderr and outcome.stdout == ""
    assert not (tmp_path / "run" / "config.json").exists()


def test_features_of_other_videos_are_refused_by_name(invoke, toy_split, toy_split_file, tmp_path):
    part = simulate_features(toy_split, tmp_path / "part.h5", frames=6, dim=16, subset="train")
    outcome = invoke("train", "--split", toy_split_file, "--features", part, "--method", "bce", *TINY,
                     "--out", tmp_path / "run")  # fmt: skip
    missing = len(toy_split.video_ids("val")) + len(toy_split.video_ids("test"))  # of all subsets at once
    assert outcome.exit_code == 1 and f"{missing} missing" in outcome.stderr


def test_the_run_has_a_default_name(invoke, toy_split_file, features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = invoke("train", "--split", toy_split_file, "--features", features, "--method", "bce", *TINY,
                     "--epochs", 1, "--seed", 5, "--aggregator", "early_mean")  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "runs" / "toylt-bce-early_mean-5" / "result-test.json").is_file()


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from meidbench.cli.training import train; from meidbench.cli.training import predict; "
        "print({'torch', 'numpy', 'meidbench.baselines'} & set(sys.modules))"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout == "set()\n"


def test_under_torchrun_one_process_prints(toy_split_file, features, tmp_path):
    arguments = ["train", "--split", toy_split_file, "--features", features, "--out", tmp_path / "run", *TINY,
                 "--method", "framestack", "--epochs", 2, "--aggregator", "netvlad", "--set", "aggregator.clusters=4",
                 "--set", "aggregator.hidden=8"]  # fmt: skip
    start_two(run_command, *map(str, arguments), folder=tmp_path)
    said = [[(tmp_path / f"{rank}.{stream}").read_text() for stream in ("stdout", "stderr")] for rank in (0, 1)]
    assert "test" in said[0][0] and "epoch 2 of 2" in said[0][1]
    assert said[1][0] == "" and "epoch" not in said[1][1]
