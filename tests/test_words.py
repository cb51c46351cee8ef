"""Word features: the words of a video's description, their rows, and the columns that are not read."""

import csv
import hashlib
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from material import REAL, TOY, TOY_MANIFEST, real_data

from meidbench.cli import main
from meidbench.errors import AnnotationError, FeatureError
from meidbench.evaluation.evaluate import evaluate
from meidbench.features import open_features
from meidbench.features.simulation import simulate_features
from meidbench.features.verification import verify
from meidbench.features.words import make_word_features, word_vector
from meidbench.names import WATERMARKS
from meidbench.predictions.align import read_predictions

WATERMARK = "PROXY: word features, no vision; numbers say nothing of video recognition"
TEXTS = ["A box, a BOX; the man's box.", "the box", "", " - ;", "box 2box re-box"]
SCRIPT = "A man opens the box."


def vector_by_loop(word, dim):
    """The formula of the documentation, number by number."""
    stream = hashlib.shake_256(word.encode()).digest(12 * dim)
    return [(sum(stream[12 * j : 12 * j + 12]) - 1530) / 256 for j in range(dim)]


def words_by_loop(text):
    """The words of an ASCII text, one character after the other."""
    words, word = [], ""
    for character in text.lower() + " ":
        if character.isalnum() or (character == "'" and word):
            word += character
        elif word:
            words.append(word)
            word = ""
    return [word.rstrip("'") for word in words for word in word.replace("''", " ").split()]


def edit(folder, change):
    """Change the rows of both CSVs of a folder: change takes the DataFrame of one."""
    for name in ("Toy_v1_train.csv", "Toy_v1_test.csv"):
        table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        change(table)
        table.to_csv(folder / name, index=False, quoting=csv.QUOTE_MINIMAL)


@pytest.fixture
def folder(tmp_path):
    """The annotations of ToyLT, in which the videos have the texts above, in turn."""
    shutil.copytree(TOY, tmp_path / "toy")

    def write_texts(table):
        table["descriptions"] = [TEXTS[position % len(TEXTS)] for position in range(len(table))]
        table["script"] = SCRIPT

    edit(tmp_path / "toy", write_texts)
    return tmp_path / "toy"


def read_both(folder):
    names = ("Toy_v1_train.csv", "Toy_v1_test.csv")
    return pd.concat([pd.read_csv(folder / name, dtype=str, keep_default_na=False) for name in names])


def test_a_video_has_one_row_per_word_in_their_order(folder, tmp_path):
    source = open_features(make_word_features(TOY_MANIFEST, folder, tmp_path / "words.h5", dim=5))
    table = read_both(folder)
    assert source.ids() == set(table.id) and source.dim == 5
    expected = {
        TEXTS[0]: ["a", "box", "a", "box", "the", "man's", "box"],
        TEXTS[1]: ["the", "box"],
        TEXTS[2]: ["a", "man", "opens", "the", "box"],  # of the script
        TEXTS[3]: ["a", "man", "opens", "the", "box"],
        TEXTS[4]: ["box", "2box", "re", "box"],
    }
    for video_id, text in zip(table.id, table.descriptions, strict=True):
        rows = source.read(video_id)
        assert rows.dtype == np.float16
        assert rows.tolist() == [vector_by_loop(word, 5) for word in expected[text]]


def test_rows_are_nearly_standard_normal_and_exact():
    rows = np.stack([word_vector(f"word {number}") for number in range(400)]).astype(np.float64)
    assert abs(rows.mean()) < 0.01 and abs(rows.std() - 1) < 0.01
    assert abs((rows**4).mean() - 3) < 0.15  # 2.9 of the sum of 12 bytes, 3 of a normal distribution
    cosines = np.corrcoef(rows)[np.triu_indices(400, 1)]
    assert abs(cosines.std() - 256**-0.5) < 0.002  # words are no nearer to each other than by chance
    assert np.array_equal(word_vector("box", 7), word_vector("box", 256)[:7])


def test_labels_and_objects_change_no_byte(folder, tmp_path):
    first = make_word_features(TOY_MANIFEST, folder, tmp_path / "first.h5", dim=8)

    def drop(table):
        table["actions"], table["objects"], table["scene"] = "c000 not an action", "other", "other"
        table["length"], table["subject"] = "none", "nobody"

    edit(folder, drop)
    assert make_word_features(TOY_MANIFEST, folder, tmp_path / "second.h5", dim=8).read_bytes() == first.read_bytes()


def test_it_is_sound_resumed_and_refused_for_other_texts(folder, tmp_path):
    out, lines = tmp_path / "words.h5", []
    make_word_features(TOY_MANIFEST, folder, out, dim=8)
    whole = out.read_bytes()
    # Texts that are equal have equal rows.
    assert [(found.check, found.severity) for found in verify(open_features(out)).findings] == [
        ("duplicates", "warning")
    ]
    make_word_features(TOY_MANIFEST, folder, out, dim=8, report=lines.append)
    videos = len(read_both(folder))
    assert lines == [f"{out}: {videos} of {videos} videos are there already"] and out.read_bytes() == whole
    with pytest.raises(FeatureError, match="words.h5 has rows of 8 numbers, 16 are asked for\nRemove it"):
        make_word_features(TOY_MANIFEST, folder, out, dim=16)
    edit(folder, lambda table: table.__setitem__("script", "Another script"))
    with pytest.raises(FeatureError, match="made with other settings:\n  - texts"):
        make_word_features(TOY_MANIFEST, folder, out, dim=8)
    assert out.read_bytes() == whole


def test_an_interrupted_run_is_continued(folder, tmp_path):
    def stop(title, total):
        raise KeyboardInterrupt

    out = tmp_path / "words.h5"
    with pytest.raises(KeyboardInterrupt):
        make_word_features(TOY_MANIFEST, folder, out, dim=8, progress=stop)
    assert not out.exists() and (tmp_path / "words.h5.partial").exists()
    make_word_features(TOY_MANIFEST, folder, out, dim=8)
    assert out.read_bytes() == make_word_features(TOY_MANIFEST, folder, tmp_path / "other.h5", dim=8).read_bytes()
    assert not (tmp_path / "words.h5.partial").exists()


def test_videos_without_a_word_are_refused(folder, tmp_path):
    edit(folder, lambda table: table.__setitem__("script", "..."))
    with pytest.raises(FeatureError, match=r"^\d+ videos have no word in descriptions or script: TOY"):
        make_word_features(TOY_MANIFEST, folder, tmp_path / "words.h5")
    assert not (tmp_path / "words.h5").exists()


def test_what_cannot_be_read_is_refused(folder, tmp_path):
    out = tmp_path / "words.h5"
    with pytest.raises(AnnotationError, match="VideoLT hold no descriptions .*; those of charadeslt and charadesegolt"):
        make_word_features("videolt", folder, out)
    with pytest.raises(FeatureError, match="dim must be a whole number of at least 1, got 0"):
        make_word_features(TOY_MANIFEST, folder, out, dim=0)
    with pytest.raises(FeatureError, match="dim must be at most 65,536, got 70,000"):
        make_word_features(TOY_MANIFEST, folder, out, dim=70_000)
    edit(folder, lambda table: setattr(table, "columns", [{"script": "plot"}.get(name, name) for name in table]))
    with pytest.raises(AnnotationError, match=r"Toy_v1_train.csv, line 1: no column script; the header is"):
        make_word_features(TOY_MANIFEST, folder, out)
    with pytest.raises(AnnotationError, match="Toy_v1_test.csv is missing"):
        (folder / "Toy_v1_test.csv").unlink()
        make_word_features(TOY_MANIFEST, folder, out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["charadeslt", "charadesegolt"])
def test_real_descriptions(name, tmp_path):
    folder = real_data(REAL[name])
    source = open_features(make_word_features(name, folder, tmp_path / "words.h5", dim=2))
    table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in folder.glob("*v1_t*.csv")])
    assert source.ids() == set(table.id)
    for row in table[["id", "descriptions", "script"]][::97].itertuples(index=False):
        words = words_by_loop(row.descriptions) or words_by_loop(row.script)
        assert source.read(row.id).tolist() == [vector_by_loop(word, 2) for word in words]


def test_the_command_tells_of_the_file_and_of_the_proxy(folder, tmp_path, run):
    out = tmp_path / "words.h5"
    outcome = run("word-features", TOY_MANIFEST, "--annotations", folder, "--out", out, "--dim", 8)
    table = read_both(folder)
    assert outcome.exit_code == 0
    first, watermark = outcome.stdout.splitlines()
    assert first.startswith(f"{out}: {len(table)} videos of ToyLT's annotations, ") and " words of 8 numbers" in first
    assert watermark == WATERMARK
    again = run("word-features", TOY_MANIFEST, "--annotations", folder, "--out", out, "--dim", 8, "--json")
    assert f"{len(table)} of {len(table)} videos are there already" in again.stderr
    assert json.loads(again.stdout) == {
        "dataset": "toylt",
        "dim": 8,
        "path": str(out),
        "rows": verify(open_features(out)).rows,
        "videos": len(table),
        "watermark": watermark,
    }


def test_the_command_refuses_wrong_input(folder, tmp_path, run):
    out = tmp_path / "words.h5"
    (tmp_path / "empty").mkdir()
    for arguments, code, text in (
        (("videolt", "--annotations", folder, "--out", out), 1, "VideoLT hold no descriptions of its videos"),
        ((TOY_MANIFEST, "--annotations", tmp_path / "empty", "--out", out), 1, "Toy_v1_train.csv is missing"),
        ((TOY_MANIFEST, "--annotations", tmp_path / "none", "--out", out), 2, "does not exist"),
        ((TOY_MANIFEST, "--annotations", folder, "--out", out, "--dim", 0), 2, "0 is not in the range"),
        ((TOY_MANIFEST, "--annotations", folder, "--out", tmp_path / "f.csv"), 2, "is written as .h5 or .hdf5"),
        (("nothing", "--annotations", folder, "--out", out), 2, "is neither one of videolt, charadeslt"),
    ):
        outcome = run("word-features", *arguments)
        assert outcome.exit_code == code and text in outcome.stderr, outcome.stderr
    (tmp_path / "link.h5").symlink_to(folder / "Toy_v1_train.csv")
    before = (folder / "Toy_v1_train.csv").read_bytes()
    outcome = run("word-features", TOY_MANIFEST, "--annotations", folder, "--out", tmp_path / "link.h5")
    assert outcome.exit_code == 1 and "choose another output" in outcome.stderr
    assert (folder / "Toy_v1_train.csv").read_bytes() == before and not out.exists()


def test_words_cannot_be_extracted_again(folder, tmp_path, run):
    out = make_word_features(TOY_MANIFEST, folder, tmp_path / "words.h5", dim=8)
    outcome = run("verify-features", out, "--videos", tmp_path)
    assert outcome.exit_code == 1 and "these features are words: there are no videos that they were" in outcome.stderr


@pytest.fixture(scope="module")
def trained(toy_split_file, tmp_path_factory):
    """Two runs of one epoch on words, bce and eql, and the output of the commands."""
    place = tmp_path_factory.mktemp("trained")
    features = make_word_features(TOY_MANIFEST, TOY, place / "words.h5", dim=8)
    outcomes = {}
    for method in ("bce", "eql"):
        arguments = ("train", "--split", toy_split_file, "--features", features, "--method", method, "--out",
                     place / method, "--epochs", 1, "--device", "cpu", "--set", "frames.train=4",
                     "--set", "frames.test=4", "--json")  # fmt: skip
        outcomes[method] = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert outcomes[method].exit_code == 0, outcomes[method].output
    return place, outcomes


def test_a_run_on_words_tells_of_the_proxy_and_records_it(trained):
    place, outcomes = trained
    assert f"warning: {WATERMARK}" in outcomes["bce"].stderr
    assert json.loads(outcomes["bce"].stdout)["warnings"][0] == WATERMARK
    assert json.loads((place / "bce" / "config.json").read_text())["inputs"]["backbone"] == "words"
    for subset in ("val", "test"):
        metadata = read_predictions(place / "bce" / f"predictions-{subset}.parquet").metadata
        assert metadata["run"]["backbone"] == "words"
        assert WATERMARK in json.loads((place / "bce" / f"result-{subset}.json").read_text())["warnings"]


def test_every_output_of_an_evaluation_is_marked(trained, toy_split_file, tmp_path, run):
    place, _ = trained
    predictions, per_class = place / "bce" / "predictions-test.parquet", tmp_path / "classes.csv"
    outcome = run("evaluate", predictions, "--split", toy_split_file, "--per-class", per_class)
    assert outcome.exit_code == 0 and outcome.stdout.splitlines()[1] == WATERMARK
    assert f"warning: {WATERMARK}" in outcome.stderr
    table = pd.read_csv(per_class)
    assert len(table) == 12 and set(table.watermark) == {WATERMARK}
    outcome = run("evaluate", predictions, "--split", toy_split_file, "--json", "-")
    content = json.loads(outcome.stdout)
    assert content["warnings"][0] == content["notes"][0] == WATERMARK
    assert outcome.stdout == (place / "bce" / "result-test.json").read_text()
    result = evaluate(read_predictions(predictions), split=toy_split_file)
    assert f"  {WATERMARK}" in repr(result).splitlines()


def test_every_output_of_a_comparison_is_marked(trained, toy_split_file, tmp_path, run):
    place, _ = trained
    bce, eql = (f"{name}={place / name / 'predictions-test.parquet'}" for name in ("bce", "eql"))
    common = ("--split", toy_split_file, "--bootstrap", 20)
    files = ("--html", tmp_path / "c.html", "--latex", tmp_path / "c.tex", "--json", tmp_path / "c.json")
    outcome = run("compare", bce, eql, *common, *files)
    assert outcome.exit_code == 0 and outcome.stdout.splitlines()[1] == WATERMARK
    assert [line for line in outcome.stderr.splitlines() if "PROXY" in line] == [f"warning: every run: {WATERMARK}"]
    header = (tmp_path / "c.html").read_text().partition("</header>")[0]
    assert f"<b>{WATERMARK}</b>" in header
    assert f"\\caption{{\\textbf{{{WATERMARK}.}} Mean average precision" in (tmp_path / "c.tex").read_text()
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["notes"][0] == WATERMARK and all(WATERMARK in method["warnings"] for method in content["methods"])
    # Beside a run of which nothing is known, the warning names the run on words.
    outcome = run("compare", bce, f"other={TOY / 'predictions.npz'}", *common)
    assert outcome.exit_code == 0 and outcome.stdout.splitlines()[1] == WATERMARK
    assert f"warning: bce: {WATERMARK}" in outcome.stderr.splitlines()


def test_predictions_of_a_run_on_words_are_marked(trained, tmp_path, run, toy_split_file):
    place, _ = trained
    out = tmp_path / "p.parquet"
    outcome = run("predict", place / "bce", "--out", out, "--device", "cpu")
    assert outcome.exit_code == 0 and f"warning: {WATERMARK}" in outcome.stderr
    assert read_predictions(out).metadata["run"]["backbone"] == "words"
    assert WATERMARK in run("evaluate", out, "--split", toy_split_file).stdout
    # Features of another source do not take the mark from a model that learnt words.
    rows = open_features(place / "words.h5")
    (tmp_path / "npy").mkdir()
    for video_id in rows.ids():
        np.save(tmp_path / "npy" / f"{video_id}.npy", rows.read(video_id))
    run("predict", place / "bce", "--out", out, "--features", tmp_path / "npy", "--device", "cpu")
    assert read_predictions(out).metadata["run"]["backbone"] == "words"


def test_words_that_are_packed_again_keep_the_mark(trained, tmp_path, run):
    place, _ = trained
    packed = tmp_path / "packed.h5"
    outcome = run("pack-features", place / "words.h5", "--dtype", "int8", "--out", packed)
    assert outcome.exit_code == 0 and open_features(packed).header.recipe["backbone"] == "words"
    outcome = run("pack-features", place / "words.h5", "--backbone", "resnet101", "--out", tmp_path / "other.h5")
    assert outcome.exit_code == 1 and not (tmp_path / "other.h5").exists()


def test_runs_on_simulated_features_and_on_real_ones(trained, toy_split, toy_split_file, tmp_path, run):
    features = simulate_features(toy_split, tmp_path / "simulated.h5", frames=4, dim=8)
    shared = ("--epochs", 1, "--device", "cpu", "--set", "frames.train=4", "--set", "frames.test=4", "--method", "bce")
    for name, marks in (("simulation", [WATERMARKS["simulation"]]), ("resnet18", [])):
        with h5py.File(features, "r+") as file:
            file.attrs["recipe"] = json.dumps({"backbone": name})
        out = tmp_path / name
        outcome = run("train", "--split", toy_split_file, "--features", features, "--out", out, *shared)
        assert outcome.exit_code == 0, outcome.output
        content = json.loads((out / "result-test.json").read_text())
        for texts in (content["warnings"], content["notes"]):
            assert [text for text in texts if text in WATERMARKS.values()] == marks
        assert ("SIMULATED" in outcome.stderr) == bool(marks)
        assert ("backbone" in read_predictions(out / "predictions-test.parquet").metadata["run"]) == bool(marks)
