"""The published splits come out exactly, and annotations that differ are refused with videos and classes named."""

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from material import REAL, TOY, TOY_MANIFEST, real_annotations, real_data, released_split

from meidbench.annotations import read_annotations
from meidbench.errors import AnnotationError, MeidbenchError
from meidbench.names import DATASETS, SUBSETS
from meidbench.splits.manifests import load_assignment, load_manifest
from meidbench.splits.released import build_released, check_pool, write_lists
from meidbench.splits.split import Split, read_split
from meidbench.splits.statistics import split_statistics

TRAIN, TEST = "Toy_v1_train.csv", "Toy_v1_test.csv"

# splits.md's table, which was measured on the released lists.
TABLE = {
    "charadeslt": ((2213, 469, 1012), (41, 81, 35), (556, 9), 61.8, (6.28, 7.87, 8.09), 20, 6.9),
    "charadesegolt": ((1553, 764, 748), (43, 89, 25), (538, 10), 53.8, (8.87, 11.28, 11.16), 20, 9.6),
    "videolt": ((179334, 25619, 51239), (47, 617, 340), (1912, 44), 43.5, (1.10, 1.10, 1.10), 7, 1.1),
}


def list_folder(name: str) -> Path:
    return real_data("videolt" if name == "videolt" else "meid_lists")


def read_list(path: Path) -> list[tuple[str, list[int]]]:
    lines = (line.split() for line in path.read_text().splitlines())
    return [(video_id, [int(label) for label in labels.split(",")]) for video_id, labels in lines]


def test_the_released_lists_come_out_byte_for_byte(real_split: Split, tmp_path: Path):
    manifest = load_manifest(real_split.dataset)
    names = {subset: released.file for subset, released in manifest.released.items()}
    for subset, path in write_lists(real_split, tmp_path, names).items():
        released = list_folder(real_split.dataset) / path.name
        assert path.read_bytes() == released.read_bytes()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest.released[subset].sha256


def test_ids_and_labels_are_those_of_the_released_lists(real_split: Split):
    manifest = load_manifest(real_split.dataset)
    for subset in SUBSETS:
        rows = read_list(list_folder(real_split.dataset) / manifest.released[subset].file)
        assert real_split.video_ids(subset) == [video_id for video_id, _ in rows]
        matrix = real_split.labels(subset)
        assert matrix.shape == (len(rows), manifest.num_classes)
        assert matrix.sum() == sum(len(set(labels)) for _, labels in rows)
        places = np.repeat(np.arange(len(rows)), [len(labels) for _, labels in rows])
        assert matrix[places, [label for _, labels in rows for label in labels]].all()


def test_every_number_of_table_1_is_reproduced(real_split: Split):
    sizes, groups, extremes, ratio, averages, least, paper_average = TABLE[real_split.dataset]
    got = split_statistics(real_split)
    assert (got.train, got.val, got.test) == sizes
    assert (got.head, got.medium, got.tail) == groups
    assert (got.most_frequent, got.least_frequent) == extremes
    assert round(got.imbalance_ratio, 1) == ratio
    per_subset = (got.labels_per_video_train, got.labels_per_video_val, got.labels_per_video_test)
    assert tuple(round(average, 2) for average in per_subset) == averages
    assert got.least_positives_test == least
    assert got.classes_without_train == 0
    manifest = load_manifest(real_split.dataset)
    assert round(got.labels_per_video, 1) == manifest.paper["labels_per_video"] == paper_average
    assert round(got.imbalance_ratio, 1) == manifest.paper["imbalance_ratio"]


def test_seven_videolt_classes_lie_on_the_threshold():
    split = released_split("videolt")
    on_threshold = np.flatnonzero(split.train_counts == 100)
    assert len(on_threshold) == 7
    assert set(on_threshold) <= set(split.groups.tail)


def test_videolt_training_counts_are_the_published_ones():
    split = released_split("videolt")
    lines = (real_data("videolt") / "count-labels-train.lst").read_text().splitlines()
    assert [float(line.split()[-1]) for line in lines] == split.train_counts.tolist()


@pytest.mark.parametrize("name", DATASETS)
def test_the_assignment_holds_no_id_and_no_label(name):
    assignment = load_assignment(name)
    assert set(assignment.symbols) <= set(".tve")
    assert len(assignment.symbols) == sum(assignment.source_videos.values())
    manifest = load_manifest(name)
    ids = real_annotations(name).video_ids
    assert assignment.ids_digest == hashlib.sha256("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()
    counts = [assignment.symbols.count(symbol) for symbol in "tve"]
    assert counts == [manifest.expected[subset] for subset in SUBSETS]
    # A cell mixes dozens of rows: none can be read from it.
    for cells in (assignment.id_sketch, assignment.row_sketch):
        assert min(count for count, _ in cells) >= 20


@pytest.mark.parametrize("name", list(REAL))
def test_the_script_makes_the_same_assignment_again(name, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from meidbench.splits import make
    from meidbench.splits.make import main

    if name == "videolt":  # read once for all tests, because that takes long
        monkeypatch.setattr(make, "read_annotations", lambda manifest, folder: real_annotations(name))
    arguments = [name, "--annotations", real_data(REAL[name]), "--lists", list_folder(name), "--out", tmp_path]
    outcome = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    kept = Path(__file__).parents[1] / "splits" / f"{name}.assignment.json"
    assert (tmp_path / kept.name).read_bytes() == kept.read_bytes()


# --- annotations that differ ------------------------------------------------------------------------------------

Rows = list[list[str]]


def change_rows(path: Path, change: Callable[[Rows], None]) -> None:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    change(rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def refusal(folder: Path, dataset: str = TOY_MANIFEST) -> str:
    with pytest.raises(AnnotationError) as caught:
        build_released(dataset, folder)
    return str(caught.value)


def used_row(rows: Rows, split: Split, subset: str = "train", labels: int = 2) -> list[str]:
    """Return a row of the CSV whose video is in the split and has at least some labels."""
    used = set(split.video_ids(subset))
    return next(row for row in rows[1:] if row[0] in used and len(row[9].split(";")) >= labels)


def test_a_flipped_label_is_refused_with_video_and_classes(toy_folder, toy_split):
    seen = {}

    def flip(rows: Rows) -> None:
        row = used_row(rows, toy_split)
        old = {int(action[1:4]) for action in row[9].split(";")}
        seen["id"], seen["old"] = row[0], min(old)
        seen["new"] = next(label for label in range(12) if label not in old)
        row[9] = row[9].replace(f"c{seen['old']:03d}", f"c{seen['new']:03d}")

    change_rows(toy_folder / TRAIN, flip)
    message = refusal(toy_folder)
    assert f"video {seen['id']} ({TRAIN}): class {seen['old']} is missing, class {seen['new']} is unexpected" in message
    assert "videos per class in train" in message and f"{seen['old']} 'Doing thing {seen['old']}'" in message
    assert "No split was written" in message


def test_a_label_that_was_lost_or_added_is_named(toy_folder, toy_split):
    seen = {}

    def lose(rows: Rows) -> None:
        row = used_row(rows, toy_split, "test")
        kept = [action for action in row[9].split(";") if action[:4] != row[9][:4]]
        seen["id"], seen["label"] = row[0], int(row[9][1:4])
        row[9] = ";".join(kept)

    change_rows(toy_folder / TRAIN, lose)
    assert f"video {seen['id']} ({TRAIN}): class {seen['label']} is missing\n" in refusal(toy_folder)


def test_labels_that_differ_wholly_are_shown(toy_folder, toy_split):
    def replace(rows: Rows) -> None:
        used_row(rows, toy_split)[9] = ";".join(f"c{label:03d} 1.00 2.00" for label in range(12))

    change_rows(toy_folder / TRAIN, replace)
    assert "its classes 0,1,2,3,4,5,6,7,8,9,10,11 differ from the released ones in more than 2" in refusal(toy_folder)


def test_a_label_of_an_unused_video_does_not_matter(toy_folder, toy_split):
    used = {video_id for subset in SUBSETS for video_id in toy_split.video_ids(subset)}

    def flip(rows: Rows) -> None:
        next(row for row in rows[1:] if row[0] not in used)[9] = "c003 1.00 2.00"

    change_rows(toy_folder / TRAIN, flip)
    assert build_released(TOY_MANIFEST, toy_folder).digest == toy_split.digest


# --- all annotated videos, from which new splits are drawn ------------------------------------------------------


def change_cell(folder: Path, column: str, change, *, used: bool, split) -> str:
    """Change a cell of the first video that the released split uses, or does not use; return its id."""
    ids = {video_id for subset in SUBSETS for video_id in split.video_ids(subset)}
    changed = []

    def edit(rows: Rows) -> None:
        row = next(row for row in rows[1:] if (row[0] in ids) == used)
        place = rows[0].index(column)
        row[place] = change(row[place])
        changed.append(row[0])

    change_rows(folder / TRAIN, edit)
    return changed[0]


@pytest.mark.parametrize(("column", "change", "used"), [
    ("actions", lambda cell: "c003 1.00 2.00", False),
    ("length", lambda cell: "1.25", False),
    ("subject", lambda cell: "S999", False),
    ("actions", lambda cell: cell.replace(".", ".1", 1), True),
    ("length", lambda cell: "1.25", True),
])  # fmt: skip
def test_no_split_is_drawn_from_damage_that_the_released_videos_do_not_show(
    toy_folder, toy_split, run, tmp_path, column, change, used
):
    video = change_cell(toy_folder, column, change, used=used, split=toy_split)
    assert build_released(TOY_MANIFEST, toy_folder).digest == toy_split.digest
    arguments = ("build-splits", TOY_MANIFEST, "--annotations", toy_folder, "--variant", "pareto")
    outcome = run(*arguments, "--out", tmp_path / "out")
    assert outcome.exit_code == 1 and not (tmp_path / "out").exists()
    assert f"video {video} ({TRAIN}): its labels, length, subject or segments are not the official" in outcome.stderr
    assert "--accept-other-annotations" in outcome.stderr


def test_other_annotations_are_accepted_by_name_and_recorded(toy_folder, toy_split, run, tmp_path):
    change_cell(toy_folder, "length", lambda cell: "1.25", used=False, split=toy_split)
    arguments = ("build-splits", TOY_MANIFEST, "--variant", "pareto", "--accept-other-annotations")
    outcome = run(*arguments, "--annotations", toy_folder, "--out", tmp_path / "other")
    assert outcome.exit_code == 0 and "are not the official ones of ToyLT; the split records this" in outcome.stderr
    split = read_split(tmp_path / "other" / "toylt-pareto-0.parquet")
    assert split.metadata.other_annotations and "not the official ones of toylt" in split.notes[-1]
    assert "not the official ones" in run("stats", tmp_path / "other" / "toylt-pareto-0.parquet").stdout
    plain = run(*arguments, "--annotations", TOY, "--out", tmp_path / "plain")
    assert plain.exit_code == 0 and "official" not in plain.stderr
    assert not read_split(tmp_path / "plain" / "toylt-pareto-0.parquet").metadata.other_annotations
    (tmp_path / "x.toml").write_text('name = "x"\ntable = "x.csv"\n')
    for dataset in (TOY_MANIFEST, tmp_path / "x.toml"):  # the released split, and a plan of a table
        assert run("build-splits", dataset, "--accept-other-annotations").exit_code == 2


def test_columns_that_no_split_depends_on_may_differ(toy_folder, toy_split):
    change_cell(toy_folder, "scene", lambda cell: "another room", used=False, split=toy_split)
    change_rows(toy_folder / TEST, lambda rows: rows.__setitem__(slice(1, None), rows[:0:-1]))
    annotations = read_annotations(load_manifest(TOY_MANIFEST), toy_folder)
    assert check_pool(TOY_MANIFEST, annotations, toy_folder)


def test_ids_and_class_names_of_the_whole_pool_are_compared(toy_folder, tmp_path):
    def complaint(folder: Path) -> str:
        with pytest.raises(AnnotationError) as caught:
            check_pool(TOY_MANIFEST, read_annotations(load_manifest(TOY_MANIFEST), folder), folder)
        return str(caught.value)

    path = toy_folder / "Toy_v1_classes.txt"
    path.write_text(path.read_text().replace("thing 3", "thing three"))
    assert "the class names are not the official ones" in complaint(toy_folder)
    path.write_text(path.read_text().replace("thing three", "thing 3"))
    dropped = []
    change_rows(toy_folder / TEST, lambda rows: dropped.append(rows.pop(5)[0]))
    assert f"video {dropped[0]} is missing" in complaint(toy_folder)


def test_an_assignment_without_a_digest_of_all_videos_is_told(toy_folder, run, tmp_path):
    path = toy_folder / "toylt.assignment.json"
    content = json.loads(path.read_text())
    del content["pool_digest"], content["pool_sketch"]
    path.write_text(json.dumps(content))
    arguments = ("--annotations", toy_folder, "--variant", "pareto", "--out", tmp_path / "out")
    outcome = run("build-splits", toy_folder / "toylt.toml", *arguments)
    assert outcome.exit_code == 0 and "note: the assignment of the manifest was made before" in outcome.stderr


@pytest.mark.parametrize("name", ["charadeslt", "charadesegolt"])
def test_flipped_bytes_in_the_real_files_draw_no_other_split(tmp_path, name, run):
    """Digits of classes, of videos that the released split does not use."""
    folder = shutil.copytree(real_data(REAL[name]), tmp_path / "files")
    make_writable(folder)
    used = set(released_split(name).table.column("video_id").to_pylist())
    path = folder / load_manifest(name).files[0].name
    with path.open(newline="", encoding="utf-8") as stream:
        unused = [
            row["id"]
            for row in csv.DictReader(stream)
            if row["id"] not in used and re.search("c[01][0-4]", row["actions"])
        ][:5]
    lines = path.read_text(encoding="utf-8").split("\n")
    for video_id in unused:
        place = next(place for place, line in enumerate(lines) if line.startswith(f"{video_id},"))
        lines[place] = re.sub(
            r"c([01][0-4])(\d) ", lambda found: f"c{found[1]}{int(found[2]) ^ 1} ", lines[place], count=1
        )
    path.write_text("\n".join(lines), encoding="utf-8")
    assert build_released(name, folder).digest == released_split(name).digest
    outcome = run("build-splits", name, "--annotations", folder, "--variant", "pareto", "--out", tmp_path / "out")
    assert outcome.exit_code == 1 and not (tmp_path / "out").exists()
    assert all(f"video {video_id} (" in outcome.stderr for video_id in unused)


@pytest.mark.parametrize("name", list(REAL))
def test_the_official_files_are_known_as_a_whole(name):
    annotations = real_annotations(name)
    assert check_pool(name, annotations, Path())
    row = next(row for row, labels in enumerate(annotations.labels) if len(labels) > 1)
    other = replace(annotations, labels=[*annotations.labels])
    other.labels[row] = other.labels[row][:-1]
    with pytest.raises(AnnotationError) as caught:
        check_pool(name, other, Path())
    assert f"video {annotations.video_ids[row]} (" in str(caught.value)


def test_a_dropped_row_is_named(toy_folder, toy_split):
    dropped = []
    change_rows(toy_folder / TEST, lambda rows: dropped.append(rows.pop(5)[0]))
    message = refusal(toy_folder)
    assert f"video {dropped[0]} is missing, expected in {TEST}" in message
    assert f"{TEST} holds" in message


def test_a_renamed_id_is_named_with_its_old_name(toy_folder):
    seen = []

    def rename(rows: Rows) -> None:
        seen.append(rows[4][0])
        rows[4][0] = "ZZZZZ" + "EGO" * rows[4][0].endswith("EGO")
        seen.append(rows[4][0])

    change_rows(toy_folder / TRAIN, rename)
    message = refusal(toy_folder)
    assert f"video {seen[0]} is missing, expected in {TRAIN}" in message
    assert f"video {seen[1]} in {TRAIN} is not an official one" in message


def test_a_very_long_id_is_named(toy_folder):
    change_rows(toy_folder / TRAIN, lambda rows: rows[4].__setitem__(0, "A" * 40 + "EGO" * rows[4][0].endswith("EGO")))
    assert f"video {'A' * 40}" in refusal(toy_folder)


def test_a_row_in_the_wrong_file_is_named(toy_folder):
    moved: Rows = []
    change_rows(toy_folder / TRAIN, lambda rows: moved.append(rows.pop(5)))
    change_rows(toy_folder / TEST, lambda rows: rows.append(moved[0]))
    assert f"video {moved[0][0]} is in {TEST}, expected in {TRAIN}" in refusal(toy_folder)


def test_swapped_files_are_recognised(toy_folder):
    (toy_folder / TRAIN).rename(toy_folder / "x")
    (toy_folder / TEST).rename(toy_folder / TRAIN)
    (toy_folder / "x").rename(toy_folder / TEST)
    message = refusal(toy_folder)
    assert f"{TRAIN} holds the videos of {TEST}" in message
    assert "the first is" in message and "swapped" in message


def test_a_file_cut_between_lines_is_refused_with_its_last_video(toy_folder):
    last = []

    def cut(rows: Rows) -> None:
        del rows[20:]
        last.append(rows[-1][0])

    change_rows(toy_folder / TRAIN, cut)
    message = refusal(toy_folder)
    assert f"{TRAIN} holds 19 videos, expected" in message and f"the last is {last[0]}" in message
    assert f"videos per class in {TRAIN}: 0 'Doing thing 0' " in message
    assert "more videos differ than can be named" not in message  # 120 of them still can be


def test_reordered_rows_give_the_same_split(toy_folder, toy_split):
    change_rows(toy_folder / TRAIN, lambda rows: rows.__setitem__(slice(1, None), rows[:0:-1]))
    assert build_released(TOY_MANIFEST, toy_folder).digest == toy_split.digest


def test_other_class_names_are_refused(toy_folder):
    path = toy_folder / "Toy_v1_classes.txt"
    path.write_text(path.read_text().replace("thing 3", "thing three"))
    assert "Toy_v1_classes.txt: the class names are not the official ones" in refusal(toy_folder)


def make_writable(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


DAMAGE = ("flip", "drop", "rename", "crlf", "bom", "swap", "half")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", REAL)
def test_damage_to_the_real_files_is_read_rightly_or_refused_by_name(tmp_path, name, damage):
    folder = Path(shutil.copytree(real_data(REAL[name]), tmp_path / "real"))
    make_writable(folder)
    manifest = load_manifest(name)
    paths = [folder / file.name for file in manifest.files]
    raw = paths[0].read_bytes()
    end = b"\r\n" if b"\r\n" in raw else b"\n"
    rows = raw.split(end)
    used = next(
        place for place, row in enumerate(rows)
        if place > 2 and row.split(b" " if name == "videolt" else b",")[0].decode() in _train_ids(name)
    )  # fmt: skip
    video_id = rows[used].split(b" " if name == "videolt" else b",")[0].decode()
    if damage == "flip" and name == "videolt":
        rows[used] = f"{video_id} 17,18".encode()
    elif damage == "flip":
        start = rows[used].rindex(b",c") if rows[used].rfind(b",c") > 0 else rows[used].index(b";c")
        code = rows[used][start + 1 : start + 5]
        other = next(f"c{n:03d}".encode() for n in range(157) if f"c{n:03d}".encode() not in rows[used])
        rows[used] = rows[used].replace(code, other)
    elif damage == "drop":
        del rows[used]
    elif damage == "rename":
        rows[used] = rows[used].replace(video_id.encode(), b"QQQQQEGO" if video_id.endswith("EGO") else b"QQQQQ", 1)
    elif damage == "half":
        del rows[len(rows) // 2 :]
    paths[0].write_bytes(end.join(rows))
    if damage == "crlf":
        paths[0].write_bytes(raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    elif damage == "bom":
        paths[0].write_bytes(b"\xef\xbb\xbf" + raw)
    elif damage == "swap":
        paths[0].write_bytes(paths[-1].read_bytes())
        paths[-1].write_bytes(raw)
    if damage in ("crlf", "bom"):
        assert build_released(name, folder).digest == load_assignment(name).split_digest
        return
    message = refusal(folder, name)
    if damage == "swap":
        assert "swapped" in message
    elif damage == "half":
        assert f"{paths[0].name} holds" in message and "the last is" in message
    else:
        assert f"video {video_id}" in message
    if damage == "flip":
        assert "videos per class in train" in message
    assert f"meidbench download {name}" in message


@cache
def _train_ids(name: str) -> set[str]:
    return set(released_split(name).video_ids("train"))


def test_statistics_that_differ_from_the_manifest_are_refused(toy_folder):
    manifest = toy_folder / "toylt.toml"
    manifest.write_text(manifest.read_text() + "\n[expected]\ntrain = 115\nimbalance_ratio = 10.9\n")
    with pytest.raises(AnnotationError, match="train is 114, the published split has 115") as caught:
        build_released(str(manifest), toy_folder)
    assert "imbalance_ratio" not in str(caught.value)


def test_many_differing_labels_are_named_quickly_and_with_the_classes(toy_folder, toy_split):
    def change(rows: Rows) -> None:
        used = set(toy_split.video_ids("train"))
        for row in rows[1:]:
            if row[0] in used:
                row[9] = ";".join(f"c{label:03d} 1.00 2.00" for label in range(12))

    change_rows(toy_folder / TRAIN, change)
    message = refusal(toy_folder)
    assert "videos per class in train: 0 'Doing thing 0'" in message
    assert message.count("\n  - video ") >= 5 and "more\nNo split was written" in message


def test_a_list_in_another_order_is_built_with_a_warning(toy_folder, run, tmp_path):
    change_rows(toy_folder / TRAIN, lambda rows: rows.__setitem__(slice(1, None), rows[:0:-1]))
    arguments = ["build-splits", TOY_MANIFEST, "--annotations", toy_folder, "--out", tmp_path / "o", "--format", "lst"]
    outcome = run(*arguments)
    assert outcome.exit_code == 0
    assert "ToyLT_train.txt has the videos and classes of the released list in another order" in outcome.stderr
    unchanged = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path / "p", "--format", "lst")
    assert "another order" not in unchanged.stderr


# --- manifests --------------------------------------------------------------------------------------------------


def test_unknown_and_damaged_manifests_are_refused(tmp_path):
    with pytest.raises(MeidbenchError, match="unknown dataset 'kinetics'; known: videolt, charadeslt"):
        load_manifest("kinetics")
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(MeidbenchError, match="is not a manifest"):
        load_manifest(str(tmp_path / "x.toml"))
    (tmp_path / "y.toml").write_text('name = "y"')
    with pytest.raises(
        MeidbenchError, match="(?s)title is missing.*\nA plan of a new split has table, format or benchmark"
    ):
        load_manifest(str(tmp_path / "y.toml"))
    (tmp_path / "y.assignment.json").write_text("{")
    with pytest.raises(MeidbenchError, match="assignment of .* is damaged"):
        load_assignment(str(tmp_path / "y.toml"))
    with pytest.raises(MeidbenchError, match="cannot read"):
        load_assignment(str(TOY / "none.toml"))


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ('name = "toylt"', 'name = "../toylt"', "not a plain file name"),
    ('file = "ToyLT_val.txt"', 'file = "/tmp/x"', "not a plain file name"),
    ("num_classes = 12", 'num_classes = "12"', "must be a whole number"),
    ("num_classes = 12", "num_classes = 12.0", "must be a whole number"),
    ("head_above = 30", "head_above = nan", "must be a whole number"),
    ("head_above = 30", "head_above = 3", "tail_up_to must not lie above head_above"),
    ('source = "test"', 'source = "train"', "each of another source"),
    ('reader = "charadesego"', 'reader = "nope"', "unknown reader 'nope'; known: charades, charadesego, lists"),
    ('source = "test"', 'source = "other"', "its sources must be other, train"),
])  # fmt: skip
def test_a_manifest_of_ones_own_is_checked(toy_folder, run, old, new, complaint):
    manifest = toy_folder / "toylt.toml"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    outcome = run("build-splits", manifest, "--annotations", toy_folder, "--out", toy_folder / "out")
    assert outcome.exit_code == 1 and complaint in outcome.stderr
    assert not (toy_folder / "out").exists()


@pytest.mark.parametrize(("old", "new"), [
    ('"symbols"', '"symbol"'),
    ('"symbols": [\n  "', '"symbols": [\n  "x'),
    ('"id_sketch": [\n', '"id_sketch": [\n  [1, "0"],\n'),
    ('"row_sketch": [\n  [', '"row_sketch": [\n  [null, "0"],\n  ['),
    ('  "train": 1', '  "trian": 1'),
    ('"source_positives": {', '"source_digests": {"train": [], "test": "x"},\n"source_positives": {'),
])  # fmt: skip
def test_an_assignment_of_ones_own_is_checked(toy_folder, old, new):
    path = toy_folder / "toylt.assignment.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(MeidbenchError, match="assignment of .* is damaged"):
        load_assignment(str(toy_folder / "toylt.toml"))
