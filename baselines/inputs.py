"""The inputs of a run besides its configuration: the facts by which a split and its features are known again."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from meidbench.checks import convert, show, whole_number
from meidbench.errors import MeidbenchError
from meidbench.features import FeatureSource, PackedFile, open_features
from meidbench.features.feature_file import Header, stored_checksums
from meidbench.names import SUBSETS
from meidbench.splits.split import Split

# Videos per subset whose rows go into the digest of features without checksums.
_SAMPLED_VIDEOS = 16


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run besides its configuration."""

    dataset: str
    variant: str
    split_digest: str
    dim: int  # width of the features
    features_digest: str
    recipe_digest: str  # of the recipe in the feature file; empty without a recipe
    split_path: str = ""  # where it was; two runs that differ only in paths are the same run
    features_path: str = ""
    features_prefix: str = ""  # as in ``open_features``; with the path, they open the features again
    features_suffix: str = ""
    features_dataset: str = ""
    first_stage_digest: str = ""  # of the weights that the run begins with; empty for new weights
    rows_check: str = ""  # full, sample or none: the rows that were read before the training
    rows_digest: str = ""  # of all rows as they were read; empty where not all were
    content_digest: str = ""  # of the split, with class names and groups; empty in runs of an earlier version
    backbone: str = ""  # in the recipe of the feature file; empty where it is unknown
    first_stage_steps: int = 0  # of the optimiser, as ``RunFolder.count_steps``; 0 without a first stage, or if unknown
    text_digest: str = ""  # of the text that the weights start from; empty for a model without text
    trials: int = 1  # the trials of a search from which the configuration was chosen; another number is no other run

    @classmethod
    def from_sources(cls, split: Split, features: FeatureSource, split_path: str = "", trials: int = 1) -> "Inputs":
        """Describe a split and its features; refuse features that are missing or malformed."""
        trials = whole_number("trials", trials, 1)
        digest = digest_features(split, features)  # first: dim is that of the videos that it checks
        if split_path and Path(split_path).is_file():
            split_path = str(Path(split_path).absolute())
        return cls(
            split.dataset,
            split.variant,
            split.digest,
            features.dim,
            digest,
            digest_recipe(features),
            split_path,
            str(features.path),
            **{f"features_{name}": value for name, value in vars(features.naming).items()},
            content_digest=split.content_digest,
            trials=trials,
            backbone=read_backbone(features),
        )

    def open_features(self) -> FeatureSource:
        """Open the features at their path."""
        if not Path(self.features_path).exists():
            raise MeidbenchError(
                f"the features of the run are not at {self.features_path} any more; name them with features=..."
            )
        naming = {"prefix": self.features_prefix, "suffix": self.features_suffix, "dataset": self.features_dataset}
        return open_features(self.features_path, **naming)

    def differences(self, other: "Inputs") -> list[str]:
        """Return one line per difference from other inputs; paths do not count."""
        texts = {
            "split_digest": "the split has other videos or labels",
            "dim": f"the features are {self.dim} wide in the run, {other.dim} now",
            "features_digest": "the features have other values",
            "recipe_digest": "the features were made by another recipe",
            "first_stage_digest": "the first stage has other weights",
            "text_digest": "the text of the classes has other vectors",
        }
        differing = [name for name in texts if getattr(self, name) != getattr(other, name)]
        # An earlier version recorded no digest of the rows, and a sample gives none: there is nothing to compare then.
        if "" not in (self.rows_digest, other.rows_digest) and self.rows_digest != other.rows_digest:
            differing.append("features_digest")
        found = [texts[name] for name in dict.fromkeys(differing)]
        if self.split_digest == other.split_digest and self.has_other_content(other.content_digest):
            found.append("the split has other class names or groups")
        return found

    def has_other_content(self, digest: str) -> bool:
        """Return whether the content digest of a split is another one; unknown ones are not."""
        return "" not in (self.content_digest, digest) and self.content_digest != digest

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> "Inputs":
        """Return the inputs in a table of JSON; raise ``TypeError`` or ``KeyError`` for other keys and types."""
        kinds = get_type_hints(cls)
        if wrong := [name for name, value in table.items() if not convert(value, kinds[name])[0]]:
            raise TypeError(f"inputs.{wrong[0]} is {show(table[wrong[0]])}")
        return cls(**table)


def digest_features(split: Split, features: FeatureSource) -> str:
    """Return a sha256 that tells the features of a split from others.

    For a feature file it covers the stored checksum of every video of the split. Other forms have no checksums: there
    it covers the number of rows of each video, and the rows of a few videos per subset, which other features may share.
    ``check_rows`` reads all rows. Missing and malformed videos of all subsets are refused together.
    """
    digest = hashlib.sha256()
    header = read_feature_header(features)
    checksums = None
    if header is not None:
        checksums = dict(zip(header.layout.video_ids, stored_checksums(features.path), strict=True))
    features.check(split.table.column("video_id").to_pylist())
    for subset in SUBSETS:
        video_ids = split.video_ids(subset)
        if not video_ids:
            continue
        digest.update(features.check(video_ids).tobytes())
        if checksums is not None:
            digest.update(
                np.array([checksums[features.naming.stored(video_id)] for video_id in video_ids], "<u4").tobytes()
            )
            continue
        sampled = np.linspace(0, len(video_ids) - 1, min(_SAMPLED_VIDEOS, len(video_ids))).astype(int)
        for position in np.unique(sampled):
            digest.update(np.ascontiguousarray(features.read(video_ids[position])).tobytes())
    features.close()
    return digest.hexdigest()


def digest_recipe(features: FeatureSource) -> str:
    """Return the sha256 of the recipe in a feature file; empty for other forms."""
    header = read_feature_header(features)
    return "" if header is None else hashlib.sha256(json.dumps(header.recipe, sort_keys=True).encode()).hexdigest()


def read_backbone(features: FeatureSource) -> str:
    """Return the backbone in the recipe of a feature file; empty where it is unknown."""
    header = read_feature_header(features)
    return "" if header is None else str(header.recipe.get("backbone", ""))


def read_feature_header(features: FeatureSource) -> Header | None:
    """Return the header of a feature file, None for other forms of features."""
    return features.header if isinstance(features, PackedFile) else None
