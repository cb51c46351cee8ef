"""From chosen frames to rows: preprocessing and backbone, on one device."""

import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meidbench.errors import FeatureError
from meidbench.extraction.decoding import decoder_versions, read_frames
from meidbench.extraction.encoders.backbones import BACKBONES, Backbone, build, for_inference
from meidbench.extraction.encoders.preprocessing import PREPROCESSING, Preprocessor, normalise
from meidbench.extraction.encoders.weights import WeightsFacts, load_weights
from meidbench.extraction.frames import Frame, FrameRule, Outcome, Window, crop_window
from meidbench.extraction.videos import Video
from meidbench.features.feature_file import DTYPES, Recipe
from meidbench.features.records import VideoRows

# On a CPU small batches are as quick as large ones, and use less memory.
_BATCH_CPU, _BATCH_GPU = 8, 256


def choose_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` is a GPU where there is one.

    Raises
    ------
    FeatureError
        There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("it is neither a CPU nor a CUDA device")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise FeatureError(f"the device {name!r} cannot be used: {first}; known: auto, cpu, cuda, cuda:N") from None
    return device


class Extractor:
    """A backbone with its weights, ready to turn frames into rows.

    Batches never mix videos: a video's rows depend on the video alone, not on what else was extracted, in which
    order, or by how many processes.

    Parameters
    ----------
    backbone : str
        A key of ``BACKBONES``.
    weights : str
        As for ``load_weights``: ``default``, a published name, a file, or ``random``.
    seed : int, optional
        Of random weights.
    rule : FrameRule
        Which frames are taken.
    folder_fps : float
        Frames a second of folders of images.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision : str
        ``fp32``, or ``bf16`` or ``fp16`` by autocast.
    batch_size : int, optional
        Frames at a time, of one video; 8 on a CPU, 256 on a GPU.
    dtype : str
        Of the rows, ``float16`` or ``float32``.
    **options
        Passed on to ``load_weights``.

    Attributes
    ----------
    backbone : Backbone
    weights : WeightsFacts
    recipe : dict
        Everything that the rows depend on, for the feature file.

    Raises
    ------
    FeatureError
        An argument makes no sense here, or the weights cannot be loaded.
    """

    def __init__(
        self,
        backbone: str = "resnet101",
        weights: str = "default",
        *,
        seed: int | None = None,
        rule: FrameRule | None = None,
        folder_fps: float = 24.0,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int | None = None,
        dtype: str = "float16",
        **options: Any,
    ) -> None:
        if backbone not in BACKBONES:
            raise FeatureError(f"there is no backbone {backbone!r}; known: {', '.join(BACKBONES)}")
        if not (math.isfinite(folder_fps) and folder_fps > 0):
            raise FeatureError(f"frame folders have a positive number of frames a second, not {folder_fps}")
        if dtype not in ("float16", "float32"):
            raise FeatureError(f"features are extracted as float16 or float32, not {dtype!r}")
        self.backbone: Backbone = BACKBONES[backbone]
        self.rule = rule or FrameRule("uniform", frames=200)
        self.folder_fps = folder_fps
        self.dtype = dtype
        self.device = choose_device(device)
        self.batch_size = batch_size or (_BATCH_CPU if self.device.type == "cpu" else _BATCH_GPU)
        if self.batch_size < 1 or self.batch_size % self.backbone.clip:
            raise FeatureError(
                f"the batch size of {backbone} must be a multiple of {self.backbone.clip}, got {self.batch_size}"
            )
        model = build(backbone)
        self.weights: WeightsFacts = load_weights(model, self.backbone, weights, seed=seed, **options)
        self._model = for_inference(model, self.device, precision)
        self._preprocessor = Preprocessor(self.device)
        self.recipe: Recipe = {
            "made_by": "extract-features",
            "backbone": backbone,
            "weights": self.weights.name,
            "weights_sha256": self.weights.sha256,
            "layer": "global average pooling",
            "sampling": str(self.rule),
            "folder_fps": folder_fps,
            "preprocessing": dict(PREPROCESSING),
            "precision": precision,
            "dtype": dtype,
            "libraries": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "h5py": version("h5py"),
                **decoder_versions(),
            },
        }

    @classmethod
    def from_recipe(cls, recipe: Recipe, weights: str | None = None, **options: Any) -> "Extractor":
        """Make the extractor that a feature file was made with.

        Parameters
        ----------
        recipe : dict
            Of the file.
        weights : str, optional
            As for the class; those that the recipe names where left out.
        **options
            ``seed``, ``device``, ``batch_size`` and what ``load_weights`` takes.

        Raises
        ------
        FeatureError
            The file was not extracted from videos, or the weights are others.
        """
        if recipe.get("made_by") != "extract-features":
            raise FeatureError(
                f"these features were made by {recipe.get('made_by', 'others')}, not by extract-features, so "
                "there is no recipe by which videos could be extracted anew; compare packed features with --npy"
            )
        extractor = cls(
            recipe["backbone"],
            weights or recipe["weights"],
            rule=FrameRule.parse(recipe["sampling"]),
            folder_fps=recipe["folder_fps"],
            precision=recipe["precision"],
            dtype=recipe["dtype"],
            **options,
        )
        if extractor.weights.sha256 != recipe["weights_sha256"]:
            raise FeatureError(
                f"these weights are others than those of the file: sha256 {extractor.weights.sha256}, expected "
                f"{recipe['weights_sha256']} ({recipe['weights']}); name the right ones with --weights"
            )
        return extractor

    def crops(self, frames: Tensor, window: Window) -> Tensor:
        """Resize and crop frames on the device: (n, h, w, 3) uint8 of the window to (n, 3, 224, 224) uint8."""
        return self._preprocessor.resize(frames, window)

    def rows(self, crops: Tensor) -> Tensor:
        """Compute (n, D) float32 rows on the device from (n, 3, 224, 224) uint8 crops of one batch."""
        short = -len(crops) % self.backbone.clip
        if short:  # the last clip of a video is filled up with its last frame
            crops = torch.cat([crops, crops[-1:].expand(short, -1, -1, -1)])
        pixels = normalise(crops, channels_last=True)
        return self._model(pixels)[: len(crops) - short]  # type: ignore[no-any-return]

    def extract(self, video: Video) -> VideoRows:
        """Decode and extract one video in this process.

        Returns
        -------
        VideoRows
            As it would stand in a feature file.
        """
        reading = read_frames(video, self.rule, folder_fps=self.folder_fps)
        pile = Pile(self)
        while True:
            try:
                item = next(reading)
            except StopIteration as end:
                return pile.finish(end.value)()
            if isinstance(item, Frame):
                window = crop_window(*item.image.shape[:2])
                seen = item.image[window.top : window.bottom, window.left : window.right]
                frames = torch.from_numpy(np.ascontiguousarray(seen)[None]).to(self.device)
                pile.add(np.array([item.index]), self.crops(frames, window))
            else:
                pile = Pile(self)


class Pile:
    """The frames of one video on their way through an extractor.

    Parameters
    ----------
    extractor : Extractor
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._indices: list[npt.NDArray[np.int64]] = []
        self._crops: list[Tensor] = []
        self._waiting = 0
        self._rows: list[Tensor] = []
        # A clip is made of rows, some of which may show one frame; which, is known only at the end.
        self._whole = extractor.backbone.clip > 1 and extractor.rule.kind != "all"

    def add(self, indices: npt.NDArray[np.int64], crops: Tensor) -> None:
        """Take in crops of frames, ascending; full batches are computed at once."""
        self._indices.append(indices)
        self._crops.append(crops)
        self._waiting += len(crops)
        size = self._extractor.batch_size
        while not self._whole and self._waiting >= size:
            pool = torch.cat(self._crops)
            self._rows.append(self._extractor.rows(pool[:size]))
            self._crops = [pool[size:]]
            self._waiting -= size

    def finish(self, outcome: Outcome) -> Callable[[], VideoRows]:
        """Compute what is left, and return a function that waits for the rows and gives the record."""
        if outcome.status == "failed":
            record = _failed(self._extractor, outcome, outcome.reason)
            return lambda: record
        extractor = self._extractor
        places = torch.from_numpy(np.searchsorted(np.concatenate(self._indices), outcome.indices))
        crops = torch.cat(self._crops) if self._waiting else None
        if self._whole and crops is not None:
            crops = crops[places.to(crops.device)]
        for batch in torch.split(crops, extractor.batch_size) if crops is not None else ():
            self._rows.append(extractor.rows(batch))
        rows = torch.cat(self._rows)
        if not self._whole:
            rows = rows[places.to(rows.device)]
        # Converted where it is quick; NumPy's own conversion is not.
        stored = rows.to(torch.float16 if extractor.dtype == "float16" else torch.float32)
        finite = torch.isfinite(stored).all()
        arrived = None
        if stored.is_cuda:
            stored = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True).copy_(stored, non_blocking=True)
            finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(extractor.device))

        def wait() -> VideoRows:
            if arrived is not None:
                arrived.synchronize()
            if not finite:
                return _failed(extractor, outcome, f"the features are not finite in {extractor.dtype}")
            return VideoRows(
                rows=stored.numpy(),
                status=outcome.status,
                reason=outcome.reason,
                frame_indices=outcome.indices,
                timestamps=outcome.timestamps,
                num_source_frames=outcome.num_frames,
                corrupt_frames=outcome.corrupt_frames,
            )

        return wait


def _failed(extractor: Extractor, outcome: Outcome, reason: str) -> VideoRows:
    return VideoRows(
        rows=np.empty((0, extractor.backbone.dim), DTYPES[extractor.dtype]),
        status="failed",
        reason=reason,
        num_source_frames=outcome.num_frames,
        corrupt_frames=outcome.corrupt_frames,
    )
