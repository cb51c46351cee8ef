"""Which rows of many videos are taken, all at once: the very rows that a dataset takes of one video at a time."""

import operator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError

SAMPLINGS = ("uniform", "random")


def uniform_indices(num_frames: int, wanted: int) -> npt.NDArray[np.int64]:
    """Return evenly spaced frames, first and last included.

    Parameters
    ----------
    num_frames : int
        Frames that the video has, at least 1.
    wanted : int
        Frames to take, at least 1. More than the video has repeats some; a single one is the first.

    Returns
    -------
    (wanted,) int64 array, ascending.

    Raises
    ------
    FeatureError
        A count is not a whole number of at least 1.

    Notes
    -----
    ``uniform_sample`` of VideoLT's ``ops/feature_loader.py`` (github.com/17Skye17/VideoLT). It truncates, and
    that is part of the protocol: where floating point falls just short of a whole number, the frame before is
    taken.

    Examples
    --------
    >>> uniform_indices(10, 4)
    array([0, 3, 6, 9])
    >>> uniform_indices(3, 5)
    array([0, 0, 1, 1, 2])
    """
    num_frames, wanted = _counts(num_frames, wanted)
    return np.linspace(0, num_frames - 1, wanted).astype(np.int64)


def random_indices(
    num_frames: int, wanted: int, generator: np.random.Generator, replacement: bool = True
) -> npt.NDArray[np.int64]:
    """Return random frames in the order of time.

    Parameters
    ----------
    num_frames : int
        Frames that the video has, at least 1.
    wanted : int
        Frames to take, at least 1.
    generator : numpy.random.Generator
        Where the randomness comes from.
    replacement : bool
        Draw each frame independently, as VideoLT's ``random_sample`` does. False takes no frame twice before
        every frame is taken once: where more are wanted than there are, every frame ``wanted // num_frames``
        times and the rest drawn without replacement.

    Returns
    -------
    (wanted,) int64 array, ascending.

    Raises
    ------
    FeatureError
        A count is not a whole number of at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> random_indices(5, 5, np.random.default_rng(0), replacement=False)
    array([0, 1, 2, 3, 4])
    >>> len(random_indices(5, 12, np.random.default_rng(0)))
    12
    """
    num_frames, wanted = _counts(num_frames, wanted)
    if replacement:
        return np.sort(generator.integers(num_frames, size=wanted))
    rounds, rest = divmod(wanted, num_frames)
    drawn = generator.choice(num_frames, size=rest, replace=False, shuffle=False)
    return np.sort(np.concatenate([np.tile(np.arange(num_frames), rounds), drawn]))


def _counts(num_frames: int, wanted: int) -> tuple[int, int]:
    for name, count in (("num_frames", num_frames), ("wanted", wanted)):
        try:
            valid = operator.index(count) >= 1 and not isinstance(count, bool)
        except TypeError:
            valid = False
        if not valid:
            raise FeatureError(f"{name} must be a whole number of at least 1, got {count!r}")
    return operator.index(num_frames), operator.index(wanted)


Indices = npt.NDArray[np.int64]

_MASK = 0xFFFFFFFF
_POOL_SIZE = 4
_PCG64_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


class FrameRows:
    """The rows taken of each video of a subset; they depend on the arguments, the epoch and the position alone.

    Parameters
    ----------
    num_frames : (n,) int64 array
        Rows that each video has.
    frames : int or None
        Rows to take; None takes all.
    sampling : str
        ``uniform`` or ``random``; see ``meidbench.features.frame_sampling``.
    replacement : bool
        Of ``random``.
    seed : int
        Of ``random``.

    Examples
    --------
    >>> import numpy as np
    >>> rows = FrameRows(np.array([10, 3]), 4, "random", replacement=True, seed=0)
    >>> bool((rows.of(np.array([1, 0]), epoch=2)[0] == rows.one(1, epoch=2)).all())
    True
    >>> FrameRows(np.array([10, 3]), 4, "uniform", replacement=True, seed=0).of(np.array([1, 0]), epoch=0)
    array([[0, 0, 1, 2],
           [0, 3, 6, 9]])
    """

    def __init__(self, num_frames: Indices, frames: int | None, sampling: str, replacement: bool, seed: int) -> None:
        self._num_frames = num_frames
        self._frames = frames
        self._sampling = sampling
        self._replacement = replacement
        self._seed = seed
        self._evenly: tuple[Indices, Indices] | None = None
        self._streams: _Streams | None = None
        self._as_numpy: bool | None = None

    def one(self, position: int, epoch: int) -> Indices | None:
        """Return the (frames,) rows of one video in the order of time; None where all are taken."""
        if self._frames is None:
            return None
        if self._sampling == "uniform":
            rows: Indices = self._even(np.array([position]))[0]
            return rows
        sequence = np.random.SeedSequence(self._seed, spawn_key=(epoch, position))
        generator = np.random.default_rng(sequence)
        return random_indices(int(self._num_frames[position]), self._frames, generator, self._replacement)

    def of(self, positions: Indices, epoch: int) -> Indices:
        """Return the (B, frames) rows of several videos.

        Raises
        ------
        FeatureError
            All rows are taken, and the videos have different numbers of them.
        """
        counts = self._num_frames[positions]
        if self._frames is None:
            if (counts != counts[:1]).any():
                raise FeatureError(
                    f"videos of {counts.min():,} to {counts.max():,} rows do not fit into one batch; "
                    "choose a number of frames, or batch_size=1"
                )
            return np.tile(np.arange(counts[0]), (len(counts), 1))
        if self._sampling == "uniform":
            return self._even(positions)
        if not self._replacement:
            return self._one_by_one(positions, epoch)
        if self._streams is None:
            self._streams = _Streams(self._frames)
        return self._drawn(self._streams, positions, counts, epoch)

    def _even(self, positions: Indices) -> Indices:
        if self._evenly is None:
            assert self._frames is not None
            distinct, which = np.unique(self._num_frames, return_inverse=True)
            self._evenly = np.stack([uniform_indices(int(count), self._frames) for count in distinct]), which
        table, which = self._evenly
        return table[which[positions]]

    def _drawn(self, streams: "_Streams", positions: Indices, counts: Indices, epoch: int) -> Indices:
        rows, sure = streams.integers(counts, self._seed, epoch, positions)
        rows.sort(axis=1)
        # numpy promises the bits of its generators, not what a later version makes of them.
        if self._as_numpy is None and sure[:1].any():
            self._as_numpy = np.array_equal(rows[0], self._one_by_one(positions[:1], epoch)[0])
        if not self._as_numpy:
            sure[:] = False
        if not sure.all():
            rows[~sure] = self._one_by_one(positions[~sure], epoch)
        return rows

    def _one_by_one(self, positions: Indices, epoch: int) -> Indices:
        rows = [self.one(position, epoch) for position in positions.tolist()]
        return np.stack([row for row in rows if row is not None])


class _Streams:
    """The first numbers of many of numpy's generators at once, each seeded with a key of its own.

    To seed one generator and draw from it takes 20 microseconds, which for a batch is as long as to copy its rows.

    Notes
    -----
    ``numpy.random.SeedSequence`` (after M. E. O'Neill's ``seed_seq_fe``), PCG XSL RR 128/64 (O'Neill, PCG: A Family
    of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation, 2014), and D. Lemire's
    bounded integers (Fast Random Integer Generation in an Interval, 2019). The k-th state of the generator is
    a linear function of its seed, so that all states are computed side by side.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        powers, sums = [1], [0]
        for _ in range((wanted + 1) // 2 + 2):
            sums.append((sums[-1] + powers[-1]) % 2**128)
            powers.append(powers[-1] * _PCG64_MULTIPLIER % 2**128)
        # numpy steps once between increment and seed, once after, and once before each number.
        self._of_seed = _Wide.of_ints(powers[2:-1])
        self._of_increment = _Wide.of_ints(sums[3:])

    def integers(
        self, highs: Indices, seed: int, epoch: int, positions: Indices
    ) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Return ``default_rng(SeedSequence(seed, spawn_key=(epoch, p))).integers(high, size=wanted)`` of each p.

        The second array says which rows are sure: in the others a number was drawn that numpy would draw again.
        """
        bits = self._bits(seed, epoch, positions)
        high = highs.astype(np.uint64)[:, None]
        products = bits[:, : self._wanted].astype(np.uint64) * high
        redrawn = (products & np.uint64(_MASK)) < (np.uint64(1 << 32) - high) % high
        sure = ~redrawn.any(axis=1) & (highs < 1 << 32)
        return (products >> np.uint64(32)).astype(np.int64), sure

    def _bits(self, seed: int, epoch: int, positions: Indices) -> npt.NDArray[np.uint32]:
        seeds = _seeds(seed, epoch, positions)
        sequence = _Wide(seeds[2][:, None], seeds[3][:, None])
        one, rest = np.uint64(1), np.uint64(63)
        increment = _Wide((sequence.high << one) | (sequence.low >> rest), (sequence.low << one) | one)
        states = self._of_seed.times(_Wide(seeds[0][:, None], seeds[1][:, None])).plus(
            self._of_increment.times(increment)
        )
        mixed, turn = states.high ^ states.low, states.high >> np.uint64(58)
        numbers = (mixed >> turn) | (mixed << ((np.uint64(64) - turn) & rest))
        # The lower half of each number is given out first.
        bits: npt.NDArray[np.uint32] = numbers.astype("<u8", copy=False).view("<u4")
        return bits


def _seeds(seed: int, epoch: int, positions: Indices) -> npt.NDArray[np.uint64]:
    """Return the four 64-bit words, (4, B), that a seed sequence gives a PCG64."""
    words, flips, factors = _mixed_key(seed, epoch)
    mixed = words - _hashed(positions.astype(np.uint32), flips, factors) * np.uint32(0x4973F715)
    mixed ^= mixed >> np.uint32(16)
    given = _hashed(np.concatenate([mixed, mixed]), *_OUTPUT_CONSTANTS).astype(np.uint64)
    seeds: npt.NDArray[np.uint64] = given[0::2] | (given[1::2] << np.uint64(32))
    return seeds


@lru_cache(maxsize=8)
def _mixed_key(seed: int, epoch: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Mix all of the key but the position, which comes last: the pool so far, and constants to go on with."""
    entropy = _words(seed)
    entropy += [0] * (_POOL_SIZE - len(entropy)) + _words(epoch)
    constants = _Constants(0x43B0D7E5, 0x931E8875)

    def hashed(word: int) -> int:
        flip, factor = next(constants)
        word = (word ^ flip) * factor & _MASK
        return word ^ word >> 16

    def mixed(left: int, right: int) -> int:
        word = (0xCA01F9DD * left - 0x4973F715 * right) & _MASK
        return word ^ word >> 16

    pool = [hashed(word) for word in entropy[:_POOL_SIZE]]
    for source in range(_POOL_SIZE):
        for target in range(_POOL_SIZE):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL_SIZE:]:
        pool = [mixed(known, hashed(word)) for known in pool]
    # A scalar that wraps is an error to numpy, and none in Python.
    return np.array([0xCA01F9DD * word & _MASK for word in pool], np.uint32)[:, None], *constants.take(_POOL_SIZE)


def _words(number: int) -> list[int]:
    words = [number & _MASK]
    while number := number >> 32:
        words.append(number & _MASK)
    return words


def _hashed(
    words: npt.NDArray[np.uint32], flips: npt.NDArray[np.uint32], factors: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    hashed: npt.NDArray[np.uint32] = (words ^ flips) * factors
    hashed ^= hashed >> np.uint32(16)
    return hashed


class _Constants:
    """The constants of a seed sequence's hash, in pairs: what to flip and what to multiply with."""

    def __init__(self, first: int, factor: int) -> None:
        self._current, self._factor = first, factor

    def __next__(self) -> tuple[int, int]:
        flip, self._current = self._current, self._current * self._factor & _MASK
        return flip, self._current

    def take(self, count: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Return the next ones as two columns."""
        flips, factors = np.array([next(self) for _ in range(count)], np.uint32).T[:, :, None]
        return flips, factors


_OUTPUT_CONSTANTS = _Constants(0x8B51F9DD, 0x58F38DED).take(2 * _POOL_SIZE)


class _Wide:
    """Unsigned integers of 128 bits, as two arrays of 64; they wrap."""

    def __init__(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> None:
        self.high, self.low = high, low

    @classmethod
    def of_ints(cls, numbers: list[int]) -> "_Wide":
        """Make a row of them."""
        halves = [[number >> 64 for number in numbers], [number % 2**64 for number in numbers]]
        return cls(*np.array(halves, np.uint64)[:, None, :])

    def plus(self, other: "_Wide") -> "_Wide":
        """Add."""
        low = self.low + other.low
        return _Wide(self.high + other.high + (low < self.low), low)

    def times(self, other: "_Wide") -> "_Wide":
        """Multiply."""
        half, mask = np.uint64(32), np.uint64(_MASK)
        a, b, c, d = self.low >> half, self.low & mask, other.low >> half, other.low & mask
        outer, inner = a * d, b * c
        middle = (b * d >> half) + (outer & mask) + (inner & mask)
        high = a * c + (outer >> half) + (inner >> half) + (middle >> half)
        return _Wide(high + self.high * other.low + self.low * other.high, self.low * other.low)
