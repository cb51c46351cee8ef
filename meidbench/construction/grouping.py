"""Which subset may draw from which group of videos, so that no group is in two."""

import numpy as np

from meidbench.construction.pool import Flags, Integers, Pool, shuffled

# Times what val and test need that they get at most. They need some choice; what they do not use, training lacks.
_MARGIN = 2.0
_SWEEPS = 20
# What a share that val or test lacks counts, or training of a rare class, beside 1 for training: those are few.
_URGENT = 10.0


def assign_groups(pool: Pool, needs: Integers, generator: np.random.Generator) -> Integers:
    """Give every group of videos to one subset, each subset getting its share of every class.

    Iterative stratification (Sechidis et al., ECML 2011), with shares of its own for each class: the classes with the
    fewest videos come first, and a group goes to the subset that lacks most of the class. Then groups are moved while
    that lowers what the subsets lack of their needs. Training has one group at least.

    Parameters
    ----------
    pool : Pool
    needs : (3, C) int64
        Videos of each class that train, val and test are to have. The available ones are shared out in proportion, but
        val and test get twice their need at most.
    generator : numpy.random.Generator

    Returns
    -------
    ndarray, (m,) int64
        For each candidate the subset that may draw it: 0 train, 1 val, 2 test.
    """
    lacking = needs * (pool.available / np.maximum(needs.sum(axis=0), 1))
    lacking[1:] = np.minimum(lacking[1:], needs[1:] * _MARGIN)
    lacking[0] = pool.available - lacking[1:].sum(axis=0)
    order = np.argsort(pool.groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(pool.groups[order])) + 1)
    owner_of = np.full(len(members), -1, dtype=np.int64)
    for index in np.argsort(pool.available, kind="stable").tolist():
        groups = np.unique(pool.groups[pool.of_class(index)])
        for group in shuffled(groups[owner_of[groups] < 0], generator).tolist():
            owner = int(lacking[:, index].argmax())
            owner_of[group] = owner
            for video in members[group].tolist():
                lacking[owner, pool.of_video(video)] -= 1
    _settle(pool, needs, owner_of, members, generator)
    if not (owner_of == 0).any():
        owner_of[int(np.argmax([len(videos) for videos in members]))] = 0
    return owner_of[pool.groups]


def _settle(
    pool: Pool, needs: Integers, owner_of: Integers, members: list[Integers], generator: np.random.Generator
) -> None:
    """Move groups with a class that a subset lacks to where they lower what is lacked; ``owner_of`` is changed."""
    have = np.stack([pool.positives(owner_of[pool.groups] == owner) for owner in range(3)])
    urgent = np.stack([needs[0] < needs[1:].sum(axis=0), *np.ones_like(needs[1:], dtype=bool)])
    weights = np.where(needs > 0, 1 / np.maximum(needs, 1), 0) * np.where(urgent, _URGENT, 1)
    for _ in range(_SWEEPS):
        short = np.flatnonzero((have < needs).any(axis=0))
        if not len(short):
            return
        groups = np.unique(pool.groups[np.concatenate([pool.of_class(index) for index in short.tolist()])])
        moved = False
        for group in shuffled(groups, generator).tolist():
            counts = pool.positives_of(members[group])
            classes = np.flatnonzero(counts)
            here, now = owner_of[group], have[:, classes]
            lack = weights[:, classes] * np.maximum(needs[:, classes] - now, 0)
            fuller = weights[:, classes] * np.maximum(needs[:, classes] - now - counts[classes], 0)
            left = weights[here, classes] * np.maximum(needs[here, classes] - now[here] + counts[classes], 0)
            # A difference that is only one of rounding, which need not be the same everywhere, must decide nothing.
            costs = np.round((fuller - lack).sum(axis=1) + (left - lack[here]).sum(), 9)
            costs[here] = 0.0
            best = int(costs.argmin())
            if costs[best] < 0:
                owner_of[group] = best
                have[here] -= counts
                have[best] += counts
                moved = True
        if not moved:
            return


def open_to_all(pool: Pool) -> tuple[Flags, Flags, Flags]:
    """Return for train, val and test which candidates they may draw where nothing is grouped: all."""
    everything = np.ones(len(pool), dtype=bool)
    return everything, everything, everything
