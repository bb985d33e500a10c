"""How many of torch's threads a small network is worth: a thread that waits for its share costs more than it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_STEP = 1 << 22
"""Prunable weights times samples of a step, up to which one thread on a CPU is at least as fast as several."""


def threads_for(weights: int, batch_size: int, device: torch.device) -> int:
    """Threads for steps of so many weights and samples."""
    small = device.type == "cpu" and weights * batch_size <= SMALL_STEP
    return 1 if small else torch.get_num_threads()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
