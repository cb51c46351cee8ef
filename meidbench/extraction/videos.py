"""The videos of a folder: video files, and folders of images."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from meidbench.errors import FeatureError, bullet_list, first_few, write_count
from meidbench.extraction.frame_folders import parse_frame_name
from meidbench.features.source import is_usable_id
from meidbench.names import VIDEO_SUFFIXES
from meidbench.splits.rows import Span

_MOST_OTHERS = 100


@dataclass(frozen=True)
class Video:
    """A video that was found and not opened: a file, or a folder of images, one per frame."""

    video_id: str  # name of the file without its suffix, or of the folder
    path: Path
    is_folder: bool
    size: int  # bytes of a file, images of a folder
    span: Span | None = None  # where ``video_id`` is of a sample that is a part of the video; then there may be others


@dataclass(frozen=True)
class VideoList:
    """The videos that ``find_videos`` found, the requested ids that it did not find, and what it left out.

    Videos and ids are in the order of ids. Videos that are not requested are not left out.
    """

    videos: tuple[Video, ...]
    missing: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)  # number of other files by ending, the most frequent first
    dangling: tuple[str, ...] = ()  # links whose target is missing

    def describe_left_out(self) -> list[str]:
        """Return lines about the files, and one about the links; none where nothing was left out."""
        lines = []
        if self.left_out:
            kinds = [f"{ending} {count:,}" for ending, count in self.left_out.items()]
            number = write_count(sum(self.left_out.values()), "file that is no video", "files that are no videos")
            lines.append(f"left out: {number} ({first_few(kinds)})")
            if not {".jpg", ".jpeg", ".png"}.isdisjoint(self.left_out):
                lines.append(
                    "Frames of a video are images in a folder ID: ID-000001.jpg, ID_000001.jpg, frame_000001.jpg, "
                    "img_00001.jpg, image_1.jpg or 000001.jpg."
                )
        if self.dangling:
            number = write_count(len(self.dangling), "link")
            lines.append(f"left out: {number} whose target is missing: {first_few(self.dangling)}")
        return lines


def find_videos(folder: str | os.PathLike[str], only: Iterable[str] | None = None) -> VideoList:
    """Find the videos of a folder and the folders below it.

    Parameters
    ----------
    folder : path
        A video is a file with one of ``VIDEO_SUFFIXES``, in capitals or not, or a folder of numbered images
        (``ATOYW/ATOYW-000001.jpg``; jpg, jpeg or png). In a folder that holds no video files and no folders, the
        number may also come after ``ATOYW_``, ``frame_``, ``img_``, ``image_`` or nothing. Hidden files and folders
        are passed over, links are followed.
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
    others: Counter[str] = Counter()
    dangling: list[str] = []
    for video in _walk(root.absolute(), wanted, others, dangling):
        found.setdefault(video.video_id, []).append(video)
    _refuse_double_ids(root, found)
    _refuse_unusable_ids(root, found)
    if not found:
        if wanted and (there := [video.video_id for video in islice(_walk(root.absolute(), None), _MOST_OTHERS)]):
            raise FeatureError(
                f"none of the {write_count(len(wanted), 'video')} asked for is in {root}: "
                f"asked for {first_few(sorted(wanted))}; there are others, such as {min(there)}\n"
                "Name the folder of this dataset's videos."
            )
        expected = f"files ending in {', '.join(VIDEO_SUFFIXES)}, or folders of images (ID/ID-000001.jpg)"
        left_out = VideoList((), (), dict(others.most_common()), tuple(sorted(dangling))).describe_left_out()
        raise FeatureError("\n".join([f"there are no videos in {root}; expected {expected}", *left_out]))
    videos = tuple(found[video_id][0] for video_id in sorted(found))
    missing = tuple(sorted((wanted or set()).difference(found)))
    return VideoList(videos, missing, dict(others.most_common()), tuple(sorted(dangling)))


def find_samples(folder: str | os.PathLike[str], sample_ids: Iterable[str], spans: Mapping[str, Span]) -> VideoList:
    """Find the videos of samples, of which those in ``spans``, by id, are a part of a longer video.

    The videos of the result are the samples, each with its id and its span; ``missing`` are samples. Errors are those
    of ``find_videos``.
    """
    names = {each: spans[each].video if each in spans else each for each in sample_ids}
    found = find_videos(folder, names.values())
    videos = {video.video_id: video for video in found.videos}
    samples = [
        replace(videos[name], video_id=each, span=spans.get(each)) for each, name in names.items() if name in videos
    ]
    _refuse_unusable_ids(Path(folder), names)
    missing = tuple(sorted(each for each, name in names.items() if name not in videos))
    return replace(found, videos=tuple(sorted(samples, key=lambda video: video.video_id)), missing=missing)


def _walk(
    root: Path, wanted: set[str] | None, others: Counter[str] | None = None, dangling: list[str] | None = None
) -> Iterator[Video]:
    """Yield every wanted video below a folder, and note the other files; no folder is walked twice, links or not."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            listing = _list_folder(folder, wanted)
        except OSError as error:
            raise FeatureError(f"cannot list the folder {folder}: {error.strerror}") from None
        if others is not None and dangling is not None:
            others.update(listing.others)
            dangling.extend(listing.dangling)
        if listing.num_images:
            if wanted is None or folder.name in wanted:
                yield Video(folder.name, folder, True, listing.num_images)
            continue
        yield from listing.videos
        # Links last, so that a folder is named by where it is rather than by a link to it.
        folders = sorted(listing.folders, key=lambda entry: (not entry.is_symlink(), entry.name), reverse=True)
        waiting[:0] = [Path(entry.path) for entry in folders if entry.is_symlink()]
        waiting.extend(Path(entry.path) for entry in folders if not entry.is_symlink())


@dataclass
class _Listing:
    """The content of a folder; folders below a folder of frames are not looked into."""

    videos: list[Video] = field(default_factory=list)
    folders: list["os.DirEntry[str]"] = field(default_factory=list)
    num_images: int = 0  # frames of one video
    others: Counter[str] = field(default_factory=Counter)  # files by ending
    dangling: list[str] = field(default_factory=list)


def _list_folder(folder: Path, wanted: set[str] | None) -> _Listing:
    listing = _Listing()
    images: dict[int, Counter[str]] = {}
    has_videos = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            stem, dot, ending = entry.name.rpartition(".")
            ending = f".{ending.lower()}" if dot else "without an ending"
            parsed = parse_frame_name(folder.name, entry.name)
            try:
                is_file, is_folder = entry.is_file(), entry.is_dir()
            except OSError:  # a link to itself
                is_file = is_folder = False
            if parsed is not None and is_file:
                images.setdefault(parsed[0], Counter())[ending] += 1
            elif is_folder:
                listing.folders.append(entry)
            elif not is_file and entry.is_symlink() and not Path(entry.path).exists():
                if wanted is None or not wanted.isdisjoint((stem, entry.name, folder.name)):
                    listing.dangling.append(entry.path)
            elif ending in VIDEO_SUFFIXES:
                has_videos = True
                # The size of others is not read: on a network file system that takes most of the time.
                if wanted is None or stem in wanted:
                    if (size := _file_size(entry)) is None:
                        listing.others["pipes and devices"] += 1
                    else:
                        listing.videos.append(Video(stem, Path(entry.path), False, size))
            else:
                listing.others[ending] += 1
    if images and (0 in images or not (has_videos or listing.folders)):
        listing.num_images = images.pop(min(images)).total()
    for counts in images.values():
        listing.others.update(counts)
    return listing


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
            f"{write_count(len(doubled), f'id in {root} is', f'ids in {root} are')} of more than one video:\n"
            f"{bullet_list(lines)}\n"
            "Keep one of each, or name a folder that holds only one version of the videos."
        )


def _refuse_unusable_ids(root: Path, video_ids: Iterable[str]) -> None:
    if refused := [ascii(video_id) for video_id in video_ids if not is_usable_id(video_id)]:
        raise FeatureError(
            f"{write_count(len(refused), 'name')} in {root} cannot be used as ids "
            f"(a dot, with a path separator, or not UTF-8): {first_few(sorted(refused))}; rename these videos"
        )
