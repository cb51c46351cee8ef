"""The paper's tables as data: their rows, the published numbers, and the method that stands beside each row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from meidbench.checks import one_of, parse_toml, suggest
from meidbench.errors import RequestError, bullet_list
from meidbench.evaluation.results import MeanAP, implied_overall
from meidbench.names import STATISTICS_TABLE, TABLES
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.manifests import load_manifest

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
    protocol: tuple[str, ...]  # differences between the paper's way to measure and ours
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    scored_classes: tuple[int, ...] = ()  # classes with a positive in test, by group; empty where all classes have one
    base: str = ""  # the row from which the others differ by their switches; empty for a table of different methods

    def implied_overall(self, row: Row) -> float | None:
        """Return the overall value that a row's groups imply, None where the published one agrees with it."""
        sizes = [int(load_manifest(row.dataset).sizes[group]) for group in GROUP_NAMES]
        return implied_overall(row.published, self.scored_classes or sizes)


@cache
def table_content(name: str) -> dict[str, Any]:
    """Return the content of ``baselines/tables/NAME.toml``."""
    file = resources.files("meidbench.baselines") / "tables" / f"{name}.toml"
    return parse_toml(file.read_text(encoding="utf-8"))


def read_table(name: str) -> PaperTable:
    """Read a table whose rows are runs; raise ``MeidbenchError`` for a name that is not in ``RUN_TABLES``."""
    content = _make_tuples(table_content(one_of("table", name, RUN_TABLES)))
    entries = [_make_tuples(entry) for entry in content.pop("rows")]
    rows = tuple(Row(published=MeanAP(*entry.pop("mAP")), **entry) for entry in entries)
    return PaperTable(name, **content, rows=rows)


def _make_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def row_names(table: str) -> tuple[str, ...]:
    """Return the names of a table's rows; the rows of Table 1 are benchmarks."""
    if table == STATISTICS_TABLE:
        return tuple(table_content(table)["datasets"])
    return tuple(row.name for row in read_table(table).rows)


def choose_rows(tables: Sequence[str], rows: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the named rows by table; an empty tuple stands for all rows. Tables without a named row are left out."""
    names = dict.fromkeys(name for table in tables for name in (TABLES if table == "all" else (table,)))
    known = {name: row_names(name) for name in names}
    if unknown := [row for row in rows if not any(row in there for there in known.values())]:
        listed = bullet_list(f"{name}: {', '.join(there)}" for name, there in known.items())
        every = [row for there in known.values() for row in there]
        named_so = ", ".join(f"{row}{suggest(row, every)}" for row in unknown)
        raise RequestError(f"no row is called {named_so}; the rows are\n{listed}")
    named = {name: tuple(row for row in there if row in rows) for name, there in known.items()}
    return {name: there for name, there in named.items() if there or not rows}
