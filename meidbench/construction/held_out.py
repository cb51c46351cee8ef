"""A val subset that is taken out of the training videos of a split without val."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from meidbench.construction.drawing import check_seed
from meidbench.construction.pool import Flags, Integers, Pool, shuffled
from meidbench.errors import SplitError
from meidbench.names import GROUP_KEYS, HELD_OUT, SOURCE_DOMAIN
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.split import Split

_COLUMN_OF = dict(zip(GROUP_KEYS, ("pair_id", "subject"), strict=True))


def hold_out_val(split: Split, share: float, *, seed: int, group_by: Sequence[str] = ()) -> Split:
    """Return a split whose val is a share of the training videos of a split without val; its test is unchanged.

    The videos are chosen by iterative stratification (``stratify``), so that val has its share of every class, and
    every class keeps a training video. Videos with the same ``pair_id`` stay together. Head, medium and tail stay those
    of the whole training subset, so that scores by group are comparable with those of the original split; the training
    counts, which losses and samplers use, are those of the remaining videos. The variant is ``heldout-SHARE-SEED``, or
    ``heldout-SHARE-subject-SEED`` where subjects stay together; of EPIC-KITCHENS-100 without the official training
    file, it ends in ``-source-domain``.

    Parameters
    ----------
    split : Split
        A split with training videos and without val videos.
    share : float
        Of the training videos, between 0 and 1.
    seed : int
        From 0 on. The same seed gives the same split, in whatever order the rows are, and on every machine.
    group_by : sequence of str
        ``subject`` also keeps the videos of a subject together; ``pair`` refuses a split without a ``pair_id``.

    Raises
    ------
    SplitError
        The split has a val subset or no training video, the share is so small that val is empty, or no video has what
        ``group_by`` names.

    Examples
    --------
    >>> from meidbench.annotations import Annotations
    >>> table = Annotations(("run", "swim"))
    >>> table.extend([f"v{video:02d}" for video in range(40)], [(video % 4 // 3,) for video in range(40)], "all")
    >>> thresholds = {"head_above": 20, "tail_up_to": 10}
    >>> split = Split.from_annotations(table, ["train"] * 40, dataset="mine", variant="table", **thresholds)
    >>> hold_out_val(split, 0.1, seed=0)
    <Split mine (heldout-0.1-0): 36 / 4 / 0 videos, 2 classes>
    """
    check_seed(seed)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise SplitError(f"the share of val must be a number between 0 and 1, got {share!r}")
    if count := len(split.rows("val")):
        raise SplitError(f"{split.dataset} has a val subset of {count:,} video(s): none is taken out of train")
    if not len(split.rows("train")):
        raise SplitError(split.describe_absence("train"))
    if unknown := [name for name in group_by if name not in GROUP_KEYS]:
        raise SplitError(f"group_by must be of {', '.join(GROUP_KEYS)}, got {unknown[0]!r}")
    named = [key for key in GROUP_KEYS if any(split.rows("train").column(_COLUMN_OF[key]).to_pylist())]
    if lacking := [name for name in group_by if name not in named]:
        raise SplitError(f"the videos of {split.dataset} have no {lacking[0]} that could be kept together")
    kept = [key for key in named if key == "pair" or key in group_by]
    pool = Pool.from_split(split, "train", [_COLUMN_OF[key] for key in kept])
    in_val = stratify(pool, Fraction(str(share)), np.random.Generator(np.random.PCG64(seed)))
    if not in_val.any():
        raise SplitError(f"with a share of {share:g}, no video of {split.dataset} goes to val; take a larger share")
    subsets = np.asarray(split.table.column("subset").to_pylist(), dtype=object)
    subsets[pool.rows[in_val]] = "val"
    table = split.table.set_column(1, split.table.schema.field("subset"), pa.array(subsets, pa.string()))
    source = [SOURCE_DOMAIN] if split.variant == SOURCE_DOMAIN else []
    variant = "-".join([HELD_OUT, str(share), *(key for key in kept if key != "pair"), str(seed), *source])
    return _with_groups_of(split, table, variant, seed)


def _with_groups_of(split: Split, table: pa.Table, variant: str, seed: int) -> Split:
    """Return the split of a changed table, with the groups of the classes as they are in ``split``."""
    new = Split(table, replace(split.metadata, variant=variant, seed=seed))
    new.metadata = replace(
        new.metadata,
        train_counts=tuple(new.positives("train").tolist()),
        digest=new.computed_digest,
        groups=tuple(split.groups.names(split.num_classes)),
        head_above=None,
        tail_up_to=None,
    )
    new.metadata = replace(new.metadata, content_digest=new.content_digest)
    return new


def stratify(pool: Pool, share: Fraction, generator: np.random.Generator) -> Flags:
    """Choose a share of the videos by iterative stratification; the result is an (m,) mask.

    Sechidis, Tsoumakas and Vlahavas, ECML 2011, Algorithm 1, with two subsets: the class with the fewest videos left
    comes next, and each of these goes to the subset that lacks most videos of the class; of equal subsets, to the one
    that lacks most videos at all. Other ties, and the order of a class's videos, are random.

    Four points are beyond Algorithm 1: a group goes to one subset as a whole, the groups with most videos of the class
    first; a group of several videos is not chosen where the chosen ones would exceed their share of all videos; videos
    are not chosen where they are the last ones of a class outside; and videos without a label come last.
    """
    distribution = _Distribution(pool, share, generator)
    while len(present := np.flatnonzero(distribution.left)):
        counts = distribution.left[present]
        index = int(shuffled(present[counts == counts.min()], generator)[0])
        distribution.distribute(pool.videos_of_class(index), index)
    distribution.distribute(np.arange(len(pool)), None)
    return distribution.is_chosen[pool.groups]


class _Distribution:
    """The groups of videos while they are distributed to the chosen ones and the rest."""

    def __init__(self, pool: Pool, share: Fraction, generator: np.random.Generator) -> None:
        self.pool, self.generator = pool, generator
        self.left = pool.available.copy()
        # The videos that the chosen ones lack minus those that the rest lacks, per class and at all. Times the
        # denominator of the share they are whole numbers, so that ties are the same on every machine.
        surplus, self.worth = 2 * share.numerator - share.denominator, share.denominator
        self.lead = [count * surplus for count in pool.available.tolist()]
        self.lead_at_all = len(pool) * surplus
        self.room = len(pool) * share.numerator  # for groups of several videos
        self.spare = (pool.available - 1).tolist()  # the videos of each class that can still be chosen
        owners = pool.groups[pool.owners]
        self.sizes = np.bincount(pool.groups).tolist()
        self.bounds = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(self.sizes)))]).tolist()
        self.labels = pool.classes[np.argsort(owners, kind="stable")].tolist()
        self.is_chosen, self.is_done = (np.zeros(len(self.sizes), dtype=bool) for _ in range(2))

    def distribute(self, videos: Integers, index: int | None) -> None:
        """Distribute the groups of videos by what is lacking of a class, or by the sizes alone."""
        owners = self.pool.groups[videos]
        groups, counts = np.unique(owners[~self.is_done[owners]], return_counts=True)
        order = shuffled(np.arange(len(groups)), self.generator)
        order = order[np.argsort(-counts[order], kind="stable")]
        for group in groups[order].tolist():
            classes = Counter(self.labels[self.bounds[group] : self.bounds[group + 1]])
            size = self.sizes[group]
            lead = (0 if index is None else self.lead[index]) or self.lead_at_all or self.generator.random() - 0.5
            is_chosen = lead > 0 and (size == 1 or size * self.worth <= self.room)
            is_chosen = is_chosen and all(self.spare[label] >= count for label, count in classes.items())
            step = -self.worth if is_chosen else self.worth
            for label, count in classes.items():
                self.left[label] -= count
                self.lead[label] += step * count
                self.spare[label] -= count * is_chosen
            self.lead_at_all += step * size
            self.room -= self.worth * size * is_chosen
            self.is_chosen[group], self.is_done[group] = is_chosen, True


@dataclass(frozen=True)
class HeldOutShares:
    """The shares of a val subset that was taken out of train.

    ``groups`` has, for head, medium, tail and all classes (``overall``), the number of classes with a video in train or
    val, their labels there, and those of them in val. ``deviations`` are the (C,) val videos of each class minus
    ``share`` times its videos in train and val. ``without_val`` are the indices of the classes that have a training
    video but none in val.
    """

    share: float
    groups: dict[str, tuple[int, int, int]]
    deviations: tuple[float, ...]
    without_val: tuple[int, ...]

    @property
    def largest_deviation(self) -> int:
        """Index of the class whose val is farthest from its share, in videos."""
        return int(np.argmax(np.abs(self.deviations)))

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain values, for JSON."""
        return asdict(self) | {"largest_deviation": self.largest_deviation}


def measure_shares(split: Split, share: float) -> HeldOutShares:
    """Compare the val subset of a split of ``hold_out_val`` with the share that was asked for.

    >>> from meidbench.annotations import Annotations
    >>> table = Annotations(("run", "swim"))
    >>> table.extend([f"v{video:02d}" for video in range(40)], [(video % 4 // 3,) for video in range(40)], "all")
    >>> thresholds = {"head_above": 20, "tail_up_to": 10}
    >>> split = Split.from_annotations(table, ["train"] * 40, dataset="mine", variant="table", **thresholds)
    >>> measure_shares(hold_out_val(split, 0.1, seed=0), 0.1).groups["overall"]
    (2, 40, 4)
    """
    train, val = split.positives("train"), split.positives("val")
    whole = train + val
    places = {name: getattr(split.groups, name) for name in GROUP_NAMES} | {"overall": np.arange(split.num_classes)}
    counts = {
        name: (int((whole[classes] > 0).sum()), int(whole[classes].sum()), int(val[classes].sum()))
        for name, classes in places.items()
    }
    without_val = np.flatnonzero((train > 0) & (val == 0))
    return HeldOutShares(share, counts, tuple((val - share * whole).tolist()), tuple(without_val.tolist()))
