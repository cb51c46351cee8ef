"""The videos of a folder, and frames that are stored as images, against Pillow."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from make_videos import pictures
from PIL import Image
from test_decoding import as_video, read

from meidbench.errors import FeatureError
from meidbench.extraction.decoding import count_rows, read_frames
from meidbench.extraction.frame_folders import parse_frame_name
from meidbench.extraction.frames import FrameRule
from meidbench.extraction.videos import find_videos
from meidbench.features.frame_sampling import uniform_indices
from meidbench.names import VIDEO_SUFFIXES


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")


def test_files_and_folders_of_images_nested_in_any_case(tmp_path):
    touch(tmp_path, "b.MP4", "deep/er/a.mkv", "deep/notes.txt", "deep/c.tar.webm", ".hidden.mp4", ".cache/d.mp4")
    touch(tmp_path, "deep/ATOYW/ATOYW-000001.jpg", "deep/ATOYW/ATOYW-000002.JPG", "deep/ATOYW/preview.jpg")
    touch(tmp_path, "deep/ATOYW/inside/x.mp4", "photos/one.jpg", "photos/other-000001.jpg")
    listing = find_videos(tmp_path)
    assert [(video.video_id, video.is_folder, video.size) for video in listing.videos] == [
        ("ATOYW", True, 2),
        ("a", False, 7),
        ("b", False, 7),
        ("c.tar", False, 7),
    ]
    assert listing.missing == ()
    assert listing.videos[1].path == tmp_path / "deep" / "er" / "a.mkv"


SUFFIXES = (
    "3g2 3gp asf avi divx f4v flv gif m2t m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf ogm ogv rm rmvb ts vob webm wmv"
)


def test_every_suffix(tmp_path):
    touch(tmp_path, *(f"{suffix}.{suffix}" for suffix in SUFFIXES.split()))
    assert [video.video_id for video in find_videos(tmp_path).videos] == SUFFIXES.split()
    assert [suffix.strip(".") for suffix in VIDEO_SUFFIXES] == SUFFIXES.split()


def test_only_the_wanted_ones_and_those_that_are_missing(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    listing = find_videos(tmp_path, only=iter(["c", "z", "a", "x/y", "z"]))
    assert [video.video_id for video in listing.videos] == ["a", "c"]
    assert listing.missing == ("x/y", "z")


def test_a_folder_of_images_given_itself(tmp_path):
    touch(tmp_path, "ATOYW/ATOYW-000001.png", "ATOYW/ATOYW-7.jpeg")
    (video,) = find_videos(tmp_path / "ATOYW").videos
    assert (video.video_id, video.is_folder, video.size) == ("ATOYW", True, 2)


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path, "elsewhere/a.mp4", "elsewhere/more/b.mp4")
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "linked.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    (root / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "deep" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "deep" / "up").symlink_to(root)
    (root / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(root / "pipe.mp4")
    assert [(video.video_id, video.size) for video in find_videos(root).videos] == [("b", 7), ("linked", 7)]


def test_two_of_one_id_are_refused_only_where_it_is_wanted(tmp_path):
    touch(tmp_path, "a.mp4", "old/a.mkv", "b.mp4", "c.mp4", "frames/c/c-000001.jpg")
    with pytest.raises(FeatureError, match="2 ids") as caught:
        find_videos(tmp_path)
    assert str(tmp_path / "a.mp4") in str(caught.value) and str(tmp_path / "old" / "a.mkv") in str(caught.value)
    assert str(tmp_path / "frames" / "c") in str(caught.value)
    assert [video.video_id for video in find_videos(tmp_path, only=["b"]).videos] == ["b"]
    with pytest.raises(FeatureError, match="1 id in .* is of more than one video"):
        find_videos(tmp_path, only=["a", "b"])


def test_what_is_said_where_there_is_nothing(tmp_path):
    with pytest.raises(FeatureError, match="there is no folder"):
        find_videos(tmp_path / "absent")
    touch(tmp_path, "notes.txt")
    with pytest.raises(FeatureError, match="is not a folder"):
        find_videos(tmp_path / "notes.txt")
    with pytest.raises(FeatureError, match=r"no videos in .*\.mp4.*ID/ID-000001\.jpg"):
        find_videos(tmp_path)
    with pytest.raises(FeatureError, match="no videos"):
        find_videos(tmp_path, only=["a"])
    touch(tmp_path, "b.mp4")
    with pytest.raises(FeatureError, match="none of the 1 video asked for.*a; there are others, such as b"):
        find_videos(tmp_path, only=["a"])
    with pytest.raises(FeatureError, match="collection of ids"):
        find_videos(tmp_path, only="b")
    with pytest.raises(FeatureError, match="only names no video"):
        find_videos(tmp_path, only=[])


@pytest.mark.skipif(os.name == "nt", reason="a backslash cannot be in a name on Windows")
def test_names_that_are_no_ids(tmp_path):
    touch(tmp_path, "a\\b.mp4", "c.mp4")
    with pytest.raises(FeatureError, match="cannot be used as ids"):
        find_videos(tmp_path)
    assert len(find_videos(tmp_path, only=["c"]).videos) == 1


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "locked/b.mp4")
    genuine = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return genuine(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FeatureError, match="locked: Permission denied"):
        find_videos(tmp_path)


def test_names_of_frames():
    names = ("a-1-000020.JPEG", "a-1_20.png", "frame_000020.jpg", "img_00020.jpg", "image_20.jpg", "00020.jpg")
    assert [parse_frame_name("a-1", name) for name in names] == [(kind, 20) for kind in range(6)]
    refused = ("a-1.jpg", "a-1-000020.gif", "a-1-000020.jpg.part", "a-1--20.jpg", "a-1-²0.jpg", "b-000020.jpg")
    for name in (*refused, "frame_.jpg", "my_frame_1.jpg", "frame_1_b.jpg", "20.txt"):
        assert parse_frame_name("a-1", name) is None


@pytest.mark.parametrize("form", ["v_{:06}.jpg", "frame_{:06}.jpg", "img_{:05}.png", "image_{}.jpeg", "{:04}.jpg"])
def test_folders_of_frames_of_other_names(tmp_path, form):
    (tmp_path / "deep" / "v").mkdir(parents=True)
    images = pictures(12, 31, 21)
    for number, image in enumerate(images, 1):
        Image.fromarray(image).save(tmp_path / "deep" / "v" / form.format(number))
    touch(tmp_path, "deep/v/preview.jpg", "deep/v/cover-000001.jpg")
    listing = find_videos(tmp_path)
    assert listing.describe_left_out()[0] == "left out: 2 files that are no videos (.jpg 2)"
    assert [(video.video_id, video.is_folder, video.size) for video in listing.videos] == [("v", True, 12)]
    assert listing.left_out == {".jpg": 2}
    got = read(listing.videos[0].path, "uniform=3")
    assert got.result.indices.tolist() == [0, 5, 11] and got.result.num_frames == 12
    assert abs(got.images[5].astype(int) - images[5]).mean() < 12


@pytest.mark.parametrize("name", ["IMG_0001.jpg", "frame0001.jpg", "v.0001.png"])
def test_where_frames_have_other_names_the_names_that_are_read_are_told(tmp_path, name):
    touch(tmp_path, f"v/{name}")
    with pytest.raises(FeatureError, match=r"left out: 1 file .*\nFrames of a video .* ID: ID-000001.jpg, .*img_00"):
        find_videos(tmp_path)


def test_of_several_kinds_of_names_one_is_the_video(tmp_path):
    """Charades' names come first; other numbered images beside video files are no video."""
    touch(tmp_path, "v/v-1.jpg", "v/v-2.jpg", "v/frame_1.jpg", "v/frame_2.jpg", "v/frame_3.jpg", "v/clip.mp4")
    touch(tmp_path, "w/frame_1.jpg", "w/1.png", "w/2.png", "videos/a.mp4", "videos/0001.jpg", "videos/0002.jpg")
    listing = find_videos(tmp_path)
    assert [(video.video_id, video.size) for video in listing.videos] == [("a", 7), ("v", 2), ("w", 1)]
    assert listing.left_out == {".jpg": 5, ".png": 2}
    assert [video.video_id for video in find_videos(tmp_path, ["a", "w"]).videos] == ["a", "w"]


@pytest.mark.parametrize("stray", ["0001.jpg", "img_1.png", "frame_000001.jpg"])
def test_a_numbered_picture_does_not_hide_the_videos_below(tmp_path, stray):
    touch(tmp_path, stray, "x/a.mp4", "y/frame_1.jpg", "z/z-1.jpg", "z/inside/b.mp4")
    listing = find_videos(tmp_path)
    assert [video.video_id for video in listing.videos] == ["a", "y", "z"]
    assert list(listing.left_out.values()) == [1]
    assert [video.video_id for video in find_videos(tmp_path, ["a"]).videos] == ["a"]


def test_what_is_left_out_is_counted_and_named(tmp_path, run):
    touch(tmp_path, "v/a.mp4", "v/a.srt", "v/deep/b.SRT", "v/b.mp4", "v/README", "v/.hidden.txt", "v/c.mp4.part")
    os.mkfifo(tmp_path / "v" / "pipe.mp4")
    (tmp_path / "v" / "c.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "v" / "d").symlink_to(tmp_path / "v" / "d")
    listing = find_videos(tmp_path / "v")
    assert [video.video_id for video in listing.videos] == ["a", "b"]
    assert listing.left_out == {".srt": 2, "without an ending": 1, ".part": 1, "pipes and devices": 1}
    assert listing.dangling == (str(tmp_path / "v" / "c.mp4"), str(tmp_path / "v" / "d"))
    wanted = find_videos(tmp_path / "v", ["a", "c"])
    assert (wanted.missing, wanted.dangling) == (("c",), (str(tmp_path / "v" / "c.mp4"),))
    outcome = run("extract-features", tmp_path / "v", "--out", tmp_path / "f.h5", "--device", "toaster")
    assert outcome.exit_code == 1
    assert "left out: 5 files that are no videos (.srt 2, " in outcome.stderr
    assert f"left out: 2 links whose target is missing: {tmp_path / 'v' / 'c.mp4'}, " in outcome.stderr
    assert outcome.stderr.endswith("Error: 'toaster' is no device that can be used; known: auto, cpu, cuda, cuda:N\n")
    with pytest.raises(FeatureError, match=r"no videos in .*\nleft out: 1 file that is no video \(.srt 1\)"):
        (tmp_path / "v" / "deep" / "b.SRT").rename(tmp_path / "v" / "deep" / "x.srt")
        find_videos(tmp_path / "v" / "deep")


NAMES = [f"v-{number:06}.jpg" for number in (*range(1, 8), 12, 100, 1000, 10000)] + ["v-0020000.png"]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of twelve frames, of odd sizes and modes, numbered with gaps."""
    folder = tmp_path / "v"
    folder.mkdir()
    modes = {1: "L", 2: "CMYK"}
    for place, (name, pixels) in enumerate(zip(NAMES, pictures(len(NAMES), 31, 21), strict=True)):
        image = Image.fromarray(pixels).convert(modes.get(place, "RGB"))
        (image.convert("P") if name.endswith("png") else image).save(folder / name)
    touch(folder, "preview.jpg", "v-000003.txt", ".v-000004.jpg")
    return folder


def expected(rule: str, times: list[float]) -> list[int]:
    kind, _, value = rule.partition("=")
    if kind == "uniform":
        return uniform_indices(len(times), int(value)).tolist()
    if kind == "all":
        return list(range(len(times)))
    count = int((times[-1] - times[0]) * float(value) + 1e-9) + 1
    return [max(i for i, t in enumerate(times) if t - times[0] <= k / float(value) + 1e-9) for k in range(count)]


@pytest.mark.parametrize("rule", ["uniform=200", "uniform=5", "all", "fps=8"])
def test_images_are_as_pillow_reads_them_in_the_order_of_their_numbers(frames, rule):
    got = read(frames, rule)
    rows = expected(rule, [place / 24 for place in range(12)])
    assert (got.result.status, got.restarts, got.result.num_frames) == ("ok", 0, 12)
    assert got.result.indices.tolist() == rows and got.rows == len(rows)
    np.testing.assert_allclose(got.result.timestamps, np.array(rows) / 24, rtol=0, atol=1e-12)
    for place, image in got.images.items():
        with Image.open(frames / NAMES[place]) as opened:
            np.testing.assert_array_equal(image, np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("rule", ["uniform=200", "uniform=12", "all", "fps=12"])
def test_images_that_cannot_be_read_are_left_out(frames, rule):
    for place, content in {0: b"", 4: b"noise" * 50, 9: None}.items():
        path = frames / NAMES[place]
        path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    got = read(frames, rule)
    readable = [1, 2, 3, 5, 6, 7, 8, 10, 11]
    rows = [readable[i] for i in expected(rule, [place / 24 for place in readable])]
    assert (got.result.status, got.result.num_frames, got.result.corrupt_frames) == ("salvaged", 12, 3)
    assert got.result.indices.tolist() == rows
    assert got.result.reason.startswith("3 of 12 images cannot be read (v-000001.jpg: ")


def test_a_folder_begins_again_where_an_image_fails_on_the_way(frames):
    (frames / NAMES[6]).write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    got = read(frames, "uniform=4")  # 0, 3, 7, 11: all of them can be read
    assert (got.result.status, got.restarts) == ("ok", 0)
    got = read(frames, "uniform=3")  # 0, 5, 11
    assert (got.result.status, got.restarts) == ("ok", 0)
    got = read(frames, "all")
    assert (got.result.status, got.restarts) == ("salvaged", 1)
    assert got.result.indices.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]


def test_folders_that_give_nothing(tmp_path):
    (tmp_path / "v").mkdir()
    assert read(tmp_path / "v", "all").result.reason == "no images that are numbered as frames"
    touch(tmp_path, "v/v-1.jpg", "v/v-2.jpg")
    assert read(tmp_path / "v", "all").result.reason.startswith("2 of 2 images cannot be read")
    touch(tmp_path, "v/v-02.png")
    result = read(tmp_path / "v", "all").result
    assert result.reason == "two images have the number 2: v-02.png and v-2.jpg"
    (reading, video) = (read_frames(as_video(tmp_path / "v"), FrameRule("all")), as_video(tmp_path / "v"))
    for path in (tmp_path / "v").iterdir():
        path.unlink()
    (tmp_path / "v").rmdir()
    with pytest.raises(StopIteration) as end:
        next(reading)
    assert end.value.value.reason == "the folder cannot be listed: No such file or directory"
    assert count_rows(video, FrameRule("all")) == 0


def test_an_image_too_large_to_be_true_is_not_read(frames, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 300)
        result = read(frames, "all").result
        assert result.status == "failed" and "decompression bomb" in result.reason
    # Between once and twice the limit Pillow only warns, and the warning stays inside.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31 * 21 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(frames, "all").result.status == "ok"


def test_frames_a_second_of_a_folder_can_be_told(frames):
    reading = read_frames(as_video(frames), FrameRule.from_text("fps=1"), folder_fps=4)
    assert [frame.index for frame in reading] == [0, 4, 8]
    assert count_rows(as_video(frames), FrameRule.from_text("fps=1"), folder_fps=4) == 3
