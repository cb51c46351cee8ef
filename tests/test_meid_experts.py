"""MEID's experts against numbers of the public code, and the effect of each switch."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from meidbench.baselines.aggregators import AGGREGATORS
from meidbench.baselines.configuration import option_defaults
from meidbench.baselines.models import MODELS, ModelInputs
from meidbench.baselines.models.meid import ExpertOne, ExpertTwo
from meidbench.baselines.models.meid_parts import (
    ExpertSwitches,
    FrameAttention,
    ReleaseEmbedding,
    complementary_weights,
)
from meidbench.splits.groups import Groups

VIDEOS, FRAMES, DIM, CLASSES = 4, 6, 8, 7
GROUPS = Groups(head=np.array([0, 6]), medium=np.array([1]), tail=np.array([2, 3, 4, 5]))

RELEASE_ONE = {
    "embedding": "release",
    "embedding_norm": "bn",
    "attention": "se_frames",
    "neck_act": "lrelu",
    "neck_norm": "l2",
}
RELEASE_TWO = RELEASE_ONE | {
    "selection_apply": "input",
    "fuse_axis": "frame",
    "fuse_norm": "bn",
    "loss_on": "e2",
    "scores": "prob_mean",
    "frozen_norm": "train",
}


def spec(*, motion=True, dim=DIM, classes=CLASSES, groups=GROUPS):
    counts = np.ones(classes, dtype=np.int64)
    return ModelInputs(dim, classes, counts, groups, FRAMES, motion, lambda width: AGGREGATORS["mean"](width, classes))


def two(given=None, **switches):
    torch.manual_seed(0)
    return ExpertTwo(given or spec(), **switches).train()


def drawn(seed=0, shape=(VIDEOS, FRAMES, DIM)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(model):
    return drawn(0), drawn(1) if model.inputs.has_motion else None


def loss_of(outputs):
    loss = outputs.logits.square().mean()
    return loss if outputs.penalty is None else loss + outputs.penalty


# --- against the authors' code

# Results of github.com/abcdvzz/MEID (commit be39ade, ``models/trans.py``: ``Trans_Pos_101`` and ``Trans_Pos``, after a
# batch normalisation as in ``models/models.py``) in float64 for 16 features, 6 frames and 5 classes in place of the
# widths that are written into it, on ``waves(3, 6, 16)``, with motion ``waves(3, 6, 16, step=0.73)``. Tensor ``at`` of
# its ``state_dict()`` is 0.5 sin(i (1 + 0.1 at) + at); running means are 0.1 sin, variances 1 + 0.5 sin. The first are
# logits, the last the mean of both experts' probabilities, the second the logits that its second stage trains on.
PUBLIC_ONE = {
    True: [
        [-0.5301903122, -0.1201083912, 0.2212706161, 0.6919330119, 0.5406016842],
        [-0.5646525629, -0.1482890471, 0.2113979886, 0.7045816754, 0.5703736693],
        [-0.8054571364, -0.4098085503, 0.0407701477, 0.6976629793, 0.7301167548],
    ],
    False: [
        [-0.5352245101, -0.1244796542, 0.219427777, 0.6934050505, 0.5447603902],
        [-0.5606394969, -0.1433292509, 0.2151878623, 0.7055842524, 0.5681610879],
        [-0.7942098351, -0.3966302972, 0.0502553747, 0.6994072455, 0.7233756737],
    ],
}
PUBLIC_TWO_TRAINED = [
    [0.5123064177, 0.4005391355, 0.2942512925, 0.2020525767, 0.1305624354],
    [-0.3140233697, -0.3341262482, -0.3317595653, -0.3008264148, -0.2375549388],
    [-0.7582773345, -0.8176802595, -0.8434307882, -0.8287817662, -0.7695847431],
]
PUBLIC_TWO_SCORES = [
    [0.5220800353, 0.5379592186, 0.5420633239, 0.5710511773, 0.5419723038],
    [0.4520703434, 0.4782038778, 0.4946821917, 0.5373762685, 0.5226028484],
    [0.3959238204, 0.4152088791, 0.4328903162, 0.4822030467, 0.4750003449],
]


def batch_norm(name):
    return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")] + [""]


def layers(prefix, *names):
    return [f"{prefix}.{name}.{part}" for name in names for part in ("weight", "bias")]


# The names of the parameters here, in the order of the public code; an empty name is for its counter of batches.
NAMES_ONE = [
    *batch_norm("input_norm.norm"),
    *layers("embedding", "project", "project_norm", "inner_norm", "outer_norm", "wide", "narrow", "convolution"),
    *layers("embedding", "last_norm"),
    *layers("aggregator", "classifier"),
]
NAMES_TWO = [
    *(f"one.{name}" if name else "" for name in NAMES_ONE),
    "one.attention.first.weight",
    "one.attention.second.weight",
    *layers("complement.embed_frames", "wide", "narrow", "convolution"),
    *batch_norm("complement.norm_frames.norm"),
    *layers("complement.embed_motion", "wide", "narrow", "convolution"),
    *batch_norm("complement.norm_motion.norm"),
    *layers("complement.fusion", "linear"),
    *layers("aggregators.0", "classifier"),
]


def waves(*shape, step=0.37):
    return torch.sin(torch.arange(np.prod(shape), dtype=torch.float64) * step).reshape(shape)


def as_public(model, names):
    state = model.double().state_dict()
    assert {name for name in names if name} == {name for name in state if not name.endswith("num_batches_tracked")}
    with torch.no_grad():
        for at, name in enumerate(names):
            if name:
                wave = torch.sin(torch.arange(state[name].numel(), dtype=torch.float64) * (1 + 0.1 * at) + at)
                kind = name.rpartition(".")[2]
                wave = {"running_mean": 0.1 * wave, "running_var": 1 + 0.5 * wave}.get(kind, 0.5 * wave)
                state[name].copy_(wave.reshape(state[name].shape))
    return model


def public_inputs(motion):
    groups = Groups(np.array([0]), np.array([1]), np.array([2, 3, 4]))
    return spec(motion=motion, dim=16, classes=5, groups=groups)


@pytest.mark.parametrize("training", [True, False])
def test_expert_one_of_the_release_is_the_public_codes(training):
    model = as_public(
        ExpertOne(public_inputs(False), **RELEASE_ONE | {"attention": "none", "distill_weight": 0.0}), NAMES_ONE
    )
    logits = model.train(training)(waves(3, 6, 16)).logits
    np.testing.assert_allclose(logits.detach().numpy(), PUBLIC_ONE[training], rtol=0, atol=1e-9)


def test_expert_two_of_the_release_is_the_public_codes():
    model = as_public(two(public_inputs(True), **RELEASE_TWO | {"distill_weight": 0.0}), NAMES_TWO)
    features, motion = waves(3, 6, 16), waves(3, 6, 16, step=0.73)
    scores = torch.sigmoid(model.eval()(features, motion).logits)
    np.testing.assert_allclose(scores.detach().numpy(), PUBLIC_TWO_SCORES, rtol=0, atol=1e-9)
    logits = model.train()(features, motion).logits
    np.testing.assert_allclose(logits.detach().numpy(), PUBLIC_TWO_TRAINED, rtol=0, atol=1e-9)


def label(switches):
    return ", ".join(f"{key}={value}" for key, value in switches.items())[:60] or "paper"


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def reached(model):
    loss_of(model(*inputs(model))).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- switches


def outcome(model):
    """Return logits and penalty in training, and scores."""
    features, motion = inputs(model)
    with torch.no_grad():
        training = model.train()(features, motion)
        scores = model.eval()(features, motion).logits
    return training.logits, training.penalty, scores


def with_weights_of(base, given, **switches):
    model = type(base)(given, **switches)
    model.load_state_dict(base.state_dict())
    return model


# Switches that do not change the parameters, the switches they are added to, and the results that they change.
LOGITS, PENALTY, SCORES = 0, 1, 2
CHANGES = [
    (ExpertOne, {"attention_act": "softmax"}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertOne, {"attention_act": "n_softmax"}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertOne, {"pool": "sum"}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertOne, {"pool": "weighted_mean"}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertOne, {"distill_weight": 0.2}, {}, {PENALTY}),
    (ExpertOne, {"neck_mask": "none"}, {"neck_mask": "output", "distill_var": "unit"}, {PENALTY}),
    (ExpertOne, {"neck_act": "lrelu"}, {}, {PENALTY}),
    (ExpertOne, {"neck_norm": "l2"}, {}, {PENALTY}),
    (ExpertOne, {"distill_var": "unit"}, {}, {PENALTY}),
    (ExpertOne, {"distill_var": "all"}, {}, {PENALTY}),
    (ExpertOne, {"distill_norm": "l2"}, {}, {PENALTY}),
    (ExpertOne, {"distill_norm": "mse"}, {}, {PENALTY}),
    (ExpertOne, {"distill_norm": "abs"}, {}, {PENALTY}),
    # The gradient alone differs.
    (ExpertOne, {"distill_detach_head": True}, {}, set()),
    (ExpertOne, {"distill_medium": "with_head"}, {"neck_mask": "output", "distill_var": "unit"}, {PENALTY}),
    (ExpertOne, {"distill_medium": "with_tail"}, {"neck_mask": "output", "distill_var": "unit"}, {PENALTY}),
    (ExpertOne, {"recompute": True}, RELEASE_ONE, set()),
    (ExpertTwo, {"selection": False}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertTwo, {"beta": 0.3}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertTwo, {"selection_renorm": True}, {}, {LOGITS, PENALTY, SCORES}),
    (ExpertTwo, {"selection_apply": "input"}, {"embedding_norm": "bn"}, {LOGITS, PENALTY, SCORES}),
    (ExpertTwo, {"selection_apply": "output"}, RELEASE_TWO | {"neck_norm": "none"}, {LOGITS, PENALTY, SCORES}),
    (ExpertTwo, {"pool": "sum"}, {}, {LOGITS, PENALTY, SCORES}),
    # The pooling of expert one alone: X_F has no weights to divide by.
    (ExpertTwo, {"pool": "weighted_mean"}, {}, {LOGITS, SCORES}),
    (ExpertTwo, {"loss_on": "e2"}, {}, {LOGITS}),
    (ExpertTwo, {"scores": "prob_mean"}, {}, {SCORES}),
    (ExpertTwo, {"frozen_norm": "train"}, {"embedding_norm": "bn"}, {LOGITS, SCORES}),
    (ExpertTwo, {"recompute": True}, RELEASE_TWO, set()),
]


@pytest.mark.parametrize(
    ("kind", "switch", "base", "wanted"), CHANGES, ids=[f"{c[0].__name__} {label(c[1])}" for c in CHANGES]
)
def test_each_switch_changes_what_it_is_for_and_nothing_else(kind, switch, base, wanted):
    torch.manual_seed(0)
    given = spec(motion=kind is ExpertTwo)
    model = kind(given, **base)
    with torch.no_grad():
        # A wide spread of attention, and classes that differ.
        for name, parameter in model.named_parameters():
            parameter.mul_(30.0 if "attention" in name else 2.0)
    other = with_weights_of(model, given, **base | switch)
    pairs = list(zip(outcome(model), outcome(other), strict=True))
    assert {at for at, (first, second) in enumerate(pairs) if not torch.allclose(first, second, rtol=1e-4)} == wanted
    assert all(torch.equal(first, second) for at, (first, second) in enumerate(pairs) if at not in wanted)


def test_the_ones_that_change_parameters_make_the_parts_they_name():
    def names(**switches):
        return {name.rpartition(".")[0] for name, _ in two(**switches).named_parameters() if "one." not in name}

    paper = names()
    streams = {"complement.embed_frames.linear", "complement.embed_motion.linear", "complement.fusion.linear"}
    assert streams < paper
    assert paper - names(share="e2_streams") == {
        "complement.embed_motion.linear",
        "complement.embed_motion.norm.norm",
    }
    assert not any("embed" in name for name in names(share="all"))
    assert not any("embed_motion" in name for name in names(fuse_stage="early"))
    assert names(fuse_stage="late") ^ paper == {"complement.fusion.linear", "aggregators.1.classifier"}
    assert names(fuse_norm="bn") - paper == {"complement.norm_frames.norm", "complement.norm_motion.norm"}
    assert {name for name in paper if "necks" in name} == paper - names(distill_weight=0.0)
    assert two(fuse_axis="frame").complement.fusion.linear.weight.shape == (FRAMES, 2 * FRAMES)


def test_constant_attention_renormalised_is_no_selection():
    base = two(selection_renorm=True)
    with torch.no_grad():
        base.one.attention.second.weight.zero_()
    without = with_weights_of(base, base.inputs, selection=False)
    for first, second in zip(outcome(base), outcome(without), strict=True):
        torch.testing.assert_close(first, second)


def test_with_a_softmax_nothing_is_selected():
    """The paper does not name the activation; this is the reason against a softmax."""
    torch.manual_seed(0)
    frames = drawn(shape=(2, 150, 5))
    spread = {}
    for kind in ("sigmoid", "softmax"):
        weights = complementary_weights(FrameAttention(5, None, ExpertSwitches(attention_act=kind))(frames).detach())
        spread[kind] = float(weights.max() / weights.min())
    assert spread["softmax"] < 1.02 < 1.1 < spread["sigmoid"], spread


def test_with_one_embedding_for_all_it_is_expert_ones():
    """If expert two's embedding has expert one's weights, sharing it changes nothing."""
    own, shared = two(), two(share="all")
    state = {name: tensor for name, tensor in own.state_dict().items() if not name.startswith("complement.embed")}
    shared.load_state_dict(state)
    with torch.no_grad():
        for stream in (own.complement.embed_frames, own.complement.embed_motion):
            stream.load_state_dict(own.one.embedding.state_dict())
    for first, second in zip(outcome(own), outcome(shared), strict=True):
        assert torch.equal(first, second)


def test_computing_the_wide_layer_again_keeps_nothing_of_its_width():
    def widest(recompute):
        widths = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: widths.append(tensor.shape[-1]), lambda _: None):
            ReleaseEmbedding(8, project=True, recompute=recompute)(torch.randn(2, 5, 8))
        return max(widths)

    assert (widest(False), widest(True)) == (64, 8)


def test_both_experts_have_the_same_switches_with_the_same_defaults():
    ours = {kind: option_defaults(kind) for kind in (ExpertOne, ExpertTwo)}
    for name, default in ours[ExpertOne].items():
        assert ours[ExpertTwo][name] == default
    assert MODELS["meid_one"] is ExpertOne and MODELS["meid_two"] is ExpertTwo


def test_every_combination_of_the_switches_of_both_streams_trains():
    choices = {
        "fuse_axis": ("feature", "frame"),
        "fuse_stage": ("early", "medium", "late"),
        "fuse_norm": ("none", "bn"),
        "share": ("none", "e2_streams", "all"),
        "selection_apply": ("output", "input"),
    }
    for values in itertools.product(*choices.values()):
        model = two(embedding_norm="bn", **dict(zip(choices, values, strict=True)))
        assert reached(model) == trained(model), values


def test_norms_are_real_modules():
    """Processes share the statistics only of layers that SyncBatchNorm can replace."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(two(**RELEASE_TWO))
    kinds = [type(layer) for layer in model.modules()]
    assert nn.SyncBatchNorm in kinds and nn.BatchNorm1d not in kinds
