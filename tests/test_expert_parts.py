"""The parts of MEID's experts, equation by equation: worked out by hand, and by loops in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from meid_by_loop import arrays, attention, distance, fused, neck, release_embedding, sigmoid, simple_embedding

from meidbench.baselines.models.distillation import Neck, VarianceDistillation
from meidbench.baselines.models.meid import apply_pool, joint_scores
from meidbench.baselines.models.meid_parts import (
    Complement,
    ExpertSwitches,
    FrameAttention,
    Fusion,
    ReleaseEmbedding,
    SimpleEmbedding,
    complementary_weights,
)
from meidbench.errors import MeidbenchError
from meidbench.loading.motion import motion_rows
from meidbench.splits.groups import Groups

GROUPS = Groups(head=np.array([1, 4]), medium=np.array([0, 5]), tail=np.array([2, 3, 6]))
CLASSES = 7


def shaken(module, seed=0, scale=0.5):
    """The module in float64, with random parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(scale * (noise.abs() if name.endswith("running_var") else noise))
    return module


def distillation(groups=GROUPS, num_classes=CLASSES, **switches):
    return VarianceDistillation(groups, num_classes, ExpertSwitches(**switches))


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matches(tensor, videos, tolerance=1e-11):
    np.testing.assert_allclose(tensor.detach().numpy(), np.array(videos), rtol=tolerance, atol=tolerance)


# --- equation 2: embedding ----------------------------------------------------------------------------------------


def test_equation_2_worked_out_by_hand():
    embedding = SimpleEmbedding(2)
    with torch.no_grad():
        embedding.linear.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
        embedding.linear.bias.copy_(torch.tensor([0.25, 0.5]))
    # (3, 7) and (5, 1) have means 5 and 3 and deviations 2: normalised they are (-1, 1) and (1, -1).
    told = embedding(torch.tensor([[[3.0, 7.0], [5.0, 1.0]]]))
    torch.testing.assert_close(told, torch.tensor([[[1.25, 2.0], [0.0, 0.0]]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["ln", "bn"])
def test_the_simple_embedding_is_normalisation_linear_layer_and_relu(norm):
    embedding, frames = shaken(SimpleEmbedding(6, norm)).eval(), drawn(2, 4, 6)
    matches(embedding(frames), [simple_embedding(arrays(embedding), video) for video in frames.numpy()])


@pytest.mark.parametrize("project", [True, False])
def test_the_release_embedding_is_its_operators(project):
    embedding, frames = shaken(ReleaseEmbedding(6, project=project), scale=0.2), drawn(2, 4, 6)
    matches(embedding(frames), [release_embedding(arrays(embedding), video) for video in frames.numpy()])


def test_batch_normalisation_is_over_all_frames_of_a_batch():
    embedding, frames = SimpleEmbedding(3, "bn").double(), 2 + 3 * drawn(5, 4, 3)
    embedding(frames)
    flat = frames.numpy().reshape(-1, 3)
    matches(embedding.norm.norm.running_mean, 0.1 * flat.mean(axis=0))
    matches(embedding.norm.norm.running_var, 0.9 + 0.1 * flat.var(axis=0, ddof=1))


def test_linear_layers_begin_as_released():
    torch.manual_seed(3)
    embedding = ReleaseEmbedding(48, project=True)
    for name in ("project", "wide", "narrow"):
        linear = getattr(embedding, name)
        assert 0.018 < float(linear.weight.detach().std()) < 0.022 and not bool(linear.bias.detach().any())


# --- equation 3: attention ------------------------------------------------------------------------------------------


def test_equation_3_worked_out_by_hand():
    by_frame = FrameAttention(2, None, ExpertSwitches(attention_hidden=2, attention_norm="none"))
    with torch.no_grad():
        by_frame.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        by_frame.first.bias.copy_(torch.tensor([0.0, 1.0]))
        by_frame.second.weight.copy_(torch.tensor([[2.0, -1.0]]))
        by_frame.second.bias.copy_(torch.tensor([0.5]))
    # (1, 3): hidden (1, max(0, -2)), score 2.5. (-1, -1): hidden (0, 2), score -1.5.
    told = by_frame(torch.tensor([[[1.0, 3.0], [-1.0, -1.0]]]))
    torch.testing.assert_close(told, torch.tensor([[sigmoid(2.5), sigmoid(-1.5)]]))

    of_frames = FrameAttention(2, 3, ExpertSwitches(attention="se_frames"))
    with torch.no_grad():
        of_frames.first.weight.copy_(torch.tensor([[1.0, -1.0, 2.0]]))
        of_frames.second.weight.copy_(torch.tensor([[1.0], [0.0], [-2.0]]))
    # The means of three frames are 2, 1 and 0.5, the squeezed value 2 - 1 + 1 = 2, the scores 2, 0 and -4.
    told = of_frames(torch.tensor([[[1.0, 3.0], [2.0, 0.0], [0.0, 1.0]]]))
    torch.testing.assert_close(told, torch.tensor([[sigmoid(2), 0.5, sigmoid(-4)]]))


@pytest.mark.parametrize(("kind", "norm"), [("frame_mlp", "ln"), ("frame_mlp", "none"), ("se_frames", "ln")])
def test_attention_is_its_formula(kind, norm):
    switches = ExpertSwitches(attention=kind, attention_hidden=4, attention_norm=norm)
    module, frames = shaken(FrameAttention(5, 7, switches)), drawn(3, 7, 5)
    weights = np.array([attention(arrays(module), video, norm == "ln") for video in frames.numpy()])
    matches(module(frames), weights)
    scores = np.log(weights / (1 - weights))
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for activation, wanted in (("softmax", shares), ("n_softmax", 7 * shares)):
        other = FrameAttention(5, 7, replace(switches, attention_act=activation)).double()
        other.load_state_dict(module.state_dict())
        matches(other(frames), wanted)


def test_attention_of_each_frame_takes_any_number_of_them_and_that_of_positions_one():
    each = FrameAttention(4, None, ExpertSwitches(attention_hidden=3))
    frames = drawn(2, 6, 4).float()
    torch.testing.assert_close(each(frames[:, 2:5]), each(frames)[:, 2:5])
    of_positions = ExpertSwitches(attention="se_frames")
    positions = FrameAttention(4, 6, of_positions)
    assert positions.first.weight.shape == (2, 6) and positions.first.bias is None and positions.second.bias is None
    assert FrameAttention(4, 2, of_positions).first.weight.shape == (1, 2)
    with pytest.raises(MeidbenchError, match="for 6 frames per video, got 5"):
        positions(frames[:, :5])
    with pytest.raises(MeidbenchError, match=r"set frames\.train and frames\.test alike"):
        FrameAttention(4, None, of_positions)


# --- equation 4: pooling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_mean_over_frames_becomes_what_the_pool_says(with_weights):
    frames, weights = drawn(2, 5, 3), drawn(2, 5, seed=2).sigmoid()
    rows = (frames * weights[:, :, None] if with_weights else frames).numpy()
    wanted = {"mean": rows.mean(axis=1), "sum": rows.sum(axis=1)}
    total = weights.numpy().sum(axis=1, keepdims=True)
    wanted["weighted_mean"] = rows.sum(axis=1) / total if with_weights else rows.mean(axis=1)
    for pool, said in wanted.items():
        matches(apply_pool(frames, weights if with_weights else None, pool).mean(dim=1), said)


# --- equations 5 to 7: necks and distillation -----------------------------------------------------------------------


def test_equation_7_worked_out_by_hand():
    groups = Groups(head=np.array([0, 2]), medium=np.array([3]), tail=np.array([1]))
    necks = distillation(groups, 4, neck_out=2)
    with torch.no_grad():
        necks.necks["head"].linear.weight.copy_(torch.eye(2))
        necks.necks["head"].linear.bias.copy_(torch.tensor([0.0, 1.0]))
        necks.necks["tail"].linear.weight.copy_(torch.tensor([[2.0], [0.0]]))
        necks.necks["tail"].linear.bias.copy_(torch.tensor([0.0, 0.0]))
    logits = torch.tensor([[1.0, 2.0, 4.0, 99.0], [3.0, 1.0, 0.0, -99.0]])

    def computed(over, kind):
        module = distillation(groups, 4, neck_out=2, distill_var=over, distill_norm=kind)
        module.load_state_dict(necks.state_dict())
        return module(logits).item()

    # Head units (1, 5) and (3, 1), tail units (4, 0) and (2, 0). Over the videos head units have the variances 1 and 4,
    # tail units 1 and 0, which are 0 and 4 apart. Over the units of a video both have 4 and 1.
    assert [computed("batch", kind) for kind in ("l2", "mse", "abs")] == [4, 8, 2]
    assert computed("batch", "rms") == necks(logits).item() == pytest.approx(4 / 2**0.5, rel=1e-6)
    assert computed("unit", "rms") == 0
    # With a second tail logit of 4 the units are (8, 0), the variance 16, and the two are 15 apart.
    logits[1, 1] = 4.0
    assert [computed("unit", kind) for kind in ("l2", "mse", "abs")] == [15, 112.5, 7.5]
    assert computed("unit", "rms") == pytest.approx(15 / 2**0.5, rel=1e-6)


def test_one_video_has_no_variance_over_videos():
    module, logits = distillation(), torch.randn(1, CLASSES, requires_grad=True)
    loss = module(logits)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    assert distillation(distill_var="unit")(logits).item() > 0


@pytest.mark.parametrize("mask", ["input", "output", "none"])
@pytest.mark.parametrize("form", [("none", "none"), ("lrelu", "l2")])
@pytest.mark.parametrize("over", ["unit", "batch", "all"])
def test_the_distillation_loss_is_its_formula(mask, form, over):
    activation, length = form
    if (mask, over) == ("output", "batch"):
        with pytest.raises(MeidbenchError, match=r"unit with unit.* set distill_var=unit or distill_var=all"):
            distillation(neck_mask=mask, distill_var=over)
        return
    out, logits = None if mask == "output" else 5, 3 * drawn(4, CLASSES)
    for kind in ("rms", "l2", "mse", "abs"):
        module = shaken(
            distillation(
                neck_out=out, neck_mask=mask, neck_act=activation, neck_norm=length, distill_var=over, distill_norm=kind
            )
        )
        units = [
            [
                neck(arrays(module.necks[name]), video, getattr(GROUPS, name), mask, activation, length)
                for video in logits.numpy()
            ]
            for name in ("head", "tail")
        ]
        wanted = distance(*units, over, kind)
        assert wanted > 1e-6
        assert module(logits).item() == pytest.approx(wanted, rel=1e-9)


def test_gathering_a_group_is_setting_the_others_to_nothing():
    classes, logits = torch.tensor([1, 4, 5]), drawn(3, CLASSES)
    gathered = shaken(Neck(classes, CLASSES, ExpertSwitches(neck_out=4)))
    full = Neck(classes, CLASSES, ExpertSwitches(neck_out=4, neck_mask="none")).double()
    with torch.no_grad():
        full.linear.weight.copy_(drawn(4, CLASSES, seed=9))
        full.linear.weight[:, classes] = gathered.linear.weight
        full.linear.bias.copy_(gathered.linear.bias)
    others = torch.tensor([0, 2, 3, 6])
    torch.testing.assert_close(gathered(logits), full(logits.index_fill(1, others, 0.0)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gathered(logits), gathered(logits.index_fill(1, others, 1e9)), rtol=0, atol=0)


@pytest.mark.parametrize(("medium", "head", "tail"), [
    ("excluded", [1, 4], [2, 3, 6]), ("with_head", [0, 1, 4, 5], [2, 3, 6]), ("with_tail", [1, 4], [0, 2, 3, 5, 6]),
])  # fmt: skip
def test_medium_classes_are_where_they_are_told_to_be(medium, head, tail):
    module = distillation(distill_medium=medium)
    assert [module.necks[name].classes.tolist() for name in ("head", "tail")] == [head, tail]
    logits = torch.randn(3, CLASSES, requires_grad=True)
    module(logits).backward()
    assert torch.nonzero(logits.grad.abs().sum(dim=0)).flatten().tolist() == sorted(head + tail)
    # They follow from the split, and a checkpoint need not hold them.
    assert {name.rpartition(".")[2] for name in module.state_dict()} == {"weight", "bias"}


@pytest.mark.parametrize("missing", ["head", "tail"])
def test_a_group_without_classes_is_refused(missing):
    empty = {"head": [0, 1], "medium": [3], "tail": [2]} | {missing: []}
    groups = Groups(**{name: np.array(classes, dtype=np.int64) for name, classes in empty.items()})
    with pytest.raises(MeidbenchError, match=rf"none in {missing}; set model\.distill_weight=0"):
        distillation(groups, 4)
    assert distillation(groups, 4, distill_medium=f"with_{missing}")(torch.rand(2, 4)).isfinite()


@pytest.mark.parametrize("detach", [False, True])
def test_detaching_the_head_stops_its_gradient_and_nothing_else(detach):
    module, logits = (
        distillation(distill_detach_head=detach),
        drawn(3, CLASSES).float().requires_grad_(),
    )
    module(logits).backward()
    reached = logits.grad.abs().sum(dim=0)
    assert bool((reached[GROUPS.head] > 0).all()) is not detach and bool((reached[GROUPS.tail] > 0).all())
    for name, neck_of in module.necks.items():
        stopped = detach and name == "head"
        assert all(p.requires_grad is not stopped and (p.grad is None) is stopped for p in neck_of.parameters())
    torch.manual_seed(0)
    values = [distillation(distill_detach_head=detach)(logits).item()]
    torch.manual_seed(0)
    values.append(distillation()(logits).item())
    assert values[0] == values[1]


@pytest.mark.parametrize("length", ["none", "l2"])
@pytest.mark.parametrize("over", ["unit", "batch", "all"])
@pytest.mark.parametrize("kind", ["rms", "l2", "mse", "abs"])
def test_the_gradient_is_finite_where_nothing_is_apart(kind, over, length):
    module = distillation(distill_var=over, distill_norm=kind, neck_norm=length)
    for neck_of in module.necks.values():
        torch.nn.init.zeros_(neck_of.linear.weight)
    logits = torch.randn(3, CLASSES, requires_grad=True)
    loss = module(logits)
    loss.backward()
    assert loss.item() == 0
    for gradient in (logits.grad, *(parameter.grad for parameter in module.parameters())):
        assert bool(gradient.isfinite().all())


def test_the_loss_of_half_precision_is_computed_in_float32():
    module, logits = distillation(), torch.randn(3, CLASSES).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = module(logits)
    assert told.dtype == torch.float32
    assert told.item() == module(logits.float()).item()


def test_the_norms_of_the_necks_are_told():
    module = distillation(neck_out=3)
    weights = {name: module.necks[name].linear.weight.detach().double().numpy() for name in ("head", "tail")}
    assert weights["head"].shape == (3, 2) and weights["tail"].shape == (3, 3)
    for name, weight in weights.items():
        assert module.log_values()[f"neck_norm_{name}"] == pytest.approx(np.sqrt((weight**2).sum()), rel=1e-6)
        # Xavier's uniform: up to the root of 6 / (inputs + units).
        assert np.abs(weight).max() <= np.sqrt(6 / sum(weight.shape))
        assert float(module.necks[name].linear.bias.detach().abs().max()) == 0


@pytest.mark.parametrize("wrong", [
    {"neck_mask": "outside"}, {"neck_act": "relu"}, {"neck_norm": "l1"}, {"distill_var": "class"},
    {"distill_norm": "max"}, {"distill_medium": "both"}, {"neck_out": 0}, {"neck_out": 4, "neck_mask": "output"},
])  # fmt: skip
def test_switches_that_do_not_exist_are_refused(wrong):
    with pytest.raises(MeidbenchError):
        distillation(**wrong)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(MeidbenchError, match="distill_weight"):
        ExpertSwitches(distill_weight=weight)


# --- equation 8: complementary frames -------------------------------------------------------------------------------


def test_equation_8_worked_out_by_hand():
    weights = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(complementary_weights(weights), torch.tensor([[2, 1, 2 / 3], [2 / 3] * 3]))
    torch.testing.assert_close(complementary_weights(weights, 0.25)[0], torch.tensor([4, 4 / 3, 0.8]))
    # 2, 1 and 2/3 are 11/9 on average.
    wanted = torch.tensor([[18 / 11, 9 / 11, 6 / 11], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(complementary_weights(weights, renormalise=True), wanted)


@pytest.mark.parametrize("beta", [0, -0.5, float("nan"), float("inf"), True])
def test_a_beta_that_is_not_above_0_is_refused(beta):
    with pytest.raises(MeidbenchError, match="beta"):
        complementary_weights(torch.zeros(1, 1), beta)


# --- equations 9 to 11: what expert two sees ------------------------------------------------------------------------


def test_equations_10_and_11_worked_out_by_hand():
    # Differences 3 and -1, and the mean of 1, 4 and 3.
    video = torch.tensor([[1.0], [4.0], [3.0]])
    motion = motion_rows(video)
    torch.testing.assert_close(motion, torch.tensor([[3.0], [-1.0], [8 / 3]]))
    fusion = Fusion("feature", 1, None)
    with torch.no_grad():
        fusion.linear.weight.copy_(torch.tensor([[2.0, 3.0]]))
        fusion.linear.bias.fill_(-1.0)
    # 2 x + 3 m - 1, frame by frame.
    torch.testing.assert_close(fusion(video[None], motion[None]), torch.tensor([[[10.0], [4.0], [13.0]]]))


@pytest.mark.parametrize("axis", ["feature", "frame"])
def test_fusion_is_a_linear_layer_along_its_axis(axis):
    fusion, one, other = shaken(Fusion(axis, 4, 3)), drawn(2, 3, 4), drawn(2, 3, 4, seed=2)
    state = {name.removeprefix("linear."): value for name, value in arrays(fusion).items()}
    matches(fusion(one, other), [fused(state, *pair) for pair in zip(one.numpy(), other.numpy(), strict=True)])


def test_fusion_along_frames_is_for_one_number_of_them():
    with pytest.raises(MeidbenchError, match=r"set frames\.train and frames\.test alike"):
        Fusion("frame", 4, None)
    with pytest.raises(MeidbenchError, match="for 3 frames per video, got 2"):
        Fusion("frame", 4, 3)(torch.rand(1, 2, 4), torch.rand(1, 2, 4))


class Doubled(torch.nn.Module):
    """An embedding that is easy to compute by hand."""

    def forward(self, frames):
        return 2 * frames


@pytest.mark.parametrize("apply", ["output", "input"])
@pytest.mark.parametrize("stage", ["early", "medium", "late"])
def test_streams_are_weighted_embedded_and_fused_in_the_order_that_is_asked_for(apply, stage):
    module = Complement(1, 2, ExpertSwitches(), has_motion=True, apply=apply, share="all", fuse_stage=stage)
    frames, motion = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[10.0], [20.0]]])
    weights = torch.tensor([[3.0, 5.0]])
    if module.fusion is not None:
        with torch.no_grad():
            module.fusion.linear.weight.copy_(torch.tensor([[1.0, 1.0]]))
            module.fusion.linear.bias.fill_(7.0)
    streams = [stream.flatten().tolist() for stream in module(frames, weights, motion, Doubled())]
    # Doubling 1 and 2 and weighting them gives 6 and 20 in either order; motion is doubled to 20 and 40. Fused early,
    # 1 + 10 + 7 and 2 + 20 + 7 are doubled, and the output's weights apply to them.
    wanted = {
        "medium": [[33.0, 67.0]],
        "late": [[6.0, 20.0], [20.0, 40.0]],
        "early": [[108.0, 290.0]] if apply == "output" else [[40.0, 74.0]],
    }[stage]
    assert streams == wanted and module.streams == len(wanted)


@pytest.mark.parametrize(("share", "own"), [
    ("none", ["embed_frames", "embed_motion"]), ("e2_streams", ["embed_frames"]), ("all", []),
])  # fmt: skip
def test_embeddings_are_shared_as_asked(share, own):
    module = Complement(3, 2, ExpertSwitches(), has_motion=True, share=share)
    names = {name.split(".")[0] for name, _ in module.named_parameters()} - {"fusion"}
    assert names == set(own)
    # Without motion only the frames are embedded, and nothing is fused.
    alone = Complement(3, 2, ExpertSwitches(), has_motion=False, share=share)
    assert {name.split(".")[0] for name, _ in alone.named_parameters()} == set(own) - {"embed_motion"}
    assert alone.streams == 1 and alone.fusion is None


# --- scores ---------------------------------------------------------------------------------------------------------


def test_joint_scores_rank_as_float64_does_where_probabilities_round_to_1():
    first = torch.linspace(14.0, 60.0, 40)[None]
    second = torch.linspace(30.0, 15.0, 40)[None]
    probabilities = (torch.sigmoid(first) + torch.sigmoid(second)) / 2
    assert len(probabilities.unique()) < 30
    told = joint_scores(first, second, "prob_mean")
    # The differences to 1 still differ: log of the mean of 1 / (1 + e^z).
    missing = (1 / (1 + np.exp(first.double().numpy())) + 1 / (1 + np.exp(second.double().numpy()))) / 2
    assert len(told.unique()) == 40
    assert told[0].argsort().tolist() == np.argsort(-missing[0]).tolist()
    np.testing.assert_allclose(told.numpy(), np.log1p(-missing) - np.log(missing), rtol=1e-6)


@pytest.mark.parametrize("shift", [-30.0, 0.0, 12.0])
def test_joint_scores_are_the_logit_of_the_mean_probability(shift):
    first, second = (shift + 4 * drawn(5, 6, seed=seed).float() for seed in (1, 2))
    one, other = (1 / (1 + np.exp(-logits.double().numpy())) for logits in (first, second))
    # In float64 the difference to 1 is not rounded away at these logits.
    mean = (one + other) / 2
    missing = (1 / (1 + np.exp(first.double().numpy())) + 1 / (1 + np.exp(second.double().numpy()))) / 2
    np.testing.assert_allclose(
        joint_scores(first, second, "prob_mean").numpy(), np.log(mean) - np.log(missing), rtol=2e-5, atol=1e-5
    )
    torch.testing.assert_close(joint_scores(first, second, "logit_sum"), first + second, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["logit_sum", "prob_mean"])
def test_joint_scores_are_float32_and_finite_far_out(how):
    first = torch.tensor([[-80.0, 80.0, 90.0, 0.0]]).bfloat16()
    told = joint_scores(first, first.flip(1), how)
    assert told.dtype == torch.float32 and bool(told.isfinite().all())
