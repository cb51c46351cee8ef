"""Processes of the tests that train: killed ones, and several that train together.

They are forked from one server that has imported torch, because the import takes longer than a tiny training.
"""

import multiprocessing
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

CONTEXT = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
# torch imports torch._dynamo for its first optimiser, and pyarrow imports pandas for its first Parquet file.
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "pyarrow.dataset", "meidbench.baselines.training", "meidbench.cli.training"]
)
# For a process that hangs; no test is slow enough to need it.
PATIENCE = 600


def _run(work: Callable[..., None], arguments: Sequence[object], environment: Mapping[str, str], output: Path) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        with Path(f"{output}.{stream}").open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def start(work: Callable[..., None], *arguments: object, output: Path, **environment: str) -> multiprocessing.Process:
    """Start ``work`` in a process; it writes OUTPUT.stdout and OUTPUT.stderr."""
    process = CONTEXT.Process(target=_run, args=(work, arguments, environment, output))
    process.start()
    return process


def start_two(work: Callable[..., None], *arguments: object, folder: Path) -> None:
    """Run ``work`` in two processes that train together, as torchrun starts them; they write FOLDER/RANK.stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        start(work, *arguments, output=folder / rank, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")
    ]
    try:
        for worker in workers:
            worker.join(PATIENCE)
    finally:
        for worker in workers:
            worker.kill()
    told = [(folder / f"{rank}.stderr").read_text() for rank in (0, 1)]
    assert [worker.exitcode for worker in workers] == [0, 0], told


def run_command(*arguments: str) -> None:
    """Run a command of meidbench."""
    from meidbench.cli import main

    main(arguments, standalone_mode=False)


def train_run(split: Path, features: Path, tables: dict, folder: Path, last: tuple[int, int] | None = None) -> None:
    """Train a run, and write to FOLDER.calls how many calls of Python functions each stage made.

    ``last`` is a stage and the number of its call at which the process kills itself.
    """
    from meidbench.baselines import Config, train

    stage, calls = 0, [0, 0]

    def report(line: str) -> None:
        nonlocal stage
        stage = max(stage, line.startswith("second stage"))

    def count(frame: object, event: str, argument: object) -> None:
        calls[stage] += 1
        if last is not None and (stage, calls[stage]) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    config = Config.from_tables(tables)
    sys.settrace(count)  # it is called for calls alone, because it returns no function for the lines
    train(split, features, config, folder, report=report)
    sys.settrace(None)
    Path(f"{folder}.calls").write_text(" ".join(map(str, calls)))


def make_hopeless(number: int) -> type:
    """Return the class of a study in ``meidbench.baselines.tuning`` in which one trial seems to find nothing on val.

    The pruner ends such a trial for certain, whatever its values are.
    """
    from meidbench.baselines import tuning

    class HopelessTrialStudy(tuning._Study):
        def _make_watch(self, study, trial, config):
            watch = super()._make_watch(study, trial, config)
            if trial != number:
                return watch
            return lambda stage, position, means: watch(stage, position, replace(means, overall=0.0, tail=0.0))

    return HopelessTrialStudy


def tune_study(
    out: Path, trials: int, constants: dict, hopeless: int, arguments: dict, last: int | None = None
) -> None:
    """Tune, and write to OUT.calls how many calls of Python functions the trials made.

    ``constants`` replaces numbers of ``meidbench.baselines.tuning``; ``hopeless`` is a trial that is pruned; ``last``
    is the call at which the process kills itself.
    """
    import optuna  # noqa: F401
    import psycopg  # noqa: F401

    from meidbench.baselines import tuning

    vars(tuning).update(constants, _Study=make_hopeless(hopeless))
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def report(line: str) -> None:
        print(line, flush=True)  # noqa: T201
        if line.startswith("bce: searching"):
            sys.settrace(count)

    tuning.tune(out=out, trials=trials, report=report, **arguments)
    sys.settrace(None)
    Path(f"{out}.calls").write_text(str(calls))


def train_and_kill(
    split: Path, features: Path, tables: dict, folder: Path, kills: Sequence[tuple[int, float, float]]
) -> list[bool]:
    """Train FOLDER/whole, and FOLDER/killed, which is killed at drawn calls and resumed until it is finished.

    A kill is a stage, and the two shares of the stage's calls between which the call is drawn. The returned list holds
    whether each one killed its process, which may have ended before that call.
    """
    seed = int.from_bytes(os.urandom(2), "big")
    print(f"the calls at which runs are killed are drawn from the seed {seed}")  # noqa: T201
    drawn = random.Random(seed)

    def attempt(name: str, last: tuple[int, int] | None = None) -> bool:
        output = folder / f"{name}-output"
        process = start(train_run, split, features, tables, folder / name, last, output=output)
        process.join(PATIENCE)
        code = process.exitcode
        process.kill()
        assert code == 0 or (last and code == -signal.SIGKILL), (seed, code, Path(f"{output}.stderr").read_text())
        return code != 0

    attempt("whole")
    calls = [int(number) for number in (folder / "whole.calls").read_text().split()]
    killed = []
    for stage, low, high in kills:
        last = drawn.randrange(int(calls[stage] * low), int(calls[stage] * high))
        killed.append(attempt("killed", (stage, last)))
        # The second stage begins with its configuration, after the first.
        assert calls[1] == 0 or (folder / "killed" / "config.json").is_file() == bool(stage), seed
    attempt("killed")
    return killed
