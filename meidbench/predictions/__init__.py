"""Prediction files of every form, opened by their content and read block by block; several files as one run.

The sizes that a file announces are compared with the file before anything is allocated.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from meidbench.checks import describe_missing, is_url
from meidbench.errors import PredictionError, describe_content, first_few
from meidbench.predictions.arrays import Hdf5File, NpyFile, NpzFile
from meidbench.predictions.base import (
    ID_NAMES,
    SCORE_NAMES,
    JsonLinesFile,
    PredictionFile,
    Scores,
    TableFile,
    name_classes,
)
from meidbench.predictions.parquet import ParquetFile

__all__ = ["FORMS", "PredictionFile", "open_predictions"]

FORMS: dict[bytes, Callable[[Path], PredictionFile]] = {
    b"PAR1": ParquetFile,
    b"PK\x03\x04": NpzFile,
    b"\x89HDF\r\n\x1a\n": Hdf5File,
    b"{": JsonLinesFile,
}
_MATRIX = b"\x93NUMPY"
# A folder of files of one run may also hold logs and settings.
ENDINGS = (".parquet", ".npz", ".npy", ".h5", ".hdf5", ".csv", ".tsv", ".txt", ".jsonl")

_WRITE = 'meidbench.write_predictions("run.parquet", {})'
_NUMBERS = f"\n  import meidbench, numpy as np; {_WRITE.format('video_ids, np.array(scores, np.float32)')}"
_UNPACK = ". Unpack it, and name the file in it"
_NO_SCORES = f". It has no scores; those of a model are written by meidbench predict, or by a script:{_NUMBERS}"
# The remedy for each kind of file that is not read, by the words of ``describe_content``.
REMEDIES = {
    "a pickle": ", which is never loaded: that could run a program. If you trust it, load it in Python and write its "
    f"scores:{_NUMBERS}\nThe scores in mmaction2's result.pkl are in the order of its annotation file.",
    "a file of torch.save": ", which is not loaded. If it holds scores, torch.load it in Python and write them:\n  "
    f"import meidbench; {_WRITE.format('video_ids, scores')}\nA checkpoint has no scores; meidbench predict RUN --out "
    "run.parquet writes those of a run.",
    "a NumPy array of Python objects": ", pickled and never loaded. Where you have the array, write its numbers:\n  "
    f"import meidbench, numpy as np; {_WRITE.format('video_ids, np.array(scores.tolist(), np.float32)')}",
    **dict.fromkeys(("a zip archive", "a compressed archive", "a tar archive"), _UNPACK),
    "an Excel workbook": ". Save the sheet as CSV:\n  "
    'import pandas; pandas.read_excel({name!r}).to_csv("run.csv", index=False)',
    "an Arrow file": '. Write it as Parquet:\n  import pandas; pandas.read_feather({name!r}).to_parquet("run.parquet")',
    **dict.fromkeys(("a database", "a MATLAB file"), f". Read it in Python, and write its scores:{_NUMBERS}"),
    "text in UTF-16": ". Save the text in UTF-8",
    "a web page": ", sent by a server in the place of the file. Download the file again",
    "a pointer of Git LFS in the place of the file": ". Fetch the file: git lfs pull",
    "a split file": ". Name the prediction file in its place, and this file with --split",
    **dict.fromkeys(("an image", "a video file", "a PDF document"), _NO_SCORES),
}
_IDS, _SCORES = "|".join(ID_NAMES), "|".join(SCORE_NAMES)
# JSON lines: an object with a key that names ids or scores.
_OBJECT = re.compile(rf'\{{.*"({_IDS}|{_SCORES})"\s*:', re.IGNORECASE | re.DOTALL)
_OTHER_KEY = rf'\{{\s*"(?!(?:{_SCORES})")[^"]*"\s*:\s*'
# Forms of JSON that are not read, by their beginning: the words, and the arguments that write the scores in ``found``.
_JSON = (
    (rf'\{{\s*"({_IDS})"\s*:\s*\[', "an object of ids and scores", 'found["{0}"], found["scores"]'),
    (rf'\{{\s*"({_SCORES})"\s*:\s*\[\s*\[', "an object of scores and ids", 'found["video_ids"], found["{0}"]'),
    (rf"{_OTHER_KEY}\[\s*-?\d", "scores by video id", "list(found), list(found.values())"),
    (
        rf'{_OTHER_KEY}\{{\s*"[^"]*"\s*:\s*["\d-]',
        "one object per class, or per video (then add .T)",
        "pandas.DataFrame(found)",
    ),
    (r"\[\s*\[", "a list of scores without video ids", "video_ids, found"),
    (
        r'\[\s*\{[^}]*"(?:video_)?id"',
        "a list of objects; JSON lines have one object per line",
        "pandas.DataFrame(found)",
    ),
)
_RESULT = re.compile(r'\{\s*"(accuracy"\s*:|classes"\s*:\s*\[)\s*\{')  # of evaluate and of compare


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse a file of a kind that is not read, by its content and its first bytes; the message names the remedy."""
    kind, name = describe_content(path), str(path)
    if kind == "a checkpoint of a run":
        command = f"meidbench predict {path.parent} --out run.parquet"
        raise PredictionError(f"{path} is a checkpoint of a run, which has no scores. Write them:\n  {command}")
    if kind in REMEDIES:
        raise PredictionError(f"{path} is {kind}{REMEDIES[kind].replace('{name!r}', repr(name))}")
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if kind == "JSON":
        _refuse_json(path, text)


def _refuse_json(path: Path, text: str) -> None:
    """Refuse JSON that is no JSON lines, by the beginning of its text."""
    if _RESULT.match(text):
        result = "a result of meidbench evaluate or compare, which has no scores"
        raise PredictionError(f"{path} is {result}. Name a prediction file in its place")
    for form, words, arguments in _JSON:
        if found := re.match(form, text, re.IGNORECASE):
            pandas = ", pandas" if "pandas" in arguments else ""
            read = f"found = json.loads(pathlib.Path({str(path)!r}).read_text())"
            raise PredictionError(
                f"{path} is JSON, {words}. Write a prediction file of it in Python:\n  "
                f"import json, meidbench, pathlib{pandas}; {read}; {_WRITE.format(arguments.format(*found.groups()))}"
            )
    if not _OBJECT.match(text):
        raise PredictionError(f"{path} is JSON of another form, or damaged. Write its scores in Python:{_NUMBERS}")


def _make_local(path: str | os.PathLike[str]) -> Path:
    """Return a local path; a file at an address is fetched first."""
    if not is_url(path):
        return Path(path)
    from meidbench.annotations.download import fetch_url

    return fetch_url(str(path))


def open_predictions(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], video_ids: str | os.PathLike[str] | None = None
) -> PredictionFile:
    """Open the predictions of a run: one file, several files, or a folder of files (one per process or shard).

    The content of a file decides its form, not its name. Pickled objects are never loaded. The forms are Parquet
    (``video_id``, and ``scores`` as lists or a column per class), NPZ or HDF5 (``video_ids``, ``scores``), CSV, JSON
    lines (``video_id``, ``scores``), the official Charades text form, and a ``.npy`` matrix, whose ids the file
    ``video_ids`` has: one id per line, in the order of the rows. A text such as ``https://...``, ``s3://...`` or
    ``hf://...`` is an address, whose file is fetched through fsspec to ``MEIDBENCH_HOME`` first.

    Raises
    ------
    PredictionError
        A file does not exist, is empty, damaged, or of an unknown form; the files of a run do not belong together.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(listed, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in listed):
        raise PredictionError(f"expected the path of a prediction file, or a list of paths, got {type(paths).__name__}")
    given = [_make_local(path) for path in listed]
    ids = None if video_ids is None else Path(video_ids)
    if ids is not None and not ids.is_file():
        raise PredictionError(describe_missing("file of ids", ids))
    files = [file for path in given for file in (_list_folder(path) if path.is_dir() else [path])]
    if not files:
        raise PredictionError("no prediction file was given")
    if ids is not None and len(files) > 1:
        raise PredictionError(f"{ids} has the ids of one .npy matrix, but {len(files):,} files are given")
    opened = [_open_file(file, ids) for file in files]
    return opened[0] if len(opened) == 1 else JoinedFiles(opened)


def _open_file(path: Path, ids: Path | None) -> PredictionFile:
    if not path.is_file():
        raise PredictionError(describe_missing("prediction file", path))
    with path.open("rb") as stream:
        start = stream.read(1 << 12)
    if not start:
        raise PredictionError(f"{path} is empty")
    refuse_foreign(path, start)
    if start.startswith(_MATRIX):
        file: PredictionFile = NpyFile(path, ids)
    elif ids is not None:
        raise PredictionError(f"{ids} has the ids of a .npy matrix; {path} is none, and must hold its ids itself")
    else:
        form = next((form for magic, form in FORMS.items() if start.startswith(magic)), TableFile)
        file = form(path)
    file.check_dtype()
    return file


def _list_folder(folder: Path) -> list[Path]:
    """Return the files of a run in a folder, which have one ending."""
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in ("log.jsonl", "best.pt")):
        if made := sorted(folder.glob("predictions-*.parquet")):
            raise PredictionError(f"{folder} is the folder of a run; name a file of scores in it: {first_few(made)}")
        command = f"meidbench predict {folder} --out run.parquet"
        raise PredictionError(f"{folder} is the folder of a run, which has no scores. Write them:\n  {command}")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if path.suffix.lower() in ENDINGS]
    if not found:
        held = first_few(path.name for path in files) or "no file"
        raise PredictionError(f"{folder} holds {held}; expected prediction files ({', '.join(ENDINGS)})")
    if len(counts := Counter(path.suffix.lower() for path in found)) > 1:
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
        raise PredictionError(f"{folder} holds files of several forms ({kinds}); name the files of one run")
    return found


def _class_columns(file: PredictionFile) -> tuple[list[str] | None, Any]:
    """Return what a file says about the order of its classes."""
    return name_classes(file.class_names), file.metadata.get("class_names")


class JoinedFiles(PredictionFile):
    """Several files as one: the rows of the first file, then those of the next one."""

    def __init__(self, files: Sequence[PredictionFile]) -> None:
        first = files[0]
        super().__init__(first.path)
        self.files = files
        columns = _class_columns(first)
        for file in files[1:]:
            other = ""
            if file.num_classes != first.num_classes:
                other = f"scores for {file.num_classes:,} classes, {first.path} for {first.num_classes:,}"
            elif file.dtype != first.dtype:
                other = f"scores of type {file.dtype}, {first.path} of {first.dtype}"
            elif _class_columns(file) != columns:
                other = f"other class columns than {first.path}, or another order of them"
            if other:
                raise file.refusal(f"it has {other}; expected files of one run")
        self.num_classes, self.class_names, self.dtype = first.num_classes, first.class_names, first.dtype
        self.num_videos = sum(file.num_videos for file in files)
        self.metadata = self._join_metadata()

    def _join_metadata(self) -> dict[str, Any]:
        """Return the facts of all files; the run is that of a file that was chosen on test, or else the first."""
        joined: dict[str, Any] = {}
        for file in self.files:
            for key, value in file.metadata.items():
                chosen = isinstance(value, dict) and value.get("select_on") == "test"
                if key == "run" and chosen:
                    joined[key] = value
                elif joined.setdefault(key, value) != value and key != "run":
                    raise file.refusal(f"its {key} is not that of {self.path}; expected files of one run")
        return joined

    def _read_ids(self) -> list[str]:
        return [video_id for file in self.files for video_id in file.video_ids]

    def blocks(self) -> Iterator[tuple[int, Scores]]:
        starts = accumulate((file.num_videos for file in self.files), initial=0)
        for first, file in zip(starts, self.files, strict=False):
            yield from ((first + start, block) for start, block in file.blocks())
