"""Weights for the backbones: published ones, files of the user's, or random ones for tests. Nothing is unpickled."""

import hashlib
import math
import os
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
from torch import Tensor, nn

from meidbench.annotations.download import fetch
from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.extraction.encoders.backbones import BACKBONES, Backbone, ResNet
from meidbench.files import file_sha256
from meidbench.names import DownloadProgress, Report
from meidbench.splits.manifests import Download, home

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


RANDOM = "random"


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that can be fetched.

    Attributes
    ----------
    url : str
        Address of the file.
    sha256 : str
        The beginning of the file's digest, as its publisher gives it in the file's name.
    backbone : str
        Which of ``BACKBONES`` they are for.
    """

    url: str
    sha256: str
    backbone: str


# From torchvision 0.28 (torchvision/models/resnet.py). V1 are the original recipe's, 77.374 and 76.130 % top-1; V2
# the longer recipe's of 2021, 81.886 and 80.858 %.
WEIGHTS: dict[str, PublishedWeights] = {
    f"{backbone}-imagenet-{version}": PublishedWeights(
        f"https://download.pytorch.org/models/{backbone}-{digest}.pth", digest, backbone
    )
    for backbone, version, digest in (
        ("resnet101", "v1", "63fe2227"),
        ("resnet101", "v2", "cd907fc2"),
        ("resnet50", "v1", "0676ba61"),
        ("resnet50", "v2", "11ad3fa6"),
    )
}


@dataclass(frozen=True)
class WeightsFacts:
    """Which weights a backbone got.

    Attributes
    ----------
    name : str
        As in ``WEIGHTS``, the file's name, or ``random``.
    sha256 : str
        Of the file; for random weights that of their keys, shapes and bytes. 64 hexadecimal digits.
    source : str
        The address, ``file``, or ``random, seed N``.
    """

    name: str
    sha256: str
    source: str


def load_weights(
    model: nn.Module,
    backbone: Backbone,
    spec: str | os.PathLike[str] = "default",
    *,
    seed: int | None = None,
    offline: bool = False,
    progress: DownloadProgress | None = None,
    report: Report | None = None,
) -> WeightsFacts:
    """Give a backbone its weights.

    Parameters
    ----------
    model : nn.Module
        As ``build(backbone.name)`` gives it; changed in place, and only when everything was found in order.
    backbone : Backbone
        What the model is.
    spec : str or path
        ``default`` (the backbone's own), a name in ``WEIGHTS``, ``random``, or the path of a file: a state dict as
        ``torch.save`` writes it, bare or under ``state_dict`` or ``model``, or safetensors. Which of them it is is
        told by its content. Classifiers in it are left out.
    seed : int, optional
        For random weights, which need one: the same seed gives the same numbers.
    offline : bool
        Fetch nothing; published weights must be under ``MEIDBENCH_HOME`` already.
    progress, report : callable, optional
        As for ``meidbench.annotations.download.fetch``; ``report`` also hears of random weights.

    Raises
    ------
    FeatureError
        There are no such weights, or they are damaged, unsafe, not finite, or another network's.
    DownloadError
        They could not be fetched.

    Examples
    --------
    >>> from meidbench.extraction.encoders.backbones import build
    >>> model = build("resnet50")
    >>> facts = load_weights(model, BACKBONES["resnet50"], "random", seed=1)
    >>> facts.name, facts.source, len(facts.sha256)
    ('random', 'random, seed 1', 64)
    """
    report = report or (lambda message: None)
    name = os.fspath(spec)
    if name == "default":
        name = backbone.weights
        if not name:
            raise FeatureError(
                f"there are no default weights for {backbone.name}\n"
                "  way out: name a file that holds some (--weights FILE), or --weights random for tests"
            )
    if name == RANDOM:
        return _load_random(model, backbone, seed, report)
    if name in WEIGHTS:
        path = _published(name, backbone, offline, progress, report)
        return _load_file(model, backbone, path, name, WEIGHTS[name].url)
    return _load_file(model, backbone, Path(name), Path(name).name, "file")


def weights_folder() -> Path:
    """Return where fetched weights are kept."""
    return home() / "weights"


def _published(name: str, backbone: Backbone, offline: bool, progress: DownloadProgress | None, report: Report) -> Path:
    published = WEIGHTS[name]
    if published.backbone != backbone.name:
        fitting = [known for known, weights in WEIGHTS.items() if weights.backbone == backbone.name]
        raise FeatureError(
            f"the weights {name} are for {published.backbone}, not for {backbone.name}; "
            f"published for it: {first_few(fitting) or 'none'}"
        )
    path = weights_folder() / published.url.rpartition("/")[2]
    download = Download(url=published.url, bytes=None, sha256=published.sha256)
    if not offline:
        return fetch(download, path, progress=progress, report=report)
    if not path.is_file():
        found = "is not there"
    elif not (digest := file_sha256(path)).startswith(published.sha256):
        found = f"is another file (sha256 {digest})"
    else:
        return path
    raise FeatureError(
        f"the weights {name} cannot be had offline: {path} {found}\n"
        f"  expected: the file {published.url}, whose sha256 begins with {published.sha256}\n"
        "  way out: fetch it where there is a network, and put it there"
    )


def _load_file(model: nn.Module, backbone: Backbone, path: Path, name: str, source: str) -> WeightsFacts:
    if not path.exists():
        known = ", ".join(["default", *WEIGHTS, RANDOM])
        raise FeatureError(f"there are no weights {os.fspath(path)!r}: no such file, and none of {known}")
    checkpoint = read_checkpoint(path)
    state = _converted(checkpoint.state, path)
    _check_fit(state, model.state_dict(), backbone, path)
    model.load_state_dict(state)
    return WeightsFacts(name, checkpoint.sha256, source)


def _converted(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Bring a checkpoint to this package's keys and to float32."""
    keys = {key: key for key in state}
    # `module.` is what DataParallel puts in front, `base_model.` what the authors of TSM do.
    for prefix in ("module.", "base_model."):
        if any(key.startswith(prefix) for key in keys.values()):
            keys = {key: short.removeprefix(prefix) for key, short in keys.items()}
    if len(set(keys.values())) < len(keys):
        raise FeatureError(f"{path} holds some weights twice, with and without a prefix")
    kept = {short: state[key] for key, short in keys.items() if not short.startswith(("fc.", "new_fc."))}
    return {key: value.to(torch.float32) if value.is_floating_point() else value for key, value in kept.items()}


def _check_fit(state: dict[str, Tensor], wanted: Mapping[str, Tensor], backbone: Backbone, path: Path) -> None:
    """Refuse a state that is not the model's or not sound; count-only entries that older files lack are added."""
    for key, value in wanted.items():
        if key.endswith(".num_batches_tracked"):
            # Of no effect outside training, and older than nothing: torch knows it since 0.4.1.
            state.setdefault(key, torch.zeros_like(value))
    problems = []
    if missing := [key for key in wanted if key not in state]:
        problems.append(f"missing: {first_few(missing)}")
    if strange := [key for key in state if key not in wanted]:
        problems.append(f"not expected: {first_few(strange)}")
    shared = [key for key in wanted if key in state]
    if wrong := [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in shared
        if state[key].shape != wanted[key].shape
    ]:
        problems.append(f"of another shape: {first_few(wrong)}")
    if mistyped := [
        f"{key} {state[key].dtype}"
        for key in shared
        if state[key].is_floating_point() != wanted[key].is_floating_point()
    ]:
        problems.append(f"of another type: {first_few(mistyped)}")
    if problems:
        guess = _looks_like(state)
        hint = f"\n  it looks like {guess}" if guess and guess != backbone.name else ""
        raise FeatureError(f"{path} does not hold weights for {backbone.name}\n{bullet_list(problems)}{hint}")
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise FeatureError(f"{path} holds NaN or infinity in {first_few(broken)}; get the file anew")
    if broken := [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]:
        raise FeatureError(f"{path} holds negative variances in {first_few(broken)}; get the file anew")


def _looks_like(state: Mapping[str, Tensor]) -> str:
    """Return the backbone whose keys and shapes these are, or an empty text."""
    shapes = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(".num_batches_tracked")}
    for name in BACKBONES:
        with torch.device("meta"):  # shapes without numbers
            candidate = ResNet(BACKBONES[name].layers, BACKBONES[name].clip).state_dict().items()
        if shapes == {key: tuple(value.shape) for key, value in candidate if not key.endswith(".num_batches_tracked")}:
            return name
    return ""


def _load_random(model: nn.Module, backbone: Backbone, seed: int | None, report: Report) -> WeightsFacts:
    """Draw weights that keep the size of numbers about the same from layer to layer."""
    if seed is None:
        raise FeatureError("random weights need a seed, so that they can be had again (--seed N)")
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if value.ndim == 4:
            # He et al., ICCV 2015, equation 10.
            deviation = math.sqrt(2 / value[0].numel())
            state[key] = torch.empty(value.shape).normal_(0, deviation, generator=generator)
        elif key.endswith(("running_var", ".weight")):
            # Every block adds its branch; at full strength 33 of them would grow beyond what float16 holds.
            state[key] = torch.full(value.shape, 0.25 if key.endswith("bn3.weight") else 1.0)
        else:
            state[key] = torch.zeros_like(value)
    model.load_state_dict(state)
    report(f"{backbone.name} has RANDOM weights (seed {seed}): its features mean nothing and are for tests only")
    return WeightsFacts(RANDOM, _state_sha256(state), f"random, seed {seed}")


def _state_sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
