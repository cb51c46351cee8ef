"""The processes that train together: who this one is, and what they tell one another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from meidbench.errors import MeidbenchError


@dataclass(frozen=True)
class Team:
    """One process among those that train together.

    Attributes
    ----------
    rank, size : int
        Which process, from 0, of how many.
    device : torch.device
        Where it computes.
    group : object
        For tensors of the CPU, whatever the device; None where there is one process.
    """

    rank: int
    size: int
    device: torch.device
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the (n, ...) CPU tensors of all processes, one after another; n may differ.

        Examples
        --------
        >>> Team(0, 1, torch.device("cpu")).gather(torch.tensor([3, 1]))
        tensor([3, 1])
        """
        if self.size == 1:
            return tensor
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(counts, torch.tensor([len(tensor)]), group=self.group)
        most = max(int(count) for count in counts)
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded, group=self.group)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def agreed(self, value: bool) -> bool:
        """Return what the leading process says."""
        if self.size == 1:
            return value
        said = torch.tensor([int(value)])
        distributed.broadcast(said, src=0, group=self.group)
        return bool(said.item())

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier(group=self.group)

    def shared(self, model: nn.Module) -> nn.Module:
        """Return the model so that its gradients are those of all processes together."""
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call, unused-ignore]
            return nn.parallel.DistributedDataParallel(model, device_ids=[self.device.index])
        return nn.parallel.DistributedDataParallel(model)


@contextmanager
def team(device: str = "auto") -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, or be alone.

    Parameters
    ----------
    device : str
        ``auto`` takes a CUDA device where there is one, of several processes each its own.

    Raises
    ------
    MeidbenchError
        There is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield Team(0, 1, chosen)
        return
    began = not distributed.is_initialized()
    if began:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        group = distributed.new_group(backend="gloo")
        yield Team(distributed.get_rank(), distributed.get_world_size(), chosen, group)
    finally:
        if began:
            distributed.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise MeidbenchError(f"unknown device {name!r}; known are auto, cpu, cuda and cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MeidbenchError(f"torch finds no CUDA device for {name!r}; use --device cpu")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise MeidbenchError(f"there is no cuda:{index}; torch finds {torch.cuda.device_count()} CUDA device(s)")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device
