"""The networks against a plain computation from their state dicts, and the shift against a loop."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from meidbench import names
from meidbench.errors import FeatureError
from meidbench.extraction.encoders.backbones import (
    BACKBONES,
    PRECISIONS,
    ResNet,
    TemporalShift,
    _arithmetic,
    _exact_settings,
    build,
    for_inference,
    temporal_shift,
)

SMALL = (2, 1, 2, 1)


def fill(model, seed=0):
    """Give every parameter and statistic a value of its own, of a size that keeps activations moderate."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith(".weight"):
            value.uniform_(0.2, 0.6, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.1, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def small():
    return fill(ResNet(SMALL))


@pytest.fixture(scope="module")
def small_tsm():
    return fill(ResNet(SMALL, clip=8))


def pictures(n, side=40, seed=1):
    return torch.randn((n, 3, side, side), generator=torch.Generator().manual_seed(seed))


def by_hand(state, layers, x, clip=1):
    """Table 1 of the paper in float64, from the state dict alone."""
    state = {key: value.double() for key, value in state.items()}
    x = x.double()

    def normed(x, key):
        mean, variance = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return functional.batch_norm(x, mean, variance, state[f"{key}.weight"], state[f"{key}.bias"], eps=1e-5)

    x = functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(normed(x, "bn1").clamp(min=0), 3, stride=2, padding=1)
    for stage, depth in enumerate(layers, 1):
        for position in range(depth):
            key = f"layer{stage}.{position}"
            stride = 2 if stage > 1 and position == 0 else 1
            first = f"{key}.conv1.net.weight" if clip > 1 else f"{key}.conv1.weight"
            y = functional.conv2d(shifted_by_hand(x, clip) if clip > 1 else x, state[first])
            y = functional.conv2d(
                normed(y, f"{key}.bn1").clamp(min=0), state[f"{key}.conv2.weight"], stride=stride, padding=1
            )
            y = functional.conv2d(normed(y, f"{key}.bn2").clamp(min=0), state[f"{key}.conv3.weight"])
            y = normed(y, f"{key}.bn3")
            if position == 0:
                x = functional.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride)
                x = normed(x, f"{key}.downsample.1")
            x = (x + y).clamp(min=0)
    return x.flatten(2).mean(2)


def shifted_by_hand(x, clip, divisor=8):
    """Frame by frame, channel by channel."""
    out = torch.zeros_like(x)
    eighth = x.shape[1] // divisor
    for row in range(len(x)):
        for channel in range(x.shape[1]):
            step = 1 if channel < eighth else -1 if channel < 2 * eighth else 0
            if (row + step) // clip == row // clip and row + step >= 0:
                out[row, channel] = x[row + step, channel]
    return out


# --- the networks ---


def test_small_network_is_the_one_of_the_paper(small):
    x = pictures(3)
    wanted = by_hand(small.state_dict(), SMALL, x)
    rows = small(x)
    assert rows.shape == (3, 2048) and rows.dtype == torch.float32
    assert wanted.std() > 0.01
    assert (rows - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_small_network_with_shifts_is_the_one_of_the_paper(small_tsm):
    x = pictures(16, side=32)
    wanted = by_hand(small_tsm.state_dict(), SMALL, x, clip=8)
    assert (small_tsm(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_offered_network_with_shifts_is_the_one_of_the_paper():
    backbone = BACKBONES["tsm-resnet50"]
    model, x = fill(backbone.make_network()), pictures(backbone.clip, side=32)
    wanted = by_hand(model.state_dict(), (3, 4, 6, 3), x, clip=8)
    assert (model(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()


# Without the classifier's 2,049,000, from torchvision's table of weights: 44,549,160 and 25,557,032.
@pytest.mark.parametrize("name, number", [
    ("resnet101", 42_500_160), ("resnet50", 23_508_032), ("tsm-resnet50", 23_508_032),
])  # fmt: skip
def test_numbers_of_parameters_are_the_published_ones(name, number):
    model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == number
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_keys_are_those_of_published_weights():
    with torch.device("meta"):
        keys = list(BACKBONES["resnet101"].make_network().state_dict())
    assert len(keys) == 624 and len(set(keys)) == 624
    assert keys[:6] == ["conv1.weight"] + [
        f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    assert {"layer1.0.downsample.0.weight", "layer3.22.conv2.weight", "layer4.2.bn3.running_var"} <= set(keys)
    shifted = build("tsm-resnet50").state_dict()
    assert "layer1.0.conv1.net.weight" in shifted and "layer1.0.conv1.weight" not in shifted
    assert [key.replace("conv1.net.", "conv1.") for key in shifted] == list(build("resnet50").state_dict())


def test_building_leaves_the_global_generator_alone_and_shows_forgotten_weights():
    before = torch.get_rng_state()
    model = build("resnet50")
    assert torch.equal(torch.get_rng_state(), before)
    assert model(pictures(1, side=32)).isnan().all()
    with pytest.raises(FeatureError, match="load_weights"):
        for_inference(model, "cpu")


@pytest.mark.parametrize("prepared", [False, True])
def test_row_does_not_depend_on_its_neighbours(small, prepared):
    model = for_inference(small, "cpu") if prepared else small
    x = pictures(3, side=32)
    rows = model(x)
    for size in (1, 2):
        pieces = torch.cat([model(piece) for piece in x.split(size)])
        assert (pieces - rows).abs().max() < 1e-4 * rows.abs().max()
    other = torch.cat([x[:1], 100 * pictures(2, side=32, seed=2)])
    assert (model(other)[0] - rows[0]).abs().max() < 1e-4 * rows.abs().max()


def test_input_is_left_as_it_was(small):
    x = pictures(2)
    before = x.clone()
    small(x)
    for_inference(small, "cpu")(x)
    assert torch.equal(x, before)


def test_other_shapes_are_refused(small, small_tsm):
    for x in (torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 32, 32, 3)):
        with pytest.raises(FeatureError, match=r"\(n, 3, height, width\)"):
            small(x)
    with pytest.raises(FeatureError, match="a multiple of 8"):
        small_tsm(torch.zeros(12, 3, 32, 32))


def test_no_pictures_give_no_rows(small, small_tsm):
    for model in (small, for_inference(small, "cpu"), small_tsm):
        assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 2048)


def test_names_are_those_of_the_command_line():
    assert {name: backbone.dim for name, backbone in BACKBONES.items()} == names.BACKBONES
    assert tuple(PRECISIONS) == names.PRECISIONS
    assert all(backbone.name == name for name, backbone in BACKBONES.items())


def test_unknown_backbone_names_the_known_ones():
    with pytest.raises(FeatureError, match="'resnet18'; known: resnet101, resnet50, tsm-resnet50"):
        build("resnet18")


# --- the shift ---


@pytest.mark.parametrize(
    "clip, channels, divisor", [(8, 16, 8), (8, 19, 8), (1, 8, 8), (2, 8, 2), (3, 9, 3), (8, 7, 8)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shift_is_that_of_the_definition(clip, channels, divisor, layout):
    x = torch.randn((3 * clip, channels, 4, 5)).contiguous(memory_format=layout)
    before = x.clone()
    shifted = TemporalShift(torch.nn.Identity(), clip, divisor)(x)
    assert torch.equal(shifted, shifted_by_hand(x, clip, divisor))
    assert torch.equal(x, before)
    assert shifted.is_contiguous(memory_format=layout)


def test_shift_by_hand_worked_rows():
    x = torch.arange(1.0, 17).view(2, 8, 1, 1)
    assert temporal_shift(x, clip=2).flatten(1).tolist() == [
        [9, 0, 3, 4, 5, 6, 7, 8],
        [0, 2, 11, 12, 13, 14, 15, 16],
    ]


def test_clips_do_not_see_one_another(small_tsm):
    x = pictures(16, side=32)
    rows = small_tsm(x)
    alone = small_tsm(x[8:])
    assert (rows[8:] - alone).abs().max() < 1e-4 * rows.abs().max()
    x[0] += 1
    changed = (small_tsm(x) - rows).abs().amax(1) > 1e-4 * rows.abs().max()
    assert changed[:2].all() and not changed[8:].any()


@pytest.mark.parametrize("options", [{"clip": 0}, {"divisor": 1}])
def test_impossible_shifts_are_refused(options):
    with pytest.raises(FeatureError, match="at least"):
        TemporalShift(torch.nn.Identity(), **options)


# --- ready for inference ---


@pytest.mark.parametrize("shifts", [False, True])
def test_folding_changes_nothing_but_the_rounding(small, small_tsm, shifts):
    model = small_tsm if shifts else small
    x = pictures(8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepared = for_inference(model, "cpu")
    rows, wanted = prepared(x), model(x)
    assert (rows - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in prepared.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


@pytest.mark.parametrize("precision, bound", [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_is_near_and_comes_out_in_float32(small, precision, bound):
    x = pictures(1, side=32)
    wanted = small(x)
    rows = for_inference(small, "cpu", precision)(x)
    assert rows.dtype == torch.float32
    assert 0 < (rows - wanted).norm() / wanted.norm() < bound


def test_full_precision_holds_under_a_foreign_autocast(small):
    x = pictures(2)
    prepared = for_inference(small, "cpu", "fp32")
    wanted = prepared(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prepared(x), wanted)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this torch has no such setting for the CPU")
@pytest.mark.parametrize("operation", ["conv", "matmul"])
def test_full_precision_is_set_and_put_back(operation, small):
    """A process may set bfloat16 products; ``fp32`` ignores the setting."""
    settings = getattr(torch.backends.mkldnn, operation)
    prepared = for_inference(small, "cpu", "fp32")
    seen = []
    prepared.model.conv1.register_forward_hook(lambda *_: seen.append(settings.fp32_precision))
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        prepared(pictures(1))
        assert seen == ["ieee"] and settings.fp32_precision == "bf16"
    finally:
        settings.fp32_precision = before


def test_settings_of_gpus_are_put_back():
    """Convolutions and products without TF32; the settings can be read without a GPU."""
    settings = _exact_settings(torch.device("cuda"))

    def read():
        return [getattr(holder, name) for holder, name, _ in settings]

    before = read()
    with _arithmetic(torch.device("cuda"), "fp32"):
        assert read() == [value for _, _, value in settings]
    assert read() == before and len(before) == 2


class Volume(torch.nn.Module):
    """A convolution over frames, whose weight has five dimensions."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv3d(3, 4, (2, 8, 8), stride=(2, 8, 8))

    def forward(self, images):
        return self.layer(images.unflatten(0, (-1, 2)).transpose(1, 2)).flatten(2).mean(2)


def test_convolutions_over_frames_are_taken():
    model, x = Volume().eval(), pictures(4, side=16)
    with torch.no_grad():
        wanted = model(x)
    assert (for_inference(model, "cpu")(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_what_is_not_ready_is_refused(small):
    with pytest.raises(FeatureError, match="known: fp32, bf16, fp16"):
        for_inference(small, "cpu", "fp8")
    with pytest.raises(FeatureError, match="eval"):
        for_inference(ResNet(SMALL), "cpu")
    assert list(PRECISIONS) == ["fp32", "bf16", "fp16"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision, bound", [("fp32", 1e-5), ("bf16", 0.05), ("fp16", 0.01)])
def test_gpu_gives_the_rows_of_the_cpu(small, precision, bound):
    x = pictures(16)
    wanted = small(x)
    rows = for_inference(small, "cuda", precision)(x)
    assert rows.device.type == "cuda" and rows.dtype == torch.float32
    assert (rows.cpu() - wanted).norm() / wanted.norm() < bound


def test_import_is_free_of_vision_packages():
    """torchvision and timm do not work with every torch, so nothing may import them."""
    code = (
        "import sys, meidbench.extraction.encoders.backbones, meidbench.extraction.encoders.preprocessing\n"
        "import meidbench.extraction.encoders.weights\n"
        "print(sorted({'torchvision', 'timm', 'PIL', 'safetensors'} & set(sys.modules)))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert outcome.stdout.strip() == "[]"


def test_rows_are_plain_arrays_in_the_end(small):
    assert isinstance(for_inference(small, "cpu")(pictures(1)).numpy(), np.ndarray)
