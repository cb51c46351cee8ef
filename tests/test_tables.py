"""A plain table is read as it was written, in every form, or refused with the line."""

import csv
import decimal
import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meidbench.annotations.tables import read_table, split_from_files
from meidbench.errors import RequestError, SplitError
from meidbench.splits.released import write_csv
from meidbench.splits.split import read_split, write_split

TABLE = """video_id,note,subset,labels
a,x,train,0;2
b,x,train,2
c,x,val,1
d,x,test,
e,x,test,2;0
"""


def split_from_table(path, **facts):
    return split_from_files([("", path)], "table", **facts)[0]


def make(tmp_path, text=TABLE, **options):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    return split_from_table(path, dataset="mine", **({"head_above": 1, "tail_up_to": 0} | options))


def test_the_split_is_what_the_table_says(tmp_path):
    split = make(tmp_path)
    assert split.video_ids("train") == ["a", "b"] and split.video_ids("test") == ["d", "e"]
    assert split.labels("test").tolist() == [[False] * 3, [True, False, True]]
    assert split.train_counts.tolist() == [1, 0, 2]
    assert [split.groups.head.tolist(), split.groups.medium.tolist(), split.groups.tail.tolist()] == [[2], [0], [1]]
    assert split.class_names == ("c000", "c001", "c002") and split.dataset == "mine"


def test_labels_may_be_names(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("run\njump, high\nswim\n")
    table = 'video_id,subset,labels\na,train,"jump, high;run"\nb,validation,2\n'
    split = make(tmp_path, table, class_names=names)
    assert split.labels("train").tolist() == [[True, True, False]]
    assert split.labels("val").tolist() == [[False, False, True]]
    assert split.class_names[1] == "jump, high"


def test_the_command_writes_a_split_that_other_commands_take(run, tmp_path):
    (tmp_path / "mine.csv").write_text(TABLE)
    arguments = [tmp_path / "mine.csv", "--out", tmp_path / "mine.parquet", "--head-above", 1, "--tail-up-to", 0]
    outcome = run("import-split", *arguments)
    assert outcome.exit_code == 0, outcome.stderr
    assert "head / medium / tail" in outcome.stdout and f"wrote {tmp_path / 'mine.parquet'}" in outcome.stdout
    split = read_split(tmp_path / "mine.parquet")
    np.savez(tmp_path / "p.npz", video_ids=np.array(["e", "d"]), scores=np.array([[3.0, 2, 1], [1, 2, 3]]))
    scored = run("evaluate", tmp_path / "p.npz", "--split", tmp_path / "mine.parquet")
    assert scored.exit_code == 0 and f"mine (table), test: {len(split.video_ids('test'))} videos" in scored.stdout
    assert run("audit", tmp_path / "mine.parquet").exit_code == 0
    assert run("import-split", *arguments[:-1], 5).exit_code == 2


@pytest.mark.parametrize(("text", "complaint"), [
    ("video_id,labels\na,0\n", "has no column subset; its columns are video_id, labels"),
    ("video_id,subset,labels\na,dev,0\n", "line 2 (a): subset 'dev' is not one of train, val, test"),
    ("video_id,subset,labels\na,train,x;1\n", "names in some rows and indices in others"),
    ("video_id,subset,labels\na,train,-1\n", "line 2 (a): label '-1' is not one of the class names or indices"),
    ("video_id,subset,labels\na,train,1;1\n", "line 2 (a): a label occurs twice"),
    ("video_id,subset,labels\n,train,1\n", "'' is not a video id"),
    ("video_id,subset,labels\na,train,1\na,val,1\n", "1 video(s) occur more than once: a"),
    ("video_id,subset,labels\na,train,\n", "holds no video with a label"),
    ("video_id,subset,labels\n", "holds no video with a label"),
    ("video_id,subset,labels\na,train,99999\n", "classes are more than a split file can hold"),
    ('video_id,subset,labels\n"a,train,1\n', "not a readable CSV file"),
    ("", "has no column video_id, subset, labels"),
    ("video_id,subset,labels\na,train,0,7\n", "line 2 (a): 4 cells, expected 3; labels are joined by semicolons"),
    ("video_id,subset,labels\na,train\n", "line 2 (a): 2 cells, expected 3"),
    ('video_id,subset,labels\n"a\nb",train,0\n', "is not a video id"),
])  # fmt: skip
def test_a_wrong_table_is_refused_with_the_line(tmp_path, text, complaint):
    with pytest.raises(SplitError) as caught:
        make(tmp_path, text)
    assert complaint in str(caught.value)


def test_a_table_is_tab_separated_where_its_header_is(tmp_path):
    for name, comma in (("t.txt", ""), ("t.csv", ""), ("t.tsv", ",x")):
        text = f"video_id\tsubset\tlabels{comma}\na\ttrain\trun, fast;swim\n"
        (tmp_path / name).write_text(text)
        if comma:  # the ending decides, and the column has another name
            with pytest.raises(
                SplitError, match="has no column labels, and no column of 0 and 1 per class; its columns are"
            ):
                split_from_table(tmp_path / name, dataset="t", head_above=1, tail_up_to=0)
            continue
        split = split_from_table(tmp_path / name, dataset="t", head_above=1, tail_up_to=0)
        assert split.class_names == ("run, fast", "swim")


def test_columns_may_be_separated_by_semicolons(tmp_path):
    split = make(tmp_path, 'video_id;subset;labels;length_s\na;train;"0;2";1.5\nb;val;1,2;\n')
    assert split.table.column("labels").to_pylist() == [[0, 2], [1, 2]]
    assert split.table.column("length_s").to_pylist()[0] == 1.5
    with pytest.raises(SplitError, match="line 2 \\(a\\): 4 cells, expected 3; quote a cell that holds semicolons"):
        make(tmp_path, "video_id;subset;labels\na;train;0;2\n")


def test_a_split_file_is_no_table(tmp_path):
    write_split(make(tmp_path), tmp_path / "split.parquet")
    with pytest.raises(SplitError, match="split.parquet is a split file already: name it where a command takes SPLIT"):
        split_from_table(tmp_path / "split.parquet", dataset="t", head_above=1, tail_up_to=0)


def test_the_note_tells_names_with_commas_and_indices_from_1(tmp_path):
    def note(text):
        (tmp_path / "t.csv").write_text(text)
        return read_table(tmp_path / "t.csv").note

    assert note('video_id,labels\na,"eat, run"\nb,eat\n').endswith("sorted by code points: 'eat', 'eat, run'")
    assert note("video_id,labels\na,eat\n").startswith("1 class, the distinct names")
    assert note("video_id,labels\na,1\nb,2\n").endswith(
        "c000, c001, c002; no video has the index 0: take 1 from each if they count from 1"
    )
    assert note("video_id,labels\na,0\nb,1;2\n").endswith("c000, c001, c002")


def test_wrong_thresholds_names_and_files_are_refused(tmp_path):
    with pytest.raises(RequestError, match="tail_up_to 5 lies above head_above 1"):
        make(tmp_path, tail_up_to=5)
    names = tmp_path / "names.txt"
    names.write_text("run\nrun\n")
    with pytest.raises(SplitError, match="class names occur more than once: run"):
        make(tmp_path, class_names=names)
    names.write_text("run\n")
    with pytest.raises(SplitError, match="label 2 is outside the 1 class; the first has index 0"):
        make(tmp_path, class_names=names)
    with pytest.raises(SplitError, match="cannot read the class names"):
        make(tmp_path, class_names=tmp_path / "none")
    with pytest.raises(SplitError, match="cannot read"):
        split_from_table(tmp_path / "none.csv", dataset="x", head_above=1, tail_up_to=0)


# --- tables of every form -----------------------------------------------------------------------------------------

IDS = st.text("abcXYZ019_-é漢", min_size=1, max_size=8)
GROUPS = st.sampled_from(["", "film 1", "Žižek", "pair;2"])
NAMES = st.sampled_from(["run", "jump, high", 'say "hi"', "漢字", "schwimmen im Fluß", "Łódź"])


@st.composite
def tables(draw, labels=NAMES):
    """Rows of an invented table: id, labels, group, subset, length."""
    ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    rows = [
        (
            video_id,
            draw(st.lists(labels, max_size=3, unique=True)),
            draw(GROUPS),
            draw(st.sampled_from(["train", "val", "test"])),
            draw(st.none() | st.integers(1, 4000).map(lambda quarter: quarter / 4)),
        )
        for video_id in ids
    ]
    return [*rows, ("last one", [draw(labels)], "", "train", None)]


def write_table(path, rows):
    """Write rows in the form that the ending of the path says, by the standard library and pyarrow."""
    keys = ("video_id", "labels", "group", "subset", "length_s")
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(keys)
            writer.writerows([row[0], ";".join(map(str, row[1])), *row[2:]] for row in rows)
    elif path.suffix == ".parquet":
        kind = pa.int16() if any(isinstance(label, int) for row in rows for label in row[1]) else pa.string()
        types = (pa.string(), pa.list_(kind), pa.string(), pa.string(), pa.float64())
        columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
        pq.write_table(pa.table(dict(zip(keys, columns, strict=True))), path)
    else:
        entries = [dict(zip(keys, row, strict=True)) for row in rows]
        lines = "\n".join(json.dumps(entry) for entry in entries)
        path.write_text(json.dumps(entries, indent=1) if path.suffix == ".json" else lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "json", "jsonl"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=tables() | tables(st.integers(0, 40)))
def test_every_form_says_what_was_written(tmp_path, ending, rows):
    content = read_table(write_table(tmp_path / f"t.{ending}", rows))
    read = content.annotations
    distinct = {label for row in rows for label in row[1]}
    by_index = isinstance(next(iter(distinct)), int)
    expected = [f"c{index:03d}" for index in range(max(distinct) + 1)] if by_index else sorted(distinct)
    assert list(read.class_names) == expected
    assert content.classes_from == ("indices" if by_index else "labels") and str(len(expected)) in content.note
    assert read.video_ids == [row[0] for row in rows]
    said = [[label if by_index else read.class_names[label] for label in labels] for labels in read.labels]
    assert said == [row[1] for row in rows]
    assert read.pair_ids == [row[2] for row in rows]
    assert read.sources == [row[3] for row in rows] == list(content.subsets)
    assert [None if math.isnan(length) else length for length in read.lengths] == [row[4] for row in rows]
    columns = (read.subjects, read.views, read.segments)
    assert {len(column) for column in columns} == {len(rows)}


@pytest.mark.parametrize("ending", ["tsv", "parquet", "json", "jsonl"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=tables(st.integers(0, 9)))
def test_a_split_is_the_same_from_every_form(tmp_path, ending, rows):
    options = {"dataset": "mine", "head_above": 2, "tail_up_to": 1}
    plain = split_from_table(write_table(tmp_path / "t.csv", rows), **options)
    other = split_from_table(write_table(tmp_path / f"t.{ending}", rows), **options)
    assert repr(other.table.to_pylist()) == repr(plain.table.to_pylist())  # NaN is not equal to itself
    assert replace(other.metadata, sources=()) == replace(plain.metadata, sources=())
    lines = "".join(f"{row[0]}\t{row[3]}\t{','.join(map(str, sorted(row[1])))}\n" for row in sorted(rows))
    assert plain.digest == hashlib.sha256(lines.encode()).hexdigest()


def read(tmp_path, text, name="t.csv", **options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_table(tmp_path / name, **options)


def test_one_video_with_one_label_is_enough(tmp_path):
    content = read(tmp_path, "video_id,labels\na,run\n")
    assert (content.annotations.class_names, content.annotations.labels) == (("run",), [(0,)])
    assert content.subsets is None and content.annotations.sources == [""]


def test_subsets_of_other_names_stay_what_they_are(tmp_path):
    content = read(tmp_path, "video_id,labels,subset\na,0,Training\nb,0,holdout\n")
    assert content.subsets is None and content.annotations.sources == ["Training", "holdout"]
    assert read(tmp_path, "video_id,labels,subset\na,0,Training\nb,0,testing\n").subsets == ("train", "test")


def test_names_with_semicolons_can_be_said_in_lists_and_by_index(tmp_path):
    entries = [{"video_id": "a", "labels": ["open; close", "run"]}, {"video_id": 7, "labels": "run"}]
    assert read(tmp_path, json.dumps(entries), "t.json").annotations.class_names == ("open; close", "run")
    names = tmp_path / "names.txt"
    names.write_text("run\nopen; close\n")
    listed = read(tmp_path, json.dumps(entries), "t.json", class_names=names)
    assert listed.annotations.labels == [(1, 0), (0,)] and listed.annotations.video_ids == ["a", "7"]
    assert listed.note == "2 classes, in the order of the list of class names: run, open; close"
    assert [file.name for file in listed.annotations.files] == ["t.json", "names.txt"]
    assert read(tmp_path, "video_id,labels\na,1;0\n", class_names=names).annotations.labels == [(1, 0)]
    with pytest.raises(SplitError, match="names that hold a semicolon need lists"):
        read(tmp_path, "video_id,labels\na,open; close\n", class_names=names)


def test_groups_are_kept_so_that_the_audit_finds_what_leaks(tmp_path, run):
    table = "video_id,subset,labels,group,subject\na,train,0,film 1,p1\nb,test,0,film 1,p1\nc,test,0,,p2\n"
    split = make(tmp_path, table)
    assert split.table.column("pair_id").to_pylist() == ["film 1", "film 1", ""]
    assert split.table.column("subject").to_pylist() == ["p1", "p1", "p2"]
    write_split(split, tmp_path / "mine.parquet")
    audit = run("audit", tmp_path / "mine.parquet")
    assert "pair-leakage" in audit.stdout and "subject-overlap" in audit.stdout
    write_csv(split, tmp_path / "again.csv")
    again = read_table(tmp_path / "again.csv").annotations
    assert again.pair_ids == ["film 1", "film 1", ""] and again.subjects == ["p1", "p1", "p2"]


@pytest.mark.parametrize(("name", "text", "complaint"), [
    ("t.csv", "video_id,labels\na,run\nb,3;4\n", "'run' (line 2) beside 3 (line 3), 4 (line 3)"),
    ("t.csv", "video_id,labels\na,run\nb,Run\n", "names that differ only in case or spacing: 'Run' / 'run'"),
    ("t.csv", "video_id,labels\na,run\nb,-1\n", "line 3 (b): label '-1' is not one of the class names or indices"),
    ("t.csv", "video_id,labels\na,1.0\n", "label '1.0' is not one of"),
    ("t.csv", "video_id,labels\na,run;\n", "or indices; take out the surplus separator"),
    ("t.csv", "video_id,labels\na,run; run\n", "a label occurs twice"),
    ("t.csv", "video_id,labels\na,7;07\n", "a label occurs twice"),
    ("t.csv", "video_id,labels\na,32767\n", "32,768 classes are more than a split file can hold (32,767)"),
    ("t.csv", "video_id,labels\na,0\nb,0\na,0\nc,0\na,0\n", "occur more than once: a (lines 2, 4, 6)"),
    ("t.csv", "video_id,labels,Group\na,0,g\n", "column 'Group' would be ignored; write 'group'"),
    ("t.csv", "video_id,labels,groups\na,0,g\n", "column 'groups' would be ignored"),
    ("t.csv", "video_id,run,fps\na,1,25\n", "classes, which need 0 or 1 in every row: not so in fps; drop the columns"),
    ("t.csv", "video_id,run,swim\na,1,0\nb,,no\n", "0 or 1 in every row: not so in run, swim; drop the columns"),
    ("t.csv", "video_id,run,run\na,1,0\n", "has a column more than once: run"),
    ("t.csv", "video_id,run,swim\na,1\n", "t.csv, line 2 (a): 2 cells, expected 3"),
    ("t.csv", "video_id,label\na,1\n", "column 'label' would be ignored; write 'labels'"),
    ("t.csv", "video_id,note\na,x\n", "no column labels, and no column of 0 and 1 per class; its columns are"),
    ("t.csv", "video_id,labels\na,run\nb,run\na,swim\n", "a (lines 2, 4); the rows of a video differ only in labels"),
    ("t.csv", "video_id,labels,group\na,0,g\na,1,h\n", "occur more than once: a (lines 2, 3)"),
    ("t.csv", "video_id,labels,group,pair_id\na,0,g,g\n", "a column more than once: group (also called pair_id)"),
    ("t.csv", "video_id,labels,labels\na,0,1\n", "a column more than once: labels"),
    ("t.csv", "video_id,labels,length_s\na,0,-3\n", "length_s '-3' is not a length in seconds"),
    ("t.csv", "video_id,labels,length_s\na,0,1_0\n", "length_s '1_0' is not"),
    ("t.csv", "video_id,labels,length_s\na,0,inf\n", "length_s 'inf' is not"),
    ("t.csv", "video_id,labels\n" + "".join(f"{n},1.5\n" for n in range(9)), "9 problem(s)"),
    ("t.csv", "video_id,labels\n" + "".join(f"{n},1.5\n" for n in range(9)), "... and 4 more"),
    ("t.csv", "video;labels\na;0\n", "has no column video_id; its columns are video, labels"),
    ("t.csv", "x/a.mp4,0\nx/b.mp4,1\n", "its columns are x/a.mp4, 0; the first line of a table names its columns"),
    ("t.tsv", "video_id\tlabels\na\t0\tx\n", "line 2 (a): 3 cells, expected 2"),
    ("t.json", "[]", "holds no video with a label"),
    ("t.json", '[{"video_id": "a", "labels": [0]}', "is not a readable JSON file"),
    pytest.param("t.json", "[" * 100_000, "is not a readable JSON file", id="deep"),
    ("t.json", '[{"video_id": "a", "labels": [0], "labels": [1]}]', "key(s) twice in one object: labels"),
    ("t.json", '[{"video_id": "a", "labels": [true]}]', "entry 1 (a): label True is neither a name nor an index"),
    ("t.json", '[{"video_id": "a", "labels": [1.0]}]', "label 1.0 is neither"),
    ("t.json", '[{"video_id": "a", "labels": [[1]]}]', "label [1] is neither"),
    ("t.json", '[{"video_id": "a", "labels": {"x": 1}}]', "labels {'x': 1} are not a list"),
    ("t.json", '[{"video_id": "a", "labels": 3.0}]', "labels 3.0 are not a list"),
    ("t.json", '[{"video_id": "a", "labels": ["\\ud800"]}]', "label '\\ud800' is not one of"),
    ("t.json", '[{"video_id": "a", "labels": ["x"], "group": ["g"]}]', "group ['g'] is not text in one line"),
    ("t.json", '[{"video_id": "a", "labels": ["x"], "group": "g", "pair_id": "h"}]', "both a group and a pair_id"),
    ("t.json", '[{"video_id": "a", "labels": ["x"], "length_s": true}]', "length_s True is not"),
    ("t.json", '[{"video_id": null, "labels": ["x"]}]', "'' is not a video id"),
    ("t.json", '[{"video_id": "a", "label": ["x"]}, 3]', "entry 1 (a): no labels; its keys are video_id, label"),
    ("t.json", '[{"video_id": "a", "labels": ["x"]}, 3]', "t.json, entry 2: not an object"),
    ("t.json", '[{"video_id": "a", "labels": ["x"]}, {"video_id": "b", "labels": [], "Groups": 1}]', "'Groups'"),
    ("t.jsonl", '{"video_id": "a", "labels": ["x"]}\n{"video_id": "b", "lab', "line 2"),
    ("t.json", '{\n "database": {}\n}', "expected one object per line, or a list of objects"),
    ("t.json", '{"database": {}}', "line 1 (None): no video_id and labels; its keys are database"),
])  # fmt: skip
def test_a_table_that_cannot_be_meant_is_refused_with_the_place(tmp_path, name, text, complaint):
    with pytest.raises(SplitError) as caught:
        read(tmp_path, text, name)
    assert complaint in str(caught.value)


# --- lists in a cell ----------------------------------------------------------------------------------------------

SPELLINGS = (
    *("0;2;3", '"[0, 2, 3]"', "0 2 3", "0|2|3", '"(0, 2, 3)"', "[0 2 3]", '"0,2,3"', '"{0, 2, 3}"'),
    "\"['0', '2', '3']\"",
)


@pytest.mark.parametrize("cell", SPELLINGS)
@pytest.mark.parametrize("named", [False, True])
def test_a_list_of_indices_is_read_in_every_spelling(tmp_path, cell, named):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    content = read(tmp_path, f"video_id,labels\nx,{cell}\ny,1\n", class_names=names if named else None)
    assert content.annotations.labels == [(0, 2, 3), (1,)]
    assert content.annotations.class_names == (("a", "b", "c", "d") if named else ("c000", "c001", "c002", "c003"))
    split = make(tmp_path, f"video_id,subset,labels\nx,train,{cell}\ny,test,1\n")
    assert split.table.column("labels").to_pylist() == [[0, 2, 3], [1]]


@pytest.mark.parametrize(("cell", "labels", "names"), [
    ("\"['run', 'swim']\"", ["run", "swim"], None),
    ('"[""run"", ""don\'t""]"', ["run", "don't"], None),
    ("run fast;swim", ["run fast", "swim"], None),
    ("(background);jump (high)", ["(background)", "jump (high)"], None),
    ("[]", [], None),
    ("run fast", ["run fast"], "run fast\nrun\nfast\nswim\n"),
    ("run|fast", ["run|fast"], "run|fast\nrun\nfast\nswim\n"),
    ("7 11", ["7 11"], "7 11\nswim\n"),
    ('"[run]"', ["[run]"], "[run]\nswim\n"),
    ("run|swim", ["run", "swim"], "run\nswim\n"),
    ('"run, swim"', ["run", "swim"], "run\nswim\n"),
    ("run swim", ["run", "swim"], "run\nswim\n"),
])  # fmt: skip
def test_names_are_read_where_they_are_unambiguous(tmp_path, cell, labels, names):
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
    options = {} if names is None else {"class_names": tmp_path / "names.txt"}
    annotations = read(tmp_path, f"video_id,labels\na,{cell}\nb,swim\n", **options).annotations
    assert [annotations.class_names[label] for label in annotations.labels[0]] == labels


@pytest.mark.parametrize(("cell", "complaint"), [
    ("run|swim", "line 2 (a): label 'run|swim' is not one of"),
    ('"[run, swim]"', "label '[run, swim]' is not one of"),
    ("\"'run', 'swim'\"", "labels are joined by semicolons; if it is one name, give the class names"),
    ("0/2/3", "label '0/2/3' is not one of"),
    ("0-2", "label '0-2' is not one of"),
    ('"[0.0, 1.0]"', "looks like a list"),
    ('"[True, False]"', "looks like a list"),
    ("\"{'run': 1}\"", "looks like a list"),
    ('"array([0, 2])"', "looks like a list"),
    ('"0, 2,"', "looks like a list"),
    ('"[[0, 1], [2]]"', "looks like a list"),
    ("0 1 0 0", "a label occurs twice in '0 1 0 0'; it looks like a 0 or 1 per class"),
    ("1;0;0", "it looks like a 0 or 1 per class"),
    ('"[0, 0, 1]"', "it looks like a 0 or 1 per class"),
    ("[" * 5000 + "]", "line 2 (a): label '[[["),
])  # fmt: skip
def test_a_list_that_is_not_clear_is_refused_with_its_cell(tmp_path, cell, complaint):
    with pytest.raises(SplitError) as caught:
        read(tmp_path, f"video_id,labels\na,{cell}\n")
    assert complaint in str(caught.value)


def test_labels_that_are_lists_of_other_labels_are_refused(tmp_path):
    for joined in ('"run, swim"', "run swim"):
        with pytest.raises(SplitError, match="look like a list of other labels.*'run,? swim' \\(line 3\\)"):
            read(tmp_path, f"video_id,labels\na,run\nb,{joined}\nc,swim\n")
    with pytest.raises(SplitError, match="not a 0 or 1 per class"):
        read(tmp_path, "video_id,labels\na,1;0\nb,0;1\n")


def test_lists_in_parquet_and_json_cells_are_read_alike(tmp_path):
    cells = ["[0, 2]", "0 2", "1"]
    pq.write_table(pa.table({"video_id": ["a", "b", "c"], "labels": cells}), tmp_path / "t.parquet")
    entries = [{"video_id": name, "labels": cell} for name, cell in zip("abc", cells, strict=True)]
    for content in (read_table(tmp_path / "t.parquet"), read(tmp_path, json.dumps(entries), "t.json")):
        assert content.annotations.labels == [(0, 2), (0, 2), (1,)]
    with pytest.raises(SplitError, match=r"entry 1 \(a\): label '0 2' is not one of"):
        read(tmp_path, '[{"video_id": "a", "labels": ["0 2"]}]', "t.json")


@pytest.mark.parametrize(("name", "values"), [
    ("group", pa.array([2**31 - 1], pa.int32()).cast(pa.date32())),
    ("subset", pa.array([2**62], pa.int64()).cast(pa.timestamp("ns"))),
    ("video_id", pa.array([b"a"])),
    ("video_id", pa.array([decimal.Decimal("1.5")])),
    ("subject", pa.array([{"name": "x"}])),
    ("labels", pa.array([[[0]]])),
    ("labels", pa.array([[b"x"]])),
    ("labels", pa.array([True])),
    ("length_s", pa.array([2**62], pa.int64()).cast(pa.duration("ns"))),
    ("pair_id", pa.array([2**62], pa.int64()).cast(pa.time64("ns"))),
])  # fmt: skip
def test_a_parquet_column_of_another_type_is_named(tmp_path, run, name, values):
    columns = {"video_id": ["a"], "labels": [[0]], "subset": ["train"], name: values}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    arguments = ("--out", tmp_path / "s.parquet", "--head-above", 2, "--tail-up-to", 1)
    outcome = run("import-split", tmp_path / "t.parquet", *arguments)
    kind = str(values.type).replace("item:", "element:")  # Parquet's own name for what a list holds
    assert outcome.exit_code == 1 and f"column '{name}' is of type {kind}; expected" in outcome.stderr


def test_unusual_parquet_types_that_hold_text_and_numbers_are_read(tmp_path):
    columns = {
        "video_id": pa.array(["a", "b"]).dictionary_encode(),
        "labels": pa.array([["run"], ["swim"]], pa.large_list(pa.string())),
        "group": pa.array([3, 4], pa.int32()),
        "length_s": pa.array([decimal.Decimal("1.5"), None]),
        "subject": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    annotations = read_table(tmp_path / "t.parquet").annotations
    assert (annotations.video_ids, annotations.pair_ids, annotations.subjects) == (["a", "b"], ["3", "4"], ["", ""])
    assert annotations.lengths[0] == 1.5 and math.isnan(annotations.lengths[1])


@pytest.mark.parametrize(("raw", "kind"), [
    (b"PK\x05\x06" + bytes(18), "a zip archive"), (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY\x01", "a NumPy array"), (b"\x80\x04\x95", "a pickle"),
    ("video_id,labels\n".encode("utf-16"), "text in UTF-16"),
    (b"", "its columns are none; it is empty, and a table is CSV"),
])  # fmt: skip
def test_a_file_that_is_no_table_is_named_with_what_would_be_one(tmp_path, raw, kind):
    (tmp_path / "p.npz").write_bytes(raw)
    with pytest.raises(SplitError) as caught:
        read_table(tmp_path / "p.npz")
    assert kind in str(caught.value) and "Parquet, a JSON list or JSON lines" in str(caught.value)


def test_all_problems_are_named_together_in_the_order_of_the_lines(tmp_path):
    with pytest.raises(SplitError) as caught:
        read(tmp_path, "video_id,labels,length_s\na,0,x\nb,0\n,0,\nc,0;0,\nd,0,\nd,0,\n")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("5 problem(s) with") and len(lines) == 6
    assert [re.search(r"line (\d)", line)[1] for line in lines[1:5]] == ["2", "3", "4", "5"]
    assert "more than once: d (lines 6, 7)" in lines[5]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = write_table(tmp_path / "t.parquet", [("a", [1], "", "train", None)] * 1).read_bytes()
    for name, raw in {
        "cut.parquet": whole[:-20],
        "latin.csv": b"video_id,labels\na,\xe9\n",
        "z.json": b"[\xff]",
    }.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(SplitError, match="is not a readable (CSV|JSON|Parquet) file"):
            read_table(tmp_path / name)
    pq.write_table(pa.table({"video_id": ["a"], "labels": [[1.5]]}), tmp_path / "f.parquet")
    with pytest.raises(SplitError, match=r"row 1 \(a\): label 1.5 is neither a name nor an index"):
        read_table(tmp_path / "f.parquet")
    with pytest.raises(SplitError, match="cannot read"):
        read_table(tmp_path)
    with pytest.raises(SplitError, match="has no column labels"):
        pq.write_table(pa.table({"video_id": ["a"], "text": ["x"]}), tmp_path / "g.parquet")
        read_table(tmp_path / "g.parquet")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=60), start=st.sampled_from([b"", b"video_id,labels\n", b"[", b"{", b"PAR1", b"\xef\xbb\xbf"])
)
def test_whatever_a_file_holds_is_read_or_refused(tmp_path, raw, start):
    (tmp_path / "any").write_bytes(start + raw)
    try:
        content = read_table(tmp_path / "any")
    except SplitError as error:
        assert "any" in str(error)
    else:
        assert content.annotations.video_ids and any(content.annotations.labels)


def test_a_table_longer_than_a_batch_loses_nothing(tmp_path):
    count = 70_000
    ids = [f"v{number}" for number in range(count)]
    labels = [[number % 7, 7 + number % 5] for number in range(count)]
    pq.write_table(pa.table({"video_id": ids, "labels": labels}), tmp_path / "t.parquet")
    annotations = read_table(tmp_path / "t.parquet").annotations
    assert annotations.video_ids == ids and [list(row) for row in annotations.labels] == labels


@pytest.mark.parametrize(("names", "said"), [
    ("run\n\njump\nswim\n", "no class name in line 2"),
    ("run fast\x0bjump\nswim\n", "no class name in line 1"),
    ("1\n2\n3\n", "could be confused with indices: 1, 2, 3"),
])  # fmt: skip
def test_class_names_that_would_shift_indices_are_refused(tmp_path, names, said):
    (tmp_path / "names.txt").write_text(names)
    (tmp_path / "t.csv").write_text("video_id,labels\na,0\nb,1;2\n")
    with pytest.raises(SplitError, match=said):
        read_table(tmp_path / "t.csv", class_names=tmp_path / "names.txt")


def test_class_names_may_be_the_numbers_of_their_places_and_end_in_blank_lines(tmp_path):
    (tmp_path / "names.txt").write_text("0\r\n1\r\n2\r\n\n")
    (tmp_path / "t.csv").write_text("video_id,labels\na,0\nb,1;2\n")
    assert read_table(tmp_path / "t.csv", class_names=tmp_path / "names.txt").annotations.labels == [(0,), (1, 2)]


def test_a_length_beyond_floats_is_told(tmp_path):
    (tmp_path / "t.json").write_text('[{"video_id": "a", "labels": [0], "length_s": 1' + "0" * 400 + "}]")
    with pytest.raises(SplitError, match="is not a length in seconds"):
        read_table(tmp_path / "t.json")
