"""The k-th largest element of a whole network, which is neither sorted nor copied.

Elements outside a bracket are only counted. On a CPU NumPy does the work on the tensors' own memory: it compares and
picks out several times faster than torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_COPIED = 1 << 20
"""Elements within the bracket from which it is halved, before those that are left are copied and ranked."""

Values = Tensor | NDArray[np.floating[Any]]


def kth_largest(parts: Sequence[Tensor], k: int, near: float = math.inf) -> tuple[float, int]:
    """The `k`-th largest element of all `parts` and how many elements are not below it; waits for the device.

    It is looked for within [−near, near] first.
    """
    values = [_flat(part) for part in parts if part.numel()]
    low, high = -near, near
    above, reached = _count(values, low, high)
    if math.isinf(near) or not above < k <= reached:
        low, high = _extremes(values)
        above, reached = _count(values, low, high)
    while reached - above > MOST_COPIED:
        middle = low + (high - low) / 2
        if not low < middle < high:
            break  # nearly all are equal
        beyond, at_least = _count(values, middle, middle)
        if beyond >= k:
            low, reached = middle, at_least
        else:
            high, above = middle, beyond
    within = [_chosen(part, (part >= low) ^ (part > high)) for part in values]
    found = _smallest(within, sum(map(len, within)) - (k - above))
    return found, above + _total([_nonzero(part >= found) for part in within])


def _count(parts: Sequence[Values], low: float, high: float) -> tuple[int, int]:
    """How many elements are above `high`, and how many at or above `low`."""
    above = _total([_nonzero(part > high) for part in parts])
    return above, _total([_nonzero(part >= low) for part in parts])


def _chosen(part: Any, mask: Any) -> Any:
    return np.compress(mask, part) if isinstance(part, np.ndarray) else part[mask]


def _nonzero(mask: Any) -> Any:
    return np.count_nonzero(mask) if isinstance(mask, np.ndarray) else torch.count_nonzero(mask)


def _total(counts: Sequence[Any]) -> int:
    """The sum of counts; waits for every device once."""
    device = next((count.device for count in counts if isinstance(count, Tensor)), None)
    return int(sum(count.to(device) if isinstance(count, Tensor) else count for count in counts))


def _extremes(parts: Sequence[Values]) -> tuple[float, float]:
    return min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)


def _smallest(parts: Sequence[Values], index: int) -> float:
    """The element at `index` of the sorted elements of all parts."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if not tensors:
        return float(np.partition(np.concatenate(parts), index)[index])
    device = tensors[0].device
    return float(torch.cat([torch.as_tensor(part, device=device) for part in parts]).sort().values[index])


def _flat(tensor: Tensor) -> Values:
    """All elements in some order, on a CPU as an array that shares the tensor's memory."""
    flat = tensor.detach().permute(*_from_slowest(tensor)).reshape(-1)
    return flat.numpy() if flat.device.type == "cpu" else flat


def _from_slowest(tensor: Tensor) -> list[int]:
    """The dimensions in the order of memory, so that flattening copies nothing of a tensor without gaps."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
