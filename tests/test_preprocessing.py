"""Resizing and normalising against Pillow itself, and against the processors of transformers."""

import pickle
from importlib import import_module
from math import nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import meidbench.extraction.encoders.preprocessing as preprocessing
from meidbench.errors import FeatureError
from meidbench.extraction.encoders.preprocessing import IMAGENET, Preprocessing, Preprocessor, normalise
from meidbench.extraction.frames import IMAGENET_GEOMETRY, CropWindow, Geometry, find_crop_window

SIZES = [
    (480, 640), (640, 480), (240, 320), (1080, 1920), (360, 202), (720, 405), (999, 281),
    (256, 256), (256, 300), (300, 256), (255, 257), (512, 512), (511, 1023),
    (1, 1), (2, 2), (3, 500), (500, 3), (1, 90), (37, 41), (101, 999), (224, 224),
]  # fmt: skip

GEOMETRIES = [
    Geometry(filter="bicubic"),
    Geometry(224, 224, "bicubic", floor=True),
    Geometry(235, 224, "bicubic", square=True),
    Geometry(224, 224, "bicubic", square=True),
    Geometry(225, 224, "bilinear", square=True, floor=True),
]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def checkerboard(height, width, side=3):
    squares = (np.indices((height, width)) // side).sum(0)[..., None]
    return np.where(squares % 2, 255, 0).astype(np.uint8).repeat(3, 2)


def by_pillow(frame, geometry=IMAGENET_GEOMETRY, *, at_once=False):
    """Resize and CenterCrop of torchvision on a picture, by their definition, or resizing and cropping of transformers.

    Up to 12 Pillow resizes along the rows first, from 13 on some tall pictures the other way round; two calls fix it.
    """
    picture = Image.fromarray(frame)
    width, height = picture.size
    resize, crop = geometry.resize, geometry.crop
    long = int(resize * max(picture.size) / min(picture.size))
    size = (resize, long) if width <= height else (long, resize)
    if geometry.square:
        size = (resize, resize)
    how = Image.Resampling[geometry.filter.upper()]
    if not at_once:
        picture = picture.resize((size[0], height), how)
    picture = picture.resize(size, how)
    left, top = ((side - crop) // 2 if geometry.floor else round((side - crop) / 2.0) for side in size)
    return np.asarray(picture.crop((left, top, left + crop, top + crop)))


def by_product(frames, geometry=IMAGENET_GEOMETRY):
    frames = frames if frames.ndim == 4 else frames[None]
    window = find_crop_window(*frames.shape[1:3], geometry)
    cut = np.ascontiguousarray(frames[:, window.top : window.bottom, window.left : window.right])
    numbers = Preprocessing(**vars(geometry))
    assert numbers.geometry == geometry
    crops = Preprocessor("cpu", numbers).resize(torch.from_numpy(cut), window)
    assert crops.dtype == torch.uint8 and crops.shape == (len(frames), 3, geometry.crop, geometry.crop)
    return crops.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_is_that_of_pillow(size):
    frame = noise(*size)
    assert np.array_equal(by_product(frame)[0], by_pillow(frame))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_crop_of_every_geometry_is_that_of_pillow(geometry, size):
    for frame in (noise(*size), checkerboard(*size)):
        assert np.array_equal(by_product(frame, geometry)[0], by_pillow(frame, geometry))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([noise, checkerboard]),
    st.sampled_from([(64, 56), (41, 32), (9, 9), (300, 7)]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
    st.booleans(),
)
def test_crop_is_that_of_pillow_at_any_size(height, width, make_frame, lengths, how, square, floor):
    frame, geometry = make_frame(height, width), Geometry(*lengths, how, square, floor)
    assert np.array_equal(by_product(frame, geometry)[0], by_pillow(frame, geometry))


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (333, 501), (720, 405), (640, 480), (999, 281)], ids=str)
@pytest.mark.parametrize("geometry", [IMAGENET_GEOMETRY, *GEOMETRIES], ids=str)
def test_one_call_of_pillow_gives_the_same_but_for_the_order_of_tall_pictures(geometry, size):
    height, width = size
    waves = [127 + 120 * np.sin(np.add.outer(np.arange(height) / (9 + k), np.arange(width) / 13)) for k in range(3)]
    smooth = np.stack(waves, axis=2).astype(np.uint8)
    for frame in (noise(*size), smooth):
        crop = by_product(frame, geometry)[0].astype(int)
        picture = by_pillow(frame, geometry, at_once=True)
        if height <= width:
            assert np.array_equal(crop, picture)
        elif geometry.filter == "bilinear":
            assert np.abs(crop - picture).max() <= 1
        elif frame is smooth:  # the order matters more where values are clipped between the passes
            assert np.abs(crop - picture).max() <= 2


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_flat_frame_stays_flat(value):
    assert (by_product(np.full((1080, 1920, 3), value, dtype=np.uint8)) == value).all()


@pytest.mark.parametrize("side", [1, 3, 20])
@pytest.mark.parametrize("size", [(333, 517), (40, 60)], ids=str)
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_hard_edges_do_not_overflow(how, size, side):
    frame, geometry = checkerboard(*size, side), Geometry(filter=how)
    assert np.array_equal(by_product(frame, geometry)[0], by_pillow(frame, geometry))


def test_bicubic_values_overshoot_in_both_passes_and_are_clipped(monkeypatch):
    frame, geometry, sums = checkerboard(40, 60, 20), Geometry(64, 64, "bicubic"), []
    rounded = preprocessing._round
    monkeypatch.setattr(preprocessing, "_round", lambda *given: sums.append(given[0].clone()) or rounded(*given))
    assert np.array_equal(by_product(frame, geometry)[0], by_pillow(frame, geometry))
    assert len(sums) == 4 and all(values.min() < -9 and values.max() > 264 for values in sums)


def test_channels_and_sides_keep_their_places():
    frame = np.zeros((300, 400, 3), dtype=np.uint8)
    frame[:150, :, 0] = 255
    frame[:, :200, 2] = 255
    crop = by_product(frame)[0]
    assert crop[0, 0].tolist() == [255, 0, 255] and crop[-1, -1].tolist() == [0, 0, 0]
    assert crop[0, -1].tolist() == [255, 0, 0] and crop[-1, 0].tolist() == [0, 0, 255]


def test_nothing_outside_the_window_matters_and_its_borders_do():
    frame = noise(480, 640)
    window = find_crop_window(480, 640)
    inside = np.zeros((480, 640), dtype=bool)
    inside[window.top : window.bottom, window.left : window.right] = True
    assert np.array_equal(by_pillow(np.where(inside[..., None], frame, 0)), by_pillow(frame))
    lines = np.index_exp[window.top], np.index_exp[window.bottom - 1]
    lines += np.index_exp[:, window.left], np.index_exp[:, window.right - 1]
    for line in lines:
        changed = frame.copy()
        changed[line] ^= 0xFF
        assert not np.array_equal(by_pillow(changed), by_pillow(frame))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_nothing_outside_the_window_of_any_geometry_matters(geometry):
    frame, window = noise(200, 300), find_crop_window(200, 300, geometry)
    inside = np.zeros((200, 300, 1), dtype=bool)
    inside[window.top : window.bottom, window.left : window.right] = True
    assert np.array_equal(by_pillow(np.where(inside, frame, 0), geometry), by_pillow(frame, geometry))
    assert inside.all() == (geometry.square and geometry.resize == geometry.crop)


def test_without_geometry_the_window_is_the_whole_frame():
    assert find_crop_window(3, 500, None) == CropWindow(3, 500, top=0, bottom=3, left=0, right=500)


def test_odd_remainders_are_cropped_as_torchvision_or_as_transformers_does():
    """(41 - 32) / 2 is 4.5, which rounds to 4; (39 - 32) / 2 is 3.5, which rounds to 4, and to 3 if rounded down."""
    offsets = {(size, floor): Geometry(39, 32, floor=floor).find_offset(size) for size in (39, 41) for floor in (0, 1)}
    assert offsets == {(39, 0): 4, (39, 1): 3, (41, 0): 4, (41, 1): 4}
    assert Geometry(39, 32).find_size(500, 3) == (6500, 39)
    frame = noise(100, 100)
    crops = [by_product(frame, Geometry(39, 32, floor=floor))[0] for floor in (False, True)]
    assert np.array_equal(crops[0][:-1, :-1], crops[1][1:, 1:]) and not np.array_equal(*crops)


def test_frames_of_a_batch_are_alone(monkeypatch):
    frames = np.stack([noise(90, 120, seed) for seed in range(3)])
    together = by_product(frames)
    monkeypatch.setattr(preprocessing, "_TEMPORARY_BYTES_CPU", 1)
    assert np.array_equal(by_product(frames), together)
    assert all(np.array_equal(by_product(frame)[0], crop) for frame, crop in zip(frames, together, strict=True))


def test_temporaries_are_bounded(monkeypatch):
    """No product exceeds the bound, for any number of frames."""
    largest = []
    rounded = preprocessing._round
    monkeypatch.setattr(preprocessing, "_round", lambda sums, clip: largest.append(sums.nbytes) or rounded(sums, clip))
    monkeypatch.setattr(preprocessing, "_TEMPORARY_BYTES_CPU", 1 << 22)
    by_product(np.zeros((40, 60, 80, 3), dtype=np.uint8))
    assert len(largest) > 14 and max(largest) <= 1 << 22


def test_precision_settings_do_not_matter():
    frame = noise(480, 640)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert np.array_equal(by_product(frame)[0], by_pillow(frame))
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_frames_give_no_crops():
    window = find_crop_window(480, 640)
    frames = torch.empty((0, window.bottom - window.top, window.right - window.left, 3), dtype=torch.uint8)
    assert Preprocessor("cpu").resize(frames, window).shape == (0, 3, 224, 224)


def test_geometry_goes_to_other_processes_and_serves_as_a_key():
    geometry = Geometry(224, 224, "bicubic", square=True)
    assert {pickle.loads(pickle.dumps(geometry)): 1}[geometry] == 1


def test_strided_frames_are_read_right():
    frame = noise(300, 300)
    window = find_crop_window(300, 300)
    view = torch.from_numpy(np.ascontiguousarray(frame.transpose(1, 0, 2))).transpose(0, 1)
    cut = view[None, window.top : window.bottom, window.left : window.right]
    crop = Preprocessor("cpu").resize(cut, window)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(crop, by_pillow(frame))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (101, 999)], ids=str)
@pytest.mark.parametrize("geometry", [IMAGENET_GEOMETRY, *GEOMETRIES], ids=str)
def test_crop_is_that_of_pillow_on_a_gpu(geometry, size):
    frames = np.stack([noise(*size), noise(*size, 1), checkerboard(*size)])
    window = find_crop_window(*size, geometry)
    cut = np.ascontiguousarray(frames[:, window.top : window.bottom, window.left : window.right])
    with torch.autocast("cuda", dtype=torch.float16):
        crops = Preprocessor("cuda", Preprocessing(**vars(geometry))).resize(torch.from_numpy(cut), window)
    for crop, frame in zip(crops.permute(0, 2, 3, 1).cpu().numpy(), frames, strict=True):
        assert np.array_equal(crop, by_pillow(frame, geometry))


# --- against the processors of transformers ---

_SHORT = {"size": {"shortest_edge": 224}}
# Processor, its settings where they are not its own, and the numbers; DINOv2 uses BiT's processor.
PROCESSORS = {
    "CLIP": ("clip.CLIP", {}, Geometry(224, 224, "bicubic", floor=True)),
    "CLIP-odd": ("clip.CLIP", {"size": {"shortest_edge": 235}}, Geometry(235, 224, "bicubic", floor=True)),
    "SigLIP": ("siglip.Siglip", {}, Geometry(224, 224, "bicubic", square=True, floor=True)),
    "DINOv2": ("bit.Bit", {"size": {"shortest_edge": 256}}, Geometry(256, 224, "bicubic", floor=True)),
    "ViT": ("vit.ViT", {}, Geometry(224, 224, square=True, floor=True)),
    "ConvNeXt": ("convnext.ConvNext", _SHORT, Geometry(256, 224, "bicubic", floor=True)),
    "ConvNeXt-pct": ("convnext.ConvNext", {**_SHORT, "crop_pct": 0.95}, Geometry(235, 224, "bicubic", floor=True)),
    "ConvNeXt-384": ("convnext.ConvNext", {}, Geometry(384, 384, "bicubic", square=True, floor=True)),
    "VideoMAE": ("videomae.VideoMAE", {}, Geometry(224, 224, floor=True)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_crop_is_that_of_the_processor(name, rows_first):
    """Pixel for pixel, before the processor scales them; tall frames as well, by Pillow's order up to 12."""
    pytest.importorskip("transformers", reason="an optional dependency, of the extra 'hf'")
    path, options, geometry = PROCESSORS[name]
    module, prefix = path.split(".")
    library = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(library, f"{prefix}ImageProcessorPil")(do_rescale=False, do_normalize=False, **options)
    for size in [(480, 640), (375, 500), (500, 375), (720, 405), (511, 1023), (37, 41), (224, 225), (999, 281)]:
        for frame in (noise(*size), checkerboard(*size)):
            image = Image.fromarray(frame)
            wanted = processor([[image]] if module == "videomae" else image)["pixel_values"]
            wanted = np.asarray(wanted).reshape(3, geometry.crop, geometry.crop).transpose(1, 2, 0)
            assert np.array_equal(by_product(frame, geometry)[0], wanted), size


# --- normalising ---


def test_the_whole_way_is_that_of_pictures_and_numpy():
    frame = noise(375, 500)
    scaled = by_pillow(frame).astype(np.float64) / 255
    wanted = (scaled - IMAGENET.mean) / IMAGENET.std
    pixels = normalise(torch.from_numpy(by_product(frame)).permute(0, 3, 1, 2))
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert np.abs(pixels[0].permute(1, 2, 0).numpy() - wanted).max() < 1e-6


def test_layout_and_type_can_be_chosen():
    crops = torch.from_numpy(noise(8, 6)).permute(2, 0, 1)[None].contiguous()
    before = crops.clone()
    plain = normalise(crops)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pixels = normalise(crops, dtype=dtype, channels_last=True)
        assert pixels.dtype == dtype and pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(pixels, plain.to(dtype))
    assert torch.equal(crops, before)


def test_facts_are_those_that_weights_ask_for():
    recipe = IMAGENET.to_recipe()
    assert recipe["mean"] == [0.485, 0.456, 0.406] and recipe["std"] == [0.229, 0.224, 0.225]
    assert (recipe["resize"], recipe["crop"]) == ("short side 256, bilinear as Pillow", "centre 224")
    assert recipe["colour"] == "RGB"
    other = Preprocessing(235, 224, filter="bicubic", square=True, floor=True).to_recipe()
    assert (other["resize"], other["crop"]) == ("235 x 235, bicubic as Pillow", "centre 224, offset rounded down")


# --- what is refused ---


@pytest.mark.parametrize("lengths", [(224, 256), (0, 0), (256, -1), (256.0, 224), (nan, nan), ("256", "224")])
def test_impossible_lengths_are_refused(lengths):
    with pytest.raises(FeatureError, match="1 <= crop <= resize"):
        Preprocessor("cpu", Preprocessing(*lengths))
    with pytest.raises(FeatureError, match="1 <= crop <= resize"):
        Geometry(*lengths)


def test_unknown_filters_are_refused_and_the_known_ones_named():
    with pytest.raises(FeatureError, match="lanczos.*known.*bilinear, bicubic"):
        Preprocessing(filter="lanczos")


@pytest.mark.parametrize("size", [(0, 640), (480, -1), (480.5, 640)])
def test_impossible_frames_are_refused(size):
    for geometry in (IMAGENET_GEOMETRY, None):
        with pytest.raises(FeatureError, match="at least 1"):
            find_crop_window(*size, geometry)


def test_other_shapes_and_types_are_refused():
    window = find_crop_window(480, 640)
    height, width = window.bottom - window.top, window.right - window.left
    right = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    for frames in (right.float(), right[0], right[:, 1:], right[..., :1], right.permute(0, 3, 1, 2)):
        with pytest.raises(FeatureError, match=rf"expected: \(n, {height}, {width}, 3\)"):
            Preprocessor("cpu").resize(frames, window)
    with pytest.raises(FeatureError, match="not the window"):
        Preprocessor("cpu", Preprocessing(300, 200)).resize(right, window)
    for crops in (right, torch.zeros(1, 3, 2, 2), torch.zeros((3, 2, 2), dtype=torch.uint8)):
        with pytest.raises(FeatureError, match="cannot normalise"):
            normalise(crops)
