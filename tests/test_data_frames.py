"""Splits of DataFrames: what pandas holds, in every form of labels, and back again."""

import io

import numpy as np
import pandas as pd
import pytest

import meidbench as mb
from meidbench.annotations.tables import split_from_files
from meidbench.errors import MeidbenchError
from meidbench.splits.split import read_split

THRESHOLDS = {"dataset": "mine", "head_above": 2, "tail_up_to": 1}
IDS = ["a", "b", "c"]
SUBSETS = ["train", "train", "val"]
LABELS = [["run", "swim"], ["swim"], []]


def make(labels=LABELS, **columns):
    return pd.DataFrame({"video_id": IDS, "subset": SUBSETS, "labels": labels} | columns)


def rows(split):
    frame = split.to_pandas()
    return list(zip(frame["video_id"], frame["subset"], frame["labels"], strict=True))


EXPECTED = list(zip(IDS, SUBSETS, LABELS, strict=True))
ONE_HOT = pd.DataFrame({"run": [1, 0, 0], "swim": [1, 1, 0]})
FORMS = {
    "lists": make(),
    "text": make(["run;swim", "swim", ""]),
    "tuples, sets and None": make([("run", "swim"), {"swim"}, None]),
    "arrays": make([np.array(names) for names in LABELS]),
    "strings of Arrow": make().astype({"video_id": "string[pyarrow]", "subset": "string[pyarrow]"}),
    "categories": make().astype({"subset": "category"}),
    "columns of whole numbers": make().drop(columns="labels").join(ONE_HOT),
    "columns of bool": make().drop(columns="labels").join(ONE_HOT.astype(bool)),
    "nullable columns": make().drop(columns="labels").join(ONE_HOT.astype("boolean")),
    "columns of floats, text and known ones beside them": make(length_s=[3, 4, 5], note=["x", "y", "z"])
    .drop(columns="labels")
    .join(ONE_HOT.astype(float)),
    "ids as index": make().set_index("video_id"),
    "ids as index without a name": make().set_index("video_id").rename_axis(None),
    "other columns": make(fps=[25, 30, 1], segments=["", "", ""]),
    "as pandas reads a CSV": pd.read_csv(
        io.StringIO("video_id,subset,labels\na,train,run;swim\nb,train,swim\nc,val,\n")
    ),
    "rows of a longer frame": pd.concat([make(), make()], ignore_index=True).iloc[3:],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_is_read_as_it_is_meant(form):
    split = mb.split_from_pandas(FORMS[form], **THRESHOLDS)
    assert rows(split) == EXPECTED and split.class_names == ("run", "swim")
    assert (split.dataset, split.variant, split.train_counts.tolist()) == ("mine", "table", [1, 2])


@pytest.mark.parametrize("labels", [[[0, 2], [2], []], ["0;2", "2", ""], [np.array([0, 2]), (np.int64(2),), None]])
def test_labels_may_be_indices(labels):
    split = mb.split_from_pandas(make(labels), **THRESHOLDS)
    assert split.class_names == ("c000", "c001", "c002")
    assert split.table.column("labels").to_pylist() == [[0, 2], [2], []]
    named = mb.split_from_pandas(make(labels), class_names=["x", "y", "z"], **THRESHOLDS)
    assert named.class_names == ("x", "y", "z") and named.digest == split.digest
    for cells in ([2, 0, 1], [np.int64(2), np.array(0), "1"]):
        single = mb.split_from_pandas(make(cells), **THRESHOLDS)
        assert single.table.column("labels").to_pylist() == [[2], [0], [1]]


def test_classes_are_in_the_order_of_the_columns_or_of_the_names():
    frame = make().drop(columns="labels").join(ONE_HOT[["swim", "run"]]).assign(fps=25)
    assert mb.split_from_pandas(frame.drop(columns="fps"), **THRESHOLDS).class_names == ("swim", "run")
    split = mb.split_from_pandas(frame, class_names=["run", "swim"], **THRESHOLDS)
    assert split.class_names == ("run", "swim") and rows(split) == EXPECTED
    numbered = mb.split_from_pandas(frame.drop(columns="fps").rename(columns={"swim": 0, "run": 1}), **THRESHOLDS)
    assert numbered.class_names == ("0", "1") and numbered.labels("train").tolist() == [[True, True], [True, False]]


def test_groups_lengths_and_subjects_are_kept(tmp_path):
    frame = make(group=["g", "g", None], length_s=[1.5, np.nan, 3], subject=["p", "", "q"])
    split = mb.split_from_pandas(frame, variant="fold 1", **THRESHOLDS)
    table = split.table
    assert table.column("pair_id").to_pylist() == ["g", "g", ""] and split.variant == "fold 1"
    assert table.column("subject").to_pylist() == ["p", "", "q"]
    np.testing.assert_array_equal(table.column("length_s"), np.array([1.5, np.nan, 3], np.float32))
    again = mb.split_from_pandas(split.to_pandas(), variant="fold 1", **THRESHOLDS)
    assert str(again.table.to_pylist()) == str(table.to_pylist())  # NaN is not NaN
    assert again.metadata == split.metadata
    assert read_split(mb.write_split(again, tmp_path / "s.parquet")).metadata == split.metadata


def test_a_split_comes_back_exactly(toy_split):
    facts = {
        "dataset": "toylt",
        "head_above": toy_split.metadata.head_above,
        "tail_up_to": toy_split.metadata.tail_up_to,
    }
    frame = toy_split.to_pandas()
    assert list(frame.columns) == ["video_id", "subset", "labels", "source", "length_s", "subject", "view", "pair_id"]
    labels = toy_split.table.column("labels").to_pylist()
    assert frame["labels"].tolist() == [[toy_split.class_names[index] for index in row] for row in labels]
    again = mb.split_from_pandas(frame, class_names=toy_split.class_names, **facts)
    assert (again.digest, again.content_digest) == (toy_split.digest, toy_split.content_digest)
    assert again.video_ids("train") == toy_split.video_ids("train")
    for name in ("length_s", "subject", "pair_id"):
        assert str(again.table.column(name).to_pylist()) == str(toy_split.table.column(name).to_pylist())
    inferred = mb.split_from_pandas(frame, **facts)  # the same labels, sorted by name
    assert inferred.class_names == tuple(sorted({name for row in frame["labels"] for name in row}))
    assert inferred.to_pandas()["labels"].map(sorted).tolist() == frame["labels"].map(sorted).tolist()


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith(("columns", "nullable"))])
def test_a_file_with_a_column_per_class_is_read_as_its_frame(form, tmp_path):
    frame = FORMS[form]
    want = mb.split_from_pandas(frame, **THRESHOLDS)
    frame.to_csv(tmp_path / "mine.csv", index=False)
    frame.to_csv(tmp_path / "numbered.csv")
    frame.to_csv(tmp_path / "mine.tsv", sep="\t", index=False)
    frame.to_parquet(tmp_path / "mine.parquet")
    for path in tmp_path.iterdir():
        split = split_from_files([("", path)], **THRESHOLDS)[0]
        assert (split.digest, split.class_names) == (want.digest, want.class_names)
        assert str(split.table.to_pylist()) == str(want.table.to_pylist())


def test_files_of_classes_may_have_them_in_another_order_or_by_name(tmp_path):
    (tmp_path / "train.csv").write_text("video_id,run,fps,swim\na,1,0,0\n")
    (tmp_path / "val.csv").write_text("video_id,swim,run,fps\nb,1,0,0\n")
    files = [("train", tmp_path / "train.csv"), ("val", tmp_path / "val.csv")]
    split, notes = split_from_files(files, **THRESHOLDS)
    assert rows(split) == [("a", "train", ["run"]), ("b", "val", ["swim"])]
    assert notes[-1] == "3 classes, the columns of 0 and 1: run, fps, swim"
    (tmp_path / "names.txt").write_text("swim\nrun\n")
    split, _ = split_from_files(files, class_names=tmp_path / "names.txt", **THRESHOLDS)
    assert split.class_names == ("swim", "run") and rows(split)[1] == ("b", "val", ["swim"])


def one_hot(**columns):
    return make(**columns).drop(columns="labels")


@pytest.mark.parametrize(("frame", "options", "complaint"), [
    ([1], {}, "frame must be a pandas DataFrame, got a list"),
    (make(), {"tail_up_to": 5}, "tail_up_to 5 lies above head_above 2"),
    (make(), {"head_above": 2.5}, "head_above must be a whole number of at least 0, got 2.5"),
    (make(), {"dataset": ""}, "dataset must be text in one line, got ''"),
    (make(), {"variant": 3}, "variant must be text in one line, got 3"),
    (make(), {"variant": "released"}, "variant 'released' is for published splits"),
    (make(), {"class_names": "run"}, "class_names must be a list of texts"),
    (make(), {"class_names": ["run", "run"]}, "class_names: class names occur more than once: run"),
    (make(), {"class_names": ["run", ""]}, "class_names: no class name in place 2"),
    (make(), {"class_names": ["run"]}, "frame, row 0 (a): label 'swim' is not one of the class names"),
    (make(subset=["train", "dev", None]), {},
     "2 problem(s) with frame:\n  - frame, row 1 (b): subset 'dev' is not one of train, val, test\n  - frame, row 2"),
    (make(video_id=["a", "a", "c"]), {}, "1 video(s) occur more than once: a (rows 0, 1)"),
    (make([["run"], ["swim"], []], video_id=["a", "a", "c"]), {},
     "a (rows 0, 1); the rows of a video differ only in labels: write one row per video, with all its labels"),
    (make([["run"], [1], []]), {}, "names in some rows and indices in others, which needs class names: 'run' (row 0)"),
    (make([["run"], [1.5], []]), {}, "frame, row 1 (b): label 1.5 is neither a name nor an index"),
    (make([1, 2, np.nan]), {}, "frame, row 0 (a): labels 1.0 are not a list of names or indices"),
    (make([[], [], []]), {}, "frame holds no video with a label"),
    (make().drop(columns="subset"), {}, "frame has no column subset; its columns are video_id, labels"),
    (make().drop(columns="video_id"), {},
     "frame has no column video_id, and no index of texts; its columns are subset, labels"),
    (one_hot(), {},
     "frame has no column labels, and no column of 0 and 1 per class; its columns are video_id, subset"),
    (one_hot(run=[1, 0, 1], fps=[25, 30, 25]), {},
     "which need 0 or 1 in every row: not so in fps; drop the columns that are no"),
    (one_hot(run=[1, 0, np.nan]), {}, "not so in run"),
    (one_hot(run=[1, 0, "no"]), {}, "not so in run"),
    (one_hot(run=[1, 0, 1]), {"class_names": ["run", "swim"]},
     "frame has no column labels, and no column of 0 and 1 for swim"),
    (pd.concat([one_hot(run=[1, 0, 1]), one_hot(run=[1, 0, 1])[["run"]]], axis=1), {}, "a column more than once: run"),
    (make(group=["", "", ""], pair_id=["", "", ""]), {}, "a column more than once: group (also called pair_id)"),
    (make(Groups=["", "", ""]), {}, "column 'Groups' would be ignored; write 'group'"),
    (pd.DataFrame(), {}, "frame has no column video_id, and no index of texts; its columns are none"),
])  # fmt: skip
def test_a_frame_that_cannot_be_meant_is_refused(frame, options, complaint):
    with pytest.raises(MeidbenchError) as caught:
        mb.split_from_pandas(frame, **(THRESHOLDS | options))
    assert complaint in str(caught.value)
