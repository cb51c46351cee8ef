"""Encoders of OpenCLIP by model and tag: the image embedding, and the text half of the same model."""

import logging
import os
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from meidbench.checks import show, suggest
from meidbench.errors import FeatureError, first_few
from meidbench.extraction.encoders.encoder import Encoder, FrameTransform, TextEncoder
from meidbench.extraction.encoders.hub import (
    draw_weights,
    encode_texts,
    find_hub_file,
    find_width,
    first_line,
    first_lines,
    make_transform,
)
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import RANDOM, LoadedWeights, read_checkpoint, state_digest
from meidbench.names import Report

_LAYER = "image embedding, not normalised"
_HUB, _FOLDER = "hf-hub:", "local-dir:"
_LABEL = f"openclip:{_HUB}"
_CONFIG = "open_clip_config.json"
_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load(
    name: str,
    weights: str = "default",
    *,
    seed: int | None = None,
    revision: str = "",
    offline: bool = False,
    report: Report | None = None,
) -> Encoder:
    """Load the image half of a model of OpenCLIP.

    Parameters
    ----------
    name : str
        ``MODEL/TAG`` of ``open_clip.list_pretrained()``, ``MODEL/FILE`` with a checkpoint of OpenCLIP, a folder with
        ``open_clip_config.json`` and weights, or ``hf-hub:OWNER/NAME``.
    weights : str
        ``default``, those that the name says; or ``random`` with a ``seed``, OpenCLIP's own initialisation, where the
        name may be ``MODEL`` alone.
    revision : str
        Branch, tag or commit of the weights on the Hugging Face hub.
    offline : bool
        Download nothing.
    report : callable, optional
        Called with a line of text for the user.

    Returns
    -------
    Encoder
        Its rows are those of ``encode_image(..., normalize=False)``. The revision is the hub's commit, and empty for
        weights from elsewhere.

    Raises
    ------
    FeatureError
        The name is unknown, the weights cannot be had, or they are another model's.
    """
    report = report or (lambda line: None)
    if weights not in ("default", RANDOM):
        raise FeatureError("a file of weights is named after the model: openclip:MODEL/FILE, without --weights")
    source, commit = name, ""
    if weights == RANDOM:
        with draw_weights(name, seed, report):
            model = _create(name, *_find_random(name))
        source = f"random, seed {seed}"
    else:
        identifier, options, commit = _find_weights(name, revision, offline, report)
        model = _create(name, identifier, options)
    preprocessing = find_preprocessing(model.visual.preprocess_cfg)
    network = _Rows(model.visual).eval().requires_grad_(False)
    return Encoder(
        network,
        find_width(name, network, preprocessing),
        preprocessing,
        _LAYER,
        weights=LoadedWeights(weights, state_digest(model.visual.state_dict()), source),
        revision=commit,
        libraries=_versions(),
    )


def load_text(name: str, *, revision: str = "", report: Report | None = None) -> TextEncoder:
    """Load the text half of a model of OpenCLIP; see :func:`load` for the arguments and errors.

    Texts longer than the model's context are cut, as OpenCLIP's tokenizer does.
    """
    import open_clip

    identifier, options, commit = _find_weights(name, revision, False, report or (lambda line: None))
    model = _create(name, identifier, options).eval().requires_grad_(False)
    try:
        tokenizer = open_clip.get_tokenizer(identifier)
    except Exception as error:  # tokenizers of other packages fail with errors of their own
        raise FeatureError(f"cannot make the tokenizer of openclip:{name}: {first_line(error)}") from None
    bias = getattr(model, "logit_bias", None)
    return TextEncoder(
        partial(encode_texts, partial(_encode_batch, model, tokenizer)),
        scale=float(model.logit_scale.exp()),
        bias=0.0 if bias is None else float(bias),
        revision=commit,
        libraries=_versions(),
    )


def find_preprocessing(config: dict[str, Any]) -> Preprocessing | FrameTransform:
    """Return what OpenCLIP's transform for inference computes for a model's ``preprocess_cfg``.

    Square inputs, of the frame resized by its short side or to a square, become numbers; others, such as those that are
    filled up to a square, become OpenCLIP's own transform.

    Examples
    --------
    >>> config = {"size": 224, "interpolation": "bicubic", "resize_mode": "squash"}
    >>> find_preprocessing({**config, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}).to_recipe()["resize"]
    '224 x 224, bicubic as Pillow'
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode, filter = config["resize_mode"], config["interpolation"]
    if height == width and mode in ("shortest", "squash") and filter in ("bilinear", "bicubic"):
        numbers = {key: tuple(map(float, config[key])) for key in ("mean", "std")}
        return Preprocessing(height, height, **numbers, filter=filter, square=mode == "squash")  # type: ignore[arg-type]
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return make_transform(transform, "open_clip.image_transform_v2", config)


class _Rows(nn.Module):
    """The image half of a model; of its outputs, CoCa's first is the embedding."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        """Compute (n, dim) rows of (n, 3, height, width) images."""
        output = self.visual(images)
        rows: Tensor = output[0] if isinstance(output, tuple) else output
        return rows


def _encode_batch(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Compute the (n, D) embeddings of n texts, not normalised."""
    rows: Tensor = model.encode_text(tokenizer(texts), normalize=False)
    return rows


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("open_clip_torch", "timm", "torchvision")}


def _split(name: str) -> tuple[str, str]:
    """Split ``MODEL/TAG`` or ``MODEL/FILE``, and refuse an unknown model."""
    import open_clip

    model, _, tag = name.partition("/")
    known = open_clip.list_models()
    if model not in known:
        raise FeatureError(
            f"unknown model of OpenCLIP {show(model)}, and no folder{suggest(model, known)}; expected MODEL/TAG; "
            f"open_clip.list_pretrained() in Python lists them"
        )
    return model, tag


def _find_random(name: str) -> tuple[str, dict[str, Any]]:
    """Return OpenCLIP's name and options for a model without weights, with the preprocessing of the tag, if any."""
    from open_clip.pretrained import get_pretrained_cfg

    if Path(name, _CONFIG).is_file():
        return f"{_FOLDER}{name}", {"load_weights": False, "pretrained_text": False}
    model, tag = _split(name)
    options = {"pretrained_text": False, "force_preprocess_cfg": _preprocessing_of(get_pretrained_cfg(model, tag))}
    return model, options


def _find_weights(name: str, revision: str, offline: bool, report: Report) -> tuple[str, dict[str, Any], str]:
    """Return OpenCLIP's name and options for a model with its weights, and the commit on the hub that they are of."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if name.startswith(_HUB):
        repository = name.removeprefix(_HUB)
        config = find_hub_file(_LABEL, repository, [_CONFIG], revision=revision, offline=offline)
        find_hub_file(_LABEL, repository, _NAMES, revision=config.commit, offline=offline)
        return f"{_FOLDER}{config.path.parent}", {"require_pretrained": True}, config.commit
    if Path(name, _CONFIG).is_file():
        return f"{_FOLDER}{name}", {"require_pretrained": True}, ""
    if Path(name).is_dir():
        raise FeatureError(f"{name} has no {_CONFIG}; expected a folder of a model as OpenCLIP writes it for the hub")
    model, tag = _split(name)
    tags = open_clip.list_pretrained_tags_by_model(model)
    published = get_pretrained_cfg(model, tag) if tag else {}
    if not published and not Path(tag).is_file():
        hint = (
            f"unknown weights of OpenCLIP {show(tag)}, and no file{suggest(tag, tags)}" if tag else "a tag is missing"
        )
        raise FeatureError(
            f"{hint}; expected openclip:{model}/TAG or openclip:{model}/FILE; known: {first_few(tags, 40) or 'none'}"
        )
    options = {"require_pretrained": True, "force_preprocess_cfg": _preprocessing_of(published)}
    if not published:
        read_checkpoint(Path(tag))  # refuses what is damaged or no state dict, and tells what it is
        return model, {**options, "pretrained": tag}, ""
    made_with, wanted = (bool(config.get("quick_gelu")) for config in (published, open_clip.get_model_config(model)))
    if made_with != wanted:
        other = model.removesuffix("-quickgelu") + ("-quickgelu" if made_with else "")
        report(
            f"the weights {tag} were trained {'with' if made_with else 'without'} QuickGELU, and {model} computes "
            f"{'with' if wanted else 'without'} it, so the features are not those of the authors; "
            f"use openclip:{other}/{tag}"
        )
    repository, file = os.path.split(published["hf_hub"])
    names = [f"{Path(file).stem}.safetensors", file] if file else _NAMES
    found = find_hub_file(_LABEL, repository, names, revision=revision, offline=offline)
    return model, {**options, "pretrained": str(found.path)}, found.commit


def _preprocessing_of(published: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a published configuration that the transform depends on."""
    return {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode", "size") if key in published}


def _create(name: str, identifier: str, options: dict[str, Any]) -> Any:
    """Let OpenCLIP make a model; all of its weights must be there."""
    import open_clip

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of random weights and of QuickGELU, and so does this module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return open_clip.create_model(identifier, **options)
    except Exception as error:  # damaged files, weights of another model: the library fails with any error
        raise FeatureError(f"OpenCLIP cannot load {name}: {first_lines(error)}") from None
    finally:
        logging.disable(level)
