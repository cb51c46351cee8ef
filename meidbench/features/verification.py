"""A look at every row of stored features: what is missing, damaged, empty of meaning, or not what it is taken for."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError
from meidbench.evaluation.results import as_json
from meidbench.features import open_features
from meidbench.features.feature_file import STATUSES, Recipe, stored_checksums
from meidbench.features.packing import Originals, Progress, ahead, said
from meidbench.features.records import VideoRows, all_finite, decode, read_rows
from meidbench.features.source import FeatureSource, Unusable
from meidbench.splits.split import Split


@dataclass(frozen=True)
class Look:
    """What is kept of a video once its rows were read.

    Attributes
    ----------
    problem, detail : str
        Why it could not be read; empty where it could.
    shape : tuple of int
        Rows and their width.
    dtype : str
        Of the stored rows.
    checksum : int
        As ``VideoRows.checksum`` gives it.
    remarks : tuple of (str, str)
        What was noticed, as a name and a detail.
    """

    problem: str
    detail: str
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    checksum: int = 0
    remarks: tuple[tuple[str, str], ...] = ()


def look_at(video: VideoRows, expected: int | None) -> Look:
    """Notice what is wrong or odd in the rows of one video.

    Parameters
    ----------
    video : VideoRows
        At least one row.
    expected : int or None
        Its checksum when it was written, where that is known.

    Examples
    --------
    >>> look_at(VideoRows(np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])), None).remarks
    (('zero-rows', '1 of 3'),)
    """
    rows = np.ascontiguousarray(video.rows, video.rows.dtype.newbyteorder("="))
    actual = video.checksum()
    remarks = []
    if video.status == "salvaged":
        remarks.append(("salvaged", video.reason))
    if expected is not None and actual != expected:
        remarks.append(("checksum", ""))
    if video.scales is not None:
        is_finite = bool(np.isfinite(video.scales).all())
    else:
        is_finite = rows.dtype.kind != "f" or all_finite(rows)
    if not is_finite:
        numbers = decode(rows, video.scales)
        remarks.append(("not-finite", _share(~np.isfinite(numbers).all(axis=1))))
    # Bit for bit, which is many times as fast on half precision.
    bits = rows.view(f"u{rows.dtype.itemsize}")
    shape = (len(rows), rows.shape[1])
    if shape[1] > 1:
        constant = bits[:, 0] == bits[:, -1]
        constant[constant] = (bits[constant] == bits[constant, :1]).all(axis=1)
    else:
        constant = np.ones(len(rows), bool)
    zero = constant & (rows[:, 0] == 0)
    if video.scales is not None:
        zero |= video.scales == 0
    if zero.any():
        remarks.append(("zero-rows", _share(zero)))
    if shape[1] > 1 and (constant := constant & ~zero).any():
        remarks.append(("constant-rows", _share(constant)))
    scales_same = video.scales is None or bool((video.scales == video.scales[0]).all())
    if len(rows) > 1 and np.array_equal(bits[0], bits[-1]) and scales_same and bool((bits == bits[0]).all()):
        remarks.append(("frozen", f"{len(rows):,} rows"))
    return Look("", "", shape, str(rows.dtype), actual, tuple(remarks))


def cosine_similarity(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the cosine of each row of one (r, D) array with the same row of another, (r,) float64.

    Two rows of zeros have 1, one of zeros and one of others 0.

    Examples
    --------
    >>> cosine_similarity(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])).round(4)
    array([0.7071, 1.    ])
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    products = (one * other).sum(axis=1)
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, products / np.where(lengths == 0, 1.0, lengths))
    return cosines


def _share(concerned: npt.NDArray[np.bool_]) -> str:
    return f"{concerned.sum():,} of {len(concerned):,}"


LEAST_SIMILARITY = 0.99

# Severity and sentence of each check, in the order in which they are told.
CHECKS = {
    "missing": ("error", "videos of the split are not there"),
    "failed": ("error", "videos could not be extracted or packed"),
    "pending": ("error", "videos are not there yet: the file is not finished"),
    "unreadable": ("error", "videos cannot be read"),
    "width": ("error", "videos are not of the width of most"),
    "checksum": ("error", "videos are not what was written: the file was damaged"),
    "not-finite": ("error", "videos have NaN or infinity"),
    "constant-rows": ("error", "videos have rows of one and the same number"),
    "recipe": ("error", "entries of the recipe are not as expected"),
    "similarity": ("error", f"videos are not as when made again (cosine below {LEAST_SIMILARITY})"),
    "zero-rows": ("warning", "videos have rows of zeros"),
    "frozen": ("warning", "videos have the same row throughout"),
    "duplicates": ("warning", "groups of videos have the same rows"),
    "salvaged": ("warning", "videos were made from what could be read of a damaged file"),
    "dtype": ("warning", "videos are not of the dtype of most"),
    "extra": ("warning", "videos are not in the split"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    check : str
        A key of ``CHECKS``.
    severity : str
        ``error`` where the features must not be used as they are, ``warning`` where it should be known.
    count : int
        How many are concerned.
    what : str
        A sentence.
    concerned : tuple of str
        All of them, sorted, with details in brackets.
    """

    check: str
    severity: str
    count: int
    what: str
    concerned: tuple[str, ...]


@dataclass(frozen=True)
class Similarity:
    """How near the stored rows of a video are to rows made again.

    Attributes
    ----------
    video_id : str
    min, mean : float
        Of the cosine similarity, over the rows.
    """

    video_id: str
    min: float
    mean: float


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes
    ----------
    videos : int
        That are there, usable or not.
    rows : int
        Of all readable videos.
    dim : int
        Width of most; 0 where nothing is readable.
    dtype : str
        Stored, of most; empty where nothing is readable.
    statuses : dict of str to int
        Videos by status (``STATUSES``); what has no status and is readable counts as ok, else as failed.
    recipe : dict or None
        As stored; None where there is none.
    checks : tuple of str
        What was looked for (``CHECKS``): no split, for one, no look for missing videos.
    findings : tuple of Finding
        Errors first; empty where nothing was found.
    similarities : tuple of Similarity
        Of the videos that were made again, by id.
    """

    videos: int
    rows: int
    dim: int
    dtype: str
    statuses: Mapping[str, int]
    recipe: Recipe | None
    checks: tuple[str, ...]
    findings: tuple[Finding, ...]
    similarities: tuple[Similarity, ...]

    @property
    def is_sound(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> str:
        """Return all of it as JSON: keys sorted, no path, time or host, null for NaN."""
        return as_json({**asdict(self), "is_sound": self.is_sound})


def verify(
    path: str | os.PathLike[str] | FeatureSource,
    *,
    split: Split | None = None,
    recipe: Mapping[str, str] | None = None,
    npy: str | os.PathLike[str] | FeatureSource | None = None,
    extract: Callable[[str], VideoRows] | None = None,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Read all rows of stored features once and check them.

    Parameters
    ----------
    path : path or FeatureSource
        A feature file, or what else ``open_features`` takes; checksums, statuses and a recipe are only in the former.
    split : Split, optional
        Whose videos must all be there.
    recipe : dict of str to str, optional
        What the recipe must say, by key; a dot leads into an entry (``weights.sha256``). Compared as text, or as
        JSON where it is some.
    npy : path or FeatureSource, optional
        The features that were packed, to be compared with those stored.
    extract : callable, optional
        Makes the rows of a video anew, by its id; instead of ``npy``.
    sample : int, optional
        How many videos are compared with ``npy`` or ``extract``, drawn at random; all by default.
    seed : int
        Of the draw.
    progress : callable, optional
        Called with a title and a number of videos; a context manager that gives a function to be called with the
        number of videos done.

    Raises
    ------
    FeatureError
        There are no features, or the file is damaged as a whole.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "ATOYW.npy"), np.array([[1.0, 2.0], [0.0, 0.0]]))
    ...     verification = verify(folder)
    >>> verification.is_sound, [(finding.check, finding.concerned) for finding in verification.findings]
    (True, [('zero-rows', ('ATOYW (1 of 2)',))])
    """
    if npy is not None and extract is not None:
        raise FeatureError("give npy or extract to compare with, not both")
    if sample is not None and (sample < 1 or (npy is None and extract is None)):
        raise FeatureError(f"sample is how many videos are compared with npy or extract, at least 1; got {sample}")
    progress = progress or (lambda title, total: nullcontext(lambda steps: None))
    stored = _Stored(path if isinstance(path, FeatureSource) else open_features(path))
    found: dict[str, list[str]] = {check: [] for check in CHECKS}
    facts = _read_all(stored, found, progress)
    wanted = None if split is None else set(split.table.column("video_id").to_pylist())
    if wanted is not None:
        found["missing"] += wanted - stored.ids
        found["extra"] += stored.ids - wanted
    found["recipe"] += _recipe_faults(stored.recipe, recipe or {})
    similarities: list[Similarity] = []
    if npy is not None:
        originals = Originals(npy if isinstance(npy, FeatureSource) else open_features(npy))
        extract = originals.read
    if extract is not None:
        chosen = [video_id for video_id in facts.ready if wanted is None or video_id in wanted]
        if sample is not None and sample < len(chosen):
            drawn = np.random.default_rng(seed).choice(len(chosen), sample, replace=False)
            chosen = [chosen[at] for at in sorted(drawn.tolist())]
        similarities = _compare(stored, chosen, extract, found, progress)
    idle = {
        *(("missing", "extra") if wanted is None else ()),
        *(() if recipe else ("recipe",)),
        *(() if extract else ("similarity",)),
        *(("failed", "pending", "checksum", "salvaged") if stored.header is None else ("width", "dtype")),
    }
    findings = [
        Finding(check, CHECKS[check][0], len(concerned), CHECKS[check][1], tuple(sorted(concerned)))
        for check, concerned in found.items()
        if concerned
    ]
    return Verification(
        videos=len(stored.ids),
        rows=facts.rows,
        dim=facts.dim,
        dtype=facts.dtype,
        statuses=facts.statuses,
        recipe=stored.recipe,
        checks=tuple(check for check in CHECKS if check not in idle or found[check]),
        findings=tuple(sorted(findings, key=lambda finding: finding.severity != "error")),
        similarities=tuple(similarities),
    )


class _Stored:
    """The features to be verified, each video as it is stored."""

    def __init__(self, source: FeatureSource) -> None:
        self._originals = Originals(source)
        self.header = self._originals.header
        # Hidden files of a folder are nobody's videos; what a feature file holds is there on purpose.
        hidden = self.header is None
        self.ids = {name for name in self._originals.ids() if not (hidden and name.startswith("."))}
        if not self.ids:
            raise FeatureError(f"there are no features in {source.path}; expected {source.expected}")
        self.recipe: Recipe | None = None if self.header is None else self.header.recipe
        self.threads = self._originals.threads if self.header is None else 2
        names = () if self.header is None else self.header.layout.video_ids
        self._positions = {video_id: position for position, video_id in enumerate(names)}
        self.checksums = [] if self.header is None else stored_checksums(source.path)

    def read(self, video_id: str) -> tuple[VideoRows, int | None]:
        """Return a video, and the checksum that it should have where one is stored; or raise ``Unusable``."""
        if self.header is None:
            original = self._originals.read(video_id)
            if not original.rows.size:
                raise Unusable("empty")
            return original, None
        position = self._positions[video_id]
        with self._originals.source.path.open("rb") as stream:
            video = read_rows(stream, self.header, position)
        if video.status in ("pending", "failed"):
            raise Unusable(video.status, video.reason)
        if not len(video.rows):
            raise Unusable("empty")
        return video, self.checksums[position]


@dataclass(frozen=True)
class _Facts:
    rows: int
    dim: int
    dtype: str
    statuses: dict[str, int]
    ready: list[str]


def _read_all(stored: _Stored, found: dict[str, list[str]], progress: Progress) -> _Facts:
    def examine(video_id: str) -> Look:
        try:
            video, checksum = stored.read(video_id)
        except Unusable as error:
            own = error.problem in ("pending", "failed")
            return Look(error.problem if own else "unreadable", error.detail if own else said(error))
        except (FeatureError, OSError) as error:
            return Look("unreadable", str(error))
        return look_at(video, checksum)

    looks: dict[str, Look] = {}
    video_ids = sorted(stored.ids)
    with progress("verifying", len(video_ids)) as advance:
        for video_id, look in zip(video_ids, ahead(examine, video_ids, stored.threads), strict=True):
            looks[video_id] = look
            advance(1)
    ready = {video_id: look for video_id, look in looks.items() if not look.problem}
    dim = _most_common(look.shape[1] for look in ready.values()) or 0
    dtype = _most_common(look.dtype for look in ready.values()) or ""
    for video_id, look in looks.items():
        if look.problem:
            found[look.problem].append(_with(video_id, look.detail))
            continue
        for check, detail in look.remarks:
            found[check].append(_with(video_id, detail))
        if look.shape[1] != dim:
            found["width"].append(_with(video_id, str(look.shape[1])))
        if look.dtype != dtype:
            found["dtype"].append(_with(video_id, look.dtype))
    found["duplicates"] += _duplicates(stored, ready)
    names = Counter(
        "salvaged" if any(check == "salvaged" for check, _ in look.remarks) else
        {"": "ok", "pending": "pending"}.get(look.problem, "failed")
        for look in looks.values()
    )  # fmt: skip
    return _Facts(
        rows=sum(look.shape[0] for look in ready.values()),
        dim=dim,
        dtype=dtype,
        statuses={status: names[status] for status in STATUSES},
        ready=list(ready),
    )


def _duplicates(stored: _Stored, ready: Mapping[str, Look]) -> Iterator[str]:
    """Yield groups of videos with the same content; of many videos, some share a checksum by chance."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for video_id, look in ready.items():
        alike[look.checksum, look.shape, look.dtype].append(video_id)
    for names in alike.values():
        if len(names) < 2:
            continue
        same: dict[bytes, list[str]] = defaultdict(list)
        for video_id in names:
            video, _ = stored.read(video_id)
            digest = blake2b(np.ascontiguousarray(video.rows).tobytes(), digest_size=16)
            digest.update(b"" if video.scales is None else video.scales.tobytes())
            same[digest.digest()].append(video_id)
        yield from (" = ".join(group) for group in same.values() if len(group) > 1)


def _recipe_faults(stored: Recipe | None, expected: Mapping[str, str]) -> Iterator[str]:
    for key, text in expected.items():
        if stored is None:
            yield f"{key}: no recipe is stored, expected {text}"
            continue
        value: Any = stored
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            yield f"{key}: not said, expected {text}"
        elif not _means(text, value):
            yield f"{key}: {value if isinstance(value, str) else json.dumps(value)}, expected {text}"


def _means(text: str, value: object) -> bool:
    if text == value:
        return True
    try:
        parsed = json.loads(text)
    except ValueError:
        return False
    # For Python, true equals 1.
    return bool(parsed == value) and isinstance(parsed, bool) == isinstance(value, bool)


def _compare(
    stored: _Stored,
    chosen: list[str],
    extract: Callable[[str], VideoRows],
    found: dict[str, list[str]],
    progress: Progress,
) -> list[Similarity]:
    similarities = []
    with progress("comparing", len(chosen)) as advance:
        for video_id in chosen:
            advance(1)
            video, _ = stored.read(video_id)
            try:
                fresh = extract(video_id)
            except Unusable as error:
                found["similarity"].append(_with(video_id, said(error)))
                continue
            except FeatureError as error:
                found["similarity"].append(_with(video_id, str(error).partition("\n")[0]))
                continue
            here, there = decode(video.rows, video.scales), decode(fresh.rows, fresh.scales)
            if fresh.status == "failed" or here.shape != there.shape:
                detail = fresh.reason or f"shape {there.shape} when made again, stored {here.shape}"
                found["similarity"].append(_with(video_id, detail))
                continue
            cosines = cosine_similarity(here, there)
            similarities.append(Similarity(video_id, float(cosines.min()), float(cosines.mean())))
            if not cosines.min() >= LEAST_SIMILARITY:
                found["similarity"].append(_with(video_id, f"{cosines.min():.4f}"))
    return similarities


def _most_common(items: Iterable[Any]) -> Any:
    counted = Counter(items).most_common(1)
    return counted[0][0] if counted else None


def _with(name: str, detail: str) -> str:
    return f"{name} ({detail})" if detail else name
