"""Means over classes of several methods against a reference: paired differences, wins and losses, Holm's correction."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from meidbench.evaluation.bootstrap import LEVEL, compute_interval, correct_holm
from meidbench.evaluation.evaluate import bootstrap_means
from meidbench.evaluation.results import GROUPS_SHOWN, Difference, Estimate, SeedSpread, WinTieLoss

EQUAL = 1e-12  # values of a class that differ only by rounding are a tie

Reals = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class GroupComparison:
    """A mean over classes of one method, averaged over its seeds, and its differences to the reference.

    ``seed_spread``, ``difference``, ``tally`` and ``corrected`` are per group (overall, head, medium, tail).
    ``seed_spread`` is None without several seeds; the others are against the reference, and None for itself.
    ``corrected`` is the two-sided probability of each group's difference after Holm's correction. ``samples`` are the
    (replicates, C) values of the bootstrap; they are not in the JSON.
    """

    seed_spread: dict[str, SeedSpread] | None
    difference: dict[str, Difference] | None
    tally: dict[str, WinTieLoss] | None
    corrected: dict[str, float] | None
    samples: Reals = field(repr=False, compare=False)

    def estimate(self, group: str) -> Estimate:
        """Return the mean of a group and its interval."""
        raise NotImplementedError

    def by_class(self) -> tuple[float, ...]:
        """Return the values of the classes, NaN where one has no positive."""
        raise NotImplementedError

    def table_cells(self, group: str, mean: str, prefix: str) -> dict[str, float]:
        """Return the cells of a group by column, for a DataFrame: ``mean``, its interval, and others with a prefix."""
        estimate = self.estimate(group)
        entry = self.difference[group] if self.difference else Difference(*[math.nan] * 4)
        tally = asdict(self.tally[group]) if self.tally else {}
        others = {
            "seed_std": self.seed_spread[group].std if self.seed_spread else math.nan,
            **{"difference": entry.value, "difference_low": entry.low, "difference_high": entry.high},
            "probability": entry.probability,
            "corrected": self.corrected[group] if self.corrected else math.nan,
            **{name: tally.get(name, math.nan) for name in ("wins", "ties", "losses")},
        }
        means = {mean: estimate.value, f"{mean}_low": estimate.low, f"{mean}_high": estimate.high}
        return means | {prefix + name: value for name, value in others.items()}


@dataclass(frozen=True, kw_only=True)
class ClassAverageComparison(GroupComparison):
    """Class-average accuracy of one method: ``means`` per group, and the ``recall`` of each class."""

    means: dict[str, Estimate]
    recall: tuple[float, ...]

    def estimate(self, group: str) -> Estimate:
        """Return the class-average accuracy of a group and its interval."""
        return self.means[group]

    def by_class(self) -> tuple[float, ...]:
        """Return the recall of each class."""
        return self.recall


Compared = TypeVar("Compared", bound=GroupComparison)


def summarise_seeds(
    by_seed: Mapping[str, Reals], samples: Reals, members: Mapping[str, Indices]
) -> tuple[dict[str, Estimate], dict[str, SeedSpread] | None]:
    """Return the mean of each group over seeds with its interval, and the spread over seeds where there are several."""
    means = bootstrap_means(samples, members)
    estimates = {
        group: Estimate(float(values.mean()), **vars(compute_interval(means[group])))
        for group, values in by_seed.items()
    }
    spread = {
        group: SeedSpread(len(values), float(values.std(ddof=1)), float(values.min()), float(values.max()))
        for group, values in by_seed.items()
        if len(values) > 1
    }
    return estimates, spread or None


def compare_with(methods: Mapping[str, Compared], name: str, members: Mapping[str, Indices]) -> dict[str, Compared]:
    """Return the methods with their differences to the method ``name``; ``members`` are the classes of each group.

    Per group, the two-sided probabilities of all methods but the reference are corrected together (Holm, 1979). The
    two-sided probability is 2 min(P, 1 - P), where P is the probability of being better, and at least 2 / replicates:
    fewer than one replicate cannot be counted.
    """
    reference = methods[name]
    compared = {other: _subtract(method, reference, members) for other, method in methods.items() if other != name}
    corrected: dict[str, dict[str, float]] = {other: {} for other in compared}
    for group in GROUPS_SHOWN:
        probabilities = [
            _two_sided(method.difference[group], len(method.samples))
            for method in compared.values()
            if method.difference is not None
        ]
        for other, value in zip(compared, correct_holm(probabilities), strict=True):
            corrected[other][group] = value
    against_itself = replace(reference, difference=None, tally=None, corrected=None)
    return {
        other: replace(compared[other], corrected=corrected[other]) if other != name else against_itself
        for other in methods
    }


def _subtract(method: Compared, reference: Compared, members: Mapping[str, Indices]) -> Compared:
    change, samples = np.subtract(method.by_class(), reference.by_class()), method.samples - reference.samples
    means = bootstrap_means(samples, members)
    difference, tally = {}, {}
    for group, indices in members.items():
        known = change[indices][~np.isnan(change[indices])]
        mean = known.mean() if len(known) else float("nan")
        difference[group] = _differences(np.array([mean]), means[group][:, None])[0]
        wins, losses = int((known > EQUAL).sum()), int((known < -EQUAL).sum())
        tally[group] = WinTieLoss(wins, len(known) - wins - losses, losses)
    return replace(method, difference=difference, tally=tally)


def class_differences(method: GroupComparison, reference: GroupComparison) -> tuple[Difference, ...]:
    """Return the difference of each class to the reference."""
    change = np.subtract(method.by_class(), reference.by_class())
    return tuple(_differences(change, method.samples - reference.samples))


def _differences(values: Reals, samples: Reals) -> list[Difference]:
    """Return the differences with their (replicates, values) samples."""
    if not len(samples):
        return [Difference(value, math.nan, math.nan, math.nan) for value in values.tolist()]
    low, high = np.clip(np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0), -1.0, 1.0)
    even = np.abs(samples) <= EQUAL
    better = (np.count_nonzero(~even & (samples > 0), axis=0) + 0.5 * np.count_nonzero(even, axis=0)) / len(samples)
    better[np.isnan(samples).any(axis=0)] = math.nan
    return [Difference(*numbers) for numbers in np.column_stack([values, low, high, better]).tolist()]


def _two_sided(difference: Difference, replicates: int) -> float:
    better = difference.probability
    return math.nan if math.isnan(better) else 2 * max(min(better, 1 - better), 1 / replicates)


def format_change(value: float, digits: int) -> str:
    """Round a difference; every number but zero gets a sign, and more digits where it would else look like zero."""
    if abs(value) <= EQUAL:
        return f"{0:.{digits}f}"
    text = f"{value:+.{digits}f}"
    while float(text) == 0:
        digits += 1
        text = f"{value:+.{digits}f}" if digits <= 6 else f"{value:+.0e}"
    return text
