"""Budgets of runs: the steps, rates and trials in prediction files, and what a comparison and a table make of them."""

import csv
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_reports import HOSTILE, Page, braces_balance

import meidbench as mb
from meidbench.baselines import predict, resolve, train
from meidbench.baselines.configuration import make_sampler
from meidbench.baselines.run_folder import FIRST_STAGE
from meidbench.errors import MeidbenchError
from meidbench.evaluation.budget import COLUMNS, Budget, StageBudget, describe_budgets, describe_inequality
from meidbench.features.simulation import simulate_features
from meidbench.predictions.align import read_predictions
from meidbench.report.html import comparison_html
from meidbench.report.latex import comparison_latex
from meidbench.report.text import DASH, comparison_table

TINY = ("frames.train=3", "frames.test=3", "schedule.batch_size=16", "schedule.epochs=2", "execution.device=cpu",
        "schedule.milestones=[1]")  # fmt: skip
NONSENSE = ("\x1b[31m1", True, -1, 0, 2.5, float("nan"), 10**5000, None, [1], {})
ONE = StageBudget(300, 1e-4, 128, 100)


@pytest.fixture(scope="module")
def features(toy_split, tmp_path_factory):
    return simulate_features(toy_split, tmp_path_factory.mktemp("features") / "toy.h5", frames=3, dim=8)


def config_of(split, *settings, method="bce", aggregator=None):
    asked = dict(setting.split("=", 1) for setting in (*TINY, *settings))
    return resolve(method, split, aggregator=aggregator, settings=[f"{key}={value}" for key, value in asked.items()])


def budget_of(path):
    return read_predictions(path).metadata["run"]["budget"]


def steps_in(folder):
    """The last step in the log of a run, counted from its epochs."""
    lines = map(json.loads, Path(folder, "log.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["event"] == "epoch"][-1]


# --- the facts in prediction files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "aggregator", "settings"), [
    ("bce", "mean", ()),
    ("bce", "mean", ("schedule.accumulate=2", "schedule.batch_size=24")),
    ("cbs", "mean", ("sampler.samples_per_epoch=77",)),
    ("repeat_factor", "mean", ("sampler.threshold=0.5", "schedule.batch_size=4")),  # epochs of several lengths
])  # fmt: skip
def test_the_steps_are_those_of_all_epochs(toy_split, features, tmp_path, method, aggregator, settings):
    config = config_of(toy_split, "schedule.epochs=3", *settings, method=method, aggregator=aggregator)
    train(toy_split, features, config, tmp_path / "run")
    draws, sampler = [], make_sampler(config, toy_split)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        draws.append(len(sampler.whole_epoch()))
    assert method != "repeat_factor" or len(set(draws)) > 1
    wanted = sum(math.ceil(count / config.schedule.batch_size) for count in draws)
    stage = {"steps": wanted, "lr": config.schedule.lr, "batch_size": config.schedule.batch_size, "epochs": 3}
    for subset in ("val", "test"):
        assert budget_of(tmp_path / "run" / f"predictions-{subset}.parquet") == {"stages": [stage], "trials": 1}
    assert wanted == steps_in(tmp_path / "run")
    # Of a run from an earlier version, the log tells the steps.
    assert budget_of(predict(tmp_path / "run", tmp_path / "p.parquet", device="cpu", split=toy_split))["stages"] == [
        stage
    ]


def test_two_stages_have_both_budgets_wherever_the_first_lies(toy_split, features, tmp_path):
    config = config_of(
        toy_split, "stage1.schedule.epochs=1", "stage2.schedule.lr=5e-4", method="meid", aggregator="mean"
    )
    train(toy_split, features, config, tmp_path / "run", trials=7)
    first, second = (steps_in(tmp_path / "run" / folder) for folder in (FIRST_STAGE, "."))
    found = budget_of(tmp_path / "run" / "predictions-test.parquet")
    assert [stage["steps"] for stage in found["stages"]] == [first, second] and found["trials"] == 7
    rates = [config.first_stage.schedule.lr, 5e-4]
    assert [stage["lr"] for stage in found["stages"]] == rates and rates[0] != 5e-4
    assert [stage["epochs"] for stage in found["stages"]] == [1, 2]
    apart = shutil.move(tmp_path / "run" / FIRST_STAGE, tmp_path / "apart")
    train(toy_split, features, config, tmp_path / "other", first_stage=apart)
    shutil.rmtree(apart)  # a finished run no longer needs it
    out = predict(tmp_path / "other", tmp_path / "p.parquet", device="cpu", split=toy_split)
    assert budget_of(out) == budget_of(tmp_path / "other" / "predictions-test.parquet") == {**found, "trials": 1}


def test_more_epochs_are_more_steps_and_the_best_epoch_does_not_matter(toy_split, features, tmp_path):
    for epochs in (1, 3):
        config = config_of(toy_split, f"schedule.epochs={epochs}", "schedule.lr=1e-12", aggregator="mean")
        train(toy_split, features, config, tmp_path / "run")
        (stage,) = budget_of(tmp_path / "run" / "predictions-test.parquet")["stages"]
        assert stage["steps"] == epochs * math.ceil(len(toy_split.video_ids("train")) / 16)
    # Scored again after its last checkpoint is gone.
    (tmp_path / "run" / "last.pt").unlink()
    (tmp_path / "run" / "result-test.json").unlink()
    train(toy_split, features, config, tmp_path / "run")
    assert budget_of(tmp_path / "run" / "predictions-test.parquet")["stages"] == [stage]


@pytest.mark.parametrize("log", [None, b"", b'{"step": "many"}\n[1]\n\xff\n' + b"[" * 100_000])
def test_a_run_without_a_sound_log_has_unknown_steps(toy_split, features, tmp_path, log):
    train(toy_split, features, config_of(toy_split, "schedule.epochs=1", aggregator="mean"), tmp_path / "run")
    path = tmp_path / "run" / "log.jsonl"
    path.unlink() if log is None else path.write_bytes(log)
    out = predict(tmp_path / "run", tmp_path / "p.parquet", device="cpu", split=toy_split)
    (stage,) = budget_of(out)["stages"]
    assert stage["steps"] is None and stage["batch_size"] == 16


def test_a_number_of_trials_that_makes_no_sense_is_refused(toy_split, features, tmp_path):
    with pytest.raises(MeidbenchError, match="trials must be a whole number of at least 1, got 0"):
        train(toy_split, features, config_of(toy_split), tmp_path / "run", trials=0)
    assert not (tmp_path / "run").exists()


# --- reading the facts of others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [
    None, 3, "1e9", [], {}, {"stages": None}, {"stages": {"steps": 1}}, {"stages": [3]}, {"stages": [{}] * 9},
])  # fmt: skip
def test_what_is_no_budget_is_unknown(budget):
    for metadata in ({"run": {"budget": budget}}, {"run": [budget]}, {"run": None}, {}):
        assert Budget.from_metadata(metadata) is None


@pytest.mark.parametrize(
    "value",
    ["\x1b[31m1", True, -1, 0, 2.5, float("nan"), 10**5000, None, [1], {}],
    ids=lambda value: type(value).__name__,
)
def test_numbers_that_make_no_sense_are_unknown(value):
    stage = dict.fromkeys(("steps", "batch_size", "epochs"), value) | {"lr": 1e-3}
    budget = Budget.from_metadata({"run": {"budget": {"stages": [stage], "trials": value}, "select_on": value}})
    assert budget == Budget((StageBudget(None, 1e-3, None, None),), None) and budget.steps is None
    assert describe_budgets([budget]) == dict(zip(COLUMNS, ("-", "0.001", "-", "-", "-"), strict=True))
    if value != 2.5:
        rate = Budget.from_metadata({"run": {"budget": {"stages": [{**stage, "lr": value}]}}}).stages[0].lr
        assert rate is None


def test_facts_can_be_read_back():
    budget = Budget((ONE, StageBudget(None, 1e-3, 64, 60)), 20)
    assert Budget.from_metadata({"run": {"budget": json.loads(json.dumps(budget.to_facts()))}}) == budget


# --- texts ----------------------------------------------------------------------------------------------------------


def stage(steps, lr=1e-3, batch=64):
    return StageBudget(steps, lr, batch, 30)


@pytest.mark.parametrize(("budgets", "texts"), [
    ([Budget((ONE,))], ("300", "0.0001", "128", "1", "-")),
    ([Budget((stage(1800), stage(1750, 1e-4)), 20)], ("1,800 + 1,750", "0.001 + 0.0001", "64", "20", "-")),
    ([Budget((stage(1800),) * 2)], ("1,800 + 1,800", "0.001", "64", "1", "-")),
    ([Budget((stage(1800),)), Budget((stage(1790),))], ("1,790 to 1,800", "0.001", "64", "1", "-")),
    ([Budget((stage(1800),)), None], ("1,800 or unknown", "0.001", "64", "1", "-")),
    ([Budget((stage(9),)), Budget((stage(9), stage(8)))], ("9 or 9 + 8", "0.001", "64", "1", "-")),
    ([Budget((stage(9, 0.00038123),), 3)], ("9", "0.000381", "64", "3", "-")),
    ([Budget((stage(9, 1e-5), stage(8, 2e-12)))], ("9 + 8", "1e-5 + 2e-12", "64", "1", "-")),
    ([Budget((), 5)], ("no steps", "-", "-", "5", "-")),
    ([Budget((stage(9),), 1, "val")] * 2, ("9", "0.001", "64", "1", "val")),
    ([Budget((stage(9),), 1, "test"), Budget((stage(9),), 1, "last")], ("9", "0.001", "64", "1", "test or last")),
    ([None, None], ("-", "-", "-", "-", "-")),
    ([], ("-", "-", "-", "-", "-")),
])  # fmt: skip
def test_budgets_as_texts(budgets, texts):
    assert describe_budgets(budgets) == dict(zip(COLUMNS, texts, strict=True))


@pytest.mark.parametrize(("steps", "trials", "said"), [
    ({"a": 300, "b": 600}, {}, ""),  # a factor of 2 is not more than 2
    ({"a": 300, "b": 601}, {}, "300 steps (a) to 601 (b), a factor of 2"),
    ({"a": 300, "b": 3600, "c": 100}, {}, "100 steps (c) to 3,600 (b), a factor of 36"),
    ({"a": 1000, "b": 350}, {}, "350 steps (b) to 1,000 (a), a factor of 2.9"),
    ({"a": 5, "b": 5}, {"b": 20}, "1 trial (a) to 20 (b)"),
    ({"a": 1, "b": 5}, {"a": 20, "b": 2}, "1 step (a) to 5 (b), a factor of 5; 2 trials (b) to 20 (a)"),
])  # fmt: skip
def test_unequal_budgets_are_named(steps, trials, said):
    budgets = {name: [Budget((stage(count),), trials.get(name, 1))] for name, count in steps.items()}
    assert describe_inequality(budgets) == (said and f"Budgets are unequal: {said}.")
    # Neither unknown budgets nor a method without an optimiser change the steps that are compared.
    budgets |= {"unknown": [None], "probe": [Budget((), None)], "odd": [Budget((stage(None),), None)]}
    assert describe_inequality(budgets) == (said and f"Budgets are unequal: {said}.")


def test_both_stages_count_and_of_several_runs_the_largest():
    budgets = {"two": [Budget((stage(200), stage(101)))], "one": [Budget((stage(140),)), Budget((stage(150),))]}
    assert describe_inequality(budgets) == "Budgets are unequal: 150 steps (one) to 301 (two), a factor of 2."


# --- what a comparison shows ----------------------------------------------------------------------------------------


def written(path, split, budget, seed=0, **more):
    """Write random predictions; without a budget, as an earlier version did."""
    scores = np.random.default_rng(seed).normal(size=split.labels("test").shape)
    facts = {"method": "x"} if budget is None else {"method": "x", "budget": budget.to_facts(), **more}
    return mb.write_predictions(path, split.video_ids("test"), scores, split, "test", run=facts)


def compared(split, folder, **methods):
    """Compare methods by their budgets, or lists of budgets of their seeds."""
    runs = {}
    for place, (name, budgets) in enumerate(methods.items()):
        given = budgets if isinstance(budgets, list) else [budgets]
        files = [written(folder / f"{place}@{seed}.parquet", split, each, seed) for seed, each in enumerate(given, 1)]
        runs[name] = files if isinstance(budgets, list) else files[0]
    return mb.compare(runs, split, replicates=5)


PUBLISHED = Budget((StageBudget(300, 1e-4, 128, 100),))
MEID = Budget((StageBudget(1800, 1e-3, 64, 60), StageBudget(1800, 1e-4, 64, 60)))


def test_files_without_facts_give_the_comparison_of_before(toy_split, tmp_path):
    comparison = compared(toy_split, tmp_path, bce=None, meid=None)
    assert "budget" not in comparison.to_json() and "budget" not in comparison_table(comparison)
    assert 'id="budgets"' not in comparison_html(comparison) and "Budget" not in comparison_latex(comparison)


def test_a_comparison_has_the_budgets_of_its_runs(toy_split, tmp_path):
    others = [Budget((stage(1790),), 20), Budget((stage(1800),), 20)]
    comparison = compared(toy_split, tmp_path, bce=PUBLISHED, meid=MEID, seeds=others, old=None)
    content = {entry["name"]: entry for entry in json.loads(comparison.to_json())["methods"]}
    for name, budgets in (("bce", [PUBLISHED]), ("meid", [MEID]), ("seeds", others)):
        assert content[name]["budgets"] == [{**budget.to_facts(), "select_on": ""} for budget in budgets]
    assert "budgets" not in content["old"]
    unequal = "Budgets are unequal: 300 steps (bce) to 3,600 (meid), a factor of 12; 1 trial (bce) to 20 (seeds)."
    assert unequal in repr(comparison) and unequal in comparison._repr_html_()
    assert comparison.unequal_budgets == comparison.with_reference("old").unequal_budgets == unequal
    lines = comparison_table(comparison).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("budget"))
    assert [line.split() for line in lines[start + 2 : start + 6]] == [
        ["bce", "300", "0.0001", "128", "1"],
        ["meid", "1,800", "+", "1,800", "0.001", "+", "0.0001", "64", "1"],
        ["seeds", "1,790", "to", "1,800", "0.001", "64", "20"],
        ["old", "-", "-", "-", "-"],
    ]
    assert unequal in " ".join(lines)


def test_the_page_has_the_budgets_and_a_warning(toy_split, tmp_path):
    seeds = [Budget((stage(1790),) * 2, 20), Budget((stage(1800),) * 2, 20)]
    comparison = compared(toy_split, tmp_path, bce=PUBLISHED, meid=seeds, probe=Budget((), 5), old=None)
    text = comparison_html(comparison)
    page = Page(text)
    (table,) = [table for table in page.tables if table["caption"].startswith("The training behind the scores")]
    assert table["rows"][1:] == [
        [["bce"], ["300"], ["0.0001"], ["128"], ["1"]],
        [["meid"], ["3,580 to 3,600", "1,790 to 1,800 + 1,790 to 1,800"], ["0.001"], ["64"], ["20"]],
        [["probe"], ["0", "no steps"], [DASH], [DASH], ["5"]],
        [["old"], [DASH], [DASH], [DASH], [DASH]],
    ]
    assert f'<li><a href="#budgets">{comparison.unequal_budgets}</a></li>' in text and "a factor of 12" in text
    assert "Budgets are unequal" not in comparison_html(compared(toy_split, tmp_path, bce=PUBLISHED, other=PUBLISHED))


def test_latex_has_a_note_of_the_budgets(toy_split, tmp_path):
    text = comparison_latex(compared(toy_split, tmp_path, b_ce=PUBLISHED, meid=MEID, old=None))
    assert "b\\_ce 300 (0.0001; 128; 1), meid 1,800 $+$ 1,800 (0.001 $+$ 0.0001; 64; 1), old unknown." in text
    assert "Budgets are unequal: 300 steps (b\\_ce) to 3,600 (meid), a factor of 12." in text and braces_balance(text)


def test_a_choice_by_anything_but_val_is_shown(toy_split, tmp_path):
    facts = {"bce": "test", "meid": "last", "asl": "val"}
    files = {}
    for name, chosen in facts.items():
        files[name] = written(tmp_path / f"{name}.parquet", toy_split, PUBLISHED, select_on=chosen)
    comparison = mb.compare(files, toy_split, replicates=5)
    rows = {line.split()[0]: line.split() for line in comparison_table(comparison).splitlines() if " 300 " in line}
    assert {name: row[-1] for name, row in rows.items()} == facts
    assert "or last: the last epoch" in " ".join(comparison_table(comparison).split())
    latex = comparison_latex(comparison)
    assert all(text in latex for text in ("1; chosen on test)", "1; chosen as the last epoch)", "1; chosen on val)"))
    tables = Page(comparison_html(comparison)).tables
    (table,) = [table for table in tables if table["caption"].startswith("The training behind the scores")]
    assert [row[-1] for row in table["rows"][1:]] == [[chosen] for chosen in facts.values()]
    assert [budget.select_on for method in comparison.methods for budget in method.budgets] == list(facts.values())


def test_names_are_only_text(toy_split, tmp_path):
    comparison = compared(toy_split, tmp_path, **{HOSTILE: PUBLISHED, "\x1b[31mred": MEID})
    assert Page(comparison_html(comparison)).started.count("script") == 1
    table = comparison_table(comparison)
    assert "\x1b" not in table and "\\x1b[31mred" in table and braces_balance(comparison_latex(comparison))


def test_budgets_fit_a_terminal(toy_split, tmp_path, run, toy_split_file):
    names = ("a" * 12, "b" * 12, "c" * 12)
    budgets = (PUBLISHED, MEID, Budget((stage(123_456), stage(123_456, 3.81e-4, 1024)), 100))
    files = [written(tmp_path / name, toy_split, budget) for name, budget in zip(names, budgets, strict=True)]
    paths = [f"{name}={path}" for name, path in zip(names, files, strict=True)]
    outcome = run("compare", *paths, "--split", toy_split_file, "--bootstrap", "5")
    assert outcome.exit_code == 0 and "Budgets are unequal" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80


# --- what a reproduced table shows ----------------------------------------------------------------------------------

SMALL = ("--simulate", "--bootstrap", 20, "--set", "schedule.epochs=1", "--set", "schedule.milestones=[]",
         "--set", "simulation.frames=3", "--set", "simulation.dim=8", "--set", "simulation.split=invented")  # fmt: skip


def test_a_table_shows_the_budget_of_each_row(run, tmp_path):
    rows = ("--row", "ldam-charadeslt", "--row", "meid-charadeslt", "--row", "mixup-charadesegolt")
    arguments = ("reproduce", "table3", *rows, *SMALL, "--set", "stage2.schedule.epochs=3", "--out", tmp_path / "out")
    outcome = run(*arguments, "--set", "stage2.schedule.lr=1e-3")
    assert outcome.exit_code == 0, outcome.output
    content = {row["name"]: row for row in json.loads((tmp_path / "out" / "table3.json").read_text())["rows"]}
    ldam, meid, mixup = (content[name]["ours"] for name in rows[1::2])
    for ours in (ldam, meid, mixup):
        (budget,) = ours["budgets"]
        path = tmp_path / "out" / "runs" / ours["runs"][0] / "predictions-test.parquet"
        assert budget == {"select_on": "val"} | budget_of(path)
    once = steps_in(tmp_path / "out" / "runs" / ldam["runs"][0])
    assert [[stage["steps"] for stage in ours["budgets"][0]["stages"]] for ours in (ldam, meid, mixup)] == [
        [once], [once, 3 * once], [once],
    ]  # fmt: skip
    text = " ".join(outcome.stdout.split())
    assert (
        f"Budgets: - {once} steps at 0.002 in batches of 64, 1 trial: ldam-charadeslt "
        f"- {once} + {3 * once} steps at 0.002 + 0.001 in batches of 64, 1 trial: meid-charadeslt "
        f"- charadeslt: Budgets are unequal: {once} steps (ldam-charadeslt) to {4 * once} (meid-charadeslt), "
        "a factor of 4. "
        f"- {once} steps at 0.002 in batches of 64, 1 trial: mixup-charadesegolt How ours was made"
    ) in text
    assert (
        f"meid, nextvlad; 1 + 3 epochs: {once} + {3 * once} steps at 0.002 + 0.001 in batches of 64, 1 trial; 3 frames"
        in text
    )
    assert "## Budgets" in (tmp_path / "out" / "table3.md").read_text()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table3.csv").read_text())))
    cells = {line["row"]: [line[name] for name in COLUMNS] for line in lines}
    assert cells["meid-charadeslt"] == [f"{once} + {3 * once}", "0.002 + 0.001", "64", "1", "val"]
    assert cells["eql-charadeslt"] == [""] * 5
    # Runs of an earlier version have no budget in their predictions.
    for path in (tmp_path / "out" / "runs").glob("*/predictions-test.parquet"):
        given = read_predictions(path)
        split = mb.load_split(next((tmp_path / "out" / "splits").glob(f"{given.metadata['dataset']}-*")))
        mb.write_predictions(path, given.video_ids, given.scores, split, "test", run={"method": "x"})
    outcome = run(*arguments, "--set", "stage2.schedule.lr=1e-3")
    assert outcome.exit_code == 0 and "0 runs newly trained" in outcome.stderr
    assert "unknown budget: ldam-charadeslt, meid-charadeslt" in outcome.stdout and "unequal" not in outcome.stdout
