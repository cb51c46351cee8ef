"""Reference baselines of long-tailed multi-label video recognition, imported as ``meidbench.baselines``.

``LOSSES``, ``SAMPLERS``, ``AUGMENTATIONS``, ``AGGREGATORS``, ``MODELS`` and ``METHODS`` are plain dicts of name ->
object. ``resolve`` makes a ``Config`` from a method and a split, and ``train`` trains a run of it.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "LOSSES": "losses",
    "SAMPLERS": "samplers",
    "AUGMENTATIONS": "augmentation",
    "AGGREGATORS": "aggregators",
    "MODELS": "models",
    "METHODS": "recipes",
    "Config": "configuration",
    "resolve": "recipes",
    "train": "training",
    "Trained": "inference",
    "predict": "inference",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that listing the names does not need torch."""
    if name in _HOMES:
        return getattr(import_module(f"meidbench.baselines.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'meidbench.baselines' has no attribute {name!r}")
