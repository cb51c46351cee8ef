"""Models: what frames go through before, around and after an aggregator. ``MODELS`` names them."""

from meidbench.baselines.models.base import Model, Outputs, Task
from meidbench.baselines.models.meid.expert_one import ExpertOne
from meidbench.baselines.models.meid.expert_two import ExpertTwo
from meidbench.baselines.models.move import Move
from meidbench.baselines.models.plain import Plain

__all__ = ["MODELS", "Model", "Outputs", "Task"]

MODELS: dict[str, type[Model]] = {
    "plain": Plain,
    "meid_one": ExpertOne,
    "meid_two": ExpertTwo,
    "move": Move,
}
