"""What a user asks of a reproduction, and what is simulated where nothing real is at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from meidbench.baselines.aggregators import AGGREGATORS
from meidbench.baselines.configuration import EXAMPLE_SETTING, flatten, known_options
from meidbench.checks import parse_settings, read_dataclass
from meidbench.errors import MeidbenchError, bullet_list

WATERMARK = "SIMULATED: numbers say nothing of real data"
MARK = "SIMULATED"
REPLICATES, BOOTSTRAP_SEED = 1000, 0

# Small enough for a CPU; the learning rate learns something in so few epochs.
SIMULATED_SETTINGS = (
    "schedule.epochs=4",
    "schedule.milestones=[3]",
    "schedule.batch_size=64",
    "schedule.lr=2e-3",
    "execution.device=cpu",
)
_SMALL = {"clusters": 8, "hidden": 128}
_SECTION = "simulation"
STAGES = ("stage1", "stage2")


@dataclass(frozen=True)
class Simulation:
    """What is simulated in place of features.

    Attributes
    ----------
    split : str
        ``own`` simulates features of the benchmark's real videos, ``invented`` of a split that is invented, too;
        ``auto`` takes its own where it is built and has at most ``most_videos``.
    frames, dim : int
        Of each video.
    difficulty : float
        As in ``meidbench.features.simulation``.
    seed : int
        Of features and invented splits; each encoder has features of its own.
    most_videos : int
    """

    split: str = "auto"
    frames: int = 8
    dim: int = 64
    difficulty: float = 0.5
    seed: int = 0
    most_videos: int = 20_000

    _least: ClassVar[dict[str, float]] = {"frames": 1, "dim": 1, "difficulty": 0, "seed": 0, "most_videos": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"split": ("auto", "own", "invented")}

    def settings(self, aggregator: str) -> tuple[str, ...]:
        """Return what simulated runs with an aggregator are set to, below what the user sets."""
        known = known_options(AGGREGATORS[aggregator])
        small = tuple(f"aggregator.{key}={value}" for key, value in _SMALL.items() if key in known)
        return (*self.common_settings(), *small)

    def common_settings(self) -> tuple[str, ...]:
        """Return those of them that do not go by the aggregator."""
        return (*SIMULATED_SETTINGS, f"frames.train={self.frames}", f"frames.test={self.frames}")


@dataclass(frozen=True)
class Request:
    """How rows are to be run.

    Attributes
    ----------
    settings : tuple of str
        ``KEY=VALUE`` on top of every row.
    seeds : tuple of int
        Each row is trained once with each; empty for the recipe's.
    device : str
        Empty for the default.
    faithful : bool
        Whether baselines are as their papers have them, not as the public code does.
    simulation : Simulation or None
        None where features are real.
    replicates, bootstrap_seed : int
        Of the intervals.
    """

    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    device: str = ""
    faithful: bool = False
    simulation: Simulation | None = None
    replicates: int = REPLICATES
    bootstrap_seed: int = BOOTSTRAP_SEED


def simulation_of(settings: Sequence[str]) -> tuple[Simulation, tuple[str, ...]]:
    """Read ``simulation.KEY=VALUE`` out of settings, and return the others.

    Raises
    ------
    MeidbenchError
        A key is unknown, or a value cannot be.

    Examples
    --------
    >>> simulation_of(["simulation.frames=3", "schedule.epochs=1"])[0].frames
    3
    """
    own = [setting for setting in settings if setting.startswith(f"{_SECTION}.")]
    problems: list[str] = []
    tables = parse_settings(own, EXAMPLE_SETTING).get(_SECTION, {})
    simulation = read_dataclass(Simulation, tables, problems, f"{_SECTION}.")
    if problems:
        raise MeidbenchError(f"{len(problems)} problem(s) with what is simulated:\n{bullet_list(problems)}")
    return simulation, tuple(setting for setting in settings if setting not in own)


def layered(*layers: Sequence[str]) -> tuple[str, ...]:
    """Lay settings over others: of one key the last layer's value holds, and for both stages over one of them.

    Raises
    ------
    MeidbenchError
        One layer sets a key twice, or a setting has no ``=``.

    Examples
    --------
    >>> layered(["schedule.epochs=9", "seed=1"], ["schedule.epochs=2"])
    ('seed=1', 'schedule.epochs=2')
    >>> layered(["stage2.seed=1"], ["seed=2"]), layered(["seed=1"], ["stage2.seed=2"])
    (('seed=2',), ('seed=1', 'stage2.seed=2'))
    """
    kept: list[str] = []
    for layer in layers:
        above = set(flatten(parse_settings(layer, EXAMPLE_SETTING)))
        kept = [setting for setting in kept if not _is_covered(setting, above)]
        kept += layer
    return tuple(kept)


def stage_of(key: str) -> tuple[str, str]:
    """Split a key of a setting into its stage, empty for both, and the rest.

    Examples
    --------
    >>> stage_of("stage2.model.beta"), stage_of("model.beta")
    (('stage2', 'model.beta'), ('', 'model.beta'))
    """
    stage, _, rest = key.partition(".")
    return (stage, rest) if stage in STAGES else ("", key)


def _is_covered(setting: str, above: set[str]) -> bool:
    keys = list(flatten(parse_settings([setting], EXAMPLE_SETTING)))
    return bool(keys) and all(key in above or stage_of(key)[1] in above for key in keys)
