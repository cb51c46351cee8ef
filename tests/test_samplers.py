"""Samplers against exact expectations, chi-square tests and loops."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from meidbench.baselines.samplers import SAMPLERS, VideoSampler, class_probabilities, label_mask
from meidbench.errors import MeidbenchError
from meidbench.evaluation.ranking import Positives


def long_tailed(videos=400, seed=0):
    """Labels of 8 classes, 200 to 3 videos each, with overlaps; the last 20 videos have none, class 8 no video."""
    random = np.random.RandomState(seed)
    labels = np.zeros((videos, 9), bool)
    for c, count in enumerate([200, 120, 60, 30, 15, 8, 4, 3]):
        labels[random.choice(videos - 20, count, replace=False), c] = True
    return labels


LABELS = long_tailed()
COUNTS = LABELS.sum(axis=0)
CLASSWISE = [name for name in SAMPLERS if name not in ("instance", "repeat_factor")]


def probability(observed, expected):
    """The probability of counts that differ from the expected ones at least as much."""
    observed, expected = observed[expected > 0], expected[expected > 0]
    return chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("name", SAMPLERS)
def test_pairs_are_videos_with_the_class_they_were_drawn_for(name):
    sampler = SAMPLERS[name](LABELS, seed=1)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) > 0
    assert all(type(video) is int and type(label) is int for video, label in pairs)
    draws = sampler.draws()
    assert pairs == list(zip(draws.videos, draws.classes, strict=True))
    if name in CLASSWISE:
        assert LABELS[draws.videos, draws.classes].all()
    else:
        assert (draws.classes == -1).all()


def test_instance_shows_every_video_once():
    sampler = SAMPLERS["instance"](LABELS)
    assert sorted(sampler.draws().videos) == list(range(400))
    assert sampler.draws().videos.tolist() != list(range(400))
    rounds = SAMPLERS["instance"](LABELS, samples_per_epoch=1000).draws().videos
    assert sorted(rounds[:400]) == sorted(rounds[400:800]) == list(range(400))
    assert len(set(rounds[800:].tolist())) == 200


@pytest.mark.parametrize(
    ("name", "switches", "weights"),
    [
        ("class_balanced", {}, COUNTS > 0),
        ("square_root", {}, np.sqrt(COUNTS)),
        ("power", {"q": 1.0}, COUNTS),
        ("power", {"q": 0.3}, np.where(COUNTS > 0, COUNTS**0.3, 0)),
        ("power", {"q": 0.3, "replacement": False}, np.where(COUNTS > 0, COUNTS**0.3, 0)),
    ],
)
def test_classes_come_as_often_as_they_should(name, switches, weights):
    sampler = SAMPLERS[name](LABELS, samples_per_epoch=40_000, seed=2, **switches)
    classes = sampler.draws().classes
    assert probability(np.bincount(classes, minlength=9), weights.astype(float)) > 0.01
    assert not (classes == 8).any()


@pytest.mark.parametrize("epoch", [0, 3, 10, 15])
def test_progressively_balanced_goes_from_instance_to_balanced(epoch):
    sampler = SAMPLERS["progressively_balanced"](LABELS, epochs=10, samples_per_epoch=40_000)
    sampler.set_epoch(epoch)
    t = min(1, epoch / 10)
    expected = (1 - t) * COUNTS / COUNTS.sum() + t * (COUNTS > 0) / 8
    assert probability(np.bincount(sampler.draws().classes, minlength=9), expected) > 0.01


@pytest.mark.parametrize("replacement", [True, False])
def test_videos_of_a_class_come_alike(replacement):
    sampler = SAMPLERS["class_balanced"](LABELS, samples_per_epoch=40_000, replacement=replacement)
    draws = sampler.draws()
    for c in range(8):
        times = np.bincount(draws.videos[draws.classes == c], minlength=400)[LABELS[:, c]]
        if replacement:
            assert probability(times, np.ones(len(times))) > 0.001
            assert times.max() - times.min() > 1
        else:
            assert times.max() - times.min() <= 1


def test_repeat_factors_and_what_an_epoch_has():
    # Shares 200/400 ... 3/400; with t = 0.1 classes with a share below 0.1 repeat sqrt(0.1 / f).
    sampler = SAMPLERS["repeat_factor"](LABELS, threshold=0.1)
    expected = []
    for row in LABELS:
        factors = [max(1.0, (0.1 / (COUNTS[c] / 400)) ** 0.5) for c in np.flatnonzero(row)]
        expected.append(max(factors, default=1.0))
    expected = np.array(expected)
    assert sampler.repeat_factors() == pytest.approx(expected)
    times = np.zeros(400)
    lengths = set()
    for epoch in range(300):
        sampler.set_epoch(epoch)
        here = np.bincount(sampler.draws().videos, minlength=400)
        assert set((here - np.floor(expected)).tolist()) <= {0, 1}
        assert len(sampler) == here.sum()
        lengths.add(len(sampler))
        times += here
    assert len(lengths) > 5
    spread = np.sqrt((expected % 1) * (1 - expected % 1) / 300)
    assert (np.abs(times / 300 - expected) <= 5 * spread + 1e-9).all()
    assert len(SAMPLERS["repeat_factor"](LABELS, threshold=0.1, samples_per_epoch=1234)) == 1234


def test_class_aware_gives_three_of_each_class_in_turn():
    sampler = SAMPLERS["class_aware"](LABELS)
    draws = sampler.draws()
    assert len(draws) == 200 * 8 // 4
    turns = draws.classes[: len(draws) // 3 * 3].reshape(-1, 3)
    assert (turns == turns[:, :1]).all()
    rounds = turns[: len(turns) // 8 * 8, 0].reshape(-1, 8)
    assert (np.sort(rounds, axis=1) == np.arange(8)).all()
    assert len({tuple(order) for order in rounds.tolist()}) > 5
    for c in range(8):
        times = np.bincount(draws.videos[draws.classes == c], minlength=400)[LABELS[:, c]]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_parts_of_several_processes_are_the_sequence_of_one(name, world_size):
    whole = list(SAMPLERS[name](LABELS, samples_per_epoch=200))
    for drop in (False, True):
        parts = []
        for rank in range(world_size):
            sampler = SAMPLERS[name](LABELS, samples_per_epoch=200)
            sampler.shard(rank, world_size, drop=drop)
            parts.append(list(sampler))
            assert len(sampler) == len(parts[-1])
        read_in_turn = [pair for step in zip(*parts, strict=True) for pair in step]
        if drop:
            assert read_in_turn == whole[: 200 // world_size * world_size]
        else:
            assert read_in_turn[:200] == whole
            assert read_in_turn[200:] == whole[: -200 % world_size]


def test_more_processes_than_videos():
    sampler = SAMPLERS["instance"](LABELS[:2])
    sampler.shard(4, 5)
    assert len(list(sampler)) == 1
    sampler.shard(4, 5, drop=True)
    assert list(sampler) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_depends_on_seed_and_epoch_alone(name):
    def epoch_of(seed, epoch, before=()):
        sampler = SAMPLERS[name](LABELS, seed=seed)
        for earlier in before:
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(pickle.loads(pickle.dumps(sampler)))

    assert epoch_of(0, 3) == epoch_of(0, 3, before=(0, 1, 2)) == epoch_of(0, 3, before=(7,))
    assert epoch_of(0, 3) != epoch_of(0, 4)
    assert epoch_of(0, 3) != epoch_of(1, 3)


def draw_with_all_samplers():
    labels = np.arange(60).reshape(20, 3) % 4 == 0
    drawn = {}
    for name in SAMPLERS:
        sampler = SAMPLERS[name](labels, seed=5)
        sampler.set_epoch(2)
        drawn[name] = list(sampler)
    return drawn


def test_another_process_draws_the_same():
    code = "import test_samplers; print(test_samplers.draw_with_all_samplers())"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert draw_with_all_samplers() == ast.literal_eval(elsewhere.stdout)


def test_labels_as_pairs_are_those_of_the_matrix():
    rows, classes = np.nonzero(LABELS)
    pairs = Positives.from_pairs(rows, classes, *LABELS.shape)
    for name in SAMPLERS:
        assert list(SAMPLERS[name](pairs)) == list(SAMPLERS[name](LABELS))


# --- the label mask -------------------------------------------------------------------------------------------------


def test_the_mask_is_videolts_for_labels_that_were_drawn():
    targets = torch.tensor(LABELS[:100]).float()
    classes = torch.tensor([int(np.flatnonzero(row)[-1]) if row.any() else -1 for row in LABELS[:100]])
    mask = label_mask(targets, classes)
    for row, label, got in zip(targets, classes.tolist(), mask, strict=True):
        onehot = torch.eye(9)[label]
        assert torch.equal(got, 1 - (row - onehot) if label >= 0 else torch.ones(9))
    assert targets.sum(dim=1).max() > 2


def test_with_the_mask_each_draw_is_one_positive():
    sampler = SAMPLERS["class_balanced"](LABELS, samples_per_epoch=5000)
    draws = sampler.draws()
    targets = torch.tensor(LABELS[draws.videos]).float()
    left = targets * label_mask(targets, torch.tensor(draws.classes))
    assert (left.sum(dim=1) == 1).all()
    assert left.sum(dim=0).tolist() == np.bincount(draws.classes, minlength=9).tolist()


@pytest.mark.parametrize("real_split", ["charadeslt"], indirect=True)
def test_without_the_mask_class_balanced_sampling_leaves_charadeslt_imbalanced(real_split):
    labels = real_split.labels("train")
    counts = labels.sum(axis=0)
    assert counts.max() / counts.min() == pytest.approx(61.8, abs=0.03)
    # Drawing class c, then one of its videos, brings class k along in |c and k| / n_c of the draws.
    together = labels.T.astype(float) @ labels
    expected = (together / counts[:, None]).mean(axis=0)
    assert expected.max() / expected.min() == pytest.approx(26.54, abs=0.01)
    draws = SAMPLERS["class_balanced"](labels, samples_per_epoch=200_000).draws()
    shown = np.zeros(labels.shape[1])
    for start in range(0, len(draws), 20_000):
        shown += labels[draws.videos[start : start + 20_000]].sum(axis=0)
    assert shown / len(draws) == pytest.approx(expected, rel=0.15)
    # With the mask, the number of positives of a class is that of its draws.
    assert probability(np.bincount(draws.classes), np.ones(157)) > 0.01


def test_only_the_samplers_that_mask_in_their_protocol_say_so():
    masking = {name for name, kind in SAMPLERS.items() if kind.masks_other_labels}
    assert masking == {"class_balanced", "square_root", "power", "progressively_balanced"}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_to_draw_from_is_refused(name):
    with pytest.raises(MeidbenchError, match="no videos"):
        SAMPLERS[name](np.zeros((0, 3), bool))
    with pytest.raises(MeidbenchError, match=r"\(n, C\) of bool"):
        SAMPLERS[name](np.zeros((2, 3)))
    empty = np.zeros((2, 3), bool)
    if name in CLASSWISE:
        with pytest.raises(MeidbenchError, match="no video has a label"):
            SAMPLERS[name](empty)
    else:
        assert sorted(SAMPLERS[name](empty)) == [(0, -1), (1, -1)]


@pytest.mark.parametrize(
    ("name", "switches", "message"),
    [
        ("instance", {"samples_per_epoch": 0}, "samples_per_epoch must be"),
        ("instance", {"seed": -1}, "seed must be"),
        ("power", {"q": -0.5}, "q must be"),
        ("progressively_balanced", {"epochs": 0}, "epochs must be"),
        ("repeat_factor", {"threshold": 0}, "threshold must be"),
        ("class_aware", {"samples_per_class": 0}, "samples_per_class must be"),
        ("class_aware", {"reduce": 0}, "reduce must be"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(name, switches, message):
    with pytest.raises(MeidbenchError, match=message):
        SAMPLERS[name](LABELS, **switches)


@pytest.mark.parametrize("arguments", [(2, 2), (-1, 2), (0, 0)])
def test_ranks_that_make_no_sense_are_refused(arguments):
    with pytest.raises(MeidbenchError):
        SAMPLERS["instance"](LABELS).shard(*arguments)
    with pytest.raises(MeidbenchError, match="epoch must be"):
        SAMPLERS["instance"](LABELS).set_epoch(-1)


def test_large_powers_do_not_overflow():
    assert class_probabilities(np.array([1912, 44, 0]), 1000.0).tolist() == [1, 0, 0]
    assert issubclass(SAMPLERS["power"], VideoSampler)
