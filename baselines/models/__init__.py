"""Models: what frames go through before, around and after an aggregator. ``MODELS`` names them."""

from meidbench.baselines.models.base import Model, Outputs, Plain, Task
from meidbench.baselines.models.meid import ExpertOne, ExpertTwo
from meidbench.baselines.models.move import Move

__all__ = ["MODELS", "Model", "Outputs", "Task"]

MODELS: dict[str, type[Model]] = {
    "plain": Plain,
    "meid_one": ExpertOne,
    "meid_two": ExpertTwo,
    "move": Move,
}
