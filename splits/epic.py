"""The splits of EPIC-KITCHENS-100, built from its official files and checked as far as these are known."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from meidbench.annotations import annotation_paths, read_annotations
from meidbench.annotations.base import LineReader
from meidbench.annotations.epic import EpicSegment, read_segments
from meidbench.errors import AnnotationError, bullet_list, write_count
from meidbench.names import OFFICIAL, SOURCE_DOMAIN, Report
from meidbench.splits.manifests import Manifest, Row, RowSketch, lines_digest, load_manifest, row_tag
from meidbench.splits.split import Split

# Subsets are called as the field uses them: methods report on the official validation subset.
SUBSET_OF = {"train": "train", "validation": "test"}
_MOST_NAMED = 15


def build_epic(dataset: str, folder: Path, report: Report = lambda line: None) -> Split:
    """Build a split of EPIC-KITCHENS-100 from the folder of its official files, and report what of it was verified.

    The variant is ``official``, or ``source-domain`` where the folder lacks ``EPIC_100_train.csv`` and has the training
    file of the source domain, of 12 participants. An ``AnnotationError`` names the segments that differ from the
    official ones where the digest of a file is known, else the number of segments; or the file of class names or of
    tail classes, if that differs.
    """
    manifest = load_manifest(dataset)
    used, variant = _choose_files(manifest, Path(folder))
    annotations = read_annotations(used, Path(folder))
    places, problems = annotation_paths(used, Path(folder)), []
    for entry in used.files:
        (path,) = places[entry.name]
        known, rows = load_fingerprints()[entry.name], list(read_segments(LineReader(path), []))
        found = _find_differences(entry.name, rows, known)
        problems += found
        what = "every row" if "digest" in known else "the number of its segments only"
        if not found:
            report(f"{entry.name}: verified {what}")
    for name, lines, what in (
        (manifest.class_file.name, annotations.class_names, "class names"),
        (manifest.group_file.name, annotations.groups, "tail classes"),
    ):
        if lines_digest(lines) != load_fingerprints()[name]["digest"]:
            problems.append(f"{name}: the {what} are not the official ones")
    if problems:
        listed = bullet_list(problems, _MOST_NAMED)
        raise AnnotationError(
            f"the annotations in {folder} are not those of {manifest.title}:\n{listed}\n"
            f"No split was written. {manifest.remedy}"
        )
    if variant != OFFICIAL:
        train = write_count(annotations.sources.count("train"), "segment")
        report(
            f"{manifest.files[0].name} is not there: train has the {train} of {manifest.substitute.name}, so this is "
            "not the official split"
        )
    subsets = [SUBSET_OF[source] for source in annotations.sources]
    return Split.from_annotations(annotations, subsets, dataset=dataset, variant=variant)


def _choose_files(manifest: Manifest, folder: Path) -> tuple[Manifest, str]:
    """Return the manifest with the training file that is there, and the variant of the split."""
    train, *others = manifest.files
    places = annotation_paths(replace(manifest, files=(train, manifest.substitute)), folder)
    if places[train.name] or not places[manifest.substitute.name]:
        return manifest, OFFICIAL
    return replace(manifest, files=(manifest.substitute, *others)), SOURCE_DOMAIN


def make_fingerprint(rows: Iterable[EpicSegment]) -> dict[str, Any]:
    """Return the number, the digest and the sketch of the segments of a file; none of them holds an id or a label."""
    tagged = _tag_rows(rows)
    return {
        "segments": len(tagged),
        "digest": _digest(tagged),
        "sketch": RowSketch(tagged).cells(),
    }


def _digest(tagged: Iterable[Row]) -> str:
    return lines_digest(f"{each}\t{tag.hex()}" for each, tag in sorted(tagged))


def _tag_rows(rows: Iterable[EpicSegment]) -> list[Row]:
    return [(row.narration_id, row_tag(json.dumps(astuple(row)))) for row in rows]


@cache
def load_fingerprints() -> Mapping[str, Mapping[str, Any]]:
    """Read what is known of the official files, by name: of one that was not at hand, the number of segments only.

    Of a file of classes or tail classes it is the digest of the names or groups by index, one per line.
    """
    text = resources.files("meidbench.splits").joinpath("epic100.fingerprints.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _find_differences(name: str, rows: list[EpicSegment], known: Mapping[str, Any]) -> list[str]:
    problems = []
    if len(rows) != known["segments"]:
        problems.append(f"{name} holds {write_count(len(rows), 'segment')}, expected {known['segments']:,}")
    tagged = _tag_rows(rows)
    if "digest" not in known or _digest(tagged) == known["digest"]:
        return problems
    fitting = [row for row in tagged if len(row[0].encode()) <= 16]
    missing, extra, complete = RowSketch.from_cells(known["sketch"]).difference(RowSketch(fitting))
    gone, new = {each for each, _ in missing}, {each for each, _ in extra}
    new |= {each for each, _ in tagged} - {each for each, _ in fitting}
    for each in sorted(gone | new):
        if each in gone and each in new:
            what = "its video, times, participant or classes are not the official ones"
            problems.append(f"segment {each} of {name}: {what}")
        else:
            problems.append(f"segment {each} of {name} is {'missing' if each in gone else 'not an official one'}")
    if not complete or not problems:
        problems.append(f"{name}: more segments differ than can be named one by one")
    return problems
