"""Samples that are a part of a longer video: in splits and tables, the audit, extraction and verification."""

import os
import shutil
import signal
from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import pytest
from make_videos import cut, pictures, write_video
from PIL import Image
from tiny_extractor import TinyExtractor

import meidbench as mb
from meidbench.annotations.tables import split_from_files
from meidbench.extraction import decoding
from meidbench.extraction.decoder_pool import DecoderPool, DecodingSettings, FrameBatch, RowsCounted, VideoFinished
from meidbench.extraction.decoding import count_rows, count_sample_rows, read_frames, read_samples
from meidbench.extraction.extraction import Shard, describe_list, extract_features, merge_features
from meidbench.extraction.frames import Frame, FrameRule, Restart
from meidbench.extraction.selection import SampleResult, find_range
from meidbench.extraction.videos import find_samples, find_videos
from meidbench.features import open_features
from meidbench.features.feature_file import read_header
from meidbench.splits.released import write_csv
from meidbench.splits.rows import SCHEMA, SPAN_FIELDS, Span
from meidbench.splits.statistics import audit_split, split_statistics

RATE = 30  # frames per second of the long videos
# Overlapping, nested, abutting, and between two frames.
SPANS = {
    "a1": Span("long", 0.0, 0.5),
    "a2": Span("long", 0.25, 1.0),
    "a3": Span("long", 0.3, 0.4),
    "a4": Span("long", 1.0, 1.5),
    "a5": Span("long", 1.01, 1.02),
    "b1": Span("other", 0.2, 0.9),
    "b2": Span("other", 0.5, 0.7),
}
TABLE = """video_id,labels,subset,video,start_s,end_s
a1,run,train,long,0.0,0.5
a2,swim,train,long,0.25,1.0
a3,run;swim,val,long,0.3,0.4
a4,run,test,long,1.0,1.5
b1,swim,test,other,0.2,0.9
whole,run,train,,,
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two long videos, and one as a folder of frames."""
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "long.mp4", pictures(60, 96, 64, seed=1), rate=RATE)
    write_video(folder / "other.mkv", pictures(40, 96, 64, seed=2), rate=RATE)
    (folder / "frames").mkdir()
    for number, image in enumerate(pictures(50, 80, 60, seed=3), 1):
        Image.fromarray(image).save(folder / "frames" / f"frames-{number:06d}.png")
    return folder


def samples(films, spans=SPANS, **more):
    return find_samples(films, [*spans, *more], spans).videos


def split_of(tmp_path, text=TABLE, name="mine.csv"):
    path = tmp_path / name
    path.write_text(text)
    return split_from_files([("", path)], dataset="mine", head_above=1, tail_up_to=0)[0]


def run_to_end(stream):
    """The frames that each sample was given, the results, and how often each frame was read."""
    frames, results, read = {}, {}, Counter()
    for item in stream:
        if isinstance(item, SampleResult):
            assert item.sample not in results
            results[item.sample] = item.result
        elif isinstance(item, Restart):
            frames = {sample: given for sample, given in frames.items() if sample in results}
        else:
            assert isinstance(item, Frame) and not set(item.takers) & set(results)
            read[item.index] += 1
            for sample in item.takers:
                frames.setdefault(sample, {})[item.index] = item.image
    return frames, results, read


# --- splits -------------------------------------------------------------------------------------------------


def test_a_split_keeps_the_spans_and_its_digests_do_not_depend_on_them(tmp_path):
    split = split_of(tmp_path)
    assert split.table.column_names == [*SCHEMA.names, *SPAN_FIELDS.names]
    assert split.spans["a2"] == Span("long", 0.25, 1.0) and "whole" not in split.spans and len(split.spans) == 5
    assert split.table.column("pair_id").to_pylist() == ["long"] * 4 + ["other", ""]
    lengths = [*np.float32([0.5, 0.75, 0.1, 0.5, 0.7]), np.nan]
    np.testing.assert_array_equal(split.table.column("length_s").to_numpy(), lengths)
    path = mb.write_split(split, tmp_path / "mine.parquet")
    again = mb.load_split(path)
    assert again.spans == split.spans and again.metadata.format_version == 3
    bare = split_of(tmp_path, "\n".join(line.rsplit(",", 3)[0] for line in TABLE.splitlines()))
    assert bare.table.schema.names == SCHEMA.names and not bare.spans
    assert (bare.digest, bare.content_digest) == (split.digest, split.content_digest)
    later = split_of(tmp_path, TABLE.replace("0.3,0.4", "0.35,0.45"))  # of the same length
    assert len({each.plan_digest for each in (bare, split, later)}) == 3
    assert mb.load_split(mb.write_split(bare, tmp_path / "bare.parquet")).metadata.format_version == 2


def test_spans_survive_pandas_and_csv(tmp_path):
    split = split_of(tmp_path)
    make = partial(mb.split_from_pandas, dataset="mine", head_above=1, tail_up_to=0)
    again = make(split.to_pandas())
    assert again.spans == split.spans and again.content_digest == split.content_digest
    write_csv(split, tmp_path / "again.csv")
    assert split_of(tmp_path, (tmp_path / "again.csv").read_text()).spans == split.spans
    with pytest.raises(mb.MeidbenchError, match="2 to 1 s of 'long' is not a part of a video"):
        make(pd.DataFrame({"labels": [["x"]], "subset": "train", "video": "long", "start_s": 2.0, "end_s": 1.0}, ["a"]))


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ("long,1.0,", "1 to nan s of 'long'"),
        ("long,,1.0", "nan to 1 s"),
        (",0.0,1.0", "0 to 1 s of ''"),
        ("long,-1,1.0", "start_s '-1' is not a time in seconds"),
        ("long,1.0,1.0", "1 to 1 s of 'long'"),
        ("long,0,00:01", "end_s '00:01' is not a time in seconds"),
    ],
)
def test_wrong_spans_are_named_with_their_lines(tmp_path, cells, what):
    with pytest.raises(mb.MeidbenchError) as caught:
        split_of(tmp_path, TABLE.replace("long,0.3,0.4", cells))
    assert what in str(caught.value) and "line 4 (a3)" in str(caught.value)


def test_a_column_video_of_another_meaning_is_ignored_as_before(tmp_path):
    split = split_of(tmp_path, "video_id,labels,subset,video\na,run,train,x of y\nb,swim,val,\n")
    assert not split.spans and split.table.column("pair_id").to_pylist() == ["", ""]


def test_json_tables_have_spans(tmp_path):
    text = '[{"video_id": "a", "labels": "run", "subset": "train", "video": "v", "start_s": 1, "end_s": 2.5}]'
    assert split_of(tmp_path, text, "mine.json").spans == {"a": Span("v", 1.0, 2.5)}


def test_a_damaged_split_file_is_refused(tmp_path):
    split = split_of(tmp_path)
    for name, values in (("end_s", [0.0] * 6), ("video", ["", *["long"] * 5])):
        place = split.table.column_names.index(name)
        field = SPAN_FIELDS.field(name)
        broken = mb.Split(split.table.set_column(place, field, [values]), split.metadata)
        with pytest.raises(mb.MeidbenchError, match="is not a part of a video"):
            mb.write_split(broken, tmp_path / "broken.parquet")


def test_the_text_of_a_span_is_exact():
    for span in (Span("a:b-c", 1e-5, 1 / 3), Span("ü", 0.1 + 0.2, 3600.0), Span("v", 0, 123456789.125)):
        assert Span.from_text(str(span)) == span
    for text in ("v", "v:1", "v:2-1", ":1-2", "v:a-b"):
        with pytest.raises(ValueError):
            Span.from_text(text)


def test_audit_and_statistics_tell_what_lies_in_one_video(tmp_path, run):
    split = split_of(tmp_path)
    path = mb.write_split(split, tmp_path / "mine.parquet")
    found = {finding.what: finding for finding in audit_split(split) if finding.check == "video-overlap"}
    pairs = "pairs of samples that overlap in time within one video, one in {} and one in {}"
    assert found[pairs.format("train", "val")].examples == ("a1 / a3", "a2 / a3")  # not a4, which begins where a2 ends
    assert {finding.severity for finding in found.values()} == {"warning"}
    videos = {what: finding.examples for what, finding in found.items() if "long videos" in what}
    assert videos == {
        f"long videos with samples in both {a} and {b}": ("long",)
        for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
    }
    assert len(found) == 4
    assert "video-overlap: 2 pairs" in run("audit", path).stdout
    # A whole video in another subset holds all its parts.
    text = TABLE + "long,run,val,,,\n"
    overlaps = [f for f in audit_split(split_of(tmp_path, text)) if f.what == pairs.format("val", "test")]
    assert [each.examples for each in overlaps] == [("long / a4",)]
    (note,) = split_statistics(split).notes[-1:]
    assert note == "5 of 6 samples are parts of 2 videos, 0.1 to 0.8 s long, 0.5 s on average"
    assert note in run("stats", path).stdout


def test_overlaps_equal_a_plain_loop(tmp_path):
    generator = np.random.default_rng(0)
    starts = generator.uniform(0, 20, 120).round(1)
    frame = pd.DataFrame(
        {
            "video_id": [f"s{k:03d}" for k in range(120)],
            "labels": "x",
            "subset": generator.choice(["train", "val", "test"], 120),
            "video": generator.choice(["u", "v", "w"], 120),
            "start_s": starts,
            "end_s": starts + generator.uniform(0.1, 3, 120).round(1),
        }
    )
    split = mb.split_from_pandas(frame, dataset="mine", head_above=1, tail_up_to=0)
    rows = frame.to_dict("records")
    expected = Counter(
        tuple(sorted((a["subset"], b["subset"])))
        for i, a in enumerate(rows)
        for b in rows[:i]
        if a["video"] == b["video"] and a["start_s"] < b["end_s"] and b["start_s"] < a["end_s"]
    )
    found = {finding.what: finding.count for finding in audit_split(split) if "pairs" in finding.what}
    for (a, b), count in expected.items():
        if a != b:
            assert count in [number for what, number in found.items() if f"one in {a} " in what + " " and b in what]


# --- decoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["uniform=4", "uniform-time=3", "all", "fps=12", "clips=2x3/2"])
def test_one_pass_gives_each_sample_the_frames_within_its_span(films, text):
    rule = FrameRule.from_text(text)
    images = run_to_end(read_samples(find_videos(films, ["long"]).videos, FrameRule("all")))[0][0]
    videos = [video for video in samples(films) if video.span.video == "long"]
    frames, results, read = run_to_end(read_samples(videos, rule))
    assert set(read.values()) == {1}  # also those that several samples take
    times = np.arange(60) / RATE
    for number, video in enumerate(videos):
        first, end = find_range(times, video.span)
        result = results[number]
        np.testing.assert_array_equal(result.indices, first + rule.choose(times[first:end]))
        np.testing.assert_allclose(result.timestamps, times[result.indices], atol=1e-9)
        assert (result.status, result.reason, result.num_frames) == ("ok", "", end - first)
        assert count_rows(video, rule) == len(result.indices) or rule.fixed_rows
        for index, image in frames[number].items():
            np.testing.assert_array_equal(image, images[index])
    if text == "all":
        assert [list(map(int, results[k].indices[[0, -1]])) for k in range(5)] == [
            [0, 14], [8, 29], [9, 11], [30, 44], [30, 30],
        ]  # fmt: skip
    if rule.fixed_rows is None:
        assert count_sample_rows(videos, rule) == [len(results[k].indices) for k in range(5)]


@pytest.mark.parametrize("text", ["uniform=4", "all"])
def test_a_sample_is_the_same_alone(films, text):
    rule = FrameRule.from_text(text)
    videos = [video for video in samples(films) if video.span.video == "long"]
    together, results, _ = run_to_end(read_samples(videos, rule))
    for number, video in enumerate(videos):
        stream, alone = read_frames(video, rule), {}
        while True:
            try:
                frame = next(stream)
            except StopIteration as end:
                result = end.value
                break
            alone[frame.index] = frame.image
        assert result.indices.tolist() == results[number].indices.tolist() and set(alone) == set(together[number])
        assert all(np.array_equal(image, together[number][index]) for index, image in alone.items())


def test_packets_are_scanned_once_and_frames_decoded_once(films, monkeypatch):
    opened = []
    genuine = decoding._open_file
    monkeypatch.setattr(decoding, "_open_file", lambda path: opened.append(path) or genuine(path))
    videos = [video for video in samples(films) if video.span.video == "long"]
    run_to_end(read_samples(videos, FrameRule("all")))
    assert len(opened) == 2  # to read the packets' times, and to decode
    opened.clear()
    count_sample_rows(videos, FrameRule("all"))
    assert len(opened) == 1


def test_folders_of_frames_have_the_given_rate(films, tmp_path):
    spans = {"f1": Span("frames", 0.5, 1.0), "f2": Span("frames", 0.9, 1.5)}
    videos = samples(films, spans)
    _, results, read = run_to_end(read_samples(videos, FrameRule("all"), folder_fps=20))
    assert results[0].indices.tolist() == list(range(10, 20)) and results[1].indices.tolist() == list(range(18, 30))
    assert set(read.values()) == {1} and results[1].timestamps[0] == 0.9
    folder = shutil.copytree(films / "frames", tmp_path / "frames")
    (folder / "frames-000028.png").write_bytes(b"damaged")
    frames, results, _ = run_to_end(read_samples(samples(tmp_path, spans), FrameRule("all"), folder_fps=20))
    assert results[0].status == "ok"  # it had all its frames before the damage was found
    assert results[1].status == "salvaged" and "1 of 50 images cannot be read" in results[1].reason
    assert results[1].indices.tolist() == [k for k in range(18, 30) if k != 27] == sorted(frames[1])


def test_a_span_outside_of_the_video_fails_alone_and_one_over_its_end_is_told(films):
    times = {"in": (0, 1), "out": (5, 6), "over": (1.5, 9), "near": (1.5, 2.9)}
    spans = {name: Span("long", start, end) for name, (start, end) in times.items()}
    _, results, _ = run_to_end(read_samples(samples(films, spans), FrameRule("uniform", frames=3)))
    names = sorted(spans)
    by_name = {names[k]: result for k, result in results.items()}
    assert {name: result.status for name, result in by_name.items()} == {
        "in": "ok", "out": "failed", "over": "salvaged", "near": "ok",
    }  # fmt: skip
    assert by_name["out"].reason == "the part begins at 5 s, the last frame is at 1.96667 s"
    assert by_name["over"].reason == "the part ends at 9 s, the last frame is at 1.96667 s"


def test_damage_concerns_the_samples_behind_it(tmp_path):
    early = {"movflags": "faststart"}  # the times of all packets are at the front
    whole = write_video(tmp_path / "source.mp4", pictures(300, 96, 64), options={"g": "10"}, container=early)
    cut(tmp_path / "long.mp4", whole, 0.7)
    whole.unlink()
    spans = {f"s{k}": Span("long", k, k + 1.0) for k in range(10)}
    videos = samples(tmp_path, spans)
    _, results, _ = run_to_end(read_samples(videos, FrameRule("uniform", frames=3)))
    statuses = [results[k].status for k in range(10)]
    assert statuses == ["ok"] * 6 + ["salvaged"] + ["failed"] * 3
    assert "could not be decoded" in results[6].reason and results[7].reason.startswith("the part begins at 7 s")


# --- the pool, and the feature file -------------------------------------------------------------------------


def test_a_process_that_dies_fails_the_samples_that_were_not_finished(films):
    # No frame is left to the first slots: the process waits for them, and is killed then.
    videos = samples(films)
    settings = DecodingSettings(FrameRule("all"), slot_bytes=40_000)
    results, killed = {}, False
    with DecoderPool(videos, settings, 1) as pool:
        for event in pool:
            if isinstance(event, FrameBatch):
                event.release()
            if isinstance(event, VideoFinished):
                assert event.job not in results
                results[event.job] = event.result
                if not killed:
                    killed = True
                    os.kill(pool._decoders[0].process.pid, signal.SIGSTOP)
                    os.kill(pool._decoders[0].process.pid, signal.SIGKILL)
    assert sorted(results) == list(range(len(videos)))
    assert {result.reason for result in results.values()} == {"", "the decoder crashed on it (signal 9)"}


def test_the_pool_counts_and_gives_frames_per_sample(films):
    videos = samples(films)
    with DecoderPool(videos, DecodingSettings(FrameRule("all")), 2, counting=True) as pool:
        counts = {event.job: event.rows for event in pool if isinstance(event, RowsCounted)}
    seen, batches = {job: [] for job in range(len(videos))}, Counter()
    with DecoderPool(videos, DecodingSettings(FrameRule("all")), 2) as pool:
        for event in pool:
            if isinstance(event, FrameBatch):
                for job, places in event.places().items():
                    seen[job] += event.indices[places].tolist()
                files = [videos[jobs[0]].span.video for jobs in event.jobs]
                batches.update(zip(files, event.indices.tolist(), strict=True))
                event.release()
    assert {job: len(indices) for job, indices in seen.items()} == counts
    assert set(batches.values()) == {1}  # a frame crosses once, however many samples take it


@pytest.mark.parametrize("rule", ["uniform", "all"])
def test_features_of_samples_are_those_of_each_alone(films, tmp_path, rule):
    extractor = TinyExtractor(rule)
    videos = samples(films, SPANS | {"f1": Span("frames", 0.5, 1.0)}, other=None)
    summary = extract_features(videos, tmp_path / "f.h5", extractor, workers=2)
    assert (summary.videos, summary.ok) == (9, 9)
    source = open_features(tmp_path / "f.h5")
    assert source.header.layout.span(0) == "long:0.0-0.5" and source.header.layout.spans[-1] == ""
    for video in videos:
        np.testing.assert_array_equal(source.read(video.video_id), extractor.extract(video).rows)


def test_extraction_continues_per_sample_and_notes_changed_spans(films, tmp_path):
    out, extractor = tmp_path / "f.h5", TinyExtractor()
    few = {name: SPANS[name] for name in ("a1", "a3", "b1")}
    assert extract_features(samples(films, few), out, extractor, workers=1).extracted == 3
    assert extract_features(samples(films), out, extractor, workers=1).extracted == 4
    moved = SPANS | {"a3": Span("long", 0.31, 0.41)}
    summary = extract_features(samples(films, moved), out, extractor, workers=1)
    assert summary.extracted == 1 and summary.ok == 7
    assert extract_features(samples(films, moved), out, extractor, workers=1).extracted == 0


def test_shards_share_files_and_merge_to_the_file_of_one_process(films, tmp_path):
    extractor, videos = TinyExtractor(), samples(films)
    extract_features(videos, tmp_path / "one.h5", extractor, workers=1)
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    assert [{video.path.name for video in shard.select_videos(videos)} for shard in shards] == [
        {"long.mp4"}, {"other.mkv"}, set(),
    ]  # fmt: skip
    for shard in shards:
        extract_features(videos, tmp_path / "f.h5", extractor, workers=1, shard=shard)
    merge_features(sorted(tmp_path.glob("f.part-*")), tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
    assert describe_list(videos)["files"] == 2 and "files" not in describe_list(find_videos(films).videos)


def test_the_commands_extract_and_verify_samples(films, tmp_path, run, small_resnet50):
    split = mb.write_split(split_of(tmp_path, TABLE.replace("whole,run", "frames,run")), tmp_path / "mine.parquet")
    out, options = tmp_path / "f.h5", ("--backbone", "resnet50", "--weights", "random", "--seed", 1, "--frames", 3)
    outcome = run("extract-features", films, "--out", out, "--split", split, *options, "--workers", 1)
    assert outcome.exit_code == 0, outcome.output
    assert "6 videos, 6 ok" in outcome.stdout
    assert mb.FeatureDataset(mb.load_split(split), "train", features=out, frames=3)[1]["video_id"] == "a2"
    again = ("--videos", films, "--weights", "random", "--weights-seed", 1, "--sample", 6)
    outcome = run("verify-features", out, "--split", split, *again)
    assert outcome.exit_code == 0 and "a3 " in outcome.stdout, outcome.output
    other = mb.write_split(split_of(tmp_path, TABLE.replace("0.3,0.4", "0.35,0.45")), tmp_path / "other.parquet")
    outcome = run("verify-features", out, "--split", other)
    assert outcome.exit_code == 1 and "expected long:0.35-0.45)" in " ".join(outcome.stdout.split())
    # The long video of some samples is missing.
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(films / "other.mkv", lone)
    outcome = run("extract-features", lone, "--out", tmp_path / "g.h5", "--split", split, *options, "--workers", 1)
    assert outcome.exit_code == 1 and "5 videos of the split are not among the videos: a1, a2" in outcome.stderr
    assert read_header(tmp_path / "g.h5").layout.video_ids == ("b1",)
