"""Measures how long a network and each of its layers take, alone and with fewer channels, on the network's device."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperflux.backends.torch.channels.layout import LayerGates, TracedLayout
from hyperflux.backends.torch.compact import compact
from hyperflux.backends.torch.compact.execution import Inputs
from hyperflux.gates.costs import ALWAYS, Labels
from hyperflux.gates.latency import MAX_NANOSECONDS, LatencyTable, LayerTimes, first_of_each
from hyperflux.timing import Turn, fastest

SECONDS = 3.0
"""About how long all is timed; a round takes as long as up to sixteen calls of the network."""
FEWEST, MOST = 2, 15
"""Rounds, after a first one."""
QUARTERS = 4
DRAWN = 1 << 16
"""Different random numbers in a layer's input or weight."""

Key = Hashable
"""What layers that take the same time have in common, and the numbers of channels."""


@dataclass(frozen=True)
class _Call:
    """How the network calls a layer.

    Attributes:
        module: The layer.
        input: The shape of its input.
        output: The shape of its output.
        last: Whether its input has channels last in memory.
    """

    module: Any
    input: tuple[int, ...]
    output: tuple[int, ...]
    last: bool


def measure(traced: TracedLayout, inputs: Inputs, device: torch.device) -> LatencyTable:
    """Time a network and its layers, in turns, in evaluation mode and without autocast.

    A layer is timed with one channel, with a quarter, half and three quarters of its channels and one more than these,
    and with all, on either side that has gates. Layers that are alike are timed once. The network is timed whole, and
    with the first gate of each layer.

    Args:
        traced: The network, which is moved to the device, and its gates.
        inputs: The batch to time.
        device: Where to time.
    """
    layers = traced.layout.layers
    least = _smallest(traced).to(device)
    graph, inputs = traced.module.to(device), tuple(own.to(device) for own in inputs)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        calls = _calls(graph, layers, inputs)
        counts = {layer.name: (_counts(layer.reads.gates), _made(layer, calls[layer.name])) for layer in layers}
        numbers = (
            _Numbers(max(math.prod(call.input) for call in calls.values()), device),
            _Numbers(max(call.module.weight.numel() for call in calls.values()), device),
        )
        wanted: dict[Key, Callable[[], object]] = {
            "network": functools.partial(graph, *inputs),
            "smallest network": functools.partial(least, *inputs),
        }
        for layer in layers:
            call, (read, made) = calls[layer.name], counts[layer.name]
            for outputs in made:
                for own in read:
                    key = _key(call, own, outputs)
                    if key not in wanted:
                        wanted[key] = _layer_call(call, layer, own, outputs, *numbers)
        found = _nanoseconds(wanted, functools.partial(wait_for, device))
    times = []
    for layer in layers:
        call, (read, made) = calls[layer.name], counts[layer.name]
        grid = [[found[_key(call, own, outputs)] for outputs in made] for own in read]
        times.append(LayerTimes(layer.name, read, made, grid, math.prod(call.output)))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    dtype = next((own.dtype for own in graph.parameters()), torch.get_default_dtype())
    threads = torch.get_num_threads()
    return LatencyTable(
        name,
        threads,
        str(dtype).removeprefix("torch."),
        len(inputs[0]),
        found["network"],
        found["smallest network"],
        times,
    )


def _smallest(traced: TracedLayout) -> nn.Module:
    """The network with the first gate of each layer alone, compacted."""
    closed = np.append(~first_of_each(traced.layout.sizes.values()), False)  # ALWAYS is the last
    cut = copy.deepcopy(traced.module)
    with torch.no_grad():
        for layer in traced.layout.layers:
            weight: Any = cut.get_submodule(layer.name).weight
            if len(layer.reads.gates) == weight.shape[layer.reads.dim]:
                weight.index_fill_(layer.reads.dim, torch.from_numpy(np.flatnonzero(closed[layer.reads.gates])), 0)
    return compact(cut, traced.example)


def _calls(graph: nn.Module, layers: Sequence[LayerGates], inputs: Inputs) -> dict[str, _Call]:
    """How the network calls each layer, from one pass."""
    found: dict[str, _Call] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        (given,) = (*args, *named.values())
        found[name] = _Call(module, tuple(given.shape), tuple(output.shape), _channels_last(given))

    hooks = [
        graph.get_submodule(layer.name).register_forward_hook(functools.partial(note, layer.name), with_kwargs=True)
        for layer in layers
    ]
    graph(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def _channels_last(tensor: Tensor) -> bool:
    is_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return is_last and not tensor.is_contiguous()


def _counts(gates: Labels) -> list[int]:
    """The numbers of channels of a side at which a layer is timed: all alone where none has a gate.

    Kernels fill their last block, of eight channels say, whether it is needed or not: one channel more than a quarter
    may take much longer than a quarter.
    """
    size = len(gates)
    if (gates == ALWAYS).all():
        return [size]
    quarters = {math.ceil(size * part / QUARTERS) for part in range(1, QUARTERS)}
    return sorted({1, *quarters, *(count + 1 for count in quarters if count < size), size})


def _made(layer: LayerGates, call: _Call) -> list[int]:
    """The same for outputs; of a grouped convolution in whole groups."""
    groups = getattr(call.module, "groups", 1)
    each = len(layer.makes.gates) // groups
    return [each * count for count in _counts(layer.makes.gates[::each])] if groups > 1 else _counts(layer.makes.gates)


def _key(call: _Call, inputs: int, outputs: int) -> Key:
    return repr(call.module), call.input, call.output, call.last, inputs, outputs


def _shape(shape: tuple[int, ...], call: _Call, channels: int) -> tuple[int, ...]:
    """A shape with other channels."""
    dim = len(shape) - 1 if isinstance(call.module, nn.Linear) else 1
    return (*shape[:dim], channels, *shape[dim + 1 :])


class _Numbers:
    """Random numbers on a device, drawn apart from the user's; calls share them, so that many take little memory."""

    def __init__(self, size: int, device: torch.device) -> None:
        """At most `size` numbers are needed at once."""
        self._size, self._device = size, device
        self._known: dict[torch.dtype, Tensor] = {}

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
        """A tensor without gaps, with channels last or first in memory."""
        if dtype not in self._known:
            drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).to(self._device, dtype)
            self._known[dtype] = drawn.repeat(-(-self._size // DRAWN))
        flat = self._known[dtype][: math.prod(shape)]
        if not channels_last:
            return flat.view(*shape)
        first, channels, *others = shape
        return flat.view(first, *others, channels).permute(0, 3, 1, 2)


def _layer_call(
    call: _Call, layer: LayerGates, inputs: int, outputs: int, given: _Numbers, weights: _Numbers
) -> Callable[[], object]:
    """A call of a layer like this one, with so many inputs and outputs."""
    module, own = copy.copy(call.module), call.module.weight
    module._parameters = dict(call.module._parameters)
    shape, groups = list(own.shape), getattr(module, "groups", 1)
    shape[layer.makes.dim] = outputs
    if groups > 1:
        module.groups = outputs * groups // len(layer.makes.gates)
        inputs = call.input[1] // groups * module.groups
    else:
        shape[layer.reads.dim] = inputs
    weight = weights.tensor(shape, own.dtype, _channels_last(own))
    module.weight = nn.Parameter(weight, requires_grad=False)
    if call.module.bias is not None:
        module.bias = nn.Parameter(weights.tensor([outputs], own.dtype, False), requires_grad=False)
    return functools.partial(module, given.tensor(_shape(call.input, call, inputs), own.dtype, call.last))


def _nanoseconds(calls: Mapping[Key, Callable[[], object]], wait: Callable[[], None]) -> dict[Key, int]:
    """Least times of calls that take turns."""
    turns = [Turn.of(call, wait) for call in calls.values()]
    started = time.perf_counter()
    first = fastest(turns, 1, wait)
    rounds = int(SECONDS / max(time.perf_counter() - started, 1e-9))
    others = fastest(turns, min(max(rounds, FEWEST), MOST), wait)
    seconds = map(min, first, others)
    return {key: min(max(round(1e9 * own), 1), MAX_NANOSECONDS) for key, own in zip(calls, seconds, strict=True)}


def wait_for(device: torch.device) -> None:
    """Return when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
