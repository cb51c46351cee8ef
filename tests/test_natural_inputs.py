"""Features and label lists as other code writes them: each is read as meant, or two lines of a refusal mend it."""

import json
import pickle
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from material import EITHER, READ, REFUSED, TOY, first_two_lines, read_or_mend

import meidbench as mb

SUBSETS = {
    "train": {"a7Qx": ["eat", "run"], "b2Lm": ["eat"], "c9Zk": ["run"], "d4Wp": ["drink", "eat"]},
    "val": {"e1Rt": ["run"], "f8Yu": ["drink"]},
    "test": {"g3Hj": ["drink", "eat", "run"], "h6Nb": ["eat"]},
}
NAMES = ["drink", "eat", "run"]
FEATURES, LABELS = [], []


def form(table, outcome, says="", mend=None, **facts):
    """Register a form, as in test_natural_predictions.py."""

    def register(write):
        table.append(pytest.param(write, outcome, says, mend, facts, id=write.__name__))
        return write

    return register


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def split_file(tmp_path_factory):
    from meidbench.annotations.tables import split_from_files
    from meidbench.splits.split import write_split

    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.json").write_text(json.dumps(table_rows()))
    (folder / "classes.txt").write_text("\n".join(NAMES))
    facts = {"dataset": "mine", "head_above": 1, "tail_up_to": 0, "class_names": folder / "classes.txt"}
    split, _ = split_from_files([("", folder / "mine.json")], **facts)
    return write_split(split, folder / "mine.parquet")


def table_rows():
    return [
        {"video_id": video, "subset": subset, "labels": labels}
        for subset, videos in SUBSETS.items()
        for video, labels in videos.items()
    ]


def indices(labels):
    return [NAMES.index(name) for name in labels]


# --- features ---


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    return {row["video_id"]: draw.normal(size=(3, 8)).astype(np.float32) for row in table_rows()}


@pytest.mark.parametrize(("write", "promised", "says", "mend", "facts"), FEATURES)
def test_features(write, promised, says, mend, facts, rows, split_file, run, tmp_path_factory):
    arguments = write(rows) or [path.name for path in Path().iterdir()]
    pack = ("--split", split_file, "--dtype", "float32", "--out", tmp_path_factory.mktemp("packed") / "packed.h5")

    def call(*arguments):
        return run("pack-features", *arguments, *pack)

    _, (path, *options) = read_or_mend(call, arguments, promised, says, lambda: mend(rows), "npy")
    want = facts.get("want", lambda array: array)
    for features in [pack[-1]] if options else [pack[-1], path]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the axes of which pack-features tells, too
            data = mb.FeatureDataset(mb.load_split(split_file), "train", features=features, frames=3)
        assert [sample["video_id"] for sample in data] == list(SUBSETS["train"])
        for sample in data:
            assert np.array_equal(sample["features"], want(rows[sample["video_id"]])), features


def saved(rows, name="{}.npy", change=lambda array: array, folder="features"):
    """Save one file per video; return the folder."""
    for video, array in rows.items():
        path = Path(folder, name.format(video))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, change(array))
    return [folder]


@form(FEATURES, READ, r"ax[ei]s|squeez|\(1, 3, 8\)")
def npy_one_t_d(rows):
    for video, array in rows.items():
        Path("features").mkdir(exist_ok=True)
        np.save(f"features/{video}.npy", torch.from_numpy(array)[None].numpy())


@form(FEATURES, READ, r"ax[ei]s|squeez|\(3, 1, 8\)")
def npy_t_one_d(rows):
    saved(rows, change=lambda array: array[:, None])


@form(FEATURES, READ, r"ax[ei]s|squeez|\(3, 8, 1, 1\)")
def npy_before_the_flatten(rows):
    saved(rows, change=lambda array: array[:, :, None, None])


@form(FEATURES, READ, want=lambda array: np.repeat(array[:1], 3, axis=0))
def npy_one_vector_per_video(rows):
    saved(rows, change=lambda array: array[0])


@form(FEATURES, READ)
def npz_per_video(rows):
    Path("features").mkdir()
    for video, array in rows.items():
        np.savez(f"features/{video}.npz", features=array)


@form(FEATURES, READ)
def npz_per_video_without_a_name(rows):
    Path("features").mkdir()
    for video, array in rows.items():
        np.savez_compressed(f"features/{video}", array)


@form(FEATURES, READ)
def hdf5_at_root(rows):
    with h5py.File("features.h5", "w") as f:
        for video, array in rows.items():
            f[video] = array


@form(FEATURES, READ)
def hdf5_ids_and_features(rows):
    with h5py.File("features.h5", "w") as f:
        f["ids"] = list(rows)
        f["features"] = np.stack(list(rows.values()))


@form(FEATURES, EITHER, r"--dataset", lambda rows: ["features.h5", "--dataset", "i3d/rgb"])
def hdf5_below_groups(rows):
    with h5py.File("features.h5", "w") as f:
        for video, array in rows.items():
            f.create_dataset(f"i3d/rgb/{video}", data=array, compression="gzip")


@form(FEATURES, READ)
def hdf5_at_the_dataset(rows):
    hdf5_below_groups(rows)
    return ["features.h5", "--dataset", "i3d/rgb"]


@form(FEATURES, EITHER, r"--dataset", lambda rows: ["features.h5", "--dataset", "features"])
def hdf5_group_per_video(rows):
    with h5py.File("features.h5", "w") as f:
        for video, array in rows.items():
            f.create_group(video)["features"] = array


@form(FEATURES, READ)
def nested_folders(rows):
    for subset, videos in SUBSETS.items():
        saved({video: rows[video] for video in videos}, folder=f"features/{subset}")
    return ["features"]


@form(FEATURES, REFUSED, r"--suffix _rgb\b", lambda rows: ["features", "--suffix", "_rgb"])
def npy_suffix_rgb(rows):
    saved(rows, "{}_rgb.npy")


@form(FEATURES, REFUSED, r"--prefix v_", lambda rows: ["features", "--prefix", "v_"])
def npy_prefix_v(rows):
    saved(rows, "v_{}.npy")


@form(FEATURES, REFUSED, r"--suffix \.mp4", lambda rows: ["features", "--suffix", ".mp4"])
def npy_of_video_file_names(rows):
    saved(rows, "{}.mp4.npy")


@form(FEATURES, REFUSED, r"--suffix (_rgb|_flow)\b", lambda rows: ["features", "--suffix", "_rgb"])
def npy_of_two_streams(rows):
    saved(rows, "{}_rgb.npy")
    saved(rows, "{}_flow.npy", change=np.negative)
    return ["features"]


@form(FEATURES, EITHER, r"--suffix /\w|folder per video|VIDEO_ID\.npy|one file per video", lambda rows: moved_up())
def npy_in_a_folder_per_video(rows):
    saved(rows, "{}/rgb.npy")


def moved_up():
    Path("flat").mkdir()
    for path in Path("features").rglob("*.npy"):
        path.rename(f"flat/{path.parent.name}.npy")
    return ["flat"]


@form(FEATURES, REFUSED, r"np\.save", lambda rows: {})
def pt_per_video(rows):
    Path("features").mkdir()
    for video, array in rows.items():
        torch.save(torch.from_numpy(array), f"features/{video}.pt")


@form(FEATURES, REFUSED, r"np\.save", lambda rows: {})
def pickled_dict(rows):
    with Path("features.pkl").open("wb") as f:
        pickle.dump(rows, f, protocol=4)
    return ["features.pkl"]


@form(FEATURES, REFUSED, r"np\.save", lambda rows: {})
def torch_dict(rows):
    torch.save({video: torch.from_numpy(array) for video, array in rows.items()}, "features.pt")


@form(FEATURES, REFUSED, r"np\.save", lambda rows: {})
def npy_dict(rows):
    np.save("f.npy", rows)


@form(FEATURES, EITHER, r"np\.save", lambda rows: {"video_ids": list(rows)})
def npy_matrix_of_all_videos(rows):
    np.save("features.npy", np.stack(list(rows.values())))


@form(FEATURES, EITHER, r"np\.save", lambda rows: {})
def npz_of_all_videos(rows):
    np.savez("features.npz", **rows)


@form(FEATURES, EITHER, r"(?s)\.npy.*a7Qx\.csv", lambda rows: text_to_npy())
def csv_per_video(rows):
    Path("features").mkdir()
    for video, array in rows.items():
        np.savetxt(f"features/{video}.csv", array, delimiter=",")


def text_to_npy():
    files = Path("features").glob("*.csv")
    arrays = {path.stem: np.loadtxt(path, delimiter=",").astype(np.float32) for path in files}
    return saved(arrays, folder="mended")


@pytest.mark.parametrize("make", ["video", "frames"])
@pytest.mark.parametrize("command", ["pack-features", "train", "FeatureDataset"])
def test_a_folder_of_videos_is_recognised(make, command, rows, split_file, run):
    for video in rows:
        path = Path("videos", f"{video}.mp4" if make == "video" else f"{video}/img_00001.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\0\0\x18ftypmp42")
    if command == "FeatureDataset":
        with pytest.raises(mb.MeidbenchError) as caught:
            mb.FeatureDataset(mb.load_split(split_file), "train", features="videos")
        text = "\n".join(str(caught.value).splitlines()[:2])
    elif command == "train":
        text = first_two_lines(run("train", "--split", split_file, "--features", "videos", "--method", "bce"))
    else:
        text = first_two_lines(run("pack-features", "videos", "--split", split_file, "--out", "f.h5"))
    assert "extract-features" in text, text


@pytest.mark.parametrize("command", ["train", "verify-features", "FeatureDataset"])
def test_the_suffix_is_named_wherever_features_are_read(command, rows, split_file, run):
    saved(rows, "{}_rgb.npy")
    if command == "FeatureDataset":
        with pytest.raises(mb.MeidbenchError) as caught:
            mb.FeatureDataset(mb.load_split(split_file), "train", features="features")
        text = "\n".join(str(caught.value).splitlines()[:2])
        assert re.search(r"open_features\(.*suffix=.{0,2}_rgb", text) and "--suffix" not in text, caught.value
        features = mb.open_features("features", suffix="_rgb")
        data = mb.FeatureDataset(mb.load_split(split_file), "train", features=features, frames=3)
        assert all(np.array_equal(sample["features"], rows[sample["video_id"]]) for sample in data)
    elif command == "train":
        text = first_two_lines(run("train", "--split", split_file, "--features", "features", "--method", "bce"))
        assert "--suffix _rgb" in text
    else:
        assert "--suffix _rgb" in run("verify-features", "features", "--split", split_file).output.replace("\n", " ")


# --- labels and lists ---


@pytest.mark.parametrize(("write", "promised", "says", "mend", "facts"), LABELS)
def test_labels(write, promised, says, mend, facts, run):
    arguments = write() or [path.name for path in Path().iterdir()]
    finish = ("--out", "split.parquet", "--head-above", 1, "--tail-up-to", 0)

    def call(*arguments):
        return run("import-split", *arguments, *finish)

    outcome, _ = read_or_mend(call, arguments, promised, says, mend, "")
    split = mb.load_split("split.parquet")
    for subset in facts.get("subsets", SUBSETS):
        labels = dict(zip(split.video_ids(subset), split.labels(subset), strict=True))
        cut = facts.get("cut", len(NAMES))
        want = {video: np.isin(NAMES, names[:cut]).tolist() for video, names in SUBSETS[subset].items()}
        assert {video: row.tolist() for video, row in labels.items()} == want
    if facts.get("named"):
        assert list(split.class_names) == NAMES
        assert all(name in outcome.output for name in NAMES), outcome.output


def write_lists(line, names=("train.txt", "val.txt", "test.txt")):
    for name, videos in zip(names, SUBSETS.values(), strict=True):
        Path(name).write_text("".join(line(video, indices(labels)) + "\n" for video, labels in videos.items()))
    return list(names)


@form(LABELS, READ, named=True)
def csv_with_names(*_):
    frame = pd.DataFrame(table_rows())
    frame["labels"] = frame.labels.str.join(";")
    frame.to_csv("mine.csv", index=False)


@form(LABELS, READ, named=True)
def csv_with_default_index_and_printed_lists(*_):
    pd.DataFrame(table_rows()).to_csv("mine.csv")


@form(LABELS, READ)
def csv_with_printed_indices(*_):
    frame = pd.DataFrame(table_rows())
    frame["labels"] = [indices(labels) for labels in frame.labels]
    frame.to_csv("mine.csv", index=False)


@form(LABELS, READ, named=True)
def parquet_with_lists_of_names(*_):
    pd.DataFrame(table_rows()).to_parquet("mine.parquet")


@form(LABELS, READ, named=True)
def json_of_records(*_):
    pd.DataFrame(table_rows()).to_json("mine.json", orient="records")


@form(LABELS, READ, named=True)
def json_lines_of_records(*_):
    pd.DataFrame(table_rows()).to_json("mine.jsonl", orient="records", lines=True)


@form(LABELS, EITHER, r"video_id", lambda: dict_to_rows())
def json_dict_by_video(*_):
    table = {row["video_id"]: {"subset": row["subset"], "labels": row["labels"]} for row in table_rows()}
    Path("mine.json").write_text(json.dumps(table))


def dict_to_rows():
    table = json.loads(Path("mine.json").read_text())
    Path("mended.json").write_text(json.dumps([{"video_id": video, **row} for video, row in table.items()]))
    return ["mended.json"]


@form(LABELS, READ)
def lists_of_videolt(*_):
    write_lists(
        lambda video, labels: f"{video} {','.join(map(str, labels))}", ("train.lst", "validate.lst", "test.lst")
    )
    return ["train.lst", "validate.lst", "test.lst", "--format", "lists"]


@form(LABELS, EITHER, r"--format lists", lambda: ["train.lst", "validate.lst", "test.lst", "--format", "lists"])
def lists_of_videolt_without_format(*_):
    return lists_of_videolt()[:3]


def mmaction2(*files):
    return [*files, "--format", "mmaction2"]


@form(LABELS, READ, cut=1)
def mmaction2_single_label(*_):
    names = ("train_list.txt", "val_list.txt", "test_list.txt")
    return mmaction2(*write_lists(lambda video, labels: f"{video}.mp4 {labels[0]}", names))


@form(LABELS, READ)
def mmaction2_multi_label(*_):
    names = ("mine_train_list_videos.txt", "mine_val_list_videos.txt", "mine_test_list_videos.txt")
    return mmaction2(*write_lists(lambda video, labels: f"{video}.mp4 {' '.join(map(str, labels))}", names))


@form(LABELS, READ, cut=1)
def mmaction2_nested_paths(*_):
    return mmaction2(*write_lists(lambda video, labels: f"some/class/{video}.mp4 {labels[0]}"))


@form(LABELS, EITHER, r"--format mmaction2", lambda: mmaction2("train.txt", "val.txt", "test.txt"), cut=1)
def mmaction2_without_format(*_):
    write_lists(lambda video, labels: f"{video}.mp4 {labels[0]}")
    return ["train.txt", "val.txt", "test.txt"]


@form(LABELS, EITHER, r"frames", lambda: mmaction2(*without_frames()), cut=1)
def mmaction2_rawframes(*_):
    return mmaction2(*write_lists(lambda video, labels: f"{video} {150 + len(video)} {labels[0]}"))


def without_frames():
    names = ["train.txt", "val.txt", "test.txt"]
    for name in names:
        pd.read_csv(name, sep=" ", header=None)[[0, 2]].to_csv(name, sep=" ", header=False, index=False)
    return names


@form(LABELS, EITHER, r"labels.*;|one column|0 or 1", lambda: from_one_hot(), named=True)
def csv_with_one_hot_columns(*_):
    frame = pd.DataFrame(table_rows())
    frame.drop(columns="labels").join(frame.labels.str.join("|").str.get_dummies()).to_csv("mine.csv", index=False)


def from_one_hot():
    frame = pd.read_csv("mine.csv")
    frame["labels"] = [";".join(np.array(NAMES)[row == 1]) for row in frame[NAMES].to_numpy()]
    frame[["video_id", "subset", "labels"]].to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(LABELS, EITHER, r"one row per video|join|groupby|twice", lambda: grouped(), named=True)
def csv_with_one_row_per_label(*_):
    pd.DataFrame(table_rows()).explode("labels").to_csv("mine.csv", index=False)


def grouped():
    frame = pd.read_csv("mine.csv").groupby(["video_id", "subset"], sort=False).labels.agg(";".join)
    frame.reset_index().to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(LABELS, EITHER, r"subset", lambda: joined(), named=True)
def csv_per_subset(*_):
    for subset, part in pd.DataFrame(table_rows()).groupby("subset"):
        part.assign(labels=part.labels.str.join(";")).drop(columns="subset").to_csv(f"{subset}.csv", index=False)


def joined():
    parts = [pd.read_csv(f"{subset}.csv").assign(subset=subset) for subset in SUBSETS]
    pd.concat(parts).to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(LABELS, EITHER, r"train.*val.*test", lambda: subsets_renamed(), named=True)
def csv_with_other_names_of_subsets(*_):
    frame = pd.DataFrame(table_rows())
    frame["subset"] = frame.subset.replace({"train": "training", "val": "validation", "test": "testing"})
    frame.assign(labels=frame.labels.str.join(";")).to_csv("mine.csv", index=False)


def subsets_renamed():
    names = {"training": "train", "validation": "val", "testing": "test"}
    pd.read_csv("mine.csv").replace({"subset": names}).to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(LABELS, EITHER, r"video_id.*subset.*labels", lambda: columns_renamed(), named=True)
def csv_with_other_headers(*_):
    frame = pd.DataFrame(table_rows())
    frame["labels"] = frame.labels.str.join(";")
    frame.rename(columns={"video_id": "id", "subset": "split", "labels": "label"}).to_csv("mine.csv", index=False)


def columns_renamed():
    names = {"id": "video_id", "split": "subset", "label": "labels"}
    pd.read_csv("mine.csv").rename(columns=names).to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(LABELS, EITHER, r"header|video_id", lambda: header_added(), named=True)
def csv_without_header(*_):
    frame = pd.DataFrame(table_rows())
    frame.assign(labels=frame.labels.str.join(";")).to_csv("mine.csv", index=False, header=False)


def header_added():
    pd.read_csv("mine.csv", names=["video_id", "subset", "labels"]).to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(LABELS, REFUSED, r"to_csv|to_parquet|CSV|Parquet", lambda: unpickled(), named=True)
def pandas_pickle(*_):
    pd.DataFrame(table_rows()).to_pickle("mine.pkl")


def unpickled():
    pd.read_pickle("mine.pkl").to_parquet("mended.parquet")
    return ["mended.parquet"]


def test_lists_of_this_project(toy_split, run):
    """The lists that build-splits writes with --format lst become the split again."""
    files = [TOY / f"ToyLT_{subset}.txt" for subset in SUBSETS]
    outcome = run(
        "import-split", *files, "--format", "lists", "--out", "s.parquet", "--head-above", 30, "--tail-up-to", 12
    )
    assert outcome.exit_code == 0, outcome.stderr
    split = mb.load_split("s.parquet")
    for subset in SUBSETS:
        assert split.video_ids(subset) == toy_split.video_ids(subset)
        assert np.array_equal(split.labels(subset), toy_split.labels(subset))


def test_a_benchmark_of_train_and_val_is_scored_on_val(run):
    rows = [row for row in table_rows() if row["subset"] != "test"]
    pd.DataFrame(rows).to_json("mine.json", orient="records")
    assert run("import-split", "mine.json", "--out", "s.parquet", "--head-above", 1, "--tail-up-to", 0).exit_code == 0
    np.savez("preds.npz", video_ids=list(SUBSETS["val"]), scores=np.array([[0.0, 1, 2], [2, 1, 0]], np.float32))
    outcome = run("evaluate", "preds.npz", "--split", "s.parquet")
    assert outcome.exit_code == 0, outcome.stderr
    assert re.search(r"\bval\b", outcome.output) and re.search(r"overall +1\.0000", outcome.stdout), outcome.output
    assert run("evaluate", "preds.npz", "--split", "s.parquet", "--json", "-").stdout.count('"subset": "val"') == 1
    assert mb.evaluate(np.eye(3)[[2, 0]], list(SUBSETS["val"]), mb.load_split("s.parquet")).mAP.overall == 1.0


def test_split_from_pandas_gives_the_frame_back(split_file):
    frame = pd.DataFrame(table_rows())
    split = mb.split_from_pandas(frame, dataset="mine", head_above=1, tail_up_to=0)
    assert list(split.class_names) == NAMES
    for subset in SUBSETS:
        assert np.array_equal(split.labels(subset), mb.load_split(split_file).labels(subset))
    assert mb.load_split(mb.write_split(split, "again.parquet")).content_digest == split.content_digest
    back = split.to_pandas()
    assert dict(zip(back.video_id, back.subset, strict=True)) == dict(zip(frame.video_id, frame.subset, strict=True))
