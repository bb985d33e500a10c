"""Batch norm in evaluation mode: one scale and one shift per channel."""

from __future__ import annotations

from typing import Any

from torch import fx

from hyperflux.backends.torch.compact.layers import copy_without_tensors, set_parameter
from hyperflux.backends.torch.compact.ops import Op
from hyperflux.backends.torch.compact.trace import Trace


class BatchNorm(Op):
    """A batch norm module."""

    is_size_proof = True

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.module: Any = trace.submodule(node)
        self.name = str(node.target)
        (self.input,), (self.output,) = self.inputs, self.outputs

    def propagate_constants(self) -> None:
        """A channel is constant where the operand is, and where the scale is 0."""
        known, value = self.input.known, self.trace.evaluate(self.node)
        if self.module.weight is not None:
            zero_scale = (self.module.weight.detach() == 0).view(1, -1, *[1] * (value.ndim - 2)).expand(value.shape)
            known = known | zero_scale
        self.output.set_constants(value, known)

    def propagate_liveness(self) -> None:
        """Channels of operand and result stay together."""
        self.input.mark_live(self.output.live)
        self.output.mark_live(self.input.live)

    def rewrite(self) -> None:
        """Cut scale, shift and statistics."""
        live = self.output.live[1]
        if live.all():
            return
        layer = copy_without_tensors(self.module)
        layer.num_features = int(live.sum())
        for name in ("weight", "bias"):
            old = getattr(self.module, name)
            set_parameter(layer, name, None if old is None else old.detach()[live], self.module.running_mean)
        for name in ("running_mean", "running_var"):
            layer.register_buffer(name, getattr(self.module, name)[live].clone())
        self.trace.module.set_submodule(self.name, layer)


class FunctionalBatchNorm(Op):
    """The function `batch_norm`. The graph reads its statistics, scale and shift itself; `Source` cuts those."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.input = trace.tensors[node.args[0]]  # type: ignore[index]
        self.vectors = [tensor for tensor in self.inputs if tensor is not self.input]
        (self.output,) = self.outputs

    @staticmethod
    def supports(node: fx.Node) -> bool:
        """Return whether the call uses given statistics, with parameters or buffers for all its vectors."""
        vectors = [source for source in node.all_input_nodes if source is not node.args[0]]
        training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
        return training is False and len(vectors) >= 2 and all(source.op == "get_attr" for source in vectors)

    def propagate_constants(self) -> None:
        """A channel is constant where the operand is."""
        self.output.set_constants(self.trace.evaluate(self.node), self.input.known)

    def propagate_liveness(self) -> None:
        """Channels of operand, result and all vectors stay together."""
        self.input.mark_live(self.output.live)
        self.output.mark_live(self.input.live)
        for vector in self.vectors:
            vector.mark_live([self.output.live[1]])
            self.output.mark_live_along(1, vector.live[0])
