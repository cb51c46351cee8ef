"""MEID's distillation from head to tail classes: the variances of two necks on the logits (equations 5 to 7)."""

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import at_least_float32
from meidbench.baselines.models.meid_parts import ExpertSwitches
from meidbench.checks import whole_number
from meidbench.errors import MeidbenchError
from meidbench.splits.groups import Groups


class Neck(nn.Module):
    """M(Y) = W Y_group + b, equations 5 and 6; in the authors' compiled code LeakyReLU and rows of length 1 follow.

    |group| d + d parameters (C d + d where the input is not masked). W starts as Xavier's uniform, b at 0.

    Parameters
    ----------
    classes, num_classes : Tensor of int64, and int
        The group, and C.
    switches : ExpertSwitches
        Those that begin with ``neck``.

    Examples
    --------
    >>> Neck(torch.tensor([0, 2]), 4, ExpertSwitches(neck_out=3))(torch.rand(5, 4)).shape
    torch.Size([5, 3])
    """

    classes: torch.Tensor

    def __init__(self, classes: torch.Tensor, num_classes: int, switches: ExpertSwitches) -> None:
        super().__init__()
        self.switches = switches
        out = num_classes if switches.neck_out is None else whole_number("neck_out", switches.neck_out, least=1)
        if switches.neck_mask == "output" and out != num_classes:
            raise MeidbenchError(f"neck_mask=output needs a unit for each of {num_classes} classes, got neck_out={out}")
        # Not persistent: it follows from the split.
        self.register_buffer("classes", classes, persistent=False)
        self.linear = nn.Linear(len(classes) if switches.neck_mask == "input" else num_classes, out)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute the units (B, d) of logits (B, C)."""
        mask = self.switches.neck_mask
        units: torch.Tensor = self.linear(logits[:, self.classes] if mask == "input" else logits)
        if self.switches.neck_act == "lrelu":
            units = functional.leaky_relu(units, 0.2)
        if self.switches.neck_norm == "l2":
            units = functional.normalize(units, dim=1)
        return units[:, self.classes] if mask == "output" else units


class VarianceDistillation(nn.Module):
    """L_d = || Var(M_head(Y)) - Var(M_tail(Y)) ||_2, equation 7, with a neck for either group.

    The paper does not define the axis of the variance, or how the norm depends on the batch size. By default a unit's
    variance is that over the videos of a batch; it does not depend on the mean of the logits. A variance over the units
    of a video does: logits of rare classes are far below 0, and necks with different weights make units that differ.
    Nothing keeps the necks from shrinking to 0, where L_d is 0 for all logits: ``log_values`` returns their norms.

    Parameters
    ----------
    groups : Groups
    num_classes : int
        C.
    switches : ExpertSwitches
        Those that begin with ``distill`` or ``neck``.

    Raises
    ------
    MeidbenchError
        A group has no class, or switches contradict each other.

    Examples
    --------
    >>> import numpy as np
    >>> groups = Groups(head=np.array([0]), medium=np.array([1]), tail=np.array([2, 3]))
    >>> VarianceDistillation(groups, 4, ExpertSwitches())(torch.rand(5, 4)).shape
    torch.Size([])
    """

    def __init__(self, groups: Groups, num_classes: int, switches: ExpertSwitches) -> None:
        super().__init__()
        self.switches = switches
        if switches.neck_mask == "output" and switches.distill_var == "batch":
            raise MeidbenchError(
                "distill_var=batch compares unit with unit, but neck_mask=output leaves different numbers of units; "
                "set distill_var=unit or distill_var=all, or another neck_mask"
            )
        members = {"head": [groups.head], "tail": [groups.tail]}
        if switches.distill_medium != "excluded":
            members[switches.distill_medium.removeprefix("with_")].append(groups.medium)
        self.necks = nn.ModuleDict()
        for name, parts in members.items():
            classes = torch.cat([torch.as_tensor(part, dtype=torch.int64, device="cpu") for part in parts])
            if not len(classes):
                raise MeidbenchError(
                    f"distillation from head to tail needs classes in both, and the split has none in {name}; set "
                    "model.distill_weight=0, or distill_medium to count the medium classes there"
                )
            self.necks[name] = Neck(classes.sort().values, num_classes, switches)
        self.necks["head"].requires_grad_(not switches.distill_detach_head)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute L_d of logits (B, C), in float32 at least."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits)
            head, tail = (self._variances(self.necks[name](logits)) for name in ("head", "tail"))
            return self._distance((head.detach() if self.switches.distill_detach_head else head) - tail)

    def log_values(self) -> dict[str, float]:
        """Return the norms of the necks' weights, by group."""
        return {
            f"neck_norm_{name}": float(neck.linear.weight.detach().norm())
            for name, neck in self.necks.items()
            if isinstance(neck, Neck)
        }

    def _variances(self, units: torch.Tensor) -> torch.Tensor:
        if self.switches.distill_var == "all":
            return units.var(correction=0)
        return units.var(dim=1 if self.switches.distill_var == "unit" else 0, correction=0)

    def _distance(self, difference: torch.Tensor) -> torch.Tensor:
        if self.switches.distill_norm == "mse":
            return difference.square().mean()
        if self.switches.distill_norm == "abs":
            return difference.abs().mean()
        # Where the difference is 0, the gradient of this norm is 0; that of a square root would be infinite.
        norm: torch.Tensor = torch.linalg.vector_norm(difference)
        return norm / difference.numel() ** 0.5 if self.switches.distill_norm == "rms" else norm
