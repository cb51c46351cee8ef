"""Features as other extractors write them: each form gives the rows of a plain folder, or a refusal with the remedy."""

import os
import pickle
import re
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import meidbench as mb
from meidbench.errors import FeatureError, RequestError
from meidbench.features import open_features
from meidbench.features.folders import NpyFolder
from meidbench.features.packing import pack
from meidbench.features.row_checks import check_rows
from meidbench.features.source import EXPECTED
from meidbench.features.verification import verify
from meidbench.loading.batches import BatchLoader
from meidbench.loading.datasets import FeatureDataset

ROWS, WIDTH = 5, 4


TRAIN = ("train", "--method", "bce", "--aggregator", "mean", "--device", "cpu", "--epochs", "1")


def draw(ids):
    generator = np.random.default_rng(0)
    return {video_id: generator.normal(size=(ROWS, WIDTH)).astype(np.float32) for video_id in ids}


@pytest.fixture
def arrays(toy_split):
    return draw(toy_split.video_ids("test"))


@pytest.fixture
def all_arrays(toy_split):
    return draw(toy_split.table.column("video_id").to_pylist())


def folder(name="{}.npy", change=lambda array: array, save=np.save):
    """Return a function that writes a folder of files."""

    def write(path, arrays):
        for video_id, array in arrays.items():
            file = path / name.format(video_id)
            file.parent.mkdir(parents=True, exist_ok=True)
            save(file, change(array))
        return path

    return write


def hdf5(name, change=lambda array: array, other=""):
    """Return a function that writes an HDF5 file with one dataset per video, and another one of zeros."""

    def write(path, arrays):
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            for video_id, array in arrays.items():
                file[name.format(video_id)] = change(array)
                if other:
                    file[other.format(video_id)] = np.zeros_like(array)
        return path.with_suffix(".h5")

    return write


def packed(ids="ids", features="features", change=lambda array: array, **options):
    """Return a function that writes an HDF5 file with the rows of all videos in one dataset."""

    def write(path, arrays):
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            file[ids] = list(arrays)
            file.create_dataset(features, data=np.stack([change(array) for array in arrays.values()]), **options)
        return path.with_suffix(".h5")

    return write


def two_arrays(file, array):
    np.savez(file, features=array, times=np.arange(len(array)))


def by_column(array):
    return np.asfortranarray(array[None, :, None])


FORMS = {
    "plain": (folder(), {}),
    "batch of one": (folder(change=lambda array: array[None]), {}),
    "one view": (folder(change=lambda array: array[:, None]), {}),
    "pooled map": (folder(change=lambda array: array[:, :, None, None]), {}),
    "five axes": (folder(change=lambda array: array[None, :, :, None, None]), {}),
    "by column": (folder(change=by_column), {}),
    "prefix and suffix": (folder("v_{}_clip.npy"), {"prefix": "v_", "suffix": "_clip"}),
    "nested": (folder("train/{}.npy"), {}),
    "nested twice, with a suffix": (folder("rgb/class 1/{}-x.npy"), {"suffix": "-x"}),
    "a folder per video": (folder("sub/v_{}/rgb.npy"), {"prefix": "v_", "dataset": "rgb"}),
    "archives": (folder("{}.npz", save=np.savez), {}),
    "compressed archives": (folder("{}.npz", save=np.savez_compressed), {}),
    "archives with a known array": (folder("{}.npz", save=two_arrays), {}),
    "archives with a named array": (folder("{}.npz", by_column, two_arrays), {"dataset": "features"}),
    "nested archives": (folder("a/{}_.npz", save=np.savez), {"suffix": "_"}),
    "grouped": (hdf5("features/{}"), {}),
    "grouped batch of one": (hdf5("features/{}", lambda array: array[None, :, :, None]), {}),
    "root": (hdf5("{}"), {}),
    "root with a suffix": (hdf5("{}.mp4"), {"suffix": ".mp4"}),
    "named group": (hdf5("rgb/{}", other="flow/{}"), {"dataset": "/rgb"}),
    "named group below a group": (hdf5("i3d/rgb/{}", other="i3d/flow/{}"), {"dataset": "i3d/rgb"}),
    "one dataset per video group": (hdf5("{}/rgb", other="{}/flow"), {"dataset": "rgb"}),
    "one dataset per video group in features": (hdf5("features/{}/rgb", other="features/{}/flow"), {"dataset": "rgb"}),
    "ids": (packed(), {}),
    "ids with a prefix": (
        lambda path, arrays: packed()(path, {f"v_{video_id}": array for video_id, array in arrays.items()}),
        {"prefix": "v_"},
    ),
    "ids beside a named array": (packed("i3d/ids", "i3d/rgb"), {"dataset": "i3d/rgb"}),
    "ids with other axes": (packed("video_ids", "x", lambda array: array[None, :, :, None]), {"dataset": "x"}),
    "ids in chunks": (packed(change=lambda array: array[:, None], chunks=True, compression="gzip"), {}),
}  # fmt: skip


def write_form(name, path, arrays):
    write, naming = FORMS[name]
    return open_features(write(path / "given", arrays), **naming)


@pytest.fixture(params=FORMS)
def source(request, tmp_path, arrays):
    opened = write_form(request.param, tmp_path, arrays)
    yield opened
    opened.close()


@pytest.mark.filterwarnings("ignore:note.*other axes than T x D")
def test_every_form_gives_the_rows_of_a_plain_folder(source, arrays, toy_split):
    assert source.ids() == set(arrays)
    assert source.check(arrays).tolist() == [ROWS] * len(arrays) and source.dim == WIDTH
    copy = pickle.loads(pickle.dumps(source))
    for video_id in list(arrays)[::20]:
        array = arrays[video_id]
        for reader in (source, copy):
            whole = reader.read(video_id)
            assert whole.shape == (ROWS, WIDTH) and whole.dtype == np.float32
            np.testing.assert_array_equal(whole, array)
            np.testing.assert_array_equal(reader.read(video_id, [4, 0, 0]), array[[4, 0, 0]])
            assert reader.num_frames(video_id) == ROWS
            with pytest.raises(FeatureError, match="has rows 0 to 4; asked for 5"):
                reader.read(video_id, [5])
    copy.close()
    data = FeatureDataset(toy_split, "test", features=source, frames=3)
    wanted = np.stack([arrays[video_id][[0, 2, 4]] for video_id in data.video_ids])
    batches = BatchLoader(data, 16)
    np.testing.assert_array_equal(np.concatenate([batch["features"].numpy() for batch in batches]), wanted)


@pytest.mark.filterwarnings("ignore:note.*other axes than T x D", "ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("form", ["by column", "nested", "archives", "root", "one dataset per video group", "ids"])
def test_workers_read_every_form(form, tmp_path, arrays, toy_split):
    data = FeatureDataset(toy_split, "test", features=write_form(form, tmp_path, arrays), frames=ROWS)
    for sample in DataLoader(data, batch_size=None, num_workers=2):
        np.testing.assert_array_equal(sample["features"].numpy(), arrays[sample["video_id"]])


def test_every_form_packs_to_the_same_rows(source, arrays, tmp_path):
    folder()(tmp_path / "plain", arrays)
    made = [pack(given, tmp_path / f"{number}.h5") for number, given in enumerate((tmp_path / "plain", source))]
    assert all(summary.is_complete for summary in made)
    with h5py.File(made[0].path) as one, h5py.File(made[1].path) as other:
        for name in set(one) - {"source_sizes"}:  # bytes of the files
            assert one[name][()].tobytes() == other[name][()].tobytes()
    verification = verify(source, npy=tmp_path / "plain")
    assert verification.is_sound and {entry.min for entry in verification.similarities} == {1.0}


# --- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "read"), [
    ((6,), (1, 6)), ((1, 6), (1, 6)), ((6, 1), (6, 1)), ((1, 1), (1, 1)), ((1,), (1, 1)), ((1, 6, 1), (1, 6)),
    ((6, 1, 1), (1, 6)), ((1, 1, 1), (1, 1)), ((3, 1, 2), (3, 2)), ((1, 3, 1, 2, 1), (3, 2)),
])  # fmt: skip
def test_the_rule_of_axes_is_the_same_for_files_and_hdf5(shape, read, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    sources = [
        open_features(write(tmp_path / str(number), {"v": array}))
        for number, write in enumerate((folder(), hdf5("features/{}"), folder("{}.npz", save=np.savez)))
    ]
    for source in sources:
        assert (source.check(["v"]).tolist(), source.dim) == ([read[0]], read[1])
        np.testing.assert_array_equal(source.read("v"), array.reshape(read))
        assert len(source.take_notes()) == (len(shape) != 2)
        source.close()


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (1, 2, 3, 4), (6, 8, 7, 7), (0,), (0, 1, 4), (1, 0, 1)])
def test_other_axes_are_refused(shape, tmp_path):
    folder()(tmp_path, {"v": np.zeros(shape)})
    with pytest.raises(FeatureError, match=re.escape(f"v (shape {shape})")):
        open_features(tmp_path).check(["v"])


def test_other_axes_are_told_once_with_their_number(tmp_path, all_arrays, toy_split, toy_split_file, run):
    first, *others = toy_split.video_ids("test")
    folder(change=lambda array: array[None])(tmp_path / "npy", all_arrays)
    np.save(tmp_path / "npy" / f"{first}.npy", all_arrays[first])  # stored as it should be
    source = open_features(tmp_path / "npy")
    note = (
        f"note: {len(others)} videos in {tmp_path / 'npy'} with other axes than T x D: {others[0]} of shape (1, 5, 4) "
    )
    with pytest.warns(UserWarning, match=re.escape(note + "is read as 5 x 4")):
        FeatureDataset(toy_split, "test", features=source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureDataset(toy_split, "test", features=source)
    outcome = run("pack-features", tmp_path / "npy", "--out", tmp_path / "f.h5")
    assert outcome.exit_code == 0
    assert outcome.stderr.count("note: ") == 1 and f"note: {len(all_arrays) - 1} videos in" in outcome.stderr
    outcome = run("verify-features", tmp_path / "npy", "--json", "-")
    assert outcome.exit_code == 0 and '"check": "axes"' in outcome.stdout
    run_folder = ("--features", tmp_path / "npy", "--split", toy_split_file, "--out", tmp_path / "run")
    outcome = run(*TRAIN, *run_folder)
    assert outcome.exit_code == 0 and outcome.stderr.count("other axes than T x D") == 1
    outcome = run("predict", tmp_path / "run", "--out", tmp_path / "p.parquet", "--device", "cpu")
    assert outcome.exit_code == 0 and outcome.stderr.count("other axes than T x D") == 1


# --- names ----------------------------------------------------------------------------------------


def test_files_with_other_names_are_left_out(tmp_path, arrays):
    folder("v_{}_clip.npy")(tmp_path, arrays)
    first = min(arrays)
    for name in (f"{first}_clip", f"v_{first}", f"v_{first}_flow", "v__clip", "_clip"):
        np.save(tmp_path / f"{name}.npy", np.zeros((9, 9)))
    assert open_features(tmp_path, prefix="v_", suffix="_clip").ids() == set(arrays)
    with_suffixes = {f"{name}_clip" for name in arrays}
    assert open_features(tmp_path, prefix="v_").ids() == with_suffixes | {first, f"{first}_flow", "_clip"}


def test_a_folder_with_features_is_not_searched_further(tmp_path, arrays, monkeypatch):
    folder()(tmp_path, arrays)
    folder()(tmp_path / "old", {min(arrays): np.zeros((9, 9))})
    np.savez(tmp_path / "other.npz", np.zeros((9, 9)))
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    source = open_features(tmp_path)
    for video_id in arrays:
        source.read(video_id)
    assert listed == [tmp_path], "one listing serves all reads"
    assert source.ids() == set(arrays)


def test_nested_folders_are_listed_once_and_links_to_above_do_not_matter(tmp_path, arrays):
    names = sorted(arrays)
    for number, video_id in enumerate(names):
        folder()(tmp_path / "f" / f"class{number % 7}", {video_id: arrays[video_id]})
    (tmp_path / "f" / "class0" / "up").symlink_to(tmp_path / "f")
    (tmp_path / "f" / "itself").symlink_to(tmp_path / "f" / "itself")
    (tmp_path / "f" / "again").symlink_to(tmp_path / "f" / "class1")
    folder()(tmp_path / "f" / ".hidden", {names[0]: np.zeros((9, 9))})
    (tmp_path / "f" / "class2" / "._a.npy").write_bytes(b"of a file manager")
    source = open_features(tmp_path / "f")
    assert source.ids() == set(arrays)
    assert all(np.array_equal(source.read(video_id), arrays[video_id]) for video_id in names)


def test_ids_in_two_folders_are_refused_and_named(tmp_path, arrays):
    first, second = sorted(arrays)[:2]
    folder("train/{}.npy")(tmp_path, arrays)
    folder("val/{}.npy")(tmp_path, {first: arrays[first], second: arrays[second]})
    with pytest.raises(FeatureError) as caught:
        open_features(tmp_path).check(arrays)
    assert str(caught.value).splitlines() == [
        f"2 ids are in more than one folder of {tmp_path}; an id is the name of one file, VIDEO_ID.npy:",
        *(f"  - {name}: train/{name}.npy, val/{name}.npy" for name in (first, second)),
        "Name one of these folders as the features, or keep one file of each video under its id.",
    ]
    np.savez(tmp_path / "val" / "third.npz", np.zeros((2, 2)))
    with pytest.raises(FeatureError, match="2 ids are in more than one folder"):
        open_features(tmp_path).read(first)


@pytest.mark.parametrize(("naming", "said"), [
    ({"prefix": "train/"}, "prefix='train/' is no part of a file's name"),
    ({"suffix": "\0"}, "is no part of a file's name"),
    ({"suffix": 3}, "suffix must be a text, got 3"),
    ({"dataset": 3}, "dataset must be a text, got 3"),
])  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(naming, said, tmp_path):
    with pytest.raises(RequestError, match=re.escape(said)):
        open_features(tmp_path, **naming)


def test_an_open_source_keeps_its_names(tmp_path, arrays):
    source = open_features(folder("{}_x.npy")(tmp_path, arrays), suffix="_x")
    assert open_features(source) is source and open_features(source, suffix="_x") is source
    with pytest.raises(FeatureError, match="is open already: give prefix, suffix and dataset with its path"):
        open_features(source, suffix="_y")


@pytest.mark.parametrize(("name", "python", "options"), [
    ("{}_clip.npy", 'suffix="_clip"', "--suffix _clip"),
    ("v_{}.npy", 'prefix="v_"', "--prefix v_"),
    ("v {}_clip.npz", 'prefix="v ", suffix="_clip"', "--prefix 'v ' --suffix _clip"),
])  # fmt: skip
def test_names_with_more_than_the_id_are_told_in_the_words_of_the_caller(
    name, python, options, tmp_path, all_arrays, run, toy_split, toy_split_file
):
    folder(name, save=np.savez if name.endswith("z") else np.save)(tmp_path / "f", all_arrays)
    first = min(toy_split.video_ids("test"))
    with pytest.raises(FeatureError) as caught:
        FeatureDataset(toy_split, "test", features=tmp_path / "f")
    stored = name[:-4].format(first)
    told = f"; open these features with open_features(PATH, {python}): {stored} is the name of {first}"
    assert str(caught.value).splitlines()[0].endswith(told)
    for command in (("train", "--features"), ("pack-features",)):
        more = ("--method", "bce") if "train" in command else ()
        outcome = run(*command, tmp_path / "f", "--split", toy_split_file, "--out", tmp_path / "out", *more)
        assert outcome.exit_code == 1 and f"pen these features with {options}: " in outcome.stderr
    outcome = run("verify-features", tmp_path / "f", "--split", toy_split_file)
    assert outcome.exit_code == 1 and f"\nOpen these features with {options}: " in outcome.stdout


def test_no_rule_is_told_where_it_does_not_mend_what_is_missing(tmp_path, arrays):
    folder()(tmp_path, arrays)
    folder("{}_flow.npy")(tmp_path, arrays)
    with pytest.raises(FeatureError) as caught:
        open_features(tmp_path).check([*arrays, "gone"])
    assert "1 missing: gone" in str(caught.value) and "suffix" not in str(caught.value)


def test_an_array_of_a_file_with_one_array_is_no_choice(tmp_path, arrays, run):
    folder("train/{}.npy")(tmp_path, arrays)
    outcome = run("verify-features", tmp_path / "train", "--dataset", "rgb")
    assert outcome.exit_code == 1 and "a .npy file has one array: leave out --dataset rgb\n" in outcome.stderr
    outcome = run("verify-features", tmp_path, "--dataset", "rgb")
    assert outcome.exit_code == 1 and "but no name has the form VIDEO_ID/rgb.npy\n" in outcome.stderr


def test_the_files_of_a_folder_per_video_are_a_choice(tmp_path, arrays, run):
    folder("{}/rgb.npy")(tmp_path, arrays)
    folder("{}/flow.npy", np.negative)(tmp_path, arrays)
    said = f"{tmp_path} has a folder per video, with files such as {min(arrays)}/flow.npy; choose one of flow, rgb: "
    with pytest.raises(FeatureError) as caught:
        open_features(tmp_path).check(arrays)
    assert str(caught.value) == f"{said}open_features(PATH, dataset=NAME)"
    outcome = run("pack-features", tmp_path, "--out", tmp_path / "f.h5")
    assert outcome.exit_code == 1 and f"{said}--dataset NAME\n" in outcome.stderr
    for name, sign in (("rgb", 1), ("flow", -1)):
        source = open_features(tmp_path, dataset=name)
        assert all(np.array_equal(source.read(video_id), sign * array) for video_id, array in arrays.items())
    with pytest.raises(FeatureError, match=r'with open_features\(PATH, suffix="_x", dataset="rgb"\): '):
        for video_id in arrays:
            (tmp_path / video_id).rename(tmp_path / f"{video_id}_x")
        open_features(tmp_path, dataset="rgb").check(arrays)


def test_ids_that_differ_otherwise_are_told_with_their_rule(tmp_path, arrays):
    folder()(tmp_path, {video_id.lower(): array for video_id, array in arrays.items()})
    with pytest.raises(FeatureError, match="; rename these videos, or mend the ids of the split: .* lower case"):
        open_features(tmp_path).check(arrays)


# --- archives -------------------------------------------------------------------------------------


def refusal_of_archive(path, **naming):
    with pytest.raises(FeatureError) as caught:
        open_features(path, **naming).read("v")
    return str(caught.value)


def test_archives_without_one_array_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", rgb=np.zeros((2, 3)), flow=np.zeros((2, 3)))
    message = refusal_of_archive(tmp_path)
    assert "  - 1 without one array that must be the features: v (it holds flow, rgb)\n" in message
    assert message.endswith("\nName the array that holds the features: open_features(PATH, dataset=NAME).")
    assert open_features(tmp_path, dataset="rgb").read("v").shape == (2, 3)
    assert "v (it holds flow, rgb)" in refusal_of_archive(tmp_path, dataset="pose")


def test_archives_with_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "v.npz", np.array([[{}]], dtype=object))
    assert "1 pickled Python objects, which are never loaded: v\n" in refusal_of_archive(tmp_path)


def rezip(path, method, *, change=lambda raw: raw):
    np.savez(path, np.arange(6.0).reshape(2, 3))
    with zipfile.ZipFile(path) as archive:
        raw = archive.read("arr_0.npy")
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("arr_0.npy", change(raw))
    return path


def claim(raw):
    """Return a header of a larger array, before the same numbers."""
    return raw.replace(b"(2, 3)", b"(2, 9)")


@pytest.mark.parametrize(("method", "change", "said"), [
    (zipfile.ZIP_BZIP2, lambda raw: raw, "is not stored as numpy stores arrays"),
    (zipfile.ZIP_LZMA, lambda raw: raw, "is not stored as numpy stores arrays"),
    (zipfile.ZIP_STORED, claim, "1 truncated: v (176 of 272 bytes)"),
    (zipfile.ZIP_DEFLATED, claim, "1 truncated: v (176 of 272 bytes)"),
    (zipfile.ZIP_STORED, lambda raw: raw + b"x", "1 truncated: v (177 of 176 bytes)"),
    (zipfile.ZIP_STORED, lambda raw: raw[:60], "1 truncated: v (60 bytes)"),
    (zipfile.ZIP_STORED, lambda raw: b"text", "1 not a .npy file: v"),
])  # fmt: skip
def test_sizes_in_archives_are_compared_before_numbers_are_read(method, change, said, tmp_path):
    rezip(tmp_path / "v.npz", method, change=change)
    assert said in refusal_of_archive(tmp_path)


def test_damaged_archives_are_refused(tmp_path):
    sound = rezip(tmp_path / "v.npz", zipfile.ZIP_STORED).read_bytes()
    assert open_features(tmp_path).read("v").tolist() == [[0, 1, 2], [3, 4, 5]]
    (tmp_path / "v.npz").write_bytes(sound[:-10])
    assert "no readable .npz file" in refusal_of_archive(tmp_path)
    changed = bytearray(sound)
    changed[sound.index(np.float64(4).tobytes())] ^= 1
    (tmp_path / "v.npz").write_bytes(changed)
    assert "Bad CRC-32" in refusal_of_archive(tmp_path)
    (tmp_path / "v.npz").write_bytes(sound.replace(sound[14:18], b"\xff\xff\xff\x7f"))  # another checksum
    assert "no readable .npz file" in refusal_of_archive(tmp_path)


# --- HDF5 -----------------------------------------------------------------------------------------


CHOICE = "open_features(PATH, dataset=NAME)"


@pytest.mark.parametrize(("form", "naming", "said"), [
    ("named group", {}, "has no /features (it holds flow, rgb); choose one of flow, rgb: {}"),
    ("one dataset per video group", {}, "; choose one of flow, rgb: {}"),
    ("one dataset per video group in features", {"dataset": "pose"}, "has neither /pose nor /VIDEO_ID/pose (it holds"),
    ("named group", {"dataset": "pose"}, "has neither /pose nor /VIDEO_ID/pose (it holds flow, rgb)"),
    ("named group below a group", {"dataset": "i3d/pose"}, "has neither /i3d/pose nor /VIDEO_ID/i3d/pose"),
    ("ids with other axes", {}, "has ids but no /features: name the array of the features, {} (it holds"),
])  # fmt: skip
def test_the_names_to_choose_from_are_told(form, naming, said, tmp_path, arrays, run):
    path = FORMS[form][0](tmp_path / "given", arrays)
    with pytest.raises(FeatureError, match=re.escape(said.format(CHOICE))):
        open_features(path, **naming)
    outcome = run("verify-features", path, *(("--dataset", naming["dataset"]) if naming else ()))
    assert outcome.exit_code == 1 and said.format("--dataset NAME") in outcome.stderr


def test_ids_that_are_no_texts_are_refused(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["ids"], file["features"] = np.arange(3), np.zeros((3, 2, 2), np.float32)
    with pytest.raises(FeatureError, match=r"the ids of .* are int64 of shape \(3,\); expected texts \(n,\)"):
        open_features(tmp_path / "f.h5")


def test_one_row_per_video_is_read_from_a_matrix(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["ids"], file["features"] = ["a", "b", "c"], matrix
    source = open_features(tmp_path / "f.h5")
    assert source.check(["c", "a"]).tolist() == [1, 1]
    assert source.read("c").tolist() == [matrix[2].tolist()]
    source.close()


def test_videos_that_lie_in_another_file_are_not_opened(tmp_path, arrays):
    other = hdf5("{}")(tmp_path / "other", arrays)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["v"] = np.zeros((2, 2), np.float32)
        file["w"] = h5py.ExternalLink(str(other), min(arrays))
        file["x/rgb"] = np.zeros((2, 2), np.float32)
        file["y/rgb"] = h5py.ExternalLink(str(other), min(arrays))
    source = open_features(tmp_path / "f.h5")
    assert source.read("v").shape == (2, 2)
    with pytest.raises(FeatureError, match="w is a link to another file"):
        source.read("w")
    source = open_features(tmp_path / "f.h5", dataset="rgb")
    assert source.read("x").shape == (2, 2)
    with pytest.raises(FeatureError, match="y/rgb is a link to another file"):
        source.read("y")
    source.close()


# --- runs and other files that remember their features --------------------------------------------


def train(run, split_file, *arguments):
    return run(
        "train", "--split", split_file, "--method", "bce", "--aggregator", "mean", "--device", "cpu", "--epochs", "1",
        *arguments,
    )  # fmt: skip


def test_a_run_records_the_names_of_its_features(tmp_path, all_arrays, toy_split_file, run):
    folder("v_{}_clip.npy")(tmp_path / "npy", all_arrays)
    named = ["--features", tmp_path / "npy", "--prefix", "v_", "--suffix", "_clip"]
    assert train(run, toy_split_file, *named, "--out", tmp_path / "run").exit_code == 0
    assert "is finished" in train(run, toy_split_file, *named, "--out", tmp_path / "run").stderr
    folder()(tmp_path / "plain", all_arrays)
    outcome = train(run, toy_split_file, "--features", tmp_path / "plain", "--out", tmp_path / "run")
    assert outcome.exit_code == 0 and "is finished" in outcome.stderr, "the same rows under other names"
    for number, given in enumerate(([], named, ["--features", tmp_path / "plain"])):
        outcome = run("predict", tmp_path / "run", "--device", "cpu", "--out", tmp_path / f"{number}.parquet", *given)
        assert outcome.exit_code == 0
    scores = [mb.read_predictions(tmp_path / f"{number}.parquet").scores for number in range(3)]
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])
    outcome = run("predict", tmp_path / "run", "--out", tmp_path / "p.parquet", "--suffix", "_x")
    assert outcome.exit_code == 2 and "go with --features" in outcome.stderr


def test_feature_files_are_read_by_other_names_too(tmp_path, all_arrays, toy_split, toy_split_file, run):
    folder()(tmp_path / "npy", {f"v_{video_id}": array for video_id, array in all_arrays.items()})
    folder()(tmp_path / "plain", all_arrays)
    path = pack(tmp_path / "npy", tmp_path / "f.h5", dtype="float32").path
    source = open_features(path, prefix="v_")
    assert source.ids() == set(all_arrays)
    check = check_rows(source, toy_split)
    assert check.has_checksums and check.digest == check_rows(open_features(tmp_path / "plain"), toy_split).digest
    outcome = train(run, toy_split_file, "--features", path, "--prefix", "v_", "--out", tmp_path / "run")
    assert outcome.exit_code == 0 and "their checksums agree" in outcome.stderr
    assert verify(source, split=toy_split, npy=tmp_path / "plain").is_sound


def test_two_datasets_of_a_file_are_not_confused(tmp_path, arrays, toy_split):
    path = hdf5("rgb/{}", other="flow/{}")(tmp_path / "f", arrays)
    sources = [open_features(path, dataset=name) for name in ("rgb", "flow", "rgb")]
    digests = [check_rows(source, toy_split, ["test"]).digest for source in sources]
    assert digests[0] == digests[2] != digests[1]
    pack(open_features(path, dataset="rgb"), tmp_path / "packed.h5")
    with pytest.raises(FeatureError, match="source_dataset: rgb there, flow now"):
        pack(open_features(path, dataset="flow"), tmp_path / "packed.h5")


# --- refusals with a line of Python that is run -----------------------------------------------------


def save_pickle(file, array):
    file.write_bytes(pickle.dumps(array.tolist()))


def save_tensor(file, array):
    torch.save(torch.tensor(array), file)


def save_objects(file, array):
    rows = np.empty(len(array), object)
    rows[:] = list(array)
    np.save(file, rows, allow_pickle=True)


def whole(save):
    """Return a function that writes all videos into one file."""

    def write(path, arrays):
        save(path, arrays)
        return path

    return write


def save_tensors(path, arrays):
    torch.save({video_id: torch.tensor(array) for video_id, array in arrays.items()}, path)


def save_archive(path, arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def save_joint_archive(path, arrays):
    with path.open("wb") as stream:
        np.savez(stream, ids=np.array(list(arrays)), features=np.stack(list(arrays.values())))


def save_matrix(path, arrays):
    with path.open("wb") as stream:
        np.save(stream, np.stack(list(arrays.values())))


def save_dict(path, arrays):
    with path.open("wb") as stream:
        np.save(stream, arrays, allow_pickle=True)


@pytest.mark.parametrize(("write", "kind"), [
    (folder("{}.pkl", save=save_pickle), "a pickle"),
    (folder("sub/{}.pt", save=save_tensor), "a file of torch.save"),
    (folder(save=save_objects), "pickled Python objects"),
    (folder(save=save_pickle), "pickled Python objects"),
    (whole(lambda path, arrays: path.write_bytes(pickle.dumps(arrays))), "a pickle"),
    (whole(save_tensors), "a file of torch.save"),
    (whole(save_archive), "a NumPy archive"),
    (whole(save_joint_archive), "a NumPy archive"),
    (whole(save_matrix), "a NumPy array without ids"),
    (whole(save_dict), "a NumPy array of Python objects"),
])  # fmt: skip
def test_the_line_of_a_refusal_makes_features_that_are_read(
    write, kind, tmp_path, arrays, monkeypatch, run, toy_split_file
):
    path = write(tmp_path / "given", arrays)
    with pytest.raises(FeatureError) as caught:
        open_features(path).check(arrays)
    message = str(caught.value)
    assert kind in message
    assert ("never loaded" in message) == ("pickle" in kind or "objects" in kind)
    (line,) = (line.strip() for line in message.splitlines() if line.startswith("  ") and not line.startswith("  - "))
    outcome = run("pack-features", path, "--out", tmp_path / "f.h5")
    assert outcome.exit_code == 1 and line in outcome.stderr
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    exec(line, {"video_ids": list(arrays)})
    made = open_features("npy")
    assert all(np.array_equal(made.read(video_id), array) for video_id, array in arrays.items())


@pytest.mark.parametrize(("name", "said"), [
    ("a.mp4", "it holds videos (a.mp4)\n'meidbench extract-features {} --out features.h5' makes their features."),
    ("class/b.AVI", "it holds videos (b.AVI)\n'meidbench extract-features"),
    ("v/v-000001.jpg", "it holds frames of videos (v-000001.jpg)\n'meidbench extract-features"),
    ("all.h5", "it holds all.h5; name that file, not its folder"),
    ("a.csv", f"expected {EXPECTED}\nIt holds files such as a.csv."),
])  # fmt: skip
def test_a_folder_of_something_else_is_told_as_what_it_is(name, said, tmp_path, run, toy_split_file):
    given = tmp_path / "my videos"
    (given / name).parent.mkdir(parents=True)
    (given / name).write_bytes(b"\0")
    said = f"there are no features in {given}; {said.format(repr(str(given)))}"
    for command in (("verify-features",), ("pack-features", "--out", tmp_path / "f.h5")):
        outcome = run(*command, given)
        assert outcome.exit_code == 1 and f"Error: {said}" in outcome.stderr
    outcome = run("train", "--features", given, "--split", toy_split_file, "--method", "bce", "--out", tmp_path / "run")
    assert outcome.exit_code == 1 and f"Error: {said}" in outcome.stderr


def test_a_file_of_a_video_is_told_as_what_it_is(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(FeatureError, match=r"a.mp4 is a video file; 'meidbench extract-features .* all videos in its"):
        open_features(tmp_path / "a.mp4")


def test_a_folder_whose_names_do_not_fit_is_told(tmp_path, arrays):
    folder("{}_clip.npy")(tmp_path, arrays)
    with pytest.raises(FeatureError, match=r"it holds \S+_clip.npy, but no name has the form VIDEO_ID_x.npy"):
        open_features(tmp_path, suffix="_x").check(arrays)


def test_an_empty_folder_is_told_with_the_forms_that_are_read(tmp_path):
    with pytest.raises(FeatureError) as caught:
        open_features(tmp_path).check(["a"])
    assert str(caught.value) == f"there are no features in {tmp_path}; expected {EXPECTED}"


def test_a_checkpoint_of_a_run_is_told_with_the_place_of_its_features(tmp_path):
    torch.save({"model": {}}, tmp_path / "best.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FeatureError) as caught:
        open_features(tmp_path / "best.pt")
    first, second = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'best.pt'} is a checkpoint of a run; expected {EXPECTED}"
    assert second == "Name the features that the run read: config.json beside it has their path."


def test_the_folder_is_read_by_threads_as_before(tmp_path, arrays):
    assert isinstance(open_features(folder("{}.npz", save=np.savez)(tmp_path, arrays)), NpyFolder)
