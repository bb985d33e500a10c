"""Flux as telemetry shows it: the running mean of −κ g w per weight, read off Adam's first moment of t."""

from __future__ import annotations

from hyperflux.spec import ADAM_BETAS, Array, Moments, pressure_gradient


def running_pressure(mean: float, pressure: float, total: int) -> float:
    """Pressure's part in Adam's first moment of t after a step under `pressure`; every weight has the same.

    Args:
        mean: Pressure's part before the step, 0 before the first.
        pressure: γ of the step.
        total: N.

    """
    beta1, _ = ADAM_BETAS
    return beta1 * mean + (1 - beta1) * pressure_gradient(pressure, total)


def running_flux(moments: Moments, pressure_mean: float) -> Array:
    """Running mean over about ten steps of −κ g w, for pruned and present weights alike; 0 before the first step.

    It is pressure's part less Adam's first moment of t, bias-corrected.

    Args:
        moments: Adam's moments of t, (N,).
        pressure_mean: Pressure's part in the first moment, by `running_pressure`.

    Returns:
        The restoring flux of each weight (E4), (N,).

    """
    beta1, _ = ADAM_BETAS
    return (pressure_mean - moments.first) / (1 - beta1 ** max(1, moments.steps))
