"""Prediction files of every form, opened by their content and read block by block.

The sizes that a file announces are compared with the file before anything is allocated.
"""

from collections.abc import Callable
from pathlib import Path

from meidbench.checks import describe_missing
from meidbench.errors import PredictionError
from meidbench.predictions.arrays import Hdf5File, NpzFile
from meidbench.predictions.base import PredictionFile, TableFile
from meidbench.predictions.parquet import ParquetFile

__all__ = ["FORMS", "PredictionFile", "open_predictions"]

FORMS: dict[bytes, Callable[[Path], PredictionFile]] = {
    b"PAR1": ParquetFile,
    b"PK\x03\x04": NpzFile,
    b"\x89HDF\r\n\x1a\n": Hdf5File,
}


def open_predictions(path: Path) -> PredictionFile:
    """Open a prediction file; its content decides the form, not its name. Pickled objects are never loaded.

    The forms are Parquet (``video_id``, ``scores``), NPZ or HDF5 (``video_ids``, ``scores``), CSV with a header, and
    the official Charades text form.

    Raises
    ------
    PredictionError
        The file does not exist, is empty, damaged, or of an unknown form.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionError(describe_missing("prediction file", path))
    with path.open("rb") as stream:
        start = stream.read(8)
    if not start:
        raise PredictionError(f"{path} is empty")
    form = next((form for magic, form in FORMS.items() if start.startswith(magic)), TableFile)
    file = form(path)
    file.check_dtype()
    return file
