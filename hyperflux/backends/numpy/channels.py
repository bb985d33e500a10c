"""The channels of an MLP as gates: which weights read and make each of them, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hyperflux.gates.costs import ALWAYS, Labels, NetworkCost, Product
from hyperflux.gates.kinds import Budget


@dataclass(frozen=True)
class Channels:
    """Gates of hidden units, and of input features where `inputs` says so. Classes have none.

    Attributes:
        sizes: Units of each layer, including input and output.
        inputs: Whether the input features have gates too.
    """

    sizes: Sequence[int]
    inputs: bool

    @property
    def sets(self) -> dict[str, int]:
        """Number of channels by what makes them, `input` or a layer, in the order in which gates are numbered."""
        made = {f"fc{layer}": units for layer, units in enumerate(self.sizes[1:-1], start=1)}
        return {"input": self.sizes[0], **made} if self.inputs else made

    @property
    def readers(self) -> Labels:
        """The gate of the unit that each weight reads, (N,): the gate that holds the weight."""
        return np.concatenate([np.tile(inputs, len(outputs)) for inputs, outputs in pairwise(self._labels)])

    @property
    def makers(self) -> Labels:
        """The gate of the unit that each weight makes, (N,)."""
        return np.concatenate([np.repeat(outputs, len(inputs)) for inputs, outputs in pairwise(self._labels)])

    def cost(self, budget: Budget) -> NetworkCost:
        """Cost of the network in the unit of a budget: weights, parameters with biases, or FLOPs per sample."""
        unit = 2 if budget == "flops" else 1
        products = [Product(unit, inputs, outputs) for inputs, outputs in pairwise(self._labels)]
        if budget == "parameters":
            products += [Product(1, np.array([ALWAYS]), outputs) for outputs in self._labels[1:]]
        return NetworkCost(list(self.sets.values()), products)

    @property
    def _labels(self) -> list[Labels]:
        """The gate of each unit, or `ALWAYS`, layer by layer from the input features to the classes."""
        first = 0 if self.inputs else -self.sizes[0]
        ends = first + np.cumsum([0, *self.sizes])
        labels = [np.arange(start, end, dtype=np.intp) for start, end in pairwise(ends)]
        labels[0][labels[0] < 0] = ALWAYS
        labels[-1][:] = ALWAYS
        return labels
