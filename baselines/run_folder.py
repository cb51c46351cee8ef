"""The folder of a run: what it was made from, and whether a run may go on there."""

import hashlib
import importlib.util
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import torch

import meidbench
from meidbench.baselines.configuration import Config
from meidbench.errors import FeatureError, MeidbenchError, bullet_list
from meidbench.features import FeatureSource
from meidbench.features.feature_file import read_header, stored_checksums
from meidbench.files import locked, written_whole
from meidbench.splits.split import Split

FORMAT_VERSION = 1
SCORED = ("val", "test")

# Where a run of two stages has the run of its first.
FIRST_STAGE = "first-stage"

# What a run that was killed while it wrote leaves behind; see meidbench.files.written_whole.
_HALF_WRITTEN = re.compile(r"\.((config|result-\w+)\.json|(last|best)\.pt|predictions-\w+\.parquet)\.[0-9a-f]{12}")

# Videos of a subset whose rows go into the digest of features that have no checksums.
_LOOKED_AT = 16


@dataclass(frozen=True)
class Inputs:
    """What a run is made from besides its configuration.

    Attributes
    ----------
    dataset, variant, split_digest : str
    dim : int
        Width of the features.
    features_digest : str
        See ``features_digest``.
    recipe_digest : str
        Of the recipe in the feature file; empty where there is none.
    first_stage_digest : str
        Of the weights that the run begins with; empty where it begins anew.
    split_path, features_path : str
        Where they were; what a run is does not depend on it.
    """

    dataset: str
    variant: str
    split_digest: str
    dim: int
    features_digest: str
    recipe_digest: str
    split_path: str = ""
    features_path: str = ""
    first_stage_digest: str = ""

    @classmethod
    def of(cls, split: Split, features: FeatureSource, split_path: str = "", first_stage_digest: str = "") -> "Inputs":
        """Look at a split and its features.

        Raises
        ------
        FeatureError
            Features are missing or malformed.
        """
        digest = features_digest(split, features)
        if split_path and Path(split_path).is_file():
            split_path = str(Path(split_path).absolute())
        return cls(
            split.dataset,
            split.variant,
            split.digest,
            features.dim,
            digest,
            recipe_digest(features),
            split_path,
            str(features.path),
            first_stage_digest,
        )

    def differences(self, other: "Inputs") -> list[str]:
        """Say in what others differ, paths aside."""
        said = {
            "split_digest": "the split has other videos or labels",
            "dim": f"the features are {self.dim} wide in the run, {other.dim} now",
            "features_digest": "the features have other values",
            "recipe_digest": "the features were made by another recipe",
            "first_stage_digest": "the first stage has other weights",
        }
        return [text for name, text in said.items() if getattr(self, name) != getattr(other, name)]


class RunFolder:
    """``RUN/``: config.json, log.jsonl, last.pt, best.pt, predictions and results of val and test.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best mAP on the subset that selects."""
        return self.path / "best.pt"

    def predictions(self, subset: str) -> Path:
        """Return where the scores of a subset lie."""
        return self.path / f"predictions-{subset}.parquet"

    def result(self, subset: str) -> Path:
        """Return where the evaluation of a subset lies."""
        return self.path / f"result-{subset}.json"

    def open(self, config: Config, inputs: Inputs) -> None:
        """Begin a run, or make sure that the one that is there may go on.

        Raises
        ------
        MeidbenchError
            The folder holds another run, whose differences are named, or something else.
        """
        file = self.path / "config.json"
        if file.is_file():
            self.refuse_other(config, inputs)
            return
        self.check_free()
        content = {
            "format_version": FORMAT_VERSION,
            "config": config.to_tables(),
            "inputs": vars(inputs),
            "versions": versions(),
        }
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def refuse_other(self, config: Config, inputs: Inputs) -> None:
        """Refuse to go on with a run that was begun with something else.

        Raises
        ------
        MeidbenchError
            It was; the differences are named.
        """
        there, before = self.read()
        if problems := there.differences(config) + before.differences(inputs):
            raise MeidbenchError(
                f"{self.path} holds another run:\n{bullet_list(problems)}\n"
                "Name another folder with --out, or ask for what the run was begun with."
            )

    def begun_with(self, config: Config, inputs: Inputs) -> str:
        """Return the digest of the first stage of a run that needs it no more; empty where it does, or there is none.

        Raises
        ------
        MeidbenchError
            The folder holds another run, or something else.
        """
        if not (self.path / "config.json").is_file():
            self.check_free()
            return ""
        digest = self.read()[1].first_stage_digest
        self.refuse_other(config, replace(inputs, first_stage_digest=digest))
        return digest if self.last.is_file() else ""

    def check_free(self) -> None:
        """Refuse a folder with files of something else.

        Raises
        ------
        MeidbenchError
            There are some.
        """
        if (self.path / "config.json").is_file() or not self.path.is_dir():
            return
        if any(not entry.name.startswith(".") and entry.name != FIRST_STAGE for entry in self.path.iterdir()):
            raise MeidbenchError(f"{self.path} is not empty and holds no run; name another folder with --out")

    def read(self) -> tuple[Config, Inputs]:
        """Return what the run was begun with.

        Raises
        ------
        MeidbenchError
            There is no run, or its config.json is damaged.
        """
        file = self.path / "config.json"
        if not file.is_file():
            raise MeidbenchError(f"{self.path} holds no run (there is no config.json); 'meidbench train' makes one")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION:
                raise MeidbenchError(f"{file} is of version {content['format_version']}; this is for {FORMAT_VERSION}")
            return Config.from_tables(content["config"]), Inputs(**content["inputs"])
        except MeidbenchError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise MeidbenchError(f"{file} is damaged: {error!r}; name another folder with --out") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training here, and remove what a killed one left half written.

        Raises
        ------
        MeidbenchError
            One does.
        """

        def refuse() -> None:
            raise MeidbenchError(f"another process trains in {self.path}; wait for it, or name another folder")

        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.last, refuse):
            for entry in self.path.iterdir():
                if _HALF_WRITTEN.fullmatch(entry.name):
                    entry.unlink()
            yield


def features_digest(split: Split, features: FeatureSource) -> str:
    """Return a sha256 that tells features from others.

    Of a feature file it is over the checksum of every video of the split. Of other forms, which have none, over the
    number of rows of each and the rows of a few videos of each subset: a sample, which others can have in common.

    Raises
    ------
    FeatureError
        Features are missing or malformed.
    """
    digest = hashlib.sha256()
    checksums = _checksums(features)
    for subset in ("train", *SCORED):
        video_ids = split.video_ids(subset)
        if not video_ids:
            continue
        digest.update(features.check(video_ids).tobytes())
        if checksums is not None:
            digest.update(np.array([checksums[video_id] for video_id in video_ids], "<u4").tobytes())
            continue
        for position in np.unique(np.linspace(0, len(video_ids) - 1, min(_LOOKED_AT, len(video_ids))).astype(int)):
            digest.update(np.ascontiguousarray(features.read(video_ids[position])).tobytes())
    features.close()
    return digest.hexdigest()


def _checksums(features: FeatureSource) -> dict[str, int] | None:
    """Return the checksum of each video of a feature file, None where there are none."""
    try:
        header = read_header(features.path) if features.path.is_file() else None
    except FeatureError:  # an HDF5 file that others wrote
        return None
    if header is None:
        return None
    return dict(zip(header.layout.video_ids, stored_checksums(features.path), strict=True))


def recipe_digest(features: FeatureSource) -> str:
    """Return the sha256 of the recipe in a feature file, empty where there is none."""
    if not features.path.is_file():
        return ""
    try:
        recipe = read_header(features.path).recipe
    except FeatureError:  # an HDF5 file that others wrote
        return ""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, Any]:
    """Return the versions of what numbers depend on.

    Examples
    --------
    >>> sorted(versions())
    ['h5py', 'meidbench', 'numpy', 'pyarrow', 'python', 'torch']
    """
    return {
        "meidbench": meidbench.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
        "h5py": h5py.__version__,
    }


Report = Callable[[str], None]


class RunLog:
    r"""Writes ``log.jsonl``: what happened in each interval of steps and in each epoch.

    Of several processes the first writes, and the losses are those of its share.

    Parameters
    ----------
    folder : Path
        Of the run.
    report : callable
        Told once where TensorBoard is not installed.
    position, step : int
        How much of an earlier log stays, in bytes, and after how many steps that was: a resumed run does the rest
        again.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = RunLog(Path(folder), report=lambda line: None)
    ...     log.write("step", 20, loss=0.25, seconds=float("nan"))
    ...     log.close()
    ...     Path(folder, "log.jsonl").read_text()
    '{"event": "step", "step": 20, "loss": 0.25, "seconds": null}\n'
    """

    def __init__(self, folder: Path, report: Report, position: int = 0, step: int = 0) -> None:
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._file.truncate(min(position, self.position))
        self._board: Any = None
        # torch's writer alone would not do: it imports tensorboard when it is made.
        if importlib.util.find_spec("tensorboard") is None:
            report("TensorBoard is not installed: the log is log.jsonl alone (pip install tensorboard)")
        else:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)  # type: ignore[no-untyped-call, unused-ignore]

    @property
    def position(self) -> int:
        """Bytes that are written."""
        self._file.flush()
        self._file.seek(0, os.SEEK_END)
        return self._file.tell()

    def write(self, event: str, step: int, **facts: Any) -> None:
        """Write what happened, and after how many steps of the optimiser; what is not finite becomes null."""
        line = {"event": event, "step": step, **facts}
        self._file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _numbers(facts):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            numbers += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((f"{prefix}{name}", value))
    return numbers


CHECKPOINT_VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers and strings; a reader sees the file before or the one after, never half of it."""
    with written_whole(path) as temporary:
        try:
            torch.save({**content, "format_version": CHECKPOINT_VERSION}, temporary)
        except RuntimeError as error:  # what torch makes of a write that failed
            reason = str(error).partition("\n")[0]
            raise MeidbenchError(
                f"cannot write {path}: {reason}; is there space left? The one before is safe"
            ) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises
    ------
    MeidbenchError
        It is not there, damaged, of another version, or holds what could run.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder, "last.pt"), {"epoch": 3})
    ...     load_checkpoint(Path(folder, "last.pt"))["epoch"]
    3
    """
    if not path.is_file():
        raise MeidbenchError(f"there is no checkpoint {path}; train the run first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = int(content["format_version"])
    except Exception as error:
        # On damaged bytes torch lets through whatever the unpickler stumbles on.
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise MeidbenchError(
            f"{path} is no checkpoint of a run, or damaged: {reason}; remove it to begin anew"
        ) from None
    if version != CHECKPOINT_VERSION:
        raise MeidbenchError(f"{path} is a checkpoint of version {version}; this is for {CHECKPOINT_VERSION}")
    return dict(content)
