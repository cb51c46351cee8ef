"""Reproduced tables as Markdown."""

from collections.abc import Sequence

from meidbench.baselines.reproduction.outcome import DONE, Reproduction
from meidbench.baselines.reproduction.request import MARK, WATERMARK
from meidbench.baselines.reproduction.text import grouped_differences, spread_text, value_cells, without_numbers
from meidbench.evaluation.results import GROUPS_SHOWN


def table_markdown(reproduction: Reproduction) -> str:
    """Return a reproduced table as Markdown: a line a row and group, then how each row was made."""
    table, simulated = reproduction.table, reproduction.simulated
    lines = [f"# {f'{MARK} ' if simulated else ''}{table.name}: {_escaped(table.title)}", ""]
    if simulated:
        lines += [f"**{WATERMARK}.** The paper's values are left out: nothing here is comparable with them.", ""]
    lines += [f"Published: {table.source}.", ""]
    lines += _row(["row", "data of ours", "mAP", "paper", "ours", "95% interval", "difference"])
    lines += _row(["---", "---", "---", "---:", "---:", "---:", "---:"])
    for outcome in reproduction.rows:
        data = MARK if simulated else outcome.row.dataset
        for group in GROUPS_SHOWN:
            lines += _row([outcome.row.name, data, group, *value_cells(outcome, group, simulated=simulated)])
    lines += _section("Without numbers of ours", without_numbers(reproduction))
    made = [
        f"`{outcome.row.name}` ({outcome.row.label}, {outcome.row.encoder}, {outcome.row.aggregation}): "
        f"{outcome.made_with}{f'; {outcome.row.note}' if outcome.row.note else ''}{spread_text(outcome)}"
        for outcome in reproduction.rows
        if outcome.status == DONE
    ]
    lines += _section("How ours was made", [*made, reproduction.intervals] if made else [])
    for differs, names in grouped_differences(reproduction).items():
        lines += _section(f"Set otherwise than the paper's row: {names}", [f"`{text}`" for text in differs])
    lines += _section("Protocol", reproduction.protocol)
    lines += _section("Notes", reproduction.notes)
    return "\n".join(lines) + "\n"


def _section(title: str, texts: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {text}" for text in texts)] if texts else []


def _row(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(_escaped(cell) for cell in cells)} |"]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
