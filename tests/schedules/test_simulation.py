"""The default controller on simulated networks: density and pressure over sizes, lengths, targets, noise and jumps."""

import math

import numpy as np
import pytest
from simulated_sweep import random_settings, tracking_error, turns

from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.published import PublishedSchedule
from hyperflux.schedules.simulation import Conditions, SimulatedNetwork, simulate
from hyperflux.spec import ADAM_BETAS


def test_the_default_course_holds_the_trajectory_over_all_kinds_of_networks():
    """E13, E14: the root mean square of ln(density/wanted) after a fifth of the pruning stage, and the last density."""
    errors = []
    for conditions, schedule in random_settings(60, most_steps=3000):
        rows = simulate(schedule, conditions)
        errors.append(tracking_error(rows, schedule))
    assert np.quantile(errors, 0.95) <= 0.05
    assert max(errors) <= 0.2


def test_pressure_turns_no_more_often_than_flux_does():
    """E13: rising with the trajectory; one jump of flux or noise may turn it twice. Single weights are noise."""
    for conditions, schedule in random_settings(40, most_steps=3000, seed=1):
        if schedule.final_count >= 100:
            assert turns(simulate(schedule, conditions), schedule) <= 3


def test_pressure_ends_up_doing_the_work_of_the_shift():
    """E13: on a quiet network the shift shrinks to nothing, whatever the size of flux."""
    for flux in (1e-9, 1e-3):
        schedule = DefaultSchedule(20_000, 1000, 8000, 0)
        rows = simulate(schedule, Conditions(20_000, flux=flux, noise=1.0))
        last = [row.shift for row in rows if row.step > 0.8 * 8000]
        assert abs(np.mean(last)) < 0.02


def test_the_published_controller_tracks_worse_and_turns_more_often():
    """E9: the difference that the default controller makes, on the same network in as many steps."""
    conditions = Conditions(20_000, noise=2.0)
    default = DefaultSchedule(20_000, 1000, 5000, 0)
    published = PublishedSchedule(0.05, 5000, 0, 100, 0, controller=PublishedController(0.3))
    ours, theirs = simulate(default, conditions), simulate(published, conditions)
    assert tracking_error(ours, default) < 0.05 < 0.1 < tracking_error(theirs, published)
    assert turns(ours, default) < turns(theirs, published)


def test_the_plants_adam_is_adam():
    """E6: sums and last values of the first moment over an interval have the mean and variance of Adam step by step."""
    mean, deviation, steps, beta = 0.3, 2.0, 7, ADAM_BETAS[0]
    network = SimulatedNetwork(Conditions(20_000), 20_000, (0.2, 0.5), 10**9)
    sums = network._sum_of_first_moments(steps, np.full(20_000, mean), np.full(20_000, deviation))
    rng = np.random.default_rng(1)
    first, total = np.zeros(20_000), np.zeros(20_000)
    for _ in range(steps):
        first = beta * first + (1 - beta) * rng.normal(mean, deviation, 20_000)
        total += first
    for ours, theirs in ((sums, total), (network._first, first)):
        assert ours.mean() == pytest.approx(theirs.mean(), abs=5 * theirs.std() / math.sqrt(20_000))
        assert ours.std() == pytest.approx(theirs.std(), rel=0.03)
    assert np.corrcoef(sums, network._first)[0, 1] == pytest.approx(np.corrcoef(total, first)[0, 1], abs=0.02)


def test_capacity_on_the_plant_is_exact_to_the_particle():
    """E12."""
    network = SimulatedNetwork(Conditions(5_000_000), 5000, (0.2, 0.5), 10**9)
    network.meet_capacity(250_000)
    assert network.surviving() == 250_000
