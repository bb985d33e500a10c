"""The gradient of a batch's loss, as `hyperflux.spec.step` takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux import spec
from hyperflux.backends.numpy.finite import step_fault
from hyperflux.backends.numpy.mlp import MLP
from hyperflux.session.nonfinite import NotFiniteError
from hyperflux.spec import Array


class LossGradient:
    """The function θ -> ∂L/∂θ on one batch, smoothed cross-entropy (see E7).

    Attributes:
        loss: Mean loss of the batch, after a call.
        bias_gradient: Gradient of the biases, flat, after a call.
    """

    def __init__(
        self, mlp: MLP, biases: Array, inputs: Array, labels: NDArray[np.integer[Any]], label_smoothing: float
    ) -> None:
        self._mlp, self._biases, self._inputs, self._labels = mlp, biases, inputs, labels
        self._label_smoothing = label_smoothing
        self.loss: float
        self.bias_gradient: Array

    def __call__(self, theta: Array) -> Array:
        """The gradient for θ, (N,). Raises NotFiniteError if it, θ, a bias, its gradient or the loss is not finite."""
        values = self._mlp.forward(theta, self._biases, self._inputs)
        self.loss, logits_gradient = spec.smoothed_cross_entropy(values[-1], self._labels, self._label_smoothing)
        gradient, self.bias_gradient = self._mlp.backward(theta, values, logits_gradient)
        if fault := step_fault(self._mlp, (theta, self._biases), self.loss, (gradient, self.bias_gradient)):
            raise NotFiniteError(fault)
        return gradient
