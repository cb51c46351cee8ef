"""``meidbench demo``: the whole way on an invented benchmark."""

from pathlib import Path

import click

from meidbench.cli.output import write_text
from meidbench.cli.parameters import FOLDER


@click.command(
    short_help="The whole way on a small simulated benchmark, offline, on a CPU.",
    epilog="\b\nExample:\n  meidbench demo --out demo-out",
)
@click.option("--out", type=FOLDER, default="demo-out", show_default=True, help="Folder for all that is made.")
@click.option("--epochs", type=click.IntRange(min=2), default=12, show_default=True, help="Of each method.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--bootstrap", type=click.IntRange(min=2), default=1000, show_default=True, help="Replicates.")
def demo(out: Path, epochs: int, seed: int, bootstrap: int) -> None:
    """Simulate a benchmark, train five methods on it, and compare them.

    A split with a long tail and features of its frames are drawn from the seed; bce, ldam, eql, cbs and framestack are
    trained; the comparison is printed, and written to OUT/report.html. Half a minute on two cores. It shows that
    everything works, not which method is better: the features are invented.
    """
    from meidbench.baselines.demo import run_demo  # type: ignore[import-not-found, unused-ignore]
    from meidbench.cli.progress import progress_bar
    from meidbench.comparison import RunFile, compare
    from meidbench.report.html import comparison_html
    from meidbench.report.text import comparison_table

    def say(line: str) -> None:
        click.echo(line, err=True)

    made = run_demo(out, epochs=epochs, seed=seed, progress=progress_bar, report=say)
    runs = [RunFile(method, "", path) for method, path in made.predictions.items()]
    comparison = compare(runs, made.split, "test", replicates=bootstrap, seed=seed)
    write_text(out / "report.html", comparison_html(comparison))
    for method in comparison.methods:
        for warning in method.warnings:
            say(f"warning: {method.name}: {warning}")
    click.echo(
        f"{comparison.dataset} ({comparison.variant}), test: {comparison.videos:,} videos, simulated features\n\n"
        f"{comparison_table(comparison)}"
    )
