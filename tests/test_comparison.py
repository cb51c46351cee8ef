"""Comparisons against single evaluations and against paired resampling loops."""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import meidbench as mb
from meidbench.errors import MeidbenchError
from meidbench.evaluation.bootstrap import bootstrap_average_precision, correct_holm
from meidbench.evaluation.compare import ComparedRun, compare
from meidbench.evaluation.ranking import Positives


@pytest.fixture
def runs(toy_split, tmp_path):
    """Three methods, each better than the one before; the last has two seeds."""
    labels, ids = toy_split.labels("test"), toy_split.video_ids("test")
    files = {}
    for name, knowledge, seed in (("weak", 0.3, 0), ("better", 1.5, 1), ("best@1", 2.0, 2), ("best@2", 2.0, 3)):
        scores = np.random.default_rng(seed).normal(size=labels.shape) + knowledge * labels
        path = mb.write_predictions(tmp_path / f"{name}.parquet", ids, scores, toy_split, "test")
        files[name] = (path, scores)
    return files


def samples_of(scores, split, replicates, seed):
    positives = Positives.from_pairs(*np.nonzero(split.labels("test")), *scores.shape)
    samples = np.concatenate(list(bootstrap_average_precision(scores, positives, replicates, seed)))
    return samples - samples.mean(axis=0) + mb.average_precision(scores, split.labels("test"))


def test_numbers_are_those_of_the_single_evaluations(runs, toy_split):
    files = [ComparedRun.from_argument(str(path)) for path, _ in runs.values()]
    comparison = compare(files, toy_split, "test", replicates=50, seed=3)
    weak, better, best = comparison.methods
    assert [method.name for method in comparison.methods] == ["weak", "better", "best"]
    single = {name: mb.evaluate(scores, toy_split.video_ids("test"), toy_split, bootstrap=50, seed=3)
              for name, (_, scores) in runs.items()}  # fmt: skip
    for group in ("overall", "head", "medium", "tail"):
        assert weak.mAP[group].value == getattr(single["weak"].mAP, group)
        interval = single["better"].intervals.mAP[group]
        assert (better.mAP[group].low, better.mAP[group].high) == pytest.approx((interval.low, interval.high))
        seeds = [getattr(single[name].mAP, group) for name in ("best@1", "best@2")]
        assert best.mAP[group].value == pytest.approx(np.mean(seeds))
        spread = best.seed_spread[group]
        assert (spread.seeds, spread.low, spread.high) == (2, min(seeds), max(seeds))
        assert spread.std == pytest.approx(np.std(seeds, ddof=1))
    assert weak.seed_spread is None and weak.seeds == () and best.seeds == ("1", "2")


def test_differences_are_paired(runs, toy_split):
    files = [ComparedRun.from_argument(str(path)) for path, _ in runs.values()]
    comparison = compare(files, toy_split, "test", reference="better", replicates=200, seed=5)
    weak, better, best = comparison.methods
    assert better.difference is None and better.tally is None and better.ap_difference is None
    reference = samples_of(runs["better"][1], toy_split, 200, 5)
    change = samples_of(runs["weak"][1], toy_split, 200, 5) - reference
    for group, members in {"overall": range(12), **vars(toy_split.groups)}.items():
        low, high = np.quantile(change[:, members].mean(axis=1), [0.025, 0.975])
        got = weak.difference[group]
        assert (got.low, got.high) == pytest.approx((low, high))
        assert got.probability == np.mean(change[:, members].mean(axis=1) > 0)
        assert got.value == pytest.approx(weak.mAP[group].value - better.mAP[group].value)
    assert weak.difference["overall"].probability < 0.05 < 0.5 < best.difference["overall"].probability
    for c in range(12):
        low, high = np.clip(np.quantile(change[:, c], [0.025, 0.975]), -1, 1)
        assert (weak.ap_difference[c].low, weak.ap_difference[c].high) == pytest.approx((low, high))


def test_holm_s_correction_is_the_closed_test_of_all_subsets():
    generator = np.random.default_rng(4)
    for count in (1, 2, 5, 8):
        given = np.round(generator.random(count) ** 3, 2).tolist()
        subsets = [s for size in range(1, count + 1) for s in combinations(range(count), size)]
        expected = [max(min(1, len(s) * min(given[j] for j in s)) for s in subsets if i in s) for i in range(count)]
        assert correct_holm(given) == pytest.approx(expected)
    assert correct_holm([0.2, float("nan"), 0.01]) == pytest.approx([0.2, float("nan"), 0.02], nan_ok=True)
    assert correct_holm([]) == []


def test_the_corrected_probability_is_two_sided_and_per_group(runs, toy_split):
    files = [ComparedRun.from_argument(str(path)) for path, _ in runs.values()]
    comparison = compare(files, toy_split, "test", reference="better", replicates=50)
    weak, better, best = comparison.methods
    assert better.corrected is None
    for group in ("overall", "head", "medium", "tail"):
        better_than = [method.difference[group].probability for method in (weak, best)]
        small, large = sorted(max(2 * min(p, 1 - p), 2 / 50) for p in better_than)
        expected = [min(1, 2 * small), min(1, max(2 * small, large))]
        assert sorted(method.corrected[group] for method in (weak, best)) == pytest.approx(expected)
    frame = comparison.to_pandas().set_index(["method", "group"])["corrected"]
    assert frame["best", "tail"] == best.corrected["tail"] and np.isnan(frame["better", "tail"])


def test_another_reference_gives_what_a_comparison_with_it_gives(runs, toy_split):
    files = [ComparedRun.from_argument(str(path)) for path, _ in runs.values()]
    first = compare(files, toy_split, "test", replicates=20)
    for name in ("weak", "better", "best"):
        other = compare(files, toy_split, "test", replicates=20, reference=name)
        assert first.with_reference(name).to_json() == other.to_json()
    with pytest.raises(MeidbenchError, match="the reference 'meid' is not one of the runs: weak, better, best"):
        first.with_reference("meid")


def test_wins_ties_and_losses_are_counted_by_class(runs, toy_split, tmp_path):
    path, scores = runs["better"]
    changed = scores.copy()
    changed[:, :3] = runs["weak"][1][:, :3]
    other = mb.write_predictions(tmp_path / "mixed.parquet", toy_split.video_ids("test"), changed, toy_split, "test")
    files = [ComparedRun.from_argument(str(path)), ComparedRun.from_argument(str(other))]
    mixed = compare(files, toy_split, "test", replicates=10).methods[1]
    lower = sum(mixed.ap_difference[c].value < 0 for c in range(3))
    tally = mixed.tally["overall"]
    assert (tally.wins, tally.ties, tally.losses) == (3 - lower, 9, lower)
    assert sum(sum(vars(mixed.tally[g]).values()) for g in ("head", "medium", "tail")) == 12


def test_a_run_compared_with_itself_is_all_ties(runs, toy_split):
    path = runs["weak"][0]
    comparison = compare(
        [ComparedRun.from_argument(f"a={path}"), ComparedRun.from_argument(f"b={path}")],
        toy_split,
        "test",
        replicates=20,
    )
    difference = comparison.methods[1].difference["tail"]
    assert (difference.value, difference.low, difference.high, difference.probability) == (0, 0, 0, 0.5)
    assert comparison.methods[1].tally["overall"].ties == 12


@pytest.mark.parametrize(("names", "reference", "complaint"), [
    (["weak", "better"], "meid", "the reference 'meid' is not one of the runs: weak, better"),
    (["weak", "weak"], None, "two runs have the same name"),
])  # fmt: skip
def test_wrong_names_are_refused(runs, toy_split, names, reference, complaint):
    files = [ComparedRun.from_argument(str(runs[name][0])) for name in names]
    with pytest.raises(MeidbenchError, match=complaint):
        compare(files, toy_split, "test", reference=reference, replicates=5)


def test_names_come_from_the_file_or_from_the_call(tmp_path):
    assert ComparedRun.from_argument("out/x@3.parquet") == ComparedRun(
        "x", "3", (tmp_path / "x").relative_to(tmp_path).parent / "out/x@3.parquet"
    )
    assert ComparedRun.from_argument("ours=a=b.npz").scores.name == "a=b.npz"
    (tmp_path / "a=b.npz").write_text("")
    assert ComparedRun.from_argument(str(tmp_path / "a=b.npz")).method == "a=b"
    with pytest.raises(MeidbenchError, match="has no name"):
        ComparedRun.from_argument("=x.npz")


def test_a_file_name_that_is_not_text_is_accepted(run, runs, toy_split_file, tmp_path):
    odd, html = tmp_path / "odd\udcff.npz", tmp_path / "r.html"
    given = mb.read_predictions(runs["weak"][0])
    with odd.open("wb") as stream:
        np.savez(stream, video_ids=np.array(given.video_ids), scores=given.scores)
    outcome = run("compare", odd, "--split", toy_split_file, "--bootstrap", "5", "--html", html, "--json", "-")
    assert outcome.exit_code == 0, outcome.exception
    assert json.loads(outcome.stdout)["methods"][0]["name"] == "odd?" and "odd?" in html.read_text(encoding="utf-8")
    # The Parquet library refuses such a name.
    odd.write_bytes(runs["weak"][0].read_bytes())
    assert run("compare", odd, "--split", toy_split_file).exit_code == 1


def test_the_command_writes_every_form(run, runs, toy_split_file, tmp_path):
    paths = [path for path, _ in runs.values()]
    files = {name: tmp_path / f"out.{name}" for name in ("json", "latex", "html")}
    arguments = [part for name, path in files.items() for part in (f"--{name}", path)]
    outcome = run("compare", *paths, "--split", toy_split_file, "--bootstrap", "50", *arguments)
    assert outcome.exit_code == 0, outcome.stderr
    for text in ("over seeds", "Holm", "win/tie/loss", "reference", "50 replicates"):
        assert text in outcome.stdout
    content = json.loads(files["json"].read_text())
    assert content["reference"] == "weak" and len(content["methods"]) == 3
    assert "\\toprule" in files["latex"].read_text() and files["html"].read_text().startswith("<!DOCTYPE html>")
    first = {name: path.read_bytes() for name, path in files.items()}
    run("compare", *paths, "--split", toy_split_file, "--bootstrap", "50", *arguments)
    assert {name: path.read_bytes() for name, path in files.items()} == first
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_the_readme_shows_what_the_command_prints(run, toy_split, toy_split_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy-out").mkdir()
    shutil.copy(toy_split_file, "toy-out/toylt.parquet")
    labels = toy_split.labels("test")
    for name, knowledge, seed in (("bce", 1.0, 0), ("meid@1", 1.5, 1), ("meid@2", 1.5, 2)):
        scores = np.random.default_rng(seed).normal(size=labels.shape) + knowledge * labels
        mb.write_predictions(f"{name}.parquet", toy_split.video_ids("test"), scores, toy_split, "test")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    arguments, shown = re.search(r"^\$ meidbench (compare .*)\n([^`]*)", readme, re.MULTILINE).groups()
    outcome = run(*arguments.split())
    assert outcome.stderr + outcome.stdout == shown


@pytest.mark.parametrize("names", [("reference", "twelve@1", "twelve@2"), ("a" * 12, "b" * 12, "c" * 12)])
def test_a_comparison_fits_a_terminal(run, runs, toy_split_file, names):
    paths = [f"{name}={path}" for name, (path, _) in zip(names, list(runs.values())[1:], strict=True)]
    outcome = run("compare", *paths, "--split", toy_split_file, "--bootstrap", "50")
    assert outcome.exit_code == 0, outcome.stderr
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_a_run_that_cannot_be_scored_is_named(run, runs, toy_split_file, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    outcome = run("compare", runs["weak"][0], tmp_path / "broken.npz", "--split", toy_split_file)
    assert outcome.exit_code == 1 and outcome.stdout == ""
    assert "run broken (" in outcome.stderr and "not a readable NPZ archive" in outcome.stderr


def test_a_single_run_has_no_differences(run, runs, toy_split_file):
    outcome = run("compare", runs["weak"][0], "--split", toy_split_file, "--bootstrap", "10")
    assert outcome.exit_code == 0 and "difference" not in outcome.stdout


def test_runs_with_and_without_a_seed_are_not_mixed(runs, toy_split):
    path = runs["weak"][0]
    with pytest.raises(MeidbenchError, match="x has runs with and without a seed"):
        compare(
            [ComparedRun.from_argument(f"x={path}"), ComparedRun.from_argument(f"x@1={path}")],
            toy_split,
            "test",
            replicates=5,
        )
    with pytest.raises(MeidbenchError, match="at least one run"):
        compare([], toy_split, "test")


def test_averaging_equal_seeds_is_a_tie_despite_rounding(runs, toy_split):
    path = runs["weak"][0]
    files = [ComparedRun.from_argument(f"{name}={path}") for name in ("r", "c@1", "c@2", "c@3")]
    difference = compare(files, toy_split, "test", replicates=30).methods[1].difference["overall"]
    assert difference.probability == 0.5


def test_results_do_not_share_a_file(run, runs, toy_split_file, tmp_path):
    target = tmp_path / "o"
    outcome = run("compare", runs["weak"][0], "--split", toy_split_file, "--json", target, "--latex", target)
    assert outcome.exit_code == 2 and "needs its own file" in outcome.stderr and not target.exists()
