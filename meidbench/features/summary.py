"""How the videos of a feature file fared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meidbench.features.layout import STATUSES, read_header
from meidbench.features.records import read_rows


@dataclass(frozen=True)
class Summary:
    """How an extraction went.

    Attributes
    ----------
    path : Path
        The feature file, whole.
    videos : int
    extracted : int
        Videos of this run; the others were there already.
    ok, salvaged, failed : int
        Of all videos.
    troubles : tuple of (str, str, str)
        Id, status and reason of each video that is not ok.
    """

    path: Path
    videos: int
    extracted: int
    ok: int
    salvaged: int
    failed: int
    troubles: tuple[tuple[str, str, str], ...]


def summarise(path: Path, extracted: int = 0) -> Summary:
    """Say of a feature file how its videos fared."""
    header = read_header(path)
    counts = {name: int((header.status == code).sum()) for code, name in enumerate(STATUSES)}
    troubles = []
    with path.open("rb") as stream:
        for position in np.flatnonzero(header.status != STATUSES.index("ok")):
            reason = read_rows(stream, header, int(position)).reason
            troubles.append((header.layout.video_ids[position], STATUSES[header.status[position]], reason))
    return Summary(
        path=path,
        videos=len(header.status),
        extracted=extracted,
        ok=counts["ok"],
        salvaged=counts["salvaged"],
        failed=counts["failed"],
        troubles=tuple(troubles),
    )
