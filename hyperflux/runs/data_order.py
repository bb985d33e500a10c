"""The order of the training samples in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hyperflux.seeding import generator


def epoch_batches(seed: int, epoch: int, samples: int, size: int) -> Iterator[NDArray[np.intp]]:
    """Indices of the training samples in batches of `size`, shuffled by seed and epoch."""
    order = generator(seed, f"data order of epoch {epoch}").permutation(samples)
    yield from np.split(order, batch_ends(samples, size)[:-1])


def batch_ends(samples: int, size: int) -> list[int]:
    """End of each batch of `size` samples.

    The last batch may be smaller. A single leftover sample joins the batch before it, because batch norm needs two.
    """
    ends = [*range(size, samples, size), samples]
    if len(ends) > 1 and samples - ends[-2] == 1 < size:
        del ends[-2]
    return ends
