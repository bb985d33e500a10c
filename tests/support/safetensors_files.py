"""Bytes of safetensors files of any dtype, also of those that no library here writes."""

import json
import math

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "C64": 64, "BF16": 16}


def bits(kind):
    """Width of a number of a dtype: F8_E4M3 and U16 say it."""
    return BITS.get(kind) or int("".join(letter for letter in kind.split("_")[0] if letter.isdigit()))


def content_of(name, kind, shape, data):
    """A file of one tensor, with the first bytes of `data` as its numbers."""
    size = math.prod(shape) * bits(kind) // 8
    assert len(data) >= size
    header = json.dumps({name: {"dtype": kind, "shape": list(shape), "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + data[:size]
