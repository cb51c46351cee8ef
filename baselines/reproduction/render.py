"""Reproduced tables and plans as text for a terminal, Markdown, CSV and JSON."""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from meidbench.baselines.recipes import COMPAT_ENDING
from meidbench.baselines.reproduction import PaperTable, read_table, table_content
from meidbench.baselines.reproduction.materials import InputFiles
from meidbench.baselines.reproduction.plan import CostPlan, Job, Request, build_command, make_jobs, make_plan
from meidbench.baselines.reproduction.runs import (
    BOOTSTRAP_SEED,
    DONE,
    FAILED,
    NOT_ASKED,
    NOT_RUN,
    SIMULATE_HINT,
    WATERMARK,
    RowOutcome,
    RunStore,
    check_jobs,
    run_jobs,
    without_execution,
)
from meidbench.evaluation.results import GROUPS_SHOWN, as_json
from meidbench.names import STATISTICS_TABLE
from meidbench.splits.manifests import load_manifest
from meidbench.splits.statistics import split_statistics

STATISTICS = ("classes", "head", "medium", "tail", "train", "val", "test", "labels_per_video", "imbalance_ratio")
_RATIOS = STATISTICS[-2:]  # printed with one decimal
_MARK = "SIMULATED"
_DASH = "-"
_NARROWEST = 24
_NOT_COMPARABLE = "The paper's values are left out: nothing here is comparable with them."
_CHOSEN_ON = {
    "val": "Ours{} is chosen on val, and test is scored once.",
    "test": "Ours{} is chosen on test, too, as selection.subset asks: that flatters it as it does theirs.",
}
_COMPAT = (
    "Rows of baselines are the recipes NAME-compat, which behave as the public code that the numbers are from. "
    "--faithful takes the recipes of the methods' papers instead."
)
_FAITHFUL = (
    "Rows of baselines are the recipes of the methods' papers, as --faithful asks. The numbers are from public code, "
    "which the recipes NAME-compat behave as."
)


@dataclass(frozen=True)
class RenderedTable:
    """A table, or the plan of one, in all its forms."""

    name: str
    content: Any  # for JSON
    text: str  # for a terminal
    files: Mapping[str, str]  # text by the ending of the file's name; empty for a plan
    remarks: Sequence[str] = ()
    succeeded: bool = True  # something was run, no row failed, and no cell differs


def _wrap(text: str, width: int, first: str = "", later: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _text_table(header: Sequence[str], lines: Sequence[Sequence[str]], align: str, width: int) -> str:
    """Return a table for a terminal; where it is wider than ``width``, the cells of a line follow one another."""
    sides = [{"l": "left", "r": "right"}[side] for side in align]
    table = tabulate(lines, header, tablefmt="simple", disable_numparse=True, colalign=sides)
    if max(map(len, table.splitlines())) <= width:
        return table
    parts = []
    for name, first, *others in lines:
        parts += ["", _wrap(name, width)] if name else []
        cells = [f"{title} {cell}".strip() for title, cell in zip(header[2:], others, strict=True)]
        parts.append(_wrap("  ".join([first, *cells]), width, "  ", "    "))
    return "\n".join(parts[1:])


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], align: str) -> list[str]:
    rules = [{"l": "---", "r": "---:"}[side] for side in align]
    return [f"| {' | '.join(_escape(cell) for cell in cells)} |" for cells in (header, rules, *lines)]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _csv(rows: Iterable[Sequence[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


@dataclass(frozen=True)
class Result:
    """The outcomes of a table's rows, and their texts."""

    table: PaperTable
    rows: Sequence[RowOutcome]
    simulated: bool  # then nothing is comparable with the paper, and its values are left out
    replicates: int

    @property
    def shown(self) -> list[RowOutcome]:
        """The rows that were asked for or have numbers."""
        return [outcome for outcome in self.rows if outcome.job.asked or outcome.measured]

    def count(self, status: str) -> int:
        """Return the number of rows that were asked for and have a status."""
        return sum(outcome.status == status for outcome in self.rows if outcome.job.asked)

    def numbers(self, outcome: RowOutcome, group: str) -> tuple[float, float, float, float, float]:
        """Return the paper's value, ours, its interval and the difference; NaN for what is absent."""
        paper = math.nan if self.simulated else float(getattr(outcome.row.published, group))
        if outcome.measured is None:
            return paper, math.nan, math.nan, math.nan, math.nan
        ours = outcome.measured.mAP[group]
        return paper, ours.value, ours.low, ours.high, ours.value - paper

    def cells(self, outcome: RowOutcome, group: str) -> list[str]:
        """Return the numbers as text; a dash for what is absent."""
        paper, ours, low, high, difference = self.numbers(outcome, group)
        interval = _DASH if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"
        texts = [_DASH if math.isnan(value) else f"{value:.3f}" for value in (paper, ours)]
        return [*texts, interval, _DASH if math.isnan(difference) else f"{difference:+.3f}"]

    def protocol(self) -> list[str]:
        """Return the table's protocol, and the subset on which ours is chosen."""
        chosen: dict[str, list[str]] = {}
        for outcome in self.rows:
            if config := outcome.config:
                stages = [stage.selection.subset for stage in (config, config.first_stage) if stage]
                chosen.setdefault("test" if "test" in stages else stages[0], []).append(outcome.row.name)
        named = {subset: f" ({', '.join(names)})" if len(chosen) > 1 else "" for subset, names in chosen.items()}
        return [*self.table.protocol, *(_CHOSEN_ON[subset].format(names) for subset, names in named.items())]

    def notes(self) -> list[str]:
        """Return which recipes the baselines are, and the table's notes."""
        baselines = [row.config.method for row in self.rows if row.config and row.row.method.endswith(COMPAT_ENDING)]
        recipes = dict.fromkeys(_COMPAT if method.endswith(COMPAT_ENDING) else _FAITHFUL for method in baselines)
        return [*recipes, *self.table.notes]

    def sections(self) -> dict[str, list[str]]:
        """Return the texts below the table by their titles."""
        without = [
            f"{outcome.row.name}: {outcome.status}{f', {outcome.reason}' if outcome.reason else ''}"
            for outcome in self.shown
            if outcome.status != DONE
        ]
        if others := [outcome.row.name for outcome in self.rows if outcome.status == NOT_ASKED]:
            without.append(f"{NOT_ASKED}: {', '.join(others)}")
        done = [outcome for outcome in self.rows if outcome.status == DONE]
        intervals = (
            f"95% intervals: Bayesian bootstrap over the test videos, {self.replicates:,} replicates, seed "
            f"{BOOTSTRAP_SEED}; they do not cover what another training would give."
        )
        sections = {
            "Without numbers of ours": without,
            "How ours was made": [*map(_describe_run, done), intervals] if done else [],
        }
        grouped: dict[tuple[str, ...], list[str]] = {}
        for outcome in done:
            grouped.setdefault(outcome.differs, []).append(outcome.row.name)
        for differs, names in grouped.items():
            rows = "every row" if len(names) == len(self.shown) else ", ".join(names)
            sections[f"Set otherwise than the paper's row: {rows}"] = [f"`{text}`" for text in differs]
        sections |= {"Protocol": self.protocol(), "Notes": self.notes()}
        return {title: texts for title, texts in sections.items() if texts}

    def to_text(self, width: int) -> str:
        """Return the table for a terminal."""
        width = max(width, _NARROWEST)
        header, lines = ["row", "test mAP", "paper", "ours", "95% interval", "difference"], []
        for outcome in self.shown:
            for group in GROUPS_SHOWN:
                cells = self.cells(outcome, group)
                name = f"{_MARK} {outcome.row.name}" if self.simulated else outcome.row.name
                if group == "overall" and outcome.status != DONE:
                    cells[1] = outcome.status
                lines.append([name if group == "overall" else "", group, *cells])
        if self.simulated:
            header, lines = [*header[:2], *header[3:5]], [[*line[:2], *line[3:5]] for line in lines]
        title = f"{self.table.name}: {self.table.title} ({self.table.source})"
        parts = [_wrap(text, width) for text in ([WATERMARK, f"{_MARK} {title}"] if self.simulated else [title])]
        parts += ["", _text_table(header, lines, "ll" + "r" * (len(header) - 2), width)]
        parts += ["", _wrap(_NOT_COMPARABLE, width)] if self.simulated else []
        for title, texts in self.sections().items():
            parts += ["", _wrap(title if ": " in title else f"{title}:", width)]
            parts += [_wrap(text.replace("`", ""), width, "  - ", "    ") for text in texts]
        return "\n".join(parts)

    def to_markdown(self) -> str:
        """Return the table as Markdown: a line per row and group, then the sections."""
        lines = [f"# {f'{_MARK} ' if self.simulated else ''}{self.table.name}: {_escape(self.table.title)}", ""]
        lines += [f"**{WATERMARK}.** {_NOT_COMPARABLE}", ""] if self.simulated else []
        lines += [f"Published: {self.table.source}.", ""]
        header = ["row", "data of ours", "mAP", "paper", "ours", "95% interval", "difference"]
        lines += _markdown_table(
            header,
            [
                [outcome.row.name, _MARK if self.simulated else outcome.row.dataset, group, *self.cells(outcome, group)]
                for outcome in self.rows
                for group in GROUPS_SHOWN
            ],
            "lllrrrr",
        )
        for title, texts in self.sections().items():
            lines += ["", f"## {title}", "", *(f"- {text}" for text in texts)]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Return the table as CSV, a line per row; cells without a number are empty."""
        facts = ["data", "table", "row", "label", "dataset", "encoder", "method", "aggregator", "status", "reason"]
        kinds = ("paper", "ours", "low", "high", "difference")
        numbers = [f"{group}_{kind}" for group in GROUPS_SHOWN for kind in kinds]
        lines = [[*facts, "seeds", *numbers, *(f"{group}_val" for group in GROUPS_SHOWN), "differs", "note"]]
        for outcome in self.rows:
            row, config, measured = outcome.row, outcome.config, outcome.measured
            values = [value for group in GROUPS_SHOWN for value in self.numbers(outcome, group)]
            values += [measured.val.get(group, math.nan) if measured else math.nan for group in GROUPS_SHOWN]
            lines.append(
                [_MARK if self.simulated else "real", self.table.name, row.name, row.label, row.dataset, row.encoder]
                + [config.method if config else "", config.aggregator.name if config else ""]
                + [outcome.status, outcome.reason, " ".join(map(str, measured.seeds)) if measured else ""]
                + ["" if math.isnan(value) else repr(value) for value in values]
                + ["; ".join(outcome.differs), row.note]
            )
        return _csv(lines)

    def content(self) -> dict[str, Any]:
        """Return the table for JSON; the same runs give the same content."""
        watermark = {"watermark": WATERMARK} if self.simulated else {}
        rows = []
        for outcome in self.rows:
            row, config, measured = outcome.row, outcome.config, outcome.measured
            facts = {
                key: value for key, value in asdict(row).items() if key not in ("method", "aggregator", "settings")
            }
            rows.append(
                {
                    **facts,
                    **watermark,
                    "published": None if self.simulated else facts["published"],
                    "status": outcome.status,
                    "reason": outcome.reason,
                    "config": without_execution(config.to_tables()) if config else None,
                    "differs": outcome.differs,
                    "ours": asdict(measured) if measured else None,
                    "difference": {group: self.numbers(outcome, group)[-1] for group in GROUPS_SHOWN}
                    if measured and not self.simulated
                    else None,
                }
            )
        return {
            "format_version": 1,
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "simulated": self.simulated,
            **watermark,
            "protocol": self.protocol(),
            "notes": self.notes(),
            "bootstrap": {"replicates": self.replicates, "seed": BOOTSTRAP_SEED},
            "rows": rows,
        }


def _describe_run(outcome: RowOutcome) -> str:
    row, config, measured = outcome.row, outcome.config, outcome.measured
    assert config is not None and measured is not None
    first = f"{config.first_stage.schedule.epochs} + " if config.first_stage else ""
    text = (
        f"`{row.name}` ({row.label}, {row.encoder}, {row.aggregation}): {config.method}, {config.aggregator.name}; "
        f"{first}{config.schedule.epochs} epochs in batches of {config.schedule.batch_size}, {config.frames.train} "
        f"frames in training and {config.frames.test} in scoring, checkpoint by {config.selection.subset}"
    )
    remarks = [row.note] if row.note else []
    if measured.seed_spread:
        spread = measured.seed_spread["overall"]
        seeds = ", ".join(map(str, measured.seeds))
        remarks.append(f"mean of seeds {seeds}, overall {spread.low:.3f} to {spread.high:.3f}")
    remarks += [f"overall on val {measured.val['overall']:.3f}"] if measured.val else []
    return "; ".join([text, *remarks, *measured.warnings])


def _size(count: int) -> str:
    """Return a size in bytes for people.

    Examples
    --------
    >>> _size(157_404_364_800), _size(1_400_000)
    ('157 GB', '1.4 MB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.{0 if count >= 10 * factor else 1}f} {unit}"
    return f"{count:,} bytes"


def _plan_text(plan: CostPlan, source: str, width: int) -> str:
    width = max(width, _NARROWEST)
    parts = [_wrap(f"{plan.table}: {plan.title} ({source})", width), "", "What it takes:"]
    for dataset, split in plan.splits.items():
        parts.append(_wrap(f"split of {dataset}: {'there' if split['built'] else 'MISSING'}", width, "  ", "    "))
        parts += [] if split["built"] else [_wrap(split["command"], width, "    ", "      ")]
    for need in plan.features:
        state = "there" if need.named else "MISSING"
        parts.append(_wrap(f"features of {need.encoder} on {need.dataset}: {state}", width, "  ", "    "))
        shape = f"{need.videos:,} videos x {need.frames} frames x {need.width:,} wide"
        facts = [f"{shape}, in float16 {_size(need.bytes)} of disk", f"from {need.source}", f"weights: {need.weights}"]
        facts += [need.command, f"then: --features {need.dataset}:{need.encoder}=FILE.h5"]
        parts += [] if need.named else [_wrap(fact, width, "    ", "      ") for fact in facts]
    lines = []
    for row in plan.rows:
        inputs = "quoted only" if row.quoted else f"missing {len(row.missing)}" if row.missing else "can be run"
        lines.append([row.name, inputs, *([_DASH, _DASH] if row.quoted else [f"{row.runs}", f"{row.hours:.1f}"])])
    header = ["row", "inputs", "trainings", f"hours ({plan.estimate['gpu']})"]
    parts += ["", _text_table(header, lines, "llrr", width), ""]
    runs, hours = sum(row.runs for row in plan.rows), sum(row.hours for row in plan.rows)
    shared = "what rows share is trained once, and counted at the first; extraction of features is not counted"
    total = f"{runs} training{'' if runs == 1 else 's'}, about {hours:.1f} hours together ({shared})"
    return "\n".join([*parts, _wrap(total, width), _wrap(plan.estimate["formula"], width)])


def _compare_statistics(files: InputFiles, datasets: Sequence[str]) -> list[dict[str, Any]]:
    """Return the paper's and our statistics of benchmarks, as JSON has them."""
    rows = []
    for dataset in datasets or table_content(STATISTICS_TABLE)["datasets"]:
        manifest, (split, _) = load_manifest(dataset), files.split(dataset)
        paper = {"classes": float(manifest.num_classes), **manifest.paper}
        found = asdict(split_statistics(split)) if split is not None else {}
        cells = []
        for name in STATISTICS:
            ours = round(found[name], 1 if name in _RATIOS else 0) if split is not None else None
            verdict = "not run" if ours is None else "equal" if ours == paper[name] else "DIFFERS"
            cells.append({"name": name, "paper": paper[name], "ours": ours, "verdict": verdict})
        variant, command = (split.variant, "") if split is not None else ("", build_command(dataset))
        facts = {"dataset": dataset, "title": manifest.title, "variant": variant, "command": command}
        rows.append({**facts, "cells": cells})
    return rows


def render_statistics(files: InputFiles, datasets: Sequence[str], only_plan: bool, width: int) -> RenderedTable:
    """Compare the statistics of the splits that exist with the paper's Table 1."""
    width, facts = max(width, _NARROWEST), table_content(STATISTICS_TABLE)
    rows = _compare_statistics(files, datasets)
    built = sum(not row["command"] for row in rows)
    differing = sum(cell["verdict"] == "DIFFERS" for row in rows for cell in row["cells"])
    verdict = "no split is built: nothing was compared"
    if built:
        cells = built * len(STATISTICS)
        verdict = f"all {cells} cells of {built} benchmark(s) equal the paper's"
        verdict = f"{differing} of {cells} cells differ from the paper's" if differing else verdict
    remarks = [verdict]
    remarks += [f"the split of {row['dataset']} is not built: {row['command']}" for row in rows if row["command"]]
    lines, table = [], [["dataset", "variant", "statistic", "paper", "ours", "verdict"]]
    for row in rows:
        for cell in row["cells"]:
            name, paper, ours = cell["name"], cell["paper"], cell["ours"]
            form = ".1f" if name in _RATIOS else ",.0f"
            texts = [f"{paper:{form}}", _DASH if ours is None else f"{ours:{form}}"]
            lines.append(["" if name != STATISTICS[0] else row["title"], name, *texts, cell["verdict"]])
            numbers = [f"{paper:.10g}", "" if ours is None else f"{ours:g}"]
            table.append([row["dataset"], row["variant"], name, *numbers, cell["verdict"]])
    head = [_wrap(text, width) for text in (f"{STATISTICS_TABLE}: {facts['title']}", f"({facts['source']})")]
    text_table = _text_table(["", "statistic", "paper", "ours", ""], lines, "llrrl", width)
    markdown = [f"# {STATISTICS_TABLE}: {facts['title']}", "", f"Published: {facts['source']}.", ""]
    markdown += _markdown_table(["benchmark", "statistic", "paper", "ours", "verdict"], lines, "llrrl")
    markdown += ["", *(f"- {text}" for text in (*remarks, *facts["protocol"])), ""]
    content = {"table": STATISTICS_TABLE, "title": facts["title"], "source": facts["source"], "simulated": False}
    content |= {"verdict": verdict, "rows": rows}
    return RenderedTable(
        STATISTICS_TABLE,
        content,
        "\n".join([*head, "", text_table, "", *(_wrap(text, width) for text in remarks)]),
        {"md": "\n".join(markdown), "csv": _csv(table), "json": as_json(content)} if built and not only_plan else {},
        succeeded=only_plan or (built > 0 and not differing),
    )


def render_tables(
    chosen: Mapping[str, Sequence[str]],
    files: InputFiles,
    request: Request,
    store: RunStore,
    *,
    gpu: str,
    only_plan: bool,
    width: int,
) -> Iterator[RenderedTable]:
    """Run tables, or plan them where nothing of them can be run or only the plan is asked for.

    Parameters
    ----------
    chosen : mapping
        The result of ``choose_rows``.
    files : InputFiles
    request : Request
    store : RunStore
    gpu : str
        The GPU of the estimated hours.
    only_plan : bool
    width : int
        Columns of the terminal.

    Raises
    ------
    MeidbenchError
        A configuration is wrong, or the folder holds results of the other kind; nothing has been run then.
    """
    simulated = request.simulation is not None
    if STATISTICS_TABLE in chosen and not simulated:
        yield render_statistics(files, chosen[STATISTICS_TABLE], only_plan, width)
    tables = {name: read_table(name) for name in chosen if name != STATISTICS_TABLE}
    # Errors in any table are found before the first training.
    jobs = {name: make_jobs(table, request, files, chosen[name]) for name, table in tables.items()}
    for name in tables:
        check_jobs(jobs[name])
    ready = [name for name in tables if not only_plan and any(job.can_run for job in jobs[name])]
    if ready:
        store.prepare(simulated)
    for name, table in tables.items():
        if name in ready:
            yield _render_result(Result(table, run_jobs(jobs[name], store), simulated, store.replicates), width)
        else:
            yield _render_plan(table, jobs[name], gpu, only_plan, width)


def _render_result(result: Result, width: int) -> RenderedTable:
    name, trained = result.table.name, sum(outcome.trained for outcome in result.rows)
    asked = sum(outcome.job.asked for outcome in result.rows)
    remarks = [f"{name}: {result.count(DONE)} of {asked} rows have numbers, {trained} newly trained"]
    if waiting := result.count(NOT_RUN):
        remarks.append(f"{waiting} row(s) lack inputs; 'meidbench reproduce {name} --plan' says which")
    failed = [outcome for outcome in result.rows if outcome.status == FAILED]
    remarks += [f"row {outcome.row.name} failed: {outcome.reason}" for outcome in failed]
    content = result.content()
    files = {"md": result.to_markdown(), "csv": result.to_csv(), "json": as_json(content)}
    return RenderedTable(name, content, result.to_text(width), files, remarks, succeeded=not failed)


def _render_plan(table: PaperTable, jobs: Sequence[Job], gpu: str, only_plan: bool, width: int) -> RenderedTable:
    plan = make_plan(table, jobs, gpu)
    needs = {job.row.name: job.material.simulated for job in jobs if job.asked and not job.row.is_quoted}
    remarks = [f"row {row} needs {' and '.join(real)}; {SIMULATE_HINT}" for row, real in needs.items() if real]
    remarks += [] if only_plan else [f"nothing of {table.name} can be run yet: no number is filled in"]
    return RenderedTable(table.name, asdict(plan), _plan_text(plan, table.source, width), {}, remarks, only_plan)
