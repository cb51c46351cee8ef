"""Where the material of the tests lies: the invented ToyLT, and the real annotations where they are at hand."""

import os
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"
TOY_MANIFEST = str(TOY / "toylt.toml")
REAL = {"charadeslt": "charades", "charadesegolt": "charadesego", "videolt": "videolt"}


def real_data(*parts: str) -> Path:
    """Return a folder of the real files, named by MEIDBENCH_TEST_DATA or beside the checkout, or skip."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEIDBENCH_TEST_DATA", beside)).joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(
            f"the official annotation files are not at hand ({folder}); set MEIDBENCH_TEST_DATA to have them tested"
        )
    return folder
