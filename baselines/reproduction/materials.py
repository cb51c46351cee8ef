"""The splits and features that rows are run on: the user's files, or simulated ones."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

from meidbench.annotations import Annotations, annotation_paths
from meidbench.baselines.aggregators import AGGREGATORS
from meidbench.baselines.configuration import known_options
from meidbench.baselines.reproduction import table_content
from meidbench.baselines.run_folder import Inputs, read_feature_header
from meidbench.checks import match_name, parse_settings, read_dataclass, suggest
from meidbench.errors import FeatureError, MeidbenchError, RequestError, bullet_list
from meidbench.features import FeatureSource, open_features
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.names import DATASETS, RELEASED, ProgressBar
from meidbench.splits.manifests import load_manifest, split_path
from meidbench.splits.released import build_released
from meidbench.splits.split import Split, load_split, write_split

_invent_split = cache(simulate_split)


def parse_features(texts: Iterable[str]) -> dict[tuple[str, str], Path]:
    """Read ``ENCODER=PATH`` and ``DATASET:ENCODER=PATH`` into paths by dataset (empty for all) and encoder."""
    encoders = {name.lower(): name for name in table_content("needs")["encoders"]}
    known = ", ".join(encoders.values())
    paths: dict[tuple[str, str], Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        dataset, colon, encoder = name.rpartition(":")
        dataset = match_name(dataset, DATASETS)
        if not equals or not path or (colon and dataset not in DATASETS):
            raise RequestError(
                f"{text!r} names no features; expected ENCODER=PATH or DATASET:ENCODER=PATH with one of {known} and "
                f"one of {', '.join(DATASETS)}"
            )
        if encoder.lower() not in encoders:
            raise RequestError(f"unknown encoder {encoder!r}{suggest(encoder, encoders.values())}; known: {known}")
        key = (dataset, encoders[encoder.lower()])
        if key in paths:
            raise RequestError(f"features of {name} are named twice: {paths[key]} and {path}")
        if not Path(path).exists():
            raise RequestError(
                f"there are no features of {name} at {path}\n"
                "'meidbench reproduce TABLE --plan' prints the command that makes them"
            )
        try:
            open_features(path).close()  # what cannot be opened is not there; rows are read by the runs
        except FeatureError as error:
            raise MeidbenchError(f"the features of {name} cannot be read: {error}") from None
        paths[key] = Path(path)
    return paths


def renamed(split: Split, dataset: str, variant: str | None = None) -> Split:
    """Return the same videos under another name, and as another variant."""
    return Split(split.table, dataclasses.replace(split.metadata, dataset=dataset, variant=variant or split.variant))


@cache
def stand_in(dataset: str) -> Split:
    """Return an invented split with the name, classes, thresholds and group sizes of a benchmark, to plan on."""
    manifest = load_manifest(dataset)
    # The fewest training videos that a class of its group can have; the first classes are the most frequent.
    counts = [manifest.head_above + 1] * int(manifest.paper["head"])
    counts += [manifest.tail_up_to + 1] * int(manifest.paper["medium"])
    counts += [1] * (manifest.num_classes - len(counts))
    train = [tuple(range(sum(count > video for count in counts))) for video in range(manifest.head_above + 1)]
    names, size = tuple(f"class {index}" for index in range(manifest.num_classes)), len(train) + 2
    videos, labels, empty = [f"video{index}" for index in range(size)], [*train, (0,), (0,)], [""] * size
    annotations = Annotations(names, videos, empty, labels, [1.0] * size, empty, empty, empty, [()] * size)
    thresholds = {"head_above": manifest.head_above, "tail_up_to": manifest.tail_up_to}
    subsets = ["train"] * len(train) + ["val", "test"]
    return Split.from_annotations(annotations, subsets, dataset=dataset, variant="stand-in", **thresholds)


@dataclass(frozen=True)
class Simulation:
    """The settings ``simulation.KEY=VALUE`` of ``--simulate``; see ``meidbench.features.simulation``."""

    # "own" simulates features of the benchmark's real videos, "invented" of an invented split; "auto" takes the real
    # split where it is built and has at most most_videos.
    split: str = "auto"
    frames: int = 8
    dim: int = 64
    difficulty: float = 0.5
    seed: int = 0  # of features and invented splits; each encoder has its own features
    most_videos: int = 20_000

    _least: ClassVar[dict[str, float]] = {"frames": 1, "dim": 1, "difficulty": 0, "seed": 0, "most_videos": 0}
    _known: ClassVar[dict[str, tuple[str, ...]]] = {"split": ("auto", "own", "invented")}

    def settings(self, aggregator: str | None = None) -> tuple[str, ...]:
        """Return the settings of simulated runs, which the user's override; some depend on the aggregator."""
        needs = table_content("needs")["simulation"]
        known = known_options(AGGREGATORS[aggregator]) if aggregator else {}
        small = (f"aggregator.{key}={value}" for key, value in needs["aggregator"].items() if key in known)
        return (*needs["settings"], f"frames.train={self.frames}", f"frames.test={self.frames}", *small)


def parse_simulation(settings: Sequence[str]) -> tuple[Simulation, tuple[str, ...]]:
    """Read ``simulation.KEY=VALUE`` from settings; return the simulation and the other settings."""
    own = [setting for setting in settings if setting.startswith("simulation.")]
    table = parse_settings(own, "simulation.frames=8", error=RequestError).get("simulation", {})
    problems: list[str] = []
    simulation = read_dataclass(Simulation, table, problems, "simulation.")
    if problems:
        raise RequestError(f"{len(problems)} problem(s) with the simulation:\n{bullet_list(problems)}")
    return simulation, tuple(setting for setting in settings if setting not in own)


@dataclass(frozen=True)
class Material:
    """A benchmark's split, and the features of its videos by an encoder."""

    dataset: str
    encoder: str
    split: Split  # the stand-in where the benchmark's split is missing
    has_split: bool
    split_path: Path | None  # None for a split in memory
    features_path: Path | None  # None where the user named no features
    simulation: Simulation | None = None
    progress: ProgressBar | None = None

    @property
    def split_source(self) -> Split | Path:
        """The split for a run: its file where it has one; a simulated split is written."""
        if self.simulation is not None and self.split_path is not None and not self.split_path.is_file():
            write_split(self.split, self.split_path)
        return self.split_path or self.split

    @cached_property
    def features(self) -> FeatureSource:
        """The features; with a simulation, those that are not in the file yet are simulated."""
        assert self.features_path is not None
        if simulation := self.simulation:
            simulate_features(
                self.split,
                self.features_path,
                frames=simulation.frames,
                dim=simulation.dim,
                seed=simulation.seed,
                difficulty=simulation.difficulty,
                progress=self.progress,
            )
        return open_features(self.features_path)

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of runs, with digests of the split and the features."""
        return Inputs.from_sources(self.split, self.features)

    @cached_property
    def simulated(self) -> tuple[str, ...]:
        """The inputs that must be real, but are simulated according to their own files."""
        if self.simulation is not None:
            return ()
        found = []
        if self.split.variant in ("simulated", "invented"):
            found.append(f"a real split of {self.dataset} (this one is of the variant {self.split.variant})")
        # A row whose features cannot be read fails by itself.
        with suppress(FeatureError):
            if self.features_path is not None and self._backbone() == "simulation":
                found.append(f"real features of {self.encoder} on {self.dataset} (these are simulated)")
        return tuple(found)

    @property
    def missing(self) -> tuple[str, ...]:
        """The inputs that a row needs and that are missing, or simulated."""
        missing = [] if self.has_split else [f"the split of {self.dataset}"]
        missing += [] if self.features_path else [f"features of {self.encoder} on {self.dataset}"]
        return (*missing, *self.simulated)

    def differences(self) -> tuple[str, ...]:
        """Say how the split and the features differ from those of the published rows."""
        if self.simulation is not None:
            videos = "invented videos" if self.split.variant == "invented" else f"the real split of {self.dataset}"
            return (f"simulated features of {videos}, {self.simulation.frames} x {self.simulation.dim}",)
        needs, backbone = table_content("needs"), self._backbone()
        published, frames = needs["encoders"][self.encoder], needs["frames"][self.dataset]
        fewest = int(self.features.check(self.split.video_ids("test")).min())
        dim = self.features.dim  # of the videos that were just checked
        is_other_backbone = backbone not in ("", published["backbone"])
        found = {
            f"the split is the variant {self.split.variant}, not the released one": self.split.variant != RELEASED,
            f"features are {dim:,} wide, not {published['width']:,}": dim != published["width"],
            f"videos of {fewest:,} rows and up, not {frames:,}": fewest < frames,
            f"features are of the backbone {backbone}, not {published['backbone']}": is_other_backbone,
        }
        return tuple(text for text, differs in found.items() if differs)

    def _backbone(self) -> str:
        """Return the backbone in the recipe of a feature file, empty where it is unknown."""
        header = read_feature_header(self.features)
        return "" if header is None else str(header.recipe.get("backbone", ""))


class InputFiles:
    """The splits of the benchmarks, and the features of their videos: those of ``parse_features``, or simulated ones.

    A split that is not among ``split_files`` is read from MEIDBENCH_HOME, else made in memory from ``annotations``. The
    names of simulated splits begin with ``simulated-``, so that predictions on them cannot be scored on a benchmark.
    """

    def __init__(
        self,
        split_files: Sequence[Path] = (),
        annotations: Sequence[Path] = (),
        features: Mapping[tuple[str, str], Path] | None = None,
        simulation: Simulation | None = None,
        out: Path = Path(),
        progress: ProgressBar | None = None,
    ) -> None:
        self._annotations, self._feature_paths = annotations, features or {}
        self._simulation, self._out, self._progress = simulation, out, progress
        for folder in annotations:
            if not any(all(annotation_paths(load_manifest(name), folder).values()) for name in DATASETS):
                raise MeidbenchError(
                    f"{folder} lacks annotation files; expected all files of one of {', '.join(DATASETS)}"
                )
        self._splits: dict[str, tuple[Split | None, Path | None]] = {}
        self._materials: dict[tuple[str, str], Material] = {}
        for path in split_files:
            split = load_split(path)
            if split.dataset not in DATASETS:
                raise MeidbenchError(f"{path} is of {split.dataset}; the tables are of {', '.join(DATASETS)}")
            if split.dataset in self._splits:
                before = self._splits[split.dataset][1]
                raise MeidbenchError(f"two splits of {split.dataset} are named: {before} and {path}")
            self._splits[split.dataset] = split, path

    def split(self, dataset: str) -> tuple[Split | None, Path | None]:
        """Return the real split of a benchmark and its file; None for what is missing."""
        if dataset not in self._splits:
            path, manifest = split_path(dataset), load_manifest(dataset)
            folders = [folder for folder in self._annotations if all(annotation_paths(manifest, folder).values())]
            if path.is_file():
                self._splits[dataset] = load_split(dataset), path
            else:
                self._splits[dataset] = build_released(dataset, folders[0]) if folders else None, None
        return self._splits[dataset]

    def get(self, dataset: str, encoder: str) -> Material:
        """Return the split and the features of a benchmark."""
        key = (dataset, encoder)
        if key not in self._materials:
            split, path = self.split(dataset)
            features = self._feature_paths.get(key, self._feature_paths.get(("", encoder)))
            material = Material(*key, split or stand_in(dataset), split is not None, path, features)
            if self._simulation is not None and not (split is None and self._simulation.split == "own"):
                material = self._simulate(dataset, encoder, split, self._simulation)
            self._materials[key] = material
        return self._materials[key]

    def _simulate(self, dataset: str, encoder: str, split: Split | None, simulation: Simulation) -> Material:
        most = {"own": math.inf, "auto": simulation.most_videos, "invented": -1}[simulation.split]
        if split is not None and len(split.table) <= most:
            split = renamed(split, f"simulated-{dataset}", "simulated")
        else:
            split = renamed(_invent_split(seed=simulation.seed), f"simulated-{dataset}", "invented")
        seed = simulation.seed + list(table_content("needs")["encoders"]).index(encoder)
        name = f"{split.dataset}-{split.digest[:12]}"
        # All digits of the difficulty: simulations that differ in the last one need two files.
        shape = f"{simulation.frames}x{simulation.dim}-d{float(simulation.difficulty)!r}-s{seed}"
        features = self._out / "features" / f"{name}-{encoder}-{shape}.h5"
        path, simulation = self._out / "splits" / f"{name}.parquet", dataclasses.replace(simulation, seed=seed)
        return Material(dataset, encoder, split, True, path, features, simulation, self._progress)
