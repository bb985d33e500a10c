"""The default course: exactly the wanted number of weights, at every control step, whatever the gate does meanwhile."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError
from hyperflux.controller import FASTEST, GAIN, ShiftController
from hyperflux.programs.base import Seen
from hyperflux.programs.capacity import ARRIVAL, CapacityProgram
from hyperflux.schedule import control_interval, density_at, trajectory


@st.composite
def programs(draw):
    total = draw(st.integers(2, 10**8))
    return CapacityProgram(
        total,
        draw(st.integers(1, total - 1)),
        draw(st.integers(1, 100_000)),
        draw(st.integers(0, 100_000)),
        draw(st.sampled_from([1e-4, 1e-3, 0.1])),
    )


def control_steps(program, shift=0.0):
    """Every control step with the orders that follow it, under a constant shift."""
    state = program.first()
    while (step := program.next_control(state)) <= program.pruning_steps + program.regrowth_steps:
        state = program.advance(state, Seen(shift, lambda: 0.5, lambda: 1e-3))
        yield step, program.orders(state)


@given(programs())
def test_the_density_falls_along_e8_below_the_target_and_rises_to_it(program):
    """E14, E8: D at every step down to the dip, from there up to the target at the end of the pruning stage."""
    end = program.pruning_steps + program.regrowth_steps
    steps = sorted({round(share * program.pruning_steps) for share in (0, 0.1, 0.3, 0.5, 0.69, 0.7, 0.8, 0.9, 1)})
    down, up = ([s for s in steps if (s < ARRIVAL * program.pruning_steps) is side] for side in (True, False))
    kept = [[program.kept(step) for step in part] for part in (down, up)]
    assert kept[0] == sorted(kept[0], reverse=True)
    assert kept[1] == sorted(kept[1])
    assert program.kept(0) == program.total
    assert {program.kept(step) for step in (program.pruning_steps, end)} == {program.kept_weights}
    density = program.kept_weights / program.total
    assert (
        abs(program.fewest_weights - max(1, program.kept_weights * (0.4 + 0.6 * density))) <= 0.5 + 1e-9 * program.total
    )
    assert min(*kept[0], *kept[1]) >= program.fewest_weights
    course = trajectory(program.fewest_weights / program.total, 100)
    for step in down:
        wanted = program.total * density_at(course, step / (ARRIVAL * program.pruning_steps))
        assert abs(program.kept(step) - max(program.fewest_weights, wanted)) <= 0.5 + 1e-9 * program.total


@pytest.mark.parametrize(("pruning", "regrowth"), [(1, 0), (1, 1), (7, 3), (2000, 1000), (50_001, 333)])
def test_control_steps_come_every_few_steps_and_at_the_ends_of_the_stages(pruning, regrowth):
    program = CapacityProgram(10_001, 50, pruning, regrowth)
    steps = [step for step, _ in control_steps(program)]
    settled = pruning + program.settling_steps
    assert {pruning, settled} <= set(steps)
    assert steps[-1] == settled
    gaps = {after - before for before, after in zip([0, *steps], steps, strict=False)}
    assert 1 <= min(gaps) <= max(gaps) <= control_interval(pruning, 10_001) <= 5
    assert control_interval(pruning, 10_000) == 1


@given(programs().filter(lambda program: program.pruning_steps < 3000 and program.regrowth_steps < 3000))
def test_regrowth_has_no_pressure_and_t_slows_down_to_rest(program):
    """E14: η_t is constant while pruning, falls in a straight line while the mask settles, and then t rests."""
    for step, orders in control_steps(program):
        if step < program.pruning_steps:
            assert orders.presence_lr == program.presence_lr
            assert orders.pressure > 0
        else:
            left = program.pruning_steps + program.settling_steps - step
            assert orders.pressure == 0
            expected = program.presence_lr * left / program.settling_steps if left else None
            assert orders.presence_lr == (pytest.approx(expected) if left else None)


def test_pressure_follows_the_shift():
    """E13: the first pressure by the size of flux; then ln γ is the integral of the shift's share of t's reach."""
    controller = ShiftController(6000)
    assert controller.first(1000, 2e-3) == pytest.approx(math.log(1000 * 0.1 * 2e-3))
    assert controller.update(1.0, 2e-3, reach=4e-3, steps=4) == pytest.approx(1.0 + GAIN / 6000 * 4 * 0.5)
    assert controller.update(1.0, -2e-3, reach=4e-3, steps=4) == pytest.approx(1.0 - GAIN / 6000 * 4 * 0.5)
    assert ShiftController(100).update(1.0, 9.0, reach=1e-3, steps=1) == 1.0 + FASTEST, "bounded in short runs"
    assert math.isfinite(controller.first(1000, 0.0)), "a network without gradients has a pressure too"


def test_pressure_does_not_depend_on_the_number_of_control_steps():
    """E13: the same shift in one interval or in five gives the same pressure."""
    controller, log_pressure = ShiftController(5000), 0.0
    for _ in range(5):
        log_pressure = controller.update(log_pressure, 2e-4, reach=1e-3, steps=1)
    assert log_pressure == pytest.approx(controller.update(0.0, 1e-3, reach=5e-3, steps=5))


def test_the_first_t_shrink_in_short_runs():
    """E2, E14: the paper's interval where t can travel far, else one that pressure crosses at once."""
    assert CapacityProgram(1000, 50, 200_000, 0).initial_presence == (0.2, 0.5)
    low, high = CapacityProgram(1000, 50, 100, 0).initial_presence
    assert 0 < low < high == pytest.approx(0.005 * 100 * 1e-3)
    assert high / low == pytest.approx(2.5)


@given(programs().filter(lambda program: program.pruning_steps < 3000), st.floats(-1e-3, 1e-3), st.integers(0, 50))
def test_saved_and_restored_it_continues_identically(program, shift, cut):
    """E13: through JSON text, at any control step."""
    state = program.first()
    seen = Seen(shift, lambda: 0.5, lambda: 1e-3)
    for _ in range(cut):
        if program.next_control(state) <= program.pruning_steps:
            state = program.advance(state, seen)
    restored = program.restore(json.loads(json.dumps(asdict(state))))
    assert restored == state
    assert program.orders(restored) == program.orders(state)


@pytest.mark.parametrize("saved", [{"controls": 1}, {"step": 1, "surprise": 2}])
def test_a_state_of_another_shape_is_refused(saved):
    with pytest.raises(InputError, match="program state"):
        CapacityProgram(10, 5, 10, 5).restore(saved)
