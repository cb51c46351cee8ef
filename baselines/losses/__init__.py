"""Losses of long-tailed multi-label recognition, each built from the training counts of the classes.

``LOSSES`` names them. ``COMPAT`` holds what makes each behave as in VideoLT's public code
(github.com/17Skye17/VideoLT, ``ops/losses.py``); losses that are not in that code have their published values
anyway. Under class-balanced sampling that code means ``reduction="sum_classes_mean_batch"`` and a mask
(``meidbench.baselines.samplers.label_mask``).
"""

from typing import Any

from meidbench.baselines.losses.base import REDUCTIONS, Loss, bias_prior, effective_number_weights
from meidbench.baselines.losses.class_balanced import ClassBalanced, DistributionBalanced
from meidbench.baselines.losses.cross_entropy import ASL, BCE, Focal, LogitAdjusted
from meidbench.baselines.losses.eql import EQL
from meidbench.baselines.losses.ldam import LDAM

__all__ = [
    "COMPAT",
    "LOSSES",
    "REDUCTIONS",
    "Loss",
    "bias_prior",
    "effective_number_weights",
]

LOSSES: dict[str, type[Loss]] = {
    "bce": BCE,
    "focal": Focal,
    "class_balanced": ClassBalanced,
    "ldam": LDAM,
    "eql": EQL,
    "distribution_balanced": DistributionBalanced,
    "asl": ASL,
    "logit_adjusted": LogitAdjusted,
}

COMPAT: dict[str, dict[str, Any]] = {
    "bce": {},
    # Its own default of gamma is 0; the one script that takes this loss sets 1.
    "focal": {"gamma": 1.0, "soft": "exp_bce"},
    "class_balanced": {"mode": "by_class", "base": "bce", "beta": 0.9999},
    "ldam": {"margins": "summed", "drw_epoch": 50},
    "eql": {"gamma": 1.76e-3, "tail_up_to": 100},
    "distribution_balanced": {},
    "asl": {},
    "logit_adjusted": {},
}
