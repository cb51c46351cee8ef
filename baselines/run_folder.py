"""The folder of a run: its configuration and inputs, its log, and its checkpoints."""

import hashlib
import importlib.util
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import torch

import meidbench
from meidbench.baselines.configuration import Config, flatten
from meidbench.baselines.inputs import Inputs
from meidbench.checks import is_whole_number, parse_json, read_json, show
from meidbench.errors import MeidbenchError, RequestError, bullet_list, first_few
from meidbench.extraction.encoders.weights import ZIP, TorchFileError, load_torch_file
from meidbench.files import locked, remove_stale, written_whole
from meidbench.names import LAST_EPOCH, SELECTION_SUBSETS, Report

FORMAT_VERSION = 1
CHECKPOINT_VERSION = 1
FIRST_STAGE = "first-stage"  # the folder of a first stage within its run

_CONFIG_REMEDY = "  remedy: put back a copy of this file, or train again in another folder"


class RunFolder:
    """``RUN/``: config.json, log.jsonl, last.pt, best.pt, predictions and results of val and test.

    Its methods refuse a folder with another run, whose differences they name, or with other files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.last = path / "last.pt"  # the checkpoint to resume from
        self.best = path / "best.pt"  # with the best mAP on the subset that selects, or of the last epoch

    def predictions(self, subset: str) -> Path:
        """Return the path of the scores of a subset."""
        return self.path / f"predictions-{subset}.parquet"

    def result(self, subset: str) -> Path:
        """Return the path of the evaluation of a subset."""
        return self.path / f"result-{subset}.json"

    def files(self) -> list[Path]:
        """Return the paths of all files of the run and of its first stage, which may not exist yet."""
        names = [self.config, self.last, self.best, self.path / "log.jsonl"]
        names += [make(subset) for subset in SELECTION_SUBSETS for make in (self.predictions, self.result)]
        return names + [path.parent / FIRST_STAGE / path.name for path in names]

    def open(self, config: Config, inputs: Inputs) -> str:
        """Begin a run, or make sure that the run in the folder may be resumed.

        Returns what a user must know of a run that gets more epochs, empty for others.
        """
        if self._holds(config, inputs):
            return self._lengthen(config) if self.ends_before(config) else ""
        content = {
            "format_version": FORMAT_VERSION,
            "config": config.to_tables(),
            "inputs": vars(inputs),
            "versions": list_versions(),
            "threads": torch.get_num_threads(),
        }
        self._write_config(content)
        return ""

    def _write_config(self, content: dict[str, Any]) -> None:
        with written_whole(self.config) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def continued(self, config: Config, *, trains_first: bool) -> Config:
        """Return the configuration that goes on with the run in the folder for more epochs, else the one that is given.

        Values that follow from the number of epochs stay as the run has them. Fewer epochs are refused. With
        ``trains_first`` the same is done for the first stage in the folder.
        """
        config = self._continue_stage(config)
        if config.first_stage is None or not trains_first:
            return config
        return replace(config, first_stage=RunFolder(self.path / FIRST_STAGE)._continue_stage(config.first_stage))

    def _continue_stage(self, config: Config) -> Config:
        there = self.read()[0] if self.config.is_file() else config
        before, asked = there.schedule.epochs, config.schedule.epochs
        kept = config.keep_values_of(there)
        if before == asked or there.differences(kept.with_epochs(before)):
            return config  # the same run, or another one, which is refused
        if asked < before:
            raise MeidbenchError(
                f"{self.path} is a run of {before} epochs, {asked} are asked for; a run can go on for more epochs, not "
                "end after fewer: name another folder with out=..."
            )
        return kept

    def ends_before(self, config: Config) -> bool:
        """Return whether the folder holds a run of fewer epochs."""
        return self.config.is_file() and self.read()[0].schedule.epochs < config.schedule.epochs

    def _lengthen(self, config: Config) -> str:
        """Record more epochs, and remove the results of fewer, by which a run is finished."""
        content, before = self._read_config(), self.read()[0].schedule.epochs
        if self.best.is_file() and not self.last.is_file():
            raise MeidbenchError(
                f"{self.path} cannot go on: its {self.last.name} is gone; train again in another folder"
            )
        results = {subset: self.result(subset) for subset in SELECTION_SUBSETS if self.result(subset).is_file()}
        reached = {}
        for subset, path in results.items():
            with suppress(MeidbenchError):  # a damaged result is only left out
                reached[subset] = read_json(path).get("mAP")
        earlier = content.get("earlier")
        content["earlier"] = [*(earlier if isinstance(earlier, list) else ()), {"epochs": before, "mAP": reached}]
        for path in results.values():
            path.unlink()
        self._write_config({**content, "config": config.to_tables()})
        what = f"{self.path} goes on: {before} epochs become {config.schedule.epochs}"
        return f"{what}\n{config.describe_longer_run(before)}"

    def _holds(self, config: Config, inputs: Inputs) -> bool:
        """Return whether the folder holds this run, or nothing yet; refuse anything else."""
        if not self.config.is_file():
            entries = self.path.iterdir() if self.path.is_dir() else ()
            if any(not entry.name.startswith(".") and entry.name != FIRST_STAGE for entry in entries):
                raise MeidbenchError(f"{self.path} is not empty and holds no run; name another folder with out=...")
            return False
        there, before = self.read()
        if there.schedule.epochs < config.schedule.epochs:
            longer = there.with_epochs(config.schedule.epochs)
            there = there if longer.differences(config) else longer
        if problems := there.differences(config) + before.differences(inputs):
            raise MeidbenchError(
                f"{self.path} holds another run:\n{bullet_list(problems, 8)}\n"
                "Name another folder with out=..., or use the settings and inputs that the run began with."
            )
        return True

    def find_first_stage_digest(self, config: Config, inputs: Inputs) -> str:
        """Return the digest of the first stage of a run with a checkpoint, which no longer needs it; else empty."""
        digest = self.read()[1].first_stage_digest if self.config.is_file() else ""
        has_begun = self._holds(config, replace(inputs, first_stage_digest=digest))
        return digest if has_begun and self.last.is_file() else ""

    def check_first_stage(self, wanted: Config, inputs: Inputs) -> None:
        """Refuse a folder that does not hold the finished run of a first stage."""
        there, before = self.read()
        problems = there.differences(wanted) + before.differences(inputs)
        selects = wanted.selection.subset
        subsets = SELECTION_SUBSETS if selects == LAST_EPOCH else (selects,)
        if not problems and not any(self.result(subset).is_file() for subset in subsets):
            problems.append("it is not finished; run its command again")
        if problems:
            raise MeidbenchError(
                f"{self.path} cannot be the first stage:\n{bullet_list(problems)}\nLeave it out to train one, or name "
                f"a run of {wanted.method} with the same settings"
            )

    def read(self) -> tuple[Config, Inputs]:
        """Return the configuration and the inputs that the run began with."""
        content = self._read_config()
        try:
            return Config.from_tables(content["config"]), Inputs.from_table(content["inputs"])
        except (MeidbenchError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, MeidbenchError) else repr(error)
            raise MeidbenchError(f"{self.config} is damaged: {reason[:500]}\n{_CONFIG_REMEDY}") from None

    def record_trials(self, trials: int) -> None:
        """Record the trials of the search that chose this run; its scores, which name another number, are dropped."""
        if trials == self.read()[1].trials:
            return
        content = self._read_config()
        for subset in SELECTION_SUBSETS:
            self.result(subset).unlink(missing_ok=True)  # first: a run without its results is scored again
        self._write_config({**content, "inputs": {**content["inputs"], "trials": trials}})

    def count_threads(self) -> int | None:
        """Return the number of threads of torch that the run began with; None where it is not recorded."""
        threads = self._read_config().get("threads")
        return threads if is_whole_number(threads, 1) else None

    def count_steps(self) -> int | None:
        """Return the steps of the optimiser in the last sound line of the log; None without such a line."""
        with suppress(OSError):
            for line in reversed((self.path / "log.jsonl").read_bytes().splitlines()):
                with suppress(ValueError, RecursionError):
                    event = parse_json(line)
                    if isinstance(event, dict) and is_whole_number(event.get("step"), 1):
                        return int(event["step"])
        return None

    def _read_config(self) -> dict[str, Any]:
        if self.path.is_file():
            folder = self.path.parent
            example = f", such as {folder}" if (folder / self.config.name).is_file() else ""
            raise RequestError(f"{self.path} is a file; name the folder of the run{example}")
        if not self.config.is_file():
            inside = sorted(path.parent for path in self.path.glob(f"*/{self.config.name}"))
            remedy = f"its folders with runs: {first_few(inside)}" if inside else "'meidbench train' makes one"
            raise MeidbenchError(f"{self.path} holds no run (there is no config.json); {remedy}")
        try:
            content = read_json(self.config)
        except MeidbenchError as error:
            raise MeidbenchError(f"{error}\n{_CONFIG_REMEDY}") from None
        if (version := content.get("format_version")) != FORMAT_VERSION:
            raise MeidbenchError(f"{self.config} is of version {show(version)}; this is for {FORMAT_VERSION}")
        return content

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training here, and remove the half-written files of a killed one."""

        def refuse() -> None:
            raise MeidbenchError(f"another process trains in {self.path}; wait for it, or name another folder")

        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.last, refuse):
            for path in self.files():
                remove_stale(path)
            yield


def list_versions() -> dict[str, str]:
    """Return the versions of the software that numbers depend on."""
    return {
        "meidbench": meidbench.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
        "h5py": h5py.__version__,
    }


class RunLog:
    """Writes ``log.jsonl``: one line per interval of steps and per epoch.

    Of several processes the first one writes, and the losses are those of its share. ``position`` and ``step`` are the
    bytes of an earlier log to keep, and the number of steps that they cover: a resumed run repeats the rest.
    """

    def __init__(self, folder: Path, report: Report, position: int = 0, step: int = 0) -> None:
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._file.truncate(min(position, self.position))
        self._board: Any = None
        # torch's writer imports tensorboard only when it is made.
        if importlib.util.find_spec("tensorboard") is None:
            report("note: TensorBoard is not installed: the log is log.jsonl alone (pip install tensorboard)")
        else:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)  # type: ignore[no-untyped-call, unused-ignore]

    @property
    def position(self) -> int:
        """The number of bytes written."""
        self._file.flush()
        self._file.seek(0, os.SEEK_END)
        return self._file.tell()

    def write(self, event: str, step: int, **facts: Any) -> None:
        """Write an event after ``step`` steps of the optimiser; a number that is not finite becomes null."""
        line = {"event": event, "step": step, **facts}
        self._file.write(json.dumps(_make_finite(line), ensure_ascii=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in flatten(facts).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{event}/{name.replace('.', '/')}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _make_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _make_finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers and strings; a reader sees the old file or the new one, never half of it."""
    with written_whole(path) as temporary:
        try:
            torch.save({**content, "format_version": CHECKPOINT_VERSION}, temporary)
        except RuntimeError as error:  # torch raises it for a write that failed
            reason = str(error).partition("\n")[0]
            raise MeidbenchError(f"cannot write {path}: {reason}; is the disk full? The old file is safe") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises
    ------
    MeidbenchError
        It is missing, damaged, of another version, or holds code.
    """
    if not path.is_file():
        raise MeidbenchError(f"there is no checkpoint {path}; train the run first")
    try:
        with path.open("rb") as file:
            if (start := file.read(len(ZIP))) != ZIP:  # torch's former format has no checksums
                raise TorchFileError("is in a form that no run writes" if start else "is empty")
            content = load_torch_file(file)
        if not isinstance(content, dict) or type(content.get("format_version")) is not int:
            raise TorchFileError("has no format_version")
    except OSError as error:
        raise MeidbenchError(f"cannot read {path}: {error.strerror}") from None
    except TorchFileError as error:
        reason = str(error).splitlines()[0]
        raise MeidbenchError(
            f"{path} is not a checkpoint of a run, or damaged: it {reason}\n{checkpoint_remedy(path)}"
        ) from None
    if (version := content["format_version"]) != CHECKPOINT_VERSION:
        raise MeidbenchError(f"{path} is a checkpoint of version {show(version)}; this is for {CHECKPOINT_VERSION}")
    return dict(content)


def checkpoint_remedy(path: Path) -> str:
    """Return what to do about a checkpoint that cannot be used."""
    again = "it to start again" if path.name == "last.pt" else "the run's folder to train it again"
    return f"  remedy: put back a copy of the file, or remove {again}"


def digest_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of names, types, shapes and values; a checkpoint's bytes also depend on its file's name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because numpy has no bfloat16; reshaped, because a tensor without a dimension has no such view.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
