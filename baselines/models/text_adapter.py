"""A linear classifier on the frames of an image-text model that starts from the text vectors of the class names."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from meidbench.baselines.aggregators.base import normalise
from meidbench.baselines.class_text import ClassText
from meidbench.baselines.models.base import Model, ModelInputs, Outputs
from meidbench.checks import one_of

START_BIASES = ("prior", "text")


class TextAdapter(Model):
    """One linear layer on the mean of a video's frames, each of length 1; its weights start from text vectors.

    z_c = s (w_c . (m - mu) + b_c), where m is the mean over the frames of x_t / |x_t|, and mu the mean of m over the
    training videos. At the start w_c is the unit text vector of class c and s the scale of its model. The scale and mu
    stay; Adam moves the weights and b, which have one unit, so that one learning rate fits both. Without mu, the part
    that all image rows of such a model have in common would be most of every gradient.

    The start is that of WiSE-FT (Wortsman et al., CVPR 2022) and of LIFT's semantic-aware initialisation (Shi et al.,
    ICML 2024); they have a softmax over single labels, and tune more than this layer.

    (D + 1) C parameters.

    Parameters
    ----------
    inputs : ModelInputs
    text : str
        An NPZ archive of text vectors, as ``--save-text`` of ``zero-shot`` writes it; where empty, they are made by the
        text encoder of the model in the features' recipe when the run begins.
    start_bias : str
        ``text``: b_c makes the logits of the start those of ``zero-shot`` with the mean over frames. ``prior``: they
        differ from these by one number per class, so that the mean training video gets the log-odds of the class. This
        changes no order of videos, so no average precision. CLIP's softmax has no bias; its logits are all far above 0,
        which a sigmoid has to unlearn first.
    """

    takes_aggregator = False
    takes_text = True
    scale: torch.Tensor
    center: torch.Tensor

    def __init__(self, inputs: ModelInputs, *, text: str = "", start_bias: str = "prior") -> None:
        super().__init__(inputs)
        self.text = text
        self.start_bias = one_of("model.start_bias", start_bias, START_BIASES)
        self.weight = nn.Parameter(torch.zeros(inputs.num_classes, inputs.dim))
        self.bias = nn.Parameter(torch.zeros(inputs.num_classes))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("center", torch.zeros(inputs.dim))

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits; see ``Model``."""
        with torch.autocast(features.device.type, enabled=False):  # cosines differ in digits that half precision lacks
            rows = self.mean_rows(features) - self.center
            return Outputs(self.scale * nn.functional.linear(rows, self.weight, self.bias))

    def mean_rows(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mean (B, D) over the frames (B, T, D), each of length 1; a frame of zeros stays."""
        return normalise(features.float(), 2).mean(dim=1)

    def start_from(self, text: ClassText, center: torch.Tensor, videos: int) -> None:
        """Start from the text of the classes; ``center`` (D,) is the mean of ``mean_rows`` over the training videos."""
        counts: npt.NDArray[np.float64] = self.inputs.train_counts.astype(np.float64)
        if self.start_bias == "prior":
            start = np.log((counts + 0.5) / (videos - counts + 0.5))
        else:
            start = text.scale * (text.vectors @ center.double().cpu().numpy()) + text.bias
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(text.vectors))
            self.bias.copy_(torch.from_numpy(start / text.scale))
            self.scale.fill_(text.scale)
            self.center.copy_(center)
