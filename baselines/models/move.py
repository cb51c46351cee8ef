"""MOVE as a model: two aggregators side by side, and the vicinity of rare classes widened in training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from meidbench.baselines.augmentation import mix
from meidbench.baselines.models.base import Model, Outputs, Task
from meidbench.baselines.models.move_aggregators import Codebook, PrototypeAttention
from meidbench.checks import in_range, one_of, whole_number
from meidbench.errors import MeidbenchError

LABEL_RULES = ("mean", "rarest", "commonest")


def commonness(train_counts: Sequence[int] | npt.NDArray[Any]) -> torch.Tensor:
    """Return tau, (C,): how common each class is, from 0 for the rarest to 1 for the commonest (MOVE, equation 7).

    tau_c = (n_c - min n) / (max n - min n). Where all classes have the same count, no one is common: 0 for each, which
    leaves their labels whole.

    Parameters
    ----------
    train_counts : (C,) array of int
        Training videos of each class.

    Raises
    ------
    MeidbenchError
        They are not one number a class.

    Examples
    --------
    >>> commonness([5, 10, 25])
    tensor([0.0000, 0.2500, 1.0000])
    """
    counts = np.asarray(train_counts, dtype=np.float64)
    if counts.ndim != 1 or not len(counts):
        raise MeidbenchError(f"train_counts must be one number a class, got shape {counts.shape}")
    spread = counts.max() - counts.min()
    return torch.as_tensor((counts - counts.min()) / (spread or 1.0), dtype=torch.float32)


def least_numbers(
    targets: torch.Tensor, tau: torch.Tensor, frames: int, least: int, rule: str = "mean"
) -> torch.Tensor:
    """Return how many frames of each video are drawn at least, (B,) int64: the lower bound in MOVE's equation 9.

    A class asks for max(tau_c T, least) frames; a video for what its classes do, cut off to a whole number, and never
    for more than T. A video without a label is of no rare class: it asks for all of them.

    Parameters
    ----------
    targets : Tensor, (B, C)
        Labels; above 0 where a video has a class.
    tau : Tensor, (C,)
        See ``commonness``.
    frames : int
        T.
    least : int
        sigma of the paper.
    rule : str
        For videos of several classes, which the paper's equation does not know: ``mean`` of what they ask for, as in
        the public code; ``rarest``, the least of it; ``commonest``, the most.

    Raises
    ------
    MeidbenchError
        The rule is unknown.

    Examples
    --------
    >>> least_numbers(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 1.0]), frames=60, least=3)
    tensor([ 3, 31, 60])
    """
    one_of("label_rule", rule, LABEL_RULES)
    has = targets > 0
    asked = (tau * frames).clamp(min=least).expand(targets.shape)
    if rule == "mean":
        numbers = (asked * has).sum(dim=1) / has.sum(dim=1)
    elif rule == "rarest":
        numbers = asked.masked_fill(~has, torch.inf).amin(dim=1)
    else:
        numbers = asked.masked_fill(~has, -torch.inf).amax(dim=1)
    numbers = numbers.where(has.any(dim=1), numbers.new_tensor(float(frames)))
    return numbers.clamp(max=frames).floor().long()


def drawn_frames(numbers: torch.Tensor, frames: int, draws: int) -> torch.Tensor:
    """Draw subsets of frames, (B, draws, T) bool, each of a size from U{number, ..., T} (MOVE, equations 8 and 9).

    Drawn from torch's global generator of the CPU: the same on every device, and as much for every batch of a shape.

    Parameters
    ----------
    numbers : Tensor of int64, (B,)
        Frames of each video that are drawn at least, 1 to T.
    frames : int
        T.
    draws : int
        Independent subsets of each video.

    Examples
    --------
    >>> drawn_frames(torch.tensor([2, 4]), frames=4, draws=3).sum(dim=2).amin(dim=1) >= torch.tensor([2, 4])
    tensor([True, True])
    """
    videos, device = len(numbers), numbers.device
    shares, order = torch.rand(videos, draws).to(device), torch.rand(videos, draws, frames).argsort(dim=2).to(device)
    least = numbers[:, None]
    # A share just below 1 may be rounded up when it is multiplied.
    sizes = (least + (shares * (frames - least + 1)).floor().long()).clamp(max=frames)
    # A random permutation's places below n are n frames at random.
    return order < sizes[:, :, None]


def beta_draws(alpha: float, number: int) -> torch.Tensor:
    """Draw from Beta(alpha, alpha), (number,) float32, on the CPU.

    One whole number is drawn from torch's global generator and seeds the rest, because torch takes more or fewer
    numbers for a draw from a Beta distribution as chance has it.

    Examples
    --------
    >>> draws = beta_draws(2.0, 5)
    >>> draws.shape, bool(((draws >= 0) & (draws <= 1)).all())
    (torch.Size([5]), True)
    """
    seed = int(torch.randint(2**62, (1,)))
    return torch.as_tensor(np.random.default_rng(seed).beta(alpha, alpha, number), dtype=torch.float32)


def extrapolated(first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return w u + (1 - w) v of two views of each video, (B, E): MOVE, equation 11.

    Parameters
    ----------
    first, second : Tensor, (B, E)
        u and v.
    weights : Tensor, (B,) or (1,)
        w, in [1, 2]: on the line from v through u, beyond u by w - 1 times what they are apart.

    Examples
    --------
    >>> extrapolated(torch.tensor([[2.0]]), torch.tensor([[5.0]]), torch.tensor([1.5]))
    tensor([[0.5000]])
    """
    share = weights.to(first.dtype)[:, None]
    return share * first + (1 - share) * second


def calibrated(targets: torch.Tensor, tau: torch.Tensor, bias: float) -> torch.Tensor:
    """Return labels y_c (1 - tau_c + bias), at most 1: the labels of MOVE's equation 12, once mixed.

    Parameters
    ----------
    targets : Tensor, (B, C)
    tau : Tensor, (C,)
        How common each class is; see ``meidbench.baselines.models.move.commonness``.
    bias : float
        gamma of the paper: what a label of the commonest class is multiplied by.

    Examples
    --------
    >>> calibrated(torch.tensor([[0.75, 0.75, 0.75]]), torch.tensor([0.0, 0.5, 1.0]), bias=0.5)
    tensor([[1.0000, 0.7500, 0.3750]])
    """
    return (targets * (1 - tau + bias).to(targets.dtype)).clamp(max=1)


AGGREGATIONS = ("both", "attention", "codebook")
KEYS = ("all", "drawn", "others")
INTERPOLATIONS = ("calibrated", "plain", "none")

# What makes it behave as its public code (github.com/wjun0830/MOVE, ``VideoLT/MOVE.py`` and ``models/models.py``).
COMPAT: dict[str, Any] = {"residual": False, "hidden_frames": "zeroed", "input_affine": False, "keys": "others"}

_SMALLEST_ALPHA = 1e-3


class Move(Model):
    """MOVE: Moon, Seong, Heo, "Minority-oriented vicinity expansion with attentive aggregation for video long-tailed
    recognition" (AAAI 2023, arXiv 2211.13471).

    z = ``PrototypeAttention`` (equation 1) beside ``Codebook`` (equations 2 and 3), concatenated (equation 4); then
    Linear to ``hidden``, ReLU, dropout, last layer. In training besides:

    1. With tau_c, how common a class is (equation 7), subsets of frames are drawn whose sizes vary the more the rarer a
       video's classes are (equations 8 and 9), two for each aggregator; each gives an embedding (equation 10): u and v.
    2. z = w u + (1 - w) v, w ~ Beta(2, 2) + 1 (equation 11).
    3. z and labels of two videos are mixed with lam ~ Beta(1, 1), and the labels multiplied by 1 - tau_c + 0.5, at most
       1 (equation 12): ``Outputs.targets``.

    When videos are scored all frames are taken, and none of these happens. By default as the paper's equations have it;
    ``COMPAT`` holds the switches of the public code. Training needs two videos a batch, one with ``extrapolation``.

    (A + 1) hidden + (hidden + 1) C parameters beside those of the aggregators, A being the width of z, D + 1024 with
    both: 159,618,156 in all for D = 2048, C = 1004.

    Parameters
    ----------
    task : Task
    aggregation : str
        ``both``, ``attention`` alone or ``codebook`` alone.
    heads, head_width, attention_dropout, dropout
        As in ``PrototypeAttention``.
    clusters, codebook_width, residual, hidden_frames, input_affine
        As in ``Codebook``, ``codebook_width`` being its ``width``.
    hidden : int
        Width of the classifier's hidden layer.
    hidden_dropout : float
        Share of it dropped in training.
    extrapolation : bool
        Whether 1 and 2 happen. Without it, all frames are taken in training too.
    least_frames : int
        sigma of equation 9.
    label_rule : str
        As ``rule`` in ``meidbench.baselines.models.move.least_numbers``.
    keys : str
        Which frames attention looks at under extrapolation: ``all``; of a further subset, the ``drawn`` ones or the
        ``others`` (public code; where that leaves none, it looks at all equally).
    extrapolation_alpha, interpolation_alpha : float
        Of the Beta distributions of w and lam.
    interpolation : str
        ``calibrated`` as in 3, ``plain`` without the factor on the labels, or ``none``.
    calibration_bias : float
        gamma of equation 12.
    per_video : bool
        Draw a w and a lam for each video, not one for the batch (public code).

    Attributes
    ----------
    mixes_targets : bool
        Whether ``interpolation`` changes labels.

    Raises
    ------
    MeidbenchError
        A parameter makes no sense; from a call, shapes do not fit, or labels are missing in training.
    """

    mixes_targets = True
    takes_aggregator = False

    def __init__(
        self,
        task: Task,
        *,
        aggregation: str = "both",
        heads: int = 4,
        head_width: int | None = None,
        attention_dropout: float = 0.1,
        dropout: float = 0.1,
        clusters: int = 64,
        codebook_width: int = 1024,
        residual: bool = True,
        hidden_frames: str = "masked",
        input_affine: bool = True,
        hidden: int = 2048,
        hidden_dropout: float = 0.5,
        extrapolation: bool = True,
        least_frames: int = 3,
        label_rule: str = "mean",
        keys: str = "all",
        extrapolation_alpha: float = 2.0,
        interpolation: str = "calibrated",
        interpolation_alpha: float = 1.0,
        calibration_bias: float = 0.5,
        per_video: bool = False,
    ) -> None:
        super().__init__(task)
        one_of("aggregation", aggregation, AGGREGATIONS)
        hidden = whole_number("hidden", hidden, least=1)
        self.extrapolation, self.per_video = extrapolation, per_video
        self.least_frames = whole_number("least_frames", least_frames, least=1)
        self.label_rule = one_of("label_rule", label_rule, LABEL_RULES)
        self.keys = one_of("keys", keys, KEYS)
        self.interpolation = one_of("interpolation", interpolation, INTERPOLATIONS)
        self.mixes_targets = interpolation != "none"
        self.extrapolation_alpha = in_range("extrapolation_alpha", extrapolation_alpha, _SMALLEST_ALPHA)
        self.interpolation_alpha = in_range("interpolation_alpha", interpolation_alpha, _SMALLEST_ALPHA)
        self.calibration_bias = in_range("calibration_bias", calibration_bias, 0)
        self.attention: PrototypeAttention | None = None
        self.codebook: Codebook | None = None
        width = 0
        if aggregation != "codebook":
            self.attention = PrototypeAttention(
                task.dim, heads=heads, head_width=head_width, attention_dropout=attention_dropout, dropout=dropout
            )
            width += task.dim
        if aggregation != "attention":
            self.codebook = Codebook(
                task.dim,
                clusters=clusters,
                width=codebook_width,
                residual=residual,
                hidden_frames=hidden_frames,
                input_affine=input_affine,
            )
            width += codebook_width
        self.hidden = nn.Linear(width, hidden)
        self.hidden_dropout = nn.Dropout(in_range("hidden_dropout", hidden_dropout, 0, 1))
        self.classifier = nn.Linear(hidden, task.num_classes)
        # It follows from the split, which a checkpoint need not repeat.
        self.register_buffer("tau", commonness(task.train_counts), persistent=False)

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits; see ``Model``. Motion is not looked at."""
        frames = self._checked(features)
        if not self.training or not (self.extrapolation or self.mixes_targets):
            return Outputs(self._logits(self._embeddings(frames)[:, 0]))
        if targets is None or targets.shape != (len(frames), self.task.num_classes):
            got = None if targets is None else tuple(targets.shape)
            raise MeidbenchError(f"MOVE needs labels ({len(frames)}, {self.task.num_classes}) in training, got {got}")
        assert isinstance(self.tau, torch.Tensor)
        if self.extrapolation:
            first, second = self._two_views(frames, targets).unbind(dim=1)
            weights = 1 + beta_draws(self.extrapolation_alpha, len(frames) if self.per_video else 1)
            embedding = extrapolated(first, second, weights.to(frames.device))
        else:
            embedding = self._embeddings(frames)[:, 0]
        if self.interpolation == "none":
            return Outputs(self._logits(embedding))
        partners = torch.randperm(len(frames)).to(frames.device)
        own = beta_draws(self.interpolation_alpha, len(frames) if self.per_video else 1)
        shares = (1 - own).expand(len(frames)).to(frames.device)
        soft = mix(targets if targets.dtype.is_floating_point else targets.to(frames.dtype), partners, shares)
        if self.interpolation == "calibrated":
            soft = calibrated(soft, self.tau, self.calibration_bias)
        return Outputs(self._logits(mix(embedding, partners, shares)), targets=soft)

    def _checked(self, features: torch.Tensor) -> torch.Tensor:
        if features.ndim != 3 or features.shape[2] != self.task.dim or not features.shape[1] or not len(features):
            raise MeidbenchError(
                f"MOVE expects features (B, T, {self.task.dim}), B and T at least 1, got {tuple(features.shape)}"
            )
        if not features.dtype.is_floating_point:
            raise MeidbenchError(f"features must be floating point, got {features.dtype}")
        return features if torch.is_autocast_enabled(features.device.type) else features.to(self.hidden.weight.dtype)

    def _two_views(self, frames: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute embeddings (B, 2, A) of two subsets of the frames, drawn for each aggregator by itself."""
        assert isinstance(self.tau, torch.Tensor)
        length = frames.shape[1]
        numbers = least_numbers(targets, self.tau, length, self.least_frames, self.label_rule)
        asked = for_codebook = seen = None
        if self.attention is not None:
            asked = drawn_frames(numbers, length, 2)
            if self.keys != "all":
                further = drawn_frames(numbers, length, 1)[:, 0]
                seen = further if self.keys == "drawn" else ~further
        if self.codebook is not None:
            for_codebook = drawn_frames(numbers, length, 2)
        return self._embeddings(frames, asked, seen, for_codebook)

    def _embeddings(
        self,
        frames: torch.Tensor,
        asked: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
        for_codebook: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute embeddings (B, Q, A), A being the widths of both aggregators together."""
        parts = []
        if self.attention is not None:
            parts.append(self.attention(frames, asked, seen))
        if self.codebook is not None:
            parts.append(self.codebook(frames, for_codebook))
        return torch.cat(parts, dim=2)

    def _logits(self, embedding: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.hidden_dropout(torch.relu(self.hidden(embedding))))
        return logits
