"""An extraction that several processes share, and the merge of their parts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_extractor import PoolInThisProcess, TinyExtractor

from meidbench.errors import FeatureError
from meidbench.extraction.extraction import Shard, extract_features, merge_features, summarise
from meidbench.extraction.videos import find_videos
from meidbench.features import open_features
from meidbench.features.feature_file import read_header


@pytest.mark.parametrize("rule", ["uniform", "all"])
def test_parts_merge_to_the_file_of_one_process(clips, extracted_clips, monkeypatch, tmp_path, rule):
    videos = find_videos(clips).videos
    whole, merged = extracted_clips, tmp_path / "merged.h5"
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
def test_an_impossible_shard_is_refused(text):
    with pytest.raises(FeatureError, match="a shard is I/N"):
        Shard.from_text(text)


def test_torchrun_gives_each_process_its_shard():
    assert Shard.from_environment({"RANK": "2", "WORLD_SIZE": "4"}) == Shard(3, 4)
    assert Shard.from_environment({}) is None and Shard.from_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None


def test_merging_other_files_names_what_they_are(run, tmp_path, toy_split_file):
    (tmp_path / "part.pkl").write_bytes(b"\x80\x04]\x94.")
    for path, kind in ((toy_split_file, "a split file"), (tmp_path / "part.pkl", "a pickle")):
        outcome = run("merge-features", path, "--out", tmp_path / "whole.h5")
        expected = "expected a feature file, as extract-features and pack-features write it"
        assert outcome.exit_code == 1 and outcome.stderr == f"Error: {path} is {kind}; {expected}\n"


def test_sharing_by_hand_and_merge_features_command(clips, run, tmp_path, small_resnet50):
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


def test_torchrun_continues_beside_a_shard_with_failures(clips, run, tmp_path):
    """torchrun ends all processes where one ends with an error, now and at every later attempt."""
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
    assert "all 2 videos failed; " in outcome.stderr and "f.part-1-of-2.h5 has no rows" in outcome.stderr
    merged = run("merge-features", *tmp_path.glob("f.part-*-of-2.h5"), "--out", out)
    assert merged.exit_code == 1 and "4 videos, 2 ok, 0 salvaged, 2 failed" in merged.stdout
    assert open_features(out).check(["v1", "v3"]).tolist() == [1, 1]


def test_more_processes_than_videos(clips, tmp_path):
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


def test_shards_of_different_lists_are_not_merged(clips, tmp_path, in_this_process):
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
    # Repaired to the same size; its rows were counted as 0.
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
