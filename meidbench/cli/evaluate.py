"""``meidbench evaluate``: overall, head, medium and tail mAP of a prediction file."""

from pathlib import Path

import click

from meidbench.cli.output import print_result
from meidbench.cli.parameters import FILE, SUBSET, as_bytes, json_file

PROTOCOLS = ("tie-aware", "apmeter", "charades")


@click.command(
    short_help="Score predictions: overall, head, medium, tail mAP.",
    epilog="\b\nExample:\n  meidbench evaluate predictions.parquet --split charadeslt --bootstrap 1000 --json r.json",
)
@click.argument("predictions", type=FILE)
@click.option("--split", required=True, help="A split file, or a built benchmark's name.")
@click.option("--subset", type=SUBSET, default="test", show_default=True)
@json_file
@click.option("--per-class", type=FILE, help="Write a CSV with the average precision of each class.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="tie-aware",
    show_default=True,
    help="apmeter and charades rank videos with one score in list order, as VideoLT's meter and the official Charades "
    "script do.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Replicates of a Bayesian bootstrap over videos, for intervals.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--allow-float16", is_flag=True, help="Accept half-precision scores, which make ties.")
@click.option(
    "--memory",
    default="4G",
    show_default=True,
    callback=as_bytes,
    help="What the scores may take; a larger file is scored block by block, with the same result.",
)
def evaluate(
    predictions: Path,
    split: str,
    subset: str,
    json_file: Path | None,
    per_class: Path | None,
    protocol: str,
    bootstrap: int,
    seed: int,
    allow_float16: bool,
    memory: int,
) -> None:
    """Score PREDICTIONS: overall, head, medium and tail mAP, top-1 and top-5 accuracy.

    PREDICTIONS is Parquet (video_id, scores), NPZ or HDF5 (video_ids, scores), CSV (video_id, then the classes) or the
    official Charades text form, rows in any order. Scores are real numbers, higher is likelier; logits and
    probabilities are both right.
    """
    from meidbench.cli.progress import progress_bar
    from meidbench.evaluation import evaluate_scores
    from meidbench.forms import open_predictions
    from meidbench.intervals import bootstrap_steps
    from meidbench.predictions import align_predictions, run_warnings
    from meidbench.report.text import evaluation_table
    from meidbench.split_file import load_split

    if bootstrap and protocol != "tie-aware":
        raise click.UsageError(
            "--bootstrap goes with --protocol tie-aware: the others order videos of one score at will"
        )
    if per_class is not None and str(per_class) in ("-", str(json_file)):
        raise click.UsageError("--per-class wants a file of its own")
    loaded = load_split(split)
    opened = open_predictions(predictions)
    scores = align_predictions(opened, loaded, subset, allow_float16=allow_float16, memory_limit=memory)
    warnings = run_warnings(opened.metadata)
    steps = bootstrap_steps(len(loaded.video_ids(subset)), loaded.num_classes, bootstrap)
    with progress_bar("bootstrap", steps) as advance:
        result = evaluate_scores(
            scores,
            loaded,
            subset,
            protocol=protocol,
            bootstrap=bootstrap,
            seed=seed,
            warnings=warnings,
            advance=advance,
        )
    if per_class is not None:
        from meidbench.report.tables import write_per_class

        write_per_class(result, per_class)
        click.echo(f"wrote {per_class}", err=True)
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    title = f"{result.dataset} ({result.variant}), {subset}: {result.diagnostics.videos:,} videos"
    print_result(json_file, result.to_json(), f"{title}\n\n{evaluation_table(result)}")
