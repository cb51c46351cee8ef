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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.checks import whole_number
from meidbench.errors import FeatureError
from meidbench.extraction import frames
from meidbench.extraction.decoding import count_sample_rows, read_samples
from meidbench.extraction.frames import (
    IMAGENET_GEOMETRY,
    CropWindow,
    DecodingResult,
    Frame,
    FrameRule,
    Geometry,
    Restart,
)
from meidbench.extraction.selection import SampleResult
from meidbench.extraction.videos import Video

SLOT_BYTES = 16 << 20
SLOTS = 2  # one is filled while the other is read
TIMEOUT_S = 600.0
_ASSIGNED = 2  # files that a process knows of, so that it need not wait for the next
_HEARTBEAT_S = 5.0


@dataclass(frozen=True)
class FrameBatch:
    """Some frames of a file, in shared memory."""

    jobs: tuple[tuple[int, ...], ...]  # of each frame, the positions in the list of videos of those that take it
    indices: npt.NDArray[np.int64]  # the source's frame of each
    frames: npt.NDArray[np.uint8]  # (n, h, w, 3), the window of each; valid until release is called
    window: CropWindow
    release: Callable[[], None]  # to be called when the frames have been copied

    def places(self) -> dict[int, npt.NDArray[np.int64]]:
        """Return for each job which of the frames it takes."""
        found: dict[int, list[int]] = {}
        for place, jobs in enumerate(self.jobs):
            for job in jobs:
                found.setdefault(job, []).append(place)
        return {job: np.array(places) for job, places in found.items()}


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


@dataclass(frozen=True)
class DecodingSettings:
    """The settings of a pool's processes; a timeout that is not a positive number raises FeatureError."""

    rule: FrameRule
    folder_fps: float = 24.0
    # Frames are cut to the part that this resizing and cropping needs; without it they stay whole.
    geometry: Geometry | None = IMAGENET_GEOMETRY
    timeout: float = TIMEOUT_S  # seconds without a sign of life, then a process is killed and its video fails
    slot_bytes: int = SLOT_BYTES  # shared memory per slot; each process has two

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise FeatureError(f"the timeout must be a positive number of seconds, got {self.timeout}")


@dataclass
class _Decoder:
    """One decoding process as its parent sees it."""

    process: Any
    connection: Connection
    memory: npt.NDArray[np.uint8]
    files: deque[int] = field(default_factory=deque)
    is_ready: bool = False
    held_slots: int = 0  # slots that the parent has not released
    last_message: float = 0.0


class DecoderPool:
    """Decodes a list of videos; iterate over it for events, whose order between videos is arbitrary.

    A job is the position of a video in the list. Videos with the same path, parts of one file, are decoded in one pass.
    With ``counting`` it only counts rows (``RowsCounted`` events), and decodes only where counting needs it.

    Where a process dies, the videos of one file that were not finished have failed, and a new process takes its place.
    Processes share no lock, which a dead one could leave locked. They end with their parent, even where that is killed.
    """

    def __init__(
        self, videos: Iterable[Video], settings: DecodingSettings, processes: int = 1, *, counting: bool = False
    ) -> None:
        self._videos = list(videos)
        self._settings = settings
        self._counting = counting
        files: dict[Path, list[int]] = {}
        for job, video in enumerate(self._videos):
            files.setdefault(video.path, []).append(job)
        self._files = list(files.values())  # the jobs of each
        self._unfinished = [dict.fromkeys(jobs) for jobs in self._files]
        self._waiting = deque(range(len(self._files)))
        self._num_open = len(self._files)
        self._decoders: list[_Decoder] = []
        self._size = min(whole_number("decoding processes", processes, 1, FeatureError), len(self._files))
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
                expected = decoder.files and decoder.held_slots < SLOTS
                silent_s = time.monotonic() - decoder.last_message
                if expected and silent_s > self._settings.timeout and not decoder.connection.poll():
                    yield from self._replace(decoder, f"gave no frame in {self._settings.timeout:,.0f} s")

    def _receive(self, decoder: _Decoder) -> Iterator[Event]:
        try:
            message = decoder.connection.recv()
        except (EOFError, OSError):
            decoder.process.join(10)
            code = decoder.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            yield from self._replace(decoder, f"the decoder crashed on it ({how})")
            return
        decoder.last_message = time.monotonic()
        kind, file = message[:2]
        if kind == "ready":
            decoder.is_ready = True
            self._assign(decoder)
        elif kind == "frames":
            yield self._to_batch(decoder, file, *message[2:])
        elif kind == "restart":
            yield from map(VideoRestarted, self._unfinished[file])
        elif kind == "finished":
            job = self._files[file][message[2]]
            self._finish(decoder, file, [job])
            yield VideoFinished(job, message[3])
        elif kind == "counted":
            self._finish(decoder, file, self._files[file])
            yield from map(RowsCounted, self._files[file], message[2])

    def _finish(self, decoder: _Decoder, file: int, jobs: list[int]) -> None:
        """Note jobs of a file as finished; with its last one the process begins another file."""
        for job in jobs:
            del self._unfinished[file][job]
        if not self._unfinished[file]:
            decoder.files.popleft()
            self._num_open -= 1
            self._assign(decoder)

    def _to_batch(
        self,
        decoder: _Decoder,
        file: int,
        slot: int,
        takers: list[tuple[int, ...]],
        indices: list[int],
        window: CropWindow,
        data: Any,
    ) -> FrameBatch:
        jobs = tuple([tuple([self._files[file][sample] for sample in samples]) for samples in takers])
        shape = (len(indices), window.bottom - window.top, window.right - window.left, 3)
        if data is not None:  # a frame larger than a slot
            large = np.frombuffer(data, np.uint8).reshape(shape)
            return FrameBatch(jobs, np.array(indices), large, window, lambda: None)
        decoder.held_slots += 1
        start = slot * self._settings.slot_bytes
        pixels = decoder.memory[start : start + int(np.prod(shape))].reshape(shape)

        def release() -> None:
            decoder.held_slots -= 1
            decoder.last_message = time.monotonic()
            with suppress(OSError):  # the end of the process is noticed where its messages are read
                decoder.connection.send(("free", slot))

        return FrameBatch(jobs, np.array(indices), pixels, window, release)

    def _assign(self, decoder: _Decoder) -> None:
        # Towards the end no file waits behind another one while a process is idle.
        while self._waiting and len(decoder.files) < (_ASSIGNED if len(self._waiting) > len(self._decoders) else 1):
            file = self._waiting.popleft()
            decoder.files.append(file)
            with suppress(OSError):
                decoder.connection.send(("file", file, [self._videos[job] for job in self._files[file]]))

    def _replace(self, decoder: _Decoder, reason: str) -> Iterator[Event]:
        """Replace a process: its current file has failed, the next one is given to another process."""
        self._end(decoder)
        self._decoders.remove(decoder)
        if not decoder.files:
            if not decoder.is_ready:
                raise FeatureError(
                    f"a decoding process could not be started: {reason}; in a script of your own, start the work "
                    "below 'if __name__ == \"__main__\":'"
                )
            return
        file, *untouched = decoder.files
        self._waiting.extendleft(reversed(untouched))
        self._num_open -= 1
        for job in self._unfinished[file]:
            yield RowsCounted(job, 0) if self._counting else VideoFinished(job, DecodingResult.from_failure(reason))
        if self._waiting:
            self._decoders.append(self._start())

    def _start(self) -> _Decoder:
        ours, theirs = self._context.Pipe()
        # Without a name in /dev/shm that a killed run would leave behind; where that is full, on disk.
        memory = self._context.RawArray("B", 1 if self._counting else self._settings.slot_bytes * SLOTS)
        arguments = (theirs, memory, self._settings, self._counting)
        process = self._context.Process(target=_run_worker, args=arguments, daemon=True)
        with _ignored_interrupts():
            process.start()
        theirs.close()
        return _Decoder(process, ours, np.frombuffer(memory, np.uint8))

    def _end(self, decoder: _Decoder) -> None:
        decoder.connection.close()
        # It may hang in a codec, and writes no file that a kill could leave half done.
        decoder.process.kill()
        decoder.process.join()


# A terminal sends them to all processes. The decoders end with their parent; one that ended before it would be taken
# for one that crashed on its video.
_INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let a new process inherit that interrupts are ignored, so that only the parent acts on them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in zip(_INTERRUPTS, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)


def _run_worker(connection: Connection, memory: Any, settings: DecodingSettings, counting: bool) -> None:
    """Decode in this process until the parent ends."""
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    worker = _Worker(connection, np.frombuffer(memory, np.uint8), settings)
    frames.heartbeat = worker.heartbeat
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        worker.send("ready")
        while True:
            videos = worker.next_file()
            try:
                if counting:
                    worker.send("counted", count_sample_rows(videos, settings.rule, folder_fps=settings.folder_fps))
                else:
                    worker.decode(videos)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                # One file must not end a run of days; the feature file and the summary name the error.
                worker.discard_batch()
                failure = DecodingResult.from_failure(f"internal error: {type(error).__name__}: {error}")
                if counting:
                    worker.send("counted", [0] * len(videos))
                else:
                    worker.fail(failure)
    os._exit(0)


class _Worker:
    """Receives the videos of one file after another, and sends batches of their frames."""

    def __init__(self, connection: Connection, memory: npt.NDArray[np.uint8], settings: DecodingSettings) -> None:
        self._connection = connection
        self._memory = memory
        self._settings = settings
        self._heartbeat_s = min(_HEARTBEAT_S, settings.timeout / 4)
        self._last_sent = time.monotonic()
        self._assigned: deque[tuple[int, list[Video]]] = deque()
        self._file = 0
        self._unfinished: dict[int, None] = {}
        self._free_slots = list(range(SLOTS))
        # The batch that is being filled; no indices mean no batch.
        self._indices: list[int] = []
        self._takers: list[tuple[int, ...]] = []
        self._slot = 0
        self._used = 0
        self._window: CropWindow | None = None

    def heartbeat(self) -> None:
        """Send a sign of life if the last message is some seconds old."""
        if time.monotonic() - self._last_sent > self._heartbeat_s:
            self.send("alive")

    def send(self, kind: str, *content: Any) -> None:
        self._connection.send((kind, self._file, *content))
        self._last_sent = time.monotonic()

    def next_file(self) -> list[Video]:
        while not self._assigned:
            self._receive()
        self._file, videos = self._assigned.popleft()
        self._unfinished = dict.fromkeys(range(len(videos)))
        return videos

    def decode(self, videos: list[Video]) -> None:
        for item in read_samples(videos, self._settings.rule, folder_fps=self._settings.folder_fps):
            if isinstance(item, Frame):
                self._add(item)
            elif isinstance(item, Restart):
                self.discard_batch()
                self.send("restart")
            elif isinstance(item, SampleResult):
                self._send_batch()
                self._finish(item.sample, item.result)

    def fail(self, failure: DecodingResult) -> None:
        """Give all videos of the file that are not finished this result."""
        for sample in list(self._unfinished):
            self._finish(sample, failure)

    def _finish(self, sample: int, result: DecodingResult) -> None:
        del self._unfinished[sample]
        self.send("finished", sample, result)

    def discard_batch(self) -> None:
        if self._indices:
            self._free_slots.append(self._slot)
            self._indices, self._takers = [], []

    def _receive(self) -> None:
        kind, *content = self._connection.recv()
        if kind == "free":
            self._free_slots += content
        else:
            self._assigned.append((content[0], content[1]))

    def _add(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        window = frames.find_crop_window(height, width, self._settings.geometry)
        pixels = frame.image[window.top : window.bottom, window.left : window.right]
        slot_bytes = self._settings.slot_bytes
        if window != self._window or self._used + pixels.nbytes > slot_bytes:
            self._send_batch()
        if pixels.nbytes > slot_bytes:
            self.send("frames", 0, [frame.takers], [frame.index], window, pixels.tobytes())
            return
        if not self._indices:
            while not self._free_slots:
                self._receive()
            self._slot, self._used, self._window = self._free_slots.pop(), 0, window
        start = self._slot * slot_bytes + self._used
        self._memory[start : start + pixels.nbytes].reshape(pixels.shape)[:] = pixels
        self._used += pixels.nbytes
        self._indices.append(frame.index)
        self._takers.append(frame.takers)
        self.heartbeat()

    def _send_batch(self) -> None:
        if self._indices:
            self.send("frames", self._slot, self._takers, self._indices, self._window, None)
            self._indices, self._takers = [], []
