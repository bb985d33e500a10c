"""The capacity gate on tensors: the k-th largest t of a whole network, and the shift that puts it at the gate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def meet_capacity(presence: Sequence[Tensor], kept: int, near: float = math.inf) -> float:
    """Lower every t in place by τ, the `kept`-th largest of all, so that exactly `kept` are present; gives τ: see E12.

    Of equal t at the gate the first stay: tensors in the order given, elements in row-major order. τ is looked for
    within `near` of 0 first, which saves time where it is there.
    """
    tau = kth_largest(presence, kept, near)
    for t in presence:
        t.sub_(tau.to(t.device))
    surplus = _total(torch.count_nonzero(t >= 0) for t in presence) - kept
    for t in reversed(presence):
        if surplus == 0:
            break
        rows = t if t.ndim else t.unsqueeze(0)
        at_gate = (rows == 0).nonzero(as_tuple=True)
        ties = len(at_gate[0])
        rows[tuple(index[max(0, ties - surplus) :] for index in at_gate)] = -torch.finfo(t.dtype).tiny
        surplus -= min(surplus, ties)
    return float(tau)


def kth_largest(parts: Sequence[Tensor], k: int, near: float = math.inf) -> Tensor:
    """The `k`-th largest element of all `parts`, 0-dimensional, on the device and in the widest dtype of the parts.

    Elements outside [−near, near) are only counted, if that is enough: nothing of the network's size is then copied.
    """
    if math.isfinite(near):
        above = _total(torch.count_nonzero(part >= near) for part in parts)
        middle = _together([part[(part >= -near) & (part < near)] for part in parts])
        if above < k <= above + len(middle):
            return _smallest(middle, len(middle) - (k - above))
    everything = _together(parts)
    return _smallest(everything, len(everything) - k)


def _smallest(values: Tensor, index: int) -> Tensor:
    """The element at `index` of the sorted values. Selection is faster on the CPU and not to be had everywhere else."""
    if values.device.type == "cpu":
        return values.kthvalue(index + 1).values
    return values.sort().values[index]


def _together(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten().to(parts[0].device) for part in parts])


def _total(counts: Iterable[Tensor]) -> int:
    """The sum of 0-dimensional counts; waits for the device once."""
    first, *others = counts
    for count in others:
        first = first + count.to(first.device)
    return int(first)
