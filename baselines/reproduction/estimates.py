"""What the runs of a row reached on the test subset, with intervals, which are kept for the next time."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meidbench.baselines.inference import Trained, show_no_progress
from meidbench.baselines.run_folder import RunFolder
from meidbench.evaluation.bootstrap import bootstrap_steps
from meidbench.evaluation.compare import Estimate, RunFile, SeedSpread, compare
from meidbench.evaluation.results import GROUPS_SHOWN
from meidbench.files import written_whole
from meidbench.names import ProgressBar
from meidbench.splits.split import Split

INTERVALS = "intervals"
_SUBSET = "test"


@dataclass(frozen=True)
class Ours:
    """What a row of ours reached.

    Attributes
    ----------
    mAP : dict of str to Estimate
        On test, by group: the mean over seeds, and its interval over videos.
    seed_spread : dict of str to SeedSpread, or None
        By group, where there are several seeds.
    val : dict of str to float
        On val, by group.
    seeds : tuple of int
    runs : tuple of str
        Names of the runs' folders.
    warnings : tuple of str
    """

    mAP: dict[str, Estimate]
    seed_spread: dict[str, SeedSpread] | None
    val: dict[str, float]
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    warnings: tuple[str, ...]


def estimate(
    runs: Sequence[Trained],
    seeds: Sequence[int],
    split: Split,
    folder: Path,
    *,
    replicates: int,
    seed: int,
    progress: ProgressBar = show_no_progress,
) -> Ours:
    """Score finished runs of one row, one a seed.

    Parameters
    ----------
    runs : sequence of Trained
    seeds : sequence of int
        Of the runs.
    split : Split
        That they were trained on.
    folder : Path
        Where intervals are kept.
    replicates, seed : int
        Of the Bayesian bootstrap over videos; see ``meidbench.evaluation.bootstrap``.
    progress : callable
        As for ``meidbench.baselines.train``.

    Returns
    -------
    Ours
    """
    spoken = [RunFolder(run.path).result(_SUBSET).read_bytes() for run in runs]
    told_apart = [hashlib.sha256(text).hexdigest() for text in spoken]
    key = hashlib.sha256(json.dumps([told_apart, list(seeds), replicates, seed]).encode()).hexdigest()
    kept = folder / INTERVALS / f"{key[:24]}.json"
    content = _kept(kept)
    if content is None:
        files = [
            RunFile("row", f"{run_seed}" if len(runs) > 1 else "", RunFolder(run.path).predictions(_SUBSET))
            for run, run_seed in zip(runs, seeds, strict=True)
        ]
        steps = bootstrap_steps(len(split.video_ids(_SUBSET)), split.num_classes, replicates) * len(files)
        with progress("bootstrap", steps) as advance:
            method = compare(files, split, _SUBSET, replicates=replicates, seed=seed, advance=advance).methods[0]
        spread = method.seed_spread
        content = {
            "mAP": {group: asdict(value) for group, value in method.mAP.items()},
            "seed_spread": None if spread is None else {group: asdict(value) for group, value in spread.items()},
        }
        with written_whole(kept) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    spreads = content["seed_spread"]
    return Ours(
        mAP={group: Estimate(**content["mAP"][group]) for group in GROUPS_SHOWN},
        seed_spread=None if spreads is None else {group: SeedSpread(**spreads[group]) for group in GROUPS_SHOWN},
        val={
            group: sum(getattr(run.mAP["val"], group) for run in runs) / len(runs)
            for group in GROUPS_SHOWN
            if all("val" in run.mAP for run in runs)
        },
        seeds=tuple(seeds),
        runs=tuple(run.path.name for run in runs),
        warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
    )


def _kept(path: Path) -> dict[str, Any] | None:
    """Read intervals that were kept; what is damaged is made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        complete = all(set(content["mAP"][group]) == {"value", "low", "high"} for group in GROUPS_SHOWN)
        return dict(content) if complete and "seed_spread" in content else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
