"""Checks that a training step, or the state between steps, is finite, and names the layer that is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from hyperflux.backends.numpy.mlp import MLP
from hyperflux.session.nonfinite import Fault
from hyperflux.spec import Array

Pair = tuple[Array, Array]
"""Values of all weights, flat (N,), and of all biases, flat."""


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
        *_faults("the parameter", mlp.named(*parameters), skippable=False),
        *([] if math.isfinite(loss) else [Fault("the loss", loss, skippable=True)]),
        *reversed([*_faults("the gradient of", mlp.named(*gradients), skippable=True)]),
    ]
    return faults[0] if faults else None


def state_fault(state: Mapping[str, Mapping[str, Array]]) -> Fault | None:
    """The first non-finite array of a state, by what it is, such as "a moment of", and by the layer's name."""
    for what, arrays in state.items():
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return next(_faults(what, arrays, skippable=False))
    return None


def norm(array: Array) -> float:
    """The 2-norm; not finite if a value or its square is not."""
    return math.sqrt(float(np.vdot(array, array)))


def _faults(what: str, arrays: Mapping[str, Array], skippable: bool) -> Iterator[Fault]:
    """The arrays whose norm is not finite, in order."""
    for name, array in arrays.items():
        if not math.isfinite(value := norm(array)):
            yield Fault.of_norm(f"{what} {name}", value, skippable)
