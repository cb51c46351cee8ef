"""Frame sampling against rows worked out by hand, VideoLT's own expressions, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meidbench.errors import FeatureError
from meidbench.features.frame_sampling import random_indices, uniform_indices
from meidbench.names import SAMPLINGS

counts = st.integers(1, 400)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize(
    ("num_frames", "wanted", "expected"),
    [
        (10, 4, [0, 3, 6, 9]),
        (10, 5, [0, 2, 4, 6, 9]),  # 0, 2.25, 4.5, 6.75, 9
        (4, 4, [0, 1, 2, 3]),
        (3, 5, [0, 0, 1, 1, 2]),  # 0, 0.5, 1, 1.5, 2
        (2, 5, [0, 0, 0, 0, 1]),  # 0, 0.25, 0.5, 0.75, 1
        (1, 3, [0, 0, 0]),
        (7, 1, [0]),
        (1, 1, [0]),
        (7, 2, [0, 6]),
    ],
)
def test_uniform_rows_worked_out_by_hand(num_frames, wanted, expected):
    assert uniform_indices(num_frames, wanted).tolist() == expected


def test_uniform_truncates_where_floating_point_falls_short():
    # 122 / 14 * 7 is 61, but comes out as 60.99999999999999.
    rows = uniform_indices(123, 15)
    assert rows[7] == 60
    assert rows.tolist() == np.linspace(0, 122, 15).astype(np.int32).tolist()


@given(counts, counts)
def test_uniform_is_what_videolt_takes(num_frames, wanted):
    # uniform_sample of ops/feature_loader.py
    np.testing.assert_array_equal(
        uniform_indices(num_frames, wanted), np.linspace(0, num_frames - 1, wanted).astype(np.int32)
    )


@given(counts, counts)
def test_uniform_rows_are_even(num_frames, wanted):
    rows = uniform_indices(num_frames, wanted)
    assert rows.dtype == np.int64
    assert rows.shape == (wanted,)
    assert rows[0] == 0
    if wanted > 1:
        assert rows[-1] == num_frames - 1
        exact = [position * (num_frames - 1) // (wanted - 1) for position in range(wanted)]
        short = np.array(exact) - rows
        assert set(short.tolist()) <= {0, 1}
        steps = np.diff(rows)
        assert steps.max() - steps.min() <= 2  # 1 by the division, 1 more where floating point falls short


@given(counts, counts, seeds)
def test_random_rows_are_in_the_video_and_ascending(num_frames, wanted, seed):
    for replacement in (True, False):
        rows = random_indices(num_frames, wanted, np.random.default_rng(seed), replacement)
        assert rows.dtype == np.int64
        assert rows.shape == (wanted,)
        assert rows.min() >= 0
        assert rows.max() < num_frames
        assert (np.diff(rows) >= 0).all()


@given(counts, counts, seeds)
def test_without_replacement_every_frame_is_taken_equally_often(num_frames, wanted, seed):
    rows = random_indices(num_frames, wanted, np.random.default_rng(seed), replacement=False)
    times = np.bincount(rows, minlength=num_frames)
    assert set(times.tolist()) <= {wanted // num_frames, wanted // num_frames + 1}
    assert (times > wanted // num_frames).sum() == wanted % num_frames


@given(counts, counts, seeds)
def test_randomness_comes_from_the_generator_alone(num_frames, wanted, seed):
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    for replacement in (True, False):
        first = random_indices(num_frames, wanted, np.random.default_rng(seed), replacement)
        np.random.random(3)  # noqa: NPY002
        second = random_indices(num_frames, wanted, np.random.default_rng(seed), replacement)
        np.testing.assert_array_equal(first, second)


def test_a_generator_moves_on():
    generator = np.random.default_rng(0)
    assert not np.array_equal(random_indices(1000, 50, generator), random_indices(1000, 50, generator))


@pytest.mark.parametrize("replacement", [True, False])
def test_random_frames_are_drawn_evenly(replacement):
    generator = np.random.default_rng(1)
    times = np.zeros(10)
    for _ in range(3000):
        times += np.bincount(random_indices(10, 4, generator, replacement), minlength=10)
    # 1200 each; the standard deviation is at most sqrt(3000 * 4 * 0.1 * 0.9) = 33.
    assert np.abs(times - 1200).max() < 5 * 33


def test_replacement_repeats_and_its_absence_does_not():
    generator = np.random.default_rng(2)
    repeated = [len(set(random_indices(20, 20, generator).tolist())) for _ in range(50)]
    assert max(repeated) < 20
    assert random_indices(20, 20, generator, replacement=False).tolist() == list(range(20))


@pytest.mark.parametrize("bad", [0, -1, 1.0, "3", None, True, np.float32(2)])
def test_counts_that_make_no_sense_are_refused(bad):
    generator = np.random.default_rng(0)
    for call in (
        lambda: uniform_indices(bad, 3),
        lambda: random_indices(bad, 3, generator),
        lambda: random_indices(bad, 3, generator, replacement=False),
    ):
        with pytest.raises(FeatureError, match="num_frames must be a whole number of at least 1, got"):
            call()
    for call in (lambda: uniform_indices(3, bad), lambda: random_indices(3, bad, generator)):
        with pytest.raises(FeatureError, match="wanted must be a whole number of at least 1, got"):
            call()


def test_numpy_integers_are_counts_too():
    assert uniform_indices(np.int32(10), np.uint8(4)).tolist() == [0, 3, 6, 9]
    assert len(random_indices(np.int64(5), np.int16(7), np.random.default_rng(0), replacement=False)) == 7


def test_samplings_are_named():
    assert SAMPLINGS == ("uniform", "random")
