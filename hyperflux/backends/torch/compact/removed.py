"""Which channels every layer lost, as indices into the original network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hyperflux.backends.torch.compact.batch_norm import BatchNorm
from hyperflux.backends.torch.compact.layers import NORMS, GroupedConvolution, LinearOrConvolution
from hyperflux.backends.torch.compact.ops import Op

LayerOp = LinearOrConvolution | GroupedConvolution | BatchNorm
Counts = tuple[int, int]
"""Numbers of input and output channels."""


@dataclass(frozen=True)
class RemovedChannels:
    """Channels that a layer lost: rising indices into its original inputs and outputs."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


def removed_by(ops: Sequence[Op]) -> dict[str, RemovedChannels]:
    """Return, by layer, the channels that an analysis removes; layers that lose none are left out."""
    removed = {op.name: _removed(op) for op in ops if isinstance(op, LayerOp)}
    return {name: channels for name, channels in removed.items() if channels != RemovedChannels()}


def layer_counts(ops: Sequence[Op]) -> dict[str, Counts]:
    """Return the input and output channels of every layer that can be cut."""
    return {op.name: channel_counts(op.module) for op in ops if isinstance(op, LayerOp)}


def channel_counts(layer: Any) -> Counts:
    """Return the numbers of input and output channels of a linear layer, convolution or batch norm."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, NORMS):
        return layer.num_features, layer.num_features
    return layer.in_channels, layer.out_channels


def merge_removed(
    first: dict[str, RemovedChannels], second: dict[str, RemovedChannels], counts: dict[str, Counts]
) -> dict[str, RemovedChannels]:
    """Merge two removals in sequence.

    Args:
        first: The earlier removal, in indices of the original layers.
        second: The later one, in indices of the layers that the first left.
        counts: Channels of the original layers.

    Returns:
        Both removals, in indices of the original layers.
    """
    merged = dict(first)
    for name, later in second.items():
        (inputs, outputs), earlier = counts[name], first.get(name, RemovedChannels())
        merged[name] = RemovedChannels(
            _merge_indices(inputs, earlier.inputs, later.inputs),
            _merge_indices(outputs, earlier.outputs, later.outputs),
        )
    return merged


def unread_inputs(ops: Sequence[Op]) -> dict[str, tuple[int, ...]]:
    """Return, by layer that reads the network's input directly, the input channels that it does not use."""
    readers = [op for op in ops if isinstance(op, LinearOrConvolution) and op.needed and op.input.is_input]
    unread = {op.name: _indices(~op.reads[op.output.live[op.dim]].any(0)) for op in readers}
    return {name: indices for name, indices in unread.items() if indices}


def _removed(op: LayerOp) -> RemovedChannels:
    dim = op.dim if isinstance(op, LinearOrConvolution) else 1
    if not op.needed:  # the call itself goes
        return RemovedChannels(tuple(range(op.input.shape[dim])), tuple(range(op.output.shape[dim])))
    inputs = op.live_inputs() if isinstance(op, LinearOrConvolution) else op.input.live[1]
    return RemovedChannels(_indices(~inputs), _indices(~op.output.live[dim]))


def _merge_indices(size: int, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Merge indices into `size` channels with later indices into those that were left."""
    left = [index for index in range(size) if index not in set(first)]
    return tuple(sorted([*first, *(left[index] for index in second)]))


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())
