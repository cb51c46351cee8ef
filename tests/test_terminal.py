"""What others wrote reaches a terminal only with its control characters as escapes: probes of every way out."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from material import TOY, TOY_MANIFEST
from test_download import Site, described

from meidbench.annotations import Annotations
from meidbench.errors import MeidbenchError, bullet_list, escape_controls, escape_json, first_few
from meidbench.predictions.values import write_predictions
from meidbench.splits.manifests import load_manifest
from meidbench.splits.split import Split, load_split, write_split

ROOT = Path(__file__).parents[1]
EVIL = "v\x1b[2J\x9b1m\u202eabc\u2066\x07\r\x7f"
FILE = "v\x1b[2J\u202e\x07"  # as a name of a file
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
VIDEOS = {"train": 6, "val": 2, "test": 2}


def table(path, name=EVIL, label="0", **more):
    rows = [
        {"video_id": f"{name}{subset}{n}", "subset": subset, "labels": label if n else "1", **more}
        for subset, count in VIDEOS.items()
        for n in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def evil_split(folder):
    """Write a split file with such ids, class names and a name."""
    line = EVIL.replace("\r", "")
    annotations = Annotations((f"swim{line}", "run\x1b[1m"))
    for subset, count in VIDEOS.items():
        for number in range(count):
            annotations.append(f"{EVIL}{subset}{number}", subset, (int(number == 0),), 1.0)
    split = Split.from_annotations(
        annotations, annotations.sources, dataset=f"n{FILE}", variant="custom", head_above=3, tail_up_to=1
    )
    return write_split(split, folder / "split.parquet")


def importing(path, out, *options):
    return ["import-split", path, "--out", out, "--head-above", 3, "--tail-up-to", 1, *options]


def features(folder, ids=("a",), content=None):
    folder.mkdir(exist_ok=True)
    for name in ids:
        np.save(folder / f"{name}.npy", np.ones((3, 4), np.float16) if content is None else content)
    return folder


def predictions(run, folder, *, ids=None, metadata=None, scores=None):
    split = load_split(evil_split(folder))
    ids = split.video_ids("test") if ids is None else ids
    values = np.random.default_rng(0).random((len(ids), 2)) if scores is None else scores
    path = write_predictions(folder / "p.parquet", split.video_ids("test"), np.zeros((2, 2)), split, "test")
    schema = pq.read_schema(path)
    content = pa.table({"video_id": ids, "scores": pa.array(values.tolist(), pa.list_(pa.float64(), 2))})
    kept = {key.decode(): value.decode() for key, value in schema.metadata.items()} if metadata is None else metadata
    pq.write_table(content.replace_schema_metadata(kept), path)
    return [path, "--split", folder / "split.parquet"]


def packed(run, folder, **recipe):
    out = folder / "packed.h5"
    assert run("pack-features", features(folder / "npy"), "--out", out, "--backbone", "x\x1b[2J").exit_code == 0
    return out


def grouped(folder):
    with h5py.File(folder / "g.h5", "w") as file:
        file.create_group("features")[FILE] = np.full((2, 3), np.nan)
        file[f"other{FILE}"] = [1]
    return folder / "g.h5"


def manifest(folder, old, new):
    text = Path(TOY_MANIFEST).read_text()
    assert old in text
    shutil.copy(TOY / "toylt.assignment.json", folder / "m.assignment.json")
    (folder / "m.toml").write_text(text.replace(old, new))
    return folder / "m.toml"


def reason_phrase(run, folder, monkeypatch):
    site = Site()
    try:

        def answer(handler):
            handler.wfile.write(f"HTTP/1.0 404 {EVIL[:8]}\r\nContent-Length: 0\r\n\r\n".encode("latin-1", "replace"))

        site.answers["/train.lst"] = [answer]
        given = replace(load_manifest("videolt"), downloads=(described(f"{site.url}/train.lst"),))
        monkeypatch.setattr("meidbench.splits.manifests.load_manifest", lambda name: given)
        return run("download", "videolt", "--to", folder, "--accept-licence")
    finally:
        site.close()


def damaged_toy(folder, file, old, new):
    shutil.copytree(TOY, folder / "toy")
    text = (folder / "toy" / file).read_text()
    (folder / "toy" / file).write_text(text.replace(old, new, 1))
    return ["build-splits", TOY_MANIFEST, "--annotations", folder / "toy", "--out", folder]


def checkpoint(run, folder, name="best.pt"):
    (folder / f"run{FILE}").mkdir()
    (folder / f"run{FILE}" / "config.json").write_text(json.dumps({f"method{EVIL}": EVIL}))
    (folder / f"run{FILE}" / name).write_bytes(b"no")
    return ["predict", folder / f"run{FILE}", "--out", folder / "p.parquet"]


def csv(folder, text):
    (folder / f"t{FILE}.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / f"t{FILE}.csv"


TRAIN = ["--method", "bce", "--device", "cpu"]
# Name of the probe -> the arguments of the command.
PROBES = {
    "an id in a split, audited": lambda run, f: ["audit", evil_split(f)],
    "an id in a split, audited as JSON": lambda run, f: ["audit", evil_split(f), "--json"],
    "a name in the statistics": lambda run, f: ["stats", evil_split(f)],
    "a name in the statistics as JSON": lambda run, f: ["stats", evil_split(f), "--json"],
    "ids that occur twice": lambda run, f: importing(
        csv(f, f"video_id,subset,labels\n{FILE},val,0\n{FILE},val,0\n"), f / "s"),
    "a label in a table": lambda run, f: importing(table(f / "t.json", "v", EVIL), f / "s"),
    "a column of a table": lambda run, f: importing(csv(f, f"video_id,{FILE}\n1,2\n"), f / "s"),
    "a subset in a table": lambda run, f: importing(csv(f, f"video_id,subset,labels\na,{FILE},0\n"), f / "s"),
    "a name of a table": lambda run, f: importing(csv(f, "x"), f / "s"),
    "names of classes twice": lambda run, f: importing(
        table(f / "t.json", "v"), f / "s", "--class-names", csv(f, f"{FILE}\n{FILE}\n")),
    "an id in official annotations": lambda run, f: damaged_toy(f, "Toy_v1_train.csv", "\nTOY", "\n\x1b[2JTOY"),
    "a header of official annotations": lambda run, f: damaged_toy(f, "Toy_v1_train.csv", "id,", "\x1b[2Jid,"),
    "a class of official annotations": lambda run, f: damaged_toy(f, "Toy_v1_classes.txt", "c000", "c\x1b[2J000"),
    "a key of a manifest": lambda run, f: ["build-splits", manifest(f, "title = ", '"k\\u001b[2J" = 1\ntitle = ')],
    "a title of a manifest": lambda run, f: [
        "build-splits", manifest(f, "title = \"", "title = \"\\u001b[2J"), "--annotations", TOY, "--out", f],
    "a damaged manifest": lambda run, f: ["build-splits", manifest(f, "title = ", "\x1b[2J = ")],
    "a key of --set in a plan": lambda run, f: [
        "build-splits", "charadeslt", "--variant", "pareto", "--set", f"{EVIL}=1"],
    "an unknown dataset": lambda run, f: ["build-splits", EVIL],
    "an unknown option": lambda run, f: [f"--{EVIL}"],
    "an unknown command": lambda run, f: [EVIL],
    "an unknown option of a command": lambda run, f: ["stats", f"--x{EVIL}"],
    "a missing file": lambda run, f: ["evaluate", f / FILE, "--split", "charadeslt"],
    "ids of predictions": lambda run, f: ["evaluate", *predictions(run, f, ids=[f"a{EVIL}", "b"])],
    "scores of predictions": lambda run, f: ["evaluate", *predictions(run, f, scores=np.full((2, 2), np.nan))],
    "metadata of predictions": lambda run, f: [
        "evaluate", *predictions(run, f, metadata={"meidbench": json.dumps({"dataset": EVIL, "subset": EVIL})})],
    "the title of an evaluation": lambda run, f: ["evaluate", *predictions(run, f)],
    "an evaluation as JSON": lambda run, f: ["evaluate", *predictions(run, f), "--json", "-"],
    "a name of a compared run": lambda run, f: [
        "compare", f"{EVIL}\n={predictions(run, f)[0]}", f"b={f / 'p.parquet'}", "--split", f / "split.parquet",
        "--bootstrap", 2],
    "the reference of a comparison": lambda run, f: ["compare", *predictions(run, f), "--reference", EVIL],
    "a header of predictions": lambda run, f: [
        "evaluate", csv(f, f"video_id,{FILE}\na,1\n"), "--split", evil_split(f)],
    "names in a folder of features": lambda run, f: ["verify-features", features(f / "npy", [FILE], np.zeros(3))],
    "an id of features as JSON": lambda run, f: [
        "verify-features", features(f / "npy", [FILE], np.full((2, 3), np.nan)), "--json", "-"],
    "ids and reasons of packed features": lambda run, f: [
        "pack-features", features(features(f / "npy", ["a"]), [FILE], np.zeros(3)), "--out", f / "o.h5"],
    "a group of a foreign HDF5 file": lambda run, f: ["verify-features", grouped(f)],
    "a recipe of a feature file": lambda run, f: ["verify-features", packed(run, f)],
    "an expected recipe": lambda run, f: ["verify-features", packed(run, f), "--recipe", f"{EVIL}={EVIL}"],
    "features that a split lacks": lambda run, f: [
        "verify-features", features(f / "npy"), "--split", evil_split(f)],
    "features that a training lacks": lambda run, f: [
        "train", "--split", evil_split(f), "--features", features(f / "npy"), *TRAIN, "--out", f / FILE],
    "an unknown key of a training": lambda run, f: [
        "train", "--split", evil_split(f), "--features", features(f / "npy"), *TRAIN, "--set", f"{EVIL}=1"],
    "an unknown method": lambda run, f: [
        "train", "--split", evil_split(f), "--features", features(f / "npy"), "--method", EVIL],
    "an unknown device": lambda run, f: ["demo", "--out", f / FILE, "--epochs", EVIL],
    "a configuration of a run": checkpoint,
    "a row of a table": lambda run, f: ["reproduce", "table2", "--row", EVIL],
    "names of videos": lambda run, f: [
        "extract-features", videos(f), "--out", f / "o.h5", "--split", evil_split(f)],
    "a shard": lambda run, f: ["extract-features", f, "--out", f / "o.h5", "--shard", EVIL],
}  # fmt: skip
# The message names the place alone.
SILENT = ("a damaged manifest",)


def videos(folder):
    (folder / "videos").mkdir()
    for name in (f"{FILE}.mp4", f"{FILE}.mkv"):
        (folder / "videos" / name).write_bytes(b"no")
    return folder / "videos"


@pytest.mark.parametrize("probe", PROBES)
def test_no_control_character_reaches_the_terminal(run, tmp_path, probe):
    outcome = run(*PROBES[probe](run, tmp_path))
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.exception
    for text in (outcome.stdout, outcome.stderr):
        assert FORBIDDEN.search(text) is None, repr(text)
    # The name is shown, quoted.
    assert bool(re.search(r"\\x1b|\\u001b", outcome.output)) == (probe not in SILENT), outcome.output


def test_a_reason_of_a_server_is_quoted(run, tmp_path, monkeypatch):
    outcome = reason_phrase(run, tmp_path, monkeypatch)
    assert outcome.exit_code == 1 and r"404 v\x1b[2J" in outcome.stderr
    assert FORBIDDEN.search(outcome.output) is None


def test_json_keeps_its_content(run, tmp_path):
    arguments = predictions(run, tmp_path)
    shown = run("evaluate", *arguments, "--json", "-")
    assert shown.exit_code == 0
    run("evaluate", *arguments, "--json", tmp_path / "r.json")
    content = json.loads(shown.stdout)
    assert content == json.loads((tmp_path / "r.json").read_text())
    assert any(EVIL[:8] in entry["name"] for entry in content["per_class"])
    every = " ".join(map(chr, [*range(0x2100), *range(0xD7F0, 0xE010)]))  # no two halves meet
    assert json.loads(escape_json(json.dumps(every, ensure_ascii=False))) == every


def test_errors_and_lists_are_quoted_for_python_users():
    assert str(MeidbenchError(f"one\n{EVIL}")) == "one\n" + escape_controls(EVIL)
    assert first_few(["a\nb"]) == r"a\nb" and bullet_list(["a\nb"]) == r"  - a\nb"
    assert escape_controls("\udc80\u2028é") == r"\udc80\u2028é"


@pytest.mark.skipif(os.name == "nt", reason="names are bytes")
def test_a_name_that_is_not_text_is_quoted(run, tmp_path):
    folder = features(tmp_path / "npy")
    shutil.copy(folder / "a.npy", os.fsencode(folder) + b"/b\x80.npy")
    outcome = run("verify-features", folder)
    assert FORBIDDEN.search(outcome.output) is None
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit)


def test_text_goes_out_in_one_place():
    """Commands print through ``echo``; every other print would need its own quoting."""
    call = re.compile(r"\bclick\.s?echo\((?!escape_)|(?<![.\w])print\(|\bsys\.(stdout|stderr)\.write|\bclick\.secho\(")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("meidbench", "baselines", "splits")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if call.search(line) and not line.lstrip().startswith((">>>", "..."))
    ]
    # The process that reads foreign HDF5 files answers its parent.
    assert [line for line in found if "files.py" not in line] == []
