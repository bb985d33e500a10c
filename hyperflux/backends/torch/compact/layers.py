"""Linear layers and convolutions: which input channels they need, and how constants fold into their bias."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.ops import Op
from hyperflux.backends.torch.compact.trace import Trace

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class LinearOrConvolution(Op):
    """A linear layer or a convolution of one group: each output channel reads the inputs whose weights are not all 0.

    An input channel with one constant value at every position need not be read: its contribution goes into the bias.
    Behind zero padding a constant channel is not constant at the border. Then one such channel stays, and the weights
    of all others are added to its own, scaled by the ratio of the constants.

    Attributes:
        dim: The channel dimension of input and output.
        weight: Float64 (out, in, kernel positions).
        reads: Boolean (out, in): whether any weight between two channels is not 0.
    """

    is_size_proof = True

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.module: Any = trace.submodule(node)
        self.name = str(node.target)
        self.dim = -1 if isinstance(self.module, nn.Linear) else 1
        weight = trace.double_submodule(node).weight.detach()
        weight = weight.transpose(0, 1) if isinstance(self.module, TRANSPOSED) else weight
        self.weight: Tensor = weight.reshape(*weight.shape[:2], -1)
        self.reads = (self.weight != 0).any(2)
        (self.input,), (self.output,) = self.inputs, self.outputs

    @property
    def selects_inputs(self) -> bool:
        """Whether the layer reads the network's own input, which keeps its size, and so has to select channels."""
        return self.input.is_input and isinstance(self.module, nn.Linear)

    def propagate_constants(self) -> None:
        """An output channel is constant where all channels that it reads are."""
        unknown = self.input.constants.movedim(self.dim, 0).flatten(1).isnan().any(1)
        known = ~(self.reads & unknown).any(1)
        value = self.trace.evaluate(self.node)
        shape = [1] * value.ndim
        shape[self.dim] = -1
        self.output.set_constants(value, known.view(shape).expand(value.shape))

    def constants_of_every_size(self, tensor: AbstractTensor) -> Tensor:
        """An output channel that reads a constant other than 0 varies near the border, where zeros are added."""
        if not (self._pads_with_zeros and any(map(self.input.is_dynamic, range(2, len(tensor.shape))))):
            return super().constants_of_every_size(tensor)
        steady: Tensor = ~(self.reads & (self.input.channel_constants(1) != 0)).any(1)
        return steady.view(1, -1, *[1] * (len(tensor.shape) - 2)).expand(tensor.shape)

    def propagate_liveness(self) -> None:
        """All positions stay, and the input channels that live outputs read."""
        for dim in range(len(self.output.shape)):
            if dim != self.dim % len(self.output.shape):
                self.output.mark_live_along(dim, torch.ones_like(self.output.live[dim]))
        if self.selects_inputs:
            self.input.mark_all_live()
            return
        masks = [torch.ones_like(mask) for mask in self.input.live]
        masks[self.dim] = self.required_inputs()
        self.input.mark_live(masks)

    def required_inputs(self) -> Tensor:
        """Return the mask (in,) of channels that must be read: at least one."""
        reads = self.reads[self.output.live[self.dim]].any(0)
        constants = self.input.channel_constants(self.dim)
        required: Tensor = reads & constants.isnan()
        if self._pads_with_zeros:
            merged = reads & (constants.nan_to_num() != 0)
            if merged.any():
                required[_largest_constant(constants, merged)] = True
        if not required.any():
            required[0] = True
        return required

    def live_inputs(self) -> Tensor:
        """Return the mask (in,) of channels that the smaller layer reads."""
        return self.required_inputs() if self.selects_inputs else self.input.live[self.dim]

    def rewrite(self) -> None:
        """Replace the layer by the smaller one, constants folded in."""
        outputs, inputs = self.output.live[self.dim], self.live_inputs()
        if outputs.all() and inputs.all():
            return
        weight = self.weight[outputs].clone()
        bias = None if self.module.bias is None else self.trace.double_submodule(self.node).bias.detach()[outputs]
        constants, dropped = self.input.channel_constants(self.dim), ~inputs & self.reads[outputs].any(0)
        if self._pads_with_zeros:
            merged = dropped & (constants != 0)
            if merged.any():
                main = _largest_constant(constants, inputs & ~constants.isnan() & (constants != 0))
                weight[:, main] += torch.einsum("oik,i->ok", weight[:, merged], constants[merged] / constants[main])
        elif (constants[dropped] != 0).any():
            folded = torch.einsum("oik,i->o", weight[:, dropped], constants[dropped])
            bias = folded if bias is None else bias + folded
        self.trace.module.set_submodule(self.name, self._with_weights(weight[:, inputs], bias))
        if self.selects_inputs and not inputs.all():
            self._select_inputs(inputs)

    def _with_weights(self, weight: Tensor, bias: Tensor | None) -> Any:
        """Return a layer of the same kind with these weights (out, in, kernel positions)."""
        outputs, inputs = weight.shape[:2]
        layer = copy_without_tensors(self.module)
        if isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = inputs, outputs
        else:
            layer.in_channels, layer.out_channels = inputs, outputs
        weight = weight.view(outputs, inputs, *self.module.weight.shape[2:])
        weight = weight.transpose(0, 1) if isinstance(layer, TRANSPOSED) else weight
        set_parameter(layer, "weight", weight, self.module.weight)
        set_parameter(layer, "bias", bias, self.module.weight)
        return layer

    def _select_inputs(self, inputs: Tensor) -> None:
        """Insert an index_select of the live inputs before the layer."""
        name, (source,) = f"{self.node.name}_inputs", self.node.all_input_nodes
        self.trace.module.register_buffer(name, inputs.nonzero().flatten().int())
        with self.trace.graph.inserting_before(self.node):
            index = self.trace.graph.get_attr(name)
            selected = self.trace.graph.call_function(torch.index_select, (source, -1, index))
        self.node.replace_input_with(source, selected)

    @property
    def _pads_with_zeros(self) -> bool:
        return pads_with_zeros(self.module)


class GroupedConvolution(Op):
    """A convolution of several groups: a group whose outputs nothing reads goes whole, with its inputs."""

    is_size_proof = True

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.module: Convolution = trace.submodule(node)
        self.name, self.groups = str(node.target), self.module.groups
        weight = trace.double_submodule(node).weight.detach()
        self.reads = (weight.reshape(self.groups, -1, *weight.shape[1:]) != 0).flatten(3).any(3)  # (group, out, in)
        (self.input,), (self.output,) = self.inputs, self.outputs

    def propagate_constants(self) -> None:
        """An output channel is constant where all channels of its group that it reads are."""
        unknown = self.input.constants.movedim(1, 0).flatten(1).isnan().any(1).view(self.groups, 1, -1)
        known = ~(self.reads & unknown).any(2).flatten()
        value = self.trace.evaluate(self.node)
        self.output.set_constants(value, known.view(1, -1, *[1] * (value.ndim - 2)).expand(value.shape))

    def constants_of_every_size(self, tensor: AbstractTensor) -> Tensor:
        """An output channel that reads a constant other than 0 varies near the border, where zeros are added."""
        if not (pads_with_zeros(self.module) and any(map(self.input.is_dynamic, range(2, len(tensor.shape))))):
            return super().constants_of_every_size(tensor)
        nonzero = (self.input.channel_constants(1) != 0).view(self.groups, 1, -1)
        steady: Tensor = ~(self.reads & nonzero).any(2).flatten()
        return steady.view(1, -1, *[1] * (len(tensor.shape) - 2)).expand(tensor.shape)

    def propagate_liveness(self) -> None:
        """All positions stay, and whole groups."""
        groups = self._live_groups()
        for tensor in (self.output, self.input):
            masks = [torch.ones_like(mask) for mask in tensor.live]
            masks[1] = groups.repeat_interleave(tensor.shape[1] // self.groups)
            tensor.mark_live(masks)

    def rewrite(self) -> None:
        """Replace the convolution by one of the live groups."""
        outputs, groups = self.output.live[1], self._live_groups()
        if groups.all():
            return
        layer = copy_without_tensors(self.module)
        layer.groups = int(groups.sum())
        layer.in_channels, layer.out_channels = self.input.live_count(1), self.output.live_count(1)
        for name in ("weight", "bias"):
            old = getattr(self.module, name)
            set_parameter(layer, name, None if old is None else old.detach()[outputs], self.module.weight)
        self.trace.module.set_submodule(self.name, layer)

    def _live_groups(self) -> Tensor:
        """Return the mask of groups with a live channel on either side."""
        read, written = (tensor.live[1].view(self.groups, -1).any(1) for tensor in (self.input, self.output))
        return read | written


def pads_with_zeros(layer: Any) -> bool:
    """Return whether a constant channel is not constant where a layer's kernel meets the border."""
    if isinstance(layer, TRANSPOSED):
        return True
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(amount > 0 for amount in layer.padding)


def copy_without_tensors(module: Any) -> Any:
    """Return a copy of a module that shares its tensors until they are replaced."""
    layer = copy.copy(module)
    layer._parameters, layer._buffers = dict(module._parameters), dict(module._buffers)
    return layer


def set_parameter(layer: nn.Module, name: str, value: Tensor | None, like: Tensor) -> None:
    """Replace a parameter, in the dtype of `like`."""
    layer.register_parameter(name, None if value is None else nn.Parameter(value.to(like.dtype).contiguous()))


def _largest_constant(constants: Tensor, among: Tensor) -> int:
    """Return the channel with the largest constant under the mask; the first of several."""
    return int(torch.where(among, constants.abs(), -1.0).argmax())
