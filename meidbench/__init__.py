"""Long-tailed multi-label video recognition: exact splits, loaders and one evaluator.

The public names, as ``import meidbench as mb`` has them; the baselines are in ``meidbench.baselines``:

AnimalKingdom           the FeatureDataset of that benchmark
CharadesEgoLT           the FeatureDataset of that benchmark
CharadesLT              the FeatureDataset of that benchmark
Comparison              what compare returns: methods side by side
FeatureDataset          features and labels of any split, for a PyTorch DataLoader
MeanAveragePrecision    a metric that takes batches, and merges processes
MeidbenchError          the base class of every error that data or a call can cause
Result                  what evaluate returns: mAP of overall, head, medium and tail
Split                   videos with their subset and labels, and the groups of the classes
VideoLT                 the FeatureDataset of that benchmark
average_precision       average precision per class, of two arrays
compare                 compares the scores of several methods, with intervals and paired differences
comparison_html         a comparison as one self-contained HTML page
evaluate                scores predictions: arrays, tensors, a DataFrame or files
hold_out_val            a split with a val subset that is taken out of its training videos
load_split              the split of a benchmark by its name, or of a file
open_features           features in every form that is read, also with other names than the ids
read_predictions        reads a prediction file
split_from_pandas       a split of a DataFrame of video ids, subsets and labels
write_predictions       writes a prediction file that names its split
write_split             writes a split file
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meidbench.annotations.tables import split_from_pandas
    from meidbench.construction.held_out import hold_out_val
    from meidbench.errors import MeidbenchError
    from meidbench.evaluation.compare import Comparison, compare
    from meidbench.evaluation.evaluate import average_precision, evaluate
    from meidbench.evaluation.metric import MeanAveragePrecision
    from meidbench.evaluation.results import Result
    from meidbench.features import open_features
    from meidbench.loading.datasets import AnimalKingdom, CharadesEgoLT, CharadesLT, FeatureDataset, VideoLT
    from meidbench.predictions.align import read_predictions
    from meidbench.predictions.values import write_predictions
    from meidbench.report.html import comparison_html
    from meidbench.splits.split import Split, load_split, write_split

__version__ = "0.1.0"
__all__ = [
    "AnimalKingdom", "CharadesEgoLT", "CharadesLT", "Comparison", "FeatureDataset", "MeanAveragePrecision",
    "MeidbenchError", "Result", "Split", "VideoLT", "__version__", "average_precision", "compare", "comparison_html",
    "evaluate", "hold_out_val", "load_split", "open_features", "read_predictions", "split_from_pandas",
    "write_predictions", "write_split",
]  # fmt: skip
# As the imports above, which type checkers read; here a name is imported at its first use, so that this import is fast.
_HOMES = {
    "annotations.tables": ("split_from_pandas",),
    "construction.held_out": ("hold_out_val",),
    "errors": ("MeidbenchError",),
    "evaluation.compare": ("Comparison", "compare"),
    "evaluation.evaluate": ("average_precision", "evaluate"),
    "evaluation.metric": ("MeanAveragePrecision",),
    "evaluation.results": ("Result",),
    "features": ("open_features",),
    "loading.datasets": ("AnimalKingdom", "CharadesEgoLT", "CharadesLT", "FeatureDataset", "VideoLT"),
    "predictions.align": ("read_predictions",),
    "predictions.values": ("write_predictions",),
    "report.html": ("comparison_html",),
    "splits.split": ("Split", "load_split", "write_split"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __dir__() -> list[str]:
    # ``help`` reads every name, and an installation for scoring only cannot give the loaders.
    return [name for name in __all__ if _HOME_OF.get(name) != "loading.datasets" or find_spec("torch")]


if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name in _HOME_OF:
            try:
                return getattr(import_module(f"meidbench.{_HOME_OF[name]}"), name)
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
