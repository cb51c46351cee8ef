"""A linear probe: logistic regression, class by class, on the mean frame of a video; scikit-learn fits it."""

import warnings
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import mean_over_frames
from meidbench.baselines.models.base import Model, ModelInputs, Outputs
from meidbench.checks import in_range, one_of
from meidbench.errors import FeatureError, MeidbenchError, first_few

Rows = npt.NDArray[np.float32]
# scikit-learn's own tolerance, 1e-4, is above the whole share of a rare class's positives in the gradient of the mean
# loss: 10 of VideoLT's 179,334 videos have 6e-5.
_TOLERANCE, _MOST_ITERATIONS = 1e-6, 1000


class LinearProbe(Model):
    """One logistic regression per class on the standardised mean of a video's frames: a floor for all other methods.

    z_c = w_c . (m - mu) / s + b_c, with m the mean of a video's frames, mu and s the mean and the standard deviation of
    m over the training videos. scikit-learn's ``LogisticRegression`` (L-BFGS, L2 penalty, the bias without a penalty)
    fits every class by itself. A class without positives or without negatives in training gets the same score for every
    video: b = log(0.5 / (N + 0.5)) for N training videos, or its negative.

    (D + 1) C fitted parameters, and 2 D for the standardisation.

    Parameters
    ----------
    inputs : ModelInputs
    c_grid : tuple of float
        The values of C, scikit-learn's inverse strength of the penalty; the run takes the one with the best mAP on val,
        the same for all classes. The fitting of one value takes the place of an epoch.
    class_weight : str
        ``none``, or ``balanced``: N / (2 n) for the n positives of a class, and likewise for its negatives.
    """

    takes_aggregator = False
    is_fitted = True
    mean: torch.Tensor
    scale: torch.Tensor
    c: torch.Tensor

    def __init__(
        self,
        inputs: ModelInputs,
        *,
        c_grid: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        class_weight: str = "none",
    ) -> None:
        super().__init__(inputs)
        self.c_grid = tuple(in_range("model.c_grid", c, 1e-12, 1e12) for c in c_grid)
        if not c_grid or list(c_grid) != sorted(set(c_grid)):
            raise MeidbenchError(f"model.c_grid must be rising numbers, at least one, got {list(c_grid)}")
        self.class_weight = one_of("model.class_weight", class_weight, ("none", "balanced"))
        self.classifier = nn.Linear(inputs.dim, inputs.num_classes)
        self.register_buffer("mean", torch.zeros(inputs.dim))
        self.register_buffer("scale", torch.ones(inputs.dim))
        self.register_buffer("c", torch.zeros((), dtype=torch.float64))  # that of the weights
        self._rows: Rows = np.empty((0, inputs.dim), dtype=np.float32)

    def forward(
        self, features: torch.Tensor, motion: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Outputs:
        """Compute logits; see ``Model``."""
        return Outputs(self.classifier((mean_over_frames(features.float(), None) - self.mean) / self.scale))

    def log_values(self) -> dict[str, float]:
        """Return the value of C."""
        return {"C": float(self.c)}

    def describe_weights(self) -> str:
        """Say that the C of the weights is at an end of the grid."""
        end = {self.c_grid[0]: "smallest", self.c_grid[-1]: "largest"}.get(float(self.c), "")
        if not end or len(self.c_grid) == 1:
            return ""
        better = "smaller" if end == "smallest" else "larger"
        return f"the best C, {float(self.c):g}, is the {end} of model.c_grid; a {better} one may be better"

    def standardise(self, batches: Iterable[torch.Tensor], video_ids: Sequence[str]) -> None:
        """Take the mean frames of all training videos, from their frames (B, T, D) in order, and standardise them.

        They are kept for every value of C, so a second call does nothing. Videos whose numbers are not finite, or too
        large for float32, are refused.
        """
        from sklearn.preprocessing import StandardScaler

        if len(self._rows):
            return
        scaler, done = StandardScaler(), 0
        rows = np.empty((len(video_ids), len(self.mean)), dtype=np.float32)
        for frames in batches:
            part = rows[done : (done := done + len(frames))]
            part[:] = mean_over_frames(frames.float(), None).cpu().numpy()
            if np.isfinite(part).all():  # others are refused below, all of them at once
                scaler.partial_fit(part)
        _refuse_infinite(rows, video_ids)
        self.mean.copy_(torch.from_numpy(scaler.mean_))
        self.scale.copy_(torch.from_numpy(scaler.scale_))
        mean, scale = self.mean.cpu().numpy(), self.scale.cpu().numpy()
        with np.errstate(over="ignore"):
            rows -= mean
        rows /= scale
        _refuse_infinite(rows, video_ids)
        self._rows = rows

    def fit(self, labels: npt.NDArray[np.bool_], value: int, first: int = 0) -> Generator[float, None, None]:
        """Fit the classes, from ``first`` on, with the C at place ``value`` of the grid; yield the mean loss of each.

        ``labels`` (N, C) are those of the videos given to ``standardise``. The threads are those of torch. One thread
        fits a class, so their number changes no bit.
        """
        from threadpoolctl import threadpool_limits

        c = self.c_grid[value]
        self.c.fill_(c)
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            with threadpool_limits(1), warnings.catch_warnings():
                # Of scikit-learn, where the fit ends at the precision of float32 or at the limit of iterations.
                warnings.filterwarnings("ignore", message="lbfgs failed to converge")
                fits = pool.map(lambda of: self._fit_class(labels[:, of], c), range(first, labels.shape[1]))
                for of, (weights, bias, loss) in enumerate(fits, first):
                    with torch.no_grad():
                        self.classifier.weight[of] = torch.from_numpy(weights)
                        self.classifier.bias[of] = bias
                    yield loss
        finally:
            pool.shutdown(cancel_futures=True)

    def _fit_class(self, labels: npt.NDArray[np.bool_], c: float) -> tuple[Rows, float, float]:
        """Return the weights (D,), the bias and the mean loss of one class."""
        from sklearn.linear_model import LogisticRegression

        rows, positives, videos = self._rows, int(labels.sum()), len(labels)
        if 0 < positives < videos:
            weight = None if self.class_weight == "none" else self.class_weight
            fitted = LogisticRegression(C=c, class_weight=weight, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
            fitted.fit(rows, labels)
            weights, bias = fitted.coef_[0].astype(np.float32), float(fitted.intercept_[0])
        else:
            weights = np.zeros(rows.shape[1], dtype=np.float32)
            bias = float(np.log((positives + 0.5) / (videos - positives + 0.5)))
        logits = torch.from_numpy(rows @ weights + np.float32(bias))
        targets = torch.from_numpy(labels).float()
        return weights, bias, float(functional.binary_cross_entropy_with_logits(logits, targets))


def _refuse_infinite(rows: Rows, video_ids: Sequence[str]) -> None:
    """Refuse mean frames (N, D) that are not finite, which scikit-learn cannot fit."""
    wrong = [video_ids[row] for row in np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()]
    if wrong:
        raise FeatureError(
            f"the mean frames of {len(wrong):,} training video(s) are NaN, infinite, or too large for float32: "
            f"{first_few(wrong)}; check their features with 'meidbench verify-features'"
        )
