"""Encoders of transformers: models on the Hugging Face hub, and folders as ``save_pretrained`` writes them."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.image_processing_backends import PilBackend
from transformers.utils import logging

from meidbench.errors import FeatureError, MeidbenchError, first_few
from meidbench.extraction.encoders.backbones import check_clips
from meidbench.extraction.encoders.encoder import Encoder, FrameTransform, TextEncoder
from meidbench.extraction.encoders.hub import draw_weights, encode_texts, fetch_folder, find_width, first_line
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.extraction.encoders.weights import RANDOM, LoadedWeights, state_digest
from meidbench.names import Report

# Of models with an image and a text half, by model type: the class of the image half, and the output that is the row.
_IMAGE_HALVES = {
    "clip": ("CLIPVisionModelWithProjection", "image_embeds"),
    "metaclip_2": ("MetaClip2VisionModelWithProjection", "image_embeds"),
    "siglip": ("SiglipVisionModel", "pooler_output"),
}
_VIDEO_TYPES = ("videomae", "timesformer")
# Their pooler is no part of many published weights, which were trained with the class token alone.
_CLASS_TOKEN_TYPES = ("vit", "deit", "vit_msn")
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")


def load(
    name: str,
    weights: str = "default",
    *,
    seed: int | None = None,
    revision: str = "",
    offline: bool = False,
    report: Report | None = None,
) -> Encoder:
    """Load the image or video encoder of a model of transformers, in float32.

    Parameters
    ----------
    name : str
        A model on the hub (``openai/clip-vit-base-patch16``), or a folder with ``config.json``, weights and
        ``preprocessor_config.json``. Code that comes with a model is not run, and of pickled weights only tensors are
        read.
    weights : str
        ``default``, the model's own, or ``random`` with a ``seed``: drawn as transformers initialises the model.
    seed, report
        As for ``load_encoder``.
    revision : str
        Branch, tag or commit on the hub; the encoder's ``revision`` is the commit. Empty: ``main``.
    offline : bool
        Use only what lies in the hub's cache, as under ``HF_HUB_OFFLINE=1``.

    Notes
    -----
    A row is the image embedding of CLIP and SigLIP, else the model's pooled output. Of VideoMAE it is the mean over the
    tokens of a clip, and where the model has a classifier of videos it is the input of this classifier. The
    preprocessing is that of the model's image processor with Pillow, without torchvision.

    Raises
    ------
    FeatureError
        The model is not there, is no image model that is known, lacks weights, or cannot be loaded.
    """
    if weights not in ("default", RANDOM):
        raise FeatureError(
            f"hf: takes no file of weights, got {weights!r}\n"
            "  remedy: name a folder with config.json, preprocessor_config.json and model.safetensors: hf:FOLDER"
        )
    is_random = weights == RANDOM
    drawing = draw_weights(f"hf:{name}", seed, report or (lambda line: None)) if is_random else nullcontext()
    with drawing, _quiet(), _library_errors(name):
        folder, commit = _find_folder(name, revision, offline, with_weights=not is_random)
        model, take, layer = _make_model(name, folder, is_random)
        clip = int(model.config.num_frames) if model.config.model_type in _VIDEO_TYPES else 1
        network = _Rows(model, take, clip).eval().requires_grad_(False)
        processor = _load_processor(name, folder)
        preprocessing = _read_numbers(processor) or _make_transform(processor)
        _refuse_sizes(name, preprocessing)
        dim = find_width(f"hf:{name}", network, preprocessing, clip)
    sha256 = state_digest(network.state_dict())
    loaded = LoadedWeights(weights, sha256, f"random, seed {seed}" if is_random else f"hf:{name}")
    versions = {"transformers": transformers.__version__}
    return Encoder(network, dim, preprocessing, layer, clip, clip > 1, f"hf:{name}", loaded, commit, versions)


def load_text(name: str, *, revision: str = "", report: Report | None = None) -> TextEncoder:
    """Load the text encoder of a CLIP or SigLIP of transformers, on the CPU.

    ``name`` and ``revision`` are as for :func:`load`. Texts are cut to the length of the model. SigLIP's are filled up
    to this length, without a mask, as in its training. FeatureError: as for :func:`load`, or it has no text half.
    """
    folder, commit = _find_folder(name, revision, offline=False)
    with _quiet(), _library_errors(name):
        config = _read_config(folder)
        if config.model_type not in _IMAGE_HALVES:
            raise FeatureError(f"hf:{name} has no text encoder (model type {config.model_type}); {_known_halves()}")
        model, missing = _load_weights(transformers.MODEL_MAPPING[type(config)], config, folder)
        _refuse_missing(name, missing)
        model.eval().requires_grad_(False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        bias = getattr(model, "logit_bias", None)
        found = TextEncoder(
            partial(encode_texts, partial(_encode_batch, model, tokenizer)),
            scale=float(model.logit_scale.exp()),
            bias=0.0 if bias is None else float(bias),
            name=f"hf:{name}",
            revision=commit,
            libraries={"transformers": transformers.__version__},
        )
        found.encode([])
    return found


def _known_halves() -> str:
    return f"model types with an image and a text half that are known: {', '.join(_IMAGE_HALVES)}"


# --- from the hub or a folder ---


def _find_folder(name: str, revision: str, offline: bool, *, with_weights: bool = True) -> tuple[Path, str]:
    """Return the folder of a model and its commit on the hub; what the cache lacks is fetched into it."""
    folder, commit = Path(name).expanduser(), ""
    if (folder / "config.json").is_file():
        if revision:
            raise FeatureError(f"hf:{name} is a folder, which has no revision {revision!r}")
    elif folder.exists():
        raise FeatureError(f"{folder} holds no config.json; expected a folder as save_pretrained writes it")
    else:
        patterns = _SMALL_FILES + (_SAFETENSORS if with_weights else ())
        folder = fetch_folder("hf:", name, patterns, revision=revision, offline=offline)
        commit = folder.name
        if with_weights and not _has_weights(folder):
            fetch_folder("hf:", name, _PICKLES, revision=commit, offline=offline)
    if with_weights and not _has_weights(folder):
        raise FeatureError(f"{folder} holds no weights; expected model.safetensors or pytorch_model.bin")
    return folder, commit


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in (*_SAFETENSORS, *_PICKLES))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars, tables and warnings from the terminal; its errors come as exceptions."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def _library_errors(name: str) -> Iterator[None]:
    """Raise FeatureError for any error of the library, which has many kinds for one damaged file."""
    try:
        yield
    except MeidbenchError:
        raise
    except Exception as error:
        raise FeatureError(
            f"hf:{name} cannot be loaded with transformers {transformers.__version__}\n"
            f"  {type(error).__name__}: {first_line(error)}"
        ) from error


# --- the network ---


class _Rows(nn.Module):
    """A model of transformers whose rows are one entry of its output."""

    def __init__(self, model: nn.Module, take: str, clip: int) -> None:
        super().__init__()
        self.model, self.take, self.clip = model, take, clip

    def forward(self, images: Tensor) -> Tensor:
        """Compute (n, dim) float32 rows of (n, 3, height, width), or (n / clip, dim) of clips."""
        if self.clip > 1:
            check_clips(len(images), self.clip)
            images = images.view(len(images) // self.clip, self.clip, *images.shape[1:])
        output: Any = self.model(pixel_values=images, return_dict=True)
        if self.take == "class token":
            rows: Tensor = output.last_hidden_state[:, 0]
        elif self.take == "mean":
            rows = output.last_hidden_state.float().mean(1)
        else:
            rows = getattr(output, self.take)
        return rows.flatten(1).float()


def _read_config(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # A configuration may name an implementation of attention, which would be fetched from the hub and run.
    config._attn_implementation = None
    return config


def _make_model(name: str, folder: Path, is_random: bool) -> tuple[Any, str, str]:
    """Make the image part of a model; also what of its output is the row."""
    config = _read_config(folder)
    kind, made_for = config.model_type, (config.architectures or [""])[0]
    take, layer = "pooler_output", "pooled output"
    if kind in _IMAGE_HALVES:
        class_name, take = _IMAGE_HALVES[kind]
        model_class, layer = getattr(transformers, class_name), "image embedding"
        if take == "image_embeds":  # the image half may state another width than its model
            config.vision_config.projection_dim = config.projection_dim
        config = config.vision_config
    elif hasattr(config, "text_config"):
        raise FeatureError(f"hf:{name} is of the model type {kind}; {_known_halves()}")
    elif made_for.endswith("VisionModelWithProjection"):
        model_class, take, layer = getattr(transformers, made_for), "image_embeds", "image embedding"
    elif kind in _VIDEO_TYPES and made_for.endswith("ForVideoClassification"):
        model_class = transformers.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING[type(config)]
        take, layer = "logits", "input of the classifier"
    else:
        model_class = transformers.MODEL_MAPPING[type(config)]
        if kind in _VIDEO_TYPES:
            take, layer = "mean", "mean over the tokens of the last hidden state"
    if model_class.main_input_name != "pixel_values":
        raise FeatureError(f"hf:{name} is no model of images: its input is {model_class.main_input_name}")
    model, missing = _load_weights(model_class, config, folder, is_random)
    if kind in _CLASS_TOKEN_TYPES and (any(key.startswith("pooler.") for key in missing) or kind == "vit_msn"):
        model.pooler = None
        missing = [key for key in missing if not key.startswith("pooler.")]
        take, layer = "class token", "class token of the last hidden state"
    _refuse_missing(name, missing)
    if take == "logits":
        model.classifier = nn.Identity()
    return model, take, layer


def _load_weights(model_class: Any, config: Any, folder: Path, is_random: bool = False) -> tuple[Any, list[str]]:
    """Make a model in float32; also the keys that its weights lack, which the library fills with random numbers."""
    if is_random:
        return model_class(config).float(), []
    model, found = model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, weights_only=True, output_loading_info=True
    )
    return model, sorted(found["missing_keys"])


def _refuse_missing(name: str, missing: Sequence[str]) -> None:
    if missing:
        raise FeatureError(
            f"the weights of hf:{name} lack {len(missing)} of its parameters: {first_few(missing)}\n"
            "  the library would fill them with random numbers; get the files again, or use another model"
        )


def _refuse_sizes(name: str, preprocessing: Preprocessing | FrameTransform) -> None:
    """Refuse a preprocessing whose images have the shape of their frames."""
    if isinstance(preprocessing, Preprocessing):
        return
    wide, tall = (preprocessing.function(np.zeros(shape, np.uint8)).shape for shape in ((240, 320, 3), (320, 240, 3)))
    if wide != tall:
        raise FeatureError(
            f"the preprocessing of hf:{name} gives images of many sizes: {tuple(wide)} and {tuple(tall)} of frames of "
            "320x240 and 240x320"
        )


# --- preprocessing ---


def _load_processor(name: str, folder: Path) -> Any:
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except OSError as error:
        raise FeatureError(
            f"hf:{name} has no image processor that can be read; expected preprocessor_config.json in its folder\n"
            "  remedy: save that of the model whose weights these began with, in Python:\n"
            f"  transformers.AutoImageProcessor.from_pretrained('OWNER/NAME').save_pretrained({name!r})"
        ) from error


_STEPS = ("preprocess", "process_image", "resize", "center_crop", "rescale", "normalize", "_preprocess")
_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def _read_numbers(processor: Any) -> Preprocessing | None:
    """Return the preprocessing of an image processor in numbers; None where it does anything else."""
    lengths = _read_lengths(processor)
    scale, kind = processor.rescale_factor, _FILTERS.get(processor.resample)
    if lengths is None or kind is None or not (processor.do_resize and processor.do_rescale):
        return None
    if getattr(processor, "do_pad", None) or abs(scale * 255 - 1) > 1e-9:
        return None
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    if not (isinstance(mean, Sequence) and isinstance(std, Sequence) and len(mean) == len(std) == 3):
        return None
    resize, crop, square = lengths
    floor = not square or crop != resize  # else nothing is cropped
    return Preprocessing(resize, crop, tuple(mean), tuple(std), filter=kind, square=square, floor=floor)


def _read_lengths(processor: Any) -> tuple[int, int, bool] | None:
    """Return the lengths after resizing and cropping, and whether frames are resized to a square."""
    stated = processor.to_dict()
    size = {key: length for key, length in stated["size"].items() if length is not None}
    crop = stated["crop_size"] if stated.get("do_center_crop") else None
    if crop is not None:
        crop = crop["height"] if crop["height"] == crop["width"] else 0
    steps = type(processor)
    if isinstance(processor, transformers.ConvNextImageProcessorPil):
        short = size["shortest_edge"]
        if crop is not None:
            return None
        return (int(short / processor.crop_pct), short, False) if short < 384 else (short, short, True)
    if not isinstance(processor, transformers.VideoMAEImageProcessorPil) and any(
        getattr(steps, step) is not getattr(PilBackend, step) for step in _STEPS
    ):
        return None
    if size.keys() == {"shortest_edge"}:
        resize, square = size["shortest_edge"], False
    elif size.keys() == {"height", "width"} and size["height"] == size["width"]:
        resize, square = size["height"], True
        crop = resize if crop is None else crop
    else:
        return None
    return (resize, crop, square) if crop and crop <= resize else None


@dataclass(frozen=True)
class _Processed:
    """A library's image processor as a function of one frame."""

    processor: Any

    def __call__(self, frame: npt.NDArray[np.uint8]) -> Tensor:
        pixels: Tensor = self.processor(Image.fromarray(frame), return_tensors="pt")["pixel_values"]
        return pixels.reshape(pixels.shape[-3:]).float()


def _make_transform(processor: Any) -> FrameTransform:
    stated = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return FrameTransform(_Processed(processor), f"{type(processor).__name__} of transformers: {stated}")


# --- texts ---


def _encode_batch(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Compute the (n, D) embeddings of n texts."""
    siglip = model.config.model_type == "siglip"
    length = model.config.text_config.max_position_embeddings
    padding = "max_length" if siglip else True
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    output: Any = model.get_text_features(**({"input_ids": tokens["input_ids"]} if siglip else tokens))
    rows: Tensor = getattr(output, "pooler_output", output)
    return rows
