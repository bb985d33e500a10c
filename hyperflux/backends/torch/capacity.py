"""The capacity gate on tensors (E12): the k-th largest t of a whole network, and the shift that puts it at the gate.

The network is neither sorted nor copied: elements outside a bracket are counted, elements within are ranked. On a CPU
NumPy works on the tensors' memory, because it compares and selects elements several times faster than torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 17
"""Elements per comparison on a CPU, few enough for its caches."""
MAX_COPIED = 1 << 20
"""A bracket with more elements is halved before its elements are copied and ranked. Off the CPU also the elements per
comparison."""
WIDER = 4
"""Width of the second bracket, as a multiple of the first."""

Values = Tensor | NDArray[np.floating[Any]]


def meet_capacity(presence: Sequence[Tensor], count: int, near: float = math.inf) -> float:
    """Lower every t in place by τ, the `count`-th largest of all, so that exactly `count` are present (see E12).

    Among equal t at the gate the first stay present: tensors in the given order, elements in row-major order.

    Args:
        presence: t of each parameter, of one dtype.
        count: Number of weights to be present, from 1 to N.
        near: τ is searched within this distance of 0 first, which is faster if it lies there.

    Returns:
        τ.
    """
    tau, not_below = kth_largest(presence, count, near)
    torch._foreach_sub_(list(presence), tau)
    surplus = not_below - count
    for t in reversed(presence):
        if surplus == 0:
            break
        rows = t if t.ndim else t.unsqueeze(0)
        at_gate = (rows == 0).nonzero(as_tuple=True)
        ties = len(at_gate[0])
        rows[tuple(index[max(0, ties - surplus) :] for index in at_gate)] = -torch.finfo(t.dtype).tiny
        surplus -= min(surplus, ties)
    return tau


def kth_largest(parts: Sequence[Tensor], k: int, near: float = math.inf) -> tuple[float, int]:
    """The `k`-th largest element of all `parts`, and the number of elements not below it; waits for the device.

    The search starts within [−near, near], continues in a wider bracket, then everywhere.
    """
    blocks = _Blocks(parts)
    brackets = (_Bracket.of(blocks, -reach, reach) for reach in (near, WIDER * near) if math.isfinite(reach))
    bracket = next((bracket for bracket in brackets if bracket.holds(k)), None)
    bracket = bracket or _Bracket.of(blocks, *_extremes(blocks))
    while bracket.count > MAX_COPIED:
        middle = bracket.low + (bracket.high - bracket.low) / 2
        if not bracket.low < middle < bracket.high:
            return bracket.kth_of_equals(blocks, k)
        upper = _Bracket.of(blocks, middle, bracket.high)
        bracket = upper if upper.holds(k) else _Bracket.of(blocks, bracket.low, middle)
    return bracket.kth(k)


@dataclass(frozen=True)
class _Bracket:
    """The interval from `low` to `high`.

    Attributes:
        low: Lower end, included.
        high: Upper end, included.
        above: Number of elements above it.
        count: Number of elements within.
        elements: The elements within, by block; only some of them if there are more than `MAX_COPIED`.
    """

    low: float
    high: float
    above: int
    count: int
    elements: list[Any]

    @classmethod
    def of(cls, blocks: Iterable[Any], low: float, high: float) -> _Bracket:
        above, count, elements = [], 0, []
        for block in blocks:
            beyond = block > high
            within = block >= low
            within ^= beyond
            above.append(_nonzero(beyond))
            if count <= MAX_COPIED:
                elements.append(_chosen(block, within))
                count += len(elements[-1])
            else:
                count += int(_nonzero(within))
        return cls(low, high, _total(above), count, elements)

    def holds(self, k: int) -> bool:
        """Whether the k-th largest element lies within."""
        return self.above < k <= self.above + self.count

    def kth(self, k: int) -> tuple[float, int]:
        """The k-th largest element, and the number of elements not below it; needs all elements within.

        NumPy sorts instead of partitioning, which takes forty times as long if most elements are equal, as t of pruned
        weights are in magnitude pruning.
        """
        device = next((part.device for part in self.elements if isinstance(part, Tensor)), None)
        merged: Any
        if device is None:
            merged = np.sort(np.concatenate(self.elements))
        else:
            merged = torch.cat([torch.as_tensor(part, device=device) for part in self.elements]).sort().values
        found = float(merged[self.count - (k - self.above)])
        return found, self.above + int(_nonzero(merged >= found))

    def kth_of_equals(self, blocks: Iterable[Any], k: int) -> tuple[float, int]:
        """The same for a bracket that cannot be halved: many elements within, with few distinct values."""
        times: Counter[float] = Counter()
        for block in blocks:
            times.update(_times(_chosen(block, (block >= self.low) & (block <= self.high))))
        found, not_below = math.nan, self.above
        for value in sorted(times, reverse=True):
            if not_below >= k:
                break
            found, not_below = value, not_below + times[value]
        return found, not_below


class _Blocks:
    """All elements of some tensors, in blocks. Off the CPU small blocks are joined, because every block costs calls."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._groups: list[list[Values]] = []
        room, last = 0, None
        for block in (block for part in parts for block in _blocks(part)):
            device = block.device if isinstance(block, Tensor) else None
            if device is None or device != last or len(block) > room:
                self._groups.append([])
                room, last = MAX_COPIED, device
            self._groups[-1].append(block)
            room -= len(block)

    def __iter__(self) -> Iterator[Values]:
        for group in self._groups:
            yield torch.cat(cast(list[Tensor], group)) if len(group) > 1 else group[0]


def _blocks(tensor: Tensor) -> list[Values]:
    """All elements in any order, in blocks; on a CPU as arrays that share the tensor's memory."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.permute(*_from_slowest(tensor)).reshape(-1)
    values, size = (flat.detach().numpy(), BLOCK) if flat.device.type == "cpu" else (flat, MAX_COPIED)
    return [values[start : start + size] for start in range(0, len(values), size)]


def _from_slowest(tensor: Tensor) -> list[int]:
    """The dimensions in memory order, in which a tensor without gaps is flattened without a copy."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _chosen(block: Any, mask: Any) -> Any:
    return np.compress(mask, block) if isinstance(block, np.ndarray) else block[mask]


def _nonzero(mask: Any) -> Any:
    return np.count_nonzero(mask) if isinstance(mask, np.ndarray) else torch.count_nonzero(mask)


def _total(counts: Sequence[Any]) -> int:
    """The sum of counts; waits once per device."""
    device = next((count.device for count in counts if isinstance(count, Tensor)), None)
    return int(sum(count.to(device) if isinstance(count, Tensor) else count for count in counts))


def _times(block: Any) -> dict[float, int]:
    """The number of occurrences of each value."""
    values, times = (np if isinstance(block, np.ndarray) else torch).unique(block, return_counts=True)
    return dict(zip(values.tolist(), times.tolist(), strict=True))


def _extremes(blocks: Iterable[Any]) -> tuple[float, float]:
    found = [(float(block.min()), float(block.max())) for block in blocks]
    return min(low for low, _ in found), max(high for _, high in found)
