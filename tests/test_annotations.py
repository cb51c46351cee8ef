"""Official annotation files: quirks are kept, errors are named with file, line and column."""

import csv
from pathlib import Path

import pytest
from material import REAL, TOY, TOY_MANIFEST, real_annotations

from meidbench.annotations import Annotations, read_annotations
from meidbench.errors import AnnotationError, escape_controls
from meidbench.splits.manifests import load_manifest

TRAIN = "Toy_v1_train.csv"


def read_toy(folder: Path) -> Annotations:
    return read_annotations(load_manifest(TOY_MANIFEST), folder)


def rewrite(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def refusal(folder: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_toy(folder)
    return str(caught.value)


def test_every_cell_is_the_official_one():
    table = read_toy(TOY)
    rows = []
    for source in ("train", "test"):
        with (TOY / f"Toy_v1_{source}.csv").open(encoding="utf-8", newline="") as stream:
            rows += [(source, row) for row in csv.DictReader(stream)]
    assert len(rows) == len(table.video_ids)
    for place, (source, row) in enumerate(rows):
        segments = [
            (int(code[1:]), float(start), float(end))
            for code, start, end in (action.split() for action in row["actions"].split(";") if action)
        ]
        assert table.video_ids[place] == row["id"]
        assert table.sources[place] == source
        assert list(table.segments[place]) == segments
        assert list(table.labels[place]) == list(dict.fromkeys(label for label, _, _ in segments))
        assert table.lengths[place] == float(row["length"])
        assert table.subjects[place] == row["subject"]
        assert table.views[place] == ("first" if row["id"].endswith("EGO") else "third")
        assert table.pair_ids[place] == row["id"].replace("EGO", "")


def test_the_toy_set_has_the_quirks_of_the_real_files():
    table = read_toy(TOY)
    pairs = list(zip(table.segments, table.lengths, strict=True))
    assert any(not segments for segments in table.segments)
    assert any(end < start for segments in table.segments for _, start, end in segments)
    assert any(end > length for segments, length in pairs for _, _, end in segments)
    assert any(len(segments) > len(labels) for segments, labels in zip(table.segments, table.labels, strict=True))
    assert len(table.pair_ids) > len(set(table.pair_ids))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b"\r\n", b"\n"),
        lambda raw: raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw + b"\r\n\r\n",
        lambda raw: raw.rstrip(b"\r\n"),
    ],
    ids=["LF", "CRLF", "byte-order mark", "blank lines at the end", "no last line end"],
)
def test_line_ends_and_marks_do_not_matter(toy_folder, change):
    for path in [*toy_folder.glob("*.csv"), *toy_folder.glob("*classes.txt")]:
        rewrite(path, change)
    got, expected = read_toy(toy_folder), read_toy(TOY)
    assert {**vars(got), "files": ()} == {**vars(expected), "files": ()}


def test_columns_may_stand_in_another_order(toy_folder):
    with (toy_folder / TRAIN).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (toy_folder / TRAIN).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0])[::-1])
        writer.writeheader()
        writer.writerows(rows)
    assert read_toy(toy_folder).segments == read_toy(TOY).segments


def test_files_are_found_where_the_archive_unpacks(toy_folder):
    inner = toy_folder / "Toy"
    inner.mkdir()
    for path in toy_folder.glob("Toy_v1_*"):
        path.rename(inner / path.name)
    assert read_toy(toy_folder).video_ids == read_toy(TOY).video_ids


def edit_cell(folder: Path, line: int, column: str, value: str) -> str:
    """Overwrite one cell of the training CSV; line 2 is the first video, whose id is returned."""
    with (folder / TRAIN).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    rows[line - 1][rows[0].index(column)] = value
    with (folder / TRAIN).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return rows[line - 1][0]


@pytest.mark.parametrize(("column", "value", "complaint"), [
    ("actions", "c001 2.0", "'c001 2.0' is not 'cNNN start end'"),
    ("actions", "c001 2.0 3.0;x02 1 2", "'x02 1 2' is not"),
    ("actions", "c001 2.0 nan", "is not 'cNNN start end'"),
    ("actions", "c001 2.0 3.0 4.0", "is not 'cNNN start end'"),
    ("actions", "c001 2_0 3.0", "'c001 2_0 3.0' is not"),
    ("actions", "c001 1e308 3.0", "'c001 1e308 3.0' is not"),
    ("actions", "c+01 2.0 3.0", "'c+01 2.0 3.0' is not"),
    ("actions", "c00\uff11 2.0 3.0", "is not 'cNNN start end'"),
    ("actions", "x" * 5000, "xxx...' is not"),
    ("length", "1_0", "'1_0' is not a length"),
    ("length", "0.0", "'0.0' is not a length"),
    ("id", "a\\b", "is not a video id"),
    ("id", "a\tb", "is not a video id"),
    ("actions", "c012 2.0 3.0", "class c012 does not exist (c000 to c011)"),
    ("length", "", "'' is not a length in seconds"),
    ("length", "inf", "'inf' is not a length"),
    ("length", "-3", "'-3' is not a length"),
    ("egocentric", "maybe", "'maybe' is not Yes or No"),
    ("id", "", "'' is not a video id"),
    ("id", "../../etc", "'../../etc' is not a video id"),
])  # fmt: skip
def test_a_wrong_cell_is_named_with_file_line_and_column(toy_folder, column, value, complaint):
    video_id = edit_cell(toy_folder, 7, column, value)
    message = refusal(toy_folder)
    assert f"{TRAIN}, line 7 ({escape_controls(video_id)}), column {column}: " in message
    assert complaint in message


def test_the_view_must_agree_with_the_id(toy_folder):
    table = read_toy(TOY)
    line = table.views.index("first") + 2
    video_id = edit_cell(toy_folder, line, "egocentric", "No")
    assert f"line {line} ({video_id}), column egocentric: 'No' contradicts the id" in refusal(toy_folder)


def test_an_id_that_occurs_twice_is_named(toy_folder):
    table = read_toy(TOY)
    first = table.video_ids[0]
    edit_cell(toy_folder, table.views.index(table.views[0], 5) + 2, "id", first)
    assert f"video {first} occurs more than once" in refusal(toy_folder)


def test_all_problems_come_in_one_message(toy_folder):
    for line in range(2, 10):
        edit_cell(toy_folder, line, "length", "?")
    message = refusal(toy_folder)
    assert message.startswith("8 problem(s)")
    assert "line 6 " in message and "and 3 more" in message and "line 7 " not in message


def test_a_missing_column_is_named(toy_folder):
    rewrite(toy_folder / TRAIN, lambda raw: raw.replace(b"egocentric", b"ego", 1))
    assert f"{TRAIN}, line 1: no column egocentric" in refusal(toy_folder)


def test_a_file_cut_within_a_line_is_refused_with_the_line(toy_folder):
    rewrite(toy_folder / TRAIN, lambda raw: raw[: raw.rindex(b"c0")])
    lines = (toy_folder / TRAIN).read_bytes().count(b"\n") + 1
    message = refusal(toy_folder)
    assert f"{TRAIN}, line {lines}" in message and "cut-off line?" in message


def test_a_file_cut_within_quotes_is_refused(toy_folder):
    rewrite(toy_folder / TRAIN, lambda raw: raw[: raw.rindex(b'""') - 3])
    assert "a quotation mark is open or the file is cut off" in refusal(toy_folder)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "no column id"),
    (b"\x00\xff\xfe\x80", "line 1: byte 1 is not UTF-8 text"),
    ("id,länge\n".encode("latin-1"), "is not UTF-8 text"),
    (b"id,subject,actions,length,egocentric\n", f"{TRAIN} holds no video"),
])  # fmt: skip
def test_a_file_of_another_kind_is_refused(toy_folder, content, complaint):
    (toy_folder / TRAIN).write_bytes(content)
    assert complaint in refusal(toy_folder)


def test_missing_files_and_folders_are_named_with_the_way_out(tmp_path, toy_folder):
    manifest = load_manifest("charadeslt")
    with pytest.raises(AnnotationError, match="meidbench download charadeslt --accept-licence"):
        read_annotations(manifest, tmp_path / "nowhere")
    (toy_folder / TRAIN).unlink()
    assert f"{TRAIN} is missing" in refusal(toy_folder)
    for place in ("a", "b"):
        (toy_folder / place).mkdir()
        (toy_folder / place / TRAIN).write_text("")
    assert f"{TRAIN} is there 2 times" in refusal(toy_folder)


@pytest.mark.parametrize(("change", "complaint"), [
    (lambda raw: raw.replace(b"c003", b"c004"), "entry 4: class code 'c004', expected 'c003'"),
    (lambda raw: raw[: raw.index(b"c010")], "10 classes, ToyLT has 12"),
])  # fmt: skip
def test_the_class_list_must_be_whole(toy_folder, change, complaint):
    rewrite(toy_folder / "Toy_v1_classes.txt", change)
    assert complaint in refusal(toy_folder)


def test_every_empty_file_is_named(toy_folder):
    for name in (TRAIN, "Toy_v1_test.csv"):
        (toy_folder / name).write_text("id,subject,actions,length,egocentric\n")
    message = refusal(toy_folder)
    assert f"{TRAIN} holds no video" in message and "Toy_v1_test.csv holds no video" in message


# --- VideoLT's lists --------------------------------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    names = "".join(f"thing {index} {index} 1.0\n" for index in range(1004))
    (tmp_path / "count-labels-train.lst").write_text(names)
    (tmp_path / "train.lst").write_text("aaa 3\nbbb 1003,4\n")
    (tmp_path / "validate.lst").write_bytes(b"\xef\xbb\xbfccc 7\r\n\r\n")
    (tmp_path / "test.lst").write_text("ddd 0")
    return tmp_path


def test_lists_are_read(lists):
    table = read_annotations(load_manifest("videolt"), lists)
    assert table.video_ids == ["aaa", "bbb", "ccc", "ddd"]
    assert table.labels == [(3,), (1003, 4), (7,), (0,)]
    assert table.sources == ["train", "train", "validate", "test"]
    assert table.class_names[5] == "thing 5"
    assert all(length != length for length in table.lengths)


@pytest.mark.parametrize("cell", ["1004", "-1", "x", "", "3;4", "3,", "03,3", "1_0", "\uff11"])
def test_a_wrong_label_of_a_list_is_named(lists, cell):
    (lists / "train.lst").write_text(f"aaa 3\nbbb {cell}\n")
    with pytest.raises(AnnotationError, match=rf"train.lst, line 2 \(bbb\): labels '{cell}' are not class indices"):
        read_annotations(load_manifest("videolt"), lists)


# --- the real files ---------------------------------------------------------------------------------------------

# Measured with a plain csv.DictReader: videos, videos without actions, segments that end before they start.
MEASURED = {"charadeslt": (9848, 174 + 49, 7), "charadesegolt": (7860, 9 + 2, 1119 + 182), "videolt": (256192, 0, 0)}


@pytest.mark.parametrize("name", list(REAL))
def test_the_real_files_are_read_with_all_their_quirks(name):
    table = real_annotations(name)
    videos, unlabelled, reversed_segments = MEASURED[name]
    assert len(table.video_ids) == videos
    assert sum(not labels for labels in table.labels) == unlabelled
    assert sum(end < start for segments in table.segments for _, start, end in segments) == reversed_segments
