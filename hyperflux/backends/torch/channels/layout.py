"""The gates of channels of a network: where they are made, which weights read and make them, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from hyperflux.backends.torch.channels.coupling import PINNED, Coupling, Labels
from hyperflux.backends.torch.compact.attention import Attention, MatrixProduct
from hyperflux.backends.torch.compact.batch_norm import BatchNorm
from hyperflux.backends.torch.compact.driver import plain_settings
from hyperflux.backends.torch.compact.layers import TRANSPOSED, GroupedConvolution, LinearOrConvolution
from hyperflux.backends.torch.compact.ops import Source
from hyperflux.backends.torch.compact.trace import Trace
from hyperflux.backends.torch.compact.tracing import checked_example, prepared
from hyperflux.backends.torch.compact.unpacking import original_weight
from hyperflux.backends.torch.flops import count_cost
from hyperflux.errors import InputError
from hyperflux.gates.costs import ALWAYS, NetworkCost, Product
from hyperflux.gates.kinds import Budget
from hyperflux.gates.latency import LatencyCost, LatencyTable

SHOWN: dict[Budget, str] = {"flops": "FLOPs", "parameters": "parameters"}
"""What the selection says of each gate, with its words."""
MAX_READERS = 3
"""Layers that read the same channels and are named."""
NO_GATE = np.array([ALWAYS])
"""The gates of one entry that is always there."""


@dataclass(frozen=True)
class Side:
    """The gates of a weight's slices along one dimension.

    Attributes:
        dim: The dimension.
        gates: The gate of each slice, (size,); `ALWAYS` where it has none.
    """

    dim: int
    gates: Labels


@dataclass(frozen=True)
class LayerGates:
    """The gates of one layer.

    Attributes:
        name: Its path in the network.
        weight: The name of its weight.
        reads: The gates of the channels that the weight reads.
        makes: The gates of the channels that it makes.
        positions: Positions of a sample at which it is applied.
        kernel: Weights between an input and an output channel.
    """

    name: str
    weight: str
    reads: Side
    makes: Side
    positions: int
    kernel: int


@dataclass(frozen=True)
class ChannelLayout:
    """The gates of a network's channels, numbered layer by layer.

    Attributes:
        sizes: Number of gates by the layer that makes their channels, or "input"; in order.
        layers: The layers that read or make channels, in the order of the network.
        kept: By layer that makes channels without gates, the reason.
        costs: Cost of the network by what it is counted in; its time takes a table, see `latency`.
    """

    sizes: dict[str, int]
    layers: list[LayerGates]
    kept: dict[str, str]
    costs: dict[Budget, NetworkCost]

    @property
    def gates(self) -> int:
        """J."""
        return sum(self.sizes.values())

    def latency(self, table: LatencyTable) -> LatencyCost:
        """The network's time. Raises InputError if the table is of another network."""
        sides = {layer.name: (layer.reads.gates, layer.makes.gates) for layer in self.layers}
        return LatencyCost(list(self.sizes.values()), table, sides)

    def described(self) -> list[tuple[str, str]]:
        """By layer, a line: its channels, what reads them, and what closing one saves; or why they are kept."""
        names, rows, start = list(self.sizes), [], 0
        everything = np.ones(self.gates, np.bool_)
        prices = {unit: self.costs[unit].prices(everything) for unit in SHOWN}
        for name in names:
            own = np.arange(start, start := start + self.sizes[name])
            readers = [layer.name for layer in self.layers if np.isin(layer.reads.gates, own).any()]
            read_by = ", ".join(readers) if len(readers) <= MAX_READERS else f"{len(readers)} layers"
            saved = " and ".join(f"{prices[unit][own].mean():,.0f} {words}" for unit, words in SHOWN.items())
            one = "one saves" if len(own) > 1 else "it saves"
            rows.append((name, f"{len(own):,} gates, read by {read_by}; closing {one} {saved}"))
        return rows + [(name, f"keeps its channels: {why}") for name, why in self.kept.items()]

    def readers(self) -> dict[str, Side]:
        """By name, the weights that read channels with gates."""
        return {layer.weight: layer.reads for layer in self.layers if (layer.reads.gates != ALWAYS).any()}

    def makers(self) -> dict[str, Side]:
        """By name, the weights that make channels with gates."""
        return {layer.weight: layer.makes for layer in self.layers if (layer.makes.gates != ALWAYS).any()}


def channel_layout(
    model: nn.Module, example_input: Any, prunable: Collection[str], *, gate_inputs: bool = False
) -> ChannelLayout:
    """Find the channels of a network that gates can close. Arguments and errors are those of `traced_layout`."""
    return traced_layout(model, example_input, prunable, gate_inputs=gate_inputs).layout


class TracedLayout(NamedTuple):
    """The gates of a network, and what they were found in.

    Attributes:
        layout: The gates.
        module: The network as it was traced: a copy on the CPU, in which layers have the names of the layout.
        example: An input like the one that was given, with two samples where the network takes as many.
    """

    layout: ChannelLayout
    module: nn.Module
    example: tuple[Tensor, ...]


def traced_layout(
    model: nn.Module, example_input: Any, prunable: Collection[str], *, gate_inputs: bool = False
) -> TracedLayout:
    """Find the channels of a network that gates can close, as `compact` would cut them.

    A channel has a gate if some layer reads it, and all layers that read it may be pruned. Channels that can only go
    together share one.

    Args:
        model: A module that torch.fx can trace; it stays as it is.
        example_input: One input (batch, ...), or a tuple of all inputs.
        prunable: Names of the parameters that may be pruned.
        gate_inputs: Whether the input features get gates too.

    Raises:
        InputError: The network can't be read, or no channel can have a gate.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    original = prepared(model)
    inputs = checked_example(original, inputs)
    with plain_settings():
        trace = Trace(original, inputs)
        coupling = Coupling(trace, gate_inputs)
    layout = _Numbering(model, trace, coupling, set(prunable)).layout(original, inputs)
    return TracedLayout(layout, trace.module, trace.resized_examples(inputs)[0])


class _Numbering:
    """Numbers the gates of a coupling, and counts what they cost."""

    def __init__(self, model: nn.Module, trace: Trace, coupling: Coupling, prunable: set[str]) -> None:
        self._names = {name for name, _ in model.named_parameters()}
        self._coupling, self._prunable = coupling, prunable
        self._samples = trace.sizes[0][0][0]
        self._layer_ops = [op for op in coupling.ops if isinstance(op, LinearOrConvolution | GroupedConvolution)]
        self._reasons = self._pinned_reasons()
        self._gate = np.full(coupling.count, ALWAYS, np.intp)
        self.sizes: dict[str, int] = {}
        free = self._read_labels() - self._reasons.keys() - {PINNED}
        for name, made in coupling.makers():
            own = [label for label in dict.fromkeys(made.tolist()) if label in free]
            free -= set(own)
            if own:
                first = sum(self.sizes.values())
                self._gate[own] = np.arange(first, first + len(own))
                while name in self.sizes:  # a layer called "input"
                    name += "'"
                self.sizes[name] = len(own)

    def layout(self, original: nn.Module, inputs: tuple[Tensor, ...]) -> ChannelLayout:
        """The layout of the network that was traced from `original`."""
        if not self.sizes:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self._kept().items())[:3])
            raise InputError(f"gates: no channel of {type(original).__name__} can have one ({reasons})")
        layers = [self._layer(op) for op in self._layer_ops]
        return ChannelLayout(self.sizes, layers, self._kept(), self._costs(layers, original, inputs))

    def _read_labels(self) -> set[int]:
        return {int(label) for op in self._layer_ops for label in self._sides(op)[0]}

    def _sides(self, op: LinearOrConvolution | GroupedConvolution) -> tuple[Labels, Labels]:
        """Labels of the channels that a layer reads and makes."""
        dim = op.dim if isinstance(op, LinearOrConvolution) else 1
        return self._coupling.along(op.input, dim), self._coupling.along(op.output, dim)

    def _pinned_reasons(self) -> dict[int, str]:
        """By label without a gate, the reason."""
        reasons: dict[int, str] = {}
        for op in self._layer_ops:
            read = set(self._sides(op)[0].tolist())
            if isinstance(op, GroupedConvolution) or read == {PINNED}:
                continue
            if original_weight(op.name, self._names) not in self._prunable:
                reasons |= {label: f"read by {op.name}, which is not pruned" for label in read - {PINNED}}
            elif len(read) == 1:
                reasons.setdefault(read.pop(), f"all inputs of {op.name} go together")
        return reasons

    def _kept(self) -> dict[str, str]:
        """By layer whose channels have no gate, the reason."""
        kept: dict[str, str] = {}
        for op in self._layer_ops:
            made = self._sides(op)[1]
            if (self._gate[made] == ALWAYS).all():
                label = int(made[0])
                kept[op.name] = self._reasons.get(label, "read by the output or by a call that can't be cut")
        return kept

    def _layer(self, op: LinearOrConvolution | GroupedConvolution) -> LayerGates:
        read, made = (self._gate[labels] for labels in self._sides(op))
        module, channels = op.module, -1 if isinstance(op.module, nn.Linear) else 1
        transposed = isinstance(module, TRANSPOSED)
        applied = (op.input if transposed else op.output).shape
        positions = math.prod(applied) // applied[channels] // self._samples
        kernel = math.prod(module.weight.shape[2:])
        if isinstance(op, GroupedConvolution):  # it passes channels on, and reads none of its own choice
            kernel, read = kernel * module.in_channels // module.groups, NO_GATE
        name = original_weight(op.name, self._names)
        return LayerGates(
            op.name, name, Side(int(not transposed), read), Side(int(transposed), made), positions, kernel
        )

    def _costs(
        self, layers: Sequence[LayerGates], original: nn.Module, inputs: tuple[Tensor, ...]
    ) -> dict[Budget, NetworkCost]:
        """The network's costs; what no rule accounts for always stays."""
        weights = [Product(layer.kernel, layer.reads.gates, layer.makes.gates) for layer in layers]
        prunable = [product for layer, product in zip(layers, weights, strict=True) if layer.weight in self._prunable]
        flops = [
            Product(2 * layer.positions * p.unit, p.inputs, p.outputs) for layer, p in zip(layers, weights, strict=True)
        ]
        counted = count_cost(original, inputs)
        products: Mapping[Budget, tuple[list[Product], int]] = {
            "sparsity": (prunable, 0),
            "parameters": (weights + self._vectors(), counted.parameters),
            "flops": (flops + self._matrix_products(), counted.dense_flops),
        }
        return {budget: self._cost(*parts) for budget, parts in products.items()}

    def _cost(self, products: list[Product], everything: int) -> NetworkCost:
        sizes = list(self.sizes.values())
        cost = NetworkCost(sizes, products)
        rest = everything - cost.total(np.ones(cost.gates, np.bool_))
        return cost if rest <= 0 else NetworkCost(sizes, [*products, Product(rest, NO_GATE, NO_GATE)])

    def _vectors(self) -> list[Product]:
        """Parameters of one number per channel: biases, scales and shifts, and those that the graph itself reads."""
        found = []
        for op in self._coupling.ops:
            if isinstance(op, LinearOrConvolution | GroupedConvolution) and op.module.bias is not None:
                found.append(Product(1, self._gate[self._sides(op)[1]], NO_GATE))
            elif isinstance(op, BatchNorm) and op.module.weight is not None:
                found.append(Product(2, self._gate[self._coupling.along(op.output, 1)], NO_GATE))
            elif isinstance(op, Source) and op.is_parameter:
                found.append(Product(1, self._gate[self._coupling.of(op.outputs[0]).ravel()], NO_GATE))
        return found

    def _matrix_products(self) -> list[Product]:
        """FLOPs of products of two computed tensors, by matrix."""
        found = []
        for op in self._coupling.ops:
            if isinstance(op, Attention | MatrixProduct):
                matrices = self._coupling.of(op.output)[..., 0, 0].ravel()
                of_one_sample = matrices[: len(matrices) // self._samples]
                found.append(Product(2 * op.multiply_adds, self._gate[of_one_sample], NO_GATE))
        return found
