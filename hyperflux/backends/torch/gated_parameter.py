"""One parameter under the gate: its state, and whether its storage still holds the effective weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.presence_store import ParameterState


@dataclass
class GatedParameter:
    """A prunable parameter, with the version and address of its storage after the last step.

    Attributes:
        name: The parameter's name in the model.
        parameter: The parameter.
        state: w and the mask.
    """

    name: str
    parameter: nn.Parameter
    state: ParameterState
    _version: int = -1
    _pointer: int = -1

    def remember(self) -> None:
        """Note that the storage holds θ now."""
        self._version, self._pointer = self.parameter._version, self.parameter.data_ptr()

    def was_touched(self) -> bool:
        """Whether something wrote to the parameter or replaced its storage; misses writes through `.data`."""
        return self._version != self.parameter._version or self._pointer != self.parameter.data_ptr()

    @torch.no_grad()
    def holds_effective(self) -> bool:
        """Whether the parameter equals θ = w·m bit for bit; NaN equals NaN. Waits for the device."""
        expected = torch.empty_like(self.parameter)
        self.state.write_effective(expected)
        return bool(((expected == self.parameter) | (expected.isnan() & self.parameter.isnan())).all())

    @torch.no_grad()
    def take_values(self) -> None:
        """Take the parameter's values as w.

        A pruned weight that is 0 keeps its w, because a sparse checkpoint does not contain it. If values were only made
        smaller, as by clipping, their largest magnitude limits the w of pruned weights too.
        """
        values: Tensor = self.parameter.to(self.state.latent.dtype)
        effective = torch.empty_like(self.parameter)
        self.state.write_effective(effective)
        smaller = self.parameter.abs() < effective.abs()
        unknown = (values == 0) & ~self.state.mask()
        kept = self.state.latent
        if smaller.any() and (smaller | (self.parameter == effective)).all() and values.any():
            limit = values.abs().max()
            kept = kept.clamp(-limit, limit)
        self.state.latent.copy_(torch.where(unknown, kept, values))

    def __getstate__(self) -> dict[str, Any]:
        """A copy has storage of its own, whose version and address are not known yet."""
        return {**vars(self), "_version": -1, "_pointer": -1}
