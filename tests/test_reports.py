"""The page and the LaTeX table of invented comparisons."""

import base64
import hashlib
import re
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import meidbench as mb
from meidbench.evaluation.compare import (
    ComparedRun,
    Comparison,
    MethodResult,
    compare,
)
from meidbench.evaluation.results import GROUPS_SHOWN, Accuracy, ClassFacts, Difference, Estimate, SeedSpread
from meidbench.report.drawing import choose_ticks, estimate_width, format_coordinate, format_tick, shorten
from meidbench.report.html import comparison_html
from meidbench.report.latex import comparison_latex, escape_latex
from meidbench.report.plots import GROUP_COLOURS, plot_class_frequencies
from meidbench.report.text import (
    DASH,
    MINUS,
    comparison_table,
    find_best,
    format_corrected,
    format_interval,
    format_number,
    format_probability,
    format_signed,
)

NAN = float("nan")
STYLE = files("meidbench.report").joinpath("page.css").read_text("utf-8")
PALETTES = [
    dict(re.findall(r"--([\w-]+):\s*(#\w{6})", rule)) for rule in re.findall(r":root\s*{\s*(--.*?)}", STYLE, re.DOTALL)
]
VOID = {"meta"}
HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too'"


def make_comparison(
    names=("bce", "meid"),
    classes=12,
    *,
    seeds=(),
    head=0.1,
    tail=0.35,
    missing=(),
    tied=False,
    replicates=40,
    warnings=(),
    class_names=None,
    generator_seed=0,
    lift=0.03,
    **facts,
):
    """Return a comparison of random methods; the first is the reference."""
    generator = np.random.default_rng(generator_seed)
    counts = np.sort((1200 * generator.random(classes) ** 4).astype(int) + 3)[::-1]
    place = (np.arange(classes) + 0.5) / classes
    group_of = np.where(place < head, "head", np.where(place < 1 - tail, "medium", "tail"))
    positives = np.maximum(counts // 4, 1)
    positives[list(missing)] = 0
    known = positives > 0
    members = {"overall": known, **{group: known & (group_of == group) for group in GROUPS_SHOWN[1:]}}
    noise = generator.normal(size=(replicates, classes)) * 0.35 / np.sqrt(positives + 3)

    def runs(offset):
        logit = -1.6 + 0.55 * np.log10(counts) + offset + generator.normal(0, 0.9, classes)
        ap = 1 / (1 + np.exp(-logit))
        ap[~known] = NAN
        return ap, np.clip(ap + noise + generator.normal(size=noise.shape) * 0.15 / np.sqrt(positives + 3), 0, 1)

    def ends(samples):
        if not len(samples) or np.isnan(samples).any():
            return NAN, NAN
        return tuple(np.quantile(samples, [0.025, 0.975]).tolist())

    def mean(values, group):
        return values[..., members[group]].mean(axis=-1) if members[group].any() else np.full(values.shape[:-1], NAN)

    base_ap, base = runs(0.0)
    methods = []
    for index, name in enumerate(names):
        ap, samples = (base_ap, base) if index == 0 or tied else runs(lift * index)
        if index and not tied:  # methods agree on which classes are hard
            ap, samples = 0.75 * base_ap + 0.25 * ap + lift, 0.75 * base + 0.25 * samples + lift
        of_seeds = {
            group: SeedSpread(len(seeds), 0.004, mean(ap, group) - 0.005, mean(ap, group) + 0.003)
            for group in GROUPS_SHOWN
        }
        methods.append(
            MethodResult(
                name=name,
                seeds=tuple(seeds),
                mAP={group: Estimate(float(mean(ap, group)), *ends(mean(samples, group))) for group in GROUPS_SHOWN},
                seed_spread=of_seeds if len(seeds) > 1 else None,
                difference=None,
                tally=None,
                corrected=None,
                samples=samples,
                accuracy=Accuracy(0.4 + 0.01 * index, 0.7 + 0.01 * index),
                ap=tuple(ap.tolist()),
                ap_difference=None,
                warnings=tuple(warnings) if index == 0 else (),
            )
        )
    class_names = class_names or [f"Class {index}" for index in range(classes)]
    return Comparison(
        **{
            "dataset": "toylt",
            "variant": "released",
            "subset": "test",
            "split_digest": "0123456789abcdef" * 4,
            "videos": 1234,
            "reference": names[0],
            "replicates": replicates,
            "seed": 7,
            "level": 0.95,
            "group_classes": {group: int(chosen.sum()) for group, chosen in members.items()},
            "classes": tuple(
                ClassFacts(c, class_names[c], str(group_of[c]), int(counts[c]), int(positives[c]))
                for c in range(classes)
            ),
            "methods": tuple(methods),
            **facts,
        }
    ).with_reference(names[0])


TWELVE = tuple(f"method {index}" for index in range(12))
CASES = {
    "one": {"names": ("bce",), "classes": 157},
    "two": {"classes": 157},
    "three, several seeds": {"names": ("bce", "meid", "ldam"), "seeds": ("1", "2", "3")},
    "twelve": {"names": TWELVE, "classes": 157},
    "many classes": {"names": ("bce", "meid", "ldam"), "classes": 1004},
    "no head": {"head": 0.0, "missing": (3,)},
    "all in one group": {"head": 1.0},
    "tied": {"tied": True, "classes": 60},
    "nothing known": {"missing": tuple(range(12))},
    "no replicates": {"replicates": 0},
    "one class": {"classes": 1},
    "zero everywhere": {"tied": True, "generator_seed": 3},
    "hostile": {"names": (HOSTILE, "b" * 300), "class_names": [HOSTILE * 5] * 12, "warnings": (HOSTILE,)},
}


def made(name):
    comparison = make_comparison(**CASES[name])
    if name == "zero everywhere":
        methods = [
            replace(method, ap=(0.0,) * 12, mAP=dict.fromkeys(GROUPS_SHOWN, Estimate(0.0, 0.0, 0.0)))
            for method in comparison.methods
        ]
        classes = tuple(replace(facts, train_count=0) for facts in comparison.classes)
        comparison = replace(comparison, methods=tuple(methods), classes=classes)
    return comparison


class Page(HTMLParser):
    """The parts of a page; tags that do not match are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.started, self.charts, self.tables, self.text = [], [], [], [], []
        self.attributes = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.started.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.charts.append({"attributes": dict(attrs), "children": [], "text": {}})
        elif "svg" in self.open and self.open[-2] == "svg":
            self.charts[-1]["children"].append((tag, dict(attrs).get("id")))
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append([])
            if tag == "th":
                assert dict(attrs)["scope"] in ("col", "row")

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "svg" in self.open and self.open[-1] in ("title", "desc") and self.open[-2] == "svg":
            self.charts[-1]["text"][self.open[-1]] = data
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif "td" in self.open or "th" in self.open:
            self.tables[-1]["rows"][-1][-1].append(data)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    comparison = made(request.param)
    return comparison, comparison_html(comparison)


def test_page_is_well_formed_and_self_contained(case):
    _, text = case
    page = Page(text)
    assert not [found for found in page.attributes if found[1] in ("src", "xlink:href", "srcset", "data")]
    links = [found for found in page.attributes if found[1] == "href"]
    assert links and all(tag == "a" and value.startswith("#") for tag, _, value in links)
    assert {tag for tag, *_ in page.attributes} & {"link", "img", "iframe", "object", "use", "image"} == set()
    assert not re.search(r"https?:|//|@import|url\(", text.replace("http-equiv", ""))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)) and {value[1:] for _, _, value in links} <= set(identifiers)
    assert ("html", "lang", "en") in page.attributes
    assert any(value.startswith("width=device-width") for _, name, value in page.attributes if name == "content")
    assert page.started.count("script") == 1
    assert not re.search(r"\b(nan|inf)\b", re.sub("<template.*?</template>", "", text))


def packed(text):
    """Return what the page holds for each reference: name -> HTML."""
    contents = re.findall('<template class="against" data-name="(.*?)"(?: data-shown)?>(.*?)</template>', text)
    return {unescape(name): zlib.decompress(base64.urlsafe_b64decode(content)).decode() for name, content in contents}


def test_page_holds_every_choice_of_the_reference(case):
    comparison, text = case
    names = [method.name for method in comparison.methods]
    references = packed(text)
    assert list(references) == (names if len(names) > 1 else [])
    for name in list(references)[-1:]:
        whole = comparison_html(comparison.with_reference(name))
        parts = re.findall('<section id="(?:means|differences)">.*?</section>', whole, re.DOTALL)
        found = references[name]
        assert found.startswith("".join(parts)) and len(parts) == 2
        assert Page(found).started.count("script") == 0
        lines = found[found.index("<pre") :].removesuffix("</pre>").splitlines()[1:]
        for line, row in zip(lines, Page(whole).tables[-1]["rows"][1:], strict=True):
            cells = [[cell[0], *re.findall(r"[^][, ]+", "".join(cell[1:]))] for cell in row[5 + len(names) :]]
            assert [cell.split(" ") for cell in line.split("\t")] == [
                [number.replace(MINUS, "-") for number in cell] for cell in cells
            ]


def test_every_chart_has_a_text_alternative(case):
    comparison, text = case
    page = Page(text)
    groups = sum(comparison.group_classes[group] > 0 for group in GROUPS_SHOWN)
    several = len(comparison.methods) > 1
    both = several and comparison.group_classes["head"] > 0 and comparison.group_classes["tail"] > 0
    assert len(page.charts) == groups + both + len(comparison.methods) + 4 * (len(comparison.methods) - 1)
    for chart in page.charts:
        names = [tag for tag, _ in chart["children"]]
        assert names[:2] == ["title", "desc"] and names.count("title") == names.count("desc") == 1
        assert chart["attributes"]["role"] == "img"
        assert chart["attributes"]["aria-labelledby"] == " ".join(key for _, key in chart["children"][:2])
        assert all(chart["text"].values()) and len(chart["text"]) == 2
    overall = page.charts[int(both)]["text"]["desc"] if groups else ""
    for method in comparison.methods if groups else ():
        assert f"{method.name}: {format_number(method.mAP['overall'].value)}" in overall


def test_tables_hold_every_number(case):
    comparison, text = case
    tables = Page(text).tables
    assert all(table["caption"] for table in tables)
    means = tables[0]["rows"]
    assert [row[0][0] for row in means[1:]] == [method.name for method in comparison.methods]
    for method, row in zip(comparison.methods, means[1:], strict=True):
        for group, cell in zip(GROUPS_SHOWN, row[1:5], strict=True):
            estimate = method.mAP[group]
            around = format_interval(estimate.low, estimate.high)
            assert cell == [format_number(estimate.value)] + ([] if around == DASH else [around])
        assert [cell[0] for cell in row[5:]] == [
            format_number(method.accuracy.top1),
            format_number(method.accuracy.top5),
        ]
    rest = [method for method in comparison.methods if method.difference]
    seeds = comparison.methods[0].seed_spread is not None
    assert len(tables) == 2 + bool(rest) + seeds
    for method, row in zip(rest, tables[-2]["rows"][1:] if rest else [], strict=True):
        for group, cell in zip(GROUPS_SHOWN, row[1:], strict=True):
            entry, tally = method.difference[group], method.tally[group]
            assert cell[0] == format_signed(entry.value)
            if cell[0] != DASH:
                assert cell[-1] == f"{tally.wins:,} / {tally.ties:,} / {tally.losses:,}"
            if not np.isnan(entry.low):
                assert cell[1] == format_interval(entry.low, entry.high, with_sign=True)
                probability = format_probability(entry.probability, comparison.replicates)
                assert cell[2] in (f"P = {probability}", f"P {probability}")
                assert (cell[3] == f"Holm {format_corrected(method.corrected[group])}") == (len(rest) > 1)
    if seeds:
        for method, row in zip(comparison.methods, tables[1]["rows"][1:], strict=True):
            assert row[1] == ["3", "1, 2, 3"]
            for group, cell in zip(GROUPS_SHOWN, row[2:], strict=True):
                spread = method.seed_spread[group]
                assert cell == [
                    f"± {format_number(spread.std)}",
                    f"{format_number(spread.low)} to {format_number(spread.high)}",
                ]
    by_class = tables[-1]["rows"]
    assert len(by_class) == 1 + len(comparison.classes)
    for place, row in enumerate(by_class[1:]):
        facts = comparison.classes[place]
        found = [cell[0] for cell in row]
        assert found[:5] == [
            facts.name, str(facts.index), facts.group, f"{facts.train_count:,}", f"{facts.positives:,}",
        ]  # fmt: skip
        expected = [format_number(method.ap[place]) for method in comparison.methods]
        assert found[5:] == expected + [format_signed(method.ap_difference[place].value) for method in rest]


def test_page_and_table_are_the_same_every_time(case):
    comparison, text = case
    assert comparison_html(replace(comparison)) == text
    assert comparison_latex(replace(comparison)) == comparison_latex(comparison)


def test_names_are_only_text():
    page = Page(comparison_html(made("hostile")))
    assert page.started.count("script") == 1
    assert HOSTILE in page.text and HOSTILE * 5 in page.text
    assert f": {HOSTILE}" in page.text  # the warning


def test_only_the_page_s_own_script_may_run():
    text = comparison_html(make_comparison())
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for _, name, value in Page(text).attributes if name == "content" and "default-src" in value)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_twelve_methods_on_a_thousand_classes_stay_small():
    comparison = make_comparison(TWELVE, 1004, class_names=[f"a class with a name, {index}" for index in range(1004)])
    assert len(comparison_html(comparison).encode()) < 4_000_000


def test_page_names_the_source_of_its_numbers():
    comparison = make_comparison(replicates=40, missing=(2,), warnings=("no split digest",))
    text = "".join(Page(comparison_html(comparison)).text)
    for words in (
        "toylt · released · test", "1,234 videos", "12 classes", "tie-aware", "0123456789ab", "40 times", "seed 7",
        "95\N{NO-BREAK SPACE}% intervals", "Bayesian bootstrap over videos", "no split digest",
        "left out of all means (number of classes: 1)",
    ):  # fmt: skip
        assert words in text


def test_the_highest_of_a_column_is_underlined_and_so_are_ties():
    text = comparison_html(make_comparison(tied=True))
    means = text[text.index("<tbody>") : text.index("</tbody>")]
    assert means.count("<u>") == 2 * 4 + 2 and "<b>" not in means
    alone = comparison_html(make_comparison(("bce",)))
    assert "<u>" not in alone[alone.index("<tbody>") : alone.index("</tbody>")]


@pytest.mark.parametrize(("corrected", "bold"), [(0.049, True), (0.05, True), (0.051, False), (NAN, False)])
def test_only_a_difference_that_holds_after_the_correction_is_bold(corrected, bold):
    comparison = make_comparison(("bce", "meid", "ldam"))
    fixed = {"difference": dict.fromkeys(GROUPS_SHOWN, Difference(0.004, -0.01, 0.02, 0.9))}
    holm = [dict.fromkeys(GROUPS_SHOWN, 1.0) | {"tail": value} for value in (corrected, 1.0)]
    others = [
        replace(method, corrected=values, **fixed) for method, values in zip(comparison.methods[1:], holm, strict=True)
    ]
    comparison = replace(comparison, methods=(comparison.methods[0], *others))
    text = comparison_html(comparison)
    table = text[text.index('<table id="differences-table">') : text.index('<h3 id="against-1">')]
    assert table[: table.index("</table>")].count("<b>") == bold and ("<b>+0.004</b>" in table) == bold
    assert comparison_latex(comparison).count("\\textbf") == bold
    assert comparison_table(comparison).count("+0.0040 [-0.010, +0.020]*") == bold
    for place in (text, comparison_latex(comparison), comparison_table(comparison)):
        assert "a two-sided probability of at most 0.05 after Holm" in place and "correction for 2 methods." in place


def test_with_one_method_to_compare_nothing_is_corrected():
    comparison = make_comparison(replicates=100)
    probability = comparison.methods[1].difference["tail"].probability
    expected = 2 * max(min(probability, 1 - probability), 0.01)
    assert comparison.methods[1].corrected["tail"] == pytest.approx(expected)
    assert "Holm" not in comparison_table(comparison) + comparison_latex(comparison)
    assert "Holm" not in re.sub(
        "<script>.*</script>|<template.*?</template>", "", comparison_html(comparison), flags=re.DOTALL
    )


def test_no_rounding_hides_a_sign():
    comparison = make_comparison(("bce", "meid", "ldam"), replicates=1000)
    small = dict.fromkeys(GROUPS_SHOWN, Difference(0.00004, -0.0002, 0.0003, 1.0))
    methods = [replace(method, difference=small) for method in comparison.methods[1:]]
    comparison = replace(comparison, methods=(comparison.methods[0], *methods))
    table, page = comparison_table(comparison), comparison_html(comparison)
    assert "+0.00004 [-0.0002, +0.0003]" in table and ">0.999" in table
    assert "+0.00004<" in page and f"[{MINUS}0.0002, +0.0003]" in page and "P &gt;0.999" in page
    assert "$+$0.00004" in comparison_latex(comparison)


def test_page_of_real_runs(toy_split, tmp_path):
    files = []
    for seed in (1, 2):
        scores = np.random.default_rng(seed).random((len(toy_split.video_ids("test")), toy_split.num_classes))
        path = tmp_path / f"random {seed}.parquet"
        mb.write_predictions(path, toy_split.video_ids("test"), scores, toy_split, "test")
        files.append(ComparedRun.from_argument(str(path)))
    comparison = compare(files, toy_split, "test", replicates=20)
    text = comparison_html(comparison)
    assert format_number(comparison.methods[1].mAP["tail"].value) in text and str(tmp_path) not in text
    assert [row[0][0] for row in Page(text).tables[0]["rows"]] == ["method", "random 1", "random 2"]
    assert braces_balance(comparison_latex(comparison))


@pytest.mark.parametrize("palette", PALETTES, ids=["light", "dark"])
def test_contrast_meets_wcag_aa(palette):
    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    def contrast(one, other):
        low, high = sorted((luminance(palette[one]), luminance(palette[other])))
        return (high + 0.05) / (low + 0.05)

    assert contrast("fg", "bg") >= 7 and contrast("fg", "warn") >= 7
    assert contrast("soft", "bg") >= 4.5
    for group in GROUPS_SHOWN:
        assert contrast(f"{group}-edge", "bg") >= 4.5


def test_page_and_plots_have_the_same_colours():
    light, dark = PALETTES
    assert {group: light[group] for group in GROUP_COLOURS} == GROUP_COLOURS
    assert light.keys() == dark.keys() and not set(re.findall(r"var\(--([\w-]+)\)", STYLE)) - light.keys() - {
        "shade", "faint", "fill", "edge",
    }  # fmt: skip


def test_class_frequencies_are_dots_on_one_logarithmic_axis_under_the_paper_s_names(toy_split, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    named = replace(toy_split.metadata, dataset="charadeslt")
    larger = replace(named, dataset="other", variant="pareto", train_counts=tuple(9 * toy_split.train_counts))
    splits = [toy_split, *(SimpleNamespace(
        metadata=facts, dataset=facts.dataset, variant=facts.variant, num_classes=facts.num_classes,
        groups=toy_split.groups, train_counts=np.array(facts.train_counts), thresholds=toy_split.thresholds,
        group_names={},
    ) for facts in (named, larger))]  # fmt: skip
    plot_class_frequencies(splits, tmp_path / "p.svg")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["toylt", "CharadesLT", "other (pareto)"]
    assert {panel.get_ylim() for panel in panels} == {panels[0].get_ylim()}
    low, high = panels[0].get_ylim()
    for panel, split in zip(panels, splits, strict=True):
        assert panel.get_yscale() == "log" and not panel.patches
        dots = [line for line in panel.lines if line.get_marker() == "."]
        counts = sorted((y for line in dots for y in line.get_ydata()), reverse=True)
        assert counts == sorted(split.train_counts, reverse=True) and low < counts[-1] and counts[0] < high


@pytest.mark.parametrize("text", ["", "short", "a_long_name_of_a_method_" * 9, "見出し" * 30, "W" * 90, " x " * 40])
def test_labels_fit_their_width(text):
    short = shorten(text, 120, 11)
    assert estimate_width(short, 11) <= 120
    assert short == text or ("…" in short and short[0] == text[0] and short[-1] == text[-1])


def braces_balance(text):
    depth = 0
    for character in re.sub(r"\\[{}\\]", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    return depth == 0


def test_latex_is_balanced_and_of_even_width(case):
    comparison, _ = case
    text = comparison_latex(comparison)
    assert braces_balance(text)
    for name in ("table", "tabular"):
        assert len(re.findall(rf"\\begin{{{name}\*?}}", text)) == len(re.findall(rf"\\end{{{name}\*?}}", text)) == 1
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 2 * len(comparison.methods)
    shown = sum(known > 0 for known in list(comparison.group_classes.values())[1:]) + 1
    columns = 1 + shown * (1 if len(comparison.methods) == 1 else 2)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
    assert "nan" not in text


def test_latex_escapes_all_ten_specials_and_leaves_the_rest():
    specials = r"& % $ # _ { } ~ ^ \ "
    escaped = escape_latex(specials)
    assert escaped == r"\& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    assert escape_latex("é 見 ü\n\nx") == "é 見 ü x"
    text = comparison_latex(make_comparison((specials, "a_b"), dataset="50%_set", subset="te#st"))
    assert text.count(escaped) == 3  # its row, the columns' head, the caption
    assert r"50\%\_set" in text and r"te\#st" in text and "\\label{tab:50-set-released-te-st}" in text


def test_latex_names_that_tex_would_take_for_an_argument():
    text = comparison_latex(make_comparison(("bce", "[a]", "*b")))
    assert "    {}[a] &" in text and "    {}*b &" in text


def test_latex_underlines_the_best_of_a_column():
    comparison = make_comparison(("bce", "meid", "ldam"), 60)
    text = comparison_latex(comparison)
    best = [format_number(max(method.mAP[group].value for method in comparison.methods)) for group in GROUPS_SHOWN]
    assert sorted(re.findall(r"\\underline{(.*?)}", text)) == sorted(best)
    assert comparison_latex(make_comparison(tied=True)).count("\\underline") == 2 * 4
    assert "\\underline" not in comparison_latex(make_comparison(("bce",)))


def test_latex_holds_every_number():
    comparison = make_comparison(seeds=("1", "2"))
    text = comparison_latex(comparison)
    for words in ("12 classes", "1,234 videos", "released", "tie-aware", "40 replicates, seed 7", "95\\,\\%"):
        assert words in text
    for method in comparison.methods:
        for group in GROUPS_SHOWN:
            estimate = method.mAP[group]
            assert format_number(estimate.value) in text
            assert format_interval(estimate.low, estimate.high).replace("0.", ".") in text
            if method.difference:
                assert format_signed(method.difference[group].value).replace("+", "$+$").replace(MINUS, "$-$") in text
    assert text.count("$\\pm$\\,.004") == 8


def test_latex_of_a_group_without_classes_says_so_and_has_no_column():
    text = comparison_latex(make_comparison(head=0.0))
    assert "Method & overall & medium & tail & overall" in text and "--" not in text
    assert "overall and over the medium (8) and tail (4) classes" in text and " head: no classes." in text


def test_ticks_coordinates_and_best_values():
    assert choose_ticks(0.0, 0.83) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert (format_tick(-0.2), format_tick(1000.0)) == (f"{MINUS}0.2", "1,000")
    assert [format_coordinate(value) for value in (12.04, 0.26, -0.01)] == ["12", ".3", "0"]
    assert shorten("a_method_with_a_long_name_1", 100, 10) == "a_metho…_name_1"
    assert sorted(find_best([0.1511, 0.1514, 0.12, float("nan")])) == [0, 1]
    assert escape_latex("50 % & more_or_less é") == r"50 \% \& more\_or\_less é"
    assert ComparedRun.from_argument("meid@1=out/predictions.parquet") == ComparedRun(
        "meid", "1", Path("out/predictions.parquet")
    )
    assert ComparedRun.from_argument("ldam@7.npz").seed == "7"
    assert format_number(-0.0001) == "0.000" and format_probability(0.0, 40) == "<0.025"
