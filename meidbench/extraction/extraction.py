"""Features of many videos: decoding, backbone and writing at the same time, resumed where an earlier run stopped."""

import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.extraction.decoder_pool import SLOT_BYTES, TIMEOUT_S, Chunk, Counted, DecoderPool, Finished, Restarted
from meidbench.extraction.encoders.extractor import Extractor, Pile
from meidbench.extraction.videos import Video
from meidbench.features.feature_file import STATUSES, Header, Layout, read_header, recipe_differences, stored_checksums
from meidbench.features.records import VideoRows, read_rows
from meidbench.features.store import FeatureWriter, feature_writer, stored_headers


@dataclass(frozen=True)
class Summary:
    """How an extraction went.

    Attributes
    ----------
    path : Path
        The feature file, whole.
    videos : int
    extracted : int
        Videos of this run; the others were there already.
    ok, salvaged, failed : int
        Of all videos.
    troubles : tuple of (str, str, str)
        Id, status and reason of each video that is not ok.
    """

    path: Path
    videos: int
    extracted: int
    ok: int
    salvaged: int
    failed: int
    troubles: tuple[tuple[str, str, str], ...]


def summarise(path: Path, extracted: int = 0) -> Summary:
    """Say of a feature file how its videos fared."""
    header = read_header(path)
    counts = {name: int((header.status == code).sum()) for code, name in enumerate(STATUSES)}
    troubles = []
    with path.open("rb") as stream:
        for position in np.flatnonzero(header.status != STATUSES.index("ok")):
            reason = read_rows(stream, header, int(position)).reason
            troubles.append((header.layout.video_ids[position], STATUSES[header.status[position]], reason))
    return Summary(
        path=path,
        videos=len(header.status),
        extracted=extracted,
        ok=counts["ok"],
        salvaged=counts["salvaged"],
        failed=counts["failed"],
        troubles=tuple(troubles),
    )


_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``of``, counted from 1.

    Raises
    ------
    FeatureError
        There is no such share.

    Examples
    --------
    >>> Shard.parse("2/3").share("abcdefg")
    ['b', 'e']
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise FeatureError(f"a share is I/N with I from 1 to N, got {self.number}/{self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``I/N``."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found:
            raise FeatureError(f"a share is I/N with I from 1 to N, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> "Shard | None":
        """Return the share of a process that ``torchrun`` started; None for one that runs alone."""
        size = int(environment.get("WORLD_SIZE", "1"))
        return cls(int(environment.get("RANK", "0")) + 1, size) if size > 1 else None

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """Return every N-th item, beginning with the I-th."""
        return list(items[self.number - 1 :: self.of])

    def path(self, out: Path) -> Path:
        """Return the name of this share's part of a file."""
        return out.with_name(f"{out.stem}.part-{self.number}-of-{self.of}{out.suffix}")


def shared_list(videos: Sequence[Video]) -> dict[str, object]:
    """Say which list of videos was shared out, so that parts of different lists are not mixed."""
    listing = "".join(f"{video.video_id}\t{video.size}\n" for video in videos)
    return {"videos": len(videos), "sha256": hashlib.sha256(listing.encode()).hexdigest()}


def merge_features(
    parts: Sequence[Path],
    out: Path,
    *,
    progress: Callable[[int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write one feature file from the parts of an extraction.

    It is the file, byte for byte, that one process would have written with the same libraries.

    Parameters
    ----------
    parts : sequence of Path
        All parts, in any order.
    out : Path
        The file to be written; one that is there already and the same is left alone.
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
    headers = {path: read_header(path) for path in parts}
    recipe = _common_recipe(headers)
    owners = sorted(
        (video_id, path, position)
        for path, header in headers.items()
        for position, video_id in enumerate(header.layout.video_ids)
    )
    ids = tuple(video_id for video_id, _, _ in owners)
    if doubled := sorted({first for first, second in pairwise(ids) if first == second}):
        raise FeatureError(f"{len(doubled):,} videos are in more than one part: {first_few(doubled)}")
    first = next(iter(headers.values())).layout
    layout = Layout(
        video_ids=ids,
        rows=np.array([headers[path].layout.rows[position] for _, path, position in owners], np.int64),
        fixed=first.fixed,
        dim=first.dim,
        dtype=first.dtype,
        timed=first.timed,
        source_sizes=np.array([headers[path].layout.source_sizes[position] for _, path, position in owners], np.int64),
    )
    checksums = {path: stored_checksums(path) for path in headers}
    status = [int(headers[path].status[position]) for _, path, position in owners]
    merged = (status, [checksums[path][position] for _, path, position in owners])
    fresh = not (out.exists() and (read_header(out).status.tolist(), stored_checksums(out)) == merged)
    with feature_writer(out, layout, recipe, fresh=fresh, report=report) as writer, ExitStack() as opened:
        streams = {path: opened.enter_context(path.open("rb")) for path in headers}
        for at in writer.pending.tolist():
            video_id, path, position = owners[at]
            video = read_rows(streams[path], headers[path], position)
            if video.checksum() != checksums[path][position]:
                raise FeatureError(f"{path} is damaged: the rows of {video_id} are other than they were written")
            writer.put(at, video)
            if progress is not None:
                progress(1)
        writer.finish()
    return out


def _parts(headers: Mapping[Path, Header]) -> int:
    """Return how many parts there must be: shares beyond the number of videos are empty, and leave none."""
    recipe = next(header.recipe for header in headers.values() if "shard" in header.recipe)
    return min(Shard.parse(recipe["shard"]).of, int(recipe["shared_list"]["videos"]))


def _common_recipe(headers: Mapping[Path, Header]) -> dict[str, object]:
    """Check that these are all parts of one extraction, and return its recipe."""
    problems = []
    shares: dict[Shard, Path] = {}
    first: dict[str, object] | None = None
    for path, header in headers.items():
        recipe = {key: value for key, value in header.recipe.items() if key not in ("shard", "shared_list")}
        first = recipe if first is None else first
        if differences := recipe_differences(first, recipe):
            problems.append(f"{path} has other settings than {next(iter(headers))}: {'; '.join(differences)}")
        if "shard" not in header.recipe:
            problems.append(f"{path} is no part of a file, it is whole")
            continue
        share = Shard.parse(str(header.recipe["shard"]))
        if share in shares:
            problems.append(f"{path} and {shares[share]} are both part {share}")
        shares[share] = path
        if waiting := int((header.status == STATUSES.index("pending")).sum()):
            problems.append(f"{path} is not finished: {waiting:,} videos are to come")
    lists = {json.dumps(header.recipe.get("shared_list"), sort_keys=True) for header in headers.values()}
    if len(lists) > 1:
        problems.append("they are shares of different lists of videos; extract all parts from the same videos")
    if len(sizes := {share.of for share in shares}) > 1:
        problems.append(f"parts of extractions by {first_few(sorted(sizes))} processes are mixed")
    elif sizes and (missing := sorted(set(range(1, _parts(headers) + 1)) - {share.number for share in shares})):
        problems.append(f"of {max(sizes)} parts these are missing: {first_few(missing)}")
    if problems or first is None:
        raise FeatureError(f"these parts cannot be merged:\n{bullet_list(problems or ['there are none'])}")
    return first


# Finished videos that may wait to be written; more would only take memory.
_WRITE_AHEAD = 8

Progress = Callable[[int], None]
Report = Callable[[str], None]


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
    progress: Progress | None = None,
    report: Report | None = None,
) -> Summary:
    """Extract the features of videos into one feature file.

    Parameters
    ----------
    videos : sequence of Video
        From ``find_videos``.
    out : Path
        The file; with a shard, its part's name follows from it.
    extractor : Extractor
    shard : Shard, optional
        Which share of the videos this process takes.
    workers : int, optional
        Decoding processes; as many as there are cores where a GPU computes, otherwise one for every two.
    timeout : float
        Seconds without a frame after which a video is given up.
    slot_bytes : int
        Shared memory a slot of frames; two a process.
    retry_failed : bool
        Try again what failed in an earlier run.
    progress : callable, optional
        Called with 1 for each video that is finished, and once with the number of those that were before.
    report : callable, optional
        Called with a line of text where earlier work is found.

    Returns
    -------
    Summary

    Raises
    ------
    FeatureError
        There is no space, another process writes the same file, or an earlier run had other settings.
        What was finished stays in ``OUT.partial``.
    """
    report = report or (lambda line: None)
    progress = progress or (lambda steps: None)
    if not videos:
        raise FeatureError("there are no videos to extract")
    recipe = extractor.recipe
    if shard is not None:
        recipe = {**recipe, "shard": str(shard), "shared_list": shared_list(videos)}
        videos, out = shard.share(videos), shard.path(out)
        if not videos:
            report(f"nothing is left for share {shard}: there are fewer videos than processes")
            return Summary(out, videos=0, extracted=0, ok=0, salvaged=0, failed=0, troubles=())
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise FeatureError(f"{out.parent} cannot be written to; choose another place for the output")
    workers = workers or default_workers(extractor.device)
    decoders = partial(
        DecoderPool, rule=extractor.rule, folder_fps=extractor.folder_fps, processes=workers, timeout=timeout
    )
    room = _room(videos, out, recipe, extractor, decoders, retry_failed, report)
    layout = Layout(
        video_ids=tuple(video.video_id for video in videos),
        rows=room,
        fixed=extractor.rule.fixed_rows is not None,
        dim=extractor.backbone.dim,
        dtype=extractor.dtype,
        timed=True,
        source_sizes=np.array([video.size for video in videos], np.int64),
    )
    with feature_writer(out, layout, recipe, retry_failed=retry_failed, report=report) as writer:
        pending = writer.pending
        if before := len(videos) - len(pending):
            progress(before)
        if len(pending):
            with _writing(writer) as put:
                pool = decoders([videos[position] for position in pending.tolist()], slot_bytes=slot_bytes)
                _run(pool, extractor, pending.tolist(), put, progress)
        writer.finish()
    return summarise(out, extracted=len(pending))


def default_workers(device: torch.device) -> int:
    """Return how many decoding processes keep a device busy here, as far as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # processes of torchrun share them
    return cores if device.type != "cpu" else max(1, cores // 2)


def _room(
    videos: Sequence[Video],
    out: Path,
    recipe: dict[str, Any],
    extractor: Extractor,
    decoders: Callable[..., DecoderPool],
    retry_failed: bool,
    report: Report,
) -> npt.NDArray[np.int64]:
    """Return how many rows each video may have: known for a fixed number, else from an earlier run or counted."""
    if (fixed := extractor.rule.fixed_rows) is not None:
        return np.full(len(videos), fixed, np.int64)
    known = {
        (video_id, int(size)): int(rows)
        for header in stored_headers(out, recipe).values()
        for video_id, size, rows, status in zip(
            header.layout.video_ids, header.layout.source_sizes, header.layout.rows, header.status, strict=True
        )
        if not (retry_failed and STATUSES[status] == "failed")
    }
    room = np.array([known.get((video.video_id, video.size), -1) for video in videos], np.int64)
    if len(unknown := np.flatnonzero(room < 0)):
        report(f"counting the frames of {len(unknown):,} videos")
        with decoders([videos[at] for at in unknown.tolist()], counting=True) as pool:
            for event in pool:
                if isinstance(event, Counted):
                    room[unknown[event.job]] = event.rows
    return room


def _run(
    pool: DecoderPool,
    extractor: Extractor,
    positions: list[int],
    put: Callable[[int, Callable[[], VideoRows]], None],
    progress: Progress,
) -> None:
    piles: dict[int, Pile] = {}
    with pool, _transfer(extractor.device, pool) as onto_device:
        for event in pool:
            if isinstance(event, Chunk):
                frames = onto_device(event)
                pile = piles.setdefault(event.job, Pile(extractor))
                with _memory_named(extractor):
                    pile.add(event.indices, extractor.crops(frames, event.window))
            elif isinstance(event, Restarted):
                piles.pop(event.job, None)
            elif isinstance(event, Finished):
                pile = piles.pop(event.job) if event.job in piles else Pile(extractor)
                with _memory_named(extractor):
                    put(positions[event.job], pile.finish(event.outcome))
                progress(1)


@contextmanager
def _memory_named(extractor: Extractor) -> Any:
    try:
        yield
    except torch.OutOfMemoryError:
        raise FeatureError(
            f"the memory of {extractor.device} is too small for batches of {extractor.batch_size} frames; "
            "choose a smaller --batch-size and run the same command again: it goes on from where it stopped"
        ) from None


@contextmanager
def _transfer(device: torch.device, pool: DecoderPool) -> Any:
    """Give a function that brings a chunk onto the device and gives its slot back."""
    if device.type != "cuda":

        def copy(chunk: Chunk) -> torch.Tensor:
            frames = torch.from_numpy(chunk.frames.copy()).to(device)
            chunk.release()
            return frames

        yield copy
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    # The arrays are kept, too: what is page-locked must not be unmapped, or its address comes back for other memory.
    pinned: dict[int, npt.NDArray[np.uint8]] = {}

    def pin() -> None:
        # Page-locked memory is copied by the GPU itself, several times faster. Processes may be replaced on the way.
        present = {memory.ctypes.data: memory for memory in pool.memories}
        for address in pinned.keys() - present.keys():
            runtime.cudaHostUnregister(address)
            del pinned[address]
        for address in present.keys() - pinned.keys():
            if int(runtime.cudaHostRegister(address, present[address].nbytes, 0)) == 0:
                pinned[address] = present[address]

    def copy_pinned(chunk: Chunk) -> torch.Tensor:
        pin()
        with torch.cuda.stream(stream):
            frames = torch.from_numpy(chunk.frames).to(device, non_blocking=True)
        # Only the copy is waited for; what was asked of the GPU before goes on meanwhile.
        stream.synchronize()
        frames.record_stream(torch.cuda.current_stream(device))
        chunk.release()
        return frames

    try:
        with torch.cuda.device(device):
            yield copy_pinned
    finally:
        for address in pinned:
            runtime.cudaHostUnregister(address)


@contextmanager
def _writing(writer: FeatureWriter) -> Any:
    """Give a function that hands videos to a thread that writes them; its errors come back to the caller."""
    waiting: queue.Queue[tuple[int, Callable[[], VideoRows]] | None] = queue.Queue(_WRITE_AHEAD)
    errors: list[BaseException] = []

    def write() -> None:
        while (entry := waiting.get()) is not None:
            if errors:
                continue  # so that nobody waits for room
            position, wait = entry
            try:
                video, room = wait(), int(writer.layout.rows[position])
                if len(video.rows) > room:
                    why = f"gave {len(video.rows):,} rows where {room:,} were counted; --retry-failed counts anew"
                    video = VideoRows(video.rows[:0], status="failed", reason=why)
                writer.put(position, video)
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=write, name="feature writer", daemon=True)
    thread.start()

    def put(position: int, wait: Callable[[], VideoRows]) -> None:
        if errors:
            raise errors[0]
        waiting.put((position, wait))

    try:
        yield put
    finally:
        waiting.put(None)
        thread.join()
    if errors:
        raise errors[0]
