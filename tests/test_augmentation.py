"""Augmentations against loops over videos, hand-worked rows, and frames chosen by VideoLT's own code."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from meidbench.baselines import METHODS
from meidbench.baselines.augmentation import (
    AUGMENTATIONS,
    FrameStack,
    Mixup,
    compute_partner_shares,
    count_frames,
    mix,
    stack_frames,
)
from meidbench.baselines.running_ap import RunningAveragePrecision
from meidbench.errors import MeidbenchError

TARGETS = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 1],
        [0, 0, 1, 0, 1, 0],
        [0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 1],
    ]
).float()
CLASS_AP = torch.tensor([0.9, 0.5, 0.3, 0.2, 0.05, 0.01])
PARTNERS = torch.tensor([2, 0, 1, 5, 4, 3])
# The options of VideoLT's public code, from the recipes.
PUBLIC_CODE: dict[str, dict[str, object]] = {"none": {}}
for _method in ("mixup-compat", "framestack-compat"):
    _options = dict(METHODS[_method].tables["augmentation"])
    PUBLIC_CODE[_options.pop("name")] = _options


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(videos=6, frames=10, dim=1):
    """Frames whose values are their numbers: 1000 times the video, plus the frame."""
    video, frame = torch.meshgrid(torch.arange(videos), torch.arange(frames), indexing="ij")
    return (1000.0 * video + frame).unsqueeze(-1).repeat(1, 1, dim)


# Made once by running FrameStack of VideoLT's ops/Augment.py (commit 1732d5c) on frames numbered 10 times the video
# plus the frame, TARGETS and PARTNERS in place of its torch.randperm: for each video the frames that it took.
VIDEOLT_FRAMES = {
    10: [
        [20, 21, 23, 24, 26, 27, 29, 0, 4, 9],
        [0, 1, 3, 5, 7, 9, 10, 13, 16, 19],
        [10, 20, 21, 22, 23, 24, 25, 26, 27, 29],
        [50, 59, 30, 31, 32, 33, 35, 36, 37, 39],
        [40, 42, 44, 46, 49, 40, 42, 44, 46, 49],
        [30, 31, 33, 34, 36, 37, 39, 50, 54, 59],
    ],
    7: [
        [20, 22, 24, 26, 29, 0, 9],
        [0, 3, 6, 9, 10, 14, 19],
        [10, 20, 21, 23, 25, 27, 29],
        [50, 30, 31, 33, 35, 37, 39],
        [40, 44, 49, 40, 43, 46, 49],
        [30, 32, 34, 36, 39, 50, 59],
    ],
}
VIDEOLT_TARGETS = [
    [0.28, 0.0, 0.72, 0.0, 0.72, 0.0],
    [1.0, 0.358566, 0.0, 0.358566, 0.0, 0.358566],
    [0.178571, 0.178571, 0.821429, 0.178571, 0.821429, 0.178571],
    [0.236967, 1.0, 0.0, 0.236967, 0.0, 0.236967],
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0.236967, 1.0, 0.0, 0.236967, 0.0, 0.236967],
]
VIDEOLT_FRAMES_WITHOUT_AP = [[20, 24, 29, 0, 3, 6, 9], [0, 4, 9, 10, 13, 16, 19], [10, 14, 19, 20, 23, 26, 29]]


@pytest.fixture
def fixed_partners(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda size, **_: PARTNERS[:size])


@pytest.mark.parametrize("length", [10, 7])
def test_compatible_framestack_takes_videolts_frames(fixed_partners, length):
    augment = FrameStack(**PUBLIC_CODE["frame_stack"] | {"clip_length": length, "ratio": 1.0})
    features = torch.arange(60.0).view(6, 10, 1)
    mixed = augment(features, TARGETS, generator=generator(), epoch=1, class_ap=CLASS_AP)
    assert mixed.features[..., 0].int().tolist() == VIDEOLT_FRAMES[length]
    assert mixed.targets.numpy() == pytest.approx(np.array(VIDEOLT_TARGETS), abs=1e-6)
    assert not mixed.untouched.any()


def test_compatible_framestack_halves_where_nothing_is_known(fixed_partners):
    augment = FrameStack(**PUBLIC_CODE["frame_stack"] | {"clip_length": 7, "ratio": 1.0})
    features = torch.arange(60.0).view(6, 10, 1)
    mixed = augment(features, TARGETS, generator=generator(), epoch=1, class_ap=torch.zeros(6))
    assert mixed.features[:3, :, 0].int().tolist() == VIDEOLT_FRAMES_WITHOUT_AP
    assert torch.equal(mixed.targets, (TARGETS + TARGETS[PARTNERS]) / 2)


def test_mixup_is_videolts(fixed_partners):
    # mixup(frames, TARGETS, 0.3) of the same file gave 0.3 x_0 + 0.7 x_2 = 14, 15, 16.
    shares = torch.full((6,), 0.7)
    assert mix(torch.arange(60.0).view(6, 10, 1), PARTNERS, shares)[0, :3, 0].tolist() == pytest.approx([14, 15, 16])
    assert mix(TARGETS, PARTNERS, shares)[1].tolist() == pytest.approx([1, 0.3, 0, 0.3, 0, 0.3])


# --- FrameStack -----------------------------------------------------------------------------------------------------


def naive_framestack(features, targets, partners, length, ap, switches):
    """One video after the other, in Python numbers."""
    out, labels = [], []
    rounded = switches["rounding"] == "round"
    ease = []
    for row in targets.tolist():
        mine = [a for y, a in zip(row, ap.double().tolist(), strict=True) if y]
        if switches["ap_agg"] == "sum":
            ease.append(sum(mine) / len(row))
        else:
            ease.append({"mean": lambda m: sum(m) / len(m), "min": min}[switches["ap_agg"]](mine) if mine else 0.0)
    for i, j in enumerate(partners.tolist()):
        beta = 0.5 if ease[i] + ease[j] < 1e-5 else ease[i] / (ease[i] + ease[j])
        given = round(beta * length) if rounded else int(beta * length)
        frames = []
        for video, count in ((j, given), (i, length - given)):
            for k in range(count):
                place = 0 if count == 1 else k * (features.shape[1] - 1) / (count - 1)
                frames.append(features[video, round(place) if rounded else int(place + 1e-9)])
        share = given / length if switches["label_weight"] == "frames" else beta
        out.append(torch.stack(frames))
        labels.append((1 - share) * targets[i] + share * targets[j])
    return torch.stack(out), torch.stack(labels)


@pytest.mark.parametrize("ap_agg", ["mean", "sum", "min"])
@pytest.mark.parametrize("label_weight", ["frames", "beta"])
@pytest.mark.parametrize("rounding", ["round", "int"])
def test_framestack_is_the_loop_over_videos(rounding, label_weight, ap_agg):
    switches = {"rounding": rounding, "label_weight": label_weight, "ap_agg": ap_agg}
    random = np.random.RandomState(4)
    targets = torch.tensor(random.rand(16, 12) < 0.2).float()
    targets[3] = 0
    ap = torch.tensor(random.rand(12), dtype=torch.float32)
    for length, frames in ((11, 11), (16, 9), (5, 23)):
        features = numbered(16, frames)
        mixed = FrameStack(**switches, clip_length=length, ratio=1.0)(
            features, targets, generator=generator(2), epoch=3, class_ap=ap
        )
        expected, labels = naive_framestack(features, targets, mixed.partners, length, ap, switches)
        assert torch.equal(mixed.features, expected)
        assert mixed.targets.numpy() == pytest.approx(labels.numpy(), abs=1e-6)


def test_frames_sum_to_the_length_and_the_label_follows_them():
    random = np.random.RandomState(5)
    features, targets = numbered(40, 30), torch.eye(40)
    ap = torch.tensor(random.rand(40) ** 3, dtype=torch.float32)
    ap[:5] = 0
    mixed = FrameStack(ratio=1.0)(features, targets, generator=generator(), epoch=1, class_ap=ap)
    video = (mixed.features[..., 0] // 1000).long()
    own = torch.arange(40).unsqueeze(1)
    given = (video == mixed.partners.unsqueeze(1)).sum(dim=1)
    itself = mixed.partners == own[:, 0]
    assert torch.equal(given[~itself] + (video == own).sum(dim=1)[~itself], torch.full_like(given[~itself], 30))
    assert mixed.partner_shares[~itself].numpy() == pytest.approx(given[~itself].numpy() / 30)
    for i in torch.nonzero(~itself)[:, 0].tolist():
        assert mixed.targets[i, mixed.partners[i]].item() == pytest.approx(given[i].item() / 30)
        # The partner comes first, and each part is in the order of time.
        assert (video[i, : given[i]] == mixed.partners[i]).all()
        assert (mixed.features[i, : given[i], 0].diff() >= 0).all()
        assert (mixed.features[i, given[i] :, 0].diff() >= 0).all()
    assert {0, 30} <= set(given.tolist())


def test_what_is_known_worse_keeps_more_frames():
    shares = compute_partner_shares(TARGETS, PARTNERS, CLASS_AP)
    ease = [(row * CLASS_AP).sum() / row.sum() for row in TARGETS]
    for i, j in enumerate(PARTNERS.tolist()):
        assert (shares[i] > 0.5) == (ease[i] > ease[j])


def test_three_labels_are_not_three_times_as_easy():
    targets = torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]])
    partners, ap = torch.tensor([1, 0]), torch.full((4,), 0.4)
    assert compute_partner_shares(targets, partners, ap).tolist() == [0.5, 0.5]
    assert compute_partner_shares(targets, partners, ap, "min").tolist() == [0.5, 0.5]
    assert compute_partner_shares(targets, partners, ap, "sum").tolist() == pytest.approx([0.75, 0.25])


def test_rounding_does_not_rob_the_partner():
    shares = torch.tensor(np.random.RandomState(0).rand(20_000), dtype=torch.float32)
    exact = (shares * 60).mean().item()
    assert count_frames(shares, 60).float().mean().item() == pytest.approx(exact, abs=0.02)
    assert count_frames(shares, 60, "int").float().mean().item() == pytest.approx(exact - 0.5, abs=0.02)


@pytest.mark.parametrize(("ratio", "mixed_videos"), [(0.5, 3), (0.4, 2), (1.0, 6), (0.1, 0)])
def test_the_rest_of_the_batch_is_left_as_it_is(ratio, mixed_videos):
    features = numbered(6, 8)
    before = features.clone(), TARGETS.clone()
    mixed = FrameStack(ratio=ratio)(features, TARGETS, generator=generator(), epoch=1, class_ap=CLASS_AP)
    assert mixed.untouched.tolist() == [False] * mixed_videos + [True] * (6 - mixed_videos)
    assert torch.equal(mixed.features[mixed_videos:], features[mixed_videos:])
    assert torch.equal(mixed.targets[mixed_videos:], TARGETS[mixed_videos:])
    assert mixed.partners[mixed_videos:].tolist() == list(range(mixed_videos, 6))
    assert sorted(mixed.partners[:mixed_videos].tolist()) == list(range(mixed_videos))
    assert torch.equal(features, before[0])
    assert torch.equal(TARGETS, before[1])


def test_streams_are_stacked_alike():
    features = numbered(6, 8, dim=3)
    mixed = FrameStack(ratio=1.0)(
        features, TARGETS, generator=generator(), epoch=1, class_ap=CLASS_AP, streams=[-features[..., :2], features]
    )
    assert torch.equal(mixed.streams[0], -mixed.features[..., :2])
    assert torch.equal(mixed.streams[1], mixed.features)
    blended = Mixup()(features, TARGETS, generator=generator(), streams=[2 * features])
    assert torch.allclose(blended.streams[0], 2 * blended.features)


def test_nothing_is_stacked_before_there_is_an_average_precision():
    features = numbered(6, 8)
    for epoch in (0, 1, 2):
        mixed = FrameStack(warm_epoch=2)(features, TARGETS, generator=generator(), epoch=epoch)
        assert mixed.features is features
        assert mixed.untouched.all()
    with pytest.raises(MeidbenchError, match=r"each of 6 classes after epoch 2, got None in epoch 3"):
        FrameStack(warm_epoch=2)(features, TARGETS, generator=generator(), epoch=3)
    with pytest.raises(MeidbenchError, match=r"got \(5,\)"):
        FrameStack()(features, TARGETS, generator=generator(), epoch=1, class_ap=CLASS_AP[:5])


def test_another_length_beside_untouched_videos_is_refused():
    with pytest.raises(MeidbenchError, match="set clip_length=8 or ratio=1"):
        FrameStack(clip_length=5)(numbered(6, 8), TARGETS, generator=generator(), epoch=1, class_ap=CLASS_AP)


def test_half_precision_frames_are_copied_as_they_are():
    features = torch.rand(6, 8, 4, generator=generator()).half()
    stacked = stack_frames(features, PARTNERS, torch.tensor([0, 8, 3, 4, 5, 1]), 8)
    assert stacked.dtype == torch.float16
    assert torch.equal(stacked[0], features[0])
    assert torch.equal(stacked[1], features[0])


# --- Mixup ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_blends_frames_and_labels_alike(per_sample):
    features = torch.rand(6, 8, 4, generator=generator(1))
    mixed = Mixup(per_sample=per_sample)(features, TARGETS, generator=generator(3))
    assert sorted(mixed.partners.tolist()) == list(range(6))
    for i, (j, share) in enumerate(zip(mixed.partners.tolist(), mixed.partner_shares.tolist(), strict=True)):
        assert torch.allclose(mixed.features[i], (1 - share) * features[i] + share * features[j])
        assert torch.allclose(mixed.targets[i], (1 - share) * TARGETS[i] + share * TARGETS[j])
    assert len(set(mixed.partner_shares.tolist())) == (6 if per_sample else 1)
    assert not mixed.untouched.any()


def test_mixup_draws_from_the_beta_distribution():
    features, targets = torch.zeros(5000, 1, 1), torch.zeros(5000, 1)
    for alpha in (0.2, 1.0, 8.0):
        shares = Mixup(alpha=alpha, per_sample=True)(features, targets, generator=generator()).partner_shares
        assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generator_decides_everything(name):
    features = torch.rand(6, 8, 4, generator=generator(1))

    def run(seed):
        torch.manual_seed(np.random.randint(1000))  # noqa: NPY002 - the global generators must not matter
        mixed = AUGMENTATIONS[name]()(features, TARGETS, generator=generator(seed), epoch=1, class_ap=CLASS_AP)
        return mixed.features, mixed.targets

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True))
    different = any(not torch.equal(run(seed)[0], run(1)[0]) for seed in range(2, 8))
    assert different == (name != "none")


def test_other_values_of_the_videos_mix_as_the_labels_did():
    mixed = Mixup()(numbered(), TARGETS, generator=generator())
    assert torch.equal(mixed.mix(TARGETS), mixed.targets)
    plain = AUGMENTATIONS["none"]()(numbered(), TARGETS, generator=generator())
    assert torch.equal(plain.mix(TARGETS), TARGETS)
    assert torch.equal(plain.features, numbered())
    assert plain.untouched.all()


@pytest.mark.parametrize(
    ("name", "switches", "message"),
    [
        ("mixup", {"alpha": 0.0}, "alpha must be"),
        ("frame_stack", {"ratio": 0.0}, "1 for the whole batch"),
        ("frame_stack", {"ratio": 1.5}, "ratio"),
        ("frame_stack", {"clip_length": 0}, "clip_length must be"),
        ("frame_stack", {"warm_epoch": -1}, "warm_epoch must be"),
        ("frame_stack", {"rounding": "floor"}, "unknown rounding 'floor'; known: round, int"),
        ("frame_stack", {"label_weight": "x"}, "unknown label_weight"),
        ("frame_stack", {"ap_agg": "max"}, "unknown ap_agg"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(name, switches, message):
    with pytest.raises(MeidbenchError, match=message):
        AUGMENTATIONS[name](**switches)


@pytest.mark.parametrize(
    ("features", "targets", "streams"),
    [
        (torch.zeros(6, 8), TARGETS, []),
        (torch.zeros(5, 8, 1), TARGETS, []),
        (torch.zeros(6, 8, 1), TARGETS[0], []),
        (torch.zeros(6, 8, 1), TARGETS, [torch.zeros(6, 7, 1)]),
        (torch.zeros(6, 8, 1, dtype=torch.int64), TARGETS, []),
        (torch.zeros(6, 8, 1), TARGETS.long(), []),
    ],
)
def test_shapes_that_do_not_fit_are_refused(features, targets, streams):
    for kind in AUGMENTATIONS.values():
        with pytest.raises(MeidbenchError, match=r"expected features \(B, T, D\)|must be floating point"):
            kind()(features, targets, generator=generator(), streams=streams)


def test_compatible_switches_are_known_for_every_augmentation():
    assert PUBLIC_CODE.keys() == AUGMENTATIONS.keys()
    for name, switches in PUBLIC_CODE.items():
        AUGMENTATIONS[name](**switches)


# --- the running average precision ----------------------------------------------------------------------------------


def batches(count=12, size=50, classes=7, seed=0):
    random = np.random.RandomState(seed)
    for _ in range(count):
        targets = torch.tensor(random.rand(size, classes) < 0.1).float()
        targets[:, -1] = 0
        keep = torch.tensor(random.rand(size) < 0.5)
        yield torch.tensor(random.randn(size, classes), dtype=torch.float32) + targets, targets, keep


def test_average_precision_of_the_videos_that_count():
    running, scores, labels = RunningAveragePrecision(7), [], []
    running._MOST_PENDING = 120  # so that some batches wait and some do not
    assert running.class_ap is None
    for logits, targets, keep in batches():
        running.add(logits, targets, keep)
        scores.append(logits[keep].clone())
        labels.append(targets[keep].clone())
        logits.zero_()
        keep.fill_(True)
    got = running.finish_epoch()
    scores, labels = torch.cat(scores).numpy(), torch.cat(labels).numpy()
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(6)]
    assert got.tolist() == pytest.approx([*expected, 0], rel=1e-6)
    assert running.class_ap is got


def test_a_class_that_was_not_seen_keeps_its_value():
    running = RunningAveragePrecision(2)
    running.add(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert running.finish_epoch().tolist() == [0.5, 1.0]
    running.add(torch.tensor([[2.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert running.finish_epoch().tolist() == [1.0, 1.0]


def test_an_epoch_can_be_resumed_in_its_middle(tmp_path):
    straight, first = RunningAveragePrecision(7), RunningAveragePrecision(7)
    for running in (straight, first):
        for batch in batches(seed=1):
            running.add(*batch)
        running.finish_epoch()
    for index, batch in enumerate(batches(seed=2)):
        straight.add(*batch)
        if index < 5:
            first.add(*batch)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = RunningAveragePrecision(7)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(resumed.class_ap, first.class_ap)
    for index, batch in enumerate(batches(seed=2)):
        if index >= 5:
            resumed.add(*batch)
    assert torch.equal(resumed.finish_epoch(), straight.finish_epoch())
    with pytest.raises(MeidbenchError, match="of 3 classes"):
        RunningAveragePrecision(3).load_state_dict(first.state_dict())


def test_processes_that_gather_agree_with_one():
    whole, parts = RunningAveragePrecision(7), [RunningAveragePrecision(7) for _ in range(2)]
    for index, batch in enumerate(batches()):
        whole.add(*batch)
        parts[index % 3 % 2].add(*batch)
    states = [part.state_dict() for part in parts]

    def gather(tensor):
        key = "scores" if tensor.dtype == torch.float32 else "labels"
        return torch.cat([state[key] for state in states])

    expected = whole.finish_epoch()
    for part in parts:
        assert torch.equal(part.finish_epoch(gather), expected)


def test_what_cannot_be_ranked_is_refused():
    running = RunningAveragePrecision(3)
    with pytest.raises(MeidbenchError, match="no unmixed video"):
        running.finish_epoch()
    with pytest.raises(MeidbenchError, match=r"\(B, 3\)"):
        running.add(torch.zeros(2, 4), torch.zeros(2, 4))
    running.add(torch.tensor([[0.0, float("nan"), 0.0]]), torch.zeros(1, 3))
    with pytest.raises(MeidbenchError, match="NaN or infinite, of class 1"):
        running.finish_epoch()


def test_half_precision_logits_are_ranked():
    running = RunningAveragePrecision(2)
    running.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16), torch.eye(2))
    assert running.finish_epoch().tolist() == [1.0, 1.0]
