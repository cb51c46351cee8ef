"""Reproducing a table: what can be run is run, one row after another, and nothing else is filled in."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from meidbench.baselines.inference import Trained
from meidbench.baselines.learner import check_run
from meidbench.baselines.reproduction.estimates import estimate
from meidbench.baselines.reproduction.jobs import Job, make_jobs
from meidbench.baselines.reproduction.materials import Materials
from meidbench.baselines.reproduction.outcome import DONE, FAILED, NOT_ASKED, NOT_RUN, QUOTED, Reproduction, RowOutcome
from meidbench.baselines.reproduction.paper_tables import PaperTable, Row
from meidbench.baselines.reproduction.reasons import OUT_OF_MEMORY, is_out_of_memory, reason
from meidbench.baselines.reproduction.request import WATERMARK, Request
from meidbench.baselines.reproduction.runs import RUNS, Workshop
from meidbench.errors import FeatureError, MeidbenchError
from meidbench.files import written_whole

MARKER = "SIMULATED.txt"


def missing_inputs(row: Row, materials: Materials) -> tuple[str, ...]:
    """Say what a row cannot be run without and is not there; nothing for rows that are only quoted."""
    if row.is_quoted:
        return ()
    missing = [] if materials.split(row.dataset) is not None else [f"the split of {row.dataset}"]
    if not materials.has_features(row.dataset, row.encoder):
        missing.append(f"features of {row.encoder} on {row.dataset}")
    return (*missing, *materials.unreal(row.dataset, row.encoder))


def can_run(job: Job, materials: Materials) -> bool:
    """Tell whether a job is to be run and has all that it needs."""
    return job.asked and bool(job.configs) and not missing_inputs(job.row, materials)


def check_jobs(jobs: Iterable[Job], materials: Materials) -> None:
    """Find out, before anything is trained, what would fail when it is its turn.

    Raises
    ------
    MeidbenchError
        The parts of a run cannot be made, or do not fit together; the message names the row.
    """
    for job in jobs:
        if not can_run(job, materials):
            continue
        split = materials.split(job.row.dataset)
        try:
            width = materials.width(job.row.dataset, job.row.encoder)
        except FeatureError:  # the row will say so, and the others are run
            continue
        assert split is not None and width is not None
        try:
            check_run(job.configs[0], split, width)  # the others are other seeds
        except MeidbenchError as error:
            raise MeidbenchError(f"row {job.row.name}: {error}") from None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MeidbenchError(f"row {job.row.name}: no memory holds such a model ({error})") from None


def begin(out: Path, *, simulated: bool) -> None:
    """Make sure that a folder holds either simulated results or real ones.

    Raises
    ------
    MeidbenchError
        It holds the other kind.
    """
    marker = out / MARKER
    if simulated and not marker.is_file():
        if (out / RUNS).is_dir():
            raise MeidbenchError(f"{out} holds runs on real features; name another folder for simulated ones (--out)")
        with written_whole(marker) as temporary:
            temporary.write_text(WATERMARK + "\n", encoding="utf-8")
    if not simulated and marker.is_file():
        raise MeidbenchError(f"{out} holds simulated results; name another folder for real ones (--out)")


def reproduce(
    table: PaperTable, request: Request, workshop: Workshop, rows: tuple[str, ...] = (), jobs: list[Job] | None = None
) -> Reproduction:
    """Run what can be run of a table; rows that are finished are left as they are.

    Parameters
    ----------
    table : PaperTable
    request : Request
    workshop : Workshop
        Runs lie in its folder, and are shared by all tables.
    rows : tuple of str
        Names of rows; all where left out.
    jobs : list of Job, optional
        Of all rows, where they were made and checked before.

    Returns
    -------
    Reproduction
        Of all rows: those that are not asked for have numbers where their runs are finished. A row that diverged, that
        memory was not enough for, or whose features are damaged or simulated, is ``failed``, and the others are run.

    Raises
    ------
    MeidbenchError
        A row is unknown, or a configuration cannot be; nothing has been trained then.
    """
    materials = workshop.materials
    if jobs is None:
        jobs = make_jobs(table, request, materials, rows)
        check_jobs(jobs, materials)
    asked = [job.row.name for job in jobs if job.asked]
    outcomes = []
    for job in jobs:
        if not job.asked:
            outcomes.append(_found(job, request, workshop))
            continue
        if can_run(job, materials):
            number = asked.index(job.row.name) + 1
            workshop.report(f"{table.name}, row {number} of {len(asked)}: {job.row.name}")
        outcomes.append(_outcome(job, request, workshop))
        if ours := outcomes[-1].ours:
            overall = ours.mAP["overall"]
            workshop.report(f"{job.row.name}: overall {overall.value:.4f} [{overall.low:.3f}, {overall.high:.3f}]")
    return Reproduction(
        table, tuple(outcomes), request.simulation is not None, request.replicates, request.bootstrap_seed
    )


def _outcome(job: Job, request: Request, workshop: Workshop) -> RowOutcome:
    row, materials = job.row, workshop.materials
    if row.is_quoted:
        return RowOutcome(row, QUOTED, row.note)
    if unreal := materials.unreal(row.dataset, row.encoder):
        said = f"needs {' and '.join(unreal)}; --simulate makes tables of what is simulated"
        workshop.report(f"row {row.name} failed: {said}")
        return RowOutcome(row, FAILED, said, job.configs[0], job.differs)
    if missing := missing_inputs(row, materials):
        return RowOutcome(row, NOT_RUN, f"missing {', '.join(missing)}", job.configs[0], job.differs)
    differs = job.differs
    try:
        differs += tuple(materials.remarks(row.dataset, row.encoder))  # looks at features, too, before all else
        runs = [workshop.trained(config, row.dataset, row.encoder) for config in job.configs]
        return _done(job, differs, runs, request, workshop)
    except MeidbenchError as error:
        workshop.report(f"row {row.name} failed: {error}")
        why = reason(str(error), workshop.out, materials)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # What the allocator says of addresses and bytes is another each time.
        workshop.report(f"row {row.name} failed: {OUT_OF_MEMORY} ({error})")
        why = OUT_OF_MEMORY
    return RowOutcome(row, FAILED, why, job.configs[0], differs)


def _found(job: Job, request: Request, workshop: Workshop) -> RowOutcome:
    """Fill in a row that is not asked for where all of its runs are finished; nothing is trained."""
    row, materials, runs = job.row, workshop.materials, []
    if row.is_quoted:
        return RowOutcome(row, QUOTED, row.note, asked=False)
    try:
        if job.configs and not missing_inputs(row, materials):
            runs = [workshop.finished(config, row.dataset, row.encoder) for config in job.configs]
        if runs and all(runs):
            differs = job.differs + tuple(materials.remarks(row.dataset, row.encoder))
            done = _done(job, differs, [run for run in runs if run], request, workshop)
            return dataclasses.replace(done, asked=False)
    except MeidbenchError as error:  # it is no reason to fail, as nobody asked for it
        workshop.report(f"row {row.name} is not filled in: {error}")
    return RowOutcome(row, NOT_ASKED, asked=False)


def _done(job: Job, differs: tuple[str, ...], runs: list[Trained], request: Request, workshop: Workshop) -> RowOutcome:
    row = job.row
    split = workshop.materials.split(row.dataset)
    assert split is not None
    ours = estimate(
        runs,
        [config.seed for config in job.configs],
        split,
        workshop.out,
        replicates=request.replicates,
        seed=request.bootstrap_seed,
        progress=workshop.progress,
    )
    return RowOutcome(row, DONE, "", job.configs[0], differs, ours, sum(not run.was_finished for run in runs))
