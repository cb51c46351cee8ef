"""The wheel, installed away from the checkout, does what the checkout does."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from material import TOY

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "venv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that leftovers of the checkout stay out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its other packages are those of the running environment."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(environment, symlinks=True)
    (target,) = environment.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", environment, "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, wheel], check=True, capture_output=True)
    # A .pth inside these folders (the checkout's own) is not followed, so sys.path adds the folders that one names.
    folders = [*site.getsitepackages(), *(path for path in sys.path if list(Path(path or ".").glob("*.dist-info")))]
    (target / "dependencies.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(folders)))
    return environment


@pytest.fixture
def call(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a program of that environment, and return its output."""

    def call(program: str, *arguments: object, cwd: Path = tmp_path, **environment: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MEIDBENCH_HOME")}
        words = [str(installed / "bin" / program), *map(str, arguments)]
        outcome = subprocess.run(words, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    return call


def test_the_wheel_holds_code_and_data_but_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "meidbench").rglob("*.py")}
    expected |= {f"meidbench/splits/{path.name}" for path in (ROOT / "splits").iterdir() if path.is_file()}
    for pattern in ("*.py", "*.toml"):
        expected |= {f"meidbench/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "baselines").rglob(pattern)}
    expected |= {"meidbench/py.typed", "meidbench/report/page.css", "meidbench/report/page.js"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {Path(name).name for name in names if ".dist-info/" in name} >= {"LICENSE", "NOTICE"}


WHERE = """
import meidbench, meidbench.baselines, meidbench.splits
print(meidbench.__file__, meidbench.baselines.__file__, meidbench.splits.__file__)
"""


def test_the_installed_wheel_builds_a_split_and_scores_a_file(call, installed, tmp_path):
    assert all(Path(path).is_relative_to(installed) for path in call("python", "-c", WHERE).split())
    call("meidbench", "build-splits", TOY / "toylt.toml", "--annotations", TOY, "--out", tmp_path)
    split = tmp_path / "toylt.parquet"
    result = call("meidbench", "evaluate", TOY / "predictions.npz", "--split", split, "--json", "-")
    assert json.loads(result)["dataset"] == "toylt"
    call("meidbench", "compare", TOY / "predictions.npz", "--split", split, "--bootstrap", 9, "--html", "page.html")
    assert "<style>:root{" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "charadeslt" in call("meidbench", "datasets")


def test_a_clone_hides_the_installed_package_and_finds_its_own_folders(call, tmp_path):
    """In a clone, ``python -m`` takes the packages of the working directory; PYTHONPATH does the same elsewhere."""
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=LEFT_OUT)
    for cwd, environment in ((clone, {}), (tmp_path, {"PYTHONPATH": str(clone)})):
        places = call("python", "-c", WHERE, cwd=cwd, **environment).split()
        assert places == [str(clone / name / "__init__.py") for name in ("meidbench", "baselines", "splits")]
    assert "charadeslt" in call("python", "-m", "meidbench", "datasets", cwd=clone)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", 1, "-m", "meidbench", "train", "--help"]
    assert "Usage: " in call("python", *launch, cwd=clone)


# In this process, of the packages that setup.cfg needs, only those of docs/scoring-requirements.txt can be imported.
SCORING = """
import re, sys
from configparser import ConfigParser
from pathlib import Path

def names(text):
    return {re.match("[a-z0-9-]+", line)[0] for line in text.lower().splitlines() if line.strip() and line[0] != "#"}

root, toy, out = map(Path, sys.argv[1:])
setup = ConfigParser()
setup.read(root / "setup.cfg")
scoring = (root / "docs" / "scoring-requirements.txt").read_text()
required = setup["options"]["install_requires"].strip()
assert set(scoring.splitlines()[1:]) < set(required.splitlines())
modules = {"pillow": "PIL", "scikit-learn": "sklearn"}
refused = {modules.get(name, name) for name in names(required) - names(scoring)}
assert {"torch", "av", "pandas"} <= refused

class Refuse:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse)

from click.testing import CliRunner
from meidbench.cli import main

table = out / "table.csv"
table.write_text("video_id,subset,labels\\na,train,0\\nb,val,0\\nc,test,0\\n")
for command in [
    f"build-splits {toy / 'toylt.toml'} --annotations {toy} --out {out}",
    f"build-splits {toy / 'toylt.toml'} --annotations {toy} --out {out} --variant grouped --seed 1",
    f"import-split {table} --out {out / 'mine.parquet'} --head-above 1 --tail-up-to 0",
    f"stats {out / 'toylt.parquet'}",
    f"audit {out / 'toylt.parquet'}",
    f"evaluate {toy / 'predictions.npz'} --split {out / 'toylt.parquet'} --bootstrap 9 --json {out / 'r.json'}",
    f"compare {toy / 'predictions.npz'} --split {out / 'toylt.parquet'} --bootstrap 9 --html {out / 'c.html'}",
    "datasets",
]:
    outcome = CliRunner().invoke(main, command.split())
    assert outcome.exit_code == 0, (command, outcome.output, outcome.exception)
"""


def test_scoring_needs_no_more_than_its_short_list_of_packages(tmp_path):
    outcome = subprocess.run(
        [sys.executable, "-c", SCORING, ROOT, TOY, tmp_path],
        capture_output=True, text=True, env={**os.environ, "MEIDBENCH_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
