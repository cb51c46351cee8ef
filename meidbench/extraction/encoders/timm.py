"""Encoders of timm by name: pooled features, and the preprocessing of the model's own data configuration."""

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meidbench.checks import show, suggest
from meidbench.errors import FeatureError, RequestError, first_few
from meidbench.extraction.encoders.encoder import Encoder, FrameTransform
from meidbench.extraction.encoders.hub import (
    draw_weights,
    find_hub_file,
    find_width,
    first_line,
    first_lines,
    make_transform,
)
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import RANDOM, LoadedWeights, read_checkpoint, state_digest
from meidbench.names import Report

_LAYER = "pooled features before the classifier"
_HUB, _FOLDER = "hf-hub:", "local-dir:"
_LABEL = f"timm:{_HUB}"
_NAMES = ("model.safetensors", "pytorch_model.bin")


def load(
    name: str,
    weights: str = "default",
    *,
    seed: int | None = None,
    revision: str = "",
    offline: bool = False,
    report: Report | None = None,
) -> Encoder:
    """Load an encoder of timm.

    Parameters
    ----------
    name : str
        ``MODEL`` or ``MODEL.TAG`` of ``timm.list_models(pretrained=True)``, a folder with ``config.json`` and weights,
        or ``hf-hub:OWNER/NAME``.
    weights : str
        ``default``; ``random`` with a ``seed``, timm's own initialisation; or a file that timm reads, a state dict or
        safetensors, whose classifier may have any number of classes or be left out.
    revision : str
        Branch, tag or commit of the model on the Hugging Face hub.
    offline : bool
        Download nothing.
    report : callable, optional
        Called with a line of text for the user.

    Returns
    -------
    Encoder
        The network is that of ``timm.create_model(..., num_classes=0)``. The revision is the hub's commit, and empty
        for weights from elsewhere.

    Raises
    ------
    FeatureError
        The name is unknown, the weights cannot be had, or they lack some of the network's.
    """
    import timm
    from timm.data import resolve_data_config

    identifier, commit = _resolve(name, revision, offline)
    label, source = weights, identifier
    if weights == RANDOM:
        with draw_weights(name, seed, report or (lambda line: None)):
            model = timm.create_model(identifier, num_classes=0)
        source, commit = f"random, seed {seed}", ""
    elif weights != "default":
        model = _load_file(identifier, Path(weights))
        label, source, commit = Path(weights).name, "file", ""
    elif identifier.startswith(_FOLDER):
        model = _create(identifier, {})
    else:
        overlay, commit = _find_published(identifier, revision, offline)
        model = _create(identifier, overlay)
    model.eval().requires_grad_(False)
    preprocessing = find_preprocessing(resolve_data_config({}, model=model))
    return Encoder(
        model,
        find_width(name, model, preprocessing),
        preprocessing,
        _LAYER,
        weights=LoadedWeights(label, state_digest(model.state_dict()), source),
        revision=commit,
        libraries={package: version(package) for package in ("timm", "torchvision")},
    )


def find_preprocessing(config: dict[str, Any]) -> Preprocessing | FrameTransform:
    """Return what ``timm.data.create_transform`` computes for a data configuration of timm.

    Square inputs with a centre crop, of the frame resized by its short side or to a square, become numbers. Others,
    such as those with a border, become timm's own transform.

    Examples
    --------
    >>> config = {"input_size": (3, 224, 224), "crop_mode": "center", "crop_pct": 0.9, "interpolation": "bicubic"}
    >>> find_preprocessing({**config, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}).to_recipe()["resize"]
    'short side 248, bicubic as Pillow'
    """
    _, height, width = config["input_size"]
    mode, filter = config["crop_mode"], config["interpolation"]
    if height == width and mode in ("center", "squash") and filter in ("bilinear", "bicubic"):
        resize = math.floor(height / config["crop_pct"])
        numbers = {key: tuple(map(float, config[key])) for key in ("mean", "std")}
        return Preprocessing(resize, height, **numbers, filter=filter, square=mode == "squash")  # type: ignore[arg-type]
    from timm.data import create_transform

    transform = create_transform(**config, is_training=False)
    return make_transform(transform, "timm.data.create_transform", config)


def _resolve(name: str, revision: str, offline: bool) -> tuple[str, str]:
    """Return a name as timm's ``create_model`` takes it, and the commit of what was fetched from the hub for it."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    if name.startswith(_HUB):
        repository = name.removeprefix(_HUB)
        config = find_hub_file(_LABEL, repository, ["config.json"], revision=revision, offline=offline)
        find_hub_file(_LABEL, repository, _NAMES, revision=config.commit, offline=offline)
        return f"{_FOLDER}{config.path.parent}", config.commit
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = list(get_arch_pretrained_cfgs(architecture))
        if tag and name not in tags:
            raise FeatureError(
                f"unknown weights of timm {show(name)}{suggest(name, tags)}; known: {first_few(tags, 20) or 'none'}"
            )
        return name, ""
    if Path(name, "config.json").is_file():
        return f"{_FOLDER}{name}", ""
    if Path(name).is_dir():
        raise FeatureError(f"{name} has no config.json; expected a folder as timm's save_for_hf writes it")
    known = timm.list_models()
    raise FeatureError(
        f"unknown model of timm {show(name)}, and no folder{suggest(architecture, known)}; "
        f"timm.list_models() in Python lists {len(known):,}"
    )


def _find_published(name: str, revision: str, offline: bool) -> tuple[dict[str, Any], str]:
    """Return the place of a model's published weights as changes of timm's ``pretrained_cfg``, and the hub's commit."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model_pretrained(name):
        raise FeatureError(
            f"timm has no published weights for {name}\n  remedy: name a file of weights (--weights FILE)"
        )
    published = get_pretrained_cfg(name)
    if published.hf_hub_id:
        names = [published.hf_hub_filename] if published.hf_hub_filename else _NAMES
        found = find_hub_file(_LABEL, published.hf_hub_id, names, revision=revision, offline=offline)
        return {"file": str(found.path), "custom_load": False}, found.commit
    if revision:
        raise FeatureError(
            f"the weights of {name} are not on the Hugging Face hub: leave the revision {revision!r} out"
        )
    cached = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    if offline and not cached.is_file():
        raise FeatureError(
            f"the weights of {name} are not available offline\n  missing: {cached}\n"
            f"  remedy: run once where there is a network, or put {published.url} there"
        )
    return {}, ""


def _load_file(name: str, path: Path) -> nn.Module:
    """Make a network with the weights of a file, whose classifier may have any number of classes or be left out."""
    from timm.models import load_state_dict

    if not path.is_file():
        raise RequestError(
            f"there are no weights {show(str(path))}: not a file, and not default or random; name it by --weights FILE"
        )
    read_checkpoint(path)  # refuses what is damaged or no state dict, and tells what it is
    try:
        state = load_state_dict(str(path))
    except Exception as error:  # timm goes by the name of the file
        raise FeatureError(f"timm cannot read {path}: {first_line(error)}") from None
    names = _classifier_names(name)
    classes = next((len(state[f"{key}.weight"]) for key in names if f"{key}.weight" in state), 0)
    overlay = {"state_dict": state, "source": "timm", "num_classes": classes, "label_offset": 0}
    return _create(name, overlay, num_classes=classes)


def _classifier_names(name: str) -> Sequence[str]:
    """Return the names of a model's classifiers in its state dict."""
    from timm.models import get_pretrained_cfg

    if name.startswith(_FOLDER):
        config = json.loads(Path(name.removeprefix(_FOLDER), "config.json").read_text(encoding="utf-8"))
        names = config.get("pretrained_cfg", config).get("classifier") or ()
    else:
        names = get_pretrained_cfg(name).classifier or ()
    return [names] if isinstance(names, str) else list(names)


def _create(name: str, overlay: dict[str, Any], **options: int) -> nn.Module:
    """Let timm make a network with weights, all of which must be there, and take the classifier off."""
    import timm

    try:
        # With the classifier: without it, timm tells missing weights to its log only, and leaves them random.
        model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except OSError as error:
        raise FeatureError(
            f"cannot fetch the weights of {name}: {first_line(error)}\n"
            "  remedy: run once where there is a network, or name a file of weights (--weights FILE)"
        ) from None
    except Exception as error:  # weights of another network make timm's adaptation of keys fail with any error
        raise FeatureError(
            f"timm cannot load these weights into {name.removeprefix(_FOLDER)}: {first_lines(error)}"
        ) from None
    if getattr(model, "num_classes", 0):
        model.reset_classifier(0)  # type: ignore[operator]
    return model
