"""The tables of docs/inputs.md: each example runs, and what it writes is read as the page says, or refused."""

import gzip
import json
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import meidbench as mb

PAGE = (Path(__file__).parents[1] / "docs" / "inputs.md").read_text()


def examples_of(section):
    """Return form -> example of the table of a section: code spans, one per line of the example, in the last column."""
    part = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    text = next(entry for entry in part if entry.startswith(section))
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {form.strip(): re.findall(r"`([^`]+)`", example) for form, *_, example in rows}


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
    names = {
        "ids": ids,
        "scores": scores,
        "frame": frame,
        "split": toy_split,
        "np": np,
        "pd": pd,
        "json": json,
        "Path": Path,
    }
    exec("\n".join(examples_of("Predictions")[form]), names)
    (path,) = [path for path in Path().iterdir() if path.name != "ids.txt"]
    option = ["--ids", "ids.txt"] if Path("ids.txt").exists() else []
    outcome = run("evaluate", path, "--split", toy_split_file, "--json", "r.json", *option)
    assert outcome.exit_code == 0, outcome.stderr
    got, want = json.loads(Path("r.json").read_text()), json.loads(mb.evaluate(scores, ids, toy_split).to_json())
    if path.suffix in (".csv", ".tsv", ".txt", ".jsonl", ""):  # text has no type of numbers
        assert (
            got["diagnostics"].pop("score_dtype") == "float64" and want["diagnostics"].pop("score_dtype") == "float32"
        )
    assert len(got.pop("warnings")) == ("another order" in form) and want.pop("warnings") == []
    assert got == want


OPTIONS = dict(re.findall(r"^\| (.+?) \| `(--.+?)` \| ", PAGE, flags=re.MULTILINE))


@pytest.mark.filterwarnings("ignore:note.*other axes than T x D")
@pytest.mark.parametrize("form", examples_of("Features"))
def test_features(form, toy_split, run):
    import h5py

    generator = np.random.default_rng(0)
    rows = {name: generator.normal(size=(5, 4)).astype(np.float32) for name in toy_split.video_ids("test")}
    Path("features").mkdir()
    with h5py.File("f.h5", "w") as file:
        exec("\n".join(examples_of("Features")[form]), {"rows": rows, "np": np, "file": file})
        path = "f.h5" if len(file) else "packed.h5" if Path("packed.h5").exists() else "features"
    options = shlex.split(OPTIONS.get(form, ""))
    naming = {name.lstrip("-"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    data = mb.FeatureDataset(toy_split, "test", features=mb.open_features(path, **naming), frames=5)
    assert all(np.array_equal(sample["features"], rows[sample["video_id"]]) for sample in data)
    assert run("verify-features", path, *options).exit_code == 0


@pytest.mark.parametrize("form", examples_of("Labels"))
def test_labels(form, run):
    import pandas as pd

    *prepare, command = lines = examples_of("Labels")[form]
    if command.startswith("mb."):
        exec("\n".join(lines), {"mb": mb, "pd": pd})
    else:
        for line in prepare:
            subprocess.run(["sh", "-c", line.replace("python -c", f"{sys.executable} -c")], check=True)
        outcome = run(*shlex.split(command)[1:])
        assert outcome.exit_code == 0, outcome.stderr
    assert mb.load_split("mine.parquet").num_classes == 2


# --- what is not read: each row of the table, and its remedy in the first two lines of the message ---


def rows_of_refusals():
    text = PAGE.split("## Not read")[1]
    return [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in text.splitlines() if "|" in row][2:]


def write_zip(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"")


def write_torch(path, content):
    import torch

    torch.save(content, path)


def write_checkpoint():
    Path("RUN").mkdir()
    Path("RUN/config.json").write_text("{}")
    write_torch("RUN/best.pt", {})
    return "RUN/best.pt"


def write_array(path, save):
    with path.open("wb") as stream:
        save(stream)


def write_features():
    from meidbench.features.packing import pack

    Path("rows").mkdir()
    np.save("rows/a.npy", np.ones((3, 2), np.float32))
    return pack("rows", "features.h5").path


def as_objects(scores):
    return np.asarray(scores, dtype=object)


# The beginning of the content in the table -> writes such a file of ids and scores; may return another path.
WRITERS = {
    "pickle": lambda path, ids, scores: path.write_bytes(pickle.dumps(list(scores))),
    "file of `torch": lambda path, ids, scores: write_torch(path, {"ids": ids}),
    "checkpoint": lambda path, ids, scores: write_checkpoint(),
    "`.npy` of all": lambda path, ids, scores: write_array(path, lambda stream: np.save(stream, scores)),
    "`.npz` of all": lambda path, ids, scores: write_array(
        path, lambda stream: np.savez(stream, **dict(zip(ids, scores, strict=True)))
    ),
    "`.npy`": lambda path, ids, scores: write_array(path, lambda stream: np.save(stream, as_objects(scores))),
    "`.npz`": lambda path, ids, scores: write_array(
        path, lambda stream: np.savez(stream, video_ids=np.array(ids), scores=as_objects(scores))
    ),
    "JSON, an object of ids": lambda path, ids, scores: path.write_text(
        json.dumps({"video_ids": ids, "scores": scores.tolist()})
    ),
    "JSON, an object per class": lambda path, ids, scores: path.write_text(
        json.dumps({f"class_{place}": dict(zip(ids, row, strict=True)) for place, row in enumerate(scores.T.tolist())})
    ),
    "result of": lambda path, ids, scores: path.write_text(
        mb.evaluate(scores, ids, mb.load_split("split.parquet")).to_json()
    ),
    "table with one row per video and class": lambda path, ids, scores: path.write_text(
        "video_id,class,score\n" + "".join(f"{name},{place},0\n" for name in ids for place in range(12))
    ),
    "JSON, an object": lambda path, ids, scores: path.write_text(
        json.dumps(dict(zip(ids, scores.tolist(), strict=True)))
    ),
    "JSON, a list of lists": lambda path, ids, scores: path.write_text(json.dumps(scores.tolist())),
    "JSON, a list of objects": lambda path, ids, scores: path.write_text(
        json.dumps([{"video_id": name, "scores": row} for name, row in zip(ids, scores.tolist(), strict=True)])
    ),
    "other JSON": lambda path, ids, scores: path.write_text("{'a': [1.0]}"),
    "Excel": lambda path, ids, scores: write_zip(path, "[Content_Types].xml", "xl/workbook.xml"),
    "Arrow": lambda path, ids, scores: path.write_bytes(b"ARROW1\0\0"),
    "archive": lambda path, ids, scores: path.write_bytes(gzip.compress(b"a 1 2")),
    "text in UTF-16": lambda path, ids, scores: path.write_text("video_id,0\n", encoding="utf-16"),
    "web page": lambda path, ids, scores: path.write_text("\n<!DOCTYPE html><title>404</title>"),
    "image": lambda path, ids, scores: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "video": lambda path, ids, scores: path.write_bytes(b"\0\0\0\x20ftypisom"),
    "split file": lambda path, ids, scores: "split.parquet",
    "feature file": lambda path, ids, scores: write_features(),
    "prediction file": lambda path, ids, scores: mb.write_predictions(path, ids, scores),
    "table": lambda path, ids, scores: path.write_text("video_id,subset,labels\n"),
}
COMMANDS = {
    "predictions": ["evaluate", "{}", "--split", "split.parquet"],
    "split": ["audit", "{}"],
    "features": ["verify-features", "{}"],
}


@pytest.fixture
def refuse(given, toy_split, run):
    """Write a kind of content, give it to a command, and return the lines of the refusal."""
    from meidbench.splits.split import write_split

    def call(content, given_as):
        write_split(toy_split, Path("split.parquet"))
        write = next(write for start, write in WRITERS.items() if content.startswith(start))
        made = write(Path("given"), *given)
        path = made if isinstance(made, str | Path) else "given"
        outcome = run(*(part.format(path) for part in COMMANDS[given_as]))
        assert outcome.exit_code == 1 and outcome.stderr.startswith(f"Error: {path}")
        return outcome.stderr.splitlines()

    return call


@pytest.mark.parametrize(("content", "given_as", "remedy"), rows_of_refusals())
def test_what_is_not_read_is_refused_with_its_remedy(content, given_as, remedy, refuse):
    told = " ".join(refuse(content, given_as)[:2])
    for words in re.findall(r"`([^`]+)`", remedy) or [remedy]:
        assert words in told or words.capitalize().replace("utf", "UTF") in told


@pytest.mark.parametrize("content", [row[0] for row in rows_of_refusals() if "`meidbench.write_predictions(" in row[2]])
def test_the_python_of_a_remedy_writes_the_scores(content, refuse, given, toy_split, run):
    ids, scores = given
    line = refuse(content, "predictions")[1]
    names = {"video_ids": ids, "scores": scores}  # the code imports the rest
    if "objects" in content:
        names["scores"] = as_objects(scores)
    exec(line.strip(), names)
    assert run("evaluate", "run.parquet", "--split", "split.parquet", "--json", "r.json").exit_code == 0
    want = json.loads(mb.evaluate(scores, ids, toy_split).to_json())
    assert json.loads(Path("r.json").read_text())["mAP"] == want["mAP"]
