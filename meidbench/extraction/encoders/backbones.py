"""The backbones by name: how each is built, its width, its preprocessing, its published weights; and fast inference."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from meidbench.checks import one_of
from meidbench.errors import FeatureError
from meidbench.extraction.encoders.preprocessing import IMAGENET, Preprocessing
from meidbench.extraction.encoders.resnet import CLIP, ResNet
from meidbench.splits.manifests import Download

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """A network that maps images to rows of features, and all that extraction must know of it.

    Attributes
    ----------
    name : str
        As in ``BACKBONES``.
    make_network : callable
        Makes the network. It maps (n, 3, crop, crop) normalised images to (n, dim) float32 rows, and its whole state
        is in its state dict. ``for_inference`` calls its method ``fold_batch_norms``, if any.
    dim : int
        Numbers per row.
    clip : int
        Number of consecutive frames that belong together; 1 where each frame stands alone.
    layer : str
        Where in the network the rows are taken, for the recipe.
    preprocessing : Preprocessing
    weights : mapping of str to Download
        Published weights by name; the first are the default.
    classifier : tuple of str
        First parts of the keys in published files that are left out.
    """

    name: str
    make_network: Callable[[], nn.Module]
    dim: int = 2048
    clip: int = 1
    layer: str = "global average pooling"
    preprocessing: Preprocessing = IMAGENET
    weights: Mapping[str, Download] = field(default_factory=dict)
    classifier: tuple[str, ...] = ("fc.", "new_fc.")


def _torchvision_weights(name: str, **digests: str) -> dict[str, Download]:
    """Return weights of torchvision 0.28 (torchvision/models/resnet.py), whose names give the digests' first digits."""
    address = "https://download.pytorch.org/models"
    return {
        f"{name}-imagenet-{version}": Download(url=f"{address}/{name}-{digest}.pth", bytes=None, sha256=digest)
        for version, digest in digests.items()
    }


# The command line knows these names from meidbench.names.BACKBONES. Of the weights, v1 are those of the original
# training, 77.374 and 76.130 % top-1; v2 those of the longer training of 2021, 81.886 and 80.858 %.
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            "resnet101",
            partial(ResNet, (3, 4, 23, 3)),
            weights=_torchvision_weights("resnet101", v1="63fe2227", v2="cd907fc2"),
        ),
        Backbone(
            "resnet50",
            partial(ResNet, (3, 4, 6, 3)),
            weights=_torchvision_weights("resnet50", v1="0676ba61", v2="11ad3fa6"),
        ),
        Backbone("tsm-resnet50", partial(ResNet, (3, 4, 6, 3), CLIP), clip=CLIP),
    )
}


def find_backbone(name: str) -> Backbone:
    """Return the backbone of this name; an unknown name raises FeatureError and lists the known ones."""
    return BACKBONES[one_of("backbone", name, tuple(BACKBONES), FeatureError)]


def build(name: str) -> nn.Module:
    """Build a backbone, in evaluation mode and without gradients.

    Its parameters are NaN until weights are loaded, so that a forgotten ``load_weights`` shows at once. An unknown name
    raises FeatureError.

    Examples
    --------
    >>> model = build("resnet50")
    >>> sum(parameter.numel() for parameter in model.parameters()), model.training
    (23508032, False)
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
        self.model = model
        self.device = device
        self.precision = precision

    def forward(self, images: Tensor) -> Tensor:
        """Compute (n, dim) float32 rows of (n, 3, height, width) normalised images."""
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            rows: Tensor = self.model(images)
        return rows


def for_inference(model: nn.Module, device: torch.device | str, precision: str = "fp32") -> InferenceModel:
    """Copy a loaded backbone into the form that computes fastest.

    Memory is laid out with channels last. A ResNet's batch normalisation is folded into its convolutions, in float64.

    Parameters
    ----------
    model : nn.Module
        With its weights loaded; it is not changed.
    device : torch.device or str
    precision : str
        ``fp32`` is float32 throughout, without TF32; ``bf16`` and ``fp16`` are autocast, for GPUs.

    Returns
    -------
    InferenceModel
        In ``fp32`` its rows are those of ``model`` except for the rounding of float32.

    Raises
    ------
    FeatureError
        The precision is unknown, the model is in training mode, or its weights are not loaded.

    Examples
    --------
    >>> model = ResNet((1, 1, 1, 1)).eval()
    >>> for_inference(model, "cpu")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 2048])
    """
    one_of("precision", precision, tuple(PRECISIONS), FeatureError)
    if model.training:
        raise FeatureError("the backbone is in training mode, in which rows depend on their neighbours; call eval()")
    if next(model.parameters()).isnan().any():
        raise FeatureError(
            "the backbone has no weights yet; call meidbench.extraction.encoders.weights.load_weights first"
        )
    device = torch.device(device)
    copied = copy.deepcopy(model)
    if fold := getattr(copied, "fold_batch_norms", None):
        fold()
    copied.requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return InferenceModel(copied, device, precision).eval()


@contextmanager
def _arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in the given precision, whatever the settings of the process are."""
    # Convolutions must not use TF32, the default on GPUs, which would leave three digits of fp32.
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cudnn
    holder, name, value = getattr(backend, "conv", None), "fp32_precision", "ieee"
    if not hasattr(holder, name):  # before torch 2.9
        holder, name, value = torch.backends.cudnn, "allow_tf32", False  # type: ignore[assignment]
    before = getattr(holder, name)
    setattr(holder, name, value)
    dtype = PRECISIONS[precision]
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        setattr(holder, name, before)
