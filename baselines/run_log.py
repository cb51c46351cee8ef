"""The log of a run: a JSON object a line, and the same for TensorBoard where that is installed."""

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
