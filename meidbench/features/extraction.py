"""Features of many videos: decoding, backbone and writing at the same time, resumed where an earlier run stopped."""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meidbench.errors import FeatureError
from meidbench.features.decoders import SLOT_BYTES, TIMEOUT_S, Chunk, Counted, DecoderPool, Finished, Restarted
from meidbench.features.extractor import Extractor, Pile
from meidbench.features.layout import STATUSES, Layout
from meidbench.features.records import VideoRows
from meidbench.features.shards import Shard, shared_list
from meidbench.features.store import FeatureWriter, feature_writer, stored_headers
from meidbench.features.summary import Summary, summarise
from meidbench.features.videos import Video

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
