"""The rules that choose frames, by hand-worked examples."""

import numpy as np
import pytest

from meidbench.errors import FeatureError
from meidbench.extraction.frames import FrameRule


def test_rules_are_read_and_written():
    for text, canonical, rows in [
        ("uniform", "uniform=200", 200),
        ("uniform=16", "uniform=16", 16),
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
             "fps=inf", "fps=1e9", "Uniform"],
)  # fmt: skip
def test_rules_that_cannot_be_read(text):
    with pytest.raises(FeatureError):
        FrameRule.from_text(text)


def test_rules_check_their_numbers():
    for arguments in [
        ("uniform", 0),
        ("uniform", True),
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
