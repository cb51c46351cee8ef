"""Videos that are stored as folders of images, one a frame, as Charades gives them out at 24 frames a second."""

import os
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from meidbench.extraction import frames
from meidbench.extraction.frames import Frame, FrameRule, Outcome, Reading, Restart, failed, one_line

_NUMBERED = re.compile(r"-([0-9]+)\.(?:jpg|jpeg|png)", re.IGNORECASE)


def frame_number(folder_name: str, name: str) -> int | None:
    """Return the number of a frame, or None where ``name`` is not an image of that folder's video.

    Examples
    --------
    >>> frame_number("ATOYW", "ATOYW-000012.jpg"), frame_number("ATOYW", "preview.jpg")
    (12, None)
    """
    if not name.startswith(folder_name):
        return None
    match = _NUMBERED.fullmatch(name, len(folder_name))
    return int(match[1]) if match else None


def count_images(folder: Path) -> int:
    """Count the frames of a folder without opening any; 0 where the folder cannot be listed."""
    try:
        return len(_images(folder))
    except (OSError, _Ambiguous):
        return 0


def read_images(folder: Path, rule: FrameRule, folder_fps: float) -> Reading:
    """Read the chosen frames of a folder; see ``meidbench.extraction.decoding.read_frames``."""
    try:
        names = _images(folder)
    except OSError as error:
        return failed(f"the folder cannot be listed: {error.strerror}")
    except _Ambiguous as error:
        return failed(str(error))
    if not names:
        return failed("no images named after the folder")
    places = np.arange(len(names))
    rows = rule.choose(places / folder_fps)
    given = False
    for place in np.unique(rows).tolist():
        try:
            image = _load(folder / names[place])
        except _Unreadable:
            break
        yield Frame(place, image)
        given = True
    else:
        return Outcome(rows.astype(np.int32), rows / folder_fps, "ok", "", len(names), 0)
    if given:
        yield Restart()
    return (yield from _read_readable(folder, names, rule, folder_fps))


def _read_readable(folder: Path, names: list[str], rule: FrameRule, folder_fps: float) -> Reading:
    readable, first = [], ""
    for place, name in enumerate(names):
        frames.pulse()
        try:
            _load(folder / name)
            readable.append(place)
        except _Unreadable as error:
            first = first or f"{name}: {error}"
    num_bad = len(names) - len(readable)
    reason = f"{num_bad:,} of {len(names):,} images cannot be read ({first})"
    if not readable:
        return failed(reason, len(names), num_bad)
    places = np.array(readable)
    rows = places[rule.choose(places / folder_fps)]
    for place in np.unique(rows).tolist():
        try:
            yield Frame(place, _load(folder / names[place]))
        except _Unreadable as error:
            return failed(f"{names[place]} could be read once and not again: {error}", len(names), num_bad)
    return Outcome(rows.astype(np.int32), rows / folder_fps, "salvaged", one_line(reason), len(names), num_bad)


class _Unreadable(Exception):
    """An image cannot be read."""


class _Ambiguous(Exception):
    """Two images have one number."""


def _images(folder: Path) -> list[str]:
    """Return the names of the frames in the order of their numbers."""
    numbered: list[tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            number = frame_number(folder.name, entry.name)
            if number is not None and entry.is_file():
                numbered.append((number, entry.name))
    numbered.sort()
    for (number, name), (next_number, next_name) in pairwise(numbered):
        if number == next_number:
            raise _Ambiguous(f"two images have the number {number}: {name} and {next_name}")
    return [name for _, name in numbered]


def _load(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Odd metadata is no news to anyone here; what cannot be read raises.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                pixels: npt.NDArray[Any] = np.array(image.convert("RGB"))
        return np.ascontiguousarray(pixels)
    except OSError as error:
        # Pillow's own messages name the file.
        raise _Unreadable(error.strerror or _told(error, path)) from None
    except Exception as error:
        # Pillow lets through what its parsers raise on damaged files: SyntaxError, zlib.error, struct.error, ...
        raise _Unreadable(_told(error, path)) from None


def _told(error: Exception, path: Path) -> str:
    text = one_line(str(error).replace(str(path), path.name), 120)
    return text or type(error).__name__
