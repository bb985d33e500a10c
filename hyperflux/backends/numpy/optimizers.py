"""Optimizers of w and of the biases, one object per array, in torch's conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyperflux.config import OptimizerSettings
from hyperflux.io.ranges import MAX_INTEGER
from hyperflux.io.saved_arrays import require_like, require_names, whole
from hyperflux.spec import Array, Moments, adam_direction


class Optimizer(Protocol):
    """The optimizer of one array, with its state."""

    def update(self, parameter: Array, gradient: Array, learning_rate: float) -> Array:
        """The parameter after one step, as a new array."""

    def state(self) -> dict[str, NDArray[Any]]:
        """The state as arrays by name; empty before the first step."""

    def require_state(self, state: Mapping[str, NDArray[Any]], parameter: Array) -> None:
        """Raise ValueError unless a saved state is that of an optimizer like this one of `parameter`."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a saved state."""


class SGD:
    """Stochastic gradient descent with momentum, Nesterov momentum and weight decay, as torch.optim.SGD."""

    def __init__(self, momentum: float, nesterov: bool, weight_decay: float) -> None:
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self._velocity: Array | None = None

    def update(self, parameter: Array, gradient: Array, learning_rate: float) -> Array:
        """The parameter after one step."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        if self.momentum:
            self._velocity = gradient if self._velocity is None else self.momentum * self._velocity + gradient
            gradient = gradient + self.momentum * self._velocity if self.nesterov else self._velocity
        return parameter - learning_rate * gradient

    def state(self) -> dict[str, NDArray[Any]]:
        """The velocity; empty without momentum or before the first step."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def require_state(self, state: Mapping[str, NDArray[Any]], parameter: Array) -> None:
        """Raise ValueError unless a saved state fits."""
        if state:
            require_names("optimizer", state, ["velocity"] if self.momentum else [])
            require_like(state, {"velocity": parameter})

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a saved state."""
        self._velocity = state.get("velocity")


class Adam:
    """Adam with weight decay added to the gradient, as torch.optim.Adam."""

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self._moments: Moments | None = None

    def update(self, parameter: Array, gradient: Array, learning_rate: float) -> Array:
        """The parameter after one step."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        moments = self._moments or Moments.zeros_like(parameter)
        direction, self._moments = adam_direction(gradient, moments)
        return np.asarray(parameter - learning_rate * direction)

    def state(self) -> dict[str, NDArray[Any]]:
        """Both moments and their number of steps; empty before the first step."""
        return {} if self._moments is None else moments_to_arrays(self._moments)

    def require_state(self, state: Mapping[str, NDArray[Any]], parameter: Array) -> None:
        """Raise ValueError unless a saved state fits."""
        if state:
            require_names("optimizer", state, ["first", "second", "steps"])
            require_like(state, {"first": parameter, "second": parameter})
            if state["second"].min() < 0 or whole(state, "steps", MAX_INTEGER) < 1:
                raise ValueError("optimizer: a squared moment below 0, or no step")

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a saved state."""
        self._moments = moments_from_arrays(state) if state else None


def build_optimizer(settings: OptimizerSettings) -> Optimizer:
    """A new optimizer for one array."""
    if settings.name == "adam":
        return Adam(settings.weight_decay)
    return SGD(settings.momentum, settings.nesterov, settings.weight_decay)


def moments_to_arrays(moments: Moments) -> dict[str, NDArray[Any]]:
    """Adam's moments as arrays by name."""
    return {"first": moments.first, "second": moments.second, "steps": np.array(moments.steps)}


def moments_from_arrays(state: Mapping[str, NDArray[Any]]) -> Moments:
    """The moments from what `moments_to_arrays` returned."""
    return Moments(state["first"], state["second"], int(state["steps"]))
