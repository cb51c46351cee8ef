"""The commands ``datasets``, which lists the files of each benchmark, and ``download``, which fetches annotations."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from meidbench.cli.parameters import DATASET, FOLDER, as_json, command, echo, echo_json
from meidbench.errors import escape_controls
from meidbench.names import DATASETS

if TYPE_CHECKING:
    from tqdm import tqdm


@command(
    short_help="Show the files of each benchmark, and the missing ones.", epilog="\b\nExample:\n  meidbench datasets"
)
@as_json
def datasets(as_json: bool) -> None:
    """Show each benchmark: its files, the missing ones and how to get them, its licence.

    Looks under MEIDBENCH_HOME (default: the platform's cache folder).
    """
    from meidbench.annotations import annotation_paths
    from meidbench.splits.manifests import annotations_folder, load_manifest, split_path

    entries = []
    for name in DATASETS:
        manifest = load_manifest(name)
        folder = annotations_folder(manifest.annotations)
        places = annotation_paths(manifest, folder)
        missing = [file for file, paths in places.items() if not paths]
        split = split_path(name)
        entry = {
            "dataset": name,
            "annotations": str(folder),
            "present": [file for file, paths in places.items() if paths],
            "missing": missing,
            "split": str(split),
            "split_built": split.is_file(),
            "licence": manifest.licence.name,
            "licence_url": manifest.licence.url,
            "known_defects": [defect.what for defect in manifest.defects],
        }
        entries.append(entry)
        state = f"missing {', '.join(missing)}" if missing else "all there"
        lines = [f"{manifest.title} ({name})", f"  annotations  {folder}: {state}"]
        if missing:
            lines.append(f"               get them: meidbench download {name} --accept-licence")
        lines.append(f"  split        {split}: {'built' if entry['split_built'] else 'not built'}")
        if not entry["split_built"]:
            lines.append(f"               build it: meidbench build-splits {name}")
        lines += [f"  licence      {manifest.licence.name}", f"               {manifest.licence.url}"]
        lines += [f"  known defect {defect}" for defect in manifest.defects]
        if not as_json:
            echo("\n".join([*lines, ""]))
    if as_json:
        echo_json(json.dumps(entries, indent=2, ensure_ascii=False))


@command(epilog="\b\nExample:\n  meidbench download charadeslt --accept-licence")
@click.argument("dataset", metavar="DATASET", type=DATASET)
@click.option("--to", "folder", type=FOLDER, help="Folder to write to [default: where 'build-splits' looks for them].")
@click.option("--accept-licence", is_flag=True, help="Accept the licence, which is shown in any case.")
def download(dataset: str, folder: Path | None, accept_licence: bool) -> None:
    """Fetch annotations or label lists, verified.

    DATASET is videolt, charadeslt, charadesegolt or animalkingdom. A file is kept only if its size and sha256 are
    right. A download that was cut off is resumed, and a file that is there already is not fetched again. The paths go
    to stdout, one per line.
    """
    from meidbench.annotations.download import download_annotations
    from meidbench.splits.manifests import annotations_folder, load_manifest

    manifest = load_manifest(dataset)
    echo(manifest.licence_text, err=True)
    if not accept_licence:
        raise click.UsageError("nothing was fetched; to accept the licence above, add --accept-licence")

    folder = folder or annotations_folder(manifest.annotations)
    display = Display()
    try:
        paths = download_annotations(
            manifest, folder, accept_licence=True, progress=display.progress, report=display.say
        )
    finally:
        display.close()
    for path in paths:
        echo(str(path))
    if manifest.media:
        echo(f"These are the labels. {manifest.media}, see\n{manifest.licence.url}", err=True)


def _on_terminal() -> bool:
    return sys.stderr.isatty()


class Display:
    """Shows the progress of a download: bars on a terminal, else a line when a file begins and ends."""

    def __init__(self) -> None:
        self.on_terminal = _on_terminal()
        self.name = ""
        self.bar: tqdm[NoReturn] | None = None

    def progress(self, name: str, done: int, total: int) -> None:
        """Show the bytes of a file so far."""
        if name != self.name:
            self.close()
            self.name = name
            if self.on_terminal:
                from tqdm import tqdm

                self.bar = tqdm(desc=escape_controls(name), total=total, unit="B", unit_scale=True, file=sys.stderr)
            else:
                self.say(f"{name}: {total:,} bytes" + (f", of which {done:,} are here" if done else ""))
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif done == total:
            self.say(f"{name}: fetched")

    def say(self, message: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(escape_controls(message, keep="\n"), file=sys.stderr)
        else:
            echo(message, err=True)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
