"""Packing: many small feature files become one feature file, which is read back before it gets its name."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from meidbench import __version__
from meidbench.checks import one_of, refuse_lost_inputs
from meidbench.errors import FeatureError, bullet_list, first_few, write_count
from meidbench.features import NpyFolder, PackedFile, open_features
from meidbench.features.feature_file import DTYPES, FAILED, READY, Layout, Recipe, read_header, stored_checksums
from meidbench.features.records import StoredVideos, VideoRows, encode, is_faithful, read_rows
from meidbench.features.source import TYPES, FeatureSource, UnusableVideo, is_usable_id
from meidbench.features.store import FeatureWriter, feature_writer
from meidbench.files import resolve_output
from meidbench.names import BACKBONES, ProgressBar, Report

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PackingSummary:
    """The outcome of ``pack``: the feature file, its size, and its numbers of ``videos`` (with failed ones) and rows.

    The rows have ``dim`` numbers of ``dtype``; ``fixed`` tells whether all videos have the same number of them. This
    run ``packed`` videos and ``found`` those of earlier runs, with those that failed. ``failed`` tells by id why a
    video has no rows; the ids in ``missing`` were asked for and are not in the source.
    """

    path: Path
    videos: int
    rows: int
    dim: int
    dtype: str
    fixed: bool
    packed: int
    found: int
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    num_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether every video that was asked for is there and has rows."""
        return not self.failed and not self.missing


def pack(
    source: str | os.PathLike[str] | FeatureSource,
    out: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    backbone: str = "unknown",
    only: Iterable[str] | None = None,
    retry_failed: bool = False,
    progress: ProgressBar | None = None,
    report: Report | None = None,
) -> PackingSummary:
    """Pack features into one feature file.

    A few videos are in memory at a time. A stopped run continues where it stopped; a video whose file has another size
    than before is packed again. A video that cannot be packed is recorded as failed with the reason, and the run
    continues. Each video is compared with its source when it is converted (equal for float32, within half the distance
    of two neighbours for float16, within half the scale for int8). Its checksum is compared when all videos are read
    back, before the file gets its name.

    Parameters
    ----------
    source : path or FeatureSource
        A folder of ``VIDEO_ID.npy``, or another source of ``open_features``. Names that begin with a dot are left out
        unless ``only`` names them. Frame indices, times and the recipe of a feature file are kept.
    out : path
        The feature file, with a fixed or a varying number of rows, as the videos have.
    dtype, backbone : str
        ``float16``, ``float32`` or ``int8`` with one scale per row; the backbone is recorded in the recipe, and refused
        where its rows have another width (``meidbench.names.BACKBONES``).
    only : iterable of str, optional
        Ids of the videos that are wanted; all by default.
    retry_failed, report : bool, and Report, optional
        Whether videos that failed in an earlier run are tried again; ``report`` is called where earlier work is found.

    Raises
    ------
    OutputError
        The output is the source, or no regular file.
    FeatureError
        No video is usable (no file is written then), or they are C x T; the output is being written, was made with
        other settings, or holds videos that the source no longer has; the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for video_id, rows in {"ATOYW": 4, "YSE0N": 4}.items():
    ...         np.save(Path(folder, f"{video_id}.npy"), np.ones((rows, 2), np.float32))
    ...     summary = pack(folder, Path(folder, "features.h5"))
    ...     rows = open_features(summary.path).read("YSE0N", [0])
    >>> summary.packed, summary.fixed, summary.is_complete, rows
    (2, True, True, array([[1., 1.]], dtype=float16))
    """
    one_of("dtype", dtype, tuple(DTYPES), FeatureError)
    if isinstance(only, str):
        raise FeatureError(f"only must be a collection of ids, got the text {only!r}")
    out, report = resolve_output(Path(out), regular=True), report or (lambda line: None)
    progress = progress or (lambda title, total: nullcontext(lambda steps: None))
    videos = StoredVideos(open_features(source))
    refuse_lost_inputs(out, [videos.source.path])
    index = _read_index(videos, only, progress)
    for note in videos.source.take_notes():
        report(note)
    _check_width(index, videos.source, backbone, report)
    timed = videos.header is not None and videos.header.layout.timed
    layout = Layout(index.video_ids, index.rows, index.fixed, index.dim, dtype, timed, index.sizes)
    recipe = _recipe(videos, dtype, backbone)
    with feature_writer(out, layout, recipe, retry_failed=retry_failed, report=report) as writer:
        pending = writer.pending.tolist()
        _convert_all(writer, videos, index, pending, progress)
        if writer.place != out:
            writer.commit()
            _read_back(writer, writer.place, progress)
        writer.refuse_failures("packed")
        writer.finish()
    return _summarise(out, index, pending)


@dataclass(frozen=True)
class _SourceIndex:
    """The headers of the videos to pack: refused videos keep some room, and the reason by position."""

    video_ids: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    refused: dict[int, str]
    missing: tuple[str, ...]
    dim: int
    fixed: bool


def _read_index(videos: StoredVideos, only: Iterable[str] | None, progress: ProgressBar) -> _SourceIndex:
    """Read the headers of all videos that are wanted."""
    chosen, missing = _choose(videos.source, only)
    video_ids = tuple(sorted(chosen))

    def examine(video_id: str) -> tuple[tuple[int, int] | None, int, UnusableVideo | None]:
        size = videos.size(video_id)
        try:
            return videos.source.shape(video_id), size, None
        except UnusableVideo as error:
            return None, size, error

    examined = []
    with progress("reading headers", len(video_ids)) as advance:
        for facts in map_ahead(examine, video_ids, videos.threads):
            examined.append(facts)
            advance(1)
    refused = {position: str(error) for position, (_, _, error) in enumerate(examined) if error}
    widths = Counter(shape[1] for shape, _, _ in examined if shape)
    if not widths:
        named = [f"{video_ids[position]}: {why}" for position, why in list(refused.items())[:5]]
        problems = dict.fromkeys(error.problem for _, _, error in examined if error)
        remedies = dict.fromkeys(videos.source.find_remedy(problem) for problem in problems)
        raise FeatureError(
            f"none of the {write_count(len(video_ids), 'video')} in {videos.source.path} can be packed:\n"
            f"{bullet_list(named)}\nExpected {videos.source.expected}: {TYPES}.\n" + "\n".join(remedies)
        )
    dim, number = widths.most_common(1)[0]
    shapes = [shape for shape, _, _ in examined if shape]
    if len(shapes) > 1 and len({rows for rows, _ in shapes}) == 1 and 2 * number <= len(shapes):
        named = [f"{name}: {shape}" for name, (shape, _, _) in zip(video_ids, examined, strict=True) if shape]
        raise FeatureError(
            f"all {len(shapes):,} videos in {videos.source.path} have {shapes[0][0]:,} rows and different widths: "
            f"{first_few(named)}\nAre they C x T? Transpose them: expected {videos.source.expected}, T x D, one D "
            "for all."
        )
    for position, (shape, _, _) in enumerate(examined):
        if shape and shape[1] != dim:
            refused[position] = f"{shape[1]} numbers per row, most videos have {dim}"
    counts = {shape[0] for position, (shape, _, _) in enumerate(examined) if shape and position not in refused}
    fixed = len(counts) == 1
    spare = min(counts) if fixed else 0
    rows = [spare if at in refused or not shape else shape[0] for at, (shape, _, _) in enumerate(examined)]
    sizes = np.array([size for _, size, _ in examined], np.int64)
    return _SourceIndex(video_ids, np.array(rows, np.int64), sizes, refused, missing, dim, fixed)


def _check_width(index: _SourceIndex, source: FeatureSource, backbone: str, report: Report) -> None:
    """Refuse the width of another backbone; warn where all videos have the same number of rows, above the width."""
    if (expected := BACKBONES.get(backbone, index.dim)) != index.dim:
        raise FeatureError(
            f"the features in {source.path} have {index.dim:,} numbers per row, those of {backbone} have "
            f"{expected:,}; name the network that made them with backbone=..., or leave it out"
        )
    if index.fixed and len(index.video_ids) > 1 and index.rows[0] > index.dim:
        report(
            f"warning: all videos have {index.rows[0]:,} rows of {index.dim:,} numbers, more rows than numbers per "
            "row: if they are C x T, transpose them"
        )


def _choose(source: FeatureSource, only: Iterable[str] | None) -> tuple[set[str], tuple[str, ...]]:
    """Return the ids to pack, and those that are wanted and missing."""
    present, wanted = source.ids(), None if only is None else set(only)
    # Some systems put "._VIDEO_ID.npy" beside each file that they copy.
    if not present:
        raise source.refuse_empty()
    chosen = {name for name in present if not name.startswith(".")} if wanted is None else present & wanted
    missing = tuple(sorted(wanted - present)) if wanted is not None else ()
    if not chosen:
        asked = f"; asked for {first_few(missing)}" if missing else ""
        remedy = source.find_remedy("missing", missing) if missing else ""
        raise FeatureError(f"there is no video to pack in {source.path}{asked}\n{remedy}".rstrip())
    if unusable := [ascii(video_id) for video_id in chosen if not is_usable_id(video_id)]:
        reasons = f"(a dot, a path separator, or not Unicode): {first_few(sorted(unusable))}"
        raise FeatureError(
            f"{write_count(len(unusable), 'name')} in {source.path} cannot be used as ids {reasons}; "
            "rename these videos"
        )
    return chosen, missing


def _recipe(videos: StoredVideos, dtype: str, backbone: str) -> Recipe:
    import torch

    header, source = videos.header, videos.source
    kind = "HDF5 file of others" if isinstance(source, PackedFile) else "HDF5 with a dataset a video"
    if header is not None:
        kind = f"feature file of {header.layout.dtype}"
    elif isinstance(source, NpyFolder):
        kind = f"VIDEO_ID{source.ending} folder"
    earlier: Recipe = {} if header is None else dict(header.recipe)
    if backbone != "unknown" or "backbone" not in earlier:
        earlier["backbone"] = backbone
    libraries = {"h5py": h5py.__version__, "meidbench": __version__, "numpy": np.__version__}
    return {
        **earlier,
        **{f"source_{name}": value for name, value in vars(source.naming).items() if value},
        "made_by": "pack-features",
        "source": kind,
        "dtype": dtype,
        "libraries": {**earlier.get("libraries", {}), **libraries, "torch": str(torch.__version__)},
    }


def _convert_all(
    writer: FeatureWriter, videos: StoredVideos, index: _SourceIndex, pending: list[int], progress: ProgressBar
) -> None:
    """Convert the pending videos in order, a few videos ahead of the writing."""
    layout = writer.layout

    def convert(position: int) -> VideoRows:
        if position in index.refused:
            return _failed(layout, index.refused[position])
        video_id, expected = layout.video_ids[position], (int(layout.rows[position]), layout.dim)
        try:
            original = videos.read(video_id)
            if original.rows.shape != expected:
                return _failed(layout, f"changed while it was packed: {original.rows.shape}, was {expected}")
            rows, scales = encode(original.rows, layout.dtype)
            if not is_faithful(original.rows, rows, scales):
                return _failed(layout, f"not the same after conversion to {layout.dtype}")
        except (UnusableVideo, FeatureError) as error:
            return _failed(layout, str(error))
        return replace(original, rows=rows, scales=scales)

    with progress("packing", len(pending)) as advance:
        for position, video in zip(pending, map_ahead(convert, pending, videos.threads), strict=True):
            writer.put(position, video)
            advance(1)


def _read_back(writer: FeatureWriter, place: Path, progress: ProgressBar) -> None:
    """Compare every video, as readers see it, with the checksum of the rows that were to be written."""
    ready = [position for position, status in enumerate(writer.status) if status in READY]
    expected = stored_checksums(place)
    written = PackedFile(place)
    try:
        with progress("reading back", len(ready)) as advance:
            for position in ready:
                rows, scales = written.load_stored(writer.layout.video_ids[position])
                if VideoRows(rows, scales=scales).checksum() != expected[position]:
                    writer.put(position, _failed(writer.layout, "reads back other than it was written"))
                advance(1)
    finally:
        written.close()


def _summarise(path: Path, index: _SourceIndex, packed: list[int]) -> PackingSummary:
    header = read_header(path)
    with path.open("rb") as stream:
        positions = np.flatnonzero(header.status == FAILED).tolist()
        failed = {index.video_ids[position]: read_rows(stream, header, position).reason for position in positions}
    return PackingSummary(
        path=path,
        videos=len(index.video_ids),
        rows=int(header.row_counts[np.isin(header.status, READY)].sum()),
        dim=index.dim,
        dtype=header.layout.dtype,
        fixed=index.fixed,
        packed=sum(index.video_ids[position] not in failed for position in packed),
        found=len(index.video_ids) - len(packed),
        failed=failed,
        missing=index.missing,
        num_bytes=path.stat().st_size,
    )


def _failed(layout: Layout, reason: str) -> VideoRows:
    return VideoRows(np.empty((0, layout.dim), DTYPES[layout.dtype]), status="failed", reason=reason)


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Yield results in order, while threads work on a few items ahead, never on all."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
