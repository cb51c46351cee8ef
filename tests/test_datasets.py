"""The PyTorch datasets: what one video gives, and that workers, order and restarts do not change it."""

import copy
import inspect
import multiprocessing
import pickle
from itertools import product

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import meidbench
from meidbench.annotations import Annotations
from meidbench.baselines import resolve
from meidbench.errors import FeatureError, MeidbenchError, SplitError
from meidbench.features import open_features
from meidbench.features.frame_sampling import random_indices
from meidbench.loading.datasets import (
    DATASET_CLASSES,
    AnimalKingdom,
    CharadesEgoLT,
    CharadesLT,
    FeatureDataset,
    VideoLT,
)
from meidbench.loading.motion import Motion
from meidbench.names import DATASETS, SAMPLINGS
from meidbench.splits.manifests import split_path
from meidbench.splits.split import Split, write_split

CLASSES = ("walking", "reading", "cooking", "sitting", "eating")
WIDTH = 4
# Python 3.12 warns of a fork beside torch's threads; that is what DataLoader does on Linux.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def make_split(dataset="charadeslt"):
    """Make a split of 9 training, 3 validation and 4 test videos."""
    subsets = ["train"] * 9 + ["val"] * 3 + ["test"] * 4
    ids = [f"V{number:02d}" for number in range(16)]
    annotations = Annotations(
        class_names=CLASSES,
        video_ids=ids,
        sources=["train"] * 12 + ["test"] * 4,
        labels=[(number % 5, (number + 1 + number // 5) % 5)[: 1 + number % 2] for number in range(16)],
        lengths=[30.0] * 16,
        subjects=[""] * 16,
        views=[""] * 16,
        pair_ids=[""] * 16,
        segments=[()] * 16,
    )
    return Split.from_annotations(annotations, subsets, dataset=dataset, variant="released", head_above=3, tail_up_to=1)


def make_arrays(split, dtype=np.float16):
    """Make features of differing length; each value is its own."""
    arrays = {}
    for subset in ("train", "val", "test"):
        for video_id in split.video_ids(subset):
            number = int(video_id[1:])
            values = np.arange((number + 3) * WIDTH).reshape(-1, WIDTH) + number / 16
            arrays[video_id] = values.astype(dtype)
    return arrays


@pytest.fixture(scope="module")
def split():
    return make_split()


@pytest.fixture(scope="module")
def arrays(split):
    return make_arrays(split)


@pytest.fixture(scope="module")
def folder(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("npy")
    for video_id, array in arrays.items():
        np.save(path / f"{video_id}.npy", array)
    return path


@pytest.fixture(scope="module")
def hdf5(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("hdf5") / "features.h5"
    with h5py.File(path, "w") as file:
        for video_id, array in arrays.items():
            file[f"features/{video_id}"] = array
    return path


@pytest.fixture(params=["npy", "hdf5"])
def stored(request, folder, hdf5):
    return {"npy": folder, "hdf5": hdf5}[request.param]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch["video_id"] == other["video_id"]
        assert torch.equal(batch["features"], other["features"])
        assert torch.equal(batch["labels"], other["labels"])


# --- one video --------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_items_are_the_evenly_spaced_rows_and_the_labels(split, arrays, stored, subset):
    data = CharadesLT(split, subset=subset, features=stored, frames=5)
    assert len(data) == len(split.video_ids(subset))
    for index, video_id in enumerate(split.video_ids(subset)):
        array = arrays[video_id]
        rows = np.linspace(0, len(array) - 1, 5).astype(np.int32)
        item = data[index]
        assert list(item) == ["video_id", "features", "labels"]
        assert item["video_id"] == video_id
        assert item["features"].dtype == item["labels"].dtype == torch.float32
        np.testing.assert_array_equal(item["features"].numpy(), array[rows].astype(np.float32))
        np.testing.assert_array_equal(item["labels"].numpy(), split.labels(subset)[index].astype(np.float32))


def test_one_item_worked_out_by_hand(split, folder):
    # V01: 4 rows of 4 values from 1/16 on; of 4 rows, 3 are 0, 1.5 -> 1 and 3. Labels (1, 2).
    item = CharadesLT(split, features=folder, frames=3)[1]
    expected = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [12, 13, 14, 15]]) + 0.0625
    assert item["video_id"] == "V01"
    torch.testing.assert_close(item["features"], expected, rtol=1e-3, atol=0)
    assert item["labels"].tolist() == [0, 1, 1, 0, 0]


def test_all_rows_where_no_number_is_given(split, arrays, stored):
    data = CharadesLT(split, features=stored, frames=None)
    for item, video_id in zip(data, split.video_ids("train"), strict=True):
        np.testing.assert_array_equal(item["features"].numpy(), arrays[video_id].astype(np.float32))
    loaded = list(DataLoader(data, batch_size=1))
    assert [batch["features"].shape[1] for batch in loaded] == [len(arrays[name]) for name in data.video_ids]


def test_positions_count_from_both_ends(split, folder):
    data = CharadesLT(split, "test", features=folder, frames=4)
    assert len(data) == 4
    assert_same([data[-1], data[-4], data[np.int64(2)]], [data[3], data[0], data[2]])
    for index in (4, -5, 10**9):
        with pytest.raises(IndexError, match=f"index {index} is outside the 4 videos of test"):
            data[index]
    with pytest.raises(TypeError):
        data["V12"]
    assert [item["video_id"] for item in data] == data.video_ids


def test_what_a_dataset_knows(split, stored):
    data = CharadesLT(split, "val", features=stored)
    assert data.video_ids == ["V09", "V10", "V11"]
    assert data.labels.dtype == bool
    assert data.labels is data.labels
    np.testing.assert_array_equal(data.labels, split.labels("val"))
    assert (data.num_classes, data.class_names, data.dim, data.subset) == (5, CLASSES, WIDTH, "val")
    rows = f"200 rows per video, {WIDTH} numbers per row (rows repeated in 3 that have fewer)"
    assert repr(data) == f"<CharadesLT val: 3 videos, 5 classes, {rows}, features {data.source.path}>"


@pytest.mark.parametrize(
    ("kind", "frames"),
    [(VideoLT, 150), (CharadesLT, 200), (CharadesEgoLT, 200), (AnimalKingdom, 150)],
    ids=lambda value: str(value),
)
def test_defaults(kind, frames, folder):
    data = kind(make_split(kind.dataset), features=folder)
    assert data.subset == "train"
    assert data.sampling == "uniform"
    assert data[0]["features"].shape == (frames, WIDTH)
    names = ["split", "subset", "features", "frames", "sampling", "replacement", "seed", "motion"]
    assert list(inspect.signature(kind).parameters) == names


def test_every_benchmark_has_its_dataset():
    assert set(DATASET_CLASSES) == set(DATASETS)
    for name, kind in DATASET_CLASSES.items():
        assert kind.dataset == name
        assert issubclass(kind, FeatureDataset)
        assert getattr(meidbench, kind.__name__) is kind


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
def test_features_come_as_float32_whatever_is_stored(split, tmp_path, dtype):
    arrays = make_arrays(split, dtype)
    for video_id, array in arrays.items():
        np.save(tmp_path / f"{video_id}.npy", np.asfortranarray(array) if video_id == "V03" else array)
    data = CharadesLT(split, features=tmp_path, frames=None)
    for item in data:
        assert item["features"].dtype == torch.float32
        np.testing.assert_array_equal(item["features"].numpy(), arrays[item["video_id"]].astype(np.float32))


def test_items_are_the_callers_own(split, stored):
    data = CharadesLT(split, features=stored, frames=3)
    before = data[2]["features"].clone()
    item = data[2]
    item["features"].add_(1)
    item["labels"].fill_(7)
    assert torch.equal(data[2]["features"], before)
    assert data[2]["labels"].max() == 1
    np.testing.assert_array_equal(data.labels, split.labels("train"))


# --- motion -----------------------------------------------------------------------------------------


def motion_by_hand(array):
    """Eq 10 of MEID in float32; the values are small multiples of 1/16, of which sums are exact."""
    array = array.astype(np.float32)
    return np.concatenate(
        [np.diff(array, axis=0), array.mean(axis=0, keepdims=True, dtype=np.float64)], dtype=np.float32
    )


def static_at_the_end(stream, rows):
    """The rows of a whole stream X_M that are taken, of which the last is the static one, and no other."""
    return np.concatenate([stream[np.minimum(rows[:-1], len(stream) - 2)], stream[-1:]])


@pytest.mark.parametrize("sampling", ["uniform", "random"])
def test_motion_is_that_of_the_whole_video_at_the_same_rows(split, arrays, stored, sampling):
    options = {"features": stored, "frames": 6, "sampling": sampling, "seed": 11}
    data, plain = CharadesLT(split, motion=Motion(), **options), CharadesLT(split, **options)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        plain.set_epoch(epoch)
        for index, item in enumerate(data):
            assert list(item) == ["video_id", "features", "labels", "motion"]
            assert_same([item], [plain[index]])
            rows = data.frame_rows.select_one(index, epoch)
            whole = motion_by_hand(arrays[item["video_id"]])
            np.testing.assert_array_equal(item["motion"].numpy(), static_at_the_end(whole, rows))


def test_the_paper_has_exactly_one_static_row_per_video_and_the_release_a_random_number(split, stored):
    motions = {name: resolve(name, split).motion.motion() for name in ("meid", "meid-release")}
    counts = {name: set() for name in motions}
    draws = [(sampling, replacement) for sampling in SAMPLINGS for replacement in (True, False)]
    for (sampling, replacement), frames, subset, name in product(draws, (1, 2, 7, 25), ("train", "test"), motions):
        options = {"frames": frames, "sampling": sampling, "replacement": replacement, "features": stored}
        data = CharadesLT(split, subset, motion=motions[name], **options)
        whole = CharadesLT(split, subset, features=stored, frames=None, motion=motions[name])
        for epoch, index in product((0, 5), range(len(data))):
            data.set_epoch(epoch)
            # The static row of a whole video is far from all differences of these features.
            is_static = (data[index]["motion"] == whole[index]["motion"][-1]).all(dim=1)
            counts[name].add(int(is_static.sum()))
            assert name == "meid-release" or bool(is_static[-1])
    assert counts["meid"] == {1}
    assert {0, 1, 2} <= counts["meid-release"]


def test_motion_of_all_rows(split, arrays, stored):
    for item in CharadesLT(split, features=stored, frames=None, motion=Motion()):
        np.testing.assert_array_equal(item["motion"].numpy(), motion_by_hand(arrays[item["video_id"]]))


def test_motion_of_sampled_rows_repeats_nothing_of_the_whole(split, stored):
    data = CharadesLT(split, features=stored, frames=40, sampling="random", motion=Motion(when="sampled"))
    for item in data:
        expected = motion_by_hand(item["features"].numpy())
        np.testing.assert_array_equal(item["motion"][:-1].numpy(), expected[:-1])
        np.testing.assert_allclose(item["motion"][-1].numpy(), expected[-1], rtol=1e-6)


def test_independent_rows_of_motion_are_a_draw_of_their_own(split, arrays, folder):
    options = {"features": folder, "frames": 30, "motion": Motion(same_index=False), "seed": 2}
    data = CharadesLT(split, sampling="random", **options)
    drawn = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        for index, item in enumerate(data):
            rows, others = (some.select_one(index, epoch) for some in (data.frame_rows, data.motion_frame_rows))
            assert rows.tolist() != others.tolist()
            np.testing.assert_array_equal(item["features"].numpy(), arrays[item["video_id"]][rows].astype(np.float32))
            whole = motion_by_hand(arrays[item["video_id"]])
            np.testing.assert_array_equal(item["motion"].numpy(), static_at_the_end(whole, others))
            drawn.append(others.tolist())
    assert len({tuple(rows) for rows in drawn}) == len(drawn)
    # Evenly spaced rows are the same rows however often they are drawn.
    for item, other in zip(
        CharadesLT(split, **options), CharadesLT(split, **{**options, "motion": Motion()}), strict=True
    ):
        assert torch.equal(item["motion"], other["motion"])


@forks
@needs_fork
def test_workers_give_the_same_motion(split, stored):
    options = {"features": stored, "frames": 6, "sampling": "random", "motion": Motion(same_index=False)}
    serial, parallel = (epochs_of(CharadesLT(split, **options), context, epochs=(0, 4)) for context in (None, "fork"))
    for batches, others in zip(serial, parallel, strict=True):
        assert_same(batches, others)
        for batch, other in zip(batches, others, strict=True):
            assert torch.equal(batch["motion"], other["motion"])


# --- what is refused --------------------------------------------------------------------------------


def test_the_split_may_be_a_file_or_one_that_was_built(split, folder, tmp_path, monkeypatch):
    expected = CharadesLT(split, "test", features=folder)
    file = write_split(split, tmp_path / "mine.parquet")
    assert_same(list(CharadesLT(file, "test", features=folder)), list(expected))
    assert_same(list(CharadesLT(str(file), "test", features=str(folder))), list(expected))
    monkeypatch.setenv("MEIDBENCH_HOME", str(tmp_path / "home"))
    with pytest.raises(SplitError, match="the split charadeslt is not built yet"):
        CharadesLT(features=folder)
    write_split(split, split_path("charadeslt"))
    assert_same(list(CharadesLT(None, "test", features=folder)), list(expected))
    assert CharadesLT(features=folder).video_ids == split.video_ids("train")


def test_a_split_of_another_dataset_is_refused(split, folder):
    message = "VideoLT needs a split of videolt, got one of charadeslt: use meidbench.CharadesLT"
    with pytest.raises(SplitError, match=message):
        VideoLT(split, features=folder)
    with pytest.raises(
        SplitError, match=r"CharadesLT needs a split of charadeslt, got one of toylt: use meidbench.FeatureDataset$"
    ):
        CharadesLT(make_split("toylt"), features=folder)


def test_a_split_of_ones_own_has_a_dataset_too(toy_split, toy_split_file, tmp_path):
    for number, video_id in enumerate(toy_split.video_ids("test")):
        np.save(tmp_path / f"{video_id}.npy", np.full((2, WIDTH), number, np.float32))
    data = FeatureDataset(toy_split, "test", features=tmp_path, frames=3)
    assert [int(item["features"][0, 0]) for item in data] == list(range(len(toy_split.video_ids("test"))))
    np.testing.assert_array_equal(np.stack([item["labels"] for item in data]), toy_split.labels("test"))
    assert_same(list(FeatureDataset(toy_split_file, "test", features=tmp_path, frames=3)), list(data))
    with pytest.raises(SplitError, match="FeatureDataset needs a split"):
        FeatureDataset(features=tmp_path)


def test_missing_and_malformed_features_are_told_at_once(split, arrays, tmp_path):
    for video_id, array in arrays.items():
        np.save(tmp_path / f"{video_id}.npy", array)
    for video_id in ("V00", "V04", "V15"):
        (tmp_path / f"{video_id}.npy").unlink()
    np.save(tmp_path / "V02.npy", np.zeros((3, WIDTH), np.int32))
    np.save(tmp_path / "V07.npy", np.zeros((3, WIDTH + 1), np.float32))
    with pytest.raises(FeatureError) as caught:
        CharadesLT(split, features=tmp_path)
    assert str(caught.value).splitlines()[:4] == [
        f"4 of 9 videos cannot be used from {tmp_path}:",
        "  - 2 missing: V00, V04",
        "  - 1 not float16, float32 or float64: V02 (int32)",
        "  - 1 not of the width of most (4): V07 (5)",
    ]
    assert len(CharadesLT(split, "val", features=tmp_path)) == 3
    with pytest.raises(FeatureError, match="there are no features at"):
        CharadesLT(split, features=tmp_path / "nowhere")


def test_a_file_that_goes_missing_later_is_named(split, arrays, tmp_path):
    for video_id, array in arrays.items():
        np.save(tmp_path / f"{video_id}.npy", array)
    data = CharadesLT(split, features=tmp_path)
    (tmp_path / "V05.npy").unlink()
    with pytest.raises(FeatureError, match="1 missing: V05"):
        data[5]
    np.save(tmp_path / "V06.npy", arrays["V06"][:2])
    with pytest.raises(FeatureError, match=r"video V06 in .* has rows 0 to 1; asked for 2"):
        data[6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampling": "even"}, "unknown sampling 'even'; known: uniform, random"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"frames": 2.0}, "frames must be a whole number of at least 1, got 2.0"),
        ({"frames": True}, "frames must be a whole number of at least 1, got True"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": None}, "seed must be a whole number of at least 0, got None"),
        ({"motion": "full"}, r"motion must be a meidbench.loading.motion.Motion or None, got 'full'"),
        ({"frames": None, "sampling": "random"}, "random sampling needs a number of frames"),
        ({"subset": "validation"}, r"unknown subset 'validation' \(did you mean val\?\); known: train, val, test"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(split, folder, arguments, message):
    with pytest.raises(MeidbenchError, match=message):
        CharadesLT(split, features=folder, **arguments)


@pytest.mark.parametrize("epoch", [-1, 1.5, "2"])
def test_epochs_that_make_no_sense_are_refused(split, folder, epoch):
    data = CharadesLT(split, features=folder)
    with pytest.raises(FeatureError, match="epoch must be a whole number of at least 0, got"):
        data.set_epoch(epoch)
    assert data.epoch == 0


# --- random frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", [True, False])
def test_random_rows_follow_from_seed_epoch_and_index(split, arrays, stored, replacement):
    data = CharadesLT(split, features=stored, frames=6, sampling="random", replacement=replacement, seed=11)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        assert data.epoch == epoch
        for index, video_id in enumerate(data.video_ids):
            generator = np.random.default_rng(np.random.SeedSequence(11, spawn_key=(epoch, index)))
            rows = random_indices(len(arrays[video_id]), 6, generator, replacement)
            expected = arrays[video_id][rows].astype(np.float32)
            np.testing.assert_array_equal(data[index]["features"].numpy(), expected)


def test_random_rows_do_not_depend_on_the_order_of_reading(split, folder):
    options = {"features": folder, "frames": 40, "sampling": "random", "seed": 5}
    first = list(CharadesLT(split, **options))
    data = CharadesLT(split, **options)
    backwards = [data[index] for index in reversed(range(len(data)))][::-1]
    assert_same(first, backwards)
    assert_same([data[-1]], first[-1:])


def test_seed_and_epoch_change_the_random_rows_and_nothing_else_does(split, folder):
    def rows(seed, epoch, sampling="random"):
        data = CharadesLT(split, features=folder, frames=40, sampling=sampling, seed=seed)
        data.set_epoch(epoch)
        return torch.stack([item["features"] for item in data])

    torch.manual_seed(0)
    base = rows(0, 0)
    torch.manual_seed(1)
    assert torch.equal(rows(0, 0), base)
    assert not torch.equal(rows(1, 0), base)
    assert not torch.equal(rows(0, 1), base)
    # 2**32 + 1 is more than one word of a seed sequence.
    assert len({rows(seed, epoch).numpy().tobytes() for seed in (0, 1, 2**32 + 1) for epoch in (0, 1)}) == 6
    assert torch.equal(rows(0, 0, "uniform"), rows(1, 5, "uniform"))
    # Videos of one length do not share their draws.
    assert not torch.equal(base[0] - base[0].min(), base[1] - base[1].min())


# --- workers ----------------------------------------------------------------------------------------


def loader_of(data, context, persistent):
    # Not shuffle=True: what torch then draws from its generator differs for persistent workers.
    order = np.random.default_rng(3).permutation(len(data)).tolist()
    workers = 0 if context is None else 2
    return DataLoader(
        data,
        batch_size=2,
        sampler=order,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=persistent and workers > 0,
    )


def epochs_of(data, context, persistent=True, epochs=(0, 1, 7)):
    loader = loader_of(data, context, persistent)
    batches = []
    for epoch in epochs:
        data.set_epoch(epoch)
        batches.append(list(loader))
    return batches


@forks
@pytest.mark.parametrize(
    ("context", "persistent"),
    [
        pytest.param("fork", True, marks=needs_fork),
        pytest.param("fork", False, marks=needs_fork),
        ("spawn", True),
    ],
)
def test_workers_give_what_one_process_gives_in_every_epoch(split, stored, context, persistent):
    options = {"features": stored, "frames": 6, "sampling": "random", "seed": 2}
    serial = epochs_of(CharadesLT(split, **options), None)
    data = CharadesLT(split, **options)
    data[0]  # an HDF5 file that is open here must not disturb the workers
    parallel = epochs_of(data, context, persistent)
    for batches, others in zip(serial, parallel, strict=True):
        assert_same(batches, others)
    assert sorted(name for batch in parallel[0] for name in batch["video_id"]) == data.video_ids
    # The comparison would mean nothing if the frames were the same in all epochs.
    by_id = [
        {name: row for batch in batches for name, row in zip(batch["video_id"], batch["features"], strict=True)}
        for batches in parallel
    ]
    assert any(not torch.equal(by_id[0][name], by_id[1][name]) for name in data.video_ids)
    assert any(not torch.equal(by_id[1][name], by_id[2][name]) for name in data.video_ids)
    data.source.close()


def test_batches_hold_ids_and_tensors(split, stored):
    batch = next(iter(DataLoader(CharadesLT(split, features=stored), batch_size=4)))
    assert batch["video_id"] == ["V00", "V01", "V02", "V03"]
    assert batch["features"].shape == (4, 200, WIDTH)
    assert batch["labels"].tolist() == split.labels("train")[:4].tolist()


@forks
@needs_fork
def test_an_error_in_a_worker_names_the_video(split, arrays, tmp_path):
    for video_id, array in arrays.items():
        np.save(tmp_path / f"{video_id}.npy", array)
    data = CharadesLT(split, features=tmp_path)
    (tmp_path / "V08.npy").unlink()
    with pytest.raises(FeatureError, match="1 missing: V08"):
        list(DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="fork"))


@forks
@needs_fork
@pytest.mark.parametrize("again", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_copy_has_an_epoch_of_its_own(split, stored, again):
    data = CharadesLT(split, features=stored, frames=9, sampling="random")
    data.set_epoch(4)
    data[0]
    other = again(data)
    assert other.epoch == 4
    assert_same(list(other), list(data))
    other.set_epoch(5)
    assert data.epoch == 4
    serial = epochs_of(copy.deepcopy(data), None, epochs=(5, 6))
    for batches, others in zip(serial, epochs_of(other, "fork", epochs=(5, 6)), strict=True):
        assert_same(batches, others)
    data.source.close()
    other.source.close()


def test_datasets_may_share_a_source(split, arrays, stored):
    source = open_features(stored)
    train, test = (CharadesLT(split, subset, features=source, frames=None) for subset in ("train", "test"))
    for index in range(4):
        for data in (train, test):
            item = data[index]
            np.testing.assert_array_equal(item["features"].numpy(), arrays[item["video_id"]])
    source.close()
