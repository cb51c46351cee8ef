"""New splits by ``build-splits``, as a user draws them: the same seed gives the same bytes, and no file is lost."""

import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from material import REAL, TOY, TOY_MANIFEST, real_data

from meidbench.names import SUBSETS
from meidbench.splits.split import read_split
from meidbench.splits.statistics import audit_split

NAMES = ("cook", "read", "run", "sing", "swim", "write")


def draw_toy(run, out, *arguments):
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", out, *arguments)
    assert outcome.exit_code == 0, outcome.stderr
    return outcome


@pytest.fixture
def films(tmp_path):
    """A table of 600 clips of 200 films, and a plan for it."""
    draw = random.Random(0)
    with (tmp_path / "videos.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["video_id", "labels", "group"])
        for clip in range(600):
            labels = sorted(set(draw.choices(NAMES, [32, 16, 8, 4, 2, 1], k=3)))
            rows.writerow([f"clip{clip:04d}", ";".join(labels), f"film{draw.randrange(200):03d}"])
    (tmp_path / "filmlt.toml").write_text('name = "filmlt"\ntable = "videos.csv"\n[targets]\ngroup_by = ["pair"]\n')
    return tmp_path


def labels_of_films(films):
    """Labels and films by clip, without the reader under test."""
    with (films / "videos.csv").open() as stream:
        return {row["video_id"]: (set(row["labels"].split(";")), row["group"]) for row in csv.DictReader(stream)}


# --- the same seed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["pareto", "grouped"])
def test_the_same_seed_gives_the_same_bytes_and_another_another_split(run, tmp_path, variant):
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        formats = ["--format", "parquet", "--format", "csv", "--format", "lst"]
        draw_toy(run, tmp_path / folder, "--variant", variant, "--seed", seed, *formats)
    stem = f"toylt-{variant}-5"
    names = [f"{stem}.csv", f"{stem}.parquet", f"{stem}.plan.toml", *(f"{stem}_{subset}.txt" for subset in SUBSETS)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(names)
    for name in set(names) - {f"{stem}.plan.toml"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    mine, other = (read_split(tmp_path / f / f"toylt-{variant}-{s}.parquet") for f, s in (("a", 5), ("c", 6)))
    assert mine.digest != other.digest
    assert (mine.variant, mine.metadata.seed, other.metadata.seed) == (variant, 5, 6)
    for subset in SUBSETS:
        lines = (tmp_path / "a" / f"{stem}_{subset}.txt").read_text().splitlines()
        assert [line.split()[0] for line in lines] == list(mine.video_ids(subset))


def test_another_hash_seed_gives_the_same_bytes(run, tmp_path):
    draw_toy(run, tmp_path / "a", "--variant", "grouped", "--group-by", "pair", "--group-by", "subject")
    command = [sys.executable, "-m", "meidbench", "build-splits", TOY_MANIFEST, "--annotations", TOY]
    command += ["--variant", "grouped", "--group-by", "subject", "--group-by", "pair", "--out", tmp_path / "b"]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=environment)
    a, b = ((tmp_path / folder / "toylt-grouped-0.parquet").read_bytes() for folder in "ab")
    assert a == b


def test_the_released_split_lies_beside_a_drawn_one(run, tmp_path, toy_split):
    draw_toy(run, tmp_path)
    before = (tmp_path / "toylt.parquet").read_bytes()
    draw_toy(run, tmp_path, "--variant", "pareto")
    assert (tmp_path / "toylt.parquet").read_bytes() == before
    assert read_split(tmp_path / "toylt-pareto-0.parquet").digest != toy_split.digest


def test_a_drawn_split_is_not_replaced_by_one_with_other_targets(run, tmp_path):
    draw_toy(run, tmp_path, "--variant", "pareto")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    draw_toy(run, tmp_path, "--variant", "pareto")
    outcome = run(
        "build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path, "--variant", "pareto", "--set", "alpha=3"
    )
    assert (
        outcome.exit_code == 1 and "is of another split" in outcome.stderr and "another path (--out)" in outcome.stderr
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_plan_beside_a_split_makes_it_again(run, tmp_path):
    draw_toy(run, tmp_path / "a", "--variant", "pareto", "--seed", 2, "--set", "alpha=4", "--set", "test_videos=70")
    outcome = run(
        "build-splits", tmp_path / "a" / "toylt-pareto-2.plan.toml", "--annotations", TOY, "--out", tmp_path / "b"
    )
    assert outcome.exit_code == 0, outcome.stderr
    a, b = ((tmp_path / folder / "toylt-pareto-2.parquet").read_bytes() for folder in "ab")
    assert a == b
    plans = [(tmp_path / folder / "toylt-pareto-2.plan.toml").read_text().splitlines() for folder in "ab"]
    assert [line for line in plans[0] if "benchmark" not in line] == [
        line for line in plans[1] if "benchmark" not in line
    ]


def test_a_plan_refuses_videos_that_have_changed(run, tmp_path, toy_folder):
    draw_toy(run, tmp_path / "a", "--variant", "pareto")
    path = toy_folder / "Toy_v1_train.csv"
    path.write_bytes(path.read_bytes().replace(b"c003 ", b"c004 "))
    plan = tmp_path / "a" / "toylt-pareto-0.plan.toml"
    other = ("--annotations", toy_folder, "--out", tmp_path / "b", "--accept-other-annotations")
    outcome = run("build-splits", plan, *other)
    assert outcome.exit_code == 1 and outcome.stdout == "" and "not the same any more" in outcome.stderr
    assert not (tmp_path / "b").exists()
    again = run("build-splits", plan, *other, "--seed", "1")
    assert again.exit_code == 0 and "cannot be built from these annotations" in again.stderr


# --- output -----------------------------------------------------------------------------------------------------


def test_the_json_holds_every_number(run, tmp_path, toy_split):
    outcome = draw_toy(run, tmp_path, "--variant", "pareto", "--json")
    content = json.loads(outcome.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    split = read_split(tmp_path / "toylt-pareto-0.parquet")
    counts = split.positives("train")
    assert (content["digest"], content["seed"], content["variant"]) == (split.digest, 0, "pareto")
    assert content["train_counts"] == counts.tolist()
    off = np.abs(counts - np.array(content["target_counts"]))
    assert (content["total_deviation"], content["largest_deviation"]) == (off.sum(), off.max())
    both = {subset: (set(split.video_ids(subset)), set(toy_split.video_ids(subset))) for subset in SUBSETS}
    assert content["distance_to_released"]["shared_videos"] == {
        s: len(a & b) / len(a | b) for s, (a, b) in both.items()
    }
    assert content["released"]["train"] == len(toy_split.video_ids("train"))
    assert content["files"] == [str(tmp_path / "toylt-pareto-0.parquet"), str(tmp_path / "toylt-pareto-0.plan.toml")]
    assert content["targets"]["alpha"] == 10 and content["paper"] is None


def test_classes_that_are_short_are_warned_of(run, tmp_path):
    outcome = draw_toy(run, tmp_path, "--variant", "pareto", "--set", "val_positives=40", "--json")
    content = json.loads(outcome.stdout)
    split = read_split(tmp_path / "toylt-pareto-0.parquet")
    short = [index for index in range(12) if split.positives("val")[index] < 40]
    assert [entry["class_index"] for entry in content["shortfalls"] if entry["subset"] == "val"] == short
    assert f"warning: {len(short)} class(es) with too few videos in val: {short[0]} '" in outcome.stderr
    assert f"and {len(short) - 5} more" in outcome.stderr


def test_an_empty_group_is_warned_of(run, tmp_path):
    outcome = draw_toy(run, tmp_path, "--variant", "pareto", "--set", "head_above=9999")
    assert "warning: no class is in head (head above 9,999 training videos" in outcome.stderr


def test_it_can_be_read_on_a_narrow_terminal(run, tmp_path, monkeypatch):
    titles = set()
    for width in (50, 64, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = draw_toy(run, tmp_path, "--variant", "pareto").stdout.splitlines()
        body = [line for line in lines if not line.startswith("wrote ")]
        assert max(map(len, body)) <= width
        assert "\u00a0" not in "".join(body)
        titles.add(lines[0])
        text = " ".join(" ".join(body).split())
        assert "most_frequent 48, least_frequent 4, alpha 10, head_above 30" in text
        assert "videos in both splits, as a share of those in either: " in text
        counts = [line for line in body if line.startswith("train / val / test")]
        assert len(counts) == (2 if width == 50 else 1)
    assert any("pareto, seed 0" in title and "released" in title for title in titles)


@pytest.mark.parametrize("arguments", [
    ["--seed", "1"],
    ["--set", "alpha=3"],
    ["--group-by", "pair"],
    ["--variant", "released", "--seed", "0"],
    ["--variant", "pareto", "--seed", "-1"],
    ["--variant", "pareto", "--seed", "x"],
    ["--variant", "pareto", "--group-by", "pair"],
    ["--variant", "pareto", "--set", "alpha"],
    ["--variant", "pareto", "--set", "alpha=steep"],
    ["--variant", "pareto", "--set", "alpha=1", "--set", "alpha=2"],
    ["--variant", "pareto", "--set", "train_videos=100"],
    ["--variant", "exact", "--set", "alpha=3"],
    ["--variant", "grouped", "--group-by", "pair", "--set", "group_by=['subject']"],
    ["--variant", "grouped", "--group-by", "film"],
    ["--variant", "median"],
])  # fmt: skip
def test_a_wrong_call_ends_with_2_and_writes_nothing(run, tmp_path, arguments):
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path / "out", *arguments)
    assert outcome.exit_code == 2 and outcome.stdout == "" and "Error: " in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["--variant", "pareto", "--set", "least_frequent=90"], "least_frequent 90 lies above most_frequent"),
    (["--variant", "pareto", "--set", "alpha=0"], "alpha must be a number from 0.01 to 1,000,000,000, got 0"),
    (["--variant", "pareto", "--set", "alpha=1e-9"], "alpha must be a number from 0.01 to 1,000,000,000"),
    (["--variant", "pareto", "--set", "alpha=nan"], "alpha must be a number from 0.01 to 1,000,000,000"),
    (["--variant", "pareto", "--set", "head_above=-1"], "head_above must be a whole number from 0 to 1,000,000,000"),
    (["--variant", "grouped", "--set", "least_seconds=-1.5"], "least_seconds must be a number from 0 to 1,000,000,000"),
    (["--variant", "pareto", "--set", "least_seconds=9999"], "there is nothing to draw a split from"),
    (["--variant", "exact"], "an exact split of toylt needs these numbers too: train_videos, head, medium, tail"),
])  # fmt: skip
def test_targets_that_cannot_be_meant_end_with_1_and_write_nothing(run, tmp_path, arguments, complaint):
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path / "out", *arguments)
    assert outcome.exit_code == 1 and outcome.stdout == "" and complaint in outcome.stderr
    assert "Traceback" not in outcome.stderr and not (tmp_path / "out").exists()


EXACT = ["train_videos=60", "head=1", "medium=3", "tail=8", "most_frequent=45", "least_frequent=4",
         "test_positives=4", "val_positives=2"]  # fmt: skip


def test_an_exact_split_has_its_numbers_and_an_impossible_one_is_explained(run, tmp_path):
    settings = [part for text in EXACT for part in ("--set", text)]
    draw_toy(run, tmp_path, "--variant", "exact", *settings)
    split = read_split(tmp_path / "toylt-exact-0.parquet")
    counts = Counter(label for labels in split.rows("train").column("labels").to_pylist() for label in labels)
    assert len(split.video_ids("train")) == 60
    assert [sum(low < count <= high for count in counts.values()) for low, high in ((30, 999), (12, 30), (0, 12))] == [
        1,
        3,
        8,
    ]
    assert (max(counts.values()), min(counts.values())) == (45, 4)
    settings[1] = "train_videos=190"
    outcome = run(
        "build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path / "out", "--variant", "exact", *settings
    )
    assert outcome.exit_code == 1 and outcome.stdout == ""
    assert "no split of toylt has these numbers" in outcome.stderr and "can be met" in outcome.stderr
    assert not (tmp_path / "out").exists()


# --- groups -----------------------------------------------------------------------------------------------------


def test_grouped_keeps_pairs_together_if_nothing_else_is_asked(run, tmp_path):
    draw_toy(run, tmp_path, "--variant", "grouped")
    split = read_split(tmp_path / "toylt-grouped-0.parquet")
    assert "pair-leakage" not in {finding.check for finding in audit_split(split)}
    assert "subject-overlap" in {finding.check for finding in audit_split(split)}
    assert "nothing found by" in run("audit", tmp_path / "toylt-grouped-0.parquet").stdout


def test_grouped_by_subject_separates_subjects(run, tmp_path):
    draw_toy(run, tmp_path, "--variant", "grouped", "--group-by", "subject")
    split = read_split(tmp_path / "toylt-grouped-0.parquet")
    subjects = [set(split.rows(subset).column("subject").to_pylist()) - {""} for subset in SUBSETS]
    assert all(subjects) and not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])


def test_what_the_annotations_do_not_name_cannot_be_kept_together(run, films):
    outcome = run("build-splits", films / "filmlt.toml", "--group-by", "subject")
    assert outcome.exit_code == 1 and "the videos of filmlt have no subject" in outcome.stderr
    assert "--group-by pair" in outcome.stderr
    assert sorted(path.name for path in films.iterdir()) == ["filmlt.toml", "videos.csv"]


# --- a dataset of one's own -------------------------------------------------------------------------------------


def test_a_table_of_ones_own_becomes_a_split_without_leaks(run, films):
    outcome = run("build-splits", films / "filmlt.toml")
    assert outcome.exit_code == 0, outcome.stderr
    assert "note: 6 classes, the distinct names among the labels, sorted by code points: cook, read," in outcome.stderr
    split = read_split(films / "filmlt-grouped-0.parquet")
    known = labels_of_films(films)
    assert split.class_names == NAMES and split.dataset == "filmlt"
    for subset in SUBSETS:
        counts = Counter(name for video in split.video_ids(subset) for name in known[video][0])
        assert [counts[name] for name in NAMES] == split.positives(subset).tolist()
    seen = [{known[video][1] for video in split.video_ids(subset)} for subset in SUBSETS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    again = run("build-splits", films / "filmlt-grouped-0.plan.toml", "--out", films / "again")
    assert again.exit_code == 0, again.stderr
    names = ("filmlt-grouped-0.parquet", "filmlt-grouped-0.plan.toml")
    assert (films / names[0]).read_bytes() == (films / "again" / names[0]).read_bytes()
    assert 'table = "../videos.csv"' in (films / "again" / names[1]).read_text()


def test_options_go_before_what_a_plan_says(run, films):
    outcome = run(
        "build-splits", films / "filmlt.toml", "--variant", "pareto", "--seed", 3, "--set", "alpha=2", "--json"
    )
    assert outcome.exit_code == 0, outcome.stderr
    content = json.loads(outcome.stdout)
    assert (content["variant"], content["seed"], content["targets"]["alpha"]) == ("pareto", 3, 2)
    assert content["targets"]["group_by"] == [] and content["released"] is None
    assert (films / "filmlt-pareto-3.parquet").is_file()


def test_every_command_accepts_the_split(run, films):
    run("build-splits", films / "filmlt.toml")
    path = films / "filmlt-grouped-0.parquet"
    assert run("stats", path).exit_code == 0
    assert run("audit", path, "--strict").exit_code == 0
    split = read_split(path)
    ids = split.video_ids("test")
    scores = np.random.default_rng(0).normal(size=(len(ids), 6))
    np.savez(films / "p.npz", video_ids=np.array(ids), scores=scores)
    evaluated = run("evaluate", films / "p.npz", "--split", path, "--json", "-")
    assert evaluated.exit_code == 0 and json.loads(evaluated.stdout)["variant"] == "grouped"


def test_a_method_trains_on_the_split(run, films):
    from meidbench.features.simulation import simulate_features

    run("build-splits", films / "filmlt.toml")
    path = films / "filmlt-grouped-0.parquet"
    features = simulate_features(path, films / "features.h5", frames=6, dim=8)
    outcome = run(
        "train", "--split", path, "--features", features, "--method", "bce", "--aggregator", "nonlinear", "--out",
        films / "run", "--set", "schedule.epochs=1", "--set", "frames.train=6", "--set", "frames.test=6",
        "--set", "execution.device=cpu", "--set", "schedule.milestones=[]",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert run("evaluate", films / "run" / "predictions-test.parquet", "--split", path).exit_code == 0


def test_extraction_takes_the_videos_of_the_split(run, films):
    run("build-splits", films / "filmlt.toml")
    path = films / "filmlt-grouped-0.parquet"
    taken = read_split(path).table.column("video_id").to_pylist()
    unused = next(name for name in labels_of_films(films) if name not in taken)
    (films / "frames" / unused).mkdir(parents=True)
    (films / "frames" / unused / f"{unused}-000001.jpg").write_bytes(b"")
    arguments = ["--weights", "random", "--seed", 0, "--device", "cpu", "--out", films / "f.h5"]
    outcome = run("extract-features", films / "frames", "--split", path, *arguments)
    assert outcome.exit_code == 1 and f"none of the {len(taken)} videos asked for" in outcome.stderr


@pytest.mark.parametrize(("rows", "code", "told"), [
    ("", 1, "holds no video with a label"),
    ("a,\n", 1, "holds no video with a label"),
    ("a,run\n", 0, "1 class(es) with too few videos in test"),
    ("".join(f"v{index},run\n" for index in range(90)), 0, "1 class, the distinct names"),
    ("".join(f"v{index},run;jump\n" for index in range(90)), 0, "no class is in head or medium"),
])  # fmt: skip
def test_small_and_strange_tables(run, tmp_path, rows, code, told):
    (tmp_path / "t.csv").write_text("video_id,labels\n" + rows)
    (tmp_path / "t.toml").write_text('name = "t"\ntable = "t.csv"\n')
    outcome = run("build-splits", tmp_path / "t.toml", "--json")
    assert outcome.exit_code == code and told in outcome.stderr and "Traceback" not in outcome.stderr
    assert (tmp_path / "t-pareto-0.parquet").is_file() == (code == 0)
    if code == 0:
        split = pq.read_table(tmp_path / "t-pareto-0.parquet")
        ids = split.column("video_id").to_pylist()
        assert len(set(ids)) == len(ids) and set(ids) <= {row.split(",")[0] for row in rows.split()}
        json.loads(outcome.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_table_with_subsets_is_imported_with_its_groups(run, tmp_path):
    entries = [{"video_id": f"v{n}", "labels": ["run"], "subset": s, "group": "g"} for n, s in enumerate(SUBSETS)]
    (tmp_path / "t.json").write_text(json.dumps(entries))
    arguments = ["import-split", tmp_path / "t.json", "--out", tmp_path / "t.parquet", "--head-above", 1]
    arguments += ["--tail-up-to", 0]
    assert "note: 1 class, the distinct names among the labels, sorted by code points: run\n" in run(*arguments).stderr
    assert (
        "groups (takes of one script, parts of one film) in both train and test"
        in run("audit", tmp_path / "t.parquet").stdout
    )
    for word in ("CSV", "TSV", "Parquet", "JSON", "group"):
        assert word in run("import-split", "--help").stdout


# --- the real annotations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments", "clean"), [
    ("charadeslt", ["pareto"], set()),
    ("charadesegolt", ["grouped"], {"pair-leakage"}),
    ("charadeslt", ["grouped", "--group-by", "subject"], {"subject-overlap"}),
    ("charadesegolt", ["exact"], set()),
])  # fmt: skip
def test_the_published_benchmarks_are_drawn_anew(run, tmp_path, name, arguments, clean):
    folder = real_data(REAL[name])
    outcome = run(
        "build-splits", name, "--annotations", folder, "--out", tmp_path, "--seed", 1, "--variant", *arguments
    )
    assert outcome.exit_code == 0, outcome.stderr
    cells: dict[str, list[str]] = {}
    for line in outcome.stdout.splitlines():
        cells.setdefault(line[:29].strip(), [cell.strip() for cell in line[29:].split("  ") if cell.strip()])
    drawn, released, paper = cells["head / medium / tail"]
    assert released == paper
    assert (drawn == paper) == (arguments == ["exact"])
    split = read_split(tmp_path / f"{name}-{arguments[0]}-1.parquet")
    assert not clean & {finding.check for finding in audit_split(split)}
    assert cells["train / val / test"][0] == " / ".join(f"{len(split.video_ids(subset)):,}" for subset in SUBSETS)


def test_charadeslt_has_no_pairs_to_keep_together(run, tmp_path):
    outcome = run(
        "build-splits", "charadeslt", "--annotations", real_data("charades"), "--variant", "grouped", "--out", tmp_path
    )
    assert outcome.exit_code == 1 and "charadeslt have no pair" in outcome.stderr
    assert "--group-by subject" in outcome.stderr and not list(tmp_path.iterdir())


# --- nothing is lost --------------------------------------------------------------------------------------------


def test_a_split_with_other_thresholds_is_another(run, films):
    # They are no part of what Split.digest is over, and do not change what is drawn.
    assert run("build-splits", films / "filmlt.toml").exit_code == 0
    before = (films / "filmlt-grouped-0.parquet").read_bytes()
    outcome = run("build-splits", films / "filmlt.toml", "--set", "head_above=7", "--set", "tail_up_to=2")
    assert outcome.exit_code == 1 and "is of another split" in outcome.stderr
    assert (films / "filmlt-grouped-0.parquet").read_bytes() == before


def test_a_plan_tells_when_names_or_groups_of_its_videos_changed(run, films):
    assert run("build-splits", films / "filmlt.toml").exit_code == 0
    text = (films / "videos.csv").read_text()
    for changed in (text.replace("cook", "bake"), text.replace("film1", "film9")):
        (films / "videos.csv").write_text(changed)
        outcome = run("build-splits", films / "filmlt-grouped-0.plan.toml")
        assert outcome.exit_code == 1 and "not the same any more" in outcome.stderr


def test_what_a_split_is_made_from_is_not_written_over(run, films):
    (films / "videos.csv").rename(films / "filmlt-pareto-0.csv")
    (films / "filmlt.toml").write_text('name = "filmlt"\ntable = "filmlt-pareto-0.csv"\n')
    before = (films / "filmlt-pareto-0.csv").read_bytes()
    outcome = run("build-splits", films / "filmlt.toml", "--format", "csv")
    assert outcome.exit_code == 1 and "is the same file as the source" in outcome.stderr
    assert (films / "filmlt-pareto-0.csv").read_bytes() == before


@pytest.mark.parametrize("there", ["a folder", "a split"])
def test_a_place_that_is_taken_is_told_before_anything_is_written(run, films, there):
    place = films / "out" / "filmlt-grouped-0.csv"
    place.parent.mkdir()
    place.mkdir() if there == "a folder" else place.write_text("video_id\n")
    outcome = run(
        "build-splits", films / "filmlt.toml", "--out", films / "out", "--format", "parquet", "--format", "csv"
    )
    assert outcome.exit_code == 1 and "filmlt-grouped-0.csv is" in outcome.stderr
    assert [path.name for path in place.parent.iterdir()] == ["filmlt-grouped-0.csv"]


@pytest.mark.parametrize("setting", ["most_frequent=9223372036854775807", f"alpha=1{'0' * 400}",
                                     f"least_seconds=1{'0' * 400}"])  # fmt: skip
def test_numbers_beyond_all_datasets_are_refused(run, films, setting):
    outcome = run("build-splits", films / "filmlt.toml", "--set", setting)
    assert outcome.exit_code == 1 and "1,000,000,000" in outcome.stderr


def test_a_whole_number_of_more_than_64_bits_is_a_wrong_call(run, films):
    outcome = run("build-splits", films / "filmlt.toml", "--set", f"test_positives=1{'0' * 30}")
    assert outcome.exit_code == 2 and "test_positives must be a whole number" in outcome.stderr


def test_sizes_that_were_not_reached_are_told(run, films):
    outcome = run("build-splits", films / "filmlt.toml", "--set", "val_videos=5000")
    assert outcome.exit_code == 0 and "the target is 5,000" in outcome.stderr
