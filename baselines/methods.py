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
    "meid_block",
    "meid_one",
    "meid",
    "move_aggregator",
    "move",
)

METHODS: dict[str, Recipe] = read_recipes(_NAMES)
"""What ``--method`` takes; ``NAME-compat`` is as VideoLT's public code has it, ``NAME-release`` as its authors' has."""
