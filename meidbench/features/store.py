"""Writing a feature file: in place, resumable, and under its final name only when every video has a status."""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError, bullet_list, first_few, write_count
from meidbench.features.feature_file import (
    DTYPES,
    FAILED,
    PENDING,
    PER_ROW,
    PER_VIDEO,
    READY,
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
from meidbench.files import locked, make_parent, remove_stale, replace_file, resolve_output, written_whole
from meidbench.names import Report

_COMMIT_EVERY = 1.0  # seconds


def partial_path(path: Path) -> Path:
    """Return the name of a feature file until it is whole."""
    return path.with_name(f"{path.name}.partial")


def stored_headers(path: Path, recipe: Recipe) -> dict[Path, Header]:
    """Read the headers that earlier runs of this recipe left: of the unfinished file first, then of the whole one."""
    found = {}
    for candidate in (partial_path(path), path):
        if candidate.exists():
            try:
                header = read_header(candidate)
            except FeatureError as error:
                raise FeatureError(f"{error}\nRemove it to start again, or choose another output.") from None
            if differences := recipe_differences(header.recipe, recipe):
                raise FeatureError(
                    f"{candidate} was made with other settings:\n{bullet_list(differences)}\n"
                    "Repeat those settings to continue it, remove it to start again, or choose another output."
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
    """Open a feature file for writing, with all videos that earlier runs finished.

    Rows are written to ``NAME.partial`` beside the file; ``FeatureWriter.finish`` renames it. Until then, a file of the
    final name does not change. Videos with the same id and size are taken from both files, if the recipe is the same.

    Of the recipe, JSON values, only ``libraries`` may differ from an earlier run. With ``retry_failed``, videos that
    failed are pending again; with ``fresh``, nothing is taken from an earlier run. ``report`` is called where earlier
    work is found.

    Raises
    ------
    FeatureError
        Another process writes this file, an earlier one has another recipe or videos that are not in this layout,
        or there is too little space.
    """
    report = report or (lambda line: None)

    def refuse() -> None:
        raise FeatureError(f"another process is writing {path}; wait for it, or choose another name for the output")

    path = resolve_output(path, regular=True)
    make_parent(path)
    with locked(path, refuse):
        remove_stale(partial_path(path))
        headers = stored_headers(path, recipe)
        if fresh:
            headers = {}
        _refuse_losses(layout, headers)
        writer = _resume(path, layout, recipe, headers, retry_failed, report)
        if writer is None:
            writer = _start(path, layout, recipe, headers, retry_failed, report)
        try:
            yield writer
        finally:
            writer.close()


class FeatureWriter:
    """Writes the rows of videos to their places; ``feature_writer`` opens it.

    ``path`` is the file's final name, ``place`` its current one; ``status`` (V,) has positions in ``STATUSES``.
    """

    def __init__(self, path: Path, place: Path, header: Header) -> None:
        self.path, self.place, self.layout = path, place, header.layout
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
        return np.flatnonzero(self.status == PENDING)

    def put(self, position: int, video: VideoRows) -> None:
        """Write a video; it counts as finished within a second, or when the writer is closed.

        Rows that do not fit the layout, and a full disk, raise ``FeatureError``; videos that were put before are safe.
        """
        self._refuse_misfits(position, video)
        if STATUSES[self._on_disk[position]] != "pending":  # the old status must not confirm new rows
            self._on_disk[position] = PENDING
            self._write("status", position, self._on_disk[position : position + 1])
            self._synchronise()
        start = int(self._starts[position])
        if video.status != "failed":
            self._write("features", start, np.ascontiguousarray(video.rows))
            for name in ("scales", "frame_indices", "timestamps"):
                if name in self._offsets and (values := getattr(video, name)) is not None:
                    self._write(name, start, values.astype(PER_ROW[name]))
        reason = video.reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
        self._write("reasons", position, np.array([reason], f"S{REASON_BYTES}"))
        facts = {"num_source_frames": video.num_source_frames, "corrupt_frames": video.corrupt_frames}
        facts |= {"row_counts": len(video.rows), "checksums": video.checksum()}
        for name, value in facts.items():
            self._write(name, position, np.array([value], PER_VIDEO[name]))
        self.status[position] = STATUSES.index(video.status)
        self._uncommitted.append(position)
        if time.monotonic() - self._last_commit > _COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Make all videos survive a loss of power: rows reach the disk before the status that confirms them."""
        if self._uncommitted:
            # The system reports rows that it could not write only once; another try would only seem to succeed.
            positions, self._uncommitted = self._uncommitted, []
            try:
                self._synchronise()
            except FeatureError:
                self.status[positions] = PENDING
                raise
            for position in positions:
                self._write("status", position, self.status[position : position + 1])
                self._on_disk[position] = self.status[position]
        self._last_commit = time.monotonic()

    def finish(self) -> None:
        """Give the file its final name; refuse while videos are pending."""
        if len(self.pending):
            ids = (self.layout.video_ids[position] for position in self.pending)
            raise FeatureError(
                f"{write_count(len(self.pending), 'video is', 'videos are')} not there yet: {first_few(ids)}"
            )
        self.commit()
        if self.place != self.path:
            self._synchronise()
        self._stream.close()
        if self.place != self.path:
            replace_file(self.place, self.path)
            self.place = self.path

    def refuse_failures(self, what: str) -> None:
        """Raise ``FeatureError`` where all videos of a new file failed, and remove it: it would block other settings.

        ``what`` is a verb for the message, such as ``packed``.
        """
        if len(self.pending) or np.isin(self.status, READY).any() or self.place == self.path:
            return
        self.commit()
        header = read_header(self.place)
        with self.place.open("rb") as stream:
            reasons = [
                f"{video_id}: {read_rows(stream, header, position).reason}"
                for position, video_id in enumerate(self.layout.video_ids[:5])
            ]
        self._stream.close()
        self.place.unlink()
        number = len(self.status)
        more = [f"and {number - 5:,} more"] if number > 5 else []
        raise FeatureError(
            f"none of the {write_count(number, 'video')} can be {what}; no file is written:\n"
            f"{bullet_list(reasons + more)}"
        )

    def close(self) -> None:
        """Commit and close; the next run continues an unfinished file."""
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
        shape, dim, dtype = video.rows.shape, self.layout.dim, self.layout.dtype
        if shape != (len(video.rows), dim) or video.rows.dtype != DTYPES[dtype] or not len(video.rows):
            raise FeatureError(f"video {name}: {shape} {video.rows.dtype}, expected rows of {dim} {dtype}")
        if len(video.rows) > room or (self.layout.fixed and len(video.rows) != room):
            raise FeatureError(f"video {name} has {write_count(len(video.rows), 'row')}, there is room for {room:,}")

    def _write(self, name: str, index: int, values: npt.NDArray[Any]) -> None:
        """Write values of a dataset, beginning at an index of its first (for rows: its joint row) axis."""
        step = values.nbytes // len(values)
        data = values.reshape(-1).view(np.uint8).data
        try:
            self._stream.seek(self._offsets[name] + index * step)
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
        reason = error.strerror or error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return FeatureError(f"cannot write {self.path}: {reason}; run the same command again to continue")
        safe = len(self.status) - len(self.pending) - len(self._uncommitted)
        return FeatureError(
            f"no space is left for {self.path} ({reason}); {safe:,} of {len(self.status):,} videos are safe.\n"
            "Make room and run the same command again: it continues from there."
        )


def _is_same(stored: Layout, wanted: Layout) -> bool:
    return all(np.array_equal(getattr(stored, entry.name), getattr(wanted, entry.name)) for entry in fields(Layout))


def _resume(
    path: Path, layout: Layout, recipe: Recipe, headers: dict[Path, Header], retry_failed: bool, report: Report
) -> FeatureWriter | None:
    """Continue a file that holds exactly these videos."""
    for place, header in headers.items():
        to_retry = (header.status == FAILED) & retry_failed
        # A file with its final name is never written to: unfinished videos get a file of their own.
        unfinished = (to_retry | (header.status == PENDING)).any()
        same_list = header.recipe.get("shared_list") == recipe.get("shared_list")
        if _is_same(header.layout, layout) and same_list and not (place == path and unfinished):
            writer = FeatureWriter(path, place, header)
            writer.status[to_retry] = PENDING
            done = len(writer.status) - len(writer.pending)
            report(f"{place}: {done:,} of {len(writer.status):,} videos are there already")
            return writer
    return None


def _start(
    path: Path, layout: Layout, recipe: Recipe, headers: dict[Path, Header], retry_failed: bool, report: Report
) -> FeatureWriter:
    """Start a file with the finished videos of files that hold other lists of videos."""
    free = shutil.disk_usage(path.parent).free
    if layout.num_bytes > free:
        sizes = f"{layout.num_bytes / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there"
        raise FeatureError(f"{path} will take {sizes}; make room, or choose a smaller dtype or fewer frames")
    place = partial_path(path)
    # It gets its name with all videos that it takes over, or a kill in between would lose them. HDF5 locks it itself.
    with written_whole(place, hold=False) as temporary:
        try:
            create(temporary, layout, recipe)
        except (OSError, RuntimeError) as error:  # of the HDF5 library, where the disk is full
            told = re.search("error message = '([^']*)'", str(error))
            reason = told[1] if told else str(error).partition("\n")[0]
            raise FeatureError(f"cannot write {path}: {reason}; make room, or choose another place") from None
        with closing(FeatureWriter(path, temporary, read_header(temporary))) as writer:
            for source, header in headers.items():
                if taken := _take_over(writer, source, header, retry_failed):
                    report(f"{taken:,} of {len(layout.video_ids):,} videos are taken from {source}")
    return FeatureWriter(path, place, read_header(place))


def _take_over(writer: FeatureWriter, source: Path, header: Header, retry_failed: bool) -> int:
    """Copy the pending videos that an earlier file holds undamaged."""
    taken, old, new = 0, header.layout, writer.layout
    if (old.dim, old.dtype, old.timed) != (new.dim, new.dtype, new.timed):
        return 0
    known = {video_id: at for at, video_id in enumerate(old.video_ids)}
    checksums = stored_checksums(source)
    with source.open("rb") as stream:
        for position in writer.pending.tolist():
            at = known.get(new.video_ids[position])
            if at is None or header.status[at] == PENDING or (retry_failed and header.status[at] == FAILED):
                continue
            facts = [(each.rows[k], each.source_sizes[k], each.span(k)) for each, k in ((old, at), (new, position))]
            if facts[0] != facts[1]:
                continue
            video = read_rows(stream, header, at)
            if video.checksum() == checksums[at]:
                writer.put(position, video)
                taken += 1
    return taken


def _refuse_losses(layout: Layout, headers: dict[Path, Header]) -> None:
    """Refuse to replace a file that holds videos which this run does not know."""
    known = set(layout.video_ids)
    for place, header in headers.items():
        there = (header.layout.video_ids[at] for at in np.flatnonzero(np.isin(header.status, READY)))
        if lost := [video_id for video_id in there if video_id not in known]:
            raise FeatureError(
                f"{place} holds {write_count(len(lost), 'video that is', 'videos that are')} not to be written now, "
                f"and would lose them: {first_few(lost)}\n"
                "Name all videos, choose another output, or remove it to start again."
            )
