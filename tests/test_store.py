"""The feature file against h5py reading it plainly, and every way in which the writing of one can be cut short."""

import errno
import json
import os
import pickle
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import torch

from meidbench.errors import FeatureError
from meidbench.features import PackedFile, open_features, store
from meidbench.features.feature_file import STATUSES, Layout, create, read_header
from meidbench.features.records import VideoRows, read_rows
from meidbench.features.store import feature_writer, partial_path
from meidbench.loading.datasets import RowTable, VideoReader

IDS = ("ATOYW", "Zürich", "zz..top")
RECIPE = {"backbone": "resnet50", "weights": {"sha256": "ab"}, "libraries": {"torch": "2.0"}}


def make_layout(rows=(4, 4, 4), fixed=True, dim=6, dtype="float16", ids=IDS, sizes=None, timed=True):
    return Layout(ids, np.array(rows), fixed, dim, dtype, timed, np.array(sizes or [10] * len(ids)))


def make_video(rows, dim=6, dtype=np.float16, seed=0, **facts):
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(dtype)
    return VideoRows(
        values,
        frame_indices=np.arange(rows, dtype=np.int32) * 3,
        timestamps=np.arange(rows) / 24,
        num_source_frames=rows * 3,
        **facts,
    )


def write(path, layout, videos, recipe=RECIPE, **options):
    with feature_writer(path, layout, recipe, **options) as writer:
        for position, video in videos.items():
            writer.put(position, video)
        if not len(writer.pending):
            writer.finish()
    return path


def failed(reason="no video stream", dim=6):
    return VideoRows(np.empty((0, dim), np.float16), status="failed", reason=reason)


VIDEOS = {0: make_video(4, seed=1), 1: make_video(4, seed=2, status="salvaged", reason="cut"), 2: failed()}


# --- what lies in the file ------------------------------------------------------------------------


def test_h5py_reads_what_was_put(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    with h5py.File(path) as file:
        assert file["features"].shape == (3, 4, 6) and file["features"].dtype == np.float16
        assert file["features"].chunks is None and file["features"].compression is None
        assert [name.decode() for name in file["video_ids"]] == list(IDS)
        np.testing.assert_array_equal(file["features"][0], VIDEOS[0].rows)
        np.testing.assert_array_equal(file["features"][1], VIDEOS[1].rows)
        assert list(file["status"]) == [1, 2, 3]
        assert h5py.check_enum_dtype(file["status"].dtype) == {name: code for code, name in enumerate(STATUSES)}
        np.testing.assert_array_equal(file["frame_indices"][0], [0, 3, 6, 9])
        np.testing.assert_array_equal(file["timestamps"][1], np.arange(4) / 24)
        assert list(file["row_counts"]) == [4, 4, 0] and list(file["num_source_frames"]) == [12, 12, 0]
        assert [reason.decode() for reason in file["reasons"]] == ["", "cut", "no video stream"]
        assert file["checksums"][0] == zlib.crc32(VIDEOS[0].rows.tobytes())
        assert json.loads(file.attrs["recipe"]) == RECIPE


def test_rows_of_a_page_begin_on_a_page(tmp_path):
    create(tmp_path / "f.h5", make_layout(dim=2048), RECIPE)
    assert read_header(tmp_path / "f.h5").offsets["features"] % 4096 == 0


def test_videos_of_different_lengths_lie_end_to_end(tmp_path):
    videos = {0: make_video(2, seed=1), 1: make_video(5, seed=2), 2: make_video(1, seed=3)}
    path = write(tmp_path / "f.h5", make_layout((2, 5, 1), fixed=False), videos)
    with h5py.File(path) as file:
        assert file["features"].shape == (8, 6)
        assert list(file["row_starts"]) == [0, 2, 7] and list(file["row_counts"]) == [2, 5, 1]
        np.testing.assert_array_equal(file["features"][2:7], videos[1].rows)
    source = open_features(path)
    for position, video_id in enumerate(IDS):
        np.testing.assert_array_equal(source.read(video_id), videos[position].rows)
        assert source.num_frames(video_id) == len(videos[position].rows)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path):
    first = write(tmp_path / "a.h5", make_layout(), VIDEOS)
    second = write(tmp_path / "b.h5", make_layout(), dict(reversed(VIDEOS.items())))
    assert first.read_bytes() == second.read_bytes()


def test_a_video_reads_back_as_it_was_put(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    header = read_header(path)
    with path.open("rb") as stream:
        for position, video in VIDEOS.items():
            back = read_rows(stream, header, position)
            np.testing.assert_array_equal(back.rows, video.rows)
            assert (back.status, back.reason, back.checksum()) == (video.status, video.reason, video.checksum())


def test_a_long_reason_is_cut_between_characters(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(ids=("a",), rows=(4,)), {0: failed("ü" * 150)})
    with pytest.raises(FeatureError, match=rf"1 could not be extracted: a \({'ü' * 100}\)"):
        open_features(path).read("a")


# --- reading ---------------------------------------------------------------------------------------


def test_pending_and_failed_videos_are_refused_with_the_reason(tmp_path):
    write(tmp_path / "f.h5", make_layout(), {0: VIDEOS[0], 2: VIDEOS[2]})
    source = open_features(partial_path(tmp_path / "f.h5"))
    np.testing.assert_array_equal(source.read("ATOYW", [3, 0, 3]), VIDEOS[0].rows[[3, 0, 3]])
    with pytest.raises(FeatureError) as caught:
        source.check([*IDS, "gone"])
    assert caught.value.args[0].splitlines()[1:4] == [
        "  - 1 missing: gone",
        "  - 1 not there yet (the file is not finished): Zürich",
        "  - 1 could not be extracted: zz..top (no video stream)",
    ]


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("options", [{}, {"chunks": True}, {"compression": "gzip", "shuffle": True}])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_packed_files_of_others_are_read(tmp_path, fixed, options, dtype):
    values = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(dtype)
    with h5py.File(tmp_path / "f.h5", "w", userblock_size=512) as file:
        file.create_dataset("features", data=values if fixed else values.reshape(15, 7), **options)
        file["video_ids"] = ["x", "ü", "z"]
        if not fixed:
            file["row_starts"], file["row_counts"] = [0, 5, 10], [5, 5, 5]
    source = open_features(tmp_path / "f.h5")
    assert isinstance(source, PackedFile) and source.mapped == (not options)
    assert list(source.check(["z", "x"])) == [5, 5] and source.dim == 7
    np.testing.assert_array_equal(source.read("ü"), values[1])
    np.testing.assert_array_equal(source.read("z", [4, 0, 0]), values[2][[4, 0, 0]])
    rows = np.array([[0, 1, 4], [2, 2, 2]])
    out = np.stack([source.read(name, taken) for name, taken in zip("zx", rows, strict=True)])
    np.testing.assert_array_equal(out, np.stack([values[2][rows[0]], values[0][rows[1]]]))
    ids, counts = ["ü", "z", "x"], np.array([5, 5, 5])
    in_place = source.mapped and source.dtype.isnative
    stored = RowTable.from_packed_file(source, ids, counts) if in_place else VideoReader(source, ids, counts)
    filled = torch.empty((2, 3, 7), dtype=stored.dtype)
    stored.fill(np.array([1, 2]), rows, filled)
    np.testing.assert_array_equal(filled, out.astype(filled.numpy().dtype))
    with pytest.raises(FeatureError, match="video x in .* has rows 0 to 4; asked for 5"):
        source.read("x", [5])
    with pytest.raises(FeatureError, match="rows 0 to 4; asked for -1"):
        source.read("x", [-1])


def test_int8_rows_come_back_scaled(tmp_path):
    stored = np.array([[127, -127, 3], [1, 0, 64]], np.int8)
    scales = np.array([0.5, 2.0], np.float32)
    layout = make_layout((2,), ids=("a",), dim=3, dtype="int8", timed=False)
    path = write(tmp_path / "f.h5", layout, {0: VideoRows(stored, scales=scales)})
    source = open_features(path)
    back = source.read("a", [1, 0])
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, (stored * scales[:, None])[[1, 0]])


def _read_elsewhere(source):
    return source.read("ATOYW", [1])


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_a_packed_file_goes_to_other_processes(tmp_path, options):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("features", data=np.ones((1, 2, 3), np.float32), **options)
        file["video_ids"] = ["ATOYW"]
    source = open_features(tmp_path / "f.h5")
    source.read("ATOYW")
    assert len(pickle.dumps(source)) < 2000
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(_read_elsewhere, source).result(), np.ones((1, 3)))


@pytest.mark.parametrize(
    ("damage", "ours", "theirs"),
    [
        (lambda file: file.__delitem__("video_ids"), "it lacks video_ids", "no /video_ids"),
        (lambda file: file["row_counts"].__setitem__(0, 5), "a number of rows that cannot be", "outside /features"),
        (lambda file: file["row_counts"].__setitem__(0, -1), "a number of rows that cannot be", "outside /features"),
        (
            lambda file: file.move("status", "other") or file.__setitem__("status", [1, 1]),
            r"status is int64 of \(2,\), expected uint8 of \(3,\)",
            "contradicts itself",
        ),
        (
            lambda file: file.__delitem__("features") or file.__setitem__("features", np.ones((3, 4))),
            "it lacks row_starts",
            "outside /features",  # without it, (V, D) is one row per video
        ),
        (
            lambda file: file.__delitem__("features") or file.__setitem__("features", np.ones(4)),
            r"features has shape \(4,\)",
            "has shape",
        ),
        (
            lambda file: file.__delitem__("features") or file.__setitem__("features", np.ones((3, 4, 6), int)),
            "int64",
            "int64",
        ),
    ],
)
def test_a_packed_file_that_contradicts_itself_is_refused(tmp_path, damage, ours, theirs):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    with h5py.File(path, "r+") as file, h5py.File(tmp_path / "theirs.h5", "w") as other:
        for name in file:
            file.copy(name, other)
        damage(file)
        damage(other)
    with pytest.raises(FeatureError, match=ours):
        open_features(path)
    with pytest.raises(FeatureError, match=theirs):
        open_features(tmp_path / "theirs.h5")


# --- going on --------------------------------------------------------------------------------------


def test_a_file_has_its_name_only_when_every_video_has_its_say(tmp_path):
    path = tmp_path / "f.h5"
    write(path, make_layout(), {0: VIDEOS[0]})
    assert not path.exists() and partial_path(path).exists()
    with (
        feature_writer(path, make_layout(), RECIPE) as writer,
        pytest.raises(FeatureError, match="2 videos are not there yet: Zürich, zz..top"),
    ):
        writer.finish()
    said = []
    write(path, make_layout(), {1: VIDEOS[1], 2: VIDEOS[2]}, report=said.append)
    assert said == [f"{partial_path(path)}: 1 of 3 videos are there already"]
    assert path.read_bytes() == write(tmp_path / "g.h5", make_layout(), VIDEOS).read_bytes()
    assert [entry.name for entry in tmp_path.iterdir() if "f.h5" in entry.name] == ["f.h5"]


def test_a_whole_file_is_left_alone(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    path.chmod(0o444)
    before = path.stat().st_mtime_ns
    with feature_writer(path, make_layout(), RECIPE) as writer:
        assert not len(writer.pending)
        writer.finish()
    assert path.stat().st_mtime_ns == before


def test_what_failed_is_tried_again_when_asked_for(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    with feature_writer(path, make_layout(), RECIPE, retry_failed=True) as writer:
        assert list(writer.pending) == [2]
        assert read_header(path).status[2] == STATUSES.index("failed")
        writer.put(2, make_video(4, seed=3))
        writer.finish()
    source = open_features(path)
    np.testing.assert_array_equal(source.read("zz..top"), make_video(4, seed=3).rows)
    np.testing.assert_array_equal(source.read("ATOYW"), VIDEOS[0].rows)


def test_of_another_list_of_videos_the_same_ones_are_taken_over(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    longer = make_layout((4,) * 4, ids=("AA", *IDS), sizes=[1, 10, 11, 10])  # one new, one changed
    with feature_writer(path, longer, RECIPE) as writer:
        assert [longer.video_ids[position] for position in writer.pending] == ["AA", "Zürich"]
        writer.put(0, make_video(4, seed=8))
        writer.put(2, make_video(4, seed=9))
        assert open_features(path).read("Zürich").tobytes() == VIDEOS[1].rows.tobytes()  # still the old file
        writer.finish()
    source = open_features(path)
    np.testing.assert_array_equal(source.read("ATOYW"), VIDEOS[0].rows)
    np.testing.assert_array_equal(source.read("Zürich"), make_video(4, seed=9).rows)


def test_other_settings_are_refused_and_named(tmp_path):
    write(tmp_path / "f.h5", make_layout(), {0: VIDEOS[0]})
    other = {**RECIPE, "backbone": "resnet101", "libraries": {"torch": "2.1"}}
    with pytest.raises(FeatureError) as caught:
        write(tmp_path / "f.h5", make_layout(), {}, recipe=other)
    assert "  - backbone: resnet50 there, resnet101 now\nRepeat those" in str(caught.value)
    assert "torch" not in str(caught.value)
    assert list(read_header(partial_path(tmp_path / "f.h5")).status) == [1, 0, 0]


def test_what_is_no_feature_file_is_not_written_over(tmp_path):
    (tmp_path / "f.h5").write_text("my thesis")
    with pytest.raises(FeatureError, match="damaged, or not a feature file"):
        write(tmp_path / "f.h5", make_layout(), VIDEOS)
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["thesis"] = [1]
    with pytest.raises(FeatureError, match="not a feature file of meidbench"):
        write(tmp_path / "g.h5", make_layout(), VIDEOS)
    assert (tmp_path / "f.h5").read_text() == "my thesis"


def test_two_writers_of_one_file_are_kept_apart(tmp_path):
    with (
        feature_writer(tmp_path / "f.h5", make_layout(), RECIPE),
        pytest.raises(FeatureError, match="another process is writing"),
        feature_writer(tmp_path / "f.h5", make_layout(), RECIPE),
    ):
        pass


def test_leftovers_of_a_killed_run_are_cleared_away(tmp_path):
    (tmp_path / ".f.h5.partial.0123456789ab").write_bytes(b"half a skeleton")
    others = [".f.h5.other", ".f.h5.partial.json.0123456789ab", ".f.h5.partial.lock"]  # of other outputs
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    write(tmp_path / "f.h5", make_layout(), VIDEOS)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [*others, "f.h5"]


def test_a_full_disk_leaves_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "f.h5"
    with pytest.raises(FeatureError) as caught, feature_writer(path, make_layout(), RECIPE) as writer:
        writer.put(0, VIDEOS[0])
        writer.commit()
        stream = writer._stream

        class Full:
            closed = False

            def __getattr__(self, name):
                return getattr(stream, name)

            def write(self, data):
                if len(data) > 8:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return stream.write(data)

        writer._stream = Full()
        writer.put(1, VIDEOS[1])
    assert "no space is left" in str(caught.value) and "1 of 3 videos are safe" in str(caught.value)
    source = open_features(partial_path(path))
    np.testing.assert_array_equal(source.read("ATOYW"), VIDEOS[0].rows)
    assert write(path, make_layout(), {1: VIDEOS[1], 2: VIDEOS[2]}).exists()


def test_too_little_space_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(FeatureError, match=r"will take 72,000.0 GB, and .* GB are free"):
        write(tmp_path / "f.h5", make_layout((10**12,) * 3), {})
    assert not partial_path(tmp_path / "f.h5").exists()


def test_rows_reach_the_disk_before_the_status_that_vouches_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_COMMIT_EVERY", 1e9)
    events = []
    real_sync, real_write = os.fsync, store.FeatureWriter._write
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("sync") or real_sync(descriptor))
    monkeypatch.setattr(
        store.FeatureWriter, "_write", lambda self, name, *rest: events.append(name) or real_write(self, name, *rest)
    )
    with feature_writer(tmp_path / "f.h5", make_layout(), RECIPE) as writer:
        events.clear()
        writer.put(0, VIDEOS[0])
        assert "features" in events and "status" not in events
        writer.commit()
    assert events.index("features") < events.index("sync") < events.index("status")


# --- misuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (make_video(3), "has 3 rows, there is room for 4"),
        (make_video(5), "has 5 rows, there is room for 4"),
        (make_video(4, dim=5), r"video ATOYW: \(4, 5\) float16, expected rows of 6 float16"),
        (make_video(4, dtype=np.float32), "float32, expected rows of 6 float16"),
        (VideoRows(np.ones((1, 6), np.float16), status="failed"), "failed and yet has rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, video, message):
    with (
        pytest.raises(FeatureError, match=message),
        feature_writer(tmp_path / "f.h5", make_layout(), RECIPE) as writer,
    ):
        writer.put(0, video)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": ()},
        {"ids": ("b", "a", "c")},
        {"ids": ("a", "a", "b")},
        {"dtype": "float64"},
        {"dim": 0},
        {"rows": (1, 2, 3)},
        {"rows": (4, 4)},
        {"rows": (4, -1, 4), "fixed": False},
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(FeatureError):
        make_layout(**wrong)


def test_a_file_of_failures_only_can_be_written_and_read(tmp_path):
    layout = make_layout((0, 0, 0), fixed=False)
    path = write(tmp_path / "f.h5", layout, {position: failed() for position in range(3)})
    with pytest.raises(FeatureError, match="3 could not be extracted"):
        open_features(path).check(IDS)


def test_a_later_version_is_refused(tmp_path):
    create(tmp_path / "f.h5", make_layout(), RECIPE)
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(FeatureError, match="version 9"):
        read_header(tmp_path / "f.h5")


def test_a_write_that_was_lost_is_not_vouched_for_later(tmp_path, monkeypatch):
    """The system reports once that rows could not be written; the next fsync succeeds."""
    real, calls = os.fsync, []

    def fails_once(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    path = tmp_path / "f.h5"
    with pytest.raises(FeatureError, match="no space is left"), feature_writer(path, make_layout(), RECIPE) as writer:
        monkeypatch.setattr(os, "fsync", fails_once)
        for position, video in VIDEOS.items():
            writer.put(position, video)
        writer.finish()
    assert read_header(partial_path(path)).status.tolist() == [0, 0, 0]


def test_finished_videos_are_not_thrown_away_by_a_shorter_list(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    before = path.read_bytes()
    with pytest.raises(FeatureError, match="holds 1 video that is not to be written now.*ATOYW"):
        write(path, make_layout((4, 4), ids=IDS[1:]), {})
    assert path.read_bytes() == before


def test_rows_that_were_damaged_since_are_not_taken_over(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    with path.open("r+b") as stream:
        stream.seek(read_header(path).offsets["features"])
        stream.write(b"\xff")
    longer = make_layout((4,) * 4, ids=("AA", *IDS))
    with feature_writer(path, longer, RECIPE) as writer:
        assert [longer.video_ids[position] for position in writer.pending] == ["AA", "ATOYW"]


def test_an_unfinished_file_under_the_final_name_is_gone_on_with(tmp_path):
    path = tmp_path / "f.h5"
    write(path, make_layout(), {0: VIDEOS[0]})
    partial_path(path).rename(path)
    write(path, make_layout(), {1: VIDEOS[1], 2: VIDEOS[2]})
    assert path.read_bytes() == write(tmp_path / "g.h5", make_layout(), VIDEOS).read_bytes()


def test_another_try_that_is_cut_short_leaves_a_video_pending_not_half_done(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_COMMIT_EVERY", 1e9)
    path = tmp_path / "f.h5"
    write(path, make_layout(), {2: VIDEOS[2]})
    with feature_writer(path, make_layout(), RECIPE, retry_failed=True) as writer:
        writer.put(2, make_video(4, seed=3))
        writer._uncommitted.clear()  # as if killed here
    assert read_header(partial_path(path)).status.tolist() == [0, 0, 0]


def test_a_name_that_is_no_utf8_is_no_id(tmp_path):
    path = write(tmp_path / "f.h5", make_layout(), VIDEOS)
    with pytest.raises(FeatureError, match="1 no usable id .*not UTF-8"):
        open_features(path).check(["caf\udce9"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features": np.ones((4, 3)), "video_ids": ["a"], "row_starts": [0]}, "row_counts"),
        ({"features": np.ones((1, 4, 3)), "video_ids": [7]}, r"ids of .* are int64 .*; expected texts"),
        ({"features": np.ones((1, 4, 3)), "video_ids": ["a"], "status": ["ok"]}, "cannot be used"),
    ],
)
def test_packed_files_of_others_that_lack_something_are_refused(tmp_path, content, message):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    with pytest.raises(FeatureError, match=message):
        open_features(tmp_path / "f.h5")
