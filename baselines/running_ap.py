"""The average precision of each class in training, from the outputs of the training itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meidbench.checks import whole_number
from meidbench.errors import DivergenceError, MeidbenchError, first_few
from meidbench.evaluation.evaluate import average_precision
from meidbench.extraction.encoders.weights import is_dense


class RunningAveragePrecision:
    """Collects the logits of training videos, and computes the average precision of each class after an epoch.

    VideoLT's code runs the model a second time on each batch, unmixed and in training mode. This doubles the work and
    moves the running means of batch normalisation twice. Here the training's own logits of unmixed videos are used. A
    class without such a video keeps its value of the epoch before, at first 0. To mimic VideoLT's code, add the logits
    of a second pass with ``keep=None``.

    Ties are ranked together (``meidbench.average_precision``), so logits are better than sigmoids, which
    saturate.

    Parameters
    ----------
    num_classes : int
        C.

    Attributes
    ----------
    class_ap : Tensor of float32, (C,), or None
        The result of the last epoch; None before the first.

    Examples
    --------
    >>> running = RunningAveragePrecision(num_classes=2)
    >>> running.add(torch.tensor([[0.3, 0.2], [0.1, 0.9]]), torch.eye(2))
    >>> running.finish_epoch()
    tensor([1., 1.])
    """

    # Batches stay on their device until they hold this number of videos, so that the device is waited for rarely.
    _MOST_PENDING = 4096

    def __init__(self, num_classes: int) -> None:
        self.num_classes = whole_number("num_classes", num_classes, least=1)
        self.class_ap: torch.Tensor | None = None
        self._pending: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._scores: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, targets: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add a batch.

        Parameters
        ----------
        logits : Tensor, (B, C)
        targets : Tensor, (B, C)
            Labels; every value above 0 is a label.
        keep : Tensor of bool, (B,), optional
            The videos that count: ``MixedBatch.untouched``. All where it is left out.
        """
        if logits.ndim != 2 or logits.shape != targets.shape or logits.shape[1] != self.num_classes:
            raise MeidbenchError(
                f"expected logits and targets of shape (B, {self.num_classes}), got {tuple(logits.shape)} and "
                f"{tuple(targets.shape)}"
            )
        if keep is None:
            keep = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        # Copies, because the caller may change its tensors before the epoch ends.
        self._pending.append((logits.detach().to(torch.float32, copy=True), targets > 0, keep.clone()))
        if sum(len(kept) for _, _, kept in self._pending) >= self._MOST_PENDING:
            self._collect()

    def finish_epoch(self, gather: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """Compute the average precision of each class, keep it as ``class_ap``, and drop the videos.

        Parameters
        ----------
        gather : callable, optional
            Under distributed training: takes a CPU tensor (n, C) of this process, of float32 or uint8, and returns
            those of all processes, one after another; n may differ. All processes must call this method together, and
            get the same result.

        Returns
        -------
        Tensor of float32, (C,)

        Raises
        ------
        DivergenceError
            A logit is NaN or infinite.
        MeidbenchError
            No video counted.
        """
        scores, labels = self._concatenate()
        if gather is not None:
            scores, labels = gather(scores), gather(labels)
        if not len(scores):
            raise MeidbenchError(
                "the epoch had no unmixed video: give FrameStack a ratio below 1, or add the logits of a second pass "
                "over the unmixed videos"
            )
        finite = torch.isfinite(scores).all(dim=0)
        if not bool(finite.all()):
            wrong = torch.nonzero(~finite)[:, 0].tolist()
            raise DivergenceError(f"logits are NaN or infinite, of class {first_few(wrong)}")
        before = np.zeros(self.num_classes) if self.class_ap is None else self.class_ap.numpy()
        ap: npt.NDArray[Any] = average_precision(scores.numpy(), labels.numpy().astype(bool))
        self.class_ap = torch.from_numpy(np.where(np.isnan(ap), before, ap).astype(np.float32))
        self._scores, self._labels = [], []
        return self.class_ap

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, also in the middle of an epoch."""
        scores, labels = self._concatenate()
        return {"class_ap": self.class_ap, "scores": scores, "labels": labels}

    def list_problems(self, state: Any) -> list[str]:
        """Name what in a state is not as ``state_dict`` gives it; nothing for a state that can be loaded."""
        if not isinstance(state, dict) or not {"class_ap", "scores", "labels"} <= state.keys():
            return ["running_ap has no class_ap, scores and labels"]
        scores, labels, class_ap = state["scores"], state["labels"], state["class_ap"]
        rows = len(scores) if isinstance(scores, torch.Tensor) and scores.ndim else 0
        wanted = {"scores": (rows, torch.float32), "labels": (rows, torch.uint8)}
        odd = [name for name, (n, kind) in wanted.items() if not _is_table(state[name], (n, self.num_classes), kind)]
        if not odd and bool((labels > 1).any()):
            odd.append("labels")
        if class_ap is not None and not _is_table(class_ap, (self.num_classes,), torch.float32):
            odd.append("class_ap")
        return [f"running_ap.{name} is not that of {self.num_classes} classes" for name in odd]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of ``state_dict``."""
        class_ap, scores, labels = state["class_ap"], state["scores"], state["labels"]
        if scores.shape != labels.shape or scores.shape[1:] != (self.num_classes,):
            raise MeidbenchError(f"this is not the state of a running average precision of {self.num_classes} classes")
        self.class_ap = None if class_ap is None else class_ap.cpu().clone()
        self._pending, self._scores, self._labels = [], [scores.cpu()], [labels.cpu()]

    def _collect(self) -> None:
        if self._pending:
            logits, labels, keep = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
            self._pending = []
            self._scores.append(logits[keep].cpu())
            self._labels.append(labels[keep].to(torch.uint8).cpu())

    def _concatenate(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._collect()
        scores = torch.cat([torch.empty(0, self.num_classes), *self._scores])
        labels = torch.cat([torch.empty(0, self.num_classes, dtype=torch.uint8), *self._labels])
        self._scores, self._labels = [scores], [labels]
        return scores, labels


def _is_table(value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Return whether a value is a dense tensor of a shape and a type, and all its numbers are stored and finite."""
    if not is_dense(value) or value.shape != shape or value.dtype != dtype:
        return False
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return False
    return bool(value.isfinite().all())
