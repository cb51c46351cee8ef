"""Count the product: files, lines, entries of meidbench/, the longest file and the longest function.

python tests/house_counts.py [CHECKOUT]
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("meidbench", "baselines", "splits")


@dataclass(frozen=True)
class Counts:
    """The size of the product."""

    files: int
    lines: int
    entries: int
    longest_file: tuple[int, str]
    longest_function: tuple[int, str]

    @classmethod
    def from_checkout(cls, root: Path) -> "Counts":
        """Count the Python files of a checkout; lines include docstrings and blank lines."""
        paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
        texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}
        files = [(text.count("\n"), name) for name, text in texts.items()]
        functions = [
            ((node.end_lineno or 0) - node.lineno + 1, f"{name}: {node.name}")
            for name, text in texts.items()
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef)
        ]
        entries = sum(not path.name.startswith((".", "__pycache__")) for path in (root / "meidbench").iterdir())
        return cls(len(files), sum(lines for lines, _ in files), entries, max(files), max(functions))

    def describe(self) -> str:
        """Return one line per count."""
        return (
            f"Python files                {self.files:,}\n"
            f"lines, with docstrings      {self.lines:,}\n"
            f"entries of meidbench/       {self.entries}\n"
            f"longest file                {self.longest_file[0]} ({self.longest_file[1]})\n"
            f"longest function            {self.longest_function[0]} ({self.longest_function[1]})\n"
        )


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    sys.stdout.write(Counts.from_checkout(root).describe())
