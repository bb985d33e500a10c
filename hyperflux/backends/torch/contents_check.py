"""Finds writes to parameters that autograd does not count, such as those through `.data`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hyperflux.backends.torch.gated_parameter import GatedParameter
from hyperflux.backends.torch.presence_store import PresenceStore


def is_read_at_once(tensor: Tensor) -> bool:
    """Whether a result can be read without waiting for a device."""
    return tensor.is_cpu


class ContentsCheck:
    """Compares every parameter with θ = w·m before a step.

    Comparisons on a CPU are read at once. Those on an accelerator wait until the host waits for the device anyway.
    """

    def __init__(self, store: PresenceStore) -> None:
        self._store = store
        self._pending: dict[tuple[str, ...], Tensor] = {}

    @torch.no_grad()
    def changed(self, entries: Iterable[GatedParameter]) -> list[GatedParameter]:
        """Compare parameters with θ before a step; returns those that differ, as far as that can be read at once."""
        compared, found = list(entries), []
        for own, differs in self._store.differs([e.state for e in compared], [e.parameter.data for e in compared]):
            if is_read_at_once(differs):
                found += [compared[number] for number, differ in zip(own, differs.tolist(), strict=True) if differ]
            else:
                names = tuple(compared[number].name for number in own)
                before = self._pending.get(names)
                self._pending[names] = differs if before is None else before.logical_or_(differs)
        return found

    def lost(self) -> str | None:
        """Name of the first parameter that differed in a pending comparison; its values are overwritten by now."""
        pending, self._pending = self._pending, {}
        for names, differs in pending.items():
            if differing := [name for name, differ in zip(names, differs.tolist(), strict=True) if differ]:
                return differing[0]
        return None
