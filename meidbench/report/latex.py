r"""A comparison as a LaTeX table: one row of values per method and, below it, one row of intervals."""

import re
from collections.abc import Sequence

from meidbench.errors import escape_controls
from meidbench.evaluation.compare import Comparison, MethodResult
from meidbench.evaluation.results import Difference, Estimate, SeedSpread, find_watermarks
from meidbench.report.text import (
    DASH,
    MINUS,
    budget_rows,
    describe_correction,
    find_best,
    format_interval,
    format_number,
    format_signed,
    is_significant,
)
from meidbench.splits.groups import BY_LIST

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        # These are not special, but LaTeX's default encoding (OT1) prints other characters instead.
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX; white space becomes single spaces, control characters become escapes."""
    return escape_controls(" ".join(text.split())).translate(_ESCAPES)


def comparison_latex(comparison: Comparison) -> str:
    r"""Return a comparison as a LaTeX table for a paper; it needs the package ``booktabs``.

    It is a ``table*`` (both columns of a page) with means and differences to the reference, or a ``table`` with only
    the means of a single method. The best mean of a column and all equal to it in three decimals are underlined; a
    difference is bold where it holds after Holm's correction.
    """
    differences = any(method.difference is not None for method in comparison.methods)
    environment = "table*" if differences else "table"
    groups = comparison.groups_shown
    columns, titles = len(groups), [escape_latex(comparison.title(group)) for group in groups]
    words = re.findall(r"[a-z0-9]+", f"{comparison.dataset} {comparison.variant} {comparison.subset}".lower())
    best = {group: find_best([method.mAP[group].value for method in comparison.methods]) for group in groups}
    lines = [
        "% \\usepackage{booktabs}",
        *(f"% {' '.join(note.split())}" for note in comparison.notes),
        f"\\begin{{{environment}}}[t]",
        "  \\centering",
        "  \\setlength{\\belowcaptionskip}{6pt}",
        f"  \\caption{{{_caption(comparison, differences)}}}",
        f"  \\label{{tab:{'-'.join(words)}}}",
        "  \\small",
        "  \\setlength{\\tabcolsep}{4pt}",
        f"  \\begin{{tabular}}{{@{{}}l{'c' * columns * (2 if differences else 1)}@{{}}}}",
        "    \\toprule",
    ]
    if differences:
        over = f"\\multicolumn{{{columns}}}{{c}}"
        lines += [
            f"    & {over}{{mAP}} & {over}{{difference to {escape_latex(comparison.reference)}}} \\\\",
            f"    \\cmidrule(lr){{2-{columns + 1}}} \\cmidrule(l){{{columns + 2}-{2 * columns + 1}}}",
        ]
    lines += [_row(["Method", *titles, *(titles if differences else ())]), "    \\midrule"]
    for place, method in enumerate(comparison.methods):
        if place:
            lines.append("    \\addlinespace")
        lines += _method_rows(method, groups, {group for group in groups if place in best[group]}, differences)
    lines += ["    \\bottomrule", "  \\end{tabular}", *_budget_lines(comparison), f"\\end{{{environment}}}"]
    return "\n".join(lines) + "\n"


def _caption(comparison: Comparison, differences: bool) -> str:
    groups = [
        f"{escape_latex(comparison.title(group))} ({comparison.group_classes[group]:,})"
        for group in comparison.groups_shown[1:]
    ]
    last = " and ".join([", ".join(groups[:-1]), *groups[-1:]]) if len(groups) > 1 else "".join(groups)
    over = f" and over the {last} classes" if groups else ""
    sentences = [f"\\textbf{{{escape_latex(mark)}.}}" for mark in find_watermarks(comparison.notes)]
    sentences.append(
        f"Mean average precision on the {escape_latex(comparison.subset)} subset of "
        f"{escape_latex(comparison.dataset)} (split: {escape_latex(comparison.variant)}; "
        f"{comparison.videos:,} videos, {comparison.group_classes['overall']:,} classes), "
        f"overall{over}; protocol: {escape_latex(comparison.protocol)}."
    )
    if comparison.thresholds is None:
        sentences.append(f"The groups of the classes are {BY_LIST}.")
    sentences += [f"{escape_latex(absent)}." for absent in comparison.absent_groups]
    if comparison.replicates:
        sentences.append(
            f"In brackets: {100 * comparison.level:g}\\,\\% intervals of the Bayesian bootstrap over videos "
            f"({comparison.replicates:,} replicates, seed {comparison.seed})."
        )
    if differences and comparison.replicates:
        sentences.append(
            f"Differences to {escape_latex(comparison.reference)} are taken under the same weights of the videos."
        )
    if any(method.seed_spread for method in comparison.methods):
        sentences.append("$\\pm$: standard deviation over training seeds.")
    if len(comparison.methods) > 1:
        sentences.append("Underlined: the highest mean of a column.")
    if differences and comparison.replicates:
        sentences.append(f"Bold: {describe_correction(comparison)}.")
    return " ".join(sentences)


def _budget_lines(comparison: Comparison) -> list[str]:
    """Return a note below the table with the budget of each method; nothing where no budget is known."""
    texts = []
    for name, steps, rate, batch, trials in budget_rows(comparison):
        budget = "unknown" if rate == trials == "-" else f"{steps} ({rate}; {batch}; {trials})"
        texts.append(f"{escape_latex(name)} {_symbols(budget)}")
    if not texts:
        return []
    note = f"Budgets, as optimiser steps (first rate; videos per step; trials): {', '.join(texts)}."
    sentences = f"{note} {escape_latex(comparison.unequal_budgets)}".rstrip()
    return [f"  \\par\\smallskip{{\\footnotesize {sentences}}}"]


def _method_rows(method: MethodResult, groups: Sequence[str], best: set[str], differences: bool) -> list[str]:
    name = escape_latex(method.name)
    # After the \\ of the row above, TeX would read an asterisk or a bracket as an argument.
    values, intervals = ["{}" + name if name.startswith(("*", "[")) else name], [""]
    for group in groups:
        spread = method.seed_spread[group] if method.seed_spread else None
        values.append(_value(method.mAP[group], group in best, spread))
        intervals.append(_interval(method.mAP[group]))
    for group in groups if differences else ():
        difference = None if method.difference is None else method.difference[group]
        change = "" if difference is None else _symbols(format_signed(difference.value))
        values.append(f"\\textbf{{\\boldmath {change}}}" if is_significant(method, group) else change)
        intervals.append("" if difference is None else _interval(difference))
    return [_row(values), _row(intervals)]


def _row(cells: Sequence[str]) -> str:
    return ("    " + " & ".join(cells)).rstrip() + " \\\\"


def _value(estimate: Estimate, best: bool, spread: SeedSpread | None) -> str:
    text = _symbols(format_number(estimate.value))
    text = f"\\underline{{{text}}}" if best else text
    return f"{text} {{\\scriptsize $\\pm$\\,{_without_zero(format_number(spread.std))}}}" if spread else text


def _interval(entry: Estimate | Difference) -> str:
    text = format_interval(entry.low, entry.high, with_sign=isinstance(entry, Difference))
    return "" if text == DASH else f"{{\\scriptsize {_symbols(_without_zero(text))}}}"


def _without_zero(text: str) -> str:
    return re.sub(r"\b0\.", ".", text)


def _symbols(text: str) -> str:
    return text.replace(MINUS, "$-$").replace("+", "$+$").replace(DASH, "--")
