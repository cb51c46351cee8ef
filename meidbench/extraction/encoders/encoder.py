"""Encoders by name: this package's networks, those of libraries, and those of a user's file."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from meidbench.checks import one_of, show, suggest, whole_number
from meidbench.errors import FeatureError, MeidbenchError, RequestError
from meidbench.extraction.encoders.backbones import BACKBONES, build, find_backbone
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import LoadedWeights, load_weights, state_digest
from meidbench.files import file_sha256
from meidbench.names import ENCODER_LIBRARIES, DownloadProgress, Report

_OWN_FILE = "python"
_OTHERS = f"others have a prefix: timm:MODEL, hf:NAME, openclip:MODEL/TAG, {_OWN_FILE}:FILE.py"
_MAKER = "make_encoder"
_OF_NETWORK = LoadedWeights("", "", "")


@dataclass(frozen=True)
class FrameTransform:
    """A preprocessing that no :class:`Preprocessing` describes, such as a library's own; applied to whole frames.

    Attributes
    ----------
    function : callable
        From a frame, (h, w, 3) uint8 RGB, to (3, H, W) float32; H and W are the same for every frame.
    description : str
        Says for the recipe what it computes; the same text must mean the same numbers.
    """

    function: Callable[[npt.NDArray[np.uint8]], Tensor]
    description: str
    geometry: ClassVar[None] = None  # whole frames

    def to_recipe(self) -> dict[str, Any]:
        """Return the entry of a feature file's recipe."""
        return {"transform": self.description}


@dataclass(frozen=True)
class Encoder:
    """A loaded network, and all that extraction must know of it.

    Attributes
    ----------
    network : nn.Module
        Maps (n, 3, height, width) preprocessed images to (n, dim) rows, in evaluation mode. The frames of each clip lie
        in their order, clip after clip; with ``row_per_clip`` the rows are (n / clip, dim).
    dim : int
        Numbers per row.
    preprocessing : Preprocessing or FrameTransform
    layer : str
        Where in the network the rows are taken, for the recipe.
    clip : int
        Consecutive frames that belong together; 1 where each frame stands alone.
    row_per_clip : bool
        Whether a clip gives one row, not a row per frame.
    name : str
        As on the command line, without a revision: ``hf:openai/clip-vit-base-patch16``.
    weights : LoadedWeights
        Their name is a value of ``load_encoder``'s ``weights``; by default ``default``, with the digest of the state.
    revision : str
        What the name alone leaves open: the commit on a hub, or the SHA-256 of the user's file.
    libraries : mapping of str to str
        Versions of the libraries that compute the rows.
    """

    network: nn.Module
    dim: int
    preprocessing: Preprocessing | FrameTransform
    layer: str = ""
    clip: int = 1
    row_per_clip: bool = False
    name: str = ""
    weights: LoadedWeights = _OF_NETWORK
    revision: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_number("dim", self.dim, 1, FeatureError)
        whole_number("clip", self.clip, 1, FeatureError)
        if self.weights is _OF_NETWORK:
            own = LoadedWeights("default", state_digest(self.network.state_dict()), self.name or "own")
            object.__setattr__(self, "weights", own)

    def to_recipe(self) -> dict[str, Any]:
        """Return the entries of a feature file's recipe that say what computed the rows."""
        revision = {"revision": self.revision} if self.revision else {}
        return {
            "backbone": self.name,
            **revision,
            "weights": self.weights.name,
            "weights_sha256": self.weights.sha256,
            "layer": self.layer,
            "preprocessing": self.preprocessing.to_recipe(),
        }


@dataclass(frozen=True)
class TextEncoder:
    """The text half of an image-text model.

    Attributes
    ----------
    encode : callable
        From n texts to (n, D) float32 in the space of the image rows, of any length.
    scale, bias : float
        The model's logits are ``scale * cosine + bias``; the scale is the inverse of its temperature.
    name, revision, libraries
        As for :class:`Encoder`.
    """

    encode: Callable[[Sequence[str]], npt.NDArray[np.float32]]
    scale: float
    bias: float = 0.0
    name: str = ""
    revision: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)


def load_encoder(
    name: str,
    weights: str = "default",
    *,
    seed: int | None = None,
    revision: str = "",
    offline: bool = False,
    progress: DownloadProgress | None = None,
    report: Report | None = None,
) -> Encoder:
    """Load an encoder by its name on the command line.

    Parameters
    ----------
    name : str
        A key of ``BACKBONES``; ``timm:MODEL``, ``hf:NAME`` (on the Hugging Face hub) or ``openclip:MODEL/TAG``, each
        with ``@REVISION`` where one is meant; ``hf:FOLDER``, ``timm:FOLDER``; or ``python:FILE.py``, whose function
        ``make_encoder()`` returns an :class:`Encoder`.
    weights : str
        ``default``; ``random``, which needs a ``seed``; a published name or a file. A library may take less.
    seed, offline, progress
        As for ``load_weights``; libraries have their own cache and progress, and their own switch to be offline.
    revision : str
        In place of ``@REVISION``.
    report : callable, optional
        Called with a line of text for the user.

    Raises
    ------
    FeatureError
        The name is unknown, a package is missing, or the weights cannot be loaded.
    """
    report = report or (lambda line: None)
    prefix, separator, rest = name.partition(":")
    if not separator:
        backbone = find_backbone(name)
        model = build(name)
        loaded = load_weights(model, backbone, weights, seed=seed, offline=offline, progress=progress, report=report)
        return Encoder(model, backbone.dim, backbone.preprocessing, backbone.layer, backbone.clip, False, name, loaded)
    if prefix == _OWN_FILE:
        return _load_own(name, Path(rest), weights)
    rest, asked = _split_revision(rest)
    encoder = _import_library(name)
    options = {"seed": seed, "revision": revision or asked, "offline": offline, "report": report}
    found: Encoder = encoder.load(rest, weights, **options)
    return replace(found, name=f"{prefix}:{rest}")


def load_text_encoder(name: str, *, revision: str = "", report: Report | None = None) -> TextEncoder:
    """Load the text half of an image-text model, by the name of its image half.

    ``name`` and ``revision`` are as for :func:`load_encoder`. FeatureError: the model has no text half, the name is
    unknown, or a package is missing.
    """
    prefix, separator, rest = name.partition(":")
    library = _import_library(name) if separator and prefix != _OWN_FILE else None
    if library is None or not hasattr(library, "load_text"):
        raise FeatureError(f"{name} has no text encoder; models of hf:NAME and openclip:MODEL/TAG have one")
    rest, asked = _split_revision(rest)
    found: TextEncoder = library.load_text(rest, revision=revision or asked, report=report or (lambda line: None))
    return replace(found, name=f"{prefix}:{rest}")


def check_encoder_name(name: str) -> str:
    """Return the name of an encoder, or raise RequestError where neither a network nor a library has that name."""
    prefix, separator, rest = name.partition(":")
    if not separator:
        if name not in BACKBONES:
            own = f"{_OWN_FILE}:{name}" if name.endswith(".py") else ""
            like = own or (f"hf:{name}" if "/" in name else "")
            hint = f" (did you mean {like}?)" if like else suggest(name, BACKBONES)
            raise RequestError(f"unknown encoder {show(name)}{hint}; known: {', '.join(BACKBONES)}; {_OTHERS}")
        return name
    one_of("prefix of an encoder", prefix, (*ENCODER_LIBRARIES, _OWN_FILE), RequestError)
    if not rest:
        raise RequestError(f"{name!r} names no model; expected {prefix}:NAME")
    return name


def _split_revision(name: str) -> tuple[str, str]:
    """Split ``NAME@REVISION``; a path may contain the sign."""
    if "@" not in name or Path(name).exists():
        return name, ""
    model, _, revision = name.rpartition("@")
    return model, revision


def _import_library(name: str) -> ModuleType:
    """Import this package's module for a library; say which extra is missing where the library is."""
    prefix = name.partition(":")[0]
    check_encoder_name(name)
    package = ENCODER_LIBRARIES[prefix]
    extra = f"pip install 'meidbench[{prefix}]'"
    try:
        import_module(package)
        return import_module(f"meidbench.extraction.encoders.{prefix}")
    except Exception as error:  # an older version, or one that does not fit torch, fails with any error
        missing = (error.name or package).partition(".")[0] if isinstance(error, ModuleNotFoundError) else package
        if importlib.util.find_spec(missing) is None:
            raise FeatureError(f"{prefix}: needs the package {missing}, which is not installed: {extra}") from None
        raise FeatureError(
            f"{prefix}: cannot use the installed {missing}: {type(error).__name__}: {error}\n"
            f"  remedy: install versions that fit together: {extra} --upgrade"
        ) from error


def _load_own(name: str, path: Path, weights: str) -> Encoder:
    """Run the user's file, and call its ``make_encoder``."""
    if weights != "default":
        raise FeatureError(f"{name} loads its own weights; leave --weights out")
    if not path.is_file():
        raise RequestError(f"there is no file {path}, which {name} names")
    spec = importlib.util.spec_from_file_location(f"meidbench_encoder_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RequestError(f"{path} is no file of Python; expected {_OWN_FILE}:FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses with annotations as text look their module up
    with _errors_of_file(path):
        spec.loader.exec_module(module)
        encoder = getattr(module, _MAKER, lambda: None)()
    if not isinstance(encoder, Encoder):
        raise FeatureError(f"{path} must have a function {_MAKER}() that returns an Encoder; see docs/features.md")
    encoder.network.eval().requires_grad_(False)
    with _errors_of_file(path), torch.no_grad():
        device = next((tensor.device for tensor in encoder.network.parameters()), None)
        rows = encoder.network(black_frame(encoder.preprocessing).expand(encoder.clip, -1, -1, -1).to(device))
    expected = (1 if encoder.row_per_clip else encoder.clip, encoder.dim)
    if (given := tuple(getattr(rows, "shape", ()))) != expected:
        unit = f"one clip of {encoder.clip} frames" if encoder.clip > 1 else "one frame"
        raise FeatureError(f"{path}: the network gives shape {given} for {unit}; its dim expects {expected}")
    # The file is named alone when features are extracted again, so its weights need no name of their own.
    loaded = replace(encoder.weights, name="default")
    return replace(encoder, name=name, weights=loaded, revision=file_sha256(path))


def black_frame(preprocessing: Preprocessing | FrameTransform) -> torch.Tensor:
    """Return what the network gets of a black frame: (3, H, W) float32."""
    if isinstance(preprocessing, FrameTransform):
        return preprocessing.function(np.zeros((240, 320, 3), np.uint8))
    return torch.zeros(3, preprocessing.crop, preprocessing.crop)


@contextmanager
def _errors_of_file(path: Path) -> Iterator[None]:
    """Raise FeatureError with the line of the user's file in place of any error in it."""
    try:
        yield
    except MeidbenchError as error:
        raise FeatureError(f"{path}: {error}") from error
    except Exception as error:
        traced = traceback.TracebackException.from_exception(error)
        lines = [frame.lineno for frame in traced.stack if Path(frame.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        what = list(traced.format_exception_only())[-1].strip()
        missing = "; install it, or name its folder in PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        raise FeatureError(f"{path}{f', line {line}' if line else ''}: {what}{missing}") from error
