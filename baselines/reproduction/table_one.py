"""Table 1: the statistics of splits that are at hand, cell by cell beside the paper's."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from meidbench.baselines.reproduction.built_splits import BuiltSplits, build_command
from meidbench.baselines.reproduction.paper_tables import STATISTICS, table_content
from meidbench.baselines.reproduction.text import NARROWEST, wrapped
from meidbench.errors import MeidbenchError
from meidbench.evaluation.results import as_json
from meidbench.splits.manifests import load_manifest
from meidbench.splits.split import Split
from meidbench.splits.statistics import split_statistics

_COUNTS = ("classes", "head", "medium", "tail", "train", "val", "test")
_RATIOS = ("labels_per_video", "imbalance_ratio")  # printed with one decimal
CELLS = (*_COUNTS, *_RATIOS)


@dataclass(frozen=True)
class Cell:
    """A statistic: the paper's value, and ours as the paper prints it; None where the split is not built."""

    name: str
    paper: float
    ours: float | None

    @property
    def verdict(self) -> str:
        """``equal``, ``DIFFERS``, or ``not run``."""
        return "not run" if self.ours is None else "equal" if self.ours == self.paper else "DIFFERS"


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes
    ----------
    dataset, title : str
    variant : str
        Of the split; empty where it is not built.
    cells : tuple of Cell
    command : str
        How the split is built; empty where it is.
    """

    dataset: str
    title: str
    variant: str
    cells: tuple[Cell, ...]
    command: str


@dataclass(frozen=True)
class TableOne:
    """Table 1.

    Attributes
    ----------
    benchmarks : tuple of Benchmark
    """

    benchmarks: tuple[Benchmark, ...]

    @property
    def built(self) -> int:
        """How many of the benchmarks are built."""
        return sum(not benchmark.command for benchmark in self.benchmarks)

    @property
    def differing(self) -> int:
        """How many cells differ from the paper's."""
        return sum(cell.verdict == "DIFFERS" for benchmark in self.benchmarks for cell in benchmark.cells)

    @property
    def verdict(self) -> str:
        """What is to be said of it all."""
        cells = sum(cell.ours is not None for benchmark in self.benchmarks for cell in benchmark.cells)
        if not cells:
            return "no split is built: nothing was compared"
        if self.differing:
            return f"{self.differing} of {cells} cells differ from the paper's"
        return f"all {cells} cells of {self.built} benchmark(s) equal the paper's"

    def content(self) -> dict[str, Any]:
        """Return the table for JSON."""
        facts = table_content(STATISTICS)
        return {
            "table": STATISTICS,
            "title": facts["title"],
            "source": facts["source"],
            "simulated": False,
            "verdict": self.verdict,
            "rows": [
                {
                    **asdict(benchmark),
                    "cells": [{**asdict(cell), "verdict": cell.verdict} for cell in benchmark.cells],
                }
                for benchmark in self.benchmarks
            ],
        }

    def to_json(self) -> str:
        """Return the table as JSON, keys sorted."""
        return as_json(self.content())

    def to_csv(self) -> str:
        """Return the table as CSV, a line a cell."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("dataset", "variant", "statistic", "paper", "ours", "verdict"))
        for benchmark in self.benchmarks:
            for cell in benchmark.cells:
                ours = "" if cell.ours is None else f"{cell.ours:g}"
                row = (benchmark.dataset, benchmark.variant, cell.name, f"{cell.paper:.10g}", ours, cell.verdict)
                writer.writerow(row)
        return stream.getvalue()

    def lines(self) -> list[list[str]]:
        """Return the cells as text, a line a statistic of a benchmark."""
        return [
            [
                benchmark.title if place == 0 else "",
                cell.name,
                _shown(cell, cell.paper),
                _shown(cell, cell.ours),
                cell.verdict,
            ]
            for benchmark in self.benchmarks
            for place, cell in enumerate(benchmark.cells)
        ]

    def commands(self) -> list[str]:
        """Return how the splits that are missing are built."""
        return [
            f"the split of {benchmark.dataset} is not built: {benchmark.command}"
            for benchmark in self.benchmarks
            if benchmark.command
        ]

    def to_text(self, width: int = 80) -> str:
        """Lay the table out for a terminal; where it does not fit, a statistic has a line."""
        facts = table_content(STATISTICS)
        table = tabulate(
            self.lines(),
            ["", "statistic", "paper", "ours", ""],
            tablefmt="simple",
            disable_numparse=True,
            colalign=("left", "left", "right", "right", "left"),
        )
        width = max(width, NARROWEST)
        if max(map(len, table.splitlines())) > width:
            table = "\n\n".join(_stacked(benchmark, width) for benchmark in self.benchmarks)
        head = [wrapped(text, width) for text in (f"{STATISTICS}: {facts['title']}", f"({facts['source']})")]
        said = [wrapped(text, width) for text in (self.verdict, *self.commands())]
        return "\n".join([*head, "", table, "", *said])

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        facts = table_content(STATISTICS)
        rows = [["benchmark", "statistic", "paper", "ours", "verdict"], ["---", "---", "---:", "---:", "---"]]
        body = [f"| {' | '.join(line)} |" for line in rows + self.lines()]
        said = [f"- {text}" for text in (self.verdict, *self.commands(), *facts["protocol"])]
        return "\n".join(
            [f"# {STATISTICS}: {facts['title']}", "", f"Published: {facts['source']}.", "", *body, "", *said, ""]
        )


def reproduce_table_one(splits: BuiltSplits, datasets: Sequence[str] = ()) -> TableOne:
    """Compare the statistics of splits with the paper's.

    Parameters
    ----------
    splits : BuiltSplits
    datasets : sequence of str
        Rows of the table; all where left out.

    Raises
    ------
    MeidbenchError
        A row is unknown, or a split is damaged.
    """
    known: list[str] = table_content(STATISTICS)["datasets"]
    if unknown := [dataset for dataset in datasets if dataset not in known]:
        raise MeidbenchError(f"{STATISTICS} has no row {unknown[0]!r}; its rows: {', '.join(known)}")
    return TableOne(tuple(_benchmark(name, splits.get(name)) for name in known if not datasets or name in datasets))


def _benchmark(dataset: str, split: Split | None) -> Benchmark:
    manifest = load_manifest(dataset)
    paper = {"classes": float(manifest.num_classes), **manifest.paper}
    ours = {} if split is None else asdict(split_statistics(split))
    cells = tuple(
        Cell(name, paper[name], None if split is None else round(ours[name], 1 if name in _RATIOS else 0))
        for name in CELLS
    )
    variant = "" if split is None else split.variant
    return Benchmark(dataset, manifest.title, variant, cells, build_command(dataset) if split is None else "")


def _stacked(benchmark: Benchmark, width: int) -> str:
    lines = [wrapped(benchmark.title, width)]
    for cell in benchmark.cells:
        text = f"{cell.name}  paper {_shown(cell, cell.paper)}  ours {_shown(cell, cell.ours)}  {cell.verdict}"
        lines.append(wrapped(text, width, "  ", "    "))
    return "\n".join(lines)


def _shown(cell: Cell, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if cell.name in _RATIOS else f"{value:,.0f}"
