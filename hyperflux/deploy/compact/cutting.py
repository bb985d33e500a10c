"""Cutting out of a network, exactly, what its zeros have made superfluous."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hyperflux.deploy.agreement import agrees
from hyperflux.deploy.compact.layers import GroupedConvolution, Layer, channels
from hyperflux.deploy.compact.movement import Movement
from hyperflux.deploy.compact.norms import ChannelNorm
from hyperflux.deploy.compact.ops import Op
from hyperflux.deploy.compact.runs import Inputs, Trace, leaves
from hyperflux.deploy.compact.settling import settled
from hyperflux.deploy.compact.tracing import called
from hyperflux.errors import InputError, RunError


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
    layers under their own names, in evaluation mode and on the CPU; the original is left as it is. It takes inputs of
    every batch size, and of every height and width that the original takes and that were found by trying. With
    `drop_inputs` it takes only the input features that are read, `x.flatten(1)[:, compaction(...).inputs]`. Raises
    InputError for a module that torch.fx can't trace, RunError where the check of the outputs fails.
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
    ops = settled(trace)
    removed, unread, sizes = dict[str, Cut](), _unread(ops), _sizes(ops)
    while again := _removed(ops):  # what is smaller may be a constant as a whole, or a convolution of one group
        _rewrite(trace, ops)
        removed = _joined(removed, again, sizes)
        trace = Trace(trace.module, inputs, sizes=trace.sizes)
        ops = settled(trace)
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
    _check(model, result, [inputs, *trace.own_inputs(inputs)])
    return result


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
    """Let the module take only the features that its one first layer reads; gives their places.

    Raises InputError unless one input goes to one linear layer, through calls that leave its features in their order.
    """
    inputs = [node for node in trace.graph.nodes if node.op == "placeholder"]
    rules, node, numbers = {op.node: op for op in ops}, inputs[0], None
    while True:
        users = [user for user in node.users if user in rules]
        op = rules[users[0]] if len(users) == 1 and len(inputs) == 1 else None
        if isinstance(op, Layer) and op.gathers and len(op.input.shape) == 2:
            break
        picked = isinstance(op, Movement) and called(op.node) == "index_select" and numbers is None
        if picked:
            numbers = getattr(trace.module, str(op.node.args[2]))  # type: ignore[union-attr]
        elif not (isinstance(op, Movement) and op.keeps_order):
            raise InputError("compact: drop_inputs needs one input that goes to one linear layer, flat and in order")
        node = op.node  # type: ignore[union-attr]
    op.node.args = (inputs[0], *op.node.args[1:])
    trace.graph.eliminate_dead_code()
    trace.module.recompile()
    return torch.arange(op.input.shape[-1]) if numbers is None else numbers


def _check(model: nn.Module, result: Compaction, examples: list[Inputs]) -> None:
    """Compare outputs on inputs of every size that the network takes. Raises RunError where they differ."""
    original = copy.deepcopy(model).cpu().eval()
    for inputs in examples:
        taken = inputs if result.inputs is None else (inputs[0].flatten(1)[:, result.inputs],)
        with torch.no_grad():
            wanted, again = _tensors(original(*inputs)), _tensors(original(*inputs))
            found = _tensors(result.module(*taken))
        if not all(map(torch.equal, wanted, again)) and not any(tensor.isnan().any() for tensor in wanted):
            raise InputError("compact: the module draws random numbers in evaluation mode, so nothing can be compared")
        if len(wanted) != len(found) or not all(map(agrees, found, wanted)):
            raise RunError("compact: the smaller network computes something else; please report this network as a bug")


def _places(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _name(op: Op) -> str:
    """A module's own name, else that of the call in the graph."""
    return str(op.node.target if op.node.op == "call_module" else op.node.name)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor)]
