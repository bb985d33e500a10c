"""The NumPy backend's gate: the state of `hyperflux.spec` and what a schedule may do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux import spec
from hyperflux.backends.numpy.optimizers import moments_from_arrays, moments_to_arrays
from hyperflux.spec import Array, Mask, State
from hyperflux.telemetry.flux import running_pressure


class NumpyGate:
    """Flat w and t of a whole network, (N,), under training: a `hyperflux.schedules.base.Gate`.

    `pressure_mean` is the share of pressure in Adam's first moment of t: what is left of that is flux.
    """

    def __init__(self, state: State) -> None:
        self.state, self.steps = state, 0
        self.pressure, self.pressure_mean = 0.0, 0.0
        self.presence_lr: float | None = 0.0

    @property
    def total(self) -> int:
        """N."""
        return self.state.presence.size

    def mask(self) -> Mask:
        """m, (N,)."""
        return spec.gate(self.state.presence)

    def effective_weights(self) -> Array:
        """θ, (N,)."""
        return spec.effective_weights(self.state.weights, self.mask())

    def step(self, loss_gradient: Callable[[Array], Array], update_weights: Callable[[Array, Array], Array]) -> None:
        """One training step under the present pressure and rate of t."""
        self.state = spec.step(
            self.state,
            loss_gradient=loss_gradient,
            update_weights=update_weights,
            pressure=self.pressure,
            presence_learning_rate=self.presence_lr,
            total=self.total,
        )
        if self.presence_lr is not None:
            self.pressure_mean = running_pressure(self.pressure_mean, self.pressure, self.total)
        self.steps += 1

    def dense_step(
        self, loss_gradient: Callable[[Array], Array], update_weights: Callable[[Array, Array], Array]
    ) -> None:
        """One step of w alone, every weight present."""
        weights = self.state.weights
        updated = update_weights(weights, loss_gradient(weights))
        self.state = State(updated, self.state.presence, self.state.moments)

    def surviving(self) -> int:
        """Present weights now."""
        return int(np.count_nonzero(self.mask()))

    def above(self, level: float) -> int:
        """Weights whose t is at `level` or above."""
        return int(np.count_nonzero(self.state.presence >= level))

    def meet_capacity(self, kept: int) -> float:
        """Lower every t so that exactly `kept` weights are present, see E12; gives by how much."""
        presence, shift = spec.meet_capacity(self.state.presence, kept)
        self.state = State(self.state.weights, presence, self.state.moments)
        return shift

    def rank_by_magnitude(self) -> None:
        """Set t of the present weights to |w|, of the pruned ones to −1."""
        magnitude = np.where(self.mask(), np.abs(self.state.weights), -1).astype(self.state.presence.dtype)
        self.state = State(self.state.weights, magnitude, self.state.moments)

    def confirm_masks(self) -> None:
        """One process trains here."""

    def typical_flux(self) -> float:
        """Mean over weights of the root of Adam's second moment of t."""
        return spec.typical_flux(self.state.moments)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All but the schedule's orders, as arrays by name."""
        counts = {"taken": np.array(self.steps), "pressure_mean": np.array(self.pressure_mean)}
        own = {"weights": self.state.weights, "presence": self.state.presence}
        return {**counts, **own, **moments_to_arrays(self.state.moments)}

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `to_arrays` gave; the schedule gives its orders again."""
        self.state = State(saved["weights"], saved["presence"], moments_from_arrays(saved))
        self.steps, self.pressure_mean = int(saved["taken"]), float(saved["pressure_mean"])
