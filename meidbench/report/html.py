"""A comparison as one HTML file that needs nothing else: no network, no fonts, no library, no JavaScript.

The only script sorts the table of classes where JavaScript is on. A policy in the page's head allows only this script
and forbids the page to load anything. The page contains copies of ``page.css`` and ``page.js``.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from meidbench.evaluation.compare import Comparison, MethodResult
from meidbench.evaluation.results import COLUMNS, GROUPS_SHOWN, MEANINGS
from meidbench.report.charts import MEDIAN_CLASSES, change_charts, frequency_charts, mean_chart
from meidbench.report.text import (
    DASH,
    excludes_zero,
    find_best,
    format_interval,
    format_number,
    format_percent,
    format_signed,
)
from meidbench.splits.split import GROUP_NAMES

_MARKS = {"head": "●", "medium": "■", "tail": "▲"}


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison as an HTML page: tables, charts and the results of each class.

    The same comparison gives the same text: it holds no time, no machine and no path.
    """
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    script = f"\n{script}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    count = len(comparison.methods)
    title = f"{_heading(comparison)}: {count} method{'s' if count != 1 else ''}"
    sections = (_header, _warnings, _means, _seeds, _differences, _frequency, _classes)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, (section(comparison) for section in sections)))
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _heading(comparison: Comparison) -> str:
    return f"{comparison.dataset} · {comparison.variant} · {comparison.subset}"


def _header(comparison: Comparison) -> str:
    facts = (
        f"{comparison.videos:,} videos · {len(comparison.classes):,} classes · "
        f"protocol {escape(comparison.protocol)} · split digest <code>{escape(comparison.split_digest[:12])}</code> · "
        f"content digest <code>{escape(comparison.content_digest[:12])}</code>"
    )
    sentences = ["Values are mean average precision (mAP) over classes, from 0 to 1."]
    without = sum(entry.positives == 0 for entry in comparison.classes)
    if without:
        sentences.append(f"{without:,} of the classes have no positive here and are left out of all means.")
    if comparison.replicates:
        level = f"{100 * comparison.level:g}&nbsp;%"
        sentences.append(
            f"The brackets are {level} intervals: how much a value would change with other videos of the same kind. "
            f"Each video got a random weight {comparison.replicates:,} times (Bayesian bootstrap over videos, seed "
            f"{comparison.seed}), and {level} of the values, centred on the mean, lie within. They do not cover the "
            "choice of the training seed."
        )
    if len(comparison.methods) > 1:
        reference = escape(comparison.reference)
        sentences.append(f"Differences are to <b>{reference}</b> under the same weights of the videos.")
    notes = "".join(f"<p><b>{escape(note)}</b></p>\n" for note in comparison.notes)
    return (
        f"<header><h1>{escape(_heading(comparison))}</h1>\n"
        f'<p class="soft">{facts}</p>\n{notes}<p>{" ".join(sentences)}</p></header>'
    )


def _warnings(comparison: Comparison) -> str:
    items = ""
    for method in comparison.methods:
        items += "".join(f"<li><b>{escape(method.name)}</b>: {escape(warning)}</li>" for warning in method.warnings)
    return f'<section class="warnings" role="note"><b>Warnings</b><ul>{items}</ul></section>' if items else ""


def _means(comparison: Comparison) -> str:
    methods, replicates = comparison.methods, comparison.replicates
    best = {group: find_best([method.mAP[group].value for method in methods]) for group in GROUPS_SHOWN}
    tops = [(column, find_best([column.value(method) for method in methods])) for column in COLUMNS]
    rows = []
    for place, method in enumerate(methods):
        cells = []
        for group in GROUPS_SHOWN:
            estimate = method.mAP[group]
            around = format_interval(estimate.low, estimate.high)
            cells.append(_cell(format_number(estimate.value), [around], bold=place in best[group]))
        cells += [_cell(format_number(column.value(method)), bold=place in top) for column, top in tops]
        rows.append(_row(_name(comparison, method), cells))
    around = " with intervals over videos" if replicates else ""
    several = " Bold: the highest of its column in three decimals." if len(methods) > 1 else ""
    table = _table(
        "Means",
        f"Mean average precision{around}; {'; '.join(MEANINGS)}.{several}",
        map(_head, ["method", *_group_heads(comparison), *(column.title for column in COLUMNS)]),
        rows,
    )
    figures = ""
    for group in GROUPS_SHOWN:
        caption = _key(group) if group in _MARKS else f"<b>{group}</b>"
        known = comparison.group_classes[group]
        chart = mean_chart(comparison, group) if known else '<p class="soft">no class with a positive</p>'
        figures += _figure(caption, chart)
    whisker = ", line: interval over videos" if replicates else ""
    dashed = ", dashed line: the reference" if len(methods) > 1 else ""
    return (
        f'<section><h2>Means</h2>\n{table}\n<p class="soft">Bar: mean{whisker}{dashed}.</p>\n'
        f'<div class="charts four">{figures}</div></section>'
    )


def _seeds(comparison: Comparison) -> str:
    rows = []
    for method in comparison.methods:
        if method.seed_spread is None:
            continue
        cells = [_cell(f"{len(method.seeds):,}", [", ".join(method.seeds)])]
        for spread in (method.seed_spread[group] for group in GROUPS_SHOWN):
            between = DASH if math.isnan(spread.low) else f"{format_number(spread.low)} to {format_number(spread.high)}"
            cells.append(_cell(f"± {format_number(spread.std)}", [between]))
        rows.append(_row(_name(comparison, method), cells))
    if not rows:
        return ""
    table = _table(
        "Spread over training seeds",
        "Standard deviation of the mAP over training seeds, below it lowest to highest. The intervals of the other "
        "tables cover the choice of videos, not of seeds. All other values are averages over the seeds.",
        map(_head, ["method", "seeds", *GROUPS_SHOWN]),
        rows,
    )
    return f"<section><h2>Spread over training seeds</h2>\n{table}</section>"


def _differences(comparison: Comparison) -> str:
    rows = []
    for method in comparison.methods:
        if method.difference is None or method.tally is None:
            continue
        cells = []
        for group in GROUPS_SHOWN:
            entry, tally = method.difference[group], method.tally[group]
            notes = [format_interval(entry.low, entry.high, with_sign=True)]
            if not math.isnan(entry.low):
                probability = format_percent(entry.probability, comparison.replicates)
                notes.append(f"P {probability}" if probability[0] in "<>" else f"P = {probability}")
            notes.append(f"{tally.wins:,} / {tally.ties:,} / {tally.losses:,}")
            known = not math.isnan(entry.value)
            bold = known and excludes_zero(entry.low, entry.high)
            cells.append(_cell(format_signed(entry.value), notes if known else (), bold=bold))
        rows.append(_row(_name(comparison, method), cells))
    if not rows:
        return ""
    reference, replicates = escape(comparison.reference), comparison.replicates
    around = "its interval over videos, the probability P of being better, and " if replicates else "and "
    key = " Bold: the interval, as shown, does not contain\u00a00." if replicates else ""
    table = _table(
        "Differences to the reference",
        f"Difference of the mAP to the reference, {around}the numbers of classes in which the method is better / equal "
        f"/ worse.{key}",
        map(_head, ["method", *_group_heads(comparison)]),
        rows,
    )
    parts = []
    for name, charts in change_charts(comparison).items():
        figures = "".join(_figure(caption, chart) for caption, chart in charts.items())
        parts.append(f'<h3>{escape(name)} against {reference}</h3><div class="charts">{figures}</div>')
    return (
        f"<section><h2>Differences to {reference}</h2>\n{table}\n"
        '<p class="soft">Below: difference of average precision per class, sorted within each group; below a group '
        f"the numbers of better / equal / worse classes. {_keys()}</p>\n" + "\n".join(parts) + "</section>"
    )


def _frequency(comparison: Comparison) -> str:
    charts = zip(comparison.methods, frequency_charts(comparison), strict=True)
    figures = "".join(_figure(f"<b>{escape(method.name)}</b>", chart) for method, chart in charts)
    dashed = "; dashed: the reference" if len(comparison.methods) > 1 else ""
    enough = sum(facts.positives > 0 for facts in comparison.classes) >= MEDIAN_CLASSES
    median = f"Line: running median over neighbouring classes{dashed}. " if enough else ""
    return (
        '<section><h2>Average precision and frequency</h2>\n<p class="soft">One mark per class, by its number of '
        f'training videos. {median}{_keys()}</p>\n<div class="charts">{figures}</div></section>'
    )


def _classes(comparison: Comparison) -> str:
    against = [(method.name, method.ap_difference) for method in comparison.methods if method.ap_difference is not None]
    heads = [_head("class", "word"), _head("no."), _head("group", "word"), _head("training videos"), _head("positives")]
    heads += [_head(escape(f"AP, {method.name}")) for method in comparison.methods]
    heads += [_head(escape(f"difference, {name}")) for name, _ in against]
    rows = []
    for place, facts in enumerate(comparison.classes):
        cells = [_cell(str(facts.index)), f'<td class="word">{escape(facts.group)}</td>']
        cells += [_cell(f"{facts.train_count:,}"), _cell(f"{facts.positives:,}")]
        cells += [_cell(format_number(method.ap[place])) for method in comparison.methods]
        for entry in (differences[place] for _, differences in against):
            cells.append(_cell(format_signed(entry.value), [format_interval(entry.low, entry.high, with_sign=True)]))
        rows.append(_row(escape(facts.name), cells))
    differences = f"; differences to {comparison.reference}" if against else ""
    table = _table("Classes", f"Average precision by class{differences}.", heads, rows)
    return (
        f'<section class="classes"><h2>Classes</h2>\n<details><summary>All {len(comparison.classes):,} classes'
        f"</summary>\n{table}</details></section>"
    )


def _name(comparison: Comparison, method: MethodResult) -> str:
    is_reference = method.name == comparison.reference and len(comparison.methods) > 1
    return escape(method.name) + ("<small>reference</small>" if is_reference else "")


def _group_heads(comparison: Comparison) -> list[str]:
    return [f"{group}<small>{comparison.group_classes[group]:,} classes</small>" for group in GROUPS_SHOWN]


def _cell(value: str, notes: Sequence[str] = (), *, bold: bool = False) -> str:
    """Return a cell: a value, and small notes below it; a note that is a dash is left out."""
    small = "".join(f"<small>{escape(note)}</small>" for note in notes if note != DASH)
    return f"<td>{f'<b>{value}</b>' if bold else value}{small}</td>"


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _head(content: str, kind: str = "") -> str:
    return f'<th scope="col" class="{kind}">{content}</th>' if kind else f'<th scope="col">{content}</th>'


def _table(name: str, caption: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table in its own box, which scrolls sideways; ``heads`` and ``rows`` are elements."""
    return (
        f'<div class="box" role="region" aria-label="{name}" tabindex="0"><table>'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _key(group: str) -> str:
    return f'<span class="key {group}"><i aria-hidden="true">{_MARKS[group]}</i> <b>{group}</b></span>'


def _keys() -> str:
    return "".join(map(_key, GROUP_NAMES))
