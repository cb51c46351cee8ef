"""The motion stream: rows computed by hand, a plain loop, and the same bits for a video alone and among others."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meidbench.errors import FeatureError
from meidbench.loading.motion import Motion, independent_seed, motion_rows

WIDTH = 5
RELEASED = Motion(same_index=False, static="sum", release_bug=True, static_row="drawn")
DRAWN = Motion(static_row="drawn")


def by_loop(rows, motion):
    """Eq 10, row by row in float64."""
    video = [row.astype(np.float64) for row in rows]
    total = sum(video[1:], video[0])
    static = {"mean": total / len(video), "sum": total, "none": np.zeros(rows.shape[1])}[motion.static]
    made = [video[turn + 1] - video[turn] for turn in range(len(video) - 1)]
    if motion.release_bug and made:
        made[0] = -video[0]
    return np.stack([*made, static])


def taken_by_loop(rows, motion, indices):
    """The rows of X_M that are taken, one by one in float64."""
    stream, last = by_loop(rows, motion), len(rows) - 1
    if motion.static_row == "drawn":
        return np.stack([stream[index] for index in indices])
    nothing = np.zeros(rows.shape[1])
    before = [stream[min(index, last - 1)] if last else nothing for index in indices[:-1]]
    return np.stack([*before, stream[last]])


def make_rows(counts, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((sum(counts), WIDTH)).astype(np.float32))


def test_equation_10_worked_out_by_hand():
    # Four rows: three differences, and the mean of (1, 3, 2, 6) and (0, 4, 8, -4).
    video = torch.tensor([[1.0, 0.0], [3.0, 4.0], [2.0, 8.0], [6.0, -4.0]])
    assert motion_rows(video).tolist() == [[2, 4], [-1, 4], [4, -12], [3, 2]]
    assert motion_rows(video, Motion(static="sum")).tolist() == [[2, 4], [-1, 4], [4, -12], [12, 8]]
    assert motion_rows(video, Motion(static="none")).tolist() == [[2, 4], [-1, 4], [4, -12], [0, 0]]
    # The first row of the release is the first video row, negated.
    assert motion_rows(video, RELEASED).tolist() == [[-1, 0], [-1, 4], [4, -12], [12, 8]]


def test_rows_that_are_taken_worked_out_by_hand():
    video = torch.tensor([[1.0], [3.0], [2.0], [6.0]])
    assert motion_rows(video, DRAWN, indices=[[3, 0, 0, 2, 3]]).tolist() == [[3], [2], [2], [4], [3]]
    # The static row is the last one alone; the last stored row has the difference of the row before it.
    assert motion_rows(video, indices=[[3, 0, 0, 2, 3]]).tolist() == [[4], [2], [2], [4], [3]]
    assert motion_rows(video, indices=[[0, 1]]).tolist() == [[2], [3]]
    assert motion_rows(video, indices=[[2]]).tolist() == [[3]]
    # Two rows: the difference before the last row is the first one, which the release writes as -x_1.
    bug = Motion(static="sum", release_bug=True)
    assert motion_rows(video[:2], bug, indices=[[0, 1, 1]]).tolist() == [[-1], [-1], [4]]
    assert motion_rows(video, RELEASED, indices=[[3, 0, 0, 2]]).tolist() == [[12], [-1], [-1], [4]]


@pytest.mark.parametrize(("motion", "static"), [(Motion(), 7), (Motion(static="none"), 0), (RELEASED, 7)])
def test_a_video_of_one_row_has_the_static_row_alone(motion, static):
    assert motion_rows(torch.full((1, 2), 7.0), motion).tolist() == [[static] * 2]
    first = static if motion.static_row == "drawn" else 0
    made = motion_rows(torch.full((1, 2), 7.0), motion, indices=[[0, 0]])
    assert made.tolist() == [[first] * 2, [static] * 2]


def test_the_release_is_the_sum_that_overwrites_its_first_row():
    # As in a program whose sum is the first row itself, not a copy of it.
    rows = make_rows([9])
    buffer, total = rows.clone().numpy(), None
    written = []
    for turn in range(1, len(buffer)):
        total = buffer[0]
        total += buffer[turn]
        written.append(buffer[turn] - buffer[turn - 1])
    made = motion_rows(rows, RELEASED).numpy()
    np.testing.assert_array_equal(made[:-1], np.stack(written))
    np.testing.assert_allclose(made[-1], total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made[0], -rows[0].numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    motion=st.sampled_from(
        [Motion(), Motion(static="sum"), Motion(static="none"), Motion(static="sum", release_bug=True), DRAWN, RELEASED]
    ),
    frames=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_videos_of_any_length_are_the_plain_loop_alone_and_together(counts, motion, frames, seed):
    rows = make_rows(counts, seed)
    videos = rows.split(counts)
    indices = [np.random.default_rng(seed).integers(count, size=frames) for count in counts]
    together = motion_rows(rows, motion, counts=counts)
    taken = motion_rows(rows, motion, counts=counts, indices=indices).split(frames)
    for video, all_of_it, some, chosen in zip(videos, together.split(counts), taken, indices, strict=True):
        alone = motion_rows(video.clone(), motion)
        np.testing.assert_allclose(alone.numpy(), by_loop(video.numpy(), motion), rtol=1e-5, atol=1e-5)
        assert torch.equal(alone, all_of_it)
        np.testing.assert_allclose(some.numpy(), taken_by_loop(video.numpy(), motion, chosen), rtol=1e-5, atol=1e-5)
        assert torch.equal(some, motion_rows(video, motion, indices=[chosen]))
        assert torch.equal(some, motion_rows(video, motion, indices=[chosen], taken=video[torch.from_numpy(chosen)]))
        if motion.static_row == "drawn":
            assert torch.equal(some, alone[torch.from_numpy(chosen)])


@pytest.mark.parametrize("count", [150, 200])
@pytest.mark.parametrize("width", [1, 7, 2048])
def test_the_bits_do_not_depend_on_the_other_videos(count, width):
    rows = torch.from_numpy(np.random.default_rng(count).random((3 * count, width), np.float32))
    alone = torch.cat([motion_rows(video.clone()) for video in rows.split(count)])
    assert torch.equal(motion_rows(rows, counts=[count] * 3), alone)
    # Beside a shorter video, sums are computed in another way.
    uneven = motion_rows(torch.cat([rows[:4], rows]), counts=[4] + [count] * 3)
    assert torch.equal(uneven[4:], alone)


def test_a_place_for_the_result_and_rows_at_hand_are_used():
    rows = make_rows([3, 4])
    indices = np.array([[0, 2], [1, 3]])
    out = torch.full((4, WIDTH), torch.nan)
    expected = motion_rows(rows, counts=[3, 4], indices=indices)
    made = motion_rows(rows, counts=[3, 4], indices=indices, taken=rows[[0, 2, 4, 6]], out=out)
    assert made.data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)
    whole = torch.empty_like(rows)
    assert motion_rows(rows, counts=[3, 4], out=whole).data_ptr() == whole.data_ptr()


def test_numbers_that_are_none_stay_in_their_video():
    rows = torch.ones(6, 2)
    rows[1, 0] = torch.inf
    rows[2, 0] = torch.nan
    made = motion_rows(rows, counts=[3, 3])
    assert made[:3].isfinite().all(dim=0).tolist() == [False, True]
    assert made[3:].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_independent_rows_have_a_seed_of_their_own():
    seeds = [0, 1, 2**32 + 1, 2**140]
    assert len({independent_seed(seed) for seed in seeds} | set(seeds)) == 8
    assert independent_seed(5) == independent_seed(5) >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"when": "before"}, "unknown when of motion 'before'; known: full, sampled"),
        ({"static": "max"}, "unknown static of motion 'max'; known: mean, sum, none"),
        ({"static_row": "first"}, "unknown static_row of motion 'first'; known: last, drawn"),
        ({"same_index": 1}, "same_index of motion must be True or False, got 1"),
        ({"release_bug": "yes"}, "release_bug of motion must be True or False, got 'yes'"),
        ({"when": "sampled", "same_index": False}, "same_index=False needs when='full', got 'sampled'"),
        ({"release_bug": True}, "needs when='full' and static='sum', got 'full' and 'mean'"),
        ({"release_bug": True, "static": "sum", "when": "sampled"}, "got 'sampled' and 'sum'"),
    ],
)
def test_choices_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(FeatureError, match=re.escape(message)):
        Motion(**arguments)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (torch.ones(4, 2, dtype=torch.float16), {}, "motion needs float32 rows (R, D), got torch.float16"),
        (torch.ones(1, 4, 2), {}, "of shape (1, 4, 2)"),
        (torch.ones(4, 2), {"counts": [2, 3]}, "counts of at least 1 must sum to the 4 rows, got [2, 3]"),
        (torch.ones(4, 2), {"counts": [4, 0]}, "got [4, 0]"),
        (torch.ones(0, 2), {}, "must sum to the 0 rows, got [0]"),
        (torch.ones(4, 2), {"counts": [1, 3], "indices": [[1], [2]]}, "each inside its video, got (2, 1) for 2 videos"),
        (torch.ones(4, 2), {"indices": [[-1]]}, "each inside its video"),
        (torch.ones(4, 2), {"indices": [0, 1]}, "rows to take must be (V, F)"),
        (torch.ones(4, 2), {"indices": [[0], [1]]}, "got (2, 1) for 1 video"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, arguments, message):
    with pytest.raises(FeatureError, match=re.escape(message)):
        motion_rows(rows, **arguments)
