"""``meidbench reproduce``: the paper's tables, ours beside theirs."""

import itertools
from pathlib import Path
from typing import Any

import click

from meidbench.cli.output import write_text
from meidbench.cli.parameters import FILE, FOLDER, json_file

_STATISTICS = "table1"
_TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "supp1", "supp2", "supp5", "all")


@click.command(
    short_help="Reproduce the paper's tables, ours beside theirs.",
    epilog="\b\nExamples:\n"
    "  meidbench reproduce table1\n"
    "  meidbench reproduce table3 --plan\n"
    "  meidbench reproduce table3 --features charadeslt:ResNet101=charades_r101.h5 --row meid-charadeslt\n"
    "  meidbench reproduce table2 --features ResNet50=videolt_r50.h5 --seed 1 --seed 2 --seed 3\n"
    "  meidbench reproduce table3 --simulate --out try",
)
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...", type=click.Choice(_TABLES))
@click.option(
    "--row",
    "rows",
    multiple=True,
    metavar="NAME",
    help="Run only this row, as --plan names it; repeatable. Others stay in the table.",
)
@click.option(
    "--features",
    multiple=True,
    metavar="ENCODER=PATH",
    help="Features of ResNet50, ResNet101 or TSM-ResNet50, or DATASET:ENCODER=PATH; repeatable.",
)
@click.option("--split", "split_files", multiple=True, type=FILE, help="A split file that is not under MEIDBENCH_HOME.")
@click.option(
    "--annotations", multiple=True, type=FOLDER, help="Official annotations, of which a split not built is made."
)
@click.option(
    "--out", type=FOLDER, help="Folder for runs and tables [default: reproduction, or reproduction-simulated]."
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what it takes, and run nothing.")
@click.option("--simulate", is_flag=True, help="Run on simulated features, to try the machinery; all is watermarked.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a value of every row; listed in the table."
)
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="Of training; repeat it for a mean.")
@click.option("--faithful", is_flag=True, help="Baselines as their papers have them, not as the public code does.")
@click.option("--device", metavar="auto|cpu|cuda[:N]", help="Where to train [default: auto; with --simulate, cpu].")
@click.option("--bootstrap", type=click.IntRange(min=2), default=1000, show_default=True, help="Replicates.")
@click.option("--gpu", default="A100", show_default=True, help="For which GPU hours are estimated.")
@json_file
def reproduce(
    tables: tuple[str, ...],
    rows: tuple[str, ...],
    features: tuple[str, ...],
    split_files: tuple[Path, ...],
    annotations: tuple[Path, ...],
    out: Path | None,
    only_plan: bool,
    simulate: bool,
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    faithful: bool,
    device: str | None,
    bootstrap: int,
    gpu: str,
    json_file: Path | None,
) -> None:
    """Run what can be run of the paper's tables, and set ours beside theirs.

    table1 to table7 are the paper's, supp1, supp2 and supp5 its supplement's. Rows whose split and features are there
    are trained; the same command goes on where it was stopped. What is missing is listed with its size and the way to
    get it, and no number is shown that was not run here. OUT/TABLE.md, .csv and .json hold what is printed.

    Exit code 1: nothing could be run, a row failed, or a cell of table1 differs.
    """
    import os
    import shutil

    from meidbench.baselines.reproduction.built_splits import (  # type: ignore[import-not-found, unused-ignore]
        BuiltSplits,
    )
    from meidbench.baselines.reproduction.materials import (  # type: ignore[import-not-found, unused-ignore]
        parse_features,
    )
    from meidbench.baselines.reproduction.request import (  # type: ignore[import-not-found, unused-ignore]
        Request,
        simulation_of,
    )
    from meidbench.baselines.reproduction.sheets import (  # type: ignore[import-not-found, unused-ignore]
        choose,
        run_sheets,
        statistics_sheet,
    )
    from meidbench.cli.progress import progress_bar
    from meidbench.results import as_json

    width = shutil.get_terminal_size((80, 24)).columns
    _refuse_contradictions(tables, features, only_plan, simulate, settings, seeds)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("reproduce runs in one process; for several, 'meidbench train' a row under torchrun")
    simulation = None
    if simulate:
        simulation, settings = simulation_of(settings)
    request = Request(settings, seeds, device or "", faithful, simulation, bootstrap)
    chosen = choose(tables, rows)
    splits = BuiltSplits(split_files, annotations)
    out = out or Path("reproduction-simulated" if simulate else "reproduction")
    sheets = []
    if _STATISTICS in chosen:
        datasets = chosen.pop(_STATISTICS)
        if not simulate:  # there are no features in it
            sheets.append(statistics_sheet(splits, datasets, only_plan=only_plan, width=width))
    made = run_sheets(
        chosen,
        splits,
        parse_features(features),
        request,
        out,
        gpu=gpu,
        only_plan=only_plan,
        width=width,
        progress=progress_bar,
        report=lambda line: click.echo(line, err=True),
    )
    on_stdout = str(json_file) == "-"
    shown: list[Any] = []
    for sheet in itertools.chain(sheets, made):
        for ending, text in sheet.files.items():
            write_text(out / f"{sheet.name}.{ending}", text)
        if not on_stdout:
            click.echo(f"\n{sheet.text}" if shown else sheet.text)
        for remark in sheet.remarks:
            click.echo(remark, err=True)
        shown.append(sheet)
    text = as_json(shown[0].content if len(shown) == 1 else [sheet.content for sheet in shown])
    if on_stdout:
        click.echo(text, nl=False)
    elif json_file is not None:
        write_text(json_file, text)
    if not all(sheet.is_whole for sheet in shown):
        raise SystemExit(1)


def _refuse_contradictions(
    tables: tuple[str, ...],
    features: tuple[str, ...],
    only_plan: bool,
    simulate: bool,
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
) -> None:
    if simulate and (features or only_plan):
        raise click.UsageError("--simulate takes neither --features nor --plan: it needs nothing")
    if simulate and set(tables) == {_STATISTICS}:
        raise click.UsageError("table1 is statistics of real splits; there is nothing to simulate")
    if len(set(seeds)) < len(seeds):
        raise click.UsageError("a --seed is named twice")
    named = [setting.partition("=")[0].strip() for setting in settings]
    if seeds and any(key in ("seed", "stage1.seed", "stage2.seed") for key in named):
        raise click.UsageError("seeds are named by --seed, which both stages have, or by --set seed=N, not by both")
