"""What a target sparsity requires: the number of weights left, and the distance that t must fall."""

from __future__ import annotations

from hyperflux.errors import InputError
from hyperflux.io.ranges import fraction
from hyperflux.spec import INITIAL_PRESENCE


def require_fraction(sparsity: float) -> None:
    """Raise InputError unless `sparsity` is a fraction between 0 and 1, both excluded."""
    fraction("sparsity", sparsity)


def target_count(total: int, sparsity: float, model: str, argument: str = "sparsity") -> int:
    """Number of weights that `sparsity` leaves of `total`.

    Args:
        total: N, the number of prunable weights.
        sparsity: Share of weights to remove, a fraction.
        model: Name of the network in messages.
        argument: Name of `sparsity` in messages.

    Raises:
        InputError: The sparsity is not between 0 and 1, or leaves no weight or every one.
    """
    sparsity = fraction(argument, sparsity)
    left = round(total * (1 - sparsity))
    if not 0 < left < total:
        outcome = "all" if left else "none"
        raise InputError(
            f"{argument}: {sparsity} leaves {outcome} of the {total:,} weights of {model}; "
            f"give a fraction from {1 / total:.2g} to 1 - {1 / total:.2g}"
        )
    return left


def presence_distance(sparsity: float) -> float:
    """How far every t must fall until the share `sparsity` of them is below 0.

    t starts uniformly in `INITIAL_PRESENCE`, so this is a quantile of that interval. A step moves t by about η_t.
    """
    low, high = INITIAL_PRESENCE
    return low + sparsity * (high - low)
