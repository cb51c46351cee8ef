"""Memory and time of a training step of MEID, for both presets and stages, with whole batches or micro-batches.

    python tests/benchmarks/meid.py --count                    # memory alone, in seconds
    python tests/benchmarks/meid.py --presets paper
    python tests/benchmarks/meid.py --presets paper release --device cuda --steps 5
    python tests/benchmarks/meid.py --presets release --recompute --parts 4

A step is that of training: forward, classification loss and distillation, backward, Adam. With ``--parts``, the
gradients of several micro-batches are summed before the step of Adam. Memory on a CUDA device is the peak of its
allocator. On a CPU, and for an absent device, it is counted: parameters, gradients and the two moments of Adam, the
batch, and every tensor that autograd keeps for the backward pass, each storage once. Temporary memory of operators is
not counted.
"""

import argparse
import time
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from meidbench.baselines.configuration import make_loss, make_model, make_model_inputs
from meidbench.baselines.losses.base import binary_cross_entropy
from meidbench.baselines.models import Model
from meidbench.baselines.recipes import resolve
from meidbench.features.simulation import simulate_split
from meidbench.splits.split import Split

GIB = 2**30
METHODS = {
    ("paper", 1): "meid_one",
    ("paper", 2): "meid",
    ("release", 1): "meid_one-release",
    ("release", 2): "meid-release",
}


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, except parameters and the batch itself."""

    def __init__(self, model: Model, batch: list[torch.Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *batch)}
        self._held: list[torch.UntypedStorage] = []
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            # Keeps the storage alive, so that no other gets its address.
            self._held.append(storage)
            self.bytes += storage.nbytes()
        return tensor

    @staticmethod
    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def measure(method: str, split: Split, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the memory and time of a step of a method."""
    device = torch.device(arguments.device)
    settings = [f"frames.train={arguments.frames}", f"frames.test={arguments.frames}"]
    settings += [f"model.recompute={str(arguments.recompute).lower()}"]
    config = resolve(method, split, aggregator=arguments.aggregator, settings=settings)
    torch.manual_seed(0)
    model, loss = make_model(config, make_model_inputs(config, split, arguments.dim)).train(), make_loss(config, split)
    if not arguments.count:
        model, loss = model.to(device), loss.to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-4)
    size = arguments.batch // arguments.parts
    shape = (size, arguments.frames, arguments.dim)
    features = torch.rand(shape, device=device)
    motion = torch.rand(shape, device=device) - 0.5 if config.motion.when != "none" else None
    targets = (torch.rand(size, split.num_classes, device=device) < 0.05).float()
    kept = Kept(model, [features] if motion is None else [features, motion])
    seconds = []
    for step in range(1 if arguments.count else arguments.steps + 1):
        wait(device)
        began = time.perf_counter()
        for part in range(arguments.parts):
            if step == 0 and part == 0:
                with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
                    value = part_loss(model, loss, features, motion, targets, arguments)
            else:
                value = part_loss(model, loss, features, motion, targets, arguments)
            (value / arguments.parts).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        wait(device)
        seconds.append(time.perf_counter() - began)
    weights = sum(parameter.numel() for parameter in trained)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - weights
    batch = features.numel() * 4 * (1 if motion is None else 2)
    counted = 4 * (weights * 4 + frozen) + batch + kept.bytes
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else float("nan")
    return {
        "trained": weights / 1e6,
        "frozen": frozen / 1e6,
        "kept": kept.bytes / GIB,
        "counted": counted / GIB,
        "peak": peak / GIB,
        "seconds": float("nan") if arguments.count else min(seconds[1:] or seconds),
    }


def part_loss(
    model: Model,
    loss: torch.nn.Module,
    features: torch.Tensor,
    motion: torch.Tensor | None,
    targets: torch.Tensor,
    arguments: argparse.Namespace,
) -> torch.Tensor:
    """Return the loss of a micro-batch."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.precision]
    with torch.autocast(features.device.type, dtype=dtype, enabled=dtype is not None):
        outputs = model(features, motion, targets)
    logits = outputs.logits.float()
    # The losses of the methods read values, which counting does not have; the difference is a few numbers per video.
    value = binary_cross_entropy(logits, targets).mean() if arguments.count else loss(logits, targets, None)
    return value if outputs.penalty is None else value + outputs.penalty


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["paper", "release"], choices=["paper", "release"])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2], choices=[1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--parts", type=int, default=1, help="Micro-batches per batch.")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=157)
    parser.add_argument("--aggregator", default="mean")
    parser.add_argument("--recompute", action="store_true", help="Compute the wide layer again instead of keeping it.")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--count", action="store_true", help="Count memory only, without computing anything.")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.batch % arguments.parts:
        parser.error("--parts must divide --batch")
    split = simulate_split((2213, 469, 1012), num_classes=arguments.classes)
    print(
        f"batch {arguments.batch} in {arguments.parts} part(s), {arguments.frames} frames, {arguments.dim}-d, "
        f"{arguments.aggregator}, {arguments.precision}, {'recomputed' if arguments.recompute else 'kept'}, "
        f"{arguments.device}"
    )
    print("preset   stage  trained M  frozen M  kept GiB  counted GiB  peak GiB  s per step")
    for preset in arguments.presets:
        for stage in arguments.stages:
            if arguments.device != "cpu":
                torch.cuda.reset_peak_memory_stats(arguments.device)
            with ExitStack() as held:
                if arguments.count:
                    held.enter_context(FakeTensorMode())
                    # This function reads values.
                    held.enter_context(patch("torch.nn.init.trunc_normal_", lambda tensor, **options: tensor))
                got = measure(METHODS[preset, stage], split, arguments)
            print(
                f"{preset:8} {stage:5}  {got['trained']:9.1f} {got['frozen']:9.1f} {got['kept']:9.2f} "
                f"{got['counted']:12.2f} {got['peak']:9.2f} {got['seconds']:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
