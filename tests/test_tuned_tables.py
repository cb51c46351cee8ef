"""``reproduce TABLE --tuned N``: a study per row, its winner for every seed, the same number of trials for all rows."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_reproduce import rows_of, table_of, toy_charades  # noqa: F401

from meidbench.baselines.configuration import Config
from meidbench.baselines.inference import show_no_progress
from meidbench.baselines.reproduction import RUN_TABLES, read_table, runs
from meidbench.baselines.reproduction.materials import InputFiles, Simulation
from meidbench.baselines.reproduction.plan import Request, make_jobs
from meidbench.baselines.reproduction.runs import RunStore, check_jobs
from meidbench.baselines.search import read_space
from meidbench.cli import main
from meidbench.predictions.align import read_predictions
from meidbench.splits.split import load_split

pytest.importorskip("optuna", reason="the extra [tune] is not installed")

TRIALS = 3
ROWS = ("ldam-charadeslt", "meid-charadeslt")
SMALL = ("--simulate", "--bootstrap", 20, "--set", "schedule.epochs=2", "--set", "schedule.milestones=[]",
         "--set", "simulation.frames=2", "--set", "simulation.dim=8", "--set", "simulation.split=invented")  # fmt: skip


def command(out, *rows, trials=TRIALS):
    named = [part for row in rows for part in ("--row", row)]
    return ("reproduce", "table3", *named, *SMALL, "--tuned", trials, "--seed", 4, "--seed", 9, "--out", out)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two rows with three trials and two seeds, and the output of the command."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    outcome = CliRunner().invoke(main, [str(argument) for argument in command(out, *ROWS)])
    assert outcome.exit_code == 0, outcome.output
    return outcome, out


@pytest.fixture
def tuned(made, tmp_path):
    outcome, out = made
    return outcome, Path(shutil.copytree(out, tmp_path / "out"))


def config_in(folder):
    return Config.from_tables(json.loads((folder / "config.json").read_text())["config"])


def places(out, row):
    """The folders of a row's runs: a trial of its study, then those in OUT/runs."""
    first, *others = row["ours"]["runs"]
    return [out / first, *(out / "runs" / name for name in others)]


def test_each_row_is_the_winner_of_its_own_study(made):
    _, out = made
    assert table_of(out, "table3")["trials"] == TRIALS
    for row in rows_of(out, "table3"):
        chosen = row["chosen"]
        study = out / "studies" / chosen["study"]
        trials = list(csv.DictReader((study / "trials.csv").read_text().splitlines()))
        assert len(trials) == TRIALS == chosen["trials"] and len(list((study / "trials").glob("*/config.json"))) == 3
        values = {int(trial["trial"]): float(trial["value"]) for trial in trials if trial["value"]}
        assert chosen["winner"] == max(values, key=lambda number: (values[number], -number))
        assert chosen["steps"] == sum(int(trial["steps"]) for trial in trials)
        first, second = places(out, row)
        assert first == study / "trials" / f"{chosen['winner']:04d}"
        # The other seed has the winner's values, and no other ones.
        configs = [config_in(folder).to_tables() for folder in (first, second)]
        seeds = [[stage.pop("seed") for stage in (config, config["first_stage"]) if stage] for config in configs]
        assert [set(of_stages) for of_stages in seeds] == [{4}, {9}] and configs[0] == configs[1]
        assert row["ours"]["seeds"] == [4, 9]
        for key in chosen["searched"]:
            assert key not in ("schedule.epochs", "frames.train"), "what --set and the simulation fix is not searched"


def test_numbers_and_budgets_are_those_of_the_runs(made):
    _, out = made
    split = load_split(next((out / "splits").iterdir()))
    for row in rows_of(out, "table3"):
        means = []
        for folder, budget in zip(places(out, row), row["ours"]["budgets"], strict=True):
            means.append(json.loads((folder / "result-test.json").read_text())["mAP"]["overall"])
            given = read_predictions(folder / "predictions-test.parquet")
            assert given.video_ids == split.video_ids("test")
            assert given.metadata["run"]["budget"] | {"select_on": "val"} == budget and budget["trials"] == TRIALS
            assert given.metadata["run"]["select_on"] == "val"
        assert row["ours"]["mAP"]["overall"]["value"] == pytest.approx(np.mean(means))
    # Trials that did not win are not scored on test.
    scored = {path.parent for path in (out / "studies").glob("*/trials/*/result-test.json")}
    assert scored == {places(out, row)[0] for row in rows_of(out, "table3")}


def test_the_table_tells_what_was_searched(made):
    outcome, out = made
    runs = len(ROWS) * (TRIALS + 1)  # the first of two seeds is a trial
    assert f"2 of 2 rows have numbers, {runs} runs newly trained" in outcome.stderr
    text = " ".join(outcome.stdout.split())
    assert "Every row's method had 3 trials on val, as --tuned asks: trial 0 with the published values" in text
    for row in rows_of(out, "table3"):
        chosen = row["chosen"]
        assert f"trial {chosen['winner']} of a study over {', '.join(chosen['searched'])}" in text
        assert re.search(rf"batches of 64, 3 trials: {row['name']} ", text)
    lines = {line["row"]: line for line in csv.DictReader((out / "table3.csv").read_text().splitlines())}
    assert [lines[row]["trials"] for row in ROWS] == ["3", "3"] and lines["eql-charadeslt"]["trials"] == ""
    meid = next(row for row in rows_of(out, "table3") if row["name"] == "meid-charadeslt")
    if meid["chosen"]["winner"]:
        assert any(text.startswith("model.distill_weight: ") for text in meid["differs"])


def test_the_same_command_again_needs_no_study_and_prints_the_same(tuned, run, monkeypatch):
    outcome, out = tuned
    before = {path: path.read_bytes() for path in out.glob("table3.*")}

    def refuse(*arguments, **named):
        raise AssertionError("the study has ended")

    # A record of a study that is damaged is made again from the study.
    damaged = next((out / "studies").glob("*-ldam-compat-*.json"))
    record = damaged.read_bytes()
    for text in (b"{", b"[]", record.replace(b'"winner": ', b'"winner": "no", "was": ')):
        damaged.write_bytes(text)
        assert run(*command(out, ROWS[0])).exit_code == 0 and damaged.read_bytes() == record
    monkeypatch.setattr(runs, "tune", refuse)
    again = run(*command(out, *ROWS))
    assert again.exit_code == 0, again.output
    assert again.stdout == outcome.stdout and {path: path.read_bytes() for path in before} == before
    # A row that is not asked for is filled in, without a training.
    alone = run(*command(out, ROWS[0]))
    assert alone.exit_code == 0 and [row["status"] for row in rows_of(out, "table3")] == ["done", "done"]


def test_an_interrupted_table_ends_like_one_that_was_not(made, run, tmp_path, monkeypatch):
    _, whole = made
    out, calls, tune = tmp_path / "out", [], runs.tune

    def stopped(split, features, method, trials, folder, **named):
        def report(line):
            named["report"](line)
            if line.startswith("trial 1 "):
                raise KeyboardInterrupt

        calls.append(method)
        return tune(split, features, method, trials, folder, **{**named, "report": report})

    with monkeypatch.context() as patched:
        patched.setattr(runs, "tune", stopped)
        assert run(*command(out, *ROWS)).exit_code == 130
    assert calls == ["ldam-compat"] and not (out / "table3.json").exists()
    outcome = run(*command(out, *ROWS))
    assert outcome.exit_code == 0, outcome.output
    assert (out / "table3.json").read_bytes() == (whole / "table3.json").read_bytes()


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Of each row of every table: the keys that its study searches, and the name of the study."""
    out, simulation = tmp_path_factory.mktemp("studies"), Simulation(split="invented", frames=1, dim=8)
    files, store, found = InputFiles(substitute=simulation, out=out), RunStore(out, 2, show_no_progress, print), {}
    for table in RUN_TABLES:
        for job in check_jobs(make_jobs(read_table(table), Request(substitute=simulation, trials=2), files)):
            if job.search is not None:
                keys = [entry.key for entry in read_space(job.search, job.search.resolve(), 8)]
                found[table, job.row.name] = keys, store._name_study(job)
    return found


def test_ablations_hold_their_switches_in_every_row(studies):
    for table in RUN_TABLES:
        rows = [row for row in read_table(table).rows if not row.is_quoted]
        switches = {switch for row in rows for switch in row.switches}
        for row in rows:
            keys = [key.removeprefix("stage2.") for key in studies[table, row.name][0]]
            assert keys and not [key for key in keys for switch in switches if f"{key}.".startswith(f"{switch}.")]
    assert "model.beta" in studies["table5", "selection"][0]
    assert all("model.beta" not in keys for (table, _), (keys, _) in studies.items() if table == "table7")
    assert all("model.distill_weight" not in keys for (table, _), (keys, _) in studies.items() if table == "table4")


def test_rows_of_several_tables_share_a_study(studies):
    names = {place: name for place, (_, name) in studies.items()}
    same = names["table5", "selection-motion-sampling"]
    assert names["table6", "e1-e2"] == names["table2", "meid-resnet50"] == names["supp1", "mean"] == same
    assert names["table5", "e1"] == names["table6", "e1"]
    others = ("table2", "meid-resnet101"), ("table7", "beta-0.5"), ("table5", "selection"), ("table5", "e1")
    assert same not in [names[place] for place in others]


def test_a_proxy_of_words_is_tuned_and_stays_marked(run, toy_charades, tmp_path):  # noqa: F811
    split, folder = toy_charades
    arguments = ("reproduce", "table3", "--proxy", "words", "--row", "eql-charadeslt", "--split", split,
                 "--annotations", folder, "--bootstrap", 20,
                 "--set", "proxy.frames=3", "--set", "proxy.dim=8", "--set", "aggregator.name=mean", "--set",
                 "schedule.epochs=1", "--set", "schedule.milestones=[]", "--set", "schedule.batch_size=32")  # fmt: skip
    outcome = run(*arguments, "--tuned", 2, "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.startswith("PROXY: word features") and "2 trials: eql-charadeslt" in outcome.stdout
    (row,) = rows_of(tmp_path / "out", "table3")
    predictions = read_predictions(places(tmp_path / "out", row)[0] / "predictions-test.parquet")
    assert predictions.metadata["run"]["backbone"] == "words"
    assert row["chosen"]["searched"] and "frames.train" not in row["chosen"]["searched"]


@pytest.mark.parametrize(("more", "said"), [
    (("--tuned", 1), "1 is not in the range x>=2"),
    (("--tuned", 2, "--set", "selection.subset=test"), "val chooses the winner; leave out selection.subset=test"),
    (("--tuned", 2, "--set", "schedule.lr=1e-3", "--set", "aggregator.dropout=0.1", "--set", "loss.gamma=0.9"),
     "row eql-charadeslt: nothing is left to search"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_refused_before_any_training(run, tmp_path, more, said):
    outcome = run("reproduce", "table3", "--row", "eql-charadeslt", *SMALL, *more, "--out", tmp_path / "out")
    assert outcome.exit_code == 2 and said in " ".join(outcome.stderr.split())
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "studies").exists()


def test_without_optuna_the_package_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = run("reproduce", "table3", "--row", "eql-charadeslt", *SMALL, "--tuned", 2, "--out", tmp_path / "out")
    assert outcome.exit_code == 1 and "this needs the package optuna" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_the_trials(run):
    def read(*more):
        return json.loads(run("reproduce", "table3", "--plan", "--json", "-", *more).stdout)["rows"]

    plain, tuned, seeds = read(), read("--tuned", 10), read("--tuned", 10, "--seed", 1, "--seed", 2)
    for before, after, twice in zip(plain, tuned, seeds, strict=True):
        assert after["runs"] == 10 * before["runs"] and after["hours"] == pytest.approx(10 * before["hours"])
        assert twice["runs"] == 11 * before["runs"]
