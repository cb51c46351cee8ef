"""Numbers and tables as text: statistics of splits, evaluations, comparisons, and reports on new splits."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

import numpy as np
from tabulate import tabulate

from meidbench.construction import Construction, SplitDistance
from meidbench.construction.held_out import HeldOutShares
from meidbench.construction.targets import ExactTargets
from meidbench.errors import escape_controls, first_few, write_count
from meidbench.evaluation.budget import COLUMNS, MEANING, SELECTION_MEANING, describe_budgets
from meidbench.evaluation.compare import Comparison
from meidbench.evaluation.paired import GroupComparison, format_change
from meidbench.evaluation.results import (
    CLASS_AVERAGE,
    GROUPS_SHOWN,
    NO_CLASSES,
    Difference,
    Estimate,
    Result,
    describe_subset,
)
from meidbench.names import RELEASED, SUBSETS
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.manifests import Manifest
from meidbench.splits.split import Split
from meidbench.splits.statistics import Statistics, describe_missing_subsets, split_statistics

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
SIGNIFICANT = 0.05
STAR = "*"


def format_number(value: float, digits: int = 3) -> str:
    """Round a number for a reader."""
    if math.isnan(value):
        return DASH
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 else MINUS + text[1:]) if text.startswith("-") else text


def format_signed(value: float, digits: int = 3) -> str:
    """Round a difference; every number but zero gets a sign, and more digits where it would else look like zero.

    Examples
    --------
    >>> format_signed(0.0123), format_signed(-0.0004), format_signed(2e-9), format_signed(0.0)
    ('+0.012', '−0.0004', '+2e-09', '0.000')
    """
    return DASH if math.isnan(value) else format_change(value, digits).replace("-", MINUS, value < 0)


def format_interval(low: float, high: float, *, with_sign: bool = False) -> str:
    """Write an interval in brackets, a dash where it is not defined."""
    if math.isnan(low) or math.isnan(high):
        return DASH
    write = format_signed if with_sign else format_number
    return f"[{write(low)}, {write(high)}]"


def format_probability(value: float, replicates: int) -> str:
    """Write a probability that was counted over replicates; what no replicate or every replicate shows is a bound.

    Examples
    --------
    >>> format_probability(0.0, 1000), format_probability(0.9876, 1000), format_probability(1.0, 40)
    ('<0.001', '0.988', '>0.975')
    """
    if math.isnan(value):
        return DASH
    least = max(1 / replicates, 0.001)
    if value < least:
        return f"<{least:.4g}"
    return f">{1 - least:.4g}" if value > 1 - least else f"{value:.3f}"


def format_corrected(value: float) -> str:
    """Write a probability after Holm's correction, which may be 1."""
    return DASH if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def is_significant(method: GroupComparison, group: str) -> bool:
    """Return whether a method's difference in a group holds after Holm's correction; then it is bold, or has a star."""
    return method.corrected is not None and method.corrected[group] <= SIGNIFICANT


def describe_correction(comparison: Comparison) -> str:
    """Return the condition under which a difference is bold, or has a star."""
    compared = len(comparison.methods) - 1
    how = f" after Holm's correction for {compared} methods" if compared > 1 else ""
    return f"a two-sided probability of at most {SIGNIFICANT:g}{how}"


def find_best(values: Sequence[float]) -> frozenset[int]:
    """Return the places of the highest value: several if equal in three decimals, none of a single value."""
    texts = {place: format_number(value) for place, value in enumerate(values) if not math.isnan(value)}
    if len(values) < 2 or not texts:
        return frozenset()
    best = texts[max(texts, key=lambda place: values[place])]
    return frozenset(place for place, text in texts.items() if text == best)


_STATISTICS_ROWS = {
    "classes": ("classes",),
    "head / medium / tail": GROUP_NAMES,
    "train / val / test": SUBSETS,
    "labels per video, train+test": ("labels_per_video",),
    "  train / val / test": tuple(f"labels_per_video_{subset}" for subset in SUBSETS),
    "most / least frequent": ("most_frequent", "least_frequent"),
    "imbalance ratio": ("imbalance_ratio",),
    "least positives in test": ("least_positives_test",),
}


def statistics_table(statistics: Sequence[Statistics], group_names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Lay out Table 1 with one column per split; ``group_names`` are their own names of groups, the same of all."""
    titles = [entry.dataset + ("" if entry.variant == RELEASED else f" {entry.variant}") for entry in statistics]
    table = _lay_out_columns(["", *titles], [_statistics_column(asdict(entry)) for entry in statistics])
    return "\n".join([_name_groups(table, group_names), *_remarks(titles, statistics)])


def _remarks(titles: Sequence[str], statistics: Sequence[Statistics]) -> list[str]:
    """Return a line per fact that a reader of a column of Table 1 needs besides its numbers."""
    lines = []
    for title, entry in zip(titles, statistics, strict=True):
        sizes, by_list = {subset: getattr(entry, subset) for subset in SUBSETS}, entry.head_above is None
        lines += [f"{title}: {note}" for note in (*entry.notes, *describe_missing_subsets(sizes, by_list=by_list))]
        lines += _count_absent_classes(title, entry)
    return lines


def table_1_comparison(statistics: Statistics, manifest: Manifest) -> str:
    """Lay out the row of Table 1 of a built split next to the paper's row."""
    built = {"built": _statistics_column(asdict(statistics))} | _paper_column(manifest)
    table = _lay_out_columns([manifest.title, *built], list(built.values()))
    return "\n".join([_name_groups(table, manifest.group_names), *_count_absent_classes(manifest.title, statistics)])


def _name_groups(table: str, group_names: Mapping[str, str]) -> str:
    """Return Table 1 with the own names of groups at its row."""
    return table.replace(" / ".join(GROUP_NAMES), " / ".join(group_names.get(name, name) for name in GROUP_NAMES))


def _count_absent_classes(title: str, statistics: Statistics) -> list[str]:
    if not statistics.classes_without_videos:
        return []
    what = "classes have no video in any subset and count in no group"
    return [f"{title}: {statistics.classes_without_videos:,} of the {what}"]


def _paper_column(manifest: Manifest) -> dict[str, list[str]]:
    """Return the title and the cells of the paper's column; empty where the paper does not have the benchmark."""
    facts = {"classes": float(manifest.num_classes), **manifest.paper}
    return {"paper": _statistics_column(facts)} if manifest.paper else {}


def _statistics_column(facts: Mapping[str, float]) -> list[str]:
    """Return the cells of a column of Table 1; a dash stands for an unknown statistic."""
    if facts.get("test") == 0:
        facts = {**facts, "least_positives_test": math.nan}
    digits = {name: 2 for name in facts if name.startswith("labels_per_video_")}
    digits |= {"imbalance_ratio": 1, "labels_per_video": 2 if digits else 1}
    return [
        " / ".join(_number(facts.get(name), digits.get(name, 0)) for name in names)
        if any(name in facts for name in names)
        else "-"
        for names in _STATISTICS_ROWS.values()
    ]


def _lay_out_columns(header: list[str], columns: list[list[str]], width: float = math.inf) -> str:
    """Lay out columns of Table 1 within a width: with narrower cells, or with one table per column, if necessary."""
    tight = [[cell.replace(" / ", "/") for cell in column] for column in columns]
    for cells in (columns, tight):
        rows = [list(row) for row in zip(_STATISTICS_ROWS, *cells, strict=True)]
        titles = list(map(escape_controls, header))
        text = tabulate(rows, titles, tablefmt="simple", disable_numparse=True, preserve_whitespace=True)
        if max(map(len, text.splitlines())) <= width:
            return text
    tables = [_lay_out_columns([header[0], title], [column]) for title, column in zip(header[1:], tight, strict=True)]
    return "\n\n".join(tables)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _right_aligned(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a table with text in the first column and numbers in the others."""
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=aligned, preserve_whitespace=True)


def title_lines(result: Result | Comparison, videos: int) -> str:
    """Return the title of numbers on a split, and a line per note that belongs to them."""
    title = escape_controls(describe_subset(result, videos))
    return "\n".join([title, *result.notes])


def evaluation_table(result: Result) -> str:
    """Lay out mAP and the other measures: overall, head, medium and tail, then the measures without groups.

    Two means per group with their intervals would be wider than 80 columns: class-average accuracy then has a table.
    """
    header, rows = result.group_table()
    tables = [(header, rows)]
    if CLASS_AVERAGE in header and result.intervals is not None:
        start, end = header.index(CLASS_AVERAGE), len(header) - 2
        first, second = [*range(start), *range(end, end + 2)], [0, *range(start, end)]
        tables = [([header[k] for k in kept], [[row[k] for k in kept] for row in rows]) for kept in (first, second)]
    lines = [line for table in tables for line in (_right_aligned(*table), "")] + [result.single_measures()]
    if result.protocol != "tie-aware":
        lines.append(f"protocol {result.protocol}")
    for name, means in result.other_protocols.items():
        numbers = {group: getattr(means, group) for group in GROUPS_SHOWN}
        values = "  ".join(
            f"{result.title(group)} {result.describe_absence(group) if math.isnan(mean) else _number(mean, 4)}"
            for group, mean in numbers.items()
        )
        lines.append(f"by {name}: {values}")
    if result.diagnostics.classes_without_positives:
        fate = "count as 0" if result.protocol == "apmeter" else "are left out of the means"
        without = result.diagnostics.classes_without_positives
        lines.append(f"{without} class(es) without a positive in {result.subset} {fate}")
    return "\n".join(lines)


def make_cells_safe(cells: Iterable[object]) -> list[object]:
    """Return the cells of a CSV row for people: a text that a spreadsheet would run gets an apostrophe before it.

    Numbers stay as they are, also as text. Source: OWASP, "CSV Injection".

    Examples
    --------
    >>> make_cells_safe(["=1+1", "@home", "-0.25", -1, "to run"])
    ["'=1+1", "'@home", '-0.25', -1, 'to run']
    """
    return [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in cells]


def _is_formula(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return False


def comparison_table(comparison: Comparison) -> str:
    """Lay out the means with their intervals, and the differences to the reference, group by group, in 80 columns.

    A group without a mean has a line in the place of its table.
    Wins, ties and losses, the spread over seeds, and the budgets that are known have a table each.
    """
    tables, spread, shown = [], False, comparison.groups_shown
    titles = list(map(comparison.title, shown))
    for measure, compared in comparison.list_measures().items():
        tables += [_group_table(comparison, measure, compared, group) for group in shown]
        if measure == "mAP" and (absent := comparison.absent_groups):
            tables.append("\n".join(map(escape_controls, absent)))
        of_what = " (recall)" if measure == CLASS_AVERAGE else ""
        if len(compared) > 1:
            tables.append(_right_aligned([f"win/tie/loss{of_what}", *titles], _tallies(compared, shown)))
        if spreads := _spreads_over_seeds(compared, shown):
            tables.append(_right_aligned([f"over seeds{of_what}", *titles], spreads))
            spread = True
    if budgets := budget_rows(comparison):
        header = ["budget", *COLUMNS[: len(budgets[0]) - 1]]
        tables.append(_right_aligned(header, [[escape_controls(row[0]), *row[1:]] for row in budgets]))
    meaning = f"{explain_budgets(budgets)}." if budgets else ""
    return "\n\n".join([*tables, _explain_comparison(comparison, spread, meaning)])


def _group_table(comparison: Comparison, measure: str, compared: Mapping[str, GroupComparison], group: str) -> str:
    """Lay out the means of one measure in one group, and the differences to the reference."""
    several = len(compared) > 1
    corrected = len(compared) > 2 and comparison.replicates > 0
    header = [measure, *(["difference ", "P"] if several else []), *(["Holm"] if corrected else [])]
    rows = []
    for name, numbers in compared.items():
        row = [escape_controls(name), _with_interval(numbers.estimate(group))]
        if numbers.difference is not None:
            difference = numbers.difference[group]
            # A blank in the place of a star keeps the brackets in one column.
            row.append(_with_interval(difference) + (STAR if is_significant(numbers, group) else " "))
            row.append(format_probability(difference.probability, comparison.replicates))
            row += [format_corrected(numbers.corrected[group])] if corrected and numbers.corrected else []
        elif several:
            row += ["reference ", *"-" * (2 if corrected else 1)]
        rows.append(row)
    return _right_aligned([comparison.title(group), *header], rows)


def _tallies(compared: Mapping[str, GroupComparison], groups: Sequence[str]) -> list[list[str]]:
    rows = []
    for name, numbers in compared.items():
        if numbers.tally is not None:
            tallies = [numbers.tally[group] for group in groups]
            rows.append([escape_controls(name), *(f"{n.wins}/{n.ties}/{n.losses}" for n in tallies)])
    return rows


def _spreads_over_seeds(compared: Mapping[str, GroupComparison], groups: Sequence[str]) -> list[list[str]]:
    rows = []
    for name, numbers in compared.items():
        if (spread := numbers.seed_spread) is not None:
            ends = [(spread[group].low, spread[group].high) for group in groups]
            cells = ["-" if math.isnan(low) else f"{format_number(low)} to {format_number(high)}" for low, high in ends]
            rows.append([f"{escape_controls(name)} ({spread[GROUPS_SHOWN[0]].seeds})", *cells])
    return rows


def budget_rows(comparison: Comparison) -> list[list[str]]:
    """Return the name of each method and its budget, by ``COLUMNS``; no row where no budget is known.

    The last column, ``select_on``, is left out where no run says that anything but val chose its checkpoint.
    """
    if not any(budget for method in comparison.methods for budget in method.budgets):
        return []
    rows = [[method.name, *describe_budgets(method.budgets).values()] for method in comparison.methods]
    told = {choice for row in rows for choice in row[-1].split(" or ")}
    return rows if told - {"val", "-"} else [row[:-1] for row in rows]


def explain_budgets(rows: Sequence[Sequence[str]]) -> str:
    """Return the meaning of the columns of ``budget_rows``."""
    return MEANING + SELECTION_MEANING * (len(rows[0]) > len(COLUMNS))


def _explain_comparison(comparison: Comparison, seeds: bool, budgets: str) -> str:
    lines = [
        f"{comparison.level:.0%} intervals: Bayesian bootstrap over videos, {comparison.replicates:,} replicates, "
        f"seed {comparison.seed},\nthe same weights for every run."
    ]
    if len(comparison.methods) > 1:
        lines.append("P: the probability of being better than the reference.")
        if comparison.replicates:
            lines.append(f"{STAR} {describe_correction(comparison)}.")
    if seeds:
        means = " and ".join(comparison.list_measures())
        lines.append(f"over seeds: lowest to highest {means} (number of seeds).")
    if budgets:
        for text in (budgets, escape_controls(comparison.unequal_budgets)):
            lines += textwrap.wrap(text, 80)
    return "\n".join(lines)


def _with_interval(entry: Estimate | Difference) -> str:
    """Write a value with its interval, e.g. ``0.4572 [0.393, 0.576]``; a minus is the sign of a keyboard."""
    if math.isnan(entry.value):
        return "-"
    signed = isinstance(entry, Difference)
    value = format_signed(entry.value, 4) if signed else format_number(entry.value, 4)
    around = "" if math.isnan(entry.low) else f" {format_interval(entry.low, entry.high, with_sign=signed)}"
    return f"{value}{around}".replace(MINUS, "-")


def construction_report(
    made: Construction,
    *,
    manifest: Manifest | None = None,
    released: Split | None = None,
    distance: SplitDistance | None = None,
    width: int = 100,
) -> str:
    """Lay out a new split: its statistics next to the released split's and the paper's, its targets and deviations.

    ``distance`` is from ``made.split`` to ``released``. A line has ``width`` characters; a table with a single column
    may be wider.
    """
    split = made.split
    columns = {f"{split.variant}, seed {made.seed}": _statistics_column(asdict(split_statistics(split)))}
    if released is not None:
        columns["released"] = _statistics_column(asdict(split_statistics(released)))
    if manifest is not None:
        columns |= _paper_column(manifest)
    header = [manifest.title if manifest else split.dataset, *columns]
    least = made.targets.least_seconds
    lasting = "" if least is None else f", of {least:.3g} s or more or of unknown length"
    lines = [
        _describe_targets(made),
        f"candidates: {write_count(made.candidates, 'video')} with a label{lasting}",
        _describe_deviation(made),
    ]
    if empty := made.without_candidates:
        names = first_few(f"{index} {split.class_names[index]!r}" for index in empty)
        lines.append(f"classes without a candidate, which have no target and count in no group: {names}")
    if distance is not None:
        shared = ["-" if math.isnan(share) else f"{share:.0%}" for share in distance.shared_videos.values()]
        lines += [
            f"distance to the released split: {distance.mean_count_difference:.1f} training videos per class, "
            f"{distance.mean_curve_difference:.1f} with the classes sorted; {distance.same_group:.0%} of the classes "
            "in the same group",
            f"videos in both splits, as a share of those in either: {' / '.join(shared)} ({' / '.join(SUBSETS)})",
        ]
    folded = [textwrap.fill(line, max(width, 40), subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join([_lay_out_columns(header, list(columns.values()), width), "", *folded])


def held_out_report(split: Split, shares: HeldOutShares) -> str:
    """Lay out the shares of a val subset that was taken out of train: by group, and the classes farthest from them."""
    rows = []
    for group, (classes, labels, in_val) in shares.groups.items():
        numbers = [f"{classes:,}", f"{labels:,}", f"{in_val:,}", f"{in_val / labels:.2%}"] if labels else [NO_CLASSES]
        rows.append([split.group_names.get(group, group), *numbers])
    train, val = len(split.rows("train")), len(split.rows("val"))
    far = shares.largest_deviation
    count, name = int(split.positives("val")[far]), split.class_names[far]
    lines = [
        f"val: {val:,} of {train + val:,} training videos ({val / (train + val):.2%})",
        f"largest deviation of a class: {shares.deviations[far]:+.1f} videos (class {far} {name!r}: {count:,} of "
        f"{count + int(split.positives('train')[far]):,})",
    ]
    if shares.without_val:
        named = first_few(f"{index} {split.class_names[index]!r}" for index in shares.without_val)
        lines.append(f"{write_count(len(shares.without_val), 'class', 'classes')} without a video in val: {named}")
    return "\n".join([_right_aligned(["held out", "classes", "labels", "in val", "share"], rows), "", *lines])


def _describe_targets(made: Construction) -> str:
    unused = () if made.split.thresholds else ("head_above", "tail_up_to")
    values = {
        name: value for name, value in asdict(made.targets).items() if value not in (None, ()) and name not in unused
    }
    texts = {
        name: "+".join(value) if isinstance(value, tuple) else str(value) if isinstance(value, int) else f"{value:g}"
        for name, value in values.items()
    }
    return f"targets: {', '.join(f'{name} {text}' for name, text in texts.items())}"


def _describe_deviation(made: Construction) -> str:
    if isinstance(made.targets, ExactTargets):
        return "every number equals its target"
    if not made.total_deviation:
        return "every class has its target number of training videos"
    far = int(np.abs(made.deviations).argmax())
    return (
        f"distance to the target: {write_count(made.total_deviation, 'training video')}, "
        f"summed over the classes; at most {made.largest_deviation:,} (class {far} {made.split.class_names[far]!r}: "
        f"{made.split.train_counts[far]:,} for {made.target_counts[far]:,})"
    )


def construction_warnings(made: Construction) -> list[str]:
    """Return a sentence for each empty frequency group, and each subset in which classes have too few videos."""
    targets = made.targets
    statistics = split_statistics(made.split)
    empty = [name for name in GROUP_NAMES if not getattr(statistics, name)]
    warnings = []
    if empty:
        thresholds = made.split.thresholds
        how = f"({thresholds}); head_above and tail_up_to can be set" if thresholds else "(by list)"
        warnings.append(f"no class is in {' or '.join(empty)} {how}")
    for subset, wanted in (("val", targets.val_videos), ("test", targets.test_videos)):
        if wanted is not None and (size := len(made.split.rows(subset))) != wanted:
            warnings.append(f"{subset} has {write_count(size, 'video')}, the target is {wanted:,}")
    for subset in SUBSETS:
        short = [entry for entry in made.shortfalls if entry.subset == subset]
        if short:
            named = first_few(
                f"{entry.class_index} {entry.class_name!r} ({entry.got} for {entry.wanted}; {entry.available:,} "
                "candidates in all)"
                for entry in short
            )
            warnings.append(f"{len(short):,} class(es) with too few videos in {subset}: {named}")
    return warnings
