"""Official annotation files of this field's datasets, a module a format, read into one table of annotated videos.

A table of one's own is read by ``meidbench.annotations.tables.read_table``; Charades, CharadesEgo and VideoLT by
``meidbench.annotations``.
"""

from meidbench.annotations.activitynet import ACTIVITYNET
from meidbench.annotations.base import Format
from meidbench.annotations.youtube8m import YOUTUBE8M

__all__ = ["FORMATS", "Format"]

FORMATS: dict[str, Format] = {"activitynet": ACTIVITYNET, "youtube8m": YOUTUBE8M}
