"""Tables as they are shown and written, one after another: run where they can be, planned where they cannot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meidbench.baselines.reproduction.built_splits import BuiltSplits
from meidbench.baselines.reproduction.jobs import Job, make_jobs
from meidbench.baselines.reproduction.markdown import table_markdown
from meidbench.baselines.reproduction.materials import Materials
from meidbench.baselines.reproduction.outcome import DONE, FAILED, NOT_RUN
from meidbench.baselines.reproduction.paper_tables import STATISTICS, TABLES, PaperTable, read_table, row_names
from meidbench.baselines.reproduction.plan import make_plan
from meidbench.baselines.reproduction.reproduction import begin, can_run, check_jobs, reproduce
from meidbench.baselines.reproduction.request import Request
from meidbench.baselines.reproduction.runs import Workshop
from meidbench.baselines.reproduction.simulated_materials import SimulatedMaterials
from meidbench.baselines.reproduction.table_one import reproduce_table_one
from meidbench.baselines.reproduction.text import plan_text, table_text
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.names import ProgressBar, Report


@dataclass(frozen=True)
class Sheet:
    """A table, or the plan of one.

    Attributes
    ----------
    name : str
    content : dict
        For JSON.
    text : str
        For a terminal.
    files : dict of str to str
        What is to be written, by the ending of the file's name; empty for a plan.
    remarks : tuple of str
        What is to be said beside it.
    is_whole : bool
        Whether nothing went wrong: something was run, no row failed, no cell differs.
    """

    name: str
    content: dict[str, Any]
    text: str
    files: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    is_whole: bool = True


def choose(tables: tuple[str, ...], rows: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return the rows that are named, by table; none for all of a table. Tables without a row that is named go.

    Raises
    ------
    MeidbenchError
        A row is in none of the tables.

    Examples
    --------
    >>> choose(("table6", "table7"), ("e1", "e1-e2"))
    {'table6': ('e1', 'e1-e2')}
    """
    names = dict.fromkeys(name for table in tables for name in (TABLES if table == "all" else (table,)))
    known = {name: row_names(name) for name in names}
    if unknown := [row for row in rows if not any(row in there for there in known.values())]:
        listed = bullet_list(f"{name}: {', '.join(there)}" for name, there in known.items())
        raise MeidbenchError(f"no row is called {', '.join(unknown)}; the rows are\n{listed}")
    named = {name: tuple(row for row in there if row in rows) for name, there in known.items()}
    return {name: there for name, there in named.items() if there or not rows}


def statistics_sheet(
    splits: BuiltSplits, datasets: tuple[str, ...], *, only_plan: bool = False, width: int = 80
) -> Sheet:
    """Compare Table 1 with the splits that are built."""
    table = reproduce_table_one(splits, datasets)
    files = {"md": table.to_markdown(), "csv": table.to_csv(), "json": table.to_json()}
    return Sheet(
        STATISTICS,
        table.content(),
        table.to_text(width),
        files if table.built and not only_plan else {},
        is_whole=only_plan or (table.built > 0 and not table.differing),
    )


def run_sheets(
    chosen: Mapping[str, tuple[str, ...]],
    splits: BuiltSplits,
    features: Mapping[tuple[str, str], Path],
    request: Request,
    out: Path,
    *,
    gpu: str,
    only_plan: bool,
    width: int,
    progress: ProgressBar,
    report: Report,
) -> Iterator[Sheet]:
    """Run tables, or plan them where nothing of them can be run or no more is asked for.

    Parameters
    ----------
    chosen : mapping
        As ``choose`` gives it.
    splits : BuiltSplits
    features : mapping
        As ``parse_features`` gives it; not used where they are simulated.
    request : Request
    out : Path
        Folder of the runs.
    gpu : str
        For which hours are estimated.
    only_plan : bool
    width : int
        Columns of the terminal.
    progress, report : callable
        As for ``meidbench.baselines.train``.

    Raises
    ------
    MeidbenchError
        A configuration cannot be, or the folder holds results of the other kind; nothing has been run then.
    """
    simulation = request.simulation
    materials = (
        Materials(splits, features) if simulation is None else SimulatedMaterials(simulation, splits, out, progress)
    )
    tables = {name: read_table(name) for name in chosen}
    # All before the first is run: what cannot be is found out now, not after a night.
    jobs = {name: make_jobs(tables[name], request, materials, rows) for name, rows in chosen.items()}
    for name in chosen:
        check_jobs(jobs[name], materials)
    ready = {name for name in chosen if any(can_run(job, materials) for job in jobs[name])}
    if ready and not only_plan:
        begin(out, simulated=simulation is not None)
    workshop = Workshop(out, materials, progress, report)
    for name, table in tables.items():
        if name in ready and not only_plan:
            yield _run(table, jobs[name], request, workshop, width)
        else:
            yield _planned(table, jobs[name], materials, gpu, width, only_plan)


def _run(table: PaperTable, jobs: list[Job], request: Request, workshop: Workshop, width: int) -> Sheet:
    done = reproduce(table, request, workshop, jobs=jobs)
    trained, asked = sum(row.trained for row in done.rows), sum(row.asked for row in done.rows)
    remarks = [f"{table.name}: {done.count(DONE)} of {asked} rows have numbers, {trained} newly trained"]
    if waiting := done.count(NOT_RUN):
        remarks.append(f"{waiting} row(s) lack inputs; 'meidbench reproduce {table.name} --plan' says which")
    remarks += [f"row {row.row.name} failed: {row.reason}" for row in done.rows if row.status == FAILED]
    files = {"md": table_markdown(done), "csv": done.to_csv(), "json": done.to_json()}
    return Sheet(
        table.name, done.content(), table_text(done, width), files, tuple(remarks), is_whole=not done.count(FAILED)
    )


def _planned(table: PaperTable, jobs: list[Job], materials: Materials, gpu: str, width: int, only_plan: bool) -> Sheet:
    plan = make_plan(table, jobs, materials, gpu)
    wanted = [job.row for job in jobs if job.asked and not job.row.is_quoted]
    unreal = {row.name: materials.unreal(row.dataset, row.encoder) for row in wanted}
    remarks = [
        f"row {name} needs {' and '.join(needs)}; --simulate makes tables of what is simulated"
        for name, needs in unreal.items()
        if needs
    ]
    if not only_plan:
        remarks.append(f"nothing of {table.name} can be run yet: no number is filled in")
    return Sheet(table.name, plan.content(), plan_text(plan, width), {}, tuple(remarks), is_whole=only_plan)
