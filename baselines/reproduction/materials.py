"""The splits and features that rows are run on: the user's files, simulated ones, or words as a proxy."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from meidbench.annotations import Annotations, annotation_paths, has_texts
from meidbench.baselines.aggregators import AGGREGATORS
from meidbench.baselines.configuration import known_options
from meidbench.baselines.inputs import Inputs, read_backbone
from meidbench.baselines.reproduction import table_content
from meidbench.checks import match_name, parse_settings, read_dataclass, suggest
from meidbench.errors import FeatureError, MeidbenchError, RequestError, bullet_list
from meidbench.features import FeatureSource, open_features
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.features.words import make_word_features
from meidbench.names import DATASETS, RELEASED, WITHOUT_VIDEOS, ProgressBar
from meidbench.splits.groups import Groups, Thresholds
from meidbench.splits.manifests import annotations_folder, load_manifest, split_path
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
    by = manifest.thresholds or Thresholds(100, 20)  # by a list, the classes of a group have any numbers of videos
    # The fewest training videos that a class of its group can have; the first classes are the most frequent.
    counts = [by.head_above + 1] * int(manifest.sizes["head"])
    counts += [by.tail_up_to + 1] * int(manifest.sizes["medium"])
    counts += [1] * (manifest.num_classes - len(counts))
    train = [tuple(range(sum(count > video for count in counts))) for video in range(by.head_above + 1)]
    names, size = tuple(f"class {index}" for index in range(manifest.num_classes)), len(train) + 2
    videos, labels, empty = [f"video{index}" for index in range(size)], [*train, (0,), (0,)], [""] * size
    annotations = Annotations(names, videos, empty, labels, [1.0] * size, empty, empty, empty, [()] * size)
    groups = Groups.from_counts(counts, **dataclasses.asdict(by)).names(len(counts))
    annotations.groups, annotations.group_names = tuple(groups), dict(manifest.group_names)
    thresholds = {"head_above": manifest.head_above, "tail_up_to": manifest.tail_up_to}
    subsets = ["train"] * len(train) + ["val", "test"]
    return Split.from_annotations(annotations, subsets, dataset=dataset, variant="stand-in", **thresholds)


@dataclass(frozen=True)
class Simulation:
    """The settings ``simulation.KEY=VALUE`` of ``--simulate``; see ``meidbench.features.simulation``."""

    prefix: ClassVar[str] = "simulation"  # of its settings
    backbone: ClassVar[str] = "simulation"

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

    def describe(self, split: Split, dataset: str) -> str:
        """Describe the features of a split, as a difference from the published row."""
        videos = "invented videos" if split.variant == "invented" else f"the real split of {dataset}"
        return f"simulated features of {videos}, {self.frames} x {self.dim}"


@dataclass(frozen=True)
class WordProxy:
    """The settings ``proxy.KEY=VALUE`` of ``--proxy words``; see ``meidbench.features.words``.

    The schedule and the sizes of the published rows stay.
    """

    prefix: ClassVar[str] = "proxy"
    backbone: ClassVar[str] = "words"

    frames: int = 32  # words per video, in training and scoring; a video has 36 on average
    dim: int = 256

    _least: ClassVar[dict[str, float]] = {"frames": 1, "dim": 1}

    def settings(self, aggregator: str | None = None) -> tuple[str, ...]:
        """Return the settings of runs on words, which the user's override."""
        return (f"frames.train={self.frames}", f"frames.test={self.frames}")

    def describe(self, split: Split, dataset: str) -> str:
        """Describe the features of a split, as a difference from the published row."""
        return f"word features of the real split of {dataset}, {self.dim} wide"


Substitute = Simulation | WordProxy  # takes the place of features that are extracted from videos
_Kind = TypeVar("_Kind", Simulation, WordProxy)


def parse_substitute(kind: type[_Kind], settings: Sequence[str]) -> tuple[_Kind, tuple[str, ...]]:
    """Read ``simulation.KEY=VALUE`` or ``proxy.KEY=VALUE`` from settings; return it and the other settings."""
    prefix = kind.prefix
    own = [setting for setting in settings if setting.startswith(f"{prefix}.")]
    table = parse_settings(own, f"{prefix}.frames=8", error=RequestError).get(prefix, {})
    problems: list[str] = []
    substitute = read_dataclass(kind, table, problems, f"{prefix}.")
    if problems:
        raise RequestError(f"{len(problems)} problem(s) with the {prefix}:\n{bullet_list(problems)}")
    return substitute, tuple(setting for setting in settings if setting not in own)


@dataclass(frozen=True)
class Material:
    """A benchmark's split, and the features of its videos by an encoder."""

    dataset: str
    encoder: str
    split: Split  # the stand-in where the benchmark's split is missing
    has_split: bool
    split_path: Path | None  # None for a split in memory
    features_path: Path | None  # None where the user named no features
    substitute: Substitute | None = None
    make_features: Callable[[], Any] | None = None  # writes those of a substitute that are not in the file yet
    lacking: str = ""  # why there is no substitute for the features

    @property
    def split_source(self) -> Split | Path:
        """The split for a run: its file where it has one; that of a substitute is written."""
        if self.substitute is not None and self.split_path is not None and not self.split_path.is_file():
            write_split(self.split, self.split_path)
        return self.split_path or self.split

    @cached_property
    def features(self) -> FeatureSource:
        """The features; those of a substitute are written first."""
        assert self.features_path is not None
        if self.make_features is not None:
            self.make_features()
        return open_features(self.features_path)

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of runs, with digests of the split and the features."""
        return Inputs.from_sources(self.split, self.features)

    @cached_property
    def substituted(self) -> tuple[str, ...]:
        """The inputs that must be real, but are simulated or words according to their own files."""
        if self.substitute is not None:
            return ()
        found = []
        if self.split.variant in ("simulated", "invented"):
            found.append(f"a real split of {self.dataset} (this one is of the variant {self.split.variant})")
        # A row whose features cannot be read fails by itself.
        with suppress(FeatureError):
            kind = read_backbone(self.features) if self.features_path is not None else ""
            if what := WITHOUT_VIDEOS.get(kind):
                found.append(f"real features of {self.encoder} on {self.dataset} (these are {what})")
        return tuple(found)

    @property
    def missing(self) -> tuple[str, ...]:
        """The inputs that a row needs and that are missing, or not real."""
        if self.lacking:
            return (self.lacking,)
        missing = [] if self.has_split else [f"the split of {self.dataset}"]
        missing += [] if self.features_path else [f"features of {self.encoder} on {self.dataset}"]
        return (*missing, *self.substituted)

    def differences(self) -> tuple[str, ...]:
        """Say how the split and the features differ from those of the published rows."""
        if self.substitute is not None:
            return (self.substitute.describe(self.split, self.dataset),)
        needs, backbone = table_content("needs"), read_backbone(self.features)
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


class InputFiles:
    """The splits of the benchmarks, and the features of their videos: those of ``parse_features``, or a substitute.

    A split that is not among ``split_files`` is read from MEIDBENCH_HOME, else made in memory from ``annotations``. The
    names of the splits of a substitute begin with ``simulated-`` or ``words-``, so that predictions on them cannot be
    scored on a benchmark.
    """

    def __init__(
        self,
        split_files: Sequence[Path] = (),
        annotations: Sequence[Path] = (),
        features: Mapping[tuple[str, str], Path] | None = None,
        substitute: Substitute | None = None,
        out: Path = Path(),
        progress: ProgressBar | None = None,
    ) -> None:
        self._annotations, self._feature_paths = annotations, features or {}
        self._substitute, self._out, self._progress = substitute, out, progress
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
            substitute = self._substitute
            if isinstance(substitute, WordProxy):
                material = self._use_words(material, substitute)
            elif substitute is not None and not (split is None and substitute.split == "own"):
                material = self._simulate(dataset, encoder, split, substitute)
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
        make = partial(
            simulate_features,
            split,
            features,
            frames=simulation.frames,
            dim=simulation.dim,
            seed=seed,
            difficulty=simulation.difficulty,
            progress=self._progress,
        )
        path = self._out / "splits" / f"{name}.parquet"
        return Material(dataset, encoder, split, True, path, features, simulation, make)

    def _use_words(self, material: Material, proxy: WordProxy) -> Material:
        """Put words in the place of a benchmark's features, where its annotations have them."""
        dataset, manifest = material.dataset, load_manifest(material.dataset)
        if not has_texts(manifest):
            lacking = f"word features of {dataset}, whose annotations hold no descriptions"
            return dataclasses.replace(material, features_path=None, lacking=lacking)
        folders = [*self._annotations, annotations_folder(manifest.annotations)]
        folder = next((place for place in folders if all(annotation_paths(manifest, place).values())), None)
        if folder is None:
            lacking = f"the annotation files of {dataset} (--annotations DIR)"
            return dataclasses.replace(material, features_path=None, lacking=lacking)
        split = renamed(material.split if material.has_split else build_released(dataset, folder), f"words-{dataset}")
        name = f"{split.dataset}-{split.digest[:12]}"
        features = self._out / "features" / f"{split.dataset}-{proxy.dim}.h5"
        make = partial(make_word_features, manifest, folder, features, dim=proxy.dim, progress=self._progress)
        path = self._out / "splits" / f"{name}.parquet"
        return Material(dataset, material.encoder, split, True, path, features, proxy, make)
