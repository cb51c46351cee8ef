"""Which frames of a video are taken: pure functions from counts to row indices."""

import operator

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
