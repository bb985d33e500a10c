"""Random generators by seed and name, so that every draw is the same on every backend, process and resumed run."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for `name` (a parameter, an epoch's data order, ...) under `seed` >= 0."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
