"""Losses against loops in float64, hand-worked rows, and values of their authors' code."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from meidbench.baselines import METHODS
from meidbench.baselines.losses import LOSSES, REDUCTIONS, bias_prior, effective_number_weights
from meidbench.baselines.samplers import label_mask
from meidbench.checks import in_range
from meidbench.errors import MeidbenchError
from meidbench.evaluation.evaluate import average_precision

COUNTS = [556, 210, 120, 44, 12, 9]
VIDEOS = 1000
HARD = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]).float()
SOFT = 0.3 * HARD + 0.7 * HARD[[2, 0, 3, 1]]
LOGITS = torch.tensor(np.random.RandomState(0).randn(4, 6) * 2, dtype=torch.float32)
NEEDED = {"eql": {"tail_up_to": 20}}
# The options of VideoLT's public code, from the recipes; the other losses are not in that code.
PUBLIC_CODE: dict[str, dict[str, object]] = {name: {} for name in LOSSES}
for _method in ("bce-compat", "focal-compat", "cb-compat", "ldam-compat", "eql-compat"):
    _options = dict(METHODS[_method].tables["loss"])
    PUBLIC_CODE[_options.pop("name")] = _options


def make(name, **switches):
    return LOSSES[name](COUNTS, VIDEOS, **{**NEEDED.get(name, {}), **switches})


# --- the definitions as loops over elements, in float64 -----------------------------------------------------------


def bce(z, y):
    return y * math.log1p(math.exp(-z)) + (1 - y) * math.log1p(math.exp(z))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def effective(n, beta):
    return (1 - beta) / (1 - beta**n)


def class_weights(beta=0.9999):
    raw = [effective(n, beta) for n in COUNTS]
    return [w * len(raw) / sum(raw) for w in raw], len(raw) / sum(raw)


def focal(z, y, gamma=1.0, soft="abs_error"):
    error = abs(y - sigmoid(z)) if soft == "abs_error" else 1 - math.exp(-bce(z, y))
    return error**gamma * bce(z, y)


def naive_focal(z, y, c, row, gamma=1.0, alpha=1.0, alpha_mode="scalar", soft="abs_error"):
    factor = alpha if alpha_mode == "scalar" else alpha * y + (1 - alpha) * (1 - y)
    return factor * focal(z, y, gamma, soft)


def naive_class_balanced(z, y, c, row, mode="by_class", base="bce", gamma=1.0):
    weights, scale = class_weights()
    labels = sum(row)
    if mode == "by_class":
        weight = weights[c]
    elif labels == 0:
        weight = 1.0
    elif mode == "average_w":
        weight = sum(s * w for s, w in zip(row, weights, strict=True)) / labels
    elif mode == "average_n":
        weight = scale * effective(sum(s * n for s, n in zip(row, COUNTS, strict=True)) / labels, 0.9999)
    else:
        weight = scale * effective(min(n for s, n in zip(row, COUNTS, strict=True) if s > 0), 0.9999)
    return weight * (bce(z, y) if base == "bce" else focal(z, y, gamma))


def naive_ldam(z, y, c, row, scale=30.0, margins="own"):
    margin = [0.5 * (min(COUNTS) / n) ** 0.25 for n in COUNTS]
    if margins == "own":
        return bce(scale * (z - margin[c] * y), y)
    total = sum(m * s for m, s in zip(margin, row, strict=True))
    return bce(scale * (z - total if y >= 1 else z), y)


def naive_distribution_balanced(z, y, c, row, map_mu=0.2, neg_scale=2.0):
    rate = sum(s / n for s, n in zip(row, COUNTS, strict=True))
    weight = (sigmoid(10 * (1 / COUNTS[c] / rate - map_mu)) if rate else 1) + 0.1
    shifted = z - math.log(VIDEOS / COUNTS[c] - 1) * 0.05 / neg_scale
    positive = (1 - sigmoid(shifted)) ** 2 * bce(shifted, 1) * weight
    negative = sigmoid(neg_scale * shifted) ** 2 * bce(neg_scale * shifted, 0) * weight / neg_scale
    return 2 * (y * positive + (1 - y) * negative)


def naive_asl(z, y, c, row, gamma_neg=4.0, gamma_pos=0.0, clip=0.05):
    p = sigmoid(z)
    q = max(p - clip, 0)
    return -(y * (1 - p) ** gamma_pos * math.log(p) + (1 - y) * q**gamma_neg * math.log(1 - q))


def naive_logit_adjusted(z, y, c, row, tau=1.0, prior="videos"):
    pi = COUNTS[c] / (VIDEOS if prior == "videos" else sum(COUNTS))
    return bce(z + tau * math.log(pi / (1 - pi)), y)


NAIVE = {
    "bce": lambda z, y, c, row: bce(z, y),
    "focal": naive_focal,
    "class_balanced": naive_class_balanced,
    "ldam": naive_ldam,
    "distribution_balanced": naive_distribution_balanced,
    "asl": naive_asl,
    "logit_adjusted": naive_logit_adjusted,
}
CASES = [
    ("bce", {}),
    ("focal", {}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5, "soft": "exp_bce"}),
    ("focal", {"gamma": 2.0, "alpha": 0.25, "alpha_mode": "balanced"}),
    *(("class_balanced", {"mode": mode}) for mode in ("by_class", "average_w", "average_n", "min_n")),
    ("class_balanced", {"mode": "average_w", "base": "focal", "gamma": 2.0}),
    ("ldam", {}),
    ("ldam", {"scale": 2.0, "margins": "summed"}),
    ("distribution_balanced", {}),
    ("distribution_balanced", {"map_mu": 0.3, "neg_scale": 5.0}),
    ("asl", {}),
    ("asl", {"gamma_pos": 1.0, "clip": 0.0, "gamma_neg": 2.0}),
    ("logit_adjusted", {}),
    ("logit_adjusted", {"tau": 0.5, "prior": "labels"}),
]
NAMES = [f"{name}-{'-'.join(map(str, switches.values()))}" for name, switches in CASES]
LABELS = {"hard": HARD, "soft": SOFT, "empty": HARD * torch.tensor([[0.0], [1], [0], [1]])}


def naive_elements(name, switches, targets):
    # The input of the loss: its own numbers in float32, read exactly.
    return [
        [NAIVE[name](z, y, c, row, **switches) for c, (z, y) in enumerate(zip(logits, row, strict=True))]
        for logits, row in zip(LOGITS.double().tolist(), targets.double().tolist(), strict=True)
    ]


def naive_reduction(elements, targets, reduction, mask):
    total, labels = 0.0, 0.0
    for b, row in enumerate(elements):
        for c, element in enumerate(row):
            weight = 1.0 if mask is None else mask[b, c].item()
            total += weight * element
            labels += weight * targets[b, c].item()
    return (
        total / {"mean": targets.numel(), "sum_classes_mean_batch": len(targets), "num_pos": max(labels, 1)}[reduction]
    )


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("name", "switches"), CASES, ids=NAMES)
def test_the_definition_as_a_loop(name, switches, labels):
    elements = naive_elements(name, switches, LABELS[labels])
    some = torch.tensor(np.random.RandomState(3).randint(0, 2, (4, 6))).float()
    for reduction in REDUCTIONS:
        loss = make(name, **switches, reduction=reduction)
        for mask in (None, some, 0.5 * some):
            expected = naive_reduction(elements, LABELS[labels], reduction, mask)
            assert loss(LOGITS, LABELS[labels], mask).item() == pytest.approx(expected, rel=2e-5)
            exact = loss(LOGITS.double(), LABELS[labels].double(), mask)
            assert exact.dtype == torch.float64
            assert exact.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("name", "switches"), [*((n, s) for n, s in CASES if n != "asl"), ("eql", {}), ("asl", {"detach_focus": False})]
)
def test_gradients_are_those_of_finite_differences(name, switches):
    loss, targets = make(name, **switches), torch.cat(list(LABELS.values())).double()
    logits = (LOGITS / 3).repeat(3, 1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits,), fast_mode=True)


# --- values of other people's code -------------------------------------------------------------------------------
# Made once by running that code on LOGITS, HARD, SOFT and COUNTS, with .cuda() doing nothing: VideoLT's ops/losses.py
# (commit 1732d5c), Alibaba-MIIL/ASL (8c9e0bd), wutong16/DistributionBalancedLoss (14460d0), kaidic/LDAM-DRW (2536330).

VIDEOLT = {
    # (loss, epoch): mean for hard labels and soft ones, then the mean over videos of the sum over classes.
    ("bce", 0): (1.0680900812149048, 1.1977661848068237, 6.40854024887085, 7.186596393585205),
    ("focal", 0): (0.8406481146812439, 0.9156058430671692, 5.043888568878174, 5.493635177612305),
    ("class_balanced", 0): (0.93602055311203, 1.2438457012176514, 5.616123676300049, 7.463074684143066),
    ("ldam", 0): (26.57445526123047, 29.2734317779541, 159.44671630859375, 175.64059448242188),
    ("ldam", 50): (21.897417068481445, 30.740053176879883, 131.38449096679688, 184.44032287597656),
}


@pytest.mark.parametrize(("name", "epoch"), VIDEOLT)
def test_the_compatible_forms_are_videolts(name, epoch):
    expected = VIDEOLT[name, epoch]
    got = []
    for reduction in ("mean", "sum_classes_mean_batch"):
        loss = make(name, **PUBLIC_CODE[name], reduction=reduction)
        loss.set_epoch(epoch)
        got += [loss(LOGITS, HARD).item(), loss(LOGITS, SOFT).item()]
    assert got == pytest.approx(expected, rel=1e-6)


def test_the_mask_counts_as_in_videolts_class_balanced_sampling():
    mask = label_mask(HARD, torch.tensor([0, 3, 4, 1]))
    loss = make("bce", reduction="sum_classes_mean_batch")
    assert loss(LOGITS, HARD, mask).item() == pytest.approx(6.0602617263793945, rel=1e-6)
    assert loss(LOGITS, SOFT, mask).item() == pytest.approx(6.226945400238037, rel=1e-6)


def test_eql_weighs_as_videolt_does():
    # gamma 0.5, classes of up to 100 videos; its torch.rand was replaced by RandomState(1).rand(4, 6).
    dropped = torch.tensor(np.random.RandomState(1).rand(4, 6) >= 0.5)
    loss = make("eql", tail_up_to=100)
    for targets, expected in ((HARD, 0.928866446018219), (SOFT, 1.0197317600250244)):
        elements = loss.weights(targets, dropped) * make("bce").elements(LOGITS, targets)
        assert elements.mean().item() == pytest.approx(expected, rel=1e-6)


def test_distribution_balanced_is_its_authors():
    for switches, expected in (({"map_mu": 0.3, "neg_scale": 5.0}, 1.4940485954284668), ({}, 1.440793514251709)):
        assert make("distribution_balanced", **switches)(LOGITS, HARD).item() == pytest.approx(expected, rel=1e-6)
    without = HARD.clone()
    without[0] = 0
    assert make("distribution_balanced")(LOGITS, without).item() == pytest.approx(1.7642040252685547, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("by_class", 0.036242078989744186),
        ("average_w", 0.015050343237817287),
        ("average_n", 0.005671026185154915),
        ("min_n", 0.031163133680820465),
    ],
)
def test_class_balanced_modes_are_those_of_distribution_balanced_code(mode, expected):
    # There the weights keep their scale; here they are 1 on average. It computes 1 - beta^n in float32, which costs
    # it four digits.
    scale = class_weights()[1]
    got = make("class_balanced", mode=mode)(LOGITS, HARD).item() / scale
    assert got == pytest.approx(expected, rel=5e-4)


def test_asl_is_its_authors():
    # Which sums over the batch of four, too.
    assert make("asl")(LOGITS, HARD).item() * 4 == pytest.approx(10.739028930664062, rel=1e-6)
    assert make("asl", gamma_pos=1.0)(LOGITS, HARD).item() * 4 == pytest.approx(9.343866348266602, rel=1e-6)
    gradients = {
        True: [-0.0008135664975, 0.09971477091, 0.290877074, 0.1404348761, 0.2290410846, 3.530121603e-06],
        False: [-0.001615418354, 0.328915149, 0.7190702558, 0.2427198589, 0.418435365, 1.711433381e-05],
    }
    for detach, expected in gradients.items():
        logits = LOGITS.clone().requires_grad_()
        make("asl", gamma_pos=1.0, detach_focus=detach)(logits, HARD).backward()
        assert (logits.grad[0] * 4).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_margins_are_those_of_the_ldam_papers_code():
    # Softmax cross-entropy of the cosine-like logits LOGITS / 10, one class per sample.
    classes = torch.tensor([0, 3, 4, 5])
    moved = make("ldam").with_margins(LOGITS / 10, functional.one_hot(classes, 6).float())
    assert functional.cross_entropy(30 * moved, classes).item() == pytest.approx(14.852967262268066, rel=1e-6)


# --- errors of the public code, and properties of every loss ------------------------------------------------------


def test_ldam_takes_each_label_its_own_margin():
    # n = 1, 16, 81, 256, 625: margins 1/2, 1/4, 1/6, 1/8, 1/10. A video with the last four labels, all logits 0.
    loss = LOSSES["ldam"]([1, 16, 81, 256, 625], 1000, scale=1.0, reduction="sum_classes_mean_batch")
    targets = torch.tensor([[0.0, 1, 1, 1, 1]])
    assert loss.with_margins(torch.zeros(1, 5), targets)[0].tolist() == pytest.approx(
        [0, -1 / 4, -1 / 6, -1 / 8, -1 / 10]
    )
    by_hand = math.log(2) + sum(math.log(1 + math.exp(m)) for m in (1 / 4, 1 / 6, 1 / 8, 1 / 10))
    assert loss(torch.zeros(1, 5), targets).item() == pytest.approx(by_hand, rel=1e-6)
    summed = LOSSES["ldam"]([1, 16, 81, 256, 625], 1000, scale=1.0, margins="summed")
    assert summed.with_margins(torch.zeros(1, 5), targets)[0].tolist() == pytest.approx([0] + 4 * [-77 / 120])


@pytest.mark.parametrize("switches", [{}, PUBLIC_CODE["ldam"]])
def test_deferred_weights_come_and_stay(switches):
    loss = make("ldam", **{"drw_epoch": 3, **switches})
    start = loss.drw_epoch
    values = {}
    for epoch in (0, start - 1, start, 2 * start - 1, 2 * start, 5 * start):
        loss.set_epoch(epoch)
        values[epoch] = loss(LOGITS, HARD).item()
    assert values[0] == values[start - 1]
    assert values[start] != values[0]
    assert values[start] == values[2 * start - 1] == values[2 * start] == values[5 * start]
    never = make("ldam", drw_epoch=None, margins=loss.margins)
    never.set_epoch(1000)
    assert never(LOGITS, HARD).item() == values[0]


def dropped_share(loss, steps=60):
    """The share of rare negatives with weight 0; head and positives must keep theirs."""
    dropped, tail = 0, loss.tail.bool()
    zeros, targets = torch.zeros(64, 6), HARD.repeat(16, 1)
    kept_entropy = make("bce").elements(zeros[:1], targets[:1])[0, 0]
    for step in range(steps):
        loss.set_step(step)
        left = loss.elements(zeros, targets)
        assert (left[:, ~tail] == kept_entropy).all()
        assert (left[targets == 1] == kept_entropy).all()
        dropped += (left[:, tail][targets[:, tail] == 0] == 0).sum().item()
    negatives = steps * (targets[:, tail] == 0).sum().item()
    return dropped / negatives, negatives


@pytest.mark.parametrize(("switches", "rate"), [({}, 0.9), (PUBLIC_CODE["eql"], 0.00176)])
def test_eql_drops_what_gamma_says(switches, rate):
    share, negatives = dropped_share(make("eql", **switches))
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / negatives)


def test_eql_of_the_public_code_is_cross_entropy_and_the_faithful_one_is_not():
    logits, targets = LOGITS.repeat(64, 1), HARD.repeat(64, 1)
    plain = make("bce")(logits, targets).item()
    assert make("eql", **PUBLIC_CODE["eql"])(logits, targets).item() == pytest.approx(plain, rel=3e-3)
    assert make("eql")(logits, targets).item() < 0.9 * plain


def test_eql_draws_by_seed_and_step_alone():
    def value(seed, step):
        loss = make("eql", seed=seed)
        loss.set_step(step)
        return loss(LOGITS, HARD).item()

    assert value(0, 7) == value(0, 7)
    assert len({value(0, step) for step in range(20)}) > 5
    assert [value(1, step) for step in range(20)] != [value(0, step) for step in range(20)]


def test_eql_of_two_processes_drops_what_one_does():
    whole, part = make("eql"), make("eql")
    whole.set_step(4)
    together = whole.elements(LOGITS, HARD)
    for rank in (0, 1):
        part.set_step(4, rank, 2)
        assert torch.equal(part.elements(LOGITS[rank::2], HARD[rank::2]), together[rank::2])


def test_rare_classes_of_eql_by_count_or_by_share():
    assert make("eql", tail_up_to=44).tail.tolist() == [0, 0, 0, 1, 1, 1]
    assert LOSSES["eql"](COUNTS, VIDEOS, tail_below=0.012).tail.tolist() == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("name", LOSSES)
def test_the_mask_changes_the_loss_and_stops_the_gradient(name):
    loss = make(name)
    mask = label_mask(HARD, torch.tensor([0, 3, 4, 1]))
    logits = LOGITS.clone().requires_grad_()
    value = loss(logits, HARD, mask)
    assert value.item() != loss(LOGITS, HARD).item()
    value.backward()
    assert (logits.grad[mask == 0] == 0).all()
    assert loss(LOGITS, HARD, torch.zeros(4, 6)).item() == 0
    assert loss(LOGITS, HARD, torch.ones(4, 6)).item() == loss(LOGITS, HARD).item()


@pytest.mark.parametrize("reduction", ["mean", "sum_classes_mean_batch"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "eql"])
def test_halves_of_a_batch_average_to_the_whole(name, reduction):
    loss = make(name, reduction=reduction)
    mask = label_mask(HARD, torch.tensor([0, 3, 4, 1]))
    halves = [loss(LOGITS[part], HARD[part], mask[part]) for part in (slice(0, 2), slice(2, 4))]
    assert (sum(halves) / 2).item() == pytest.approx(loss(LOGITS, HARD, mask).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name, dtype):
    loss = make(name)
    logits, targets = LOGITS.to(dtype), SOFT.to(dtype)
    value = loss(logits, targets)
    assert value.dtype == torch.float32
    assert value.item() == loss(logits.float(), targets.float()).item()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_that_is_passed_in_changes_and_extremes_stay_finite(name):
    for switches in ({}, PUBLIC_CODE[name]):
        loss = make(name, **switches)
        loss.set_epoch(60)
        for scale in (1.0, 50.0, 1e4):
            for targets in (HARD, SOFT, torch.zeros(4, 6), torch.ones(4, 6)):
                logits = (LOGITS * scale).requires_grad_()
                before = logits.detach().clone(), targets.clone()
                value = loss(logits, targets)
                value.backward()
                assert torch.isfinite(value)
                assert value >= 0
                assert torch.isfinite(logits.grad).all()
                assert torch.equal(logits, before[0])
                assert torch.equal(targets, before[1])


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focus_has_a_finite_gradient_where_there_is_no_error(gamma):
    logits = torch.zeros(1, 6, requires_grad=True)
    make("focal", gamma=gamma)(logits, torch.full((1, 6), 0.5)).backward()
    assert torch.isfinite(logits.grad).all()


def test_soft_focus_is_nothing_where_there_is_no_error():
    half = torch.full((1, 6), 0.5)
    assert make("focal")(torch.zeros(1, 6), half).item() == pytest.approx(0, abs=1e-9)
    assert make("focal", soft="exp_bce")(torch.zeros(1, 6), half).item() == pytest.approx(0.5 * math.log(2))


def test_class_balanced_weights_of_videolt_span_what_they_do():
    weights = effective_number_weights(np.array([44, 1912]))
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx((1 - 0.9999**1912) / (1 - 0.9999**44))
    assert effective_number_weights(np.array(COUNTS), beta=0).tolist() == [1] * 6


def test_adjusting_afterwards_moves_the_best_class_but_no_average_precision():
    random = np.random.RandomState(0)
    logits = torch.tensor(random.randn(60, 6))
    labels = random.rand(60, 6) < 0.3
    adjusted = make("logit_adjusted").adjust(logits)
    np.testing.assert_array_equal(
        average_precision(adjusted.numpy(), labels), average_precision(logits.numpy(), labels)
    )
    assert (adjusted.argmax(dim=1) != logits.argmax(dim=1)).any()


def test_the_prior_bias_gives_the_share():
    shares = np.array([0.001, 0.5, 0.9])
    assert torch.sigmoid(bias_prior(shares)).tolist() == pytest.approx(shares.tolist(), rel=1e-5)
    assert bias_prior(0.01).item() == pytest.approx(-math.log(0.99 / 0.01))
    for wrong in (0, 1, np.array([0.5, 1.5]), float("nan")):
        with pytest.raises(MeidbenchError, match="between 0 and 1"):
            bias_prior(wrong)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_move_with_their_device_but_keep_no_state(name):
    loss = make(name)
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())


NEEDING = ["class_balanced", "ldam", "distribution_balanced", "logit_adjusted"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_without_training_videos_is_refused_where_it_matters(name):
    if name in NEEDING:
        with pytest.raises(MeidbenchError, match=r"class 1, 3 has none.*such as BCE"):
            LOSSES[name]([5, 0, 2, 0], 6)
    else:
        value = LOSSES[name]([5, 0, 2, 0], 6, **NEEDED.get(name, {}))(torch.zeros(1, 4), torch.zeros(1, 4))
        assert torch.isfinite(value)


@pytest.mark.parametrize(
    ("name", "switches", "message"),
    [
        ("bce", {"reduction": "sum"}, r"unknown reduction 'sum' \(did you mean sum_classes_mean_batch\?\)"),
        ("focal", {"gamma": -1}, "gamma must be a number at least 0"),
        ("focal", {"gamma": True}, "gamma must be"),
        ("focal", {"alpha": 2.0, "alpha_mode": "balanced"}, r"alpha must be a number in \[0, 1\]"),
        ("focal", {"soft": "x"}, "unknown soft"),
        ("class_balanced", {"beta": 1.0}, r"in \[0, 1\)"),
        ("class_balanced", {"mode": "x"}, "unknown mode"),
        ("class_balanced", {"base": "x"}, "unknown base"),
        ("ldam", {"scale": 0}, "scale must be"),
        ("ldam", {"margins": "x"}, "unknown margins"),
        ("ldam", {"drw_epoch": -1}, "drw_epoch must be a whole number"),
        ("ldam", {"max_margin": float("nan")}, "max_margin must be"),
        ("eql", {"gamma": 1.0}, r"gamma must be a number in \[0, 1\)"),
        ("eql", {"tail_up_to": None}, "either tail_up_to"),
        ("eql", {"tail_below": 0.1}, "either tail_up_to"),
        ("eql", {"seed": -1}, "seed must be"),
        ("distribution_balanced", {"neg_scale": 0}, "neg_scale must be"),
        ("asl", {"clip": 1.0}, "clip must be"),
        ("asl", {"detach_focus": 1}, "detach_focus must be True or False"),
        ("logit_adjusted", {"prior": "x"}, "unknown prior"),
    ],
)
def test_switches_that_make_no_sense_are_refused(name, switches, message):
    with pytest.raises(MeidbenchError, match=message):
        make(name, **switches)


@pytest.mark.parametrize("name", ["distribution_balanced", "logit_adjusted"])
def test_a_class_that_every_video_has_is_refused_where_it_matters(name):
    with pytest.raises(MeidbenchError, match="class 0 "):
        LOSSES[name]([6, 2], 6)


@pytest.mark.parametrize(
    ("counts", "videos", "message"),
    [
        ([1, 7, -2], 6, r"class 1 \(7\), 2 \(-2\)"),
        ([], 6, "one per class"),
        ([[1]], 6, "one per class"),
        ([1.5], 6, "whole numbers"),
        ([1], 0, "num_videos must be"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, videos, message):
    with pytest.raises(MeidbenchError, match=message):
        LOSSES["bce"](counts, videos)


@pytest.mark.parametrize(
    ("logits", "targets", "mask"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 5), None),
        (torch.zeros(0, 6), torch.zeros(0, 6), None),
        (torch.zeros(6), torch.zeros(6), None),
        (torch.zeros(2, 6), torch.zeros(1, 6), None),
        (torch.zeros(2, 6), torch.zeros(2, 6), torch.zeros(2, 1)),
        (torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6), None),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, targets, mask):
    with pytest.raises(MeidbenchError, match=r"expects \(B, 6\)|floating point"):
        make("bce")(logits, targets, mask)


@pytest.mark.parametrize("arguments", [(-1,), (0, 2, 2), (0, 0, 0), (0.5,)])
def test_steps_that_make_no_sense_are_refused(arguments):
    with pytest.raises(MeidbenchError):
        make("eql").set_step(*arguments)
    with pytest.raises(MeidbenchError, match="epoch must be"):
        make("ldam").set_epoch(-1)


def test_compatible_switches_are_known_for_every_loss():
    assert PUBLIC_CODE.keys() == LOSSES.keys()
    for name, switches in PUBLIC_CODE.items():
        assert make(name, **switches).num_classes == 6


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(0.5), "0.5", None, 1j, np.nan, np.inf, 10**400])
def test_a_number_in_a_range_is_a_finite_real_number(value):
    with pytest.raises(MeidbenchError, match="share must be a number at least 0"):
        in_range("share", value, 0)


def test_numbers_of_numpy_are_numbers():
    assert [in_range("share", kind(1), 0, 1) for kind in (int, float, np.float16, np.float32, np.int8)] == [1.0] * 5
