"""Prediction files as people write them: each gives the reference number, or two lines of a refusal that mend it.

Each form is written by a few lines of PyTorch, NumPy or pandas, as in the script of a person who has not read the
documentation. scikit-learn gives the reference number. Where a form is refused, the test does as the message says.
"""

import gzip
import json
import pickle
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from material import EITHER, READ, REFUSED, first_two_lines, read_or_mend
from sklearn.metrics import average_precision_score
from torch.utils.data import DistributedSampler

import meidbench as mb


def reference(scores, labels):
    """Return mAP over the classes with positives."""
    positive = labels.any(axis=0)
    return average_precision_score(labels[:, positive], scores[:, positive], average="macro")


@pytest.fixture(scope="module")
def given(toy_split):
    """Return the ids of the test subset in an order of their own, the scores, and the labels."""
    draw = np.random.default_rng(14)
    labels = toy_split.labels("test")
    order = draw.permutation(len(labels))
    scores = (draw.normal(size=labels.shape) + labels).astype(np.float32)
    return [toy_split.video_ids("test")[row] for row in order], scores[order], labels[order]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FORMS = []


def form(outcome, says="", mend=None, stored=None):
    """Register a form.

    outcome is what the documentation promises, EITHER where it promises nothing. says is a pattern: of the output
    where the form is read, of the first two lines where it is refused. mend applies the remedy and returns the new
    arguments, or the names with which the code of the message runs. stored gives the scores as the form keeps them.
    """

    def register(write):
        FORMS.append(pytest.param(write, outcome, says, mend, stored, id=write.__name__))
        return write

    return register


@pytest.mark.parametrize(("write", "promised", "says", "mend", "stored"), FORMS)
def test_form(write, promised, says, mend, stored, given, toy_split, toy_split_file, run):
    ids, scores, labels = given
    names = list(toy_split.class_names)
    arguments = write(ids, scores, names) or [path.name for path in Path().iterdir()]

    def call(*arguments):
        return run("evaluate", *arguments, "--split", toy_split_file, "--json", "-")

    outcome, _ = read_or_mend(call, arguments, promised, says, lambda: mend(ids, scores, names), "run.parquet")
    want = reference(scores if stored is None else stored(scores), labels)
    assert json.loads(outcome.stdout)["mAP"]["overall"] == pytest.approx(want, abs=1e-12)


def by_write_predictions(ids, scores, names):
    mb.write_predictions("mended.parquet", ids, scores)
    return ["mended.parquet"]


# --- pandas: Parquet ---


@form(READ)
def parquet_ids_as_named_index(ids, scores, names):
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names)
    frame.to_parquet("preds.parquet")


@form(READ)
def parquet_ids_as_index_without_a_name(ids, scores, names):
    pd.DataFrame(scores, index=ids, columns=names).to_parquet("preds.parquet")


@form(READ)
def parquet_classes_are_column_numbers(ids, scores, names):
    pd.DataFrame(scores, index=ids).to_parquet("preds.parquet")


@form(READ)
def parquet_id_column_comes_last(ids, scores, names):
    frame = pd.DataFrame(scores, columns=[str(i) for i in range(scores.shape[1])])
    frame["id"] = ids
    frame.to_parquet("preds.parquet", index=False)


@form(READ)
def parquet_list_column(ids, scores, names):
    pd.DataFrame({"video_id": ids, "scores": list(scores)}).to_parquet("preds.parquet")


@form(READ)
def parquet_list_column_in_rows_of_dicts(ids, scores, names):
    rows = []
    for video, row in zip(ids, torch.from_numpy(scores), strict=True):
        rows.append({"video_id": video, "scores": row.tolist()})
    pd.DataFrame(rows).to_parquet("preds.parquet")


@form(READ)
def parquet_after_sort_and_filter(ids, scores, names):
    frame = pd.DataFrame({"video_id": ids, "scores": list(scores)})
    frame[frame.video_id != ""].sort_values("video_id").to_parquet("preds.parquet")


@form(EITHER, r"\blabel\b", lambda i, s, n: drop_label_column())
def parquet_with_a_label_column(ids, scores, names):
    frame = pd.DataFrame(scores, columns=names)
    frame.insert(0, "video_id", ids)
    frame["label"] = scores.argmax(1)
    frame.to_parquet("preds.parquet")


def drop_label_column():
    pd.read_parquet("preds.parquet").drop(columns="label").to_parquet("mended.parquet")
    return ["mended.parquet"]


@form(REFUSED, r"Doing thing 7\b", by_write_predictions)
def parquet_without_a_class(ids, scores, names):
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names)
    frame.drop(columns="Doing thing 7").to_parquet("preds.parquet")


@form(EITHER, r"to_parquet", lambda i, s, n: {"pandas": pd})
def feather(ids, scores, names):
    pd.DataFrame({"video_id": ids, "scores": list(scores)}).to_feather("preds.feather")


# --- pandas: CSV and JSON ---


@form(READ)
def csv_default_index(ids, scores, names):
    frame = pd.DataFrame(scores, columns=names)
    frame.insert(0, "video_id", ids)
    frame.to_csv("preds.csv")


@form(READ)
def csv_without_index(ids, scores, names):
    pd.DataFrame({"video_id": ids, **dict(zip(names, scores.T, strict=True))}).to_csv("preds.csv", index=False)


@form(READ)
def csv_ids_as_index_without_a_name(ids, scores, names):
    pd.DataFrame(scores, index=ids, columns=names).to_csv("preds.csv")


@form(READ, r"order")
def csv_classes_sorted_by_name(ids, scores, names):
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names)
    frame[sorted(names, reverse=True)].to_csv("preds.csv")


@form(READ)
def csv_headers_class_0(ids, scores, names):
    frame = pd.DataFrame(scores, columns=[f"class_{i}" for i in range(scores.shape[1])])
    frame.insert(0, "id", ids)
    frame.to_csv("preds.csv", index=False)


@form(EITHER, r"comma|sep", lambda i, s, n: semicolons_to_commas())
def csv_with_semicolons(ids, scores, names):
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names)
    frame.to_csv("preds.csv", sep=";")


def semicolons_to_commas():
    pd.read_csv("preds.csv", sep=";").to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(EITHER, r"comma|sep", lambda i, s, n: tabs_to_commas())
def tsv(ids, scores, names):
    pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names).to_csv("preds.tsv", sep="\t")


def tabs_to_commas():
    pd.read_csv("preds.tsv", sep="\t").to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(EITHER, r"header", lambda i, s, n: with_header(n))
def csv_without_header(ids, scores, names):
    pd.DataFrame(scores, index=ids).to_csv("preds.csv", header=False)


def with_header(names):
    pd.read_csv("preds.csv", names=["video_id", *names]).to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(EITHER, r"to_parquet", lambda i, s, n: lists_as_parquet(i, s))
def csv_with_lists_in_cells(ids, scores, names):
    pd.DataFrame({"video_id": ids, "scores": scores.tolist()}).to_csv("preds.csv", index=False)


def lists_as_parquet(ids, scores):
    pd.DataFrame({"video_id": ids, "scores": scores.tolist()}).to_parquet("mended.parquet")
    return ["mended.parquet"]


@form(EITHER, r"video_id", lambda i, s, n: index_renamed())
def csv_after_reset_index(ids, scores, names):
    pd.DataFrame(scores, index=ids, columns=names).reset_index().to_csv("preds.csv")


def index_renamed():
    frame = pd.read_csv("preds.csv", index_col=0).rename(columns={"index": "video_id"})
    frame.to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(EITHER, r"pivot|column per class|row per video", lambda i, s, n: pivoted(n))
def csv_of_a_long_frame(ids, scores, names):
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names).reset_index()
    frame.melt("video_id", var_name="class", value_name="score").to_csv("preds.csv", index=False)


@form(EITHER, r"pivot|column per class|row per video", lambda i, s, n: pivoted(range(len(n))))
def csv_of_a_long_frame_of_indices(ids, scores, names):
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id")).reset_index()
    frame.melt("video_id", var_name="class", value_name="score").to_csv("preds.csv", index=False)


def pivoted(names):
    frame = pd.read_csv("preds.csv").pivot(index="video_id", columns="class", values="score")
    frame[names].to_csv("mended.csv")
    return ["mended.csv"]


@form(EITHER, r"gunzip|decompress|unpack|gzip -d", lambda i, s, n: unpack())
def csv_gzip(ids, scores, names):
    pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names).to_csv("preds.csv.gz")


def unpack():
    Path("mended.csv").write_bytes(gzip.decompress(Path("preds.csv.gz").read_bytes()))
    return ["mended.csv"]


@form(READ)
def json_lines(ids, scores, names):
    pd.DataFrame({"video_id": ids, "scores": list(scores)}).to_json("preds.jsonl", orient="records", lines=True)


@form(EITHER, r"write_predictions", lambda i, s, n: {"meidbench": mb})
def json_records(ids, scores, names):
    pd.DataFrame({"video_id": ids, "scores": list(scores)}).to_json("preds.json", orient="records")


@form(EITHER, r"write_predictions", lambda i, s, n: {"meidbench": mb})
def json_dict(ids, scores, names):
    with Path("preds.json").open("w") as f:
        json.dump({video: row.tolist() for video, row in zip(ids, scores, strict=True)}, f)


@form(EITHER, r"write_predictions", lambda i, s, n: {"meidbench": mb})
def json_dict_with_indent(ids, scores, names):
    preds = dict(zip(ids, scores.tolist(), strict=True))
    Path("preds.json").write_text(json.dumps(preds, indent=2))


@form(EITHER, r"write_predictions", lambda i, s, n: of_json_columns())
def json_of_a_wide_frame(ids, scores, names):
    pd.DataFrame(scores, index=ids, columns=names).to_json("preds.json")


def of_json_columns():
    frame = pd.read_json("preds.json")
    return {"meidbench": mb, "np": np, "video_ids": frame.index, "scores": frame.to_numpy()}


@form(EITHER, r"\"scores\": \[|to_parquet|to_csv|write_predictions", lambda i, s, n: wide_lines_as_csv())
def json_lines_of_a_wide_frame(ids, scores, names):
    frame = pd.DataFrame(scores, columns=names)
    frame.insert(0, "video_id", ids)
    frame.to_json("preds.jsonl", orient="records", lines=True)


def wide_lines_as_csv():
    pd.read_json("preds.jsonl", lines=True).to_csv("mended.csv", index=False)
    return ["mended.csv"]


@form(REFUSED, r"write_predictions", lambda i, s, n: unpickled_frame())
def pandas_pickle(ids, scores, names):
    pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=names).to_pickle("preds.pkl")


def unpickled_frame():
    frame = pd.read_pickle("preds.pkl")
    return {"meidbench": mb, "np": np, "video_ids": frame.index, "scores": frame.to_numpy()}


# --- NumPy ---


@form(EITHER, r"video_ids", lambda i, s, n: renamed_arrays())
def npz_ids(ids, scores, names):
    np.savez("preds.npz", ids=ids, scores=scores)


def renamed_arrays():
    arrays = np.load("preds.npz")
    np.savez("mended.npz", video_ids=arrays["ids"], scores=arrays["scores"])
    return ["mended.npz"]


@form(EITHER, r"astype\(str\)|dtype=str|write_predictions", lambda i, s, n: ids_as_text())
def npz_object_ids(ids, scores, names):
    frame = pd.DataFrame({"video_id": ids}, dtype=object)
    np.savez("preds.npz", video_ids=frame.video_id.values, scores=scores)


def ids_as_text():
    arrays = np.load("preds.npz", allow_pickle=True)
    np.savez("mended.npz", video_ids=np.array(arrays["video_ids"], dtype=str), scores=arrays["scores"])
    return ["mended.npz"]


@form(READ)
def npz_bytes_ids(ids, scores, names):
    np.savez("preds.npz", video_ids=np.array(ids, dtype="S"), scores=scores)


@form(READ)
def npy_matrix_with_ids(ids, scores, names):
    np.save("scores.npy", scores)
    Path("ids.txt").write_text("\n".join(ids))
    return ["scores.npy", "--ids", "ids.txt"]


@form(REFUSED, r"--ids", lambda i, s, n: matrix_with_ids(i))
def npy_matrix_alone(ids, scores, names):
    np.save("scores.npy", scores)


def matrix_with_ids(ids):
    np.savetxt("ids.txt", ids, fmt="%s")
    return ["scores.npy", "--ids", "ids.txt"]


@form(REFUSED, r"--ids", lambda i, s, n: matrix_of_text(i))
def text_of_savetxt(ids, scores, names):
    np.savetxt("scores.txt", scores)


def matrix_of_text(ids):
    np.save("scores.npy", np.loadtxt("scores.txt"))
    return matrix_with_ids(ids)


@form(REFUSED, r"write_predictions|np\.savez", lambda i, s, n: loaded_dict())
def npy_dict(ids, scores, names):
    np.save("preds.npy", {"ids": ids, "scores": scores})


def loaded_dict():
    loaded = np.load("preds.npy", allow_pickle=True).item()
    return {"meidbench": mb, "np": np, "video_ids": loaded["ids"], "scores": loaded["scores"]}


@form(REFUSED, r"transpose|\.T\b|12 x 49|\(12, 49\)|12 rows", lambda i, s, n: transposed())
def npz_classes_by_videos(ids, scores, names):
    np.savez("preds.npz", video_ids=ids, scores=scores.T)


def transposed():
    arrays = np.load("preds.npz")
    np.savez("mended.npz", video_ids=arrays["video_ids"], scores=arrays["scores"].T)
    return ["mended.npz"]


@form(READ)
def npz_ranks_as_integers(ids, scores, names):
    np.savez_compressed("preds.npz", video_ids=ids, scores=scores.argsort(0).argsort(0))


@form(REFUSED, r"--allow-float16|float32", lambda i, s, n: ["preds.npz", "--allow-float16"], lambda s: s.astype("f2"))
def npz_float16(ids, scores, names):
    np.savez("preds.npz", video_ids=ids, scores=torch.from_numpy(scores).half().numpy())


def rounded_to_bfloat16(scores):
    return torch.from_numpy(scores).bfloat16().float().numpy()


@form(READ, stored=rounded_to_bfloat16)
def npz_autocast_to_bfloat16(ids, scores, names):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.from_numpy(scores) @ torch.eye(scores.shape[1])
    np.savez("preds.npz", video_ids=ids, scores=logits.float().numpy())


@form(READ)
def text_of_charades_with_probabilities(ids, scores, names):
    with Path("submission.txt").open("w") as f:
        for video, row in zip(ids, torch.from_numpy(scores).double().sigmoid(), strict=True):
            f.write(video + " " + " ".join(f"{p:.17g}" for p in row.tolist()) + "\n")


# --- PyTorch, pickles, HDF5 ---


@form(REFUSED, r"write_predictions", lambda i, s, n: loaded_tensors())
def torch_dict(ids, scores, names):
    torch.save({"video_ids": ids, "logits": torch.from_numpy(scores)}, "preds.pt")


def loaded_tensors():
    loaded = torch.load("preds.pt")
    return {"meidbench": mb, "np": np, "video_ids": loaded["video_ids"], "scores": loaded["logits"]}


@form(REFUSED, r"write_predictions", lambda i, s, n: loaded_matrix(i))
def torch_tensor(ids, scores, names):
    logits = [torch.from_numpy(batch) for batch in np.array_split(scores, 5)]
    torch.save(torch.cat(logits), "scores.pth")


def loaded_matrix(ids):
    return {"meidbench": mb, "np": np, "video_ids": ids, "scores": torch.load("scores.pth")}


@form(REFUSED, r"write_predictions", lambda i, s, n: results_of_mmaction2(i))
def pickle_of_mmaction2(ids, scores, names):
    results = [{"pred_score": torch.from_numpy(row), "num_classes": len(row)} for row in scores]
    with Path("result.pkl").open("wb") as f:
        pickle.dump(results, f)


def results_of_mmaction2(ids):
    results = pickle.loads(Path("result.pkl").read_bytes())
    return {"meidbench": mb, "np": np, "video_ids": ids, "scores": [result["pred_score"] for result in results]}


@form(READ)
def hdf5_bytes_ids(ids, scores, names):
    with h5py.File("preds.h5", "w") as f:
        f["video_ids"] = np.array([video.encode() for video in ids])
        f["scores"] = scores.astype(np.float64)


@form(EITHER, r"video_ids", lambda i, s, n: hdf5_renamed())
def hdf5_utf8_ids(ids, scores, names):
    with h5py.File("preds.h5", "w") as f:
        f.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
        f.create_dataset("scores", data=scores, compression="gzip")


def hdf5_renamed():
    with h5py.File("preds.h5", "a") as f:
        f.move("ids", "video_ids")
    return ["preds.h5"]


@form(EITHER, r"video_ids.*scores|write_predictions", lambda i, s, n: hdf5_stacked())
def hdf5_one_dataset_per_video(ids, scores, names):
    with h5py.File("preds.h5", "w") as f:
        for video, row in zip(ids, scores, strict=True):
            f[video] = row


def hdf5_stacked():
    with h5py.File("preds.h5") as f:
        return by_write_predictions(list(f), np.stack([f[video][()] for video in f]), None)


# --- several files, repeated videos ---


def write_ranks(ids, scores, processes):
    Path("run").mkdir()
    for rank in range(processes):
        rows = list(DistributedSampler(ids, num_replicas=processes, rank=rank))
        np.savez(f"run/rank{rank}.npz", video_ids=[ids[row] for row in rows], scores=scores[rows])


@form(READ)
def folder_of_processes(ids, scores, names):
    write_ranks(ids, scores, 7)  # 49 videos: no padding


@form(READ)
def files_of_processes(ids, scores, names):
    write_ranks(ids, scores, 7)
    return sorted(str(path) for path in Path("run").iterdir())


@form(EITHER, r"padd|DistributedSampler|distributed sampler", lambda i, s, n: without_padding())
def folder_of_processes_with_padding(ids, scores, names):
    write_ranks(ids, scores, 4)  # 52 rows: three videos are there twice


def without_padding():
    parts = [np.load(path) for path in sorted(Path("run").iterdir())]
    ids = np.concatenate([part["video_ids"] for part in parts])
    kept = np.unique(ids, return_index=True)[1]
    return by_write_predictions(ids[kept].tolist(), np.concatenate([part["scores"] for part in parts])[kept], None)


@form(READ)
def folder_of_parquet_parts(ids, scores, names):
    frame = pd.DataFrame({"video_id": ids, "scores": list(scores)})
    Path("run").mkdir()
    for part, start in enumerate(range(0, len(frame), 20)):
        frame[start : start + 20].to_parquet(f"run/part-{part:05d}.parquet")


@form(REFUSED, r"averag", lambda i, s, n: averaged_views())
def ten_crops(ids, scores, names):
    crops = np.stack([scores + shift for shift in np.linspace(-0.5, 0.5, 11)], axis=1)  # (N, views, C)
    frame = pd.DataFrame(crops.reshape(-1, scores.shape[1]), columns=names)
    frame.insert(0, "video_id", np.repeat(ids, 11))
    frame.to_parquet("preds.parquet")


def averaged_views():
    frame = pd.read_parquet("preds.parquet")
    video_ids, scores = frame.video_id, frame.drop(columns="video_id").to_numpy()
    pd.DataFrame(scores, index=video_ids).groupby(level=0).mean().to_parquet("mended.parquet")
    return ["mended.parquet"]


@form(REFUSED, r"averag", lambda i, s, n: averaged_files(i))
def folder_of_views(ids, scores, names):
    Path("run").mkdir()
    for view, shift in enumerate(np.linspace(-0.5, 0.5, 3)):
        np.savez(f"run/crop{view}.npz", video_ids=ids, scores=scores + shift)


def averaged_files(ids):
    return by_write_predictions(ids, np.mean([np.load(f"run/crop{view}.npz")["scores"] for view in range(3)], 0), None)


@form(EITHER, r"video_ids.*scores|write_predictions", lambda i, s, n: stacked_folder())
def folder_of_one_file_per_video(ids, scores, names):
    Path("run").mkdir()
    for video, row in zip(ids, scores, strict=True):
        np.save(f"run/{video}.npy", row)


def stacked_folder():
    paths = sorted(Path("run").iterdir())
    return by_write_predictions([path.stem for path in paths], np.stack([np.load(path) for path in paths]), None)


# --- ids of another make ---


def renamed(rule):
    """Return a remedy that applies a rule to the ids of the file, and the file as a person writes it."""

    def mend(ids, scores, names):
        frame = pd.read_parquet("preds.parquet")
        frame.video_id = [rule(name) for name in frame.video_id]
        frame.to_parquet("mended.parquet")
        return ["mended.parquet"]

    return mend


def write_with_ids(ids, scores):
    pd.DataFrame({"video_id": ids, "scores": list(scores)}).to_parquet("preds.parquet")


@form(REFUSED, r"\.mp4", renamed(lambda name: name.removesuffix(".mp4")))
def ids_are_file_names(ids, scores, names):
    write_with_ids([f"{video}.mp4" for video in ids], scores)


@form(REFUSED, r"v_", renamed(lambda name: name.removeprefix("v_")))
def ids_with_prefix_v(ids, scores, names):
    write_with_ids(["v_" + video for video in ids], scores)


@form(REFUSED, r"_rgb", renamed(lambda name: name.removesuffix("_rgb")))
def ids_with_suffix_rgb(ids, scores, names):
    write_with_ids([video + "_rgb" for video in ids], scores)


@form(REFUSED, r"case|capital|upper", renamed(str.upper))
def ids_in_lower_case(ids, scores, names):
    write_with_ids([video.lower() for video in ids], scores)


@form(REFUSED, r"path|folder|stem|/data/charades/", renamed(lambda name: Path(name).stem))
def ids_are_paths(ids, scores, names):
    write_with_ids([f"/data/charades/{video}.mp4" for video in ids], scores)


@form(REFUSED, r"decode|b'", renamed(lambda name: name[2:-1]))
def ids_are_printed_bytes(ids, scores, names):
    write_with_ids([str(video.encode()) for video in ids], scores)


@form(REFUSED, r"TOY\d+.*\b[0-4]\b|\b[0-4]\b.*TOY\d+|number|position|index", by_write_predictions)
def ids_are_positions(ids, scores, names):
    dataset_index = torch.arange(len(ids)).tolist()
    write_with_ids([str(index) for index in dataset_index], scores)


@form(REFUSED, r"subset test|(in|of|to) test", renamed(lambda name: name))
def predictions_of_test_scored_on_val(ids, scores, names):
    write_with_ids(ids, scores)
    return ["preds.parquet", "--subset", "val"]


@pytest.fixture
def numbered_split(toy_split, run):
    """Return the path of the toy split with ids of digits, and the new id of each video."""
    ids = [*toy_split.video_ids("train"), *toy_split.video_ids("test")]
    numbers = {video: f"{7 * row:05d}" for row, video in enumerate(ids)}
    table = [
        {"video_id": numbers[video], "subset": subset, "labels": np.flatnonzero(row).tolist()}
        for subset in ("train", "test")
        for video, row in zip(toy_split.video_ids(subset), toy_split.labels(subset), strict=True)
    ]
    Path("numbered.json").write_text(json.dumps(table))
    done = run("import-split", "numbered.json", "--out", "numbered.parquet", "--head-above", 30, "--tail-up-to", 12)
    assert done.exit_code == 0, done.stderr
    return "numbered.parquet", numbers


def test_ids_that_pandas_read_as_integers(numbered_split, given, run):
    split, numbers = numbered_split
    ids, scores, labels = given
    pd.DataFrame({"video_id": [numbers[video] for video in ids]}).to_csv("list.csv", index=False)
    frame = pd.DataFrame(scores, columns=[str(i) for i in range(scores.shape[1])])
    frame.insert(0, "video_id", pd.read_csv("list.csv").video_id)
    frame.to_csv("preds.csv", index=False)
    text = first_two_lines(run("evaluate", "preds.csv", "--split", split))
    assert re.search(r"zero|dtype|zfill", text), text
    frame.video_id = pd.read_csv("list.csv", dtype={"video_id": str}).video_id
    frame.to_csv("mended.csv", index=False)
    outcome = run("evaluate", "mended.csv", "--split", split, "--json", "-")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["mAP"]["overall"] == pytest.approx(reference(scores, labels), abs=1e-12)


def test_one_file_of_val_and_test(given, toy_split, toy_split_file, run):
    """Scores of every video that has a label: the other subset's videos are named as such."""
    ids, scores, labels = given
    others = toy_split.video_ids("val")
    write_with_ids([*others, *ids], np.concatenate([np.zeros((len(others), 12), np.float32), scores]))
    outcome = run("evaluate", "preds.parquet", "--split", toy_split_file, "--json", "-")
    if outcome.exit_code:
        assert re.search(r"\bval\b", first_two_lines(outcome)), outcome.stderr
        frame = pd.read_parquet("preds.parquet")
        frame[frame.video_id.isin(toy_split.video_ids("test"))].to_parquet("mended.parquet")
        outcome = run("evaluate", "mended.parquet", "--split", toy_split_file, "--json", "-")
    assert json.loads(outcome.stdout)["mAP"]["overall"] == pytest.approx(reference(scores, labels), abs=1e-12)


# --- in a Python session ---


FROM_PYTHON = {
    "frame": lambda ids, scores, names: (pd.DataFrame(scores, index=ids, columns=names),),
    "frame-of-lists": lambda ids, scores, names: (pd.DataFrame({"video_id": ids, "scores": list(scores)}),),
    "frame-permuted": lambda ids, scores, names: (pd.DataFrame(scores, ids, names)[names[::-1]],),
    "tensor-with-gradient": lambda ids, scores, names: (torch.tensor(scores, requires_grad=True), ids),
    "float64-tensor": lambda ids, scores, names: (torch.tensor(scores).double(), ids),
    "lists": lambda ids, scores, names: (scores.tolist(), ids),
    "array-of-ids": lambda ids, scores, names: (scores, np.array(ids)),
    "series-of-ids": lambda ids, scores, names: (scores, pd.Series(ids)),
    "object-ids": lambda ids, scores, names: (scores, np.array(ids, dtype=object)),
}


@pytest.mark.parametrize("kind", FROM_PYTHON)
def test_from_python(kind, given, toy_split):
    ids, scores, labels = given
    arguments = FROM_PYTHON[kind](ids, scores, list(toy_split.class_names))
    result = mb.evaluate(*arguments, split=toy_split, subset="test")
    assert result.mAP.overall == pytest.approx(reference(scores, labels), abs=1e-12)


def test_bfloat16_from_python(given, toy_split):
    """A bfloat16 tensor is scored as it is, or refused with the type to write."""
    ids, scores, labels = given
    tensor = torch.from_numpy(scores).bfloat16()
    try:
        result = mb.evaluate(tensor, ids, split=toy_split)
    except mb.MeidbenchError as error:
        text = "\n".join(str(error).splitlines()[:2])
        assert re.search(r"float32|\.float\(\)|allow_float16", text) and "--" not in text, text
        result = mb.evaluate(tensor.float(), ids, split=toy_split)
    assert result.mAP.overall == pytest.approx(reference(tensor.float().numpy(), labels), abs=1e-12)


def as_matrix(scores, ids, split):
    np.save("scores.npy", scores)
    return mb.evaluate("scores.npy", split=split)


def test_a_matrix_and_a_file_of_ids_from_python(given, toy_split):
    ids, scores, labels = given
    np.save("scores.npy", scores)
    Path("ids.txt").write_text("\n".join(ids))
    result = mb.evaluate("scores.npy", video_ids="ids.txt", split=toy_split)
    assert result.mAP.overall == pytest.approx(reference(scores, labels), abs=1e-12)


@pytest.mark.parametrize(("call", "argument"), [
    (as_matrix, r"\bvideo_ids="),
    (lambda scores, ids, split: mb.evaluate(torch.tensor(scores).half(), ids, split), "allow_float16|float32"),
    (lambda scores, ids, split: mb.evaluate(scores, ids, split, subset="val"), 'subset="test"'),
    (lambda scores, ids, split: mb.evaluate(scores, [f"{video}.mp4" for video in ids], split), r"\.mp4"),
])  # fmt: skip
def test_messages_to_python_name_arguments(call, argument, given, toy_split):
    ids, scores, _ = given
    with pytest.raises(mb.MeidbenchError) as caught:
        call(scores, ids, toy_split)
    text = "\n".join(str(caught.value).splitlines()[:2])
    assert re.search(argument, text) and not re.search(r"(?<!\w)--\w", str(caught.value)), caught.value


def test_runs_of_several_forms_are_compared(given, toy_split_file, run):
    ids, scores, labels = given
    write_ranks(ids, scores, 7)
    pd.DataFrame(-scores, index=ids).to_csv("worse.csv")
    outcome = run("compare", "ranks=run", "worse.csv", "--split", toy_split_file, "--bootstrap", 2)
    assert outcome.exit_code == 0, outcome.stderr
    overall = re.findall(r"^(ranks|worse) +([\d.]+)", outcome.stdout, re.MULTILINE)[:2]
    want = [reference(scores, labels), reference(-scores, labels)]
    assert [name for name, _ in overall] == ["ranks", "worse"]
    assert [float(value) for _, value in overall] == pytest.approx(want, abs=1e-4)


def test_a_folder_is_left_as_it_was(given, toy_split_file, run):
    """Reading writes nothing beside the files of the run."""
    write_ranks(*given[:2], 7)
    before = sorted(Path("run").iterdir())
    run("evaluate", "run", "--split", toy_split_file)
    assert sorted(Path("run").iterdir()) == before
