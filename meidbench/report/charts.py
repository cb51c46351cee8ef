"""The charts of a comparison as SVG: means, head against tail, gains and losses per class, precision by frequency.

All charts have about the same width, so a phone shows one below the other with letters of full size.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from meidbench.evaluation.compare import EQUAL, Comparison
from meidbench.evaluation.results import ClassFacts, Difference
from meidbench.report.drawing import (
    Scale,
    choose_ticks,
    draw_horizontal_axis,
    draw_interval,
    draw_line,
    draw_mark,
    draw_svg,
    draw_text,
    draw_vertical_axis,
    draw_vertical_line,
    format_coordinate,
    format_point,
    format_tick,
    mark_outline,
    shorten,
    wrap,
)
from meidbench.report.text import DASH, format_interval, format_number, format_signed
from meidbench.splits.groups import GROUP_NAMES

FEW_CLASSES = 200  # up to this number each class has its own mark with a tooltip
_FEW_CHANGES = 1000  # the same for the differences of all methods, which the page holds for each reference
MEDIAN_CLASSES = 50  # a running median of fewer classes shows noise
_NAMED_CLASSES = 6  # gains, and losses, with their names

Reals = npt.NDArray[np.float64]
Curve = Sequence[tuple[float, float]]
Change = tuple[ClassFacts, Difference]


@dataclass(frozen=True)
class Chart:
    """A chart with its caption; ``classes`` are the indices of the classes that it shows, None for all."""

    caption: str
    svg: str
    classes: tuple[int, ...] | None = None


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
    return draw_svg(
        f"mean-{group}", (width, bottom + 18), f"Mean average precision, {comparison.title(group)}", facts, parts
    )


def head_tail_chart(comparison: Comparison) -> str:
    """Draw one dot per method: its mean over the tail classes against its mean over the head classes."""
    methods = sorted(comparison.methods, key=lambda method: -method.mAP["tail"].value)
    head, tail = ([method.mAP[group].value for method in methods] for group in ("head", "tail"))
    step, top, left, right = 15.0, 24.0, 40.0, 205.0
    bottom = max(200.0, top + step * len(methods))
    x, y = Scale(*_spread(head), left, right), Scale(*_spread(tail), bottom, top)
    parts = draw_vertical_axis(y, left, right, choose_ticks(y.low, y.high))
    parts += draw_horizontal_axis(x, [(top, bottom)], bottom, choose_ticks(x.low, x.high, 4))
    # Names stand in a column beside the axis, in the order of the dots, so that none covers another.
    names = [y(value) for value in tail]
    for index in range(len(names)):
        names[index] = max(names[index], top + step * index, names[index - 1] + step if index else 0.0)
    for index in reversed(range(len(names))):
        names[index] = min(names[index], bottom - step * (len(names) - 1 - index))
    dots, facts = [], []
    for method, px, py, place in zip(methods, map(x, head), map(y, tail), names, strict=True):
        kind = "dot reference" if method.name == comparison.reference else "dot"
        line = f"M{format_point(px, py)}L{format_point(right + 10, place)}h5"
        parts.append(f'<path class="leader" d="{line}"/>')
        dots.append(f'<circle class="{kind}" cx="{format_coordinate(px)}" cy="{format_coordinate(py)}" r="4"/>')
        parts.append(draw_text(right + 18, place + 4, shorten(method.name, 340 - right - 18, 11), "name"))
        numbers = " and ".join(format_number(method.mAP[group].value) for group in ("head", "tail"))
        facts.append(f"{method.name}: {numbers}")
    parts += [
        *dots,
        draw_text(right, bottom + 28, f"{comparison.title('head')} mAP", "tick", "end"),
        draw_text(2, 10, f"{comparison.title('tail')} mAP", "tick"),
    ]
    return draw_svg("head-tail", (340, round(bottom) + 34), "Mean of the head and of the tail classes", facts, parts)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Return limits around all values, at least 0.02 apart."""
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), (0.02 - (high - low)) / 2)
    return low - margin, high + margin


def change_charts(comparison: Comparison) -> dict[str, list[Chart]]:
    """Draw the gains and losses per class of each method but the reference."""
    changes: dict[str, list[Change]] = {}
    for method in comparison.methods:
        if method.ap_difference is not None:
            pairs = zip(comparison.classes, method.ap_difference, strict=True)
            changes[method.name] = [pair for pair in pairs if not math.isnan(pair[1].value)]
    few = _are_few(comparison)
    shared = _change_limits([change for found in changes.values() for _, change in found], with_intervals=few)
    return {
        name: [
            _draw_profile(f"change-{index}", name, comparison, found, shared),
            _draw_largest(f"gain-{index}", name, comparison, found, 1),
            _draw_largest(f"loss-{index}", name, comparison, found, -1),
            _draw_changes_by_frequency(f"trend-{index}", name, comparison, found),
        ]
        for index, (name, found) in enumerate(changes.items())
    }


def _are_few(comparison: Comparison) -> bool:
    classes = len(comparison.classes)
    return classes <= FEW_CLASSES and classes * len(comparison.methods) <= _FEW_CHANGES


def _change_limits(changes: Iterable[Difference], with_intervals: bool) -> tuple[float, float]:
    values = [0.0]
    for change in changes:
        values += _drop_nan((change.value, change.low, change.high) if with_intervals else (change.value,))
    low, high = min(values), max(values)
    margin = 0.03 * (high - low) or 0.1
    return low - margin, high + margin


def _find_changed(changes: Sequence[Change], sign: int) -> list[Change]:
    """Return the gains (1) or losses (-1), the largest first."""
    found = [entry for entry in changes if sign * entry[1].value > EQUAL]
    return sorted(found, key=lambda entry: (-sign * entry[1].value, entry[0].index))


def _draw_profile(
    identifier: str, name: str, comparison: Comparison, changes: Sequence[Change], limits: tuple[float, float]
) -> Chart:
    """Draw the changes of all classes, sorted within each group: a few as marks with intervals, many as an area."""
    draw = _draw_sorted_marks if _are_few(comparison) else _draw_sorted_area
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
        parts.append(
            draw_text(left + width / 2, bottom + 16, f"{comparison.title(group)} ({len(entries):,})", "name", "middle")
        )
        parts.append(draw_text(left + width / 2, bottom + 30, tally, "number", "middle"))
        facts.append(f"{comparison.title(group)}: higher, equal and lower in {tally} classes")
        left += width + gap
    for sign, word in ((1, "gain"), (-1, "loss")):
        for largest, change in _find_changed(changes, sign)[:1]:
            facts.append(f"largest {word} {format_signed(change.value)} ({largest.name})")
    title = f"Difference of average precision by class, {name} against {comparison.reference}"
    intervals = draw is _draw_sorted_marks and comparison.replicates
    caption = f"all {len(changes):,} classes, sorted{', with intervals' if intervals else ''}"
    return Chart(caption, draw_svg(identifier, (340, 232), title, facts, parts))


def _draw_sorted_marks(group: str, entries: Sequence[Change], left: float, step: float, y: Scale) -> str:
    radius = min(3.0, max(1.4, 0.5 * step))
    lines, marks = [], []
    for rank, (facts, change) in enumerate(entries):
        x = left + (rank + 0.5) * step
        if not math.isnan(change.low):
            lines.append(f"M{format_point(x, y(change.low))}V{format_coordinate(y(change.high))}")
        marks.append(draw_mark(group, x, y(change.value), radius, f"{facts.name}: {_describe_change(change)}"))
    return f'<g class="{group}"><path class="spread" d="{"".join(lines)}"/>{"".join(marks)}</g>'


def _draw_sorted_area(group: str, entries: Sequence[Change], left: float, step: float, y: Scale) -> str:
    zero, d, before = format_coordinate(y(0.0)), "", ""
    for rank, (_, change) in enumerate(entries):
        height = format_coordinate(round(2 * y(change.value)) / 2)
        if height != before:  # many classes look the same
            d += (f"H{format_coordinate(left + rank * step)}" if rank else "") + f"V{height}"
            before = height
    end = format_coordinate(left + len(entries) * step)
    return f'<path class="area {group}" d="M{format_coordinate(left)} {zero}{d}H{end}V{zero}z"/>'


def _draw_largest(identifier: str, name: str, comparison: Comparison, changes: Sequence[Change], sign: int) -> Chart:
    """Draw the largest gains or losses: the name of each class left of the axis, its number right of it."""
    word = "gain" if sign > 0 else "loss"
    changed = _find_changed(changes, sign)
    entries = changed[:_NAMED_CLASSES]
    left, right, width, row = 160.0, 285.0, 340, 32
    low, high = _change_limits([change for _, change in entries], with_intervals=True)
    x = Scale(low, high, left, right)
    bottom = 4.0 + row * max(len(entries), 1)
    parts = draw_horizontal_axis(x, [(4.0, bottom)], bottom, choose_ticks(low, high, 3)) if entries else []
    facts = []
    for index, (named, change) in enumerate(entries):
        middle = 4.0 + row * (index + 0.5)
        lines = wrap(named.name, left - 24, 11)
        for place, line in enumerate(lines):
            parts.append(draw_text(14, middle + 4 + 12 * (place - (len(lines) - 1) / 2), line, "name"))
        parts.append(draw_text(width, middle + 4, format_signed(change.value), "number", "end"))
        parts.append(f'<g class="{escape(named.group)}">{draw_mark(named.group, 5, middle, 3.2)}')
        if not math.isnan(change.low):
            parts.append(draw_interval(x(change.low), x(change.high), middle, "limits"))
        tooltip = f"{named.name}: {_describe_change(change)}"
        parts.append(draw_mark(named.group, x(change.value), middle, 4, tooltip) + "</g>")
        facts.append(f"{named.name} ({comparison.title(named.group)}): {_describe_change(change)}")
    if not entries:
        parts, facts = [draw_text(2, 16, "no class", "tick")], ["no class"]
    many = {"gain": "gains", "loss": "losses"}[word]
    caption = f"{many}: the {len(entries)} largest of {len(changed):,}" if len(changed) > len(entries) else many
    if len(changed) <= len(entries):
        caption = f"{many}: all {len(changed)}" if changed else f"{many}: none"
    svg = draw_svg(identifier, (width, round(bottom) + 18), f"Largest {many} of {name}", facts, parts)
    return Chart(caption, svg, tuple(named.index for named, _ in entries))


def _describe_change(change: Difference) -> str:
    around = format_interval(change.low, change.high, with_sign=True)
    return format_signed(change.value) if around == DASH else f"{format_signed(change.value)} {around}"


def frequency_charts(comparison: Comparison) -> list[str]:
    """Draw each method's average precision against the training videos of a class, with a running median.

    The charts of the other methods show the reference's running median dashed. A class without a training video is at
    0, left of the classes with one video.
    """
    y = Scale(0.0, _upper_limit(ap for method in comparison.methods for ap in method.ap), 190.0, 10.0)
    reference = next(method for method in comparison.methods if method.name == comparison.reference)
    charts = []
    for index, method in enumerate(comparison.methods):
        title = f"Average precision of each class against its training videos, {method.name}"
        dashed = () if method is reference else reference.ap
        few = len(comparison.classes) <= FEW_CLASSES
        plot = _Plot(f"frequency-{index}", title, "AP", format_number, y, few, comparison.title)
        charts.append(_draw_by_frequency(plot, comparison.classes, method.ap, dashed))
    return charts


def _draw_changes_by_frequency(identifier: str, name: str, comparison: Comparison, changes: Sequence[Change]) -> Chart:
    limits = _change_limits([change for _, change in changes], with_intervals=False)
    title = f"Difference of average precision against training videos, {name} against {comparison.reference}"
    plot = _Plot(
        identifier,
        title,
        "difference",
        format_signed,
        Scale(*limits, 190.0, 10.0),
        _are_few(comparison),
        comparison.title,
    )
    svg = _draw_by_frequency(plot, [named for named, _ in changes], [change.value for _, change in changes])
    return Chart(name, svg)


def _running_median(logs: Reals, values: Reals) -> Curve:
    """Return the medians of neighbours in frequency, a tenth of the classes at a time; empty for few classes."""
    known = np.flatnonzero(~np.isnan(values))
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
        points.setdefault(round(15 * at), []).append((at, float(np.median(values[some]))))
    return [
        (float(np.mean([at for at, _ in near])), float(np.median([y for _, y in near]))) for near in points.values()
    ]


@dataclass(frozen=True)
class _Plot:
    """How values are drawn against the training videos of their classes."""

    identifier: str
    title: str
    quantity: str
    write: Callable[[float], str]
    y: Scale
    tooltips: bool
    name_group: Callable[[str], str]


def _draw_by_frequency(
    plot: _Plot, classes: Sequence[ClassFacts], values: Sequence[float], dashed: Sequence[float] = ()
) -> str:
    """Draw a mark per class and the running median; that of the values ``dashed`` is dashed."""
    logs = np.log10([max(facts.train_count, 0.5) for facts in classes])
    low, high = (float(logs.min()), float(logs.max())) if len(logs) else (0.0, 1.0)
    x, y = Scale(low - 0.07, max(high, low + 0.3) + 0.05, 34.0, 332.0), plot.y
    parts = draw_vertical_axis(y, x.start, x.stop, choose_ticks(y.low, y.high)) + _draw_frequency_axis(x, y)
    facts = []
    for group in GROUP_NAMES:
        members = [
            (named, value, x(at), y(value))
            for named, value, at in zip(classes, values, logs.tolist(), strict=True)
            if named.group == group and not math.isnan(value)
        ]
        if not members:
            continue
        if plot.tooltips:
            marks = ""
            for named, value, px, py in members:
                tooltip = f"{named.name}: {named.train_count:,} training videos, {plot.quantity} {plot.write(value)}"
                marks += draw_mark(group, px, py, 2.6, tooltip)
            parts.append(f'<g class="point {group}">{marks}</g>')
        else:
            places = dict.fromkeys((round(px), round(py)) for _, _, px, py in members)
            radius = 1.5 if len(classes) > FEW_CLASSES else 2.2
            d = "".join(mark_outline(group, px, py, radius) for px, py in places)
            parts.append(f'<path class="points {group}" d="{d}"/>')
        median = float(np.median([value for _, value, _, _ in members]))
        facts.append(f"{plot.name_group(group)}: median {plot.write(median)} of {len(members):,} classes")
    for kind, chosen in (("dashed", dashed), ("solid", values)):
        curve = _running_median(logs, np.array(chosen)) if len(chosen) else []
        d = "L".join(format_point(x(at), y(value)) for at, value in curve)
        paths = f'<path class="halo" d="M{d}"/><path class="median" d="M{d}"/>' if d else ""
        parts.append(f'<g class="{kind}">{paths}</g>')
    parts.append(draw_text(x.stop, y.start + 28, "training videos", "tick", "end"))
    parts.append(draw_text(x.start + 4, y.stop + 8, plot.quantity, "tick"))
    return draw_svg(plot.identifier, (340, 224), plot.title, facts or ["no class"], parts)


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
