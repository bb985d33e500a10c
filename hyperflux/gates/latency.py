"""The time that a network takes with some of its gates open, from times of its layers at a few numbers of channels.

A layer's time between the numbers at which it was measured is bilinear. What the dense network takes beyond its layers,
for all that lies between them, falls with their outputs, in proportion to the numbers that they make, down to what the
smallest network takes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.gates.costs import Entries, Labels
from hyperflux.io.parse import parse_dataclass
from hyperflux.io.safe_read import shown
from hyperflux.spec import Array, Mask

MAX_NANOSECONDS = 10**12
"""Longest time in a table: more than a quarter of an hour."""
MAX_LAYERS = 10_000
MAX_COUNTS = 64
"""Most numbers of channels at which a layer was timed."""
MAX_CHANNELS = 1 << 30
MAX_ELEMENTS = 1 << 50
MAX_NAME = 1000
"""Most characters of a layer's name."""


@dataclass(frozen=True)
class LayerTimes:
    """Times of one layer alone.

    Attributes:
        name: Its path in the network.
        inputs: Numbers of input channels at which it was timed, rising; the last is all of them.
        outputs: Numbers of output channels, likewise.
        nanoseconds: Times by inputs, then by outputs.
        elements: Numbers that it makes of a batch.
    """

    name: str
    inputs: list[int]
    outputs: list[int]
    nanoseconds: list[list[int]]
    elements: int


@dataclass(frozen=True)
class LatencyTable:
    """Times of a dense network and of its layers, measured on one device with batches of one size.

    Attributes:
        device: Where: "cpu", or the GPU's name.
        threads: Threads of the CPU.
        dtype: Number format of the network.
        batch_size: Samples of a batch.
        nanoseconds: Time of the dense network.
        least_nanoseconds: Time of the smallest one, with the first gate of each layer alone.
        layers: Times of its layers.
    """

    device: str
    threads: int
    dtype: str
    batch_size: int
    nanoseconds: int
    least_nanoseconds: int
    layers: list[LayerTimes]

    @classmethod
    def from_dict(cls, values: Any) -> LatencyTable:
        """A table from plain values. Raises ValueError where they are none that a measurement can give."""
        table = parse_dataclass(cls, values)
        _require("threads", table.threads >= 1)
        _require("batch_size", 1 <= table.batch_size <= MAX_CHANNELS)
        _require("device or dtype", max(len(table.device), len(table.dtype)) <= MAX_NAME)
        _require("nanoseconds", 1 <= table.nanoseconds <= MAX_NANOSECONDS)
        _require("least_nanoseconds", 1 <= table.least_nanoseconds <= MAX_NANOSECONDS)
        names = [layer.name for layer in table.layers]
        _require("layers", 1 <= len(names) <= MAX_LAYERS and len(set(names)) == len(names))
        for layer in table.layers:
            where = f"layer {shown(layer.name, 40)}"
            _require(f"{where}, name", len(layer.name) <= MAX_NAME)
            for counts in (layer.inputs, layer.outputs):
                rising = all(one < other for one, other in pairwise(counts))
                _require(f"{where}, counts", 1 <= len(counts) <= MAX_COUNTS and rising and counts[0] >= 1)
                _require(f"{where}, counts", counts[-1] <= MAX_CHANNELS)
            _require(f"{where}, elements", 1 <= layer.elements <= MAX_ELEMENTS)
            rows = layer.nanoseconds
            fits = len(rows) == len(layer.inputs) and {*map(len, rows)} == {len(layer.outputs)}
            _require(f"{where}, nanoseconds", fits and all(1 <= t <= MAX_NANOSECONDS for row in rows for t in row))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @property
    def milliseconds(self) -> float:
        """Time of the dense network."""
        return 1e-6 * self.nanoseconds

    @property
    def least_milliseconds(self) -> float:
        """Time of the smallest network."""
        return 1e-6 * self.least_nanoseconds

    @property
    def circumstances(self) -> str:
        """What was timed where, in words."""
        threads = f" with {self.threads} thread{'s'[: self.threads > 1]}" if self.device == "cpu" else ""
        return f"a batch of {self.batch_size:,} in {self.dtype} on {self.device}{threads}"

    def rows(self) -> list[tuple[str, int, int, float, float, float]]:
        """By layer: name, inputs, outputs, and milliseconds with all channels, with half of each side, with fewest."""
        found = []
        for layer in self.layers:
            times = layer.nanoseconds
            half = times[(len(times) - 1) // 2][(len(times[0]) - 1) // 2]
            each = (1e-6 * time for time in (times[-1][-1], half, times[0][0]))
            found.append((layer.name, layer.inputs[-1], layer.outputs[-1], *each))
        return found  # type: ignore[return-value]

    def described(self) -> list[tuple[str, str]]:
        """By layer, a line; then the whole network."""
        lines = [
            (name, f"{inputs:,} inputs, {outputs:,} outputs: {whole:.4g} ms, {least:.4g} ms with fewest channels")
            for name, inputs, outputs, whole, _, least in self.rows()
        ]
        least = f"{self.least_milliseconds:.4g} ms with one channel of every layer"
        return [*lines, ("whole network", f"{self.milliseconds:.4g} ms, {least}; {self.circumstances}")]


def _require(what: str, good: bool) -> None:
    if not good:
        raise ValueError(f"{what}: none that was measured")


@dataclass(frozen=True)
class _Grid:
    """Time of a layer by its inputs and outputs, with what lies behind it; it never falls with either.

    Attributes:
        inputs: The numbers of inputs that are known, from 0.
        outputs: Those of outputs, from 0.
        times: Whole nanoseconds, 0 without inputs or outputs.
    """

    inputs: list[int]
    outputs: list[int]
    times: list[list[int]]

    def at(self, inputs: int, outputs: int) -> int:
        """The time, rounded down: exact in between, so that it never falls, by however little."""
        row, over, above = _place(self.inputs, inputs)
        column, past, width = _place(self.outputs, outputs)
        low, high = (own[column] * width + past * (own[column + 1] - own[column]) for own in self.times[row : row + 2])
        return (low * above + over * (high - low)) // (above * width)

    def slopes(self, inputs: int, outputs: int) -> tuple[float, float]:
        """What an input and an output take on average, on the way from one alone to those that are there."""
        here = self.at(max(inputs, 1), max(outputs, 1))
        (first, fewer), (second, less) = ((max(own, 1), int(own > 1)) for own in (inputs, outputs))
        return (
            (here - self.at(fewer, second)) / (first - fewer),
            (here - self.at(first, less)) / (second - less),
        )


def _place(known: Sequence[int], count: int) -> tuple[int, int, int]:
    """The interval that a number lies in: its place, the distance from its start, and its width."""
    place = max(bisect_left(known, count) - 1, 0)
    return place, count - known[place], known[place + 1] - known[place]


class LatencyCost:
    """The time of a network, a `hyperflux.gates.costs.WholeCost` in nanoseconds.

    Attributes:
        layers: The layer of each gate, (J,).
        grids: The time of each layer that was timed.
    """

    def __init__(self, sizes: Sequence[int], table: LatencyTable, sides: Mapping[str, tuple[Labels, Labels]]) -> None:
        """The cost of a network.

        Args:
            sizes: Gates of each layer, in the order of their numbers.
            table: Times of the network.
            sides: By layer of the table, the gates of its inputs and of its outputs.

        Raises:
            InputError: The table is of other layers.
        """
        of_table = {layer.name: [layer.inputs[-1], layer.outputs[-1]] for layer in table.layers}
        of_network = {name: [*map(len, own)] for name, own in sides.items()}
        for name in {**of_network, **of_table}:
            if of_table.get(name) != of_network.get(name):
                raise InputError(
                    f"latency: the table of layer times is of another network, as layer {name} shows; give that of "
                    "this one, or none and it is measured"
                )
        self.layers: NDArray[np.intp] = np.repeat(np.arange(len(sizes)), sizes)
        self._entries = Entries([sides[layer.name] for layer in table.layers])
        inputs, outputs = (counts.tolist() for counts in self._entries.counts(first_of_each(sizes)))
        self.grids = _grids(table, inputs, outputs)

    @property
    def gates(self) -> int:
        """J, the number of gates."""
        return len(self.layers)

    def total(self, present: Mask) -> int:
        """Time with the gates of a mask, (J,), open; it never falls when one comes back."""
        return sum(grid.at(*own) for grid, own in self._open(present))

    def prices(self, present: Mask) -> Array:
        """What closing each gate would save, (J,): the mean slope of the time down to a single channel.

        The slope at hand would depend on the noise of two measurements. Where none saves anything all are 1.
        """
        slopes = np.array([grid.slopes(*own) for grid, own in self._open(present)], np.float64)
        prices = self._entries.gathered(slopes.reshape(-1, 2), self.gates)
        return prices if prices.any() else np.ones(self.gates)

    def _open(self, present: Mask) -> list[tuple[_Grid, tuple[int, int]]]:
        """Each layer's grid with its open inputs and outputs."""
        inputs, outputs = (counts.tolist() for counts in self._entries.counts(present))
        return list(zip(self.grids, zip(inputs, outputs, strict=True), strict=True))


def first_of_each(sizes: Iterable[int]) -> Mask:
    """The mask of the smallest network that is timed: the first gate of each layer."""
    return np.concatenate([np.arange(size) == 0 for size in sizes])


def _grids(table: LatencyTable, inputs: Sequence[int], outputs: Sequence[int]) -> list[_Grid]:
    """The times of the layers, made monotone, with their parts of the rest; together those of the dense network.

    Layers that take longer than the whole network, each alone, are scaled down to it.

    Args:
        table: What was measured.
        inputs: Inputs of each layer in the smallest network.
        outputs: The same for outputs.
    """
    layers = [_monotone(layer.nanoseconds) for layer in table.layers]
    together = sum(times[-1][-1] for times in layers)
    if together > table.nanoseconds:
        layers = [[[time * table.nanoseconds // together for time in row] for row in times] for times in layers]
    rest = table.nanoseconds - sum(times[-1][-1] for times in layers)
    alone = [_grid(layer, times, lambda count: 0) for layer, times in zip(table.layers, layers, strict=True)]
    of_least = sum(grid.at(*own) for grid, own in zip(alone, zip(inputs, outputs, strict=True), strict=True))
    steady = min(max(table.least_nanoseconds - of_least, 0), rest)
    weights = [
        layer.elements if least < layer.outputs[-1] else 0 for layer, least in zip(table.layers, outputs, strict=True)
    ]
    shares = [(rest - steady) * weight // max(sum(weights), 1) for weight in weights]
    steadies = [rest - sum(shares) if number == 0 else 0 for number in range(len(shares))]
    return [
        _grid(*own, partial(_behind, steady=still, falling=share, least=least, most=own[0].outputs[-1]))
        for own, still, share, least in zip(
            zip(table.layers, layers, strict=True), steadies, shares, outputs, strict=True
        )
    ]


def _behind(count: int, steady: int, falling: int, least: int, most: int) -> int:
    """What lies behind a layer of so many outputs takes, between the `least` and the `most` of them."""
    return steady + falling * max(count - least, 0) // max(most - least, 1)


def _grid(layer: LayerTimes, times: Sequence[Sequence[int]], behind: Callable[[int], int]) -> _Grid:
    """The times of a layer with those of what lies behind it."""
    more = [behind(count) for count in layer.outputs]
    rows = [[0, *(time + own for time, own in zip(row, more, strict=True))] for row in times]
    return _Grid([0, *layer.inputs], [0, *layer.outputs], [[0] * len(rows[0]), *rows])


def _monotone(times: Sequence[Sequence[int]]) -> list[list[int]]:
    """The largest time with as many channels or fewer."""
    rows = [list(accumulate(row, max)) for row in times]
    columns = [list(accumulate(column, max)) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]
