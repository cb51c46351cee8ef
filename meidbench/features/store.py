"""Writing a feature file: in place, resumable, and under its final name only when every video has its say."""

import errno
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.features.feature_file import (
    DTYPES,
    REASON_BYTES,
    STATUSES,
    Header,
    Layout,
    Recipe,
    create,
    read_header,
    recipe_differences,
    stored_checksums,
)
from meidbench.features.records import VideoRows, read_rows
from meidbench.files import locked, written_whole

_COMMIT_EVERY = 1.0  # seconds

Report = Callable[[str], None]


def partial_path(path: Path) -> Path:
    """Return where a feature file lies until it is whole."""
    return path.with_name(f"{path.name}.partial")


def stored_headers(path: Path, recipe: Recipe) -> dict[Path, Header]:
    """Read what an earlier run left: the file in the making first, then the whole one; none, one or both.

    Raises
    ------
    FeatureError
        One of them is no feature file, or was made by another recipe.
    """
    found = {}
    for candidate in (partial_path(path), path):
        if candidate.exists():
            try:
                header = read_header(candidate)
            except FeatureError as error:
                raise FeatureError(f"{error}\nRemove it to begin anew, or choose another output.") from None
            if differences := recipe_differences(header.recipe, recipe):
                raise FeatureError(
                    f"{candidate} was made with other settings:\n{bullet_list(differences)}\n"
                    "Repeat those settings to go on with it, remove it to begin anew, or choose another output."
                )
            found[candidate] = header
    return found


@contextmanager
def feature_writer(
    path: Path,
    layout: Layout,
    recipe: Recipe,
    *,
    retry_failed: bool = False,
    fresh: bool = False,
    report: Report | None = None,
) -> Iterator["FeatureWriter"]:
    """Open a feature file to be written, with all that an earlier run finished.

    Rows go to ``NAME.partial`` beside the file, which is renamed by ``FeatureWriter.finish``; until then a file of
    the final name stays as it is. The same videos under the same recipe are taken from either; of a
    changed list of videos, those whose id and size are the same.

    Parameters
    ----------
    path : Path
        The final name.
    layout : Layout
    recipe : dict
        JSON values; ``libraries`` may differ from the earlier run, nothing else.
    retry_failed : bool
        Whether videos that failed are pending again.
    fresh : bool
        Take nothing from an earlier run of the same recipe.
    report : callable, optional
        Called with a line of text where earlier work is found.

    Raises
    ------
    FeatureError
        Another process writes this file, an earlier one has another recipe or videos that are not in this layout,
        or there is too little space.
    """
    report = report or (lambda line: None)

    def refuse() -> None:
        raise FeatureError(f"another process is writing {path}; wait for it, or choose another name for the output")

    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, refuse):
        for left in path.parent.glob(f".{glob.escape(partial_path(path).name)}.*"):
            left.unlink()  # of a run that was killed before its file had a name
        headers = stored_headers(path, recipe)
        if fresh:
            headers = {}
        _refuse_losses(layout, headers)
        writer = _resumed(path, layout, recipe, headers, retry_failed, report) or _begun(
            path, layout, recipe, headers, retry_failed, report
        )
        try:
            yield writer
        finally:
            writer.close()


class FeatureWriter:
    """Puts the rows of videos in their places; ``feature_writer`` makes one.

    Attributes
    ----------
    path : Path
        The file's final name.
    place : Path
        Where it lies now: ``path`` if it is whole already.
    layout : Layout
    status : (V,) uint8 array
        Positions in ``STATUSES``, of all that was put.
    """

    def __init__(self, path: Path, place: Path, header: Header) -> None:
        self.path = path
        self.place = place
        self.layout = header.layout
        self.status = header.status.copy()
        self._on_disk = header.status.copy()
        self._offsets = header.offsets
        self._starts = header.layout.starts
        self._stream = place.open("rb" if place == path else "r+b", buffering=0)
        self._uncommitted: list[int] = []
        self._last_commit = time.monotonic()

    @property
    def pending(self) -> npt.NDArray[np.int64]:
        """Positions of the videos that are still to be put."""
        return np.flatnonzero(self.status == STATUSES.index("pending"))

    def put(self, position: int, video: VideoRows) -> None:
        """Write a video; it counts as finished within a second, or when the writer is closed.

        Raises
        ------
        FeatureError
            The rows do not fit the layout, or the disk is full; what was put before is safe.
        """
        self._refuse_misfits(position, video)
        if STATUSES[self._on_disk[position]] != "pending":  # what vouches for the rows that were there goes first
            self._on_disk[position] = STATUSES.index("pending")
            self._write("status", position, self._on_disk[position : position + 1])
            self._synchronise()
        start = int(self._starts[position])
        if video.status != "failed":
            self._write("features", start, np.ascontiguousarray(video.rows))
            for name in ("scales", "frame_indices", "timestamps"):
                if name in self._offsets and (values := getattr(video, name)) is not None:
                    self._write(name, start, values.astype(_PER_ROW[name]))
        reason = video.reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
        self._write("reasons", position, np.array([reason], f"S{REASON_BYTES}"))
        self._write("num_source_frames", position, np.array([video.num_source_frames], "<i4"))
        self._write("corrupt_frames", position, np.array([video.corrupt_frames], "<i4"))
        self._write("row_counts", position, np.array([len(video.rows)], "<i4"))
        self._write("checksums", position, np.array([video.checksum()], "<u4"))
        self.status[position] = STATUSES.index(video.status)
        self._uncommitted.append(position)
        if time.monotonic() - self._last_commit > _COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Make what was put outlast a loss of power: rows reach the disk before the status that vouches for them."""
        if self._uncommitted:
            # The system tells once of rows that it could not write; trying again would only seem to succeed.
            positions, self._uncommitted = self._uncommitted, []
            try:
                self._synchronise()
            except FeatureError:
                self.status[positions] = STATUSES.index("pending")
                raise
            for position in positions:
                self._write("status", position, self.status[position : position + 1])
                self._on_disk[position] = self.status[position]
        self._last_commit = time.monotonic()

    def finish(self) -> None:
        """Give the file its final name.

        Raises
        ------
        FeatureError
            Some videos are pending.
        """
        if len(self.pending):
            ids = (self.layout.video_ids[position] for position in self.pending)
            raise FeatureError(f"{len(self.pending):,} videos are not there yet: {first_few(ids)}")
        self.commit()
        if self.place != self.path:
            self._synchronise()
        self._stream.close()
        if self.place != self.path:
            self.place.replace(self.path)
            self.place = self.path

    def close(self) -> None:
        """Commit and close; a file that is not finished is gone on with by the next run."""
        if not self._stream.closed:
            try:
                self.commit()
            finally:
                self._stream.close()

    def _refuse_misfits(self, position: int, video: VideoRows) -> None:
        name, room = self.layout.video_ids[position], int(self.layout.rows[position])
        if video.status == "failed":
            if len(video.rows):
                raise FeatureError(f"video {name} failed and yet has rows")
            return
        expected = (len(video.rows), self.layout.dim)
        if video.rows.shape != expected or video.rows.dtype != DTYPES[self.layout.dtype] or not len(video.rows):
            raise FeatureError(
                f"video {name}: {video.rows.shape} {video.rows.dtype}, expected rows of {self.layout.dim} "
                f"{self.layout.dtype}"
            )
        if len(video.rows) > room or (self.layout.fixed and len(video.rows) != room):
            raise FeatureError(f"video {name} has {len(video.rows):,} rows, there is room for {room:,}")

    def _write(self, name: str, index: int, values: npt.NDArray[Any]) -> None:
        """Write values of a dataset from an index along its first (for rows: its joint row) axis on."""
        a_step = values.nbytes // len(values)
        data = values.reshape(-1).view(np.uint8).data
        try:
            self._stream.seek(self._offsets[name] + index * a_step)
            while data:
                data = data[self._stream.write(data) :]
        except OSError as error:
            raise self._out_of_space(error) from None

    def _synchronise(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._out_of_space(error) from None

    def _out_of_space(self, error: OSError) -> FeatureError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return FeatureError(
                f"cannot write {self.place}: {error.strerror or error}; run the same command again to go on"
            )
        safe = len(self.status) - len(self.pending) - len(self._uncommitted)
        return FeatureError(
            f"no space is left for {self.place} ({error.strerror or error}); {safe:,} of {len(self.status):,} videos "
            "are safe in it.\nMake room and run the same command again: it goes on from there."
        )


_PER_ROW = {"scales": "<f4", "frame_indices": "<i4", "timestamps": "<f8"}


def _same(stored: Layout, wanted: Layout) -> bool:
    return (
        stored.video_ids == wanted.video_ids
        and np.array_equal(stored.rows, wanted.rows)
        and np.array_equal(stored.source_sizes, wanted.source_sizes)
        and (stored.fixed, stored.dim, stored.dtype, stored.timed)
        == (wanted.fixed, wanted.dim, wanted.dtype, wanted.timed)
    )


def _resumed(
    path: Path, layout: Layout, recipe: Recipe, headers: dict[Path, Header], retry_failed: bool, report: Report
) -> FeatureWriter | None:
    """Go on in the very file that is there, where it is of these very videos."""
    for place, header in headers.items():
        to_retry = (header.status == STATUSES.index("failed")) & retry_failed
        # What has its final name is never written to: what is to be done yet gets a file of its own.
        to_do = (to_retry | (header.status == STATUSES.index("pending"))).any()
        listed = header.recipe.get("shared_list") == recipe.get("shared_list")
        if _same(header.layout, layout) and listed and not (place == path and to_do):
            writer = FeatureWriter(path, place, header)
            writer.status[to_retry] = STATUSES.index("pending")
            done = len(writer.status) - len(writer.pending)
            report(f"{place}: {done:,} of {len(writer.status):,} videos are there already")
            return writer
    return None


def _begun(
    path: Path, layout: Layout, recipe: Recipe, headers: dict[Path, Header], retry_failed: bool, report: Report
) -> FeatureWriter:
    """Begin a file, and take over what files of other lists of videos hold of these."""
    free = shutil.disk_usage(path.parent).free
    if layout.num_bytes > free:
        raise FeatureError(
            f"{path} will take {layout.num_bytes / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there; make room, "
            "or choose a smaller dtype or fewer frames"
        )
    place = partial_path(path)
    # Under its own name only with all that is taken over, or a kill in between would lose it.
    with written_whole(place) as temporary:
        create(temporary, layout, recipe)
        with closing(FeatureWriter(path, temporary, read_header(temporary))) as writer:
            for source, header in headers.items():
                if taken := _take_over(writer, source, header, retry_failed):
                    report(f"{taken:,} of {len(layout.video_ids):,} videos are taken from {source}")
    return FeatureWriter(path, place, read_header(place))


def _take_over(writer: FeatureWriter, source: Path, header: Header, retry_failed: bool) -> int:
    """Copy what an earlier file holds of the videos that are pending; what was damaged since is left out."""
    taken = 0
    known = {video_id: at for at, video_id in enumerate(header.layout.video_ids)}
    checksums = stored_checksums(source)
    with source.open("rb") as stream:
        for position in writer.pending.tolist():
            at = known.get(writer.layout.video_ids[position])
            if at is None or not _reusable(header, at, writer.layout, position, retry_failed):
                continue
            video = read_rows(stream, header, at)
            if video.checksum() == checksums[at]:
                writer.put(position, video)
                taken += 1
    return taken


def _refuse_losses(layout: Layout, headers: dict[Path, Header]) -> None:
    """Refuse to replace a file that holds videos of which this run knows nothing."""
    known = set(layout.video_ids)
    for place, header in headers.items():
        ready = np.isin(header.status, [STATUSES.index("ok"), STATUSES.index("salvaged")]).tolist()
        there = (video_id for video_id, is_ready in zip(header.layout.video_ids, ready, strict=True) if is_ready)
        if lost := [video_id for video_id in there if video_id not in known]:
            raise FeatureError(
                f"{place} holds {len(lost):,} videos that are not to be written now, and would lose them: "
                f"{first_few(lost)}\nName all videos, choose another output, or remove it to begin anew."
            )


def _reusable(header: Header, at: int, layout: Layout, position: int, retry_failed: bool) -> bool:
    status = STATUSES[header.status[at]]
    return (
        status != "pending"
        and not (retry_failed and status == "failed")
        and (header.layout.dim, header.layout.dtype, header.layout.timed) == (layout.dim, layout.dtype, layout.timed)
        and header.layout.rows[at] == layout.rows[position]
        and header.layout.source_sizes[at] == layout.source_sizes[position]
    )
