"""Encoders by name: a user's file, clips, preprocessing on whole frames, names and packages that are missing."""

import json
import shutil
import sys

import av
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from meidbench.errors import FeatureError, RequestError
from meidbench.extraction.encoders.encoder import (
    Encoder,
    FrameTransform,
    TextEncoder,
    check_encoder_name,
    load_encoder,
    load_text_encoder,
)
from meidbench.extraction.encoders.extractor import Extractor, default_rule
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import state_digest
from meidbench.extraction.extraction import extract_features
from meidbench.extraction.frames import FrameRule
from meidbench.extraction.videos import find_videos
from meidbench.features import open_features
from meidbench.features.feature_file import read_header

# The ten lines of docs/features.md, with a network that needs no download.
OWN = """
import torch
from meidbench.extraction.encoders.encoder import Encoder
from meidbench.extraction.encoders.preprocessing import Preprocessing

def make_encoder():
    torch.manual_seed(0)
    pool = torch.nn.AdaptiveAvgPool2d(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 8, stride=8), pool, torch.nn.Flatten())
    sizes = Preprocessing(resize=40, crop=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), filter="bicubic")
    return Encoder(network, dim=12, preprocessing=sizes, layer="mean of patches")
"""


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def resize(image, size, crop):
    """As Pillow resizes and crops, without this package."""
    image = Image.fromarray(image)
    factor = size / min(image.size)
    image = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), np.float32)
    return torch.from_numpy((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1)


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "patches.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def two_clips(clips, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("clip0.mp4", "clip1.mp4"):
        shutil.copy(clips / name, folder)
    return folder


def test_an_encoder_of_ones_own_is_one_file(own_file, two_clips, run, tmp_path):
    out = tmp_path / "f.h5"
    command = ["extract-features", two_clips, "--out", out, "--frames", 5, "--dtype", "float32"]
    outcome = run(*command, "--backbone", f"python:{own_file}")
    assert outcome.exit_code == 0, outcome.stderr
    space: dict = {}
    exec(OWN, space)
    network = space["make_encoder"]().network.eval()
    images = decode(two_clips / "clip0.mp4")
    crops = torch.stack([resize(images[index], 40, 32) for index in (0, 4, 9, 14, 19)])
    with torch.no_grad():
        expected = network(crops)
    np.testing.assert_allclose(open_features(out).read("clip0"), expected, rtol=0, atol=1e-5)
    recipe = read_header(out).recipe
    assert recipe["backbone"] == f"python:{own_file}" and recipe["layer"] == "mean of patches"
    assert len(recipe["revision"]) == 64 and recipe["weights_sha256"] == state_digest(network.state_dict())

    again = run("verify-features", out, "--videos", two_clips, "--sample", 2)
    assert again.exit_code == 0, again.stdout
    # The file is part of the identity: another one does not continue these features.
    own_file.write_text(OWN.replace("manual_seed(0)", "manual_seed(1)"))
    changed = run(*command, "--backbone", f"python:{own_file}")
    assert changed.exit_code == 1 and "revision: " in changed.stderr and "weights_sha256: " in changed.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"must have a function make_encoder\(\) that returns an Encoder"),
        ("def make_encoder(): return 3", r"must have a function make_encoder\(\) that returns an Encoder"),
        (
            "import torch, absent_package",
            r"e\.py, line 1: ModuleNotFoundError: .*'absent_package'; install it, or name",
        ),
        ("x = 1\ndef make_encoder()", r"e\.py, line 2: SyntaxError: expected ':'$"),
        ("def make_encoder():\n    return absent", r"e\.py, line 2: NameError: name 'absent' is not defined$"),
        (
            OWN.replace("dim=12", "dim=13"),
            r"e\.py: the network gives shape \(1, 12\) for one frame; its dim expects \(1, 13\)$",
        ),
    ],
)
def test_a_file_without_an_encoder_is_refused(tmp_path, text, message):
    (tmp_path / "e.py").write_text(text)
    with pytest.raises(FeatureError, match=message):
        load_encoder(f"python:{tmp_path / 'e.py'}")
    with pytest.raises(FeatureError, match="loads its own weights"):
        load_encoder(f"python:{tmp_path / 'e.py'}", "random", seed=1)
    with pytest.raises(RequestError, match="there is no file"):
        load_encoder(f"python:{tmp_path / 'absent.py'}")


def test_a_file_may_name_its_weights_and_hold_dataclasses(tmp_path, two_clips):
    head = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    a: int = 3\n"
    named = 'layer="", weights=LoadedWeights("mine", "0" * 64, "")'
    text = OWN.replace('layer="mean of patches"', named)
    (tmp_path / "e.py").write_text(
        f"{head}from meidbench.extraction.encoders.weights import LoadedWeights\n{text}",
    )
    extractor = Extractor(f"python:{tmp_path / 'e.py'}", device="cpu")
    assert extractor.recipe["weights_sha256"] == "0" * 64
    assert Extractor.from_recipe(extractor.recipe, device="cpu").recipe == extractor.recipe


class Returns(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda images: images.mean((2, 3), keepdim=True), r"of shape \(2, 3\) for 2 images, got \(2, 3, 1, 1\)"),
        (lambda images: images.mean((1, 2, 3)), r"of shape \(2, 3\) for 2 images, got \(2,\)"),
        (lambda images: images.mean((2, 3))[:1], r"of shape \(2, 3\) for 2 images, got \(1, 3\)"),
        (lambda images: (images.mean((2, 3)),), "as a tensor, got tuple"),
    ],
)
def test_a_network_that_gives_other_rows_than_it_says_is_refused(clips, function, got):
    encoder = Encoder(Returns(function).eval(), 3, Preprocessing(resize=40, crop=32), name="own")
    extractor = Extractor(encoder, rule=FrameRule("uniform", frames=2), device="cpu")
    with pytest.raises(FeatureError, match=rf"must give rows {got}$"):
        extractor.extract(find_videos(clips, ["clip0"]).videos[0])


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda frame: torch.zeros(frame.shape), r"\(64, 96, 3\) of torch.float32"),
        (lambda frame: torch.zeros((3, 64, 96), dtype=torch.float64), r"\(3, 64, 96\) of torch.float64"),
        (lambda frame: frame.transpose(2, 0, 1), r"\(3, 64, 96\) of uint8"),
    ],
)
def test_a_transform_that_gives_other_images_is_refused(clips, function, got):
    encoder = Encoder(Returns(lambda images: images).eval(), 3, FrameTransform(function, "any"), name="own")
    with pytest.raises(FeatureError, match=rf"the FrameTransform of own must give .*, got {got}$"):
        Extractor(encoder, device="cpu").extract(find_videos(clips, ["clip0"]).videos[0])


class ClipNet(torch.nn.Module):
    """The frames of a clip, each with its own weight, so that their order counts."""

    def __init__(self, clip):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.arange(1.0, clip + 1) / clip)

    def forward(self, images):
        clips = images.float().mean((2, 3)).view(-1, len(self.weights), 3)
        return (clips * self.weights[:, None]).sum(1)


def clip_encoder(clip=4):
    network = ClipNet(clip).eval().requires_grad_(False)
    sizes = Preprocessing(resize=40, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3, filter="bicubic")
    return Encoder(network, 3, sizes, clip=clip, row_per_clip=True, name="clips")


def expected_clips(images, clips, frames, stride):
    """One clip at a time: every stride-th frame, the last repeated, starts spread evenly."""
    strided = images[::stride]
    strided = strided + strided[-1:] * max(frames - len(strided), 0)
    rows, firsts = [], []
    for number in range(clips):
        spare = len(strided) - frames
        start = spare // 2 if clips == 1 else number * spare // (clips - 1)
        means = [resize(image, 40, 32).mean((1, 2)) for image in strided[start : start + frames]]
        rows.append(sum(mean * (position + 1) / frames for position, mean in enumerate(means)))
        firsts.append(start * stride)
    return torch.stack(rows), firsts


@pytest.mark.parametrize(("clips_per_video", "stride", "batch_size"), [(3, 2, None), (1, 4, 4), (5, 4, 8), (2, 1, 4)])
def test_an_encoder_of_clips_gives_one_row_per_clip(clips, tmp_path, clips_per_video, stride, batch_size):
    encoder = clip_encoder()
    rule = default_rule(encoder, clips_per_video, stride)
    assert str(rule) == f"clips={clips_per_video}x4/{stride}" and FrameRule.from_text(str(rule)) == rule
    extractor = Extractor(encoder, rule=rule, device="cpu", dtype="float32", batch_size=batch_size)
    videos = find_videos(clips, ["clip0", "clip1"]).videos
    extract_features(videos, tmp_path / "f.h5", extractor, workers=2)
    source = open_features(tmp_path / "f.h5")
    for position, video in enumerate(videos):
        expected, firsts = expected_clips(decode(video.path), clips_per_video, 4, stride)
        np.testing.assert_allclose(source.read(video.video_id), expected, rtol=0, atol=1e-5)
        with h5py.File(tmp_path / "f.h5") as file:
            # The second clip has three frames.
            assert file["frame_indices"][position].tolist() == [min(first, 19) for first in firsts]
    assert extractor.extract(videos[0]).rows.tolist() == source.read("clip0").tolist()


def test_clips_and_frames_are_not_mixed(clips):
    with pytest.raises(FeatureError, match=r"clips takes clips \(--clips N\), not uniform=3"):
        Extractor(clip_encoder(), rule=FrameRule("uniform", frames=3), device="cpu")
    with pytest.raises(FeatureError, match="a clip of clips has 4 frames, in clips=2x16/4 16"):
        Extractor(clip_encoder(), rule=FrameRule.from_text("clips=2x16/4"), device="cpu")
    with pytest.raises(FeatureError, match="the batch size of clips must be a multiple of 4, got 6"):
        Extractor(clip_encoder(), device="cpu", batch_size=6)
    with pytest.raises(FeatureError, match="resnet50 takes single frames, not clips=2x16/4"):
        Extractor("resnet50", "random", seed=1, rule=FrameRule.from_text("clips=2x16/4"), device="cpu")
    assert str(default_rule(clip_encoder(16))) == "clips=10x16/4"


def test_options_that_an_encoder_does_not_use_are_refused(own_file, two_clips, run, tmp_path):
    outcome = run(
        "extract-features", two_clips, "--out", tmp_path / "f.h5", "--backbone", f"python:{own_file}", "--clips", 3
    )
    assert outcome.exit_code == 2 and "gives one row per frame (--frames, --sampling)" in outcome.stderr
    clip_file = tmp_path / "clips.py"
    joined = OWN.replace("Flatten())", "Flatten(), torch.nn.Unflatten(0, (-1, 4)), torch.nn.Flatten())")
    joined = joined.replace("dim=12", "dim=48").replace('layer="mean of patches"', "clip=4, row_per_clip=True")
    clip_file.write_text(joined)
    outcome = run(
        "extract-features", two_clips, "--out", tmp_path / "f.h5", "--backbone", f"python:{clip_file}", "--frames", 3
    )
    assert outcome.exit_code == 2 and "--frames: " in outcome.stderr and "one row per clip (--clips)" in outcome.stderr


def test_a_transform_of_whole_frames_is_applied_to_each(clips, tmp_path):
    def shrink(frame):
        assert frame.shape == (64, 96, 3) and frame.dtype == np.uint8
        return torch.from_numpy(frame[::8, ::8].copy()).permute(2, 0, 1) / 255

    class Corners(torch.nn.Module):
        def forward(self, images):
            return images[:, :, 0, 0].float()

    encoder = Encoder(Corners().eval(), 3, FrameTransform(shrink, "every eighth pixel"), name="corners")
    extractor = Extractor(encoder, rule=FrameRule("uniform", frames=5), device="cpu", dtype="float32")
    videos = find_videos(clips, ["clip0"]).videos
    extract_features(videos, tmp_path / "f.h5", extractor)
    images = decode(videos[0].path)
    expected = np.stack([images[index][0, 0] for index in (0, 4, 9, 14, 19)]) / np.float32(255)
    np.testing.assert_allclose(open_features(tmp_path / "f.h5").read("clip0"), expected, rtol=0, atol=1e-6)
    assert read_header(tmp_path / "f.h5").recipe["preprocessing"] == {"transform": "every eighth pixel"}


@pytest.mark.parametrize(("prefix", "package"), [("timm", "timm"), ("hf", "transformers"), ("openclip", "open_clip")])
def test_a_missing_extra_is_one_line_that_names_it(monkeypatch, two_clips, run, tmp_path, prefix, package):
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run("extract-features", two_clips, "--out", tmp_path / "f.h5", "--backbone", f"{prefix}:a/b")
    needed = f"{prefix}: needs the package {package}, which is not installed: pip install 'meidbench[{prefix}]'"
    assert outcome.exit_code == 1 and outcome.stderr == f"Error: {needed}\n"


@pytest.mark.parametrize("error", [ImportError("cannot import name 'PilBackend'"), RuntimeError("no operator nms")])
def test_a_library_that_cannot_be_used_is_told_with_a_remedy(monkeypatch, tmp_path, error):
    (tmp_path / "timm.py").write_text(f"raise {error!r}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(FeatureError) as caught:
        load_encoder("timm:a")
    assert str(caught.value) == (
        f"timm: cannot use the installed timm: {type(error).__name__}: {error}\n"
        "  remedy: install versions that fit together: pip install 'meidbench[timm]' --upgrade"
    )


def test_names_that_mean_no_encoder_are_refused(two_clips, run, tmp_path):
    for name, message in (
        ("resnet10", "unknown encoder 'resnet10' (did you mean resnet101?)"),
        ("clip", "others have a prefix: timm:MODEL, hf:NAME, openclip:MODEL/TAG, python:FILE.py"),
        ("openai/clip", "(did you mean hf:openai/clip?)"),
        ("mine.py", "(did you mean python:mine.py?)"),
        ("tim:vit", "unknown prefix of an encoder 'tim' (did you mean timm?)"),
        ("hf:", "'hf:' names no model; expected hf:NAME"),
    ):
        with pytest.raises(RequestError):
            check_encoder_name(name)
        outcome = run("extract-features", two_clips, "--out", tmp_path / "f.h5", "--backbone", name)
        assert outcome.exit_code == 2 and message in outcome.stderr
    assert check_encoder_name("timm:vit") == "timm:vit"
    for name in ("resnet101", "python:a.py"):
        with pytest.raises(FeatureError, match="has no text encoder"):
            load_text_encoder(name)
    outcome = run("extract-features", "--help")
    assert all(prefix in outcome.stdout for prefix in ("timm:MODEL", "hf:NAME", "openclip:MODEL/TAG", "python:FILE.py"))


def test_a_text_encoder_holds_its_scale():
    encoder = TextEncoder(lambda texts: np.zeros((len(texts), 2), np.float32), scale=100.0, name="hf:x")
    assert encoder.encode(["a", "b"]).shape == (2, 2) and (encoder.scale, encoder.bias) == (100.0, 0.0)


def test_the_recipe_names_encoder_and_revision(clips):
    encoder = Encoder(
        ClipNet(2).eval(),
        3,
        Preprocessing(40, 32),
        "here",
        name="hf:a/b",
        revision="abc",
        libraries={"transformers": "5"},
    )
    recipe = Extractor(encoder, device="cpu").recipe
    assert (recipe["backbone"], recipe["revision"], recipe["layer"]) == ("hf:a/b", "abc", "here")
    assert recipe["libraries"]["transformers"] == "5" and recipe["weights"] == "default"
    assert json.dumps(recipe)
