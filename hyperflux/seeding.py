"""Random generators by seed and name: the same draws on every backend, in every process and after a resume."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, name: str) -> np.random.Generator:
    """The generator for one purpose, such as a parameter or an epoch's data order.

    Args:
        seed: At least 0.
        name: The purpose; generators of different names are independent.
    """
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
