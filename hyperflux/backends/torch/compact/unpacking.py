"""Unpack torch's transformer modules into ordinary layers, so that their heads and units can be cut.

Each class here replaces one of torch's in evaluation mode, called without masks. Tracing any other call raises
UnsupportedCallError.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn


class UnsupportedCallError(Exception):
    """A transformer module has options or a call that these classes lack: masks, returned weights, two sequences."""


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself.

    `in_proj` gives q, k and v of all heads, concatenated.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        if packed.in_proj_weight is None or packed.bias_k is not None or packed.add_zero_attn:
            raise UnsupportedCallError
        self.in_proj = _linear(packed.in_proj_weight, packed.in_proj_bias)
        self.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias)
        self.heads, self.width, self.batch_first = packed.num_heads, packed.head_dim, packed.batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return (batch, tokens, features), or tokens first, and None for the attention weights."""
        if query is not key or key is not value or need_weights or is_causal:
            raise UnsupportedCallError
        if key_padding_mask is not None or attn_mask is not None:
            raise UnsupportedCallError
        x = query if self.batch_first else query.transpose(0, 1)
        batch, tokens, _ = x.shape
        packed = self.in_proj(x).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(packed[0], packed[1], packed[2])
        x = self.out_proj(attended.transpose(1, 2).reshape(batch, tokens, self.heads * self.width))
        return (x if self.batch_first else x.transpose(0, 1)), None


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`."""

    def __init__(self, packed: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.self_attn: nn.Module = packed.self_attn
        self.linear1, self.linear2 = packed.linear1, packed.linear2
        self.norm1, self.norm2 = packed.norm1, packed.norm2
        self.activation, self.norm_first = packed.activation, packed.norm_first

    def forward(
        self, src: Tensor, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
    ) -> Tensor:
        """Return the encoded sequence; shapes as in `nn.TransformerEncoderLayer`."""
        if src_mask is not None or src_key_padding_mask is not None or is_causal:
            raise UnsupportedCallError
        if self.norm_first:
            src = src + self._attend(self.norm1(src))
            return src + self._feed_forward(self.norm2(src))
        src = self.norm1(src + self._attend(src))
        normed: Tensor = self.norm2(src + self._feed_forward(src))
        return normed

    def _attend(self, x: Tensor) -> Tensor:
        attended: Tensor = self.self_attn(x, x, x, need_weights=False)[0]
        return attended

    def _feed_forward(self, x: Tensor) -> Tensor:
        fed: Tensor = self.linear2(self.activation(self.linear1(x)))
        return fed


class Encoder(nn.Module):
    """`nn.TransformerEncoder`."""

    def __init__(self, packed: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = packed.layers, packed.norm

    def forward(self, src: Tensor, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Tensor:
        """Return the encoded sequence; shapes as in `nn.TransformerEncoder`."""
        if mask is not None or src_key_padding_mask is not None or is_causal:
            raise UnsupportedCallError
        for layer in self.layers:
            src = layer(src)
        return src if self.norm is None else self.norm(src)


UNPACKED: dict[type[nn.Module], Any] = {
    nn.MultiheadAttention: SelfAttention,
    nn.TransformerEncoderLayer: EncoderLayer,
    nn.TransformerEncoder: Encoder,
}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def original_weight(path: str, names: Collection[str]) -> str:
    """The name of a layer's weight in the network before unpacking.

    Args:
        path: The layer's path after unpacking.
        names: The names of the network's parameters before.
    """
    weight = f"{path}.weight" if path else "weight"
    packed = f"{path}_weight"  # in_proj of SelfAttention
    return packed if weight not in names and packed in names else weight


def unpack_transformers(module: nn.Module, done: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """Replace torch's packed transformer modules, anywhere in a module, by the classes above.

    Args:
        module: The module; it is changed in place.
        done: The replacements made so far, by original, so that a shared module is replaced once.

    Returns:
        The module, or its replacement.

    Raises:
        UnsupportedCallError: A packed module has hooks or options that `SelfAttention` lacks.
    """
    done = {} if done is None else done
    if module in done:
        return done[module]
    unpacked_type = UNPACKED.get(type(module))
    if unpacked_type is not None and (module._forward_hooks or module._forward_pre_hooks):
        raise UnsupportedCallError
    result = done[module] = module if unpacked_type is None else unpacked_type(module)
    is_leaf = type(module).__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS)
    if unpacked_type is None and is_leaf:  # the tracer sees one call, whatever is inside
        return result
    for name, child in result._modules.items():
        if child is not None:
            setattr(result, name, unpack_transformers(child, done))
    return result


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with these parameters, not copies."""
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.register_parameter("weight", weight)  # type: ignore[arg-type]
    layer.register_parameter("bias", bias)  # type: ignore[arg-type]
    return layer
