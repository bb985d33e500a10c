"""What stays: the least that the outputs need, found as a fixed point of all rules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from hyperflux.deploy.compact.movement import SIZED
from hyperflux.deploy.compact.ops import Op, Opaque, Source
from hyperflux.deploy.compact.registry import rule
from hyperflux.deploy.compact.runs import FAILURES, Trace, leaves, slots_in
from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.tracing import called


def settled(trace: Trace) -> list[Op]:
    """The rules of all calls, with the constants known and everything kept that has to stay.

    A call that does not fit the smaller tensors around it is made opaque, and all is begun anew.
    """
    opaque: dict[fx.Node, str] = {}
    while True:
        trace.forget()
        ops = [Opaque(trace, node, opaque[node]) if node in opaque else _evaluated(trace, node) for node in trace.calls]
        _spread(trace, ops)
        trace.count_again()
        odd = {op.node: f"{called(op.node)} does not fit smaller tensors" for op in ops if op.needed and not op.fits()}
        if not odd:
            return ops
        opaque |= odd


def _evaluated(trace: Trace, node: fx.Node) -> Op:
    """The rule of a call, its constants known; opaque where the call can't be run on other tensors than its own."""
    try:
        op = rule(trace, node)
        op.evaluate()
        _confirm(trace, op)
    except FAILURES:
        op = Opaque(trace, node, f"{called(node)} is not known to compaction in this use")
        for slot in op.outputs:
            slot.forget()
    return op


def _confirm(trace: Trace, op: Op) -> None:
    """Forget constants that are none in the second run, on inputs of another size."""
    known = [slot for slot in op.outputs if bool(slot.known.any())]
    if trace.sizes[0] == trace.sizes[1] or isinstance(op, Source) or not known:
        return
    results = [leaf for leaf in leaves(trace.run(op.node, run=1)) if isinstance(leaf, Tensor)]
    for slot, result in zip(op.outputs, results, strict=True):
        if slot in known:
            slot.confirm(result)


def _spread(trace: Trace, ops: list[Op]) -> None:
    """Keep what the outputs need, what that needs, and so on, until nothing grows."""
    slots = [slot for tree in trace.slots.values() for slot in slots_in(tree)]
    for slot in slots:
        if not slot.regular:
            slot.require_all()
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
    trace.count_again()
    changed = trace.changed_numbers()
    for node in trace.graph.nodes:
        is_read = node in trace.slots or called(node) == "_assert"
        if is_read and not (node.op in ("call_function", "call_method") and called(node) in SIZED):
            for source in node.all_input_nodes:
                if source in changed:
                    for slot in _read_by(trace, source):
                        slot.require_all()


def _read_by(trace: Trace, node: fx.Node) -> Iterator[Slot]:
    """Tensors whose shape a number is computed from."""
    for source in node.all_input_nodes:
        yield from slots_in(trace.slots[source]) if source in trace.slots else _read_by(trace, source)
