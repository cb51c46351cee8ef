"""Interrupted commands end with one line and their exit code; killed and interrupted ones go on to the same result."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import click
import pytest
from material import TOY
from processes import PATIENCE, start

from meidbench.cli import Interrupted, _signals_raise
from meidbench.cli import main as group
from meidbench.extraction.decoder_pool import DecoderPool, DecodingSettings, VideoFinished
from meidbench.extraction.frames import FrameRule
from meidbench.extraction.videos import find_videos

pytestmark = pytest.mark.usefixtures("heard_signals")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
KEEPING = (
    *("download", "extract-features", "merge-features", "pack-features", "word-features"),
    *("train", "tune", "reproduce", "demo"),
)
# The function in which a command spends its time, and the command's arguments.
WORK = {
    "download": ("annotations.download.download_annotations", ["videolt", "--accept-licence"]),
    "build-splits": ("construction.plans.read_videos", ["charadeslt", "--variant", "pareto"]),
    "import-split": (
        "annotations.tables.split_from_files",
        [TOY / "toylt.toml", "--out", "OUT", "--head-above", 2, "--tail-up-to", 1],
    ),
    "stats": ("splits.statistics.split_statistics", ["SPLIT"]),
    "audit": ("splits.statistics.audit_split", ["SPLIT"]),
    "extract-features": ("extraction.videos.find_videos", [TOY, "--out", "OUT"]),
    "merge-features": ("features.feature_file.read_header", [TOY / "toylt.toml", "--out", "OUT"]),
    "pack-features": ("features.packing.pack", [TOY, "--out", "OUT"]),
    "word-features": (
        "features.words.make_word_features",
        [TOY / "toylt.toml", "--annotations", TOY, "--out", "OUT"],
    ),
    "verify-features": ("features.verification.verify", [TOY]),
    "methods": ("baselines.methods.methods_table", []),
    "train": ("baselines.training.train", ["--split", "SPLIT", "--features", TOY, "--method", "bce"]),
    "tune": (
        "baselines.tuning.tune",
        ["--split", "SPLIT", "--features", TOY, "--method", "bce", "--trials", 1, "--out", "OUT"],
    ),
    "predict": ("baselines.inference.predict", [TOY, "--out", "OUT"]),
    "zero-shot": (
        "baselines.zero_shot.predict_zero_shot",
        ["--split", "SPLIT", "--features", TOY, "--out", "OUT"],
    ),
    "evaluate": ("evaluation.evaluate.evaluate_scores", [TOY / "predictions.npz", "--split", "SPLIT"]),
    "compare": ("evaluation.compare.compare", [TOY / "predictions.npz", "--split", "SPLIT"]),
    "reproduce": ("baselines.reproduction.render.render_tables", ["table1", "--out", "OUT"]),
    "demo": ("baselines.demo.run_demo", ["--out", "OUT"]),
    "datasets": ("annotations.annotation_paths", []),
}


def test_every_command_is_interrupted_here():
    assert set(WORK) == set(group.commands)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("command", WORK)
def test_an_interrupted_command_ends_with_one_line(run, toy_split_file, tmp_path, monkeypatch, command, number):
    monkeypatch.setattr(f"meidbench.{WORK[command][0]}", lambda *_, **__: os.kill(os.getpid(), number))
    places = {"SPLIT": toy_split_file, "OUT": tmp_path / "out"}
    before = [signal.getsignal(each) for each in SIGNALS]
    outcome = run(command, *(places.get(argument, argument) for argument in WORK[command][1]))
    assert outcome.exit_code == CODES[number], outcome.output
    *_, last = outcome.stderr.splitlines()
    kept = "the same command goes on" if command in KEEPING else "the same command starts from the beginning"
    assert last.startswith(f"interrupted by {number.name}: ") and last.endswith(kept)
    assert "Traceback" not in outcome.output and "Aborted" not in outcome.output and outcome.stdout == ""
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert not (tmp_path / "out").exists()


def test_a_second_signal_does_not_take_the_line(run, monkeypatch):
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def report_interrupted(line: str) -> None:
        interrupt()
        click.echo(line, err=True)

    monkeypatch.setattr("meidbench.annotations.annotation_paths", interrupt)
    monkeypatch.setattr("meidbench.cli.report", report_interrupted)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = run("datasets")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.exit_code == 143 and outcome.stderr.startswith("interrupted by SIGTERM: ")


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with _signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_leaves_time_to_clean_up(monkeypatch):
    cleaned = []
    for pause in (60, 0):
        monkeypatch.setattr("meidbench.cli._CLEAN_UP_S", pause)
        with pytest.raises(Interrupted), _signals_raise():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                cleaned.append(pause)
    assert cleaned == [60]  # a signal that comes late ends a clean-up that hangs


def test_a_signal_inside_a_finaliser_is_not_lost(capfd):
    hook = sys.unraisablehook
    with pytest.raises(Interrupted) as caught, _signals_raise():
        for _ in range(100):
            batch = set()
            weakref.finalize(batch, os.kill, os.getpid(), signal.SIGTERM).atexit = False
            del batch
            time.sleep(0.05)
    assert caught.value.number == signal.SIGTERM and capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_a_forked_child_ends_at_once():
    code = (
        "import os, signal\nfrom meidbench.cli import _signals_raise\nwith _signals_raise():\n"
        "    child = os.fork()\n    if child == 0:\n        os.kill(os.getpid(), signal.SIGTERM)\n        os._exit(1)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, f"{-signal.SIGTERM}\n", "")


def test_commands_run_in_a_thread(run):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run("datasets").exit_code))
    thread.start()
    thread.join()
    assert codes == [0]


def test_one_process_of_torchrun_tells(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("meidbench.annotations.annotation_paths", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run("datasets")
    assert outcome.exit_code == 143 and outcome.output == ""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_decoders_ignore_the_signals_of_a_terminal(clips, number):
    """All processes receive them; a decoder that ended would count as one that crashed on its video."""
    videos = find_videos(clips).videos
    finished = []
    with DecoderPool(videos, DecodingSettings(FrameRule.from_text("uniform", frames=2)), processes=1) as pool:
        pids = {decoder.process.pid for decoder in pool._decoders}
        for event in pool:
            if not finished:
                [os.kill(pid, number) for pid in pids]
            if hasattr(event, "release"):
                event.release()
            if isinstance(event, VideoFinished):
                finished.append(event)
            assert {decoder.process.pid for decoder in pool._decoders} == pids
    assert len(finished) == len(videos)


def run_demo(folder: Path, call: int, number: int) -> None:
    """Run the demo and send this process a signal at a step of training or a write of a file; write the exit code."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server of processes may have been told to ignore it
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)

    def counted(function):
        return lambda *arguments: (count(), function(*arguments), count())[1]

    register_optimizer_step_post_hook(count)
    os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)
    try:
        group(["demo", "--out", str(folder), "--epochs", "2", "--bootstrap", "2"])
    except SystemExit as end:
        Path(f"{folder}.end").write_text(f"{end.code} {calls}")


def test_a_killed_and_interrupted_demo_ends_with_the_same_report(tmp_path):
    seed = int.from_bytes(os.urandom(2), "big")
    drawn = random.Random(seed)

    def attempt(name, call=0, number=0):
        end = tmp_path / f"{name}.end"
        end.unlink(missing_ok=True)
        process = start(run_demo, tmp_path / name, call, number, output=tmp_path / "output")
        process.join(PATIENCE)
        code, calls = map(int, end.read_text().split()) if end.exists() else (process.exitcode, 0)
        stdout, stderr = ((tmp_path / f"output.{stream}").read_text() for stream in ("stdout", "stderr"))
        return code, calls, stdout, stderr

    code, calls, whole, stderr = attempt("whole")
    assert code == 0 and calls > 100, stderr
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        # Later attempts have less left to do.
        code, _, stdout, stderr = attempt("killed", drawn.randrange(calls // 10, calls // 4), number)
        assert stdout == "", (seed, number, code, stderr)
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL, (seed, stderr)
        else:
            assert code == CODES[number], (seed, stderr)
            assert stderr.splitlines()[-1].startswith(f"interrupted by {number.name}: the runs are kept"), (
                seed,
                stderr,
            )
    code, _, stdout, stderr = attempt("killed")
    assert (code, stdout) == (0, whole), (seed, stderr)

    def names_in(folder):  # TensorBoard's files, where it is installed, are named by the clock
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
        return [name for name in names if not name.name.startswith("events.out.tfevents")]

    names = names_in(tmp_path / "whole")
    assert names_in(tmp_path / "killed") == names
    for name in names:
        if name.suffix in (".html", ".parquet", ".h5") or name.name.startswith("result-"):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), (seed, name)
