"""A budget in whole units of cost: what a share of the dense network comes to, and whether it can be reached."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from hyperflux.errors import InputError
from hyperflux.gates.costs import WholeCost
from hyperflux.gates.kinds import Budget, Pattern
from hyperflux.spec import Mask

UNITS: dict[Budget, str] = {
    "sparsity": "prunable weights",
    "flops": "FLOPs",
    "parameters": "parameters",
    "latency": "nanoseconds",
}
"""What each budget is counted in, for messages."""


class CapacityPlan(NamedTuple):
    """What a schedule counts.

    Attributes:
        total: Cost of the dense network, or N.
        final_count: The budget, or the number of weights left at the end.
        gates: J, the number of gates; None for one per weight.
        is_least: Whether the network can't have fewer than `final_count` on the way, as in a pattern.
    """

    total: int
    final_count: int
    gates: int | None = None
    is_least: bool = False


def kept_share(budget: Budget, share: float) -> Fraction:
    """The share of the cost that stays, exactly as the decimal number was written; of a sparsity, the rest of 1."""
    given = Fraction(repr(share))
    return 1 - given if budget == "sparsity" else given


def capacity_plan(cost: WholeCost, budget: Budget, share: float, argument: str | None = None) -> CapacityPlan:
    """The plan that leads to at most a share of the dense network's cost.

    Args:
        cost: Cost in the budget's unit.
        budget: What the share is of.
        share: The share to keep, or to remove where it is the sparsity; a fraction between 0 and 1.
        argument: Name of the share in messages; the budget's own by default.

    Raises:
        InputError: There is no gate; so little can't be reached, because what has no gate costs more; or nothing would
            be removed.
    """
    if not cost.gates:
        raise InputError(
            "gates channels: the network has no channel between two layers; gate its inputs too (--gate-inputs), or "
            "leave gates out"
        )
    everything, least = (cost.total(mask) for mask in (np.ones(cost.gates, np.bool_), _one_of_each_layer(cost)))
    final, unit, name = int(kept_share(budget, share) * everything), UNITS[budget], argument or budget
    if final < least:
        bound = f"{least / everything:.3g}"
        raise InputError(
            f"{name}: {share:g} leaves {final:,} of {everything:,} {unit}, but one channel of every layer and what has "
            f"no gate take {least:,}; give {f'less than 1 - {bound}' if budget == 'sparsity' else f'more than {bound}'}"
        )
    if final >= everything:
        raise InputError(f"{name}: {share:g} of {everything:,} {unit} removes nothing; give another fraction")
    return CapacityPlan(everything, final, cost.gates)


def _one_of_each_layer(cost: WholeCost) -> Mask:
    """A mask that opens the dearest gate of every layer; one is always open (E17)."""
    prices = cost.prices(np.ones(cost.gates, np.bool_))
    dearest = np.lexsort((-prices, cost.layers))
    mask = np.zeros(cost.gates, np.bool_)
    mask[dearest[np.unique(cost.layers[dearest], return_index=True)[1]]] = True
    return mask


def pattern_plan(pattern: Pattern, total: int, kept: int) -> CapacityPlan:
    """The plan that leads from all of `total` prunable weights to the `kept` ones of a pattern.

    Raises:
        InputError: No group of the network is long enough for a weight to be removed.
    """
    if kept >= total:
        raise InputError(
            f"gates {pattern}: no layer has more than {pattern.kept} inputs, so nothing would be removed; leave gates "
            "out"
        )
    return CapacityPlan(total, kept, is_least=True)
