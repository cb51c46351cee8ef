"""Each method on the simulated CharadesLT, in the form of the public code and in the faithful one.

    python tests/benchmarks/methods.py Charades/                          # 5 epochs each; some minutes on two cores
    python tests/benchmarks/methods.py Charades/ --methods eql ldam --epochs 20 --set loss.drw_epoch=12

``Charades/`` holds the official annotations (Charades_v1_train.csv and so on). Prints a Markdown table: seconds of the
whole run, with scoring, and mAP on the test subset, in per cent. The first row is a random ranking.
``meidbench.features.simulation`` describes the features; do not judge methods by them.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from meidbench.baselines import METHODS, resolve, train
from meidbench.evaluation.evaluate import evaluate
from meidbench.features.simulation import simulate_features
from meidbench.splits.released import build_released

# The default difficulty of the simulation was calibrated with these settings and plain cross-entropy.
SETTINGS = ("schedule.lr=2e-3", "schedule.batch_size=64", "frames.train=60", "frames.test=60")


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{100 * cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--aggregator", default="nonlinear")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prior", type=float, help="share of positives at first (aggregator.bias_prior), not for LDAM")
    parser.add_argument("--set", dest="settings", nargs="+", default=[])
    asked = parser.parse_args()
    split = build_released("charadeslt", asked.annotations)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        features = simulate_features(split, Path(folder, "features.h5"), seed=asked.seed)
        print(
            f"{split.dataset}, simulated in {time.perf_counter() - began:.0f} s; {asked.aggregator}, "
            f"{asked.epochs} epochs, seed {asked.seed}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        )
        row("method", "seconds", "overall", "head", "medium", "tail")
        row("---", *["---:"] * 5)
        noise = np.random.default_rng(asked.seed).standard_normal((len(split.rows("test")), split.num_classes))
        means = evaluate(noise, split.video_ids("test"), split).mAP
        row("(random)", "-", *dataclasses.astuple(means))
        for method in asked.methods:
            config = resolve(
                method,
                split,
                aggregator=None if method.startswith(("move", "linear_probe", "text_adapter")) else asked.aggregator,
                settings=[
                    *SETTINGS,
                    f"schedule.epochs={asked.epochs}",
                    f"seed={asked.seed}",
                    f"execution.device={asked.device}",
                    *asked.settings,
                ],
            )
            if asked.prior is not None and config.loss.name != "ldam":
                options = {**config.aggregator.options, "bias_prior": asked.prior}
                config = dataclasses.replace(config, aggregator=dataclasses.replace(config.aggregator, options=options))
            began = time.perf_counter()
            trained = train(split, features, config, Path(folder, method))
            row(method, f"{time.perf_counter() - began:.0f}", *dataclasses.astuple(trained.mAP["test"]))


if __name__ == "__main__":
    main()
