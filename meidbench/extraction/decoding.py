"""Video files, through PyAV: the frames that their packets announce, and the chosen frames decoded."""

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
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

from meidbench.errors import FeatureError, write_count
from meidbench.extraction import frames
from meidbench.extraction.frame_folders import count_images, read_images
from meidbench.extraction.frames import Frame, FrameRule, FrameStream, join_lines
from meidbench.extraction.selection import FrameSelection, SampleResult, SampleStream, find_range
from meidbench.extraction.videos import Video

# Codecs of which a frame that is marked as no reference can be left out without changing any other frame. HEVC's mark
# holds within one temporal layer only, and MPEG-4's decoder conceals damage otherwise after a frame was left out.
_SKIPPABLE = frozenset({"h264"})
# Containers whose duration is written down rather than estimated from the bit rate.
_DURATION_IN_HEADER = frozenset({"matroska", "mov", "avi"})
# Decoders that give a frame for every packet. Of others a packet can hold a hidden frame, or say that one is left out.
_FRAME_PER_PACKET = frozenset({"h264", "hevc", "vp9", "libdav1d", "av1", "mjpeg"})
# AVI counts packets in the order of decoding, and libav does not derive H.264's order of display from it.
_NO_TIMES_OF_DISPLAY = ("avi", "h264")
_ATTACHED_PICTURE = 0x400
# A damaged header can put a frame years away; no video to be recognised is longer than three days.
_LONGEST = 72 * 3600
_MOST_FAILED_READS = 16


class _UnusableError(Exception):
    """A file gives no frame; the message says why."""


class _UnexpectedFrameError(Exception):
    """The frames are not those that the packets announced."""


def _read_file(path: Path, selection: FrameSelection) -> SampleStream:
    """Read the chosen frames of a file; see :func:`read_samples`."""
    try:
        scan = _scan_packets(path)
        if not scan.doubt:
            yield from selection.choose(scan.times, cut=scan.cut)
            try:
                yield from _read_announced(path, scan, selection)
                return
            except _UnexpectedFrameError:
                pass
        yield from _read_counted(path, scan, selection)
    except _UnusableError as error:
        yield from selection.fail(str(error))


def _read_announced(path: Path, scan: "_PacketScan", selection: FrameSelection) -> SampleStream:
    """Read frames by their positions among the packets' timestamps, or raise ``_UnexpectedFrameError``."""
    wanted = {int(scan.pts[index]): index for index in selection.frames}
    if not wanted:
        return
    known = frozenset(scan.pts.tolist())
    reformatter = VideoReformatter()
    damage = _Damage()
    last: int | None = None
    position = 0
    with _open_file(path) as (container, stream):
        complete = stream.codec_context.codec.name not in _SKIPPABLE
        for frame in _decode_frames(container, stream, damage, frozenset(wanted)):
            pts = frame.pts
            damaged = frame.is_corrupt or damage.packets or damage.reads
            if damaged or pts is None or pts not in known or (last is not None and pts <= last):
                raise _UnexpectedFrameError
            # Where no frame is skipped, a packet without a frame shows at once.
            if complete and pts != scan.pts[position]:
                raise _UnexpectedFrameError
            last, position = pts, position + 1
            if pts in wanted:
                yield from selection.take(Frame(wanted.pop(pts), _to_image(frame, reformatter)))
                if not wanted:
                    return
    raise _UnexpectedFrameError


def _read_counted(path: Path, scan: "_PacketScan", selection: FrameSelection) -> SampleStream:
    """Decode everything, choose among the decoded frames, and decode everything again to take them."""
    damage = _Damage()
    times = _count_frames(path, damage, scan)
    if not len(times):
        yield from selection.fail(f"no frame could be decoded: {damage.first or scan.doubt or 'none came'}")
        return
    yield from selection.choose(
        times,
        damage.describe(len(times)),
        damaged_from=0 if damage.lost else damage.before or 0,
        cut=scan.cut,
        corrupt_frames=damage.frames,
    )
    wanted = set(selection.frames)
    reformatter = VideoReformatter()
    with _open_file(path) as (container, stream):
        for index, frame in enumerate(_decode_frames(container, stream, _Damage()) if wanted else ()):
            if index in wanted:
                yield from selection.take(Frame(index, _to_image(frame, reformatter)))
                wanted.remove(index)
                if not wanted:
                    break
    yield from selection.fail("decodes differently each time")


def _count_frames(path: Path, damage: "_Damage", scan: "_PacketScan") -> npt.NDArray[np.float64]:
    """Decode everything, and return the time of each frame in seconds since the first."""
    pts: list[int | None] = []
    with _open_file(path) as (container, stream):
        complete = stream.codec_context.codec.name in _FRAME_PER_PACKET and not scan.doubt
        for frame in _decode_frames(container, stream, damage):
            damage.frames += bool(frame.is_corrupt)
            if damage.before is None and (damage.packets or damage.reads or damage.frames):
                damage.before = len(pts)
            pts.append(frame.pts)
        rates = [stream.average_rate, stream.guessed_rate]
    if not pts:
        return np.empty(0)
    if scan.dts is not None and len(pts) == len(scan.dts):
        return scan.times
    if None not in pts:
        known = np.array(pts, dtype=np.int64)
        if complete:
            lost = np.setdiff1d(scan.pts[scan.pts > known[0]], known)
            # Interlaced streams may have two packets per frame.
            damage.lost = len(lost) if len(lost) < len(scan.pts) / 4 else 0
        if (np.diff(known) > 0).all() and (known[-1] - known[0]) * scan.time_base <= _LONGEST:
            return _to_seconds(known, scan.time_base)
    if None in pts or scan.dts is not None:
        # Without times the average is the reader's assumption, or it counts fields.
        rates.reverse()
    return _to_seconds(np.arange(len(pts)), 1 / _to_fraction(rates[0] or rates[1] or Fraction(25)))


@dataclass
class _Damage:
    """Damage that was found while a file was read."""

    packets: int = 0
    reads: int = 0
    frames: int = 0
    before: int | None = None  # frames that came before the first damage
    lost: int = 0  # frames that packets announced and that did not come
    first: str = ""

    def note(self, error: Exception) -> None:
        self.first = self.first or _describe_error(error)

    def describe(self, num_frames: int) -> str:
        parts = []
        if self.packets or self.reads:
            what = "packets could not be decoded" if self.packets else "places could not be read"
            number = self.packets or self.reads
            parts.append(f"{number:,} {what} ({self.first}); frames taken from the {num_frames:,} that could")
        if self.lost and not parts:
            parts.append(
                f"{write_count(self.lost, 'frame that packets announce', 'frames that packets announce')} did not come"
            )
        if self.frames:
            parts.append(f"{self.frames:,} of {num_frames:,} frames are damaged")
        return "; ".join(parts)


def _describe_error(error: Exception) -> str:
    """Return the text of an error without the path that libav and Python add."""
    return join_lines(getattr(error, "strerror", None) or type(error).__name__, 120)


@dataclass(frozen=True)
class _PacketScan:
    """The frames of a file as its packets announce them, before any is decoded."""

    pts: npt.NDArray[np.int64]  # of the frames that are shown, ascending
    time_base: Fraction
    doubt: str  # why they cannot be trusted
    cut: str  # whether and where the file ends too early
    dts: npt.NDArray[np.int64] | None = None  # times of decoding, where the container keeps none of display

    @property
    def times(self) -> npt.NDArray[np.float64]:
        return _to_seconds(self.pts if self.dts is None else self.dts, self.time_base)


def _to_fraction(rational: Any) -> Fraction:
    """Convert a rate or time base, which PyAV 19 gives in a type of its own."""
    return Fraction(rational.numerator, rational.denominator)


def _to_seconds(pts: npt.NDArray[np.int64], time_base: Fraction) -> npt.NDArray[np.float64]:
    """Return seconds since the first frame; whole numbers until the one division, so that no error adds up."""
    return (pts - pts[0]) * time_base.numerator / time_base.denominator  # type: ignore[no-any-return]


def _scan_packets(path: Path) -> _PacketScan:
    damage = _Damage()
    shown: list[int] = []
    decoded: list[int | None] = []
    doubt = ""
    ends = 0.0
    with _open_file(path) as (container, stream):
        assert stream.time_base is not None
        in_order_of_decoding = (container.format.name, stream.codec_context.codec.name) == _NO_TIMES_OF_DISPLAY
        if in_order_of_decoding and stream.codec_context.has_b_frames:
            doubt = "the container keeps no times of display"
        for packet in _read_packets(container, damage):
            if packet.pts is not None and packet.time_base is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * _to_fraction(packet.time_base)))
            if packet.stream_index != stream.index:
                continue
            if packet.is_corrupt:
                doubt = doubt or "a packet is damaged"
            if packet.is_discard:
                continue
            decoded.append(packet.dts)
            if packet.pts is None:
                doubt = doubt or "a packet has no time"
            else:
                shown.append(packet.pts)
        time_base = _to_fraction(stream.time_base)
        announced = _announced_end(container)
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
    if announced is not None and announced - ends > max(0.5, 0.02 * announced):
        cut = f"ends at {ends:.1f} s, its header says {announced:.1f} s"
    dts = np.array(decoded if in_order_of_decoding and None not in decoded else [], dtype=np.int64)
    return _PacketScan(
        pts, time_base, doubt, cut, dts if len(dts) == len(pts) > 0 and (np.diff(dts) > 0).all() else None
    )


def _announced_end(container: InputContainer) -> float | None:
    """Return the end of the last stream by the header, in seconds; None where the header does not give it."""
    if _DURATION_IN_HEADER.isdisjoint(container.format.name.split(",")) or container.duration is None:
        return None
    return float(container.duration + (container.start_time or 0)) / av.time_base


def _open_container(path: str) -> InputContainer:
    """Open a file whatever bytes its metadata holds: PyAV 19 takes any, earlier versions where told to."""
    # A playlist under the name of a video must not open other addresses.
    options = {"protocol_whitelist": "file"}
    try:
        return av.open(path, container_options=options)
    except UnicodeDecodeError:
        replaced: dict[str, Any] = {"metadata_errors": "replace"}
        container: InputContainer = av.open(path, container_options=options, **replaced)
        return container


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _UnusableError("not a regular file")
        if not status.st_size:
            raise _UnusableError("empty file")
        # Python reports what libav does not: that a file may not be read.
        path.open("rb").close()
        container = _open_container(os.fspath(path.absolute()))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _UnusableError(f"cannot be opened: {_describe_error(error)}") from None
    with container:
        stream = _choose_stream(container)
        stream.codec_context.thread_count = 1
        yield container, stream


def _choose_stream(container: InputContainer) -> VideoStream:
    """Return the stream that libav calls the best, except cover art."""
    streams = [stream for stream in container.streams.video if not stream.disposition.value & _ATTACHED_PICTURE]
    if not streams:
        raise _UnusableError("no video stream")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
    if stream.codec_context is None:
        raise _UnusableError("no decoder for its video stream")
    return stream


def _read_packets(container: InputContainer, damage: _Damage, *streams: VideoStream) -> "Iterator[Packet[Any]]":
    """Yield the packets of a stream or of all; where reading fails, continue behind.

    Packets without content are left out: to a decoder they mean the end.
    """
    failures = 0
    while True:
        try:
            for packet in container.demux(*streams):
                frames.heartbeat()
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


def _decode_frames(
    container: InputContainer, stream: VideoStream, damage: _Damage, wanted: frozenset[int] | None = None
) -> Iterator[VideoFrame]:
    """Yield frames in the decoder's order: all, or those wanted and those that others refer to."""
    context = stream.codec_context
    skipping = context.codec.name in _SKIPPABLE
    for packet in chain(_read_packets(container, damage, stream), [None]):
        if skipping and wanted is not None and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            decoded = context.decode(packet)
        except av.FFmpegError as error:
            damage.packets += 1
            damage.note(error)
            continue
        yield from decoded


def _to_image(frame: VideoFrame, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """Turn a decoded frame into an upright RGB array; the reformatter keeps swscale's state between frames."""
    try:
        image = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    except (av.FFmpegError, ValueError) as error:
        raise _UnusableError(f"frames cannot be turned into RGB: {_describe_error(error)}") from None
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return np.ascontiguousarray(image if data is None else _rotate(image, np.frombuffer(data, dtype=np.int32)))


def _rotate(image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Rotate and mirror an image by its display matrix, to the nearest quarter turn.

    The matrix maps (x, y) to (ax + cy, bx + dy), y downwards, and is stored as a b u c d v x y w (ISO/IEC
    14496-12, 6.2.2).
    """
    a, b, c, d = (int(matrix[position]) for position in (0, 1, 3, 4))
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def read_frames(video: Video, rule: FrameRule, *, folder_fps: float = 24.0) -> FrameStream:
    """Read the chosen frames of a video, one at a time.

    Parameters
    ----------
    video : Video
    rule : FrameRule
    folder_fps : float
        Frames per second of a folder of images, which does not record it; 24 in Charades' release. Other values than
        positive numbers raise FeatureError.

    Returns
    -------
    generator of Frame or Restart
        Every chosen frame once, in the order of time, rotated as the file says; frames that an edit list hides are left
        out. A ``Restart`` voids every frame before it: damage was found, and frames are chosen again among those that
        can be decoded. The generator returns the ``DecodingResult``; damaged media never raise. Frames of a folder are
        as Pillow reads them, without regard to orientation tags.

    Notes
    -----
    The number of frames comes from the timestamps of the packets, never from a header. Frames that no row takes and
    no other frame refers to are not decoded, where the codec allows this. Where timestamps are missing, repeated or
    wrong, or a packet cannot be decoded, everything is decoded twice: to count, and to take. Decoding uses one thread
    and holds at most one frame.

    A file that was cut short is recognised where its header gives a duration and more than half a second and 2 % of
    it are missing. Four kinds of damage are not recognised: a cut at the end of a file without such a header (a raw
    stream, a fragmented or live recording); damage to frames that were not decoded; packets that the reader of a
    damaged Matroska or AVI file passes over; damage that the decoder conceals without a word, most often of HEVC, VP8
    and VP9. The pixels of a damaged frame may depend on what the decoder's memory held, so
    that they, unlike all others, may differ when the file is read again.
    """
    return _read_one(read_samples([video], rule, folder_fps=folder_fps))


def _read_one(stream: SampleStream) -> FrameStream:
    for item in stream:
        if isinstance(item, SampleResult):
            stream.close()
            return item.result
        yield item
    raise AssertionError("every sample has a result")


def read_samples(videos: Sequence[Video], rule: FrameRule, *, folder_fps: float = 24.0) -> SampleStream:
    """Read the chosen frames of several samples of one video in one pass, one frame at a time.

    Parameters
    ----------
    videos : sequence of Video
        At least one; all have the same ``path``, and each its own ``span`` or none.
    rule, folder_fps : FrameRule and float
        As for ``read_frames``. The rule chooses among the frames of each span.

    Returns
    -------
    generator of Frame, Restart or SampleResult
        Every frame that a sample takes once, with the samples that take it (``Frame.takers``), and after the last frame
        of each sample its result. A ``Restart`` voids the frames of the samples that have no result yet.

    Notes
    -----
    A sample without damage has the rows that it has when it is read alone. Damage that lies before the end of a
    sample, also outside of it, is told in its reason.
    """
    folder_fps = check_folder_fps(folder_fps)
    selection = FrameSelection([video.span for video in videos], rule)
    path = videos[0].path
    return read_images(path, selection, folder_fps) if videos[0].is_folder else _read_file(path, selection)


def count_rows(video: Video, rule: FrameRule, *, folder_fps: float = 24.0) -> int:
    """Return the largest number of rows that ``read_frames`` can give, without decoding where possible.

    It is exact for an undamaged video; a damaged one may give fewer rows, never more. It is 0 where the video cannot
    be opened. A ``folder_fps`` that is not a positive number raises FeatureError.
    """
    return count_sample_rows([video], rule, folder_fps=folder_fps)[0]


def count_sample_rows(videos: Sequence[Video], rule: FrameRule, *, folder_fps: float = 24.0) -> list[int]:
    """Return what ``count_rows`` does for each of several samples of one video, whose packets are read once."""
    folder_fps = check_folder_fps(folder_fps)
    path = videos[0].path
    try:
        if videos[0].is_folder:
            times = np.arange(count_images(path)) / folder_fps
        elif rule.fixed_rows is not None:
            with _open_file(path):
                return [rule.fixed_rows] * len(videos)
        else:
            scan = _scan_packets(path)
            times = _count_frames(path, _Damage(), scan) if scan.doubt else scan.times
    except _UnusableError:
        times = np.empty(0)
    ranges = [find_range(times, video.span) for video in videos]
    return [len(rule.choose(times[first:end])) if first < end else 0 for first, end in ranges]


def check_folder_fps(folder_fps: float) -> float:
    """Return a positive number of frames per second; refuse every other value."""
    if not 0 < folder_fps < math.inf:
        raise FeatureError(f"folder_fps must be a positive number of frames per second, got {folder_fps!r}")
    return float(folder_fps)


def decoder_versions() -> dict[str, str]:
    """Return the versions of the libraries that turn files into pixels, for the recipe of features."""
    libraries = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return {"av": av.__version__, **libraries, "pillow": PIL.__version__}
