"""Memory of a training step: what is held between steps, and how far it rises within one, gradients included."""

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
    """Bytes of one variant: held between steps (network, optimizer, pruning), and the rise in a step from there."""

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
    """Memory of a `step` that is not the first: by CUDA's own account, on a CPU by every allocation of the step.

    `kept` is what pruning holds beside model and optimizer.
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
    """The highest sum of all that torch has allocated, less all that it has freed, since the step began."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages are none of the user's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results = profiled.profiler.kineto_results
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    sums = itertools.accumulate(int(size) for _, size in events)
    return max(sums, default=0)
