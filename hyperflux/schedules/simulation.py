"""A simulated network on which to try schedules and controllers: many t under random flux and Adam.

It is a `hyperflux.schedules.base.Gate`, so a schedule steers it as it steers a network. If N is large, fewer particles
represent it, each for the same number of weights, so many that `MIN_SURVIVORS` are left. The steps between two control
steps are simulated in one draw: Adam's first moments and their sum are normal with known mean and variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.schedules.base import PruningSchedule, Ranking
from hyperflux.schedules.scheduler import PruningScheduler
from hyperflux.spec import ADAM_BETAS, ADAM_EPSILON, Array, meet_capacity

MIN_SURVIVORS = 50
"""Particles left at the end, if N and `MAX_PARTICLES` allow it."""
MAX_PARTICLES = 20_000
BUSY = 0.05
"""Flux of a present weight, as a share of what it would be if the weight were pruned."""


@dataclass(frozen=True)
class Conditions:
    """Parameters of a simulated network.

    Attributes:
        total: N.
        flux: Median restoring flux of a pruned weight.
        spread: Standard deviation of ln flux over weights.
        noise: Standard deviation of κ g w over batches, as a multiple of flux.
        stress: Every flux grows with this power of 1/density.
        delay: Steps until the network responds to a removal.
        noise_jump: Factor on noise in the middle of the pruning stage, as for another batch size.
        flux_jump: Factor on flux in the middle of the pruning stage, as for another learning rate.
        half_pruned: Whether half of the weights are pruned at the start.
        seed: Seed of all draws.
    """

    total: int
    flux: float = 1e-6
    spread: float = 1.0
    noise: float = 3.0
    stress: float = 0.3
    delay: float = 20.0
    noise_jump: float = 1.0
    flux_jump: float = 1.0
    half_pruned: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ControlRow:
    """One control interval.

    Attributes:
        step: Its middle step.
        density: Density at that step, a fraction.
        wanted: Target density at the start of the interval, a fraction.
        pressure: γ.
        shift: Shift of capacity at the end of the interval, as a share of how far t can move in it.
    """

    step: int
    density: float
    wanted: float
    pressure: float
    shift: float


class SimulatedNetwork:
    """A gate whose t are simulated."""

    def __init__(self, conditions: Conditions, particles: int, initial: tuple[float, float], change_at: int) -> None:
        """Draw the first t.

        Args:
            conditions: The network's parameters.
            particles: Number of simulated t.
            initial: Interval of the first t.
            change_at: The step of the jumps in noise and flux.
        """
        self._conditions, self._change_at = conditions, change_at
        self._rng = np.random.default_rng(conditions.seed)
        ranks = (np.arange(particles) + 0.5) / particles
        self._flux = conditions.flux * np.exp(conditions.spread * _normal_quantile(ranks))
        self._answer = np.full(particles, BUSY)
        self._t: Array = self._rng.uniform(*initial, particles)
        if conditions.half_pruned:
            self._t[self._rng.random(particles) < 0.5] *= -1
        self._first, self._second = np.zeros(particles), np.zeros(particles)
        self._weight = conditions.total / particles
        self.steps, self.pressure, self.last_shift = 0, 0.0, 0.0
        self.presence_lr: float | None = 0.0

    @property
    def total(self) -> int:
        """N."""
        return self._conditions.total

    def surviving(self) -> int:
        """Number of present weights, in whole particles."""
        return self.above(0.0)

    def above(self, level: float) -> int:
        """Number of weights whose t is at `level` or above, in whole particles."""
        return round(int(np.count_nonzero(self._t >= level)) * self._weight)

    def meet_capacity(self, count: int, ranking: Ranking = "presence") -> float:
        """As `hyperflux.spec.meet_capacity`, rounded to whole particles; there are no weights to rank by."""
        self._t, self.last_shift = meet_capacity(self._t, max(1, round(count / self._weight)))
        return self.last_shift

    def confirm_masks(self) -> None:
        """Nothing to compare: there is one replica."""

    def typical_flux(self) -> float:
        """Mean over weights of the root of Adam's second moment."""
        root = np.sqrt(self._second / (1 - ADAM_BETAS[1] ** max(1, self.steps)))
        return float(root.mean())

    def pass_time(self, steps: int) -> None:
        """Simulate `steps` optimizer steps under the current pressure and learning rate."""
        if not steps:
            return
        conditions, changed = self._conditions, self.steps >= self._change_at
        pruned = self._t < 0
        self._answer += (np.where(pruned, 1.0, BUSY) - self._answer) * -math.expm1(-steps / max(conditions.delay, 1e-9))
        scale = (self.surviving() / self.total + 1 / self.total) ** -conditions.stress
        flux = self._flux * scale * (conditions.flux_jump if changed else 1.0)
        deviation = flux * conditions.noise * (conditions.noise_jump if changed else 1.0)
        mean = self.pressure / self.total - flux * self._answer
        self.steps += steps
        self._second *= (kept := ADAM_BETAS[1] ** steps)
        self._second += (1 - kept) * (mean**2 + deviation**2)
        root = np.sqrt(self._second / (1 - ADAM_BETAS[1] ** self.steps)) + ADAM_EPSILON
        travelled = self._sum_of_first_moments(steps, mean, deviation)
        if self.presence_lr:
            self._t -= self.presence_lr * travelled / root

    def _sum_of_first_moments(
        self, steps: int, mean: NDArray[np.float64], deviation: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Draw the sum of Adam's first moments over `steps` gradients N(mean, deviation²); store the last moment.

        Given the initial moment, sum and last moment are jointly normal: a gradient l steps before the end enters the
        sum with weight 1 − β^l and the last moment with weight (1 − β) β^(l − 1).
        """
        beta = ADAM_BETAS[0]
        ages = np.arange(1, steps + 1)
        in_sum, in_last = 1 - beta**ages, (1 - beta) * beta ** (ages - 1)
        spread_sum = math.sqrt(float(in_sum @ in_sum))
        shared = float(in_sum @ in_last) / spread_sum
        own = math.sqrt(max(float(in_last @ in_last) - shared**2, 0.0))
        draws = deviation * self._rng.normal(size=(2, len(mean)))
        before = self._first - mean
        carried = beta * (1 - beta**steps) / (1 - beta)
        total = mean * steps + before * carried + spread_sum * draws[0]
        self._first = mean + before * beta**steps + shared * draws[0] + own * draws[1]
        return np.asarray(total)


def simulate(schedule: PruningSchedule[Any], conditions: Conditions) -> list[ControlRow]:
    """Run a schedule on a simulated network; returns one row per control interval."""
    target = schedule.target_density(schedule.pruning_steps + schedule.regrowth_steps)
    particles = min(conditions.total, MAX_PARTICLES, max(1000, round(MIN_SURVIVORS / target)))
    network = SimulatedNetwork(conditions, particles, schedule.initial_presence, schedule.pruning_steps // 2)
    scheduler, rows = PruningScheduler(schedule, network), []
    end = schedule.pruning_steps + schedule.regrowth_steps
    while (control := schedule.next_control_step(scheduler.state)) <= end:
        interval, wanted, rate = control - network.steps, schedule.target_density(network.steps), network.presence_lr
        network.pass_time((interval - 1) // 2)
        row = ControlRow(network.steps + 1, network.surviving() / network.total, wanted, network.pressure, math.nan)
        network.pass_time(control - network.steps)
        scheduler.after_step()
        rows.append(replace(row, shift=network.last_shift / (rate * interval) if rate else 0.0))
    return rows


def _normal_quantile(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of the standard normal distribution."""
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    return np.array([inverse(min(max(value, 1e-12), 1 - 1e-12)) for value in share])
