"""The NumPy backend's gate of channels: units and input features under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux import spec
from hyperflux.backends.numpy.channels import Channels
from hyperflux.backends.numpy.gate import NumpyGate
from hyperflux.gates.kinds import Budget
from hyperflux.schedules.base import Ranking
from hyperflux.spec import Array, Mask, State


class ChannelGate(NumpyGate):
    """Flat w, (N,), and one t a channel, (J,): a channel's gate holds the weights that read it (E15 to E17).

    `parts` are the channel sets. `total`, `surviving` and the budget are in units of cost, other counts in channels.

    Attributes:
        gates: The gates with their prices of the last control step.
    """

    gates: spec.Gates

    def __init__(self, state: State, sizes: Mapping[str, int], channels: Channels, budget: Budget) -> None:
        super().__init__(state, sizes, channels.sets)
        self._cost, self._makers = channels.cost(budget), channels.makers
        self.pressure_mean = np.zeros(self._cost.gates)
        self.gates = spec.Gates(channels.readers, self._cost.prices(self.present()))

    @property
    def total(self) -> int:
        """Cost of the dense network."""
        return self._cost.total(np.ones(self._cost.gates, bool))

    def surviving(self) -> int:
        """Cost of the network whose channels are those that are open."""
        return self._cost.total(self.present())

    def mask(self) -> Mask:
        """The mask m of the weights: those that read an open channel, bool (N,)."""
        return self.gates.spread(self.present())

    def live(self) -> Mask:
        """The weights between open channels, bool (N,): what makes a closed one no longer matters."""
        present = self.present()
        return self.gates.spread(present) & replace(self.gates, of=self._makers).spread(present)

    def meet_capacity(self, count: int, ranking: Ranking = "presence") -> float:
        """Open the channels with the largest t, as many as the budget `count` allows (see E17). Returns τ."""
        shift = super().meet_capacity(count, ranking)
        self.gates = replace(self.gates, costs=self._cost.prices(self.present()))  # E16
        return shift

    def _lowered(self, presence: Array, count: int, ranking: Ranking) -> tuple[Array, float]:
        return spec.meet_budget(presence, self._cost, count, regrow=ranking == "presence")

    def drop_dead(self) -> None:
        """Set to 0 what makes closed channels, once the mask is final; the function stays the same."""
        weights = spec.effective_weights(self.state.weights, self.live())
        self.state = State(weights, self.state.presence, self.state.moments)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The state as arrays by name; between control steps prices don't follow from t."""
        return {**super().to_arrays(), "prices": self.gates.costs}

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `to_arrays` returned."""
        super().restore(saved)
        self.gates = replace(self.gates, costs=saved["prices"])

    def _magnitudes(self) -> Array:
        return self.gates.norms(self.state.weights)

    def _pressure_gradient(self) -> Array:
        return self.gates.pressure_gradient(self.pressure)
