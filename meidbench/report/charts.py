"""The charts of a comparison as SVG: means per group, gains and losses per class, precision against frequency.

All charts have about the same width, so a phone shows one below the other with letters of full size.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from meidbench.evaluation.compare import EQUAL, Comparison, Difference, MethodResult
from meidbench.evaluation.results import ClassFacts
from meidbench.report.text import DASH, MINUS, format_interval, format_number, format_signed
from meidbench.splits.split import GROUP_NAMES

FEW_CLASSES = 200  # up to this number each class has its own mark with an interval and a tooltip
MEDIAN_CLASSES = 50  # a running median of fewer classes shows noise
_NAMED_CLASSES = 6  # gains, and losses, with their names

Reals = npt.NDArray[np.float64]
Bands = Sequence[tuple[float, float]]  # (top, bottom) of the parts of a chart that a vertical line covers
Curve = Sequence[tuple[float, float]]
Change = tuple[ClassFacts, Difference]


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


def draw_text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """Return a text element; ``kind`` is its CSS class, ``anchor`` is ``middle`` or ``end``."""
    css_class = f' class="{kind}"' if kind else ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{format_coordinate(x)}" y="{format_coordinate(y)}"{css_class}{anchored}>{escape(text)}</text>'


def draw_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line of a CSS class."""
    return f'<path class="{kind}" d="M{_point(x1, y1)}L{_point(x2, y2)}"/>'


def draw_vertical_line(x: float, bands: Bands, kind: str) -> str:
    """Return a vertical line that covers only the given bands."""
    d = "".join(f"M{_point(x, top)}V{format_coordinate(bottom)}" for top, bottom in bands)
    return f'<path class="{kind}" d="{d}"/>'


def draw_interval(low: float, high: float, y: float, kind: str = "whisker") -> str:
    """Return a horizontal interval with end caps, on a halo that separates it from the marks below it."""
    d = f"M{_point(low, y)}H{format_coordinate(high)}M{_point(low, y - 3)}v6M{_point(high, y - 3)}v6"
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
        return f"M{_point(x - half, y - half)}h{side}v{side}h{format_coordinate(-2 * half)}z"
    if group == "tail":
        half = 1.2 * radius
        return f"M{_point(x, y - half)}l{_point(half, 1.8 * half)}h{format_coordinate(-2 * half)}z"
    turn = f"a{_point(radius, radius)} 0 1 0 "
    return f"M{_point(x - radius, y)}{turn}{_point(2 * radius, 0)}{turn}{_point(-2 * radius, 0)}z"


def _point(x: float, y: float) -> str:
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


def _drop_nan(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _upper_limit(values: Iterable[float]) -> float:
    """Return a limit a little above all values, but at most 1 if no value is above 1."""
    highest = max(_drop_nan(values), default=1.0)
    if highest <= 0:
        return 1.0
    return min(1.0, 1.04 * highest) if highest <= 1 else highest


def mean_chart(comparison: Comparison, group: str) -> str:
    """Draw the mean of a group as one bar per method with its interval; all groups have the same scale."""
    methods, width, row, first = comparison.methods, 260, 32, 4
    estimates = [estimate for method in methods for estimate in method.mAP.values()]
    scale = Scale(0.0, _upper_limit(end for e in estimates for end in (e.value, e.high)), 2.0, width - 10.0)
    bottom = first + row * len(methods) + 2
    bands = [(first + row * index + 15, first + row * index + 30) for index in range(len(methods))]
    parts = draw_horizontal_axis(scale, bands, bottom, choose_ticks(0.0, scale.high, 4))
    facts = []
    for index, method in enumerate(methods):
        estimate, y = method.mAP[group], first + row * index
        value, around = format_number(estimate.value), format_interval(estimate.low, estimate.high)
        numbers = value if around == DASH else f"{value} {around}"
        facts.append(f"{method.name}: {numbers}")
        parts.append(draw_text(2, y + 12, shorten(method.name, width - 10 - 6 * len(numbers), 11), "name"))
        if not math.isnan(estimate.value):
            length = format_coordinate(scale(estimate.value) - 2)
            parts.append(f'<rect class="bar {group}" x="2" y="{y + 17}" width="{length}" height="11"/>')
            if around != DASH:
                parts.append(draw_interval(scale(estimate.low), scale(estimate.high), y + 22.5))
        parts.append(draw_text(width, y + 12, numbers, "number", "end"))
    reference = next((m.mAP[group].value for m in methods if m.name == comparison.reference), math.nan)
    if len(methods) > 1 and not math.isnan(reference):
        parts.append(draw_vertical_line(scale(reference), bands, "reference"))
    return draw_svg(f"mean-{group}", (width, bottom + 18), f"Mean average precision, {group}", facts, parts)


def change_charts(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Draw the gains and losses per class of each method but the reference: name -> caption -> chart."""
    changes: dict[str, list[Change]] = {}
    for method in comparison.methods:
        if method.ap_difference is not None:
            pairs = zip(comparison.classes, method.ap_difference, strict=True)
            changes[method.name] = [pair for pair in pairs if not math.isnan(pair[1].value)]
    gained = {name: _find_largest(found, 1) for name, found in changes.items()}
    lost = {name: _find_largest(found, -1) for name, found in changes.items()}
    few = len(comparison.classes) <= FEW_CLASSES
    limits = _change_limits(changes.values(), with_intervals=few)
    # Gains are right of zero and losses left: each has its own limits, but a step has the same width in both.
    gains = _change_limits(gained.values(), with_intervals=True)
    losses = _change_limits(lost.values(), with_intervals=True)
    span = max(gains[1] - gains[0], losses[1] - losses[0])
    gains, losses = (gains[0], gains[0] + span), (losses[1] - span, losses[1])
    caption = f"all classes, {'with intervals' if few and comparison.replicates else 'sorted'}"
    return {
        name: {
            caption: _draw_profile(f"change-{index}", name, comparison, found, limits),
            "largest gains": _draw_largest(f"gain-{index}", f"Largest gains of {name}", gained[name], gains),
            "largest losses": _draw_largest(f"loss-{index}", f"Largest losses of {name}", lost[name], losses),
        }
        for index, (name, found) in enumerate(changes.items())
    }


def _change_limits(changes: Iterable[Sequence[Change]], with_intervals: bool) -> tuple[float, float]:
    values = [0.0]
    for _, change in (entry for found in changes for entry in found):
        values += _drop_nan((change.value, change.low, change.high) if with_intervals else (change.value,))
    low, high = min(values), max(values)
    margin = 0.03 * (high - low) or 0.1
    return low - margin, high + margin


def _find_largest(changes: Sequence[Change], sign: int) -> list[Change]:
    found = [entry for entry in changes if sign * entry[1].value > EQUAL]
    return sorted(found, key=lambda entry: (-sign * entry[1].value, entry[0].index))[:_NAMED_CLASSES]


def _draw_profile(
    identifier: str, name: str, comparison: Comparison, changes: Sequence[Change], limits: tuple[float, float]
) -> str:
    """Draw the changes of all classes, sorted within each group: a few as marks with intervals, many as an area."""
    draw = _draw_sorted_marks if len(comparison.classes) <= FEW_CLASSES else _draw_sorted_area
    left, right, bottom = 34.0, 340.0, 196.0
    y = Scale(*limits, bottom, 8.0)
    parts = draw_vertical_axis(y, left, right, choose_ticks(*limits))
    by_group = {group: [entry for entry in changes if entry[0].group == group] for group in GROUP_NAMES}
    by_group = {group: entries for group, entries in by_group.items() if entries}
    facts = []
    gap, least = 8.0, 0.26
    room = right - left - gap * max(len(by_group) - 1, 0)
    for group, entries in by_group.items():
        entries = sorted(entries, key=lambda entry: (-entry[1].value, entry[0].index))
        # Each group gets a minimum, the rest by its classes: the label of 47 of 1,004 classes needs more room.
        width = room * (least + (1 - least * len(by_group)) * len(entries) / len(changes))
        higher = sum(change.value > EQUAL for _, change in entries)
        lower = sum(change.value < -EQUAL for _, change in entries)
        tally = f"{higher} / {len(entries) - higher - lower} / {lower}"
        parts.append(draw(group, entries, left, width / len(entries), y))
        parts.append(draw_text(left + width / 2, bottom + 16, f"{group} ({len(entries):,})", "name", "middle"))
        parts.append(draw_text(left + width / 2, bottom + 30, tally, "number", "middle"))
        facts.append(f"{group}: higher, equal and lower in {tally} classes")
        left += width + gap
    for sign, word in ((1, "gain"), (-1, "loss")):
        for largest, change in _find_largest(changes, sign)[:1]:
            facts.append(f"largest {word} {format_signed(change.value)} ({largest.name})")
    title = f"Difference of average precision by class, {name} against {comparison.reference}"
    return draw_svg(identifier, (340, 232), title, facts, parts)


def _draw_sorted_marks(group: str, entries: Sequence[Change], left: float, step: float, y: Scale) -> str:
    radius = min(3.0, max(1.4, 0.5 * step))
    lines, marks = [], []
    for rank, (facts, change) in enumerate(entries):
        x = left + (rank + 0.5) * step
        if not math.isnan(change.low):
            lines.append(f"M{_point(x, y(change.low))}V{format_coordinate(y(change.high))}")
        marks.append(draw_mark(group, x, y(change.value), radius, f"{facts.name}: {_describe_change(change)}"))
    return f'<g class="{group}"><path class="spread" d="{"".join(lines)}"/>{"".join(marks)}</g>'


def _draw_sorted_area(group: str, entries: Sequence[Change], left: float, step: float, y: Scale) -> str:
    zero = format_coordinate(y(0.0))
    d = "".join(
        f"V{format_coordinate(y(change.value))}H{format_coordinate(left + (rank + 1) * step)}"
        for rank, (_, change) in enumerate(entries)
    )
    return f'<path class="area {group}" d="M{format_coordinate(left)} {zero}{d}V{zero}z"/>'


def _draw_largest(identifier: str, title: str, entries: Sequence[Change], limits: tuple[float, float]) -> str:
    """Draw named classes one below the other, each with its interval."""
    width, row, first = 340, 32, 4
    x = Scale(*limits, 4.0, width - 4.0)
    bottom = first + row * max(len(entries), 1) + 2
    bands = [(first + row * index + 15, first + row * index + 31) for index in range(len(entries))]
    parts = draw_horizontal_axis(x, bands, bottom, choose_ticks(*limits))
    facts = []
    for index, (named, change) in enumerate(entries):
        top = first + row * index
        number = format_signed(change.value)
        parts.append(draw_text(12, top + 12, shorten(named.name, width - 24 - 6.6 * len(number), 11), "name"))
        parts.append(draw_text(width, top + 12, number, "number", "end"))
        parts.append(f'<g class="{escape(named.group)}">{draw_mark(named.group, 5, top + 8.5, 3.2)}')
        if not math.isnan(change.low):
            parts.append(draw_interval(x(change.low), x(change.high), top + 23, "limits"))
        parts.append(draw_mark(named.group, x(change.value), top + 23, 4) + "</g>")
        facts.append(f"{named.name} ({named.group}): {_describe_change(change)}")
    if not entries:
        parts, facts = [draw_text(2, 16, "no class", "tick")], ["no class"]
    return draw_svg(identifier, (width, bottom + 18), title, facts, parts)


def _describe_change(change: Difference) -> str:
    around = format_interval(change.low, change.high, with_sign=True)
    return format_signed(change.value) if around == DASH else f"{format_signed(change.value)} {around}"


def frequency_charts(comparison: Comparison) -> list[str]:
    """Draw each method's average precision against the training videos of a class, with a running median.

    The charts of the other methods show the reference's running median dashed. A class without a training video is at
    0, left of the classes with one video.
    """
    logs = np.log10([max(facts.train_count, 0.5) for facts in comparison.classes])
    low, high = (float(logs.min()), float(logs.max())) if len(logs) else (0.0, 1.0)
    x = Scale(low - 0.07, max(high, low + 0.3) + 0.05, 34.0, 332.0)
    y = Scale(0.0, _upper_limit(ap for method in comparison.methods for ap in method.ap), 190.0, 10.0)
    medians = {method.name: _running_median(logs, np.array(method.ap)) for method in comparison.methods}
    charts = []
    for index, method in enumerate(comparison.methods):
        dashed = [] if method.name == comparison.reference else medians[comparison.reference]
        curves = {"median reference": dashed, "median": medians[method.name]}
        charts.append(_draw_frequencies(f"frequency-{index}", method, comparison, (x, y), curves))
    return charts


def _running_median(logs: Reals, ap: Reals) -> Curve:
    """Return the medians of neighbours in frequency, a tenth of the classes at a time; empty for few classes."""
    known = np.flatnonzero(~np.isnan(ap))
    if len(known) < MEDIAN_CLASSES:
        return []
    order = known[np.argsort(logs[known], kind="stable")]
    window = max(15, len(order) // 10)
    starts = np.unique(np.linspace(0, len(order) - window, 40).round().astype(int))
    # Many classes are equally rare. Windows at nearly the same frequency become one point, not a vertical line.
    points: dict[int, list[tuple[float, float]]] = {}
    for start in starts:
        some = order[start : start + window]
        at = float(np.median(logs[some]))
        points.setdefault(round(15 * at), []).append((at, float(np.median(ap[some]))))
    return [
        (float(np.mean([at for at, _ in near])), float(np.median([y for _, y in near]))) for near in points.values()
    ]


def _draw_frequencies(
    identifier: str, method: MethodResult, comparison: Comparison, scales: tuple[Scale, Scale], curves: dict[str, Curve]
) -> str:
    x, y = scales
    parts = draw_vertical_axis(y, x.start, x.stop, choose_ticks(0.0, y.high)) + _draw_frequency_axis(x, y)
    facts = []
    for group in GROUP_NAMES:
        classes = [
            (named, ap, x(math.log10(max(named.train_count, 0.5))), y(ap))
            for named, ap in zip(comparison.classes, method.ap, strict=True)
            if named.group == group and not math.isnan(ap)
        ]
        if not classes:
            continue
        if len(comparison.classes) <= FEW_CLASSES:
            marks = ""
            for named, ap, px, py in classes:
                tooltip = f"{named.name}: {named.train_count:,} training videos, AP {format_number(ap)}"
                marks += draw_mark(group, px, py, 2.6, tooltip)
            parts.append(f'<g class="point {group}">{marks}</g>')
        else:
            d = "".join(mark_outline(group, px, py, 1.5) for _, _, px, py in classes)
            parts.append(f'<path class="points {group}" d="{d}"/>')
        median = float(np.median([ap for _, ap, _, _ in classes]))
        facts.append(f"{group}: median {format_number(median)} of {len(classes):,} classes")
    for kind, curve in curves.items():
        if curve:
            d = "L".join(_point(x(at), y(value)) for at, value in curve)
            parts.append(f'<path class="halo" d="M{d}"/><path class="{kind}" d="M{d}"/>')
    parts.append(draw_text(x.stop, y.start + 28, "training videos", "tick", "end"))
    parts.append(draw_text(x.start + 4, y.stop + 8, "AP", "tick"))
    title = f"Average precision of each class against its training videos, {method.name}"
    return draw_svg(identifier, (340, 224), title, facts or ["no class"], parts)


def _draw_frequency_axis(x: Scale, y: Scale) -> list[str]:
    parts = []
    last = -math.inf
    for value in (0.5, *(factor * 10.0**power for power in range(6) for factor in (1, 2, 5))):
        at = x(math.log10(value))
        # Only powers of ten, unless there is room for more.
        if x.start <= at <= x.stop and (value in (0.5, 1, 10, 100, 1e3, 1e4, 1e5) or x.high - x.low < 1.5):
            parts.append(draw_line(at, y.start, at, y.stop, "grid"))
            if at - last > 30:
                text = format_tick(0.0 if value == 0.5 else value)
                parts.append(draw_text(at, y.start + 13, text, "tick", "middle"))
                last = at
    return parts
