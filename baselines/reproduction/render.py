"""Reproduced tables and plans as text for a terminal, Markdown, CSV and JSON."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from meidbench.baselines.configuration import without_execution
from meidbench.baselines.methods import COMPAT_ENDING
from meidbench.baselines.reproduction import PaperTable, read_table, runs, table_content
from meidbench.baselines.reproduction.materials import InputFiles
from meidbench.baselines.reproduction.plan import CostPlan, Job, Request, build_command, make_jobs, make_plan
from meidbench.baselines.reproduction.runs import RowOutcome, RunStore
from meidbench.checks import parse_json
from meidbench.evaluation.budget import COLUMNS as BUDGET_COLUMNS
from meidbench.evaluation.budget import NO_STEPS, Budget, describe_budgets, describe_inequality
from meidbench.evaluation.results import GROUPS_SHOWN
from meidbench.files import render_json
from meidbench.names import STATISTICS_TABLE, WATERMARKS
from meidbench.report.text import make_cells_safe
from meidbench.splits.manifests import load_manifest
from meidbench.splits.statistics import split_statistics

ENDINGS = ("json", "md", "csv")  # of the files that hold a table; the first tells that they are ours
STATISTICS = ("classes", "head", "medium", "tail", "train", "val", "test", "labels_per_video", "imbalance_ratio")
_RATIOS = STATISTICS[-2:]  # printed with one decimal
_DASH = "-"
MARK = "!"  # at the published overall value of a row that contradicts its groups
CONTRADICTIONS = f"{MARK} Published overall values that are not the mean of their groups, weighted by their classes"
_HEADER = ("paper", "ours", "95% interval", "difference")

Content = dict[str, Any]  # a table as its JSON has it


@dataclass(frozen=True)
class RenderedTable:
    """A table, or the plan of one, in all its forms."""

    name: str
    content: Content
    text: str  # for a terminal
    files: Mapping[str, str]  # text by the ending of the file's name; empty for a plan
    remarks: Sequence[str] = ()
    succeeded: bool = True  # something was run, no row failed, and no cell differs


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
    """Run the rows of ``choose_rows``, or plan a table where no row can be run or only the plan is asked for.

    A wrong configuration and a folder with results of the other kind are refused before the first training.
    """
    watermark, hint = "", table_content("texts")["substitutes"]
    if request.substitute is not None:
        watermark = WATERMARKS[request.substitute.backbone]
    if STATISTICS_TABLE in chosen and not watermark:
        yield _render_statistics(files, chosen[STATISTICS_TABLE], only_plan, width)
    tables = {name: read_table(name) for name in chosen if name != STATISTICS_TABLE}
    # Errors in any table are found before the first training.
    jobs = {name: make_jobs(table, request, files, chosen[name]) for name, table in tables.items()}
    jobs = {name: runs.check_jobs(jobs[name]) for name in tables}
    ready = [name for name in tables if not only_plan and any(job.can_run for job in jobs[name])]
    if ready:
        store.prepare(watermark)
    for name, table in tables.items():
        if name in ready:
            outcomes = runs.run_jobs(jobs[name], store)
            yield _render_result(table, outcomes, store.replicates, watermark, request.trials, width)
            continue
        if watermark:
            yield _refuse_table(table, jobs[name])
            continue
        needs = {job.row.name: job.material.substituted for job in jobs[name] if job.asked and not job.row.is_quoted}
        remarks = [f"row {row} needs {' and '.join(real)}; {hint}" for row, real in needs.items() if real]
        remarks += [] if only_plan else [f"nothing of {name} can be run yet: no number is filled in"]
        plan = make_plan(table, jobs[name], gpu)
        yield RenderedTable(name, asdict(plan), _plan_text(plan, table, width), {}, remarks, only_plan)


def find_foreign_files(out: Path, names: Iterable[str]) -> list[Path]:
    """Return the files with the names of results that hold something else, such as a user's own ``table1.csv``."""
    foreign = []
    for name in names:
        there = [path for ending in ENDINGS if (path := out / f"{name}.{ending}").is_file()]
        try:
            content = parse_json((out / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            content = None
        is_ours = isinstance(content, dict) and content.get("table") == name and "rows" in content
        foreign += [] if is_ours else there
    return foreign


def _render_result(
    table: PaperTable, outcomes: Sequence[RowOutcome], replicates: int, watermark: str, trials: int, width: int
) -> RenderedTable:
    content = _result_content(table, outcomes, replicates, watermark, trials)
    asked = [outcome for outcome in outcomes if outcome.job.asked]
    statuses, trained = [outcome.status for outcome in asked], sum(outcome.trained for outcome in asked)
    remarks = [
        f"{table.name}: {statuses.count(runs.DONE)} of {len(asked)} rows have numbers, {trained} runs newly trained"
    ]
    if waiting := statuses.count(runs.NOT_RUN):
        where = "the table names them" if watermark else f"'meidbench reproduce {table.name} --plan' says which"
        remarks.append(f"{waiting} row(s) lack inputs; {where}")
    failed = [outcome for outcome in asked if outcome.status == runs.FAILED]
    remarks += [f"row {outcome.job.row.name} failed: {outcome.reason}" for outcome in failed]
    shown = [outcome.job.row.name for outcome in outcomes if outcome.job.asked or outcome.measured]
    sections = _sections(content, shown)
    files = {"md": _result_markdown(content, sections), "csv": _result_csv(content), "json": render_json(content)}
    text = _result_text(content, sections, shown, width)
    return RenderedTable(table.name, content, text, files, remarks, succeeded=not failed)


def _result_content(
    table: PaperTable, outcomes: Sequence[RowOutcome], replicates: int, watermark: str, trials: int
) -> Content:
    texts, rows = table_content("texts"), []
    marked = {"watermark": watermark} if watermark else {}
    chosen: dict[str, list[str]] = {}
    recipes: dict[str, None] = {}
    for outcome in outcomes:
        row, measured = outcome.job.row, outcome.measured
        config = None if outcome.status in (runs.QUOTED, runs.NOT_ASKED) else outcome.job.configs[0]
        if config is not None:
            subsets = [stage.selection.subset for stage in (config, config.first_stage) if stage is not None]
            chosen.setdefault("test" if "test" in subsets else subsets[0], []).append(row.name)
            if row.method.endswith(COMPAT_ENDING):
                recipes[texts["compat" if config.method.endswith(COMPAT_ENDING) else "faithful"]] = None
        facts = {key: value for key, value in asdict(row).items() if key not in ("method", "aggregator", "settings")}
        published = facts.pop("published")
        difference = None
        if measured is not None and not watermark:
            difference = {group: measured.mAP[group].value - published[group] for group in GROUPS_SHOWN}
        rows.append(
            {
                **facts,
                **marked,
                "published": None if watermark else published,
                "implied_overall": None if watermark else table.implied_overall(row),
                "status": outcome.status,
                "reason": outcome.reason,
                "config": None if config is None else without_execution(config.to_tables()),
                "differs": outcome.differs,
                "ours": None if measured is None else asdict(measured),
                "difference": difference,
                **({"chosen": outcome.chosen and asdict(outcome.chosen)} if trials else {}),
            }
        )
    names = {subset: f" ({', '.join(rows_of)})" if len(chosen) > 1 else "" for subset, rows_of in chosen.items()}
    return {
        "format_version": 1,
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "simulated": watermark == WATERMARKS["simulation"],
        **marked,
        **({"trials": trials} if trials else {}),
        "protocol": [
            *table.protocol,
            *(texts["chosen_on"][subset].format(names[subset]) for subset in chosen),
            *([texts["tuned"].format(trials=trials)] if trials else []),
        ],
        "notes": [*recipes, *table.notes],
        "bootstrap": {"replicates": replicates, "seed": runs.BOOTSTRAP_SEED},
        "rows": rows,
    }


def _find_mark(content: Content) -> str:
    return runs.find_mark(content.get("watermark", ""))


def _refuse_table(table: PaperTable, jobs: Iterable[Job]) -> RenderedTable:
    """Tell why no row of a table can be run on a substitute of the features."""
    missing = dict.fromkeys(
        what for job in jobs if job.asked and not job.row.is_quoted for what in job.material.missing
    )
    reason = f"nothing of {table.name} can be run: its rows need {' and '.join(missing)}"
    return RenderedTable(table.name, {"table": table.name, "missing": list(missing)}, reason, {}, (), False)


def _numbers(row: Content, group: str) -> list[float]:
    """Return the paper's value, ours, its interval and the difference; NaN for an absent number."""
    ours = row["ours"]["mAP"][group] if row["ours"] else {}
    paper, difference = (row[key] or {} for key in ("published", "difference"))
    values = [ours.get(key, math.nan) for key in ("value", "low", "high")]
    return [paper.get(group, math.nan), *values, difference.get(group, math.nan)]


def _title(row: Content, group: str) -> str:
    """Return a group's name, or the own name that the benchmark of a row has for it."""
    return load_manifest(row["dataset"]).group_names.get(group, group)


def _cells(row: Content, group: str) -> list[str]:
    paper, ours, low, high, difference = _numbers(row, group)
    marked = MARK if group == "overall" and row["implied_overall"] is not None else ""
    cells = [(paper, f"{paper:.3f}{marked}"), (ours, f"{ours:.3f}"), (low, f"[{low:.3f}, {high:.3f}]")]
    return [_DASH if math.isnan(value) else text for value, text in (*cells, (difference, f"{difference:+.3f}"))]


def _sections(content: Content, shown: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts below the table of a result, by their titles."""
    rows = [row for row in content["rows"] if row["name"] in shown]
    done = [row for row in rows if row["status"] == runs.DONE]
    others = [row["name"] for row in content["rows"] if row["status"] == runs.NOT_ASKED]
    without = [", ".join(filter(None, (f"{row['name']}: {row['status']}", row["reason"]))) for row in rows]
    without = [text for text, row in zip(without, rows, strict=True) if row not in done]
    without += [f"{runs.NOT_ASKED}: {', '.join(others)}"] if others else []
    made = [_describe_run(row) for row in done]
    made += [table_content("texts")["intervals"].format(**content["bootstrap"])] if done else []
    against = [
        _contradiction(f"`{row['name']}`", row["published"]["overall"], row["implied_overall"])
        for row in rows
        if row["implied_overall"] is not None
    ]
    sections = {CONTRADICTIONS: against, "Without numbers of ours": without, "Budgets": _describe_budgets(done)}
    sections |= {"How ours was made": made}
    for differs in dict.fromkeys(row["differs"] for row in done):
        names = [row["name"] for row in done if row["differs"] == differs]
        title = "every row" if len(names) == len(rows) else ", ".join(names)
        sections[f"Set otherwise than the paper's row: {title}"] = [f"`{text}`" for text in differs]
    sections |= {"Protocol": content["protocol"], "Notes": content["notes"]}
    return {title: texts for title, texts in sections.items() if texts}


def _contradiction(name: str, published: float, implied: float) -> str:
    """Return the text of a row whose groups imply another overall value."""
    return f"{name}: {published:.3f} is published, its groups imply {implied:.3f}"


def _describe_budgets(rows: Sequence[Content]) -> list[str]:
    """Return the budget of each row, equal ones together, and how those of a benchmark are unequal."""
    texts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        budgets = {row["name"]: _budgets(row) for row in rows if row["dataset"] == dataset}
        named: dict[str, list[str]] = {}
        for name, given in budgets.items():
            named.setdefault(_describe_budget(given), []).append(name)
        texts += [f"{budget}: {', '.join(names)}" for budget, names in named.items()]
        texts += [f"{dataset}: {unequal}"] if (unequal := describe_inequality(budgets)) else []
    return texts


def _budgets(row: Content) -> list[Budget | None]:
    return [budget and Budget.from_facts(budget) for budget in row["ours"]["budgets"]]


def _describe_budget(budgets: Sequence[Budget | None]) -> str:
    if not any(budgets):
        return "unknown budget"
    texts = describe_budgets(budgets)
    rate = "" if texts["rate"] == _DASH else f" at {texts['rate']} in batches of {texts['batch']}"
    steps = texts["steps"] if texts["steps"] == NO_STEPS else f"{texts['steps']} steps"
    return f"{steps}{rate}, {texts['trials']} trial{'' if texts['trials'] == '1' else 's'}"


def _describe_run(row: Content) -> str:
    config, ours = row["config"], row["ours"]
    schedule, frames, first = config["schedule"], config["frames"], config["first_stage"]
    epochs = f"{first['schedule']['epochs']} + {schedule['epochs']}" if first else schedule["epochs"]
    texts = [
        f"`{row['name']}` ({row['label']}, {row['encoder']}, {row['aggregation']}): {config['method']}, "
        f"{config['aggregator']['name']}",
        f"{epochs} epochs: {_describe_budget(_budgets(row))}; {frames['train']} frames in training and "
        f"{frames['test']} in scoring, checkpoint by {config['selection']['subset']}",
        row["note"],
    ]
    if chosen := row.get("chosen"):
        searched = ", ".join(chosen["searched"])
        texts.append(f"trial {chosen['winner']} of a study over {searched}, {chosen['steps']:,} steps in all trials")
    if ours["seed_spread"]:
        spread, seeds = ours["seed_spread"]["overall"], ", ".join(map(str, ours["seeds"]))
        texts.append(f"mean of seeds {seeds}, overall {spread['low']:.3f} to {spread['high']:.3f}")
    texts += [f"overall on val {ours['val']['overall']:.3f}"] if ours["val"] else []
    # The watermark stands above the table.
    return "; ".join(filter(None, [*texts, *(text for text in ours["warnings"] if text != row.get("watermark"))]))


def _result_text(content: Content, sections: Mapping[str, Sequence[str]], shown: Sequence[str], width: int) -> str:
    lines, mark = [], _find_mark(content)
    for row in content["rows"]:
        name = f"{mark} {row['name']}".strip()
        for group in GROUPS_SHOWN if row["name"] in shown else ():
            cells = _cells(row, group)
            if group == "overall" and row["status"] != runs.DONE:
                cells[1] = row["status"]
            lines.append([name if group == "overall" else "", _title(row, group), *cells])
    header, title = ["row", "test mAP", *_HEADER], f"{content['table']}: {content['title']} ({content['source']})"
    head, below = [title], []
    if mark:  # without the columns of the paper's value and the difference
        header, lines = [*header[:2], *header[3:5]], [[*line[:2], *line[3:5]] for line in lines]
        head, below = [content["watermark"], f"{mark} {title}"], ["", table_content("texts")["not_comparable"]]
    table = _text_table(header, lines, "ll" + "r" * (len(header) - 2), width)
    parts = [*(_wrap(text, width) for text in head), "", table, *(_wrap(text, width) for text in below)]
    for title, texts in sections.items():
        parts += ["", _wrap(title if ": " in title else f"{title}:", width)]
        parts += [_wrap(text.replace("`", ""), width, "  - ", "    ") for text in texts]
    return "\n".join(parts)


def _result_markdown(content: Content, sections: Mapping[str, Sequence[str]]) -> str:
    mark = _find_mark(content)
    parts = [f"# {f'{mark} ' if mark else ''}{content['table']}: {content['title']}", ""]
    parts += [f"**{content['watermark']}.** {table_content('texts')['not_comparable']}", ""] if mark else []
    parts += [f"Published: {content['source']}.", ""]
    lines = [
        [row["name"], mark or row["dataset"], _title(row, group), *_cells(row, group)]
        for row in content["rows"]
        for group in GROUPS_SHOWN
    ]
    parts += _markdown_table(["row", "data of ours", "mAP", *_HEADER], lines, "lllrrrr")
    for title, texts in sections.items():
        parts += ["", f"## {title}", "", *(f"- {text}" for text in texts)]
    return "\n".join(parts) + "\n"


def _result_csv(content: Content) -> str:
    facts = ("name", "label", "dataset", "encoder")
    kinds = ("paper", "ours", "low", "high", "difference")
    header = ["data", "table", "row", *facts[1:], "method", "aggregator", "status", "reason", "seeds"]
    header += BUDGET_COLUMNS
    header += [f"{group}_{kind}" for group in GROUPS_SHOWN for kind in kinds]
    lines = [[*header, *(f"{group}_val" for group in GROUPS_SHOWN), "differs", "note"]]
    for row in content["rows"]:
        config, ours = row["config"], row["ours"] or {"seeds": (), "val": {}}
        budget = describe_budgets(_budgets(row) if row["ours"] else ()).values()
        method = [config["method"], config["aggregator"]["name"]] if config else ["", ""]
        numbers = [number for group in GROUPS_SHOWN for number in _numbers(row, group)]
        numbers += [ours["val"].get(group, math.nan) for group in GROUPS_SHOWN]
        lines.append(
            [_find_mark(content) or "real", content["table"], *(row[key] for key in facts), *method]
            + [row["status"], row["reason"], " ".join(map(str, ours["seeds"]))]
            + ["" if text == _DASH else text.replace(",", "") for text in budget]
            + ["" if math.isnan(number) else repr(number) for number in numbers]
            + ["; ".join(row["differs"]), row["note"]]
        )
    return _csv(lines)


def _plan_text(plan: CostPlan, table: PaperTable, width: int) -> str:
    parts = [_wrap(f"{plan.table}: {plan.title} ({table.source})", width), "", "Needs:"]
    for dataset, split in plan.splits.items():
        parts.append(_wrap(f"split of {dataset}: {'there' if split['built'] else 'MISSING'}", width, "  ", "    "))
        parts += [] if split["built"] else [_wrap_command(split["command"], width)]
    for need in plan.features:
        state = "there" if need.named else "MISSING"
        parts.append(_wrap(f"features of {need.encoder} on {need.dataset}: {state}", width, "  ", "    "))
        size = f"{need.bytes / 1e9:.{0 if need.bytes >= 1e10 else 1}f} GB of disk"
        shape = f"{need.videos:,} videos x {need.frames} frames x {need.width:,} wide, in float16 {size}"
        facts = [shape, f"from {need.source}", f"weights: {need.weights}", need.command]
        facts.append(f"then: --features {need.dataset}:{need.encoder}=FILE.h5")
        parts += [] if need.named else [_wrap_command(fact, width) for fact in facts]
    lines = []
    for row in plan.rows:
        inputs = "quoted only" if row.quoted else f"missing {len(row.missing)}" if row.missing else "can be run"
        lines.append([row.name, inputs, *([_DASH, _DASH] if row.quoted else [f"{row.runs}", f"{row.hours:.1f}"])])
    header = ["row", "inputs", "trainings", f"hours ({plan.estimate['gpu']})"]
    trainings, hours = sum(row.runs for row in plan.rows), sum(row.hours for row in plan.rows)
    total = f"{trainings} training{'' if trainings == 1 else 's'}, about {hours:.1f} hours together"
    parts += ["", _text_table(header, lines, "llrr", width), ""]
    parts += [_wrap(f"{total} ({table_content('texts')['shared']})", width), _wrap(plan.estimate["formula"], width)]
    planned = {row.name for row in plan.rows}
    against = [
        _contradiction(row.name, row.published.overall, implied)
        for row in table.rows
        if row.name in planned and (implied := table.implied_overall(row)) is not None
    ]
    parts += ["", _wrap(f"{CONTRADICTIONS}:", width)] if against else []
    return "\n".join([*parts, *(_wrap(text, width, "  - ", "    ") for text in against)])


def _render_statistics(files: InputFiles, datasets: Sequence[str], only_plan: bool, width: int) -> RenderedTable:
    """Compare the statistics of the splits that exist with the paper's Table 1."""
    facts = table_content(STATISTICS_TABLE)
    rows: list[Content] = []
    lines: list[list[str]] = []
    table = [["dataset", "variant", "statistic", "paper", "ours", "verdict"]]
    for dataset in datasets or facts["datasets"]:
        manifest, (split, _) = load_manifest(dataset), files.split(dataset)
        paper = {"classes": float(manifest.num_classes), **manifest.paper}
        found = {} if split is None else asdict(split_statistics(split))
        variant, command = ("", build_command(dataset)) if split is None else (split.variant, "")
        cells: list[Content] = []
        row = {"dataset": dataset, "title": manifest.title, "variant": variant, "command": command}
        rows.append({**row, "cells": cells})
        for name in STATISTICS:
            ours = round(found[name], 1 if name in _RATIOS else 0) if found else None
            verdict = "not run" if ours is None else "equal" if ours == paper[name] else "DIFFERS"
            cells.append({"name": name, "paper": paper[name], "ours": ours, "verdict": verdict})
            texts = ["" if number is None else f"{number:.10g}" for number in (paper[name], ours)]
            table.append([dataset, variant, name, *texts, verdict])
            form = ".1f" if name in _RATIOS else ",.0f"
            texts = [_DASH if number is None else f"{number:{form}}" for number in (paper[name], ours)]
            lines.append(["" if len(cells) > 1 else manifest.title, name, *texts, verdict])
    verdicts = [line[-1] for line in lines if line[-1] != "not run"]
    verdict, differing = "no split is built: nothing was compared", verdicts.count("DIFFERS")
    if verdicts:
        verdict = f"all {len(verdicts)} cells of {len(verdicts) // len(STATISTICS)} benchmark(s) equal the paper's"
    if differing:
        verdict = f"{differing} of {len(verdicts)} cells differ from the paper's"
    remarks = [f"the split of {row['dataset']} is not built: {row['command']}" for row in rows if row["command"]]
    title, source = f"{STATISTICS_TABLE}: {facts['title']}", facts["source"]
    content = {"table": STATISTICS_TABLE, "title": facts["title"], "source": source, "simulated": False}
    content |= {"verdict": verdict, "rows": rows}
    text_table = _text_table(["", "statistic", "paper", "ours", ""], lines, "llrrl", width)
    parts = [_wrap(title, width), _wrap(f"({source})", width), "", text_table, ""]
    text = "\n".join([*parts, _wrap(verdict, width), *(_wrap_command(line, width, "") for line in remarks)])
    markdown = [f"# {title}", "", f"Published: {source}.", ""]
    markdown += _markdown_table(["benchmark", "statistic", "paper", "ours", "verdict"], lines, "llrrl")
    markdown += ["", *(f"- {text}" for text in (verdict, *remarks, *facts["protocol"])), ""]
    written = {"md": "\n".join(markdown), "csv": _csv(table), "json": render_json(content)}
    if only_plan or not verdicts:
        return RenderedTable(STATISTICS_TABLE, content, text, {}, succeeded=only_plan)
    return RenderedTable(STATISTICS_TABLE, content, text, written, succeeded=not differing)


def _wrap(text: str, width: int, first: str = "", later: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _wrap_command(text: str, width: int, indent: str = "    ") -> str:
    """Wrap a text that may end with a command, which begins a line and can be copied into a shell."""
    before, command, rest = text.partition("meidbench ")
    lines = [_wrap(before.rstrip(), width, indent, f"{indent}  ")] if before.strip() else []
    indent += "  " if lines and command else ""
    parts = (command + rest).split(" && ") if command else []
    for number, part in enumerate(parts, 1):
        # An option and its value stay on one line where they fit.
        joined = re.sub(r"(--[\w-]+) (?=[^-])", "\\1\0", part) if width >= 60 else part
        wrapper = textwrap.TextWrapper(width - 3, indent, f"{indent}  ", break_on_hyphens=False, break_long_words=False)
        wrapped = wrapper.wrap(joined)
        lines.append(" \\\n".join(wrapped).replace("\0", " ") + (" &&" if number < len(parts) else ""))
    return "\n".join(lines)


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
    return [f"| {' | '.join(cells)} |" for cells in (header, rules, *lines)]


def _csv(rows: Iterable[Sequence[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(map(make_cells_safe, rows))
    return stream.getvalue()
