"""The published course, E8 to E10: faithful to the letter, and restored anywhere."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError
from hyperflux.schedules.base import Observation
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.curves import trajectory
from hyperflux.schedules.published import PublishedSchedule

SCHEDULE = PublishedSchedule(0.05, 40, 30, 4, 3, presence_reset=0.5, presence_decay=0.5)


def course(schedule, densities, state=None):
    """Every interval's orders under the densities seen, and the last state."""
    state, given_orders = state or schedule.initial_state(), []
    for density in densities:
        given_orders.append(schedule.settings(state))
        state = schedule.advance(state, Observation(0.0, lambda density=density: density, lambda: 0.0))
    return given_orders, state


def test_a_whole_course_by_hand():
    """E10: pressures (E9, Δ = 0.3) and rates of t; then t rests."""
    orders, state = course(SCHEDULE, [1.0] * 7)
    assert [o.pressure for o in orders] == pytest.approx([0, 0.3**1.5, 0.675**1.5, 1.125**1.5, 0, 0, 0])
    assert [o.presence_lr for o in orders] == pytest.approx([1e-3] * 4 + [5e-4, 2.5e-4, 1.25e-4])
    assert SCHEDULE.settings(state).presence_lr is None


def test_intervals_divide_the_stages_evenly():
    schedule = PublishedSchedule(0.05, 10, 5, 3, 2)
    state, ends = schedule.initial_state(), []
    while (end := schedule.next_control_step(state)) <= 15:
        ends.append(end)
        state = schedule.advance(state, Observation(0.0, lambda: 0.5, lambda: 0.0))
    assert ends == [3, 6, 10, 12, 15]


def test_pressure_is_exactly_zero_throughout_regrowth():
    """E10: whatever pressure the pruning stage ended with."""
    orders, _ = course(SCHEDULE, [1.0, 0.9, 0.8, 0.7, 0.6, 0.9, 0.01])
    assert {o.pressure for o in orders[4:]} == {0.0}
    assert orders[3].pressure > 0


def test_the_controller_compares_each_interval_with_its_own_point_of_the_trajectory():
    """E8, E9: just above D(e) raises the pressure after epoch e, just below lowers it."""
    wanted = trajectory(0.05, 4)
    assert [SCHEDULE.target_density(step) for step in (1, 10, 11, 40, 70)] == [
        wanted[0],
        wanted[0],
        wanted[1],
        *[wanted[3]] * 2,
    ]
    rising, _ = course(SCHEDULE, [density * 1.0001 for density in wanted])
    assert [o.pressure for o in rising] == pytest.approx([0, 0.3**1.5, 0.675**1.5, 1.125**1.5])
    resting, _ = course(SCHEDULE, [density * 0.9999 for density in wanted])
    assert [o.pressure for o in resting] == [0, 0, 0, 0]


def test_it_never_sets_a_capacity():
    assert {SCHEDULE.target_count(step) for step in range(71)} == {None}


@given(st.lists(st.floats(0.001, 1), min_size=7, max_size=7), st.integers(0, 7))
def test_saved_and_restored_it_continues_identically(densities, cut):
    """E10: through JSON text, at any interval."""
    whole, last = course(SCHEDULE, densities)
    first, state = course(SCHEDULE, densities[:cut])
    restored = SCHEDULE.restore(json.loads(json.dumps(asdict(state))))
    second, resumed_last = course(SCHEDULE, densities[cut:], restored)
    assert first + second == whole
    assert resumed_last == last


@pytest.mark.parametrize("saved", [{}, {"intervals": 1}, {"controller": {}, "surprise": 1}])
def test_a_state_of_another_shape_is_refused(saved):
    with pytest.raises(InputError, match="schedule state"):
        SCHEDULE.restore(saved)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(SCHEDULE, final_density=1.0), "final_density: 1.0 is not a fraction"),
        (lambda: PublishedController(-1), "controller step: -1"),
    ],
)
def test_wrong_settings_are_refused_at_construction_by_name_and_value(build, message):
    with pytest.raises(InputError, match=message):
        build()
