"""Batch norm in evaluation mode: one scale and one shift a channel."""

from __future__ import annotations

from typing import Any

from torch import fx

from hyperflux.deploy.compact.layers import set_parameter, shell
from hyperflux.deploy.compact.ops import Op
from hyperflux.deploy.compact.runs import Trace


class ChannelNorm(Op):
    """The module."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.module: Any = trace.submodule(node)
        self.name = str(node.target)
        (self.input,), (self.output,) = self.inputs, self.outputs

    def evaluate(self) -> None:
        """Known where the operand is, and where the scale is 0."""
        known, value = self.input.known, self.trace.run(self.node)
        if self.module.weight is not None:
            silent = (self.module.weight.detach() == 0).view(1, -1, *[1] * (value.ndim - 2)).expand(value.shape)
            known = known | silent
        self.output.learn(value, known)

    def spread(self) -> None:
        """Channels of the operand and of the result go together."""
        self.input.require(self.output.kept)
        self.output.require(self.input.kept)

    def rewrite(self) -> None:
        """Cut the scale, the shift and the statistics."""
        kept = self.output.kept[1]
        if kept.all():
            return
        layer = shell(self.module)
        layer.num_features = int(kept.sum())
        for name in ("weight", "bias"):
            old = getattr(self.module, name)
            set_parameter(layer, name, None if old is None else old.detach()[kept], self.module.running_mean)
        for name in ("running_mean", "running_var"):
            layer.register_buffer(name, getattr(self.module, name)[kept].clone())
        self.trace.module.set_submodule(self.name, layer)


class FunctionalNorm(Op):
    """The function `batch_norm`, whose statistics, scale and shift the graph reads itself; `Source` cuts those."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.input = trace.slots[node.args[0]]  # type: ignore[index]
        self.vectors = [slot for slot in self.inputs if slot is not self.input]
        (self.output,) = self.outputs

    @staticmethod
    def plain(trace: Trace, node: fx.Node) -> bool:
        """Whether it runs on given statistics, all of its vectors being parameters or buffers."""
        vectors = [source for source in node.all_input_nodes if source is not node.args[0]]
        training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
        return training is False and len(vectors) >= 2 and all(source.op == "get_attr" for source in vectors)

    def evaluate(self) -> None:
        """Known where the operand is."""
        self.output.learn(self.trace.run(self.node), self.input.known)

    def spread(self) -> None:
        """Channels of the operand, of the result and of all vectors go together."""
        self.input.require(self.output.kept)
        self.output.require(self.input.kept)
        for slot in self.vectors:
            slot.require([self.output.kept[1]])
            self.output.require_along(1, slot.kept[0])
