"""The published splits, rebuilt exactly from the official annotations and the assignment kept in ``splits/``.

Where a user's files differ, the videos and classes that differ are named. A split is also written as CSV, or as lists
in the released form.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path

from meidbench.annotations import Annotations, read_annotations
from meidbench.errors import AnnotationError, bullet_list, first_few, write_count
from meidbench.files import written_whole
from meidbench.names import RELEASED, SUBSETS
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.manifests import (
    ID_BYTES,
    Assignment,
    Manifest,
    Row,
    RowSketch,
    lines_digest,
    load_assignment,
    load_manifest,
    row_tag,
)
from meidbench.splits.metadata import content_digest
from meidbench.splits.split import Split
from meidbench.splits.statistics import deviations, split_statistics

SYMBOLS = {".": "", "t": "train", "v": "val", "e": "test"}
_MOST_NAMED = 15  # problems in the message
_MOST_SEARCHED = 5  # videos whose differing classes are searched for
_MISPRINTS = 2  # differing labels of a video that are searched for among all classes
_SUSPECTS = 60  # classes with wrong counts, among which one more differing label is searched for


def build_released(dataset: str, folder: Path) -> Split:
    """Build the published split of a benchmark (as for ``load_manifest``) from the folder of its official files.

    An ``AnnotationError`` says that the files are damaged, or names the videos and classes that differ where their ids
    or labels are not those of the released split.
    """
    manifest, assignment = load_manifest(dataset), load_assignment(dataset)
    annotations = read_annotations(manifest, folder)
    if problems := _differing_videos(annotations, manifest, assignment):
        raise _mismatch(manifest, folder, problems)
    subset_of = dict(zip(sorted(annotations.video_ids), map(SYMBOLS.get, assignment.symbols), strict=True))
    subsets = [subset_of[video_id] or "" for video_id in annotations.video_ids]
    split = released_split(annotations, subsets, manifest)
    if lines_digest(annotations.class_names) != assignment.names_digest:
        raise _mismatch(manifest, folder, [_other_names(manifest)])
    if problems := _other_groups(annotations, assignment):
        raise _mismatch(manifest, folder, problems)
    if split.digest != assignment.split_digest:
        raise _mismatch(manifest, folder, _differing_labels(annotations, split, manifest, assignment))
    if problems := deviations(split_statistics(split), manifest):
        raise _mismatch(manifest, folder, problems)
    return split


def released_split(annotations: Annotations, subsets: Sequence[str], manifest: Manifest) -> Split:
    """Make a split of the variant ``released``, with the name and the thresholds, if any, of the manifest."""
    thresholds = {"head_above": manifest.head_above, "tail_up_to": manifest.tail_up_to}
    return Split.from_annotations(annotations, subsets, dataset=manifest.name, variant=RELEASED, **thresholds)


def source_digests(annotations: Annotations) -> dict[str, str]:
    """Return the sha256 of the sorted ids of each official subset."""
    ids: dict[str, list[str]] = {}
    for video_id, source in zip(annotations.video_ids, annotations.sources, strict=True):
        ids.setdefault(source, []).append(video_id)
    return {source: lines_digest(sorted(videos)) for source, videos in ids.items()}


def source_positives(annotations: Annotations, source: str) -> list[int]:
    """Return the videos per class of one official subset."""
    pairs = zip(annotations.labels, annotations.sources, strict=True)
    counts = Counter(label for labels, given in pairs if given == source for label in labels)
    return [counts[index] for index in range(len(annotations.class_names))]


def id_rows(annotations: Annotations) -> list[Row]:
    """Return (id, tag of the official subset) of all videos, for a sketch."""
    pairs = zip(annotations.video_ids, annotations.sources, strict=True)
    return [(video_id, row_tag(video_id, source)) for video_id, source in pairs]


def pool_lines(annotations: Annotations) -> Iterator[tuple[str, str]]:
    """Yield the id of each video and, as a line of JSON, everything that is read of it."""
    columns = ("video_ids", "sources", "labels", "lengths", "subjects", "views", "pair_ids", "segments")
    spans = [[str(span or "") for span in annotations.spans]] if any(annotations.spans) else []
    for row in zip(*(getattr(annotations, column) for column in columns), *spans, strict=True):
        yield row[0], json.dumps(row)


def pool_digest(annotations: Annotations) -> str:
    """Return the sha256 over all annotated videos: the digest of the class names, then the lines sorted by id.

    Where the annotations have groups, the digest of these comes after that of the class names.
    """
    classes = [lines_digest(names) for names in (annotations.class_names, annotations.groups) if names]
    return lines_digest([*classes, *(line for _, line in sorted(pool_lines(annotations)))])


def pool_rows(annotations: Annotations) -> list[Row]:
    """Return (id, tag of everything that is read of it) of all videos, for a sketch."""
    return [(video_id, row_tag(line)) for video_id, line in pool_lines(annotations)]


def check_pool(dataset: str, annotations: Annotations, folder: Path) -> bool:
    """Refuse annotations of a benchmark of which anything differs that a new split could depend on.

    ``build_released`` needs only the videos of the released split to be the official ones; a draw depends on all. The
    result is False where the assignment is too old to tell. An ``AnnotationError`` names the videos that differ.
    """
    manifest, assignment = load_manifest(dataset), load_assignment(dataset)
    if not assignment.pool_digest or pool_digest(annotations) == assignment.pool_digest:
        return bool(assignment.pool_digest)
    problems = _differing_videos(annotations, manifest, assignment)
    if lines_digest(annotations.class_names) != assignment.names_digest:
        problems.append(_other_names(manifest))
    problems += _other_groups(annotations, assignment)
    if not problems:  # the ids are the official ones, so each fits into a sketch
        file_of = manifest.file_of
        source_of = dict(zip(annotations.video_ids, annotations.sources, strict=True))
        _, other, complete = RowSketch.from_cells(assignment.pool_sketch).difference(RowSketch(pool_rows(annotations)))
        what = "its labels, length, subject or segments are not the official ones"
        problems = [f"video {video_id} ({file_of[source_of[video_id]]}): {what}" for video_id, _ in other]
        if not complete:
            problems.append("the rows of more videos differ than can be named one by one")
    remedy = "If another printing of the files is intended, pass --accept-other-annotations; the split records it."
    raise AnnotationError(f"{_mismatch(manifest, folder, problems)}\n{remedy}")


def _other_names(manifest: Manifest) -> str:
    return f"{manifest.class_file.name}: the class names are not the official ones"


def _other_groups(annotations: Annotations, assignment: Assignment) -> list[str]:
    """Return the problem of a list of groups that is not the official one."""
    if not assignment.content_digest:
        return []
    found = content_digest(assignment.split_digest, assignment.names_digest, annotations.groups)
    counts = ", ".join(f"{annotations.groups.count(name)} {name}" for name in GROUP_NAMES)
    what = f"the groups of the classes ({counts}) are not the official ones"
    return [what] if found != assignment.content_digest else []


def label_rows(split: Split) -> list[Row]:
    """Return (id, tag of the labels) of the videos of a split, for a sketch."""
    ids, labels = split.table.column("video_id").to_pylist(), split.table.column("labels").to_pylist()
    return [(video_id, _label_tag(video_id, row)) for video_id, row in zip(ids, labels, strict=True)]


def _label_tag(video_id: str, labels: Iterable[int]) -> bytes:
    return row_tag(video_id, ",".join(map(str, sorted(labels))))


def _mismatch(manifest: Manifest, folder: Path, problems: list[str]) -> AnnotationError:
    return AnnotationError(
        f"the annotations in {folder} are not those that {manifest.title} was released on:\n"
        f"{bullet_list(problems, _MOST_NAMED)}\nNo split was written. {manifest.remedy}"
    )


# --- which ids differ -------------------------------------------------------------------------------------------


def _differing_videos(annotations: Annotations, manifest: Manifest, assignment: Assignment) -> list[str]:
    """Return the differences in the ids and in their official subsets."""
    digests = source_digests(annotations)
    if digests == assignment.source_digests:
        return []
    if swapped := _swapped_files(annotations, manifest, assignment, digests):
        return swapped
    file_of = manifest.file_of
    problems = []
    for file in manifest.files:
        got, expected = annotations.sources.count(file.source), assignment.source_videos[file.source]
        if got != expected:
            last = max(row for row, source in enumerate(annotations.sources) if source == file.source)
            count = f"{file_of[file.source]} holds {write_count(got, 'video')}, expected {expected:,}"
            problems.append(f"{count}; the last is {annotations.video_ids[last]}")
            counts = source_positives(annotations, file.source), assignment.source_positives[file.source]
            where = f"videos per class in {file_of[file.source]}"
            problems += _differing_counts(*counts, where, annotations.class_names)
    rows = id_rows(annotations)
    fitting = [row for row in rows if len(row[0].encode()) <= ID_BYTES]
    misfits = [video_id for video_id, _ in rows if len(video_id.encode()) > ID_BYTES]
    missing, extra, complete = RowSketch.from_cells(assignment.id_sketch).difference(RowSketch(fitting))
    if not complete:
        problems.append("more videos differ than can be named one by one")
    extra_ids = {*misfits, *(video_id for video_id, _ in extra)}
    missing_ids = {video_id for video_id, _ in missing}
    official = {name: next((s for s in file_of if row_tag(name, s) == tag), "") for name, tag in missing}
    found = dict(zip(annotations.video_ids, annotations.sources, strict=True))
    for video_id in sorted(missing_ids | extra_ids):
        wanted, got_in = file_of.get(official.get(video_id, "")), file_of.get(found.get(video_id, ""))
        if video_id in missing_ids and video_id in extra_ids:
            problems.append(f"video {video_id} is in {got_in}, expected in {wanted}")
        elif video_id in missing_ids:
            problems.append(f"video {video_id} is missing, expected in {wanted}")
        else:
            problems.append(f"video {video_id} in {got_in} is not an official one")
    return problems


def _swapped_files(
    annotations: Annotations, manifest: Manifest, assignment: Assignment, digests: dict[str, str]
) -> list[str]:
    """Recognise official files that lie under one another's names."""
    official = {digest: source for source, digest in assignment.source_digests.items()}
    file_of = manifest.file_of
    problems = []
    for source, digest in digests.items():
        if official.get(digest, source) != source:
            first = annotations.video_ids[annotations.sources.index(source)]
            what = f"{file_of[source]} holds the videos of {file_of[official[digest]]} (the first is {first})"
            problems.append(f"{what}: the files are swapped")
    return problems


# --- which labels differ ----------------------------------------------------------------------------------------


def _differing_labels(annotations: Annotations, split: Split, manifest: Manifest, assignment: Assignment) -> list[str]:
    """Return the videos with other labels than in the released split, and the classes with other counts."""
    problems = []
    suspects: set[int] = set()
    for subset in SUBSETS:
        got, expected = split.positives(subset).tolist(), assignment.positives[subset]
        problems += _differing_counts(got, expected, f"videos per class in {subset}", split.class_names)
        suspects |= {index for index, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b}
    missing, extra, complete = RowSketch.from_cells(assignment.row_sketch).difference(RowSketch(label_rows(split)))
    if not complete:
        problems.append("the labels of more videos differ than can be named one by one")
    wanted = dict(missing)
    found = dict(zip(annotations.video_ids, annotations.labels, strict=True))
    source_of = dict(zip(annotations.video_ids, annotations.sources, strict=True))
    file_of = manifest.file_of
    for number, (video_id, _) in enumerate(extra):
        # The search for the classes takes time, so it is done for the first few videos only.
        tag = wanted.get(video_id) if number < _MOST_SEARCHED else None
        how = _label_difference(video_id, found[video_id], tag, suspects, split.num_classes)
        problems.append(f"video {video_id} ({file_of[source_of[video_id]]}): {how}")
    return problems


def _differing_counts(got: Sequence[int], expected: Sequence[int], what: str, names: Sequence[str]) -> list[str]:
    off = [index for index, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b]
    if not off:
        return []
    named = first_few(f"{index} {names[index]!r} {got[index]:,} (expected {expected[index]:,})" for index in off)
    return [f"{what}: {named}"]


def _label_difference(
    video_id: str, labels: tuple[int, ...], tag: bytes | None, suspects: set[int], num_classes: int
) -> str:
    """Name the wrong classes of a video by a search for the labels that have the published tag.

    Among the classes with wrong counts, which are tried first, up to three labels may differ.
    """
    given = f"its classes {','.join(map(str, sorted(labels)))}"
    if tag is None:
        return f"{given} are not the released ones"
    few = sorted(suspects)[:_SUSPECTS]
    for classes, most in ((few, _MISPRINTS + 1), (range(num_classes), _MISPRINTS)):
        for changed in chain.from_iterable(combinations(classes, size) for size in range(1, most + 1)):
            if _label_tag(video_id, set(labels) ^ set(changed)) == tag:
                lacking = [f"class {index} is missing" for index in changed if index not in labels]
                wrong = [f"class {index} is unexpected" for index in changed if index in labels]
                return ", ".join(lacking + wrong)
    return f"{given} differ from the released ones in more than {_MISPRINTS}"


# --- other forms of a split -------------------------------------------------------------------------------------


def write_csv(split: Split, path: Path) -> Path:
    """Write the columns of a split file as CSV.

    Labels are joined by ``;``, as are segments ``label start end``, which is the form of the official Charades files;
    an unknown length is an empty cell.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, split.table.column_names, lineterminator="\n")
        writer.writeheader()
        for batch in split.table.to_batches():
            for row in batch.to_pylist():
                row["labels"] = ";".join(map(str, row["labels"]))
                row["length_s"] = "" if row["length_s"] != row["length_s"] else f"{row['length_s']:.7g}"
                parts = (f"{part['label']} {part['start_s']:.7g} {part['end_s']:.7g}" for part in row["segments"])
                row["segments"] = ";".join(parts)
                for name in set(row) & {"start_s", "end_s"}:
                    row[name] = "" if row[name] != row[name] else repr(row[name])
                writer.writerow(row)
    return path


def write_lists(split: Split, folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """Write one list per subset: ``VIDEOID c1,c2``, classes in the order of first occurrence, rows in official order.

    ``names`` are the files' names in the folder, by subset; return the paths by subset.
    """
    paths = {}
    for subset in SUBSETS:
        columns = [split.rows(subset).column(name).to_pylist() for name in ("video_id", "labels", "segments")]
        lines = []
        for video_id, labels, segments in zip(*columns, strict=True):
            ordered = dict.fromkeys(part["label"] for part in segments) if segments else labels
            lines.append(f"{video_id} {','.join(map(str, ordered))}\n")
        paths[subset] = folder / names[subset]
        with written_whole(paths[subset]) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths
