"""The two experts of MEID, and their joint scores (equations 2 to 14)."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators import Aggregator
from meidbench.baselines.aggregators.base import at_least_float32, check_frames
from meidbench.baselines.aggregators.pooling import Mean
from meidbench.baselines.models.base import Model, ModelInputs, Outputs
from meidbench.baselines.models.distillation import VarianceDistillation
from meidbench.baselines.models.meid_parts import (
    SMALLEST_BETA,
    Complement,
    ExpertSwitches,
    FrameAttention,
    complementary_weights,
    frame_norm,
    initialise_as_released,
    make_embedding,
)
from meidbench.checks import in_range, one_of
from meidbench.errors import MeidbenchError


class _Expert(Model):
    """A model with the switches of both experts, and with a distillation loss of its logits."""

    further_options = ExpertSwitches
    distillation: VarianceDistillation | None

    def __init__(self, inputs: ModelInputs, switches: ExpertSwitches) -> None:
        super().__init__(inputs)
        self.switches = switches

    def _make_distillation(self) -> VarianceDistillation | None:
        if not self.switches.distill_weight:
            return None
        return VarianceDistillation(self.inputs.groups, self.inputs.num_classes, self.switches)

    def _penalty(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return lambda L_d of the logits, equations 13 and 14; None without distillation and outside training."""
        if self.distillation is None or not self.training:
            return None
        penalty: torch.Tensor = self.switches.distill_weight * self.distillation(logits)
        return penalty

    def log_values(self) -> dict[str, float]:
        """Return the norms of the necks' weights."""
        return {} if self.distillation is None else self.distillation.log_values()


class ExpertOne(_Expert):
    """T = embedding(X), A = attention(X), Y = aggregator(T * A); the penalty is lambda L_d(Y).

    With ``embedding=release`` X is normalised first, for embedding and attention alike.

    Parameters (with ``mean`` as the aggregator, D = 2048), of which the necks are needed in training alone:

    ================  ===================  ===================
    preset            C = 1004, N = 150    C = 157, N = 200
    ================  ===================  ===================
    paper             7,173,001            5,059,188
    release           73,815,072           71,712,659
    ================  ===================  ===================

    See ``ExpertSwitches`` for the switches.

    Raises
    ------
    MeidbenchError
        A switch is unknown, or contradicts another or the inputs.
    """

    def __init__(self, inputs: ModelInputs, **switches: Any) -> None:
        super().__init__(inputs, chosen := ExpertSwitches(**switches))
        is_release = chosen.embedding == "release"
        self.input_norm = frame_norm(chosen.embedding_norm, inputs.dim) if is_release else None
        self.embedding = make_embedding(inputs.dim, chosen, project=True)
        has_attention = chosen.attention != "none"
        self.attention = FrameAttention(inputs.dim, inputs.frames, chosen) if has_attention else None
        [self.aggregator] = _make_aggregators(inputs, 1, is_release)
        self.distillation = self._make_distillation()

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute Y, (B, C), and in training the penalty of equation 13; see ``Model``."""
        logits = self.classify(*self.attend(features))
        return Outputs(logits, self._penalty(logits))

    def attend(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return X (B, N, D), normalised for the ``release``, and the attention A (B, N), or None without one."""
        frames = check_frames(self, features, self.inputs.dim)
        if self.input_norm is not None:
            frames = self.input_norm(frames, None)
        return frames, None if self.attention is None else self.attention(frames)

    def classify(self, frames: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the logits Y (B, C) of the results of ``attend``."""
        logits: torch.Tensor = self.aggregator(apply_pool(self.embedding(frames), weights, self.switches.pool))
        return logits


class ExpertTwo(_Expert):
    """Expert one, frozen, and an expert that learns what expert one misses.

    R = 1 / (A + beta) of expert one's attention A, X_C = embedding(X) * R, X_F = Linear([X_C ; embedding(X_M)]), and
    Y_F = aggregator(X_F). The classification loss is of Y + Y_F, the penalty lambda L_d(Y_F) with necks of its own, a
    video's score is Y + Y_F. Without a motion stream X_F = X_C.

    The defaults follow the wording of the paper; each switch is an ambiguity of the paper, a difference to the authors'
    code (the recipe ``meid-release``) or an ablation.

    Parameters that are trained in the second stage (with ``mean`` as the aggregator, D = 2048):

    ================  ===================  ===================
    preset            C = 1004, N = 150    C = 157, N = 200
    ================  ===================  ===================
    paper             19,239,304           17,125,491
    release           136,772,070          134,693,307
    ================  ===================  ===================

    Parameters
    ----------
    inputs : ModelInputs
    arch : str
        ``e2``, or ``e1`` for a second expert of the first one's kind, with an attention of its own (MEID, Table 6,
        E1 + E1).
    selection : bool
        Whether frames are weighted by R (equation 8); without it all frames have the same weight.
    beta, selection_renorm
        ``beta`` and ``renormalise`` of ``complementary_weights``.
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
        ``logit_sum``, or ``prob_mean``: the mean of both experts' probabilities (authors' code), returned as its logit,
        which ranks the same and does not round to 1.
    frozen_norm : str
        Whether expert one's batch statistics are frozen with it (``eval``) or drift (``train``, authors' code).
    **of_both
        As in ``ExpertSwitches``: ``distill_weight``, ``neck_*`` and ``distill_*`` of this expert, the rest of both.

    Raises
    ------
    MeidbenchError
        A switch is unknown, or contradicts another or the inputs.
    """

    takes_motion = True
    needs_first_stage = True

    def __init__(
        self,
        inputs: ModelInputs,
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
        **of_both: Any,
    ) -> None:
        super().__init__(inputs, switches := ExpertSwitches(**of_both))
        one_of("arch", arch, ("e2", "e1"))
        one_of("selection_apply", selection_apply, ("output", "input"))
        one_of("share", share, ("none", "e2_streams", "all"))
        one_of("fuse_axis", fuse_axis, ("feature", "frame"))
        one_of("fuse_stage", fuse_stage, ("early", "medium", "late"))
        one_of("fuse_norm", fuse_norm, ("none", "bn"))
        self.loss_on = one_of("loss_on", loss_on, ("sum", "e2"))
        self.scores = one_of("scores", scores, ("logit_sum", "prob_mean"))
        self.frozen_norm = one_of("frozen_norm", frozen_norm, ("eval", "train"))
        self.beta, self.selection_renorm = in_range("beta", beta, SMALLEST_BETA), selection_renorm
        self.selection = selection and arch == "e2"
        if self.selection:
            self._check_selection(selection_apply, fuse_stage)
        if arch == "e1" and inputs.has_motion:
            raise MeidbenchError("arch=e1 is expert one again, which takes no motion; set motion.when=none")

        self.one = ExpertOne(inputs, **asdict(replace(switches, distill_weight=0.0))).requires_grad_(False)
        # A new module is in training mode without a call of train().
        self.train()
        self.again = ExpertOne(inputs, **asdict(switches)) if arch == "e1" else None
        self.distillation = None
        if self.again is not None:
            return

        self.complement = Complement(
            inputs.dim,
            inputs.frames,
            switches,
            has_motion=inputs.has_motion,
            apply=selection_apply,
            share=share,
            fuse_axis=fuse_axis,
            fuse_stage=fuse_stage,
            fuse_norm=fuse_norm,
        )
        self.aggregators = nn.ModuleList(
            _make_aggregators(inputs, self.complement.streams, switches.embedding == "release")
        )
        self.distillation = self._make_distillation()

    def _check_selection(self, selection_apply: str, fuse_stage: str) -> None:
        switches = self.switches
        if switches.attention == "none":
            raise MeidbenchError("selection=true takes expert one's attention; it needs one, or selection=false")
        cancels = selection_apply == "input" and switches.embedding == "simple" and switches.embedding_norm == "ln"
        if cancels and not (self.inputs.has_motion and fuse_stage == "early"):
            raise MeidbenchError(
                "selection_apply=input selects nothing before a normalisation of each frame, which removes its weight "
                "again; set embedding_norm=bn, or selection_apply=output"
            )

    def train(self, mode: bool = True) -> "ExpertTwo":
        """Set the mode; expert one stays in evaluation mode, unless its batch statistics drift."""
        super().train(mode)
        self.one.eval()
        if self.frozen_norm == "train":
            # Its statistics alone: dropout would make the frozen expert random.
            for layer in self.one.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.train(mode)
        return self

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute the logits for the loss, or the scores (B, C), and the penalty of equation 14; see ``Model``."""
        with torch.no_grad():
            frames, attention = self.one.attend(features)
            first = self.one.classify(frames, attention)
        if self.again is not None:
            second, penalty, *_ = self.again(features)
        else:
            second = self._second_logits(frames, attention, self._checked_motion(features, motion))
            penalty = self._penalty(second)
        scores = joint_scores(first, second, self.scores)
        if not self.training:
            return Outputs(scores)
        logits = at_least_float32(first) + at_least_float32(second) if self.loss_on == "sum" else second
        return Outputs(logits, penalty, scores=scores)

    def _checked_motion(self, features: torch.Tensor, motion: torch.Tensor | None) -> torch.Tensor | None:
        if (motion is not None) != self.inputs.has_motion:
            made = "with" if self.inputs.has_motion else "without"
            raise MeidbenchError(f"expert two was made {made} motion")
        if motion is not None and motion.shape != features.shape:
            raise MeidbenchError(
                f"expected motion of the features' shape {tuple(features.shape)}, got {tuple(motion.shape)}"
            )
        return motion

    def _second_logits(
        self, frames: torch.Tensor, attention: torch.Tensor | None, motion: torch.Tensor | None
    ) -> torch.Tensor:
        """Return Y_F (B, C), equations 8 to 12."""
        weights = None
        if self.selection and attention is not None:
            weights = complementary_weights(attention, self.beta, renormalise=self.selection_renorm)
        motion = None if motion is None else motion.to(frames.dtype)
        streams = self.complement(frames, weights, motion, self.one.embedding)
        parts: list[torch.Tensor] = [
            aggregator(apply_pool(stream, None, self.switches.pool))
            for aggregator, stream in zip(self.aggregators, streams, strict=True)
        ]
        return sum(parts[1:], start=parts[0])

    def load_first_stage(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy the weights of a trained expert one, without its necks.

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

    def log_values(self) -> dict[str, float]:
        """Return the norms of the necks' weights."""
        return super().log_values() if self.again is None else self.again.log_values()


def _make_aggregators(inputs: ModelInputs, number: int, is_release: bool) -> list[Aggregator]:
    """Make configured aggregators; for the ``release``, last layers behind a mean start as in the authors' code."""
    aggregators = [inputs.aggregator(inputs.dim) for _ in range(number)]
    for aggregator in aggregators if is_release else ():
        if isinstance(aggregator, Mean) and isinstance(aggregator.classifier, nn.Linear):
            initialise_as_released(aggregator.classifier, keep_bias=aggregator.bias_prior is not None)
    return aggregators


def apply_pool(frames: torch.Tensor, weights: torch.Tensor | None, pool: str) -> torch.Tensor:
    """Return frames (B, N, D) times their weights (B, N), scaled so that their mean is the result of a pool.

    Examples
    --------
    >>> frames, weights = torch.tensor([[[2.0], [4.0]]]), torch.tensor([[0.5, 0.25]])
    >>> [float(apply_pool(frames, weights, pool).mean(dim=1)) for pool in ("mean", "sum", "weighted_mean")]
    [1.0, 2.0, 2.6666667461395264]
    """
    if weights is not None:
        frames = frames * weights[:, :, None].to(frames.dtype)
    if pool == "sum":
        return frames * frames.shape[1]
    if pool == "weighted_mean" and weights is not None:
        return frames / weights.mean(dim=1)[:, None, None].to(frames.dtype)
    return frames


def joint_scores(first: torch.Tensor, second: torch.Tensor, how: str) -> torch.Tensor:
    """Return the scores (B, C) of two experts from their logits (B, C), in float32 at least.

    ``how`` is ``logit_sum``, or ``prob_mean``: the logit of the mean of both probabilities.

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
