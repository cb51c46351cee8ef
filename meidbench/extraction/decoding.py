"""The chosen frames of a video, decoded from a file by PyAV or from a folder of images by Pillow."""

import math

import av
import numpy as np
import PIL

from meidbench.errors import FeatureError
from meidbench.extraction.frame_folders import count_images, read_images
from meidbench.extraction.frames import FrameRule, FrameStream
from meidbench.extraction.video_files import count_file_rows, read_file
from meidbench.extraction.videos import Video


def read_frames(video: Video, rule: FrameRule, *, folder_fps: float = 24.0) -> FrameStream:
    """Read the chosen frames of a video, one at a time.

    Parameters
    ----------
    video : Video
        From ``find_videos``.
    rule : FrameRule
        Which frames are taken.
    folder_fps : float
        Frames per second of a folder of images, which does not record it; 24 in Charades' release.

    Returns
    -------
    generator of Frame or Restart
        Every chosen frame once, in the order of time, with rotation metadata applied; frames that an edit list hides
        are left out. A ``Restart`` voids every frame before it: damage was found, and
        frames are chosen anew among those that can be decoded. The generator returns the ``DecodingResult``. Damaged
        media never raise; they end as ``failed`` or ``salvaged``. Frames of a folder are as Pillow reads them,
        without regard to orientation tags.

    Raises
    ------
    FeatureError
        ``folder_fps`` is not a positive number.

    Notes
    -----
    The number of frames comes from the timestamps of the packets, never from a header. Frames that no row takes and
    no other frame refers to are not decoded, where the codec allows to leave them out. Where timestamps are missing,
    repeated or wrong, or a packet cannot be decoded, everything is decoded twice: to count, and to take. Decoding
    uses one thread and holds at most one frame.

    A file that was cut short is recognised where its header gives a duration and more than half a second and 2 % of
    it are missing. Three kinds of damage are not recognised: a cut at the end of a file without such a header (a raw
    stream, a fragmented or live recording); damage to frames that were not decoded; packets that the reader of a
    damaged Matroska file passes over. The pixels of a damaged frame may depend on what the decoder's memory held, so
    that they, unlike all others, may differ when the file is read again.

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
    ...     frames = read_frames(find_videos(folder).videos[0], FrameRule.from_text("uniform=3"))
    ...     [(frame.index, frame.image[0, 0].tolist()) for frame in frames]
    [(0, [1, 0, 0]), (2, [3, 0, 0]), (4, [5, 0, 0])]
    """
    folder_fps = check_folder_fps(folder_fps)
    return read_images(video.path, rule, folder_fps) if video.is_folder else read_file(video.path, rule)


def count_rows(video: Video, rule: FrameRule, *, folder_fps: float = 24.0) -> int:
    """Return the largest number of rows that ``read_frames`` can give, without decoding where possible.

    It is exact for an undamaged video; a damaged one may give fewer rows, never more. It is 0 where the video cannot
    be opened. A ``folder_fps`` that is not a positive number raises FeatureError.
    """
    folder_fps = check_folder_fps(folder_fps)
    if not video.is_folder:
        return count_file_rows(video.path, rule)
    num_images = count_images(video.path)
    return len(rule.choose(np.arange(num_images) / folder_fps)) if num_images else 0


def check_folder_fps(folder_fps: float) -> float:
    """Return a positive number of frames per second; refuse every other value."""
    if not 0 < folder_fps < math.inf:
        raise FeatureError(f"folder_fps must be a positive number of frames per second, got {folder_fps!r}")
    return float(folder_fps)


def decoder_versions() -> dict[str, str]:
    """Return the versions of the libraries that turn files into pixels, for the recipe of features.

    Examples
    --------
    >>> sorted(decoder_versions())
    ['av', 'libavcodec', 'libswscale', 'pillow']
    """
    libraries = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return {"av": av.__version__, **libraries, "pillow": PIL.__version__}
