"""A comparison as one HTML file that needs nothing else: no network, no fonts, no library.

It is readable without JavaScript. The script sorts tables, copies their numbers, and shows the comparison against
another reference: what depends on the reference is in the page once for each method, packed. A policy in the page's
head allows only this script and forbids the page to load anything. The page contains copies of ``page.css`` and
``page.js``.
"""

import base64
import hashlib
import math
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from meidbench.evaluation.budget import COLUMNS as BUDGET_COLUMNS
from meidbench.evaluation.budget import MEANING as BUDGET_MEANING
from meidbench.evaluation.budget import describe_total
from meidbench.evaluation.compare import Comparison, MethodResult
from meidbench.evaluation.results import COLUMNS, GROUPS_SHOWN, MEANINGS, Difference
from meidbench.report.charts import (
    MEDIAN_CLASSES,
    Chart,
    change_charts,
    frequency_charts,
    head_tail_chart,
    mean_chart,
)
from meidbench.report.text import (
    DASH,
    MINUS,
    budget_rows,
    describe_correction,
    find_best,
    format_corrected,
    format_interval,
    format_number,
    format_probability,
    format_signed,
    is_significant,
)

_MARKS = {"head": "●", "medium": "■", "tail": "▲"}
_CLASS_FACTS = 5  # columns of the table of classes before its columns per method


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
    made = {name: section(comparison) for name, section in _SECTIONS.items()}
    made = {name: section for name, section in made.items() if section}
    contents = "".join(f'<li><a href="#{name}">{_TITLES[name]}</a></li>' for name in made)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f'{_header(comparison)}\n{_warnings(comparison)}<nav aria-label="Contents"><ul>{contents}</ul></nav>\n'
        + "\n".join(made.values())
        + f"\n</main>\n{_references(comparison)}<script>{script}</script>\n</body>\n</html>\n"
    )


def _references(comparison: Comparison) -> str:
    """Return what changes with the reference, for each method: two sections, and the differences of all classes."""
    if len(comparison.methods) < 2:
        return ""
    templates = ""
    for method in comparison.methods:
        same = method.name == comparison.reference
        against = comparison if same else comparison.with_reference(method.name)
        differences = [other.ap_difference for other in against.methods if other.ap_difference is not None]
        changes = "\n".join("\t".join(map(_pack_difference, row)) for row in zip(*differences, strict=True))
        changed = f'{_means(against)}{_differences(against)}<pre class="changes">\n{changes}</pre>'
        packed = zlib.compress(changed.encode(), 9)
        content = base64.urlsafe_b64encode(packed).decode()
        chosen = " data-shown" if same else ""
        templates += f'<template class="against" data-name="{escape(method.name)}"{chosen}>{content}</template>\n'
    return templates


def _pack_difference(entry: Difference) -> str:
    numbers = (entry.value,) if math.isnan(entry.low) else (entry.value, entry.low, entry.high)
    return " ".join(map(format_signed, numbers)).replace(MINUS, "-")


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
        sentences.append(f"Classes without a positive here are left out of all means (number of classes: {without:,}).")
    if comparison.replicates:
        level = f"{100 * comparison.level:g}&nbsp;%"
        sentences.append(
            f"The brackets are {level} intervals. They tell how much a value would change with other videos of the "
            f"same kind: each video got a random weight {comparison.replicates:,} times (Bayesian bootstrap over "
            f"videos, seed {comparison.seed}), and the brackets hold the middle {level} of the results, centred on the "
            "value. They do not cover the choice of the training seed."
        )
    if len(comparison.methods) > 1:
        reference = f'<b class="reference-name">{escape(comparison.reference)}</b>'
        sentences.append(f"Differences are to {reference} under the same weights of the videos.")
    notes = "".join(f"<p><b>{escape(note)}</b></p>\n" for note in comparison.notes)
    return (
        f"<header><h1>{escape(_heading(comparison))}</h1>\n"
        f'<p class="soft">{facts}</p>\n{notes}<p>{" ".join(sentences)}</p></header>'
    )


def _warnings(comparison: Comparison) -> str:
    warnings = comparison.list_warnings()
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(warning)}</li>" for name, warning in warnings)
    if unequal := comparison.unequal_budgets:
        items += f'<li><a href="#budgets">{escape(unequal)}</a></li>'
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
            cells.append(_cell(format_number(estimate.value), [around], "u" if place in best[group] else ""))
        for column, top in tops:
            cells.append(_cell(format_number(column.value(method)), kind="u" if place in top else ""))
        rows.append(_row(_name(comparison, method), cells))
    around = " with intervals over videos" if replicates else ""
    several = " Underlined: the highest of its column in three decimals." if len(methods) > 1 else ""
    heads = [_head("method", "word"), *_group_heads(comparison, "low|high" if replicates else "")]
    table = _table(
        "means-table",
        "Means",
        f"Mean average precision{around}; {'; '.join(MEANINGS)}.{several}",
        [*heads, *(_head(column.title) for column in COLUMNS)],
        rows,
    )
    figures = ""
    for place, group in enumerate(GROUPS_SHOWN, 1):
        caption = _key(comparison, group) if group in _MARKS else f"<b>{group}</b>"
        absent = comparison.describe_absence(group)
        chart = f'<p class="soft">{absent}</p>' if absent else mean_chart(comparison, group)
        figures += _figure(caption, chart, f"means-table 0 {place}")
    whisker = ", line: interval over videos" if replicates else ""
    dashed = ", dashed line: the reference" if len(methods) > 1 else ""
    if len(methods) > 1 and comparison.group_classes["head"] and comparison.group_classes["tail"]:
        caption = "<b>head against tail</b>: one dot per method, hollow: the reference; better is up and right"
        table = f'<div class="beside">{table}{_figure(caption, head_tail_chart(comparison), "means-table 0 2 4")}</div>'
    return _section(
        "means",
        f'{table}\n<p class="soft">Bar: mean{whisker}{dashed}.</p>\n<div class="charts four">{figures}</div>',
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
        rows.append(_row(escape(method.name), cells))
    if not rows:
        return ""
    heads = [_head("method", "word"), _head("seeds", notes="names")]
    table = _table(
        "seeds-table",
        "Spread over training seeds",
        "Standard deviation of the mAP over training seeds, below it lowest to highest. The intervals of the other "
        "tables cover the choice of videos, not of seeds. All other values are averages over the seeds.",
        heads + [_head(_group_title(comparison, group), notes="low|high") for group in GROUPS_SHOWN],
        rows,
    )
    return _section("seeds", table)


def _budgets(comparison: Comparison) -> str:
    rows = []
    for method, (name, steps, *others) in zip(comparison.methods, budget_rows(comparison), strict=False):
        total = describe_total(method.budgets)  # the column is sorted by it
        texts = [DASH if text == "-" else text for text in (total, *others)]
        cells = [_cell(texts[0], [steps] if steps != total else []), *map(_cell, texts[1:])]
        rows.append(_row(escape(name), cells))
    if not rows:
        return ""
    heads = [_head("method", "word"), _head(BUDGET_COLUMNS[0], notes="stages"), *map(_head, BUDGET_COLUMNS[1:])]
    unequal = f"<p><b>{escape(comparison.unequal_budgets)}</b></p>\n" if comparison.unequal_budgets else ""
    caption = f"The training behind the scores, as the prediction files have it; {BUDGET_MEANING}."
    return _section("budgets", unequal + _table("budgets-table", "Budgets", caption, heads, rows))


def _differences(comparison: Comparison) -> str:
    compared = [(place, method) for place, method in enumerate(comparison.methods) if method.difference is not None]
    if not compared:
        return ""
    several = len(compared) > 1
    rows = []
    for _, method in compared:
        cells = [_difference_cell(comparison, method, group, with_correction=several) for group in GROUPS_SHOWN]
        rows.append(_row(_name(comparison, method), cells))
    reference = escape(comparison.reference)
    around, key, notes = "the numbers", "", "better|equal|worse"
    if comparison.replicates:
        around = "its interval over videos, the probability P of being better, and the numbers"
        if several:
            around = around.replace(" and", " the two-sided probability after Holm's correction, and")
        key = f" Bold: {describe_correction(comparison)}."
        notes = f"low|high|P(better)|{'p(Holm)|' if several else ''}{notes}"
    table = _table(
        "differences-table",
        "Differences to the reference",
        f"Difference of the mAP to the reference, {around} of classes in which the method is better / equal / worse."
        f"{key}",
        [_head("method", "word"), *_group_heads(comparison, notes)],
        rows,
    )
    links = " · ".join(f'<a href="#against-{place}">{escape(method.name)}</a>' for place, method in compared)
    parts = [
        f'<p class="soft">Below, per class: {links} · <a href="#gains">gain and frequency</a>. {_keys(comparison)}</p>'
    ]
    by_frequency = ""
    column = _CLASS_FACTS + len(comparison.methods)
    for (place, _), (name, charts) in zip(compared, change_charts(comparison).items(), strict=True):
        *by_class, trend = (_change_figure(chart, column) for chart in charts)
        parts.append(_subsection(f"against-{place}", f"{escape(name)} against {reference}", "".join(by_class)))
        by_frequency += trend
        column += 1
    parts.append(_subsection("gains", f"Gain against {reference} and number of training videos", by_frequency))
    return _section("differences", f"{table}\n" + "\n".join(parts), f"Differences to {reference}")


def _difference_cell(comparison: Comparison, method: MethodResult, group: str, *, with_correction: bool) -> str:
    assert method.difference is not None and method.tally is not None and method.corrected is not None
    entry, tally = method.difference[group], method.tally[group]
    if math.isnan(entry.value):
        return _cell(DASH)
    notes = [format_interval(entry.low, entry.high, with_sign=True)]
    if not math.isnan(entry.low):
        probability = format_probability(entry.probability, comparison.replicates)
        notes.append(f"P {probability}" if probability[0] in "<>" else f"P = {probability}")
        if with_correction:
            notes.append(f"Holm {format_corrected(method.corrected[group])}")
    notes.append(f"{tally.wins:,} / {tally.ties:,} / {tally.losses:,}")
    return _cell(format_signed(entry.value), notes, "b" if is_significant(method, group) else "")


def _change_figure(chart: Chart, column: int) -> str:
    chosen = "" if chart.classes is None else f' data-rows="{" ".join(map(str, chart.classes))}"'
    return _figure(escape(chart.caption), chart.svg, f"classes-table 0 2 3 {column}", chosen)


def _frequency(comparison: Comparison) -> str:
    figures = ""
    for place, chart in enumerate(frequency_charts(comparison)):
        caption = f"<b>{escape(comparison.methods[place].name)}</b>"
        figures += _figure(caption, chart, f"classes-table 0 2 3 {_CLASS_FACTS + place}")
    dashed = "; dashed: the reference" if len(comparison.methods) > 1 else ""
    enough = sum(facts.positives > 0 for facts in comparison.classes) >= MEDIAN_CLASSES
    median = f"Line: running median over neighbouring classes{dashed}. " if enough else ""
    return _section(
        "frequency",
        f'<p class="soft">One mark per class, by its number of training videos. {median}{_keys(comparison)}</p>\n'
        f'<div class="charts">{figures}</div>',
    )


def _classes(comparison: Comparison) -> str:
    heads = [_head("class", "word"), _head("no."), _head("group", "word"), _head("training videos"), _head("positives")]
    heads += [_head(escape(f"AP, {method.name}")) for method in comparison.methods]
    against = [(method.name, method.ap_difference) for method in comparison.methods if method.ap_difference is not None]
    notes = "low|high" if comparison.replicates else ""
    heads += [_head(escape(f"difference, {name}"), notes=notes) for name, _ in against]
    rows = []
    for place, facts in enumerate(comparison.classes):
        cells = [_cell(str(facts.index)), f'<td class="word">{escape(comparison.title(facts.group))}</td>']
        cells += [_cell(f"{facts.train_count:,}"), _cell(f"{facts.positives:,}")]
        cells += [_cell(format_number(method.ap[place])) for method in comparison.methods]
        for entry in (differences[place] for _, differences in against):
            cells.append(_cell(format_signed(entry.value), [format_interval(entry.low, entry.high, with_sign=True)]))
        rows.append(_row(escape(facts.name), cells))
    caption = "Average precision by class" + ("; differences to the reference." if against else ".")
    return _section("classes", _table("classes-table", "Classes", caption, heads, rows))


_SECTIONS = {
    "means": _means,
    "seeds": _seeds,
    "budgets": _budgets,
    "differences": _differences,
    "frequency": _frequency,
    "classes": _classes,
}
_TITLES = {
    "means": "Means",
    "seeds": "Spread over training seeds",
    "budgets": "Budgets",
    "differences": "Differences",
    "frequency": "Average precision and frequency",
    "classes": "Classes",
}


def _section(name: str, content: str, title: str = "") -> str:
    title = title or _TITLES[name]
    return f'<section id="{name}"><h2>{title}{_anchor(name, title)}</h2>\n{content}</section>'


def _subsection(identifier: str, title: str, figures: str) -> str:
    return f'<h3 id="{identifier}">{title}{_anchor(identifier, title)}</h3>\n<div class="charts">{figures}</div>'


def _anchor(identifier: str, title: str) -> str:
    return f'<a class="anchor" href="#{identifier}" aria-label="Link to: {title}">#</a>'


def _name(comparison: Comparison, method: MethodResult) -> str:
    is_reference = method.name == comparison.reference and len(comparison.methods) > 1
    return escape(method.name) + ("<small>reference</small>" if is_reference else "")


def _group_heads(comparison: Comparison, notes: str) -> list[str]:
    heads = []
    for group in GROUPS_SHOWN:
        count = comparison.describe_absence(group) or f"{comparison.group_classes[group]:,} classes"
        heads.append(_head(f"{escape(comparison.title(group))}<small>{count}</small>", notes=notes))
    return heads


def _group_title(comparison: Comparison, group: str) -> str:
    absent = comparison.describe_absence(group)
    return escape(comparison.title(group)) + (f"<small>{absent}</small>" if absent else "")


def _cell(value: str, notes: Sequence[str] = (), kind: str = "") -> str:
    """Return a cell: a value, in an element of a kind, and small notes below it; a note that is a dash is left out."""
    small = "".join(f"<small>{escape(note)}</small>" for note in notes if note != DASH)
    return f"<td>{f'<{kind}>{value}</{kind}>' if kind else value}{small}</td>"


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _head(content: str, kind: str = "", notes: str = "") -> str:
    """Return the head of a column; ``notes`` are the names of the numbers in the small notes of its cells."""
    css_class = f' class="{kind}"' if kind else ""
    named = f' data-notes="{notes}"' if notes else ""
    return f'<th scope="col"{css_class}{named}>{content}</th>'


def _table(identifier: str, name: str, caption: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table in its own box, which scrolls sideways; ``heads`` and ``rows`` are elements."""
    return (
        f'<div class="table"><div class="box" role="region" aria-label="{name}" tabindex="0"><table id="{identifier}">'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "</tbody></table></div></div>"
    )


def _figure(caption: str, chart: str, source: str, rows: str = "") -> str:
    """Return a figure; ``source`` is the table that holds its numbers, and the columns of the table."""
    return f'<figure data-source="{source}"{rows}><figcaption>{caption}</figcaption>{chart}</figure>'


def _key(comparison: Comparison, group: str) -> str:
    title = escape(comparison.title(group))
    return f'<span class="key {group}"><i aria-hidden="true">{_MARKS[group]}</i> <b>{title}</b></span>'


def _keys(comparison: Comparison) -> str:
    return "".join(_key(comparison, group) for group in comparison.groups_shown[1:])
