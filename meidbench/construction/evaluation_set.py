"""Drawing test and val from what training left."""

import numpy as np

from meidbench.construction.pool import Flags, Integers, Pool, shuffled


def draw_evaluation(
    pool: Pool,
    order: Integers,
    free: Flags,
    least: int,
    size: int | None,
    keep: Integers,
    generator: np.random.Generator,
) -> Flags:
    """Draw a subset that is nearly uniform over classes.

    From the first class to the last, random videos of the class are added until it has ``least``. (Drawn so, subsets
    of the published splits' sizes come out: their procedure must have been near this one.) Then, where a size is
    given, videos are added for the class with the fewest, or removed where every class can spare them.

    Parameters
    ----------
    pool : Pool
    order : (C,) int64
        Classes from first to last.
    free : (m,) bool
        Candidates that may be drawn.
    least : int
        Videos every class is to have.
    size : int, optional
        Videos of the subset. It is larger where the positives need more, smaller where nothing is left.
    keep : (C,) int64
        Free videos of each class that are left for another subset, unless this one would lack positives.
    generator : numpy.random.Generator

    Returns
    -------
    ndarray, (m,) bool
    """
    draw = _Draw(pool, free, keep)
    for index in order.tolist():
        for sparing in (True, False):
            if draw.counts[index] < least:
                videos = pool.of_class(index)
                candidates = shuffled(videos[free[videos] & ~draw.taken[videos]], generator)
                for video in candidates.tolist():
                    if draw.counts[index] >= least:
                        break
                    if not sparing or draw.spares(video, least):
                        draw.take(video)
    if size is not None:
        _fill(draw, size, generator)
        _trim(draw, size, least, generator)
    return draw.taken


class _Draw:
    """A subset while it is drawn."""

    def __init__(self, pool: Pool, free: Flags, keep: Integers) -> None:
        self.pool, self.free = pool, free
        self.taken = np.zeros(len(pool), dtype=bool)
        self.counts = np.zeros(pool.num_classes, dtype=np.int64)
        self.spare = pool.positives(free) - keep
        self.size = 0

    def spares(self, video: int, least: int) -> bool:
        """Tell whether no class loses what is kept for another subset, but those that need the video here."""
        classes = self.pool.of_video(video)
        return bool(((self.spare[classes] > 0) | (self.counts[classes] < least)).all())

    def take(self, video: int, step: int = 1) -> None:
        """Take a video, or with a step of -1 give it back."""
        classes = self.pool.of_video(video)
        self.taken[video] = step > 0
        self.counts[classes] += step
        self.spare[classes] -= step
        self.size += step


def _fill(draw: _Draw, size: int, generator: np.random.Generator) -> None:
    """Add videos of the class that has the fewest until the subset is as large as asked."""
    if draw.size >= size:
        return
    queues: dict[int, list[int]] = {}
    exhausted = np.iinfo(np.int64).max
    blocked = np.zeros(len(draw.counts), dtype=np.int64)
    while draw.size < size:
        index = int(np.maximum(draw.counts, blocked).argmin())
        if blocked[index]:
            return
        if index not in queues:
            videos = draw.pool.of_class(index)
            queues[index] = shuffled(videos[draw.free[videos]], generator).tolist()
        queue = queues[index]
        while queue:
            video = queue.pop()
            if not draw.taken[video] and draw.spares(video, 0):
                draw.take(video)
                break
        else:
            blocked[index] = exhausted


def _trim(draw: _Draw, size: int, least: int, generator: np.random.Generator) -> None:
    """Remove videos that no class needs until the subset is as small as asked."""
    if draw.size <= size:
        return
    for video in shuffled(np.flatnonzero(draw.taken), generator).tolist():
        if draw.size <= size:
            return
        if (draw.counts[draw.pool.of_video(video)] > least).all():
            draw.take(video, -1)
