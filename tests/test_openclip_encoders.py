"""Encoders of OpenCLIP against OpenCLIP's own plain script, on real clips; texts, folders, tags, refusals."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from plain_encoding import NEEDS, assert_rows_equal_a_plain_script, cosines, extract, two_clips

from meidbench.errors import FeatureError
from meidbench.extraction.encoders.encoder import FrameTransform, load_encoder, load_text_encoder
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import state_digest
from meidbench.features.feature_file import read_header

open_clip = pytest.importorskip("open_clip", reason=NEEDS.format("open_clip_torch"))
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from meidbench.extraction.encoders.openclip import find_preprocessing, load, load_text  # noqa: E402

VISION = {"image_size": 96, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
MODELS = {
    "clip": CLIP,
    "resnet": {**CLIP, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}},
    "siglip": {**CLIP, "init_logit_bias": -10, "custom_text": True, "text_cfg": {**TEXT, "pool_type": "last"}},
    "coca": {
        **CLIP,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "width": 24, "mlp_ratio": 4},
        "custom_text": True,
    },
}
PREPROCESSING = {
    "shortest": {},
    "squash": {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    "longest": {"resize_mode": "longest", "fill_color": 127},
}


def write_folder(folder, config, preprocessing=None):
    """Write a folder as OpenCLIP writes a model for the hub, with random weights; return the model."""
    folder.mkdir(parents=True)
    described = {"model_cfg": config, "preprocess_cfg": preprocessing or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Make OpenCLIP know two models of this test by name: Tiny and Tiny-quickgelu; return a checkpoint of Tiny."""
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [])
    for name, quick in (("Tiny", False), ("Tiny-quickgelu", True)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**CLIP, "quick_gelu": quick}))
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {})
        open_clip.add_model_config(path)
    torch.manual_seed(1)
    model = open_clip.create_model("Tiny")
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny):
    """Publish the weights of Tiny in a cache of the hub, under the tag ``ours``, as trained with QuickGELU."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    model = folder / "models--someone--tiny"
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(commit)
        state = torch.load(tiny)["state_dict"]
        save_file(state, model / "snapshots" / commit / "open_clip_model.safetensors")
    published = {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for name in ("Tiny", "Tiny-quickgelu"):
        tags = {"ours": {**published, "interpolation": "bilinear", "resize_mode": "squash"}}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    return model


@pytest.mark.parametrize(("model", "preprocessing"), [
    ("clip", "shortest"), ("resnet", "squash"), ("siglip", "longest"), ("coca", "shortest"),
])  # fmt: skip
def test_rows_and_texts_are_those_of_openclips_own_script(model, preprocessing, run, in_this_process, tmp_path):
    folder = tmp_path / "model"
    write_folder(folder, MODELS[model], PREPROCESSING[preprocessing])
    videos = two_clips(tmp_path)
    path = extract(run, tmp_path / "rows.h5", f"openclip:{folder}", videos=videos)
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    plain.eval().requires_grad_(False)
    assert_rows_equal_a_plain_script(path, transform, partial(plain.encode_image, normalize=False), videos)
    recipe = read_header(path).recipe
    assert recipe["weights_sha256"] == state_digest(plain.visual.state_dict())
    assert recipe["libraries"].keys() >= {"open_clip_torch", "timm", "torchvision"}
    described = load_encoder(f"openclip:{folder}").preprocessing
    assert isinstance(described, FrameTransform if preprocessing == "longest" else Preprocessing)
    assert run("verify-features", path, "--videos", videos, "--sample", 1).exit_code == 0

    texts = load_text_encoder(f"openclip:{folder}")
    words = ["a photo of a cat", "ride a bike", "x " * 40]
    with torch.no_grad():
        wanted = plain.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(words), normalize=False).numpy()
    found = texts.encode(words * 30)
    assert found.shape == (90, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found[:3], wanted, rtol=1e-4, atol=1e-6)
    assert texts.scale == pytest.approx(float(plain.logit_scale.exp()))
    assert texts.bias == (-10 if model == "siglip" else 0)
    assert texts.name == f"openclip:{folder}"
    if model != "coca":
        size = plain.visual.image_size
        images = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))
        with torch.no_grad():
            rows = load_encoder(f"openclip:{folder}").network(images).numpy()
            tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(words)
            logits = plain.get_logits(images, tokens)[0].numpy()
        ours = [[texts.scale * cosines([row], [text])[0] + texts.bias for text in found[:3]] for row in rows]
        np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_a_model_by_name(tiny, run, in_this_process, tmp_path):
    name = f"openclip:Tiny/{tiny}"
    videos = two_clips(tmp_path)
    path = extract(run, tmp_path / "rows.h5", name, videos=videos)
    assert read_header(path).recipe["backbone"] == name
    plain, _, transform = open_clip.create_model_and_transforms("Tiny", pretrained=str(tiny))
    assert_rows_equal_a_plain_script(path, transform, plain.eval().encode_image, videos)
    assert load_text_encoder(name).encode(["a cat"]).shape == (1, 24)


def test_tags_are_pinned_to_the_hubs_commit(hub):
    encoder = load_encoder("openclip:Tiny-quickgelu/ours", offline=True)
    assert (encoder.revision, encoder.dim, encoder.weights.name) == ("a" * 40, 24, "default")
    wanted = Preprocessing(96, 96, (0.5,) * 3, (0.25,) * 3, filter="bilinear", square=True)
    assert encoder.preprocessing == wanted
    assert load_encoder("openclip:Tiny-quickgelu/ours@v1", offline=True).revision == "b" * 40
    with pytest.raises(FeatureError, match=r"^openclip:hf-hub:someone/tiny@v2 is not complete in the hub's cache"):
        load_encoder("openclip:Tiny-quickgelu/ours@v2", offline=True)


def test_a_wrong_activation_is_told(hub):
    lines = []
    load("Tiny-quickgelu/ours", offline=True, report=lines.append)
    assert lines == []
    load("Tiny/ours", offline=True, report=lines.append)
    assert len(lines) == 1 and "trained with QuickGELU" in lines[0]
    assert lines[0].endswith("use openclip:Tiny-quickgelu/ours")


def test_a_model_of_the_hub_with_its_own_configuration(hub):
    folder = hub.parent / "models--someone--else"
    write_folder(folder / "snapshots" / ("c" * 40), CLIP)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c" * 40)
    encoder = load_encoder("openclip:hf-hub:someone/else", offline=True)
    assert (encoder.revision, encoder.dim) == ("c" * 40, 24)


def test_random_weights_are_openclips_own_and_need_a_seed(tiny, hub, tmp_path):
    write_folder(tmp_path / "model", CLIP)
    before, lines = torch.random.get_rng_state(), []
    encoder = load("Tiny", "random", seed=3, report=lines.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    wanted = state_digest(open_clip.create_model("Tiny").visual.state_dict())
    assert encoder.weights.sha256 == wanted and "RANDOM weights (seed 3)" in lines[0]
    assert load(str(tmp_path / "model"), "random", seed=3).weights.sha256 == wanted
    tagged = load("Tiny/ours", "random", seed=3)
    assert tagged.weights.sha256 == wanted and tagged.preprocessing.square
    with pytest.raises(FeatureError, match="need a seed"):
        load("Tiny", "random")


def test_missing_and_strange_weights_are_refused(tiny, tmp_path):
    state = torch.load(tiny)["state_dict"]
    torch.save({key: value for key, value in state.items() if key != "visual.proj"}, tmp_path / "lacks.pt")
    with pytest.raises(FeatureError, match=r"OpenCLIP cannot load Tiny/.*\n.*visual\.proj"):
        load_encoder(f"openclip:Tiny/{tmp_path / 'lacks.pt'}")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    with pytest.raises(FeatureError, match="a web page"):
        load_encoder(f"openclip:Tiny/{tmp_path / 'text.pt'}")
    folder = tmp_path / "model"
    write_folder(folder, CLIP)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FeatureError, match=r"OpenCLIP cannot load .*\n?.*could not be loaded"):
        load_encoder(f"openclip:{folder}")
    with pytest.raises(FeatureError, match="openclip:MODEL/FILE, without --weights"):
        load("Tiny", str(tiny))


@pytest.mark.parametrize(("name", "hint"), [
    ("ViT-B16/openai", "unknown model of OpenCLIP 'ViT-B16', and no folder .*did you mean ViT-B-16"),
    ("ViT-B-16/opena", r"unknown weights of OpenCLIP 'opena', and no file .*did you mean openai"),
    ("ViT-B-16", r"a tag is missing; expected openclip:ViT-B-16/TAG .*known: openai, "),
    ("ViT-B-16/openai", r"is not complete in the hub's cache(.|\n)*remedy"),
])  # fmt: skip
def test_unknown_names_have_suggestions(name, hint, hub):
    with pytest.raises(FeatureError, match=hint):
        load(name, offline=True)


def test_folders_and_tokenizers_that_are_not_there(tmp_path):
    with pytest.raises(FeatureError, match=r"has no open_clip_config\.json"):
        load_encoder(f"openclip:{tmp_path}")
    config = {**CLIP, "text_cfg": {**TEXT, "hf_tokenizer_name": "someone/words"}}
    write_folder(tmp_path / "model", config)
    with pytest.raises(FeatureError, match="cannot make the tokenizer"):
        load_text(str(tmp_path / "model"))


def test_what_no_numbers_describe_is_openclips_own_transform():
    config = {"size": (96, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    config |= {"resize_mode": "squash", "mode": "RGB", "fill_color": 0}
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    found = find_preprocessing(config)
    from PIL import Image

    wanted = image_transform_v2(PreprocessCfg(**config), is_train=False)(Image.fromarray(frame))
    assert torch.equal(found.function(frame), wanted)
    assert "resize_mode squash" in found.description
