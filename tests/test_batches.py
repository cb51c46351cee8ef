"""Whole batches: that they hold what the dataset gives one by one, in memory that nobody else looks at."""

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from meidbench.annotations import Annotations
from meidbench.errors import FeatureError
from meidbench.features import PackedFile, open_features
from meidbench.features.feature_file import DTYPES, Layout
from meidbench.features.frame_sampling import FrameRows, random_indices
from meidbench.features.records import VideoRows
from meidbench.features.store import feature_writer
from meidbench.loading.batches import BatchLoader, Prefetcher
from meidbench.loading.datasets import FeatureDataset
from meidbench.loading.gathering import BufferPool
from meidbench.loading.motion import Motion
from meidbench.splits.split import Split

WIDTH, VIDEOS, CLASSES = 6, 23, 5
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def split():
    ids = [f"V{number:02d}" for number in range(VIDEOS)]
    annotations = Annotations(
        class_names=tuple("abcde"),
        video_ids=ids,
        sources=[""] * VIDEOS,
        labels=[tuple(sorted({number % 5, number * number % 5, 3})) for number in range(VIDEOS)],
        lengths=[30.0] * VIDEOS,
        subjects=[""] * VIDEOS,
        views=[""] * VIDEOS,
        pair_ids=[""] * VIDEOS,
        segments=[()] * VIDEOS,
    )
    return Split.from_annotations(
        annotations, ["train"] * VIDEOS, dataset="toy", variant="released", head_above=3, tail_up_to=1
    )


def make_arrays(split, dtype=np.float32, ragged=True):
    generator = np.random.default_rng(5)
    # Positions in the file are not those in the subset.
    names = ["A00", "A01", *split.video_ids("train"), "Z00"]
    return {
        video_id: generator.standard_normal((3 + number % 4 if ragged else 7, WIDTH)).astype(dtype)
        for number, video_id in enumerate(names)
    }


def pack(path, arrays, dtype="float32"):
    """Write a packed file; of int8, return what it must give."""
    counts = np.array([len(array) for array in arrays.values()])
    fixed = len(set(counts.tolist())) == 1
    layout = Layout(tuple(sorted(arrays)), counts, fixed, WIDTH, dtype, False, np.zeros(len(arrays), np.int64))
    with feature_writer(path, layout, {}) as writer:
        for position, video_id in enumerate(layout.video_ids):
            rows, scales = arrays[video_id], None
            if dtype == "int8":
                scales = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
                rows = np.rint(rows / scales[:, None])
            writer.put(position, VideoRows(rows.astype(DTYPES[dtype]), scales=scales))
        writer.finish()
    return path


def chunk(path, arrays):
    rows = np.concatenate(list(arrays.values()))
    counts = [len(array) for array in arrays.values()]
    with h5py.File(path, "w") as file:
        file["video_ids"] = list(arrays)
        file["row_counts"] = counts
        file["row_starts"] = np.cumsum([0, *counts[:-1]])
        file.create_dataset("features", data=rows, chunks=(4, WIDTH), compression="gzip")
    return path


def write(form, folder, split):
    if form == "npy":
        for video_id, array in make_arrays(split, np.float16).items():
            np.save(folder / f"{video_id}.npy", array)
        return folder
    path = folder / "features.h5"
    if form == "grouped":
        with h5py.File(path, "w") as file:
            for video_id, array in make_arrays(split).items():
                file[f"features/{video_id}"] = array
        return path
    if form == "chunked":
        return chunk(path, make_arrays(split))
    if form == "float64":
        with h5py.File(path, "w") as file:
            arrays = make_arrays(split, np.float64, ragged=False)
            file["video_ids"] = list(arrays)
            file["features"] = np.stack(list(arrays.values()))
        return path
    dtype, _, ragged = form.partition(" ")
    return pack(path, make_arrays(split, ragged=bool(ragged)), dtype)


FORMS = ("npy", "grouped", "chunked", "float64", "float32", "float16 ragged", "int8", "int8 ragged")


@pytest.fixture(scope="module")
def written(split, tmp_path_factory):
    return {form: write(form, tmp_path_factory.mktemp("features"), split) for form in FORMS}


@pytest.fixture(params=FORMS)
def stored(request, written):
    return written[request.param]


@pytest.fixture
def packed(written):
    return written["float16 ragged"]


def dataset(split, path, frames=5, **options):
    return FeatureDataset(split, "train", features=path, frames=frames, **options)


def of_items(data, positions, size):
    """The items after torch's own collation."""
    return [
        default_collate([data[position] for position in positions[start : start + size]])
        for start in range(0, len(positions), size)
    ]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch["video_id"] == other["video_id"]
        assert ("motion" in batch) == ("motion" in other)
        for name in {"features", "labels", "motion"} & set(batch):
            assert batch[name].dtype == other[name].dtype
            assert torch.equal(batch[name].cpu(), other[name])


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("meidbench")}


def ended():
    """Whether all threads of loaders are gone, at once or very soon."""
    until = time.monotonic() + 10
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    return not threads()


# --- numbers ----------------------------------------------------------------------------------------


def test_packed_rows_reach_the_batch_by_the_quick_way(split, written):
    quick = {form: isinstance(open_features(path), PackedFile) and open_features(path).mapped
             for form, path in written.items()}  # fmt: skip
    assert quick == {form: form not in ("npy", "grouped", "chunked") for form in FORMS}


@pytest.mark.parametrize("sampling", ["uniform", "random"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_are_the_items(split, stored, sampling, prefetch):
    data = dataset(split, stored, sampling=sampling, seed=3)
    loader = BatchLoader(data, 4, prefetch=prefetch)
    for epoch in (0, 2):
        loader.set_epoch(epoch)
        assert_same(list(loader), of_items(data, range(VIDEOS), 4))


@pytest.mark.parametrize("resident", ["auto", "always"])
def test_resident_batches_are_the_items(split, stored, resident):
    data = dataset(split, stored, sampling="random", replacement=False)
    loader = BatchLoader(data, 5, resident=resident, sampler=list(range(VIDEOS))[::-1])
    assert_same(list(loader), of_items(data, list(range(VIDEOS))[::-1], 5))


def test_resident_features_need_no_file(split, tmp_path):
    path = write("npy", tmp_path, split)
    data = dataset(split, path)
    loader = BatchLoader(data, 4, resident="always")
    expected = list(loader)
    for file in path.iterdir():
        file.unlink()
    assert_same(list(loader), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_are_the_float32_ones_rounded(split, stored, dtype):
    data = dataset(split, stored)
    for resident in ("never", "always"):
        loader = BatchLoader(data, 4, dtype=dtype, resident=resident)
        for batch, other in zip(loader, of_items(data, range(VIDEOS), 4), strict=True):
            assert batch["features"].dtype == dtype
            assert torch.equal(batch["features"], other["features"].to(dtype))


def test_a_batch_worked_out_by_hand(split, tmp_path):
    arrays = {f"V{number:02d}": np.full((2, WIDTH), number + 0.5) for number in range(VIDEOS)}
    data = dataset(split, pack(tmp_path / "made.h5", arrays, "float16"), frames=1)
    (batch,) = BatchLoader(data, 4, sampler=[(7, 3), (0, 0), (7, -1)])
    assert list(batch) == ["video_id", "labels", "index", "class", "features"]
    assert batch["video_id"] == ["V07", "V00", "V07"]
    assert batch["features"].tolist() == [[[7.5] * WIDTH], [[0.5] * WIDTH], [[7.5] * WIDTH]]
    # 7 % 5 and 49 % 5 are 2 and 4.
    assert batch["labels"].tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 1, 0], [0, 0, 1, 1, 1]]
    assert batch["index"].tolist() == [7, 0, 7]
    assert batch["class"].tolist() == [3, 0, -1]
    assert batch["index"].dtype == batch["class"].dtype == torch.int64


def test_labels_of_several_videos(split, packed):
    data = dataset(split, packed)
    positions = np.array([4, 4, 22, 0, 9])
    assert data.label_rows(positions).numpy().tolist() == split.labels("train")[positions].tolist()
    assert data.label_rows(np.array([], np.int64)).shape == (0, CLASSES)


def test_all_rows_of_videos(split, packed):
    data = dataset(split, packed, frames=None)
    batches = list(BatchLoader(data, 1))
    assert_same(batches, of_items(data, range(VIDEOS), 1))
    assert len({batch["features"].shape[1] for batch in batches}) > 1
    with pytest.raises(FeatureError, match="videos of 3 to 6 rows do not fit into one batch"):
        list(BatchLoader(data, 4))


# --- motion -----------------------------------------------------------------------------------------

MOTIONS = {
    "paper": Motion(),
    "drawn": Motion(static_row="drawn"),
    "sampled": Motion(when="sampled", static="none"),
    "independent": Motion(same_index=False, static="sum"),
    "released": Motion(same_index=False, static="sum", release_bug=True, static_row="drawn"),
}


# Some videos have 7 rows, of which none is taken twice then: all, in their order.
@pytest.mark.parametrize(("frames", "replacement"), [(5, True), (7, False)])
@pytest.mark.parametrize("resident", ["never", "always"])
@pytest.mark.parametrize("motion", MOTIONS.values(), ids=list(MOTIONS))
def test_motion_of_batches_is_that_of_the_items(split, stored, frames, replacement, resident, motion, monkeypatch):
    data = dataset(split, stored, frames=frames, motion=motion, sampling="random", seed=3, replacement=replacement)
    data.set_epoch(2)
    expected = of_items(data, range(VIDEOS), 6)
    # A batch in parts of few videos, and in one.
    for part in (4 * WIDTH * 21, 1 << 20):
        monkeypatch.setattr("meidbench.loading.gathering._PART", part)
        assert_same(list(BatchLoader(data, 6, resident=resident, prefetch=0)), expected)


def test_motion_of_evenly_spaced_rows(split, stored):
    for frames in (1, 4, 7, 9):
        data = dataset(split, stored, frames=frames, motion=Motion())
        assert_same(list(BatchLoader(data, 6)), of_items(data, range(VIDEOS), 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("motion", MOTIONS.values(), ids=list(MOTIONS))
def test_motion_of_other_dtypes_is_the_float32_one_rounded(split, stored, dtype, motion):
    data = dataset(split, stored, frames=7, sampling="random", replacement=False, motion=motion)
    expected = of_items(data, range(VIDEOS), 6)
    for resident in ("never", "always"):
        loader = BatchLoader(data, 6, dtype=dtype, resident=resident, prefetch=0)
        for batch, other in zip(loader, expected, strict=True):
            for name in ("features", "motion"):
                assert batch[name].dtype == dtype
                assert torch.equal(batch[name], other[name].to(dtype))


def test_motion_leaves_the_features_as_they_are(split, stored):
    options = {"sampling": "random", "seed": 4}
    without = list(BatchLoader(dataset(split, stored, **options), 4))
    for motion in MOTIONS.values():
        batches = list(BatchLoader(dataset(split, stored, motion=motion, **options), 4))
        for batch in batches:
            assert batch.pop("motion").shape == batch["features"].shape
        assert_same(batches, without)


def test_motion_of_all_rows_of_videos(split, packed):
    data = dataset(split, packed, frames=None, motion=Motion())
    assert_same(list(BatchLoader(data, 1)), of_items(data, range(VIDEOS), 1))


def test_an_epoch_with_motion_goes_on_where_it_stopped(split, packed):
    data = dataset(split, packed, sampling="random", motion=Motion(same_index=False))
    loader = BatchLoader(data, 4, shuffle=True)
    loader.set_epoch(3)
    whole = list(loader)
    loader.start_at(2)
    assert_same(list(loader), whole[2:])
    loader.set_epoch(4)
    assert not torch.equal(next(iter(loader))["motion"], whole[0]["motion"])


def test_memory_of_motion_is_used_again_and_not_while_it_is_kept(split, written):
    for form in ("float32", "int8 ragged"):
        data = dataset(split, written[form], motion=Motion())
        loader = BatchLoader(data, 2, prefetch=2)
        kept = [batch["motion"][0, 1] for batch in loader]
        expected = of_items(data, range(VIDEOS), 2)
        assert all(torch.equal(row, item["motion"][0, 1]) for row, item in zip(kept, expected, strict=True))
        places = [batch[name].data_ptr() for _ in range(3) for batch in loader for name in ("features", "motion")]
        # Those of a loader that reads ahead, and what is kept above.
        assert len(set(places)) <= 2 * (2 + 2)


def test_an_error_in_motion_names_the_video(split, tmp_path):
    data = dataset(split, write("npy", tmp_path, split), motion=Motion())
    np.save(tmp_path / "V05.npy", np.zeros((2, WIDTH), np.float16))
    for read in (lambda: list(BatchLoader(data, 4)), lambda: data[5]):
        with pytest.raises(FeatureError, match="video V05 in .* has rows 0 to 1; asked for"):
            read()


# --- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 11, 2**32 + 1, 2**64 - 1, 2**140 + 3])
@pytest.mark.parametrize("epoch", [0, 1, 2**32 - 1, 2**40])
@pytest.mark.parametrize("frames", [1, 2, 9, 60])
def test_random_rows_are_numpys(seed, epoch, frames):
    counts = np.concatenate([[1, 2, 64], np.random.default_rng(0).integers(1, 500, 40)])
    positions = np.random.default_rng(1).permutation(len(counts))
    rows = FrameRows(counts, frames, "random", True, seed).select(positions, epoch)
    for row, position in zip(rows, positions.tolist(), strict=True):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, position)))
        assert row.tolist() == random_indices(int(counts[position]), frames, generator).tolist()


@pytest.mark.parametrize("count", [3 << 30, 2**31 + 1, 2**32 - 1, 2**32, 2**40])
def test_rows_that_numpy_draws_again_are_numpys_too(count):
    # Of 3 * 2**30 numbers every fourth draw is rejected; no video is that long, but some draw will hit.
    counts = np.full(50, count)
    table = FrameRows(counts, 4, "random", True, 0)
    expected = [table.select_one(position, 2) for position in range(50)]
    assert table.select(np.arange(50), 2).tolist() == np.stack(expected).tolist()


def test_a_numpy_that_draws_otherwise_is_followed(monkeypatch):
    monkeypatch.setattr(
        "meidbench.features.frame_sampling.random_indices", lambda count, wanted, *rest: np.arange(wanted) + 70
    )
    rows = FrameRows(np.full(6, 100), 3, "random", True, 0).select(np.arange(6), 0)
    assert rows.tolist() == [[70, 71, 72]] * 6


# --- order ------------------------------------------------------------------------------------------


def indices(loader):
    return [batch["index"].tolist() for batch in loader]


def flat(batches):
    return [index for batch in batches for index in batch]


def test_order_follows_from_seed_and_epoch(split, packed):
    data = dataset(split, packed)
    assert flat(indices(BatchLoader(data, 4))) == list(range(VIDEOS))
    loader = BatchLoader(data, 4, shuffle=True, seed=2)
    first = indices(loader)
    assert sorted(flat(first)) == list(range(VIDEOS))
    assert first == indices(loader) == indices(BatchLoader(data, 4, shuffle=True, seed=2))
    loader.set_epoch(1)
    assert data.epoch == 1
    assert indices(loader) != first
    assert first != indices(BatchLoader(data, 4, shuffle=True, seed=3))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 4, 23, 24])
@pytest.mark.parametrize("processes", [1, 2, 5, 30])
def test_length_and_shares(split, packed, drop_last, size, processes):
    data = dataset(split, packed)
    loaders = [
        BatchLoader(data, size, shuffle=True, drop_last=drop_last, rank=rank, world_size=processes)
        for rank in range(processes)
    ]
    shares = [indices(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(share) for share in shares}
    assert len({tuple(map(len, share)) for share in shares}) == 1
    together = [index for share in shares for batch in share for index in batch]
    if not drop_last:
        assert set(together) == set(range(VIDEOS))
        assert len(together) == -(-VIDEOS // processes) * processes
    else:
        assert len(set(together)) == len(together)
        assert all(len(batch) == size for share in shares for batch in share)


class Draws:
    """A class-balanced sampler."""

    def __init__(self, labels):
        self.labels, self.epoch = labels, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 11

    def __iter__(self):
        generator = np.random.default_rng(self.epoch)
        for _ in range(len(self)):
            number = int(generator.integers(CLASSES))
            yield int(generator.choice(np.flatnonzero(self.labels[:, number]))), number


def test_a_sampler_of_pairs_is_followed(split, stored):
    data = dataset(split, stored, sampling="random")
    sampler = Draws(split.labels("train"))
    loader = BatchLoader(data, 4, sampler=sampler)
    assert len(loader) == 3
    seen = []
    for epoch in (0, 6):
        loader.set_epoch(epoch)
        assert sampler.epoch == data.epoch == epoch
        pairs = list(sampler)
        batches = list(loader)
        assert_same(batches, of_items(data, [position for position, _ in pairs], 4))
        assert flat(indices(batches)) == [position for position, _ in pairs]
        assert flat(batch["class"].tolist() for batch in batches) == [number for _, number in pairs]
        seen.append(pairs)
    assert seen[0] != seen[1]


def test_shares_of_a_sampler(split, packed):
    data = dataset(split, packed)
    sampler = [9, 1, 1, 5, 0, 2, 7]
    shares = [indices(BatchLoader(data, 2, sampler=sampler, rank=rank, world_size=2)) for rank in (0, 1)]
    assert shares == [[[9, 1], [0, 7]], [[1, 5], [2, 9]]]
    assert indices(BatchLoader(data, 2, sampler=sampler, drop_last=True, rank=1, world_size=2)) == [[1, 5]]
    assert indices(BatchLoader(data, 2, sampler=[])) == []
    assert indices(BatchLoader(data, 2, sampler=torch.utils.data.SequentialSampler(range(3)))) == [[0, 1], [2]]


def test_an_epoch_goes_on_where_it_stopped(split, packed):
    data = dataset(split, packed, sampling="random")
    loader = BatchLoader(data, 4, shuffle=True)
    loader.set_epoch(3)
    whole = list(loader)
    loader.start_at(2)
    assert_same(list(loader), whole[2:])
    assert_same(list(loader), whole)
    loader.start_at(len(loader))
    assert list(loader) == []


def test_a_later_epoch_does_not_change_what_is_under_way(split, packed):
    data = dataset(split, packed, sampling="random")
    loader = BatchLoader(data, 2)
    expected = list(loader)
    got = []
    for batch in loader:
        loader.set_epoch(len(got) + 1)
        got.append(batch)
    assert_same(got, expected)


# --- memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("resident", ["never", "always"])
def test_a_batch_that_is_kept_stays_as_it_is(split, written, prefetch, resident):
    for form in ("float32", "int8"):
        data = dataset(split, written[form])
        loader = BatchLoader(data, 2, prefetch=prefetch, resident=resident)
        # A row, an array and a product of autograd each keep the memory of a whole batch.
        rows = [batch["features"][0, 1] for batch in loader]
        arrays = [batch["features"].numpy() for batch in loader]
        whole = list(loader)
        weight = torch.ones((), requires_grad=True)
        products = [(batch["features"] * weight).sum() for batch in loader]
        for turn, expected in enumerate(of_items(data, range(VIDEOS), 2)):
            assert torch.equal(rows[turn], expected["features"][0, 1])
            np.testing.assert_array_equal(arrays[turn], expected["features"].numpy())
            assert torch.equal(whole[turn]["features"], expected["features"])
            (gradient,) = torch.autograd.grad(products[turn], weight)
            torch.testing.assert_close(gradient, expected["features"].sum())


def test_memory_is_used_again_when_a_batch_is_let_go(split, packed):
    data = dataset(split, packed)
    for prefetch in (0, 2):
        loader = BatchLoader(data, 1, prefetch=prefetch)
        places = [batch["features"].data_ptr() for _ in range(3) for batch in loader]
        assert len(places) == 3 * VIDEOS
        assert len(set(places)) <= prefetch + 2


def test_memory_that_nobody_uses_is_given_back():
    pool = BufferPool(64, kept=1)
    buffers = []
    pool._allocate = lambda: buffers.append(weakref.ref(array := np.empty(64, np.uint8))) or array
    tensors = [pool.take((16,), torch.float32) for _ in range(3)]
    del tensors
    gc.collect()
    assert sum(buffer() is not None for buffer in buffers) == 1


def test_changing_a_batch_changes_no_features(split, stored):
    data = dataset(split, stored)
    for resident in ("never", "always"):
        loader = BatchLoader(data, 4, resident=resident)
        for batch in loader:
            batch["features"].zero_()
            batch["labels"].fill_(7)
            batch["index"].zero_()
        assert_same(list(loader), of_items(data, range(VIDEOS), 4))


# --- threads ----------------------------------------------------------------------------------------


def test_an_error_names_the_video_where_its_batch_would_come(split, tmp_path):
    data = dataset(split, write("npy", tmp_path, split))
    (tmp_path / "V09.npy").unlink()
    for prefetch in (0, 2):
        iterator = iter(BatchLoader(data, 4, prefetch=prefetch))
        assert [next(iterator)["index"].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with pytest.raises(FeatureError, match="1 missing: V09"):
            next(iterator)
        assert not threads()
        assert list(iterator) == []


def test_no_thread_outlives_its_iterator(split, packed):
    loader = BatchLoader(dataset(split, packed), 1, prefetch=3)
    assert not threads()
    list(loader)
    assert not threads()
    for _ in loader:
        assert threads()
        break
    gc.collect()
    # The collector tells the threads to end and waits for none: it may run while a lock is held that they need.
    assert ended()
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert not threads()
    assert list(iterator) == []
    # In a cycle, only the collector finds it.
    cycle = [iter(loader)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert ended()


def test_iterators_may_run_at_the_same_time(split, stored):
    data = dataset(split, stored, sampling="random")
    loader = BatchLoader(data, 3)
    expected = of_items(data, range(VIDEOS), 3)
    assert_same([batch for pair in zip(loader, loader, strict=True) for batch in pair][::2], expected)
    nested = [list(loader) for _ in loader]
    assert len(nested) == len(expected)
    assert_same(nested[-1], expected)


def test_a_loader_goes_to_other_processes(split, packed):
    loader = BatchLoader(dataset(split, packed, sampling="random"), 4)
    assert_same(list(pickle.loads(pickle.dumps(loader))), list(loader))


def test_jobs_are_begun_ahead_and_no_further():
    begun, gate = [], threading.Event()

    def work(job):
        begun.append(job)
        gate.wait(10)
        return job

    iterator = Prefetcher(range(100), work, str, ahead=3)
    assert begun == []
    gate.set()
    assert [next(iterator) for _ in range(2)] == ["0", "1"]
    iterator.close()
    assert sorted(begun) == list(range(len(begun)))
    assert len(begun) <= 5


def test_python_exits_in_the_middle_of_an_epoch(split, written, tmp_path):
    program = """
import numpy as np
from meidbench.loading.batches import Prefetcher
iterator = Prefetcher(range(1000), lambda job: np.full(10, job), np.sum, ahead=2)
print(next(iterator), next(iterator))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 10\n", "")


# --- workers ----------------------------------------------------------------------------------------


@forks
@pytest.mark.parametrize(("context", "workers"), [pytest.param("fork", 2, marks=needs_fork), ("spawn", 1)])
def test_workers_read_packed_files(split, written, context, workers):
    data = dataset(split, written["int8 ragged"], sampling="random")
    data.set_epoch(2)
    expected = of_items(data, range(VIDEOS), 4)
    # A loader that is under way, and its open map, must not disturb them.
    under_way = iter(BatchLoader(data, 4))
    next(under_way)
    got = list(DataLoader(data, batch_size=4, num_workers=workers, multiprocessing_context=context))
    assert_same(got, expected)
    assert_same(list(under_way), expected[1:])


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1, got 2.0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"prefetch": -1}, "prefetch must be a whole number of at least 0"),
        ({"resident": "yes"}, "unknown resident 'yes'; known: auto, never, always"),
        ({"dtype": torch.int8}, "unknown dtype torch.int8; known: torch.float32, torch.float16, torch.bfloat16"),
        ({"rank": 2, "world_size": 2}, "rank must be less than the 2 of world_size, got 2"),
        ({"world_size": 0}, "world_size must be a whole number of at least 1, got 0"),
        ({"sampler": [0], "shuffle": True}, "a sampler has an order of its own; leave out shuffle"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(split, packed, arguments, message):
    with pytest.raises(FeatureError, match=message):
        BatchLoader(dataset(split, packed), **{"batch_size": 4, **arguments})


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ([0, 23, -1], "2 positions of the sampler are outside 0 to 22: 23, -1"),
        ([(0, 5), (1, -2)], "2 classes of the sampler are outside -1 to 4: 5, -2"),
        ([0.0, 1.0], "a sampler gives positions in the dataset, or pairs .* got 0.0, 1.0"),
        ([True], "a sampler gives positions"),
        ([(0, 1), 2], r"a sampler gives positions .* got \(0, 1\), 2"),
        ([(0, 1, 2)], "a sampler gives positions"),
        (["V00"], "a sampler gives positions"),
    ],
)
def test_what_samplers_must_not_give_is_refused(split, packed, sampler, message):
    with pytest.raises(FeatureError, match=message):
        iter(BatchLoader(dataset(split, packed), 4, sampler=sampler))


def test_batches_to_start_at_must_make_sense(split, packed):
    with pytest.raises(FeatureError, match="batch must be a whole number of at least 0, got -1"):
        BatchLoader(dataset(split, packed), 4).start_at(-1)


# --- devices ----------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("resident", ["never", "auto", "always"])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("motion", [None, *MOTIONS.values()], ids=["none", *MOTIONS])
def test_batches_on_a_cuda_device_are_the_items(split, stored, resident, prefetch, motion):
    data = dataset(split, stored, sampling="random", motion=motion)
    loader = BatchLoader(data, 4, device="cuda", resident=resident, prefetch=prefetch)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert all(value.is_cuda for batch in batches for value in batch.values() if isinstance(value, torch.Tensor))
        assert_same([{**batch, "labels": batch["labels"].cpu()} for batch in batches], of_items(data, range(VIDEOS), 4))


# --- other processes and threads with a half-read iterator ------------------------------------------------------------


@forks
@needs_fork
def test_a_forked_child_with_a_half_read_iterator_of_its_parent_is_refused(split, packed):
    loader = BatchLoader(dataset(split, packed), 1)
    batches, result = iter(loader), os.pipe()
    next(batches)
    if (child := os.fork()) == 0:
        try:
            next(batches)
            said = b"a batch"
        except FeatureError as error:
            said = str(error).encode()
        os.write(result[1], said)
        os._exit(0)
    os.waitpid(child, 0)
    assert b"belongs to the process that forked this one" in os.read(result[0], 1000)
    assert len(list(batches)) == len(loader) - 1  # the parent's goes on
    for descriptor in result:
        os.close(descriptor)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_thread_that_asks_while_another_waits_is_refused_and_loses_nothing(ahead):
    gate, begun, told = threading.Event(), threading.Event(), []

    def work(job):
        begun.set()
        assert gate.wait(10)
        return job

    iterator = Prefetcher(range(5), work, str, ahead=ahead)
    other = threading.Thread(target=lambda: told.extend(iterator))
    other.start()
    assert begun.wait(10)
    while not iterator._is_asked.locked():
        pass
    with pytest.raises(FeatureError, match="another thread waits for the next item"):
        next(iterator)
    gate.set()
    other.join(10)
    assert told == ["0", "1", "2", "3", "4"]
