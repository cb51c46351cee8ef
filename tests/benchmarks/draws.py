"""How much the draw of a split matters: many seeds of ``pareto``, counted, and methods trained on each.

    python tests/benchmarks/draws.py Charades/ --out draws.json                 # half an hour on a core
    python tests/benchmarks/draws.py Charades/ --ego CharadesEgo/ --trained 0 --out draws.json   # no training

``Charades/`` and ``CharadesEgo/`` hold the official annotations. Results that ``--out`` holds already are not computed
again, so a run that was stopped is resumed, and one with more seeds adds them. Prints the tables of ``docs/draws.md``.

The methods are ``bce`` and ``--versus``, on simulated features (``meidbench.features.simulation``), which give no
information about real videos; but labels, lengths, segments and the procedure are real. A video has the same features
in every draw; training with the same seed begins from the same weights.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from methods import SETTINGS

from meidbench.annotations import read_annotations
from meidbench.baselines import resolve, train
from meidbench.construction import PRESETS, construct, distance_to
from meidbench.evaluation.compare import ComparedRun, compare
from meidbench.evaluation.evaluate import evaluate
from meidbench.evaluation.results import GROUPS_SHOWN
from meidbench.features.simulation import simulate_features
from meidbench.files import written_whole
from meidbench.predictions.align import read_predictions
from meidbench.splits.manifests import load_manifest
from meidbench.splits.released import build_released
from meidbench.splits.split import Split
from meidbench.splits.statistics import split_statistics

TITLES = {"charadeslt": "CharadesLT", "charadesegolt": "CharadesEgoLT"}
SHOWN = {
    "train": ("training videos", 0), "head": ("head", 1), "medium": ("medium", 1), "tail": ("tail", 1),
    "most_frequent": ("most frequent class", 0), "least_frequent": ("least frequent class", 1),
    "imbalance_ratio": ("imbalance ratio", 1), "labels_per_video": ("labels per video, train+test", 2),
    "labels_per_video_train": ("labels per video, train", 2), "labels_per_video_val": ("labels per video, val", 2),
    "labels_per_video_test": ("labels per video, test", 2), "least_positives_val": ("least positives in val", 1),
    "least_positives_test": ("least positives in test", 1), "total_deviation": ("distance to the target", 0),
    "largest_deviation": ("largest of a class", 0), "same_group": ("classes in the released group", 2),
    "mean_curve_difference": ("distance of the sorted counts to the released", 1),
    "shared_train": ("training videos shared with the released", 2), "seconds": ("seconds", 2),
}  # fmt: skip


def count_draw(annotations, released: Split, name: str, seed: int) -> dict[str, float]:
    began = time.perf_counter()
    made = construct(annotations, PRESETS[name], dataset=name, seed=seed)
    seconds = time.perf_counter() - began
    distance = distance_to(made.split, released)
    facts = {**dataclasses.asdict(split_statistics(made.split)), "total_deviation": made.total_deviation}
    facts |= {"largest_deviation": made.largest_deviation, "same_group": distance.same_group, "seconds": seconds}
    facts |= {"mean_curve_difference": distance.mean_curve_difference, "digest": made.split.digest}
    return facts | {"shared_train": distance.shared_videos["train"], "short": len(made.shortfalls)}


def predictions_of(method: str, split: Split, seed: int, epochs: int, folder: Path) -> Path:
    """Train on the features of seed 0."""
    features = folder / f"{split.digest[:12]}.h5"
    simulate_features(split, features, seed=0)
    settings = [*SETTINGS, f"schedule.epochs={epochs}", f"seed={seed}", "execution.device=cpu"]
    config = resolve(method, split, aggregator="nonlinear", settings=settings)
    return train(split, features, config, folder / f"{method}-{seed}").path / "predictions-test.parquet"


def compare_on(other: str, split: Split, epochs: int, folder: Path) -> dict[str, object]:
    """Train ``bce`` and another method, and compare them on test under the same weights of the videos."""
    runs = [ComparedRun(method, "", predictions_of(method, split, 0, epochs, folder)) for method in ("bce", other)]
    difference = compare(runs, split, "test", replicates=1000, seed=0).methods[1].difference
    return {"difference": {name: (each.value, each.low, each.high) for name, each in difference.items()}}


def train_on(split: Split, seed: int, epochs: int, folder: Path) -> dict[str, object]:
    """Train ``bce``, and score it on test with intervals."""
    predictions = read_predictions(predictions_of("bce", split, seed, epochs, folder))
    result = evaluate(predictions.scores, predictions.video_ids, split, bootstrap=1000)
    noise = np.random.default_rng(0).standard_normal(predictions.scores.shape)
    return {
        "mAP": dataclasses.asdict(result.mAP),
        "intervals": {name: dataclasses.astuple(each) for name, each in result.intervals.mAP.items()},
        "random": dataclasses.asdict(evaluate(noise, split.video_ids("test"), split).mAP),
        "digest": split.digest,
    }


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def print_counts(name: str, draws: list[dict[str, float]], released: Split) -> None:
    published = dataclasses.asdict(split_statistics(released))
    paper = load_manifest(name).paper
    print(f"\n{TITLES[name]}, {len(draws)} seeds; {sum(d['short'] > 0 for d in draws)} with a class that is short\n")
    print_row("", "mean", "lowest", "highest", "released", "paper")
    print_row("---", *["---:"] * 5)
    for key, (title, digits) in SHOWN.items():
        values = [draw[key] for draw in draws]
        # Counts of classes and videos are whole, so only their mean has digits after the point.
        plain = 0 if all(float(value).is_integer() for value in values) else digits
        fixed = [f"{statistics.fmean(values):,.{digits}f}", f"{min(values):,.{plain}f}", f"{max(values):,.{plain}f}"]
        others = [f"{facts[key]:,.{plain}f}" if key in facts else "-" for facts in (published, paper)]
        print_row(title, *fixed, *others)


def spread(values: list[float]) -> list[str]:
    per_cent = [100 * value for value in values]
    return [f"{statistics.fmean(per_cent):.2f}", f"{statistics.stdev(per_cent):.2f}", f"{min(per_cent):.2f}",
            f"{max(per_cent):.2f}"]  # fmt: skip


def print_training(runs: dict[str, dict]) -> None:
    of_draw = [run for key, run in runs.items() if key.startswith("draw ")]
    of_seed = [runs["draw 0"], *(run for key, run in runs.items() if key.startswith("training "))]
    rows = {f"{len(of_draw)} draws": of_draw, f"{len(of_seed)} training seeds on draw 0": of_seed}
    print("\nTest mAP in %\n")
    print_row("", "group", "mean", "standard deviation", "lowest", "highest")
    print_row("---", "---", *["---:"] * 4)
    for title, entries in rows.items():
        for group in GROUPS_SHOWN if len(entries) > 1 else ():
            print_row(title, group, *spread([entry["mAP"][group] for entry in entries]))
    for group in GROUPS_SHOWN:
        low, high = (100 * end for end in runs["draw 0"]["intervals"][group])
        # A normal distribution with this interval would have this standard deviation.
        cells = (f"{100 * runs['draw 0']['mAP'][group]:.2f}", f"{(high - low) / 3.92:.2f}", f"{low:.2f}", f"{high:.2f}")
        print_row("95% interval over the videos of draw 0", group, *cells)
    for group in GROUPS_SHOWN if len(of_draw) > 1 else ():
        widths = [100 * (run["intervals"][group][1] - run["intervals"][group][0]) / 3.92 for run in of_draw]
        print_row("the same of every draw, mean", group, "-", f"{statistics.fmean(widths):.2f}", "-", "-")
    for group in GROUPS_SHOWN if len(of_draw) > 1 else ():
        print_row("random scores, draws", group, *spread([run["random"][group] for run in of_draw]))
    if "released" in runs:
        for group in GROUPS_SHOWN:
            low, high = (100 * end for end in runs["released"]["intervals"][group])
            value = 100 * runs["released"]["mAP"][group]
            print_row("released, interval over videos", group, f"{value:.2f}", "-", f"{low:.2f}", f"{high:.2f}")


def print_differences(other: str, runs: list[dict]) -> None:
    """Print how often the draws agree on the better of two methods, and how often their intervals exclude zero."""
    print(f"\n{other} less bce, test mAP in points, {len(runs)} draws\n")
    print_row("group", "mean", "standard deviation", "lowest", "highest", "interval of draw 0", "above 0",
              "interval above 0", "interval below 0")  # fmt: skip
    print_row("---", *["---:"] * 8)
    for group in GROUPS_SHOWN:
        each = [run["difference"][group] for run in runs]
        low, high = (100 * end for end in each[0][1:])
        signs = [sum(value > 0 for value, _, _ in each), sum(low > 0 for _, low, _ in each)]
        signs.append(sum(high < 0 for _, _, high in each))
        print_row(group, *spread([value for value, _, _ in each]), f"{low:.2f} to {high:.2f}", *signs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path, help="of Charades")
    parser.add_argument("--ego", type=Path, help="annotations of CharadesEgo")
    parser.add_argument("--seeds", type=int, default=20, help="draws that are counted")
    parser.add_argument("--trained", type=int, default=20, help="draws of CharadesLT that are trained on")
    parser.add_argument("--training-seeds", type=int, default=10, help="trainings on draw 0")
    parser.add_argument("--versus", default="asl", help="a method that is compared with bce on each draw")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}

    def keep() -> None:
        with written_whole(asked.out) as temporary:
            temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")

    published = {}
    folders = {"charadeslt": asked.annotations, "charadesegolt": asked.ego}
    for name, folder in folders.items():
        if folder is None:
            continue
        annotations = read_annotations(load_manifest(name), folder)
        published[name] = build_released(name, folder)
        counts = found.setdefault(name, {})
        for seed in range(asked.seeds):
            if str(seed) not in counts:
                counts[str(seed)] = count_draw(annotations, published[name], name, seed)
        keep()
        print_counts(name, [counts[str(seed)] for seed in range(asked.seeds)], published[name])
    if not asked.trained:
        return
    annotations = read_annotations(load_manifest("charadeslt"), asked.annotations)
    jobs = {f"draw {seed}": (seed, 0) for seed in range(asked.trained)}
    jobs |= {f"training {seed}": (0, seed) for seed in range(1, asked.training_seeds)} | {"released": (None, 0)}
    jobs |= {f"{asked.versus} {seed}": (seed, 0) for seed in range(asked.trained)}
    runs = found.setdefault(f"{asked.epochs} epochs", {})
    for key, (draw, seed) in jobs.items():
        if key in runs:
            continue
        split = published["charadeslt"]
        if draw is not None:
            split = construct(annotations, PRESETS["charadeslt"], dataset="charadeslt", seed=draw).split
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            if key.startswith(f"{asked.versus} "):
                runs[key] = compare_on(asked.versus, split, asked.epochs, Path(folder))
            else:
                runs[key] = train_on(split, seed, asked.epochs, Path(folder))
        keep()
        print(f"{key}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print_training({key: runs[key] for key in jobs if not key.startswith(f"{asked.versus} ")})
    print_differences(asked.versus, [runs[f"{asked.versus} {seed}"] for seed in range(asked.trained)])


if __name__ == "__main__":
    main()
