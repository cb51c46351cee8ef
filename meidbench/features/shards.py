"""Several processes share an extraction: who takes which videos, and one file from their parts."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.features.layout import STATUSES, Header, Layout, read_header, recipe_differences, stored_checksums
from meidbench.features.records import read_rows
from meidbench.features.store import feature_writer
from meidbench.features.videos import Video

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``of``, counted from 1.

    Raises
    ------
    FeatureError
        There is no such share.

    Examples
    --------
    >>> Shard.parse("2/3").share("abcdefg")
    ['b', 'e']
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise FeatureError(f"a share is I/N with I from 1 to N, got {self.number}/{self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``I/N``."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found:
            raise FeatureError(f"a share is I/N with I from 1 to N, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> "Shard | None":
        """Return the share of a process that ``torchrun`` started; None for one that runs alone."""
        size = int(environment.get("WORLD_SIZE", "1"))
        return cls(int(environment.get("RANK", "0")) + 1, size) if size > 1 else None

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """Return every N-th item, beginning with the I-th."""
        return list(items[self.number - 1 :: self.of])

    def path(self, out: Path) -> Path:
        """Return the name of this share's part of a file."""
        return out.with_name(f"{out.stem}.part-{self.number}-of-{self.of}{out.suffix}")


def shared_list(videos: Sequence[Video]) -> dict[str, object]:
    """Say which list of videos was shared out, so that parts of different lists are not mixed."""
    listing = "".join(f"{video.video_id}\t{video.size}\n" for video in videos)
    return {"videos": len(videos), "sha256": hashlib.sha256(listing.encode()).hexdigest()}


def merge_features(
    parts: Sequence[Path],
    out: Path,
    *,
    progress: Callable[[int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write one feature file from the parts of an extraction.

    It is the file, byte for byte, that one process would have written with the same libraries.

    Parameters
    ----------
    parts : sequence of Path
        All parts, in any order.
    out : Path
        The file to be written; one that is there already and the same is left alone.
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
    recipe = _common_recipe(headers)
    owners = sorted(
        (video_id, path, position)
        for path, header in headers.items()
        for position, video_id in enumerate(header.layout.video_ids)
    )
    ids = tuple(video_id for video_id, _, _ in owners)
    if doubled := sorted({first for first, second in pairwise(ids) if first == second}):
        raise FeatureError(f"{len(doubled):,} videos are in more than one part: {first_few(doubled)}")
    first = next(iter(headers.values())).layout
    layout = Layout(
        video_ids=ids,
        rows=np.array([headers[path].layout.rows[position] for _, path, position in owners], np.int64),
        fixed=first.fixed,
        dim=first.dim,
        dtype=first.dtype,
        timed=first.timed,
        source_sizes=np.array([headers[path].layout.source_sizes[position] for _, path, position in owners], np.int64),
    )
    checksums = {path: stored_checksums(path) for path in headers}
    status = [int(headers[path].status[position]) for _, path, position in owners]
    merged = (status, [checksums[path][position] for _, path, position in owners])
    fresh = not (out.exists() and (read_header(out).status.tolist(), stored_checksums(out)) == merged)
    with feature_writer(out, layout, recipe, fresh=fresh, report=report) as writer, ExitStack() as opened:
        streams = {path: opened.enter_context(path.open("rb")) for path in headers}
        for at in writer.pending.tolist():
            video_id, path, position = owners[at]
            video = read_rows(streams[path], headers[path], position)
            if video.checksum() != checksums[path][position]:
                raise FeatureError(f"{path} is damaged: the rows of {video_id} are other than they were written")
            writer.put(at, video)
            if progress is not None:
                progress(1)
        writer.finish()
    return out


def _parts(headers: Mapping[Path, Header]) -> int:
    """Return how many parts there must be: shares beyond the number of videos are empty, and leave none."""
    recipe = next(header.recipe for header in headers.values() if "shard" in header.recipe)
    return min(Shard.parse(recipe["shard"]).of, int(recipe["shared_list"]["videos"]))


def _common_recipe(headers: Mapping[Path, Header]) -> dict[str, object]:
    """Check that these are all parts of one extraction, and return its recipe."""
    problems = []
    shares: dict[Shard, Path] = {}
    first: dict[str, object] | None = None
    for path, header in headers.items():
        recipe = {key: value for key, value in header.recipe.items() if key not in ("shard", "shared_list")}
        first = recipe if first is None else first
        if differences := recipe_differences(first, recipe):
            problems.append(f"{path} has other settings than {next(iter(headers))}: {'; '.join(differences)}")
        if "shard" not in header.recipe:
            problems.append(f"{path} is no part of a file, it is whole")
            continue
        share = Shard.parse(str(header.recipe["shard"]))
        if share in shares:
            problems.append(f"{path} and {shares[share]} are both part {share}")
        shares[share] = path
        if waiting := int((header.status == STATUSES.index("pending")).sum()):
            problems.append(f"{path} is not finished: {waiting:,} videos are to come")
    lists = {json.dumps(header.recipe.get("shared_list"), sort_keys=True) for header in headers.values()}
    if len(lists) > 1:
        problems.append("they are shares of different lists of videos; extract all parts from the same videos")
    if len(sizes := {share.of for share in shares}) > 1:
        problems.append(f"parts of extractions by {first_few(sorted(sizes))} processes are mixed")
    elif sizes and (missing := sorted(set(range(1, _parts(headers) + 1)) - {share.number for share in shares})):
        problems.append(f"of {max(sizes)} parts these are missing: {first_few(missing)}")
    if problems or first is None:
        raise FeatureError(f"these parts cannot be merged:\n{bullet_list(problems or ['there are none'])}")
    return first
