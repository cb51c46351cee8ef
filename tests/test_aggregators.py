"""The aggregators against loops in float64, against numbers from the public code, and on padded videos."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from meidbench.baselines.aggregators import AGGREGATORS, Aggregator
from meidbench.baselines.aggregators.base import (
    CosineClassifier,
    FrameBatchNorm,
    frame_mask,
    mean_over_frames,
    normalise,
)
from meidbench.baselines.aggregators.pooling import AttentionPooling, EarlyMean, Nonlinear
from meidbench.baselines.aggregators.vlad import NetVLAD, NeXtVLAD
from meidbench.errors import MeidbenchError

FRAMES, DIM, CLASSES = 6, 16, 5
SMALL = {"clusters": 4, "hidden": 16}
VARIANTS = {
    "nonlinear": ("nonlinear", {}),
    "nonlinear early": ("nonlinear", {"early": True}),
    "early_mean": ("early_mean", {}),
    "attention": ("attention", {}),
    "netvlad": ("netvlad", SMALL),
    "netvlad residual": ("netvlad", SMALL | {"residual": True}),
    "nextvlad": ("nextvlad", SMALL),
    "nextvlad meid": ("nextvlad", SMALL | {"flavor": "meid_compat", "frames": FRAMES}),
}


def make(variant, **more) -> Aggregator:
    name, switches = VARIANTS[variant]
    torch.manual_seed(0)
    return AGGREGATORS[name](DIM, CLASSES, **switches, **more)


def waves(*shape, step=0.37):
    """Values by a rule that can be repeated anywhere: sin(step * i), i counted in C order."""
    return torch.sin(torch.arange(np.prod(shape), dtype=torch.float64) * step).reshape(shape)


def shaken(model):
    """Give every parameter and running statistic its own value, so that the loop must use each."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype.is_floating_point:
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.5 * noise)
    return model.double()


def as_public(model, names):
    """Fill a model like that of the public code: tensor ``at`` of its ``state_dict()`` is 0.5 sin(i (1 + 0.1 at) + at).

    Running means are 0.1 sin, variances 1 + 0.5 sin. ``names`` are ours in the public code's order; an empty one stands
    for its counters of batches.
    """
    state = model.state_dict()
    assert {name for name in names if name} == {name for name in state if not name.endswith("num_batches_tracked")}
    with torch.no_grad():
        for at, name in enumerate(names):
            if name:
                wave = torch.sin(torch.arange(state[name].numel(), dtype=torch.float64) * (1 + 0.1 * at) + at)
                kind = name.rpartition(".")[2]
                wave = {"running_mean": 0.1 * wave, "running_var": 1 + 0.5 * wave}.get(kind, 0.5 * wave)
                state[name].copy_(wave.reshape(state[name].shape))
    return model.double()


def norm_names(name):
    return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")] + [""]


# Logits of VideoLT's ``NonlinearClassifier(16, 5)`` and ``NetVLADModel(16, 5)`` (github.com/17Skye17/VideoLT, commit
# 1732d5c, ``models/models.py``) and of MEID's ``NeXtVLADModel(16, 5)`` (github.com/abcdvzz/MEID), run in float64 on
# ``waves(3, 7, 16)`` and ``waves(3, 200, 16)``, with parameters as ``as_public`` says.
PUBLIC_NONLINEAR = {
    False: [
        [-0.176844, -1.040029, -1.161380, -0.717519, -0.574987],
        [0.037076, -0.806708, -0.937020, -0.529394, -0.445966],
        [-0.073812, -0.914476, -1.028569, -0.593595, -0.475013],
    ],
    True: [
        [-0.162193, -1.031700, -1.160385, -0.723980, -0.588118],
        [0.061762, -0.765860, -0.884977, -0.472480, -0.391100],
        [-0.007930, -0.869520, -1.010003, -0.603676, -0.512517],
    ],
}
PUBLIC_NETVLAD = {
    "eval": [
        [0.453249, -0.028049, -0.471521, 0.638934, -0.406032],
        [0.459550, -0.051437, -0.455531, 0.647083, -0.429789],
        [0.466396, -0.057248, -0.456839, 0.654141, -0.435207],
    ],
    "train": [
        [-0.501123, 0.436424, 0.040180, -0.313220, -0.010273],
        [-0.316222, 0.640075, -0.338812, -0.155669, 0.218564],
        [0.594965, -0.358476, -0.298320, 0.804290, -0.736828],
    ],
}
PUBLIC_NEXTVLAD = {
    "eval": [
        [0.319220, 0.400585, -0.977831, 0.556032, 0.554228],
        [0.319107, 0.400584, -0.977717, 0.555958, 0.554164],
        [0.319216, 0.400590, -0.977830, 0.556026, 0.554231],
    ],
    "train": [
        [-0.128605, 0.595007, -0.658763, 0.150306, 0.503854],
        [-0.247603, 0.686913, -0.600630, 0.019901, 0.532083],
        [-0.210938, 0.660112, -0.619546, 0.059229, 0.524954],
    ],
}


@pytest.mark.parametrize("early", [False, True])
def test_nonlinear_gives_the_public_codes_logits(early):
    names = ["hidden.weight", "hidden.bias", "classifier.weight", "classifier.bias"]
    model = as_public(Nonlinear(16, 5, early=early), names).eval()
    np.testing.assert_allclose(model(waves(3, 7, 16)).detach(), PUBLIC_NONLINEAR[early], atol=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_netvlad_gives_videolts_logits(mode):
    names = ["gate", "assignment.weight", *norm_names("assignment_norm.norm"), "hidden.weight"]
    names += [*norm_names("input_norm.norm"), *norm_names("hidden_norm"), "classifier.weight", "classifier.bias"]
    model = as_public(NetVLAD(16, 5), names).train(mode == "train")
    np.testing.assert_allclose(model(waves(3, 7, 16)).detach(), PUBLIC_NETVLAD[mode], atol=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nextvlad_gives_meids_logits(mode):
    linear = [f"{name}.{part}" for name in ("expand", "assignment", "attention") for part in ("weight", "bias")]
    names = ["centres", *linear, *norm_names("index_norm"), *norm_names("vlad_norm"), "hidden.weight"]
    names += [*norm_names("input_norm.norm"), *norm_names("hidden_norm"), "classifier.weight", "classifier.bias"]
    model = as_public(NeXtVLAD(16, 5, flavor="meid_compat", frames=200), names).train(mode == "train")
    np.testing.assert_allclose(model(waves(3, 200, 16)).detach(), PUBLIC_NEXTVLAD[mode], atol=1e-5)


def arrays(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def softmax(values):
    return np.exp(values - values.max()) / np.exp(values - values.max()).sum()


def normalised(state, name, values, channel=-1):
    """Batch normalisation in evaluation, written out."""
    shape = [1] * values.ndim
    shape[channel] = -1
    mean, variance, weight, bias = (
        state[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (values - mean) / np.sqrt(variance + 1e-5) * weight + bias


def layer(state, name, values):
    return state[f"{name}.weight"] @ values + state.get(f"{name}.bias", 0)


def layer_norm(state, name, values):
    return (values - values.mean()) / np.sqrt(values.var() + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def loop_nonlinear(model, video):
    state = arrays(model)

    def logits(frame):
        return layer(state, "classifier", np.maximum(layer(state, "hidden", frame), 0))

    return logits(video.mean(0)) if model.early else np.mean([logits(frame) for frame in video], axis=0)


def loop_attention(model, video):
    state = arrays(model)
    frames = [layer_norm(state, "frame_norm", frame) for frame in video]
    mean = np.mean(frames, axis=0)
    query, size = layer(state, "query", mean), DIM // model.heads
    gathered = []
    for head in range(model.heads):
        part = slice(head * size, (head + 1) * size)
        scores = [layer(state, "key", frame)[part] @ query[part] / size**0.5 for frame in frames]
        weights = softmax(np.array(scores))
        gathered.append(
            sum(weight * layer(state, "value", frame)[part] for weight, frame in zip(weights, frames, strict=True))
        )
    video_vector = layer_norm(state, "video_norm", mean + layer(state, "output", np.concatenate(gathered)))
    return layer(state, "classifier", np.maximum(layer(state, "hidden", video_vector), 0))


def loop_netvlad(model, video):
    state = arrays(model)
    clusters = len(state["assignment.weight"])
    sums = np.zeros((clusters, DIM))
    for frame in video:
        frame = normalised(state, "input_norm.norm", frame)
        shares = softmax(normalised(state, "assignment_norm.norm", layer(state, "assignment", frame)))
        for k in range(clusters):
            sums[k] += shares[k] * (frame - state["centres"][k] if model.centres is not None else frame)
    if not model.centres is not None:
        sums *= sigmoid(state["gate"])
    descriptor = np.array([row / np.linalg.norm(row) for row in sums]).T.ravel()
    descriptor /= np.linalg.norm(descriptor)
    hidden = normalised(state, "hidden_norm", layer(state, "hidden", descriptor))
    return layer(state, "classifier", np.clip(hidden, 0, 6))


def loop_nextvlad(model, video):
    state = arrays(model)
    compat, groups, clusters = model.flavor == "meid_compat", model.groups, model.clusters
    size = len(state["centres"])
    sums = np.zeros((size, clusters))
    for t, frame in enumerate(video):
        if compat:
            frame = normalised(state, "input_norm.norm", frame)
        wide = layer(state, "expand", frame)
        scores = layer(state, "assignment", wide)
        if compat:
            padded = np.zeros((model.frames, len(scores)))
            padded[t] = scores
            scores = normalised(state, "index_norm", padded, channel=0)[t]
        else:
            scores = normalised(state, "assignment_norm.norm", scores)
        for g in range(groups):
            attention = sigmoid(layer(state, "attention", wide)[g])
            shares = softmax(scores[g * clusters : (g + 1) * clusters])
            for i, k in itertools.product(range(size), range(clusters)):
                sums[i, k] += attention * shares[k] * (wide[g * size + i] - state["centres"][i, k])
    for k in range(clusters):
        sums[:, k] /= np.abs(sums[:, k]).sum() if compat else np.sqrt((sums[:, k] ** 2).sum())
    descriptor = normalised(state, "vlad_norm", sums.ravel())
    hidden = normalised(state, "hidden_norm", layer(state, "hidden", descriptor))
    if compat:
        hidden = np.clip(hidden, 0, 6)
    else:
        squeezed = np.maximum(normalised(state, "gate.1", layer(state, "gate.0", hidden)), 0)
        hidden = hidden * sigmoid(layer(state, "gate.3", squeezed))
    return layer(state, "classifier", hidden)


LOOPS = {
    Nonlinear: loop_nonlinear,
    EarlyMean: loop_nonlinear,
    AttentionPooling: loop_attention,
    NetVLAD: loop_netvlad,
    NeXtVLAD: loop_nextvlad,
}


def padded_videos(seed=0):
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((3, FRAMES, DIM))), torch.tensor([FRAMES, 1, 4])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_each_aggregator_is_its_formula(variant, with_lengths):
    model = shaken(make(variant)).eval()
    features, lengths = padded_videos()
    counts = lengths if with_lengths else torch.full((3,), FRAMES)
    expected = [LOOPS[type(model)](model, video[:count].numpy()) for video, count in zip(features, counts, strict=True)]
    np.testing.assert_allclose(model(features, lengths if with_lengths else None).detach(), expected, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_padding_makes_no_difference(variant, training):
    """Not to logits, nor to running statistics; NeXtVLAD's normalisation per index of the frame is the exception."""
    features, lengths = padded_videos()
    padding = torch.arange(FRAMES)[None, :, None] >= lengths[:, None, None]
    answers = []
    for filler in (0.0, 7.0, float("nan")):
        model = shaken(make(variant)).train(training)
        torch.manual_seed(0)
        logits = model(features.masked_fill(padding, filler), lengths)
        logits.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        answers.append((logits.detach(), [buffer.clone() for buffer in model.buffers()]))
    for logits, buffers in answers[1:]:
        assert torch.equal(logits, answers[0][0])
        assert all(torch.equal(one, other) for one, other in zip(buffers, answers[0][1], strict=True))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "nextvlad meid"])
def test_a_batch_of_full_length_is_one_without_lengths_and_one_of_fewer_frames_is_that_cut(variant):
    model = shaken(make(variant)).eval()
    features, _ = padded_videos()
    full = model(features)
    np.testing.assert_allclose(model(features, torch.full((3,), FRAMES)).detach(), full.detach(), atol=1e-12)
    cut = model(features, torch.full((3,), 2)).detach()
    np.testing.assert_allclose(cut, model(features[:, :2]).detach(), atol=1e-12)
    assert not np.allclose(cut, full.detach(), atol=1e-3)


def test_frame_norm_is_batch_norm_over_the_real_frames():
    features, lengths = padded_videos()
    real = torch.cat([video[:count] for video, count in zip(features, lengths, strict=True)])
    norm, reference = FrameBatchNorm(DIM).double(), nn.BatchNorm1d(DIM).double()
    mask = frame_mask(lengths, features)
    torch.testing.assert_close(norm(features, mask)[mask], reference(real))
    torch.testing.assert_close(norm.norm.running_var, reference.running_var)
    assert not norm(features, mask)[~mask].any()


def parameters(name, **switches):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AGGREGATORS[name](2048, 1004, **switches).parameters())


@pytest.mark.parametrize(
    ("name", "switches", "expected"),
    [
        ("nonlinear", {}, 6_253_548),
        ("nonlinear", {"classifier": "cosine"}, 6_253_548 - 1004),
        ("early_mean", {}, 6_253_548),
        ("attention", {}, 23_047_148),
        ("netvlad", {}, 135_515_244),
        ("netvlad", {"residual": True}, 135_515_244),
        ("nextvlad", {}, 45_469_940),
        ("nextvlad", {"flavor": "meid_compat", "frames": 200}, 45_145_990),
    ],
)
def test_docstrings_state_the_number_of_parameters(name, switches, expected):
    assert parameters(name, **switches) == expected
    if "classifier" not in switches:
        documented = (AGGREGATORS[name].__mro__[1] if name == "early_mean" else AGGREGATORS[name]).__doc__
        assert f"{expected:,}" in documented


@pytest.mark.parametrize("d, c, k, h", [(16, 5, 4, 16), (24, 3, 7, 8)])
def test_parameters_follow_the_documented_formulas(d, c, k, h):
    def count(name, **switches):
        return sum(parameter.numel() for parameter in AGGREGATORS[name](d, c, **switches).parameters())

    wide, g, frames, reduction = 2 * d, 8, 9, 4
    m = wide // g
    assert count("nonlinear") == d**2 + d + d * c + c
    assert count("attention") == 5 * (d**2 + d) + 4 * d + d * c + c
    assert count("netvlad", clusters=k, hidden=h) == 2 * d + 2 * k * d + 2 * k + k * d * h + 2 * h + h * c + c
    common = wide * (d + 1) + g * (wide + 1) + wide * g * k + m * k + m * k * h + 2 * h + h * c + c
    original = common + 2 * g * k + 2 * m * k + 2 * h * h // reduction + 2 * h // reduction
    assert count("nextvlad", clusters=k, hidden=h, reduction=reduction) == original
    compat = common + 2 * d + g * k + 2 * frames + 2
    assert count("nextvlad", clusters=k, hidden=h, flavor="meid_compat", frames=frames) == compat


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(variant, dtype):
    """Features as large as the largest real ones; the squares of some overflow half precision."""
    model = make(variant)
    features = torch.rand(4, FRAMES, DIM, generator=torch.Generator().manual_seed(2)) * 300
    for lengths in (None, torch.tensor([6, 1, 3, 5])):
        model.eval()
        expected = model(features, lengths).detach()
        with torch.autocast("cpu", dtype=dtype):
            logits = model(features.to(dtype), lengths)
        error = (logits.float() - expected).abs().max() / expected.abs().max()
        assert error < 0.05
    model.train()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(features.to(dtype)).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_norms_are_taken_in_float32():
    vectors = torch.full((1, 4), 30000.0, dtype=torch.float16)
    assert normalise(vectors, dim=1).tolist() == [[0.5] * 4]
    assert normalise(vectors, dim=1, order=1.0).tolist() == [[0.25] * 4]
    layer = CosineClassifier(4, 1)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(vectors).dtype == torch.float32
    torch.testing.assert_close(layer(vectors), torch.ones(1, 1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_another_precision_are_converted(variant):
    model = make(variant).eval()
    features = torch.rand(2, FRAMES, DIM).half()
    assert torch.equal(model(features), model(features.float()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cosine_classifier_gives_cosines(variant):
    """Torch's cosines of the input of the last layer; for ``nonlinear``, the mean of its frames' cosines."""
    model = make(variant, classifier="cosine").eval()
    seen = []
    model.classifier.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    logits = model(torch.rand(2, FRAMES, DIM))
    cosines = torch.cosine_similarity(seen[0][..., None, :], model.classifier.weight, dim=-1)
    expected = cosines.mean(dim=1) if variant == "nonlinear" else cosines
    torch.testing.assert_close(logits, expected)
    assert "classifier.bias" not in model.state_dict()


def test_cosine_weights_begin_in_all_directions():
    torch.manual_seed(0)
    weight = CosineClassifier(3, 20_000).weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(20_000))
    np.testing.assert_allclose(weight.detach().T @ weight.detach() / 20_000, np.eye(3) / 3, atol=0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prior_is_what_the_model_says_at_first(variant):
    shares = np.linspace(0.001, 0.5, CLASSES)
    for prior, expected in ((0.01, np.full(CLASSES, 0.01)), (shares, shares)):
        model = make(variant, bias_prior=prior)
        with torch.no_grad():
            model.classifier.weight.zero_()
        np.testing.assert_allclose(
            torch.sigmoid(model.eval()(torch.rand(1, FRAMES, DIM)))[0].detach(), expected, rtol=1e-5
        )


def test_dropout_is_where_it_belongs_and_can_be_off():
    features = torch.rand(4, FRAMES, DIM)
    off = {
        "nonlinear": {"dropout": 0},
        "early_mean": {"dropout": 0},
        "attention": {"dropout": 0, "hidden_dropout": 0},
        "nextvlad": {"dropout": 0},
        "netvlad": {},
        "nextvlad meid": {},
    }
    for variant, switches in off.items():
        model = make(variant, **switches)
        assert torch.equal(model(features), model(features)), variant
        if switches:
            model = make(variant)
            assert not torch.equal(model(features), model(features)), variant


@pytest.mark.parametrize("variant", ["attention", "netvlad", "netvlad residual", "nextvlad"])
def test_the_order_of_frames_makes_no_difference(variant):
    model = shaken(make(variant)).eval()
    features, _ = padded_videos()
    torch.testing.assert_close(model(features.flip(1)), model(features))


def test_original_and_compatible_nextvlad_differ_and_compat_depends_on_position():
    model = shaken(make("nextvlad meid")).eval()
    features, _ = padded_videos()
    assert not torch.allclose(model(features.flip(1)), model(features))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_can_be_trained(variant):
    """The model learns two kinds of videos, which differ in the sign of a feature."""
    model = make(variant)
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(32) % 2
    features = torch.randn(32, FRAMES, DIM, generator=generator)
    features[:, :, 0] += 4.0 * kinds[:, None] - 2.0
    targets = torch.stack([kinds, 1 - kinds, kinds, kinds, 1 - kinds], dim=1).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.binary_cross_entropy_with_logits(model(features), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = (model.eval()(features) > 0) == targets.bool()
    assert right.float().mean() > 0.9


def test_it_is_made_from_the_generator_of_torch_alone():
    for variant in VARIANTS:
        one, other = make(variant), make(variant)
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize(
    ("name", "switches", "message"),
    [
        ("nonlinear", {"dim": 0}, "dim must be a whole number"),
        ("nonlinear", {"num_classes": 2.5}, "num_classes must be a whole number"),
        ("nonlinear", {"dropout": 1.5}, "dropout must be"),
        ("nonlinear", {"classifier": "softmax"}, "unknown classifier 'softmax'; known: linear, cosine"),
        ("nonlinear", {"classifier": "cosine", "bias_prior": 0.1}, "a cosine classifier has no bias"),
        ("nonlinear", {"bias_prior": 1.0}, "between 0 and 1"),
        ("nonlinear", {"bias_prior": [0.1, 0.2]}, "one for each of 5 classes"),
        ("attention", {"heads": 3}, "heads must divide dim 16"),
        ("attention", {"heads": 0}, "heads must be"),
        ("netvlad", {"clusters": 0}, "clusters must be"),
        ("netvlad", {"hidden": 0}, "hidden must be"),
        ("nextvlad", {"flavor": "tensorflow"}, "known: original, meid_compat"),
        ("nextvlad", {"flavor": "meid_compat"}, "set the number of frames"),
        ("nextvlad", {"frames": 60}, "'original' takes any number"),
        ("nextvlad", {"groups": 5}, "groups must divide expansion \\* dim = 32"),
        ("nextvlad", {"hidden": 12, "reduction": 5}, "reduction must divide hidden 12"),
    ],
)
def test_what_makes_no_sense_is_refused(name, switches, message):
    with pytest.raises(MeidbenchError, match=message):
        AGGREGATORS[name](**{"dim": DIM, "num_classes": CLASSES} | switches)


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        (torch.zeros(2, DIM), None, r"expects features \(B, T, 16\)"),
        (torch.zeros(2, 3, DIM + 1), None, r"got \(2, 3, 17\)"),
        (torch.zeros(2, 0, DIM), None, "T at least 1"),
        (torch.zeros(0, 3, DIM), None, "B and T at least 1"),
        (torch.zeros(2, 3, DIM, dtype=torch.int64), None, "floating point"),
        (torch.zeros(2, 3, DIM), torch.tensor([1]), r"\(2,\) whole numbers"),
        (torch.zeros(2, 3, DIM), torch.tensor([1.0, 2.0]), "whole numbers"),
        (torch.zeros(2, 3, DIM), torch.tensor([0, 4]), "between 1 and the number of frames, 3, got 0, 4"),
    ],
)
def test_input_that_does_not_fit_is_refused(features, lengths, message):
    with pytest.raises(MeidbenchError, match=message):
        make("nonlinear")(features, lengths)


def test_meids_port_is_for_one_number_of_frames():
    with pytest.raises(MeidbenchError, match="for 6 frames per video, got 5"):
        make("nextvlad meid")(torch.zeros(2, 5, DIM))


def test_a_mean_of_no_mask_is_the_mean():
    frames = torch.rand(2, 3, 4)
    torch.testing.assert_close(mean_over_frames(frames, torch.ones(2, 3, dtype=torch.bool)), frames.mean(1))
