"""Reproduced tables and plans for a terminal, readable on narrow ones."""

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from meidbench.baselines.reproduction.outcome import DONE, NOT_ASKED, QUOTED, Reproduction, RowOutcome
from meidbench.baselines.reproduction.plan import Plan
from meidbench.baselines.reproduction.request import MARK
from meidbench.evaluation.results import GROUPS_SHOWN

NARROWEST = 24
DASH = "-"


def size(count: int) -> str:
    """Write a size in bytes for people.

    Examples
    --------
    >>> size(157_404_364_800), size(1_400_000)
    ('157 GB', '1.4 MB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            value = count / factor
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{count:,} bytes"


def value_cells(outcome: RowOutcome, group: str, *, simulated: bool) -> tuple[str, str, str, str]:
    """Return the paper's value, ours, its interval and the difference; a dash for what is not there."""
    paper = DASH if simulated else f"{getattr(outcome.row.published, group):.3f}"
    if outcome.ours is None:
        return paper, DASH, DASH, DASH
    ours = outcome.ours.mAP[group]
    if ours.value != ours.value:
        return paper, DASH, DASH, DASH
    interval = DASH if ours.low != ours.low else f"[{ours.low:.3f}, {ours.high:.3f}]"
    return paper, f"{ours.value:.3f}", interval, DASH if simulated else f"{outcome.difference(group):+.3f}"


def table_text(reproduction: Reproduction, width: int = 80) -> str:
    """Lay out a reproduced table.

    Parameters
    ----------
    reproduction : Reproduction
    width : int
        Columns of the terminal. Where a row of the table does not fit, each group has a line of its own, and below that
        each value.
    """
    width = max(width, NARROWEST)
    parts = [wrapped(line, width) for line in reproduction.title.splitlines()]
    wide = _wide(reproduction)
    fits = max(map(len, wide.splitlines()), default=0) <= width
    parts += ["", wide if fits else "\n\n".join(_stacked(row, reproduction, width) for row in reproduction.shown), ""]
    if reproduction.simulated:
        parts.append(wrapped("The paper's values are left out: nothing here is comparable with them.", width))
    if reproduction.count(DONE):
        parts.append(wrapped(reproduction.intervals, width))
    parts += _said("Without numbers of ours", without_numbers(reproduction), width)
    parts += _said("Protocol", reproduction.protocol, width)
    parts += _said("Notes", [*reproduction.notes, *_row_notes(reproduction)], width)
    for differs, names in grouped_differences(reproduction).items():
        parts += _said(f"Set otherwise than the paper's row ({names})", differs, width)
    return "\n".join(parts)


def without_numbers(reproduction: Reproduction) -> list[str]:
    """Say of each row without numbers why there are none."""
    said = [
        f"{outcome.row.name}: {outcome.status}{f', {outcome.reason}' if outcome.reason else ''}"
        for outcome in reproduction.shown
        if outcome.status != DONE
    ]
    others = [outcome.row.name for outcome in reproduction.rows if outcome.status == NOT_ASKED]
    return [*said, f"{NOT_ASKED}: {', '.join(others)}"] if others else said


def grouped_differences(reproduction: Reproduction) -> dict[tuple[str, ...], str]:
    """Return in what rows are set otherwise than the paper's, each with the names of the rows."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for outcome in reproduction.rows:
        if outcome.differs and outcome.status == DONE:
            grouped.setdefault(outcome.differs, []).append(outcome.row.name)
    return {
        differs: "every row" if len(names) == len(reproduction.shown) else ", ".join(names)
        for differs, names in grouped.items()
    }


def _row_notes(reproduction: Reproduction) -> list[str]:
    said = []
    for outcome in reproduction.shown:
        if outcome.made_with and outcome.status == DONE:
            note = f"; {outcome.row.note}" if outcome.row.note else ""
            said.append(f"{outcome.row.name}: {outcome.made_with}{note}{spread_text(outcome)}")
        elif outcome.row.note and outcome.status != QUOTED:
            said.append(f"{outcome.row.name}: {outcome.row.note}")
    return said


def spread_text(outcome: RowOutcome) -> str:
    """Say how far apart seeds are, and what a reader must know of the runs."""
    if outcome.ours is None:
        return ""
    text = ""
    if outcome.ours.seed_spread:
        spread = outcome.ours.seed_spread["overall"]
        seeds = ", ".join(map(str, outcome.ours.seeds))
        text = f"; mean of seeds {seeds}, overall {spread.low:.3f} to {spread.high:.3f}"
    if "overall" in outcome.ours.val:
        text += f"; overall on val {outcome.ours.val['overall']:.3f}"
    return text + "".join(f"; {warning}" for warning in outcome.ours.warnings)


def _wide(reproduction: Reproduction) -> str:
    lines = []
    for outcome in reproduction.shown:
        for group in GROUPS_SHOWN:
            paper, ours, interval, difference = value_cells(outcome, group, simulated=reproduction.simulated)
            first = group == "overall"
            if first and outcome.status != DONE:
                ours = outcome.status
            compared = ([], []) if reproduction.simulated else ([paper], [difference])
            name = _name(outcome, reproduction) if first else ""
            lines.append([name, group, *compared[0], ours, interval, *compared[1]])
    compared = ([], []) if reproduction.simulated else (["paper"], ["difference"])
    header = ["row", "test mAP", *compared[0], "ours", "95% interval", *compared[1]]
    aligned = ["left", "left", *["right"] * (len(header) - 2)]
    return tabulate(lines, header, tablefmt="simple", disable_numparse=True, colalign=aligned)


def _name(outcome: RowOutcome, reproduction: Reproduction) -> str:
    return f"{MARK} {outcome.row.name}" if reproduction.simulated else outcome.row.name


def _stacked(outcome: RowOutcome, reproduction: Reproduction, width: int) -> str:
    status = "" if outcome.status == DONE else f" ({outcome.status})"
    lines = [wrapped(f"{_name(outcome, reproduction)}{status}", width)]
    for group in GROUPS_SHOWN:
        paper, ours, interval, difference = value_cells(outcome, group, simulated=reproduction.simulated)
        cells = [] if reproduction.simulated else [f"paper {paper}"]
        cells += [f"ours {ours}"] if outcome.ours is None else [f"ours {ours}", interval]
        cells += [] if difference == DASH else [f"({difference})"]
        lines.append(wrapped(f"{group:<8}{'  '.join(cells)}", width, "  ", "          "))
    return "\n".join(lines)


def _said(title: str, texts: Sequence[str], width: int) -> list[str]:
    if not texts:
        return []
    return ["", wrapped(f"{title}:", width), *(wrapped(text, width, "  - ", "    ") for text in texts)]


def wrapped(text: str, width: int, first: str = "", later: str | None = None) -> str:
    """Fill lines of a width; ``first`` goes before the first, ``later`` before the others."""
    indented = first if later is None else later
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=indented, break_on_hyphens=False)


def plan_text(plan: Plan, width: int = 80) -> str:
    """Lay out what a table takes."""
    width = max(width, NARROWEST)
    parts = [wrapped(f"{plan.table.name}: {plan.table.title} ({plan.table.source})", width), "", "What it takes:"]
    for dataset, command in plan.splits.items():
        parts.append(wrapped(f"split of {dataset}: {'MISSING' if command else 'there'}", width, "  ", "    "))
        if command:
            parts.append(wrapped(command, width, "    ", "      "))
    for need, named in plan.features:
        parts.append(
            wrapped(
                f"features of {need.encoder} on {need.dataset}: {'there' if named else 'MISSING'}", width, "  ", "    "
            )
        )
        if named:
            continue
        shape = f"{need.videos:,} videos x {need.frames} frames x {need.width:,} wide"
        lines = (
            f"{shape}, in float16 {size(need.bytes)} of disk",
            f"from {need.source}",
            f"weights: {need.weights}",
            need.command,
        )
        parts += [wrapped(line, width, "    ", "      ") for line in lines]
        parts.append(wrapped(f"then: --features {need.dataset}:{need.encoder}=FILE.h5", width, "    ", "      "))
    parts += ["", _planned_rows(plan, width), ""]
    runs, hours = sum(row.runs for row in plan.rows), sum(row.hours for row in plan.rows)
    shared = "what rows share is trained once, and counted at the first; extraction of features is not counted"
    parts.append(wrapped(f"{_trainings(runs)}, about {hours:.1f} hours together ({shared})", width))
    parts.append(wrapped(plan.formula, width))
    return "\n".join(parts)


def _planned_rows(plan: Plan, width: int) -> str:
    lines = []
    for row in plan.rows:
        wants = "quoted only" if row.quoted else f"missing {len(row.missing)}" if row.missing else "can be run"
        numbers = [DASH, DASH] if row.quoted else [str(row.runs), f"{row.hours:.1f}"]
        lines.append([row.name, wants, *numbers])
    header = ["row", "inputs", "trainings", f"hours ({plan.gpu})"]
    table = tabulate(
        lines, header, tablefmt="simple", disable_numparse=True, colalign=("left", "left", "right", "right")
    )
    if max(map(len, table.splitlines())) <= width:
        return table
    return "\n".join(
        wrapped(f"{name}: {wants}, {runs} training(s), {hours} h", width, "", "  ")
        for name, wants, runs, hours in lines
    )


def _trainings(count: int) -> str:
    return f"{count} training{'' if count == 1 else 's'}"
