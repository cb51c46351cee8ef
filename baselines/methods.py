"""The methods by name: the recipes of ``recipes/``."""

from meidbench.baselines.recipes import Recipe, read_recipes

_NAMES = (
    "bce",
    "focal",
    "cb",
    "ldam",
    "eql",
    "cbs",
    "srs",
    "mixup",
    "framestack",
    "db",
    "asl",
    "logit_adjusted",
    "repeat_factor",
    "class_aware",
)

METHODS: dict[str, Recipe] = read_recipes(_NAMES)
"""What ``--method`` takes; ``NAME-compat`` behaves as VideoLT's public code does."""
