"""The paper's tables as data: their rows, the published numbers, and the method that stands beside each row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from meidbench.checks import one_of, parse_toml
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.evaluation.results import MeanAP
from meidbench.names import STATISTICS_TABLE, TABLES

__all__ = ["RUN_TABLES", "PaperTable", "Row", "choose_rows", "read_table", "row_names", "table_content"]

RUN_TABLES = tuple(name for name in TABLES if name != STATISTICS_TABLE)


@dataclass(frozen=True)
class Row:
    """A published row, and the method of this package that stands beside it."""

    name: str  # unique within its table
    label: str  # the paper's name of the method
    dataset: str
    encoder: str  # in the paper's words, as the aggregation
    aggregation: str
    published: MeanAP  # several rows may stand beside the same published number
    method: str = ""  # of meidbench.baselines; empty for a row that is only quoted, with the reason in the note
    aggregator: str = ""
    settings: tuple[str, ...] = ()  # KEY=VALUE, on top of the method's recipe
    # Keys or sections of the configuration in which the row differs from the base; "method" for another model.
    switches: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_quoted(self) -> bool:
        """Whether no method of this package can stand beside the row."""
        return not self.method


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper or its supplement, whose rows are runs."""

    name: str
    title: str
    source: str  # its place in the paper
    base: str  # the row from which the others differ by their switches; empty for a table of different methods
    protocol: tuple[str, ...]  # differences between the paper's way to measure and ours
    notes: tuple[str, ...]
    rows: tuple[Row, ...]


@cache
def table_content(name: str) -> dict[str, Any]:
    """Return the content of ``baselines/tables/NAME.toml``."""
    file = resources.files("meidbench.baselines").joinpath("tables").joinpath(f"{name}.toml")
    return parse_toml(file.read_text(encoding="utf-8"))


def read_table(name: str) -> PaperTable:
    """Read a table whose rows are runs; raise ``MeidbenchError`` for a name that is not in ``RUN_TABLES``.

    Examples
    --------
    >>> [(row.label, row.published.tail, row.settings) for row in read_table("table7").rows[:2]]
    [('beta 0.3', 0.521, ('stage2.model.beta=0.3',)), ('beta 0.5', 0.524, ())]
    """
    content = table_content(one_of("table", name, RUN_TABLES))
    rows = []
    for entry in content["rows"]:
        facts: dict[str, Any]
        facts = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        rows.append(Row(published=MeanAP(*facts.pop("mAP")), **facts))
    return PaperTable(
        name=name,
        title=content["title"],
        source=content["source"],
        base=content.get("base", ""),
        protocol=tuple(content["protocol"]),
        notes=tuple(content["notes"]),
        rows=tuple(rows),
    )


def row_names(table: str) -> tuple[str, ...]:
    """Return the names of a table's rows; the rows of Table 1 are benchmarks.

    Examples
    --------
    >>> row_names("table6")
    ('e1', 'e1-e1', 'e1-e2')
    """
    if table == STATISTICS_TABLE:
        return tuple(table_content(table)["datasets"])
    return tuple(row.name for row in read_table(table).rows)


def choose_rows(tables: Sequence[str], rows: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the named rows by table; an empty tuple stands for all rows. Tables without a named row are left out.

    Examples
    --------
    >>> choose_rows(["table6", "table7"], ["e1", "e1-e2"])
    {'table6': ('e1', 'e1-e2')}
    """
    names = dict.fromkeys(name for table in tables for name in (TABLES if table == "all" else (table,)))
    known = {name: row_names(name) for name in names}
    if unknown := [row for row in rows if not any(row in there for there in known.values())]:
        listed = bullet_list(f"{name}: {', '.join(there)}" for name, there in known.items())
        raise MeidbenchError(f"no row is called {', '.join(unknown)}; the rows are\n{listed}")
    named = {name: tuple(row for row in there if row in rows) for name, there in known.items()}
    return {name: there for name, there in named.items() if there or not rows}
