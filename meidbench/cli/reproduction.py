"""``meidbench reproduce`` and ``demo``: the paper's tables, and a whole benchmark on invented features."""

from pathlib import Path
from typing import Any

import click

from meidbench.cli.parameters import (
    FOLDER,
    INPUT_FILE,
    INPUT_FOLDER,
    NAMED_FILE,
    SEED,
    bootstrap_option,
    command,
    echo,
    echo_json,
    json_file,
    progress_bar,
    refuse_unusable_outputs,
    repeatable,
    report,
    write_text,
)
from meidbench.errors import first_few
from meidbench.names import STATISTICS_TABLE, TABLES


@command(
    short_help="Reproduce the paper's tables, ours beside theirs.",
    epilog="\b\nExamples:\n"
    "  meidbench reproduce table1\n"
    "  meidbench reproduce table3 --plan\n"
    "  meidbench reproduce table3 --row meid-charadeslt \\\n"
    "      --features charadeslt:ResNet101=charades_r101.h5\n"
    "  meidbench reproduce table2 --features ResNet50=videolt_r50.h5 \\\n"
    "      --seed 1 --seed 2 --seed 3\n"
    "  meidbench reproduce table3 --simulate --out try\n"
    "  meidbench reproduce table3 --proxy words --annotations Charades/\n"
    "  meidbench reproduce table3 --proxy words --annotations Charades/ \\\n"
    "      --tuned 20 --out tuned",
)
@click.argument(
    "tables", nargs=-1, required=True, metavar="TABLE...", type=click.Choice((*TABLES, "all"), case_sensitive=False)
)
@repeatable(
    "--row", "rows", metavar="NAME", help="Run only this row, as --plan names it; repeatable. Others stay in the table."
)
@repeatable(
    "--features",
    type=NAMED_FILE,
    metavar="ENCODER=PATH",
    help="Features of ResNet50, ResNet101 or TSM-ResNet50, or of I3D, SlowFast or X3D for animalkingdom; or "
    "DATASET:ENCODER=PATH; repeatable. Where names have more than the id, 'pack-features' makes a file of them.",
)
@repeatable("--split", "split_files", type=INPUT_FILE, help="A split file that is not under MEIDBENCH_HOME.")
@repeatable("--annotations", type=INPUT_FOLDER, help="Official annotations, for missing splits and for words.")
@click.option(
    "--out",
    type=FOLDER,
    help="Folder for runs and tables [default: reproduction, or reproduction-simulated, or reproduction-words].",
)
@click.option("--plan", "only_plan", is_flag=True, help="List the needs of the rows, and run nothing.")
@click.option("--simulate", is_flag=True, help="Run on simulated features, as a trial; every output is watermarked.")
@click.option(
    "--proxy",
    type=click.Choice(("words",)),
    help="Run on the words of --annotations: real labels, no vision; every output is watermarked.",
)
@repeatable("--set", "settings", metavar="KEY=VALUE", help="Change a value of every row; listed in the table.")
@repeatable("--seed", "seeds", type=SEED, help="Seed of the training; repeatable, for a mean.")
@click.option(
    "--tuned",
    type=click.IntRange(min=2),
    metavar="N",
    help="Search the values of each row's method: N trials on val, the same number for every row.",
)
@click.option("--faithful", is_flag=True, help="Baselines as in their papers, not as in the public code.")
@click.option("--device", metavar="auto|cpu|cuda[:N]", help="Where to train [default: auto; with --simulate, cpu].")
@bootstrap_option
@click.option("--gpu", default="A100", show_default=True, help="The GPU of the estimated hours.")
@json_file
def reproduce(
    tables: tuple[str, ...],
    features: tuple[str, ...],
    out: Path | None,
    only_plan: bool,
    simulate: bool,
    proxy: str | None,
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Run the rows of the paper's tables, and print our numbers beside the paper's.

    table1 to table7 are MEID's tables, and supp1, supp2 and supp5 are its supplement's; animalkingdom is that of Animal
    Kingdom. Rows whose split and features exist are trained; the same command resumes after an interruption. Missing
    inputs are listed with their size and the command that makes them. Our numbers are those of runs in OUT, and no
    others. OUT/TABLE.md, .csv and .json hold the printed table.

    Exit code 1: nothing could be run, a row failed, or a cell of table1 differs.
    """
    import os
    import shutil

    from meidbench.baselines.reproduction import choose_rows, materials, plan, render, runs  # type: ignore[import-not-found, unused-ignore]
    from meidbench.files import render_json

    if simulate and (features or only_plan or proxy):
        raise click.UsageError("--simulate takes neither --features nor --plan nor --proxy: it needs nothing")
    if proxy and (features or only_plan):
        raise click.UsageError("--proxy takes neither --features nor --plan: it needs annotations")
    if (simulate or proxy) and set(tables) == {STATISTICS_TABLE}:
        raise click.UsageError("table1 is statistics of real splits; there is nothing to simulate or to train on words")
    if len(set(seeds)) < len(seeds):
        raise click.UsageError("a --seed is named twice")
    if seeds and any(text.partition("=")[0].strip() in ("seed", "stage1.seed", "stage2.seed") for text in settings):
        raise click.UsageError("seeds are named by --seed, which both stages have, or by --set seed=N, not by both")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("reproduce runs in one process; for several, 'meidbench train' a row under torchrun")
    substitute: materials.Substitute | None = None
    if simulate:
        substitute, settings = materials.parse_substitute(materials.Simulation, settings)
    elif proxy:
        substitute, settings = materials.parse_substitute(materials.WordProxy, settings)
    out = out or Path("reproduction-simulated" if simulate else "reproduction-words" if proxy else "reproduction")
    named = options["split_files"], options["annotations"], materials.parse_features(features)
    chosen = choose_rows(tables, options["rows"])
    refuse_unusable_outputs(json_file, *(out / f"{name}.{ending}" for name in chosen for ending in render.ENDINGS))
    if not only_plan and (foreign := render.find_foreign_files(out, chosen)):
        raise click.UsageError(
            f"not written by this command, and would be replaced: {first_few(foreign)}\nName another folder with --out"
        )
    rendered = render.render_tables(
        chosen,
        materials.InputFiles(*named, substitute, out, progress_bar),
        plan.Request(settings, seeds, options["device"] or "", options["faithful"], substitute, options["tuned"] or 0),
        runs.RunStore(out, options["bootstrap"], progress_bar, report),
        gpu=options["gpu"],
        only_plan=only_plan,
        width=shutil.get_terminal_size((80, 24)).columns,
    )
    on_stdout = str(json_file) == "-"
    done: list[Any] = []
    for table in rendered:
        for ending in render.ENDINGS if table.files else ():
            write_text(out / f"{table.name}.{ending}", table.files[ending])
        if not on_stdout:
            echo(f"\n{table.text}" if done else table.text)
        for remark in table.remarks:
            report(remark)
        done.append(table)
    content = render_json(done[0].content if len(done) == 1 else [table.content for table in done])
    if on_stdout:
        echo_json(content)
    elif json_file is not None:
        write_text(json_file, content)
    if not all(table.succeeded for table in done):
        raise SystemExit(1)


@command(
    short_help="A small simulated benchmark from features to a comparison, offline, on a CPU.",
    epilog="\b\nExample:\n  meidbench demo --out demo-out",
)
@click.option("--out", type=FOLDER, default="demo-out", show_default=True, help="Folder for all files.")
@click.option("--epochs", type=click.IntRange(min=2), default=12, show_default=True, help="Of each method.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@bootstrap_option
def demo(out: Path, epochs: int, seed: int, bootstrap: int) -> None:
    """Simulate a benchmark, train six methods on it, and compare them.

    A split with a long tail and features of its frames are drawn from the seed; bce, ldam, eql, cbs, framestack and
    linear_probe are trained; the comparison is printed, and written to OUT/report.html. It takes half a minute on two
    cores. It shows that everything works, not which method is better: the features are invented.
    """
    from meidbench.baselines.demo import run_demo
    from meidbench.evaluation.compare import ComparedRun, compare
    from meidbench.report.html import comparison_html
    from meidbench.report.text import comparison_table

    refuse_unusable_outputs(out / "report.html")
    if (out / "report.html").exists() and not (out / "simulatedlt.parquet").exists():
        raise click.UsageError(f"{out} holds a report.html that is not of a demonstration; choose another --out")
    made = run_demo(out, epochs=epochs, seed=seed, progress=progress_bar, report=report)
    runs = [ComparedRun(method, "", path) for method, path in made.predictions.items()]
    comparison = compare(runs, made.split, "test", replicates=bootstrap, seed=seed)
    write_text(out / "report.html", comparison_html(comparison))
    for name, warning in comparison.list_warnings():
        report(f"warning: {name}: {warning}")
    echo(
        f"{comparison.dataset} ({comparison.variant}), test: {comparison.videos:,} videos, simulated features\n\n"
        f"{comparison_table(comparison)}"
    )
