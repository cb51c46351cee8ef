"""Videos beside those of the training set: extrapolated from two views of one, interpolated between two, calibrated."""

import numpy as np
import torch


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
        How common each class is; see ``meidbench.baselines.models.move.frames.commonness``.
    bias : float
        gamma of the paper: what a label of the commonest class is multiplied by.

    Examples
    --------
    >>> calibrated(torch.tensor([[0.75, 0.75, 0.75]]), torch.tensor([0.0, 0.5, 1.0]), bias=0.5)
    tensor([[1.0000, 0.7500, 0.3750]])
    """
    return (targets * (1 - tau + bias).to(targets.dtype)).clamp(max=1)
