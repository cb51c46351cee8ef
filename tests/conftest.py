"""Fixtures that several tests share."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from material import REAL, TOY, TOY_MANIFEST, released_split

from meidbench.splits.released import build_released
from meidbench.splits.split import Split, write_split

# Threads that wait for one another take several times the computation of networks of the tests' size.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what lies in the user's own MEIDBENCH_HOME out of the tests, and the tests out of it."""
    monkeypatch.setenv("MEIDBENCH_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def heard_signals() -> Iterator[None]:
    """Let signals end processes, as on a terminal: a run in the background or under nohup ignores some of them."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


# --- extraction; imports inside the fixtures, because torch and PyAV take seconds ---


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos, one folder of frames, and three files that are no videos."""
    from make_videos import write_clips

    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def extracted_clips(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature file of the clips that one process writes without interruption."""
    from tiny_extractor import TinyExtractor

    from meidbench.extraction.extraction import extract_features
    from meidbench.extraction.videos import find_videos

    path = tmp_path_factory.mktemp("extracted") / "clips.h5"
    extract_features(find_videos(clips).videos, path, TinyExtractor(), workers=2)
    return path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode without processes, for tests of everything else."""
    from tiny_extractor import PoolInThisProcess

    monkeypatch.setattr("meidbench.extraction.extraction.DecoderPool", PoolInThisProcess)


@pytest.fixture
def rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Pillow resize every picture along its rows first, as up to version 12; 13 may begin with the columns."""
    from PIL import Image

    resize = Image.Image.resize

    def resize_in_two_steps(picture, size, resample=None, box=None, reducing_gap=None):
        assert box is None and reducing_gap is None, "a box or a gap is not implemented here"
        return resize(resize(picture, (size[0], picture.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", resize_in_two_steps)


@pytest.fixture
def small_resnet50(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shallow network for small images in the place of resnet50, for tests of everything around it."""
    from tiny_extractor import SMALL_RESNET

    from meidbench.extraction.encoders.backbones import BACKBONES

    monkeypatch.setitem(BACKBONES, "resnet50", SMALL_RESNET)
