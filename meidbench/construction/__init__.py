"""New splits: drawn by the paper's procedure, without leaks, or exact; and a val subset taken out of train."""

from meidbench.construction.drawing import co_occurrence_rank, construct, default_targets
from meidbench.construction.exact import construct_exactly
from meidbench.construction.held_out import HeldOutShares, hold_out_val, measure_shares
from meidbench.construction.outcome import Construction, Shortfall, SplitDistance, distance_to
from meidbench.construction.pool import Pool
from meidbench.construction.targets import EXACT_PRESETS, PRESETS, ExactTargets, Targets, pareto_counts

__all__ = [
    "EXACT_PRESETS",
    "PRESETS",
    "Construction",
    "ExactTargets",
    "HeldOutShares",
    "Pool",
    "Shortfall",
    "SplitDistance",
    "Targets",
    "co_occurrence_rank",
    "construct",
    "construct_exactly",
    "default_targets",
    "distance_to",
    "hold_out_val",
    "measure_shares",
    "pareto_counts",
]
