"""The average precision of each class in training, gathered in passing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meidbench.checks import whole_number
from meidbench.errors import MeidbenchError, first_few
from meidbench.evaluation.evaluate import average_precision

Gather = Callable[[torch.Tensor], torch.Tensor]


class RunningAveragePrecision:
    """Gathers what the model says of training videos, and tells each class's average precision after an epoch.

    VideoLT's code asks the model a second time about each batch, unmixed and in training mode, which doubles the work
    and moves the running means of batch normalisation twice. Here the answers for videos that were left unmixed are
    used, which are there anyway; a class not among them keeps its value of the epoch before, or 0 where it has none. To
    mimic the code, add the answers of a second pass with ``keep=None``.

    Ties are ranked together (``meidbench.evaluation.average_precision``), so logits are better than sigmoids, which
    saturate.

    Parameters
    ----------
    num_classes : int
        C.

    Attributes
    ----------
    class_ap : Tensor of float32, (C,), or None
        The result of the last epoch; None before there is one.

    Examples
    --------
    >>> running = RunningAveragePrecision(num_classes=2)
    >>> running.add(torch.tensor([[0.3, 0.2], [0.1, 0.9]]), torch.eye(2))
    >>> running.finish_epoch()
    tensor([1., 1.])
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = whole_number("num_classes", num_classes, least=1)
        self.class_ap: torch.Tensor | None = None
        self._pending: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._scores: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    # Batches wait on their device until they are so many videos: fewer times is the device waited for.
    _WAITING = 4096

    def add(self, logits: torch.Tensor, targets: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Take in a batch.

        Parameters
        ----------
        logits : Tensor, (B, C)
        targets : Tensor, (B, C)
            Labels; what is above 0 is one.
        keep : Tensor of bool, (B,), optional
            Which videos count: ``MixedBatch.untouched``. All where left out.
        """
        if logits.ndim != 2 or logits.shape != targets.shape or logits.shape[1] != self.num_classes:
            raise MeidbenchError(
                f"expected logits and targets of shape (B, {self.num_classes}), got {tuple(logits.shape)} and "
                f"{tuple(targets.shape)}"
            )
        if keep is None:
            keep = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        # Copies: what is passed in may be changed before the epoch ends.
        self._pending.append((logits.detach().to(torch.float32, copy=True), targets > 0, keep.clone()))
        if sum(len(kept) for _, _, kept in self._pending) >= self._WAITING:
            self._collect()

    def finish_epoch(self, gather: Gather | None = None) -> torch.Tensor:
        """Compute the average precision of each class, keep it as ``class_ap``, and begin anew.

        Parameters
        ----------
        gather : callable, optional
            Under distributed training: takes a CPU tensor of this process, (n, C) of float32 or of uint8 with n
            different on each, and returns those of all processes, one after another. Every process must finish
            together; all then have the same result.

        Returns
        -------
        Tensor of float32, (C,)

        Raises
        ------
        MeidbenchError
            A logit is NaN or infinite, or no video counted.
        """
        scores, labels = self._collected()
        if gather is not None:
            scores, labels = gather(scores), gather(labels)
        if not len(scores):
            raise MeidbenchError(
                "no unmixed video was seen in the epoch: give FrameStack a ratio below 1, or add the answers of "
                "a second pass over the unmixed videos"
            )
        finite = torch.isfinite(scores).all(dim=0)
        if not bool(finite.all()):
            raise MeidbenchError(
                f"logits are NaN or infinite, of class {first_few(torch.nonzero(~finite)[:, 0].tolist())}"
            )
        before = np.zeros(self.num_classes) if self.class_ap is None else self.class_ap.numpy()
        ap: npt.NDArray[Any] = average_precision(scores.numpy(), labels.numpy().astype(bool))
        self.class_ap = torch.from_numpy(np.where(np.isnan(ap), before, ap).astype(np.float32))
        self._scores, self._labels = [], []
        return self.class_ap

    def state_dict(self) -> dict[str, torch.Tensor | None]:
        """Return all there is to resume from, in the middle of an epoch too."""
        scores, labels = self._collected()
        return {"class_ap": self.class_ap, "scores": scores, "labels": labels}

    def load_state_dict(self, state: dict[str, torch.Tensor | None]) -> None:
        """Go on from what ``state_dict`` gave."""
        class_ap, scores, labels = state["class_ap"], state["scores"], state["labels"]
        if scores is None or labels is None or scores.shape != labels.shape or scores.shape[1:] != (self.num_classes,):
            raise MeidbenchError(f"this is not the state of a running average precision of {self.num_classes} classes")
        self.class_ap = None if class_ap is None else class_ap.cpu().clone()
        self._pending, self._scores, self._labels = [], [scores.cpu()], [labels.cpu()]

    def _collect(self) -> None:
        if self._pending:
            logits, labels, keep = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
            self._pending = []
            self._scores.append(logits[keep].cpu())
            self._labels.append(labels[keep].to(torch.uint8).cpu())

    def _collected(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._collect()
        scores = torch.cat([torch.empty(0, self.num_classes), *self._scores])
        labels = torch.cat([torch.empty(0, self.num_classes, dtype=torch.uint8), *self._labels])
        self._scores, self._labels = [scores], [labels]
        return scores, labels
