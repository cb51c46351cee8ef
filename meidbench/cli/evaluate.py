"""``meidbench evaluate``: overall, head, medium and tail mAP of a prediction file."""

from pathlib import Path

import click

from meidbench.cli.parameters import FILE, SUBSET


@click.command(
    short_help="Score predictions: overall, head, medium, tail mAP.",
    epilog="\b\nExample:\n  meidbench evaluate predictions.parquet --split charadeslt --subset test --json result.json",
)
@click.argument("predictions", type=FILE)
@click.option("--split", required=True, help="A split file, or a built benchmark's name.")
@click.option("--subset", type=SUBSET, default="test", show_default=True)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the result as JSON; - is stdout.",
)
@click.option("--per-class", type=FILE, help="Write a CSV with the average precision of each class.")
@click.option("--allow-float16", is_flag=True, help="Accept half-precision scores, which make ties.")
def evaluate(
    predictions: Path,
    split: str,
    subset: str,
    json_file: Path | None,
    per_class: Path | None,
    allow_float16: bool,
) -> None:
    """Score PREDICTIONS: overall, head, medium and tail mAP, top-1 and top-5 accuracy.

    PREDICTIONS is Parquet (video_id, scores) or NPZ (video_ids, scores), rows in any order. Scores are real numbers,
    higher is likelier; logits and probabilities are both right.
    """
    from meidbench.evaluation import evaluate_scores
    from meidbench.files import written_whole
    from meidbench.predictions import align_predictions, read_predictions
    from meidbench.report.text import evaluation_table
    from meidbench.split_file import load_split

    loaded = load_split(split)
    scores = align_predictions(read_predictions(predictions), loaded, subset, allow_float16=allow_float16)
    result = evaluate_scores(scores, loaded, subset)
    if per_class is not None:
        from meidbench.report.tables import write_per_class

        write_per_class(result, per_class)
        click.echo(f"wrote {per_class}", err=True)
    if json_file is not None and str(json_file) != "-":
        with written_whole(json_file) as temporary:
            temporary.write_text(result.to_json(), encoding="utf-8")
        click.echo(f"wrote {json_file}", err=True)
    if str(json_file) == "-":
        click.echo(result.to_json(), nl=False)
    else:
        click.echo(f"{result.dataset} ({result.variant}), {subset}: {result.diagnostics.videos:,} videos\n")
        click.echo(evaluation_table(result))
