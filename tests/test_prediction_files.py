"""Every form of prediction file, well made and damaged."""

import json
import os
import random
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

import meidbench as mb
from meidbench import files
from meidbench.errors import MeidbenchError, PredictionError
from meidbench.predictions import open_predictions
from meidbench.predictions.align import read_predictions, run_warnings
from meidbench.predictions.values import write_predictions


@pytest.fixture(scope="module")
def given(toy_split):
    ids = toy_split.video_ids("test")
    labels = toy_split.labels("test")
    scores = (np.random.default_rng(0).normal(size=labels.shape) + labels).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(ids))
    return [ids[row] for row in order], scores[order]


def as_text(ids, scores, sep, header=None):
    lines = [sep.join([video, *(repr(float(score)) for score in row)]) for video, row in zip(ids, scores, strict=True)]
    return "\n".join(([sep.join(header)] if header else []) + lines) + "\n"


def write_form(form: str, path: Path, ids, scores, split) -> Path:
    classes = scores.shape[1]
    headers = {
        "csv-names": list(split.class_names),
        "csv-codes": [f"c{index:03d}" for index in range(classes)],
        "csv-numbers": [str(index) for index in range(classes)],
    }
    if form == "parquet":
        write_predictions(path, ids, scores, split, "test")
    elif form == "npz":
        with path.open("wb") as stream:
            np.savez(stream, video_ids=np.array(ids), scores=scores)
    elif form == "npz-deflated":
        with path.open("wb") as stream:
            np.savez_compressed(stream, video_ids=np.array(ids), scores=np.asfortranarray(scores))
    elif form == "hdf5":
        with h5py.File(path, "w") as file:
            file["video_ids"], file["scores"] = ids, scores
    elif form == "hdf5-packed":
        with h5py.File(path, "w") as file:
            file.create_dataset("video_ids", data=np.array(ids, "S20"))
            file.create_dataset("scores", data=scores, compression="gzip", chunks=(7, 5), fletcher32=True)
    elif form in headers:
        path.write_text(as_text(ids, scores, ",", ["video_id", *headers[form]]))
    else:
        path.write_text(as_text(ids, scores, {"text-blank": " ", "text-tab": "\t"}[form]))
    return path


FORMS = (
    "parquet", "npz", "npz-deflated", "hdf5", "hdf5-packed", "csv-names", "csv-codes", "csv-numbers", "text-blank",
    "text-tab",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_result(form, given, toy_split, toy_split_file, run, tmp_path):
    """Recognised by its content: the name says nothing."""
    path = write_form(form, tmp_path / "predictions", *given, toy_split)
    again = read_predictions(path)
    assert again.video_ids == given[0]
    np.testing.assert_array_equal(again.scores.astype(np.float32), given[1])
    outcome = run("evaluate", path, "--split", toy_split_file, "--json", "-")
    assert outcome.exit_code == 0, outcome.stderr
    got, expected = json.loads(outcome.stdout), json.loads(mb.evaluate(given[1], given[0], toy_split).to_json())
    for content in (got, expected):
        del content["diagnostics"]["score_dtype"]
    assert got == expected
    streamed = run("evaluate", path, "--split", toy_split_file, "--json", "-", "--memory", "1K")
    assert streamed.stdout == outcome.stdout


@pytest.mark.parametrize("dtype", ["f8", "i1", "i4", "i8", "u2", ">f4"])
def test_other_number_types(dtype, toy_split, tmp_path):
    ids = toy_split.video_ids("test")
    scores = np.random.default_rng(0).integers(0, 100, (len(ids), 12)).astype(dtype)
    with h5py.File(tmp_path / "h", "w") as file:
        file["video_ids"], file["scores"] = ids, scores
    np.savez(tmp_path / "n.npz", video_ids=np.array(ids), scores=scores)
    expected = average_precision_score(toy_split.labels("test"), scores.astype("f8"), average=None)
    for path in (tmp_path / "h", tmp_path / "n.npz"):
        given = read_predictions(path)
        result = mb.evaluate(given.scores, given.video_ids, toy_split)
        np.testing.assert_allclose([entry.ap for entry in result.per_class], expected, atol=1e-12)


# --- what is written --------------------------------------------------------------------------------------------


def test_what_is_written_says_what_it_belongs_to(given, toy_split, tmp_path):
    path = mb.write_predictions(tmp_path / "p.parquet", *given, toy_split, "test", run={"method": "m"})
    metadata = json.loads(pq.read_schema(path).metadata[b"meidbench"])
    assert metadata == {
        "dataset": "toylt", "subset": "test", "split_digest": toy_split.digest,
        "content_digest": toy_split.content_digest, "class_names": list(toy_split.class_names), "run": {"method": "m"},
    }  # fmt: skip
    assert pq.read_schema(path).field("scores").type == pa.list_(pa.float32(), 12)
    again = mb.write_predictions(tmp_path / "q.parquet", *given, toy_split, "test", run={"method": "m"})
    assert path.read_bytes() == again.read_bytes()


def test_a_run_chosen_on_the_test_subset_is_warned_of(given, toy_split, toy_split_file, run, tmp_path):
    path = mb.write_predictions(tmp_path / "p.parquet", *given, toy_split, "test", run={"select_on": "test"})
    outcome = run("evaluate", path, "--split", toy_split_file, "--json", tmp_path / "r.json")
    assert outcome.exit_code == 0
    assert "warning: the checkpoint was chosen on the test subset" in outcome.stderr
    assert "chosen on the test subset" in json.loads((tmp_path / "r.json").read_text())["warnings"][0]
    honest = mb.write_predictions(tmp_path / "q.parquet", *given, toy_split, "test", run={"select_on": "val"})
    assert "warning" not in run("evaluate", honest, "--split", toy_split_file).stderr
    for value in ("tset", "Test", 3, ["test"]):
        with pytest.raises(PredictionError, match=r"expected one of train, val, test"):
            mb.write_predictions(tmp_path / "no.parquet", *given, toy_split, "test", run={"select_on": value})
        (warning,) = run_warnings({"run": {"select_on": value}})  # of another program's file
        assert f"select_on is {value!r}, which is no subset" in warning
    assert not (tmp_path / "no.parquet").exists()


@pytest.mark.parametrize(("scores", "complaint"), [
    (np.zeros((3, 2)), "expected"), (np.full((49, 12), np.nan), "must be finite"),
    (np.array([["x"]] * 49), "real numbers"),
])  # fmt: skip
def test_what_could_not_be_scored_is_not_written(scores, complaint, given, tmp_path):
    with pytest.raises(PredictionError, match=complaint):
        mb.write_predictions(tmp_path / "p.parquet", given[0], scores)
    assert not list(tmp_path.iterdir())


# --- refusals ---------------------------------------------------------------------------------------------------


def refusal(path: Path, content: bytes | str | None = None) -> str:
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(PredictionError) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("text", "complaint"), [
    ("video_id,a,b\nx,1,2\ny,1\n", "line 3 (y) has 1 scores, expected 2"),
    ("video_id,a,b\nx,1,2\ny,1,\n", "line 3 (y): '' is not a number"),
    ("video_id,a,b\nx,1,1_0\n", "line 2 (x): '1_0' is not a number"),
    ("video_id,a,b\nx,1,two\n", "line 2 (x): 'two' is not a number"),
    ("x 1 2\ny 1 2 3\n", "line 2 (y) has 3 scores, expected 2"),
    ("x 1 2\ny 1 z\n", "line 2 (y): 'z' is not a number"),
    ('video_id,a\n"x,1\n', "nor readable text"),
    ("x,1,two\n", "neither a CSV header (video_id, then the classes)"),
    ("x,1,2\ny,1,two\n", "line 2 (y): 'two' is not a number"),
    ("video_id;a\nx;0,5\n", "'0,5' is not a number (column 'a'); decimal numbers have a point"),
    ("video_id,scores\nx,\"[0.5, 1]\"\n", "write lists as Parquet, e.g. frame.to_parquet(path)"),
    (",video_id,a\n0.5,x,1\n", "line 2: its first column has no class name, and holds '0.5'"),
])  # fmt: skip
def test_text_is_refused_with_the_line(tmp_path, text, complaint):
    assert complaint in refusal(tmp_path / "t", text)


def test_data_kept_outside_an_hdf5_file_is_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(800))
    with h5py.File(tmp_path / "other", "w") as file:
        file["scores"] = np.zeros((10, 10))
    with h5py.File(tmp_path / "a", "w") as file:
        file["video_ids"] = [f"v{row}" for row in range(10)]
        file.create_dataset("scores", (10, 10), "f8", external=[(str(tmp_path / "secret"), 0, 800)])
    with h5py.File(tmp_path / "b", "w") as file:
        file["video_ids"] = [f"v{row}" for row in range(10)]
        file["scores"] = h5py.ExternalLink(str(tmp_path / "other"), "scores")
    assert "scores keeps its numbers in other files" in refusal(tmp_path / "a")
    assert "scores is a link to another file" in refusal(tmp_path / "b")


def test_other_hdf5_contents_are_refused(tmp_path):
    cases = {
        "it lacks video_ids; it holds scores": {"scores": np.zeros((2, 2))},
        "video_ids are not strings": {"scores": np.zeros((2, 2)), "video_ids": np.zeros(2)},
        "expected (n,) and (n, C)": {"scores": np.zeros(2), "video_ids": ["a", "b"]},
        "of type |S1": {"scores": np.array([[b"a"]]), "video_ids": ["a"]},
    }
    for number, (complaint, content) in enumerate(cases.items()):
        with h5py.File(tmp_path / str(number), "w") as file:
            for name, value in content.items():
                file[name] = value
        assert complaint in refusal(tmp_path / str(number))


@pytest.mark.parametrize(("program", "complaint"), [
    ("import time; time.sleep(60)", "the HDF5 library found no end in 0 s: it is damaged"),
    ("import os; os.abort()", "the HDF5 library failed on it"),
])  # fmt: skip
def test_a_file_that_the_library_hangs_or_crashes_on_is_refused(
    program, complaint, given, toy_split, monkeypatch, tmp_path
):
    path = write_form("hdf5", tmp_path / "p.h5", *given, toy_split)
    files._stop_rehearser()
    with monkeypatch.context() as patched:
        patched.setattr(files, "_PROGRAM", program)
        patched.setattr(files, "HDF5_SECONDS", 0.3)
        assert complaint in refusal(path)
    assert read_predictions(path).video_ids == given[0]


def test_a_parquet_file_is_opened_once_and_at_most_once_more_to_decode(given, toy_split, tmp_path, monkeypatch):
    opened, parquet_file = [], pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path, **options: opened.append(path) or parquet_file(path, **options))
    path = write_form("parquet", tmp_path / "p", *given, toy_split)
    assert read_predictions(path).video_ids == given[0] and len(opened) == 1
    pq.write_table(pq.read_table(path), tmp_path / "q", row_group_size=7)
    opened.clear()
    # Of the two threads that decode seven row groups, the first may end before the second needs a reader.
    assert read_predictions(tmp_path / "q").video_ids == given[0] and len(opened) in (1, 2)


# --- bombs: files that unpack to far more than they are ---------------------------------------------------------


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz_bomb(path: Path) -> None:
    """1.1 GB of zeros in 5 MB, announced as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        ids = np.array([f"v{row}" for row in range(1000)])
        with archive.open("video_ids.npy", "w") as stream:
            np.save(stream, ids)
        zeros = bytes(1_000_000)
        with archive.open("scores.npy", "w") as stream:
            stream.write(npy_header((1000, 275_000), "<f4"))
            for _ in range(1100):
                stream.write(zeros)


def npz_liar(path: Path) -> None:
    """Announces a shape that the archive does not hold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("video_ids.npy", npy_header((10**9,), "<U8"))
        archive.writestr("scores.npy", npy_header((10**9, 1000), "<f8"))


def parquet_bomb(path: Path) -> None:
    """1.1 GB of zeros in a dictionary of one entry."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2_000 * 1000)), 1000)
    table = pa.table({"video_id": [f"v{row}" for row in range(2_000)], "scores": values})
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=True) as writer:
        for _ in range(70):
            writer.write_table(table)


def hdf5_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["video_ids"] = [f"v{row}" for row in range(1000)]
        file.create_dataset("scores", (1000, 10**6), "f8", chunks=(1000, 10**5), compression="gzip")


@pytest.mark.parametrize("bomb", [npz_bomb, npz_liar, parquet_bomb, hdf5_bomb])
def test_bombs_are_refused_in_little_memory(bomb, toy_split_file, tmp_path):
    bomb(tmp_path / "bomb")
    assert (tmp_path / "bomb").stat().st_size < 20_000_000

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # less than each bomb

    command = [sys.executable, "-m", "meidbench", "evaluate", tmp_path / "bomb", "--split", toy_split_file]
    outcome = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 1, outcome.stderr
    assert outcome.stderr.startswith("Error: ") and "Traceback" not in outcome.stderr


def test_lines_without_an_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("meidbench.predictions.base.LONGEST_LINE", 1000)
    for start in ("video_id,", "v1 "):
        (tmp_path / "p").write_text(start + "1," * 600)
        with pytest.raises(PredictionError, match="a line has 1,000 characters or more"):
            open_predictions(tmp_path / "p")


def test_hdf5_rows_that_take_no_space_are_refused(tmp_path):
    for shape, chunks in (((22_000_000,), (1000,)), ((22_000_000,), None)):
        with h5py.File(tmp_path / "h", "w") as file:
            file.create_dataset("video_ids", shape, "S1000", chunks=chunks)
            file.create_dataset("scores", (*shape, 12), "f4", chunks=chunks and (1000, 12))
        said = "needs 22,000 pieces, the file holds 0" if chunks else "takes 22,000,000,000 bytes, the file holds 0"
        with pytest.raises(PredictionError, match=f"video_ids of shape .* {said}"):
            open_predictions(tmp_path / "h")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(PredictionError, match="is (no regular file|a FIFO|a device)"):
            open_predictions(path)


# --- a thousand damaged files -----------------------------------------------------------------------------------


def flip_bits(draw: random.Random, raw: bytes) -> bytes:
    damaged = bytearray(raw)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        damaged[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def truncate(draw: random.Random, raw: bytes) -> bytes:
    return raw[: draw.randrange(1, len(raw))]


def overwrite(draw: random.Random, raw: bytes) -> bytes:
    start, size = draw.randrange(len(raw)), draw.randrange(1, 200)
    return raw[:start] + draw.randbytes(size) + raw[start + size :]


def cut_out(draw: random.Random, raw: bytes) -> bytes:
    start, size = draw.randrange(len(raw)), draw.randrange(1, 500)
    return raw[:start] + raw[start + size :]


def repeat_part(draw: random.Random, raw: bytes) -> bytes:
    start, size = draw.randrange(len(raw)), draw.randrange(1, 500)
    return raw[: start + size] + raw[start:]


DAMAGES = (flip_bits, truncate, overwrite, cut_out, repeat_part)
CHECKED = ("parquet", "npz", "npz-deflated", "hdf5-packed")  # forms that keep checksums of their scores


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_scored_rightly_or_refused(form, given, toy_split, tmp_path, monkeypatch):
    """A hundred of each form: a clean refusal, or the result of what the file now says."""
    sound = write_form(form, tmp_path / "sound", *given, toy_split).read_bytes()
    expected = mb.evaluate(given[1], given[0], toy_split).mAP
    path = tmp_path / "damaged"
    monkeypatch.setattr("meidbench.files.HDF5_SECONDS", 2.0)
    refused = 0
    for number in range(100):
        draw = random.Random(f"{form} {number}")
        damaged = DAMAGES[number % len(DAMAGES)](draw, sound)
        path.write_bytes(damaged)
        try:
            file = read_predictions(path)
            result = mb.evaluate(file.scores, file.video_ids, toy_split)
        except MeidbenchError:
            refused += 1
            continue
        assert np.isfinite(file.scores).all()
        if form in CHECKED:
            assert result.mAP == expected, (form, number)
        else:
            # Nothing protects a digit of a text, or a raw float: the file is scored as what it says now.
            again = average_precision_score(
                toy_split.labels("test")[[toy_split.video_ids("test").index(video) for video in file.video_ids]],
                file.scores.astype(np.float64),
                average="macro",
            )
            assert result.mAP.overall == pytest.approx(again, abs=1e-9), (form, number)
    assert refused >= 30


def save_npz(path, **arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def alter_ids(path, ids, scores, split):
    write_predictions(path, [ids[0] + "x", *ids[1:]], scores, split, "test")


def repeat_ids(path, ids, scores, split):
    write_predictions(path, [ids[1], *ids[1:]], scores, split, "test")


def change_type(path, ids, scores, split):
    with h5py.File(path, "w") as file:
        file["video_ids"], file["scores"] = ids, scores.astype("S8")


def drop_column(path, ids, scores, split):
    save_npz(path, video_ids=np.array(ids), scores=scores[:, :-1])


def half_precision(path, ids, scores, split):
    save_npz(path, video_ids=np.array(ids), scores=scores.astype(np.float16))


def objects(path, ids, scores, split):
    save_npz(path, video_ids=np.array(ids, dtype=object), scores=scores)


def too_many_rows(path, ids, scores, split):
    write_predictions(path, [f"v{row}" for row in range(50_000)], np.zeros((50_000, 12), np.float32))


@pytest.mark.parametrize(
    "make",
    [alter_ids, repeat_ids, change_type, drop_column, half_precision, objects, too_many_rows],
)
def test_files_that_are_whole_and_wrong_are_refused(make, given, toy_split, toy_split_file, run, tmp_path):
    make(tmp_path / "wrong", *given, toy_split)
    outcome = run("evaluate", tmp_path / "wrong", "--split", toy_split_file)
    assert outcome.exit_code == 1 and outcome.stderr.startswith("Error: "), outcome.stderr


def test_a_flipped_bit_in_a_score_of_our_own_file_is_refused(given, toy_split, tmp_path):
    """Uncompressed, so that the bytes of a score can be found; the page checksum gives the change away."""
    path = tmp_path / "p.parquet"
    values = pa.FixedSizeListArray.from_arrays(pa.array(given[1].ravel()), 12)
    table = pa.table({"video_id": given[0], "scores": values})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    place = raw.index(given[1][3, 4].tobytes())
    raw[place] ^= 1
    assert "not a readable Parquet file" in refusal(path, bytes(raw))


def test_a_wrong_checksum_of_an_archive_is_refused(given, toy_split, tmp_path):
    raw = bytearray(write_form("npz", tmp_path / "n", *given, toy_split).read_bytes())
    place = raw.index(given[1][3, 4].tobytes())
    raw[place] ^= 1
    assert "Bad CRC-32" in refusal(tmp_path / "n", bytes(raw))
    assert zlib.crc32(b"") == 0  # the module is there


def test_files_are_closed_after_a_refusal(tmp_path):
    path = tmp_path / "n.npz"
    np.savez(path, scores=np.zeros((2, 2)))
    with pytest.raises(PredictionError):
        open_predictions(path)
    path.unlink()


def test_half_precision_is_seen_in_either_byte_order(toy_split, tmp_path):
    ids = toy_split.video_ids("test")
    for order in "<>":
        with pytest.raises(PredictionError, match="float16"):
            mb.evaluate(np.zeros((len(ids), 12), f"{order}f2"), ids, toy_split)
    result = mb.evaluate(np.zeros((len(ids), 12), ">f4"), ids, toy_split)
    assert result.diagnostics.score_dtype == "float32"


def test_an_archive_of_another_compression_is_read_or_refused(toy_split, tmp_path):
    path = tmp_path / "n.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in (("video_ids", np.array(["a", "b"])), ("scores", np.eye(2))):
            with archive.open(f"{name}.npy", "w") as stream:
                np.save(stream, array)
    assert read_predictions(path).video_ids == ["a", "b"]
    raw = bytearray(path.read_bytes())
    for place in range(60, 120):
        raw[place] ^= 0xFF
    refusal(path, bytes(raw))


def test_a_module_in_the_working_directory_is_not_run(given, toy_split, tmp_path, monkeypatch):
    path = write_form("hdf5", tmp_path / "p.h5", *given, toy_split)
    (tmp_path / "h5py.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(tmp_path)
    assert read_predictions(path).video_ids == given[0]
