"""The rows of lists, one per video; ``ROW_FORMATS`` names the forms of files, tables included."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from meidbench.annotations.records import (
    HACS_COLUMNS,
    KINETICS_COLUMNS,
    HacsRows,
    KineticsRows,
    open_clips,
    open_something,
)
from meidbench.annotations.rows import COLUMNS, SPAN, Rows, open_table, read_start, readable
from meidbench.errors import SplitError, bullet_list, describe_content, first_few, write_count
from meidbench.names import VIDEO_SUFFIXES


class ListRows(Rows):
    """Lines of an id and its labels."""

    is_text = False

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of every line, and its id and labels among some columns."""
        places = {"video_id": names.index("video_id"), "labels": names.index("labels")}
        with readable(self.path, "text"):
            for number, line in enumerate(self.source, start=1):
                if not line.strip():
                    continue
                row: list[Any] = [None] * len(names)
                try:
                    row[places["video_id"]], row[places["labels"]] = self.parse(line.strip())
                except ValueError as error:
                    self.problems.append(f"{self.place(number, line.split()[0])}: {error}")
                else:
                    yield number, row
        self.problems += self.find_problems()

    def parse(self, line: str) -> tuple[str, list[str]]:
        """Return the id and the labels of a line; ``ValueError`` where it has another form."""
        video_id, *rest = line.split(None, 1)
        labels = "".join(rest)
        parts = labels.split()
        # Names hold blanks, indices do not.
        return video_id, parts if all(map(str.isdigit, parts)) else labels.split(",")

    def find_problems(self) -> list[str]:
        """Return the problems of all lines together, after the last."""
        return []


@dataclass
class _Mmaction2Rows(ListRows):
    """Lines of a path and its labels; for a folder of frames, their number stands between the two."""

    are_videos: bool | None = None  # None before the first line
    lengths: set[int] = field(default_factory=set)  # how many numbers the lines have

    id_remedy: ClassVar[str] = (
        "; an id is the last name of a path without its ending, so write a table with ids of your own"
    )

    def parse(self, line: str) -> tuple[str, list[str]]:
        path, *numbers = _blank_separated(line).split()
        is_video = _is_video(path)
        if self.are_videos is None:
            self.are_videos = is_video
        if is_video != self.are_videos:
            raise ValueError("a list is of videos (with an ending such as .mp4) or of folders of frames, not of both")
        if wrong := [text for text in numbers if not text.isascii() or not text.isdigit()]:
            raise ValueError(f"{wrong[0]!r} is not a number; a line is {ROW_FORMATS['mmaction2'].description}")
        if not is_video and len(numbers) < 2:
            raise ValueError("a folder of frames needs the number of frames and a label")
        self.lengths.add(len(numbers))
        name = _last_name(path)
        return (name[: name.rindex(".")], numbers) if is_video else (name, numbers[1:])

    def find_problems(self) -> list[str]:
        if self.are_videos or self.lengths != {3}:
            return []
        two = "the number of frames and two labels, or a first frame, the number of frames and one label"
        return [f"{self.path.name}: every line has three numbers ({two}); write a table with video_id and labels"]


class SlowfastRows(ListRows):
    """Lines of a frame each: the id of the video, its number, the frame's number and path, and the frame's labels.

    A video has the labels of all its frames, as in the loader of SlowFast.
    """

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of the first line of every video, and its id and labels among some columns."""
        videos: dict[str, dict[str, int]] = {}  # the first line of each cell with labels
        with readable(self.path, "text"):
            reader = csv.reader(self.source, delimiter=" ", skipinitialspace=True)
            if header := self._check_header(next(reader, [])):
                raise SplitError(header)
            for cells in reader:
                if len(cells) == len(SLOWFAST_COLUMNS):
                    videos.setdefault(cells[0], {}).setdefault(cells[-1], reader.line_num)
                elif cells:
                    what = f"{write_count(len(cells), 'column')}, expected {len(SLOWFAST_COLUMNS)}"
                    self.problems.append(f"{self.place(reader.line_num, cells[0])}: {what}")
        places = names.index("video_id"), names.index("labels")
        for video_id, lines in videos.items():
            labels = {label: number for cell, number in reversed(lines.items()) for label in cell.split(",") if cell}
            if wrong := sorted(text for text in labels if not text.isascii() or not text.isdigit()):
                where = self.place(labels[wrong[0]], video_id)
                self.problems.append(f"{where}: label {wrong[0]!r} is not the index of a class")
                continue
            row: list[Any] = [None] * len(names)
            row[places[0]], row[places[1]] = video_id, sorted(labels, key=int)
            yield next(iter(lines.values())), row

    def _check_header(self, header: Sequence[str]) -> str:
        """Return the problem of the first line; the columns may also have the names in Animal Kingdom's README."""
        known = (SLOWFAST_COLUMNS, ("clip_id", "clip_number", "frame_number", "clip_path", "action_labels"))
        # The first name is a slip of SlowFast that some lists correct.
        found = tuple(name.replace("original_video_id", SLOWFAST_COLUMNS[0]) for name in header)
        return "" if found in known else f"{self.path} does not begin with the line {' '.join(SLOWFAST_COLUMNS)}"


@contextmanager
def _open_list(path: Path, kind: type[ListRows]) -> Iterator[Rows]:
    read_start(path, 1)  # names a file that cannot be read
    if (content := describe_content(path)) not in ("", "empty"):
        raise SplitError(f"{path} is {content}; a list is text, one line per video")
    with path.open(encoding="utf-8-sig") as stream:
        yield kind(path, ("video_id", "labels"), stream)


# --- which form a file has --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFormat:
    """A format of import-split: how a line or a file looks, how it is opened, and whether a line may be of it.

    ``open`` is None where ``meidbench.annotations.FORMATS`` reads the files. ``fits_start`` tells whether a file that
    begins with a text is of the format, whatever its lines are.
    """

    description: str
    open: Callable[[Path], AbstractContextManager[Rows]] | None
    fits: Callable[[str], bool] = lambda line: False
    fits_start: Callable[[str], bool] = lambda text: False


SLOWFAST_COLUMNS = ("original_vido_id", "video_id", "frame_id", "path", "labels")
_LIST_LINE = re.compile(r"[^\s,;/\\]+(\s+\d+((\s*,\s*|\s+)\d+)*)?")
_MMACTION2_LINE = re.compile(r"(\S+)((?:\s+\d+)*)")
_SLOWFAST_LINE = re.compile(r'\S+ +\d+ +\d+ +\S+ +("[\d,]*"|[\d,]+)')
_FIRST_KEY = re.compile(r'\s*\{\s*"([^"]*)"\s*:\s*(.)')
_INDEX = re.compile(r'("\d+"|\d+)\s*[,}]')
_TEST_ENTRY = re.compile(r'\s*\[\s*\{\s*"id"\s*:\s*"\d+"\s*')
_COMMA_LINE = re.compile(r"(\S+?)\s*,\s*(\d+(?:\s*,\s*\d+)*)")  # of SlowFast, with a comma as separator
_CLASS_LINE = re.compile(r"(.*\S)\s+(\d{1,9})\s+\d+(?:\.0)?|c(\d{3})\s+(\S.*)")  # of VideoLT, and of Charades


def _is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _fits_list(line: str) -> bool:
    return bool(_LIST_LINE.fullmatch(line)) and not _is_video(line.split()[0])


def _fits_slowfast(line: str) -> bool:
    return bool(_SLOWFAST_LINE.fullmatch(line)) or tuple(line.split()) == SLOWFAST_COLUMNS


def _has_columns(text: str, columns: Sequence[str]) -> bool:
    names = {name.strip().strip('"') for name in text.partition("\n")[0].split(",")}
    return set(columns) <= names and "video_id" not in names  # with it, a table has columns of its own


def _fits_something(text: str) -> bool:
    """Return whether a text begins a list whose first object has a template, or an id alone, as in the test file."""
    first = text.partition("}")[0]
    if '"video_id"' in first:  # a table with a template of its own
        return False
    return text.lstrip().startswith("[") and ('"template"' in first or bool(_TEST_ENTRY.fullmatch(first)))


def _fits_activitynet(text: str) -> bool:
    """Return whether a text begins an object of objects, or of ActivityNet's first keys, and not a row of a table."""
    first = _FIRST_KEY.match(text)
    if first is None or first[1] in (*COLUMNS, *SPAN):
        return False
    is_first = first[1] in ("database", "taxonomy", "version")
    return is_first or (first[2] == "{" and '"annotations"' in text and '"video_id"' not in text.partition("\n")[0])


def _fits_label_indices(text: str) -> bool:
    """Return whether a text begins an object of class names and indices, and not a row of a table."""
    first = _FIRST_KEY.match(text)
    return first is not None and first[1] not in COLUMNS and bool(_INDEX.match(text, first.start(2)))


def _blank_separated(line: str) -> str:
    """Return a line ``VIDEO,LABEL`` with blanks in place of the commas behind the path; other lines as they are."""
    found = _COMMA_LINE.fullmatch(line)
    return f"{found[1]} {found[2].replace(',', ' ')}" if found and _is_video(found[1]) else line


def _fits_mmaction2(line: str) -> bool:
    found = _MMACTION2_LINE.fullmatch(_blank_separated(line))
    return found is not None and (_is_video(found[1]) or len(found[2].split()) > 1)


ROW_FORMATS: dict[str, RowFormat] = {
    "table": RowFormat("rows with video_id and labels", open_table),
    "lists": RowFormat(
        "VIDEO_ID and labels, joined by commas or blanks", partial(_open_list, kind=ListRows), _fits_list
    ),
    "mmaction2": RowFormat(
        "PATH and labels, or FOLDER, its number of frames and labels, all joined by blanks",
        partial(_open_list, kind=_Mmaction2Rows),
        _fits_mmaction2,
    ),
    "slowfast": RowFormat(
        'frames: VIDEO_ID, its number, the frame\'s number and path, "labels", under a header',
        partial(_open_list, kind=SlowfastRows),
        _fits_slowfast,
    ),
    "something-something": RowFormat(
        "a JSON list of objects with id and template", open_something, fits_start=_fits_something
    ),
    "kinetics": RowFormat(
        f"a CSV with {', '.join(KINETICS_COLUMNS)}; the id is YOUTUBE_ID_START_END",
        partial(open_clips, kind=KineticsRows, columns=("video_id", "labels", "group", "subset", "length_s")),
        fits_start=partial(_has_columns, columns=KINETICS_COLUMNS[1:4]),
    ),
    "hacs": RowFormat(
        f"HACS Clips: a CSV with {', '.join(HACS_COLUMNS)}; the id is YOUTUBE_ID_START_END",
        partial(open_clips, kind=HacsRows, columns=("video_id", "labels", "subset", *SPAN)),
        fits_start=partial(_has_columns, columns=HACS_COLUMNS),
    ),
    "activitynet": RowFormat(
        "JSON with videos by id and labelled segments, also of HACS Segments", None, fits_start=_fits_activitynet
    ),
}


def guess_format(paths: Sequence[Path]) -> str:
    """Return the one format that the first lines of all files have; refuse files that leave a choice."""
    found: dict[Path, set[str]] = {}
    for path in paths:
        start = read_start(path, 1 << 16)
        text = "" if b"\0" in start else start.decode("utf-8-sig", errors="replace")
        lines = [line.strip() for line in text.splitlines()[: None if len(start) < 1 << 16 else -1] if line.strip()]
        started = {name for name, form in ROW_FORMATS.items() if form.fits_start(text)}
        if strip_class_indices(lines) or (not started and _fits_label_indices(text)):
            raise SplitError(f"{path.name} is a list of classes, with their indices; give it as --class-names")
        shares = {name: sum(map(form.fits, lines)) / max(1, len(lines)) for name, form in ROW_FORMATS.items()}
        most = max(shares.values())
        # A few damaged lines are named by the reader.
        found[path] = {name for name, share in shares.items() if share == most} if most >= 0.5 else {"table"}
        if started:
            found[path] = started
        elif not lines:
            del found[path]
    common = set.intersection(set(ROW_FORMATS), *found.values()) if found else {"table"}
    if len(common) == 1:
        return common.pop()
    if not common:
        kinds = (f"{path.name} ({' or '.join(sorted(names))})" for path, names in found.items())
        raise SplitError(f"the files are of different formats: {first_few(kinds)}; import files of one format")
    choice = bullet_list(f"--format {name}: {ROW_FORMATS[name].description}" for name in sorted(common))
    raise SplitError(
        f"the lines of {first_few(path.name for path in found)} can be read in more than one way; choose one:\n{choice}"
    )


def strip_class_indices(lines: Sequence[str]) -> list[str]:
    """Return the names of lines ``NAME INDEX COUNT`` or ``c000 NAME``; empty where other lines are among them.

    >>> strip_class_indices(["3DPainting 0 137.0", "3DPrinter 1 308.0"])
    ['3DPainting', '3DPrinter']
    """
    found = [_CLASS_LINE.fullmatch(line) for line in lines]
    numbers = [int(match[2] or match[3]) if match else -1 for match in found]
    is_list = len(lines) > 1 and numbers == list(range(len(lines)))
    return [match[1] or match[4] for match in found if match] if is_list else []
