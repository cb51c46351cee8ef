"""Packing against plain numpy and h5py: every number, every way to stop half way, every file that cannot be packed."""

import errno
import json
import multiprocessing
import os
import signal
import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from meidbench.cli.features import pack_features
from meidbench.errors import FeatureError, OutputError
from meidbench.features import open_features
from meidbench.features.feature_file import DTYPES, STATUSES, Layout, read_header
from meidbench.features.packing import pack
from meidbench.features.records import VideoRows, all_finite, decode, encode, is_faithful
from meidbench.features.store import FeatureWriter, feature_writer, partial_path
from meidbench.features.verification import verify
from meidbench.names import STORED_DTYPES

WIDTH = 33
FIXED = {f"video{number:02}": 5 for number in range(12)}
RAGGED = {"a": 4, "b": 1, "c..d": 9, "-e": 3, "é": 2}
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def make_folder(path, lengths, dtype=np.float32, seed=0):
    """Write a .npy for each video, and return the arrays."""
    generator = np.random.default_rng(seed)
    path.mkdir(exist_ok=True)
    arrays = {}
    for video_id, rows in lengths.items():
        arrays[video_id] = (3 * generator.standard_normal((rows, WIDTH))).astype(dtype)
        np.save(path / f"{video_id}.npy", arrays[video_id])
    return arrays


def plain(path):
    """Read a feature file with h5py alone: {id: rows}."""
    with h5py.File(path, "r") as file:
        ids = [raw.decode() for raw in file["video_ids"][:]]
        if file["features"].ndim == 3:
            return dict(zip(ids, file["features"][:], strict=True))
        ends = file["row_starts"][:] + file["row_counts"][:]
        return {name: file["features"][a:b] for name, a, b in zip(ids, file["row_starts"][:], ends, strict=True)}


def invoke(*arguments):
    return CliRunner().invoke(pack_features, [str(argument) for argument in arguments])


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_every_bit_is_that_of_numpys_conversion(source_dtype):
    # All halves, their neighbours in single precision, the midpoints between them, and numbers that vanish.
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float64)
    with np.errstate(all="ignore"):
        ordered = np.unique(halves)
        middles = (ordered[1:] + ordered[:-1]) / 2
        numbers = np.concatenate([ordered, middles, np.nextafter(middles.astype(np.float32), np.float32(0)), [1e-30]])
        numbers = numbers.astype(source_dtype)
        numbers = numbers[np.abs(numbers.astype(np.float64)) < 65520].reshape(1, -1)
        for dtype in ("float16", "float32"):
            stored, scales = encode(numbers, dtype)
            expected = numbers.astype(dtype)
            assert stored.dtype == expected.dtype and scales is None
            assert stored.tobytes() == expected.tobytes()
            assert is_faithful(numbers, stored, None)


@settings(max_examples=50)
@given(
    arrays_of.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_int8_is_off_by_half_the_scale_at_most(rows):
    stored, scales = encode(rows, "int8")
    assert stored.dtype == np.int8 and scales.dtype == np.float32
    largest = np.abs(rows.astype(np.float64)).max(axis=1)
    normal = largest > 1e-30
    np.testing.assert_allclose(scales[normal], largest[normal] / 127, rtol=1e-6)
    error = np.abs(stored.astype(np.float64) * scales.astype(np.float64)[:, None] - rows.astype(np.float64))
    assert (error <= scales[:, None] * 0.50002).all()
    assert is_faithful(rows, stored, scales)
    np.testing.assert_array_equal(decode(stored, scales), stored.astype(np.float32) * scales[:, None])


def test_the_largest_numbers_survive_int8():
    largest = np.finfo(np.float32).max
    rows = np.array([[largest, -largest, largest / 3]], np.float32)
    read = decode(*encode(rows, "int8"))
    assert np.isfinite(read).all() and (np.abs(read.astype(float) - rows) <= float(largest) / 127 / 1.999).all()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_row_that_is_off_is_noticed(dtype):
    rows = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    stored, scales = encode(rows, dtype)
    assert is_faithful(rows, stored, scales)
    stored = stored.copy()
    stored[1, 7] = np.nextafter(stored[1, 7], stored.dtype.type(9)) if dtype != "int8" else stored[1, 7] + 1
    assert not is_faithful(rows, stored, scales)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_found_and_named(dtype, odd):
    rows = np.ones((4, 3), dtype)
    assert all_finite(rows)
    rows[2, 1] = odd
    assert not all_finite(rows)
    with pytest.raises(FeatureError, match="NaN or infinity in 1 of 4 rows, the first is row 2"):
        encode(rows, "float32")


def test_numbers_that_are_too_large_are_refused_and_the_largest_half_is_not():
    assert encode(np.array([[65504.0, -65519.9]], np.float32), "float16")[0].tolist() == [[65504.0, -65504.0]]
    with pytest.raises(FeatureError, match="numbers up to 65520 do not fit float16, which ends at 65504"):
        encode(np.array([[1.0, 65520.0]], np.float32), "float16")
    with pytest.raises(FeatureError, match=r"numbers up to 1e\+39 do not fit float32"):
        encode(np.array([[1e39]]), "int8")
    with pytest.raises(FeatureError, match="unknown dtype 'bf16'; known: float16, float32, int8"):
        encode(np.ones((1, 1)), "bf16")


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [FIXED, RAGGED], ids=["fixed", "ragged"])
@pytest.mark.parametrize("source_dtype", [np.float16, np.float32, np.float64])
def test_a_packed_file_holds_what_the_folder_held(tmp_path, lengths, source_dtype):
    arrays = make_folder(tmp_path / "npy", lengths, source_dtype)
    for dtype in ("float16", "float32"):
        summary = pack(tmp_path / "npy", tmp_path / f"{dtype}.h5", dtype=dtype, backbone="r101")
        stored = plain(summary.path)
        assert list(stored) == sorted(arrays)
        source = open_features(summary.path)
        for video_id, array in arrays.items():
            assert stored[video_id].tobytes() == array.astype(dtype).tobytes()
            np.testing.assert_array_equal(source.read(video_id), array.astype(dtype))
        assert (summary.videos, summary.packed, summary.found) == (len(lengths), len(lengths), 0)
        assert (summary.rows, summary.dim, summary.fixed) == (sum(lengths.values()), WIDTH, lengths is FIXED)
        assert summary.is_complete and summary.num_bytes == summary.path.stat().st_size
        with h5py.File(summary.path) as file:
            recipe = json.loads(file.attrs["recipe"])
            assert file["features"].ndim == (3 if lengths is FIXED else 2)
            sizes = [(tmp_path / "npy" / f"{video_id}.npy").stat().st_size for video_id in sorted(arrays)]
            assert file["source_sizes"][:].tolist() == sizes
        libraries = recipe.pop("libraries")
        assert recipe == {
            "made_by": "pack-features",
            "source": "VIDEO_ID.npy folder",
            "dtype": dtype,
            "backbone": "r101",
        }
        assert {"numpy", "torch", "h5py", "meidbench"} == libraries.keys()


def test_int8_is_read_as_numbers(tmp_path):
    arrays = make_folder(tmp_path / "npy", RAGGED)
    source = open_features(pack(tmp_path / "npy", tmp_path / "f.h5", dtype="int8").path)
    for video_id, array in arrays.items():
        scales = np.abs(array).max(axis=1, keepdims=True) / np.float32(127)
        read = source.read(video_id)
        assert read.dtype == np.float32
        assert (np.abs(read - array) <= scales * 0.5001).all()
        np.testing.assert_allclose(read, np.rint(array / scales) * scales, rtol=1e-6, atol=1e-9)


def test_fortran_order_and_grouped_hdf5_are_packed_alike(tmp_path):
    arrays = make_folder(tmp_path / "npy", RAGGED)
    for video_id, array in arrays.items():
        np.save(tmp_path / "npy" / f"{video_id}.npy", np.asfortranarray(array))
    with h5py.File(tmp_path / "grouped.h5", "w") as file:
        for video_id, array in arrays.items():
            file[f"features/{video_id}"] = array
    for source in (tmp_path / "npy", tmp_path / "grouped.h5", open_features(tmp_path / "grouped.h5")):
        out = tmp_path / f"{type(source).__name__}{getattr(source, 'suffix', '')}.out"
        stored = plain(pack(source, out).path)
        for video_id, array in arrays.items():
            assert stored[video_id].tobytes() == array.astype(np.float16).tobytes()


def test_a_feature_file_is_packed_with_all_that_it_knows(tmp_path):
    layout = Layout(("a", "b", "c"), np.array([3, 2, 4]), False, WIDTH, "float32", True, np.array([7, 8, 9]))
    rows = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    with feature_writer(first, layout, {"backbone": "r50", "frames": 3}) as writer:
        times = np.array([0.0, 0.5, 1.0])
        indices = np.array([0, 12, 24], np.int32)
        writer.put(0, VideoRows(rows, "salvaged", "cut short", None, indices, times, 31, 2))
        writer.put(1, VideoRows(rows[:0], "failed", "no video stream"))
        writer.put(
            2, VideoRows(np.vstack([rows, rows[:1]]), "ok", "", None, np.arange(4, dtype=np.int32), np.arange(4.0))
        )
        writer.finish()
    summary = pack(first, second)
    assert summary.failed == {"b": "could not be extracted (no video stream)"}
    with h5py.File(second) as file:
        recipe = json.loads(file.attrs["recipe"])
        assert (recipe["backbone"], recipe["frames"], recipe["dtype"]) == ("r50", 3, "float16")
        assert [STATUSES[code] for code in file["status"][:]] == ["salvaged", "failed", "ok"]
        assert file["reasons"][0].decode() == "cut short"
        assert file["timestamps"][:3].tolist() == [0.0, 0.5, 1.0]
        assert file["frame_indices"][:3].tolist() == [0, 12, 24]
        assert (file["num_source_frames"][0], file["corrupt_frames"][0]) == (31, 2)
        assert file["features"][:3].tobytes() == rows.astype(np.float16).tobytes()


def test_a_damaged_feature_file_is_not_packed_as_if_it_were_whole(tmp_path):
    make_folder(tmp_path / "npy", FIXED)
    first = pack(tmp_path / "npy", tmp_path / "first.h5", dtype="float32").path
    with h5py.File(first) as file:
        offset = file["features"].id.get_offset()
    with first.open("r+b") as stream:
        stream.seek(offset + 2 * 5 * WIDTH * 4)  # the third video
        stream.write(b"\x01")
    summary = pack(first, tmp_path / "second.h5")
    assert list(summary.failed) == ["video02"] and "checksum differs" in summary.failed["video02"]


# --- what cannot be packed ------------------------------------------------------------------------


def spoil(folder):
    """Add a file of each kind that cannot be packed; return what must be said of each."""
    good = (folder / "video00.npy").read_bytes()
    (folder / "cut.npy").write_bytes(good[:-1])
    (folder / "stub.npy").write_bytes(good[:9])
    (folder / "text.npy").write_text("not at all " * 30)
    odd = np.ones((5, WIDTH), np.float32)
    odd[3, 1] = np.nan
    np.save(folder / "nan.npy", odd)
    np.save(folder / "large.npy", np.full((5, WIDTH), 1e6))
    np.save(folder / "wide.npy", np.ones((5, WIDTH + 1), np.float32))
    np.save(folder / "objects.npy", np.array([[{}]]), allow_pickle=True)
    np.save(folder / "none.npy", np.ones((0, WIDTH), np.float32))
    np.save(folder / "whole.npy", np.ones((5, WIDTH), np.int32))
    (folder / "folder.npy").mkdir()
    return {
        "cut": "truncated (787 of 788 bytes)",
        "stub": "truncated (9 bytes)",
        "text": "not a .npy file",
        "nan": "NaN or infinity in 1 of 5 rows, the first is row 3",
        "large": r"numbers up to 1e+06 do not fit float16",
        "wide": "34 numbers per row, most videos have 33",
        "objects": "pickled Python objects, which are never loaded",
        "none": "empty",
        "whole": "not float16, float32 or float64 (int32)",
        "folder": "cannot be read",
    }


def test_what_cannot_be_packed_is_recorded_and_the_rest_goes_on(tmp_path):
    arrays = make_folder(tmp_path / "npy", FIXED)
    expected = spoil(tmp_path / "npy")
    outcome = invoke(tmp_path / "npy", "--out", tmp_path / "f.h5", "--json")
    assert outcome.exit_code == 1
    failed = json.loads(outcome.stdout)["failed"]
    assert failed.keys() == expected.keys()
    for video_id, text in expected.items():
        assert text in failed[video_id]
    source = open_features(tmp_path / "f.h5")
    for video_id, array in arrays.items():
        np.testing.assert_array_equal(source.read(video_id), array.astype(np.float16))
    for video_id, text in expected.items():
        with pytest.raises(FeatureError, match="could not be extracted") as caught:
            source.read(video_id)
        assert text in str(caught.value)

    table = invoke(tmp_path / "npy", "--out", tmp_path / "f.h5")
    assert table.exit_code == 1
    assert "packed   0 of 22 videos (22 were there already): 60 rows of 33 float16" in table.stdout
    assert "failed   10 videos\n  - cut: truncated" in table.stdout and "  and 5 more" in table.stdout


def test_what_failed_is_tried_again_where_asked_or_where_its_file_changed(tmp_path):
    make_folder(tmp_path / "npy", FIXED)
    bad = np.ones((5, WIDTH), np.float32)
    bad[0] = np.inf
    np.save(tmp_path / "npy" / "zzz.npy", bad)
    (tmp_path / "npy" / "cut.npy").write_bytes((tmp_path / "npy" / "video00.npy").read_bytes()[:-1])
    assert pack(tmp_path / "npy", tmp_path / "f.h5").failed.keys() == {"zzz", "cut"}
    np.save(tmp_path / "npy" / "zzz.npy", np.ones((5, WIDTH), np.float32))  # the same size as before
    (tmp_path / "npy" / "cut.npy").write_bytes((tmp_path / "npy" / "video00.npy").read_bytes())
    again = pack(tmp_path / "npy", tmp_path / "f.h5")
    assert (again.packed, list(again.failed)) == (1, ["zzz"])
    outcome = invoke(tmp_path / "npy", "--out", tmp_path / "f.h5", "--retry-failed")
    assert outcome.exit_code == 0 and "packed   1 of 14 videos (13 were there already)" in outcome.stdout
    stored = plain(tmp_path / "f.h5")
    assert (stored["zzz"] == 1).all() and (stored["cut"] == stored["video00"]).all()


def test_a_split_limits_what_is_packed_and_what_it_misses_is_named(tmp_path, toy_split, toy_split_file):
    ids = toy_split.table.column("video_id").to_pylist()
    make_folder(tmp_path / "npy", dict.fromkeys([*ids[3:], "another"], 2))
    outcome = invoke(tmp_path / "npy", "--out", tmp_path / "f.h5", "--split", toy_split_file)
    assert outcome.exit_code == 1
    assert f"missing  3 videos of the split: {', '.join(sorted(ids[:3]))}\n" in outcome.stdout
    assert set(plain(tmp_path / "f.h5")) == set(ids[3:])


def test_a_folder_without_a_usable_video_is_refused(tmp_path):
    (tmp_path / "npy").mkdir()
    with pytest.raises(FeatureError, match="there are no features in .*npy; expected a feature file"):
        pack(tmp_path / "npy", tmp_path / "f.h5")
    (tmp_path / "npy" / "._copied.npy").write_bytes(b"of a file manager")
    with pytest.raises(FeatureError, match="there are no features in .*npy; expected a feature file"):
        pack(tmp_path / "npy", tmp_path / "f.h5")
    (tmp_path / "npy" / "cut.npy").write_bytes(b"\x93NUM")
    with pytest.raises(FeatureError, match=r"none of the 1 video(.|\n)* - cut: truncated"):
        pack(tmp_path / "npy", tmp_path / "f.h5")
    with pytest.raises(FeatureError, match=r"asked for x, y\nThese are features of 2 videos, such as \._copied"):
        pack(tmp_path / "npy", tmp_path / "f.h5", only=["x", "y"])
    with pytest.raises(FeatureError, match="a collection of ids, got the text 'xy'"):
        pack(tmp_path / "npy", tmp_path / "f.h5", only="xy")
    assert not (tmp_path / "f.h5").exists()


def test_an_output_is_not_overwritten_by_mistake(tmp_path):
    make_folder(tmp_path / "npy", FIXED)
    out = pack(tmp_path / "npy", tmp_path / "f.h5").path
    before = out.read_bytes()
    with pytest.raises(OutputError, match="is the same file as the input"):
        pack(out, out)
    with pytest.raises(FeatureError, match=r"made with other settings(.|\n)*dtype: float16 there, int8 now"):
        pack(tmp_path / "npy", out, dtype="int8")
    (tmp_path / "npy" / "video03.npy").unlink()
    with pytest.raises(FeatureError, match="holds 1 video that is not to be written now.*: video03"):
        pack(tmp_path / "npy", out)
    assert out.read_bytes() == before
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = 1
    with pytest.raises(FeatureError, match="not a feature file of meidbench"):
        pack(tmp_path / "npy", other)


# --- stopped half way -----------------------------------------------------------------------------


def test_a_second_run_reads_no_rows(tmp_path, monkeypatch):
    make_folder(tmp_path / "npy", FIXED)
    pack(tmp_path / "npy", tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    monkeypatch.setattr("meidbench.features.packing.StoredVideos.read", lambda *_: pytest.fail("rows were read"))
    assert pack(tmp_path / "npy", tmp_path / "f.h5").found == len(FIXED)
    assert (tmp_path / "f.h5").read_bytes() == before


def test_a_changed_source_is_packed_again_and_new_ones_are_added(tmp_path):
    arrays = make_folder(tmp_path / "npy", RAGGED)
    pack(tmp_path / "npy", tmp_path / "f.h5")
    arrays |= make_folder(tmp_path / "npy", {"b": 6, "new": 2}, seed=1)
    summary = pack(tmp_path / "npy", tmp_path / "f.h5")
    assert (summary.packed, summary.found) == (2, 4)
    stored = plain(tmp_path / "f.h5")
    assert stored.keys() == arrays.keys()
    for video_id, array in arrays.items():
        assert stored[video_id].tobytes() == array.astype(np.float16).tobytes()


def _killed_while_packing(folder, out, dtype, at, half):
    """Die at the given write, before it or in its middle; a commit after every other video."""
    writes, write = [0], FeatureWriter._write

    def deadly(self, name, index, values):
        writes[0] += 1
        if writes[0] > at:
            if half and len(values) > 1:
                write(self, name, index, values[: len(values) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, index, values)
        if writes[0] % 14 == 0:
            self._last_commit = float("-inf")

    FeatureWriter._write = deadly
    pack(folder, out, dtype=dtype)
    os._exit(0)


@forks
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL and no fork there")
@pytest.mark.parametrize("lengths", [FIXED, RAGGED], ids=["fixed", "ragged"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_killed_at_any_moment_it_goes_on_and_gives_the_same_bytes(tmp_path, lengths, dtype):
    arrays = make_folder(tmp_path / "npy", lengths)
    np.save(tmp_path / "npy" / "fails.npy", np.full((2, WIDTH), np.nan))
    whole, out = tmp_path / "whole.h5", tmp_path / "killed.h5"
    pack(tmp_path / "npy", whole, dtype=dtype)
    generator = np.random.default_rng(5)
    kills, safe = 0, 0
    for _ in range(5):
        at, half = int(generator.integers(1, 6 * len(lengths))), bool(generator.integers(2))
        process = multiprocessing.get_context("fork").Process(
            target=_killed_while_packing, args=(tmp_path / "npy", out, dtype, at, half)
        )
        process.start()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if out.exists():
            break
        source = open_features(partial_path(out))
        with h5py.File(partial_path(out)) as file:
            ready = file["status"][:] == STATUSES.index("ok")
            done = [raw.decode() for raw, is_ready in zip(file["video_ids"][:], ready, strict=True) if is_ready]
        assert len(done) >= safe  # what was finished stays so
        safe = len(done)
        for video_id in done:
            stored, scales = encode(arrays[video_id], dtype)
            np.testing.assert_array_equal(source.read(video_id), decode(stored, scales))
    assert kills >= 2
    summary = pack(tmp_path / "npy", out, dtype=dtype)
    assert list(summary.failed) == ["fails"]
    assert out.read_bytes() == whole.read_bytes()
    assert not partial_path(out).exists()


def test_a_full_disk_leaves_readable_what_was_packed_and_is_gone_on_with(tmp_path, monkeypatch):
    arrays = make_folder(tmp_path / "npy", FIXED)
    out, write = tmp_path / "f.h5", FeatureWriter.put
    stream_write = [0]

    def put(self, position, video):
        if position == 7:
            stream_write[0] += 1
            raw = self._stream

            class Full:
                closed = False

                def __getattr__(self, name):
                    return getattr(raw, name)

                def write(self, data):
                    raise OSError(errno.ENOSPC, "No space left on device")

            self._stream = Full()
            try:
                write(self, position, video)
            finally:
                self._stream = raw
        write(self, position, video)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureWriter, "put", put)
        outcome = invoke(tmp_path / "npy", "--out", out)
    assert stream_write == [1] and outcome.exit_code == 1
    assert isinstance(outcome.exception, FeatureError)
    assert "no space is left for" in str(outcome.exception) and "run the same command again" in str(outcome.exception)
    assert not out.exists()
    source = open_features(partial_path(out))
    for number in range(7):
        video_id = f"video{number:02}"
        np.testing.assert_array_equal(source.read(video_id), arrays[video_id].astype(np.float16))
    summary = pack(tmp_path / "npy", out)
    assert (summary.found, summary.packed) == (7, 5)
    assert plain(out)["video11"].tobytes() == arrays["video11"].astype(np.float16).tobytes()


def test_what_reads_back_otherwise_does_not_pass_for_packed(tmp_path, monkeypatch):
    make_folder(tmp_path / "npy", FIXED)
    write = FeatureWriter._write

    def forgetful(self, name, index, values):
        lost = name == "features" and index == 3 * 5
        write(self, name, index, np.zeros_like(values) if lost else values)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureWriter, "_write", forgetful)
        summary = pack(tmp_path / "npy", tmp_path / "f.h5")
    assert summary.failed == {"video03": "reads back other than it was written"}
    assert pack(tmp_path / "npy", tmp_path / "f.h5", retry_failed=True).is_complete


def test_a_file_that_shrinks_while_it_is_packed_fails_alone(tmp_path):
    make_folder(tmp_path / "npy", FIXED)

    class Meddler:
        def __init__(self, title, total):
            if title == "packing":
                np.save(tmp_path / "npy" / "video05.npy", np.ones((2, WIDTH), np.float32))
                (tmp_path / "npy" / "video06.npy").unlink()

        def __enter__(self):
            return lambda steps: None

        def __exit__(self, *_):
            return None

    summary = pack(tmp_path / "npy", tmp_path / "f.h5", progress=Meddler)
    assert summary.failed == {
        "video05": f"changed while it was packed: (2, {WIDTH}), was (5, {WIDTH})",
        "video06": "missing",
    }


def test_the_command_offers_what_the_file_can_hold(tmp_path):
    (offered,) = (option.type.choices for option in pack_features.params if option.name == "dtype")
    assert set(offered) == set(STORED_DTYPES) == set(DTYPES)
    make_folder(tmp_path / "npy", FIXED)
    outcome = invoke(tmp_path / "npy", "--out", tmp_path / "f.h5", "--dtype", "int8", "--backbone", "mine")
    assert outcome.exit_code == 0, outcome.output
    assert "60 rows of 33 int8, the same number of rows per video" in outcome.stdout
    assert invoke(tmp_path / "npy", "--out", tmp_path / "g.h5", "--dtype", "float8").exit_code == 2
    assert invoke(tmp_path / "nowhere", "--out", tmp_path / "g.h5").exit_code == 2


def test_a_stale_file_in_the_making_does_not_spoil_a_whole_one(tmp_path):
    """Left by a run that was killed and had a video more, which is gone again."""
    make_folder(tmp_path / "npy", {"b": 4, "c": 4})
    out = tmp_path / "f.h5"
    pack(tmp_path / "npy", out)
    before = out.read_bytes()
    layout = Layout(("a", "b", "c"), np.full(3, 4), True, 6, "float16", False, np.zeros(3, int))
    recipe = read_header(out).recipe
    with feature_writer(tmp_path / "other.h5", layout, recipe):
        pass
    partial_path(tmp_path / "other.h5").rename(partial_path(out))
    assert pack(tmp_path / "npy", out).found == 2 and out.read_bytes() == before


def test_a_feature_file_that_was_made_anew_is_packed_anew(tmp_path):
    for number in (1, 2):
        make_folder(tmp_path / "npy", {"b": 4, "c": 4}, seed=number)
        (tmp_path / "first.h5").unlink(missing_ok=True)
        pack(tmp_path / "npy", tmp_path / "first.h5", dtype="float32")
        summary = pack(tmp_path / "first.h5", tmp_path / "second.h5")
        assert summary.packed == 2
    np.testing.assert_array_equal(
        open_features(tmp_path / "second.h5").read("b"), np.load(tmp_path / "npy" / "b.npy").astype("f2")
    )


# --- shapes that contradict, and packs of failures -------------------------------------------------


def test_features_by_column_are_refused_or_warned_of(tmp_path):
    for folder, lengths in {"varied": range(20, 60), "equal": [16] * 3}.items():
        (tmp_path / folder).mkdir()
        for number, length in enumerate(lengths):
            array = np.random.default_rng(number).random((256, length), np.float32)
            np.save(tmp_path / folder / f"n{number:03}.npy", array)
    outcome = invoke(tmp_path / "varied", "--out", tmp_path / "v.h5")
    assert isinstance(outcome.exception, FeatureError) and not (tmp_path / "v.h5").exists()
    assert "all 40 videos in" in str(outcome.exception)
    assert "have 256 rows and different widths: n000: (256, 20)" in str(outcome.exception)
    assert "Are they C x T? Transpose them" in str(outcome.exception)
    outcome = invoke(tmp_path / "equal", "--out", tmp_path / "e.h5")
    said = (
        "warning: all videos have 256 rows of 16 numbers, more rows than numbers per row: if they are C x T, transpose"
    )
    assert outcome.exit_code == 0 and said in outcome.stderr
    found = {finding.check: finding for finding in verify(tmp_path / "e.h5").findings}
    assert (found["transposed"].severity, found["transposed"].concerned) == ("warning", ("256 rows of 16",))
    # One odd video among many of one width stays the fault of that video.
    np.save(tmp_path / "equal" / "odd.npy", np.ones((256, 17), np.float32))
    assert list(pack(tmp_path / "equal", tmp_path / "odd.h5").failed) == ["odd"]


def test_a_backbone_of_another_width_is_a_contradiction(tmp_path):
    make_folder(tmp_path / "npy", FIXED)
    outcome = invoke(tmp_path / "npy", "--out", tmp_path / "f.h5", "--backbone", "resnet101")
    assert isinstance(outcome.exception, FeatureError) and not (tmp_path / "f.h5").exists()
    assert "have 33 numbers per row, those of resnet101 have 2,048" in str(outcome.exception)
    assert invoke(tmp_path / "npy", "--out", tmp_path / "f.h5", "--backbone", "mine").exit_code == 0


def test_a_pack_of_failures_leaves_no_file_and_names_the_dtype_to_pass(tmp_path):
    (tmp_path / "d").mkdir()
    for number in range(7):
        np.save(tmp_path / "d" / f"v{number}.npy", np.full((5, 64), 1e5, "f4"))
    outcome = invoke(tmp_path / "d", "--out", tmp_path / "o.h5")
    said = "v0: numbers up to 100000 do not fit float16, which ends at 65504; pass --dtype float32\n"
    assert "none of the 7 videos can be packed; no file is written:\n" in str(outcome.exception)
    assert said in str(outcome.exception) and str(outcome.exception).endswith("\n  - and 2 more")
    assert {path.name for path in tmp_path.iterdir()} == {"d"}
    assert pack(tmp_path / "d", tmp_path / "o.h5", dtype="float32").is_complete
