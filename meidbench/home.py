"""Where things lie that commands share: downloaded annotations and built splits."""

import os
from pathlib import Path

from meidbench.errors import MeidbenchError


def home() -> Path:
    """Return the folder named by ``MEIDBENCH_HOME``, else the platform's cache folder; it may not exist yet."""
    configured = os.environ.get("MEIDBENCH_HOME")
    if configured:
        try:
            return Path(configured).expanduser()
        except RuntimeError as error:
            raise MeidbenchError(f"MEIDBENCH_HOME is {configured!r}: {error}") from None
    from platformdirs import user_cache_path

    return user_cache_path("meidbench", appauthor=False)


def annotations_folder(source: str) -> Path:
    """Return where the annotations of a source (``charades``, ``charadesego``, ``videolt``) are kept."""
    return home() / "annotations" / source


def split_path(dataset: str, variant: str = "released", file_format: str = "parquet") -> Path:
    """Return where the built split of a dataset is kept."""
    stem = dataset if variant == "released" else f"{dataset}-{variant}"
    return home() / "splits" / f"{stem}.{file_format}"
