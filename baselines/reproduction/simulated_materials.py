"""Simulated features in place of real ones, so that whole tables can be run without any."""

from pathlib import Path

from meidbench.baselines.inference import show_no_progress
from meidbench.baselines.reproduction.built_splits import BuiltSplits
from meidbench.baselines.reproduction.materials import Materials, renamed
from meidbench.baselines.reproduction.needs import encoders
from meidbench.baselines.reproduction.request import Simulation
from meidbench.errors import FeatureError, MeidbenchError
from meidbench.features.feature_file import STATUSES, read_header
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.names import ProgressBar
from meidbench.splits.split import Split, write_split

PREFIX = "simulated-"


class SimulatedMaterials(Materials):
    """Simulated features of the benchmarks' own videos, or of invented ones.

    Splits bear names that begin with ``simulated-``, so that no prediction made here is taken for one of a benchmark.

    Parameters
    ----------
    simulation : Simulation
    splits : BuiltSplits
    out : Path
        Folder for splits and features.
    progress : callable
        As for ``meidbench.baselines.train``.
    """

    def __init__(
        self, simulation: Simulation, splits: BuiltSplits, out: Path, progress: ProgressBar = show_no_progress
    ) -> None:
        super().__init__(splits)
        self.simulation, self.out, self.progress = simulation, out, progress
        self._simulated: dict[str, Split] = {}

    def split(self, dataset: str) -> Split:
        """Return the benchmark's split under another name, or an invented one."""
        if dataset not in self._simulated:
            self._simulated[dataset] = self._named(dataset)
        return self._simulated[dataset]

    def _named(self, dataset: str) -> Split:
        wanted = self.simulation.split
        own = None if wanted == "invented" else self.splits.get(dataset)
        if wanted == "own" and own is None:
            raise MeidbenchError(
                f"the split of {dataset} is not built, which simulation.split=own asks for: meidbench build-splits "
                f"{dataset}; or leave that out"
            )
        if own is not None and (wanted == "own" or len(own.table) <= self.simulation.most_videos):
            return renamed(own, PREFIX + dataset, "simulated")
        return renamed(simulate_split(seed=self.simulation.seed), PREFIX + dataset, "invented")

    def split_path(self, dataset: str) -> Path:
        """Write the split, and return its file."""
        split = self.split(dataset)
        path = self.out / "splits" / f"{split.dataset}-{split.digest[:12]}.parquet"
        return path if path.is_file() else write_split(split, path)

    def has_features(self, dataset: str, encoder: str) -> bool:
        """Return that there are: they are simulated when they are asked for."""
        return True

    def features_path(self, dataset: str, encoder: str) -> Path:
        """Simulate the features of an encoder, or go on with it, and return their file."""
        simulation, split = self.simulation, self.split(dataset)
        seed, path = self._seed(encoder), self._file(dataset, encoder)
        path.parent.mkdir(parents=True, exist_ok=True)
        return simulate_features(
            split,
            path,
            frames=simulation.frames,
            dim=simulation.dim,
            seed=seed,
            difficulty=simulation.difficulty,
            progress=self.progress,
        )

    def _seed(self, encoder: str) -> int:
        return self.simulation.seed + list(encoders().values()).index(encoder)

    def _file(self, dataset: str, encoder: str) -> Path:
        simulation, split = self.simulation, self.split(dataset)
        # The difficulty in full: two that differ in the last digit are two simulations.
        shape = f"{simulation.frames}x{simulation.dim}-d{float(simulation.difficulty)!r}-s{self._seed(encoder)}"
        return self.out / "features" / f"{split.dataset}-{split.digest[:12]}-{encoder}-{shape}.h5"

    def width(self, dataset: str, encoder: str) -> int:
        """Return how wide features are simulated."""
        return self.simulation.dim

    def is_made(self, dataset: str, encoder: str) -> bool:
        """Tell whether they have been simulated, to the last video."""
        try:
            return bool((read_header(self._file(dataset, encoder)).status != STATUSES.index("pending")).all())
        except FeatureError:
            return False

    def unreal(self, dataset: str, encoder: str) -> tuple[str, ...]:
        """Return nothing: here all is simulated, and says so."""
        return ()

    def remarks(self, dataset: str, encoder: str) -> list[str]:
        """Say what is simulated."""
        split, simulation = self.split(dataset), self.simulation
        videos = "invented videos" if split.variant == "invented" else f"the real split of {dataset}"
        return [f"simulated features of {videos}, {simulation.frames} x {simulation.dim}"]
