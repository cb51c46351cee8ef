"""The command line ``meidbench``. Nothing heavy is imported until a command runs."""

import _thread
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from meidbench import __version__
from meidbench.cli.benchmarks import datasets, download
from meidbench.cli.evaluation import compare, evaluate
from meidbench.cli.features import extract_features, merge_features, pack_features, verify_features, word_features
from meidbench.cli.parameters import guarded_streams, name_options, report
from meidbench.cli.reproduction import demo, reproduce
from meidbench.cli.splits import audit, build_splits, import_split, stats
from meidbench.cli.training import methods, predict, train, zero_shot
from meidbench.cli.tuning import tune
from meidbench.errors import MeidbenchError, RequestError, escape_controls, missing_package

# SIGHUP comes when a terminal is closed; Windows does not have it.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_CLEAN_UP_S, _AGAIN_S = 2.0, 0.01
_GOES_ON = "the same command goes on"
# The work that an interrupted command keeps; every other command leaves its outputs as they were.
_KEPT = {
    "download": f"the bytes received so far are kept; {_GOES_ON}",
    "extract-features": f"the finished videos are kept; {_GOES_ON}",
    "merge-features": f"the videos copied so far are kept; {_GOES_ON}",
    "pack-features": f"the packed videos are kept; {_GOES_ON}",
    "word-features": f"the finished videos are kept; {_GOES_ON}",
    "tune": f"the trials are kept as they were last saved; {_GOES_ON}",
    "train": f"the run is kept as it was last saved; {_GOES_ON}",
    "reproduce": f"the runs are kept as they were last saved; {_GOES_ON}",
    "demo": f"the runs are kept as they were last saved; {_GOES_ON}",
}
_NOTHING_KEPT = "no half-written file is left; the same command starts from the beginning"


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. Code that cleans up after Ctrl-C cleans up after every signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise Interrupted at a signal; further ones within seconds, as torchrun sends them, leave time to clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, last = os.getpid(), -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != owner:  # a forked child ends without words
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if (now := time.monotonic()) - last > _CLEAN_UP_S:
            last = now
            raise Interrupted(number)

    def stop_later(lost: "sys.UnraisableHookArgs") -> None:
        """Send a signal again that came inside a finaliser, where Python drops every exception."""
        nonlocal last
        if isinstance(lost.exc_value, Interrupted):
            last = -math.inf
            threading.Timer(_AGAIN_S, _thread.interrupt_main, [lost.exc_value.number]).start()
        else:
            hook(lost)

    hook = sys.unraisablehook
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # A signal that the caller ignores, as nohup does, stays ignored; None is a handler of another library.
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in taken:
            signal.signal(number, stop)
        sys.unraisablehook = stop_later
        yield
    finally:
        sys.unraisablehook = hook
        for number in taken:
            signal.signal(number, before[number])


class _Group(click.Group):
    """Commands in the order of use; a problem with the data ends with exit code 1 and a message, not a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        with guarded_streams():
            return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _quoted():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _signals_raise(), _quoted():
                try:
                    return super().invoke(ctx)
                except KeyboardInterrupt as interrupt:
                    _end_interrupted(ctx, interrupt)
        except RequestError as error:
            raise click.UsageError(name_options(str(error), self._find_command(ctx))) from None
        except MeidbenchError as error:
            raise click.ClickException(name_options(str(error), self._find_command(ctx))) from None
        except ModuleNotFoundError as error:
            raise click.ClickException(str(missing_package(error))) from None
        except MemoryError as error:
            raise click.ClickException(escape_controls(f"the memory is not enough: {error}")) from None
        except RecursionError:
            raise click.ClickException("an input is nested too deeply to be read") from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(escape_controls(f"{where}{error.strerror or error}")) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = str(args[0])
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            from meidbench.checks import suggest

            ctx.fail(f"there is no command {name!r}{suggest(name, self.commands)}")
        return super().resolve_command(ctx, args)

    def _find_command(self, ctx: click.Context) -> click.Command | None:
        return self.commands.get(ctx.invoked_subcommand or "")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@contextmanager
def _quoted() -> Iterator[None]:
    """Quote the control characters in messages about wrong calls, which repeat the caller's words."""
    try:
        yield
    except click.ClickException as error:
        error.message = escape_controls(error.message or "", keep="\n")  # type: ignore[misc, unused-ignore]
        raise


def _end_interrupted(ctx: click.Context, interrupt: KeyboardInterrupt) -> NoReturn:
    number = getattr(interrupt, "number", signal.SIGINT)
    if os.environ.get("RANK", "0") == "0":  # the processes of torchrun end with one line
        name, kept = signal.Signals(number).name, _KEPT.get(ctx.invoked_subcommand or "", _NOTHING_KEPT)
        report(f"interrupted by {name}: {kept}")
    ctx.exit(128 + number)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  meidbench demo\n"
    "  meidbench download charadeslt --accept-licence\n"
    "  meidbench build-splits charadeslt\n"
    "  meidbench evaluate predictions.npz --split charadeslt",
)
@click.version_option(__version__, prog_name="meidbench")
def main() -> None:
    """Long-tailed multi-label video recognition: exact splits, features, baselines and one evaluator.

    A first run, offline, is 'meidbench demo'. Results go to stdout, everything else to stderr. Exit code 0: success; 1:
    a problem with the data; 2: a wrong call; 130, 143 or 129: interrupted by Ctrl-C, SIGTERM or SIGHUP.
    """


# In the order of use.
for command in (datasets, download, build_splits, import_split, stats, audit):
    main.add_command(command)
for command in (extract_features, merge_features, pack_features, word_features, verify_features):
    main.add_command(command)
for command in (methods, train, tune, predict, zero_shot, evaluate, compare, reproduce, demo):
    main.add_command(command)
