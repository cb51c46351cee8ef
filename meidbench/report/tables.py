"""Tables for other programs."""

import csv
import math
from pathlib import Path

from meidbench.files import written_whole
from meidbench.results import Result


def write_per_class(result: Result, path: Path) -> Path:
    """Write the result of each class as CSV; the average precision of a class without positives is empty."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("class", "name", "group", "train_count", "positives", "ap"))
        for entry in result.per_class:
            ap = "" if math.isnan(entry.ap) else repr(entry.ap)
            writer.writerow((entry.index, entry.name, entry.group, entry.train_count, entry.positives, ap))
    return path
