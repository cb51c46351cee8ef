"""Splits of the benchmarks that are at hand: named files, built ones, or made from annotations."""

from collections.abc import Sequence
from pathlib import Path

from meidbench.annotations.official import annotation_paths
from meidbench.errors import MeidbenchError
from meidbench.names import DATASETS
from meidbench.splits.manifests import load_manifest, split_path
from meidbench.splits.released import build_released
from meidbench.splits.split import Split, load_split


class BuiltSplits:
    """The splits of the benchmarks, each looked for once.

    Parameters
    ----------
    files : sequence of Path
        Split files; benchmarks of which there is none are looked for under MEIDBENCH_HOME.
    annotations : sequence of Path
        Folders of official annotations, from which splits that are not built are made in memory.

    Attributes
    ----------
    paths : dict of str to Path
        The files of those that have been found, by benchmark.

    Raises
    ------
    MeidbenchError
        A file is unreadable, of another benchmark, or the second of one.
    """

    def __init__(self, files: Sequence[Path] = (), annotations: Sequence[Path] = ()) -> None:
        self.annotations = tuple(annotations)
        self.paths: dict[str, Path] = {}
        self._splits: dict[str, Split | None] = {}
        for path in files:
            split = load_split(path)
            if split.dataset not in DATASETS:
                raise MeidbenchError(f"{path} is of {split.dataset}; the tables are of {', '.join(DATASETS)}")
            if split.dataset in self.paths:
                raise MeidbenchError(f"two splits of {split.dataset} are named: {self.paths[split.dataset]} and {path}")
            self._splits[split.dataset], self.paths[split.dataset] = split, path

    def get(self, dataset: str) -> Split | None:
        """Return a benchmark's split, None where there is none.

        Raises
        ------
        MeidbenchError
            The annotations for it are damaged or others.
        """
        if dataset not in self._splits:
            self._splits[dataset] = self._found(dataset)
        return self._splits[dataset]

    def _found(self, dataset: str) -> Split | None:
        if split_path(dataset).is_file():
            self.paths[dataset] = split_path(dataset)
            return load_split(dataset)
        manifest = load_manifest(dataset)
        for folder in self.annotations:
            if all(annotation_paths(manifest, folder).values()):
                return build_released(dataset, folder)
        return None


def build_command(dataset: str) -> str:
    """Return how a split is built.

    Examples
    --------
    >>> build_command("charadeslt")
    'meidbench download charadeslt --accept-licence && meidbench build-splits charadeslt'
    """
    return f"meidbench download {dataset} --accept-licence && meidbench build-splits {dataset}"
