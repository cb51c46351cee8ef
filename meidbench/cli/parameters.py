"""Parameters, outputs and progress that several commands share.

The type of a parameter says whether its files are read or written. ``Command`` compares the two before any work.
"""

import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import click

from meidbench.errors import MeidbenchError, escape_controls, escape_json
from meidbench.names import BENCHMARKS, DATASETS, EPIC_DATASETS, GROUP_KEYS, SUBSET_NAMES, SUBSETS, Advance


class InputPath(click.Path):
    """A file or a folder that a command reads; with ``urls``, also an address, which ``local_path`` fetches."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True, urls: bool = False) -> None:
        super().__init__(path_type=Path, exists=True, file_okay=file_okay, dir_okay=dir_okay)
        self.urls = urls

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path that exists, or the text of an address."""
        from meidbench.checks import is_url

        return value if self.urls and is_url(value) else super().convert(value, param, ctx)

    def files(self, value: str | Path) -> list[Path]:
        """Return the paths that a value names."""
        return [Path(value)]


class InputName(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A text that may name a file that a command reads; ``files`` returns the paths that it may name."""

    name = "text"

    def __init__(self, files: Callable[[Any], list[Path]]) -> None:
        self.files = files


class OutputFile(click.Path):
    """A file that a command writes; ``endings`` are those of its format, others must not be those of another format."""

    def __init__(self, *endings: str, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=False, readable=False, allow_dash=allow_dash)
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; refuse the ending of another format."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if str(path) == "-" and not self.allow_dash:
            self.fail("it needs its own file; - is stdout, which holds other text", param, ctx)
        if path.suffix.lower() in _FORMAT_ENDINGS - set(self.endings):
            self.fail(f"{str(path)!r}: the file is written as {' or '.join(self.endings)}; name it so", param, ctx)
        return path


class Command(click.Command):
    """A command that is refused before any work where an output would destroy an input or another output."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a refusal names the setting for an unknown option, or commands that make features."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any(parameter.name == "settings" for parameter in self.params):
                _name_setting(error)
            raise
        except click.BadParameter as error:
            if error.param is None or error.param.name != "features" or isinstance(error.param.type, InputName):
                raise
            split = dict(zip(given, [*given[1:], ""], strict=True)).get("--split", "SPLIT")
            raise click.UsageError(f"{error.format_message()}\n{_describe_making_features(split)}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Compare the outputs with the inputs, then run."""
        outputs, inputs = [], []
        for parameter in self.params:
            value = ctx.params.get(str(parameter.name))
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
            if isinstance(parameter.type, OutputFile):
                outputs += [(name, path) for path in values if str(path) != "-"]
            elif isinstance(parameter.type, InputPath | InputName):
                inputs += [(name, path) for entry in values for path in parameter.type.files(entry)]
        if outputs:
            from meidbench.checks import output_problems

            there = [(name, path) for name, path in inputs if os.path.lexists(path)]
            if problems := output_problems(outputs, there):
                raise click.UsageError("\n".join(problems))
        try:
            return super().invoke(ctx)
        except MeidbenchError as error:
            error.args = (_name_as_given(str(error.args[0]), ctx.params.values()),)
            raise


def _name_as_given(text: str, values: Iterable[Any]) -> str:
    """Return a message in which the paths of a call are as the user wrote them, not made absolute."""
    entries = [entry for value in values for entry in (value if isinstance(value, tuple) else (value,))]
    paths = [Path(entry) for entry in entries if isinstance(entry, str | Path) and str(entry)]
    for path in sorted(paths, key=lambda path: -len(str(path))):
        if not path.is_absolute() and os.path.lexists(path):  # False of a text that can be no path
            text = text.replace(str(path.absolute()), str(path))
    return text


def _name_setting(error: click.NoSuchOption) -> None:
    """Raise a refusal that names the setting for an option such as ``--lr``, where no option is like it."""
    from meidbench.baselines.configuration import list_keys
    from meidbench.checks import find_like

    name = error.option_name.lstrip("-")
    options = [option.lstrip("-") for option in error.possibilities or ()]
    if not find_like(name, options) and (found := find_like(name, list_keys())):
        settings = " or ".join(f"--set {key}=VALUE" for key in found[:2])
        raise click.UsageError(
            f"there is no option {error.option_name}; it is a setting: {settings}", error.ctx
        ) from None


def _describe_making_features(split: str) -> str:
    """Return the commands that make a feature file of a split."""
    name = _match_dataset(split)
    frames = " --frames 150" if name == "videolt" else ""  # as its authors' features, see needs.toml
    stem, quoted = ("features", name) if name == "SPLIT" else (Path(name).stem, shlex.quote(name))
    return (
        "A feature file is made from the videos, or from a folder of .npy files:\n"
        f"  meidbench extract-features VIDEOS --split {quoted} \\\n     {frames} --out {stem}.h5\n"
        f"  meidbench pack-features FOLDER --split {quoted} \\\n      --out {stem}.h5"
    )


def _match_dataset(text: str) -> str:
    """Return a benchmark's name for its spelling in the paper (``Charades-LT``), any other text as it is."""
    if text in BENCHMARKS:
        return text
    from meidbench.checks import match_name

    return match_name(text, BENCHMARKS)


def _suggest_dataset(text: str) -> str:
    from meidbench.checks import suggest

    return suggest(text, BENCHMARKS)


class _Dataset(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """A benchmark's name, also as the paper spells it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = _match_dataset(str(value))
        if name in EPIC_DATASETS:
            from meidbench.splits.manifests import load_manifest

            remedy = load_manifest(name).remedy
            self.fail(f"the files of {name} are not downloaded by this command. {remedy}", param, ctx)
        if name not in DATASETS:
            self.fail(f"{name!r} is not one of {', '.join(DATASETS)}{_suggest_dataset(name)}", param, ctx)
        return name


def _split_files(value: str) -> list[Path]:
    from meidbench.splits.manifests import split_path

    return [Path(value), *([split_path(value)] if value in BENCHMARKS and not Path(value).is_file() else [])]


_FORMAT_ENDINGS = {".csv", ".tsv", ".json", ".jsonl", ".html", ".tex", ".parquet", ".h5", ".hdf5", ".npy", ".npz"}
command = partial(click.command, cls=Command)
FOLDER = click.Path(path_type=Path, file_okay=False)
INPUT = InputPath()
INPUT_FILE = InputPath(dir_okay=False)
INPUT_FOLDER = InputPath(file_okay=False)
# NAME=FILE, or a name that is a file's or not.
NAMED_FILE = InputName(lambda value: [Path(value), Path(value.partition("=")[2] or value)])
JSON_FILE = OutputFile(".json", allow_dash=True)
SEED = click.IntRange(min=0)
hold_out_option = click.option(
    "--hold-out-val",
    "share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Of a split without val: take this share of the training videos as val, stratified by labels.",
)


def group_option(help: str) -> Callable[[Any], Any]:
    """Make the option of what stays together in a draw."""
    return click.option("--group-by", type=click.Choice(GROUP_KEYS), multiple=True, help=help)


DATASET = _Dataset(DATASETS)
SUBSET = click.Choice(SUBSETS)
option_with_default = partial(click.option, show_default=True)
repeatable = partial(click.option, multiple=True)
subset_option = click.option("--subset", type=SUBSET, help="[default: test; val where the split has no test]")
bootstrap_option = option_with_default("--bootstrap", type=click.IntRange(min=2), default=1000, help="Replicates.")


def naming_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``open_features``, by which other programs' names of files and datasets are understood."""
    helps = (
        ("--prefix", "TEXT", "Text before the id in the names of files or datasets, such as v_ of v_VIDEO_ID.npy."),
        ("--suffix", "TEXT", "Text after the id, such as _clip of VIDEO_ID_clip.npy."),
        ("--dataset", "PATH", "NAME of /NAME/VIDEO_ID, /VIDEO_ID/NAME or an array (HDF5, .npz) or VIDEO_ID/NAME.npy."),
    )
    for option, metavar, text in reversed(helps):
        function = click.option(option, default="", metavar=metavar, help=text)(function)
    return function


def name_options(message: str, command: click.Command | None) -> str:
    """Name options in a message that names arguments of Python: ``subset="val"`` becomes ``--subset val``."""
    options = {option.name: option.opts[0] for option in command.params if option.opts} if command else {}
    if "suffix" in options:  # a command that opens features itself
        message = re.sub(r"\bopen_features\(PATH, ([^()\n]*)\)", lambda found: found[1].replace(", ", " "), message)

    def replace(found: re.Match[str]) -> str:
        option = options.get(found[1], "")
        value = "" if found[2] in ("True", "...") else " " + shlex.quote(found[2].strip('"'))
        return option + value if option.startswith("--") else found[0]

    return re.sub(r'(?<![\w.])([a-z_0-9]+)=("[^"\n]*"|True\b|\.\.\.|[A-Z]+\b)', replace, message)


json_file = click.option("--json", "json_file", type=JSON_FILE, help="Write the result as JSON; - is stdout.")
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
        text = _match_dataset(str(value))
        if text.endswith(".toml") and not Path(text).is_file():
            problem = f"{text!r} is a folder" if Path(text).is_dir() else f"the file {text!r} does not exist"
            self.fail(f"{problem}; expected a manifest or a plan", param, ctx)
        if text not in BENCHMARKS and not text.endswith(".toml"):
            known = f"one of {', '.join(BENCHMARKS)}{_suggest_dataset(text)}"
            self.fail(f"{text!r} is neither {known} nor a manifest or a plan (.toml)", param, ctx)
        return text


class _SplitName(InputName):
    """A benchmark's name, which may not be built yet, or the path of a split file."""

    name = "split"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value) if Path(str(value)).is_file() else _match_dataset(str(value))
        if text not in BENCHMARKS and not Path(text).exists():
            known = f"one of {', '.join(BENCHMARKS)}{_suggest_dataset(text)}"
            self.fail(f"{text!r} is neither a split file nor {known}", param, ctx)
        return text


class _SplitSource(InputName):
    """FILE or SUBSET=FILE, as the subset (empty without one) and the path."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        subset, equals, rest = str(value).partition("=")
        if not equals or Path(value).exists():
            subset, rest = "", str(value)
        elif subset not in SUBSET_NAMES and Path(rest).exists():
            self.fail(f"{subset!r} is no subset; expected one of {', '.join(SUBSETS)}", param, ctx)
        path = INPUT_FILE.convert(rest if subset in SUBSET_NAMES else str(value), param, ctx)
        return SUBSET_NAMES.get(subset, ""), Path(os.fsdecode(path))


DATASET_OR_MANIFEST = _DatasetOrManifest()
SPLIT = _SplitName(_split_files)
SPLIT_SOURCE = _SplitSource(lambda value: [value[1]])
split_option = click.option("--split", required=True, type=SPLIT, help="A split file, or a built benchmark's name.")


def local_path(value: str | Path) -> Path:
    """Return the path that a value names; a file at an address is fetched first."""
    from meidbench.checks import is_url

    if not is_url(value):
        return Path(value)
    from meidbench.annotations.download import fetch_url

    return fetch_url(str(value), progress=progress_bar, report=report)


def local_argument(text: str) -> str:
    """Return ``PATH`` or ``NAME=PATH`` with the local path of a file at an address."""
    from meidbench.checks import is_url

    name, equals, path = text.partition("=")
    if is_url(text):
        return str(local_path(text))
    return f"{name}={local_path(path)}" if equals and is_url(path) else text


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
    """Print a line to stderr; a note of several trainings is printed once per command."""
    context = click.get_current_context(silent=True)
    if line.startswith("note: ") and context is not None:
        told: set[str] = context.meta.setdefault(f"{__name__}.notes", set())
        if line in told:
            return
        told.add(line)
    echo(line, err=True)


def refuse_unusable_outputs(*paths: Path | None) -> None:
    """Refuse files that a command writes at its end where one is a folder, or two are the same file."""
    from meidbench.checks import output_problems

    if problems := output_problems([("the output", path) for path in paths if path is not None and str(path) != "-"]):
        raise click.UsageError("\n".join(problems))


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


class _Stream:
    """stdout or stderr of a command, whose failure does not end the work: it is kept, and later text is dropped."""

    def __init__(self, stream: TextIO | None) -> None:
        self.failure = ""
        self._is_closed = stream is None
        self._stream: TextIO = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text as far as the stream takes it."""
        if self._is_closed:
            self.failure = "it is closed"
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered as far as the stream takes it."""
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)
            # Python writes the rest of the buffer at its end, and would change the exit code where it cannot.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Let no failure of stdout or stderr cost a result: only at the end, stdout that failed makes the exit code 1."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed, and an output file must not get its number
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    before = sys.stdout, sys.stderr
    out, err = _Stream(before[0]), _Stream(before[1])
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    except SystemExit as end:
        if not out.failure:
            raise
        if out.failure != os.strerror(errno.EPIPE):  # the reader has what it wanted, as with | head
            echo(f"Error: stdout cannot be written: {out.failure}", err=True)
        raise SystemExit(end.code or 1) from None
    finally:
        sys.stdout, sys.stderr = before


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
