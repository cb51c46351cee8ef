"""What can be known to be wrong with a run before anything is trained."""

import torch

from meidbench.baselines.components import (
    check_model,
    make_augmentation,
    make_loss,
    make_model,
    make_sampler,
    make_task,
)
from meidbench.baselines.configuration import Config
from meidbench.baselines.epoch_plan import EpochPlan
from meidbench.baselines.learner import smallest_batch
from meidbench.split import Split


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
    >>> from meidbench.baselines.resolution import resolve
    >>> from meidbench.simulated_split import simulate_split
    >>> split = simulate_split()
    >>> check_run(resolve("meid", split), split, dim=16)
    """
    if config.first_stage is not None:
        check_run(config.first_stage, split, dim, processes=processes)
    with torch.device("meta"):
        model = make_model(config, make_task(config, split, dim))
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
