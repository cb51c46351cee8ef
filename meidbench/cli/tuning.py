"""``meidbench tune``: the values of a method that are best on val, within a number of trials."""

import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meidbench.cli.parameters import (
    FOLDER,
    INPUT,
    INPUT_FILE,
    SEED,
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
)
from meidbench.cli.training import check_option, describe_trained
from meidbench.names import TUNED_GROUPS

if TYPE_CHECKING:
    from meidbench.baselines.tuning import Tuned

_SHOWN = 10  # trials in the printed table


@command(
    short_help="Search a method's values on val; resumable.",
    epilog="\b\nExamples:\n"
    "  meidbench tune --split charadeslt --features charades_r101.h5 \\\n"
    "      --method ldam --trials 20 --out studies/ldam\n"
    "  meidbench tune --split charadeslt --features charades_r101.h5 \\\n"
    "      --method meid --objective tail --set schedule.epochs=30 \\\n"
    "      --trials 40 --out studies/meid\n"
    "  meidbench tune --split videolt --features videolt_r50.h5 --method eql \\\n"
    "      --trials 40 --out studies/eql \\\n"
    "      --storage postgresql+psycopg://me@server/studies",
)
@split_option
@click.option("--features", required=True, type=INPUT, help="As for train.")
@naming_options
@click.option("--method", required=True, help="A recipe that 'meidbench methods' lists.")
@click.option("--aggregator", help="As for train.")
@click.option(
    "--trials", required=True, type=click.IntRange(min=1), metavar="N", help="Trials in all, finished ones included."
)
@click.option("--out", required=True, type=FOLDER, metavar="STUDY", help="The folder of the study.")
@click.option(
    "--storage",
    metavar="URL",
    help="A database server that several machines share, such as postgresql+psycopg://USER@HOST/DATABASE [default: the "
    "SQLite file STUDY/study.db].",
)
@click.option(
    "--objective",
    type=click.Choice(TUNED_GROUPS),
    default="overall",
    show_default=True,
    help="The mAP on val to maximise.",
)
@repeatable(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    help="Fix a value for all trials, e.g. frames.train=32; it is not searched. Repeatable.",
)
@click.option(
    "--space", type=INPUT_FILE, metavar="FILE.toml", help="A search space in the place of the method's; see the docs."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the search; trainings have --set seed=N.")
@check_option
@as_json
def tune(
    split: str, features: Path, out: Path, as_json: bool, prefix: str, suffix: str, dataset: str, **options: Any
) -> None:
    """Search the values of a method that are best on val, and score the winner on test.

    Trial 0 has the published values. Every trial is a run in STUDY/trials, scored on val alone; hopeless ones end
    early. STUDY/trials.csv has a row per trial. Run the same command again to resume after an interruption, with more
    trials to go on, or several times at once to share the trials.
    """
    from meidbench.baselines.recipes import resolve
    from meidbench.baselines.tuning import tune as tune_method
    from meidbench.features import open_features
    from meidbench.files import render_json
    from meidbench.splits.split import load_split

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("tune runs in one process; start the same command several times to share the trials")
    loaded = load_split(split)
    with reading_options():
        resolve(options["method"], loaded, aggregator=options["aggregator"], settings=options["settings"])
    source = open_features(features, prefix=prefix, suffix=suffix, dataset=dataset)
    tuned = tune_method(split, source, out=out, progress=progress_bar, report=report, **options)
    train = ["meidbench", "train", "--split", split, "--features", str(features)]
    for name, value in (("--prefix", prefix), ("--suffix", suffix), ("--dataset", dataset)):
        train += [name, value] if value else []
    train += ["--method", options["method"]]
    train += ["--aggregator", options["aggregator"]] if options["aggregator"] else []
    for setting in tuned.winner.settings if tuned.winner else ():
        train += ["--set", setting]
    warnings = tuned.trained.warnings if tuned.trained is not None else tuple(filter(None, (tuned.watermark,)))
    for warning in warnings:
        report(f"warning: {warning}")
    if as_json:
        echo_json(render_json(_describe(tuned, shlex.join(train))))
        return
    echo(_make_table(tuned))
    if tuned.winner is not None:
        echo(f"\ntrial {tuned.winner.number} won. Its command:\n\n{_wrap_command(train)}")
    if tuned.trained is not None:
        echo(f"\n{describe_trained(tuned.trained, loaded)}")


def _describe(tuned: "Tuned", train: str) -> dict[str, Any]:
    from dataclasses import asdict

    winner = None
    if tuned.winner is not None:
        scored = {} if tuned.trained is None else {name: asdict(means) for name, means in tuned.trained.mAP.items()}
        winner = {"trial": tuned.winner.number, "run": str(tuned.winner.path), "command": train, "mAP": scored}
    trials = [{**asdict(trial), "path": str(trial.path)} for trial in tuned.trials]
    facts = {"study": str(tuned.path), "objective": tuned.objective, "watermark": tuned.watermark}
    return {**facts, "trials": trials, "winner": winner}


def _make_table(tuned: "Tuned") -> str:
    """Return the best trials, and how the others ended, as lines for this terminal."""
    import textwrap

    width = shutil.get_terminal_size((80, 24)).columns
    complete = [trial for trial in tuned.trials if trial.value is not None]
    best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:_SHOWN]
    lines = [f"trial  {tuned.objective:>7}    steps  values", f"-----  -------  -------  {'-' * (width - 26)}"]
    for trial in best:
        values = "  ".join(f"{key}={_shorten(value)}" for key, value in trial.values.items())
        text = textwrap.wrap(values, max(20, width - 26), break_long_words=False, break_on_hyphens=False)
        lines.append(f"{trial.number:5}  {trial.value:7.4f}  {trial.steps:7,}  {text[0] if text else ''}".rstrip())
        lines += [f"{'':25}{line}" for line in text[1:]]
    states = [trial.state for trial in tuned.trials]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    steps = sum(trial.steps for trial in tuned.trials)
    return "\n".join(
        [
            *lines,
            "",
            f"{len(states)} trials: {', '.join(counts)}; {steps:,} steps in all",
            *filter(None, [tuned.watermark]),
        ]
    )


def _shorten(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _wrap_command(words: list[str]) -> str:
    """Return a command for a shell, one option per line."""
    pairs = [words[:2]]
    for word in words[2:]:
        if word.startswith("--"):
            pairs.append([])
        pairs[-1].append(word)
    return " \\\n    ".join(shlex.join(pair) for pair in pairs)
