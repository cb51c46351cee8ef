"""The tables of docs/inputs.md: each example runs, and what it writes is read as the page says."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

import meidbench as mb

PAGE = (Path(__file__).parents[1] / "docs" / "inputs.md").read_text()


def examples_of(section):
    """Return form -> example of the table of a section: code spans, one per line of the example."""
    part = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    text = next(entry for entry in part if entry.startswith(section))
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {form.strip(): re.findall(r"`([^`]+)`", example) for form, example in rows}


def test_an_example_is_two_lines_long():
    assert all(1 <= len(lines) <= 2 for section in ("Pred", "Feat", "Lab") for lines in examples_of(section).values())


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def given(toy_split):
    ids = toy_split.video_ids("test")[::-1]
    return ids, np.random.default_rng(0).normal(size=(len(ids), toy_split.num_classes)).astype(np.float32)


@pytest.mark.parametrize("form", examples_of("Predictions"))
def test_predictions(form, given, toy_split, toy_split_file, run):
    import pandas as pd

    ids, scores = given
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=toy_split.class_names)
    names = {"ids": ids, "scores": scores, "frame": frame, "split": toy_split}
    exec("\n".join(examples_of("Predictions")[form]), names)
    (path,) = Path().iterdir()
    run("evaluate", path, "--split", toy_split_file, "--json", "r.json")
    want = mb.evaluate(scores, ids, toy_split).to_json()
    assert Path("r.json").read_text() == want


@pytest.mark.parametrize("form", examples_of("Features"))
def test_features(form, toy_split):
    from meidbench.loading.datasets import FeatureDataset

    generator = np.random.default_rng(0)
    rows = {name: generator.normal(size=(5, 4)).astype(np.float32) for name in toy_split.video_ids("test")}
    exec("\n".join(examples_of("Features")[form]), {"rows": rows, "np": np})
    (path,) = Path().iterdir()
    data = FeatureDataset(toy_split, "test", features=path, frames=5)
    assert all(np.array_equal(sample["features"], rows[sample["video_id"]]) for sample in data)


@pytest.mark.parametrize("form", examples_of("Labels"))
def test_labels(form, run):
    *prepare, command = examples_of("Labels")[form]
    for line in prepare:
        subprocess.run(["sh", "-c", line], check=True)
    run(*shlex.split(command)[1:])
    assert mb.load_split("mine.parquet").num_classes == 2
