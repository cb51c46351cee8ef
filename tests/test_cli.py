"""The commands as a user sees them: output, exit codes, messages."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from material import REAL, TOY, TOY_MANIFEST, real_data

import meidbench as mb
from meidbench.baselines.reproduction.materials import renamed
from meidbench.cli import main
from meidbench.cli.parameters import name_options
from meidbench.splits.manifests import split_path
from meidbench.splits.split import load_split, read_split, write_split


def test_help_of_every_command_has_an_example(run):
    assert run("--help").exit_code == 0
    for name in main.commands:
        text = run(name, "--help").stdout
        assert re.search(rf"Examples?:\n +meidbench {name}\b", text), name


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)])
def test_help_keeps_its_lines_apart_and_within_80_columns(run, command):
    text = run(*command, "--help").stdout
    assert "\\b" not in text and "\b" not in text
    assert re.search(r"Examples?:\n    meidbench \w+", text)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("word", "command"), [
    ("eval", "evaluate"),
    ("extract", "extract-features"),
    ("statistics", "stats"),
    ("trian", "train"),
    ("score", "evaluate"),
    ("infer", "predict"),
    ("split", "build-splits or import-split"),
    ("Methods", "methods"),
])  # fmt: skip
def test_an_unknown_command_suggests_a_known_one(run, word, command):
    outcome = run(word)
    assert outcome.exit_code == 2
    assert f"there is no command {word!r} (did you mean {command}?)" in outcome.stderr


def test_an_unknown_command_that_is_like_no_other_suggests_none(run):
    assert "there is no command 'xyzzy'\n" in run("xyzzy").stderr


@pytest.mark.parametrize("spelling", ["CharadesLT", "Charades-LT", "CHARADES_LT"])
def test_a_benchmark_is_taken_in_the_spelling_of_the_paper(run, toy_split, tmp_path, spelling):
    assert run("download", spelling).stderr == run("download", "charadeslt").stderr
    build = ("build-splits", "--annotations", tmp_path / "nothing")
    assert run(*build, spelling).stderr == run(*build, "charadeslt").stderr
    for arguments in (["stats"], ["audit"], ["evaluate", TOY / "predictions.npz", "--split"]):
        outcome = run(*arguments, spelling)
        assert outcome.exit_code == 1 and "the split charadeslt is not built yet" in outcome.stderr
    write_split(renamed(toy_split, "charadeslt", "subset"), split_path("charadeslt"))
    assert run("stats", spelling).stdout == run("stats", "charadeslt").stdout
    assert load_split(spelling).digest == toy_split.digest
    own = write_split(toy_split, tmp_path / spelling)  # a file of this name goes before the benchmark
    assert run("stats", own).stdout == run("stats", tmp_path / spelling).stdout


@pytest.mark.parametrize("arguments", [
    ["download", "charades"],
    ["build-splits", "charades"],
    ["stats", "charades"],
    ["evaluate", TOY / "predictions.npz", "--split", "charades"],
])  # fmt: skip
def test_an_unknown_benchmark_suggests_known_ones(run, arguments):
    outcome = run(*arguments)
    assert outcome.exit_code == 2 and "(did you mean charadeslt or charadesegolt?)" in outcome.stderr


def test_messages_name_paths_as_they_were_given(run, toy_split_file, tmp_path, monkeypatch):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "other.npy", np.zeros((3, 4), np.float32))
    monkeypatch.chdir(tmp_path)
    for folder in ("npy", tmp_path / "npy"):
        outcome = run("train", "--split", toy_split_file, "--features", folder, "--method", "bce")
        assert outcome.exit_code == 1 and f"cannot be used from {folder}:" in outcome.stderr


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(outcome.stdout.split())


def test_heavy_modules_are_imported_only_where_they_are_needed():
    heavy = {"torch", "pandas", "numpy", "pyarrow", "h5py", "sklearn", "requests", "matplotlib", "tqdm"}
    assert not heavy & modules_after("import meidbench")
    assert not heavy & modules_after("import meidbench.cli")
    evaluating = modules_after("import meidbench as mb; mb.evaluate, mb.load_split, mb.read_predictions")
    assert not {"torch", "sklearn", "matplotlib", "requests", "h5py"} & evaluating


def test_build_splits_writes_all_forms(run, tmp_path, toy_split):
    outcome = run(
        "build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path,
        "--format", "parquet", "--format", "csv", "--format", "lst",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    names = ["toylt.parquet", "toylt.csv", "ToyLT_train.txt", "ToyLT_val.txt", "ToyLT_test.txt"]
    assert [line for line in outcome.stdout.splitlines() if line.startswith("wrote ")] == [
        f"wrote {tmp_path / name}" for name in names
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert read_split(tmp_path / "toylt.parquet").digest == toy_split.digest


def test_build_splits_prints_a_line_that_a_script_reads(run, tmp_path, toy_split):
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path, "--json")
    content = json.loads(outcome.stdout)
    assert content["digest"] == toy_split.digest
    assert content["files"] == [str(tmp_path / "toylt.parquet")]
    assert content["statistics"]["train"] == len(toy_split.video_ids("train"))


@pytest.mark.parametrize("name", list(REAL))
def test_build_splits_prints_table_1_beside_the_papers(run, name):
    outcome = run("build-splits", name, "--annotations", real_data(REAL[name]))
    assert outcome.exit_code == 0, outcome.stderr
    cells = {line[:29].strip(): line[29:].split("  ") for line in outcome.stdout.splitlines() if "  " in line}
    for row in ("classes", "head / medium / tail", "imbalance ratio"):
        built, paper = [cell.strip() for cell in cells[row] if cell.strip()]
        assert built == paper
    assert split_path(name).is_file()
    assert run("stats", name).exit_code == 0


def test_a_refused_build_writes_nothing(run, tmp_path, toy_folder):
    (toy_folder / "Toy_v1_train.csv").write_text("id\n")
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", toy_folder, "--out", tmp_path / "out")
    assert outcome.exit_code == 1
    assert outcome.stdout == "" and "no column subject, actions" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [
    ["build-splits", "kinetics"],
    ["build-splits", "charadeslt", "--variant", "pareto", "--seed", "-1"],
    ["build-splits", "charadeslt", "--seed", "1"],
    ["evaluate", "x.npz"],
    ["evaluate", "x.npz", "--split", "s", "--subset", "dev"],
    ["stats"],
    ["nonsense"],
    ["audit", "nowhere.parquet"],
    ["stats", "nowhere"],
    ["evaluate", "nowhere.npz", "--split", "charadeslt"],
    ["compare", "a=nowhere.npz", "--split", "charadeslt"],
    ["build-splits", "charadeslt", "--annotations", "nowhere"],
    ["build-splits", "nowhere.toml"],
    ["import-split", "nowhere.csv", "--out", "x.parquet", "--head-above", "2", "--tail-up-to", "1"],
    ["pack-features", "nowhere", "--out", "x.h5"],
    ["verify-features", "nowhere.h5"],
    ["merge-features", "nowhere.h5", "--out", "x.h5"],
    ["extract-features", "nowhere", "--out", "x.h5"],
    ["train", "--split", "charadeslt", "--features", "nowhere.h5", "--method", "bce"],
    ["predict", "nowhere", "--out", "x.parquet"],
    ["reproduce", "table2", "--features", "ResNet50=nowhere.h5"],
    ["reproduce", "table2", "--split", "nowhere.parquet"],
    ["reproduce", "table2", "--row", "nonsense"],
    ["reproduce", "table2", "--plan", "--gpu", "nonsense"],
    ["reproduce", "table2", "--simulate", "--set", "simulation.nonsense=1"],
])  # fmt: skip
def test_a_wrong_call_ends_with_2(run, arguments):
    outcome = run(*arguments)
    assert outcome.exit_code == 2 and outcome.stdout == "" and "Error: " in outcome.stderr


@pytest.mark.parametrize("arguments", [
    ["stats", "charadeslt"],
    ["evaluate", TOY / "predictions.npz", "--split", "charadeslt"],
    ["build-splits", "charadeslt"],
])  # fmt: skip
def test_missing_data_ends_with_1_and_a_message(run, arguments):
    outcome = run(*arguments)
    assert outcome.exit_code == 1 and outcome.stdout == ""
    assert outcome.stderr.startswith("Error: ") and "Traceback" not in outcome.stderr


@pytest.mark.parametrize(("options", "what"), [
    (["--method", "nonsense"], "unknown method 'nonsense'"),
    (["--method", "bce", "--set", "nonsense=1"], "unknown key nonsense"),
    (["--method", "bce", "--set", "schedule.epochs"], "is not a setting"),
    (["--method", "bce", "--aggregator", "nonsense"], "nonsense"),
    (["--method", "bce", "--device", "nonsense"], "unknown device 'nonsense'"),
])  # fmt: skip
def test_a_wrong_value_of_an_option_ends_with_2(run, toy_split_file, tmp_path, options, what):
    (tmp_path / "features").mkdir()
    files = ["--split", toy_split_file, "--features", tmp_path / "features", "--out", tmp_path / "run"]
    outcome = run("train", *files, *options)
    assert outcome.exit_code == 2 and outcome.stdout == "" and what in outcome.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_wrong_values_of_evaluate_and_compare_end_with_2(run, toy_split_file, tmp_path):
    files = [TOY / "predictions.npz", "--split", toy_split_file]
    for arguments, what in (
        (["compare", *files, "--reference", "nonsense"], "the reference 'nonsense' is not one of the runs"),
        (["compare", TOY / "predictions.npz", *files], "two runs have the same name"),
        (["evaluate", *files, "--bootstrap", 1], "at least 2 replicates"),
    ):
        outcome = run(*arguments)
        assert outcome.exit_code == 2 and outcome.stdout == "" and what in outcome.stderr
    missing = run("build-splits", "nowhere.toml").stderr
    assert "the file 'nowhere.toml' does not exist" in missing
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml' is a folder; expected a manifest" in run("build-splits", tmp_path / "folder.toml").stderr


def test_a_folder_that_cannot_be_written_ends_with_1(run, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path / "file" / "below")
    assert outcome.exit_code == 1 and outcome.stderr.startswith("Error: ")


def test_datasets_lists_present_and_missing_files(run, toy_split):
    from meidbench.splits.manifests import annotations_folder
    from meidbench.splits.split import write_split

    folder = annotations_folder("charades")
    folder.mkdir(parents=True)
    (folder / "Charades_v1_train.csv").write_text("")
    write_split(toy_split, split_path("charadesegolt"))
    entries = {entry["dataset"]: entry for entry in json.loads(run("datasets", "--json").stdout)}
    assert set(entries) == {"videolt", "charadeslt", "charadesegolt", "animalkingdom"}
    assert entries["animalkingdom"]["missing"] == ["AR_metadata.xlsx", "df_action.xlsx"]
    assert entries["charadeslt"]["present"] == ["Charades_v1_train.csv"]
    assert entries["charadeslt"]["missing"] == ["Charades_v1_test.csv", "Charades_v1_classes.txt"]
    assert [entry["split_built"] for entry in entries.values()] == [False, False, True, False]
    text = run("datasets").stdout
    assert "missing Charades_v1_test.csv, Charades_v1_classes.txt" in text
    assert "meidbench download charadeslt --accept-licence" in text and "non-commercial" in text


def test_stats_prints_one_column_per_split(run, toy_split_file, tmp_path):
    outcome = run("stats", toy_split_file, toy_split_file, "--plot", tmp_path / "p.svg")
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines()[0].split() == ["toylt", "toylt"]
    assert (tmp_path / "p.svg").stat().st_size > 1000
    assert json.loads(run("stats", toy_split_file, "--json").stdout)[0]["classes"] == 12


def test_audit_lists_findings_and_strict_fails_on_them(run, toy_split_file):
    outcome = run("audit", toy_split_file)
    assert outcome.exit_code == 0
    assert "warning  pair-leakage: " in outcome.stdout
    assert "nothing found by: consistency, duplicate-ids" in outcome.stdout
    assert run("audit", toy_split_file, "--strict").exit_code == 1
    checks = {finding["check"] for finding in json.loads(run("audit", toy_split_file, "--json").stdout)}
    assert "pair-leakage" in checks


def test_evaluate_writes_table_json_and_classes(run, toy_split_file, tmp_path):
    predictions = TOY / "predictions.npz"
    files = ["--json", tmp_path / "r.json", "--per-class", tmp_path / "r.csv"]
    outcome = run("evaluate", predictions, "--split", toy_split_file, *files)
    assert outcome.exit_code == 0, outcome.stderr
    content = json.loads((tmp_path / "r.json").read_text())
    shown = {
        line.split()[0]: line.split()[1]
        for line in outcome.stdout.splitlines()
        if line[:4] in ("over", "head", "medi", "tail")
    }
    assert shown == {name: f"{value:.4f}" for name, value in content["mAP"].items()}
    with (tmp_path / "r.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["ap"]) for row in rows] == [entry["ap"] for entry in content["per_class"]]
    for name in ("class", "train_count", "positives"):
        assert [int(row[name]) for row in rows] == [entry[name] for entry in content["per_class"]]
    assert [row["group"] for row in rows] == [entry["group"] for entry in content["per_class"]]
    on_stdout = run("evaluate", predictions, "--split", toy_split_file, "--json", "-")
    assert json.loads(on_stdout.stdout) == content


def test_evaluate_refuses_with_all_problems_and_writes_nothing(run, toy_split_file, tmp_path):
    np.savez(tmp_path / "p.npz", video_ids=np.array(["a", "a"]), scores=np.array([[np.nan] * 3, [0] * 3]))
    outcome = run("evaluate", tmp_path / "p.npz", "--split", toy_split_file, "--json", tmp_path / "r.json")
    assert outcome.exit_code == 1 and not (tmp_path / "r.json").exists()
    for problem in ("occur more than once, with", "are missing", "are not in test: a", "3 classes", "NaN or infinity"):
        assert problem in outcome.stderr


def test_two_results_do_not_share_a_file(run, toy_split_file, tmp_path):
    for target in ("-", tmp_path / "r"):
        arguments = ["--json", target, "--per-class", target]
        outcome = run("evaluate", TOY / "predictions.npz", "--split", toy_split_file, *arguments)
        assert outcome.exit_code == 2 and "needs its own file" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_plot_format_is_a_wrong_call(run, toy_split_file):
    outcome = run("stats", toy_split_file, "--plot", "x.gif")
    assert outcome.exit_code == 2 and outcome.stdout == "" and ".png, .svg, .pdf" in outcome.stderr


def test_known_defects_are_printed_when_a_split_is_built(run):
    outcome = run("build-splits", "charadesegolt", "--annotations", real_data(REAL["charadesegolt"]))
    assert "known defect: First- and third-person takes of one script lie in different subsets: 93" in outcome.stderr


def test_float16_scores_need_an_option(run, toy_split, toy_split_file, tmp_path):
    ids = toy_split.video_ids("val")
    np.savez(tmp_path / "p.npz", video_ids=np.array(ids), scores=np.zeros((len(ids), 12), np.float16))
    arguments = ["evaluate", tmp_path / "p.npz", "--split", toy_split_file, "--subset", "val"]
    assert "allow them by --allow-float16" in run(*arguments).stderr
    assert run(*arguments, "--allow-float16").exit_code == 0


def test_the_module_runs_as_the_command_does():
    outcome = subprocess.run(
        [sys.executable, "-m", "meidbench", "--version"], capture_output=True, text=True, check=True
    )
    assert outcome.stdout.startswith("meidbench, version ")


def test_tables_fit_a_narrow_terminal(run, toy_split_file):
    for arguments in (["stats", toy_split_file], ["evaluate", TOY / "predictions.npz", "--split", toy_split_file]):
        assert max(map(len, run(*arguments).stdout.splitlines())) <= 60
    narrow = {**os.environ, "COLUMNS": "40"}
    text = subprocess.run(
        [sys.executable, "-m", "meidbench", "evaluate", "--help"], env=narrow, capture_output=True, text=True
    )
    assert text.returncode == 0


@pytest.mark.parametrize(("package", "arguments"), [
    ("torch", ["train", "--split", "SPLIT", "--features", TOY, "--method", "bce"]),
    ("torch", ["predict", TOY, "--out", "x.parquet"]),
    ("torch", ["demo", "--out", "OUT"]),
    ("torch", ["reproduce", "table1", "--out", "OUT"]),
    ("torch", ["extract-features", TOY, "--out", "OUT"]),
    ("torch", ["python", "import meidbench; meidbench.VideoLT"]),
    ("matplotlib", ["stats", "SPLIT", "--plot", "OUT.svg"]),
    ("PIL", ["extract-features", TOY, "--out", "OUT"]),
    ("sklearn", ["evaluate", TOY / "predictions.npz", "--split", "SPLIT", "--cross-check"]),
])  # fmt: skip
def test_a_missing_package_gives_one_line(toy_split_file, tmp_path, package, arguments):
    """None in sys.modules is what import finds of a package that is not installed."""
    places = {"SPLIT": str(toy_split_file), "OUT": str(tmp_path / "out"), "OUT.svg": str(tmp_path / "out.svg")}
    arguments = [places.get(argument, str(argument)) for argument in arguments]
    code = arguments[1] if arguments[0] == "python" else f"from meidbench.cli import main; main({arguments})"
    hide = f"import sys; sys.modules[{package!r}] = None; "
    outcome = subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True)
    assert outcome.returncode == 1 and (outcome.stdout == "" or package == "matplotlib")
    *_, last = outcome.stderr.splitlines()
    # The names of packages, where they differ from the module's.
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "matplotlib": "'meidbench[plot]'"}
    assert f"pip install {names.get(package, package)}" in last
    if arguments[0] == "python":
        assert last.startswith("meidbench.errors.MeidbenchError: ")
    else:
        assert last.startswith("Error: ") and "Traceback" not in outcome.stderr
        assert len(outcome.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_arguments_in_messages_are_shown_as_the_options_of_the_command(run, toy_split, toy_split_file, tmp_path):
    """Python callers read ``subset="test"``, and callers of a command without the option, too."""
    ids = toy_split.video_ids("test")
    path = mb.write_predictions(tmp_path / "p.parquet", ids, np.zeros((len(ids), 12)))
    wrong = run("evaluate", path, "--split", toy_split_file, "--subset", "val")
    assert wrong.exit_code == 1 and "score them with --subset test" in wrong.stderr
    with pytest.raises(mb.MeidbenchError, match='score them with subset="test"'):
        mb.evaluate(path, split=toy_split, subset="val")
    np.save(tmp_path / "m.npy", np.zeros((len(ids), 12)))
    assert "by --ids FILE, or write" in run("evaluate", tmp_path / "m.npy", "--split", toy_split_file).stderr
    message = 'give it with split=..., and pass allow_float16=True or subset="val"'
    assert name_options(message, main.commands["evaluate"]) == (
        "give it with --split, and pass --allow-float16 or --subset val"
    )
    assert name_options(message, main.commands["merge-features"]) == message
