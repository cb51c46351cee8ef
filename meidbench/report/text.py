"""Tables for a terminal."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from tabulate import tabulate

from meidbench.comparison import Comparison, Difference, Estimate
from meidbench.manifests import Manifest
from meidbench.results import GROUPS_SHOWN, Interval, Result
from meidbench.statistics import Statistics

_GROUP_SIZES = ("head", "medium", "tail")
_SUBSET_SIZES = ("train", "val", "test")


def _number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.{digits}f}"


def _triple(facts: dict[str, float], names: Sequence[str]) -> str:
    return " / ".join(f"{facts[name]:,.0f}" for name in names)


def statistics_column(facts: dict[str, float]) -> list[str]:
    """Return one split's cells of the statistics table; what is not known is a dash.

    Parameters
    ----------
    facts : dict
        Fields of ``Statistics``, or a manifest's row of the paper with ``classes``.
    """

    def cell(name: str, digits: int) -> str:
        return _number(facts.get(name), digits)

    per_subset = [cell(f"labels_per_video_{name}", 2) for name in _SUBSET_SIZES]
    return [
        cell("classes", 0),
        _triple(facts, _GROUP_SIZES),
        _triple(facts, _SUBSET_SIZES),
        cell("labels_per_video", 2 if "labels_per_video_train" in facts else 1),
        " / ".join(per_subset) if "labels_per_video_train" in facts else "-",
        f"{cell('most_frequent', 0)} / {cell('least_frequent', 0)}" if "most_frequent" in facts else "-",
        cell("imbalance_ratio", 1),
        cell("least_positives_test", 0),
    ]


_STATISTICS_ROWS = (
    "classes",
    "head / medium / tail",
    "train / val / test",
    "labels a video, train+test",
    "  train / val / test",
    "most / least frequent",
    "imbalance ratio",
    "least positives in test",
)


def statistics_table(statistics: Sequence[Statistics]) -> str:
    """Lay out Table 1 with one column a split."""
    columns = [statistics_column(asdict(entry)) for entry in statistics]
    header = ["", *(_split_name(entry) for entry in statistics)]
    return _columns_table(header, columns)


def _split_name(entry: Statistics) -> str:
    return entry.dataset if entry.variant == "released" else f"{entry.dataset} {entry.variant}"


def table_1_comparison(statistics: Statistics, manifest: Manifest) -> str:
    """Lay out a built split's row of Table 1 beside the paper's."""
    columns, header = [statistics_column(asdict(statistics))], [manifest.title, "built"]
    if manifest.paper:
        columns.append(paper_column(manifest))
        header.append("paper")
    return _columns_table(header, columns)


def paper_column(manifest: Manifest) -> list[str]:
    """Return the cells of the paper's row of Table 1."""
    return statistics_column({"classes": float(manifest.num_classes), **manifest.paper})


def fitting_table(header: list[str], columns: list[list[str]], width: int) -> str:
    """Lay out columns of ``statistics_column`` within a width: tighter where they do not fit, else one by one.

    Parameters
    ----------
    header : list of str
        What the table is about, and a title for each column.
    columns : list of list of str
    width : int
        Characters in a line. A single column may be wider.

    Returns
    -------
    str
        Tables one below the other where they are several.
    """
    tight = [[cell.replace(" / ", "/") for cell in column] for column in columns]
    for cells in (columns, tight):
        text = _columns_table(header, cells)
        if max(map(len, text.splitlines())) <= width:
            return text
    alone = [_columns_table([header[0], title], [column]) for title, column in zip(header[1:], tight, strict=True)]
    return "\n\n".join(alone)


def _columns_table(header: list[str], columns: list[list[str]]) -> str:
    rows = [list(row) for row in zip(_STATISTICS_ROWS, *columns, strict=True)]
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True, preserve_whitespace=True)


def evaluation_table(result: Result) -> str:
    """Lay out overall, head, medium and tail mAP, and the accuracies."""
    header = ["group", "mAP", "classes", "positives"]
    rows = []
    for name in GROUPS_SHOWN:
        group = result.groups[name]
        rows.append([name, _number(getattr(result.mAP, name), 4), str(group.classes), f"{group.positives:,}"])
        if result.intervals is not None:
            rows[-1].insert(2, _range(result.intervals.mAP[name], 4))
    if result.intervals is not None:
        header.insert(2, f"{result.intervals.level:.0%} interval")
    lines = [_right_aligned(header, rows), "", f"top-1 {result.accuracy.top1:.4f}   top-5 {result.accuracy.top5:.4f}"]
    if result.protocol != "tie-aware":
        lines.append(f"protocol {result.protocol}")
    for name, means in result.other_protocols.items():
        values = "  ".join(f"{group} {_number(getattr(means, group), 4)}" for group in GROUPS_SHOWN)
        lines.append(f"by {name}: {values}")
    if result.diagnostics.classes_without_positives:
        fate = "count as 0" if result.protocol == "apmeter" else "are left out of the means"
        lines.append(
            f"{result.diagnostics.classes_without_positives} class(es) without a positive in {result.subset} {fate}"
        )
    return "\n".join(lines)


def _right_aligned(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a table whose first column is text and whose others are numbers."""
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=aligned)


def _range(interval: Interval, digits: int) -> str:
    if math.isnan(interval.low):
        return "-"
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _with_interval(entry: Estimate | Difference, sign: str = "") -> str:
    """Write a value with its interval, e.g. ``0.4572 [0.393, 0.576]``."""
    if math.isnan(entry.value):
        return "-"
    interval = "" if math.isnan(entry.low) else f" [{entry.low:{sign}.3f}, {entry.high:{sign}.3f}]"
    return f"{entry.value:{sign}.4f}{interval}"


def comparison_table(comparison: Comparison) -> str:
    """Lay out the means with their intervals, and the differences to the reference, group by group."""
    lines = []
    seeds = any(method.seed_spread for method in comparison.methods)
    several = len(comparison.methods) > 1
    for group in GROUPS_SHOWN:
        header = [group, "mAP"]
        header += ["over seeds"] if seeds else []
        header += ["difference", "P(better)", "win/tie/loss"] if several else []
        rows = []
        for method in comparison.methods:
            row = [method.name, _with_interval(method.mAP[group])]
            if seeds:
                spread = method.seed_spread[group] if method.seed_spread else None
                row.append(
                    f"{spread.low:.4f} to {spread.high:.4f} ({spread.seeds})"
                    if spread and spread.low == spread.low
                    else "-"
                )
            if method.difference is not None and method.tally is not None:
                difference, tally = method.difference[group], method.tally[group]
                wins = f"{tally.wins}/{tally.ties}/{tally.losses}"
                row += [_with_interval(difference, "+"), _number(difference.probability, 3), wins]
            elif several:
                row += ["reference", "-", "-"]
            rows.append(row)
        lines += [_right_aligned(header, rows), ""]
    lines.append(
        f"{comparison.level:.0%} intervals: Bayesian bootstrap over videos, {comparison.replicates:,} replicates, "
        f"seed {comparison.seed},\nthe same weights for every run; over seeds: lowest to highest (number of seeds)."
    )
    return "\n".join(lines)
