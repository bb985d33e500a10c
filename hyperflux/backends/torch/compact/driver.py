"""Entry points of compaction: analyze, rewrite, repeat until nothing is removed, and check the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hyperflux.backends.torch.arguments import require_module
from hyperflux.backends.torch.compact.analysis import analyze
from hyperflux.backends.torch.compact.data_movement import DataMovement
from hyperflux.backends.torch.compact.equivalence import outputs_match
from hyperflux.backends.torch.compact.execution import Inputs, tensors
from hyperflux.backends.torch.compact.layers import LinearOrConvolution
from hyperflux.backends.torch.compact.nodes import call_name
from hyperflux.backends.torch.compact.ops import Op
from hyperflux.backends.torch.compact.removed import (
    RemovedChannels,
    layer_counts,
    merge_removed,
    removed_by,
    unread_inputs,
)
from hyperflux.backends.torch.compact.trace import Trace
from hyperflux.backends.torch.compact.tracing import checked_example, prepared
from hyperflux.errors import InputError, RunError
from hyperflux.io.ranges import true_or_false


@dataclass(frozen=True)
class Compaction:
    """A smaller module, and how it differs from the original.

    Attributes:
        module: The smaller module, on the CPU and in evaluation mode.
        removed: By name, every layer that lost channels.
        unread: By layer that reads the network's input directly, the input channels (of a linear layer: features) that
            it does not use.
        inputs: With `drop_inputs`, the indices of the input features that the module takes, else None.
        left_alone: By layer or call that could not be cut, the reason.
        weights_before: Elements of all parameters of the original.
        weights_after: Elements of all parameters of the smaller module.
    """

    module: fx.GraphModule
    removed: dict[str, RemovedChannels]
    unread: dict[str, tuple[int, ...]]
    inputs: Tensor | None
    left_alone: dict[str, str]
    weights_before: int
    weights_after: int


def compact(model: nn.Module, example_input: Tensor | Inputs, *, drop_inputs: bool = False) -> fx.GraphModule:
    """Return a smaller module that computes the same function in evaluation mode.

    The result is made of ordinary layers under their own names, in evaluation mode and on the CPU; the original stays
    as it is. It takes inputs of every batch size, and of every height and width that the original takes.
    `compaction` does the same and reports what was removed.

    Args:
        model: A module that torch.fx can trace.
        example_input: One input (batch, ...), or a tuple of all inputs, of any batch size and on any device.
        drop_inputs: Whether the result takes only the input features that are read:
            `x.flatten(1)[:, compaction(...).inputs]`.

    Returns:
        The smaller module.

    Raises:
        InputError: torch.fx can't trace the module, it does not take the example, or `drop_inputs` is not possible.
        RunError: The smaller module's outputs differ from the original's.
    """
    return compaction(model, example_input, drop_inputs=drop_inputs).module


def compaction(model: nn.Module, example_input: Tensor | Inputs, *, drop_inputs: bool = False) -> Compaction:
    """Remove every unit and channel that no longer matters, and report which.

    A channel is removed when nothing live reads it, or when it is the same constant for every input; the constant is
    folded into what follows. Channels that are added to each other are removed together or not at all.

    Args:
        model: A module that torch.fx can trace.
        example_input: One input (batch, ...), or a tuple of all inputs, of any batch size.
        drop_inputs: Whether the result takes only the input features that are read. One input must go to one linear
            layer.

    Returns:
        The smaller module and what was removed; indices refer to the original network.

    Raises:
        InputError: torch.fx can't trace the module, it does not take the example, or `drop_inputs` is not possible.
        RunError: The smaller module's outputs differ from the original's.
    """
    require_module("model", model)
    drop_inputs = true_or_false("drop_inputs", drop_inputs)
    original = prepared(model)
    inputs = checked_example(original, example_input if isinstance(example_input, tuple) else (example_input,))
    with plain_settings():
        return _compaction(original, inputs, drop_inputs)


def _compaction(original: nn.Module, inputs: Inputs, drop_inputs: bool) -> Compaction:
    trace = Trace(original, inputs)
    ops = analyze(trace)
    removed, unread, counts = dict[str, RemovedChannels](), unread_inputs(ops), layer_counts(ops)
    while step := removed_by(ops):  # once smaller, a tensor may be constant, or a convolution have one group left
        _rewrite(trace, ops)
        removed = merge_removed(removed, step, counts)
        trace = Trace(trace.module, inputs, earlier=trace)
        ops = analyze(trace)
        counts = layer_counts(ops) | counts  # a layer whose other calls are gone can be cut now
    taken = _drop_inputs(trace, ops) if drop_inputs else None
    result = Compaction(
        module=trace.module,
        removed=removed,
        unread=unread,
        inputs=taken,
        left_alone={_name(op): op.reason for op in ops if op.reason},
        weights_before=count_weights(original),
        weights_after=count_weights(trace.module),
    )
    _check_outputs(original, result, [inputs, *trace.resized_examples(inputs)])
    return result


@contextmanager
def plain_settings() -> Iterator[None]:
    """Leave inference mode and autocast, under which the caller may be, so that the result does not depend on them."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


def count_weights(module: nn.Module) -> int:
    """Return the number of elements of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _rewrite(trace: Trace, ops: list[Op]) -> None:
    """Make the module smaller, without calls that nothing reads and modules that nothing calls."""
    for op in ops:
        if op.needed:
            op.rewrite()
    trace.graph.eliminate_dead_code()
    trace.graph.lint()
    trace.module.delete_all_unused_submodules()
    trace.module.recompile()


def _drop_inputs(trace: Trace, ops: list[Op]) -> Tensor:
    """Make the module take only the features that its first linear layer reads, and return their indices.

    Raises InputError unless one input goes to one linear layer, through calls that keep its features in order.
    """
    inputs = [node for node in trace.graph.nodes if node.op == "placeholder"]
    rules, node, indices = {op.node: op for op in ops}, inputs[0], None
    while True:
        users = [user for user in node.users if user in rules]
        op = rules[users[0]] if len(users) == 1 and len(inputs) == 1 else None
        if isinstance(op, LinearOrConvolution) and op.selects_inputs and len(op.input.shape) == 2:
            break
        is_selection = isinstance(op, DataMovement) and call_name(op.node) == "index_select" and indices is None
        if is_selection:
            indices = getattr(trace.module, str(op.node.args[2]))  # type: ignore[union-attr]
        elif not (isinstance(op, DataMovement) and op.preserves_order):
            raise InputError(
                "compact: drop_inputs needs one input that goes to one linear layer, flattened and in order"
            )
        node = op.node  # type: ignore[union-attr]
    (source,) = op.node.all_input_nodes
    op.node.replace_input_with(source, inputs[0])
    trace.graph.eliminate_dead_code()
    trace.module.recompile()
    return torch.arange(op.input.shape[-1]) if indices is None else indices


def _check_outputs(original: nn.Module, result: Compaction, examples: list[Inputs]) -> None:
    """Raise RunError where the outputs differ, on inputs of every size that was tried."""
    for inputs in examples:
        taken = inputs if result.inputs is None else (inputs[0].flatten(1)[:, result.inputs],)
        with torch.no_grad():
            expected = tensors(original(*inputs))
            found = tensors(result.module(*taken))
        if len(expected) != len(found) or not all(map(outputs_match, found, expected)):
            raise RunError("compact: the smaller network computes different outputs; please report this as a bug")


def _name(op: Op) -> str:
    """Return the module's name, or that of the call in the graph."""
    return str(op.node.target if op.node.op == "call_module" else op.node.name)
