"""The charts of a comparison as SVG: means by group, gains and losses by class, precision against frequency.

All are small multiples of one width, so that a phone shows one below the other with the letters in their full size.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from meidbench.evaluation.compare import EQUAL, ClassFacts, Comparison, Difference, MethodResult
from meidbench.report.text import DASH, MINUS, decimal, interval, signed
from meidbench.splits.split import GROUP_NAMES


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


FEW_CLASSES = 200  # up to here each class has a mark of its own with an interval and a tooltip
MEDIAN_CLASSES = 50  # of fewer a running median shows noise
_LABELLED = 6  # gains, and losses, that are named

Reals = npt.NDArray[np.float64]
_Change = tuple[ClassFacts, Difference]


@dataclass(frozen=True)
class ChangeCharts:
    """A method against the reference: all classes, the largest gains, the largest losses."""

    profile: str
    gains: str
    losses: str


def mean_chart(comparison: Comparison, group: str) -> str:
    """Draw the mean of a group as a bar a method with its interval; the scale is that of all groups."""
    width, row, first = 260, 32, 4
    ends = [number for m in comparison.methods for e in m.mAP.values() for number in (e.value, e.high)]
    scale = Scale(0.0, _upper(_known(ends)), 2.0, width - 10.0)
    bottom = first + row * len(comparison.methods) + 2
    reference = next((m.mAP[group].value for m in comparison.methods if m.name == comparison.reference), math.nan)
    bands = [(first + row * index + 15, first + row * index + 30) for index in range(len(comparison.methods))]
    parts = horizontal_axis(scale, bands, bottom, steps(0.0, scale.high, 4))
    told = []
    for index, method in enumerate(comparison.methods):
        estimate, y = method.mAP[group], first + row * index
        value, around = decimal(estimate.value), interval(estimate.low, estimate.high)
        numbers = value if around == DASH else f"{value} {around}"
        told.append(f"{method.name}: {numbers}")
        name = fitted(method.name, width - 10 - 6 * len(numbers), 11)
        parts.append(label(2, y + 12, name, "name"))
        if not math.isnan(estimate.value):
            end = scale(estimate.value)
            bar = f'<rect class="bar {group}" x="2" y="{y + 17}" width="{place(end - 2)}" height="11"/>'
            parts.append(bar)
            if around != DASH:
                parts.append(whisker(scale(estimate.low), scale(estimate.high), y + 22.5))
        parts.append(label(width, y + 12, numbers, "number", "end"))
    if len(comparison.methods) > 1 and not math.isnan(reference):
        parts.append(upright(scale(reference), bands, "reference"))
    return drawing(
        f"mean-{group}", (width, bottom + 18), f"Mean average precision, {group}", "; ".join(told) + ".", parts
    )


def change_charts(comparison: Comparison) -> dict[str, ChangeCharts]:
    """Draw the gains and losses by class of each method that is not the reference, by name; scales are shared."""
    few = len(comparison.classes) <= FEW_CLASSES
    changes = {
        method.name: [
            (facts, change)
            for facts, change in zip(comparison.classes, method.ap_difference, strict=True)
            if not math.isnan(change.value)
        ]
        for method in comparison.methods
        if method.ap_difference is not None
    }
    extremes = {name: (_largest(found, 1), _largest(found, -1)) for name, found in changes.items()}
    limits = _limits((entry for found in changes.values() for entry in found), with_intervals=few)
    # Gains lie right of zero and losses left: each has limits of its own, but a step is as wide in both.
    gains = _limits((entry for both in extremes.values() for entry in both[0]), with_intervals=True)
    losses = _limits((entry for both in extremes.values() for entry in both[1]), with_intervals=True)
    span = max(gains[1] - gains[0], losses[1] - losses[0])
    gains, losses = (gains[0], gains[0] + span), (losses[1] - span, losses[1])
    return {
        name: ChangeCharts(
            _profile(f"change-{index}", name, comparison, found, limits),
            _extremes(f"gain-{index}", f"Largest gains of {name}", extremes[name][0], gains),
            _extremes(f"loss-{index}", f"Largest losses of {name}", extremes[name][1], losses),
        )
        for index, (name, found) in enumerate(changes.items())
    }


def frequency_charts(comparison: Comparison) -> list[str]:
    """Draw each method's average precision against the training videos of a class, with a running median.

    The reference's running median is dashed in the charts of the others. A class without a training video stands left
    of one with a single video, at 0.
    """
    counts = np.array([max(facts.train_count, 0.5) for facts in comparison.classes])
    logs = np.log10(counts)
    low, high = (float(logs.min()), float(logs.max())) if len(logs) else (0.0, 1.0)
    x = Scale(low - 0.07, max(high, low + 0.3) + 0.05, 34.0, 332.0)
    precisions = [number for method in comparison.methods for number in method.ap]
    y = Scale(0.0, _upper(_known(precisions)), 190.0, 10.0)
    medians = {method.name: _running_median(logs, np.array(method.ap)) for method in comparison.methods}
    return [
        _frequency_chart(
            f"frequency-{index}",
            method,
            comparison,
            (x, y),
            medians[method.name],
            medians.get(comparison.reference, []) if method.name != comparison.reference else [],
        )
        for index, method in enumerate(comparison.methods)
    ]


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _upper(values: Sequence[float]) -> float:
    """Return a limit a little above all values, at most 1 where they are."""
    highest = max(values, default=1.0)
    if highest <= 0:
        return 1.0
    return min(1.0, 1.04 * highest) if highest <= 1 else highest


def _limits(changes: Iterable[_Change], with_intervals: bool) -> tuple[float, float]:
    found = [0.0]
    for _, change in changes:
        found.append(change.value)
        if with_intervals:
            found += _known((change.low, change.high))
    low, high = min(found), max(found)
    margin = 0.03 * (high - low) or 0.1
    return low - margin, high + margin


def _largest(changes: Sequence[_Change], sign: int) -> list[_Change]:
    found = [entry for entry in changes if sign * entry[1].value > EQUAL]
    return sorted(found, key=lambda entry: (-sign * entry[1].value, entry[0].index))[:_LABELLED]


def _profile(
    identifier: str, name: str, comparison: Comparison, changes: Sequence[_Change], limits: tuple[float, float]
) -> str:
    """Draw all classes by group, each group sorted: with intervals where they are few, as an outline where many."""
    few = len(comparison.classes) <= FEW_CLASSES
    left, right, bottom = 34.0, 340.0, 196.0
    y = Scale(*limits, bottom, 8.0)
    parts = vertical_axis(y, left, right, steps(*limits))
    by_group = {
        group: sorted((entry for entry in changes if entry[0].group == group), key=lambda e: (-e[1].value, e[0].index))
        for group in GROUP_NAMES
    }
    shown = {group: entries for group, entries in by_group.items() if entries}
    told = []
    gap, least = 8.0, 0.26
    room = right - left - gap * max(len(shown) - 1, 0)
    total = sum(map(len, shown.values()))
    for group, entries in shown.items():
        # A share for all alike, the rest by classes: 47 of 1,004 would be too narrow for their label.
        width = room * (least + (1 - least * len(shown)) * len(entries) / total)
        step = width / len(entries)
        parts.append(_caterpillar(group, entries, left, step, y) if few else _area(group, entries, left, step, y))
        tally = _tally(entries)
        parts.append(label(left + width / 2, bottom + 16, f"{group} ({len(entries):,})", "name", "middle"))
        parts.append(label(left + width / 2, bottom + 30, tally, "number", "middle"))
        told.append(f"{group}: higher, equal and lower in {tally} classes")
        left += width + gap
    for entries, word in ((_largest(changes, 1), "gain"), (_largest(changes, -1), "loss")):
        if entries:
            told.append(f"largest {word} {signed(entries[0][1].value)} ({entries[0][0].name})")
    title = f"Difference of average precision by class, {name} against {comparison.reference}"
    return drawing(identifier, (340, 232), title, "; ".join(told) + ".", parts)


def _tally(entries: Sequence[_Change]) -> str:
    higher = sum(change.value > EQUAL for _, change in entries)
    lower = sum(change.value < -EQUAL for _, change in entries)
    return f"{higher} / {len(entries) - higher - lower} / {lower}"


def _caterpillar(group: str, entries: Sequence[_Change], left: float, step: float, y: Scale) -> str:
    radius = min(3.0, max(1.4, 0.5 * step))
    lines, marks = [], []
    for rank, (facts, change) in enumerate(entries):
        x = left + (rank + 0.5) * step
        if not math.isnan(change.low):
            lines.append(f"M{place(x)} {place(y(change.low))}V{place(y(change.high))}")
        marks.append(_mark(group, x, y(change.value), radius, f"{facts.name}: {_change_text(change)}"))
    return f'<g class="{group}"><path class="spread" d="{"".join(lines)}"/>{"".join(marks)}</g>'


def _area(group: str, entries: Sequence[_Change], left: float, step: float, y: Scale) -> str:
    d = [f"M{place(left)} {place(y(0.0))}"]
    for rank, (_, change) in enumerate(entries):
        d.append(f"V{place(y(change.value))}H{place(left + (rank + 1) * step)}")
    return f'<path class="area {group}" d="{"".join(d)}V{place(y(0.0))}z"/>'


def _extremes(identifier: str, title: str, entries: Sequence[_Change], limits: tuple[float, float]) -> str:
    """Draw the named classes one below the other, each with its interval."""
    width, row = 340, 32
    x = Scale(*limits, 4.0, width - 4.0)
    bottom = 4 + row * max(len(entries), 1) + 2
    bands = [(4 + row * index + 15, 4 + row * index + 31) for index in range(len(entries))]
    parts = horizontal_axis(x, bands, bottom, steps(*limits))
    told = []
    for index, (facts, change) in enumerate(entries):
        top = 4 + row * index
        number = signed(change.value)
        parts.append(label(12, top + 12, fitted(facts.name, width - 24 - 6.6 * len(number), 11), "name"))
        parts.append(label(width, top + 12, number, "number", "end"))
        parts.append(f'<g class="{escape(facts.group)}">')
        parts.append(_mark(facts.group, 5, top + 8.5, 3.2))
        if not math.isnan(change.low):
            parts.append(whisker(x(change.low), x(change.high), top + 23, "limits"))
        parts.append(_mark(facts.group, x(change.value), top + 23, 4) + "</g>")
        told.append(f"{facts.name} ({facts.group}): {_change_text(change)}")
    if not entries:
        parts = [label(2, 16, "no class", "tick")]
        told.append("no class")
    return drawing(identifier, (width, bottom + 18), title, "; ".join(told) + ".", parts)


def _change_text(change: Difference) -> str:
    around = interval(change.low, change.high, with_sign=True)
    return signed(change.value) if around == DASH else f"{signed(change.value)} {around}"


def _mark(group: str, x: float, y: float, radius: float, tooltip: str = "") -> str:
    d = outline(group, x, y, radius)
    if not tooltip:
        return f'<path class="mark" d="{d}"/>'
    return f'<path class="mark" d="{d}"><title>{escape(tooltip)}</title></path>'


def _running_median(logs: Reals, ap: Reals) -> list[tuple[float, float]]:
    """Return the medians of neighbours in frequency, a tenth of the classes at a time; none where classes are few."""
    known = np.flatnonzero(~np.isnan(ap))
    if len(known) < MEDIAN_CLASSES:
        return []
    order = known[np.argsort(logs[known], kind="stable")]
    window = max(15, len(order) // 10)
    starts = np.unique(np.linspace(0, len(order) - window, 40).round().astype(int))
    # Windows at nearly one frequency (many classes are equally rare) become one point: else the line would run upright.
    points: dict[int, list[tuple[float, float]]] = {}
    for start in starts:
        some = order[start : start + window]
        at = float(np.median(logs[some]))
        points.setdefault(round(15 * at), []).append((at, float(np.median(ap[some]))))
    return [
        (float(np.mean([at for at, _ in near])), float(np.median([y for _, y in near]))) for near in points.values()
    ]


def _frequency_chart(
    identifier: str,
    method: MethodResult,
    comparison: Comparison,
    scales: tuple[Scale, Scale],
    median: Sequence[tuple[float, float]],
    reference: Sequence[tuple[float, float]],
) -> str:
    x, y = scales
    few = len(comparison.classes) <= FEW_CLASSES
    parts = vertical_axis(y, x.start, x.stop, steps(0.0, y.high))
    last = -math.inf
    for value in (0.5, *(factor * 10.0**power for power in range(6) for factor in (1, 2, 5))):
        at = x(math.log10(value))
        # Powers of ten alone unless there is room for more.
        if x.start <= at <= x.stop and (value in (0.5, 1, 10, 100, 1e3, 1e4, 1e5) or x.high - x.low < 1.5):
            parts.append(line(at, y.start, at, y.stop, "grid"))
            if at - last > 30:
                parts.append(label(at, y.start + 13, tick_text(0.0 if value == 0.5 else value), "tick", "middle"))
                last = at
    told = []
    for group in GROUP_NAMES:
        points = [
            (facts, ap)
            for facts, ap in zip(comparison.classes, method.ap, strict=True)
            if facts.group == group and not math.isnan(ap)
        ]
        if not points:
            continue
        placed = [(facts, ap, x(math.log10(max(facts.train_count, 0.5))), y(ap)) for facts, ap in points]
        if few:
            marks = [
                _mark(group, px, py, 2.6, f"{facts.name}: {facts.train_count:,} training videos, AP {decimal(ap)}")
                for facts, ap, px, py in placed
            ]
            parts.append(f'<g class="point {group}">{"".join(marks)}</g>')
        else:
            d = "".join(outline(group, px, py, 1.5) for _, _, px, py in placed)
            parts.append(f'<path class="points {group}" d="{d}"/>')
        told.append(f"{group}: median {decimal(float(np.median([ap for _, ap in points])))} of {len(points):,} classes")
    for kind, curve in (("median reference", reference), ("median", median)):
        if curve:
            d = "L".join(f"{place(x(at))} {place(y(value))}" for at, value in curve)
            parts.append(f'<path class="halo" d="M{d}"/><path class="{kind}" d="M{d}"/>')
    parts.append(label(x.stop, y.start + 28, "training videos", "tick", "end"))
    parts.append(label(x.start + 4, y.stop + 8, "AP", "tick"))
    title = f"Average precision of each class against its training videos, {method.name}"
    return drawing(identifier, (340, 224), title, "; ".join(told or ["no class"]) + ".", parts)
