"""The NumPy backend's gate: holds the state of `hyperflux.spec`, and a schedule steers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hyperflux import spec
from hyperflux.backends.numpy.optimizers import moments_from_arrays, moments_to_arrays
from hyperflux.schedules.base import LayerCount, Ranking
from hyperflux.session.nonfinite import Fault
from hyperflux.spec import Array, Mask, State
from hyperflux.telemetry.flux import running_pressure

V = TypeVar("V", bound=np.generic)


class NumpyGate:
    """Flat w and t of a whole network, (N,), under training: a `hyperflux.session.pruning.SessionGate`.

    Attributes:
        state: w, t and the moments of t.
        sizes: Weights of each layer by name, in order.
        steps: Optimizer steps taken.
        pressure: γ of the next step.
        presence_lr: η_t of the next step.
        pressure_mean: Contribution of pressure to Adam's first moment of t; the rest is flux.
    """

    def __init__(self, state: State, sizes: Mapping[str, int]) -> None:
        self.state, self.sizes, self.steps = state, sizes, 0
        self.pressure, self.pressure_mean = 0.0, 0.0
        self.presence_lr: float | None = 0.0

    @property
    def total(self) -> int:
        """N."""
        return self.state.presence.size

    def mask(self) -> Mask:
        """The mask m, bool (N,)."""
        return spec.gate(self.state.presence)

    def effective_weights(self) -> Array:
        """The effective weights θ = w·m, (N,)."""
        return spec.effective_weights(self.state.weights, self.mask())

    def step(self, loss_gradient: Callable[[Array], Array], update_weights: Callable[[Array, Array], Array]) -> None:
        """Take one training step under the current pressure and η_t (see E1 to E6)."""
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
        """Take one step of w alone, with every weight present."""
        weights = self.state.weights
        updated = update_weights(weights, loss_gradient(weights))
        self.state = State(updated, self.state.presence, self.state.moments)

    def surviving(self) -> int:
        """Number of present weights."""
        return int(np.count_nonzero(self.mask()))

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of each layer, first layer first."""
        counts = [int(np.count_nonzero(mask)) for mask in self.split(self.mask())]
        return [LayerCount(name, size, count) for (name, size), count in zip(self.sizes.items(), counts, strict=True)]

    def split(self, values: NDArray[V]) -> list[NDArray[V]]:
        """Views of flat `values`, (N,), one per layer."""
        return np.split(values, np.cumsum(list(self.sizes.values()))[:-1])

    def fault(self, latent: bool) -> Fault | None:
        """The first t that is not finite; with `latent` also the first w. None if all are finite."""
        kinds = {"presence parameter": self.state.presence}
        if latent:
            kinds["latent weight"] = self.state.weights
        for kind, values in kinds.items():
            for name, part in zip(self.sizes, self.split(values), strict=True):
                spoiled = part[~np.isfinite(part)]
                if len(spoiled):
                    return Fault(f"a {kind} of {name}", abs(float(spoiled[0])), skippable=False)
        return None

    def above(self, level: float) -> int:
        """Number of weights whose t is at `level` or above."""
        return int(np.count_nonzero(self.state.presence >= level))

    def meet_capacity(self, count: int) -> float:
        """Lower every t by the same τ so that exactly `count` weights are present (see E12). Returns τ."""
        presence, shift = spec.meet_capacity(self.state.presence, count)
        self.state = State(self.state.weights, presence, self.state.moments)
        return shift

    def rank_by(self, ranking: Ranking) -> None:
        """Set t of the present weights to |w|, of the pruned ones to −1."""
        presence = spec.magnitude_presence(self.state.weights, self.state.presence)
        self.state = State(self.state.weights, presence, self.state.moments)

    def confirm_masks(self) -> None:
        """Nothing to compare: there is one replica."""

    def typical_flux(self) -> float:
        """Mean over weights of √v̂, where v̂ is Adam's bias-corrected second moment of t."""
        return spec.typical_flux(self.state.moments)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The state as arrays by name, without pressure and η_t."""
        counts = {"taken": np.array(self.steps), "pressure_mean": np.array(self.pressure_mean)}
        own = {"weights": self.state.weights, "presence": self.state.presence}
        return {**counts, **own, **moments_to_arrays(self.state.moments)}

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `to_arrays` returned; the schedule sets pressure and η_t again."""
        self.state = State(saved["weights"], saved["presence"], moments_from_arrays(saved))
        self.steps, self.pressure_mean = int(saved["taken"]), float(saved["pressure_mean"])
