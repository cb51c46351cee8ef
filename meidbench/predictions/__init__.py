"""Prediction files of every form, opened by their content and read block by block.

The sizes that a file announces are compared with the file before anything is allocated.
"""

import re
from collections.abc import Callable
from pathlib import Path

from meidbench.checks import describe_missing, is_url
from meidbench.errors import PredictionError, describe_content, first_few
from meidbench.predictions.arrays import Hdf5File, NpzFile
from meidbench.predictions.base import PredictionFile, TableFile
from meidbench.predictions.parquet import ParquetFile

__all__ = ["FORMS", "PredictionFile", "open_predictions"]

FORMS: dict[bytes, Callable[[Path], PredictionFile]] = {
    b"PAR1": ParquetFile,
    b"PK\x03\x04": NpzFile,
    b"\x89HDF\r\n\x1a\n": Hdf5File,
}

_WRITE = 'meidbench.write_predictions("run.parquet", video_ids, {})'
_NUMBERS = f"\n  {_WRITE.format('np.array(scores, np.float32)')}"
_UNPACK = ". Unpack it, and name the file in it"
_NO_SCORES = f". It has no scores; those of a model are written by meidbench predict, or by a script:{_NUMBERS}"
# The remedy for each kind of file that is not read, by the words of ``describe_content``.
REMEDIES = {
    "a pickle": ", which is never loaded: that could run a program. If you trust it, load it in Python and write its "
    f"scores:{_NUMBERS}\nThe scores in mmaction2's result.pkl are in the order of its annotation file.",
    "a file of torch.save": ", which is not loaded. If it holds scores, torch.load it in Python and write them:\n  "
    f"{_WRITE.format('scores')}\nA checkpoint has no scores; meidbench predict RUN --out run.parquet writes those of "
    "a run.",
    "a NumPy array of Python objects": ", pickled and never loaded. Where you have the array, write its numbers:\n  "
    f"{_WRITE.format('np.array(scores.tolist(), np.float32)')}",
    **dict.fromkeys(("a zip archive", "a compressed archive", "a tar archive"), _UNPACK),
    "an Excel workbook": '. Save the sheet as CSV:\n  pandas.read_excel({name!r}).to_csv("run.csv", index=False)',
    "an Arrow file": '. Write it as Parquet:\n  pandas.read_feather({name!r}).to_parquet("run.parquet")',
    **dict.fromkeys(("a database", "a MATLAB file"), f". Read it in Python, and write its scores:{_NUMBERS}"),
    "text in UTF-16": ". Save the text in UTF-8",
    "a web page": ", sent by a server in the place of the file. Download the file again",
    "a pointer of Git LFS in the place of the file": ". Fetch the file: git lfs pull",
    "a split file": ". Name the prediction file in its place, and this file with --split",
    **dict.fromkeys(("an image", "a video file", "a PDF document"), _NO_SCORES),
}
# Forms of JSON by their beginning: the words, and the ids and the scores in what json.load returns.
_JSON = (
    (r'\{\s*"[^"]*"\s*:\s*\[\s*-?\d', "scores by video id", "list(found)", "list(found.values())"),
    (r"\[\s*\[", "a list of scores without video ids", "video_ids", "found"),
    (
        r'\[\s*\{[^}]*"video_id"',
        "a list of objects",
        *(f'[e["{key}"] for e in found]' for key in ("video_id", "scores")),
    ),
)


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse a file of a kind that is not read, by its content and its first bytes; the message names the remedy."""
    kind, name = describe_content(path), str(path)
    if kind == "a file of torch.save" and path.with_name("config.json").is_file():
        command = f"meidbench predict {path.parent} --out run.parquet"
        raise PredictionError(f"{path} is a checkpoint of a run, which has no scores. Write them:\n  {command}")
    if kind in REMEDIES:
        raise PredictionError(f"{path} is {kind}{REMEDIES[kind].replace('{name!r}', repr(name))}")
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if kind == "JSON" and not re.match(r'\{[^\[{]*"(video_)?id"', text):
        for form, words, ids, scores in _JSON:
            if re.match(form, text):
                write = _WRITE.format(scores).replace("video_ids", ids, 1)
                raise PredictionError(
                    f"{path} is JSON, {words}. Write a prediction file of it in Python:\n  "
                    f"found = json.loads(pathlib.Path({name!r}).read_text()); {write}"
                )
        raise PredictionError(f"{path} is JSON of another form, or damaged. Write its scores in Python:{_NUMBERS}")


def _make_local(path: str | Path) -> Path:
    """Return a local path; a file at an address is fetched first."""
    if not is_url(path):
        return Path(path)
    from meidbench.annotations.download import fetch_url

    return fetch_url(str(path))


def open_predictions(path: str | Path) -> PredictionFile:
    """Open a prediction file; its content decides the form, not its name. Pickled objects are never loaded.

    The forms are Parquet (``video_id``, ``scores``), NPZ or HDF5 (``video_ids``, ``scores``), CSV with a header, and
    the official Charades text form. A text such as ``https://...``, ``s3://...`` or ``hf://...`` is an address, whose
    file is fetched through fsspec to ``MEIDBENCH_HOME`` first.

    Raises
    ------
    PredictionError
        The file does not exist, is empty, damaged, or of an unknown form.
    """
    path = _make_local(path)
    if made := sorted(path.glob("predictions-*.parquet")) if path.is_dir() else []:
        raise PredictionError(f"{path} is the folder of a run; name a file of scores in it: {first_few(made)}")
    if not path.is_file():
        raise PredictionError(describe_missing("prediction file", path))
    with path.open("rb") as stream:
        start = stream.read(1 << 12)
    if not start:
        raise PredictionError(f"{path} is empty")
    refuse_foreign(path, start)
    form = next((form for magic, form in FORMS.items() if start.startswith(magic)), TableFile)
    file = form(path)
    file.check_dtype()
    return file
