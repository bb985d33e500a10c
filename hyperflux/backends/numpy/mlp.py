"""A multilayer perceptron written by hand: linear layers with ReLU between them, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hyperflux.models import initial_mlp
from hyperflux.spec import Array

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class MLP:
    """The shapes of a network. Its weights (N,) and biases are flat arrays, layer after layer.

    Attributes:
        sizes: Units of each layer, including input and output: layer i maps sizes[i] to sizes[i + 1] units.
    """

    sizes: Sequence[int]

    @property
    def names(self) -> list[str]:
        """`fc1`, `fc2`, ..."""
        return [f"fc{index}" for index in range(1, len(self.sizes))]

    @property
    def weight_count(self) -> int:
        """N: every weight of every layer is prunable."""
        return sum(inputs * outputs for inputs, outputs in pairwise(self.sizes))

    def split_weights(self, weights: NDArray[S]) -> list[NDArray[S]]:
        """Views of flat weights, or of their mask, as one (outputs, inputs) matrix per layer."""
        return [
            part.reshape(outputs, inputs)
            for part, (inputs, outputs) in zip(
                _split(weights, [inputs * outputs for inputs, outputs in pairwise(self.sizes)]),
                pairwise(self.sizes),
                strict=True,
            )
        ]

    def split_biases(self, biases: NDArray[S]) -> list[NDArray[S]]:
        """Views of the flat biases as one (outputs,) vector per layer."""
        return _split(biases, self.sizes[1:])

    def named(self, weights: NDArray[S], biases: NDArray[S]) -> dict[str, NDArray[S]]:
        """Views of flat weights and biases by the names of parameters, layer by layer."""
        views: dict[str, NDArray[S]] = {}
        matrices, vectors = self.split_weights(weights), self.split_biases(biases)
        for name, matrix, vector in zip(self.names, matrices, vectors, strict=True):
            views[f"{name}.weight"], views[f"{name}.bias"] = matrix, vector
        return views

    def initial(self, seed: int, dtype: np.dtype[np.floating]) -> tuple[Array, Array]:
        """Initial flat weights (N,) and biases, as `hyperflux.models.initial_mlp` draws them."""
        drawn = initial_mlp(tuple(self.sizes), seed)
        weights, biases = ([drawn[f"{name}.{part}"].ravel() for name in self.names] for part in ("weight", "bias"))
        return np.concatenate(weights).astype(dtype), np.concatenate(biases).astype(dtype)

    def forward(self, weights: Array, biases: Array, inputs: Array) -> list[Array]:
        """Input (batch, features) of every layer, then the logits (batch, classes)."""
        values = [inputs]
        for matrix, bias in zip(self.split_weights(weights), self.split_biases(biases), strict=True):
            linear = values[-1] @ matrix.T + bias
            values.append(np.maximum(linear, 0) if len(values) < len(self.sizes) - 1 else linear)
        return values

    def backward(self, weights: Array, values: list[Array], logits_gradient: Array) -> tuple[Array, Array]:
        """Gradients for weights and biases, flat, from what `forward` returned and ∂L/∂logits."""
        weight_gradient = np.empty_like(weights)
        bias_gradient = np.empty(sum(self.sizes[1:]), dtype=weights.dtype)
        matrices, matrix_gradients = self.split_weights(weights), self.split_weights(weight_gradient)
        bias_gradients = self.split_biases(bias_gradient)
        upstream = logits_gradient
        for layer in reversed(range(len(matrices))):
            matrix_gradients[layer][...] = upstream.T @ values[layer]
            bias_gradients[layer][...] = upstream.sum(axis=0)
            if layer:
                upstream = (upstream @ matrices[layer]) * (values[layer] > 0)
        return weight_gradient, bias_gradient


def _split(flat: NDArray[S], lengths: Sequence[int]) -> list[NDArray[S]]:
    ends = list(accumulate(lengths))
    return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]
