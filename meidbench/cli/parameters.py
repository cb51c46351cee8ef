"""Parameters that several commands share."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from meidbench.errors import MeidbenchError, escape_controls, escape_json
from meidbench.names import DATASETS, SUBSETS, Advance

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
INPUT = click.Path(path_type=Path, exists=True)
INPUT_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
INPUT_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
SEED = click.IntRange(min=0)
DATASET = click.Choice(DATASETS)
SUBSET = click.Choice(SUBSETS)
option_with_default = partial(click.option, show_default=True)
subset_option = option_with_default("--subset", type=SUBSET, default="test")
bootstrap_option = option_with_default("--bootstrap", type=click.IntRange(min=2), default=1000, help="Replicates.")
json_file = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the result as JSON; - is stdout.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def as_bytes(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Read a size such as ``500M`` or ``4G`` (powers of 1,024)."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(value[-1:].upper(), 1)
    digits = value[:-1] if factor > 1 else value
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise click.BadParameter(f"{value!r} is not a size; expected e.g. 500M or 4G", ctx, param)
    return int(digits) * factor


class _DatasetOrManifest(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A benchmark's name, or the path of your own manifest or plan."""

    name = "dataset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.endswith(".toml") and not Path(text).is_file():
            self.fail(f"the file {text!r} does not exist", param, ctx)
        if text not in DATASETS and not text.endswith(".toml"):
            self.fail(f"{text!r} is neither one of {', '.join(DATASETS)} nor a manifest or a plan (.toml)", param, ctx)
        return text


class _SplitName(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A benchmark's name, which may not be built yet, or the path of a split file."""

    name = "split"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text not in DATASETS and not Path(text).exists():
            self.fail(f"{text!r} is neither a split file nor one of {', '.join(DATASETS)}", param, ctx)
        return text


DATASET_OR_MANIFEST = _DatasetOrManifest()
SPLIT = _SplitName()
split_option = click.option("--split", required=True, type=SPLIT, help="A split file, or a built benchmark's name.")


@contextmanager
def reading_options() -> Iterator[None]:
    """Make a wrong call of an error in a block that depends on options alone."""
    try:
        yield
    except MeidbenchError as error:
        raise click.UsageError(str(error)) from None


def echo(text: str, err: bool = False) -> None:
    """Print a text to stdout or stderr; every command prints through here, so that no control character gets out."""
    click.echo(escape_controls(text, keep="\n"), err=err)


def echo_json(text: str) -> None:
    """Print a JSON text to stdout, with control characters as escapes of JSON."""
    click.echo(escape_json(text.rstrip("\n")))


def report(line: str) -> None:
    """Print a line to stderr."""
    echo(line, err=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step, and print its path to stderr."""
    from meidbench.files import written_whole

    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    echo(f"wrote {path}", err=True)


def print_result(json_file: Path | None, json: str, table: str) -> None:
    """Write the JSON to its file or to stdout; print the table unless the JSON goes to stdout."""
    if str(json_file) == "-":
        echo_json(json)
        return
    if json_file is not None:
        write_text(json_file, json)
    echo(table)


_FIRST_LINE_AFTER = 5.0  # seconds
_LINE_EVERY = 15.0


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """Give a function that is called with the number of steps done; quick work shows nothing."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(
            total=total, desc=escape_controls(what), file=sys.stderr, delay=1.0, leave=False, disable=not total
        ) as bar:

            def move(steps: int) -> None:
                bar.update(steps)

            yield move
        return
    done, next_line = 0, time.monotonic() + _FIRST_LINE_AFTER

    def advance(steps: int) -> None:
        nonlocal done, next_line
        done += steps
        if time.monotonic() >= next_line:
            echo(f"{what}: {done:,} of {total:,}", err=True)
            next_line = time.monotonic() + _LINE_EVERY

    yield advance
