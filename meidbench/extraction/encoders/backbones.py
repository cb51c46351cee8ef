"""The backbones by name: how each is built, its width, its preprocessing, its published weights; and fast inference."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meidbench.checks import one_of, whole_number
from meidbench.errors import FeatureError, write_count
from meidbench.extraction.encoders.preprocessing import IMAGENET, Preprocessing
from meidbench.splits.manifests import Download

_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4
CLIP = 8
DIVISOR = 8


def temporal_shift(features: Tensor, clip: int = CLIP, divisor: int = DIVISOR) -> Tensor:
    """Shift some channels of (clips * clip, channels, height, width) features by one frame, within each clip.

    The frames of each clip lie in their order, clip after clip; another number of frames raises FeatureError. The first
    ``channels // divisor`` channels of a frame become those of the next frame, the same number of channels after them
    those of the frame before; the others stay. Channels from outside the clip are 0.

    Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019 (arXiv 1811.08383),
    section 3, the bidirectional shift. The order of the shifted channels is that of the authors' published code,
    because the weights depend on it.

    Examples
    --------
    >>> import torch
    >>> frames = torch.tensor([[10.0, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]).view(3, 4, 1, 1)
    >>> temporal_shift(frames, clip=3, divisor=4).view(3, 4)
    tensor([[20.,  0., 12., 13.],
            [30., 11., 22., 23.],
            [ 0., 21., 32., 33.]])
    """
    check_clips(len(features), clip)
    fold = features.shape[1] // divisor
    # The copy keeps the memory format, and most channels stay.
    shifted = features.clone()
    clips = (len(features) // clip, clip, *features.shape[1:])
    source, target = features.view(clips), shifted.view(clips)
    target[:, :-1, :fold] = source[:, 1:, :fold]
    target[:, -1, :fold] = 0
    target[:, 1:, fold : 2 * fold] = source[:, :-1, fold : 2 * fold]
    target[:, 0, fold : 2 * fold] = 0
    return shifted


def check_clips(rows: int, clip: int) -> None:
    """Raise FeatureError for a number of rows that does not make whole clips."""
    if rows % clip:
        raise FeatureError(
            f"{write_count(rows, 'frame does', 'frames do')} not make whole clips\n"
            f"  expected: a multiple of {clip}, the frames of each clip in their order, clip after clip"
        )


class TemporalShift(nn.Module):
    """A layer whose input is shifted along time first; see :func:`temporal_shift`.

    The layer is kept as ``net``, so that the keys of the state dict are those of the published weights. A ``clip``
    below 1 or a ``divisor`` below 2 raises FeatureError.
    """

    def __init__(self, net: nn.Module, clip: int = CLIP, divisor: int = DIVISOR) -> None:
        super().__init__()
        self.net = net
        self.clip = whole_number("clip", clip, 1, FeatureError)
        self.divisor = whole_number("divisor", divisor, 2, FeatureError)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the shift, then ``net``."""
        output: Tensor = self.net(temporal_shift(features, self.clip, self.divisor))
        return output


class Bottleneck(nn.Module):
    """A residual block: 1x1 from ``channels`` to ``width``, 3x3, 1x1 to 4 * width, and the input added.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, figure 5 (right). The stride lies in the 3x3
    convolution instead of the first 1x1, as in the networks that torchvision's weights were trained for. With ``clip``
    above 1 the residual branch begins with a temporal shift (Lin et al., ICCV 2019, section 4.1).
    """

    def __init__(self, channels: int, width: int, stride: int, clip: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION
        first = nn.Conv2d(channels, width, 1, bias=False)
        self.conv1 = TemporalShift(first, clip) if clip > 1 else first
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != outputs:
            projection = nn.Conv2d(channels, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, 4 * width, h / stride, w / stride)."""
        branch = self.relu(self.bn1(self.conv1(features)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        shortcut = features if self.downsample is None else self.downsample(features)
        output: Tensor = self.relu(branch.add_(shortcut))
        return output

    def fold_batch_norms(self) -> None:
        """Fold every batch normalisation into the convolution before it."""
        first = self.conv1.net if isinstance(self.conv1, TemporalShift) else self.conv1
        for number, convolution in enumerate((first, self.conv2, self.conv3), 1):
            _fold(convolution, getattr(self, f"bn{number}"))
            setattr(self, f"bn{number}", nn.Identity())
        if isinstance(self.downsample, nn.Sequential):
            _fold(self.downsample[0], self.downsample[1])
            self.downsample[1] = nn.Identity()


class ResNet(nn.Module):
    """A ResNet of bottlenecks without its classifier, with torchvision's names of parameters.

    ``layers`` are the bottlenecks in each of the four stages (He et al., CVPR 2016, table 1). With ``clip`` above 1,
    every bottleneck shifts channels along time within clips of this number of frames.
    """

    def __init__(self, layers: tuple[int, int, int, int], clip: int = 1) -> None:
        super().__init__()
        self.clip = clip
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        stages: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(_WIDTHS, layers, strict=True)):
            first = Bottleneck(channels, width, 2 if stage else 1, clip)
            channels = width * _EXPANSION
            others = [Bottleneck(channels, width, 1, clip) for _ in range(depth - 1)]
            stages.append(nn.Sequential(first, *others))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, images: Tensor) -> Tensor:
        """Compute one row per image: (n, 2048) float32, the means over all positions after the last stage.

        Images are (n, 3, height, width), as ``normalise`` gives them, the frames of each clip in their order. Images of
        another shape, or that do not make whole clips, raise FeatureError.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise FeatureError(f"expected images of shape (n, 3, height, width), got {tuple(images.shape)}")
        check_clips(len(images), self.clip)
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        # In float32 also under autocast: a mean of half-precision numbers would be rounded once more.
        rows: Tensor = features.float().mean((2, 3))
        return rows

    def fold_batch_norms(self) -> None:
        """Fold every batch normalisation into the convolution before it, in float64; the rows stay the same."""
        for module in list(self.modules()):
            if isinstance(module, Bottleneck):
                module.fold_batch_norms()
        _fold(self.conv1, self.bn1)
        self.bn1 = nn.Identity()  # type: ignore[assignment]


def _fold(convolution: nn.Module, normalisation: nn.Module) -> None:
    """Give the convolution the weight and bias with which it computes what both computed."""
    assert isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d)
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None and variance is not None
    with torch.no_grad():
        scale = normalisation.weight.double() / torch.sqrt(variance.double() + normalisation.eps)
        bias = normalisation.bias.double() - mean.double() * scale
        weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
        convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype))
        convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype))


PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """A network that maps images to rows of features, and all that extraction must know of it.

    ``make_network`` makes a network that maps (n, 3, crop, crop) normalised images to (n, dim) float32 rows, with its
    whole state in its state dict. ``for_inference`` calls its method ``fold_batch_norms``, if any.
    """

    name: str  # as in ``BACKBONES``
    make_network: Callable[[], nn.Module]
    dim: int = 2048  # numbers per row
    clip: int = 1  # consecutive frames that belong together; 1 where each frame stands alone
    layer: str = "global average pooling"  # where in the network the rows are taken, for the recipe
    preprocessing: Preprocessing = IMAGENET
    weights: Mapping[str, Download] = field(default_factory=dict)  # published ones by name; the first are the default
    classifier: tuple[str, ...] = ("fc.", "new_fc.")  # first parts of the keys in published files that are left out


def _published(name: str, *digests: str) -> dict[str, Download]:
    """Return weights of torchvision 0.28 (torchvision/models/resnet.py), whose names give the digests' first digits."""
    address = "https://download.pytorch.org/models"
    return {
        f"{name}-imagenet-v{version}": Download(url=f"{address}/{name}-{digest}.pth", bytes=None, sha256=digest)
        for version, digest in enumerate(digests, 1)
    }


# The command line knows these names from meidbench.names.BACKBONES. Of the weights, v1 are those of the original
# training, 77.374 and 76.130 % top-1; v2 those of the longer training of 2021, 81.886 and 80.858 %.
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone("resnet101", partial(ResNet, (3, 4, 23, 3)), weights=_published("resnet101", "63fe2227", "cd907fc2")),
        Backbone("resnet50", partial(ResNet, (3, 4, 6, 3)), weights=_published("resnet50", "0676ba61", "11ad3fa6")),
        Backbone("tsm-resnet50", partial(ResNet, (3, 4, 6, 3), CLIP), clip=CLIP),
    )
}


def find_backbone(name: str) -> Backbone:
    """Return the backbone of this name; an unknown name raises FeatureError and lists the known ones."""
    return BACKBONES[one_of("backbone", name, tuple(BACKBONES), FeatureError)]


def build(name: str) -> nn.Module:
    """Build a backbone, in evaluation mode and without gradients; an unknown name raises FeatureError.

    Its parameters are NaN until weights are loaded, so that a forgotten ``load_weights`` shows at once.
    """
    # PyTorch's initialisation would draw millions of numbers from the global generator, only to replace them.
    with torch.device("meta"):
        model = find_backbone(name).make_network()
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    return model.eval().requires_grad_(False)


class InferenceModel(nn.Module):
    """A backbone made ready for millions of rows by :func:`for_inference`."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.model, self.device, self.precision = model, device, precision

    def forward(self, images: Tensor) -> Tensor:
        """Compute (n, dim) float32 rows of (n, 3, height, width) normalised images; refuse what is no tensor."""
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            rows = self.model(images)
        if not isinstance(rows, Tensor):
            raise FeatureError(f"the network must give rows as a tensor, got {type(rows).__name__}")
        return rows.float()  # autocast may leave half precision


def for_inference(model: nn.Module, device: torch.device | str, precision: str = "fp32") -> InferenceModel:
    """Copy a loaded backbone into the form that computes fastest.

    Memory is laid out with channels last. A ResNet's batch normalisation is folded into its convolutions, in float64.
    ``fp32`` is float32 throughout, without TF32, and its rows are those of ``model`` except for rounding; ``bf16`` and
    ``fp16`` are autocast, for GPUs. FeatureError: the precision is unknown, the model is in training mode, or its
    weights are not loaded.
    """
    one_of("precision", precision, tuple(PRECISIONS), FeatureError)
    if model.training:
        raise FeatureError("the backbone is in training mode, in which rows depend on their neighbours; call eval()")
    first = next(model.parameters(), None)  # a transform without parameters is a network, too
    if first is not None and first.isnan().any():
        raise FeatureError(
            "the backbone has no weights yet; call meidbench.extraction.encoders.weights.load_weights first"
        )
    device = torch.device(device)
    copied = copy.deepcopy(model)
    if fold := getattr(copied, "fold_batch_norms", None):
        fold()
    copied.requires_grad_(False).to(device)
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.ndim == 4:  # convolutions over frames have 5 dimensions, for which this layout does not exist
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return InferenceModel(copied, device, precision).eval()


@contextmanager
def _arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in the given precision, whatever the settings of the process are."""
    # TF32, which GPUs use by default for convolutions and on request for products, would leave three digits of fp32.
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in _exact_settings(device)]
    dtype = PRECISIONS[precision]
    try:
        for holder, name, value in _exact_settings(device):
            setattr(holder, name, value)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        for holder, name, value in reversed(before):
            setattr(holder, name, value)


def _exact_settings(device: torch.device) -> list[tuple[Any, str, Any]]:
    """Return the settings of the process, as object, attribute and value, under which float32 is not shortened."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        return [(backends.cudnn, "allow_tf32", False), (backends.cuda.matmul, "allow_tf32", False)]
    cpu, name, value = backends.mkldnn, "fp32_precision", "ieee"
    holders = (cpu.conv, cpu.matmul) if device.type == "cpu" else (backends.cudnn.conv, backends.cuda.matmul)
    return [(holder, name, value) for holder in holders]
