"""The wheel, installed away from the checkout, does what the checkout does."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from material import TOY

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "venv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing left over in the checkout gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_code_and_facts_but_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "meidbench").rglob("*.py")}
    expected |= {f"meidbench/splits/{path.name}" for path in (ROOT / "splits").iterdir() if path.is_file()}
    for pattern in ("*.py", "*.toml"):
        expected |= {f"meidbench/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "baselines").rglob(pattern)}
    expected |= {"meidbench/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {Path(name).name for name in names if ".dist-info/" in name} >= {"LICENSE", "NOTICE"}


def test_the_installed_wheel_builds_a_split_and_scores_a_file(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    # The dependencies are those of the running environment; a .pth inside it (the checkout's own) is not followed.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def call(*command: object) -> str:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MEIDBENCH_HOME")}
        words = [str(word) for word in command]
        outcome = subprocess.run(words, cwd=tmp_path, env=kept, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    where = call(python, "-c", "import meidbench, meidbench.splits as s; print(meidbench.__file__, s.__file__)")
    assert all(Path(path).is_relative_to(environment) for path in where.split())
    meidbench = environment / "bin" / "meidbench"
    call(meidbench, "build-splits", TOY / "toylt.toml", "--annotations", TOY, "--out", tmp_path)
    result = call(meidbench, "evaluate", TOY / "predictions.npz", "--split", tmp_path / "toylt.parquet", "--json", "-")
    assert json.loads(result)["dataset"] == "toylt"
    assert "charadeslt" in call(meidbench, "datasets")
