"""Flux as telemetry shows it: the running mean of −κ g w per weight, read off Adam's first moment of t."""

from __future__ import annotations

from hyperflux.spec import ADAM_BETAS, Array, Moments


def running_pressure(mean: float | Array, gradient: float | Array) -> float | Array:
    """Pressure's part in Adam's first moment of t after a step; every weight has the same, gates with prices their own.

    Args:
        mean: Pressure's part before the step, 0 before the first.
        gradient: The pressure loss's gradient on t in the step (see E5, E16).

    """
    beta1, _ = ADAM_BETAS
    return beta1 * mean + (1 - beta1) * gradient


def running_flux(moments: Moments, pressure_mean: float | Array) -> Array:
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
