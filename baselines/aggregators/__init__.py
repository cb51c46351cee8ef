"""Aggregators: from the features of a video's frames to the logits of its classes. ``AGGREGATORS`` names them."""

from meidbench.baselines.aggregators.base import Aggregator
from meidbench.baselines.aggregators.pooling import AttentionPooling, EarlyMean, Mean, Nonlinear
from meidbench.baselines.aggregators.vlad import NetVLAD, NeXtVLAD

__all__ = ["AGGREGATORS", "Aggregator"]

AGGREGATORS: dict[str, type[Aggregator]] = {
    "nonlinear": Nonlinear,
    "early_mean": EarlyMean,
    "mean": Mean,
    "attention": AttentionPooling,
    "netvlad": NetVLAD,
    "nextvlad": NeXtVLAD,
}
