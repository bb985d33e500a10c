"""Checks that a training step, or the state between steps, is finite, and names the layer that is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from hyperflux.backends.numpy.mlp import MLP
from hyperflux.session.nonfinite import Fault
from hyperflux.spec import Array

Pair = tuple[Array, Array]
"""Values of all weights, flat (N,), and of all biases, flat; the latter may be empty."""


def step_fault(mlp: MLP, parameters: Pair, loss: float, gradients: Pair) -> Fault | None:
    """The first cause of a non-finite step; None if everything is finite.

    Parameters come first, then the loss, then gradients from the last layer to the first: a non-finite gradient spoils
    those of the layers before it. As on torch, squares that overflow count as not finite.

    Args:
        mlp: The network.
        parameters: θ and the biases.
        loss: Loss of the batch.
        gradients: Gradients of θ and the biases.
    """
    if math.isfinite(loss + sum(norm(array) for array in (*parameters, *gradients))):
        return None
    faults = [
        *_faults(mlp, "the parameter", parameters, skippable=False),
        *([] if math.isfinite(loss) else [Fault("the loss", loss, skippable=True)]),
        *reversed([*_faults(mlp, "the gradient of", gradients, skippable=True)]),
    ]
    return faults[0] if faults else None


def state_fault(mlp: MLP, pairs: Mapping[str, Pair]) -> Fault | None:
    """The first non-finite value of some pairs, whose keys name them: "the parameter", "a moment of"."""
    for what, pair in pairs.items():
        if not all(np.isfinite(array).all() for array in pair):
            return next(_faults(mlp, what, pair, skippable=False))
    return None


def norm(array: Array) -> float:
    """The 2-norm; not finite if a value or its square is not."""
    return math.sqrt(float(np.vdot(array, array)))


def _faults(mlp: MLP, what: str, pair: Pair, skippable: bool) -> Iterator[Fault]:
    """Non-finite values of a pair, layer by layer, weights before biases."""
    weights, biases = mlp.split_weights(pair[0]), mlp.split_biases(pair[1]) if pair[1].size else []
    for number, layer in enumerate(mlp.names):
        for kind, arrays in (("weight", weights), ("bias", biases)):
            if arrays and not math.isfinite(value := norm(arrays[number])):
                yield Fault.of_norm(f"{what} {layer}.{kind}", value, skippable)
