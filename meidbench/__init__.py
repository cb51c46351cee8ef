"""Long-tailed multi-label video recognition: exact splits, loaders and one evaluator."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

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
    "write_predictions": "predictions.values",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that ``import meidbench`` stays light."""
    if name in _MODULES:
        try:
            return getattr(import_module(f"meidbench.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            from meidbench.errors import missing_package

            raise missing_package(error) from None
    raise AttributeError(f"module 'meidbench' has no attribute {name!r}")


class _CloneFinder:
    """Finds the folders beside this package in a clone; an installation holds them inside the package."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of ``meidbench.baselines`` or ``meidbench.splits`` where the import system finds none."""
        package, _, folder = name.partition(".")
        file = Path(__file__).parents[1] / folder / "__init__.py"
        is_beside = package == "meidbench" and folder in ("baselines", "splits") and file.is_file()
        return spec_from_file_location(name, file) if is_beside else None


sys.meta_path.append(_CloneFinder)
