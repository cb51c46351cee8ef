"""Many small feature files into one: converted, resumable, and read back before it gets its name."""

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from meidbench import __version__
from meidbench.errors import FeatureError
from meidbench.features import PackedFile, open_features
from meidbench.features.layout import DTYPES, STATUSES, Layout, Recipe, read_header, stored_checksums
from meidbench.features.originals import (
    Originals,
    Progress,
    Survey,
    ahead,
    said,
    take_survey,
)
from meidbench.features.quantisation import encode, is_faithful
from meidbench.features.records import VideoRows, read_rows
from meidbench.features.source import FeatureSource, Unusable
from meidbench.features.store import FeatureWriter, Report, feature_writer

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
