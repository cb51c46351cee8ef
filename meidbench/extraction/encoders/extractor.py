"""From decoded frames to rows of features: preprocessing and encoder, on one device."""

import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meidbench.checks import one_of
from meidbench.errors import FeatureError, RequestError
from meidbench.extraction.decoding import check_folder_fps, decoder_versions, read_frames
from meidbench.extraction.encoders.backbones import for_inference
from meidbench.extraction.encoders.encoder import Encoder, FrameTransform, load_encoder
from meidbench.extraction.encoders.preprocessing import Preprocessor, normalise
from meidbench.extraction.frames import CropWindow, DecodingResult, FrameRule, Restart, find_crop_window
from meidbench.extraction.videos import Video
from meidbench.features.feature_file import DTYPES, Recipe
from meidbench.features.records import VideoRows
from meidbench.names import CLIP_STRIDE, CLIPS, EXTRACTED_DTYPES, WITHOUT_VIDEOS

# On a CPU small batches take no longer than large ones, and use less memory.
_BATCH_CPU, _BATCH_GPU = 8, 256


def choose_device(name: str) -> torch.device:
    """Return the device of this name, or raise RequestError; ``auto`` is the GPU, or the CPU without one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise FeatureError(f"{name!r} is no device that can be used; known: auto, cpu, cuda, cuda:N")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise RequestError(f"the device {name!r} cannot be used: {first}; known: auto, cpu, cuda, cuda:N") from None
    return device


def default_rule(encoder: Encoder, clips: int = CLIPS, stride: int = CLIP_STRIDE) -> FrameRule:
    """Return the rule for frames that an encoder takes where none is named."""
    if encoder.row_per_clip:
        return FrameRule("clips", frames=encoder.clip, clips=clips, stride=stride)
    return FrameRule("uniform", frames=200)


class Extractor:
    """An encoder on a device, ready to turn frames into rows.

    Batches never mix videos: a video's rows depend on the video alone, not on the other videos, their order, or the
    number of processes.

    Parameters
    ----------
    encoder : str or Encoder
        By its name or loaded; see ``load_encoder``.
    weights, seed, **options
        As for ``load_encoder``, where the encoder is a name.
    rule : FrameRule, optional
        Which frames are taken. By default 200 evenly spaced ones; of an encoder with one row per clip, 10 evenly spaced
        clips of every 4th frame. It must be ``clips`` exactly for such an encoder.
    folder_fps : float
        Frames per second of folders of images.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision : str
        ``fp32``, or ``bf16`` or ``fp16`` by autocast.
    batch_size : int, optional
        Frames per batch, of one video; by default about 8 on a CPU and 256 on a GPU, always whole clips.
    dtype : str
        Of the rows, ``float16`` or ``float32``.

    Attributes
    ----------
    encoder : Encoder
    recipe : dict
        Everything that the rows depend on, for the feature file.

    Raises
    ------
    FeatureError
        An argument is out of range, or the weights cannot be loaded.
    """

    def __init__(
        self,
        encoder: str | Encoder = "resnet101",
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
        if isinstance(encoder, str):
            encoder = load_encoder(encoder, weights, seed=seed, **options)
        self.encoder = encoder
        self.rule = rule or default_rule(encoder)
        if (self.rule.kind == "clips") != encoder.row_per_clip:
            expected = "clips (--clips N)" if encoder.row_per_clip else "single frames"
            raise FeatureError(f"{encoder.name} takes {expected}, not {self.rule}")
        if encoder.row_per_clip and self.rule.frames != encoder.clip:
            raise FeatureError(f"a clip of {encoder.name} has {encoder.clip} frames, in {self.rule} {self.rule.frames}")
        check_folder_fps(folder_fps)
        self.folder_fps = folder_fps
        self.dtype = one_of("dtype of extracted features", dtype, EXTRACTED_DTYPES, FeatureError)
        self.device = choose_device(device)
        usual = _BATCH_CPU if self.device.type == "cpu" else _BATCH_GPU
        self.batch_size = batch_size or max(usual // encoder.clip, 1) * encoder.clip
        if self.batch_size < 1 or self.batch_size % encoder.clip:
            raise FeatureError(
                f"the batch size of {encoder.name} must be a multiple of {encoder.clip}, got {self.batch_size}"
            )
        self._model = for_inference(encoder.network, self.device, precision)
        if not isinstance(encoder.preprocessing, FrameTransform):
            self._preprocessor = Preprocessor(self.device, encoder.preprocessing)
        self.recipe: Recipe = {
            "made_by": "extract-features",
            **encoder.to_recipe(),
            "sampling": str(self.rule),
            "folder_fps": self.folder_fps,
            "precision": precision,
            "dtype": dtype,
            "libraries": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "h5py": version("h5py"),
                **decoder_versions(),
                **encoder.libraries,
            },
        }

    @classmethod
    def from_recipe(cls, recipe: Recipe, weights: str | None = None, **options: Any) -> "Extractor":
        """Make the extractor that a feature file was made with, from the file's recipe.

        The weights are by default those that the recipe names; ``options`` are ``seed``, ``device``, ``batch_size`` and
        those of ``load_encoder``. FeatureError: the file was not extracted from videos, or the weights are others.
        """
        if what := WITHOUT_VIDEOS.get(str(recipe.get("backbone"))):
            raise FeatureError(f"these features are {what}: there are no videos that they were extracted from")
        if recipe.get("made_by") != "extract-features":
            raise FeatureError(
                f"these features were made by {recipe.get('made_by', 'others')}, not by extract-features, so "
                "there is no recipe by which videos could be extracted again; compare packed features with --npy"
            )
        extractor = cls(
            recipe["backbone"],
            weights or recipe["weights"],
            revision=recipe.get("revision", ""),
            rule=FrameRule.from_text(recipe["sampling"]),
            folder_fps=recipe["folder_fps"],
            precision=recipe["precision"],
            dtype=recipe["dtype"],
            **options,
        )
        if extractor.encoder.weights.sha256 != recipe["weights_sha256"]:
            raise FeatureError(
                f"these weights are others than those of the file: sha256 {extractor.encoder.weights.sha256}, expected "
                f"{recipe['weights_sha256']} ({recipe['weights']}); name the right ones with --weights, "
                "or random ones with --weights-seed"
            )
        return extractor

    def crop(self, frames: Tensor, window: CropWindow) -> Tensor:
        """Preprocess frames: (n, h, w, 3) uint8 of the window to n crops for ``encode``, on the device.

        Crops are (n, 3, crop, crop) uint8, or (n, 3, H, W) float32 where the encoder has a ``FrameTransform``.
        """
        transform = self.encoder.preprocessing
        if isinstance(transform, FrameTransform):
            images = [transform.function(frame) for frame in frames.cpu().numpy()]
            got = {(tuple(image.shape), image.dtype) for image in images}
            if len(got) > 1 or any(len(shape) != 3 or shape[0] != 3 or dtype != torch.float32 for shape, dtype in got):
                found = " and ".join(f"{shape} of {dtype}" for shape, dtype in sorted(got, key=str))
                raise FeatureError(
                    f"the FrameTransform of {self.encoder.name} must give tensors (3, height, width) of torch.float32 "
                    f"and of one size, got {found}"
                )
            return torch.stack(images).to(self.device)
        return self._preprocessor.resize(frames, window)

    def encode(self, crops: Tensor) -> Tensor:
        """Compute float32 rows on the device from n crops of one batch: (n, dim), or one row per clip."""
        short = -len(crops) % self.encoder.clip
        if short:  # the last clip of a video is filled up with its last frame
            crops = torch.cat([crops, crops[-1:].expand(short, -1, -1, -1)])
        transform = self.encoder.preprocessing
        if not isinstance(transform, FrameTransform):
            crops = normalise(crops, transform, channels_last=True)
        rows: Tensor = self._model(crops)
        expected = (len(crops) // (self.encoder.clip if self.encoder.row_per_clip else 1), self.encoder.dim)
        if rows.shape != expected:
            raise FeatureError(
                f"the network of {self.encoder.name} must give rows of shape {expected} for {len(crops)} images, "
                f"got {tuple(rows.shape)}"
            )
        return rows if self.encoder.row_per_clip else rows[: len(crops) - short]

    def extract(self, video: Video) -> VideoRows:
        """Decode and extract one video in this process; the result is that of a feature file."""
        geometry = self.encoder.preprocessing.geometry
        stream = read_frames(video, self.rule, folder_fps=self.folder_fps)
        encoding = VideoEncoding(self)
        while True:
            try:
                item = next(stream)
            except StopIteration as end:
                return encoding.finish(end.value)()
            if isinstance(item, Restart):
                encoding = VideoEncoding(self)
                continue
            window = find_crop_window(*item.image.shape[:2], geometry)
            pixels = item.image[window.top : window.bottom, window.left : window.right]
            frames = torch.from_numpy(np.ascontiguousarray(pixels)[None]).to(self.device)
            encoding.add(np.array([item.index]), self.crop(frames, window))


class VideoEncoding:
    """The crops of one video that wait to be encoded, and the rows of those that were."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._indices: list[npt.NDArray[np.int64]] = []
        self._crops: list[Tensor] = []
        self._num_waiting = 0
        self._rows: list[Tensor] = []
        # A clip consists of rows, which may repeat a frame; the repetitions are known only at the end.
        self._in_one_piece = extractor.encoder.clip > 1 and extractor.rule.kind != "all"

    def add(self, indices: npt.NDArray[np.int64], crops: Tensor) -> None:
        """Add crops of frames, ascending; full batches are encoded at once."""
        self._indices.append(indices)
        self._crops.append(crops)
        self._num_waiting += len(crops)
        size = self._extractor.batch_size
        while not self._in_one_piece and self._num_waiting >= size:
            waiting = torch.cat(self._crops)
            self._rows.append(self._extractor.encode(waiting[:size]))
            self._crops = [waiting[size:]]
            self._num_waiting -= size

    def finish(self, result: DecodingResult) -> Callable[[], VideoRows]:
        """Encode the remaining crops, and return a function that waits for the device and returns the rows."""
        extractor = self._extractor
        if result.status == "failed":
            return lambda: _failed_rows(extractor, result, result.reason)
        positions = torch.from_numpy(np.searchsorted(np.concatenate(self._indices), result.indices))
        if self._num_waiting:
            crops = torch.cat(self._crops)
            order = positions if self._in_one_piece else torch.arange(len(crops))
            batches = torch.split(order.to(crops.device), extractor.batch_size)
            self._rows += [extractor.encode(crops[batch]) for batch in batches]
        rows = torch.cat(self._rows)
        if not self._in_one_piece:
            rows = rows[positions.to(rows.device)]
        # torch converts faster than NumPy.
        stored = rows.to(torch.float16 if extractor.dtype == "float16" else torch.float32)
        finite = torch.isfinite(stored).all()
        arrived = None
        step = extractor.encoder.clip if extractor.encoder.row_per_clip else 1  # the first frame stands for a clip
        if stored.is_cuda:
            stored = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True).copy_(stored, non_blocking=True)
            finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(extractor.device))

        def wait_for_rows() -> VideoRows:
            if arrived is not None:
                arrived.synchronize()
            if not finite:
                remedy = "; pass --dtype float32" if extractor.dtype == "float16" else ""
                return _failed_rows(extractor, result, f"the features are not finite in {extractor.dtype}{remedy}")
            return VideoRows(
                rows=stored.numpy(),
                status=result.status,
                reason=result.reason,
                frame_indices=result.indices[::step],
                timestamps=result.timestamps[::step],
                num_source_frames=result.num_frames,
                corrupt_frames=result.corrupt_frames,
            )

        return wait_for_rows


def _failed_rows(extractor: Extractor, result: DecodingResult, reason: str) -> VideoRows:
    return VideoRows(
        rows=np.empty((0, extractor.encoder.dim), DTYPES[extractor.dtype]),
        status="failed",
        reason=reason,
        num_source_frames=result.num_frames,
        corrupt_frames=result.corrupt_frames,
    )
