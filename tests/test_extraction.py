"""Extraction against the plain script, interrupted in every way, shared, and with damaged files."""

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import h5py
import make_videos
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_extractor import SMALL_RESNET, TinyExtractor, extract_on_full_disk, extract_until

from meidbench.errors import RequestError
from meidbench.extraction.decoder_pool import DecoderPool, DecodingSettings, FrameBatch, RowsCounted, VideoFinished
from meidbench.extraction.encoders.backbones import BACKBONES, Backbone, ResNet, build
from meidbench.extraction.encoders.extractor import Extractor, choose_device
from meidbench.extraction.encoders.preprocessing import IMAGENET, Preprocessing
from meidbench.extraction.encoders.weights import load_weights
from meidbench.extraction.extraction import Shard, extract_features, summarise
from meidbench.extraction.frames import FrameRule
from meidbench.extraction.videos import find_videos
from meidbench.features import open_features
from meidbench.features.feature_file import STATUSES, read_header
from meidbench.features.records import read_rows
from meidbench.features.store import partial_path


def decode_plainly(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def plain_features(images, model, preprocessing=IMAGENET):
    """One frame at a time, as a script would: Pillow, then the model in eval mode."""
    resize, crop = preprocessing.resize, preprocessing.crop
    rows = []
    for array in images:
        image = Image.fromarray(array)
        width, height = image.size
        short = min(width, height)
        image = image.resize((int(resize * width / short), int(resize * height / short)), Image.Resampling.BILINEAR)
        left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
        pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), np.float32) / 255
        pixels = (pixels - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
        with torch.no_grad():
            rows.append(model(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("size", ["small", "full"])
def test_features_are_those_of_the_plain_script(clips, tmp_path, request, size):
    """All kinds of video through the small network; one, whose frames repeat, through the full one."""
    if size == "small":
        request.getfixturevalue("small_resnet50")
    only = find_videos(clips, ["clip0", "clip1", "pictures"] if size == "small" else ["clip1"]).videos
    extractor = Extractor(
        "resnet50", "random", seed=3, rule=FrameRule("uniform", frames=5), device="cpu", dtype="float32"
    )
    extract_features(only, tmp_path / "f.h5", extractor, workers=2)
    source = open_features(tmp_path / "f.h5")
    model = build("resnet50")
    load_weights(model, BACKBONES["resnet50"], "random", seed=3)
    for video in only:
        if video.is_folder:
            images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(video.path.iterdir())]
        else:
            images = decode_plainly(video.path)
        chosen = np.linspace(0, len(images) - 1, 5).astype(int)
        expected = plain_features([images[index] for index in chosen], model, extractor.encoder.preprocessing)
        assert expected.shape == (5, 2048) and expected.std() > 0.01
        np.testing.assert_allclose(source.read(video.video_id), expected, rtol=0, atol=1e-4)
    first = [0, 4, 9, 14, 19] if size == "small" else [0, 0, 1, 1, 2]
    with h5py.File(tmp_path / "f.h5") as file:
        recipe = json.loads(file.attrs["recipe"])
        assert file["frame_indices"][0].tolist() == first
        np.testing.assert_allclose(file["timestamps"][0], np.array(first) / 30, atol=1e-3)
    assert recipe["backbone"] == "resnet50" and len(recipe["weights_sha256"]) == 64
    assert recipe["sampling"] == "uniform=5" and "libavcodec" in recipe["libraries"]


@pytest.fixture
def small_tsm(monkeypatch):
    """A shallow network with the temporal shift, for small images."""
    small = replace(SMALL_RESNET, name="small-tsm", make_network=partial(ResNet, (1, 1, 1, 1), 8), clip=8)
    monkeypatch.setitem(BACKBONES, "small-tsm", small)
    return small


def test_clips_of_the_temporal_shift_are_eight_rows_of_one_video(clips, small_tsm, tmp_path):
    only = find_videos(clips, ["clip0", "clip1"]).videos
    extractor = Extractor(
        "small-tsm", "random", seed=3, rule=FrameRule("uniform", frames=10), device="cpu", dtype="float32"
    )
    extract_features(only, tmp_path / "f.h5", extractor)
    model = build("small-tsm")
    load_weights(model, small_tsm, "random", seed=3)
    for video in only:
        images = decode_plainly(video.path)
        chosen = np.linspace(0, len(images) - 1, 10).astype(int)
        crops = []
        for index in [*chosen, *[chosen[-1]] * 6]:
            crops.append(plain_features([images[index]], torch.nn.Identity(), small_tsm.preprocessing))
        with torch.no_grad():
            expected = torch.cat([model(torch.from_numpy(np.concatenate(crops[at : at + 8]))) for at in (0, 8)])[:10]
        np.testing.assert_allclose(open_features(tmp_path / "f.h5").read(video.video_id), expected, rtol=0, atol=1e-4)


def test_clips_of_the_temporal_shift_are_of_rows_also_where_time_repeats_frames(clips, small_tsm, tmp_path):
    only = find_videos(clips, ["clip1"]).videos
    extractor = Extractor(
        "small-tsm", "random", seed=3, rule=FrameRule.from_text("fps=60"), device="cpu", dtype="float32"
    )
    extract_features(only, tmp_path / "f.h5", extractor)
    seen = []
    extractor.encode = lambda crops: seen.append(len(crops)) or torch.zeros(len(crops), 2048)
    assert extractor.extract(only[0]).frame_indices.tolist() == [0, 0, 1, 1, 2] and seen == [5]


class PatchNet(torch.nn.Module):
    """A network other than a ResNet: patches of 8 x 8 pixels, one linear layer, and the mean over patches."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 24, 8, stride=8)
        self.norm = torch.nn.LayerNorm(24)
        self.mix = torch.nn.Linear(24, 24)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return (tokens + self.mix(self.norm(tokens))).mean(1).float()


def test_a_backbone_is_one_entry(clips, in_this_process, monkeypatch, tmp_path):
    """The entry gives width, layer, preprocessing and classifier; nothing else is changed."""
    preprocessing = Preprocessing(resize=40, crop=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    patch = Backbone(
        "patch", PatchNet, dim=24, layer="mean of patches", preprocessing=preprocessing, classifier=("head.",)
    )
    monkeypatch.setitem(BACKBONES, "patch", patch)
    (video,) = find_videos(clips, ["clip0"]).videos
    model = build("patch")
    load_weights(model, patch, "random", seed=1)
    torch.save({**model.state_dict(), "head.weight": torch.ones(3, 24)}, tmp_path / "patch.pth")
    extractor = Extractor("patch", tmp_path / "patch.pth", rule=FrameRule("uniform", 5), device="cpu", dtype="float32")
    extract_features([video], tmp_path / "f.h5", extractor)
    images = decode_plainly(video.path)
    expected = plain_features([images[index] for index in (0, 4, 9, 14, 19)], model, preprocessing)
    source = open_features(tmp_path / "f.h5")
    assert source.dim == 24 and expected.std() > 0.01
    np.testing.assert_allclose(source.read("clip0"), expected, rtol=0, atol=1e-4)
    recipe = read_header(tmp_path / "f.h5").recipe
    assert recipe["layer"] == "mean of patches" and recipe["preprocessing"]["crop"] == "centre 32"
    assert recipe["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


def test_unreadable_videos_are_recorded_and_the_others_extracted(extracted_clips):
    summary = summarise(extracted_clips)
    assert (summary.videos, summary.ok, summary.salvaged, summary.failed) == (14, 11, 0, 3)
    assert [(name, status) for name, status, _ in summary.troubles] == [
        ("empty", "failed"), ("noise", "failed"), ("sound", "failed")
    ]  # fmt: skip
    assert all(reason for _, _, reason in summary.troubles)


@pytest.mark.parametrize("rule", ["all", "fps=7"])
def test_rows_by_time_are_stored_without_padding(clips, tmp_path, rule):
    videos = find_videos(clips).videos
    summary = extract_features(videos, tmp_path / "f.h5", TinyExtractor(rule), workers=2)
    assert summary.failed == 3
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].shape == (sum(file["row_counts"]), 2048)
    source = open_features(tmp_path / "f.h5")
    for number, frames in enumerate(make_videos.CLIP_FRAMES):
        expected = frames if rule == "all" else len(np.arange(0, (frames - 1) / 30 + 1e-9, 1 / 7))
        assert source.num_frames(f"clip{number}") == expected
        alone = TinyExtractor(rule).extract(next(video for video in videos if video.video_id == f"clip{number}"))
        np.testing.assert_array_equal(source.read(f"clip{number}"), alone.rows)
    reports = []
    again = extract_features(videos, tmp_path / "f.h5", TinyExtractor(rule), report=reports.append)
    assert again.extracted == 0 and not any("counting" in line for line in reports)


def test_a_finished_set_is_not_decoded_again(clips, extracted_clips, tmp_path, monkeypatch):
    path = Path(shutil.copy(extracted_clips, tmp_path / "f.h5"))
    monkeypatch.setattr("meidbench.extraction.decoder_pool.DecoderPool.__enter__", lambda pool: pytest.fail("decodes"))
    extractor = TinyExtractor()
    summary = extract_features(find_videos(clips).videos, path, extractor)
    assert summary.extracted == 0 and summary.ok == 11 and extractor.batches == []


def test_only_a_new_and_a_changed_video_are_extracted(clips, extracted_clips, tmp_path):
    folder = Path(shutil.copytree(clips, tmp_path / "clips"))
    make_videos.write_video(folder / "clip3.mp4", make_videos.pictures(6, 64, 48))
    make_videos.write_video(folder / "later.mp4", make_videos.pictures(7, 64, 48))
    path = Path(shutil.copy(extracted_clips, tmp_path / "f.h5"))
    assert extract_features(find_videos(folder).videos, path, TinyExtractor(), workers=1).extracted == 2
    whole = tmp_path / "g.h5"
    extract_features(find_videos(folder).videos, whole, TinyExtractor(), workers=1)
    assert path.read_bytes() == whole.read_bytes()


def test_frames_of_one_video_are_never_batched_with_others(clips, tmp_path):
    extractor = TinyExtractor(batch_size=4)
    extract_features(find_videos(clips, ["clip0", "clip1", "clip3"]).videos, tmp_path / "f.h5", extractor, workers=1)
    # Six of 20, three of 3 and one of 1: a repeated frame is computed once.
    assert sorted(extractor.batches) == [1, 2, 3, 4]


def test_features_that_are_not_finite_fail(clips, tmp_path):
    extractor = TinyExtractor(dtype="float16")
    extractor.encode = lambda crops: torch.full((len(crops), 2048), 1e6)
    summary = extract_features(find_videos(clips, ["clip0"]).videos, tmp_path / "f.h5", extractor, workers=1)
    said = "the features are not finite in float16; pass --dtype float32"
    assert summary.troubles == (("clip0", "failed", said),)
    assert list(tmp_path.iterdir()) == [], "a file of failures alone would refuse the next try with float32"
    part = Shard(1, 2)
    extract_features(find_videos(clips, ["clip0", "clip2"]).videos, tmp_path / "f.h5", extractor, shard=part, workers=1)
    assert part.part_path(tmp_path / "f.h5").is_file(), "a merge needs all parts"


# --- decoding processes ------------------------------------------------------------------------------


def test_large_frames_and_full_slots_come_through(clips):
    videos = find_videos(clips, ["clip0", "clip7", "pictures"]).videos
    for slot_bytes, processes in ((1000, 2), (30_000, 1), (1 << 20, 2)):  # less than a frame, a few frames, all
        seen = {video.video_id: [] for video in videos}
        with DecoderPool(videos, DecodingSettings(FrameRule("all"), slot_bytes=slot_bytes), processes) as pool:
            for event in pool:
                if isinstance(event, FrameBatch):
                    window = event.window
                    for (job,), index, frame in zip(event.jobs, event.indices, event.frames.copy(), strict=True):
                        seen[videos[job].video_id].append((index, frame, window))
                    event.release()
                else:
                    assert isinstance(event, VideoFinished) and event.result.status == "ok"
        for video_id in ("clip0", "clip7"):
            images = decode_plainly(clips / f"{video_id}.mp4")
            assert [index for index, _, _ in seen[video_id]] == list(range(len(images)))
            for index, frame, window in seen[video_id]:
                np.testing.assert_array_equal(
                    frame, images[index][window.top : window.bottom, window.left : window.right]
                )


@pytest.mark.parametrize(
    ("blow", "reason"),
    [(signal.SIGSTOP, "gave no frame in 2 s"), (signal.SIGSEGV, "the decoder crashed on it (signal 11)")],
)
def test_a_video_on_which_the_decoder_hangs_or_dies_has_failed_and_no_other(clips, blow, reason):
    """The process is stopped or killed while it decodes, as if a codec hung or crashed."""
    videos = find_videos(clips).videos
    outcomes = {}
    with DecoderPool(videos, DecodingSettings(FrameRule("uniform", frames=3), timeout=2.0)) as pool:
        first = pool._decoders[0].process.pid
        for event in pool:
            if isinstance(event, FrameBatch):
                event.release()
            if isinstance(event, VideoFinished):
                if not outcomes:
                    os.kill(first, blow)
                outcomes[event.job] = event.result
    assert len(outcomes) == len(videos)
    struck = [job for job, outcome in outcomes.items() if outcome.reason == reason]
    assert len(struck) == 1
    for job, video in enumerate(videos):
        expected = "failed" if video.video_id in ("empty", "noise", "sound") or job in struck else "ok"
        assert outcomes[job].status == expected


def test_counting_says_how_many_rows_come(clips):
    videos = find_videos(clips).videos
    with DecoderPool(videos, DecodingSettings(FrameRule("all")), 2, counting=True) as pool:
        counts = {videos[event.job].video_id: event.rows for event in pool if isinstance(event, RowsCounted)}
    assert counts["clip7"] == 40 and counts["pictures"] == 9 and counts["noise"] == 0 and len(counts) == 14


# --- killed, disk full ---------------------------------------------------------------------------------


def rows_by_id(path):
    header = read_header(path)
    with path.open("rb") as stream:
        return {
            video_id: read_rows(stream, header, position).rows
            for position, video_id in enumerate(header.layout.video_ids)
            if header.status[position] != STATUSES.index("pending")
        }


@pytest.fixture(scope="module")
def forkserver():
    """Processes forked from one in which torch is imported and has not computed yet, so that they start at once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["meidbench.extraction.extraction"])
    return context


def test_fifty_kills_lose_nothing_that_was_finished(clips, forkserver, tmp_path):
    """SIGKILL at counted calls: before the file exists, while rows are written, while the file gets its name."""
    generator = random.Random(0)
    folder, whole = tmp_path / "clips", tmp_path / "whole.h5"
    folder.mkdir()
    for name in ("clip1.mp4", "clip3.mp4", "clip6.mp4", "clip9.mp4", "noise.avi", "sound.mp4"):
        shutil.copy(clips / name, folder)
    shutil.copytree(clips / "pictures", folder / "pictures")
    extract_features(find_videos(folder).videos, whole, TinyExtractor(frames=3), workers=2)
    expected = rows_by_id(whole)
    path, rounds, kills, finished_runs, last = tmp_path / "first.h5", 0, 0, 0, 0
    halfway, ends = set(), set()
    # First before and after the file is there, then after it got its name; the others at random.
    planned = [(("replace",), 1), (("replace",), 2), (("replace",), 2)]
    while kills < 50:
        commit_every = generator.choice([0.0, 1.0])
        in_this_process = kills % 8 > 0  # seven times with decoding processes
        if planned:
            calls, number = planned.pop(0)
        else:
            calls, most = generator.choice([(("write", "fsync", "replace"), 60), (("replace",), 4)])
            number = generator.randint(1, most)
        arguments = (str(folder), str(path), commit_every, number, calls, in_this_process)
        process = forkserver.Process(target=extract_until, args=arguments)
        process.start()
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        assert killed or process.exitcode == 0
        kills += killed
        partial = partial_path(path)
        present = path if path.exists() else partial if partial.exists() else None
        ends.add((killed, None if present is None else present == path))
        done = {} if present is None else rows_by_id(present)
        for video_id, rows in done.items():
            np.testing.assert_array_equal(rows, expected[video_id])
        assert len(done) >= last, "work that was finished is gone"
        halfway.add(len(done))
        last = len(done)
        if path.exists():
            assert path.read_bytes() == whole.read_bytes() and not partial.exists()
            finished_runs += 1
            rounds, last = rounds + 1, 0
            path = tmp_path / f"{rounds}.h5"
        else:
            assert killed
    assert finished_runs >= 1 and len(halfway) > 3
    assert ends >= {(True, None), (True, False), (True, True)}


def test_a_full_disk_is_reported_and_the_run_continued(clips, extracted_clips, forkserver, in_this_process, tmp_path):
    """A limit on the size of files stands in for a full disk: the write is refused by the system either way."""
    # Half of the file's size: the skeleton, whose rows take no space yet, is written, and some rows are not.
    limit = extracted_clips.stat().st_size // 2
    process = forkserver.Process(target=extract_on_full_disk, args=(str(clips), str(tmp_path / "f.h5"), limit))
    process.start()
    process.join()
    assert process.exitcode == 1 and not (tmp_path / "f.h5").exists()
    error = (tmp_path / "f.h5.error").read_text()
    assert "File too large" in error or "no space" in error
    extract_features(find_videos(clips).videos, tmp_path / "f.h5", TinyExtractor())
    assert (tmp_path / "f.h5").read_bytes() == extracted_clips.read_bytes()


# --- the command -------------------------------------------------------------------------------------


def test_extract_features_command(clips, run, tmp_path, toy_split_file, small_resnet50):
    out = tmp_path / "f.h5"
    arguments = [
        "extract-features",
        clips,
        "--out",
        out,
        "--backbone",
        "resnet50",
        "--frames",
        2,
        "--weights",
        "random",
    ]
    outcome = run(*arguments, "--seed", 1, "--json", "--workers", 2)
    assert outcome.exit_code == 1
    found = json.loads(outcome.stdout)
    assert (found["videos"], found["extracted"], found["failed"]) == (14, 14, 3)
    assert [entry["video_id"] for entry in found["troubles"]] == ["empty", "noise", "sound"]
    assert "RANDOM" in outcome.stderr and "3 of 14 videos failed" in outcome.stderr
    again = run(*arguments, "--seed", 1)
    assert "14 videos, 11 ok, 0 salvaged, 3 failed (0 extracted now)" in again.stdout
    other = run(*arguments, "--seed", 2)
    assert other.exit_code == 1 and "weights_sha256" in other.stderr
    strangers = run(*arguments, "--seed", 1, "--split", toy_split_file)
    assert strangers.exit_code == 1 and "TOY" in strangers.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--weights", "random"], 2, "--weights random needs --seed"),
        (["--seed", "1"], 2, "needs --seed"),
        (["--sampling", "often"], 2, "often"),
        (["--shard", "3/2"], 2, "a shard is I/N"),
        (["--frames", "10000000000000000000"], 2, "--frames"),
        (["--folder-fps", "inf", "--weights", "random", "--seed", "1"], 1, "positive number of frames per second"),
        (["--device", "meta", "--weights", "random", "--seed", "1"], 1, "Error: 'meta' is no device that can be used"),
        (
            ["--device", "abacus", "--weights", "random", "--seed", "1"],
            1,
            "Error: 'abacus' is no device that can be used",
        ),
        (["--weights", "nowhere.pth"], 2, "nowhere.pth"),
        (["--backbone", "tsm-resnet50"], 1, "no default weights"),
    ],
)
def test_invalid_calls_are_refused(clips, run, tmp_path, arguments, code, message):
    outcome = run("extract-features", clips, "--out", tmp_path / "f.h5", *arguments)
    assert outcome.exit_code == code and message in outcome.stderr and outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_every_video_failed_leaves_no_file(clips, run, tmp_path, in_this_process, small_resnet50):
    """The file used to stand in the way of the next try, and its message spoke of all others."""
    folder, out = tmp_path / "videos", tmp_path / "f.h5"
    folder.mkdir()
    (folder / "a.mp4").write_bytes((clips / "noise.avi").read_bytes())
    command = ["extract-features", folder, "--out", out, "--weights", "random", "--seed", 1, "--backbone", "resnet50"]
    failed = run(*command)
    assert failed.exit_code == 1
    assert failed.stderr.endswith("failed: a (cannot be opened: Invalid data found when processing input)\n"
                                  "Error: the only video failed; no file was written\n")  # fmt: skip
    assert list(tmp_path.iterdir()) == [folder]
    shutil.copy(clips / "clip1.mp4", folder / "a.mp4")
    assert run(*command, "--frames", 3).exit_code == 0 and read_header(out).layout.rows.tolist() == [3]


def test_an_unknown_device_is_refused():
    with pytest.raises(RequestError, match="known: auto, cpu"):
        choose_device("cuda:99")


def test_verify_features_extracts_some_videos_again(clips, run, tmp_path, small_resnet50):
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("clip0.mp4", "clip7.mp4"):
        shutil.copy(clips / name, folder)
    out = tmp_path / "f.h5"
    common = ["--backbone", "resnet50", "--frames", 3, "--weights", "random", "--seed", 1]
    timed = [*common, "--sampling", "uniform-time"]
    assert run("extract-features", folder, "--out", out, *timed).exit_code == 0
    assert read_header(out).recipe["sampling"] == "uniform-time=3"
    assert "(0 extracted now)" in run("extract-features", folder, "--out", out, *timed).stdout
    other = run("extract-features", folder, "--out", out, *common)
    assert other.exit_code == 1 and "uniform-time=3" in other.stderr and "uniform=3" in other.stderr
    weights = ["--weights", "random", "--weights-seed"]
    verified = run("verify-features", out, "--videos", folder, *weights, 1, "--sample", 2, "--json", "-")
    assert verified.exit_code == 0, verified.stderr
    assert {entry["video_id"] for entry in json.loads(verified.stdout)["similarities"]} == {"clip0", "clip7"}
    assert all(entry["min"] > 0.9999 for entry in json.loads(verified.stdout)["similarities"])
    others = run("verify-features", out, "--videos", folder, *weights, 2)
    assert others.exit_code == 1 and "these weights are others" in others.stderr
    # The videos swap names, so the rows are no longer theirs.
    (folder / "clip0.mp4").rename(folder / "x")
    (folder / "clip7.mp4").rename(folder / "clip0.mp4")
    (folder / "x").rename(folder / "clip7.mp4")
    assert run("verify-features", out, "--videos", folder, *weights, 1).exit_code == 1


def test_rows_beyond_those_counted_fail_one_video_and_not_the_run(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("meidbench.extraction.extraction._find_row_counts", lambda videos, *_: np.array([2, 40]))
    only = find_videos(clips, ["clip1", "clip2"]).videos
    summary = extract_features(only, tmp_path / "f.h5", TinyExtractor("all"), workers=1)
    assert summary.ok == 1 and summary.troubles[0][:2] == ("clip1", "failed")
    assert summary.troubles[0][2].startswith("gave 3 rows where 2 were counted")
