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

    A gate holds one weight here; kinds that hold more are derived from this.

    Attributes:
        state: w, t and the moments of t.
        sizes: Weights of each layer by name, in order.
        parts: Number of t of each layer, or of what else has them, by name in order.
        gates: The gates, if they hold several weights each.
        steps: Optimizer steps taken.
        pressure: γ of the next step.
        presence_lr: η_t of the next step.
        pressure_mean: Contribution of pressure to Adam's first moment of t; the rest is flux.
    """

    gates: spec.Gates | None = None

    def __init__(self, state: State, sizes: Mapping[str, int], parts: Mapping[str, int] | None = None) -> None:
        """Start a gate; without `parts` every weight has a t."""
        self.state, self.sizes, self.parts, self.steps = state, sizes, sizes if parts is None else parts, 0
        self.pressure = 0.0
        self.presence_lr: float | None = 0.0
        self.pressure_mean: float | Array = 0.0

    @property
    def total(self) -> int:
        """N."""
        return self.state.presence.size

    def present(self) -> Mask:
        """Which gates are open, bool, one for each t."""
        return spec.gate(self.state.presence)

    def mask(self) -> Mask:
        """The mask m, bool (N,)."""
        return self.present()

    def live(self) -> Mask:
        """The weights that are left, bool (N,)."""
        return self.mask()

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
            gates=self.gates,
        )
        if self.presence_lr is not None:
            self.pressure_mean = running_pressure(self.pressure_mean, self._pressure_gradient())
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
        return int(np.count_nonzero(self.present()))

    def layers(self) -> list[LayerCount]:
        """All and open gates of each of `parts`."""
        masks = self.named(self.present())
        return [LayerCount(name, mask.size, int(np.count_nonzero(mask))) for name, mask in masks.items()]

    def named(self, values: NDArray[V]) -> dict[str, NDArray[V]]:
        """Views of `values`, one for each t, by the names of `parts`."""
        return dict(zip(self.parts, _split(values, self.parts), strict=True))

    def fault(self, latent: bool) -> Fault | None:
        """The first t that is not finite; with `latent` also the first w. None if all are finite."""
        named = {"presence parameter": self.named(self.state.presence)}
        if latent:
            named["latent weight"] = dict(zip(self.sizes, _split(self.state.weights, self.sizes), strict=True))
        for kind, layers in named.items():
            for name, part in layers.items():
                spoiled = part[~np.isfinite(part)]
                if len(spoiled):
                    return Fault(f"a {kind} of {name}", abs(float(spoiled[0])), skippable=False)
        return None

    def above(self, level: float) -> int:
        """Number of t at `level` or above."""
        return int(np.count_nonzero(self.state.presence >= level))

    def meet_capacity(self, count: int, ranking: Ranking = "presence") -> float:
        """Lower every t, or what a baseline ranks by, by the same τ (see E12). Returns τ."""
        presence, shift = self._lowered(self._ranked(ranking), count, ranking)
        self.state = State(self.state.weights, presence, self.state.moments)
        return shift

    def _ranked(self, ranking: Ranking) -> Array:
        """The t, or for a baseline a magnitude or Taylor's saliency, and −1 where pruned."""
        if ranking == "presence":
            return self.state.presence
        if ranking == "taylor":
            return spec.taylor_presence(self.state.presence, self.state.moments)
        return spec.magnitude_presence(self._magnitudes(), self.state.presence)

    def _lowered(self, presence: Array, count: int, ranking: Ranking) -> tuple[Array, float]:
        """The t that leave exactly `count` weights present, and τ."""
        return spec.meet_capacity(presence, count)

    def confirm_masks(self) -> None:
        """Nothing to compare: there is one replica."""

    def drop_dead(self) -> None:
        """Nothing to do: what a weight's gate closes is 0 already."""

    def typical_flux(self) -> float:
        """Mean over t of √v̂, where v̂ is Adam's bias-corrected second moment of t."""
        return spec.typical_flux(self.state.moments)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The state as arrays by name, without pressure and η_t."""
        counts = {"taken": np.array(self.steps), "pressure_mean": np.array(self.pressure_mean)}
        own = {"weights": self.state.weights, "presence": self.state.presence}
        return {**counts, **own, **moments_to_arrays(self.state.moments)}

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `to_arrays` returned; the schedule sets pressure and η_t again."""
        self.state = State(saved["weights"], saved["presence"], moments_from_arrays(saved))
        self.steps, mean = int(saved["taken"]), saved["pressure_mean"]
        self.pressure_mean = mean if mean.ndim else float(mean)

    def _magnitudes(self) -> Array:
        """What magnitude pruning ranks by."""
        return self.state.weights

    def _pressure_gradient(self) -> float | Array:
        """Gradient of the pressure loss on t under the current pressure."""
        return spec.pressure_gradient(self.pressure, self.total)


def _split(values: NDArray[V], sizes: Mapping[str, int]) -> list[NDArray[V]]:
    """Views of flat values, one of each size."""
    return np.split(values, np.cumsum(list(sizes.values()))[:-1])
