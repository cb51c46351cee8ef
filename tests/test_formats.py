"""Official annotation files are read as they are, or refused with the place of the mistake. All are invented here."""

import csv
import hashlib
import io
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meidbench.annotations import FORMATS
from meidbench.annotations.activitynet import read_activitynet
from meidbench.annotations.youtube8m import read_youtube8m
from meidbench.errors import AnnotationError
from meidbench.splits.split import Split, read_split, write_split

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABELS = st.sampled_from(["Walking the cat", "Juggling; fire", "漢字", "Tidying", "Œuvre"])
IDS = st.text("abcXYZ019_-", min_size=1, max_size=6)
TAXONOMY = [
    {"nodeName": "Root", "nodeId": 0, "parentName": None, "parentId": None},
    {"nodeName": "Chores", "nodeId": 1, "parentName": "Root", "parentId": 0},
    {"nodeName": "Walking the cat", "nodeId": 2, "parentName": "Chores", "parentId": 1},
    {"nodeName": "Chores", "nodeId": 3, "parentName": "Root", "parentId": 0},
    {"nodeName": "Basking", "nodeId": 4, "parentName": "Chores", "parentId": 1},
]
ONE = {"subset": "training", "duration": 20, "annotations": [{"segment": [1.5, 2], "label": "Walking the cat"}]}


def activitynet(tmp_path, content, name="mine.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_activitynet([path])


def refused(read, *arguments):
    with pytest.raises(AnnotationError) as caught:
        read(*arguments)
    return str(caught.value)


# --- activitynet --------------------------------------------------------------------------------------------------

SEGMENTS = st.tuples(st.integers(0, 400), st.integers(0, 400)).map(lambda pair: [pair[0] / 4, pair[1] / 4])


@st.composite
def databases(draw):
    annotation = st.fixed_dictionaries({"label": LABELS}, optional={"segment": SEGMENTS, "label_id": st.integers(0, 9)})
    video = st.fixed_dictionaries(
        {"subset": st.sampled_from(["training", "Test", "validation"])},
        optional={
            "duration": st.integers(1, 900) | st.floats(0.5, 900),
            "annotations": st.lists(annotation, max_size=4),
            "url": st.just("https://example.org/video"),
        },
    )
    return {**draw(st.dictionaries(IDS, video, max_size=5)), "last one": ONE}


@QUICK
@given(database=databases())
def test_activitynet_says_what_the_file_says(tmp_path, database):
    read = activitynet(tmp_path, {"version": "VERSION 1.3", "database": database})
    used = {entry["label"] for video in database.values() for entry in video.get("annotations", [])}
    assert list(read.class_names) == sorted(used)
    assert read.video_ids == list(database)
    for row, video in enumerate(database.values()):
        entries = video.get("annotations", [])
        assert read.sources[row] == video["subset"]
        assert [read.class_names[label] for label in read.labels[row]] == list(
            dict.fromkeys(e["label"] for e in entries)
        )
        said = [(read.class_names[label], start, end) for label, start, end in read.segments[row]]
        assert said == [(entry["label"], *entry["segment"]) for entry in entries if "segment" in entry]
        assert read.lengths[row] == video["duration"] if "duration" in video else math.isnan(read.lengths[row])
    raw = (tmp_path / "mine.json").read_bytes()
    assert [(file.name, file.sha256) for file in read.files] == [("mine.json", hashlib.sha256(raw).hexdigest())]


def test_classes_are_the_leaves_of_the_taxonomy_by_id(tmp_path):
    read = activitynet(tmp_path, {"taxonomy": TAXONOMY, "database": {"a": ONE}})
    # The second node called Chores is a leaf, though an inner node has its name; Basking is one without a video.
    assert read.class_names == ("Basking", "Chores", "Walking the cat") and read.labels == [(2,)]
    without_ids = [{key: node[key] for key in ("nodeName", "parentName")} for node in TAXONOMY]
    assert activitynet(tmp_path, {"taxonomy": without_ids, "database": {"a": ONE}}).class_names == (
        "Basking", "Walking the cat",
    )  # fmt: skip
    strange = {"a": {"annotations": [{"label": "Root"}]}}
    message = refused(activitynet, tmp_path, {"taxonomy": TAXONOMY, "database": strange})
    assert "mine.json, a: label 'Root' is not a leaf of the taxonomy" in message
    assert "take the key 'taxonomy'" in message


def test_numbers_may_be_text_and_odd_segments_are_kept(tmp_path):
    video = {
        "duration": "20.5",
        "annotations": [{"label": "x", "segment": ["9.5", "3"]}, {"label": "x", "segment": [30, 31]}],
    }
    read = activitynet(tmp_path, {"database": {"a": video}})
    assert read.lengths == [20.5] and read.segments == [((0, 9.5, 3.0), (0, 30.0, 31.0))]
    assert read.labels == [(0,)] and read.sources == [""]


def test_several_files_are_pooled_if_they_are_of_one_dataset(tmp_path):
    paths = [tmp_path / "train.json", tmp_path / "val.json"]
    for path, video_id, label in zip(paths, "ab", "yx", strict=True):
        path.write_text(json.dumps({"database": {video_id: {"annotations": [{"label": label}]}}}))
    read = read_activitynet(paths)
    assert (read.class_names, read.labels, read.video_ids) == (("x", "y"), [(1,), (0,)], ["a", "b"])
    assert [file.name for file in read.files] == ["train.json", "val.json"]
    assert "video a occurs more than once" in refused(read_activitynet, [paths[0], paths[0]])
    paths[1].write_text(json.dumps({"taxonomy": TAXONOMY, "database": {"b": ONE}}))
    assert "their taxonomies are not the same" in refused(read_activitynet, paths)
    assert "no file" in refused(read_activitynet, [])


def test_a_split_made_of_it_is_written_and_read_back(tmp_path):
    read = activitynet(tmp_path, {"database": {"a": ONE, "b": ONE, "c": {"subset": "testing", "annotations": []}}})
    subsets = ["train", "test", ""]
    split = Split.from_annotations(
        read, subsets, dataset="mine", variant="own", head_above=1, tail_up_to=0
    )  # fmt: skip
    again = read_split(write_split(split, tmp_path / "s.parquet"))
    assert again.table.column("segments").to_pylist()[0] == [{"label": 0, "start_s": 1.5, "end_s": 2.0}]
    assert again.table.column("source").to_pylist() == ["training", "training"]


@pytest.mark.parametrize(("content", "complaint"), [
    ({"database": {}}, "no video has a label"),
    ({"database": {"a": {"subset": "testing"}}}, "no video has a label"),
    ({"results": {}, "version": "1"}, "or videos with annotations by id, found results, version"),
    ([], "found a list"),
    ({"database": [ONE]}, "expected a key 'database'"),
    ('{"database": {"a": {"annota', "is not a readable JSON file"),
    pytest.param("[" * 100_000, "is not a readable JSON file", id="deep"),
    ('{"database": {"a": {"annotations": []}, "a": {"subset": "x"}}}', "1 key(s) occur twice in one object: 'a'"),
    ({"database": {"a": 3}}, "mine.json, a: 3 is not an object"),
    ({"database": {"": ONE}}, "is not a video id"),
    ({"database": {"a\n": ONE}}, "is not a video id"),
    ({"database": {"a": {**ONE, "subset": 3}}}, "subset 3 is not text"),
    ({"database": {"a": {**ONE, "duration": 0}}}, "duration 0 is not a length in seconds"),
    ({"database": {"a": {**ONE, "duration": "12 s"}}}, "'12 s' is not a number of seconds"),
    ({"database": {"a": {**ONE, "duration": math.nan}}}, "nan is not a number of seconds"),
    ({"database": {"a": {"annotations": {"label": "x"}}}}, "are not a list"),
    ({"database": {"a": {"annotations": ["x"]}}}, "annotation 'x' has no label"),
    ({"database": {"a": {"annotations": [{"label": " "}]}}}, "has no label"),
    ({"database": {"a": {"annotations": [{"label": "\ud800"}]}}}, "has no label"),
    ({"database": {"a": {"annotations": [{"label": "x", "segment": [1]}]}}}, "segment [1] is not a start and an end"),
    ({"database": {"a": {"annotations": [{"label": "x", "segment": [1, True]}]}}}, "True is not a number of seconds"),
    ({"database": {"a": {"annotations": [{"label": "x", "segment": [-1, 2]}]}}}, "-1 is not a number of seconds"),
    ({"database": {str(n): 3 for n in range(8)}}, "... and 3 more"),
    ({"database": {"a": ONE}, "taxonomy": {"x": 1}}, "the taxonomy is not a list of nodes"),
    ({"database": {"a": {"annotations": [{"label": f"x{n}"} for n in range(32_768)]}}}, "32,768 classes are more"),
])  # fmt: skip
def test_activitynet_of_another_form_is_refused(tmp_path, content, complaint):
    assert complaint in refused(activitynet, tmp_path, content)


# --- youtube8m ----------------------------------------------------------------------------------------------------

VOCABULARY = (
    "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,WikiDescription\n"
    '0,9,/m/00a,Kite,,Toys,"Flown, on a ""string"".\nIn wind."\n'
    "1,8,/m/00b,Boat,,Vehicles,\n"
    "3,7,/m/00d,Boat,,Films,\n"
    "4,2,/m/00e,,,(Unknown),\n"
)


def youtube8m(tmp_path, labels="ab12,0\n", vocabulary=VOCABULARY, name="train_labels.csv"):
    (tmp_path / "vocabulary.csv").write_text(vocabulary, encoding="utf-8")
    (tmp_path / name).write_text(labels, encoding="utf-8")
    return read_youtube8m([tmp_path / name, tmp_path / "vocabulary.csv"])


def test_youtube8m_keeps_the_indices_and_names_every_class(tmp_path):
    read = youtube8m(tmp_path, "ab12,4 0\n-x_9,3\nzz,\n")
    assert read.class_names == ("Kite", "Boat (/m/00b)", "Entity 2", "Boat (/m/00d)", "/m/00e")
    assert read.video_ids == ["ab12", "-x_9", "zz"] and read.labels == [(4, 0), (3,), ()]
    assert read.sources == ["train"] * 3 and all(math.isnan(length) for length in read.lengths)
    assert [file.name for file in read.files] == ["train_labels.csv", "vocabulary.csv"]
    raw = (tmp_path / "train_labels.csv").read_bytes()
    assert (read.files[0].bytes, read.files[0].sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_a_header_line_ends_of_windows_and_a_byte_order_mark_are_passed_over(tmp_path):
    (tmp_path / "vocabulary.csv").write_text(VOCABULARY, encoding="utf-8-sig")
    (tmp_path / "mine.csv").write_bytes(b"\xef\xbb\xbfVideoId,Labels\r\nab,0  1\r\n\r\ncd,3\r\n")
    read = read_youtube8m([tmp_path / "vocabulary.csv", tmp_path / "mine.csv"])
    assert read.video_ids == ["ab", "cd"] and read.labels == [(0, 1), (3,)] and read.sources == ["mine", "mine"]


def test_tables_are_pooled_each_under_its_own_subset(tmp_path):
    youtube8m(tmp_path)
    (tmp_path / "validate_labels.csv").write_text("cd34,1\n")
    paths = [tmp_path / name for name in ("vocabulary.csv", "train_labels.csv", "validate_labels.csv")]
    read = read_youtube8m(paths)
    assert read.video_ids == ["ab12", "cd34"] and read.sources == ["train", "validate"]
    (tmp_path / "validate_labels.csv").write_text("ab12,1\n")
    assert "video ab12 occurs more than once" in refused(read_youtube8m, paths)
    assert "expected one vocabulary" in refused(read_youtube8m, paths[1:])
    assert "one label table at least, got 1 and 0: vocabulary.csv" in refused(read_youtube8m, paths[:1])
    assert "got 2 and 1" in refused(read_youtube8m, [*paths[:2], paths[0]])
    assert "cannot read" in refused(read_youtube8m, [tmp_path / "none.csv"])


ROWS = st.dictionaries(
    IDS.filter(lambda text: text != "id"), st.lists(st.integers(0, 30), max_size=4, unique=True), max_size=6
)
ENTRIES = st.dictionaries(st.integers(0, 30), st.sampled_from(["", "Kite", "Boat", "Entity 3", "漢,字", 'a "b"']))


@QUICK
@given(rows=ROWS, entries=ENTRIES)
def test_youtube8m_says_what_the_files_say(tmp_path, rows, entries):
    rows = {**rows, "last one": [30]}
    entries = {**entries, 30: "Highest"}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["Index", "Name"])
    writer.writerows(entries.items())
    labels = "".join(f"{video_id},{' '.join(map(str, classes))}\n" for video_id, classes in rows.items())
    read = youtube8m(tmp_path, labels, stream.getvalue())
    assert dict(zip(read.video_ids, map(list, read.labels), strict=True)) == rows
    assert len(read.class_names) == 31 == len(set(read.class_names))
    names = list(entries.values())
    for index, name in enumerate(read.class_names):
        given_name = entries.get(index)
        if given_name and names.count(given_name) == 1 and given_name != "Entity 3":
            assert name == given_name
        elif given_name:
            assert name.startswith(given_name)
        else:
            assert f"Entity {index}" in name


@pytest.mark.parametrize(("labels", "complaint"), [
    ("", "train_labels.csv holds no video"),
    ("VideoId,Labels\n", "train_labels.csv holds no video"),
    ("ab,\n", "no video has a label"),
    ("ab,0\ncd,5\n", "line 2 (cd): label 5 is outside the 5 classes of the vocabulary"),
    ("ab,0;1\n", "line 1 (ab): label '0;1' is not an index; they are separated by blanks"),
    ("ab,0,1\n", "label '0,1' is not an index"),
    ("ab,0 0.93 1 0.2\n", "label '0.93' is not an index"),
    ("ab,-1\n", "label '-1' is not an index"),
    ("ab,01\n", "label '01' is not an index"),
    ("ab,1 1\n", "a label occurs twice in '1 1'"),
    ("ab,0\ncd", "line 2 (cd): no comma"),
    (",0\n", "is not a video id"),
    ("a\tb,0\n", "is not a video id"),
    ("ab,0\nab,1\nab,2\n", "1 problem(s) with the YouTube-8M annotations:\n  - video ab occurs more than once"),
    ("".join(f"v{n},x\n" for n in range(9)), "... and 4 more"),
])  # fmt: skip
def test_a_strange_label_table_is_refused_with_the_line(tmp_path, labels, complaint):
    assert complaint in refused(youtube8m, tmp_path, labels)


@pytest.mark.parametrize(("vocabulary", "complaint"), [
    ("Index,Name\n", "vocabulary.csv holds no class"),
    ("Index,Name\n0,a\n0,b\n", "line 3: Index 0 occurs more than once"),
    ("Index,Name\nx,a\n", "line 2: Index 'x' is not one from 0 to 32,766"),
    ("Index,Name\n32767,a\n", "Index '32767' is not one from"),
    ("Index,Name\n0,a,b\n", "line 2: 3 cells, expected 2"),
    ('Index,Name\n0,"a\n', "a quotation mark is open or the file is cut off"),
    ("Index,Name\n0,a\tb\n", "is not text in one line"),
    ("label_id,label_name\n0,a\n", "expected one vocabulary"),
])  # fmt: skip
def test_a_strange_vocabulary_is_refused_with_the_line(tmp_path, vocabulary, complaint):
    assert complaint in refused(youtube8m, tmp_path, "ab,0\n", vocabulary)


def test_what_is_not_utf8_is_refused_with_the_line(tmp_path):
    youtube8m(tmp_path)
    (tmp_path / "train_labels.csv").write_bytes(b"ab,0\n\xff\xfe,1\n")
    paths = [tmp_path / "train_labels.csv", tmp_path / "vocabulary.csv"]
    assert "train_labels.csv, line 2: byte 5 is not UTF-8 text" in refused(read_youtube8m, paths)


# --- both ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if not form.needs_manifest])
@QUICK
@given(raw=st.binary(max_size=80))
def test_whatever_a_file_holds_is_refused_in_words(tmp_path, name, raw):
    (tmp_path / "any").write_bytes(raw)
    (tmp_path / "vocabulary.csv").write_text(VOCABULARY, encoding="utf-8")
    paths = [tmp_path / "any"] + ([tmp_path / "vocabulary.csv"] if name == "youtube8m" else [])
    try:
        annotations = FORMATS[name].read(paths)
    except AnnotationError as error:
        assert str(error)
    else:
        assert annotations.video_ids


def test_every_format_says_what_it_reads():
    assert [name for name, form in FORMATS.items() if not form.needs_manifest] == ["activitynet", "youtube8m"]
    assert all(form.title and form.description and form.files and callable(form.read) for form in FORMATS.values())
