"""Where results go: files with a word on stderr, and one result on stdout."""

from pathlib import Path

import click


def write_text(path: Path, text: str) -> None:
    """Write a file whole, and say so on stderr."""
    from meidbench.files import written_whole

    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path}", err=True)


def print_result(json_file: Path | None, as_json: str, as_table: str) -> None:
    """Write the JSON where it was asked for; the table goes to stdout unless the JSON does."""
    if str(json_file) == "-":
        click.echo(as_json, nl=False)
        return
    if json_file is not None:
        write_text(json_file, as_json)
    click.echo(as_table)
