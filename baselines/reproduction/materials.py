"""The splits and features that rows are run on."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from meidbench.annotations import Annotations
from meidbench.baselines.reproduction.built_splits import BuiltSplits
from meidbench.baselines.reproduction.needs import encoder_named, encoders, feature_need
from meidbench.baselines.run_folder import Inputs
from meidbench.errors import FeatureError, MeidbenchError
from meidbench.features import FeatureSource, open_features
from meidbench.features.feature_file import read_header
from meidbench.names import DATASETS
from meidbench.splits.manifests import load_manifest
from meidbench.splits.split import Split

# What ``meidbench.features.simulation``, simulated tables and ``meidbench.features.simulation`` write into their files.
_UNREAL_VARIANTS = ("simulated", "invented")
_UNREAL_BACKBONE = "simulation"


def renamed(split: Split, dataset: str, variant: str | None = None) -> Split:
    """Return the same videos under another name.

    Examples
    --------
    >>> renamed(stand_in("videolt"), "charadeslt").dataset
    'charadeslt'
    """
    variant = split.variant if variant is None else variant
    return Split(split.table, dataclasses.replace(split.metadata, dataset=dataset, variant=variant))


@cache
def stand_in(dataset: str) -> Split:
    """Return an invented split with a benchmark's name, classes, thresholds and sizes of groups.

    Configurations are resolved on it, and models are counted, where the real one is not built.

    Examples
    --------
    >>> split = stand_in("videolt")
    >>> split.num_classes, len(split.groups.head), len(split.groups.tail)
    (1004, 47, 340)
    """
    manifest = load_manifest(dataset)
    # As few training videos as a class of its group can have: the first classes are the most frequent.
    counts = [manifest.head_above + 1] * int(manifest.paper["head"])
    counts += [manifest.tail_up_to + 1] * int(manifest.paper["medium"])
    counts += [1] * (manifest.num_classes - len(counts))
    videos = manifest.head_above + 1
    labels = [tuple(range(sum(count > video for count in counts))) for video in range(videos)]
    total = videos + 2
    annotations = Annotations(
        class_names=tuple(f"class {index}" for index in range(manifest.num_classes)),
        video_ids=[f"video{index}" for index in range(total)],
        sources=["invented"] * total,
        labels=[*labels, (0,), (0,)],
        lengths=[1.0] * total,
        subjects=[""] * total,
        views=[""] * total,
        pair_ids=[""] * total,
        segments=[()] * total,
    )
    return Split.from_annotations(
        annotations,
        ["train"] * videos + ["val", "test"],
        dataset=dataset,
        variant="stand-in",
        head_above=manifest.head_above,
        tail_up_to=manifest.tail_up_to,
    )


def parse_features(texts: Iterable[str]) -> dict[tuple[str, str], Path]:
    """Read ``ENCODER=PATH`` and ``DATASET:ENCODER=PATH``.

    Returns
    -------
    dict
        Path by dataset (empty for all) and encoder.

    Raises
    ------
    MeidbenchError
        One is no such text, names what does not exist, or what was named before.

    Examples
    --------
    >>> list(parse_features(["videolt:resnet50=."]))
    [('videolt', 'ResNet50')]
    """
    paths: dict[tuple[str, str], Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        dataset, colon, encoder = name.rpartition(":")
        if not equals or not path or (colon and dataset not in DATASETS):
            raise MeidbenchError(
                f"{text!r} names no features; expected ENCODER=PATH or DATASET:ENCODER=PATH with one of "
                f"{', '.join(encoders().values())} and one of {', '.join(DATASETS)}"
            )
        key = (dataset, encoder_named(encoder))
        if key in paths:
            raise MeidbenchError(f"features of {name} are named twice: {paths[key]} and {path}")
        if not Path(path).exists():
            raise MeidbenchError(f"there are no features of {name} at {path}")
        paths[key] = Path(path)
    return paths


class Materials:
    """Splits that are at hand, and the user's features.

    Parameters
    ----------
    splits : BuiltSplits
    features : mapping
        As ``parse_features`` gives it.
    """

    def __init__(self, splits: BuiltSplits, features: Mapping[tuple[str, str], Path] | None = None) -> None:
        self.splits = splits
        self.paths = dict(features or {})
        self._features: dict[tuple[str, str], FeatureSource] = {}
        self._inputs: dict[tuple[str, str], Inputs] = {}

    def split(self, dataset: str) -> Split | None:
        """Return the split that runs of a benchmark are trained on, None where there is none."""
        return self.splits.get(dataset)

    def split_path(self, dataset: str) -> Path | None:
        """Return the file of that split, None where it was made in memory."""
        self.split(dataset)
        return self.splits.paths.get(dataset)

    def features_path(self, dataset: str, encoder: str) -> Path | None:
        """Return where features are, None where none are named."""
        return self.paths.get((dataset, encoder), self.paths.get(("", encoder)))

    def has_features(self, dataset: str, encoder: str) -> bool:
        """Tell whether there are features of an encoder, or will be when they are asked for."""
        return self.features_path(dataset, encoder) is not None

    def features(self, dataset: str, encoder: str) -> FeatureSource | None:
        """Return the features of an encoder, None where there are none.

        Raises
        ------
        FeatureError
            What is there cannot be read.
        """
        key = (dataset, encoder)
        if key not in self._features:
            path = self.features_path(dataset, encoder)
            if path is None:
                return None
            self._features[key] = open_features(path)
        return self._features[key]

    def inputs(self, dataset: str, encoder: str) -> Inputs:
        """Return what runs on a split and its features are made from.

        Raises
        ------
        MeidbenchError
            There is no split, or features are missing or malformed.
        """
        key = (dataset, encoder)
        if key not in self._inputs:
            split, features = self.split(dataset), self.features(dataset, encoder)
            if split is None or features is None:
                raise MeidbenchError(f"there is no split or there are no features of {dataset} with {encoder}")
            self._inputs[key] = Inputs.of(split, features)
        return self._inputs[key]

    def resolving(self, dataset: str) -> Split:
        """Return a split of a benchmark's own name, which recipes go by."""
        split = self.split(dataset)
        return stand_in(dataset) if split is None else renamed(split, dataset)

    def width(self, dataset: str, encoder: str) -> int | None:
        """Return how wide the features of an encoder are, None where there are none.

        Raises
        ------
        FeatureError
            What is there cannot be read.
        """
        features = self.features(dataset, encoder)
        return None if features is None else features.dim

    def is_made(self, dataset: str, encoder: str) -> bool:
        """Tell whether the features of an encoder are there now."""
        return self.has_features(dataset, encoder)

    def unreal(self, dataset: str, encoder: str) -> tuple[str, ...]:
        """Say what of a split and its features is simulated, by what they say of themselves, and must be real."""
        split, needs = self.split(dataset), []
        if split is not None and split.variant in _UNREAL_VARIANTS:
            needs.append(f"a real split of {dataset} (the one at hand is of the variant {split.variant})")
        try:
            features = self.features(dataset, encoder)
        except FeatureError:  # a row fails of itself where its features cannot be read
            features = None
        if features is not None and _backbone(features) == _UNREAL_BACKBONE:
            needs.append(f"real features of {encoder} on {dataset} (those at hand are simulated)")
        return tuple(needs)

    def remarks(self, dataset: str, encoder: str) -> list[str]:
        """Say in what a split and its features differ from those that the published rows were measured on."""
        split, features, need = self.split(dataset), self.features(dataset, encoder), feature_need(dataset, encoder)
        assert split is not None and features is not None
        said = (
            [] if split.variant == "released" else [f"the split is the variant {split.variant}, not the released one"]
        )
        if features.dim != need.width:
            said.append(f"features are {features.dim:,} wide, not {need.width:,}")
        fewest = int(features.check(split.video_ids("test")).min())
        if fewest < need.frames:
            said.append(f"videos of {fewest:,} rows and up, not {need.frames:,}")
        backbone = _backbone(features)
        if backbone not in ("", need.backbone):
            said.append(f"features are of the backbone {backbone}, not {need.backbone}")
        return said


def _backbone(features: FeatureSource) -> str:
    if not features.path.is_file():
        return ""
    try:
        return str(read_header(features.path).recipe.get("backbone", ""))
    except FeatureError:  # an HDF5 file that others wrote
        return ""
