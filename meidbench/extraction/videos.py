"""The videos of a folder: video files, and folders of images."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.extraction.frame_folders import frame_number
from meidbench.features.source import is_usable_id

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_MOST_OTHERS = 100


@dataclass(frozen=True)
class Video:
    """A video that was found and not opened: a file, or a folder of images, one per frame."""

    video_id: str  # name of the file without its suffix, or of the folder
    path: Path
    is_folder: bool
    size: int  # bytes of a file, images of a folder


@dataclass(frozen=True)
class VideoList:
    """The videos that ``find_videos`` found, and the requested ids that it did not find, both in the order of ids."""

    videos: tuple[Video, ...]
    missing: tuple[str, ...]


def find_videos(folder: str | os.PathLike[str], only: Iterable[str] | None = None) -> VideoList:
    """Find the videos of a folder and the folders below it.

    Parameters
    ----------
    folder : path
        A video is a file with one of ``VIDEO_SUFFIXES``, in capitals or not, or a folder of images that are
        named after it (``ATOYW/ATOYW-000001.jpg``; jpg, jpeg or png). Hidden files and folders are left out,
        links are followed.
    only : iterable of str, optional
        Ids of the wanted videos; all by default.

    Raises
    ------
    FeatureError
        The folder is missing or cannot be listed, it has no wanted video, ``only`` is empty, two videos have the
        same id, or a name cannot be used as an id.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "ATOYW.mp4").write_bytes(b"...")
    ...     found = find_videos(folder, only=["ATOYW", "YSE0N"])
    >>> [(video.video_id, video.is_folder, video.size) for video in found.videos], found.missing
    ([('ATOYW', False, 3)], ('YSE0N',))
    """
    root = Path(folder)
    if not root.exists():
        raise FeatureError(f"there is no folder {root}; name the one that holds the videos")
    if not root.is_dir():
        raise FeatureError(f"{root} is not a folder; name the one that holds the videos")
    if isinstance(only, str):
        raise FeatureError(f"only must be a collection of ids, got the text {only!r}")
    wanted = None if only is None else set(only)
    if wanted is not None and not wanted:
        raise FeatureError("only names no video; leave it out to find all")
    found: dict[str, list[Video]] = {}
    for video in _walk(root.absolute(), wanted):
        found.setdefault(video.video_id, []).append(video)
    _refuse_double_ids(root, found)
    _refuse_unusable_ids(root, found)
    if not found:
        if wanted and (others := [video.video_id for video in islice(_walk(root.absolute(), None), _MOST_OTHERS)]):
            raise FeatureError(
                f"none of the {len(wanted):,} videos asked for is in {root}: asked for {first_few(sorted(wanted))}; "
                f"there are others, such as {min(others)}\nName the folder of this dataset's videos."
            )
        raise FeatureError(
            f"there are no videos in {root}; expected files ending in {', '.join(VIDEO_SUFFIXES)}, or folders of "
            "images named after the folder (ID/ID-000001.jpg)"
        )
    videos = tuple(found[video_id][0] for video_id in sorted(found))
    return VideoList(videos, tuple(sorted((wanted or set()).difference(found))))


def _walk(root: Path, wanted: set[str] | None) -> Iterator[Video]:
    """Yield every wanted video below a folder; no folder is walked twice, links or not."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            videos, folders, num_images = _list_folder(folder, wanted)
        except OSError as error:
            raise FeatureError(f"cannot list the folder {folder}: {error.strerror}") from None
        if num_images:
            if wanted is None or folder.name in wanted:
                yield Video(folder.name, folder, True, num_images)
            continue
        yield from videos
        # Links last, so that a folder is named by where it is rather than by a link to it.
        folders.sort(key=lambda entry: (not entry.is_symlink(), entry.name), reverse=True)
        waiting[:0] = [Path(entry.path) for entry in folders if entry.is_symlink()]
        waiting.extend(Path(entry.path) for entry in folders if not entry.is_symlink())


def _list_folder(folder: Path, wanted: set[str] | None) -> tuple[list[Video], list["os.DirEntry[str]"], int]:
    """Return the video files of a folder, its folders, and the number of its images that are frames of one video."""
    videos: list[Video] = []
    folders: list[os.DirEntry[str]] = []
    num_images = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if frame_number(folder.name, entry.name) is not None:
                num_images += entry.is_file()
            elif entry.is_dir():
                folders.append(entry)
            elif entry.name.lower().endswith(VIDEO_SUFFIXES):
                stem = entry.name.rpartition(".")[0]
                # The size of others is not read: on a network file system that takes most of the time.
                if (wanted is None or stem in wanted) and (size := _file_size(entry)) is not None:
                    videos.append(Video(stem, Path(entry.path), False, size))
    return videos, folders, num_images


def _file_size(entry: "os.DirEntry[str]") -> int | None:
    """Return the size of a file, also of a linked one; None for pipes and broken links."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _refuse_double_ids(root: Path, found: dict[str, list[Video]]) -> None:
    if doubled := sorted(video_id for video_id, videos in found.items() if len(videos) > 1):
        lines = [f"{each}: {first_few(sorted(str(video.path) for video in found[each]))}" for each in doubled[:5]]
        raise FeatureError(
            f"{len(doubled):,} ids in {root} are of more than one video:\n{bullet_list(lines)}\n"
            "Keep one of each, or name a folder that holds only one version of the videos."
        )


def _refuse_unusable_ids(root: Path, video_ids: Iterable[str]) -> None:
    if refused := [ascii(video_id) for video_id in video_ids if not is_usable_id(video_id)]:
        raise FeatureError(
            f"{len(refused):,} names in {root} cannot be used as ids (a dot, with a path separator, or not UTF-8): "
            f"{first_few(sorted(refused))}; rename these videos"
        )
