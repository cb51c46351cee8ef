"""Count how far four things travel through the code: an annotation row, a score matrix, a frame, a method's name.

    python tests/walks.py

Each walk is one command on small invented data. A table in Markdown gives, for all functions of the product that the
command calls in this process, the modules entered, the calls, and the changes from one module to another. Decoding runs
in processes of its own and is not counted.
"""

import csv
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from click.testing import CliRunner
from make_videos import pictures, write_video

TESTS = Path(__file__).parent
FOLDERS = tuple(str(TESTS.parent / name) + "/" for name in ("meidbench", "baselines", "splits"))


class Walk:
    """The calls of product functions, as ``sys.setprofile`` tells them."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.calls = 0
        self.changes = 0
        self._stacks = threading.local()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_code.co_filename
        if event not in ("call", "return") or not module.startswith(FOLDERS) or frame.f_code.co_name == "<module>":
            return
        stack = self._stacks.__dict__.setdefault("modules", [])
        if event == "call":
            self.modules.add(module)
            self.calls += 1
            self.changes += bool(stack) and stack[-1] != module
            stack.append(module)
        elif stack:
            stack.pop()
            self.changes += bool(stack) and stack[-1] != module


def walk(command: Callable[[], None]) -> Walk:
    """Return what a command walks through when it is run for the second time, with all modules imported."""
    command()
    counted = Walk()
    threading.setprofile(counted)
    sys.setprofile(counted)
    try:
        command()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return counted


def call(*words: object) -> None:
    """Run ``meidbench`` in this process."""
    from meidbench.cli import main

    outcome = CliRunner().invoke(main, [str(word) for word in words])
    if outcome.exit_code:
        raise SystemExit(f"{words}: {outcome.output}")


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split, features, clips = folder / "toylt.parquet", folder / "features", folder / "clips"
        build = ("build-splits", TESTS / "toy" / "toylt.toml", "--annotations", TESTS / "toy", "--out", folder)
        call(*build, "--format", "parquet", "--format", "csv")
        features.mkdir()
        with (folder / "toylt.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                np.save(features / f"{row['video_id']}.npy", np.ones((4, 8), np.float32))
        clips.mkdir()
        write_video(clips / "CLIP.mp4", pictures(8))
        turn = iter(range(100))
        walks = {
            "an annotation row: `build-splits`": lambda: call(*build),
            "a score matrix: `evaluate`": lambda: call(
                "evaluate", TESTS / "toy" / "predictions.npz", "--split", split, "--json", folder / "result.json"
            ),
            "a frame: `extract-features`": lambda: call(
                *("extract-features", clips, "--out", folder / f"clip{next(turn)}.h5", "--backbone", "resnet50"),
                *("--frames", 2, "--weights", "random", "--seed", 0, "--workers", 1, "--device", "cpu"),
            ),
            "a method's name: `train --method meid`": lambda: call(
                *("train", "--split", split, "--features", features, "--method", "meid", "--epochs", 1),
                *("--out", folder / f"run{next(turn)}", "--device", "cpu"),
            ),
        }
        sys.stdout.write("| walk | modules | calls | changes of module |\n|---|---|---|---|\n")
        for title, command in walks.items():
            found = walk(command)
            sys.stdout.write(f"| {title} | {len(found.modules)} | {found.calls:,} | {found.changes:,} |\n")


if __name__ == "__main__":
    main()
