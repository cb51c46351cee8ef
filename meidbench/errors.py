"""The errors that a user can cause; lists, hints and kinds of files in messages; control characters made visible."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

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


class DivergenceError(MeidbenchError):
    """A loss, a gradient or a score is NaN or infinite.

    ``video_ids`` are the videos of the step's batch in this process; ``step`` is 0 and the ids are empty for scores.
    """

    def __init__(self, message: str, step: int = 0, video_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.step = step
        self.video_ids = video_ids


class DownloadError(MeidbenchError):
    """A download failed, or what came is not what was expected."""


class RequestError(MeidbenchError):
    """The request itself is wrong, such as an unknown method; the command line ends with 2 as after a wrong option."""


def missing_package(error: ModuleNotFoundError) -> MeidbenchError:
    """Return the error for a package that is not installed, with the command that installs it."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "meidbench"):  # not an installation that lacks a package, but a fault of ours
        raise error
    package = {"PIL": "pillow", "sklearn": "scikit-learn", "psycopg": "'psycopg[binary]'"}.get(package, package)
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


def write_count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, whose plural ends in s unless it is given.

    Examples
    --------
    >>> write_count(1, "video"), write_count(2000, "video"), write_count(0, "class", "classes")
    ('1 video', '2,000 videos', '0 classes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


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
    targets = sorted(want)  # or the message would differ from call to call
    have = [name for name in dict.fromkeys(given) if name not in want]
    more, less = _find_frame(have, want), _find_frame(targets, set(have))
    inner = _find_frame([_last_part(name) for name in have], want)
    # A sentence, and what of a given and of a wanted id must be the same.
    rules: list[tuple[str, Callable[[str], str], Callable[[str], str]]] = [
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
        owners = {of_wanted(name): name for name in targets}
        pairs = {owners[key]: name for name in have if (key := of_given(name)) and key in owners}
        if len(pairs) >= enough:
            goal, name = next(iter(pairs.items()))
            return IdRule(f"{sentence}, {name!r} to {goal!r}", *(more if number == 0 else ()))
    if len(have) > 1 and set(have) == set(map(str, range(len(have)))):
        return IdRule("the ids are row numbers, such as the index of a DataFrame: write the ids of the videos")
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


# Kinds of files by their first bytes; "?" stands for any byte. The words stand in messages after "is".
_KINDS = {
    "a Parquet file": (b"PAR1",),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n",),
    "a NumPy array": (b"\x93NUMPY",),
    # torch.save began its files so before version 1.6, as pickles of protocol 2.
    "a file of torch.save": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",),
    "a pickle": (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
    "a zip archive": (b"PK\x03\x04", b"PK\x05\x06"),
    "a compressed archive": (b"\x1f\x8b", b"BZh?1AY&SY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!\x1a"),
    "an Excel workbook": (b"\xd0\xcf\x11\xe0",),
    "an Arrow file": (b"ARROW1\0",),
    "a database": (b"SQLite format 3",),
    "a MATLAB file": (b"MATLAB 5.0 MAT-file",),
    "a PDF document": (b"%PDF-",),
    "text in UTF-16": (b"\xff\xfe", b"\xfe\xff"),
    "an image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8?a", b"RIFF????WEBP"),
    "a video file": (b"RIFF????AVI ", b"\0???ftyp", b"\x1a\x45\xdf\xa3", b"FLV\1"),
    "a pointer of Git LFS in the place of the file": (b"version https://git-lfs",),
}


def _begins_with(start: bytes, magic: bytes) -> bool:
    pairs = zip(magic, start, strict=False)
    return len(start) >= len(magic) and all(wanted in (byte, ord("?")) for wanted, byte in pairs)


def describe_content(path: Path) -> str:
    r"""Return the kind of a file by its content, such as "a pickle"; an empty text for plain text and unknown kinds.

    Nothing is loaded. A Parquet file may be "a split file" or "a prediction file", a zip archive "a NumPy archive", "a
    file of torch.save", "a checkpoint of a run" or "an Excel workbook"; JSON is "JSON".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "result.pkl").write_bytes(b"\x80\x04]\x94.")
    ...     describe_content(Path(folder, "result.pkl"))
    'a pickle'
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except (OSError, ValueError):
        return ""
    kind = next((kind for kind, magics in _KINDS.items() if any(_begins_with(start, magic) for magic in magics)), "")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind == "a zip archive":
        return _describe_zip(path)
    if kind == "a Parquet file":
        return _describe_parquet(path)
    if kind == "a NumPy array" and b"'descr': '|O'" in start:
        return "a NumPy array of Python objects"
    if not kind and start[257:262] == b"ustar":
        return "a tar archive"
    if not kind and text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return kind or ("JSON" if text[:1] in (b"[", b"{") else "" if start else "empty")


def _describe_zip(path: Path) -> str:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises a dozen kinds
        return "a damaged zip archive"
    if any(name.endswith("/data.pkl") for name in names):
        of_run = path.name in ("best.pt", "last.pt") and path.with_name("config.json").is_file()
        return "a checkpoint of a run" if of_run else "a file of torch.save"
    if "xl/workbook.xml" in names:
        return "an Excel workbook"
    return "a NumPy archive" if names and all(name.endswith(".npy") for name in names) else "a zip archive"


def _describe_parquet(path: Path) -> str:
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        facts = json.loads((schema.metadata or {}).get(b"meidbench", b"{}"))
    except Exception:  # a damaged file makes the reader fail with any error
        return "a Parquet file"
    if isinstance(facts, dict) and "train_counts" in facts:
        return "a split file"
    return "a prediction file" if {"video_id", "scores"} <= set(schema.names) else "a Parquet file"
