"""What a target sparsity requires: the number of weights left, and the distance that t must fall."""

from __future__ import annotations

from hyperflux.errors import InputError
from hyperflux.spec import INITIAL_PRESENCE


def require_fraction(sparsity: float) -> None:
    """Raise InputError unless `sparsity` is a fraction between 0 and 1, both excluded."""
    if not 0 < sparsity < 1:
        hint = f"; for {sparsity:g} % give {sparsity / 100:g}" if 1 < sparsity < 100 else ""
        raise InputError(f"sparsity: {sparsity} is not a fraction between 0 and 1 (both excluded){hint}")


def target_count(total: int, sparsity: float, model: str) -> int:
    """Number of weights that `sparsity` leaves of `total`.

    Args:
        total: N, the number of prunable weights.
        sparsity: Share of weights to remove, a fraction.
        model: Name of the network in messages.

    Raises:
        InputError: The sparsity is not between 0 and 1, or leaves no weight or every one.
    """
    require_fraction(sparsity)
    left = round(total * (1 - sparsity))
    if not 0 < left < total:
        outcome = "all" if left else "none"
        raise InputError(
            f"sparsity: {sparsity} leaves {outcome} of the {total:,} weights of {model}; "
            f"give a fraction from {1 / total:.2g} to 1 - {1 / total:.2g}"
        )
    return left


def presence_distance(sparsity: float) -> float:
    """How far every t must fall until the share `sparsity` of them is below 0.

    t starts uniformly in `INITIAL_PRESENCE`, so this is a quantile of that interval. A step moves t by about η_t.
    """
    low, high = INITIAL_PRESENCE
    return low + sparsity * (high - low)
