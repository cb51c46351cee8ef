"""The demonstration on an invented benchmark: split, simulated features, training, predictions."""

from dataclasses import dataclass
from pathlib import Path

from meidbench.baselines.inference import show_no_progress
from meidbench.baselines.recipes import resolve
from meidbench.baselines.run_folder import RunFolder
from meidbench.baselines.training import train
from meidbench.errors import MeidbenchError
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.names import ProgressBar, Report
from meidbench.splits.split import Split, load_split, write_split

METHODS = ("bce", "ldam", "eql", "cbs", "framestack", "linear_probe")
EPOCHS = 12
# Small enough for a CPU, and long enough to learn something: two thirds of the epochs have the full learning rate.
_FRAMES, _DIM, _DIFFICULTY = 30, 128, 0.8
_SETTINGS = ("schedule.lr=2e-3", "schedule.batch_size=64", "frames.train=30", "frames.test=30", "execution.device=cpu")


@dataclass(frozen=True)
class Demo:
    """The split of a demonstration, and the prediction file of each method for the test subset."""

    split: Split
    predictions: dict[str, Path]


def run_demo(
    out: Path,
    *,
    methods: tuple[str, ...] = METHODS,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: ProgressBar = show_no_progress,
    report: Report = lambda line: None,
) -> Demo:
    """Make a split and features, and train the methods on them; a second call resumes where the first stopped.

    ``seed`` is that of the split, the features and the training; a folder of another seed is refused. The results do
    not show which method is better on real data: see ``meidbench.features.simulation``.
    """
    split = simulate_split(seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    split_path = out / "simulatedlt.parquet"
    if split_path.exists() and load_split(split_path).digest != split.digest:
        raise MeidbenchError(f"{out} holds the demonstration of another seed; choose another --out")
    write_split(split, split_path)
    features = simulate_features(
        split, out / "features.h5", frames=_FRAMES, dim=_DIM, seed=seed, difficulty=_DIFFICULTY, progress=progress
    )
    predictions = {}
    for method in methods:
        settings = [*_SETTINGS, f"schedule.epochs={epochs}", f"schedule.milestones=[{epochs * 2 // 3}]", f"seed={seed}"]
        config = resolve(method, split, settings=settings)
        train(split_path, features, config, out / method, progress=progress, report=report)
        predictions[method] = RunFolder(out / method).predictions("test")
    return Demo(split, predictions)
