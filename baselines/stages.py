"""The first stage of a method that is trained in two: a run of its own, whose weights the second begins with."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from meidbench.baselines.components import (
    check_model,
    make_augmentation,
    make_loss,
    make_model,
    make_model_inputs,
    make_sampler,
)
from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import Team
from meidbench.baselines.inference import Progress
from meidbench.baselines.learner import EpochPlan, smallest_batch
from meidbench.baselines.run_folder import FIRST_STAGE, Inputs, Report, RunFolder, load_checkpoint
from meidbench.errors import MeidbenchError, bullet_list
from meidbench.features import FeatureSource
from meidbench.splits.split import Split, load_split


def check_run(config: Config, split: Split, dim: int, *, processes: int = 1) -> None:
    """Make the parts of a run, and of its first stage, without memory for its weights.

    Parameters
    ----------
    config : Config
    split : Split
    dim : int
        Width of the features.
    processes : int
        That will train together.

    Raises
    ------
    MeidbenchError
        A part cannot be made of its options, or two do not fit together.

    Examples
    --------
    >>> from meidbench.baselines.recipes import resolve
    >>> from meidbench.features.simulation import simulate_split
    >>> split = simulate_split()
    >>> check_run(resolve("meid", split), split, dim=16)
    """
    if config.first_stage is not None:
        check_run(config.first_stage, split, dim, processes=processes)
    with torch.device("meta"):
        model = make_model(config, make_model_inputs(config, split, dim))
    check_model(config, model)
    make_loss(config, split)
    make_augmentation(config)
    EpochPlan(
        draws=len(make_sampler(config, split).whole_epoch()),
        batch_size=config.schedule.batch_size,
        accumulate=config.schedule.accumulate,
        processes=processes,
        smallest=smallest_batch(model),
    )


@dataclass(frozen=True)
class FirstStage:
    """What a second stage begins with.

    Attributes
    ----------
    weights : Path or None
        The checkpoint that was best on the subset that chooses; None where the second stage has begun already.
    digest : str
        sha256 of the weights in it.
    """

    weights: Path | None
    digest: str


def trained_first_stage(
    split: Split | str | Path,
    features: FeatureSource,
    config: Config,
    folder: RunFolder,
    inputs: Inputs,
    given: str | os.PathLike[str] | None,
    crew: Team,
    progress: Progress,
    report: Report,
) -> FirstStage:
    """Train the first stage in a folder of the run, or take one that was trained.

    Parameters
    ----------
    split, features, config, progress, report
        As for ``meidbench.baselines.training.train``; ``config`` of the second stage.
    folder, inputs : RunFolder and Inputs
        Of the second stage's run.
    given : path or None
        The folder of a finished run to take instead.
    crew : Team

    Raises
    ------
    MeidbenchError
        The method has no first stage, or the run that is given is not finished or another.
    """
    from meidbench.baselines.training import train

    if config.first_stage is None:
        raise MeidbenchError(f"{config.method} is trained in one stage; leave out the first")
    loaded = load_split(split)
    # What is wrong with the second stage must not show after the first has been trained.
    check_run(config, loaded, features.dim, processes=crew.size)
    refusal, digest = None, ""
    if crew.leads:
        try:
            digest = folder.begun_with(config, inputs)
        except MeidbenchError as error:
            refusal = error
    if not crew.agreed(refusal is None):
        raise refusal or MeidbenchError("the first process refused the run; its message says why")
    if crew.agreed(bool(digest)) and given is None:
        return FirstStage(None, digest or folder.read()[1].first_stage_digest)
    if given is None:
        path = folder.path / FIRST_STAGE
        report(f"first stage ({config.first_stage.method}) in {path}")
        train(split, features, config.first_stage, path, progress=progress, report=report)
        report(f"second stage ({config.method}) in {folder.path}")
    else:
        path = Path(given)
        _check(path, inputs, config.first_stage)
    weights = RunFolder(path).best
    if not weights.is_file():
        raise MeidbenchError(f"{path} is finished, but its {weights.name} is gone; remove the folder to train it anew")
    return FirstStage(weights, weights_digest(load_checkpoint(weights)["model"]))


def _check(path: Path, inputs: Inputs, wanted: Config) -> None:
    folder = RunFolder(path)
    config, before = folder.read()
    problems = config.differences(wanted) + before.differences(inputs)
    if not problems and not folder.result(wanted.selection.subset).is_file():
        problems.append("it is not finished; run its command again")
    if problems:
        raise MeidbenchError(
            f"{path} cannot be the first stage:\n{bullet_list(problems)}\nLeave it out to train one, or name a run of "
            f"{wanted.method} with the same settings"
        )


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over names, types, shapes and values; a checkpoint's bytes also depend on its file's name.

    Examples
    --------
    >>> import torch
    >>> weights_digest({"bias": torch.zeros(2)}) == weights_digest({"bias": torch.zeros(2)})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because numpy has no bfloat16; reshaped, because a tensor without a dimension cannot be viewed so.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
