"""``meidbench predict``: a prediction file of a run."""

from pathlib import Path

import click

from meidbench.cli.parameters import FILE, SUBSET


@click.command(
    short_help="Write the predictions of a trained run.",
    epilog="\b\nExample:\n  meidbench predict runs/ldam --subset val --out predictions.parquet",
)
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--subset", type=SUBSET, default="test", show_default=True)
@click.option("--out", type=FILE, required=True, help="The prediction file to write (Parquet).")
@click.option("--split", help="A split file, or a built benchmark's name [default: the run's].")
@click.option("--features", type=click.Path(path_type=Path), help="A feature file or folder [default: the run's].")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
def predict(run: Path, subset: str, out: Path, split: str | None, features: Path | None, device: str) -> None:
    """Score SUBSET with the best checkpoint in RUN, a folder that 'meidbench train' made."""
    import os

    from meidbench.baselines.prediction import predict as predict_run  # type: ignore[import-not-found, unused-ignore]
    from meidbench.cli.progress import progress_bar

    path = predict_run(
        run,
        out,
        subset=subset,
        split=split,
        features=features,
        device=device,
        progress=progress_bar,
        report=lambda line: click.echo(line, err=True),
    )
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"wrote {path}")
