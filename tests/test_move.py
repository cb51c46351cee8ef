"""MOVE against loops in float64 and rows worked by hand; its draws, its mixing and its gradients."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import meidbench.baselines.models.move as move_model
from meidbench.baselines.aggregators import AGGREGATORS
from meidbench.baselines.augmentation import draw_beta
from meidbench.baselines.configuration import known_options
from meidbench.baselines.models import ModelInputs
from meidbench.baselines.models.move import (
    Codebook,
    Move,
    PrototypeAttention,
    calibrate_labels,
    commonness,
    draw_frames,
    extrapolate,
    least_frame_counts,
)
from meidbench.baselines.recipes import read_recipes
from meidbench.errors import MeidbenchError
from meidbench.splits.groups import Groups

DIM, CLASSES, FRAMES = 8, 4, 5
# Their tau has no rounding: 0, 1/8, 1/4, 1.
COUNTS = (5, 9, 13, 37)
TAU = np.array([0, 0.125, 0.25, 1.0])
SMALL = {"heads": 2, "clusters": 3, "codebook_width": 6, "hidden": 7}
SURE = {"attention_dropout": 0.0, "dropout": 0.0, "hidden_dropout": 0.0}
LABELS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)


def differing_options(one, other):
    """The model options of one recipe's second form that differ from the first."""
    recipes = read_recipes(["move", "move_aggregator"])
    first, second = recipes[one].tables["model"], recipes[other].tables["model"]
    return {key: second.get(key) for key in {**first, **second} if first.get(key) != second.get(key)}


PUBLIC_CODE = differing_options("move", "move-release")
VARIANTS = {
    "paper": {},
    "public code": PUBLIC_CODE,
    "attention": {"aggregation": "attention"},
    "codebook": {"aggregation": "codebook"},
    "codebook, zeroed": {"aggregation": "codebook", "hidden_frames": "zeroed"},
    "drawn keys, other width": {"keys": "drawn", "head_width": 3},
    "no extrapolation": {"extrapolation": False},
    "no interpolation": {"interpolation": "none"},
    "plain interpolation by video": {"interpolation": "plain", "per_video": True},
    "aggregator alone": {"extrapolation": False, "interpolation": "none", "residual": False},
}


def spec(counts=COUNTS, dim=DIM):
    return ModelInputs(
        dim=dim,
        num_classes=len(counts),
        train_counts=np.array(counts),
        groups=Groups.from_counts(counts, head_above=20, tail_up_to=6),
        frames=None,
        has_motion=False,
        aggregator=lambda width: AGGREGATORS["nonlinear"](width, len(counts)),
    )


def make(variant="paper", counts=COUNTS, **more):
    torch.manual_seed(0)
    return Move(spec(counts), **{**SMALL, **VARIANTS[variant], **more})


def shaken(model):
    """Give every parameter and running statistic its own value, so that the loop must use each."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype.is_floating_point:
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.5 * noise)
    return model.double()


def clips(videos=4, frames=FRAMES):
    return torch.randn(videos, frames, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- loops in float64 ---------------------------------------------------------------------------------------------


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def softmax(row):
    shares = np.exp(row - row.max())
    return shares / shares.sum()


def batch_normal(rows, norm, training):
    """Normalise a list of rows (R, W)."""
    rows = np.array(rows)
    mean, var = (rows.mean(0), rows.var(0)) if training else (array(norm.running_mean), array(norm.running_var))
    normal = (rows - mean) / np.sqrt(var + norm.eps)
    return normal if norm.weight is None else normal * array(norm.weight) + array(norm.bias)


def attended(attention, frames, subset, visible):
    """One prototype of one video: frames (T, D), the frames of its mean, and those that attention uses (None: all)."""
    mean = frames[subset].mean(axis=0)
    # Without any frame, attention weighs all frames equally.
    sharpness = 0.0 if visible == [] else 1.0
    visible = visible or list(range(len(frames)))
    width, gathered = attention.head_width, []
    for head in range(attention.heads):
        at = slice(head * width, (head + 1) * width)
        query, key, value = (array(layer.weight)[at] for layer in (attention.query, attention.key, attention.value))
        scores = [(query @ mean) @ (key @ frames[t]) / width**0.5 for t in visible]
        shares = softmax(sharpness * np.array(scores))
        gathered.append(sum(share * (value @ frames[t]) for share, t in zip(shares, visible, strict=True)))
    raw = mean + array(attention.output.weight) @ np.concatenate(gathered)
    normal = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-6)
    return normal * array(attention.norm.weight) + array(attention.norm.bias)


def coded(codebook, videos, subsets, training):
    """All subsets of all videos: videos (B, T, D), subsets[b][q] frames; one row for each, in that order."""
    size, length, dim = videos.shape
    flat = batch_normal(videos.reshape(-1, dim), codebook.input_norm.norm, training).reshape(size, length, dim)
    weight, norm = array(codebook.assignment.weight), codebook.assignment_norm.norm
    places = [(b, q) for b in range(size) for q in range(len(subsets[b]))]
    if codebook.hidden_frames == "zeroed" and training:
        shown = {place: flat[place[0]].copy() for place in places}
        for (b, q), frames in shown.items():
            frames[[t for t in range(length) if t not in subsets[b][q]]] = 0
    else:
        shown = {place: flat[place[0]] for place in places}
    # In the statistics, frames count once where they are only masked, and once per subset where they are zeroed.
    if codebook.hidden_frames == "zeroed" and training:
        rows = batch_normal([weight @ x for place in places for x in shown[place]], norm, training)
        scores = {place: rows[i * length : (i + 1) * length] for i, place in enumerate(places)}
    else:
        rows = batch_normal([weight @ x for frames in flat for x in frames], norm, training)
        scores = {(b, q): rows[b * length : (b + 1) * length] for b, q in places}
    hidden = []
    for b, q in places:
        sums = np.zeros((len(weight), dim))
        for t in subsets[b][q]:
            for cluster, share in enumerate(softmax(scores[b, q][t])):
                centre = array(codebook.centres)[cluster] if codebook.centres is not None else 0.0
                sums[cluster] += share * (shown[b, q][t] - centre)
        if not codebook.centres is not None:
            sums /= 1 + np.exp(-array(codebook.gate))
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
        descriptor = sums.T.ravel()
        hidden.append(array(codebook.output.weight) @ (descriptor / np.linalg.norm(descriptor)))
    return np.clip(batch_normal(hidden, codebook.output_norm, training), 0, 6)


def embedded(model, videos, asked, visible, subsets, training):
    """Embeddings (B, Q, A) from lists of frames."""
    views = len((asked or subsets)[0])
    parts = []
    if model.attention is not None:
        parts.append(np.array([
            [attended(model.attention, video, asked[b][q], visible[b]) for q in range(views)]
            for b, video in enumerate(videos)
        ]))  # fmt: skip
    if model.codebook is not None:
        parts.append(coded(model.codebook, videos, subsets, training).reshape(len(videos), views, -1))
    return np.concatenate(parts, axis=2)


def classified(model, rows):
    hidden = np.maximum(rows @ array(model.hidden.weight).T + array(model.hidden.bias), 0)
    return hidden @ array(model.classifier.weight).T + array(model.classifier.bias)


def lists(masks):
    """Masks (B, Q, T) as lists of frames."""
    return [[np.flatnonzero(view).tolist() for view in video] for video in array(masks).astype(bool)]


def recorded(monkeypatch, owner, name):
    """Keep the results of a function in a list that grows."""
    function, kept = getattr(owner, name), []

    def keeping(*arguments):
        kept.append(function(*arguments))
        return kept[-1]

    monkeypatch.setattr(owner, name, keeping)
    return kept


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_training_is_what_a_loop_gives(variant, monkeypatch):
    model, features = shaken(make(variant, **SURE)).train(), clips()
    kept = {
        name: recorded(monkeypatch, owner, name)
        for name, owner in (("draw_frames", move_model), ("draw_beta", move_model), ("randperm", torch))
    }
    outputs = model(features, None, LABELS)

    everything = [[list(range(FRAMES))]] * 4
    videos, draws = array(features), [lists(drawn) for drawn in kept["draw_frames"]]
    if model.extrapolation:
        asked = draws.pop(0) if model.attention is not None else None
        visible = [None] * 4
        if model.attention is not None and model.keys != "all":
            visible = [video[0] for video in draws.pop(0)]
            if model.keys == "others":
                visible = [[t for t in range(FRAMES) if t not in frames] for frames in visible]
        subsets = draws.pop(0) if model.codebook is not None else None
        views = embedded(model, videos, asked, visible, subsets, training=True)
        weights = 1 + array(kept["draw_beta"].pop(0))
        assert ((weights >= 1) & (weights <= 2)).all()
        rows = np.array([w * u + (1 - w) * v for (u, v), w in zip(views, np.resize(weights, 4), strict=True)])
    else:
        rows = embedded(model, videos, everything, [None] * 4, everything, training=True)[:, 0]
    wanted = None
    if model.interpolation != "none":
        partners, own = kept["randperm"].pop(), np.resize(array(kept["draw_beta"].pop()), 4)[:, None]
        labels = array(LABELS)
        rows, wanted = own * rows + (1 - own) * rows[partners], own * labels + (1 - own) * labels[partners]
        if model.interpolation == "calibrated":
            wanted = np.minimum(wanted * (1 - TAU + 0.5), 1)
    assert not draws and not kept["draw_beta"] and not kept["randperm"]
    np.testing.assert_allclose(array(outputs.logits), classified(model, rows), rtol=1e-6, atol=1e-7)
    assert (outputs.targets is None) == (wanted is None) == (not model.mixes_targets) and outputs.penalty is None
    if wanted is not None:
        np.testing.assert_allclose(array(outputs.targets), wanted, rtol=1e-6)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("frames", [1, 7])
def test_scores_are_what_a_loop_gives_of_all_frames(variant, frames):
    model, features = shaken(make(variant)).eval(), clips(frames=frames)
    everything = [[list(range(frames))]] * 4
    rows = embedded(model, array(features), everything, [None] * 4, everything, training=False)[:, 0]
    with torch.no_grad():
        scores = model(features)
    np.testing.assert_allclose(array(scores.logits), classified(model, rows), rtol=1e-10, atol=1e-12)
    assert scores.targets is None and scores.penalty is None


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_how_common_classes_are_worked_by_hand():
    assert commonness(COUNTS).tolist() == TAU.tolist()
    assert commonness([7, 7, 7]).tolist() == [0.0, 0.0, 0.0]
    assert commonness([0, 4]).tolist() == [0.0, 1.0]
    for wrong in ([], [[1, 2]]):
        with pytest.raises(MeidbenchError, match="one number per class"):
            commonness(wrong)


def test_least_numbers_worked_by_hand():
    # Of 60 frames the bounds of the classes are max(60 tau, 3) = 3, 7.5, 15 and 60.
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    tau = torch.tensor(TAU, dtype=torch.float32)
    assert least_frame_counts(labels, tau, 60, 3).tolist() == [3, 7, 60, 5, 31, 60]
    assert least_frame_counts(labels, tau, 60, 3, "rarest").tolist() == [3, 7, 60, 3, 3, 60]
    assert least_frame_counts(labels, tau, 60, 3, "commonest").tolist() == [3, 7, 60, 7, 60, 60]
    assert least_frame_counts(labels * 0.1, tau, 60, 3).tolist() == [3, 7, 60, 5, 31, 60]
    assert least_frame_counts(labels, tau, 2, 3).tolist() == [2] * 6
    assert least_frame_counts(labels, tau, 1, 3).tolist() == [1] * 6


def test_subsets_are_of_every_size_and_every_frame_alike():
    torch.manual_seed(0)
    drawn = draw_frames(torch.full((4000,), 3), frames=6, draws=2)
    sizes = drawn.sum(dim=2)
    assert torch.bincount(sizes.flatten(), minlength=7)[:3].sum() == 0
    # 8000 draws of four sizes: 2000 each, deviation 39; each frame in 4.5 of 6, deviation at most 39.
    assert (torch.bincount(sizes.flatten())[3:] - 2000).abs().max() < 5 * 39
    assert (drawn.sum(dim=(0, 1)) - 6000).abs().max() < 5 * 39
    # The second draw is another one.
    assert (drawn[:, 0] == drawn[:, 1]).all(dim=1).double().mean() < 0.2
    assert draw_frames(torch.tensor([6, 1]), frames=6, draws=3)[0].all()
    assert draw_frames(torch.tensor([1]), frames=1, draws=2).all()


def test_extrapolation_and_interpolation_weights():
    torch.manual_seed(0)
    weights = 1 + draw_beta(2.0, 20_000).double()
    assert weights.min() >= 1 and weights.max() <= 2
    # Beta(2, 2): mean 1/2, variance 1/20; Beta(1, 1): 1/2 and 1/12.
    assert abs(weights.mean() - 1.5) < 0.01 and abs(weights.var() - 1 / 20) < 0.002
    assert abs(draw_beta(1.0, 20_000).double().var() - 1 / 12) < 0.002
    torch.manual_seed(0)
    again = 1 + draw_beta(2.0, 20_000).double()
    assert torch.equal(again, weights) and not torch.equal(1 + draw_beta(2.0, 20_000).double(), weights)


def test_extrapolated_and_calibrated_worked_by_hand():
    first, second = torch.tensor([[1.0, 4.0], [1.0, 4.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    assert extrapolate(first, second, torch.tensor([1.0, 2.0])).tolist() == [[1.0, 4.0], [-1.0, 4.0]]
    assert extrapolate(first, second, torch.tensor([1.5])).tolist() == [[0.0, 4.0], [0.0, 4.0]]
    # 0.8 x 1.5 = 1.2, cut to 1; 0.8 x 1.375 = 1.1, cut to 1; 0.5 x 1.25; 0.5 x 0.5.
    labels = torch.tensor([[0.8, 0.8, 0.5, 0.5], [0.0, 0.2, 1.0, 1.0]], dtype=torch.float64)
    got = calibrate_labels(labels, torch.tensor(TAU), 0.5)
    assert torch.allclose(got, torch.tensor([[1.0, 1.0, 0.625, 0.25], [0.0, 0.275, 1.0, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_seed_decides_all_and_shapes_decide_how_much_is_drawn(variant):
    features = clips().float()
    seen = {}
    for name, seed, labels in [("one", 3, LABELS), ("again", 3, LABELS), ("other labels", 3, 1 - LABELS),
                               ("other seed", 4, LABELS)]:  # fmt: skip
        model = make(variant).train()
        torch.manual_seed(seed)
        logits = model(features, None, labels.float()).logits
        seen[name] = (logits, torch.get_rng_state())
    assert torch.equal(seen["one"][0], seen["again"][0]) and not torch.equal(seen["one"][0], seen["other seed"][0])
    assert torch.equal(seen["one"][1], seen["again"][1]) and torch.equal(seen["one"][1], seen["other labels"][1])


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_scoring_draws_nothing_and_looks_at_no_label(variant):
    model, features = make(variant).eval(), clips().float()
    before = torch.get_rng_state()
    scores = [model(features, None, labels).logits for labels in (None, LABELS.float(), 1 - LABELS.float())]
    scores.append(torch.cat([model(video[None]).logits for video in features]))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.allclose(scores[0], other, atol=1e-6) for other in scores[1:])
    assert torch.equal(scores[0], scores[1])


# --- parameters and gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_gradient_reaches_every_parameter_and_none_is_left_over(variant):
    model = shaken(make(variant, **SURE)).train()
    outputs = model(clips(), None, LABELS)
    targets = LABELS if outputs.targets is None else outputs.targets
    nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets).backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []
    wants = model_options(variant)
    names = {name for name, _ in model.named_parameters()}
    assert any(name.startswith("attention.") for name in names) == (wants["aggregation"] != "codebook")
    assert any(name.startswith("codebook.") for name in names) == (wants["aggregation"] != "attention")
    if wants["aggregation"] != "attention":
        assert ("codebook.centres" in names, "codebook.gate" in names) == (wants["residual"], not wants["residual"])
        assert ("codebook.input_norm.norm.weight" in names) == wants["input_affine"]


def model_options(variant):
    defaults = {name: entry.default for name, entry in inspect.signature(Move.__init__).parameters.items()}
    return {**defaults, **SMALL, **VARIANTS[variant]}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_are_those_that_are_stated():
    counts = tuple(range(1, 1005))
    with torch.device("meta"):
        assert count(PrototypeAttention(2048)) == 4 * 2048 * 2048 + 2 * 2048 == 16_781_312
        for residual in (True, False):
            assert count(Codebook(2048, residual=residual)) == 134_486_144
        assert count(Codebook(2048, input_affine=False)) == 134_486_144 - 2 * 2048
        whole = count(Move(spec(counts, 2048)))
        assert whole == 16_781_312 + 134_486_144 + 3073 * 2048 + 2049 * 1004 == 159_618_156
        assert count(Move(spec(counts, 2048), **PUBLIC_CODE)) == 159_614_060
        assert count(Move(spec(counts, 2048), aggregation="attention")) == 16_781_312 + 2049 * 2048 + 2049 * 1004
        assert count(Move(spec(counts, 2048), aggregation="codebook")) == 134_486_144 + 1025 * 2048 + 2049 * 1004
    assert f"{whole:,}" in Move.__doc__ and "134,486,144" in Codebook.__doc__
    assert "16,781,312" in PrototypeAttention.__doc__


def test_what_follows_from_the_split_is_in_no_checkpoint():
    model = make()
    assert "tau" not in model.state_dict() and model.tau.tolist() == TAU.tolist()
    make(counts=(1, 1, 1, 5)).load_state_dict(model.state_dict())


# --- odd batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_short_videos_and_videos_without_label_train(variant):
    for frames, labels in itertools.product((1, 2), (LABELS, torch.zeros(4, 4), torch.ones(4, 4))):
        model = make(variant).train()
        outputs = model(clips(frames=frames).float(), None, labels.float())
        assert outputs.logits.shape == (4, CLASSES) and outputs.logits.isfinite().all()
        outputs.logits.square().sum().backward()
        assert all(value.grad.isfinite().all() for value in model.parameters())
        if outputs.targets is not None:
            assert ((outputs.targets >= 0) & (outputs.targets <= 1)).all()


@pytest.mark.parametrize("variant", ["paper", "public code", "attention", "no interpolation"])
def test_a_batch_of_one_trains(variant):
    model = make(variant).train()
    outputs = model(clips(1).float(), None, LABELS[:1].float())
    assert outputs.logits.isfinite().all()
    if outputs.targets is not None:
        # MixedBatch with itself: only calibrated, 1 x 1.5 cut to 1.
        assert outputs.targets.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_a_video_of_the_commonest_class_alone_is_taken_whole():
    model = shaken(make(**SURE, interpolation="none")).train()
    labels = torch.tensor([[0.0, 0, 0, 1]] * 4, dtype=torch.float64)
    plain = shaken(make("no extrapolation", **SURE, interpolation="none")).train()
    # Two equal views, extrapolated to themselves; twice the same rows have the same batch statistics.
    assert torch.allclose(model(clips(), None, labels).logits, plain(clips(), None, labels).logits)


def test_classes_of_equal_counts_keep_whole_labels():
    outputs = make(counts=(7, 7, 7, 7)).train()(clips().float(), None, LABELS.float())
    assert outputs.targets.isfinite().all() and outputs.logits.isfinite().all()
    once = make(counts=(7, 7, 7, 7)).train()(clips(1).float(), None, LABELS[1:2].float())
    assert once.targets.tolist() == LABELS[1:2].tolist()


def test_hard_labels_may_be_whole_numbers_and_are_left_alone():
    labels, features = LABELS.long(), clips().float()
    model = make().train()
    assert model(features, None, labels).targets.dtype == torch.float32
    assert torch.equal(labels, LABELS.long()) and torch.equal(features, clips().float())


@pytest.mark.parametrize("variant", ["paper", "public code"])
def test_half_precision_stays_finite_and_near(variant):
    whole, half = make(variant, **SURE).train(), make(variant, **SURE).train()
    torch.manual_seed(5)
    wanted = whole(clips().float(), None, LABELS.float())
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = half(clips().float(), None, LABELS.float())
    assert torch.allclose(got.logits.float(), wanted.logits, atol=0.1)
    assert torch.equal(got.targets, wanted.targets)
    got.logits.float().square().sum().backward()
    assert all(value.grad.isfinite().all() for value in half.parameters())
    eighth = make(variant).eval()
    assert torch.allclose(eighth(clips().half()).logits, eighth(clips().half().float()).logits)


@pytest.mark.parametrize(("options", "said"), [
    ({"aggregation": "mean"}, "unknown aggregation 'mean'"),
    ({"keys": "none"}, "unknown keys 'none'"),
    ({"interpolation": "mixup"}, "unknown interpolation 'mixup'"),
    ({"label_rule": "first"}, "unknown label_rule 'first'"),
    ({"hidden_frames": "dropped"}, "unknown hidden_frames 'dropped'"),
    ({"heads": 3}, "heads must divide the features' width 8, got 3"),
    ({"head_width": 0}, "head_width must be a whole number of at least 1"),
    ({"clusters": 0}, "clusters must be"),
    ({"codebook_width": 0}, "codebook_width must be"),
    ({"hidden": 0}, "hidden must be"),
    ({"least_frames": 0}, "least_frames must be"),
    ({"dropout": 1.5}, "dropout must be"),
    ({"extrapolation_alpha": 0.0}, "extrapolation_alpha must be"),
    ({"interpolation_alpha": -1.0}, "interpolation_alpha must be"),
    ({"calibration_bias": -0.1}, "calibration_bias must be"),
])  # fmt: skip
def test_wrong_options_are_refused(options, said):
    with pytest.raises(MeidbenchError, match=said):
        Move(spec(), **{**SMALL, **options})


def test_wrong_input_is_refused():
    model = make().train()
    for features in (torch.zeros(4, 5), torch.zeros(4, 5, 7), torch.zeros(4, 0, DIM), torch.zeros(0, 5, DIM)):
        with pytest.raises(MeidbenchError, match=r"Move expects features \(B, T, 8\)"):
            model(features, None, LABELS)
    with pytest.raises(MeidbenchError, match="must be floating point"):
        model(torch.zeros(4, 5, DIM, dtype=torch.long), None, LABELS)
    for labels in (None, LABELS[:2], LABELS[:, :2]):
        with pytest.raises(MeidbenchError, match=r"MOVE needs labels \(4, 4\) in training"):
            model(clips().float(), None, labels)


# --- recipes ------------------------------------------------------------------------------------------------------


def test_the_recipes_say_every_switch_and_where_it_is_from():
    recipes = read_recipes(["move", "move_aggregator"])
    assert list(recipes) == ["move", "move-release", "move_aggregator", "move_aggregator-release"]
    defaults = {name: inspect.signature(Move.__init__).parameters[name].default for name in known_options(Move)}
    for name, recipe in recipes.items():
        options = dict(recipe.tables["model"])
        assert options.pop("name") == "move" and recipe.tables["loss"] == {"name": "bce"}
        assert all(recipe.sources[f"model.{option}"] for option in options)
        Move(spec(), **{**options, **SMALL, "head_width": None})
        if name == "move":
            assert {**options, "head_width": None} == defaults
    assert recipes["move"].published[0].mAP.overall == 0.705 and recipes["move_aggregator"].published == ()

    assert differing_options("move", "move-release") == {
        "residual": False, "hidden_frames": "zeroed", "input_affine": False, "keys": "others"
    }  # fmt: skip
    assert differing_options("move", "move_aggregator") == {"extrapolation": False, "interpolation": "none"}
    assert differing_options("move_aggregator", "move_aggregator-release") == {"residual": False}
