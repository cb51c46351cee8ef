"""Annotation files, read into one table of annotated videos: one module per format, and ``FORMATS`` with all of them.

A new format takes a module with its ``Format``, and an entry in ``FORMATS``. ``meidbench.annotations.official`` reads
the files of a benchmark, ``meidbench.annotations.tables`` a table of the user's own.
"""

from meidbench.annotations.activitynet import ACTIVITYNET
from meidbench.annotations.base import Annotations, FileRecord, Format, Segment
from meidbench.annotations.charades import CHARADES, CHARADESEGO
from meidbench.annotations.videolt import VIDEOLT
from meidbench.annotations.youtube8m import YOUTUBE8M

__all__ = ["FORMATS", "Annotations", "FileRecord", "Format", "Segment"]

FORMATS: dict[str, Format] = {
    "charades": CHARADES,
    "charadesego": CHARADESEGO,
    "lists": VIDEOLT,
    "activitynet": ACTIVITYNET,
    "youtube8m": YOUTUBE8M,
}
