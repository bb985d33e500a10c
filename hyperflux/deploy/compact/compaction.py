"""Cutting out of a network, exactly, what its zeros have made superfluous."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hyperflux.deploy.compact.layers import ChannelNorm, GroupedConvolution, Layer, channels
from hyperflux.deploy.compact.movement import SIZED
from hyperflux.deploy.compact.ops import Op, Opaque
from hyperflux.deploy.compact.registry import rule
from hyperflux.deploy.compact.tracing import Inputs, Trace, called, leaves, slots_in
from hyperflux.errors import InputError

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of an output, as a share of the largest output, that the check at the end lets pass."""


@dataclass(frozen=True)
class Cut:
    """Channels that a layer has lost: indices into its original inputs and outputs."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Compaction:
    """A smaller module, and what is unlike the original.

    `removed` names every layer that has lost channels. `unread` lists, for each layer that reads the network's input
    directly, the input channels (of a linear layer: features) that it does not use; `inputs` are those that the module
    takes where they were dropped on request, else None. `left_alone` says why of each layer that could not be cut.
    """

    module: fx.GraphModule
    removed: dict[str, Cut]
    unread: dict[str, tuple[int, ...]]
    inputs: Tensor | None
    left_alone: dict[str, str]
    weights_before: int
    weights_after: int


def compact(model: nn.Module, example_input: Tensor | Inputs, *, drop_inputs: bool = False) -> fx.GraphModule:
    """A smaller module that computes the same function in evaluation mode; see `compaction` for what was cut.

    `example_input` is one input, or a tuple of several, of any batch size. The result is a plain module of ordinary
    layers under their own names, in evaluation mode and on the CPU; the original is left as it is. With `drop_inputs`
    it takes only the input features that are read, `x.flatten(1)[:, compaction(...).inputs]`. Raises InputError for a
    module that torch.fx can't trace.
    """
    return compaction(model, example_input, drop_inputs=drop_inputs).module


def compaction(model: nn.Module, example_input: Tensor | Inputs, *, drop_inputs: bool = False) -> Compaction:
    """Remove every unit and channel that no longer matters, to a fixed point, and say which.

    A channel goes when nothing that is left reads it, or when it is the same constant for every input: then it is
    folded into what follows. Channels that are added to each other go only together. Arguments and errors as
    `compact`'s; also InputError with `drop_inputs` where more than one layer reads the input, or no linear one does.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    trace = Trace(model, inputs)
    ops = _settled(trace)
    removed, unread, sizes = dict[str, Cut](), _unread(ops), _sizes(ops)
    while again := _removed(ops):  # what is smaller may be a constant as a whole, or a convolution of one group
        _rewrite(trace, ops)
        removed = _joined(removed, again, sizes)
        trace = Trace(trace.module, inputs)
        ops = _settled(trace)
    taken = _drop_inputs(trace, ops) if drop_inputs else None
    result = Compaction(
        module=trace.module,
        removed=removed,
        unread=unread,
        inputs=taken,
        left_alone={_name(op): op.why for op in ops if op.why},
        weights_before=_weights(model),
        weights_after=_weights(trace.module),
    )
    _check(model, result, inputs)
    return result


def _settled(trace: Trace) -> list[Op]:
    """The rules of all calls, with the constants known and everything kept that has to stay."""
    opaque: set[fx.Node] = set()
    while True:
        trace.forget()
        ops = [Opaque(trace, node) if node in opaque else _evaluated(trace, node) for node in trace.calls]
        _spread(trace, ops)
        odd = [op.node for op in ops if op.needed and not op.fits()]
        if not odd:
            return ops
        opaque |= set(odd)


def _evaluated(trace: Trace, node: fx.Node) -> Op:
    """The rule of a call, its constants known; opaque where the call can't be run on other tensors than its own."""
    try:
        op = rule(trace, node)
        op.evaluate()
    except (RuntimeError, ValueError, TypeError, IndexError):
        op = Opaque(trace, node, f"{called(node)} is not known to compaction in this use")
    return op


def _spread(trace: Trace, ops: list[Op]) -> None:
    """Keep what the outputs need, what that needs, and so on, until nothing grows."""
    slots = [slot for tree in trace.slots.values() for slot in slots_in(tree)]
    for node in trace.graph.nodes:
        if node.op in ("output", "placeholder"):
            for slot in slots_in(trace.slots.get(node)):
                slot.require_all()
    while any(slot.grown for slot in slots):
        for slot in slots:
            slot.grown = False
        for op in reversed(ops):
            if op.needed:
                op.spread()
        if not any(slot.grown for slot in slots):
            _hold_numbers(trace)


def _hold_numbers(trace: Trace) -> None:
    """Keep whole what a number is computed from that would change, unless it is only a size in a reshape."""
    now = trace.scalars_now
    changed = {node for node, value in trace.scalars.items() if now[node] != value}
    for node in trace.slots:
        if not (node.op in ("call_function", "call_method") and called(node) in SIZED):
            for source in node.all_input_nodes:
                if source in changed:
                    for slot in _read_by(trace, source):
                        slot.require_all()


def _read_by(trace: Trace, node: fx.Node) -> Iterator[Any]:
    """Tensors whose shape a number is computed from."""
    for source in node.all_input_nodes:
        yield from slots_in(trace.slots[source]) if source in trace.slots else _read_by(trace, source)


def _removed(ops: list[Op]) -> dict[str, Cut]:
    """What every layer loses."""
    layers = {op.name: op for op in ops if isinstance(op, Layer | GroupedConvolution | ChannelNorm)}
    cuts = {name: _cut(op) if op.needed else _everything(op) for name, op in layers.items()}
    return {name: cut for name, cut in cuts.items() if cut != Cut((), ())}


def _sizes(ops: list[Op]) -> dict[str, tuple[int, int]]:
    """Input and output channels of every layer."""
    return {op.name: channels(op.module) for op in ops if isinstance(op, Layer | GroupedConvolution | ChannelNorm)}


def _joined(first: dict[str, Cut], second: dict[str, Cut], sizes: dict[str, tuple[int, int]]) -> dict[str, Cut]:
    """Two removals after each other as one, all indices into the original."""
    joined = dict(first)
    for name, cut in second.items():
        (inputs, outputs), before = sizes[name], first.get(name, Cut((), ()))
        joined[name] = Cut(_union(inputs, before.inputs, cut.inputs), _union(outputs, before.outputs, cut.outputs))
    return joined


def _union(size: int, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Places among `size` that go first, and then among those that are left."""
    left = [place for place in range(size) if place not in set(first)]
    return tuple(sorted([*first, *(left[place] for place in second)]))


def _unread(ops: list[Op]) -> dict[str, tuple[int, ...]]:
    """Channels of the network's own input that a layer does not use."""
    readers = [op for op in ops if isinstance(op, Layer) and op.needed and op.input.raw]
    found = {op.name: _places(~op.read[op.output.kept[op.dim]].any(0)) for op in readers}
    return {name: places for name, places in found.items() if places}


def _rewrite(trace: Trace, ops: list[Op]) -> None:
    """Make the module smaller, and leave out calls that nobody reads and modules that nothing calls."""
    for op in ops:
        if op.needed:
            op.rewrite()
    trace.graph.eliminate_dead_code()
    trace.graph.lint()
    trace.module.delete_all_unused_submodules()
    trace.module.recompile()


def _cut(op: Any) -> Cut:
    """Which channels a layer loses."""
    dim = op.dim if isinstance(op, Layer) else 1
    inputs = op.kept_inputs() if isinstance(op, Layer) else op.input.kept[1]
    return Cut(_places(~inputs), _places(~op.output.kept[dim]))


def _everything(op: Any) -> Cut:
    """All channels of a layer that is not called any more."""
    dim = op.dim if isinstance(op, Layer) else 1
    return Cut(tuple(range(op.input.shape[dim])), tuple(range(op.output.shape[dim])))


def _drop_inputs(trace: Trace, ops: list[Op]) -> Tensor:
    """Let the module take only the features that its one first layer reads; gives their places."""
    inputs = [node for node in trace.graph.nodes if node.op == "placeholder"]
    readers = [op for op in ops if isinstance(op, Layer) and op.needed and op.input.raw]
    if len(readers) != 1 or len(inputs) != 1 or not readers[0].gathers or math.prod(readers[0].input.shape[:-1]) != 1:
        raise InputError(
            "compact: drop_inputs needs one input that one linear layer reads, flat; "
            f"here {len(readers)} layers read {len(inputs)}"
        )
    (op,) = readers
    numbers = torch.arange(op.input.shape[-1])
    picked = op.node.args[0]
    while isinstance(picked, fx.Node) and called(picked) == "index_select":
        places = getattr(trace.module, str(picked.args[2]))
        numbers = places[numbers] if len(numbers) <= len(places) else places
        picked = picked.args[0]
    op.node.args = (picked, *op.node.args[1:])
    trace.graph.eliminate_dead_code()
    trace.module.recompile()
    return numbers


def _check(model: nn.Module, result: Compaction, inputs: Inputs) -> None:
    """Compare outputs on the example. Raises RuntimeError where they differ: then a rule is wrong, not the user."""
    original = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        wanted = original(*(x.cpu() for x in inputs))
        taken = [x.cpu().flatten(1)[:, result.inputs] for x in inputs] if result.inputs is not None else inputs
        found = result.module(*(x.cpu() for x in taken))
    for a, b in zip(_tensors(wanted), _tensors(found), strict=True):
        allowed = TOLERANCES.get(a.dtype, 0.0) * max(float(a.abs().max()), 1e-30) if a.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True):
            raise RuntimeError("compact: the smaller network's outputs differ; please report this network as a bug")


def _places(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _name(op: Op) -> str:
    """A module's own name, else that of the call in the graph."""
    return str(op.node.target if op.node.op == "call_module" else op.node.name)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor)]
