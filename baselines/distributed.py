"""The processes that train together, and the messages between them."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from meidbench.errors import MeidbenchError, RequestError

# The first process may read hundreds of gigabytes while the others wait; torch's own limit is half an hour.
_LONGEST_WAIT = timedelta(days=2)
Result = TypeVar("Result")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, seen from one of them."""

    rank: int  # the number of this process, from 0
    size: int
    device: torch.device  # of this process
    cpu_group: Any = None  # torch's group for CPU tensors, for every device; None where there is one process

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def fork_random(self) -> AbstractContextManager[None]:
        """Return the context after which torch's global generators are as before."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the (n, ...) CPU tensors of all processes, one after another; n may differ."""
        if self.size == 1:
            return tensor
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(counts, torch.tensor([len(tensor)]), group=self.cpu_group)
        most = max(int(count) for count in counts)
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(gathered, padded, group=self.cpu_group)
        return torch.cat([rows[: int(count)] for rows, count in zip(gathered, counts, strict=True)])

    def broadcast(self, value: bool) -> bool:
        """Return the value of the first process."""
        if self.size == 1:
            return value
        message = torch.tensor([int(value)])
        distributed.broadcast(message, src=0, group=self.cpu_group)
        return bool(message.item())

    def ask_first(self, work: Callable[[], Result], otherwise: Result) -> Result:
        """Return the result of ``work`` in the first process, and ``otherwise`` in the others.

        A refusal of the first process is raised in every process, so that no process waits for the others in vain.
        """
        result, refusal = otherwise, None
        if self.is_first:
            try:
                result = work()
            except MeidbenchError as error:
                refusal = error
        if not self.broadcast(refusal is None):
            raise refusal or MeidbenchError("the first process refused the run; its message says why")
        return result

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier(group=self.cpu_group)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model so that its gradients are those of all processes together."""
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call, unused-ignore]
            return nn.parallel.DistributedDataParallel(model, device_ids=[self.device.index])
        return nn.parallel.DistributedDataParallel(model)


@contextmanager
def join_processes(device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started; without torchrun this process is the only one.

    The device ``auto`` is a CUDA device where there is one, and the CPU elsewhere. Each process has a CUDA device of
    its own, unless one is named by its number. A device that torch does not have is refused.
    """
    chosen = _choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup(0, 1, chosen)
        return
    is_new = not distributed.is_initialized()
    if is_new:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        group = distributed.new_group(timeout=_LONGEST_WAIT, backend="gloo")
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size(), chosen, group)
    finally:
        if is_new:
            distributed.destroy_process_group()


def _choose_device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise RequestError(f"unknown device {name!r}; known are auto, cpu, cuda and cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RequestError(f'torch finds no CUDA device for {name!r}; use device="cpu"')
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise RequestError(f"there is no cuda:{index}; torch finds {torch.cuda.device_count()} CUDA device(s)")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device
