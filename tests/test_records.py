"""Files of Something-Something, Kinetics, HACS, ActivityNet and SlowFast become splits, or are refused."""

import json

import numpy as np
import pytest
from test_lists import read, rows

from meidbench.annotations import FORMATS
from meidbench.annotations.activitynet import read_activitynet
from meidbench.annotations.base import find_spellings, fold_name
from meidbench.annotations.lists import ROW_FORMATS
from meidbench.annotations.records import parse_label_indices, strip_brackets
from meidbench.annotations.subsets import FileSubset, FileSubsets
from meidbench.annotations.tables import read_class_names, read_rows
from meidbench.construction.plans import make_split, read_plan, read_videos
from meidbench.errors import MeidbenchError, SplitError

TRAIN = json.dumps([
    {"id": "11", "label": "putting pen on table", "template": "Putting [something] on [something]",
     "placeholders": ["pen", "table"]},
    {"id": "12", "label": "closing box", "template": "Closing [something]", "placeholders": ["box"]},
])  # fmt: skip
VALIDATION = '[{"id": "13", "label": "closing jar", "template": "Closing [something]", "placeholders": ["jar"]}]'
LABELS = '{"Putting something on something": "0", "Closing something": "1", "Bending something": "2"}'
KINETICS = "label,youtube_id,time_start,time_end,split\n"
HACS = "classname,youtube_id,subset,start,end,label\n"


def video(*labels, **facts):
    return facts | {"annotations": [{"segment": [1, 3.5], "label": label} for label in labels]}


def table(split, *columns):
    return [tuple(row[name] for name in columns) for row in split.table.to_pylist()]


# --- what is read -----------------------------------------------------------------------------------------------


def test_something_something_has_its_templates_as_classes(tmp_path):
    files = {"something-something-v2-train.json": TRAIN, "something-something-v2-validation.json": VALIDATION}
    split, notes = read(tmp_path, files)
    assert notes[0] == "read as something-something (a JSON list of objects with id and template)"
    assert split.class_names == ("Closing something", "Putting something on something")
    assert rows(split) == [("11", "train", [1]), ("12", "train", [0]), ("13", "val", [0])]
    (tmp_path / "labels.json").write_text(LABELS)
    split, _ = read(tmp_path, files, class_names=tmp_path / "labels.json")
    assert split.class_names == ("Putting something on something", "Closing something", "Bending something")
    assert rows(split) == [("11", "train", [0]), ("12", "train", [1]), ("13", "val", [1])]


def test_kinetics_clips_are_named_by_video_and_times(tmp_path):
    text = KINETICS + '"riding, fast",-a_b,3,13,train\nwalking; slowly,c,7,17,validate\nwalking; slowly,c,0,10.0,test\n'
    split, notes = read(tmp_path, {"kinetics.csv": text})
    assert notes[0].startswith("read as kinetics (a CSV with label, youtube_id, time_start, time_end, split")
    assert split.class_names == ("riding, fast", "walking; slowly")
    assert rows(split) == [
        ("-a_b_000003_000013", "train", [0]), ("c_000007_000017", "val", [1]), ("c_000000_000010", "test", [1]),
    ]  # fmt: skip
    assert table(split, "pair_id", "length_s") == [("-a_b", 10.0), ("c", 10.0), ("c", 10.0)]


def test_parts_of_hacs_clips_have_the_classes_that_they_show(tmp_path):
    lines = (
        "Archery,v1,training,15.5,17.5,1", "Surfing,v1,training,15.5,17.5,1", "Bowling,v1,training,15.5,17.5,-1",
        "Archery,v1,training,20.5,22.5,-1", "Surfing,v3,validation,1.0,3.0,1", ",v2,testing,1.0,3.0,0",
    )  # fmt: skip
    split, notes = read(tmp_path, {"HACS_clips_v1.1.1.csv": HACS + "\n".join(lines)})
    assert rows(split) == [
        ("v1_15.5_17.5", "train", [0, 1]), ("v1_20.5_22.5", "train", []),
        ("v3_1.0_3.0", "val", [1]), ("v2_1.0_3.0", "test", []),
    ]  # fmt: skip
    assert split.class_names == ("Archery", "Surfing")
    assert table(split, "video", "start_s", "end_s")[::2] == [("v1", 15.5, 17.5), ("v3", 1.0, 3.0)]
    assert notes[-1] == "2 of 4 videos have no label"


def test_activitynet_is_imported_with_its_subsets_and_segments(tmp_path):
    videos = {"a": video("Surf", subset="training", duration=9.5), "b": video("Ski", "Surf", subset="validation")}
    split, notes = read(tmp_path, {"mine.json": json.dumps({"version": "1", "database": videos})})
    assert notes[0].startswith("read as activitynet")
    assert split.class_names == ("Ski", "Surf")
    assert rows(split) == [("a", "train", [1]), ("b", "val", [0, 1])]
    assert table(split, "length_s", "segments")[0] == (9.5, [{"label": 1, "start_s": 1.0, "end_s": 3.5}])


def test_activitynet_needs_no_key_database(tmp_path):
    """The form of mmaction2: videos by id, lengths as duration_second, one file per subset."""
    texts = [json.dumps({"v_a": video("Surf", duration_second=9.5)}), json.dumps({"v_b": video("Ski", "Surf")})]
    split, notes = read(tmp_path, dict(zip(("anet_anno_train.json", "anet_anno_val.json"), texts, strict=True)))
    assert rows(split) == [("v_a", "train", [1]), ("v_b", "val", [0, 1])]
    assert table(split, "length_s")[0] == (9.5,)
    assert "subsets by the names of the files: anet_anno_train.json is train, anet_anno_val.json is val" in notes
    pooled = read_activitynet([tmp_path / "anet_anno_train.json", tmp_path / "anet_anno_val.json"])
    assert (pooled.video_ids, pooled.labels, pooled.sources) == (["v_a", "v_b"], [(1,), (0, 1)], ["", ""])
    split, _ = read(tmp_path, {"test=anet_anno_val.json": texts[1], "train=anet_anno_train.json": texts[0]})
    assert split.video_ids("test") == ["v_b"] and np.array_equal(split.labels("test"), [[True, True]])


@pytest.mark.parametrize("text", ["k/run,x/a.mp4 0\nk/b.mp4 1\n", "k/a.mp4,0\nk,1/b.mp4, 1\n"])
def test_lists_of_slowfast_with_one_path_and_label_are_those_of_mmaction2(tmp_path, text):
    split, notes = read(tmp_path, {"train.csv": text})
    assert rows(split) == [("a", "train", [0]), ("b", "train", [1])]
    assert notes[0].startswith("read as mmaction2")


def test_a_large_file_in_one_line_is_recognised(tmp_path):
    entries = [{"id": str(index), "template": "Closing [something]", "placeholders": ["x"]} for index in range(2000)]
    assert len(read(tmp_path, {"train.json": json.dumps(entries)})[0].table) == 2000
    database = {f"v_{index}": video("Surf") for index in range(2000)}
    assert len(read(tmp_path, {"train.json": json.dumps(database)})[0].table) == 2000


@pytest.mark.parametrize("text", [
    "video_id,subset,labels,label,youtube_id,time_start,time_end\na,train,run,swim,x,1,2\n",
    '[{"video_id": "a", "subset": "train", "labels": ["run"], "template": "Swim [x]"}]',
    '{"labels": ["run"], "video_id": "a", "subset": "train", "annotations": [3]}',
    '{"extra": {"annotations": 1}, "labels": ["run"], "video_id": "a", "subset": "train"}',
])  # fmt: skip
def test_a_table_with_such_columns_stays_a_table(tmp_path, text):
    split, notes = read(tmp_path, {"mine.txt": text})
    assert notes[0].startswith("read as table") and (rows(split), split.class_names) == (
        [("a", "train", [0])],
        ("run",),
    )


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("files", "form", "complaint"), [
    ({"train.json": '[{"id": "1", "template": "A [b]"}, {"id": "2"}, 3, {"id": "1", "template": "A [b]"}]'}, "",
     "train.json, entry 2: needs id and template, its keys are id; entries of the official test file have no template"),
    ({"train.json": '[{"id": "1", "template": "A [b]"}, {"id": "2"}, 3]'}, "", "entry 3: needs id and template, not"),
    ({"train.json": '[{"id": "1", "template": "A [b]"}, {"id": "1", "template": "A [b]"}]'}, "",
     "occur more than once: 1 (entries 1, 2)"),
    ({"train.json": '[{"id": "1", "template": "A [b]"'}, "", "train.json is not a readable JSON file"),
    ({"train.json": '{"id": "1"}'}, "something-something", "expected a list of objects"),
    ({"train.json": '[{"id": "1", "template": "A [b]"}]', "test.json": '[{"id": "7"}]'}, "",
     "test.json, entry 1: needs id and template"),
    ({"mine.json": TRAIN}, "", "the name of mine.json does not tell the subset; name it, as in train=mine.json"),
    ({"labels.json": LABELS}, "", "labels.json is a list of classes, with their indices; give it as --class-names"),
    ({"k.csv": f"{KINETICS}run,a,3.5,13,train\n"}, "", "k.csv, line 2 (a): time_start '3.5' is not a whole number of"),
    ({"k.csv": f"{KINETICS}run,a,10,2,train\n"}, "", "k.csv, line 2 (a): time_end 2 is not after time_start 10"),
    ({"k.csv": f"{KINETICS}run,a,1,2,dev\n"}, "", "k.csv, line 2 (a_000001_000002): subset 'dev' is not one of train"),
    ({"k.csv": f"{KINETICS}run, fast,a,1,2,train\n"}, "", "line 2 (run): 6 cells, expected 5; quote a cell that holds"),
    ({"k.csv": f"{KINETICS}run,,1,2,train\n"}, "", "line 2 (): '' is not a video id"),
    ({"k.csv": f"{KINETICS}run,a,1,2,train\nswim,a,1,2,train\n"}, "", "once: a_000001_000002 (lines 2, 3)"),
    ({"k.csv": f"{KINETICS}run,a,1,2,train\n"}, "hacs", "k.csv has no column classname, subset, start, end"),
    ({"k.csv": "youtube_id,time_start,time_end,split\na,1,2,test\n"}, "",
     "k.csv has no column label; its columns are youtube_id, time_start, time_end, split; a file without labels"),
    ({"val=k.csv": f"{KINETICS}run,a,1,2,train\n"}, "", "its subset is train, but the file was given as val"),
    ({"h.csv": f"{HACS}Run,a,training,1,3,2\n"}, "", "h.csv, line 2 (a): label '2' is neither 1 nor -1"),
    ({"h.csv": f"{HACS}Run,a,training,,3,1\n"}, "", "h.csv, line 2 (a): it needs a start and an end"),
    ({"h.csv": f"{HACS}Run,a,training,1,3,1\nSki,a,testing,1,3,1\n"}, "",
     "h.csv, line 3 (a_1_3): subset 'testing', but 'training' in line 2"),
    ({"h.csv": f"{HACS}Run,a,training,3,1,1\n"}, "", "h.csv, line 2 (a_3_1): "),
    ({"a.json": json.dumps({"database": {"a": video("Ski")}})}, "", "a.json, a: subset '' is not one of train, val"),
    ({"val=a.json": json.dumps({"database": {"a": video("Ski", subset="training")}})}, "",
     "a.json, a: its subset is train, but the file was given as val"),
    ({"train.json": "\0\1"}, "something-something", "train.json"),
    ({"train.csv": "\0\1"}, "kinetics", "train.csv"),
])  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, files, form, complaint):
    with pytest.raises(MeidbenchError) as refusal:
        read(tmp_path, files, form)
    assert complaint in str(refusal.value)


def test_activitynet_has_class_names_of_its_own(tmp_path):
    (tmp_path / "names.txt").write_text("Surf\n")
    with pytest.raises(SplitError, match="leave out the list of class names"):
        read(tmp_path, {"train.json": json.dumps({"a": video("Surf")})}, class_names=tmp_path / "names.txt")


@pytest.mark.parametrize(("text", "complaint"), [
    ('{"Run": "0", "Swim": "2"}', "as an object of class names and indices, it has no index 1"),
    ('{"Run": "0", "Run": "1"}', "key(s) twice in one object: Run"),
    ('{"Run": "0"', "cannot read the class names"),
    ('{"Run": "0", "run": "1"}', "names that differ only in case or spacing: 'Run' / 'run'"),
])  # fmt: skip
def test_wrong_indices_of_classes_are_refused(tmp_path, text, complaint):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(SplitError) as refusal:
        read_class_names(tmp_path / "labels.json")
    assert complaint in str(refusal.value)


# --- names that differ only in case -----------------------------------------------------------------------------

PAIR = "'Play Ball' / 'play  ball'"


@pytest.mark.parametrize(("form", "files"), [
    ("table", {"t.csv": "video_id,subset,labels\na,train,Play Ball\nb,train,play  ball\n"}),
    ("table", {"t.csv": "video_id,subset,Play Ball,play  ball\na,train,1,0\nb,train,0,1\n"}),
    ("lists", {"train.txt": "a Play Ball\nb play  ball\n"}),
    ("something-something", {"train.json": '[{"id": "1", "template": "Play Ball"}]',
                             "val.json": '[{"id": "2", "template": "play  ball"}]'}),
    ("kinetics", {"k.csv": f"{KINETICS}Play Ball,a,1,2,train\nplay  ball,b,1,2,train\n"}),
    ("hacs", {"h.csv": f"{HACS}Play Ball,a,training,1,3,1\nplay  ball,b,training,1,3,1\n"}),
    ("activitynet", {"train.json": json.dumps({"a": video("Play Ball"), "b": video("play  ball")})}),
])  # fmt: skip
def test_names_that_differ_only_in_case_are_refused_with_both_spellings(tmp_path, form, files):
    with pytest.raises(MeidbenchError) as refusal:
        read(tmp_path, files, form)
    assert f"names that differ only in case or spacing: {PAIR}; write them alike" in str(refusal.value)


@pytest.mark.parametrize("form", ["mmaction2", "slowfast"])
def test_formats_of_indices_take_their_names_from_a_list_which_is_checked_too(tmp_path, form):
    (tmp_path / "names.txt").write_text("Play Ball\nplay  ball\n")
    with pytest.raises(SplitError, match="differ only in case or spacing"):
        read(tmp_path, {"train.txt": "a.mp4 0\n"}, form, class_names=tmp_path / "names.txt")


def test_every_format_is_among_those_of_the_tests_of_case():
    assert set(ROW_FORMATS) == {
        "table", "lists", "something-something", "kinetics", "hacs", "activitynet", "mmaction2", "slowfast",
    }  # fmt: skip


def test_entities_of_youtube8m_that_differ_only_in_case_get_their_identifiers(tmp_path):
    (tmp_path / "vocabulary.csv").write_text("Index,KnowledgeGraphId,Name\n0,/m/1,Kite\n1,/m/2,kite\n2,/m/3,Boat\n")
    (tmp_path / "train_labels.csv").write_text("ab,0 1\n")
    read = FORMATS["youtube8m"].read([tmp_path / "vocabulary.csv", tmp_path / "train_labels.csv"])
    assert read.class_names == ("Kite (/m/1)", "kite (/m/2)", "Boat") and read.labels == [(0, 1)]


# --- plans, and the parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "files", "labels"), [
    ("kinetics", {"k.csv": f"{KINETICS}run,a,1,2,train\nski,b,1,2,validate\n"}, [(0,), (1,)]),
    ("hacs", {"h.csv": f"{HACS}Run,a,training,1,3,1\nRun,b,training,1,3,-1\n"}, [(0,), ()]),
    ("something-something", {"a.json": TRAIN, "b.json": VALIDATION}, [(1,), (0,), (0,)]),
    ("mmaction2", {"a.txt": "x/a.mp4 0\n", "b.txt": "x/b.mp4 2\n"}, [(0,), (2,)]),
    ("lists", {"a.txt": "a 0,1\nb 1\n"}, [(0, 1), (1,)]),
])  # fmt: skip
def test_a_plan_takes_the_formats_of_rows(tmp_path, form, files, labels):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    plan = tmp_path / "mine.toml"
    plan.write_text(f'name = "mine"\nformat = "{form}"\nfiles = {json.dumps(list(files))}\n')
    annotations = read_videos(read_plan(plan)).annotations
    assert annotations.labels == labels
    assert [file.name for file in annotations.files] == list(files)
    content = read_rows([tmp_path / name for name in files], form)
    assert content.annotations.labels == labels


def test_a_plan_of_kinetics_draws_a_split_and_may_name_its_classes(tmp_path):
    lines = [f"{'run' if clip % 3 else 'ski'},v{clip // 2},{clip},{clip + 10},train\n" for clip in range(300)]
    (tmp_path / "k.csv").write_text(KINETICS + "".join(lines))
    (tmp_path / "names.txt").write_text("run\nski\nswim\n")
    plan = tmp_path / "mine.toml"
    text = 'name = "mine"\nformat = "kinetics"\nfiles = ["k.csv"]\nclass_names = "names.txt"\nvariant = "grouped"\n'
    plan.write_text(text)
    made = make_split(read_plan(plan), read_videos(read_plan(plan)).annotations).split
    assert made.class_names == ("run", "ski", "swim")
    subsets = {}
    for pair, subset in table(made, "pair_id", "subset"):
        assert subsets.setdefault(pair, subset) == subset
    plan.write_text(text.replace("kinetics", "youtube8m"))
    with pytest.raises(SplitError, match="class_names goes with table, or with a format of rows: lists, mmaction2"):
        read_plan(plan)


def test_the_parts_of_the_readers():
    assert strip_brackets("Putting [something that] on [a]") == "Putting something that on a"
    assert parse_label_indices('{"b": 1, "a": "0"}') == ["a", "b"]
    assert fold_name("A\u00a0 b") == "a b" and find_spellings(["a", "b"]) == []
    assert FileSubset("val", True).resolve("") == "val"
    assert FileSubsets([""]).notes == []
