"""What the readers of all formats have in common."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meidbench.annotations import Annotations, FileRecord, Segment
from meidbench.errors import AnnotationError, bullet_list
from meidbench.label_index import MOST_CLASSES

_SHOWN = 5


@dataclass(frozen=True)
class Format:
    """An official form of annotations.

    Attributes
    ----------
    title : str
        Its name, as people know it.
    description : str
        What is in it, in a sentence.
    files : str
        Which files are to be given.
    read : callable
        Takes the paths of the files, in any order, and returns ``Annotations``; ``AnnotationError`` where they cannot
        be read, with the first five problems.
    """

    title: str
    description: str
    files: str
    read: Callable[[Sequence[Path]], Annotations]


class LineReader:
    """The lines of a UTF-8 text file, without their ends, and afterwards the record of the file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    AnnotationError
        While reading: the file is not there or not UTF-8; the message has the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.number = 0
        self._bytes = 0
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as stream:
                for raw in stream:
                    self.number += 1
                    self._bytes += len(raw)
                    self._digest.update(raw)
                    yield raw.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except OSError as error:
            raise AnnotationError(f"cannot read {self.path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AnnotationError(
                f"{self.path.name}, line {self.number:,}: not UTF-8 text; the file is damaged or of another kind"
            ) from None

    def record(self) -> FileRecord:
        """Return which file was read, after its last line."""
        return FileRecord(self.path.name, self._bytes, self._digest.hexdigest())


def append_video(
    table: Annotations,
    video_id: str,
    source: str,
    labels: tuple[int, ...],
    length: float = math.nan,
    segments: tuple[Segment, ...] = (),
) -> None:
    """Append a video of which subject, view and group are not known."""
    table.video_ids.append(video_id)
    table.sources.append(source)
    table.labels.append(labels)
    table.lengths.append(length)
    table.segments.append(segments)
    for column in (table.subjects, table.views, table.pair_ids):
        column.append("")


def check_video_id(video_id: str) -> None:
    """Refuse an id that no file or line could be named after; ValueError says so."""
    if not video_id or not video_id.isprintable() or video_id.strip() != video_id:
        raise ValueError("is not a video id")


def check_whole(table: Annotations, problems: list[str], title: str, remedy: str = "") -> None:
    """Refuse annotations with problems, with a video twice, without a label, or with too many classes.

    Raises
    ------
    AnnotationError
        As in ``check_problems``.
    """
    problems = problems + _repeated(table.video_ids)
    if not problems and not any(table.labels):
        problems.append("no video has a label")
    if len(table.class_names) > MOST_CLASSES:
        problems.append(f"{len(table.class_names):,} classes are more than a split file can hold ({MOST_CLASSES:,})")
    check_problems(problems, title, remedy)


def check_problems(problems: list[str], title: str, remedy: str = "") -> None:
    """Refuse what has problems: ``AnnotationError`` with the first five, and ``remedy`` below them."""
    if problems:
        rest = len(problems) - _SHOWN
        more = f"\n  ... and {rest:,} more" if rest > 0 else ""
        text = f"{len(problems):,} problem(s) with the {title} annotations:\n{bullet_list(problems[:_SHOWN])}{more}"
        raise AnnotationError(f"{text}\n{remedy}" if remedy else text)


def _repeated(video_ids: list[str]) -> list[str]:
    if len(set(video_ids)) == len(video_ids):
        return []
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for video_id in video_ids:
        if video_id in seen:
            repeated[video_id] = None
        seen.add(video_id)
    return [f"video {video_id} occurs more than once" for video_id in repeated]
