"""The errors that a user can cause, and how offenders are listed in their messages."""

from collections.abc import Iterable
from itertools import islice


class MeidbenchError(ValueError):
    """Something is wrong with the data or the request; the message says what, where and what to do."""


class AnnotationError(MeidbenchError):
    """An annotation file is missing, damaged, or not the one that a split was released on."""


class SplitError(MeidbenchError):
    """A split file is missing, unreadable or contradicts itself."""


class PredictionError(MeidbenchError):
    """A prediction file cannot be read or does not fit the split that it is to be scored on."""


class FeatureError(MeidbenchError):
    """Features are missing, malformed, or of another shape than asked for."""


class OutputError(MeidbenchError):
    """An output cannot be written, or would destroy an input or another output."""


class DownloadError(MeidbenchError):
    """A download failed, or what came is not what was expected."""


def first_few(items: Iterable[object], shown: int = 5) -> str:
    """Join the first few items and count the rest.

    Parameters
    ----------
    items : iterable
        Offenders, in the order in which they should be named.
    shown : int
        How many are named.

    Examples
    --------
    >>> first_few(["a", "b"])
    'a, b'
    >>> first_few("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    iterator = iter(items)
    named = ", ".join(str(item) for item in islice(iterator, shown))
    rest = sum(1 for _ in iterator)
    return f"{named} and {rest:,} more" if rest else named


def bullet_list(problems: Iterable[str], most: int | None = None) -> str:
    """Render problems as indented lines, one per problem, for the body of an error message.

    With ``most``, only so many are named and the last line counts the rest.
    """
    every = [f"  - {problem}" for problem in problems]
    named = every[:most]
    rest = len(every) - len(named)
    return "\n".join([*named, f"  ... and {rest:,} more"] if rest else named)
