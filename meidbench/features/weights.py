"""Weights for the backbones: published ones, files of the user's, or random ones for tests. Nothing is unpickled."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from meidbench.download import Progress, Report, fetch
from meidbench.errors import FeatureError, bullet_list, first_few
from meidbench.features.backbones import BACKBONES, Backbone, ResNet
from meidbench.features.checkpoints import read_checkpoint
from meidbench.files import file_sha256
from meidbench.home import home
from meidbench.manifests import Download

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
    progress: Progress | None = None,
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
        As for ``meidbench.download.fetch``; ``report`` also hears of random weights.

    Raises
    ------
    FeatureError
        There are no such weights, or they are damaged, unsafe, not finite, or another network's.
    DownloadError
        They could not be fetched.

    Examples
    --------
    >>> from meidbench.features.backbones import build
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


def _published(name: str, backbone: Backbone, offline: bool, progress: Progress | None, report: Report) -> Path:
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
