"""Runs of rows: which they are, by what they are made from, and training those that are not there."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meidbench.baselines.configuration import Config
from meidbench.baselines.inference import Trained, read_trained, show_no_progress
from meidbench.baselines.reproduction.materials import Materials
from meidbench.baselines.run_folder import Inputs, RunFolder
from meidbench.baselines.training import train
from meidbench.errors import MeidbenchError
from meidbench.names import ProgressBar, Report

RUNS = "runs"
_DIGITS = 12


def run_digest(config: Config, inputs: Inputs) -> str:
    """Return what a run is known by: sha256 of its configuration, how it is carried out left out, and its inputs."""
    content = {
        "config": _without_execution(config.to_tables()),
        "split": inputs.split_digest,
        "dataset": inputs.dataset,
        "features": [inputs.dim, inputs.features_digest, inputs.recipe_digest],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_name(config: Config, inputs: Inputs) -> str:
    """Return the name of a run's folder: for people, and the beginning of its digest.

    It begins with the split's name, so that runs on simulated features are told apart.
    """
    return f"{_beginning(config, inputs.dataset)}{run_digest(config, inputs)[:_DIGITS]}"


def _beginning(config: Config, dataset: str) -> str:
    return f"{dataset}-{config.method}-s{config.seed}-"


def _without_execution(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_execution(value) if isinstance(value, dict) else value
        for key, value in tables.items()
        if key != "execution"
    }


@dataclass(frozen=True)
class Workshop:
    """Where runs lie and are trained; runs that are the same are one.

    Attributes
    ----------
    out : Path
    materials : Materials
    progress, report : callable
        As for ``meidbench.baselines.train``.
    """

    out: Path
    materials: Materials
    progress: ProgressBar = show_no_progress
    report: Report = lambda line: None

    def folder(self, config: Config, dataset: str, encoder: str) -> Path:
        """Return the folder of a run."""
        return self.out / RUNS / run_name(config, self.materials.inputs(dataset, encoder))

    def finished(self, config: Config, dataset: str, encoder: str) -> Trained | None:
        """Return a run that is finished, None where it is not; nothing is trained or simulated.

        Raises
        ------
        MeidbenchError
            Features are malformed, or a result is damaged.
        """
        split = self.materials.split(dataset)
        # Most runs that nobody asked for are not there, which needs no look at features.
        if split is None or not any((self.out / RUNS).glob(f"{_beginning(config, split.dataset)}*")):
            return None
        if not self.materials.is_made(dataset, encoder):
            return None
        return read_trained(RunFolder(self.folder(config, dataset, encoder)), split)

    def trained(self, config: Config, dataset: str, encoder: str) -> Trained:
        """Return a run, which is trained, or gone on with, unless it is finished; its first stage before it.

        Raises
        ------
        MeidbenchError
            As ``meidbench.baselines.train``, and where an input is missing.
        """
        split, features = self.materials.split(dataset), self.materials.features(dataset, encoder)
        if split is None or features is None:
            raise MeidbenchError(f"there is no split or there are no features of {dataset} with {encoder}")
        first = None
        if config.first_stage is not None:
            first = self.trained(config.first_stage, dataset, encoder).path
        return train(
            self.materials.split_path(dataset) or split,
            features,
            config,
            self.folder(config, dataset, encoder),
            first_stage=first,
            progress=self.progress,
            report=self.report,
        )
