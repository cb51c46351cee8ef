"""Animal Kingdom: its official workbooks become its split, with its own groups, or are refused with the clips named."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from material import real_annotations, real_folder, released_split

import meidbench as mb
from meidbench.annotations import animalkingdom, read_annotations
from meidbench.errors import AnnotationError, MeidbenchError
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.files import file_sha256
from meidbench.names import SUBSETS
from meidbench.splits import make
from meidbench.splits.groups import Groups
from meidbench.splits.manifests import load_manifest
from meidbench.splits.released import build_released
from meidbench.splits.split import Split, released_content, write_split
from meidbench.splits.statistics import audit_split, split_statistics

NAME = "animalkingdom"
CLIPS, CLASSES = "AR_metadata.xlsx", "df_action.xlsx"


@pytest.fixture(scope="module")
def frames():
    """The real sheets as text, by file, read once."""
    folder = real_folder(NAME)
    sheets = {CLIPS: animalkingdom.CLIPS[0], CLASSES: animalkingdom.CLASSES[0]}
    return {name: animalkingdom._read_frame(folder / name, sheet) for name, sheet in sheets.items()}


# --- the numbers measured on the real files ------------------------------------------------------------------------


def test_the_sheets_are_those_that_were_measured(frames):
    clips, classes = frames[CLIPS], frames[CLASSES]
    assert list(clips.columns) == ["S/N", "video_id", "type", "labels", "list_animal_action"]
    assert list(classes.columns) == ["S/N", "action_category", "action", "index", "segment", "count"]
    assert (len(clips), len(classes)) == (30_100, 140)
    assert Counter(clips["type"]) == {"train": 24_004, "test": 6_096}
    assert clips["video_id"].is_unique and clips["video_id"].str.fullmatch("[A-Z]{8}").all()
    assert sorted(map(int, classes["index"])) == list(range(140))
    assert Counter(classes["segment"]) == {"head": 17, "middle": 29, "tail": 94}


def test_labels_are_those_of_the_cells(frames):
    table = real_annotations(NAME)
    assert table.video_ids == list(frames[CLIPS]["video_id"]) and table.sources == list(frames[CLIPS]["type"])
    assert [",".join(map(str, labels)) for labels in table.labels] == list(frames[CLIPS]["labels"])
    assert all(labels and len(set(labels)) == len(labels) for labels in table.labels)
    of_index = dict(zip(frames[CLASSES]["index"], frames[CLASSES]["action"], strict=True))
    assert table.class_names == tuple(of_index[str(index)] for index in range(140))


def test_every_statistic_is_reproduced():
    split = released_split(NAME)
    got = split_statistics(split)
    assert (got.train, got.val, got.test, got.classes) == (24_004, 0, 6_096, 140)
    assert (got.head, got.medium, got.tail) == (17, 29, 94)
    assert (got.most_frequent, got.least_frequent) == (7_659, 1)
    assert (round(got.labels_per_video_train, 3), round(got.labels_per_video_test, 3)) == (2.165, 2.121)
    without = np.flatnonzero(split.positives("test") == 0)
    assert without.tolist() == [4, 24, 34, 36, 53, 63, 70, 77, 86, 89, 111, 113, 126]
    assert got.classes_without_train == got.classes_without_videos == 0 and len(without) == 13


def test_the_groups_are_the_list_and_contradict_the_counts(frames):
    split, counts = released_split(NAME), frames[CLASSES].set_index("index")["count"]
    assert split.thresholds is None and split.group_names == {"medium": "middle"}
    assert split.variant == "released" and split.content_digest == released_content(NAME)
    names = split.groups.names(140)
    assert names == list(real_annotations(NAME).groups)
    everywhere = split.positives("train") + split.positives("test")
    assert sum(int(counts[str(index)]) == everywhere[index] for index in range(140)) == 33
    assert split.train_counts[split.groups.tail].max() == 309
    changed = replace(split.metadata, groups=("head", *names[1:]) if names[0] != "head" else ("tail", *names[1:]))
    assert Split(split.table, changed).variant == "changed"
    by_counts = Groups.from_counts(split.metadata.train_counts, 500, 100).names(140)
    other = sum(a != b for a, b in zip(names, by_counts, strict=True))
    told = " ".join(map(str, load_manifest(NAME).defects))
    assert other == 11 and f"{other} classes" in told and "up to 309 training clips" in told
    assert (split.train_counts == 1).sum() == 5 and "Five classes have one training clip" in told
    assert "13 classes have no test clip" in told


def test_the_audit_tells_the_classes_without_test_clips():
    findings = {(finding.check, finding.count) for finding in audit_split(released_split(NAME))}
    assert ("missing-classes", 13) in findings


def test_build_splits_prints_the_statistics_and_the_known_defects(run, tmp_path):
    arguments = ("--annotations", real_folder(NAME), "--out", tmp_path, "--format", "parquet", "--format", "lst")
    outcome = run("build-splits", NAME, *arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "head / middle / tail          17 / 29 / 94" in outcome.stdout
    assert outcome.stderr.count("known defect:") == len(load_manifest(NAME).defects) == 4
    assert mb.load_split(tmp_path / f"{NAME}.parquet").content_digest == released_split(NAME).content_digest
    lists = {subset: tmp_path / f"{NAME}_{subset}.txt" for subset in SUBSETS}
    assert {subset: path.read_text().count("\n") for subset, path in lists.items()} == {
        "train": 24_004, "val": 0, "test": 6_096,
    }  # fmt: skip


def test_the_script_makes_the_same_assignment_again(tmp_path, monkeypatch):
    from click.testing import CliRunner

    folder = real_folder(NAME)
    monkeypatch.setattr(make, "read_annotations", lambda manifest, folder: real_annotations(NAME))
    arguments = [NAME, "--annotations", str(folder), "--out", str(tmp_path)]
    outcome = CliRunner().invoke(make.main, arguments)
    assert outcome.exit_code == 0, outcome.output
    file = f"{NAME}.assignment.json"
    assert (tmp_path / file).read_text() == (Path(make.__file__).parent / file).read_text()
    outcome = CliRunner().invoke(make.main, [*arguments, "--lists", str(tmp_path)])
    assert outcome.exit_code == 2 and "leave out --lists" in outcome.output


def test_every_official_file_can_be_fetched_from_the_official_repository():
    manifest = load_manifest(NAME)
    pinned = {entry.name: (entry.bytes, entry.sha256) for entry in (*manifest.files, manifest.class_file)}
    fetched = {download.url.rpartition("/")[2]: (download.bytes, download.sha256) for download in manifest.downloads}
    assert fetched == pinned and set(fetched) == {CLIPS, CLASSES} == set(manifest.file_names)
    assert all("/sutdcv/Animal-Kingdom/23320fb3" in download.url for download in manifest.downloads)
    folder = real_folder(NAME)
    assert {name: ((folder / name).stat().st_size, file_sha256(folder / name)) for name in pinned} == pinned


def test_the_licence_and_the_form_are_shown_before_anything_is_fetched(run):
    outcome = run("download", NAME)
    assert outcome.exit_code == 2 and "non-commercial" in outcome.stderr and "through a form" in outcome.stderr


# --- altered files are refused, and the clips are named ------------------------------------------------------------


def refusal(frames, monkeypatch, **changed) -> str:
    """The message for sheets that were changed; the values take the place of the official frames."""
    altered = {CLIPS: changed.get("clips", frames[CLIPS]), CLASSES: changed.get("classes", frames[CLASSES])}
    monkeypatch.setattr(animalkingdom, "_read_frame", lambda path, sheet: altered[path.name])
    with pytest.raises(AnnotationError) as caught:
        build_released(NAME, real_folder(NAME))
    return str(caught.value)


def with_cell(frame, row: int, column: str, value: str):
    frame = frame.copy()
    frame.loc[row, column] = value
    return frame


def test_another_label_is_named_with_clip_and_class(frames, monkeypatch):
    clips = frames[CLIPS]
    row = next(place for place, cell in enumerate(clips["labels"]) if cell.count(",") == 1)
    first, second = clips["labels"][row].split(",")
    other = next(str(index) for index in range(140) if str(index) not in (first, second))
    message = refusal(frames, monkeypatch, clips=with_cell(clips, row, "labels", f"{first},{other}"))
    clip, subset = clips["video_id"][row], clips["type"][row]
    assert f"video {clip} ({CLIPS}, {subset}): class {second} is missing, class {other} is unexpected" in message
    assert f"videos per class in {subset}" in message and "No split was written" in message


def test_another_type_a_lost_row_and_a_renamed_clip_are_named(frames, monkeypatch):
    clips = frames[CLIPS]
    row = int(np.flatnonzero(clips["type"] == "train")[7])
    clip = clips["video_id"][row]
    message = refusal(frames, monkeypatch, clips=with_cell(clips, row, "type", "test"))
    assert f"video {clip} is in {CLIPS}, test, expected in {CLIPS}, train" in message
    message = refusal(frames, monkeypatch, clips=clips.drop(index=row))
    assert f"{CLIPS}, train holds 24,003 videos, expected 24,004" in message
    assert f"video {clip} is missing, expected in {CLIPS}, train" in message
    message = refusal(frames, monkeypatch, clips=with_cell(clips, row, "video_id", "RENAMEDX"))
    assert f"video {clip} is missing" in message and f"video RENAMEDX in {CLIPS}, train is not an official" in message


def test_another_group_and_another_class_name_are_refused(frames, monkeypatch):
    classes = frames[CLASSES]
    row = int(np.flatnonzero(classes["segment"] == "middle")[0])
    message = refusal(frames, monkeypatch, classes=with_cell(classes, row, "segment", "tail"))
    assert "the groups of the classes (17 head, 28 medium, 95 tail) are not the official ones" in message
    message = refusal(frames, monkeypatch, classes=with_cell(classes, row, "action", "Dreaming"))
    assert f"{CLASSES}: the class names are not the official ones" in message


@pytest.mark.parametrize(("column", "value", "what"), [
    ("labels", "140", "labels '140' are not class indices 0 to 139, each once, separated by commas"),
    ("labels", "3,3", "labels '3,3' are not class indices"),
    ("labels", "", "labels '' are not class indices"),
    ("labels", "3.0", "labels '3.0' are not class indices"),
    ("type", "val", "its type 'val' is not one of test, train"),
    ("video_id", "", "is not a video id"),
])  # fmt: skip
def test_a_wrong_cell_is_named_by_its_row(frames, monkeypatch, column, value, what):
    message = refusal(frames, monkeypatch, clips=with_cell(frames[CLIPS], 11, column, value))
    assert f"{CLIPS}, row 13 (" in message and what in message
    assert "meidbench download animalkingdom" in message


@pytest.mark.parametrize(("column", "value", "what"), [
    ("index", "0", "class missing: "),
    ("index", "140", "index '140' is not one of 0 to 139, each once"),
    ("segment", "medium", "segment 'medium' is not one of head, middle, tail"),
    ("action", "", "'' is not the name of a class"),
])  # fmt: skip
def test_a_wrong_class_is_named_by_its_row(frames, monkeypatch, column, value, what):
    classes = frames[CLASSES]
    row = int(np.flatnonzero(classes["index"] != "0")[3])
    assert what in refusal(frames, monkeypatch, classes=with_cell(classes, row, column, value))


def test_a_class_name_twice_is_refused(frames, monkeypatch):
    classes = frames[CLASSES]
    message = refusal(frames, monkeypatch, classes=with_cell(classes, 5, "action", classes["action"][6]))
    assert "occurs more than once" in message


# --- invented workbooks --------------------------------------------------------------------------------------------


@pytest.fixture
def workbooks(tmp_path: Path) -> Path:
    """Invented workbooks in the official form, with their manifest; single labels are numbers in the sheet."""
    openpyxl = pytest.importorskip("openpyxl", reason="workbooks are read by the extra 'excel'")
    rows = {
        CLIPS: ("AR", [
            ("S/N", "video_id", "type", "labels", "list_animal_action"),
            (1, "AAAAAAAA", "train", "0,2", "-"), (2, "BBBBBBBB", "train", 1, "-"), (3, "CCCCCCCC", "test", 0, "-"),
            (None, None, None, None, None),
        ]),
        CLASSES: ("AR_count", [
            ("S/N", "action_category", "action", "index", "segment", "count"),
            (1, "-", "NA", 1, "middle", 9), (2, "-", "Rest", 0, "head", 9), (3, "-", "Leap", 2, "tail", 9),
        ]),
    }  # fmt: skip
    for name, (sheet, lines) in rows.items():
        book = openpyxl.Workbook()
        book.active.title = sheet
        for line in lines:
            book.active.append(line)
        book.save(tmp_path / name)
    (tmp_path / "inventedlt.toml").write_text(
        'name = "inventedlt"\ntitle = "InventedLT"\nannotations = "inventedlt"\nreader = "animalkingdom"\n'
        'num_classes = 3\ngroups = "list"\ngroup_names = { medium = "middle" }\n'
        'class_file = { name = "df_action.xlsx", bytes = 1, sha256 = "0" }\n'
        'licence = { name = "none", url = "-", splits = "-", summary = [] }\n'
        + "".join(
            f'[[files]]\nname = "AR_metadata.xlsx"\nsource = "{source}"\nbytes = 1\nsha256 = "0"\n'
            for source in ("train", "test")
        )
    )
    return tmp_path


def read(folder: Path):
    return read_annotations(load_manifest(str(folder / "inventedlt.toml")), folder)


def test_cells_of_one_label_are_numbers_and_names_are_never_missing_values(workbooks):
    table = read(workbooks)
    assert table.video_ids == ["AAAAAAAA", "BBBBBBBB", "CCCCCCCC"]
    assert table.labels == [(0, 2), (1,), (0,)] and table.sources == ["train", "train", "test"]
    assert table.class_names == ("Rest", "NA", "Leap") and table.groups == ("head", "medium", "tail")
    assert [record.name for record in table.files] == [CLIPS, CLASSES]


def test_an_invented_benchmark_of_workbooks_is_made_and_built(workbooks, run):
    from click.testing import CliRunner

    manifest = workbooks / "inventedlt.toml"
    arguments = [str(manifest), "--annotations", str(workbooks), "--out", str(workbooks)]
    assert CliRunner().invoke(make.main, arguments).exit_code == 0
    content = json.loads((workbooks / "inventedlt.assignment.json").read_text())
    assert content["symbols"] == ["tte"] and content["content_digest"]
    outcome = run("build-splits", manifest, "--annotations", workbooks, "--out", workbooks / "out")
    assert outcome.exit_code == 0, outcome.output
    assert "head / middle / tail          1 / 1 / 1" in outcome.stdout
    assert "head / middle / tail" in run("stats", workbooks / "out" / "inventedlt.parquet").stdout


def test_train_prints_the_own_names_of_groups(run, tmp_path):
    split = simulate_split((30, 8, 10), num_classes=3)
    groups = {"groups": ("head", "medium", "tail"), "head_above": None, "tail_up_to": None}
    split = Split(split.table, replace(split.metadata, **groups, group_names={"medium": "middle"}))
    split.metadata = replace(split.metadata, content_digest=split.content_digest)
    path = write_split(split, tmp_path / "mine.parquet")
    simulate_features(path, tmp_path / "mine.h5", frames=2, dim=4)
    settings = ["--epochs", "1"] + [word for name in ("train", "test") for word in ("--set", f"frames.{name}=2")]
    features = ["--features", tmp_path / "mine.h5", "--out", tmp_path / "run"]
    outcome = run("train", "--split", path, *features, "--method", "bce", "--aggregator", "mean", *settings)
    assert outcome.exit_code == 0, outcome.output
    assert " middle " in outcome.stdout and "medium" not in outcome.stdout


def test_the_extra_is_named_in_one_line_where_it_is_missing(workbooks, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MeidbenchError) as caught:
        read(workbooks)
    wanted = "is a workbook, which pandas reads by openpyxl; install it: pip install 'meidbench[excel]'"
    assert str(caught.value) == f"{CLASSES} {wanted}"


@pytest.mark.parametrize(("damage", "what"), [
    (lambda path: path.write_bytes(path.read_bytes()[:900]), r"is not a readable workbook[^\n]*\nGet the "),
    (lambda path: path.write_text("a,b\n"), "is not a readable workbook with a sheet AR_count"),
    (lambda path: path.write_bytes((path.parent / CLIPS).read_bytes()), "is not a readable workbook with a sheet"),
    (lambda path: path.unlink(), f"{CLASSES} is missing"),
])  # fmt: skip
def test_files_that_are_no_workbooks_are_refused(workbooks, damage, what):
    damage(workbooks / CLASSES)
    with pytest.raises(AnnotationError, match=what):
        read(workbooks)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_of_a_workbook_are_refused_or_change_nothing(workbooks, seed):
    generator = np.random.default_rng(seed)
    path = workbooks / (CLIPS if seed % 2 else CLASSES)
    sound, raw = read(workbooks), bytearray(path.read_bytes())
    for place in generator.integers(len(raw), size=1 + seed % 3):
        raw[place] ^= 1 << int(generator.integers(8))
    path.write_bytes(raw if seed % 5 else raw[: len(raw) * 2 // 3])
    try:
        table = read(workbooks)
    except AnnotationError as error:
        assert path.name in str(error)
    else:
        assert (table.video_ids, table.labels, table.groups) == (sound.video_ids, sound.labels, sound.groups)


def test_a_workbook_without_a_column_is_refused(workbooks):
    import openpyxl

    book = openpyxl.load_workbook(workbooks / CLIPS)
    book["AR"]["D1"] = "label"
    book.save(workbooks / CLIPS)
    with pytest.raises(AnnotationError, match="sheet AR: no column labels; its columns are S/N, video_id, type, label"):
        read(workbooks)
