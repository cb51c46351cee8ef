"""Lists of this project, of VideoLT, of MEID and of mmaction2 become splits, or are refused with the line."""

import numpy as np
import pytest
from material import REAL, TOY, TOY_MANIFEST, real_data, released_split

from meidbench.annotations.lists import ROW_FORMATS
from meidbench.annotations.tables import read_class_names, split_from_files
from meidbench.errors import SplitError
from meidbench.names import IMPORT_FORMATS, SUBSETS
from meidbench.splits.split import load_split

HEADER = "original_vido_id video_id frame_id path labels\n"  # of SlowFast, with its slip

THRESHOLDS = {"dataset": "mine", "head_above": 2, "tail_up_to": 1}


def read(folder, files, form="", **options):
    """Import files of these texts; a key is a name, or SUBSET=NAME."""
    given = []
    for key, text in files.items():
        subset, _, name = key.rpartition("=")
        (folder / name).write_text(text)
        given.append((subset, folder / name))
    return split_from_files(given, form, **(THRESHOLDS | options))


def rows(split):
    return [(row["video_id"], row["subset"], row["labels"]) for row in split.table.to_pylist()]


def test_the_formats_are_those_of_the_command():
    assert tuple(ROW_FORMATS) == IMPORT_FORMATS


def test_lists_that_build_splits_writes_come_back(run, tmp_path, toy_split):
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path, "--format", "lst")
    assert outcome.exit_code == 0, outcome.stderr
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in toy_split.class_names))
    official = toy_split.metadata
    arguments = [
        "import-split",
        *(tmp_path / f"ToyLT_{subset}.txt" for subset in SUBSETS),
        "--out",
        tmp_path / "s.parquet",
    ]
    arguments += ["--head-above", official.head_above, "--tail-up-to", official.tail_up_to]
    named = run(*arguments, "--class-names", tmp_path / "names.txt")
    assert named.exit_code == 0, named.stderr
    split = load_split(tmp_path / "s.parquet")
    assert (split.digest, split.content_digest) == (toy_split.digest, toy_split.content_digest)
    assert (split.dataset, split.variant) == ("s", "lists")
    assert "note: read as lists (VIDEO_ID and labels, joined by commas or blanks)\n" in named.stderr
    names = "ToyLT_train.txt is train, ToyLT_val.txt is val, ToyLT_test.txt is test"
    assert f"note: subsets by the names of the files: {names}\n" in named.stderr
    assert run(*arguments).exit_code == 0
    split = load_split(tmp_path / "s.parquet")
    assert split.digest == toy_split.digest and split.class_names[:2] == ("c000", "c001")


@pytest.mark.parametrize("name", REAL)
def test_the_official_lists_are_the_built_splits(name):
    built = released_split(name)
    if name == "videolt":
        folder = real_data("videolt")
        paths, classes = [folder / file for file in ("validate.lst", "test.lst", "train.lst")], "count-labels-train.lst"
    else:
        title = {"charadeslt": "CharadesLT", "charadesegolt": "CharadesEgoLT"}[name]
        folder = real_data("charades")
        paths = [real_data("meid_lists") / f"{title}_{subset}.txt" for subset in SUBSETS]
        classes = "Charades_v1_classes.txt"
    facts = {"head_above": built.metadata.head_above, "tail_up_to": built.metadata.tail_up_to}
    split, notes = split_from_files([("", path) for path in paths], dataset=name, class_names=folder / classes, **facts)
    assert split.content_digest == built.content_digest
    for subset in SUBSETS:
        assert split.video_ids(subset) == built.video_ids(subset)
        assert np.array_equal(split.labels(subset), built.labels(subset))
    assert notes[0].startswith("read as lists")


@pytest.mark.parametrize(("files", "form", "wanted"), [
    ({"train_list.txt": "x/y z/a.mp4 0\nx/b.MP4 1\n", "k_val.txt": "c.avi 1\n"}, "", None),
    ({"train_list.txt": "x/a.mp4 0\nx/b.MP4 1\n", "k_val.txt": "c.avi 1\n"}, "",
     [("a", "train", [0]), ("b", "train", [1]), ("c", "val", [1])]),
    ({"train=m.txt": "a.mp4 2 0\nb.mp4\n"}, "", [("a", "train", [0, 2]), ("b", "train", [])]),
    ({"validation.txt": "x\\\\a.webm 1\n"}, "", [("a", "val", [1])]),
    ({"train.txt": "x/a 120 0\nx/b/ 13 1 0\n"}, "", [("a", "train", [0]), ("b", "train", [0, 1])]),
    ({"train.txt": "a 120 0\nb 13 1 0\n"}, "mmaction2", [("a", "train", [0]), ("b", "train", [0, 1])]),
    ({"train.txt": "a 3 0\nb 4 1 0\n"}, "lists", [("a", "train", [0, 3]), ("b", "train", [0, 1, 4])]),
    ({"train.txt": "a 3 0\nb 1\nc 2,0\nd \n"}, "", [("a", "train", [0, 3]), ("b", "train", [1]), ("c", "train", [0, 2]),
                                                 ("d", "train", [])]),
    ({"TestList1.lst": "a\t1,0\n\n"}, "", [("a", "test", [0, 1])]),
    ({"train.txt": "a swim,run fast\nb run fast\n"}, "lists", [("a", "train", [0, 1]), ("b", "train", [0])]),
    ({"train.csv": HEADER + 'a 0 1 a/1.jpg "2,0"\na 0 2 a/2.jpg "2,1"\nb 1 1 b/1.jpg ""\n',
      "test=val.csv": HEADER.replace("vido", "video") + 'c 0 1 c/1.jpg "1"\n'}, "",
     [("a", "train", [0, 1, 2]), ("b", "train", []), ("c", "test", [1])]),
    ({"train.csv": "clip_id clip_number frame_number clip_path action_labels\na 0 1 a/1.jpg 1\n"}, "slowfast",
     [("a", "train", [1])]),
    ({"train.csv": "video_id,labels\na,run\n", "val.csv": "video_id,labels\nb,jump;run\n"}, "",
     [("a", "train", [1]), ("b", "val", [0, 1])]),
    ({"train=a.csv": "video_id,subset,labels\na,train,0\n"}, "", [("a", "train", [0])]),
    ({"train.json": '[{"video_id": "a", "labels": [0], "subset": "test"}, {"video_id": "b", "labels": [1]}]'}, "",
     [("a", "test", [0]), ("b", "train", [1])]),
])  # fmt: skip
def test_lists_are_read_as_they_are_meant(tmp_path, files, form, wanted):
    if wanted is None:
        with pytest.raises(SplitError, match="'z/a.mp4' is not a number"):
            read(tmp_path, files, "mmaction2")
        return
    assert rows(read(tmp_path, files, form)[0]) == wanted


def test_class_names_of_a_list_are_given_or_inferred(tmp_path):
    (tmp_path / "names.txt").write_text("jump\nrun\nswim\n")
    split, notes = read(tmp_path, {"train.txt": "a 0,1\nb 1\n"}, class_names=tmp_path / "names.txt")
    assert split.class_names == ("jump", "run", "swim") and split.labels("train")[0].tolist() == [True, True, False]
    assert notes[-1] == "3 classes, in the order of the list of class names: jump, run, swim"
    split, notes = read(tmp_path, {"train.txt": "a 0,2\nb\n"})
    assert split.class_names == ("c000", "c001", "c002")
    assert notes[-2:] == [
        "3 classes, 0 to the highest index among the labels: c000, c001, c002",
        "1 of 2 videos have no label",
    ]


@pytest.mark.parametrize(("files", "form", "complaint"), [
    ({"train.txt": "a 120 0\nb 13 1 0\n", "test.txt": "c 5 1\n"}, "",
     "train.txt, test.txt can be read in more than one way; choose one:\n"
     "  - --format lists: VIDEO_ID and labels, joined by commas or blanks\n"
     "  - --format mmaction2: PATH and labels, or FOLDER, its number of frames and labels, all joined by blanks"),
    ({"train.txt": "x/a.mp4 0\ny/a.mp4 1\n"}, "",
     "occur more than once: a (lines 1, 2); an id is the last name of a path without its ending"),
    ({"train.txt": "a 0\n", "val.txt": "b 1\n\na 1\n"}, "",
     "occur more than once: a (train.txt line 1, val.txt line 3)"),
    ({"train.txt": "x/a 1 120 0\nx/b 3 13 1\n"}, "",
     "every line has three numbers (the number of frames and two labels, or"),
    ({"train.txt": "x/a 120 0\nb.mp4 1\nx/c 12 1\n"}, "",
     "train.txt, line 2 (b.mp4): a list is of videos (with an ending"),
    ({"train.txt": "x/a 120\nx/b 3 0\n"}, "",
     "line 1 (x/a): a folder of frames needs the number of frames and a label"),
    ({"train.csv": HEADER + "a 0 1 a/1.jpg 1\na 0 a/2.jpg 1\n"}, "",
     "train.csv, line 3 (a): 4 columns, expected 5"),
    ({"train.csv": HEADER + 'a 0 1 a/1.jpg "0,run"\n'}, "slowfast", "line 2 (a): label 'run' is not the index of a"),
    ({"train.csv": HEADER + 'a 0 1 a/1.jpg "0"\na 0 2 a/2.jpg "0,x"\na 0 3 a/3.jpg "x"\n'}, "slowfast",
     "line 3 (a): label 'x'"),
    ({"train.csv": "a 0 1 a/1.jpg 1\n"}, "", "does not begin with the line original_vido_id video_id frame_id path"),
    ({"train.txt": "a 0,1\nb 1,,2\nc 0\n"}, "", "train.txt, line 2 (b): label '' is not one of"),
    ({"train.txt": "a 0,1\nb 1,1\n"}, "", "line 2 (b): a label occurs twice in"),
    ({"train.txt": "a 0\nb zap\n"}, "lists",
     "names in some rows and indices in others, which needs class names: 'zap' (line 2)"),
    ({"train.txt": "a 0\n", "val.txt": "b zap\nc 1\n"}, "lists",
     "'zap' (val.txt, line 1) beside 0 (train.txt, line 1)"),
    ({"a.txt": "a 0\n", "train_val.txt": "b 0\n"}, "", "2 problem(s) with the files:\n"
     "  - the name of a.txt does not tell the subset; name it, as in train=a.txt\n  - the name of train_val.txt"),
    ({"train.txt": "a 0\n", "test.txt": "\n"}, "", "test.txt holds no video; leave it out if that is meant"),
    ({"train.txt": "a\nb\n"}, "lists", "train.txt holds no video with a label"),
    ({"train.txt": "a 0\n", "test.csv": "video_id,labels\nb,0\n"}, "",
     "the files are of different formats: train.txt (lists), test.csv (table); import files of one format"),
    ({"train.txt": "run 0 12.0\nswim 1 3.0\n"}, "",
     "train.txt is a list of classes, with their indices; give it as --class-names"),
    ({"train.txt": "a run,swim\nb swim\n"}, "",
     "its columns are a run, swim; a list without a header is read with --format lists"),
    ({"mine.csv": "video_id,labels\na,0\n"}, "",
     "no column subset; its columns are video_id, labels; add it, or name the subset of the file, as in train="),
    ({"train=mine.csv": "video_id,subset,labels\na,val,0\n"}, "",
     "line 2 (a): its subset is val, but the file was given as train"),
    ({"train.csv": "video_id,subset,labels\na,,0\n"}, "", "line 2 (a): subset '' is not one of train, val, test"),
    ({"train.csv": "video_id,run\na,1\n", "val.csv": "video_id,swim\nb,1\n"}, "",
     "val.csv has other classes than train.csv: run, swim"),
    ({"train.csv": "video_id,labels\na,run\n", "val.csv": "video_id,swim\nb,1\n"}, "",
     "val.csv has other classes than train.csv: swim"),
])  # fmt: skip
def test_a_list_that_cannot_be_meant_is_refused(tmp_path, files, form, complaint):
    with pytest.raises(SplitError) as caught:
        read(tmp_path, files, form)
    assert complaint in str(caught.value)


def test_other_kinds_of_files_are_no_lists(tmp_path):
    np.save(tmp_path / "train.npy", np.zeros(3))
    for form in ("", "lists", "mmaction2"):
        with pytest.raises(SplitError, match="train.npy is a NumPy array; a (table|list) is"):
            split_from_files([("", tmp_path / "train.npy")], form, **THRESHOLDS)
    with pytest.raises(SplitError, match="cannot read"):
        split_from_files([("train", tmp_path / "none")], "lists", **THRESHOLDS)
    (tmp_path / "train.txt").write_bytes(b"a 0\nb 1\n\xff\xfe 2\n")
    with pytest.raises(SplitError, match="is not a readable text file"):
        split_from_files([("", tmp_path / "train.txt")], **THRESHOLDS)


@pytest.mark.parametrize(("text", "names"), [
    ("3D Painting 0 137.0\n3DPrinter 1 308.0\n", ("3D Painting", "3DPrinter")),
    ("c000 Holding some clothes\nc001 Sitting\n", ("Holding some clothes", "Sitting")),
    ("c000 Holding some clothes\nc002 Sitting\n", ("c000 Holding some clothes", "c002 Sitting")),
    ("track 0 12\ntrack 0 13\n", ("track 0 12", "track 0 13")),
])  # fmt: skip
def test_class_lists_of_benchmarks_give_their_names(tmp_path, text, names):
    (tmp_path / "names.txt").write_text(text)
    assert read_class_names(tmp_path / "names.txt") == names


def test_files_of_one_name_in_two_folders_and_endless_numbers_are_told_apart(tmp_path):
    texts = {"one": "a 5 1\n", "two": "b 1\n"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.txt").write_text(text)
    files = [("train", tmp_path / "one" / "list.txt"), ("val", tmp_path / "two" / "list.txt")]
    assert rows(split_from_files(files, **THRESHOLDS)[0]) == [("a", "train", [1, 5]), ("b", "val", [1])]
    with pytest.raises(SplitError, match="classes are more than a split file can hold|is not one of"):
        read(tmp_path, {"train.txt": f"run {'9' * 5000} 1\nswim {'9' * 5000} 2\n"}, "lists")
    with pytest.raises(SplitError, match="can be read in more than one way"):
        read(tmp_path, {"train.txt": f"run {'9' * 5000} 1\nswim {'9' * 5000} 2\n"})


def test_a_file_is_named_once(tmp_path):
    (tmp_path / "train.txt").write_text("x/a.mp4 0\n")
    for other in (tmp_path / "train.txt", tmp_path / ".." / tmp_path.name / "train.txt"):
        with pytest.raises(SplitError, match="given more than once: .*train.txt; name each file once"):
            split_from_files([("train", tmp_path / "train.txt"), ("val", other)], **THRESHOLDS)


def test_the_subset_is_named_before_a_file(run, tmp_path):
    (tmp_path / "a.txt").write_text("x/a.mp4 0\n")
    (tmp_path / "b.txt").write_text("x/b.mp4 0\n")
    options = ["--out", tmp_path / "s.parquet", "--head-above", 2, "--tail-up-to", 1, "--name", "mine"]
    outcome = run("import-split", f"training={tmp_path / 'a.txt'}", f"val={tmp_path / 'b.txt'}", *options)
    assert outcome.exit_code == 0 and "subsets by" not in outcome.stderr
    split = load_split(tmp_path / "s.parquet")
    assert split.dataset == "mine" and (split.video_ids("train"), split.video_ids("val")) == (["a"], ["b"])
    assert "no videos in test: evaluate, compare and predict take val" in outcome.stdout
    wrong = run("import-split", f"dev={tmp_path / 'a.txt'}", *options)
    assert wrong.exit_code == 2 and "'dev' is no subset; expected one of train, val, test" in wrong.stderr
    missing = run("import-split", f"train={tmp_path / 'c.txt'}", *options)
    assert missing.exit_code == 2 and "c.txt' does not exist" in missing.stderr
    lost = run("import-split", f"train={tmp_path / 'a.txt'}", "--out", tmp_path / "a.txt", *options[2:])
    assert lost.exit_code == 2 and "which would be lost" in lost.stderr
