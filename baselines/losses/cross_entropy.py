"""Binary cross-entropy and the losses that change its terms: focal loss, asymmetric loss, logit adjustment."""

import numpy as np
import torch
from torch.nn import functional

from meidbench.baselines.losses.base import Counts, Loss, bias_prior, binary_cross_entropy
from meidbench.checks import in_range, one_of
from meidbench.errors import MeidbenchError

SOFT_FOCUS = ("abs_error", "exp_bce")


class BCE(Loss):
    """Binary cross-entropy of each class on its own: -y log p - (1 - y) log(1 - p).

    ``BCELoss`` of VideoLT's ``ops/losses.py`` (github.com/17Skye17/VideoLT), and equal to it. See ``Loss`` for the
    parameters.

    Examples
    --------
    >>> BCE([3, 1], num_videos=4)(torch.zeros(2, 2), torch.eye(2))
    tensor(0.6931)
    """

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy, (B, C)."""
        return binary_cross_entropy(logits, targets)


class Focal(Loss):
    """Focal loss: alpha |y - p|^gamma bce, with p = sigmoid(z).

    Lin et al., "Focal loss for dense object detection" (2017), equation 5, with gamma 2, alpha 0.25 ``balanced`` and
    reduction ``num_pos``. The defaults here are those of VideoLT's FrameStack script and of MEID.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``.
    gamma : float
        Exponent of the error, at least 0. VideoLT's own default is 0, which is plain cross-entropy.
    alpha : float
        At least 0; in [0, 1] where balanced.
    alpha_mode : str
        ``scalar`` multiplies everything by alpha (VideoLT), ``balanced`` positives by alpha and negatives by
        1 - alpha (Lin et al.).
    soft : str
        The error of a target between 0 and 1; for labels of 0 and 1 the two are equal. ``abs_error`` is
        |y - p|. ``exp_bce`` is 1 - exp(-bce), as VideoLT computes it: at y = p = 0.5 it is 0.5, not 0.

    Examples
    --------
    >>> Focal([3, 1], num_videos=4)(torch.zeros(2, 2), torch.eye(2))
    tensor(0.3466)
    """

    def __init__(
        self,
        train_counts: Counts,
        num_videos: int,
        *,
        gamma: float = 1.0,
        alpha: float = 1.0,
        alpha_mode: str = "scalar",
        soft: str = "abs_error",
        reduction: str = "mean",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.alpha_mode = one_of("alpha_mode", alpha_mode, ("scalar", "balanced"))
        self.gamma = in_range("gamma", gamma, 0)
        self.alpha = in_range("alpha", alpha, 0, 1) if alpha_mode == "balanced" else in_range("alpha", alpha, 0)
        self.soft = one_of("soft", soft, SOFT_FOCUS)

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the weighted cross-entropy, (B, C)."""
        entropy = focal_cross_entropy(logits, targets, self.gamma, self.soft)
        if self.alpha_mode == "balanced":
            return (self.alpha * targets + (1 - self.alpha) * (1 - targets)) * entropy
        return self.alpha * entropy


def focal_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, soft: str = "abs_error"
) -> torch.Tensor:
    """Return |y - p|^gamma bce, element by element; see ``Focal`` for ``gamma`` and ``soft``.

    Examples
    --------
    >>> focal_cross_entropy(torch.zeros(1, 1), torch.ones(1, 1), gamma=2)
    tensor([[0.1733]])
    """
    entropy = binary_cross_entropy(logits, targets)
    if gamma == 0:
        return entropy
    error = -torch.expm1(-entropy) if soft == "exp_bce" else (targets - torch.sigmoid(logits)).abs()
    return focal_factor(error, gamma) * entropy


def focal_factor(error: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return error^gamma with a gradient that stays finite at an error of 0.

    Examples
    --------
    >>> focal_factor(torch.tensor([0.0, 0.5]), 2.0)
    tensor([1.0000e-24, 2.5000e-01])
    """
    # A smaller error makes no difference; without the limit the gradient is infinite where gamma < 1.
    return error.clamp(min=1e-12).pow(gamma)


class ASL(Loss):
    """Asymmetric loss: -y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q), q = max(p - clip, 0).

    Ridnik et al., "Asymmetric loss for multi-label classification" (2021). Its code
    (github.com/Alibaba-MIIL/ASL) sums over the batch too; this loss takes the mean over the batch, so that the
    learning rate need not change with the batch size. A soft label y weighs both terms, by y and 1 - y; the code, made
    for labels of 0 and 1, mixes the exponents.

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; but the reduction is ``sum_classes_mean_batch`` by default.
    gamma_neg, gamma_pos : float
        Exponents for negatives and positives, at least 0. 4 and 0 are the published values for MS-COCO; the code's
        class has 4 and 1.
    clip : float
        Subtracted from the probability of negatives, in [0, 1): negatives with a lower probability add nothing.
    eps : float
        Lower limit of the arguments of the logarithms; between 0 and 1, both excluded.
    detach_focus : bool
        Let no gradient through the factors (1 - p)^gamma_pos and q^gamma_neg, as the published training does.

    Examples
    --------
    >>> ASL([3, 1], num_videos=4)(torch.tensor([[0.0, -3.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """

    def __init__(
        self,
        train_counts: Counts,
        num_videos: int,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        eps: float = 1e-8,
        detach_focus: bool = True,
        reduction: str = "sum_classes_mean_batch",
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.gamma_neg = in_range("gamma_neg", gamma_neg, 0)
        self.gamma_pos = in_range("gamma_pos", gamma_pos, 0)
        self.clip = in_range("clip", clip, 0, 1, open_end=True)
        self.eps = in_range("eps", eps, np.finfo(np.float32).tiny, 1, open_end=True)
        if not isinstance(detach_focus, bool):
            raise MeidbenchError(f"detach_focus must be True or False, got {detach_focus!r}")
        self.detach_focus = detach_focus

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss, (B, C)."""
        lowest = float(np.log(self.eps))
        not_p = torch.sigmoid(-logits)
        log_p = functional.logsigmoid(logits).clamp(min=lowest)
        if self.clip:
            not_q = (not_p + self.clip).clamp(max=1)
            log_not_q = not_q.clamp(min=self.eps).log()
        else:
            not_q, log_not_q = not_p, functional.logsigmoid(-logits).clamp(min=lowest)
        positive = self._factor(not_p, self.gamma_pos) * log_p
        negative = self._factor(1 - not_q, self.gamma_neg) * log_not_q
        return -(targets * positive + (1 - targets) * negative)

    def _factor(self, error: torch.Tensor, gamma: float) -> torch.Tensor:
        return focal_factor(error.detach() if self.detach_focus else error, gamma)


class LogitAdjusted(Loss):
    """Logit-adjusted cross-entropy: bce(z + tau log(pi_c / (1 - pi_c)), y); videos are scored by the plain z.

    Menon et al., "Long-tail learning via logit adjustment" (2021), with sigmoids as the ``Bal-BCE`` of Xu et al.,
    "Learning imbalanced data with vision transformers" (2023; github.com/XuZhengzhuo/LiVT, ``util/loss.py``).

    Parameters
    ----------
    train_counts, num_videos, reduction
        As in ``Loss``; every class needs a training video, and one without it.
    tau : float
        Strength, at least 0.
    prior : str
        pi_c. ``videos`` is n_c / N, the chance that a video has the class. ``labels`` is n_c / sum n, which Xu et al.
        take for samples with one label; for samples with several labels it is too small.

    Examples
    --------
    >>> loss = LogitAdjusted([3, 1], num_videos=4)
    >>> loss(loss.adjust(torch.zeros(1, 2)), torch.ones(1, 2))  # subtracted by adjust, added by the loss
    tensor(0.6931)
    """

    prior_logits: torch.Tensor
    _needs_every_class = True

    def __init__(
        self, train_counts: Counts, num_videos: int, *, tau: float = 1.0, prior: str = "videos", reduction: str = "mean"
    ):
        super().__init__(train_counts, num_videos, reduction=reduction)
        self.tau = in_range("tau", tau, 0)
        self.prior = one_of("prior", prior, ("videos", "labels"))
        total = self.num_videos if prior == "videos" else int(self.train_counts.sum())
        self._register_constant("prior_logits", bias_prior(self._shares(total)).numpy())

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of the logits with the prior, (B, C)."""
        return binary_cross_entropy(logits + self.tau * self.prior_logits.to(logits.dtype), targets)

    def adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """Return z - tau log(pi_c / (1 - pi_c)), (B, C), for a model that was trained without the prior.

        This adds a constant to each class. It can change the order of the classes of a video (top-k accuracy), and
        cannot change average precision, which ranks videos within a class.
        """
        return logits - self.tau * self.prior_logits.to(logits.dtype)
