"""Files of the format sparse-safetensors made by hand, from its description rather than its code."""

import hashlib
import json

import torch
from safetensors.torch import save

HEADER = {"sparse-safetensors": "1"}


def content_sum(table, stored):
    """The sum that the format describes."""
    said = table.encode()
    for name in sorted(stored):
        tensor = stored[name]
        kind = str(tensor.dtype).split(".")[1]
        said += f"\n{name} {kind} {list(tensor.shape)}\n".encode() + raw(tensor)
    return hashlib.sha256(said).hexdigest()


def raw(tensor):
    """The bytes of a tensor, row by row."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


def same_bits(one, other):
    """Whether two tensors are the same in dtype, shape and every bit."""
    return (one.dtype, one.shape, raw(one)) == (other.dtype, other.shape, raw(other))


def crafted(table, stored, **metadata):
    """The bytes of a file with this table, JSON text or a value, and these stored tensors; its sum is right."""
    text = table if isinstance(table, str) else json.dumps(table)
    return save(stored, {**HEADER, "sparse": text, "sha256": content_sum(text, stored), **metadata})


def metadata_of(content):
    """The header's metadata."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
