"""Losses of long-tailed multi-label recognition, built from the training counts of classes; ``LOSSES`` names them."""

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
