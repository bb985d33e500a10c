"""Constant propagation forward and liveness backward: find the least that the outputs need."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.data_movement import SIZE_CALLS
from hyperflux.backends.torch.compact.execution import CALL_ERRORS, tensors
from hyperflux.backends.torch.compact.nodes import call_name
from hyperflux.backends.torch.compact.ops import Op, Opaque, Source
from hyperflux.backends.torch.compact.registry import rule
from hyperflux.backends.torch.compact.trace import Trace, abstract_tensors


def analyze(trace: Trace) -> list[Op]:
    """Find constants and live slices of every tensor in a trace.

    A call that can't be rewritten for the smaller tensors around it becomes opaque, and the analysis starts over.

    Args:
        trace: The traced network; its abstract tensors are filled in.

    Returns:
        The rules of all calls, in the order of the graph.
    """
    opaque: dict[fx.Node, str] = {}
    while True:
        trace.reset()
        ops = [
            Opaque(trace, node, opaque[node]) if node in opaque else _propagate_constants(trace, node)
            for node in trace.calls
        ]
        _propagate_liveness(trace, ops)
        trace.update_scalars()
        failed = {
            op.node: f"compaction can't shrink this use of {call_name(op.node)}"
            for op in ops
            if op.needed and not op.can_rewrite()
        }
        if not failed:
            return ops
        opaque |= failed


def _propagate_constants(trace: Trace, node: fx.Node) -> Op:
    """Return a call's rule with its constants found; opaque where the call fails on tensors other than its own."""
    try:
        op = rule(trace, node)
        op.propagate_constants()
        _drop_size_dependent_constants(trace, op)
    except CALL_ERRORS:
        op = Opaque(trace, node, f"compaction does not support this use of {call_name(node)}")
        for tensor in op.outputs:
            tensor.reset()
    return op


def _drop_size_dependent_constants(trace: Trace, op: Op) -> None:
    """Forget constants that differ in another execution, and those that may differ in a size that none has."""
    known = [tensor for tensor in op.outputs if bool(tensor.known.any())]
    if len(trace.sizes) == 1 or isinstance(op, Source) or not known:
        return
    for execution in () if op.is_size_proof else trace.executions[1:]:
        results = tensors(trace.evaluate(op.node, execution))
        for tensor, result in zip(op.outputs, results, strict=True):
            if tensor in known:
                tensor.intersect_constants(result)
    for tensor in known:
        if any(operand.is_sometimes_empty for operand in op.inputs):
            tensor.reset()
        elif bool(tensor.known.any()):
            tensor.keep_constants(op.constants_of_every_size(tensor))


def _propagate_liveness(trace: Trace, ops: list[Op]) -> None:
    """Mark what the outputs read, then what that reads, until nothing changes."""
    every = [tensor for tree in trace.tensors.values() for tensor in abstract_tensors(tree)]
    for tensor in every:
        if not tensor.has_fixed_rank:
            tensor.mark_all_live()
    for node in trace.graph.nodes:
        if node.op in ("output", "placeholder"):
            for tensor in abstract_tensors(trace.tensors.get(node)):
                tensor.mark_all_live()
    while any(tensor.changed for tensor in every):
        for tensor in every:
            tensor.changed = False
        for op in reversed(ops):
            if op.needed:
                op.propagate_liveness()
        if not any(tensor.changed for tensor in every):
            _pin_scalars(trace)
            _keep_shape_sources(trace, ops)


def _is_read(trace: Trace, node: fx.Node) -> bool:
    """Return whether a node turns scalars into tensors, or checks them."""
    return node in trace.tensors or node.op == "output" or call_name(node) == "_assert"


def _pin_scalars(trace: Trace) -> None:
    """Keep tensors whole whose size enters a computation and would change; sizes in a reshape are rewritten instead."""
    trace.update_scalars()
    changed, checked = trace.changed_scalars(), trace.changed_scalars(in_executions=True)
    for node in trace.graph.nodes:
        is_rewritten = node.op in ("call_function", "call_method") and call_name(node) in SIZE_CALLS
        if _is_read(trace, node) and not is_rewritten:
            for source in node.all_input_nodes:
                if source in (checked if call_name(node) == "_assert" else changed):
                    for tensor in _shape_sources(trace, source):
                        tensor.mark_all_live()


def _keep_shape_sources(trace: Trace, ops: list[Op]) -> None:
    """Keep at least one slice of tensors whose shape a live call reads, though nothing may read their values."""
    dead = {op.node for op in ops if not op.needed}
    for node in trace.graph.nodes:
        if _is_read(trace, node) and node not in dead:
            for source in node.all_input_nodes:
                if source not in trace.tensors:
                    for tensor in _shape_sources(trace, source):
                        tensor.mark_present()


def _shape_sources(trace: Trace, node: fx.Node) -> Iterator[AbstractTensor]:
    """Yield the tensors from whose shapes a scalar is computed."""
    for source in node.all_input_nodes:
        if source in trace.tensors:
            yield from abstract_tensors(trace.tensors[source])
        else:
            yield from _shape_sources(trace, source)
