"""Memory of a training step: bytes held between steps, and the rise within a step, including gradients."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class StepMemory:
    """Memory of one variant.

    Attributes:
        variant: Its name.
        held_bytes: Bytes held between steps: network, optimizer and pruning.
        rise_bytes: Largest additional bytes within a step.
    """

    variant: str
    held_bytes: int
    rise_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure_memory(
    variant: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    kept: Iterable[Tensor],
    step: Callable[[], object],
) -> StepMemory:
    """Measure the memory of a step, which must not be the first.

    On CUDA, torch's allocator counts; on a CPU, torch's profiler records every allocation of the step.

    Args:
        variant: Name of the variant.
        model: The model.
        optimizer: Its optimizer.
        kept: Tensors that pruning holds in addition.
        step: Takes one training step.
    """
    optimizer.zero_grad()
    device = next(model.parameters()).device
    rise = _rise_on_cuda(device, step) if device.type == "cuda" else _rise_on_cpu(step)
    of_optimizer = [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]
    tensors = [*model.parameters(), *model.buffers(), *of_optimizer, *kept]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return StepMemory(variant, sum(held.values()), rise)


def _rise_on_cuda(device: torch.device, step: Callable[[], object]) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _rise_on_cpu(step: Callable[[], object]) -> int:
    """Largest sum of bytes allocated minus bytes freed since the start of the step."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's own messages
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results = profiled.profiler.kineto_results
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    sums = itertools.accumulate(int(size) for _, size in events)
    return max(sums, default=0)
