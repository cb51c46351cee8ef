"""Checkpoints: written whole or not at all, and read without running anything that is in them."""

from pathlib import Path
from typing import Any

import torch

from meidbench.errors import MeidbenchError
from meidbench.files import written_whole

FORMAT_VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers and strings; a reader sees the file before or the one after, never half of it."""
    with written_whole(path) as temporary:
        try:
            torch.save({**content, "format_version": FORMAT_VERSION}, temporary)
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
    if version != FORMAT_VERSION:
        raise MeidbenchError(f"{path} is a checkpoint of version {version}; this is for {FORMAT_VERSION}")
    return dict(content)
