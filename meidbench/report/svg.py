"""Parts of a drawing: scales, ticks, text that fits its place, and the frame with its text alternative."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from meidbench.report.numbers import MINUS


@dataclass(frozen=True)
class Scale:
    """A linear map of ``low`` to ``high`` onto ``start`` to ``stop``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def steps(low: float, high: float, at_most: int = 5) -> list[float]:
    """Return round numbers between two limits.

    Examples
    --------
    >>> steps(0.0, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    magnitude = 10.0 ** math.floor(math.log10((high - low) / at_most))
    for factor in (1, 2, 5, 10):
        step = factor * magnitude
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < at_most:
            break
    return [round(place * step, 12) for place in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Write the number of a tick.

    Examples
    --------
    >>> tick_text(-0.2), tick_text(1000.0)
    ('−0.2', '1,000')
    """
    return (f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}").replace("-", MINUS)


def place(value: float) -> str:
    """Write a coordinate briefly: to a tenth of a unit.

    Examples
    --------
    >>> place(12.04), place(0.26), place(-0.01)
    ('12', '.3', '0')
    """
    text = f"{value:.1f}".removesuffix(".0").replace("0.", ".") if abs(value) < 1 else f"{value:.1f}".removesuffix(".0")
    return "0" if text in ("-0", "-.0", "") else text


def width_of(text: str, size: float) -> float:
    """Estimate the width of a text in a common sans-serif font, rather too wide than too narrow."""
    total = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            total += 1.0
        elif character in "iljtfrI.,:;'|![]() -":
            total += 0.4
        elif character in "mwMW@%":
            total += 0.95
        else:
            total += 0.74 if character.isupper() else 0.62
    return total * size


def fitted(text: str, width: float, size: float) -> str:
    """Shorten a text in its middle until it fits a width: names often differ at their ends.

    Examples
    --------
    >>> fitted("a_method_with_a_long_name_1", 100, 10)
    'a_metho…_name_1'
    """
    if width_of(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
        if width_of(short, size) <= width:
            return short
    return "…"


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """Return a text element; ``kind`` is its CSS class, ``anchor`` is ``middle`` or ``end``."""
    named = f' class="{kind}"' if kind else ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{place(x)}" y="{place(y)}"{named}{anchored}>{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line of a CSS class."""
    return f'<path class="{kind}" d="M{place(x1)} {place(y1)}L{place(x2)} {place(y2)}"/>'


def whisker(low: float, high: float, y: float, kind: str = "whisker") -> str:
    """Return a horizontal interval with end caps, on a halo that parts it from what lies below."""
    d = f"M{place(low)} {place(y)}H{place(high)}M{place(low)} {place(y - 3)}v6M{place(high)} {place(y - 3)}v6"
    return f'<path class="halo" d="{d}"/><path class="{kind}" d="{d}"/>'


def outline(group: str, x: float, y: float, radius: float) -> str:
    """Return the path of a mark of about the same area whatever the group: disc, square or triangle."""
    if group == "medium":
        half = 0.88 * radius
        return f"M{place(x - half)} {place(y - half)}h{place(2 * half)}v{place(2 * half)}h{place(-2 * half)}z"
    if group == "tail":
        half = 1.2 * radius
        return f"M{place(x)} {place(y - half)}l{place(half)} {place(1.8 * half)}h{place(-2 * half)}z"
    turn = f"a{place(radius)} {place(radius)} 0 1 0 "
    return f"M{place(x - radius)} {place(y)}{turn}{place(2 * radius)} 0{turn}{place(-2 * radius)} 0z"


def drawing(identifier: str, size: tuple[int, int], title: str, description: str, parts: Iterable[str]) -> str:
    """Return an ``svg`` element with a text alternative; ``identifier`` must be unique on the page."""
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{identifier}-t {identifier}-d">'
        f'<title id="{identifier}-t">{escape(title)}</title><desc id="{identifier}-d">{escape(description)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def horizontal_axis(
    scale: Scale, bands: Sequence[tuple[float, float]], bottom: float, ticks: Sequence[float]
) -> list[str]:
    """Return grid lines over bands of (top, bottom), which leave the text between free, with their numbers below."""
    parts = []
    for value in ticks:
        parts.append(upright(scale(value), bands, "zero" if value == 0 else "grid"))
        parts.append(label(scale(value), bottom + 12, tick_text(value), "tick", "middle"))
    return parts


def upright(x: float, bands: Sequence[tuple[float, float]], kind: str) -> str:
    """Return a vertical line that is drawn over bands of (top, bottom) alone."""
    d = "".join(f"M{place(x)} {place(top)}V{place(bottom)}" for top, bottom in bands)
    return f'<path class="{kind}" d="{d}"/>'


def vertical_axis(scale: Scale, left: float, right: float, ticks: Sequence[float]) -> list[str]:
    """Return grid lines from left to right with their numbers on the left; zero is drawn stronger."""
    parts = []
    for value in ticks:
        y = scale(value)
        parts.append(line(left, y, right, y, "zero" if value == 0 else "grid"))
        parts.append(label(left - 5, y + 3.5, tick_text(value), "tick", "end"))
    return parts
