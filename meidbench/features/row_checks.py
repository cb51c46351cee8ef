"""Checks before a training or a prediction: rows are compared with the checksums that they had when written."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from meidbench.checks import one_of, parse_json
from meidbench.errors import FeatureError, OutputError, first_few, write_count
from meidbench.features import PackedFile
from meidbench.features.packing import map_ahead
from meidbench.features.records import StoredVideos
from meidbench.features.source import FeatureSource, UnusableVideo, with_detail
from meidbench.files import render_json, written_whole
from meidbench.names import ROW_CHECKS, SUBSETS, ProgressBar
from meidbench.splits.manifests import home
from meidbench.splits.split import Split

# A subset of fewer bytes is always read whole; of a larger one that did not change since, so many videos are drawn.
LARGE_SUBSET = 20e9
SAMPLED_VIDEOS = 500

# Digests by path, stamp and ids, for several runs of one process.
_checked_here: dict[tuple[str, str, str], str] = {}


@dataclass(frozen=True)
class RowCheck:
    """The outcome of ``check_rows``.

    ``kind`` is ``full``, ``sample`` or ``none``; ``read`` of the ``videos`` were read. ``digest`` is the sha256 of the
    numbers of rows and of the checksums of all videos, computed from their rows; empty where not all rows were read
    since the features changed. ``has_checksums`` tells whether the features store checksums to compare with.
    """

    kind: str
    read: int
    videos: int
    digest: str
    has_checksums: bool

    def __str__(self) -> str:
        if self.kind == "none":
            return f"features: the rows of {write_count(self.videos, 'video')} are not checked (check: none)"
        share = "all" if self.kind == "full" else f"{self.read:,} of"
        agree = "their checksums agree" if self.has_checksums else "they can be read (they have no checksums)"
        return f"features: the rows of {share} {write_count(self.videos, 'video')} are checked: {agree}"


def check_rows(
    source: FeatureSource,
    split: Split,
    subsets: Sequence[str] = SUBSETS,
    *,
    check: str = "auto",
    seed: int = 0,
    progress: ProgressBar | None = None,
) -> RowCheck:
    """Compare the rows of a split's videos with their stored checksums; without checksums, only read them.

    Parameters
    ----------
    check : str
        ``full`` reads all rows, ``sample`` those of 500 videos per subset, drawn by ``seed``, ``none`` no row. ``auto``
        reads all rows of a subset that has less than 20 GB, or that was not checked since its files changed (size or
        time, remembered under ``MEIDBENCH_HOME``), and 500 videos of other subsets.

    Raises
    ------
    FeatureError
        Videos are missing or malformed, cannot be read, or have other rows than were written.

    Examples
    --------
    >>> import tempfile
    >>> from meidbench.features import open_features
    >>> from meidbench.features.simulation import simulate_features, simulate_split
    >>> split = simulate_split((20, 9, 9), num_classes=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = simulate_features(split, Path(folder, "features.h5"), frames=3, dim=4)
    ...     print(check_rows(open_features(path), split))
    features: the rows of all 38 videos are checked: their checksums agree
    """
    one_of("check", check, ROW_CHECKS, FeatureError)
    progress = progress or (lambda title, total: nullcontext(lambda steps: None))
    stored = StoredVideos(source)
    parts = [
        _check_subset(stored, video_ids, check, seed, progress, f"checking rows of {subset}")
        for subset in subsets
        if (video_ids := split.video_ids(subset))
    ]
    source.close()
    digests = [part.digest for part in parts]
    return RowCheck(
        kind=max((part.kind for part in parts), key=ROW_CHECKS.index, default="none"),
        read=sum(part.read for part in parts),
        videos=sum(part.videos for part in parts),
        digest=sha256(" ".join(digests).encode()).hexdigest() if all(digests) else "",
        has_checksums=stored.header is not None,
    )


def _check_subset(
    stored: StoredVideos, video_ids: list[str], check: str, seed: int, progress: ProgressBar, title: str
) -> RowCheck:
    source, total, has_checksums = stored.source, len(video_ids), stored.header is not None
    counts = source.check(video_ids)
    if check == "none":
        return RowCheck("none", 0, total, "", has_checksums)
    # Taken before the rows are read: a file that changes meanwhile is checked again.
    key = str(source.path), source.stamp(video_ids), sha256("\n".join(video_ids).encode()).hexdigest()
    if check == "auto" and key in _checked_here:
        return RowCheck("full", total, total, _checked_here[key], has_checksums)
    dtype = source.dtype if isinstance(source, PackedFile) else source.read(video_ids[0], [0]).dtype
    is_large = int(counts.sum()) * source.dim * dtype.itemsize >= LARGE_SUBSET
    before = _recall(*key) if is_large and check != "full" else ""
    if check == "sample" or before:
        number = min(total, SAMPLED_VIDEOS)
        drawn = np.random.default_rng(seed).choice(total, number, replace=False)
        _compute_checksums(stored, [video_ids[position] for position in sorted(drawn.tolist())], progress, title)
        return RowCheck("sample", number, total, before, has_checksums)
    checksums = _compute_checksums(stored, video_ids, progress, title)
    digest = sha256(counts.tobytes() + np.array(checksums, "<u4").tobytes()).hexdigest()
    _checked_here[key] = digest
    if is_large:
        _remember(*key, digest)
    return RowCheck("full", total, total, digest, has_checksums)


def _compute_checksums(stored: StoredVideos, video_ids: list[str], progress: ProgressBar, title: str) -> list[int]:
    """Return the checksums of the rows of videos; refuse those that differ from the stored ones."""

    def read(video_id: str) -> tuple[int, int | None, str]:
        try:
            video, expected = stored.read_stored(video_id)
        except (UnusableVideo, FeatureError, OSError) as error:
            return 0, None, str(error).partition("\n")[0]
        return video.checksum(), expected, ""

    checksums, damaged, unreadable = [], [], []
    with progress(title, len(video_ids)) as advance:
        for video_id, found in zip(video_ids, map_ahead(read, video_ids, stored.threads), strict=True):
            checksum, expected, problem = found
            checksums.append(checksum)
            if problem:
                unreadable.append(with_detail(video_id, problem))
            elif expected not in (None, checksum):
                damaged.append(video_id)
            advance(1)
    path, number = stored.source.path, len(video_ids)
    if damaged:
        raise FeatureError(
            f"{len(damaged):,} of {number:,} videos in {path} have other rows than were written (their checksums "
            f"differ): {first_few(damaged)}\nThe file was damaged, or rows were moved between videos. Copy it again, "
            "or extract these videos again; 'meidbench verify-features' lists all."
        )
    if unreadable:
        raise FeatureError(
            f"{len(unreadable):,} of {number:,} videos in {path} cannot be read: {first_few(unreadable)}"
        )
    return checksums


def _memory(path: str) -> Path:
    return home() / "checked-features" / f"{sha256(path.encode(errors='surrogateescape')).hexdigest()[:24]}.json"


def _read_memory(path: str) -> dict[str, str]:
    """Return what is remembered of a source: stamps and digests by ids; nothing where the file is absent or damaged."""
    try:
        content = parse_json(_memory(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    texts = content.items() if isinstance(content, dict) else ()
    return {ids: found for ids, found in texts if isinstance(found, str)}


def _recall(path: str, stamp: str, ids: str) -> str:
    """Return the digest of rows that were all read since their files changed; empty where they were not."""
    before, _, digest = _read_memory(path).get(ids, "").rpartition(" ")
    return digest if before == stamp else ""


def _remember(path: str, stamp: str, ids: str, digest: str) -> None:
    known = {**_read_memory(path), ids: f"{stamp} {digest}"}
    # Where the folder cannot be written, the next check reads all rows again.
    with suppress(OSError, OutputError), written_whole(_memory(path)) as temporary:
        temporary.write_text(render_json(known), encoding="utf-8")
