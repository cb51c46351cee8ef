"""Feature reading against numpy's and h5py's own, and every way in which a feature file can be wrong."""

import io
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meidbench import files
from meidbench.errors import FeatureError
from meidbench.features import PROBLEMS, FeatureSource, GroupedFile, NpyFolder, PackedFile, open_features
from meidbench.features.feature_file import Layout, create
from meidbench.features.source import EXPECTED
from meidbench.predictions.values import write_predictions

LENGTHS = {"ATOYW": 7, "0BXY1": 1, "zz..top": 12, "-dash_": 5}
WIDTH = 6
FORMATS = ["npy", "hdf5"]
# Python 3.12 warns of a fork beside torch's or BLAS's threads; that is what DataLoader does on Linux.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def make_arrays(dtype=np.float16, seed=0):
    generator = np.random.default_rng(seed)
    return {video_id: generator.standard_normal((rows, WIDTH)).astype(dtype) for video_id, rows in LENGTHS.items()}


def store(arrays, folder, file_format):
    """Write arrays in one of the formats and return the path."""
    if file_format == "npy":
        path = folder / "features"
        path.mkdir(exist_ok=True)
        for video_id, array in arrays.items():
            np.save(path / f"{video_id}.npy", array)
    else:
        path = folder / "features.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("features")
            for video_id, array in arrays.items():
                group[video_id] = array
    return path


def refusal(source, *video_ids):
    with pytest.raises(FeatureError) as caught:
        source.check(video_ids)
    return str(caught.value)


@pytest.fixture(params=FORMATS)
def file_format(request):
    return request.param


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f2"])
def test_rows_are_those_of_the_whole_array(tmp_path, file_format, dtype):
    arrays = make_arrays(dtype)
    source = open_features(store(arrays, tmp_path, file_format))
    generator = np.random.default_rng(1)
    for video_id, array in arrays.items():
        whole = source.read(video_id)
        assert whole.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(whole, array)
        for rows in ([0], [len(array) - 1], [], generator.integers(len(array), size=9), range(len(array))):
            read = source.read(video_id, rows)
            assert read.dtype == np.dtype(dtype)
            assert read.shape == (len(rows), WIDTH)
            np.testing.assert_array_equal(read, array[np.asarray(rows, dtype=int)])
        assert source.num_frames(video_id) == len(array)
    assert source.dim == WIDTH
    source.close()


def test_what_is_read_is_the_callers_own(tmp_path, file_format):
    arrays = make_arrays()
    source = open_features(store(arrays, tmp_path, file_format))
    for rows in (None, [0, 1]):
        read = source.read("ATOYW", rows)
        assert type(read) is np.ndarray
        read += 1  # fails on a read-only map, and must not reach the file
        np.testing.assert_array_equal(source.read("ATOYW"), arrays["ATOYW"])
    source.close()


@pytest.mark.parametrize("rows", [[7], [-1], [0, 3, 7, 8], np.array([2**40])])
def test_rows_that_a_video_lacks_are_refused(tmp_path, file_format, rows):
    source = open_features(store(make_arrays(), tmp_path, file_format))
    with pytest.raises(FeatureError, match=r"video ATOYW in .* has rows 0 to 6; asked for") as caught:
        source.read("ATOYW", rows)
    assert str(max(rows, key=abs)) in str(caught.value)


@pytest.mark.parametrize("rows", [[0.5], [[0, 1]], [True, False], 3, ["a"]])
def test_rows_that_are_no_row_numbers_are_refused(tmp_path, file_format, rows):
    source = open_features(store(make_arrays(), tmp_path, file_format))
    with pytest.raises(FeatureError, match="row indices must be a list of integers"):
        source.read("ATOYW", rows)


def test_arrays_stored_by_column_are_read_too(tmp_path):
    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(8, 3))
    np.save(tmp_path / "v.npy", array)
    assert b"'fortran_order': True" in (tmp_path / "v.npy").read_bytes()
    source = open_features(tmp_path)
    np.testing.assert_array_equal(source.read("v"), array)
    np.testing.assert_array_equal(source.read("v", [7, 0, 0]), array[[7, 0, 0]])


def npy_bytes(header, data, version=(1, 0), align=64):
    """Put a .npy file together by hand, as its format description says."""
    size_bytes = 2 if version == (1, 0) else 4
    padding = -(8 + size_bytes + len(header) + 1) % align
    text = header.encode("latin1") + b" " * padding + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(size_bytes, "little") + text + data


@pytest.mark.parametrize(
    ("what", "header", "options"),
    [
        ("older numpy", "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }", {"align": 16}),
        ("python 2", "{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 2L), }", {}),
        ("version 2", "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }", {"version": (2, 0)}),
        ("long", "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }" + " " * 5000, {}),
    ],
)
def test_other_headers_are_read_too(tmp_path, what, header, options):
    array = np.arange(6, dtype="<f4").reshape(3, 2)
    (tmp_path / "v.npy").write_bytes(npy_bytes(header, array.tobytes(), **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's own on Python 2's numbers
        np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), array)
    source = open_features(tmp_path)
    assert source.check(["v"]).tolist() == [3]
    np.testing.assert_array_equal(source.read("v", [2, 1]), array[[2, 1]])


def test_bytes_after_the_array_do_not_matter(tmp_path):
    with (tmp_path / "v.npy").open("wb") as stream:
        np.save(stream, np.ones((2, 3), np.float32))
        np.save(stream, np.zeros((5, 5)))
    assert open_features(tmp_path).read("v").tolist() == np.ones((2, 3)).tolist()


# --- what is checked ------------------------------------------------------------------------------


def test_check_counts_the_rows_in_the_order_asked(tmp_path, file_format):
    source = open_features(store(make_arrays(), tmp_path, file_format))
    counts = source.check(["zz..top", "ATOYW", "zz..top"])
    assert counts.dtype == np.int64
    assert counts.tolist() == [12, 7, 12]
    assert source.check([]).tolist() == []
    source.close()


def test_check_says_nothing_where_there_is_no_terminal(tmp_path, file_format, capfd):
    open_features(store(make_arrays(), tmp_path, file_format)).check(LENGTHS)
    assert capfd.readouterr() == ("", "")


def test_every_problem_of_a_folder_is_told_at_once(tmp_path):
    folder = store(make_arrays(), tmp_path, "npy")
    np.save(folder / "single.npy", np.float32(8))
    np.save(folder / "cube.npy", np.zeros((2, 2, 2), np.float32))
    np.save(folder / "rowless.npy", np.zeros((0, WIDTH), np.float32))
    np.save(folder / "colless.npy", np.zeros((3, 0), np.float32))
    np.save(folder / "narrow.npy", np.zeros((3, WIDTH - 1), np.float32))
    np.save(folder / "bytes.npy", np.zeros((3, WIDTH), np.uint8))
    np.save(folder / "complex.npy", np.zeros((3, WIDTH), np.complex64))
    np.save(folder / "objects.npy", np.array([[{}, None]]), allow_pickle=True)
    np.save(folder / "named.npy", np.zeros((3, 2), [("x", "f4")]))
    np.save(folder / "cut.npy", np.zeros((3, WIDTH), np.float32))
    os.truncate(folder / "cut.npy", 150)
    (folder / "text.npy").write_text("not an array")
    (folder / "folder.npy").mkdir()
    asked = [*LENGTHS, "gone", "../single", "single", "cube", "rowless", "colless", "narrow", "bytes", "complex"]
    asked += ["objects", "named", "cut", "text", "folder", "gone"]
    message = refusal(open_features(folder), *asked)
    assert message.splitlines() == [
        f"14 of 18 videos cannot be used from {folder}:",
        "  - 1 missing: gone",
        "  - 1 no usable id (empty, a dot, with a path separator, or not UTF-8): '../single'",
        "  - 1 cannot be read: folder (Is a directory)",
        "  - 1 not a .npy file: text (it does not begin as one)",
        "  - 1 pickled Python objects, which are never loaded: objects",
        "  - 3 not float16, float32 or float64: bytes (uint8), complex (complex64), named ([('x', '<f4')])",
        "  - 2 not 2-D: single (shape ()), cube (shape (2, 2, 2))",
        "  - 2 empty: rowless (shape (0, 6)), colless (shape (3, 0))",
        "  - 1 truncated: cut (150 of 200 bytes)",
        "  - 1 not of the width of most (6): narrow (5)",
        "Expected a folder of VIDEO_ID.npy: T x D, T at least 1, one D for all, float16, float32 or float64.",
        "These are features of 16 videos, such as -dash_: name those of this dataset, or make them of its videos: "
        "'meidbench extract-features VIDEOS --out FILE.h5'.",
        "An id is the name of a file without its folder and its ending; write the ids of the split so.",
        "Copy or extract damaged videos again.",
        "A pickle is data which is never loaded: that can run a program. If you trust it, one line of Python makes "
        "a folder of it:",
        '  import os, pathlib, numpy as np; os.makedirs("npy"); _ = [np.save(f"npy/{path.stem}.npy", '
        'np.stack(list(np.load(path, allow_pickle=True))).astype("float32")) '
        f'for path in pathlib.Path({str(folder)!r}).rglob("*.npy")]',
        'Store numbers of other types as array.astype("float32").',
        "Store one row per frame: average over other axes, such as those of a 7 x 7 grid; axes of size 1 may stay.",
        "Take the features of one network; where all have one number of rows, transpose them (C x T to T x C).",
    ]
    # Two more can only befall a packed file, and one an archive.
    assert set(PROBLEMS) - {"pending", "failed", "array"} == {
        "missing", "id", "unreadable", "format", "objects", "dtype", "ndim", "empty", "truncated", "width"
    }  # fmt: skip


def test_every_problem_of_an_hdf5_file_is_told_at_once(tmp_path):
    path = store(make_arrays(), tmp_path, "hdf5")
    with h5py.File(path, "r+") as file:
        group = file["features"]
        group["cube"] = np.zeros((2, 2, 2), np.float32)
        group["scalar"] = 1.5
        group["null"] = h5py.Empty("f4")
        group["rowless"] = np.zeros((0, WIDTH), np.float32)
        group["narrow"] = np.zeros((3, WIDTH - 1), np.float32)
        group["bytes"] = np.zeros((3, WIDTH), np.uint8)
        group["text"] = [["a", "b"]]
        group["dangling"] = h5py.SoftLink("/features/nowhere")
        group["elsewhere"] = h5py.ExternalLink("nowhere.h5", "/features/x")
        group["folder/inside"] = np.zeros((3, WIDTH), np.float32)
    asked = [*LENGTHS, "gone", "cube", "scalar", "null", "rowless", "narrow", "bytes", "text", "dangling"]
    asked += ["elsewhere", "folder", "folder/inside", "."]
    message = refusal(open_features(path), *asked)
    assert message[: message.index("\nExpected")].splitlines() == [
        f"13 of 17 videos cannot be used from {path}:",
        "  - 2 missing: gone, dangling",
        "  - 2 no usable id (empty, a dot, with a path separator, or not UTF-8): 'folder/inside', '.'",
        "  - 1 cannot be read: elsewhere (elsewhere is a link to another file; numbers are read from the file itself "
        "alone)",
        "  - 1 without one array that must be the features: folder (a group of inside)",
        "  - 2 not float16, float32 or float64: bytes (uint8), text (object)",
        "  - 3 not 2-D: cube (shape (2, 2, 2)), scalar (shape ()), null (shape None)",
        "  - 1 empty: rowless (shape (0, 6))",
        "  - 1 not of the width of most (6): narrow (5)",
    ]


def test_five_offenders_are_named_and_the_rest_counted(tmp_path, file_format):
    source = open_features(store(make_arrays(), tmp_path, file_format))
    message = refusal(source, *LENGTHS, *(f"gone{number}" for number in range(1234)))
    assert message.startswith(f"1,234 of 1,238 videos cannot be used from {source.path}:\n")
    assert "  - 1,234 missing: gone0, gone1, gone2, gone3, gone4 and 1,229 more\n" in message
    assert "These are features of 4 videos, such as -dash_: name those of this dataset" in message


def test_one_video_tells_its_problem_when_read(tmp_path, file_format):
    source = open_features(store({**make_arrays(), "cube": np.zeros((2, 2, 2))}, tmp_path, file_format))
    for ask in (source.num_frames, source.read, lambda video_id: source.read(video_id, [0])):
        with pytest.raises(FeatureError, match=r"1 of 1 video cannot be used .*\n  - 1 missing: gone\n"):
            ask("gone")
        with pytest.raises(FeatureError, match=r"  - 1 not 2-D: cube \(shape \(2, 2, 2\)\)\n"):
            ask("cube")
    source.close()


@pytest.mark.parametrize("size", [0, 3, 6, 9, 60, 127])
def test_a_file_cut_within_its_header_is_called_truncated(tmp_path, size):
    np.save(tmp_path / "v.npy", np.zeros((3, 4), np.float32))
    os.truncate(tmp_path / "v.npy", size)
    assert f"  - 1 truncated: v ({size} bytes)\n" in refusal(open_features(tmp_path), "v")


def test_a_file_one_byte_short_is_called_truncated(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((1500, 2), np.float32))
    source = open_features(tmp_path)
    assert source.check(["v"]).tolist() == [1500]
    os.truncate(tmp_path / "v.npy", 128 + 12_000 - 1)
    assert "  - 1 truncated: v (12,127 of 12,128 bytes)\n" in refusal(source, "v")
    with pytest.raises(FeatureError, match="truncated"):  # rather than a bus error
        source.read("v", [1499])


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_ever_unpickled(tmp_path):
    trace = tmp_path / "trace"
    np.save(tmp_path / "array.npy", np.array([[Trap(trace)]], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap(trace)))
    np.load(tmp_path / "array.npy", allow_pickle=True)
    assert trace.exists(), "the trap works"
    trace.unlink()
    source = open_features(tmp_path)
    message = refusal(source, "array", "pickle")
    assert "  - 2 pickled Python objects, which are never loaded: array, pickle (it does not begin as one)\n" in message
    for video_id in ("array", "pickle"):
        with pytest.raises(FeatureError):
            source.read(video_id)
    assert not trace.exists()


def test_an_archive_of_arrays_is_not_an_array(tmp_path):
    np.savez(tmp_path / "v.npz", np.zeros((3, 4), np.float32))
    (tmp_path / "v.npz").rename(tmp_path / "v.npy")
    assert "  - 1 not a .npy file: v (it does not begin as one)\n" in refusal(open_features(tmp_path), "v")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)", "damaged header"),
        ("{'descr': '<f4', 'shape': (3, 2), }", "damaged header"),
        ("{'descr': '<x9', 'fortran_order': False, 'shape': (3, 2), }", "damaged header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 2), }", "empty"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3000000000000, 2000000), }", "truncated"),
        ("__import__('os').abort()", "damaged header"),
        ("(" * 2000, "damaged header"),
        ("{" + " " * 20_000 + "}", "damaged header"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, said):
    (tmp_path / "v.npy").write_bytes(npy_bytes(header, bytes(100)))
    assert said in refusal(open_features(tmp_path), "v")


def test_a_format_version_of_the_future_is_refused(tmp_path):
    (tmp_path / "v.npy").write_bytes(npy_bytes("{}", bytes(100), version=(9, 1)))
    assert "not a .npy file: v (format version 9.1)" in refusal(open_features(tmp_path), "v")


def _whole_npy():
    stream = io.BytesIO()
    np.save(stream, np.arange(12, dtype=np.float16).reshape(3, 4))
    return stream.getvalue()


@given(st.lists(st.tuples(st.integers(0, 151), st.integers(0, 255)), max_size=4), st.integers(0, 152))
def test_whatever_happens_to_a_file_it_is_read_as_numpy_does_or_refused(changes, size):
    content = bytearray(_whole_npy())
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "v.npy")
        file.write_bytes(content[:size])
        try:
            read = open_features(folder).read("v")
        except FeatureError:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(read, np.load(file, allow_pickle=False))


def test_widths_are_compared_with_those_of_most(tmp_path, file_format):
    arrays = {f"v{number}": np.zeros((2, 4 if number in (0, 3) else 5), np.float32) for number in range(6)}
    source = open_features(store(arrays, tmp_path, file_format))
    assert "  - 2 not of the width of most (5): v0 (4), v3 (4)\n" in refusal(source, *arrays)
    assert source.dim == 4  # nothing was accepted yet, and v0 comes first
    source.check(["v1", "v2"])
    assert source.dim == 5
    source.close()


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "video_id",
    [
        "../secret",
        "..",
        ".",
        "",
        "a/../../secret",
        "./v",
        "/etc/passwd",
        "..\\secret",
        "v\0",
        "sub/v",
        "/features/v",
    ],
)
def test_ids_cannot_lead_elsewhere(tmp_path, file_format, video_id):
    array = np.zeros((2, 3), np.float32)
    np.save(tmp_path / "secret.npy", array)
    path = store({"v": array}, tmp_path, file_format)
    if file_format == "npy":
        (path / "sub").mkdir()
        np.save(path / "sub" / "v.npy", array)
    else:
        with h5py.File(path, "r+") as file:
            file["features/sub/v"] = array
            file["secret"] = array
    source = open_features(path)
    for ask in (source.read, source.num_frames, lambda asked: source.check(["v", asked])):
        with pytest.raises(FeatureError) as caught:
            ask(video_id)
        said = "1 no usable id (empty, a dot, with a path separator, or not UTF-8)"
        assert f"{said}: {video_id!r}\n" in str(caught.value)
    source.close()


def test_dots_within_an_id_are_harmless(tmp_path, file_format):
    array = np.ones((2, 3), np.float32)
    source = open_features(store({"...": array, "a..b": array}, tmp_path, file_format))
    assert source.check(["...", "a..b"]).tolist() == [2, 2]
    assert source.read("...").shape == (2, 3)
    source.close()


# --- opening --------------------------------------------------------------------------------------


def test_the_kind_of_source_follows_from_what_is_there(tmp_path):
    arrays = make_arrays()
    assert isinstance(open_features(store(arrays, tmp_path, "npy")), NpyFolder)
    assert isinstance(open_features(str(store(arrays, tmp_path, "hdf5"))), GroupedFile)
    assert issubclass(NpyFolder, FeatureSource)
    assert repr(open_features(tmp_path)) == f"NpyFolder({str(tmp_path)!r})"


def test_what_is_no_feature_file_is_refused(tmp_path):
    with pytest.raises(FeatureError, match=r"there are no features at .*nowhere; expected a feature file \("):
        open_features(tmp_path / "nowhere")
    for content, kind, remedy in (
        (b"PK\5\6" + bytes(18), "a zip archive", "Unpack it, and name the folder."),
        (b"PK\3\4", "a damaged zip archive", "Get the file again."),
        (b"\x1f\x8b", "a compressed archive", "Unpack it, and name the folder."),
        (b"", "empty", None), (b"hello", "not an HDF5 file", None),
    ):  # fmt: skip
        (tmp_path / "features").write_bytes(content)
        with pytest.raises(FeatureError) as caught:
            open_features(tmp_path / "features")
        told, *rest = str(caught.value).splitlines()
        assert told == f"{tmp_path / 'features'} is {kind}; expected {EXPECTED}"
        assert rest == ([remedy] if remedy else [])
    assert EXPECTED.startswith("a feature file ('meidbench extract-features VIDEOS --out FILE.h5' makes one of videos)")


def test_splits_and_predictions_are_no_features(tmp_path, toy_split, toy_split_file):
    with pytest.raises(FeatureError, match=r"is a split file; expected .*\nName it with split=\.\.\., and name the f"):
        open_features(toy_split_file)
    scores = write_predictions(tmp_path / "p.parquet", ["a"], np.ones((1, 2)))
    with pytest.raises(FeatureError, match="is a prediction file; expected .*\nPredictions have no features"):
        open_features(scores)


def test_an_hdf5_file_of_something_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["scores"] = np.zeros(3)
        file["video_ids"] = np.zeros(3)
    with pytest.raises(FeatureError, match=r"has no /features \(it holds scores, video_ids\): it has predictions\nExp"):
        open_features(tmp_path / "other.h5")
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file["features"] = np.zeros((2, 3, 4))
    with pytest.raises(FeatureError, match=r"has /features but no /video_ids"):
        open_features(tmp_path / "packed.h5")
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(FeatureError, match=r"has no /features \(it holds nothing\)\nExpected a feature file"):
        open_features(tmp_path / "empty.h5")


def test_a_truncated_hdf5_file_is_refused(tmp_path):
    path = store(make_arrays(), tmp_path, "hdf5")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FeatureError, match=r"cannot open .*truncated.*; copy or extract it again"):
        open_features(path)


def test_a_folder_without_features_has_no_width(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    source = open_features(tmp_path)
    with pytest.raises(FeatureError, match=r"there are no features in .*; expected a feature file"):
        _ = source.dim
    assert refusal(source, "v").startswith(
        f"there are no features in {tmp_path}; expected {EXPECTED}\nIt holds files such"
    )
    tmp_path.joinpath("readme.txt").unlink()
    tmp_path.rmdir()
    with pytest.raises(FeatureError, match="cannot list the folder"):
        source.check(["v"])


def test_a_file_of_others_that_the_library_hangs_on_is_refused(tmp_path, monkeypatch):
    path = store(make_arrays(), tmp_path, "hdf5")
    files._stop_rehearser()
    with monkeypatch.context() as patched:
        patched.setattr(files, "_PROGRAM", "import time; time.sleep(60)")
        patched.setattr(files, "HDF5_SECONDS", 0.3)
        with pytest.raises(FeatureError, match=r"cannot open .*features\.h5: the HDF5 library found no end in 0 s"):
            open_features(path)
        # The files that this package writes are opened without a second process.
        layout = Layout(("a",), np.array([1]), True, WIDTH, "float16", False, np.zeros(1, np.int64))
        create(tmp_path / "ours.h5", layout, {"frames": "x" * 60_000})
        assert isinstance(open_features(tmp_path / "ours.h5"), PackedFile)
    assert open_features(path).num_frames("ATOYW") == 7


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_of_others_are_read_or_refused(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(files, "HDF5_SECONDS", 2.0)
    path = store(make_arrays(), tmp_path, "hdf5")
    if packed:
        with h5py.File(path, "w") as file:
            file["features"], file["video_ids"] = np.ones((4, 5, WIDTH), np.float32), list(LENGTHS)
    sound, draw = path.read_bytes(), random.Random(7)
    refused = 0
    for number in range(60):
        raw = bytearray(sound)
        for _ in range(draw.choice([1, 4, 64])):
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw if number % 3 else raw[: draw.randrange(8, len(raw))])
        try:
            source = open_features(path)
            counts = source.check(LENGTHS)
            assert [len(source.read(video_id)) for video_id in LENGTHS] == counts.tolist()
        except FeatureError:
            refused += 1
        else:
            source.close()
    assert refused >= 20


def test_videos_are_checked_once_per_source(tmp_path, file_format, monkeypatch):
    source = open_features(store(make_arrays(), tmp_path, file_format))
    asked, shape = [], type(source).shape
    monkeypatch.setattr(type(source), "shape", lambda self, name: asked.append(name) or shape(self, name))
    for _ in range(3):
        assert source.check(LENGTHS).tolist() == list(LENGTHS.values())
    assert sorted(asked) == sorted(LENGTHS)
    pickle.loads(pickle.dumps(source)).check(LENGTHS)
    assert sorted(asked) == sorted([*LENGTHS, *LENGTHS]), "the shapes of all videos would go to every worker"
    if file_format == "npy":
        np.save(source.path / "ATOYW.npy", np.zeros((9, WIDTH), np.float16))
        assert source.check(["ATOYW"]).tolist() == [9]
    source.close()


# --- processes ------------------------------------------------------------------------------------


def test_a_source_pickles_without_its_handle(tmp_path, file_format):
    arrays = make_arrays()
    source = open_features(store(arrays, tmp_path, file_format))
    source.read("ATOYW")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read("ATOYW"), arrays["ATOYW"])
    copy.close()
    np.testing.assert_array_equal(source.read("ATOYW"), arrays["ATOYW"])
    source.close()
    source.close()
    np.testing.assert_array_equal(source.read("ATOYW"), arrays["ATOYW"])
    source.close()


def test_a_relative_path_outlives_a_change_of_folder(tmp_path, file_format, monkeypatch):
    path = store(make_arrays(), tmp_path, file_format)
    monkeypatch.chdir(tmp_path)
    source = open_features(path.name)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert source.num_frames("ATOYW") == 7
    source.close()


_inherited = None


def _sums(seed):
    """Read at random what the parent had open when it forked."""
    generator = np.random.default_rng(seed)
    ids = list(LENGTHS)
    drawn = [ids[number] for number in generator.integers(len(ids), size=300)]
    sums = [(video_id, float(_inherited.read(video_id).sum())) for video_id in drawn]
    # Whose handle it was shows nowhere else: with an HDF5 that uses pread, a shared one goes wrong only rarely.
    return os.getpid(), getattr(_inherited, "_owner", os.getpid()), sums


@forks
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_processes_open_the_file_themselves(tmp_path, file_format):
    global _inherited
    arrays = make_arrays(np.float64)
    _inherited = open_features(store(arrays, tmp_path, file_format))
    _inherited.read("ATOYW")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(_sums, seed) for seed in range(6)]
        mine = _sums(99)  # while the others read
        results = [future.result() for future in futures]
    assert all(pid != os.getpid() for pid, _, _ in results)
    assert all(pid == owner for pid, owner, _ in [*results, mine])
    for _, _, sums in [*results, mine]:
        assert all(total == float(arrays[video_id].sum()) for video_id, total in sums)
    _inherited.close()


def test_neither_reading_nor_sampling_imports_torch():
    program = "import sys, meidbench.features, meidbench.features.frame_sampling; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- structures that lie --------------------------------------------------------------------------


def write_packed(path, **changes):
    """Write a packed file as another program would; ``changes`` replace or add datasets, None leaves one out."""
    content = {"features": np.ones((2, 3, WIDTH), np.float32), "video_ids": ["a", "b"], **changes}
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if callable(value):
                value(file)
            elif value is not None:
                file[name] = value
    return path


def declare(name, shape, dtype, **options):
    """Declare a dataset and write nothing into it."""
    return lambda file: file.create_dataset(name, shape, dtype, **options)


def virtual(file):
    layout = h5py.VirtualLayout((2, 3, WIDTH), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2, 3, WIDTH))
    file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize(("changes", "said"), [
    ({"features": declare("features", (2, 3, WIDTH), "f4", external=[("/etc/passwd", 0, 144)])}, "in other files"),
    ({"features": virtual}, "in other files"),
    ({"features": h5py.ExternalLink("/etc/passwd", "/features")}, "a link to another file"),
    ({"away": h5py.ExternalLink("x.h5", "/"), "features": h5py.SoftLink("/away/features")}, "a link to another file"),
    ({"features": h5py.SoftLink("features")}, "a link of too many steps"),
    ({"video_ids": declare("video_ids", (100_000_000,), "S220")}, "takes 22,000,000,000 bytes, the file holds 0"),
    ({"video_ids": declare("video_ids", (100_000_000,), "S220", chunks=(1000,))}, "needs 100,000 pieces"),
    ({"video_ids": declare("video_ids", (2, 2**27), "S8", chunks=(2, 2**27))}, "pieces of 2,147,483,648 bytes"),
    ({"status": declare("status", (2**40,), "u1")}, "status of shape"),
    ({"features": declare("features", (2, 3, WIDTH), "f4", chunks=(1, 3, WIDTH))}, "the file holds 0 of them"),
])  # fmt: skip
def test_packed_files_whose_numbers_lie_elsewhere_or_nowhere_are_refused(tmp_path, changes, said):
    with pytest.raises(FeatureError, match=said):
        open_features(write_packed(tmp_path / "f.h5", **changes))


def test_videos_whose_numbers_lie_elsewhere_are_refused(tmp_path):
    path = store(make_arrays(), tmp_path, "hdf5")
    with h5py.File(path, "r+") as file:
        group = file["features"]
        group.create_dataset("passwd", (2, WIDTH), "f4", external=[("/etc/passwd", 0, 48)])
        group.create_dataset("unwritten", (1000, WIDTH), "f4")
        group["alias"] = h5py.SoftLink("/features/ATOYW")
    source = open_features(path)
    message = refusal(source, *LENGTHS, "passwd", "unwritten")
    assert "passwd keeps its numbers in other files; copy them into the file itself" in message
    assert "unwritten of shape (1000, 6) takes 24,000 bytes, the file holds 0 of them" in message
    assert source.read("alias").tolist() == make_arrays()["ATOYW"].tolist(), "a link within the file is sound"


def test_a_group_of_features_in_another_file_is_not_opened(tmp_path):
    other = store(make_arrays(), tmp_path, "hdf5")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(other), "/features")
    with pytest.raises(FeatureError, match="features is a link to another file"):
        open_features(tmp_path / "f.h5")


def ours(path):
    layout = Layout(("a", "b", "c"), np.array([1, 2, 1]), False, WIDTH, "float16", False, np.zeros(3, np.int64))
    create(path, layout, {"frames": 2})
    return path


def replace_dataset(name, value):
    def change(file):
        del file[name]
        value(file) if callable(value) else file.create_dataset(name, data=value)

    return change


@pytest.mark.parametrize(("change", "said"), [
    (lambda file: file["video_ids"].__setitem__(slice(None), [b"c", b"b", b"a"]), "must be ascending, each once"),
    (lambda file: file["video_ids"].__setitem__(slice(None), [b"a", b"a", b"b"]), "must be ascending, each once"),
    (lambda file: file["row_starts"].__setitem__(0, 1), "row_starts are not those of videos end to end"),
    (lambda file: file["row_starts"].__setitem__(1, 9), "no room for"),
    (lambda file: file.attrs.__setitem__("format_version", 2), "of version 2; this is for 1"),
    (lambda file: file.attrs.__setitem__("format", np.arange(3)), "is not a feature file of meidbench"),
    (lambda file: file.attrs.__setitem__("recipe", "[1, 2]"), "recipe is not a table"),
    (lambda file: file.attrs.__setitem__("recipe", "[" * 100_000), "is damaged"),
    (lambda file: file.attrs.__setitem__("recipe", '{"frames": 1e400}'), "1e400 is not a finite number"),
    (replace_dataset("checksums", np.zeros(2, "<u4")), "checksums is uint32 of (2,), expected uint32 of (3,)"),
    (replace_dataset("features", declare("features", (4, WIDTH), "<f2", external=[("/etc/passwd", 0, 48)])), "other"),
    (replace_dataset("features", declare("features", (4, WIDTH), "<f2")), "the file holds 0 of them"),
    (lambda file: file.create_dataset("scales", data=np.ones(4, "<f4")), "float16 rows need none"),
    (
        replace_dataset("features", lambda file: file.create_dataset(
            "features", data=np.ones((4, WIDTH), "<f2"), chunks=(1, WIDTH))),
        "h5repack -l CONTI",
    ),
])  # fmt: skip
def test_one_check_of_structures_serves_all_who_read_feature_files(tmp_path, change, said, run, toy_split_file):
    path = ours(tmp_path / "f.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(FeatureError) as caught:
        open_features(path)
    assert said in str(caught.value)
    outcome = run("verify-features", path)
    assert (outcome.exit_code, outcome.stderr) == (1, f"Error: {caught.value}\n")
    arguments = ("--method", "bce", "--out", tmp_path / "run", "--device", "cpu")
    trained = run("train", "--split", toy_split_file, "--features", path, *arguments)
    assert (trained.exit_code, trained.stderr) == (1, f"Error: {caught.value}\n")
    assert not (tmp_path / "run").exists()


# --- what is no regular file ----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_never_waited_for(tmp_path, run):
    folder = store(make_arrays(), tmp_path, "npy")
    os.mkfifo(folder / "pipe.npy")
    os.mkfifo(tmp_path / "f.h5")
    (folder / "zero.npy").symlink_to("/dev/zero")
    message = refusal(open_features(folder), *LENGTHS, "pipe", "zero")
    assert "  - 2 cannot be read: pipe (no regular file), zero (no regular file)\n" in message
    outcome = run("verify-features", folder)
    assert outcome.exit_code == 1 and "pipe (cannot be read (no regular file))" in outcome.stdout
    assert "no regular file" in run("pack-features", folder, "--out", tmp_path / "packed.h5").stdout
    for arguments in (("verify-features",), ("merge-features", "--out", tmp_path / "merged.h5")):
        outcome = run(*arguments, tmp_path / "f.h5")
        assert (outcome.exit_code, "f.h5 is no regular file; expected" in outcome.stderr) == (1, True)
    outcome = run("merge-features", folder, "--out", tmp_path / "merged.h5")
    assert (outcome.exit_code, outcome.stderr) == (1, f"Error: {folder} is a folder; expected a feature file\n")
