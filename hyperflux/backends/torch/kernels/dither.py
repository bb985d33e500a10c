"""Rounding to bfloat16 that is right on average, without a generator: the dither is a hash of place and step.

A bfloat16 is the upper half of a float32: sign, exponent and 7 bits. Let h be the lower half as a whole number, and r
another one, 0 <= r < 2^16. Adding r to the bits and cutting the lower half off rounds away from 0 where r + h >= 2^16,
towards 0 elsewhere. Of the 2^16 numbers that r can be, h round away. Where all are as likely, the mean of what is
stored is therefore the value itself, for float32 lies evenly between two neighbours in bfloat16: also where the upper
one has the next exponent, into which the sum carries, and among subnormal numbers. What bfloat16 can hold stays as it
is, 0 above all, and no sign changes.

r is table[place] XOR key, the key a hash of step and block. A XOR maps the 2^16 numbers onto themselves. So r is even
for every weight over the steps, as the keys are, whatever the table; and even in every step over the weights, whatever
the key, for the table runs through all 2^16 numbers in every 65,536 places. Both together are a tabulation hash: the
dithers of two steps, blocks or places in the table tell nothing of each other. Weights 65,536 places apart in a block
share theirs, as do those at the same place of two parameters; nothing adds these up.

Nothing is drawn while training, so there is no state to save: a resumed run, and each of several processes, rounds
alike.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from hyperflux.seeding import generator

HALF = 16
"""Bits that a bfloat16 has not got."""


class Dither:
    """Rounds float32 values, up to a block of them at once. `buffers` is what it holds."""

    def __init__(self, block: int, device: torch.device) -> None:
        table = np.resize(generator(0, "dither").permutation(1 << HALF).astype(np.int32), block)
        self._table = torch.from_numpy(table).to(device)
        self._dither = torch.empty_like(self._table)
        self.buffers = (self._table, self._dither)

    def round(self, values: Tensor, key: int, out: Tensor) -> None:
        """`values`, (n,) in float32, into `out`, (n,) in bfloat16, by a key from `keys`; `values` are used up.

        inf stays inf; what NaN becomes is not said.
        """
        count = len(values)
        dither = torch.bitwise_xor(self._table[:count], key, out=self._dither[:count])
        values.view(torch.int32).add_(dither).bitwise_and_(-1 << HALF)
        out.copy_(values)


def keys(step: int, start: int) -> tuple[int, int]:
    """Two keys, below 2^16, for a block that starts at `start` and its rounding at `step`."""
    digest = hashlib.blake2b(f"{step} {start}".encode(), digest_size=4).digest()
    return int.from_bytes(digest[:2], "little"), int.from_bytes(digest[2:], "little")
