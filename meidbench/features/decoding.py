"""Frames out of videos and folders of images: the chosen ones, each decoded once, and how it went."""

import math

import numpy as np
import PIL

from meidbench.errors import FeatureError
from meidbench.features.films import count_film_rows, film_versions, read_film
from meidbench.features.frames import FRAME_RULES, Frame, FrameRule, Outcome, Reading, Restart
from meidbench.features.pictures import count_images, read_images
from meidbench.features.videos import Video

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
    >>> from meidbench.features.videos import find_videos
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
