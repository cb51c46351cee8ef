"""Frame sampling: which rows of a video are taken, for one video and for many videos at once."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from meidbench.checks import whole_number
from meidbench.errors import FeatureError

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

_MASK = 0xFFFFFFFF
_PCG64_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def uniform_indices(num_frames: int, wanted: int) -> Indices:
    """Return evenly spaced frames, first and last included.

    Parameters
    ----------
    num_frames, wanted : int
        Frames that the video has, and frames to take, each at least 1. More than the video has repeats some; a single
        frame is the first one.

    Returns
    -------
    (wanted,) int64 array, ascending.

    Raises
    ------
    FeatureError
        A count is not a whole number of at least 1.

    Notes
    -----
    ``uniform_sample`` of VideoLT's ``ops/feature_loader.py`` (github.com/17Skye17/VideoLT). It truncates, which is part
    of the protocol: where floating point falls just short of a whole number, the frame before is taken.

    Examples
    --------
    >>> uniform_indices(10, 4)
    array([0, 3, 6, 9])
    >>> uniform_indices(3, 5)
    array([0, 0, 1, 1, 2])
    """
    num_frames, wanted = _counts(num_frames, wanted)
    return np.linspace(0, num_frames - 1, wanted).astype(np.int64)


def random_indices(num_frames: int, wanted: int, generator: np.random.Generator, replacement: bool = True) -> Indices:
    """Return random frames in the order of time.

    Parameters
    ----------
    num_frames, wanted : int
        Frames that the video has, and frames to take, each at least 1.
    generator : numpy.random.Generator
    replacement : bool
        Draw each frame independently, as VideoLT's ``random_sample`` does. False takes every frame
        ``wanted // num_frames`` times and draws the rest without replacement.

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
    return whole_number("num_frames", num_frames, 1, FeatureError), whole_number("wanted", wanted, 1, FeatureError)


class FrameRows:
    """The rows to take of each video of a subset; they depend only on the arguments, the epoch and the position.

    ``num_frames`` (n,) are the rows that each video has, ``frames`` those to take (None takes all); ``sampling`` is
    ``uniform`` (``uniform_indices``) or ``random`` (``random_indices``, for which ``replacement`` and ``seed`` are).

    Examples
    --------
    >>> import numpy as np
    >>> rows = FrameRows(np.array([10, 3]), 4, "random", replacement=True, seed=0)
    >>> bool((rows.select(np.array([1, 0]), epoch=2)[0] == rows.select_one(1, epoch=2)).all())
    True
    >>> FrameRows(np.array([10, 3]), 4, "uniform", replacement=True, seed=0).select(np.array([1, 0]), epoch=0)
    array([[0, 0, 1, 2],
           [0, 3, 6, 9]])
    """

    def __init__(self, num_frames: Indices, frames: int | None, sampling: str, replacement: bool, seed: int) -> None:
        self._num_frames, self._frames, self._sampling = num_frames, frames, sampling
        self._replacement, self._seed = replacement, seed
        self._evenly: tuple[Indices, Indices] | None = None
        self._generators: _Generators | None = None
        self._agrees_with_numpy: bool | None = None

    def select_one(self, position: int, epoch: int) -> Indices | None:
        """Return the (frames,) rows of one video in the order of time; None means all rows."""
        if self._frames is None:
            return None
        if self._sampling == "uniform":
            rows: Indices = self._even(np.array([position]))[0]
            return rows
        sequence = np.random.SeedSequence(self._seed, spawn_key=(epoch, position))
        generator = np.random.default_rng(sequence)
        return random_indices(int(self._num_frames[position]), self._frames, generator, self._replacement)

    def select(self, positions: Indices, epoch: int) -> Indices:
        """Return the (B, frames) rows of several videos; refuse to take all rows of videos of different lengths."""
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
            return self._select_one_by_one(positions, epoch)
        if self._generators is None:
            self._generators = _Generators(self._frames)
        rows, valid = self._generators.integers(counts, self._seed, epoch, positions)
        rows.sort(axis=1)
        # numpy promises the bits of its generators, but not how a later version uses them.
        if self._agrees_with_numpy is None and valid[:1].any():
            self._agrees_with_numpy = np.array_equal(rows[0], self._select_one_by_one(positions[:1], epoch)[0])
        if not self._agrees_with_numpy:
            valid[:] = False
        if not valid.all():
            rows[~valid] = self._select_one_by_one(positions[~valid], epoch)
        return rows

    def _even(self, positions: Indices) -> Indices:
        if self._evenly is None:
            assert self._frames is not None
            distinct, which = np.unique(self._num_frames, return_inverse=True)
            self._evenly = np.stack([uniform_indices(int(count), self._frames) for count in distinct]), which
        table, which = self._evenly
        return table[which[positions]]

    def _select_one_by_one(self, positions: Indices, epoch: int) -> Indices:
        rows = [self.select_one(position, epoch) for position in positions.tolist()]
        return np.stack([row for row in rows if row is not None])


class _Generators:
    """The first numbers of many numpy generators at once, each seeded with a key of its own.

    Seeding one generator and drawing from it takes 20 microseconds; for a batch, that is the time of copying its rows.
    Sources: ``numpy.random.SeedSequence`` (after M. E. O'Neill's ``seed_seq_fe``), PCG XSL RR 128/64 (O'Neill, PCG: A
    Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation, 2014), and D.
    Lemire's bounded integers (Fast Random Integer Generation in an Interval, 2019). The k-th state of a generator is a
    linear function of its seed, so all states are computed side by side.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        powers, sums = [1], [0]
        for _ in range((wanted + 1) // 2 + 2):
            sums.append((sums[-1] + powers[-1]) % 2**128)
            powers.append(powers[-1] * _PCG64_MULTIPLIER % 2**128)
        # numpy steps once between increment and seed, once after, and once before each number.
        self._seed_factors = _Uint128.from_ints(powers[2:-1])
        self._increment_factors = _Uint128.from_ints(sums[3:])

    def integers(self, highs: Indices, seed: int, epoch: int, positions: Indices) -> tuple[Indices, Flags]:
        """Return ``default_rng(SeedSequence(seed, spawn_key=(epoch, p))).integers(high, size=wanted)`` for each p.

        The second array marks the valid rows: in the others, numpy would draw a number again.
        """
        bits = self._bits(seed, epoch, positions)
        high = highs.astype(np.uint64)[:, None]
        products = bits[:, : self._wanted].astype(np.uint64) * high
        redrawn = (products & np.uint64(_MASK)) < (np.uint64(1 << 32) - high) % high
        valid = ~redrawn.any(axis=1) & (highs < 1 << 32)
        return (products >> np.uint64(32)).astype(np.int64), valid

    def _bits(self, seed: int, epoch: int, positions: Indices) -> Words:
        seeds = _seeds(seed, epoch, positions)
        sequence = _Uint128(seeds[2][:, None], seeds[3][:, None])
        one, rest = np.uint64(1), np.uint64(63)
        increment = _Uint128((sequence.high << one) | (sequence.low >> rest), (sequence.low << one) | one)
        seeded = self._seed_factors.times(_Uint128(seeds[0][:, None], seeds[1][:, None]))
        states = seeded.plus(self._increment_factors.times(increment))
        mixed, turn = states.high ^ states.low, states.high >> np.uint64(58)
        numbers = (mixed >> turn) | (mixed << ((np.uint64(64) - turn) & rest))
        # The lower half of each number comes first.
        bits: Words = numbers.astype("<u8", copy=False).view("<u4")
        return bits


def _seeds(seed: int, epoch: int, positions: Indices) -> npt.NDArray[np.uint64]:
    """Return the (4, B) words of 64 bits with which a seed sequence seeds a PCG64."""
    words, flips, factors = _mixed_key(seed, epoch)
    mixed = words - _hashed(positions.astype(np.uint32), flips, factors) * np.uint32(0x4973F715)
    mixed ^= mixed >> np.uint32(16)
    given = _hashed(np.concatenate([mixed, mixed]), *_OUTPUT_CONSTANTS).astype(np.uint64)
    seeds: npt.NDArray[np.uint64] = given[0::2] | (given[1::2] << np.uint64(32))
    return seeds


@lru_cache(maxsize=8)
def _mixed_key(seed: int, epoch: int) -> tuple[Words, Words, Words]:
    """Return numpy's pool before the position, which comes last, is mixed in, and the hash constants of that step."""
    pool = np.random.SeedSequence(seed, spawn_key=(epoch,)).pool
    # Hashed so far: the first four words of the key, twelve pairs of the pool, and each later word four times.
    seed_words, epoch_words = (max(-(-number.bit_length() // 32), 1) for number in (seed, epoch))
    later = max(seed_words - 4, 0) + epoch_words
    first = 0x43B0D7E5 * pow(0x931E8875, 16 + 4 * later, 1 << 32)
    return pool[:, None] * np.uint32(0xCA01F9DD), *_hash_constants(first, 0x931E8875, 4)


def _hashed(words: Words, flips: Words, factors: Words) -> Words:
    hashed: Words = (words ^ flips) * factors
    hashed ^= hashed >> np.uint32(16)
    return hashed


def _hash_constants(first: int, factor: int, count: int) -> tuple[Words, Words]:
    """Return the constants of a seed sequence's hash as two columns: the bits to flip, and the factors."""
    values = np.array([first * pow(factor, step, 1 << 32) & _MASK for step in range(count + 1)], np.uint32)[:, None]
    return values[:-1], values[1:]


_OUTPUT_CONSTANTS = _hash_constants(0x8B51F9DD, 0x58F38DED, 8)


class _Uint128:
    """Unsigned integers of 128 bits, as two arrays of 64; they wrap."""

    def __init__(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> None:
        self.high, self.low = high, low

    @classmethod
    def from_ints(cls, numbers: list[int]) -> "_Uint128":
        halves = [[number >> 64 for number in numbers], [number % 2**64 for number in numbers]]
        return cls(*np.array(halves, np.uint64)[:, None, :])

    def plus(self, other: "_Uint128") -> "_Uint128":
        low = self.low + other.low
        return _Uint128(self.high + other.high + (low < self.low), low)

    def times(self, other: "_Uint128") -> "_Uint128":
        half, mask = np.uint64(32), np.uint64(_MASK)
        a, b, c, d = self.low >> half, self.low & mask, other.low >> half, other.low & mask
        outer, inner = a * d, b * c
        middle = (b * d >> half) + (outer & mask) + (inner & mask)
        high = a * c + (outer >> half) + (inner >> half) + (middle >> half)
        return _Uint128(high + self.high * other.low + self.low * other.high, self.low * other.low)
