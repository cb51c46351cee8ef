"""Many small feature files into one: converted, resumable, and read back before it gets its name."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from meidbench import __version__
from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.features import NpyFolder, PackedFile, open_features
from meidbench.features.feature_file import DTYPES, FORMAT, STATUSES, Layout, Recipe, read_header, stored_checksums
from meidbench.features.records import VideoRows, decode, encode, is_faithful, read_rows
from meidbench.features.source import PROBLEMS, FeatureSource, Unusable, check_id
from meidbench.features.store import FeatureWriter, Report, feature_writer

# Enough to overlap reading with conversion; more only helps where each read waits long.
_THREADS = 4

# Called with a title and a number of steps; gives a function to be called with the number of steps done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Originals:
    """Features as they are to be read once and whole; ``Unusable`` says why a video cannot be.

    Parameters
    ----------
    source : FeatureSource

    Attributes
    ----------
    header : Header or None
        Of a feature file.
    timed : bool
        Whether the frame index and the time of each row are known.
    threads : int
        How many may read at a time.
    """

    def __init__(self, source: FeatureSource) -> None:
        self.source = source
        self.header = read_header(source.path) if is_feature_file(source.path) else None
        self._checksums = [] if self.header is None else stored_checksums(source.path)
        self.timed = self.header is not None and self.header.layout.timed
        known = () if self.header is None else self.header.layout.video_ids
        self._positions = {video_id: position for position, video_id in enumerate(known)}
        # HDF5 does one thing at a time.
        self.threads = _THREADS if isinstance(source, NpyFolder) else 1

    @property
    def kind(self) -> str:
        """Say what it is, for the recipe."""
        if self.header is not None:
            return f"feature file of {self.header.layout.dtype}"
        if isinstance(self.source, NpyFolder):
            return "VIDEO_ID.npy folder"
        return "HDF5 file of others" if isinstance(self.source, PackedFile) else "HDF5 with a dataset a video"

    def ids(self) -> set[str]:
        """Return the ids that are there, usable or not."""
        return self.source._ids()

    def size(self, video_id: str) -> int:
        """Return a number by which a changed video is noticed: the bytes of its file; of a feature file, a checksum."""
        if self.header is not None:
            # A feature file of other content has other checksums, which is more than any size could tell.
            return int(self._checksums[self._at(video_id)])
        if not isinstance(self.source, NpyFolder):
            return self.source.path.stat().st_size
        try:
            return (self.source.path / f"{video_id}.npy").stat().st_size
        except OSError:
            return 0

    def _at(self, video_id: str) -> int:
        if video_id not in self._positions:
            raise Unusable("missing")
        return self._positions[video_id]

    def shape(self, video_id: str) -> tuple[int, int]:
        """Return the number of rows and their width, without reading them."""
        return self.source._shape(video_id)

    def read(self, video_id: str) -> VideoRows:
        """Return all rows, in the dtype of the source; of int8, as float32."""
        if self.header is not None:
            position = self._at(video_id)
            with self.source.path.open("rb") as stream:
                record = read_rows(stream, self.header, position)
            if record.checksum() != self._checksums[position]:
                raise Unusable("unreadable", "other than it was written: the checksum differs")
            return replace(record, rows=decode(record.rows, record.scales), scales=None)
        if isinstance(self.source, NpyFolder):
            return VideoRows(_read_npy(self.source, video_id))
        return VideoRows(self.source._load(video_id, None))


def is_feature_file(path: Path) -> bool:
    """Whether a file is of this package's own form, as far as can be told where it is damaged."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return True


def _read_npy(folder: NpyFolder, video_id: str) -> npt.NDArray[Any]:
    """Read a file in one go; through a memory map it would be page by page."""
    with folder._opened(video_id) as (stream, header):
        numbers = np.empty(header.shape[0] * header.shape[1], header.dtype)
        stream.seek(header.offset)
        space = numbers.view(np.uint8).data
        while space and (count := stream.readinto(space)):
            space = space[count:]
        if space:
            raise Unusable("truncated", "while it was read")
        return numbers.reshape(header.shape, order="F" if header.by_column else "C")


@dataclass(frozen=True)
class Survey:
    """What the headers of all videos say, before any row is read.

    Attributes
    ----------
    video_ids : tuple of str
        V ids, ascending.
    rows : (V,) int64 array
        Rows of each; of a refused one the room that it takes.
    sizes : (V,) int64 array
        As ``Originals.size`` gives them.
    refused : dict of int to str
        Why a video cannot be used, by position.
    missing : tuple of str
        Ids that are wanted and not there, in order.
    dim : int
        Width of the rows.
    fixed : bool
        Whether all usable videos have the same number of rows.
    """

    video_ids: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    refused: dict[int, str]
    missing: tuple[str, ...]
    dim: int
    fixed: bool


def take_survey(originals: Originals, only: Iterable[str] | None, progress: Progress) -> Survey:
    """Read the headers of all videos that are wanted.

    Raises
    ------
    FeatureError
        No video is wanted and there, none is usable, or a name cannot be an id.
    """
    present, wanted = originals.ids(), None if only is None else set(only)
    # Some systems put "._VIDEO_ID.npy" beside each file that they copy.
    chosen = {name for name in present if not name.startswith(".")} if wanted is None else present & wanted
    missing = tuple(sorted(wanted - present)) if wanted is not None else ()
    if not chosen:
        asked = f"; asked for {first_few(missing)}" if missing else ""
        example = f", there is {min(present)}" if missing and present else ""
        raise FeatureError(
            f"there is no video to pack in {originals.source.path}{asked}{example}\n"
            f"Expected {originals.source.expected}."
        )
    _check_ids(chosen, originals)
    video_ids = tuple(sorted(chosen))

    def examine(video_id: str) -> tuple[tuple[int, int] | None, int, str]:
        size = originals.size(video_id)
        try:
            return originals.shape(video_id), size, ""
        except Unusable as error:
            return None, size, said(error)

    with progress("reading headers", len(video_ids)) as advance:
        examined = []
        for answer in ahead(examine, video_ids, originals.threads):
            examined.append(answer)
            advance(1)
    refused = {position: why for position, (_, _, why) in enumerate(examined) if why}
    widths = Counter(shape[1] for shape, _, _ in examined if shape)
    if not widths:
        named = [f"{video_ids[position]}: {why}" for position, why in list(refused.items())[:5]]
        raise FeatureError(
            f"none of the {len(video_ids):,} videos in {originals.source.path} can be packed:\n{bullet_list(named)}\n"
            f"Expected {originals.source.expected}: T x D, T at least 1, one D for all, float16, float32 or float64."
        )
    dim = widths.most_common(1)[0][0]
    refused |= {
        position: f"{shape[1]} numbers a row, most videos have {dim}"
        for position, (shape, _, _) in enumerate(examined)
        if shape and shape[1] != dim
    }
    counts = {shape[0] for position, (shape, _, _) in enumerate(examined) if shape and position not in refused}
    fixed = len(counts) == 1
    spare = min(counts) if fixed else 0
    rows = [spare if at in refused or not shape else shape[0] for at, (shape, _, _) in enumerate(examined)]
    return Survey(
        video_ids=video_ids,
        rows=np.array(rows, np.int64),
        sizes=np.array([size for _, size, _ in examined], np.int64),
        refused=refused,
        missing=missing,
        dim=dim,
        fixed=fixed,
    )


def _check_ids(chosen: set[str], originals: Originals) -> None:
    unusable = []
    for video_id in chosen:
        try:
            check_id(video_id)
            video_id.encode()
        except (Unusable, UnicodeEncodeError):
            unusable.append(ascii(video_id))
    if unusable:
        raise FeatureError(
            f"{len(unusable):,} names in {originals.source.path} cannot be used as ids (a dot, a path separator, or "
            f"not Unicode): {first_few(sorted(unusable))}; rename these videos"
        )


def said(error: Unusable) -> str:
    """Say in a line why a video cannot be used."""
    said = PROBLEMS[error.problem]
    return f"{said} ({error.detail})" if error.detail else said


def ahead(function: Callable[[_Item], _Answer], items: Iterable[_Item], threads: int) -> Iterator[_Answer]:
    """Yield the answers in order; threads work on a few items ahead, never on all."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Answer]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


READY = (STATUSES.index("ok"), STATUSES.index("salvaged"))
_FAILED = STATUSES.index("failed")


@dataclass(frozen=True)
class Summary:
    """What ``pack`` did.

    Attributes
    ----------
    path : Path
        The feature file.
    videos : int
        In it, with those that failed.
    rows : int
        Of all videos together.
    dim : int
    dtype : str
    fixed : bool
        Whether all videos have the same number of rows.
    packed : int
        Videos that this run packed.
    found : int
        Videos that were there already, those among them that failed included.
    failed : dict of str to str
        Why a video has no rows, by id.
    missing : tuple of str
        Ids that were asked for and are not in the source, in order.
    num_bytes : int
        Size of the file.
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
    progress: Progress | None = None,
    report: Report | None = None,
) -> Summary:
    """Put features into one feature file.

    A few videos are in memory at a time. A run that was stopped goes on where it stopped; a video whose file has
    another size than before is packed again. What cannot be packed is recorded as failed with the reason, and the
    others go on. Each video is compared with its source when it is converted (equal for float32, within half the
    distance of two neighbours for float16, within half the scale for int8), and its checksum is compared when all
    are read back, before the file gets its name.

    Parameters
    ----------
    source : path or FeatureSource
        A folder of ``VIDEO_ID.npy``, or what else ``open_features`` takes. Names that begin with a dot are left
        out unless asked for. Of a feature file, frame indices, times and the recipe are kept.
    out : path
        The feature file; rows of a fixed number or ragged, as the videos are.
    dtype : str
        ``float16``, ``float32`` or ``int8`` with a scale a row.
    backbone : str
        Recorded in the recipe.
    only : iterable of str, optional
        Ids of the videos that are wanted; all by default.
    retry_failed : bool
        Whether videos that failed in an earlier run are tried again.
    progress : callable, optional
        Called with a title and a number of videos; a context manager that gives a function to be called with the
        number of videos done.
    report : callable, optional
        Called with a line of text where earlier work is found.

    Raises
    ------
    FeatureError
        There is no usable video; the output is the source, is being written, was made with other settings, or holds
        videos that the source does not have any more; the disk is full.

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
    if dtype not in DTYPES:
        raise FeatureError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if isinstance(only, str):
        raise FeatureError(f"only must be a collection of ids, got the text {only!r}")
    out, report = Path(out), report or (lambda line: None)
    progress = progress or (lambda title, total: nullcontext(lambda steps: None))
    originals = Originals(source if isinstance(source, FeatureSource) else open_features(source))
    if out.absolute() == originals.source.path:
        raise FeatureError(f"{out} is what is to be packed; choose another name for the output")
    survey = take_survey(originals, only, progress)
    layout = Layout(
        video_ids=survey.video_ids,
        rows=survey.rows,
        fixed=survey.fixed,
        dim=survey.dim,
        dtype=dtype,
        timed=originals.timed,
        source_sizes=survey.sizes,
    )
    recipe = _recipe(originals, dtype, backbone)
    with feature_writer(out, layout, recipe, retry_failed=retry_failed, report=report) as writer:
        pending = writer.pending.tolist()
        _fill(writer, originals, survey, pending, progress)
        if writer.place != out:
            writer.commit()
            _read_back(writer, writer.place, progress)
        writer.finish()
    failed, rows = _outcome(out)
    return Summary(
        path=out,
        videos=len(layout.video_ids),
        rows=rows,
        dim=layout.dim,
        dtype=dtype,
        fixed=layout.fixed,
        packed=sum(layout.video_ids[position] not in failed for position in pending),
        found=len(layout.video_ids) - len(pending),
        failed=failed,
        missing=survey.missing,
        num_bytes=out.stat().st_size,
    )


def _recipe(originals: Originals, dtype: str, backbone: str) -> Recipe:
    import torch

    earlier: Recipe = {} if originals.header is None else dict(originals.header.recipe)
    if backbone != "unknown" or "backbone" not in earlier:
        earlier["backbone"] = backbone
    libraries = {"h5py": h5py.__version__, "meidbench": __version__, "numpy": np.__version__}
    return {
        **earlier,
        "made_by": "pack-features",
        "source": originals.kind,
        "dtype": dtype,
        "libraries": {**earlier.get("libraries", {}), **libraries, "torch": str(torch.__version__)},
    }


def _fill(writer: FeatureWriter, originals: Originals, survey: Survey, pending: list[int], progress: Progress) -> None:
    """Convert what is pending, in order, a few videos ahead of the writing."""
    layout = writer.layout

    def convert(position: int) -> VideoRows:
        if position in survey.refused:
            return _failed(layout, survey.refused[position])
        video_id, expected = layout.video_ids[position], (int(layout.rows[position]), layout.dim)
        try:
            original = originals.read(video_id)
            if original.rows.shape != expected:
                return _failed(layout, f"changed while it was packed: {original.rows.shape}, was {expected}")
            rows, scales = encode(original.rows, layout.dtype)
            if not is_faithful(original.rows, rows, scales):
                return _failed(layout, f"not the same after conversion to {layout.dtype}")
        except Unusable as error:
            return _failed(layout, said(error))
        except FeatureError as error:
            return _failed(layout, str(error))
        return replace(original, rows=rows, scales=scales)

    with progress("packing", len(pending)) as advance:
        for position, video in zip(pending, ahead(convert, pending, originals.threads), strict=True):
            writer.put(position, video)
            advance(1)


def _read_back(writer: FeatureWriter, place: Path, progress: Progress) -> None:
    """Compare every video as readers see it with the checksum of what was to be written."""
    ready = [position for position, status in enumerate(writer.status) if status in READY]
    expected, counts = stored_checksums(place), read_header(place).row_counts
    written = PackedFile(place)
    try:
        positions = written.positions([writer.layout.video_ids[position] for position in ready])
        with progress("reading back", len(ready)) as advance:
            for at, position in enumerate(ready):
                indices = np.arange(counts[position])[None]
                here = positions[at : at + 1]
                scales = written.gather_scales(here, indices)
                video = VideoRows(written.gather(here, indices)[0], scales=None if scales is None else scales[0])
                if video.checksum() != expected[position]:
                    writer.put(position, _failed(writer.layout, "reads back other than it was written"))
                advance(1)
    finally:
        written.close()


def _outcome(path: Path) -> tuple[dict[str, str], int]:
    """Return why videos failed, by id, and the number of rows of all others."""
    header = read_header(path)
    failed = {}
    with path.open("rb") as stream:
        for position in np.flatnonzero(header.status == _FAILED).tolist():
            failed[header.layout.video_ids[position]] = read_rows(stream, header, position).reason
    return failed, int(header.row_counts[np.isin(header.status, READY)].sum())


def _failed(layout: Layout, reason: str) -> VideoRows:
    return VideoRows(np.empty((0, layout.dim), DTYPES[layout.dtype]), status="failed", reason=reason)
