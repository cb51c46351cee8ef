"""Run mypy over meidbench/, baselines/ and splits/ as the one package that they are installed as, and over its user.

``setup.cfg`` maps the two folders into the package. mypy knows no such map, so the folders are copied into one.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / ".mypy_cache" / "source" / "meidbench"
FOLDERS = {"meidbench": PACKAGE, "baselines": PACKAGE / "baselines", "splits": PACKAGE / "splits"}


def main() -> int:
    """Print the errors of mypy with the paths of the checkout; return its exit code."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    for name, target in FOLDERS.items():
        shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "meidbench"]
    command.append(str(ROOT / "tests" / "typed_user.py"))
    outcome = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    text = outcome.stdout + outcome.stderr
    for name in ("baselines", "splits"):
        text = text.replace(f"meidbench/{name}/", f"{name}/")
    print(text, end="")  # noqa: T201
    return outcome.returncode


if __name__ == "__main__":
    sys.exit(main())
