"""The errors that a user can cause, the lists of offenders in their messages, and control characters made visible."""

import re
from collections.abc import Iterable
from itertools import islice

# C0, DEL, C1, line separators, marks and overrides of the writing direction, and halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control characters as escapes, so that it cannot command a terminal.

    Ids, names and metadata come from files of others. Characters in ``keep`` stay: the lines of a message end with a
    newline, and a name has none.

    Examples
    --------
    >>> print(escape_controls("cat\x1b[2J\n"))
    cat\x1b[2J\n
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def escape_json(text: str) -> str:
    r"""Return a JSON text with its control characters as ``\uXXXX``: the same content, safe on a terminal.

    Examples
    --------
    >>> print(escape_json('"cat\x7f"'))
    "cat\u007f"
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


class MeidbenchError(ValueError):
    """Something is wrong with the data or the request; the message says what, where and what to do."""

    def __str__(self) -> str:
        return escape_controls(super().__str__(), keep="\n")


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


class RequestError(MeidbenchError):
    """The request itself is wrong, such as an unknown method; the command line ends with 2 as after a wrong option."""


def missing_package(error: ModuleNotFoundError) -> MeidbenchError:
    """Return the error for a package that is not installed, with the command that installs it."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "meidbench"):  # not an installation that lacks a package, but a fault of ours
        raise error
    package = "pillow" if package == "PIL" else package
    return MeidbenchError(f"this needs the package {package}, which is not installed: pip install {package}")


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
    named = ", ".join(escape_controls(str(item)) for item in islice(iterator, shown))
    rest = sum(1 for _ in iterator)
    return f"{named} and {rest:,} more" if rest else named


def bullet_list(problems: Iterable[str], most: int | None = None) -> str:
    """Render problems as indented lines, one per problem, for the body of an error message.

    With ``most``, only so many are named and the last line counts the rest.
    """
    every = [f"  - {escape_controls(problem)}" for problem in problems]
    named = every[:most]
    rest = len(every) - len(named)
    return "\n".join([*named, f"  ... and {rest:,} more"] if rest else named)
