"""Optimizers of w and of the biases, one object a parameter array, in torch's conventions."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hyperflux.config import OptimizerSettings
from hyperflux.spec import Array, Moments, adam_direction


class Optimizer(Protocol):
    """One array's optimizer: it keeps its own state from step to step."""

    def update(self, parameter: Array, gradient: Array, learning_rate: float) -> Array:
        """The parameter after one step, as a new array."""


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


class Adam:
    """Adam with the weight decay added to the gradient, as torch.optim.Adam."""

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


def build_optimizer(settings: OptimizerSettings) -> Optimizer:
    """A fresh optimizer for one array."""
    if settings.name == "adam":
        return Adam(settings.weight_decay)
    return SGD(settings.momentum, settings.nesterov, settings.weight_decay)
