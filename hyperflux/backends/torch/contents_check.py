"""Finds writes to parameters that autograd does not count, such as those through `.data`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hyperflux.backends.torch.gated_parameter import GatedParameter
from hyperflux.backends.torch.kernels.choice import Kernels


def is_read_at_once(tensor: Tensor) -> bool:
    """Whether a result can be read without waiting for a device."""
    return tensor.is_cpu


class ContentsCheck:
    """Compares every parameter with θ = w·m before a step.

    Comparisons on a CPU are read at once. Those on an accelerator wait until the host waits for the device anyway.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._pending: dict[str, Tensor] = {}

    @torch.no_grad()
    def changed(self, entries: Iterable[GatedParameter]) -> list[GatedParameter]:
        """Compare parameters with θ before a step; returns those that differ, as far as that can be read at once."""
        found = []
        for entry in entries:
            differs = self._kernels.differs(entry.state, entry.parameter.data)
            if not is_read_at_once(differs):
                before = self._pending.get(entry.name)
                self._pending[entry.name] = differs if before is None else before.logical_or_(differs)
            elif differs:
                found.append(entry)
        return found

    def lost(self) -> str | None:
        """Name of the first parameter that differed in a pending comparison; its values are overwritten by now."""
        pending, self._pending = self._pending, {}
        if not pending:
            return None
        device = next(iter(pending.values())).device
        found = torch.stack([differs.to(device) for differs in pending.values()]).tolist()
        return next((name for name, differs in zip(pending, found, strict=True) if differs), None)
