"""Make the assignment of a benchmark from the official annotations and the lists its authors released.

    python -m meidbench.splits.make charadeslt --annotations DIR --lists DIR --out splits

writes ``charadeslt.assignment.json``. Where the official subsets are the split, there are no lists. The result is
without video ids and labels: one symbol per video in the order of the sorted official ids, digests, counts, and
sketches in which every cell mixes many videos.
"""

import json
from pathlib import Path
from typing import Any

import click

from meidbench.annotations import Annotations, read_annotations
from meidbench.errors import MeidbenchError, SplitError, escape_controls, first_few
from meidbench.names import SUBSETS
from meidbench.splits import released
from meidbench.splits.manifests import Manifest, RowSketch, lines_digest, load_manifest

_SYMBOL_OF = {subset: symbol for symbol, subset in released.SYMBOLS.items()}
_WIDTH = 100


def read_sources(annotations: Annotations) -> dict[str, str]:
    """Return the subset of each id of a benchmark whose split is the official subsets."""
    return dict(zip(annotations.video_ids, annotations.sources, strict=True))


def read_lists(manifest: Manifest, folder: Path, annotations: Annotations) -> dict[str, str]:
    """Return the subset of each id from the released lists ``VIDEOID c1,c2,...``, checked against the annotations."""
    official = dict(zip(annotations.video_ids, annotations.labels, strict=True))
    subset_of: dict[str, str] = {}
    for subset in SUBSETS:
        for line in (folder / manifest.released[subset].file).read_text(encoding="utf-8").splitlines():
            video_id, cell = line.split()
            if video_id in subset_of:
                raise SplitError(f"{video_id} is in {subset_of[video_id]} and in {subset}")
            if official.get(video_id) != tuple(map(int, cell.split(","))):
                raise SplitError(f"the classes of {video_id} are not those of the annotations, in their order")
            subset_of[video_id] = subset
    return subset_of


def make_assignment(manifest: Manifest, annotations: Annotations, subset_of: dict[str, str]) -> dict[str, Any]:
    """Describe a released split without ids and labels; the keys are those of ``manifests.Assignment``."""
    subsets = [subset_of.get(video_id, "") for video_id in annotations.video_ids]
    split = released.released_split(annotations, subsets, manifest)
    ids = sorted(annotations.video_ids)
    symbols = "".join(_SYMBOL_OF[subset_of.get(video_id, "")] for video_id in ids)
    digests = released.source_digests(annotations)
    by_list = {} if manifest.thresholds else {"content_digest": split.content_digest}
    return {
        "symbols": [symbols[start : start + _WIDTH] for start in range(0, len(symbols), _WIDTH)],
        "ids_digest": lines_digest(ids),
        "names_digest": lines_digest(annotations.class_names),
        "split_digest": split.digest,
        **by_list,
        "source_videos": {source: annotations.sources.count(source) for source in digests},
        "source_digests": digests,
        "source_positives": {source: released.source_positives(annotations, source) for source in digests},
        "positives": {subset: split.positives(subset).tolist() for subset in SUBSETS},
        "id_sketch": RowSketch(released.id_rows(annotations)).cells(),
        "row_sketch": RowSketch(released.label_rows(split)).cells(),
        "pool_digest": released.pool_digest(annotations),
        "pool_sketch": RowSketch(released.pool_rows(annotations)).cells(),
    }


def to_json(content: dict[str, Any]) -> str:
    """Render the assignment with one line per entry, so that a comparison of versions shows the changed entries."""
    blocks = []
    for key, value in content.items():
        if isinstance(value, list):
            body = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            blocks.append(f'"{key}": [\n{body}\n]')
        elif isinstance(value, dict):
            body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            blocks.append(f'"{key}": {{\n{body}\n}}')
        else:
            blocks.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


@click.command()
@click.argument("dataset")
@click.option("--annotations", "annotations_folder", type=click.Path(path_type=Path), required=True)
@click.option("--lists", type=click.Path(path_type=Path), help="Folder of the released lists, where there are some.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("splits"), show_default=True)
def main(dataset: str, annotations_folder: Path, lists: Path | None, out: Path) -> None:
    """Write DATASET.assignment.json from the annotations and the released lists, or from the official subsets.

    DATASET is the name of a benchmark, or the path of a manifest. Its manifest names the lists, if there are some.
    """
    try:
        manifest = load_manifest(dataset)
        annotations = read_annotations(manifest, annotations_folder)
        if bool(manifest.released) != (lists is not None):
            what = "needs --lists" if manifest.released else "names no released lists, so leave out --lists"
            raise click.UsageError(f"the manifest of {manifest.title} {what}")
        subset_of = read_sources(annotations) if lists is None else read_lists(manifest, lists, annotations)
    except MeidbenchError as error:
        raise click.ClickException(str(error)) from None
    if unknown := set(subset_of) - set(annotations.video_ids):
        raise click.ClickException(f"ids of the lists that the annotations lack: {first_few(sorted(unknown))}")
    path = out / f"{manifest.name}.assignment.json"
    path.write_text(to_json(make_assignment(manifest, annotations, subset_of)), encoding="utf-8")
    click.echo(escape_controls(str(path)))


if __name__ == "__main__":
    main()
