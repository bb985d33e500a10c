"""Chooses the number of threads: in a small network, distributing work to threads costs more than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_STEP = 1 << 22
"""Prunable weights times samples per step up to which one CPU thread is at least as fast as several."""


def threads_for(weights: int, batch_size: int, device: torch.device) -> int:
    """Number of threads for steps of `batch_size` samples on `weights` weights."""
    small = device.type == "cpu" and weights * batch_size <= SMALL_STEP
    return 1 if small else torch.get_num_threads()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within this context, let torch use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
