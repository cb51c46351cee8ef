"""What rows need besides a split: features of an encoder, with their size on disk."""

from dataclasses import dataclass

from meidbench.baselines.reproduction.paper_tables import table_content
from meidbench.errors import MeidbenchError
from meidbench.splits.manifests import load_manifest

_STORED_BYTES = 2  # float16
SUBSETS = ("train", "val", "test")


@dataclass(frozen=True)
class FeatureNeed:
    """A feature file that rows of a table need.

    Attributes
    ----------
    dataset, encoder : str
    backbone : str
        What ``meidbench extract-features --backbone`` calls the encoder.
    weights : str
        Where the encoder's weights are from.
    source : str
        What it is extracted from.
    videos, frames, width : int
        N, T and D.
    """

    dataset: str
    encoder: str
    backbone: str
    weights: str
    source: str
    videos: int
    frames: int
    width: int

    @property
    def bytes(self) -> int:
        """Size on disk, in float16."""
        return self.videos * self.frames * self.width * _STORED_BYTES

    @property
    def command(self) -> str:
        """How it is made from videos."""
        weights = " --weights FILE" if self.backbone.startswith("tsm") else ""
        return (
            f"meidbench extract-features VIDEOS --split {self.dataset} --backbone {self.backbone} "
            f"--frames {self.frames}{weights} --out {self.dataset}_{self.backbone}.h5"
        )


def encoders() -> dict[str, str]:
    """Return the encoders of the tables' rows, by their names in small letters.

    Examples
    --------
    >>> list(encoders())
    ['resnet50', 'resnet101', 'tsm-resnet50']
    """
    return {name.lower(): name for name in table_content("needs")["encoders"]}


def encoder_named(text: str) -> str:
    """Return an encoder as the tables write it.

    Raises
    ------
    MeidbenchError
        There is none of that name.

    Examples
    --------
    >>> encoder_named("resnet50")
    'ResNet50'
    """
    known = encoders()
    if text.lower() not in known:
        raise MeidbenchError(f"unknown encoder {text!r}; known: {', '.join(known.values())}")
    return known[text.lower()]


def subset_sizes(dataset: str) -> dict[str, int]:
    """Return how many videos the subsets of a benchmark have.

    Examples
    --------
    >>> subset_sizes("charadeslt")
    {'train': 2213, 'val': 469, 'test': 1012}
    """
    paper = load_manifest(dataset).paper
    return {subset: int(paper[subset]) for subset in SUBSETS}


def feature_need(dataset: str, encoder: str) -> FeatureNeed:
    """Say what the feature file of an encoder on a benchmark must hold.

    Examples
    --------
    >>> need = feature_need("videolt", "ResNet50")
    >>> need.videos, need.frames, need.width, f"{need.bytes / 1e9:.0f} GB"
    (256192, 150, 2048, '157 GB')
    """
    content = table_content("needs")
    facts = content["encoders"][encoder_named(encoder)]
    return FeatureNeed(
        dataset=dataset,
        encoder=encoder_named(encoder),
        backbone=facts["backbone"],
        weights=facts["weights"],
        source=content["videos"][dataset],
        videos=sum(subset_sizes(dataset).values()),
        frames=content["frames"][dataset],
        width=facts["width"],
    )
