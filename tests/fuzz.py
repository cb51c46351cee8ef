"""Damaged inputs of every form, run through the commands that read them, and counted.

``python tests/fuzz.py --mutants 10000 --out table.md`` takes 15 minutes on one core; ``--only FORM`` takes one form.
A mutant is drawn from the seed, the form and its number, so it can be made again: ``--keep FOLDER`` writes the
mutants that gave a traceback, a hang, a crash or another number, with their messages.

A command runs in a worker process, which has a limit of memory and, per mutant, of time. Its outcomes:

- refused: exit code 1 or 2 with a message
- same: the output of the sound input
- other: another number or another content, without an error
- traceback, hang, crash: never right
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
from damage import STRUCTURES, damage_bytes

WRONG = ("traceback", "hang", "crash")
EVALUATE = "evaluate {} --split split.parquet --json -"
PREDICT = "predict run --features {} --out out.parquet --device cpu"
TRAIN = (
    "train --split split.parquet --features f.h5 --method bce --aggregator mean --device cpu --epochs 3 "
    "--set frames.train=6 --set frames.test=6 --set schedule.batch_size=64 --json --out "
)
IMPORT = "import-split {} --head-above 30 --tail-up-to 12 --name toy --out out.parquet"
WORDS = "word-features now/toy/toylt.toml --annotations now/toy --out out.h5 --dim 4"
DRAW = "build-splits now/toy/toylt.toml --annotations now/toy --out out --variant pareto"
LISTS = "build-splits now/lists/lists.toml --annotations now/lists --out out --variant pareto"
PLAN = "build-splits now/plans/{} --out out"


@dataclass(frozen=True)
class Form:
    """One kind of input: the file that is damaged, how it is built, and the commands that read it.

    ``{}`` is the damaged file. A form with a ``folder`` needs others beside it: the folder is copied to ``now/`` each
    time. ``checksum`` says that the form has a checksum over its content, so that damaged bytes give no other number.
    """

    file: str
    structure: str
    commands: tuple[str, ...]
    folder: str = ""
    checksum: bool = False


FORMS = {
    "predictions, Parquet": Form("p.parquet", "parquet", (EVALUATE,), checksum=True),
    "predictions, NPZ": Form("p.npz", "zip", (EVALUATE,), checksum=True),
    "predictions, HDF5": Form("p.h5", "hdf5", (EVALUATE,)),
    "predictions, HDF5 with checksums": Form("packed.h5", "hdf5", (EVALUATE,)),
    "predictions, CSV": Form("p.csv", "text", (EVALUATE,)),
    "predictions, Charades text": Form("p.txt", "text", (EVALUATE,)),
    "predictions, Parquet by class": Form("wide.parquet", "parquet", (EVALUATE,)),
    "predictions, Parquet of lists": Form("lists.parquet", "parquet", (EVALUATE,)),
    "predictions, tabs": Form("p.tsv", "text", (EVALUATE,)),
    "predictions, JSON lines": Form("p.jsonl", "json", (EVALUATE,)),
    "predictions, JSON lines by class": Form("wide.jsonl", "json", (EVALUATE,)),
    "predictions, .npy": Form("p.npy", "npy", (EVALUATE + " --ids ids.txt",)),
    "ids of predictions, .npy": Form("ids.txt", "text", (EVALUATE.format("p.npy") + " --ids {}",)),
    "predictions, several files": Form("ranks/1.csv", "text", (EVALUATE.format("now/ranks"),), "ranks"),
    "split": Form(
        "split.parquet", "parquet", ("stats {} --json", "evaluate p.parquet --split {} --json -"), checksum=True),
    "Charades annotations": Form("toy/Toy_v1_train.csv", "text", (DRAW,), "toy", checksum=True),
    "Charades descriptions": Form("toy/Toy_v1_train.csv", "text", (WORDS,), "toy"),
    "Charades classes": Form("toy/Toy_v1_classes.txt", "text", (DRAW,), "toy", checksum=True),
    "assignment": Form("toy/toylt.assignment.json", "json", (DRAW.split(" --variant")[0],), "toy"),
    "manifest": Form("toy/toylt.toml", "text", (DRAW,), "toy"),
    "VideoLT lists": Form("lists/train.lst", "text", (LISTS,), "lists", checksum=True),
    "plan": Form("plans/film.toml", "text", (PLAN.format("film.toml"),), "plans"),
    "table of a plan, CSV": Form("plans/videos.csv", "text", (PLAN.format("film.toml"),), "plans"),
    "ActivityNet": Form("plans/anet.json", "json", (PLAN.format("anet.toml"),), "plans"),
    "YouTube-8M labels": Form("plans/train_labels.csv", "text", (PLAN.format("yt8m.toml"),), "plans"),
    "YouTube-8M vocabulary": Form("plans/vocabulary.csv", "text", (PLAN.format("yt8m.toml"),), "plans"),
    "table, CSV": Form("t.csv", "text", (IMPORT,)),
    "table, TSV": Form("t.tsv", "text", (IMPORT,)),
    "table, Parquet": Form("t.parquet", "parquet", (IMPORT,)),
    "table, JSON": Form("t.json", "json", (IMPORT,)),
    "table, JSON lines": Form("t.jsonl", "json", (IMPORT,)),
    "list": Form("l.txt", "text", (IMPORT.replace("{}", "train={}"),)),
    "list of mmaction2": Form("m.txt", "text", (IMPORT.replace("{}", "train={} --format mmaction2"),)),
    "list of SlowFast": Form("s.csv", "text", (IMPORT.replace("{}", "train={} --format slowfast"),)),
    "Something-Something": Form("something.json", "json", (IMPORT.replace("{}", "train={}"),)),
    "Something-Something, classes": Form(
        "labels.json", "json", ("import-split train=something.json --class-names {}" + IMPORT.split("{}")[1],)
    ),
    "Kinetics": Form("kinetics.csv", "text", (IMPORT,)),
    "HACS Clips": Form("hacs.csv", "text", (IMPORT,)),
    "ActivityNet without database": Form("anet_train.json", "json", (IMPORT,)),
    "class names": Form("names.txt", "text", ("import-split t.csv --class-names {}" + IMPORT.split("{}")[1],)),
    "feature file": Form("f.h5", "hdf5", (PREDICT,), checksum=True),
    "feature file, verified": Form("f.h5", "hdf5", ("verify-features {} --split split.parquet",), checksum=True),
    "feature file, foreign": Form("foreign.h5", "hdf5", (PREDICT,)),
    "HDF5 with one dataset per video": Form("grouped.h5", "hdf5", (PREDICT, "pack-features {} --out out.h5")),
    "folder of .npy": Form("npy/*.npy", "npy", (PREDICT.format("now/npy"),), "npy"),
    "folder of .npy, packed": Form("npy/*.npy", "npy", ("pack-features now/npy --out out.h5",), "npy"),
    "folder of .npz": Form("npz/*.npz", "zip", (PREDICT.format("now/npz"),), "npz", checksum=True),
    "HDF5 with ids in the root": Form("root.h5", "hdf5", (PREDICT, "pack-features {} --out out.h5")),
    "HDF5 with one group per video": Form("inner.h5", "hdf5", (
        PREDICT + " --dataset rgb", "pack-features {} --dataset rgb --out out.h5")),
    "part of an extraction": Form("parts/x.part-1-of-2.h5", "hdf5", (
        "merge-features now/parts/x.part-1-of-2.h5 now/parts/x.part-2-of-2.h5 --out out.h5",), "parts", checksum=True),
    "best.pt": Form("run/best.pt", "zip", ("predict now/run --out out.parquet --device cpu",), "run", checksum=True),
    "last.pt": Form("stopped/last.pt", "zip", (TRAIN + "now/stopped",), "stopped", checksum=True),
    "log.jsonl": Form("stopped/log.jsonl", "json", (TRAIN + "now/stopped",), "stopped"),
    "config.json": Form("run/config.json", "json", ("predict now/run --out out.parquet --device cpu",), "run"),
    "config.json, resumed": Form("stopped/config.json", "json", (TRAIN + "now/stopped",), "stopped"),
    "result of a finished run": Form("run/result-test.json", "json", (TRAIN + "now/run",), "run"),
    "predictions of a finished run": Form("run/predictions-test.parquet", "parquet", (TRAIN + "now/run",), "run"),
    "weights, .pt": Form("w.pt", "zip", ("weights {}",), checksum=True),
    "weights, former .pt": Form("former.pt", "bytes", ("weights {}",)),
    "weights, safetensors": Form("w.safetensors", "safetensors", ("weights {}",)),
    "text vectors": Form("text.npz", "zip", (
        "zero-shot --features f.h5 --split split.parquet --text {} --out out.parquet --json",), checksum=True),
    "--set of train": Form("settings.txt", "text", ("settings {}",)),
    "--set of build-splits": Form("targets.txt", "text", ("targets {}",)),
}  # fmt: skip


# --- the worker: makes the inputs, damages them, runs the commands --------------------------------------------------


def serve(work: Path, seed: int, megabytes: int, connection: Connection) -> None:
    """Answer requests (form, number) with (kind of damage, outcome, message)."""
    import resource

    import torch

    import meidbench.files

    os.chdir(work)
    torch.set_num_threads(1)
    meidbench.files.HDF5_SECONDS = 5.0
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), resource.RLIM_INFINITY))
    sound: dict[str, str] = {}
    while (request := connection.recv()) is not None:
        connection.send(judge(*request, seed, sound))


def judge(name: str, number: int, seed: int, sound: dict[str, str]) -> tuple[str, str, str]:
    """Return (kind of damage, outcome, message) of a mutant; ``sound`` collects the outputs of the sound inputs.

    The working directory has the inputs. The outcome is "unfit" if the sound input is not accepted.
    """
    form = FORMS[name]
    content = find_file(form).read_bytes()
    if name not in sound:
        outcome, text = run_form(form, content)
        if outcome != "done":
            return "none", "unfit", text
        sound[name] = text
    kind, raw = damage(random.Random(f"{seed} {name} {number}"), content, form)
    outcome, text = run_form(form, raw)
    if outcome == "done":
        return kind, "same" if text == sound[name] else "other", ""
    return kind, outcome, text


def find_file(form: Form) -> Path:
    """Return the sound file of a form; of a folder with many, the first."""
    return min(Path().glob(form.file))


def damage(draw: random.Random, raw: bytes, form: Form) -> tuple[str, bytes]:
    """Return the kind of damage (bytes, or the structure of the form) and the damaged content, which is another one."""
    while True:
        kind = draw.choice(["bytes", form.structure])
        try:
            damaged = STRUCTURES.get(kind, damage_bytes)(draw, raw)
        except Exception:
            kind, damaged = "bytes", damage_bytes(draw, raw)
        if damaged != raw:
            return kind, damaged


def run_form(form: Form, raw: bytes) -> tuple[str, str]:
    """Run the commands of a form on a content: "done" and a digest of all output, or the outcome and its message."""
    forget_files()
    for leftover in ("now", "out", "out.h5", "out.parquet"):
        shutil.rmtree(leftover, ignore_errors=True) if Path(leftover).is_dir() else Path(leftover).unlink(
            missing_ok=True
        )
    Path("now").mkdir()
    if form.folder:
        shutil.copytree(form.folder, f"now/{form.folder}")
    path = "now" / find_file(form)
    path.write_bytes(raw)
    digest, refused = hashlib.sha256(), ""
    for command in form.commands:
        arguments = [argument.replace("{}", str(path)) for argument in shlex.split(command)]
        outcome, text = run_command(arguments)
        if outcome == "traceback":
            return outcome, text
        refused = refused or (text if outcome == "refused" else "")
        digest.update(text.encode("utf-8", "replace"))
    if refused:
        return "refused", refused
    for output in ("out.h5", "out.parquet", *sorted(map(str, Path("out").glob("*.parquet")))):
        if Path(output).is_file():
            digest.update(describe_output(Path(output)))
    return "done", digest.hexdigest()


def forget_files() -> None:
    """Clear what this process remembers of manifests by their path."""
    from meidbench.splits import manifests, split

    for found in (*vars(manifests).values(), *vars(split).values()):
        if hasattr(found, "cache_clear"):
            found.cache_clear()


def run_command(arguments: list[str]) -> tuple[str, str]:
    """Run a command in this process: "done" and its stdout, or the outcome and its message."""
    from click.testing import CliRunner

    from meidbench.cli import main
    from meidbench.errors import MeidbenchError

    if arguments[0] in FUNCTIONS:
        try:
            return "done", FUNCTIONS[arguments[0]](Path(arguments[1]))
        except MeidbenchError as error:
            return "refused", str(error)
        except Exception:
            return "traceback", traceback.format_exc()
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", "".join(traceback.format_exception(result.exception))
    if "Traceback (most recent" in result.stderr or (result.exit_code and not result.output.strip()):
        return "traceback", f"exit code {result.exit_code}: {result.stderr}"
    if result.exit_code:
        return "refused", result.stderr or result.stdout
    return "done", result.stdout


def describe_output(path: Path) -> bytes:
    """Return what counts of an output: the numbers of features, or rows in any order with facts but for the sources."""
    if path.suffix != ".h5":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[b"meidbench"])
        rows = sorted(map(repr, table.to_pylist()))
        return repr((rows, {key: metadata[key] for key in metadata if key != "sources"})).encode()
    import h5py

    with h5py.File(path) as file:
        return b"".join(file[name][()].tobytes() for name in ("video_ids", "status", "row_counts", "features"))


def read_weights(path: Path) -> str:
    from test_weights import SMALL, fresh

    from meidbench.extraction.encoders.weights import load_weights

    model = fresh()
    load_weights(model, SMALL, str(path))
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def read_settings(path: Path) -> str:
    from meidbench.baselines.recipes import resolve
    from meidbench.splits.split import load_split

    lines = path.read_text("utf-8", "surrogateescape").split("\n")
    return repr(resolve("meid", load_split("split.parquet"), settings=[line for line in lines if line]))


def read_targets(path: Path) -> str:
    from meidbench.errors import MeidbenchError

    lines = path.read_text("utf-8", "surrogateescape").split("\n")
    options = [part for line in lines if line for part in ("--set", line)]
    command = [
        "build-splits",
        "toy/toylt.toml",
        "--annotations",
        "toy",
        "--out",
        "out",
        "--variant",
        "pareto",
        "--json",
    ]
    outcome, text = run_command([*command, *options])
    if outcome == "traceback":
        raise RuntimeError(text)
    if outcome == "refused":
        raise MeidbenchError(text)
    return text


FUNCTIONS = {"weights": read_weights, "settings": read_settings, "targets": read_targets}


# --- the counts -----------------------------------------------------------------------------------------------------


class Worker:
    """A worker process; it is started again after a crash, and ended after the time limit."""

    def __init__(self, work: Path, seed: int, megabytes: int, seconds: float) -> None:
        self.settings, self.seconds = (work, seed, megabytes), seconds
        self.process: Any = None

    def ask(self, name: str, number: int) -> tuple[str, str, str]:
        """Return (kind of damage, outcome, message) of a mutant."""
        from processes import CONTEXT

        if self.process is None:
            self.connection, theirs = CONTEXT.Pipe()
            self.process = CONTEXT.Process(target=serve, args=(*self.settings, theirs))
            self.process.start()
            theirs.close()
            self.answered: set[str] = set()
        self.connection.send((name, number))
        # The first mutant of a form waits for the sound input, and for imports.
        limit = self.seconds if name in self.answered else self.seconds + 120
        try:
            if not self.connection.poll(limit):
                self.stop()
                return "bytes", "hang", f"no end in {limit:.0f} s"
            self.answered.add(name)
            answer: tuple[str, str, str] = self.connection.recv()
            return answer
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.stop()
            return "bytes", "crash", f"the process ended with {code}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def count(
    names: list[str], mutants: int, seed: int, seconds: float, megabytes: int, keep: Path | None
) -> Iterator[tuple]:
    """Yield (form, number, kind, outcome, message) of each mutant; the forms have the same number of mutants."""

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_inputs_apart(work)
        worker = Worker(work, seed, megabytes, seconds)
        try:
            for index in range(mutants):
                name, number = names[index % len(names)], index // len(names)
                kind, outcome, message = worker.ask(name, number)
                yield name, number, kind, outcome, message
                if keep and outcome in (*WRONG, "other"):
                    form, draw = FORMS[name], random.Random(f"{seed} {name} {number}")
                    kept = keep / outcome / f"{name.replace('/', '-')}-{number}{Path(form.file).suffix}"
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    raw = min(work.glob(form.file)).read_bytes()
                    kept.write_bytes(damage(draw, raw, form)[1])
        finally:
            worker.stop()


def make_inputs_apart(work: Path) -> None:
    """Make the inputs in a process of their own, so that this one stays without threads of libraries."""
    from fuzz_inputs import make_inputs
    from processes import CONTEXT

    process = CONTEXT.Process(target=make_inputs, args=(work, TRAIN))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the sound inputs could not be made")


def as_table(counts: dict[tuple[str, str], Counter[str]]) -> str:
    """Lay out the counts as Markdown: one line per form, and the sum. "Other" is told apart by the kind of damage."""
    head = ["input", "mutants", "refused", "same", "other: bytes", "other: edited", *WRONG]
    rows = []
    for name in dict.fromkeys(name for name, _ in counts):
        of_bytes = counts.get((name, "bytes"), Counter())
        every = sum((outcomes for (form, _), outcomes in counts.items() if form == name), Counter())
        others = [of_bytes["other"], every["other"] - of_bytes["other"]]
        rows.append([name, every.total(), every["refused"], every["same"], *others, *(every[wrong] for wrong in WRONG)])
    rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, len(head)))])
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    lines += [f"| {row[0]} | {' | '.join(f'{cell:,}' for cell in row[1:])} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage inputs, run the commands, count the outcomes.")
    parser.add_argument("--mutants", type=int, default=len(FORMS) * 4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(FORMS), help="a form; may be given several times")
    parser.add_argument("--out", type=Path, help="the table, in Markdown")
    parser.add_argument("--keep", type=Path, help="a folder for mutants that were not refused, and their messages")
    parser.add_argument("--seconds", type=float, default=30, help="per mutant")
    parser.add_argument("--megabytes", type=int, default=3072, help="of memory beyond that of the imports")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    log = (given.keep / "messages.jsonl") if given.keep else None
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
    start = shown = time.monotonic()
    for name, number, kind, outcome, message in count(
        given.only or list(FORMS), given.mutants, given.seed, given.seconds, given.megabytes, given.keep
    ):
        if outcome == "unfit":
            raise SystemExit(f"{name}: the sound input is not accepted: {message}")
        counts[name, kind][outcome] += 1
        if log:
            with log.open("a") as stream:
                stream.write(json.dumps([name, number, kind, outcome, message[-3000:]]) + "\n")
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            done = sum(map(sum, (outcomes.values() for outcomes in counts.values())))
            click.echo(f"{done:,} of {given.mutants:,} in {shown - start:.0f} s", err=True)
    table = as_table(counts)
    click.echo(f"{date.today()}, seed {given.seed}, {time.monotonic() - start:.0f} s\n\n{table}")
    if given.out:
        given.out.write_text(table)
    wrong = any(outcomes[outcome] for outcomes in counts.values() for outcome in WRONG)
    raise SystemExit(wrong or any(counts[name, "bytes"]["other"] for name in FORMS if FORMS[name].checksum))


if __name__ == "__main__":
    main()
