"""MEID's distillation from head to tail classes: the variances of two necks on the logits (equations 5 to 7)."""

import torch
from torch import nn
from torch.nn import functional

from meidbench.baselines.aggregators.base import at_least_float32
from meidbench.checks import one_of, whole_number
from meidbench.errors import MeidbenchError
from meidbench.splits.split import Groups

MASKS = ("input", "output", "none")
NECK_ACTIVATIONS = ("none", "lrelu")
NECK_NORMS = ("none", "l2")
VARIANCES = ("unit", "batch", "all")
DISTANCES = ("rms", "l2", "mse", "abs")
MEDIUM = ("excluded", "with_head", "with_tail")

_SLOPE = 0.2


class Neck(nn.Module):
    """M(Y) = W Y_group + b, equations 5 and 6; in the authors' compiled code LeakyReLU and rows of length 1 follow.

    |group| d + d parameters (C d + d where the input is not masked). W starts as Xavier's uniform, b at 0.

    Parameters
    ----------
    classes : Tensor of int64
        The group.
    num_classes : int
        C.
    out : int
        d.
    mask : str
        ``input`` takes only the group's logits (the same as setting the others to 0); ``output`` takes all logits and
        keeps the group's units, so that d must be C; ``none`` takes and keeps all.
    activation : str
        ``none``, or ``lrelu`` with a slope of 0.2.
    norm : str
        ``none``, or ``l2``: each video's units have length 1.

    Examples
    --------
    >>> Neck(torch.tensor([0, 2]), num_classes=4, out=3)(torch.rand(5, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        classes: torch.Tensor,
        num_classes: int,
        out: int,
        *,
        mask: str = "input",
        activation: str = "none",
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.mask = one_of("neck_mask", mask, MASKS)
        self.activation = one_of("neck_act", activation, NECK_ACTIVATIONS)
        self.norm = one_of("neck_norm", norm, NECK_NORMS)
        if mask == "output" and out != num_classes:
            raise MeidbenchError(f"neck_mask=output needs a unit for each of {num_classes} classes, got neck_out={out}")
        # Not persistent: it follows from the split.
        self.register_buffer("classes", classes, persistent=False)
        self.linear = nn.Linear(len(classes) if mask == "input" else num_classes, out)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute the units (B, d) of logits (B, C)."""
        assert isinstance(self.classes, torch.Tensor)
        units: torch.Tensor = self.linear(logits[:, self.classes] if self.mask == "input" else logits)
        if self.activation == "lrelu":
            units = functional.leaky_relu(units, _SLOPE)
        if self.norm == "l2":
            units = functional.normalize(units, dim=1)
        return units[:, self.classes] if self.mask == "output" else units


class VarianceDistillation(nn.Module):
    """L_d = || Var(M_head(Y)) - Var(M_tail(Y)) ||_2, equation 7, with a neck for either group.

    The paper does not define the axis of the variance, or how the norm depends on the batch size. Nothing keeps the
    necks from shrinking to 0, where L_d is 0 for all logits: ``log_values`` returns their norms.

    Parameters
    ----------
    groups : Groups
    num_classes : int
        C.
    out : int or None
        Units d of a neck; None is C.
    mask, activation, norm
        As in ``Neck``.
    variance : str
        ``unit``: over the units of a video, (B,); ``batch``: over the videos, (d,); ``all``: over both. The divisor is
        the number of values, not one less.
    distance : str
        ``rms``: the 2-norm divided by the root of the number of variances, so that it does not grow with the batch;
        ``l2``: the 2-norm; ``mse``: the mean square; ``abs``: the mean absolute difference.
    detach_head : bool
        Let no gradient through the head's side; its neck then keeps its initial weights.
    medium : str
        Whether medium classes are ``excluded``, ``with_head`` or ``with_tail``.

    Raises
    ------
    MeidbenchError
        A group has no class, or switches contradict each other.

    Examples
    --------
    >>> import numpy as np
    >>> groups = Groups(head=np.array([0]), medium=np.array([1]), tail=np.array([2, 3]))
    >>> VarianceDistillation(groups, num_classes=4)(torch.rand(5, 4)).shape
    torch.Size([])
    """

    def __init__(
        self,
        groups: Groups,
        num_classes: int,
        *,
        out: int | None = None,
        mask: str = "input",
        activation: str = "none",
        norm: str = "none",
        variance: str = "unit",
        distance: str = "rms",
        detach_head: bool = False,
        medium: str = "excluded",
    ) -> None:
        super().__init__()
        units = num_classes if out is None else whole_number("neck_out", out, least=1)
        self.variance = one_of("distill_var", variance, VARIANCES)
        self.distance = one_of("distill_norm", distance, DISTANCES)
        self.detach_head = detach_head
        if mask == "output" and variance == "batch":
            raise MeidbenchError(
                "distill_var=batch compares unit with unit, but neck_mask=output leaves different numbers of units; "
                "change one of the two"
            )
        one_of("distill_medium", medium, MEDIUM)
        members = {"head": [groups.head], "tail": [groups.tail]}
        if medium != "excluded":
            members[medium.removeprefix("with_")].append(groups.medium)
        necks = {}
        for name, parts in members.items():
            classes = torch.cat([torch.as_tensor(part, dtype=torch.int64, device="cpu") for part in parts])
            if not len(classes):
                raise MeidbenchError(
                    f"distillation from head to tail needs classes in both, and the split has none in {name}; set "
                    "model.distill_weight=0, or distill_medium to count the medium classes there"
                )
            sorted_classes = classes.sort().values
            necks[name] = Neck(sorted_classes, num_classes, units, mask=mask, activation=activation, norm=norm)
        self.necks = nn.ModuleDict(necks)
        self.necks["head"].requires_grad_(not detach_head)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute L_d of logits (B, C), in float32 at least."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits)
            head, tail = (self._variances(self.necks[name](logits)) for name in ("head", "tail"))
            return self._distance((head.detach() if self.detach_head else head) - tail)

    def log_values(self) -> dict[str, float]:
        """Return the norms of the necks' weights, by group."""
        return {
            f"neck_norm_{name}": float(neck.linear.weight.detach().norm())
            for name, neck in self.necks.items()
            if isinstance(neck, Neck)
        }

    def _variances(self, units: torch.Tensor) -> torch.Tensor:
        if self.variance == "all":
            return units.var(correction=0)
        return units.var(dim=1 if self.variance == "unit" else 0, correction=0)

    def _distance(self, difference: torch.Tensor) -> torch.Tensor:
        if self.distance == "mse":
            return difference.square().mean()
        if self.distance == "abs":
            return difference.abs().mean()
        # Where the difference is 0, the gradient of this norm is 0; that of a square root would be infinite.
        norm: torch.Tensor = torch.linalg.vector_norm(difference)
        return norm / difference.numel() ** 0.5 if self.distance == "rms" else norm
