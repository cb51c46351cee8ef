"""How long a run will take on a GPU: an estimate from counted operations and bytes, with its assumptions said."""

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from meidbench.baselines.components import make_model, make_model_inputs
from meidbench.baselines.configuration import Config
from meidbench.baselines.reproduction.needs import subset_sizes
from meidbench.baselines.reproduction.paper_tables import table_content
from meidbench.errors import MeidbenchError
from meidbench.splits.split import Split

_BACKWARD = 2  # times the forward pass
_STORED_BYTES = 2
_COUNTED_PARTS = ("model", "aggregator", "motion", "frames")
_COUNTED = 2  # videos, as some models normalise over them


@dataclass(frozen=True)
class Cost:
    """What a run is estimated to take.

    Attributes
    ----------
    flops : float
        Of matrix products, of all epochs.
    bytes_read : float
        Of features, were none kept in memory.
    hours : float
        The longer of computing and reading, as both go on at once.
    """

    flops: float
    bytes_read: float
    hours: float


def gpus() -> tuple[str, ...]:
    """Return the names of the GPUs whose peak rates are known.

    Examples
    --------
    >>> gpus()
    ('V100', 'A100', 'H100', 'RTX 3090', 'RTX 4090')
    """
    return tuple(table_content("needs")["gpus"])


def formula(gpu: str) -> str:
    """Say how hours are estimated."""
    assumed = table_content("needs")["assumed"]
    peak = _peaks(gpu)
    sustained, read = assumed["sustained"], assumed["read_gb_a_second"]
    return (
        f"hours are an ESTIMATE for one {gpu}, not measured: the longer of computing (steps x batch x 3 x forward "
        "FLOPs of a video, of a frozen expert once, and a forward pass for each video scored, at "
        f"{sustained:.0%} of the peak of {peak['fp32']:g} TFLOP/s in fp32) and reading (videos x frames x width x 2 "
        f"bytes an epoch at {read:g} GB/s)"
    )


def forward_flops(config: Config, split: Split, dim: int, frames: int) -> float:
    """Count the floating-point operations of matrix products in a forward pass of one video.

    Parameters
    ----------
    config : Config
    split : Split
        Gives the classes and their groups.
    dim, frames : int
        D and T.

    Examples
    --------
    >>> from meidbench.features.simulation import simulate_split
    >>> config = Config.from_tables({"aggregator": {"name": "early_mean"}})
    >>> forward_flops(config, simulate_split((50, 9, 9), num_classes=10), dim=8, frames=5)
    288.0
    """
    parts = {name: tables for name, tables in config.to_tables().items() if name in _COUNTED_PARTS}
    return _counted(json.dumps(parts, sort_keys=True), split, dim, frames)


@lru_cache(maxsize=256)
def _counted(parts: str, split: Split, dim: int, frames: int) -> float:
    config = Config.from_tables(json.loads(parts))
    # Shapes without numbers: a model of hundreds of millions of weights is counted at once. It is made where filling in
    # its first weights costs nothing, and called as if on a CPU, which models ask for.
    with torch.device("meta"):
        model = make_model(config, make_model_inputs(config, split, dim))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to_empty(device="cpu").eval()
        rows = torch.empty(_COUNTED, frames, dim)
        motion = torch.empty(_COUNTED, frames, dim) if config.motion.when != "none" else None
        with FlopCounterMode(display=False) as counter:
            model(rows, motion)
    return float(counter.get_total_flops() / _COUNTED)


def run_cost(config: Config, split: Split, dataset: str, dim: int, gpu: str = "A100") -> Cost:
    """Estimate what a run takes, its first stage left out.

    Parameters
    ----------
    config : Config
    split : Split
        Gives the classes; how many videos there are is the benchmark's own.
    dataset : str
    dim : int
        D.
    gpu : str
        One of ``gpus``.

    Raises
    ------
    MeidbenchError
        The GPU is unknown.
    """
    assumed, peak = table_content("needs")["assumed"], _peaks(gpu)[config.schedule.precision] * 1e12
    sizes, schedule, frames = subset_sizes(dataset), config.schedule, config.frames
    steps = -(-sizes["train"] // schedule.batch_size) * schedule.epochs
    trained = steps * schedule.batch_size
    selected = schedule.epochs // config.selection.every * sizes[config.selection.subset]
    scored = selected + sizes["val"] + sizes["test"]
    forward = forward_flops(config, split, dim, frames.train)
    # What the first stage learnt is frozen, and nothing goes back through it.
    frozen = 0.0 if config.first_stage is None else forward_flops(config.first_stage, split, dim, frames.train)
    flops = trained * (forward + _BACKWARD * max(forward - frozen, 0.0))
    flops += scored * forward_flops(config, split, dim, frames.test)
    read = (trained * frames.train + scored * frames.test) * dim * _STORED_BYTES
    seconds = max(flops / (peak * assumed["sustained"]), read / (assumed["read_gb_a_second"] * 1e9))
    return Cost(flops, read, seconds / 3600)


def _peaks(gpu: str) -> dict[str, float]:
    known: dict[str, dict[str, float]] = table_content("needs")["gpus"]
    if gpu not in known:
        raise MeidbenchError(f"unknown GPU {gpu!r}; known: {', '.join(known)}")
    return known[gpu]
