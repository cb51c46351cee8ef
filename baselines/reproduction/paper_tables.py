"""The paper's tables: what their rows are, which of our methods stands beside each, and the published numbers."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from meidbench.checks import parse_toml
from meidbench.errors import MeidbenchError
from meidbench.evaluation.results import MeanAP

STATISTICS = "table1"
RUN_TABLES = ("table2", "table3", "table4", "table5", "table6", "table7", "supp1", "supp2", "supp5")
TABLES = (STATISTICS, *RUN_TABLES)


@dataclass(frozen=True)
class Row:
    """What of ours stands beside a published row.

    Attributes
    ----------
    name : str
        Unique within its table.
    label : str
        What the paper calls it.
    dataset, encoder, aggregation : str
        On what the published number was measured; ``encoder`` and ``aggregation`` in the paper's words.
    published : MeanAP
        Several rows of ours may stand beside one published number.
    method, aggregator : str
        Of ``meidbench.baselines``; empty for a row that is only quoted, ``note`` says why.
    settings : tuple of str
        ``KEY=VALUE``, on top of the method's recipe.
    switches : tuple of str
        Keys, or sections, of the configuration in which it differs from the table's base; ``method`` for a row that is
        another model altogether.
    note : str
    """

    name: str
    label: str
    dataset: str
    encoder: str
    aggregation: str
    published: MeanAP
    method: str = ""
    aggregator: str = ""
    settings: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_quoted(self) -> bool:
        """Whether nothing of ours can stand beside it."""
        return not self.method


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper or its supplement.

    Attributes
    ----------
    name : str
        One of ``RUN_TABLES``.
    title, source : str
        What it shows, and where it is.
    base : str
        The row that the others differ from by their switches; empty where they are different methods.
    protocol : tuple of str
        In what the published numbers were measured otherwise than ours.
    notes : tuple of str
    rows : tuple of Row
    """

    name: str
    title: str
    source: str
    base: str
    protocol: tuple[str, ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """Return a row by name.

        Raises
        ------
        MeidbenchError
            There is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise MeidbenchError(f"{self.name} has no row {name!r}; its rows: {', '.join(row.name for row in self.rows)}")


def read_table(name: str) -> PaperTable:
    """Read a table whose rows are runs.

    Raises
    ------
    MeidbenchError
        There is none.

    Examples
    --------
    >>> table = read_table("table7")
    >>> [(row.label, row.published.tail) for row in table.rows]
    [('beta 0.3', 0.521), ('beta 0.5', 0.524), ('beta 0.7', 0.514)]
    >>> table.row("beta-0.3").settings
    ('stage2.model.beta=0.3',)
    """
    if name not in RUN_TABLES:
        raise MeidbenchError(f"unknown table {name!r}; known: {', '.join(RUN_TABLES)}")
    content = table_content(name)
    rows = tuple(
        Row(
            entry["name"],
            entry["label"],
            entry["dataset"],
            entry["encoder"],
            entry["aggregation"],
            MeanAP(*entry["mAP"]),
            entry.get("method", ""),
            entry.get("aggregator", ""),
            tuple(entry.get("settings", ())),
            tuple(entry.get("switches", ())),
            entry.get("note", ""),
        )
        for entry in content["rows"]
    )
    return PaperTable(
        name=name,
        title=content["title"],
        source=content["source"],
        base=content.get("base", ""),
        protocol=tuple(content["protocol"]),
        notes=tuple(content["notes"]),
        rows=rows,
    )


@cache
def table_content(name: str) -> dict[str, Any]:
    """Return the content of ``tables/NAME.toml``."""
    file = resources.files("meidbench.baselines").joinpath("tables").joinpath(f"{name}.toml")
    return parse_toml(file.read_text(encoding="utf-8"))


def row_names(table: str) -> tuple[str, ...]:
    """Return the names of a table's rows; of Table 1 these are benchmarks.

    Examples
    --------
    >>> row_names("table6")
    ('e1', 'e1-e1', 'e1-e2')
    """
    if table == STATISTICS:
        return tuple(table_content(STATISTICS)["datasets"])
    return tuple(row.name for row in read_table(table).rows)
