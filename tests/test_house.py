"""The house keeps its own rules: style, types, nothing licensed in the tree, nothing without test and documentation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from material import real_data

import meidbench
from meidbench.baselines import AGGREGATORS, AUGMENTATIONS, LOSSES, METHODS, SAMPLERS
from meidbench.cli import main
from meidbench.splits.manifests import DATASETS
from meidbench.splits.statistics import CHECKS

ROOT = Path(__file__).parents[1]
BASELINES = [*LOSSES, *SAMPLERS, *AUGMENTATIONS, *AGGREGATORS, *(name for name in METHODS if "-" not in name)]


def text_of(*patterns: str) -> str:
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


@pytest.mark.parametrize("arguments", [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["tests/check_types.py"],
])  # fmt: skip
def test_linters_are_content(arguments):
    module = [] if arguments[0].endswith(".py") else ["-m"]
    outcome = subprocess.run([sys.executable, *module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("name", [*main.commands, *DATASETS, *CHECKS, *BASELINES])
def test_everything_with_a_name_has_a_test_and_a_line_in_the_docs(name):
    assert re.search(rf"\b{name}\b", text_of("tests/test_*.py")), f"no test names {name}"
    assert re.search(rf"\b{name}\b", text_of("README.md", "docs/*.md")), f"no documentation names {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "meidbench").rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_has_its_line_in_the_architecture(path):
    if path.name not in ("__init__.py", "__main__.py") and path.parent.name != "cli":
        assert f"`{path.relative_to(ROOT / 'meidbench')}`" in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_of_the_baselines_has_its_line_in_the_architecture(path):
    if path.name != "__init__.py":
        folder = path.relative_to(ROOT)
        named = f"`{folder.parent}/`" if folder.parent.name != "baselines" else f"`{folder}`"
        assert named in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("name", [name for name in meidbench.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name):
    assert getattr(meidbench, name).__doc__
    assert name in text_of("README.md", "docs/*.md")


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there are no tracked files to look through")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def licensed_ids_and_rows() -> tuple[set[str], set[str]]:
    """Ids of the licensed videos, and every line of the licensed files, cut at 60 characters."""
    ids, rows = set(), set()
    for path in [*real_data().rglob("*.csv"), *real_data().rglob("t*.lst"), *real_data("meid_lists").glob("*_*.txt")]:
        header = path.suffix == ".csv"
        for line in path.read_text(encoding="utf-8").splitlines()[header:]:
            rows.add(line.strip()[:60])
            ids.add(re.split(r"[ ,]", line, maxsplit=1)[0])
    return ids, rows


def test_nothing_of_the_licensed_files_is_in_the_tree():
    ids, rows = licensed_ids_and_rows()
    assert len(ids) > 150_000 and len(rows) > 150_000
    for path in tracked_files():
        text = path.read_bytes().decode(errors="replace")
        assert not {line.strip()[:60] for line in text.splitlines() if len(line) > 6} & rows, path
        # A word of five capitals may be an id by chance, several are none.
        words = set(re.findall(r"(?<![\w-])[\w-]{5,12}(?![\w-])", text))
        assert len(words & ids) < 3, (path, sorted(words & ids)[:5])


def test_no_tracked_file_is_large():
    assert [path.name for path in tracked_files() if path.stat().st_size > 1 << 20] == []
