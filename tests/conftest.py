"""Fixtures that several tests share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from material import REAL, TOY, TOY_MANIFEST, released_split

from meidbench.splits.released import build_released
from meidbench.splits.split import Split, write_split


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what lies in the user's own MEIDBENCH_HOME out of the tests, and the tests out of it."""
    monkeypatch.setenv("MEIDBENCH_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """A copy of the toy annotations, to be damaged."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


@pytest.fixture(scope="session")
def toy_split() -> Split:
    return build_released(TOY_MANIFEST, TOY)


@pytest.fixture(scope="session")
def toy_split_file(toy_split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(toy_split, tmp_path_factory.mktemp("split") / "toylt.parquet")


@pytest.fixture(params=list(REAL))
def real_split(request: pytest.FixtureRequest) -> Split:
    """Each of the three published splits, built from the real annotations."""
    return released_split(request.param)


@pytest.fixture
def run() -> Iterator[Callable[..., Result]]:
    """Run the command line in this process; stdout and stderr are apart."""
    from meidbench.cli import main

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="meidbench")

    yield invoke
