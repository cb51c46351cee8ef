"""A comparison as one HTML file that needs nothing else: no network, no fonts, no library, no JavaScript.

The one script sorts the table of classes where JavaScript is on. A policy in the page's head allows this script alone
and forbids the page to load anything.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from html import escape

from meidbench.evaluation.compare import Comparison, Difference, Estimate, MethodResult
from meidbench.evaluation.results import GROUPS_SHOWN
from meidbench.report.charts import FEW_CLASSES, MEDIAN_CLASSES, change_charts, frequency_charts, mean_chart
from meidbench.report.plots import GROUP_COLOURS
from meidbench.report.text import DASH, best_places, decimal, interval, level_of, percent, signed
from meidbench.splits.split import GROUP_NAMES

# Edges are darker (on black: lighter) than the fills: orange alone would not stand out 3:1 from white (WCAG 1.4.11).
LIGHT = {
    "bg": "#ffffff",
    "fg": "#1b1f24",
    "soft": "#545d68",
    "rule": "#d3d8de",
    "grid": "#e4e7eb",
    "warn": "#fff4d6",
    "shade": "#0003",
    "faint": ".6",
    "overall": "#7b8794",
    "overall-edge": "#59636e",
    "head": GROUP_COLOURS["head"],
    "head-edge": "#005a8e",
    "medium": GROUP_COLOURS["medium"],
    "medium-edge": "#946400",
    "tail": GROUP_COLOURS["tail"],
    "tail-edge": "#a34700",
}
DARK = {
    "bg": "#14171b",
    "fg": "#e8ebee",
    "soft": "#a7b0ba",
    "rule": "#3a424b",
    "grid": "#2a3037",
    "warn": "#3a3016",
    "shade": "#fff3",
    "faint": ".85",
    "overall": "#7b8794",
    "overall-edge": "#b3bcc6",
    "head": "#2b8fd0",
    "head-edge": "#6bbcf0",
    "medium": GROUP_COLOURS["medium"],
    "medium-edge": "#ffc95c",
    "tail": GROUP_COLOURS["tail"],
    "tail-edge": "#ff9a55",
}

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem .75rem 3rem;max-width:72rem;background:var(--bg);color:var(--fg);
 font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .25rem;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;margin:2.5rem 0 .25rem;padding-top:.6rem;border-top:2px solid var(--fg)}
h3{font-size:1rem;margin:1.5rem 0 0}
p{margin:.4rem 0;max-width:46rem}
.soft,caption,figcaption{color:var(--soft)}
.warnings{background:var(--warn);border-left:4px solid var(--medium-edge);padding:.6rem .9rem;margin:1rem 0}
.warnings ul{margin:.25rem 0;padding-left:1.2rem}
.key{white-space:nowrap;margin-right:1rem}
.key i{font-style:normal;color:var(--fill);-webkit-text-stroke:.6px var(--edge)}
.box{overflow-x:auto;margin:.75rem 0 0;
 background:linear-gradient(to left,var(--bg) 40%,transparent) right 0 top -1px/2.5rem calc(100% + 2px) no-repeat local,
 linear-gradient(to left,var(--shade),transparent) right/.9rem 100% no-repeat scroll}
.box:focus-visible,summary:focus-visible,button:focus-visible{outline:2px solid var(--head-edge);outline-offset:2px}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;font-size:.9rem;line-height:1.4;padding:.2rem 0 .4rem;overflow-wrap:anywhere}
caption span{display:block;position:sticky;left:0;max-width:min(46rem,100vw - 1.5rem)}
th,td{padding:.4rem .7rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{vertical-align:bottom;border-bottom:2px solid var(--fg);font-weight:600;line-height:1.25}
thead th small{font-weight:400}
th:first-child,td.word,th.word{text-align:left}
th:first-child{padding-left:0!important}
tbody th{font-weight:500;white-space:normal;overflow-wrap:anywhere;min-width:7rem;max-width:18rem;
 position:sticky;left:0;background:var(--bg)}
td small,th small{display:block;color:var(--soft);font-size:.8rem}
td b{font-weight:700}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));
 gap:1rem 1.75rem;margin:.75rem 0}
.charts.four{grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr))}
figure{margin:0;min-width:0;max-width:30rem;break-inside:avoid}
figcaption{font-size:.9rem;line-height:1.3;margin-bottom:.3rem}
figcaption b{color:var(--fg)}
summary{cursor:pointer;font-weight:600;padding:.4rem 0}
.classes table{font-size:.85rem}
.classes th,.classes td{padding:.2rem .6rem}
.classes thead th{white-space:normal;overflow-wrap:anywhere;min-width:6.5rem}
button{all:unset;cursor:pointer}
th[aria-sort] button::after{content:" \\25BE"}
th[aria-sort=ascending] button::after{content:" \\25B4"}
svg{display:block;width:100%;height:auto;overflow:visible;font-family:inherit}
svg text{fill:var(--fg);stroke:var(--bg);stroke-width:3px;stroke-linejoin:round;paint-order:stroke;font-size:11px;
 font-variant-numeric:tabular-nums}
svg .tick{fill:var(--soft);font-size:10.5px}
svg .number{font-size:10.5px}
svg path,svg rect{vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid);stroke-width:1}
.zero{stroke:var(--soft);stroke-width:1.2}
path.reference{fill:none;stroke:var(--fg);stroke-width:1.2;stroke-dasharray:3 2}
.bar,.area{fill:var(--fill);stroke:var(--edge);stroke-width:1}
.mark{fill:var(--fill);stroke:var(--edge);stroke-width:.8}
.spread{stroke:var(--edge);stroke-width:1;opacity:.55;fill:none}
.limits{stroke:var(--edge);stroke-width:1.6;fill:none}
.whisker{stroke:var(--fg);stroke-width:1.5;fill:none}
.halo{stroke:var(--bg);stroke-width:4;fill:none;opacity:.85}
.point .mark{fill-opacity:.45}
.points{fill:var(--fill);fill-opacity:var(--faint)}
.median{stroke:var(--fg);stroke-width:2;fill:none;stroke-linejoin:round}
path.median.reference{stroke:var(--soft);stroke-width:1.8;stroke-dasharray:4 3}
@media (max-width:32rem){
 body{padding-top:1rem}
 th,td{padding:.35rem .45rem}
 table{font-size:.9rem}
 tbody th{min-width:7rem;max-width:8rem}
}
@media print{
 html{font-size:9pt}
 body{max-width:none;padding:0}
 .box{overflow:visible;background:none}
 th,td{padding:.15rem .35rem}
 tbody th{position:static}
 h2,h3,.soft,figcaption{break-after:avoid}
 tr{break-inside:avoid}
 .charts{grid-template-columns:repeat(3,1fr)}
 .charts.four{grid-template-columns:repeat(4,1fr);gap:1rem}
}
"""


def _variables(palette: dict[str, str]) -> str:
    return ":root{" + ";".join(f"--{name}:{colour}" for name, colour in palette.items()) + "}"


def stylesheet() -> str:
    """Return the CSS of the page."""
    groups = "".join(
        f".{name}{{--fill:var(--{name});--edge:var(--{name}-edge)}}" for name in ("overall", *GROUP_COLOURS)
    )
    # On paper colours are those of a light screen.
    return (
        ":root{color-scheme:light dark}"
        f"{_variables(LIGHT)}@media screen and (prefers-color-scheme:dark){{{_variables(DARK)}}}{groups}{_RULES}"
    )


_MARKS = {"head": "●", "medium": "■", "tail": "▲"}

_SORTING = """
document.querySelectorAll(".classes table").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const number = text => parseFloat(text.replace("\\u2212", "-").replaceAll(",", ""));
  heads.forEach((head, column) => {
    const button = document.createElement("button"), word = head.classList.contains("word");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : word;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [row.cells[column].textContent, row]);
      rows.sort(([a], [b]) => {
        if (word) return (up ? 1 : -1) * a.localeCompare(b);
        const x = number(a), y = number(b);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return up ? x - y : y - x;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
});
"""


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison as an HTML page: tables, charts and the results by class.

    The same comparison gives the same text; nothing of the time, the machine or a path is in it.
    """
    digest = base64.b64encode(hashlib.sha256(_SORTING.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    count = len(comparison.methods)
    title = f"{_heading(comparison)}: {count} method{'s' if count != 1 else ''}"
    sections = [
        _header(comparison),
        _warnings(comparison),
        _means(comparison),
        _seeds(comparison),
        _differences(comparison),
        _frequency(comparison),
        _classes(comparison),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f"<title>{escape(title)}</title>\n<style>{stylesheet()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{_SORTING}</script>\n</body>\n</html>\n"
    )


def _heading(comparison: Comparison) -> str:
    return f"{comparison.dataset} · {comparison.variant} · {comparison.subset}"


def _header(comparison: Comparison) -> str:
    facts = [
        f"{comparison.videos:,} videos",
        f"{len(comparison.classes):,} classes",
        f"protocol {escape(comparison.protocol)}",
        f"split digest <code>{escape(comparison.split_digest[:12])}</code>",
    ]
    sentences = ["Values are mean average precision (mAP) over classes, from 0 to 1."]
    without = sum(entry.positives == 0 for entry in comparison.classes)
    if without:
        sentences.append(f"{without:,} of the classes have no positive here and are left out of all means.")
    if comparison.replicates:
        level = f"{level_of(comparison.level)}&nbsp;%"
        sentences.append(
            f"The brackets are {level} intervals: how far a value would move with other videos of the same kind. Each "
            f"video got a random weight {comparison.replicates:,} times (Bayesian bootstrap over videos, seed "
            f"{comparison.seed}), and {level} of the values, centred on the mean, were within. They "
            "leave out what another training seed would change."
        )
    if len(comparison.methods) > 1:
        sentences.append(
            f"Differences are taken to <b>{escape(comparison.reference)}</b> under the same weights of the videos."
        )
    return (
        f"<header><h1>{escape(_heading(comparison))}</h1>\n"
        f'<p class="soft">{" · ".join(facts)}</p>\n<p>{" ".join(sentences)}</p></header>'
    )


def _warnings(comparison: Comparison) -> str:
    found = [(method.name, warning) for method in comparison.methods for warning in method.warnings]
    if not found:
        return ""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(warning)}</li>" for name, warning in found)
    return f'<section class="warnings" role="note"><b>Warnings</b><ul>{items}</ul></section>'


def _means(comparison: Comparison) -> str:
    best = {group: best_places([m.mAP[group].value for m in comparison.methods]) for group in GROUPS_SHOWN}
    tops = [best_places([getattr(m.accuracy, top) for m in comparison.methods]) for top in ("top1", "top5")]
    rows = []
    for place, method in enumerate(comparison.methods):
        cells = [_estimate(method.mAP[group], place in best[group]) for group in GROUPS_SHOWN]
        for value, first in zip((method.accuracy.top1, method.accuracy.top5), tops, strict=True):
            cells.append(f"<td>{_bold(decimal(value), place in first)}</td>")
        rows.append(_row(_name(comparison, method), cells))
    around = " with intervals over videos" if comparison.replicates else ""
    several = " Bold: the highest of its column in three decimals." if len(comparison.methods) > 1 else ""
    table = _table(
        "Means",
        f"Mean average precision{around}; top-1 and top-5: share of the videos of which one of the first 1 or 5 "
        f"classes is a label.{several}",
        map(_head, ["method", *_group_heads(comparison), "top-1", "top-5"]),
        rows,
    )
    figures = [
        _figure(
            _key(group) if group in _MARKS else f"<b>{group}</b>",
            mean_chart(comparison, group)
            if comparison.group_classes.get(group, 0)
            else '<p class="soft">no class with a positive</p>',
        )
        for group in GROUPS_SHOWN
    ]
    whisker = ", line: interval over videos" if comparison.replicates else ""
    dashed = ", dashed line: the reference" if len(comparison.methods) > 1 else ""
    return (
        f'<section><h2>Means</h2>\n{table}\n<p class="soft">Bar: mean{whisker}{dashed}.</p>\n'
        f'<div class="charts four">{"".join(figures)}</div></section>'
    )


def _seeds(comparison: Comparison) -> str:
    rows = []
    for method in comparison.methods:
        if method.seed_spread is None:
            continue
        cells = [f"<td>{len(method.seeds):,}<small>{escape(', '.join(method.seeds))}</small></td>"]
        for group in GROUPS_SHOWN:
            spread = method.seed_spread[group]
            ends = decimal(spread.low), decimal(spread.high)
            between = "" if DASH in ends else f"<small>{ends[0]} to {ends[1]}</small>"
            cells.append(f"<td>± {decimal(spread.std)}{between}</td>")
        rows.append(_row(_name(comparison, method), cells))
    if not rows:
        return ""
    table = _table(
        "Spread over training seeds",
        "Standard deviation of the mAP over training seeds, below it lowest to highest. The intervals of the other "
        "tables stand for the choice of videos, not of seeds. All other values are averages over the seeds.",
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
            if math.isnan(entry.value):
                cells.append(f"<td>{DASH}</td>")
                continue
            apart = entry.low > 0 or entry.high < 0
            lines = [f"{tally.wins:,} / {tally.ties:,} / {tally.losses:,}"]
            if not math.isnan(entry.low):
                lines = [
                    interval(entry.low, entry.high, with_sign=True),
                    _probability(entry, comparison.replicates),
                    *lines,
                ]
            small = "".join(f"<small>{escape(text)}</small>" for text in lines)
            cells.append(f"<td>{_bold(signed(entry.value), apart)}{small}</td>")
        rows.append(_row(_name(comparison, method), cells))
    if not rows:
        return ""
    reference = escape(comparison.reference)
    around = "its interval over videos, the probability P of being better, and " if comparison.replicates else "and "
    bold = " Bold: the interval does not hold\u00a00." if comparison.replicates else ""
    table = _table(
        "Differences to the reference",
        f"Difference of the mAP to the reference, {around}in how many classes the method is better / equal / worse."
        f"{bold}",
        map(_head, ["method", *_group_heads(comparison)]),
        rows,
    )
    few = len(comparison.classes) <= FEW_CLASSES
    intervals = ", with intervals" if few and comparison.replicates else ", sorted"
    parts = []
    for name, charts in change_charts(comparison).items():
        figures = (
            _figure(f"all classes{intervals}", charts.profile)
            + _figure("largest gains", charts.gains)
            + _figure("largest losses", charts.losses)
        )
        parts.append(f'<h3>{escape(name)} against {reference}</h3><div class="charts">{figures}</div>')
    return (
        f"<section><h2>Differences to {reference}</h2>\n{table}\n"
        f'<p class="soft">Below: difference of average precision by class, sorted within its group; under a group the '
        f"classes that are better / equal / worse. {_keys()}</p>\n" + "\n".join(parts) + "</section>"
    )


def _frequency(comparison: Comparison) -> str:
    figures = []
    for method, chart in zip(comparison.methods, frequency_charts(comparison), strict=True):
        figures.append(_figure(f"<b>{escape(method.name)}</b>", chart))
    dashed = "; dashed: that of the reference" if len(comparison.methods) > 1 else ""
    median = (
        f"Line: running median over neighbouring classes{dashed}. "
        if sum(facts.positives > 0 for facts in comparison.classes) >= MEDIAN_CLASSES
        else ""
    )
    return (
        '<section><h2>Average precision and frequency</h2>\n<p class="soft">One mark a class, by its number of '
        f'training videos. {median}{_keys()}</p>\n<div class="charts">{"".join(figures)}</div></section>'
    )


def _classes(comparison: Comparison) -> str:
    heads = [("class", "word"), ("no.", ""), ("group", "word"), ("training videos", ""), ("positives", "")]
    heads += [(f"AP, {method.name}", "") for method in comparison.methods]
    against = [method for method in comparison.methods if method.ap_difference is not None]
    heads += [(f"difference, {method.name}", "") for method in against]
    rows = []
    for place, facts in enumerate(comparison.classes):
        cells = [f"<td>{facts.index}</td>", f'<td class="word">{escape(facts.group)}</td>']
        cells += [f"<td>{facts.train_count:,}</td>", f"<td>{facts.positives:,}</td>"]
        cells += [f"<td>{decimal(method.ap[place])}</td>" for method in comparison.methods]
        cells += [_change(method.ap_difference[place]) for method in against if method.ap_difference is not None]
        rows.append(_row(escape(facts.name), cells))
    caption = (
        f"Average precision by class; differences to {comparison.reference}."
        if against
        else "Average precision by class."
    )
    table = _table("Classes", caption, (_head(escape(text), kind) for text, kind in heads), rows)
    return (
        f'<section class="classes"><h2>Classes</h2>\n<details><summary>All {len(comparison.classes):,} classes'
        f"</summary>\n{table}</details></section>"
    )


def _change(entry: Difference) -> str:
    around = interval(entry.low, entry.high, with_sign=True)
    return f"<td>{signed(entry.value)}" + ("" if around == DASH else f"<small>{around}</small>") + "</td>"


def _probability(entry: Difference, replicates: int) -> str:
    text = percent(entry.probability, replicates)
    return f"P {text}" if text[0] in "<>" else f"P = {text}"


def _estimate(entry: Estimate, best: bool) -> str:
    around = interval(entry.low, entry.high)
    small = "" if around == DASH else f"<small>{around}</small>"
    return f"<td>{_bold(decimal(entry.value), best)}{small}</td>"


def _bold(text: str, bold: bool) -> str:
    return f"<b>{text}</b>" if bold else text


def _name(comparison: Comparison, method: MethodResult) -> str:
    is_reference = method.name == comparison.reference and len(comparison.methods) > 1
    return escape(method.name) + ("<small>reference</small>" if is_reference else "")


def _group_heads(comparison: Comparison) -> list[str]:
    return [f"{group}<small>{comparison.group_classes.get(group, 0):,} classes</small>" for group in GROUPS_SHOWN]


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _head(content: str, kind: str = "") -> str:
    return f'<th scope="col" class="{kind}">{content}</th>' if kind else f'<th scope="col">{content}</th>'


def _table(name: str, caption: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table in a box of its own that scrolls sideways; ``heads`` and ``rows`` are elements already."""
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
