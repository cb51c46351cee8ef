"""Verification: every row of stored features is read and checked."""

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

from meidbench.checks import parse_json
from meidbench.errors import FeatureError, write_count
from meidbench.features import open_features
from meidbench.features.feature_file import STATUSES, Header, Recipe
from meidbench.features.packing import map_ahead
from meidbench.features.records import StoredVideos, VideoRows, all_finite, decode
from meidbench.features.source import FeatureSource, UnusableVideo, with_detail
from meidbench.files import render_json
from meidbench.names import ProgressBar
from meidbench.splits.split import Split

Extract = Callable[[str], VideoRows]

LEAST_SIMILARITY = 0.99

# Severity and sentence of each check, in the order in which they are listed.
CHECKS = {
    "missing": ("error", "videos of the split are not there"),
    "failed": ("error", "videos could not be extracted or packed"),
    "pending": ("error", "videos are not there yet: the file is not finished"),
    "unreadable": ("error", "videos cannot be read"),
    "width": ("error", "videos are not of the width of most"),
    "checksum": ("error", "videos differ from the rows that were written: the file was damaged"),
    "not-finite": ("error", "videos have NaN or infinity"),
    "constant-rows": ("error", "videos have rows of one and the same number"),
    "span": ("error", "videos are other parts of a video than in the split"),
    "recipe": ("error", "entries of the recipe are not as expected"),
    "similarity": ("error", f"videos differ when they are made again (cosine below {LEAST_SIMILARITY})"),
    "zero-rows": ("warning", "videos have rows of zeros"),
    "frozen": ("warning", "videos have the same row throughout"),
    "transposed": ("warning", "all videos have the same number of rows, more than numbers per row: C x T, not T x C?"),
    "duplicates": ("warning", "groups of videos have the same rows"),
    "salvaged": ("warning", "videos were made from the readable part of a damaged file"),
    "dtype": ("warning", "videos are not of the dtype of most"),
    "axes": ("warning", "videos are not stored as T x D, and are read so"),
    "extra": ("warning", "videos are not in the split"),
}


@dataclass(frozen=True)
class VerificationProblem:
    """One problem that ``verify`` found; ``check`` is a key of ``CHECKS``, and ``what`` its sentence.

    ``severity`` is ``error`` where the features must not be used as they are, otherwise ``warning``. ``concerned`` has
    all ``count`` videos, sorted, with details in brackets.
    """

    check: str
    severity: str
    count: int
    what: str
    concerned: tuple[str, ...]


@dataclass(frozen=True)
class Similarity:
    """The cosine similarity of the stored rows of a video to rows made again: minimum and mean over the rows."""

    video_id: str
    min: float
    mean: float


@dataclass(frozen=True)
class Verification:
    """The outcome of ``verify``.

    Attributes
    ----------
    videos, rows : int
        Videos in the source, usable or not, and rows of all readable ones.
    dim, dtype : int and str
        Width and stored dtype of most videos; 0 and empty where no video is readable.
    statuses : dict of str to int
        Videos by status (``STATUSES``); without a stored status, readable videos count as ok, others as failed.
    recipe : dict or None
        As stored.
    checks : tuple of str
        Keys of ``CHECKS`` that were made; without a split, for example, missing videos are not looked for.
    findings, similarities : tuple of VerificationProblem and of Similarity
        Problems, errors first; the videos that were made again, by id.
    """

    videos: int
    rows: int
    dim: int
    dtype: str
    statuses: Mapping[str, int]
    recipe: Recipe | None
    checks: tuple[str, ...]
    findings: tuple[VerificationProblem, ...]
    similarities: tuple[Similarity, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no problem is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> str:
        """Return everything as JSON: keys sorted, no path, time or host, null for NaN."""
        return render_json({**asdict(self), "is_sound": self.is_sound})


def verify(
    path: str | os.PathLike[str] | FeatureSource,
    *,
    split: Split | None = None,
    recipe: Mapping[str, str] | None = None,
    npy: str | os.PathLike[str] | FeatureSource | None = None,
    extract: Extract | None = None,
    sample: int | None = None,
    seed: int = 0,
    progress: ProgressBar | None = None,
) -> Verification:
    """Read all rows of stored features once and check them.

    Parameters
    ----------
    path : path or FeatureSource
        As ``open_features`` takes it; only a feature file has checksums, statuses and a recipe.
    split : Split, optional
        Its videos must all be in the source.
    recipe : dict of str to str, optional
        Expected entries, by key; a dot leads into an entry (``weights.sha256``). Compared as text, or as JSON.
    npy, extract : path or FeatureSource, or callable, optional
        The features that were packed, or a function that makes the rows of a video again, by its id. The stored rows
        are compared with these.
    sample, seed : int, optional
        How many videos are compared, drawn at random by ``seed``; all by default.

    Raises
    ------
    FeatureError
        There are no features, or the file is damaged as a whole.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/ATOYW.npy", np.array([[1.0, 2.0], [0.0, 0.0]]))
    ...     verification = verify(folder)
    >>> verification.is_sound, [(finding.check, finding.concerned) for finding in verification.findings]
    (True, [('zero-rows', ('ATOYW (1 of 2)',))])
    """
    if npy is not None and extract is not None:
        raise FeatureError("give npy or extract to compare with, not both")
    if sample is not None and (sample < 1 or (npy is None and extract is None)):
        raise FeatureError(f"sample is how many videos are compared with npy or extract, at least 1; got {sample}")
    progress = progress or (lambda title, total: nullcontext(lambda steps: None))
    stored = StoredVideos(open_features(path))
    source, header = stored.source, stored.header
    # Hidden files of a folder are not videos; a feature file holds only videos.
    ids = {name for name in source.ids() if header is not None or not name.startswith(".")}
    if not ids:
        raise source.refuse_empty()
    found: dict[str, list[str]] = {check: [] for check in CHECKS}
    checked = _check_all(stored, sorted(ids), found, progress)
    ready = {video_id: check for video_id, check in checked.items() if not check.problem}
    found["axes"] += [f"{video_id} {source.squeezed[video_id]}" for video_id in ready if video_id in source.squeezed]
    wanted = set(ready) if split is None else set(split.table.column("video_id").to_pylist())
    if split is not None:
        found["missing"] += wanted - ids
        found["extra"] += ids - wanted
        found["span"] += _other_spans(header, split)
    stored_recipe: Recipe | None = None if header is None else header.recipe
    found["recipe"] += _recipe_faults(stored_recipe, recipe or {})
    extract = extract if npy is None else _read_originals(npy)
    chosen = [] if extract is None else _draw([video_id for video_id in ready if video_id in wanted], sample, seed)
    similarities = [] if extract is None else _compare(stored, chosen, extract, found, progress)
    skipped = {"width", "dtype"} if header is not None else {"failed", "pending", "checksum", "salvaged"}
    if header is None or not header.layout.spans or split is None:
        skipped.add("span")
    skipped.add("axes")  # no check, but a remark where there is one
    options = (("missing", split), ("extra", split), ("recipe", recipe), ("similarity", extract))
    skipped |= {check for check, given in options if not given}
    return Verification(
        videos=len(ids),
        rows=sum(check.shape[0] for check in ready.values()),
        dim=_most_common(check.shape[1] for check in ready.values()) or 0,
        dtype=_most_common(check.dtype for check in ready.values()) or "",
        statuses=_count_statuses(checked.values()),
        recipe=stored_recipe,
        checks=tuple(check for check in CHECKS if check not in skipped or found[check]),
        findings=_problems(found),
        similarities=tuple(similarities),
    )


def _other_spans(header: Header | None, split: Split) -> Iterator[str]:
    """Yield the videos of a file that are a part of a video, and in the split another part or a whole video."""
    if header is None or not header.layout.spans:
        return
    wanted = set(split.table.column("video_id").to_pylist())
    for video_id, there in zip(header.layout.video_ids, header.layout.spans, strict=True):
        expected = str(split.spans.get(video_id, ""))
        if there and video_id in wanted and there != expected:
            yield f"{video_id} ({there}, expected {expected or 'the whole video'})"


def _read_originals(npy: str | os.PathLike[str] | FeatureSource) -> Extract:
    originals = open_features(npy)
    if not originals.ids():
        raise originals.refuse_empty()
    return StoredVideos(originals).read


def _draw(video_ids: list[str], sample: int | None, seed: int) -> list[str]:
    if sample is None or sample >= len(video_ids):
        return video_ids
    drawn = np.random.default_rng(seed).choice(len(video_ids), sample, replace=False)
    return [video_ids[position] for position in sorted(drawn.tolist())]


def _problems(found: Mapping[str, list[str]]) -> tuple[VerificationProblem, ...]:
    problems = []
    for check, (severity, sentence) in CHECKS.items():
        if concerned := tuple(sorted(found[check])):
            problems.append(VerificationProblem(check, severity, len(concerned), sentence, concerned))
    return tuple(sorted(problems, key=lambda problem: problem.severity != "error"))


def _count_statuses(checked: Iterable["VideoCheck"]) -> dict[str, int]:
    counts = dict.fromkeys(STATUSES, 0)
    for check in checked:
        salvaged = any(name == "salvaged" for name, _ in check.remarks)
        counts["salvaged" if salvaged else {"": "ok", "pending": "pending"}.get(check.problem, "failed")] += 1
    return counts


def _check_all(
    stored: StoredVideos, video_ids: list[str], found: dict[str, list[str]], progress: ProgressBar
) -> "dict[str, VideoCheck]":
    """Check every video, and add to ``found``."""

    def examine(video_id: str) -> VideoCheck:
        try:
            video, checksum = stored.read_stored(video_id)
        except UnusableVideo as error:
            is_status = error.problem in ("pending", "failed")
            return VideoCheck(error.problem, error.detail) if is_status else VideoCheck("unreadable", str(error))
        except (FeatureError, OSError) as error:
            return VideoCheck("unreadable", str(error))
        if video.status in ("pending", "failed"):
            return VideoCheck(video.status, video.reason)
        if not video.rows.size:
            return VideoCheck("unreadable", str(UnusableVideo("empty")))
        return check_video(video, checksum)

    checked: dict[str, VideoCheck] = {}
    with progress("verifying", len(video_ids)) as advance:
        for video_id, check in zip(video_ids, map_ahead(examine, video_ids, stored.threads), strict=True):
            checked[video_id] = check
            advance(1)
    ready = {video_id: check for video_id, check in checked.items() if not check.problem}
    dim = _most_common(check.shape[1] for check in ready.values())
    dtype = _most_common(check.dtype for check in ready.values())
    for video_id, check in checked.items():
        if check.problem:
            found[check.problem].append(with_detail(video_id, check.detail))
            continue
        for name, detail in check.remarks:
            found[name].append(with_detail(video_id, detail))
        if check.shape[1] != dim:
            found["width"].append(with_detail(video_id, str(check.shape[1])))
        if check.dtype != dtype:
            found["dtype"].append(with_detail(video_id, check.dtype))
    counts = {check.shape[0] for check in ready.values()}
    if len(ready) > 1 and len(counts) == 1 and max(check.shape[1] for check in ready.values()) < min(counts):
        found["transposed"].append(f"{write_count(min(counts), 'row')} of {dim}")
    found["duplicates"] += _duplicates(stored, ready)
    return checked


def _duplicates(stored: StoredVideos, ready: "Mapping[str, VideoCheck]") -> Iterator[str]:
    """Yield groups of videos with the same content; videos may share a checksum by chance."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for video_id, check in ready.items():
        alike[check.checksum, check.shape, check.dtype].append(video_id)
    for names in alike.values():
        if len(names) < 2:
            continue
        same: dict[bytes, list[str]] = defaultdict(list)
        for video_id in names:
            video, _ = stored.read_stored(video_id)
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
            yield f"{key}: not recorded, expected {text}"
        elif not _means(text, value):
            yield f"{key}: {value if isinstance(value, str) else json.dumps(value)}, expected {text}"


def _means(text: str, value: object) -> bool:
    if text == value:
        return True
    try:
        parsed = parse_json(text)
    except ValueError:
        return False
    # For Python, true equals 1.
    return bool(parsed == value) and isinstance(parsed, bool) == isinstance(value, bool)


def _compare(
    stored: StoredVideos, chosen: list[str], extract: Extract, found: dict[str, list[str]], progress: ProgressBar
) -> list[Similarity]:
    similarities = []
    with progress("comparing", len(chosen)) as advance:
        for video_id in chosen:
            advance(1)
            fault = ""
            video, _ = stored.read_stored(video_id)
            try:
                again = extract(video_id)
                here, there = decode(video.rows, video.scales), decode(again.rows, again.scales)
                if again.status == "failed" or here.shape != there.shape:
                    fault = again.reason or f"shape {there.shape} when made again, stored {here.shape}"
            except UnusableVideo as error:
                fault = str(error)
            except FeatureError as error:
                fault = str(error).partition("\n")[0]
            if not fault:
                cosines = cosine_similarity(here, there)
                similarities.append(Similarity(video_id, float(cosines.min()), float(cosines.mean())))
                if not cosines.min() >= LEAST_SIMILARITY:
                    fault = f"{cosines.min():.4f}"
            if fault:
                found["similarity"].append(with_detail(video_id, fault))
    return similarities


def _most_common(items: Iterable[Any]) -> Any:
    counted = Counter(items).most_common(1)
    return counted[0][0] if counted else None


@dataclass(frozen=True)
class VideoCheck:
    """The facts kept of a video: why it could not be read, or its shape and the failed checks with their details."""

    problem: str
    detail: str
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    checksum: int = 0
    remarks: tuple[tuple[str, str], ...] = ()


def check_video(video: VideoRows, expected: int | None) -> VideoCheck:
    """Check the rows of one video, at least one; ``expected`` is its checksum when it was written, if known."""
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
    constant = bits[:, 0] == bits[:, -1]
    constant[constant] = (bits[constant] == bits[constant, :1]).all(axis=1)
    zero = constant & (rows[:, 0] == 0)
    if video.scales is not None:
        zero |= video.scales == 0
    if zero.any():
        remarks.append(("zero-rows", _share(zero)))
    if shape[1] > 1 and (constant := constant & ~zero).any():
        remarks.append(("constant-rows", _share(constant)))
    scales_same = video.scales is None or bool((video.scales == video.scales[0]).all())
    if len(rows) > 1 and np.array_equal(bits[0], bits[-1]) and scales_same and bool((bits == bits[0]).all()):
        remarks.append(("frozen", f"{write_count(len(rows), 'row')}"))
    return VideoCheck("", "", shape, str(rows.dtype), actual, tuple(remarks))


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
