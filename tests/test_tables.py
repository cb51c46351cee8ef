"""A split from a plain table is what the table says, or is refused with the line."""

import numpy as np
import pytest

from meidbench.errors import SplitError
from meidbench.split_file import read_split
from meidbench.tables import split_from_table

TABLE = """video_id,note,subset,labels
a,x,train,0;2
b,x,train,2
c,x,val,1
d,x,test,
e,x,test,2;0
"""


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
    ("video_id,subset,labels\na,dev,0\n", "line 2 (a): subset 'dev' is none of train, val, test"),
    ("video_id,subset,labels\na,train,x\n", "line 2 (a): label 'x' is none of the class indices"),
    ("video_id,subset,labels\na,train,-1\n", "line 2 (a): label '-1' is none of the class indices"),
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


def test_wrong_thresholds_names_and_files_are_refused(tmp_path):
    with pytest.raises(SplitError, match="tail up to 5 lies above head above 1"):
        make(tmp_path, tail_up_to=5)
    names = tmp_path / "names.txt"
    names.write_text("run\nrun\n")
    with pytest.raises(SplitError, match="class names occur more than once: run"):
        make(tmp_path, class_names=names)
    names.write_text("run\n")
    with pytest.raises(SplitError, match="label 2 is outside the 1 classes"):
        make(tmp_path, class_names=names)
    with pytest.raises(SplitError, match="cannot read the class names"):
        make(tmp_path, class_names=tmp_path / "none")
    with pytest.raises(SplitError, match="cannot read"):
        split_from_table(tmp_path / "none.csv", dataset="x", head_above=1, tail_up_to=0)
