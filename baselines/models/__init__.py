"""Models: an aggregator, and the layers before, around and after it. ``MODELS`` names them."""

from meidbench.baselines.models.base import Model, ModelInputs, Outputs, Plain
from meidbench.baselines.models.linear_probe import LinearProbe
from meidbench.baselines.models.meid import ExpertOne, ExpertTwo
from meidbench.baselines.models.move import Move
from meidbench.baselines.models.text_adapter import TextAdapter

__all__ = ["MODELS", "Model", "ModelInputs", "Outputs"]

MODELS: dict[str, type[Model]] = {
    "plain": Plain,
    "meid_one": ExpertOne,
    "meid_two": ExpertTwo,
    "move": Move,
    "linear_probe": LinearProbe,
    "text_adapter": TextAdapter,
}
