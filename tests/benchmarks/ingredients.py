"""The effect of each idea of MEID on the simulated CharadesLT: each with the idea, and the same without it.

    python tests/benchmarks/ingredients.py Charades/ --seeds 5 --epochs 10 --out scores.json
    python tests/benchmarks/ingredients.py VideoLT/ --dataset videolt --frames 150 --batch 1024 --device cuda

The folder holds the official annotations. Every seed has its own features, weights and draws. Prints two Markdown
tables in per cent of mAP on the test subset: the mAP of each variant, and the effect of each idea, as the mean over
seeds with a 95 % interval (Student's t of the differences within a seed). ``--out`` saves the numbers, and a later
call continues with them. ``meidbench.features.simulation`` describes the features; do not judge methods by them.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

from meidbench.baselines import METHODS, resolve, train
from meidbench.features import FeatureSource, open_features
from meidbench.features.simulation import simulate_features
from meidbench.splits.released import build_released
from meidbench.splits.split import Split

GROUPS = ("overall", "head", "medium", "tail")
NO_IDEA = ("model.selection=false", "stage2.motion.when=none", "stage2.sampler.name=instance")

# Method, aggregator and settings of each variant.
VARIANTS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "bce, nonlinear": ("bce", "nonlinear", ()),
    "bce, netvlad": ("bce", "netvlad", ()),
    "block": ("meid_block", "mean", ()),
    "E1 without distillation": ("meid_one", "mean", ("model.distill_weight=0.0",)),
    "E1": ("meid_one", "mean", ()),
    "E1, necks of length 1": ("meid_one", "mean", ("model.neck_norm=l2", "model.neck_act=lrelu")),
    "E1 + plain second": ("meid", "mean", NO_IDEA),
    "E1 + E1": ("meid", "mean", (*NO_IDEA, "model.arch=e1")),
    "E1 + selection": ("meid", "mean", NO_IDEA[1:]),
    "E1 + selection, motion": ("meid", "mean", NO_IDEA[2:]),
    "MEID": ("meid", "mean", ()),
    "E1 + motion": ("meid", "mean", (NO_IDEA[0], NO_IDEA[2])),
    "E1 + sampling": ("meid", "mean", NO_IDEA[:2]),
    "block-release": ("meid_block-release", "mean", ()),
    "MEID-release": ("meid-release", "mean", ()),
    "MOVE": ("move", None, ()),
}
# An idea: the variant with it, and the one without it.
IDEAS = {
    "the embedding block (to a nonlinear layer)": ("block", "bce, nonlinear"),
    "frame attention": ("E1 without distillation", "block"),
    "distillation": ("E1", "E1 without distillation"),
    "distillation, necks of length 1": ("E1, necks of length 1", "E1 without distillation"),
    "a second expert without any idea": ("E1 + plain second", "E1"),
    "complementary selection": ("E1 + selection", "E1 + plain second"),
    "motion, beside selection": ("E1 + selection, motion", "E1 + selection"),
    "motion, by itself": ("E1 + motion", "E1 + plain second"),
    "class-balanced sampling, beside both": ("MEID", "E1 + selection, motion"),
    "class-balanced sampling, by itself": ("E1 + sampling", "E1 + plain second"),
    "all of the second expert": ("MEID", "E1"),
    "MEID, to a plain NetVLAD": ("MEID", "bce, netvlad"),
    "MOVE, to a plain NetVLAD": ("MOVE", "bce, netvlad"),
}


def scored(
    name: str, split: Split, features: FeatureSource, folder: Path, seed: int, asked: argparse.Namespace
) -> list[float]:
    """Return the mAP of a variant; variants with the same expert one share its training."""
    method, aggregator, switches = VARIANTS[name]
    settings = [
        f"schedule.batch_size={asked.batch}",
        f"frames.train={asked.frames}",
        f"frames.test={asked.frames}",
        f"schedule.lr={asked.rate}",
        f"schedule.epochs={asked.epochs}",
        f"schedule.milestones=[{asked.epochs * 2 // 3}]",
        f"seed={seed}",
        f"execution.device={asked.device}",
        f"execution.resident={'always' if asked.device == 'cpu' else 'auto'}",
        *asked.settings,
    ]
    if METHODS[method].first_stage:
        settings.append(f"stage2.schedule.lr={asked.second_rate}")
    config = resolve(method, split, aggregator=aggregator, settings=[*settings, *switches])
    first = None
    if config.first_stage is not None:
        first = folder / f"{config.first_stage.method}-first"
        train(split, features, config.first_stage, first)
    trained = train(split, features, config, folder / name.replace(" ", "_"), first_stage=first)
    return [100 * value for value in dataclasses.astuple(trained.mAP["test"])]


def cell(values: list[float]) -> str:
    """Return a mean with its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.2f} ± {half:.2f}"


def table(head: str, rows: dict[str, list[list[float]]]) -> None:
    """Print rows of (seeds, groups)."""
    print(f"\n| {head} | " + " | ".join(GROUPS) + " |\n| --- |" + " ---: |" * len(GROUPS))
    for name, seeds in rows.items():
        print(f"| {name} | " + " | ".join(cell([seed[group] for seed in seeds]) for group in range(len(GROUPS))) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--dataset", default="charadeslt")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--frames", type=int, default=60, help="Rows per video that are simulated and used.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--second-rate", type=float, default=2e-4, help="A tenth of the first, as in the paper.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file of the numbers; variants in it are not run again.")
    parser.add_argument("--set", dest="settings", nargs="+", default=[])
    asked = parser.parse_args()
    split = build_released(asked.dataset, asked.annotations)
    done: dict[str, list[float]] = {}
    if asked.out is not None and asked.out.is_file():
        done = json.loads(asked.out.read_text())
    with tempfile.TemporaryDirectory() as temporary, tqdm(total=asked.seeds * len(asked.variants)) as bar:
        for seed in range(asked.seeds):
            features = None
            for name in asked.variants:
                key = f"{name} | {seed}"
                if key not in done:
                    if features is None:
                        path = Path(temporary, f"{seed}.h5")
                        simulate_features(split, path, frames=asked.frames, dim=asked.dim, seed=seed)
                        features = open_features(path)
                    done[key] = scored(name, split, features, Path(temporary, str(seed)), seed, asked)
                    if asked.out is not None:
                        asked.out.write_text(json.dumps(done, indent=1))
                bar.update(1)
    got = {name: [done[f"{name} | {seed}"] for seed in range(asked.seeds)] for name in asked.variants}
    print(
        f"{asked.dataset}, {asked.seeds} seeds, {asked.epochs} epochs per stage, {asked.dim}-d, {asked.frames} frames"
    )
    table("variant", got)
    changes = {
        idea: [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(got[with_it], got[without], strict=True)]
        for idea, (with_it, without) in IDEAS.items()
        if with_it in got and without in got
    }
    table("effect of", changes)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
