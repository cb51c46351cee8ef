"""Tables for a terminal."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from tabulate import tabulate

from meidbench.construction import Construction, SplitDistance
from meidbench.construction.targets import ExactTargets
from meidbench.errors import first_few
from meidbench.evaluation.compare import Comparison, Difference, Estimate
from meidbench.evaluation.results import GROUPS_SHOWN, Interval, Result
from meidbench.names import SUBSETS
from meidbench.splits.manifests import Manifest
from meidbench.splits.split import GROUP_NAMES, Split
from meidbench.splits.statistics import Statistics, split_statistics

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
    "labels per video, train+test",
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


_KEPT = "\u00a0"  # a blank at which no line is broken


def construction_report(
    made: Construction,
    *,
    manifest: Manifest | None = None,
    released: Split | None = None,
    distance: SplitDistance | None = None,
    width: int = 100,
) -> str:
    """Lay out the statistics beside the released split's and the paper's, the targets, and how far off they are.

    Parameters
    ----------
    made : Construction
    manifest : Manifest, optional
        Of the benchmark that the videos are of.
    released : Split, optional
        Its published split.
    distance : SplitDistance, optional
        From ``made.split`` to ``released``.
    width : int
        Characters in a line.
    """
    split = made.split
    header = [manifest.title if manifest else split.dataset, f"{split.variant}, seed {made.seed}"]
    columns = [statistics_column(asdict(split_statistics(split)))]
    if released is not None:
        header.append("released")
        columns.append(statistics_column(asdict(split_statistics(released))))
    if manifest is not None and manifest.paper:
        header.append("paper")
        columns.append(paper_column(manifest))
    lines = [_targets_line(made), _candidates_line(made), _target_line(made)]
    if distance is not None:
        lines += _released_lines(distance)
    folded = [textwrap.fill(line, max(width, 40), subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join([fitting_table(header, columns, width), "", *(line.replace(_KEPT, " ") for line in folded)])


def _group_sizes(made: Construction) -> list[int]:
    return [len(getattr(made.split.groups, name)) for name in GROUP_NAMES]


def _targets_line(made: Construction) -> str:
    values = {name: value for name, value in asdict(made.targets).items() if value not in (None, ())}
    shown = {name: "+".join(value) if isinstance(value, tuple) else _rounded(value) for name, value in values.items()}
    return f"targets: {', '.join(f'{name} {value}' for name, value in shown.items())}"


def _rounded(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _candidates_line(made: Construction) -> str:
    least = made.targets.least_seconds
    lasting = "" if least is None else f", of {least:.3g} s or more or of unknown length"
    return f"candidates: {made.candidates:,} video{'s' * (made.candidates != 1)} with a label{lasting}"


def _target_line(made: Construction) -> str:
    if isinstance(made.targets, ExactTargets):
        return "every number is as the targets have it"
    if not made.total_deviation:
        return "every class has as many training videos as the target says"
    far = int(np.abs(made.deviations).argmax())
    return (
        f"distance to the target: {made.total_deviation:,} training video{'s' * (made.total_deviation != 1)}, "
        f"summed over the classes; at most {made.largest_deviation:,} (class {far} {made.split.class_names[far]!r}: "
        f"{made.split.train_counts[far]:,} for {made.target_counts[far]:,})"
    )


def _released_lines(distance: SplitDistance) -> list[str]:
    shared = [f"{share:.0%}" if share == share else "-" for share in distance.shared_videos.values()]
    return [
        f"distance to the released split: {distance.mean_count_difference:.1f} training videos per class, "
        f"{distance.mean_curve_difference:.1f} with the classes sorted; {distance.same_group:.0%} of the classes in "
        "the same group",
        f"videos in both, of those in either: {' / '.join(shared)} ({' / '.join(SUBSETS)})",
    ]


def construction_warnings(made: Construction) -> list[str]:
    """Return a sentence for each empty frequency group, and each subset in which classes have too few videos."""
    targets = made.targets
    empty = [name for name, size in zip(GROUP_NAMES, _group_sizes(made), strict=True) if not size]
    warnings = []
    if empty:
        warnings.append(
            f"no class is in {' or '.join(empty)} (head above {targets.head_above:,} training videos, tail up to "
            f"{targets.tail_up_to:,}); head_above and tail_up_to can be set"
        )
    for subset, wanted in (("val", targets.val_videos), ("test", targets.test_videos)):
        if wanted is not None and (size := len(made.split.rows(subset))) != wanted:
            warnings.append(f"{subset} has {size:,} videos, {wanted:,} were aimed at")
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


DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def decimal(value: float, digits: int = 3) -> str:
    """Round a number for the eye.

    Examples
    --------
    >>> decimal(0.15149), decimal(-0.5, 1), decimal(-0.0001), decimal(float("nan"))
    ('0.151', '−0.5', '0.000', '–')
    """
    if math.isnan(value):
        return DASH
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 else MINUS + text[1:]) if text.startswith("-") else text


def signed(value: float) -> str:
    """Round a difference; a sign stands before all but zero.

    Examples
    --------
    >>> signed(0.012), signed(-0.012), signed(0.0001)
    ('+0.012', '−0.012', '0.000')
    """
    text = decimal(value)
    return f"+{text}" if value > 0 and float(text) > 0 else text


def interval(low: float, high: float, *, with_sign: bool = False) -> str:
    """Write an interval in brackets, a dash where it is not defined.

    Examples
    --------
    >>> interval(0.14, 0.163), interval(-0.01, 0.02, with_sign=True), interval(float("nan"), float("nan"))
    ('[0.140, 0.163]', '[−0.010, +0.020]', '–')
    """
    if math.isnan(low) or math.isnan(high):
        return DASH
    write = signed if with_sign else decimal
    return f"[{write(low)}, {write(high)}]"


def percent(share: float, replicates: int) -> str:
    """Write a probability counted over replicates: what all or none of them say is a bound, never 0 or 100 %.

    Examples
    --------
    >>> percent(0.973, 1000), percent(1.0, 1000), percent(0.0, 40), percent(float("nan"), 0)
    ('97.3 %', '> 99.9 %', '< 2.5 %', '–')
    """
    if math.isnan(share):
        return DASH
    least = max(100 / replicates, 0.1)
    if 100 * share < least:
        return f"< {decimal(least, 1)} %"
    if 100 * share > 100 - least:
        return f"> {decimal(100 - least, 1)} %"
    return f"{decimal(100 * share, 1)} %"


def level_of(level: float) -> str:
    """Write the level of an interval in per cent, without needless zeros.

    Examples
    --------
    >>> level_of(0.95), level_of(0.999)
    ('95', '99.9')
    """
    return f"{100 * level:.6g}"


def best_places(values: Sequence[float]) -> frozenset[int]:
    """Return where the highest value stands, all places where several look the same in three decimals.

    Of a single value nothing is the best.

    Examples
    --------
    >>> sorted(best_places([0.1511, 0.1514, 0.12, float("nan")]))
    [0, 1]
    """
    shown = {place: decimal(value) for place, value in enumerate(values) if not math.isnan(value)}
    if len(values) < 2 or not shown:
        return frozenset()
    best = shown[max(shown, key=lambda place: values[place])]
    return frozenset(place for place, text in shown.items() if text == best)
