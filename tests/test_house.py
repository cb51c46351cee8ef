"""The house keeps its own rules: style, types, nothing licensed in the tree, nothing without test and documentation."""

import html
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
from house_counts import Counts
from material import real_data

import meidbench
from meidbench.baselines import AGGREGATORS, AUGMENTATIONS, LOSSES, METHODS, SAMPLERS
from meidbench.cli import main
from meidbench.names import DATASETS
from meidbench.splits.statistics import CHECKS

ROOT = Path(__file__).parents[1]
BASELINES = [*LOSSES, *SAMPLERS, *AUGMENTATIONS, *AGGREGATORS, *(name for name in METHODS if "-" not in name)]


@cache
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


MODULES = [path for folder in ("meidbench", "baselines", "splits") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_its_line_in_the_architecture(path):
    if path.name not in ("__init__.py", "__main__.py"):
        name = path.relative_to(ROOT).as_posix().removeprefix("meidbench/")
        assert f"`{name}`" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_architecture_names_no_module_that_is_not_there():
    named = re.findall(r"`([a-z0-9_/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text())
    assert named
    assert [name for name in named if not any((ROOT / folder / name).is_file() for folder in (".", "meidbench"))] == []


def test_the_house_keeps_its_size():
    counts = Counts.from_checkout(ROOT)
    assert counts.entries <= 16
    assert counts.longest_file[0] <= 500, counts.longest_file
    assert counts.longest_function[0] <= 80, counts.longest_function
    # A reader has to open each file, so a new file must have work of its own.
    assert counts.lines / counts.files >= 180


UNITS = (
    "second|minute|hour|video|class|row|step|problem|clip|loss|batch|epoch|command|file|method|benchmark|dataset|pass|"
    "replicate|process|device|part|line|label|frame|subset|check|sample|module|run|table|folder|stream|group|seed"
)
# Patterns of sentences over which a reader whose first language is not English stumbles.
HARD_WORDS = {
    "write 'per' for a rate": (
        r"\b(frame|video|row|label|byte|number|classe|line|file|dataset|second|hour|sample|step|epoch|positive|clip|module)"
        rf"s an? ({UNITS})\b|\b(one|file|line|row|function|entry|seed) an? ({UNITS})\b(?! (of|that|which)\b)"
    ),
    "write a number": r"\bas many\b",
    "say it": r"\b(says?|said) so\b",
    "write 'is not a'": r"\b(there is|there are|that (is|were|was|are)|holds) none\b|\bor none at all\b",
    "name the subject": r"(?:^|[.:;] |\"\"\"|# )What (was|is|were|are|comes|came|goes|stands|lies|a|an|the|one)\b",
    "no metaphor": r"\b(bars the way|way out|has its say|fresh eyes|lent)\b",
    "no private noun": r"\bclass _?(Pile|Look|Ours|Workshop|Moment|LentMemory|Lane|Team|Task|Sheet|Survey|Part)\b",
}


@pytest.mark.parametrize("rule", HARD_WORDS)
def test_words_are_plain(rule):
    paths = [*MODULES, *(ROOT / "docs").rglob("*.md"), *(ROOT / "baselines").rglob("*.toml"), ROOT / "README.md"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group(0)!r}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := re.search(HARD_WORDS[rule], line))
    ]
    assert not found, "\n".join(found)


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


def workbook_texts(name: str) -> list[str]:
    """Every text of a workbook of Animal Kingdom, read without the extra for workbooks."""
    with zipfile.ZipFile(real_data("animalkingdom") / name) as book:
        found = re.findall(r"<t[^>]*>([^<]*)</t>", book.read("xl/sharedStrings.xml").decode())
    return [html.unescape(text).strip() for text in found]


def licensed_ids_and_rows() -> tuple[set[str], set[str]]:
    """Ids of the licensed videos, and every line or cell of the licensed files, cut at 60 characters."""
    texts = workbook_texts("AR_metadata.xlsx")
    ids = {text for text in texts if re.fullmatch("[A-Z]{8}", text)}
    rows = {text[:60] for text in texts if len(text) > 6}
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


def test_no_class_names_of_animal_kingdom_are_in_the_tree():
    names = [text.lower() for text in workbook_texts("df_action.xlsx") if " " in text]
    assert len(names) > 50
    for path in tracked_files():
        text = path.read_bytes().decode(errors="replace").lower()
        # Two words may meet by chance.
        assert sum(name in text for name in names) < 3, path


def test_no_tracked_file_is_large():
    assert [path.name for path in tracked_files() if path.stat().st_size > 1 << 20] == []
