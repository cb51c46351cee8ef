"""A progress bar on a terminal, plain lines elsewhere; both on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_FIRST_LINE_AFTER = 5.0  # seconds
_LINE_EVERY = 15.0


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function to be called with the number of steps done; nothing is shown for quick work."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, file=sys.stderr, delay=1.0, leave=False, disable=not total) as bar:

            def move(steps: int) -> None:
                bar.update(steps)

            yield move
        return
    done = 0
    next_line = time.monotonic() + _FIRST_LINE_AFTER

    def advance(steps: int) -> None:
        nonlocal done, next_line
        done += steps
        if time.monotonic() >= next_line:
            click.echo(f"{what}: {done:,} of {total:,}", err=True)
            next_line = time.monotonic() + _LINE_EVERY

    yield advance
