"""Weights for the backbones: published files, other files, or random weights for tests. Nothing is unpickled."""

import hashlib
import math
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from meidbench.annotations.download import fetch
from meidbench.errors import FeatureError, RequestError, bullet_list, describe_content, first_few
from meidbench.extraction.encoders.backbones import BACKBONES, Backbone
from meidbench.files import file_sha256
from meidbench.names import DownloadProgress, Report
from meidbench.splits.manifests import Download, home

RANDOM = "random"
ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class LoadedWeights:
    """Name and origin of the weights that a backbone got."""

    name: str  # a published name, the file's name, or ``random``
    sha256: str  # of the file; for random weights that of their keys, shapes and bytes; 64 hexadecimal digits
    source: str  # the address, ``file``, ``file, under 'PREFIX'``, or ``random, seed N``


def load_weights(
    model: nn.Module,
    backbone: Backbone,
    spec: str | os.PathLike[str] = "default",
    *,
    seed: int | None = None,
    offline: bool = False,
    progress: DownloadProgress | None = None,
    report: Report | None = None,
) -> LoadedWeights:
    """Load weights into a backbone.

    Parameters
    ----------
    model : nn.Module
        From ``build(backbone.name)``; changed in place, and only after all checks.
    backbone : Backbone
    spec : str or path
        ``default`` (the backbone's first published weights), a published name, ``random``, or the path of a file: a
        state dict as ``torch.save`` writes it, bare or under ``state_dict`` or ``model``, or safetensors. The content
        tells the format. The keys may have one prefix, such as ``module.`` or ``backbone.``; ``report`` tells it.
        Classifiers and what has another prefix are left out.
    seed : int, optional
        Required by random weights: the same seed gives the same numbers.
    offline : bool
        Download nothing; published weights must be under ``MEIDBENCH_HOME`` already.
    progress, report : callable, optional
        As for ``meidbench.annotations.download.fetch``; ``report`` also warns of random weights.

    Raises
    ------
    FeatureError
        The weights are unknown, damaged, unsafe, not finite, or another network's.
    DownloadError
        The download failed.

    Examples
    --------
    >>> from meidbench.extraction.encoders.backbones import build
    >>> model = build("resnet50")
    >>> weights = load_weights(model, BACKBONES["resnet50"], "random", seed=1)
    >>> weights.name, weights.source, len(weights.sha256)
    ('random', 'random, seed 1', 64)
    """
    report = report or (lambda message: None)
    name = os.fspath(spec)
    if name == "default":
        if not backbone.weights:
            raise FeatureError(
                f"there are no default weights for {backbone.name}\n"
                "  remedy: name a file of weights (--weights FILE), or --weights random for tests"
            )
        name = next(iter(backbone.weights))
    if name == RANDOM:
        return _load_random(model, backbone, seed, report)
    owners = {known: owner for owner in (*BACKBONES.values(), backbone) for known in owner.weights}
    if name in owners:
        if name not in backbone.weights:  # a backbone of the user may have a known name, and no weights
            of_another = owners[name].name != backbone.name
            raise FeatureError(
                f"the weights {name} are for {'' if of_another else 'another '}{owners[name].name}, not for "
                f"{'' if of_another else 'this '}{backbone.name}; "
                f"published for it: {first_few(backbone.weights) or 'none'}"
            )
        path = _fetch_published(name, backbone.weights[name], offline, progress, report)
        return _load_file(model, backbone, path, name, backbone.weights[name].url, report)
    path = Path(name)
    if not path.exists():
        known = ", ".join(["default", *owners, RANDOM])
        raise RequestError(
            f"there are no weights {name!r}: not a file, and not one of {known}; name a file by --weights FILE"
        )
    return _load_file(model, backbone, path, path.name, "file", report)


def _fetch_published(
    name: str, published: Download, offline: bool, progress: DownloadProgress | None, report: Report
) -> Path:
    path = home() / "weights" / published.url.rpartition("/")[2]
    if not offline:
        return fetch(published, path, progress=progress, report=report)
    if not path.is_file():
        found = "is not there"
    elif not (digest := file_sha256(path)).startswith(published.sha256):
        found = f"is another file (sha256 {digest})"
    else:
        return path
    raise FeatureError(
        f"the weights {name} are not available offline: {path} {found}\n"
        f"  expected: the file {published.url}, whose sha256 begins with {published.sha256}\n"
        "  remedy: download it where there is a network, and put it there"
    )


def _load_random(model: nn.Module, backbone: Backbone, seed: int | None, report: Report) -> LoadedWeights:
    """Draw weights that keep the size of numbers about the same from layer to layer."""
    if seed is None:
        raise FeatureError(
            "random weights need a seed, to draw them again (--seed N; for verify-features: --weights-seed N)"
        )
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if value.ndim > 1:
            # He et al., ICCV 2015, equation 10.
            deviation = math.sqrt(2 / value[0].numel())
            state[key] = torch.empty(value.shape).normal_(0, deviation, generator=generator)
        elif key.endswith(("running_var", ".weight")):
            # Every block adds its branch; at full strength 33 of them would exceed the range of float16.
            state[key] = torch.full(value.shape, 0.25 if key.endswith("bn3.weight") else 1.0)
        else:
            state[key] = torch.zeros_like(value)
    model.load_state_dict(state)
    report(f"{backbone.name} has RANDOM weights (seed {seed}): its features mean nothing and are for tests only")
    return LoadedWeights(RANDOM, state_digest(state), f"random, seed {seed}")


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the keys, types, shapes and bytes of a state dict, 64 hexadecimal digits.

    Examples
    --------
    >>> state_digest({"a": torch.zeros(2)})[:8], state_digest({"a": torch.zeros(2, 1)})[:8]
    ('da53f451', '1a94e2ee')
    """
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_file(
    model: nn.Module, backbone: Backbone, path: Path, name: str, source: str, report: Report
) -> LoadedWeights:
    checkpoint, wanted = read_checkpoint(path), model.state_dict()
    state, prefix, others = _adapt_keys(checkpoint.state, wanted, backbone, path)
    for key, value in wanted.items():
        # Without effect on inference: files from before torch 0.4.1 lack these counters, others hold them as floats.
        if _is_counter(key) and (key not in state or not _is_like(state[key], value)):
            state[key] = torch.zeros_like(value)
    # Names and shapes before any number is read or converted: a file may announce more numbers than memory holds.
    _check_names_and_shapes(state, wanted, backbone, path)
    state = {key: value.to(torch.float32) if value.is_floating_point() else value for key, value in state.items()}
    _check_numbers(state, path)
    model.load_state_dict(state)
    if prefix:
        left_out = f"; left out: {first_few(others)}" if others else ""
        report(f"{path.name}: the weights under {prefix!r} are read as those of {backbone.name}{left_out}")
        source += f", under {prefix!r}"
    return LoadedWeights(name, checkpoint.sha256, source)


def _is_counter(key: str) -> bool:
    """Return whether a tensor counts batches of a training."""
    return key.endswith(".num_batches_tracked")


def _is_like(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and value.dtype == other.dtype


# mmaction2 wraps each convolution with its normalisation, and other toolboxes of its family do so, too.
_WRAPPED = {
    r"\bconv(\d+)\.conv\.": r"conv\1.",
    r"\bconv(\d+)\.bn\.": r"bn\1.",
    r"\bdownsample\.conv\.": "downsample.0.",
    r"\bdownsample\.bn\.": "downsample.1.",
}


def _adapt_keys(
    stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], backbone: Backbone, path: Path
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the network in a checkpoint by this package's keys, the prefix that its keys had, and the keys left out.

    Networks are nested in others, such as ``module.`` of DataParallel and ``backbone.`` of mmaction2. Keys outside of
    the prefix belong to other parts, and those of the classifier are left out.
    """
    state: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    for stored_key, value in stored.items():
        key = stored_key
        for form, short in _WRAPPED.items():
            key = re.sub(form, short, key)
        if key in state:
            raise FeatureError(f"{path} holds some weights twice: {stored_key}")
        state[key] = value
        for start in [0, *(found.end() for found in re.finditer(r"\.", key[:500]))]:
            if key[start:] in wanted and not _is_counter(key):
                counts[key[:start]] += 1
    complete = [prefix for prefix, count in counts.items() if count == sum(not _is_counter(key) for key in wanted)]
    if len(complete) > 1:
        named = " and ".join(map(repr, complete))
        raise FeatureError(
            f"{path} holds {len(complete)} networks that may be meant, under {named}\n"
            "  remedy: save the right one alone, in Python:\n"
            f'  state = torch.load({path.name!r}, weights_only=True)["state_dict"]\n'
            f"  torch.save({{k: v for k, v in state.items() if k.startswith({max(complete)!r})}}, 'one.pt')"
        )
    prefix = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = [key for key in state if not key.startswith(prefix)]
    return {key: value for key, value in own.items() if not key.startswith(backbone.classifier)}, prefix, others


def _check_names_and_shapes(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], backbone: Backbone, path: Path
) -> None:
    """Refuse a state that is not the model's."""
    shared = {key: (state[key], value) for key, value in wanted.items() if key in state}
    offenders = {
        "missing": [key for key in wanted if key not in state],
        "not expected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {tuple(own.shape)} instead of {tuple(value.shape)}"
            for key, (own, value) in shared.items()
            if own.shape != value.shape
        ],
        "of another type": [
            f"{key} {own.dtype}"
            for key, (own, value) in shared.items()
            if own.is_floating_point() != value.is_floating_point() or own.is_complex()
        ],
    }
    if any(offenders.values()):
        guess = _guess_backbone(state)
        hint = f"\n  it looks like {guess}" if guess and guess != backbone.name else ""
        problems = bullet_list(f"{what}: {first_few(keys)}" for what, keys in offenders.items() if keys)
        raise FeatureError(f"{path} does not hold weights for {backbone.name}\n{problems}{hint}")


def _check_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers that no training gives."""
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise FeatureError(f"{path} holds NaN or infinity in {first_few(broken)}; get the file again")
    if broken := [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]:
        raise FeatureError(f"{path} holds negative variances in {first_few(broken)}; get the file again")


def _guess_backbone(state: Mapping[str, Tensor]) -> str:
    """Return the backbone whose keys and shapes these are, or an empty text."""
    shapes = _shapes(state)
    for name, backbone in BACKBONES.items():
        with torch.device("meta"):  # shapes without numbers
            if shapes == _shapes(backbone.make_network().state_dict()):
                return name
    return ""


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if not _is_counter(key)}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weight file: its state dict on the CPU, as stored, and the file's SHA-256."""

    state: dict[str, Tensor]
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict from a file that ``torch.save`` wrote, in its present or former format, or from safetensors.

    The state dict may lie under ``state_dict``, ``model`` or ``model_state_dict``. FeatureError: the file cannot be
    read, has another format, is damaged, or holds objects that only unpickling would make.
    """
    digest = hashlib.sha256()
    try:
        # One handle for all: the bytes that were hashed are the bytes that are loaded.
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            content = _read_content(file, path)
    except OSError as error:
        raise FeatureError(f"cannot read {path}: {type(error).__name__}: {error}") from None
    return Checkpoint(_find_state(content, path), digest.hexdigest())


def _read_content(file: IO[bytes], path: Path) -> Any:
    size = file.tell()
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if not start:
        raise FeatureError(f"{path} is empty; get the file again")
    # Eight bytes of header length, then the header, which is JSON.
    if start[8:9] == b"{" and (int.from_bytes(start[:8], "little") < 1 << 30 or size < 9):
        return _read_safetensors(file, path)
    if start.startswith((ZIP, _PICKLE)):
        return _read_torch_file(file, path)
    if start.lstrip()[:1] in (b"<", b"{"):
        kind = "a web page or text, probably the error message of a server"
    elif start[257:262] == b"ustar":
        kind = "a tar archive; unpack it, or save its weights again with torch.save"
    else:
        kind = describe_content(path) or f"beginning with {start[:8]!r}"
    raise FeatureError(
        f"{path} is not a weight file: {size:,} bytes, {kind}\n"
        "  expected: a state dict as torch.save writes it, or safetensors"
    )


def _read_safetensors(file: IO[bytes], path: Path) -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise FeatureError(
            f"{path} is a safetensors file, and the package to read it is missing: pip install safetensors"
        ) from None
    try:
        return safetensors.torch.load(file.read())
    except Exception as error:  # a damaged file makes the reader fail with any error
        raise FeatureError(f"{path} {_damage_error(error)}\n  remedy: get the file again") from None


def _read_torch_file(file: IO[bytes], path: Path) -> Any:
    try:
        return load_torch_file(file)
    except TorchFileError as error:
        remedy = "" if error.says_remedy else "\n  remedy: get the file again"
        raise FeatureError(f"{path} {error}{remedy}") from None


class TorchFileError(ValueError):
    """Why a file is not read: what follows its name in a sentence. ``says_remedy`` tells whether it names a remedy."""

    def __init__(self, reason: str, says_remedy: bool = False) -> None:
        super().__init__(reason)
        self.says_remedy = says_remedy


def load_torch_file(file: IO[bytes]) -> Any:
    """Return the content of an open file that ``torch.save`` wrote, with tensors on the CPU.

    All files of torch are read here: weights, and the checkpoints of runs. torch does not compare the checksums in its
    archives, so that is done first: a changed bit is refused with the name of its member. Files in torch's former
    format have no checksums, and neither have archives of a torch that was told to write none.

    ``torch.load(weights_only=True)`` makes tensors and plain containers only. Before torch 2.6 two kinds of file were
    exceptions, tar archives and TorchScript, so both are refused before torch opens them.

    Raises
    ------
    TorchFileError
        The file is damaged, of another kind, or holds objects that only unpickling would make.
    """
    try:
        file.seek(0)
        # A tar archive may begin with any name; torch would unpack its own former format to disk.
        if tarfile.is_tarfile(file):
            raise TorchFileError("is a tar archive; unpack it, or save its weights again with torch.save", True)
        file.seek(0)
        sizes = _check_archive(file) if file.read(len(ZIP)) == ZIP else None
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch was not tried with
            return torch.load(file, map_location=partial(_keep_on_cpu, sizes), weights_only=True)
    except TorchFileError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load the file unsafely, so only the name of the object is repeated.
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if not blocked:
            cause = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            raise _damage_error(cause[1] if cause else "not a stream of tensors") from None
        raise TorchFileError(
            "holds more than tensors, and reading it could run a program hidden in it; it was not read\n"
            f"  got: a request for {blocked[1]}\n"
            "  remedy: where the file is trusted, save the state dict alone, torch.save(model.state_dict(), path)",
            True,
        ) from None
    except Exception as error:  # a damaged file makes the reader fail with any error
        raise _damage_error(error) from None


def _check_archive(file: IO[bytes]) -> Counter[int]:
    """Compare the checksums of an archive; return the numbers of bytes of its tensors' data."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise TorchFileError("is a TorchScript program; save the state dict of its model instead", True)
        if packed := [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]:
            raise _damage_error(f"torch does not compress its members, as {first_few(packed)} is")
        if any(member.CRC for member in members) and (damaged := archive.testzip()):
            raise _damage_error(f"the checksum of {damaged} in it is not that of its bytes")
    return Counter(member.file_size for member in members)


def _keep_on_cpu(sizes: Counter[int] | None, storage: Any, location: str) -> Any:
    """Refuse a storage that announces more bytes than the archive has for it, which torch would read beyond."""
    if sizes is not None:
        sizes[storage.nbytes()] -= 1
        if sizes[storage.nbytes()] < 0:
            raise _damage_error(f"it announces a tensor of {storage.nbytes():,} bytes, and no member is of this size")
    return storage


def is_dense(value: object) -> bool:
    """Return whether a value is a tensor with plain numbers on the CPU; its numbers may be one that is repeated."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"


def _damage_error(reason: Exception | str) -> TorchFileError:
    text = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    if "weights_only" in text:
        text = "not a stream of tensors"
    return TorchFileError(f"is damaged or cut short: {text[:200]}")


def _find_state(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the content of a file."""
    whole = content
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    expected = "expected a dictionary of tensors, bare or under " + ", ".join(_WRAPPERS)
    if not isinstance(content, Mapping) or not content:
        kind = f"{'an empty' if content == {} else 'a'} {type(content).__name__}"
        raise FeatureError(f"{path} holds {kind}; {expected}")
    if strange := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        nested = [key for key, value in content.items() if _is_state(value)] if content is whole else []
        loaded = f'torch.load({str(path)!r}, map_location="cpu")'
        remedy = f'. Save them:\n  import torch; torch.save({loaded}[{nested[0]!r}], "weights.pt")' if nested else ""
        raise FeatureError(f"{path} holds entries that are not tensors: {first_few(strange)}; {expected}{remedy}")
    if odd := [str(key) for key, value in content.items() if not is_dense(value)]:
        raise FeatureError(
            f"{path} holds tensors that are sparse, quantised or without data: {first_few(odd)}; {expected}"
        )
    return {str(key): value.detach() for key, value in content.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(entry, Tensor) for entry in value.values())
