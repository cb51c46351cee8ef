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
from meidbench.extraction.frames import DecodingResult, Frame, FrameRule, FrameStream, Restart, join_lines

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


def read_images(folder: Path, rule: FrameRule, folder_fps: float) -> FrameStream:
    """Read the chosen frames of a folder; see ``meidbench.extraction.decoding.read_frames``."""
    try:
        names = _list_images(folder)
    except OSError as error:
        return DecodingResult.from_failure(f"the folder cannot be listed: {error.strerror}")
    except _UnreadableError as error:
        return DecodingResult.from_failure(str(error))
    if not names:
        return DecodingResult.from_failure("no images that are numbered as frames")
    indices = np.arange(len(names))
    rows = rule.choose(indices / folder_fps)
    given = False
    try:
        for index in np.unique(rows).tolist():
            yield Frame(index, _load_image(folder / names[index]))
            given = True
    except _UnreadableError:
        if given:
            yield Restart()
        return (yield from _read_undamaged(folder, names, rule, folder_fps))
    return DecodingResult(rows.astype(np.int32), rows / folder_fps, "ok", "", len(names), 0)


def _read_undamaged(folder: Path, names: list[str], rule: FrameRule, folder_fps: float) -> FrameStream:
    """Choose among the images that can be read."""
    readable, first = [], ""
    for index, name in enumerate(names):
        frames.heartbeat()
        try:
            _load_image(folder / name)
            readable.append(index)
        except _UnreadableError as error:
            first = first or f"{name}: {error}"
    num_bad = len(names) - len(readable)
    reason = f"{num_bad:,} of {len(names):,} images cannot be read ({first})"
    if not readable:
        return DecodingResult.from_failure(reason, len(names), num_bad)
    indices = np.array(readable)
    rows = indices[rule.choose(indices / folder_fps)]
    for index in np.unique(rows).tolist():
        try:
            yield Frame(index, _load_image(folder / names[index]))
        except _UnreadableError as error:
            reason = f"{names[index]} could be read once and not again: {error}"
            return DecodingResult.from_failure(reason, len(names), num_bad)
    return DecodingResult(rows.astype(np.int32), rows / folder_fps, "salvaged", join_lines(reason), len(names), num_bad)


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
