"""An extraction that several processes share: the shard of each, and one file merged from their parts."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.extraction.videos import Video
from meidbench.features.feature_file import STATUSES, Header, read_header, recipe_differences, stored_checksums
from meidbench.features.records import read_rows
from meidbench.features.store import feature_writer
from meidbench.names import Advance, Report

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``count``, counted from 1; a number outside raises FeatureError.

    Examples
    --------
    >>> Shard.from_text("2/3").select("abcdefg")
    ['b', 'e']
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise FeatureError(f"a shard is I/N with I from 1 to N, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def from_text(cls, text: str) -> "Shard":
        """Read ``I/N``."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found:
            raise FeatureError(f"a shard is I/N with I from 1 to N, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Shard | None":
        """Return the shard of a process that ``torchrun`` started; None for one that runs alone."""
        size = int(environment.get("WORLD_SIZE", "1"))
        return cls(int(environment.get("RANK", "0")) + 1, size) if size > 1 else None

    def select(self, items: Sequence[_Item]) -> list[_Item]:
        """Return every N-th item, beginning with the I-th."""
        return list(items[self.number - 1 :: self.count])

    def part_path(self, out: Path) -> Path:
        """Return the path of this shard's part of a file."""
        return out.with_name(f"{out.stem}.part-{self.number}-of-{self.count}{out.suffix}")


def describe_list(videos: Sequence[Video]) -> dict[str, object]:
    """Return what identifies the list of all videos, so that parts of different lists are not mixed."""
    lines = "".join(f"{video.video_id}\t{video.size}\n" for video in videos)
    return {"videos": len(videos), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def merge_features(
    parts: Sequence[Path], out: Path, *, progress: Advance | None = None, report: Report | None = None
) -> Path:
    """Write one feature file from the parts of an extraction.

    It is the file, byte for byte, that one process would have written with the same libraries.

    Parameters
    ----------
    parts : sequence of Path
        All parts, in any order.
    out : Path
        The file to be written; a file with the same content is left alone.
    progress : callable, optional
        Called with 1 for each video that is copied.
    report : callable, optional
        Called with a line of text where earlier work is found.

    Raises
    ------
    FeatureError
        A part is missing, given twice, not finished, damaged or made by another recipe or from another list of
        videos; nothing is written.
    """
    headers = {path: read_header(path) for path in parts}
    recipe = _check_parts(headers)
    entries = sorted(
        (video_id, path, position)
        for path, header in headers.items()
        for position, video_id in enumerate(header.layout.video_ids)
    )
    ids = tuple(video_id for video_id, _, _ in entries)
    if doubled := sorted({first for first, second in pairwise(ids) if first == second}):
        raise FeatureError(f"{len(doubled):,} videos are in more than one part: {first_few(doubled)}")
    first = next(iter(headers.values())).layout
    layout = replace(
        first,
        video_ids=ids,
        rows=np.array([headers[path].layout.rows[position] for _, path, position in entries], np.int64),
        source_sizes=np.array([headers[path].layout.source_sizes[position] for _, path, position in entries], np.int64),
    )
    part_checksums = {path: stored_checksums(path) for path in headers}
    checksums = [part_checksums[path][position] for _, path, position in entries]
    status = [int(headers[path].status[position]) for _, path, position in entries]
    fresh = not (out.exists() and (read_header(out).status.tolist(), stored_checksums(out)) == (status, checksums))
    with feature_writer(out, layout, recipe, fresh=fresh, report=report) as writer, ExitStack() as stack:
        streams = {path: stack.enter_context(path.open("rb")) for path in headers}
        for index in writer.pending.tolist():
            video_id, path, position = entries[index]
            video = read_rows(streams[path], headers[path], position)
            if video.checksum() != checksums[index]:
                raise FeatureError(f"{path} is damaged: the rows of {video_id} are other than they were written")
            writer.put(index, video)
            if progress is not None:
                progress(1)
        writer.finish()
    return out


def _check_parts(headers: Mapping[Path, Header]) -> dict[str, object]:
    """Check that these are all parts of one extraction, and return its recipe."""
    problems = []
    paths: dict[Shard, Path] = {}
    recipe: dict[str, object] | None = None
    for path, header in headers.items():
        own = {key: value for key, value in header.recipe.items() if key not in ("shard", "shared_list")}
        recipe = own if recipe is None else recipe
        if differences := recipe_differences(recipe, own):
            problems.append(f"{path} has other settings than {next(iter(headers))}: {'; '.join(differences)}")
        if "shard" not in header.recipe:
            problems.append(f"{path} is not a part of a file but a complete file")
            continue
        shard = Shard.from_text(str(header.recipe["shard"]))
        if shard in paths:
            problems.append(f"{path} and {paths[shard]} are both part {shard}")
        paths[shard] = path
        if pending := int((header.status == STATUSES.index("pending")).sum()):
            problems.append(f"{path} is not finished: {pending:,} videos are pending")
    lists = [header.recipe.get("shared_list") for header in headers.values()]
    if len({json.dumps(entry, sort_keys=True) for entry in lists}) > 1:
        problems.append("they are shards of different lists of videos; extract all parts from the same videos")
    if len(counts := {shard.count for shard in paths}) > 1:
        problems.append(f"parts of extractions by {first_few(sorted(counts))} processes are mixed")
    elif counts:
        # Shards beyond the number of videos are empty and write no part.
        expected = min(*counts, next(int(entry["videos"]) for entry in lists if entry))
        if missing := sorted(set(range(1, expected + 1)) - {shard.number for shard in paths}):
            problems.append(f"of {max(counts)} parts these are missing: {first_few(missing)}")
    if problems or recipe is None:
        raise FeatureError(f"these parts cannot be merged:\n{bullet_list(problems or ['no part was given'])}")
    return recipe
