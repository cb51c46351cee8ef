"""Verification against files that were spoilt on purpose: each fault is found, named, and nothing else is."""

import errno
import hashlib
import json
import os
import shutil
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from meidbench.cli.features import verify_features
from meidbench.errors import FeatureError
from meidbench.features import open_features, row_checks
from meidbench.features.feature_file import Layout
from meidbench.features.packing import pack
from meidbench.features.records import StoredVideos, VideoRows, encode
from meidbench.features.row_checks import check_rows
from meidbench.features.store import feature_writer, partial_path
from meidbench.features.verification import CHECKS, cosine_similarity, verify

WIDTH, ROWS = 24, 6
FORMS = ["npy", "grouped", "float16", "float32", "int8"]


def make_arrays(number=8, seed=0):
    generator = np.random.default_rng(seed)
    return {f"v{at}": generator.standard_normal((ROWS, WIDTH)).astype(np.float32) for at in range(number)}


def store(folder, arrays, form):
    """Write arrays in one of the forms and return the path; nothing is refused on the way."""
    if form == "npy":
        path = folder / "npy"
        path.mkdir()
        for video_id, array in arrays.items():
            np.save(path / f"{video_id}.npy", array)
        return path
    path = folder / "features.h5"
    if form == "grouped":
        with h5py.File(path, "w") as file:
            for video_id, array in arrays.items():
                file[f"features/{video_id}"] = array
        return path
    ids = tuple(sorted(arrays))
    counts = np.array([len(arrays[video_id]) for video_id in ids])
    layout = Layout(ids, counts, len(set(counts)) == 1, WIDTH, form, False, np.zeros(len(ids), np.int64))
    with feature_writer(path, layout, {"backbone": "r101", "weights": {"sha256": "ab12"}, "frames": 6}) as writer:
        for position, video_id in enumerate(ids):
            rows, scales = arrays[video_id].astype(form if form != "int8" else np.float32), None
            if form == "int8":
                sound = np.nan_to_num(rows)
                rows, scales = encode(sound, form)
                scales[~np.isfinite(arrays[video_id]).all(axis=1)] = np.nan
            writer.put(position, VideoRows(rows, scales=scales))
        writer.finish()
    return path


def told(verification):
    return {finding.check: finding.concerned for finding in verification.findings}


def invoke(*arguments):
    return CliRunner().invoke(verify_features, [str(argument) for argument in arguments])


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def test_nothing_is_found_in_sound_features(tmp_path, form):
    verification = verify(store(tmp_path, make_arrays(), form))
    assert verification.findings == () and verification.is_sound
    assert (verification.videos, verification.rows, verification.dim) == (8, 8 * ROWS, WIDTH)
    assert verification.statuses == {"pending": 0, "ok": 8, "salvaged": 0, "failed": 0}
    assert verification.dtype == {"npy": "float32", "grouped": "float32"}.get(form, form)


def test_rows_without_content_are_found_in_every_form(tmp_path, form):
    arrays = make_arrays()
    arrays["v1"][2:4] = 0.0
    arrays["v2"][5] = 0.25
    arrays["v3"][:] = arrays["v3"][0]
    arrays["v4"][3, 3] = np.nan
    arrays["v5"] = arrays["v6"].copy()
    arrays["v7"][0, :-1] = 1.5  # all but one number alike, which is nothing
    verification = verify(store(tmp_path, arrays, form))
    assert told(verification) == {
        "zero-rows": ("v1 (2 of 6)",),
        "constant-rows": ("v2 (1 of 6)",),
        "frozen": ("v3 (6 rows)",),
        "not-finite": ("v4 (1 of 6)",),
        "duplicates": ("v5 = v6",),
    }
    assert [finding.severity for finding in verification.findings] == ["error"] * 2 + ["warning"] * 3
    assert not verification.is_sound


@pytest.mark.parametrize("odd", [np.inf, -np.inf])
def test_infinity_is_found(tmp_path, form, odd):
    arrays = make_arrays(3)
    arrays["v1"][1, 0] = odd
    assert told(verify(store(tmp_path, arrays, form))) == {"not-finite": ("v1 (1 of 6)",)}


def test_damage_since_writing_is_found_by_the_checksum(tmp_path):
    for form in ("float16", "int8"):
        folder = tmp_path / form
        folder.mkdir()
        path = store(folder, make_arrays(), form)
        with h5py.File(path) as file:
            offset = file["features"].id.get_offset()
            place = offset + 2 * ROWS * WIDTH * file["features"].dtype.itemsize + 11
        with path.open("r+b") as stream:
            stream.seek(place)
            byte = stream.read(1)
            stream.seek(place)
            stream.write(bytes([byte[0] ^ 4]))
        assert told(verify(path)) == {"checksum": ("v2",)}


def test_damage_to_the_scales_of_int8_is_found_by_the_checksum(tmp_path):
    path = pack(store(tmp_path, make_arrays(), "npy"), tmp_path / "f.h5", dtype="int8").path
    with h5py.File(path) as file:
        place = file["scales"].id.get_offset() + (2 * ROWS + 1) * file["scales"].dtype.itemsize
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    assert told(verify(path)) == {"checksum": ("v2",)}
    outcome = invoke(path)
    assert outcome.exit_code == 1 and "checksum" in outcome.stdout.split("nothing found by")[0]


def test_a_shared_checksum_is_not_a_duplicate(tmp_path, monkeypatch):
    path = store(tmp_path, make_arrays(), "npy")
    monkeypatch.setattr(VideoRows, "checksum", lambda self: 7)
    assert verify(path).findings == ()


def test_int8_rows_that_differ_in_scale_alone_are_neither_frozen_nor_duplicates(tmp_path):
    row = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    arrays = {"v0": np.outer(np.arange(1, 7), row).astype(np.float32), "v1": np.outer(np.arange(2, 8), row)}
    assert verify(store(tmp_path, arrays, "int8")).findings == ()


def test_files_that_cannot_be_read_and_those_of_another_kind_are_named(tmp_path):
    path = store(tmp_path, make_arrays(), "npy")
    (path / "v0.npy").write_bytes((path / "v0.npy").read_bytes()[:-4])
    np.save(path / "v1.npy", np.random.default_rng(0).standard_normal((2, WIDTH + 1)).astype(np.float32))
    np.save(path / "v2.npy", np.random.default_rng(1).standard_normal((3, WIDTH)))
    (path / "._v3.npy").write_bytes(b"of a file manager")
    verification = verify(path)
    assert told(verification) == {
        "unreadable": ("v0 (truncated (700 of 704 bytes))",),
        "width": ("v1 (25)",),
        "dtype": ("v2 (float64)",),
    }
    assert (verification.videos, verification.rows, verification.statuses["failed"]) == (8, 5 * ROWS + 5, 1)


def test_failed_salvaged_and_pending_videos_are_named_with_their_reasons(tmp_path):
    arrays = make_arrays(4)
    layout = Layout(tuple(arrays), np.full(4, ROWS), True, WIDTH, "float32", False, np.zeros(4, np.int64))
    with feature_writer(tmp_path / "f.h5", layout, {}) as writer:
        writer.put(0, VideoRows(arrays["v0"]))
        writer.put(1, VideoRows(arrays["v1"][:0], "failed", "no video stream"))
        writer.put(2, VideoRows(arrays["v2"], "salvaged", "cut short"))
    verification = verify(partial_path(tmp_path / "f.h5"))
    assert told(verification) == {
        "failed": ("v1 (no video stream)",),
        "pending": ("v3",),
        "salvaged": ("v2 (cut short)",),
    }
    assert verification.statuses == {"pending": 1, "ok": 1, "salvaged": 1, "failed": 1}


def test_the_videos_of_a_split_are_looked_for(tmp_path, toy_split):
    ids = sorted(toy_split.table.column("video_id").to_pylist())
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((2, WIDTH)) for name in [*ids[2:], "another"]}
    verification = verify(store(tmp_path, arrays, "npy"), split=toy_split)
    assert told(verification) == {"missing": tuple(ids[:2]), "extra": ("another",)}
    assert not verification.is_sound


def test_a_recipe_is_compared_entry_by_entry(tmp_path):
    path = store(tmp_path, make_arrays(2), "float16")
    right = {"backbone": "r101", "weights.sha256": "ab12", "frames": "6", "weights": '{"sha256": "ab12"}'}
    assert verify(path, recipe=right).findings == ()
    wrong = {"backbone": "r50", "weights.sha": "ab12", "frames": "true", "backbone.x": "1"}
    assert told(verify(path, recipe=wrong))["recipe"] == (
        "backbone.x: not recorded, expected 1",
        "backbone: r101, expected r50",
        "frames: 6, expected true",
        "weights.sha: not recorded, expected ab12",
    )
    (tmp_path / "other").mkdir()
    npy = store(tmp_path / "other", make_arrays(2), "npy")
    assert told(verify(npy, recipe={"frames": "6"}))["recipe"] == ("frames: no recipe is stored, expected 6",)


# --- made again -----------------------------------------------------------------------------------


def test_cosines_are_those_of_scikit_learn():
    from sklearn.metrics.pairwise import cosine_similarity as peer

    one, other = np.random.default_rng(0).standard_normal((2, 7, WIDTH))
    other[2] = 0
    np.testing.assert_allclose(cosine_similarity(one, other), np.diag(peer(one, other)), atol=1e-12)


def test_an_id_leads_out_of_no_folder_of_originals(tmp_path):
    arrays = {"x/../../outside": make_arrays(1)["v0"]}
    path = store(tmp_path, arrays, "float32")
    (tmp_path / "npy" / "x").mkdir(parents=True)
    np.save(tmp_path / "outside.npy", arrays["x/../../outside"])
    np.save(tmp_path / "npy" / "another.npy", arrays["x/../../outside"])
    verification = verify(path, npy=tmp_path / "npy")
    assert verification.similarities == ()
    assert "no usable id" in told(verification)["similarity"][0]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_packed_file_is_compared_with_its_folder(tmp_path, dtype):
    arrays = make_arrays()
    npy = store(tmp_path, arrays, "npy")
    path = pack(npy, tmp_path / "f.h5", dtype=dtype).path
    verification = verify(path, npy=npy)
    assert verification.is_sound
    assert [entry.video_id for entry in verification.similarities] == sorted(arrays)
    for entry in verification.similarities:
        assert 0.999 < entry.min <= entry.mean <= 1.0000001
    np.save(npy / "v3.npy", -arrays["v3"])
    np.save(npy / "v4.npy", arrays["v4"][:2])
    (npy / "v5.npy").unlink()
    verification = verify(path, npy=npy)
    said = told(verification)["similarity"]
    assert said[0].startswith("v3 (-0.99") or said[0] == "v3 (-1.0000)"
    assert said[1:] == ("v4 (shape (2, 24) when made again, stored (6, 24))", "v5 (missing)")
    assert len(verification.similarities) == 6


def test_a_sample_is_made_again_and_drawn_by_its_seed(tmp_path):
    arrays = make_arrays(20)
    path = store(tmp_path, arrays, "float32")
    asked = []

    def extract(video_id):
        asked.append(video_id)
        return VideoRows(arrays[video_id])

    drawn = {}
    for seed in (0, 1, 0):
        verification = verify(path, extract=extract, sample=4, seed=seed)
        names = [entry.video_id for entry in verification.similarities]
        assert len(set(names)) == 4 and names == sorted(names) == asked[-4:]
        assert drawn.setdefault(seed, names) == names
    assert drawn[0] != drawn[1]
    assert len(verify(path, extract=extract, sample=99).similarities) == 20

    def broken(video_id):
        if video_id == "v0":
            raise FeatureError("cannot be opened\nmore")
        rows = VideoRows(arrays[video_id])
        return replace(rows, rows=rows.rows[:0], status="failed", reason="no frames") if video_id == "v1" else rows

    assert told(verify(path, extract=broken))["similarity"] == ("v0 (cannot be opened)", "v1 (no frames)")


def test_what_cannot_be_meant_is_refused(tmp_path):
    path = store(tmp_path, make_arrays(2), "float32")
    with pytest.raises(FeatureError, match="not both"):
        verify(path, npy=path, extract=lambda video_id: VideoRows(np.ones((1, 1))))
    with pytest.raises(FeatureError, match="sample is how many"):
        verify(path, sample=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match="there are no features in"):
        verify(tmp_path / "empty")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(FeatureError):
        verify(path)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_tells_in_its_exit_code(tmp_path, toy_split, toy_split_file):
    ids = sorted(toy_split.table.column("video_id").to_pylist())
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((2, WIDTH)).astype(np.float32) for name in ids}
    path = store(tmp_path, arrays, "float16")
    outcome = invoke(path, "--split", toy_split_file, "--recipe", "backbone=r101", "--recipe", "weights.sha256=ab12")
    assert outcome.exit_code == 0, outcome.output
    assert "nothing found by: missing," in outcome.stdout
    assert outcome.stdout.splitlines()[0].split() == ["videos", f"{len(ids)}", f"({len(ids)}", "ok)"]

    outcome = invoke(path, "--recipe", "backbone=r50")
    assert outcome.exit_code == 1
    assert "backbone: r101, expected r50" in outcome.stdout
    # Without a split nothing can be missing from it, and it must not look as if that had been checked.
    assert "missing" not in outcome.stdout and "similarity" not in outcome.stdout
    assert invoke(path, "--recipe", "backbone").exit_code == 2
    assert invoke(path, "--sample", "3").exit_code == 2


def test_the_json_is_the_same_every_time_and_holds_all(tmp_path):
    arrays = make_arrays(9)
    for video_id in arrays:
        arrays[video_id][0] = 0
    path = store(tmp_path, arrays, "npy")
    outcomes = [invoke(path, "--npy", path, "--sample", "5", "--seed", "3", "--json", "-") for _ in range(2)]
    assert outcomes[0].exit_code == 0 and outcomes[0].stdout == outcomes[1].stdout
    content = json.loads(outcomes[0].stdout)
    assert content["is_sound"] is True and content["recipe"] is None
    assert len(content["findings"][0]["concerned"]) == 9
    assert len(content["similarities"]) == 5
    assert json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n" == outcomes[0].stdout
    assert str(tmp_path) not in outcomes[0].stdout
    assert invoke(path, "--json", tmp_path / "v.json").exit_code == 0
    assert json.loads((tmp_path / "v.json").read_text())["videos"] == 9


def test_a_file_of_others_is_verified(tmp_path):
    arrays = make_arrays()
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["video_ids"] = sorted(arrays)
        file.create_dataset("features", data=np.stack(list(arrays.values())), chunks=(1, ROWS, WIDTH), compression=1)
    verification = verify(open_features(tmp_path / "theirs.h5"))
    assert verification.findings == () and verification.rows == 8 * ROWS
    assert "checksum" not in verification.checks and set(verification.checks) < set(CHECKS)


def test_an_empty_folder_is_no_folder_that_was_packed(tmp_path):
    path = store(tmp_path, make_arrays(2), "float32")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match=r"there are no features in .*empty; expected a feature file"):
        verify(path, npy=tmp_path / "empty")


# --- rows before a training -----------------------------------------------------------------------


def features_of(split, folder, form):
    """Write random features of a split's videos in one of the forms."""
    ids, generator = split.table.column("video_id").to_pylist(), np.random.default_rng(0)
    return store(folder, {name: generator.standard_normal((2, WIDTH)).astype(np.float32) for name in ids}, form)


def swap_rows(path, whole=False):
    """Exchange the rows of the first two videos of a feature file; ``whole`` exchanges their checksums, too."""
    with h5py.File(path, "r+") as file:
        for name in ("features", "scales", "checksums") if whole else ("features", "scales"):
            if name in file:
                file[name][:2] = file[name][:2][::-1]
        return [name.decode() for name in file["video_ids"][:2]]


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_rows_that_were_moved_between_videos_are_refused(tmp_path, toy_split, form):
    path = features_of(toy_split, tmp_path, form)
    before = check_rows(open_features(path), toy_split)
    total = toy_split.table.num_rows
    assert (before.kind, before.read, before.videos, before.has_checksums) == ("full", total, total, True)
    assert str(before) == f"features: the rows of all {total} videos are checked: their checksums agree"
    moved = swap_rows(path)
    with pytest.raises(FeatureError, match="have other rows than were written") as caught:
        for subset in ("train", "val", "test"):
            check_rows(open_features(path), toy_split, [subset])
    assert any(video_id in str(caught.value) for video_id in moved)
    assert check_rows(open_features(path), toy_split, check="none").kind == "none"
    # With their checksums, these are other features: no check of one file can tell, but the digest does.
    swap_rows(path)
    swap_rows(path, whole=True)
    after = check_rows(open_features(path), toy_split)
    assert after.kind == "full" and after.digest != before.digest


@pytest.mark.parametrize("form", FORMS)
def test_the_digest_of_rows_is_computed_from_the_rows(tmp_path, toy_split, form):
    path = features_of(toy_split, tmp_path, form)
    found = check_rows(open_features(path), toy_split)
    source, expected = open_features(path), []
    for subset in ("train", "val", "test"):
        ids = toy_split.video_ids(subset)
        sums = []
        for video_id in ids:
            if form == "int8":
                rows, scales = source.load_stored(video_id)
                sums.append(zlib.crc32(rows.tobytes() + scales.tobytes()))
            else:
                sums.append(zlib.crc32(source.read(video_id).tobytes()))
        content = np.full(len(ids), 2, "<i8").tobytes() + np.array(sums, "<u4").tobytes()
        expected.append(hashlib.sha256(content).hexdigest())
    assert found.digest == hashlib.sha256(" ".join(expected).encode()).hexdigest()
    assert found.has_checksums == (form in ("float16", "float32", "int8"))


@pytest.mark.parametrize("form", ["npy", "float16"])
def test_a_large_subset_is_read_whole_once_and_then_sampled_until_it_changes(tmp_path, toy_split, form, monkeypatch):
    monkeypatch.setattr(row_checks, "LARGE_SUBSET", 1)
    monkeypatch.setattr(row_checks, "SAMPLED_VIDEOS", 3)
    path = features_of(toy_split, tmp_path, form)

    def check(kind="auto"):
        row_checks._checked_here.clear()  # as another process
        return check_rows(open_features(path), toy_split, ["val"], check=kind)

    whole, total = check(), len(toy_split.video_ids("val"))
    assert (whole.kind, whole.read) == ("full", total)
    assert (check().kind, check().read, check().digest) == ("sample", 3, whole.digest)
    assert check("full") == whole and check("sample").read == 3 and check("none").read == 0
    changed = path / f"{toy_split.video_ids('val')[0]}.npy" if form == "npy" else path
    os.utime(changed, ns=(1, 1))
    assert (check().kind, check().kind) == ("full", "sample")
    (memory,) = (row_checks.home() / "checked-features").iterdir()
    memory.write_text("[1")
    assert check() == whole
    # The subsets of a folder are remembered beside each other.
    subsets = ("train", "val", "test")
    for kind in ("full", "sample"):
        row_checks._checked_here.clear()
        assert {check_rows(open_features(path), toy_split, [name]).kind for name in subsets[::2]} == {kind}
    assert check().kind == "sample"
    # Another file of the same size and time, as rsync writes it.
    copy = changed.with_name("copy")
    shutil.copy2(changed, copy)
    copy.replace(changed)
    assert check().kind == "full"
    # A folder that cannot be written costs a second reading only.
    shutil.rmtree(memory.parent)
    memory.parent.write_text("no folder")
    assert [check().kind, check().kind] == ["full", "full"]


def test_rows_that_cannot_be_read_are_refused_with_their_video(tmp_path, toy_split, monkeypatch):
    ids = sorted(toy_split.table.column("video_id").to_pylist())
    rows = np.random.default_rng(0).random((len(ids), 2, 8), np.float32)
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["video_ids"] = ids
        dataset = file.create_dataset("features", data=rows, chunks=(1, 2, 8), fletcher32=True)
        place = dataset.id.get_chunk_info(ids.index(toy_split.video_ids("val")[0])).byte_offset
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FeatureError, match=rf"cannot be read: {toy_split.video_ids('val')[0]} \("):
        check_rows(open_features(path), toy_split)

    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    source = open_features(features_of(toy_split, tmp_path, "float16"))
    monkeypatch.setattr(StoredVideos, "read_stored", fail)
    with pytest.raises(FeatureError, match=r"cannot be read: .* \(.*Input/output error\)"):
        check_rows(source, toy_split)


def test_runs_of_one_process_read_the_rows_once(tmp_path, toy_split, monkeypatch):
    source = open_features(features_of(toy_split, tmp_path, "float16"))
    first = check_rows(source, toy_split)
    monkeypatch.setattr(StoredVideos, "read_stored", lambda self, video_id: pytest.fail("read again"))
    assert check_rows(source, toy_split) == first
