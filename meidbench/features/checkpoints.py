"""Reading of weight files without running what may be hidden in them."""

import hashlib
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from meidbench.errors import FeatureError, first_few

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class Checkpoint:
    """What a weight file holds.

    Attributes
    ----------
    state : dict of str to Tensor
        On the CPU, as stored.
    sha256 : str
        Of the file, 64 hexadecimal digits.
    """

    state: dict[str, Tensor]
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict from a file.

    Parameters
    ----------
    path : Path
        A file that ``torch.save`` wrote, in its present or its former form, or a safetensors file. Its content
        tells which, not its name. The state dict may lie under ``state_dict``, ``model`` or ``model_state_dict``.

    Raises
    ------
    FeatureError
        The file cannot be read, is none of these, is damaged, or holds objects that only unpickling would make.

    Notes
    -----
    ``torch.load(weights_only=True)`` makes tensors and plain containers only. Before torch 2.6 that did not hold for
    two kinds of file, tar archives and TorchScript, so both are refused before torch sees them.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "weights.pth")
    ...     torch.save({"state_dict": {"fc.bias": torch.ones(2)}, "epoch": 3}, path)
    ...     read_checkpoint(path).state
    {'fc.bias': tensor([1., 1.])}
    """
    try:
        # One handle for all: what was hashed and looked at is what is loaded.
        with path.open("rb") as file:
            digest = _sha256(file)
            content = _content(file, path)
    except OSError as error:
        raise FeatureError(f"cannot read {path}: {type(error).__name__}: {error}") from None
    return Checkpoint(_state_dict(content, path), digest)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _content(file: IO[bytes], path: Path) -> Any:
    size = file.tell()
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if not start:
        raise FeatureError(f"{path} is empty; get the file anew")
    if _is_safetensors(start, size):
        return _safetensors(file, path)
    if start.startswith((_ZIP, _PICKLE)):
        return _torch(file, path, start)
    raise FeatureError(
        f"{path} is not a weight file: {size:,} bytes, {_kind(start)}\n"
        "  expected: a state dict as torch.save writes it, or safetensors"
    )


def _kind(start: bytes) -> str:
    if start.lstrip()[:1] in (b"<", b"{"):
        return "a web page or text; what was fetched was probably an error message"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it, or save its weights anew with torch.save"
    return f"beginning with {start[:8]!r}"


def _is_safetensors(start: bytes, size: int) -> bool:
    # Eight bytes of header length, then the header, which is JSON.
    return start[8:9] == b"{" and (int.from_bytes(start[:8], "little") < 1 << 30 or size < 9)


def _safetensors(file: IO[bytes], path: Path) -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise FeatureError(
            f"{path} is a safetensors file, and the package to read it is missing: pip install safetensors"
        ) from None
    try:
        return safetensors.torch.load(file.read())
    except Exception as error:  # as below
        raise _damaged(path, error) from None


def _torch(file: IO[bytes], path: Path, start: bytes) -> Any:
    try:
        # A tar archive may begin with any name; torch would unpack an old form of its own to disk.
        if tarfile.is_tarfile(file):
            raise FeatureError(f"{path} is a tar archive; unpack it, or save its weights anew with torch.save")
        file.seek(0)
        if start.startswith(_ZIP):
            with zipfile.ZipFile(file) as archive:
                members = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in members):
                raise FeatureError(f"{path} is a TorchScript program; save the state dict of its model instead")
            file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch was not tried with
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load the file unsafely; only what it stumbled on is handed on.
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if not blocked:
            cause = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            raise _damaged(path, cause[1] if cause else "not a stream of tensors") from None
        raise FeatureError(
            f"{path} holds more than tensors, and reading it could run a program hidden in it; it was not read\n"
            f"  got: a request for {blocked[1]}\n"
            "  way out: save the state dict alone, torch.save(model.state_dict(), path), where the file is trusted"
        ) from None
    except FeatureError:
        raise
    except Exception as error:  # a damaged stream makes the reader fail anywhere, with whatever comes up there
        raise _damaged(path, error) from None


def _damaged(path: Path, reason: Exception | str) -> FeatureError:
    told = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return FeatureError(f"{path} is damaged or cut short: {told[:200]}\n  way out: get the file anew")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    expected = "expected a dictionary of tensors, bare or under " + ", ".join(_WRAPPERS)
    if not isinstance(content, Mapping) or not content:
        raise FeatureError(f"{path} holds {_described(content)}; {expected}")
    if strange := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        raise FeatureError(f"{path} holds entries that are no tensors: {first_few(strange)}; {expected}")
    odd = [
        str(key)
        for key, value in content.items()
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu"
    ]
    if odd:
        raise FeatureError(
            f"{path} holds tensors that are sparse, quantised or without data: {first_few(odd)}; {expected}"
        )
    return {str(key): value.detach() for key, value in content.items()}


def _described(content: Any) -> str:
    return f"{'an empty' if content == {} else 'a'} {type(content).__name__}"
