"""Long-tailed multi-label video recognition: exact splits, loaders and one evaluator."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "MeidbenchError": "errors",
    "Split": "split",
    "load_split": "split_file",
    "VideoLT": "datasets",
    "CharadesLT": "datasets",
    "CharadesEgoLT": "datasets",
    "average_precision": "evaluation",
    "evaluate": "evaluation",
    "Result": "results",
    "read_predictions": "predictions",
    "write_predictions": "predictions",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``import meidbench`` stays light."""
    if name in _HOMES:
        return getattr(import_module(f"meidbench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'meidbench' has no attribute {name!r}")
