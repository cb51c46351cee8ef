"""Annotation files, read into one table of annotated videos: one module per format, and ``FORMATS`` with all of them.

A new format takes a module with its ``Format``, and an entry in ``FORMATS``. ``read_annotations`` reads
the files of a benchmark, ``meidbench.annotations.tables`` a table of the user's own.
"""

from pathlib import Path

from meidbench.annotations.activitynet import ACTIVITYNET
from meidbench.annotations.animalkingdom import ANIMALKINGDOM
from meidbench.annotations.base import MOST_NAMED, Annotations, FileRecord, Format, Segment
from meidbench.annotations.charades import CHARADES, CHARADESEGO
from meidbench.annotations.videolt import VIDEOLT
from meidbench.annotations.youtube8m import YOUTUBE8M
from meidbench.errors import AnnotationError, bullet_list, first_few
from meidbench.names import DATASETS
from meidbench.splits.manifests import Manifest, load_manifest

__all__ = [
    "FORMATS",
    "Annotations",
    "FileRecord",
    "Format",
    "Segment",
    "annotation_paths",
    "has_texts",
    "read_annotations",
    "read_texts",
]

FORMATS: dict[str, Format] = {
    "charades": CHARADES,
    "charadesego": CHARADESEGO,
    "lists": VIDEOLT,
    "animalkingdom": ANIMALKINGDOM,
    "activitynet": ACTIVITYNET,
    "youtube8m": YOUTUBE8M,
}


def read_annotations(manifest: Manifest, folder: Path) -> Annotations:
    """Read the official annotation files that the manifest of a benchmark names.

    They lie in ``folder`` or in a folder inside it, as the archives unpack. An ``AnnotationError`` names each missing
    file, or file, line and column of the first five problems.
    """
    paths = _find_files(Path(folder), manifest)
    annotations = _find_format(manifest).read(paths, manifest)
    annotations.group_names = dict(manifest.group_names)
    if bool(annotations.groups) != (manifest.groups == "list"):
        found = "a list" if annotations.groups else "no list"
        given = f"groups by {manifest.groups}, its reader gives {found}"
        raise AnnotationError(f"{manifest.title}: its manifest has {given}")
    return annotations


def read_texts(manifest: Manifest, folder: Path) -> dict[str, tuple[str, str]]:
    """Read what the annotators wrote about each video: its description, which may be empty, and its script, by id.

    No label is read. An ``AnnotationError`` tells of a benchmark without texts, and otherwise as ``read_annotations``.
    """
    read = _find_format(manifest).read_texts
    if read is None:
        have = [name for name in DATASETS if has_texts(load_manifest(name))]
        raise AnnotationError(
            f"the annotations of {manifest.title} hold no descriptions of its videos; those of {' and '.join(have)} do"
        )
    return read(_find_files(Path(folder), manifest), manifest)


def has_texts(manifest: Manifest) -> bool:
    """Return whether the annotations of a benchmark hold texts that ``read_texts`` reads."""
    return _find_format(manifest).read_texts is not None


def _find_format(manifest: Manifest) -> Format:
    known = [name for name, form in FORMATS.items() if form.needs_manifest]
    if manifest.reader not in known:
        raise AnnotationError(f"{manifest.title}: unknown reader {manifest.reader!r}; known: {', '.join(known)}")
    return FORMATS[manifest.reader]


def annotation_paths(manifest: Manifest, folder: Path) -> dict[str, list[Path]]:
    """Return where each annotation file of a benchmark lies: in the folder, or at most two folders deeper."""
    places: dict[str, list[Path]] = {}
    for name in manifest.file_names:
        hits = ([path for path in sorted(folder.glob(depth + name)) if path.is_file()] for depth in ("", "*/", "*/*/"))
        places[name] = next((found for found in hits if found), [])
    return places


def _find_files(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the path of every file, in the order of the manifest; refuse a folder that lacks one."""
    if not folder.is_dir():
        names = ", ".join(manifest.file_names)
        raise AnnotationError(f"there is no folder {folder}; expected it to hold {names}\n{manifest.remedy}")
    places = annotation_paths(manifest, folder)
    problems = []
    for name, hits in places.items():
        if not hits:
            problems.append(f"{name} is missing")
        elif len(hits) > 1:
            problems.append(f"{name} is there {len(hits)} times: {first_few(hits)}; name the folder of one")
    if problems:
        listed = bullet_list(problems, MOST_NAMED)
        raise AnnotationError(f"cannot read the annotations in {folder}:\n{listed}\n{manifest.remedy}")
    return [hits[0] for hits in places.values()]
