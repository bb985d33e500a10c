"""What a network costs with some of its gates open, and what each gate saves (E16, E17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hyperflux.spec import Array, Cost, Mask

ALWAYS = -1
"""The gate of an entry that has none: it is always there."""

Labels = NDArray[np.intp]
"""The gate of every entry of a dimension, `ALWAYS` where it has none."""


@dataclass(frozen=True)
class Product:
    """A layer's part of the cost: `unit` for every pair of an open input and an open output.

    Attributes:
        unit: Cost of one pair, such as the weights of a kernel, or two FLOPs for each at every position.
        inputs: The gates of the inputs.
        outputs: The gates of the outputs; one that is always there where the cost depends on the inputs alone.
    """

    unit: int
    inputs: Labels
    outputs: Labels


class WholeCost(Cost, Protocol):
    """A cost in whole units."""

    @property
    def gates(self) -> int:
        """J, the number of gates."""

    def total(self, present: Mask) -> int:
        """Cost with the gates of a mask, (J,), open. It never falls when a gate comes back."""


class Entries:
    """The inputs and outputs of some layers, each with its gate."""

    def __init__(self, sides: Sequence[tuple[Labels, Labels]]) -> None:
        """The gates of the inputs and of the outputs of each layer."""
        flat = [side for pair in sides for side in pair]
        self._labels = np.concatenate([np.empty(0, np.intp), *flat])
        self._ends = np.cumsum([0, *map(len, flat)])
        self._of = np.repeat(np.arange(len(flat)), [len(side) for side in flat])

    def counts(self, present: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Open inputs and open outputs of every layer."""
        opened = np.append(present, True)[self._labels]  # ALWAYS is the last
        running = np.concatenate([[0], np.cumsum(opened, dtype=np.int64)])
        counts = running[self._ends[1:]] - running[self._ends[:-1]]
        return counts[::2], counts[1::2]

    def gathered(self, slopes: NDArray[np.float64], gates: int) -> Array:
        """By gate, (gates,), the sum over its entries of the slopes of their sides, (layers, 2)."""
        gated = self._labels != ALWAYS
        found = np.bincount(self._labels[gated], slopes.ravel()[self._of[gated]], gates)
        return found.astype(np.float64)


class NetworkCost:
    """The cost of a network as a sum of products, a `WholeCost`.

    Attributes:
        layers: The layer of each gate, (J,).
        products: The parts.
    """

    def __init__(self, sizes: Sequence[int], products: Sequence[Product]) -> None:
        """The cost of a network.

        Args:
            sizes: Gates of each layer, in the order of their numbers.
            products: The parts.
        """
        self.layers: NDArray[np.intp] = np.repeat(np.arange(len(sizes)), sizes)
        self.products = list(products)
        self._units = np.array([product.unit for product in products], np.int64)
        self._entries = Entries([(product.inputs, product.outputs) for product in products])

    @property
    def gates(self) -> int:
        """J, the number of gates."""
        return len(self.layers)

    def total(self, present: Mask) -> int:
        """Cost with the gates of a mask, (J,), open."""
        inputs, outputs = self._entries.counts(present)
        return int((self._units * inputs * outputs).sum())

    def prices(self, present: Mask) -> Array:
        """What closing each gate would save now, and opening it cost, (J,): the slope of the cost."""
        inputs, outputs = self._entries.counts(present)
        slopes = np.stack([self._units * outputs, self._units * inputs], 1)
        return self._entries.gathered(slopes.astype(np.float64), self.gates)
