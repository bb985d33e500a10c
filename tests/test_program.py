"""E10: the two stages, and that a program can be saved and restored anywhere."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError
from hyperflux.controller import PublishedController, PublishedState
from hyperflux.program import Program, ProgramState, PruningCourse, RegrowthCourse
from hyperflux.schedule import trajectory

PROGRAM = Program(0.05, PruningCourse(4, 0.1, 0.01), RegrowthCourse(3, 0.001, 0.0001, 5e-4, 0.5))


def course(program, densities, state=None):
    """Every epoch's orders under the densities seen, and the last state."""
    state, given_orders = state or ProgramState(), []
    for density in densities:
        given_orders.append(program.orders(state))
        state = program.advance(state, density)
    return given_orders, state


def test_a_whole_course_by_hand():
    """E10: stages, pressures (E9, Δ = 0.3), densities wanted (E8) and both learning rates."""
    orders, state = course(PROGRAM, [1.0] * 7)
    assert [o.stage for o in orders] == ["pruning"] * 4 + ["regrowth"] * 3
    assert [o.pressure for o in orders] == pytest.approx([0, 0.3**1.5, 0.675**1.5, 1.125**1.5, 0, 0, 0])
    assert [o.wanted for o in orders] == [*trajectory(0.05, 4), 0.05, 0.05, 0.05]
    half = math.sqrt(0.5)
    assert [o.learning_rate for o in orders] == pytest.approx(
        [0.1, 0.01 + 0.045 * (1 + half), 0.055, 0.01 + 0.045 * (1 - half), 0.001, 0.000775, 0.000325]
    )
    assert [o.presence_learning_rate for o in orders] == pytest.approx([1e-3] * 4 + [5e-4, 2.5e-4, 1.25e-4])
    assert PROGRAM.stage(state) == "done"


def test_pressure_is_exactly_zero_throughout_regrowth():
    """E10: whatever pressure the pruning stage ended with."""
    orders, _ = course(PROGRAM, [1.0, 0.9, 0.8, 0.7, 0.6, 0.9, 0.01])
    assert {o.pressure for o in orders if o.stage == "regrowth"} == {0.0}


def test_the_controller_compares_each_epoch_with_its_own_point_of_the_trajectory():
    """E8, E9: just above D(e) raises the pressure after epoch e, just below lowers it."""
    wanted = trajectory(0.05, 4)
    rising, _ = course(PROGRAM, [density * 1.0001 for density in wanted])
    assert [o.pressure for o in rising] == pytest.approx([0, 0.3**1.5, 0.675**1.5, 1.125**1.5])
    resting, _ = course(PROGRAM, [density * 0.9999 for density in wanted])
    assert [o.pressure for o in resting] == [0, 0, 0, 0]


def test_without_regrowth_the_program_ends_after_pruning():
    program = replace(PROGRAM, regrowth=replace(PROGRAM.regrowth, epochs=0))
    _, state = course(program, [0.5] * 4)
    assert program.stage(state) == "done"


def test_a_program_that_is_done_gives_no_orders():
    _, state = course(PROGRAM, [0.5] * 7)
    with pytest.raises(ValueError, match="done after its 7 epochs"):
        PROGRAM.orders(state)
    with pytest.raises(ValueError, match="done after its 7 epochs"):
        PROGRAM.advance(state, 0.5)


@given(st.lists(st.floats(0.001, 1), min_size=7, max_size=7), st.integers(0, 7))
def test_saved_and_restored_it_continues_identically(densities, cut):
    """E10: through JSON text, at any epoch."""
    whole, last = course(PROGRAM, densities)
    first, state = course(PROGRAM, densities[:cut])
    restored = ProgramState.from_dict(json.loads(json.dumps(state.to_dict())))
    second, resumed_last = course(PROGRAM, densities[cut:], restored)
    assert first + second == whole
    assert resumed_last == last


@pytest.mark.parametrize("saved", [{}, {"finished_epochs": 1}, {"controller": {}, "surprise": 1}])
def test_a_state_of_another_shape_is_refused(saved):
    with pytest.raises(InputError, match="program state"):
        ProgramState.from_dict(saved)


def test_restoring_keeps_every_field():
    state = ProgramState(3, 1.5, PublishedState(0.1, 0.2, 0.3))
    assert ProgramState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PruningCourse(0, 0.1, 0.1), "pruning.epochs: 0"),
        (lambda: RegrowthCourse(-1, 0.1, 0.1), "regrowth.epochs: -1"),
        (lambda: PruningCourse(5, math.nan, 0.1), "pruning.learning_rate: nan"),
        (lambda: PruningCourse(5, 0.1, -0.1), "pruning.final_learning_rate: -0.1"),
        (lambda: RegrowthCourse(5, 0.1, 0.1, presence_decay=math.inf), "regrowth.presence_decay: inf"),
        (lambda: replace(PROGRAM, target_density=1.0), "target_density: 1.0"),
        (lambda: PublishedController(-1), "controller step: -1"),
    ],
)
def test_wrong_settings_are_refused_at_construction_by_name_and_value(build, message):
    with pytest.raises(InputError, match=message):
        build()
