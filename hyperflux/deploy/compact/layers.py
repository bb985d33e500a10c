"""Layers with weights: what they need of their input, what they fold of it, and the smaller layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from hyperflux.deploy.compact.ops import Op
from hyperflux.deploy.compact.runs import Trace

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Layer(Op):
    """A linear layer or a convolution without groups: every result channel reads the channels whose weights are not 0.

    A channel that is one constant at every place need not be read: what it adds goes into the bias. Behind zero padding
    it is not constant at the border; of all such channels one is kept, and the others' weights are added to its own.
    """

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.module: Any = trace.submodule(node)
        self.name = str(node.target)
        self.dim = -1 if isinstance(self.module, nn.Linear) else 1
        weight = trace.double(node).weight.detach()
        weight = weight.transpose(0, 1) if isinstance(self.module, TRANSPOSED) else weight
        self.weight: Tensor = weight.reshape(*weight.shape[:2], -1)  # (out, in, places of the kernel)
        self.read = (self.weight != 0).any(2)
        (self.input,), (self.output,) = self.inputs, self.outputs

    def evaluate(self) -> None:
        """A result channel is known where all channels that it reads are."""
        unknown = self.input.value.movedim(self.dim, 0).flatten(1).isnan().any(1)
        known = ~(self.read & unknown).any(1)
        value = self.trace.run(self.node)
        self.output.learn(value, self._along(known, value).expand(value.shape))

    def spread(self) -> None:
        """The places stay, and the channels that are read."""
        for dim in range(len(self.output.shape)):
            if dim != self.dim % len(self.output.shape):
                self.output.require_along(dim, torch.ones_like(self.output.kept[dim]))
        if self.gathers:
            self.input.require_all()
            return
        every = [torch.ones_like(mask) for mask in self.input.kept]
        every[self.dim] = self.wanted()
        self.input.require(every)

    @property
    def gathers(self) -> bool:
        """Whether the layer picks its channels out of the network's own input, which nobody can make smaller."""
        return self.input.raw and isinstance(self.module, nn.Linear)

    def kept_inputs(self) -> Tensor:
        """Mask of the channels that the smaller layer reads."""
        return self.wanted() if self.gathers else self.input.kept[self.dim]

    def wanted(self) -> Tensor:
        """Mask of the channels that have to be read: at least one."""
        reads = self.read[self.output.kept[self.dim]].any(0)
        constants = self.input.channel_constants(self.dim)
        wanted: Tensor = reads & constants.isnan()
        if self._padded:
            merged = reads & (constants.nan_to_num() != 0)
            if merged.any():
                wanted[_largest(constants, merged)] = True
        if not wanted.any():
            wanted[0] = True
        return wanted

    def rewrite(self) -> None:
        """Put the smaller layer in the place of the old one."""
        outputs, inputs = self.output.kept[self.dim], self.kept_inputs()
        if outputs.all() and inputs.all():
            return
        weight = self.weight[outputs].clone()
        bias = None if self.module.bias is None else self.trace.double(self.node).bias.detach()[outputs].clone()
        constants, gone = self.input.channel_constants(self.dim), ~inputs & self.read[outputs].any(0)
        if self._padded:
            merged = gone & (constants != 0)
            if merged.any():
                main = _largest(constants, inputs & ~constants.isnan() & (constants != 0))
                weight[:, main] += torch.einsum("oik,i->ok", weight[:, merged], constants[merged] / constants[main])
        elif (constants[gone] != 0).any():
            folded = torch.einsum("oik,i->o", weight[:, gone], constants[gone])
            bias = folded if bias is None else bias + folded
        self.trace.module.set_submodule(self.name, self._smaller(weight[:, inputs], bias))
        if self.gathers and not inputs.all():
            name = f"{self.node.name}_inputs"
            self.trace.module.register_buffer(name, inputs.nonzero().flatten().int())
            with self.trace.graph.inserting_before(self.node):
                index = self.trace.graph.get_attr(name)
                picked = self.trace.graph.call_function(torch.index_select, (self.node.args[0], -1, index))
            self.node.args = (picked, *self.node.args[1:])

    def _smaller(self, weight: Tensor, bias: Tensor | None) -> Any:
        """A layer of the same kind with these weights (out, in, places)."""
        outputs, inputs = weight.shape[:2]
        layer = shell(self.module)
        if isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = inputs, outputs
        else:
            layer.in_channels, layer.out_channels = inputs, outputs
        weight = weight.view(outputs, inputs, *self.module.weight.shape[2:])
        set_parameter(
            layer, "weight", weight.transpose(0, 1) if isinstance(layer, TRANSPOSED) else weight, self.module.weight
        )
        set_parameter(layer, "bias", bias, self.module.weight)
        return layer

    @property
    def _padded(self) -> bool:
        """Whether a constant channel is not constant any more where the kernel meets the border."""
        if isinstance(self.module, TRANSPOSED):
            return True
        if isinstance(self.module, nn.Linear) or self.module.padding_mode != "zeros":
            return False
        padding = self.module.padding
        if isinstance(padding, str):
            return padding == "same" and any(size > 1 for size in self.module.kernel_size)
        return any(amount > 0 for amount in padding)

    def _along(self, mask: Tensor, like: Tensor) -> Tensor:
        """A mask of channels, to be broadcast with a tensor."""
        shape = [1] * like.ndim
        shape[self.dim] = -1
        return mask.view(shape)


class GroupedConvolution(Op):
    """A convolution of several groups: a group whose results nobody reads goes as a whole, with its inputs."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.module: Convolution = trace.submodule(node)
        self.name, self.groups = str(node.target), self.module.groups
        weight = trace.double(node).weight.detach()
        self.read = (weight.reshape(self.groups, -1, *weight.shape[1:]) != 0).flatten(3).any(3)  # (group, out, in)
        (self.input,), (self.output,) = self.inputs, self.outputs

    def evaluate(self) -> None:
        """A result channel is known where all channels of its group that it reads are."""
        unknown = self.input.value.movedim(1, 0).flatten(1).isnan().any(1).view(self.groups, 1, -1)
        known = ~(self.read & unknown).any(2).flatten()
        value = self.trace.run(self.node)
        self.output.learn(value, known.view(1, -1, *[1] * (value.ndim - 2)).expand(value.shape))

    def spread(self) -> None:
        """The places stay, and whole groups."""
        groups = self._kept()
        for slot in (self.output, self.input):
            masks = [torch.ones_like(mask) for mask in slot.kept]
            masks[1] = groups.repeat_interleave(slot.shape[1] // self.groups)
            slot.require(masks)

    def rewrite(self) -> None:
        """Put the smaller convolution in the place of the old one."""
        outputs, groups = self.output.kept[1], self._kept()
        if groups.all():
            return
        layer = shell(self.module)
        layer.groups = int(groups.sum())
        layer.in_channels, layer.out_channels = self.input.count(1), self.output.count(1)
        set_parameter(layer, "weight", self.module.weight.detach()[outputs], self.module.weight)
        set_parameter(
            layer, "bias", None if self.module.bias is None else self.module.bias.detach()[outputs], self.module.weight
        )
        self.trace.module.set_submodule(self.name, layer)

    def _kept(self) -> Tensor:
        """Mask of the groups that stay: those with a channel that stays, on either side."""
        sides = (slot.kept[1].view(self.groups, -1).any(1) for slot in (self.input, self.output))
        kept: Tensor = next(sides) | next(sides)
        return kept


def channels(layer: Any) -> tuple[int, int]:
    """Input and output channels of a layer that can be cut."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, NORMS):
        return layer.num_features, layer.num_features
    return layer.in_channels, layer.out_channels


def shell(module: Any) -> Any:
    """A copy of a module without a copy of its tensors."""
    layer = copy.copy(module)
    layer._parameters, layer._buffers = dict(module._parameters), dict(module._buffers)
    return layer


def set_parameter(layer: nn.Module, name: str, value: Tensor | None, like: Tensor) -> None:
    """Replace a parameter, in the dtype of another."""
    layer.register_parameter(name, None if value is None else nn.Parameter(value.to(like.dtype).contiguous()))


def _largest(constants: Tensor, among: Tensor) -> int:
    """The channel whose constant is largest, of those in the mask; the first of several."""
    return int(torch.where(among, constants.abs(), -1.0).argmax())
