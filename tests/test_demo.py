"""The command ``demo``, and its invented split."""

import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from meidbench.cli import main
from meidbench.cli.parameters import report
from meidbench.errors import SplitError
from meidbench.features.simulation import simulate_split
from meidbench.splits.split import load_split, write_split

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo as the README runs it: its outcome and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "demo-out"
    outcome = CliRunner().invoke(main, ["demo", "--out", str(folder)])
    assert outcome.exit_code == 0, outcome.output
    return outcome, folder


def test_demo_runs_to_its_report_and_resumes(run, shown):
    outcome, out = shown
    assert "simulated features" in outcome.stdout.splitlines()[0]
    overall = dict(re.findall(r"^(\w+) +(0\.\d{4}) \[", outcome.stdout, re.MULTILINE)[:6])
    assert list(overall) == ["bce", "ldam", "eql", "cbs", "framestack", "linear_probe"]
    page = (out / "report.html").read_text()
    for method, value in overall.items():
        result = json.loads((out / method / "result-test.json").read_text())
        assert f"{result['mAP']['overall']:.4f}" == value and method in page
        epochs = 6 if method == "linear_probe" else 12  # a value of C each
        assert f"{method}: epoch {epochs} of {epochs}: loss" in outcome.stderr
        assert json.loads((out / method / "log.jsonl").read_text().splitlines()[-1])["test"] == result["mAP"]
    again = run("demo", "--out", out)
    assert again.stdout == outcome.stdout and again.stderr.count("is finished") == 6
    other = run("demo", "--out", out, "--epochs", 15, "--bootstrap", 20)
    assert other.exit_code == 1 and "schedule.epochs" in other.stderr and "schedule.milestones" in other.stderr
    before = (out / "simulatedlt.parquet").read_bytes()
    seed = run("demo", "--out", out, "--seed", 1)
    assert seed.exit_code == 1 and "of another seed" in seed.stderr
    assert (out / "simulatedlt.parquet").read_bytes() == before


NUMBER = re.compile(r"[+-]?\d+\.\d+|\d+/\d+/\d+")


def leeway(number: str) -> float:
    """How far a number may lie from the README's: of an mAP, of a bound or a probability, of a count of classes."""
    return 3 if "/" in number else 0.002 if len(number.partition(".")[2]) == 4 else 0.03


def form_of(text: str) -> str:
    """A text without its numbers, the marks that depend on them, and the widths of columns."""
    return re.sub(r"(?m)^ | $", "", re.sub(r" +|-{2,}", " ", re.sub(r"(?<=\])\*|[<>](?=#)", "", NUMBER.sub("#", text))))


def test_the_readme_shows_the_output_of_the_demo(shown):
    text = (ROOT / "README.md").read_text()
    printed = re.search(r"```text\n(simulatedlt .*?)```", text, re.DOTALL)[1]
    output = shown[0].stdout
    assert form_of(printed) == form_of(output)
    # For the same seed, PyTorch 2.4 draws other dropout masks than 2.13.
    pinned = f"torch=={torch.__version__.partition('+')[0]}" in (ROOT / "constraints.txt").read_text().splitlines()
    for theirs, ours in zip(NUMBER.findall(printed), NUMBER.findall(output), strict=True):
        here, there = ([float(part) for part in number.split("/")] for number in (ours, theirs))
        assert here == pytest.approx(there, abs=leeway(theirs) * (1 if pinned else 10)), (theirs, ours)
    assert "another number of threads changes the last digits" in text


def test_a_note_is_told_once_per_command():
    @click.command
    def command() -> None:
        for line in ("note: once", "epoch 1", "note: once", "epoch 1", "note: other"):
            report(line)

    for _ in range(2):
        assert CliRunner().invoke(command).stderr.splitlines() == ["note: once", "epoch 1", "epoch 1", "note: other"]


def test_a_page_of_others_is_not_replaced(run, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    outcome = run("demo", "--out", tmp_path, "--epochs", 2)
    assert outcome.exit_code == 2 and "not of a demonstration" in outcome.stderr
    assert (tmp_path / "report.html").read_text() == "mine"


def test_an_invented_split_is_long_tailed_and_whole(tmp_path):
    split = simulate_split((500, 60, 90), num_classes=40, head_above=60, tail_up_to=15, seed=3)
    counts = split.train_counts
    assert counts.max() / counts.min() > 20
    assert min(len(group) for group in (split.groups.head, split.groups.medium, split.groups.tail)) >= 5
    assert split.positives("val").min() >= 4 and split.positives("test").min() >= 4
    for subset in ("train", "val", "test"):
        # Labels and segments give the same set of classes.
        rows = split.rows(subset).to_pylist()
        assert all({part["label"] for part in row["segments"]} == set(row["labels"]) for row in rows)
        assert all(
            0 <= part["start_s"] < part["end_s"] <= row["length_s"] + 0.01 for row in rows for part in row["segments"]
        )
    again = load_split(write_split(split, tmp_path / "s.parquet"))
    assert again.digest == simulate_split((500, 60, 90), num_classes=40, head_above=60, tail_up_to=15, seed=3).digest
    assert again.digest != simulate_split((500, 60, 90), num_classes=40, head_above=60, tail_up_to=15, seed=4).digest


def test_labels_are_drawn_by_weight():
    split = simulate_split((4000, 10, 10), num_classes=10, seed=0)
    shares = split.train_counts / 4000
    assert (np.diff(shares) < 0.02).all() and shares[0] > 0.8 > 0.3 > shares[-1]


@pytest.mark.parametrize("arguments", [((0, 1, 1), 10), ((5, 5, 5), 2)])
def test_an_empty_split_is_refused(arguments):
    with pytest.raises(SplitError, match="at least"):
        simulate_split(*arguments)
