"""Expert two, and what both experts say together (equations 8 to 14 of MEID)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from meidbench.baselines.aggregators import Aggregator
from meidbench.baselines.aggregators.base import at_least_float32
from meidbench.baselines.aggregators.pooling import Mean
from meidbench.baselines.models.base import Model, Outputs, Task
from meidbench.baselines.models.distillation import (
    DISTANCES,
    MASKS,
    MEDIUM,
    NECK_ACTIVATIONS,
    NECK_NORMS,
    VARIANCES,
    VarianceDistillation,
    checked_weight,
)
from meidbench.baselines.models.meid_parts import (
    ACTIVATIONS,
    APPLIED,
    ATTENTION_NORMS,
    ATTENTIONS,
    AXES,
    EMBEDDINGS,
    FUSE_NORMS,
    NORMS,
    SHARES,
    STAGES,
    Complement,
    FrameAttention,
    ReleaseEmbedding,
    SimpleEmbedding,
    begin_as_released,
    checked_beta,
    complementary,
    frame_norm,
)
from meidbench.checks import one_of
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


ARCHITECTURES = ("e2", "e1")
LOSSES_ON = ("sum", "e2")
SCORES = ("logit_sum", "prob_mean")
FROZEN_NORMS = ("eval", "train")


class ExpertTwo(Model):
    """Expert one, frozen, and an expert that is trained on what it leaves over.

    R = 1 / (A + beta) of expert one's attention A, X_C = embedding(X) * R, X_F = Linear([X_C ; embedding(X_M)]), and
    Y_F = aggregator(X_F). The classification loss is of Y + Y_F, the penalty lambda L_d(Y_F) with necks of its own, a
    video's score is Y + Y_F. Without a motion stream X_F = X_C.

    By default as the paper words it; each switch is an ambiguity of the paper, a difference to the authors' code (the
    recipe ``meid-release``) or an ablation.

    Parameters that are trained in the second stage (with ``mean`` for an aggregator, D = 2048):

    ================  ===================  ===================
    preset            C = 1004, N = 150    C = 157, N = 200
    ================  ===================  ===================
    paper             19,239,304           17,125,491
    release           136,772,070          134,693,307
    ================  ===================  ===================

    Parameters
    ----------
    task : Task
    arch : str
        ``e2``, or ``e1`` for a second expert of the first one's kind, with an attention of its own (MEID, Table 6,
        E1 + E1).
    selection : bool
        Whether frames are weighted by R (equation 8); without it all count alike.
    beta, selection_renorm
        As in ``complementary``.
    selection_apply : str
        R is applied to the ``output`` of the embedding (equation 9) or to its ``input`` (authors' code).
    share : str
        ``none``: both streams have embeddings of their own; ``e2_streams``: one for both; ``all``: expert one's, which
        is frozen.
    fuse_axis : str
        As in ``Fusion``; it has no meaning where streams are fused late.
    fuse_stage : str
        MEID, supplementary Table 2: ``medium`` fuses embedded streams; ``early`` fuses them before one embedding;
        ``late`` gives each an aggregator and adds their logits.
    fuse_norm : str
        ``bn`` normalises each embedded stream over the batch before it is fused (authors' code), or ``none``.
    loss_on : str
        The classification loss is of the ``sum`` (equation 14) or of ``e2`` alone (authors' code).
    scores : str
        ``logit_sum``, or ``prob_mean``: the mean of both experts' probabilities (authors' code), given as its logit,
        which ranks the same and does not round to 1.
    frozen_norm : str
        Whether expert one's batch statistics are frozen with it (``eval``) or drift (``train``, authors' code).
    embedding, embedding_norm, attention, attention_act, attention_hidden, attention_reduction, \
attention_norm, pool, recompute
        As in ``ExpertOne``, of both experts.
    distill_weight, neck_out, neck_mask, neck_act, neck_norm, distill_var, distill_norm, distill_detach_head, \
distill_medium
        As in ``ExpertOne``, of this one.

    Raises
    ------
    MeidbenchError
        A switch is unknown, or contradicts another or the task.
    """

    takes_motion = True
    begins_from_first_stage = True

    def __init__(
        self,
        task: Task,
        *,
        arch: str = "e2",
        selection: bool = True,
        beta: float = 0.5,
        selection_renorm: bool = False,
        selection_apply: str = "output",
        share: str = "none",
        fuse_axis: str = "feature",
        fuse_stage: str = "medium",
        fuse_norm: str = "none",
        loss_on: str = "sum",
        scores: str = "logit_sum",
        frozen_norm: str = "eval",
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
        self.loss_on = one_of("loss_on", loss_on, LOSSES_ON)
        self.scores = one_of("scores", scores, SCORES)
        self.frozen_norm = one_of("frozen_norm", frozen_norm, FROZEN_NORMS)
        one_of("arch", arch, ARCHITECTURES)
        for name, value, known in (
            ("selection_apply", selection_apply, APPLIED),
            ("share", share, SHARES),
            ("fuse_axis", fuse_axis, AXES),
            ("fuse_stage", fuse_stage, STAGES),
            ("fuse_norm", fuse_norm, FUSE_NORMS),
        ):
            one_of(name, value, known)
        self.pool, self.distill_weight = pool, distill_weight
        self.beta, self.selection_renorm = checked_beta(beta), selection_renorm
        self.selection = selection and arch == "e2"
        if self.selection and attention == "none":
            raise MeidbenchError("selection=true takes expert one's attention; it needs one, or selection=false")
        if arch == "e1" and task.has_motion:
            raise MeidbenchError("arch=e1 is expert one again, which takes no motion; set motion.when=none")

        cancels = selection_apply == "input" and embedding == "simple" and embedding_norm == "ln"
        if self.selection and cancels and not (task.has_motion and fuse_stage == "early"):
            raise MeidbenchError(
                "selection_apply=input selects nothing before a normalisation of each frame, which takes its weight "
                "out again; set embedding_norm=bn, or selection_apply=output"
            )

        def expert_one(weight: float) -> ExpertOne:
            return ExpertOne(
                task,
                embedding=embedding,
                embedding_norm=embedding_norm,
                attention=attention,
                attention_act=attention_act,
                attention_hidden=attention_hidden,
                attention_reduction=attention_reduction,
                attention_norm=attention_norm,
                pool=pool,
                distill_weight=weight,
                neck_out=neck_out,
                neck_mask=neck_mask,
                neck_act=neck_act,
                neck_norm=neck_norm,
                distill_var=distill_var,
                distill_norm=distill_norm,
                distill_detach_head=distill_detach_head,
                distill_medium=distill_medium,
                recompute=recompute,
            )

        self.one = expert_one(0.0).requires_grad_(False)
        # A module begins in training mode without being told so.
        self.train()
        self.again: ExpertOne | None = None
        self.distillation = None
        if arch == "e1":
            self.again = expert_one(distill_weight)
            return

        self.complement = Complement(
            task.dim,
            task.frames,
            has_motion=task.has_motion,
            embedding=embedding,
            embedding_norm=embedding_norm,
            recompute=recompute,
            apply=selection_apply,
            share=share,
            fuse_axis=fuse_axis,
            fuse_stage=fuse_stage,
            fuse_norm=fuse_norm,
        )
        self.aggregators = torch.nn.ModuleList(task.aggregator(task.dim) for _ in range(self.complement.streams))
        if embedding == "release":
            for aggregator in self.aggregators:
                begin_last_layer_as_released(aggregator)  # type: ignore[arg-type, unused-ignore]
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

    def train(self, mode: bool = True) -> "ExpertTwo":
        """Set the mode; expert one's stays that of evaluation, unless its batch statistics are to drift."""
        super().train(mode)
        self.one.eval()
        if self.frozen_norm == "train":
            # Its statistics alone: dropout would make what is frozen random.
            for layer in self.one.modules():
                if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                    layer.train(mode)
        return self

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute what the loss is of, or the scores (B, C), and the penalty of equation 14; see ``Model``."""
        with torch.no_grad():
            frames = self.one.normal(features)
            attention = None if self.one.attention is None else self.one.attention(frames)
            first = self.one.aggregator(pooled(self.one.embedding(frames), attention, self.pool))
        if self.again is not None:
            second, penalty, *_ = self.again(features)
        else:
            if (motion is not None) != self.task.has_motion:
                raise MeidbenchError(
                    "expert two was made " + ("with" if self.task.has_motion else "without") + " motion"
                )
            if motion is not None and motion.shape != features.shape:
                raise MeidbenchError(
                    f"expected motion of the features' shape {tuple(features.shape)}, got {tuple(motion.shape)}"
                )
            motion = None if motion is None else motion.to(frames.dtype)
            weights = None
            if self.selection:
                assert attention is not None
                weights = complementary(attention, self.beta, renormalise=self.selection_renorm)
            streams = self.complement(frames, weights, motion, self.one.embedding)
            parts = [
                aggregator(pooled(stream, None, self.pool))
                for aggregator, stream in zip(self.aggregators, streams, strict=True)
            ]
            second = sum(parts[1:], start=parts[0])
            penalty = penalty_of(self, second)
        if not self.training:
            return Outputs(joint_scores(first, second, self.scores))
        return Outputs(at_least_float32(first) + at_least_float32(second) if self.loss_on == "sum" else second, penalty)

    def begin_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of a trained expert one, but for its necks.

        Raises
        ------
        MeidbenchError
            They are of another model.
        """
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("distillation.")}
        try:
            self.one.load_state_dict(kept)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise MeidbenchError(f"the first stage holds another model than expert one ({reason})") from None

    def facts(self) -> dict[str, float]:
        """Return the norms of the necks' weights."""
        if self.again is not None:
            return self.again.facts()
        return {} if self.distillation is None else self.distillation.facts()


def joint_scores(first: torch.Tensor, second: torch.Tensor, how: str) -> torch.Tensor:
    """Return the scores (B, C) of two experts from their logits, in float32 at least.

    Parameters
    ----------
    first, second : Tensor, (B, C)
    how : str
        ``logit_sum``, or ``prob_mean``: the logit of the mean of both probabilities.

    Examples
    --------
    >>> torch.sigmoid(joint_scores(torch.tensor([[0.0]]), torch.tensor([[100.0]]), "prob_mean"))
    tensor([[0.7500]])
    """
    first, second = at_least_float32(first), at_least_float32(second)
    if how == "logit_sum":
        return first + second
    # Probabilities themselves would round to 1 and tie.
    positive = torch.logaddexp(functional.logsigmoid(first), functional.logsigmoid(second))
    negative = torch.logaddexp(functional.logsigmoid(-first), functional.logsigmoid(-second))
    return positive - negative
