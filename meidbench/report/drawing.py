"""Pieces of SVG for charts: scales, axes, marks and texts."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from meidbench.report.text import MINUS

Bands = Sequence[tuple[float, float]]  # (top, bottom) of the parts of a chart that a vertical line covers


@dataclass(frozen=True)
class Scale:
    """A linear map of ``low`` to ``high`` onto ``start`` to ``stop``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def choose_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Return round numbers between two limits."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / at_most))
    for factor in (1, 2, 5, 10):
        step = factor * magnitude
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < at_most:
            break
    return [round(place * step, 12) for place in range(first, last + 1)]


def format_tick(value: float) -> str:
    """Write the number of a tick."""
    return (f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}").replace("-", MINUS)


def format_coordinate(value: float) -> str:
    """Write a coordinate in few characters, rounded to a tenth."""
    text = f"{value:.1f}".removesuffix(".0")
    text = text.replace("0.", ".") if abs(value) < 1 else text
    return "0" if text in ("-0", "-.0", "") else text


def estimate_width(text: str, size: float) -> float:
    """Estimate the width of a text in a common sans-serif font, too wide rather than too narrow."""
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


def shorten(text: str, width: float, size: float) -> str:
    """Cut out the middle of a text until it fits a width; names often differ at their ends."""
    if estimate_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
        if estimate_width(short, size) <= width:
            return short
    return "…"


def wrap(text: str, width: float, size: float) -> list[str]:
    """Break a text into at most two lines of a width; the second is shortened until it fits."""
    words = text.split()
    for count in range(len(words), 0, -1):
        first, rest = " ".join(words[:count]), " ".join(words[count:])
        if estimate_width(first, size) <= width:
            return [first, shorten(rest, width, size)] if rest else [first]
    return [shorten(" ".join(words), width, size)]


def draw_text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """Return a text element; ``kind`` is its CSS class, ``anchor`` is ``middle`` or ``end``."""
    css_class = f' class="{kind}"' if kind else ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{format_coordinate(x)}" y="{format_coordinate(y)}"{css_class}{anchored}>{escape(text)}</text>'


def draw_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line of a CSS class."""
    return f'<path class="{kind}" d="M{format_point(x1, y1)}L{format_point(x2, y2)}"/>'


def draw_vertical_line(x: float, bands: Bands, kind: str) -> str:
    """Return a vertical line that covers only the given bands."""
    d = "".join(f"M{format_point(x, top)}V{format_coordinate(bottom)}" for top, bottom in bands)
    return f'<path class="{kind}" d="{d}"/>'


def draw_interval(low: float, high: float, y: float, kind: str = "whisker") -> str:
    """Return a horizontal interval with end caps, on a halo that separates it from the marks below it."""
    d = f"M{format_point(low, y)}H{format_coordinate(high)}M{format_point(low, y - 3)}v6M{format_point(high, y - 3)}v6"
    return f'<path class="halo" d="{d}"/><path class="{kind}" d="{d}"/>'


def draw_mark(group: str, x: float, y: float, radius: float, tooltip: str = "") -> str:
    """Return the mark of a class."""
    end = f"><title>{escape(tooltip)}</title></path>" if tooltip else "/>"
    return f'<path class="mark" d="{mark_outline(group, x, y, radius)}"{end}'


def mark_outline(group: str, x: float, y: float, radius: float) -> str:
    """Return the path of a mark: a disc, a square or a triangle of about the same area, by group."""
    if group == "medium":
        half = 0.88 * radius
        side = format_coordinate(2 * half)
        return f"M{format_point(x - half, y - half)}h{side}v{side}h{format_coordinate(-2 * half)}z"
    if group == "tail":
        half = 1.2 * radius
        return f"M{format_point(x, y - half)}l{format_point(half, 1.8 * half)}h{format_coordinate(-2 * half)}z"
    turn = f"a{format_point(radius, radius)} 0 1 0 "
    return f"M{format_point(x - radius, y)}{turn}{format_point(2 * radius, 0)}{turn}{format_point(-2 * radius, 0)}z"


def format_point(x: float, y: float) -> str:
    """Write a point of a path."""
    return f"{format_coordinate(x)} {format_coordinate(y)}"


def draw_horizontal_axis(scale: Scale, bands: Bands, bottom: float, ticks: Sequence[float]) -> list[str]:
    """Return vertical grid lines, which leave the text between the bands free, with their numbers below."""
    parts = []
    for value in ticks:
        parts.append(draw_vertical_line(scale(value), bands, "zero" if value == 0 else "grid"))
        parts.append(draw_text(scale(value), bottom + 12, format_tick(value), "tick", "middle"))
    return parts


def draw_vertical_axis(scale: Scale, left: float, right: float, ticks: Sequence[float]) -> list[str]:
    """Return horizontal grid lines with their numbers on the left; the line at zero is stronger."""
    parts = []
    for value in ticks:
        y = scale(value)
        parts.append(draw_line(left, y, right, y, "zero" if value == 0 else "grid"))
        parts.append(draw_text(left - 5, y + 3.5, format_tick(value), "tick", "end"))
    return parts


def draw_svg(identifier: str, size: tuple[int, int], title: str, facts: Sequence[str], parts: Iterable[str]) -> str:
    """Return an ``svg`` element with a title and the facts as text; ``identifier`` must be unique on the page."""
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{identifier}-t {identifier}-d">'
        f'<title id="{identifier}-t">{escape(title)}</title>'
        f'<desc id="{identifier}-d">{escape("; ".join(facts))}.</desc>{"".join(parts)}</svg>'
    )
