"""``meidbench train``, ``predict``, ``reproduce`` and ``demo``: baselines, from features to scored predictions."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from meidbench.cli.parameters import (
    FOLDER,
    INPUT,
    INPUT_FILE,
    INPUT_FOLDER,
    NAMED_FILE,
    SEED,
    SPLIT,
    OutputFile,
    as_json,
    bootstrap_option,
    command,
    echo,
    echo_json,
    json_file,
    naming_options,
    progress_bar,
    reading_options,
    refuse_unusable_outputs,
    report,
    split_option,
    subset_option,
    write_text,
)
from meidbench.errors import first_few
from meidbench.names import PRECISIONS, RESIDENT, ROW_CHECKS, SELECTION_SUBSETS, STATISTICS_TABLE, TABLES

_repeatable = partial(click.option, multiple=True)
_check = click.option(
    "--check",
    type=click.Choice(ROW_CHECKS),
    default="auto",
    show_default=True,
    help="Whose rows are first compared with their checksums: all videos, 500 per subset, or none. auto: all, and 500 "
    "of a subset of 20 GB and more that was read before and has not changed.",
)
# The key of the setting that an option of train stands for, by the option's parameter.
_KEYS: dict[str, str] = {}


def _short_for(key: str, option: str, **attributes: Any) -> Callable[[Any], Any]:
    """Make an option of train that is short for ``--set KEY=VALUE``."""
    _KEYS[option.removeprefix("--").replace("-", "_")] = key
    return click.option(option, **attributes)


@contextmanager
def _telling_of_memory() -> Iterator[None]:
    """Make a plain error of memory that was not enough."""
    from meidbench.baselines.learner import is_out_of_memory
    from meidbench.errors import MeidbenchError

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise MeidbenchError(
            f"there is not enough memory: {reason}\n"
            "  remedy: fewer frames (frames.train, frames.test), more micro-batches (schedule.accumulate), "
            "--resident never, or a smaller model"
        ) from None


@command(
    short_help="List the methods that 'train' knows.",
    epilog="\b\nExamples:\n  meidbench methods\n  meidbench methods --json",
)
@as_json
def methods(as_json: bool) -> None:
    """List every method: title, paper, and the benchmarks with published numbers.

    With --json, every form of a method (NAME-compat, NAME-release) is an entry of its own, with the published rows.
    """
    from meidbench.baselines.methods import list_methods, methods_table

    if as_json:
        echo_json(json.dumps([method.to_json() for method in list_methods()], indent=2))
    else:
        echo(methods_table())


@command(
    short_help="Train a baseline; resumable.",
    epilog="\b\nExamples:\n"
    "  meidbench train --split charadeslt --features charades_r101.h5 \\\n"
    "      --method ldam --out runs/ldam\n"
    "  meidbench train --split videolt --features videolt_r50.h5 \\\n"
    "      --method framestack-compat --set schedule.lr=2e-4\n"
    "  meidbench train --split videolt --features videolt_r50.h5 \\\n"
    "      --method meid --set stage2.schedule.lr=2e-4\n"
    "  torchrun --nproc-per-node 4 -m meidbench train --split videolt \\\n"
    "      --features videolt_r50.h5 --method eql",
)
@split_option
@click.option(
    "--features",
    required=True,
    type=INPUT,
    help="A feature file of extract-features or pack-features, a folder of VIDEO_ID.npy, or a file of others.",
)
@naming_options
@click.option(
    "--method",
    required=True,
    help="A recipe that 'meidbench methods' lists: bce, ldam, meid...; ldam-compat is as in VideoLT's code, "
    "meid-release as in its authors'.",
)
@click.option(
    "--aggregator",
    help="nonlinear, early_mean, mean, attention, netvlad or nextvlad [default: the benchmark's or the method's].",
)
@click.option(
    "--out", type=FOLDER, metavar="RUN", help="The run's folder [default: runs/SPLIT-METHOD-AGGREGATOR-SEED]."
)
@_repeatable("--set", "settings", metavar="KEY=VALUE", help="Change a value, e.g. schedule.lr=2e-4; repeatable.")
@click.option(
    "--first-stage",
    type=INPUT_FOLDER,
    metavar="RUN",
    help="For a method of two stages, a finished run of its first [default: trained in RUN/first-stage].",
)
@_check
@_short_for(
    "schedule.epochs",
    "--epochs",
    type=click.IntRange(min=1),
    help="Short for --set schedule.epochs=N. A run of fewer epochs goes on.",
)
@_short_for("seed", "--seed", type=SEED, help="Short for --set seed=N.")
@_short_for("execution.device", "--device", metavar="auto|cpu|cuda[:N]", help="Where to train [default: auto].")
@_short_for(
    "schedule.precision", "--precision", type=click.Choice(PRECISIONS), help="Of training; scores are made in fp32."
)
@_short_for(
    "selection.subset",
    "--select-on",
    type=click.Choice(SELECTION_SUBSETS),
    help="The subset that chooses the checkpoint [default: val]; test mimics VideoLT's code, and is recorded.",
)
@_short_for(
    "execution.resident",
    "--resident",
    type=click.Choice(RESIDENT),
    help="Whether features are kept in the device's memory [default: auto].",
)
@as_json
def train(
    split: str,
    features: Path,
    method: str,
    aggregator: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    first_stage: Path | None,
    check: str,
    as_json: bool,
    prefix: str,
    suffix: str,
    dataset: str,
    **short: Any,
) -> None:
    """Train a baseline and score its best checkpoint on val and test.

    RUN/ holds config.json, log.jsonl, last.pt and best.pt, and the predictions and results of both subsets. Run the
    same command again to resume after an interruption; on a CPU the result is the same to the bit for the same number
    of threads (OMP_NUM_THREADS).
    """
    import os
    from dataclasses import asdict

    from tabulate import tabulate

    from meidbench.baselines.recipes import resolve
    from meidbench.baselines.training import train as train_run
    from meidbench.evaluation.results import MeanAP
    from meidbench.features import open_features
    from meidbench.files import render_json
    from meidbench.splits.split import load_split

    settings += tuple(f"{_KEYS[name]}={value}" for name, value in short.items() if value is not None)
    loaded = load_split(split)
    with reading_options():
        config = resolve(method, loaded, aggregator=aggregator, settings=settings)
    if out is None:
        out = Path("runs") / f"{Path(split).stem}-{method}-{config.aggregator_name}-{config.seed}"
    with _telling_of_memory():
        trained = train_run(
            split,
            open_features(features, prefix=prefix, suffix=suffix, dataset=dataset),
            config,
            out,
            first_stage=first_stage,
            check=check,
            progress=progress_bar,
            report=report,
        )
    if os.environ.get("RANK", "0") != "0":
        return
    for warning in trained.warnings:
        report(f"warning: {warning}")
    if as_json:
        content = {"run": str(trained.path), "mAP": {subset: asdict(means) for subset, means in trained.mAP.items()}}
        echo_json(render_json(content))
    else:
        rows = [(subset, *asdict(means).values()) for subset, means in trained.mAP.items()]
        echo(tabulate(rows, headers=["mAP", *asdict(MeanAP(0, 0, 0, 0))], floatfmt=".4f"))
        echo(f"\n{trained.path}")


@command(
    short_help="Write the predictions of a trained run.",
    epilog="\b\nExample:\n  meidbench predict runs/ldam --subset val --out predictions.parquet",
)
@click.argument("run", metavar="RUN", type=INPUT)
@subset_option
@click.option("--out", type=OutputFile(".parquet"), required=True, help="The prediction file to write (Parquet).")
@click.option("--split", type=SPLIT, help="A split file, or a built benchmark's name [default: the run's].")
@click.option("--features", type=INPUT, help="A feature file or folder [default: the run's].")
@naming_options
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
@_check
def predict(
    run: Path, out: Path, features: Path | None, prefix: str, suffix: str, dataset: str, **options: Any
) -> None:
    """Score SUBSET with the best checkpoint in RUN, a folder that 'meidbench train' made."""
    import os

    from meidbench.baselines.inference import predict as predict_run
    from meidbench.features import open_features

    if features is not None:
        options["features"] = open_features(features, prefix=prefix, suffix=suffix, dataset=dataset)
    elif prefix or suffix or dataset:
        raise click.UsageError("--prefix, --suffix and --dataset go with --features: the run's own names are recorded")

    with _telling_of_memory():
        path = predict_run(run, out, progress=progress_bar, report=report, **options)
    if os.environ.get("RANK", "0") == "0":
        echo(f"wrote {path}")


@command(
    short_help="Reproduce the paper's tables, ours beside theirs.",
    epilog="\b\nExamples:\n"
    "  meidbench reproduce table1\n"
    "  meidbench reproduce table3 --plan\n"
    "  meidbench reproduce table3 --row meid-charadeslt \\\n"
    "      --features charadeslt:ResNet101=charades_r101.h5\n"
    "  meidbench reproduce table2 --features ResNet50=videolt_r50.h5 \\\n"
    "      --seed 1 --seed 2 --seed 3\n"
    "  meidbench reproduce table3 --simulate --out try",
)
@click.argument(
    "tables", nargs=-1, required=True, metavar="TABLE...", type=click.Choice((*TABLES, "all"), case_sensitive=False)
)
@_repeatable(
    "--row", "rows", metavar="NAME", help="Run only this row, as --plan names it; repeatable. Others stay in the table."
)
@_repeatable(
    "--features",
    type=NAMED_FILE,
    metavar="ENCODER=PATH",
    help="Features of ResNet50, ResNet101 or TSM-ResNet50, or DATASET:ENCODER=PATH; repeatable. Where names have more "
    "than the id, 'pack-features' makes a file of them.",
)
@_repeatable("--split", "split_files", type=INPUT_FILE, help="A split file that is not under MEIDBENCH_HOME.")
@_repeatable("--annotations", type=INPUT_FOLDER, help="Official annotations, from which missing splits are made.")
@click.option(
    "--out", type=FOLDER, help="Folder for runs and tables [default: reproduction, or reproduction-simulated]."
)
@click.option("--plan", "only_plan", is_flag=True, help="List the needs of the rows, and run nothing.")
@click.option("--simulate", is_flag=True, help="Run on simulated features, as a trial; every output is watermarked.")
@_repeatable("--set", "settings", metavar="KEY=VALUE", help="Change a value of every row; listed in the table.")
@_repeatable("--seed", "seeds", type=SEED, help="Seed of the training; repeatable, for a mean.")
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
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Run the rows of the paper's tables, and print our numbers beside the paper's.

    table1 to table7 are the paper's tables, and supp1, supp2 and supp5 are its supplement's. Rows whose split and
    features exist are trained; the same command resumes after an interruption. Missing inputs are listed with their
    size and the command that makes them. Our numbers are those of runs in OUT, and no others. OUT/TABLE.md, .csv and
    .json hold the printed table.

    Exit code 1: nothing could be run, a row failed, or a cell of table1 differs.
    """
    import os
    import shutil

    from meidbench.baselines.reproduction import choose_rows, materials, plan, render, runs  # type: ignore[import-not-found, unused-ignore]
    from meidbench.files import render_json

    if simulate and (features or only_plan):
        raise click.UsageError("--simulate takes neither --features nor --plan: it needs nothing")
    if simulate and set(tables) == {STATISTICS_TABLE}:
        raise click.UsageError("table1 is statistics of real splits; there is nothing to simulate")
    if len(set(seeds)) < len(seeds):
        raise click.UsageError("a --seed is named twice")
    if seeds and any(text.partition("=")[0].strip() in ("seed", "stage1.seed", "stage2.seed") for text in settings):
        raise click.UsageError("seeds are named by --seed, which both stages have, or by --set seed=N, not by both")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("reproduce runs in one process; for several, 'meidbench train' a row under torchrun")
    simulation, settings = materials.parse_simulation(settings) if simulate else (None, settings)
    out = out or Path("reproduction-simulated" if simulate else "reproduction")
    named = options["split_files"], options["annotations"], materials.parse_features(features)
    chosen = choose_rows(tables, options["rows"])
    refuse_unusable_outputs(json_file, *(out / f"{name}.{ending}" for name in chosen for ending in render.ENDINGS))
    if not only_plan and (foreign := render.find_foreign_files(out, chosen)):
        raise click.UsageError(
            f"not written by this command, and would be replaced: {first_few(foreign)}\nName another folder with --out"
        )
    rendered = render.render_tables(
        chosen,
        materials.InputFiles(*named, simulation, out, progress_bar),
        plan.Request(settings, seeds, options["device"] or "", options["faithful"], simulation),
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
    """Simulate a benchmark, train five methods on it, and compare them.

    A split with a long tail and features of its frames are drawn from the seed; bce, ldam, eql, cbs and framestack are
    trained; the comparison is printed, and written to OUT/report.html. It takes half a minute on two cores. It shows
    that everything works, not which method is better: the features are invented.
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
    for method in comparison.methods:
        for warning in method.warnings:
            report(f"warning: {method.name}: {warning}")
    echo(
        f"{comparison.dataset} ({comparison.variant}), test: {comparison.videos:,} videos, simulated features\n\n"
        f"{comparison_table(comparison)}"
    )
