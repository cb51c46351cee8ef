"""Features of many videos: decoding, encoding and writing at the same time, resumed where an earlier run stopped."""

import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from meidbench.checks import refuse_lost_inputs
from meidbench.errors import FeatureError, bullet_list, first_few, write_count
from meidbench.extraction.decoder_pool import (
    SLOT_BYTES,
    TIMEOUT_S,
    DecoderPool,
    DecodingSettings,
    FrameBatch,
    RowsCounted,
    VideoFinished,
    VideoRestarted,
)
from meidbench.extraction.encoders.extractor import Extractor, VideoEncoding
from meidbench.extraction.videos import Video
from meidbench.features.feature_file import (
    STATUSES,
    Header,
    Layout,
    Recipe,
    read_header,
    recipe_differences,
    stored_checksums,
)
from meidbench.features.records import VideoRows, read_rows
from meidbench.features.store import FeatureWriter, feature_writer, stored_headers
from meidbench.files import make_parent, resolve_output
from meidbench.names import Advance, Report

# Finished videos that may wait to be written; more would only take memory.
_WRITE_AHEAD = 8

_Item = TypeVar("_Item")
_WaitForRows = Callable[[], VideoRows]
_Put = Callable[[int, _WaitForRows], None]


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``count``, counted from 1; a number outside raises FeatureError.

    Examples
    --------
    >>> Shard.from_text("2/3").select("abcdefg")
    ['b', 'e']
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise FeatureError(f"a shard is I/N with I from 1 to N, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def from_text(cls, text: str) -> "Shard":
        """Read ``I/N``."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found:
            raise FeatureError(f"a shard is I/N with I from 1 to N, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Shard | None":
        """Return the shard of a process that ``torchrun`` started; None for one that runs alone."""
        size = int(environment.get("WORLD_SIZE", "1"))
        return cls(int(environment.get("RANK", "0")) + 1, size) if size > 1 else None

    def select(self, items: Sequence[_Item]) -> list[_Item]:
        """Return every N-th item, beginning with the I-th."""
        return list(items[self.number - 1 :: self.count])

    def select_videos(self, videos: Sequence[Video]) -> list[Video]:
        """Return the videos of every N-th file, so that no file is decoded by two processes."""
        files = set(self.select(list(dict.fromkeys(video.path for video in videos))))
        return [video for video in videos if video.path in files]

    def part_path(self, out: Path) -> Path:
        """Return the path of this shard's part of a file."""
        return out.with_name(f"{out.stem}.part-{self.number}-of-{self.count}{out.suffix}")


def describe_list(videos: Sequence[Video]) -> dict[str, object]:
    """Return what identifies the list of all videos, so that parts of different lists are not mixed."""
    rows = ([video.video_id, str(video.size), *([str(video.span)] if video.span else [])] for video in videos)
    lines = "".join("\t".join(row) + "\n" for row in rows)
    files = {"files": len({video.path for video in videos})} if any(video.span for video in videos) else {}
    return {"videos": len(videos), **files, "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def merge_features(
    parts: Sequence[Path], out: Path, *, progress: Advance | None = None, report: Report | None = None
) -> Path:
    """Write one feature file from the parts of an extraction: byte for byte the file of a single process.

    Parameters
    ----------
    parts : sequence of Path
        All parts, in any order, made with the same libraries.
    out : Path
        A file with the same content is left alone.
    progress : callable, optional
        Called with 1 for each video that is copied.
    report : callable, optional
        Called with a line of text where earlier work is found.

    Raises
    ------
    FeatureError
        A part is missing, given twice, not finished, damaged or made by another recipe or from another list of
        videos; nothing is written.
    """
    out = _prepare_output(out, parts)
    headers = {path: read_header(path) for path in parts}
    recipe = _check_parts(headers)
    entries = sorted(
        (video_id, path, position)
        for path, header in headers.items()
        for position, video_id in enumerate(header.layout.video_ids)
    )
    ids = tuple(video_id for video_id, _, _ in entries)
    if doubled := sorted({first for first, second in pairwise(ids) if first == second}):
        raise FeatureError(
            f"{write_count(len(doubled), 'video is', 'videos are')} in more than one part: {first_few(doubled)}"
        )
    spans = tuple(headers[path].layout.span(position) for _, path, position in entries)
    layout = replace(
        next(iter(headers.values())).layout,
        video_ids=ids,
        rows=np.array([headers[path].layout.rows[position] for _, path, position in entries], np.int64),
        source_sizes=np.array([headers[path].layout.source_sizes[position] for _, path, position in entries], np.int64),
        spans=spans if any(spans) else (),
    )
    part_checksums = {path: stored_checksums(path) for path in headers}
    checksums = [part_checksums[path][position] for _, path, position in entries]
    status = [int(headers[path].status[position]) for _, path, position in entries]
    fresh = not (out.exists() and (read_header(out).status.tolist(), stored_checksums(out)) == (status, checksums))
    with feature_writer(out, layout, recipe, fresh=fresh, report=report) as writer, ExitStack() as stack:
        streams = {path: stack.enter_context(path.open("rb")) for path in headers}
        for index in writer.pending.tolist():
            video_id, path, position = entries[index]
            video = read_rows(streams[path], headers[path], position)
            if video.checksum() != checksums[index]:
                raise FeatureError(f"{path} is damaged: the rows of {video_id} are other than they were written")
            writer.put(index, video)
            if progress is not None:
                progress(1)
        writer.finish()
    return out


def _prepare_output(out: Path, inputs: Iterable[Path]) -> Path:
    """Return the file to write, in a folder that takes it; refuse one of the inputs."""
    out = resolve_output(out, regular=True)
    if out.exists():
        refuse_lost_inputs(out, inputs)
    make_parent(out)
    if not os.access(out.parent, os.W_OK):
        raise FeatureError(f"cannot write {out}: {out.parent} cannot be written to; choose another place")
    return out


def _check_parts(headers: Mapping[Path, Header]) -> dict[str, object]:
    """Check that these are all parts of one extraction, and return its recipe."""
    problems = []
    paths: dict[Shard, Path] = {}
    recipe: dict[str, object] | None = None
    for path, header in headers.items():
        own = {key: value for key, value in header.recipe.items() if key not in ("shard", "shared_list")}
        recipe = own if recipe is None else recipe
        if differences := recipe_differences(recipe, own):
            problems.append(f"{path} has other settings than {next(iter(headers))}: {'; '.join(differences)}")
        if "shard" not in header.recipe:
            problems.append(f"{path} is not a part of a file but a complete file")
            continue
        shard = Shard.from_text(str(header.recipe["shard"]))
        if shard in paths:
            problems.append(f"{path} and {paths[shard]} are both part {shard}")
        paths[shard] = path
        if pending := int((header.status == STATUSES.index("pending")).sum()):
            problems.append(f"{path} is not finished: {write_count(pending, 'video is', 'videos are')} pending")
    lists = [header.recipe.get("shared_list") for header in headers.values()]
    if len({json.dumps(entry, sort_keys=True) for entry in lists}) > 1:
        problems.append("they are shards of different lists of videos; extract all parts from the same videos")
    if len(counts := {shard.count for shard in paths}) > 1:
        problems.append(f"parts of extractions by {first_few(sorted(counts))} processes are mixed")
    elif counts:
        # Shards beyond the number of files are empty and write no part.
        expected = min(*counts, next(int(entry.get("files", entry["videos"])) for entry in lists if entry))
        if missing := sorted(set(range(1, expected + 1)) - {shard.number for shard in paths}):
            problems.append(f"of {max(counts)} parts these are missing: {first_few(missing)}")
    if problems or recipe is None:
        raise FeatureError(f"these parts cannot be merged:\n{bullet_list(problems or ['no part was given'])}")
    return recipe


@dataclass(frozen=True)
class ExtractionSummary:
    """Counts of an extraction, and the videos that are not ok."""

    path: Path  # the complete feature file
    videos: int = 0
    extracted: int = 0  # by this run; an earlier one extracted the others
    ok: int = 0
    salvaged: int = 0
    failed: int = 0
    troubles: tuple[tuple[str, str, str], ...] = ()  # id, status and reason of each video that is not ok


def summarise(path: Path, extracted: int = 0) -> ExtractionSummary:
    """Count the videos of a feature file by status; ``extracted`` of them are of this run."""
    header = read_header(path)
    counts = {name: int((header.status == code).sum()) for code, name in enumerate(STATUSES) if name != "pending"}
    troubles = []
    with path.open("rb") as stream:
        for position in np.flatnonzero(header.status != STATUSES.index("ok")):
            reason = read_rows(stream, header, int(position)).reason
            troubles.append((header.layout.video_ids[position], STATUSES[header.status[position]], reason))
    return ExtractionSummary(path, len(header.status), extracted, troubles=tuple(troubles), **counts)


def extract_features(
    videos: Sequence[Video],
    out: Path,
    extractor: Extractor,
    *,
    shard: Shard | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT_S,
    slot_bytes: int = SLOT_BYTES,
    retry_failed: bool = False,
    progress: Advance | None = None,
    report: Report | None = None,
) -> ExtractionSummary:
    """Extract the features of videos into one feature file; where every video failed, only a shard leaves a file.

    Parameters
    ----------
    videos : sequence of Video
        From ``find_videos`` or ``find_samples``. Parts of one file are decoded in one pass over it.
    out : Path
        The feature file, of which nothing is left where every video failed; a shard writes ``shard.part_path(out)``.
    extractor : Extractor
    shard : Shard, optional
        The videos that this process takes.
    workers : int, optional
        Decoding processes; by default ``default_workers(extractor.device)``.
    timeout : float
        Seconds without a frame after which a video has failed.
    slot_bytes : int
        Shared memory per slot of frames; each decoding process has two.
    retry_failed : bool
        Try again the videos that failed in an earlier run.
    progress : callable, optional
        Called with 1 for each finished video, and once with the number of videos that were finished before.
    report : callable, optional
        Called with a line of text where earlier work is found.

    Raises
    ------
    FeatureError
        There is no space, another process writes the same file, or an earlier run had other settings.
        Finished videos stay in ``OUT.partial``.
    """
    report = report or (lambda line: None)
    progress = progress or (lambda steps: None)
    if not videos:
        raise FeatureError("there are no videos to extract")
    recipe = extractor.recipe
    if shard is not None:
        recipe = {**recipe, "shard": str(shard), "shared_list": describe_list(videos)}
        videos, out = shard.select_videos(videos), shard.part_path(out)
        if not videos:
            report(f"nothing is left for shard {shard}: there are fewer videos than processes")
            return ExtractionSummary(out)
    out = _prepare_output(out, (video.path for video in videos))
    geometry = extractor.encoder.preprocessing.geometry
    settings = DecodingSettings(extractor.rule, extractor.folder_fps, geometry, timeout, slot_bytes)
    make_pool = partial(DecoderPool, settings=settings, processes=workers or default_workers(extractor.device))
    layout = Layout(
        video_ids=tuple(video.video_id for video in videos),
        rows=_find_row_counts(videos, out, recipe, extractor, make_pool, retry_failed, report),
        fixed=extractor.rule.fixed_rows is not None,
        dim=extractor.encoder.dim,
        dtype=extractor.dtype,
        timed=True,
        source_sizes=np.array([video.size for video in videos], np.int64),
        spans=tuple(str(video.span or "") for video in videos) if any(video.span for video in videos) else (),
    )
    with feature_writer(out, layout, recipe, retry_failed=retry_failed, report=report) as writer:
        pending = writer.pending.tolist()
        if before := len(videos) - len(pending):
            progress(before)
        if pending:
            pool = make_pool([videos[position] for position in pending])
            with _open_writing_thread(writer) as put, pool:
                _encode_videos(pool, extractor, pending, put, progress)
        writer.finish()
    return _conclude(out, len(pending), is_part=shard is not None)


def _conclude(out: Path, extracted: int, *, is_part: bool) -> ExtractionSummary:
    """Summarise a finished run; a file without rows is removed, because it would prevent the next try."""
    summary = summarise(out, extracted)
    if summary.failed == summary.videos and not is_part:
        out.unlink()
    return summary


def default_workers(device: torch.device) -> int:
    """Return the number of decoding processes: one per core for a GPU, one per two cores for a CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # processes of torchrun share them
    return cores if device.type != "cpu" else max(1, cores // 2)


def _find_row_counts(
    videos: Sequence[Video],
    out: Path,
    recipe: Recipe,
    extractor: Extractor,
    make_pool: Callable[..., DecoderPool],
    retry_failed: bool,
    report: Report,
) -> npt.NDArray[np.int64]:
    """Return the largest number of rows of each video: fixed by the rule, known from an earlier run, or counted."""
    if (fixed := extractor.rule.fixed_rows) is not None:
        return np.full(len(videos), fixed, np.int64)
    known = {
        (video_id, int(header.layout.source_sizes[place]), header.layout.span(place)): int(header.layout.rows[place])
        for header in stored_headers(out, recipe).values()
        for place, video_id in enumerate(header.layout.video_ids)
        if not (retry_failed and STATUSES[header.status[place]] == "failed")
    }
    keys = [(video.video_id, video.size, str(video.span or "")) for video in videos]
    counts = np.array([known.get(key, -1) for key in keys], np.int64)
    if len(unknown := np.flatnonzero(counts < 0)):
        report(f"counting the frames of {write_count(len(unknown), 'video')}")
        with make_pool([videos[position] for position in unknown.tolist()], counting=True) as pool:
            for event in pool:
                if isinstance(event, RowsCounted):
                    counts[unknown[event.job]] = event.rows
    return counts


def _encode_videos(pool: DecoderPool, extractor: Extractor, positions: list[int], put: _Put, progress: Advance) -> None:
    """Encode the frames of the pool as they come, and put the rows of each finished video."""
    encodings: dict[int, VideoEncoding] = {}
    try:
        with _open_device_copy(extractor.device, pool) as copy_to_device:
            for event in pool:
                if isinstance(event, FrameBatch):
                    crops = extractor.crop(copy_to_device(event), event.window)
                    for job, places in event.places().items():
                        encoding = encodings.setdefault(job, VideoEncoding(extractor))
                        taken = crops if len(places) == len(crops) else crops[torch.from_numpy(places)]
                        encoding.add(event.indices[places], taken)
                elif isinstance(event, VideoRestarted):
                    encodings.pop(event.job, None)
                elif isinstance(event, VideoFinished):
                    encoding = encodings.pop(event.job, VideoEncoding(extractor))
                    put(positions[event.job], encoding.finish(event.result))
                    progress(1)
    except torch.OutOfMemoryError:
        raise FeatureError(
            f"the memory of {extractor.device} is too small for batches of {extractor.batch_size} frames; "
            "choose a smaller batch_size=N and run the same again: it continues where it stopped"
        ) from None


@contextmanager
def _open_device_copy(device: torch.device, pool: DecoderPool) -> Iterator[Callable[[FrameBatch], torch.Tensor]]:
    """Give a function that copies the frames of a batch to the device and releases their slot."""
    if device.type != "cuda":

        def copy(batch: FrameBatch) -> torch.Tensor:
            frames = torch.from_numpy(batch.frames.copy())
            batch.release()
            return frames

        yield copy
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    # The arrays are kept, too: pinned memory must not be unmapped, or its address is reused for other memory.
    pinned: dict[int, npt.NDArray[np.uint8]] = {}

    def pin_memories() -> None:
        # The GPU itself copies pinned memory, several times faster. Processes may have been replaced meanwhile.
        present = {memory.ctypes.data: memory for memory in pool.shared_memories}
        for address in pinned.keys() - present.keys():
            runtime.cudaHostUnregister(address)
            del pinned[address]
        for address in present.keys() - pinned.keys():
            if int(runtime.cudaHostRegister(address, present[address].nbytes, 0)) == 0:
                pinned[address] = present[address]

    def copy_pinned(batch: FrameBatch) -> torch.Tensor:
        pin_memories()
        with torch.cuda.stream(stream):
            frames = torch.from_numpy(batch.frames).to(device, non_blocking=True)
        # This waits for the copy alone; the GPU computes earlier batches meanwhile.
        stream.synchronize()
        frames.record_stream(torch.cuda.current_stream(device))
        batch.release()
        return frames

    try:
        with torch.cuda.device(device):
            yield copy_pinned
    finally:
        for address in pinned:
            runtime.cudaHostUnregister(address)


@contextmanager
def _open_writing_thread(writer: FeatureWriter) -> Iterator[_Put]:
    """Give a function that hands videos to a writing thread; errors of the thread come back to the caller."""
    waiting: queue.Queue[tuple[int, _WaitForRows] | None] = queue.Queue(_WRITE_AHEAD)
    errors: list[BaseException] = []

    def write() -> None:
        while (entry := waiting.get()) is not None:
            if errors:
                continue  # so that the caller never waits for a full queue
            position, wait_for_rows = entry
            try:
                video, most = wait_for_rows(), int(writer.layout.rows[position])
                if len(video.rows) > most:
                    rows = write_count(len(video.rows), "row")
                    why = f"gave {rows} where {most:,} were counted; --retry-failed counts again"
                    video = VideoRows(video.rows[:0], status="failed", reason=why)
                writer.put(position, video)
            except BaseException as error:
                errors.append(error)

    def put(position: int, wait_for_rows: _WaitForRows) -> None:
        if errors:
            raise errors[0]
        waiting.put((position, wait_for_rows))

    thread = threading.Thread(target=write, name="feature writer", daemon=True)
    thread.start()
    try:
        yield put
    finally:
        waiting.put(None)
        thread.join()
    if errors:
        raise errors[0]
