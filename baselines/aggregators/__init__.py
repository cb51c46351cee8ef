"""Aggregators: from the features of a video's frames to the logits of its classes. ``AGGREGATORS`` names them."""

from meidbench.baselines.aggregators.attention import AttentionPooling
from meidbench.baselines.aggregators.base import CLASSIFIERS, Aggregator, CosineClassifier
from meidbench.baselines.aggregators.mean import Mean
from meidbench.baselines.aggregators.netvlad import NetVLAD
from meidbench.baselines.aggregators.nextvlad import FLAVORS, NeXtVLAD
from meidbench.baselines.aggregators.nonlinear import EarlyMean, Nonlinear

__all__ = ["AGGREGATORS", "CLASSIFIERS", "FLAVORS", "Aggregator", "CosineClassifier"]

AGGREGATORS: dict[str, type[Aggregator]] = {
    "nonlinear": Nonlinear,
    "early_mean": EarlyMean,
    "mean": Mean,
    "attention": AttentionPooling,
    "netvlad": NetVLAD,
    "nextvlad": NeXtVLAD,
}
