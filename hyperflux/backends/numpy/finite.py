"""Whether everything in a training step, or in the state between two, is finite, and which layer is to blame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from hyperflux.backends.numpy.mlp import MLP
from hyperflux.session.nonfinite import Fault
from hyperflux.spec import Array

Pair = tuple[Array, Array]
"""Something of all weights (N,) and of all biases, flat; the latter may be missing."""


def step_fault(mlp: MLP, parameters: Pair, loss: float, gradients: Pair) -> Fault | None:
    """What a step is to be blamed for: a parameter first, then the loss, then a gradient; None where all is finite.

    As on torch, squares that overflow count as not finite. A gradient that is not finite makes those of the layers
    before it so: the last one is to blame.
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
    """The first of some pairs that is not finite, named by what it is: "the parameter", "a moment of"."""
    for what, pair in pairs.items():
        if not all(np.isfinite(array).all() for array in pair):
            return next(_faults(mlp, what, pair, skippable=False))
    return None


def norm(array: Array) -> float:
    """The 2-norm: not finite where a value or its square isn't."""
    return math.sqrt(float(np.vdot(array, array)))


def _faults(mlp: MLP, what: str, pair: Pair, skippable: bool) -> Iterator[Fault]:
    """Layer by layer, weights before biases."""
    weights, biases = mlp.split_weights(pair[0]), mlp.split_biases(pair[1]) if pair[1].size else []
    for number, layer in enumerate(mlp.names):
        for kind, arrays in (("weight", weights), ("bias", biases)):
            if arrays and not math.isfinite(value := norm(arrays[number])):
                yield Fault.of_norm(f"{what} {layer}.{kind}", value, skippable)
