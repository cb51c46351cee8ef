"""``meidbench datasets``: what each benchmark needs and what of it is there."""

import click

from meidbench.cli.parameters import DATASETS, as_json


@click.command(
    short_help="Show what each benchmark needs and what is there.", epilog="\b\nExample:\n  meidbench datasets"
)
@as_json
def datasets(as_json: bool) -> None:
    """Show each benchmark: what it needs, what is there, how to get the rest, its licence.

    Looks under MEIDBENCH_HOME (default: the platform's cache folder).
    """
    import json

    from meidbench.annotations import annotation_paths
    from meidbench.home import annotations_folder, split_path
    from meidbench.manifests import load_manifest

    entries = []
    for name in DATASETS:
        manifest = load_manifest(name)
        folder = annotations_folder(manifest.annotations)
        places = annotation_paths(manifest, folder)
        there = [file for file, paths in places.items() if paths]
        missing = [file for file, paths in places.items() if not paths]
        split = split_path(name)
        entries.append(
            {
                "dataset": name,
                "annotations": str(folder),
                "present": there,
                "missing": missing,
                "split": str(split),
                "split_built": split.is_file(),
                "licence": manifest.licence.name,
                "licence_url": manifest.licence.url,
                "known_defects": list(manifest.defects),
            }
        )
        if as_json:
            continue
        state = f"missing {', '.join(missing)}" if missing else "all there"
        click.echo(f"{manifest.title} ({name})")
        click.echo(f"  annotations  {folder}: {state}")
        if missing:
            click.echo(f"               get them: meidbench download {name} --accept-licence")
        click.echo(f"  split        {split}: {'built' if split.is_file() else 'not built'}")
        if not split.is_file():
            click.echo(f"               build it: meidbench build-splits {name}")
        click.echo(f"  licence      {manifest.licence.name}")
        click.echo(f"               {manifest.licence.url}")
        for defect in manifest.defects:
            click.echo(f"  known defect {defect}")
        click.echo()
    if as_json:
        click.echo(json.dumps(entries, indent=2, ensure_ascii=False))
