"""The order in which an epoch goes through the training part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hyperflux.seeding import generator


def epoch_batches(seed: int, epoch: int, samples: int, size: int) -> Iterator[NDArray[np.intp]]:
    """Indices of the training part in an order of this epoch's own, drawn by seed and epoch, in batches of `size`."""
    order = generator(seed, f"data order of epoch {epoch}").permutation(samples)
    yield from np.split(order, batch_ends(samples, size)[:-1])


def batch_ends(samples: int, size: int) -> list[int]:
    """Where each batch ends; the last may be smaller, but takes in a lone last sample, of which a batch norm could make
    nothing.
    """
    ends = [*range(size, samples, size), samples]
    if len(ends) > 1 and samples - ends[-2] == 1 < size:
        del ends[-2]
    return ends
