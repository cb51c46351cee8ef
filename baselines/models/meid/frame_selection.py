"""Complementary frame selection: expert two looks where expert one did not (equation 8 of MEID)."""

import torch

from meidbench.baselines.losses.base import in_range


def complementary(attention: torch.Tensor, beta: float = 0.5, *, renormalise: bool = False) -> torch.Tensor:
    """Return R = 1 / (A + beta), equation 8.

    With A between 0 and 1, R lies between 1 / (1 + beta) and 1 / beta: no frame counts more than (1 + beta) / beta
    times as much as another.

    Parameters
    ----------
    attention : Tensor, (B, N)
        A.
    beta : float
        Above 0; the paper takes it from (0, 1).
    renormalise : bool
        Divide by the mean over frames, so that R is 1 on average.

    Examples
    --------
    >>> complementary(torch.tensor([[0.0, 0.5, 1.0]]))
    tensor([[2.0000, 1.0000, 0.6667]])
    """
    weights = 1 / (attention + checked_beta(beta))
    return weights / weights.mean(dim=1, keepdim=True) if renormalise else weights


def checked_beta(beta: float) -> float:
    """Return beta, or refuse one that is not above 0."""
    return in_range("beta", beta, 1e-6)
