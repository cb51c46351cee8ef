"""The lists of VideoLT."""

import re
from collections.abc import Sequence
from pathlib import Path

from meidbench.annotations.base import Annotations, Format, LineReader, check_codes, quote, read_benchmark
from meidbench.errors import AnnotationError
from meidbench.splits.manifests import Manifest

_LABELS = re.compile(r"[0-9]{1,6}(?:,[0-9]{1,6})*")


def read_videolt(paths: Sequence[Path], manifest: Manifest) -> Annotations:
    """Read lists of ``VIDEOID c1,c2,...`` lines; parameters and errors as in ``read_benchmark``."""
    return read_benchmark(paths, manifest, _read_class_names, _append_lines)


def _read_class_names(lines: LineReader, manifest: Manifest) -> tuple[str, ...]:
    """Read ``NAME INDEX COUNT`` lines."""
    entries = [line.rsplit(None, 2) for line in lines if line.strip()]
    for entry in entries:
        if len(entry) != 3:
            raise AnnotationError(f"{lines.path.name}: expected 'NAME INDEX COUNT', got {' '.join(entry)!r}")
    check_codes(lines.path, [index for _, index, _ in entries], "{}", manifest)
    return tuple(name for name, _, _ in entries)


def _append_lines(lines: LineReader, source: str, table: Annotations, problems: list[str]) -> None:
    num_classes = len(table.class_names)
    parsed: dict[str, tuple[int, ...]] = {}  # a few thousand distinct label cells stand for 256,192 lines
    video_ids, rows = [], []
    for line in lines:
        video_id, _, cell = line.strip().partition(" ")
        if not video_id:
            continue
        labels = parsed.get(cell)
        if labels is None:
            labels = tuple(map(int, dict.fromkeys(cell.split(",")))) if _LABELS.fullmatch(cell) else ()
            if not labels or max(labels) >= num_classes or len(set(labels)) < len(labels):
                where = f"{lines.path.name}, line {lines.number} ({quote(video_id)[1:-1]})"
                wanted = f"class indices 0 to {num_classes - 1}, separated by commas"
                problems.append(f"{where}: labels {quote(cell)} are not {wanted}")
                continue
            parsed[cell] = labels
        video_ids.append(video_id)
        rows.append(labels)
    table.extend(video_ids, rows, source)


VIDEOLT = Format(
    title="VideoLT lists",
    description="a line per video with its class indices",
    files="train.lst, validate.lst, test.lst and count-labels-train.lst",
    read=read_videolt,
    needs_manifest=True,
)
