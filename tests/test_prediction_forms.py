"""Predictions as pandas, NumPy, PyTorch and h5py write them: every form ends with the number of scikit-learn."""

import json

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

import meidbench as mb
from meidbench.errors import PredictionError
from meidbench.predictions import open_predictions
from meidbench.predictions.align import read_predictions

CODES = [f"c{index:03d}" for index in range(12)]


@pytest.fixture(scope="module")
def given(toy_split):
    """Ids in another order than the split's, and scores."""
    labels = toy_split.labels("test")
    scores = (np.random.default_rng(0).normal(size=labels.shape) + labels).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(scores))
    return [toy_split.video_ids("test")[row] for row in order], scores[order]


@pytest.fixture(scope="module")
def reference(given, toy_split):
    """The mean of scikit-learn's average precisions over the classes."""
    ids, scores = given
    rows = [toy_split.video_ids("test").index(video_id) for video_id in ids]
    return average_precision_score(toy_split.labels("test")[rows], scores, average="macro")


def frame_of(ids, scores, columns=CODES):
    return pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=columns)


def as_lists(ids, scores, names=("video_id", "scores")):
    return pd.DataFrame(dict(zip(names, (ids, list(scores)), strict=True)))


def as_hdf5(path, **content):
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            file[name] = value


def as_npz(path, **content):
    with path.open("wb") as stream:
        np.savez(stream, **content)


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path, id_type, scores_type, ids, scores):
    ids = pa.array(ids, pa.string()).cast(id_type)
    pq.write_table(pa.table({"video_id": ids, "scores": pa.array(scores.tolist(), scores_type)}), path)


CSV = {
    "CSV": lambda p, i, s: frame_of(i, s).to_csv(p),
    "CSV, row numbers": lambda p, i, s: frame_of(i, s).reset_index().to_csv(p),
    "CSV, row numbers of several shards": lambda p, i, s: pd.concat(
        [frame_of(i[:20], s[:20]).reset_index(), frame_of(i[20:], s[20:]).reset_index()]
    ).to_csv(p),
    "CSV, read and written again": lambda p, i, s: (
        frame_of(i, s).reset_index().to_csv(p),
        pd.read_csv(p).to_csv(p, index=False),
    ),
    "CSV, ids in the index without a name": lambda p, i, s: frame_of(i, s).rename_axis(None).to_csv(p),
    "CSV, ids last": lambda p, i, s: frame_of(i, s).reset_index()[[*CODES, "video_id"]].to_csv(p),
    "CSV, id": lambda p, i, s: frame_of(i, s).rename_axis("id").to_csv(p),
    "CSV, class_0": lambda p, i, s: frame_of(i, s, [f"class_{k}" for k in range(12)]).to_csv(p),
    "CSV, class0": lambda p, i, s: frame_of(i, s, [f"class{k}" for k in range(12)]).to_csv(p),
    "CSV, score_0": lambda p, i, s: frame_of(i, s, [f"score_{k}" for k in range(12)]).to_csv(p),
    "CSV, numbers": lambda p, i, s: frame_of(i, s, range(12)).to_csv(p),
    "CSV, semicolons": lambda p, i, s: frame_of(i, s).to_csv(p, sep=";"),
    "CSV, BOM and CRLF": lambda p, i, s: frame_of(i, s).to_csv(p, encoding="utf-8-sig", lineterminator="\r\n"),
    "CSV, no header": lambda p, i, s: frame_of(i, s).to_csv(p, header=False),
    "TSV": lambda p, i, s: frame_of(i, s).to_csv(p, sep="\t"),
    "TSV, row numbers": lambda p, i, s: frame_of(i, s).reset_index().to_csv(p, sep="\t"),
    "text": lambda p, i, s: frame_of(i, s).to_csv(p, sep=" ", header=False),
}
PARQUET = {
    "Parquet, lists of pandas": lambda p, i, s: as_lists(i, s).to_parquet(p),
    "Parquet, lists of float64": lambda p, i, s: as_lists(i, s.astype(np.float64).tolist()).to_parquet(p),
    "Parquet, id and logits": lambda p, i, s: as_lists(i, s, ("id", "logits")).to_parquet(p),
    "Parquet, lists with ids as index": lambda p, i, s: as_lists(i, s).set_index("video_id").to_parquet(p),
    "Parquet, a column per class": lambda p, i, s: frame_of(i, s).reset_index().to_parquet(p),
    "Parquet, ids as index": lambda p, i, s: frame_of(i, s).to_parquet(p),
    "Parquet, index without a name": lambda p, i, s: frame_of(i, s).rename_axis(None).to_parquet(p),
    "Parquet, index of another name": lambda p, i, s: frame_of(i, s).rename_axis("youtube").to_parquet(p),
    "Parquet, shuffled row numbers": lambda p, i, s: (
        frame_of(i, s).reset_index().sample(frac=1, random_state=0).to_parquet(p)
    ),
    "Parquet, row numbers as a column": lambda p, i, s: frame_of(i, s).reset_index().reset_index().to_parquet(p),
    "Parquet, numbered columns": lambda p, i, s: (
        frame_of(i, s, range(12)).rename(columns=str).reset_index().to_parquet(p)
    ),
    "Parquet, ids as category": lambda p, i, s: (
        frame_of(i, s).reset_index().astype({"video_id": "category"}).to_parquet(p)
    ),
    "Parquet, mixed types": lambda p, i, s: frame_of(i, s).astype({"c000": "float64"}).to_parquet(p),
    "Parquet, small row groups": lambda p, i, s: frame_of(i, s).to_parquet(p, row_group_size=7),
    "Parquet, lists in small row groups": lambda p, i, s: as_lists(i, s).to_parquet(p, row_group_size=7),
    # polars writes large_string with large_list or fixed_size_list.
    "Parquet, large lists": lambda p, i, s: write_table(p, pa.large_string(), pa.large_list(pa.float32()), i, s),
    "Parquet, lists of one size": lambda p, i, s: write_table(p, pa.large_string(), pa.list_(pa.float64(), 12), i, s),
    "Parquet, ids as bytes": lambda p, i, s: write_table(p, pa.binary(), pa.list_(pa.float32()), i, s),
}
ARRAYS = {
    "NPZ, ids": lambda p, i, s: as_npz(p, ids=np.array(i), scores=s),
    "NPZ, video_id": lambda p, i, s: as_npz(p, video_id=i, scores=s),
    "NPZ, ids as bytes": lambda p, i, s: as_npz(p, video_ids=np.array(i, "S"), scores=s),
    "NPZ, logits of PyTorch": lambda p, i, s: as_npz(p, video_ids=i, logits=torch.from_numpy(s)),
    "HDF5, ids": lambda p, i, s: as_hdf5(p, ids=i, scores=s),
    "HDF5, id as bytes": lambda p, i, s: as_hdf5(p, id=np.array(i, "S"), preds=s),
}
LINES = {
    "JSON lines": lambda p, i, s: as_lines(
        p, ({"video_id": name, "scores": row} for name, row in zip(i, s.astype(float).tolist(), strict=True))
    ),
    "JSON lines of pandas": lambda p, i, s: as_lists(i, s.astype(float).tolist()).to_json(
        p, orient="records", lines=True, double_precision=15
    ),
    "JSON lines, scores before ids": lambda p, i, s: as_lines(
        p, ({"logits": row, "id": name} for name, row in zip(i, s.astype(float).tolist(), strict=True))
    ),
    "JSON lines, classes": lambda p, i, s: as_lines(
        p,
        (
            {"video_id": name, "scores": dict(zip(CODES, row, strict=True))}
            for name, row in zip(i, s.astype(float).tolist(), strict=True)
        ),
    ),
}
FORMS = {**CSV, **PARQUET, **ARRAYS, **LINES}


def without_dtype(text):
    content = json.loads(text)
    del content["diagnostics"]["score_dtype"]
    return content


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_a_plain_script_is_scored(form, given, reference, toy_split, toy_split_file, run, tmp_path):
    """The same number as scikit-learn's, the same result as of arrays, and the same bytes block by block."""
    FORMS[form](tmp_path / "run", *given)
    outcome = run("evaluate", tmp_path / "run", "--split", toy_split_file, "--json", "-")
    assert outcome.exit_code == 0 and outcome.stderr == "", outcome.stderr
    assert json.loads(outcome.stdout)["mAP"]["overall"] == pytest.approx(reference, abs=1e-12)
    assert without_dtype(outcome.stdout) == without_dtype(mb.evaluate(given[1], given[0], toy_split).to_json())
    streamed = run("evaluate", tmp_path / "run", "--split", toy_split_file, "--json", "-", "--memory", "1K")
    assert streamed.stdout == outcome.stdout


@pytest.mark.parametrize("name", ["list", "wide"])
def test_ids_that_are_numbers_are_their_digits(name, tmp_path):
    frame = pd.DataFrame({"id": [12, 7], "c000": [0.5, 1.5], "c001": [1.0, 2.0]})
    if name == "list":
        frame = pd.DataFrame({"id": frame["id"], "scores": frame[["c000", "c001"]].to_numpy().tolist()})
    frame.to_parquet(tmp_path / "run")
    got = read_predictions(tmp_path / "run")
    assert got.video_ids == ["12", "7"] and got.scores.tolist() == [[0.5, 1.0], [1.5, 2.0]]


def test_an_id_that_is_no_text_is_refused(tmp_path):
    pq.write_table(pa.table({"video_id": [b"\xff"], "c000": [1.0]}), tmp_path / "run")
    with pytest.raises(PredictionError, match="not a readable Parquet file: 'utf-8' codec can't decode"):
        read_predictions(tmp_path / "run")


# --- a matrix and its ids ---------------------------------------------------------------------------------------


IDS = {
    "text": lambda path, ids: path.write_text("\n".join(ids) + "\n"),
    "text with a header": lambda path, ids: pd.Series(ids, name="video_id").to_csv(path, index=False),
    ".npy": lambda path, ids: path.write_bytes(saved(np.array(ids))),
    ".npy of bytes": lambda path, ids: path.write_bytes(saved(np.array(ids, "S"))),
}


def saved(array):
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("form", IDS)
def test_a_matrix_with_ids_is_scored(form, given, toy_split, toy_split_file, run, tmp_path):
    IDS[form](tmp_path / "ids", given[0])
    for number, scores in enumerate((given[1], np.asfortranarray(given[1]))):
        np.save(tmp_path / f"{number}.npy", scores)
        arguments = ["evaluate", tmp_path / f"{number}.npy", "--ids", tmp_path / "ids", "--split", toy_split_file]
        outcome = run(*arguments, "--json", "-")
        assert outcome.stdout == mb.evaluate(given[1], given[0], toy_split).to_json(), outcome.stderr
        assert run(*arguments, "--json", "-", "--memory", "1K").stdout == outcome.stdout


def test_a_matrix_and_ids_that_do_not_fit_are_refused(given, tmp_path):
    ids, scores = given
    np.save(tmp_path / "s.npy", scores)
    np.save(tmp_path / "flat.npy", scores[0])
    mb.write_predictions(tmp_path / "p.parquet", ids, scores)
    (tmp_path / "ids").write_text("\n".join(ids[1:]))
    (tmp_path / "noise").write_bytes(b"\xff\xfe")
    np.save(tmp_path / "objects.npy", np.array(ids, object), allow_pickle=True)

    def complaint(path, ids=None):
        with pytest.raises(PredictionError) as caught:
            open_predictions(path, ids)
        return str(caught.value)

    assert "without video ids. Name the file of the ids" in complaint(tmp_path / "s.npy")
    assert "by video_ids=FILE, or write" in complaint(tmp_path / "s.npy")
    assert "meidbench.write_predictions(path, video_ids, scores)" in complaint(tmp_path / "s.npy")
    assert "has 48 ids, the scores have 49 rows" in complaint(tmp_path / "s.npy", tmp_path / "ids")
    assert "the scores have shape (12,)" in complaint(tmp_path / "flat.npy", tmp_path / "ids")
    assert "neither text with one id per line nor" in complaint(tmp_path / "s.npy", tmp_path / "noise")
    assert "pickled objects, which are never loaded" in complaint(tmp_path / "s.npy", tmp_path / "objects.npy")
    assert "there is no file of ids" in complaint(tmp_path / "s.npy", tmp_path / "none")
    assert "must hold its ids itself" in complaint(tmp_path / "p.parquet", tmp_path / "ids")
    assert "one .npy matrix, but 2 files" in complaint([tmp_path / "s.npy", tmp_path / "s.npy"], tmp_path / "ids")


# --- columns in another order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("columns", ["names", "numbers"])
def test_columns_in_another_order_are_put_right_and_named(
    form, columns, given, toy_split, toy_split_file, run, tmp_path
):
    """Names in any order; numbers as text sorts them: 0, 1, 10, 11, 2."""
    ids, scores = given
    frame = frame_of(ids, scores, list(toy_split.class_names) if columns == "names" else list(map(str, range(12))))
    frame = frame[sorted(frame, reverse=columns == "names")]
    assert list(frame) != list(toy_split.class_names)
    if form == "jsonl":
        rows = zip(ids, frame.astype(float).to_dict("records"), strict=True)
        as_lines(tmp_path / "run", ({"video_id": name, "scores": row} for name, row in rows))
    else:
        getattr(frame, f"to_{form}")(tmp_path / "run")
    arguments = ["evaluate", tmp_path / "run", "--split", toy_split_file, "--json", "-"]
    outcome = run(*arguments)
    said = f"in another order than the classes of the split; each was put in its place by its {columns[:-1]}"
    assert outcome.stderr.startswith("warning: the class columns are") and said in outcome.stderr
    got, want = without_dtype(outcome.stdout), without_dtype(mb.evaluate(scores, ids, toy_split).to_json())
    (warning,) = got.pop("warnings")
    assert said in warning and want.pop("warnings") == [] and got == want
    assert run(*arguments, "--memory", "1K").stdout == outcome.stdout
    side_by_side = run("compare", f"a={tmp_path / 'run'}", "--split", toy_split_file, "--bootstrap", 2)
    assert said in side_by_side.stderr


@pytest.mark.parametrize("form", ["frame", "csv", "parquet"])
def test_numbers_that_are_class_names_are_no_indices(form, tmp_path):
    """Class names sorted as text: class_0, class_1, class_10, class_11, class_2."""
    rng = np.random.default_rng(3)
    rows = [
        {"video_id": f"v{row:03d}", "subset": "train" if row % 2 else "test", "labels": [f"class_{k}" for k in chosen]}
        for row, chosen in enumerate(rng.permuted(np.tile(range(12), (120, 1)), axis=1)[:, :2])
    ]
    split = mb.split_from_pandas(pd.DataFrame(rows), dataset="own", head_above=12, tail_up_to=8)
    labels = split.labels("test")
    scores = rng.normal(size=labels.shape) + labels
    frame = frame_of(split.video_ids("test"), scores, list(split.class_names))[[f"class_{k}" for k in range(12)]]
    assert list(frame) != list(split.class_names)
    if form != "frame":
        getattr(frame, f"to_{form}")(tmp_path / "run")
    result = mb.evaluate(frame if form == "frame" else tmp_path / "run", split=split)
    assert result.mAP.overall == pytest.approx(average_precision_score(labels, scores, average="macro"))
    assert "put in its place by its name" in result.warnings[0]


def test_the_python_side_names_the_order_too(given, toy_split):
    frame = frame_of(*given, list(toy_split.class_names))[list(toy_split.class_names)[::-1]]
    result = mb.evaluate(frame, split=toy_split)
    assert "put in its place by its name" in result.warnings[0]
    assert result.mAP == mb.evaluate(given[1], given[0], toy_split).mAP


def test_other_class_names_are_refused_as_before(given, toy_split, toy_split_file, run, tmp_path):
    names = ["walk", *toy_split.class_names[1:]]
    for columns, complaint in (
        (names, "1 class name(s) are others: 0 'walk' (expected 'Doing thing 0')"),
        (["Doing thing 1", *toy_split.class_names[1:]], "1 class name(s) are others: 0 'Doing thing 1'"),
    ):
        frame_of(*given, columns).to_csv(tmp_path / "run.csv")
        outcome = run("evaluate", tmp_path / "run.csv", "--split", toy_split_file)
        assert outcome.exit_code == 1 and complaint in outcome.stderr


LONG_FORMS = {
    "CSV": lambda frame, path: frame.to_csv(path, index=False),
    "CSV with row numbers": lambda frame, path: frame.to_csv(path),
    "Parquet": lambda frame, path: frame.to_parquet(path),
    "JSON lines": lambda frame, path: frame.to_json(path, orient="records", lines=True, double_precision=15),
    "DataFrame": None,
    "DataFrame, ids as index": None,
}


@pytest.mark.parametrize("names", [("class", "score"), ("variable", "value"), ("action", "score")])
@pytest.mark.parametrize("classes", ["names", "numbers"])
@pytest.mark.parametrize("form", LONG_FORMS)
def test_a_long_table_is_refused_with_what_makes_it_wide(form, classes, names, given, toy_split, tmp_path):
    frame = frame_of(*given, list(toy_split.class_names) if classes == "names" else range(12))
    long = frame.reset_index().melt("video_id", var_name=names[0], value_name=names[1])
    long = long.set_index("video_id") if form.endswith("index") else long
    write = LONG_FORMS[form]
    if write is not None:
        write(long, tmp_path / "run")
    with pytest.raises(PredictionError, match="one row per video and class. Make one row per video") as caught:
        mb.evaluate(long if write is None else tmp_path / "run", split=toy_split)
    wide = eval(str(caught.value).split("per class: ")[1], {"frame": long})
    assert mb.evaluate(wide, split=toy_split).mAP == mb.evaluate(frame, split=toy_split).mAP


def test_a_long_table_of_any_size_and_names_is_not_taken_for_views(given, toy_split, tmp_path):
    frame = frame_of(*given, range(12)).reset_index()
    long = frame.melt("video_id", var_name="action", value_name="confidence of it")
    for repeats in (1, 100):
        pd.concat([long] * repeats).to_csv(tmp_path / "run.csv", index=False)
        with pytest.raises(PredictionError, match=r"If each row is a video and a class: frame\.pivot\(") as caught:
            mb.evaluate(tmp_path / "run.csv", split=toy_split)
        assert "average" not in str(caught.value)


def test_classes_too_few_or_too_many_are_named(given, toy_split, toy_split_file, run, tmp_path):
    frame = frame_of(*given, list(toy_split.class_names))
    few = frame[["Doing thing 0", "Doing thing 9"]]
    first = frame.drop(columns="Doing thing 7")
    first.insert(0, "label", 1)
    for changed, complaint in (
        (frame.drop(columns="Doing thing 7"), "not those of the split; missing: Doing thing 7\n"),
        (frame.assign(label=1), "not those of the split; unknown: label\n"),
        (few.assign(label=1, y=2), "unknown: label, y; missing: Doing thing 1, Doing thing 2, Doing thing 3"),
        (first, "not those of the split; unknown: label; missing: Doing thing 7\n"),
    ):
        changed.to_parquet(tmp_path / "run")
        assert complaint in run("evaluate", tmp_path / "run", "--split", toy_split_file).stderr


# --- class names beside the scores ------------------------------------------------------------------------------


def write_npz(path, arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype("S") if array.dtype.kind == "U" else array


def write_hdf5_of_strings(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array.tolist() if array.dtype.kind == "U" else array


@pytest.mark.parametrize("write", [write_npz, write_hdf5, write_hdf5_of_strings])
@pytest.mark.parametrize("key", ["class_names", "Classes"])
def test_class_names_beside_the_scores_name_the_columns(key, write, given, toy_split, tmp_path):
    ids, scores = given
    order = np.random.default_rng(3).permutation(12)
    names = np.array(toy_split.class_names)[order]
    write(tmp_path / "run", {"video_ids": np.array(ids), "scores": scores[:, order], key: names})
    result = mb.evaluate(tmp_path / "run", split=toy_split)
    assert "put in its place by its name" in result.warnings[0]
    assert result.mAP == mb.evaluate(scores, ids, toy_split).mAP
    assert read_predictions(tmp_path / "run").class_names == names.tolist()


@pytest.mark.parametrize("write", [write_npz, write_hdf5, write_hdf5_of_strings])
def test_other_arrays_beside_the_scores_are_no_class_names(write, given, toy_split, tmp_path):
    ids, scores = given
    arrays = {"video_ids": np.array(ids), "scores": scores, "labels": np.array(toy_split.class_names)}
    for classes in (np.arange(len(ids)), np.arange(12)[::-1], np.array(ids)):  # the classes of videos, not of columns
        write(tmp_path / "run", {**arrays, "classes": classes})
        assert read_predictions(tmp_path / "run").class_names is None
    for names in (np.arange(12), np.array(toy_split.class_names[1:]), np.array([toy_split.class_names])):
        write(tmp_path / "run", {**arrays, "class_names": names})
        with pytest.raises(PredictionError, match=r"class_names has shape .*; expected one text per class, \(12,\)"):
            open_predictions(tmp_path / "run")


def test_class_names_that_are_pickled_are_not_loaded(given, toy_split, tmp_path):
    ids, scores = given
    names = np.array(toy_split.class_names, dtype=object)
    write_npz(tmp_path / "run", {"video_ids": np.array(ids), "scores": scores, "class_names": names})
    with pytest.raises(PredictionError, match=r"never loaded; save class_names=np.array\(class_names\).astype\(str\)"):
        open_predictions(tmp_path / "run")


def test_ids_of_numbers_that_are_no_characters_are_refused(given, tmp_path):
    ids, scores = given
    damaged = np.array(ids)
    damaged.view(np.uint32)[3] = 0x110000
    write_npz(tmp_path / "run", {"video_ids": damaged, "scores": scores})
    with pytest.raises(PredictionError, match="video_ids holds numbers that are no characters"):
        read_predictions(tmp_path / "run")


# --- several files ----------------------------------------------------------------------------------------------


def write_shards(folder, ids, scores, number=4):
    """One CSV per process, as a script with a DistributedSampler writes it: the first videos fill the last shard."""
    folder.mkdir()
    sampler = torch.utils.data.DistributedSampler
    for rank in range(number):
        rows = list(sampler(ids, number, rank, shuffle=False))
        frame_of([ids[row] for row in rows], scores[rows]).to_csv(folder / f"rank{rank}.csv")


def test_the_files_of_all_processes_are_one_run(given, toy_split, toy_split_file, run, tmp_path):
    write_shards(tmp_path / "shards", *given)
    files = sorted((tmp_path / "shards").iterdir())
    assert sum(len(pd.read_csv(file)) for file in files) == 52  # of 49 videos
    (tmp_path / "shards/log.out").write_text("done")
    outcomes = [
        run("evaluate", *paths, "--split", toy_split_file, "--json", "-", *rest)
        for paths in ([tmp_path / "shards"], files, files[::-1])
        for rest in ([], ["--memory", "1K"])
    ]
    want = without_dtype(mb.evaluate(given[1], given[0], toy_split).to_json())
    want.pop("warnings")
    for outcome in outcomes:
        assert "3 video(s) occur more than once, always with the same scores, and count once" in outcome.stderr
        assert "torch's DistributedSampler repeats videos" in outcome.stderr
        got = without_dtype(outcome.stdout)
        assert len(got.pop("warnings")) == 1 and got == want
    assert outcomes[0].stdout == outcomes[1].stdout
    side_by_side = run("compare", f"all={tmp_path / 'shards'}", "--split", toy_split_file, "--bootstrap", 2)
    assert side_by_side.exit_code == 0 and "count once" in side_by_side.stderr
    outcome = run("evaluate", files[0], "--split", toy_split_file)
    assert "36 of 49 videos are missing" in outcome.stderr
    assert "if each process or shard wrote a file, name their folder as the run" in outcome.stderr


def test_a_repeated_video_counts_as_its_first_row_in_memory_too(given, toy_split):
    ids, scores = given
    twice = mb.evaluate(np.concatenate([scores[:5], scores]), ids[:5] + ids, toy_split)
    assert twice.mAP == mb.evaluate(scores, ids, toy_split).mAP and "5 video(s)" in twice.warnings[0]
    zero = scores.copy()
    zero[:, 0] = 0
    minus = np.where(zero == 0, np.float32(-0.0), zero)
    again = mb.evaluate(np.concatenate([minus, zero]), ids + ids, toy_split)
    assert again.mAP == mb.evaluate(zero, ids, toy_split).mAP and "49 video(s)" in again.warnings[0]


@pytest.mark.parametrize("views", [2, 30])
def test_views_of_a_video_are_refused_with_what_averages_them(views, given, toy_split, toy_split_file, run, tmp_path):
    ids, scores = given
    noise = np.random.default_rng(0).normal(size=(views, *scores.shape)).astype(np.float32)
    stacked, names = (scores + noise).reshape(-1, 12), ids * views
    frame_of(names, stacked).to_parquet(tmp_path / "run.parquet")
    outcome = run("evaluate", tmp_path / "run.parquet", "--split", toy_split_file)
    assert outcome.exit_code == 1
    assert "49 video(s) occur more than once, with different scores" in outcome.stderr
    assert "They are several views (clips, crops) of one video: average them first" in outcome.stderr
    remedy = outcome.stderr.split("e.g. ")[1].strip()
    averaged = eval(remedy, {"pandas": pd, "scores": stacked, "video_ids": names})
    assert mb.evaluate(averaged, split=toy_split).diagnostics.videos == 49


def test_some_videos_with_two_scores_are_views_or_padding(given, toy_split):
    ids, scores = given
    with pytest.raises(PredictionError) as caught:
        mb.evaluate(np.concatenate([scores, scores[:2] + 1]), ids + ids[:2], toy_split)
    assert f"2 video(s) occur more than once, with different scores: {ids[0]}, {ids[1]}" in str(caught.value)
    assert "DistributedSampler repeats videos until all processes have the same number" in str(caught.value)
    assert "keep the first row of each video" in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(given, toy_split, tmp_path):
    ids, scores = given

    def complaint(*arguments):
        mb.write_predictions(tmp_path / "a", ids[:9], scores[:9], toy_split, "test")
        mb.write_predictions(tmp_path / "b", *arguments)
        with pytest.raises(PredictionError) as caught:
            open_predictions([tmp_path / "a", tmp_path / "b"])
        assert str(caught.value).startswith(str(tmp_path / "b"))
        return str(caught.value)

    assert "scores for 3 classes" in complaint(ids[9:], scores[9:, :3])
    assert "scores of type float64" in complaint(ids[9:], scores[9:].astype(np.float64))
    assert "its subset is not that of" in complaint(ids[9:], scores[9:], toy_split, "val")
    assert "other class columns" in complaint(ids[9:], scores[9:])  # the first file has class names
    frame_of(ids[:9], scores[:9]).to_csv(tmp_path / "c")
    frame_of(ids[9:], scores[9:], list("abcdefghijkl")).to_csv(tmp_path / "d")
    with pytest.raises(PredictionError, match="other class columns"):
        open_predictions([tmp_path / "c", tmp_path / "d"])


def test_one_shard_chosen_on_test_is_warned_of(given, toy_split, toy_split_file, run, tmp_path):
    ids, scores = given
    mb.write_predictions(tmp_path / "a", ids[:9], scores[:9], toy_split, "test", {"select_on": "val", "rank": 0})
    mb.write_predictions(tmp_path / "b", ids[9:], scores[9:], toy_split, "test", {"select_on": "test", "rank": 1})
    outcome = run("evaluate", tmp_path / "a", tmp_path / "b", "--split", toy_split_file)
    assert outcome.exit_code == 0 and "the checkpoint was chosen on the test subset" in outcome.stderr


def test_a_folder_is_refused_with_what_to_name(given, toy_split_file, run, tmp_path):
    def complaint(command="evaluate"):
        return run(command, tmp_path / "f", "--split", toy_split_file).stderr

    (tmp_path / "f").mkdir()
    assert "holds no file; expected prediction files" in complaint()
    (tmp_path / "f/notes.md").write_text("x")
    assert "holds notes.md; expected prediction files (.parquet" in complaint()
    frame_of(*given).to_csv(tmp_path / "f/rank0.csv")
    np.savez(tmp_path / "f/rank1.npz", video_ids=given[0], scores=given[1])
    assert "holds files of several forms (1 .csv, 1 .npz); name the files of one run" in complaint()
    for name in ("config.json", "log.jsonl"):
        (tmp_path / "f" / name).write_text("{}")
    for command in ("evaluate", "compare"):
        told = complaint(command)
        assert "is the folder of a run, which has no scores" in told
        assert f"meidbench predict {tmp_path / 'f'} --out run.parquet" in told
    (tmp_path / "f/predictions-test.parquet").touch()
    assert f"name a file of scores in it: {tmp_path / 'f/predictions-test.parquet'}" in complaint()


def test_an_output_never_replaces_a_file_of_the_folder(given, toy_split_file, run, tmp_path):
    write_shards(tmp_path / "shards", *given)
    before = (tmp_path / "shards/rank0.csv").read_bytes()
    for paths in ([tmp_path / "shards"], [f"a={tmp_path / 'shards'}"]):
        command = "compare" if "=" in str(paths[0]) else "evaluate"
        option = "--per-class" if command == "evaluate" else "--json"
        target = tmp_path / "shards/rank0.csv" if command == "evaluate" else tmp_path / "shards/rank0.json"
        if command == "compare":
            target.write_text("{}")
        outcome = run(command, *paths, "--split", toy_split_file, option, target)
        assert outcome.exit_code == 2 and "which would be lost" in outcome.stderr
    assert (tmp_path / "shards/rank0.csv").read_bytes() == before


# --- subsets, JSON lines, cross-check ---------------------------------------------------------------------------


def test_a_split_without_test_is_scored_on_val(toy_split, run, tmp_path):
    from meidbench.annotations.tables import split_from_files
    from meidbench.splits.split import write_split

    rows = [
        f"{name},{subset},{k % 12}" for subset in ("train", "val") for k, name in enumerate(toy_split.video_ids(subset))
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["video_id,subset,labels", *rows]))
    split = split_from_files([("", tmp_path / "mine.csv")], dataset="mine", head_above=30, tail_up_to=12)[0]
    path = write_split(split, tmp_path / "s.parquet")
    ids = split.video_ids("val")
    frame_of(ids, np.random.default_rng(0).normal(size=(len(ids), 12))).to_csv(tmp_path / "run.csv")
    outcome = run("evaluate", tmp_path / "run.csv", "--split", path)
    assert "note: mine has no test videos, so its val is scored" in outcome.stderr
    assert ", val: 50 videos" in outcome.stdout
    side_by_side = run("compare", tmp_path / "run.csv", "--split", path, "--bootstrap", 2)
    assert "so its val is scored" in side_by_side.stderr and ", val: 50 videos" in side_by_side.stdout
    assert "note" not in run("evaluate", tmp_path / "run.csv", "--split", path, "--subset", "val").stderr
    outcome = run("evaluate", tmp_path / "run.csv", "--split", path, "--subset", "test")
    assert "has no video in test; name --subset train or --subset val\n" in outcome.stderr


def test_predictions_of_another_subset_are_refused_with_its_name(toy_split, toy_split_file, run, tmp_path):
    ids = toy_split.video_ids("val")
    frame_of(ids, np.zeros((len(ids), 12))).to_csv(tmp_path / "run.csv")
    outcome = run("evaluate", tmp_path / "run.csv", "--split", toy_split_file)
    assert "it holds videos of val alone: score them with --subset val\n" in outcome.stderr
    assert run("evaluate", tmp_path / "run.csv", "--split", toy_split_file, "--subset", "val").exit_code == 0


@pytest.mark.parametrize(("text", "complaint"), [
    ('{"video_id": "a", "scores": [1]}\n{"video_id": "b"}\n', "line 2: it has no scores; expected one object"),
    ('{"video_id": "a", "scores": [1]}\n[1]\n', "line 2: it holds a list; expected one object"),
    ('{"video_id": "a", "scores": [1]}\n{"video_id": "b", "scores": [1, 2]}\n', "line 2 (b) has 2 scores, expected 1"),
    ('{"video_id": "a", "scores": [1]}\n{"video_id": "b", "scores": ["1"]}\n', "line 2 (b): '1' is not a number"),
    ('{"video_id": "a", "scores": [true]}\n', "line 1 (a): True is not a number"),
    ('{"video_id": "a", "scores": [NaN]}\n', "line 1: NaN is not a finite number"),
    ('{"video_id": "a", "scores": [1' + "0" * 400 + "]}\n", "line 1 (a): "),
    ('{"video_id": "a", "scores": [1]}\n{"video_id": ["a"], "scores": [1]}\n', "the id ['a'] is no text"),
    ('{"video_id": "a", "scores": 1}\n', "scores is a int, expected a list of numbers"),
    ('{"video_id": "a", "scores": {"run": 1}}\n{"video_id": "b", "scores": {"jump": 1}}\n', "line 2: its class names"),
    ('{"video_id": "a", "run": 1}\n{"video_id": "b", "run": "x"}\n', "line 2 (b): 'x' is not a number ('run')"),
    ('{"video_id": "a", "run": 1}\n{"video_id": "b", "walk": 1}\n', "line 2: its class names are not those"),
    ('{"video_id": "a"}\n', "it lacks scores; it holds video_id"),
    ('{"scores": [1]}\n', "line 1: it has no video_id, but 'scores'"),
    ('{\n"video_id": "a", "scores": [1]}\n', "line 1: Expecting"),
])  # fmt: skip
def test_json_lines_are_refused_with_the_line(text, complaint, tmp_path):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(PredictionError) as caught:
        read_predictions(tmp_path / "run.jsonl")
    assert complaint in str(caught.value)


def test_the_cross_check_prints_the_largest_difference(given, toy_split_file, run, tmp_path):
    frame_of(*given).to_csv(tmp_path / "run.csv")
    arguments = ["evaluate", tmp_path / "run.csv", "--split", toy_split_file]
    plain, checked = run(*arguments, "--json", "-"), run(*arguments, "--cross-check", "--json", "-")
    assert "scikit-learn gives the same average precision for 12 classes: largest difference" in checked.stderr
    assert checked.stdout == plain.stdout
    outcome = run(*arguments, "--cross-check", "--protocol", "apmeter")
    assert outcome.exit_code == 2 and "--cross-check goes with --protocol tie-aware" in outcome.stderr


def test_a_class_and_a_column_may_have_a_dot_in_the_name(tmp_path):
    frame_of(["v0", "v1"], np.eye(2), ["a", "a.b"]).to_parquet(tmp_path / "run")
    got = read_predictions(tmp_path / "run")
    assert got.class_names == ["a", "a.b"] and np.array_equal(got.scores, np.eye(2))
