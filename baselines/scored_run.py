"""What a finished run has to show: predictions and their evaluation on val and test."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.baselines.components import aggregator_name
from meidbench.baselines.configuration import Config
from meidbench.baselines.run_folder import SCORED, RunFolder
from meidbench.errors import MeidbenchError
from meidbench.evaluation import evaluate_scores
from meidbench.files import written_whole
from meidbench.predictions import run_warnings, write_predictions
from meidbench.results import MeanAP
from meidbench.split import Split


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes
    ----------
    path : Path
        Its folder.
    mAP : mapping of str to MeanAP
        Of each subset that was scored.
    warnings : tuple of str
        What a reader must know.
    was_finished : bool
        Whether it was so before it was asked for.
    """

    path: Path
    mAP: Mapping[str, MeanAP]
    warnings: tuple[str, ...]
    was_finished: bool


def run_facts(config: Config, epoch: int) -> dict[str, Any]:
    """Return what a prediction file says of its run; ``evaluate`` warns where the test subset chose the checkpoint."""
    subsets = {stage.selection.subset for stage in (config, config.first_stage) if stage is not None}
    return {
        "method": config.method,
        "aggregator": aggregator_name(config),
        "seed": config.seed,
        "epoch": epoch,
        # Either stage's choice makes the scores the test subset's own.
        "select_on": "test" if "test" in subsets else config.selection.subset,
    }


def scored_subsets(split: Split, select_on: str) -> list[str]:
    """Return which of val and test have videos.

    Raises
    ------
    MeidbenchError
        There is nothing to train on, or to select on.
    """
    present = [subset for subset in ("train", *SCORED) if len(split.rows(subset))]
    for subset in ("train", select_on):
        if subset not in present:
            raise MeidbenchError(
                f"the split {split.dataset} has no video in {subset}; it has some in {', '.join(present) or 'none'}"
            )
        if not split.positives(subset).any():
            raise MeidbenchError(f"no video in {subset} of the split {split.dataset} has a label")
    return [subset for subset in present if subset != "train"]


def write_scored(
    folder: RunFolder, split: Split, subset: str, scores: npt.NDArray[np.float32], facts: dict[str, Any]
) -> None:
    """Write the scores of a subset and their evaluation, which is that of ``meidbench evaluate`` byte for byte."""
    write_predictions(folder.predictions(subset), split.video_ids(subset), scores, split, subset, facts)
    result = evaluate_scores(scores, split, subset, warnings=run_warnings({"run": facts}))
    # Last: where it lies, the subset is done.
    with written_whole(folder.result(subset)) as temporary:
        temporary.write_text(result.to_json(), encoding="utf-8")


def read_trained(folder: RunFolder, split: Split, *, just_finished: bool = False) -> Trained | None:
    """Return what a run has to show, None where it is not finished."""
    results = {}
    for subset in SCORED:
        if not len(split.rows(subset)):
            continue
        if not folder.result(subset).is_file() or not folder.predictions(subset).is_file():
            return None
        try:
            results[subset] = json.loads(folder.result(subset).read_text(encoding="utf-8"))
        except ValueError as error:
            raise MeidbenchError(f"{folder.result(subset)} is damaged ({error}); remove it to score again") from None
    try:
        means = {
            subset: MeanAP(**{group: math.nan if value is None else value for group, value in result["mAP"].items()})
            for subset, result in results.items()
        }
        warnings = dict.fromkeys(warning for result in results.values() for warning in result["warnings"])
    except (KeyError, TypeError, AttributeError):
        raise MeidbenchError(f"a result in {folder.path} is damaged; remove result-*.json to score again") from None
    return Trained(folder.path, means, tuple(warnings), not just_finished)
