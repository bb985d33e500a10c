"""The capacity gate on tensors: the k-th largest t of a whole network, and the shift that puts it at the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperflux.backends.torch.kth_largest import kth_largest


def meet_capacity(presence: Sequence[Tensor], kept: int, near: float = math.inf) -> float:
    """Lower every t in place by τ, the `kept`-th largest of all, so that exactly `kept` are present; gives τ: see E12.

    Of equal t at the gate the first stay: tensors in the order given, elements in row-major order. τ is looked for
    within `near` of 0 first, which saves time where it is there.
    """
    tau, reached = kth_largest(presence, kept, near)
    torch._foreach_sub_(list(presence), tau)
    surplus = reached - kept
    for t in reversed(presence):
        if surplus == 0:
            break
        rows = t if t.ndim else t.unsqueeze(0)
        at_gate = (rows == 0).nonzero(as_tuple=True)
        ties = len(at_gate[0])
        rows[tuple(index[max(0, ties - surplus) :] for index in at_gate)] = -torch.finfo(t.dtype).tiny
        surplus -= min(surplus, ties)
    return tau
