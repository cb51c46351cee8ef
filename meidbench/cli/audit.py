"""``meidbench audit``: leakage and consistency of a split file."""

import sys

import click

from meidbench.cli.parameters import as_json


@click.command(
    short_help="Look for leakage and inconsistencies in a split.",
    epilog="\b\nExample:\n  meidbench audit charadesegolt --strict",
)
@click.argument("split")
@click.option("--strict", is_flag=True, help="End with exit code 1 if anything is found.")
@as_json
def audit(split: str, strict: bool, as_json: bool) -> None:
    """Look for what a reader of results on SPLIT should know.

    Groups (takes of one script, parts of one film) or subjects in several subsets, ids that occur twice, classes
    missing from a subset, videos shorter than 200 frames at 24 frames a second, and anything in which the file
    contradicts itself.
    """
    import json
    from dataclasses import asdict

    from meidbench.audit import CHECKS, audit_split
    from meidbench.errors import first_few
    from meidbench.split_file import load_split

    findings = audit_split(load_split(split, check=False))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            rest = f": {first_few(finding.examples)}" if finding.examples else ""
            more = ", ..." if finding.count > len(finding.examples) > 0 else ""
            click.echo(f"{finding.severity:<7}  {finding.check}: {finding.count:,} {finding.what}{rest}{more}")
        found = {finding.check for finding in findings}
        clean = [name for name in CHECKS if name not in found]
        click.echo(f"nothing found by: {', '.join(clean) or 'none of the checks'}")
    if strict and findings:
        sys.exit(1)
