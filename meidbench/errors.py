"""The errors that a user can cause, the lists and hints in their messages, and control characters made visible."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class IdRule:
    """How ids that were given become those that are wanted: ``change``, a clause for a message.

    ``prefix`` and ``suffix`` are what the given ids have around the wanted ones; both are empty for other rules.
    """

    change: str
    prefix: str = ""
    suffix: str = ""

    def __str__(self) -> str:
        return self.change


def find_id_rule(given: Iterable[str], wanted: Iterable[str]) -> IdRule | None:
    """Return the rule that makes wanted ids of nearly all given ones (or all wanted ones of some); None without one.

    Examples
    --------
    >>> print(find_id_rule(["v_a.mp4", "v_b.mp4"], ["a", "b"]))
    the ids begin with 'v_' and end in '.mp4': strip both, 'v_a.mp4' to 'a'
    >>> print(find_id_rule(["7", "12"], ["007", "012"]))
    the ids lack zeros at their beginning: read them as text, not as numbers (in pandas: dtype=str), '7' to '007'
    """
    want = set(wanted)
    have = [name for name in dict.fromkeys(given) if name not in want]
    more, less = _find_frame(have, want), _find_frame(want, set(have))
    inner = _find_frame([_last_part(name) for name in have], want)
    # A sentence, and what of a given and of a wanted id must be the same.
    rules = [
        (f"the ids {_describe_frame('begin with', 'end in', *more)}", partial(_strip_frame, *more), str),
        (
            "the ids lack zeros at their beginning: read them as text, not as numbers (in pandas: dtype=str)",
            str,
            lambda name: name.lstrip("0") or "0",
        ),
        (f"the ids do not {_describe_frame('begin with', 'end in', *less, 'add')}", str, partial(_strip_frame, *less)),
        ("the ids name folders: write the name alone", lambda name: _strip_frame(*inner, _last_part(name)), str),
        ("the ids differ in upper and lower case: write them as the split does", str.casefold, str.casefold),
    ]
    enough = max(2, 0.9 * min(len(have), len(want)))
    for number, (sentence, of_given, of_wanted) in enumerate(rules):
        owners = {of_wanted(name): name for name in sorted(want)}
        pairs = {owners[key]: name for name in have if (key := of_given(name)) and key in owners}
        if len(pairs) >= enough:
            goal, name = next(iter(pairs.items()))
            return IdRule(f"{sentence}, {name!r} to {goal!r}", *(more if number == 0 else ()))
    return None


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _find_frame(longer: Collection[str], shorter: set[str]) -> tuple[str, str]:
    """Return the prefix and the suffix that most of some names have around one of the shorter names."""
    lengths = sorted({len(name) for name in shorter} - {0})
    frames: Counter[tuple[str, str]] = Counter()
    for name in islice(longer, 0, None, len(longer) // 100 + 1):
        for length in lengths if len(name) < 300 else ():
            for end in range(length, len(name) + 1):
                if name[end - length : end] in shorter:
                    frames[name[: end - length], name[end:]] += 1
    return max(frames, key=lambda frame: (frames[frame], -len("".join(frame)), frame), default=("", ""))


def _strip_frame(prefix: str, suffix: str, name: str) -> str:
    """Return a name without its prefix and suffix; an empty text where it lacks one of them."""
    fits = len(name) > len(prefix + suffix) and name.startswith(prefix) and name.endswith(suffix)
    return name[len(prefix) : len(name) - len(suffix)] if fits else ""


def _describe_frame(begin: str, end: str, prefix: str, suffix: str, do: str = "strip") -> str:
    parts = [f"{verb} {text!r}" for verb, text in ((begin, prefix), (end, suffix)) if text]
    return f"{' and '.join(parts)}: {do} {'both' if len(parts) == 2 else 'it'}"
