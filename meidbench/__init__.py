"""Long-tailed multi-label video recognition: exact splits, loaders and one evaluator."""

from importlib import import_module
from pathlib import Path
from typing import Any

_CLONE = Path(__file__).parents[1]
if (_CLONE / "setup.cfg").is_file() and (_CLONE / "baselines").is_dir() and (_CLONE / "splits").is_dir():
    # A clone holds these folders beside this package, an installation holds them inside it.
    __path__.append(str(_CLONE))

__version__ = "0.1.0"

_MODULES = {
    "MeidbenchError": "errors",
    "Split": "splits.split",
    "load_split": "splits.split",
    "VideoLT": "loading.datasets",
    "CharadesLT": "loading.datasets",
    "CharadesEgoLT": "loading.datasets",
    "average_precision": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "Result": "evaluation.results",
    "read_predictions": "predictions.align",
    "write_predictions": "predictions.align",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that ``import meidbench`` stays light."""
    if name in _MODULES:
        return getattr(import_module(f"meidbench.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'meidbench' has no attribute {name!r}")
