"""The effect of every ingredient of MEID, of every baseline, and of the readings of the distillation loss.

    python tests/benchmarks/ingredients.py Charades/ --out study --workers 2

The folder holds the official annotations of Charades. The task is CharadesLT with word features
(``meidbench.features.words``), for the part ``simulated`` with simulated ones: both are proxies, which say nothing
about vision. Every run is written to ``study/scores.json`` when it ends, and a call that was stopped, or killed,
goes on there. The Markdown tables of ``docs/ingredients.md`` go to stdout: the test mAP in per cent, mean and 95 %
interval over seeds (Student's t), and effects, which are differences within a seed. ``--workers 0`` only prints.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from meidbench.errors import MeidbenchError
from meidbench.evaluation.bootstrap import correct_holm
from meidbench.files import written_whole
from meidbench.names import WATERMARKS
from meidbench.splits.released import build_released

GROUPS = ("overall", "head", "medium", "tail")
LEVEL = 0.95
# So that one core needs half a minute for most runs.
EPOCHS, SECOND_EPOCHS, SIMULATED_EPOCHS = 20, 10, 10
COMMON = {
    "schedule.batch_size": 64,
    "schedule.lr": 3e-3,  # at 1e-3 models without clusters are far from trained after these epochs
    "frames.train": 32,
    "frames.test": 32,
    "selection.every": 2,
    "execution.device": "cpu",
    "execution.resident": "always",
    "execution.log_every": 1_000_000,
}
# The paper has a tenth of the first rate, for very many more steps; "a tenth of the rate" is a variant.
SECOND_RATE, TENTH = 1e-3, 3e-4
DRAWS = 2213  # the training videos; by themselves some samplers draw ten times as many in an epoch
DIM = 256
# The sizes of the published models are for features of 2,048 numbers.
SIZES = {
    "mean": {},
    "netvlad": {"aggregator.clusters": 16, "aggregator.hidden": 256},
    "nextvlad": {"aggregator.clusters": 16, "aggregator.hidden": 256, "aggregator.expansion": 1},
}
ATTENTION = {"model.attention_hidden": 64}
MOVE = {"model.clusters": 16, "model.codebook_width": 256, "model.hidden": 512}


@dataclass(frozen=True)
class Variant:
    """A method, its settings, and for a second stage the variant that is its first one."""

    method: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    first: str = ""


READINGS = {
    "none": {"model.distill_weight": 0.0},
    "unit": {"model.distill_var": "unit"},
    "batch": {"model.distill_var": "batch"},
    "all": {"model.distill_var": "all"},
    "compiled necks": {"model.distill_var": "unit", "model.neck_act": "lrelu", "model.neck_norm": "l2"},
    "batch, head detached": {"model.distill_var": "batch", "model.distill_detach_head": True},
}
READING = "batch"  # of the parts that are not about the readings
NO_SELECTION, NO_MOTION = {"model.selection": False}, {"stage2.motion.when": "none"}
NO_SAMPLING = {"stage2.sampler.name": "instance"}
# Tables 7, supplementary 1 and 2, and the paper's rate.
DETAILS: dict[str, dict[str, Any]] = {
    "beta 0.3": {"model.beta": 0.3},
    "beta 0.7": {"model.beta": 0.7},
    "static row the sum": {"stage2.motion.static": "sum"},
    "static row of zeros": {"stage2.motion.static": "none"},
    "early fusion": {"model.fuse_stage": "early"},
    "late fusion": {"model.fuse_stage": "late"},
    "a tenth of the rate": {"stage2.schedule.lr": TENTH},
}

BASELINES = (
    *("bce", "focal", "cb", "ldam", "eql", "cbs", "srs", "mixup", "framestack", "db", "asl", "logit_adjusted"),
    *("repeat_factor", "class_aware"),
)
ALONE = ("linear_probe", "move_aggregator", "move")  # they have aggregators of their own, or none


def _list_variants() -> dict[str, Variant]:
    variants = {name: Variant(name) for name in (*BASELINES, *ALONE)}
    for name in ("db", "repeat_factor", "class_aware"):
        variants[name] = Variant(name, {"sampler.samples_per_epoch": DRAWS})
    variants["linear_probe, balanced"] = Variant("linear_probe", {"model.class_weight": "balanced"})
    variants["block"] = Variant("meid_block")
    variants["block, distillation"] = Variant("meid_one", {"model.attention": "none"} | READINGS[READING])
    for name, reading in READINGS.items():
        variants[f"E1, {name}"] = Variant("meid_one", reading)
        variants[f"MEID, {name}"] = Variant("meid", reading, f"E1, {name}")
    for name, settings in DETAILS.items():
        variants[f"MEID, {name}"] = Variant("meid", READINGS[READING] | settings, f"E1, {READING}")
    seconds = {
        "plain second": NO_SELECTION | NO_MOTION | NO_SAMPLING,
        "E1": NO_SELECTION | NO_MOTION | NO_SAMPLING | {"model.arch": "e1"},
        "selection": NO_MOTION | NO_SAMPLING,
        "motion": NO_SELECTION | NO_SAMPLING,
        "sampling": NO_SELECTION | NO_MOTION,
        "selection, motion": NO_SAMPLING,
    }
    for name, settings in seconds.items():
        variants[f"E1 + {name}"] = Variant("meid", READINGS[READING] | settings, f"E1, {READING}")
    return variants


VARIANTS = _list_variants()
WHOLE, ONE = f"MEID, {READING}", f"E1, {READING}"
# An effect: the variant with an ingredient, and the one without it.
EFFECTS = {
    "embedding block (to focal loss)": ("block", "focal"),
    "frame attention": ("E1, none", "block"),
    "distillation, beside attention": (ONE, "E1, none"),
    "distillation, by itself": ("block, distillation", "block"),
    "attention and distillation": (ONE, "block"),
    "a plain second expert": ("E1 + plain second", ONE),
    "E1 a second time": ("E1 + E1", ONE),
    "selection, by itself": ("E1 + selection", "E1 + plain second"),
    "motion, by itself": ("E1 + motion", "E1 + plain second"),
    "sampling, by itself": ("E1 + sampling", "E1 + plain second"),
    "motion, beside selection": ("E1 + selection, motion", "E1 + selection"),
    "sampling, beside both": (WHOLE, "E1 + selection, motion"),
    "E2 (all three), to a plain second expert": (WHOLE, "E1 + plain second"),
    "E2, to E1 a second time": (WHOLE, "E1 + E1"),
    "E2, to E1 alone": (WHOLE, ONE),
    "distillation, in both stages": (WHOLE, "MEID, none"),
    "all of MEID, to its block": (WHOLE, "block"),
    "all of MEID, to class-balanced sampling": (WHOLE, "cbs"),
}
_INGREDIENTS = (
    *("block", "block, distillation", "E1, none", ONE, "E1 + plain second", "E1 + E1", "E1 + selection"),
    *("E1 + motion", "E1 + sampling", "E1 + selection, motion", WHOLE),
)
_ALL_READINGS = (
    *(f"E1, {name}" for name in READINGS),
    *(f"MEID, {name}" for name in READINGS if "detached" not in name),
)
# The variants of each part. Some readings are trained with the mean alone, to save time.
PARTS: dict[str, tuple[str, ...]] = {
    "readings": _ALL_READINGS,
    "ingredients": (*_INGREDIENTS, "focal", "cbs", "MEID, none"),
    "baselines": BASELINES,
    "alone": (*ALONE, "linear_probe, balanced"),
    "details": (WHOLE, *(f"MEID, {name}" for name in DETAILS)),
    "simulated": tuple(name for name in _ALL_READINGS if "detached" not in name),
}
FEWER_READINGS = ("E1, none", "E1, unit", ONE, "E1, compiled necks", "MEID, none", "MEID, unit", WHOLE)


@dataclass(frozen=True)
class Run:
    """One training: of a variant with an aggregator and a seed, on one of the tasks."""

    task: str
    aggregator: str
    variant: str
    seed: int

    @property
    def key(self) -> str:
        """The name of the run in the file of scores."""
        return f"{self.task} | {self.aggregator} | {self.variant} | {self.seed}"

    @property
    def first(self) -> "Run | None":
        """The run of the first stage."""
        first = VARIANTS[self.variant].first
        return dataclasses.replace(self, variant=first) if first else None

    def folder(self, root: Path) -> Path:
        """The folder of the run, which goes when the run has ended and no other needs it."""
        return root / "runs" / self.key.replace(" | ", "/").replace(" ", "_").replace(",", "")

    def features(self, root: Path) -> Path:
        """The features; word features are the same for every seed."""
        return root / ("words.h5" if self.task == "words" else f"simulated-{self.seed}.h5")

    def settings(self) -> list[str]:
        """The settings of the run, as ``meidbench train --set`` takes them."""
        variant = VARIANTS[self.variant]
        has_experts = variant.method.startswith("meid")
        values = COMMON | {"seed": self.seed} | (SIZES[self.aggregator] if self.aggregator != "none" else {})
        values |= variant.settings | (ATTENTION if has_experts else {})
        if variant.method.startswith("move"):
            values |= MOVE
        epochs = EPOCHS if self.task == "words" else SIMULATED_EPOCHS
        schedule = {"schedule.epochs": epochs, "schedule.milestones": [2 * epochs // 3]}
        if variant.method == "linear_probe":
            schedule = {}
            # It has no rate, and what takes the place of an epoch is a value of C, each of which is scored.
            values = {key: value for key, value in values.items() if key not in ("schedule.lr", "selection.every")}
        if variant.first:
            rate, later = values.pop("schedule.lr"), SECOND_EPOCHS if self.task == "words" else SIMULATED_EPOCHS
            schedule = {f"stage1.{key}": value for key, value in schedule.items()} | {"stage1.schedule.lr": rate}
            schedule |= {"stage2.schedule.epochs": later, "stage2.schedule.milestones": [2 * later // 3]}
            schedule |= {"stage2.schedule.lr": SECOND_RATE}
        return [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in (schedule | values).items()]


def list_runs(parts: Sequence[str], seeds: int) -> list[Run]:
    """Return the runs of parts in the order in which they are worth most: first stages before second ones."""
    runs: dict[Run, None] = {}

    def add(task: str, aggregator: str, names: Sequence[str]) -> None:
        for seed in range(seeds):
            for name in names:
                run = Run(task, aggregator, name, seed)
                for one in filter(None, (run.first, run)):
                    runs.setdefault(one)

    for aggregator in SIZES:
        for part in ("readings", "ingredients", "baselines"):
            if part in parts:
                is_short = part == "readings" and aggregator != "mean"
                add("words", aggregator, FEWER_READINGS if is_short else PARTS[part])
        if "alone" in parts:
            add("words", "none", PARTS["alone"])
    if "details" in parts:
        add("words", "mean", PARTS["details"])
    if "simulated" in parts:
        add("simulated", "mean", PARTS["simulated"])
    return list(runs)


# --- a worker --------------------------------------------------------------------------------------------------------

_OPENED: dict[str, Any] = {}


def _start(annotations: Path, parent: int) -> None:
    """Load what all runs of a worker share, and end with the process that started it, even a killed one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    _OPENED["split"] = build_released("charadeslt", annotations)


def carry_out(run: Run, root: Path) -> dict[str, Any]:
    """Train a run, and return its numbers."""
    from meidbench.baselines import resolve, train
    from meidbench.features import open_features

    split, path, begun = _OPENED["split"], run.features(root), time.process_time()
    if _OPENED.get("path") != path:
        _OPENED.update(path=path, features=open_features(path))
    variant, aggregator = VARIANTS[run.variant], None if run.aggregator == "none" else run.aggregator
    if aggregator == "mean" and not variant.method.startswith("meid"):
        aggregator = "nonlinear"  # MEID's embedding takes the place of its hidden layer
    config = resolve(variant.method, split, aggregator=aggregator, settings=run.settings())
    folder, first = run.folder(root), run.first
    given = None if first is None else first.folder(root)
    trained = train(split, _OPENED["features"], config, folder, first_stage=given, check="none")
    means = dataclasses.astuple(trained.mAP["test"])
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ends = [line for line in lines if line["event"] == "epoch"]
    result: dict[str, Any] = {"mAP": [100 * value for value in means], "loss": [ends[0]["loss"], ends[-1]["loss"]]}
    if "penalty" in ends[0]:
        result["penalty"] = [ends[0]["penalty"], ends[-1]["penalty"]]
    for name in ("last.pt", "predictions-val.parquet", "predictions-test.parquet"):
        (folder / name).unlink(missing_ok=True)
    return result | {"seconds": round(time.process_time() - begun, 1)}


# --- the runs --------------------------------------------------------------------------------------------------------


class Scores:
    """The file of scores: the results by the key of the run, and the settings that they were made with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        here = {"common": COMMON, "sizes": SIZES, "attention": ATTENTION, "move": MOVE, "dim": DIM, "draws": DRAWS}
        here |= {"epochs": [EPOCHS, SECOND_EPOCHS, SIMULATED_EPOCHS], "second_rate": [SECOND_RATE, TENTH]}
        self.content: dict[str, Any] = {"settings": here, "runs": {}}
        if path.is_file():
            there = json.loads(path.read_text())
            if there["settings"] != here:
                sys.exit(f"{path} has runs with other settings; name another folder with --out")
            self.content = there
        self.runs: dict[str, dict[str, Any]] = self.content["runs"]

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Record the result of a run."""
        self.runs[run.key] = result
        with written_whole(self.path) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")

    def of(self, task: str, aggregator: str, variant: str, field: str = "mAP") -> dict[int, Any]:
        """Return the values of a variant by seed."""
        found = {}
        for seed in range(100):
            result = self.runs.get(Run(task, aggregator, variant, seed).key, {})
            if field in result:
                found[seed] = result[field]
        return found


def make_features(run: Run, annotations: Path, root: Path) -> None:
    """Write the features of a run, if no run has had them before."""
    from meidbench.features.simulation import simulate_features
    from meidbench.features.words import make_word_features

    path = run.features(root)
    if path.is_file():
        return
    if run.task == "words":
        make_word_features("charadeslt", annotations, path, dim=DIM)
    else:
        split = build_released("charadeslt", annotations)
        simulate_features(split, path, frames=int(COMMON["frames.train"]), dim=DIM, seed=run.seed)


def carry_out_all(runs: list[Run], scores: Scores, asked: argparse.Namespace) -> None:
    """Train the runs that have no result, in their order; a second stage waits for its first one."""
    root, end = asked.out, time.monotonic() + 60 * asked.minutes
    left = [run for run in runs if run.key not in scores.runs]
    needed = {run.first for run in left}
    # A first stage whose folder is gone is trained again; its result stays.
    for run in [first for first in needed if first is not None and first.key in scores.runs]:
        if not (run.folder(root) / "best.pt").is_file():
            left.insert(0, run)
    flying: dict[Future[dict[str, Any]], Run] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.workers, context, _start, (asked.annotations, os.getpid())) as pool:
        while left or flying:
            waiting = {*left, *flying.values()}
            ready = [run for run in left if run.first not in waiting]
            if ready and len(flying) < asked.workers and time.monotonic() < end:
                make_features(ready[0], asked.annotations, root)
                flying[pool.submit(carry_out, ready[0], root)] = ready[0]
                left.remove(ready[0])
                continue
            if not flying:
                break
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                run = flying.pop(future)
                try:
                    scores.add(run, future.result())
                except MeidbenchError as error:
                    print(f"{run.key} failed: {error}", file=sys.stderr, flush=True)
                    continue
                print(f"{run.key}: {scores.runs[run.key]}; {len(left)} runs left", file=sys.stderr, flush=True)
                remaining = {*left, *flying.values()}
                for one in filter(None, (run, run.first)):
                    if not any(other.first == one for other in remaining) and one not in remaining:
                        shutil.rmtree(one.folder(root), ignore_errors=True)


# --- the tables ------------------------------------------------------------------------------------------------------


def write_cell(values: Sequence[float], signed: bool = False) -> str:
    """Return a mean with its interval over seeds."""
    form = "+.2f" if signed else ".2f"
    if len(set(values)) < 2:
        return format(np.mean(values), form)
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):{form}} ± {half:.2f}"


def print_table(head: Sequence[str], rows: dict[str, list[str]]) -> None:
    """Print a Markdown table, if it has rows."""
    if rows:
        print(f"\n| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def print_means(scores: Scores, task: str, aggregator: str, names: Sequence[str]) -> None:
    """Print the mAP of variants."""
    rows = {}
    for name in names:
        if found := scores.of(task, aggregator, name):
            cells = [write_cell([value[group] for value in found.values()]) for group in range(len(GROUPS))]
            rows[name] = [*cells, str(len(found))]
    print_table(["variant", *GROUPS, "seeds"], rows)


def print_effects(scores: Scores, task: str, aggregator: str, pairs: dict[str, tuple[str, str]]) -> None:
    """Print differences within a seed; those whose probability stays below 0.05 after Holm's correction are bold."""
    effects: dict[str, Any] = {}
    for name, (with_it, without) in pairs.items():
        one, other = scores.of(task, aggregator, with_it), scores.of(task, aggregator, without)
        if shared := sorted(one.keys() & other.keys()):
            effects[name] = np.array([np.subtract(one[seed], other[seed]) for seed in shared])
    flat = [column for rows in effects.values() if len(rows) > 1 for column in rows.T]
    sure = iter([p < 1 - LEVEL for p in correct_holm([float(stats.ttest_1samp(v, 0).pvalue) for v in flat])])
    rows = {}
    for name, values in effects.items():
        cells = [write_cell(column, signed=True) for column in values.T]
        bold = [next(sure) if len(values) > 1 else False for _ in cells]
        cells = [f"**{cell}**" if is_sure else cell for cell, is_sure in zip(cells, bold, strict=True)]
        rows[name] = [*cells, str(len(values))]
    print_table(["effect of", *GROUPS, "seeds"], rows)
    if flat:
        print(f"\nBold: p < 0.05 after Holm's correction for the {len(flat)} differences of this table.")


def print_penalties(scores: Scores, task: str, aggregator: str) -> None:
    """Print the penalty as a share of the classification loss, in the first and in the last epoch."""
    rows = {}
    for name in PARTS["readings"]:
        losses, penalties = (scores.of(task, aggregator, name, field) for field in ("loss", "penalty"))
        if penalties and not name.endswith("none"):
            pairs = [(penalties[seed], losses[seed]) for seed in penalties]
            rows[name] = [
                f"{np.mean([100 * part[end] / (whole[end] - part[end]) for part, whole in pairs]):.2g} %"
                for end in (0, 1)
            ]
    print_table(["penalty, to the classification loss", "first epoch", "last epoch"], rows)


def print_tables(scores: Scores, parts: Sequence[str], seeds: int) -> None:
    """Print all tables of parts."""
    print("\n".join(f"**{mark}**\n" for mark in WATERMARKS.values()))
    print(f"charadeslt, {seeds} seeds; {EPOCHS} epochs, second stages {SECOND_EPOCHS}, simulated {SIMULATED_EPOCHS}")
    for task, aggregator in (*(("words", name) for name in SIZES), ("simulated", "mean")):
        if not any(key.startswith(f"{task} | {aggregator} |") for key in scores.runs):
            continue
        label = aggregator if aggregator != "mean" else "mean (baselines: nonlinear)"
        if ("readings" if task == "words" else task) in parts:
            print(f"\n#### Readings of the distillation, {task}, {label}")
            print_means(scores, task, aggregator, PARTS["readings"])
            pairs = {name: (name, f"{name.split(', ')[0]}, none") for name in PARTS["readings"] if "none" not in name}
            print_effects(scores, task, aggregator, pairs)
            if aggregator == "mean":
                print_penalties(scores, task, aggregator)
        if "ingredients" in parts and task == "words":
            print(f"\n#### Ingredients, {label}")
            print_means(scores, task, aggregator, _INGREDIENTS)
            print_effects(scores, task, aggregator, EFFECTS)
        if "details" in parts and (task, aggregator) == ("words", "mean"):
            print(f"\n#### Details of MEID, {label}")
            print_means(scores, task, aggregator, PARTS["details"])
            print_effects(scores, task, aggregator, {name: (name, WHOLE) for name in PARTS["details"][1:]})
        if "baselines" in parts and task == "words":
            print(f"\n#### Baselines, {label}")
            names = (*BASELINES, "block", ONE, WHOLE)
            print_means(scores, task, aggregator, names)
            print_effects(scores, task, aggregator, {name: (name, "bce") for name in names if name != "bce"})
    if "alone" in parts:
        print("\n#### Methods with aggregators of their own, or none")
        print_means(scores, "words", "none", PARTS["alone"])
    spent = sum(result["seconds"] for result in scores.runs.values())
    print(f"\n{len(scores.runs)} runs, {spent:,.0f} seconds of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the scores, the features and the runs.")
    parser.add_argument("--workers", type=int, default=2, help="Processes of one thread; 0 only prints the tables.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin no run after this time.")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS), help="Parts of the study.")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    scores = Scores(asked.out / "scores.json")
    runs = list_runs(asked.part, asked.seeds)
    if asked.workers:
        carry_out_all(runs, scores, asked)
    if left := sum(run.key not in scores.runs for run in runs):
        print(f"{left} of {len(runs)} runs are not there yet; the same command goes on", file=sys.stderr)
    print_tables(scores, asked.part, asked.seeds)


if __name__ == "__main__":
    main()
