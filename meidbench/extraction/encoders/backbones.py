"""The networks that turn pictures into rows of features: ResNet-50 and ResNet-101, the former also with shifts."""

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meidbench.errors import FeatureError

CLIP = 8
DIVISOR = 8


def temporal_shift(features: Tensor, clip: int = CLIP, divisor: int = DIVISOR) -> Tensor:
    """Shift some channels by one frame, within each clip.

    Parameters
    ----------
    features : (clips * clip, channels, height, width) tensor
        The frames of each clip in their order, clip after clip.
    clip : int
        Frames of a clip.
    divisor : int
        ``channels // divisor`` channels come from the frame after, as many from the frame before.

    Returns
    -------
    Tensor of the same shape. The first ``channels // divisor`` channels of a frame are those of the next frame, the
    second as many those of the frame before, and the others its own; what would come from outside the clip is 0.

    Raises
    ------
    FeatureError
        The number of frames is not a multiple of ``clip``.

    Notes
    -----
    Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019 (arXiv 1811.08383),
    section 3, the bidirectional shift; which eighth goes which way is as in the authors' published code, since the
    weights depend on it.

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
    # Copied whole first: it keeps the memory format, and most channels stay.
    shifted = features.clone()
    clips = (len(features) // clip, clip, *features.shape[1:])
    source, target = features.view(clips), shifted.view(clips)
    target[:, :-1, :fold] = source[:, 1:, :fold]
    target[:, -1, :fold] = 0
    target[:, 1:, fold : 2 * fold] = source[:, :-1, fold : 2 * fold]
    target[:, 0, fold : 2 * fold] = 0
    return shifted


def check_clips(rows: int, clip: int) -> None:
    """Refuse a number of rows that does not make whole clips; FeatureError says so."""
    if rows % clip:
        raise FeatureError(
            f"{rows:,} frames do not make whole clips\n"
            f"  expected: a multiple of {clip}, the frames of each clip in their order, clip after clip"
        )


class TemporalShift(nn.Module):
    """A layer whose input is shifted along time first; see :func:`temporal_shift`.

    The layer is kept as ``net``, so that the keys of the state dict are those of the published weights.

    Parameters
    ----------
    net : nn.Module
        What follows the shift.
    clip, divisor : int
        As for :func:`temporal_shift`.

    Raises
    ------
    FeatureError
        ``clip`` is below 1 or ``divisor`` below 2.

    Examples
    --------
    >>> import torch
    >>> TemporalShift(nn.Identity(), clip=2)(torch.ones(4, 8, 1, 1))[:, 0].flatten()
    tensor([1., 0., 1., 0.])
    """

    def __init__(self, net: nn.Module, clip: int = CLIP, divisor: int = DIVISOR) -> None:
        super().__init__()
        if operator.index(clip) < 1 or operator.index(divisor) < 2:
            raise FeatureError(f"clip must be at least 1 and divisor at least 2, not {clip} and {divisor}")
        self.net = net
        self.clip = clip
        self.divisor = divisor

    def forward(self, features: Tensor) -> Tensor:
        """Shift and go on; shapes as :func:`temporal_shift` and ``net`` have them."""
        outcome: Tensor = self.net(temporal_shift(features, self.clip, self.divisor))
        return outcome

    def extra_repr(self) -> str:
        """Describe the shift in the module's printed form."""
        return f"clip={self.clip}, divisor={self.divisor}"


PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


@dataclass(frozen=True)
class Backbone:
    """What there is to know about a backbone before it is built.

    Attributes
    ----------
    name : str
        As in ``BACKBONES``.
    layers : tuple of int
        Bottlenecks in each of the four stages.
    dim : int
        Length of a row of features.
    clip : int
        How many frames, in their order, must come together; 1 where each stands alone.
    weights : str
        Name of the weights that are meant by default; empty where there are none to fetch.
    """

    name: str
    layers: tuple[int, int, int, int]
    dim: int = _WIDTHS[-1] * _EXPANSION
    clip: int = 1
    weights: str = ""


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone("resnet101", (3, 4, 23, 3), weights="resnet101-imagenet-v1"),
        Backbone("resnet50", (3, 4, 6, 3), weights="resnet50-imagenet-v1"),
        Backbone("tsm-resnet50", (3, 4, 6, 3), clip=CLIP),
    )
}


class Bottleneck(nn.Module):
    """A residual block: 1x1 to fewer channels, 3x3, 1x1 to four times as many, and the input added.

    Parameters
    ----------
    channels : int
        Of the input.
    width : int
        Channels of the 3x3 convolution; the outcome has four times as many.
    stride : int
        Of the 3x3 convolution.
    clip : int
        Above 1, the residual branch begins with a temporal shift over clips of that many frames.

    Notes
    -----
    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, figure 5 (right). The stride lies in the 3x3
    convolution instead of the first 1x1, as in the networks that torchvision's weights were trained for. The shift
    lies inside the residual branch (Lin et al., ICCV 2019, section 4.1).
    """

    def __init__(self, channels: int, width: int, stride: int, clip: int) -> None:
        super().__init__()
        outcome = width * _EXPANSION
        first = nn.Conv2d(channels, width, 1, bias=False)
        self.conv1 = TemporalShift(first, clip) if clip > 1 else first
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outcome, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outcome)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != outcome:
            projection = nn.Conv2d(channels, outcome, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outcome))

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, 4 * width, h / stride, w / stride)."""
        branch = self.relu(self.bn1(self.conv1(features)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        shortcut = features if self.downsample is None else self.downsample(features)
        outcome: Tensor = self.relu(branch.add_(shortcut))
        return outcome


class ResNet(nn.Module):
    """A ResNet of bottlenecks without its classifier, with torchvision's names of parameters.

    Parameters
    ----------
    layers : tuple of int
        Bottlenecks in each of the four stages.
    clip : int
        Above 1, every bottleneck shifts channels along time within clips of that many frames.

    Notes
    -----
    He et al., CVPR 2016, table 1.
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
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if stage and not position else 1
                blocks.append(Bottleneck(channels, width, stride, clip))
                channels = width * _EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute one row of features a picture.

        Parameters
        ----------
        pictures : (n, 3, height, width) float tensor
            As ``meidbench.extraction.encoders.preprocessing.normalise`` gives them. Where ``clip`` is above 1, n is a
            multiple of it, with the frames of each clip in their order.

        Returns
        -------
        (n, 2048) float32 tensor, the mean over all positions after the last stage.

        Raises
        ------
        FeatureError
            The pictures are of another shape, or do not make whole clips.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise FeatureError(f"expected pictures of shape (n, 3, height, width), got {tuple(pictures.shape)}")
        check_clips(len(pictures), self.clip)
        features = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        # In float32 also under autocast: a mean of half-precision numbers would be rounded once more.
        rows: Tensor = features.float().mean((2, 3))
        return rows


def build(name: str) -> ResNet:
    """Build a backbone, in evaluation mode and without gradients.

    Its parameters are NaN until weights are loaded, so that a forgotten ``load_weights`` shows at once.

    Parameters
    ----------
    name : str
        One of ``BACKBONES``.

    Raises
    ------
    FeatureError
        There is no such backbone; the known ones are named.

    Examples
    --------
    >>> model = build("resnet50")
    >>> sum(parameter.numel() for parameter in model.parameters()), model.training
    (23508032, False)
    """
    if name not in BACKBONES:
        raise FeatureError(f"there is no backbone {name!r}; known: {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]
    # The usual way would draw millions of numbers from the global generator, only to replace them.
    with torch.device("meta"):
        model = ResNet(backbone.layers, backbone.clip)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    return model.eval().requires_grad_(False)


class InferenceModel(nn.Module):
    """A backbone made ready for rows by the million; made by :func:`for_inference`.

    Parameters
    ----------
    model : nn.Module
        Maps pictures to rows.
    device : torch.device
        Where the model is.
    precision : str
        One of ``PRECISIONS``.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.precision = precision

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute (n, 2048) float32 rows from (n, 3, height, width) pictures, as ``ResNet.forward`` does."""
        pictures = pictures.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            rows: Tensor = self.model(pictures)
        return rows


def for_inference(model: ResNet, device: torch.device | str, precision: str = "fp32") -> InferenceModel:
    """Copy a loaded backbone into the form that computes fastest.

    Batch normalisation is folded into the convolutions, in float64, and memory is laid out with channels last.

    Parameters
    ----------
    model : ResNet
        With its weights loaded; it is left as it is.
    device : torch.device or str
        Where the copy is put.
    precision : str
        ``fp32`` is float32 throughout, without TF32; ``bf16`` and ``fp16`` are autocast, for GPUs.

    Returns
    -------
    InferenceModel
        In ``fp32`` its rows are those of ``model`` but for the rounding of float32.

    Raises
    ------
    FeatureError
        There is no such precision, or the model is in training mode, or its weights are not loaded.

    Examples
    --------
    >>> model = ResNet((1, 1, 1, 1)).eval()
    >>> for_inference(model, "cpu")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 2048])
    """
    if precision not in PRECISIONS:
        raise FeatureError(f"there is no precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if model.training:
        raise FeatureError("the backbone is in training mode, in which rows depend on their neighbours; call eval()")
    if model.conv1.weight.isnan().any():
        raise FeatureError(
            "the backbone has no weights yet; call meidbench.extraction.encoders.weights.load_weights first"
        )
    device = torch.device(device)
    folded = copy.deepcopy(model)
    for module in list(folded.modules()):
        if isinstance(module, Bottleneck):
            first = module.conv1.net if isinstance(module.conv1, TemporalShift) else module.conv1
            for number, convolution in enumerate((first, module.conv2, module.conv3), 1):
                _fold(convolution, getattr(module, f"bn{number}"))
                setattr(module, f"bn{number}", nn.Identity())
            if isinstance(module.downsample, nn.Sequential):
                _fold(module.downsample[0], module.downsample[1])
                module.downsample[1] = nn.Identity()
        elif isinstance(module, ResNet):
            _fold(module.conv1, module.bn1)
            module.bn1 = nn.Identity()  # type: ignore[assignment]
    folded.requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return InferenceModel(folded, device, precision).eval()


def _fold(convolution: nn.Module, normalisation: nn.Module) -> None:
    """Give the convolution the weight and bias with which it does what both did."""
    assert isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d)
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None and variance is not None
    with torch.no_grad():
        scale = normalisation.weight.double() / torch.sqrt(variance.double() + normalisation.eps)
        bias = normalisation.bias.double() - mean.double() * scale
        weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
        convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype))
        convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype))


@contextmanager
def _arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in the precision asked for, whatever the process is set to."""
    dtype = PRECISIONS[precision]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), _exact_convolutions(device):
        yield


@contextmanager
def _exact_convolutions(device: torch.device) -> Iterator[None]:
    """Keep float32 convolutions from TF32, the default on GPUs, which would leave three digits of ``fp32``."""
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cudnn
    holder, name, value = getattr(backend, "conv", None), "fp32_precision", "ieee"
    if not hasattr(holder, name):  # before torch 2.9
        holder, name, value = torch.backends.cudnn, "allow_tf32", False  # type: ignore[assignment]
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
