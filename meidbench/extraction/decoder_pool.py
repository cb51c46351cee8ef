"""Decoding in processes of their own: frames come through shared memory, and a broken video never ends the run."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError
from meidbench.extraction import frames
from meidbench.extraction.cropping import CROP, RESIZE, CropWindow, find_crop_window
from meidbench.extraction.decoding import count_rows, read_frames
from meidbench.extraction.frames import DecodingResult, Frame, FrameRule, Restart
from meidbench.extraction.videos import Video

SLOT_BYTES = 16 << 20
SLOTS = 2  # one is filled while the other is read
TIMEOUT_S = 600.0
_ASSIGNED = 2  # videos that a process knows of, so that it need not wait for the next
_HEARTBEAT_S = 5.0


@dataclass(frozen=True)
class FrameBatch:
    """Some frames of a video, in shared memory.

    Attributes
    ----------
    job : int
        The video's position in the list of videos.
    indices : (n,) int64 array
        The source's frame of each.
    frames : (n, h, w, 3) uint8 array
        The part of each frame that ``window`` describes. Valid until ``release`` is called.
    window : CropWindow
    release : callable
        To be called when the frames have been copied.
    """

    job: int
    indices: npt.NDArray[np.int64]
    frames: npt.NDArray[np.uint8]
    window: CropWindow
    release: Callable[[], None]


@dataclass(frozen=True)
class VideoRestarted:
    """All frames of this job so far are void."""

    job: int


@dataclass(frozen=True)
class VideoFinished:
    """The last event of this job."""

    job: int
    result: DecodingResult


@dataclass(frozen=True)
class RowsCounted:
    """The largest number of rows of this job."""

    job: int
    rows: int


Event = FrameBatch | VideoRestarted | VideoFinished | RowsCounted


@dataclass
class _Decoder:
    """One decoding process as its parent sees it."""

    process: Any
    connection: Connection
    memory: npt.NDArray[np.uint8]
    jobs: deque[int] = field(default_factory=deque)
    held_slots: int = 0  # slots that the parent has not released
    last_message: float = float("inf")  # a process has no deadline before it reports that it is ready

    @property
    def is_ready(self) -> bool:
        return self.last_message < float("inf")


@dataclass(frozen=True)
class _Settings:
    rule: FrameRule
    counting: bool
    folder_fps: float
    resize: int
    crop: int
    slot_bytes: int
    heartbeat_s: float


class DecoderPool:
    """Decodes a list of videos; iterate over it for events, whose order between videos is arbitrary.

    Parameters
    ----------
    videos : iterable of Video
    rule : FrameRule
    counting : bool
        Only count rows (``RowsCounted`` events), and decode only where counting needs it.
    folder_fps : float
        Frames per second of folders of images.
    processes : int
        At least 1; never more than videos.
    resize, crop : int
        Frames are cut to the part that this resizing and cropping needs.
    timeout : float
        Seconds without a sign of life after which a process is killed and its video has failed.
    slot_bytes : int
        Shared memory per slot; each process has two.

    Notes
    -----
    A process that dies fails one video, and is replaced. No lock is shared, so a dead process leaves none locked.
    The processes end with their parent, however that ends.
    """

    def __init__(
        self,
        videos: Iterable[Video],
        rule: FrameRule,
        *,
        counting: bool = False,
        folder_fps: float = 24.0,
        processes: int = 1,
        resize: int = RESIZE,
        crop: int = CROP,
        timeout: float = TIMEOUT_S,
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        if not timeout > 0:
            raise FeatureError(f"the timeout must be a positive number of seconds, got {timeout}")
        if processes < 1:
            raise FeatureError(f"decoding needs at least one process, got {processes}")
        self._videos = list(videos)
        self._settings = _Settings(
            rule, counting, folder_fps, resize, crop, 0 if counting else slot_bytes, min(_HEARTBEAT_S, timeout / 4)
        )
        self._timeout = timeout
        self._waiting = deque(range(len(self._videos)))
        self._num_open = len(self._videos)
        self._decoders: list[_Decoder] = []
        self._size = min(processes, len(self._videos))
        # spawn: a fork would inherit the locks of torch's and CUDA's threads.
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> "DecoderPool":
        self._decoders = [self._start() for _ in range(self._size)]
        return self

    def __exit__(self, *_: object) -> None:
        for decoder in self._decoders:
            self._end(decoder)
        self._decoders = []

    @property
    def shared_memories(self) -> list[npt.NDArray[np.uint8]]:
        """The shared memory of each process, to be pinned where frames go to a GPU."""
        return [decoder.memory for decoder in self._decoders]

    def __iter__(self) -> Iterator[Event]:
        while self._num_open:
            ready = wait([decoder.connection for decoder in self._decoders], timeout=1.0)
            for decoder in [decoder for decoder in self._decoders if decoder.connection in ready]:
                yield from self._receive(decoder)
            for decoder in list(self._decoders):
                # A process whose slots are all held waits for its parent, not the parent for it.
                expected = decoder.jobs and decoder.held_slots < SLOTS
                silent_s = time.monotonic() - decoder.last_message
                if expected and silent_s > self._timeout and not decoder.connection.poll():
                    yield from self._replace(decoder, f"gave no frame in {self._timeout:,.0f} s")

    def _receive(self, decoder: _Decoder) -> Iterator[Event]:
        try:
            message = decoder.connection.recv()
        except (EOFError, OSError):
            decoder.process.join(10)
            code = decoder.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            yield from self._replace(decoder, f"the decoder crashed on it ({how})")
            return
        was_ready = decoder.is_ready
        decoder.last_message = time.monotonic()
        kind, job = message[:2]
        if not was_ready:
            self._assign(decoder)
        elif kind == "frames":
            yield self._to_batch(decoder, job, *message[2:])
        elif kind == "restart":
            yield VideoRestarted(job)
        elif kind in ("finished", "counted"):
            decoder.jobs.popleft()
            self._num_open -= 1
            self._assign(decoder)
            yield VideoFinished(job, message[2]) if kind == "finished" else RowsCounted(job, message[2])

    def _to_batch(
        self, decoder: _Decoder, job: int, slot: int, indices: list[int], window: CropWindow, data: Any
    ) -> FrameBatch:
        shape = (len(indices), window.bottom - window.top, window.right - window.left, 3)
        if data is not None:  # a frame larger than a slot
            large = np.frombuffer(data, np.uint8).reshape(shape)
            return FrameBatch(job, np.array(indices), large, window, lambda: None)
        decoder.held_slots += 1
        start = slot * self._settings.slot_bytes
        pixels = decoder.memory[start : start + int(np.prod(shape))].reshape(shape)

        def release() -> None:
            decoder.held_slots -= 1
            decoder.last_message = time.monotonic()
            with suppress(OSError):  # the end of the process is noticed where its messages are read
                decoder.connection.send(("free", slot))

        return FrameBatch(job, np.array(indices), pixels, window, release)

    def _assign(self, decoder: _Decoder) -> None:
        # Towards the end no video waits behind another one while a process is idle.
        while self._waiting and len(decoder.jobs) < (_ASSIGNED if len(self._waiting) > len(self._decoders) else 1):
            if not decoder.jobs:
                decoder.last_message = time.monotonic()
            job = self._waiting.popleft()
            decoder.jobs.append(job)
            with suppress(OSError):
                decoder.connection.send(("job", job, self._videos[job]))

    def _replace(self, decoder: _Decoder, reason: str) -> Iterator[Event]:
        """Replace a process: its current video has failed, the next one is given to another process."""
        self._end(decoder)
        self._decoders.remove(decoder)
        if not decoder.jobs:
            if not decoder.is_ready:
                raise FeatureError(
                    f"a decoding process could not be started: {reason}; in a script of your own, start the work "
                    "below 'if __name__ == \"__main__\":'"
                )
            return
        job, *untouched = decoder.jobs
        self._waiting.extendleft(reversed(untouched))
        self._num_open -= 1
        yield VideoRestarted(job)
        if self._settings.counting:
            yield RowsCounted(job, 0)
        else:
            yield VideoFinished(job, DecodingResult.from_failure(reason))
        if self._waiting:
            self._decoders.append(self._start())

    def _start(self) -> _Decoder:
        ours, theirs = self._context.Pipe()
        # Without a name in /dev/shm that a killed run would leave behind; where that is full, on disk.
        memory = self._context.RawArray("B", max(self._settings.slot_bytes * SLOTS, 1))
        process = self._context.Process(target=_run_worker, args=(theirs, memory, self._settings), daemon=True)
        with _ignored_interrupts():
            process.start()
        theirs.close()
        return _Decoder(process, ours, np.frombuffer(memory, np.uint8))

    def _end(self, decoder: _Decoder) -> None:
        decoder.connection.close()
        # It may hang in a codec, and writes no file that a kill could leave half done.
        decoder.process.kill()
        decoder.process.join()


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let a new process inherit that Ctrl-C is ignored: it reaches the whole group, and the parent decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_worker(connection: Connection, memory: Any, settings: _Settings) -> None:
    """Decode in this process until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(connection, memory, settings)
    frames.heartbeat = worker.heartbeat
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        connection.send(("ready", None))
        while True:
            job, video = worker.next_job()
            try:
                worker.run(job, video)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                # One odd video must not end a run of days; the error stands in the file and the summary.
                worker.fail(job, f"internal error: {type(error).__name__}: {error}")
    os._exit(0)


@dataclass
class _PartialBatch:
    """A slot that is being filled."""

    window: CropWindow
    slot: int
    indices: list[int] = field(default_factory=list)
    used: int = 0


class _Worker:
    def __init__(self, connection: Connection, memory: Any, settings: _Settings) -> None:
        self._connection = connection
        self._memory = np.frombuffer(memory, np.uint8)
        self._settings = settings
        self._free_slots = list(range(SLOTS))
        self._jobs: deque[tuple[int, Video]] = deque()
        self._last_sent = time.monotonic()
        self._batch: _PartialBatch | None = None
        self._job = 0

    def heartbeat(self) -> None:
        """Send a sign of life if the last message is some seconds old."""
        if time.monotonic() - self._last_sent > self._settings.heartbeat_s:
            self._send("alive")

    def next_job(self) -> tuple[int, Video]:
        while not self._jobs:
            self._receive()
        return self._jobs.popleft()

    def run(self, job: int, video: Video) -> None:
        settings, self._job = self._settings, job
        if settings.counting:
            self._send("counted", count_rows(video, settings.rule, folder_fps=settings.folder_fps))
            return
        stream = read_frames(video, settings.rule, folder_fps=settings.folder_fps)
        while True:
            try:
                item = next(stream)
            except StopIteration as end:
                self._send_batch()
                self._send("finished", end.value)
                return
            if isinstance(item, Restart):
                self._discard_batch()
                self._send("restart")
            else:
                self._add(item)

    def fail(self, job: int, reason: str) -> None:
        self._job = job
        self._discard_batch()
        self._send("restart")
        if self._settings.counting:
            self._send("counted", 0)
        else:
            self._send("finished", DecodingResult.from_failure(reason))

    def _add(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        window = find_crop_window(height, width, self._settings.resize, self._settings.crop)
        pixels = frame.image[window.top : window.bottom, window.left : window.right]
        slot_bytes = self._settings.slot_bytes
        if self._batch and (self._batch.window != window or self._batch.used + pixels.nbytes > slot_bytes):
            self._send_batch()
        if pixels.nbytes > slot_bytes:
            self._send("frames", 0, [frame.index], window, pixels.tobytes())
            return
        if self._batch is None:
            while not self._free_slots:
                self._receive()
            self._batch = _PartialBatch(window, self._free_slots.pop())
        batch = self._batch
        start = batch.slot * slot_bytes + batch.used
        self._memory[start : start + pixels.nbytes].reshape(pixels.shape)[:] = pixels
        batch.used += pixels.nbytes
        batch.indices.append(frame.index)
        self.heartbeat()

    def _send_batch(self) -> None:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            self._send("frames", batch.slot, batch.indices, batch.window, None)

    def _discard_batch(self) -> None:
        if self._batch is not None:
            self._free_slots.append(self._batch.slot)
            self._batch = None

    def _send(self, kind: str, *content: Any) -> None:
        self._connection.send((kind, self._job, *content))
        self._last_sent = time.monotonic()

    def _receive(self) -> None:
        message = self._connection.recv()
        if message[0] == "free":
            self._free_slots.append(message[1])
        else:
            self._jobs.append(message[1:])
