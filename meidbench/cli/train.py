"""``meidbench train``: a baseline, from features to scored predictions."""

from pathlib import Path

import click

from meidbench.cli.parameters import FOLDER, as_json


@click.command(
    short_help="Train a baseline; resumable.",
    epilog="\b\nExamples:\n"
    "  meidbench train --split charadeslt --features charades_r101.h5 --method ldam --out runs/ldam\n"
    "  meidbench train --split videolt --features videolt_r50.h5 --method framestack-compat --set schedule.lr=2e-4\n"
    "  meidbench train --split videolt --features videolt_r50.h5 --method meid --set stage2.schedule.lr=2e-4\n"
    "  torchrun --nproc-per-node 4 -m meidbench train --split videolt --features videolt_r50.h5 --method eql",
)
@click.option("--split", required=True, help="A split file, or a built benchmark's name.")
@click.option(
    "--features", required=True, type=click.Path(path_type=Path), help="A feature file, or a folder of VIDEO_ID.npy."
)
@click.option(
    "--method",
    required=True,
    help="A recipe: bce, ldam, meid, move...; ldam-compat is as in VideoLT's code, meid-release as in its authors'.",
)
@click.option(
    "--aggregator",
    help="nonlinear, early_mean, mean, attention, netvlad or nextvlad [default: the benchmark's or the method's].",
)
@click.option(
    "--out", type=FOLDER, metavar="RUN", help="The run's folder [default: runs/SPLIT-METHOD-AGGREGATOR-SEED]."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a value, e.g. schedule.lr=2e-4; repeatable."
)
@click.option(
    "--first-stage",
    type=FOLDER,
    metavar="RUN",
    help="For a method of two stages, a finished run of its first [default: trained in RUN/first-stage].",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Short for --set schedule.epochs=N.")
@click.option("--seed", type=click.IntRange(min=0), help="Short for --set seed=N.")
@click.option("--device", metavar="auto|cpu|cuda[:N]", help="Where to train [default: auto].")
@click.option("--precision", type=click.Choice(("fp32", "bf16", "fp16")), help="Of training; scores are made in fp32.")
@click.option(
    "--select-on",
    type=click.Choice(("val", "test")),
    help="The subset that chooses the checkpoint [default: val]; test mimics VideoLT's code, and is recorded.",
)
@click.option(
    "--resident",
    type=click.Choice(("auto", "never", "always")),
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
    epochs: int | None,
    seed: int | None,
    device: str | None,
    precision: str | None,
    select_on: str | None,
    resident: str | None,
    as_json: bool,
) -> None:
    """Train a baseline and score its best checkpoint on val and test.

    RUN/ holds config.json, log.jsonl, last.pt and best.pt, and the predictions and results of both subsets. Run the
    same command again to go on after an interruption; on a CPU the result is the same to the bit.
    """
    import os
    from dataclasses import asdict

    from tabulate import tabulate

    from meidbench.baselines.components import aggregator_name  # type: ignore[import-not-found, unused-ignore]
    from meidbench.baselines.resolution import resolve  # type: ignore[import-not-found, unused-ignore]
    from meidbench.baselines.training import train as train_run  # type: ignore[import-not-found, unused-ignore]
    from meidbench.cli.progress import progress_bar
    from meidbench.results import MeanAP
    from meidbench.results import as_json as json_text
    from meidbench.split_file import load_split

    short = {
        "schedule.epochs": epochs,
        "seed": seed,
        "execution.device": device,
        "schedule.precision": precision,
        "selection.subset": select_on,
        "execution.resident": resident,
    }
    settings += tuple(f"{key}={value}" for key, value in short.items() if value is not None)
    config = resolve(method, load_split(split), aggregator=aggregator, settings=settings)
    if out is None:
        out = Path("runs") / f"{Path(split).stem}-{method}-{aggregator_name(config)}-{config.seed}"
    trained = train_run(
        split,
        features,
        config,
        out,
        first_stage=first_stage,
        progress=progress_bar,
        report=lambda line: click.echo(line, err=True),
    )
    if os.environ.get("RANK", "0") != "0":
        return
    for warning in trained.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        content = {"run": str(trained.path), "mAP": {subset: asdict(means) for subset, means in trained.mAP.items()}}
        click.echo(json_text(content), nl=False)
    else:
        rows = [(subset, *asdict(means).values()) for subset, means in trained.mAP.items()]
        click.echo(tabulate(rows, headers=["mAP", *asdict(MeanAP(0, 0, 0, 0))], floatfmt=".4f"))
        click.echo(f"\n{trained.path}")
