"""Finds writes to parameters that autograd does not count, such as those through `.data`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hyperflux.backends.torch.gated_parameter import GatedParameter
from hyperflux.backends.torch.kernels.choice import Kernels

MAX_PENDING = 20
"""Steps whose comparisons stay on a GPU until they are read together; on a CPU every step is read at once."""


class ContentsCheck:
    """Compares every parameter with θ = w·m before a step.

    Comparisons on an accelerator are read every `MAX_PENDING` steps, so that the host need not wait for the device.

    Attributes:
        max_pending: Steps that are read together on an accelerator.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels, self.max_pending = kernels, MAX_PENDING
        self._pending: dict[str, Tensor] = {}
        self._steps = 0

    @torch.no_grad()
    def compare(self, entries: Iterable[GatedParameter]) -> None:
        """Compare all parameters with θ before a step."""
        for entry in entries:
            differs = self._kernels.differs(entry.state, entry.parameter.data)
            before = self._pending.get(entry.name)
            self._pending[entry.name] = differs if before is None else before.logical_or_(differs)
        self._steps += 1

    def is_due(self) -> bool:
        """Whether the comparisons are to be read now."""
        at_once = all(differs.is_cpu for differs in self._pending.values())
        return at_once or self._steps >= self.max_pending

    def changed(self) -> str | None:
        """Name of the first parameter that differed in a comparison since the last call; waits for the device."""
        pending, self._pending, self._steps = self._pending, {}, 0
        if not pending:
            return None
        device = next(iter(pending.values())).device
        found = torch.stack([differs.to(device) for differs in pending.values()]).tolist()
        return next((name for name, differs in zip(pending, found, strict=True) if differs), None)
