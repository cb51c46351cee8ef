"""MEID's whole experts: against a loop in float64, their parameter counts, frozen weights and gradients."""

import numpy as np
import pytest
import torch
from meid_by_loop import arrays, distance, expert_one, expert_two, neck, part

from meidbench.baselines import AGGREGATORS, METHODS
from meidbench.baselines.models import ModelInputs
from meidbench.baselines.models.base import Plain
from meidbench.baselines.models.meid import ExpertOne, ExpertTwo, joint_scores
from meidbench.errors import MeidbenchError
from meidbench.splits.groups import Groups

DIM, CLASSES, FRAMES = 8, 7, 6
GROUPS = Groups(head=np.array([1, 4]), medium=np.array([0, 5]), tail=np.array([2, 3, 6]))
# Small, and without dropout, so that a second pass gives the same.
AGGREGATOR_OPTIONS = {
    "mean": {},
    "netvlad": {"clusters": 3, "hidden": 5},
    "nextvlad": {"clusters": 3, "hidden": 8, "groups": 2, "reduction": 2, "dropout": 0.0},
}
DISTILLED = ("distill_weight", "neck_out", "neck_mask", "neck_act", "neck_norm", "distill_var", "distill_norm",
             "distill_detach_head", "distill_medium")  # fmt: skip


def spec(aggregator="mean", *, motion=True, frames=FRAMES, dim=DIM, classes=CLASSES, groups=GROUPS):
    return ModelInputs(
        dim=dim,
        num_classes=classes,
        train_counts=np.full(classes, 10),
        groups=groups,
        frames=frames,
        has_motion=motion,
        aggregator=lambda width: AGGREGATORS[aggregator](width, classes, **AGGREGATOR_OPTIONS[aggregator]),
    )


def preset(name):
    """The model's switches of a recipe."""
    return {switch: value for switch, value in METHODS[name].tables["model"].items() if switch != "name"}


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(model, scale=0.2):
    generator = torch.Generator().manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model


def stepped(model, steps=3, motion=True):
    """Train in training mode, with weight decay on all parameters."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    model.train()
    for step in range(steps):
        features = 2 + 3 * drawn(5, FRAMES, DIM, seed=step)
        outputs = model(features, drawn(5, FRAMES, DIM, seed=50 + step) if motion else None)
        loss = outputs.logits.square().mean() + (0 if outputs.penalty is None else outputs.penalty)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


# --- whole forward passes -------------------------------------------------------------------------------------------

PRESETS = [("meid_one", "meid"), ("meid_one-release", "meid-release")]


@pytest.mark.parametrize(("one", "two"), PRESETS)
def test_shapes(one, two):
    features, motion = drawn(3, FRAMES, DIM), drawn(3, FRAMES, DIM, seed=2)
    for model, given in ((ExpertOne(spec(), **preset(one)), None), (ExpertTwo(spec(), **preset(two)), motion)):
        outputs = model(features, given)
        assert outputs.logits.shape == (3, CLASSES) and outputs.penalty.shape == () and outputs.targets is None
        assert model.log_values().keys() == {"neck_norm_head", "neck_norm_tail"}
        scored = model.eval()(features, given)
        assert scored.logits.shape == (3, CLASSES) and scored.penalty is None
    assert ExpertTwo.takes_motion and ExpertTwo.needs_first_stage
    assert not (ExpertOne.takes_motion or ExpertOne.needs_first_stage)


@pytest.mark.parametrize("name", ["meid_one", "meid_one-release"])
def test_expert_one_is_its_equations(name):
    model = shaken(ExpertOne(spec(), **preset(name))).eval()
    features = drawn(3, FRAMES, DIM).double()
    logits = np.array([expert_one(arrays(model), video)[2] for video in features.numpy()])
    np.testing.assert_allclose(model(features).logits.detach().numpy(), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["meid", "meid-release"])
def test_expert_two_is_its_equations(name):
    model = shaken(ExpertTwo(spec(), **preset(name))).eval()
    features, motion = drawn(3, FRAMES, DIM).double(), drawn(3, FRAMES, DIM, seed=2).double()
    release = name.endswith("release")
    pairs = [
        expert_two(arrays(model), *video, beta=0.5, on_input=release)
        for video in zip(features.numpy(), motion.numpy(), strict=True)
    ]
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    if release:
        mean = (1 / (1 + np.exp(-first)) + 1 / (1 + np.exp(-second))) / 2
        wanted = np.log(mean / (1 - mean))
    else:
        wanted = first + second
    np.testing.assert_allclose(model(features, motion).logits.detach().numpy(), wanted, rtol=1e-9, atol=1e-9)


def necks_loss(state, logits):
    units = [
        [neck(part(state, f"distillation.necks.{name}"), video, getattr(GROUPS, name)) for video in logits]
        for name in ("head", "tail")
    ]
    return distance(*units, "batch", "rms")


@pytest.mark.parametrize("loss_on", ["sum", "e2"])
def test_what_is_trained_is_equations_13_and_14(loss_on):
    one = shaken(ExpertOne(spec(), distill_weight=0.3))
    two = shaken(ExpertTwo(spec(), distill_weight=0.3, loss_on=loss_on))
    features, motion = drawn(3, FRAMES, DIM).double(), drawn(3, FRAMES, DIM, seed=2).double()
    logits = np.array([expert_one(arrays(one), video)[2] for video in features.numpy()])
    outputs = one(features)
    np.testing.assert_allclose(outputs.logits.detach().numpy(), logits, rtol=1e-10, atol=1e-10)
    assert outputs.penalty.item() == pytest.approx(0.3 * necks_loss(arrays(one), logits), rel=1e-9)
    pairs = [
        expert_two(arrays(two), *video, beta=0.5, on_input=False)
        for video in zip(features.numpy(), motion.numpy(), strict=True)
    ]
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    outputs = two(features, motion)
    wanted = first + second if loss_on == "sum" else second
    np.testing.assert_allclose(outputs.logits.detach().numpy(), wanted, rtol=1e-10, atol=1e-10)
    assert outputs.penalty.item() == pytest.approx(0.3 * necks_loss(arrays(two), second), rel=1e-9)


def test_a_second_expert_of_the_first_ones_kind_is_that():
    model = shaken(ExpertTwo(spec(motion=False), arch="e1")).eval()
    features = drawn(3, FRAMES, DIM).double()
    first, second = (
        np.array([expert_one(part(arrays(model), side), video)[2] for video in features.numpy()])
        for side in ("one", "again")
    )
    np.testing.assert_allclose(model(features).logits.detach().numpy(), first + second, rtol=1e-10, atol=1e-10)
    assert not any(name.startswith(("complement", "aggregators")) for name in model.state_dict())


def test_late_fusion_adds_the_logits_of_both_streams():
    model = shaken(ExpertTwo(spec(), fuse_stage="late", selection=False)).eval()
    features, motion = drawn(3, FRAMES, DIM).double(), drawn(3, FRAMES, DIM, seed=2).double()
    complement = model.complement
    streams = (complement.embed_frames(features), complement.embed_motion(motion))
    parts = [
        stream.mean(dim=1) @ aggregator.classifier.weight.T + aggregator.classifier.bias
        for stream, aggregator in zip(streams, model.aggregators, strict=True)
    ]
    torch.testing.assert_close(model(features, motion).logits, model.one(features).logits + sum(parts))


# --- parameters -----------------------------------------------------------------------------------------------------

VIDEOLT = {"classes": 1004, "frames": 150, "head": 47, "tail": 340}
CHARADES = {"classes": 157, "frames": 200, "head": 41, "tail": 35}


def counted(classes, frames, head, tail, width=2048):
    """Parameters of expert one, and those that expert two trains, by preset: from the equations and their shapes."""
    last = width * classes + classes
    necks = (head * classes + classes) + (tail * classes + classes)
    simple = 2 * width + width * width + width
    wide = (width * 8 * width + 8 * width) + (8 * width * width + width) + (3 * width + width)
    by_frame = (width * 256 + 256) + (256 + 1)
    narrow = frames // 3
    return {
        "paper": (
            simple + by_frame + last + necks,
            2 * simple + (2 * width * width + width) + last + necks,
        ),
        "release": (
            2 * width + (width * width + width) + 4 * 2 * width + wide + 2 * frames * narrow + last + necks,
            2 * (wide + 2 * width) + (2 * frames * frames + frames) + last + necks,
        ),
    }


def built(classes, frames, head, tail):
    groups = Groups(
        head=np.arange(head), medium=np.arange(head, classes - tail), tail=np.arange(classes - tail, classes)
    )
    full = spec(dim=2048, classes=classes, frames=frames, groups=groups)
    found = {}
    with torch.device("meta"):
        for name, (one, two) in zip(("paper", "release"), PRESETS, strict=True):
            models = ExpertOne(full, **preset(one)), ExpertTwo(full, **preset(two))
            found[name] = tuple(
                sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
                for model in models
            )
    return found


def test_parameters_are_as_many_as_the_formulas_say_and_the_documentation_states_them():
    numbers = {"videolt": counted(**VIDEOLT), "charades": counted(**CHARADES)}
    assert built(**VIDEOLT) == numbers["videolt"] and built(**CHARADES) == numbers["charades"]
    for stage, kind in enumerate((ExpertOne, ExpertTwo)):
        for name in ("paper", "release"):
            stated = [line.split() for line in kind.__doc__.splitlines() if line.strip().startswith(f"{name} ")]
            assert stated == [[name, *(f"{numbers[dataset][name][stage]:,}" for dataset in ("videolt", "charades"))]]


# --- freezing -------------------------------------------------------------------------------------------------------


def with_statistics(**more):
    return ExpertTwo(spec("netvlad"), embedding_norm="bn", **more)


def test_expert_one_is_bit_identical_after_training_expert_two():
    model = with_statistics()
    before = {name: tensor.clone() for name, tensor in model.one.state_dict().items()}
    rest = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("one.")}
    assert any(name.endswith("running_mean") for name in before) and not model.one.training
    stepped(model)
    for name, tensor in model.one.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    after = model.state_dict()
    still = [name for name, tensor in rest.items() if torch.equal(tensor, after[name])]
    assert still == []


def test_batch_statistics_of_expert_one_drift_where_asked_and_its_parameters_do_not():
    model = with_statistics(frozen_norm="train")
    before = {name: tensor.clone() for name, tensor in model.one.state_dict().items()}
    stepped(model)
    parameters = {name for name, _ in model.one.named_parameters()}
    for name, tensor in model.one.state_dict().items():
        assert torch.equal(tensor, before[name]) is (name in parameters), name
    assert not model.eval().one.training


def test_expert_one_learns_in_the_first_stage_and_its_statistics_too():
    model = ExpertOne(spec("netvlad"), embedding_norm="bn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stepped(model, motion=False)
    assert [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])] == []


# --- gradients ------------------------------------------------------------------------------------------------------


def assert_gradients(model, motion):
    model.train()
    features = drawn(4, FRAMES, DIM)
    outputs = model(features, drawn(4, FRAMES, DIM, seed=2) if motion else None)
    (outputs.logits.square().mean() + (0 if outputs.penalty is None else outputs.penalty)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("aggregator", list(AGGREGATOR_OPTIONS))
@pytest.mark.parametrize("switches", [
    {}, {"attention": "none"}, {"distill_weight": 0.0}, {"distill_detach_head": True}, {"embedding_norm": "bn"},
    {"attention": "se_frames", "attention_act": "n_softmax", "pool": "weighted_mean"}, preset("meid_one-release"),
    {"neck_out": 7, "neck_mask": "output", "distill_var": "unit"},
], ids=str)  # fmt: skip
def test_gradients_reach_all_of_expert_one_in_the_first_stage(switches, aggregator):
    model = ExpertOne(spec(aggregator, motion=False), **switches)
    trained = assert_gradients(model, motion=False)
    frozen = {name for name, _ in model.named_parameters()} - trained
    held = {"distillation.necks.head.linear.weight", "distillation.necks.head.linear.bias"}
    assert frozen == (held if switches.get("distill_detach_head") else set())


@pytest.mark.parametrize("aggregator", list(AGGREGATOR_OPTIONS))
@pytest.mark.parametrize(("switches", "motion"), [
    ({}, True), ({}, False), ({"attention": "none", "selection": False}, True), ({"selection": False}, True),
    ({"selection": False}, False), ({"distill_weight": 0.0}, True), ({"loss_on": "e2"}, True),
    ({"fuse_stage": "early"}, True), ({"fuse_stage": "late"}, True), ({"fuse_stage": "late", "fuse_norm": "bn"}, True),
    ({"share": "e2_streams"}, True), ({"share": "all"}, True), ({"share": "all"}, False),
    ({"share": "all", "fuse_stage": "early"}, True), ({"share": "e2_streams", "fuse_stage": "late"}, True),
    ({"share": "all", "fuse_stage": "late", "fuse_norm": "bn"}, True),
    ({"arch": "e1"}, False), ({"arch": "e1", "attention": "none"}, False),
    ({"arch": "e1", "distill_weight": 0.0}, False),
    ({"selection_apply": "input", "selection_renorm": True, "pool": "sum", "embedding_norm": "bn"}, True),
    ({"fuse_axis": "frame"}, True),
    ({"distill_detach_head": True}, True), (preset("meid-release"), True),
    (preset("meid-release") | {"fuse_stage": "early"}, True), (preset("meid-release") | {"share": "all"}, True),
    (preset("meid-release") | {"recompute": True}, True), (preset("meid-release") | {"arch": "e1"}, False),
], ids=str)  # fmt: skip
def test_gradients_reach_all_of_expert_two_and_nothing_of_expert_one(switches, motion, aggregator):
    model = ExpertTwo(spec(aggregator, motion=motion), **switches)
    trained = assert_gradients(model, motion)
    held = {name for name, _ in model.named_parameters() if name.startswith("one.")}
    if switches.get("distill_detach_head"):
        held |= {name for name, _ in model.named_parameters() if "necks.head" in name}
    assert trained == {name for name, _ in model.named_parameters()} - held


@pytest.mark.parametrize("stage", [1, 2])
def test_computing_again_gives_the_same_bits(stage):
    told = []
    for recompute in (False, True):
        torch.manual_seed(7)
        switches = preset("meid_one-release" if stage == 1 else "meid-release") | {"recompute": recompute}
        model = ExpertOne(spec(), **switches) if stage == 1 else ExpertTwo(spec(), **switches)
        outputs = model(drawn(4, FRAMES, DIM), None if stage == 1 else drawn(4, FRAMES, DIM, seed=2))
        loss = outputs.logits.square().mean() + outputs.penalty
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        told.append([loss, *gradients, *model.buffers()])
    assert len(told[0]) == len(told[1]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*told, strict=True))


# --- evaluation and precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meid", "meid-release"])
def test_scores_do_not_depend_on_the_rest_of_a_batch(name):
    model = ExpertTwo(spec(), **preset(name))
    stepped(model)
    model.eval()
    features, motion = drawn(6, FRAMES, DIM), drawn(6, FRAMES, DIM, seed=2)
    with torch.no_grad():
        whole = model(features, motion).logits
        assert torch.equal(whole, model(features, motion).logits)
        order = [4, 0, 5]
        torch.testing.assert_close(model(features[order], motion[order]).logits, whole[order], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(features[3:4], motion[3:4]).logits, whole[3:4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["meid", "meid-release"])
def test_half_precision_trains_and_what_must_be_float32_is(name):
    model = ExpertTwo(spec(), **preset(name))
    features, motion = drawn(4, FRAMES, DIM), drawn(4, FRAMES, DIM, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(features, motion)
        scored = model.eval()(features, motion)
        trained = ExpertOne(spec(), **preset(name.replace("meid", "meid_one")))(features)
    assert outputs.penalty.dtype == trained.penalty.dtype == scored.logits.dtype == torch.float32
    (outputs.logits.float().square().mean() + outputs.penalty).backward()
    for parameter in model.parameters():
        assert (parameter.grad is not None) is parameter.requires_grad
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())
    # Near to full precision, within eight bits.
    torch.testing.assert_close(scored.logits, model(features, motion).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_another_precision_are_taken(dtype):
    model = ExpertTwo(spec()).eval()
    features, motion = drawn(2, FRAMES, DIM).half(), drawn(2, FRAMES, DIM, seed=2).half()
    wanted = model(features.float(), motion.float()).logits
    torch.testing.assert_close(model(features.to(dtype), motion.to(dtype)).logits, wanted, rtol=0, atol=0)


# --- the first stage's weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_expert_two_begins_with_expert_one_but_for_its_necks(weight):
    first, second = (ExpertOne(spec("netvlad", motion=False), distill_weight=weight), ExpertTwo(spec("netvlad")))
    stepped(first, motion=False)
    own = {name: tensor.clone() for name, tensor in second.distillation.state_dict().items()}
    second.load_first_stage(first.state_dict())
    features, motion = drawn(2, FRAMES, DIM), drawn(2, FRAMES, DIM, seed=2)
    first.eval()
    assert torch.equal(second.one.eval()(features).logits, first(features).logits)
    assert all(torch.equal(tensor, own[name]) for name, tensor in second.distillation.state_dict().items())
    assert not any(parameter.requires_grad for parameter in second.one.parameters())
    # It has its own copy: more training of the first stage does not change the second.
    stepped(first, motion=False)
    second.train()
    before = second(features, motion).logits
    stepped(first, motion=False)
    assert not second.one.training and torch.equal(second(features, motion).logits, before)


@pytest.mark.parametrize("other", [
    lambda: Plain(spec()), lambda: ExpertOne(spec(), attention="none"), lambda: ExpertOne(spec(), attention_hidden=9),
    lambda: ExpertOne(spec("netvlad")), lambda: ExpertOne(spec(), embedding_norm="bn"), lambda: ExpertTwo(spec()),
])  # fmt: skip
def test_another_model_is_refused_as_first_stage(other):
    with pytest.raises(MeidbenchError, match="the first stage holds another model than expert one"):
        ExpertTwo(spec()).load_first_stage(other().state_dict())
    with pytest.raises(MeidbenchError, match="ExpertOne does not begin from another model"):
        ExpertOne(spec()).load_first_stage({})


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("switches", "motion", "said"), [
    ({"attention": "none"}, True, "selection=true takes expert one's attention"),
    ({"arch": "e1"}, True, "set motion.when=none"),
    ({"attention": "none", "selection": False, "pool": "weighted_mean"}, True, "divides by the attention"),
    ({"beta": 0.0}, True, "beta"), ({"distill_weight": -1.0}, True, "distill_weight"),
    ({"attention_hidden": 0}, True, "attention_hidden"), ({"neck_out": 3, "neck_mask": "output"}, True, "neck_mask"),
    *(({switch: "other"}, True, f"unknown {switch}")
      for switch in ("arch", "embedding", "attention", "attention_act", "pool", "selection_apply", "share", "fuse_axis",
                     "fuse_stage", "fuse_norm", "loss_on", "scores", "frozen_norm", "neck_mask", "neck_act",
                     "neck_norm", "distill_var", "distill_norm", "distill_medium")),
    ({"embedding_norm": "other"}, True, "unknown embedding_norm"),
    ({"selection_apply": "input"}, True, "set embedding_norm=bn, or selection_apply=output"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(switches, motion, said):
    with pytest.raises(MeidbenchError, match=said):
        ExpertTwo(spec(motion=motion), **switches)


def test_a_model_that_fixes_the_frames_is_refused_where_they_differ():
    for switches in ({"attention": "se_frames"}, {"fuse_axis": "frame"}):
        with pytest.raises(MeidbenchError, match=r"set frames\.train and frames\.test alike"):
            ExpertTwo(spec(frames=None), **switches)
    ExpertTwo(spec(frames=None))


@pytest.mark.parametrize("expected", [True, False])
def test_motion_must_come_where_it_was_said_to(expected):
    features = drawn(2, FRAMES, DIM)
    with pytest.raises(MeidbenchError, match=f"was made {'with' if expected else 'without'} motion"):
        ExpertTwo(spec(motion=expected))(features, None if expected else features)


def test_scores_of_two_experts_by_name():
    first, second = drawn(2, CLASSES), drawn(2, CLASSES, seed=2)
    torch.testing.assert_close(
        torch.sigmoid(joint_scores(first, second, "prob_mean")), (torch.sigmoid(first) + torch.sigmoid(second)) / 2
    )
