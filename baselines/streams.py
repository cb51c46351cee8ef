"""Streams of randomness: a seed for each purpose and place of a run, from the run's one seed."""

import numpy as np

WEIGHTS, NOISE, MIXING = range(3)


def stream(seed: int, purpose: int, *place: int) -> int:
    """Return the seed of a purpose (``WEIGHTS``, ``NOISE`` of dropout, ``MIXING``) at a place of the run.

    Examples
    --------
    >>> stream(0, NOISE, 7) == stream(0, NOISE, 7), stream(0, NOISE, 7) == stream(0, MIXING, 7)
    (True, False)
    """
    words = np.random.SeedSequence(seed, spawn_key=(purpose, *place)).generate_state(2)
    return int(words[0]) << 32 | int(words[1])
