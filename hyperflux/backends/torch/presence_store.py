"""What a torch gate keeps of the parameters that it prunes: latent weights, and the t of whatever its gates hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.kernels.plain import ParameterUpdate
from hyperflux.backends.torch.presence import Presence
from hyperflux.schedules.base import LayerCount, Ranking

KINDS = {"presence": "presence parameter", "latent": "latent weight", "first": "moment", "second": "squared moment"}
"""Tensors that a store keeps, with words for messages."""


class Saved(Protocol):
    """A part of the store that is saved and restored."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; they are those in use."""

    def numbers(self) -> dict[str, float]:
        """What else is saved, by name."""

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Take saved values."""


class ParameterState(Saved, Protocol):
    """What is kept of one parameter.

    Attributes:
        latent: w.
    """

    latent: Tensor

    def mask(self) -> Tensor:
        """The mask m of its weights, bool, of its shape."""

    def write_effective(self, out: Tensor) -> None:
        """Write θ = w·m into `out`, rounded to its dtype; a pruned weight becomes an exact +0 (see E2)."""

    def follow(self, parameter: Tensor) -> bool:
        """Move to the parameter's device and memory layout; returns whether either had changed."""


class PresenceStore(Protocol):
    """The states of all parameters under a gate, and the presence parameters."""

    @property
    def states(self) -> Mapping[str, Any]:
        """The state of every parameter by name, a `ParameterState`."""

    @property
    def total(self) -> int:
        """N, or the cost of the dense network, see `hyperflux.schedules.base.Gate`."""

    def presence(self) -> Mapping[str, Presence]:
        """The presence parameters by layer: of a parameter's weights, or of a layer's channels."""

    def saved(self) -> Mapping[str, Saved]:
        """All that is saved, by name; the states of parameters under their names."""

    def layers(self) -> list[LayerCount]:
        """All and open gates of every layer of `presence`; waits for the device."""

    def weights(self) -> list[LayerCount]:
        """Prunable and surviving weights of every parameter, in the model's order; waits for the device."""

    def surviving(self) -> int:
        """Number of present weights, or the cost of what is open; waits for the device."""

    def above(self, level: float) -> int:
        """Number of t at `level` or above; waits for the device."""

    def typical_flux(self) -> float:
        """Mean of √v̂, where v̂ is Adam's bias-corrected second moment of t; waits for the device."""

    def meet_capacity(self, count: int, near: float, ranking: Ranking) -> float:
        """Lower every t by the same τ, see `hyperflux.schedules.base.Gate`; τ is looked for within `near` first."""

    def drop_dead(self) -> None:
        """From now on the masks also remove the weights that make closed channels."""

    def take_step(self, updates: Sequence[ParameterUpdate], pressure: float, learning_rate: float | None) -> None:
        """Turn every g into g·m, and move t by one step (see E3 to E6)."""

    def write_effective(self, states: Sequence[Any], out: Sequence[Tensor]) -> None:
        """Write each θ = w·m into its `out`."""

    def differs(self, states: Sequence[Any], values: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
        """Whether `values` differ from θ = w·m: numbers of states, and a bool for each."""

    def buffers(self) -> list[Tensor]:
        """Tensors held in addition to `saved`."""

    def forget(self) -> None:
        """Release buffers and references to tensors that may have been replaced."""


Build = Callable[[Mapping[str, nn.Parameter], torch.dtype, int, tuple[float, float]], PresenceStore]
"""Builds a store from parameters by name, dtype of the state, seed, and interval of the first t."""


def named_tensors(parts: Mapping[str, Saved], kinds: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of some kinds, by their names in messages."""
    kept = {name: part.tensors() for name, part in parts.items()}
    return {f"a {KINDS[kind]} of {name}": own[kind] for kind in kinds for name, own in kept.items() if kind in own}


def read_numbers(numbers: Sequence[Tensor]) -> list[float]:
    """The values of tensors of shape (), read at once; waits for the device."""
    return torch.stack([number.to(numbers[0].device) for number in numbers]).tolist()
