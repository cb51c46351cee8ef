"""Official annotation files of this field's datasets, a module a format, read into one table of annotated videos.

A table of one's own is read by ``meidbench.tables.read_table``; Charades, CharadesEgo and VideoLT by
``meidbench.annotations``.
"""

from meidbench.formats.activitynet import ACTIVITYNET
from meidbench.formats.base import Format
from meidbench.formats.youtube8m import YOUTUBE8M

__all__ = ["FORMATS", "Format"]

FORMATS: dict[str, Format] = {"activitynet": ACTIVITYNET, "youtube8m": YOUTUBE8M}
