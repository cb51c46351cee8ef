"""``meidbench methods``, ``train``, ``predict`` and ``zero-shot``: baselines, from features to scored predictions."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meidbench.cli.parameters import (
    FOLDER,
    INPUT,
    INPUT_FILE,
    INPUT_FOLDER,
    SEED,
    SPLIT,
    OutputFile,
    as_json,
    command,
    echo,
    echo_json,
    naming_options,
    progress_bar,
    reading_options,
    repeatable,
    report,
    split_option,
    subset_option,
)
from meidbench.names import PRECISIONS, RESIDENT, ROW_CHECKS, SELECTIONS

if TYPE_CHECKING:
    from meidbench.baselines.class_text import ClassText
    from meidbench.baselines.inference import Trained
    from meidbench.splits.split import Split

check_option = click.option(
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
    "  meidbench train --split animals.parquet --features animals.h5 \\\n"
    "      --method bce --select-on last\n"
    "  torchrun --nproc-per-node 4 -m meidbench train --split videolt \\\n"
    "      --features videolt_r50.h5 --method eql",
)
@split_option
@click.option(
    "--features",
    required=True,
    type=INPUT,
    help="A feature file of extract-features, pack-features or word-features, a folder of VIDEO_ID.npy, or a file of "
    "others.",
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
@repeatable("--set", "settings", metavar="KEY=VALUE", help="Change a value, e.g. schedule.lr=2e-4; repeatable.")
@click.option(
    "--first-stage",
    type=INPUT_FOLDER,
    metavar="RUN",
    help="For a method of two stages, a finished run of its first [default: trained in RUN/first-stage].",
)
@check_option
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
    type=click.Choice(SELECTIONS),
    help="The subset that chooses the checkpoint [default: val]; test mimics VideoLT's code; last takes the last "
    "epoch, for a split without val. The choice is recorded.",
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

    from meidbench.baselines.recipes import resolve
    from meidbench.baselines.training import train as train_run
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
        means = {subset: asdict(values) for subset, values in trained.mAP.items()}
        echo_json(render_json({"run": str(trained.path), "mAP": means, "warnings": trained.warnings}))
    else:
        echo(describe_trained(trained, loaded))


def describe_trained(trained: "Trained", split: "Split") -> str:
    """Return the mAP of each subset that was scored, by the split's names of groups, and the folder of a run."""
    from dataclasses import asdict

    from tabulate import tabulate

    from meidbench.evaluation.results import NO_CLASSES, NO_POSITIVE

    empty = dict.fromkeys(split.groups.empty, NO_CLASSES)
    rows = [
        {"mAP": subset}
        | {
            split.group_names.get(group, group): f"{mean:.4f}" if mean == mean else empty.get(group, NO_POSITIVE)
            for group, mean in asdict(means).items()
        }
        for subset, means in trained.mAP.items()
    ]
    return f"{tabulate(rows, headers='keys', floatfmt='.4f')}\n\n{trained.path}"


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
@check_option
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
    short_help="Score videos by the text of the class names, without training.",
    epilog="\b\nExamples:\n"
    "  meidbench zero-shot --features charades_clip.h5 --split charadeslt \\\n"
    "      --out zero_shot.parquet\n"
    "  meidbench zero-shot --features clip.h5 --split charadeslt \\\n"
    "      --prompt 'a photo of a person {}.' --prompt 'a person {} at home.' \\\n"
    "      --pool top-5 --save-text text.npz --out top5.parquet",
)
@click.option(
    "--features",
    required=True,
    type=INPUT,
    help="Features of an image-text model, as 'train' takes their file or folder.",
)
@naming_options
@split_option
@subset_option
@click.option(
    "--text-encoder",
    metavar="NAME",
    help="hf:NAME, hf:FOLDER or openclip:MODEL/TAG, where the features do not name it [default: their model].",
)
@repeatable(
    "--prompt", "templates", metavar="TEMPLATE", help="With {} for the class name; repeatable [default: the split's]."
)
@click.option(
    "--prompts", type=INPUT_FILE, help='Whole prompts of classes, JSON: {"NAME": "PROMPT" or ["PROMPT", ...]}.'
)
@click.option("--text", type=INPUT_FILE, help="A file of --save-text, in place of a text encoder and prompts.")
@click.option(
    "--pool", default="mean", show_default=True, metavar="mean|max|top-K", help="Of the cosines of a video's frames."
)
@click.option("--save-text", type=OutputFile(".npz"), help="Write the text vectors, for --text and for text_adapter.")
@click.option("--out", type=OutputFile(".parquet"), required=True, help="The prediction file to write (Parquet).")
@as_json
def zero_shot(
    features: Path, prefix: str, suffix: str, dataset: str, split: str, subset: str | None, text_encoder: str | None,
    templates: tuple[str, ...], prompts: Path | None, text: Path | None, pool: str, save_text: Path | None, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Score SUBSET by the cosine of stored frames with the text of the class names.

    The features are those of an image-text model: CLIP, SigLIP, OpenCLIP. Class names become prompts, and the text
    encoder of the same model gives one vector per class. All rows of a video count. --pool: the mean over frames, the
    largest, or the mean of the K largest of each class. A logit is the model's scale times the pooled cosine, plus its
    bias.
    """
    from meidbench.baselines.class_text import make_class_text, read_class_text, read_prompts
    from meidbench.baselines.zero_shot import predict_zero_shot
    from meidbench.features import open_features
    from meidbench.files import render_json
    from meidbench.splits.split import load_split

    if text is not None and (text_encoder or templates or prompts):
        raise click.UsageError("--text holds finished vectors; leave out --text-encoder, --prompt and --prompts")
    loaded, source = load_split(split), open_features(features, prefix=prefix, suffix=suffix, dataset=dataset)

    def make_text() -> "ClassText":
        own = {} if prompts is None else read_prompts(prompts)
        made = (
            read_class_text(text)
            if text is not None
            else make_class_text(
                loaded, source, encoder=text_encoder or "", templates=templates, own=own, progress=progress_bar,
                report=report,
            )
        )  # fmt: skip
        if save_text is not None:
            made.check(loaded, source)
            made.write(save_text)
            report(f"wrote {save_text}")
        return made

    used = predict_zero_shot(
        loaded, source, make_text, out, subset=subset, pool=pool, progress=progress_bar, report=report
    )
    if as_json:
        echo_json(render_json({"predictions": str(out), "pool": pool, "classes": len(used.vectors), **used.to_facts()}))
    else:
        echo(f"wrote {out}")
