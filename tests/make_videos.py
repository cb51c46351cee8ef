"""Makes small videos of every kind for the tests of decoding."""

import random
import struct
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

# A build of PyAV may lack encoders; the tests that need one check for it.
ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC
# Without it Matroska draws random identifiers, and damage hits another file each time.
BIT_EXACT = {"fflags": "+bitexact"}
# The same pictures give the same bytes only without look-ahead threads and without code for one processor alone.
X264_REPEATABLE = {"x264-params": "lookahead-threads=1:sync-lookahead=0:cpu-independent=1"}
X264_LONG_GOP = {"g": "250", "bf": "3", "preset": "veryfast", "threads": "1"}


def pictures(count: int, width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: a drifting gradient, a moving block and a little noise; no two alike."""
    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    images = np.empty((count, height, width, 3), np.uint8)
    for number, image in enumerate(images):
        image[..., 0] = (x * 3 + number * 5) % 256
        image[..., 1] = (y * 4 + number * 3) % 256
        image[..., 2] = number * 7 % 256
        left = number * 2 % (width - 12)
        image[8:20, left : left + 12] = 255 - image[8:20, left : left + 12]
        image += generator.integers(0, 6, image.shape, dtype=np.uint8)
    return images


def write_video(
    path: Path,
    images: np.ndarray | list[np.ndarray],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    rate: int = 30,
    pts: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    matrix: tuple[int, int, int, int] | None = None,
    audio_seconds: float = 0.0,
    second: np.ndarray | None = None,
    container: dict[str, str] | None = None,
    container_format: str | None = None,
    title: str | None = None,
) -> Path:
    """Encode images, times in units of 1/rate; with sound, a second video stream, a display matrix where asked."""
    options = X264_LONG_GOP if options is None and codec == "libx264" else options or {}
    if codec == "libx264":
        options = X264_REPEATABLE | options
    with av.open(str(path), "w", format=container_format, options=BIT_EXACT | (container or {})) as output:
        if title is not None:
            output.metadata["title"] = title
        streams = []
        for pictures_of_stream in [images] if second is None else [images, second]:
            stream = output.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = pictures_of_stream[0].shape[:2]
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = Fraction(1, rate)
            streams.append((stream, pictures_of_stream))
        sound = output.add_stream("aac", rate=16000, layout="mono") if audio_seconds else None
        for stream, pictures_of_stream in streams:
            for number, image in enumerate(pictures_of_stream):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts = number if pts is None else pts[number]
                frame.time_base = Fraction(1, rate)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        if sound is not None:
            _write_sound(output, sound, audio_seconds)
    return path if matrix is None else patch_display_matrix(path, *matrix)


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    """A container with sound and no pictures."""
    with av.open(str(path), "w") as output:
        _write_sound(output, output.add_stream("aac", rate=16000, layout="mono"), seconds)
    return path


def _write_sound(output, stream, seconds: float) -> None:
    for number in range(int(seconds * 16000 / 1024)):
        wave = np.sin(np.arange(1024, dtype=np.float32) / 9)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, number * 1024, Fraction(1, 16000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def remux(source: Path, path: Path, *, shift: int = 0, container: dict[str, str] | None = None, times: bool = True):
    """Copy the first video stream into another container, its times moved by ``shift`` frames or left out."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=container or {}) as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        step = int(1 / stream.average_rate / stream.time_base)
        for packet in given.demux(stream):
            if not packet.size:
                continue
            packet.pts, packet.dts = packet.pts + shift * step, packet.dts + shift * step
            if not times:
                packet.pts = packet.dts = None
            packet.stream = copy
            output.mux(packet)
    return path


def join(path: Path, sources: list[Path], *, attached: int) -> Path:
    """Copy the first stream of each file into one; the one numbered ``attached`` as a cover picture."""
    with ExitStack() as stack:
        given = [stack.enter_context(av.open(str(source))).streams[0] for source in sources]
        output = stack.enter_context(av.open(str(path), "w"))
        copies = [output.add_stream_from_template(stream) for stream in given]
        copies[attached].disposition = ATTACHED_PICTURE
        for stream, copy in zip(given, copies, strict=True):
            for packet in stream.container.demux(stream):
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
    return path


def patch_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the track header of an mp4, entry by entry as ISO/IEC 14496-12 lays it out."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    assert content[at] == 0, "expected version 0 of the track header"
    at += 4 + 5 * 4 + 8 + 4 * 2
    struct.pack_into(">9i", content, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut(path: Path, source: Path, share: float) -> Path:
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


CLIP_FRAMES = (20, 3, 31, 1, 12, 25, 8, 40, 16, 5)


def write_clips(folder: Path) -> Path:
    """Ten videos, one folder of frames, and three files that are no videos."""
    for number, frames in enumerate(CLIP_FRAMES):
        write_video(folder / f"clip{number}.mp4", pictures(frames, 96, 64, seed=number))
    (folder / "pictures").mkdir()
    for number, image in enumerate(pictures(9, 80, 60, seed=99), 1):
        Image.fromarray(image).save(folder / "pictures" / f"pictures-{number:06d}.jpg")
    (folder / "empty.mp4").touch()
    (folder / "noise.avi").write_bytes(random.Random(0).randbytes(5000))
    write_sound(folder / "sound.mp4")
    return folder
