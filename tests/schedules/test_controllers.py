"""E9, against a table computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ROUNDING

from hyperflux import InputError
from hyperflux.schedules.controllers import PublishedController, PublishedControllerState

# Δ = 0.3, so a further epoch on the same side adds 0.075 to the next step. (too dense?, b, i₊, i₋ after it)
TABLE = [
    (True, 0.3, 0.075, 0.0),
    (True, 0.675, 0.15, 0.0),
    (True, 1.125, 0.225, 0.0),
    (False, 0.825, 0.0, 0.075),
    (False, 0.45, 0.0, 0.15),
    (True, 0.75, 0.075, 0.0),
    (False, 0.45, 0.0, 0.075),
    (False, 0.075, 0.0, 0.15),
    (False, 0.0, 0.0, 0.225),
    (False, 0.0, 0.0, 0.3),
    (True, 0.3, 0.075, 0.0),
]


def test_published_controller_reproduces_the_table():
    """E9"""
    controller, state = PublishedController(0.3), PublishedControllerState()
    for too_dense, base, rising, falling in TABLE:
        state, pressure = controller.update(state, target_density=0.5, density=0.6 if too_dense else 0.4)
        assert (state.base, state.rising, state.falling) == pytest.approx((base, rising, falling), abs=1e-15)
        assert pressure == pytest.approx(base**1.5, rel=1e-12, abs=1e-20)


def test_a_density_on_the_trajectory_counts_as_reached():
    """E9: "above D(e)" is strict."""
    state, _ = PublishedController().update(PublishedControllerState(1.0, 0.0, 0.0), target_density=0.5, density=0.5)
    assert state.base == pytest.approx(0.7, rel=ROUNDING)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=60), st.floats(0.01, 2))
def test_pressure_is_never_negative_and_rises_exactly_when_too_dense(course, step):
    """E9: whatever the densities do."""
    controller, state, pressure = PublishedController(step), PublishedControllerState(), 0.0
    for wanted, seen in course:
        before = pressure
        state, pressure = controller.update(state, wanted, seen)
        assert pressure >= 0
        if seen > wanted:
            assert pressure > before
        else:
            assert pressure < before or before == pressure == 0


@pytest.mark.parametrize("step", [0.0, -0.3, math.nan, math.inf])
def test_a_step_that_is_not_positive_is_refused(step):
    with pytest.raises(InputError, match=f"controller step: {step}"):
        PublishedController(step)
