"""The videos of a folder: files that hold films, and folders of images."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.extraction.frame_folders import frame_number
from meidbench.features.source import UnusableVideo, check_id

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_MOST_NOTED = 100


@dataclass(frozen=True)
class Video:
    """A video, not opened yet.

    Attributes
    ----------
    video_id : str
        Name of the file without its suffix, or of the folder.
    path : Path
        Where it is.
    is_folder : bool
        Whether it is a folder of images, one a frame.
    size : int
        Bytes of a file; images of a folder.
    """

    video_id: str
    path: Path
    is_folder: bool
    size: int


@dataclass(frozen=True)
class Listing:
    """What ``find_videos`` found.

    Attributes
    ----------
    videos : tuple of Video
        In the order of their ids.
    missing : tuple of str
        Ids that were asked for and are not there, in order.
    """

    videos: tuple[Video, ...]
    missing: tuple[str, ...]


def find_videos(folder: str | os.PathLike[str], only: Iterable[str] | None = None) -> Listing:
    """Find the videos of a folder and the folders below it.

    Parameters
    ----------
    folder : path
        A video is a file with one of ``VIDEO_SUFFIXES``, in capitals or not, or a folder of images that are
        named after it (``ATOYW/ATOYW-000001.jpg``; jpg, jpeg or png). Hidden files and folders are left out,
        links are followed.
    only : iterable of str, optional
        Ids of the videos that are wanted; all by default.

    Raises
    ------
    FeatureError
        The folder is missing or cannot be listed, no wanted video is in it, none is wanted, two have the same
        id, or a name cannot be used as an id.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "ATOYW.mp4").write_bytes(b"...")
    ...     listing = find_videos(folder, only=["ATOYW", "YSE0N"])
    >>> [(video.video_id, video.is_folder, video.size) for video in listing.videos], listing.missing
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
    found: dict[str, Video] = {}
    others: dict[str, list[Path]] = {}
    unwanted: list[str] = []
    for video in _walk(root.absolute(), wanted, unwanted):
        if video.video_id in found:
            others.setdefault(video.video_id, []).append(video.path)
        else:
            found[video.video_id] = video
    if others:
        raise _doubled(root, found, others)
    _check_ids(root, found)
    if not found:
        if unwanted:
            raise FeatureError(
                f"none of the {len(wanted or ()):,} videos asked for is in {root}: asked for "
                f"{first_few(sorted(wanted or ()))}; there are others, such as {min(unwanted)}\n"
                "Name the folder of this dataset's videos."
            )
        raise FeatureError(
            f"there are no videos in {root}; expected files ending in {', '.join(VIDEO_SUFFIXES)}, or folders of "
            "images named after the folder (ID/ID-000001.jpg)"
        )
    videos = tuple(found[video_id] for video_id in sorted(found))
    return Listing(videos, tuple(sorted((wanted or set()).difference(found))))


def _walk(root: Path, wanted: set[str] | None, unwanted: list[str]) -> Iterator[Video]:
    """Yield every wanted video below a folder, and note a few others; no folder is walked twice, links or not."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            videos, folders, num_images = _look_into(folder, wanted, unwanted)
        except OSError as error:
            raise FeatureError(f"cannot list the folder {folder}: {error.strerror}") from None
        if num_images:
            if wanted is None or folder.name in wanted:
                yield Video(folder.name, folder, True, num_images)
            elif len(unwanted) < _MOST_NOTED:
                unwanted.append(folder.name)
            continue
        yield from videos
        # Links last, so that a folder is named by where it is rather than by a link to it.
        folders.sort(key=lambda entry: (not entry.is_symlink(), entry.name), reverse=True)
        waiting[:0] = [Path(entry.path) for entry in folders if entry.is_symlink()]
        waiting.extend(Path(entry.path) for entry in folders if not entry.is_symlink())


def _look_into(
    folder: Path, wanted: set[str] | None, unwanted: list[str]
) -> tuple[list[Video], list["os.DirEntry[str]"], int]:
    """Return the video files of a folder, its folders, and how many images it has as frames of one video."""
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
                if wanted is not None and stem not in wanted:
                    # Not even its size is asked for: on a network file system that is what takes the time.
                    if len(unwanted) < _MOST_NOTED:
                        unwanted.append(stem)
                elif (status := _regular(entry)) is not None:
                    videos.append(Video(stem, Path(entry.path), False, status.st_size))
    return videos, folders, num_images


def _regular(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """Return the status of a file, of what it links to; None for folders, pipes, and links to nothing."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _doubled(root: Path, found: dict[str, Video], others: dict[str, list[Path]]) -> FeatureError:
    shown = [
        f"{video_id}: {first_few(sorted(str(path) for path in (found[video_id].path, *others[video_id])))}"
        for video_id in sorted(others)[:5]
    ]
    return FeatureError(
        f"{len(others):,} ids in {root} are of more than one video:\n{bullet_list(shown)}\n"
        "Keep one of each, or name a folder that holds only one version of the videos."
    )


def _check_ids(root: Path, found: dict[str, Video]) -> None:
    refused = []
    for video_id in found:
        try:
            check_id(video_id)
        except UnusableVideo:
            refused.append(ascii(video_id))
    if refused:
        raise FeatureError(
            f"{len(refused):,} names in {root} cannot be used as ids (a dot, with a path separator, or not UTF-8): "
            f"{first_few(sorted(refused))}; rename these videos"
        )
