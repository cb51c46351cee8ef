"""Video files, through PyAV: what they hold, and the chosen frames out of them."""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import PIL
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from meidbench.errors import FeatureError
from meidbench.extraction import frames
from meidbench.extraction.frame_folders import count_images, read_images
from meidbench.extraction.frames import FRAME_RULES, Frame, FrameRule, Outcome, Reading, Restart, failed, one_line
from meidbench.extraction.videos import Video

# Codecs of which a frame that is marked as no reference can be left out and no other frame changes. HEVC's mark
# holds within one temporal layer only, and MPEG-4's decoder conceals damage otherwise after a frame left out.
_SKIPPABLE = frozenset({"h264"})
# Containers whose duration is written down rather than estimated from the bit rate.
_DURATION_IN_HEADER = frozenset({"matroska", "mov", "avi"})
_ATTACHED_PICTURE = 0x400
# A damaged header can put a frame years away; three days are more than any video to be recognised has.
_LONGEST = 72 * 3600
_MOST_FAILED_READS = 16


def film_versions() -> dict[str, str]:
    """Return the versions of PyAV and of the libraries that decode and convert."""
    versions = {"av": av.__version__}
    for library in ("libavcodec", "libswscale"):
        versions[library] = ".".join(map(str, av.library_versions[library]))
    return versions


def count_film_rows(path: Path, rule: FrameRule) -> int:
    """Return how many rows a file gives at most; see ``meidbench.extraction.decoding.count_rows``."""
    try:
        if rule.fixed_rows is not None:
            with _opened(path):
                return rule.fixed_rows
        scan = _scan(path)
        if not scan.doubt:
            return len(rule.choose(scan.times))
        times = _count(path, _Damage())
        return len(rule.choose(times)) if len(times) else 0
    except _Unusable:
        return 0


def read_film(path: Path, rule: FrameRule) -> Reading:
    """Read the chosen frames of a file; see ``meidbench.extraction.decoding.read_frames``."""
    try:
        scan = _scan(path)
        if scan.doubt:
            return (yield from _read_counted(path, rule, scan))
        rows = rule.choose(scan.times)
        given = 0
        try:
            for frame in _chosen_frames(path, scan, np.unique(rows)):
                yield frame
                given += 1
        except _Unexpected:
            if given:
                yield Restart()
            return (yield from _read_counted(path, rule, scan, most_rows=len(rows)))
        status = "salvaged" if scan.cut else "ok"
        return Outcome(rows.astype(np.int32), scan.times[rows], status, scan.cut, len(scan.pts), 0)
    except _Unusable as error:
        return failed(str(error))


class _Unusable(Exception):
    """Nothing can be had from a file; the message says why."""


class _Unexpected(Exception):
    """The frames are not those that the packets promised."""


@dataclass
class _Damage:
    """What was met while a file was read."""

    packets: int = 0
    reads: int = 0
    frames: int = 0
    first: str = ""

    def note(self, error: Exception) -> None:
        self.first = self.first or _told(error)

    def tell(self, num_frames: int) -> str:
        said = []
        if self.packets or self.reads:
            what = "packets could not be decoded" if self.packets else "places could not be read"
            number = self.packets or self.reads
            said.append(f"{number:,} {what} ({self.first}); frames taken from the {num_frames:,} that could")
        if self.frames:
            said.append(f"{self.frames:,} of {num_frames:,} frames are damaged")
        return "; ".join(said)


@dataclass(frozen=True)
class _Scan:
    """What the packets of a file say of its frames, none of which is decoded yet.

    ``pts`` are those of the frames that are shown, ascending. ``doubt`` says why they cannot be trusted,
    ``cut`` that the file ends too early.
    """

    pts: npt.NDArray[np.int64]
    time_base: Fraction
    doubt: str
    cut: str

    @property
    def times(self) -> npt.NDArray[np.float64]:
        return _seconds(self.pts, self.time_base)


def _seconds(pts: npt.NDArray[np.int64], time_base: Fraction) -> npt.NDArray[np.float64]:
    """Return seconds since the first frame; whole numbers until the one division, so that nothing adds up."""
    seconds: npt.NDArray[np.float64] = (pts - pts[0]) * time_base.numerator / time_base.denominator
    return seconds


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Unusable("not a regular file")
        if not status.st_size:
            raise _Unusable("empty file")
        # Python says what libav does not: that a file may not be read.
        with path.open("rb"):
            pass
        # A playlist under the name of a video must not lead anywhere.
        container = av.open(
            os.fspath(path.absolute()), metadata_errors="replace", container_options={"protocol_whitelist": "file"}
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _Unusable(f"cannot be opened: {_told(error)}") from None
    with container:
        stream = _main_stream(container)
        stream.codec_context.thread_count = 1
        yield container, stream


def _main_stream(container: InputContainer) -> VideoStream:
    """Return the stream that libav calls the best, cover art apart."""
    streams = [stream for stream in container.streams.video if not stream.disposition.value & _ATTACHED_PICTURE]
    if not streams:
        raise _Unusable("no video stream")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
    if stream.codec_context is None:
        raise _Unusable("no decoder for its video stream")
    if stream.time_base is None:
        raise _Unusable("its video stream has no time base")
    return stream


def _packets(container: InputContainer, damage: _Damage, stream: VideoStream | None = None) -> "Iterator[Packet[Any]]":
    """Yield the packets of a stream or of all; where reading fails, go on behind.

    Packets without content are left out: to a decoder they mean the end.
    """
    failures = 0
    while True:
        try:
            for packet in container.demux(stream) if stream is not None else container.demux():
                frames.pulse()
                if packet.size:
                    failures = 0
                    yield packet
            return
        except av.FFmpegError as error:
            failures += 1
            damage.reads += 1
            damage.note(error)
            if failures >= _MOST_FAILED_READS:
                return


def _scan(path: Path) -> _Scan:
    damage = _Damage()
    shown: list[int] = []
    doubt = ""
    ends = 0.0
    with _opened(path) as (container, stream):
        assert stream.time_base is not None
        for packet in _packets(container, damage):
            if packet.pts is not None and packet.time_base is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.is_corrupt:
                doubt = doubt or "a packet is damaged"
            if packet.is_discard:
                continue
            if packet.pts is None:
                doubt = doubt or "a packet has no time"
            else:
                shown.append(packet.pts)
        time_base = stream.time_base
        promised = _promised_end(container)
    pts = np.array(sorted(shown), dtype=np.int64)
    if damage.reads:
        doubt = doubt or "a packet could not be read"
    if not len(pts):
        doubt = doubt or "no packets"
    elif not (np.diff(pts) > 0).all():
        doubt = doubt or "two packets have one time"
    elif (pts[-1] - pts[0]) * time_base > _LONGEST:
        doubt = doubt or "times beyond belief"
    cut = ""
    if promised is not None and promised - ends > max(0.5, 0.02 * promised):
        cut = f"ends at {ends:.1f} s, its header says {promised:.1f} s"
    return _Scan(pts, time_base, doubt, cut)


def _promised_end(container: InputContainer) -> float | None:
    """Return when the last stream ends by the header, in seconds; None where the header does not say."""
    if _DURATION_IN_HEADER.isdisjoint(container.format.name.split(",")) or container.duration is None:
        return None
    return float(container.duration + (container.start_time or 0)) / av.time_base


def _decoded(
    container: InputContainer, stream: VideoStream, damage: _Damage, wanted: frozenset[int] | None = None
) -> Iterator[VideoFrame]:
    """Yield frames as the decoder gives them out: all, or those wanted and those that others refer to."""
    context = stream.codec_context
    skipping = wanted is not None and context.codec.name in _SKIPPABLE
    for packet in _packets(container, damage, stream):
        if skipping:
            assert wanted is not None
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            frames = context.decode(packet)
        except av.FFmpegError as error:
            damage.packets += 1
            damage.note(error)
            continue
        yield from frames
    try:
        yield from context.decode(None)
    except av.FFmpegError as error:
        damage.packets += 1
        damage.note(error)


def _chosen_frames(path: Path, scan: _Scan, chosen: npt.NDArray[np.int64]) -> Iterator[Frame]:
    """Yield the frames of these places among the packets' timestamps, or raise ``_Unexpected``."""
    wanted = {int(scan.pts[index]): int(index) for index in chosen}
    known = frozenset(scan.pts.tolist())
    picture = _Picture()
    damage = _Damage()
    last: int | None = None
    place = 0
    with _opened(path) as (container, stream):
        complete = stream.codec_context.codec.name not in _SKIPPABLE
        for frame in _decoded(container, stream, damage, frozenset(wanted)):
            pts = frame.pts
            if pts is None or pts not in known or (last is not None and pts <= last):
                raise _Unexpected
            # Where nothing is skipped, a packet without a frame shows at once.
            if complete and pts != scan.pts[place]:
                raise _Unexpected
            last, place = pts, place + 1
            if frame.is_corrupt or damage.packets or damage.reads:
                raise _Unexpected
            if pts in wanted:
                yield Frame(wanted.pop(pts), picture.of(frame))
                if not wanted:
                    return
    raise _Unexpected


def _count(path: Path, damage: _Damage) -> npt.NDArray[np.float64]:
    """Decode everything, and return when each frame is shown, in seconds since the first."""
    pts: list[int | None] = []
    with _opened(path) as (container, stream):
        for frame in _decoded(container, stream, damage):
            pts.append(frame.pts)
            damage.frames += bool(frame.is_corrupt)
        time_base = stream.time_base
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    assert time_base is not None
    if not pts:
        return np.empty(0)
    if None not in pts:
        known = np.array(pts, dtype=np.int64)
        if (np.diff(known) > 0).all() and (known[-1] - known[0]) * time_base <= _LONGEST:
            return _seconds(known, time_base)
    return _seconds(np.arange(len(pts)), 1 / Fraction(rate))


def _read_counted(path: Path, rule: FrameRule, scan: _Scan, most_rows: int | None = None) -> Reading:
    """Decode everything, choose among what came, and decode it again to take it."""
    damage = _Damage()
    times = _count(path, damage)
    if not len(times):
        return failed(f"no frame could be decoded: {damage.first or scan.doubt or 'none came'}")
    rows = rule.choose(times)
    # Room was made for as many rows as packets were counted.
    surplus = 0 if most_rows is None else max(0, len(rows) - most_rows)
    rows = rows[: len(rows) - surplus]
    wanted = set(rows.tolist())
    picture = _Picture()
    with _opened(path) as (container, stream):
        for index, frame in enumerate(_decoded(container, stream, _Damage())):
            if index in wanted:
                yield Frame(index, picture.of(frame))
                wanted.remove(index)
                if not wanted:
                    break
    if wanted:
        return failed("decodes differently each time")
    left_out = f"more frames than packets, {surplus:,} rows left out" if surplus else ""
    reason = "; ".join(filter(None, (damage.tell(len(times)), scan.cut, left_out)))
    return Outcome(
        rows.astype(np.int32),
        times[rows],
        "salvaged" if reason else "ok",
        one_line(reason),
        len(times),
        damage.frames,
    )


class _Picture:
    """Turns decoded frames into upright RGB arrays; keeps what swscale sets up from one frame to the next."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def of(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        try:
            image = np.asarray(self._reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
        except (av.FFmpegError, ValueError) as error:
            raise _Unusable(f"frames cannot be turned into RGB: {_told(error)}") from None
        return np.ascontiguousarray(_upright(image, _display_matrix(frame)))


def _display_matrix(frame: VideoFrame) -> npt.NDArray[np.int32] | None:
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(data, dtype=np.int32)


def _upright(image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.int32] | None) -> npt.NDArray[np.uint8]:
    """Turn and mirror an image as its display matrix says, to the nearest quarter.

    The matrix maps (x, y) to (ax + cy, bx + dy), y downwards, and is stored as a b u c d v x y w (ISO/IEC
    14496-12, 6.2.2).
    """
    if matrix is None or len(matrix) < 5:
        return image
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _told(error: Exception) -> str:
    """Return what an error says, without the path that libav and Python add."""
    return one_line(getattr(error, "strerror", None) or type(error).__name__, 120)


__all__ = [
    "FRAME_RULES",
    "Frame",
    "FrameRule",
    "Outcome",
    "Reading",
    "Restart",
    "count_rows",
    "decoder_versions",
    "read_frames",
]


def read_frames(video: Video, rule: FrameRule, *, folder_fps: float = 24.0) -> Reading:
    """Read the chosen frames of a video, one at a time.

    Parameters
    ----------
    video : Video
        From ``find_videos``.
    rule : FrameRule
        Which frames are taken.
    folder_fps : float
        Frames a second of a folder of images, which does not say so itself; 24 in Charades' release.

    Returns
    -------
    generator of Frame or Restart
        Every chosen frame once, in the order of time, as it is meant to be shown: rotation metadata applied,
        what an edit list hides left out. A ``Restart`` voids every frame before it: damage was met, and the
        choice is made anew among the frames that can be decoded. What the generator returns is the
        ``Outcome``. Bad media never raise; they end as ``failed`` or ``salvaged``. A folder's frames are as
        Pillow reads them, without a look at orientation tags.

    Raises
    ------
    FeatureError
        ``folder_fps`` is not a positive number.

    Notes
    -----
    The number of frames comes from the timestamps of the packets, never from a header. Frames that nothing
    refers to and no row wants are not decoded, where the codec allows to leave them out and lose nothing.
    Where timestamps are missing, repeated or wrong, or a packet cannot be decoded, everything is decoded
    twice: to count, and to take. One thread; at most one frame is held.

    A file that ends before its header says is told from a whole one where the header gives a duration and
    more than half a second and 2 % of it are missing. What cannot be told: a cut at the end of a file without
    such a header (a raw stream, a fragmented or live recording); damage to frames that were not decoded, since
    no row wants them and nothing refers to them; packets that the reader of a damaged Matroska file passes
    over. What a decoder makes of a damaged frame may depend on what its memory held, so that those pixels,
    unlike all others, need not be the same when read again.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from meidbench.extraction.videos import find_videos
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "ATOYW").mkdir()
    ...     for number in range(1, 6):
    ...         Image.new("RGB", (8, 6), (number, 0, 0)).save(Path(folder, "ATOYW", f"ATOYW-{number:06}.png"))
    ...     frames = read_frames(find_videos(folder).videos[0], FrameRule.parse("uniform=3"))
    ...     [(frame.index, frame.image[0, 0].tolist()) for frame in frames]
    [(0, [1, 0, 0]), (2, [3, 0, 0]), (4, [5, 0, 0])]
    """
    folder_fps = _checked_rate(folder_fps)
    return read_images(video.path, rule, folder_fps) if video.is_folder else read_film(video.path, rule)


def count_rows(video: Video, rule: FrameRule, *, folder_fps: float = 24.0) -> int:
    """Return how many rows ``read_frames`` will give at most, decoding nothing where that can be helped.

    Parameters
    ----------
    video, rule, folder_fps
        As for ``read_frames``.

    Returns
    -------
    int
        Exact for a whole video; a damaged one may give fewer, never more. 0 where nothing can be opened.

    Raises
    ------
    FeatureError
        ``folder_fps`` is not a positive number.
    """
    folder_fps = _checked_rate(folder_fps)
    if not video.is_folder:
        return count_film_rows(video.path, rule)
    num_images = count_images(video.path)
    return len(rule.choose(np.arange(num_images) / folder_fps)) if num_images else 0


def decoder_versions() -> dict[str, str]:
    """Return the versions of what turns files into pixels, for the recipe of features.

    Examples
    --------
    >>> sorted(decoder_versions())
    ['av', 'libavcodec', 'libswscale', 'pillow']
    """
    return {**film_versions(), "pillow": PIL.__version__}


def _checked_rate(folder_fps: float) -> float:
    if not 0 < folder_fps < math.inf:
        raise FeatureError(f"folder_fps must be a positive number of frames a second, got {folder_fps!r}")
    return float(folder_fps)
