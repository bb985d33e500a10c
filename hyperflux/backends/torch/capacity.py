"""The capacity gate on tensors: the k-th largest t of a whole network, and the shift that puts it at the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    surplus = int(sum(torch.count_nonzero(t >= 0).cpu() for t in presence)) - kept
    for t in reversed(presence):
        if surplus == 0:
            break
        at_gate = (t == 0).nonzero(as_tuple=True)
        ties = len(at_gate[0])
        last = tuple(index[max(0, ties - surplus) :] for index in at_gate)
        t[last] = -torch.finfo(t.dtype).tiny
        surplus -= min(surplus, ties)
    return float(tau)


def kth_largest(parts: Sequence[Tensor], k: int, near: float = math.inf) -> Tensor:
    """The `k`-th largest element of all `parts`, 0-dimensional, on the device and in the widest dtype of the parts.

    Elements outside [−near, near) are only counted, if that is enough: nothing of the network's size is then copied.
    """
    if math.isfinite(near):
        above = int(sum(torch.count_nonzero(part >= near).cpu() for part in parts))
        middle = _together([part[(part >= -near) & (part < near)] for part in parts])
        if above < k <= above + len(middle):
            return middle.kthvalue(len(middle) - (k - above) + 1).values
    everything = _together(parts)
    return everything.kthvalue(len(everything) - k + 1).values


def _together(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten().to(parts[0].device) for part in parts])
