"""EPIC-KITCHENS-100: against the csv module on the real files, and refusals on invented ones."""

import csv
import json
import shutil
from ast import literal_eval
from collections import Counter

import numpy as np
import pytest
from material import real_data

import meidbench as mb
from meidbench.annotations import FORMATS
from meidbench.annotations.base import LineReader
from meidbench.annotations.epic import read_segments
from meidbench.names import DATASETS, EPIC_DATASETS
from meidbench.splits import epic
from meidbench.splits.epic import build_epic, load_fingerprints, make_fingerprint
from meidbench.splits.manifests import lines_digest, load_manifest
from meidbench.splits.statistics import audit_split

COLUMN_OF = {"epic100-verbs": "verb_class", "epic100-nouns": "noun_class", "epic100-all-nouns": "all_noun_classes"}
FILES = {"train": "EPIC_100_uda_source_train.csv", "test": "EPIC_100_validation.csv"}
HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def seconds(text):
    hours, minutes, rest = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


@pytest.mark.parametrize("dataset", EPIC_DATASETS)
def test_counts_of_the_real_files_are_those_of_the_csv_module(dataset):
    folder = real_data("epic100")
    told = []
    split = build_epic(dataset, folder, told.append)
    manifest = load_manifest(dataset)
    assert split.variant == "source-domain" and split.default_subset == "test" and not split.video_ids("val")
    groups = {}
    for subset, file in FILES.items():
        with (folder / file).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        cells = [literal_eval(row[COLUMN_OF[dataset]]) for row in rows]
        labels = [sorted(set(cell)) if isinstance(cell, list) else [cell] for cell in cells]
        assert split.video_ids(subset) == [row["narration_id"] for row in rows]
        assert split.rows(subset).column("labels").to_pylist() == labels
        counts = Counter(label for row in labels for label in row)
        assert split.positives(subset).tolist() == [counts[index] for index in range(manifest.num_classes)]
        assert split.rows(subset).column("subject").to_pylist() == [row["participant_id"] for row in rows]
        assert split.rows(subset).column("video").to_pylist() == [row["video_id"] for row in rows]
        assert split.rows(subset).column("pair_id") == split.rows(subset).column("video")
        for name, column in (("start_s", "start_timestamp"), ("end_s", "stop_timestamp")):
            expected = [seconds(row[column]) for row in rows]
            np.testing.assert_allclose(split.rows(subset).column(name).to_numpy(), expected, rtol=0, atol=1e-9)
    assert (len(split.video_ids("train")), len(split.video_ids("test"))) == (16_115, 9_668)
    with (folder / manifest.group_file.name).open(newline="") as stream:
        _, *tail = csv.reader(stream)
    groups = {name: getattr(split.groups, name).tolist() for name in ("head", "medium", "tail")}
    assert groups["tail"] == sorted(int(row[0]) for row in tail) and groups["medium"] == []
    assert len(groups["tail"]) == (86 if dataset == "epic100-verbs" else 228)
    assert len(groups["head"]) == manifest.num_classes - len(groups["tail"])
    with (folder / manifest.class_file.name).open(newline="") as stream:
        assert split.class_names == tuple(row["key"] for row in csv.DictReader(stream))[: manifest.num_classes]
    assert told == [
        "EPIC_100_uda_source_train.csv: verified every row",
        "EPIC_100_validation.csv: verified every row",
        "EPIC_100_train.csv is not there: train has the 16,115 segments of EPIC_100_uda_source_train.csv, so this is "
        "not the official split",
    ]


def test_repeated_nouns_of_the_real_files_are_one_label():
    folder = real_data("epic100")
    with (folder / FILES["test"]).open(newline="") as stream:
        lists = [literal_eval(row["all_noun_classes"]) for row in csv.DictReader(stream)]
    split = build_epic("epic100-all-nouns", folder)
    assert sum(len(set(row)) < len(row) for row in lists) == 19
    assert int(split.positives("test").sum()) == sum(len(set(row)) for row in lists) < sum(map(len, lists))


def test_the_real_split_has_no_long_video_in_two_subsets_and_shares_participants():
    split = build_epic("epic100-verbs", real_data("epic100"))
    checks = {finding.check: finding.count for finding in audit_split(split)}
    assert "video-overlap" not in checks and "pair-leakage" not in checks
    assert checks["subject-overlap"] == 12 and split.groups.empty == ("medium",)


@pytest.mark.parametrize("name", FILES.values())
def test_the_stored_fingerprints_are_those_of_the_real_files(name):
    rows = list(read_segments(LineReader(real_data("epic100") / name), []))
    assert json.loads(json.dumps(make_fingerprint(rows))) == load_fingerprints()[name]
    assert load_fingerprints()["EPIC_100_train.csv"] == {"segments": 67_217}


def test_altered_real_files_are_refused_with_the_segments_named(tmp_path):
    folder = shutil.copytree(real_data("epic100"), tmp_path / "epic100", copy_function=shutil.copyfile)
    path = folder / FILES["test"]
    lines = path.read_text().splitlines(keepends=True)
    changed, missing = lines[100].split(",")[0], lines[200].split(",")[0]
    lines[100] = lines[100].replace(":", ":", 1).replace("00:", "01:", 1)  # a narration's time, which is not read
    path.write_text("".join(lines))
    build_epic("epic100-verbs", folder)
    cells = next(csv.reader([lines[100]]))
    cells[10] = str((int(cells[10]) + 1) % 97)
    with path.open("w", newline="") as stream:
        stream.writelines(lines[:100])
        csv.writer(stream, lineterminator="\n").writerow(cells)
        stream.writelines([*lines[101:200], *lines[201:]])
    with pytest.raises(mb.MeidbenchError) as caught:
        build_epic("epic100-nouns", folder)  # whose own labels are not concerned
    assert "EPIC_100_validation.csv holds 9,667 segments, expected 9,668" in str(caught.value)
    assert f"segment {changed} of EPIC_100_validation.csv: its video, times" in str(caught.value)
    assert f"segment {missing} of EPIC_100_validation.csv is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "name", "what"),
    [
        ("epic100-verbs", "EPIC_100_tail_verbs.csv", "tail classes"),
        ("epic100-nouns", "EPIC_100_tail_nouns.csv", "tail classes"),
        ("epic100-verbs", "EPIC_100_verb_classes.csv", "class names"),
        ("epic100-all-nouns", "EPIC_100_noun_classes_v2.csv", "class names"),
    ],
)
def test_altered_real_lists_of_classes_are_refused(tmp_path, dataset, name, what):
    folder = shutil.copytree(real_data("epic100"), tmp_path / "epic100", copy_function=shutil.copyfile)
    with (folder / name).open(newline="") as stream:
        header, *rows = csv.reader(stream)
    with (folder / name).open("w", newline="") as stream:  # other ends of lines are no change
        csv.writer(stream, lineterminator="\r\n").writerows([header, *rows])
    build_epic(dataset, folder)
    changed = rows[:-1] if len(header) == 1 else [[*rows[0][:1], "another", *rows[0][2:]], *rows[1:]]
    with (folder / name).open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *changed])
    with pytest.raises(mb.MeidbenchError, match=f"{name}: the {what} are not the official ones"):
        build_epic(dataset, folder)


# --- invented files -----------------------------------------------------------------------------------------


def row(number, *, subset="train", verb=1, noun=2, nouns="[2]", start="00:00:01.50", stop="00:01:02.25", video=None):
    video = video or f"film_{subset}"
    return f"{subset}_{number},who,{video},0,{start},{stop},1,2,text,do,{verb},thing,{noun},['thing'],\"{nouns}\"\n"


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """Invented official files of the real names, with as many classes, and what is known of them."""
    folder = tmp_path / "epic"
    folder.mkdir()
    train = [row(0), row(1, verb=3, nouns="[2, 5, 2]"), row(2, verb=96, noun=299, nouns="[299]")]
    test = [
        row(0, subset="test"),
        row(1, subset="test", nouns="[21, 21]", noun=21, start="10:00:00.00", stop="10:00:01"),
    ]
    (folder / "EPIC_100_train.csv").write_text(HEADER + "".join(train))
    (folder / "EPIC_100_validation.csv").write_text(HEADER + "".join(test))
    (folder / "EPIC_100_verb_classes.csv").write_text("id,key\n" + "".join(f"{k},verb {k}\n" for k in range(97)))
    (folder / "EPIC_100_noun_classes_v2.csv").write_text("id,key\n" + "".join(f"{k},noun {k}\n" for k in range(305)))
    (folder / "EPIC_100_tail_verbs.csv").write_text("verb\n3\n96\n")
    (folder / "EPIC_100_tail_nouns.csv").write_text("noun\n21\n")
    known = {"EPIC_100_train.csv": {"segments": 3}, "EPIC_100_validation.csv": {"segments": 2}}
    for what, classes, tail in (("verb", 97, {3, 96}), ("noun", 300, {21})):
        names = [f"{what} {k}" for k in range(classes)]
        file = f"EPIC_100_{what}_classes{'_v2' * (what == 'noun')}.csv"
        known[file] = {"digest": lines_digest(names)}
        groups = ["tail" if k in tail else "head" for k in range(classes)]
        known[f"EPIC_100_tail_{what}s.csv"] = {"digest": lines_digest(groups)}
    monkeypatch.setattr(epic, "load_fingerprints", lambda: known)
    return folder


def test_the_official_files_give_the_official_split(invented, tmp_path, run):
    outcome = run("build-splits", "epic100-all-nouns", "--annotations", invented)
    assert outcome.exit_code == 0, outcome.output
    assert "EPIC_100_train.csv: verified the number of its segments only" in outcome.stderr
    split = mb.load_split("epic100-all-nouns")
    assert split.variant == "official" and split.rows("test").column("source").to_pylist() == ["validation"] * 2
    assert split.rows("train").column("labels").to_pylist() == [[2], [2, 5], [299]]
    assert split.rows("test").column("labels").to_pylist() == [[2], [21]]
    assert str(split.spans["test_1"]) == "film_test:36000.0-36001.0"
    assert str(split.spans["train_0"]) == "film_train:1.5-62.25"
    assert split.table.column("length_s").to_pylist()[0] == 60.75
    assert "groups: by list; no classes in medium" in run("stats", "epic100-all-nouns").stdout
    assert "EPIC_100_validation.csv" in run("datasets").stdout
    verbs = build_epic("epic100-verbs", invented)
    assert verbs.groups.tail.tolist() == [3, 96] and len(verbs.groups.head) == 95


def test_a_val_subset_out_of_the_source_domain_keeps_its_name(invented, run):
    (invented / "EPIC_100_train.csv").rename(invented / "EPIC_100_uda_source_train.csv")
    epic.load_fingerprints()["EPIC_100_uda_source_train.csv"] = {"segments": 4}
    with (invented / "EPIC_100_uda_source_train.csv").open("a") as stream:
        stream.write(row(3, video="other_film"))
    arguments = ["build-splits", "epic100-verbs", "--annotations", invented]
    outcome = run(*arguments, "--hold-out-val", "0.3")
    assert outcome.exit_code == 0, outcome.output
    assert "94 of the classes have no video in any subset and count in no group" in outcome.stdout
    name = outcome.stdout.split("wrote ")[1].strip()
    assert name.endswith("epic100-verbs-heldout-0.3-0-source-domain.parquet")
    split = mb.load_split(name)
    assert split.variant == "heldout-0.3-0-source-domain" and any("val was taken" in note for note in split.notes)
    lists = run(*arguments, "--format", "lst").stdout.split("wrote ")[1:]
    assert all("epic100-verbs-source-domain_" in path for path in lists) and len(lists) == 3
    lacking = run("stats", "epic100-verbs")
    assert lacking.exit_code == 1 and f"or give the path of another split of it: {name}" in lacking.stderr


def test_download_tells_where_the_files_are(run):
    outcome = run("download", "epic100-verbs")
    assert outcome.exit_code == 2 and "https://github.com/epic-kitchens" in outcome.stderr


def test_each_task_is_a_dataset_of_one_class(invented, tmp_path):
    for name in EPIC_DATASETS:
        split = build_epic(name, invented)
        for each in split.video_ids("train"):
            np.save(tmp_path / f"{each}.npy", np.ones((3, 4), np.float16))
        data = mb.EpicKitchens100(split, "train", features=tmp_path)
        assert data[0]["features"].shape == (8, 4) and data[0]["labels"].sum() == 1
    charades = mb.Split(split.table, split.metadata.__class__(**{**split.metadata.__dict__, "dataset": "videolt"}))
    with pytest.raises(mb.MeidbenchError, match=f"needs a split of {' or '.join(EPIC_DATASETS)}, got"):
        mb.EpicKitchens100(charades, "train", features=tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"start": "1:02"}, "time '1:02' is not HH:MM:SS.ff"),
        ({"start": "00:02:00.00"}, "120 to 62.25 s of 'film_train' is not a part of a video"),
        ({"verb": "x"}, "'x' is not the index of a class"),
        ({"verb": 97}, "class 97 does not exist (0 to 96)"),
        ({"nouns": "[]"}, "all_noun_classes '[]' is not a list of class indices"),
        ({"nouns": "[2; 3]"}, "is not a list of class indices"),
        ({"video": " "}, "is not a video id"),
    ],
)
def test_wrong_rows_are_named(invented, change, what):
    (invented / "EPIC_100_train.csv").write_text(HEADER + row(0) + row(1, **change) + row(2))
    with pytest.raises(mb.MeidbenchError) as caught:
        build_epic("epic100-verbs", invented)
    assert what in str(caught.value) and "train_1" in str(caught.value)


def test_wrong_lists_are_named(invented):
    cases = {
        "EPIC_100_tail_verbs.csv": ("verb\n97\n", "line 2: class '97' is not one of 0 to 96"),
        "EPIC_100_verb_classes.csv": ("id,key\n0,one\n1,one\n", "2 classes, EPIC-KITCHENS-100 verbs has 97"),
        "EPIC_100_validation.csv": (HEADER, "EPIC_100_validation.csv holds no segment"),
        "EPIC_100_train.csv": (HEADER + row(0) + row(0), "segment train_0 occurs more than once"),
    }
    for name, (text, what) in cases.items():
        before = (invented / name).read_text()
        (invented / name).write_text(text)
        with pytest.raises(mb.MeidbenchError) as caught:
            build_epic("epic100-verbs", invented)
        assert what in str(caught.value)
        (invented / name).write_text(before)
    (invented / "EPIC_100_train.csv").write_text(HEADER + row(0))
    with pytest.raises(mb.MeidbenchError, match="holds 1 segment, expected 3"):
        build_epic("epic100-verbs", invented)
    (invented / "EPIC_100_train.csv").unlink()
    with pytest.raises(mb.MeidbenchError, match=r"EPIC_100_train.csv is missing\n.*epic-kitchens-100-annotations"):
        build_epic("epic100-verbs", invented)


def test_the_tasks_are_not_drawn_and_not_downloaded(run):
    outcome = run("build-splits", "epic100-verbs", "--variant", "pareto")
    assert outcome.exit_code == 2 and "has its official split only" in outcome.stderr
    assert run("download", "epic100-nouns", "--accept-licence").exit_code == 2
    assert not set(DATASETS) & set(EPIC_DATASETS) and {"epic-verbs", "epic-nouns", "epic-all-nouns"} <= set(FORMATS)
