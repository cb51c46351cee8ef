"""Videos that are stored as folders of images, one per frame, as Charades publishes them at 24 frames per second."""

import os
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from meidbench.extraction import frames
from meidbench.extraction.frames import Frame, join_lines
from meidbench.extraction.selection import FrameSelection, SampleStream

_IMAGES = frozenset({"jpg", "jpeg", "png"})
# Text before the number, besides the folder's name. Of a folder with several kinds of names the first is the video.
_PREFIXES = ("frame_", "img_", "image_", "")


class _UnreadableError(Exception):
    """An image cannot be read, or a folder's images are ambiguous; the message says why."""


def parse_frame_name(folder_name: str, name: str) -> tuple[int, int] | None:
    """Return the kind of a frame's name and its number; None where ``name`` is not an image of that folder's video.

    Kind 0, Charades' ``ID-000001.jpg``, is read wherever it is found. The others are frames only where a folder holds
    no videos and no folders, because a single numbered picture would hide them.
    """
    stem, _, ending = name.rpartition(".")
    if ending.lower() not in _IMAGES:
        return None
    prefix = stem.rstrip("0123456789")
    prefixes = (f"{folder_name}-", f"{folder_name}_", *_PREFIXES)
    if prefix == stem or prefix not in prefixes:
        return None
    return prefixes.index(prefix), int(stem[len(prefix) :])


def count_images(folder: Path) -> int:
    """Count the frames of a folder without opening any; 0 where the folder cannot be listed."""
    try:
        return len(_list_images(folder))
    except (OSError, _UnreadableError):
        return 0


def read_images(folder: Path, selection: FrameSelection, folder_fps: float) -> SampleStream:
    """Read the chosen frames of a folder; see ``meidbench.extraction.decoding.read_samples``."""
    try:
        names = _list_images(folder)
    except OSError as error:
        yield from selection.fail(f"the folder cannot be listed: {error.strerror}")
        return
    except _UnreadableError as error:
        yield from selection.fail(str(error))
        return
    if not names:
        yield from selection.fail("no images that are numbered as frames")
        return
    yield from selection.choose(np.arange(len(names)) / folder_fps)
    try:
        for index in selection.frames:
            yield from selection.take(Frame(index, _load_image(folder / names[index])))
    except _UnreadableError:
        yield from _read_undamaged(folder, names, selection, folder_fps)


def _read_undamaged(folder: Path, names: list[str], selection: FrameSelection, folder_fps: float) -> SampleStream:
    """Choose among the images that can be read."""
    readable, first = [], ""
    for index, name in enumerate(names):
        frames.heartbeat()
        try:
            _load_image(folder / name)
            readable.append(index)
        except _UnreadableError as error:
            first = first or f"{name}: {error}"
    counts = len(names), len(names) - len(readable)
    reason = f"{counts[1]:,} of {counts[0]:,} images cannot be read ({first})"
    if not readable:
        yield from selection.fail(reason, *counts)
        return
    indices = np.array(readable)
    yield from selection.choose(
        indices / folder_fps, reason, numbers=indices, num_frames=counts[0], corrupt_frames=counts[1]
    )
    for index in selection.frames:
        try:
            image = _load_image(folder / names[index])
        except _UnreadableError as error:
            yield from selection.fail(f"{names[index]} could be read once and not again: {error}", *counts)
            return
        yield from selection.take(Frame(index, image))


def _list_images(folder: Path) -> list[str]:
    """Return the names of the frames in the order of their numbers."""
    kinds: dict[int, list[tuple[int, str]]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            parsed = parse_frame_name(folder.name, entry.name)
            if parsed is not None and entry.is_file():
                kinds.setdefault(parsed[0], []).append((parsed[1], entry.name))
    numbered = sorted(kinds[min(kinds)]) if kinds else []
    for (number, name), (next_number, next_name) in pairwise(numbered):
        if number == next_number:
            raise _UnreadableError(f"two images have the number {number}: {name} and {next_name}")
    return [name for _, name in numbered]


def _load_image(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of unusual metadata, which does not matter here; it raises where an image cannot be read.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                pixels: npt.NDArray[Any] = np.array(image.convert("RGB"))
        return np.ascontiguousarray(pixels)
    except Exception as error:
        # Pillow lets through what its parsers raise on damaged files: SyntaxError, zlib.error, struct.error, ...
        # Its own messages name the file with its whole path.
        reason = isinstance(error, OSError) and error.strerror
        reason = reason or join_lines(str(error).replace(str(path), path.name), 120) or type(error).__name__
        raise _UnreadableError(reason) from None
