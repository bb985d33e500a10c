"""The default course: exactly the target count at every control step, whatever the gate does in between."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError, RunConfig
from hyperflux.schedules.base import Observation
from hyperflux.schedules.controllers import ShiftController
from hyperflux.schedules.curves import control_interval, density_at, trajectory
from hyperflux.schedules.default import DefaultCourse, DefaultSchedule
from hyperflux.schedules.factory import counted_schedule, pruning_schedule

SHARES = st.floats(0.05, 1.0)


@st.composite
def courses(draw):
    default = DefaultCourse()
    return draw(st.just(default) | st.builds(DefaultCourse, lowest_at=SHARES, undershoot=SHARES, freeze_at=SHARES))


@st.composite
def schedules(draw):
    total = draw(st.integers(2, 10**8))
    return DefaultSchedule(
        total,
        draw(st.integers(1, total - 1)),
        draw(st.integers(1, 100_000)),
        draw(st.integers(0, 100_000)),
        draw(st.sampled_from([1e-4, 1e-3, 0.1])),
        draw(courses()),
    )


def control_steps(schedule, shift=0.0):
    """Every control step with the settings that follow it, under a constant shift."""
    state = schedule.initial_state()
    while (step := schedule.next_control_step(state)) <= schedule.pruning_steps + schedule.regrowth_steps:
        state = schedule.advance(state, Observation(shift, lambda: 0.5, lambda: 1e-3))
        yield step, schedule.settings(state)


@given(schedules())
def test_the_density_falls_along_e8_below_the_target_and_rises_to_it(schedule):
    """E14, E8: D at every step down to the lowest density, then up to the target at the end of the pruning stage."""
    lowest_at, undershoot = schedule.course.lowest_at, schedule.course.undershoot
    end = schedule.pruning_steps + schedule.regrowth_steps
    steps = sorted({round(share * schedule.pruning_steps) for share in (0, 0.1, 0.3, 0.5, 0.69, 0.7, 0.8, 0.9, 1)})
    down, up = ([s for s in steps if (s / schedule.pruning_steps < lowest_at) is side] for side in (True, False))
    kept = [[schedule.target_count(step) for step in part] for part in (down, up)]
    assert kept[0] == sorted(kept[0], reverse=True)
    assert kept[1] == sorted(kept[1])
    assert schedule.target_count(0) == schedule.total
    assert {schedule.target_count(step) for step in (schedule.pruning_steps, end)} == {schedule.final_count}
    density = schedule.final_count / schedule.total
    lowest = max(1, schedule.final_count * (undershoot + (1 - undershoot) * density))
    assert abs(schedule.lowest_count - lowest) <= 0.5 + 1e-9 * schedule.total
    assert min(*kept[0], *kept[1]) >= schedule.lowest_count
    course = trajectory(schedule.lowest_count / schedule.total, 100)
    for step in down:
        wanted = schedule.total * density_at(course, step / (lowest_at * schedule.pruning_steps))
        assert abs(schedule.target_count(step) - max(schedule.lowest_count, wanted)) <= 0.5 + 1e-9 * schedule.total


@pytest.mark.parametrize(("pruning", "regrowth"), [(1, 0), (1, 1), (7, 3), (2000, 1000), (50_001, 333)])
def test_control_steps_come_every_few_steps_and_at_the_ends_of_the_stages(pruning, regrowth):
    schedule = DefaultSchedule(10_001, 50, pruning, regrowth)
    steps = [step for step, _ in control_steps(schedule)]
    settled = pruning + schedule.steps_before_freeze
    assert {pruning, settled} <= set(steps)
    assert steps[-1] == settled
    gaps = {after - before for before, after in zip([0, *steps], steps, strict=False)}
    assert 1 <= min(gaps) <= max(gaps) <= control_interval(pruning, 10_001) <= 5
    assert control_interval(pruning, 10_000) == 1


@given(schedules().filter(lambda schedule: schedule.pruning_steps < 3000 and schedule.regrowth_steps < 3000))
def test_regrowth_has_no_pressure_and_t_slows_down_to_rest(schedule):
    """E14: η_t is constant while pruning, falls in a straight line while the mask settles, and then t rests."""
    for step, orders in control_steps(schedule):
        if step < schedule.pruning_steps:
            assert orders.presence_lr == schedule.presence_lr
            assert orders.pressure > 0
        else:
            left = schedule.pruning_steps + schedule.steps_before_freeze - step
            assert orders.pressure == 0
            expected = schedule.presence_lr * left / schedule.steps_before_freeze if left else None
            assert orders.presence_lr == (pytest.approx(expected) if left else None)


def test_pressure_follows_the_shift():
    """E13: the first pressure by the size of flux; then ln γ is the integral of the shift's share of t's reach."""
    controller = ShiftController(6000)
    assert controller.initial_log_pressure(1000, 2e-3) == pytest.approx(math.log(1000 * 0.1 * 2e-3))
    assert controller.update(1.0, 2e-3, max_travel=4e-3, steps=4) == pytest.approx(1.0 + 300 / 6000 * 4 * 0.5)
    assert controller.update(1.0, -2e-3, max_travel=4e-3, steps=4) == pytest.approx(1.0 - 300 / 6000 * 4 * 0.5)
    assert ShiftController(100).update(1.0, 9.0, max_travel=1e-3, steps=1) == 1.0 + 0.05, "bounded in short runs"
    assert math.isfinite(controller.initial_log_pressure(1000, 0.0)), "a network without gradients has a pressure too"


def test_pressure_does_not_depend_on_the_number_of_control_steps():
    """E13: the same shift in one interval or in five gives the same pressure."""
    controller, log_pressure = ShiftController(5000), 0.0
    for _ in range(5):
        log_pressure = controller.update(log_pressure, 2e-4, max_travel=1e-3, steps=1)
    assert log_pressure == pytest.approx(controller.update(0.0, 1e-3, max_travel=5e-3, steps=5))


def test_the_first_t_shrink_in_short_runs():
    """E2, E14: the paper's interval where t can travel far, else one that pressure crosses at once."""
    assert DefaultSchedule(1000, 50, 200_000, 0).initial_presence == (0.2, 0.5)
    low, high = DefaultSchedule(1000, 50, 100, 0).initial_presence
    assert 0 < low < high == pytest.approx(0.005 * 100 * 1e-3)
    assert high / low == pytest.approx(2.5)


@given(schedules().filter(lambda schedule: schedule.pruning_steps < 3000), st.floats(-1e-3, 1e-3), st.integers(0, 50))
def test_saved_and_restored_it_continues_identically(schedule, shift, cut):
    """E13: through JSON text, at any control step."""
    state = schedule.initial_state()
    seen = Observation(shift, lambda: 0.5, lambda: 1e-3)
    for _ in range(cut):
        if schedule.next_control_step(state) <= schedule.pruning_steps:
            state = schedule.advance(state, seen)
    restored = schedule.restore(json.loads(json.dumps(asdict(state))))
    assert restored == state
    assert schedule.settings(restored) == schedule.settings(state)


@pytest.mark.parametrize("saved", [{"controls": 1}, {"step": 1, "surprise": 2}])
def test_a_state_of_another_shape_is_refused(saved):
    with pytest.raises(InputError, match="schedule state"):
        DefaultSchedule(10, 5, 10, 5).restore(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lowest_at", 0.0),
        ("lowest_at", 1.1),
        ("undershoot", -0.1),
        ("undershoot", math.nan),
        ("freeze_at", -0.1),
        ("freeze_at", math.nan),
        ("gain", 0.0),
        ("max_rate", math.inf),
        ("first_pressure", math.nan),
    ],
)
def test_a_course_setting_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=rf"^course\.{name}: .* is out of range; give a "):
        DefaultCourse(**{name: value})


def test_the_course_of_a_pruner_and_of_a_run_can_be_set():
    """E13, E14: by a field, from one's own loop and from a recipe."""
    course = DefaultCourse(lowest_at=0.5, undershoot=1.0, freeze_at=0.0, gain=30.0)
    table = {"lowest_at": 0.5, "undershoot": 1.0, "freeze_at": 0.0, "gain": 30.0}
    schedule = RunConfig.from_dict({"course": table}).schedule(1000, 10)
    assert schedule.course == course
    assert schedule.controller == ShiftController(600, gain=30.0)
    assert schedule.lowest_count == schedule.final_count == 50
    assert schedule.steps_before_freeze == 0
    assert pruning_schedule(1000, 0.95, 600, 400, controller=course).course == course


def test_with_a_pattern_every_step_is_a_control_step_until_the_mask_freezes():
    """E18: capacity holds t at the gate, which the next step may lower; a course of weights of this size waits."""
    weights, pattern = (counted_schedule(10**6, 500_000, 10_000, 100, is_least=is_least) for is_least in (False, True))
    assert [step for step, _ in control_steps(pattern)] == list(range(1, 10_031))
    assert next(step for step, _ in control_steps(weights)) == 5
    assert pattern.lowest_count == 500_000 > weights.lowest_count
