"""Extraction against the plain script, interrupted in every way, shared, and with damaged files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
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
from tiny_extractor import PoolInThisProcess, TinyExtractor, extract_on_full_disk, extract_until

from meidbench.errors import FeatureError
from meidbench.extraction.decoder_pool import DecoderPool, DecodingSettings, FrameBatch, RowsCounted, VideoFinished
from meidbench.extraction.encoders.backbones import BACKBONES, Backbone, build
from meidbench.extraction.encoders.extractor import Extractor, choose_device
from meidbench.extraction.encoders.preprocessing import IMAGENET, Preprocessing
from meidbench.extraction.encoders.resnet import ResNet
from meidbench.extraction.encoders.weights import load_weights
from meidbench.extraction.extraction import extract_features, summarise
from meidbench.extraction.frames import FrameRule
from meidbench.extraction.shards import Shard, merge_features
from meidbench.extraction.videos import find_videos
from meidbench.features import open_features
from meidbench.features.feature_file import STATUSES, read_header
from meidbench.features.records import read_rows
from meidbench.features.store import partial_path

FRAMES = [20, 3, 31, 1, 12, 25, 8, 40, 16, 5]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten videos, one folder of frames, and three files that are no videos."""
    folder = tmp_path_factory.mktemp("clips")
    for number, frames in enumerate(FRAMES):
        images = make_videos.pictures(frames, 96, 64, seed=number)
        make_videos.write_video(folder / f"clip{number}.mp4", images)
    (folder / "pictures").mkdir()
    for number, image in enumerate(make_videos.pictures(9, 80, 60, seed=99), 1):
        Image.fromarray(image).save(folder / "pictures" / f"pictures-{number:06d}.jpg")
    (folder / "empty.mp4").touch()
    (folder / "noise.avi").write_bytes(random.Random(0).randbytes(5000))
    make_videos.write_sound(folder / "sound.mp4")
    return folder


@pytest.fixture(scope="module")
def reference(clips, tmp_path_factory):
    """The file that one process writes without interruption."""
    path = tmp_path_factory.mktemp("reference") / "clips.h5"
    extract_features(find_videos(clips).videos, path, TinyExtractor(), workers=2)
    return path


@pytest.fixture
def in_this_process(monkeypatch):
    """Decode without processes, for tests of everything else."""
    monkeypatch.setattr("meidbench.extraction.extraction.DecoderPool", PoolInThisProcess)


@pytest.fixture
def small_resnet50(monkeypatch):
    """Put a shallow network for small images in the place of resnet50, for tests of everything around it."""
    small = replace(
        BACKBONES["resnet50"], make_network=partial(ResNet, (1, 1, 1, 1)), preprocessing=Preprocessing(64, 56)
    )
    monkeypatch.setitem(BACKBONES, "resnet50", small)


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


def test_features_are_those_of_the_plain_script(clips, tmp_path):
    only = find_videos(clips, ["clip0", "clip1", "pictures"]).videos
    extractor = Extractor(
        "resnet50", "random", seed=3, rule=FrameRule("uniform", frames=5), device="cpu", dtype="float32"
    )
    extract_features(only, tmp_path / "f.h5", extractor, workers=2)
    source = open_features(tmp_path / "f.h5")
    model = build("resnet50")
    load_weights(model, extractor.backbone, "random", seed=3)
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((clips / "pictures").iterdir())]
    for video_id, images in {
        "clip0": decode_plainly(clips / "clip0.mp4"),
        "clip1": decode_plainly(clips / "clip1.mp4"),
        "pictures": pictures,
    }.items():
        chosen = np.linspace(0, len(images) - 1, 5).astype(int)
        expected = plain_features([images[index] for index in chosen], model)
        assert expected.shape == (5, 2048) and expected.std() > 0.01
        np.testing.assert_allclose(source.read(video_id), expected, rtol=0, atol=1e-4)
    with h5py.File(tmp_path / "f.h5") as file:
        recipe = json.loads(file.attrs["recipe"])
        assert file["frame_indices"][0].tolist() == [0, 4, 9, 14, 19]
        np.testing.assert_allclose(file["timestamps"][0], np.array([0, 4, 9, 14, 19]) / 30, atol=1e-3)
    assert recipe["backbone"] == "resnet50" and len(recipe["weights_sha256"]) == 64
    assert recipe["sampling"] == "uniform=5" and "libavcodec" in recipe["libraries"]


@pytest.fixture
def small_tsm(monkeypatch):
    """A shallow network with the temporal shift, for small images."""
    small = Backbone("small-tsm", partial(ResNet, (1, 1, 1, 1), 8), clip=8, preprocessing=Preprocessing(64, 56))
    monkeypatch.setitem(BACKBONES, "small-tsm", small)
    return small


def test_clips_of_the_temporal_shift_are_eight_rows_of_one_video(clips, small_tsm, in_this_process, tmp_path):
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


def test_clips_of_the_temporal_shift_are_of_rows_also_where_time_repeats_frames(
    clips, small_tsm, in_this_process, tmp_path
):
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
    """Its own width, layer, preprocessing and classifier; everything else follows."""
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


def test_what_cannot_be_read_is_recorded_and_the_rest_goes_on(reference):
    summary = summarise(reference)
    assert (summary.videos, summary.ok, summary.salvaged, summary.failed) == (14, 11, 0, 3)
    assert [(name, status) for name, status, _ in summary.troubles] == [
        ("empty", "failed"), ("noise", "failed"), ("sound", "failed")
    ]  # fmt: skip
    assert all(reason for _, _, reason in summary.troubles)


@pytest.mark.parametrize("rule", ["all", "fps=7"])
def test_rows_by_time_are_stored_without_padding(clips, tmp_path, rule, in_this_process):
    videos = find_videos(clips).videos
    summary = extract_features(videos, tmp_path / "f.h5", TinyExtractor(rule), workers=2)
    assert summary.failed == 3
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].shape == (sum(file["row_counts"]), 2048)
    source = open_features(tmp_path / "f.h5")
    for number, frames in enumerate(FRAMES):
        expected = frames if rule == "all" else len(np.arange(0, (frames - 1) / 30 + 1e-9, 1 / 7))
        assert source.num_frames(f"clip{number}") == expected
        alone = TinyExtractor(rule).extract(next(video for video in videos if video.video_id == f"clip{number}"))
        np.testing.assert_array_equal(source.read(f"clip{number}"), alone.rows)
    reports = []
    again = extract_features(videos, tmp_path / "f.h5", TinyExtractor(rule), report=reports.append)
    assert again.extracted == 0 and not any("counting" in line for line in reports)


def test_a_finished_set_is_not_decoded_again(clips, reference, tmp_path, monkeypatch):
    path = Path(shutil.copy(reference, tmp_path / "f.h5"))
    monkeypatch.setattr("meidbench.extraction.decoder_pool.DecoderPool.__enter__", lambda pool: pytest.fail("decodes"))
    extractor = TinyExtractor()
    summary = extract_features(find_videos(clips).videos, path, extractor)
    assert summary.extracted == 0 and summary.ok == 11 and extractor.batches == []


def test_a_new_and_a_changed_video_are_all_that_is_extracted(clips, reference, tmp_path, in_this_process):
    folder = Path(shutil.copytree(clips, tmp_path / "clips"))
    make_videos.write_video(folder / "clip3.mp4", make_videos.pictures(6, 64, 48))
    make_videos.write_video(folder / "later.mp4", make_videos.pictures(7, 64, 48))
    path = Path(shutil.copy(reference, tmp_path / "f.h5"))
    assert extract_features(find_videos(folder).videos, path, TinyExtractor(), workers=1).extracted == 2
    whole = tmp_path / "g.h5"
    extract_features(find_videos(folder).videos, whole, TinyExtractor(), workers=1)
    assert path.read_bytes() == whole.read_bytes()


def test_frames_of_one_video_are_never_batched_with_others(clips, tmp_path, in_this_process):
    extractor = TinyExtractor(batch_size=4)
    extract_features(find_videos(clips, ["clip0", "clip1", "clip3"]).videos, tmp_path / "f.h5", extractor, workers=1)
    # Six of 20, three of 3 and one of 1: a repeated frame is computed once.
    assert sorted(extractor.batches) == [1, 2, 3, 4]


def test_features_that_are_not_finite_fail(clips, tmp_path, in_this_process):
    extractor = TinyExtractor(dtype="float16")
    extractor.encode = lambda crops: torch.full((len(crops), 2048), 1e6)
    summary = extract_features(find_videos(clips, ["clip0"]).videos, tmp_path / "f.h5", extractor, workers=1)
    assert summary.troubles == (("clip0", "failed", "the features are not finite in float16"),)


# --- decoding processes ------------------------------------------------------------------------------


def test_large_frames_and_full_slots_come_through(clips):
    videos = find_videos(clips, ["clip0", "clip7", "pictures"]).videos
    for slot_bytes, processes in ((1000, 1), (30_000, 1), (1 << 20, 2)):  # less than a frame, a few frames, all
        seen = {video.video_id: [] for video in videos}
        with DecoderPool(videos, DecodingSettings(FrameRule("all"), slot_bytes=slot_bytes), processes) as pool:
            for event in pool:
                if isinstance(event, FrameBatch):
                    window = event.window
                    for index, frame in zip(event.indices, event.frames.copy(), strict=True):
                        seen[videos[event.job].video_id].append((index, frame, window))
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
    """Stopped or killed from outside in the middle of its work, as a codec might hang or crash."""
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


# --- killed, full, shared ------------------------------------------------------------------------------


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
    """SIGKILL at counted calls: before the file is there, while rows are written, while it is given its name."""
    generator = random.Random(0)
    folder, whole = tmp_path / "clips", tmp_path / "whole.h5"
    folder.mkdir()
    for name in ("clip1.mp4", "clip3.mp4", "clip6.mp4", "clip9.mp4", "noise.avi"):
        shutil.copy(clips / name, folder)
    extract_features(find_videos(folder).videos, whole, TinyExtractor(), workers=2)
    expected = rows_by_id(whole)
    path, rounds, kills, finished_runs, last = tmp_path / "first.h5", 0, 0, 0, 0
    halfway, ends = set(), set()
    while kills < 50:
        commit_every = generator.choice([0.0, 1.0])
        in_this_process = kills % 17 > 0  # three times with decoding processes, which must end, too
        calls, most = generator.choice([(("write", "fsync", "replace"), 60), (("replace",), 4)])
        arguments = (str(folder), str(path), commit_every, generator.randint(1, most), calls, in_this_process)
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
    # Killed before the file was there, while it was written, and after it was given its name.
    assert ends >= {(True, None), (True, False), (True, True)}


def test_a_full_disk_is_told_and_gone_on_with(clips, reference, forkserver, in_this_process, tmp_path):
    """A limit on the size of files stands in for a full disk: the write is refused by the system either way."""
    # Room for the skeleton, whose rows take no space yet, is what the file itself has: cut it off in the middle.
    limit = reference.stat().st_size // 2
    process = forkserver.Process(target=extract_on_full_disk, args=(str(clips), str(tmp_path / "f.h5"), limit))
    process.start()
    process.join()
    assert process.exitcode == 1 and not (tmp_path / "f.h5").exists()
    error = (tmp_path / "f.h5.error").read_text()
    assert "File too large" in error or "no space" in error
    extract_features(find_videos(clips).videos, tmp_path / "f.h5", TinyExtractor())
    assert (tmp_path / "f.h5").read_bytes() == reference.read_bytes()


@pytest.mark.parametrize("rule", ["uniform", "all"])
def test_parts_merge_to_the_file_of_one_process(clips, reference, monkeypatch, tmp_path, rule):
    videos = find_videos(clips).videos
    whole, merged = reference, tmp_path / "merged.h5"
    if rule == "all":
        whole = tmp_path / "whole.h5"
        extract_features(videos, whole, TinyExtractor(rule), workers=2)
    monkeypatch.setattr("meidbench.extraction.extraction.DecoderPool", PoolInThisProcess)
    parts = []
    for number in (3, 1, 2):
        shard = Shard(number, 3)
        parts.append(extract_features(videos, merged, TinyExtractor(rule), shard=shard, workers=1).path)
    assert [part.name for part in parts] == [f"merged.part-{number}-of-3.h5" for number in (3, 1, 2)]
    assert merge_features(parts, merged) == merged
    assert merged.read_bytes() == whole.read_bytes()


def test_parts_that_do_not_belong_together_are_refused(clips, tmp_path, in_this_process):
    videos = find_videos(clips, ["clip0", "clip1", "clip2"]).videos
    out = tmp_path / "f.h5"
    one, two, three = (
        extract_features(videos, out, TinyExtractor(), shard=Shard(n, 3), workers=1).path for n in (1, 2, 3)
    )
    other = extract_features(videos, out, TinyExtractor(frames=5), shard=Shard(1, 2), workers=1).path
    whole = extract_features(videos, tmp_path / "whole.h5", TinyExtractor(), workers=1).path
    copy = Path(shutil.copy(one, tmp_path / "copy.h5"))
    for parts, message in (
        ([one, three], "of 3 parts these are missing: 2"),
        ([one, two, other], "has other settings"),
        ([one, two, other], "by 2, 3 processes are mixed"),
        ([one, two, three, whole], "is not a part of a file"),
        ([one, two, three, copy], "are both part 1/3"),
    ):
        with pytest.raises(FeatureError, match=message):
            merge_features(parts, out)
        assert not out.exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/2", "1/0"])
def test_a_share_that_makes_no_sense_is_refused(text):
    with pytest.raises(FeatureError, match="a shard is I/N"):
        Shard.from_text(text)


def test_torchrun_tells_each_process_its_share():
    assert Shard.from_environment({"RANK": "2", "WORLD_SIZE": "4"}) == Shard(3, 4)
    assert Shard.from_environment({}) is None and Shard.from_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None


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


def test_sharing_by_hand_and_merge_features_command(clips, run, tmp_path, small_resnet50, in_this_process):
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("clip1.mp4", "clip3.mp4"):
        shutil.copy(clips / name, folder)
    common = ["extract-features", folder, "--backbone", "resnet50", "--frames", 2, "--weights", "random", "--seed", 1]
    for share in ("1/2", "2/2"):
        assert run(*common, "--out", tmp_path / "f.h5", "--shard", share).exit_code == 0
    merged = run("merge-features", *sorted(tmp_path.glob("f.part-*")), "--out", tmp_path / "f.h5")
    assert merged.exit_code == 0 and "2 videos, 2 ok" in merged.stdout
    assert run(*common, "--out", tmp_path / "g.h5").exit_code == 0
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "g.h5").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--weights", "random"], 2, "--weights random needs --seed"),
        (["--seed", "1"], 2, "needs --seed"),
        (["--sampling", "often"], 2, "often"),
        (["--shard", "3/2"], 2, "a shard is I/N"),
        (["--frames", "10000000000000000000"], 2, "--frames"),
        (["--folder-fps", "inf", "--weights", "random", "--seed", "1"], 1, "positive number of frames per second"),
        (["--device", "meta", "--weights", "random", "--seed", "1"], 1, "'meta' cannot be used"),
        (["--device", "abacus", "--weights", "random", "--seed", "1"], 1, "'abacus' cannot be used"),
        (["--weights", "nowhere.pth"], 1, "nowhere.pth"),
        (["--backbone", "tsm-resnet50"], 1, "no default weights"),
    ],
)
def test_calls_that_cannot_be_answered(clips, run, tmp_path, arguments, code, message):
    outcome = run("extract-features", clips, "--out", tmp_path / "f.h5", *arguments)
    assert outcome.exit_code == code and message in outcome.stderr and outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_device_is_refused():
    with pytest.raises(FeatureError, match="known: auto, cpu"):
        choose_device("cuda:99")


def test_verify_features_extracts_some_videos_again(clips, run, tmp_path, small_resnet50, in_this_process):
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("clip0.mp4", "clip7.mp4"):
        shutil.copy(clips / name, folder)
    out = tmp_path / "f.h5"
    common = ["--backbone", "resnet50", "--frames", 3, "--weights", "random", "--seed", 1]
    assert run("extract-features", folder, "--out", out, *common).exit_code == 0
    weights = ["--weights", "random", "--weights-seed"]
    verified = run("verify-features", out, "--videos", folder, *weights, 1, "--sample", 2, "--json", "-")
    assert verified.exit_code == 0, verified.stderr
    assert {entry["video_id"] for entry in json.loads(verified.stdout)["similarities"]} == {"clip0", "clip7"}
    assert all(entry["min"] > 0.9999 for entry in json.loads(verified.stdout)["similarities"])
    others = run("verify-features", out, "--videos", folder, *weights, 2)
    assert others.exit_code == 1 and "these weights are others" in others.stderr
    # The videos have changed places: the rows are no longer theirs.
    (folder / "clip0.mp4").rename(folder / "x")
    (folder / "clip7.mp4").rename(folder / "clip0.mp4")
    (folder / "x").rename(folder / "clip7.mp4")
    assert run("verify-features", out, "--videos", folder, *weights, 1).exit_code == 1


def test_torchrun_goes_on_beside_a_share_with_failures(clips, run, tmp_path):
    """A process that ends with an error would take the others along, today and at every later try."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate(("noise.avi", "clip1.mp4", "empty.mp4", "clip3.mp4")):
        shutil.copy(clips / name, folder / f"v{number}{Path(name).suffix}")
    out = tmp_path / "f.h5"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "meidbench"]
    options = ["--backbone", "resnet50", "--frames", "1", "--weights", "random", "--seed", "1", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [*command, "extract-features", str(folder), "--out", str(out), *options],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert "2 of 2 videos failed" in outcome.stderr
    merged = run("merge-features", *tmp_path.glob("f.part-*-of-2.h5"), "--out", out)
    assert merged.exit_code == 1 and "4 videos, 2 ok, 0 salvaged, 2 failed" in merged.stdout
    assert open_features(out).check(["v1", "v3"]).tolist() == [1, 1]


def test_more_processes_than_videos(clips, tmp_path, in_this_process):
    videos = find_videos(clips, ["clip1", "clip3"]).videos
    reports = []
    out = tmp_path / "f.h5"
    summaries = [
        extract_features(videos, out, TinyExtractor(), shard=Shard(number, 3), workers=1, report=reports.append)
        for number in (1, 2, 3)
    ]
    assert [summary.videos for summary in summaries] == [1, 1, 0]
    assert reports == ["nothing is left for shard 3/3: there are fewer videos than processes"]
    merge_features([summary.path for summary in summaries if summary.videos], out)
    assert open_features(out).check(["clip1", "clip3"]).tolist() == [6, 6]


def test_shares_of_different_lists_are_not_merged(clips, tmp_path, in_this_process):
    listing = find_videos(clips, ["clip0", "clip1", "clip2", "clip3"]).videos
    out = tmp_path / "f.h5"
    one = extract_features(listing[:3], out, TinyExtractor(), shard=Shard(1, 2), workers=1).path
    two = extract_features(listing, out, TinyExtractor(), shard=Shard(2, 2), workers=1).path
    with pytest.raises(FeatureError, match="shards of different lists of videos"):
        merge_features([one, two], out)


def test_a_merge_follows_its_parts_and_notices_damage(clips, tmp_path, in_this_process):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clips / "clip0.mp4", folder / "a.mp4")
    good = (clips / "clip1.mp4").read_bytes()
    (folder / "b.mp4").write_bytes(bytes(len(good)))
    out = tmp_path / "f.h5"

    def parts(**options):
        videos = find_videos(folder).videos
        return [
            extract_features(videos, out, TinyExtractor("all"), shard=Shard(number, 2), workers=1, **options).path
            for number in (1, 2)
        ]

    merge_features(parts(), out)
    assert summarise(out).failed == 1
    # Repaired to the same size: room for its rows was counted as none.
    (folder / "b.mp4").write_bytes(good)
    again = parts(retry_failed=True)
    merge_features(again, out)
    assert summarise(out).ok == 2 and open_features(out).num_frames("b") == 3
    with again[0].open("r+b") as stream:
        stream.seek(read_header(again[0]).offsets["features"])
        stream.write(b"\xff")
    out.unlink()
    with pytest.raises(FeatureError, match="the rows of a are other than they were written"):
        merge_features(again, out)
    assert not out.exists()


def test_rows_beyond_those_counted_fail_one_video_and_not_the_run(clips, tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr("meidbench.extraction.extraction._find_row_counts", lambda videos, *_: np.array([2, 40]))
    only = find_videos(clips, ["clip1", "clip2"]).videos
    summary = extract_features(only, tmp_path / "f.h5", TinyExtractor("all"), workers=1)
    assert summary.ok == 1 and summary.troubles[0][:2] == ("clip1", "failed")
    assert summary.troubles[0][2].startswith("gave 3 rows where 2 were counted")
