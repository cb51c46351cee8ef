"""Jobs: a row of a table with the configurations of its runs, all resolved before anything is trained."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from meidbench.baselines.configuration import EXAMPLE_SETTING, Config, flatten
from meidbench.baselines.recipes import COMPAT_ENDING, METHODS, resolve
from meidbench.baselines.reproduction.materials import Materials
from meidbench.baselines.reproduction.paper_tables import PaperTable, Row
from meidbench.baselines.reproduction.request import Request, layered, stage_of
from meidbench.checks import parse_settings
from meidbench.errors import MeidbenchError
from meidbench.splits.split import Split

_FIRST = "first_stage."


@dataclass(frozen=True)
class Job:
    """A row, and its runs.

    Attributes
    ----------
    row : Row
    configs : tuple of Config
        One a seed; none for a row that is only quoted, or not asked for and not to be resolved.
    differs : tuple of str
        In what they are set otherwise than the table's row, seeds aside.
    asked : bool
        Whether it is to be run; the others are filled in where their runs are there.
    """

    row: Row
    configs: tuple[Config, ...]
    differs: tuple[str, ...]
    asked: bool = True


def row_config(row: Row, split: Split) -> Config:
    """Return the configuration of a row as the table has it.

    Parameters
    ----------
    row : Row
    split : Split
        Of the row's benchmark, by name.

    Raises
    ------
    MeidbenchError
        It does not resolve, or the row is only quoted.
    """
    return resolve(row.method, split, aggregator=row.aggregator or None, settings=row.settings)


def make_jobs(table: PaperTable, request: Request, materials: Materials, names: Collection[str] = ()) -> list[Job]:
    """Resolve the configurations of all rows of a table.

    Parameters
    ----------
    table : PaperTable
    request : Request
    materials : Materials
    names : collection of str
        Rows that are asked for; all where left out.

    Raises
    ------
    MeidbenchError
        A name is none of a row, or a row that is asked for does not resolve; the message names it.
    """
    asked = {table.row(name).name for name in names}
    jobs = []
    for row in table.rows:
        if not asked or row.name in asked:
            jobs.append(_job(table, row, request, materials.resolving(row.dataset)))
            continue
        try:
            job = _job(table, row, request, materials.resolving(row.dataset))
        except MeidbenchError:  # what is asked of the others does not fit it
            job = Job(row, (), ())
        jobs.append(dataclasses.replace(job, asked=False))
    return jobs


def _job(table: PaperTable, row: Row, request: Request, split: Split) -> Job:
    if row.is_quoted:
        return Job(row, (), ())
    method = row.method.removesuffix(COMPAT_ENDING) if request.faithful else row.method
    try:
        asked, left_out = _fitting(request.settings, method)
        _refuse_ablated(table, row, asked)
        as_published = row_config(row, split)
        device = (f"execution.device={request.device}",) if request.device else ()

        def resolved(simulated: tuple[str, ...], *seeded: str) -> Config:
            settings = layered(row.settings, simulated, device, seeded, asked)
            return resolve(method, split, aggregator=row.aggregator, settings=settings)

        simulated: tuple[str, ...] = ()
        if request.simulation is not None:
            # Which aggregator it is to be is known when all else is resolved.
            simulated = request.simulation.settings(resolved(request.simulation.common_settings()).aggregator.name)
        configs = [resolved(simulated, f"seed={seed}") for seed in request.seeds] or [resolved(simulated)]
    except MeidbenchError as error:
        raise MeidbenchError(f"row {row.name}: {error}") from None
    return Job(row, tuple(configs), _differences(as_published, configs[0]) + left_out)


def _fitting(settings: Sequence[str], method: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the settings that a method can have, and say which are of a stage that it lacks."""
    if METHODS[method].first_stage:
        return tuple(settings), ()
    lost = [setting for setting in settings if stage_of(setting.partition("=")[0].strip())[0]]
    parse_settings(lost, EXAMPLE_SETTING)  # names what is wrong with them, as nothing else will
    kept = tuple(setting for setting in settings if setting not in lost)
    return kept, tuple(f"{setting} is left out: {method} is trained in one stage" for setting in lost)


def _refuse_ablated(table: PaperTable, row: Row, settings: Sequence[str]) -> None:
    """Refuse to set what a row is there to vary; the switches of a method of two stages are the second's."""
    for stage, key in map(stage_of, flatten(parse_settings(settings, EXAMPLE_SETTING))):
        for switch in row.switches:
            if stage != "stage1" and f"{key}.".startswith(f"{switch}."):
                it = "it" if key == switch and not stage else f"{stage}{'.' if stage else ''}{key}"
                raise MeidbenchError(f"{table.name} ablates {switch}; leave {it} out of --set")


def _differences(published: Config, ours: Config) -> tuple[str, ...]:
    """Say in what a configuration differs from the row's own, a change in both stages once."""
    before, after = (flatten(config.to_tables()) for config in (published, ours))
    changes = {
        key: (before.get(key, "-"), after.get(key, "-"))
        for key in {**before, **after}
        if before.get(key) != after.get(key) and "execution" not in key.split(".") and key.split(".")[-1] != "seed"
    }
    return tuple(
        f"{key}: {old} -> {new}"
        for key, (old, new) in changes.items()
        if not (key.startswith(_FIRST) and changes.get(key.removeprefix(_FIRST)) == (old, new))
    )
