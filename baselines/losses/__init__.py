"""Losses of long-tailed multi-label recognition; ``LOSSES`` maps their names to classes.

A loss is built from the training counts of the classes. The options that make it behave as public code does are
in the recipes (``recipes/*.toml``, sections ``compat`` and ``release``).
"""

from meidbench.baselines.losses.base import REDUCTIONS, Loss, bias_prior, effective_number_weights
from meidbench.baselines.losses.class_balanced import ClassBalancedLoss, DistributionBalanced
from meidbench.baselines.losses.cross_entropy import ASL, BCE, Focal, LogitAdjusted
from meidbench.baselines.losses.eql import EQL
from meidbench.baselines.losses.ldam import LDAM

__all__ = ["LOSSES", "REDUCTIONS", "Loss", "bias_prior", "effective_number_weights"]

LOSSES: dict[str, type[Loss]] = {
    "bce": BCE,
    "focal": Focal,
    "class_balanced": ClassBalancedLoss,
    "ldam": LDAM,
    "eql": EQL,
    "distribution_balanced": DistributionBalanced,
    "asl": ASL,
    "logit_adjusted": LogitAdjusted,
}
