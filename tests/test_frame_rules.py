"""The rules that choose frames, by hand-worked examples."""

import numpy as np
import pytest

from meidbench.errors import FeatureError
from meidbench.extraction.frames import FrameRule


def test_rules_are_read_and_written():
    for text, canonical, rows in [
        ("uniform", "uniform=200", 200),
        ("uniform=16", "uniform=16", 16),
        ("uniform-time", "uniform-time=200", 200),
        ("uniform-time=16", "uniform-time=16", 16),
        ("all", "all", None),
        ("fps=2.5", "fps=2.5", None),
        ("fps=3", "fps=3", None),
        ("fps=23.976", "fps=23.976", None),
    ]:
        rule = FrameRule.from_text(text)
        assert (str(rule), rule.fixed_rows) == (canonical, rows)
        assert FrameRule.from_text(canonical) == rule
    assert FrameRule.from_text("uniform", frames=8).fixed_rows == 8


@pytest.mark.parametrize(
    "text", ["", "some", "uniform=0", "uniform=2.5", "uniform=", "all=3", "fps", "fps=", "fps=0", "fps=-1", "fps=nan",
             "fps=inf", "fps=1e9", "Uniform", "uniform-time=0", "uniform-time=", "uniform_time"],
)  # fmt: skip
def test_rules_that_cannot_be_read(text):
    with pytest.raises(FeatureError):
        FrameRule.from_text(text)


def test_rules_check_their_numbers():
    for arguments in [
        ("uniform", 0),
        ("uniform", True),
        ("uniform-time", 0),
        ("uniform-time", 3, 1.0),
        ("uniform", 2.5),
        ("all", 3),
        ("fps", 3, 1.0),
        ("all", 0, 2.0),
    ]:
        with pytest.raises(FeatureError):
            FrameRule(*arguments)
    with pytest.raises(FeatureError, match="at least one frame"):
        FrameRule("all").choose([])


def test_frames_a_second_where_the_container_rounds_times():
    """Worked by hand: 30 frames a second in whole milliseconds; each is its own frame when asked at 30."""
    times = np.round(np.arange(300) / 30, 3)
    assert FrameRule.from_text("fps=30").choose(times).tolist() == list(range(300))
    assert FrameRule.from_text("fps=10").choose(times).tolist() == list(range(0, 300, 3))
    # A picture that stays for long is taken again each time, and a time offset changes nothing.
    assert FrameRule.from_text("fps=2").choose(np.array([0, 0.1, 2.0]) + 7).tolist() == [0, 1, 1, 1, 2]


def shown_at(times: list[float], asked: float) -> int:
    """The last frame that has come by then, a millisecond allowed."""
    frame = 0
    for number, time in enumerate(times):
        if time - times[0] <= asked + 0.001:
            frame = number
    return frame


@pytest.mark.parametrize("frames", [1, 2, 7, 200])
@pytest.mark.parametrize("count", [1, 2, 5, 90])
def test_even_times_by_a_plain_loop(count, frames):
    generator = np.random.default_rng(count)
    for times in (np.arange(count) / 30 + 7, np.cumsum(generator.exponential(0.05, count))):
        asked = [k * (times[-1] - times[0]) / max(1, frames - 1) for k in range(frames)]
        expected = [shown_at(times.tolist(), t) for t in asked]
        assert FrameRule("uniform-time", frames).choose(times).tolist() == expected


def test_even_times_see_the_same_moments_of_one_video_at_two_rates():
    """A hand-worked slow second half: frames at 0, .1, .2, .3, .4, 1.4, 2.4 s, and the same at 24 frames per second."""
    slow = [0, 0.1, 0.2, 0.3, 0.4, 1.4, 2.4]
    assert FrameRule("uniform", 4).choose(slow).tolist() == [0, 2, 4, 6]
    assert FrameRule("uniform-time", 4).choose(slow).tolist() == [0, 4, 5, 6]  # 0, 0.8, 1.6, 2.4 s
    copies = [max(i for i, t in enumerate(slow) if t <= n / 24 + 1e-9) for n in range(58)]  # 57 / 24 = 2.375 s
    chosen = FrameRule("uniform-time", 4).choose(np.arange(58) / 24)
    assert [copies[n] for n in chosen] == [0, 4, 5, 5]  # the copy ends before the last frame comes
