"""Resizing and normalising against Pillow itself."""

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
from meidbench.extraction.frames import Geometry, find_crop_window

SIZES = [
    (480, 640), (640, 480), (240, 320), (1080, 1920), (360, 202), (720, 405), (999, 281),
    (256, 256), (256, 300), (300, 256), (255, 257), (512, 512), (511, 1023),
    (1, 1), (2, 2), (3, 500), (500, 3), (1, 90), (37, 41), (101, 999), (224, 224),
]  # fmt: skip


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(frame, resize=256, crop=224, *, at_once=False):
    """Resize(256) and CenterCrop(224) of torchvision on a picture, by their definition.

    Up to 12 Pillow resizes along the rows first, from 13 on some tall pictures the other way round; two calls fix it.
    """
    picture = Image.fromarray(frame)
    width, height = picture.size
    long = int(resize * max(picture.size) / min(picture.size))
    size = (resize, long) if width <= height else (long, resize)
    if not at_once:
        picture = picture.resize((size[0], height), Image.Resampling.BILINEAR)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2.0) for side in size)
    return np.asarray(picture.crop((left, top, left + crop, top + crop)))


def by_product(frames, resize=256, crop=224):
    frames = frames if frames.ndim == 4 else frames[None]
    window = find_crop_window(*frames.shape[1:3], Geometry(resize, crop))
    cut = np.ascontiguousarray(frames[:, window.top : window.bottom, window.left : window.right])
    crops = Preprocessor("cpu", Preprocessing(resize, crop)).resize(torch.from_numpy(cut), window)
    assert crops.dtype == torch.uint8 and crops.shape == (len(frames), 3, crop, crop)
    return crops.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_is_that_of_pillow(size):
    frame = noise(*size)
    assert np.array_equal(by_product(frame)[0], by_pillow(frame))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.sampled_from([(64, 56), (41, 33), (9, 9)]))
def test_crop_is_that_of_pillow_at_any_size(height, width, seed, lengths):
    frame = noise(height, width, seed)
    assert np.array_equal(by_product(frame, *lengths)[0], by_pillow(frame, *lengths))


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (333, 501), (720, 405), (640, 480), (999, 281)], ids=str)
def test_one_call_of_pillow_gives_the_same_but_for_the_order_of_tall_pictures(size):
    crop, picture = by_product(noise(*size))[0].astype(int), by_pillow(noise(*size), at_once=True)
    if size[0] <= size[1]:
        assert np.array_equal(crop, picture)
    assert np.abs(crop - picture).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_flat_frame_stays_flat(value):
    assert (by_product(np.full((1080, 1920, 3), value, dtype=np.uint8)) == value).all()


def test_hard_edges_do_not_overflow():
    frame = np.where(np.indices((333, 517)).sum(0)[..., None] % 2, 255, 0).astype(np.uint8).repeat(3, 2)
    assert np.array_equal(by_product(frame)[0], by_pillow(frame))


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
def test_crop_is_that_of_pillow_on_a_gpu(size):
    frames = np.stack([noise(*size, seed) for seed in range(3)])
    window = find_crop_window(*size)
    cut = np.ascontiguousarray(frames[:, window.top : window.bottom, window.left : window.right])
    with torch.autocast("cuda", dtype=torch.float16):
        crops = Preprocessor("cuda").resize(torch.from_numpy(cut), window)
    for crop, frame in zip(crops.permute(0, 2, 3, 1).cpu().numpy(), frames, strict=True):
        assert np.array_equal(crop, by_pillow(frame))


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
    assert "256" in recipe["resize"] and "224" in recipe["crop"] and recipe["colour"] == "RGB"


# --- what is refused ---


@pytest.mark.parametrize("lengths", [(224, 256), (0, 0), (256, -1), (256.0, 224), (nan, nan), ("256", "224")])
def test_impossible_lengths_are_refused(lengths):
    with pytest.raises(FeatureError, match="1 <= crop <= resize"):
        Preprocessor("cpu", Preprocessing(*lengths))
    with pytest.raises(FeatureError, match="1 <= crop <= resize"):
        Geometry(*lengths)


@pytest.mark.parametrize("size", [(0, 640), (480, -1), (480.5, 640)])
def test_impossible_frames_are_refused(size):
    with pytest.raises(FeatureError, match="at least 1"):
        find_crop_window(*size)


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
