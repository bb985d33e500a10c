"""One gate per weight: the states of all parameters, with kernels for their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.capacity import meet_capacity
from hyperflux.backends.torch.kernels.choice import Kernels
from hyperflux.backends.torch.kernels.plain import ParameterUpdate
from hyperflux.backends.torch.presence_store import read_numbers
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.schedules.base import LayerCount, Ranking


class WeightStates:
    """A `PresenceStore` with one gate per weight.

    Attributes:
        states: The state of every parameter by name; the tensors are those in use, not copies.
        total: N, the number of weights of all parameters.
    """

    def __init__(self, states: Mapping[str, WeightState]) -> None:
        self.states: dict[str, WeightState] = dict(states)
        self.total = sum(state.latent.numel() for state in states.values())
        self._kernels = Kernels()

    @classmethod
    def of(
        cls, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype, seed: int, initial: tuple[float, float]
    ) -> WeightStates:
        """The states before the first step; t is drawn by seed and name."""
        return cls({name: WeightState.of(own, dtype, seed, name, initial) for name, own in parameters.items()})

    def presence(self) -> Mapping[str, WeightState]:
        """The presence parameters of every parameter."""
        return self.states

    def saved(self) -> Mapping[str, WeightState]:
        """The states."""
        return self.states

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of every parameter, in the model's order; waits for the device."""
        present = read_numbers([torch.count_nonzero(state.mask()) for state in self.states.values()])
        return [
            LayerCount(name, state.latent.numel(), int(count))
            for (name, state), count in zip(self.states.items(), present, strict=True)
        ]

    def weights(self) -> list[LayerCount]:
        """The same as `layers`."""
        return self.layers()

    def surviving(self) -> int:
        """Number of present weights; waits for the device."""
        return sum(layer.surviving for layer in self.layers())

    def above(self, level: float) -> int:
        """Number of weights whose t is at `level` or above; waits for the device."""
        return int(sum(read_numbers([torch.count_nonzero(state.presence >= level) for state in self.states.values()])))

    @torch.no_grad()
    def typical_flux(self) -> float:
        """Mean over weights of √v̂, where v̂ is Adam's bias-corrected second moment of t; waits for the device."""
        sums = read_numbers([state.root_of_second_moment().sum() for state in self.states.values()])
        return sum(sums) / self.total

    def meet_capacity(self, count: int, near: float, ranking: Ranking) -> float:
        """Lower every t by the same τ so that exactly `count` weights are present (see E12). Returns τ."""
        self._rank_by(ranking)
        return meet_capacity([state.presence for state in self.states.values()], count, near)

    def _rank_by(self, ranking: Ranking) -> None:
        """To prune by magnitude, set t to |w|, and to −1 where pruned."""
        if ranking == "magnitude":
            for state in self.states.values():
                state.presence.copy_(state.latent.abs().masked_fill_(~state.mask(), -1))

    def drop_dead(self) -> None:
        """Nothing: a weight's gate closes no channel."""

    def take_step(self, updates: Sequence[ParameterUpdate], pressure: float, learning_rate: float | None) -> None:
        """Turn every g into g·m, and move t by one step on κ g w + γ/N (see E3 to E6)."""
        self._kernels.take_step(updates, pressure / self.total, learning_rate)

    def write_effective(self, states: Sequence[WeightState], out: Sequence[Tensor]) -> None:
        """Write each θ = w·m into its `out`."""
        self._kernels.write_effective(states, out)

    def differs(self, states: Sequence[WeightState], values: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
        """Whether `values` differ from θ = w·m: numbers of states, and a bool for each."""
        return self._kernels.differs(states, values)

    def buffers(self) -> list[Tensor]:
        """The kernels' buffers."""
        return self._kernels.buffers()

    def forget(self) -> None:
        """Release all kernels."""
        self._kernels.forget()

    def __getstate__(self) -> dict[str, object]:
        """A copy chooses its own kernels."""
        return {**vars(self), "_kernels": Kernels()}
