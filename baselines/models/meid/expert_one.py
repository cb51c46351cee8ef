"""Expert one: embedding, frame attention, and distillation from head to tail (equations 2 to 7 and 13 of MEID)."""

from typing import Any

import torch

from meidbench.baselines.aggregators import Aggregator
from meidbench.baselines.aggregators.mean import Mean
from meidbench.baselines.losses.base import one_of
from meidbench.baselines.models.base import Model, Outputs, Task
from meidbench.baselines.models.meid.attention import ACTIVATIONS, ATTENTION_NORMS, ATTENTIONS, FrameAttention
from meidbench.baselines.models.meid.distillation import (
    DISTANCES,
    MASKS,
    MEDIUM,
    NECK_ACTIVATIONS,
    NECK_NORMS,
    VARIANCES,
    VarianceDistillation,
    checked_weight,
)
from meidbench.baselines.models.meid.embedding import (
    EMBEDDINGS,
    NORMS,
    ReleaseEmbedding,
    SimpleEmbedding,
    begin_as_released,
    frame_norm,
)
from meidbench.errors import MeidbenchError

POOLS = ("mean", "sum", "weighted_mean")


class ExpertOne(Model):
    """T = embedding(X), A = attention(X), Y = aggregator(T * A); the penalty is lambda L_d(Y).

    By default as the paper words it; each switch is an ambiguity of the paper or a difference to the authors' code,
    whose values are those of the recipe ``meid_one-release``. In the latter X is normalised first, for embedding and
    attention alike.

    Parameters (with ``mean`` for an aggregator, D = 2048), of which the necks are needed in training alone:

    ================  ===================  ===================
    preset            C = 1004, N = 150    C = 157, N = 200
    ================  ===================  ===================
    paper             7,173,001            5,059,188
    release           73,815,072           71,712,659
    ================  ===================  ===================

    Parameters
    ----------
    task : Task
    embedding : str
        ``simple`` (equation 2) or ``release``; see ``SimpleEmbedding`` and ``ReleaseEmbedding``.
    embedding_norm : str
        ``ln`` or ``bn``: the normalisation of equation 2; with ``release``, that of X.
    attention : str
        ``frame_mlp``, ``se_frames`` or ``none``; see ``FrameAttention``.
    attention_act : str
        ``sigmoid``, ``softmax`` or ``n_softmax``.
    attention_hidden, attention_reduction : int
        Of ``frame_mlp`` and of ``se_frames``.
    attention_norm : str
        ``ln`` or ``none``, of ``frame_mlp``.
    pool : str
        What the aggregator's mean over frames stands for: ``mean`` of T * A, its ``sum``, or ``weighted_mean``, which
        is the sum divided by that of A.
    distill_weight : float
        lambda; with 0 there are no necks.
    neck_out, neck_mask, neck_act, neck_norm
        ``out``, ``mask``, ``activation`` and ``norm`` of ``VarianceDistillation``.
    distill_var, distill_norm, distill_detach_head, distill_medium
        ``variance``, ``distance``, ``detach_head`` and ``medium`` of ``VarianceDistillation``.
    recompute : bool
        Compute the wide layer of ``release`` again in the backward pass instead of keeping it.

    Raises
    ------
    MeidbenchError
        A switch is unknown, or contradicts another or the task.
    """

    def __init__(
        self,
        task: Task,
        *,
        embedding: str = "simple",
        embedding_norm: str = "ln",
        attention: str = "frame_mlp",
        attention_act: str = "sigmoid",
        attention_hidden: int = 256,
        attention_reduction: int = 3,
        attention_norm: str = "ln",
        pool: str = "mean",
        distill_weight: float = 0.1,
        neck_out: int | None = None,
        neck_mask: str = "input",
        neck_act: str = "none",
        neck_norm: str = "none",
        distill_var: str = "unit",
        distill_norm: str = "rms",
        distill_detach_head: bool = False,
        distill_medium: str = "excluded",
        recompute: bool = False,
    ) -> None:
        super().__init__(task)
        check_switches(
            embedding=embedding,
            embedding_norm=embedding_norm,
            attention=attention,
            attention_act=attention_act,
            attention_norm=attention_norm,
            neck_mask=neck_mask,
            neck_act=neck_act,
            neck_norm=neck_norm,
            distill_var=distill_var,
            distill_norm=distill_norm,
            distill_medium=distill_medium,
        )
        self.pool = one_of("pool", pool, POOLS)
        if attention == "none" and pool == "weighted_mean":
            raise MeidbenchError("pool=weighted_mean divides by the attention; it needs an attention, not none")
        self.input_norm = frame_norm(embedding_norm, task.dim) if embedding == "release" else None
        self.embedding: torch.nn.Module
        if embedding == "release":
            self.embedding = ReleaseEmbedding(task.dim, project=True, recompute=recompute)
        else:
            self.embedding = SimpleEmbedding(task.dim, embedding_norm)
        self.attention = None
        if attention != "none":
            self.attention = FrameAttention(
                attention,
                task.dim,
                task.frames,
                activation=attention_act,
                hidden=attention_hidden,
                reduction=attention_reduction,
                norm=attention_norm,
            )
        self.aggregator = task.aggregator(task.dim)
        if embedding == "release":
            begin_last_layer_as_released(self.aggregator)
        self.distillation = distillation_of(
            task,
            distill_weight,
            out=neck_out,
            mask=neck_mask,
            activation=neck_act,
            norm=neck_norm,
            variance=distill_var,
            distance=distill_norm,
            detach_head=distill_detach_head,
            medium=distill_medium,
        )
        self.distill_weight = distill_weight

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute Y, (B, C), and in training the penalty of equation 13; see ``Model``."""
        frames = self.normal(features)
        weights = None if self.attention is None else self.attention(frames)
        logits = self.aggregator(pooled(self.embedding(frames), weights, self.pool))
        return Outputs(logits, penalty_of(self, logits))

    def normal(self, features: torch.Tensor) -> torch.Tensor:
        """Return the frames (B, N, D) that embedding and attention are given."""
        if features.ndim != 3 or features.shape[2] != self.task.dim or not features.numel():
            raise MeidbenchError(
                f"{type(self).__name__} expects features (B, N, {self.task.dim}), B and N at least 1, "
                f"got {tuple(features.shape)}"
            )
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(next(self.parameters()).dtype)
        if self.input_norm is None:
            return features
        frames: torch.Tensor = self.input_norm(features, None)
        return frames

    def facts(self) -> dict[str, float]:
        """Return the norms of the necks' weights."""
        return {} if self.distillation is None else self.distillation.facts()


def begin_last_layer_as_released(aggregator: Aggregator) -> None:
    """Set the last layer behind a mean over frames as the authors' code does; a bias from a prior stays."""
    if isinstance(aggregator, Mean) and isinstance(aggregator.classifier, torch.nn.Linear):
        bias = aggregator.classifier.bias.detach().clone()
        begin_as_released(aggregator.classifier)
        if aggregator._bias_prior is not None:
            aggregator.classifier.bias.data.copy_(bias)


# What the switches may be, whether they are in use or not.
_KNOWN = {
    "embedding": EMBEDDINGS,
    "embedding_norm": NORMS,
    "attention": ATTENTIONS,
    "attention_act": ACTIVATIONS,
    "attention_norm": ATTENTION_NORMS,
    "neck_mask": MASKS,
    "neck_act": NECK_ACTIVATIONS,
    "neck_norm": NECK_NORMS,
    "distill_var": VARIANCES,
    "distill_norm": DISTANCES,
    "distill_medium": MEDIUM,
}


def check_switches(**switches: str) -> None:
    """Refuse a switch of expert one with an unknown value.

    Raises
    ------
    MeidbenchError
        There is one.
    """
    for name, value in switches.items():
        one_of(name, value, _KNOWN[name])


def distillation_of(task: Task, weight: float, **switches: Any) -> VarianceDistillation | None:
    """Return the necks and their loss, None where it has no weight."""
    if not checked_weight(weight):
        return None
    return VarianceDistillation(task.groups, task.num_classes, **switches)


def penalty_of(expert: Any, logits: torch.Tensor) -> torch.Tensor | None:
    """Return lambda L_d of an expert's logits, equations 13 and 14; None where there is none, or nothing is trained."""
    if expert.distillation is None or not expert.training:
        return None
    penalty: torch.Tensor = expert.distill_weight * expert.distillation(logits)
    return penalty


def pooled(frames: torch.Tensor, weights: torch.Tensor | None, pool: str) -> torch.Tensor:
    """Return frames (B, N, D) times their weights (B, N), so that their mean is what a pool means.

    Examples
    --------
    >>> frames, weights = torch.tensor([[[2.0], [4.0]]]), torch.tensor([[0.5, 0.25]])
    >>> [float(pooled(frames, weights, pool).mean(dim=1)) for pool in POOLS]
    [1.0, 2.0, 2.6666667461395264]
    """
    if weights is not None:
        frames = frames * weights[:, :, None].to(frames.dtype)
    if pool == "sum":
        return frames * frames.shape[1]
    if pool == "weighted_mean" and weights is not None:
        return frames / weights.mean(dim=1)[:, None, None].to(frames.dtype)
    return frames
