"""``meidbench evaluate`` and ``compare``: scores of prediction files, and runs side by side."""

from pathlib import Path

import click

from meidbench.cli.parameters import (
    INPUT_FILE,
    SEED,
    InputName,
    InputPath,
    OutputFile,
    as_bytes,
    bootstrap_option,
    command,
    echo,
    json_file,
    local_argument,
    local_path,
    option_with_default,
    print_result,
    progress_bar,
    report,
    split_option,
    subset_option,
    write_text,
)
from meidbench.errors import escape_controls, first_few
from meidbench.names import PROTOCOLS


class _Predictions(InputPath):
    """A prediction file, a folder of them, or the address of a file."""

    def files(self, value: str | Path) -> list[Path]:
        """Return the path, and what a folder holds."""
        path = Path(value)
        return [path, *(path.iterdir() if path.is_dir() else ())]


PREDICTIONS = _Predictions(urls=True)
# NAME=PATH, or a name that is a path's or not.
NAMED_PREDICTIONS = InputName(
    lambda text: [*PREDICTIONS.files(Path(text)), *PREDICTIONS.files(Path(text.partition("=")[2] or text))]
)
_seed = option_with_default("--seed", type=SEED, default=0, help="Of the bootstrap.")
_allow_float16 = click.option(
    "--allow-float16", is_flag=True, help="Accept half-precision scores, in which rounding makes ties."
)


@command(
    short_help="Score predictions: overall, head, medium, tail mAP.",
    epilog="\b\nForms:\n"
    "  Parquet     video_id; scores as lists, or a column per class\n"
    "  NPZ, HDF5   video_ids, scores\n"
    "  CSV, TSV    video_id, then a column per class\n"
    '  JSON lines  {"video_id": ..., "scores": [...]}\n'
    "  text        ID s1 ... sC, the official Charades form\n"
    "  .npy        a matrix, with --ids\n\n"
    "\b\nExamples:\n"
    "  meidbench evaluate run.parquet --split charadeslt\n"
    "  meidbench evaluate rank0.npz rank1.npz --split charadeslt\n"
    "  meidbench evaluate scores.npy --ids ids.txt --split mine.parquet\n"
    "  meidbench evaluate run.csv --split charadeslt \\\n      --bootstrap 1000 --json r.json",
)
@click.argument("predictions", nargs=-1, required=True, metavar="PREDICTIONS...", type=PREDICTIONS)
@split_option
@subset_option
@click.option(
    "--ids",
    "video_ids",
    type=INPUT_FILE,
    help="The ids of a .npy matrix: text with one id per line, in the order of the rows, or .npy of text.",
)
@json_file
@click.option("--per-class", type=OutputFile(".csv"), help="Write a CSV with the average precision of each class.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default=PROTOCOLS[0],
    show_default=True,
    help="apmeter (VideoLT's meter) and charades (the official Charades script) rank videos with the same score in "
    "list order; the meter's own sort leaves their order undefined.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Replicates of a Bayesian bootstrap over videos, for intervals.",
)
@_seed
@click.option(
    "--cross-check",
    is_flag=True,
    help="Compute every average precision again with scikit-learn, and print the largest difference.",
)
@_allow_float16
@click.option(
    "--memory",
    default="4G",
    show_default=True,
    callback=as_bytes,
    help="Limit for the scores; a larger file is scored block by block, with the same result.",
)
def evaluate(
    predictions: tuple[str | Path, ...], split: str, subset: str | None, video_ids: Path | None, json_file: Path | None,
    per_class: Path | None, protocol: str, bootstrap: int, seed: int, cross_check: bool, allow_float16: bool,
    memory: int,
) -> None:  # fmt: skip
    """Score PREDICTIONS: overall, head, medium and tail mAP, top-1 and top-5 accuracy.

    Where each video of the subset has one label, also class-average accuracy, overall, head, medium and tail.

    PREDICTIONS is one run: a file, several files, or a folder of files (one per process or shard), rows in any order. A
    file may be at an address (https://, s3://, hf://).

    Scores are real numbers; a higher score is more likely. Logits and probabilities are both accepted; logits have no
    ties, which float32 probabilities near 1 have.
    """
    from meidbench.evaluation.bootstrap import bootstrap_steps
    from meidbench.evaluation.evaluate import choose_subset, evaluate_scores
    from meidbench.predictions import open_predictions
    from meidbench.predictions.align import align_predictions, reading_warnings
    from meidbench.report.plots import write_per_class
    from meidbench.report.text import evaluation_table, title_lines
    from meidbench.splits.split import load_split

    if (bootstrap or cross_check) and protocol != PROTOCOLS[0]:
        option = "--bootstrap" if bootstrap else "--cross-check"
        raise click.UsageError(
            f"{option} goes with --protocol tie-aware: the others give videos with the same score an arbitrary order"
        )
    loaded = load_split(split)
    subset = choose_subset(loaded, subset, report)
    opened = open_predictions([local_path(path) for path in predictions], video_ids)
    scores = align_predictions(opened, loaded, subset, allow_float16=allow_float16, memory_limit=memory)
    steps = bootstrap_steps(len(loaded.video_ids(subset)), loaded.num_classes, bootstrap)
    with progress_bar("bootstrap", steps) as advance:
        result = evaluate_scores(
            scores, loaded, subset, protocol=protocol, bootstrap=bootstrap, seed=seed, cross_check=cross_check,
            warnings=reading_warnings(opened, loaded), advance=advance,
        )  # fmt: skip
    if per_class is not None:
        echo(f"wrote {write_per_class(result, per_class)}", err=True)
    for warning in result.warnings:
        echo(f"warning: {warning}", err=True)
    if result.cross_check is not None:
        echo(str(result.cross_check), err=True)
    title = title_lines(result, result.diagnostics.videos)
    print_result(json_file, result.to_json(), f"{title}\n\n{evaluation_table(result)}")


@command(
    short_help="Compare runs: intervals, paired differences, wins and losses.",
    epilog="\b\nExamples:\n"
    "  meidbench compare bce.npz meid@1.npz meid@2.npz \\\n      --split charadeslt --html r.html\n"
    "  meidbench compare BCE=bce.csv MEID=shards --split charadeslt",
)
@click.argument("predictions", nargs=-1, required=True, metavar="[NAME=]PATH...", type=NAMED_PREDICTIONS)
@split_option
@subset_option
@click.option("--reference", help="The run that the others are compared with [default: the first].")
@bootstrap_option
@_seed
@_allow_float16
@json_file
@click.option("--latex", type=OutputFile(".tex"), help="Write a table for a paper (booktabs).")
@click.option(
    "--html", type=OutputFile(".html"), help="Write one self-contained page: table, charts, per-class results."
)
def compare(
    predictions: tuple[str, ...], split: str, subset: str | None, reference: str | None, bootstrap: int, seed: int,
    allow_float16: bool, json_file: Path | None, latex: Path | None, html: Path | None,
) -> None:  # fmt: skip
    """Compare runs on one subset of a split.

    PATH is a prediction file of any form that 'meidbench evaluate' reads, or a folder of the files of one run. Without
    NAME=, a run is named after its path. Runs named NAME@SEED are seeds of one method and are averaged. The spread over
    seeds is shown apart from the interval over videos.
    """
    from meidbench.evaluation.bootstrap import bootstrap_steps
    from meidbench.evaluation.compare import ComparedRun
    from meidbench.evaluation.compare import compare as compare_runs
    from meidbench.evaluation.evaluate import choose_subset
    from meidbench.report.html import comparison_html
    from meidbench.report.latex import comparison_latex
    from meidbench.report.text import comparison_table, title_lines
    from meidbench.splits.split import load_split

    runs = [ComparedRun.from_argument(local_argument(text)) for text in predictions]
    if missing := [run.scores for run in runs if not run.scores.exists()]:
        raise click.UsageError(f"there is no prediction file {first_few(missing)}")
    loaded = load_split(split)
    subset = choose_subset(loaded, subset, report)
    steps = bootstrap_steps(len(loaded.video_ids(subset)), loaded.num_classes, bootstrap) * len(runs)
    with progress_bar("bootstrap", steps) as advance:
        comparison = compare_runs(
            runs, loaded, subset, reference=reference, replicates=bootstrap, seed=seed, allow_float16=allow_float16,
            advance=advance,
        )  # fmt: skip
    if latex is not None:
        write_text(latex, comparison_latex(comparison))
    if html is not None:
        write_text(html, comparison_html(comparison))
    for name, warning in comparison.list_warnings():
        echo(f"warning: {escape_controls(name)}: {warning}", err=True)
    title = title_lines(comparison, comparison.videos)
    print_result(json_file, comparison.to_json(), f"{title}\n\n{comparison_table(comparison)}")
