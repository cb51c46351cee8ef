"""Decoding in processes of their own: frames come through shared memory, and no broken video takes the run along."""

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
from meidbench.extraction.decoding import count_rows, read_frames
from meidbench.extraction.frames import Frame, FrameRule, Outcome, Restart, Window, crop_window, failed
from meidbench.extraction.videos import Video

SLOT_BYTES = 16 << 20
SLOTS = 2  # one is filled while the other is read
TIMEOUT_S = 600.0
_ASSIGNED = 2  # videos a process has been told of, so that it need not wait for the next
_SIGN_OF_LIFE = 5.0  # seconds


@dataclass(frozen=True)
class Chunk:
    """Some frames of a video, in shared memory.

    Attributes
    ----------
    job : int
        The video's place in the list that was given.
    indices : (n,) int64 array
        The source's frame of each.
    frames : (n, h, w, 3) uint8 array
        The part of each that ``window`` names. Valid until ``release`` is called.
    window : Window
    release : callable
        To be called when the frames have been copied.
    """

    job: int
    indices: npt.NDArray[np.int64]
    frames: npt.NDArray[np.uint8]
    window: Window
    release: Callable[[], None]


@dataclass(frozen=True)
class Restarted:
    """Every chunk of this job so far is void."""

    job: int


@dataclass(frozen=True)
class Finished:
    """Nothing more comes of this job."""

    job: int
    outcome: Outcome


@dataclass(frozen=True)
class Counted:
    """How many rows a job will have at most."""

    job: int
    rows: int


Event = Chunk | Restarted | Finished | Counted


@dataclass
class _Process:
    """One decoding process as its parent sees it."""

    process: Any
    connection: Connection
    memory: npt.NDArray[np.uint8]
    jobs: deque[int] = field(default_factory=deque)
    held: int = 0  # slots that the parent has not given back
    heard: float = float("inf")  # nothing is expected of a process before it says that it is ready


class DecoderPool:
    """Decodes a list of videos; iterate over it for events, in no particular order between videos.

    Parameters
    ----------
    videos : iterable of Video
    rule : FrameRule
    counting : bool
        Only count rows (``Counted`` events); nothing is decoded but where counting needs it.
    folder_fps : float
        Frames a second of folders of images.
    processes : int
        At least 1; never more than videos.
    resize, crop : int
        Of each frame, only what this resizing and cropping touches is handed over.
    timeout : float
        Seconds without a sign of life after which a process is killed and its video has failed.
    slot_bytes : int
        Shared memory a slot; each process has two.

    Notes
    -----
    A process that dies takes one video along, and is replaced. No lock is shared, so none can be left locked.
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
        resize: int = 256,
        crop: int = 224,
        timeout: float = TIMEOUT_S,
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        if not timeout > 0:
            raise FeatureError(f"the timeout must be a positive number of seconds, got {timeout}")
        if processes < 1:
            raise FeatureError(f"decoding needs at least one process, got {processes}")
        self._videos = list(videos)
        self._settings = _Settings(
            rule, counting, folder_fps, resize, crop, 0 if counting else slot_bytes, min(_SIGN_OF_LIFE, timeout / 4)
        )
        self._timeout = timeout
        self._waiting = deque(range(len(self._videos)))
        self._open = len(self._videos)
        self._crew: list[_Process] = []
        self._size = min(processes, len(self._videos))
        # spawn: a fork would inherit the locks of torch's and CUDA's threads.
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> "DecoderPool":
        self._crew = [self._start() for _ in range(self._size)]
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._crew:
            self._end(member)
        self._crew = []

    @property
    def memories(self) -> list[npt.NDArray[np.uint8]]:
        """The shared memory of each process, to be pinned where frames go to a GPU."""
        return [member.memory for member in self._crew]

    def __iter__(self) -> Iterator[Event]:
        while self._open:
            ready = wait([member.connection for member in self._crew], timeout=1.0)
            for member in [member for member in self._crew if member.connection in ready]:
                yield from self._heard(member)
            for member in list(self._crew):
                # A process whose slots are all held waits for us, not we for it.
                silent = time.monotonic() - member.heard
                if member.jobs and member.held < SLOTS and silent > self._timeout and not member.connection.poll():
                    yield from self._lost(member, f"gave no frame in {self._timeout:,.0f} s")

    def _heard(self, member: _Process) -> Iterator[Event]:
        try:
            message = member.connection.recv()
        except (EOFError, OSError):
            member.process.join(10)
            code = member.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            yield from self._lost(member, f"the decoder crashed on it ({how})")
            return
        ready = member.heard < float("inf")
        member.heard = time.monotonic()
        kind, job = message[:2]
        if not ready:
            self._assign(member)
        elif kind == "frames":
            yield self._chunk(member, job, *message[2:])
        elif kind == "restart":
            yield Restarted(job)
        elif kind in ("finished", "counted"):
            member.jobs.popleft()
            self._open -= 1
            self._assign(member)
            yield Finished(job, message[2]) if kind == "finished" else Counted(job, message[2])

    def _chunk(self, member: _Process, job: int, slot: int, indices: list[int], window: Window, data: Any) -> Chunk:
        shape = (len(indices), window.bottom - window.top, window.right - window.left, 3)
        if data is not None:  # a frame larger than a slot
            return Chunk(job, np.array(indices), np.frombuffer(data, np.uint8).reshape(shape), window, lambda: None)
        member.held += 1
        start = slot * self._settings.slot_bytes
        frames = member.memory[start : start + int(np.prod(shape))].reshape(shape)

        def release() -> None:
            member.held -= 1
            member.heard = time.monotonic()
            with suppress(OSError):  # its end is noticed where its messages are read
                member.connection.send(("free", slot))

        return Chunk(job, np.array(indices), frames, window, release)

    def _assign(self, member: _Process) -> None:
        # Towards the end no video waits behind another one while a process is idle.
        while self._waiting and len(member.jobs) < (_ASSIGNED if len(self._waiting) > len(self._crew) else 1):
            if not member.jobs:
                member.heard = time.monotonic()
            job = self._waiting.popleft()
            member.jobs.append(job)
            with suppress(OSError):
                member.connection.send(("job", job, self._videos[job]))

    def _lost(self, member: _Process, reason: str) -> Iterator[Event]:
        """Replace a process; the video that it was at has failed, the next one is given to another."""
        self._end(member)
        self._crew.remove(member)
        if not member.jobs:
            if member.heard == float("inf"):
                raise FeatureError(
                    f"a decoding process could not be started: {reason}; in a script of your own, start the work "
                    "below 'if __name__ == \"__main__\":'"
                )
            return
        job, *untouched = member.jobs
        self._waiting.extendleft(reversed(untouched))
        self._open -= 1
        yield Restarted(job)
        yield Counted(job, 0) if self._settings.counting else Finished(job, failed(reason))
        if self._waiting:
            self._crew.append(self._start())

    def _start(self) -> _Process:
        ours, theirs = self._context.Pipe()
        # Without a name in /dev/shm that a killed run would leave behind; where that is full, on disk.
        memory = self._context.RawArray("B", max(self._settings.slot_bytes * SLOTS, 1))
        process = self._context.Process(target=_decode, args=(theirs, memory, self._settings), daemon=True)
        with _without_interrupts():
            process.start()
        theirs.close()
        return _Process(process, ours, np.frombuffer(memory, np.uint8))

    def _end(self, member: _Process) -> None:
        member.connection.close()
        # It may hang in a codec, and holds nothing that a kill could leave half done.
        member.process.kill()
        member.process.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let a process that is started inherit that Ctrl-C, which reaches the whole group, is for its parent to decide."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class _Settings:
    rule: FrameRule
    counting: bool
    folder_fps: float
    resize: int
    crop: int
    slot_bytes: int
    sign_of_life: float


def _decode(connection: Connection, memory: Any, settings: _Settings) -> None:
    """Be a decoding process."""
    # Ctrl-C reaches the whole group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(connection, memory, settings)
    frames.pulse = worker.pulse
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone, and so is the work
        connection.send(("ready", None))
        while True:
            job, video = worker.next_job()
            try:
                worker.run(job, video)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                # One odd video must not end a run of days; what went wrong stands in the file and the summary.
                worker.give_up(job, f"internal error: {type(error).__name__}: {error}")
    os._exit(0)


class _Worker:
    def __init__(self, connection: Connection, memory: Any, settings: _Settings) -> None:
        self._connection = connection
        self._memory = np.frombuffer(memory, np.uint8)
        self._settings = settings
        self._free = list(range(SLOTS))
        self._jobs: deque[tuple[int, Video]] = deque()
        self._last_word = time.monotonic()
        self._filling: _Filling | None = None
        self._job = 0

    def pulse(self) -> None:
        """Give a sign of life, if it is time for one."""
        if time.monotonic() - self._last_word > self._settings.sign_of_life:
            self._say("alive", self._job)

    def next_job(self) -> tuple[int, Video]:
        while not self._jobs:
            self._listen()
        return self._jobs.popleft()

    def run(self, job: int, video: Video) -> None:
        settings, self._job = self._settings, job
        if settings.counting:
            self._say("counted", job, count_rows(video, settings.rule, folder_fps=settings.folder_fps))
            return
        reading = read_frames(video, settings.rule, folder_fps=settings.folder_fps)
        while True:
            try:
                item = next(reading)
            except StopIteration as end:
                self._hand_over(job)
                self._say("finished", job, end.value)
                return
            if isinstance(item, Restart):
                self._take_back()
                self._say("restart", job)
            else:
                self._add(job, item)

    def give_up(self, job: int, reason: str) -> None:
        self._take_back()
        self._say("restart", job)
        self._say("counted", job, 0) if self._settings.counting else self._say("finished", job, failed(reason))

    def _add(self, job: int, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        window = crop_window(height, width, self._settings.resize, self._settings.crop)
        seen = frame.image[window.top : window.bottom, window.left : window.right]
        filling = self._filling
        if filling is not None and (filling.window != window or filling.used + seen.nbytes > self._settings.slot_bytes):
            self._hand_over(job)
        if seen.nbytes > self._settings.slot_bytes:
            self._say("frames", job, 0, [frame.index], window, seen.tobytes())
            return
        if self._filling is None:
            while not self._free:
                self._listen()
            self._filling = _Filling(window, self._free.pop())
        filling = self._filling
        start = filling.slot * self._settings.slot_bytes + filling.used
        self._memory[start : start + seen.nbytes].reshape(seen.shape)[:] = seen
        filling.used += seen.nbytes
        filling.indices.append(frame.index)
        self.pulse()

    def _hand_over(self, job: int) -> None:
        if self._filling is not None:
            filling, self._filling = self._filling, None
            self._say("frames", job, filling.slot, filling.indices, filling.window, None)

    def _take_back(self) -> None:
        if self._filling is not None:
            self._free.append(self._filling.slot)
            self._filling = None

    def _say(self, *message: Any) -> None:
        self._connection.send(message)
        self._last_word = time.monotonic()

    def _listen(self) -> None:
        message = self._connection.recv()
        if message[0] == "free":
            self._free.append(message[1])
        else:
            self._jobs.append(message[1:])


@dataclass
class _Filling:
    """A slot that is being filled."""

    window: Window
    slot: int
    indices: list[int] = field(default_factory=list)
    used: int = 0
