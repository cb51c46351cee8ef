"""The data of the tests: the invented ToyLT, the real annotations where their files are available, a local server."""

import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from meidbench.annotations import Annotations, read_annotations
from meidbench.splits.manifests import load_manifest
from meidbench.splits.released import build_released
from meidbench.splits.split import Split

TOY = Path(__file__).parent / "toy"
TOY_MANIFEST = str(TOY / "toylt.toml")
# The benchmarks whose authors released lists, and the folders of their files; the other has tests of its own.
REAL = {"charadeslt": "charades", "charadesegolt": "charadesego", "videolt": "videolt"}


def real_data(*parts: str) -> Path:
    """Return a folder of the real files, named by MEIDBENCH_TEST_DATA or beside the checkout, or skip."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEIDBENCH_TEST_DATA", beside)).joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(
            f"the official annotation files are not available ({folder}); set MEIDBENCH_TEST_DATA to have them tested"
        )
    return folder


@cache
def real_annotations(name: str) -> Annotations:
    """Return the real annotations of a benchmark, read once per test run; not to be changed."""
    return read_annotations(load_manifest(name), real_folder(name))


def real_folder(name: str) -> Path:
    """Return the folder of a benchmark's real annotations, or skip, also without the extra that reads workbooks."""
    if name == "animalkingdom":
        pytest.importorskip("openpyxl", reason="workbooks are read by the extra 'excel'")
    return real_data(REAL.get(name, name))


@cache
def released_split(name: str) -> Split:
    """Return a published split, built once per test run from the real annotations."""
    return build_released(name, real_folder(name))


def first_two_lines(outcome: Result) -> str:
    """Return the first two lines of the error of a command, after the usage that a wrong call prints."""
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    return "\n".join(outcome.stderr[outcome.stderr.index("Error:") :].splitlines()[:2])


def run_code_of(outcome: Result, names: dict[str, Any]) -> None:
    """Run the Python code of an error: its lines that are indented and no entry of a list."""
    lines = outcome.stderr[outcome.stderr.index("Error:") :].splitlines()
    code = [line.strip() for line in lines if line.startswith("  ") and not line.startswith("  - ")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # one line of code leaves a file open
        exec("\n".join(code), names)


READ, REFUSED, EITHER = "read", "refused", "either"  # what the documentation promises; EITHER where it promises nothing


def read_or_mend(
    call: Callable[..., Result],
    arguments: Sequence[object],
    promised: str,
    says: str,
    mend: Callable[[], Any],
    made: str,
) -> tuple[Result, Sequence[object]]:
    """Return the outcome of a call that reads the arguments, at once or after the remedy, and the arguments read.

    says is a pattern of stderr, or of the first two lines of a refusal. mend applies the remedy and returns other
    arguments, or the names with which the code of the message writes the path ``made``.
    """
    outcome = call(*arguments)
    if outcome.exit_code == 0:
        assert promised != REFUSED, outcome.output
        assert promised == EITHER or re.search(says, outcome.stderr, re.IGNORECASE), outcome.output
        return outcome, arguments
    assert promised != READ, outcome.stderr
    assert re.search(says, first_two_lines(outcome), re.IGNORECASE), outcome.stderr
    mended = mend()
    if isinstance(mended, dict):
        run_code_of(outcome, mended)
        mended = [made]
    outcome = call(*mended)
    assert outcome.exit_code == 0, outcome.stderr
    return outcome, mended


class LocalServer:
    """A server on this machine, in a thread of its own until ``close``; ``url`` is its address without a path."""

    def __init__(self, answer: type[BaseHTTPRequestHandler], server: type[ThreadingHTTPServer] = ThreadingHTTPServer):
        class Handler(answer):  # type: ignore[misc, valid-type]
            def log_message(self, *args: Any) -> None:
                pass

        self.server = server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
