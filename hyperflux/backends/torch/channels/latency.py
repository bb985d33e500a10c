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

from hyperflux.backends.torch.channels.layout import ChannelLayout, LayerGates
from hyperflux.backends.torch.compact import compact
from hyperflux.backends.torch.compact.execution import Inputs
from hyperflux.gates.costs import ALWAYS, Labels
from hyperflux.gates.latency import MAX_NANOSECONDS, LatencyTable, LayerTimes, first_of_each
from hyperflux.timing import Turn, interleave

SECONDS = 3.0
"""About how long all is timed; a round takes as long as several tens of calls of the network."""
FEWEST, MOST = 1, 15
"""Rounds."""
QUARTERS = 4

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


def measure(
    graph: nn.Module, layout: ChannelLayout, example: Inputs, inputs: Inputs, device: torch.device
) -> LatencyTable:
    """Time a network and its layers, interleaved, in evaluation mode and without autocast.

    A layer is timed with one channel, and a quarter, half, three quarters and all of its channels, on either side that
    has gates. Layers that are alike are timed once. The network is timed whole, and with the first gate of each layer.

    Args:
        graph: The traced network, which is moved to the device.
        layout: Its gates.
        example: A small batch, to find the smallest network with.
        inputs: The batch to time.
        device: Where to time.
    """
    layers = layout.layers
    least = _smallest(graph, layout, example).to(device)
    graph, inputs = graph.to(device), tuple(own.to(device) for own in inputs)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        calls = _calls(graph, layers, inputs)
        counts = {layer.name: (_counts(layer.reads.gates), _made(layer, calls[layer.name])) for layer in layers}
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
                        wanted[key] = _layer_call(call, layer, own, outputs, device)
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


def _smallest(graph: nn.Module, layout: ChannelLayout, example: Inputs) -> nn.Module:
    """The network with the first gate of each layer alone, compacted."""
    closed = np.append(~first_of_each(layout.sizes.values()), False)  # ALWAYS is the last
    cut = copy.deepcopy(graph)
    with torch.no_grad():
        for layer in layout.layers:
            weight: Any = cut.get_submodule(layer.name).weight
            if len(layer.reads.gates) == weight.shape[layer.reads.dim]:
                weight.index_fill_(layer.reads.dim, torch.from_numpy(np.flatnonzero(closed[layer.reads.gates])), 0)
    return compact(cut, example)


def _calls(graph: nn.Module, layers: Sequence[LayerGates], inputs: Inputs) -> dict[str, _Call]:
    """How the network calls each layer, from one pass."""
    found: dict[str, _Call] = {}

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        found[name] = _Call(module, tuple(given[0].shape), tuple(output.shape), _channels_last(given[0]))

    hooks = [
        graph.get_submodule(layer.name).register_forward_hook(functools.partial(note, layer.name)) for layer in layers
    ]
    graph(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def _channels_last(tensor: Tensor) -> bool:
    is_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return is_last and not tensor.is_contiguous()


def _counts(gates: Labels) -> list[int]:
    """The numbers of channels of a side at which a layer is timed: all alone where none has a gate."""
    size = len(gates)
    if (gates == ALWAYS).all():
        return [size]
    return sorted({1, *(math.ceil(size * part / QUARTERS) for part in range(1, QUARTERS + 1))})


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


def _layer_call(
    call: _Call, layer: LayerGates, inputs: int, outputs: int, device: torch.device
) -> Callable[[], object]:
    """A call of the layer with its first inputs and outputs alone. No random number is drawn that the user's are."""
    module = copy.copy(call.module)
    module._parameters = dict(call.module._parameters)
    weight = call.module.weight.narrow(layer.makes.dim, 0, outputs)
    groups = getattr(call.module, "groups", 1)
    if groups > 1:
        module.groups = outputs * groups // len(layer.makes.gates)
        inputs = call.input[1] // groups * module.groups
    else:
        weight = weight.narrow(layer.reads.dim, 0, inputs)
    module.weight = nn.Parameter(_stored(weight, _channels_last(call.module.weight)), requires_grad=False)
    if call.module.bias is not None:
        module.bias = nn.Parameter(call.module.bias[:outputs].clone(), requires_grad=False)
    given = _random(_shape(call.input, call, inputs), weight.dtype, device)
    return functools.partial(module, _stored(given, call.last))


def _stored(tensor: Tensor, channels_last: bool) -> Tensor:
    """A tensor of its own, with channels last or first in memory."""
    return tensor.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal random numbers, drawn apart from the user's."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _nanoseconds(calls: Mapping[Key, Callable[[], object]], wait: Callable[[], None]) -> dict[Key, int]:
    """Median times of calls that take turns."""
    turns = {str(number): Turn.of(call, wait) for number, call in enumerate(calls.values())}
    started = time.perf_counter()
    for turn in turns.values():
        turn.run()
    wait()
    rounds = int(SECONDS / max(time.perf_counter() - started, 1e-9))
    timings = interleave(turns, min(max(rounds, FEWEST), MOST), wait)
    return {
        key: min(max(round(1e9 * timing.seconds), 1), MAX_NANOSECONDS)
        for key, timing in zip(calls, timings, strict=True)
    }


def wait_for(device: torch.device) -> None:
    """Return when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
