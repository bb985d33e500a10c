"""Random settings for a simulated network, and figures of a run on it; docs/figures/controller.py uses it too."""

import math

import numpy as np

from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.simulation import Conditions


def random_settings(count, *, most_steps, seed=0):
    """`count` times (conditions, schedule): sizes, lengths, targets and fluxes over orders of magnitude."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        density = 10 ** rng.uniform(-3, math.log10(0.7))
        total = int(10 ** rng.uniform(max(2.0, 0.5 - math.log10(density)), math.log10(25e6)))
        conditions = Conditions(
            total,
            flux=10 ** rng.uniform(-12, 0),
            spread=rng.uniform(0.3, 2),
            noise=10 ** rng.uniform(-0.5, 1.5),
            stress=rng.uniform(0, 1),
            delay=10 ** rng.uniform(0, 2.5),
            noise_jump=rng.choice([1.0, 0.25, 4.0]),
            flux_jump=rng.choice([1.0, 0.1, 10.0]),
            half_pruned=bool(rng.integers(2)),
            seed=number,
        )
        steps = int(10 ** rng.uniform(2, math.log10(most_steps)))
        yield conditions, DefaultSchedule(total, round(total * density), steps, 0)


def later(rows, schedule):
    """The rows after a fifth of the pruning stage."""
    return [row for row in rows if 0.2 * schedule.pruning_steps < row.step <= schedule.pruning_steps]


def tracking_error(rows, schedule):
    """Root mean square of ln(density/wanted), of what the network trains at."""
    # A density of 0 counts as a tenth of the wanted one.
    errors = [math.log(max(row.density, 0.1 * row.wanted) / row.wanted) for row in later(rows, schedule)]
    return math.sqrt(np.mean(np.square(errors)))


def turns(rows, schedule, *, parts=40, least=0.2):
    """How often the trend of ln γ changes its sign: of its means over `parts` of the time, by at least `least`.

    No pressure counts as a thousandth of the highest one.
    """
    pressures = np.array([row.pressure for row in later(rows, schedule)])
    if not pressures.any():
        return 0
    logs = np.log(np.maximum(pressures, 1e-3 * pressures.max()))
    means = [part.mean() for part in np.array_split(logs, parts) if len(part)]
    count, direction, extreme = 0, 0, means[0]
    for value in means:
        if direction == 0 and abs(value - extreme) > least:
            direction, extreme = math.copysign(1, value - extreme), value
        elif (value - extreme) * direction > 0:
            extreme = value
        elif direction and (extreme - value) * direction > least:
            count, direction, extreme = count + 1, -direction, value
    return count
